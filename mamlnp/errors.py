"""Every error the library raises on purpose: ``<where>: <what is wrong>. <what to do>.``

Each one also is the built-in error a NumPy user would expect to catch.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = f"{Path(__file__).parent}{os.sep}"
NUMPY, SCIPY = (
    f"{Path(np.__file__).parent.with_name(name)}{os.sep}" for name in ("numpy", "scipy")
)


def users_line() -> str:
    """The innermost line under way that is neither ours nor NumPy's nor SciPy's: ``file:line``."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((PACKAGE, NUMPY, SCIPY)):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class ShapeError(ValueError):
    """Shapes do not fit together."""


class DtypeError(ValueError, TypeError):
    """Element types do not fit together, or are of a kind that cannot be differentiated."""


class MissingRuleError(NotImplementedError):
    """A derivative was asked for that no rule gives."""


class TapeError(TypeError):
    """What is being differentiated was asked to be a number or a plain array."""


class UnavailableError(TypeError, AttributeError):
    """NumPy's arrays and functions have it, Arrays have not."""


class CaptureError(RuntimeError):
    """A function does something that cannot be traced and replayed."""


class CompileError(RuntimeError):
    """A compiled plan does not compute what its function does: a fault of the compiler's."""


class DeviceError(RuntimeError):
    """Arrays of different devices met, or a device is not there."""


class DataError(ValueError):
    """A file or folder is missing, damaged or not in the expected layout."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # what other libraries say may have lines


class MissingPackageError(ImportError, ValueError):
    """An optional package is not installed."""


def check_rng(where: str, rng: Any) -> None:
    """Refuse what cannot be drawn from.

    Raises:
        TypeError: it is no generator of NumPy's.
    """
    if not isinstance(rng, np.random.Generator):
        seed = rng if isinstance(rng, int) else 0
        raise TypeError(
            f"{where}: rng is {rng!r:.80}, not a generator. Pass numpy.random.default_rng({seed})."
        )


class NonFiniteError(FloatingPointError):
    """An op made NaN or infinity of finite numbers.

    Attributes:
        where: the index of the first such element in the op's result.
    """

    def __init__(self, message: str, where: tuple[int, ...]) -> None:
        super().__init__(message)
        self.where = where


class GradientError(AssertionError):
    """A derivative does not equal its finite differences, or they cannot be had.

    Attributes:
        report: all that was compared, a :class:`mamlnp.gradcheck.Report`.
        verdict: "wrong", "kink", "does not settle" or "not deterministic".
    """

    def __init__(self, message: str, report: Any = None, verdict: str = "wrong") -> None:
        super().__init__(message)
        self.report = report
        self.verdict = verdict
