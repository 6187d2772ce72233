"""Made-up characters, and the job that learns them."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
from PIL import Image

from mamlnp import cli
from mamlnp.experiments import classification, loop, omniglot, strokes
from mamlnp.experiments.classification import nearest_neighbour
from mamlnp.runs import create_run, open_run
from mamlnp.tasks import counted_rng
from mamlnp.tasks.strokes import ALPHABETS, CHARACTERS, HANDS, draw_alphabet, load_strokes

TINY = ["--alphabets", "2", "--filters", "4", "--meta-batch-size", "2", "--meta-iterations", "4"]
TINY += ["--validate-every", "2", "--validation-tasks", "10"]


@pytest.fixture(scope="module")
def data() -> strokes.Data:
    return load_strokes(alphabets=6, rotations=False)


def run(*arguments: str) -> int:
    """The exit status."""
    try:
        cli.main(arguments)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def of_class(images: Any, c: int) -> np.ndarray:
    found: np.ndarray = images.images[images.first[c] : images.first[c] + images.counts[c], ..., 0]
    return found


# ---- the characters


def test_an_alphabet_is_the_same_each_time_and_another_for_another_seed() -> None:
    first = draw_alphabet(0, 3)
    assert first.shape == (CHARACTERS, HANDS, 28, 28) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, draw_alphabet(0, 3))
    assert (first != draw_alphabet(0, 4)).any(axis=(1, 2, 3)).all()
    assert (first != draw_alphabet(1, 3)).any(axis=(1, 2, 3)).all()


def test_held_out_alphabets_do_not_depend_on_how_many_are_trained_on(data: strokes.Data) -> None:
    fewer = load_strokes(alphabets=1, rotations=False)
    for split in ("validation", "test"):
        assert fewer[split].names == data[split].names
        for c in (0, len(data[split].names) - 1):
            np.testing.assert_array_equal(of_class(fewer[split], c), of_class(data[split], c))


def test_no_alphabet_is_in_two_splits_and_no_image_of_two_classes(data: strokes.Data) -> None:
    alphabets = [{name.split("/")[0] for name in images.names} for images in data.values()]
    assert [len(found) for found in alphabets] == [6, ALPHABETS["validation"], ALPHABETS["test"]]
    assert len(set.union(*alphabets)) == sum(map(len, alphabets))
    rows = [
        np.arange(f, f + c) for x in data.values() for f, c in zip(x.first, x.counts, strict=True)
    ]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(data["train"].images)))


def test_there_are_a_thousand_characters_to_train_on_by_default() -> None:
    assert strokes.Config().alphabets * CHARACTERS > 1000


def test_hands_differ_and_so_does_what_one_hand_draws(data: strokes.Data) -> None:
    images = data["train"]
    for c in range(len(images.names)):
        drawn = of_class(images, c)
        assert len({drawing.tobytes() for drawing in drawn}) == HANDS


def test_images_are_white_ink_on_black_in_the_middle_and_as_much_as_omniglots(
    data: strokes.Data,
) -> None:
    images = data["test"].images[..., 0].astype(np.float64) / 255
    assert (images[:, [0, -1]].sum() + images[:, :, [0, -1]].sum()) / images.sum() < 0.01
    assert images.max(axis=(1, 2)).min() > 0.5
    ink = images.sum(axis=(1, 2))
    assert ink.min() > 8
    assert 50 < ink.mean() < 75  # of Omniglot's training characters 64
    across, down = np.mgrid[:28, :28][::-1]
    for along in (across, down):
        middle = (images * along).sum(axis=(1, 2)) / ink
        assert middle.mean() == pytest.approx(13.5, abs=0.3) and 1 < middle.std() < 2.5


def test_the_nearest_neighbour_on_pixels_is_misled_but_better_than_chance(
    data: strokes.Data,
) -> None:
    task = data["test"].sample(
        600, num_ways=5, num_shots=1, num_queries=1, rng=counted_rng(0, "test")
    )
    for metric in ("euclidean", "cosine"):
        assert 0.35 < nearest_neighbour(metric, task).mean() < 0.7


def test_a_class_is_turned_as_omniglots_are(data: strokes.Data) -> None:
    turned = load_strokes(alphabets=6)
    assert turned["train"].rotations and len(turned["train"].images) == 4 * len(
        data["train"].images
    )
    np.testing.assert_array_equal(
        turned["train"].images[: len(data["train"].images)], data["train"].images
    )


# ---- the job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "strokes"
    assert run("train", "strokes", *TINY, "--out", str(path)) == 0
    return path


def test_training_ends_with_a_result_its_pictures_and_what_to_type_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "strokes", *TINY) == 0
    out = capsys.readouterr().out
    *lines, last = (line.split("  ", maxsplit=1) for line in out.splitlines())
    said = {name: rest.strip() for name, rest in lines}
    assert said["validation"] == "on 10 tasks, every 2 meta-iterations"
    assert said["images"].endswith("from made-up alphabets of seed 0")
    assert said["test tasks"] == "10, 5-way 1-shot, of 420 held-out classes, with 1 query a class"
    assert re.fullmatch(
        r"MAML, 3 steps: \d+\.\d \+- \d+\.\d %; "
        r"nearest neighbour on pixels, (euclidean|cosine): \d+\.\d \+- \d+\.\d %",
        said["test accuracy"],
    )
    assert re.match(r".*meta-iteration [24], best of 4 on 10 validation tasks", said["kept"])
    assert "stopped" not in said["kept"]
    pictures = [Path(name) for name in said["pictures"].split(", ")]
    assert [path.name for path in pictures] == ["curve.png", "cosine.png", "episode.png"]
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 200
    assert last == ["done. Score it with: mamlnp evaluate runs/strokes"]
    assert run("evaluate", "runs/strokes", "--tasks", "10", "--baselines") == 0
    table = capsys.readouterr().out
    assert "strokes 5-way 1-shot" in table and "The paper: not given" in table
    maml, nearest = re.findall(r": (\d+\.\d \+- \d+\.\d) %", said["test accuracy"])
    one_query = table.split("1 query a class\n")[1].splitlines()
    (row,) = (line for line in one_query[1:5] if line.split()[0] == "3")
    assert maml in row and nearest in row  # the same tasks


def test_a_stopped_run_says_of_how_many_iterations_it_is(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["meta_iterations"] = 60_000
    path.write_text(json.dumps(record))
    about = loop.best_state(open_run(tmp_path / "run")).about
    assert "best of 4 on 10 validation tasks" in about
    assert "stopped after 4 of 60,000 meta-iterations" in about


def test_a_run_is_scored_on_the_characters_of_omniglot(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def load(folder: Path | None, **_: Any) -> strokes.Data:
        asked.append(folder)
        return load_strokes(seed=1, alphabets=1)

    monkeypatch.setattr(omniglot, "load_omniglot", load)
    options = ["--on", "omniglot", "--data", "there", "--tasks", "10"]
    assert run("evaluate", str(trained), *options) == 0
    assert asked == [Path("there")]
    out = capsys.readouterr().out
    assert "omniglot 5-way 1-shot" in out and "trained on strokes; split vinyals" in out
    assert "98.7" not in out  # the paper's network was trained there
    record = json.loads((trained / "evaluation-omniglot.json").read_text())
    assert record["evaluation"] == {"tasks": 10, "on": "omniglot"}
    assert record["rows"][0]["setting"].startswith("omniglot 5-way 1-shot")
    for name in ("accuracy-omniglot.png", "episode-omniglot.png"):
        assert (trained / name).exists()
    assert not (trained / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--on", "sine"], "--on: sine is no other experiment of images. Pass one of: omniglot,"),
        (["--on", "strokes"], "--on: strokes is no other experiment of images"),
        (["--on", "miniimagenet"], "images of miniimagenet are 84x84x3, "),
        (["--data", "there"], "--data: strokes has none. Leave it out."),
    ],
)
def test_what_a_run_cannot_be_scored_on(
    options: list[str], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", str(trained), *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_omniglot_without_data_and_network_names_strokes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def retrieve(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAMLNP_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert run("train", "omniglot") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no network" in line and "mamlnp train strokes" in line


def test_conv4_learns_strokes_and_beats_the_nearest_neighbour(tmp_path: Path) -> None:
    config = dataclasses.replace(
        strokes.Config(),
        filters=16,
        meta_iterations=120,
        meta_batch_size=8,
        validate_every=60,
        validation_tasks=100,
    )
    data = strokes.load(dataclasses.replace(config, alphabets=10))
    made = create_run("strokes", config, tmp_path / "run")
    classification.train(config, made, data)
    table, _ = classification.evaluate(config, made, data, tasks=100, baselines=True)
    at = {(row.method, row.steps): row.mean for row in table if "1 query" in row.setting}
    assert at["MAML", 3] > at["nearest neighbour", 3] and at["MAML", 3] > at["random init", 3]
