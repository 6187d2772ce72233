"""Are these derivatives right? Every order against central differences of the order below.

Order 1 compares the pullback of f with differences of f; order k compares the pullback of the
(k-1)-th pullback with differences of that. Everything is float64, along random directions. Across a
kink (a relu that switches, another winner of a maximum) a difference means nothing: the pieces f
is on are compared at both ends, a kink is counted, and another direction drawn.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import backend, maml, tree
from .array import Array
from .autodiff import dot, grad, hvp, tape, vjp
from .errors import GradientError, MissingRuleError
from .op import Op, as_array, describe
from .tasks import Task

Tree = Any

# The only tolerances there are, relative to the size of what is compared (see Comparison.error).
TOLERANCES = {
    "difference": 1e-6,  # an exact derivative against a central difference
    "rounding": 1e-10,  # two exact ways to the same float64 number
    "float32": 1e-4,  # the same computation in float32 and in float64
}
STEP = 1e-5  # along a unit direction: 1e-4 already crosses kinks of a small conv net too often
TRIES = 20  # directions, before a point is said to lie on a kink


@dataclass(frozen=True)
class Comparison:
    """One derivative held against its finite difference.

    Attributes:
        name: the function or op.
        argument: by which it was differentiated.
        order: 1 for a gradient, 2 for a gradient's gradient, ...
        numeric: the central difference.
        exact: what the rules give.
        error: their distance, relative to their size, or where both drown in the rounding of the
            difference, to the size that would not.
        kinks: how many directions were drawn again because they crossed a kink.
    """

    name: str
    argument: str
    order: int
    numeric: float
    exact: float
    error: float
    kinks: int

    @property
    def passed(self) -> bool:
        return self.error <= TOLERANCES["difference"]

    def __str__(self) -> str:
        return (
            f"{self.name}: argument {self.argument}, order {self.order}: finite differences give "
            f"{self.numeric:.9g}, the rules {self.exact:.9g} (relative error {self.error:.1e}, "
            f"tolerance {TOLERANCES['difference']:.0e})"
        )


@dataclass
class Report:
    """All comparisons of one check.

    Attributes:
        comparisons: one for each argument and order.
        notes: other relative differences that were measured, by name.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    def error(self, order: int | None = None) -> float:
        """The largest relative error of an order, or of all."""
        chosen = [c.error for c in self.comparisons if order in (None, c.order)]
        return max(chosen, default=0.0)

    @property
    def kinks(self) -> int:
        """How many directions were drawn again."""
        return sum(c.kinks for c in self.comparisons)


def check_grads(
    f: Callable[..., Any],
    args: Sequence[Tree],
    order: int = 2,
    *,
    rng: np.random.Generator | None = None,
) -> Report:
    """Check every derivative of f up to an order at one point.

    Args:
        f: from trees to a tree of Arrays; written in mamlnp's functions or in NumPy's. An op too.
        args: where. Float leaves are differentiated (as float64), all others are held.
        order: the highest.
        rng: for the random directions; a fixed one if None.

    Raises:
        GradientError: a derivative is wrong. The message names the function, the argument and the
            order, both numbers, and the first op on the tape whose own rules fail the check.
        GradientError: every direction crosses a kink, so there is nothing to compare with.

    >>> from mamlnp import array
    >>> check_grads(lambda x: np.sin(x) * x**3, [array([0.5, -1.0])], order=3).error() < 1e-6
    True
    """
    return _checked(f, args, order, rng, find_culprit=True)


def _checked(
    f: Callable[..., Any],
    args: Sequence[Tree],
    order: int,
    rng: np.random.Generator | None,
    *,
    find_culprit: bool,
) -> Report:
    rng = np.random.default_rng(0) if rng is None else rng
    flat = _Flat(f, args)
    function, leaves, names = flat.function, flat.leaves, flat.names
    report = Report()
    for k in range(1, order + 1):
        for i, argument in enumerate(names):
            one = _compare(function, leaves, i, (flat.name, argument, k), rng)
            report.comparisons.append(one)
            if not one.passed:
                culprit = _culprit(function, leaves, k, rng) if find_culprit else ""
                raise GradientError(f"check_grads: {one}.{culprit} Correct its rule.")
        if k < order:
            function, leaves, extra = _pulled(function, leaves, rng)
            names = [*names, *(f"{name} of order {k}" for name in extra)]
    return report


class _Flat:
    """f as a function of its float leaves alone, to a list of its float results."""

    def __init__(self, f: Callable[..., Any], args: Sequence[Tree]) -> None:
        self.name = getattr(f, "__name__", type(f).__name__)
        everything = list(zip(_argument_paths(f, args), tree.leaves(list(args)), strict=True))
        arrays = [as_array(leaf) for _, leaf in everything]
        floats = [i for i, x in enumerate(arrays) if x.dtype.kind == "f"]
        self.leaves = [Array(arrays[i].value.astype(np.float64)) for i in floats]
        self.names = [everything[i][0] for i in floats]
        held = [leaf for _, leaf in everything]

        def function(*leaves: Array) -> list[Array]:
            full = list(held)
            for i, leaf in zip(floats, leaves, strict=True):
                full[i] = leaf
            out = f(*tree.unflatten(list(args), full))
            return [y for y in map(as_array, tree.leaves(out)) if y.dtype.kind == "f"]

        self.function = function


def _argument_paths(f: Callable[..., Any], args: Sequence[Tree]) -> list[str]:
    if isinstance(f, Op):
        given = [f"{f.arguments[0]}[{i}]" for i in range(len(args))] if f.variadic else f.arguments
    else:
        given = list(inspect.signature(f).parameters)
    given = [*given, *(f"argument {i}" for i in range(len(given), len(args)))]
    return [
        path for name, arg in zip(given, args, strict=False) for path, _ in tree.items(arg, name)
    ]


def _pulled(
    f: Callable[..., list[Array]], leaves: list[Array], rng: np.random.Generator
) -> tuple[Callable[..., list[Array]], list[Array], list[str]]:
    """The pullback of f, as a function of f's arguments and the cotangents."""
    count = len(leaves)
    cts = [_random_like(y, rng) for y in f(*leaves)]

    def pullback(*both: Array) -> list[Array]:
        return list(vjp(lambda *xs: f(*xs), *both[:count])[1](list(both[count:])))

    names = ["the cotangent"] if len(cts) == 1 else [f"cotangent {i}" for i in range(len(cts))]
    return pullback, [*leaves, *cts], names


def _random_like(x: Array, rng: np.random.Generator) -> Array:
    return Array(backend.to_device(rng.standard_normal(x.shape)))


def _compare(
    f: Callable[..., list[Array]],
    leaves: list[Array],
    i: int,
    label: tuple[str, str, int],
    rng: np.random.Generator,
) -> Comparison:
    """One argument's pullback against a central difference, along one random direction."""
    leaves = list(leaves)
    for tries in range(TRIES):
        if tries >= TRIES // 2:  # the point itself seems to lie on a kink: leave it a little
            leaves = [x + 1e-3 * _random_like(x, rng) for x in leaves]
        x = leaves[i]
        direction = _random_like(x, rng)
        direction = direction / max(1.0, math.sqrt(dot(direction, direction).item()))

        before, after = leaves[:i], leaves[i + 1 :]
        ahead, ahead_pieces = _with_pieces(f, [*before, x + STEP * direction, *after])
        behind, behind_pieces = _with_pieces(f, [*before, x - STEP * direction, *after])
        if ahead_pieces != behind_pieces:
            continue
        weights = [_random_like(y, rng) for y in ahead]
        terms = [dot(w, a - b).item() for w, a, b in zip(weights, ahead, behind, strict=True)]
        numeric = sum(terms) / (2 * STEP)
        terms = [dot(abs(w), abs(a)).item() for w, a in zip(weights, ahead, strict=True)]
        noise = sum(terms) * np.finfo(np.float64).eps / STEP
        ct = vjp(lambda *xs: f(*xs), *leaves)[1](weights)[i]
        exact = dot(ct, direction).item()
        typical = math.sqrt(dot(ct, ct).item() / max(1, x.size))
        audible = noise / TOLERANCES["difference"]
        size = max(abs(numeric), abs(exact), typical, audible) or 1.0
        error = abs(numeric - exact) / size if math.isfinite(exact) else math.inf
        return Comparison(*label, numeric, exact, error, tries)
    raise GradientError(
        f"check_grads: {label[0]}: argument {label[1]}, order {label[2]}: all {TRIES} directions "
        "cross a kink, where no finite difference means anything. Choose another point."
    )


def _with_pieces(
    f: Callable[..., list[Array]], leaves: list[Array]
) -> tuple[list[Array], list[bytes]]:
    """f's value, and which piece of every piecewise op it was on."""
    out, nodes = tape(lambda *xs: f(*xs), *leaves)
    pieces = []
    for node in nodes:
        if node.op.pattern is not None:
            values = [x.value if isinstance(x, Array) else x for x in node.inputs]
            xp = backend.namespace_of(node.value)
            pieces.append(backend.to_host(node.op.pattern(xp, *values, **node.params)).tobytes())
        for x in node.inputs:
            if isinstance(x, Array) and x.dtype.kind in "biu":
                pieces.append(backend.to_host(x.value).tobytes())
    return out, pieces


def _culprit(
    f: Callable[..., list[Array]], leaves: list[Array], order: int, rng: np.random.Generator
) -> str:
    """Which single op's rules fail at the values they met, if one does."""
    for node in tape(lambda *xs: f(*xs), *leaves)[1]:
        op, params = node.op, node.params

        def alone(*xs: Any, op: Op = op, params: dict[str, Any] = params) -> Array:
            return op.apply(xs, params)

        arguments = dict(zip(_input_names(node), node.inputs, strict=True))
        inputs = [Array(x.value) if isinstance(x, Array) else x for x in node.inputs]
        try:
            _checked(alone, inputs, order, rng, find_culprit=False)
        except GradientError as error:
            shown = ", ".join(f"{k} {describe(x)}" for k, x in arguments.items())
            reason = str(error).partition(": argument ")[2].partition(". ")[0]
            return f" The op at fault is {op.name} ({shown}): argument {reason}."
        except MissingRuleError as error:
            return f" {error}"
    return ""


def _input_names(node: Array) -> list[str]:
    op: Op = node.op
    if op.variadic:
        return [f"{op.arguments[0]}[{i}]" for i in range(len(node.inputs))]
    return list(op.arguments)


def check_hvp(
    f: Callable[[Tree], Array], primal: Tree, *, rng: np.random.Generator | None = None
) -> Report:
    """Check f's Hessian-vector product: against differences of the gradient, and for symmetry.

    Args:
        f: from one tree of floats to a scalar.
        primal: where.

    Raises:
        GradientError: it is wrong; or <u, H v> and <v, H u> differ.

    >>> from mamlnp import array
    >>> check_hvp(lambda x: (x**4).sum(), array([1.0, -0.5])).error() < 1e-6
    True
    """
    rng = np.random.default_rng(0) if rng is None else rng
    primal = _as_float64(primal)
    u, v = (tree.map(lambda x: _random_like(x, rng), primal) for _ in range(2))
    report = Report()
    leaves = tree.leaves(primal)

    def gradient(*xs: Array) -> list[Array]:
        return tree.leaves(grad(f)(tree.unflatten(primal, xs)))

    for i, (path, _) in enumerate(tree.items(primal, "x")):
        report.comparisons.append(_compare(gradient, leaves, i, ("hvp", path, 2), rng))
    uhv, vhu = dot(u, hvp(f, primal, v)).item(), dot(v, hvp(f, primal, u)).item()
    asymmetry = abs(uhv - vhu) / max(abs(uhv), abs(vhu), 1e-300)
    report.notes["asymmetry"] = asymmetry
    worst = max(report.comparisons, key=lambda c: c.error)
    if not worst.passed:
        raise GradientError(f"check_hvp: {worst}. Find the op with check_grads(f, (x,), order=2).")
    if asymmetry > 1e-8:
        raise GradientError(f"check_hvp: <u, H v> is {uhv:.12g} but <v, H u> {vhu:.12g}.")
    return report


def check_meta_gradient(
    loss: maml.Loss,
    params: Tree,
    task: Task,
    *,
    rng: np.random.Generator | None = None,
    **inner: Any,
) -> Report:
    """Check the gradient through the inner loop, both ways, against differences of the meta-loss.

    Args:
        loss, params, task, inner: as in :func:`mamlnp.maml.meta_gradient`.

    Returns:
        A report whose notes are the relative distances of "explicit product" (the other way to the
        same gradient) and of "first order" (which must not be 0).

    Raises:
        GradientError: backprop is wrong, or the explicit product differs from it.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    params, task = _as_float64(params), _as_float64(task)
    leaves = tree.leaves(params)
    inner_loss = {k: v for k, v in inner.items() if k != "method"}

    def objective(*xs: Array) -> list[Array]:
        theta = tree.unflatten(params, xs)
        return [maml.meta_loss(loss, theta, task, **inner_loss).sum()]

    report = Report()
    for i, (path, _) in enumerate(tree.items(params, "params")):
        report.comparisons.append(_compare(objective, leaves, i, ("meta-gradient", path, 1), rng))
    worst = max(report.comparisons, key=lambda c: c.error)
    if not worst.passed:
        raise GradientError(f"check_meta_gradient: {worst}. Check the loss with check_grads.")

    def gradient(**how: Any) -> Tree:
        return maml.meta_gradient(loss, params, task, **{**inner_loss, **how})[1]

    exact = gradient()
    report.notes["first order"] = distance(gradient(first_order=True), exact)
    if inner.get("inner_optimizer") is None:
        apart = report.notes["explicit product"] = distance(gradient(method="hvp"), exact)
        if apart > TOLERANCES["rounding"]:
            raise GradientError(
                f"check_meta_gradient: backprop and the explicit product differ by {apart:.1e}, "
                f"relative (tolerance {TOLERANCES['rounding']:.0e})."
            )
    return report


def distance(a: Tree, b: Tree) -> float:
    """|a - b| / |b| over all leaves of two trees.

    >>> distance({"w": 1.0}, {"w": 2.0})
    0.5
    """
    apart = tree.map(lambda x, y: as_array(x) - as_array(y), a, b)
    return math.sqrt(dot(apart, apart).item() / dot(b, b).item())


def _as_float64(x: Tree) -> Tree:
    def leaf(x: Any) -> Array:
        x = as_array(x)
        return Array(x.value.astype(np.float64)) if x.dtype.kind == "f" else x

    return tree.map(leaf, x)
