"""Training, resuming, evaluating: the experiments on small budgets and made-up images."""

import csv
import dataclasses
import functools
import itertools
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
from PIL import Image

from mamlnp import array, backend, maml, parallel, tree
from mamlnp.errors import DataError
from mamlnp.experiments import classification, loop, miniimagenet, omniglot, sine
from mamlnp.experiments.experiment import Supervised
from mamlnp.experiments.scores import Row, adaptation_scores, as_records, as_table, rows
from mamlnp.runs import CHECKPOINT, create_run
from mamlnp.tasks import Batch, Task, counted_rng
from mamlnp.tasks.fewshot import ClassImages

SINE = sine.Config(
    meta_iterations=40, validate_every=10, baseline_iterations=15, validation_tasks=20
)
OMNIGLOT = omniglot.Config(
    filters=4, meta_iterations=6, meta_batch_size=2, validate_every=3, validation_tasks=4
)


def made_up_characters() -> omniglot.Data:
    rng = np.random.default_rng(0)
    prototypes = rng.random((24, 1, 28, 28, 1)) < 0.3
    flipped = rng.random((24, 20, 28, 28, 1)) < 0.05
    images = np.where(prototypes ^ flipped, 255, 0).astype(np.uint8)
    return {
        split: ClassImages.stacked(images[part], tuple(map(str, range(8))), rotations=True)
        for split, part in (
            ("train", slice(8)),
            ("validation", slice(8, 16)),
            ("test", slice(16, 24)),
        )
    }


CASES: dict[str, tuple[Any, Any, Any]] = {
    "sine": (sine.EXPERIMENT, SINE, sine.load(SINE)),
    "omniglot": (omniglot.EXPERIMENT, OMNIGLOT, made_up_characters()),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Any, Any, Any]:
    return request.param, *CASES[request.param]


def trained(case: tuple[str, Any, Any, Any], path: Path) -> Any:
    name, experiment, config, data = case
    run = create_run(name, config, path)
    experiment.train(config, run, data)
    return run


def without_clock(run: Any) -> list[dict[str, str]]:
    with (run.path / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k != "wall_seconds"} for row in csv.DictReader(file)
        ]


def assert_same_arrays(a: Any, b: Any) -> None:
    assert [path for path, _ in tree.items(a)] == [path for path, _ in tree.items(b)]
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C in the meta-step of that number, counted from 1, of the next training."""
    make, calls = parallel.meta_step, itertools.count(1)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        meta_step = make(*args, **kwargs)

        def step(*state_and_task: Any) -> Any:
            if next(calls) == at:
                signal.raise_signal(signal.SIGINT)
            return meta_step(*state_and_task)

        return step

    monkeypatch.setattr(parallel, "meta_step", interrupted)


def test_eager_training_is_the_same_to_rounding(
    case: tuple[str, Any, Any, Any], tmp_path: Path
) -> None:
    name, experiment, config, data = case
    compiled = trained(case, tmp_path / "compiled")
    config = dataclasses.replace(config, eager=True)
    eager = trained((name, experiment, config, data), tmp_path / "eager")
    for a, b in zip(without_clock(compiled), without_clock(eager), strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-4)


def test_the_number_of_threads_does_not_change_a_bit(tmp_path: Path) -> None:
    config = dataclasses.replace(OMNIGLOT, meta_batch_size=5, chunks=3)
    data = made_up_characters()
    runs = [
        trained(
            ("omniglot", omniglot.EXPERIMENT, dataclasses.replace(config, threads=threads), data),
            tmp_path / str(threads),
        )
        for threads in (1, 2, 3)
    ]
    for run in runs[1:]:
        assert_same_arrays(runs[0].load().arrays, run.load().arrays)


def test_an_interrupted_run_resumes_bit_for_bit(
    case: tuple[str, Any, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, experiment, config, data = case
    unbroken = trained(case, tmp_path / "unbroken")
    interrupt(monkeypatch, at=4)
    run = create_run(name, config, tmp_path / "broken")
    with pytest.raises(loop.Interrupted, match=r"stopped after 4 of .*--resume"):
        experiment.train(config, run, data)
    assert run.load().iteration == 4
    experiment.train(config, run, data, resume=True)

    whole, resumed = unbroken.load(), run.load()
    assert_same_arrays(whole.arrays, resumed.arrays)
    assert whole.meta["best"] == resumed.meta["best"]
    assert without_clock(unbroken) == without_clock(run)


def test_a_run_that_was_stopped_early_can_be_evaluated(
    case: tuple[str, Any, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, experiment, config, data = case
    run = create_run(name, config, tmp_path / "run")
    interrupt(monkeypatch, at=1)
    with pytest.raises(loop.Interrupted):
        experiment.train(config, run, data)
    table, _ = experiment.evaluate(config, run, data, tasks=4)
    assert table


def test_training_lowers_the_loss_and_leaves_pictures(tmp_path: Path) -> None:
    config = dataclasses.replace(SINE, meta_iterations=300, validate_every=100)
    run = create_run("sine", config, tmp_path / "run")
    sine.train(config, run, sine.load(config))
    losses = [float(row["train_loss"]) for row in without_clock(run)]
    assert losses[-1] < 0.9 * losses[0]
    table, text = sine.evaluate(config, run, sine.load(config), tasks=30)
    for name in ("curve.png", "error.png", "fits.png"):
        with Image.open(run.path / name) as picture:
            assert min(picture.size) > 200
    assert "paper MAML" in text and "diverged" in text
    methods = {row.method for row in table if row.setting == "sine 10-shot"}
    assert methods == {"MAML", "pretrained", "random init", "oracle"}
    maml_rows = [row for row in table if row.method == "MAML" and row.setting == "sine 5-shot"]
    assert [row.steps for row in maml_rows] == list(range(11))
    assert {row.tasks for row in maml_rows} == {30}


def test_the_sine_takes_one_and_two_inner_steps_in_turn_and_the_papers_preset_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    make = sine.algorithm

    def noting(config: sine.Config, inner_steps: int) -> Any:
        algorithm = make(config, inner_steps)

        def noted(*meta_and_task: Any) -> Any:
            taken.append(inner_steps)
            return algorithm.gradient(*meta_and_task)

        return algorithm._replace(gradient=noted)

    monkeypatch.setattr(sine, "algorithm", noting)
    for preset, expected in (("today", [1, 2, 1, 2]), ("paper", [1, 1, 1, 1])):
        config = dataclasses.replace(
            sine.PRESETS[preset],
            meta_iterations=4,
            validate_every=4,
            validation_tasks=2,
            baseline_iterations=1,
            eager=True,
        )
        taken.clear()
        sine.train(config, create_run("sine", config, tmp_path / preset), sine.load(config))
        assert taken == expected


def test_what_diverged_tasks_mean_is_said_and_the_median_is_printed() -> None:
    assert "none" in sine._divergence(0)
    assert "overshoots" in sine._divergence(2) and "median" in sine._divergence(2)
    with np.errstate(over="ignore"):
        table = rows("sine 5-shot", "MAML", np.array([[1.0, 2.0, 3.0], [1.0, 4.0, np.nan]]))
    assert [row.median for row in table] == [2.0, 4.0]
    assert [row.diverged for row in table] == [0, 1]
    assert "2.000 +- 0.924 (2.000)" in as_table(table, ["MAML"], medians=True)


def test_the_best_parameters_are_kept_not_the_last(tmp_path: Path) -> None:
    config = dataclasses.replace(SINE, meta_iterations=40)
    run = create_run("sine", config, tmp_path / "run")
    scores = iter([3.0, 1.0, 2.0, 4.0])
    states = []

    def step(state: Any, n: int) -> tuple[Any, dict[str, float]]:
        return {"params": np.full(2, float(n))}, {"train_loss": 1.0}

    def draw(n: int) -> int:
        return n

    def validate(state: Any, means: dict[str, float]) -> tuple[float, dict[str, float]]:
        assert means == {"train_loss": 1.0}
        states.append(state)
        return next(scores), {}

    def init() -> Any:
        return {"params": np.zeros(2)}

    loop.train(run, config, init=init, draw=draw, step=step, validate=validate)
    best, about = loop.best_state(run)
    assert "meta-iteration 20, best of 40" in about
    np.testing.assert_array_equal(best["params"].numpy(), states[1]["params"])


def test_a_loss_that_is_no_number_stops_the_run_and_its_origin_is_named(tmp_path: Path) -> None:
    config = dataclasses.replace(SINE, inner_lr=1e30)
    run = create_run("sine", config, tmp_path / "run")
    said = (
        r"train_loss is not finite in task \d+ in meta-iteration 1\. The first op that made such a "
        r"number, in meta-iteration 1, is \w+: .* are finite, but the result is (nan|-?inf) at \["
    )
    with np.errstate(all="ignore"), pytest.raises(DataError, match=said):
        sine.train(config, run, sine.load(config))
    config = dataclasses.replace(config, debug_nans=False)
    run = create_run("sine", config, tmp_path / "another")
    said = r"in meta-iteration 1\. Lower inner_lr or meta_lr, or leave such steps out with --on-nan"
    with np.errstate(all="ignore"), pytest.raises(DataError, match=said):
        sine.train(config, run, sine.load(config))


Skipping = functools.partial(Supervised, meta_iterations=8, validate_every=4)


def divided(state: Any, drawn: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """Moves by 1 / x of every task; where a task's x is 0 the new parameters are infinite, and the
    losses are not finite only after that."""
    losses = state["x"] + 0.0 * drawn
    return {"x": state["x"] + (1 / array(drawn)).sum()}, {"train_loss": losses}


def with_zeros(n: int) -> np.ndarray:
    return np.float64([1.0, 0.0 if n in (2, 5) else 1.0, 2.0])


def begin() -> Any:
    return {"x": array(np.zeros(()))}


def begin_there() -> Any:
    return {"x": array(backend.to_device(np.zeros(())))}


def test_what_is_seen_an_iteration_later_is_found_where_it_was_made(tmp_path: Path) -> None:
    run = create_run("sine", SINE, tmp_path / "run")
    how: Any = {"init": begin, "draw": with_zeros, "step": divided, "eager_step": divided}
    said = r"in task 0 in meta-iteration 4\. The first .* in meta-iteration 3, is div: .* at \[1\]"
    with np.errstate(all="ignore"), pytest.raises(DataError, match=said):
        loop.train(run, Skipping(), **how)


@pytest.mark.parametrize("last", [3, 7])
def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path, last: int) -> None:
    run = create_run("sine", SINE, tmp_path / "run")

    def draw(n: int) -> np.ndarray:
        return np.float64([1.0, 0.0 if n == last else 1.0, 2.0])

    def validate(state: Any, means: dict[str, float]) -> tuple[float, dict[str, float]]:
        assert np.isfinite(state["x"].numpy())
        return 1.0, {}

    how: Any = {"init": begin, "draw": draw, "step": divided, "eager_step": divided}
    said = (
        rf"state\['x'\] is not finite after the update in meta-iteration {last + 1}\. The first op "
        rf".* in meta-iteration {last + 1}, is div: .* at \[1\]"
    )
    with np.errstate(all="ignore"), pytest.raises(DataError, match=said):
        loop.train(run, Skipping(), validate=validate, **how)
    if last == 3:
        assert not (run.path / CHECKPOINT).exists()
    else:
        assert run.load().arrays["state"]["x"] == run.load().arrays["best"]["x"] == 4 * 2.5


@pytest.mark.skipif(
    not (standin.COMPILER or standin.has_device()), reason="there is no CUDA device, and no g++"
)
@pytest.mark.parametrize("debug_nans", [False, True])
def test_on_a_device_a_loss_that_is_no_number_is_found_too(
    tmp_path: Path, debug_nans: bool
) -> None:
    how: Any = {"draw": with_zeros, "step": divided, "eager_step": divided}
    with standin.device(), np.errstate(all="ignore"):
        run = create_run("sine", SINE, tmp_path / "run")
        with pytest.raises(DataError) as told:
            loop.train(run, Skipping(debug_nans=debug_nans), init=begin_there, **how)
    said = f"{told.value}"
    assert "train_loss is not finite in task 0 in meta-iteration 4. " in said
    op = "The first op that made such a number, in meta-iteration 3, is div"
    assert (op in said) is debug_nans
    assert not (run.path / CHECKPOINT).exists()


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    run = create_run("sine", SINE, tmp_path / "run")
    with np.errstate(all="ignore"):
        loop.train(run, Skipping(on_nan="skip"), init=begin, draw=with_zeros, step=divided)
    rows = without_clock(run)
    assert [float(row["skipped"]) for row in rows] == [0.25, 0.25]
    assert run.load().arrays["state"]["x"] == 6 * 2.5
    assert all(np.isfinite(float(row["train_loss"])) for row in rows)
    run = create_run("sine", SINE, tmp_path / "all")
    with np.errstate(all="ignore"), pytest.raises(DataError, match="train_loss is nan around"):
        loop.train(
            run, Skipping(on_nan="skip"), init=begin, draw=lambda n: np.zeros(3), step=divided
        )


def test_omniglot_learns_made_up_characters(tmp_path: Path) -> None:
    config = dataclasses.replace(
        OMNIGLOT, filters=8, meta_iterations=60, meta_batch_size=4, validate_every=30
    )
    run = create_run("omniglot", config, tmp_path / "run")
    data = made_up_characters()
    classification.train(config, run, data)
    table, text = classification.evaluate(config, run, data, tasks=30, baselines=True)
    at = {(row.setting, row.method, row.steps): row.mean for row in table}
    for asked in ("1 query a class", "15 queries a class"):
        setting = f"omniglot 5-way 1-shot, {asked}"
        assert at[setting, "MAML", config.eval_steps] > 0.5 > at[setting, "MAML", 0]
        assert at[setting, "nearest neighbour", 0] == at[setting, "nearest neighbour", 10] > 0.5
        assert f"\n{asked}\n" in text
    assert {steps for _, _, steps in at} == set(range(11))
    assert {method for _, method, _ in at} == {"MAML", "random init", "nearest neighbour"}
    assert "transductive" in text and "98.7" in text and "best in validation" in text
    for name in ("curve.png", "cosine.png", "accuracy.png", "episode.png"):
        with Image.open(run.path / name) as picture:
            assert min(picture.size) > 200
    for row in without_clock(run):
        assert 0 < float(row["gradient_cosine"]) < 1 and float(row["gradient_ratio"]) > 0


@pytest.mark.parametrize("batch_norm", ["support", "per-query"])
def test_evaluation_by_other_statistics_says_so(batch_norm: Any, tmp_path: Path) -> None:
    data = made_up_characters()
    run = trained(("omniglot", omniglot.EXPERIMENT, OMNIGLOT, data), tmp_path / "run")
    usual, _ = classification.evaluate(OMNIGLOT, run, data, tasks=20)
    other, text = classification.evaluate(OMNIGLOT, run, data, tasks=20, batch_norm=batch_norm)
    assert f"batch norm {batch_norm}" in text
    assert [row.mean for row in usual] != [row.mean for row in other]


def test_a_network_of_vectors_has_no_statistics_of_one_query(tmp_path: Path) -> None:
    config, data = dataclasses.replace(OMNIGLOT, network="mlp"), made_up_characters()
    run = trained(("omniglot", omniglot.EXPERIMENT, config, data), tmp_path / "run")
    classification.evaluate(config, run, data, tasks=4, batch_norm="support")
    with pytest.raises(DataError, match="per-query has no statistics"):
        classification.evaluate(config, run, data, tasks=4, batch_norm="per-query")


def test_a_pretrained_network_learns_all_classes_and_is_fine_tuned(tmp_path: Path) -> None:
    config = dataclasses.replace(
        OMNIGLOT, baseline="pretrained", filters=8, meta_iterations=60, validate_every=30
    )
    data = made_up_characters()
    run = trained(("omniglot", omniglot.EXPERIMENT, config, data), tmp_path / "run")
    losses = [float(row["train_loss"]) for row in without_clock(run)]
    assert losses[1] < losses[0] < np.log(32)  # 8 classes, turned four ways
    head = run.load().arrays["best"]["params"]["head"]["w"]
    assert head.shape == (8, 32)
    table, text = classification.evaluate(config, run, data, tasks=30)
    assert {row.method for row in table} == {"pretrained"}
    assert max(row.mean for row in table) > 0.5
    assert "pretrained: fine-tunes" in text
    assert "baseline pretrained" in config.describe()["meta-gradient"]


def test_a_baseline_is_validated_as_it_is_tuned(tmp_path: Path) -> None:
    """Which of its parameters are kept must not depend on one guessed way to fine-tune them."""
    config = dataclasses.replace(
        OMNIGLOT, baseline="pretrained", filters=4, meta_iterations=4, validate_every=2
    )
    data = made_up_characters()
    run = trained(("omniglot", omniglot.EXPERIMENT, config, data), tmp_path / "run")
    last = run.load().arrays["state"]["params"]
    tune = classification.tuner(config, data, "transductive")
    tuned = tune("last", classification._for_tasks(config, loop.from_host(last)))
    row = without_clock(run)[-1]
    assert float(row["validation_accuracy"]) == pytest.approx(float(tuned.scores.mean()))
    assert float(row["fine_tuning_lr"]) == tuned.lr in classification.FINE_TUNING_LRS
    for part in ("all", "head"):
        accuracies = classification._fine_tuning(config, part, (config.eval_steps,), "transductive")
        params = classification._for_tasks(config, loop.from_host(last))
        tasks = list(classification._validation(config, data))
        for lr in classification.FINE_TUNING_LRS:
            assert accuracies(params, lr, tasks).mean() <= tuned.scores.mean()


def test_the_nearest_neighbour_is_the_nearest() -> None:
    rng = np.random.default_rng(0)
    task = made_up_characters()["test"].sample(3, num_ways=4, num_shots=2, num_queries=3, rng=rng)
    for metric in ("euclidean", "cosine"):
        expected = []
        for t in range(3):
            right = 0
            for x, y in zip(task.query.x[t], task.query.y[t], strict=True):
                distances = [
                    np.linalg.norm(x - other)
                    if metric == "euclidean"
                    else 1 - (x * other).sum() / np.linalg.norm(x) / np.linalg.norm(other)
                    for other in task.support.x[t]
                ]
                right += task.support.y[t][int(np.argmin(distances))] == y
            expected.append(right / 12)
        np.testing.assert_allclose(classification.nearest_neighbour(metric, task), expected)


def test_compared_gradients_have_their_cosine_and_ratio() -> None:
    a, b = ({"w": array(np.array(v))} for v in ([3.0, 4.0], [10.0, 0.0]))
    found = classification.compare_gradients(a, b)
    assert found == pytest.approx({"gradient_cosine": 0.6, "gradient_ratio": 0.5})
    nothing = classification.compare_gradients(a, tree.map(lambda leaf: 0 * leaf, b))
    assert all(np.isnan(value) for value in nothing.values())


def test_presets_are_all_the_settings_and_differ_where_the_authors_do() -> None:
    paper, today = omniglot.PRESETS["paper-5w1s"], omniglot.PRESETS["today-5w1s"]
    assert today == omniglot.Config() and next(iter(omniglot.PRESETS)) == "today-5w1s"
    params = {"conv1": {"w": 0, "beta": 0}, "head": {"w": 0, "b": 0}}
    assert classification.inner_lr(paper, params) == {
        "conv1": {"w": 0.4, "beta": 0},
        "head": {"w": 0.4, "b": 0.4},
    }
    assert paper.loss == "sum/shots" and today.loss == "mean"
    assert classification.inner_lr(today, params) == 2.0
    first = classification.network(paper, 5).init(rng=counted_rng(0, "init"))
    assert "gamma" not in first["conv1"]
    assert abs(first["head"]["w"].numpy().std() - 1.0) < 0.15
    for config in (paper, today):
        assert "second order" in config.describe()["meta-gradient"]
        assert "transductive" in config.describe()["batch norm"]
    twenty = omniglot.PRESETS["paper-20w5s"]
    assert (twenty.inner_lr, twenty.inner_steps, twenty.meta_batch_size) == (0.1, 5, 16)
    assert (twenty.num_ways, twenty.num_shots, twenty.num_queries) == (20, 5, 5)
    assert omniglot.PRESETS["today-20w1s"].inner_lr == pytest.approx(2.0)
    mlp = omniglot.PRESETS["paper-5w5s-mlp-first-order-sgd"]
    assert (mlp.network, mlp.first_order, mlp.meta_optimizer) == ("mlp", True, "sgd")
    mini = miniimagenet.PRESETS["paper-5w5s"]
    assert (mini.inner_lr, mini.inner_steps, mini.eval_steps) == (0.01, 5, 10)
    assert (mini.meta_batch_size, mini.num_queries, mini.clip) == (2, 15, 10.0)
    assert (mini.filters, mini.head_std, mini.adapt_norm) == (32, None, False)
    assert miniimagenet.PRESETS["today-5w1s"] == miniimagenet.Config()
    for presets in (omniglot.PRESETS, miniimagenet.PRESETS):
        assert all(name == config.preset for name, config in presets.items())
        described = [str(config.describe()) for config in presets.values()]
        assert len(set(described)) == len(presets)


@pytest.mark.parametrize("changes", [{"meta_optimizer": "sgd"}, {"clip": 1e-3}])
def test_the_meta_update_is_the_one_asked_for(changes: Any, tmp_path: Path) -> None:
    data = made_up_characters()
    usual = trained(("omniglot", omniglot.EXPERIMENT, OMNIGLOT, data), tmp_path / "usual")
    config = dataclasses.replace(OMNIGLOT, meta_iterations=1, **changes)
    other = trained(("omniglot", omniglot.EXPERIMENT, config, data), tmp_path / "other")
    state = other.load().arrays["state"]
    assert ("m" in state["opt"]) == ("clip" in changes)
    if "clip" in changes:  # m is a tenth of the gradient, bounded for the sum of two tasks
        largest = max(np.abs(m).max() for m in tree.leaves(state["opt"]["m"]))
        assert largest == pytest.approx(0.1 * 2 * 1e-3)
    assert usual.load().iteration == 6


def test_adaptation_scores_are_those_of_adapt() -> None:
    params = sine.initial_params(SINE)
    task = sine.load(SINE).sample(3, num_shots=5, num_queries=7, rng=np.random.default_rng(0))
    scores, some = (
        adaptation_scores(
            maml.inner_loop(sine.loss, params, task.support, inner_lr=0.01),
            sine._error,
            task,
            steps=steps,
        )
        for steps in (range(3), (0, 2))
    )
    np.testing.assert_array_equal(some.numpy(), scores.numpy()[[0, 2]])
    for steps in range(3):
        adapted = maml.adapt(sine.loss, params, task.support, inner_lr=0.01, inner_steps=steps)
        np.testing.assert_array_equal(scores[steps], sine.loss(adapted, task.query).numpy())


def test_rows_have_the_mean_its_interval_and_the_diverged() -> None:
    scores = np.array([[1.0, 3.0, 2.0, 2.0], [1.0, np.inf, np.nan, 200.0]])
    first, second = rows("setting", "method", scores)
    assert (first.mean, first.tasks, first.diverged) == (2.0, 4, 0)
    assert first.ci95 == pytest.approx(1.96 * np.sqrt(0.5) / 2)
    assert second.diverged == 3
    assert json.loads(json.dumps(as_records([second])))[0]["mean"] is None
    assert "2.000 +- 0.693" in as_table([first], ["method"])
    assert "50.0 +- 0.5" in as_table([Row("s", "m", 0, 0.5, 0.005, 9)], ["m"], percent=True)


def test_evaluation_tasks_differ_and_are_the_same_for_every_run() -> None:
    data = made_up_characters()["test"]
    chunks = [list(classification._chunks(OMNIGLOT, data, 30, 1, "test", 5)) for _ in range(2)]
    assert [len(task.support.x) for task in chunks[0]] == [25, 5]
    for a, b in zip(*chunks, strict=True):
        assert_same_arrays(a, b)
    images = chunks[0][0].support.x
    assert all(not np.array_equal(images[0], other) for other in images[1:])


def test_the_oracle_is_told_amplitude_and_phase() -> None:
    told = sine._told(Batch(np.zeros((2, 3, 1)), None), np.full((2, 1, 1), 4.0), np.ones((2, 1, 1)))
    np.testing.assert_array_equal(told.x[0], [[0, 4, 1]] * 3)


def test_fine_tuning_step_size_is_tuned_on_the_tasks_given() -> None:
    task = sine.load(SINE).sample(50, num_shots=5, num_queries=20, rng=np.random.default_rng(0))
    params = sine.initial_params(SINE)
    chosen = sine._tuned_lr(params, Task(*task))
    errors = {lr: sine._scores(params, task, lr)[10].mean() for lr in sine.FINE_TUNING_LRS}
    assert chosen == min(errors, key=errors.__getitem__)


# ---- on a device


@pytest.mark.skipif(
    not (standin.COMPILER or standin.has_device()), reason="there is no CUDA device, and no g++"
)
def test_a_device_learns_what_the_host_learns(
    case: tuple[str, Any, Any, Any], tmp_path: Path
) -> None:
    name, experiment, config, data = case
    config = dataclasses.replace(
        config, meta_iterations=4, meta_batch_size=2, validate_every=2, validation_tasks=4
    )
    case = name, experiment, config, data
    here = trained(case, tmp_path / "here")
    with standin.device():
        there = trained(case, tmp_path / "there")
        found, text = experiment.evaluate(config, there, data, tasks=4)
    expected, _ = experiment.evaluate(config, here, data, tasks=4)
    assert "CPU" not in text
    for ours, theirs in zip(without_clock(there), without_clock(here), strict=True):
        assert {k: float(v) for k, v in ours.items()} == pytest.approx(
            {k: float(v) for k, v in theirs.items()}, rel=1e-3, abs=1e-3
        )
    assert [row.mean for row in found] == pytest.approx([row.mean for row in expected], abs=0.05)
    assert there.load().versions["device"] != here.load().versions["device"] == "cpu"
