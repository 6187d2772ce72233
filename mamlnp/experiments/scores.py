"""Scores over many tasks: means with their intervals, as rows and as a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import parallel
from ..array import Array
from ..backend import to_host
from ..meta import num_tasks
from ..ops.shape import stack
from ..ranks import Ranks
from ..tasks import Task

Score = Callable[[Any, Task], Any]


@dataclass(frozen=True)
class Row:
    """The score of one method after some inner steps, over test tasks.

    Attributes:
        setting: which tasks.
        method: what was adapted.
        steps: inner steps taken.
        mean: over tasks.
        ci95: half the width of the 95 % interval of the mean, 1.96 sigma / sqrt(tasks).
        tasks: how many.
        diverged: tasks whose score is not finite, or not within its bound.
        note: how it was adapted, where the method alone does not say it.
        median: over tasks; None in rows of what others printed.
    """

    setting: str
    method: str
    steps: int
    mean: float
    ci95: float
    tasks: int
    diverged: int = 0
    note: str = ""
    median: float | None = None


def adaptation_scores(
    path: Iterator[Any], score: Score, task: Task, *, steps: Collection[int]
) -> Array:
    """The score after each of some numbers of inner steps: (len(steps), T, ...).

    Args:
        path: the parameters after 0, 1, 2, ... of them, as of :func:`mamlnp.maml.inner_loop`.
        score: what is reported, (params, task) -> (T, ...).
        task: the tasks.
        steps: after how many inner steps, in increasing order.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a task that diverges is counted, not lost
        thetas = enumerate(itertools.islice(path, max(steps) + 1))
        return stack([score(theta, task) for taken, theta in thetas if taken in steps])


def scorer(
    scores: Callable[[Any, Task], Array],
    *,
    chunks: int | None = None,
    threads: int | None = None,
    compiled: bool = True,
    ranks: Ranks | None = None,
) -> Callable[[Any, Task], np.ndarray]:
    """A function like ``scores``, (params, task) -> (len(steps), T), in chunks over threads and
    over ranks (see parallel.py)."""
    of_chunks = parallel.over_tasks(
        scores, chunks=chunks, threads=threads, compiled=compiled, check=False
    )
    ranks = ranks or Ranks()

    def of_all(params: Any, task: Task) -> np.ndarray:
        shared = num_tasks(task) >= ranks.size
        here = ranks.part(task) if shared else task
        found = np.concatenate([to_host(part.value) for part in of_chunks(params, here)], axis=1)
        return np.concatenate(ranks.gathered(found), axis=1) if shared else found

    return of_all


def rows(
    setting: str, method: str, scores: np.ndarray, *, bound: float = 100.0, note: str = ""
) -> list[Row]:
    """One row for every number of steps, from 0; ``scores`` is (steps + 1, tasks).

    A task has diverged if its score's size is not below ``bound``.
    """
    out = []
    for steps, values in enumerate(scores.astype(np.float64)):
        with np.errstate(over="ignore", invalid="ignore"):
            mean, spread = float(values.mean()), float(values.std())
        out.append(
            Row(
                setting,
                method,
                steps,
                mean,
                1.96 * spread / math.sqrt(len(values)),
                len(values),
                int((~(np.abs(values) < bound)).sum()),
                note,
                float(np.median(np.where(np.isnan(values), np.inf, values))),
            )
        )
    return out


def as_records(table: list[Row]) -> list[dict[str, Any]]:
    """The rows for JSON, which knows no infinity: null instead."""
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in map(asdict, table)
    ]


def as_table(
    table: list[Row], columns: list[str], *, percent: bool = False, medians: bool = False
) -> str:
    """One line for every number of steps, one column for every method, for a terminal."""
    scale, digits = (100, 1) if percent else (1, 3)
    found = {(r.steps, r.method): r for r in table}
    widths = {name: max(26 if medians else 20, len(name) + 3) for name in columns}
    lines = [f"{'steps':>5}" + "".join(f"{name:>{widths[name]}}" for name in columns)]
    for steps in sorted({r.steps for r in table}):
        line = f"{steps:>5}"
        for name in columns:
            row = found.get((steps, name))
            text = "" if row is None else f"{_number(row.mean * scale, digits)}"
            if row is not None and row.tasks > 1:
                text += f" +- {_number(row.ci95 * scale, digits)}"
            if medians and row is not None and row.median is not None:
                text += f" ({_number(row.median * scale, digits)})"
            line += f"{text:>{widths[name]}}"
        lines.append(line)
    return "\n".join(lines)


def _number(x: float, digits: int) -> str:
    return f"{x:.{digits}f}" if abs(x) < 1e4 else f"{x:.1e}"
