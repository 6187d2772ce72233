"""Image files as arrays: decoded once, kept on disk, read from there row by row."""

import hashlib
import io
import itertools
import logging
import os
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pooch
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from ..errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
SYSTEMS = ("__MACOSX", "Thumbs.db", "desktop.ini")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff")
PNG = b"\x89PNG\r\n\x1a\n"  # how one begins
TURNS: dict[Any, Image.Transpose] = {  # by EXIF's number for how the camera was held
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow brings these pixels to 8 bits, but not the level that says which are transparent.
IN_8_BITS: dict[Any, Callable[[Any], Any]] = {
    "L;2": lambda level: level * 85,
    "L;4": lambda level: level * 17,
    "RGB;16B": lambda level: level >> 8,
}
MAX_PIXELS = 64_000_000  # of one image; a few bytes of file can claim any number
MAX_BYTES = 100_000_000  # of one image's file; likewise in a zip
BATCH = 256  # images decoded, then written, at a time
WORTH_A_BAR = 3000  # images that take seconds to decode

# What Pillow logs it also raises; nobody listening, it would be a second line on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


# One image


def read_image(where: str, content: bytes, *, size: int, channels: int) -> npt.NDArray[np.uint8]:
    """One image file's pixels, resized.

    The orientation that cameras note is applied, transparency is put on white, and of an animation
    the first picture is taken.

    Args:
        where: names the image in errors.
        content: of a PNG, JPEG, BMP, GIF, WEBP or TIFF file.
        size: height and width, in pixels; images are stretched to it.
        channels: 3 for red, green, blue; 1 for grey.

    Returns:
        uint8 (size, size, channels).

    Raises:
        DataError: where the content is damaged, no image, or claims more than MAX_PIXELS.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (40, 20), "red").save(file, "PNG")
    >>> read_image("red.png", file.getvalue(), size=2, channels=3).tolist()
    [[[255, 0, 0], [255, 0, 0]], [[255, 0, 0], [255, 0, 0]]]
    """
    with _no_warnings():
        return _decode(where, content, size, channels)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow warns of oddities in files it reads all the same; not for threads to enter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode(where: str, content: bytes, size: int, channels: int) -> npt.NDArray[np.uint8]:
    if size < 1 or channels not in (1, 3):
        raise ValueError(
            f"read_image: size is {size} and channels {channels}. Use 1 pixel or more, 1 or 3."
        )
    try:
        with _opened(content) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return resized(_upright(image), size, channels)
            wrong = f"claims {width} x {height} pixels, more than {MAX_PIXELS}"
    except Image.DecompressionBombError:  # Pillow's own limit, which is above ours
        wrong = f"claims more than {MAX_PIXELS} pixels"
    except UnidentifiedImageError:
        wrong = f"is none of {', '.join(FORMATS)}"
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        wrong = f"is damaged or of a kind that cannot be read ({error})"
    raise DataError(f"{where}: {wrong}. Replace the image or take it away.")


def _opened(content: bytes) -> Image.Image:
    """An image, decoded unless it has too many pixels. Where a PNG cannot be, its text may be what
    is damaged or too long, which says nothing of its pixels."""

    def opened(content: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        kind = image.tile[0].args if image.tile else None
        if image.width * image.height <= MAX_PIXELS:
            image.load()
        if kind in IN_8_BITS and "transparency" in image.info:
            levels = np.asarray(image.info["transparency"])
            image.info["transparency"] = IN_8_BITS[kind](levels).tolist()
            if levels.ndim:
                image.info["transparency"] = tuple(image.info["transparency"])
        return image

    try:
        return opened(content)
    except Image.DecompressionBombError:
        raise
    except Exception:  # a damaged file makes Pillow raise nearly anything
        if not content.startswith(PNG):
            raise
        return opened(_pixels_of_png(content))


def _pixels_of_png(content: bytes) -> bytes:
    """A PNG without all that neither its pixels nor their orientation depend on."""
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        kind, chunk = content[at + 4 : at + 8], content[at:end]
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (kind == b"eXIf" and whole):
            kept.append(chunk)
        at = end
    return b"".join(kept)


def _upright(image: Image.Image) -> Image.Image:
    """The image as its camera was held. A note that cannot be read is no damage to the pixels."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged notes make Pillow raise nearly anything
        return image
    return image if turn is None else image.transpose(turn)


def resized(image: Image.Image, size: int, channels: int) -> npt.NDArray[np.uint8]:
    """A Pillow image as :func:`read_image` returns it."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        deep[deep == image.info.get("transparency", -1)] = 65535
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    # Pillow does not filter 1-bit and palette images: convert first.
    image = image.convert({1: "L", 3: "RGB"}[channels])
    image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.array(image).reshape(size, size, channels)


# Where images lie


@dataclass(frozen=True)
class Source:
    """An image that has not been read yet.

    Attributes:
        where: names it in errors.
        identity: another one when the image may have changed.
        read: gives the file's content.
    """

    where: str
    identity: str
    read: Callable[[], bytes]


def web_page(path: Path) -> str:
    """What to say of a file that a server sent a page instead of; nothing of others."""
    try:
        with path.open("rb") as file:
            began = file.read(200).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    except OSError:
        return ""
    page = began.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml"))
    return "it is a web page, which a server sent instead" if page else ""


def plain_name(name: str) -> str:
    r"""A path in a table or a zip, however its writer spelled it.

    >>> plain_name("images\\cat.jpg"), plain_name("./images//cat.jpg")
    ('images/cat.jpg', 'images/cat.jpg')
    """
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def is_hidden(name: str) -> bool:
    """Whether a path is something an operating system left.

    >>> is_hidden("cat/1.jpg"), is_hidden("cat/.DS_Store"), is_hidden("__MACOSX/cat/1.jpg")
    (False, True, True)
    """
    return any(part.startswith(".") or part in SYSTEMS for part in name.split("/"))


def images_in(folder: Path, *, below: bool = False) -> dict[str, Source]:
    """The images in a folder, sorted, by their paths in it; ``below``: in its folders too.

    Raises:
        DataError: where an image is not there, no file, or larger than MAX_BYTES.
    """
    found = {}
    for path in sorted(_walked(folder) if below else folder.iterdir()):
        name = path.relative_to(folder).as_posix()
        if _is_image(name) and not path.is_dir():
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(
                    f"{path}: cannot be read ({error.strerror}). Replace it or take it away."
                ) from error
            if not path.is_file():  # a pipe, say, whose other end may never come
                raise DataError(f"{path}: is no file. Replace it or take it away.")
            _check_bytes(f"{path}", stat.st_size)
            identity = f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}"
            found[name] = Source(f"{path}", identity, path.read_bytes)
    return found


def _walked(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """The files below a folder, by way of linked folders too, but of none that holds itself."""
    try:
        stat, entries = folder.stat(), list(os.scandir(folder))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read ({error.strerror}). Make it readable or take it away."
        ) from error
    here = stat.st_dev, stat.st_ino
    if here not in above:
        for entry in entries:
            if not entry.is_dir():
                yield folder / entry.name
            elif not is_hidden(entry.name):
                yield from _walked(folder / entry.name, above | {here})


def say_left_out(root: Path, folders: Iterable[Path], *, below: bool = False) -> None:
    """Warn of the files in some of root's folders that are not taken, as they do not end like
    images; ``below``: in the folders' folders too."""
    paths = itertools.chain.from_iterable(
        _walked(folder) if below else folder.iterdir() for folder in folders
    )
    names = sorted(
        path.relative_to(root).as_posix()
        for path in paths
        if not (_is_image(path.name) or is_hidden(path.name)) and path.is_file()
    )
    if names:
        more = f" and {len(names) - 3} others" if len(names) > 3 else ""
        warnings.warn(
            f"{root}: {', '.join(names[:3])}{more} left out, as images are files that end in "
            f"{', '.join(SUFFIXES)}. Convert what is an image.",
            stacklevel=3,
        )


@contextmanager
def images_in_zip(path: Path) -> Iterator[dict[str, Source]]:
    """The images in a zip file by their paths in it, to be read while the context lasts.

    Nothing is extracted.

    Raises:
        DataError: where the file is damaged, or it holds an absolute path, one with ``..``, or an
            image larger than MAX_BYTES.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged file makes zipfile raise nearly anything
        wrong = web_page(path) or f"{error}"
        raise DataError(f"{path}: not a whole zip file ({wrong}). Get it again.") from error
    lock = threading.Lock()

    def read(member: zipfile.ZipInfo) -> bytes:
        with lock:
            return archive.read(member)

    with archive:
        found = {}
        for member in archive.infolist():
            name = member.filename
            windows = PureWindowsPath(name)  # takes both kinds of slash, and drives
            if windows.anchor or ".." in windows.parts:
                raise DataError(
                    f"{path}: holds {name!r}, a path that leaves it. Get the file from elsewhere."
                )
            is_folder, name = name.endswith(("/", "\\")), plain_name(name)
            if _is_image(name) and not is_folder:
                where = f"{name} in {path}"
                _check_bytes(where, member.file_size)
                identity = f"{name} {member.CRC} {member.file_size}"
                found[name] = Source(where, identity, partial(read, member))
        yield found


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def _check_bytes(where: str, num: int) -> None:
    if num > MAX_BYTES:
        raise DataError(f"{where}: has {num} bytes, more than {MAX_BYTES}. Make the image smaller.")


# Many images


@dataclass(frozen=True)
class ImageFile:
    """Images in a .npy file, read as they are asked for.

    Attributes:
        path: the file.
        shape: (N, height, width, channels).

    >>> path = getfixture("tmp_path") / "images.npy"
    >>> np.save(path, np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1))
    >>> ImageFile(path, (3, 2, 2, 1))[np.array([2, 0])][:, 0, 0, 0]
    array([8, 0], dtype=uint8)
    """

    path: Path
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """Of the pixels."""
        return np.dtype(np.uint8)

    def __getitem__(self, rows: Any) -> npt.NDArray[np.uint8]:
        # A mapping that stays open counts every page it ever touched as this process's memory.
        try:
            mapped = np.lib.format.open_memmap(self.path, mode="r")
        except Exception as error:  # a damaged header makes NumPy raise nearly anything
            raise DataError(
                f"{self.path}: the decoded images are gone or damaged ({error}). "
                "Start again to decode them anew."
            ) from error
        images = mapped[rows]
        return np.array(images) if isinstance(images, np.memmap) else images


Images = npt.NDArray[np.uint8] | ImageFile


def decode(sources: Sequence[Source], *, size: int, channels: int) -> npt.NDArray[np.uint8]:
    """Every image, uint8 (N, size, size, channels), in memory.

    Raises:
        DataError: where one cannot be read, see :func:`read_image`.
    """
    empty = np.empty((0, size, size, channels), np.uint8)
    return np.concatenate([empty, *_batches(sources, size, channels)])


def decode_once(sources: Sequence[Source], *, size: int, channels: int) -> Images:
    """The same, kept in the user's cache folder: a second call decodes nothing.

    Returns:
        The file; where it cannot be written, the images in memory.

    Raises:
        DataError: where one cannot be read, see :func:`read_image`.
    """
    key = f"{size} {channels} {PIL.__version__}"
    return keep(
        "\n".join([key, *(source.identity for source in sources)]),
        (len(sources), size, size, channels),
        lambda: _batches(sources, size, channels),
    )


def keep(
    identity: str, shape: tuple[int, ...], batches: Callable[[], Iterable[npt.NDArray[np.uint8]]]
) -> Images:
    """Images in the cache folder: written now, batch by batch, unless they are there.

    Args:
        identity: what they are, in any number of words; another one, another file.
        shape: (N, height, width, channels).
        batches: gives them, first to last.

    Returns:
        The file; where it cannot be written, the images in memory.
    """
    path = cache_path(identity, ".npy")
    try:
        if not _is_whole(path, shape):
            with replacing(path) as written, written.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for batch in batches():
                    file.write(np.ascontiguousarray(batch).data)
        return ImageFile(path, shape)
    except OSError:  # no place to write to: slower next time, but no error
        images = np.empty(shape, np.uint8)
        done = 0
        for batch in batches():
            images[done : done + len(batch)] = batch
            done += len(batch)
        return images


def cache_path(identity: str, suffix: str) -> Path:
    """The place in the cache folder for what ``identity`` says, in any number of words."""
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    return Path(pooch.os_cache("mamlnp")) / f"images-{digest[:32]}{suffix}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which then replaces ``path`` whole.

    Processes that do so at once do not meet: the last one's file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        yield written
        with written.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(written, path)


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # not there, or damaged, which makes NumPy raise nearly anything
        return False
    return mapped.dtype == np.uint8 and mapped.shape == shape


def _batches(
    sources: Sequence[Source], size: int, channels: int
) -> Iterator[npt.NDArray[np.uint8]]:
    def pixels(source: Source) -> npt.NDArray[np.uint8]:
        try:
            content = source.read()
        except Exception as error:  # a damaged zip makes zipfile raise nearly anything
            raise DataError(
                f"{source.where}: cannot be read ({error}). Replace the file."
            ) from error
        return _decode(source.where, content, size, channels)

    num = len(sources)
    bar = tqdm(total=num, desc="decoding", unit="image", leave=False, disable=num < WORTH_A_BAR)
    with bar, ThreadPoolExecutor(os.cpu_count()) as threads:  # Pillow decodes without the GIL
        for start in range(0, num, BATCH):
            with _no_warnings():
                images = list(threads.map(pixels, sources[start : start + BATCH]))
            yield np.stack(images)
            bar.update(len(images))
