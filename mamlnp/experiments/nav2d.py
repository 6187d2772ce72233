"""2D navigation (Finn et al. 2017, section 5.3): find a goal in the plane from the reward alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from .. import plots
from ..rl.envs import Environment
from ..runs import Run
from . import loop, reinforcement
from .reinforcement import Returns
from .scores import Row

SHOWN = 3  # tasks in the picture of paths


@dataclass(frozen=True)
class Config(reinforcement.Config):
    """Settings of a run.

    Attributes:
        preset: decides the defaults of what follows: "code" is the authors' code, "paper" the
            paper's text, which says alpha = 0.1.
    """

    preset: str = "code"
    meta_iterations: int = 100
    meta_batch_size: int = 20
    eval_rollouts: int = 40
    inner_lr: float = 0.5

    environment: ClassVar[str] = "nav2d"
    paper: ClassVar[Mapping[str, Returns]] = {
        "MAML": {0: -40.4, 1: -11.7, 2: -3.33, 3: -3.23},
        "random init": {0: -82.7, 1: -58.0, 2: -53.8, 3: -46.8},
        "pretrained": {0: -40.8, 1: -19.7, 2: -11.7, 3: -8.5},
        "oracle": {0: -2.29},
    }


PRESETS = {"code": Config(), "paper": Config(preset="paper", inner_lr=0.1)}


def evaluate(
    config: Config,
    run: Run,
    environment: Environment,
    *,
    tasks: int = 200,
    baselines: bool = False,
) -> tuple[list[Row], str]:
    """As :func:`mamlnp.experiments.reinforcement.evaluate`, and the paths to a few goals."""
    table, text, lrs = reinforcement.scored(
        config, run, environment, tasks=tasks, baselines=baselines
    )
    if config.baseline != "oracle":
        picture = run.path / "paths.png"
        params = loop.best_state(run).state["params"]
        goals, episodes = reinforcement.shown_episodes(config, environment, params, lrs, SHOWN)
        plots.paths(picture, goals, episodes)
        text += f", {picture}"
    return table, text


EXPERIMENT = reinforcement.experiment(__doc__, Config, PRESETS, evaluate)
