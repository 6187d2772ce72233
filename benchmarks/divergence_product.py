"""TRPO's product with the divergence's Hessian through the inner update, three ways.

    python benchmarks/divergence_product.py [--json FILE]

Exactly as J'MJ, exactly by going backwards twice, and by the difference quotient of the
divergence's gradient that the paper's authors used, for several step sizes: each in float32, held
against the second in float64, and timed. The episodes are a fresh policy's, of 2D navigation and
the cheetah.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from mamlnp import array, parallel, tree
from mamlnp.autodiff import grad
from mamlnp.backend.machine import keep_memory
from mamlnp.ops.reduce import sum as total
from mamlnp.rl.envs import ENVIRONMENTS
from mamlnp.rl.maml_rl import Episodes, Learner, MetaPolicy, Query, flat, like, per_task
from mamlnp.rl.policy import Policy
from mamlnp.rl.rollout import Sampler
from mamlnp.runs import atomic_write, versions

TASKS, ROLLOUTS = 4, 20
STEPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
SETTINGS = {"nav2d": 0.5, "cheetah-dir": 0.1}
PAGE = Path(__file__).parent.parent / "docs" / "7_policy_gradients.md"


@dataclass(frozen=True)
class Options:
    """TRPO's product three ways.

    Attributes:
        json: write the rows here too, and the table into docs/7_policy_gradients.md.
        repeats: of each timing.
    """

    json: Path | None = None
    repeats: int = 10


def measure(name: str, inner_lr: float, repeats: int) -> list[dict[str, Any]]:
    environment = ENVIRONMENTS[name]
    simulations = environment.make(TASKS * ROLLOUTS, None)
    policy = Policy(simulations.observation_size, simulations.action_size)
    meta = MetaPolicy(policy, inner_lr)
    sampler, learner = Sampler(policy, simulations, ROLLOUTS), Learner(meta)
    rng = np.random.default_rng(0)
    tasks, params = environment.sample_tasks(TASKS, rng), policy.init(rng=rng)
    thetas = per_task(params, TASKS)
    support = sampler.sample(thetas, tasks, rng=rng).experience()
    adapted = learner.adapt(thetas, support)
    batch = sampler.sample(adapted, tasks, rng=rng).experience()
    vector = rng.normal(size=flat(params).size)
    vector /= np.linalg.norm(vector)

    def episodes(dtype: Any) -> tuple[Any, Episodes]:
        theta = tree.map(lambda p: array(p.numpy().astype(dtype)), params)
        first, second = (tree.map(lambda x: np.asarray(x, dtype), b) for b in (support, batch))
        new = policy.distribution(meta.adapt(theta, (first,), TASKS), second.observations)
        return theta, Episodes((first,), Query(second, new))

    def summed(parts: list[Any]) -> np.ndarray:
        return np.sum([flat(part) for part in parts], axis=0)

    def gradient(theta: Any, task: Episodes) -> Any:
        return grad(lambda at: total(meta.surrogate(at, task)[1]))(theta)

    theta, task = episodes(np.float32)
    exact, twice, slope = (
        parallel.over_tasks(f) for f in (meta.divergence_product, meta.divergence_hvp, gradient)
    )
    v = like(theta, vector)

    def quotient(h: float) -> np.ndarray:
        up, down = (summed(slope(like(theta, flat(theta) + s * h * vector), task)) for s in (1, -1))
        return (up - down) / (2 * h)

    ways: dict[str, Callable[[], np.ndarray]] = {
        "J'MJ": lambda: summed(exact((theta, v), task)),
        "twice backward": lambda: summed(twice((theta, v), task)),
        **{f"difference quotient, step {h:g}": lambda h=h: quotient(h) for h in STEPS},
    }
    theta64, task64 = episodes(np.float64)
    truth = flat(meta.divergence_hvp((theta64, like(theta64, vector)), task64))
    rows = []
    for way, f in ways.items():
        error = np.linalg.norm(f() - truth) / np.linalg.norm(truth)
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            f()
            times.append(1e3 * (time.perf_counter() - began))
        rows.append(
            {"setting": name, "way": way, "error": float(error), "ms": statistics.median(times)}
        )
        print(f"{name:12} {way:32} error {error:.1e}   {rows[-1]['ms']:7.1f} ms", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Errors, and times as shares of going backwards twice."""
    lines = ["| | " + " | ".join(f"{name}: error | time" for name in SETTINGS) + " |"]
    lines.append("|---" * (2 * len(SETTINGS) + 1) + "|")
    slow = {row["setting"]: row["ms"] for row in rows if row["way"] == "twice backward"}
    for way in dict.fromkeys(row["way"] for row in rows):
        here = [row for row in rows if row["way"] == way]
        cells = [f"{r['error']:.0e} | {r['ms'] / slow[r['setting']]:.2f}" for r in here]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", "Errors are relative, in float32; time is a share of going backwards twice."]
    )


def main() -> None:
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    keep_memory()
    rows = [row for name, lr in SETTINGS.items() for row in measure(name, lr, asked.repeats)]
    if asked.json is not None:
        with atomic_write(asked.json) as partial:
            partial.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")
        begin, end = (f"<!-- {mark}divergence_product.md -->" for mark in ("", "end of "))
        block = f"{begin}\n{table(rows)}\n{end}"
        page = PAGE.read_text(encoding="utf-8")
        with atomic_write(PAGE) as partial:
            partial.write_text(
                re.sub(f"{begin}.*?{end}", lambda _: block, page, flags=re.DOTALL), encoding="utf-8"
            )


if __name__ == "__main__":
    main()
