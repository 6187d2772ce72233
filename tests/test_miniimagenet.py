"""The layouts of mini-ImageNet, made up small, and a real folder where MAMLNP_DATA has one."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from mamlnp.errors import DataError
from mamlnp.tasks import miniimagenet
from mamlnp.tasks.images import ImageFile
from mamlnp.tasks.miniimagenet import load_miniimagenet

CLASSES = {"train": ["n02", "n01", "n05"], "val": ["n04"], "test": ["n03", "n00"]}
PER_CLASS = 3
SIZE = 6


def picture(label, number):
    """An image whose shade tells class and number."""
    return np.full((SIZE, SIZE, 3), shade(label, number), np.uint8)


def shade(label, number):
    return 30 * int(label[1:]) + number


def encoded(label, number):
    file = io.BytesIO()
    Image.fromarray(picture(label, number)).save(file, "PNG")
    return file.getvalue()


def name(label, number):
    return f"{label}{number:08}.png"


FILES = {
    name(label, number): encoded(label, number)
    for labels in CLASSES.values()
    for label in labels
    for number in range(PER_CLASS)
}


def write_tables(root, header="filename,label", end="\n", blank="", extra="", prefix="", val="val"):
    root.mkdir(parents=True, exist_ok=True)
    for split, labels in CLASSES.items():
        rows = [
            f"{prefix}{name(label, number)},{label}{extra}"
            for number in reversed(range(PER_CLASS))
            for label in labels
        ]
        split = val if split == "val" else split
        (root / f"{split}.csv").write_bytes((end.join([header, *rows, *blank]) + end).encode())
    return root


def write_images(root, files=FILES):
    (root / "images").mkdir(parents=True)
    for path, content in files.items():
        (root / "images" / path).write_bytes(content)
    return root


def write_zip(root, files=FILES, prefix=""):
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for path, content in files.items():
            archive.writestr(prefix + path, content)
    return root


def write_folders(root, val="val"):
    for split, labels in CLASSES.items():
        for label in labels:
            folder = root / (val if split == "val" else split) / label
            folder.mkdir(parents=True)
            for number in range(PER_CLASS):
                (folder / f"{number}.png").write_bytes(encoded(label, number))
    return root


def content_of(labels):
    """What a pickle holds, its rows in no order."""
    pairs = [(label, number) for number in range(PER_CLASS) for label in labels]
    return {
        "image_data": np.stack([picture(*pair) for pair in pairs]),
        "class_dict": {
            label: [row for row, pair in enumerate(pairs) if pair[0] == label] for label in labels
        },
    }


def write_pickles(root, protocol=2, val="val", change=None):
    root.mkdir(parents=True, exist_ok=True)
    for split, labels in CLASSES.items():
        content = content_of(labels)
        if split == "train" and change:
            content = change(content)
        path = root / f"mini-imagenet-cache-{val if split == 'val' else split}.pkl"
        path.write_bytes(pickle.dumps(content, protocol))
    return root


def shades(data):
    """{split: {class: the shades of its images}}."""
    return {
        split: {
            name: part.images[np.arange(first, first + count)][:, 0, 0, 0].tolist()
            for name, first, count in zip(part.names, part.first, part.counts, strict=True)
        }
        for split, part in data.items()
    }


def expected(step=1):
    return {
        {"val": "validation"}.get(split, split): {
            label: [shade(label, number) for number in range(PER_CLASS)][::step]
            for label in sorted(labels)
        }
        for split, labels in CLASSES.items()
    }


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """No test reads or writes the user's own cache or data."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder / project)
    monkeypatch.delenv("MAMLNP_DATA", raising=False)
    return folder / "mamlnp"


# Tables


@pytest.mark.parametrize(
    "style",
    [
        {},
        {"header": "filename,class", "end": "\r\n"},
        {"blank": ["", "", ","]},
        {"end": "\r\n", "blank": ["", "  "]},
        {"header": "\ufefffilename,label,more", "extra": ",3"},
        {"extra": ",unnamed"},
        {"prefix": "images/"},
        {"val": "validation"},
    ],
)
@pytest.mark.parametrize("write", [write_images, write_zip])
def test_tables(tmp_path, style, write):
    write(write_tables(tmp_path, **style))
    data = load_miniimagenet(tmp_path, size=SIZE)
    assert list(data) == ["train", "validation", "test"]
    assert shades(data) == expected(step=-1), "classes sorted, images as the table lists them"
    assert all(isinstance(part.images, ImageFile) for part in data.values())
    assert data["train"].images.shape == (18, SIZE, SIZE, 3) and not data["train"].rotations
    assert load_miniimagenet(tmp_path)["test"].images.shape == (18, 84, 84, 3)


def test_a_zip_may_have_a_folder_inside_and_more_than_is_listed(tmp_path):
    write_tables(tmp_path)
    left = {"images/": b"", "__MACOSX/images/x.png": b"", "images/x.png": b"", "read.me": b""}
    write_zip(tmp_path, {f"images/{path}": file for path, file in FILES.items()} | left)
    assert shades(load_miniimagenet(tmp_path, size=SIZE)) == expected(step=-1)


def test_a_folder_of_images_comes_before_a_zip(tmp_path):
    write_zip(write_images(write_tables(tmp_path)), {})
    assert shades(load_miniimagenet(tmp_path, size=SIZE)) == expected(step=-1)


def replace(path, old, new):
    def damage(root):
        text = (root / path).read_bytes()
        assert old in text
        (root / path).write_bytes(text.replace(old, new, 1))

    return damage


TABLES = {
    "an image missing": (
        lambda root: (root / "images" / name("n01", 1)).unlink(),
        r"train\.csv: line 6: n0100000001\.png is not among the images\. Get",
    ),
    "a path that leaves the folder": (
        replace("val.csv", b"n0400000001.png", b"../train.csv"),
        r"val\.csv: line 3: \.\./train\.csv is not among",
    ),
    "an image twice": (
        replace("val.csv", b"n0400000001.png", b"n0400000002.png"),
        r"val\.csv: line 3: n0400000002\.png was listed before",
    ),
    "other columns": (
        replace("test.csv", b"filename,label", b"file,label"),
        r"test\.csv: has the columns file, label\. It needs filename",
    ),
    "no class": (
        replace("test.csv", b"n0300000002.png,n03", b"n0300000002.png"),
        r"test\.csv: line 2: filename is 'n0300000002\.png' and label is ''\.",
    ),
    "no name": (
        replace("test.csv", b"n0300000002.png,n03", b",n03"),
        r"test\.csv: line 2: filename is '' and label is 'n03'\.",
    ),
    "an empty table": (
        lambda root: (root / "val.csv").write_bytes(b""),
        r"val\.csv: has the columns none\.",
    ),
    "a header alone": (
        lambda root: (root / "val.csv").write_bytes(b"filename,label\n\n"),
        r"val\.csv: lists no images",
    ),
    "not text": (
        lambda root: (root / "val.csv").write_bytes(b"filename,label\n\xff\xfe,a\n"),
        r"val\.csv: not a table of comma-separated values \(.*codec",
    ),
    "a class in two splits": (
        replace("val.csv", b"0000002.png,n04", b"0000002.png,n03"),
        r"root: class n03 is in validation and in test\.",
    ),
    "one table missing": (
        lambda root: (root / "val.csv").unlink(),
        r"root: has train\.csv and test\.csv but no val\.csv or validation\.csv or valid\.csv",
    ),
    "no images": (
        lambda root: shutil.rmtree(root / "images"),
        r"root: holds tables of images, but neither images/ nor images\.zip",
    ),
    "a damaged image": (
        lambda root: (root / "images" / name("n01", 1)).write_bytes(b"hello"),
        r"images/n0100000001\.png: is none of PNG",
    ),
}


@pytest.mark.parametrize(("damage", "message"), TABLES.values(), ids=TABLES)
def test_one_clear_line_for(tmp_path, damage, message):
    root = write_images(write_tables(tmp_path / "root"))
    damage(root)
    with pytest.raises(DataError, match=message) as raised:
        load_miniimagenet(root, size=SIZE)
    assert "\n" not in str(raised.value)


def test_a_damaged_or_harmful_zip(tmp_path):
    write_tables(tmp_path)
    write_zip(tmp_path, FILES | {"../../leaves.png": b""})
    with pytest.raises(DataError, match=r"images\.zip: holds '\.\./\.\./leaves\.png', a path that"):
        load_miniimagenet(tmp_path, size=SIZE)
    write_zip(tmp_path)
    content = (tmp_path / "images.zip").read_bytes()
    (tmp_path / "images.zip").write_bytes(content[:-50])
    with pytest.raises(DataError, match=r"images\.zip: not a whole zip file"):
        load_miniimagenet(tmp_path, size=SIZE)
    at = content.index(b"IDAT") + 9  # inside the first image: a wrong checksum
    (tmp_path / "images.zip").write_bytes(content[:at] + b"~" + content[at + 1 :])
    with pytest.raises(DataError, match=r"png in .*images\.zip: cannot be read \(Bad CRC-32"):
        load_miniimagenet(tmp_path, size=SIZE)


# Folders


@pytest.mark.parametrize("val", ["val", "validation", "valid"])
def test_folders(tmp_path, val):
    data = load_miniimagenet(write_folders(tmp_path, val), size=SIZE)
    assert shades(data) == expected()


# Pickles


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("val", ["val", "validation"])
def test_pickles(tmp_path, protocol, val, monkeypatch):
    write_pickles(tmp_path, protocol, val)
    data = load_miniimagenet(tmp_path, size=SIZE)
    assert shades(data) == expected()
    assert all(isinstance(part.images, ImageFile) for part in data.values())
    monkeypatch.setattr(miniimagenet, "_unpickled", lambda _: pytest.fail("read again"))
    assert shades(load_miniimagenet(tmp_path, size=SIZE)) == expected()


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"a": 0}', b"[" * 100_000])
def test_a_damaged_index_in_the_cache_is_made_anew(tmp_path, cache, damage):
    write_pickles(tmp_path)
    load_miniimagenet(tmp_path, size=SIZE)
    indices = list(cache.glob("*.json"))
    whole = [index.read_bytes() for index in indices]
    assert len(indices) == 3
    for index in indices:
        index.write_bytes(damage)
    assert shades(load_miniimagenet(tmp_path, size=SIZE)) == expected()
    assert [index.read_bytes() for index in indices] == whole


def test_a_pickle_of_python_2(tmp_path):
    """Its strings are bytes, which become text; the array's bytes are such a string too."""
    write_pickles(tmp_path)
    images = content_of(CLASSES["train"])["image_data"]
    raw = images.tobytes()

    def text(string):
        return b"U" + bytes([len(string)]) + string  # SHORT_BINSTRING

    def number(value):
        return b"M" + value.to_bytes(2, "little")

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(map(number, images.shape)) + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    array += b"(K\x01" + shape + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    classes = b"}("
    for label, rows in content_of(CLASSES["train"])["class_dict"].items():
        classes += text(label.encode()) + b"](" + b"".join(map(number, rows)) + b"e"
    classes += b"u"
    content = b"\x80\x02}(" + text(b"image_data") + array + text(b"class_dict") + classes + b"u."
    assert type(pickle.loads(content, encoding="bytes")[b"image_data"]) is np.ndarray
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(content)
    assert shades(load_miniimagenet(tmp_path, size=SIZE)) == expected()


def test_rows_may_be_arrays_and_images_are_resized(tmp_path):
    def change(content):
        rows = {label: np.array(rows) for label, rows in content["class_dict"].items()}
        return content | {"class_dict": rows}

    data = load_miniimagenet(write_pickles(tmp_path, change=change), size=4)
    assert shades(data) == expected() and data["train"].images.shape == (9, 4, 4, 3)


def test_pickles_without_a_place_to_write_to(tmp_path, cache):
    cache.write_bytes(b"a file where the folder would be")
    data = load_miniimagenet(write_pickles(tmp_path), size=SIZE)
    assert shades(data) == expected() and isinstance(data["train"].images, np.ndarray)


class Harmful:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def only(**changes):
    return lambda content: content | changes


def rows(of):
    return lambda content: content | {"class_dict": content["class_dict"] | {"n01": of}}


ELEMENTS = np.array([{}, []], dtype=object)
PICKLES = {
    "objects": (only(image_data=ELEMENTS), r"holds an array of dtype 'O8'"),
    "objects as rows": (rows(ELEMENTS), r"holds an array of dtype 'O8'"),
    "fields": (only(image_data=np.zeros(3, "u1,u1")), r"holds an array of dtype 'V2'"),
    "a class of Python's": (only(more=Path("a")), r"asks for pathlib\.\w*Path"),
    "a function of NumPy's": (
        only(more=Harmful(np.loadtxt, "/etc/hostname")),
        r"asks for numpy\.loadtxt",
    ),
    "another codec": (only(more=Harmful(eval, "1 + 1")), r"asks for (__builtin__|builtins)\.eval"),
    "floats": (
        only(image_data=np.zeros((9, 6, 6, 3), np.float32)),
        r"image_data is float32\[9, 6, 6, 3\], not uint8\[N, height, width, 3\]",
    ),
    "greys": (only(image_data=np.zeros((9, 6, 6, 1), np.uint8)), r"uint8\[9, 6, 6, 1\], not"),
    "flat": (only(image_data=np.zeros((9, 108), np.uint8)), r"uint8\[9, 108\], not"),
    "a list": (only(image_data=[1, 2]), r"image_data is list\[2\], not"),
    "no classes": (only(class_dict={}), r"class_dict is empty"),
    "a list of classes": (only(class_dict=[1]), r"AttributeError"),
    "other keys": (lambda _: {"images": 1}, r"KeyError: 'image_data'"),
    "not a dict": (lambda _: [1], r"TypeError"),
    "a row too many": (rows([0, 9]), r"class n01 has rows 0 to 9 of 9 images"),
    "a negative row": (rows([-1, 2]), r"class n01 has rows -1 to 2 of 9 images"),
    "no rows": (rows([]), r"class n01 is float64\[0\], not the numbers"),
    "fractions": (rows([0.5]), r"class n01 is float64\[1\], not"),
    "rows of rows": (rows([[0, 1]]), r"class n01 is int64\[1, 2\], not"),
    "ragged rows": (rows([[0, 1], 2]), r"ValueError"),
    "a row twice": (rows([1, 1]), r"class n01 has an image that was listed before"),
    "another's row": (rows([0, 1]), r"class n01 has an image that was listed before"),
    "another's class": (
        lambda content: content | {"class_dict": {"n04": [0]}},
        r"root: class n04 is in train and in validation",
    ),
}


@pytest.mark.parametrize(("change", "message"), PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_is_refused(tmp_path, change, message):
    root = write_pickles(tmp_path / "root", change=change)
    with pytest.raises(DataError, match=message) as raised:
        load_miniimagenet(root, size=SIZE)
    assert "\n" not in str(raised.value)
    assert "root: class" in message or "root/mini-imagenet-cache-train.pkl: " in str(raised.value)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_a_command(tmp_path, protocol):
    harm = only(more=Harmful(os.system, f"touch {tmp_path}/harmed"))
    root = write_pickles(tmp_path / "root", protocol, change=harm)
    with pytest.raises(DataError, match=r"train\.pkl: damaged, .*asks for (posix|nt)\.system\)"):
        load_miniimagenet(root, size=SIZE)
    # By way of an attribute of something that is admitted.
    (root / "mini-imagenet-cache-train.pkl").write_bytes(
        b"\x80\x04\x8c\x05numpy\x8c\x20ndarray.__init__.__globals__.get\x93."
    )
    with pytest.raises(DataError, match=r"asks for numpy\.ndarray\.__init__"):
        load_miniimagenet(root, size=SIZE)
    assert not (tmp_path / "harmed").exists()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), new=st.binary(min_size=1, max_size=3), cut=st.booleans())
def test_a_damaged_pickle_is_harmless_or_a_data_error(tmp_path, at, new, cut):
    path = write_pickles(tmp_path) / "mini-imagenet-cache-train.pkl"
    content = path.read_bytes()
    at %= len(content)
    path.write_bytes(content[:at] if cut else content[:at] + new + content[at + len(new) :])
    try:
        load_miniimagenet(tmp_path, size=SIZE)
    except DataError:
        return
    assert not cut


# Where the images are


@pytest.mark.parametrize("inside", ["", "mini-imagenet", "miniimagenet"])
def test_the_place_comes_from_the_argument_then_the_environment(tmp_path, monkeypatch, inside):
    write_folders(tmp_path / "here" / inside)
    assert shades(load_miniimagenet(tmp_path / "here", size=SIZE)) == expected()
    monkeypatch.setenv("MAMLNP_DATA", str(tmp_path / "here"))
    assert shades(load_miniimagenet(size=SIZE)) == expected()
    with pytest.raises(DataError, match=r"nowhere: there is no such folder"):
        load_miniimagenet(tmp_path / "nowhere")


def test_nothing_there(tmp_path, monkeypatch):
    layouts = (
        r"train\.csv, val\.csv and test\.csv with images/ or images\.zip, "
        r"or the folders train, val and test .* or mini-imagenet-cache-train\.pkl"
    )
    with pytest.raises(DataError, match=rf"root: no mini-ImageNet there or in .*{layouts}"):
        (tmp_path / "root").mkdir()
        load_miniimagenet(tmp_path / "root")
    monkeypatch.setenv("MAMLNP_DATA", "")
    with pytest.raises(DataError, match=rf"load_miniimagenet: no folder was given.*{layouts}"):
        load_miniimagenet()


# Real images

DATA = os.environ.get("MAMLNP_DATA")
REAL = Path(DATA or "") / "grocery84"


@pytest.mark.skipif(not DATA or not REAL.exists(), reason="MAMLNP_DATA holds no grocery84")
def test_real_images():
    data = load_miniimagenet(REAL)
    assert {split: len(part.names) for split, part in data.items()} == {
        "train": 51,
        "validation": 10,
        "test": 20,
    }
    assert {split: int(part.counts.sum()) for split, part in data.items()} == {
        "train": 3177,
        "validation": 667,
        "test": 1577,
    }
    images = data["train"].images
    assert images.shape == (5421, 84, 84, 3)
    with zipfile.ZipFile(REAL / "images.zip") as archive:
        part = data["test"]
        path = f"{part.names[3]}{1:08}.jpg"
        original = np.asarray(Image.open(io.BytesIO(archive.read(path))))
    np.testing.assert_array_equal(images[part.first[3]], original)
    some = images[np.arange(0, 5421, 20)].astype(float)
    assert 60 < some.mean() < 180 and some.std(axis=(1, 2, 3)).min() > 5
    rng = np.random.default_rng(0)
    task = data["train"].sample(4, num_ways=5, num_shots=5, num_queries=15, rng=rng)
    assert task.query.x.shape == (4, 75, 84, 84, 3)
    assert not np.array_equal(task.query.x[0], task.query.x[1])


def test_what_a_pickle_makes_python_say_in_two_lines_is_one(tmp_path):
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    path.write_bytes(b"P1\n.")  # asks for something that was kept elsewhere
    with pytest.raises(DataError, match="damaged, or more than a pickle") as caught:
        miniimagenet._unpickled(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inside", "prefix", "header"),
    [
        ("images\\", "", "filename,label"),
        ("./images/", "", "filename,label"),
        ("mini-imagenet/images/", "images/", "filename,label"),
        ("images/", "images\\", "filename,label"),
        ("", "./images/", "filename,label"),
        ("IMAGES/", "images/", "Filename, Label"),
    ],
)
def test_names_are_told_whatever_their_writer_made_of_slashes(tmp_path, inside, prefix, header):
    root = write_tables(tmp_path, header=header, prefix=prefix)
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for path, content in FILES.items():
            member = zipfile.ZipInfo("x")
            member.filename = inside + path  # as other programs write it
            archive.writestr(member, content)
    found = load_miniimagenet(root, size=SIZE)
    expected = load_miniimagenet(write_images(write_tables(tmp_path / "plain")), size=SIZE)
    for split, part in expected.items():
        assert found[split].names == part.names
        np.testing.assert_array_equal(found[split].images[:], part.images[:])


def test_images_may_lie_in_a_folder_a_class_that_the_table_does_not_say(tmp_path):
    root = write_tables(tmp_path / "root")
    for path, content in FILES.items():
        place = tmp_path / "elsewhere" / path[:3] / path.upper()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (root / "images").mkdir()
    for folder in (tmp_path / "elsewhere").iterdir():
        (root / "images" / folder.name).symlink_to(folder)
    assert {split: len(part.names) for split, part in load_miniimagenet(root).items()} == {
        "train": 3,
        "validation": 1,
        "test": 2,
    }


def test_a_name_that_two_images_have_is_not_guessed(tmp_path):
    root = write_tables(tmp_path)
    for folder in ("a", "b"):
        (root / "images" / folder).mkdir(parents=True)
        for path, content in FILES.items():
            (root / "images" / folder / path).write_bytes(content)
    with pytest.raises(DataError, match="is not among the images"):
        load_miniimagenet(root)


@pytest.mark.parametrize("page", ["<html>quota exceeded</html>", "\n<!DOCTYPE html><p>log in"])
def test_a_web_page_saved_under_the_files_name_is_called_one(tmp_path, page):
    for split in ("train", "val", "test"):
        (tmp_path / f"mini-imagenet-cache-{split}.pkl").write_text(page)
    with pytest.raises(DataError, match="it is a web page, which a server sent instead"):
        load_miniimagenet(tmp_path)
    zipped = write_tables(tmp_path / "zipped")
    (zipped / "images.zip").write_text(page)
    with pytest.raises(DataError, match=r"images\.zip: not a whole zip file \(it is a web page"):
        load_miniimagenet(zipped)
