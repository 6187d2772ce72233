"""The kernels of :mod:`.reference` on CUDA: the same names and signatures, for CuPy's arrays.

Imported only when a CUDA device is asked for.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from .reference import Padding, Size, check_windows, window_counts

try:
    import cupy
except ImportError:  # the seam says so, where a device is asked for
    cupy = None

SOURCE = Path(__file__).with_name("kernels.cu")
CODES = {np.dtype(name): code for name, code in (
    ("float32", "f4"), ("float64", "f8"), ("int64", "i8"), ("int32", "i4"), ("uint8", "u1"),
)}  # fmt: skip
THREADS, MOST_BLOCKS = 256, 65_535


@functools.cache
def _module() -> Any:
    return cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"))


def _launch(name: str, dtype: Any, count: int, *args: Any) -> None:
    """One thread for each of ``count`` elements, on the current stream."""
    kernel = _module().get_function(f"{name}_{CODES[np.dtype(dtype)]}")
    blocks = min(MOST_BLOCKS, -(-count // THREADS))
    if count:
        kernel((blocks,), (THREADS,), tuple(np.int64(a) if isinstance(a, int) else a for a in args))


def _images(x: Any) -> Any:
    return cupy.ascontiguousarray(x).reshape(math.prod(x.shape[:-3]), *x.shape[-3:])


def patches(x: Any, size: Size, stride: int, padding: Padding) -> Any:
    """Every window, flattened: (..., H, W, C) -> (..., H', W', kh * kw * C)."""
    oh, ow = window_counts(x.shape[-3:-1], size, stride, padding)
    images = _images(x)
    n, h, w, c = images.shape
    out = cupy.empty((*x.shape[:-3], oh, ow, math.prod(size) * c), x.dtype)
    at = padding[0][0], padding[1][0]
    _launch("patches", x.dtype, out.size, images, out, n, h, w, c, oh, ow, *size, stride, *at)
    return out


def fold(p: Any, size: Size, stride: int, padding: Padding, shape: Size) -> Any:
    """The transpose of :func:`patches`: (..., H', W', kh * kw * C) -> (..., H, W, C)."""
    check_windows(p, size, stride, padding, shape)
    windows = _images(p)
    n, oh, ow, length = windows.shape
    c = length // math.prod(size)
    out = cupy.empty((*p.shape[:-3], *shape, c), p.dtype)
    at = padding[0][0], padding[1][0]
    _launch("fold", p.dtype, out.size, windows, out, n, *shape, c, oh, ow, *size, stride, *at)
    return out


def pool_positions(x: Any, size: Size, stride: int) -> Any:
    """Where each window's first maximum sits in the flattened ``x``: (..., H', W', C) integers."""
    oh, ow = window_counts(x.shape[-3:-1], size, stride, ((0, 0), (0, 0)))
    images = _images(x)
    n, h, w, c = images.shape
    out = cupy.empty((*x.shape[:-3], oh, ow, c), np.int64)
    _launch("pool_positions", x.dtype, out.size, images, out, n, h, w, c, oh, ow, *size, stride)
    return out


def put(values: Any, positions: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of ``shape`` with every value added at its flat position (repeats add up, in the order
    in which threads run; positions out of range are left out, since no error can come back from
    the device)."""
    if values.dtype.kind != "f":  # exact up to 2^53, and there is no need for more
        return put(values.astype(np.float64), positions, shape).astype(values.dtype)
    out = cupy.zeros(shape, values.dtype)
    flat = cupy.ascontiguousarray(values).reshape(-1)
    places = cupy.ascontiguousarray(positions).reshape(-1).astype(np.int64, copy=False)
    _launch("put", values.dtype, flat.size, flat, places, out, flat.size, out.size)
    return out
