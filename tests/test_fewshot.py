"""The sampler of few-shot tasks, on images that tell their class, number and rotation."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mamlnp.errors import DataError, ShapeError
from mamlnp.tasks import counted_rng
from mamlnp.tasks.fewshot import ClassImages, with_turns
from mamlnp.tasks.images import ImageFile


def marked(counts, rotations=True, path=None):
    """Images of 3x3 pixels that tell class, number and rotation, and the table that reads them.

    The last class comes first, and between classes lies an image of no class.
    """
    ends = np.cumsum(np.array(counts[::-1]) + 1)[::-1]
    first = ends - counts
    images = np.zeros((ends.max() + 1, 3, 3, 1), np.uint8)
    table = {}
    for c, count in enumerate(counts):
        for i in range(count):
            images[first[c] + i, 0, :, 0] = 255, c, i
            for turns in range(4):
                turned = np.rot90(images[first[c] + i, :, :, 0], turns)
                table[turned.tobytes()] = c, i, turns
    held = images
    if path:
        np.save(path, images)
        held = ImageFile(path, images.shape)
    names = tuple(f"class {c}" for c in range(len(counts)))
    if rotations:
        held = with_turns(images)
    return ClassImages(held, names, first, np.array(counts), rotations), table


def read(batch, table):
    """(class, number, turns) of every image: (T, N, 3)."""
    pixels = np.rint(batch.x * 255).astype(np.uint8)
    return np.array([[table[image.tobytes()] for image in task] for task in pixels])


@st.composite
def sizes(draw):
    counts = draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    num_shots = draw(st.integers(1, min(counts)))
    return {
        "counts": counts,
        "num_tasks": draw(st.integers(1, 4)),
        "num_ways": draw(st.integers(1, len(counts))),
        "num_shots": num_shots,
        "num_queries": draw(st.integers(0, min(counts) - num_shots)),
        "rotations": draw(st.booleans()),
        "seed": draw(st.integers(0, 999)),
    }


@settings(deadline=None)
@given(sizes=sizes())
def test_every_task_is_as_it_should_be(sizes):
    data, table = marked(sizes["counts"], sizes["rotations"])
    before = data.images.copy()
    num_tasks, num_ways = sizes["num_tasks"], sizes["num_ways"]
    asked = {key: sizes[key] for key in ("num_ways", "num_shots", "num_queries")}
    task = data.sample(num_tasks, **asked, rng=np.random.default_rng(sizes["seed"]))
    support, query = (
        read(batch, table).reshape(num_tasks, num_ways, num, 3)
        for batch, num in ((task.support, sizes["num_shots"]), (task.query, sizes["num_queries"]))
    )
    images = np.concatenate([support, query], axis=2)
    for t in range(num_tasks):
        assert len(set(images[t, :, 0, 0])) == num_ways
        for way in images[t]:
            assert len(set(way[:, 0])) == 1, "one class a label, in support and query"
            assert len(set(way[:, 1])) == len(way), "no image twice"
            assert len(set(way[:, 2])) == 1, "one rotation a class, in support and query"
    if not sizes["rotations"]:
        assert not images[..., 2].any()
    for batch, num in ((task.support, sizes["num_shots"]), (task.query, sizes["num_queries"])):
        assert batch.x.dtype == np.float32 and batch.y.dtype == np.int64
        assert batch.x.shape == (num_tasks, num_ways * num, 3, 3, 1)
        expected = [[label for label in range(num_ways) for _ in range(num)]] * num_tasks
        assert batch.y.tolist() == expected
    np.testing.assert_array_equal(data.images, before)


def test_every_choice_is_even_and_independent():
    data, table = marked([5] * 6)
    rng = np.random.default_rng(0)
    task = data.sample(3000, num_ways=3, num_shots=1, num_queries=2, rng=rng)
    support, query = read(task.support, table), read(task.query, table)
    for column, num in ((0, 6), (1, 5), (2, 4)):
        for images in (support, query):
            for position in range(images.shape[1]):
                counts = np.bincount(images[:, position, column], minlength=num)
                assert counts.min() > 0.85 * 3000 / num
    for a, b in ((0, 1), (1, 2), (0, 2)):
        agree = (support[:, a] == support[:, b]).mean(axis=0)
        assert agree[0] == 0
        assert agree[1] == pytest.approx(1 / 5, abs=0.04)
        assert agree[2] == pytest.approx(1 / 4, abs=0.04)
    agree = (support[1:] == support[:-1]).mean(axis=(0, 1))
    assert agree == pytest.approx([1 / 6, 1 / 5, 1 / 4], abs=0.03)


def test_every_image_of_a_class_of_any_size_is_as_likely():
    counts = [3, 12, 5, 4]
    data, table = marked(counts)
    rng = np.random.default_rng(0)
    task = data.sample(4000, num_ways=2, num_shots=1, num_queries=2, rng=rng)
    for batch, per_class in ((task.support, 1), (task.query, 2)):
        drawn = read(batch, table).reshape(-1, 3)
        for c, count in enumerate(counts):
            times = np.bincount(drawn[drawn[:, 0] == c, 1], minlength=count)
            assert len(times) == count
            expected = per_class * 2000 / count  # each class is in half the tasks
            # The statistic has mean count - 1 at most and variance twice that.
            assert ((times - expected) ** 2 / expected).sum() < 4 * count + 20


def test_same_rng_same_task():
    data, _ = marked([10] * 20)

    def draw(n):
        rng = counted_rng(0, "train", n)
        return data.sample(8, num_ways=5, num_shots=1, num_queries=5, rng=rng)

    for a, b, c in zip(
        *((*task.support, *task.query) for task in map(draw, (7, 7, 8))), strict=True
    ):
        np.testing.assert_array_equal(a, b)
        assert np.array_equal(a, c) == (a.dtype == np.int64)


@pytest.mark.parametrize(
    ("rotations", "expected"),
    [
        (True, "e57b9f9559bd9d8a985dc8001e88bbb22eb6b8eb1ed3622edfba1bce493ebda4"),
        (False, "19d989c92cca21d45c37fbb690bb21b5a505aa0768f645127fd096a23d77c6ba"),
    ],
)
def test_equal_classes_are_drawn_as_ever(rotations, expected):
    """Runs resume bit for bit with later versions: a change here changes every figure's tasks."""
    images = np.random.default_rng(5).integers(0, 256, (7, 6, 5, 5, 3), np.uint8)
    data = ClassImages.stacked(images, tuple("abcdefg"), rotations)
    digest = hashlib.sha256()
    settings = [(np.float32, 3, 4, 1, 2), (np.float64, 2, 7, 3, 0), (np.float32, 5, 1, 2, 4)]
    for seed, (dtype, num_tasks, num_ways, num_shots, num_queries) in enumerate(settings):
        task = data.sample(
            num_tasks,
            num_ways=num_ways,
            num_shots=num_shots,
            num_queries=num_queries,
            rng=np.random.default_rng(seed),
            dtype=dtype,
        )
        for array in (*task.support, *task.query):
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    assert digest.hexdigest() == expected


def test_images_on_disk_are_drawn_as_those_in_memory(tmp_path):
    counts = [4, 2, 7, 3, 3]
    settings = {"num_ways": 4, "num_shots": 1, "num_queries": 1}
    tasks = [
        data.sample(9, **settings, rng=np.random.default_rng(0))
        for data, _ in (
            marked(counts, rotations=False),
            marked(counts, rotations=False, path=tmp_path / "images.npy"),
        )
    ]
    for a, b in zip(*((*task.support, *task.query) for task in tasks), strict=True):
        np.testing.assert_array_equal(a, b)


def test_classes_then_images_are_a_sample():
    data, table = marked([4, 5, 6, 7])
    settings = {"num_shots": 2, "num_queries": 1}
    whole = data.sample(6, num_ways=3, **settings, rng=np.random.default_rng(0))
    rng = np.random.default_rng(0)
    classes = data.sample_classes(6, num_ways=3, rng=rng)
    parts = data.sample_images(classes, **settings, rng=rng)
    np.testing.assert_array_equal(whole.support.x, parts.support.x)
    np.testing.assert_array_equal(whole.query.x, parts.query.x)
    np.testing.assert_array_equal(read(parts.query, table)[..., 0], classes)


@pytest.mark.parametrize("part", [slice(2), slice(2, 5), slice(5, 6)])
def test_a_part_of_the_tasks_is_that_part_of_all(part):
    data, _ = marked([4, 5, 6, 7])

    def drawn(**how):
        rng = np.random.default_rng(0)
        task = data.sample(6, num_ways=3, num_shots=2, num_queries=1, rng=rng, **how)
        return [*task.support, *task.query, *data.sample_labelled(6, 4, rng=rng, **how)]

    for here, whole in zip(drawn(part=part), drawn(), strict=True):
        np.testing.assert_array_equal(here, whole[part])


@pytest.mark.parametrize("rotations", [False, True])
def test_labelled_images_of_all_classes(rotations):
    counts = [2, 5, 3]
    data, table = marked(counts, rotations)
    assert data.num_labels == (12 if rotations else 3)
    batch = data.sample_labelled(3, 1500, rng=np.random.default_rng(0))
    drawn = read(batch, table)
    np.testing.assert_array_equal(batch.y, drawn[..., 0] + 3 * drawn[..., 2])
    assert np.bincount(batch.y.ravel()).min() > 0.8 * 4500 / data.num_labels
    for c, count in enumerate(counts):
        times = np.bincount(drawn[drawn[..., 0] == c][:, 1], minlength=count)
        assert len(times) == count and times.min() > 0.8 * 1500 / count


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixels_are_scaled_to_one(dtype):
    data, _ = marked([4, 4, 4])
    rng = np.random.default_rng(0)
    task = data.sample(2, num_ways=3, num_shots=2, num_queries=2, rng=rng, dtype=dtype)
    values = np.concatenate([task.support.x, task.query.x], axis=1)
    assert values.dtype == dtype and values.min() == 0 and values.max() == 1
    assert dtype(3) / dtype(255) in values
    assert all(batch.x.flags.c_contiguous and batch.y.flags.writeable for batch in task)


def test_rotations_can_be_switched_off():
    upright, table = marked([5] * 6, rotations=False)
    task = upright.sample(50, num_ways=5, num_shots=1, num_queries=1, rng=np.random.default_rng(0))
    assert not read(task.query, table)[..., 2].any()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((7, 1, 1), r"num_ways is 7 but there are 6 classes\. Ask for 1 to 6\."),
        ((0, 1, 1), r"num_ways is 0 but there are 6 classes"),
        (
            (1, 2, 3),
            r"num_shots 2 \+ num_queries 3 images of a class, but class 3 has 4\. Ask for .* 4 in",
        ),
        ((5, 0, 1), r"num_shots 0 \+ num_queries 1 .* at least 1 shot"),
        ((5, 2, -1), r"num_shots 2 \+ num_queries -1 "),
    ],
)
def test_more_than_there_is(asked, message):
    data, _ = marked([5, 9, 5, 4, 5, 5])
    num_ways, num_shots, num_queries = asked
    with pytest.raises(DataError, match=message):
        data.sample(
            1,
            num_ways=num_ways,
            num_shots=num_shots,
            num_queries=num_queries,
            rng=np.random.default_rng(0),
        )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 4, 4, 1), np.float32), r"float32\[24, 4, 4, 1\]"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"uint8\[2, 3, 4, 4\]"),
        (np.zeros((3, 3, 4, 4, 1), np.uint8), r"there are 2 names, but first is \[3\]"),
        (np.zeros((2, 3, 4, 5, 1), np.uint8), r"4 high and 5 wide"),
    ],
)
def test_stacked_images_that_do_not_fit(images, message):
    with pytest.raises(ShapeError, match=message):
        ClassImages.stacked(images, ("a", "b"), rotations=True)


@pytest.mark.parametrize(
    ("first", "counts", "message"),
    [
        ([0, 3], [3, 4], r"first 0 and first \+ counts 7 at most, but there are 6 images"),
        ([-1, 3], [3, 3], r"first -1 and"),
        ([0, 3], [3, -1], "first 0 and"),
        ([0], [3], r"2 names, but first is \[1\] and counts \[1\]"),
        ([0, 3], [3], r"first is \[2\] and counts \[1\]"),
    ],
)
def test_rows_that_are_not_there(first, counts, message):
    images = np.zeros((6, 4, 4, 1), np.uint8)
    with pytest.raises(ShapeError, match=message):
        ClassImages(images, ("a", "b"), np.array(first), np.array(counts))
