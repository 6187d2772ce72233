"""theta ready to adapt: against maml.adapt, and the three kinds of batch-norm statistics."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamlnp import initialisations, load, maml, tree
from mamlnp.errors import DataError, DtypeError, ShapeError
from mamlnp.experiments import EXPERIMENTS, command, omniglot, sine
from mamlnp.experiments.classification import inner_lr, learner, network, task_loss
from mamlnp.learner import Classifier, query_logits
from mamlnp.runs import CHECKPOINT, create_run
from mamlnp.tasks import Batch, Task

CONFIG = omniglot.Config(filters=4, num_ways=3)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (9, 28, 28, 1)).astype(np.uint8)
LABELS = np.arange(3)


def classifier(config: omniglot.Config = CONFIG) -> Classifier:
    return learner(config, network(config, config.num_ways).init(rng=np.random.default_rng(1)))


def as_task(support: Any, query: Any) -> Task:
    return Task(Batch(support[None], LABELS[None]), Batch(query[None], None))


@pytest.mark.filterwarnings("ignore:predict. .* statistics of one image")
@pytest.mark.parametrize("batch_norm", ["transductive", "support", "per-query"])
def test_a_classifier_adapts_and_predicts_as_the_inner_loop_does(batch_norm: Any) -> None:
    model, inputs = classifier(), (255 - IMAGES).astype(np.float32) / 255  # ink is bright
    task = as_task(inputs[:3], inputs[3:])
    theta = model.algorithm(2).adapt(model.params, task.support)
    logits = query_logits(model.network, theta, task, batch_norm).numpy()[0]
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    adapted = model.adapt(IMAGES[:3], LABELS, inner_steps=2)
    found = adapted.predict(IMAGES[3:], batch_norm=batch_norm)
    np.testing.assert_allclose(found, expected, 1e-5, 1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, 1e-5)
    floats = model.adapt(inputs[:3], LABELS, inner_steps=2).predict(
        inputs[3:], batch_norm=batch_norm
    )
    np.testing.assert_array_equal(found, floats)


def test_the_papers_loss_does_not_make_steps_longer_where_there_are_more_images() -> None:
    config = dataclasses.replace(omniglot.PRESETS["paper-5w1s"], filters=4, num_ways=3)
    model = classifier(config)
    once = model.adapt(IMAGES[:3], LABELS)
    often = model.adapt(np.repeat(IMAGES[:3], 4, axis=0), np.repeat(LABELS, 4))
    task = as_task((255 - IMAGES[:3]).astype(np.float32) / 255, IMAGES[3:])
    theta = maml.adapt(
        task_loss(config, model.network),
        model.params,
        task.support,
        inner_lr=inner_lr(config, model.params),
        inner_steps=config.eval_steps,
    )
    for a, b, c in zip(*map(tree.leaves, (once.params, often.params, theta)), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), 1e-4, 1e-5)
        np.testing.assert_allclose(a.numpy(), c.numpy()[0], 1e-4, 1e-5)


@pytest.mark.filterwarnings("ignore:predict. .* statistics of one image")
@pytest.mark.parametrize("batch_norm", ["support", "per-query"])
def test_only_transductive_predictions_depend_on_the_other_queries(batch_norm: Any) -> None:
    adapted = classifier().adapt(IMAGES[:3], LABELS)
    together = adapted.predict(IMAGES[3:], batch_norm=batch_norm)
    alone = [adapted.predict(IMAGES[i : i + 1], batch_norm=batch_norm)[0] for i in range(3, 9)]
    np.testing.assert_allclose(together, alone, 1e-4, 1e-5)
    transductive = adapted.predict(IMAGES[3:], batch_norm="transductive")
    first = adapted.predict(IMAGES[3:4], batch_norm="transductive")
    assert np.abs(transductive[0] - first[0]).max() > 1e-3


def test_support_statistics_are_the_support_sets() -> None:
    net = network(CONFIG, 3)
    params = net.init(rng=np.random.default_rng(1))
    x = (255 - IMAGES).astype(np.float32) / 255
    same = query_logits(net, params, as_task(x[:3], x[:3]), "support")
    np.testing.assert_allclose(same.numpy()[0], net.apply(params, x[:3]).numpy(), 1e-4, 1e-5)
    with pytest.raises(ValueError, match="batch_norm is 'none'"):
        query_logits(net, params, as_task(x, x), "none")  # type: ignore[arg-type]


def test_fewer_classes_than_outputs_share_all_the_probability() -> None:
    adapted = classifier().adapt(IMAGES[:2], [0, 1])
    assert adapted.predict(IMAGES[3:]).shape == (6, 2)
    np.testing.assert_allclose(adapted.predict(IMAGES[3:]).sum(-1), 1, 1e-5)


def test_mistakes_have_clear_lines() -> None:
    model = classifier()
    with pytest.raises(ValueError, match="Call adapt"):
        model.predict(IMAGES)
    with pytest.raises(ShapeError, match=r"shape \[2, 5, 5, 1\], not \(N, 28, 28, 1\)"):
        model.adapt(np.zeros((2, 5, 5, 1)), [0, 1])
    with pytest.raises(ShapeError, match="N > 0"):
        model.adapt(IMAGES[:3], LABELS).predict(IMAGES[:0])


def test_the_authors_loss_is_the_sum_over_images_by_shots() -> None:
    net = network(CONFIG, 3)
    params, x = net.init(rng=np.random.default_rng(1)), IMAGES[:6].astype(np.float32) / 255
    batch = Batch(x[None], np.repeat(LABELS, 2)[None])
    config = dataclasses.replace(CONFIG, num_shots=2, loss="sum/shots")
    summed = task_loss(config, net)(params, batch).numpy()
    mean = task_loss(CONFIG, net)(params, batch).numpy()
    np.testing.assert_allclose(summed, 3 * mean, 1e-6)


# ---- saved ones


def test_a_run_is_loaded_and_exported(tmp_path: Path) -> None:
    config = sine.Config(
        meta_iterations=4, validate_every=2, validation_tasks=5, baseline_iterations=1
    )
    run = create_run("sine", config, tmp_path / "run")
    sine.train(config, run, sine.load(config))
    with pytest.raises(DataError, match="was not scored yet"):
        initialisations.export(run, tmp_path / "theta.safetensors")
    (run.path / "evaluation.json").write_text('{"rows": [{"mean": 1.5}]}')
    initialisations.export(run, tmp_path / "theta.safetensors")
    here, there = load(run.path), load(tmp_path / "theta.safetensors")
    for a, b in zip(tree.leaves(here.params), tree.leaves(there.params), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert there.about["scores"] == [{"mean": 1.5}]
    assert there.about["command"] == command(run)
    assert command(run) == (
        "mamlnp train sine --preset today --meta-iterations 4 --validate-every 2 --seed 0 "
        "--validation-tasks 5 --baseline-iterations 1"
    )
    x, y = [[0.0], [1.0]], [[0.0], [0.8]]
    np.testing.assert_array_equal(
        here.adapt(x, y, inner_steps=3).predict(x), there.adapt(x, y, inner_steps=3).predict(x)
    )


def test_a_run_of_a_preset_that_is_no_more_has_its_command(tmp_path: Path) -> None:
    run = create_run("sine", sine.Config(preset="mine", meta_iterations=4), tmp_path / "run")
    assert command(run) == "mamlnp train sine --preset mine --meta-iterations 4 --seed 0"


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: is neither a run's folder"):
        load("nowhere")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((initialisations.HERE / "sine.safetensors").read_bytes()[:700])
    with pytest.raises(DataError, match="is damaged or not a checkpoint"):
        load(broken)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    paths = []
    for filters in (4, 8):
        config = dataclasses.replace(CONFIG, filters=filters)
        run = create_run("omniglot", config, tmp_path / str(filters))
        params = tree.map(lambda leaf: leaf.numpy(), classifier(config).params)
        best = {"iteration": 1, "score": 0.0}
        meta = {"best": best, "wall_seconds": 0.0}
        run.save(1, {"state": {"params": params}, "best": {"params": params}}, meta)
        paths.append(run.path)
    (paths[0] / CHECKPOINT).write_bytes((paths[1] / CHECKPOINT).read_bytes())
    with pytest.raises(DataError, match=r"another architecture.*conv1.*\[8\], not float32\[4\]"):
        load(paths[0])


def test_every_experiment_has_a_command() -> None:
    assert all(callable(experiment.learner) for experiment in EXPERIMENTS.values())


def test_one_class_and_one_image_of_two_are_warned_of() -> None:
    model = classifier()
    with pytest.warns(UserWarning, match="adapt: all images are of one class"):
        model.adapt(IMAGES[:2], [0, 0])
    same = np.stack([IMAGES[0], IMAGES[1], IMAGES[0]])
    with pytest.warns(UserWarning, match="image 2, of class 2, is the same as one of class 0"):
        model.adapt(same, LABELS)
    model.adapt(same, [0, 1, 0])  # twice in one class is nobody's mistake


@pytest.mark.parametrize(("batch_norm", "count"), [("per-query", 3), ("transductive", 1)])
def test_statistics_of_one_image_are_warned_of(batch_norm: Any, count: int) -> None:
    adapted = classifier().adapt(IMAGES[:3], LABELS)
    with pytest.warns(UserWarning, match=f"predict: {batch_norm} statistics of one image"):
        adapted.predict(IMAGES[3 : 3 + count], batch_norm=batch_norm)


@pytest.mark.parametrize(
    "images", [IMAGES.astype(np.float32), IMAGES.astype(int), IMAGES / 127.5 - 1, IMAGES * np.nan]
)
def test_images_on_another_scale_are_refused(images: Any) -> None:
    with pytest.raises(DataError, match=r"but the network knows those from 0 to 1.*divide by 255"):
        classifier().adapt(images[:3], LABELS)


def test_a_learner_is_shown_in_a_line() -> None:
    model = classifier()
    assert re.fullmatch(
        r"<Classifier: inputs \[28, 28, 1\], [\d,]+ parameters, \d+ inner steps>", repr(model)
    )
    assert repr(model.adapt(IMAGES[:3], LABELS)) == repr(model)


def test_inputs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DtypeError, match="inputs: are no array of numbers"):
        classifier().adapt([["a"]], [0])
