"""exp, log, sin and the like without a branch, for generated loops that LLVM vectorises.

Each is an argument brought into a short interval, a polynomial there, and the way back: exp(x) is
2^n exp(r) with x = n log 2 + r, log(x) is k log 2 + log(m) with x = 2^k m, sin(x) is sin(r) up to
its sign with x = n pi + r (J.-M. Muller, Elementary Functions, chapters 3 and 11). Polynomials are
near-minimax (Chebyshev, by mpmath). Errors are a few units in the last place, and infinities, NaN,
signed zeros and denormal numbers come out as C's library has them (tests/test_transcendental.py).

A formula is run once, on numbers that stand for LLVM's, when a kernel that calls it is compiled:
what it computes then is the machine code. (Type inference of such functions by numba took longer
than all else of a kernel.) Nothing in it may be reordered: constants are added only to be
subtracted again.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LOG2 = math.log(2)


# ---- machine operations


class Real:
    """A number, or a condition on some, that the code being built computes; what is done with it
    adds to that code."""

    __array_ufunc__ = None  # so that a constant of NumPy's on the left lets this class compute

    def __init__(self, builder: Any, value: Any, native: Any) -> None:
        self.builder, self.value, self.native = builder, value, native

    def made(self, value: Any) -> Real:
        return Real(self.builder, value, self.native)

    def of(self, number: Any) -> Real:
        """A constant, if it is none of these."""
        return number if isinstance(number, Real) else self.made(self.native(float(number)))

    def _by(self, operation: str, *others: Any) -> Real:
        values = [self.value, *(self.of(x).value for x in others)]
        return self.made(getattr(self.builder, operation)(*values))

    def call(self, name: str, *others: Any) -> Real:
        """LLVM's intrinsic function of that name."""
        values = [self.value, *(self.of(x).value for x in others)]
        kind = ir.FunctionType(self.native, [self.native] * len(values))
        function = self.builder.module.declare_intrinsic(name, [self.native], kind)
        return self.made(self.builder.call(function, values))

    def __add__(self, other: Any) -> Real:
        return self._by("fadd", other)

    def __sub__(self, other: Any) -> Real:
        return self._by("fsub", other)

    def __mul__(self, other: Any) -> Real:
        return self._by("fmul", other)

    def __truediv__(self, other: Any) -> Real:
        return self._by("fdiv", other)

    def __radd__(self, other: Any) -> Real:
        return self.of(other) + self

    def __rsub__(self, other: Any) -> Real:
        return self.of(other) - self

    def __rmul__(self, other: Any) -> Real:
        return self.of(other) * self

    def __neg__(self) -> Real:
        return self._by("fneg")

    def __abs__(self) -> Real:
        return self.call("llvm.fabs")

    def _compared(self, sign: str, other: Any) -> Real:
        compare = self.builder.fcmp_unordered if sign == "!=" else self.builder.fcmp_ordered
        return self.made(compare(sign, self.value, self.of(other).value))

    def __lt__(self, other: Any) -> Real:
        return self._compared("<", other)

    def __gt__(self, other: Any) -> Real:
        return self._compared(">", other)

    def __ge__(self, other: Any) -> Real:
        return self._compared(">=", other)

    def __eq__(self, other: Any) -> Real:  # type: ignore[override]
        return self._compared("==", other)

    def __ne__(self, other: Any) -> Real:  # type: ignore[override]
        return self._compared("!=", other)

    def __and__(self, other: Real) -> Real:
        return self._by("and_", other)


def _for_kernels(code: str, formula: Callable[..., Any]) -> Any:
    """A formula of numbers of a type, as a function that kernels can call."""
    kind = types.float32 if code == "f4" else types.float64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return formula(*(Real(builder, x, x.type) for x in args)).value

    def of_one(typing: Any, x: Any) -> Any:
        return kind(kind), generate

    def of_two(typing: Any, x: Any, y: Any) -> Any:
        return kind(kind, kind), generate

    return intrinsic(of_one if len(inspect.signature(formula).parameters) == 1 else of_two)


def fma(x: Any, y: Any, z: Any) -> Real:
    """x y + z, rounded once; one of them is no constant."""
    some = next(v for v in (x, y, z) if isinstance(v, Real))
    return some.of(x).call("llvm.fma", y, z)


def select(condition: Real, x: Any, y: Any) -> Real:
    """x where the condition holds, else y; both are computed."""
    values = [condition.of(v).value for v in (x, y)]
    return condition.made(condition.builder.select(condition.value, *values))


def signed(x: Real, y: Real) -> Real:
    """The size of x with the sign of y."""
    return x.call("llvm.copysign", y)


def nearest(x: Real) -> Real:
    """x rounded to an integer."""
    return x.call("llvm.rint")


class _Machine:
    """What a float type needs that Python has no words for."""

    def __init__(self, code: str) -> None:
        self.wide = wide = code == "f8"
        self.native: Any = ir.DoubleType() if wide else ir.FloatType()
        self.bits: Any = ir.IntType(64 if wide else 32)
        self.mantissa, self.bias = (52, 1023) if wide else (23, 127)
        self.magic = 1.5 * 2.0**self.mantissa  # added, it rounds to an integer: the lowest bits
        self.number: Any = np.float64 if wide else np.float32

    def pattern(self, x: float) -> int:
        """The bits of a number."""
        return int(self.number(x).view(np.int64 if self.wide else np.int32))

    def integer(self, x: Real) -> Any:
        return x.builder.bitcast(x.value, self.bits)

    def real(self, x: Real, bits: Any) -> Real:
        """The number with these bits, in the code that computes x."""
        return x.made(x.builder.bitcast(bits, self.native))

    def polynomial(self, *coefficients: float) -> Callable[[Real], Real]:
        """Of these coefficients, the highest power first."""
        first, *rest = map(self.number, coefficients)
        return lambda x: functools.reduce(lambda out, c: fma(out, x, c), rest, x.of(first))

    def halves(self, z: Real) -> tuple[Real, Real]:
        """2^n as two factors, each of which is a number however large n is; from magic + n."""
        builder, raised = z.builder, 4096  # so that no shift sees a negative number
        n = builder.add(self.integer(z), self.bits(raised - self.pattern(self.magic)))
        half = builder.lshr(n, self.bits(1))

        def power(part: Any) -> Real:
            exponent = builder.add(part, self.bits(self.bias - raised // 2))
            return self.real(z, builder.shl(exponent, self.bits(self.mantissa)))

        return power(half), power(builder.sub(n, half))

    def half_power(self, z: Real) -> Real:
        """2^(n - 1), from magic + n; n is in the range of exponents."""
        builder = z.builder
        n = builder.add(self.integer(z), self.bits(self.bias - 1 - self.pattern(self.magic)))
        return self.real(z, builder.shl(n, self.bits(self.mantissa)))

    def split(self, x: Real) -> tuple[Real, Real, Real]:
        """k, m and 2^-k: x = 2^k m with m between sqrt(1/2) and sqrt(2), of normal positive x."""
        whole, shift = 2.0**self.mantissa, self.bits(self.mantissa)
        builder, bits = x.builder, self.integer(x)
        offset = self.bits((self.bias << self.mantissa) - self.pattern(math.sqrt(0.5)))
        exponent = builder.lshr(builder.add(bits, offset), shift)
        counted = builder.or_(exponent, self.bits(self.pattern(whole)))
        k = self.real(x, counted) - (whole + self.bias)
        power = builder.shl(builder.sub(exponent, self.bits(self.bias)), shift)
        inverse = builder.sub(self.bits(self.bias << self.mantissa), power)
        return k, self.real(x, builder.sub(bits, power)), self.real(x, inverse)

    def alternated(self, x: Real, z: Real) -> Real:
        """x, or -x where n is odd; from magic + n."""
        sign = x.builder.shl(self.integer(z), self.bits(63 if self.wide else 31))
        return self.real(x, x.builder.xor(self.integer(x), sign))

    def split_constant(self, text: str, *bits: int) -> list[Any]:
        """A number, written out, as a sum: parts of so many bits, and what is left."""
        rest, parts = Fraction(text), []
        for count in bits:
            unit = Fraction(2) ** (math.floor(math.log2(abs(rest))) - count + 1)
            part = (rest // unit) * unit
            parts.append(self.number(float(part)))
            rest -= part
        return [*parts, self.number(float(rest))]


@intrinsic
def is_far(typing: Any, x: Any, reach: Any) -> Any:
    """Is sin or cos of x to be C's? So that a loop can ask it of all elements together."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, reach = (Real(builder, value, value.type) for value in args)
        return builder.zext((abs(x) > reach).value, ir.IntType(64))

    return types.int64(x, x), generate


@intrinsic
def wide_vectors(typing: Any) -> Any:
    """Let LLVM use the widest registers there are in the function that calls this: it prefers
    halves of them, for programs that do little arithmetic."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


# ---- the functions

LN2 = "0.693147180559945309417232121458176568075500134360255254120680009"
HALF_PI = "1.570796326794896619231321691639751442098584699687552910487472296"

# (e^r - 1 - r) / r^2 for |r| <= log(2) / 2
EXP = {
    "f4": (
        0.0013926250831497612, 0.008363232883682618, 0.041666554212984150, 0.16666576666119928, 0.5,
    ),
    "f8": (
        2.5100472505694996e-8, 2.7620201591031549e-7, 2.7557268276905696e-6, 2.4801521057868205e-5,
        1.9841269863171556e-4, 1.3888888917367081e-3, 8.3333333333300382e-3, 0.041666666666623821,
        0.16666666666666667, 0.5,
    ),
}  # fmt: skip
# (sin(r) - r) / r^3, of r^2, for |r| <= pi / 2
SIN = {
    "f4": (2.6345195628507823e-6, -1.9822666313356372e-4, 8.3332415922487632e-3, -0.16666665958),
    "f8": (
        2.7312868913092306e-15, -7.6439576225606170e-13, 1.6058976915095007e-10,
        -2.5052107610861158e-8, 2.7557319219115011e-6, -1.9841269841254795e-4,
        8.3333333333333156e-3, -0.16666666666666667,
    ),
}  # fmt: skip
# (log(m) - 2 q - 2/3 q^3) / q^5, of q^2, for m = (1 + q) / (1 - q)
# between sqrt(1/2) and sqrt(2)
ATANH = {
    "f4": (0.23052851266499138, 0.28562134178280338, 0.40000015305429623),
    "f8": (
        0.12920221324272918, 0.13285421679017204, 0.15385590959578391, 0.1818180802508038,
        0.22222222272468968, 0.28571428571335484, 0.40000000000000028,
    ),
}  # fmt: skip

REACH = {"f4": np.float32(50_000), "f8": np.float64(1e6)}  # of sin and cos: beyond it, C's
reach_f4, reach_f8 = REACH.values()


def _functions(code: str) -> dict[str, Any]:
    """All but powers, for a type."""
    machine = _Machine(code)
    number, wide = machine.number, machine.wide
    halves, half_power = machine.halves, machine.half_power
    split, alternated = machine.split, machine.alternated
    of_exp, of_atanh = machine.polynomial(*EXP[code]), machine.polynomial(*ATANH[code])
    of_sin = machine.polynomial(*SIN[code])
    zero, one, two, half = number(0), number(1), number(2), number(0.5)
    two_thirds, minus_one, largest_kept = number(2 / 3), number(-1), number(2.0**100)
    inf, nan, magic = number(np.inf), number(np.nan), number(machine.magic)
    log2_e, ln2_high, ln2_low = number(1 / LOG2), *machine.split_constant(LN2, 40 if wide else 14)
    per_pi, minus_half = number(1 / math.pi), number(-0.5)
    high, middle, low = machine.split_constant(HALF_PI, *((33, 33) if wide else (24, 24)))
    largest, least = number(710 if wide else 89), number(-746 if wide else -104)
    all_gone = number(-40 if wide else -18)  # e^x - 1 is -1
    gone = number(np.finfo(number).eps / 4)  # e^x - 1 is x
    smallest, raised = number(np.finfo(number).smallest_normal), number(2.0**machine.mantissa)
    lowered = number(machine.mantissa)

    def reduced(x: Any) -> Any:
        """magic + n, and exp(r) - 1."""
        z = fma(x, log2_e, magic)
        n = z - magic
        r = fma(n, -ln2_low, fma(n, -ln2_high, x))
        return z, fma(r * r, of_exp(r), r)

    def exp(x: Any) -> Any:
        x = select(x > largest, largest, x)
        x = select(x < least, least, x)
        z, e = reduced(x)
        a, b = halves(z)
        return (one + e) * a * b

    def expm1_of_negative(x: Any) -> Any:
        z, e = reduced(select(x < all_gone, all_gone, x))
        power = half_power(z)
        return two * fma(e, power, power - half)

    def expm1(x: Any) -> Any:
        out = expm1_of_negative(select(x > largest, largest, x))
        return select(abs(x) < gone, x, out)

    def log_of(k: Any, m: Any, more: Any) -> Any:
        """log(m) + k log 2 + more, by q with (1 + q) / (1 - q) = m (fdlibm's way, Sun, 1993)."""
        r = m - one
        q = r / (r + two)
        s = q * q
        rest = fma(q, fma(-s, fma(s, of_atanh(s), two_thirds), r), fma(k, -ln2_low, -more))
        return fma(k, ln2_high, r - rest), q

    def log(x: Any) -> Any:
        tiny = x < smallest
        k, m, _ = split(select(tiny, x * raised, x))
        out, _ = log_of(k + select(tiny, -lowered, zero), m, -zero)
        out = select(x > zero, out, select(x == zero, -inf, nan))
        return select(x == inf, inf, out)

    def log1p(x: Any) -> Any:
        u = one + x
        lost = select(x < one, x - (u - one), one - (u - x))
        k, m, inverse = split(u)
        r = m - one
        more = select(u < largest_kept, lost * inverse, zero) * fma(
            r, fma(r, one - r, minus_one), one
        )
        out, _ = log_of(k, m, more)
        out = select(u > zero, out, select(u == zero, -inf, nan))
        return select(x == inf, x, select(x == zero, x, out))

    def tanh(x: Any) -> Any:
        e = expm1_of_negative(-two * abs(x))
        return signed(e / (e + two), x)

    def sigmoid(x: Any) -> Any:
        e = exp(-abs(x))
        return select(x >= zero, one, e) / (one + e)

    def softplus(x: Any) -> Any:
        return select(x < zero, zero, x) + log1p(exp(-abs(x)))

    def sin_of(r: Any) -> Any:
        s = r * r
        return fma(s * r, of_sin(s), r)

    def sin(x: Any) -> Any:
        z = fma(x, per_pi, magic)
        n = two * (z - magic)
        r = fma(n, -low, fma(n, -middle, fma(n, -high, x)))
        return select(x == zero, x, alternated(sin_of(r), z))

    def cos(x: Any) -> Any:
        z = fma(x, per_pi, minus_half) + magic
        n = fma(two, z - magic, one)
        r = fma(n, -low, fma(n, -middle, fma(n, -high, x)))
        return -alternated(sin_of(r), z)

    return {
        f.__name__: f for f in (exp, expm1, log, log1p, tanh, sigmoid, softplus, sin, cos)
    }  # fmt: skip


def _power(code: str) -> Any:
    """x^y, with log(x) as a sum of two numbers, which holds twice the digits (Dekker, 1971)."""
    machine = _Machine(code)
    number, wide = machine.number, machine.wide
    halves, split = machine.halves, machine.split
    of_exp, of_atanh = machine.polynomial(*EXP[code]), machine.polynomial(*ATANH[code])
    zero, half, one, two, three = map(number, (0, 0.5, 1, 2, 3))
    inf, nan, magic, log2_e = (
        number(np.inf),
        number(np.nan),
        number(machine.magic),
        number(1 / LOG2),
    )
    ln2_high, ln2_low = machine.split_constant(LN2, 40 if wide else 14)
    third_high, third_low = machine.split_constant("0." + 40 * "6", machine.mantissa + 1)
    most = number(746 if wide else 105)
    smallest, raised = number(np.finfo(number).smallest_normal), number(2.0**machine.mantissa)
    lowered = number(-machine.mantissa)

    def power_of_size(x: Any, exponent: Any) -> Any:
        tiny = x < smallest
        k, m, _ = split(select(tiny, x * raised, x))
        k = k + select(tiny, lowered, zero)
        # log(m) = 2 q + 2/3 q^3 + ... with q = (m - 1) / (m + 1), in two numbers
        top, bottom = m - one, m + one
        q = top / bottom
        q_low = fma(-q, m - (bottom - one), fma(-q, bottom, top)) * fma(-half, q, half)
        s = q * q
        c = s * q
        c_low = fma(three * s, q_low, fma(q, fma(q, q, -s), fma(s, q, -c)))
        tail = fma(s, of_atanh(s), third_low)
        w = third_high + tail
        d = c * w
        d_low = fma(c, tail - (w - third_high), fma(c_low, w, fma(c, w, -d)))
        high = k * ln2_high
        a = fma(two, q, high)
        b = a + d
        low = fma(two, q, high - a) + (d - (b - a)) + fma(two, q_low, fma(k, ln2_low, d_low))
        log = select(x == zero, -inf, select(x < inf, b, x))
        t = exponent * log
        t_low = fma(exponent, low, fma(exponent, log, -t))
        t_low = select(abs(t) < most, t_low, zero)
        t = select(t > most, most, select(t < -most, -most, t))
        z = fma(t, log2_e, magic)
        n = z - magic
        r = fma(n, -ln2_low, fma(n, -ln2_high, t)) + t_low
        a, b = halves(z)
        return (one + fma(r * r, of_exp(r), r)) * a * b

    def power(x: Any, y: Any) -> Any:
        size, exponent = abs(x), abs(y)
        out = power_of_size(size, y)
        out = select(size == one, select(exponent == inf, one, out), out)
        odd = (exponent < inf) & (nearest(half * y) != half * y)
        real = select(size < inf, select(x < zero, nan, out), out)  # where y is no integer
        out = select(nearest(y) == y, select(odd, signed(out, x), out), real)
        return select(x == one, one, select(y == zero, one, out))

    return power


FUNCTIONS = {
    f"{name}_{code}": _for_kernels(code, formula)
    for code in ("f4", "f8")
    for name, formula in (_functions(code) | {"power": _power(code)}).items()
}
globals().update(FUNCTIONS)  # for generated modules, which import them by name
