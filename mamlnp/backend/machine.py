"""The machine: its cores, NumPy's matrix product library, and how memory is given out."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np  # noqa: F401 (loads the library that is looked for)
from threadpoolctl import ThreadpoolController

# OpenBLAS's names for kernels with AVX-512; it takes lesser ones on some processors that have it.
WIDE_KERNELS = ("SkylakeX", "Cooperlake", "Sapphirerapids")
WIDE_NEEDS = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
CORETYPE = "OPENBLAS_CORETYPE"


class Blas(NamedTuple):
    """Attributes:
    version: its name and version; None if NumPy's library could not be told.
    architecture: the processor whose kernels it chose.
    threads: how many it uses now.
    functions: the address of cblas_?gemm by element type; none if they could not be found.
    wide: whether its integers have 64 bits.
    """

    version: str | None
    architecture: str | None
    threads: int | None
    functions: dict[str, int]
    wide: bool


NAMES = (  # of NumPy's wheels, then of others
    ("scipy_cblas_{}gemm64_", True),
    ("cblas_{}gemm64_", True),
    ("scipy_cblas_{}gemm", False),
    ("cblas_{}gemm", False),
)


def affinity() -> set[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cores() -> int:
    """How many cores this process may use."""
    return len(affinity())


def available_memory() -> int:
    """How many bytes new arrays can have without others being moved to the disk."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def _controller() -> ThreadpoolController:
    """What sets the threads of the libraries loaded so far; those NumPy brings among them."""
    return ThreadpoolController()


def _numpys() -> Any:
    """threadpoolctl's view of the library NumPy uses; others may have come with other packages."""
    found = [lib for lib in _controller().lib_controllers if lib.user_api == "blas"]
    return min(found, key=lambda lib: "numpy" not in lib.filepath, default=None)


@functools.cache
def _functions(path: str) -> tuple[dict[str, int], bool]:
    library = ctypes.CDLL(path)
    for name, wide in NAMES:
        if hasattr(library, name.format("s")):
            at = {
                code: ctypes.cast(getattr(library, name.format(letter)), ctypes.c_void_p).value or 0
                for code, letter in (("f4", "s"), ("f8", "d"))
            }
            return at, wide
    return {}, False


def blas() -> Blas:
    """The library NumPy takes its products from."""
    library = _numpys()
    if library is None:
        return Blas(None, None, None, {}, False)
    found = library.info()
    return Blas(
        f"{found['internal_api']} {found['version']}",
        found.get("architecture"),
        found["num_threads"],
        *_functions(library.filepath),
    )


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """NumPy's products on one thread while it lasts: the caller has threads of its own."""
    library = _numpys()
    if library is None or library.get_num_threads() == 1:
        yield
    else:
        with _controller().limit(limits=1, user_api="blas"):
            yield


def better_kernels() -> str | None:
    """What OPENBLAS_CORETYPE should say: set by nobody, OpenBLAS chose less than there is."""
    cpuinfo = Path("/proc/cpuinfo")
    if CORETYPE in os.environ or not cpuinfo.exists():
        return None
    found = blas()
    if not (found.version or "").startswith("openblas") or found.architecture in WIDE_KERNELS:
        return None
    has = set(cpuinfo.read_text(encoding="utf-8").split()) >= WIDE_NEEDS
    return WIDE_KERNELS[0] if has else None


def restart_with_better_kernels() -> None:
    """Run this very command line again with OPENBLAS_CORETYPE set, where that is worth it: OpenBLAS
    reads it only as NumPy is imported, which has happened by now. For programs, not for libraries.
    """
    better = better_kernels()
    if better is not None:
        environment = {**os.environ, CORETYPE: better}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


@functools.cache
def advise() -> None:
    """Say once what a library must not do for its user."""
    better = better_kernels()
    if better is not None:
        warnings.warn(
            f"mamlnp: NumPy's OpenBLAS uses kernels for {blas().architecture} on a processor with "
            f"AVX-512. Products are up to twice as fast with {CORETYPE}={better}, set before "
            "Python starts.",
            stacklevel=3,
        )


def keep_memory() -> bool:
    """Let the C library keep freed memory for the next arrays, instead of giving it back.

    A meta-step frees and allocates the same large arrays again and again; fresh pages for each cost
    more than half of its time where it is not compiled. For programs of our own: a library has no
    business deciding it. Returns whether the C library could be told (glibc only).
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    trim_threshold, mmap_max, largest = -1, -4, 2**31 - 1
    return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, largest))
