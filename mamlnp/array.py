"""Array: a value and how it was made.

An Array is its own tape entry. It links to the Arrays it was made from and to nothing else, so
there are no cycles, no global tape, and memory goes as soon as the last reference does.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import backend
from .errors import DeviceError, DtypeError, ShapeError, TapeError, UnavailableError, users_line

NOTHING: dict[str, Any] = {}

# What NumPy calls -> what answers here; filled by the ops as they register (see op.py), and used
# in numpy_names.py, which says how NumPy's functions and methods take Arrays.
numpy_names: dict[str, Callable[..., Any]] = {}


class Array:
    """An immutable array that knows how it was made.

    Make one with :func:`array`, which copies: ``Array(value)`` takes the memory of a native array
    over, and nothing may write into it from then on. Python's operators, NumPy's functions and
    indexing work on it and are differentiable; ``numpy()`` (or ``np.asarray``) gives its value as a
    read-only view.

    Attributes:
        value: the native array (NumPy's on the CPU).
        op: the operation that made it, or None for a constant.
        inputs: that operation's arguments, Arrays and Python numbers.
        params: that operation's static parameters.
        serial: 0 for a constant; else a number larger than that of every input, so that sorting by
            it orders a tape.
    """

    __slots__ = ("__weakref__", "inputs", "op", "params", "serial", "value")

    def __init__(
        self,
        value: Any,
        op: Any = None,
        inputs: tuple[Any, ...] = (),
        params: dict[str, Any] = NOTHING,
        serial: int = 0,
    ) -> None:
        self.value = value
        self.op = op
        self.inputs = inputs
        self.params = params
        self.serial = serial

    def forget(self) -> None:
        """Become a constant: drop the record of how this was made."""
        self.op, self.inputs, self.params, self.serial = None, (), NOTHING, 0

    def constant(self) -> "Array":
        """The same value, without derivatives."""
        value = self.value
        return Array(value.constant() if hasattr(value, "constant") else value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.value.dtype

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def device(self) -> str:
        """Where it is: "cpu", or "cuda:0"."""
        return backend.device_of(self.value)

    @property
    def T(self) -> "Array":  # noqa: N802 (NumPy's name)
        return self.transpose()

    @property
    def mT(self) -> "Array":  # noqa: N802 (NumPy's name)
        return self.swapaxes(-1, -2)

    @property
    def real(self) -> "Array":
        return self

    def copy(self) -> "Array":
        return self  # is immutable

    def __setitem__(self, index: Any, x: Any) -> NoReturn:
        raise UnavailableError(
            "x[...] = y: an Array takes no item assignment, since it never changes. "
            "Build a new one with numpy.where, numpy.concatenate or numpy.stack."
        )

    def __hash__(self) -> int:
        raise UnavailableError("hash: an Array is unhashable. Use id(x), or a name of your own.")

    if TYPE_CHECKING:  # the ops attach these to the class as they register

        def __add__(self, other: Any) -> "Array": ...
        def __radd__(self, other: Any) -> "Array": ...
        def __sub__(self, other: Any) -> "Array": ...
        def __rsub__(self, other: Any) -> "Array": ...
        def __mul__(self, other: Any) -> "Array": ...
        def __rmul__(self, other: Any) -> "Array": ...
        def __truediv__(self, other: Any) -> "Array": ...
        def __rtruediv__(self, other: Any) -> "Array": ...
        def __pow__(self, other: Any) -> "Array": ...
        def __rpow__(self, other: Any) -> "Array": ...
        def __matmul__(self, other: Any) -> "Array": ...
        def __rmatmul__(self, other: Any) -> "Array": ...
        def __lt__(self, other: Any) -> "Array": ...
        def __le__(self, other: Any) -> "Array": ...
        def __gt__(self, other: Any) -> "Array": ...
        def __ge__(self, other: Any) -> "Array": ...
        def __getitem__(self, other: Any) -> "Array": ...
        def __neg__(self) -> "Array": ...
        def __abs__(self) -> "Array": ...
        def sum(self, *args: Any, **kwargs: Any) -> "Array": ...
        def mean(self, *args: Any, **kwargs: Any) -> "Array": ...
        def max(self, *args: Any, **kwargs: Any) -> "Array": ...
        def min(self, *args: Any, **kwargs: Any) -> "Array": ...
        def var(self, *args: Any, **kwargs: Any) -> "Array": ...
        def reshape(self, *args: Any, **kwargs: Any) -> "Array": ...
        def transpose(self, *args: Any, **kwargs: Any) -> "Array": ...
        def swapaxes(self, *args: Any, **kwargs: Any) -> "Array": ...
        def squeeze(self, *args: Any, **kwargs: Any) -> "Array": ...
        def ravel(self, *args: Any, **kwargs: Any) -> "Array": ...
        def astype(self, *args: Any, **kwargs: Any) -> "Array": ...
        def clip(self, *args: Any, **kwargs: Any) -> "Array": ...
        def argmax(self, *args: Any, **kwargs: Any) -> "Array": ...
        def argmin(self, *args: Any, **kwargs: Any) -> "Array": ...

    def _read(self, as_what: str) -> np.ndarray:
        """The value on the host, which leaves the tape: every door out of it is a call of this.

        Raises:
            TapeError: the Array is being differentiated.
            CaptureError: the value is not known while compile() traces.
        """
        if self.serial and self.value.__class__ in backend.namespaces:
            raise TapeError(leaves_the_tape(f"{as_what} was asked of"))
        return backend.to_host(self.value)

    def numpy(self) -> np.ndarray:
        """The value as a NumPy array: a read-only view, or a copy from another device.

        Raises:
            TapeError: the Array is being differentiated; ``stop_gradient(x).numpy()`` reads it.
        """
        view = self._read("a NumPy array").view()
        view.flags.writeable = False
        return view

    def item(self) -> float | int | bool:
        """The only element as a Python number.

        Raises:
            TapeError: the Array is being differentiated; ``stop_gradient(x).item()`` reads it.
            ValueError: there is more than one element, or none.
        """
        return self._read("a number").item()

    def tolist(self) -> Any:
        """The elements as Python numbers, in nested lists.

        Raises:
            TapeError: the Array is being differentiated; ``stop_gradient(x).tolist()`` reads it.
        """
        return self._read("a list of numbers").tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        return self._read("an index").__index__()

    def __copy__(self) -> "Array":
        return self  # is immutable

    def __deepcopy__(self, memo: Any) -> "Array":
        return self

    def __reduce__(self) -> Any:
        self._read("a pickle")
        return Array, (self.value,)

    def __bool__(self) -> bool:
        value = backend.to_host(self.value)
        if value.size != 1:
            raise ShapeError(
                f"bool: an Array of shape {self.shape} has no truth value. Use x.any() or x.all()."
            )
        return bool(value)

    def __format__(self, spec: str) -> str:
        one = self.size == 1 and spec
        return format(backend.to_host(self.value).item() if one else str(self), spec)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len: the Array has no axes. Only an Array with an axis has a length.")
        return self.shape[0]

    def __iter__(self) -> Iterator["Array"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        if not hasattr(self.value, "__array_interface__"):  # is only traced, or elsewhere
            return f"Array({self.value!r})"
        return repr(backend.to_host(self.value)).replace("array(", "Array(", 1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not self.serial and backend.namespaces.get(self.value.__class__, np) is not np:
            raise DeviceError(
                f"asarray: this Array is on {self.device}, and NumPy would copy it unasked. Use "
                "mamlnp's functions on it, or x.numpy() to copy it."
            )
        return np.array(self.numpy(), dtype=dtype, copy=copy)


def leaves_the_tape(what: str) -> str:
    """What to say where what is being differentiated would become plain numbers."""
    return (
        f"{users_line()}: {what} an Array that is being differentiated, and its derivative would "
        "be lost. Compute with Arrays (stack and where build new ones), or take "
        "ml.stop_gradient(x) first to read it as a constant."
    )


def array(x: Any, dtype: Any = None, *, device: str | None = None) -> Array:
    """An Array from anything NumPy takes: a copy, so later changes of ``x`` do not reach it.

    Args:
        x: numbers, lists of them, an array of NumPy's or CuPy's, an Array.
        dtype: of the elements; as NumPy decides if not given.
        device: "cpu" or "cuda"; if not given the one that ``using_device`` says, else the CPU. What
            is on a device already stays there if none is given.

    Raises:
        DtypeError: these are not real numbers.
        DeviceError: there is no such device.
        TapeError: x is an Array that is being differentiated.

    >>> array([1.0, 2.0]) * 3
    Array([3., 6.])
    """
    native = x.value if isinstance(x, Array) and not x.serial else x
    if backend.is_native(native) and backend.namespaces.get(native.__class__, np) is not np:
        value = native.astype(native.dtype if dtype is None else dtype, copy=True)
        return Array(value if device is None else backend.to_device(value, device))
    value = np.array(x, dtype=dtype)
    value = value.astype(value.dtype.newbyteorder("="), copy=False)
    if value.dtype.kind not in "fiub":
        raise DtypeError(
            f"array: {value.dtype} is not a type of real numbers. "
            "Pass floats, integers or booleans."
        )
    return Array(backend.to_device(value, device))
