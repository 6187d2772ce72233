"""Reverse mode, of any order: vjp, and everything else made of it.

A transform gives its function *aliases* of the arguments and differentiates with respect to those.
An alias is younger (has a larger serial) than everything made before the transform began, so the
pullback never walks into what only an enclosing transform asked for, and an inner gradient never
mixes with an outer one (perturbation confusion). The pullback's own operations are recorded only
if something older is being differentiated; otherwise it gives memory back as it goes.
"""

from __future__ import annotations

import builtins
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from . import tree
from .array import NOTHING, Array
from .backend import is_native, is_scalar
from .draws import Draw, Drawn, one
from .errors import DtypeError, MissingRuleError, ShapeError, TapeError
from .op import Op, as_array, describe, op, recording, serials
from .ops.elementwise import add, astype, mul, one_hot, ones_like, zeros_like
from .ops.gather import numbering
from .ops.reduce import sum
from .ops.shape import broadcast_to, concatenate, ravel, reshape, stack

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
        lost: the last op without a derivative that took something recorded; "" if none did.
    """

    def __init__(self, where: str, f: Callable[..., Any], primals: dict[int, Tree]) -> None:
        aliases = _aliases(where, primals)
        self.targets: list[Array] = tree.leaves(aliases)
        outer, recording.on = recording.on, True
        lost, recording.lost = recording.lost, ""
        try:
            out = f(*aliases.values())
        except ValueError as error:
            if isinstance(error.__cause__, TapeError):  # NumPy's words for a float(x) that failed
                raise error.__cause__ from None
            raise
        finally:
            recording.on = outer
            self.lost, recording.lost = recording.lost, recording.lost or lost
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

    def depends(self, x: Any) -> bool:
        """Does an output depend on a target?"""
        return isinstance(x, Array) and x.serial in self._needed

    def pull(self, cts: Sequence[Array | None], *, once: bool = False) -> list[Array | None]:
        """The targets' cotangents from the first outputs' (None for one that is left out); None
        where none depends on a target: the walk of equation 1.1 (docs).

        With ``once``, nodes become constants as soon as they are done, which frees their memory.
        """
        record = self._enclosed or any(ct is not None and ct.serial for ct in cts)
        once = once and not record
        sums: dict[int, Array] = {}
        for x, ct in zip(self.outputs, cts, strict=False):
            if ct is not None and self.depends(x):
                sums[x.serial] = add(sums[x.serial], ct) if x.serial in sums else ct
        outer, recording.on, lost = recording.on, recording.on and record, recording.lost
        try:
            for serial in reversed(self._order):
                node = self._nodes.pop(serial) if once else self._nodes[serial]
                if serial in sums and serial not in self._ends:
                    self._spread(node, sums.pop(serial), sums)
                if once:
                    node.forget()
        finally:
            recording.on, recording.lost = outer, lost  # a rule may compare: a relu's slope is 0
        found = [sums.get(serial) for serial in self._ends]
        return found if record else [_constant(ct) for ct in found]

    def _spread(self, node: Array, ct: Array, sums: dict[int, Array]) -> None:
        """One step back: add what the node's rules give to its inputs' cotangents."""
        made_by: Op = node.op
        joint = made_by.rules[0](ct, node, *node.inputs, **node.params) if made_by.variadic else ()
        for i, x in enumerate(node.inputs):
            if x.__class__ is not Array or x.serial not in self._needed:
                continue
            if made_by.variadic:
                part = joint[i] if len(joint) == len(node.inputs) else None
            elif i in made_by.rules:
                part = made_by.rules[i](ct, node, *node.inputs, **node.params)
            elif i in made_by.data:
                continue
            else:
                raise MissingRuleError(
                    f"{made_by.name}: has no rule for {made_by.arguments[i]}. "
                    f'Declare one with @{made_by.name}.vjp("{made_by.arguments[i]}").'
                )
            # Bytes, for to ask a shape and a type takes three times as long.
            if part.__class__ is not Array or part.value.nbytes != x.value.nbytes:
                raise _misfit(made_by, i, x, part)
            sums[x.serial] = add(sums[x.serial], part) if x.serial in sums else part


def _misfit(made_by: Op, i: int, x: Array, part: Any) -> Exception:
    """What is wrong with a rule's result."""
    name = made_by.arguments[0 if made_by.variadic else i]
    got, advice = describe(part), "Sum over what was broadcast (sum_to), and keep the type."
    kind: type[Exception] = ShapeError if getattr(part, "shape", x.shape) != x.shape else DtypeError
    if not isinstance(part, Array):
        kind, got = DtypeError, f"{type(part).__name__} {got}"
        advice = (
            "Write it in mamlnp's functions, whose results are Arrays that can be differentiated."
        )
    if made_by.variadic:
        advice = "Return one for each input. " + advice
    return kind(
        f"{made_by.name}: its rule for {name} {describe(x)} returned {got}, which is no Array of "
        f"that shape and type. {advice}"
    )


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
        cts = tree.leaves(tree.map(_fitted("vjp: the cotangent", "output"), trace.out, ct))
        return tree.unflatten(primals, _or_zeros(trace.pull(cts), trace.targets))

    return trace.out, pullback


def tape(f: Callable[..., Any], *primals: Tree) -> tuple[Tree, list[Array]]:
    """f's value and every recorded Array it was made of, oldest first, aliases of primals included.

    >>> [node.op.name for node in tape(lambda x: x * x + 1.0, 3.0)[1]]
    ['alias', 'mul', 'add']
    """
    trace = _Trace("tape", f, dict(enumerate(primals)))
    return trace.out, trace.nodes


def _fitted(what: str, of: str) -> Callable[[Any, Any], Array]:
    """A check that a cotangent, or a tangent, has the shape of what it is for."""

    def fitted(x: Any, t: Any) -> Array:
        x, t = as_array(x), as_array(t)
        if t.shape != x.shape:
            raise ShapeError(
                f"{what} {describe(t)} is for an {of} {describe(x)}. Pass one of the {of}'s shape."
            )
        return astype(t, x.dtype)

    return fitted


def _of_chosen(
    f: Callable[..., Any], chosen: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[..., Any]:
    """f as a function of the chosen arguments alone."""

    def of_chosen(*parts: Any) -> Any:
        full = list(args)
        for i, part in zip(chosen, parts, strict=True):
            full[i] = part
        return f(*full, **kwargs)

    return of_chosen


def value_and_grad(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: bool = False,
    strict: bool | None = False,
) -> Callable[..., Any]:
    """A function that gives f's value and its gradient (docs, equation 1.3).

    Args:
        f: from trees of Arrays (and anything else at other positions) to a scalar, or with
            ``has_aux`` to (scalar, a tree of anything).
        argnums: which arguments to differentiate by; a tuple gives a tuple of gradients.
        has_aux: whether f returns a second thing, which is handed through.
        strict: raise if f does not depend on a leaf, instead of giving zeros: neither does what it
            reaches only through argmax, a comparison, sign or another op without a derivative. If
            it depends on nothing but through one of these, a warning says so (not with None).

    Raises:
        ShapeError: f's result has not one element.
        DtypeError: a leaf to differentiate by is not a float.
        MissingRuleError: strict, and a leaf is unused; it is named.

    >>> from mamlnp import array
    >>> value_and_grad(lambda p, x: (p["w"] * x).sum())({"w": 3.0}, array([1.0, 2.0]))
    (Array(9.), {'w': Array(3.)})
    """
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def differentiated(*args: Any, **kwargs: Any) -> Any:
        of_chosen = _of_chosen(f, chosen, args, kwargs)

        def scalar(*parts: Any) -> Any:
            out = of_chosen(*parts)
            value = as_array(out[0] if has_aux else out)
            if value.size != 1:
                raise ShapeError(
                    f"grad: the function returned {describe(value)}, not a scalar. "
                    "Sum it, or use vjp or jacobian."
                )
            return (value, out[1]) if has_aux else value

        primals = {i: args[i] for i in chosen}
        trace = _Trace("grad", scalar, primals)
        value = trace.out[0] if has_aux else trace.out
        cts = trace.pull([ones_like(value)], once=True)
        if strict is False and trace.lost and not any(ct is not None for ct in cts):
            warnings.warn(
                f"grad: the result depends on no argument but through {trace.lost}, which has no "
                "derivative: its gradient is 0. strict=True makes this an error.",
                stacklevel=3,
            )
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
    strict: bool | None = False,
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

    Raises:
        ShapeError: a tangent has another shape than its primal.

    >>> jvp(lambda x: x**3, (2.0,), (1.0,))
    (Array(8.), Array(12.))
    """
    tangents = tree.map(_fitted("jvp: the tangent", "argument"), tuple(primals), tuple(tangents))
    out, pullback = vjp(f, *primals)
    _, transposed = vjp(lambda u: pullback(u), tree.map(zeros_like, out))
    return out, transposed(tangents)[0]


def hvp(f: Callable[..., Any], primal: Tree, tangent: Tree) -> Tree:
    """The product of f's Hessian with a vector: the gradient of <grad f, v> (docs, equation 3.1).

    Args:
        f: from one tree to a scalar.
        primal: where.
        tangent: v, a tree like primal.

    Raises:
        ShapeError: a leaf of the tangent has another shape than the primal's.

    >>> from mamlnp import array
    >>> hvp(lambda x: (x**3).sum(), array([1.0, 2.0]), array([1.0, 10.0]))
    Array([  6., 120.])
    """
    v = tree.map(_fitted("hvp: the tangent", "argument"), primal, tangent)
    return grad(lambda x: dot(grad(f)(x), v), strict=None)(primal)  # f may be linear in pieces


def dot(a: Tree, b: Tree) -> Array:
    """The inner product of two trees: the sum over all leaves of elementwise products.

    Raises:
        ShapeError: two leaves have different shapes.

    >>> dot({"w": 2.0, "b": (1.0, 1.0)}, {"w": 3.0, "b": (4.0, 5.0)})
    Array(15.)
    """

    def product(x: Any, y: Any) -> Array:
        if getattr(x, "shape", ()) != getattr(y, "shape", ()):
            raise ShapeError(
                f"dot: {describe(x)} and {describe(y)} have different shapes. Pass trees whose "
                "leaves have the same."
            )
        return sum(mul(x, y))

    return builtins.sum(tree.leaves(tree.map(product, a, b)))


def jacobian(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """A function that gives all derivatives of f's results by its arguments, row by row.

    The result is a tree like f's; in the place of each of its Arrays is a tree like the argument
    (for a tuple of argnums a tuple of such trees), whose leaves have the result's shape followed by
    the argument's.

    Args:
        f: from trees of Arrays (and anything else at other positions) to a tree of Arrays.
        argnums: which arguments to differentiate by.

    Raises:
        DtypeError: a leaf to differentiate by is not a float.

    >>> from mamlnp import array
    >>> jacobian(lambda x: x * x)(array([1.0, 2.0]))
    Array([[2., 0.],
           [0., 4.]])
    >>> jacobian(lambda p, x: {"y": p["w"] * x}, argnums=(0, 1))({"w": 3.0}, 2.0)
    {'y': ({'w': Array(2.)}, Array(3.))}
    """
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def differentiated(*args: Any, **kwargs: Any) -> Tree:
        of_chosen = _of_chosen(f, chosen, args, kwargs)
        primals = {i: args[i] for i in chosen}
        trace = _Trace("jacobian", lambda *parts: tree.map(as_array, of_chosen(*parts)), primals)

        def by_all(place: int, y: Array) -> Tree:
            basis: Any = ()
            if trace.depends(trace.outputs[place]):
                basis = one_hot(ravel(numbering(y)), num_classes=y.size, dtype=y.dtype)
            cts = ([*(None,) * place, reshape(row, y.shape)] for row in basis)
            rows = [_or_zeros(trace.pull(ct), trace.targets) for ct in cts]
            found = [
                reshape(stack([row[i] for row in rows]), (*y.shape, *x.shape))
                if rows
                else broadcast_to(zeros_like(x), (*y.shape, *x.shape))
                for i, x in enumerate(trace.targets)
            ]
            by_each = tree.unflatten(primals, found)
            return by_each[argnums] if isinstance(argnums, int) else tuple(by_each.values())

        places = itertools.count()
        return tree.map(lambda y: by_all(next(places), y), trace.out)

    return differentiated


def hessian(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """A function that gives all second derivatives of a scalar function: the Jacobian of its
    gradient, a tree like the argument of trees like it.

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


def _draw_custom(d: Draw) -> Drawn:
    def f(a: Array, b: Array) -> Array:
        return a * a * b

    def rule(ct: Array, out: Array, *arrays: Array) -> tuple[Array, ...]:
        return vjp(f, *arrays)[1](ct)

    shape = d.shape()
    return (d.array(shape), d.array(shape)), {"f": f, "rule": rule}


@op(draw=_draw_custom, tails="those of its own rule")
def custom(
    xp: Any, *arrays: Any, f: Callable[..., Array], rule: Callable[..., Sequence[Array | None]]
) -> Any:
    """f of the arrays as one operation, remembering only the arrays; its rule is given too."""
    return f(*map(Array, arrays)).value


@custom.vjp("arrays")
def _(
    ct: Array, out: Array, *arrays: Array, f: Any, rule: Callable[..., Any]
) -> Sequence[Array | None]:
    return rule(ct, out, *arrays)


def _is_array(x: Any) -> bool:
    return x.__class__ is Array or (is_native(x) and not is_scalar(x))


def _filled(trees: Tree, places: Sequence[int]) -> Callable[[Sequence[Any]], Tree]:
    """A function that gives the tree with new leaves in these places."""
    leaves, blank = tree.leaves(trees), tree.map(lambda _: 0, trees)

    def filled(new: Sequence[Any]) -> Tree:
        changed = dict(zip(places, new, strict=True))
        return tree.unflatten(blank, [changed.get(i, x) for i, x in enumerate(leaves)])

    return filled


class custom_vjp:  # noqa: N801 (stands where a function does)
    """f with a derivative rule of its own, which replaces those of what f is made of.

    f runs on constants, so it may leave the tape: iterate until it converges, call SciPy. The rule
    is declared with ``@f.vjp`` and called as ``rule(ct, out, *args)``: the result's cotangent, the
    result, the arguments. It gives a tuple with a cotangent like each argument, or None for one on
    which f does not depend. Written in mamlnp's functions of Arrays, it is differentiated in its
    turn, so that derivatives of every order exist (docs, equation 2.6, for an implicit function).

    Args:
        f: from trees of Arrays to a tree of float Arrays. What else is in its arguments (numbers,
            strings, functions), and every keyword argument, is static: f and the rule get it as it
            is. What is to be differentiated must come in as an argument.

    Raises:
        MissingRuleError: (when called) f has no rule, or closes over an Array that is being
            differentiated.
        ShapeError, DtypeError: (when pulled back) the rule returned what is no cotangent of an
            argument; the message names it.

    >>> import numpy as np
    >>> @custom_vjp
    ... def cube_root(x):
    ...     return np.cbrt(np.asarray(x))
    >>> @cube_root.vjp
    ... def _(ct, out, x):  # of out**3 = x
    ...     return (ct / (3 * out**2),)
    >>> cube_root(8.0), grad(cube_root)(8.0), grad(grad(cube_root))(1.0)
    (Array(2.), Array(0.08333333), Array(-0.22222222))
    """

    def __init__(self, f: Callable[..., Any], where: str = "custom_vjp") -> None:
        functools.update_wrapper(self, f)
        self._f, self._where = f, where
        self._rule: Callable[..., Any] | None = None

    def vjp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Declare the rule."""
        self._rule = rule
        return rule

    def __call__(self, *args: Any, **static: Any) -> Tree:
        places = [i for i, x in enumerate(tree.leaves(args)) if _is_array(x)]
        arrays = tuple(as_array(x) for x in tree.leaves(args) if _is_array(x))
        filled = _filled(args, places)
        blank: Tree = None
        shapes: list[tuple[int, ...]] = []  # of the leaves of f's result, which is like blank

        def joined(*new: Array) -> Array:
            nonlocal blank
            out = tree.map(as_array, self._f(*filled(new), **static))
            leaves = tree.leaves(out)
            for x in leaves:
                self._check(x)
            blank, shapes[:] = tree.map(lambda _: 0, out), [x.shape for x in leaves]
            return leaves[0] if len(leaves) == 1 else concatenate([ravel(x) for x in leaves])

        def parted(x: Array) -> Tree:
            if len(shapes) == 1:
                return tree.unflatten(blank, [x])
            stops = itertools.accumulate(map(math.prod, shapes))
            parts = (x[stop - math.prod(s) : stop] for s, stop in zip(shapes, stops, strict=True))
            return tree.unflatten(blank, map(reshape, parts, shapes))

        def rule(ct: Array, out: Array, *new: Array) -> list[Any]:
            full = filled(new)
            if self._rule is None:
                raise MissingRuleError(f"{self._name()} has no rule. Declare it with @f.vjp.")
            return self._checked(full, self._rule(parted(ct), parted(out), *full, **static))

        params = {"f": joined, "rule": rule}
        if any(getattr(x.value, "level", 0) for x in arrays):  # vmap, which goes one by one
            return parted(custom.apply(arrays, params))
        out = joined(*map(_constant, arrays))
        if recording.on and any(x.serial for x in arrays):
            out = Array(out.value, custom, arrays, params, next(serials))
        return parted(out)

    def _check(self, out: Array) -> None:
        """Is a result of f a float, and does it depend on nothing but arguments?"""
        if out.serial:
            raise MissingRuleError(
                f"{self._where}: the function closes over an Array that is being differentiated. "
                "Pass it as an argument."
            )
        if out.dtype.kind != "f":
            raise DtypeError(
                f"{self._where}: the function returned {describe(out)}. Return floats alone."
            )

    def _name(self) -> str:
        return f"{self._where}: {getattr(self._f, '__name__', repr(self._f))}"

    def _checked(self, args: tuple[Any, ...], cts: Any) -> list[Any]:
        """The cotangents of the arrays in the arguments.

        Raises:
            ShapeError, DtypeError: they are not like the arguments.
        """
        if not isinstance(cts, tuple) or len(cts) != len(args):
            raise ShapeError(
                f"{self._name()}: its rule returned {_outline(cts)}. Return a tuple with a "
                f"cotangent for each argument, of which there are {len(args)}."
            )
        found = []
        for i, (arg, ct) in enumerate(zip(args, cts, strict=True)):
            given, like = (dict(tree.items(x, f"[{i}]")) for x in (ct, arg))
            for path, x in like.items():
                if not _is_array(x):
                    continue
                part = zeros_like(x) if ct is None else given.get(path)
                fits = given.keys() <= like.keys() and _outline(part) == _outline(x)
                if x.dtype.kind == "f" and not fits:
                    part = ct if part is None else part
                    same = getattr(part, "shape", None) == x.shape
                    raise (DtypeError if same else ShapeError)(
                        f"{self._name()}: its rule returned {_outline(part)} for argument {path}, "
                        f"which is {_outline(x)}. Return a tree like the argument, or None for one "
                        "on which the function does not depend."
                    )
                found.append(part)
        return found


def _outline(x: Any) -> str:
    kind = type(x).__name__
    return f"{kind} {describe(x)}" if hasattr(x, "dtype") else kind


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """f with less memory and more time: nothing inside it is kept, it runs again when pulled back.

    Args:
        f: from trees of Arrays to a tree of float Arrays. What is to be differentiated must come in
            as an argument.

    Raises:
        MissingRuleError: (when called) f closes over an Array that is being differentiated.

    >>> grad(checkpoint(lambda x: x**3))(2.0)
    Array(12.)
    """
    saved = custom_vjp(f, "checkpoint")

    @saved.vjp
    def _(ct: Tree, out: Tree, *args: Tree, **static: Any) -> tuple[Tree, ...]:
        leaves = tree.leaves(args)
        places = [i for i, x in enumerate(leaves) if _is_array(x) and x.dtype.kind == "f"]
        filled = _filled(args, places)
        again = vjp(lambda *new: f(*filled(new), **static), *(anew(leaves[i]) for i in places))
        return filled(again[1](ct))

    @functools.wraps(f)
    def checkpointed(*args: Tree, **static: Any) -> Tree:
        mapped = any(getattr(getattr(x, "value", x), "level", 0) for x in tree.leaves(args))
        return (f if mapped else saved)(*args, **static)  # vmap keeps what is inside

    return checkpointed
