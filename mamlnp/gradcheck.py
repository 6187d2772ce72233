"""Are these derivatives right? Every order against central differences of the order below.

Order 1 compares the pullback of f with differences of f; order k compares the pullback of the
(k-1)-th pullback with differences of that. Everything is float64, along random directions. Across a
kink (a relu that switches, another winner of a maximum) a difference means nothing: the pieces f
is on are compared at both ends, a kink is counted, and another direction drawn. How well a
difference is known is measured, so that a derivative that vanishes is no error.
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
from .draws import TOLERANCES as TOLERANCES  # for whoever holds more against another
from .errors import DtypeError, GradientError, MissingRuleError, ShapeError
from .op import Op, as_array, describe
from .tasks import Task

Tree = Any
Function = Callable[..., list[Array]]

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
        error: their distance, relative to their size, or where both drown in what is not known
            of the difference, to the size that would not.
        kinks: how many directions were drawn again because they crossed a kink.
        problem: what is wrong with the rules' result besides its value, such as its shape.
    """

    name: str
    argument: str
    order: int
    numeric: float
    exact: float
    error: float
    kinks: int
    problem: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= TOLERANCES["difference"]

    def __str__(self) -> str:
        return (
            f"{self.name}: argument {self.argument}, order {self.order}: finite differences give "
            f"{self.numeric:.9g}, the rules {self.exact:.9g} (relative error {self.error:.1e}, "
            f"tolerance {TOLERANCES['difference']:.0e}){self.problem}"
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
    def failures(self) -> list[Comparison]:
        """The comparisons that did not pass."""
        return [c for c in self.comparisons if not c.passed]

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
            order, both numbers, and the op whose own rules fail the check at the lowest order.
        GradientError: every direction crosses a kink, or f is not finite around that point, so
            that there is nothing to compare with; the error's report is None.

    >>> from mamlnp import array
    >>> check_grads(lambda x: np.sin(x) * x**3, [array([0.5, -1.0])], order=3).error() < 1e-6
    True
    """
    rng = np.random.default_rng(0) if rng is None else rng
    name = getattr(f, "__name__", type(f).__name__)
    report, functions = _compared(_Flat(f, args, name, _argument_names(f, len(args))), order, rng)
    for failed in report.failures:
        culprit = _culprit(functions, failed.order, rng)
        raise GradientError(f"check_grads: {failed}.{culprit} Correct its rule.", report)
    return report


def _compared(
    flat: _Flat, order: int, rng: np.random.Generator
) -> tuple[Report, list[tuple[Function, list[Array]]]]:
    """The comparisons of every order up to the first that fails, and the functions compared."""
    function, leaves, names = flat.function, flat.leaves, flat.names
    report, functions = Report(), [(function, leaves)]
    for k in range(1, order + 1):
        for i, argument in enumerate(names):
            report.comparisons.append(_compare(function, leaves, i, (flat.name, argument, k), rng))
            if report.failures:
                return report, functions
        if k < order:
            function, leaves, extra = _pulled(function, leaves, rng)
            functions.append((function, leaves))
            names = [*names, *(f"{name} of order {k}" for name in extra)]
    return report, functions


class _Flat:
    """f as a function of its float leaves alone, to a list of its float results."""

    def __init__(
        self, f: Callable[..., Any], args: Sequence[Tree], name: str, argument_names: Sequence[str]
    ) -> None:
        self.name = name
        paths = [
            path
            for argument, arg in zip(argument_names, args, strict=True)
            for path, _ in tree.items(arg, argument)
        ]
        held = tree.leaves(list(args))
        arrays = [as_array(leaf) for leaf in held]
        floats = [i for i, x in enumerate(arrays) if x.dtype.kind == "f"]
        self.leaves = [Array(arrays[i].value.astype(np.float64)) for i in floats]
        self.names = [paths[i] for i in floats]

        def function(*leaves: Array) -> list[Array]:
            full = list(held)
            for i, leaf in zip(floats, leaves, strict=True):
                full[i] = leaf
            out = f(*tree.unflatten(list(args), full))
            return [y for y in map(as_array, tree.leaves(out)) if y.dtype.kind == "f"]

        self.function = function


def _argument_names(f: Callable[..., Any], count: int) -> list[str]:
    if isinstance(f, Op):
        names = [f"{f.arguments[0]}[{i}]" for i in range(count)] if f.variadic else f.arguments
    else:
        try:
            names = tuple(inspect.signature(f).parameters)
        except ValueError:  # a function of NumPy's need not have a signature
            names = ()
    return [*names[:count], *(f"[{i}]" for i in range(len(names), count))]


def _pulled(
    f: Function, leaves: list[Array], rng: np.random.Generator
) -> tuple[Function, list[Array], list[str]]:
    """The pullback of f, as a function of f's arguments and the cotangents."""
    count = len(leaves)
    cts = [_random_like(y, rng) for y in f(*leaves)]

    def pullback(*both: Array) -> list[Array]:
        return list(vjp(f, *both[:count])[1](list(both[count:])))

    names = ["the cotangent"] if len(cts) == 1 else [f"cotangent {i}" for i in range(len(cts))]
    return pullback, [*leaves, *cts], names


def _random_like(x: Array, rng: np.random.Generator) -> Array:
    return Array(backend.to_device(rng.standard_normal(x.shape)))


def _compare(
    f: Function,
    leaves: list[Array],
    i: int,
    label: tuple[str, str, int],
    rng: np.random.Generator,
) -> Comparison:
    """One argument's pullback against a central difference (docs, equation 3.3), along one random
    direction."""
    for tries in range(TRIES):
        if tries >= TRIES // 2:  # the point itself seems to lie on a kink: leave it a little
            leaves = [x + 1e-3 * _random_like(x, rng) for x in leaves]
        direction = _random_like(leaves[i], rng)
        direction = direction / max(1.0, math.sqrt(dot(direction, direction).item()))
        ahead, ahead_pieces = _with_pieces(f, _moved(leaves, i, STEP * direction))
        behind, behind_pieces = _with_pieces(f, _moved(leaves, i, -STEP * direction))
        if not all(np.isfinite(backend.to_host(y.value)).all() for y in [*ahead, *behind]):
            raise GradientError(
                f"check_grads: {label[0]}: argument {label[1]}, order {label[2]}: the function, or "
                "its derivative of the order below, is not finite there. Choose another point."
            )
        if ahead_pieces != behind_pieces:
            continue
        weights = [_random_like(y, rng) for y in ahead]
        numeric = _inner(weights, ahead, behind) / (2 * STEP)
        noise = sum(dot(abs(w), abs(a)).item() for w, a in zip(weights, ahead, strict=True))
        noise *= np.finfo(np.float64).eps / STEP
        ct, problem = _cotangent(f, leaves, i, weights)
        exact = dot(ct, direction).item()
        typical = math.sqrt(dot(ct, ct).item() / max(1, ct.size))
        size = max(abs(numeric), abs(exact), typical)
        if abs(numeric - exact) > TOLERANCES["difference"] * size and not problem:
            noise += _step_noise(f, leaves, i, direction, weights)
        error = abs(numeric - exact) / (max(size, noise / TOLERANCES["difference"]) or 1.0)
        error = error if math.isfinite(error) else math.inf
        return Comparison(*label, numeric, exact, error, tries, problem)
    raise GradientError(
        f"check_grads: {label[0]}: argument {label[1]}, order {label[2]}: all {TRIES} directions "
        "cross a kink, where no finite difference means anything. Choose another point."
    )


def _step_noise(
    f: Function, leaves: list[Array], i: int, direction: Array, weights: list[Array]
) -> float:
    """How much the central difference depends on its step, and so how well it is known."""
    differences = []
    for part in (1.0, 0.8, 0.65, 0.5):
        step = part * STEP * direction
        ahead, behind = f(*_moved(leaves, i, step)), f(*_moved(leaves, i, -step))
        differences.append(_inner(weights, ahead, behind) / (2 * part * STEP))
    return 2 * (max(differences) - min(differences))


def _moved(leaves: list[Array], i: int, step: Array) -> list[Array]:
    return [*leaves[:i], leaves[i] + step, *leaves[i + 1 :]]


def _inner(weights: list[Array], ahead: list[Array], behind: list[Array]) -> float:
    """<weights, ahead - behind>."""
    parts = zip(weights, ahead, behind, strict=True)
    return sum(dot(w, a - b).item() for w, a, b in parts)


def _cotangent(f: Function, leaves: list[Array], i: int, weights: list[Array]) -> tuple[Array, str]:
    """What the rules give for one argument, or NaN and why that cannot be its cotangent."""
    x = leaves[i]
    try:
        ct = vjp(f, *leaves)[1](weights)[i]
    except (ShapeError, DtypeError) as error:
        return math.nan * x, f", and one of them fails: {error}"
    if describe(ct) != describe(x):
        return math.nan * x, f", which are {describe(ct)} for an argument {describe(x)}"
    return ct, ""


def _with_pieces(f: Function, leaves: list[Array]) -> tuple[list[Array], list[bytes]]:
    """f's value, and which piece of every piecewise op it was on.

    That is: which ops ran, the pattern of those that have one, and all that was chosen with: whole
    numbers that are not differentiated (positions, comparisons, signs).
    """
    out, nodes = tape(f, *leaves)
    pieces = []
    for node in nodes:
        pieces.append(node.op.name.encode())
        if node.op.pattern is not None:
            values = [x.value if isinstance(x, Array) else x for x in node.inputs]
            xp = backend.namespace_of(node.value)
            pieces.append(backend.to_host(node.op.pattern(xp, *values, **node.params)).tobytes())
        for x in node.inputs:
            if isinstance(x, Array) and not x.serial:
                value = backend.to_host(x.value)
                if (value == np.round(value)).all():
                    pieces.append(value.tobytes())
    return out, pieces


def _culprit(
    functions: list[tuple[Function, list[Array]]], order: int, rng: np.random.Generator
) -> str:
    """Which single op's rules fail at the values they met, if one does: that of lowest order."""
    nodes = [node for f, leaves in functions for node in tape(f, *leaves)[1]]
    for k in range(1, order + 1):
        for node in nodes:
            try:
                report, _ = _compared(_alone(node), k, rng)
            except MissingRuleError as error:
                return f" {error}"
            except GradientError:  # on a kink there is nothing to be found
                continue
            for failed in report.failures:
                return f" The op at fault is {failed}."
    return ""


def _alone(node: Array) -> _Flat:
    """One op of a tape as a function of its inputs, which are named with what they were."""
    op, params = node.op, node.params
    names = _argument_names(op, len(node.inputs))
    shown = ", ".join(f"{n} {describe(x)}" for n, x in zip(names, node.inputs, strict=True))
    inputs = [Array(x.value) if isinstance(x, Array) else x for x in node.inputs]
    return _Flat(lambda *xs: op.apply(xs, params), inputs, f"{op.name} ({shown})", names)


def check_hvp(
    f: Callable[[Tree], Array], primal: Tree, *, rng: np.random.Generator | None = None
) -> Report:
    """Check f's Hessian-vector product: against differences of the gradient, and for symmetry.

    Args:
        f: from one tree of floats to a scalar.
        primal: where.

    Raises:
        GradientError: it is wrong; or <u, H v>, and <v, H u> by the gradient's pullback, differ.

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
    hv, hu = hvp(f, primal, v), vjp(grad(f), primal)[1](u)[0]
    uhv, vhu = dot(u, hv).item(), dot(v, hu).item()
    size = math.sqrt(dot(u, u).item() * dot(hv, hv).item()) or 1.0
    asymmetry = report.notes["asymmetry"] = abs(uhv - vhu) / size
    for failed in report.failures:
        raise GradientError(f"check_hvp: {failed}. Find the op with check_grads(f, (x,), order=2).")
    if asymmetry > TOLERANCES["rounding"]:
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
    how = {k: v for k, v in inner.items() if k not in ("method", "learn_inner_lr")}
    meta = {"params": params}
    if inner.get("learn_inner_lr"):
        meta["inner_lr"] = _as_float64(maml.learnable(how.pop("inner_lr", None), params))
    leaves = tree.leaves(meta)

    def objective(*xs: Array) -> list[Array]:
        here = tree.unflatten(meta, xs)
        return [maml.meta_loss(loss, here.pop("params"), task, **here, **how).sum()]

    report = Report()
    names = [path for name, part in meta.items() for path, _ in tree.items(part, name)]
    for i, path in enumerate(names):
        report.comparisons.append(_compare(objective, leaves, i, ("meta-gradient", path, 1), rng))
    for failed in report.failures:
        raise GradientError(f"check_meta_gradient: {failed}. Check the loss with check_grads.")

    def gradient(**changes: Any) -> Tree:
        return maml.meta_gradient(loss, task=task, **{**inner, **meta, **changes})[1]

    exact = gradient(method="backprop")
    first_order = gradient(method="backprop", first_order=True)
    report.notes["first order"] = distance(first_order, exact)
    if inner.get("inner_optimizer") is None:
        apart = report.notes["explicit product"] = distance(gradient(method="hvp"), exact)
        if apart > TOLERANCES["rounding"]:
            raise GradientError(
                f"check_meta_gradient: backprop and the explicit product differ by {apart:.1e}, "
                f"relative (tolerance {TOLERANCES['rounding']:.0e})."
            )
    return report


def distance(a: Tree, b: Tree) -> float:
    """|a - b| / |b| over all leaves of two trees, or |a| where b is 0.

    >>> distance({"w": 1.0}, {"w": 2.0})
    0.5
    """
    apart = tree.map(lambda x, y: as_array(x) - as_array(y), a, b)
    return math.sqrt(dot(apart, apart).item() / (dot(b, b).item() or 1.0))


def _as_float64(x: Tree) -> Tree:
    def leaf(x: Any) -> Array:
        x = as_array(x)
        return Array(x.value.astype(np.float64)) if x.dtype.kind == "f" else x

    return tree.map(leaf, x)
