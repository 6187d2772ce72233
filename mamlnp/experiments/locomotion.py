"""The planar cheetah and the 3D quadruped (ant), running at a goal velocity or in a goal direction
(Finn et al. 2017, section 5.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from . import reinforcement
from .reinforcement import Returns


@dataclass(frozen=True)
class CheetahVelocity(reinforcement.Config):
    """Settings of a run; the paper's."""

    environment: ClassVar[str] = "cheetah-vel"
    paper: ClassVar[Mapping[str, Returns]] = {
        "MAML": {0: -129.5, 1: -78.6, 2: -66.6, 3: -60.8},
        "pretrained": {0: -158.0, 1: -135.4, 2: -128.5, 3: -133.6},
        "random init": {0: -254.8, 1: -254.3, 2: -246.8, 3: -230.8},
        "oracle": {0: -54.5},
    }


@dataclass(frozen=True)
class CheetahDirection(reinforcement.Config):
    """Settings of a run; the paper's, with the trust region of its authors' plotted run."""

    max_kl: float = 0.02

    environment: ClassVar[str] = "cheetah-dir"
    paper: ClassVar[Mapping[str, Returns]] = {
        "MAML": {0: -50.7, 1: 293.2, 2: 313.5, 3: 315.7},
        "pretrained": {0: -43.0, 1: -24.8, 2: -12.9, 3: 19.6},
        "random init": {0: -35.7, 1: 21.8, 2: 62.3, 3: 86.2},
        "oracle": {0: 442.7},
    }


@dataclass(frozen=True)
class AntVelocity(reinforcement.Config):
    """Settings of a run; the paper's."""

    environment: ClassVar[str] = "ant-vel"
    paper: ClassVar[Mapping[str, Returns]] = {
        "MAML": {0: 30.6, 1: 96.7, 2: 100.1, 3: 101.4},
        "pretrained": {0: -1.8, 1: 6.1, 2: 8.5, 3: 9.5},
        "random init": {0: -78.6, 1: -62.8, 2: -48.6, 3: -35.6},
        "oracle": {0: 107.9},
    }


@dataclass(frozen=True)
class AntDirection(reinforcement.Config):
    """Settings of a run; the paper's of its second row: with 20 rollouts, for which it reports 434
    after one step. With 40 it reports 499, the baselines too."""

    environment: ClassVar[str] = "ant-dir"
    paper: ClassVar[Mapping[str, Returns]] = {
        "MAML": {1: 434.0},
        "pretrained": {0: 3.2, 1: 1.3, 2: 6.5, 3: 6.9},
        "random init": {0: 3.1, 1: 9.3, 2: 16.0, 3: 26.1},
        "oracle": {0: 524.8},
    }


ROBOTS = [
    reinforcement.experiment(
        f"{summary} (Finn et al. 2017, section 5.3).", config, {"paper": config()}
    )
    for config, summary in (
        (CheetahVelocity, "The planar cheetah runs at a goal velocity"),
        (CheetahDirection, "The planar cheetah runs forwards or backwards"),
        (AntVelocity, "The 3D quadruped runs at a goal velocity"),
        (AntDirection, "The 3D quadruped runs forwards or backwards"),
    )
]
