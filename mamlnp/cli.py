"""usage: mamlnp COMMAND ...

    train strokes        meta-train a convolutional network on made-up handwriting: no download
    train sine           meta-train a small network on sine waves (Finn et al. 2017, section 5.1)
    train omniglot       meta-train a convolutional network on handwritten characters (section 5.2)
    train miniimagenet   the same on photographs, in one of mini-ImageNet's layouts
    train folder         the same on your own images, a folder a class
    train nav2d          meta-train a policy to find goals in the plane (section 5.3)
    train cheetah-dir    MuJoCo's planar cheetah runs forwards or backwards; cheetah-vel: at a
                         goal velocity; ant-dir, ant-vel: the same with the 3D quadruped
    evaluate RUN         score a run on test tasks, beside the baselines and the paper
    adapt RUN            learn the classes of a folder from a few images, and classify others
    render RUN           film the cheetah or the ant before and after adaptation
    export RUN FILE      write what a run learned to one file, for others to adapt
    vectors DIR          write reference meta-gradients to hold another implementation against
    verify DIR FILE      are these meta-gradients right, and if not, what is the mistake?
    check [FUNCTION]     check every derivative rule, every layer and the meta-gradient, or a
                         function of your own
    graph sine           draw the tape of a tiny network, stage by stage (with Graphviz)
    landscape            plot the query loss around theta, with both meta-gradients' directions
    figures [DIR]        make every figure of the documentation
    --version [-v]       the version; with -v all that results and their speed depend on

mamlnp COMMAND --help explains a command's options.
"""

from __future__ import annotations

import csv
import difflib
import functools
import importlib
import inspect
import io
import json
import os
import re
import reprlib
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from . import checks, conformance, diagnosis, figures, graph, initialisations, landscape, plots
from .backend import using_device
from .backend.generated import cache_folder
from .backend.machine import CORETYPE, cores, keep_memory, restart_with_better_kernels
from .errors import DataError, DeviceError, GradientError, MissingPackageError
from .experiments import (
    EXPERIMENTS,
    command,
    elsewhere,
    experiment_named,
    sine,
)
from .experiments.classification import Elsewhere
from .experiments.experiment import PLACES, Supervised
from .experiments.loop import Interrupted, diverged
from .experiments.scores import as_records
from .gradcheck import check_grads
from .learner import BATCH_NORM, BatchNorm, Classifier
from .meta import MAML
from .op import Op
from .ranks import Ranks, world
from .runs import (
    EVALUATION,
    atomic_write,
    check_file,
    check_folder,
    create_run,
    open_run,
    versions,
)
from .tasks import counted_rng
from .tasks.folder import read_query, read_support
from .tasks.sinusoid import Sinusoids


@dataclass(frozen=True)
class RunOptions:
    """Where a run is.

    Attributes:
        out: the new run's folder; runs/EXPERIMENT (or -2, -3, ...) if not given.
        resume: continue the run in this folder instead, with the settings it has.
    """

    out: Path | None = None
    resume: Path | None = None


@dataclass(frozen=True)
class Evaluate:
    """Score a run's best parameters on test tasks; the rows go to evaluation.json in its folder
    (by other statistics than transductive ones: evaluation-support.json, -per-query.json; on other
    classes: evaluation-omniglot.json).

    Attributes:
        run: a run's folder, an exported file, or the name of an initialisation that comes with
            mamlnp, such as omniglot-5w1s, which is made a run of in the folder runs.
        json: write the rows here too.
        tasks: how many test tasks; 600 if not given, of reinforcement learning 200.
        on: score it on the held-out classes of another experiment, such as a run of strokes on
            those of omniglot.
        data: where the data set is, if not where it was in training.
        device: where to compute, "cpu" or "cuda"; as in training if not given.
        batch_norm: whose statistics normalise the query images: all queries' together
            ("transductive", as in the paper's code, if not given), the "support" set's, or each
            query's own ("per-query").
        baselines: score fine-tuning from random weights and the nearest neighbour on pixels too;
            18 ways to fine-tune are tried on all validation tasks, which takes its time.
    """

    run: tyro.conf.Positional[str]
    json: Path | None = None
    tasks: int | None = None
    on: str | None = None
    data: Path | None = None
    device: Literal["cpu", "cuda"] | None = None
    batch_norm: BatchNorm | None = None
    baselines: bool = False


@dataclass(frozen=True)
class Adapt:
    """Learn the classes of a folder from a few images of each, and classify other images.

    Attributes:
        run: a run's folder, an exported file, or the name of an initialisation that comes with
            mamlnp, such as omniglot-5w1s.
        support: a folder that holds a folder a class, each with a few images.
        query: a folder with the images to classify.
        steps: inner steps; those the run was validated with if not given.
        batch_norm: whose statistics normalise the query images: the "support" set's, each query's
            own ("per-query"), or all queries' together ("transductive"), which is how accuracies
            are reported but lets an image's class depend on the others asked about.
        out: the table that is written, with every class's probability.
    """

    run: tyro.conf.Positional[str]
    support: Path
    query: Path
    steps: int | None = None
    batch_norm: BatchNorm = "support"
    out: Path = Path("predictions.csv")


@dataclass(frozen=True)
class Render:
    """Film the cheetah or the ant before and after each gradient step, side by side.

    Attributes:
        run: a run's folder, an exported file, or the name of an initialisation that comes with
            mamlnp, such as cheetah-dir.
        out: the film, by its ending a .gif or an .mp4.
        task: the goal: a velocity, or 1 and -1 for the directions; drawn by the seed if not given.
        steps: the most gradient steps.
        seed: of rollouts and task.
    """

    run: tyro.conf.Positional[str]
    out: Path = Path("film.gif")
    task: float | None = None
    steps: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Export:
    """Write a run's best parameters, its command and its scores to one file.

    Attributes:
        run: the run's folder; it must have been scored with mamlnp evaluate.
        file: the safetensors file to write, which mamlnp.load and mamlnp adapt take.
    """

    run: tyro.conf.Positional[Path]
    file: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class Vectors:
    """Write reference cases to hold another implementation against: vectors.npz, and manifest.json
    with every convention.

    Attributes:
        folder: where to.
        seed: draws the cases.
    """

    folder: tyro.conf.Positional[Path]
    seed: int = 0


@dataclass(frozen=True)
class Verify:
    """Hold another implementation's meta-gradients against reference cases; where they differ, name
    the known mistake that makes them. Exit status 1 if anything is wrong.

    Attributes:
        folder: what mamlnp vectors wrote.
        theirs: an .npz with CASE/meta_gradient/LAYER.NAME for one case or more.
    """

    folder: tyro.conf.Positional[Path]
    theirs: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class Graph:
    """Draw the tape of a tiny network on a sine wave: forward, gradient, inner update, and the
    gradient through the gradient, coloured by stage.

    Attributes:
        model: "sine", one tanh unit.
        order: 1: loss and gradient; 2: a whole MAML step.
        out: the picture, by its ending (Graphviz draws it); its text goes beside it, as .dot.
    """

    model: tyro.conf.Positional[Literal["sine"]]
    order: Literal[1, 2] = 2
    out: Path = Path("graph.svg")


@dataclass(frozen=True)
class Look:
    """Plot the query loss of sine waves around a network's parameters, before and after adaptation,
    in the plane of the first- and the second-order meta-gradient.

    Attributes:
        run: a run of sine, or the initialisation "sine"; a network before any training if not
            given.
        out: the picture.
        radius: how far to look, as a distance in parameter space.
        tasks: how many waves.
        inner_steps: of the inner loop.
        inner_lr: alpha.
        seed: of the waves, and of the untrained network.
    """

    run: tyro.conf.Positional[str | None] = None
    out: Path = Path("landscape.png")
    radius: float = 1.0
    tasks: int = 100
    inner_steps: int = 1
    inner_lr: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Figures:
    """Make every figure of the documentation anew.

    Attributes:
        folder: where to.
    """

    folder: tyro.conf.Positional[Path] = Path("docs/figures")


@dataclass(frozen=True)
class Check:
    """Check every derivative rule, every layer and the meta-gradient, or a function of your own,
    against finite differences.

    Attributes:
        function: one of your own, as module:name; written in NumPy's functions or in mamlnp's.
        args: its arguments: a shape (3x4, or 3 for a vector: random numbers), numbers (0.5, 3.0,
            or [[1, 2], [3, 4]]), or an .npy file.
        op: only this row.
        order: the highest order of derivative, 1 to 3.
        json: write the rows here too.
    """

    function: tyro.conf.Positional[str | None] = None
    args: tuple[str, ...] = ()
    op: str | None = None
    order: int = 3
    json: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. A mistake of the user's is one line and exit status 2."""
    if argv is None:
        restart_with_better_kernels()
    keep_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be none in its encoding
            utf8 = stream.encoding.lower().replace("-", "") == "utf8" and os.name != "nt"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = functools.partial(_warned, warnings.showwarning)
        _run(list(sys.argv[1:] if argv is None else argv))


def _warned(usual: Any, message: Any, category: Any, *where: Any, **more: Any) -> None:
    """What the library warns of, as a line without the place in its code."""
    if category is not UserWarning:
        usual(message, category, *where, **more)
    elif world().writes:
        print("mamlnp:", f"{message}".removeprefix("mamlnp: "), file=sys.stderr, flush=True)


def _run(arguments: list[str]) -> None:
    try:
        if arguments[:1] != ["train"] and world().size > 1:
            raise DataError(
                f"only train goes over processes, and {world().size} were started. "
                "Leave mpiexec out."
            )
        match arguments:
            case [] | ["--help" | "-h", *_]:
                print(__doc__, end="")
            case ["--version" | "-V"]:
                print("mamlnp", versions()["mamlnp"])
            case ["--version" | "-V", "-v" | "--verbose"]:
                print("\n".join(f"{name:18} {value}" for name, value in _machine().items()))
            case ["train"] | ["train", "--help" | "-h", *_]:
                lines = __doc__.splitlines()
                print("usage: mamlnp train EXPERIMENT ...\n")
                print("\n".join(lines[2 : next(n for n, x in enumerate(lines) if "evaluate" in x)]))
                print("\nmamlnp train EXPERIMENT --help explains its options.")
            case ["train", name, *options] if name in EXPERIMENTS:
                _train(name, options)
            case ["train", *_]:
                raise DataError(
                    f"train: {arguments[1]} is not an experiment. "
                    f"Pass one of: {', '.join(EXPERIMENTS)}."
                )
            case ["evaluate", *options]:
                _evaluate(_parsed(Evaluate, "mamlnp evaluate", options))
            case ["adapt", *options]:
                _adapt(_parsed(Adapt, "mamlnp adapt", options))
            case ["render", *options]:
                _render(_parsed(Render, "mamlnp render", options))
            case ["export", *options]:
                asked = _parsed(Export, "mamlnp export", options)
                check_file(asked.file)
                initialisations.export(open_run(asked.run), asked.file)
                print(f"{asked.file}: written.")
            case ["vectors", *options]:
                wanted = _parsed(Vectors, "mamlnp vectors", options)
                check_folder(wanted.folder)
                print(conformance.write(wanted.folder, wanted.seed))
            case ["verify", *options]:
                given = _parsed(Verify, "mamlnp verify", options)
                found = diagnosis.verify(given.folder, given.theirs)
                print(found)
                sys.exit(0 if found.right else 1)
            case ["graph", *options]:
                picture = _parsed(Graph, "mamlnp graph", options)
                check_file(picture.out)
                print(graph.draw(graph.sine(picture.order), picture.out))
            case ["landscape", *options]:
                _look(_parsed(Look, "mamlnp landscape", options))
            case ["figures", *options]:
                folder = _parsed(Figures, "mamlnp figures", options).folder
                check_folder(folder)
                for line in figures.all_figures(folder):
                    print(line, flush=True)
            case ["check", *options]:
                sys.exit(_check(_parsed(Check, "mamlnp check", options)))
            case _:
                raise DataError(f"'{' '.join(arguments[:2])}' is not a command. Try mamlnp --help.")
    except Interrupted as stopped:  # all processes at once
        if world().writes:
            print(stopped, file=sys.stderr, flush=True)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(_said("mamlnp: interrupted.", 130))
    except (ValueError, NotImplementedError, OSError, DeviceError) as error:
        sys.exit(_said(f"mamlnp: {error}", 2))
    except MemoryError as error:
        sys.exit(_said(f"mamlnp: too little memory ({error}). Ask for less at once.", 2))
    except Exception:  # a mistake of ours; the other processes would wait for this one forever
        if world().size > 1:
            traceback.print_exc()
            world().abort()
        raise


def _machine() -> dict[str, Any]:
    return {
        **versions(),
        CORETYPE: os.environ.get(CORETYPE, "not set: OpenBLAS chose by itself"),
        "threads": f"{cores()} over chunks of tasks, each with 1 BLAS thread, when training",
        "freed memory": "kept by the C library" if keep_memory() else "given back",
        "kernels": cache_folder(),
    }


def _said(line: str, status: int) -> int:
    """Print what ends the command; of several processes the first that has something to say."""
    try:
        ranks = world()
    except MissingPackageError:  # which is what is said
        ranks = Ranks()
    if not ranks.writes:
        time.sleep(5)  # what all of them met, rank 0 says
        line = f"rank {ranks.rank}: {line}"
    print(line, file=sys.stderr, flush=True)
    ranks.abort()
    return status


def _parsed(kind: Any, prog: str, options: list[str]) -> Any:
    return _at_home(tyro.cli(kind, prog=prog, args=options, config=(tyro.conf.OmitArgPrefixes,)))


def _at_home(asked: Any) -> Any:
    """What was asked for, where ~ in a path is the user's home: of --data=~/images the shell makes
    nothing."""
    if isinstance(asked, Path):
        return Path(os.path.expanduser(asked))
    if is_dataclass(asked) and not isinstance(asked, type):
        values = {name: _at_home(value) for name, value in vars(asked).items()}
        return replace(asked, **{k: v for k, v in values.items() if v is not getattr(asked, k)})
    return asked


def _train(name: str, options: list[str]) -> None:
    experiment = EXPERIMENTS[name]
    default, presets, resumed = experiment.config(), experiment.presets, None
    if (preset := _value_of("--preset", options)) is not None:
        if preset not in presets:
            near = difflib.get_close_matches(preset, presets, 4, 0) or list(presets)
            raise DataError(
                f"--preset: there is no {preset!r} of {name}. Near it are {', '.join(near)}; "
                f"mamlnp train {name} --help tells how the {len(presets)} are named."
            )
        default = presets[preset]
    if (folder := _value_of("--resume", options)) is not None:
        resumed = open_run(Path(folder), name)
        default = resumed.config_as(experiment.config)

    fields = [
        ("config", experiment.config, field(default=default)),
        ("run", RunOptions, field(default=RunOptions())),
    ]
    kind = make_dataclass("Train", fields, namespace={"__doc__": experiment.summary})
    asked = _parsed(kind, f"mamlnp train {name}", options)
    paths = {k: v.absolute() for k, v in vars(asked.config).items() if isinstance(v, Path)}
    config = replace(asked.config, **paths)
    kept = {k: v for k, v in vars(default).items() if k in PLACES}
    if resumed is not None and (other := replace(config, **kept)) != default:
        given = ", ".join(
            f"--{key.replace('_', '-')} {value} (the run has {vars(default)[key]})"
            for key, value in vars(other).items()
            if value != vars(default)[key]
        )
        raise DataError(
            f"{resumed.path}: a resumed run keeps its settings but {' and '.join(PLACES)}, and "
            f"others were given: {given}. Leave them out, or begin a new run."
        )
    config.check()
    if resumed is None:  # found out before the data are read
        check_folder(asked.run.out or Path("runs"), empty=asked.run.out is not None)
    ranks = world()
    card = ranks.local_rank if ranks.size > 1 else None
    with using_device(config.place(), card):
        data = experiment.load(config) if ranks.writes else None  # the first one makes the cache
        ranks.gathered(None)
        data = experiment.load(config) if data is None else data
        if resumed is None:
            experiment.check(config, data)  # so that a wrong setting leaves no run behind
        run = resumed or ranks.told(lambda: create_run(name, config, asked.run.out))
        if ranks.writes:
            again = command(run, data=True)
            facts = {**config.describe(), **versions(), "command": again, "run": run.path}
            if ranks.size > 1:
                facts["processes"] = f"{ranks.size}, {ranks.threads} threads each"
                go_on = f"mpiexec -n {ranks.size} mamlnp train {name} --resume {run.path}"
                facts["if one is lost"] = f"go on from the last checkpoint with: {go_on}"
            print("\n".join(f"{key:18} {value}" for key, value in facts.items()), flush=True)
        experiment.train(config, run, data, resume=resumed is not None)
    if ranks.writes:
        wrong = diverged(run)
        print(f"{wrong or 'done.'} Score it with: mamlnp evaluate {run.path}")


def _value_of(option: str, options: list[str]) -> str | None:
    for i, text in enumerate(options):
        if text == option and i + 1 < len(options):
            return options[i + 1]
        if text.startswith(f"{option}="):
            return text.partition("=")[2]
    return None


def _evaluate(asked: Evaluate) -> None:
    run = initialisations.as_run(asked.run)
    if asked.tasks is not None and asked.tasks < 2:
        raise DataError(f"--tasks: {asked.tasks} give no interval. Pass at least 2.")
    experiment = experiment_named(run.experiment, run.path)
    options = ("tasks", "batch_norm", "baselines", "on")
    how: dict[str, Any] = {name: given for name in options if (given := vars(asked)[name])}
    for name in how.keys() - set(experiment.options):
        option = name.replace("_", "-")
        raise DataError(f"--{option}: not of {run.experiment}. Leave it out.")
    config = run.config_as(experiment.config)
    scored_on = elsewhere(run, asked.on) if asked.on else Elsewhere(run.experiment, config)
    if asked.data is not None:
        if "data" not in vars(scored_on.config):
            raise DataError(f"--data: {scored_on.experiment} has none. Leave it out.")
        scored_on = scored_on._replace(config=replace(scored_on.config, data=asked.data))
    if asked.device == "cuda" and not isinstance(config, Supervised):
        raise DataError(f"--device: {run.experiment} is computed on the CPU. Leave it out.")
    stored = run.path / EVALUATION
    if asked.on:
        stored = stored.with_stem(f"{stored.stem}-{asked.on}")
    if asked.batch_norm not in (None, "transductive"):
        stored = stored.with_stem(f"{stored.stem}-{asked.batch_norm}")
    for path in (written := list(filter(None, (stored, asked.json)))):
        check_file(path)
    with using_device(asked.device or config.place()):
        data = EXPERIMENTS[scored_on.experiment].load(scored_on.config)
        other = {"on": scored_on} if asked.on else {}
        table, text = experiment.evaluate(config, run, data, **how | other)
        print(text)
        record = {
            "command": command(run),
            "evaluation": how,
            "config": {k: v for k, v in run.config.items() if k != "data"},  # where is no setting
            "versions": versions(),
            "wall_seconds": run.load().meta["wall_seconds"],
            "rows": as_records(table),
        }
    for path in written:
        _write_json(path, record)


def _adapt(asked: Adapt) -> None:
    model = initialisations.load(asked.run)
    if not isinstance(model, Classifier):
        raise DataError(f"{asked.run}: does not classify images. Pass a run of another experiment.")
    if asked.steps is not None and asked.steps < 1:
        raise DataError(f"--steps: {asked.steps} adapt nothing. Pass at least 1.")
    check_file(asked.out)
    size, _, channels = model.input_shape
    images, labels, names = read_support(asked.support, size=size, channels=channels)
    if len(names) > model.outputs:
        raise DataError(
            f"{asked.support}: holds {len(names)} classes, but {asked.run} tells {model.outputs} "
            f"apart. Take {model.outputs} folders at most, or train with more --num-ways."
        )
    queries, paths = read_query(asked.query, size=size, channels=channels)
    adapted = model.adapt(images, labels, inner_steps=asked.steps)
    probabilities = adapted.predict(queries, batch_norm=asked.batch_norm)
    chosen = probabilities.argmax(-1)
    print(
        f"{len(names)} classes, {len(images)} support images, {len(queries)} query images; "
        f"{asked.steps or model.inner_steps} inner steps; batch norm: "
        f"{BATCH_NORM[asked.batch_norm]}"
    )
    with (
        atomic_write(asked.out) as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", "class", "probability", *names])
        for path, k, row in zip(paths, chosen, probabilities, strict=True):
            print(f"{path}  {names[k]}  {row[k]:.3f}")
            table.writerow([path, names[k], f"{row[k]:.6f}", *(f"{p:.6f}" for p in row)])
    print(f"written to {asked.out}")


def _render(asked: Render) -> None:
    from .rl import film
    from .rl.agent import Agent

    agent = initialisations.load(asked.run)
    if not isinstance(agent, Agent) or agent.environment == "nav2d":
        raise DataError(f"{asked.run}: has no body to film. Pass a run of the cheetah or the ant.")
    if asked.out.suffix not in film.ENDINGS:
        raise DataError(f"--out: {asked.out} is no film. End it with {' or '.join(film.ENDINGS)}.")
    if asked.steps < 0:
        raise DataError(f"--steps: {asked.steps} are less than none. Pass 0 or more.")
    check_file(asked.out)
    text = film.shoot(agent, asked.out, task=asked.task, steps=asked.steps, seed=asked.seed)
    print(f"{text}\nwritten to {asked.out}")


def _look(asked: Look) -> None:
    for name in ("radius", "tasks", "inner_steps", "inner_lr"):
        if not (value := vars(asked)[name]) > 0:
            option = name.replace("_", "-")
            raise DataError(f"--{option}: {value}. Pass a positive number.")
    check_file(asked.out)
    title, params = "untrained", sine.initial_params(sine.Config(seed=asked.seed))
    if asked.run is not None:
        learner = initialisations.load(asked.run)
        if learner.about["experiment"] != "sine":
            raise DataError(f"{asked.run}: is no run of sine. Pass one, or the name sine.")
        title, params = asked.run, learner.params
    rng = counted_rng(asked.seed, "test")
    task = Sinusoids().sample(asked.tasks, num_shots=10, num_queries=10, rng=rng)
    second, first = (
        MAML(
            sine.loss,
            inner_lr=asked.inner_lr,
            inner_steps=asked.inner_steps,
            first_order=first_order,
        )
        for first_order in (False, True)
    )
    found = landscape.around(second, params, task, beside=first.gradient, radius=asked.radius)
    steps = f"{asked.inner_steps} inner step{'s' * (asked.inner_steps > 1)}"
    text = f"sine network, {title}, {asked.tasks} tasks, {steps} of {asked.inner_lr:g}"
    plots.landscape(asked.out, found, text)
    print(f"{text}: cosine {found.cosine:.3f}\nwritten to {asked.out}")


def _check(asked: Check) -> int:
    """Print a row for everything checked; 1 if anything failed."""
    if not 1 <= asked.order <= 3:
        raise DataError(f"--order: {asked.order} is not an order to check. Pass 1, 2 or 3.")
    if asked.json is not None:
        check_file(asked.json)
    if asked.function is not None:
        return _check_function(asked)
    orders = range(1, asked.order + 1)
    print(f"{'':28}" + "".join(f"{f'order {k}':>10}" for k in orders) + "  verdict")
    table = []
    for row in checks.all_rows(asked.order, asked.op):
        table.append(row)
        errors = "".join(f"{error:>10.1e}" for error in row.errors) if row.errors else ""
        verdict = row.verdict if row.passed else row.verdict.upper()
        print(f"{row.name:28}{errors:{10 * asked.order}}  {verdict}  {row.note}", flush=True)
    if not table:
        names = ", ".join(checks.names())
        raise DataError(f"--op: there is no {asked.op!r} to check. Pass one of: {names}.")
    found: dict[str, list[str]] = {"right": [], "wrong": []}
    for row in table:
        found.setdefault(row.verdict, []).append(row.name)
    held = found.pop("not compared", [])
    said = [f"{len(found.pop('right'))} right"]
    said += [
        f"{len(names)} {v}{': ' if names else ''}{', '.join(names)}" for v, names in found.items()
    ]
    said += [f"{len(held)} not differentiable, not compared"] if held else []
    print(", ".join(said) + "; the largest relative error by order against finite differences")
    if asked.json is not None:
        _write_json(asked.json, {"versions": versions(), "rows": [row._asdict() for row in table]})
    return 0 if all(row.passed for row in table) else 1


def _check_function(asked: Check) -> int:
    """Print every comparison of a user's function; 1 if a derivative is wrong."""
    assert asked.function is not None
    f = _imported(asked.function)
    args = [_argument(text, n) for n, text in enumerate(asked.args)]
    try:
        inspect.signature(f).bind(*args)
    except TypeError as error:
        raise DataError(f"--args: {len(args)} given to {asked.function}: {error}.") from error
    wrong = ""
    try:
        report = check_grads(_located(f, asked.function), args, asked.order)
    except GradientError as error:
        if error.verdict != "wrong":  # nothing is, but there is nothing to compare with
            raise DataError(str(error)) from error
        report, wrong = error.report, str(error)
    found = report.comparisons
    print(f"{'order':5} {'argument':32}{'differences':>16}{'exact':>16}{'error':>10}  verdict")
    for row in found:
        kinks = f", {row.kinks} differences left out at kinks" if row.kinks else ""
        print(
            f"{row.order:<5} {row.argument:32}{row.numeric:16.8g}{row.exact:16.8g}"
            f"{row.error:10.1e}  {row.verdict if row.passed else row.verdict.upper()}{kinks}"
        )
    held = report.not_compared
    if held:
        print(f"{len(held)} not differentiable, not compared: {', '.join(held)}")
    print(wrong or f"{asked.function}: right to order {asked.order}")
    if asked.json is not None:
        rows = [asdict(row) for row in found]
        record = {"rows": rows, "wrong": wrong, "not_compared": held}
        _write_json(asked.json, {"versions": versions(), **record})
    return 1 if wrong else 0


def _located(f: Any, name: str) -> Any:
    """The function; where it fails, that is its user's mistake, in a line of the user's."""
    if isinstance(f, Op):
        return f

    @functools.wraps(f)
    def located(*args: Any) -> Any:
        try:
            return f(*args)
        except Exception as error:
            file = getattr(getattr(f, "__code__", None), "co_filename", None)
            own = [x for x in traceback.extract_tb(error.__traceback__) if x.filename == file]
            place = f" in line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else ""
            kind = type(error).__name__
            raise DataError(f"check: {name} fails{place}: {kind}: {error}") from error

    return located


def _imported(text: str) -> Any:
    """A function by module:name, looked for in the current folder too."""
    module, _, name = text.partition(":")
    if not module or not name:
        raise DataError(f"check: {text!r} names no function. Write it as module:name.")
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise DataError(f"check: {text} cannot be imported ({error}).") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise DataError(f"check: {text} is no function.")
    return found


def _argument(text: str, n: int) -> Any:
    """An argument of a user's function from the command line."""
    if re.fullmatch(r"\d+(x\d+)*", text) and ("x" in text or int(text) > 1):
        shape = tuple(map(int, text.split("x")))
        return np.random.default_rng([0, n]).normal(size=shape)
    try:
        if text.endswith(".npy"):
            return np.load(text, allow_pickle=False)
        return np.asarray(json.loads(text), np.float64)
    except Exception as error:  # a damaged .npy makes NumPy raise nearly anything
        raise DataError(
            f"--args: {reprlib.repr(text)} is neither a shape (3x4, 3), nor numbers ([1.5, 2]), "
            f"nor an .npy file ({error})."
        ) from error


def _write_json(path: Path, record: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(record, indent=1, default=os.fspath) + "\n", encoding="utf-8")
