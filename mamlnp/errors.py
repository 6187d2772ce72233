"""Every error the library raises on purpose: ``<where>: <what is wrong>. <what to do>.``

Each one also is the built-in error a NumPy user would expect to catch.
"""

from typing import Any

import numpy as np


class ShapeError(ValueError):
    """Shapes do not fit together."""


class DtypeError(ValueError, TypeError):
    """Element types do not fit together, or are of a kind that cannot be differentiated."""


class MissingRuleError(NotImplementedError):
    """A derivative was asked for that no rule gives."""


class CaptureError(RuntimeError):
    """A function does something that cannot be traced and replayed."""


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
    """A derivative does not equal its finite difference.

    Attributes:
        report: all that was compared until then, a :class:`mamlnp.gradcheck.Report`, if anything.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
