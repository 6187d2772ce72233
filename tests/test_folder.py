"""Images of one's own: folders of classes, splits of them, and what to adapt to and predict."""

import io

import numpy as np
import pooch
import pytest
from PIL import Image

from mamlnp.errors import DataError
from mamlnp.tasks.folder import load_folder, read_query, read_support
from mamlnp.tasks.images import ImageFile


def picture(shade, size=(12, 9)):
    """An image file of one shade."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(file, "PNG")
    return file.getvalue()


def write(root, **counts):
    """Classes of so many images, whose shades tell class and number: 10 * class + number."""
    for c, (name, count) in enumerate(sorted(counts.items())):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / f"{i}.png").write_bytes(picture(10 * c + i, size=(10 + c, 20 + i)))
    return root


def shades(part):
    """{class: the shades of its images}."""
    return {
        name: part.images[np.arange(first, first + count)][:, 0, 0, 0].tolist()
        for name, first, count in zip(part.names, part.first, part.counts, strict=True)
    }


ANIMALS = dict.fromkeys(["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"], 3)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """No test reads or writes the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder / project)
    return folder / "mamlnp"


def test_a_folder_a_class_is_split_at_random_by_the_seed(tmp_path):
    root = write(tmp_path, **ANIMALS)
    data = load_folder(root, size=6)
    assert list(data) == ["train", "validation", "test"]
    assert [len(part.names) for part in data.values()] == [6, 2, 2]
    found = {name: values for part in data.values() for name, values in shades(part).items()}
    assert found == {name: [10 * c, 10 * c + 1, 10 * c + 2] for c, name in enumerate(ANIMALS)}
    assert all(list(part.names) == sorted(part.names) for part in data.values())
    assert all(part.images is data["train"].images for part in data.values())
    assert isinstance(data["train"].images, ImageFile)
    assert data["train"].images.shape == (30, 6, 6, 3) and not data["train"].rotations
    again, other = load_folder(root, size=6), load_folder(root, size=6, split_seed=1)
    assert all(again[split].names == data[split].names for split in data)
    assert any(other[split].names != data[split].names for split in data)
    assert load_folder(str(root), size=5, channels=1)["test"].images.shape == (30, 5, 5, 1)


@pytest.mark.parametrize(("num", "sizes"), [(3, [1, 1, 1]), (5, [3, 1, 1]), (100, [64, 16, 20])])
def test_the_shares_of_the_splits(tmp_path, num, sizes):
    root = write(tmp_path, **{f"{c:03}": 1 for c in range(num)})
    assert [len(part.names) for part in load_folder(root, size=2).values()] == sizes


@pytest.mark.parametrize("validation", ["val", "validation", "valid"])
def test_folders_are_the_split(tmp_path, validation):
    write(tmp_path / "train", cat=2, dog=3)
    write(tmp_path / validation, bee=1)
    write(tmp_path / "test", ant=4, eel=1)
    data = load_folder(tmp_path, size=4)
    assert {split: shades(part) for split, part in data.items()} == {
        "train": {"cat": [0, 1], "dog": [10, 11, 12]},
        "validation": {"bee": [0]},
        "test": {"ant": [0, 1, 2, 3], "eel": [10]},
    }


def test_one_class_may_be_called_like_a_split(tmp_path):
    data = load_folder(write(tmp_path, train=1, car=1, plane=1), size=4)
    assert {name for part in data.values() for name in part.names} == {"train", "car", "plane"}


def test_what_is_no_image_is_ignored(tmp_path):
    root = write(tmp_path, ant=2, bee=2, cat=2)
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "readme.txt").write_text("hello")
    (root / "ant/Thumbs.db").write_bytes(b"")
    (root / "ant/.0.png").write_bytes(b"")
    (root / "ant/deeper").mkdir()
    data = load_folder(root, size=4)
    assert {name: values for part in data.values() for name, values in shades(part).items()} == {
        "ant": [0, 1],
        "bee": [10, 11],
        "cat": [20, 21],
    }


def lists(root, **texts):
    for split, text in texts.items():
        (root / f"{split}.txt").write_text(text)
    return {split: root / f"{split}.txt" for split in texts}


def test_lists_are_the_split(tmp_path):
    root = write(tmp_path / "data", ant=1, bee=1, cat=1, dog=1)
    classes = lists(tmp_path, train="dog\r\n\r\n  bee \n", validation="\ufeffant", test="cat\n\n")
    data = load_folder(root, size=4, classes=classes)
    assert {split: part.names for split, part in data.items()} == {
        "train": ("bee", "dog"),
        "validation": ("ant",),
        "test": ("cat",),
    }
    assert shades(data["train"]) == {"bee": [10], "dog": [30]}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"train": "dog\n\ncow", "validation": "ant", "test": "cat"},
            r"train\.txt: line 3: class cow is no folder in .*data\.",
        ),
        (
            {"train": "dog\nbee", "validation": "ant", "test": "cat\nbee"},
            r"test\.txt: line 2: class bee was listed before\.",
        ),
        ({"train": "dog", "validation": "ant", "test": "cat"}, r"data: class bee is in none of"),
        (
            {"train": "dog\nbee\ncat", "validation": "ant", "test": "\n"},
            r"test\.txt: lists no class\.",
        ),
        ({"train": "dog", "test": "cat"}, r"classes: has lists for train, test\. Give one for"),
        (
            {"train": "\udcff", "validation": "ant", "test": "cat"},
            r"train\.txt: cannot be read \(.*codec",
        ),
        (None, r"nowhere\.txt: cannot be read"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, texts, message):
    root = write(tmp_path / "data", ant=1, bee=1, cat=1, dog=1)
    classes = dict.fromkeys(["train", "validation", "test"], tmp_path / "nowhere.txt")
    for split, text in (texts or {}).items():
        (tmp_path / f"{split}.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
        classes[split] = tmp_path / f"{split}.txt"
    if texts:
        classes = {split: classes[split] for split in texts}
    with pytest.raises(DataError, match=message) as raised:
        load_folder(root, size=4, classes=classes)
    assert "\n" not in str(raised.value)


def test_lists_beside_folders_that_are_the_split(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / split, **{split: 1})
    with pytest.raises(DataError, match="has the folders train, val, test, but lists of classes"):
        load_folder(tmp_path, classes={})


FOLDERS = {
    "nothing there": (lambda root: None, r"nowhere: there is no such folder\. Give"),
    "a file": (lambda root: root.write_text("hello"), "there is no such folder"),
    "no classes": (lambda root: root.mkdir(), r"nowhere: holds no folders\. Put a folder a class"),
    "images alone": (
        lambda root: write(root.parent, nowhere=3),
        r"nowhere: holds no folders\. Put a folder a class there \(images are files that end in",
    ),
    "two classes": (lambda root: write(root, a=1, b=1), r"nowhere: holds 2 classes, too few"),
    "an empty class": (
        lambda root: write(root, a=1, b=1, c=0),
        r"nowhere/c: holds no images\. Put the images of the class there \(.*\.png, \.jpg",
    ),
    "no validation": (
        lambda root: (write(root / "train", a=1), write(root / "test", b=1)),
        r"nowhere: has train and test but no val or validation or valid\. Put it there",
    ),
    "an empty split": (
        lambda root: [write(root / split, a=1) for split in ("train", "val", "test/deeper")],
        r"nowhere/test/deeper: holds no images",
    ),
    "a class twice": (
        lambda root: [write(root / split, a=1) for split in ("train", "val", "test")],
        r"nowhere: class a is in train and in validation\. Keep each class in one",
    ),
    "a damaged image": (
        lambda root: (write(root, a=1, b=1, c=1) / "c/0.png").write_bytes(picture(0)[:45]),
        r"nowhere/c/0\.png: is damaged",
    ),
}


@pytest.mark.parametrize(("make", "message"), FOLDERS.values(), ids=FOLDERS)
def test_one_clear_line_for(tmp_path, make, message):
    make(tmp_path / "nowhere")
    with pytest.raises(DataError, match=message) as raised:
        load_folder(tmp_path / "nowhere", size=4)
    assert "\n" not in str(raised.value)


def test_a_class_with_too_few_images_for_a_task(tmp_path):
    data = load_folder(write(tmp_path, ant=3, bee=3, cat=3, dog=1, eel=3), size=4)
    few = next(part for part in data.values() if "dog" in part.names)
    with pytest.raises(DataError, match=r"images of a class, but dog has 1\. Ask for"):
        few.sample(1, num_ways=1, num_shots=1, num_queries=1, rng=np.random.default_rng(0))


# Prediction


def test_support_and_query(tmp_path, cache):
    support = write(tmp_path / "support", dog=1, cat=3)
    images, labels, names = read_support(support, size=6, channels=3)
    assert images.shape == (4, 6, 6, 3) and images.dtype == np.uint8
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 10]
    assert labels.dtype == np.int64 and labels.tolist() == [0, 0, 0, 1]
    assert names == ("cat", "dog")
    query = write(tmp_path / "query", b=2)
    (query / "a.png").write_bytes(picture(99))
    images, paths = read_query(str(query), size=6, channels=1)
    assert images.shape == (3, 6, 6, 1)
    assert paths == [query / "a.png", query / "b/0.png", query / "b/1.png"]
    assert not cache.exists(), "a few images are not worth a file"


@pytest.mark.parametrize("read", [read_support, read_query])
def test_nothing_to_predict(tmp_path, read):
    with pytest.raises(DataError, match=r"nowhere: there is no such folder"):
        read(tmp_path / "nowhere", size=4, channels=3)
    with pytest.raises(DataError, match=r"holds no (folders|images)\. Put "):
        read(tmp_path, size=4, channels=3)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"holds no images\. Put "):
        read(tmp_path, size=4, channels=3)
    (tmp_path / "a/a.jpg").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"a/a\.jpg: is none of PNG"):
        read(tmp_path, size=4, channels=3)


def test_folders_of_the_split_may_begin_with_capitals(tmp_path):
    for split in ("Train", "Val", "TEST"):
        write(tmp_path / split, **{split.lower(): 1})
    data = load_folder(tmp_path, size=4)
    assert {split: part.names for split, part in data.items()} == {
        "train": ("train",),
        "validation": ("val",),
        "test": ("test",),
    }


def test_files_that_are_no_images_are_said_to_be_left_out(tmp_path):
    write(tmp_path, cat=1, dog=1)
    for name in ("cat/1.heic", "cat/2.heic", "dog/.DS_Store", "dog/notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "notes.txt").touch()  # beside the classes, where nobody looks for images
    left_out = ": cat/1.heic, cat/2.heic, dog/notes.txt left out"
    with pytest.warns(UserWarning, match=left_out) as said:
        read_support(tmp_path, size=4, channels=3)
    assert len(said) == 1
    with pytest.warns(UserWarning, match=f"{left_out[:-9]} and 1 others left out"):
        assert len(read_query(tmp_path, size=4, channels=3)[1]) == 2
    write(tmp_path, bird=1)
    with pytest.warns(UserWarning, match=left_out):
        load_folder(tmp_path, size=4)
    for split in ("train", "val", "test"):
        write(tmp_path / "split" / split, **{split: 1})
    (tmp_path / "split/val/val/a.svg").touch()
    with pytest.warns(UserWarning, match="split: val/val/a.svg left out"):
        load_folder(tmp_path / "split", size=4)


def test_a_jfif_is_a_jpeg(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jfif", "JPEG")
    assert read_query(tmp_path, size=4, channels=3)[1] == [tmp_path / "a.jfif"]


def test_linked_folders_are_queried_too(tmp_path):
    write(tmp_path / "photographs", cat=2)
    (tmp_path / "query").mkdir()
    (tmp_path / "query" / "linked").symlink_to(tmp_path / "photographs")
    _, paths = read_query(tmp_path / "query", size=4, channels=3)
    assert [path.name for path in paths] == ["0.png", "1.png"]
