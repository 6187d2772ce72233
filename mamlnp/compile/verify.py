"""What the compiler made, held against what it was made of, by other means than its own.

:func:`check_plan` replays a finished plan without numbers: it knows of every byte whose value lies
there, and follows each step's reads and writes. :class:`Passes` runs the graphs before and after
each pass, operation by operation in NumPy and in float64, on the same numbers. Both run under
:func:`debug_compile`. Neither shares code with the passes, the plan's lifetimes or the views'
strides: where a value is comes from its index, axis by axis.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import reference, to_host
from ..backend.generated import CODES, EXPRESSIONS, LoopNest, Operand
from ..errors import CompileError
from ..op import registry
from .fuse import Loop
from .plan import At, Eager, Plan, Row
from .trace import Graph, Node, Shape

MOST_POINTS = 4096  # of an array of which every element is looked at
DRAWN = 256  # elements that are looked at in a larger one, with its corners and edges
TOLERANCES = {"f4": 1e-4, "f8": 1e-9}  # of one graph's results, relative to the largest


class _Setting:
    depth = 0  # how many debug_compile() are under way, in any thread


@contextlib.contextmanager
def debug_compile() -> Iterator[None]:
    """Check every plan that is made, in any thread, before it runs.

    Each pass of the compiler has to give a graph with the same values, and each step of a plan has
    to read what it is said to read. The first call of a compiled function takes longer for it;
    later calls do not.

    Raises:
        CompileError: naming the pass, or the step and what it reads instead.

    >>> from mamlnp import array, compile, grad
    >>> with debug_compile():
    ...     compile(grad(lambda x: (x**3).sum()))(array([1.0, 2.0]))
    Array([ 3., 12.])
    """
    _Setting.depth += 1
    try:
        yield
    finally:
        _Setting.depth -= 1


def is_debugging() -> bool:
    """Is any debug_compile() under way?"""
    return _Setting.depth > 0


# ---- indices: which element of what is in memory a view's element is


def _through_reshape(x: Node, index: np.ndarray) -> np.ndarray:
    return _unravelled(_flat(index, x.shape), x.args[0].shape)


def _through_transpose(x: Node, index: np.ndarray) -> np.ndarray:
    found = np.empty_like(index)
    found[:, list(x.params["axes"])] = index
    return found


def _through_broadcast(x: Node, index: np.ndarray) -> np.ndarray:
    return _narrowed(index, x.args[0].shape)


def _through_slices(x: Node, index: np.ndarray) -> np.ndarray:
    shape, chosen = x.args[0].shape, list(x.params["index"])
    if ... not in [c if c is ... else None for c in chosen]:
        chosen.append(...)
    at = next(i for i, c in enumerate(chosen) if c is ...)
    named = sum(c is not None and c is not ... for c in chosen)
    chosen[at : at + 1] = [slice(None)] * (len(shape) - named)
    columns, axis, column = [], 0, 0
    for c in chosen:
        if c is None:
            column += 1
        elif isinstance(c, slice):
            start, _, step = c.indices(shape[axis])
            columns.append(start + step * index[:, column])
            axis, column = axis + 1, column + 1
        else:
            columns.append(np.full(len(index), int(c) % shape[axis]))
            axis += 1
    return np.stack(columns, 1) if columns else np.zeros((len(index), 0), np.int64)


THROUGH: dict[str, Callable[[Node, np.ndarray], np.ndarray]] = {
    "reshape": _through_reshape,
    "transpose": _through_transpose,
    "broadcast_to": _through_broadcast,
    "slices": _through_slices,
    "anew": lambda _, index: index,
}


def _flat(index: np.ndarray, shape: Shape) -> np.ndarray:
    """Indices, a row each, counted through an array of this shape."""
    found = np.zeros(len(index), np.int64)
    for column, side in zip(index.T, shape, strict=True):
        found = found * side + column
    return found


def _unravelled(flat: np.ndarray, shape: Shape) -> np.ndarray:
    index = np.empty((len(flat), len(shape)), np.int64)
    for axis in reversed(range(len(shape))):
        index[:, axis] = flat % shape[axis]
        flat = flat // shape[axis]
    return index


def _narrowed(index: np.ndarray, shape: Shape) -> np.ndarray:
    """Of what was broadcast, the indices into what it was before."""
    own = index[:, index.shape[1] - len(shape) :].copy()
    own[:, [side == 1 for side in shape]] = 0
    return own


def _origin(x: Node, index: np.ndarray) -> tuple[Node, np.ndarray]:
    """What has memory of its own, and which of its elements these elements of x are."""
    while x.op in THROUGH:
        index, x = THROUGH[x.op](x, index), x.args[0]
    return x, _flat(index, x.shape)


def _points(shape: Shape) -> np.ndarray:
    """Indices into an array: all, or the ends of every axis and some drawn at random."""
    size = math.prod(shape)
    if size <= MOST_POINTS:
        return _unravelled(np.arange(size), shape)
    last = np.array(shape, np.int64) - 1
    ends = np.diag(last)
    drawn = np.random.default_rng(size).integers(0, last + 1, (DRAWN, len(shape)))
    return np.concatenate([np.minimum(np.eye(len(shape), dtype=np.int64), last), ends, last - ends,
                           last[None], drawn])  # fmt: skip


# ---- memory


class Walk(NamedTuple):
    """How a kernel goes through memory.

    Attributes:
        at: where it begins.
        sides: of its loops.
        strides: in elements, one for each loop.
        dtype: of the elements.
    """

    at: At
    sides: Shape
    strides: Shape
    dtype: np.dtype[Any]

    def offsets(self, points: np.ndarray) -> np.ndarray:
        """In bytes from its beginning."""
        return points @ np.array(self.strides, np.int64) * self.dtype.itemsize

    def reach(self) -> tuple[int, int]:
        """The first byte and the one after the last, from its beginning."""
        ends = [(n - 1) * s for n, s in zip(self.sides, self.strides, strict=True)]
        low, high = sum(min(0, e) for e in ends), sum(max(0, e) for e in ends)
        return low * self.dtype.itemsize, (high + 1) * self.dtype.itemsize


class Span(NamedTuple):
    """Bytes of one step.

    Attributes:
        space: "block", or the input, output or constant whose own memory it is.
        start: the first byte.
        stop: the one after the last.
        walk: how they are gone through, if an element at a time.
        what: what is there, in words.
    """

    space: Any
    start: int
    stop: int
    walk: Walk | None
    what: str

    def meets(self, other: Span) -> bool:
        return self.space == other.space and self.start < other.stop and other.start < self.stop

    def keeps_step(self, other: Span) -> bool:
        """Does each element lie where the other has the one of the same moment?"""
        a, b = self.walk, other.walk
        if a is None or b is None or a.dtype.itemsize != b.dtype.itemsize or a.sides != b.sides:
            return False
        moving = zip(a.sides, a.strides, b.strides, strict=True)
        return self.start == other.start and all(s == t for n, s, t in moving if n > 1)


class _Verifier:
    """What lies where, while the steps of a plan go by."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.named = {*plan.inputs, *plan.outputs}
        self.held: dict[Any, list[tuple[int, int, Node]]] = {"block": []}
        for x in (*plan.inputs, *plan.constants):
            self.held[x] = [(0, x.size * x.dtype.itemsize, x)]
        for x in plan.outputs:
            self.held[x] = []
        self.writable = {"block", *plan.outputs}
        self.reads: list[Span] = []
        self.writes: list[tuple[Span, Node, set[Walk]]] = []  # and what is read for each element
        self.step = ""

    def fail(self, what: str) -> CompileError:
        return CompileError(
            f"compile: in the plan, {self.step} {what}. This is an error of mamlnp: report it, and "
            "leave compile out meanwhile."
        )

    def check(self) -> None:
        plan = self.plan
        self.step = "the set of results"
        if len({*plan.inputs, *plan.outputs}) < len(plan.inputs) + len(plan.outputs):
            raise self.fail("shares memory with an input or another result")
        for x, data in plan.constants.items():
            same = data.flags.c_contiguous and (data.shape, data.dtype) == (x.shape, x.dtype)
            if not same or data.tobytes() != np.asarray(x.data).tobytes():
                raise self.fail(f"needs the constant {x!r}, which is kept as another")
        if len(plan.steps) != len(plan.rows):
            raise self.fail(f"has {len(plan.steps)} steps but {len(plan.rows)} calls")
        for i, (step, row) in enumerate(zip(plan.steps, plan.rows, strict=True)):
            made = ", ".join(map(repr, step.roots if isinstance(step, Loop) else [step]))
            self.step = f"step {i} ({'a loop for ' if isinstance(step, Loop) else ''}{made})"
            self.reads, self.writes = [], []
            if isinstance(row, Eager):
                self._eager(step, row.node)
            elif isinstance(row.kernel, LoopNest):
                self._loop(step, row)
            else:
                self._kernel(step, row)
            self._carry_out()
        for x in plan.outputs:
            self.step = f"the result {x!r}"
            if self.held[x] != [(0, x.size * x.dtype.itemsize, x)]:
                raise self.fail("is not whole in its memory at the end")

    # -- places

    def _place(self, at: At) -> tuple[Any, int]:
        """Which memory, and the byte of it, as a replay will have it."""
        if at.node is None:
            raise self.fail("has no address where an array should be")
        if at.node in self.named or at.node in self.plan.constants:
            return at.node, at.offset
        if at.node not in self.plan.arena.offsets:
            raise self.fail(f"reads or writes {at.node!r}, which has no memory")
        return "block", self.plan.arena.offsets[at.node] + at.offset

    def _size(self, space: Any) -> int:
        return self.plan.arena.size if space == "block" else space.size * space.dtype.itemsize

    def _span(self, walk: Walk, what: str) -> Span:
        space, start = self._place(walk.at)
        low, high = walk.reach() if math.prod(walk.sides) else (0, 0)
        if start + low < 0 or start + high > self._size(space) or start % walk.dtype.itemsize:
            raise self.fail(f"goes beyond the memory of {what}, or between its elements")
        return Span(space, start + low, start + high, walk, what)

    def read(self, walk: Walk, x: Node, points: np.ndarray, index: np.ndarray) -> None:
        """A kernel at these points of its loops has to find x's elements at these indices."""
        if not math.prod(walk.sides):
            return
        span = self._span(walk, repr(x))
        origin, expected = _origin(x, index)
        if walk.dtype != origin.dtype:
            raise self.fail(f"reads {x!r} as {walk.dtype}")
        for start, stop, node in self.held[span.space]:
            if start <= span.start and span.stop <= stop:
                if node is not origin:
                    raise self.fail(f"reads {x!r} where {node!r} is")
                found = self._place(walk.at)[1] + walk.offsets(points) - start
                if not np.array_equal(found, expected * walk.dtype.itemsize):
                    raise self.fail(f"reads other elements of {x!r} than it should")
                self.reads.append(span)
                return
        there = [n for a, b, n in self.held[span.space] if a < span.stop and span.start < b]
        raise self.fail(
            f"reads {x!r} where {' and '.join(map(repr, there)) or 'nothing'} is, or not all of it"
        )

    def read_whole(self, at: At, x: Node) -> None:
        """A kernel that goes through x in order."""
        sides = (x.size,)
        points = _points(sides)
        self.read(Walk(at, sides, (1,), x.dtype), x, points, _unravelled(points[:, 0], x.shape))

    def write(
        self, walk: Walk, made: Node, points: np.ndarray, flat: np.ndarray, of: set[Walk]
    ) -> None:
        """A kernel at these points of its loops makes these elements of a node.

        Args:
            walk: as for a read.
            made: the node.
            points: of the loops.
            flat: the number of the element made at each.
            of: the operands that an element is computed of, and so is written after: it may take
                the place of theirs.
        """
        if walk.dtype != made.dtype:
            raise self.fail(f"writes {made!r} as {walk.dtype}")
        if not np.array_equal(walk.offsets(points), flat * walk.dtype.itemsize):
            raise self.fail(f"writes the elements of {made!r} out of order")
        space, start = self._place(walk.at)
        stop = start + made.size * made.dtype.itemsize
        if space not in self.writable:
            raise self.fail(f"writes {made!r} over {space!r}")
        if start < 0 or stop > self._size(space) or start % made.dtype.itemsize:
            raise self.fail(f"writes {made!r} beyond its memory, or between elements")
        span = Span(space, start, stop, walk, repr(made))
        self.writes.append((span, made, of))

    def write_whole(self, at: At, made: Node) -> None:
        points = _points((made.size,))
        walk = Walk(at, (made.size,), (1,), made.dtype)
        self.write(walk, made, points, points[:, 0], set())

    def _carry_out(self) -> None:
        """The step's writes, unless they meet what it still reads, or each other."""
        for i, (span, made, of) in enumerate(self.writes):
            for other in self.reads:
                if span.meets(other) and not (other.walk in of and span.keeps_step(other)):
                    raise self.fail(f"writes {made!r} over {other.what}, which it reads")
            for other, also, _ in self.writes[:i]:
                if span.meets(other):
                    raise self.fail(f"writes {made!r} and {also!r} to the same memory")
        for span, made, _ in self.writes:
            self._forget(span)
            self.held[span.space].append((span.start, span.stop, made))

    def _forget(self, span: Span) -> None:
        held = self.held[span.space]
        self.held[span.space] = [
            (a, b, node) for a, b, node in held if b <= span.start or span.stop <= a
        ]

    def _holds(self, at: At, x: Node) -> bool:
        """Is the whole of x, or a copy of it, at an address?"""
        space, start = self._place(at)
        stop = start + x.size * x.dtype.itemsize
        return any(
            (a, b) == (start, stop) and (node is x or (node.op == "copy" and node.args[0] is x))
            for a, b, node in self.held[space]
        )

    # -- loops

    def _loop(self, step: Any, row: Row) -> None:
        if not isinstance(step, Loop):
            raise self.fail("is no loop but is run as one")
        nest: Any = row.kernel
        words = iter(row.words)
        sides = tuple(next(words) for _ in range(nest.depth))

        def walk(operand: Operand) -> Walk:
            fixed = (operand.inner,) if operand.inner >= 0 else ()
            at = next(words)
            strides = (*(next(words) for _ in range(nest.depth - len(fixed))), *fixed)
            return Walk(at, sides, strides, np.dtype(operand.code))

        read = [walk(x) for x in nest.reads]
        written = [walk(r.operand) for r in nest.results]
        numbers = [_number(code, next(words)) for code in nest.numbers]
        sizes = [next(words) if r.reduction else 0 for r in nest.results]
        if list(words) or math.prod(sides) != math.prod(step.space):
            raise self.fail(f"is called with other words than its kernel takes, over {sides}")
        made = [r for r in step.inside if r.op not in ("sum", "max", "min")]
        made.sort(key=lambda x: x.number)
        if [v.op for v in nest.values] != [x.op for x in made]:
            raise self.fail("computes other operations than it should")
        roots = [self._root(step, w.at) for w in written]
        points = _points(sides)
        first: CompileError | None = None
        for axis in reversed(range(nest.depth)):  # where the innermost loop was in the space
            order = [*range(nest.depth - 1)]
            order.insert(axis, nest.depth - 1)
            flat = _flat(points[:, order], tuple(sides[d] for d in order))
            index = _unravelled(flat, step.space)
            self.reads, self.writes = [], []
            try:
                self._values(step, nest, made, read, numbers, points, index)
                self._results(step, nest, made, roots, read, written, numbers, sizes, points,
                              index)  # fmt: skip
                return
            except CompileError as error:
                first = first or error
        assert first is not None
        raise first

    def _root(self, step: Loop, at: At) -> Node:
        """Which of the loop's roots is written there; where a product begins, what it adds to."""
        if at.node in step.roots:
            return at.node
        if len(step.roots) == 1 and step.roots[0].op == "copy":
            return step.roots[0]
        raise self.fail(f"writes to the place of {at.node!r}, which it does not compute")

    def _values(
        self, step: Loop, nest: LoopNest, made: list[Node], read: list[Walk], numbers: list[Any],
        points: np.ndarray, index: np.ndarray,
    ) -> None:  # fmt: skip
        for node, value in zip(made, nest.values, strict=True):
            args = node.args
            if value.exponent is not None:
                if node.op != "power" or value.exponent != args[1]:
                    raise self.fail(f"takes another power for {node!r}")
                args = args[:1]
            if value.code != CODES.get(node.dtype) or len(value.args) != len(args):
                raise self.fail(f"computes {node!r} of another type or of other arguments")
            if node.shape != step.space:
                raise self.fail(f"computes {node!r} over {list(step.space)}")
            for x, source in zip(args, value.args, strict=True):
                self._source(source, x, node, made, read, numbers, points, index)

    def _source(
        self, source: tuple[str, int], x: Any, user: Node, made: list[Node], read: list[Walk],
        numbers: list[Any], points: np.ndarray, index: np.ndarray,
    ) -> None:  # fmt: skip
        """Is what a value or a result is made of x?"""
        kind, i = source
        if kind == "v":
            if made[i] is not x or (user in made and made.index(user) <= i):
                raise self.fail(f"computes {user!r} of {made[i]!r} in the place of {x!r}")
        elif kind == "x":
            if x.__class__ is not Node:
                raise self.fail(f"reads memory in the place of {x!r}")
            self.read(read[i], x, points, _narrowed(index, x.shape))
        else:
            number = x.params["value"] if x.__class__ is Node and x.op == "fill" else x
            if number.__class__ is Node or repr(float(number)) != repr(float(numbers[i])):
                raise self.fail(f"computes {user!r} of {numbers[i]!r} in the place of {x!r}")

    def _results(
        self, step: Loop, nest: LoopNest, made: list[Node], roots: list[Node], read: list[Walk],
        written: list[Walk], numbers: list[Any], sizes: list[int], points: np.ndarray,
        index: np.ndarray,
    ) -> None:  # fmt: skip
        for result, root, walk, size in zip(nest.results, roots, written, sizes, strict=True):
            if not result.reduction:
                if result.value[0] != "v" or made[result.value[1]] is not root:
                    raise self.fail(f"stores something else as {root!r}")
                needed = _operands(nest, result.value)
                of = {walk for i, walk in enumerate(read) if i in needed}
                self.write(walk, root, points, _flat(index, root.shape), of)
                continue
            if result.reduction != root.op or size != root.size:
                raise self.fail(f"begins {root!r} with {size} elements, or not as a {root.op}")
            if root.args[0].shape != step.space:
                raise self.fail(f"reduces {root.args[0]!r} over {list(step.space)}")
            self._source(result.value, root.args[0], root, made, read, numbers, points, index)
            kept = [a for a in range(len(step.space)) if a not in root.params["axis"]]
            self.write(walk, root, points, _flat(index[:, kept], root.shape), set())

    # -- one operation

    def _eager(self, step: Any, node: Node) -> None:
        if node is not step:
            raise self.fail(f"is run as {node!r}")
        adds = node.op == "matmul" and len(node.args) == 3
        for i, x in enumerate(node.args):
            if x.__class__ is Node:
                access = self.plan.memory.access(x)
                dtype = access.root.dtype
                at = At(access.root, access.offset * dtype.itemsize)
                points = _points(x.shape)
                before = list(self.reads)
                self.read(Walk(at, x.shape, access.strides, dtype), x, points, points)
                if adds and i == 2:  # the sum is made before it is stored
                    self.reads = before
        self.write_whole(At(node, 0), node)

    def _kernel(self, step: Any, row: Row) -> None:
        if isinstance(step, Loop):
            raise self.fail("is a loop but is run as an operation")
        name, code = row.kernel  # type: ignore[misc]
        kind = {"matmul": "product", "conv": "convolution", "conv_weights": "convolution",
                "conv_images": "convolution"}.get(step.op, step.op)  # fmt: skip
        if name != kind or np.dtype(code) != (step.nodes[0] if step.nodes else step).dtype:
            raise self.fail(f"is run as {name} of {code}")
        if name == "product":
            self._product(step, row.words)
        elif name == "convolution":
            self._convolution(step, row.words)
        else:
            self._windows(step, row.words)

    def _adds(self, step: Node, at: At, adds: int) -> None:
        """Is what a product adds to, and nothing else, where its result goes?"""
        if adds != len(step.args) - 2:
            raise self.fail(f"is called with beta = {adds} for {len(step.args)} arguments")
        if adds and not self._holds(at, step.args[2]):
            raise self.fail(f"adds to what is not {step.args[2]!r}")

    def _matrices(
        self, at: At, x: Node, turned: int, lead: int, batch: int, sides: Shape, product: Shape
    ) -> None:
        """Matrices as BLAS reads them; ``product`` are the axes over which they repeat."""
        strides = (batch, *((1, lead) if turned else (lead, 1)))
        walk = Walk(at, sides, strides, x.dtype)
        points = _points(sides)
        row = points[:, 0] * sides[1] + points[:, 1]  # of all matrices, one below the other
        first = _unravelled(row // x.shape[-2], product)
        index = np.concatenate(
            [_narrowed(first, x.shape[:-2]), (row % x.shape[-2])[:, None], points[:, 2:]], 1
        )
        self.read(walk, x, points, index)

    def _product(self, step: Node, words: list[Any]) -> None:
        count, ta, tb, n, m, k, a, lda, sa, b, ldb, sb, c, ldc, sc, adds = words
        x, y, *_ = step.args
        lead = step.shape[:-2]
        whole = math.prod(lead)
        if (count * n, m, k) != (whole * step.shape[-2], step.shape[-1], x.shape[-1]):
            raise self.fail(f"multiplies {count} times {n} x {k} by {k} x {m}")
        if lda < (k, n)[ta] or ldb < (m, k)[tb] or ldc < m:
            raise self.fail("has a matrix whose rows overlap")
        self._matrices(a, x, ta, lda, sa, (count, n, k), lead)
        if count not in (1, whole):
            raise self.fail("takes some matrices of a batch as one")
        self._matrices(b, y, tb, ldb, sb if count == whole else 0, (whole, k, m), lead)
        self._adds(step, c, adds)
        walk = Walk(c, (count, n, m), (sc, ldc, 1), step.dtype)
        points = _points(walk.sides)
        self.write(walk, step, points, _flat(points, walk.sides), set())

    def _convolution(self, step: Node, words: list[Any]) -> None:
        x, y, *_ = step.args
        images, rows = {"conv": (x, step), "conv_weights": (x, y), "conv_images": (step, x)}[
            step.op
        ]
        lead, (n, h, w, c) = images.shape[:-4], images.shape[-4:]
        p = step.params
        oh, ow = reference.window_counts((h, w), p["size"], p["stride"], p["padding"])
        (kh, kw), filters, tasks = p["size"], rows.shape[-1], math.prod(lead)
        kind = ("conv", "conv_weights", "conv_images").index(step.op)
        length = kh * kw * c
        given = words[:14]
        expected = [kind, tasks, n, h, w, c, oh, ow, kh, kw, p["stride"]]
        expected += [p["padding"][0][0], p["padding"][1][0], filters]
        scratch, lines, at_images, at_weights, tw, ldw, sw, at_rows, ldr, sr, adds = words[14:]
        expected += [filters, n * oh * ow * filters]
        if [*given, ldr, sr] != expected or tuple(p["counts"]) != (oh, ow):
            raise self.fail(f"is called with {[*given, ldr, sr]} in the place of {expected}")
        if rows.size != tasks * sr:
            raise self.fail(f"has {rows!r} for {oh} x {ow} windows of {images!r}")
        if kind != 2:
            self.read_whole(at_images, images)
        if kind != 0:
            self.read_whole(at_rows, rows)
        sides = (tasks, length, filters)
        if kind == 1:
            made: tuple[At, Node] = at_weights, step
            if (tw, ldw, sw) != (0, filters, length * filters) or step.size != tasks * sw:
                raise self.fail("writes its weights out of order")
        else:
            made = (at_rows, step) if kind == 0 else (at_images, step)
            sides = (tasks, *y.shape[-2:])
            if (
                sorted(y.shape[-2:]) != sorted((length, filters))
                or ldw < (filters, length)[tw if kind == 0 else 1 - tw]
            ):
                raise self.fail(f"has weights {y!r} for windows of {length} and {filters} filters")
            self._matrices(at_weights, y, tw, ldw, sw, sides, lead)
        self._adds(step, made[0], adds)
        self.write_whole(*made)
        space, start = self._place(scratch)
        size = lines * ow * length * step.dtype.itemsize
        span = Span(space, start, start + size, None, "scratch memory")
        if lines < 1 or space != "block" or start + size > self._size(space):
            raise self.fail("has no memory for its windows")
        for other in (*self.reads, *(s for s, *_ in self.writes)):
            if span.meets(other):
                raise self.fail(f"makes windows over {other.what}")
        self._forget(span)

    def _windows(self, step: Node, words: list[Any]) -> None:
        x, p = step.args[0], step.params
        places = [w for w in words if isinstance(w, At) and w.node is not None]
        numbers = [w for w in words if not isinstance(w, At)]
        if step.op in ("take", "put"):
            expected = [step.args[1].size, (x if step.op == "take" else step).size]
        elif step.op == "class_labels":
            expected = [step.size, p["num_classes"]]
        else:
            image, found = (step, x) if step.op in ("fold", "pool_put") else (x, step)
            apart = step.op in ("pool_winners", "pool_take", "pool_put")
            stride = p.get("stride", p["size"][0])
            padding = p.get("padding", ((0, 0), (0, 0)))
            (h, w), c = image.shape[-3:-1], image.shape[-1]
            counts = reference.window_counts((h, w), p["size"], stride, padding)
            each = math.prod(p["size"]) if step.op in ("fold", "patches") else 1
            if found.shape != (*image.shape[:-3], *counts, c * each):
                raise self.fail(f"has windows {found!r} of {image!r}")
            if apart and p["size"] != (stride, stride):
                raise self.fail("has windows that overlap or are not square")
            expected = [math.prod(image.shape[:-3]), h, w, c, *counts, *p["size"]]
            expected += [stride] * (not apart)
            expected += [padding[0][0], padding[1][0]] * ("padding" in p)
        if numbers != expected or len(places) != len(step.nodes) + 1:
            raise self.fail(f"is called with {numbers} in the place of {expected}")
        for at, arg in zip(places, step.nodes, strict=False):
            self.read_whole(at, arg)
        self.write_whole(places[-1], step)


def _operands(nest: LoopNest, source: tuple[str, int]) -> set[int]:
    """Which operands a value is computed of."""
    of: list[set[int]] = []  # each value
    for value in (*nest.values, nest.values[source[1]]._replace(args=(source,))):
        found = {i for kind, i in value.args if kind == "x"}
        of.append(found.union(*(of[i] for kind, i in value.args if kind == "v")))
    return of[-1]


def _number(code: str, word: int) -> Any:
    return word if code == "i8" else float(np.int64(word).view(np.float64))


def check_plan(plan: Plan) -> None:
    """Does every step of a plan read what it should, and are the results whole at its end?

    Nothing is written but the results and the plan's own block, of which every thread's replay has
    one: so threads cannot meet.

    Raises:
        CompileError: naming the step.
    """
    _Verifier(plan).check()


# ---- graphs, in plain NumPy


def _windows_of(node: Node, x: Any) -> Any:
    p = node.params
    found = reference.patches(x, p["size"], p["stride"], p["padding"])
    return found.reshape(*found.shape[:-4], -1, found.shape[-1])


def _matmul(_: Node, a: Any, b: Any, c: Any = 0.0) -> Any:
    return c + np.matmul(a, b)


def _conv(node: Node, x: Any, w: Any, c: Any = 0.0) -> Any:
    return c + np.matmul(_windows_of(node, x), w)


def _conv_weights(node: Node, x: Any, rows: Any, c: Any = 0.0) -> Any:
    return c + np.matmul(_windows_of(node, x).swapaxes(-1, -2), rows)


def _conv_images(node: Node, rows: Any, w: Any, c: Any = 0.0) -> Any:
    p = node.params
    windows = np.matmul(rows, w).reshape(*node.shape[:-3], *p["counts"], -1)
    return c + reference.fold(windows, p["size"], p["stride"], p["padding"], p["shape"])


def _fields(node: Node, x: Any) -> Any:
    """The windows of a pool that do not overlap: (..., H', W', C, kh * kw)."""
    kh, kw = node.params["size"]
    *lead, h, w, c = x.shape
    oh, ow = h // kh, w // kw
    split = x[..., : oh * kh, : ow * kw, :].reshape(*lead, oh, kh, ow, kw, c)
    return np.moveaxis(split, (-4, -2), (-2, -1)).reshape(*lead, oh, ow, c, kh * kw)


def _pool_winners(node: Node, x: Any) -> Any:
    return _fields(node, x).argmax(-1).astype(np.uint8)


def _pool_take(node: Node, x: Any, winners: Any) -> Any:
    return np.take_along_axis(_fields(node, x), winners[..., None].astype(int), -1)[..., 0]


def _pool_put(node: Node, x: Any, winners: Any) -> Any:
    place = np.arange(math.prod(node.shape)).reshape(node.shape)
    out = np.zeros(node.size, x.dtype)
    out[_pool_take(node, place, winners)] = x
    return out.reshape(node.shape)


def _reduced(function: Any, node: Node, x: Any) -> Any:
    return function(x, axis=node.params["axis"], keepdims=node.params.get("keepdims", False))


PLAIN: dict[str, Callable[..., Any]] = {
    "conv": _conv,
    "conv_images": _conv_images,
    "conv_weights": _conv_weights,
    "matmul": _matmul,
    "pool_put": _pool_put,
    "pool_take": _pool_take,
    "pool_winners": _pool_winners,
    "sum": lambda node, x: _reduced(np.sum, node, x),
    "max": lambda node, x: _reduced(np.max, node, x),
    "min": lambda node, x: _reduced(np.min, node, x),
}


def _wide(x: Any) -> Any:
    """Floats in float64."""
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def run(graph: Graph, inputs: Sequence[Any]) -> tuple[list[np.ndarray], float]:
    """A graph's results for these inputs, one operation after another, all floats in float64.

    Returns:
        The results, and the largest finite number met.

    Raises:
        ValueError: an operation gives another shape or kind of numbers than its node says.
    """
    nodes = graph.nodes()
    left = Counter(a.number for x in nodes for a in x.nodes)
    left.update(x.number for x in (*graph.inputs, *graph.outputs))
    known = {x.number: _wide(value) for x, value in zip(graph.inputs, inputs, strict=True)}
    largest = 0.0
    with np.errstate(all="ignore"):
        for node in nodes:
            if node.number not in known:
                args = [known[a.number] if a.__class__ is Node else a for a in node.args]
                known[node.number] = _computed(node, args)
            value = known[node.number]
            if value.shape != node.shape or value.dtype.kind != node.dtype.kind:
                raise ValueError(f"{node!r} is {value.dtype}{list(value.shape)}")
            if value.dtype.kind == "f" and value.size:
                largest = max(largest, float(np.abs(value[np.isfinite(value)]).max(initial=0.0)))
            for a in node.nodes:
                left[a.number] -= 1
                if not left[a.number]:
                    del known[a.number]
    return [known[x.number] for x in graph.outputs], largest


def _computed(node: Node, args: list[Any]) -> np.ndarray:
    if node.op == "constant":
        return _wide(node.data)
    if node.op == "fill":
        return _wide(np.full(node.shape, node.params["value"], node.dtype))
    if node.op == "astype":
        return _wide(args[0].astype(np.float64 if node.dtype.kind == "f" else node.dtype))
    if node.op in PLAIN:
        return _wide(PLAIN[node.op](node, *args))
    kernel = node.op in EXPRESSIONS and node.op in registry  # what is computed goes by the name
    function: Any = registry[node.op].forward if kernel else node.function
    return _wide(function(np, *args, **node.params))


class Passes:
    """Every graph held against the one before it, on the same numbers: the arguments at hand, with
    noise.

    Args:
        graph: before any pass.
        values: the arguments' arrays.
    """

    DRAWS = 3  # a rounded number that comes to lie beyond a kink is not three times in a row

    def __init__(self, graph: Graph, values: Sequence[Any]) -> None:
        self._before = graph
        self._values = [to_host(x) for x in values]
        self._known: dict[int, Any] = {}

    def __call__(self, name: str, after: Graph) -> None:
        """The graph after a pass.

        Raises:
            CompileError: it computes something else.
        """
        before, self._before = self._before, after
        known, self._known = self._known, {}
        said = ""
        for draw in range(self.DRAWS):
            inputs = self._inputs(draw)
            try:
                expected = known.get(draw) or run(before, inputs)
            except (ValueError, IndexError, TypeError, OverflowError):
                return  # the data are bad: the function says so when it runs
            try:
                got = self._known[draw] = run(after, inputs)
            except (ValueError, IndexError, TypeError, OverflowError) as error:
                said = f"an operation fails ({error})"
                continue
            said = _difference(before.outputs, expected, after.outputs, got)
            if not said:
                return
        raise CompileError(
            f"compile: the pass {name!r} changes what is computed: {said}. This is an error of "
            "mamlnp: report it, and leave compile, or this pass (without=), out meanwhile."
        )

    def _inputs(self, draw: int) -> list[np.ndarray]:
        rng = np.random.default_rng(draw)
        inputs = []
        for x in map(_wide, self._values):
            if x.dtype.kind == "f":
                finite = np.abs(x[np.isfinite(x)])
                size = float(finite.mean()) if finite.size else 0.0
                x = x * (1 + 0.1 * rng.standard_normal(x.shape))
                x = x + 0.1 * (size or 1.0) * rng.standard_normal(x.shape)
            inputs.append(x)
        return inputs


def _difference(
    nodes: list[Node], expected: tuple[list[np.ndarray], float], others: list[Node],
    got: tuple[list[np.ndarray], float],
) -> str:  # fmt: skip
    """What differs between two graphs' results, in words."""
    if [(x.shape, x.dtype) for x in nodes] != [(x.shape, x.dtype) for x in others]:
        return f"results are {others} and were {nodes}"
    narrow = any(x.dtype.itemsize < 8 and x.dtype.kind == "f" for x in nodes)
    tolerance = TOLERANCES["f4" if narrow else "f8"]
    for i, (a, b) in enumerate(zip(expected[0], got[0], strict=True)):
        if a.dtype.kind != "f":
            if not np.array_equal(a, b):
                return f"result {i} is another at {int((a != b).sum())} of {a.size} places"
            continue
        finite = np.isfinite(a)
        bound = tolerance * float(np.abs(a[finite]).max(initial=0.0))
        bound += 1e-3 * tolerance * min(expected[1], 1e6)
        with np.errstate(invalid="ignore"):
            away = ~((np.abs(a - b) <= bound) | (a == b) | (np.isnan(a) & np.isnan(b)))
        if away.any():
            place = np.unravel_index(int(away.argmax()), a.shape)
            return f"result {i} is {b[place]:.6g} and was {a[place]:.6g} at {list(map(int, place))}"
    return ""
