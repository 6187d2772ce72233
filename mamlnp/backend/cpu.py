"""The kernels of :mod:`.reference` as compiled loops (numba): serial, and free of the GIL.

Serial on purpose: tasks are what is split over threads, so that kernels and BLAS never fight for
the same cores.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from . import reference
from .reference import Padding, Size, check_windows, window_counts

PART, SINGLE = 64, np.dtype(np.float32)  # float32 numbers that are added one by one
COMPILED = {np.dtype(name) for name in ("float32", "float64", "uint8", "int32", "int64")}


def _compiled(function: Any) -> Any:
    return njit(nogil=True, cache=True, error_model="numpy")(function)


@_compiled
def _patches(x, out, stride, top, left):  # type: ignore[no-untyped-def]
    n, h, w, c = x.shape
    _, oh, ow, kh, kw, _ = out.shape
    for b in range(n):
        for i in range(oh):
            for j in range(ow):
                for di in range(kh):
                    row = i * stride + di - top
                    for dj in range(kw):
                        column = j * stride + dj - left
                        if 0 <= row < h and 0 <= column < w:
                            for k in range(c):
                                out[b, i, j, di, dj, k] = x[b, row, column, k]
                        else:
                            for k in range(c):
                                out[b, i, j, di, dj, k] = 0


@_compiled
def _fold(p, out, stride, top, left):  # type: ignore[no-untyped-def]
    n, h, w, c = out.shape
    _, oh, ow, kh, kw, _ = p.shape
    out[:] = 0
    for b in range(n):
        for i in range(oh):
            for j in range(ow):
                for di in range(kh):
                    row = i * stride + di - top
                    for dj in range(kw):
                        column = j * stride + dj - left
                        if 0 <= row < h and 0 <= column < w:
                            for k in range(c):
                                out[b, row, column, k] += p[b, i, j, di, dj, k]


@_compiled
def _pool_positions(x, out, kh, kw, stride):  # type: ignore[no-untyped-def]
    n, h, w, c = x.shape
    _, oh, ow, _ = out.shape
    for b in range(n):
        for i in range(oh):
            for j in range(ow):
                for k in range(c):
                    best = x[b, i * stride, j * stride, k]
                    place = (0, 0)
                    for di in range(kh):
                        for dj in range(kw):
                            value = x[b, i * stride + di, j * stride + dj, k]
                            # NaN wins, as in NumPy's argmax, and the first maximum is kept.
                            if value > best or (value != value and best == best):
                                best = value
                                place = (di, dj)
                    row, column = i * stride + place[0], j * stride + place[1]
                    out[b, i, j, k] = ((b * h + row) * w + column) * c + k


@_compiled
def _put(values, positions, out):  # type: ignore[no-untyped-def]
    for i in range(positions.size):
        out[positions[i]] += values[i]


def _or_reference(kernel: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The kernel where its loops are compiled for the type, else the reference's."""
    general = getattr(reference, kernel.__name__)

    @functools.wraps(kernel)
    def either(x: np.ndarray, *args: Any) -> np.ndarray:
        return kernel(x, *args) if x.dtype in COMPILED else general(x, *args)

    return either


def _images(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-3]), *x.shape[-3:])


@_or_reference
def patches(x: np.ndarray, size: Size, stride: int, padding: Padding) -> np.ndarray:
    """Every window, flattened: (..., H, W, C) -> (..., H', W', kh * kw * C)."""
    oh, ow = window_counts(x.shape[-3:-1], size, stride, padding)
    images = _images(x)
    out = np.empty((len(images), oh, ow, *size, x.shape[-1]), x.dtype)
    _patches(images, out, stride, padding[0][0], padding[1][0])
    return out.reshape(*x.shape[:-3], oh, ow, math.prod(out.shape[-3:]))


@_or_reference
def fold(p: np.ndarray, size: Size, stride: int, padding: Padding, shape: Size) -> np.ndarray:
    """The transpose of :func:`patches`: (..., H', W', kh * kw * C) -> (..., H, W, C)."""
    check_windows(p, size, stride, padding, shape)
    channels = p.shape[-1] // math.prod(size)
    windows = _images(p)
    windows = windows.reshape(*windows.shape[:-1], *size, channels)
    out = np.empty((len(windows), *shape, channels), p.dtype)
    _fold(windows, out, stride, padding[0][0], padding[1][0])
    return out.reshape(*p.shape[:-3], *out.shape[1:])


@_or_reference
def pool_positions(x: np.ndarray, size: Size, stride: int) -> np.ndarray:
    """Where each window's first maximum sits in the flattened ``x``: (..., H', W', C) integers."""
    oh, ow = window_counts(x.shape[-3:-1], size, stride, ((0, 0), (0, 0)))
    images = _images(x)
    out = np.empty((len(images), oh, ow, x.shape[-1]), np.int64)
    _pool_positions(images, out, size[0], size[1], stride)
    return out.reshape(*x.shape[:-3], *out.shape[1:])


@_or_reference
def put(values: np.ndarray, positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros of ``shape`` with every value added at its flat position (repeats add up, of float32
    in float64 where there may be many)."""
    many = values.dtype == np.float32 and values.size > PART
    out = np.zeros(shape, np.float64 if many else values.dtype)
    _put(values.reshape(-1), positions.reshape(-1), out.reshape(-1))
    return out.astype(np.float32) if many else out


def total(x: np.ndarray, axis: tuple[int, ...], keepdims: bool = False) -> np.ndarray:
    """The sum over the axes. NumPy adds float32 numbers pairwise along the axis in which they lie
    one after another, and one by one along others: there, parts of the axis are summed first."""
    if x.size > PART and x.dtype is SINGLE:
        for a in axis:
            if x.shape[a] > PART:
                return _long_total(x, axis, keepdims)
    return x.sum(axis=axis, keepdims=keepdims)


def _long_total(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    last = x.ndim
    while last - 1 in axis and x.flags.c_contiguous:
        last -= 1
    far = max((a for a in axis if a < last), key=x.shape.__getitem__, default=0)
    count = x.shape[far] // PART if far in axis and far < last else 0
    if not count:
        return x.sum(axis=axis, keepdims=keepdims)
    before = (slice(None),) * far
    parts = x[(*before, slice(count * PART))]
    parts = parts.reshape(*x.shape[:far], count, PART, *x.shape[far + 1 :]).sum(far + 1)
    rest = x[(*before, slice(count * PART, None))].sum(far, keepdims=True)
    return total(np.concatenate([parts, rest], far), axis, keepdims)


@_compiled
def _erf(x, out, complement):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = math.erfc(x[i]) if complement else math.erf(x[i])


@_or_reference
def erf(x: np.ndarray, complement: bool) -> np.ndarray:
    """The error function of every element, or 1 minus it."""
    out = np.empty(x.shape, x.dtype if x.dtype.kind == "f" else np.float64)
    _erf(np.ascontiguousarray(x).reshape(-1), out.reshape(-1), complement)
    return out
