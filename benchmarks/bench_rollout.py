"""How fast episodes are had, and where a meta-iteration of reinforcement learning goes.

    python benchmarks/bench_rollout.py [--json FILE]

For the cheetah and the ant: steps a second of the bare physics (the same simulations, actions and
new beginnings, the same forward dynamics after each step, the same threads, no policy), of the
sampler end to end, policy included, and of Gymnasium's vector environments stepping the same
physics, each on the layout of environments and processes that suits it best. Then one meta-
iteration of the paper's size, part by part, beside the products that each part cannot do without,
each alone at the speed of NumPy's BLAS. All are timed in turn, in one run.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro

from mamlnp.backend.machine import cores, keep_memory, one_blas_thread
from mamlnp.rl import maml_rl
from mamlnp.rl.envs import ENVIRONMENTS
from mamlnp.rl.envs.locomotion import physics
from mamlnp.rl.maml_rl import Episodes, Learner, MetaPolicy, Query, per_task
from mamlnp.rl.policy import Policy
from mamlnp.rl.rollout import Sampler
from mamlnp.runs import atomic_write, versions

TASKS, ROLLOUTS, HORIZON = 40, 20, 200
HIDDEN = (100, 100)
GYMNASIUM_SECONDS = 4.0


@dataclass(frozen=True)
class Options:
    """How fast episodes are had.

    Attributes:
        json: write the rows here too.
        environments: to time.
        rounds: of everything, in turn.
    """

    json: Path | None = None
    environments: tuple[str, ...] = ("cheetah-dir", "ant-dir")
    rounds: int = 5


def timed(f: Callable[[], Any]) -> float:
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


# ---- Gymnasium's vector environments


class PlainEnv(gymnasium.Env[Any, Any]):
    """The same physics the usual way: one MjData, stepped from Python."""

    def __init__(self, robot: str) -> None:
        import mujoco

        self._mujoco, self._model = mujoco, physics(robot)
        self._data = mujoco.MjData(self._model)
        self._torso, self._ant = self._model.body("torso").id, robot == "ant"
        seen = self._observed().size
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (seen,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1, 1, (self._model.nu,), np.float64)

    def _observed(self) -> np.ndarray:
        data = self._data
        parts = [data.qpos[1:], data.qvel, data.subtree_com[self._torso]]
        if self._ant:
            contact = np.clip(data.cfrc_ext, -1, 1).ravel()
            com, frame = data.subtree_com[self._torso], data.xmat[self._torso]
            parts = [data.qpos, data.qvel, contact, frame, com]
        return np.concatenate(parts)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._mujoco.mj_resetDataKeyframe(self._model, self._data, 0)
        self._data.qpos += 0.01 * self.np_random.standard_normal(self._model.nq)
        self._data.qvel += 0.1 * self.np_random.standard_normal(self._model.nv)
        self._mujoco.mj_forward(self._model, self._data)
        return self._observed(), {}

    def step(self, action: np.ndarray) -> Any:
        self._data.ctrl[:] = np.clip(action, -1, 1)
        self._mujoco.mj_step(self._model, self._data)
        self._mujoco.mj_forward(self._model, self._data)
        reward = self._data.subtree_linvel[self._torso][0] - 0.05 * float(action @ action)
        over = self._ant and not 0.2 <= self._data.qpos[2] <= 1.0
        return self._observed(), reward, bool(over), False, {}


def gymnasium_rate(robot: str) -> tuple[float, str]:
    """Steps a second of the fastest layout, and which it is; episodes never end by time."""
    layouts: list[tuple[str, Any, int]] = [("in one process", gymnasium.vector.SyncVectorEnv, 8)]
    layouts += [
        ("a process each", gymnasium.vector.AsyncVectorEnv, count) for count in (cores(), 8, 32)
    ]
    best = 0.0, ""
    for label, kind, count in layouts:
        envs = kind([lambda: PlainEnv(robot)] * count)
        envs.reset(seed=0)
        actions = np.random.default_rng(0).uniform(-1, 1, envs.action_space.shape)
        for _ in range(10):
            envs.step(actions)
        steps, began = 0, time.perf_counter()
        while time.perf_counter() - began < GYMNASIUM_SECONDS / len(layouts):
            envs.step(actions)
            steps += count
        rate = steps / (time.perf_counter() - began)
        envs.close()
        best = max(best, (rate, f"{count} {label}"))
    return best


# ---- the products that cannot be left out


def products(sizes: tuple[int, ...], count: int) -> dict[str, list[Callable[[], Any]]]:
    """Of each layer of the policy on so many states: forward; by the weights; by the inputs."""
    rng = np.random.default_rng(0)
    kinds: dict[str, list[Callable[[], Any]]] = {"forward": [], "weights": [], "inputs": []}
    for fan_in, fan_out in itertools.pairwise(sizes):
        x, w, ct = (
            rng.normal(size=shape).astype(np.float32)
            for shape in ((count, fan_in), (fan_in, fan_out), (count, fan_out))
        )
        outs = [np.empty_like(leaf) for leaf in (ct, w, x)]
        kinds["forward"].append(lambda x=x, w=w, o=outs[0]: np.matmul(x, w, out=o))
        kinds["weights"].append(lambda x=x, ct=ct, o=outs[1]: np.matmul(x.T, ct, out=o))
        kinds["inputs"].append(lambda w=w, ct=ct, o=outs[2]: np.matmul(ct, w.T, out=o))
    return kinds


def floors(sizes: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """The products of each part of a meta-iteration, a task to a thread at a time."""
    lists = [products(sizes, ROLLOUTS * HORIZON) for _ in range(cores())]

    def of(kinds: dict[str, Any]) -> dict[str, list[Any]]:
        f, w, x = kinds["forward"], kinds["weights"], kinds["inputs"]
        gradient = f + w + x[1:]  # the observations' own cotangent is not needed
        hessian = (f + f[1:]) + (w + w[1:]) + (x[1:] + x[1:])  # times a vector, the rest known
        return {
            "inner gradients": gradient,
            "surrogate": gradient + f,
            "meta-gradient": gradient + gradient + hessian,
            "product": gradient + f + hessian + (f + f[1:]) + (w + x[1:]) + hessian,
        }

    def runner(name: str) -> Callable[[], Any]:
        lots = [of(kinds)[name] for kinds in lists]

        def work(i: int) -> None:
            for _ in range(i, TASKS, len(lots)):
                for product in lots[i]:
                    product()

        def run() -> None:
            with one_blas_thread(), ThreadPoolExecutor(len(lots)) as pool:
                list(pool.map(work, range(len(lots))))

        return run

    found = {name: runner(name) for name in of(lists[0])}
    rng = np.random.default_rng(0)
    layers = [
        (
            rng.normal(size=(TASKS, ROLLOUTS, a)).astype(np.float32),
            rng.normal(size=(TASKS, a, b)).astype(np.float32),
        )
        for a, b in itertools.pairwise(sizes)
    ]

    def acting() -> None:
        with one_blas_thread():
            for _ in range(HORIZON):
                for x, w in layers:
                    np.matmul(x, w)

    return {"policy": acting, **found}


# ---- everything in turn


def measure(name: str, rounds: int) -> dict[str, Any]:
    environment = ENVIRONMENTS[name]
    simulations = environment.make(TASKS * ROLLOUTS, None)
    policy = Policy(simulations.observation_size, simulations.action_size, HIDDEN)
    sampler = Sampler(policy, simulations, ROLLOUTS)
    learner = Learner(MetaPolicy(policy, 0.1))
    rng = np.random.default_rng(0)
    tasks = environment.sample_tasks(TASKS, rng)
    params = policy.init(rng=rng)
    thetas = per_task(params, TASKS)
    before = sampler.sample(thetas, tasks, rng=rng)
    support = before.experience()
    after = sampler.sample(learner.adapt(thetas, support), tasks, rng=rng)
    batch = after.experience()
    episodes = Episodes((support,), Query(batch, learner.acting(thetas, batch)))
    count, length = TASKS * ROLLOUTS, before.ends.shape[-1]
    controls = np.clip(before.actions, -1, 1).reshape(count, length, -1)
    ends = before.ends.reshape(count, length)
    taken = before.counts.reshape(count, length) | (np.arange(length) < HORIZON)
    steps, stage = int(taken.sum()), simulations._after

    def bare() -> None:
        """The sampler's own actions and new beginnings, without what it sees, thinks and keeps."""
        simulations.reset(rng=rng)
        for t in range(length):
            which = np.flatnonzero(taken[:, t])
            simulations.batch.ctrl[which] = controls[which, t]
            simulations.batch.step(None if len(which) == count else which, stage=stage)
            over = which[ends[which, t]]
            if t + 1 < HORIZON and len(over):
                simulations.reset(which=over, rng=rng)

    def act() -> None:
        seen = np.ascontiguousarray(after.observations[:, :, 0])
        with one_blas_thread():
            for _ in range(HORIZON):
                sampler._act(thetas, seen)

    parts: dict[str, Callable[[], Any]] = {
        "bare physics": bare,
        "sampler": lambda: sampler.sample(thetas, tasks, rng=rng),
        "policy": act,
        "advantages": lambda: learner.support(before),
        "inner gradients": lambda: learner.adapt(thetas, support),
        "meta-gradient": lambda: learner._gradient(params, episodes),
        "product": lambda: learner._product((params, params), episodes),
        "surrogate": lambda: learner._surrogate(params, episodes),
        "whole iteration": lambda: maml_rl.meta_step(
            learner, sampler, params, None, tasks, inner_steps=1, rng=rng
        ),
    }
    sizes = (policy.observation_size, *HIDDEN, policy.action_size)
    parts |= {f"floor of {part}": f for part, f in floors(sizes).items()}
    times: dict[str, list[float]] = {part: [] for part in parts}
    rates: list[tuple[float, str]] = []
    for _ in range(rounds):
        for part, f in parts.items():
            times[part].append(timed(f))
        rates.append(gymnasium_rate(name.split("-")[0]))
    seconds = {part: statistics.median(found) for part, found in times.items()}
    rate = statistics.median(rate for rate, _ in rates)
    return {
        "seconds": seconds,
        "spread": {part: [min(found), max(found)] for part, found in times.items()},
        "steps_per_second": {
            "bare physics": steps / seconds["bare physics"],
            "sampler": steps / seconds["sampler"],
            "Gymnasium": rate,
        },
        "gymnasium_layout": max(rates)[1],
    }


def described(name: str, found: dict[str, Any]) -> str:
    rates, seconds = found["steps_per_second"], found["seconds"]
    sampler = rates["sampler"]
    lines = [
        f"{name}: steps a second: bare physics {rates['bare physics']:,.0f}, sampler "
        f"{sampler:,.0f} ({sampler / rates['bare physics']:.2f} x), Gymnasium "
        f"{rates['Gymnasium']:,.0f} ({found['gymnasium_layout']}; the sampler is "
        f"{sampler / rates['Gymnasium']:.1f} x)",
        f"  a meta-iteration of {TASKS} tasks x {ROLLOUTS} rollouts x {HORIZON} steps, twice: "
        f"{seconds['whole iteration']:.2f} s",
    ]
    rows = [
        ("physics", 2, "bare physics", None),
        ("policy in rollouts", 2, "policy", "policy"),
        ("advantages", 2, "advantages", None),
        ("inner gradients", 1, "inner gradients", "inner gradients"),
        ("meta-gradient", 1, "meta-gradient", "meta-gradient"),
        ("conjugate gradient, 10 products", 10, "product", "product"),
        ("line search, 2 evaluations", 2, "surrogate", "surrogate"),
    ]
    for label, times, part, floor in rows:
        line = f"  {label:34}{times * seconds[part]:8.2f} s"
        if floor is not None:
            line += f"{seconds[part] / seconds[f'floor of {floor}']:8.2f} x its products' floor"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    keep_memory()
    rows = {}
    for name in asked.environments:
        rows[name] = measure(name, asked.rounds)
        print(described(name, rows[name]), flush=True)
    if asked.json is not None:
        with atomic_write(asked.json) as partial:
            partial.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
