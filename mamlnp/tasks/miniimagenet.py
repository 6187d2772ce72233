"""mini-ImageNet: 100 classes of 600 photographs, in the layouts it is passed on in."""

from __future__ import annotations

import csv
import functools
import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from ..errors import DataError
from .fewshot import ClassImages
from .folder import (
    Classes,
    check_disjoint,
    decoded,
    existing_folder,
    find_splits,
    read_classes,
)
from .images import (
    BATCH,
    Source,
    cache_path,
    images_in,
    images_in_zip,
    keep,
    plain_name,
    replacing,
    resized,
    web_page,
)

FOLDERS = ("", "mini-imagenet", "miniimagenet", "mini_imagenet", "miniImageNet", "mini-ImageNet")
LAYOUTS = (
    "train.csv, val.csv and test.csv with images/ or images.zip",
    "the folders train, val and test with a folder a class",
    "mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl",
)


def load_miniimagenet(
    data: str | os.PathLike[str] | None = None, *, size: int = 84
) -> dict[str, ClassImages]:
    """mini-ImageNet, or other images laid out like it, as "train", "validation" and "test" classes.

    The layouts are: ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename`` and
    ``label`` (or ``class``) and the images in ``images/`` or ``images.zip``; the folders ``train``,
    ``val`` and ``test`` with a folder a class; the pickles ``mini-imagenet-cache-train.pkl``,
    ``-val.pkl`` and ``-test.pkl``, of which nothing but NumPy arrays is taken. For ``val``,
    ``validation`` will do. What was decoded is kept in the user's cache folder.

    There is no download: the images are ImageNet's, which wants to be asked first.

    Args:
        data: the folder that holds one of these, itself or in a folder ``mini-imagenet``.
            Default: the environment variable MAMLNP_DATA.
        size: what images are resized to, in pixels.

    Returns:
        Classes in sorted order, images uint8 (N, size, size, 3).

    Raises:
        DataError: where files are missing, damaged or foreign, or a class is in two splits.
    """
    given = data or os.environ.get("MAMLNP_DATA")
    if not given:
        raise DataError(
            "load_miniimagenet: no folder was given. Name it in data or MAMLNP_DATA; it holds "
            f"{', or '.join(LAYOUTS)}."
        )
    root = existing_folder(given)
    for folder in (root / inside for inside in FOLDERS):
        if tables := find_splits(folder, "{}.csv"):
            with _images_of(folder) as images:
                splits = {split: _read_table(path, images) for split, path in tables.items()}
                return decoded(folder, splits, size=size, channels=3)
        if folders := find_splits(folder, "{}"):
            splits = {split: read_classes(path) for split, path in folders.items()}
            return decoded(folder, splits, size=size, channels=3)
        if pickles := find_splits(folder, "mini-imagenet-cache-{}.pkl"):
            parts = {split: _read_pickle(path, size) for split, path in pickles.items()}
            check_disjoint(folder, {split: part.names for split, part in parts.items()})
            return parts
    raise DataError(
        f"{root}: no mini-ImageNet there or in a folder {FOLDERS[1]}. "
        f"Put there {', or '.join(LAYOUTS)}."
    )


# Tables of images


@contextmanager
def _images_of(folder: Path) -> Iterator[Mapping[str, Source]]:
    """The images that tables name, by their names there."""
    unpacked, archive = folder / "images", folder / "images.zip"
    if unpacked.is_dir():
        yield images_in(unpacked, below=True)
    elif archive.is_file():
        with images_in_zip(archive) as members:
            yield members
    else:
        raise DataError(
            f"{folder}: holds tables of images, but neither images/ nor images.zip. "
            "Put the images there."
        )


def _read_table(path: Path, images: Mapping[str, Source]) -> Classes:
    classes: Classes = {}
    used = set()
    by_file: dict[str, list[str]] = {}
    for image in images:
        by_file.setdefault(image.casefold().rpartition("/")[2], []).append(image)
    for line, listed, label in _rows(path):
        name = _meant(plain_name(listed), by_file)
        if name not in images or name in used:
            wrong = "was listed before" if name in used else "is not among the images"
            raise DataError(f"{path}: line {line}: {listed} {wrong}. Get the data again.")
        used.add(name)
        classes.setdefault(label, []).append(images[name])
    if not classes:
        raise DataError(f"{path}: lists no images. Get the data again.")
    return dict(sorted(classes.items()))


def _meant(name: str, by_file: Mapping[str, Sequence[str]]) -> str:
    """The image that a table names: itself, or the only one whose path ends like the name, or it
    like the path, in small letters or capitals; the name itself where there is none or more."""
    small = name.casefold()
    candidates = by_file.get(small.rpartition("/")[2], ())
    if name in candidates:
        return name
    ends, found = f"/{small}", []
    for candidate in candidates:
        path = f"/{candidate.casefold()}"
        if path.endswith(ends) or ends.endswith(path):
            found.append(candidate)
    return found[0] if len(found) == 1 else name


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """The line number, file name and class of each row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            columns = [name.strip().lower() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            label = "label" if "label" in columns else "class"
            if "filename" not in columns or label not in columns:
                raise DataError(
                    f"{path}: has the columns {', '.join(columns) or 'none'}. "
                    "It needs filename, and label or class."
                )
            for row in reader:
                name, of_class = row["filename"].strip(), row[label].strip()
                if name and of_class:
                    yield reader.line_num, name, of_class
                elif name or of_class:
                    raise DataError(
                        f"{path}: line {reader.line_num}: filename is {name!r} and {label} is "
                        f"{of_class!r}. Complete the line or delete it."
                    )
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(
            f"{path}: not a table of comma-separated values ({error}). Get the data again."
        ) from error


# Pickles


def _read_pickle(path: Path, size: int) -> ClassImages:
    """One split. Its images and an index of them go to the cache: a pickle is read only once."""
    stat = path.stat()
    identity = f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns} {size} {PIL.__version__}"
    index = cache_path(identity, ".json")
    content = functools.cache(lambda: _unpickled(path))

    def batches() -> Iterator[npt.NDArray[np.uint8]]:
        images, classes = content()
        rows = np.concatenate(list(classes.values()))
        for start in range(0, len(rows), BATCH):
            batch = images[rows[start : start + BATCH]]
            yield np.stack([resized(Image.fromarray(image), size, 3) for image in batch])

    num = _index(index)
    if num is None:
        num = {name: len(rows) for name, rows in content()[1].items()}
        with suppress(OSError), replacing(index) as written:
            written.write_text(json.dumps(num))
    counts = np.array(list(num.values()))
    images = keep(identity, (counts.sum().item(), size, size, 3), batches)
    return ClassImages(images, tuple(num), np.cumsum(counts) - counts, counts)


def _index(path: Path) -> dict[str, int] | None:
    """How many images each class has, if the cache says it."""
    try:
        num = json.loads(path.read_bytes())
        whole = all(isinstance(n, int) and n > 0 for n in num.values())
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return num if whole else None


def _unpickled(path: Path) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.int64]]]:
    """The images of a pickle and the rows of each class, sorted by its name."""
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
        images = content["image_data"]
        classes = {name: np.asarray(rows) for name, rows in content["class_dict"].items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        wrong = web_page(path) or f"{type(error).__name__}: {' '.join(f'{error}'.split())}"
        raise DataError(
            f"{path}: damaged, or more than a pickle of arrays of numbers ({wrong}). "
            "Get it from elsewhere."
        ) from error
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[3:] != (3,):
        raise DataError(
            f"{path}: image_data is {getattr(images, 'dtype', type(images).__name__)}"
            f"{list(np.shape(images))}, not uint8[N, height, width, 3]. Get the file again."
        )
    used = np.zeros(len(images), bool)
    for name, rows in classes.items():
        if rows.dtype.kind not in "iu" or rows.ndim != 1 or not rows.size:
            wrong = f"is {rows.dtype}{list(rows.shape)}, not the numbers of its images"
        elif rows.min() < 0 or rows.max() >= len(images):
            wrong = f"has rows {rows.min()} to {rows.max()} of {len(images)} images"
        elif used[rows].any() or len(np.unique(rows)) < len(rows):
            wrong = "has an image that was listed before"
        else:
            used[rows] = True
            continue
        raise DataError(f"{path}: class {name} {wrong}. Get the file again.")
    if not classes:
        raise DataError(f"{path}: class_dict is empty. Get the file again.")
    return images, {f"{name}": classes[name] for name in sorted(classes, key=str)}


def _dtype(code: str, *_: Any) -> np.dtype[Any]:
    # The shared instance, whose state a pickle cannot set; a copy's could be set to crash NumPy.
    if not re.fullmatch("[biuf][1248]", code):
        raise pickle.UnpicklingError(f"it holds an array of dtype {code!r}")
    return np.dtype(code)


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_ADMITTED = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
    "numpy.core.multiarray.scalar": np.int64(0).__reduce__()[0],
    "numpy.core.numeric._frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "_codecs.encode": _latin1,  # how Python 3 writes bytes for Python 2
}


class _Unpickler(pickle.Unpickler):
    """Unpickles arrays of numbers in Python's own containers, and refuses anything else."""

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        if wanted not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ADMITTED[wanted]
