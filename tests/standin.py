"""A CUDA device for a machine that has none: CuPy's interface over NumPy's memory, whose arrays
refuse to be NumPy's, and the very CUDA sources compiled as C++ and run thread by thread."""

import ctypes
import functools
import operator
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np

COMPILER = shutil.which("g++")
SHIM = """
struct Index { long long x; };
static Index blockIdx, threadIdx, blockDim, gridDim;
#define __global__
template <typename T> void atomicAdd(T *at, T value) { *at += value; }
extern "C" void place(long long block, long long thread, long long threads, long long blocks) {
    blockIdx.x = block; threadIdx.x = thread; blockDim.x = threads; gridDim.x = blocks;
}
"""


class Elsewhere:
    """A native array as another device's would be: it has its own namespace, and nothing but the
    backend turns it into one of NumPy's or back."""

    __array_ufunc__ = None
    device = types.SimpleNamespace(id=0)

    def __init__(self, held):
        self.held = np.asarray(held)

    def __array__(self, *args, **kwargs):
        raise TypeError("this array is elsewhere: only the backend may bring it here")

    def get(self):
        return self.held.copy()

    def __getattr__(self, name):
        found = getattr(self.held, name)
        return there(found) if callable(found) else found

    def __setitem__(self, index, x):
        self.held[here(index)] = here(x)


def here(x):
    if isinstance(x, tuple | list):
        return type(x)(map(here, x))
    return x.held if isinstance(x, Elsewhere) else x


def there(function):
    """A function of NumPy's that takes and gives what is elsewhere."""

    def moved(*args, **kwargs):
        assert not any(isinstance(x, np.ndarray) for x in args)
        out = function(*map(here, args), **kwargs)
        return Elsewhere(out) if isinstance(out, np.ndarray | np.generic) else out

    return moved


BOTH_SIDES = ["add", "sub", "mul", "truediv", "pow", "matmul"]
OTHERS = ["neg", "abs", "eq", "ne", "lt", "le", "gt", "ge", "getitem"]
for name in [*BOTH_SIDES, *OTHERS]:
    function = there(getattr(operator, name))
    setattr(Elsewhere, f"__{name}__", lambda *args, f=function: f(*args))
    if name in BOTH_SIDES:
        setattr(Elsewhere, f"__r{name}__", lambda a, b, f=function: f(b, a))


@functools.cache
def compiled(source: str) -> Any:
    """CUDA C as a library of this machine."""
    folder = Path(tempfile.mkdtemp(prefix="mamlnp-standin-"))
    (folder / "kernels.cpp").write_text(SHIM + source)
    library = folder / "kernels.so"
    command = [COMPILER, "-O1", "-fsanitize=undefined", "-fno-sanitize-recover", "-shared", "-fPIC"]
    subprocess.run([*command, folder / "kernels.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library))


class RawModule:
    """CuPy's, but that kernels run here: every thread of every block, one after the other."""

    def __init__(self, code):
        self.library = compiled(code)

    def get_function(self, name):
        kernel = getattr(self.library, name)

        def launch(grid, block, args):
            given = [
                ctypes.c_void_p(here(a).ctypes.data)
                if isinstance(a, Elsewhere)
                else ctypes.c_longlong(int(a))
                for a in args
            ]
            for b in range(grid[0]):
                for t in range(block[0]):
                    self.library.place(*map(ctypes.c_longlong, (b, t, block[0], grid[0])))
                    kernel(*given)

        return launch


class CuPy(types.ModuleType):
    """What of CuPy is used here."""

    ndarray = Elsewhere
    RawModule = RawModule
    cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=lambda: 1))

    @staticmethod
    def asarray(x):
        return x if isinstance(x, Elsewhere) else Elsewhere(np.array(x))

    def __getattr__(self, name):
        if name.startswith("__"):  # not of a module's own
            raise AttributeError(name)
        found = getattr(np, name)
        return found if isinstance(found, type) else there(found)


def installed(monkeypatch):
    """Put the stand-in in CuPy's place for the rest of a test."""
    from mamlnp import backend

    monkeypatch.setitem(sys.modules, "cupy", CuPy("cupy"))
    monkeypatch.delitem(sys.modules, "mamlnp.backend.cuda", raising=False)
    monkeypatch.setattr(backend, "namespaces", backend.namespaces)  # restored with what is in it
    monkeypatch.setitem(backend.namespaces, Elsewhere, sys.modules["cupy"])
