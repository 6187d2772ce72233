"""What a compiled plan runs: products, windows and generated loops, each called with a row of
64-bit integers (addresses, sides, strides), one after another, outside Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .memory import (
    apart,
    free,
    load_f4,
    load_f8,
    load_i8,
    load_u1,
    store_f4,
    store_f8,
    store_i8,
    store_u1,
    zeros_f8,
)

DATA = object.__basicsize__  # a NumPy array's data's address stands behind what all objects have

I32, I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def call(typing: Any, address: Any, row: Any) -> Any:
    """Call the kernel at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _gemm(code: str, wide: bool) -> Any:
    """A call of cblas_?gemm at an address, row-major; ``scalars`` are alpha and beta."""
    number: Any = {"f4": types.float32, "f8": types.float64}[code]
    integer = I64 if wide else I32

    @intrinsic
    def gemm(
        typing: Any, address: Any, ta: Any, tb: Any, m: Any, n: Any, k: Any, beta: Any,
        a: Any, lda: Any, b: Any, ldb: Any, c: Any, ldc: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at, ta, tb, m, n, k, beta, a, lda, b, ldb, c, ldc = args
            real = beta.type
            kinds = [I32, I32, I32, integer, integer, integer, real, I64, integer, I64, integer]
            kinds += [real, I64, integer]
            function = builder.inttoptr(at, ir.FunctionType(ir.VoidType(), kinds).as_pointer())

            def size(x: Any) -> Any:
                return x if wide else builder.trunc(x, I32)

            flags = [builder.trunc(builder.add(I64(111), x), I32) for x in (ta, tb)]
            sizes = [size(x) for x in (m, n, k)]
            rest = [real(1.0), a, size(lda), b, size(ldb), beta, c, size(ldc)]
            builder.call(function, [I32(101), *flags, *sizes, *rest])
            return context.get_dummy_value()

        whole = [types.int64] * 6
        return types.void(*whole, number, *[types.int64] * 6), generate

    return gemm


gemm_f4, gemm_f8 = _gemm("f4", True), _gemm("f8", True)
gemm_f4_narrow, gemm_f8_narrow = _gemm("f4", False), _gemm("f8", False)
load, store, gemm = load_f4, store_f4, gemm_f4
number, zero, width, u1 = np.float32, np.float32(0), 4, np.uint8

# Each of these is compiled for an element type, as which ``load``, ``store``, ``number``, ``width``
# and ``gemm`` stand (see generated.compiled).


def product(row: int) -> None:
    """A batch of matrix products, c = a b + beta c, either factor transposed or not."""
    at, batch = load_i8(row, 0, 0), load_i8(row, 1, 0)
    ta, tb = load_i8(row, 2, 0), load_i8(row, 3, 0)
    m, n, k = load_i8(row, 4, 0), load_i8(row, 5, 0), load_i8(row, 6, 0)
    a, lda, sa = load_i8(row, 7, 0), load_i8(row, 8, 0), load_i8(row, 9, 0)
    b, ldb, sb = load_i8(row, 10, 0), load_i8(row, 11, 0), load_i8(row, 12, 0)
    c, ldc, sc = load_i8(row, 13, 0), load_i8(row, 14, 0), load_i8(row, 15, 0)
    beta = number(load_i8(row, 16, 0))
    for i in range(batch):
        j = i * width
        gemm(at, ta, tb, m, n, k, beta, a + j * sa, lda, b + j * sb, ldb, c + j * sc, ldc)


def gather(x, out, first, last, h, w, c, oh, ow, kh, kw, stride, top, left):  # type: ignore[no-untyped-def]
    """The windows of output lines ``first`` to ``last``, counted through all images, flattened."""
    at = 0
    for line in range(first, last):
        b, i = line // oh, line % oh
        for j in range(ow):
            column = j * stride - left
            low, high = max(0, -column) * c, min(kw, w - column) * c
            for di in range(kh):
                row = i * stride + di - top
                if 0 <= row < h:
                    start = ((b * h + row) * w + column) * c
                    for k in range(low):
                        store(out, at + k, 1, zero)
                    for k in range(low, high):
                        store(out, at + k, 1, load(x, start + k, 0))
                    for k in range(high, kw * c):
                        store(out, at + k, 1, zero)
                else:
                    for k in range(kw * c):
                        store(out, at + k, 1, zero)
                at += kw * c


def scatter(p, out, first, last, h, w, c, oh, ow, kh, kw, stride, top, left):  # type: ignore[no-untyped-def]
    """The transpose of gather: adds every window to where it came from."""
    at = 0
    for line in range(first, last):
        b, i = line // oh, line % oh
        for j in range(ow):
            column = j * stride - left
            low, high = max(0, -column) * c, min(kw, w - column) * c
            for di in range(kh):
                row = i * stride + di - top
                if 0 <= row < h:
                    start = ((b * h + row) * w + column) * c
                    for k in range(low, high):
                        moved = load(out, start + k, 1) + load(p, at + k, 0)
                        store(out, start + k, 1, moved)
                at += kw * c


def patches(row: int) -> None:
    """Every window, flattened (see reference.patches)."""
    x, out = load_i8(row, 0, 0), load_i8(row, 1, 0)
    n, h, w, c = load_i8(row, 2, 0), load_i8(row, 3, 0), load_i8(row, 4, 0), load_i8(row, 5, 0)
    oh, ow, kh = load_i8(row, 6, 0), load_i8(row, 7, 0), load_i8(row, 8, 0)
    kw, stride, top = load_i8(row, 9, 0), load_i8(row, 10, 0), load_i8(row, 11, 0)
    left = load_i8(row, 12, 0)
    gather(x, out, 0, n * oh, h, w, c, oh, ow, kh, kw, stride, top, left)


def fold(row: int) -> None:
    """The transpose of patches (see reference.fold)."""
    p, out = load_i8(row, 0, 0), load_i8(row, 1, 0)
    n, h, w, c = load_i8(row, 2, 0), load_i8(row, 3, 0), load_i8(row, 4, 0), load_i8(row, 5, 0)
    oh, ow, kh = load_i8(row, 6, 0), load_i8(row, 7, 0), load_i8(row, 8, 0)
    kw, stride, top = load_i8(row, 9, 0), load_i8(row, 10, 0), load_i8(row, 11, 0)
    left = load_i8(row, 12, 0)
    for k in range(n * h * w * c):
        store(out, k, 1, zero)
    scatter(p, out, 0, n * oh, h, w, c, oh, ow, kh, kw, stride, top, left)


def convolution(row: int) -> None:
    """A product with the windows of images, some lines of windows at a time, so that they never
    leave the cache: kind 0 is windows times weights, 1 windows' times rows, 2 the transpose of 0,
    rows times weights', added to images."""
    at, kind, tasks, n = (
        load_i8(row, 0, 0),
        load_i8(row, 1, 0),
        load_i8(row, 2, 0),
        load_i8(row, 3, 0),
    )
    h, w, c, oh = load_i8(row, 4, 0), load_i8(row, 5, 0), load_i8(row, 6, 0), load_i8(row, 7, 0)
    ow, kh, kw = load_i8(row, 8, 0), load_i8(row, 9, 0), load_i8(row, 10, 0)
    stride, top, left = load_i8(row, 11, 0), load_i8(row, 12, 0), load_i8(row, 13, 0)
    filters, windows, lines = load_i8(row, 14, 0), load_i8(row, 15, 0), load_i8(row, 16, 0)
    images, weights, tw = load_i8(row, 17, 0), load_i8(row, 18, 0), load_i8(row, 19, 0)
    ldw, sw, rows = load_i8(row, 20, 0), load_i8(row, 21, 0), load_i8(row, 22, 0)
    ldr, sr, adds = load_i8(row, 23, 0), load_i8(row, 24, 0), load_i8(row, 25, 0)
    length, size = kh * kw * c, n * h * w * c
    for t in range(tasks):
        x, g, r = images + t * size * width, weights + t * sw * width, rows + t * sr * width
        if kind == 2 and not adds:
            for k in range(size):
                store(x, k, 1, zero)
        for first in range(0, n * oh, lines):
            last = min(first + lines, n * oh)
            m, here = (last - first) * ow, r + first * ow * ldr * width
            if kind == 2:
                gemm(at, 0, tw, m, length, filters, zero, here, ldr, g, ldw, windows, length)
                scatter(windows, x, first, last, h, w, c, oh, ow, kh, kw, stride, top, left)
                continue
            gather(x, windows, first, last, h, w, c, oh, ow, kh, kw, stride, top, left)
            if kind == 0:
                beta = number(adds)
                gemm(at, 0, tw, m, filters, length, beta, windows, length, g, ldw, here, ldr)
            else:
                beta = number(1 if first else adds)
                gemm(at, 1, 0, length, filters, m, beta, windows, length, here, ldr, g, ldw)


def pool_positions(row: int) -> None:
    """Where each window's first maximum is (see reference.pool_positions)."""
    x, out = load_i8(row, 0, 0), load_i8(row, 1, 0)
    n, h, w, c = load_i8(row, 2, 0), load_i8(row, 3, 0), load_i8(row, 4, 0), load_i8(row, 5, 0)
    oh, ow, kh = load_i8(row, 6, 0), load_i8(row, 7, 0), load_i8(row, 8, 0)
    kw, stride = load_i8(row, 9, 0), load_i8(row, 10, 0)
    at = 0
    for b in range(n):
        for i in range(oh):
            for j in range(ow):
                corner = ((b * h + i * stride) * w + j * stride) * c
                for k in range(c):
                    place = corner + k
                    best = load(x, place, 0)
                    for di in range(kh):
                        for dj in range(kw):
                            here = corner + (di * w + dj) * c + k
                            value = load(x, here, 0)
                            if value > best or (value != value and best == best):
                                best, place = value, here
                    store_i8(out, at + k, 1, place)
                at += c


def pool_winners(row: int) -> None:
    """Which element of each window is its first maximum, 0, 1, ...; windows do not overlap."""
    x, out = load_i8(row, 0, 0), load_i8(row, 1, 0)
    n, h, w, c = load_i8(row, 2, 0), load_i8(row, 3, 0), load_i8(row, 4, 0), load_i8(row, 5, 0)
    oh, ow, kh, kw = load_i8(row, 6, 0), load_i8(row, 7, 0), load_i8(row, 8, 0), load_i8(row, 9, 0)
    at = 0
    for b in range(n):
        for i in range(oh):
            for j in range(ow):
                corner = ((b * h + i * kh) * w + j * kw) * c
                if kh == 2 and kw == 2:
                    below = corner + w * c
                    for k in range(c):
                        best, winner = load(x, corner + k, 0), 0
                        value = load(x, corner + c + k, 0)
                        wins = value > best or (value != value and best == best)
                        best, winner = (value, 1) if wins else (best, winner)
                        value = load(x, below + k, 0)
                        wins = value > best or (value != value and best == best)
                        best, winner = (value, 2) if wins else (best, winner)
                        value = load(x, below + c + k, 0)
                        wins = value > best or (value != value and best == best)
                        winner = 3 if wins else winner
                        store_u1(out, at + k, 1, u1(winner))
                else:
                    for k in range(c):
                        best, winner = load(x, corner + k, 0), 0
                        for d in range(1, kh * kw):
                            value = load(x, corner + (d // kw * w + d % kw) * c + k, 0)
                            if value > best or (value != value and best == best):
                                best, winner = value, d
                        store_u1(out, at + k, 1, u1(winner))
                at += c


def pool_take(row: int) -> None:
    """From every window the element that won."""
    x, winners, out = load_i8(row, 0, 0), load_i8(row, 1, 0), load_i8(row, 2, 0)
    n, h, w, c = load_i8(row, 3, 0), load_i8(row, 4, 0), load_i8(row, 5, 0), load_i8(row, 6, 0)
    oh, ow, kh = load_i8(row, 7, 0), load_i8(row, 8, 0), load_i8(row, 9, 0)
    kw = load_i8(row, 10, 0)
    at = 0
    for b in range(n):
        for i in range(oh):
            for j in range(ow):
                corner = ((b * h + i * kh) * w + j * kw) * c
                if kh == 2 and kw == 2:
                    below = corner + w * c
                    for k in range(c):
                        winner = load_u1(winners, at + k, 0)
                        value = load(x, corner + k, 0)
                        value = load(x, corner + c + k, 0) if winner == 1 else value
                        value = load(x, below + k, 0) if winner == 2 else value
                        value = load(x, below + c + k, 0) if winner == 3 else value
                        store(out, at + k, 1, value)
                else:
                    for k in range(c):
                        d = int(load_u1(winners, at + k, 0))
                        store(out, at + k, 1, load(x, corner + (d // kw * w + d % kw) * c + k, 0))
                at += c


def pool_put(row: int) -> None:
    """The transpose of pool_take: every value to where its window's winner is, else 0."""
    x, winners, out = load_i8(row, 0, 0), load_i8(row, 1, 0), load_i8(row, 2, 0)
    n, h, w, c = load_i8(row, 3, 0), load_i8(row, 4, 0), load_i8(row, 5, 0), load_i8(row, 6, 0)
    oh, ow, kh = load_i8(row, 7, 0), load_i8(row, 8, 0), load_i8(row, 9, 0)
    kw = load_i8(row, 10, 0)
    at = 0
    for b in range(n):
        for i in range(h):
            if i < oh * kh:
                for k in range(((b * h + i) * w + ow * kw) * c, (b * h + i + 1) * w * c):
                    store(out, k, 1, zero)
            else:
                for k in range((b * h + i) * w * c, (b * h + i + 1) * w * c):
                    store(out, k, 1, zero)
        for i in range(oh):
            for j in range(ow):
                corner = ((b * h + i * kh) * w + j * kw) * c
                for d in range(kh * kw):
                    start = corner + (d // kw * w + d % kw) * c
                    for k in range(c):
                        won = load_u1(winners, at + k, 0) == d
                        store(out, start + k, 1, load(x, at + k, 0) if won else zero)
                at += c


def take(row: int) -> None:
    """The elements at flat positions; one out of range sets the flag."""
    x, indices, out = load_i8(row, 0, 0), load_i8(row, 1, 0), load_i8(row, 2, 0)
    count, size, flag = load_i8(row, 3, 0), load_i8(row, 4, 0), load_i8(row, 5, 0)
    for i in range(count):
        place = load_i8(indices, i, 0)
        place = place + size if place < 0 else place
        if 0 <= place < size:
            store(out, i, 1, load(x, place, 0))
        else:
            store_i8(flag, 0, 2, 1)


def put(row: int) -> None:
    """Zeros with every element added at its flat position; one out of range sets the flag. Where
    many may fall on one, float32 numbers are added in float64."""
    x, indices, out = load_i8(row, 0, 0), load_i8(row, 1, 0), load_i8(row, 2, 0)
    count, size, flag = load_i8(row, 3, 0), load_i8(row, 4, 0), load_i8(row, 5, 0)
    more = zeros_f8(size) if width == 4 and count > 256 else 0
    for i in range(size):
        store(out, i, 1, zero)
    for i in range(count):
        place = load_i8(indices, i, 0)
        place = place + size if place < 0 else place
        if not 0 <= place < size:
            store_i8(flag, 0, 2, 1)
        elif more:
            store_f8(more, place, 3, load_f8(more, place, 3) + load(x, i, 0))
        else:
            store(out, place, 1, load(out, place, 1) + load(x, i, 0))
    if more:
        for i in range(size):
            store(out, i, 1, number(load_f8(more, i, 3)))
        free(more)


def class_labels(row: int) -> None:
    """The labels, if all of them are classes; else it sets the flag."""
    x, out, count = load_i8(row, 0, 0), load_i8(row, 1, 0), load_i8(row, 2, 0)
    num_classes, flag = load_i8(row, 3, 0), load_i8(row, 4, 0)
    for i in range(count):
        label = load_i8(x, i, 0)
        store_i8(out, i, 1, label)
        if not 0 <= label < num_classes:
            store_i8(flag, 0, 2, 1)


def drain(sums, more, count):  # type: ignore[no-untyped-def]
    """Add float32 sums to others of float64, and begin them anew."""
    apart()
    for i in range(count):
        store_f8(more, i, 2, load_f8(more, i, 2) + load_f4(sums, i, 1))
        store_f4(sums, i, 1, np.float32(0))


def refill(sums, more, count):  # type: ignore[no-untyped-def]
    """The float64 sums with what was not added yet, as float32; their memory is given back."""
    apart()
    for i in range(count):
        store_f4(sums, i, 1, np.float32(load_f8(more, i, 2) + load_f4(sums, i, 1)))
    free(more)


def run(table, start, stop):  # type: ignore[no-untyped-def]
    """Call some kernels, each with its row."""
    kernels, rows = load_i8(table, 0, 0), load_i8(table, 1, 0)
    for i in range(start, stop):
        call(load_i8(kernels, i, 0), load_i8(rows, i, 0))


def point(table):  # type: ignore[no-untyped-def]
    """Write addresses into rows: some bytes ahead of where NumPy arrays, given by id, begin."""
    moving, words, arrays = load_i8(table, 2, 0), load_i8(table, 3, 0), load_i8(table, 4, 0)
    for i in range(load_i8(table, 5, 0)):
        where, which = load_i8(moving, 3 * i, 0), load_i8(moving, 3 * i + 1, 0)
        start = load_i8(load_i8(arrays, which, 0) + DATA, 0, 0)
        store_i8(words, where, 1, start + load_i8(moving, 3 * i + 2, 0))
