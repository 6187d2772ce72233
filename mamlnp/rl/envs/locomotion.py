"""The planar cheetah and the 3D quadruped (ant), with a goal velocity or a goal direction.

The bodies are those of Gymnasium's XML files, set as the paper's authors had them: their time
steps, one simulator step an action, forward dynamics once more after it, so that every observation
belongs to the new state. Returns therefore do not compare with those of Gymnasium's environments.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...backend.machine import cores
from ...errors import DeviceError, MissingPackageError
from .simulations import Step

CONTROL_COST = {"cheetah": 0.05, "ant": 0.005}
CONTACT_COST = 0.0005
ALIVE = 0.05  # the ant's reward for not having fallen
HEIGHTS = 0.2, 1.0  # of the ant's torso; beyond them it fell
STARTS = {"cheetah": (0,) * 9, "ant": (0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1)}
NOISE = 0.01, 0.1  # standard deviations of positions and velocities at the start


@dataclass(frozen=True)
class Goal:
    """A distribution of tasks, one number each.

    Attributes:
        sample: (how many, rng) -> tasks (n, 1).
        bounds: the lowest and the highest of them.
        reward: (velocity along x (N,), tasks (N,)) -> the reward for it.
        spread: how many -> every task equally often, where there are few.
    """

    sample: Callable[[int, np.random.Generator], np.ndarray]
    bounds: tuple[float, float]
    reward: Callable[[np.ndarray, np.ndarray], np.ndarray]
    spread: Callable[[int], np.ndarray] | None = None


# Functions of the module, and no lambdas: simulations are copied and pickled.


def _velocities(count: int, rng: np.random.Generator, highest: float) -> np.ndarray:
    return rng.uniform(0, highest, (count, 1))


def _directions(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice([-1.0, 1.0], (count, 1))


def _both_directions(count: int) -> np.ndarray:
    return np.resize([1.0, -1.0], (count, 1))


def _forward(velocity: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return direction * velocity


def _nearness(velocity: np.ndarray, goal: np.ndarray, best: float) -> np.ndarray:
    return best - np.abs(velocity - goal)


def _velocity(highest: float, best: float) -> Goal:
    sample = functools.partial(_velocities, highest=highest)
    return Goal(sample, (0.0, highest), functools.partial(_nearness, best=best))


_DIRECTION = Goal(_directions, (-1.0, 1.0), _forward, _both_directions)
GOALS: dict[tuple[str, str], Goal] = {
    ("cheetah", "vel"): _velocity(2.0, best=0.0),
    ("cheetah", "dir"): _DIRECTION,
    ("ant", "vel"): _velocity(3.0, best=1.0),
    ("ant", "dir"): _DIRECTION,
}


def _mujoco() -> Any:
    """The simulator; it chooses what to draw with as it is first imported.

    Raises:
        MissingPackageError: it is not installed.
        DeviceError: what MUJOCO_GL asks it to draw with is not there.
    """
    if "DISPLAY" not in os.environ:  # no screen: nothing to open a window on
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except ImportError as error:
        raise MissingPackageError(
            "mujoco: is needed by the cheetah and the ant, and is not installed. "
            "Run: pip install 'mujoco>=4.0' 'gymnasium>=1.0'"
        ) from error
    except Exception as error:  # whatever the graphics libraries raise
        raise DeviceError(
            f"MUJOCO_GL={os.environ.get('MUJOCO_GL')}: mujoco does not start with it ({error}). "
            "Set it to egl, or to disable, with which everything but render works."
        ) from error
    return mujoco


def physics(robot: str) -> Any:
    """The authors' cheetah or ant as a MuJoCo model, whose only keyframe is how episodes start.

    Raises:
        MissingPackageError: mujoco or gymnasium is not installed.
    """
    mujoco = _mujoco()
    gymnasium = importlib.util.find_spec("gymnasium")
    if gymnasium is None or gymnasium.origin is None:
        raise MissingPackageError(
            "gymnasium: its model files are needed by the cheetah and the ant, and it is not "
            "installed. Run: pip install 'gymnasium>=1.0'"
        )
    name = {"cheetah": "half_cheetah", "ant": "ant"}[robot]
    assets = Path(gymnasium.origin).parent / "envs" / "mujoco" / "assets"
    spec = mujoco.MjSpec.from_file(str(assets / f"{name}.xml"))
    kinds, torso = mujoco.mjtSensor, {"objtype": mujoco.mjtObj.mjOBJ_BODY, "objname": "torso"}
    # The simulator computes what a sensor asks for: the velocity of the whole body, and, with an
    # acceleration, the contact forces.
    spec.add_sensor(type=kinds.mjSENS_SUBTREELINVEL, **torso)
    if robot == "ant":
        spec.add_sensor(type=kinds.mjSENS_FRAMELINACC, **torso)
        spec.option.timestep = 0.02
        for geom in spec.geoms:
            geom.solref[:] = 0.02, 1
            geom.solimp[:3] = 0.8, 0.8, 0.01
    # Not qpos0: from there the joints measure their angles.
    spec.add_key(name="start", qpos=STARTS[robot])
    mass = spec.compiler.settotalmass
    spec.compiler.settotalmass = -1  # deprecated there; the same by hand below
    model = spec.compile()
    if mass > 0:
        mujoco.mj_setTotalmass(model, mass)
        mujoco.mj_setConst(model, mujoco.MjData(model))  # what depends on masses
    return model


class Locomotion:
    """N simulations of a robot.

    The cheetah observes (20) all positions but x, all velocities, and its centre of mass; its
    reward is that of the goal less 0.05 |a|^2, and it is never done. The ant observes (125) all
    positions (15) and velocities (14), the contact forces on every part within [-1, 1] (84), the
    orientation of its torso (9) and its centre of mass (3); its reward is that of the goal less
    0.005 |a|^2 and 0.0005 |contact forces|^2, plus 0.05, and it is done when its torso is lower
    than 0.2 or higher than 1. Velocities in rewards are those of the whole body's centre of mass.

    Args:
        robot: "cheetah" or "ant".
        goal: what is rewarded.
        count: N.
        threads: over which simulations are stepped; as many as there are cores if not given. The
            results are the same for any number.
    """

    task_size, horizon = 1, 200

    def __init__(self, robot: str, goal: Goal, count: int, threads: int | None = None) -> None:
        self._made_of = robot, goal, count, threads
        self.model = physics(robot)
        mujoco = _mujoco()
        from mujoco.batch import Batch

        self._ant = robot == "ant"
        self._goal, self._cost = goal, CONTROL_COST[robot]
        self._after = mujoco.mjtStage.mjSTAGE_ACC.value  # mj_forward after every step
        self._none = mujoco.mjtStage.mjSTAGE_NONE.value
        self.batch = Batch(self.model, count, threads or cores(), persistent=True)
        torso = self.model.body("torso").id
        bound = self.batch.bind
        self._qpos, self._qvel, self._ctrl = bound("qpos"), bound("qvel"), bound("ctrl")
        self._com = bound("subtree_com")[:, torso]
        self._velocity = bound("subtree_linvel")[:, torso, 0]
        if self._ant:
            self._forces = bound("cfrc_ext").reshape(count, -1)
            self._frame = bound("xmat")[:, torso]
        self._warnings = self.batch.warning[..., 1]
        self._tasks = np.zeros(count)
        self.observation_size = self._observed(slice(None)).shape[1]
        self.action_size: int = self.model.nu

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: MuJoCo's own objects can neither be copied nor pickled."""
        return {
            "made_of": self._made_of,
            "tasks": self._tasks.copy(),
            "state": self.batch.state.copy(),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(*saved["made_of"])  # type: ignore[misc]
        self._tasks = saved["tasks"].copy()
        self.batch.state[:] = saved["state"]
        self.batch.forward()  # what follows from the state, such as contact forces
        self.batch.state[:] = saved["state"]  # with what its solver begins from

    def _observed(self, which: Any) -> np.ndarray:
        positions, velocities, com = self._qpos[which], self._qvel[which], self._com[which]
        parts = [positions[:, 1:], velocities, com]
        if self._ant:
            parts = [positions, velocities, self._contact(which), self._frame[which], com]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def _contact(self, which: Any) -> np.ndarray:
        return np.clip(self._forces[which], -1, 1)

    def reset(
        self, tasks: np.ndarray | None = None, which: Any = None, *, rng: np.random.Generator
    ) -> np.ndarray:
        """Back to the start, up to noise in positions and velocities."""
        if tasks is not None:
            self._tasks = np.array(tasks, np.float64)[:, 0]
        chosen = np.arange(self.batch.nsim) if which is None else which
        self.batch.reset(chosen, keyframe=0, stage=self._none)
        positions, velocities = (
            std * rng.standard_normal((len(chosen), size))
            for std, size in zip(NOISE, (self.model.nq, self.model.nv), strict=True)
        )
        self._qpos[chosen] += positions
        self._qvel[chosen] += velocities
        self.batch.forward(chosen)
        return self._observed(chosen)

    def step(self, actions: np.ndarray, which: Any = None) -> Step:
        """One simulator step of every robot, or of some."""
        chosen = slice(None) if which is None else which
        broken = ~np.isfinite(actions).all(-1)
        torques = np.where(broken[:, None], 0, np.clip(actions, -1, 1)).astype(np.float64)
        warned = self._warnings[chosen].sum(-1)
        self._ctrl[chosen] = torques
        self.batch.step(which, stage=self._after)
        broken |= self._warnings[chosen].sum(-1) != warned  # the simulator began anew by itself
        rewards = self._goal.reward(self._velocity[chosen], self._tasks[chosen])
        rewards = rewards - self._cost * (torques**2).sum(-1)
        observations = self._observed(chosen)
        done = np.zeros(len(actions), bool)
        if self._ant:
            contact = self._contact(chosen)
            rewards = rewards - CONTACT_COST * (contact**2).sum(-1) + ALIVE
            height = self._qpos[chosen, 2]
            done = ~((HEIGHTS[0] <= height) & (height <= HEIGHTS[1]))
        broken |= ~np.isfinite(observations).all(-1)
        return Step(observations, rewards.astype(np.float32), done, broken)


class Camera:
    """Draws a robot off screen, followed from the side.

    Args:
        model: the robot's.
        height, width: of a picture, in pixels.

    Raises:
        DeviceError: MuJoCo finds neither a GPU's nor a software renderer.
    """

    def __init__(self, model: Any, height: int, width: int) -> None:
        try:
            self._renderer = _mujoco().Renderer(model, height, width)
        except Exception as error:  # whatever the graphics libraries raise
            raise DeviceError(
                f"render: there is nothing to draw with ({error}). Install Mesa's EGL or OSMesa "
                "libraries and set MUJOCO_GL to egl or osmesa."
            ) from error

    def picture(self, data: Any) -> np.ndarray:
        """uint8 (height, width, 3) of a state."""
        self._renderer.update_scene(data, camera="track")
        return self._renderer.render()

    def close(self) -> None:
        """Free the graphics memory."""
        self._renderer.close()
