"""Image files of all kinds, damaged ones, zips, and what is kept of them on disk."""

import contextlib
import io
import mmap
import multiprocessing
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from mamlnp.errors import DataError
from mamlnp.tasks import images
from mamlnp.tasks.images import (
    ImageFile,
    decode,
    decode_once,
    images_in,
    images_in_zip,
    keep,
    read_image,
)


def encoded(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def photograph(seed, size=(40, 30)):
    """Smooth colours, as lossy formats like them."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def bomb(width, height):
    """A small PNG that claims many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def read(content, size=8, channels=3):
    return read_image("here", content, size=size, channels=channels)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """No test reads or writes the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder / project)
    return folder / "mamlnp"


# One image


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_every_format_gives_the_picture(kind):
    image = photograph(0)
    pixels = read(encoded(image, kind))
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    expected = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float)
    assert np.abs(pixels - expected).mean() < 12


def test_resizing_is_lanczos_and_none_where_the_size_is_right():
    image = photograph(1, (8, 8))
    np.testing.assert_array_equal(read(encoded(image)), np.asarray(image))
    large = photograph(2)
    expected = np.asarray(large.resize((8, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(read(encoded(large)), expected)
    grey = np.asarray(large.convert("L").resize((8, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(read(encoded(large), channels=1)[..., 0], grey)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_that_cameras_note_is_applied(orientation):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:2, :4] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 100, "subsampling": 0})):
        content = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
        assert np.abs(read(content).astype(int) - upright).max() < 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_put_on_white(mode, channels):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    if mode == "P":
        image, settings = Image.new("P", (8, 8), 1), {"transparency": 1}
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.paste(0, (0, 0, 4, 8))
    else:
        image, settings = image.convert(mode), {}
    pixels = read(encoded(image, **settings), channels=channels)
    assert (pixels[:, :4] == 0).all() and (pixels[:, 4:] == 255).all()


def test_one_bit_images_become_grey_before_they_are_filtered():
    stripes = np.tile([[0, 255]], (64, 32)).astype(np.uint8)
    pixels = read(encoded(Image.fromarray(stripes).convert("1")), channels=1)
    assert pixels.min() > 100 and pixels.max() < 155


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind):
    deep = np.repeat([0, 257 * 100, 257 * 200, 65535], 16).astype(np.uint16).reshape(8, 8)
    pixels = read(encoded(Image.fromarray(deep), kind))
    assert (pixels == np.repeat([0, 100, 200, 255], 16).reshape(8, 8, 1)).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGB", "1", "YCbCr"])
def test_other_modes(mode):
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    for channels in (1, 3):
        content = encoded(photograph(3).convert(mode), kind)
        assert read(content, channels=channels).shape == (8, 8, channels)


def test_no_warning_of_pillows_escapes(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # warns above it, up to twice
    content = encoded(photograph(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(io.BytesIO(content))
        assert read(content).shape == (8, 8, 3)
        sources = [images.Source("here", "it", lambda: content)] * 40
        assert decode(sources, size=8, channels=3).shape == (40, 8, 8, 3)


WHOLE = {kind: encoded(photograph(4, (200, 150)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_truncated_image(kind, part):
    content = WHOLE[kind][: int(part * len(WHOLE[kind]))]
    with pytest.raises(DataError, match=r"^here: is .*\. Replace the image") as raised:
        read(content)
    assert "\n" not in str(raised.value) and "0x" not in str(raised.value)


@settings(deadline=None)
@given(kind=st.sampled_from(sorted(WHOLE)), at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_damaged_image_is_harmless_or_a_data_error(kind, at, bit):
    content = bytearray(WHOLE[kind])
    content[at % len(content)] ^= 1 << bit
    with contextlib.suppress(DataError):
        assert read(bytes(content)).shape == (8, 8, 3)


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>" * 99, encoded(photograph(0), "PPM")])
def test_what_is_no_image(content):
    with pytest.raises(DataError, match=r"here: is none of PNG, JPEG, BMP, GIF, WEBP, TIFF\."):
        read(content)


def test_what_pillow_logs_of_a_damaged_image_is_not_printed(tmp_path):
    """In a process of its own: pytest listens to every log."""
    content = encoded(photograph(0), "TIFF")
    at = content.index(struct.pack("<HHI", 277, 3, 1)) + 8  # samples a pixel
    (tmp_path / "a.tiff").write_bytes(content[:at] + b"\xff\xff" + content[at + 2 :])
    script = (
        "import pathlib\nfrom mamlnp.errors import DataError\n"
        "from mamlnp.tasks.images import read_image\n"
        "try:\n    read_image('here', pathlib.Path('a.tiff').read_bytes(), size=8, channels=3)\n"
        "except DataError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("here: ") and done.stderr == ""


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (12_000, 12_000), (60_000, 60_000)])
def test_an_image_bomb_is_refused_before_it_is_decoded(width, height, monkeypatch):
    monkeypatch.setattr(images, "resized", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"here: claims .*more than 64000000"):
        read(bomb(width, height))


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 2)])
def test_sizes_that_no_image_has(size, channels):
    with pytest.raises(ValueError, match=f"size is {size} and channels {channels}\\. Use "):
        read(encoded(photograph(0)), size, channels)


def test_floating_point_pixels():
    content = encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"here: .*floating-point"):
        read(content)


# Folders and zips


def write_tree(root, names):
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(photograph(seed)))
    return root


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


NAMES = ["b.png", "a.PNG", "more/c.jpeg", "more/deep/d.tif"]
LEFT = [".hidden.png", "__MACOSX/a.png", "more/._c.jpeg", "notes.txt", ".git/e.png"]


def test_images_in_a_folder_are_sorted_and_nothing_else(tmp_path):
    root = write_tree(tmp_path / "root", NAMES + LEFT)
    (root / "f.png").mkdir()
    assert list(images_in(root)) == ["a.PNG", "b.png"]
    assert list(images_in(root, below=True)) == ["a.PNG", "b.png", "more/c.jpeg", "more/deep/d.tif"]


def test_a_hidden_folder_above_does_not_matter(tmp_path):
    root = write_tree(tmp_path / ".hidden" / "__MACOSX", NAMES)
    assert len(images_in(root, below=True)) == 4


def test_a_link_to_nowhere(tmp_path):
    (tmp_path / "a.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"a\.png: cannot be read \(No such file"):
        images_in(tmp_path)


def test_an_image_file_without_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 99)
    write_tree(tmp_path, ["a.png"])
    with pytest.raises(DataError, match=r"a\.png: has \d+ bytes, more than 99\."):
        images_in(tmp_path)


def test_a_file_that_goes_away(tmp_path):
    sources = list(images_in(write_tree(tmp_path, ["a.png"])).values())
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        decode_once(sources, size=8, channels=3)


def test_images_in_a_zip_are_read_in_place(tmp_path):
    root = write_tree(tmp_path / "root", NAMES)
    members = {name: (root / name).read_bytes() for name in NAMES}
    left = dict.fromkeys(LEFT, b"") | {"folder.png/": b""}
    path = write_zip(tmp_path / "images.zip", members | left)
    before = sorted(tmp_path.rglob("*"))
    with images_in_zip(path) as found:
        assert list(found) == NAMES
        zipped = decode(list(found.values()), size=8, channels=3)
    files = images_in(root, below=True)
    np.testing.assert_array_equal(
        zipped, decode([files[name] for name in NAMES], size=8, channels=3)
    )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["../a.png", "x/../../a.png", "/etc/a.png", "C:/a.png", "..\\a.png", "\\\\host\\a.png"]
)
def test_a_path_that_leaves_the_zip(tmp_path, name):
    path = write_zip(tmp_path / "images.zip", {"fine.png": b"", name: b""})
    message = r"images\.zip: holds '.*a\.png', a path that leaves it"
    with pytest.raises(DataError, match=message), images_in_zip(path):
        pass


def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "images.zip", {"a.png": bytes(100_000_001)})
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("read"))
    message = r"a\.png in .*zip: has 100000001 bytes, more than 100000000"
    with pytest.raises(DataError, match=message), images_in_zip(path):
        pass


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello" * 99])
def test_what_is_no_zip(tmp_path, content):
    path = tmp_path / "images.zip"
    path.write_bytes(content)
    message = r"images\.zip: not a whole zip file \("
    with pytest.raises(DataError, match=message), images_in_zip(path):
        pass


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_zip_is_harmless_or_a_data_error(tmp_path, at, bit, cut):
    members = {f"{seed}.png": encoded(photograph(seed)) for seed in range(3)}
    path = write_zip(tmp_path / "images.zip", members)
    whole = bytearray(path.read_bytes())
    at %= len(whole)
    whole[at] ^= 1 << bit
    path.write_bytes(whole[:at] if cut else whole)
    try:
        with images_in_zip(path) as found:
            pixels = decode(list(found.values()), size=8, channels=3)
    except DataError:
        return
    assert not cut
    expected = [read(members[name]) for name in found if name in members]
    if len(expected) == len(found):  # no name was damaged
        np.testing.assert_array_equal(pixels, expected)


# What is kept


def resident():
    """This process's memory, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell memory")
def test_reading_all_of_an_image_file_takes_no_memory(tmp_path):
    shape = (4096, 128, 128, 1)
    num_bytes = 4096 * 128 * 128
    path = tmp_path / "images.npy"
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(64):
            file.write(bytes(num_bytes // 64))
    kept = ImageFile(path, shape)

    def touch(rows_of):
        before = resident()
        for start in range(0, 4096, 16):
            assert not rows_of[np.arange(start, start + 16)].any()
        return resident() - before

    touch(kept)  # what the first reading needs for itself
    assert touch(kept) < num_bytes / 8
    mapped = np.load(path, mmap_mode="r")
    assert touch(mapped) > num_bytes / 2, "a mapping that stays open would be seen"


def test_an_image_file_is_indexed_like_an_array(tmp_path):
    whole = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)
    np.save(tmp_path / "images.npy", whole)
    kept = ImageFile(tmp_path / "images.npy", whole.shape)
    assert kept.dtype == whole.dtype
    for rows in (np.array([3, 3, 0]), slice(2, 7), 5, [[1], [8]], np.arange(9) % 2 == 0):
        assert type(kept[rows]) is np.ndarray and kept[rows].flags.writeable
        np.testing.assert_array_equal(kept[rows], whole[rows])
    (tmp_path / "images.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"images\.npy: the decoded images are gone or damaged"):
        kept[0]


def folder_of(tmp_path, num=5):
    return write_tree(tmp_path / "root", [f"{seed}.png" for seed in range(num)])


def test_decoding_once(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(images, "BATCH", 2)
    root = folder_of(tmp_path)
    sources = list(images_in(root).values())
    expected = np.stack([read((root / f"{seed}.png").read_bytes()) for seed in range(5)])
    first = decode_once(sources, size=8, channels=3)
    assert isinstance(first, ImageFile) and first.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(first[:], expected)
    np.testing.assert_array_equal(decode(sources, size=8, channels=3), expected)
    assert list(cache.iterdir()) == [first.path]
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded again"))
    assert decode_once(sources, size=8, channels=3) == first


def test_another_image_size_or_order_is_another_file(tmp_path):
    root = folder_of(tmp_path)

    def load(size=8, channels=3, step=1):
        sources = list(images_in(root).values())[::step]
        return decode_once(sources, size=size, channels=channels)

    loaded = [load(), load(size=9), load(channels=1), load(step=-1)]
    (root / "0.png").write_bytes(encoded(photograph(99)))
    loaded.append(load())
    assert len({kept.path for kept in loaded}) == 5
    np.testing.assert_array_equal(loaded[3][:], loaded[0][::-1])
    assert not np.array_equal(loaded[4][0], loaded[0][0])


@pytest.mark.parametrize("damage", ["cut", "emptied", "no array", "no header", "another shape"])
def test_a_damaged_file_is_written_anew(tmp_path, damage):
    sources = list(images_in(folder_of(tmp_path)).values())
    kept = decode_once(sources, size=8, channels=3)
    expected, content = kept[:], kept.path.read_bytes()
    if damage == "another shape":
        np.save(kept.path, expected[:2])
    else:
        new = {"cut": content[:-9], "emptied": b"", "no array": b"PK\x03\x04" + content[4:]}
        new["no header"] = content.replace(b"}", b"(", 1)
        kept.path.write_bytes(new[damage])
    np.testing.assert_array_equal(decode_once(sources, size=8, channels=3)[:], expected)
    assert kept.path.read_bytes() == content


def test_without_a_place_to_write_to_images_stay_in_memory(tmp_path, cache):
    cache.write_bytes(b"a file where the folder would be")
    sources = list(images_in(folder_of(tmp_path)).values())
    kept = decode_once(sources, size=8, channels=3)
    assert isinstance(kept, np.ndarray)
    np.testing.assert_array_equal(kept, decode(sources, size=8, channels=3))


def test_a_full_disk_in_the_middle_of_it(cache):
    tries = []

    def batches():
        tries.append(1)
        yield np.ones((2, 4, 4, 1), np.uint8)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        yield np.full((1, 4, 4, 1), 2, np.uint8)

    kept = keep("some images", (3, 4, 4, 1), batches)
    assert isinstance(kept, np.ndarray) and kept[:, 0, 0, 0].tolist() == [1, 1, 2]
    assert not list(cache.iterdir())


def test_a_damaged_image_leaves_nothing_behind(tmp_path, cache):
    root = folder_of(tmp_path)
    (root / "3.png").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"3\.png: is none of PNG"):
        decode_once(list(images_in(root).values()), size=8, channels=3)
    assert not list(cache.iterdir())


def load_at(folder, cache, barrier, results):
    pooch.os_cache = lambda project: cache
    sources = list(images_in(folder).values())
    barrier.wait(60)
    results.put(int(decode_once(sources, size=8, channels=3)[:].sum()))


def test_two_processes_at_once(tmp_path, cache):
    root = folder_of(tmp_path, 50)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    args = (root, cache, barrier, results)
    processes = [context.Process(target=load_at, args=args) for _ in range(2)]
    for process in processes:
        process.start()
    sums = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    expected = decode(list(images_in(root).values()), size=8, channels=3)
    assert sums == {int(expected.sum())} and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("worth", [3, 6])
def test_a_progress_bar_on_stderr_where_it_takes_long(tmp_path, monkeypatch, capsys, worth):
    monkeypatch.setattr(images, "WORTH_A_BAR", worth)
    decode(list(images_in(folder_of(tmp_path)).values()), size=8, channels=3)
    out, err = capsys.readouterr()
    assert not out and ("decoding" in err) == (worth == 3)


# Broken metadata

TURNED = struct.pack("<HHII", 0x112, 3, 1, 6)


def with_exif(*entries):
    """A JPEG file with these EXIF entries."""
    content = encoded(photograph(0), "JPEG")
    notes = b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    notes += b"".join(entries) + bytes(4)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(notes) + 2) + notes + content[2:]


def with_chunk(piece):
    content = encoded(photograph(0), "PNG")
    return content[:33] + piece + content[33:]


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<HHI4s", 0x11A, 2, 4, b"72\0\0"),  # a resolution as text
        struct.pack("<HHIf", 0x100, 11, 1, 1.5),  # a fraction where a whole number belongs
        struct.pack("<HHII", 0x10F, 2, 1 << 30, 1 << 30),  # text that begins beyond the file
    ],
)
def test_a_damaged_note_of_a_cameras_is_no_damage_to_the_pixels(entry):
    upright = read_image("x", with_exif(TURNED), size=8, channels=3)
    np.testing.assert_array_equal(
        read_image("x", with_exif(entry, TURNED), size=8, channels=3), upright
    )
    plain = read_image("x", with_exif(), size=8, channels=3)
    assert not np.array_equal(plain, upright)


@pytest.mark.parametrize(
    "piece",
    [
        chunk(b"zTXt", b"a\0\0" + zlib.compress(b"0" * (80 << 20))),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(range(32, 99)) * 22_000)),
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"tEXt", b"a\0b")[:-1] + b"?",  # another checksum
        chunk(b"eXIf", b"II*\0")[:-1] + b"?",
    ],
)
def test_long_or_damaged_text_in_a_png_is_no_damage_to_the_pixels(piece):
    plain = read_image("x", encoded(photograph(0), "PNG"), size=8, channels=3)
    np.testing.assert_array_equal(read_image("x", with_chunk(piece), size=8, channels=3), plain)


def test_damaged_pixels_under_damaged_text_are_still_damage():
    whole = with_chunk(chunk(b"tEXt", b"a\0b")[:-1] + b"?")
    with pytest.raises(DataError, match="is damaged"):
        read_image("x", whole[:-40], size=8, channels=3)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_level_is_white_at_any_depth(depth):
    header = struct.pack(">IIBBBBB", 8, 8, depth, 0, 0, 0, 0)
    row = b"\0" + int("1".zfill(depth) * 8, 2).to_bytes(depth)  # eight pixels of the level 1
    pieces = [
        chunk(b"IHDR", header),
        chunk(b"tRNS", b"\0\1"),
        chunk(b"IDAT", zlib.compress(row * 8)),
        chunk(b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(pieces)
    assert (read_image("x", content, size=8, channels=1) == 255).all()
    other = content.replace(pieces[1], chunk(b"tRNS", b"\0\0"))
    assert (read_image("x", other, size=8, channels=1) < 255).all() or depth == 1


def test_a_transparent_colour_of_sixteen_bits_is_white():
    pixel = struct.pack(">HHH", 300, 300, 300)
    pieces = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)),
        chunk(b"tRNS", pixel),
        chunk(b"IDAT", zlib.compress((b"\0" + pixel * 2) * 2)),
        chunk(b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(pieces)
    assert (read_image("x", content, size=2, channels=3) == 255).all()


def test_linked_folders_are_walked_and_those_that_hold_themselves_once(tmp_path):
    write_tree(tmp_path / "elsewhere", ["b.png"])
    root = write_tree(tmp_path / "root", ["a.png", "deep/c.png"])
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "deep" / "above").symlink_to(root)
    assert list(images_in(root, below=True)) == ["a.png", "deep/c.png", "linked/b.png"]
