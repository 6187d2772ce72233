"""How long the first compiled meta-step takes, with an empty and with a filled kernel cache.

    python benchmarks/first_step.py [--setting NAME] [--json FILE]

Each in a process of its own, from the first call to its result: tracing, planning, compiling or
loading kernels, and one step. The setting's tensors are those of compare.py.
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

from mamlnp.runs import atomic_write, versions


def first_step(setting: str, order: int) -> None:
    step = compare.ours_compiled(
        compare.tensors(compare.SETTINGS[setting]), compare.SETTINGS[setting], order
    )
    began = time.perf_counter()
    step()
    print(time.perf_counter() - began)


def seconds(setting: str, order: int, cache: str) -> float:
    command = [sys.executable, __file__, "--setting", setting, "--work", str(order)]
    environment = {**os.environ, "MAMLNP_CACHE": cache}
    return float(subprocess.check_output(command, env=environment, text=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=compare.SETTINGS, action="append")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return first_step(options.setting[0], options.work)
    rows = []
    for setting in options.setting or compare.SETTINGS:
        for order in (1, 2):
            with tempfile.TemporaryDirectory() as cache:
                cold, warm = (seconds(setting, order, cache) for _ in range(2))
            rows.append({"setting": setting, "order": order, "cold_s": cold, "warm_s": warm})
            print(f"{setting}, order {order}: cold {cold:.1f} s, warm {warm:.1f} s", flush=True)
    if options.json:
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
