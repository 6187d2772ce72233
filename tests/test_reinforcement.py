"""The experiments of reinforcement learning, on small budgets: training, resuming, evaluating."""

import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mamlnp as ml
from mamlnp.cli import main
from mamlnp.errors import DataError, DeviceError
from mamlnp.experiments import EXPERIMENTS, command, loop, nav2d, reinforcement
from mamlnp.experiments.experiment import Experiment
from mamlnp.experiments.locomotion import ROBOTS, CheetahDirection
from mamlnp.rl.envs import locomotion
from mamlnp.rl.maml_rl import Learner, MetaPolicy, flat
from mamlnp.rl.rollout import Sampler
from mamlnp.runs import create_run

NAV = nav2d.Config(
    meta_iterations=4,
    meta_batch_size=3,
    rollouts=4,
    eval_rollouts=4,
    validate_every=2,
    eager=True,
)
CHEETAH = CheetahDirection(
    meta_iterations=2,
    meta_batch_size=2,
    rollouts=2,
    eval_rollouts=2,
    validate_every=1,
    eager=True,
)
SMALL = "--meta-iterations 2 --meta-batch-size 2 --rollouts 2 --eval-rollouts 2 --validate-every 1"


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: Any) -> None:
    """Evaluation in small pieces, for speed."""
    monkeypatch.setattr(reinforcement, "AT_ONCE", 4)


def trained(path: Path, config: Any = NAV, name: str = "nav2d") -> Any:
    run, experiment = create_run(name, config, path), EXPERIMENTS[name]
    experiment.train(config, run, experiment.load(config))
    return run


def metrics(run: Any) -> list[dict[str, str]]:
    with (run.path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["wall_seconds"], row["steps_per_second"]
    return rows


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(tmp_path_factory.mktemp("runs") / "cheetah", CHEETAH, "cheetah-dir")


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, monkeypatch: Any) -> None:
    whole = trained(tmp_path / "whole")
    broken = create_run("nav2d", NAV, tmp_path / "broken")
    taken = []

    def interrupting(*args: Any, **how: Any) -> Any:
        taken.append(1)
        if len(taken) == 3:
            signal.raise_signal(signal.SIGINT)
        return meta_step(*args, **how)

    meta_step = reinforcement.meta_step
    monkeypatch.setattr(reinforcement, "meta_step", interrupting)
    with pytest.raises(reinforcement.loop.Interrupted):
        reinforcement.train(NAV, broken, reinforcement.load(NAV))
    monkeypatch.undo()
    assert broken.load().iteration == 3
    reinforcement.train(NAV, broken, reinforcement.load(NAV), resume=True)
    assert metrics(whole) == metrics(broken)
    a, b = (run.load().arrays for run in (whole, broken))
    assert all((x == y).all() for x, y in zip(*map(ml.tree.leaves, (a, b)), strict=True))


def test_the_log_says_what_happened(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    rows = metrics(run)
    assert [row["iteration"] for row in rows] == ["2", "4"]
    for row in rows:
        assert float(row["before"]) < 0 and float(row["after"]) < 0
        assert 0 <= float(row["kl"]) <= NAV.max_kl and 0 <= float(row["refused"]) <= 1
        assert float(row["broken_steps"]) == float(row["tasks_left_out"]) == 0
    with Image.open(run.path / "curve.png") as picture:
        assert min(picture.size) > 200


def test_a_metric_of_some_tasks_is_another_step_in_the_same_trust_region(tmp_path: Path) -> None:
    found = {}
    for tasks in (None, NAV.meta_batch_size, 1):
        config = dataclasses.replace(NAV, curvature_tasks=tasks)
        run = trained(tmp_path / f"{tasks}", config)
        found[tasks] = run.load().arrays["state"]["params"]["log_std"]
        assert all(0 < float(row["kl"]) <= NAV.max_kl for row in metrics(run))
    np.testing.assert_array_equal(found[None], found[NAV.meta_batch_size])
    assert (found[None] != found[1]).any()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")
def test_a_run_that_diverged_everywhere_stops(tmp_path: Path) -> None:
    config = dataclasses.replace(NAV, inner_lr=1e30)
    with pytest.raises(DataError, match="no task has a finite gradient"):
        trained(tmp_path / "run", config)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")
def test_navigation_learns(tmp_path: Path) -> None:
    config = dataclasses.replace(
        NAV, meta_iterations=15, meta_batch_size=8, rollouts=10, validate_every=5, eager=False
    )
    run = trained(tmp_path / "run", config)
    table, text = nav2d.evaluate(config, run, reinforcement.load(config), tasks=12)
    at = {row.steps: row.mean for row in table if row.method == "MAML"}
    assert set(at) == {0, 1, 2, 3} and at[1] > at[0] + 5
    assert "step sizes 0.5, " in text and "-11.7" in text
    assert {row.tasks for row in table if row.method == "MAML"} == {12}
    for name in ("returns.png", "paths.png"):
        with Image.open(run.path / name) as picture:
            assert min(picture.size) > 200
    # Of the sizes that a step is offered the best is taken; one that diverges is not.
    environment = reinforcement.load(config)
    policy = reinforcement.policy_of(config, environment)
    sampler = Sampler(policy, environment.make(80, 1), 10)
    first, *later = reinforcement.tuned_lrs(
        Learner(MetaPolicy(policy, inner_lr=0.5)),
        sampler,
        loop.best_state(run).state["params"],
        environment.sample_tasks(8, np.random.default_rng(0)),
        (1e30, 0.5, 1e-3),
    )
    assert first == 0.5 and len(later) == 2
    assert all(lr in np.multiply(reinforcement.LATER_SHARES, 0.5) for lr in later)


@pytest.mark.parametrize(
    ("how", "methods"),
    [
        ({"baseline": "pretrained"}, {"pretrained", "paper pretrained"}),
        ({"baseline": "oracle"}, {"oracle", "paper oracle"}),
        ({"meta_optimizer": "adam"}, {"MAML", "paper MAML"}),
        ({"first_order": True}, {"MAML", "paper MAML"}),
        ({"sampling_term": True}, {"MAML", "paper MAML"}),
        ({"gae_lambda": 0.97, "inner_gae_lambda": 0.8}, {"MAML", "paper MAML"}),
        ({"eager": False}, {"MAML", "paper MAML"}),
    ],
)
def test_every_way_trains_and_is_scored(how: Any, methods: set[str], tmp_path: Path) -> None:
    config = dataclasses.replace(NAV, **how)
    run = trained(tmp_path / "run", config)
    table, _ = nav2d.evaluate(config, run, reinforcement.load(config), tasks=4)
    assert {row.method for row in table} == methods
    if config.baseline == "oracle":
        assert {row.steps for row in table} == {0}
    assert "kl" in metrics(run)[0] or config.meta_optimizer == "adam"


def test_the_inner_loops_lambda_reaches_training_and_the_agent(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path / f"run{n}", dataclasses.replace(NAV, inner_gae_lambda=inner))
        for n, inner in enumerate((None, 0.5))
    ]
    assert [ml.load(run.path).inner_gae_lambda for run in runs] == [None, 0.5]
    assert len({metrics(run)[0]["after"] for run in runs}) == 2


def test_a_run_can_begin_from_anothers_parameters(tmp_path: Path) -> None:
    first = trained(tmp_path / "first")
    still = dataclasses.replace(
        NAV, meta_optimizer="adam", meta_lr=1e-30, init_from=f"{first.path}", seed=NAV.seed + 1
    )
    second = trained(tmp_path / "second", still)
    begun, left = (flat(loop.best_state(run).state["params"]) for run in (second, first))
    assert np.array_equal(begun, left)
    assert f"--init-from {first.path}" in command(second)

    # It goes on by itself, without the run that it began from.
    shutil.rmtree(first.path)
    further = dataclasses.replace(still, meta_iterations=NAV.meta_iterations + 1)
    reinforcement.train(further, second, reinforcement.load(further), resume=True)
    assert second.load().iteration == further.meta_iterations


def test_a_beginning_of_another_network_is_refused(tmp_path: Path) -> None:
    oracle = trained(tmp_path / "oracle", dataclasses.replace(NAV, baseline="oracle"))
    config = dataclasses.replace(NAV, init_from=f"{oracle.path}")
    with pytest.raises(DataError, match=r"--init-from .*oracle: .* not .* Pass a run of nav2d"):
        trained(tmp_path / "run", config)


def test_a_beginning_that_does_not_fit_leaves_no_run(tmp_path: Path, capsys: Any) -> None:
    out, none = tmp_path / "run", tmp_path / "none"
    with pytest.raises(SystemExit):
        main(["train", "nav2d", *SMALL.split(), "--init-from", f"{none}", "--out", f"{out}"])
    assert f"{none}: there is no such folder" in capsys.readouterr().err
    assert not out.exists()
    oracle = trained(tmp_path / "oracle", dataclasses.replace(NAV, baseline="oracle"))
    with pytest.raises(SystemExit):
        main(["train", "nav2d", *SMALL.split(), "--init-from", f"{oracle.path}", "--out", f"{out}"])
    assert "Pass a run of nav2d" in capsys.readouterr().err
    assert not out.exists()


def test_the_sampling_term_of_no_second_derivatives_is_refused() -> None:
    config = dataclasses.replace(NAV, first_order=True, sampling_term=True)
    with pytest.raises(DataError, match=r"--sampling-term: .* --first-order leaves out"):
        reinforcement.load(config)


def test_evaluation_compares_with_a_random_beginning(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    table, _ = nav2d.evaluate(NAV, run, reinforcement.load(NAV), tasks=4, baselines=True)
    assert {"MAML", "random init", "paper random init"} <= {row.method for row in table}


def test_the_last_parameters_are_the_result(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    kept, about = loop.best_state(run)
    last = loop.from_host(run.load().arrays["state"])
    assert np.array_equal(flat(kept["params"]), flat(last["params"]))
    assert f"meta-iteration {NAV.meta_iterations}; trained" in about


def test_test_tasks_differ_and_are_the_same_each_time(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    first, again = (nav2d.evaluate(NAV, run, reinforcement.load(NAV), tasks=7)[0] for _ in range(2))
    assert first == again
    assert all(row.ci95 > 0 for row in first if row.method == "MAML")


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.name)
def test_the_robots_train_and_are_scored(robot: Experiment, tmp_path: Path) -> None:
    config: Any = dataclasses.replace(
        robot.config(), **{f: getattr(CHEETAH, f) for f in vars(CHEETAH) if f != "max_kl"}
    )
    run = trained(tmp_path / "run", config, robot.name)
    table, text = robot.evaluate(config, run, robot.load(config), tasks=4)
    assert {row.steps for row in table} == {0, 1, 2, 3} and "paper MAML" in text


# ---- what was learned, in use


def test_an_agent_adapts_and_acts(cheetah: Any) -> None:
    agent = ml.load(cheetah.path)
    assert agent.environment == agent.about["experiment"] == "cheetah-dir"
    adapted = agent.adapt(1.0, rng=np.random.default_rng(0))
    again = agent.adapt([1.0], rng=np.random.default_rng(0))
    assert (flat(adapted.params) == flat(again.params)).all()
    assert (flat(adapted.params) != flat(agent.params)).any()
    short = dataclasses.replace(agent, inner_gae_lambda=0.5)
    shorter = short.adapt(1.0, rng=np.random.default_rng(0))
    assert (flat(shorter.params) != flat(adapted.params)).any()
    assert agent.act(np.zeros(20)).shape == (6,)
    assert agent.act(np.zeros((4, 20)), rng=np.random.default_rng(0)).shape == (4, 6)


def test_an_oracle_is_told_its_task_wherever_it_acts(tmp_path: Path) -> None:
    config = dataclasses.replace(CHEETAH, baseline="oracle")
    agent = ml.load(trained(tmp_path / "run", config, "cheetah-dir").path)
    assert agent.told and agent.act(np.zeros(21)).shape == (6,)
    adapted = agent.adapt(1.0, rng=np.random.default_rng(0))
    assert np.isfinite(flat(adapted.params)).all()


def test_a_film_is_shot(cheetah: Any, tmp_path: Path, capsys: Any) -> None:
    try:
        locomotion.Camera(locomotion.physics("cheetah"), 60, 80).close()
    except DeviceError as error:
        pytest.skip(str(error))
    for ending in ("gif", "mp4"):
        out = tmp_path / f"film.{ending}"
        main(["render", str(cheetah.path), "--out", str(out), "--task", "1", "--steps", "0"])
        assert out.stat().st_size > 10_000
    assert "goal 1" in capsys.readouterr().out
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 100 and film.size == (320, 262)


# ---- bad input


def refused(argv: list[str], capsys: Any) -> str:
    capsys.readouterr()  # what was printed before
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "film.avi"], "film.avi is no film. End it with .gif or .mp4"),
        (["--steps", "-1"], "--steps: -1 are less than none"),
    ],
)
def test_a_film_that_cannot_be(options: list[str], message: str, cheetah: Any, capsys: Any) -> None:
    assert message in refused(["render", str(cheetah.path), *options], capsys)


def test_a_film_needs_a_body(tmp_path: Path, capsys: Any) -> None:
    run = trained(tmp_path / "run")
    assert "has no body to film" in refused(["render", str(run.path)], capsys)
    assert "has no body to film" in refused(["render", "sine"], capsys)


def test_a_renderer_that_there_is_not_is_one_line() -> None:
    asked = {**os.environ, "MUJOCO_GL": "nonsense"}
    command_line = [sys.executable, "-m", "mamlnp", "render", "ant-dir", "--out", "film.gif"]
    found = subprocess.run(command_line, env=asked, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert "MUJOCO_GL=nonsense" in found.stderr and "Set it to egl" in found.stderr


def test_without_mujoco_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    line = refused(["train", "ant-dir", "--out", str(tmp_path / "run")], capsys)
    assert "pip install 'mujoco>=4.0'" in line
    assert not (tmp_path / "run").exists()


def test_options_of_another_experiment_are_refused(tmp_path: Path, capsys: Any) -> None:
    run = trained(tmp_path / "run")
    line = refused(["evaluate", str(run.path), "--batch-norm", "support"], capsys)
    assert "--batch-norm: not of nav2d" in line
    assert "--data: nav2d has none" in refused(
        ["evaluate", str(run.path), "--data", str(tmp_path)], capsys
    )


def test_a_checkpoint_of_another_architecture(tmp_path: Path, cheetah: Any, capsys: Any) -> None:
    run = trained(tmp_path / "run")
    checkpoint = run.path / "checkpoint.safetensors"
    checkpoint.write_bytes((cheetah.path / "checkpoint.safetensors").read_bytes())
    assert "is of another architecture" in refused(["evaluate", str(run.path)], capsys)


def test_from_the_command_line(tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "run")
    main(["train", "cheetah-vel", *SMALL.split(), "--out", out])
    main(["evaluate", out, "--tasks", "4"])
    shown = capsys.readouterr().out
    assert "exact products" in shown and "4 tasks, 2 rollouts" in shown
    main(["export", out, str(tmp_path / "policy.safetensors")])
    assert ml.load(tmp_path / "policy.safetensors").environment == "cheetah-vel"
