"""The paper's experiments: each a readable script whose Config is its documentation.

An experiment is a module with ``Config``, ``load``, ``train``, ``evaluate``, ``theta`` (the
meta-learned parameters in a run's state) and ``learner``; ``PRESETS`` are named Configs.
"""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..runs import Run
from . import classification, folder, miniimagenet, nav2d, omniglot, sine, strokes
from .locomotion import ROBOTS

EXPERIMENTS: dict[str, Any] = {
    "sine": sine,
    "strokes": strokes,
    "omniglot": omniglot,
    "miniimagenet": miniimagenet,
    "folder": folder,
    "nav2d": nav2d,
    **ROBOTS,
}

# Settings that change no number but its last bits, or none that there is.
PLACES = ("data", "threads", "device", "on_nan", "debug_nans")


def experiment(name: str, where: Path) -> Any:
    """The module of an experiment that a file names.

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
    config = run.config_as(experiment(run.experiment, run.path).Config)
    others = {
        key: module.Config
        for key, module in EXPERIMENTS.items()
        if issubclass(module.Config, classification.Config) and key != run.experiment
    }
    if name not in others:
        raise DataError(
            f"--on: {name} is no other experiment of images. Pass one of: {', '.join(others)}."
        )
    shared = {f.name: getattr(config, f.name) for f in fields(classification.Config)}
    other = others[name](**shared)
    if other.image_shape != config.image_shape:
        here, there = ("x".join(map(str, c.image_shape)) for c in (config, other))
        raise DataError(f"--on: images of {name} are {there}, but {run.path} takes {here}.")
    return classification.Elsewhere(name, other)


def command(run: Run) -> str:
    """The command that does a run again, without where it took place."""
    module = experiment(run.experiment, run.path)
    config = run.config_as(module.Config)
    presets = getattr(module, "PRESETS", {})
    preset = presets.get(getattr(config, "preset", None), module.Config())
    words = ["mamlnp", "train", run.experiment]
    if presets:
        words += ["--preset", config.preset]
    for name, value in vars(config).items():
        usual = value == getattr(preset, name) and name != "seed"
        if usual or name in (*PLACES, "preset"):
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", f"{value}"]
    return shlex.join(words)
