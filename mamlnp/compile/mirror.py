"""The first replay of every plan, held against the function itself, run eagerly.

They may differ by rounding, of which most functions make little. Where they differ by more, the
traced graph is evaluated again, an operation at a time: in float64, beside a plan of it in float64;
and some times with every result moved by a rounding error at random (Monte Carlo arithmetic:
Parker, 1997). This shows by how much rounding moves the function right there: far at a kink (a relu
near 0, a tie of max) and where descent is chaotic. Only a larger difference is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from .. import backend, tree
from ..array import Array
from ..draws import TOLERANCES
from ..errors import CompileError
from .passes import VIEWS
from .trace import Graph, Node

SHARE = 0.25  # of the memory there is: eager evaluation may need so much
FLOOR = 16  # units in the last place of the largest result, which rounding may always make
ROUNDINGS = 8  # evaluations with other rounding, at most
PERIOD = 9973  # of a tensor's moves by rounding, which repeat along it; prime, as no axis is
SPREAD = 16  # how many times as far as they is too far
LARGE = 1e-6  # of the largest number there is: from there on, the order of a product matters
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

Values = list[Any]  # native arrays
Planned = Callable[[Graph, Values, Collection[str]], Any]


def anew(graph: Graph, inputs: Values, wide: bool = False) -> list[Any]:
    """The graph's outputs, made again of other inputs, in float64 if it is to be ``wide``."""
    new, change = dict(zip(graph.inputs, inputs, strict=True)), _widened if wide else lambda x: x
    for x in graph.nodes():
        if x not in new:
            args = tuple(new[a] if a.__class__ is Node else a for a in x.args)
            params = {name: change(value) for name, value in x.params.items()}
            data, dtype = change(x.data), change(x.dtype)
            new[x] = Node(x.op, args, params, x.shape, dtype, data=data, function=x.function)
    return [new[x] for x in graph.outputs]


def _widened(x: Any) -> Any:
    """float64 in the place of float32, in a type or a native array."""
    if isinstance(x, np.dtype | type):
        return FLOAT64 if x == FLOAT32 else x
    return x.astype(FLOAT64) if getattr(x, "dtype", None) == FLOAT32 else x


def _evaluated(graph: Graph, values: Values, seed: int | None = None) -> tuple[list[Any], float]:
    """The outputs, computed an operation at a time, and the largest size of anything on the way;
    with a seed each result is moved by up to a unit in its last place."""
    xp = backend.namespace_of(values[0]) if values else backend.default_namespace()
    rng, top, known = np.random.default_rng(seed), 0.0, dict(zip(graph.inputs, values, strict=True))
    for x in [*graph.inputs, *(x for x in graph.nodes() if x.op != "input")]:
        if x.op == "constant":
            known[x] = xp.asarray(x.data)
        elif x not in known:
            args = (known[a] if a.__class__ is Node else a for a in x.args)
            known[x] = xp.asarray(x.function(xp, *args, **x.params))  # type: ignore[misc]
        if seed is not None and x.dtype.kind == "f" and x.op not in VIEWS:
            top = float(np.fmax.reduce(backend.to_host(abs(known[x])), axis=None, initial=top))
            units = rng.random(min(x.size, PERIOD)) * 2 - 1
            moves = (1 + units * np.finfo(x.dtype).eps).astype(x.dtype)
            known[x] = known[x] * xp.asarray(np.resize(moves, x.shape))
    return [backend.to_host(known[x]) for x in graph.outputs], top


def _distance(a: np.ndarray, b: np.ndarray) -> Any:
    """|a - b| by element; NaN is at NaN, and what is not the same integer is infinitely far."""
    if a.dtype.kind != "f":
        return np.where(a == b, 0.0, np.inf)
    a, b = a.astype(FLOAT64), b.astype(FLOAT64)
    far = np.where(np.isfinite(a) & np.isfinite(b), abs(a - b), np.inf)
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, far)


def _excesses(
    expected: Values, got: Values, moved: Values | None = None, overflows: bool = False
) -> list[float]:
    """By output, the largest difference as a multiple of the one that rounding may make.

    Args:
        expected: the outputs, run eagerly.
        got: the outputs to judge.
        moved, overflows: see :class:`Trial`.
    """
    found, sizes = [], [
        float(np.abs(a).max(initial=0.0, where=np.isfinite(a))) if a.dtype.kind == "f" else 0.0
        for a in expected
    ]  # fmt: skip
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            found.append(np.inf)
            continue
        far, bound = _distance(a, b), 0.0
        if moved is not None:
            decided = not overflows and np.isfinite(moved[i]).all()
            known = np.isfinite(moved[i]) & (decided | np.isfinite(far))
            far, bound = np.where(known, far, 0.0), SPREAD * moved[i][known].max(initial=0.0)
        if a.dtype.kind == "f":
            tolerance = TOLERANCES["float32" if a.dtype == FLOAT32 else "rounding"]
            bound = max(bound, tolerance * sizes[i], FLOOR * np.finfo(a.dtype).eps * max(sizes))
        farthest = float(far.max(initial=0.0))
        found.append(farthest and (farthest / bound if bound else np.inf))
    return found


class Trial:
    """A graph at some values, where rounding may move it far.

    Each evaluation with other rounding costs as much as an eager one, so they are made one by one,
    until they explain what is asked about.

    Attributes:
        expected: its outputs, run eagerly.
        moved: how far rounding moves each element of them, so far as was tried; inf where it
            decides whether there is a number, or which integer.
        overflows: whether the order of a product decides what is infinite.
        seeds: of the evaluations still to make.
    """

    def __init__(self, graph: Graph, values: Values, planned: Planned) -> None:
        self.graph, self.values, self.planned = graph, values, planned
        self.expected, _ = _evaluated(graph, values)
        self.moved = [np.zeros(x.shape) for x in self.expected]
        self.overflows, self.seeds = False, [*range(ROUNDINGS)]
        limits = [np.finfo(x.dtype).max for x in graph.nodes() if x.dtype.kind == "f"]
        self._large = LARGE * min(limits, default=np.inf)

    def excesses(self, got: Values, expected: Values | None = None) -> list[float]:
        """:func:`_excesses` of what rounding can explain; ``expected``, if it was known before."""
        expected = expected or self.expected
        while max(found := _excesses(expected, got, self.moved, self.overflows)) > 1 and self.seeds:
            other, top = _evaluated(self.graph, self.values, self.seeds.pop(0))
            self.moved = list(map(np.maximum, self.moved, map(_distance, self.expected, other)))
            self.overflows |= top > self._large
        return found

    def passed(self, *without: str) -> bool:
        """Is a plan right, made without some passes?"""
        got = natives(self.planned(self.graph, self.values, without))
        return max(self.excesses(got)) <= 1


def natives(out: Any) -> list[Any]:
    """The Arrays of a tree on the host."""
    return [backend.to_host(x.value) for x in tree.leaves(out) if x.__class__ is Array]


def held(
    where: str, f: Callable[..., Any], args: Any, graph: Graph, values: Values, out: Any,
    planned: Planned, passes: Collection[str],
) -> str:  # fmt: skip
    """What a replay gave, held against f.

    Args:
        where: how a message names it.
        f: the function.
        args: its arguments.
        graph: its trace.
        values: the native arrays among the arguments.
        out: what the replay gave.
        planned: replays a new plan of a graph on values, without some of the passes.
        passes: that the plan was made by.

    Returns:
        What was found, for a person to read.

    Raises:
        CompileError: they differ by more than rounding can explain.
    """
    need = sum(x.size * x.dtype.itemsize for x in graph.nodes() if x.op not in VIEWS) / 1e9
    there = backend.available_memory(values[0] if values else None) / 1e9
    if need > SHARE * there:
        why = f"would need {need:.3g} GB, more than {SHARE:.0%} of the {there:.3g} GB there are"
        return f"not held against eager: its arrays {why}"
    if backend.products_are_coarse(values[0] if values else None):
        return "not held against eager: products are in TF32, which rounds to 3 digits"
    with np.errstate(all="ignore"):
        result = f(*args)
        expected, got = natives(result), natives(out)
        found, wide = _excesses(expected, got) or [0.0], None
        if max(found) <= 1:
            return f"held against eager: the largest difference is {max(found):.2g} of tolerance"
        if FLOAT32 in {x.dtype for x in graph.nodes()}:
            inputs = [Node("input", (), {}, x.shape, _widened(x.dtype)) for x in graph.inputs]
            again = Graph(inputs, anew(graph, inputs, True))
            wide = Trial(again, [*map(_widened, values)], planned)
            exact = [x.astype(a.dtype) for x, a in zip(wide.expected, expected, strict=True)]
            found = list(map(min, found, _excesses(exact, got)))
        trial = Trial(graph, values, planned) if wide is None or wide.passed() else wide
        if trial is not wide:
            found = list(map(min, found, trial.excesses(got, expected)))
            if max(found) <= 1:
                return "held against eager: they differ as far as rounding moves f there"
        guilty = [name for name in passes if trial.passed(name)]
    paths = [path for path, x in tree.items(result) if x.__class__ is Array]
    worst = int(np.argmax(found))
    todo = "No one pass makes the difference. Run the function without compile"
    if guilty:
        todo = f"The pass {guilty[0]!r} makes the difference. Pass without={{{guilty[0]!r}}}"
    raise CompileError(
        f"{where}: output {paths[worst]} of the replay is not what the function gives run eagerly: "
        f"they differ by {found[worst]:.2g} times what rounding may make. {todo} (in "
        "mamlnp.parallel, compiled=False), and report it with the function."
    )
