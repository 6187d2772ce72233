"""Omniglot on a small made-up tree, and the real one where MAMLNP_DATA says where it is."""

import io
import os
import shutil
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from mamlnp.errors import DataError
from mamlnp.tasks import counted_rng
from mamlnp.tasks.omniglot import load_omniglot
from mamlnp.tasks.splits import random_split, vinyals_split

PARTS = ("images_background", "images_evaluation")
CHARACTERS = {  # in an order that sorting has to mend; as plain text, "A-b/" sorts before "A/"
    "images_evaluation": ["Zed/character02", "Zed/character01"],
    "images_background": ["B/character01", "A-b/character01", "A/character02", "A/character01"],
}
IN_ORDER = (
    "images_background/A/character01",
    "images_background/A/character02",
    "images_background/A-b/character01",
    "images_background/B/character01",
    "images_evaluation/Zed/character01",
    "images_evaluation/Zed/character02",
)
PER_CLASS = 3
SIZES = (3, 1, 2)


def png(seed, size=(105, 105), mode="1"):
    """A drawing, as a PNG file: some black strokes on white."""
    rng = np.random.default_rng(seed)
    paper = np.full(size[::-1], 255, np.uint8)
    for row, column in rng.integers(0, 90, (6, 2)):
        paper[row : row + 4, column : column + 40] = 0
        paper[row : row + 40, column : column + 3] = 0
    file = io.BytesIO()
    Image.fromarray(paper).convert(mode).save(file, "PNG")
    return file.getvalue()


def made_up_tree():
    """{path: content} of every image."""
    paths = [
        f"{part}/{character}/{image:02}.png"
        for part, characters in CHARACTERS.items()
        for character in characters
        for image in reversed(range(PER_CLASS))
    ]
    return {path: png(seed) for seed, path in enumerate(paths)}


TREE = made_up_tree()


def write_zips(root, tree=TREE):
    root.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            for path, content in tree.items():
                if path.startswith(part):
                    archive.writestr(path, content)
    return root


def write_folders(root, tree=TREE):
    for path, content in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def by_class(data):
    """The images of each class, (classes, per class, height, width, 1)."""
    return np.stack(
        [data.images[a : a + num] for a, num in zip(data.first, data.counts, strict=True)]
    )


def load(root, **settings):
    """A made-up tree, whole and in order."""
    settings = {"split": "random", "split_sizes": (len(IN_ORDER), 0, 0), **settings}
    return load_omniglot(root, **settings)["train"]


@pytest.fixture(autouse=True)
def sealed(monkeypatch, tmp_path_factory):
    """No test downloads, or reads or writes the user's own cache or data."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(pooch, "os_cache", lambda project: cache / project)
    monkeypatch.setattr(pooch, "retrieve", lambda *_, **__: pytest.fail("tried to download"))
    monkeypatch.delenv("MAMLNP_DATA", raising=False)
    return cache / "mamlnp"


# Loading


@pytest.mark.parametrize("write", [write_zips, write_folders])
@pytest.mark.parametrize("inside", ["", "omniglot"])
def test_zips_and_folders_give_the_same_sorted_classes(tmp_path, write, inside):
    write(tmp_path / inside)
    data = load(tmp_path)
    assert data.names == IN_ORDER
    assert by_class(data).shape == (6, PER_CLASS, 28, 28, 1) and data.images.dtype == np.uint8
    expected = load(write_zips(tmp_path / "expected"))
    np.testing.assert_array_equal(by_class(data), by_class(expected))
    assert data.rotations and not load(tmp_path, rotations=False).rotations


def test_each_image_is_where_its_path_says_with_bright_ink(tmp_path):
    data = load(write_folders(tmp_path), resize="nearest")
    for c, name in enumerate(data.names):
        for i in range(PER_CLASS):
            drawing = Image.open(io.BytesIO(TREE[f"{name}/{i:02}.png"]))
            # The authors' way: Pillow drops the filter on a 1-bit image.
            paper = drawing.resize((28, 28), resample=Image.Resampling.LANCZOS)
            ink = 1 - np.asarray(paper, dtype=np.float64)
            np.testing.assert_array_equal(by_class(data)[c, i, :, :, 0] / 255, ink)
            assert 0 < ink.mean() < 0.5


def test_nearest_is_binary_and_antialias_is_grey(tmp_path):
    write_zips(tmp_path)
    nearest, grey = by_class(load(tmp_path, resize="nearest")), by_class(load(tmp_path))
    assert set(np.unique(nearest)) == {0, 255}
    assert len(np.unique(grey)) > 50
    paper = [
        Image.open(io.BytesIO(TREE[f"{name}/{i:02}.png"])).convert("L")
        for name in IN_ORDER
        for i in range(PER_CLASS)
    ]
    means = [np.asarray(image.resize((28, 28), Image.Resampling.BOX)) for image in paper]
    ink = (255.0 - np.stack(means)).reshape(grey.shape)
    assert np.abs(grey - ink).mean() < 0.5 * np.abs(nearest - ink).mean()


def test_what_an_operating_system_leaves_is_ignored(tmp_path):
    left = {
        "images_background/.DS_Store": b"",
        "images_background/A/._character01.png": b"",
        "images_evaluation/__MACOSX/Zed/character01/01.png": b"",
        "images_evaluation/Zed/Thumbs.db": b"",
    }
    expected = load(write_zips(tmp_path / "clean")).images
    for write in (write_zips, write_folders):
        data = load(write(tmp_path / write.__name__, TREE | left))
        assert data.names == IN_ORDER
        np.testing.assert_array_equal(data.images, expected)
    with zipfile.ZipFile(tmp_path / "clean/images_background.zip", "a") as archive:
        archive.writestr("__MACOSX/", b"")
        archive.writestr("__MACOSX/images_background/A/01.png", b"")
        archive.writestr("images_background/A/", b"")
    np.testing.assert_array_equal(load(tmp_path / "clean").images, expected)


def test_the_place_comes_from_the_argument_then_the_environment(tmp_path, monkeypatch):
    write_zips(tmp_path / "here" / "omniglot")
    monkeypatch.setenv("MAMLNP_DATA", str(tmp_path / "here"))
    assert load(None).names == IN_ORDER
    with pytest.raises(DataError, match="nowhere"):
        load(tmp_path / "nowhere")
    monkeypatch.setenv("MAMLNP_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="elsewhere"):
        load(None)
    assert load(str(tmp_path / "here")).names == IN_ORDER


def test_with_no_place_given_the_checksummed_zips_are_downloaded(tmp_path, monkeypatch, sealed):
    calls = []

    def retrieve(url, known_hash, fname, path):
        calls.append((url, known_hash, path))
        return str(write_zips(tmp_path) / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setenv("MAMLNP_DATA", "")
    assert load(None).names == IN_ORDER
    folder = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
    assert calls == [
        (
            f"{folder}images_background.zip",
            "md5:68d2efa1b9178cc56df9314c21c6e718",
            sealed / "omniglot",
        ),
        (
            f"{folder}images_evaluation.zip",
            "md5:6b91aef0f799c5bb55b94e3f2daec811",
            sealed / "omniglot",
        ),
    ]


@pytest.mark.parametrize("failure", [ConnectionError("no network"), ValueError("MD5 hash differs")])
def test_a_failed_download_says_what_to_do(monkeypatch, failure):
    def retrieve(*_, **__):
        raise failure

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(DataError, match=rf"background\.zip: .*{failure}.*MAMLNP_DATA"):
        load(None)


# The cache


def test_a_second_load_decodes_nothing(tmp_path, monkeypatch):
    first = load(write_zips(tmp_path)).images
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded again"))
    np.testing.assert_array_equal(load(tmp_path).images, first)


def test_the_cache_follows_the_content_and_the_resize(tmp_path):
    first = by_class(load(write_folders(tmp_path)))
    assert not np.array_equal(by_class(load(tmp_path, resize="nearest")), first)
    path = tmp_path / IN_ORDER[1] / "00.png"
    path.write_bytes(png(1000))
    second = by_class(load(tmp_path))
    assert np.argwhere((first != second).any(axis=(2, 3, 4))).tolist() == [[1, 0]]


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "another shape"])
def test_a_damaged_cache_is_written_anew(tmp_path, sealed, damage):
    expected = load(write_zips(tmp_path), rotations=False).images
    (cache,) = sealed.iterdir()
    content = cache.read_bytes()
    middle = len(content) // 2
    if damage == "another shape":
        np.savez(cache, images=expected[:2])
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        cache.write_bytes({"cut": content[:-99], "emptied": b"", "flipped": flipped}[damage])
    np.testing.assert_array_equal(load(tmp_path, rotations=False).images, expected)
    with np.load(cache) as arrays:
        np.testing.assert_array_equal(arrays["images"].reshape(expected.shape), expected)
    assert list(sealed.iterdir()) == [cache]


def test_an_unwritable_cache_is_no_error(tmp_path, sealed):
    sealed.write_bytes(b"a file where the folder would be")
    assert load(write_zips(tmp_path)).names == IN_ORDER


# Errors


def remove(*paths):
    def damage(root):
        for path in paths:
            (root / path).unlink()

    return damage


def overwrite(path, content):
    def damage(root):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    return damage


def cut(path, num_bytes):
    def damage(root):
        (root / path).write_bytes((root / path).read_bytes()[:-num_bytes])

    return damage


def swap_zips(root):
    background, evaluation = (root / f"{part}.zip" for part in PARTS)
    background.rename(root / "kept")
    evaluation.rename(background)
    (root / "kept").rename(evaluation)


def zip_of(path, content):
    def damage(root):
        with zipfile.ZipFile(root / "images_background.zip", "w") as archive:
            archive.writestr(path, content)

    return damage


IMAGE = "images_background/A/character01/00.png"
ZIP_ERRORS = {
    "nothing there": (
        remove("images_background.zip", "images_evaluation.zip"),
        r"root: no images_background and images_evaluation there or in .*omniglot",
    ),
    "only background": (
        remove("images_evaluation.zip"),
        r"root: holds images_background\.zip but neither images_evaluation\.zip nor "
        r"images_evaluation/\. Put it there too",
    ),
    "only evaluation": (
        remove("images_background.zip"),
        r"root: holds images_evaluation\.zip but neither images_background\.zip",
    ),
    "truncated": (cut("images_evaluation.zip", 200), r"evaluation\.zip: not a whole zip file \("),
    "empty": (overwrite("images_background.zip", b""), r"background\.zip: not a whole zip file"),
    "not a zip": (overwrite("images_background.zip", b"<html>" * 99), r"not a whole zip file"),
    "swapped": (
        swap_zips,
        r"background\.zip: unexpected image images_evaluation/.* Expected images_background/<alph",
    ),
    "foreign": (
        zip_of("train/cat/1.jpg", b""),
        r"background\.zip: holds no images\. Expected images_background/<alphabet>/<character>/",
    ),
    "flat": (zip_of("images_background/A/00.png", b""), r"unexpected image images_background/A/00"),
}
FOLDER_ERRORS = {
    "not an image": (overwrite(IMAGE, b"hello"), rf"{IMAGE} in .*: not a whole PNG image\. Get"),
    "cut image": (cut(IMAGE, 60), rf"{IMAGE} in .*: not a whole PNG image"),
    "wrong size": (
        overwrite(IMAGE, png(0, size=(28, 30))),
        rf"{IMAGE} in .*: 28 x 30 pixels, not 105 x 105\.",
    ),
    "a jpeg by another name": (overwrite(IMAGE, b"\xff\xd8\xff\xe0" * 9), "not a whole PNG image"),
    "an image missing": (
        remove(IMAGE),
        r"images_background/A/character01: 2 images where most characters have 3\.",
    ),
    "an image too many": (
        overwrite("images_evaluation/Zed/character02/03.png", png(0)),
        r"Zed/character02: 4 images where most characters have 3\.",
    ),
    "too deep": (
        overwrite("images_background/A/character01/more/00.png", png(0)),
        r"unexpected image images_background/A/character01/more/00\.png\.",
    ),
    "empty alphabet": (
        lambda root: (root / "images_evaluation/Young").mkdir(),
        r"images_evaluation: nothing in images_evaluation/Young/\. Expected images_evaluation/<al",
    ),
    "empty character": (
        lambda root: (root / "images_background/A/character03").mkdir(),
        r"nothing in images_background/A/character03/\.",
    ),
    "all empty": (
        lambda root: shutil.rmtree(root / "images_evaluation/Zed"),
        r"images_evaluation: holds no images\.",
    ),
    "a folder for an image": (
        lambda root: ((root / IMAGE).unlink(), (root / IMAGE).mkdir()),
        rf"nothing in {IMAGE}/",
    ),
    "a link to nowhere": (
        lambda root: ((root / IMAGE).unlink(), (root / IMAGE).symlink_to("nowhere")),
        rf"{IMAGE}: not readable",
    ),
}


@pytest.mark.parametrize(
    ("write", "damage", "message"),
    [
        pytest.param(write, *error, id=name)
        for write, errors in ((write_zips, ZIP_ERRORS), (write_folders, FOLDER_ERRORS))
        for name, error in errors.items()
    ],
)
def test_one_clear_line_for(tmp_path, write, damage, message):
    root = write(tmp_path / "root")
    damage(root)
    with pytest.raises(DataError, match=message) as raised:
        load(root)
    assert "\n" not in str(raised.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_any_damage_to_a_zip_is_harmless_or_a_data_error(tmp_path, at, bit, cut):
    path = write_zips(tmp_path) / "images_background.zip"
    content = bytearray(path.read_bytes())
    at %= len(content)
    content[at] ^= 1 << bit
    path.write_bytes(content[:at] if cut else content)
    try:
        data = load(tmp_path)
    except DataError:
        return
    assert not cut
    np.testing.assert_array_equal(
        np.sort(data.images, axis=None), np.sort(load(write_folders(tmp_path)).images, axis=None)
    )


@pytest.mark.parametrize("setting", [{"resize": "bilinear"}, {"split": "santoro"}])
def test_unknown_settings_are_named(tmp_path, setting):
    ((key, value),) = setting.items()
    with pytest.raises(ValueError, match=f"load_omniglot: {key} is '{value}'. Use "):
        load(write_zips(tmp_path), **setting)


# Splits


def made_up_names():
    """1623 names, of which the validation alphabets have 172, as in Omniglot."""
    alphabets = {"Alphabet_of_the_Magi": 792, "Armenian": 41, "Bengali": 46, "Early_Aramaic": 22}
    background = alphabets | {"Hebrew": 22, "Mkhedruli_(Georgian)": 41}
    counts = {"images_background": background, "images_evaluation": {"Gurmukhi": 300, "ULOG": 359}}
    return [
        f"{part}/{alphabet}/character{n:03}"
        for part, alphabets in counts.items()
        for alphabet, num in alphabets.items()
        for n in range(num)
    ]


def test_vinyals_split():
    names = made_up_names()
    split = vinyals_split(names)
    assert {key: len(indices) for key, indices in split.items()} == {
        "train": 1028,
        "validation": 172,
        "test": 423,
    }
    assert sorted(np.concatenate(list(split.values()))) == list(range(1623))
    assert split["test"].tolist() == list(range(1200, 1623))
    assert {names[i].split("/")[1] for i in split["validation"]} == {
        "Armenian",
        "Bengali",
        "Early_Aramaic",
        "Hebrew",
        "Mkhedruli_(Georgian)",
    }


@pytest.mark.parametrize("names", [made_up_names()[1:], list(IN_ORDER), []])
def test_vinyals_split_wants_all_of_omniglot(names):
    with pytest.raises(DataError, match=rf"\(1028, 172, 423\).* but {len(names)} classes give \("):
        vinyals_split(names)


def test_the_default_split_of_a_small_tree_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"vinyals_split: .* 6 classes give \(0, 0, 6\)\. Use "):
        load_omniglot(write_zips(tmp_path))


@given(sizes=st.tuples(*[st.integers(0, 20)] * 3), spare=st.integers(0, 5), seed=st.integers(0, 9))
def test_random_split_has_the_sizes_and_no_overlap(sizes, spare, seed):
    names = [str(n) for n in range(sum(sizes) + spare)]
    split = random_split(names, seed=seed, sizes=sizes)
    assert list(split) == ["train", "validation", "test"]
    assert tuple(len(indices) for indices in split.values()) == sizes
    chosen = np.concatenate(list(split.values()))
    assert len(set(chosen)) == sum(sizes) and set(chosen) <= set(range(len(names)))
    assert all(a < b for indices in split.values() for a, b in pairwise(indices))


def test_random_split_depends_on_the_seed_alone():
    names = made_up_names()
    first, again, other = (random_split(names, seed=seed) for seed in (0, 0, 1))
    assert [len(indices) for indices in first.values()] == [1100, 100, 423]
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
        assert len(np.intersect1d(first[key], other[key])) < 0.8 * len(first[key])


@pytest.mark.parametrize("sizes", [(5, 1, 1), (-1, 3, 3)])
def test_random_split_of_too_few_classes(sizes):
    with pytest.raises(DataError, match=rf"ask for {sum(sizes)} classes but there are 6\."):
        random_split(IN_ORDER, sizes=sizes)


def test_split_parts_hold_their_own_images(tmp_path):
    whole = load(write_zips(tmp_path))
    parts = load_omniglot(tmp_path, split="random", split_seed=3, split_sizes=SIZES)
    assert list(parts) == ["train", "validation", "test"]
    assert [len(part.names) for part in parts.values()] == list(SIZES)
    assert sorted(name for part in parts.values() for name in part.names) == sorted(IN_ORDER)
    for part in parts.values():
        for name, images in zip(part.names, by_class(part), strict=True):
            np.testing.assert_array_equal(images, by_class(whole)[IN_ORDER.index(name)])
    assert all(part.images is parts["train"].images for part in parts.values())
    other = load_omniglot(tmp_path, split="random", split_seed=4, split_sizes=SIZES)
    assert other["train"].names != parts["train"].names


# The real data

DATA = os.environ.get("MAMLNP_DATA")
HERE = DATA and any(
    (Path(DATA) / inside).exists()
    for part in PARTS
    for inside in (part, f"{part}.zip", f"omniglot/{part}", f"omniglot/{part}.zip")
)
real = pytest.mark.skipif(not HERE, reason="MAMLNP_DATA does not point to Omniglot")


@real
def test_real_omniglot(monkeypatch):
    data = load_omniglot(DATA, resize="nearest")  # half the time of the other
    assert {key: by_class(part).shape for key, part in data.items()} == {
        "train": (1028, 20, 28, 28, 1),
        "validation": (172, 20, 28, 28, 1),
        "test": (423, 20, 28, 28, 1),
    }
    names = [name for part in data.values() for name in part.names]
    assert len(set(names)) == 1623
    assert data["train"].names[-1] == "images_evaluation/Gurmukhi/character41"
    assert data["test"].names[0] == "images_evaluation/Gurmukhi/character42"
    gurmukhi = [name for name in names if "/Gurmukhi/" in name]
    assert set(gurmukhi) & set(data["test"].names) == set(gurmukhi[-4:])
    assert set(np.unique(by_class(data["test"]))) == {0, 255}
    for part in data.values():
        ink = by_class(part).mean(axis=(1, 2, 3, 4)) / 255
        assert ink.min() > 0.005 and ink.max() < 0.3
        images = by_class(part).reshape(-1, 784)
        assert len({image.tobytes() for image in images}) > 0.99 * len(images)
    task = data["test"].sample(
        3, num_ways=20, num_shots=5, num_queries=15, rng=counted_rng(0, "test")
    )
    assert task.query.x.shape == (3, 300, 28, 28, 1)

    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded again"))
    drawn = load_omniglot(DATA, resize="nearest", split="random", split_seed=5)
    assert [len(part.names) for part in drawn.values()] == [1100, 100, 423]
    images = {
        name: image
        for part in data.values()
        for name, image in zip(part.names, by_class(part), strict=True)
    }
    for part in drawn.values():
        for name, image in zip(part.names, by_class(part), strict=True):
            np.testing.assert_array_equal(image, images[name])


@pytest.mark.parametrize("spelled", [lambda p: "./" + p, lambda p: p.replace("/", "\\")])
def test_a_zip_of_another_programs_names_is_the_same(tmp_path, spelled):
    expected = load(write_zips(tmp_path / "plain"))
    for part in PARTS:
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for path, content in TREE.items():
                if path.startswith(part):
                    member = zipfile.ZipInfo("x")
                    member.filename = spelled(path)
                    archive.writestr(member, content)
    found = load(tmp_path)
    assert found.names == expected.names
    np.testing.assert_array_equal(by_class(found), by_class(expected))
