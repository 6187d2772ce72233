"""What is done to a graph before anything is computed: each pass gives another, equal graph.

Dead code needs no pass: a Graph is what its outputs need.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.generated import EXPRESSIONS
from ..op import registry
from ..ops.shape import _stretched_axes
from .trace import REDUCTIONS, Graph, Node, Shape

LARGEST_CONSTANT = 1 << 16  # elements: larger ones are cheaper made than kept

ELEMENTWISE = set(EXPRESSIONS)  # which broadcast their arguments
VIEWS = {"reshape", "transpose", "broadcast_to", "slices", "anew"}

Rule = Callable[[Node, tuple[Any, ...]], Node]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """The graph with every node replaced by ``rule(node, its new arguments)``."""
    new: dict[Node, Node] = {x: x for x in graph.inputs}
    for node in graph.nodes():
        if node not in new:
            args = tuple(new[a] if a.__class__ is Node else a for a in node.args)
            new[node] = rule(node, args)
    return Graph(graph.inputs, [new[x] for x in graph.outputs])


def like(node: Node, args: tuple[Any, ...], shape: Shape | None = None) -> Node:
    """The same operation on other arguments; new even if they are not, so that numbers keep to the
    order in which a pass goes through the graph."""
    return Node(
        node.op,
        args,
        node.params,
        node.shape if shape is None else shape,
        node.dtype,
        data=node.data,
        function=node.function,
    )


# ---- constants, and operations that do nothing


def fill(value: Any, shape: Shape, dtype: Any) -> Node:
    """Everywhere the same number."""
    return Node("fill", (), {"value": np.dtype(dtype).type(value).item()}, shape, dtype)


def constant(data: Any) -> Node:
    """A known array; a fill if all its elements are one."""
    data = np.asarray(data)
    if data.size and (data == data.flat[0]).all():
        return fill(data.flat[0], data.shape, data.dtype)
    return Node("constant", (), {}, data.shape, data.dtype, data=data)


def reshape(x: Node, shape: Shape) -> Node:
    """x in another shape; one reshape does for several."""
    if x.op == "reshape":
        x = x.args[0]
    if x.shape == tuple(shape):
        return x
    if x.op == "fill":
        return fill(x.params["value"], shape, x.dtype)
    return Node("reshape", (x,), {"shape": tuple(shape)}, shape, x.dtype, function=_reshape)


def _reshape(xp: Any, x: Any, *, shape: Shape) -> Any:
    return x.reshape(shape)


def transpose(x: Node, axes: Shape) -> Node:
    """The axes in another order; one transpose does for several, a reshape where it can."""
    if x.op == "transpose":
        axes, x = tuple(x.params["axes"][a] for a in axes), x.args[0]
    shape = tuple(x.shape[a] for a in axes)
    if x.op == "fill":
        return fill(x.params["value"], shape, x.dtype)
    long = [a for a in axes if x.shape[a] != 1]
    if long == sorted(long):
        return reshape(x, shape)
    return Node("transpose", (x,), {"axes": axes}, shape, x.dtype, function=_transpose)


def _transpose(xp: Any, x: Any, *, axes: Shape) -> Any:
    return x.transpose(axes)


def swapped(x: Node) -> Node:
    """The last two axes exchanged."""
    return transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def broadcast_to(x: Node, shape: Shape) -> Node:
    """x repeated; a reshape where nothing is."""
    if x.op == "broadcast_to":
        x = x.args[0]
    if x.op == "fill":
        return fill(x.params["value"], shape, x.dtype)
    if x.size == math.prod(shape):
        return reshape(x, shape)
    return Node("broadcast_to", (x,), {"shape": shape}, shape, x.dtype, function=_broadcast_to)


def _broadcast_to(xp: Any, x: Any, *, shape: Shape) -> Any:
    return xp.broadcast_to(x, shape)


def total(x: Node, axes: Shape, dtype: Any) -> Node:
    """The sum over axes, which vanish."""
    shape = tuple(s for i, s in enumerate(x.shape) if i not in axes)
    count = math.prod(x.shape[a] for a in axes)
    if x.op == "fill":
        return fill(x.params["value"] * count, shape, dtype)
    if x.dtype == dtype and count == 1:
        return reshape(x, shape)
    return Node("sum", (x,), {"axis": axes}, shape, dtype, function=_total)


def _total(xp: Any, x: Any, *, axis: Shape) -> Any:
    return x.sum(axis=axis)


def elementwise(name: str, args: tuple[Any, ...], shape: Shape, dtype: Any) -> Node:
    """An elementwise op of the library's on other arguments."""
    params = {"dtype": dtype} if name == "astype" else {}
    return Node(name, args, params, shape, dtype, function=registry[name].forward)


def lower(node: Node, args: tuple[Any, ...]) -> Node:
    """In fewer kinds of operations: views, sums whose axes vanish, numbers that fill an array."""
    op, params, shape = node.op, node.params, node.shape
    match op:
        case "constant":
            return constant(node.data)
        case "ones_like":
            return fill(1, shape, node.dtype)
        case "zeros_like":
            return fill(0, shape, node.dtype)
        case "numbering":
            return constant(np.arange(node.size).reshape(shape))
        case "alias":
            return args[0]
        case "reshape":
            return reshape(args[0], shape)
        case "transpose":
            return transpose(args[0], tuple(params["axes"]))
        case "matrix_transpose":
            return swapped(args[0])
        case "broadcast_to":
            return broadcast_to(args[0], shape)
        case "sum":
            return reshape(total(args[0], params["axis"], node.dtype), shape)
        case "sum_to":
            axes = _stretched_axes(args[0].shape, params["shape"])
            return reshape(total(args[0], axes, node.dtype), shape)
        case "max" | "min":
            x, axes = args[0], params["axis"]
            kept = tuple(s for i, s in enumerate(x.shape) if i not in axes)
            if math.prod(kept) == x.size:
                return reshape(x, shape)
            function = _max if op == "max" else _min
            return reshape(Node(op, (x,), {"axis": axes}, kept, node.dtype, function=function),
                           shape)  # fmt: skip
        case "is_not_first_largest":
            x, axes = args[0], params["axis"]
            line = tuple(s if i in axes else 1 for i, s in enumerate(shape))
            kept = tuple(1 if i in axes else s for i, s in enumerate(shape))

            def top(x: Node) -> Node:
                made = Node("max", (x,), {"axis": axes, "keepdims": True}, kept, x.dtype)
                return lower(made, (x,))

            countdown = constant(np.arange(math.prod(line), 0, -1.0).reshape(line))
            is_top = elementwise("equal", (x, top(x)), shape, np.bool_)
            first = top(elementwise("mul", (is_top, countdown), shape, np.float64))
            return elementwise("not_equal", (countdown, first), shape, np.bool_)
        case "one_hot":
            labels = reshape(args[0], (*args[0].shape, 1))
            classes = constant(np.arange(shape[-1], dtype=labels.dtype))
            is_it = elementwise("equal", (labels, classes), shape, np.bool_)
            return elementwise("astype", (is_it,), shape, node.dtype)
    return like(node, args)


def simplify(node: Node, args: tuple[Any, ...]) -> Node:
    """Nothing that is known beforehand, no times one, no broadcasting before it is needed."""
    if node.op in ELEMENTWISE:
        return _simplified(node, args)
    if args and all(_known(a) for a in args) and node.size <= LARGEST_CONSTANT:
        with np.errstate(all="ignore"):
            return constant(node.function(np, *map(_value, args), **node.params))  # type: ignore[misc]
    return lower(node, args)


def _max(xp: Any, x: Any, *, axis: Shape) -> Any:
    return x.max(axis=axis)


def _min(xp: Any, x: Any, *, axis: Shape) -> Any:
    return x.min(axis=axis)


def _known(x: Any) -> bool:
    return x.__class__ is not Node or x.op in ("fill", "constant")


def _value(x: Any) -> Any:
    if x.__class__ is not Node:
        return x
    return x.data if x.op == "constant" else np.full(x.shape, x.params["value"], x.dtype)


def _is(x: Any, number: int) -> bool:
    value = x.params["value"] if x.__class__ is Node and x.op == "fill" else x
    return value.__class__ in (int, float, bool) and value == number


def _simplified(node: Node, args: tuple[Any, ...]) -> Node:
    """An elementwise operation without broadcasts before it, ones, zeros or known arguments."""
    if all(_known(a) for a in args) and (
        node.size <= LARGEST_CONSTANT or not any(_is_constant(a) for a in args)
    ):
        if any(_is_constant(a) for a in args):
            values = [_value(a) for a in args]
        else:
            values = [_one(a) for a in args]
        with np.errstate(all="ignore"):
            out = node.function(np, *values, **node.params)  # type: ignore[misc]
        return broadcast_to(constant(np.asarray(out, node.dtype)), node.shape)
    match node.op, args:
        case ("mul", (x, y)) if _is(y, 1):
            same = x
        case ("mul", (y, x)) if _is(y, 1):
            same = x
        case ("sub", (x, y)) if _is(y, 0):  # not add, which makes 0.0 of -0.0
            same = x
        case ("div" | "power", (x, y)) if _is(y, 1):
            same = x
        case ("neg", (Node(op="neg") as y,)):
            same = y.args[0]
        case _:
            same = None
    if same.__class__ is Node and same.dtype == node.dtype:
        return broadcast_to(same, node.shape)
    args = tuple(_narrow(a) for a in args)
    shape = np.broadcast_shapes(*(a.shape for a in args if a.__class__ is Node))
    return broadcast_to(like(node, args, shape), node.shape)


def _is_constant(x: Any) -> bool:
    return x.__class__ is Node and x.op == "constant"


def _one(x: Any) -> Any:
    """A fill as an array without axes."""
    return np.asarray(x.params["value"], x.dtype) if x.__class__ is Node else x


def _narrow(x: Any) -> Any:
    """What an elementwise operation can take instead: what was broadcast, a fill of one element."""
    if x.__class__ is not Node:
        return x
    if x.op == "broadcast_to":
        return x.args[0]
    return fill(x.params["value"], (), x.dtype) if x.op == "fill" else x


# ---- common subexpressions


def share(graph: Graph) -> Graph:
    """Every operation on the same arguments once."""
    known: dict[Any, Node] = {}

    def rule(node: Node, args: tuple[Any, ...]) -> Node:
        names = tuple(a.number if a.__class__ is Node else (a.__class__, repr(a)) for a in args)
        data = None if node.data is None else node.data.tobytes()
        key = (node.op, node.function, names, repr(node.params), node.shape, node.dtype, data)
        return known.setdefault(key, like(node, args))

    return rewrite(graph, rule)


# ---- reductions

WIDE = 1 << 11  # results that keep a device busy
WORTHWHILE = 1 << 18  # elements of which two steps are faster than few threads


def in_two_steps(graph: Graph) -> Graph:
    """A reduction to few results first over some of its axes only, so that there are threads enough
    for a device."""

    def rule(node: Node, args: tuple[Any, ...]) -> Node:
        if node.op not in REDUCTIONS or node.size >= WIDE or args[0].size < WORTHWHILE:
            return like(node, args)
        (x,), axes = args, node.params["axis"]
        late, results = 0, node.size  # axes left for the second step, and results of the first
        while late < len(axes) - 1 and results < WIDE:
            results *= x.shape[axes[late]]
            late += 1
        if not late:
            return like(node, args)
        early = axes[late:]
        kept = [a for a in range(x.ndim) if a not in early]
        shape = tuple(x.shape[a] for a in kept)
        how = {"function": node.function}
        part = Node(node.op, (x,), {"axis": early}, shape, node.dtype, **how)
        then = tuple(kept.index(a) for a in axes[:late])
        return Node(node.op, (part,), {"axis": then}, node.shape, node.dtype, **how)

    return rewrite(graph, rule)


# ---- products

TILE = 64  # side of what one block of a device computes of a product
BLOCKS = 1 << 9  # that keep a device busy
FEWEST_ROWS = 64  # in a group
FEWEST_GROUPS = 4  # worth their sum


def in_parts(graph: Graph) -> Graph:
    """A product a' b of two matrices with many rows and few columns, such as the gradient of a
    convolution's weights, as the sum of the products of groups of rows: a device gives a block of
    threads to some of the results, and would have few at work."""

    def rule(node: Node, args: tuple[Any, ...]) -> Node:
        lead = node.shape[:-2]
        if node.op != "matmul" or args[0].op != "transpose" or args[1].op == "transpose":
            return like(node, args)
        a, b = swapped(args[0]), args[1]
        rows, n, m = a.shape[-2], a.shape[-1], b.shape[-1]
        tiles = math.prod(lead) * -(-n // TILE) * -(-m // TILE)
        wanted = min(BLOCKS // max(tiles, 1), rows // FEWEST_ROWS)
        parts = max((p for p in range(1, wanted + 1) if rows % p == 0), default=1)
        if parts < FEWEST_GROUPS or not a.shape[:-2] == b.shape[:-2] == lead:
            return like(node, args)
        grouped = [reshape(x, (*lead, parts, rows // parts, x.shape[-1])) for x in (a, b)]
        product = like(node, (swapped(grouped[0]), grouped[1]), (*lead, parts, n, m))
        found = total(product, (len(lead),), node.dtype)
        if len(args) == 3:  # what the product adds to
            return elementwise("add", (args[2], found), node.shape, node.dtype)
        return found

    return rewrite(graph, rule)


def products(graph: Graph, rule: Rule, *, windows: bool) -> Graph:
    """Transposes go into products, products of a row or column become sums, and sums of products
    (or of what is linear in one) are taken within the product.

    Args:
        graph: before.
        rule: tidies up in between: ``simplify``, or ``lower``.
        windows: whether a kernel can make windows and their products together.
    """
    graph = rewrite(graph, _transposed)
    graph = share(rewrite(winners(rewrite(graph, _thin)), rule))
    if windows:
        graph = convolutions(graph)
    return rewrite(graph, _accumulating(graph))


def _transposed(node: Node, args: tuple[Any, ...]) -> Node:
    """(a b)' = b' a'."""
    if node.op == "transpose":
        x, axes = args[0], node.params["axes"]
        if x.op == "matmul" and axes == (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2):
            a, b = x.args
            return like(x, (swapped(b), swapped(a)), node.shape)
        return transpose(x, axes)
    return like(node, args)


def _thin(node: Node, args: tuple[Any, ...]) -> Node:
    """A product with a side of length 1, as elementwise products and sums."""
    if node.op != "matmul" or 1 not in (args[0].shape[-1], *node.shape[-2:]):
        return like(node, args)
    a, b = args
    k, m = b.shape[-2:]
    lead = node.shape[:-2]
    if k == 1:
        return elementwise("mul", (a, b), node.shape, node.dtype)
    if m == 1:
        if a.op == "transpose":  # sum the rows of a' times b
            x, y, axis = swapped(a), b, -2
        else:
            x, y, axis = a, swapped(b), -1
    elif b.op == "transpose":
        x, y, axis = swapped(b), a, -1
    else:
        x, y, axis = b, swapped(a), -2
    shape = (*lead, *np.broadcast_shapes(x.shape[-2:], y.shape[-2:]))
    parts = elementwise("mul", (x, y), shape, node.dtype)
    return reshape(total(parts, (len(shape) + axis,), node.dtype), node.shape)


def winners(graph: Graph) -> Graph:
    """Max-pooling by which element of each window won, one byte, instead of by where it is."""
    of: dict[Node, list[Node]] = {}
    for node in graph.nodes():
        for a in node.nodes:
            of.setdefault(a, []).append(node)

    def fits(positions: Node) -> bool:
        (x,), size = positions.args, positions.params["size"]
        apart = size == (positions.params["stride"],) * 2 and math.prod(size) <= 256
        images = (
            user.args[0].shape if user.op == "take" else user.params.get("shape")
            for user in of.get(positions, ())
            if user.args[1] is positions and user.op in ("take", "put")
        )
        alone = positions not in graph.outputs and x.dtype.kind == "f"
        return apart and alone and list(images) == [x.shape] * len(of.get(positions, ()))

    chosen = {x for x in graph.nodes() if x.op == "pool_positions" and fits(x)}

    def rule(node: Node, args: tuple[Any, ...]) -> Node:
        if node in chosen:
            size = {"size": node.params["size"]}
            return Node("pool_winners", args, size, node.shape, np.uint8)
        if len(node.args) == 2 and node.args[1] in chosen:
            return Node(f"pool_{node.op}", args, node.args[1].params, node.shape, node.dtype)
        return like(node, args)

    return rewrite(graph, rule)


LARGEST_WINDOWS = 1 << 20  # bytes: of what is kept rather than made again, a cache's worth


def convolutions(graph: Graph) -> Graph:
    """Products with windows that would not fit the cache, together with making the windows."""

    def windows(x: Any) -> Node | None:
        """The patches that a matrix is made of."""
        found = x.args[0] if x.op == "reshape" else x
        if found.op != "patches" or found.dtype.kind != "f" or found.ndim < 4:
            return None
        lead, (n, rows, columns, length) = found.shape[:-4], found.shape[-4:]
        large = found.size * found.dtype.itemsize > LARGEST_WINDOWS
        return found if large and x.shape == (*lead, n * rows * columns, length) else None

    def one_stride(weights: Node, lead: Shape) -> bool:
        """Do the kernels find the weights of every task: one for all, or each its own?"""
        return math.prod(weights.shape[:-2]) in (1, math.prod(lead))

    def rule(node: Node, args: tuple[Any, ...]) -> Node:
        if node.op == "matmul":
            a, b = args
            found = windows(a) if one_stride(b, node.shape[:-2]) else None
            if found is not None and node.shape[:-2] == found.shape[:-4]:
                counts = {**found.params, "counts": found.shape[-3:-1]}
                return Node("conv", (found.args[0], b), counts, node.shape, node.dtype)
            found = windows(swapped(a)) if a.op == "transpose" else None
            if found is not None and node.shape[:-2] == found.shape[:-4] == b.shape[:-2]:
                counts = {**found.params, "counts": found.shape[-3:-1]}
                return Node("conv_weights", (found.args[0], b), counts, node.shape, node.dtype)
        if node.op == "fold" and node.dtype.kind == "f" and node.ndim >= 4:
            x = args[0]
            product = x.args[0] if x.op == "reshape" else x
            if (
                product.op == "matmul"
                and x.size * x.dtype.itemsize > LARGEST_WINDOWS
                and product.shape[:-2] == node.shape[:-4] == product.args[0].shape[:-2]
                and product.shape[-1] == x.shape[-1]
                and one_stride(product.args[1], node.shape[:-4])
            ):
                counts = {**node.params, "counts": x.shape[-3:-1]}
                return Node("conv_images", product.args, counts, node.shape, node.dtype)
        return like(node, args)

    return rewrite(graph, rule)


PRODUCTS = ("matmul", "conv", "conv_weights", "conv_images")
LINEAR = ("reshape", "transpose", "fold")


def _accumulating(graph: Graph) -> Rule:
    """a b + c d in two products and no sum; f(a) + f(b) as f(a + b) where f is linear.

    What is used again is left alone: it would be computed twice, or copied (see plan.Plan)."""
    uses = Counter(a.number for node in graph.nodes() for a in node.nodes)
    uses.update(x.number for x in graph.outputs)
    once = {node.number for node in graph.nodes() if uses[node.number] == 1}

    def rule(node: Node, args: tuple[Any, ...]) -> Node:
        both = all(a.__class__ is Node for a in args)
        if node.op == "add" and both and args[0].shape == args[1].shape == node.shape:
            made = _summed(once, args[0], args[1], node)
        else:
            made = like(node, args)
        if node.number in once:
            once.add(made.number)
        return made

    return rule


def _summed(once: set[int], a: Node, b: Node, node: Node) -> Node:
    """The node that a + b is, where once are the nodes that are used once, here or in what was made
    here; how often a + b itself is used, only its caller knows."""
    if a.op == b.op in LINEAR and a.params == b.params and {a.number, b.number} <= once:
        inner = a.args[0]
        if inner.shape == b.args[0].shape and inner.dtype == b.args[0].dtype:
            apart = elementwise("add", (), inner.shape, inner.dtype)
            joined = _summed(once, inner, b.args[0], apart)
            once.add(joined.number)
            return like(a, (joined,))
    if a.op not in PRODUCTS or a.number not in once or len(a.args) == 3:
        a, b = b, a
    sums = a.op in PRODUCTS and a.number in once and len(a.args) == 2
    if sums and b.op in (*PRODUCTS, "fold") and b.number in once and a.shape == b.shape:
        return like(a, (*a.args, b))
    return like(node, (a, b))
