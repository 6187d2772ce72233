"""Memory and time of the meta-gradient against the number of inner steps, both ways.

    python benchmarks/inner_steps.py [--json FILE]

The Hessian-vector-product way keeps the adapted parameters of every step and the tape of one;
differentiating through the loop keeps every step's tape. The bound printed is
1.2 x (one step's tape + steps x the bytes of all tasks' adapted parameters).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

import mamlnp as ml
from mamlnp.backend.machine import one_blas_thread
from mamlnp.runs import atomic_write, versions

NETWORK = ml.nn.mlp((1, 40, 40, 1), weights=ml.nn.fan_in)
TASKS = 25


def loss(params: Any, batch: ml.Batch) -> Any:
    return ml.losses.mse(NETWORK.apply(params, batch.x), batch.y, reduction="mean")


def peak_bytes(f: Any, *args: Any) -> int:
    """Of what NumPy holds at once."""
    tracemalloc.start()
    f(*args)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def milliseconds(f: Any, *args: Any) -> float:
    times = []
    for _ in range(7):
        began = time.perf_counter()
        f(*args)
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    params = NETWORK.init(rng=rng)
    task = ml.tasks.sinusoid.Sinusoids().sample(TASKS, num_shots=10, num_queries=10, rng=rng)
    adapted = TASKS * sum(x.size * x.dtype.itemsize for x in ml.tree.leaves(params))
    rows = []
    for method in ("hvp", "backprop"):
        tapes: dict[str, int] = {}
        for steps in (1, 10, 100):

            def gradient(
                params: Any, task: ml.Task, steps: int = steps, method: Any = method
            ) -> Any:
                return ml.maml.meta_gradient(
                    loss, params, task, inner_lr=1e-3, inner_steps=steps, method=method
                )

            compiled = ml.compile(gradient)
            with one_blas_thread():
                for way, f in (("eager", gradient), ("compiled", compiled)):
                    f(params, task)
                    peak = peak_bytes(f, params, task)
                    if way == "compiled":  # which holds its memory from call to call
                        peak += compiled.latest().plan.arena.size
                    tape = tapes.setdefault(way, peak - adapted)
                    row = {
                        "method": method,
                        "way": way,
                        "inner_steps": steps,
                        "median_ms": milliseconds(f, params, task),
                        "peak_mb": peak / 1e6,
                        "bound_mb": 1.2 * (tape + steps * adapted) / 1e6,
                    }
                    rows.append(row)
                    print(
                        f"{method:9} {way:9} {steps:4} steps {row['median_ms']:9.2f} ms, peak "
                        f"{row['peak_mb']:7.2f} MB (bound {row['bound_mb']:.2f})",
                        flush=True,
                    )
    if options.json:
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
