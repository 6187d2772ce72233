"""What an environment is: many simulations stepped at once, each with a task of its own."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np


class Step(NamedTuple):
    """What a step of N simulations gives.

    Attributes:
        observations: after the step, float32 (N, observation size).
        rewards: float32 (N,).
        done: whether the episode ended here, by the environment's own rule, (N,).
        broken: whether the simulator left the finite numbers, (N,): the step counts for nothing.
    """

    observations: np.ndarray
    rewards: np.ndarray
    done: np.ndarray
    broken: np.ndarray


class Simulations(Protocol):
    """N simulations of one environment.

    Attributes:
        observation_size, action_size, task_size: numbers in each.
        horizon: steps after which an episode is cut off.
    """

    observation_size: int
    action_size: int
    task_size: int
    horizon: int

    def reset(
        self, tasks: np.ndarray | None = None, which: Any = None, *, rng: np.random.Generator
    ) -> np.ndarray:
        """Begin episodes anew; float32 observations of those that did.

        Args:
            tasks: (N, task size), kept if not given.
            which: indices of the simulations; all if not given.
            rng: of the initial states.
        """
        ...

    def step(self, actions: np.ndarray, which: Any = None) -> Step:
        """One step.

        Args:
            actions: (N, action size); [-1, 1] is what the bodies can do, and what is beyond is
                clipped.
            which: indices of the simulations that take one, N of them; all if not given.
        """
        ...
