"""2D navigation: a point that moves in the plane, whose task is a goal (Finn et al. 2017, 5.3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .simulations import Step

STEP = 0.1  # the farthest it moves along each axis
REACHED = 0.01  # done when this near the goal along both axes
GOALS = 0.5


def sample_tasks(count: int, rng: np.random.Generator) -> np.ndarray:
    """Goals (count, 2), uniform in [-0.5, 0.5]^2."""
    return rng.uniform(-GOALS, GOALS, (count, 2))


class Navigation:
    """N points: s <- s + 0.1 a with a in [-1, 1]^2, the reward is -|s - goal|, s is observed.

    Differs from the paper's text, which says the squared distance; this is its code's.

    Args:
        count: N.
        threads: not used.
    """

    observation_size, action_size, task_size, horizon = 2, 2, 2, 100

    def __init__(self, count: int, threads: int | None = None) -> None:
        self._positions = np.zeros((count, 2))
        self._goals = np.zeros((count, 2))

    def reset(
        self, tasks: np.ndarray | None = None, which: Any = None, *, rng: np.random.Generator
    ) -> np.ndarray:
        """Back to (0, 0)."""
        if tasks is not None:
            self._goals = np.array(tasks, np.float64)
        which = slice(None) if which is None else which
        self._positions[which] = 0
        return self._positions[which].astype(np.float32)

    def step(self, actions: np.ndarray, which: Any = None) -> Step:
        """One step of every point, or of some."""
        which = slice(None) if which is None else which
        broken = ~np.isfinite(actions).all(-1)
        moves = np.where(broken[:, None], 0, STEP * np.clip(actions, -1, 1))
        self._positions[which] += moves
        positions = self._positions[which]
        away = positions - self._goals[which]
        rewards = -np.sqrt((away**2).sum(-1))
        done = np.abs(away).max(-1) < REACHED
        return Step(positions.astype(np.float32), rewards.astype(np.float32), done, broken)
