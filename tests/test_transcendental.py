"""exp, sin and the like of generated loops: a few units in the last place from high precision, and
C's at infinities, NaN, signed zeros and denormal numbers, however LLVM may reorder sums around."""

import ctypes
import re

import mpmath
import numpy as np
import pytest

import mamlnp as ml
from mamlnp.backend import generated, machine_code
from mamlnp.backend.generated import EXPRESSIONS, HOST, LoopNest, Operand, Result, Value

DTYPES = {"f4": np.float32, "f8": np.float64}
ULPS = 4.0
POWER_ULPS = 8.0  # where the exponent is large, the logarithm's last digits count
TYPES = pytest.mark.parametrize("code", DTYPES)


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


EXACT = {
    "exp": mpmath.exp, "expm1": mpmath.expm1, "log": mpmath.log, "log1p": mpmath.log1p,
    "sin": mpmath.sin, "cos": mpmath.cos, "tanh": mpmath.tanh, "sigmoid": sigmoid,
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", EXACT)


def loop(name, code, *, sums=False, count=1, exponent=None):
    """A generated kernel of the op; with a sum beside, whose terms LLVM may add in any order."""
    operand = Operand(code, 1)
    results = [Result(("v", 0), operand, "")]
    if sums:
        results.append(Result(("v", 0), Operand(code, 0), "sum"))
    value = Value(name, tuple(("x", i) for i in range(count)), code, code, exponent)
    nest = LoopNest(1, (operand,) * count, (), (value,), tuple(results))
    address = generated.loops(nest)

    def run(*xs):
        out, total = np.full_like(xs[0], 7), np.zeros(1, xs[0].dtype)
        at = [x.ctypes.data for x in (*xs, out, *([total] if sums else []))]
        row = np.array([len(out), *at, *([1] if sums else [])], np.int64)
        ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)(row.ctypes.data)
        return out

    return run


def grid(code, name, count=800):
    """Dense near 0 and 1 and where arguments are reduced, and far out on both sides."""
    rng = np.random.default_rng(0)
    largest = 88 if code == "f4" else 709
    near = rng.uniform(-4, 4, count)
    far = rng.uniform(-1.2 * largest, 1.2 * largest, count)
    sizes = np.exp(rng.uniform(-80, 80, count)) * rng.choice([-1, 1], count)
    ones = 1 + rng.normal(size=count // 3) * np.exp(rng.uniform(-30, 0, count // 3))
    x = np.concatenate([near, far, sizes, ones, 1 - ones])
    if name in ("sin", "cos"):
        turns = np.arange(-count, count) * (np.pi / 2)
        x = np.concatenate([x, turns, rng.uniform(-45_000, 45_000, count)])
    return x.astype(DTYPES[code])


def ulps(got, exact, dtype):
    """By how many units in the last place of the nearest number, or the smallest normal one."""
    with mpmath.workdps(40), np.errstate(over="ignore"):
        rounded = np.array([dtype(float(e)) for e in exact])
        unit = np.spacing(np.maximum(np.abs(rounded), np.finfo(dtype).smallest_normal))
        finite = np.isfinite(rounded)
        np.testing.assert_array_equal(got[~finite], rounded[~finite])
        pairs = zip(got[finite], exact[finite], unit[finite], strict=True)
        return max(float(abs(mpmath.mpf(float(a)) - e) / float(u)) for a, e, u in pairs)


@TYPES
@EVERY
def test_it_is_right_to_a_few_units_in_the_last_place(name, code):
    x = grid(code, name)
    if name == "log":
        x = np.abs(x)
    if name == "log1p":
        x = x[x > -1]
    with mpmath.workdps(60):
        exact = np.array([EXACT[name](mpmath.mpf(float(v))) for v in x], object)
    assert ulps(loop(name, code)(x), exact, DTYPES[code]) < ULPS


@TYPES
def test_a_power_is_right_to_a_few_units_in_the_last_place(code):
    rng, dtype, n = np.random.default_rng(0), DTYPES[code], 1_500
    largest = 88 if code == "f4" else 709
    x = np.exp(rng.uniform(-40, 40, 3 * n)).astype(dtype)
    x[n : 2 * n] = rng.uniform(0.5, 2, n)
    y = rng.uniform(-1, 1, 3 * n)
    y[: 2 * n] *= largest / np.maximum(np.abs(np.log(x[: 2 * n].astype(float))), 1e-3)
    y = y.astype(dtype)
    y[2 * n :] = rng.integers(-5, 6, n)
    x[2 * n :] *= rng.choice([-1, 1], n)
    with mpmath.workdps(60):
        exact = np.array(
            [mpmath.mpf(float(a)) ** mpmath.mpf(float(b)) for a, b in zip(x, y, strict=True)],
            object,
        )
    assert ulps(loop("power", code, count=2)(x, y), exact, dtype) < POWER_ULPS


def same(got, expected):
    """NaN where NaN is, zeros of the same sign, everything else to a few units."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    got, expected = got[~np.isnan(got)], expected[~np.isnan(expected)]
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))
    np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(got.dtype).eps)


def specials(dtype):
    info = np.finfo(dtype)
    sizes = [0, info.smallest_subnormal, info.smallest_normal, 0.5, 1, 1.5, 2, 3, info.max, np.inf]
    return np.array([np.nan, *sizes, *(-s for s in map(dtype, sizes))], dtype)


def plain(name, x):
    """What NumPy gives in double the digits."""
    wide = np.longdouble if x.dtype == np.float64 else np.float64
    x = x.astype(wide)
    e = np.exp(-np.abs(x))
    found = {
        "sigmoid": lambda x: np.where(x >= 0, 1, e) / (1 + e),
        "softplus": lambda x: np.maximum(x, 0) + np.log1p(e),
    }
    return found.get(name, getattr(np, name, None))(x)


@TYPES
@EVERY
@pytest.mark.parametrize("sums", [False, True], ids=["alone", "beside a sum"])
def test_special_values_are_c_s(name, code, sums):
    dtype = DTYPES[code]
    x = np.resize(specials(dtype), 210)  # whole vectors and a rest
    with np.errstate(all="ignore"):
        expected = plain(name, x).astype(dtype)
        if name in ("sin", "cos"):
            expected = getattr(np, name)(x)
    same(loop(name, code, sums=sums)(x), expected)


@TYPES
def test_special_powers_are_c_s(code):
    x, y = (a.ravel().copy() for a in np.meshgrid(*[specials(DTYPES[code])] * 2))
    with np.errstate(all="ignore"):
        same(loop("power", code, count=2)(x, y), x**y)


@TYPES
@EVERY
def test_sums_that_may_be_reordered_do_not_change_it(name, code):
    x = np.abs(grid(code, name))
    x = x[x < 10_000]  # beyond, a block decides whether it is C's
    np.testing.assert_array_equal(loop(name, code, sums=True)(x), loop(name, code)(x))


@TYPES
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_far_out_sin_and_cos_are_c_s(name, code):
    """Few among many near 0, so that blocks of both kinds are there."""
    dtype, rng = DTYPES[code], np.random.default_rng(0)
    x = rng.uniform(-3, 3, 10_000).astype(dtype)
    x[4_000:4_040] = np.exp(rng.uniform(10, 80, 40))
    with mpmath.workdps(200):
        exact = np.array([EXACT[name](mpmath.mpf(float(v))) for v in x], object)
    assert ulps(loop(name, code)(x), exact, dtype) < ULPS


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_one_within_another_is_asked_too(name):
    f = getattr(ml, name)
    x = np.array([1.0, 1e10, 3e5, -2.0] * 700)
    compiled = ml.compile(lambda x: f(f(x) * 1e8 + x))
    np.testing.assert_allclose(compiled(x), f(f(ml.array(x)) * 1e8 + x), atol=1e-7)


@TYPES
@pytest.mark.parametrize("name", [name for name in HOST if HOST[name] != EXPRESSIONS[name]])
def test_the_loop_is_vectorised(name, code):
    """LLVM made vector instructions of it: no call of the C library's is left."""
    count = 2 if name == "power" else 1
    loop(name, code, count=count)
    value = Value(name, tuple(("x", i) for i in range(count)), code, code)
    operand = Operand(code, 1)
    nest = LoopNest(1, (operand,) * count, (), (value,), (Result(("v", 0), operand, ""),))
    text = generated.source(nest)
    assert re.search(rf"\b{name}_{code}\(", text)
    llvm = machine_code.made(text, "kernel", f"kernel_{name}_{code}").described()
    vectors = re.findall(r"<(\d+) x (?:float|double)>", llvm)
    assert vectors, "nothing was vectorised"
    library = re.findall(r"call [^\n]*@(?:llvm\.)?(exp|expm1|log|log1p|tanh|pow)f?[\.\(]", llvm)
    assert not library
