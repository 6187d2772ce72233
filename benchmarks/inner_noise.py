"""How far a gradient step takes a policy, and how much of that is its episodes' chance.

    python benchmarks/inner_noise.py RUN ... [--lrs 0.1 0.03] [--lambdas 1 0.8] [--rollouts 20]
        [--json FILE]

At a run's parameters every task is learned twice, each time from episodes of its own, by an inner
step of every size and every lambda of the advantages asked for, from as many episodes as asked for.
Beside the return afterwards stand two divergences, in nats, on the episodes after the step: that of
the adapted policy from the one before the step, and that from its twin, which learned the same task
from other episodes. The second is what chance alone makes of a policy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from mamlnp import tree
from mamlnp.backend import to_host
from mamlnp.backend.machine import keep_memory
from mamlnp.experiments import experiment_named, loop, reinforcement
from mamlnp.rl.distributions import Gaussian
from mamlnp.rl.maml_rl import Learner, MetaPolicy, per_task
from mamlnp.rl.rollout import Experience, Sampler
from mamlnp.runs import atomic_write, open_run, versions


@dataclass(frozen=True)
class Options:
    """The chance in an inner step.

    Attributes:
        runs: folders of trainings of policies.
        lrs: step sizes; the run's own if none is given.
        lambdas: of the advantages that the step learns from; the run's own if none is given.
        rollouts: episodes of a task, before the step and after; the run's own if not given.
        pairs: of tasks, the same task twice.
        json: write the rows here too.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    lrs: tuple[float, ...] = ()
    lambdas: tuple[float, ...] = ()
    rollouts: int | None = None
    pairs: int = 20
    json: Path | None = None


def measure(path: Path, asked: Options) -> list[dict[str, Any]]:
    run = open_run(path)
    config: reinforcement.Config = run.config_as(experiment_named(run.experiment, path).config)
    environment = reinforcement.load(config)
    policy = reinforcement.policy_of(config, environment)
    spread = environment.spread_tasks or (lambda n: environment.sample_tasks(n, rng(0)))
    tasks = np.repeat(spread(asked.pairs), 2, axis=0)
    rollouts = asked.rollouts or config.eval_rollouts
    simulations = environment.make(len(tasks) * rollouts, config.threads)
    told = config.baseline == "oracle"
    sampler = Sampler(policy, simulations, rollouts, told=told)
    params = per_task(loop.best_state(run).state["params"], len(tasks))
    before, twin = sampler.sample(params, tasks, rng=rng(1)), np.arange(len(tasks)) ^ 1
    rows = []
    for gae_lambda in asked.lambdas or (config.inner_gae_lambda or config.gae_lambda,):
        learner = Learner(
            MetaPolicy(policy, config.inner_lr), discount=config.discount, gae_lambda=gae_lambda
        )
        for lr in asked.lrs or (config.inner_lr,):
            adapted = learner.adapt(params, learner.support(before), lr)
            after = sampler.sample(adapted, tasks, rng=rng(2))
            seen, returns = learner.support(after), after.returns()
            new = learner.acting(adapted, seen)
            others = tree.map(lambda leaf: leaf[twin], adapted)
            rows.append(
                {
                    "run": f"{path.parent.name}/{path.name}",
                    "iterations": run.load().iteration,
                    "rollouts": rollouts,
                    "lr": lr,
                    "gae_lambda": gae_lambda,
                    "returns": float(returns.mean()),
                    "ci95": float(1.96 * returns.std(ddof=1) / np.sqrt(len(returns))),
                    "from_before": divergence(new, learner.acting(params, seen), seen),
                    "from_twin": divergence(new, learner.acting(others, seen), seen),
                }
            )
            print(
                "{run:26} {rollouts:3} episodes  lambda {gae_lambda:<4g} step {lr:<5g} "
                "return {returns:7.1f} +- {ci95:4.1f}   nats from before {from_before:6.2f}, "
                "from twin {from_twin:6.2f}".format(**rows[-1]),
                flush=True,
            )
    return rows


def rng(stream: int) -> np.random.Generator:
    return np.random.default_rng([2017, stream])


def divergence(new: Gaussian, old: Gaussian, seen: Experience) -> float:
    """Mean over tasks and their time steps, in nats."""
    nats = to_host(new.kl(old).value)
    return float((seen.weights * nats).sum() / seen.weights.sum())


def main() -> None:
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    keep_memory()
    rows = [row for path in asked.runs for row in measure(path, asked)]
    if asked.json is not None:
        with atomic_write(asked.json) as partial:
            partial.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
