"""A network with meta-learned parameters, ready to adapt to a task of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import nn, tree
from .array import Array
from .errors import DataError, DtypeError, ShapeError
from .meta import Algorithm
from .op import as_array
from .ops.reduce import softmax
from .ops.shape import concatenate
from .tasks import Batch, Task

BatchNorm = Literal["transductive", "support", "per-query"]
BATCH_NORM: dict[str, str] = {
    "transductive": "the statistics of all queries together",
    "support": "the statistics of the support set",
    "per-query": "the statistics of each query image by itself",
}
NO_STATISTICS = (
    "--batch-norm: per-query has no statistics in a network of vectors, one a query. "
    "Use transductive or support."
)


def query_logits(net: nn.Network, params: Any, task: Task, batch_norm: BatchNorm) -> Array:
    """The network's outputs for the query set, (T, N, classes).

    Args:
        net: a network with batch norm.
        params: each task's own, or shared.
        task: its query labels are not used.
        batch_norm: whose statistics normalise the queries: "transductive": all queries', as in the
            paper's code, so that a query's class depends on the other queries; "support": the
            support set's; "per-query": each query image's own.
    """
    if batch_norm == "transductive":
        return net.apply(params, task.query.x)
    if batch_norm == "per-query":
        try:
            return net.apply(params, task.query.x, statistics="image")
        except ShapeError as error:  # batch norm of vectors
            raise DataError(NO_STATISTICS) from error
    if batch_norm != "support":
        raise ValueError(
            f"query_logits: batch_norm is {batch_norm!r}. Use one of {', '.join(BATCH_NORM)}."
        )
    shots = task.support.x.shape[1]
    both = concatenate([as_array(task.support.x), as_array(task.query.x)], axis=1)
    return net.apply(params, both, statistics=shots)[:, shots:]


@dataclass(frozen=True, repr=False)
class Learner:
    """theta, and how to adapt it.

    Attributes:
        network: what theta parametrises.
        algorithm: of a number of inner steps: how theta adapts.
        params: theta, or theta' once adapted; no task axis.
        inner_steps: how many an adaptation takes if it is not told.
        input_shape: of one example.
        about: where it comes from: experiment, settings, scores.
    """

    network: nn.Network
    algorithm: Callable[[int], Algorithm]
    params: Any
    inner_steps: int
    input_shape: tuple[int, ...]
    about: dict[str, Any] = field(default_factory=dict, repr=False)

    def inputs(self, x: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Examples as the network takes them, float32 (N, *input_shape).

        Raises:
            ShapeError: they are of another shape, or there are none.
        """
        try:
            x = np.asarray(x, np.float32)
        except (TypeError, ValueError) as error:
            raise DtypeError(f"inputs: are no array of numbers ({error}). Pass one.") from error
        if x.shape[1:] != self.input_shape or not len(x):
            wanted = ", ".join(map(str, ("N", *self.input_shape)))
            raise ShapeError(
                f"inputs: have shape {list(x.shape)}, not ({wanted}) with N > 0. "
                "Pass the examples one after the other."
            )
        return x

    def __repr__(self) -> str:
        """What it is, without its parameters."""
        numbers = sum(leaf.size for leaf in tree.leaves(self.params))
        of = f" of {self.about['experiment']}" if "experiment" in self.about else ""
        return (
            f"<{type(self).__name__}{of}: inputs {list(self.input_shape)}, {numbers:,} parameters, "
            f"{self.inner_steps} inner steps>"
        )

    def adapt(self, x: npt.ArrayLike, y: npt.ArrayLike, *, inner_steps: int | None = None) -> Any:
        """theta' from the support examples: Algorithm 1, line 6, as often as ``inner_steps``.

        Args:
            x: (N, *input_shape).
            y: (N, outputs), or (N,) class numbers from 0.
            inner_steps: ``self.inner_steps`` if not given.
        """
        y = np.asarray(y)
        support = Batch(
            self.inputs(x)[None], (y.astype(np.float32) if y.dtype.kind == "f" else y)[None]
        )
        steps = self.inner_steps if inner_steps is None else inner_steps
        adapted = self.algorithm(steps).adapt(self.params, support)
        return replace(self, params=tree.map(lambda leaf: leaf[0], adapted))

    def predict(self, x: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The network's outputs, (N, outputs)."""
        return self.network.apply(self.params, self.inputs(x)).numpy()


@dataclass(frozen=True, repr=False)
class Classifier(Learner):
    """A learner of classes of images.

    Attributes:
        outputs: how many classes it can tell apart.
        inverted: whether the network wants ink bright on dark paper.
        support: the images adapted to, for their statistics.
        num_classes: how many classes they were of; the rest of the outputs is not looked at.
    """

    outputs: int = 0
    inverted: bool = False
    support: Any = field(default=None, repr=False)
    num_classes: int | None = None

    def inputs(self, x: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Images as the network takes them: uint8 as they are in files, or floats in [0, 1] as
        :meth:`ClassImages.sample` gives them.

        Raises:
            DataError: they are neither.
        """
        x = np.asarray(x)
        if x.dtype == np.uint8:
            x = (255 - x if self.inverted else x).astype(np.float32) / 255
        x = super().inputs(x)
        low, high = x.min(), x.max()
        if not (low > -0.5 and high < 1.5):  # of NaN neither is true
            raise DataError(
                f"inputs: images from {low:g} to {high:g}, but the network knows those from 0 to "
                "1. Pass uint8 as it is in files, or divide by 255."
            )
        return x

    def adapt(self, x: npt.ArrayLike, y: npt.ArrayLike, *, inner_steps: int | None = None) -> Any:
        """theta' from labelled images, (N, height, width, channels) and (N,) class numbers.

        Warns where there is nothing to tell apart: one class, or an image of two.
        """
        adapted = super().adapt(x, y, inner_steps=inner_steps)
        classes, images = int(np.max(y)) + 1, self.inputs(x)
        if classes == 1:
            warnings.warn(
                "adapt: all images are of one class, which every query will be called. Pass "
                "another class beside it.",
                stacklevel=2,
            )
        labels: dict[bytes, int] = {}
        for n, label in enumerate(np.asarray(y)):
            seen = labels.setdefault(images[n].tobytes(), label)
            if seen != label:
                warnings.warn(
                    f"adapt: image {n}, of class {label}, is the same as one of class {seen}. "
                    "Keep it in one of them.",
                    stacklevel=2,
                )
                break
        return replace(adapted, support=images, num_classes=classes)

    def predict(
        self, x: npt.ArrayLike, *, batch_norm: BatchNorm = "support"
    ) -> npt.NDArray[np.float32]:
        """The probability of each class for each image, (N, classes).

        Args:
            x: images, (N, height, width, channels).
            batch_norm: whose statistics normalise them, see :func:`query_logits`. The accuracies
                in tables are "transductive"; with "support" an image's class does not depend on
                which others are asked about.

        Raises:
            ValueError: "support" before any :meth:`adapt`.
        """
        if self.support is None and batch_norm == "support":
            raise ValueError("predict: nothing was adapted to yet. Call adapt(x, y) first.")
        if batch_norm == "per-query" or (batch_norm == "transductive" and len(x) == 1):  # type: ignore[arg-type]
            warnings.warn(
                f"predict: {batch_norm} statistics of one image are not what the network was "
                "trained with, and it may call everything by one name. Use support.",
                stacklevel=2,
            )
        query, support = self.inputs(x)[None], self.support
        task = Task(Batch(query if support is None else support[None], None), Batch(query, None))
        logits = query_logits(self.network, self.params, task, batch_norm)
        return softmax(logits[..., : self.num_classes], -1).numpy()[0]
