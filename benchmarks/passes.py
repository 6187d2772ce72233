"""What each pass of the compiler is worth, on the second-order sine meta-step of docs/compiler.md.

    python benchmarks/passes.py [--json FILE] [--explain]

Passes are switched on one after another; all versions are timed in turn, again and again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import mamlnp as ml
from mamlnp.backend.machine import one_blas_thread
from mamlnp.compile import PASSES
from mamlnp.runs import atomic_write, versions

NETWORK = ml.nn.mlp((1, 40, 40, 1), weights=ml.nn.fan_in)


def loss(params: Any, batch: ml.Batch) -> Any:
    return ml.losses.mse(NETWORK.apply(params, batch.x), batch.y, reduction="mean")


def meta_step(params: Any, task: ml.Task) -> Any:
    return ml.maml.meta_gradient(loss, params, task, inner_lr=0.01)


def seconds(f: Any, *args: Any) -> float:
    began = time.perf_counter()
    for _ in range(20):
        f(*args)
    return (time.perf_counter() - began) / 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--explain", action="store_true", help="print the whole plan too")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    params = NETWORK.init(rng=rng)
    task = ml.tasks.sinusoid.Sinusoids().sample(25, num_shots=10, num_queries=10, rng=rng)
    ways: dict[str, Any] = {"eager": meta_step, "traced, no pass": None}
    ways["traced, no pass"] = ml.compile(meta_step, without=PASSES)
    for i, name in enumerate(PASSES, 1):
        ways[f"+ {name}"] = ml.compile(meta_step, without=PASSES[i:])
    times: dict[str, list[float]] = {name: [] for name in ways}
    with one_blas_thread():
        for way in ways.values():
            way(params, task)
        for _ in range(options.repeats):
            for name, way in ways.items():
                times[name].append(1e3 * seconds(way, params, task))
    rows = []
    for name, way in ways.items():
        low, median, high = statistics.quantiles(times[name], n=4)
        row = {"way": name, "median_ms": median, "spread_ms": high - low}
        if name != "eager":
            traced = way.latest()
            row |= {"steps": len(traced.plan.rows), "arena_mb": traced.plan.arena.size / 1e6}
        rows.append(row)
        shown = f"{row.get('steps', ''):>6} {row.get('arena_mb', float('nan')):8.2f} MB"
        print(f"{name:26}{median:8.3f} ms (quartiles {high - low:.3f} apart) {shown}")
    if options.explain:
        way.explain()
    if options.json:
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
