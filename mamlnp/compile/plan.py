"""From steps to something that runs: loops as kernels, memory by lifetime, rows of addresses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import generated
from ..backend.generated import CODES, LoopNest, Operand, Result, Value
from .fuse import COMPARISONS, Access, Loop, Memory, Step, batch, contiguous, copied, matrix, space
from .passes import PRODUCTS
from .trace import REDUCTIONS, Graph, Node, Shape

ALIGNMENT = 64  # bytes: a cache line


class At(NamedTuple):
    """The address of a node's memory, some bytes on."""

    node: Node | None  # None: where a kernel reports bad data
    offset: int


class Fixed(NamedTuple):
    """Attributes:
    name: of a kernel that is written by hand (see backend.replay).
    code: the type of the elements it is for.
    """

    name: str
    code: str


class Row(NamedTuple):
    """One call of a kernel.

    Attributes:
        kernel: which.
        words: what it is called with: integers and addresses.
    """

    kernel: LoopNest | Fixed
    words: list[Any]


class Eager(NamedTuple):
    """One operation run as it is without a plan, for what no kernel does."""

    node: Node


def _bits(code: str, number: float) -> int:
    return int(number) if code == "i8" else int(np.float64(number).view(np.int64))


# ---- loops


def _collapsed(space: Shape, strides: list[Shape]) -> tuple[Shape, list[Shape]]:
    """Fewer, longer loops: axes that every operand walks through as one become one."""
    sides: list[int] = []
    walks: list[list[int]] = [[] for _ in strides]
    for axis, side in enumerate(space):
        if side == 1:
            continue
        steps = [s[axis] for s in strides]
        if sides and all(w[-1] == side * s for w, s in zip(walks, steps, strict=True)):
            sides[-1] *= side
            for w, s in zip(walks, steps, strict=True):
                w[-1] = s
        else:
            sides.append(side)
            for w, s in zip(walks, steps, strict=True):
                w.append(s)
    if not sides:
        return (1,), [(0,) for _ in strides]
    order = list(range(len(sides)))
    unit = [sum(w[axis] in (0, 1) for w in walks) for axis in order]
    inner = max(order, key=lambda axis: (unit[axis], axis))
    order.remove(inner)
    order.append(inner)
    return tuple(sides[a] for a in order), [tuple(w[a] for a in order) for w in walks]


def _broadcast(access: Access, shape: Shape, space: Shape) -> Shape:
    """Strides over a larger space: 0 where the operand is repeated."""
    missing = len(space) - len(shape)
    own = (0 if side == 1 else s for side, s in zip(shape, access.strides, strict=True))
    return (0,) * missing + tuple(own)


class _Nest:
    """A Loop being written as a LoopNest and its row."""

    def __init__(self, loop: Loop, memory: Memory, stored: set[Node]) -> None:
        self.loop, self.memory = loop, memory
        self.operands: dict[tuple[Node, int, Shape], int] = {}
        self.numbers: dict[tuple[str, str], Any] = {}  # (type, as text) -> the number
        self.places: dict[Node, int] = {}
        self.values: list[Value] = []
        for node in sorted(loop.inside, key=lambda x: x.number):
            if node.op not in REDUCTIONS:
                self.places[node] = len(self.values)
                self.values.append(self._value(node))
        self.outputs = [r for r in loop.roots if r in stored]
        results = [self._result(r) for r in self.outputs]
        strides = [key[2] for key in self.operands] + [s for _, _, s in results]
        sides, walks = _collapsed(loop.space, strides)
        depth = len(sides)

        def operand(dtype: Any, walk: Shape) -> Operand:
            return Operand(CODES[dtype], walk[-1] if walk[-1] in (0, 1) else -1)

        read = list(self.operands)
        reads = tuple(operand(k[0].dtype, w) for k, w in zip(read, walks, strict=False))
        written = tuple(
            Result(source, operand(r.dtype, w), kind)
            for (source, kind, _), r, w in zip(
                results, self.outputs, walks[len(read) :], strict=True
            )
        )
        self.nest = LoopNest(
            depth, reads, tuple(code for code, _ in self.numbers), tuple(self.values), written
        )
        self.words: list[Any] = [*sides]
        places = [At(root, offset * root.dtype.itemsize) for root, offset, _ in read]
        places += [At(r, 0) for r in self.outputs]
        for place, walk, x in zip(places, walks, [*reads, *(r.operand for r in written)],
                                  strict=True):  # fmt: skip
            self.words += [place, *walk[: depth - (x.inner >= 0)]]
        self.words += [_bits(code, number) for (code, _), number in self.numbers.items()]
        self.words += [r.size for r in self.outputs if r.op in REDUCTIONS]

    def _source(self, x: Any, within: str = "f8") -> tuple[str, int]:
        if x in self.places if x.__class__ is Node else False:
            return "v", self.places[x]
        if x.__class__ is Node and x.op != "fill":
            access = self.memory.access(x)
            strides = _broadcast(access, x.shape, self.loop.space)
            key = (access.root, access.offset, strides)
            return "x", self.operands.setdefault(key, len(self.operands))
        number = x.params["value"] if x.__class__ is Node else x
        name = ("i8" if within == "i8" else "f8", repr(number))
        self.numbers.setdefault(name, number)
        return "c", list(self.numbers).index(name)

    def _value(self, node: Node) -> Value:
        kinds = [a.dtype for a in node.nodes]
        if node.op in COMPARISONS:
            kind = np.result_type(*kinds, *(a for a in node.args if a.__class__ is not Node))
            within = "i8" if kind.kind == "b" else CODES[kind]
        elif node.op in ("copy", "isfinite", "astype"):
            within = CODES[kinds[0]]
        else:
            within = CODES[node.dtype]
        exponent, args = None, node.args
        number = args[1] if node.op == "power" and args[1].__class__ is not Node else None
        if number in generated.POWERS:
            exponent, args = float(number), args[:1]
        sources = tuple(self._source(a, within) for a in args)
        return Value(node.op, sources, CODES[node.dtype], within, exponent)

    def _result(self, root: Node) -> tuple[tuple[str, int], str, Shape]:
        if root.op not in REDUCTIONS:
            return ("v", self.places[root]), "", contiguous(root.shape)
        whole = iter(contiguous(root.shape))
        axes = root.params["axis"]
        strides = tuple(0 if i in axes else next(whole) for i in range(len(space(root))))
        return self._source(root.args[0]), root.op, strides


# ---- single operations


def _product(node: Node, memory: Memory) -> Row | Eager:
    if node.dtype not in (np.float32, np.float64) or not node.size or not node.args[0].size:
        return Eager(node)
    a, b = (memory.access(x) for x in node.args[:2])
    (ta, lda), (tb, ldb) = (
        matrix(x.shape, at.strides) or (False, 0) for x, at in zip(node.args, (a, b), strict=False)
    )
    sa, sb = (batch_stride(x, node, at) for x, at in zip(node.args, (a, b), strict=False))
    (n, k), m = node.args[0].shape[-2:], node.shape[-1]
    count, sc = math.prod(node.shape[:-2]), n * m
    if sa is None or sb is None:
        return Eager(node)
    if count > 1 and sb == 0 and not ta and sa == n * lda:  # one b for all: one long product
        n, count = n * count, 1
    words = [
        count, int(ta), int(tb), n, m, k,
        At(a.root, a.offset * node.dtype.itemsize), lda, sa,
        At(b.root, b.offset * node.dtype.itemsize), ldb, sb,
        At(node, 0), m, sc, int(len(node.args) == 3),
    ]  # fmt: skip
    return Row(Fixed("product", CODES[node.dtype]), words)


def batch_stride(x: Node, product: Node, at: Access) -> int | None:
    """From one matrix of a batch to the next; 0 if one serves all."""
    lead = product.shape[:-2]
    own = math.prod(x.shape[:-2])
    if own == 1:
        return 0
    return batch(x.shape, at.strides) if own == math.prod(lead) else None


WINDOWS_AT_ONCE = 1 << 19  # bytes: with what else a product reads, a cache's worth


def _convolution(node: Node, memory: Memory, scratch: Node) -> Row | Eager:
    kind = ("conv", "conv_weights", "conv_images").index(node.op)
    second = memory.access(node.args[1])
    if kind == 2:
        images, rows, filters = node, node.args[0], node.args[0].shape[-1]
    else:
        images, filters = node.args[0], node.shape[-1]
        rows = node if kind == 0 else node.args[1]
    tasks, n, (h, w, c) = math.prod(images.shape[:-4]), images.shape[-4], images.shape[-3:]
    (oh, ow), (kh, kw) = node.params["counts"], node.params["size"]
    (top, _), (left, _) = node.params["padding"]
    length = kh * kw * c
    tw, ldw = False, filters
    weights, sw = At(node, 0), length * filters
    if kind != 1:
        tw, ldw = matrix(node.args[1].shape, second.strides) or (False, 0)
        weights = At(second.root, second.offset * node.dtype.itemsize)
        shared = math.prod(node.args[1].shape[:-2]) == 1
        sw = 0 if shared else batch(node.args[1].shape, second.strides) or 0
    words = [
        kind, tasks, n, h, w, c, oh, ow, kh, kw,
        node.params["stride"], top, left, filters, At(scratch, 0), _lines(node, ow * length),
        At(memory.access(images).root, 0), weights, int(tw), ldw, sw,
        At(memory.access(rows).root, 0), filters, n * oh * ow * filters, int(len(node.args) == 3),
    ]  # fmt: skip
    return Row(Fixed("convolution", CODES[node.dtype]), words)


def _lines(node: Node, line: int) -> int:
    """Of windows made at once, ``line`` elements each."""
    return max(1, WINDOWS_AT_ONCE // (line * node.dtype.itemsize))


def _scratch(node: Node) -> Node:
    """The memory for some windows of a convolution."""
    (_, ow), (kh, kw) = node.params["counts"], node.params["size"]
    channels = (node if node.op == "conv_images" else node.args[0]).shape[-1]
    line = ow * kh * kw * channels
    return Node("scratch", (), {}, (_lines(node, line), line), node.dtype)


def _windows(node: Node, memory: Memory) -> Row:
    x = node.args[0]
    image = x if node.op != "fold" else node
    window = node if node.op != "fold" else x
    n, (h, w, c) = math.prod(image.shape[:-3]), image.shape[-3:]
    params = node.params
    words = [At(memory.access(x).root, 0), At(node, 0), n, h, w, c, *window.shape[-3:-1]]
    words += [*params["size"], params["stride"]]
    if node.op != "pool_positions":
        words += [params["padding"][0][0], params["padding"][1][0]]
    return Row(Fixed(node.op, CODES[x.dtype]), words)


def _pooled(node: Node, memory: Memory) -> Row:
    image, windows = (node, node.args[0]) if node.op == "pool_put" else (node.args[0], node)
    n, (h, w, c) = math.prod(image.shape[:-3]), image.shape[-3:]
    words = [At(memory.access(x).root, 0) for x in node.nodes] + [At(node, 0), n, h, w, c]
    words += [*windows.shape[-3:-1], *node.params["size"]]
    return Row(Fixed(node.op, CODES[node.args[0].dtype]), words)


def _indexed(node: Node, memory: Memory) -> Row:
    x, indices = (memory.access(a).root for a in node.args)
    words = [At(x, 0), At(indices, 0), At(node, 0), indices.size]
    words += [x.size if node.op == "take" else node.size, At(None, 0)]
    return Row(Fixed(node.op, CODES[x.dtype]), words)


def _single(node: Node, memory: Memory, products: bool) -> Row | Eager:
    if node.op == "matmul":
        return _product(node, memory) if products else Eager(node)
    if node.op == "class_labels" and node.dtype == np.int64:
        words = [At(memory.access(node.args[0]).root, 0), At(node, 0), node.size]
        words += [node.params["num_classes"], At(None, 0)]
        return Row(Fixed(node.op, "i8"), words)
    known = node.nodes[0].dtype in (np.float32, np.float64) if node.nodes else False
    if node.op in ("patches", "fold", "pool_positions") and known:
        return _windows(node, memory)
    if node.op.startswith("pool_"):
        return _pooled(node, memory)
    if node.op in ("take", "put") and known and node.args[1].dtype == np.int64:
        return _indexed(node, memory)
    return Eager(node)


def _adds(row: Row | Eager) -> bool:
    """Does it add to what is where its result goes?"""
    return (
        isinstance(row, Row)
        and isinstance(row.kernel, Fixed)
        and row.kernel.name in ("product", "convolution")
        and row.words[-1] == 1
    )


# ---- memory


class Arena:
    """Which bytes of one block belong to which node, and when."""

    def __init__(self, *, reuse: bool) -> None:
        self.reuse = reuse
        self.offsets: dict[Node, int] = {}
        self.size = 0
        self._free: list[tuple[int, int]] = []  # (offset, size), by offset

    @staticmethod
    def bytes_of(node: Node) -> int:
        return max(1, -(-node.size * node.dtype.itemsize // ALIGNMENT)) * ALIGNMENT

    def take(self, node: Node) -> None:
        """The smallest gap that is large enough, else new memory."""
        need = self.bytes_of(node)
        fitting = [(size, offset) for offset, size in self._free if size >= need]
        if fitting:
            size, offset = min(fitting)
            self._free.remove((offset, size))
            if size > need:
                self._free.append((offset + need, size - need))
        else:
            offset = self.size
            last = max(self._free, default=(0, 0))
            if last[1] and sum(last) == self.size:  # grow the gap at the end
                self._free.remove(last)
                offset = last[0]
            self.size = offset + need
        self.offsets[node] = offset

    def release(self, node: Node) -> None:
        if not self.reuse:
            return
        start, stop = self.offsets[node], self.offsets[node] + self.bytes_of(node)
        for gap in list(self._free):
            if gap[0] + gap[1] == start:
                start = gap[0]
                self._free.remove(gap)
            elif gap[0] == stop:
                stop = gap[0] + gap[1]
                self._free.remove(gap)
        self._free.append((start, stop - start))


class Plan:
    """Everything a replay needs; shared by the Replays made of it.

    Args:
        graph: to compute.
        steps: of the graph, in order.
        products: whether there is a library whose products can be called.
        reuse: memory.

    Attributes:
        rows: calls in order.
        arena: where every kept node is.
        inputs, outputs: the graph's.
        constants: known arrays, which stay where they are.
    """

    def __init__(
        self, graph: Graph, steps: Sequence[Step], *, products: bool = True, reuse: bool = True
    ) -> None:
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.memory = Memory()
        self.steps: list[Step] = []
        reads = [self._reads(step) for step in steps]
        stored = {root for found in reads for root in found} | set(self.outputs)
        self.rows: list[Row | Eager] = []
        self.arena = Arena(reuse=reuse)
        self.constants = {
            x: np.ascontiguousarray(x.data)
            for found in reads for x in found if x.op == "constant"
        }  # fmt: skip
        last = {root: i for i, found in enumerate(reads) for root in found}
        fixed = {*self.inputs, *self.outputs, *self.constants}
        for i, step in enumerate(steps):
            dying = [x for x in reads[i] if last[x] == i and x not in fixed]
            scratch = None
            if isinstance(step, Loop):
                nest = _Nest(step, self.memory, stored)
                made = nest.outputs
                row: Row | Eager = Row(nest.nest, nest.words)
            else:
                made = [step]
                if step.op in ("conv", "conv_weights", "conv_images"):
                    scratch = _scratch(step)
                    self.arena.take(scratch)
                    row = _convolution(step, self.memory, scratch)
                else:
                    row = _single(step, self.memory, products)
            for node in made:
                heir = self._heir(step, node, dying) if node not in fixed else None
                if heir is None and _adds(row):
                    self._begin(node)
                if node in fixed:
                    continue
                if heir is not None:
                    dying.remove(heir)
                    self.arena.offsets[node] = self.arena.offsets[heir]
                else:
                    self.arena.take(node)
            self.steps.append(step)
            self.rows.append(row)
            for node in [*dying, scratch] if scratch is not None else dying:
                self.arena.release(node)
            for node in made:  # never read: kept only while it is made
                if node not in last and node not in fixed:
                    self.arena.release(node)

    def _reads(self, step: Step) -> list[Node]:
        args = step.reads if isinstance(step, Loop) else step.nodes
        return list(dict.fromkeys(self.memory.access(a).root for a in args))

    def _begin(self, product: Node) -> None:
        """Copy what a product adds to, which others still need, to where it adds."""
        copy = copied(product.args[2])
        loop = Loop(copy.shape)
        loop.roots, loop.inside, loop.reads = [copy], {copy: None}, {product.args[2]: None}
        nest = _Nest(loop, self.memory, {copy})
        words = [At(product, 0) if w == At(copy, 0) else w for w in nest.words]
        self.steps.append(loop)
        self.rows.append(Row(nest.nest, words))

    def _heir(self, step: Step, node: Node, dying: list[Node]) -> Node | None:
        """What a result can take the place of: read at the same place in the same moment."""
        if isinstance(step, Node):
            if step.op not in PRODUCTS or len(step.args) < 3 or step.args[2] not in dying:
                return None
            factors = [self.memory.access(a).root for a in step.args[:2]]
            return step.args[2] if step.args[2] not in factors else None
        if node.op in REDUCTIONS or not self.arena.reuse:
            return None
        needed = _made_of(node, step)
        for x in dying:
            views = [a for a in step.reads if self.memory.access(a).root is x]
            if (
                x.dtype == node.dtype
                and x.size == node.size
                and all(a.shape == node.shape and self.memory.is_whole(a) for a in views)
                and any(a in needed for a in views)  # or it might be stored before x is read
            ):
                return x
        return None

    def described(self, counts: dict[str, int]) -> str:
        """What is done, for a person to read."""
        lines = [
            f"{sum(row.__class__ is Row for row in self.rows)} kernel calls and "
            f"{sum(row.__class__ is Eager for row in self.rows)} operations run eagerly, "
            f"{self.arena.size / 1e6:.3g} MB held, "
            f"{sum(map(operations, self.steps)) / 1e6:.4g} million operations",
            "operations: " + ", ".join(f"{n} {name}" for name, n in counts.items()),
        ]
        for i, step in enumerate(self.steps):
            lines.append(f"{i:5} {operations(step):>12,}  {sentence(step)}")
        return "\n".join(lines)


def _made_of(root: Node, loop: Loop) -> set[Node]:
    """What is read or computed in a loop for one of its results."""
    found: set[Node] = set()
    stack = [root]
    while stack:
        new = {a for a in stack.pop().nodes if a not in found}
        found |= new
        stack += [a for a in new if a in loop.inside]
    return found


def operations(step: Step) -> int:
    """Additions, multiplications and the like of one step."""
    if isinstance(step, Loop):
        return math.prod(step.space) * len(step.inside)
    if step.op == "matmul":
        return 2 * step.size * step.args[0].shape[-1]
    if step.op in PRODUCTS:
        x = step if step.op == "conv_images" else step.args[0]
        rows = step.args[0] if step.op == "conv_images" else step
        windows = math.prod(x.shape[:-3]) * math.prod(step.params["counts"])
        return 2 * windows * math.prod(step.params["size"]) * x.shape[-1] * rows.shape[-1]
    return step.size


def sentence(step: Step) -> str:
    """What a step does, for a person to read."""
    if isinstance(step, Node):
        return f"{step!r} of {', '.join(map(repr, step.args))}"
    found = Counter(node.op for node in step.inside if node not in step.roots)
    through = " ".join(f"{n}x{op}" if n > 1 else op for op, n in found.items())
    made = ", ".join(map(repr, step.roots))
    return f"loop over {list(step.space)}: {made}{' by ' + through if through else ''}"


class BadDataError(Exception):
    """Only the function itself, run eagerly, can say what is wrong."""
