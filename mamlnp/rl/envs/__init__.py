"""The paper's environments, each as many simulations stepped at once.

:mod:`mamlnp.rl.gym` gives one simulation Gymnasium's interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import locomotion, nav2d
from .simulations import Simulations, Step as Step


class Environment(NamedTuple):
    """Attributes:
    make: (how many simulations, how many threads) -> :class:`Simulations`.
    sample_tasks: (how many, rng) -> tasks, float64 (n, task size).
    spread_tasks: how many -> tasks that cover the distribution evenly, where it has few; None
        where it is drawn from.
    """

    make: Callable[[int, int | None], Simulations]
    sample_tasks: Callable[[int, np.random.Generator], np.ndarray]
    spread_tasks: Callable[[int], np.ndarray] | None = None


ENVIRONMENTS: dict[str, Environment] = {
    "nav2d": Environment(nav2d.Navigation, nav2d.sample_tasks),
    **{
        f"{robot}-{goal}": Environment(make, sample, spread)
        for robot, goal, make, sample, spread in locomotion.environments()
    },
}
