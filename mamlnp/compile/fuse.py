"""From a graph to steps: which operations share a loop, and what is kept in memory.

An elementwise operation is computed where it is used. Its result is kept only if something reads it
that cannot be in the same loops, and if it is not cheaper to compute it again.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .passes import ELEMENTWISE, PRODUCTS, VIEWS, like, reshape
from .trace import REDUCTIONS, Graph, Node, Shape

TYPES = {np.dtype(name) for name in ("float32", "float64", "int64", "bool")}
COMPARISONS = {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "relu_slope"}
OF_INTEGERS = {
    "abs", "add", "astype", "copy", "maximum", "minimum", "mul", "neg", "relu", "sub", "where",
}  # fmt: skip
OF_BOOLEANS = {*COMPARISONS, "astype", "copy", "isfinite", "where"}
SLOW = {
    "exp", "expm1", "log", "log1p", "power", "sigmoid", "sigmoid_slope", "softplus", "sin", "cos",
    "tanh",
}  # fmt: skip
KERNELS = {
    "class_labels", "fold", "patches", "pool_positions", "pool_put", "pool_take", "pool_winners",
    "put", "take",
}  # fmt: skip

CHEAP_READS, CHEAP_OPERATIONS = 2, 10  # of what is computed again rather than kept
MOST_READS, MOST_RESULTS = 16, 6  # of one loop
RECENT = 32  # loops over the same space that are looked at


def is_loop(node: Node) -> bool:
    """Can it be part of a generated loop?"""
    if node.op not in ELEMENTWISE and node.op not in REDUCTIONS:
        return False
    if not {node.dtype, *(a.dtype for a in node.nodes)} <= TYPES:
        return False
    if node.dtype.kind == "b":
        return node.op in OF_BOOLEANS
    return node.dtype.kind == "f" or node.op in OF_INTEGERS or node.op in REDUCTIONS


def is_elementwise(node: Any) -> bool:
    """Is it one element in, one element out, in a generated loop?"""
    return node.__class__ is Node and node.op not in REDUCTIONS and is_loop(node)


def space(node: Node) -> Shape:
    """The sides of the loops it needs."""
    return node.args[0].shape if node.op in REDUCTIONS else node.shape


# ---- where things are


class Access(NamedTuple):
    """A view of memory.

    Attributes:
        root: the node whose memory it is.
        offset: of the first element, in elements.
        strides: in elements.
    """

    root: Node
    offset: int
    strides: Shape


def contiguous(shape: Shape) -> Shape:
    """The strides of an array in order, in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


class Memory:
    """How every node is read: views from what they are views of."""

    def __init__(self) -> None:
        self._known: dict[Node, Access | None] = {}

    def access(self, x: Node) -> Access:
        found = self.view(x)
        assert found is not None
        return found

    def view(self, x: Node) -> Access | None:
        """How x is read, or None if only a copy will do (a reshape of a transpose, say)."""
        if x not in self._known:
            if x.op not in VIEWS:
                self._known[x] = Access(x, 0, contiguous(x.shape))
            else:
                base = self.view(x.args[0])
                self._known[x] = base and self._moved(base, x)
        return self._known[x]

    def _moved(self, base: Access, x: Node) -> Access | None:
        """NumPy says how the strides change."""
        element = as_strided(np.zeros(1, np.uint8), x.args[0].shape, base.strides)
        if x.op == "reshape":
            try:
                moved = np.reshape(element, x.shape, copy=False)
            except ValueError:
                return None
        elif x.op == "slices":  # with ... a single element too is a view
            index = x.params["index"]
            moved = element[index if ... in index else (*index, ...)]
        else:
            moved = x.function(np, element, **x.params)  # type: ignore[misc]
        start = moved.__array_interface__["data"][0] - element.__array_interface__["data"][0]
        return Access(base.root, base.offset + start if x.size else 0, moved.strides)

    def is_whole(self, x: Node) -> bool:
        """Is x all of its memory, in order?"""
        access = self.view(x)
        return access is not None and (
            x.size == access.root.size and dense(x.shape, access.strides) and not access.offset
        )


def dense(shape: Shape, strides: Shape) -> bool:
    """Are the elements in order, with nothing between them?"""
    return all(
        side == 1 or stride == whole
        for side, stride, whole in zip(shape, strides, contiguous(shape), strict=True)
    )


def copied(x: Node) -> Node:
    """x in memory of its own, in order."""
    if x.op == "fill" and x.dtype not in TYPES:
        data = np.full(x.shape, x.params["value"], x.dtype)
        x = Node("constant", (), {}, x.shape, x.dtype, data=data)
    return Node("copy", (x,), {}, x.shape, x.dtype, function=_copy)


def _copy(xp: Any, x: Any) -> Any:
    return x


def settle(graph: Graph) -> Graph:
    """Copies where something has to be in memory, in order: before a reshape that is no view, for
    the kernels, and as results."""
    memory, new = Memory(), {x: x for x in graph.inputs}
    copies: dict[Node, Node] = {}

    def copy(x: Node) -> Node:
        if x not in copies:
            copies[x] = copied(x)
        return copies[x]

    for node in graph.nodes():
        if node in new:
            continue
        args = tuple(new[a] if a.__class__ is Node else a for a in node.args)
        if node.op in KERNELS:
            args = tuple(a if _is_plain(a, memory) else copy(a) for a in args)
        elif node.op == "matmul":
            args = tuple(
                a if (_fits_product if i < 2 else _is_plain)(a, memory) else copy(a)
                for i, a in enumerate(args)
            )
        elif node.op in PRODUCTS:
            weights = 1 if node.op != "conv_weights" else None  # the other arguments lie in order
            args = tuple(
                a if (_fits_product if i == weights else _is_plain)(a, memory) else copy(a)
                for i, a in enumerate(args)
            )
        elif not is_loop(node):
            args = tuple(copy(a) if a.__class__ is Node and a.op == "fill" else a for a in args)
        made = like(node, args)
        if node.op == "reshape" and memory.view(made) is None:
            made = reshape(copy(args[0]), node.shape)
        new[node] = made
    outputs: list[Node] = []
    for x in (new[x] for x in graph.outputs):
        elsewhere = x.op in VIEWS or x.op in ("input", "constant", "fill") or x in outputs
        outputs.append(copied(x) if elsewhere else x)
    return Graph(graph.inputs, outputs)


def _is_plain(x: Node, memory: Memory) -> bool:
    return x.op != "fill" and memory.is_whole(x)


def _fits_product(x: Node, memory: Memory) -> bool:
    """One of a matrix's sides is in order, and one stride leads from each matrix to the next."""
    if x.op == "fill":
        return False
    strides = memory.access(x).strides
    return matrix(x.shape, strides) is not None and batch(x.shape, strides) is not None


def matrix(shape: Shape, strides: Shape) -> tuple[bool, int] | None:
    """(transposed, leading side) of the last two axes, as BLAS takes them; None if it does not."""
    (n, m), (row, column) = shape[-2:], strides[-2:]
    if (column == 1 or m == 1) and (row >= max(m, 1) or n == 1):
        return False, max(row if n > 1 else m, m, 1)
    if (row == 1 or n == 1) and (column >= max(n, 1) or m == 1):
        return True, max(column if m > 1 else n, n, 1)
    return None


def batch(shape: Shape, strides: Shape) -> int | None:
    """The one stride of all leading axes; None if there are more."""
    long = [(side, s) for side, s in zip(shape[:-2], strides[:-2], strict=True) if side != 1]
    for (_, outer), (side, inner) in itertools.pairwise(long):
        if outer != side * inner:
            return None
    return long[-1][1] if long else 0


# ---- what shares a loop


class Loop:
    """Operations computed in one pass over a space.

    Attributes:
        space: the sides of the loops.
        roots: what is computed for others: reductions, and elementwise results.
        inside: everything computed, roots too, by node.
        reads: what is read from memory, by (node read, as which shape).
    """

    def __init__(self, space: Shape) -> None:
        self.space = space
        self.roots: list[Node] = []
        self.inside: dict[Node, None] = {}
        self.reads: dict[Node, None] = {}


Step = Loop | Node


def steps(graph: Graph, *, fused: bool = True, alike: bool = False) -> list[Step]:
    """The graph as what is done, in order: loops, and single operations that are none.

    Args:
        graph: to compute.
        fused: whether loops hold more than one operation.
        alike: whether all reductions of a loop have to run over the same axes, as they have to
            where threads share each.
    """
    return _Fusion(graph, fused, alike).steps


class _Fusion:
    def __init__(self, graph: Graph, fused: bool, alike: bool) -> None:
        self.nodes = [x for x in graph.nodes() if x.op not in ("input", "constant", "fill")]
        self.memory = Memory()
        self.direct: dict[Node, set[Node]] = {}
        self.kept = self._kept(graph) if fused else set(self.nodes)
        self.fused, self.alike = fused, alike
        self.when: dict[Node, int] = {}
        self.steps: list[Step] = []
        self.loops: dict[Shape, list[int]] = {}  # where the loops over each space are
        for node in self.nodes:
            if node.op in VIEWS:
                continue
            if not is_loop(node):
                self.when[node] = len(self.steps)
                self.steps.append(node)
            elif node in self.kept or node.op in REDUCTIONS:
                self._place(node)

    def _direct(self, node: Node) -> set[Node]:
        """The arguments that can be computed in the same loops."""
        if node not in self.direct:
            self.direct[node] = {
                a for a in node.nodes if is_elementwise(a) and a.shape == space(node)
            }
        return self.direct[node]

    def _kept(self, graph: Graph) -> set[Node]:
        """Elementwise results that have to be, or are better, in memory."""
        kept = set(graph.outputs)
        users: dict[Node, list[Node]] = {x: [] for x in self.nodes}
        for node in self.nodes:
            direct = self._direct(node) if is_loop(node) else set()
            for a in direct:
                users[a].append(node)
            if node.op not in VIEWS:
                kept.update(self.memory.access(a).root for a in node.nodes if a not in direct)
        cheap = self._cheap(kept, users)
        homes: dict[Node, set[Node]] = {}
        for node in reversed(self.nodes):
            if node in kept or not is_elementwise(node):
                homes[node] = {node}
                continue
            homes[node] = set().union(*(homes[user] for user in users[node]))
            if len(homes[node]) > 1 and node not in cheap:
                kept.add(node)
                homes[node] = {node}
        return kept

    def _cheap(self, kept: set[Node], users: dict[Node, list[Node]]) -> set[Node]:
        """What takes few operations on few full arrays that are in memory anyway."""
        reads: dict[Node, set[Node]] = {}
        operations: dict[Node, int] = {}
        cheap = set()
        for node in self.nodes:
            if not is_elementwise(node):
                continue
            mine: set[Node] = set()
            count = 1
            direct = self._direct(node)
            for a in node.nodes:
                if a in direct and a not in kept and (a in cheap or len(users[a]) == 1):
                    mine |= reads[a]
                    count += operations[a]
                elif a.op != "fill":
                    root = self.memory.access(a).root
                    mine |= {root} if root.size * 2 > node.size else set()
            reads[node], operations[node] = mine, count
            if len(mine) <= CHEAP_READS and count <= CHEAP_OPERATIONS and node.op not in SLOW:
                cheap.add(node)
        return cheap

    def _tree(self, root: Node, loop: Loop) -> tuple[dict[Node, None], dict[Node, None]]:
        """What a root computes in a loop, and the arguments it reads from memory."""
        inside: dict[Node, None] = {}
        reads: dict[Node, None] = {}
        stack = [root]
        while stack:
            node = stack.pop()
            if node in inside or node in loop.inside:
                continue
            inside[node] = None
            direct = self._direct(node)
            for a in node.nodes:
                if a in direct and (a not in self.kept or a in loop.inside):
                    stack.append(a)
                elif a.op != "fill":
                    reads[a] = None
        return inside, reads

    def _place(self, root: Node) -> None:
        """Into the loop with which it shares the most, or a new one."""
        at, shared = len(self.steps), 0
        alike = self.loops.setdefault(space(root), [])
        for position in alike[-RECENT:] if self.fused else ():
            found = self._shares(root, self.steps[position], position)
            if found > shared:
                at, shared = position, found
        if not shared:
            alike.append(at)
            self.steps.append(Loop(space(root)))
        loop: Any = self.steps[at]
        inside, reads = self._tree(root, loop)
        loop.roots.append(root)
        loop.inside |= inside
        loop.reads |= reads
        self.when[root] = at

    def _shares(self, root: Node, loop: Any, position: int) -> int:
        """How many full arrays it reads or computes too; 0 if it cannot be there."""
        if self.alike and len(_axes([root, *loop.roots])) > 1:
            return 0
        inside, reads = self._tree(root, loop)
        if len(loop.roots) >= MOST_RESULTS or len({*loop.reads, *reads}) > MOST_READS:
            return 0
        for a in reads:
            at = self.memory.access(a).root
            if self.when.get(at, -1) >= position:
                return 0
        size = math.prod(loop.space)
        shared = sum(a in loop.reads for a in reads if a.size * 2 > size)
        used = {a for node in inside for a in self._direct(node)}
        return shared + sum(a in loop.inside for a in used)


def _axes(roots: list[Node]) -> set[Shape]:
    """Over which reductions run."""
    return {tuple(sorted(x.params["axis"])) for x in roots if x.op in REDUCTIONS}
