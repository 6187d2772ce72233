"""Images of your own: a folder a class."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .fewshot import ClassImages
from .images import (
    SUFFIXES,
    Source,
    decode,
    decode_once,
    images_in,
    is_hidden,
    say_left_out,
)
from .splits import random_split

SPLITS = {  # and how people spell them
    "train": ("train",),
    "validation": ("val", "validation", "valid"),
    "test": ("test",),
}
SHARES = {"validation": 0.16, "test": 0.20}  # of the classes, as in mini-ImageNet

Classes = dict[str, list[Source]]
"""The images of each class."""


def load_folder(
    data: str | os.PathLike[str],
    *,
    size: int = 84,
    channels: int = 3,
    split_seed: int = 0,
    classes: Mapping[str, str | os.PathLike[str]] | None = None,
) -> dict[str, ClassImages]:
    """Images that lie in a folder a class, as "train", "validation" and "test" classes.

    Images may be PNG, JPEG, BMP, GIF, WEBP or TIFF files of any size. What was decoded is kept in
    the user's cache folder.

    Args:
        data: a folder with the folders train, val (or validation) and test, each with a folder a
            class; or one with a folder a class.
        size: what images are resized to, in pixels.
        channels: 3 for red, green, blue; 1 for grey.
        split_seed: draws which classes are trained on, validated on and tested on, 64, 16 and 20 %
            of them, where nothing else says it.
        classes: for each of "train", "validation" and "test" a text file with one class a line.

    Returns:
        Classes in sorted order, their images sorted by file name, uint8 (N, size, size, channels).

    Warns of files that are no images, and are left out.

    Raises:
        DataError: where files are missing or damaged, a class is empty or in two splits, or there
            are fewer than three classes.
    """
    root = existing_folder(data)
    folders = find_splits(root, "{}")
    if folders and classes is not None:
        raise DataError(
            f"{root}: has the folders {', '.join(path.name for path in folders.values())}, but "
            "lists of classes were given too. Take away one or the other."
        )
    if folders:
        splits = {split: read_classes(folder) for split, folder in folders.items()}
        parts = zip(folders.values(), splits.values(), strict=True)
        say_left_out(root, (folder / name for folder, found in parts for name in found))
    else:
        found = read_classes(root)
        say_left_out(root, (root / name for name in found))
        if classes is None:
            chosen = _drawn(root, list(found), split_seed)
        else:
            chosen = _listed(root, list(found), classes)
        splits = {split: {name: found[name] for name in names} for split, names in chosen.items()}
    return decoded(root, splits, size=size, channels=channels)


def read_support(
    folder: str | os.PathLike[str], *, size: int, channels: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[str, ...]]:
    """The few labelled images to adapt to: a folder that holds a folder a class.

    Returns:
        Images uint8 (N, size, size, channels), labels int64 (N,), the sorted names of the classes.

    Warns of files that are no images, and are left out.

    Raises:
        DataError: where there are no classes, one is empty, or an image is damaged.
    """
    root = existing_folder(folder)
    found = read_classes(root)
    say_left_out(root, (root / name for name in found))
    images = decode(list(itertools.chain(*found.values())), size=size, channels=channels)
    labels = np.repeat(np.arange(len(found)), [len(sources) for sources in found.values()])
    return images, labels, tuple(found)


def read_query(
    folder: str | os.PathLike[str], *, size: int, channels: int
) -> tuple[npt.NDArray[np.uint8], list[Path]]:
    """The images to tell the classes of: those in a folder and in the folders below it.

    Returns:
        Images uint8 (N, size, size, channels) and their paths, sorted.

    Warns of files that are no images, and are left out.

    Raises:
        DataError: where there are none, or one is damaged.
    """
    root = existing_folder(folder)
    found = images_in(root, below=True)
    if not found:
        raise _nothing_in(root, "images", "Put some there")
    say_left_out(root, [root], below=True)
    images = decode(list(found.values()), size=size, channels=channels)
    return images, [root / name for name in found]


# What load_miniimagenet shares


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of that name.

    Raises:
        DataError: where there is none.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Give one that holds the images.")
    return folder


def find_splits(folder: Path, pattern: str) -> dict[str, Path]:
    """The path of each split, such as ``pattern`` "{}.csv" gives, in small letters or capitals; {}
    where it is not so laid out.

    Raises:
        DataError: where one of three is missing.
    """
    there = {path.name.casefold(): path for path in folder.iterdir()} if folder.is_dir() else {}
    found = {
        split: there[name]
        for split, spellings in SPLITS.items()
        for name in (pattern.format(spelling).casefold() for spelling in reversed(spellings))
        if name in there
    }
    if len(found) < 2:  # one alone has the name by chance
        return {}
    for split, spellings in SPLITS.items():
        if split not in found:
            has = " and ".join(path.name for path in found.values())
            missing = " or ".join(pattern.format(spelling) for spelling in spellings)
            raise DataError(f"{folder}: has {has} but no {missing}. Put it there too.")
    return found


def read_classes(folder: Path) -> Classes:
    """The classes that a folder holds, a folder each, sorted.

    Raises:
        DataError: where there are none, or one is empty.
    """
    existing_folder(folder)
    paths = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    if not paths:
        raise _nothing_in(folder, "folders", "Put a folder a class there")
    found = {path.name: list(images_in(path).values()) for path in paths}
    for path in paths:
        if not found[path.name]:
            raise _nothing_in(path, "images", "Put the images of the class there")
    return found


def decoded(
    root: Path, splits: Mapping[str, Classes], *, size: int, channels: int
) -> dict[str, ClassImages]:
    """The classes of each split, all in one array.

    Raises:
        DataError: where a class is in two splits, or an image is damaged.
    """
    check_disjoint(root, splits)
    sources = [
        source
        for classes in splits.values()
        for source in itertools.chain.from_iterable(classes.values())
    ]
    images = decode_once(sources, size=size, channels=channels)
    parts, start = {}, 0
    for split, classes in splits.items():
        counts = np.array([len(sources) for sources in classes.values()])
        ends = start + np.cumsum(counts)
        parts[split] = ClassImages(images, tuple(classes), ends - counts, counts)
        start = ends[-1]
    return parts


def check_disjoint(root: Path, splits: Mapping[str, Iterable[str]]) -> None:
    """Check that no class is in two splits.

    Raises:
        DataError: one is.
    """
    split_of: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if name in split_of:
                raise DataError(
                    f"{root}: class {name} is in {split_of[name]} and in {split}. "
                    "Keep each class in one of them."
                )
            split_of[name] = split


def _drawn(root: Path, names: Sequence[str], seed: int) -> dict[str, list[str]]:
    if len(names) < 3:
        raise DataError(
            f"{root}: holds {len(names)} classes, too few to train, validate and test on different "
            "ones. Put at least 3 there."
        )
    validation, test = (max(1, round(share * len(names))) for share in SHARES.values())
    sizes = (len(names) - validation - test, validation, test)
    split = random_split(names, seed=seed, sizes=sizes)
    return {part: [names[i] for i in indices] for part, indices in split.items()}


def _listed(
    root: Path, names: Sequence[str], lists: Mapping[str, str | os.PathLike[str]]
) -> dict[str, list[str]]:
    if set(lists) != set(SPLITS):
        raise DataError(
            f"classes: has lists for {', '.join(lists) or 'nothing'}. "
            f"Give one for each of {', '.join(SPLITS)}."
        )
    left = set(names)
    chosen: dict[str, list[str]] = {}
    for split, place in lists.items():
        path = Path(place).expanduser()
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}). Give a text file with one class a line."
            ) from error
        chosen[split] = []
        for number, name in enumerate(map(str.strip, lines), start=1):
            if not name:
                continue
            if name not in left:
                wrong = "was listed before" if name in names else f"is no folder in {root}"
                raise DataError(f"{path}: line {number}: class {name} {wrong}. Correct the list.")
            left.remove(name)
            chosen[split].append(name)
        if not chosen[split]:
            raise DataError(f"{path}: lists no class. Give one class a line.")
    if left:
        raise DataError(
            f"{root}: class {min(left)} is in none of the lists. Add it to one, or move it away."
        )
    return {split: sorted(chosen[split]) for split in SPLITS}


def _nothing_in(folder: Path, what: str, advice: str) -> DataError:
    return DataError(
        f"{folder}: holds no {what}. {advice} (images are files that end in {', '.join(SUFFIXES)})."
    )
