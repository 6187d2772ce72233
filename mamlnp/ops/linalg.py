"""Linear algebra: systems of equations, determinants, Cholesky factors and eigenvectors.

Matrices are the last two axes, and those before them count matrices. Where two eigenvalues are
equal their eigenvectors are not unique: their derivatives leave out how these two turn into each
other.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from typing import Any

from ..array import Array
from ..draws import Draw, Drawn
from ..errors import ShapeError, UnavailableError
from ..op import answers, as_array, describe, op
from .elementwise import (
    abs,
    add,
    astype,
    div,
    equal,
    exp,
    greater_equal,
    mul,
    neg,
    not_equal,
    power,
    remainder,
    sub,
    where,
)
from .gather import numbering
from .linear import matmul
from .reduce import Axes, max, min, norm, sum
from .shape import expand_dims, matrix_transpose, normalized_axes, squeeze, sum_to

CONDITION = "is no elementwise op: the matrix's condition says how many digits are right"


def _draw_square(d: Draw, symmetric: bool = False) -> Any:
    """Matrices with eigenvalues of different sizes, none near 0."""
    n = d.integer(1, 3)
    x = 0.3 * d.array((*d.shape(max_ndim=1), n, n))
    for i in range(n):
        x[..., i, i] += 2 + 2 * i
    return x + x.swapaxes(-1, -2) if symmetric else x


def _draw_solve(d: Draw) -> Drawn:
    a = _draw_square(d)
    lead = d.choice([d.broadcastable(a.shape[:-2]), (2, *a.shape[:-2])])
    return (a, d.array((*lead, a.shape[-1], d.integer(1, 2)))), {}


@op(
    draw=_draw_solve,
    linear_in=("b",),
    shapes="(..., n, n) and (..., n, k) whose leading axes broadcast",
    tails=CONDITION,
)
def _solve(xp: Any, a: Any, b: Any) -> Any:
    """The x with a x = b."""
    return xp.linalg.solve(a, b)


@_solve.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return sum_to(neg(matmul(_solve(matrix_transpose(a), ct), matrix_transpose(out))), a.shape)


@_solve.vjp("b")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return sum_to(_solve(matrix_transpose(a), ct), b.shape)


def _square(where: str, a: Any) -> Array:
    a = as_array(a)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ShapeError(f"{where}: a {describe(a)} is no square matrix. Pass shapes (..., n, n).")
    return a if a.dtype.kind == "f" else astype(a, float)


def _compared(x: Array, comparison: Callable[[Any, Any], Array], k: int = 0) -> Array:
    """Of each place in matrices, how its row compares with its column, k places to the left."""
    place = remainder(numbering(x), x.shape[-2] * x.shape[-1])
    column = remainder(place, x.shape[-1])
    return comparison(sub(place, column), mul(add(column, -k), x.shape[-1]))


def _eye(like: Array) -> Array:
    return astype(_compared(like, equal), like.dtype)


def _lower(x: Array, k: int = 0) -> Array:
    return where(_compared(x, greater_equal, k), x, 0.0)


@answers(numpy=("solve",))
def solve(a: Any, b: Any) -> Array:
    """The x with a x = b, for a (..., n, n) and b (n,) or (..., n, k)."""
    a, b = _square("solve", a), as_array(b)
    return squeeze(_solve(a, expand_dims(b, 1)), -1) if b.ndim == 1 else _solve(a, b)


@answers(numpy=("inv",))
def inv(a: Any) -> Array:
    """The inverse matrix."""
    a = _square("inv", a)
    return _solve(a, _eye(a))


@op(draw=lambda d: ((_draw_square(d),), {}), shapes="(..., n, n)", tails=CONDITION)
def _slogdet(xp: Any, a: Any) -> Any:
    """The determinant's sign, and the logarithm of its size, along a new last axis."""
    return xp.stack(xp.linalg.slogdet(a), axis=-1)


@_slogdet.vjp("a")
def _(ct: Array, out: Array, a: Array) -> Array:
    return mul(ct[..., 1, None, None], matrix_transpose(inv(a)))


SlogdetResult = namedtuple("SlogdetResult", "sign logabsdet")  # as NumPy's
EighResult = namedtuple("EighResult", "eigenvalues eigenvectors")


@answers(numpy=("slogdet",))
def slogdet(a: Any) -> SlogdetResult:
    """The determinant's sign, and the logarithm of its size."""
    both = _slogdet(_square("slogdet", a))
    return SlogdetResult(both[..., 0].constant(), both[..., 1])


@answers(numpy=("det",))
def det(a: Any) -> Array:
    """The determinant."""
    sign, log_size = slogdet(a)
    return mul(sign, exp(log_size))


def _mirrored(x: Array, upper: bool) -> Array:
    """The symmetric matrix with x's lower (or upper) triangle, which is all that NumPy reads."""
    x = matrix_transpose(x) if upper else x
    return _lower(x) + matrix_transpose(_lower(x, -1))


def _symmetric(a: Any) -> Any:
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError("a is not square")
    return 0.5 * (a + a.swapaxes(-1, -2))


def _mean_with_transpose(x: Array) -> Array:
    return mul(x + matrix_transpose(x), 0.5)


@op(
    draw=lambda d: ((_draw_square(d, symmetric=True),), {}),
    shapes="(..., n, n)",
    tails=CONDITION,
)
def _cholesky(xp: Any, a: Any) -> Any:
    """The lower triangular L with L L^T = (a + a^T) / 2."""
    return xp.linalg.cholesky(_symmetric(a))


@_cholesky.vjp("a")
def _(ct: Array, out: Array, a: Array) -> Array:
    upper = matrix_transpose(out)
    inner = matmul(upper, ct)
    inner = sub(_lower(inner), mul(mul(inner, _eye(inner)), 0.5))
    left = _solve(upper, inner)
    return _mean_with_transpose(_solve(upper, matrix_transpose(left)))


@answers(numpy=("cholesky",))
def cholesky(a: Any, *, upper: bool = False) -> Array:
    """The lower triangular L with L L^T = a (or its transpose), of which one triangle is read."""
    root = _cholesky(_mirrored(_square("cholesky", a), upper))
    return matrix_transpose(root) if upper else root


@op(
    draw=lambda d: ((_draw_square(d, symmetric=True),), {"triangle": d.choice(["L", "U"])}),
    shapes="(..., n, n)",
    tails=CONDITION,
)
def _eigh(xp: Any, a: Any, *, triangle: str) -> Any:
    """The eigenvalues of (a + a^T) / 2 as a row above its eigenvectors, which are columns."""
    values, vectors = xp.linalg.eigh(_symmetric(a), triangle)
    return xp.concatenate([values[..., None, :], vectors], axis=-2)


@_eigh.vjp("a")
def _(ct: Array, out: Array, a: Array, *, triangle: str) -> Array:
    values, vectors = out[..., :1, :], out[..., 1:, :]
    apart = values - matrix_transpose(values)
    same = equal(apart, 0)
    turned = matmul(matrix_transpose(vectors), ct[..., 1:, :])
    turned = where(same, 0.0, div(turned, where(same, 1.0, apart)))
    inner = turned + mul(_eye(turned), ct[..., :1, :])
    return _mean_with_transpose(matmul(matmul(vectors, inner), matrix_transpose(vectors)))


@answers(numpy=("eigh",))
def eigh(a: Any, UPLO: str = "L") -> EighResult:
    """A symmetric matrix's eigenvalues, rising, and its eigenvectors, which are columns."""
    both = _eigh(_mirrored(_square("eigh", a), UPLO.upper() == "U"), triangle=UPLO.upper())
    return EighResult(both[..., 0, :], both[..., 1:, :])


@answers(numpy=("eigvalsh",))
def eigvalsh(a: Any, UPLO: str = "L") -> Array:
    """A symmetric matrix's eigenvalues, rising."""
    return eigh(a, UPLO).eigenvalues


# ---- norms


def _vector_norm(x: Array, ord: float | None, axis: Axes, keepdims: bool) -> Array:
    """(sum |x|^ord)^(1/ord) over the axes, the largest or smallest |x| where ord is infinite."""
    size = abs(x)
    if ord in (2, None):
        return norm(x, axis=axis, keepdims=keepdims)
    if ord in (math.inf, -math.inf):
        return (max if ord > 0 else min)(size, axis, keepdims=keepdims)
    if ord in (0, 1):
        return sum(size if ord else not_equal(x, 0), axis, keepdims=keepdims)
    # All of it over a constant, whose powers cannot leave the range; the norm of 0 gets no slope.
    top = max(size.constant(), axis, keepdims=True)
    zero = equal(top, 0)
    total = sum(power(div(size, where(zero, 1.0, top)), ord), axis, keepdims=True)
    root = mul(power(where(zero, 1.0, total), 1 / ord), top)
    return root if keepdims else squeeze(root, axis)


@answers(numpy=("linalg.norm",))
def linalg_norm(x: Any, ord: Any = None, axis: Axes = None, keepdims: bool = False) -> Array:
    """A vector's norm, or a matrix's: NumPy's linalg.norm, but for the norms by singular values."""
    x = as_array(x)
    axes = normalized_axes("norm", axis, x.ndim)
    if ord is None or len(axes) == 1 or ord == "fro":
        return _vector_norm(x, None if ord == "fro" else ord, axes, keepdims)
    if len(axes) != 2 or ord not in (1, -1, math.inf, -math.inf):
        raise UnavailableError(
            f"norm: ord={ord!r} over {len(axes)} axes has no derivative rule for Arrays. "
            "Use 'fro', 1, -1, inf or -inf, or numpy.linalg.eigvalsh(x.T @ x)."
        )
    summed, other = axes if ord in (1, -1) else axes[::-1]
    totals = sum(abs(x), summed, keepdims=True)
    out = (max if ord > 0 else min)(totals, other, keepdims=True)
    return out if keepdims else squeeze(out, axes)


answers(numpy=("vector_norm",))(
    lambda x, *, axis=None, keepdims=False, ord=2: _vector_norm(
        as_array(x), ord, normalized_axes("norm", axis, as_array(x).ndim), keepdims
    )
)
answers(numpy=("matrix_norm",))(
    lambda x, *, keepdims=False, ord="fro": linalg_norm(x, ord, (-2, -1), keepdims)
)
