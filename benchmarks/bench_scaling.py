"""Trainings over processes: strong and weak scaling, and what to expect of 8 to 1,024 ranks.

    python benchmarks/bench_scaling.py [--data DIR] [--ranks 2] [--json FILE]

Needs ``pip install '.[mpi]' mpich``, or the machine's own MPI, and a core a rank: every rank runs
one thread. Measured are

- a meta-step of Omniglot (5-way 1-shot, second order) on one rank, of several numbers of tasks;
  over ranks, of 32 tasks in all (strong scaling) and of 32 tasks a rank (weak scaling);
- Allreduces by themselves, of many lengths;
- a whole training, ``mamlnp train omniglot``, on one rank and over ranks in turns: its time, and
  whether its losses are the same: as near as one rank's that adds gradients in another order,
  which is all that ranks do. Rounding grows in a training until nothing but means can be compared.

The cost model (see ``Model``) is fitted to one rank's meta-steps and to the Allreduces, and must
then foretell the meta-step over ranks. For other interconnects it takes the latency and bandwidth
of INTERCONNECTS, which are assumptions.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from mamlnp import Batch, losses, nn, optim, parallel, tree
from mamlnp.array import array
from mamlnp.backend.machine import keep_memory
from mamlnp.experiments import miniimagenet, omniglot, sine
from mamlnp.experiments.classification import network
from mamlnp.experiments.locomotion import AntDirection, CheetahDirection
from mamlnp.experiments.reinforcement import policy_of
from mamlnp.meta import MAML
from mamlnp.ranks import Ranks, world
from mamlnp.rl.envs import ENVIRONMENTS
from mamlnp.runs import METRICS, atomic_write, versions
from mamlnp.tasks.fewshot import ClassImages

TASKS = 32  # the paper's meta-batch
SIZES = (1, 2, 4, 8, 16, 32)  # tasks of one rank's meta-steps, from which t and u are fitted
LENGTHS = (1, 256, 4096, 32768, 131072, 524288, 2097152)  # float32 numbers of an Allreduce
FORETOLD = (8, 16, 32, 64, 128, 256, 512, 1024)
STRONG = 1024  # tasks of the meta-batch that is shared among so many ranks
PRODUCTS = 13  # Allreduces of a TRPO update: a gradient, 10 products, 2 of two numbers and more
TRAINING = (
    "omniglot --preset paper-5w1s --threads 1 --meta-iterations 200 --validate-every 25 "
    "--validation-tasks 60"
)
MEANS = (25, 175)  # meta-iterations a row of metrics, and from the first row to the last
OTHERWISE = ("--chunks", "16")  # the gradients of one rank's tasks, added in another order
TABLE = Path(__file__).parent / "results" / "scaling.md"


@dataclass(frozen=True)
class Options:
    """Trainings over processes: strong and weak scaling.

    Attributes:
        data: folder with Omniglot's images; else the environment variable MAMLNP_DATA.
        ranks: how many; beside one.
        steps: meta-steps of each kind that are timed.
        turns: trainings of each number of ranks.
        json: write the numbers here too, and the tables beside this file, in results/scaling.md.
        child: what one of the ranks measures, and into which file; the script starts them itself.
    """

    data: Path | None = None
    ranks: int = 2
    steps: int = 30
    turns: int = 3
    json: Path | None = None
    child: Path | None = None


# ---- the cost model


class Interconnect(NamedTuple):
    """Attributes:
    latency: alpha, seconds a message.
    bandwidth: bytes a second and direction, additions included.
    """

    latency: float
    bandwidth: float

    def allreduce(self, ranks: int, size: float) -> float:
        """Seconds of a sum of vectors of so many bytes: halving and doubling (Thakur, Rabenseifner
        and Gropp 2005, section 4.4), 2 log2 N messages that carry 2 (N - 1) / N of the vector.
        """
        return (
            2 * math.ceil(math.log2(ranks)) * self.latency
            + 2 * (ranks - 1) / ranks * size / self.bandwidth
        )


# Assumed, as a process sees them; not measured.
INTERCONNECTS = {
    "25 Gb/s Ethernet": Interconnect(30e-6, 2.5e9),
    "200 Gb/s InfiniBand": Interconnect(2e-6, 20e9),
}


class Model(NamedTuple):
    """A meta-step of B tasks over N ranks takes b t + B d + u + w + allreduce, b = ceil(B / N).

    Attributes:
        task: t, seconds of a task's meta-gradient, and of making the task.
        draw: d, of drawing which images a task has, which every rank does for all tasks.
        update: u, of what every rank does: the sum over its tasks and the optimiser.
        spread: the standard deviation of a rank's own time, as a share of it. The slowest of N is
            waited for: w is by how much the largest of N normal numbers with it is expected to
            exceed their mean (Blom 1958).
    """

    task: float
    draw: float
    update: float
    spread: float

    def own(self, tasks: int, ranks: int) -> float:
        """Seconds that a rank computes."""
        return math.ceil(tasks / ranks) * self.task + tasks * self.draw + self.update

    def wait(self, tasks: int, ranks: int) -> float:
        """w, seconds."""
        largest = statistics.NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))
        return self.own(tasks, ranks) * self.spread * largest if ranks > 1 else 0.0

    def step(self, tasks: int, ranks: int, over: Interconnect) -> float:
        """Seconds of a meta-step."""
        summed = over.allreduce(ranks, gradient(tasks)) if ranks > 1 else 0.0
        return self.own(tasks, ranks) + self.wait(tasks, ranks) + summed


@functools.cache
def numbers() -> dict[str, tuple[int, int]]:
    """Of every network here, how many numbers are summed, and the bytes of each."""

    def size(params: Any) -> int:
        return sum(leaf.size for leaf in tree.leaves(params))

    rng = np.random.default_rng(0)
    found = {"sine": (size(sine.NETWORK.init(rng=rng)), 4)}
    for name, config, ways in (
        ("Omniglot, 5-way", omniglot.PRESETS["paper-5w1s"], 5),
        ("Omniglot, 20-way", omniglot.PRESETS["paper-20w1s"], 20),
        ("Omniglot, MLP", omniglot.PRESETS["paper-5w1s-mlp"], 5),
        ("mini-ImageNet", miniimagenet.PRESETS["paper-5w1s"], 5),
    ):
        found[name] = size(network(config, ways).init(rng=rng)), 4
    for config in (CheetahDirection(), AntDirection()):
        policy = policy_of(config, ENVIRONMENTS[config.environment])
        found[f"policy, {config.environment}"] = size(policy.init(rng=rng)), 8
    return found


def gradient(tasks: int) -> int:
    """The bytes that Omniglot's meta-step sums: the gradient, and the tasks' losses."""
    count, width = numbers()["Omniglot, 5-way"]
    return width * (count + tasks)


# ---- what a rank measures


class Timed(Ranks):
    """Ranks that note how long each sum over them took, waiting included."""

    def __init__(self, ranks: Ranks) -> None:
        vars(self).update(vars(ranks))
        self.seconds = 0.0

    def total(self, arrays: list[Any]) -> list[Any]:
        began = time.perf_counter()
        found = super().total(arrays)
        self.seconds += time.perf_counter() - began
        return found

    def together(self) -> None:
        """Wait until all are here."""
        self.gathered(0)


@functools.cache
def characters() -> ClassImages:
    """Noise of Omniglot's shape: 1,100 classes of 20 images."""
    images = np.random.default_rng(0).integers(0, 256, (22_000, 28, 28, 1), np.uint8)
    names = tuple(f"{n:04}" for n in range(1100))
    return ClassImages(images, names, 20 * np.arange(1100), np.full(1100, 20))


def stepped(tasks: int, steps: int, ranks: Timed) -> dict[str, float]:
    """A meta-step's seconds, and those of its parts, medians over steps: what a rank computes by
    itself, the mean over ranks; how much longer the slowest does; and the Allreduce, as the last
    rank to come to it sees it."""
    net = nn.conv4(5, filters=64, image_size=28)

    def loss(params: Any, batch: Batch) -> Any:
        return losses.cross_entropy(net.apply(params, batch.x), batch.y, reduction="mean")

    optimizer, params = optim.adam(1e-3), net.init(rng=np.random.default_rng(1))
    state, data = optimizer.init(params), characters()
    mine = slice(*ranks.bounds(tasks))
    step = parallel.meta_step(
        MAML(loss, inner_lr=0.4).gradient,
        optimizer=optimizer,
        threads=1,
        ranks=ranks,
        meta_batch_size=tasks,
    )
    found = []
    for n in range(steps + 3):
        ranks.together()
        ranks.seconds, began = 0.0, time.perf_counter()
        rng = np.random.default_rng(n)
        task = data.sample(tasks, num_ways=5, num_shots=1, num_queries=1, rng=rng, part=mine)
        params, state, _ = step(params, state, tree.map(array, task))
        took = time.perf_counter() - began
        if n >= 3:  # compiled by then, and the caches warm
            found.append(ranks.gathered((took, took - ranks.seconds, ranks.seconds)))
    whole, own, summed = np.moveaxis(np.array(found), -1, 0)  # (steps, ranks) each
    quartiles = np.quantile(own, [0.25, 0.75], axis=0)
    spread = (quartiles[1] - quartiles[0]) / 1.349  # of a normal distribution; no outliers
    return {
        "seconds": float(np.median(whole.max(1))),
        "own": float(np.median(own.mean(1))),
        "wait": float(np.median(own.max(1) - own.mean(1))),
        "allreduce": float(np.median(summed.min(1))),
        "spread": float(np.mean(spread / np.median(own, axis=0))),
    }


def drawn() -> float:
    """Seconds of drawing which images one more task has, of which none are made."""
    data = characters()

    def seconds(tasks: int) -> float:
        found = []
        for n in range(20):
            rng, began = np.random.default_rng(n), time.perf_counter()
            data.sample(tasks, num_ways=5, num_shots=1, num_queries=1, rng=rng, part=slice(1))
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    return (seconds(4096) - seconds(1024)) / 3072


def reduced(length: int, ranks: Timed) -> float:
    """Seconds of an Allreduce of so many float32 numbers, median of 50."""
    x, found = np.ones(length, np.float32), []
    for _ in range(55):
        ranks.together()
        ranks.seconds = 0.0
        ranks.total([x])
        found.append(max(ranks.gathered(ranks.seconds)))
    return statistics.median(found[5:])


def child(into: Path, steps: int) -> None:
    """What one launch measures; its first rank writes it."""
    keep_memory()
    ranks = Timed(world())
    found: dict[str, Any] = {"ranks": ranks.size}
    sizes = SIZES if ranks.size == 1 else (TASKS, TASKS * ranks.size)
    found["steps"] = {tasks: stepped(tasks, steps, ranks) for tasks in sizes}
    if ranks.size == 1:
        found["draw"] = drawn()
    else:
        found["allreduce"] = {length: reduced(length, ranks) for length in LENGTHS}
    if ranks.writes:
        into.write_text(json.dumps(found), encoding="utf-8")


# ---- what is made of it


def launch(ranks: int, *words: str) -> None:
    """A program over ranks; its errors end this one."""
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which(
        "mpiexec"
    )
    if mpiexec is None:
        sys.exit("bench_scaling: there is no mpiexec. Run: pip install '.[mpi]' mpich")
    command = [mpiexec, "-n", f"{ranks}", sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench_scaling: {' '.join(command)} failed: {done.stderr[-2000:]}")


def fitted(one: dict[str, Any], several: dict[str, Any]) -> tuple[Model, Interconnect]:
    """t and u by least squares of relative errors; latency and bandwidth of this machine alike."""
    task, update = _line({int(tasks): step["own"] for tasks, step in one["steps"].items()})
    spread = statistics.median(step["spread"] for step in one["steps"].values())
    ranks, found = several["ranks"], several["allreduce"]
    unit = Interconnect(0.0, 1.0)
    messages = 2 * math.ceil(math.log2(ranks))
    carried = {unit.allreduce(ranks, 4 * int(n)): seconds for n, seconds in found.items()}
    byte, latency = _line(carried)
    here = Interconnect(latency / messages, 1 / byte)
    return Model(task - one["draw"], one["draw"], update, spread), here


def _line(points: dict[Any, float]) -> tuple[float, float]:
    """Slope and height of the line through points, all of which count by their relative error; it
    goes through zero where it would begin below."""
    x, y = np.array(list(points)), np.array(list(points.values()))
    rows = np.stack([x, np.ones_like(x)], 1) / y[:, None]
    slope, height = np.linalg.lstsq(rows, np.ones_like(y), rcond=None)[0]
    if height < 0:
        slope, height = rows[:, 0].sum() / (rows[:, 0] ** 2).sum(), 0.0
    return float(slope), float(height)


def trained(ranks: int, data: Sequence[str], path: Path) -> tuple[float, list[float]]:
    """Seconds from a training's first validation to its last, and its losses."""
    launch(ranks, "-m", "mamlnp", "train", *TRAINING.split(), *data, "--out", f"{path}")
    with (path / METRICS).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seconds = float(rows[-1]["wall_seconds"]) - float(rows[0]["wall_seconds"])
    return seconds, [float(row["train_loss"]) for row in rows]


def measured(asked: Options) -> dict[str, Any]:
    """Everything that is timed here."""
    data = ["--data", f"{asked.data}"] if asked.data else []
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for ranks in (1, asked.ranks):
            into = Path(scratch) / "child.json"
            launch(ranks, __file__, "--child", f"{into}", "--steps", f"{asked.steps}")
            found[f"{ranks}"] = json.loads(into.read_text(encoding="utf-8"))
        seconds: dict[int, list[float]] = {1: [], asked.ranks: []}
        curves: dict[int, list[float]] = {}
        for turn in range(asked.turns):
            for ranks in seconds:
                took, curves[ranks] = trained(ranks, data, Path(scratch) / f"{ranks}-{turn}")
                seconds[ranks].append(took)
        _, otherwise = trained(1, [*data, *OTHERWISE], Path(scratch) / "otherwise")
    found["training"] = {
        "command": f"mamlnp train {TRAINING}",
        "seconds": {f"{ranks}": took for ranks, took in seconds.items()},
        "speedup": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "losses": {f"{ranks}": curve for ranks, curve in curves.items()}
        | {"1, added in another order": otherwise},
    }
    return found


def tables(found: dict[str, Any], ranks: int, model: Model, here: Interconnect) -> str:
    """Everything as Markdown."""
    fit = (
        f"t = {_ms(model.task)}, d = {model.draw * 1e6:.2g} us, u = {_ms(model.update)}; a rank's "
        f"time varies by {model.spread:.1%}; between processes of this machine "
        f"{here.latency * 1e6:.1f} us a message and {here.bandwidth / 1e9:.1f} GB/s.\n"
    )
    return "\n".join(
        (
            _timed(found, ranks, model, here),
            _alone(found[f"{ranks}"], here),
            fit,
            _losses(found),
            _foretold(model),
            _sums(),
        )
    )


def _timed(found: dict[str, Any], ranks: int, model: Model, here: Interconnect) -> str:
    """What was measured, with what the model foretold in brackets."""
    one, several = (found[f"{n}"]["steps"] for n in (1, ranks))
    alone, rows = one[f"{TASKS}"]["seconds"], []
    for name, tasks in (("in all", TASKS), ("a rank", TASKS * ranks)):
        took = several[f"{tasks}"]
        expected = {
            "seconds": model.step(tasks, ranks, here),
            "own": model.own(tasks, ranks),
            "wait": model.wait(tasks, ranks),
            "allreduce": here.allreduce(ranks, gradient(tasks)),
        }
        parts = (f"{_ms(took[part])} ({_ms(expected[part])})" for part in expected)
        gain = f"{alone * tasks / TASKS / took['seconds']:.2f} x"
        rows.append((f"meta-step, {TASKS} tasks {name}", _ms(alone), *parts, gain))
    training = found["training"]
    a, b = (f"{statistics.median(took):.1f} s" for took in training["seconds"].values())
    gain = f"{training['speedup']:.2f} x"
    rows.append((f"training, {MEANS[1]} meta-iterations", a, b, "", "", "", gain))
    head = ("", "1 rank", f"{ranks} ranks", "computing", "waiting", "Allreduce", "tasks a second")
    return _table(head, rows)


def _alone(several: dict[str, Any], here: Interconnect) -> str:
    """Allreduces by themselves, and as the interconnect's two numbers have them."""
    ranks, found = several["ranks"], several["allreduce"]
    return _table(
        ("float32 numbers", *(f"{int(n):,}" for n in found)),
        [
            ("Allreduce", *map(_us, found.values())),
            ("fitted", *(_us(here.allreduce(ranks, 4 * int(n))) for n in found)),
        ],
    )


def _losses(found: dict[str, Any]) -> str:
    """The trainings' losses, and how far they are from one rank's."""
    curves = {name: np.array(curve) for name, curve in found["training"]["losses"].items()}
    head = [f"{MEANS[0] * (n + 1)}" for n in range(len(curves["1"]))]
    return _table(
        (f"ranks: training loss, means of {MEANS[0]} meta-iterations", *head, "apart from 1"),
        [
            (name, *(f"{x:.2f}" for x in curve), f"{np.abs(curve / curves['1'] - 1).mean():.1%}")
            for name, curve in curves.items()
        ],
    )


def _foretold(model: Model) -> str:
    """Meta-steps over many ranks, and the share of the time that is not lost."""
    kinds = [
        (f"{TASKS} tasks a rank", lambda n: TASKS * n),
        (f"{STRONG:,} tasks in all", lambda n: STRONG),
    ]

    def cell(tasks: int, ranks: int, over: Interconnect) -> str:
        took = model.step(tasks, ranks, over)
        ideal = tasks * (model.task + model.draw) / ranks
        return f"{_ms(took)} ({ideal / took:.0%})"

    return _table(
        ("ranks", *(f"{kind}, {name}" for kind, _ in kinds for name in INTERCONNECTS)),
        [
            (f"{n:,}", *(cell(of(n), n, o) for _, of in kinds for o in INTERCONNECTS.values()))
            for n in FORETOLD
        ],
    )


def _sums() -> str:
    """The Allreduce of every network."""
    shown = (8, 64, 1024)
    return _table(
        (
            "network",
            "numbers",
            "Allreduces a meta-step",
            *(f"one over {n:,} ranks, {name}" for name in INTERCONNECTS for n in shown),
        ),
        [
            (
                name,
                f"{count:,}",
                "1" if width == 4 else f"{PRODUCTS} or more",
                *(
                    _ms(o.allreduce(n, count * width))
                    for o in INTERCONNECTS.values()
                    for n in shown
                ),
            )
            for name, (count, width) in numbers().items()
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _us(seconds: float) -> str:
    return f"{float(f'{1e6 * seconds:.3g}'):g} us"  # in plain digits


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def main() -> None:
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    if asked.child is not None:
        child(asked.child, asked.steps)
        return
    found = measured(asked)
    model, here = fitted(found["1"], found[f"{asked.ranks}"])
    text = tables(found, asked.ranks, model, here)
    print(text, end="")
    if asked.json is not None:
        with atomic_write(asked.json) as partial:
            fit = {"model": model._asdict(), "interconnect": here._asdict()}
            record = {"versions": versions(), **fit, "assumed": INTERCONNECTS, **found}
            partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        with atomic_write(TABLE) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
