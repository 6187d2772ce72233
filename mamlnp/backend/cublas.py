"""cuBLAS's batched product, called directly: CuPy refuses to while a graph is captured.

CuPy loads the library; here it is opened once more by its name, with a handle and a workspace of
our own, so that nothing is allocated meanwhile.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from typing import Any

from ..errors import DeviceError

WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for its newest cards
POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong

# cublasOperation_t is 0 or 1; cudaDataType_t and cublasComputeType_t of float32 and float64.
FLOAT32, FLOAT64 = 0, 1
COMPUTE_FLOAT32, COMPUTE_TF32, COMPUTE_FLOAT64 = 68, 77, 70
ANY_ALGORITHM = -1
ARGUMENTS: list[Any] = [
    POINTER, INT, INT, INT, INT, INT, POINTER, POINTER, INT, INT, LONG, POINTER, INT, INT, LONG,
    POINTER, POINTER, INT, INT, LONG, INT, INT, INT,
]  # fmt: skip


class _Library:
    """cuBLAS with a handle for one device.

    Raises:
        DeviceError: it cannot be loaded, or refuses.
    """

    def __init__(self, cupy: Any) -> None:
        cupy.cuda.cublas.getVersion  # noqa: B018 (which loads it, wherever it is installed)
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        name = f"cublas64_{major}.dll" if sys.platform == "win32" else f"libcublas.so.{major}"
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise DeviceError(
                f"cuda: cannot load {name} ({error}). Install it with CuPy."
            ) from error
        self._product: Any = self._library.cublasGemmStridedBatchedEx
        self._product.argtypes = ARGUMENTS
        self._handle = POINTER()
        self._checked(self._library.cublasCreate_v2(ctypes.byref(self._handle)))
        self._workspace = cupy.empty(WORKSPACE, "uint8")
        self._stream: int | None = None
        self._lock = threading.Lock()  # from saying the stream to launching on it

    def product(self, stream: int, *args: Any) -> None:
        with self._lock:
            self._launch(stream, *args)

    def _launch(self, stream: int, *args: Any) -> None:
        if stream != self._stream:  # which takes the workspace away again
            self._checked(self._library.cublasSetStream_v2(self._handle, POINTER(stream)))
            block = POINTER(self._workspace.data.ptr), ctypes.c_size_t(WORKSPACE)
            self._checked(self._library.cublasSetWorkspace_v2(self._handle, *block))
            self._stream = stream
        self._checked(self._product(self._handle, *args, ANY_ALGORITHM))

    def _checked(self, status: int) -> None:
        if status:
            raise DeviceError(f"cuda: cuBLAS says status {status}. See cublasStatus_t.")


@functools.cache
def _library(device: int) -> _Library:
    import cupy

    return _Library(cupy)


def product(device: int, stream: int, *args: Any) -> None:
    """cublasGemmStridedBatchedEx on a stream, of all its arguments from transa to computeType;
    matrices count columns first.

    Raises:
        DeviceError: it refuses.
    """
    _library(device).product(stream, *args)
