"""@op: one declaration makes an operation, with its derivative rules and its own test inputs.

::

    @op(draw=two(), shapes="(..., n, k), (..., k, m)", linear_in=("a", "b"))
    def matmul(xp, a, b):
        return xp.matmul(a, b)

    @matmul.vjp("a")
    def _(ct, out, a, b):
        return sum_to(matmul(ct, swapaxes(b, -1, -2)), a.shape)

Arrays are positional and are data; parameters are keyword-only and are static. A rule is written in
the library's own ops, which is why derivatives of every order exist.
"""

import contextlib
import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from . import backend
from .array import NOTHING, Array, numpy_names
from .backend import namespaces
from .draws import Drawer, Tails
from .errors import DeviceError, DtypeError, MissingRuleError, NonFiniteError, ShapeError

registry: dict[str, "Op"] = {}

serials = itertools.count(1)


class _Recording(threading.local):
    """Are results of this thread linked to their inputs? Off where no function is being
    differentiated, and while a pullback runs whose result nobody differentiates; on in a thread
    that such a function may have started. What op without a derivative came last to what is being
    differentiated? And are results held to be finite?"""

    finite = False

    def __init__(self) -> None:
        self.on = threading.current_thread() is not threading.main_thread()
        self.lost = ""


recording = _Recording()
OF_SHAPES = {"ones_like", "zeros_like", "numbering"}  # whose results depend on no element


class Op:
    """One differentiable operation; calling it computes and, where needed, records.

    Attributes:
        name: the function's name.
        arguments: the names of the positional arguments, which are arrays.
        variadic: whether there is one argument that stands for any number of arrays.
        data: the positions of arguments that are never differentiated (indices, conditions).
        differentiable: False where the result is a constant (comparisons, argmax).
        rules: by argument position, ``rule(ct, out, *inputs, **params)``; a variadic op's one rule
            gives the cotangents of all its inputs.
        draw: how to draw test inputs.
        linear_in: the arguments in which the op is linear: the tests hold equation 2.3 of the docs
            for them.
        pattern: for a piecewise op, which piece each element is on, from the native arrays.
        tails: what its derivatives are held against far out. Every differentiable op has it but
            those that are linear in each argument or piecewise; a text says why another has not.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        *,
        draw: Drawer,
        shapes: str = "",
        data: tuple[str, ...] = (),
        differentiable: bool = True,
        linear_in: tuple[str, ...] = (),
        pattern: Callable[..., Any] | None = None,
        tails: Tails | str = "",
    ) -> None:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        positional = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.forward = forward
        self.name = forward.__name__.lstrip("_")
        self.__name__ = self.name
        self.__doc__ = forward.__doc__
        self.__module__ = forward.__module__
        self.arguments = tuple(p.name for p in positional)
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in positional)
        self.differentiable = differentiable
        self.rules: dict[int, Callable[..., Any]] = {}
        self.draw = draw
        self.shapes = shapes
        self.linear_in = linear_in
        self.pattern = pattern
        self.tails = tails
        self.bind: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] | None = None
        self.__signature__ = inspect.Signature(parameters)
        self.data = {i for i, name in enumerate(self.arguments) if name in data}

    def vjp(self, argument: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare the rule for one argument: its cotangent from the result's."""

        def register(rule: Callable[..., Any]) -> Callable[..., Any]:
            self.rules[self.arguments.index(argument)] = rule
            return rule

        return register

    def signature(self, bind: Callable[..., Any]) -> "Op":
        """Declare how users call it (as in NumPy): the call's arguments -> (arrays, params)."""
        bind.__qualname__ = self.name  # which Python's own messages begin with
        self.bind = bind
        self.__signature__ = inspect.signature(bind)
        return self

    def check(self) -> None:
        """What a declaration must have.

        Raises:
            MissingRuleError: a docstring or an argument's rule is missing.
        """
        if not self.__doc__:
            raise MissingRuleError(f"{self.name}: has no docstring. Say what it computes.")
        if self.differentiable:
            for i, name in enumerate(self.arguments):
                if i not in self.data and i not in self.rules:
                    raise MissingRuleError(
                        f"{self.name}: has no rule for {name}. Declare it with "
                        f'@{self.name}.vjp("{name}"), or list it in data=.'
                    )

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __call__(self, *args: Any, **params: Any) -> Array:
        if self.bind is not None:
            args, params = self.bind(*args, **params)
        return self.apply(args, params)

    def apply(self, args: tuple[Any, ...], params: dict[str, Any]) -> Array:
        """The op on bound arguments: compute, and link the result to its inputs if any of them is
        being differentiated."""
        values = []
        native: Any = None
        tracked = mixed = False
        for arg in args:
            kind = arg.__class__
            if kind is Array:
                value = arg.value
                values.append(value)
                if arg.serial:
                    tracked = True
                if native is None:
                    native = value
                elif value.dtype is not native.dtype or value.__class__ is not native.__class__:
                    mixed = True
            elif kind is float or kind is int or kind is bool:
                values.append(arg)
            else:
                return self.apply(tuple(map(_lift, args)), params)
        if mixed:
            values = self._unified(args, values)
            native = max(filter(_stands_for_one, values), key=_level, default=native)
        xp = backend.default_namespace() if native is None else namespaces.get(native.__class__)
        try:
            if xp is None:  # not an array but what stands for one, and records what is done to it
                value = native.apply(self, args, values, params)
            else:
                value = self.forward(xp, *values, **params)
        except (ShapeError, DeviceError):
            raise
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise self._explained(error, args, params) from error
        if xp is not None and value.__class__ is not native.__class__:
            value = xp.asarray(value)
        if recording.finite and xp is not None:
            self._check_finite(xp, value, values, args)
        if tracked and recording.on:
            if self.differentiable:
                return Array(value, self, args, params or NOTHING, next(serials))
            if self.name not in OF_SHAPES:
                recording.lost = self.name
        return Array(value)

    def _check_finite(self, xp: Any, value: Any, values: list[Any], args: tuple[Any, ...]) -> None:
        def finite(x: Any) -> bool:
            whole = not hasattr(x, "dtype") or x.dtype.kind != "f"
            return whole or bool(xp.isfinite(x).all())

        if finite(value) or not all(map(finite, values)):
            return
        wrong = backend.to_host(~xp.isfinite(value))
        where = tuple(int(axis[0]) for axis in wrong.nonzero())
        found = backend.to_host(value)[where]
        raise NonFiniteError(
            f"{self.name}: {self._described(args)} are finite, but the result is {found} at "
            f"{list(where)}.",
            where,
        )

    def _unified(self, args: tuple[Any, ...], values: list[Any]) -> list[Any]:
        """Integers take the float operands' type; two float types, or two devices, are an error."""
        where = {backend.device_of(v) for v in values if v.__class__ in namespaces}
        if len(where) > 1:
            raise DeviceError(
                f"{self.name}: {self._described(args)} are on {' and '.join(sorted(where))}. "
                "Make arrays like others with zeros_like and ones_like, and move what comes from "
                "elsewhere once, with to_device."
            )
        kinds = {
            v.dtype
            for i, v in enumerate(values)
            if i not in self.data and hasattr(v, "dtype") and v.dtype.kind == "f"
        }
        if len(kinds) > 1:
            raise DtypeError(
                f"{self.name}: {self._described(args)} mix float types. "
                "Convert one of them with astype before any gradient is taken."
            )
        for dtype in kinds:
            values = [
                v.astype(dtype)
                if i not in self.data and hasattr(v, "dtype") and v.dtype != dtype
                else v
                for i, v in enumerate(values)
            ]
        return values

    def _described(self, args: tuple[Any, ...]) -> str:
        names = [f"{self.arguments[-1]}[{i}]" for i in range(len(args))]
        return ", ".join(
            f"{name} {describe(arg)}"
            for name, arg in zip(names if self.variadic else self.arguments, args, strict=False)
        )

    def _explained(self, error: Exception, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        shown = self._described(args)
        with_params = (
            f" with {', '.join(f'{k}={v!r}' for k, v in params.items())}" if params else ""
        )
        advice = f"Pass shapes {self.shapes}." if self.shapes else "See its docstring."
        kind = DtypeError if isinstance(error, TypeError | OverflowError) else ShapeError
        return kind(f"{self.name}: {shown}{with_params} do not fit ({error}). {advice}")


@contextlib.contextmanager
def debug_nans() -> Iterator[None]:
    """Stop at the first op of this thread that makes NaN or infinity of finite numbers.

    What is compiled is run without being checked: leave ``compile`` out, or use ``--eager``.

    Raises:
        NonFiniteError: naming the op, its arguments and the place.

    >>> import numpy as np
    >>> from mamlnp import array, log
    >>> with debug_nans(), np.errstate(all="ignore"):
    ...     log(array([1.0, 0.0]))
    Traceback (most recent call last):
        ...
    mamlnp.errors.NonFiniteError: log: x float64[2] are finite, but the result is -inf at [1].
    """
    before, recording.finite = recording.finite, True
    try:
        yield
    finally:
        recording.finite = before


def op(
    *,
    operator: str | None = None,
    method: str | None = None,
    numpy: tuple[str, ...] = (),
    **declaration: Any,
) -> Callable[[Callable[..., Any]], Op]:
    """Register an operation.

    Args:
        operator: Python's operator it answers ("add" makes ``+``, on either side).
        method: the Array method it becomes.
        numpy: NumPy's names for it, where they differ from its own.
        declaration: see :class:`Op`.

    Raises:
        ValueError: another op has this name already, or something else answers the same operator,
            method or name of NumPy's.
    """

    def register(forward: Callable[..., Any]) -> Op:
        made = Op(forward, **declaration)
        _claim(f"op {made.name}", made, registry.get(made.name))
        names = numpy if forward.__name__.startswith("_") else (made.name, *numpy)
        answers(operator=operator, method=method, numpy=names)(made)
        registry[made.name] = made
        return made

    return register


def answers(
    *, operator: str | None = None, method: str | None = None, numpy: tuple[str, ...] = ()
) -> Callable[[Any], Any]:
    """Let a function of Arrays answer a Python operator, a method's name, or NumPy's names.

    Raises:
        ValueError: something else answers to one of them.
    """

    def attach(function: Any) -> Any:
        def become(name: str, called: Callable[..., Any]) -> None:
            _claim(f"Array.{name}", function, vars(Array).get(name))
            called.__wrapped__ = function  # type: ignore[attr-defined]
            setattr(Array, name, called)

        for name in numpy:
            _claim(f"numpy.{name}", function, numpy_names.get(name))
            numpy_names[name] = function
        if operator:
            become(f"__{operator}__", lambda self, *other: function(self, *other))
            if len(getattr(function, "arguments", "ab")) == 2:
                become(f"__r{operator}__", lambda self, other: function(other, self))
        if method:
            become(method, lambda self, *args, **kwargs: function(self, *args, **kwargs))
        return function

    return attach


def _claim(name: str, made: Any, known: Any) -> None:
    """Refuse a name that something else has. (A module may be loaded again, a cell changed.)"""

    def place(x: Any) -> str:
        code = getattr(getattr(x, "forward", x), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(x)

    known = getattr(known, "__wrapped__", known)
    if isinstance(known, Op) and registry.get(known.name) is not known:
        return  # it was taken out
    again = all(getattr(made, a) == getattr(known, a, "") for a in ("__module__", "__name__"))
    if known is not None and not (again and (place(made) == place(known) or hasattr(sys, "ps1"))):
        raise ValueError(
            f"op: {place(made)} declares {name}, and so does {place(known)}. "
            "Give the new one another name."
        )


def describe(x: Any) -> str:
    """``float32[2,3]``, or a Python number as it is.

    >>> describe(Array(backend.default_namespace().zeros((2, 3))))
    'float64[2,3]'
    """
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        return repr(x)
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def _stands_for_one(value: Any) -> bool:
    """Is it neither a native array nor a number (see compile/)?"""
    return value.__class__ not in namespaces and hasattr(value, "dtype")


def _level(value: Any) -> int:
    """How deep inside mapped functions it was made (see vmap); 0 in none."""
    return value.level


def as_array(x: Any, *, lent: bool = False) -> Array:
    """``x`` as an Array, with memory of its own: later changes of ``x`` do not reach it.

    Args:
        x: what NumPy takes; an Array is itself.
        lent: share the memory of an array where that can be, for use before its owner is back.
    """
    if x.__class__ is Array:
        return x
    if not backend.is_scalar(x) or x.dtype.kind not in "fiub":  # a scalar of NumPy's keeps its type
        x = _lift(x, lent=lent)
    return x if x.__class__ is Array else Array(backend.default_namespace().asarray(x))


def _lift(x: Any, *, lent: bool = False) -> Any:
    """An Array, or a Python number (which takes the type of the arrays it meets)."""
    if type(x) in (Array, float, int, bool):
        return x
    if isinstance(x, list | tuple):
        elements = [_lift(element) for element in x]
        if any(x.__class__ is Array and (x.serial or _stands_for_one(x.value)) for x in elements):
            return numpy_names["stack"](elements)
        x = backend.to_device(elements)
    elif not backend.is_native(x) and hasattr(x, "__array__"):  # of another library's
        x = backend.to_device(x.__array__())
    if backend.is_native(x) and x.dtype.kind in "fiub":
        if backend.is_scalar(x):
            return float(x) if x.dtype.kind == "f" else x.item()
        return Array(backend.plain(x, copy=not lent))
    raise DtypeError(
        f"array: {describe(x)} of type {type(x).__name__} is not an array of real numbers. "
        "Pass floats, integers or booleans."
    )
