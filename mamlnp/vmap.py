"""vmap: a function written for one example (or one task), run for all of them at once.

Inside it every Array stands for one example, and its shape is that of one. Its value is a
:class:`Mapped`, which holds all examples as an ordinary Array with the mapped axis in front. An op
that meets a Mapped runs once, on all examples, by the op's rule below. So the results are those of
a loop over the examples, derivatives of every order pass, inside and through, and a compiled plan
is the one that code written with the axis would give.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from . import tree
from .array import Array
from .autodiff import stop_gradient
from .errors import CaptureError, ShapeError, users_line
from .op import Op, as_array, describe, recording
from .ops.elementwise import sub
from .ops.gather import HERE, numbering, positions, positions_along, take
from .ops.reduce import sum
from .ops.shape import broadcast_to, moveaxis, normalized_axis, ravel, reshape, stack

Tree = Any
Shape = tuple[int, ...]


class _Level(threading.local):
    """How many calls of mapped functions this thread is inside of."""

    depth = 0


_level = _Level()


class Frame(NamedTuple):
    """One call of a mapped function.

    Attributes:
        level: how many such calls it is inside of, itself included.
        size: how many examples there are.
        record: whether the caller records, which ops on all examples therefore do.
    """

    level: int
    size: int
    record: bool


class Mapped:
    """One array for each example: the value of an Array inside a mapped function.

    Attributes:
        frame: the call it belongs to.
        counted_through: 0; or, for positions in the examples' arrays that count through all of
            them, the number of elements of one. (Such are a max-pool's winners, which one kernel
            finds for all examples and another takes.)
    """

    __slots__ = ("_each", "counted_through", "frame")
    __array_ufunc__ = None

    def __init__(self, frame: Frame, each: Array, counted_through: int = 0) -> None:
        self.frame, self._each, self.counted_through = frame, each, counted_through

    @property
    def each(self) -> Array:
        """Every example's array, the mapped axis in front."""
        if not self.counted_through:
            return self._each
        first = numbering(sum(reshape(self._each, (self.frame.size, -1)), 1)) * self.counted_through
        return sub(self._each, reshape(first, (-1, *(1,) * self.ndim)))

    @property
    def level(self) -> int:
        return self.frame.level

    @property
    def shape(self) -> Shape:
        """Of one example's array."""
        return self._each.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._each.dtype

    @property
    def ndim(self) -> int:
        return self._each.ndim - 1

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"{describe(self)} of each of {self.frame.size}"

    def astype(self, dtype: Any) -> Mapped:
        return Mapped(self.frame, self.each.astype(dtype))

    def constant(self) -> Mapped:
        """The same values, without derivatives outside the mapped function too."""
        return Mapped(self.frame, stop_gradient(self.each))

    def _refuse(self, what: str) -> NoReturn:
        raise CaptureError(
            f"{users_line()}: {what} of an Array that stands for {self.frame.size} examples inside "
            "vmap. Compute with ops (where, maximum, comparisons) instead, or leave this outside."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("a number or NumPy array was asked")

    def item(self) -> NoReturn:
        self._refuse("a number was asked")

    def apply(
        self, op: Op, args: tuple[Any, ...], values: list[Any], params: dict[str, Any]
    ) -> Any:
        """What an op makes of values of which at least one is Mapped (see Op.apply)."""
        frame = max((v.frame for v in values if v.__class__ is Mapped), key=lambda f: f.level)
        if frame.level > _level.depth:
            raise CaptureError(
                f"{users_line()}: an Array from inside a function that vmap maps is used after the "
                "function returned. Return it from the function."
            )

        def operand(arg: Any, value: Any) -> Any:
            if value.__class__ is Mapped and value.frame is frame:
                return value
            if arg.__class__ is not Array:
                return value
            return arg if arg.value is value else Array(value)  # of another type: a constant

        operands = [operand(a, v) for a, v in zip(args, values, strict=True)]
        outer, recording.on = recording.on, frame.record
        try:
            return RULES.get(op.name, _one_by_one)(frame, op, operands, params)
        except ShapeError as error:  # which tells all examples' shapes; Op.apply tells one's
            why = error.__cause__ or error
            raise ValueError(f"{why}; in each of {frame.size} examples of vmap") from error
        finally:
            recording.on = outer


# ---- one rule an op: (frame, op, operands, params) -> the value of the result. An operand is a
# Mapped of this frame, an Array that all examples share, or a number.


def _lined_up(frame: Frame, operands: list[Any]) -> tuple[Any, ...]:
    """The operands as Arrays whose axes for one example line up from the right."""
    ndim = max(x.ndim for x in operands if hasattr(x, "ndim"))

    def line_up(x: Any) -> Any:
        if x.__class__ is not Mapped:
            return x
        new = (1,) * (ndim - x.ndim)
        return reshape(x.each, (frame.size, *new, *x.shape)) if new else x.each

    return tuple(map(line_up, operands))


def _broadcasting(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    return Mapped(frame, op.apply(_lined_up(frame, operands), params))


def _repeated(frame: Frame, x: Any) -> Array:
    """Every example's array, also of what they share."""
    if x.__class__ is Mapped:
        return x.each
    x = as_array(x)
    return broadcast_to(x, (frame.size, *x.shape))


def _reduction(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    axis = tuple(a + 1 for a in params["axis"])
    return Mapped(frame, op.apply((operands[0].each,), {**params, "axis": axis}))


def _winner(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    (x,), axis = operands, params["axis"]
    each = reshape(x.each, (frame.size, x.size)) if axis is None else x.each
    return Mapped(frame, op.apply((each,), {"axis": 1 if axis is None else axis + 1}))


def _reshape(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    (x,), shape = operands, params["shape"]
    known = math.prod(side for side in shape if side != -1)
    sides = (x.size // max(known, 1) if side == -1 else side for side in shape)
    return Mapped(frame, reshape(x.each, (frame.size, *sides)))


def _transpose(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    axes = (0, *(a + 1 for a in params["axes"]))
    return Mapped(frame, op.apply((operands[0].each,), {"axes": axes}))


def _broadcast_to(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    (x,), shape = operands, params["shape"]
    each = reshape(x.each, (frame.size, *(1,) * (len(shape) - x.ndim), *x.shape))
    return Mapped(frame, op.apply((each,), {"shape": (frame.size, *shape)}))


def _sum_to(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    (x,), shape = operands, params["shape"]
    kept = (frame.size, *(1,) * (x.ndim - len(shape)), *shape)
    return Mapped(frame, reshape(op.apply((x.each,), {"shape": kept}), (frame.size, *shape)))


def _concatenate(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    every = tuple(_repeated(frame, x) for x in operands)
    return Mapped(frame, op.apply(every, {"axis": params["axis"] + 1}))


def _pad(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    width = ((0, 0), *params["pad_width"])
    return Mapped(frame, op.apply((operands[0].each,), {"pad_width": width}))


def _slices(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    params = {**params, "index": (slice(None), *params["index"])}
    if "shape" in params:
        params["shape"] = (frame.size, *params["shape"])
    return Mapped(frame, op.apply((operands[0].each,), params))


def _numbering(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Any:
    """The same for every example."""
    (x,) = operands
    return reshape(numbering(x.each[:1]), x.shape).value


def _positions(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    if any(x.dtype.kind == "b" for x in operands):
        if any(x.dtype.kind == "b" and x.__class__ is Mapped for x in operands):
            raise CaptureError(
                f"{users_line()}: a boolean mask chooses another number of elements for each "
                "example inside vmap. Use where(mask, x, 0), which keeps the shape."
            )
        return _one_by_one(frame, op, operands, params)

    def result(examples: int) -> Shape:
        ndim = max(x.ndim for x in operands)
        sides = (
            (examples, *(1,) * (ndim - x.ndim), *x.shape) if x.__class__ is Mapped else x.shape
            for x in operands
        )
        rest = (np.broadcast_to(0, s) for s in sides)
        index = tuple(next(rest) if part is HERE else part for part in params["index"])
        return np.broadcast_to(0, params["shape"])[index].shape

    differ = (a != b for a, b in zip(result(2), result(3), strict=True))
    found = op.apply(_lined_up(frame, operands), params)
    return Mapped(frame, moveaxis(found, list(differ).index(True), 0))


def _positions_along(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    shape, axis = (frame.size, *params["shape"]), params["axis"] + 1
    found = op.apply((operands[0].each,), {"shape": shape, "axis": axis})
    return Mapped(frame, found, counted_through=math.prod(params["shape"]))


def _pool_positions(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    (x,) = operands
    return Mapped(frame, op.apply((x.each,), params), counted_through=x.size)


def _along(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    return Mapped(frame, op.apply((operands[0].each,), {"axis": params["axis"] + 1}))


def _through_all(frame: Frame, indices: Any, size: int) -> Array:
    """Positions in each example's array of ``size`` elements, as positions in all of them."""
    if indices.__class__ is Mapped:
        if indices.counted_through == size:
            return indices._each
        flat = reshape(indices.each, (frame.size, indices.size))
        found = positions_along(flat, shape=(frame.size, size), axis=1)
    else:
        index = (slice(None), HERE)
        found = positions(ravel(indices), index=index, shape=(frame.size, size))
    return reshape(found, (frame.size, *indices.shape))


def _take(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    x, indices = operands
    if x.__class__ is not Mapped:
        return Mapped(frame, take(x, indices.each))
    return Mapped(frame, take(x.each, _through_all(frame, indices, x.size)))


def _put(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    x, indices = operands
    where = _through_all(frame, indices, math.prod(params["shape"]))
    shape = (frame.size, *params["shape"])
    return Mapped(frame, op.apply((_repeated(frame, x), where), {"shape": shape}))


def _one_by_one(frame: Frame, op: Op, operands: list[Any], params: dict[str, Any]) -> Mapped:
    """Example by example: for an op without a rule here."""
    results = [
        op.apply(tuple(x.each[i] if x.__class__ is Mapped else x for x in operands), params)
        for i in range(frame.size)
    ]
    return Mapped(frame, stack(results))


Rule = Callable[[Frame, Op, list[Any], dict[str, Any]], Any]
BROADCASTING = (
    "abs", "add", "alias", "anew", "arcsinh", "arctan2", "astype", "cholesky", "class_labels",
    "cos", "cosh", "div", "eigh", "equal", "error_function", "exp", "expm1", "fold", "greater",
    "greater_equal", "isfinite", "less", "less_equal", "log", "log1p", "matmul",
    "matrix_transpose", "maximum", "minimum", "mul", "neg", "not_equal", "one_hot", "ones_like",
    "patches", "power", "relu", "relu_slope", "remainder", "rounded", "sigmoid", "sigmoid_slope",
    "sign", "sin", "sinh", "slogdet", "softplus", "solve", "sqrt", "sub", "tanh", "where",
    "zeros_like",
)  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(BROADCASTING, _broadcasting),
    **dict.fromkeys(("sum", "max", "min", "is_not_first_largest"), _reduction),
    **dict.fromkeys(("argmax", "argmin"), _winner),
    **dict.fromkeys(("argsort", "cumsum"), _along),
    **dict.fromkeys(("slices", "put_slices"), _slices),
    "broadcast_to": _broadcast_to,
    "concatenate": _concatenate,
    "numbering": _numbering,
    "pad": _pad,
    "pool_positions": _pool_positions,
    "positions": _positions,
    "positions_along": _positions_along,
    "put": _put,
    "reshape": _reshape,
    "sum_to": _sum_to,
    "take": _take,
    "transpose": _transpose,
}


# ---- the transform


def vmap(f: Callable[..., Any], in_axes: Any = 0, out_axes: int = 0) -> Callable[..., Any]:
    """f for all examples at once, where f is written for one: f of every slice, stacked.

    Write a model and its loss for a single task, and map it over the tasks of a meta-batch:

    >>> import mamlnp as ml
    >>> def loss(params, batch):  # of one task, a number
    ...     return ((batch.x @ params["w"] + params["b"] - batch.y) ** 2).mean()
    >>> params = {"w": ml.array([[1.0]]), "b": ml.array([0.0])}
    >>> waves, rng = ml.tasks.sinusoid.Sinusoids(), np.random.default_rng(0)
    >>> task = waves.sample(5, num_shots=5, num_queries=5, rng=rng, dtype=float)
    >>> ml.maml.meta_loss(ml.vmap(loss), params, task, inner_lr=0.01).shape
    (5,)

    Args:
        f: from trees of Arrays to a tree of Arrays. It may take gradients inside, and may close
            over Arrays, which are the same for all examples; derivatives by those pass too.
        in_axes: which axis of the arguments' leaves counts the examples; None where all examples
            share an argument. One for all arguments, or a tuple with one for each argument, which
            may be a tree that the argument's own begins with. Numbers and strings are shared, and
            in keyword arguments axis 0 counts the examples.
        out_axes: where the axis goes in the leaves of the result.

    Returns:
        A function of trees whose leaves have one axis more, to such trees.

    Raises:
        ShapeError: (when called) no leaf is mapped, or leaves have different numbers of examples.
        CaptureError: (when called) f asks for a number that differs between examples, such as
            float(x), or has a shape that does.
    """

    @functools.wraps(f)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        given = (args, kwargs)
        found = [*_axes_of(axes, args), *_axes_of(0, kwargs)]
        leaves = [
            (leaf, _checked_axis(path, leaf, axis))
            for (path, leaf), axis in zip(tree.items(given), found, strict=True)
        ]
        sizes = {leaf.shape[axis] for leaf, axis in leaves if axis is not None}
        if len(sizes) != 1:
            shown = ", ".join(describe(leaf) for leaf, axis in leaves if axis is not None)
            counts = " or ".join(map(str, sorted(sizes))) or "no"
            raise ShapeError(
                f"vmap: {shown or 'arguments without arrays'} have {counts} examples. Pass mapped "
                "leaves with equally many, and in_axes=None for what all examples share."
            )
        frame = Frame(_level.depth + 1, sizes.pop(), recording.on)

        def inside(leaf: Any, axis: int | None) -> Any:
            if axis is None:
                return leaf
            return Array(Mapped(frame, moveaxis(leaf, axis, 0) if axis else as_array(leaf)))

        args, kwargs = tree.unflatten(given, [inside(*leaf) for leaf in leaves])
        _level.depth += 1
        try:
            out = f(*args, **kwargs)
        finally:
            _level.depth -= 1

        def outside(x: Any) -> Array:
            value = x.value if x.__class__ is Array else None
            ours = value.__class__ is Mapped and value.frame is frame
            every = _repeated(frame, value if ours else x)
            return moveaxis(every, 0, out_axes) if out_axes else every

        return tree.map(outside, out)

    return mapped


def _axes_of(axes: Any, arg: Tree) -> list[int | None]:
    """The axis for every leaf of an argument."""
    if axes is None or isinstance(axes, int):
        return [axes] * len(tree.leaves(arg))
    pairs: list[tuple[Any, Tree]] = []
    if isinstance(axes, dict) and isinstance(arg, dict) and axes.keys() == arg.keys():
        pairs = [(axes[k], child) for k, child in arg.items()]
    elif isinstance(axes, tuple | list) and isinstance(arg, tuple | list):
        pairs = list(zip(axes, arg, strict=False)) if len(axes) == len(arg) else []
    if not pairs:
        raise ShapeError(
            f"vmap: in_axes {axes!r} does not fit the arguments. Pass an axis or None for each "
            "argument, or a tree that the argument's tree begins with."
        )
    return [axis for pair in pairs for axis in _axes_of(*pair)]


def _checked_axis(path: str, leaf: Any, axis: int | None) -> int | None:
    """The axis counted from the front, None for a leaf that all examples share.

    Raises:
        ShapeError: there is no such axis.
    """
    if axis is None or not hasattr(leaf, "shape"):
        return None
    return normalized_axis(f"vmap: argument {path}", axis, len(leaf.shape))
