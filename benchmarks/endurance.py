"""Does anything grow? An hour of training, and hundreds of plans of other shapes, under watch.

    python benchmarks/endurance.py [--data DIR] [--minutes 60] [--cycles 600] [--json FILE]

Training: ``mamlnp train`` runs for so long, validation and checkpoints included, and every second
its resident memory, threads and open files are read (from /proc, so on Linux only). What it has
after the first tenth of the time must be what it has at the end.

Plans: a meta-gradient is compiled for another shape and replayed, again and again, by one compiled
function, which forgets the oldest of its plans, and by functions that are dropped. Every buffer of
a forgotten plan must be gone at once, without the cycle collector, and memory must stay flat.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from mamlnp import Batch, Task, array, losses, maml, nn
from mamlnp.compile import MOST_PLANS, compile
from mamlnp.runs import atomic_write, versions

FLAT = 0.02  # how far memory may move


@dataclass(frozen=True)
class Options:
    """An hour of training, and hundreds of plans of other shapes, under watch.

    Attributes:
        data: folder with Omniglot's images; else the environment variable MAMLNP_DATA.
        minutes: of training.
        training: what is trained.
        cycles: plans that are made, replayed and dropped.
        json: write what was found here too.
    """

    data: Path | None = None
    minutes: float = 60
    training: str = "omniglot --preset paper-5w1s --meta-iterations 1000000 --validate-every 50"
    cycles: int = 600
    json: Path | None = None


class Sample(NamedTuple):
    """What a process has: resident megabytes, threads, open files."""

    memory: float
    threads: int
    files: int


def sample(pid: int) -> Sample:
    """What a process has now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    memory = int(fields["VmRSS"].split()[0]) / 1024
    return Sample(memory, int(fields["Threads"]), len(os.listdir(f"/proc/{pid}/fd")))


def trained(asked: Options) -> dict[str, Any]:
    """A training under watch."""
    data = ["--data", f"{asked.data}"] if asked.data else []
    found: list[Sample] = []
    with tempfile.TemporaryDirectory() as scratch:
        words = [*shlex.split(asked.training), *data, "--out", f"{scratch}/run"]
        process = subprocess.Popen(
            [sys.executable, "-m", "mamlnp", "train", *words],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in tqdm(range(round(60 * asked.minutes)), desc="training", unit="s"):
            time.sleep(1)
            if process.poll() is not None:
                sys.exit(f"endurance: the training ended: {process.communicate()[1][-2000:]}")
            found.append(sample(process.pid))
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    done = said.rsplit("stopped after ", 1)[-1].split()[0]
    settled = found[len(found) // 10 :]
    few = max(1, len(settled) // 10)
    first, last = settled[:few], settled[-few:]
    return {
        "training": asked.training,
        "minutes": asked.minutes,
        "meta_iterations": int(done),
        "megabytes_at_first": statistics.median(x.memory for x in first),
        "megabytes_at_last": statistics.median(x.memory for x in last),
        "most_megabytes": max(x.memory for x in settled),
        "least_megabytes": min(x.memory for x in settled),
        "threads_at_first": max(x.threads for x in first),
        "threads_at_last": max(x.threads for x in last),
        "files_at_first": statistics.median(x.files for x in first),
        "files_at_last": statistics.median(x.files for x in last),
        "most_files": max(x.files for x in settled),
        "every_minute": [list(x) for x in found[::60]],
    }


def planned(cycles: int) -> dict[str, Any]:
    """Plans of other shapes, made, replayed and dropped."""
    net = nn.mlp((64, 128, 8))

    def gradient(params: Any, task: Task) -> Any:
        def loss(params: Any, batch: Batch) -> Any:
            return losses.mse(net.apply(params, batch.x), batch.y, reduction="mean")

        return maml.meta_gradient(loss, params, task, inner_lr=0.1, inner_steps=2)

    rng = np.random.default_rng(0)
    params = net.init(rng=rng)
    kept = compile(gradient)
    alive: list[weakref.ref[Any]] = []
    found: list[Sample] = []
    gc.collect()
    gc.disable()
    for n in tqdm(range(cycles), desc="plans", unit="plan"):
        shape = 4, 100 + 37 * n % 600  # another one each time, small and large in turn
        batch = Batch(
            array(rng.normal(size=(*shape, 64)).astype(np.float32)),
            array(rng.normal(size=(*shape, 8)).astype(np.float32)),
        )
        for run in (kept, compile(gradient)):
            for _ in range(3):
                run(params, Task(batch, batch))
            alive += [weakref.ref(replay._block) for replay in run.latest().replays]
        del run
        found.append(sample(os.getpid()))
    left = sum(x() is not None for x in alive)
    gc.enable()
    settled = found[len(found) // 3 :]  # by then the caches of bounded size are full
    few = max(1, len(settled) // 10)
    return {
        "plans": 2 * cycles,
        "kept": MOST_PLANS,
        "buffers_alive": left,
        "megabytes_at_first": statistics.median(x.memory for x in settled[:few]),
        "megabytes_at_last": statistics.median(x.memory for x in settled[-few:]),
        "threads_at_first": settled[0].threads,
        "threads_at_last": settled[-1].threads,
        "files_at_first": settled[0].files,
        "files_at_last": settled[-1].files,
    }


def grown(found: dict[str, Any]) -> float:
    """By which share memory grew, or fell."""
    return found["megabytes_at_last"] / found["megabytes_at_first"] - 1


def constant(found: dict[str, Any]) -> bool:
    """Whether memory is as at first, and so are threads and open files."""
    return abs(grown(found)) <= FLAT and all(
        found[f"{what}_at_first"] == found[f"{what}_at_last"] for what in ("threads", "files")
    )


def main() -> None:
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    found = {"plans": planned(asked.cycles)}
    print({**found["plans"], "grown": f"{grown(found['plans']):.2%}"}, flush=True)
    if asked.minutes:
        found["training"] = trained(asked)
        shown = {name: x for name, x in found["training"].items() if name != "every_minute"}
        print({**shown, "grown": f"{grown(found['training']):.2%}"})
    if asked.json is not None:
        with atomic_write(asked.json) as partial:
            record = {"versions": versions(), **found}
            partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    wrong = [name for name, row in found.items() if not constant(row)]
    if wrong or found["plans"]["buffers_alive"] > MOST_PLANS:
        sys.exit(f"endurance: not as at first: {', '.join(wrong) or 'buffers of plans'}.")


if __name__ == "__main__":
    main()
