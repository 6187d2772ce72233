"""Pooling of images, channels last: (..., H, W, C) -> (..., H', W', C), without padding."""

from __future__ import annotations

from typing import Any

from .. import backend
from ..array import Array
from ..draws import Draw, Drawn
from ..errors import ShapeError
from ..op import as_array, describe, op
from .gather import take
from .linear import patches
from .reduce import mean
from .shape import reshape

Pair = tuple[int, int]


def _draw_pool(d: Draw) -> Drawn:
    size = (d.integer(1, 2), d.integer(1, 2))
    shape = (*d.shape(max_ndim=2, max_side=2), size[0] + d.integer(0, 2), size[1] + 2, 2)
    return (d.array(shape),), {"size": size, "stride": d.integer(1, 2)}


@op(draw=_draw_pool, differentiable=False)
def pool_positions(xp: Any, x: Any, *, size: Pair, stride: int) -> Any:
    """Where each window's first maximum sits in the flattened x. Integers; not differentiable."""
    return backend.kernels_of(x).pool_positions(x, size, stride)


def _checked(where: str, x: Any, size: int | Pair, stride: int | None) -> tuple[Array, Pair, int]:
    x = as_array(x)
    size = (size, size) if isinstance(size, int) else size
    stride = size[0] if stride is None else stride
    if min(*size, stride) < 1:
        raise ShapeError(f"{where}: size {size} and stride {stride} are in pixels. Pass 1 or more.")
    if x.ndim < 3 or any(s < k for s, k in zip(x.shape[-3:-1], size, strict=True)):
        raise ShapeError(
            f"{where}: x {describe(x)} has no window of {size[0]}x{size[1]}. "
            "Pass (..., H, W, C) with H and W no smaller than the window."
        )
    return x, size, stride


def max_pool2d(x: Any, size: int | Pair = 2, stride: int | None = None) -> Array:
    """The largest of each window; of equal ones the first takes the whole cotangent (docs,
    equation 6.5), and so does the first NaN, which is the largest there is.

    Args:
        x: (..., H, W, C).
        size: of the window, in pixels.
        stride: in pixels; the window's height if None.
    """
    x, size, stride = _checked("max_pool2d", x, size, stride)
    return take(x, pool_positions(x.constant(), size=size, stride=stride))


def avg_pool2d(x: Any, size: int | Pair = 2, stride: int | None = None) -> Array:
    """The mean of each window: (..., H, W, C) -> (..., H', W', C)."""
    x, size, stride = _checked("avg_pool2d", x, size, stride)
    windows = patches(x, size=size, stride=stride, padding=((0, 0), (0, 0)))
    return mean(reshape(windows, (*windows.shape[:-1], size[0] * size[1], x.shape[-1])), axis=-2)
