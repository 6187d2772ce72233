"""How long the first compiled meta-step takes, with an empty and with a filled kernel cache.

    python benchmarks/first_step.py [--setting NAME] [--json FILE] [--against FOLDER]

Each in a process of its own, from the first call to its result: tracing, planning, compiling or
loading kernels, and one step; and how much longer it takes if the first replay is held against
eager, as it is by default. The setting's tensors are those of compare.py. ``--against`` another
checkout of mamlnp takes that one's first steps in turn with these. Every number is the least of
some runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compare
import numpy as np

from mamlnp.runs import atomic_write, versions

CHECKS = {"unchecked": False, "checked": True}


def first_step(setting: str, order: int, checks: str) -> None:
    arrays, how = compare.tensors(compare.SETTINGS[setting]), compare.SETTINGS[setting]
    step = compare.ours_compiled(arrays, how, order, check=CHECKS[checks])
    began = time.perf_counter()
    step()
    print(time.perf_counter() - began)


def seconds(setting: str, order: int, checks: str, against: Path | None) -> tuple[float, float]:
    """With an empty cache, and with what that left."""
    script, environment = __file__, dict(os.environ)
    if checks == "before":
        assert against is not None
        environment["PYTHONPATH"] = str(against)
        (script,) = map(str, against.glob("benchmarks/**/first_step.py"))  # for its own interface
        checks = "unchecked"
    command = [sys.executable, script, "--setting", setting, "--work", str(order), checks]
    with tempfile.TemporaryDirectory() as cache:
        environment["MAMLNP_CACHE"] = cache
        cold, warm = (
            float(subprocess.check_output(command, env=environment, text=True)) for _ in range(2)
        )
    return cold, warm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=compare.SETTINGS, action="append")
    parser.add_argument("--against", type=Path, help="another checkout of mamlnp")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return first_step(options.setting[0], int(options.work[0]), options.work[1])
    rows = []
    kinds = [*CHECKS, *(["before"] if options.against else [])]
    for setting in options.setting or compare.SETTINGS:
        for order in (1, 2):
            runs = [
                {kind: seconds(setting, order, kind, options.against) for kind in kinds}
                for _ in range(options.repeats)
            ]
            least = {kind: np.min([run[kind] for run in runs], axis=0).tolist() for kind in kinds}
            (cold, warm), (checked, _) = least["unchecked"], least["checked"]
            row = {"setting": setting, "order": order, "cold_s": cold, "warm_s": warm}
            row["check_s"] = checked - cold
            shown = f"cold {cold:.1f} s, warm {warm:.1f} s, the check {row['check_s']:.1f} s more"
            if options.against:
                row |= {"cold_before_s": least["before"][0], "warm_before_s": least["before"][1]}
                shown += (
                    f"; before: cold {least['before'][0]:.1f} s, warm {least['before'][1]:.1f} s"
                )
            rows.append(row)
            print(f"{setting}, order {order}: {shown}", flush=True)
    if options.json:
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
