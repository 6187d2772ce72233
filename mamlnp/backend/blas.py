"""NumPy's own matrix product library: which it is, and where its functions are."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np  # noqa: F401 (loads the library that is looked for)
from threadpoolctl import ThreadpoolController


class Blas(NamedTuple):
    """Attributes:
    version: its name and version.
    architecture: the processor whose kernels it chose.
    functions: the address of cblas_?gemm by element type; none if they could not be found.
    wide: whether its integers have 64 bits.
    """

    version: str
    architecture: str
    functions: dict[str, int]
    wide: bool


NAMES = (  # of NumPy's wheels, then of others
    ("scipy_cblas_{}gemm64_", True),
    ("cblas_{}gemm64_", True),
    ("scipy_cblas_{}gemm", False),
    ("cblas_{}gemm", False),
)


@functools.cache
def controller() -> ThreadpoolController:
    """What sets the number of threads of every library that NumPy has loaded."""
    return ThreadpoolController()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Products on one thread, for as long as it lasts: who calls it has his own threads."""
    if threads() == 1:
        yield
    else:
        with controller().limit(limits=1, user_api="blas"):
            yield


def threads() -> int:
    """How many threads NumPy's products use now."""
    found = _numpys()
    return found.get_num_threads() if found else 1


def _numpys() -> Any:
    """threadpoolctl's view of the library NumPy uses."""
    found = [lib for lib in controller().lib_controllers if lib.user_api == "blas"]
    return next((lib for lib in found if "numpy" in lib.filepath), found[0] if found else None)


@functools.cache
def blas() -> Blas:
    """The library NumPy takes its products from."""
    library = _numpys()
    if library is None:
        return Blas("unknown", "unknown", {}, False)
    info = library.info()
    version = f"{info['internal_api']} {info['version'] or ''}".strip()
    architecture = info.get("architecture") or "unknown"
    loaded = ctypes.CDLL(library.filepath)
    for name, wide in NAMES:
        if hasattr(loaded, name.format("s")):
            functions = {
                code: ctypes.cast(getattr(loaded, name.format(letter)), ctypes.c_void_p).value or 0
                for code, letter in (("f4", "s"), ("f8", "d"))
            }
            return Blas(version, architecture, functions, wide)
    return Blas(version, architecture, {}, False)
