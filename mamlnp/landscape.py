"""The loss after adaptation around theta, in the plane of the two meta-gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import tree
from .array import Array, array
from .autodiff import dot
from .backend import to_host
from .compile import compile
from .meta import Algorithm, Gradient, num_tasks, per_task, task_losses
from .tasks import Task

GRID = 41


class Landscape(NamedTuple):
    """Attributes:
    along, across: coordinates of the grid, in the parameters' units: along the second-order
        descent direction, and across it towards the first-order one.
    losses: mean query loss after adaptation, (across, along).
    before: the same without adaptation.
    second, first: where unit steps down the two meta-gradients end, (along, across).
    slopes: what a unit step down each takes from the loss, by the true gradient: second, first.
    cosine: of the angle between them.
    """

    along: np.ndarray
    across: np.ndarray
    losses: np.ndarray
    before: np.ndarray
    second: np.ndarray
    first: np.ndarray
    slopes: tuple[float, float]
    cosine: float


def around(
    algorithm: Algorithm,
    params: Any,
    task: Task,
    *,
    beside: Gradient,
    radius: float,
    points: int = GRID,
) -> Landscape:
    """The landscape of theta -> mean over tasks of L_i(theta_i').

    Args:
        algorithm: MAML, whose meta is theta.
        params: theta, at the origin.
        task: the tasks.
        beside: the other gradient in the plane, such as first order's.
        radius: how far to look, as a distance in parameter space.
        points: along each side of the grid.
    """
    tasks = num_tasks(task)

    def descent(gradient: Gradient) -> Any:
        return tree.map(lambda g: g * (-1.0 / tasks), gradient(params, task)[1])

    down = [descent(gradient) for gradient in (algorithm.gradient, beside)]
    second, first = down
    lengths = [float(np.sqrt(dot(d, d).item())) for d in down]
    cosine = dot(second, first).item() / (lengths[0] * lengths[1])
    along = tree.map(lambda d: d * (1 / lengths[0]), second)
    rest = tree.map(lambda f, a: f * (1 / lengths[1]) - a * cosine, first, along)
    height = float(np.sqrt(dot(rest, rest).item()))
    across = tree.map(lambda r: r * (1 / max(height, 1e-12)), rest)

    def moved(a: Array, b: Array) -> Any:
        return tree.map(lambda p, x, y: p + a * x + b * y, params, along, across)

    def after(a: Array, b: Array) -> Array:
        adapted = algorithm.adapt(moved(a, b), task.support)
        return task_losses(algorithm.loss, adapted, task.query).mean()

    def unadapted(a: Array, b: Array) -> Array:
        return task_losses(algorithm.loss, per_task(moved(a, b), tasks), task.query).mean()

    grid = np.linspace(-radius, radius, points)
    dtype = to_host(tree.leaves(params)[0].value).dtype

    def surface(f: Any) -> np.ndarray:
        replayed = compile(f)
        with np.errstate(all="ignore"):
            return np.array(
                [
                    [replayed(array(a.astype(dtype)), array(b.astype(dtype))).item() for a in grid]
                    for b in grid
                ]
            )

    return Landscape(
        grid,
        grid,
        surface(after),
        surface(unadapted),
        np.array([1.0, 0.0]),
        np.array([cosine, height]),
        (lengths[0], lengths[0] * cosine),
        cosine,
    )
