"""Values of the operations: against NumPy, against loops, and at the edges they declare."""

import itertools
import math
import re

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from strategies import HypothesisDraw

import mamlnp as ml
from mamlnp.errors import DtypeError, ShapeError
from mamlnp.op import registry
from mamlnp.ops.linear import resolve_padding

INF, NAN = math.inf, math.nan


def close(a, b, rtol=1e-12):
    np.testing.assert_allclose(np.asarray(a), b, rtol=rtol, atol=1e-12)


def exactly(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def derivatives(f, x, order=3):
    """f and its derivatives by one number, one after another."""
    x, out = ml.array(x), []
    for _ in range(order + 1):
        out.append(f(x).item())
        f = ml.grad(f)
    return out


# ---- elementwise, against NumPy

X = np.array([[-2.0, -0.5, 0.0], [0.3, 1.0, 4.0]])
ABOVE_ZERO = np.abs(X) + 0.1


FUNCTIONS = ["abs", "exp", "expm1", "sin", "cos", "tanh", "sign", "isfinite", "square"]
COMPARISONS = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_any_number_are_numpys(name):
    for x in (X, X.astype(np.float32), X[0, 0], np.zeros((0, 2))):
        out = getattr(ml, name)(x)
        exactly(out, getattr(np, name)(x))


@pytest.mark.parametrize("name", ["log", "log1p", "sqrt"])
def test_functions_of_positive_numbers_are_numpys(name):
    exactly(getattr(ml, name)(ABOVE_ZERO), getattr(np, name)(ABOVE_ZERO))


def test_functions_that_numpy_lacks():
    close(ml.sigmoid(X), 1 / (1 + np.exp(-X)))
    close(ml.softplus(X), np.log(1 + np.exp(X)))
    exactly(ml.relu(X), np.where(X > 0, X, 0))
    exactly(ml.one_hot([[2, 0]], num_classes=3), [[[0, 0, 1], [1, 0, 0]]])
    exactly(ml.one_hot(1, num_classes=2, dtype=np.float32), np.array([0, 1], np.float32))


@pytest.mark.parametrize(
    "ours, numpys",
    [
        ("add", "add"),
        ("sub", "subtract"),
        ("mul", "multiply"),
        ("div", "divide"),
        ("maximum", "maximum"),
        ("minimum", "minimum"),
        ("power", "power"),
        *((name, name) for name in COMPARISONS),
    ],
)
def test_functions_of_two_numbers_are_numpys(ours, numpys):
    a, b = ABOVE_ZERO, np.array([[0.1], [4.1]])
    for x, y in ((a, b), (b, a), (a, 2.0), (0.5, b), (a[0, 0], b)):
        exactly(getattr(ml, ours)(x, y), getattr(np, numpys)(x, y))


def test_unsigned_integers_have_a_smallest():
    x = np.array([[0, 5], [7, 3]], np.uint8)
    exactly(x.min(), 0)
    exactly(ml.min(x, axis=1), [0, 3])
    exactly(ml.minimum(x, np.uint8(4)), np.minimum(x, 4))
    exactly(ml.clip(x, 1, 6), np.clip(x, 1, 6))
    close(ml.sigmoid(x), 1 / (1 + np.exp(-x.astype(float))))


# ---- at the edges


@pytest.mark.parametrize("f", [ml.relu, ml.abs], ids=["relu", "abs"])
def test_a_kink_at_zero_has_derivative_zero(f):
    assert derivatives(f, 0.0) == [0.0, 0.0, 0.0, 0.0]
    assert derivatives(f, -0.0)[1:] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("f", [ml.maximum, ml.minimum], ids=["maximum", "minimum"])
def test_a_tie_of_two_gives_each_half(f):
    a, b = ml.grad(lambda a, b: f(a, b).sum(), (0, 1))(np.array([1.0, 2.0, 3.0]), np.full(3, 2.0))
    larger = [0.0, 0.5, 1.0] if f is ml.maximum else [1.0, 0.5, 0.0]
    exactly(a, larger)
    exactly(b, larger[::-1])
    exactly(ml.grad(lambda x: f(x, 2.0))(2.0), 0.5)
    exactly(ml.grad(lambda x: f(2.0, x))(2.0), 0.5)


@pytest.mark.parametrize("f, top", [(ml.max, 3.0), (ml.min, -3.0)], ids=["max", "min"])
def test_ties_of_many_share_equally(f, top):
    x = np.array([[top, 0.0, top], [top, top, top], [0.0, 1.0, top]])
    rows = ml.grad(lambda x: f(x, axis=1).sum())(x)
    exactly(rows, [[0.5, 0.0, 0.5], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 1.0]])
    exactly(ml.grad(f)(x), (x == top) / 6)
    exactly(ml.grad(lambda x: f(x, axis=(0, -1), keepdims=True).sum())(x), (x == top) / 6)


def test_clip_passes_half_at_its_bounds():
    x = np.array([-2.0, -1.0, 0.5, 1.0, 2.0])
    exactly(ml.clip(x, -1, 1), np.clip(x, -1, 1))
    exactly(ml.grad(lambda x: x.clip(-1, 1).sum())(x), [0.0, 0.5, 1.0, 0.5, 0.0])


def test_max_pool_gives_all_to_the_first_of_equal_ones():
    x = np.zeros((1, 4, 2, 1))
    x[0, :, :, 0] = [[1, 2], [2, 2], [5, 5], [5, 5]]
    out, pullback = ml.vjp(ml.max_pool2d, x)
    exactly(out.ravel(), [2, 5])
    exactly(pullback([[[[7.0]], [[9.0]]]])[0][0, :, :, 0], [[0, 7], [0, 0], [9, 0], [0, 0]])


def test_the_norm_of_zero_has_zero_derivatives_of_every_order():
    assert derivatives(ml.norm, 0.0) == [0.0, 0.0, 0.0, 0.0]
    zero = np.zeros(2)
    exactly(ml.grad(ml.norm)(zero), zero)
    exactly(ml.hessian(ml.norm)(zero), np.zeros((2, 2)))
    exactly(ml.jacobian(ml.hessian(ml.norm))(zero), np.zeros((2, 2, 2)))
    x = np.array([[0.0, 0.0], [3.0, 4.0]])
    exactly(ml.norm(x, axis=-1), [0, 5])
    close(ml.grad(lambda x: ml.norm(x, axis=-1).sum())(x), [[0, 0], [0.6, 0.8]])


def test_the_branch_not_taken_gets_exactly_zero():
    condition = np.array([True, False])
    _, pullback = ml.vjp(lambda a, b: ml.where(condition, a, b), np.ones(2), np.ones(2))
    a, b = pullback(np.array([NAN, INF]))
    exactly(a, [NAN, 0.0])
    exactly(b, [0.0, INF])


def test_a_choice_guarded_twice_is_finite_at_every_order():
    def f(x):
        return ml.where(ml.equal(x, 0), 0.0, ml.log(ml.where(ml.equal(x, 0), 1.0, x)))

    assert derivatives(f, 0.0) == [0.0, 0.0, 0.0, 0.0]
    close(derivatives(f, 2.0), [math.log(2), 1 / 2, -1 / 4, 1 / 4])


@pytest.mark.parametrize("x", [-2.0, 0.0, 3.0])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_whole_exponents_use_no_logarithm(x, n):
    expected = [math.perm(n, k) * x ** max(n - k, 0) for k in range(5)]
    close(derivatives(lambda x: x**n, x, 4), expected)
    close(derivatives(lambda x: x ** float(n), x, 4), expected)


def test_negative_and_broken_exponents():
    close(derivatives(lambda x: x**-1, -2.0), [-1 / 2, -1 / 4, -1 / 4, -3 / 8])
    close(derivatives(lambda x: x**0.5, 4.0), [2, 1 / 4, -1 / 32, 3 / 256])


def test_powers_of_zero():
    for b, slope in ((0.0, 0.0), (1.0, 1.0), (2.0, 0.0)):
        da, db = ml.grad(ml.power, (0, 1))(0.0, b)
        exactly(da, slope)
        exactly(db, 0.0)
    assert derivatives(lambda b: ml.power(0.0, b), 2.0) == [0.0, 0.0, 0.0, 0.0]
    exactly(ml.hessian(lambda p: p[0] ** p[1])(np.array([0.0, 2.0])), [[2, 0], [0, 0]])


def test_a_power_of_exponent_0_or_1_still_depends_on_it():
    close(ml.hessian(lambda p: p[0] ** p[1])(np.array([2.0, 0.0]))[0], [0, 0.5])
    third = ml.hessian(lambda b: ml.grad(lambda a: a**b)(2.0))
    close(third(1.0), math.log(2) * (2 + math.log(2)))


def test_powers_of_negative_numbers_are_constant_in_the_exponent():
    da, db = ml.grad(ml.power, (0, 1))(-2.0, 3.0)
    exactly(da, 12.0)
    exactly(db, 0.0)


@pytest.mark.parametrize("base", [2.0, 2, np.float32(2), np.array([2, 3, 4])], ids=repr)
def test_the_exponent_keeps_its_type(base):
    x = np.array([0.5, 1.0, 2.0], np.float32)
    gradient = ml.grad(lambda x: (base**x).sum())(ml.array(x))
    assert gradient.dtype == np.float32
    close(gradient, np.log(base) * base**x, rtol=1e-6)


def test_the_derivative_of_the_root_of_zero_is_infinite():
    with np.errstate(divide="ignore"):
        assert ml.grad(ml.sqrt)(0.0).item() == INF


def test_nan_goes_through():
    x = np.array([NAN, 1.0])
    for out in (ml.relu(x), ml.maximum(x, 0.0), ml.minimum(0.0, x), ml.abs(x), ml.sigmoid(x)):
        assert np.isnan(out.numpy()).tolist() == [True, False]
    for f in (ml.max, ml.min, ml.sum, ml.mean, ml.var, ml.norm):
        assert math.isnan(f(x).item())


def once_eager_once_compiled(f):
    return pytest.mark.parametrize("way", [lambda f: f, ml.compile], ids=["eager", "compiled"])(f)


@once_eager_once_compiled
def test_nan_has_a_gradient_as_well(way):
    """As in PyTorch: 1 where the NaN is, or NaN, and never 0 as if there were nothing to learn."""
    x = np.array([1.0, NAN, 2.0, NAN])

    def slope(f):
        return way(ml.grad(lambda x: f(x).sum()))(x).numpy()

    for f in (ml.max, ml.min):
        exactly(slope(f), [0, 0.5, 0, 0.5])
    exactly(slope(lambda x: ml.max(x.reshape((2, 2)), 1)), [0, 1, 0, 1])
    for f in (ml.relu, lambda x: ml.maximum(x, 0.0), lambda x: ml.maximum(0.0, x)):
        exactly(slope(f), [1, 1, 1, 1])
    exactly(slope(lambda x: ml.minimum(x, 1.5)), [1, 1, 0, 1])
    exactly(slope(lambda x: ml.clip(x, 0.0, 1.5)), [1, 1, 0, 1])
    for f in (ml.abs, lambda x: x * ml.sign(x), ml.norm, ml.logsumexp):
        assert np.isnan(slope(f)[[1, 3]]).all() or f is ml.logsumexp
    assert slope(ml.logsumexp).any()
    image = np.array([[[1.0], [NAN]], [[2.0], [0.0]]])
    pooled = way(ml.value_and_grad(lambda x: ml.max_pool2d(x).sum()))(image)
    assert np.isnan(pooled[0].numpy())
    exactly(pooled[1], [[[0], [1]], [[0], [0]]])


@once_eager_once_compiled
@pytest.mark.parametrize(
    "dtype, scale", [(float, 1e200), (float, 1e-200), (np.float32, 1e20), (np.float32, 1e-20)]
)
def test_the_squares_in_a_norm_may_leave_the_range(dtype, scale, way):
    x = np.array([[3.0, 4.0], [-3.0, 0.0]], dtype) * dtype(scale)

    def first(x):
        return ml.grad(lambda x: ml.norm(x, axis=-1).sum())(x)

    def second(x):
        return ml.hvp(lambda x: ml.norm(x, axis=-1).sum(), x, x[:, ::-1])

    close(way(lambda x: ml.norm(x, axis=-1))(x) / scale, [5, 3], 1e-6)
    close(way(first)(x), [[0.6, 0.8], [-1, 0]], 1e-6)
    # (v - u <u, v>) / |x| for the direction u of x
    np.testing.assert_allclose(way(second)(x), [[0.224, -0.168], [0, -1]], atol=1e-6)


def test_infinity_and_nan_in_a_norm_are_numpys():
    for x in ([INF, 1.0], [-INF, INF], [NAN, 1.0], [NAN, INF], [0.0, 0.0]):
        exactly(ml.norm(np.array(x)), np.linalg.norm(x))
    assert ml.norm(np.zeros(0)).item() == 0


def test_small_losses_and_their_slopes_are_not_lost_beside_large_logits():
    for dtype in (np.float32, np.float64):
        x = np.array([0.0, -60.0], dtype)
        close(ml.log_softmax(x)[0], -math.exp(-60), 1e-5)
        close(ml.grad(lambda x: ml.log_softmax(x)[0])(x), np.exp([-60, -60]) * [1, -1], 1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_arguments_do_not_overflow(dtype):
    x = np.array([-1000, 0, 1000], dtype)
    for f, value, slope in (
        (ml.sigmoid, [0, 0.5, 1], [0, 0.25, 0]),
        (ml.softplus, [0, math.log(2), 1000], [0, 0.5, 1]),
        (ml.tanh, [-1, 0, 1], [0, 1, 0]),
    ):
        close(f(x), value, rtol=1e-6)
        close(ml.grad(lambda x, f=f: f(x).sum())(x), slope, rtol=1e-6)
        assert np.isfinite(ml.hvp(lambda x, f=f: f(x).sum(), x, x).numpy()).all()
    for shift in (0, 1000):
        close(ml.softmax(x + shift), [0, 0, 1])
        close(ml.log_softmax(x + shift), [-2000, -1000, 0])
        close(ml.logsumexp(x + shift), 1000 + shift)
        close(ml.grad(ml.logsumexp)(x + shift), [0, 0, 1])


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=4), elements=st.integers(0, 2)), st.data())
def test_the_first_of_the_largest_is_one_and_the_first(x, data):
    axes = data.draw(st.lists(st.integers(0, x.ndim - 1), unique=True).map(tuple))
    found = ~registry["is_not_first_largest"].apply((x,), {"axis": axes}).numpy()
    for kept in np.ndindex(*(1 if i in axes else side for i, side in enumerate(x.shape))):
        line = [slice(None) if i in axes else slice(k, k + 1) for i, k in enumerate(kept)]
        part = x[tuple(line)].transpose([*(set(range(x.ndim)) - set(axes)), *axes]).ravel()
        chosen = found[tuple(line)].transpose([*(set(range(x.ndim)) - set(axes)), *axes]).ravel()
        assert np.flatnonzero(chosen).tolist() == [part.argmax()]


def test_minus_infinity_counts_nothing_in_a_softmax():
    x = np.array([-INF, 0.0, 0.0])
    close(ml.logsumexp(x), math.log(2))
    close(ml.softmax(x), [0, 0.5, 0.5])
    close(ml.log_softmax(x), [-INF, -math.log(2), -math.log(2)])
    close(ml.grad(ml.logsumexp)(x), [0, 0.5, 0.5])
    close(ml.hessian(ml.logsumexp)(x), [[0, 0, 0], [0, 0.25, -0.25], [0, -0.25, 0.25]])


@np.errstate(invalid="ignore")  # infinity less infinity, as NumPy has it
def test_infinities_in_a_sum_of_exponentials():
    assert ml.logsumexp(np.array([INF, 0.0])).item() == INF
    assert ml.logsumexp(np.array([-INF, -INF])).item() == -INF
    assert ml.logsumexp(np.array([INF, INF])).item() == INF
    for x in map(np.array, ([INF, 0.0], [-INF, -INF], [NAN, 0.0], [0.0, NAN])):
        for f in (ml.softmax, ml.log_softmax, ml.grad(ml.logsumexp)):
            assert np.isnan(f(x).numpy()).all()
        assert np.isnan(ml.grad(lambda x: ml.log_softmax(x)[0])(x).numpy()).all()
    close(ml.logsumexp(np.array([[-INF, 1.0], [2.0, -INF]]), axis=1), [1, 2])


@pytest.mark.parametrize("shape, axis", [((0,), None), ((0, 3), 0), ((3, 0), -1), ((3, 0), 0)])
def test_empty_reductions_are_numpys(shape, axis):
    x = np.zeros(shape)
    exactly(ml.sum(x, axis), x.sum(axis))
    assert ml.grad(lambda x: ml.sum(x, axis).sum())(x).shape == shape
    with np.errstate(invalid="ignore"):  # 0 / 0
        exactly(ml.mean(x, axis), np.full(x.sum(axis).shape, NAN))
    for name in ("max", "min", "argmax", "argmin"):
        if x.sum(axis).size:
            with pytest.raises(ShapeError, match=f"^{name}: x float64.*"):
                getattr(ml, name)(x, axis)
        else:
            exactly(getattr(ml, name)(x, axis), getattr(np, name)(x, axis))


def test_products_of_nothing_are_zero():
    a, b = np.zeros((2, 0)), np.zeros((0, 3))
    exactly(ml.matmul(a, b), np.zeros((2, 3)))
    exactly(ml.einsum("ij,jk->ik", a, b), np.zeros((2, 3)))
    da, db = ml.grad(lambda a, b: ml.matmul(a, b).sum(), (0, 1))(a, b)
    assert (da.shape, db.shape) == (a.shape, b.shape)
    assert ml.matmul(np.zeros((2, 0, 4)), np.zeros((4, 3))).shape == (2, 0, 3)


# ---- reductions, against NumPy


@st.composite
def reductions(draw):
    d = HypothesisDraw(draw(st.data()), draw(st.sampled_from([np.float32, np.float64])))
    shape = d.shape()
    return d.array(shape), {"axis": d.axes(len(shape)), "keepdims": d.boolean()}


@given(reductions())
def test_reductions_are_numpys(case):
    x, kwargs = case
    rtol = 1e-5 if x.dtype == np.float32 else 1e-12
    for name in ("sum", "mean", "max", "min", "var"):
        expected = getattr(np, name)(x, **kwargs)
        for out in (getattr(ml, name)(x, **kwargs), getattr(ml.array(x), name)(**kwargs)):
            assert out.dtype == x.dtype
            np.testing.assert_allclose(out, expected, rtol=rtol, atol=rtol)
    close(ml.norm(x, **kwargs), np.sqrt((x * x).sum(**kwargs)), rtol)
    close(ml.logsumexp(x, **kwargs), np.log(np.exp(x).sum(**kwargs)), rtol * 10)
    exponentials = np.exp(x)
    softmax = exponentials / exponentials.sum(kwargs["axis"], keepdims=True)
    close(ml.softmax(x, kwargs["axis"]), softmax, rtol * 10)
    np.testing.assert_allclose(ml.log_softmax(x, kwargs["axis"]), np.log(softmax), atol=rtol * 10)


@given(reductions())
def test_reductions_differentiate(case):
    x, kwargs = case
    for f in (ml.mean, ml.var, ml.min, ml.logsumexp, ml.norm):
        ml.check_grads(lambda x, f=f: f(x, **kwargs), [x])
    for f in (ml.softmax, ml.log_softmax):
        ml.check_grads(lambda x, f=f: f(x, kwargs["axis"]), [x])


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=3), elements=st.integers(-2, 2)), st.data())
def test_argmax_takes_the_first(x, data):
    axis = data.draw(st.one_of(st.none(), st.integers(-x.ndim, x.ndim - 1)))
    exactly(ml.argmax(x, axis), np.argmax(x, axis))
    exactly(ml.argmin(x, axis), np.argmin(x, axis))
    exactly(ml.array(x).argmax(axis=axis), np.argmax(x, axis))


# ---- shapes, against NumPy

CUBE = np.arange(24.0).reshape(2, 3, 4)
MOVES = {
    "reshape": (lambda m, x: m.reshape(x, (4, -1)), (lambda x: x.reshape(4, -1))),
    "transpose": (lambda m, x: m.transpose(x), lambda x: x.T),
    "transpose axes": (lambda m, x: m.transpose(x, (1, -1, 0)), lambda x: x.transpose(1, -1, 0)),
    "transpose named": (lambda m, x: m.transpose(x, axes=(2, 0, 1)), None),
    "swapaxes": (lambda m, x: m.swapaxes(x, 0, -1), lambda x: x.swapaxes(0, -1)),
    "moveaxis": (lambda m, x: m.moveaxis(x, 0, -1), None),
    "moveaxis back": (lambda m, x: m.moveaxis(x, -1, 1), None),
    "expand_dims": (lambda m, x: m.expand_dims(x, -1), None),
    "expand_dims many": (lambda m, x: m.expand_dims(x, (0, -2)), None),
    "squeeze": (lambda m, x: m.squeeze(x[:1, :, :1]), lambda x: x[:1, :, :1].squeeze()),
    "squeeze one": (lambda m, x: m.squeeze(x[:1, :, :1], 0), None),
    "squeeze some": (lambda m, x: m.squeeze(x[:1, :, :1], (0, -1)), None),
    "ravel": (lambda m, x: m.ravel(x), lambda x: x.ravel()),
    "broadcast_to": (lambda m, x: m.broadcast_to(x[:1], (5, 2, 3, 4)), None),
    "flip": (lambda m, x: m.flip(x), None),
    "flip one": (lambda m, x: m.flip(x, -2), None),
    "flip some": (lambda m, x: m.flip(x, (0, 2)), None),
    "pad": (lambda m, x: m.pad(x, 1), None),
    "pad each": (lambda m, x: m.pad(x, ((0, 1), (2, 0), (0, 0))), None),
    "pad before and after": (lambda m, x: m.pad(x, (1, 2)), None),
    "concatenate": (lambda m, x: m.concatenate([x, x[:, :1], x * 2], axis=-2), None),
    "concatenate one": (lambda m, x: m.concatenate([x]), None),
    "stack": (lambda m, x: m.stack([x, x * 2], axis=-1), None),
    "stack first": (lambda m, x: m.stack([x, x * 2]), None),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_are_numpys(name):
    ours, method = MOVES[name]
    exactly(ours(ml, ml.array(CUBE)), ours(np, CUBE))
    if method is not None:
        exactly(method(ml.array(CUBE)), method(CUBE))
    ml.check_grads(lambda x: ours(ml, x), [CUBE])


def test_methods_take_sides_and_axes_as_numpys_do():
    x = ml.array(CUBE)
    for shape in ((6, 4), [6, 4], (-1,), -1, np.int64(-1)):
        exactly(x.reshape(shape), CUBE.reshape(shape))
    exactly(x[0, 0, :1].reshape(()), 0.0)
    exactly(x.reshape(6, -1), CUBE.reshape(6, -1))
    exactly(x.transpose(1, 0, 2), CUBE.transpose(1, 0, 2))
    exactly(x.transpose(None), CUBE.T)
    exactly(ml.reshape(2.0, (1, 1)), [[2.0]])
    exactly(x.sum(axis=np.int64(1)), CUBE.sum(axis=1))
    exactly(x.swapaxes(0, 2), CUBE.swapaxes(0, 2))
    exactly(x.reshape(4, 6, order="F"), CUBE.reshape(4, 6, order="F"))


@given(st.data())
def test_sum_to_undoes_broadcast_to(data):
    d = HypothesisDraw(data)
    large = d.shape()
    small = d.broadcastable(large)
    x = d.array(small)
    repeats = math.prod(large) // max(1, math.prod(small))
    close(ml.sum_to(ml.broadcast_to(x, large), small), x * repeats)


# ---- choosing elements, against NumPy

GRID = np.arange(60.0).reshape(3, 4, 5)
INDICES = [
    1,
    -1,
    np.int64(2),
    slice(None),
    slice(None, None, -2),
    (slice(1, None), slice(None, -1), 2),
    (..., 0),
    (0, ..., slice(1, 4, 2)),
    None,
    (slice(None), None, 1, ..., None),
    (2, 3, 4),
    (),
    [],
    [0, 0, 2],
    np.array([[0, 2], [1, -1]]),
    ([0, 1], [3, -1]),
    (slice(None), [1, 1]),
    ([0, 2], slice(1, 3), [0, 4]),
    (0, [1, 2], slice(None)),
    (None, [1, 2], ..., [0, 0]),
    (np.array([[0], [2]]), [1, 3]),
    GRID > 30,
    GRID[..., 0] % 2 == 0,
    np.array([True, False, True]),
    (slice(None), np.array([True, False, False, True]), 2),
    ([0, 2], np.array([True, False, False, True])),
    np.zeros((3, 4), bool),
    True,
    False,
    np.array(True),
    np.array([0, 1], np.uint8),
]


def assert_indexing_is_numpys(x, index):
    out, pullback = ml.vjp(lambda x: x[index], x)
    exactly(out, x[index])
    ct = np.random.default_rng(0).standard_normal(out.shape)
    expected = np.zeros_like(x)
    np.add.at(expected, index, ct)
    close(pullback(ct)[0], expected)


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_is_numpys(index):
    assert_indexing_is_numpys(GRID, index)
    if isinstance(index, np.ndarray):
        exactly(ml.array(GRID)[ml.array(index)], GRID[index])


@pytest.mark.parametrize("index", [1, (slice(None), [1, 1]), GRID > 30], ids=str)
def test_indexing_differentiates_to_order_3(index):
    ml.check_grads(lambda x: np.sin(x[index]) * x[index], [GRID / 60], order=3)


SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)


@given(
    SHAPES.flatmap(
        lambda shape: st.tuples(st.just(shape), hnp.basic_indices(shape, allow_newaxis=True))
    )
)
def test_basic_indices_are_numpys(case):
    shape, index = case
    assert_indexing_is_numpys(np.arange(float(math.prod(shape))).reshape(shape), index)


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), hnp.integer_array_indices(shape))))
def test_integer_indices_are_numpys(case):
    shape, index = case
    assert_indexing_is_numpys(np.arange(float(math.prod(shape))).reshape(shape), index)


@given(SHAPES, st.data())
def test_mixed_indices_are_numpys(shape, data):
    count = data.draw(st.integers(1, 3))
    index = []
    for side in shape:
        numbers = st.integers(-side, side - 1)
        exactly_count_true = st.permutations([True] * min(count, side) + [False] * (side - count))
        index.append(
            data.draw(
                st.one_of(
                    numbers,
                    st.slices(side),
                    st.lists(numbers, min_size=count, max_size=count),
                    *([exactly_count_true.map(np.array)] if count <= side else []),
                )
            )
        )
    index.insert(data.draw(st.integers(0, len(index))), data.draw(st.sampled_from([..., None])))
    assert_indexing_is_numpys(np.arange(float(math.prod(shape))).reshape(shape), tuple(index))


@given(st.data())
def test_take_and_put_are_each_others_transpose(data):
    d = HypothesisDraw(data)
    shape = d.shape(1)
    axis = d.choice([None, d.axis(len(shape))])
    side = math.prod(shape) if axis is None else shape[axis]
    x, indices = d.array(shape), d.integers(d.shape(), -side, side - 1)
    exactly(ml.take(x, indices, axis), np.take(x, indices, axis))
    exactly(np.take(ml.array(x), indices, axis=axis), np.take(x, indices, axis))
    flat = d.integers(d.shape(), -x.size, x.size - 1)
    values = d.array(flat.shape)
    expected = np.zeros(x.size)
    np.add.at(expected, flat, values)
    close(ml.put(values, flat, shape), expected.reshape(shape))


@given(st.data())
def test_take_along_axis_is_numpys(data):
    d = HypothesisDraw(data)
    shape = d.shape(1)
    axis = d.axis(len(shape))
    sides = list(shape)
    sides[axis] = d.integer(1, 3)
    x, indices = d.array(shape), d.integers(tuple(sides), -shape[axis], shape[axis] - 1)
    exactly(ml.take_along_axis(x, indices, axis), np.take_along_axis(x, indices, axis))
    ml.check_grads(lambda x: ml.take_along_axis(x, indices, axis), [x])


# ---- products, against NumPy


@given(st.data())
def test_matmul_is_numpys(data):
    d = HypothesisDraw(data, data.draw(st.sampled_from([np.float32, np.float64])))
    lead = d.shape(max_ndim=2)
    n, k, m = (d.integer(1, 3) for _ in range(3))
    left = d.choice([(k,), (*lead, n, k), (*d.broadcastable(lead), n, k)])
    right = d.choice([(k,), (*lead, k, m), (k, m)])
    a, b = d.array(left), d.array(right)
    np.testing.assert_allclose(ml.matmul(a, b), a @ b, rtol=1e-5, atol=1e-5)
    assert ml.matmul(a, b).shape == (a @ b).shape
    ml.check_grads(ml.matmul, [a, b])


@st.composite
def einsums(draw):
    d = HypothesisDraw(draw(st.data()))
    sides = {name: d.integer(0, 3) for name in "abcd"}
    terms = [
        "".join(draw(st.permutations("abcd"))[: d.integer(0, 3)]) for _ in range(d.integer(1, 3))
    ]
    used = sorted(set("".join(terms)))
    output = "".join(draw(st.permutations(used))[: d.integer(0, len(used))])
    arrays = [d.array(tuple(sides[name] for name in term)) for term in terms]
    return f"{','.join(terms)}->{output}", arrays


@given(einsums())
@example(("ij,jk,kl->il", [np.ones((2, 3)), np.ones((3, 1)), np.ones((1, 2))]))
@example((" a b , b -> a ", [np.ones((2, 3)), np.ones(3)]))
@example(("ab,ab,ab->", [np.full((2, 3), 2.0)] * 3))
def test_einsum_is_numpys(case):
    subscripts, arrays = case
    out = ml.einsum(subscripts, *arrays)
    close(out, np.einsum(subscripts, *arrays))
    close(np.einsum(subscripts, *map(ml.array, arrays)), out.numpy())
    if all(x.size for x in arrays):
        ml.check_grads(lambda *xs: ml.einsum(subscripts, *xs), arrays)


@pytest.mark.parametrize(
    "subscripts, shapes, problem",
    [
        ("ij->ij", [(2, 3), (3, 2)], "names 1 operands but there are 2"),
        ("ij->ii", [(2, 2)], "repeats an index"),
        ("...i->i", [(2, 2)], "for axes that the result leaves out"),
        ("i1->i", [(2, 2)], "no letter"),
        ("ij->ik", [(2, 2)], "has an index in the result that no operand has"),
        ("ijk->i", [(2, 2)], r"gives 3 indices to an operand of shape \(2, 2\)"),
        ("ij,jk->ik", [(2, 3), (4, 2)], "uses j for sides of length 3 and 4"),
    ],
)
def test_einsum_says_what_is_wrong(subscripts, shapes, problem):
    with pytest.raises(ShapeError, match=f'^einsum: "{re.escape(subscripts)}" .*{problem}'):
        ml.einsum(subscripts, *map(np.zeros, shapes))


# ---- convolution and pooling, against loops


def tensorflows_same(side, k, stride):
    """(before, after) as TensorFlow's documentation puts it."""
    total = max(k - stride, 0) if side % stride == 0 else max(k - side % stride, 0)
    return total // 2, total - total // 2


def padded_images(x, k, stride, padding):
    if padding == "SAME":
        pads = [
            tensorflows_same(side, *both)
            for side, both in zip(x.shape[1:3], ((k[0], stride), (k[1], stride)), strict=True)
        ]
    elif padding == "VALID":
        pads = [(0, 0), (0, 0)]
    else:
        pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    return np.pad(x, [(0, 0), *pads, (0, 0)])


def windows(x, k, stride):
    """Every window of (N, H, W, C) images, with its place in the result."""
    for i in range((x.shape[1] - k[0]) // stride + 1):
        for j in range((x.shape[2] - k[1]) // stride + 1):
            rows, columns = i * stride, j * stride
            yield i, j, x[:, rows : rows + k[0], columns : columns + k[1]]


def in_loops(x, k, stride, of_window):
    places = {(i, j): of_window(window) for i, j, window in windows(x, k, stride)}
    height, width = (max(indices) + 1 for indices in zip(*places, strict=True))
    rows = [np.stack([places[i, j] for j in range(width)], axis=1) for i in range(height)]
    return np.stack(rows, axis=1)


def conv_loops(x, w, stride, padding):
    x = padded_images(x, w.shape[:2], stride, padding)

    def of_window(window):
        return np.array(
            [[(image * w[..., f]).sum() for f in range(w.shape[-1])] for image in window]
        )

    return in_loops(x, w.shape[:2], stride, of_window)


@st.composite
def convolutions(draw):
    d = HypothesisDraw(draw(st.data()))
    k, stride = (d.integer(1, 4), d.integer(1, 4)), d.integer(1, 3)
    padding = d.choice(["SAME", "VALID", 0, 1, 2, ((0, 1), (2, 0))])
    tasks, n, c, f = d.integer(1, 2), d.integer(1, 2), d.integer(1, 2), d.integer(1, 2)
    sides = (k[0] + d.integer(0, 3), k[1] + d.integer(0, 3))
    if padding == "SAME":
        sides = (d.integer(1, 6), d.integer(1, 6))
    x = d.array((*d.choice([(), (tasks,)]), n, *sides, c))
    w = d.array((*d.choice([(), (tasks,)]), *k, c, f))
    return x, w, stride, padding


@given(convolutions())
def test_conv2d_is_a_loop(case):
    x, w, stride, padding = case
    out = ml.conv2d(x, w, stride, padding)
    if x.ndim == w.ndim == 4:
        close(out, conv_loops(x, w, stride, padding))
    else:
        tasks = len(x) if x.ndim == 5 else len(w)
        xs, ws = (x if x.ndim == 5 else [x] * tasks), (w if w.ndim == 5 else [w] * tasks)
        close(out, [conv_loops(*both, stride, padding) for both in zip(xs, ws, strict=True)])
    if padding == "SAME":
        assert out.shape[-3:-1] == tuple(-(-side // stride) for side in x.shape[-3:-1])


def conv_by_definition(x, w, strides, pads, dilations):
    """out[n, i, j, f] = sum of x[n, i s + a d - p, j s' + b d' - p', c] w[a, b, c, f]."""
    (n, height, width, _), (kh, kw, _, filters) = x.shape, w.shape
    (s, t), ((top, bottom), (left, right)), (d, e) = strides, pads, dilations
    rows = (height + top + bottom - (kh - 1) * d - 1) // s + 1
    columns = (width + left + right - (kw - 1) * e - 1) // t + 1
    out = np.zeros((n, rows, columns, filters))
    for i, j, a, b in itertools.product(*map(range, (rows, columns, kh, kw))):
        row, column = i * s + a * d - top, j * t + b * e - left
        if 0 <= row < height and 0 <= column < width:
            out[:, i, j] += x[:, row, column] @ w[a, b]
    return out


@given(st.data())
def test_conv2d_has_a_stride_and_a_dilation_for_each_side(data):
    d = HypothesisDraw(data)
    k, strides, dilations = ((d.integer(1, 3), d.integer(1, 3)) for _ in range(3))
    spans = [(side - 1) * step + 1 for side, step in zip(k, dilations, strict=True)]
    sides = [span + d.integer(0, 3) for span in spans]
    padding = d.choice(["SAME", "VALID", 1, ((0, 1), (2, 0))])
    pads = {"VALID": ((0, 0), (0, 0)), 1: ((1, 1), (1, 1))}.get(padding, padding)
    if padding == "SAME":
        pads = tuple(map(tensorflows_same, sides, spans, strides))
    x, w = d.array((2, *sides, 2)), d.array((*k, 2, 3))
    stride = strides[0] if strides[0] == strides[1] else strides
    dilation = dilations[0] if dilations[0] == dilations[1] else dilations
    out = ml.conv2d(x, w, stride, padding, dilation)
    close(out, conv_by_definition(x, w, strides, pads, dilations))
    tasks = ml.conv2d(np.stack([x, -x]), np.stack([w, 2 * w]), stride, padding, dilation)
    close(tasks, np.stack([out.numpy(), -2 * out.numpy()]))


@pytest.mark.parametrize("stride, dilation", [((1, 2), 1), ((2, 1), 2), (1, (2, 1)), (2, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_conv2d_with_strides_and_dilations_differentiates_to_order_3(stride, dilation, padding):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 6, 5, 2)), rng.standard_normal((3, 2, 2, 1))

    def f(x, w):
        return ml.conv2d(x, w, stride, padding, dilation)

    ml.check_grads(f, [x, w], order=3)
    both = ml.value_and_grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1))
    for a, b in zip(
        ml.tree.leaves(ml.compile(both)(x, w)), ml.tree.leaves(both(x, w)), strict=True
    ):
        close(a, b.numpy())


@pytest.mark.parametrize("tasks", ["", "x", "w", "xw"])
@pytest.mark.parametrize("stride, padding", [(1, "SAME"), (2, "SAME"), (2, "VALID"), (3, 1)])
def test_conv2d_differentiates_to_order_3(tasks, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*([2] if "x" in tasks else []), 2, 5, 4, 2))
    w = rng.standard_normal((*([2] if "w" in tasks else []), 3, 2, 2, 1))
    f = ml.conv2d
    ml.check_grads(lambda x, w: f(x, w, stride=stride, padding=padding), [x, w], order=3)


def test_same_padding_puts_the_odd_pixel_at_the_end():
    x = np.arange(16.0).reshape(1, 4, 4, 1)
    w = np.zeros((3, 3, 1, 1))
    w[0, 0] = 1  # the first pixel of each window
    exactly(ml.conv2d(x, w, stride=2)[0, :, :, 0], [[0, 2], [8, 10]])
    # PyTorch's padding=1 puts a pixel on each side, and so sees others.
    exactly(ml.conv2d(x, w, stride=2, padding=1)[0, :, :, 0], [[0, 0], [0, 5]])
    assert resolve_padding("SAME", (4, 5), (3, 3), 2) == ((0, 1), (1, 1))
    assert resolve_padding("SAME", (4, 4), (1, 1), 3) == ((0, 0), (0, 0))
    assert resolve_padding("SAME", (7, 7), (2, 4), 1) == ((0, 1), (1, 2))


def test_conv2d_correlates_and_does_not_flip():
    x, w = np.zeros((1, 3, 3, 1)), np.arange(9.0).reshape(3, 3, 1, 1)
    x[0, 0, 0] = 1
    exactly(ml.conv2d(x, w)[0, :2, :2, 0], [[4, 3], [1, 0]])


@pytest.mark.parametrize(
    "x, w", [((0, 4, 4, 1), (3, 3, 1, 2)), ((2, 4, 4, 0), (3, 3, 0, 2)), ((2, 0, 4, 4, 1),) * 2]
)
def test_conv2d_of_nothing(x, w):
    w = (2, 3, 3, 1, 2) if w == x else w
    out, pullback = ml.vjp(ml.conv2d, np.zeros(x), np.zeros(w))
    exactly(out, np.zeros((*x[:-1], 2)))
    dx, dw = pullback(out)
    assert (dx.shape, dw.shape) == (x, w)


@pytest.mark.parametrize(
    "x, w, kwargs, line",
    [
        (
            (2, 8, 8, 3),
            (3, 3, 4, 5),
            {},
            "w expects 4 input channels but x has 3 "
            r"\(x float64\[2,8,8,3\], w float64\[3,3,4,5\]\). Channels are the last axis of x.",
        ),
        ((8, 8, 3), (3, 3, 3, 5), {}, r"x float64\[8,8,3\] and w .* need 4 axes, or 5"),
        ((2, 8, 8, 3), (3, 3, 3), {}, r".* and w float64\[3,3,3\] need 4 axes"),
        ((4, 2, 8, 8, 3), (3, 3, 3, 3, 5), {}, "x has 4 tasks but w 3"),
        ((1, 4, 4, 1), (5, 5, 1, 1), {"padding": "VALID"}, "the window 5x5 is larger than the pad"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"padding": "same"}, "padding 'same' is not known"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"padding": -1}, "padding .*-1.* is not known"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"padding": (1, 1)}, r"padding \(1, 1\) is not known"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"stride": 0}, "stride 0 is no number of pixels"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"stride": (2, 0)}, r"stride \(2, 0\) is no number"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"stride": (1, 1, 1)}, r"stride \(1, 1, 1\) is no number"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"dilation": 0}, "dilation 0 is no number of pixels"),
        (
            (1, 4, 4, 1),
            (3, 3, 1, 1),
            {"dilation": 2, "padding": "VALID"},
            "the window 5x5 is larger than the padded image",
        ),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"stride": 1.0}, "stride 1.0 is no number"),
    ],
)
def test_conv2d_says_what_is_wrong(x, w, kwargs, line):
    with pytest.raises(ShapeError, match=f"^conv2d: {line}"):
        ml.conv2d(np.zeros(x), np.zeros(w), **kwargs)


@given(st.data())
def test_pools_are_loops(data):
    d = HypothesisDraw(data, data.draw(st.sampled_from([np.float32, np.float64])))
    k, stride = (d.integer(1, 3), d.integer(1, 3)), d.choice([None, 1, 2, 3])
    shape = (k[0] + d.integer(0, 3), k[1] + d.integer(0, 3), d.integer(1, 2))
    lead = d.shape(max_ndim=2)
    x = d.array((*lead, *shape))
    images = x.reshape(-1, *shape)
    for ours, numpys in ((ml.max_pool2d, np.max), (ml.avg_pool2d, np.mean)):
        out = ours(x, k, stride)
        expected = in_loops(images, k, stride or k[0], lambda w, f=numpys: f(w, axis=(1, 2)))
        np.testing.assert_allclose(out, expected.reshape(*lead, *expected.shape[1:]), rtol=1e-5)
        assert out.dtype == x.dtype


@pytest.mark.parametrize("f", [ml.max_pool2d, ml.avg_pool2d], ids=["max", "avg"])
@pytest.mark.parametrize("size, stride", [(2, None), ((3, 2), 1), (1, 2)])
def test_pools_differentiate_to_order_3(f, size, stride):
    x = np.random.default_rng(0).standard_normal((2, 1, 5, 4, 2))
    ml.check_grads(lambda x: np.sin(f(x, size, stride)), [x], order=3)


@pytest.mark.parametrize("f", [ml.max_pool2d, ml.avg_pool2d], ids=["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize(
    "shape, arguments, line",
    [
        ((1, 2, 2, 1), (3,), r"x float64\[1,2,2,1\] has no window of 3x3"),
        ((1, 4, 2, 1), ((2, 3),), r"x float64\[1,4,2,1\] has no window of 2x3"),
        ((4, 4), (2,), r"x float64\[4,4\] has no window of 2x2"),
        ((1, 4, 4, 1), (0,), r"size \(0, 0\) and stride 0 are in pixels"),
        ((1, 4, 4, 1), (2, 0), r"size \(2, 2\) and stride 0 are in pixels"),
    ],
)
def test_pools_say_what_is_wrong(f, shape, arguments, line):
    with pytest.raises(ShapeError, match=f"^{f.__name__}: {line}"):
        f(np.zeros(shape), *arguments)


# ---- errors


@pytest.mark.parametrize(
    "call, error, line",
    [
        (lambda x: x + np.ones(4), ShapeError, r"add: a float64\[2,3\], b float64\[4\] do not"),
        (lambda x: x @ x, ShapeError, r"matmul: a float64\[2,3\], b float64\[2,3\] do not fit"),
        (lambda x: x @ 2.0, ShapeError, r"matmul: a float64\[2,3\] and b float64\[\] need axes"),
        (lambda x: x.sum(axis=2), ShapeError, "sum: axis 2 does not exist in an array with 2"),
        (lambda x: x.sum(axis=(0, 0)), ShapeError, r"sum: x float64\[2,3\] with axis=\(0, 0\)"),
        (lambda x: x.mean(axis=-3), ShapeError, "mean: axis -3 does not exist"),
        (lambda x: x.argmax(axis=5), ShapeError, "argmax: axis 5 does not exist"),
        (lambda x: x.reshape(4, 2), ShapeError, r"reshape: x float64\[2,3\] with shape=\(4, 2\)"),
        (lambda x: x.transpose(0), ShapeError, r"transpose: x float64\[2,3\] with axes=\(0,\)"),
        (lambda x: x.transpose(0, 2), ShapeError, "transpose: axis 2 does not exist"),
        (lambda x: x.squeeze(0), ShapeError, r"squeeze: axis 0 of shape \(2, 3\) is not of length"),
        (lambda x: ml.swapaxes(x, 0, 2), ShapeError, "swapaxes: axis 2 does not exist"),
        (lambda x: ml.moveaxis(x, 0, 2), ShapeError, "moveaxis: axis 2 does not exist"),
        (lambda x: ml.flip(x, 3), ShapeError, "flip: axis 3 does not exist"),
        (lambda x: ml.expand_dims(x, 4), ShapeError, "expand_dims: axis 4 does not exist"),
        (lambda x: ml.expand_dims(x, (1, 1)), ShapeError, r"expand_dims: axes \(1, 1\) name a"),
        (lambda x: ml.broadcast_to(x, (2,)), ShapeError, r"broadcast_to: x float64\[2,3\] with"),
        (
            lambda x: ml.sum_to(x, (2,)),
            ShapeError,
            r"sum_to: \(2,\) does not broadcast to \(2, 3\)",
        ),
        (lambda x: ml.sum_to(x, (1, 2, 3)), ShapeError, r"sum_to: \(1, 2, 3\) does not broadcast"),
        (lambda x: ml.concatenate([]), ShapeError, "concatenate: there are no arrays"),
        (
            lambda x: ml.concatenate([x, x.T]),
            ShapeError,
            r"concatenate: arrays\[0\] float64\[2,3\],",
        ),
        (lambda x: ml.concatenate([x], 2), ShapeError, "concatenate: axis 2 does not exist"),
        (lambda x: ml.stack([x, x.T]), ShapeError, "concatenate: "),
        (lambda x: ml.pad(x, ((1, 1),)), ShapeError, r"pad: pad_width \(\(1, 1\),\) does not fit"),
        (lambda x: ml.pad(x, -1), ShapeError, "pad: pad_width .*none negative"),
        (lambda x: x[2], ShapeError, r"slices: x float64\[2,3\] with index=\(2,\) .*out of bounds"),
        (lambda x: x[0, 0, 0], ShapeError, "slices: .*too many indices"),
        (lambda x: x[[0, 2]], ShapeError, "positions: .*out of bounds"),
        (lambda x: x[np.ones(3, bool)], ShapeError, "positions: .*boolean index did not match"),
        (
            lambda x: x[np.array([0.0])],
            DtypeError,
            r"getitem: indices float64\[1\] are no integers",
        ),
        (
            lambda x: ml.take(x, [6]),
            ShapeError,
            r"take: x float64\[2,3\], indices int64\[1\] do not",
        ),
        (lambda x: ml.take(x, [0], axis=2), ShapeError, "take: axis 2 does not exist"),
        (lambda x: ml.take(x, [True]), DtypeError, r"take: indices bool\[1\] are no integers"),
        (lambda x: ml.take_along_axis(x, [[0.5]], 0), DtypeError, "take_along_axis: indices float"),
        (lambda x: ml.take_along_axis(x, [[5]], 0), ShapeError, "positions_along: .*out of bounds"),
        (
            lambda x: ml.put(x, [0], (9,)),
            ShapeError,
            r"put: x has shape \(2, 3\) but indices \(1,\)",
        ),
        (
            lambda x: ml.put([1.0], [9], (9,)),
            ShapeError,
            "put: indices from 9 to 9 do not fit the 9",
        ),
        (lambda x: ml.put([1.0], [-10], (9,)), ShapeError, "put: indices from -10 to -10 do not"),
        (lambda x: ml.put([1.0], [0.0], (9,)), DtypeError, r"put: indices float64\[1\] are no int"),
        (lambda x: ml.maximum(x, None), DtypeError, "array: None of type NoneType is not an array"),
        (lambda x: x + "a", DtypeError, "array: 'a' of type str is not an array of real numbers"),
        (lambda x: ml.sin(1j), DtypeError, "array: 1j of type complex is not an array of real"),
        (lambda x: ml.neg([True]), DtypeError, r"neg: x bool\[1\] do not fit"),
    ],
)
def test_what_is_wrong_is_said(call, error, line):
    with pytest.raises(error, match=f"^{line}"):
        call(ml.array(np.ones((2, 3))))


def test_astype_does_not_lose_a_derivative_without_a_word():
    with pytest.raises(DtypeError, match=r"^astype: float64 to float32 is not differentiable"):
        ml.grad(lambda x: x.astype(np.float32))(1.0)
    exactly(ml.grad(lambda x: x.astype(np.float64) * x.astype(int))(3.0), 3.0)
    assert ml.array([1.5]).astype(int).dtype == int
