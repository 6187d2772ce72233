"""A loss written for one task (ml.vmap) against the same with the task axis: compiled and eager.

    python benchmarks/one_task.py [--json FILE]

Times the second-order meta-gradient of a network in both forms, in interleaved blocks, float32, on
one thread, and prints medians and their ratio.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mamlnp as ml
from mamlnp import nn
from mamlnp.backend.machine import one_blas_thread
from mamlnp.tasks import Batch, Task


def few_shot(network: nn.Network, shape: tuple[int, ...], tasks: int) -> tuple[Any, Any, Any]:
    """A loss, first parameters and a meta-batch of 5-way 1-shot tasks of random images."""
    rng = np.random.default_rng(0)

    def loss(params: Any, batch: Batch) -> Any:
        return ml.losses.cross_entropy(network.apply(params, batch.x), batch.y, reduction="mean")

    def batch() -> Batch:
        x = rng.random((tasks, 5, *shape), dtype=np.float32)
        return Batch(ml.array(x), ml.array(np.tile(np.arange(5), (tasks, 1))))

    return loss, network.init(rng=rng), Task(batch(), batch())


def sine() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    network = nn.mlp((1, 40, 40, 1), weights=nn.fan_in)

    def loss(params: Any, batch: Batch) -> Any:
        return ml.losses.mse(network.apply(params, batch.x), batch.y, reduction="mean")

    task = ml.tasks.sinusoid.Sinusoids().sample(25, num_shots=10, num_queries=10, rng=rng)
    return loss, network.init(rng=rng), ml.tree.map(ml.array, task)


SETTINGS = {
    "sine, 25 tasks": sine,
    "Omniglot's conv4, 8 tasks": lambda: few_shot(nn.conv4(5), (28, 28, 1), 8),
    "mini-ImageNet's conv4, 1 task": lambda: few_shot(
        nn.conv4(5, channels=3, filters=32, image_size=84, pool=True), (84, 84, 3), 1
    ),
}


def medians(forms: dict[str, Callable[[], Any]], blocks: int, seconds: float) -> dict[str, float]:
    """Milliseconds a call of each form."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for f in forms.values():
        f()
    for _ in range(blocks):
        for name, f in forms.items():
            calls, began = 0, time.perf_counter()
            while time.perf_counter() < began + seconds:
                f()
                calls += 1
            times[name].append(1e3 * (time.perf_counter() - began) / calls)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--blocks", type=int, default=15)
    options = parser.parse_args()
    rows = []
    print("| second order | form | task axis | ml.vmap | ratio |\n|---|---|---|---|---|")
    for name, setting in SETTINGS.items():
        loss, params, task = setting()
        for form, made in (("compiled", ml.compile), ("eager", lambda f: f)):
            forms = {
                kind: made(lambda p, t, f=f: ml.maml.meta_gradient(f, p, t, inner_lr=0.01))
                for kind, f in (("task axis", loss), ("vmap", ml.vmap(loss)))
            }
            with one_blas_thread():
                found = medians(
                    {kind: functools.partial(f, params, task) for kind, f in forms.items()},
                    options.blocks,
                    0.2,
                )
            ratio = found["vmap"] / found["task axis"]
            rows.append({"setting": name, "form": form, **found, "ratio": ratio})
            print(
                f"| {name} | {form} | {found['task axis']:.3g} ms | {found['vmap']:.3g} ms "
                f"| {ratio:.2f} |"
            )
    if options.json:
        options.json.write_text(
            json.dumps({"numpy": np.__version__, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
