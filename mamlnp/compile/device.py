"""Running a plan on a CUDA device: memory that stays, kernels captured once into CUDA graphs.

A graph is launched with the very addresses it was captured with, so inputs and outputs have memory
of their own beside the arena; one kernel copies all inputs there, and one all outputs from there.
Nothing comes back to the host in between.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import cuda, cuda_source, namespace_of, to_device
from ..backend.cuda_source import Kernel
from ..backend.generated import LoopNest
from .fuse import Step
from .plan import Arena, At, BadDataError, Eager, Plan, Row
from .trace import Node

Launch = Callable[[], None]


class Segment:
    """Launches that follow one another with nothing of CuPy's in between.

    Attributes:
        launches: in order.
        steps: of which step of the plan each is.
    """

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.steps: list[Step] = []
        self._graph: Launch | None = None

    def __call__(self) -> None:
        """Launch all of them: one by one the first time, which loads what they need, then as one
        graph."""
        if self._graph is not None or not self.launches:
            (self._graph or self._one_by_one)()
            return
        self._one_by_one()
        try:
            self._graph = cuda.captured(self._one_by_one)
        except Exception as error:  # a driver's or a library's own, which launches all the same
            warnings.warn(
                f"compile: no CUDA graph could be captured ({error}). Kernels are launched one by "
                "one, which is slower.",
                stacklevel=2,
            )
            self._graph = self._one_by_one

    def _one_by_one(self) -> None:
        for launch in self.launches:
            launch()


class Replay:
    """A plan with memory of its own: not for two threads at once.

    Attributes:
        plan: what is run.
        segments: in order; a Node is an operation that CuPy does.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._starts, end = dict(plan.arena.offsets), plan.arena.size
        for node in (*plan.inputs, *plan.outputs, *plan.constants):
            self._starts[node] = end
            end += Arena.bytes_of(node)
        self._block = cuda.memory(max(end, 1), "compile")
        self._empty = namespace_of(self._block).empty
        self._flag = cuda.flag()
        for node, data in plan.constants.items():
            self._array(node)[...] = to_device(data, "cuda")
        self.segments: list[Segment | Node] = []
        kernels: list[tuple[Segment, int, Kernel]] = []  # and where their launches go
        for step, row in zip(plan.steps, plan.rows, strict=True):
            if isinstance(row, Eager):
                self.segments.append(row.node)
                continue
            if not self.segments or isinstance(self.segments[-1], Node):
                self.segments.append(Segment())
            segment: Any = self.segments[-1]
            for launch in self._launches(row):
                if isinstance(launch, Kernel):
                    kernels.append((segment, len(segment.launches), launch))
                segment.launches.append(launch)
                segment.steps.append(step)
        inputs, outputs = (
            cuda_source.copies(nodes, [self._starts[x] for x in nodes], out=nodes is plan.outputs)
            for nodes in (plan.inputs, plan.outputs)
        )
        every = [kernel for _, _, kernel in kernels]
        found = cuda.functions([*every, *inputs, *outputs])
        for (segment, at, kernel), function in zip(kernels, found, strict=False):
            segment.launches[at] = functools.partial(
                function, kernel.grid, (kernel.threads,), tuple(map(self._address, kernel.args))
            )
        rest = found[len(every) :]
        self._enter = list(zip(inputs, rest, strict=False))
        self._leave = list(zip(outputs, rest[len(inputs) :], strict=True))

    def __call__(self, values: list[Any]) -> list[Any]:
        """The outputs for these inputs, which are contiguous arrays.

        Raises:
            BadDataError: an index or a label was out of range, in this call or in one before: a
                device says so when it comes to it.
        """
        self._copy(self._enter, values)
        for segment in self.segments:
            if isinstance(segment, Node):
                self._eager(segment)
            else:
                segment()
        results = [self._empty(x.shape, x.dtype) for x in self.plan.outputs]
        self._copy(self._leave, results)
        if self._flag[0]:
            self._flag[0] = 0
            raise BadDataError
        return results

    def _copy(self, kernels: list[tuple[Kernel, Any]], arrays: list[Any]) -> None:
        for kernel, function in kernels:
            args = self._block, *(arrays[i] for i in kernel.args)
            function(kernel.grid, (kernel.threads,), args)

    def _address(self, place: At) -> np.int64:
        if place.node is None:
            return np.int64(self._flag.ctypes.data)
        return np.int64(self._block.data.ptr + self._starts[place.node] + place.offset)

    def _launches(self, row: Row) -> list[Kernel | Launch]:
        """What a row launches: kernels still to be compiled, and what launches itself."""
        if isinstance(row.kernel, LoopNest):
            kernel = cuda_source.loops(row.kernel, row.words)
            return [kernel] if kernel.grid[0] else []
        name, code = row.kernel
        if name == "product":
            words = [int(self._address(w) if isinstance(w, At) else w) for w in row.words]
            return [cuda.product(code, words)]
        nodes = [w.node for w in row.words if isinstance(w, At) and w.node is not None]
        out, reach = nodes[-1], max(x.size for x in nodes)
        count = row.words[3] if name == "put" else out.size
        launches: list[Kernel | Launch] = []
        if name == "put":
            launches.append(cuda.zeros_at(int(self._address(At(out, 0))), Arena.bytes_of(out)))
        if count:
            kernel = cuda_source.element(name, code, row.words, count, reach=reach)
            launches.append(kernel)
        return launches

    def _array(self, x: Any) -> Any:
        """A node's memory as CuPy sees it."""
        if x.__class__ is not Node:
            return x
        access = self.plan.memory.access(x)
        size = access.root.dtype.itemsize
        start = self._starts[access.root] + access.offset * size
        strides = tuple(s * size for s in access.strides)
        return cuda.view(self._block, start, x.shape, x.dtype, strides)

    def _eager(self, node: Node) -> None:
        xp, into = namespace_of(self._block), self._array(node)
        args = [self._array(a) for a in node.args]
        if node.op == "matmul":
            product = xp.matmul(args[0], args[1])
            into[...] = product if len(args) == 2 else args[2] + product
            return
        try:
            into[...] = node.function(xp, *args, **node.params)  # type: ignore[misc]
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            self._flag[0] = 0  # whatever kernels met before, it is told now
            raise BadDataError from error
