"""Moving elements without changing them: each of these ops is linear, most are a permutation."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

from .. import backend
from ..array import Array
from ..draws import Draw, Drawn, Shape, one
from ..errors import ShapeError
from ..op import answers, as_array, op


def normalized_axis(where: str, axis: int, ndim: int) -> int:
    """``axis`` counted from the front.

    Raises:
        ShapeError: there is no such axis.
    """
    if not -ndim <= axis < ndim:
        raise ShapeError(
            f"{where}: axis {axis} does not exist in an array with {ndim} axes. "
            f"Pass an axis from {-ndim} to {ndim - 1}."
        )
    return axis % ndim


def normalized_axes(where: str, axis: int | Shape | None, ndim: int) -> Shape:
    """The axes a reduction goes over, counted from the front; None means all."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    return tuple(normalized_axis(where, a, ndim) for a in axes)


def _draw_reshape(d: Draw) -> Drawn:
    shape = d.shape(1)
    new = d.choice([(-1,), (*shape, 1), shape[::-1], (1, -1)])
    return (d.array(shape),), {"shape": new}


@op(draw=_draw_reshape, method="reshape", linear_in=("x",))
def reshape(xp: Any, x: Any, *, shape: Shape) -> Any:
    """The same elements in the same order, in another shape (one side may be -1)."""
    return x.reshape(shape)


@reshape.signature
def _(x: Any, *sides: Any, shape: Any = None) -> Any:
    if shape is None:
        shape = sides[0] if len(sides) == 1 else sides
    return (as_array(x),), {"shape": tuple(shape) if isinstance(shape, tuple | list) else (shape,)}


@reshape.vjp("x")
def _(ct: Array, out: Array, x: Array, *, shape: Shape) -> Array:
    return reshape.apply((ct,), {"shape": x.shape})


def _draw_transpose(d: Draw) -> Drawn:
    shape = d.shape()
    axes = tuple(int(a) for a in d.rng.permutation(len(shape)))
    return (d.array(shape),), d.choice([{}, {"axes": axes}])


@op(draw=_draw_transpose, method="transpose", linear_in=("x",))
def transpose(xp: Any, x: Any, *, axes: Shape) -> Any:
    """The axes in another order; reversed if none is given."""
    return x.transpose(axes)


@transpose.signature
def _(x: Any, *order: Any, axes: Any = None) -> Any:
    x = as_array(x)
    if axes is None:
        axes = order[0] if len(order) == 1 else order or None
    if axes is None:
        axes = tuple(range(x.ndim)[::-1])
    return (x,), {"axes": normalized_axes("transpose", axes, x.ndim)}


@transpose.vjp("x")
def _(ct: Array, out: Array, x: Array, *, axes: Shape) -> Array:
    return transpose(ct, sorted(range(len(axes)), key=axes.__getitem__))


@op(draw=one(min_ndim=2), linear_in=("x",), shapes="(..., n, m)")
def matrix_transpose(xp: Any, x: Any) -> Any:
    """The last two axes exchanged: (..., n, m) -> (..., m, n)."""
    return x.swapaxes(-1, -2)


@matrix_transpose.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return matrix_transpose(ct)


def _draw_broadcast(d: Draw) -> Drawn:
    shape = d.shape()
    return (d.array(d.broadcastable(shape)),), {"shape": shape}


@op(draw=_draw_broadcast, linear_in=("x",), shapes="that broadcast to the one asked for")
def broadcast_to(xp: Any, x: Any, *, shape: Shape) -> Any:
    """``x`` repeated along new leading axes and along sides of length 1."""
    return xp.broadcast_to(x, shape)


@broadcast_to.signature
def _(x: Any, shape: Shape) -> Any:
    return (x,), {"shape": tuple(shape)}


@broadcast_to.vjp("x")
def _(ct: Array, out: Array, x: Array, *, shape: Shape) -> Array:
    return sum_to(ct, x.shape)


def _draw_sum_to(d: Draw) -> Drawn:
    shape = d.shape()
    return (d.array(shape),), {"shape": d.broadcastable(shape)}


@op(draw=_draw_sum_to, linear_in=("x",))
def sum_to(xp: Any, x: Any, *, shape: Shape) -> Any:
    """The transpose of broadcast_to (docs, equation 2.2): ``x`` summed over the axes that
    broadcasting added."""
    return backend.kernels_of(x).total(x, _stretched_axes(x.shape, shape)).reshape(shape)


@sum_to.signature
def _(x: Any, shape: Shape) -> Any:
    x, shape = as_array(x), tuple(shape)
    _stretched_axes(x.shape, shape)
    return (x,), {"shape": shape}


@functools.cache
def _stretched_axes(large: Shape, small: Shape) -> Shape:
    """The axes along which broadcasting ``small`` to ``large`` repeats elements."""
    new = len(large) - len(small)
    if new < 0 or any(s not in (1, t) for s, t in zip(small, large[new:], strict=True)):
        raise ShapeError(
            f"sum_to: {small} does not broadcast to {large}. "
            "Pass a shape that broadcast_to could have started from."
        )
    kept = (i + new for i, side in enumerate(small) if side == 1 != large[i + new])
    return (*range(new), *kept)


@sum_to.vjp("x")
def _(ct: Array, out: Array, x: Array, *, shape: Shape) -> Array:
    return broadcast_to.apply((ct,), {"shape": x.shape})


def _draw_concatenate(d: Draw) -> Drawn:
    shape = d.shape(1)
    axis = d.axis(len(shape))
    arrays = []
    for _ in range(d.integer(1, 3)):
        sides = list(shape)
        sides[axis] = d.integer(1, 3)
        arrays.append(d.array(tuple(sides)))
    return (arrays,), {"axis": axis}


@op(draw=_draw_concatenate, linear_in=("arrays",), shapes="equal but for the joined axis")
def concatenate(xp: Any, *arrays: Any, axis: int) -> Any:
    """The arrays one after another along an existing axis."""
    return xp.concatenate(arrays, axis=axis)


@concatenate.signature
def _(arrays: Sequence[Any], axis: int = 0) -> Any:
    arrays = tuple(as_array(a) for a in arrays)
    if not arrays:
        raise ShapeError("concatenate: there are no arrays to join. Pass at least one.")
    return arrays, {"axis": normalized_axis("concatenate", axis, arrays[0].ndim)}


@concatenate.vjp("arrays")
def _(ct: Array, out: Array, *arrays: Array, axis: int) -> list[Array]:
    stops = itertools.accumulate(a.shape[axis] for a in arrays)
    return [
        ct[(slice(None),) * axis + (slice(stop - a.shape[axis], stop),)]
        for a, stop in zip(arrays, stops, strict=True)
    ]


def _draw_pad(d: Draw) -> Drawn:
    shape = d.shape()
    width = tuple((d.integer(0, 2), d.integer(0, 2)) for _ in shape)
    return (d.array(shape),), {"pad_width": width}


@op(draw=_draw_pad, linear_in=("x",))
def pad(xp: Any, x: Any, *, pad_width: tuple[tuple[int, int], ...]) -> Any:
    """Zeros before and after, along every axis: ``pad_width`` is ((before, after), ...)."""
    return xp.pad(x, pad_width) if pad_width else x.copy()


@pad.signature
def _(x: Any, pad_width: Any) -> Any:
    x = as_array(x)
    if isinstance(pad_width, int):
        pad_width = ((pad_width, pad_width),) * x.ndim
    elif len(pad_width) == 2 and all(isinstance(w, int) for w in pad_width):
        pad_width = (tuple(pad_width),) * x.ndim
    width = tuple((int(before), int(after)) for before, after in pad_width)
    if len(width) != x.ndim or any(w < 0 for pair in width for w in pair):
        raise ShapeError(
            f"pad: pad_width {width} does not fit an array of shape {x.shape}. "
            f"Pass {x.ndim} pairs (before, after), none negative."
        )
    return (x,), {"pad_width": width}


@pad.vjp("x")
def _(ct: Array, out: Array, x: Array, *, pad_width: tuple[tuple[int, int], ...]) -> Array:
    spans = zip(pad_width, x.shape, strict=True)
    return ct[tuple(slice(before, before + side) for (before, _), side in spans)]


@answers(method="swapaxes", numpy=("swapaxes",))
def swapaxes(x: Any, axis1: int, axis2: int) -> Array:
    """Two axes exchanged."""
    x = as_array(x)
    a, b = (normalized_axis("swapaxes", axis, x.ndim) for axis in (axis1, axis2))
    order = list(range(x.ndim))
    order[a], order[b] = b, a
    return transpose(x, order)


@answers(numpy=("moveaxis",))
def moveaxis(x: Any, source: int, destination: int) -> Array:
    """One axis moved to another place, the rest in order."""
    x = as_array(x)
    source = normalized_axis("moveaxis", source, x.ndim)
    order = [axis for axis in range(x.ndim) if axis != source]
    order.insert(normalized_axis("moveaxis", destination, x.ndim), source)
    return transpose(x, order)


@answers(numpy=("expand_dims",))
def expand_dims(x: Any, axis: int | Shape) -> Array:
    """New sides of length 1 at the places they have in the result."""
    x = as_array(x)
    axes = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    return reshape.apply((x,), {"shape": _expanded(x.shape, axes)})


@functools.cache
def _expanded(shape: Shape, axes: Shape) -> Shape:
    ndim = len(shape) + len(axes)
    new = set(normalized_axes("expand_dims", axes, ndim))
    if len(new) < len(axes):
        raise ShapeError(f"expand_dims: axes {axes} name a place twice. Name each once.")
    sides = iter(shape)
    return tuple(1 if i in new else next(sides) for i in range(ndim))


@answers(method="squeeze", numpy=("squeeze",))
def squeeze(x: Any, axis: int | Shape | None = None) -> Array:
    """Without the sides of length 1 (all of them, or those named)."""
    x = as_array(x)
    axes = normalized_axes("squeeze", axis, x.ndim)
    if axis is not None and any(x.shape[a] != 1 for a in axes):
        raise ShapeError(
            f"squeeze: axis {axis} of shape {x.shape} is not of length 1. Name sides of length 1."
        )
    return reshape(x, tuple(s for i, s in enumerate(x.shape) if i not in axes or s != 1))


@answers(method="ravel", numpy=("ravel",))
def ravel(x: Any) -> Array:
    """All elements along one axis."""
    return reshape(x, (-1,))


@answers(numpy=("stack",))
def stack(arrays: Sequence[Any], axis: int = 0) -> Array:
    """Arrays of one shape along a new axis."""
    return concatenate([expand_dims(a, axis) for a in arrays], axis)


@answers(numpy=("flip",))
def flip(x: Any, axis: int | Shape | None = None) -> Array:
    """The elements in reverse order along the axes (all of them if none is named)."""
    x = as_array(x)
    axes = normalized_axes("flip", axis, x.ndim)
    return x[tuple(slice(None, None, -1) if i in axes else slice(None) for i in range(x.ndim))]


def size_along(shape: Shape, axes: Shape) -> int:
    """How many elements a reduction over ``axes`` joins into one."""
    return math.prod(shape[a] for a in axes)
