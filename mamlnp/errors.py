"""Every error the library raises on purpose: ``<where>: <what is wrong>. <what to do>.``

Each one also is the built-in error a NumPy user would expect to catch.
"""

from typing import Any


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
