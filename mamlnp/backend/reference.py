"""Every kernel in plain NumPy, written to be read: the specification of the fast ones.

Images are channels last: (..., height, width, channels). ``size`` is (kernel height, kernel
width), ``padding`` is ((top, bottom), (left, right)), filled with zeros.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Size = tuple[int, int]
Padding = tuple[Size, Size]


def window_counts(shape: Size, size: Size, stride: int, padding: Padding) -> Size:
    """How many windows an image of ``shape`` (H, W) has: (H', W').

    Raises:
        ValueError: it has none, or a number of pixels is out of its range.
    """
    if min(*size, stride) < 1 or min(map(min, padding)) < 0:
        raise ValueError("a window's size and stride start at 1, its padding at 0")
    (h, w), (kh, kw) = shape, size
    rows = (h + sum(padding[0]) - kh) // stride + 1
    columns = (w + sum(padding[1]) - kw) // stride + 1
    if rows < 1 or columns < 1:
        raise ValueError(f"a window of {kh}x{kw} is larger than the padded image")
    return rows, columns


def check_windows(p: np.ndarray, size: Size, stride: int, padding: Padding, shape: Size) -> None:
    """Can ``p`` be all windows of an image of ``shape`` (H, W)?

    Raises:
        ValueError: it cannot.
    """
    counts = window_counts(shape, size, stride, padding)
    if p.shape[-3:-1] != counts or p.shape[-1] % math.prod(size):
        raise ValueError(f"such an image has {counts[0]} by {counts[1]} windows of kh * kw * C")


def patches(x: np.ndarray, size: Size, stride: int, padding: Padding) -> np.ndarray:
    """Every window, flattened: (..., H, W, C) -> (..., H', W', kh * kw * C)."""
    window_counts(x.shape[-3:-1], size, stride, padding)
    lead = [(0, 0)] * (x.ndim - 3)
    padded = np.pad(x, [*lead, *padding, (0, 0)])
    windows = sliding_window_view(padded, size, axis=(-3, -2))  # (..., H', W', C, kh, kw)
    windows = windows[..., ::stride, ::stride, :, :, :]
    windows = np.moveaxis(windows, -3, -1)
    return windows.reshape(*windows.shape[:-3], math.prod(windows.shape[-3:]))


def fold(p: np.ndarray, size: Size, stride: int, padding: Padding, shape: Size) -> np.ndarray:
    """The transpose of :func:`patches`: every window's values added back to where they came from.

    ``p`` is (..., H', W', kh * kw * C); ``shape`` is the image's (H, W).
    """
    check_windows(p, size, stride, padding, shape)
    (kh, kw), (h, w) = size, shape
    (top, bottom), (left, right) = padding
    *lead, oh, ow, length = p.shape
    p = p.reshape(*lead, oh, ow, kh, kw, length // (kh * kw))
    out = np.zeros((*lead, h + top + bottom, w + left + right, p.shape[-1]), p.dtype)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i, i + stride * oh, stride)
            columns = slice(j, j + stride * ow, stride)
            out[..., rows, columns, :] += p[..., i, j, :]
    return np.ascontiguousarray(out[..., top : top + h, left : left + w, :])


def pool_positions(x: np.ndarray, size: Size, stride: int) -> np.ndarray:
    """Where each window's first maximum sits in the flattened ``x``: (..., H', W', C) integers."""
    window_counts(x.shape[-3:-1], size, stride, ((0, 0), (0, 0)))
    positions = np.arange(x.size, dtype=np.int64).reshape(x.shape)
    windows = sliding_window_view(x, size, axis=(-3, -2))[..., ::stride, ::stride, :, :, :]
    places = sliding_window_view(positions, size, axis=(-3, -2))[..., ::stride, ::stride, :, :, :]
    flat = (*windows.shape[:-2], math.prod(size))
    first = windows.reshape(flat).argmax(axis=-1)[..., None]
    return np.take_along_axis(places.reshape(flat), first, axis=-1)[..., 0]


def put(values: np.ndarray, positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros of ``shape`` with every value added at its flat position (repeats add up)."""
    out = np.zeros(shape, _exact(values.dtype))
    np.add.at(out.reshape(-1), positions.reshape(-1), values.reshape(-1))
    return out.astype(values.dtype)


def total(x: np.ndarray, axis: tuple[int, ...], keepdims: bool = False) -> np.ndarray:
    """The sum over the axes."""
    found = np.asarray(x.sum(axis=axis, keepdims=keepdims, dtype=_exact(x.dtype)))
    return found.astype(x.dtype) if x.dtype.kind == "f" else found


def _exact(dtype: np.dtype) -> np.dtype | None:
    """In which type numbers of a type are added up."""
    return np.dtype(np.float64) if dtype.kind == "f" else dtype if dtype.kind in "iu" else None


def erf(x: np.ndarray, complement: bool) -> np.ndarray:
    """The error function of every element, or 1 minus it."""
    function = np.vectorize(math.erfc if complement else math.erf, otypes=[np.float64])
    return function(x).astype(x.dtype if x.dtype.kind == "f" else np.float64)
