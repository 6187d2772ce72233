"""Kill trainings at random moments, resume them, and compare the ends with unbroken runs.

    python benchmarks/kills.py [--data DIR] [--kills 50] [--json FILE]

For each experiment one training runs undisturbed, and one is killed (SIGKILL) again and again: at
any moment from before Python is up until a second after it first wrote a checkpoint, which it then
does many times a second. Each time it is resumed with the command that the README gives; before its
first checkpoint there is nothing to resume, and it begins anew. At the end every array of its
checkpoint must be the unbroken run's bit for bit, and every row of its metrics but for the clock.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from mamlnp import tree
from mamlnp.runs import CHECKPOINT, METRICS, PREVIOUS, atomic_write, open_run, versions

EXPERIMENTS = {
    "sine": "--meta-iterations 90000 --baseline-iterations 2000 --validation-tasks 20 "
    "--validate-every 100",
    "omniglot": "--meta-iterations 4000 --filters 8 --meta-batch-size 4 --validation-tasks 4 "
    "--validate-every 1",
    "nav2d": "--meta-iterations 400 --meta-batch-size 2 --rollouts 4 --validate-every 1",
}


@dataclass(frozen=True)
class Options:
    """Kill trainings at random moments, resume them, and compare.

    Attributes:
        data: folder with Omniglot's images; else the environment variable MAMLNP_DATA.
        kills: of each experiment.
        only: experiments; all if not given.
        seed: of the moments.
        json: write the rows here too.
    """

    data: Path | None = None
    kills: int = 50
    only: tuple[str, ...] = ()
    seed: int = 0
    json: Path | None = None


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mamlnp", "train", *words]


def rows(path: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without the clock."""
    with (path / METRICS).open(encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(file)
        ]


TIMES = ("wall_seconds", "steps_per_second")


def killed(
    name: str, words: list[str], path: Path, kills: int, rng: random.Random
) -> dict[str, Any]:
    """Train with so many interruptions; what there was of them."""
    found = {"kills": 0, "before_the_first_checkpoint": 0, "half_written": 0, "tracebacks": 0}
    resumable = path / CHECKPOINT
    while True:
        begin = not (resumable.exists() or (path / PREVIOUS).exists())
        if begin:
            shutil.rmtree(path, ignore_errors=True)
        how = [*words, "--out", f"{path}"] if begin else [name, "--resume", f"{path}"]
        stamp = resumable.stat().st_mtime_ns if resumable.exists() else 0
        process = subprocess.Popen(command(*how), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if found["kills"] < kills:
            if rng.random() < 0.2:  # while it starts
                time.sleep(rng.uniform(0, 3))
            else:  # while it trains, and mostly writes
                while process.poll() is None and (
                    not resumable.exists() or resumable.stat().st_mtime_ns == stamp
                ):
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 1))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                found["kills"] += 1
                found["before_the_first_checkpoint"] += not resumable.exists()
                found["half_written"] += any(path.glob(".*.[0-9]*.*"))
        said = process.communicate()[1].decode()
        found["tracebacks"] += "Traceback" in said
        if process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{' '.join(how)}: {said}")
        if process.returncode == 0:
            return found


def equal(ours: Path, theirs: Path) -> bool:
    """Whether two runs ended with the same bits."""
    a, b = (open_run(path).load() for path in (ours, theirs))
    leaves = [list(tree.items(x.arrays)) for x in (a, b)]
    same = all(
        p == q and np.array_equal(x, y, equal_nan=True)
        for (p, x), (q, y) in zip(*leaves, strict=True)
    )
    return same and a.iteration == b.iteration and rows(ours) == rows(theirs)


def main() -> None:
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, options in EXPERIMENTS.items():
            if asked.only and name not in asked.only:
                continue
            data = ["--data", f"{asked.data}"] if asked.data and name == "omniglot" else []
            words = [name, *options.split(), *data]
            unbroken, broken = Path(scratch) / f"{name}-unbroken", Path(scratch) / f"{name}-broken"
            subprocess.run(command(*words, "--out", f"{unbroken}"), check=True, capture_output=True)
            rng = random.Random(asked.seed)
            found[name] = killed(name, words, broken, asked.kills, rng)
            found[name]["equal"] = equal(broken, unbroken)
            print(f"{name}: {found[name]}", flush=True)
    if asked.json is not None:
        with atomic_write(asked.json) as partial:
            record = {"versions": versions(), "kills": asked.kills, "rows": found}
            partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if not all(row["equal"] and not row["tracebacks"] for row in found.values()):
        sys.exit("kills: a killed run ended otherwise than the unbroken one, or with a traceback.")


if __name__ == "__main__":
    main()
