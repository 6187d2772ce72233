"""Are these derivatives right? Every order against differences of the order below.

Order 1 holds the pullback of f against differences of f; order k holds the pullback of the
(k-1)-th pullback against differences of that. With random weights w and a random direction d,
phi(t) = <w, f(x + t d)> has the derivative <J'w, d> by the rules. Its central differences (docs,
equation 3.3) take a step that shrinks until they settle (equation 3.4). How far they still move
then is the bound on their own error, and five verdicts follow:

- right, wrong: the differences are known to the tolerance, and agree with the rules or do not;
- does not settle: they are not known that well, so that nobody can tell;
- kink: every step crosses one (a relu switches, another element is the largest), where a
  difference means nothing: the pieces f is on are compared at both ends of every step;
- not deterministic: f gives another value at the same place. That is looked for first.

Everything is float64.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from . import backend, tree
from .array import Array
from .autodiff import dot, grad, hvp, stop_gradient, tape, vjp
from .draws import TOLERANCES as TOLERANCES  # for whoever holds more against another
from .errors import DtypeError, GradientError, MissingRuleError, ShapeError
from .meta import Algorithm, Gradient, Loss, maml, num_tasks, task_losses
from .meta.algorithm import watched
from .op import Op, as_array, describe
from .ops.shape import concatenate
from .optim import Optimizer
from .tasks import Task

Tree = Any
Function = Callable[..., list[Array]]
Verdict = Literal["right", "wrong", "kink", "does not settle", "not deterministic"]

# The steps t of the differences, relative to the argument's scale: each a quarter of the last. The
# first that is tried is 1e-5; 1e-4 already crosses kinks of a small conv net too often.
STEPS = 1e-5 * 4.0 ** -np.arange(-7, 15)
FIRST = 7
# Where to look before a point is given up: there, and so far beside it; there, elements move by as
# much (False) or each in proportion to itself (True).
PLACES = ((0.0, False), (0.0, True), (1e-3, False), (1e-3, True), (0.1, False), (0.1, True))

ADVICE: dict[Verdict, str] = {
    "kink": "Choose another point.",
    "does not settle": (
        "Whether a rule is wrong cannot be told here. Take noise out of the function (a value "
        "rounded to float32, an iteration that stops early, a large number added and subtracted), "
        "or choose another point."
    ),
    "not deterministic": (
        "Pass what changes as an argument (a mask or noise drawn once), draw it inside from a "
        "generator made anew (np.random.default_rng(seed)), and keep no state between calls."
    ),
}


@dataclass(frozen=True)
class Comparison:
    """One derivative held against its differences.

    Attributes:
        name: the function or op.
        argument: by which it was differentiated.
        order: 1 for a gradient, 2 for a gradient's gradient, ...
        numeric: what the differences settle on, or the best they give.
        exact: what the rules give.
        error: their distance, relative to the size of the derivative.
        bound: of the differences' own error, relative to the same size.
        kinks: how many differences were left out because they crossed a kink.
        verdict: "right", "wrong", "kink", "does not settle" or "not deterministic".
        problem: what is wrong besides the value, such as the shape of the rules' result.
    """

    name: str
    argument: str
    order: int
    numeric: float = math.nan
    exact: float = math.nan
    error: float = math.nan
    bound: float = math.nan
    kinks: int = 0
    verdict: Verdict = "right"
    problem: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "right"

    def __str__(self) -> str:
        text = f"{self.name}: argument {self.argument}, order {self.order}: "
        if self.verdict == "kink":
            return f"{text}all differences cross a kink, where they mean nothing"
        if self.verdict == "not deterministic":
            return f"{self.name}: order {self.order}: not deterministic: {self.problem}"
        if self.verdict == "does not settle":
            return text + (
                self.problem
                or "finite differences do not settle as their step shrinks: "
                f"{self.numeric:.9g} at best, with a relative error of {self.bound:.1e} or more "
                f"(tolerance {TOLERANCES['difference']:.0e}; the rules give {self.exact:.9g})"
            )
        return (
            f"{text}finite differences give {self.numeric:.9g}, the rules {self.exact:.9g} "
            f"(relative error {self.error:.1e}, tolerance {TOLERANCES['difference']:.0e})"
            f"{self.problem}"
        )


@dataclass(repr=False)
class Report:
    """All comparisons of one check; printed in a few lines.

    Attributes:
        comparisons: one for each argument and order.
        notes: other relative differences that were measured, by name.
        not_compared: arguments and results that are no floats, or empty, and so were left out.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    not_compared: list[str] = field(default_factory=list)

    def error(self, order: int | None = None) -> float:
        """The largest relative error of an order, or of all."""
        chosen = [c.error for c in self.comparisons if order in (None, c.order)]
        return max(chosen, default=0.0)

    @property
    def failures(self) -> list[Comparison]:
        """The comparisons that are not right; wrong ones first."""
        found = [c for c in self.comparisons if not c.passed]
        return sorted(found, key=lambda c: c.verdict != "wrong")

    @property
    def verdict(self) -> Verdict:
        """The worst of the comparisons' verdicts."""
        return self.failures[0].verdict if self.failures else "right"

    @property
    def kinks(self) -> int:
        """How many differences crossed a kink and were left out."""
        return sum(c.kinks for c in self.comparisons)

    def __repr__(self) -> str:
        count = len(self.comparisons)
        lines = [f"{self.verdict}: {count} derivative{'s' * (count != 1)} compared"]
        for order in sorted({c.order for c in self.comparisons}):
            lines.append(f"order {order}: largest relative error {self.error(order):.1e}")
        lines += [str(c) for c in self.failures]
        if self.kinks:
            lines.append(f"{self.kinks} differences crossed a kink and were left out")
        lines += [f"{what} differs by {value:.1e}" for what, value in self.notes.items()]
        if self.not_compared:
            what = ", ".join(self.not_compared)
            lines.append(f"{len(self.not_compared)} not differentiable, not compared: {what}")
        return "\n".join(lines)


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
        args: where; a tuple or list. Float leaves are differentiated (as float64), all others are
            held, and said in the report.
        order: the highest.
        rng: for the random directions; a fixed one if None.

    Raises:
        GradientError: its ``verdict`` says why. "wrong": a derivative is; the message names the
            function, the argument and the order, both numbers, and the op whose own rules fail the
            check at the lowest order, if one does. "kink", "does not settle", "not deterministic":
            there is nothing to hold the rules against.
        DtypeError, ShapeError: there is nothing to compare: no float argument, no float result,
            or none that has elements.

    >>> from mamlnp import array
    >>> check_grads(lambda x: np.sin(x) * x**3, [array([0.5, -1.0])], order=3).error() < 1e-6
    True
    """
    if not isinstance(args, tuple | list):
        raise TypeError(
            f"check_grads: the arguments are {_shown(args)}, not a tuple of arguments. "
            "Write check_grads(f, (x,))."
        )
    if not hasattr(order, "__index__") or order < 1:
        raise ValueError(f"check_grads: order is {order!r}. Pass 1, 2 or 3.")
    rng = np.random.default_rng(0) if rng is None else rng
    name = getattr(f, "__name__", type(f).__name__)
    flat = _Flat(f, args, name, _argument_names(f, len(args)))
    flat.check_that_something_is_compared()
    report, functions = _compared(flat, order, rng)
    if report.verdict == "wrong":
        raise _error("check_grads", report, _culprit(functions, report.failures[0].order, rng))
    if report.failures:
        raise _error("check_grads", report)
    return report


def _error(where: str, report: Report, advice: str = "") -> GradientError:
    failed = report.failures[0]
    advice = ADVICE.get(failed.verdict, advice)
    return GradientError(f"{where}: {failed}. {advice}", report, failed.verdict)


def _shown(x: Any) -> str:
    return describe(x) if hasattr(x, "shape") else f"one {type(x).__name__}"


@np.errstate(all="ignore")  # what is not finite is said in words
def _compared(
    flat: _Flat, order: int, rng: np.random.Generator
) -> tuple[Report, list[tuple[Function, list[Array]]]]:
    """The comparisons of every order up to the first that fails, and the functions compared."""
    function, leaves, names = flat.function, flat.leaves, flat.names
    report, functions = Report(not_compared=flat.not_compared), [(function, leaves)]
    scale = max(map(_norm, function(*leaves)), default=1.0)
    for k in range(1, order + 1):
        report.comparisons += _compared_once(function, leaves, names, (flat.name, k), rng, scale)
        if report.failures:
            break
        if k < order:
            function, leaves, extra = _pulled(function, leaves, rng)
            functions.append((function, leaves))
            names = [*names, *(f"{name} of order {k}" for name in extra)]
    return report, functions


@np.errstate(all="ignore")
def _compared_once(
    f: Function,
    leaves: list[Array],
    names: Sequence[str],
    label: tuple[str, int],
    rng: np.random.Generator,
    scale: float = 1.0,
) -> list[Comparison]:
    """f's pullback against f's differences, argument by argument up to the first that is wrong.

    The scale is that of the numbers f computes with, where they are larger than 1.
    """
    name, order = label
    here = _Point(f, leaves, rng, scale=max(1.0, scale))
    changed = here.changed()
    found: list[Comparison] = []
    for i, argument in enumerate(names):
        if changed or (found and found[-1].verdict == "wrong"):
            break
        if leaves[i].size:
            found.append(_compare(here, i, (name, argument, order), rng))
    changed = changed or here.changed()  # slowly, perhaps
    if changed:
        return [Comparison(name, "", order, verdict="not deterministic", problem=changed)]
    return found


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
        floats = [i for i, x in enumerate(arrays) if _is_compared(x)]
        self.leaves = [Array(arrays[i].value.astype(np.float64)) for i in floats]
        self.names = [paths[i] for i in floats]
        self.not_compared = [
            f"{path} {describe(x)}"
            for path, x in zip(paths, arrays, strict=True)
            if not _is_compared(x)
        ]

        def results(*leaves: Array) -> Tree:
            full = list(held)
            for i, leaf in zip(floats, leaves, strict=True):
                full[i] = leaf
            return f(*tree.unflatten(list(args), full))

        def function(*leaves: Array) -> list[Array]:
            return [y for y in map(as_array, tree.leaves(results(*leaves))) if _is_compared(y)]

        self.results, self.function = results, function

    def check_that_something_is_compared(self) -> None:
        """There must be a float argument and a float result, with elements.

        Raises:
            DtypeError: no argument, or no result, is a float; or f meets a float32 array.
            ShapeError: those that are have no elements.
        """
        given = ", ".join(self.not_compared) or "none"
        if not self.leaves:
            kind = ShapeError if "float" in given else DtypeError
            raise kind(
                f"check_grads: {self.name}: there is nothing to differentiate by in its arguments "
                f"({given}). Pass one that is a float and has elements."
            )
        try:
            with np.errstate(all="ignore"):
                results = list(tree.items(self.results(*self.leaves), "result"))
        except DtypeError as error:
            if "float32" not in str(error):
                raise
            raise DtypeError(
                f"check_grads: {self.name}: the check makes float arguments float64, and they meet "
                f"a float32 array of the function's own ({error}) Pass that array as an argument "
                "too, or close over it in float64."
            ) from error
        held = [f"{path} {describe(x)}" for path, x in results if not _is_compared(as_array(x))]
        if len(held) == len(results):
            kind = ShapeError if any("float" in text for text in held) else DtypeError
            raise kind(
                f"check_grads: {self.name}: there is nothing to differentiate in what it returns "
                f"({', '.join(held) or 'nothing'}). Return a float that has elements."
            )
        self.not_compared = [*self.not_compared, *held]


def _is_compared(x: Array) -> bool:
    return x.dtype.kind == "f" and x.size > 0


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


# ---- one comparison


class _Point:
    """f at one place, and what the rules give there.

    Attributes:
        f, leaves: the function and the place.
        out: its value.
        weights: random ones for every element of the value.
        scale: of the numbers f computes with.
        cts: the pullback's cotangents of those weights; NaN where they cannot be right.
        problems: for each leaf, why not.
    """

    def __init__(
        self,
        f: Function,
        leaves: list[Array],
        rng: np.random.Generator,
        weights: list[Array] | None = None,
        scale: float = 1.0,
    ) -> None:
        self.f, self.leaves, self.scale = f, leaves, scale
        self.out, pullback = vjp(f, *leaves)
        self.weights = [_random_like(y, rng) for y in self.out] if weights is None else weights
        self.problems = [""] * len(leaves)
        try:
            self.cts = list(pullback(self.weights))
        except (ShapeError, DtypeError) as error:
            self.problems = [f", and one of them fails: {error}"] * len(leaves)
            self.cts = [math.nan * x for x in leaves]
        for i, (x, ct) in enumerate(zip(leaves, self.cts, strict=True)):
            if describe(ct) != describe(x):
                self.problems[i] = f", which are {describe(ct)} for an argument {describe(x)}"
                self.cts[i] = math.nan * x

    def again(self, weights: list[Array]) -> _Point:
        """The same with other weights."""
        return _Point(self.f, self.leaves, np.random.default_rng(0), weights, self.scale)

    def changed(self) -> str:
        """What is not the same when everything is computed once more; "" if nothing is."""
        now = self.again(self.weights)
        for what, a, b in (("values", self.out, now.out), ("derivatives", self.cts, now.cts)):
            if [y.shape for y in a] != [y.shape for y in b]:
                return f"its {what} at the same place are of other shapes the second time"
            before, after = (np.concatenate([_host(y).ravel() for y in ys]) for ys in (a, b))
            apart = np.nan_to_num(abs(before - after))  # the same NaN is the same
            worst = int(apart.argmax())
            if apart[worst] > TOLERANCES["rounding"] * np.nan_to_num(abs(before)).max():
                return (
                    f"its {what} at the same place are {before[worst]:.9g} and then "
                    f"{after[worst]:.9g}"
                )
        return ""

    def vanishes(self, i: int) -> bool:
        """Is one leaf's cotangent zero but for rounding: another one with weights a third as large,
        three times?"""
        parts = (0.3, 0.6, 0.7, 1 / 3)
        others = [self.again([w * part for w in self.weights]).cts[i] / part for part in parts]
        return _norm(self.cts[i]) <= 100 * max(_norm(self.cts[i] - other) for other in others)

    def beside(self, far: float, rng: np.random.Generator) -> _Point:
        """Another, so far away: in proportion to every element, or where that is far, to all."""
        moved = [x + far * (_scale(x, far < 0.1) * _random_like(x, rng)) for x in self.leaves]
        return _Point(self.f, moved, rng, self.weights, self.scale)


class _Line:
    """phi(t) = <w, f(x + t d)>: a point's function along a direction d of one leaf.

    Attributes:
        differences: at every step; NaN where none was taken, it crosses a kink or is not finite.
        size: of the terms that phi sums, whose rounding no difference gets rid of: the root of
            the sum of their squares, as roundings do not all go one way.
        kinks, outside: how many differences crossed a kink; how many were not finite.
        torn: whether long steps settle on one slope and short ones on another.
    """

    def __init__(self, point: _Point, i: int, direction: Array) -> None:
        self.point, self.i, self.direction = point, i, direction
        terms = [w * y for w, y in zip(point.weights, point.out, strict=True)]
        self.size = math.hypot(*map(_norm, terms))
        self.differences = np.full(len(STEPS), math.nan)
        self.kinks = self.outside = 0
        self.torn = False

    def difference(self, n: int) -> float:
        """(phi(t) - phi(-t)) / 2t for the n-th step (docs, equation 3.3)."""
        step = STEPS[n] * self.direction
        ahead, ahead_pieces = self._at(step)
        behind, behind_pieces = self._at(-step)
        if not all(np.isfinite(_host(y)).all() for y in [*ahead, *behind]):
            self.outside += 1
        elif ahead_pieces != behind_pieces:
            self.kinks += 1
        else:
            parts = zip(self.point.weights, ahead, behind, strict=True)
            rise = sum(dot(w, a - b).item() for w, a, b in parts)
            self.differences[n] = rise / (2 * STEPS[n])
        return self.differences[n]

    def _at(self, step: Array) -> tuple[list[Array], list[bytes]]:
        leaves = list(self.point.leaves)
        leaves[self.i] = leaves[self.i] + step
        return _with_pieces(self.point.f, leaves)

    def rounding(self, step: Any) -> Any:
        """What the rounding of phi's terms alone does to a difference."""
        return np.finfo(np.float64).eps * self.size / step

    def derivative(self, exact: float, typical: float) -> tuple[float, float]:
        """phi'(0), and a bound on its error: infinite if the differences settle on nothing.

        Two steps do where they agree with each other and with what is expected: exact, or a number
        of typical size. Else all are taken.
        """
        first, second = self.difference(FIRST), self.difference(FIRST + 1)
        value = (16 * second - first) / 15
        bound = abs(second - first) + self.rounding(STEPS[FIRST + 1])
        tolerance = TOLERANCES["difference"] * max(abs(value), abs(exact), typical)
        if bound <= tolerance and abs(value - exact) <= tolerance:
            return value, bound
        constant = first == second == typical == 0
        if constant and (math.isnan(self.difference(0)) or self.differences[0] == 0):
            return 0.0, 0.0
        coarse = range(FIRST) if not math.isnan(first) else range(0)  # else they cross too
        for n in [*reversed(coarse), *range(FIRST + 2, len(STEPS))]:
            self.difference(n)
        return self.settled()

    def extrapolated(self) -> tuple[np.ndarray, np.ndarray]:
        """The differences without the terms in t^2 and t^4 (docs, equation 3.4), from every three
        neighbouring steps; and how far each is from its neighbours, rounding included."""
        d = self.differences
        once = (16 * d[1:] - d[:-1]) / 15
        twice = (256 * once[1:] - once[:-1]) / 255
        apart = abs(np.diff(twice))
        longer = np.nan_to_num([0.0, *apart[:-1]])  # the longest has no longer one
        spread = np.maximum(longer, apart) + self.rounding(STEPS[2:-1])
        for _ in range(2):  # noise is a quarter of what it is at a quarter of the step: no luck
            spread[:-1] = np.fmax(spread[:-1], spread[1:] / 4)
        return twice[:-1], spread

    def settled(self) -> tuple[float, float]:
        """The extrapolation that moves least, and by how much.

        It counts if it is known to a thousandth, and all others that are agree. Noise as large as
        the derivative never gets there; a function that has one slope at long steps and another at
        short ones settles on nothing.
        """
        values, spreads = self.extrapolated()
        if np.isnan(spreads).all():
            return math.nan, math.inf
        if self.flat():
            rounding = np.finfo(np.float64).eps * self.point.scale
            longest = STEPS[~np.isnan(self.differences)].max()
            return 0.0, float((np.nanmax(self.changes()) + rounding) / longest)
        known = (spreads <= 1e-3 * abs(values)) & (values != 0)
        if not known.any():
            return float(values[np.nanargmin(spreads)]), math.inf
        best = int(np.nanargmin(np.where(known, spreads, math.nan)))
        value, spread = float(values[best]), float(spreads[best])
        apart = abs(values - value) - TOLERANCES["difference"] * abs(value)
        self.torn = bool((apart > 30 * (spreads + spread))[known].any())
        return value, math.inf if self.torn else spread

    def changes(self) -> np.ndarray:
        """How much phi changes over every step."""
        return abs(self.differences) * STEPS

    def flat(self) -> bool:
        """Does phi change no more at the longest steps than at the shortest, where it is rounding
        that changes it?"""
        changes = self.changes()[~np.isnan(self.differences)]
        rounding = changes[len(changes) // 2 :].max(initial=0)
        known = len(changes) > 9 and rounding <= 1e3 * np.finfo(np.float64).eps * self.point.scale
        return bool(known and changes.max() <= 20 * max(rounding, self.rounding(1.0)))


def _compare(
    here: _Point, i: int, label: tuple[str, str, int], rng: np.random.Generator
) -> Comparison:
    """One argument's cotangent against differences, along a random direction.

    Every element moves by as much (which tells most of most functions) or in proportion to itself
    (which does where elements are of very different sizes, or close to the edge of a domain). Where
    that decides nothing, on a kink or where the derivative vanishes, the point is left a little.
    """
    undecided: list[Comparison] = []
    passed = vanished = None
    kinks = 0
    for n, (far, relative) in enumerate(PLACES):
        point = here.beside(far, rng) if far else here
        found, line = _along(point, i, label, relative, rng)
        kinks += line.kinks
        found = replace(found, kinks=kinks)
        if line.torn or (found.verdict == "wrong" and found.error <= 100 * found.bound):
            other, second = _along(point, i, label, relative, rng)  # one direction may mistake it
            if line.torn and second.torn:
                return found
            if other.verdict != "wrong":
                found = replace(found, verdict="does not settle")
        if found.verdict == "wrong" or (found.verdict == "right" and not _mixed(here.leaves[i])):
            return found
        if found.verdict == "right":  # along both directions, if they are so different
            if passed or relative:
                return found
            passed = found
        elif passed:
            return passed
        else:
            undecided.append(found)
        if found.verdict == "does not settle" and not far and line.flat() and here.vanishes(i):
            vanished = replace(found, verdict="right", error=0.0, bound=0.0)
        if n == 1 and all(c.problem for c in undecided):
            break
    if vanished:
        return replace(vanished, kinks=kinks)
    worst = min(undecided, key=lambda c: (c.verdict == "kink", not c.problem, c.bound))
    return replace(worst, kinks=kinks)


def _along(
    point: _Point, i: int, label: tuple[str, str, int], relative: bool, rng: np.random.Generator
) -> tuple[Comparison, _Line]:
    """One argument's cotangent against differences, along one direction from a point."""
    x, ct = point.leaves[i], point.cts[i]
    scale = _scale(x, relative)
    typical = _norm(scale * ct) / math.sqrt(x.size)
    for _ in range(10):
        direction = _random_like(x, rng)
        direction = scale * direction / max(1.0, _norm(direction))
        exact = dot(ct, direction).item()
        if abs(exact) > 0.3 * typical:  # else it tells little of the cotangent
            break
    line = _Line(point, i, direction)
    value, bound = line.derivative(exact, typical)
    size = max(filter(math.isfinite, map(abs, (value, exact, typical))), default=0.0)
    tolerance, gap = TOLERANCES["difference"] * size, abs(value - exact)
    verdict: Verdict = "does not settle"
    problem = point.problems[i]
    if problem:
        verdict = "wrong"
    elif np.isnan(line.differences).all() and line.outside:
        problem = "the function, or its derivative of the order below, is not finite there"
    elif np.isnan(line.differences).all():
        verdict = "kink"
    elif bound <= tolerance and gap <= tolerance:
        verdict = "right"
    elif bound <= tolerance and not gap <= tolerance + bound:
        verdict = "wrong"
    error = gap / size if size else gap
    found = Comparison(
        *label,
        numeric=float(value),
        exact=exact,
        error=float(error) if math.isfinite(error) else math.inf,
        bound=float(bound / size if size else bound),
        kinks=line.kinks,
        verdict=verdict,
        problem=problem,
    )
    return found, line


def _scale(x: Array, relative: bool) -> Array:
    """How far to go: as far as the elements are large, each or together, and not 0."""
    sizes = abs(_host(x))
    largest = sizes.max(initial=0)
    together = largest * math.sqrt(np.mean((sizes / largest) ** 2)) if largest else 0.0
    if relative:
        return Array(backend.to_device(np.where(sizes > 1e-200, sizes, together or 1.0)))
    return Array(backend.to_device(np.asarray(max(1.0, together))))


def _mixed(x: Array) -> bool:
    """Are the elements of very different sizes?"""
    sizes = abs(_host(x))
    return bool(sizes.max() > 1e3 * np.min(sizes[sizes > 0], initial=math.inf))


def _norm(x: Array) -> float:
    value = _host(x)
    largest = abs(value).max(initial=0)
    return float(largest * np.linalg.norm(value / largest)) if largest else 0.0


def _host(x: Array) -> np.ndarray:
    return backend.to_host(x.value)


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
                if (value == np.round(value)).all() and (abs(value) < 2**31).all():
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
                return f"{error} Correct its rule."
            if report.verdict == "wrong":
                return f"The op at fault is {report.failures[0]}. Correct its rule."
    return (
        "No op's rules are at fault by themselves: the function keeps something from being "
        "differentiated, as stop_gradient does. Let it through."
    )


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
        GradientError: it is wrong; or <u, H v>, and <v, H u> by the gradient's pullback, differ; or
            there is nothing to hold it against (see :func:`check_grads`).
        DtypeError, ShapeError: primal has a leaf that is no float, or no elements.

    >>> from mamlnp import array
    >>> check_hvp(lambda x: (x**4).sum(), array([1.0, -0.5])).error() < 1e-6
    True
    """
    rng = np.random.default_rng(0) if rng is None else rng
    primal = _as_float64("check_hvp", "x", primal)
    leaves, names = tree.leaves(primal), [path for path, _ in tree.items(primal, "x")]

    def gradient(*xs: Array) -> list[Array]:
        return tree.leaves(grad(f)(tree.unflatten(primal, xs)))

    report = Report(_compared_once(gradient, leaves, names, ("hvp", 2), rng))
    if report.failures:
        raise _error("check_hvp", report, "Find the op with check_grads(f, (x,), order=2).")
    u, v = (tree.map(lambda x: _random_like(x, rng), primal) for _ in range(2))
    hv, hu = hvp(f, primal, v), vjp(grad(f), primal)[1](u)[0]
    uhv, vhu = dot(u, hv).item(), dot(v, hu).item()
    size = math.sqrt(dot(u, u).item() * dot(hv, hv).item()) or 1.0
    asymmetry = report.notes["asymmetry"] = abs(uhv - vhu) / size
    if asymmetry > TOLERANCES["rounding"]:
        raise GradientError(
            f"check_hvp: <u, H v> is {uhv:.12g} but <v, H u> {vhu:.12g}. Find the op with "
            "check_grads(f, (x,), order=2).",
            report,
            "wrong",
        )
    return report


def check_meta_gradient(
    loss: Loss,
    params: Tree,
    task: Task,
    *,
    inner_lr: Tree = None,
    inner_steps: int = 1,
    first_order: bool = False,
    inner_optimizer: Optimizer | None = None,
    rng: np.random.Generator | None = None,
) -> Report:
    """Check MAML's gradient through the inner loop, both ways, against finite differences.

    Args:
        loss, params, task, inner_lr, inner_steps, first_order, inner_optimizer: as in
            :func:`mamlnp.maml.meta_gradient`.
        rng: of the directions to compare in.

    Returns:
        A report whose notes are the relative distances of "explicit product" (the other way to the
        same gradient) and of "first order" (which must not be 0).

    Raises:
        GradientError: backprop is wrong, or the explicit product differs from it.
    """

    def algorithm(first_order: bool = first_order, method: maml.Method = "backprop") -> Algorithm:
        return maml.MAML(
            loss,
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            first_order=first_order,
            inner_optimizer=inner_optimizer,
            method=method,
        )

    products = None if inner_optimizer else algorithm(method="hvp").gradient
    return check_algorithm(
        algorithm(),
        params,
        task,
        product=products,
        first_order=algorithm(first_order=True).gradient,
        name="params",
        rng=rng,
    )


def check_algorithm(
    algorithm: Algorithm,
    meta: Tree,
    task: Task,
    *,
    product: Gradient | None = None,
    first_order: Gradient | None = None,
    name: str = "meta",
    rng: np.random.Generator | None = None,
) -> Report:
    """Check an algorithm's gradient through all that it does to adapt.

    Args:
        algorithm: whose gradient goes back through ``adapt`` (:func:`mamlnp.meta.through`).
        meta: what it differentiates by.
        task: the meta-batch.
        product: another way to the same gradient; the report notes its distance.
        first_order: another gradient, whose distance is noted too.
        name: what the report calls meta.
        rng: of the directions to compare in.

    Raises:
        GradientError: the gradient is not that of the summed query losses, or ``product`` differs
            from it.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    meta = _as_float64("check_meta_gradient", name, meta)
    task = tree.map(_in_float64, task)

    def objective(*xs: Array) -> list[Array]:
        adapted = algorithm.adapt(tree.unflatten(meta, xs), task.support)
        return [task_losses(algorithm.loss, adapted, task.query).sum()]

    names = [path for path, _ in tree.items(meta, name)]
    report = Report(_compared_once(objective, tree.leaves(meta), names, ("meta-gradient", 1), rng))
    if report.verdict != "not deterministic":
        adapted = algorithm.adapt(meta, task.support)
        for batch in task:
            check_tasks(algorithm.loss, adapted, batch)
    if report.failures:
        raise _error("check_meta_gradient", report, "Check the loss with check_grads.")
    exact = algorithm.gradient(meta, task)[1]
    if first_order is not None:
        report.notes["first order"] = distance(first_order(meta, task)[1], exact)
    if product is not None:
        apart = report.notes["explicit product"] = distance(product(meta, task)[1], exact)
        if apart > TOLERANCES["rounding"]:
            raise GradientError(
                f"check_meta_gradient: backprop and the explicit product differ by {apart:.1e}, "
                f"relative (tolerance {TOLERANCES['rounding']:.0e}).",
                report,
                "wrong",
            )
    return report


@contextlib.contextmanager
def debug_tasks() -> Iterator[None]:
    """Hold the loss of one task alone against its loss among others, wherever this thread adapts.

    It costs three losses more a step. What is compiled, or goes over other threads, is not held.

    Raises:
        ShapeError: they differ, as when shapes broadcast tasks against examples
            (:func:`check_tasks`).

    >>> import numpy as np
    >>> from mamlnp import Batch
    >>> support = Batch(np.ones((5, 5, 1)), np.ones((5, 5, 1)))
    >>> theta = {"w": np.ones((1, 1)), "b": np.zeros(1)}
    >>> def loss(params, batch):  # b is (T, 1), and meets (T, N, 1) along N
    ...     return ((batch.x @ params["w"] + params["b"] - batch.y) ** 2).mean((1, 2))
    >>> with debug_tasks():  # doctest: +ELLIPSIS
    ...     adapted = maml.adapt(loss, theta, support, inner_lr=0.1)
    Traceback (most recent call last):
        ...
    mamlnp.errors.ShapeError: loss: task 0's is ... It depends on other tasks' params['b'] ...
    """
    before, watched.check = watched.check, check_tasks
    try:
        yield
    finally:
        watched.check = before


def check_tasks(loss: Loss, params: Tree, batch: Tree) -> None:
    """Is the loss of one task alone what it is among others? Close to params, where every task has
    its own copy of them; a loss that is random, or not finite there, is not judged.

    Args:
        loss, batch: as in :func:`mamlnp.maml.adapt`.
        params: every leaf with the task axis, (T, ...).

    Raises:
        ShapeError: it is not: a task's loss depends on other tasks.
    """
    tasks = num_tasks(batch)
    params, batch = stop_gradient(params), stop_gradient(batch)
    if tasks < 2 or not all(backend.is_native(x.value) for x in tree.leaves((params, batch))):
        return
    if any(p.shape[:1] != (tasks,) for p in tree.leaves(params)):  # one theta for all tasks
        return
    params = tree.map(_moved, params)
    among, again = (as_array(loss(params, batch)) for _ in range(2))
    first = tree.map(lambda x: x[:1], (params, batch))
    try:
        (alone,) = as_array(loss(*first))
    except Exception as error:
        raise ShapeError(
            f"loss: task 0 of {tasks} has none alone ({error}) What belongs to a task goes into "
            "its batch or its params."
        ) from error
    value, second, by_itself = among[0].item(), again[0].item(), alone.item()
    tolerance = abs(_host(among)).max() * np.finfo(among.dtype).eps ** 0.5  # half of the digits
    if not abs(value - by_itself) > tolerance or abs(value - second) > tolerance:
        return
    mixed = []
    for n, (path, leaf) in enumerate(tree.items(params, "params")):
        leaves = tree.leaves(params)
        leaves[n] = concatenate([leaf[:1], _moved(leaf[1:])])
        other = as_array(loss(tree.unflatten(params, leaves), batch))
        if abs(backend.to_host(other.value)[0] - value) > tolerance:
            mixed.append(f"{path} {describe(leaf)}")
    of = f"It depends on other tasks' {', '.join(mixed)}. " if mixed else ""
    raise ShapeError(
        f"loss: task 0's is {value:.3g} among {tasks} tasks and {by_itself:.3g} alone, so that "
        f"tasks are broadcast against examples or share something else. {of}A bias (T, out) is "
        "added to (T, N, out) as b[:, None]; or write the loss for one task, and pass "
        "ml.vmap(loss)."
    )


def _moved(x: Array) -> Array:
    """Some tenths of its size away, every element by another, so that no two tasks are equal."""
    value = backend.to_host(x.value)
    size = np.sqrt(np.mean(value**2)) or 1.0
    noise = np.random.default_rng(0).standard_normal(value.shape)
    moved = np.asarray(value + 0.1 * size * noise, value.dtype)
    return Array(backend.to_device(moved, x.device))


def distance(a: Tree, b: Tree) -> float:
    """|a - b| / |b| over all leaves of two trees, or |a| where b is 0.

    >>> distance({"w": 1.0}, {"w": 2.0})
    0.5
    """
    apart = tree.map(lambda x, y: as_array(x) - as_array(y), a, b)
    return math.sqrt(dot(apart, apart).item() / (dot(b, b).item() or 1.0))


def _as_float64(where: str, name: str, x: Tree) -> Tree:
    """A tree of floats to differentiate by, as float64."""
    for path, leaf in tree.items(x, name):
        if as_array(leaf).dtype.kind != "f":
            raise DtypeError(
                f"{where}: {path} is {describe(as_array(leaf))}. Only floats can be "
                "differentiated; convert it, or close over it."
            )
    if not any(as_array(leaf).size for leaf in tree.leaves(x)):
        raise ShapeError(
            f"{where}: {name} has no elements, so nothing would be compared. Pass some that are "
            "floats."
        )
    return tree.map(_in_float64, x)


def _in_float64(x: Any) -> Array:
    x = as_array(x)
    return Array(x.value.astype(np.float64)) if x.dtype.kind == "f" else x
