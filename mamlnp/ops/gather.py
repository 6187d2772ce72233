"""Choosing elements: slices, indices and masks.

Slicing is linear, with `put_slices` as its transpose. Choosing by data (integer arrays, masks, the
winners of a max-pool) always becomes flat positions, with `take` and `put` each other's transpose.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from .. import backend
from ..array import Array, numpy_names
from ..draws import Draw, Drawn, Shape, one
from ..errors import DtypeError, ShapeError
from ..op import answers, as_array, describe, op
from .shape import normalized_axis

Index = tuple[Any, ...]


def _draw_index(d: Draw, shape: Shape) -> Index:
    index: list[Any] = []
    for side in shape[: d.integer(0, len(shape))]:
        some = slice(d.integer(-side, side - 1), None)
        every = slice(None, None, d.choice([2, -1]))
        index.append(d.choice([d.integer(-side, side - 1), some, every]))
    index.insert(d.integer(0, len(index)), None)
    return (*index, ...) if d.boolean() else tuple(index)


def _draw_slices(d: Draw) -> Drawn:
    shape = d.shape(1)
    return (d.array(shape),), {"index": _draw_index(d, shape)}


@op(draw=_draw_slices, linear_in=("x",))
def slices(xp: Any, x: Any, *, index: Index) -> Any:
    """x[index] for an index of slices, integers, None and Ellipsis."""
    return x[index]


@slices.vjp("x")
def _(ct: Array, out: Array, x: Array, *, index: Index) -> Array:
    return put_slices(ct, index=index, shape=x.shape)


def _draw_put_slices(d: Draw) -> Drawn:
    (x,), params = _draw_slices(d)
    return (d.array(x[params["index"]].shape),), {**params, "shape": x.shape}


@op(draw=_draw_put_slices, linear_in=("x",))
def put_slices(xp: Any, x: Any, *, index: Index, shape: Shape) -> Any:
    """Zeros of ``shape`` with ``x`` at ``index``: the transpose of slices."""
    out = xp.zeros(shape, x.dtype)
    if out[index].shape != x.shape:
        raise ValueError("the index chooses another shape")
    out[index] = x
    return out


@put_slices.vjp("x")
def _(ct: Array, out: Array, x: Array, *, index: Index, shape: Shape) -> Array:
    return slices(ct, index=index)


@op(draw=one(), differentiable=False)
def numbering(xp: Any, x: Any) -> Any:
    """Every element's own flat position. Integers; not differentiable."""
    return _numbered(xp, x.shape)


HERE = "data"  # stands in a static index where an array of data goes


def _check_range(indices: Any, size: int) -> None:
    """NumPy does so itself; CuPy would count round.

    Raises:
        IndexError: an index is out of range.
    """
    if backend.device_of(indices) == "cpu" or indices.dtype.kind == "b" or not indices.size:
        return
    if not -size <= indices.min() <= indices.max() < size:
        raise IndexError(f"an index is out of range for {size} elements")


def _numbered(xp: Any, shape: Shape) -> Any:
    """An array of ``shape`` whose elements are their own flat positions."""
    return xp.arange(math.prod(shape)).reshape(shape)


@op(
    draw=lambda d: (
        (d.integers((2, 2), -3, 2),),
        {"index": (HERE, slice(1, None)), "shape": (3, 4)},
    ),
    differentiable=False,
)
def positions(xp: Any, *arrays: Any, index: Index, shape: Shape) -> Any:
    """The flat positions that x[index] chooses in an array of ``shape``; the arrays go, in order,
    where the index says "data". Integers; not differentiable."""
    rest = iter(arrays)
    full = tuple(next(rest) if part is HERE else part for part in index)
    if backend.device_of(arrays[0]) != "cpu":  # where nobody else checks
        for part, axis in zip(full, _axes(full, len(shape)), strict=True):
            if hasattr(part, "dtype"):
                _check_range(part, shape[axis] if axis < len(shape) else 0)
    return _numbered(xp, shape)[full]


def _axes(index: Index, ndim: int) -> list[int]:
    """The first axis that each part of an index is for."""

    def axes_of(part: Any) -> int:
        is_mask = hasattr(part, "dtype") and part.dtype.kind == "b"
        return 0 if part is None else part.ndim if is_mask else 1

    taken = [axes_of(part) for part in index]
    left = ndim - sum(n for n, part in zip(taken, index, strict=True) if part is not ...)
    axes, axis = [], 0
    for n, part in zip(taken, index, strict=True):
        axes.append(axis)
        axis += left if part is ... else n
    return axes


@op(
    draw=lambda d: ((d.integers((2, 2), -3, 2),), {"shape": (3, 2), "axis": 0}),
    differentiable=False,
)
def positions_along(xp: Any, indices: Any, *, shape: Shape, axis: int) -> Any:
    """The flat positions that take_along_axis chooses. Integers; not differentiable."""
    _check_range(indices, shape[axis])
    return xp.take_along_axis(_numbered(xp, shape), indices, axis)


def _draw_take(d: Draw) -> Drawn:
    shape = d.shape(1)
    axis = d.choice([None, d.axis(len(shape))])
    side = math.prod(shape) if axis is None else shape[axis]
    return (d.array(shape), d.integers(d.shape(), -side, side - 1), axis), {}


@op(draw=_draw_take, data=("indices",), linear_in=("x",), shapes="any, with indices in range")
def take(xp: Any, x: Any, indices: Any) -> Any:
    """The elements at ``indices``, which count along an axis, or through all of x if it is None."""
    _check_range(indices, x.size)
    return x.reshape(-1)[indices]


def _whole_numbers(where: str, indices: Any, kinds: str = "iu") -> Array:
    indices = as_array(indices)
    if indices.dtype.kind not in kinds:
        raise DtypeError(f"{where}: indices {describe(indices)} are no integers. Pass integers.")
    return indices


@take.signature
def _(x: Any, indices: Any, axis: int | None = None) -> Any:
    x, indices = as_array(x), _whole_numbers("take", indices)
    if axis is not None:
        index = (slice(None),) * normalized_axis("take", axis, x.ndim) + (HERE,)
        indices = positions(indices, index=index, shape=x.shape)
    return (x, indices), {}


@take.vjp("x")
def _(ct: Array, out: Array, x: Array, indices: Array) -> Array:
    return put.apply((ct, indices), {"shape": x.shape})


def _draw_put(d: Draw) -> Drawn:
    shape = d.shape(1)
    where = d.shape()
    size = math.prod(shape)
    return (d.array(where), d.integers(where, -size, size - 1)), {"shape": shape}


@op(draw=_draw_put, data=("indices",), linear_in=("x",))
def put(xp: Any, x: Any, indices: Any, *, shape: Shape) -> Any:
    """Zeros of ``shape`` with each element of x added at its flat index: the transpose of take."""
    size = math.prod(shape)
    if indices.size and not -size <= indices.min() <= indices.max() < size:
        raise ShapeError(
            f"put: indices from {indices.min()} to {indices.max()} do not fit the {size} elements "
            f"of shape {shape}. Pass indices from {-size} to {size - 1}."
        )
    return backend.kernels_of(x).put(x, indices, shape)


@put.signature
def _(x: Any, indices: Any, shape: Shape) -> Any:
    x, indices = as_array(x), _whole_numbers("put", indices)
    if x.shape != indices.shape:
        raise ShapeError(
            f"put: x has shape {x.shape} but indices {indices.shape}. Pass one index an element."
        )
    return (x, indices), {"shape": tuple(shape)}


del numpy_names["put"]  # np.put writes into its argument, which no Array lets it


@put.vjp("x")
def _(ct: Array, out: Array, x: Array, indices: Array, *, shape: Shape) -> Array:
    return take(ct, indices)


@answers(operator="getitem")
def getitem(x: Any, index: Any) -> Array:
    """x[index] as in NumPy: slices, integers, None, ..., integer arrays and boolean masks."""
    x = as_array(x)
    parts = index if isinstance(index, tuple) else (index,)
    arrays: list[Array] = []
    static: list[Any] = []
    for part in parts:
        if part is None or part is ... or isinstance(part, slice):
            static.append(part)
        elif isinstance(part, bool | list | tuple | range | Array) or hasattr(part, "dtype"):
            part = list(part) if isinstance(part, range) else part
            chosen = as_array(part)
            if isinstance(part, list | tuple) and not part:  # whose type would be float
                chosen = chosen.astype(int)
            arrays.append(_whole_numbers("getitem", chosen, "iub"))
            static.append(HERE)
        else:
            static.append(operator.index(part))
    if not arrays:
        return slices(x, index=tuple(static))
    return take(x, positions(*arrays, index=tuple(static), shape=x.shape))


@answers(numpy=("take_along_axis",))
def take_along_axis(x: Any, indices: Any, axis: int = -1) -> Array:
    """From every line of x along the axis, the elements at that line's own indices."""
    x = as_array(x)
    axis = normalized_axis("take_along_axis", axis, x.ndim)
    indices = _whole_numbers("take_along_axis", indices)
    return take(x, positions_along(indices, shape=x.shape, axis=axis))
