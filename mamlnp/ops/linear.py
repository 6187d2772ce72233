"""Products: matmul, and what is made of it (einsum, conv2d through patches)."""

from __future__ import annotations

import math
from typing import Any

from .. import backend
from ..array import Array
from ..draws import Draw, Drawn
from ..errors import ShapeError
from ..op import answers, as_array, describe, op
from .reduce import sum
from .shape import (
    concatenate,
    matrix_transpose,
    moveaxis,
    pad,
    reshape,
    squeeze,
    sum_to,
    transpose,
)

Pair = tuple[int, int]
Padding = str | int | tuple[Pair, Pair]


def _draw_matmul(d: Draw) -> Drawn:
    lead = d.shape(max_ndim=2)
    n, k, m = (d.integer(1, 3) for _ in range(3))
    leads = [lead, d.broadcastable(lead)]
    if d.boolean():
        leads.reverse()
    return (d.array((*leads[0], n, k)), d.array((*leads[1], k, m))), {}


@op(
    draw=_draw_matmul,
    linear_in=("a", "b"),
    shapes="(..., n, k) and (..., k, m) whose leading axes broadcast",
)
def _matmul(xp: Any, a: Any, b: Any) -> Any:
    """out[i, j] = sum_k a[i, k] b[k, j]: (..., n, k), (..., k, m) -> (..., n, m); its rules are
    equation 2.1 of the docs."""
    return xp.matmul(a, b)


@_matmul.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return _fit(_matmul(ct, matrix_transpose(b)), a)


@_matmul.vjp("b")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return _fit(_matmul(matrix_transpose(a), ct), b)


def _fit(ct: Array, x: Array) -> Array:
    return ct if ct.shape == x.shape else sum_to(ct, x.shape)


@answers(operator="matmul", numpy=("matmul",))
def matmul(a: Any, b: Any) -> Array:
    """Matrix product as in NumPy: leading axes broadcast, a vector has no other axis.

    Args:
        a: (..., n, k) or (k,).
        b: (..., k, m) or (k,).

    Raises:
        ShapeError: the inner sides differ, or an argument has no axis.
    """
    a, b = as_array(a), as_array(b)
    if not a.ndim or not b.ndim:
        raise ShapeError(
            f"matmul: a {describe(a)} and b {describe(b)} need axes. Use * for numbers."
        )
    left, right = a.ndim == 1, b.ndim == 1
    a = reshape(a, (1, -1)) if left else a
    b = reshape(b, (-1, 1)) if right else b
    out = _matmul(a, b)
    dropped = (-2,) * left + (-1,) * right
    return squeeze(out, dropped) if dropped else out


@answers(numpy=("einsum",))
def einsum(subscripts: Any, *operands: Any, optimize: Any = False) -> Array:
    """Einstein summation as in NumPy, by matmul, from the left whatever ``optimize`` says.

    >>> einsum("ij,kj->ki", [[1.0, 2.0]], [[3.0, 4.0]])
    Array([[11.]])

    Raises:
        ShapeError: the subscripts do not fit the operands.
    """
    if not isinstance(subscripts, str):  # but x, [0, 1], y, [1, 2], [0, 2]
        subscripts, operands = _as_text((subscripts, *operands))
    arrays = [as_array(x) for x in operands]
    terms, output = _spelled_out(subscripts, arrays)
    _check_einsum(subscripts, terms, output, arrays)
    sides = [dict(zip(t, x.shape, strict=True)) for t, x in zip(terms, arrays, strict=True)]
    long = {name for side in sides for name in side if side[name] != 1}
    for i, (term, x) in enumerate(zip(terms, arrays, strict=True)):
        for name in term:  # twice: a diagonal; of length 1 where it is longer elsewhere: dropped
            while term.count(name) > 1 or (name in long and name in term and sides[i][name] == 1):
                at = term.index(name)
                if term.count(name) > 1:
                    x, term = _diagonal(x, at, term.index(name, at + 1)), term.replace(name, "", 1)
                else:
                    x, term = squeeze(x, at), term.replace(name, "")
        terms[i], arrays[i] = term, x
    term, out = terms[0], arrays[0]
    for i, (other_term, other) in enumerate(zip(terms[1:], arrays[1:], strict=True), 2):
        needed = set(output).union(*terms[i:])
        term, out = _contract(term, out, other_term, other, needed)
    summed = tuple(i for i, name in enumerate(term) if name not in output)
    out = sum(out, summed) if summed else out
    kept = [name for name in term if name in output]
    return transpose(out, [kept.index(name) for name in output])


def _as_text(given: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """einsum's other form, an index list after every operand and one for the result, as text."""
    lists = [*given[1::2], *given[-1:][: len(given) % 2]]
    terms = ["".join("..." if i is ... else chr(65 + i + 6 * (i > 25)) for i in x) for x in lists]
    arrow = "->" + terms.pop() if len(given) % 2 else ""
    return ",".join(terms) + arrow, given[: len(given) - len(given) % 2 : 2]


def _spelled_out(subscripts: str, arrays: list[Array]) -> tuple[list[str], str]:
    """Every operand's indices and the result's, with letters of their own for ``...``."""
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    terms = inputs.split(",")
    hidden = [x.ndim - len(t) + 3 for t, x in zip(terms, arrays, strict=False) if "..." in t]
    most = "".join(map(chr, range(0x3B1, 0x3B1 + max([0, *hidden]))))  # Greek ones
    for i, x in enumerate(arrays[: len(terms)]):
        count = max(x.ndim - len(terms[i]) + 3, 0)
        terms[i] = terms[i].replace("...", most[len(most) - count :])
    if not arrow:
        once = [n for n in sorted(set(inputs) - {",", "."}) if inputs.count(n) == 1]
        return terms, most + "".join(once)
    return terms, output.replace("...", most)


def _diagonal(x: Array, first: int, second: int) -> Array:
    """The diagonal of two axes, in the place of the second."""
    order = [i for i in range(x.ndim) if i not in (first, second)]
    side = x.shape[first]
    flat = reshape(
        transpose(x, [first, second, *order]), (side * side, *(x.shape[i] for i in order))
    )
    return moveaxis(flat[:: side + 1], 0, second - 1)


def _check_einsum(subscripts: str, terms: list[str], output: str, arrays: list[Array]) -> None:
    problem = ""
    sides: dict[str, int] = {}
    if len(terms) != len(arrays):
        problem = f"names {len(terms)} operands but there are {len(arrays)}"
    elif any(not t.isalpha() for t in (*terms, output) if t):
        problem = "uses something that is no letter"
    elif "->" in subscripts and not set(output) >= {n for n in "".join(terms) if n >= "α"}:
        problem = "has '...' for axes that the result leaves out"
    elif len(set(output)) < len(output):
        problem = "repeats an index in the result"
    elif not set(output) <= set().union(*terms):
        problem = "has an index in the result that no operand has"
    else:
        for term, x in zip(terms, arrays, strict=True):
            if len(term) != x.ndim:
                problem = f"gives {len(term)} indices to an operand of shape {x.shape}"
                break
            for name, side in zip(term, x.shape, strict=True):
                if sides.get(name, 1) == 1:
                    sides[name] = side
                elif side not in (1, sides[name]):
                    problem = f"uses {name} for sides of length {sides[name]} and {side}"
    if problem:
        raise ShapeError(f'einsum: "{subscripts}" {problem}. Write it like "ij,jk->ik".')


def _contract(a_term: str, a: Array, b_term: str, b: Array, needed: set[str]) -> tuple[str, Array]:
    """Two operands into one, over the shared indices that nothing later needs."""
    shared = [n for n in a_term if n in b_term]
    batch = [n for n in shared if n in needed]
    inner = [n for n in shared if n not in needed]
    a_only = [n for n in a_term if n not in b_term]
    b_only = [n for n in b_term if n not in a_term]
    side = dict(zip(a_term, a.shape, strict=True)) | dict(zip(b_term, b.shape, strict=True))

    def matrix(x: Array, term: str, rows: list[str], columns: list[str]) -> Array:
        ordered = transpose(x, [term.index(n) for n in (*batch, *rows, *columns)])
        flat = (math.prod(side[n] for n in names) for names in (batch, rows, columns))
        return reshape(ordered, tuple(flat))

    product = _matmul(matrix(a, a_term, a_only, inner), matrix(b, b_term, inner, b_only))
    names = [*batch, *a_only, *b_only]
    return "".join(names), reshape(product, tuple(side[n] for n in names))


# ---- convolution


def _draw_windows(d: Draw) -> tuple[tuple[int, ...], dict[str, Any]]:
    size = (d.integer(1, 3), d.integer(1, 3))
    padding = tuple((d.integer(0, 1), d.integer(0, 1)) for _ in size)
    sides = tuple(k + d.integer(0, 2) for k in size)
    shape = (*d.shape(max_ndim=2, max_side=2), *sides, d.integer(1, 2))
    return shape, {"size": size, "stride": d.integer(1, 2), "padding": padding}


def _draw_patches(d: Draw) -> Drawn:
    shape, params = _draw_windows(d)
    return (d.array(shape),), params


@op(draw=_draw_patches, linear_in=("x",), shapes="(..., H, W, C) no smaller than the window")
def patches(xp: Any, x: Any, *, size: Pair, stride: int, padding: tuple[Pair, Pair]) -> Any:
    """Every window flattened: (..., H, W, C) -> (..., H', W', kh * kw * C), zeros outside; its
    rule is :func:`fold` (docs, equation 6.2)."""
    return backend.kernels_of(x).patches(x, size, stride, padding)


@patches.vjp("x")
def _(ct: Array, out: Array, x: Array, *, size: Pair, stride: int, padding: Any) -> Array:
    return fold(ct, size=size, stride=stride, padding=padding, shape=x.shape[-3:-1])


def _draw_fold(d: Draw) -> Drawn:
    (*lead, h, w, c), params = _draw_windows(d)
    (kh, kw), stride, ((top, bottom), (left, right)) = params.values()
    oh, ow = (h + top + bottom - kh) // stride + 1, (w + left + right - kw) // stride + 1
    return (d.array((*lead, oh, ow, kh * kw * c)),), {**params, "shape": (h, w)}


@op(draw=_draw_fold, linear_in=("x",))
def fold(
    xp: Any, x: Any, *, size: Pair, stride: int, padding: tuple[Pair, Pair], shape: Pair
) -> Any:
    """The transpose of patches (docs, equation 6.2): every window added back where it came from,
    in an image of ``shape`` (H, W)."""
    return backend.kernels_of(x).fold(x, size, stride, padding, shape)


@fold.vjp("x")
def _(
    ct: Array, out: Array, x: Array, *, size: Pair, stride: int, padding: Any, shape: Pair
) -> Array:
    return patches(ct, size=size, stride=stride, padding=padding)


def resolve_padding(
    padding: Padding, shape: Pair, size: Pair, stride: int | Pair
) -> tuple[Pair, Pair]:
    """((top, bottom), (left, right)) from "SAME", "VALID", a number, or such pairs.

    "SAME" is TensorFlow's: the result has ceil(side / stride) rows, and an odd pixel goes to the
    end. PyTorch's padding=1 differs from it at stride 2.

    >>> resolve_padding("SAME", (28, 28), (3, 3), 2)
    ((0, 1), (0, 1))
    """
    strides = (stride, stride) if isinstance(stride, int) else stride
    if padding == "VALID":
        return (0, 0), (0, 0)
    if padding == "SAME":
        pairs = []
        for side, k, step in zip(shape, size, strides, strict=True):
            total = max((math.ceil(side / step) - 1) * step + k - side, 0)
            pairs.append((total // 2, total - total // 2))
        return pairs[0], pairs[1]
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    match padding:
        case ((int(a), int(b)), (int(c), int(d))) if min(a, b, c, d) >= 0:
            return (a, b), (c, d)
    raise ShapeError(
        f"conv2d: padding {padding!r} is not known. Pass 'SAME', 'VALID' or a number of pixels."
    )


def _pixels(what: str, pixels: Any) -> Pair:
    """One number for both sides, or one for each: (rows, columns)."""
    pair = (pixels, pixels) if isinstance(pixels, int) else pixels
    match pair:
        case (int(rows), int(columns)) if min(rows, columns) >= 1:
            return rows, columns
    raise ShapeError(
        f"conv2d: {what} {pixels!r} is no number of pixels. Pass 1 or more, or a pair of such."
    )


def _windows(
    x: Array, size: Pair, strides: Pair, dilations: Pair, pads: tuple[Pair, Pair]
) -> Array:
    """Every window flattened, as :func:`patches` has it, whatever its steps."""
    if strides[0] == strides[1] and dilations == (1, 1):
        return patches(x, size=size, stride=strides[0], padding=pads)
    x = pad(x, ((0, 0),) * (x.ndim - 3) + pads + ((0, 0),))

    def taken(side: int, k: int, stride: int, dilation: int) -> list[slice]:
        """What the window's first, second, ... pixel is, over all windows."""
        last = side - (k - 1) * dilation
        return [slice(i * dilation, i * dilation + last, stride) for i in range(k)]

    rows, columns = map(taken, x.shape[-3:-1], size, strides, dilations)
    return concatenate([x[..., r, c, :] for r in rows for c in columns], -1)


def conv2d(
    x: Any,
    w: Any,
    stride: int | Pair = 1,
    padding: Padding = "SAME",
    dilation: int | Pair = 1,
) -> Array:
    """Convolution (cross-correlation, as everywhere in deep learning), channels last (docs,
    equation 6.1).

    The patches of each image times the weights as one matrix product; with a leading task axis,
    one batched product.

    Args:
        x: (N, H, W, C) or, with the task axis, (T, N, H, W, C).
        w: (kh, kw, C, out) or, one filter bank a task, (T, kh, kw, C, out).
        stride: from one window to the next, in pixels: along both sides, or (rows, columns).
        padding: "SAME" (TensorFlow's), "VALID", a number of pixels on every side, or
            ((top, bottom), (left, right)).
        dilation: from one pixel of a window to the next, as for ``stride``.

    Returns:
        (N, H', W', out), or (T, N, H', W', out) if either argument has the task axis.

    Raises:
        ShapeError: the channels, the task axes or the window do not fit.

    >>> conv2d([[[[1.0], [2.0]], [[3.0], [4.0]]]], [[[[10.0]]]]).shape
    (1, 2, 2, 1)
    """
    x, w = as_array(x), as_array(w)
    if x.ndim not in (4, 5) or w.ndim not in (4, 5):
        raise ShapeError(
            f"conv2d: x {describe(x)} and w {describe(w)} need 4 axes, or 5 with the task axis. "
            "Pass x (N, H, W, C) and w (kh, kw, C, out)."
        )
    *tasks, kh, kw, channels, filters = w.shape
    if x.shape[-1] != channels:
        raise ShapeError(
            f"conv2d: w expects {channels} input channels but x has {x.shape[-1]} "
            f"(x {describe(x)}, w {describe(w)}). Channels are the last axis of x."
        )
    if x.ndim == w.ndim == 5 and x.shape[0] != w.shape[0]:
        raise ShapeError(
            f"conv2d: x has {x.shape[0]} tasks but w {w.shape[0]} "
            f"(x {describe(x)}, w {describe(w)}). Give both one task axis."
        )
    strides, dilations = _pixels("stride", stride), _pixels("dilation", dilation)
    high, wide = ((k - 1) * step + 1 for k, step in zip((kh, kw), dilations, strict=True))
    pads = resolve_padding(padding, x.shape[-3:-1], (high, wide), strides)
    if any(s + p + q < k for s, (p, q), k in zip(x.shape[-3:-1], pads, (high, wide), strict=True)):
        raise ShapeError(
            f"conv2d: the window {high}x{wide} is larger than the padded image "
            f"(x {describe(x)}, padding {pads}). Use a smaller window or more padding."
        )
    windows = _windows(x, (kh, kw), strides, dilations, pads)
    *lead, rows, columns, length = windows.shape
    flat = reshape(windows, (*lead[:-1], lead[-1] * rows * columns, length))
    out = _matmul(flat, reshape(w, (*tasks, length, filters)))
    return reshape(out, (*out.shape[:-2], lead[-1], rows, columns, filters))
