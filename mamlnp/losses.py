"""Losses and scores: over the examples of each task, never over tasks.

The last axes hold a task's examples; what is in front of them stays, so that with the task axis
there is one number a task.
"""

from __future__ import annotations

from typing import Any, Literal

from .array import Array
from .errors import ShapeError
from .op import as_array, describe
from .ops.elementwise import class_labels, equal, neg, one_hot, square, sub
from .ops.reduce import argmax, log_softmax, mean, sum

Reduction = Literal["mean", "sum"]


def _reduced(where: str, x: Array, axis: tuple[int, ...], reduction: Reduction) -> Array:
    if reduction not in ("mean", "sum"):
        raise ShapeError(f"{where}: reduction {reduction!r} is not known. Pass 'mean' or 'sum'.")
    return mean(x, axis) if reduction == "mean" else sum(x, axis)


def mse(prediction: Any, target: Any, *, reduction: Reduction) -> Array:
    """Squared error over a task's points and outputs (Finn et al. 2017, equation 2).

    Differs from the paper: equation 2 is a sum; its code, and "mean" here, divide by the number.

    Args:
        prediction: (..., N, outputs).
        target: the same shape.
        reduction: "mean" or "sum" over the last two axes.

    Returns:
        (...): one number a task.

    >>> mse([[[1.0], [2.0]]], [[[0.0], [0.0]]], reduction="mean")
    Array([2.5])
    """
    prediction, target = as_array(prediction), as_array(target)
    if prediction.shape != target.shape or prediction.ndim < 2:
        raise ShapeError(
            f"mse: prediction {describe(prediction)} and target {describe(target)} differ. "
            "Pass two of shape (..., N, outputs)."
        )
    return _reduced("mse", square(sub(prediction, target)), (-2, -1), reduction)


def cross_entropy(logits: Any, labels: Any, *, reduction: Reduction) -> Array:
    """-log of the probability of the right class (Finn et al. 2017, equation 3, its sign mended).

    The reduction scales the inner learning rate: the paper's alpha of 0.4 is for the sum over the
    N * K support examples divided by K, which is N times the mean: on a mean, alpha is 0.4 * N.

    Args:
        logits: (..., N, classes).
        labels: (..., N) integers from 0.
        reduction: "mean" or "sum" over the N examples.

    Returns:
        (...): one number a task.

    >>> cross_entropy([[0.0, 0.0]], [1], reduction="sum")
    Array(0.69314718)
    """
    logits, labels = _classified("cross_entropy", logits, labels)
    chosen = one_hot(labels, num_classes=logits.shape[-1], dtype=logits.dtype)
    return _reduced("cross_entropy", neg(sum(chosen * log_softmax(logits), -1)), (-1,), reduction)


def accuracy(logits: Any, labels: Any) -> Array:
    """The share of a task's examples whose largest logit is the right class: (..., N, classes),
    (..., N) -> (...). Not differentiable.

    >>> accuracy([[3.0, 1.0], [2.0, 5.0]], [0, 0])
    Array(0.5)
    """
    logits, labels = _classified("accuracy", logits, labels)
    return mean(equal(argmax(logits, -1), labels).astype(logits.dtype), -1)


def _classified(where: str, logits: Any, labels: Any) -> tuple[Array, Array]:
    logits, labels = as_array(logits), as_array(labels)
    if logits.shape[:-1] != labels.shape or labels.dtype.kind not in "iu":
        raise ShapeError(
            f"{where}: logits {describe(logits)} and labels {describe(labels)} do not fit. "
            "Pass logits (..., N, classes) and integer labels (..., N)."
        )
    return logits, class_labels(labels, num_classes=logits.shape[-1])
