"""The paper's environments, each as many simulations stepped at once.

:mod:`mamlnp.rl.gym` gives one simulation Gymnasium's interface.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import DataError, DtypeError, ShapeError
from . import locomotion, nav2d
from .simulations import Simulations, Step as Step


class Environment(NamedTuple):
    """Attributes:
    name: such as "ant-dir".
    make: (how many simulations, how many threads) -> :class:`Simulations`.
    sample_tasks: (how many, rng) -> tasks, float64 (n, task size).
    task_size: numbers in a task.
    bounds: the lowest and the highest of them that is drawn.
    spread_tasks: how many -> tasks that cover the distribution evenly, where it has few; None
        where it is drawn from.
    """

    name: str
    make: Callable[[int, int | None], Simulations]
    sample_tasks: Callable[[int, np.random.Generator], np.ndarray]
    task_size: int
    bounds: tuple[float, float]
    spread_tasks: Callable[[int], np.ndarray] | None = None

    def as_task(self, task: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """A user's task as the simulations take it, float64 (task size,); warns where it is farther
        out than any that is drawn.

        Raises:
            DtypeError: it is not made of numbers.
            ShapeError: they are too few or too many.
            DataError: one is NaN or infinite, or is none of those there are.
        """
        given = numbers(f"{self.name}: the task", task)
        if given.size != self.task_size:
            raise ShapeError(
                f"{self.name}: the task has shape {list(given.shape)}, not [{self.task_size}]. "
                f"Pass {self.task_size} number{'s' * (self.task_size > 1)}."
            )
        found = given.reshape(self.task_size)
        if self.spread_tasks is not None and found not in (few := self.spread_tasks(2)):
            names = " or ".join(f"{one:g}" for one in few[:, 0])
            raise DataError(f"{self.name}: the task is {found.item():g}. Pass {names}.")
        low, high = self.bounds
        if found.min() < low or found.max() > high:
            warnings.warn(
                f"{self.name}: the task {found.tolist()} is outside of [{low:g}, {high:g}], where "
                "tasks are drawn.",
                stacklevel=3,
            )
        return found


def numbers(where: str, given: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A user's numbers, float64.

    Raises:
        DtypeError: there is something else among them.
        DataError: one is NaN or infinite.
    """
    try:
        found = np.asarray(given)
        if found.dtype.kind not in "fiub":
            raise ValueError(f"{found.dtype}")
    except (ValueError, TypeError) as error:  # of lists of different lengths, too
        raise DtypeError(
            f"{where} is {given!r:.80}, which is not an array of numbers. Pass numbers."
        ) from error
    if not np.isfinite(found).all():
        raise DataError(f"{where} is {given!r:.80}. Pass finite numbers.")
    return found.astype(np.float64)


ENVIRONMENTS: dict[str, Environment] = {
    "nav2d": Environment(
        "nav2d", nav2d.Navigation, nav2d.sample_tasks, 2, (-nav2d.GOALS, nav2d.GOALS)
    ),
    **{
        (name := f"{robot}-{kind}"): Environment(
            name,
            functools.partial(locomotion.Locomotion, robot, goal),
            goal.sample,
            1,
            goal.bounds,
            goal.spread,
        )
        for (robot, kind), goal in locomotion.GOALS.items()
    },
}
