"""A CUDA device for a machine that has none: CuPy's interface over NumPy's memory, whose arrays
refuse to be NumPy's, and the very CUDA sources compiled as C++ and run thread by thread."""

import contextlib
import ctypes
import functools
import importlib.util
import operator
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamlnp import backend
from mamlnp.backend import cublas, reference
from mamlnp.errors import DeviceError

COMPILER = shutil.which("g++")
SHIM = r"""
#include <cmath>
#include <cstring>
#include <ucontext.h>
#include <vector>
using namespace std;
struct Index { int x, y; };
static Index blockIdx, threadIdx, blockDim, gridDim;
#define __global__
#define __launch_bounds__(threads)
#define __device__ static
#define __shared__ static
template <typename T> void atomicAdd(T *at, T value) { *at += value; }
static double __longlong_as_double(long long bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}
"""
# The threads of a block are coroutines: each runs to the next barrier, then the next one does.
DRIVER = r"""
static ucontext_t caller;
static vector<ucontext_t> threads;
static vector<vector<char>> stacks;
static vector<bool> done;
static long long *given;
static void (*body)(long long *);
static int current;
static void entry() {
    body(given);
    done[current] = true;
}
void __syncthreads() { swapcontext(&threads[current], &caller); }
extern "C" void launch(void (*kernel)(long long *), long long *args, int waits, int x, int y,
                       int count) {
    body = kernel; given = args;
    gridDim = {x, y}; blockDim = {count, 1};
    for (int by = 0; by < y; by++)
        for (int bx = 0; bx < x; bx++) {
            blockIdx = {bx, by};
            if (!waits) {
                for (int t = 0; t < count; t++) { threadIdx = {t, 0}; kernel(args); }
                continue;
            }
            threads.resize(count); stacks.resize(count); done.assign(count, false);
            for (int t = 0; t < count; t++) {
                stacks[t].resize(1 << 16);
                getcontext(&threads[t]);
                threads[t].uc_stack.ss_sp = stacks[t].data();
                threads[t].uc_stack.ss_size = stacks[t].size();
                threads[t].uc_link = &caller;
                makecontext(&threads[t], entry, 0);
            }
            for (int running = count; running;) {
                running = 0;
                for (int t = 0; t < count; t++) {
                    if (done[t]) continue;
                    current = t; threadIdx = {t, 0};
                    swapcontext(&caller, &threads[t]);
                    running += !done[t];
                }
            }
        }
}
"""
SIGNATURE = re.compile(
    r'extern "C" __global__ __launch_bounds__\(\d+\) void (\w+)\((.*?)\)', re.DOTALL
)


class Pointer:
    """CuPy's MemoryPointer."""

    def __init__(self, owner, offset=0):
        self.owner, self.offset = owner, offset
        self.ptr = owner.ctypes.data + offset

    def __add__(self, offset):
        return Pointer(self.owner, self.offset + offset)


class Elsewhere:
    """A native array as another device's would be: it has its own namespace, and nothing but the
    backend turns it into one of NumPy's or back."""

    __array_ufunc__ = None
    device = types.SimpleNamespace(id=0)

    def __init__(self, held, dtype=None, memptr=None, strides=None):
        if memptr is None:
            self.held = np.asarray(held)
        else:
            self.held = np.ndarray(held, dtype, memptr.owner, memptr.offset, strides)

    @property
    def data(self):
        return Pointer(self.held)

    def __array__(self, *args, **kwargs):
        raise TypeError("this array is elsewhere: only the backend may bring it here")

    def get(self):
        return self.held.copy()

    def __getattr__(self, name):
        found = getattr(self.held, name)
        if callable(found):
            return there(found)
        return Elsewhere(found) if isinstance(found, np.ndarray) else found

    def __bool__(self):  # CuPy's asks the device
        return bool(self.held)

    def __str__(self):
        return str(self.held)

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
        out = function(*map(here, args), **{k: here(x) for k, x in kwargs.items()})
        if isinstance(out, tuple):
            return tuple(map(Elsewhere, out))
        return Elsewhere(out) if isinstance(out, np.ndarray | np.generic) else out

    return moved


BOTH_SIDES = ["add", "sub", "mul", "truediv", "pow", "matmul"]
OTHERS = ["neg", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge"]
for name in [*BOTH_SIDES, *OTHERS]:
    function = there(getattr(operator, name))
    setattr(Elsewhere, f"__{name}__", lambda *args, f=function: f(*args))
    if name in BOTH_SIDES:
        setattr(Elsewhere, f"__r{name}__", lambda a, b, f=function: f(b, a))


def chosen(x, index):
    """x[index], but that indices out of range count round, as CuPy's do."""
    if isinstance(index, np.ndarray) and index.dtype.kind in "iu" and x.ndim == 1 and x.size:
        return x.take(index, mode="wrap")
    return x[index]


Elsewhere.__getitem__ = there(chosen)


@functools.cache
def nvrtc() -> Any:
    """The compiler that CuPy uses, if it is installed; it needs no device."""
    if importlib.util.find_spec("nvidia") is None:
        return None
    folders = importlib.import_module("nvidia").__path__
    found = [lib for f in folders for lib in Path(f).glob("*/lib/libnvrtc.so.*")]
    return ctypes.CDLL(str(found[0])) if found else None


def nvidia_says(source: str) -> str:
    """What NVIDIA's compiler has to say of CUDA C; nothing if it is right."""
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    text = source.encode()
    assert not library.nvrtcCreateProgram(ctypes.byref(program), text, b"k.cu", 0, None, None)
    options = (ctypes.c_char_p * 2)(b"--gpu-architecture=compute_80", b"-std=c++17")
    failed = library.nvrtcCompileProgram(program, len(options), options)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() or ("failed" if failed else "")


@functools.cache
def compiled(source: str) -> Any:
    """CUDA C as a library of this machine: each kernel takes its arguments as 64-bit integers."""
    if nvrtc() is not None:
        said = nvidia_says(source)
        assert not said, said
    calls = []
    for name, parameters in SIGNATURE.findall(source):
        kinds = [p.rpartition("*")[0] + "*" if "*" in p else p.split()[0]
                 for p in parameters.split(",")]  # fmt: skip
        given = ", ".join(f"({kind.strip()})args[{i}]" for i, kind in enumerate(kinds))
        calls.append(f'extern "C" void {name}_packed(long long *args) {{ {name}({given}); }}\n')
    barrier = "void __syncthreads();\n"
    command = [COMPILER, "-O1", "-fsanitize=undefined", "-fno-sanitize-recover", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory(prefix="mamlnp-standin-") as folder:
        text, library = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        text.write_text(SHIM + barrier + source + DRIVER + "".join(calls))
        subprocess.run([*command, text, "-o", library], check=True)
        return ctypes.CDLL(str(library))  # which stays loaded when its file is gone


class Stream:
    """CuPy's: what is launched runs at once, but while one captures."""

    capturing: list[Any] | None = None
    ptr = 0

    def __init__(self, *, non_blocking):
        assert non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin_capture(self):
        Stream.capturing = []

    def end_capture(self):
        launches, Stream.capturing = Stream.capturing, None

        def launch():
            for run in launches:
                run()

        return types.SimpleNamespace(launch=launch)


def launched(run):
    """Run what goes to the device, or note it down for a graph."""
    if Stream.capturing is None:
        run()
    else:
        Stream.capturing.append(run)


class RawModule:
    """CuPy's, but that kernels run here: every thread of every block, one after the other."""

    def __init__(self, code, options=()):
        self.library = compiled(code)
        bodies = SIGNATURE.split(code)[1:]
        self.waits = {
            name: "__syncthreads" in rest
            for name, rest in zip(bodies[::3], bodies[2::3], strict=True)
        }

    def get_function(self, name):
        kernel = getattr(self.library, f"{name}_packed")

        def launch(grid, block, args):
            given = [a.data.ptr if isinstance(a, Elsewhere) else int(a) for a in args]
            assert all(isinstance(a, Elsewhere | np.int64) for a in args)
            assert min(*grid, *block) > 0 and block[0] <= 1024
            words = (ctypes.c_longlong * max(1, len(given)))(*given)
            x, y = (*grid, 1)[:2]
            waits = self.waits[name]
            launched(lambda: self.library.launch(kernel, words, waits, x, y, block[0]))

        return launch


def strided(address, dtype, shape, strides):
    """An array at a plain address; strides in elements."""
    kind = np.dtype(dtype)
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (reach * kind.itemsize)).from_address(address)
    bytes_ = tuple(s * kind.itemsize for s in strides)
    return np.ndarray(shape, kind, memory, 0, bytes_)


def gemm(device, stream, ta, tb, m, n, k, alpha, a, a_type, lda, sa, b, b_type, ldb, sb, beta,
         c, c_type, ldc, sc, batch, within):  # fmt: skip
    """cuBLAS's gemmStridedBatchedEx: matrices count columns first."""
    assert a_type == b_type == c_type and (a_type == 0) == (within == 68)
    dtype = [np.float32, np.float64][a_type]
    scalars = [float(strided(int(at), dtype, (1,), (1,))[0]) for at in (alpha, beta)]

    assert lda >= max(1, k if ta else m)
    assert ldb >= max(1, n if tb else k)
    assert ldc >= max(1, m)

    def matrices(at, rows, columns, leading, apart):
        return strided(int(at), dtype, (batch, rows, columns), (apart, 1, leading))

    def run():
        left = matrices(a, *((k, m) if ta else (m, k)), lda, sa)
        right = matrices(b, *((n, k) if tb else (k, n)), ldb, sb)
        left, right = (x.swapaxes(1, 2) if t else x for x, t in ((left, ta), (right, tb)))
        out = matrices(c, m, n, ldc, sc)
        out[...] = scalars[0] * (left @ right) + (scalars[1] * out if scalars[1] else 0)

    launched(run)


def memset(address, value, nbytes, stream):
    launched(lambda: ctypes.memset(int(address), value, nbytes))


class OutOfMemoryError(MemoryError):
    pass


RUNTIME = types.SimpleNamespace(
    getDeviceCount=lambda: 1, memGetInfo=lambda: (10**9, 2 * 10**9),
    getDeviceProperties=lambda _: {"name": b"a stand-in"}, memsetAsync=memset,
    runtimeGetVersion=lambda: 12040,
)  # fmt: skip


class CuPy(types.ModuleType):
    """What of CuPy is used here."""

    __version__ = "0"
    ndarray = Elsewhere
    RawModule = RawModule
    cuda = types.SimpleNamespace(
        runtime=RUNTIME,
        Device=lambda number=0: types.SimpleNamespace(id=0, use=lambda: None),
        Stream=Stream,
        get_current_stream=lambda: types.SimpleNamespace(ptr=0, synchronize=lambda: None),
        alloc_pinned_memory=bytearray,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )

    @staticmethod
    def asarray(x, dtype=None):
        if isinstance(x, Elsewhere):
            return x if dtype in (None, x.dtype) else x.astype(dtype)
        return Elsewhere(np.array(x, dtype))

    def __getattr__(self, name):
        if name.startswith("__"):  # not of a module's own
            raise AttributeError(name)
        found = getattr(np, name)
        if name == "linalg":
            return types.SimpleNamespace(**{n: there(getattr(found, n)) for n in LINALG})
        return found if isinstance(found, type) else there(found)


LINALG = ("cholesky", "eigh", "slogdet", "solve")
SPECIAL = types.SimpleNamespace(
    erf=there(functools.partial(reference.erf, complement=False)),
    erfc=there(functools.partial(reference.erf, complement=True)),
)


def installed(monkeypatch):
    """Put the stand-in in CuPy's place for the rest of a test."""
    monkeypatch.setitem(sys.modules, "cupy", CuPy("cupy"))
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", SPECIAL)
    monkeypatch.setattr(cublas, "product", gemm)
    monkeypatch.setattr(backend, "namespaces", backend.namespaces)  # restored with what is in it
    monkeypatch.setitem(backend.namespaces, Elsewhere, sys.modules["cupy"])
    for name in ("mamlnp.backend.cuda", "mamlnp.compile.device"):
        imported_anew(monkeypatch, name)


def imported_anew(monkeypatch, name):
    """Import a module another time, for the rest of a test: it may hold the real CuPy, or none."""
    package, _, leaf = name.rpartition(".")
    parent, before = sys.modules[package], sys.modules.pop(name, None)
    attribute = vars(parent).get(leaf)
    module = importlib.import_module(name)
    del sys.modules[name], vars(parent)[leaf]  # all as it was, which is what will be restored
    if before is not None:
        sys.modules[name] = before
    if attribute is not None:
        setattr(parent, leaf, attribute)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(parent, leaf, module, raising=False)


@functools.cache
def has_device():
    """Is there a CUDA device, and a CuPy to use it with?"""
    if importlib.util.find_spec("cupy") is None:
        return False
    try:
        with backend.using_device("cuda"):
            return True
    except DeviceError:
        return False


@contextlib.contextmanager
def device():
    """New arrays are made on a CUDA device: a real one if there is one, else the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        if not has_device():
            installed(patch)
        with backend.using_device("cuda"):
            yield
