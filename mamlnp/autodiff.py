"""Reverse mode, of any order: vjp, and everything else made of it.

A transform gives its function *aliases* of the arguments and differentiates with respect to those.
An alias is younger (has a larger serial) than everything made before the transform began, so the
pullback never walks into what only an enclosing transform asked for, and an inner gradient never
mixes with an outer one (perturbation confusion). The pullback's own operations are recorded only
if something older is being differentiated; otherwise it gives memory back as it goes.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

from . import tree
from .array import NOTHING, Array
from .draws import Draw, Drawn, one
from .errors import DtypeError, MissingRuleError, ShapeError, TapeError
from .op import Op, as_array, describe, op, recording, serials
from .ops.elementwise import add, astype, mul, one_hot, ones_like, zeros_like
from .ops.gather import numbering
from .ops.reduce import sum
from .ops.shape import concatenate, ravel, reshape, stack

Tree = Any


@op(draw=one(), linear_in=("x",))
def alias(xp: Any, x: Any) -> Any:
    """x itself, as a new place to differentiate at."""
    return x


@alias.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return ct


@op(draw=one(), linear_in=("x",))
def anew(xp: Any, x: Any) -> Any:
    """x itself, to compute from it again what is not to be kept: a compiler does not share it."""
    return x


@anew.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return ct


def _aliases(where: str, primals: dict[int, Tree]) -> dict[int, Tree]:
    def make(path: str, leaf: Any) -> Array:
        x = as_array(leaf)
        if x.dtype.kind != "f":
            raise DtypeError(
                f"{where}: argument {path} is {describe(x)}. Only floats can be differentiated; "
                "convert it, or close over it."
            )
        return Array(x.value, alias, (x,), NOTHING, next(serials))

    return tree.unflatten(primals, [make(path, leaf) for path, leaf in tree.items(primals)])


def _constant(x: Any) -> Any:
    return Array(x.value) if isinstance(x, Array) and x.serial else x


class _Trace:
    """One run of a function on aliases of its arguments, ready to be pulled back.

    Attributes:
        out: what the function returned; constants unless something older is being differentiated.
        targets: the aliases, flat.
        outputs: the recorded Arrays in the function's result, flat.
    """

    def __init__(self, where: str, f: Callable[..., Any], primals: dict[int, Tree]) -> None:
        aliases = _aliases(where, primals)
        self.targets: list[Array] = tree.leaves(aliases)
        outer, recording.on = recording.on, True
        try:
            out = f(*aliases.values())
        except ValueError as error:
            if isinstance(error.__cause__, TapeError):  # NumPy's words for a float(x) that failed
                raise error.__cause__ from None
            raise
        finally:
            recording.on = outer
        self.outputs = tree.leaves(out)
        self.encloses = self._collect()
        self._enclosed = self.encloses and outer
        self.out = out if self._enclosed else tree.map(_constant, out)

    def _collect(self) -> bool:
        """Find the tape: every node no older than the targets, and those that depend on them.

        Returns whether something older leads into it.
        """
        oldest = min((t.serial for t in self.targets), default=0)
        self._nodes: dict[int, Array] = {}
        self._ends = dict.fromkeys(t.serial for t in self.targets)
        self._needed = set(self._ends)
        encloses = False
        stack = [x for x in self.outputs if isinstance(x, Array) and x.serial]
        while stack:
            node = stack.pop()
            if node.serial < oldest:
                encloses = True
            elif node.serial not in self._nodes:
                self._nodes[node.serial] = node
                for x in node.inputs:
                    if x.__class__ is Array and x.serial:
                        stack.append(x)
        self._order = sorted(self._nodes)
        for serial in self._order:
            for x in self._nodes[serial].inputs:
                if x.__class__ is Array and x.serial in self._needed:
                    self._needed.add(serial)
                    break
        return encloses

    @property
    def nodes(self) -> list[Array]:
        """The tape, oldest first."""
        return [self._nodes[serial] for serial in self._order]

    def pull(self, cts: Sequence[Array], *, once: bool = False) -> list[Array | None]:
        """The targets' cotangents from the first outputs'; None where none depends on a target: the
        walk of equation 1.1 (docs).

        With ``once``, nodes become constants as soon as they are done, which frees their memory.
        """
        record = self._enclosed or any(ct.serial for ct in cts)
        once = once and not record
        sums: dict[int, Array] = {}
        for x, ct in zip(self.outputs, cts, strict=False):
            if isinstance(x, Array) and x.serial in self._needed:
                sums[x.serial] = add(sums[x.serial], ct) if x.serial in sums else ct
        outer, recording.on = recording.on, recording.on and record
        try:
            for serial in reversed(self._order):
                node = self._nodes.pop(serial) if once else self._nodes[serial]
                if serial in sums and serial not in self._ends:
                    self._spread(node, sums.pop(serial), sums)
                if once:
                    node.forget()
        finally:
            recording.on = outer
        found = [sums.get(serial) for serial in self._ends]
        return found if record else [_constant(ct) for ct in found]

    def _spread(self, node: Array, ct: Array, sums: dict[int, Array]) -> None:
        """One step back: add what the node's rules give to its inputs' cotangents."""
        made_by: Op = node.op
        joint = made_by.rules[0](ct, node, *node.inputs, **node.params) if made_by.variadic else ()
        for i, x in enumerate(node.inputs):
            if x.__class__ is not Array or x.serial not in self._needed:
                continue
            if joint:
                part = joint[i]
            elif i in made_by.rules:
                part = made_by.rules[i](ct, node, *node.inputs, **node.params)
            elif i in made_by.data:
                continue
            else:
                raise MissingRuleError(
                    f"{made_by.name}: has no rule for {made_by.arguments[i]}. "
                    f'Declare one with @{made_by.name}.vjp("{made_by.arguments[i]}").'
                )
            sums[x.serial] = add(sums[x.serial], part) if x.serial in sums else part


def _or_zeros(cts: Sequence[Array | None], like: Sequence[Array]) -> list[Array]:
    return [zeros_like(t) if ct is None else ct for ct, t in zip(cts, like, strict=True)]


def vjp(f: Callable[..., Any], *primals: Tree) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
    """f's value, and its pullback: the product of a cotangent with the Jacobian (docs,
    equation 1.2).

    Args:
        f: from trees of Arrays to a tree of Arrays.
        primals: its arguments, floats all.

    Returns:
        ``(out, pullback)``; ``pullback(ct)``, for a ct like out, is a tuple of cotangents, one for
        each primal. It can be called again and again.

    Raises:
        DtypeError: a leaf of primals is not a float.
        ShapeError: a cotangent has another shape than the output.

    >>> out, pullback = vjp(lambda x, y: x * y, 2.0, 5.0)
    >>> out, pullback(1.0)
    (Array(10.), (Array(5.), Array(2.)))
    """
    trace = _Trace("vjp", f, dict(enumerate(primals)))

    def pullback(ct: Tree) -> tuple[Tree, ...]:
        cts = tree.leaves(tree.map(_cotangent, trace.out, ct))
        return tree.unflatten(primals, _or_zeros(trace.pull(cts), trace.targets))

    return trace.out, pullback


def tape(f: Callable[..., Any], *primals: Tree) -> tuple[Tree, list[Array]]:
    """f's value and every recorded Array it was made of, oldest first, aliases of primals included.

    >>> [node.op.name for node in tape(lambda x: x * x + 1.0, 3.0)[1]]
    ['alias', 'mul', 'add']
    """
    trace = _Trace("tape", f, dict(enumerate(primals)))
    return trace.out, trace.nodes


def _cotangent(x: Any, ct: Any) -> Array:
    x, ct = as_array(x), as_array(ct)
    if ct.shape != x.shape:
        raise ShapeError(
            f"vjp: the cotangent {describe(ct)} is for an output {describe(x)}. "
            "Pass one of the output's shape."
        )
    return astype(ct, x.dtype)


def value_and_grad(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: bool = False,
    strict: bool = False,
) -> Callable[..., Any]:
    """A function that gives f's value and its gradient (docs, equation 1.3).

    Args:
        f: from trees of Arrays (and anything else at other positions) to a scalar, or with
            ``has_aux`` to (scalar, a tree of anything).
        argnums: which arguments to differentiate by; a tuple gives a tuple of gradients.
        has_aux: whether f returns a second thing, which is handed through.
        strict: raise if f does not depend on a leaf, instead of giving zeros, which are also the
            gradient by what f only takes the argmax, the sign or a comparison of.

    Raises:
        ShapeError: f's result is not a scalar.
        DtypeError: a leaf to differentiate by is not a float.
        MissingRuleError: strict, and a leaf is unused; it is named.

    >>> from mamlnp import array
    >>> value_and_grad(lambda p, x: (p["w"] * x).sum())({"w": 3.0}, array([1.0, 2.0]))
    (Array(9.), {'w': Array(3.)})
    """
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def differentiated(*args: Any, **kwargs: Any) -> Any:
        def of_chosen(*parts: Any) -> Any:
            full = list(args)
            for i, part in zip(chosen, parts, strict=True):
                full[i] = part
            out = f(*full, **kwargs)
            value = as_array(out[0] if has_aux else out)
            if value.shape != ():
                raise ShapeError(
                    f"grad: the function returned {describe(value)}, not a scalar. "
                    "Sum it, or use vjp or jacobian."
                )
            return (value, out[1]) if has_aux else value

        primals = {i: args[i] for i in chosen}
        trace = _Trace("grad", of_chosen, primals)
        value = trace.out[0] if has_aux else trace.out
        cts = trace.pull([ones_like(value)], once=True)
        if strict:
            for (path, _), ct in zip(tree.items(primals), cts, strict=True):
                if ct is None:
                    raise MissingRuleError(
                        f"grad: the result does not depend on argument {path}. "
                        "Use it, or leave strict off to get zeros."
                    )
        found = tree.unflatten(primals, _or_zeros(cts, trace.targets))
        gradient = found[argnums] if isinstance(argnums, int) else tuple(found.values())
        return trace.out, gradient

    return differentiated


def grad(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: bool = False,
    strict: bool = False,
) -> Callable[..., Any]:
    """A function that gives f's gradient, or with ``has_aux`` (gradient, aux).

    Arguments and errors are those of :func:`value_and_grad`. An inner gradient never differentiates
    what only the outer one asked for:

    >>> grad(lambda x: x * grad(lambda y: x + y)(1.0))(1.0)
    Array(1.)
    """
    both = value_and_grad(f, argnums, has_aux=has_aux, strict=strict)

    def differentiated(*args: Any, **kwargs: Any) -> Any:
        out, gradient = both(*args, **kwargs)
        return (gradient, out[1]) if has_aux else gradient

    return differentiated


def jvp(f: Callable[..., Any], primals: Sequence[Tree], tangents: Sequence[Tree]) -> Any:
    """f's value and its derivative along tangents (J t), by pulling back the pullback.

    The pullback u -> u'J is linear in u, so its own pullback of t is J t (docs, equation 1.4): one
    rule an op is enough. Of grad(f) it is a Hessian-vector product (equation 3.2).

    >>> jvp(lambda x: x**3, (2.0,), (1.0,))
    (Array(8.), Array(12.))
    """
    out, pullback = vjp(f, *primals)
    _, transposed = vjp(lambda u: pullback(u), tree.map(zeros_like, out))
    return out, transposed(tuple(tangents))[0]


def hvp(f: Callable[..., Any], primal: Tree, tangent: Tree) -> Tree:
    """The product of f's Hessian with a vector: the gradient of <grad f, v> (docs, equation 3.1).

    Args:
        f: from one tree to a scalar.
        primal: where.
        tangent: v, a tree like primal.

    >>> from mamlnp import array
    >>> hvp(lambda x: (x**3).sum(), array([1.0, 2.0]), array([1.0, 10.0]))
    Array([  6., 120.])
    """
    return grad(lambda x: dot(grad(f)(x), tangent))(primal)


def dot(a: Tree, b: Tree) -> Array:
    """The inner product of two trees: the sum over all leaves of elementwise products.

    >>> dot({"w": 2.0, "b": (1.0, 1.0)}, {"w": 3.0, "b": (4.0, 5.0)})
    Array(15.)
    """
    return builtins.sum(tree.leaves(tree.map(lambda x, y: sum(mul(x, y)), a, b)))


def jacobian(f: Callable[..., Any], argnums: int = 0) -> Callable[..., Any]:
    """A function that gives all derivatives of one Array by one Array, row by row.

    The result has the output's shape followed by the argument's.

    >>> from mamlnp import array
    >>> jacobian(lambda x: x * x)(array([1.0, 2.0]))
    Array([[2., 0.],
           [0., 4.]])
    """

    def differentiated(*args: Any) -> Array:
        def of_chosen(x: Array) -> Any:
            full = list(args)
            full[argnums] = x
            return f(*full)

        x = as_array(args[argnums])
        out, pullback = vjp(of_chosen, x)
        basis = one_hot(ravel(numbering(out)), num_classes=out.size, dtype=out.dtype)
        rows = [pullback(reshape(row, out.shape))[0] for row in basis]
        return reshape(stack(rows), (*out.shape, *x.shape))

    return differentiated


def hessian(f: Callable[..., Any], argnums: int = 0) -> Callable[..., Any]:
    """A function that gives all second derivatives of a scalar function by one Array.

    >>> from mamlnp import array
    >>> hessian(lambda x: x[0] * x[1])(array([3.0, 4.0]))
    Array([[0., 1.],
           [1., 0.]])
    """
    return jacobian(grad(f, argnums), argnums)


def stop_gradient(x: Tree) -> Tree:
    """The same values as constants: no derivative of any order passes.

    >>> grad(lambda x: x * stop_gradient(x))(3.0)
    Array(3.)
    """
    return tree.map(lambda leaf: as_array(leaf).constant(), x)


def _draw_rerun(d: Draw) -> Drawn:
    shape = d.shape()
    return (d.array(shape), d.array(shape)), {"f": lambda a, b: a * a * b}


@op(draw=_draw_rerun, tails="those of what it runs")
def rerun(xp: Any, *arrays: Any, f: Callable[..., Array]) -> Any:
    """f of the arrays, remembering only the arrays: its rule runs f again to differentiate it."""
    return f(*map(Array, arrays)).value


@rerun.vjp("arrays")
def _(ct: Array, out: Array, *arrays: Array, f: Callable[..., Array]) -> tuple[Array, ...]:
    return vjp(f, *map(anew, arrays))[1](ct)


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """f with less memory and more time: nothing inside it is kept, it runs again when pulled back.

    Args:
        f: from trees of float Arrays to a tree of float Arrays. What is to be differentiated must
            come in as an argument.

    Raises:
        MissingRuleError: (when called) f closes over an Array that is being differentiated.

    >>> grad(checkpoint(lambda x: x**3))(2.0)
    Array(12.)
    """

    def checkpointed(*args: Tree) -> Tree:
        arrays = [as_array(x) for x in tree.leaves(args)]
        if any(getattr(x.value, "level", 0) for x in arrays):  # vmap, which keeps what is inside
            return f(*args)
        empty = tree.map(lambda _: 0, args)

        def flat(*leaves: Array) -> Array:
            out = tree.leaves(f(*tree.unflatten(empty, leaves)))
            return concatenate([ravel(x) for x in out])

        constants = tree.unflatten(empty, [Array(x.value) for x in arrays])
        trace = _Trace("checkpoint", f, dict(enumerate(constants)))
        if trace.encloses:
            raise MissingRuleError(
                "checkpoint: the function closes over an Array that is being differentiated. "
                "Pass it as an argument."
            )
        if not (recording.on and any(x.serial for x in arrays)):
            return trace.out
        value = concatenate([ravel(x) for x in tree.leaves(trace.out)])
        packed = Array(value.value, rerun, tuple(arrays), {"f": flat}, next(serials))
        out, start = [], 0
        for x in tree.leaves(trace.out):
            out.append(reshape(packed[start : start + x.size], x.shape))
            start += x.size
        return tree.unflatten(trace.out, out)

    return checkpointed
