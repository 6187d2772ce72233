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
from ..backend import to_device, to_host
from ..draws import TOLERANCES
from ..errors import CompileError
from .passes import VIEWS
from .trace import Graph, Node

SHARE = 0.25  # of the memory there is: eager evaluation may need so much
FLOOR = 16  # units in the last place of the largest result, which rounding may always make
LARGE = 1e-6  # of the largest number there is: from there on, the order of a product matters
ROUNDINGS, SPREAD = (
    8,
    16,
)  # evaluations with other rounding; how many times as far as they is too far
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

Values = list[Any]  # native arrays
Planned = Callable[[Graph, Values, Collection[str]], Any]


def function_of(graph: Graph) -> Callable[..., list[Array]]:
    """A function of Arrays whose trace is the graph."""

    def f(*args: Array) -> list[Array]:
        new = {x: a.value for x, a in zip(graph.inputs, args, strict=True)}
        for x in graph.nodes():
            if x not in new:
                given = tuple(new[a] if a.__class__ is Node else a for a in x.args)
                new[x] = Node(x.op, given, x.params, x.shape, x.dtype, data=x.data,
                              function=x.function)  # fmt: skip
        return [Array(new[x]) for x in graph.outputs]

    return f


def _widened(x: Any) -> Any:
    """float64 in the place of float32, in a type or a native array."""
    if isinstance(x, np.dtype | type):
        return FLOAT64 if x == FLOAT32 else x
    return x.astype(FLOAT64) if getattr(x, "dtype", None) == FLOAT32 else x


def in_float64(graph: Graph) -> Graph:
    """The same operations on float64 where they were on float32."""
    new: dict[Node, Node] = {}
    for x in [*graph.inputs, *(x for x in graph.nodes() if x.op != "input")]:
        given = tuple(new[a] if a.__class__ is Node else a for a in x.args)
        params = {name: _widened(value) for name, value in x.params.items()}
        new[x] = Node(x.op, given, params, x.shape, _widened(x.dtype), data=_widened(x.data),
                      function=x.function)  # fmt: skip
    return Graph([new[x] for x in graph.inputs], [new[x] for x in graph.outputs])


def evaluated(
    graph: Graph, values: Values, rng: np.random.Generator | None = None
) -> tuple[Values, float]:
    """The outputs, computed an operation at a time, and the largest size of anything on the way;
    with ``rng`` each result is moved by up to a unit in its last place."""
    top = 0.0
    xp = backend.namespace_of(values[0]) if values else backend.default_namespace()

    def rounded(x: Node, value: Any) -> Any:
        nonlocal top
        if x.dtype.kind == "f" and x.size:
            top = max(top, float(xp.nan_to_num(abs(value), nan=0.0, posinf=np.inf).max()))
        if rng is None or x.op in VIEWS or x.dtype.kind != "f":
            return value
        noise = rng.uniform(-1, 1, x.shape) * np.finfo(x.dtype).eps
        return value * xp.asarray((1 + noise).astype(x.dtype))

    known = {x: rounded(x, value) for x, value in zip(graph.inputs, values, strict=True)}
    for x in graph.nodes():
        if x.op == "constant":
            known[x] = x.data if xp is np else to_device(x.data, "cuda")
        elif x not in known:
            given = (known[a] if a.__class__ is Node else a for a in x.args)
            known[x] = rounded(x, xp.asarray(x.function(xp, *given, **x.params)))  # type: ignore[misc]
    return [to_host(known[x]) for x in graph.outputs], top


def _distance(a: np.ndarray, b: np.ndarray) -> Any:
    """|a - b| by element; NaN is at NaN, and what is not the same integer is infinitely far."""
    if a.dtype.kind != "f":
        return np.where(a == b, 0.0, np.inf)
    a, b = a.astype(FLOAT64), b.astype(FLOAT64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isfinite(a) & np.isfinite(b), abs(a - b), np.inf))


def excesses(expected: Values, got: Values, trial: Trial | None = None) -> list[float]:
    """By output, the largest difference as a multiple of the one that rounding may make."""
    sizes = [
        np.abs(a[np.isfinite(a)]).max(initial=0.0) if a.dtype.kind == "f" else 0.0 for a in expected
    ]
    found = []
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            found.append(np.inf)
            continue
        far, bound = _distance(a, b), 0.0
        if trial is not None:
            moved = np.asarray(trial.moved[i])
            decided = not trial.overflows and np.isfinite(moved).all()
            known = np.isfinite(moved) & (decided | np.isfinite(far))
            far, bound = np.where(known, far, 0.0), SPREAD * moved[known].max(initial=0.0)
        if a.dtype.kind == "f":
            tolerance = TOLERANCES["float32" if a.dtype == FLOAT32 else "rounding"]
            floor = FLOOR * np.finfo(a.dtype).eps * max(sizes)
            bound = max(bound, tolerance * sizes[i], floor)
        farthest = float(far.max(initial=0.0))
        found.append(farthest and (farthest / bound if bound else np.inf))
    return found


class Trial:
    """A graph at some values, where rounding may move it far.

    Attributes:
        expected: its outputs, run eagerly.
        moved: how far rounding moves each element of them; inf where it decides whether there is a
            number, or which integer.
    """

    def __init__(self, graph: Graph, values: Values, expected: Values | None = None) -> None:
        self.graph, self.values = graph, values
        base, top = evaluated(graph, values)
        self.expected = base if expected is None else expected
        self.moved: Values = [0.0] * len(base)
        for seed in range(ROUNDINGS):
            others, _ = evaluated(graph, values, np.random.default_rng(seed))
            for i, (a, b) in enumerate(zip(base, others, strict=True)):
                self.moved[i] = np.maximum(self.moved[i], _distance(a, b))
        # Close to the largest number, the order of a product decides what is infinite.
        limits = [np.finfo(x.dtype).max for x in graph.nodes() if x.dtype.kind == "f"]
        self.overflows = top > LARGE * min(limits, default=np.inf)

    def excesses(self, got: Values) -> list[float]:
        """See the function of that name."""
        return excesses(self.expected, got, self)


def _largest(trial: Trial, planned: Planned, without: Collection[str]) -> float:
    """The largest excess of a new plan's replay."""
    return max(trial.excesses(natives(planned(trial.graph, trial.values, without))))


def natives(out: Any) -> Values:
    """The Arrays of a tree on the host."""
    return [to_host(x.value) for x in tree.leaves(out) if x.__class__ is Array]


def held(
    where: str,
    f: Callable[..., Any],
    args: Any,
    graph: Graph,
    values: Values,
    out: Any,
    planned: Planned,
    passes: Collection[str],
) -> str:
    """What a plan made of these arguments, held against f.

    Args:
        where: the compiled function's name, for messages.
        f: the function.
        args: its arguments.
        graph: its trace.
        values: the native arrays of the arguments.
        out: what the replay gave.
        planned: replays a new plan of a graph on values, without some of the passes.
        passes: that the plan was made by.

    Returns:
        What was found, for a person to read.

    Raises:
        CompileError: they differ by more than rounding can explain.
    """
    need = sum(x.size * x.dtype.itemsize for x in graph.nodes() if x.op not in VIEWS)
    there = backend.available_memory(values[0] if values else None)
    if need > SHARE * there:
        return (
            f"not held against eager: its arrays would need {need / 1e9:.3g} GB, more than "
            f"{SHARE:.0%} of the {there / 1e9:.3g} GB there are"
        )
    with np.errstate(all="ignore"):
        result = f(*args)
        expected, got = natives(result), natives(out)
        found = excesses(expected, got)
        if max(found, default=0.0) <= 1:
            largest = max(found, default=0.0)
            return f"held against eager: the largest difference is {largest:.2g} of the tolerance"
        trial = None
        if FLOAT32 in {x.dtype for x in graph.nodes()}:
            trial = Trial(in_float64(graph), list(map(_widened, values)))
            if _largest(trial, planned, ()) <= 1:
                exact = [x.astype(a.dtype) for x, a in zip(trial.expected, expected, strict=True)]
                found, trial = list(map(min, found, excesses(exact, got))), None
        if trial is None and max(found) > 1:
            trial = Trial(graph, values, expected)
            found = list(map(min, found, trial.excesses(got)))
        if trial is None or max(found) <= 1:
            return "held against eager: they differ as far as rounding moves f at these arguments"
        guilty = [name for name in passes if _largest(trial, planned, (name,)) <= 1]
    paths = [path for path, x in tree.items(result) if x.__class__ is Array]
    worst = int(np.argmax(found))
    leaf = f"output {paths[worst]}" if paths[worst] else "the output"
    todo = "No one pass makes the difference. Run the function without compile"
    if guilty:
        todo = f"The pass {guilty[0]!r} makes the difference. Pass without={{{guilty[0]!r}}}"
    raise CompileError(
        f"{where}: {leaf} of the replay is not what the function gives run eagerly: they differ by "
        f"{found[worst]:.2g} times what rounding may make. {todo} (in mamlnp.parallel, "
        "compiled=False), and report it with the function."
    )
