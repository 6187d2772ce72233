"""The initialisations that come with the package: small, told apart, and as good as they say."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamlnp import initialisations, load
from mamlnp.experiments import EXPERIMENTS, sine
from mamlnp.rl.envs import ENVIRONMENTS
from mamlnp.rl.maml_rl import per_task
from mamlnp.rl.rollout import Sampler
from mamlnp.tasks import Task, counted_rng
from mamlnp.tasks.omniglot import load_omniglot

DATA = os.environ.get("MAMLNP_DATA")


POLICIES = ["ant-dir", "ant-vel", "cheetah-dir", "cheetah-vel", "nav2d"]


def test_each_is_small() -> None:
    assert initialisations.names() == sorted(
        [*POLICIES, "omniglot-5w1s", "omniglot-5w1s-mlp", "sine"]
    )
    for name in initialisations.names():
        assert (initialisations.HERE / f"{name}.safetensors").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", initialisations.names())
def test_each_says_where_it_is_from(name: str) -> None:
    about = load(name).about
    assert about["command"].startswith(f"mamlnp train {about['experiment']}")
    assert "--seed" in about["command"] and "data" not in about["settings"]
    assert {"mean", "ci95", "steps", "tasks"} <= set(about["scores"][0])
    assert about["experiment"] in EXPERIMENTS


def score(about: dict[str, Any], setting: str, method: str, steps: int) -> Any:
    (row,) = (
        row
        for row in about["scores"]
        if (row["setting"], row["method"], row["steps"]) == (setting, method, steps)
    )
    return row


@pytest.mark.parametrize("steps", [1, 10])
def test_the_sine_is_as_good_as_it_says(steps: int) -> None:
    model = load("sine")
    task = sine.load(sine.Config()).sample(
        200, num_shots=5, num_queries=100, rng=counted_rng(1, "test")
    )
    algorithm = model.algorithm(steps)
    found = algorithm.loss(algorithm.adapt(model.params, task.support), task.query).numpy()
    said = score(model.about, "sine 5-shot", "MAML", steps)
    assert abs(found.mean() - said["mean"]) < 3 * np.sqrt(3) * said["ci95"]


def test_the_sine_is_scored_without_the_baselines_that_it_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("sine", "sine"):  # the second time its run is there
        run = initialisations.as_run(source)
        config = sine.Config(validation_tasks=20)
        table, text = sine.evaluate(config, run, sine.load(config), tasks=50)
        assert {row.method for row in table} == {"MAML", "random init", *sine.PAPER}
        assert "pretrained 0" not in text and (tmp_path / "runs/sine/fits.png").exists()
    (found,) = (r for r in table if (r.setting, r.method, r.steps) == ("sine 5-shot", "MAML", 10))
    assert found.mean < 0.6


@pytest.mark.skipif(DATA is None, reason="MAMLNP_DATA does not name a folder with Omniglot")
@pytest.mark.parametrize("name", ["omniglot-5w1s", "omniglot-5w1s-mlp"])
def test_omniglot_is_as_good_as_it_says(name: str) -> None:
    model, tasks = load(name), 60
    test = load_omniglot(DATA)["test"]
    task = test.sample(tasks, num_ways=5, num_shots=1, num_queries=15, rng=counted_rng(1, "test"))
    right = []
    for t in range(tasks):
        one: Task = Task(*(type(part)(part.x[t], part.y[t]) for part in task))
        adapted = model.adapt(one.support.x, one.support.y)
        found = adapted.predict(one.query.x, batch_norm="transductive")
        right.append((found.argmax(-1) == one.query.y).mean())
    said = score(
        model.about, "omniglot 5-way 1-shot, 15 queries a class", "MAML", model.inner_steps
    )
    assert abs(np.mean(right) - said["mean"]) < 3 * np.sqrt(10) * said["ci95"]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_as_good_as_it_says(name: str) -> None:
    agent, environment, count = load(name), ENVIRONMENTS[name], 8
    rng = counted_rng(1, "test")
    tasks = (environment.spread_tasks or partial(environment.sample_tasks, rng=rng))(count)
    simulations = environment.make(agent.rollouts, None)
    sampler = Sampler(agent.network, simulations, agent.rollouts)
    found = []
    for task in tasks:
        theta = agent.adapt(task, rng=rng).params
        found.append(sampler.sample(per_task(theta, 1), task[None], rng=rng).returns())
    said = score(agent.about, name, "MAML", 1)
    assert abs(np.mean(found) - said["mean"]) < 3 * np.sqrt(said["tasks"] / count) * said["ci95"]
