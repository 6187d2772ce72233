"""One element in, one element out, with NumPy's broadcasting.

Values at edge points: relu'(0) = abs'(0) = 0; ties of maximum and minimum share the cotangent
equally; a branch that `where` did not take gets exactly 0. NaN goes through: relu, clip, maximum
and minimum hand on the whole cotangent where the result is NaN (to both arguments), abs hands on
NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .. import backend
from ..array import Array
from ..draws import (
    Domain,
    Draw,
    Drawn,
    Shape,
    Tails,
    above_zero,
    nonzero,
    one,
    positive,
    reals,
    two,
)
from ..errors import DtypeError, ShapeError
from ..op import answers, as_array, op
from .shape import sum_to

BROADCAST = "that broadcast together"


def _fit(ct: Array, x: Array) -> Array:
    """Undo the broadcasting of ``x``."""
    return ct if ct.shape == x.shape else sum_to(ct, x.shape)


# ---- comparisons and other constants: no derivative, by declaration


def _comparison(name: str, numpy_name: str, operator: str) -> Any:
    def forward(xp: Any, a: Any, b: Any) -> Any:
        return getattr(xp, numpy_name)(a, b)

    forward.__name__ = name
    forward.__doc__ = f"Elementwise, is the comparison {name} true? Not differentiable."
    forward.__module__ = __name__
    return op(
        draw=two(), differentiable=False, shapes=BROADCAST, operator=operator, numpy=(numpy_name,)
    )(forward)


equal = _comparison("equal", "equal", "eq")
not_equal = _comparison("not_equal", "not_equal", "ne")
less = _comparison("less", "less", "lt")
less_equal = _comparison("less_equal", "less_equal", "le")
greater = _comparison("greater", "greater", "gt")
greater_equal = _comparison("greater_equal", "greater_equal", "ge")


@op(draw=one(), differentiable=False)
def sign(xp: Any, x: Any) -> Any:
    """-1, 0 or 1. Not differentiable."""
    return xp.sign(x)


@op(draw=one(), differentiable=False, numpy=("isfinite",))
def isfinite(xp: Any, x: Any) -> Any:
    """Neither infinite nor NaN? Not differentiable."""
    return xp.isfinite(x)


@op(draw=one(), differentiable=False)
def zeros_like(xp: Any, x: Any) -> Any:
    """Zeros of x's shape and type. Not differentiable."""
    return xp.zeros_like(x)


@op(draw=one(), differentiable=False)
def ones_like(xp: Any, x: Any) -> Any:
    """Ones of x's shape and type. Not differentiable."""
    return xp.ones_like(x)


@op(
    draw=lambda d: ((d.integers(d.shape(), 0, 3),), {"num_classes": 4, "dtype": d.dtype}),
    differentiable=False,
)
def one_hot(xp: Any, labels: Any, *, num_classes: int, dtype: Any = float) -> Any:
    """1 at each label, 0 elsewhere, along a new last axis: (...) -> (..., num_classes)."""
    return (xp.asarray(labels)[..., None] == xp.arange(num_classes)).astype(dtype)


@op(draw=lambda d: ((d.integers(d.shape(), 0, 3),), {"num_classes": 4}), differentiable=False)
def class_labels(xp: Any, labels: Any, *, num_classes: int) -> Any:
    """The labels themselves, which have to be classes: integers from 0 to num_classes - 1."""
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ShapeError(
            f"class_labels: they run from {labels.min()} to {labels.max()} but there are "
            f"{num_classes} classes. Number the classes from 0."
        )
    return labels.copy()


@op(draw=lambda d: ((d.integers(d.shape(), -3, 3),), {"dtype": d.dtype}), differentiable=False)
def _astype(xp: Any, x: Any, *, dtype: Any) -> Any:
    """The elements as another type. Not differentiable."""
    return x.astype(dtype)


@answers(method="astype", numpy=("astype",))
def astype(x: Any, dtype: Any) -> Array:
    """The elements as another type; not differentiable, and itself if the type is the same.

    Raises:
        DtypeError: a float that is being differentiated would become another float type, which
            would lose its derivative without a word.
    """
    x = as_array(x)
    if x.dtype == dtype:
        return x
    out = _astype(x, dtype=dtype)
    if x.serial and out.dtype.kind == "f":
        raise DtypeError(
            f"astype: {x.dtype} to {out.dtype} is not differentiable. "
            "Convert before the gradient is taken, or use stop_gradient(x).astype(...)."
        )
    return out


# ---- arithmetic


@op(draw=two(), linear_in=("a", "b"), shapes=BROADCAST, operator="add")
def add(xp: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return xp.add(a, b)


@add.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return _fit(ct, a)


@add.vjp("b")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return _fit(ct, b)


@op(draw=two(), shapes=BROADCAST, operator="sub", numpy=("subtract",), linear_in=("a", "b"))
def sub(xp: Any, a: Any, b: Any) -> Any:
    """a - b."""
    return xp.subtract(a, b)


@sub.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return _fit(ct, a)


@sub.vjp("b")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return neg(_fit(ct, b))


@op(draw=two(), linear_in=("a", "b"), shapes=BROADCAST, operator="mul", numpy=("multiply",))
def mul(xp: Any, a: Any, b: Any) -> Any:
    """a * b."""
    return xp.multiply(a, b)


@mul.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return _fit(mul(ct, b), a)


@mul.vjp("b")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return _fit(mul(ct, a), b)


@op(
    draw=two(reals, nonzero),
    linear_in=("a",),
    shapes=BROADCAST,
    operator="truediv",
    numpy=("divide", "true_divide"),
    tails=Tails("a / b"),
)
def div(xp: Any, a: Any, b: Any) -> Any:
    """a / b."""
    return xp.divide(a, b)


@div.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return _fit(div(ct, b), a)


@div.vjp("b")
def _(ct: Array, out: Array, a: Array, b: Array) -> Array:
    return _fit(neg(div(mul(ct, out), b)), b)


@op(draw=one(), linear_in=("x",), operator="neg", numpy=("negative",))
def neg(xp: Any, x: Any) -> Any:
    """-x."""
    return xp.negative(x)


@neg.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return neg(ct)


def _draw_power(d: Draw) -> Drawn:
    if d.boolean():
        return two(positive, reals)(d)
    exponent = d.choice([0, 1, 2, 3, -1, 0.5, -0.5, 1.7])
    domain = reals if exponent in (0, 1, 2, 3) else positive
    return (d.array(d.shape(), domain), exponent), {}


@op(
    draw=_draw_power,
    shapes=BROADCAST,
    operator="pow",
    numpy=("pow",),
    tails=Tails("a ** b", (above_zero, Domain(1e-3, 1e3, signed=True)), "1 + abs(log(a))"),
)
def power(xp: Any, a: Any, b: Any) -> Any:
    """a ** b. A Python number as exponent uses no logarithm and is right for negative a too.

    At a = 0 the derivative by b is 0, and that by a is 0 where b = 0.
    """
    return xp.square(a) if b.__class__ is int and b == 2 else xp.power(a, b)


@power.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Any) -> Array:
    if isinstance(b, Array):
        edge = where(equal(a, 0), equal(b, 0), False)
        return _fit(mul(ct, mul(b, power(a, where(edge, 1, sub(b, 1))))), a)
    if b == 0:
        return mul(ct, 0.0)
    return mul(ct, b) if b == 1 else mul(ct, mul(power(a, b - 1) if b != 2 else a, b))


@power.vjp("b")
def _(ct: Array, out: Array, a: Any, b: Array) -> Array:
    safe = greater(a, 0)
    return _fit(where(safe, mul(mul(ct, out), log(where(safe, a, ones_like(b)))), 0.0), b)


@answers(numpy=("square",))
def square(x: Any) -> Array:
    """x * x."""
    return power(x, 2)


@answers(numpy=("reciprocal",))
def reciprocal(x: Any) -> Array:
    """1 / x."""
    return div(1.0, x)


# ---- exponentials and circles


@op(draw=one(), tails=Tails("exp(x)"))
def exp(xp: Any, x: Any) -> Any:
    """e to the x."""
    return xp.exp(x)


@exp.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return mul(ct, out)


@op(draw=one(), tails=Tails("expm1(x)"))
def expm1(xp: Any, x: Any) -> Any:
    """exp(x) - 1, exact for small x."""
    return xp.expm1(x)


@expm1.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return mul(ct, exp(x))


@op(draw=one(positive), tails=Tails("log(x)", (above_zero,)))
def log(xp: Any, x: Any) -> Any:
    """Natural logarithm."""
    return xp.log(x)


@log.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return div(ct, x)


@op(draw=one(positive), tails=Tails("log1p(x)", (Domain(-1.0, math.inf),)))
def log1p(xp: Any, x: Any) -> Any:
    """log(1 + x), exact for small x."""
    return xp.log1p(x)


@log1p.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return div(ct, add(x, 1.0))


@op(draw=one(positive), tails=Tails("sqrt(x)", (above_zero,)))
def sqrt(xp: Any, x: Any) -> Any:
    """Square root; its derivative at 0 is infinite (see norm for one that is not)."""
    return xp.sqrt(x)


@sqrt.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return div(mul(ct, 0.5), out)


@op(draw=one(), tails=Tails("sin(x)"))
def sin(xp: Any, x: Any) -> Any:
    """Sine, x in radians."""
    return xp.sin(x)


@sin.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return mul(ct, cos(x))


@op(draw=one(), tails=Tails("cos(x)"))
def cos(xp: Any, x: Any) -> Any:
    """Cosine, x in radians."""
    return xp.cos(x)


@cos.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return neg(mul(ct, sin(x)))


@op(draw=one(), tails=Tails("tanh(x)"))
def tanh(xp: Any, x: Any) -> Any:
    """Hyperbolic tangent."""
    return xp.tanh(x)


@tanh.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return mul(ct, mul(_sigmoid_slope(mul(x, 2.0)), 4.0))


@op(draw=one(), tails=Tails("1 / (1 + exp(-x))"))
def sigmoid(xp: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)), without overflow."""
    e = xp.exp(-1.0 * xp.abs(x))
    return xp.where(x >= 0, 1, e) / (1 + e)


@sigmoid.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return mul(ct, _sigmoid_slope(x))


@op(draw=one(), tails=Tails("exp(-abs(x)) / (1 + exp(-abs(x))) ** 2"))
def _sigmoid_slope(xp: Any, x: Any) -> Any:
    """sigmoid(x) sigmoid(-x), which is the derivative of sigmoid(x), and of tanh(x / 2) / 2 too
    (docs, equation 2.5).

    An op of its own, for 1 - sigmoid(x) and 1 - tanh(x)^2 are 0 where these have rounded to 1.
    """
    e = xp.exp(-1.0 * xp.abs(x))
    return e / xp.square(1 + e)


@_sigmoid_slope.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return neg(mul(ct, mul(out, tanh(mul(x, 0.5)))))


@op(draw=one(), tails=Tails("log1p(exp(x))"))
def softplus(xp: Any, x: Any) -> Any:
    """log(1 + exp(x)), without overflow."""
    return xp.logaddexp(x, 0)


@softplus.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return mul(ct, sigmoid(x))


def _hyperbolic(name: str, doc: str, tails: Tails, slope: Callable[[Array], Array]) -> Any:
    def forward(xp: Any, x: Any) -> Any:
        return getattr(xp, name)(x)

    forward.__name__, forward.__doc__, forward.__module__ = name, doc, __name__
    made = op(draw=one(), tails=tails)(forward)
    made.vjp("x")(lambda ct, out, x: mul(ct, slope(x)))
    return made


sinh: Any = _hyperbolic("sinh", "Hyperbolic sine.", Tails("sinh(x)"), lambda x: cosh(x))
cosh: Any = _hyperbolic("cosh", "Hyperbolic cosine.", Tails("cosh(x)"), lambda x: sinh(x))


@answers(numpy=("hypot",))
def hypot(a: Any, b: Any) -> Array:
    """sqrt(a^2 + b^2), without overflow; at a = b = 0 its derivatives of every order are 0."""
    sizes = [abs(x) if hasattr(x, "dtype") else math.fabs(x) for x in (a, b)]
    top = maximum(*sizes).constant()
    zero = equal(top, 0)
    top = where(zero, 1.0, top)
    squares = add(square(div(a, top)), square(div(b, top)))
    return mul(where(zero, 0.0, sqrt(where(zero, 1.0, squares))), top)


arcsinh: Any = _hyperbolic(
    "arcsinh",
    "The number whose sinh is x.",
    Tails("asinh(x)", loss="4"),
    lambda x: div(1.0, hypot(x, 1.0)),
)


@op(
    draw=two(nonzero, nonzero),
    shapes=BROADCAST,
    numpy=("atan2",),
    tails=Tails(
        "atan2(a, b)",
        (Domain(1e-3, 1e3, signed=True),),
        "(a / b) ** 2 + (b / a) ** 2 + (a * a + b * b) / (abs(a * a - b * b) + 1e-12)",
    ),
)
def arctan2(xp: Any, a: Any, b: Any) -> Any:
    """The angle of the point (b, a), from -pi to pi; at 0 its derivatives are 0."""
    return xp.arctan2(a, b)


def _turn(ct: Array, x: Any, y: Any) -> Array:
    """ct times how fast the angle of a point grows as it moves across x."""
    length = hypot(x, y)
    length = where(equal(length, 0), 1.0, length)
    return div(div(mul(ct, x), length), length)


@arctan2.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Any) -> Array:
    return _fit(_turn(ct, b, a), a)


@arctan2.vjp("b")
def _(ct: Array, out: Array, a: Any, b: Array) -> Array:
    return _fit(neg(_turn(ct, a, b)), b)


@op(
    draw=lambda d: (one()(d)[0], {"complement": d.boolean()}),
    tails=Tails("erf(x)", loss="1 + x * x"),
)
def _error_function(xp: Any, x: Any, *, complement: bool = False) -> Any:
    """The error function, or 1 minus it, which does not round to 0."""
    return backend.kernels_of(x).erf(x, complement)


@_error_function.vjp("x")
def _(ct: Array, out: Array, x: Array, *, complement: bool = False) -> Array:
    slope = mul(exp(neg(square(x))), 2 / math.sqrt(math.pi))
    return mul(neg(ct) if complement else ct, slope)


@answers(numpy=("erf",))
def erf(x: Any) -> Array:
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    return _error_function.apply((as_array(x),), {"complement": False})


@answers(numpy=("erfc",))
def erfc(x: Any) -> Array:
    """1 - erf(x), without rounding to 0."""
    return _error_function.apply((as_array(x),), {"complement": True})


# ---- piecewise


@op(
    draw=two(reals, nonzero),
    shapes=BROADCAST,
    operator="mod",
    numpy=("mod",),
    pattern=lambda xp, a, b: xp.floor_divide(a, b),
)
def remainder(xp: Any, a: Any, b: Any) -> Any:
    """What is left of a when b is taken from it as often as it fits; has the sign of b."""
    return xp.remainder(a, b)


@remainder.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Any) -> Array:
    return _fit(ct, a)


@remainder.vjp("b")
def _(ct: Array, out: Array, a: Any, b: Array) -> Array:
    return _fit(neg(mul(ct, floor_divide(a, b))), b)


@op(
    draw=lambda d: (one()(d)[0], {"how": d.choice(["floor", "rint"])}),
    differentiable=False,
)
def _rounded(xp: Any, x: Any, *, how: str) -> Any:
    """The whole number below x ("floor") or next to it ("rint"). Not differentiable."""
    return getattr(xp, how)(x)


@answers(operator="floordiv", numpy=("floor_divide",))
def floor_divide(a: Any, b: Any) -> Array:
    """How often b fits into a. Not differentiable."""
    rest = remainder(a, b)
    return astype(_rounded(div(sub(a, rest), b), how="rint"), rest.dtype)


@op(draw=one(), numpy=("absolute", "fabs"), operator="abs", pattern=lambda xp, x: xp.sign(x))
def abs(xp: Any, x: Any) -> Any:
    """|x|; the derivative at 0 is 0."""
    return xp.abs(x)


@abs.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return mul(ct, sign(x))


@op(draw=one(), pattern=lambda xp, x: x > 0)
def relu(xp: Any, x: Any) -> Any:
    """max(x, 0); the derivative at 0 is 0, at NaN it is 1."""
    return xp.maximum(x, 0)


@relu.vjp("x")
def _(ct: Array, out: Array, x: Array) -> Array:
    return mul(ct, _relu_slope(x))


@op(draw=one(), differentiable=False)
def _relu_slope(xp: Any, x: Any) -> Any:
    """Is x above 0, or NaN? Not differentiable."""
    return xp.logical_not(xp.less_equal(x, 0))


@op(draw=two(), shapes=BROADCAST, pattern=lambda xp, a, b: xp.sign(xp.subtract(a, b)))
def maximum(xp: Any, a: Any, b: Any) -> Any:
    """The larger of a and b; a tie gives each half of the cotangent."""
    return xp.maximum(a, b)


def _share(ct: Array, larger: Any, smaller: Any) -> Array:
    """All of the cotangent unless the one is smaller, half of it where they are equal. (Neither is
    so where one is NaN.)"""
    return where(equal(larger, smaller), mul(ct, 0.5), where(less(larger, smaller), 0.0, ct))


@maximum.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Any) -> Array:
    return _fit(_share(ct, a, b), a)


@maximum.vjp("b")
def _(ct: Array, out: Array, a: Any, b: Array) -> Array:
    return _fit(_share(ct, b, a), b)


@op(draw=two(), shapes=BROADCAST, pattern=lambda xp, a, b: xp.sign(xp.subtract(a, b)))
def minimum(xp: Any, a: Any, b: Any) -> Any:
    """The smaller of a and b; a tie gives each half of the cotangent."""
    return xp.minimum(a, b)


@minimum.vjp("a")
def _(ct: Array, out: Array, a: Array, b: Any) -> Array:
    return _fit(_share(ct, b, a), a)


@minimum.vjp("b")
def _(ct: Array, out: Array, a: Any, b: Array) -> Array:
    return _fit(_share(ct, a, b), b)


@answers(method="clip")
def clip(x: Any, min: Any, max: Any) -> Array:
    """x kept between min and max; at either bound half of the cotangent passes (a tie)."""
    return minimum(maximum(x, min), max)


def _draw_where(d: Draw) -> Drawn:
    shape = d.shape()
    shapes: list[Shape] = [shape, d.broadcastable(shape), d.broadcastable(shape)]
    return (d.mask(shapes[0]), d.array(shapes[1]), d.array(shapes[2])), {}


@op(draw=_draw_where, data=("condition",), linear_in=("a", "b"), shapes=BROADCAST)
def where(xp: Any, condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b; the branch not taken gets a cotangent of exactly 0
    (docs, equation 2.4)."""
    return xp.where(condition if hasattr(condition, "dtype") else xp.asarray(condition), a, b)


@where.vjp("a")
def _(ct: Array, out: Array, condition: Any, a: Array, b: Any) -> Array:
    return _fit(where(condition, ct, 0.0), a)


@where.vjp("b")
def _(ct: Array, out: Array, condition: Any, a: Any, b: Array) -> Array:
    return _fit(where(condition, 0.0, ct), b)
