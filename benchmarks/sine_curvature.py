"""Why adaptation to a sine wave diverges: the curvature of the support loss against 2 / alpha.

    python benchmarks/sine_curvature.py RUN [RUN ...] [--json FILE]

For 600 tasks of 5 points (those of ``mamlnp evaluate``): the largest eigenvalue of the Hessian of
each task's support loss at the meta-learned parameters, by power iteration on Hessian-vector
products. Gradient descent with step alpha can only settle where it is below 2 / alpha.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from mamlnp import hvp, maml, meta, tree
from mamlnp.experiments import loop, sine
from mamlnp.experiments.scores import adaptation_scores
from mamlnp.runs import open_run
from mamlnp.tasks import counted_rng

ITERATIONS = 60


def norms(v: Any) -> np.ndarray:
    """Each task's length of a tree with a task axis, (T,)."""
    return np.sqrt(sum((x.numpy() ** 2).reshape(len(x), -1).sum(1) for x in tree.leaves(v)))


def scaled(v: Any, factor: np.ndarray) -> Any:
    return tree.map(lambda x: x * factor.reshape(-1, *[1] * (x.ndim - 1)), v)


def top_eigenvalues(params: Any, task: Any) -> np.ndarray:
    """The Hessian's eigenvalue of largest size, for every task at once, (T,)."""
    support = meta.total(sine.loss, task.support)
    theta = meta.per_task(params, meta.num_tasks(task.support))
    rng = np.random.default_rng(0)
    v = tree.map(lambda x: x * 0 + rng.standard_normal(x.shape).astype(x.dtype), theta)
    for _ in range(ITERATIONS):
        v = hvp(support, theta, scaled(v, 1 / norms(v)))
    return norms(v)


def measured(path: Path) -> dict[str, Any]:
    run = open_run(path, "sine")
    config = run.config_as(sine.Config)
    params = loop.best_state(run).state["maml"]["params"]
    rng = counted_rng(sine.TEST_SEED, "test", 5)
    waves = sine.load(config)
    amplitude, phase = waves.sample_parameters(600, rng=rng)
    task = waves.sample_points(
        amplitude, phase, num_shots=5, num_queries=sine.TEST_QUERIES, rng=rng
    )
    scores = adaptation_scores(
        maml.inner_loop(sine.loss, params, task.support, inner_lr=config.inner_lr),
        lambda p, task: sine.loss(p, task.query),
        task,
        steps=range(11),
    )
    top = top_eigenvalues(params, task)
    worse = ~(scores[10] <= scores[0])
    bound = 2 / config.inner_lr
    return {
        "run": path.name,
        "init": config.init,
        "seed": config.seed,
        "bound": bound,
        "median_top_eigenvalue": float(np.median(top)),
        "share_above_bound": float((top > bound).mean()),
        "tasks_worse_after_10_steps": int(worse.sum()),
        "of_these_above_bound": int((worse & (top > bound)).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for path in options.runs:
        rows.append(measured(path))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
