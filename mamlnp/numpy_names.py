"""What NumPy's functions, and the methods of its arrays, do with Arrays.

A call is answered by the op of that name, or by a composition of ops below, with NumPy's own
signature; where elements only move, by NumPy's own function, which is shown their numbers and says
which goes where; and where no derivative is lost, by NumPy itself. Everything else is refused in
one line that names what is nearest to it.

The standard deviation of equal numbers has derivatives of 0, as the norm of 0 has.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from . import backend
from .array import Array, array, leaves_the_tape, numpy_names
from .draws import one
from .errors import DtypeError, ShapeError, TapeError, UnavailableError, users_line
from .op import Op, answers, as_array, describe
from .ops import elementwise as e, reduce, shape
from .ops.gather import take, take_along_axis
from .ops.reduce import Axes, norm
from .ops.shape import concatenate, moveaxis, normalized_axes, normalized_axis, reshape, transpose

Function = Callable[..., Any]


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


# NumPy's functions that write into their first argument,
WRITERS = _set("copyto fill_diagonal place put put_along_axis putmask")
# that need no more than shapes and types,
QUERIES = _set("""can_cast common_type empty_like iscomplex iscomplexobj isreal isrealobj ndim
    ones_like result_type shape size zeros_like""")
# whose results move in steps, so that they have no derivative,
STEPS = _set("""allclose argmax argmin argpartition argwhere array_equal array_equiv array_repr
    array_str array2string digitize flatnonzero gammasgn isclose isin lexsort nonzero
    searchsorted""")
# that move elements, and put 0 where none comes to: the first argument's, or those of others,
MOVES: dict[str, tuple[str, ...]] = dict.fromkeys(
    _set("""array_split atleast_1d atleast_2d atleast_3d block broadcast_arrays column_stack
    concatenate delete diag diagflat diagonal dsplit dstack fftshift flip fliplr flipud hsplit
    hstack ifftshift linalg.diagonal meshgrid moveaxis permute_dims ravel repeat reshape resize
    roll rollaxis rot90 split squeeze stack take tile transpose tril triu unstack vsplit vstack"""),
    ("",),
)
MOVES |= {"append": ("arr", "values"), "extract": ("arr",), "compress": ("a",)}
# and that are methods of its arrays too.
METHODS = _set("""all any argmax argmin argsort astype clip conj cumprod cumsum diagonal dot max
    mean min nonzero prod repeat round searchsorted squeeze std sum swapaxes take trace
    transpose var""")
# What to name for what there is not, where no name is alike.
NEAREST = {
    "svd": "eigh", "svdvals": "eigvalsh", "eig": "eigh", "eigvals": "eigvalsh", "pinv": "inv",
    "lstsq": "solve", "qr": "cholesky", "unique": "sort", "choose": "where", "piecewise": "select",
    "fill": "full_like", "apply_along_axis": "stack", "vectorize": "stack",
}  # fmt: skip


# ---- how a call is answered


def _ufunc(self: Array, ufunc: np.ufunc, method: str, *args: Any, **kwargs: Any) -> Any:
    if method == "outer" and not kwargs:
        a, b = args
        return ufunc(a[(..., *(None,) * np.ndim(b))] if np.ndim(a) else a, b)
    name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
    # A comparison hands NumPy's scalars over as arrays without axes.
    args = tuple(a[()] if isinstance(a, np.ndarray) else a for a in args)
    return _answer(name, numpy_names.get(name), getattr(ufunc, method), args, kwargs)


def _function(self: Array, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
    name = function.__name__
    full = f"linalg.{name}" if function.__module__ == "numpy.linalg" else name

    return _answer(full, numpy_names.get(full) or numpy_names.get(name), function, args, kwargs)


def _answer(name: str, ours: Any, numpys: Function, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a call of NumPy's gives.

    Raises:
        UnavailableError: nothing answers it.
        TapeError: it would write what is being differentiated into a plain array.
    """
    shown = f"numpy.{name}" if hasattr(np, name.partition(".")[0]) else f"scipy.special.{name}"
    if "where" in kwargs and numpys.__name__ == "__call__":
        raise UnavailableError(
            f"{shown}: takes no where= on Arrays. Use numpy.where on its result."
        )
    if name in WRITERS or name.endswith(".at") or kwargs.get("out") is not None:
        if any(x.serial for x in _arrays(args)):
            raise TapeError(leaves_the_tape(f"{shown} would write into a plain array"))
        out = " with out=" if kwargs.get("out") is not None else ""
        raise UnavailableError(f"{shown}{out}: cannot write into an array. Use what it returns.")
    refusal = None
    if ours is not None:
        try:
            if kwargs and getattr(ours, "bind", ours) is None:  # an op, of arrays alone
                raise TypeError
            return ours(*args, **kwargs)
        except TypeError as error:
            refusal = _explained(error, shown, ours, args, kwargs)
            if not isinstance(refusal, UnavailableError):
                raise
    given = [args, kwargs]
    if name in STEPS or not any(map(_moves, _arrays(given))):
        args, kwargs = _replaced(lambda x: _frozen(backend.to_host(x.value)), given)
    elif name in QUERIES:
        args, kwargs = _replaced(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), given)
    elif name in MOVES:
        return _moved(numpys, MOVES[name], inspect.signature(numpys).bind(*args, **kwargs))
    else:
        raise refusal or UnavailableError(_missing(shown))
    try:
        return _wrapped(numpys(*args, **kwargs))
    except ValueError as error:
        raise ShapeError(f"{shown}: {error}. See NumPy's documentation.") from error


def _replaced(change: Callable[[Array], Any], x: Any) -> Any:
    """Arguments with every Array changed."""
    if x.__class__ is Array:
        return change(x)
    if x.__class__ is dict:
        return {name: _replaced(change, value) for name, value in x.items()}
    return type(x)(_replaced(change, y) for y in x) if x.__class__ in (list, tuple) else x


def _arrays(x: Any) -> list[Array]:
    found: list[Array] = []
    _replaced(found.append, x)
    return found


def _moves(x: Array) -> bool:
    """Is it being differentiated, or not known, or not where NumPy could compute with it?"""
    return bool(x.serial) or backend.namespaces.get(x.value.__class__) is not np


def _frozen(x: np.ndarray) -> np.ndarray:
    view = x.view()
    view.flags.writeable = False
    return view


def _wrapped(x: Any, wrap: Function = lambda x: Array(np.asarray(x))) -> Any:
    """What NumPy made, with Arrays for its arrays of real numbers."""
    if isinstance(x, tuple | list):
        parts = [_wrapped(part, wrap) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return wrap(x) if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "fiub" else x


def _moved(numpys: Function, which: tuple[str, ...], call: inspect.BoundArguments) -> Any:
    """Elements moved by NumPy's own function, which is shown their numbers, counted from 1."""
    given = call.arguments
    if given.get("dtype") is not None:
        raise UnavailableError(f"numpy.{numpys.__name__}: takes no dtype= here. Use astype first.")
    names = [name or next(iter(given)) for name in which]
    found = _arrays([given[name] for name in names])
    dtype = next((x.dtype for x in found if x.dtype.kind == "f"), found[0].dtype)
    source = [Array(np.zeros(1, dtype))]

    def numbered(x: Any) -> Any:
        if isinstance(x, list | tuple):
            return [numbered(y) for y in x]
        x = x if x.__class__ is Array else array(x, dtype if np.isscalar(x) else None)
        first = sum(y.size for y in source)
        source.append(x.ravel())
        return np.arange(first, first + x.size).reshape(x.shape)

    for name, x in given.items():
        given[name] = numbered(x) if name in names else _replaced(Array.numpy, x)
    places = numpys(*call.args, **call.kwargs)
    flat = concatenate(source)
    return _wrapped(places, lambda x: take(flat, np.asarray(x)))


def _explained(error: TypeError, where: str, function: Function, args: Any, kwargs: Any) -> Any:
    """An error of a function's call; if it was Python's own, as a clear line."""
    if type(error) is not TypeError:
        return error
    signature = inspect.signature(function)
    unknown = [f"{name}=" for name in kwargs if name not in signature.parameters]
    try:
        signature.bind(*args, **kwargs)
        what = f"take these arguments ({error})"
    except TypeError:
        what = f"be called with {' and '.join(unknown) or f'{len(args)} arguments'}"
    takes = ", ".join(signature.parameters)
    return UnavailableError(f"{where}: cannot {what} on Arrays. It takes {takes}.")


def _missing(name: str) -> str:
    """What to say of what there is not, with the names that are nearest to it."""
    short = name.rpartition(".")[2]
    every = {x: f"mamlnp.{x}" for x in sys.modules[__package__].__all__}
    every |= {x: f"numpy.linalg.{x}" for x in numpy_names if hasattr(np.linalg, x)}
    every |= {x: f"numpy.{x}" for x in {*numpy_names, *MOVES, *STEPS} if hasattr(np, x)}
    close = [every[x] for x in difflib.get_close_matches(NEAREST.get(short, short), every)]
    nearest = f" Nearest: {', '.join(close)}." if close else ""
    return f"{name}: has no derivative rule for Arrays.{nearest} docs/numpy.md lists what there is."


def _unavailable(name: str) -> property:
    """An attribute that NumPy's arrays have and Arrays have not."""

    def refuse(self: Array) -> NoReturn:
        raise UnavailableError(_missing(f"Array.{name}"))

    return property(refuse)


def _method(name: str, ours: Function | None, numpys: Function | None = None) -> Function:
    """A method: by our own function, or as NumPy's function of that name is answered."""
    numpys = numpys or getattr(np, name)

    def method(self: Array, *args: Any, **kwargs: Any) -> Any:
        if ours is not None:
            try:
                return ours(self, *args, **kwargs)
            except TypeError as error:
                if type(error) is not TypeError:
                    raise
        try:
            return numpys(self, *args, **kwargs)
        except TypeError as error:
            raise _explained(error, f"Array.{name}", numpys, (self, *args), kwargs) from None

    method.__wrapped__ = getattr(ours, "__wrapped__", numpys)  # type: ignore[attr-defined]
    return method


# ---- names


def _named(**functions: Function) -> None:
    """Let functions answer NumPy's names, several of which stand with __ between them; also where
    an op has the name, for NumPy's functions can be called in more ways."""
    for names, function in functions.items():
        for name in names.split("__"):
            numpy_names[name.replace("linalg_", "linalg.")] = function


def _rounded(x: Any, decimals: int | None = 0, out: None = None) -> Any:
    if as_array(x).dtype.kind != "f":
        return as_array(x)
    scale = 10.0 ** (decimals or 0)
    return e._rounded(x * scale, how="rint") / scale if decimals else e._rounded(x, how="rint")


def _trunc(x: Any) -> Any:
    return np.where(x < 0, -np.floor(-x), np.floor(x))


def _fmod(a: Any, b: Any) -> Any:
    rest = abs(a) % abs(b)
    return np.where(np.less(a, 0), -rest, rest)


def _sinc(x: Any) -> Any:
    x = x * math.pi
    zero = x == 0
    safe = np.where(zero, 1.0, x)
    return np.where(zero, 1.0 - x * x / 6, np.sin(safe) / safe)  # at 0 by its series


def _xlogy(x: Any, y: Any, log: Function = np.log, one: float = 1.0) -> Any:
    return x * log(np.where(np.equal(x, 0) & np.equal(y, one - 1), one, y))


def _nan_to_num(
    x: Any, copy: bool = True, nan: Any = 0.0, posinf: Any = None, neginf: Any = None
) -> Any:
    top = float(np.finfo(x.dtype).max) if x.dtype.kind == "f" else 0
    x = np.where(np.isnan(x), nan, x)
    x = np.where(x == math.inf, top if posinf is None else posinf, x)
    return np.where(x == -math.inf, -top if neginf is None else neginf, x)


def _clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Any:
    low, high = a_min if min is None else min, a_max if max is None else max
    a = as_array(a) if low is None else e.maximum(a, low)
    return a if high is None else e.minimum(a, high)


def _logaddexp(a: Any, b: Any) -> Any:
    both = [e.where(True, a, b), e.where(False, a, b)]  # of one shape and type
    return reduce.logsumexp(shape.stack(both), 0)


def _select(condlist: Sequence[Any], choicelist: Sequence[Any], default: Any = 0) -> Any:
    for condition, choice in reversed(list(zip(condlist, choicelist, strict=True))):
        default = e.where(condition, choice, default)
    return default


def _bitwise(name: str, logical: Function) -> Function:
    def function(*args: Any) -> Any:
        if any(as_array(x).dtype.kind != "b" for x in args):
            raise DtypeError(
                f"{name}: {' and '.join(describe(as_array(x)) for x in args)} are not booleans. "
                "Pass comparisons, or use numpy.logical_and, logical_or, logical_not."
            )
        return logical(*args)

    return function


# fmt: off
_named(
    tan=lambda x: np.sin(x) / np.cos(x),
    arctan__atan=lambda x: e.arctan2(x, 1.0),
    arcsin__asin=lambda x: e.arctan2(x, np.sqrt((1.0 - x) * (1.0 + x))),
    arccos__acos=lambda x: e.arctan2(np.sqrt((1.0 - x) * (1.0 + x)), x),
    arccosh__acosh=lambda x: np.log1p(x - 1.0 + np.sqrt(x - 1.0) * np.sqrt(x + 1.0)),
    arctanh__atanh=lambda x: 0.5 * (np.log1p(x) - np.log1p(-x)),
    log2=lambda x: np.log(x) / math.log(2),
    log10=lambda x: np.log(x) / math.log(10),
    exp2=lambda x: e.power(2.0, x),
    deg2rad__radians=lambda x: x * (math.pi / 180),
    rad2deg__degrees=lambda x: x * (180 / math.pi),
    cbrt=lambda x: np.sign(x) * abs(x) ** (1 / 3),
    sinc=_sinc,
    logaddexp=_logaddexp,
    logaddexp2=lambda a, b: _logaddexp(a * math.log(2), b * math.log(2)) / math.log(2),
    float_power=lambda a, b: e.power(a * 1.0, b),
    fmax=lambda a, b: np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.maximum(a, b))),
    fmin=lambda a, b: np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.minimum(a, b))),
    fmod=_fmod,
    divmod=lambda a, b: (e.floor_divide(a, b), e.remainder(a, b)),
    modf=lambda x: (_fmod(x, 1.0), _trunc(x)),
    copysign=lambda a, b: np.where(np.signbit(b), -abs(a), abs(a)),
    heaviside=lambda x, half: np.where(np.equal(x, 0), half, 0.5 * (np.sign(x) + 1.0)),
    positive__conjugate__real__real_if_close__copy=lambda x, **how: x,
    imag=lambda x: e.zeros_like(x),
    angle=lambda x: np.where(np.signbit(x), math.pi, e.zeros_like(x)),
    nan_to_num=_nan_to_num,
    clip=_clip,
    where=lambda condition, x, y: e.where(condition, x, y),
    select=_select,
    full_like=lambda a, fill_value: shape.broadcast_to(as_array(fill_value), np.shape(a)),
    array__asarray=lambda a, dtype=None: _among(a, True, 0, dtype),
    # these have no derivatives
    signbit=lambda x: e.arctan2(0.0, x) > 1,
    isnan=lambda x: e.not_equal(x, x),
    isinf=lambda x: abs(x) == math.inf,
    isposinf=lambda x: x == math.inf,
    isneginf=lambda x: x == -math.inf,
    logical_and=lambda a, b: e.mul(np.not_equal(a, 0), np.not_equal(b, 0)),
    logical_or=lambda a, b: np.maximum(np.not_equal(a, 0), np.not_equal(b, 0)),
    logical_xor=lambda a, b: np.not_equal(np.not_equal(a, 0), np.not_equal(b, 0)),
    logical_not=lambda x: e.equal(x, 0),
    floor=lambda x: e._rounded(x, how="floor"),
    ceil=lambda x: -e._rounded(-x, how="floor"),
    rint=lambda x: e._rounded(x, how="rint"),
    trunc__fix=_trunc,
    round__around=_rounded,
    # SciPy's
    expit=e.sigmoid,
    logit=lambda x: np.log(x) - np.log1p(-x),
    log_expit=lambda x: -e.softplus(-x),
    ndtr=lambda x: 0.5 * e.erfc(x * -math.sqrt(0.5)),
    xlogy=_xlogy,
    xlog1py=lambda x, y: _xlogy(x, y, np.log1p, 0.0),
    entr=lambda x: -_xlogy(x, x),
    rel_entr=lambda x, y: _xlogy(x, x / y),
    kl_div=lambda x, y: _xlogy(x, x / y) - x + y,
)
# fmt: on
for _name, _logical, _operator in (
    ("bitwise_and", "logical_and", "and"),
    ("bitwise_or", "logical_or", "or"),
    ("bitwise_xor", "logical_xor", "xor"),
    ("invert", "logical_not", "invert"),
):
    answers(numpy=(_name,), operator=_operator)(_bitwise(_name, numpy_names[_logical]))
for _name, _f in {"pos": as_array, "divmod": numpy_names["divmod"], "round": _rounded}.items():
    answers(operator=_name)(_f)


# ---- reductions


def _among(a: Any, where: Any, instead: Any, dtype: Any = None, out: Any = None) -> Any:
    """The elements that count, as a type, and others that do not matter."""
    if out is not None:
        raise UnavailableError("out= cannot be written into. Use what the function returns.")
    a = as_array(a) if dtype is None else e.astype(a, dtype)
    return a if where is True else e.where(where, a, instead)


def _count(a: Array, axis: Axes, keepdims: bool, where: Any) -> Any:
    if where is True:
        return shape.size_along(a.shape, normalized_axes("mean", axis, a.ndim))
    counted = np.broadcast_to(e.astype(np.not_equal(where, 0), a.dtype), a.shape)
    return reduce.sum(counted, axis, keepdims=keepdims)


def _product(x: Any, axis: Axes, *, keepdims: bool) -> Array:
    """By halves, so that no derivative, of any order, divides by what may be 0."""
    axes = normalized_axes("prod", axis, x.ndim)
    kept = [i for i in range(x.ndim) if i not in axes]
    if not x.size:
        return reduce.sum(x, axes, keepdims=keepdims) + 1
    out = tuple(1 if i in axes else s for i, s in enumerate(x.shape) if keepdims or i not in axes)
    x = reshape(transpose(x, [*axes, *kept]), (-1, *(x.shape[i] for i in kept)))
    while len(x) > 1:
        half = len(x) // 2
        x = concatenate([x[:half] * x[half : 2 * half], x[2 * half :]])
    return reshape(x, out)


def _reduction(name: str, f: Function, nothing: Any, combine: Function, ufunc: str) -> None:
    # fmt: off
    def first(array: Any, axis: Axes = 0, dtype: Any = None, out: None = None,
              keepdims: bool = False, initial: Any = None, where: Any = True) -> Any:
        found = f(_among(array, where, nothing, dtype, out), axis, keepdims=keepdims)
        return found if initial is None else combine(found, initial)

    def typed(a: Any, axis: Axes = None, dtype: Any = None, out: None = None,
              keepdims: bool = False, initial: Any = None, where: Any = True) -> Any:
        return first(a, axis, dtype, out, keepdims, initial, where)

    def untyped(a: Any, axis: Axes = None, out: None = None, keepdims: bool = False,
                initial: Any = None, where: Any = True) -> Any:
        return first(a, axis, None, out, keepdims, initial, where)

    # fmt: on
    _named(**{f"{ufunc}.reduce": first})
    _named(**{f"{name}__a{name}": typed if name in ("sum", "prod") else untyped})


_reduction("sum", reduce.sum, 0, e.add, "add")
_reduction("prod", _product, 1, e.mul, "multiply")
_reduction("max", reduce.max, -math.inf, e.maximum, "maximum")
_reduction("min", reduce.min, math.inf, e.minimum, "minimum")
_reduction("logsumexp", reduce.logsumexp, -math.inf, _logaddexp, "logaddexp")
_reduction("any", lambda x, *axis, **how: reduce.sum(x != 0, *axis, **how) > 0,
           False, np.logical_or, "logical_or")  # fmt: skip
_reduction("all", lambda x, *axis, **how: e.equal(reduce.sum(x == 0, *axis, **how), 0),
           True, np.logical_and, "logical_and")  # fmt: skip


# fmt: off
def _mean(a: Any, axis: Axes = None, dtype: Any = None, out: None = None, keepdims: bool = False,
          *, where: Any = True) -> Any:
    a = _among(a, where, 0, dtype, out)
    axis = normalized_axes("mean", axis, a.ndim)
    return reduce.sum(a, axis, keepdims=keepdims) / _count(a, axis, keepdims, where)


def _spread(of: Function, root: Function) -> Function:
    def spread(a: Any, axis: Axes = None, dtype: Any = None, out: None = None, ddof: float = 0,
               keepdims: bool = False, *, where: Any = True, mean: Any = None,
               correction: float | None = None) -> Any:
        a = _among(a, where, 0, dtype, out)
        mean = _mean(a, axis, keepdims=True, where=where) if mean is None else mean
        far = of(_among(a - mean, where, 0), axis=axis, keepdims=keepdims)
        count = _count(a, axis, keepdims, where)
        return far / root(count - (ddof if correction is None else correction))

    return spread


# fmt: on
def _scanned(f: Function, x: Array, axis: int) -> Array:
    """f of all elements up to and with each one along an axis, by doubling how many."""
    x, count = moveaxis(x, axis, 0), 1
    while count < len(x):
        x = concatenate([x[:count], f(x[:-count], x[count:])])
        count *= 2
    return moveaxis(x, 0, axis)


def _accumulation(f: Function, along: int | None) -> Function:
    def accumulated(a: Any, axis: int | None = along, dtype: Any = None, out: None = None) -> Any:
        a = _among(a, True, 0, dtype, out)
        a = a if axis is not None else a.ravel()
        axis = normalized_axis("accumulate", axis or 0, a.ndim)
        return reduce._cumsum(a, axis=axis) if f is e.add else _scanned(f, a, axis)

    return accumulated


for _name, _op in {
    "add": e.add,
    "multiply": e.mul,
    "maximum": e.maximum,
    "minimum": e.minimum,
}.items():
    _named(**{f"{_name}.accumulate": _accumulation(_op, 0)})


def _sort(a: Any, axis: int | None = -1, kind: Any = None) -> Array:
    a, axis = (shape.ravel(a), 0) if axis is None else (as_array(a), axis)
    return take_along_axis(a, reduce.argsort(a, axis), axis)


def _partition(a: Any, kth: Any, axis: int = -1) -> Array:
    return take_along_axis(a, np.argpartition(a, kth, axis), axis)


def _median(a: Any, axis: Axes = None, out: None = None, *, keepdims: bool = False) -> Array:
    a = _among(a, True, 0, None, out)
    axes = normalized_axes("median", axis, a.ndim)
    kept = [i for i in range(a.ndim) if i not in axes]
    a = _sort(reshape(transpose(a, [*axes, *kept]), (-1, *(a.shape[i] for i in kept))), 0)
    middle = reduce.sum(a[(len(a) - 1) // 2 : len(a) // 2 + 1], 0) / (2 - len(a) % 2)
    return shape.expand_dims(middle, axes) if keepdims else middle


def _linspace(start: Any, stop: Any, num: int = 50, endpoint: bool = True) -> Array:
    steps = max(num - 1 if endpoint else num, 1)
    every = [start + (stop - start) * (i / steps) for i in range(max(num, 1))]
    return shape.stack(every)[:num]


def _gradient(f: Any, *spacing: float, axis: Any = None) -> Any:
    f = as_array(f)
    axes = normalized_axes("gradient", axis, f.ndim)
    steps = spacing * len(axes) if len(spacing) == 1 else spacing or (1.0,) * len(axes)
    if any(map(np.ndim, steps)):
        raise UnavailableError("gradient: takes places only that are equally far apart on Arrays.")
    slopes = []
    for along, step in zip(axes, steps, strict=True):
        x = moveaxis(f, along, 0)
        rise = concatenate([x[1:2] - x[:1], (x[2:] - x[:-2]) * 0.5, x[-1:] - x[-2:-1]])
        slopes.append(moveaxis(rise / step, 0, along))
    return slopes[0] if len(slopes) == 1 else tuple(slopes)


def _diff(a: Any, n: int = 1, axis: int = -1) -> Array:
    x = moveaxis(as_array(a), axis, 0)
    for _ in range(n):
        x = x[1:] - x[:-1]
    return moveaxis(x, 0, axis)


PADS = ("edge", "reflect", "symmetric", "wrap")


def _pad(array: Any, pad_width: Any, mode: str = "constant", *, constant_values: Any = 0) -> Any:
    x = as_array(array)
    width = np.broadcast_to(pad_width, (x.ndim, 2)).tolist()
    if mode == "constant":
        inside = np.pad(np.ones(x.shape, bool), width)
        values = np.pad(np.zeros(x.shape), width, constant_values=constant_values)
        return _among(
            shape.pad(x, width), inside if constant_values != 0 else True, values.astype(x.dtype)
        )
    if mode in PADS:
        return take(x, np.pad(np.arange(x.size).reshape(x.shape), width, mode))  # type: ignore[call-overload]
    raise UnavailableError(
        f"numpy.pad: mode={mode!r} has no derivative rule for Arrays. "
        f"Use one of: constant, {', '.join(PADS)}."
    )


# ---- products


def _tensordot(a: Any, b: Any, axes: Any = 2) -> Array:
    a, b = as_array(a), as_array(b)
    axes = (range(-axes, 0), range(axes)) if isinstance(axes, int) else axes
    gone = [
        normalized_axes("tensordot", p if isinstance(p, int) else tuple(p), x.ndim)
        for p, x in zip(axes, (a, b), strict=True)
    ]
    free = [[i for i in range(x.ndim) if i not in p] for p, x in zip(gone, (a, b), strict=True)]
    inner, also = ([x.shape[i] for i in p] for p, x in zip(gone, (a, b), strict=True))
    if inner != also:
        raise ShapeError(
            f"tensordot: a {describe(a)} and b {describe(b)} have sides {inner} and {also} to sum "
            "over. Sum over sides that are equal."
        )
    rows, columns = ([x.shape[i] for i in p] for p, x in zip(free, (a, b), strict=True))
    a = reshape(transpose(a, [*free[0], *gone[0]]), (math.prod(rows), math.prod(inner)))
    b = reshape(transpose(b, [*gone[1], *free[1]]), (math.prod(inner), math.prod(columns)))
    return reshape(a @ b, (*rows, *columns))


def _dot(a: Any, b: Any, inner: int = -2) -> Any:
    a, b = as_array(a), as_array(b)
    if not a.ndim or not b.ndim:
        return a * b
    return _tensordot(a, b, (-1, inner if b.ndim > 1 else -1))


def _kron(a: Any, b: Any) -> Any:
    ndim = max(np.ndim(a), np.ndim(b))
    a, b = (reshape(x, (*(1,) * (ndim - x.ndim), *x.shape)) for x in map(as_array, (a, b)))
    wide = a[(slice(None), None) * ndim] * b[(None, slice(None)) * ndim]
    return reshape(wide, tuple(m * n for m, n in zip(a.shape, b.shape, strict=True)))


def _cross(a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1,
           axis: int | None = None) -> Any:  # fmt: skip
    axes = (axisa, axisb, axisc) if axis is None else (axis,) * 3
    x, y = (moveaxis(as_array(v), i, -1) for v, i in zip((a, b), axes[:2], strict=True))
    x, y = (
        v if v.shape[-1] > 2 else concatenate([v, e.zeros_like(v[..., :1])], -1) for v in (x, y)
    )
    i, j = [1, 2, 0], [2, 0, 1]
    return moveaxis(x[..., i] * y[..., j] - x[..., j] * y[..., i], -1, axes[2])


# fmt: off
_named(
    mean=_mean,
    var=_spread(lambda x, **how: reduce.sum(x * x, **how), lambda count: count),
    std=_spread(norm, np.sqrt),
    cumsum=_accumulation(e.add, None),
    cumprod=_accumulation(e.mul, None),
    count_nonzero=lambda a, axis=None, *, keepdims=False: (a != 0).sum(axis, keepdims=keepdims),
    ptp=lambda a, axis=None: np.max(a, axis) - np.min(a, axis),
    nansum=lambda a, axis=None: np.sum(np.where(np.isnan(a), 0, a), axis),
    sort=_sort,
    partition=_partition,
    median=_median,
    linspace=_linspace,
    gradient=_gradient,
    diff=_diff,
    pad=_pad,
    trace=lambda a, offset=0, axis1=0, axis2=1: np.diagonal(a, offset, axis1, axis2).sum(-1),
    linalg_trace=lambda x, *, offset=0: np.diagonal(x, offset, -2, -1).sum(-1),
    tensordot=_tensordot,
    dot=_dot,
    inner=lambda a, b: _dot(a, b, -1),
    vdot=lambda a, b: _dot(np.ravel(a), np.ravel(b)),
    outer=lambda a, b: np.ravel(a)[:, None] * np.ravel(b),
    vecdot=lambda a, b: (a * b).sum(-1),
    kron=_kron,
    cross=_cross,
)
# fmt: on


# ---- SciPy's functions of one variable, the last; they are called where SciPy is installed


def _special(name: str, parameters: str, slope: Function) -> None:
    """A function of scipy.special and its slope, from the result and the arguments."""

    def value(*args: Any) -> Any:
        return getattr(importlib.import_module("scipy.special"), name)(*args)

    forward = eval(f"lambda xp, {parameters}: value({parameters})", {"value": value})
    forward.__name__, forward.__module__ = name, "scipy.special"
    made = Op(forward, draw=one())
    made.vjp(made.arguments[-1])(
        lambda ct, out, *args: shape.sum_to(ct * slope(out, *args), args[-1].shape)
    )
    _named(**{name: made})


S = numpy_names
for _name, _parameters, _slope in (
    ("psi", "x", lambda y, x: S["zeta"](2.0, x)),
    ("zeta", "s, x", lambda y, s, x: -s * S["zeta"](s + 1.0, x)),
    ("gamma", "x", lambda y, x: y * S["psi"](x)),
    ("gammaln", "x", lambda y, x: S["psi"](x)),
    ("rgamma", "x", lambda y, x: -y * S["psi"](x)),
    ("gammainc", "a, x", lambda y, a, x: np.exp(-x) * x ** (a - 1.0) * S["rgamma"](a)),
    ("gammaincc", "a, x", lambda y, a, x: -np.exp(-x) * x ** (a - 1.0) * S["rgamma"](a)),
    ("betainc", "a, b, x",
     lambda y, a, b, x: x ** (a - 1.0) * (1.0 - x) ** (b - 1.0) / S["beta"](a, b)),
    ("erfinv", "x", lambda y, x: np.exp(y * y) * (math.sqrt(math.pi) / 2)),
    ("erfcinv", "x", lambda y, x: np.exp(y * y) * (-math.sqrt(math.pi) / 2)),
    ("j0", "x", lambda y, x: -S["j1"](x)),
    ("j1", "x", lambda y, x: S["j0"](x) - y / x),
    ("y0", "x", lambda y, x: -S["y1"](x)),
    ("y1", "x", lambda y, x: S["y0"](x) - y / x),
    ("i0", "x", lambda y, x: S["i1"](x)),
    ("i1", "x", lambda y, x: S["i0"](x) - y / x),
    ("jv", "n, x", lambda y, n, x: S["jv"](n - 1, x) - n * y / x),
    ("yn", "n, x", lambda y, n, x: S["yn"](n - 1, x) - n * y / x),
    ("iv", "n, x", lambda y, n, x: S["iv"](n - 1, x) - n * y / x),
    ("ive", "n, x", lambda y, n, x: S["ive"](n - 1, x) - n * y / x - np.sign(x) * y),
):  # fmt: skip
    _special(_name, _parameters, _slope)
_named(
    betaln=lambda a, b: S["gammaln"](a) + S["gammaln"](b) - S["gammaln"](a + b),
    beta=lambda a, b: np.exp(S["betaln"](a, b)),
)


# ---- on the class


def _in_place(symbol: str) -> Function:
    """x += y makes a new Array, and leaves alone what else x is. Where x is a function's argument,
    NumPy would change it for the caller too."""

    def method(self: Array, other: Any) -> Any:
        if self.serial and self.op.name == "alias":
            raise UnavailableError(
                f"{users_line()}: x {symbol}= y would change what is being differentiated, an "
                f"argument of the function. Write x = x {symbol} y."
            )
        return NotImplemented

    return method


for _name, _symbol in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**", "mod": "%",
                       "floordiv": "//", "matmul": "@"}.items():  # fmt: skip
    setattr(Array, f"__i{_name}__", _in_place(_symbol))
for _name in METHODS:
    setattr(Array, _name, _method(_name, vars(Array).get(_name)))
_methods: dict[str, Function] = {
    "reshape": _method(
        "reshape",
        Array.reshape,
        lambda x, *s, **how: np.reshape(x, s[0] if len(s) == 1 else s, **how),
    ),
    "flatten": lambda self, order="C": np.ravel(self, order),
    "__eq__": lambda a, b: e.less(a, a) if b is None else e.equal(a, b),  # no element is None
    "__ne__": lambda a, b: ~e.less(a, a) if b is None else e.not_equal(a, b),
    "__array_ufunc__": _ufunc,
    "__array_function__": _function,
}
for _name, _f in _methods.items():
    setattr(Array, _name, _f)
# Each by itself: with __getattr__ every attribute would take longer. The last ones are NumPy 1's.
for _name in [*dir(np.ndarray), "itemset", "newbyteorder", "ptp"]:
    if not (_name.startswith("_") or hasattr(Array, _name)):
        setattr(Array, _name, _unavailable(_name))
