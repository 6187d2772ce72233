"""The seam between the library and the machine: the only folder that imports numba or cupy.

``namespace_of(x)`` is the module whose functions take ``x`` (NumPy today); ``kernels_of(x)`` is the
module with the few loops that no namespace has. Every kernel exists twice: in :mod:`.reference`,
written to be read, and in :mod:`.cpu`, written to be fast; tests hold one against the other.
"""

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from . import cpu, reference

namespaces: dict[type, Any] = {np.ndarray: np}
KERNELS = {"reference": reference, "cpu": cpu}
_kernels_for_numpy: ModuleType = cpu


def is_native(x: Any) -> bool:
    """Is ``x`` an array or scalar of some namespace (not an Array, not a Python number)?"""
    return isinstance(x, np.ndarray | np.generic)


def is_scalar(x: Any) -> bool:
    """Is the native ``x`` a namespace's scalar rather than an array?"""
    return isinstance(x, np.generic)


def namespace_of(x: Any) -> Any:
    """The module (NumPy's functions) that computes with the native array ``x``."""
    if x.__class__ in namespaces:
        return namespaces[x.__class__]
    raise TypeError(
        f"namespace_of: {type(x).__name__} is not an array. Convert it with array(...)."
    )


def kernels_of(x: Any) -> Any:
    """The module of kernels for the native array ``x``."""
    namespace_of(x)
    return _kernels_for_numpy


def default_namespace() -> Any:
    """The namespace that new arrays are made in when no input decides it."""
    return np


def to_host(x: Any) -> np.ndarray:
    """``x`` as a NumPy array, copied from its device only if it is on another one."""
    return np.asarray(x)


def to_device(x: Any) -> Any:
    """``x`` as a native array of the default device (the CPU)."""
    return np.asarray(x)


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
