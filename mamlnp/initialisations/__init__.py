"""Meta-learned parameters to start from: those that come with the package, and any run's.

Those that come with it are the safetensors files beside this module: parameters, with the settings,
the command and the scores of the run they are from.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .. import tree
from ..backend import to_host
from ..errors import DataError
from ..experiments import command, experiment_named
from ..experiments.loop import best_state, check_fits, from_host
from ..runs import (
    CHECKPOINT,
    EVALUATION,
    Checkpoint,
    Run,
    config_as,
    create_run,
    open_run,
    read_checkpoint,
    write_checkpoint,
)
from ..tasks import counted_rng

HERE = Path(__file__).parent


def names() -> list[str]:
    """The initialisations that come with the package.

    >>> "omniglot-5w1s" in names()
    True
    """
    return sorted(path.stem for path in HERE.glob("*.safetensors"))


def load(source: str | os.PathLike[str]) -> Any:
    """A learner with meta-learned parameters, ready to adapt.

    Args:
        source: a name (see :func:`names`), a run's folder, or a file that `mamlnp export` wrote.

    Returns:
        A :class:`~mamlnp.learner.Learner`, for images a :class:`~mamlnp.learner.Classifier`.

    Raises:
        DataError: there is no such thing, it is damaged, or it is of another architecture than it
            says.

    >>> model = load("sine")
    >>> model.adapt([[0.0], [1.0]], [[0.0], [0.8]]).predict([[0.5]]).shape
    (1, 1)
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        run = open_run(path)
        params = experiment_named(run.experiment, path).theta(best_state(run).state)
        return _learner(run.load()._replace(config=run.config), params, path / CHECKPOINT)
    file = _file(source, path)
    saved = read_checkpoint(file)
    return _learner(saved, from_host(saved.arrays["params"]), file)


def _file(source: str | os.PathLike[str], path: Path) -> Path:
    """The exported file that a name or a path means."""
    file = HERE / f"{source}.safetensors" if os.fspath(source) in names() else path
    if not file.is_file():
        raise DataError(
            f"{source}: is neither a run's folder, nor an exported file, nor one of the "
            f"initialisations that come with mamlnp: {', '.join(names())}."
        )
    return file


def as_run(source: str | os.PathLike[str]) -> Run:
    """A run's folder to score: of a name or an exported file, one made in the folder runs.

    Raises:
        DataError: there is no such thing, it is damaged, or the folder to make is another run's.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return open_run(path)
    if not path.is_file() and os.fspath(source) not in names():
        raise DataError(
            f"{source}: there is no such folder, nor a file or an initialisation of that name "
            f"({', '.join(names())}). Give one that `mamlnp train` made."
        )
    file = _file(source, path)
    load(source)  # refuses what is no learner
    saved = read_checkpoint(file)
    experiment, folder = experiment_named(saved.experiment, file), Path("runs") / file.stem
    config = config_as(experiment.config, saved.config, os.fspath(file), saved.versions)
    state = experiment.state(saved.arrays["params"])
    if not folder.is_dir():
        run = create_run(saved.experiment, config, folder)
        meta = {key: saved.meta[key] for key in ("best", "wall_seconds")}
        run.save(saved.iteration, {"state": state, "best": state}, meta)
        return run
    run = open_run(folder)
    there = dict(tree.items(run.load().arrays["best"]))
    if run.experiment != saved.experiment or any(
        where not in there or not np.array_equal(leaf, there[where])
        for where, leaf in tree.items(state)
    ):
        raise DataError(f"{folder}: holds another run than {source}. Move it away.")
    return run


def _learner(saved: Checkpoint, params: Any, where: Path) -> Any:
    experiment = experiment_named(saved.experiment, where)
    config = config_as(experiment.config, saved.config, os.fspath(where), saved.versions)
    # Not its score, which is what the outer loop lowers: minus an accuracy.
    best = {"iteration": saved.meta["best"]["iteration"]}
    about = {"experiment": saved.experiment, "settings": saved.config, **saved.meta, "best": best}
    learner = experiment.learner(config, params, about)
    check_fits(where, params, learner.network.init(rng=counted_rng(0, "init")))
    return learner


def export(run: Run, file: Path) -> None:
    """Write a run's best parameters by themselves, for others to :func:`load`.

    Beside them go the settings, the command, and the scores of the run's last evaluation.

    Raises:
        DataError: the run was not evaluated yet, or a file is damaged or cannot be written.
    """
    scores = run.path / EVALUATION
    if not scores.exists():
        raise DataError(f"{run.path}: was not scored yet. Do so with: mamlnp evaluate {run.path}")
    load(run.path)  # refuses what is no learner
    saved, settings = run.load(), {k: v for k, v in run.config.items() if k != "data"}
    params = experiment_named(run.experiment, run.path).theta(best_state(run).state)
    meta = {
        "command": command(run),
        "best": saved.meta["best"],
        "wall_seconds": saved.meta["wall_seconds"],
        "scores": _rows(scores),
    }
    arrays = {"params": tree.map(lambda leaf: to_host(leaf.value), params)}
    write_checkpoint(file, saved._replace(config=settings, arrays=arrays, meta=meta))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        if not isinstance(rows, list):
            raise TypeError(f"rows are {rows!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: is damaged ({error}). Make it again with: mamlnp evaluate {path.parent}"
        ) from error
    return rows
