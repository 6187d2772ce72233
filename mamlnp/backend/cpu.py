"""The kernels of :mod:`.reference` as compiled loops (numba): serial, and free of the GIL.

Serial on purpose: tasks are what is split over threads, so that kernels and BLAS never fight for
the same cores.
"""

from typing import Any

import numpy as np
from numba import njit

from .reference import Padding, Size


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


def _images(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1, *x.shape[-3:])


def _output_size(x: np.ndarray, size: Size, stride: int, padding: Padding) -> Size:
    height = (x.shape[-3] + sum(padding[0]) - size[0]) // stride + 1
    width = (x.shape[-2] + sum(padding[1]) - size[1]) // stride + 1
    return height, width


def patches(x: np.ndarray, size: Size, stride: int, padding: Padding) -> np.ndarray:
    """Every window, flattened: (..., H, W, C) -> (..., H', W', kh * kw * C)."""
    images, (oh, ow) = _images(x), _output_size(x, size, stride, padding)
    out = np.empty((len(images), oh, ow, *size, x.shape[-1]), x.dtype)
    _patches(images, out, stride, padding[0][0], padding[1][0])
    return out.reshape(*x.shape[:-3], oh, ow, -1)


def fold(p: np.ndarray, size: Size, stride: int, padding: Padding, shape: Size) -> np.ndarray:
    """The transpose of :func:`patches`: (..., H', W', kh * kw * C) -> (..., H, W, C)."""
    windows = np.ascontiguousarray(p).reshape(
        -1, *p.shape[-3:-1], *size, p.shape[-1] // (size[0] * size[1])
    )
    out = np.empty((len(windows), *shape, windows.shape[-1]), p.dtype)
    _fold(windows, out, stride, padding[0][0], padding[1][0])
    return out.reshape(*p.shape[:-3], *out.shape[1:])


def pool_positions(x: np.ndarray, size: Size, stride: int) -> np.ndarray:
    """Where each window's first maximum sits in the flattened ``x``: (..., H', W', C) integers."""
    images, (oh, ow) = _images(x), _output_size(x, size, stride, ((0, 0), (0, 0)))
    out = np.empty((len(images), oh, ow, x.shape[-1]), np.int64)
    _pool_positions(images, out, size[0], size[1], stride)
    return out.reshape(*x.shape[:-3], *out.shape[1:])


def put(values: np.ndarray, positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros of ``shape`` with every value added at its flat position (repeats add up)."""
    out = np.zeros(shape, values.dtype)
    _put(values.reshape(-1), positions.reshape(-1), out.reshape(-1))
    return out
