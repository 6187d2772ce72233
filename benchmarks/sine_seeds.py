"""The sine experiment over several seeds, each a training of its own, on one fixed test set.

    python benchmarks/sine_seeds.py [--seeds 0 1 2 3 4] [--preset today|paper] [--json FILE]
        [--blas Haswell SkylakeX] [--at-once 2]

Trains what is not there yet in RUNS/sine-PRESET-BLAS-SEED (continuing what was stopped), evaluates,
and prints the 5-shot errors of every seed, their median, the baselines' and the paper's. ``--blas``
names architectures that NumPy's OpenBLAS has kernels for; without it each run takes the machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STEPS = (1, 5, 10)
MAMLNP = [sys.executable, "-m", "mamlnp"]


def evaluated(seed: int, blas: str, preset: str, folder: Path) -> dict[str, Any]:
    """The record ``mamlnp evaluate --json`` writes, of a finished run."""
    run = folder / f"sine-{preset}-{blas or 'default'}-{seed}"
    env = {**os.environ, **({"OPENBLAS_CORETYPE": blas} if blas else {})}
    quiet: dict[str, Any] = {"check": True, "env": env, "stdout": subprocess.DEVNULL}
    if (run / "checkpoint.safetensors").exists():
        subprocess.run([*MAMLNP, "train", "sine", "--resume", run], **quiet)
    else:
        options = ["--seed", str(seed), "--preset", preset, "--out", run]
        subprocess.run([*MAMLNP, "train", "sine", *options], **quiet)
    rows = run / "rows.json"
    subprocess.run([*MAMLNP, "evaluate", run, "--json", rows], **quiet)
    return json.loads(rows.read_text())


def five_shot(record: dict[str, Any], method: str) -> dict[int, dict[str, Any]]:
    return {
        row["steps"]: row
        for row in record["rows"]
        if row["setting"] == "sine 5-shot" and row["method"] == method
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--preset", default="today", choices=["today", "paper"])
    parser.add_argument("--blas", nargs="+", default=[""], help="OPENBLAS_CORETYPE of the runs")
    parser.add_argument("--at-once", type=int, default=1, help="trainings; each takes one core")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path, help="write the 5-shot rows here")
    options = parser.parse_args()

    names = [(seed, blas) for blas in options.blas for seed in options.seeds]
    with ThreadPoolExecutor(options.at_once) as pool:
        found = pool.map(lambda name: evaluated(*name, options.preset, options.runs), names)
        records = dict(zip((f"{seed} {blas}".strip() for seed, blas in names), found, strict=True))
    print("| 5-shot mean squared error | " + " | ".join(f"{s} steps" for s in STEPS), end="")
    print(" | diverged of 600 |\n|---|---|---|---|---|")
    for method in ("MAML", "pretrained", "random init", "oracle", "paper MAML", "paper pretrained"):
        of_seeds = [five_shot(record, method) for record in records.values()]
        if method == "MAML":
            for seed, rows in zip(records, of_seeds, strict=True):
                print(_line(f"MAML, seed {seed}", [rows[s]["mean"] for s in STEPS], rows[10]))
        means = [statistics.median(_finite(rows[s]["mean"]) for rows in of_seeds) for s in STEPS]
        print(_line(f"{method}, median" if "paper" not in method else method, means, None))
        if method == "MAML":
            means = [max(_finite(rows[s]["mean"]) for rows in of_seeds) for s in STEPS]
            print(_line("MAML, largest", means, None))
    if options.json:
        partial = options.json.with_suffix(".partial")
        for record in records.values():
            record["rows"] = [row for row in record["rows"] if row["setting"] == "sine 5-shot"]
        partial.write_text(json.dumps(records).replace('{"setting', '\n{"setting') + "\n")
        partial.replace(options.json)


def _finite(mean: float | None) -> float:
    """JSON has no infinity: a mean that is none stands there as null."""
    return float("inf") if mean is None else mean


def _line(name: str, means: list[float | None], row: dict[str, Any] | None) -> str:
    shown = " | ".join(f"{_finite(m):.3f}" for m in means)
    return f"| {name} | {shown} | {row['diverged'] if row else ''} |"


if __name__ == "__main__":
    main()
