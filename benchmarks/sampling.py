"""What drawing tasks costs: time beside the meta-step, and memory with 60,000 images on disk.

    python benchmarks/sampling.py [--json FILE]

The images are made up. Training draws the tasks of a meta-step (rotations included) while the step
before it runs. For each setting, meta-iterations that do so and such that take one and the same
task are timed in turn: the difference is what drawing costs. Then 60,000 images of 84x84 are
written to a file and a training reads its tasks from there; the peak of its memory stands beside
that of the same training on one task's images, which is the model's own need. Each is a process of
its own, whose peak Linux tells.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from mamlnp import optim, parallel
from mamlnp.backend.machine import keep_memory
from mamlnp.experiments import miniimagenet, omniglot
from mamlnp.experiments.classification import algorithm, network, task_loss
from mamlnp.runs import atomic_write, versions
from mamlnp.tasks import counted_rng
from mamlnp.tasks.fewshot import ClassImages
from mamlnp.tasks.images import ImageFile

SETTINGS: dict[str, Any] = {
    f"{module.__name__.rpartition('.')[2]} {preset}": module.PRESETS[preset]
    for module, preset in (
        (omniglot, "today-5w1s"),
        (omniglot, "today-5w5s"),
        (omniglot, "today-20w1s"),
        (omniglot, "today-5w1s-mlp"),
        (miniimagenet, "today-5w1s"),
        (miniimagenet, "today-5w5s"),
    )
}
STEPS = 40  # of each kind, and more of short ones, for as long as SECONDS
SECONDS = 10.0
SHAPE = (60_000, 84, 84, 3)
MEMORY_STEPS = 60


@dataclass(frozen=True)
class Options:
    """What drawing tasks costs.

    Attributes:
        json: write the rows here too.
        only: settings to time; all if not given.
    """

    json: Path | None = None
    only: tuple[str, ...] = ()


def made_up(config: Any) -> ClassImages:
    """As many images as the real set has; zeros take no memory until they are written to."""
    rng = np.random.default_rng(0)
    if config.image_shape == (28, 28, 1):
        images = rng.integers(0, 256, (1028, 20, 28, 28, 1), np.uint8)
        return ClassImages.stacked(images, tuple(map(str, range(1028))), rotations=True)
    images = rng.integers(0, 256, (64, 100, 84, 84, 3), np.uint8)
    return ClassImages.stacked(images, tuple(map(str, range(64))))


def trainer(config: Any, images: ClassImages, make: Any = parallel.meta_step) -> Any:
    """A function of n that draws the tasks of meta-iteration n, and one that takes the step, which
    make() makes."""
    net = network(config, config.num_ways)
    params = net.init(rng=counted_rng(0, "init"))
    optimizer = optim.adam(config.meta_lr)
    meta_step = make(
        algorithm(config, task_loss(config, net), params).gradient, optimizer=optimizer
    )
    state = [params, optimizer.init(params)]

    def draw(n: int) -> Any:
        return images.sample(
            config.meta_batch_size,
            num_ways=config.num_ways,
            num_shots=config.num_shots,
            num_queries=config.num_queries,
            rng=counted_rng(0, "train", n),
        )

    def step(task: Any) -> None:
        state[:] = meta_step(*state, task)[:2]

    return draw, step


def shares(config: Any) -> dict[str, float]:
    draw, step = trainer(config, made_up(config))
    same = draw(0)
    step(same)
    began = time.perf_counter()
    step(same)
    steps = max(STEPS, int(SECONDS / (time.perf_counter() - began)))
    plain, drawing, draws = [], [], []
    with ThreadPoolExecutor(1) as ahead:
        drawn = ahead.submit(draw, 0)
        for n in range(1, 2 * steps + 1):
            began = time.perf_counter()
            if n % 2:
                step(same)
                plain.append(time.perf_counter() - began)
                continue
            task = drawn.result()
            drawn = ahead.submit(draw, n)
            step(task)
            drawing.append(time.perf_counter() - began)
            drawn.result()
    for n in range(STEPS):
        began = time.perf_counter()
        draw(n)
        draws.append(time.perf_counter() - began)
    plain_ms, drawing_ms, draw_ms = (1e3 * statistics.median(t) for t in (plain, drawing, draws))
    return {
        "step_ms": plain_ms,
        "iteration_ms": drawing_ms,
        "share": (drawing_ms - plain_ms) / drawing_ms,
        "draw_alone_ms": draw_ms,
    }


def peak_mb(path: Path | None) -> float:
    """Of a training on the file's images; None: on no more of them than one task has."""
    config = miniimagenet.PRESETS["today-5w1s"]
    if path is None:
        images = ClassImages.stacked(np.zeros((5, 16, *SHAPE[1:]), np.uint8), tuple("abcde"))
    else:
        each = np.full(100, SHAPE[0] // 100)
        names = tuple(map(str, range(100)))
        images = ClassImages(ImageFile(path, SHAPE), names, np.cumsum(each) - each, each)
    draw, step = trainer(config, images)
    for n in range(MEMORY_STEPS):
        step(draw(n))
    # Not getrusage's, which after exec goes on from the peak of the process that was there before.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 1024


def memory() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        with path.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": SHAPE}
            np.lib.format.write_array_header_1_0(file, header)
            rng = np.random.default_rng(0)
            for _ in range(100):
                file.write(rng.bytes(SHAPE[0] // 100 * int(np.prod(SHAPE[1:]))))
        found = {}
        for name, given in (("model_mb", []), ("with_images_mb", [str(path)])):
            worker = [sys.executable, __file__, "--peak", *given]
            done = subprocess.run(worker, check=True, capture_output=True, text=True)
            found[name] = float(done.stdout)
    return {**found, "images_mb": float(np.prod(SHAPE)) / 2**20}


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        keep_memory()
        print(peak_mb(Path(sys.argv[2]) if sys.argv[2:] else None))
        return
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    keep_memory()
    rows: dict[str, Any] = {}
    for name, config in SETTINGS.items():
        if not asked.only or name in asked.only:
            rows[name] = shares(config)
            row = rows[name]
            print(
                f"{name:28} step {row['step_ms']:7.1f} ms, with drawing {row['iteration_ms']:7.1f} "
                f"ms: {100 * row['share']:4.1f} %; drawing alone {row['draw_alone_ms']:5.2f} ms",
                flush=True,
            )
    if not asked.only:
        rows["memory"] = found = memory()
        print(
            f"peak memory: {found['with_images_mb']:.0f} MB with {found['images_mb']:.0f} MB of "
            f"images on disk, {found['model_mb']:.0f} MB without"
        )
    if asked.json is not None:
        with atomic_write(asked.json) as partial:
            partial.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
