"""Pictures of runs. Drawn off screen; written whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from .runs import METRICS, Run, atomic_write
from .tasks import Task

if TYPE_CHECKING:
    from .experiments.scores import Row

COLOURS = ("#d1495b", "#00798c", "#8d96a3", "#edae49", "#30638e", "#66a182")


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    yield figure
    with atomic_write(path) as partial:
        figure.savefig(partial)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _legend(figure: Figure, axes: Any, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def learning_curve(run: Run, columns: Sequence[str], label: str, *, log: bool = True) -> None:
    """``curve.png`` in the run's folder: columns of metrics.csv against meta-iterations."""
    with (run.path / METRICS).open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    if not table:
        return
    iterations = [int(row["iteration"]) for row in table]
    with _figure(run.path / "curve.png", 6.4, 4) as figure:
        axes = figure.subplots()
        for name, colour in zip(columns, COLOURS, strict=False):
            values = np.array([float(row[name]) for row in table])
            shown = name.replace("_", " ")
            axes.plot(iterations, values, label=shown, color=colour, marker=".", markersize=3)
        axes.set(xlabel="meta-iterations", ylabel=label, title=f"{run.experiment}: learning curve")
        if log:
            axes.set_yscale("log")
            top = 2 * max(float(table[0][name]) for name in columns)
            if any(not float(row[name]) < top for row in table for name in columns):
                axes.set_ylim(top=top)
                axes.set_title(f"{axes.get_title()} (spikes: a task diverged)")
        _plain(axes)
        _legend(figure, axes)


def error_against_steps(path: Path, table: Sequence[Row]) -> None:
    """Test error after each number of inner steps, a line a method, with the 95 % interval."""
    methods = list(dict.fromkeys(row.method for row in table))
    with _figure(path, 6.4, 4) as figure:
        axes = figure.subplots()
        for name, colour in zip(methods, COLOURS, strict=False):
            chosen = [row for row in table if row.method == name]
            steps = [row.steps for row in chosen]
            means = np.array([row.mean for row in chosen])
            spread = np.array([row.ci95 for row in chosen])
            if chosen[0].tasks == 1:
                axes.plot(steps, means, "o", markerfacecolor="none", color=colour, label=name)
                continue
            axes.plot(steps, means, color=colour, label=name)
            axes.fill_between(steps, means - spread, means + spread, color=colour, alpha=0.2)
        axes.set(
            xlabel="gradient steps on the support points",
            ylabel="mean squared error",
            title=f"{table[0].setting}: {table[0].tasks} test tasks, band: 95 % interval",
            ylim=(-0.1, None),
        )
        _plain(axes)
        _legend(figure, axes)


def sine_fits(path: Path, task: Task, curves: dict[str, np.ndarray]) -> None:
    """What each method predicts before adaptation and after 1 and 10 steps.

    Args:
        path: the picture.
        task: support points, and as query a grid of x with the true curve, each (T, N, 1).
        curves: by method, predictions on the grid after 0, 1, 2, ... steps, (steps + 1, T, N, 1).
    """
    tasks, last = len(task.query.x), len(next(iter(curves.values()))) - 1
    with _figure(path, 4 * tasks, 3 * len(curves)) as figure:
        panels = figure.subplots(len(curves), tasks, squeeze=False, sharex=True, sharey="col")
        for row, (name, predictions) in zip(panels, curves.items(), strict=True):
            for i, axes in enumerate(row):
                grid = task.query.x[i, :, 0]
                axes.plot(grid, task.query.y[i, :, 0], color="#222222", lw=1.2, label="truth")
                styles = ((0, ":", "#8d96a3"), (1, "--", "#edae49"), (last, "-", "#d1495b"))
                for steps, style, colour in styles:
                    label = "before" if not steps else f"{steps} step{'s' if steps > 1 else ''}"
                    axes.plot(grid, predictions[steps, i, :, 0], style, color=colour, label=label)
                support = task.support
                axes.plot(
                    support.x[i, :, 0], support.y[i, :, 0], "^", color="#7b2d8b", label="support"
                )
                axes.set_title(f"{name}, task {i + 1}", fontsize=10)
                _plain(axes)
        _legend(figure, panels[0][0], columns=5)
