"""Train and score the rows of a named table, and write it: JSON, curves, and Markdown.

    python benchmarks/reproduce.py omniglot --data DIR
    python benchmarks/reproduce.py strokes --data DIR
    python benchmarks/reproduce.py grocery84 --data DIR --only maml-5w1s
    python benchmarks/reproduce.py omniglot-60000 --data DIR --device cuda

Each row is `mamlnp train` and `mamlnp evaluate` with the options below, in a run folder of its own
under --runs. What is done already is kept, what was interrupted goes on, and the table is written
anew after every row: benchmarks/results/TABLE.json with everything, TABLE.md for the README and
docs/results.md, docs/figures/TABLE.png with the learning curves, and of policies TABLE-steps.png
with the returns after each gradient step.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from matplotlib.figure import Figure

from mamlnp import experiments, plots
from mamlnp.errors import DataError
from mamlnp.experiments.scores import Row as Score
from mamlnp.runs import CHECKPOINT, CONFIG, EVALUATION, METRICS, atomic_write, open_run

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
README, FIGURES = ROOT / "README.md", ROOT / "docs" / "figures"
QUERIES = ("1 query a class", "15 queries a class")


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        name: of its run folders, with the seed after it.
        label: what a reader calls it, after the method.
        train: after `mamlnp train`.
        evaluate: after `mamlnp evaluate RUN`.
        batch_norms: scored with each of these statistics, the first seed only but for the first.
        on: experiments whose classes all runs are scored on too.
        seeds: one run each.
        paper: what the paper reports.
        others: what other implementations report.
        begins: the run that it begins from, such as maml-part1-2.
    """

    name: str
    label: str
    train: str
    evaluate: str = ""
    batch_norms: tuple[str, ...] = ("transductive",)
    on: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    paper: str = ""
    others: str = ""
    begins: str = ""


@dataclass(frozen=True)
class Measure:
    """What the rows of a table say.

    Attributes:
        headings: of its columns.
        cells: what stands in them, of a record and a method.
        curve: the column of metrics.csv that is drawn over training.
        scale: what it is multiplied by.
        label: what it is.
    """

    headings: tuple[str, ...]
    cells: Callable[[dict[str, Any], str], list[str]]
    curve: str
    scale: float
    label: str


def interval(record: dict[str, Any], method: str, steps: int, scale: float, end: str = "") -> str:
    """A mean and its 95 % interval; without one the mean alone."""
    for row in record["rows"]:
        if (row["method"], row["steps"]) == (method, steps) and row["setting"].endswith(end):
            mean = f"{scale * row['mean']:.1f}"
            return mean + (f" ± {scale * row['ci95']:.1f}" if row["tasks"] > 1 else "")
    return ""


def accuracies(record: dict[str, Any], method: str) -> list[str]:
    """At the number of steps the run was validated with, and that number."""
    steps = record["config"]["eval_steps"]
    return [*(interval(record, method, steps, 100, f", {q}") for q in QUERIES), f"{steps}"]


def returns(record: dict[str, Any], method: str) -> list[str]:
    """After 0 to 3 gradient steps."""
    return [interval(record, method, steps, 1) for steps in range(4)]


ACCURACIES = Measure(
    (*QUERIES, "steps"),
    accuracies,
    "validation_accuracy",
    100,
    "accuracy on validation classes, %\n(queries as in training, transductive batch norm)",
)
RETURNS = Measure(
    ("0 steps", "1 step", "2 steps", "3 steps"),
    returns,
    "after",
    1,
    "mean return after adaptation, on training tasks",
)


QUICK = (
    " --max-kl 0.02 --gae-lambda 0.95 --curvature-tasks 10"  # learns as well in a third of the time
)


def policies(
    name: str,
    maml: str = "",
    *,
    seeds: tuple[int, ...] = (0,),
    pretrained: str = "",
    oracle: str = "",
    note: str = "",
) -> list[Row]:
    """MAML with a random beginning beside it, and the two baselines that are trained: by options of
    their own, or by MAML's. The note is what a reader has to know of MAML's."""
    return [
        Row("maml", f"{name}{note}", f"{name}{maml}", "--baselines", seeds=seeds),
        Row("pretrained", name, f"{name}{pretrained or maml} --baseline pretrained"),
        Row("oracle", name, f"{name}{oracle or maml} --baseline oracle"),
    ]


# Of the ant's training towards a direction: seed, outer loop, options.
ANT_PARTS = (
    (
        2,
        "Adam, step 0.001",
        "--meta-optimizer adam --sampling-term --gae-lambda 0.97 --meta-iterations 228",
    ),
    (
        2,
        "Adam, step 0.0003",
        "--meta-optimizer adam --meta-lr 0.0003 --sampling-term --inner-lr 0.05 --gae-lambda 0.97"
        " --meta-iterations 139",
    ),
    (
        2,
        "Adam, step 0.0001",
        "--meta-optimizer adam --meta-lr 0.0001 --sampling-term --inner-lr 0.03 --gae-lambda 0.97"
        " --meta-iterations 43",
    ),
    (
        2,
        "TRPO",
        "--inner-lr 0.03 --max-kl 0.05 --curvature-tasks 8 --gae-lambda 0.97 --meta-iterations 260",
    ),
    (
        2,
        "Adam, step 0.0001",
        "--meta-optimizer adam --meta-lr 0.0001 --inner-lr 0.03 --gae-lambda 0.97"
        " --meta-iterations 67",
    ),
    (
        3,
        "Adam, step 0.0001, discount 0.995",
        "--meta-optimizer adam --meta-lr 0.0001 --inner-lr 0.03 --gae-lambda 0.98"
        " --discount 0.995 --meta-iterations 40",
    ),
    (
        7,
        "TRPO, discount 0.995",
        "--inner-lr 0.03 --max-kl 0.05 --curvature-tasks 20 --gae-lambda 0.98 --discount 0.995"
        " --meta-iterations 110",
    ),
    (
        2,
        "Adam, step 0.0001, discount 0.995",
        "--meta-optimizer adam --meta-lr 0.0001 --inner-lr 0.03 --gae-lambda 0.98"
        " --discount 0.995 --meta-iterations 86",
    ),
)

TABLES: dict[str, list[Row]] = {
    "strokes": [
        Row(
            "conv-5w1s",
            "5-way 1-shot",
            "strokes --preset today-5w1s",
            evaluate,
            on=("omniglot",),
            seeds=seeds,
        )
        for evaluate, seeds in (("--baselines", (0,)), ("", (1, 2)))  # which differ little by seed
    ],
    "omniglot": [
        Row(
            "conv-5w1s",
            "conv4, 5-way 1-shot",
            "omniglot --preset today-5w1s --meta-iterations 20000 --validate-every 500",
            "",
            ("transductive", "support", "per-query"),
            seeds=(0, 1),
            paper="98.7 ± 0.4",
            others="98.1 to 99.6",
        ),
        Row(
            "conv-5w1s-first-order",
            "conv4, 5-way 1-shot, first order",
            "omniglot --preset today-5w1s-first-order --meta-iterations 20000 --validate-every 500",
            others="95.5 to 97.1",
        ),
        Row(
            "mlp-5w1s",
            "MLP, 5-way 1-shot",
            "omniglot --preset today-5w1s-mlp --meta-iterations 40000 --validate-every 1000",
            seeds=(0, 1),
            paper="89.7 ± 1.1",
            others="88.9",
        ),
        Row(
            "mlp-5w1s-first-order",
            "MLP, 5-way 1-shot, first order",
            "omniglot --preset today-5w1s-mlp-first-order --meta-iterations 40000 "
            "--validate-every 1000",
            others="88.9",
        ),
        Row(
            "conv-5w5s",
            "conv4, 5-way 5-shot",
            "omniglot --preset today-5w5s --meta-iterations 10000",
            "--baselines",
            paper="99.9 ± 0.1",
            others="99.8 to 99.9",
        ),
        Row(
            "conv-20w1s",
            "conv4, 20-way 1-shot",
            "omniglot --preset today-20w1s --meta-iterations 6000",
            paper="95.8 ± 0.3",
            others="91.6",
        ),
    ],
    "omniglot-60000": [
        Row(
            f"conv-{ways}w{shots}s",
            f"conv4, {ways}-way {shots}-shot",
            f"omniglot --preset today-{ways}w{shots}s",
            paper=paper,
            others=others,
        )
        for ways, shots, paper, others in (
            (5, 1, "98.7 ± 0.4", "98.1 to 99.6"),
            (5, 5, "99.9 ± 0.1", "99.8 to 99.9"),
            (20, 1, "95.8 ± 0.3", "91.6"),
            (20, 5, "98.9 ± 0.2", ""),
        )
    ],
    "nav2d": policies("nav2d", " --preset code", seeds=(0, 1, 2)),
    "cheetah-vel": policies(
        "cheetah-vel",
        f"{QUICK} --sampling-term --meta-iterations 757",
        seeds=(1,),
        note=", with the sampling term",
        pretrained=f"{QUICK} --meta-iterations 200",
        oracle=f"{QUICK} --meta-iterations 224",
    ),
    "cheetah-dir": policies(
        "cheetah-dir",
        seeds=(0, 1),
        pretrained=" --gae-lambda 0.95 --curvature-tasks 10 --meta-iterations 150",
        oracle=" --meta-iterations 225",
    ),
    "ant-vel": policies(
        "ant-vel",
        f"{QUICK} --meta-iterations 395",
        seeds=(1,),
        pretrained=f"{QUICK} --meta-batch-size 20 --meta-iterations 150",
        oracle=f"{QUICK} --meta-batch-size 20 --meta-iterations 200",
    ),
    "ant-dir": [
        *policies(
            "ant-dir",
            " --max-kl 0.02 --gae-lambda 0.95 --meta-batch-size 20 --curvature-tasks 8"
            " --meta-iterations 584",
            seeds=(1,),
            pretrained=f"{QUICK} --meta-batch-size 20 --meta-iterations 150",
            oracle=f"{QUICK} --meta-batch-size 20 --meta-iterations 200",
        ),
        *(
            Row(
                f"maml-part{part}",
                f"ant-dir, part {part} of {len(ANT_PARTS)}, {outer}",
                f"ant-dir {options} --inner-gae-lambda 0.3 --meta-batch-size 20 --validate-every 5",
                seeds=(seed,),
                begins=f"maml-part{part - 1}-{ANT_PARTS[part - 2][0]}" if part > 1 else "",
            )
            for part, (seed, outer, options) in enumerate(ANT_PARTS, 1)
        ),
    ],
    "grocery84": [
        Row(
            "maml-5w1s",
            "5-way 1-shot",
            "miniimagenet --preset today-5w1s --meta-iterations 2000",
            "--baselines",
        ),
        Row(
            "pretrained-5w1s",
            "5-way 1-shot",
            "miniimagenet --preset today-5w1s --baseline pretrained --meta-iterations 2000 "
            "--validate-every 500 --validation-tasks 50",
        ),
        Row(
            "maml-5w5s",
            "5-way 5-shot",
            "miniimagenet --preset today-5w5s --meta-iterations 600 --validate-every 200 "
            "--validation-tasks 50",
        ),
        Row(
            "pretrained-5w5s",
            "5-way 5-shot",
            "miniimagenet --preset today-5w5s --baseline pretrained --meta-iterations 600 "
            "--validate-every 300 --validation-tasks 50",
        ),
    ],
    "miniimagenet": [
        Row(
            f"{style}-5w{shots}s{order}",
            f"{style}, 5-way {shots}-shot{', first order' if order else ''}",
            f"miniimagenet --preset {style}-5w{shots}s{order}",
            paper=paper,
            others=others,
        )
        for style in ("paper", "today")
        for shots, order, paper, others in (
            (1, "", "48.70 ± 1.84", "46.4 to 48.3"),
            (1, "-first-order", "48.07 ± 1.75", "46.4 to 49.8"),
            (5, "", "63.11 ± 0.92", "61.0 to 65.4"),
            (5, "-first-order", "63.15 ± 0.91", "63.3 to 64.2"),
        )
    ],
}


@dataclass(frozen=True)
class Options:
    """Train and score the rows of a table, and write it.

    Attributes:
        table: strokes, omniglot, omniglot-60000 (the paper's number of meta-iterations), grocery84,
            miniimagenet, nav2d, cheetah-vel, cheetah-dir, ant-vel, ant-dir.
        data: folder with its images; else the environment variable MAMLNP_DATA.
        runs: where the run folders are.
        device: where to compute, "cpu" or "cuda"; of images only.
        only: names of rows to do; all if not given.
        write_only: train nothing: write the table of what is done.
    """

    table: tyro.conf.Positional[str]
    data: Path | None = None
    runs: Path = Path("runs")
    device: Literal["cpu", "cuda"] = "cpu"
    only: tuple[str, ...] = ()
    write_only: bool = False


def main() -> None:
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    if asked.table not in TABLES:
        sys.exit(f"reproduce: there is no table {asked.table!r}. Pass one of: {', '.join(TABLES)}.")
    table = TABLES[asked.table]
    names = [row.name for row in table]
    for name in asked.only:
        if name not in names:
            sys.exit(f"reproduce: --only {name!r} is no row. Pass some of: {', '.join(names)}.")
    for row in table:
        for seed, how in scored(row):
            if not asked.write_only and (not asked.only or row.name in asked.only):
                work(row, seed, how, asked)
                write(asked.table, asked.runs)
    write(asked.table, asked.runs)


def scored(row: Row) -> list[tuple[int, str]]:
    """Every evaluation of a row: the seed, and by which statistics or on which classes."""
    first, *others = row.batch_norms
    return [
        *((seed, first) for seed in row.seeds),
        *((row.seeds[0], other) for other in others),
        *((seed, on) for on in row.on for seed in row.seeds),
    ]


def evaluation(path: Path, how: str) -> Path:
    """Where `mamlnp evaluate` keeps what it found."""
    stored = path / EVALUATION
    if how == "transductive":
        return stored
    return stored.with_stem(f"{stored.stem}-{how}")


def folder(runs: Path, table: str, row: Row, seed: int) -> Path:
    return runs / table / f"{row.name}-{seed}"


def work(row: Row, seed: int, how: str, asked: Options) -> None:
    """Train and score one run, from where it was left."""
    path = folder(asked.runs, asked.table, row, seed)
    device = ["--device", asked.device] if asked.device != "cpu" else []
    if (path / CONFIG).exists():
        if not made_by(path, row, seed):
            sys.exit(
                f"reproduce: {path} is of {experiments.command(open_run(path))}, the row of "
                f"{shlex.join(training(row, seed, path.parent))}. Move it away, or pass another "
                "folder to --runs."
            )
        if not (path / CHECKPOINT).exists():  # stopped before there was anything to go on from
            shutil.rmtree(path)
    data = ["--data", f"{asked.data}"] if asked.data else []
    if not (path / CONFIG).exists():
        words = training(row, seed, path.parent)
        there = data if has_data(row) else []
        command("train", *words, *there, *device, "--out", f"{path}")
    elif not finished(path):
        command("train", open_run(path).experiment, "--resume", f"{path}", *device)
    if not scored_as(path, row, how):
        there = data if how in row.on else []
        command("evaluate", f"{path}", *evaluate_options(row, how), *there, *device)


def training(row: Row, seed: int, runs: Path) -> list[str]:
    """What `mamlnp train` is given, where the table's runs are in a folder."""
    begins = ["--init-from", f"{runs / row.begins}"] if row.begins else []
    return [*row.train.split(), *begins, "--seed", f"{seed}"]


def made_by(path: Path, row: Row, seed: int) -> bool:
    """Whether a run is of the row's command, wherever the run that it began from was."""
    found = shlex.split(experiments.command(open_run(path)))[2:]
    wanted = training(row, seed, path.parent)
    return sorted(Path(word).name for word in found) == sorted(Path(word).name for word in wanted)


def has_data(row: Row) -> bool:
    """Whether its training takes a folder with images."""
    return "data" in vars(experiments.EXPERIMENTS[row.train.split()[0]].config())


def evaluate_options(row: Row, how: str) -> list[str]:
    if how in row.on:
        return ["--on", how]
    options = row.evaluate.split() if how == row.batch_norms[0] else []
    return options if how == "transductive" else [*options, "--batch-norm", how]


def scored_as(path: Path, row: Row, how: str) -> bool:
    """Whether a run was scored as the row says, and not on fewer tasks, say."""
    stored = evaluation(path, how)
    if not stored.exists():
        return False
    found = json.loads(stored.read_text(encoding="utf-8"))["evaluation"]
    wanted: dict[str, Any] = {"on": how} if how in row.on else {"batch_norm": how}
    if "--baselines" in evaluate_options(row, how):
        wanted["baselines"] = True
    return bool({"batch_norm": "transductive"} | found == {"batch_norm": "transductive"} | wanted)


def finished(path: Path) -> bool:
    run = open_run(path)
    try:
        return bool(run.load().iteration == run.config["meta_iterations"])
    except DataError:
        return False


def command(*words: str) -> None:
    print("mamlnp", *words, flush=True)
    if subprocess.run([sys.executable, "-m", "mamlnp", *words], check=False).returncode:
        sys.exit("reproduce: the command above failed. Mend it and run this again; it goes on.")


def write(table: str, runs: Path) -> None:
    """TABLE.json, TABLE.md, the pictures and the block of the README, from what is done."""
    stored = RESULTS / f"{table}.json"
    records = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    for row in TABLES[table]:
        for seed, how in scored(row):
            path = folder(runs, table, row, seed)
            found = evaluation(path, how)
            if scored_as(path, row, how) and made_by(path, row, seed):
                with (path / METRICS).open(encoding="utf-8", newline="") as file:
                    curve = [
                        [int(line["iteration"]), float(line[measure(table).curve])]
                        for line in csv.DictReader(file)
                    ]
                record = json.loads(found.read_text(encoding="utf-8"))
                record |= {"trained_with": open_run(path).versions, "curve": curve}
                records[key(row, seed, how)] = record
    text = markdown(table, records)
    replace(stored, json.dumps(records, indent=None, separators=(",", ":")).replace("},", "},\n"))
    replace(RESULTS / f"{table}.md", text)
    draw(table, records)
    readme = README.read_text(encoding="utf-8")
    replace(README, included(readme, table, text))


def key(row: Row, seed: int, how: str) -> str:
    """The name of an evaluation among a table's records."""
    name = f"{row.name}-{seed}"
    return name if how == "transductive" else f"{name}-{how}"


def included(document: str, table: str, text: str) -> str:
    """A document with the table put between its markers, if it has them."""
    begin, end = f"<!-- {table}.md -->", f"<!-- end of {table}.md -->"
    block = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return block.sub(lambda _: f"{begin}\n{text}{end}", document)


def replace(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def measure(table: str) -> Measure:
    """Policies have returns, classifiers accuracies."""
    return RETURNS if any(row.name == "oracle" for row in TABLES[table]) else ACCURACIES


def markdown(table: str, records: dict[str, Any]) -> str:
    """A line for every run and method, and for what the paper reports of a policy."""
    shown = measure(table)
    headings = ["", "seed", *shown.headings, "meta-iterations", "training"]
    if shown is ACCURACIES:
        headings += ["paper", "other implementations"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    machines: dict[str, int] = {}
    for row in TABLES[table]:
        for seed, how in scored(row):
            record = records.get(key(row, seed, how))
            if record is None:
                continue
            config = record["config"]
            machine = "{cpu}, Python {python}, NumPy {numpy}, {blas} {blas_architecture}".format(
                **trained_with(record)
            )
            if (device := trained_with(record).get("device", "cpu")) != "cpu":
                machine += f"; {device}"
            number = machines.setdefault(machine, len(machines) + 1)
            notes = {r["method"]: r.get("note", "") for r in record["rows"]}
            for method, note in notes.items():
                printed = method.startswith("paper ")
                ours = method == "MAML" or method == config["baseline"]
                about = row.label if ours or shown is ACCURACIES else table
                label = f"{method}, {about}"
                if printed and any(line.startswith(f"| {label} ") for line in lines):
                    continue
                label += f" ({note})" if note else ""
                if how in row.on:
                    label += f", on {how}"
                elif how != "transductive":
                    label += f", batch norm {how}"
                cells = ["" if printed else f"{seed}", *shown.cells(record, method)]
                iterations, time = f"{config['meta_iterations']:,}", f"{took(record)} ({number})"
                cells += [iterations, time] if ours else ["", ""]
                if shown is ACCURACIES:
                    cells += [row.paper, row.others] if ours else ["", ""]
                lines.append(f"| {' | '.join([label, *cells])} |")
    numbered = "; ".join(f"({number}) {machine}" for machine, number in machines.items())
    lines += ["", f"Machines: {numbered}."]
    return "\n".join(lines) + "\n"


def part(table: str, row: Row) -> str:
    """What tells apart the rows of one training in parts, ", part 2" of the first that begins from
    another's run; nothing of a training that is whole."""
    before = {f"{each.name}-{seed}": each.begins for each in TABLES[table] for seed in each.seeds}
    number, run = 1, f"{row.name}-{row.seeds[0]}"
    inside = row.begins or run in before.values()
    while run := before[run]:
        number += 1
    return f", part {number}" if inside else ""


def seeds_done(row: Row, records: dict[str, Any]) -> list[int]:
    return [seed for seed in row.seeds if key(row, seed, row.batch_norms[0]) in records]


def trained_with(record: dict[str, Any]) -> dict[str, Any]:
    """The versions and the machine of a training; older records have one for both."""
    found: dict[str, Any] = record.get("trained_with", record["versions"])
    return found


def took(record: dict[str, Any]) -> str:
    """The time of a training, and on how many cores it was if not on two."""
    cores = trained_with(record).get("cores", 2)
    minutes = f"{record['wall_seconds'] / 60:.0f} min"
    return minutes if cores == 2 else f"{minutes} on {cores} core{'s' * (cores > 1)}"


def draw(table: str, records: dict[str, Any]) -> None:
    """What training is measured by against meta-iterations: a colour a row, a line a seed."""
    shown = measure(table)
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    done = [(row, seeds) for row in TABLES[table] if (seeds := seeds_done(row, records))]
    names = list(dict.fromkeys(row.name for row, _ in done))  # rows may share one, by seeds
    labelled = set()
    for row, seeds in done:
        n = names.index(row.name)
        for seed in seeds:
            record = records[key(row, seed, "transductive")]
            iterations, values = zip(*record["curve"], strict=True)
            label = f"{record['config'].get('baseline') or 'MAML'}, {row.label}"
            axes.plot(
                iterations,
                [shown.scale * v for v in values],
                "-" if n < 10 else "--",  # there are ten colours
                color=f"C{n % 10}",
                label=label if row.name not in labelled else None,
                lw=1.2,
            )
            labelled.add(row.name)
    axes.set(
        xlabel="meta-iterations",
        ylabel=shown.label,
        title=f"{table}: learning curves, a line a seed",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    with atomic_write(FIGURES / f"{table}.png") as partial:
        figure.savefig(partial)
    if shown is RETURNS and records:
        rows: dict[tuple[str, int], Score] = {}
        for row in TABLES[table]:
            for seed in seeds_done(row, records)[:1]:
                for score in records[key(row, seed, "transductive")]["rows"]:
                    ours = not score["method"].startswith("paper ")
                    method = score["method"] + part(table, row) * ours
                    rows[method, score["steps"]] = Score(**score | {"method": method})
        plots.returns_against_steps(FIGURES / f"{table}-steps.png", list(rows.values()))


if __name__ == "__main__":
    main()
