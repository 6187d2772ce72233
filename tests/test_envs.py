"""The environments: physics bit for bit, rewards by hand, ends, seeds, Gymnasium's interface."""

import copy
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mamlnp.errors import DataError, DtypeError, MissingPackageError, ShapeError
from mamlnp.rl.envs import ENVIRONMENTS, locomotion
from mamlnp.rl.gym import IDS

ROBOTS = [name for name in ENVIRONMENTS if name != "nav2d"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def started(name: str, count: int = 3, threads: int = 2) -> tuple[Any, np.ndarray, np.ndarray]:
    """Simulations, their tasks, and what they observe first."""
    environment = ENVIRONMENTS[name]
    simulations = environment.make(count, threads)
    tasks = environment.sample_tasks(count, rng(1))
    return simulations, tasks, simulations.reset(tasks, rng=rng(2))


# ---- physics


@pytest.mark.parametrize("name", ["cheetah-dir", "ant-vel"])
def test_physics_is_a_step_and_then_forward_dynamics_bit_for_bit(name: str) -> None:
    simulations, _, _ = started(name)
    model, batch = simulations.model, simulations.batch
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = batch.qpos[1], batch.qvel[1]
    mujoco.mj_forward(model, data)
    torso = model.body("torso").id
    for n in range(60):
        actions = rng(n).uniform(-1.5, 1.5, (3, model.nu))
        step = simulations.step(actions)
        data.ctrl[:] = np.clip(actions[1], -1, 1)
        mujoco.mj_step(model, data)
        mujoco.mj_forward(model, data)
        np.testing.assert_array_equal(batch.qpos[1], data.qpos)
        np.testing.assert_array_equal(batch.qvel[1], data.qvel)
        parts = [data.qpos[1:], data.qvel, data.subtree_com[torso]]
        if name.startswith("ant"):
            mujoco.mj_rnePostConstraint(model, data)
            contact = np.clip(data.cfrc_ext, -1, 1).ravel()
            parts = [data.qpos, data.qvel, contact, data.xmat[torso], data.subtree_com[torso]]
        expected = np.concatenate(parts).astype(np.float32)
        np.testing.assert_array_equal(step.observations[1], expected)


def test_the_bodies_are_the_authors() -> None:
    cheetah, ant = locomotion.physics("cheetah"), locomotion.physics("ant")
    assert cheetah.opt.timestep == 0.01 and ant.opt.timestep == 0.02
    assert cheetah.body_mass.sum() == pytest.approx(14)
    assert sorted(cheetah.actuator_gear[:, 0]) == [30, 60, 60, 90, 120, 120]
    assert ant.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    assert set(ant.actuator_gear[:, 0] * ant.actuator_ctrlrange[:, 1]) == {150}
    assert (ant.geom_solref == [0.02, 1]).all() and (
        ant.geom_solimp[:, :3] == [0.8, 0.8, 0.01]
    ).all()


ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


@pytest.mark.parametrize("robot", ["cheetah", "ant"])
@pytest.mark.filterwarnings("ignore:.*settotalmass")
def test_only_what_is_meant_to_differs_from_the_model_files(robot: str) -> None:
    ours, name = locomotion.physics(robot), {"cheetah": "half_cheetah", "ant": "ant"}[robot]
    theirs = mujoco.MjModel.from_xml_path(str(ASSETS / f"{name}.xml"))
    meant = {"geom_solref", "geom_solimp"} if robot == "ant" else set()
    for field in dir(ours):
        if not field.startswith(("body_", "dof_", "jnt_", "geom_", "actuator_", "qpos", "tendon_")):
            continue
        a, b = getattr(ours, field), getattr(theirs, field)
        if isinstance(a, np.ndarray) and field not in meant:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=field)


@pytest.mark.parametrize("name", ["cheetah-vel", "ant-vel"])
def test_centre_of_mass_and_its_velocity_are_those_of_all_parts(name: str) -> None:
    """By their definitions, from every part's own mass, place and speed."""
    simulations, _, _ = started(name)
    model = simulations.model
    for n in range(30):
        simulations.step(rng(n).uniform(-1, 1, (3, model.nu)))
    data, mass = simulations.batch.get_data(1), model.body_mass[1:]
    com, momentum = mass @ data.xipos[1:], np.zeros(3)
    for body in range(1, model.nbody):
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, body, velocity, 0)
        momentum += model.body_mass[body] * velocity[3:]
    np.testing.assert_allclose(simulations._com[1], com / mass.sum(), atol=1e-9)
    assert simulations._velocity[1] == pytest.approx(momentum[0] / mass.sum(), abs=1e-9)


def test_an_ant_starts_on_its_feet() -> None:
    simulations, _, _ = started("ant-dir", 50)
    data = simulations.batch.get_data(0)
    feet = [g for g in range(simulations.model.ngeom) if "ankle" in simulations.model.geom(g).name]
    for foot in feet:
        half = simulations.model.geom_size[foot, 1] * data.geom_xmat[foot, 8]
        ends = data.geom_xpos[foot, 2] + half * np.array([1, -1])
        assert 0.0 < ends.min() < 0.12 and ends.max() > 0.4
    assert len(feet) == 4 and abs(simulations.batch.qpos[:, 2].mean() - 0.55) < 0.01
    for _ in range(50):  # it stands there if it does nothing
        step = simulations.step(np.zeros((50, 8)))
    assert not step.done.any() and simulations.batch.qpos[:, 2].mean() > 0.4


def test_no_warning_at_load(recwarn: pytest.WarningsRecorder, capfd: Any) -> None:
    locomotion.physics("cheetah")
    assert not recwarn.list and not capfd.readouterr().err


@pytest.mark.parametrize(("name", "size"), [("nav2d", 2), ("cheetah-vel", 20), ("ant-dir", 125)])
def test_sizes_of_observations(name: str, size: int) -> None:
    simulations, _, seen = started(name)
    assert seen.shape == (3, size) == (3, simulations.observation_size)
    assert seen.dtype == np.float32


def test_contact_forces_are_alive() -> None:
    simulations, _, _ = started("ant-dir")
    touched = np.zeros(84, bool)
    for n in range(40):
        step = simulations.step(rng(n).uniform(-1, 1, (3, 8)))
        contact = step.observations[:, 29:113]
        assert (np.abs(contact) <= 1).all()
        touched |= (contact != 0).any(0)
    assert touched.sum() > 20


# ---- rewards and ends


def test_reward_of_navigation() -> None:
    simulations = ENVIRONMENTS["nav2d"].make(2, None)
    simulations.reset(np.array([[0.3, 0.4], [0.1, 0.0]]), rng=rng())
    step = simulations.step(np.array([[0.0, 0.0], [5.0, 0.0]]))
    np.testing.assert_allclose(step.rewards, [-0.5, 0.0], atol=1e-7)
    np.testing.assert_array_equal(step.observations, np.float32([[0, 0], [0.1, 0]]))
    assert step.done.tolist() == [False, True]


@pytest.mark.parametrize("name", ROBOTS)
def test_rewards_of_the_robots_by_hand(name: str) -> None:
    simulations, tasks, _ = started(name)
    torso = simulations.model.body("torso").id
    for n in range(5):
        actions = rng(n).uniform(-2, 2, (3, simulations.action_size))
        step = simulations.step(actions)
        for i in range(3):
            data = simulations.batch.get_data(i)
            v, goal = data.subtree_linvel[torso][0], tasks[i, 0]
            cost = (np.clip(actions[i], -1, 1) ** 2).sum()
            expected = goal * v if name.endswith("dir") else -abs(v - goal)
            if name.startswith("cheetah"):
                expected -= 0.05 * cost
            else:
                contact = (np.clip(data.cfrc_ext, -1, 1) ** 2).sum()
                expected += -0.005 * cost - 0.0005 * contact + 0.05 + name.endswith("vel")
            assert step.rewards[i] == pytest.approx(expected, abs=1e-5)


def test_an_ant_that_falls_or_flies_is_done() -> None:
    simulations, _, _ = started("ant-dir")
    simulations.batch.qpos[:, 2] = [0.1, 0.5, 1.6]
    assert simulations.step(np.zeros((3, 8))).done.tolist() == [True, False, True]


def test_a_cheetah_is_never_done() -> None:
    simulations, _, _ = started("cheetah-dir")
    simulations.batch.qpos[:, 2] = 2.0  # on its head
    assert not simulations.step(np.zeros((3, 6))).done.any()


# ---- what goes wrong


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_action_that_is_no_number_breaks_only_its_own_simulation(name: str) -> None:
    simulations, _, _ = started(name)
    actions = np.zeros((3, simulations.action_size))
    actions[1, 0] = np.nan
    step = simulations.step(actions)
    assert step.broken.tolist() == [False, True, False]
    assert np.isfinite(step.observations).all() and np.isfinite(step.rewards[[0, 2]]).all()


def test_unstable_physics_is_seen(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    simulations, _, _ = started("cheetah-dir")
    simulations.batch.qvel[1] = 1e12
    assert simulations.step(np.zeros((3, 6))).broken.tolist() == [False, True, False]
    simulations.reset(which=[1], rng=rng())
    assert not simulations.step(np.zeros((3, 6))).broken.any()


@pytest.mark.parametrize("package", ["mujoco", "gymnasium"])
def test_a_missing_package_is_named_with_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if package == "gymnasium":
        monkeypatch.setattr(locomotion.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=rf"^{package}: .*pip install '"):
        locomotion.physics("ant")


# ---- seeds


@pytest.mark.parametrize("name", ["cheetah-vel", "ant-dir"])
def test_the_same_seed_gives_the_same_episode_on_any_number_of_threads(name: str) -> None:
    def episode(threads: int) -> list[np.ndarray]:
        simulations, _, seen = started(name, 5, threads)
        acts = [rng(n).uniform(-1, 1, (5, simulations.action_size)) for n in range(20)]
        return [seen, *(simulations.step(a).observations for a in acts)]

    for a, b in zip(episode(1), episode(2), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(started(name)[2][0], started(name)[2][1])


@pytest.mark.parametrize("name", ROBOTS)
def test_an_episode_begins_with_the_authors_noise(name: str) -> None:
    simulations, _, _ = started(name, 400)
    positions = simulations.batch.qpos - simulations.model.key_qpos[0]
    assert positions.std() == pytest.approx(0.01, rel=0.05)
    assert simulations.batch.qvel.std() == pytest.approx(0.1, rel=0.05)


def test_some_can_begin_anew_while_others_go_on() -> None:
    simulations, _, _ = started("ant-dir")
    for n in range(10):
        simulations.step(rng(n).uniform(-1, 1, (3, 8)))
    before = simulations.batch.qpos.copy()
    seen = simulations.reset(which=np.array([0, 2]), rng=rng())
    assert seen.shape == (2, 125)
    np.testing.assert_array_equal(simulations.batch.qpos[1], before[1])
    assert abs(simulations.batch.qpos[0, 2] - 0.55) < 0.05


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_some_can_step_while_others_wait(name: str) -> None:
    all_of_them, some_of_them = (started(name)[0] for _ in range(2))
    which = np.array([0, 2])
    for n in range(10):
        actions = rng(n).uniform(-1, 1, (3, all_of_them.action_size))
        whole, part = all_of_them.step(actions), some_of_them.step(actions[which], which)
        for a, b in zip(whole, part, strict=True):
            np.testing.assert_array_equal(a[which], b)
    one = some_of_them.step(np.zeros((1, all_of_them.action_size)), np.array([1]))
    first = started(name)[0].step(np.zeros((3, all_of_them.action_size)))
    np.testing.assert_array_equal(one.observations[0], first.observations[1])


def test_tasks_differ_and_stay_in_their_range() -> None:
    ranges = {"nav2d": (-0.5, 0.5), "cheetah-vel": (0, 2), "ant-vel": (0, 3)}
    for name, (low, high) in ranges.items():
        tasks = ENVIRONMENTS[name].sample_tasks(500, rng())
        assert low <= tasks.min() < tasks.max() <= high
        assert np.ptp(tasks) > 0.9 * (high - low) and len(np.unique(tasks[:, 0])) == 500
    for name in ("cheetah-dir", "ant-dir"):
        drawn = ENVIRONMENTS[name].sample_tasks(500, rng())
        assert set(drawn.ravel()) == {-1, 1} and abs(drawn.mean()) < 0.2
        spread = ENVIRONMENTS[name].spread_tasks
        assert spread is not None and spread(200).sum() == 0


# ---- Gymnasium


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_accepts_it(name: str) -> None:
    env = gymnasium.make(IDS[name])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Box observation space .* value is", UserWarning)
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", IDS)
def test_one_at_a_time_is_the_same_environment(name: str) -> None:
    env: Any = gymnasium.make(IDS[name]).unwrapped
    simulations = ENVIRONMENTS[name].make(1, 1)
    (task,) = env.sample_tasks(1, seed=3)
    env.set_task(task)
    seen, info = env.reset(seed=5)
    np.testing.assert_array_equal(info["task"], task)
    np.testing.assert_array_equal(seen, simulations.reset(task[None], rng=rng(5))[0])
    for n in range(5):
        action = rng(n).uniform(-1, 1, simulations.action_size).astype(np.float32)
        observation, reward, over, cut, _ = env.step(action)
        step = simulations.step(action[None])
        np.testing.assert_array_equal(observation, step.observations[0])
        assert (reward, over, cut) == (step.rewards[0], step.done[0], False)


def test_the_horizon_is_gymnasiums_time_limit() -> None:
    env = gymnasium.make(IDS["cheetah-vel"])
    env.reset(seed=0)
    steps = [env.step(np.zeros(6, np.float32)) for _ in range(200)]
    assert [cut for _, _, _, cut, _ in steps] == [False] * 199 + [True]


def test_a_task_can_be_set_at_reset() -> None:
    env: Any = gymnasium.make(IDS["ant-vel"])
    assert env.reset(seed=0, options={"task": [2.5]})[1]["task"] == [2.5]
    assert env.reset()[1]["task"] == [2.5]


@pytest.mark.parametrize("name", IDS)
def test_what_a_seed_gives_does_not_depend_on_what_was_before(name: str) -> None:
    def begun(env: Any) -> tuple[np.ndarray, ...]:
        seen, info = env.reset(seed=3)
        action = np.full(env.action_space.shape, 0.3, np.float32)
        return seen, info["task"], *(env.step(action)[0] for _ in range(3)), env.reset()[0]

    used, new = gymnasium.make(IDS[name]), gymnasium.make(IDS[name])
    expected = begun(new)
    used.reset(seed=1)
    for n in range(30):
        used.step(rng(n).uniform(-1, 1, used.action_space.shape).astype(np.float32))
    used.unwrapped.sample_tasks(5)  # type: ignore[attr-defined]
    for env in (used, new, used):
        for a, b in zip(begun(env), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", IDS)
def test_environments_side_by_side_are_each_seeded_by_itself(name: str) -> None:
    several = gymnasium.make_vec(IDS[name], num_envs=2, vectorization_mode="sync")
    several.reset(seed=8)
    several.step(several.action_space.sample())
    seen, info = several.reset(seed=3)
    for n in range(2):
        one, of_one = gymnasium.make(IDS[name]).reset(seed=3 + n)
        np.testing.assert_array_equal(seen[n], one)
        np.testing.assert_array_equal(info["task"][n], of_one["task"])


def test_a_task_drawn_is_kept_until_a_seed_and_one_set_for_good() -> None:
    env: Any = gymnasium.make(IDS["cheetah-vel"])
    drawn = env.reset(seed=3)[1]["task"]
    assert env.reset()[1]["task"] == drawn
    assert env.reset(options={"task": None})[1]["task"] == drawn
    assert env.reset(seed=4)[1]["task"] != drawn
    start = env.reset(seed=3)[0]
    env.unwrapped.set_task([0.5])
    seen, info = env.reset(seed=3)
    assert info["task"] == [0.5]
    np.testing.assert_array_equal(seen, start)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("name", IDS)
def test_a_copy_goes_on_by_itself(name: str, copied: Callable[[Any], Any]) -> None:
    env: Any = gymnasium.make(IDS[name]).unwrapped
    actions = rng(1).uniform(-1, 1, (40, *env.action_space.shape)).astype(np.float32)
    env.reset(seed=3)
    for action in actions[:20]:
        env.step(action)
    one, another = copied(env), copied(env)
    expected = [env.step(action) for action in actions[20:]]
    another.step(actions[0])
    for action, (observation, reward, *_) in zip(actions[20:], expected, strict=True):
        seen, got, *_ = one.step(action)
        np.testing.assert_array_equal(seen, observation)
        assert got == reward
    np.testing.assert_array_equal(one.reset()[0], env.reset()[0])


@pytest.mark.parametrize(
    ("name", "task", "error", "says"),
    [
        (
            "cheetah-vel",
            [np.nan],
            DataError,
            "cheetah-vel: the task is .*nan.* Pass finite numbers",
        ),
        ("cheetah-vel", [1.0, 2.0], ShapeError, r"the task has shape \[2\], not \[1\]"),
        ("nav2d", 0.1, ShapeError, r"the task has shape \[\], not \[2\]"),
        ("ant-dir", 0.5, DataError, "the task is 0.5. Pass 1 or -1"),
        ("ant-vel", "fast", DtypeError, "the task is 'fast', which is not an array of numbers"),
        ("nav2d", [[1], [1, 2]], DtypeError, "not an array of numbers"),
    ],
)
def test_a_task_that_there_is_not_is_refused(
    name: str, task: Any, error: type[Exception], says: str
) -> None:
    env: Any = gymnasium.make(IDS[name])
    with pytest.raises(error, match=says):
        env.reset(seed=0, options={"task": task})
    with pytest.raises(error, match=says):
        env.unwrapped.set_task(task)


def test_a_task_beyond_those_that_are_drawn_is_said() -> None:
    env: Any = gymnasium.make(IDS["cheetah-vel"])
    with pytest.warns(UserWarning, match=r"the task \[2.5\] is outside of \[0, 2\]"):
        env.reset(options={"task": 2.5})


@pytest.mark.parametrize(
    ("action", "error", "says"),
    [
        (0.5, ShapeError, r"cheetah-vel: the action has shape \(\), not \(6,\)"),
        (np.zeros(7), ShapeError, r"shape \(7,\), not \(6,\)"),
        (np.zeros((1, 6)), ShapeError, r"shape \(1, 6\), not \(6,\)"),
        ([0, 0, 0, 0, 0, np.nan], DataError, "the action is .*nan"),
        (["a"] * 6, DtypeError, "not an array of numbers"),
        (None, DtypeError, "the action is None"),
    ],
)
def test_an_action_of_another_kind_is_refused(
    action: Any, error: type[Exception], says: str
) -> None:
    env: Any = gymnasium.make(IDS["cheetah-vel"], disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(error, match=says):
        env.step(action)


def test_a_step_before_the_first_reset_is_refused() -> None:
    with pytest.raises(gymnasium.error.ResetNeeded, match="nav2d: call reset before step"):
        gymnasium.make(IDS["nav2d"]).unwrapped.step(np.zeros(2, np.float32))
