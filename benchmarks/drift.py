"""How far float32 is from float64: in one meta-gradient, and after a training.

    python benchmarks/drift.py [--data DIR] [--json FILE]

The same training runs in float64, in float32, and in float64 from several starts that are moved by
as much as float32 rounds numbers, 6e-8 of each: on the same tasks, compiled, with Adam. Reported:

- one step: the relative distance of the float32 meta-gradient from the float64 one at the very same
  parameters (those of float32's training so far);
- drift: the distance of the trained parameters from float64's, over how far those have moved;
- loss: the mean over the meta-iterations since the line before.

Where the moved starts drift as far as float32, that is the training's own sensitivity to its start,
and not something that float32 does to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from mamlnp import Batch, Task, array, losses, nn, optim, parallel, tree
from mamlnp.meta import MAML, Algorithm
from mamlnp.runs import atomic_write, versions
from mamlnp.tasks import counted_rng
from mamlnp.tasks.omniglot import load_omniglot
from mamlnp.tasks.sinusoid import Sinusoids

SHOWN = (1, 10, 100, 1000)
STARTS = 5
ROUNDING = float(np.finfo(np.float32).eps) / 2
TABLE = Path(__file__).parent / "results" / "drift.md"


@dataclass(frozen=True)
class Options:
    """How far float32 is from float64.

    Attributes:
        data: folder with Omniglot's images; else the environment variable MAMLNP_DATA.
        meta_iterations: of each training.
        json: write the numbers here too, and the table beside this file, in results/drift.md.
    """

    data: Path | None = None
    meta_iterations: int = SHOWN[-1]
    json: Path | None = None


Experiment = tuple[nn.Network, Algorithm, Callable[[int], Task]]


def sine(_: Options) -> Experiment:
    """The paper's: 25 tasks of 10 points, one inner step."""
    net, waves = nn.mlp((1, 40, 40, 1)), Sinusoids()

    def loss(params: Any, batch: Batch) -> Any:
        return losses.mse(net.apply(params, batch.x), batch.y, reduction="mean")

    def draw(n: int) -> Task:
        rng = counted_rng(0, "train", n)
        return waves.sample(25, num_shots=10, num_queries=10, rng=rng)

    return net, MAML(loss, inner_lr=0.01), draw


def characters(asked: Options) -> Experiment:
    """Omniglot, 5-way 1-shot: 8 tasks, 16 filters, one inner step."""
    data = load_omniglot(asked.data)["train"]
    net = nn.conv4(5, filters=16, image_size=28, gamma=True)

    def loss(params: Any, batch: Batch) -> Any:
        return losses.cross_entropy(net.apply(params, batch.x), batch.y, reduction="mean")

    def draw(n: int) -> Task:
        rng = counted_rng(0, "train", n)
        return data.sample(8, num_ways=5, num_shots=1, num_queries=1, rng=rng)

    return net, MAML(loss, inner_lr=0.4), draw


EXPERIMENTS = {"sine": sine, "Omniglot": characters}


def cast(x: Any, dtype: Any) -> Any:
    """A tree with its floating-point numbers in another type."""

    def one(leaf: Any) -> Any:
        value = leaf.numpy() if hasattr(leaf, "numpy") else leaf
        return array(value.astype(dtype) if value.dtype.kind == "f" else value)

    return tree.map(one, x)


def vector(params: Any) -> np.ndarray:
    """All numbers of a tree."""
    return np.concatenate([x.numpy().ravel().astype(np.float64) for x in tree.leaves(params)])


def measured(experiment: Experiment, meta_iterations: int) -> list[dict[str, float]]:
    """A row for each of the iterations that are shown."""
    net, algorithm, draw = experiment
    optimizer = optim.adam(1e-3)
    start = cast(net.init(rng=np.random.default_rng(0)), np.float64)
    rng = np.random.default_rng(1)
    kinds: dict[str, Any] = {"float64": (start, np.float64), "float32": (start, np.float32)}
    for n in range(STARTS):
        moved = tree.map(
            lambda p: array(p.numpy() * (1 + ROUNDING * rng.choice([-1, 1], p.shape))), start
        )
        kinds[f"moved {n}"] = (moved, np.float64)
    step = parallel.meta_step(algorithm.gradient, optimizer=optimizer)
    gradient = parallel.meta_gradient(algorithm.gradient)
    params = {name: cast(theta, dtype) for name, (theta, dtype) in kinds.items()}
    state = {name: optimizer.init(theta) for name, theta in params.items()}
    seen: dict[str, list[float]] = {name: [] for name in kinds}
    rows = []
    for n in tqdm(range(1, meta_iterations + 1), leave=False):
        task = draw(n)
        if n in SHOWN:
            at = params["float32"]
            there, here = (
                vector(gradient(cast(at, dtype), cast(task, dtype))[1])
                for dtype in (np.float64, np.float32)
            )
            one_step = float(np.linalg.norm(here - there) / np.linalg.norm(there))
        for name, (_, dtype) in kinds.items():
            theta, kept, found = step(params[name], state[name], cast(task, dtype))
            params[name], state[name] = theta, kept
            seen[name].append(float(found.numpy().mean()))
        if n in SHOWN:
            far = {name: vector(theta) for name, theta in params.items()}
            way = float(np.linalg.norm(far["float64"] - vector(start)))
            row = {"iteration": n, "one_step": one_step}
            for name in kinds:
                row[f"drift {name}"] = float(np.linalg.norm(far[name] - far["float64"])) / way
            rows.append(row | {f"loss {name}": math.fsum(x) / len(x) for name, x in seen.items()})
            seen = {name: [] for name in kinds}
    return rows


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """All rows in Markdown."""
    lines = [
        "| | meta-iterations | float32's meta-gradient | drift of float32 | of moved starts "
        "| loss: float64 | float32 | moved starts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        for row in found:
            drift, mean = (
                [row[f"{what} moved {n}"] for n in range(STARTS)] for what in ("drift", "loss")
            )
            cells = (
                f"{row['one_step']:.1e}",
                f"{row['drift float32']:.1e}",
                f"{min(drift):.1e} to {max(drift):.1e}",
                f"{row['loss float64']:.4f}",
                f"{row['loss float32']:.4f}",
                f"{min(mean):.4f} to {max(mean):.4f}",
            )
            lines.append(f"| {name} | {row['iteration']:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    rows = {
        name: measured(made(asked), asked.meta_iterations) for name, made in EXPERIMENTS.items()
    }
    print(table(rows), end="")
    if asked.json is not None:
        with atomic_write(asked.json) as partial:
            record = {"versions": versions(), "rows": rows}
            partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        with atomic_write(TABLE) as partial:
            partial.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
