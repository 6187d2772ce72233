"""Running a plan on the host: rows of addresses, handed to compiled kernels outside Python."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import generated
from ..backend.generated import LoopNest
from ..backend.machine import blas
from .plan import ALIGNMENT, At, BadDataError, Eager, Plan, Row
from .trace import Node


def _compiled(row: Row) -> tuple[int, list[Any]]:
    """A kernel's address, and what it is called with."""
    if isinstance(row.kernel, LoopNest):
        long = generated.has_long_sums(row.kernel, row.words)
        return generated.loops(row.kernel, long), row.words
    name, code = row.kernel
    if name not in ("product", "convolution"):
        return generated.fixed(name, code), row.words
    library = blas()
    return generated.fixed(name, code, library.wide), [library.functions[code], *row.words]


@functools.cache
def _machine_code() -> tuple[Callable[..., None], Callable[..., None]]:
    """replay.run, without Python's lock, and replay.point, with it."""
    word, fixed = ctypes.c_int64, generated.fixed
    free, held = ctypes.CFUNCTYPE(None, word, word, word), ctypes.PYFUNCTYPE(None, word)
    return free(fixed("run", "i8")), held(fixed("point", "i8"))


class Replay:
    """A plan with memory of its own: not for two threads at once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._block = np.empty(plan.arena.size + ALIGNMENT, np.uint8)
        base = self._block.ctypes.data
        base += -base % ALIGNMENT
        self._flag = np.zeros(1, np.int64)
        self._start = base - self._block.ctypes.data
        slots = {x: i for i, x in enumerate([*plan.inputs, *plan.outputs])}
        words: list[int] = []
        starts: list[int] = []
        moving: list[tuple[int, int, int]] = []
        self._segments: list[Any] = []
        kernels: list[int] = []
        for row in plan.rows:
            if isinstance(row, Eager):
                self._segments.append(row.node)
                continue
            if not self._segments or isinstance(self._segments[-1], Node):
                self._segments.append([len(kernels), len(kernels)])
            self._segments[-1][1] += 1
            kernel, called_with = _compiled(row)
            kernels.append(kernel)
            starts.append(len(words))
            for word in called_with:
                if not isinstance(word, At):
                    words.append(word)
                elif word.node is None:
                    words.append(self._flag.ctypes.data)
                elif word.node in slots:
                    moving.append((len(words), slots[word.node], word.offset))
                    words.append(0)
                elif word.node in plan.constants:
                    words.append(plan.constants[word.node].ctypes.data + word.offset)
                else:
                    words.append(base + plan.arena.offsets[word.node] + word.offset)
        addresses = np.array(words, np.int64)
        rows = addresses.ctypes.data + 8 * np.array(starts, np.int64)
        self._ids = np.empty(len(plan.inputs) + len(plan.outputs), np.int64)
        tables = [np.array(x, np.int64) for x in (kernels, rows, moving)] + [addresses, self._ids]
        table = np.array([*(x.ctypes.data for x in tables), len(moving)], np.int64)
        self._table, self._kept = table.ctypes.data, [*tables, table]
        self._run, self._point = _machine_code()
        self._outputs = [(x.shape, x.dtype) for x in plan.outputs]

    def __call__(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs for these inputs, which are contiguous arrays.

        Raises:
            BadDataError: a kernel or NumPy met an index or a label out of range, or the like.
        """
        self._flag[0] = 0
        everything = [*values, *(np.empty(shape, dtype) for shape, dtype in self._outputs)]
        self._ids[:] = [*map(id, everything)]
        self._point(self._table)
        for segment in self._segments:
            if isinstance(segment, Node):
                self._eager(segment, everything)
            else:
                self._run(self._table, *segment)
        if self._flag[0]:
            raise BadDataError
        return everything[len(values) :]

    def _array(self, x: Any, everything: list[np.ndarray]) -> Any:
        """A node's memory as NumPy sees it."""
        if x.__class__ is not Node:
            return x
        plan = self.plan
        access = plan.memory.access(x)
        root = access.root
        if root in plan.inputs or root in plan.outputs:
            memory = everything[[*plan.inputs, *plan.outputs].index(root)]
        elif root in plan.constants:
            memory = plan.constants[root]
        else:
            start = self._start + plan.arena.offsets[root]
            memory = self._block[start : start + root.size * root.dtype.itemsize].view(root.dtype)
        flat = memory.reshape(-1)[access.offset :]
        strides = tuple(s * root.dtype.itemsize for s in access.strides)
        return np.lib.stride_tricks.as_strided(flat, x.shape, strides, writeable=x is root)

    def _eager(self, node: Node, everything: list[np.ndarray]) -> None:
        args = [self._array(a, everything) for a in node.args]
        into = self._array(node, everything)
        if node.op == "matmul" and len(args) == 3:
            into[...] = args[2] + np.matmul(args[0], args[1])
            return
        try:
            into[...] = node.function(np, *args, **node.params)  # type: ignore[misc]
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise BadDataError from error
