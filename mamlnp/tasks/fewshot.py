"""N-way K-shot classification tasks, drawn from images sorted by class."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mamlnp.errors import DataError, ShapeError
from mamlnp.tasks import Batch, Task


def _draw(
    pool_size: int, num: int, shape: tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """``num`` different numbers below ``pool_size``, in random order, ``shape`` times over."""
    pool = np.broadcast_to(np.arange(pool_size), (*shape, pool_size))
    return rng.permuted(pool, axis=-1)[..., :num]


@dataclass(frozen=True, eq=False)
class ClassImages:
    """The images of some classes, and the sampler of tasks among them.

    Args:
        images: uint8 (classes, images per class, height, width, channels).
        names: the name of each class.
        rotations: whether each class of each task is turned by a random multiple of 90 degrees,
            which makes four classes of every one. Such images are square, and held four times.

    Raises:
        ShapeError: where these do not fit together.

    >>> data = ClassImages(np.zeros((10, 20, 28, 28, 1), np.uint8), tuple("abcdefghij"))
    >>> rng = np.random.default_rng(0)
    >>> task = data.sample(4, num_ways=5, num_shots=2, num_queries=3, rng=rng)
    >>> task.support.x.shape, task.query.x.shape
    ((4, 10, 28, 28, 1), (4, 15, 28, 28, 1))
    >>> task.support.y[0]
    array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    """

    images: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    rotations: bool = False

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 5 or len(self.names) != shape[0]:
            raise ShapeError(
                f"ClassImages: images are {self.images.dtype}{list(shape)} and there are "
                f"{len(self.names)} names. Give uint8[classes, images, height, width, channels] "
                "and one name a class."
            )
        if self.rotations and shape[2] != shape[3]:
            raise ShapeError(
                f"ClassImages: rotations=True, but images are {shape[2]} high and {shape[3]} wide. "
                "Give square images or rotations=False."
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
    ) -> Task:
        """Draw ``num_tasks`` tasks of ``num_ways`` classes each (Finn et al. 2017, section 5.2).

        The classes of a task differ, and so do a class's images across support and query. A class
        keeps its rotation throughout its task, at test as in training.

        Returns:
            Support with ``num_shots`` and query with ``num_queries`` images a class: x of shape
            (T, ways * K, height, width, channels) in [0, 1], y int64 (T, ways * K) in [0, ways),
            class after class.

        Raises:
            DataError: where more classes or images are asked for than there are.
        """
        num_classes, per_class = self.images.shape[:2]
        if not 1 <= num_ways <= num_classes:
            raise DataError(
                f"sample: num_ways is {num_ways} but there are {num_classes} classes. "
                f"Ask for 1 to {num_classes}."
            )
        if num_shots < 1 or num_queries < 0 or num_shots + num_queries > per_class:
            raise DataError(
                f"sample: num_shots {num_shots} + num_queries {num_queries} images of a class, but "
                f"each has {per_class}. Ask for at least 1 shot and at most {per_class} in all."
            )
        classes = _draw(num_classes, num_ways, (num_tasks,), rng)[:, :, None]
        images = _draw(per_class, num_shots + num_queries, (num_tasks, num_ways), rng)
        if self.rotations:
            # The turned copies lie one after the other, each of them num_classes long.
            classes = classes + num_classes * rng.integers(4, size=classes.shape)
        rows = classes * per_class + images
        pool = self._turned if self.rotations else self.images
        pool = pool.reshape(-1, *pool.shape[-3:])

        def batch(rows: npt.NDArray[np.int64]) -> Batch:
            x = pool.take(rows.reshape(num_tasks, -1), axis=0).astype(dtype)
            x /= 255
            y = np.repeat(np.arange(num_ways), rows.shape[-1])
            return Batch(x, np.tile(y, (num_tasks, 1)))

        return Task(batch(rows[..., :num_shots]), batch(rows[..., num_shots:]))

    @cached_property
    def _turned(self) -> npt.NDArray[np.uint8]:
        """The images turned by 0, 90, 180 and 270 degrees: (4, *images.shape)."""
        return np.stack([np.rot90(self.images, turns, axes=(2, 3)) for turns in range(4)])
