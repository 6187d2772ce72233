"""The seam between the library and the machine: the only folder that imports numba or cupy.

``namespace_of(x)`` is the module whose functions take ``x`` (NumPy, or CuPy on a CUDA device);
``kernels_of(x)`` is the module with the few loops that no namespace has. Every kernel is there
three times: in :mod:`.reference`, written to be read, and in :mod:`.cpu` and :mod:`.cuda`, written
to be fast; tests hold them against the first. Arrays decide what they are computed with, and
nothing moves from one device to another unless asked to.
"""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import DeviceError
from . import cpu, machine, reference

namespaces: dict[type, Any] = {np.ndarray: np}
KERNELS = {"reference": reference, "cpu": cpu}
DEVICES = ("cpu", "cuda")
_kernels_for_numpy: ModuleType = cpu
_device = "cpu"  # where new arrays are made
_card: int | None = None  # of several


def is_native(x: Any) -> bool:
    """Is ``x`` an array or scalar of some namespace (not an Array, not a Python number)?"""
    if x.__class__ not in namespaces and x.__class__.__module__.partition(".")[0] == "cupy":
        _cuda()  # which makes it known
    return isinstance(x, np.generic) or x.__class__ in namespaces or isinstance(x, np.ndarray)


def is_scalar(x: Any) -> bool:
    """Is the native ``x`` a namespace's scalar rather than an array?"""
    return isinstance(x, np.generic)


def plain(x: Any, *, copy: bool) -> Any:
    """The native ``x``, or a copy of it, as an array of its namespace and of no subclass, in the
    machine's byte order."""
    xp = namespaces.get(x.__class__, np)
    kind = x.dtype if x.dtype.isnative else x.dtype.newbyteorder("=")
    return xp.array(x, kind) if copy else xp.asarray(x, kind)


def namespace_of(x: Any) -> Any:
    """The module (NumPy's functions) that computes with the native array ``x``."""
    if x.__class__ in namespaces:
        return namespaces[x.__class__]
    raise TypeError(
        f"namespace_of: {type(x).__name__} is not an array. Convert it with array(...)."
    )


def kernels_of(x: Any) -> Any:
    """The module of kernels for the native array ``x``."""
    on_host = x.__class__ is np.ndarray or namespace_of(x) is np
    return _kernels_for_numpy if on_host else _cuda()


def default_namespace() -> Any:
    """The namespace that new arrays are made in when no input decides it."""
    return np if _device == "cpu" else _cuda().cupy


def default_device() -> str:
    """Where new arrays are made when no input decides it: "cpu", or "cuda:0"."""
    return "cpu" if _device == "cpu" else f"cuda:{_cuda().cupy.cuda.Device().id}"


def described() -> str:
    """The default device, for a reader of a log: "cpu", or a card and what computes on it."""
    return "cpu" if _device == "cpu" else str(_cuda().described())


def device_of(x: Any) -> str:
    """Where the native array ``x`` is: "cpu", or "cuda:0".

    >>> device_of(np.zeros(3))
    'cpu'
    """
    return "cpu" if namespace_of(x) is np else f"cuda:{x.device.id}"


def available_memory(x: Any = None) -> int:
    """How many bytes new arrays can have where the native ``x`` is, or where they are made."""
    here = default_namespace() if x is None else namespace_of(x)
    return machine.available_memory() if here is np else _cuda().available_memory()


def products_are_coarse(x: Any = None) -> bool:
    """Are float32 products taken in TF32 where the native ``x`` is, or where arrays are made?"""
    here = default_namespace() if x is None else namespace_of(x)
    return here is not np and _cuda().products_type() == "TF32"


def to_host(x: Any) -> np.ndarray:
    """``x`` as a NumPy array, copied from its device only if it is on another one."""
    if x.__class__ in namespaces and namespaces[x.__class__] is not np:
        on_device: Any = x
        return np.asarray(on_device.get())
    return np.asarray(x)


def to_device(x: Any, device: str | None = None) -> Any:
    """``x`` as a native array of a device.

    Args:
        x: a native array, or what NumPy makes one of.
        device: "cpu" or "cuda"; if not given the one new arrays are made on, which is the CPU but
            within :func:`using_device`.

    Raises:
        DeviceError: there is no such device.
    """
    wanted = _checked(_device if device is None else device)
    if wanted == "cpu":
        return to_host(x)
    return _cuda().cupy.asarray(x)


@contextlib.contextmanager
def using_device(name: str, card: int | None = None) -> Iterator[None]:
    """Make new arrays on a device, "cpu" or "cuda", within the body.

    Args:
        name: which kind.
        card: of several CUDA devices, the number of one, counted round if there are fewer; CuPy's
            current one if not given.

    Raises:
        DeviceError: there is no such device, or no CuPy to use it with.

    >>> with using_device("cpu"):
    ...     device_of(to_device([1.0, 2.0]))
    'cpu'
    """
    global _device
    global _card
    before, _device, _card = (_device, _card), _checked(name), card
    try:
        use_card()
        yield
    finally:
        _device, _card = before
        use_card()


def use_card() -> None:
    """Let this thread compute on the card of :func:`using_device`: CuPy asks each for its own."""
    if _device == "cuda" and _card is not None:
        found = _cuda().cupy
        found.cuda.Device(_card % found.cuda.runtime.getDeviceCount()).use()


def _checked(device: str) -> str:
    if device not in DEVICES:
        raise DeviceError(f"device: there is no {device!r}. Use one of: {', '.join(DEVICES)}.")
    if device == "cuda":
        _cuda()
    return device


def _cuda() -> Any:
    """The module of CUDA kernels, imported as it is first needed.

    Raises:
        DeviceError: CuPy is not installed, or finds no device.
    """
    found = importlib.import_module(f"{__name__}.cuda")
    if found.cupy is None:
        raise DeviceError(
            "cuda: needs CuPy, which is not installed. Run: pip install cupy-cuda12x for CUDA "
            "12, cupy-cuda13x for CUDA 13."
        )
    try:
        count = found.cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's own, of a driver that is not there
        raise DeviceError(
            f"cuda: CuPy finds no device ({error}). Check the driver with nvidia-smi."
        ) from error
    if not count:
        raise DeviceError("cuda: CuPy finds no device. Check the driver with nvidia-smi.")
    namespaces.setdefault(found.cupy.ndarray, found.cupy)
    return found


@contextlib.contextmanager
def using_kernels(name: str) -> Iterator[None]:
    """Run the body on the named kernels, ``"reference"`` or ``"cpu"``.

    >>> with using_kernels("reference"):
    ...     kernels_of(np.zeros(3)).__name__
    'mamlnp.backend.reference'
    """
    global _kernels_for_numpy
    before, _kernels_for_numpy = _kernels_for_numpy, KERNELS[name]
    try:
        yield
    finally:
        _kernels_for_numpy = before
