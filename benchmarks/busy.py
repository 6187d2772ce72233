"""How busy training keeps a CUDA device, and which kernels of a meta-step take its time.

    python benchmarks/busy.py [--json FILE]

Meta-iterations as in training (tasks drawn by the host while the device computes, indices uploaded,
images gathered there) are timed by the clock, over many; the same meta-step on one task, launched
again and again, by events of the device: all that it computes, and nothing of the host's. Their
ratio is the share of a training step in which the device is busy. Then every launch of the step is
timed by itself, ten times in a row, and those that do the same are added up.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from compare import by_events
from sampling import SETTINGS, made_up, trainer

from mamlnp import compile
from mamlnp.backend import namespace_of, to_device, using_device
from mamlnp.compile.plan import sentence
from mamlnp.meta import Gradient
from mamlnp.optim import Optimizer
from mamlnp.runs import atomic_write, versions
from mamlnp.tasks.fewshot import ClassImages

ITERATIONS = 200
REPEATS = 10
SHOWN = 12  # kernels


@dataclass(frozen=True)
class Options:
    """How busy training keeps a CUDA device.

    Attributes:
        json: write the rows here too.
        only: settings to time; all if not given.
    """

    json: Path | None = None
    only: tuple[str, ...] = ()


def busy(config: Any, images: ClassImages) -> dict[str, Any]:
    """The times of one setting, in milliseconds."""
    cupy = namespace_of(images.images)
    made = []

    def make(gradient: Gradient, optimizer: Optimizer) -> Any:
        def meta_step(params: Any, state: Any, task: Any) -> Any:
            losses, grads = gradient(params, task)
            return *optimizer.update(params, grads, state), losses

        made.append(compile(meta_step))
        return made[0]

    draw, step = trainer(config, images, make)
    same = draw(0)
    for _ in range(3):
        step(same)
    (replay,) = made[0].latest().replays
    (segment,) = replay.segments  # nothing of a meta-step is left to CuPy
    computed = 1e3 * by_events(segment, ITERATIONS)
    with ThreadPoolExecutor(1) as ahead:
        drawn = ahead.submit(draw, 0)
        cupy.cuda.Device().synchronize()
        began = time.perf_counter()
        for n in range(ITERATIONS):
            task = drawn.result()
            drawn = ahead.submit(draw, n + 1)
            step(task)
        cupy.cuda.Device().synchronize()
        iteration = 1e3 * (time.perf_counter() - began) / ITERATIONS
    kernels: Counter[str] = Counter()
    for step_of_plan, launch in zip(segment.steps, segment.launches, strict=True):
        kernels[sentence(step_of_plan)] += 1e3 * by_events(launch, REPEATS)
    return {
        "iteration_ms": iteration,
        "computed_ms": computed,
        "busy": computed / iteration,
        "kernels_ms": dict(kernels.most_common()),
    }


def main() -> None:
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    rows: dict[str, Any] = {}
    with using_device("cuda"):
        for name, config in SETTINGS.items():
            if asked.only and name not in asked.only:
                continue
            images = made_up(config)
            images = replace(images, images=to_device(images.images))
            rows[name] = row = busy(config, images)
            print(
                f"{name:28} iteration {row['iteration_ms']:8.3f} ms, of which computed "
                f"{row['computed_ms']:8.3f} ms: busy {100 * row['busy']:.0f} %",
                flush=True,
            )
            for label, found in list(row["kernels_ms"].items())[:SHOWN]:
                print(f"    {found:8.3f} ms  {label}")
        if asked.json is not None:
            found = {"versions": versions(), "rows": rows}
            with atomic_write(asked.json) as partial:
                partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
