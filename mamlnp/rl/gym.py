"""The environments one at a time, by Gymnasium's interface.

Importing this module registers them: mamlnp/Navigation2D-v0, mamlnp/CheetahVel-v0,
mamlnp/CheetahDir-v0, mamlnp/AntVel-v0 and mamlnp/AntDir-v0.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from ..errors import ShapeError
from .envs import ENVIRONMENTS, Environment, numbers

IDS = {
    "nav2d": "mamlnp/Navigation2D-v0",
    "cheetah-vel": "mamlnp/CheetahVel-v0",
    "cheetah-dir": "mamlnp/CheetahDir-v0",
    "ant-vel": "mamlnp/AntVel-v0",
    "ant-dir": "mamlnp/AntDir-v0",
}
SIZE = 480, 640  # of a picture, in pixels


class MetaEnv(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """One simulation of an environment, with a task that can be set.

    What follows ``reset(seed=s)`` depends on s alone, whatever was before: the task and the start
    are drawn from generators of their own. A task that was set stays, and one that was drawn stays
    until a ``reset`` with a seed. Copies, pickled ones too, go on by themselves.

    Args:
        name: of the environment, such as "ant-dir".
        render_mode: "rgb_array", of the robots only.

    >>> env = gymnasium.make("mamlnp/Navigation2D-v0").unwrapped
    >>> env.set_task(env.sample_tasks(3, seed=0)[0])
    >>> observation, info = env.reset(seed=0)
    >>> observation, info["task"].round(2)
    (array([0., 0.], dtype=float32), array([ 0.14, -0.23]))
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, name: str, render_mode: str | None = None) -> None:
        self.name, self.render_mode = name, render_mode
        self._simulation = self._environment.make(1, 1)
        self._task: npt.NDArray[np.float64] | None = None
        self._set = False  # whether the task was, or else drawn
        self._renderer: Any = None
        seen, acts = self._simulation.observation_size, self._simulation.action_size
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (seen,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (acts,), np.float32)

    @property
    def _environment(self) -> Environment:
        return ENVIRONMENTS[self.name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renderer": None}  # a copy draws with one of its own

    def __copy__(self) -> MetaEnv:
        return copy.deepcopy(self)  # one simulation under two names would be stepped by both

    def sample_tasks(self, count: int, *, seed: int | None = None) -> npt.NDArray[np.float64]:
        """Tasks of the environment's distribution, (count, task size)."""
        rng = self.np_random if seed is None else np.random.default_rng(seed)
        return self._environment.sample_tasks(count, rng)

    def set_task(self, task: npt.ArrayLike) -> None:
        """From the next ``reset`` on, reward for this task: (task size,).

        Raises:
            DtypeError, ShapeError, DataError: it is none of the environment's.
        """
        self._task, self._set = self._environment.as_task(task), True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; ``options={"task": ...}`` sets the task first, unless it is None."""
        super().reset(seed=seed)
        if options and options.get("task") is not None:
            self.set_task(options["task"])
        if self._task is None or (seed is not None and not self._set):
            (of_tasks,) = self.np_random.spawn(1)  # the start is the same with a task that is set
            self._task = self._environment.sample_tasks(1, of_tasks)[0]
        (observation,) = self._simulation.reset(self._task[None], rng=self.np_random)
        return observation, {"task": self._task.copy()}

    def step(
        self, action: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step. The time limit is Gymnasium's, as registered: the environment's horizon.

        Raises:
            DtypeError, DataError: the action is not made of finite numbers.
            ShapeError: it is of another shape than the action space.
            gymnasium.error.ResetNeeded: no episode was begun.
        """
        if self._task is None:
            raise gymnasium.error.ResetNeeded(f"{self.name}: call reset before step.")
        where = f"{self.name}: the action"
        acts, given = self.action_space.shape, numbers(where, action)
        if given.shape != acts:
            raise ShapeError(
                f"{where} has shape {given.shape}, not {acts}. Pass one number a joint or axis."
            )
        step = self._simulation.step(given.astype(np.float32)[None])
        over = bool(step.done[0] | step.broken[0])
        info = {"broken": bool(step.broken[0])}
        return step.observations[0], float(step.rewards[0]), over, False, info

    def render(self) -> Any:
        """A picture, uint8 (480, 640, 3); None without a render mode."""
        if self.render_mode is None:
            return None
        from .envs.locomotion import Camera, Locomotion

        if not isinstance(self._simulation, Locomotion):
            raise NotImplementedError(f"{self.name}: has no body to draw. Use render_mode=None.")
        if self._renderer is None:
            self._renderer = Camera(self._simulation.model, *SIZE)
        return self._renderer.picture(self._simulation.batch.get_data(0))

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


for _name, _id in IDS.items():
    gymnasium.register(
        _id,
        entry_point="mamlnp.rl.gym:MetaEnv",
        kwargs={"name": _name},
        max_episode_steps=100 if _name == "nav2d" else 200,
    )
