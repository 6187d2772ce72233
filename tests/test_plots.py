import numpy as np
import pytest
from PIL import Image

from mamlnp import plots
from mamlnp.experiments.scores import Row
from mamlnp.runs import Run
from mamlnp.tasks import Batch, Task

CONFIG = {"num_ways": 5, "num_shots": 1, "baseline": None}


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is drawn."""
    drawn = []

    class Kept(plots.Figure):
        def __init__(self, *args, **how):
            super().__init__(*args, **how)
            drawn.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    return drawn


def a_run(path, columns, **config):
    run = Run(path, "omniglot", CONFIG | config, {})
    for n, values in enumerate(zip(*columns.values(), strict=True), start=1):
        run.log(100 * n, dict(zip(columns, values, strict=True)))
    return run


def columns(accuracy, cosine=None, ratio=None, loss=None):
    found = {
        "train_loss": loss or [1 / n for n in range(1, len(accuracy) + 1)],
        "validation_accuracy": accuracy,
        "validation_ci95": [0.01] * len(accuracy),
    }
    if cosine:
        found |= {"gradient_cosine": cosine, "gradient_ratio": ratio}
    return found | {"wall_seconds": [60.0 * n for n in range(1, len(accuracy) + 1)]}


def assert_whole(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
    assert not [file for file in path.parent.iterdir() if file.name.startswith(".")]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_classification_curve(tmp_path, figures):
    plots.classification_curve(a_run(tmp_path, columns([0.5, 0.9, 0.8])))
    assert_whole(tmp_path / "curve.png")
    top, bottom = figures[0].axes
    np.testing.assert_allclose(top.lines[0].get_xydata(), [[100, 1], [200, 1 / 2], [300, 1 / 3]])
    assert top.get_yscale() == "log"
    np.testing.assert_allclose(bottom.lines[0].get_xydata(), [[100, 50], [200, 90], [300, 80]])
    assert "best: 90.0 ± 1.0 % at meta-iteration 200" in [
        text.get_text() for text in bottom.get_legend().get_texts()
    ]
    assert "300 in 0:03:00" in bottom.get_xlabel()
    assert "5-way 1-shot" in figures[0].get_suptitle()


def test_classification_curve_of_a_baseline_says_so(tmp_path, figures):
    plots.classification_curve(a_run(tmp_path, columns([0.5]), baseline="pretrained"))
    assert "pretrained" in figures[0].get_suptitle()
    assert "query" not in figures[0].axes[0].get_ylabel()


def test_gradient_cosine(tmp_path, figures):
    plots.gradient_cosine(a_run(tmp_path, columns([0.5, 0.9], [0.8, -0.2], [0.5, 2.0])))
    assert_whole(tmp_path / "cosine.png")
    top, bottom = figures[0].axes
    np.testing.assert_allclose(top.lines[-1].get_xydata(), [[100, 0.8], [200, -0.2]])
    np.testing.assert_allclose(bottom.lines[-1].get_xydata(), [[100, 0.5], [200, 2]])
    assert [line.get_ydata()[0] for line in top.lines[:-1]] == [1, 0]
    assert [line.get_ydata()[0] for line in bottom.lines[:-1]] == [1]


@pytest.mark.parametrize("cosine", [None, [np.nan, np.nan]])
def test_nothing_is_drawn_of_a_cosine_that_was_not_measured(tmp_path, cosine):
    plots.gradient_cosine(a_run(tmp_path, columns([0.5, 0.9], cosine, cosine)))
    assert not (tmp_path / "cosine.png").exists()


@pytest.mark.parametrize("header", [None, "iteration,train_loss\n"])
def test_nothing_is_drawn_without_rows(tmp_path, header):
    if header:
        (tmp_path / "metrics.csv").write_text(header)
    run = Run(tmp_path, "omniglot", CONFIG, {})
    plots.classification_curve(run)
    plots.gradient_cosine(run)
    plots.learning_curve(run, ["train_loss"], "loss")
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "table",
    [
        columns([0.51], [0.59], [0.69]),
        columns([1.0, 1.0], [np.nan, 0.0], [np.nan, 0.0], loss=[0.0, 0.0]),
        columns([0.2, 0.2, 0.2], [-1.0, np.nan, 1.0], [9e20, np.inf, 1e-9], loss=[9e9, 1e-9, 1.0]),
    ],
)
def test_extreme_curves(tmp_path, table):
    run = a_run(tmp_path, table)
    plots.classification_curve(run)
    plots.gradient_cosine(run)
    assert_whole(tmp_path / "curve.png")
    assert_whole(tmp_path / "cosine.png")


def rows(method, scores, ci95=0.01):
    return [Row("omniglot 5-way", method, n, x, ci95, 600) for n, x in enumerate(scores)]


def test_accuracy_against_steps(tmp_path, figures):
    table = rows("MAML, 1 query a class", [0.2, 0.9, 0.987])
    table += rows("MAML, 15 queries a class", [0.2, 0.8, 0.981])
    table += rows("nearest neighbour", [0.47, 0.47, 0.47])
    path = tmp_path / "accuracy.png"
    plots.accuracy_against_steps(
        path, table, chance=0.2, reported=1, note="split $a_; batch norm support"
    )
    assert_whole(path)
    (axes,) = figures[0].axes
    one, fifteen, neighbour, chance, reported = axes.lines
    np.testing.assert_allclose(one.get_xydata(), [[0, 20], [1, 90], [2, 98.7]])
    np.testing.assert_allclose(neighbour.get_ydata(), 47)
    np.testing.assert_allclose(chance.get_ydata(), 20)
    np.testing.assert_allclose(reported.get_xdata(), 1)
    assert one.get_color() == fifteen.get_color() != neighbour.get_color()
    assert one.get_linestyle() != fifteen.get_linestyle()
    assert texts(axes) == [
        "chance 20.0",
        "nearest neighbour  47.0 ± 1.0",
        "MAML, 15 queries a class  80.0 ± 1.0",
        "MAML, 1 query a class  90.0 ± 1.0",
    ]
    assert axes.get_title(loc="left") == "split $a_; batch norm support"


def test_returns_against_steps_shows_every_method(tmp_path, figures):
    names = [f"MAML, part {n}" for n in range(1, len(plots.COLOURS) + 3)]
    table = [row for name in names for row in rows(name, [0.0, 300.0])]
    table += rows("paper MAML, part 1", [0.0, 434.0])
    path = tmp_path / "returns.png"
    plots.returns_against_steps(path, table)
    assert_whole(path)
    (axes,) = figures[0].axes
    assert [line.get_label() for line in axes.lines] == [names[0], "paper MAML, part 1", *names[1:]]
    ours = [line for line in axes.lines if not line.get_label().startswith("paper")]
    assert len({(line.get_color(), line.get_linestyle()) for line in ours}) == len(names)
    assert axes.lines[0].get_color() == axes.lines[1].get_color()


@pytest.mark.parametrize("score", [0.2, 0.9999, 1.0])
def test_labels_of_equal_lines_stay_apart(tmp_path, figures, score):
    table = [row for n in range(8) for row in rows(f"method {n}", [score] * 11, ci95=0.0)]
    plots.accuracy_against_steps(tmp_path / "accuracy.png", table, chance=0.2, reported=10, note="")
    (axes,) = figures[0].axes
    low, high = axes.get_ylim()
    places = [text.xyann[1] for text in axes.texts]
    assert (np.diff(places) >= 0.049 * (high - low)).all()
    assert places[-1] <= high <= 101


def an_episode(ways, shots, queries, channels=1, side=28):
    rng = np.random.default_rng(0)

    def batch(each):
        x = rng.random((ways * each, side, side, channels), np.float32)
        return Batch(x, np.repeat(np.arange(ways), each))

    task = Task(batch(shots), batch(queries))
    return task, np.eye(ways, dtype=np.float32)[task.query.y]


def test_episode(tmp_path, figures):
    task, probabilities = an_episode(3, 2, 2)
    probabilities[0] = 0.1, 0.7, 0.2
    names = ["a/Greek/alpha", "a/Greek/beta", "gamma $5_"]
    plots.episode(
        tmp_path / "episode.png", task, probabilities, names, title="An episode", note="by hand"
    )
    assert_whole(tmp_path / "episode.png")
    (axes,) = figures[0].axes
    found = texts(axes)
    assert "✗ Greek/beta\n70 %\ntrue: Greek/alpha" in found
    assert found.count("✓ Greek/beta\n100 %") == 2
    assert any("5 of 6" in text for text in found)
    np.testing.assert_array_equal(axes.images[0].get_array(), task.support.x[0, ..., 0])
    assert len(axes.images) == 12
    wrong, right = (frame.get_edgecolor() for frame in axes.patches[:2])
    assert wrong != right


def test_a_class_whose_name_is_no_text_is_drawn(tmp_path, figures):
    task, probabilities = an_episode(3, 1, 1)
    path = tmp_path / "episode.png"
    names = ["a", "b", "caf\udce9"]
    plots.episode(path, task, probabilities, names, title="An episode", note="by hand")
    assert_whole(path)
    assert any("caf?" in text for text in texts(figures[0].axes[0]))


def test_episode_finds_the_class_of_shuffled_images(tmp_path, figures):
    task, probabilities = an_episode(3, 1, 1)
    order = np.array([2, 0, 1])
    query = Batch(task.query.x[order], task.query.y[order])
    path = tmp_path / "episode.png"
    plots.episode(
        path, Task(task.support, query), probabilities[order], ["a", "b", "c"], title="", note=""
    )
    (axes,) = figures[0].axes
    np.testing.assert_array_equal(axes.images[1].get_array(), task.query.x[0, ..., 0])
    assert not any("true:" in text for text in texts(axes))


@pytest.mark.parametrize("shape", [(20, 5, 15, 1, 28), (2, 7, 1, 3, 84), (1, 1, 1, 3, 1)])
def test_extreme_episodes(tmp_path, figures, shape):
    task, probabilities = an_episode(*shape)
    long = "images_background/" + 9 * "a very long name_" + "/" + 9 * "of_a_character"
    names = [long, "猫/犬", *map(str, range(18))][: shape[0]]
    plots.episode(
        tmp_path / "episode.png", task, probabilities, names, title=200 * "long ", note=""
    )
    assert_whole(tmp_path / "episode.png")
    (axes,) = figures[0].axes
    shown = [min(n, plots.SHOWN) for n in shape[1:3]]
    assert len(axes.images) == shape[0] * sum(shown)
    capped = [text for text in texts(axes) if "shown" in text]
    assert len(capped) == shape[0] * any(n > plots.SHOWN for n in shape[1:3])
    assert max(len(plots._label(name)) for name in names) <= 22
