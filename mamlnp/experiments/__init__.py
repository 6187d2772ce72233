"""The paper's experiments, and those beside them: one list for commands, runs, tests and docs."""

import shlex
from dataclasses import fields
from pathlib import Path

from ..errors import DataError
from ..runs import Run
from . import classification, folder, miniimagenet, nav2d, omniglot, sine, strokes
from .experiment import PLACES, Experiment
from .locomotion import ROBOTS

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        sine.EXPERIMENT,
        strokes.EXPERIMENT,
        omniglot.EXPERIMENT,
        miniimagenet.EXPERIMENT,
        folder.EXPERIMENT,
        nav2d.EXPERIMENT,
        *ROBOTS,
    )
}


def experiment_named(name: str, where: Path) -> Experiment:
    """The experiment that a file names.

    Raises:
        DataError: there is none of that name.
    """
    if name not in EXPERIMENTS:
        raise DataError(
            f"{where}: is of the experiment {name!r}, which this version does not know. "
            f"It knows {', '.join(EXPERIMENTS)}."
        )
    return EXPERIMENTS[name]


def elsewhere(run: Run, name: str) -> classification.Elsewhere:
    """Another experiment of images, with the ways, shots and network of a run that is scored on it.

    Raises:
        DataError: there is none of that name, or its images do not fit the run's network.
    """
    config = run.config_as(experiment_named(run.experiment, run.path).config)
    others = {
        key: other.config
        for key, other in EXPERIMENTS.items()
        if issubclass(other.config, classification.Config) and key != run.experiment
    }
    if name not in others:
        raise DataError(
            f"--on: {name} is no other experiment of images. Pass one of: {', '.join(others)}."
        )
    shared = {f.name: getattr(config, f.name) for f in fields(classification.Config)}
    other = others[name](**shared)
    assert isinstance(config, classification.Config)
    if other.image_shape != config.image_shape:
        here, there = ("x".join(map(str, c.image_shape)) for c in (config, other))
        raise DataError(f"--on: images of {name} are {there}, but {run.path} takes {here}.")
    return classification.Elsewhere(name, other)


def command(run: Run, *, data: bool = False) -> str:
    """The command that does a run again.

    Args:
        run: the run.
        data: whether the command says where its data are, too.
    """
    experiment = experiment_named(run.experiment, run.path)
    config = run.config_as(experiment.config)
    preset = experiment.presets.get(config.preset, experiment.config())
    words = ["mamlnp", "train", run.experiment]
    if len(experiment.presets) > 1:
        words += ["--preset", config.preset]
    for name, value in vars(config).items():
        usual = value == vars(preset)[name] and name != "seed"
        if usual or name == "preset" or (name in PLACES and not (data and name == "data")):
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", f"{value}"]
    return shlex.join(words)
