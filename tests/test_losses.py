"""Losses and scores: values, shapes with and without the task axis, derivatives, errors."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mamlnp import array, check_grads, grad
from mamlnp.errors import ShapeError
from mamlnp.gradcheck import TOLERANCES
from mamlnp.losses import accuracy, cross_entropy, mse

ROUNDING = TOLERANCES["rounding"]
seeds = st.integers(0, 2**32 - 1)
leads = st.sampled_from([(), (1,), (3,), (2, 3)])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])


def close(actual, expected):
    expected = np.asarray(expected, float)
    np.testing.assert_allclose(actual.numpy(), expected, ROUNDING, ROUNDING, strict=True)


@reductions
@given(lead=leads, seed=seeds)
def test_mse_of_each_task(reduction, lead, seed):
    rng = np.random.default_rng(seed)
    prediction, target = rng.normal(size=(2, *lead, 4, 3))
    found = mse(prediction, target, reduction=reduction)
    expected = np.empty(lead)
    for task in np.ndindex(lead):
        errors = [
            (prediction[task][n, k] - target[task][n, k]) ** 2 for n in range(4) for k in range(3)
        ]
        expected[task] = sum(errors) / (len(errors) if reduction == "mean" else 1)
    close(found, expected)


@reductions
@given(lead=leads, seed=seeds)
def test_cross_entropy_of_each_task(reduction, lead, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(*lead, 5, 3)) * 3, rng.integers(0, 3, (*lead, 5))
    found = cross_entropy(logits, labels, reduction=reduction)
    expected = np.empty(lead)
    for task in np.ndindex(lead):
        terms = []
        for row, label in zip(logits[task], labels[task], strict=True):
            terms.append(-math.log(math.exp(row[label]) / sum(map(math.exp, row))))
        expected[task] = sum(terms) / (5 if reduction == "mean" else 1)
    close(found, expected)


def test_the_sum_is_n_times_the_mean():
    logits, labels = np.array([[1.0, 2.0], [0.0, 0.5], [3.0, 1.0]]), np.array([0, 1, 1])
    mean, total = (cross_entropy(logits, labels, reduction=r) for r in ("mean", "sum"))
    close(total, 3 * mean.item())
    mean, total = (mse(logits, 0 * logits, reduction=r) for r in ("mean", "sum"))
    close(total, 6 * mean.item())


def test_cross_entropy_of_extreme_logits_is_finite():
    logits = array([[[1000.0, -1000.0], [-1000.0, 1000.0]]])
    labels = np.array([[0, 0]])
    close(cross_entropy(logits, labels, reduction="sum"), [2000.0])
    found = grad(lambda x: cross_entropy(x, labels, reduction="sum").sum())(logits)
    close(found, [[[0.0, 0.0], [-1.0, 1.0]]])


@given(seed=seeds)
def test_the_gradient_of_cross_entropy_is_softmax_minus_one_hot(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(2, 4, 3)), rng.integers(0, 3, (2, 4))
    found = grad(lambda x: cross_entropy(x, labels, reduction="mean").sum())(array(logits))
    e = np.exp(logits)
    close(found, (e / e.sum(-1, keepdims=True) - np.eye(3)[labels]) / 4)


@reductions
def test_derivatives_to_third_order(reduction):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, 2))
    losses = [
        (lambda p, y: mse(p, y, reduction=reduction), rng.normal(size=(2, 2, 2, 1))),
        (lambda x: cross_entropy(x, labels, reduction=reduction), rng.normal(size=(1, 2, 2, 3))),
    ]
    for loss, args in losses:
        assert check_grads(loss, list(args), order=3).error() < TOLERANCES["difference"]


@given(lead=leads, seed=seeds)
def test_accuracy_of_each_task(lead, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(*lead, 6, 3)), rng.integers(0, 3, (*lead, 6))
    found = accuracy(logits, labels)
    expected = np.empty(lead)
    for task in np.ndindex(lead):
        hits = [list(x).index(max(x)) == y for x, y in zip(logits[task], labels[task], strict=True)]
        expected[task] = sum(hits) / 6
    close(found, expected)


def test_accuracy_is_a_constant():
    close(grad(lambda x: accuracy(x, [0, 1]) + 0.0 * x.sum())(array(np.eye(2))), np.zeros((2, 2)))


def test_float32_stays_float32():
    logits, labels = np.ones((2, 3, 4), np.float32), np.zeros((2, 3), int)
    assert cross_entropy(logits, labels, reduction="mean").dtype == np.float32
    assert accuracy(logits, labels).dtype == np.float32
    assert mse(logits, logits, reduction="sum").dtype == np.float32


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ShapeError, match=r"mse: prediction float64\[2,3,1\] and target .*\[2,3\]"):
        mse(np.ones((2, 3, 1)), np.ones((2, 3)), reduction="mean")
    with pytest.raises(ShapeError, match="mse"):
        mse(np.ones(3), np.ones(3), reduction="mean")
    for loss in (lambda x, y: cross_entropy(x, y, reduction="mean"), accuracy):
        for labels in (np.zeros((2, 1), int), np.zeros(3, int), np.zeros((2, 3))):
            with pytest.raises(ShapeError, match=r"logits float64\[2,3,4\] and labels"):
                loss(np.ones((2, 3, 4)), labels)


def test_the_reduction_is_explicit():
    x, labels = np.ones((2, 3)), np.zeros(2, int)
    with pytest.raises(TypeError, match="reduction"):
        mse(x, x)
    with pytest.raises(TypeError, match="reduction"):
        cross_entropy(x, labels)
    with pytest.raises(ValueError, match="reduction 'none' is not known"):
        mse(x, x, reduction="none")
    with pytest.raises(ValueError, match="reduction 'none' is not known"):
        cross_entropy(x, labels, reduction="none")


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.parametrize("score", [partial(cross_entropy, reduction="mean"), accuracy])
def test_a_label_beyond_the_classes_is_refused(score, label):
    with pytest.raises(ShapeError, match=rf"{label}.* but there are 2 classes"):
        score(np.zeros((3, 2)), np.array([0, 1, label]))
