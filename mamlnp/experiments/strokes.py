"""Few-shot classification of made-up characters: the job of Omniglot, with nothing to download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..tasks.strokes import ALPHABETS, load_strokes
from . import classification, omniglot
from .classification import Data


@dataclass(frozen=True)
class Config(classification.Config):
    """Settings of a run: Omniglot's, but half the filters, half the tasks and a tenth of the
    meta-iterations, for a training of two minutes.

    Attributes:
        alphabets: made-up alphabets to train on, of 28 characters each.
        alphabet_seed: draws all alphabets, those held out too.
    """

    filters: int = 32
    meta_iterations: int = 6_000
    meta_batch_size: int = 16
    validate_every: int = 1_000
    alphabets: int = ALPHABETS["train"]
    alphabet_seed: int = 0

    may_be_zero: ClassVar[tuple[str, ...]] = (*classification.Config.may_be_zero, "alphabet_seed")
    pool: ClassVar[bool] = False
    inverted: ClassVar[bool] = True

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels that the network takes."""
        return 28, 28, 1

    @property
    def source(self) -> str:
        """Where the images are from."""
        return f"made-up alphabets of seed {self.alphabet_seed}"

    @property
    def split_name(self) -> str:
        """Which characters are trained on and tested on."""
        return "by alphabets"


TODAY = {"meta_batch_size": Config.meta_batch_size}
PRESETS: dict[str, Config] = classification.presets({"today": (Config(), TODAY)}, omniglot.SETTINGS)


def load(config: Config) -> Data:
    """The characters of the three splits."""
    data = load_strokes(seed=config.alphabet_seed, alphabets=config.alphabets)
    return classification.checked(config, data)


EXPERIMENT = classification.experiment("strokes", __doc__, Config, load, PRESETS)
