"""Few-shot classification of your own images: a folder a class."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..errors import DataError
from ..tasks.folder import load_folder
from . import classification, miniimagenet
from .classification import Data


@dataclass(frozen=True)
class Config(miniimagenet.Config):
    """Settings of a run, those of mini-ImageNet to begin with.

    Attributes:
        data: a folder that holds a folder a class; or the folders train, validation and test, which
            hold them.
        image_size: what images are resized to, in pixels; any size they have is fine.
        colour: whether images are seen in colour ("rgb") or in greys ("grey").
        split_seed: draws which classes are trained on, validated on and tested on (64, 16 and 20 %)
            where neither folders nor lists say it.
        train_classes: a text file with one class a line; with the next two, the split.
        validation_classes: the same for validation.
        test_classes: the same for test.
    """

    image_size: int = 84
    colour: Literal["rgb", "grey"] = "rgb"
    split_seed: int = 0
    train_classes: Path | None = None
    validation_classes: Path | None = None
    test_classes: Path | None = None

    may_be_zero: ClassVar[tuple[str, ...]] = (*classification.Config.may_be_zero, "split_seed")
    paper: ClassVar[Mapping[tuple[str, int, int, bool], str]] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels that the network takes."""
        return self.image_size, self.image_size, 3 if self.colour == "rgb" else 1

    @property
    def split_name(self) -> str:
        """Which classes are trained on and tested on."""
        if self.train_classes:
            return "by lists of classes"
        return f"by the folders train, validation and test, or else by seed {self.split_seed}"

    def is_the_papers(self, names: Collection[str]) -> bool:
        """There is nothing of the user's images in the paper, and it is said in no other name."""
        return True


PRESETS: dict[str, Config] = classification.presets(
    {"today": (Config(), miniimagenet.TODAY)}, miniimagenet.SETTINGS
)


def load(config: Config) -> Data:
    """The images of the three splits."""
    if config.data is None:
        raise DataError("--data: not given. Pass the folder that holds a folder a class.")
    lists = {
        "train": config.train_classes,
        "validation": config.validation_classes,
        "test": config.test_classes,
    }
    given = {name: path for name, path in lists.items() if path is not None}
    if given and len(given) < len(lists):
        missing = ", ".join(f"--{name}-classes" for name in lists if name not in given)
        raise DataError(f"{missing}: not given, but the other lists are. Pass all three or none.")
    size, _, channels = config.image_shape
    data = load_folder(
        config.data,
        size=size,
        channels=channels,
        split_seed=config.split_seed,
        classes=given or None,
    )
    return classification.checked(config, data)


EXPERIMENT = classification.experiment("folder", __doc__, Config, load, PRESETS)
