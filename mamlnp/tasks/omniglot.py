"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn by 20 people (Lake 2015)."""

import contextlib
import hashlib
import io
import os
import statistics
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL
import pooch
from PIL import Image

from ..errors import DataError
from .fewshot import ClassImages, with_turns
from .images import is_hidden, plain_name, web_page
from .splits import random_split, vinyals_split

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
MD5 = {  # of the official zips, in the order in which their characters are listed
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
FILTERS = {"antialias": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
DRAWN_SIZE = (105, 105)
SIZE = (28, 28)
LAYOUT = "<alphabet>/<character>/<image>.png"


def load_omniglot(
    data: str | os.PathLike[str] | None = None,
    *,
    resize: Literal["antialias", "nearest"] = "antialias",
    split: Literal["vinyals", "random"] = "vinyals",
    split_seed: int = 0,
    split_sizes: tuple[int, int, int] = (1100, 100, 423),
    rotations: bool = True,
) -> dict[str, ClassImages]:
    """Omniglot at 28x28, ink 255 on 0, as "train", "validation" and "test" classes.

    The images come from the official zips ``images_background.zip`` and ``images_evaluation.zip``
    or from folders they were unpacked into; with no place given they are downloaded. What was
    decoded is kept in the user's cache folder, named by the content of the files.

    Args:
        data: the folder that holds the zips or folders, itself or in a folder ``omniglot``.
            Default: the environment variable MAMLNP_DATA, else a download.
        resize: "antialias" gives greys. "nearest" gives the authors' images, which are binary:
            Pillow ignored the filter they asked for, as it does on any 1-bit image.
        split: "vinyals", the fixed split everyone compares on (``vinyals_split``), or "random",
            the authors' (``random_split``).
        split_seed: the seed of a random split.
        split_sizes: the sizes of a random split.
        rotations: whether tasks turn each class by a multiple of 90 degrees.

    Returns:
        Classes named ``part/alphabet/character``, in sorted order, of 20 images each; all share
        one array of images, uint8 (32460, 28, 28, 1).

    Raises:
        DataError: where files are missing, damaged or foreign, or the split does not fit them.
    """
    if resize not in FILTERS:
        raise ValueError(f"load_omniglot: resize is {resize!r}. Use one of {list(FILTERS)}.")
    if split not in ("vinyals", "random"):
        raise ValueError(f"load_omniglot: split is {split!r}. Use 'vinyals' or 'random'.")
    characters: dict[str, list[tuple[str, bytes]]] = {}
    for part, source in _sources(data).items():
        characters |= _read_characters(part, source)
    images = _images(characters, resize)
    names = tuple(characters)
    if split == "vinyals":
        chosen = vinyals_split(names)
    else:
        chosen = random_split(names, seed=split_seed, sizes=split_sizes)
    per_class = images.shape[1]
    shared = images.reshape(-1, *SIZE, 1)
    if rotations:
        shared = with_turns(shared)
    return {
        key: ClassImages(
            shared,
            tuple(names[i] for i in indices),
            first=per_class * indices,
            counts=np.full(len(indices), per_class),
            rotations=rotations,
        )
        for key, indices in chosen.items()
    }


def _sources(data: str | os.PathLike[str] | None) -> dict[str, Path]:
    """The zip or folder of each part."""
    given = data or os.environ.get("MAMLNP_DATA")
    if not given:
        return {part: _download(part) for part in MD5}
    root = Path(given).expanduser()
    for folder in (root, root / "omniglot"):
        paths = {part: _zip_or_folder(folder, part) for part in MD5}
        found = {part: path for part, path in paths.items() if path is not None}
        missing = [part for part in MD5 if part not in found]
        if found and missing:
            raise DataError(
                f"{folder}: holds {next(iter(found.values())).name} but neither {missing[0]}.zip "
                f"nor {missing[0]}/. Put it there too, from {URL}."
            )
        if found:
            return found
    raise DataError(
        f"{root}: no images_background and images_evaluation there or in {root / 'omniglot'}, "
        f"neither as zips nor as folders. Put both there, from {URL}, or unset data and "
        "MAMLNP_DATA to have them downloaded."
    )


def _zip_or_folder(folder: Path, part: str) -> Path | None:
    archive, unpacked = folder / f"{part}.zip", folder / part
    if archive.is_file():
        return archive
    return unpacked if unpacked.is_dir() else None


def _download(part: str) -> Path:
    name = f"{part}.zip"
    folder = pooch.os_cache("mamlnp") / "omniglot"
    try:
        return Path(pooch.retrieve(URL + name, f"md5:{MD5[part]}", fname=name, path=folder))
    except (OSError, ValueError) as error:  # no network, or another checksum
        raise DataError(
            f"{URL}{name}: not downloaded to {folder} ({error}). "
            "Download it yourself and name its folder in data or MAMLNP_DATA, or train without it: "
            "mamlnp train strokes makes up characters of its own."
        ) from error


def _read_characters(part: str, source: Path) -> dict[str, list[tuple[str, bytes]]]:
    """The (place, content) of every image of each character, all in sorted order."""
    entries = _read_zip(source) if source.is_file() else _read_folder(source)
    folders = {path for path in entries if path.endswith("/")}
    characters: dict[str, list[tuple[str, bytes]]] = {}
    for path in sorted(entries.keys() - folders, key=lambda path: path.split("/")):
        top, *inner = path.split("/")
        if top != part or len(inner) != 3:
            raise DataError(f"{source}: unexpected image {path}. Expected {part}/{LAYOUT}.")
        character = f"{part}/{inner[0]}/{inner[1]}"
        characters.setdefault(character, []).append((f"{path} in {source}", entries[path]))
        folders -= {f"{part}/", f"{part}/{inner[0]}/", f"{character}/"}
    if not characters:
        raise DataError(f"{source}: holds no images. Expected {part}/{LAYOUT}.")
    if folders:
        raise DataError(f"{source}: nothing in {min(folders)}. Expected {part}/{LAYOUT}.")
    return characters


def _read_zip(source: Path) -> dict[str, bytes]:
    """The content of every wanted path, empty for folders (which end in a slash)."""
    try:
        with zipfile.ZipFile(source) as archive:
            entries = {}
            for path in archive.namelist():
                name = plain_name(path) + "/" * path.endswith(("/", "\\"))
                if _is_wanted(name):
                    entries[name] = archive.read(path)
            return entries
    except Exception as error:  # a damaged file makes zipfile raise nearly anything
        raise DataError(
            f"{source}: not a whole zip file ({web_page(source) or error}). "
            f"Get it again from {URL}."
        ) from error


def _read_folder(source: Path) -> dict[str, bytes]:
    """The same of a folder. Paths begin with its name, as they do in the zips."""
    entries = {}
    for folder, _, files in os.walk(source, followlinks=True):
        inside = Path(folder).relative_to(source.parent).as_posix()
        if _is_wanted(f"{inside}/"):
            entries[f"{inside}/"] = b""
        for path in filter(_is_wanted, (f"{inside}/{file}" for file in files)):
            try:
                entries[path] = (source.parent / path).read_bytes()
            except OSError as error:
                raise DataError(f"{source.parent / path}: not readable ({error}).") from error
    return entries


def _is_wanted(path: str) -> bool:
    """Whether a path is a folder or an image, and not something an operating system left."""
    return path.lower().endswith(("/", ".png")) and not is_hidden(path)


def _images(characters: dict[str, list[tuple[str, bytes]]], resize: str) -> npt.NDArray[np.uint8]:
    """Every character's images, uint8 (characters, images, 28, 28, 1), from the cache if there."""
    per_class = statistics.mode(len(files) for files in characters.values())
    for character, files in characters.items():
        if len(files) != per_class:
            raise DataError(
                f"{character}: {len(files)} images where most characters have {per_class}. "
                f"Get the data again from {URL}."
            )
    shape = (len(characters), per_class, *SIZE, 1)
    drawings = [drawing for files in characters.values() for drawing in files]
    key = hashlib.sha256(f"{resize} {shape} {PIL.__version__}".encode())
    for _, content in drawings:
        key.update(b"%d " % len(content) + content)
    cache = pooch.os_cache("mamlnp") / f"omniglot-{key.hexdigest()[:16]}.npz"
    images = _load_cache(cache)
    if images is None or images.shape != shape or images.dtype != np.uint8:
        paper = np.stack([_decode(where, content, resize) for where, content in drawings])
        images = (255 - paper).reshape(shape)
        _save_cache(cache, images)
    return images


def _decode(where: str, content: bytes, resize: str) -> npt.NDArray[np.uint8]:
    """One image, uint8 (28, 28), ink 0 on 255."""
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        if image.size == DRAWN_SIZE:
            # Pillow does not filter 1-bit images, so it has to be made grey first.
            return np.asarray(image.convert("L").resize(SIZE, FILTERS[resize]))
        wrong = "{} x {} pixels, not {} x {}".format(*image.size, *DRAWN_SIZE)
    except Exception:  # a damaged file makes Pillow raise nearly anything
        wrong = "not a whole PNG image"
    raise DataError(f"{where}: {wrong}. Get the data again from {URL}.")


def _load_cache(path: Path) -> npt.NDArray[np.uint8] | None:
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # a zip, hence checksummed
            images: npt.NDArray[np.uint8] = arrays["images"]
            return images
    except Exception:  # missing or damaged in some way: either is mended by decoding again
        return None


def _save_cache(path: Path, images: npt.NDArray[np.uint8]) -> None:
    """Write atomically; a cache that cannot be written is no error, only slower next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            np.savez(temporary, images=images)
            os.replace(temporary, path)
