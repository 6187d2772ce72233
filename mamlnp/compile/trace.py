"""Tracing: running a function on Nodes, which stand for values not known yet.

An Array whose value is a Node behaves as ever: ops apply to it, gradients are taken of it, at any
order, by the very code that does so on numbers. What it is made of is the graph.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .. import tree
from ..array import Array
from ..autodiff import custom
from ..backend import device_of, to_host
from ..backend.generated import EXPRESSIONS
from ..backend.reference import check_windows, window_counts
from ..errors import CaptureError, DeviceError, users_line
from ..op import Op

Shape = tuple[int, ...]

LIBRARY = f"{__name__.partition('.')[0]}."

_numbers = itertools.count()


class Node:
    """A value in a graph.

    Attributes:
        op: the name of the operation it comes from; "input" or "constant" if it comes from none.
        args: that operation's arguments, Nodes and Python numbers.
        params: its static parameters.
        shape: its sides.
        dtype: its elements' type.
        data: for a constant, its value; for an input, which one it is.
        function: how NumPy computes it from its arguments' values.
        number: counts Nodes in the order in which they are made.
        nodes: the arguments that are Nodes.
    """

    __slots__ = (
        "args", "data", "dtype", "function", "nodes", "number", "op", "params", "shape",
    )  # fmt: skip
    __array_ufunc__ = None
    level = 0  # it stands for no slice of anything (see vmap)

    def __init__(
        self,
        op: str,
        args: tuple[Any, ...],
        params: dict[str, Any],
        shape: Shape,
        dtype: Any,
        *,
        data: Any = None,
        function: Callable[..., Any] | None = None,
    ) -> None:
        self.op, self.args, self.params = op, args, params
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.data, self.function = data, function
        self.number = next(_numbers)
        self.nodes: list[Node] = [a for a in args if a.__class__ is Node]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"{self.op}:{self.dtype}[{','.join(map(str, self.shape))}]"

    def apply(
        self, op: Op, args: tuple[Any, ...], values: list[Any], params: dict[str, Any]
    ) -> Any:
        """What an op makes of values of which at least one is a Node (see Op.apply)."""
        if op is custom:  # written in ops, so it traces itself
            return op.forward(None, *map(as_node, values), **params)
        nodes = tuple(as_node(v) if hasattr(v, "dtype") else v for v in values)
        own = op.__module__.startswith(LIBRARY)  # another op of such a name is NumPy's to run
        name = op.name if own else f"{op.__module__}.{op.name}"
        shape, dtype = _result(name, op, nodes, params)
        return Node(name, nodes, params, shape, dtype, function=op.forward)

    def astype(self, dtype: Any) -> Node:
        if self.dtype == dtype:
            return self
        params = {"dtype": np.dtype(dtype)}
        return Node("astype", (self,), params, self.shape, dtype, function=_astype)

    def _unknown(self, what: str) -> NoReturn:
        raise CaptureError(
            f"{users_line()}: {what} of an Array whose value is not known while compile() traces. "
            "Compute with ops (where, maximum, comparisons) instead, or leave this outside."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._unknown("a number or NumPy array was asked")

    def item(self) -> NoReturn:
        self._unknown("a number was asked")


def _astype(xp: Any, x: Any, *, dtype: Any) -> Any:
    return x.astype(dtype)


class _Tracing(threading.local):
    """What this thread's trace is for, and the arrays that it met so far, as constants, and kept
    alive by it."""

    def __init__(self) -> None:
        self.device = "cpu"
        self.constants: dict[int, tuple[Node, Any]] = {}


_tracing = _Tracing()


def as_node(value: Any) -> Node:
    """A native array that f closed over, or made, as a constant."""
    if value.__class__ is Node:
        return value
    known = _tracing.constants
    if id(value) not in known:  # a copy, because the array is the user's
        if device_of(value) != _tracing.device:
            raise DeviceError(
                f"{users_line()}: an array on {device_of(value)} meets others on "
                f"{_tracing.device}. Make it with zeros_like or ones_like of another, or move it "
                "once, outside, with to_device."
            )
        data = np.array(to_host(value))
        node = Node("constant", (), {"line": users_line()}, data.shape, data.dtype, data=data)
        known[id(value)] = node, value
    return known[id(value)][0]


# ---- shapes and types, without computing


def _placeholder(x: Any) -> Any:
    """An array like x that holds one element, and so costs nothing: 1.0, or 0 (a good index)."""
    if x.__class__ is not Node:
        return x
    return np.broadcast_to(np.asarray(x.dtype.kind == "f").astype(x.dtype), x.shape)


def _one(x: Any) -> Any:
    """An array of x's type and one element, if it is a Node."""
    return _placeholder(x).reshape(-1)[:1] if x.__class__ is Node and x.ndim else _placeholder(x)


def _result(name: str, op: Op, args: tuple[Any, ...], params: dict[str, Any]) -> tuple[Shape, Any]:
    """The shape and type of an op's result; raises what the op would."""
    if name in SHAPES:
        return SHAPES[name](*args, **params)
    if name in EXPRESSIONS:
        with contextlib.suppress(ValueError), np.errstate(all="ignore"):  # which the op explains
            shape = np.broadcast_shapes(*(a.shape for a in args if a.__class__ is Node))
            return shape, op.forward(np, *map(_one, args), **params).dtype
    if name in REDUCTIONS and args[0].size:
        x, axes = args[0], params["axis"]
        kept = (1 if i in axes else s for i, s in enumerate(x.shape))
        gone = (s for i, s in enumerate(x.shape) if i not in axes)
        one = np.ones((1,) * x.ndim, x.dtype)
        return tuple(kept if params["keepdims"] else gone), op.forward(np, one, **params).dtype
    if name == "positions" and any(a.dtype.kind == "b" for a in args):
        raise CaptureError(
            f"{users_line()}: a boolean mask chooses a number of elements that depends on the "
            "data. Use where(mask, x, 0), which keeps the shape."
        )
    with np.errstate(all="ignore"):
        out = op.forward(np, *map(_placeholder, args), **params)
    return np.shape(out), out.dtype


def _matmul(a: Any, b: Any) -> tuple[Shape, Any]:
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError("the inner sides differ")
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return (*lead, a.shape[-2], b.shape[-1]), np.result_type(a.dtype, b.dtype)


def _patches(x: Any, *, size: Any, stride: int, padding: Any) -> tuple[Shape, Any]:
    counts = window_counts(x.shape[-3:-1], size, stride, padding)
    return (*x.shape[:-3], *counts, math.prod(size) * x.shape[-1]), x.dtype


def _fold(x: Any, *, size: Any, stride: int, padding: Any, shape: Any) -> tuple[Shape, Any]:
    check_windows(x, size, stride, padding, shape)
    return (*x.shape[:-3], *shape, x.shape[-1] // math.prod(size)), x.dtype


def _pool_positions(x: Any, *, size: Any, stride: int) -> tuple[Shape, Any]:
    counts = window_counts(x.shape[-3:-1], size, stride, ((0, 0), (0, 0)))
    return (*x.shape[:-3], *counts, x.shape[-1]), np.int64


def _solve(a: Any, b: Any) -> tuple[Shape, Any]:
    shape, dtype = _matmul(a, b)
    return (*shape[:-2], a.shape[-1], shape[-1]), dtype


REDUCTIONS = {"sum", "max", "min"}

# Ops that take too long on placeholders of the full size, or that refuse matrices of ones.
SHAPES: dict[str, Callable[..., tuple[Shape, Any]]] = {
    "cholesky": lambda a: (a.shape, a.dtype),
    "fold": _fold,
    "matmul": _matmul,
    "patches": _patches,
    "pool_positions": _pool_positions,
    "slogdet": lambda a: ((*a.shape[:-2], 2), a.dtype),
    "solve": _solve,
}


# ---- graphs


Tree = Any


class Graph(NamedTuple):
    """Attributes:
    inputs: in the order of the function's arguments.
    outputs: in the order of its results.
    """

    inputs: list[Node]
    outputs: list[Node]

    def nodes(self) -> list[Node]:
        """Everything the outputs need, each after what it needs."""
        return ordered(self.outputs)


def ordered(outputs: Iterable[Node]) -> list[Node]:
    """Everything the outputs need, each after what it needs, otherwise in the order of making."""
    found: dict[int, Node] = {}
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node.number not in found:
            found[node.number] = node
            stack.extend(node.nodes)
    return [found[number] for number in sorted(found)]


def trace(f: Callable[..., Any], args: Tree, device: str = "cpu") -> tuple[Graph, Tree, int]:
    """Run f on Nodes in the place of its Arrays, which are on a device.

    Returns:
        The graph, f's result (Arrays stand where its outputs go), and the number of operations.
    """
    inputs: list[Node] = []

    def stand_in(x: Any) -> Any:
        if x.__class__ is not Array:
            return x
        inputs.append(Node("input", (), {}, x.shape, x.dtype))
        return Array(inputs[-1])

    before = next(_numbers)
    outer = _tracing.device, _tracing.constants
    _tracing.device, _tracing.constants = device, {}
    try:
        out = f(*tree.map(stand_in, args))
        results = [x for x in tree.leaves(out) if x.__class__ is Array]
        graph = Graph(inputs, [as_node(x.value) for x in results])
    finally:
        _tracing.device, _tracing.constants = outer
    made = next(_numbers) - before - len(inputs) - 1
    for x in tree.leaves(out):
        if not isinstance(x, Array | np.ndarray | np.generic | int | float | str):
            raise CaptureError(
                f"compile: the function returns a {type(x).__name__}. Return Arrays, in dicts, "
                "tuples and lists."
            )
    foreign = any(x.number < before for x in graph.nodes())
    if foreign or any(x.serial for x in results):
        what = "traced" if foreign else "differentiated"
        raise CaptureError(
            f"compile: the function closes over an Array that is being {what} around it. "
            "Pass it as an argument."
        )

    def blank(x: Any) -> Any:
        if x.__class__ is Array:
            return Array(None)
        return x.copy() if isinstance(x, np.ndarray) else x  # which is the user's

    return graph, tree.map(blank, out), made


def check_repeats(graph: Graph, out: Tree, again: Graph, out_again: Tree) -> None:
    """Does a function do the same each time it runs?

    Raises:
        CaptureError: it does not.
    """
    nodes, others = graph.nodes(), again.nodes()
    same = {
        **dict(zip(graph.inputs, again.inputs, strict=True)),
        **dict(zip(nodes, others, strict=False)),
    }

    def alike(a: Node, b: Node) -> bool:
        wired = len(a.args) == len(b.args) and [same.get(x) for x in a.nodes] == b.nodes
        static = a.op == "constant" or repr(a.params) == repr(b.params)
        return wired and static and (a.op, a.shape, a.dtype) == (b.op, b.shape, b.dtype)

    blank, blank_again = (
        repr(tree.map(lambda x: "Array" if x.__class__ is Array else x, t))
        for t in (out, out_again)
    )
    if (
        len(nodes) != len(others)
        or blank != blank_again
        or not all(map(alike, nodes, others))
        or [same.get(x) for x in graph.outputs] != again.outputs
    ):
        raise CaptureError(
            "compile: the function does other things each time it runs. "
            "Pass what decides it as an argument."
        )
    for a, b in zip(nodes, others, strict=True):
        if not (_equal(a.data, b.data) and all(map(_equal, *_numbers_of(a, b)))):
            line = f"{a.params['line']}: " if "line" in a.params else ""
            raise CaptureError(
                f"{line}compile would freeze a value that is another each time the function runs "
                "(a random draw?). Draw it outside and pass it as an argument."
            )


def _numbers_of(a: Node, b: Node) -> tuple[list[Any], list[Any]]:
    mine, other = ([x for x in n.args if x.__class__ is not Node] for n in (a, b))
    return mine, other


def _equal(a: Any, b: Any) -> bool:
    return a is b or bool(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f"))
