"""N-way K-shot classification tasks, drawn from images sorted by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import backend
from ..errors import DataError, ShapeError, check_rng
from . import Batch, Task
from .images import ImageFile


@dataclass(frozen=True, eq=False)
class ClassImages:
    """The images of some classes, and the sampler of tasks among them.

    Class c's images are rows ``first[c]`` to ``first[c] + counts[c]`` of ``images``, so classes may
    differ in size, and training, validation and test classes share one array without a copy.

    Args:
        images: uint8 (N, height, width, channels), in memory, on disk, or an array of CuPy's: tasks
            are gathered where it is. With rotations (4 N, ...), as :func:`with_turns` gives them.
        names: the name of each class.
        first: int (classes,), each class's first row.
        counts: int (classes,), how many images each class has.
        rotations: whether each class of each task is turned by a random multiple of 90 degrees,
            which makes four classes of every one.

    Raises:
        ShapeError: where these do not fit together.

    >>> images = np.zeros((5, 28, 28, 1), np.uint8)
    >>> data = ClassImages(images, ("cat", "dog"), first=np.array([0, 2]), counts=np.array([2, 3]))
    >>> rng = np.random.default_rng(0)
    >>> task = data.sample(4, num_ways=2, num_shots=1, num_queries=1, rng=rng)
    >>> task.support.x.shape, task.support.y[0]
    ((4, 2, 28, 28, 1), array([0, 1]))
    """

    images: Any
    names: tuple[str, ...]
    first: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    rotations: bool = False

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4:
            raise ShapeError(
                f"ClassImages: images are {self.images.dtype}{list(shape)}. "
                "Give uint8[images, height, width, channels]."
            )
        classes = (len(self.names),)
        if self.first.shape != classes or self.counts.shape != classes:
            raise ShapeError(
                f"ClassImages: there are {len(self.names)} names, but first is "
                f"{list(self.first.shape)} and counts {list(self.counts.shape)}. "
                "Give one of each a class."
            )
        ends = self.first + self.counts
        if any(self.first < 0) or any(self.counts < 0) or any(ends > self._per_turn):
            raise ShapeError(
                f"ClassImages: first {self.first.min()} and first + counts {ends.max()} at most, "
                f"but there are {self._per_turn} images. Give rows that are there."
            )

    @classmethod
    def stacked(
        cls, images: npt.NDArray[np.uint8], names: tuple[str, ...], rotations: bool = False
    ) -> ClassImages:
        """Classes of equally many images, uint8 (classes, per class, height, width, channels).

        Raises:
            ShapeError: where images are not that, or there is not one name a class.

        >>> data = ClassImages.stacked(np.zeros((10, 20, 28, 28, 1), np.uint8), tuple("abcdefghij"))
        >>> data.images.shape, data.first[:3], data.counts[:3]
        ((200, 28, 28, 1), array([ 0, 20, 40]), array([20, 20, 20]))
        """
        if images.ndim != 5:
            raise ShapeError(
                f"ClassImages.stacked: images are {images.dtype}{list(images.shape)}. "
                "Give uint8[classes, images, height, width, channels]."
            )
        num_classes, per_class = images.shape[:2]
        flat = images.reshape(-1, *images.shape[2:])
        return cls(
            with_turns(flat) if rotations else flat,
            names,
            first=per_class * np.arange(num_classes),
            counts=np.full(num_classes, per_class),
            rotations=rotations,
        )

    def sample(
        self,
        num_tasks: int,
        *,
        num_ways: int,
        num_shots: int,
        num_queries: int,
        rng: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
        part: slice = slice(None),
    ) -> Task:
        """Draw ``num_tasks`` tasks of ``num_ways`` classes each (Finn et al. 2017, section 5.2).

        The classes of a task differ, and so do a class's images across support and query. A class
        keeps its rotation throughout its task, at test as in training. Of the tasks only ``part``
        is made: what one of several processes needs, by the same draws on all.

        Returns:
            Support with ``num_shots`` and query with ``num_queries`` images a class: x of shape
            (T, ways * K, height, width, channels) in [0, 1], y int64 (T, ways * K) in [0, ways),
            class after class.

        Raises:
            DataError: where more classes or images are asked for than there are.
        """
        classes = self.sample_classes(num_tasks, num_ways=num_ways, rng=rng)
        return self.sample_images(
            classes, num_shots=num_shots, num_queries=num_queries, rng=rng, dtype=dtype, part=part
        )

    def sample_classes(
        self, num_tasks: int, *, num_ways: int, rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """Draw the classes of each task, (T, ways): the first half of :meth:`sample`.

        Raises:
            DataError: where more classes are asked for than there are.
        """
        check_rng("sample", rng)
        num_classes = len(self.names)
        if not 1 <= num_ways <= num_classes:
            raise DataError(
                f"sample: num_ways is {num_ways} but there are {num_classes} classes. "
                f"Ask for 1 to {num_classes}."
            )
        return _distinct(np.full(num_tasks, num_classes), num_ways, rng)

    def sample_images(
        self,
        classes: npt.NDArray[np.int64],
        *,
        num_shots: int,
        num_queries: int,
        rng: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
        part: slice = slice(None),
    ) -> Task:
        """Draw the images of tasks whose classes, (T, ways), are given: the rest of :meth:`sample`.

        Raises:
            DataError: where more images are asked for than some class has.
        """
        num_tasks, num_ways = classes.shape
        num = num_shots + num_queries
        smallest = int(self.counts.argmin())
        if num_shots < 1 or num_queries < 0 or num > self.counts[smallest]:
            raise DataError(
                f"sample: num_shots {num_shots} + num_queries {num_queries} images of a class, but "
                f"{self.names[smallest]} has {self.counts[smallest]}. "
                f"Ask for at least 1 shot and at most {self.counts[smallest]} in all."
            )
        rows = self.first[classes][..., None] + _distinct(self.counts[classes], num, rng)
        if self.rotations:
            rows += self._per_turn * rng.integers(4, size=(num_tasks, num_ways, 1))
        rows = rows[part]

        def batch(rows: npt.NDArray[np.int64]) -> Batch:
            y = np.repeat(np.arange(num_ways), rows.shape[-1])
            x = self._scaled(rows.reshape(len(rows), -1), dtype)
            return Batch(x, self._xp.asarray(np.tile(y, (len(rows), 1))))

        return Task(batch(rows[..., :num_shots]), batch(rows[..., num_shots:]))

    @property
    def num_labels(self) -> int:
        """How many classes there are to tell apart, turned ones by themselves."""
        return len(self.names) * (4 if self.rotations else 1)

    def sample_labelled(
        self,
        num_groups: int,
        size: int,
        *,
        rng: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
        part: slice = slice(None),
    ) -> Batch:
        """Draw images for learning all classes at once, as a baseline of MAML does; ``part`` is of
        the groups, as in :meth:`sample`.

        Returns:
            x of shape (num_groups, size, height, width, channels) in [0, 1], y int64
            (num_groups, size) in [0, num_labels), class by class drawn evenly.
        """
        check_rng("sample", rng)
        labels = rng.integers(self.num_labels, size=(num_groups, size))
        turns, classes = np.divmod(labels, len(self.names))
        rows = self.first[classes] + rng.integers(self.counts[classes]) + self._per_turn * turns
        return Batch(self._scaled(rows[part], dtype), self._xp.asarray(labels[part]))

    @property
    def _per_turn(self) -> int:
        """N: how many images there are, turned ones left out."""
        return self.images.shape[0] // (4 if self.rotations else 1)

    @property
    def _xp(self) -> Any:
        """The namespace that tasks are made in."""
        on_host = isinstance(self.images, np.ndarray | ImageFile)
        return np if on_host else backend.namespace_of(self.images)

    def _scaled(self, rows: npt.NDArray[np.int64], dtype: npt.DTypeLike) -> Any:
        """The images of these rows, in [0, 1]."""
        chosen = self.images[self._xp.asarray(rows.reshape(-1))]
        x = self._xp.divide(chosen, 255, dtype=dtype)
        return x.reshape(*rows.shape, *self.images.shape[1:])


def with_turns(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Images (N, H, H, C), then all of them turned by 90, by 180 and by 270 degrees: (4 N, ...).

    Raises:
        ShapeError: where they are not square.
    """
    height, width = images.shape[1:3]
    if height != width:
        raise ShapeError(
            f"with_turns: images are {height} high and {width} wide. Give square images."
        )
    return np.concatenate([np.rot90(images, turns, axes=(1, 2)) for turns in range(4)])


def _distinct(
    below: npt.NDArray[np.int64], num: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """``num`` different numbers below each of ``below``, in random order: (*below.shape, num).

    Floyd's algorithm, whose work does not grow with ``below`` (Bentley & Floyd 1987).
    """
    largest = below + np.arange(num).reshape(num, *[1] * below.ndim) - num
    chosen = rng.integers(largest + 1)
    for i in range(1, num):
        taken = (chosen[:i] == chosen[i]).any(axis=0)
        np.copyto(chosen[i], largest[i], where=taken)
    return rng.permuted(np.moveaxis(chosen, 0, -1), axis=-1)
