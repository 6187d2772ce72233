"""CUDA through CuPy: the kernels of :mod:`.reference` with the same names and signatures, and what
a compiled plan is run with (see compile/device.py).

Imported only when a CUDA device is asked for.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import DeviceError
from . import cublas
from .cuda_source import THREADS, Kernel, element, program
from .reference import Padding, Size, check_windows, window_counts

try:
    import cupy
except ImportError:  # the seam says so, where a device is asked for
    cupy = None

CODES = {np.dtype(name): code for name, code in (
    ("float32", "f4"), ("float64", "f8"), ("int64", "i8"), ("int32", "i4"), ("uint8", "u1"),
)}  # fmt: skip
MOST_BLOCKS = 65_535
TF32 = "CUPY_TF32"  # CuPy's own setting: products of float32 on tensor cores, in TensorFloat-32


# ---- kernels


def _launch(name: str, dtype: Any, count: int, *args: Any) -> None:
    """One thread for each of ``count`` elements, on the current stream."""
    if not count:
        return
    words = [np.int64(a) if isinstance(a, int) else a for a in args]
    code = CODES[np.dtype(dtype)]
    kernel = element(name, code, words, np.int64(count), most_blocks=MOST_BLOCKS)
    _function(kernel.text)(kernel.grid, (kernel.threads,), kernel.args)


@functools.cache
def _function(text: str) -> Callable[..., None]:
    """The compiled function of a kernel that is launched by itself."""
    return functions([Kernel(text, (1,), THREADS, ())])[0]


def _computed(x: Any) -> Any:
    """x in a type that there are kernels for, and that holds it."""
    if x.dtype in CODES:
        return x
    return x.astype(np.float32 if x.dtype.kind == "f" else np.int64)


def _images(x: Any) -> Any:
    return cupy.ascontiguousarray(x).reshape(math.prod(x.shape[:-3]), *x.shape[-3:])


def patches(x: Any, size: Size, stride: int, padding: Padding) -> Any:
    """Every window, flattened: (..., H, W, C) -> (..., H', W', kh * kw * C)."""
    oh, ow = window_counts(x.shape[-3:-1], size, stride, padding)
    images = _images(_computed(x))
    n, h, w, c = images.shape
    out = cupy.empty((*x.shape[:-3], oh, ow, math.prod(size) * c), images.dtype)
    at = padding[0][0], padding[1][0]
    _launch("patches", out.dtype, out.size, images, out, n, h, w, c, oh, ow, *size, stride, *at)
    return out.astype(x.dtype, copy=False)


def fold(p: Any, size: Size, stride: int, padding: Padding, shape: Size) -> Any:
    """The transpose of :func:`patches`: (..., H', W', kh * kw * C) -> (..., H, W, C)."""
    check_windows(p, size, stride, padding, shape)
    windows = _images(_computed(p))
    n, oh, ow, length = windows.shape
    c = length // math.prod(size)
    out = cupy.empty((*p.shape[:-3], *shape, c), windows.dtype)
    at = padding[0][0], padding[1][0]
    _launch("fold", out.dtype, out.size, windows, out, n, *shape, c, oh, ow, *size, stride, *at)
    return out.astype(p.dtype, copy=False)


def pool_positions(x: Any, size: Size, stride: int) -> Any:
    """Where each window's first maximum sits in the flattened ``x``: (..., H', W', C) integers."""
    oh, ow = window_counts(x.shape[-3:-1], size, stride, ((0, 0), (0, 0)))
    images = _images(_computed(x))
    n, h, w, c = images.shape
    out = cupy.empty((*x.shape[:-3], oh, ow, c), np.int64)
    sides = n, h, w, c, oh, ow, *size, stride
    _launch("pool_positions", images.dtype, out.size, images, out, *sides)
    return out


def put(values: Any, positions: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of ``shape`` with every value added at its flat position (repeats add up, in the order
    in which threads run; positions out of range are left out, since no error can come back from
    the device)."""
    if values.dtype not in (np.float32, np.float64):  # exact up to 2^53: no need for more
        return put(values.astype(np.float64), positions, shape).astype(values.dtype)
    out, flag = cupy.zeros(shape, values.dtype), cupy.zeros(1, np.int64)
    flat = cupy.ascontiguousarray(values).reshape(-1)
    places = cupy.ascontiguousarray(positions).reshape(-1).astype(np.int64, copy=False)
    _launch("put", values.dtype, flat.size, flat, places, out, flat.size, out.size, flag)
    return out


def erf(x: Any, complement: bool) -> Any:
    """The error function of every element, or 1 minus it."""
    special = importlib.import_module("cupyx.scipy.special")
    return (special.erfc if complement else special.erf)(x)


# ---- what a plan is run with


@functools.cache
def _module(text: str) -> Any:
    # A product and a sum rounded once here and twice there would make a maximum equal nothing.
    return cupy.RawModule(code=text, options=("-std=c++17", "--fmad=false"))


def functions(kernels: Sequence[Kernel]) -> list[Callable[..., None]]:
    """The compiled functions (grid, block, args) of kernels, in one module."""
    text, names = program(kernels)
    module = _module(text)
    found = {text: module.get_function(name) for text, name in names.items()}
    return [found[kernel.text] for kernel in kernels]


def products_type() -> str:
    """What products of float32 are taken in: "float32", or "TF32" where CUPY_TF32=1 asks for it."""
    return "TF32" if os.environ.get(TF32, "0") not in ("", "0") else "float32"


def described() -> str:
    """The current device, and all that its results depend on."""
    runtime = cupy.cuda.runtime
    card = runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    version = runtime.runtimeGetVersion()
    return (
        f"{card}, CUDA {version // 1000}.{version % 1000 // 10}, CuPy {cupy.__version__}, "
        f"products of float32 in {products_type()}"
    )


def product(code: str, words: Sequence[Any]) -> Callable[[], None]:
    """A batch of matrix products, c = a b + beta c, either factor transposed or not.

    Args:
        code: "f4" or "f8".
        words: batch, whether a is transposed, whether b is, the sides n, m, k, then the address,
            the leading side and the stride from one matrix to the next of a, b and c, then beta.

    Returns:
        What launches it on the current stream.
    """
    batch, ta, tb, n, m, k, a, lda, sa, b, ldb, sb, c, ldc, sc, beta = words
    number = np.float32 if code == "f4" else np.float64
    scalars = np.array([1, beta], number)  # read when the product is launched, or captured
    one, add = scalars.ctypes.data, scalars.ctypes.data + scalars.itemsize
    if code == "f8":
        kind, within = cublas.FLOAT64, cublas.COMPUTE_FLOAT64
    else:
        tf32 = products_type() == "TF32"
        kind, within = cublas.FLOAT32, cublas.COMPUTE_TF32 if tf32 else cublas.COMPUTE_FLOAT32

    def launch(_keep: Any = scalars) -> None:
        # cuBLAS counts columns first: it is asked for c' = b' a'.
        cublas.product(
            cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr, tb, ta, m, n, k, one,
            b, kind, ldb, sb, a, kind, lda, sa, add, c, kind, ldc, sc, batch, within,
        )  # fmt: skip

    return launch


def zeros_at(address: int, nbytes: int) -> Callable[[], None]:
    """What fills memory with zeros, on the current stream."""

    def launch() -> None:
        stream = cupy.cuda.get_current_stream().ptr
        cupy.cuda.runtime.memsetAsync(address, 0, nbytes, stream)

    return launch


def memory(nbytes: int, purpose: str) -> Any:
    """So much of the current device's memory, from CuPy's pool.

    Raises:
        DeviceError: there is not so much.
    """
    try:
        return cupy.empty(nbytes, np.uint8)
    except cupy.cuda.memory.OutOfMemoryError as error:
        free, total = cupy.cuda.runtime.memGetInfo()
        raise DeviceError(
            f"{purpose}: needs {nbytes / 1e9:.3g} GB of the device's memory, of which "
            f"{free / 1e9:.3g} of {total / 1e9:.3g} GB are free. Lower meta_batch_size or "
            "num_queries, or split the meta-batch by chunks."
        ) from error


def available_memory() -> int:
    """How many bytes of the current device are free; what CuPy's pool keeps comes on top."""
    return int(cupy.cuda.runtime.memGetInfo()[0])


def view(block: Any, offset: int, shape: Any, dtype: Any, strides: Any = None) -> Any:
    """An array in the memory of another, ``offset`` bytes on."""
    return cupy.ndarray(shape, dtype, memptr=block.data + offset, strides=strides)


def flag() -> np.ndarray:
    """One integer of the host's memory that kernels can write to as well, 0."""
    pinned = cupy.cuda.alloc_pinned_memory(8)
    found = np.frombuffer(pinned, np.int64, 1)
    found[0] = 0
    return found


def total(x: Any, axis: tuple[int, ...], keepdims: bool = False) -> Any:
    """The sum over the axes, which CuPy takes in parts."""
    return x.sum(axis=axis, keepdims=keepdims)


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """What run() launches, as one CUDA graph; calling it launches that on the current stream."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            run()
        finally:
            graph = stream.end_capture()
    launch: Callable[[], None] = graph.launch
    return launch
