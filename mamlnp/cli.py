"""usage: mamlnp COMMAND ...

    train sine           meta-train a small network on sine waves (Finn et al. 2017, section 5.1)
    train omniglot       meta-train a convolutional network on handwritten characters (section 5.2)
    evaluate RUN         score a run on test tasks, beside the baselines and the paper
    check                check every derivative rule, every layer and the meta-gradient
    --version [-v]       the version; with -v all that results and their speed depend on

mamlnp COMMAND --help explains a command's options.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from . import checks
from .backend.generated import cache_folder
from .backend.machine import CORETYPE, cores, keep_memory, restart_with_better_kernels
from .errors import DataError
from .experiments import omniglot, sine
from .experiments.loop import Interrupted, check_settings
from .experiments.scores import as_records
from .runs import atomic_write, create_run, open_run, versions

EXPERIMENTS: dict[str, Any] = {"sine": sine, "omniglot": omniglot}


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
    """Score a run's best parameters on test tasks.

    Attributes:
        run: the run's folder.
        json: write the rows here too.
        tasks: how many test tasks.
        data: where the data set is, if not where it was in training.
    """

    run: tyro.conf.Positional[Path]
    json: Path | None = None
    tasks: int = 600
    data: Path | None = None


@dataclass(frozen=True)
class Check:
    """Check every derivative rule, every layer and the meta-gradient against finite differences.

    Attributes:
        op: only this row.
        order: the highest order of derivative, 1 to 3.
        json: write the rows here too.
    """

    op: str | None = None
    order: int = 3
    json: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. A mistake of the user's is one line and exit status 2."""
    if argv is None:
        restart_with_better_kernels()
    keep_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        match arguments:
            case [] | ["--help" | "-h", *_]:
                print(__doc__, end="")
            case ["--version" | "-V"]:
                print("mamlnp", versions()["mamlnp"])
            case ["--version" | "-V", "-v" | "--verbose"]:
                print("\n".join(f"{name:18} {value}" for name, value in _machine().items()))
            case ["train", name, *options] if name in EXPERIMENTS:
                _train(name, options)
            case ["train", *_]:
                raise DataError(
                    f"train: {' '.join(arguments[1:2]) or 'nothing'} is not an experiment. "
                    f"Pass one of: {', '.join(EXPERIMENTS)}."
                )
            case ["evaluate", *options]:
                _evaluate(_parsed(Evaluate, "mamlnp evaluate", options))
            case ["check", *options]:
                sys.exit(_check(_parsed(Check, "mamlnp check", options)))
            case _:
                raise DataError(f"'{' '.join(arguments[:2])}' is not a command. Try mamlnp --help.")
    except Interrupted as stopped:
        sys.exit(_said(str(stopped), 130))
    except KeyboardInterrupt:
        sys.exit(_said("mamlnp: interrupted.", 130))
    except (ValueError, NotImplementedError, OSError) as error:
        sys.exit(_said(f"mamlnp: {error}", 2))


def _machine() -> dict[str, Any]:
    return {
        **versions(),
        CORETYPE: os.environ.get(CORETYPE, "not set: OpenBLAS chose by itself"),
        "cores": cores(),
        "threads": f"{cores()} over chunks of tasks, each with 1 BLAS thread, when training",
        "freed memory": "kept by the C library" if keep_memory() else "given back",
        "kernels": cache_folder(),
    }


def _said(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status


def _parsed(kind: Any, prog: str, options: list[str]) -> Any:
    return tyro.cli(kind, prog=prog, args=options, config=(tyro.conf.OmitArgPrefixes,))


def _train(name: str, options: list[str]) -> None:
    experiment = EXPERIMENTS[name]
    default, resumed = experiment.Config(), None
    presets = getattr(experiment, "PRESETS", {})
    if (preset := _value_of("--preset", options)) in presets:
        default = presets[preset]
    if (folder := _value_of("--resume", options)) is not None:
        resumed = open_run(Path(folder), name)
        default = resumed.config_as(experiment.Config)

    fields = [
        ("config", experiment.Config, field(default=default)),
        ("run", RunOptions, field(default=RunOptions())),
    ]
    kind = make_dataclass("Train", fields, namespace={"__doc__": experiment.__doc__})
    asked = _parsed(kind, f"mamlnp train {name}", options)
    config = asked.config
    if getattr(config, "data", None) is not None:
        config = replace(config, data=config.data.absolute())
    if resumed is not None and config != default:
        raise DataError(
            f"{resumed.path}: a resumed run keeps its settings, but others were given. "
            "Leave them out, or begin a new run."
        )
    check_settings(config)
    data = experiment.load(config)
    run = resumed or create_run(name, config, asked.run.out)
    facts = {**config.describe(), **versions(), "run": run.path}
    print("\n".join(f"{key:18} {value}" for key, value in facts.items()), flush=True)
    experiment.train(config, run, data, resume=resumed is not None)
    print(f"done. Score it with: mamlnp evaluate {run.path}")


def _value_of(option: str, options: list[str]) -> str | None:
    for i, text in enumerate(options):
        if text == option and i + 1 < len(options):
            return options[i + 1]
        if text.startswith(f"{option}="):
            return text.partition("=")[2]
    return None


def _evaluate(asked: Evaluate) -> None:
    run = open_run(asked.run)
    if run.experiment not in EXPERIMENTS:
        raise DataError(
            f"{run.path}: is a run of {run.experiment!r}, which this version does not know. "
            f"It knows {', '.join(EXPERIMENTS)}."
        )
    if asked.tasks < 2:
        raise DataError(f"--tasks: {asked.tasks} give no interval. Pass at least 2.")
    experiment = EXPERIMENTS[run.experiment]
    config = run.config_as(experiment.Config)
    if asked.data is not None:
        config = replace(config, data=asked.data)
    table, text = experiment.evaluate(config, run, experiment.load(config), tasks=asked.tasks)
    print(text)
    if asked.json is not None:
        record = {
            "run": os.fspath(run.path),
            "config": {k: v for k, v in run.config.items() if k != "data"},  # where is no setting
            "versions": versions(),
            "rows": as_records(table),
        }
        _write_json(asked.json, record)


def _check(asked: Check) -> int:
    """Print a row for everything checked; 1 if anything failed."""
    if not 1 <= asked.order <= 3:
        raise DataError(f"--order: {asked.order} is not an order to check. Pass 1, 2 or 3.")
    orders = range(1, asked.order + 1)
    print(f"{'':28}" + "".join(f"{f'order {k}':>10}" for k in orders) + "  verdict")
    table = []
    for row in checks.all_rows(asked.order, asked.op):
        table.append(row)
        errors = "".join(f"{error:>10.1e}" for error in row.errors) if row.errors else ""
        verdict = "right" if row.passed else "WRONG"
        print(f"{row.name:28}{errors:{10 * asked.order}}  {verdict}  {row.note}", flush=True)
    if not table:
        names = ", ".join(checks.names())
        raise DataError(f"--op: there is no {asked.op!r} to check. Pass one of: {names}.")
    failed = [row.name for row in table if not row.passed]
    print(
        f"{len(table) - len(failed)} right, {len(failed)} wrong{': ' if failed else ''}"
        f"{', '.join(failed)}; largest relative error by order against central differences"
    )
    if asked.json is not None:
        _write_json(asked.json, {"versions": versions(), "rows": [row._asdict() for row in table]})
    return 1 if failed else 0


def _write_json(path: Path, record: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(record, indent=1, default=os.fspath) + "\n", encoding="utf-8")
