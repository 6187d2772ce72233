"""Many elements in, one out.

Values at edge points: equal maxima share the cotangent equally, as NaNs do, which are the largest
and the smallest there is; the norm of zero has derivative 0 at every order. Where the largest
number is infinite or NaN, that is logsumexp's result, and softmax and the gradients are NaN.
"""

from __future__ import annotations

from typing import Any

from .. import backend
from ..array import Array
from ..draws import Draw, Drawn, Shape
from ..op import answers, as_array, op
from .elementwise import (
    abs,
    astype,
    div,
    equal,
    exp,
    isfinite,
    log1p,
    maximum,
    mul,
    not_equal,
    sqrt,
    square,
    sub,
    where,
)
from .shape import (
    broadcast_to,
    expand_dims,
    flip,
    normalized_axes,
    normalized_axis,
    reshape,
    size_along,
)

Axes = int | tuple[int, ...] | None


def _draw_reduction(d: Draw) -> Drawn:
    shape = d.shape()
    return (d.array(shape),), {"axis": d.axes(len(shape)), "keepdims": d.boolean()}


def _bind(where: str) -> Any:
    def bind(x: Any, axis: Axes = None, *, keepdims: bool = False) -> Any:
        x = as_array(x)
        axes = normalized_axes(where, axis, x.ndim)
        return (x,), {"axis": axes, "keepdims": bool(keepdims)}

    return bind


def _restored(y: Array, axis: Shape, keepdims: bool) -> Array:
    """A reduction's result with its reduced axes back, at length 1."""
    return y if keepdims or not axis else expand_dims(y, axis)


@op(draw=_draw_reduction, method="sum", linear_in=("x",))
def sum(xp: Any, x: Any, *, axis: Shape, keepdims: bool) -> Any:
    """The sum over the axes (all of them if none is named)."""
    return backend.kernels_of(x).total(x, axis, keepdims)


sum.signature(_bind("sum"))


@sum.vjp("x")
def _(ct: Array, out: Array, x: Array, *, axis: Shape, keepdims: bool) -> Array:
    return broadcast_to.apply((_restored(ct, axis, keepdims),), {"shape": x.shape})


def _is_maximal(xp: Any, x: Any, *, axis: Shape, keepdims: bool) -> Any:
    return x == x.max(axis=axis, keepdims=True)


def _share(ct: Array, out: Array, x: Array, *, axis: Shape, keepdims: bool) -> Array:
    """The rule of max and min: the cotangent, in equal parts, to where the result came from."""
    won = maximum(equal(x, _restored(out, axis, keepdims)), not_equal(x, x))  # either of them
    winners = sum(won.astype(x.dtype), axis, keepdims=True)
    return where(won, div(_restored(ct, axis, keepdims), winners), 0.0)


@op(draw=_draw_reduction, method="max", numpy=("amax",), pattern=_is_maximal)
def max(xp: Any, x: Any, *, axis: Shape, keepdims: bool) -> Any:
    """The largest over the axes; equal maxima share the cotangent equally."""
    return x.max(axis=axis, keepdims=keepdims)


max.signature(_bind("max"))


max.vjp("x")(_share)


def _is_minimal(xp: Any, x: Any, *, axis: Shape, keepdims: bool) -> Any:
    return x == x.min(axis=axis, keepdims=True)


@op(draw=_draw_reduction, method="min", numpy=("amin",), pattern=_is_minimal)
def min(xp: Any, x: Any, *, axis: Shape, keepdims: bool) -> Any:
    """The smallest over the axes; equal minima share the cotangent equally."""
    return x.min(axis=axis, keepdims=keepdims)


min.signature(_bind("min"))
min.vjp("x")(_share)


def _draw_argmax(d: Draw) -> Drawn:
    shape = d.shape(1)
    return (d.array(shape),), {"axis": d.choice([None, d.axis(len(shape))])}


@op(draw=_draw_argmax, method="argmax", differentiable=False)
def argmax(xp: Any, x: Any, *, axis: int | None) -> Any:
    """Where the first largest element is along an axis (of all, flattened, if None). Integers."""
    return x.argmax(axis=axis)


@argmax.signature
def _(x: Any, axis: int | None = None) -> Any:
    x = as_array(x)
    return (x,), {"axis": None if axis is None else normalized_axis("argmax", axis, x.ndim)}


@op(draw=_draw_argmax, method="argmin", differentiable=False)
def argmin(xp: Any, x: Any, *, axis: int | None) -> Any:
    """Where the first smallest element is along an axis (of all, flattened, if None). Integers."""
    return x.argmin(axis=axis)


@argmin.signature
def _(x: Any, axis: int | None = None) -> Any:
    x = as_array(x)
    return (x,), {"axis": None if axis is None else normalized_axis("argmin", axis, x.ndim)}


def _draw_along(d: Draw) -> Drawn:
    shape = d.shape(1)
    return (d.array(shape),), {"axis": d.integer(0, len(shape) - 1)}


@op(draw=_draw_along, linear_in=("x",))
def _cumsum(xp: Any, x: Any, *, axis: int) -> Any:
    """The sums up to and with every element along an axis."""
    if not x.ndim:  # NumPy would give it one
        raise ValueError("x has no axis")
    return xp.cumsum(x, axis=axis, dtype=x.dtype if x.dtype.kind == "f" else None)


@_cumsum.vjp("x")
def _(ct: Array, out: Array, x: Array, *, axis: int) -> Array:
    return flip(_cumsum(flip(ct, axis), axis=axis), axis)


@op(draw=_draw_along, differentiable=False, method="argsort")
def argsort(xp: Any, x: Any, *, axis: int) -> Any:
    """Where along an axis the elements in order are; equal ones stay in order. Integers."""
    return xp.argsort(x, axis=axis, kind="stable")


@argsort.signature
def _(x: Any, axis: int | None = -1, kind: str | None = None, *, stable: bool = True) -> Any:
    x = as_array(x) if axis is not None else reshape(as_array(x), (-1,))
    return (x,), {"axis": normalized_axis("argsort", -1 if axis is None else axis, x.ndim)}


@answers(method="mean")
def mean(x: Any, axis: Axes = None, *, keepdims: bool = False) -> Array:
    """The average over the axes."""
    x = as_array(x)
    axes = normalized_axes("mean", axis, x.ndim)
    return div(sum(x, axes, keepdims=keepdims), size_along(x.shape, axes))


@answers(method="var")
def var(x: Any, axis: Axes = None, *, keepdims: bool = False) -> Array:
    """The mean squared distance from the mean over the axes; infinite where a square is."""
    return mean(square(sub(x, mean(x, axis, keepdims=True))), axis, keepdims=keepdims)


def _without_reduced(y: Array, axis: Axes, keepdims: bool) -> Array:
    axes = normalized_axes("reduction", axis, y.ndim)
    return y if keepdims else reshape(y, tuple(s for i, s in enumerate(y.shape) if i not in axes))


def _draw_largest(d: Draw) -> Drawn:
    shape = d.shape()
    return (d.array(shape),), {"axis": normalized_axes("", d.axes(len(shape)), len(shape))}


@op(draw=_draw_largest, differentiable=False)
def _is_not_first_largest(xp: Any, x: Any, *, axis: Shape) -> Any:
    """Is an element another than the first of the largest along the axes? Not differentiable."""
    order = [*(i for i in range(x.ndim) if i not in axis), *axis]
    moved = x.transpose(order)
    flat = moved.reshape(*moved.shape[: x.ndim - len(axis)], -1)
    is_other = flat.argmax(-1)[..., None] != xp.arange(flat.shape[-1])
    return is_other.reshape(moved.shape).transpose([order.index(i) for i in range(x.ndim)])


def _from_largest(x: Any, axis: Axes) -> tuple[Array, Array, Array]:
    """(x less the first of the largest along the axes; that one; what the exponentials of the
    others add up to, as a multiple of its own).

    It is not in that sum, and is differentiated like all else: beside 1 what is small is lost, and
    with it what a derivative would give back as 1 - p.
    """
    x = as_array(x)
    x = x if x.dtype.kind == "f" else x.astype(float)
    axes = normalized_axes("reduction", axis, x.ndim)
    is_other = _is_not_first_largest.apply((x.constant(),), {"axis": axes})
    largest = sum(where(is_other, 0.0, x), axes, keepdims=True)
    others = astype(is_other, x.dtype)
    centred = mul(sub(x, largest), others)
    return centred, largest, sum(mul(exp(centred), others), axes, keepdims=True)


def logsumexp(x: Any, axis: Axes = None, *, keepdims: bool = False) -> Array:
    """log(sum(exp(x))) over the axes, without overflow or cancellation."""
    _, largest, rest = _from_largest(x, axis)
    total = largest + where(isfinite(largest), log1p(rest), 0.0)
    return _without_reduced(total, axis, keepdims)


def softmax(x: Any, axis: Axes = -1) -> Array:
    """exp(x) / sum(exp(x)) over the axes, without overflow or cancellation."""
    centred, _, rest = _from_largest(x, axis)
    return exp(centred) / (1.0 + rest)


def log_softmax(x: Any, axis: Axes = -1) -> Array:
    """x - logsumexp(x) over the axes, without overflow or cancellation."""
    centred, _, rest = _from_largest(x, axis)
    return centred - log1p(rest)


@answers(numpy=("norm",))
def norm(x: Any, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """sqrt(sum(x^2)) over the axes, without overflow; at 0 its derivatives of every order are 0.

    By that declaration norm(x)**2 has the Hessian 0 at x = 0, where that of the squared length is
    2 I. Write sum(x * x) for a squared length: it is right everywhere, and has no square root.
    """
    x = as_array(x)
    if not x.size:
        return sum(x, axis, keepdims=keepdims)
    top = max(abs(x.constant()), axis, keepdims=True)
    scale = where(isfinite(top), where(equal(top, 0), 1.0, top), 1.0)
    squares = sum(square(x / scale), axis, keepdims=True)
    zero = equal(squares, 0)
    length = where(zero, 0.0, scale * sqrt(where(zero, 1.0, squares)))
    return _without_reduced(length, axis, keepdims)
