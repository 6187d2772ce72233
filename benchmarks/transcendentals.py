"""What exp, sin and the like cost in a compiled plan, against the same run eagerly.

    python benchmarks/transcendentals.py [--json FILE]

For each op, float type and size, ratios compiled / eager, medians of interleaved blocks in one
process, in its processor time, which others on the machine do not change much: of the op alone,
where a replay's own cost (some microseconds, the same for a plan of any size) counts in full; of
its elements alone, less what either way takes for one; and of a chain of eight of it, each with a
product and a sum, as in a network.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import mamlnp as ml
from mamlnp.runs import atomic_write, versions

OPS = {
    "exp": ml.exp,
    "expm1": ml.expm1,
    "log": ml.log,
    "log1p": ml.log1p,
    "power, to 1.7": lambda x: x**1.7,
    "power, of arrays": lambda x: ml.power(x, x),
    "sigmoid": ml.sigmoid,
    "softplus": ml.softplus,
    "sin": ml.sin,
    "cos": ml.cos,
    "tanh": ml.tanh,
}
SIZES = (1_024, 16_384, 262_144)
BLOCKS, SECONDS = 41, 2e-3
WAYS = "compiled", "eager"


def chain(f: Any) -> Any:
    """Eight of it; what goes in stays between 0.5 and 2.5."""

    def chained(x: Any) -> Any:
        total = x
        for i in range(8):
            total = total + f(x * (1 + 0.01 * i)) * 0.1
        return total

    return chained


def ratio(f: Any, x: Any) -> tuple[float, float]:
    """(compiled, eager) seconds a call."""
    ways = ml.compile(f), f
    blocks: list[list[float]] = [[], []]
    repeats = []
    for way in ways:
        way(x)
        began = time.thread_time()
        way(x)
        repeats.append(max(1, round(SECONDS / (time.thread_time() - began))))
    for _ in range(BLOCKS):
        for way, count, found in zip(ways, repeats, blocks, strict=True):
            began = time.thread_time()
            for _ in range(count):
                way(x)
            found.append((time.thread_time() - began) / count)
    compiled, eager = map(float, map(np.median, blocks))
    return compiled, eager


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    rows = []
    print(
        f"{'op':18} {'type':8} {'size':>8} {'alone us':>18} {'ratio':>6} {'elements':>8}"
        f" {'chain us':>18} ratio"
    )
    for name, f in OPS.items():
        for dtype in (np.float32, np.float64):
            of_one = ratio(f, ml.array(np.full(1, 1.5, dtype)))
            for size in SIZES:
                x = ml.array(np.random.default_rng(0).uniform(0.5, 2.5, size).astype(dtype))
                row = {"op": name, "type": dtype.__name__, "size": size}
                for what, g in (("alone", f), ("chain", chain(f))):
                    compiled, eager = ratio(g, x)
                    row |= {f"{what}_compiled_s": compiled, f"{what}_eager_s": eager}
                    row[f"{what}_ratio"] = compiled / eager
                elements = [row[f"alone_{w}_s"] - one for w, one in zip(WAYS, of_one, strict=True)]
                row["elements_ratio"] = elements[0] / elements[1]
                rows.append(row)
                alone, chained = (
                    f"{1e6 * row[f'{what}_compiled_s']:8.1f} /{1e6 * row[f'{what}_eager_s']:8.1f} "
                    f"{row[f'{what}_ratio']:6.2f}"
                    for what in ("alone", "chain")
                )
                print(
                    f"{name:18} {dtype.__name__:8} {size:8} {alone} {row['elements_ratio']:8.2f} "
                    f"{chained}",
                    flush=True,
                )
    if options.json:
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
