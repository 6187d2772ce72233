"""Array among Python and NumPy: operators, functions, types, conversions."""

import copy
import math
import operator
import pickle

import numpy as np
import pytest

import mamlnp as ml
from mamlnp.array import Array
from mamlnp.errors import DtypeError, NonFiniteError, TapeError, UnavailableError
from mamlnp.op import as_array, describe

A = np.array([[0.5, 1.0, 2.0], [1.5, 0.25, 3.0]])
B = np.array([2.0, 0.5, 1.0])


def exactly(out, expected):
    """An Array of the expected values and type."""
    assert type(out) is Array
    assert out.dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(out.numpy(), expected)


def slope(f, x):
    return ml.grad(lambda x: f(x).sum())(x).numpy()


OPERATORS = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.pow,
    operator.eq,
    operator.ne,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
]


@pytest.mark.parametrize("f", OPERATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "other",
    [B, 2, 0.5, True, np.float64(0.5), np.float32(0.5), np.int64(2), np.array(2.0)],
    ids=repr,
)
def test_operators_take_arrays_and_numbers_on_either_side(f, other):
    x = ml.array(A)
    plain = other.item() if isinstance(other, np.generic) else other
    exactly(f(x, other), f(A, plain))
    exactly(f(other, x), f(plain, A))
    exactly(f(x, ml.array(plain)), f(A, plain))


@pytest.mark.parametrize("f", [operator.neg, operator.abs], ids=lambda f: f.__name__)
def test_operators_of_one(f):
    exactly(f(ml.array(-A)), f(-A))


def test_products_on_either_side():
    x = ml.array(A)
    exactly(x @ B, A @ B)
    exactly(A @ ml.array(B), A @ B)
    exactly(x @ ml.array(B), A @ B)
    exactly(A.T @ x, A.T @ A)
    np.testing.assert_array_equal(slope(lambda x: x @ B, A), np.tile(B, (2, 1)))
    np.testing.assert_array_equal(slope(lambda b: A @ b, B), A.sum(axis=0))


def test_augmented_assignment_makes_a_new_array():
    x = y = ml.array(B)
    x += 1
    exactly(x, B + 1)
    exactly(y, B)


def test_numpys_arrays_do_not_take_arrays_in_place():
    z = B.copy()
    with pytest.raises(UnavailableError, match=r"numpy\.add with out=: cannot write"):
        z += ml.array(B)
    np.testing.assert_array_equal(z, B)


NUMPY_CALLS = {
    "sin": lambda x: np.sin(x),
    "exp": lambda x: np.exp(x),
    "expm1": lambda x: np.expm1(x),
    "log": lambda x: np.log(x),
    "log1p": lambda x: np.log1p(x),
    "sqrt": lambda x: np.sqrt(x),
    "square": lambda x: np.square(x),
    "reciprocal": lambda x: np.reciprocal(x),
    "cos": lambda x: np.cos(x),
    "tanh": lambda x: np.tanh(x),
    "abs": lambda x: np.abs(x),
    "fabs": lambda x: np.fabs(x),
    "negative": lambda x: np.negative(x),
    "sign": lambda x: np.sign(x),
    "isfinite": lambda x: np.isfinite(x),
    "add": lambda x: np.add(B, x),
    "subtract": lambda x: np.subtract(x, B),
    "multiply": lambda x: np.multiply(2.0, x),
    "divide": lambda x: np.divide(x, B),
    "true_divide": lambda x: np.true_divide(B, x),
    "power": lambda x: np.power(x, 2.0),
    "maximum": lambda x: np.maximum(x, B),
    "minimum": lambda x: np.minimum(1.0, x),
    "equal": lambda x: np.equal(x, 1.0),
    "not_equal": lambda x: np.not_equal(x, 1.0),
    "less": lambda x: np.less(x, B),
    "less_equal": lambda x: np.less_equal(x, B),
    "greater": lambda x: np.greater(x, B),
    "greater_equal": lambda x: np.greater_equal(B, x),
    "matmul": lambda x: np.matmul(x, B),
    "sum": lambda x: np.sum(x),
    "sum axis": lambda x: np.sum(x, axis=-1, keepdims=True),
    "sum axis by place": lambda x: np.sum(x, 0),
    "mean": lambda x: np.mean(x, axis=0),
    "var": lambda x: np.var(x, axis=(0, 1)),
    "max": lambda x: np.max(x, axis=1),
    "amax": lambda x: np.amax(x),
    "min": lambda x: np.min(x, 1),
    "amin": lambda x: np.amin(x),
    "argmax": lambda x: np.argmax(x, axis=1),
    "argmin": lambda x: np.argmin(x),
    "linalg.norm": lambda x: np.linalg.norm(x),
    "linalg.norm axis": lambda x: np.linalg.norm(x, axis=-1),
    "where": lambda x: np.where(A > 1, x, 0.0),
    "clip": lambda x: np.clip(x, 0.4, 1.6),
    "concatenate": lambda x: np.concatenate((x, A, x), axis=1),
    "stack": lambda x: np.stack([x, A], axis=-1),
    "reshape": lambda x: np.reshape(x, (3, -1)),
    "transpose": lambda x: np.transpose(x),
    "transpose axes": lambda x: np.transpose(x, (1, 0)),
    "matrix_transpose": lambda x: np.matrix_transpose(x),
    "swapaxes": lambda x: np.swapaxes(x, 0, 1),
    "moveaxis": lambda x: np.moveaxis(x, 0, -1),
    "expand_dims": lambda x: np.expand_dims(x, 1),
    "squeeze": lambda x: np.squeeze(x[:1]),
    "broadcast_to": lambda x: np.broadcast_to(x, (2, 2, 3)),
    "ravel": lambda x: np.ravel(x),
    "flip": lambda x: np.flip(x, 1),
    "pad": lambda x: np.pad(x, ((0, 1), (2, 0))),
    "take": lambda x: np.take(x, [0, 2], axis=1),
    "take_along_axis": lambda x: np.take_along_axis(x, np.argsort(A), axis=1),
    "einsum": lambda x: np.einsum("ij,j->i", x, B),
    "zeros_like": lambda x: np.zeros_like(x),
    "ones_like": lambda x: np.ones_like(x),
    "astype": lambda x: np.astype(x, np.float32),
}


@pytest.mark.parametrize("name", NUMPY_CALLS)
def test_numpys_functions_work_on_arrays(name):
    call = NUMPY_CALLS[name]
    expected = call(A)
    out = call(ml.array(A))
    assert type(out) is Array
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-14)


def test_a_loss_can_be_written_in_numpy():
    def loss(x):
        return np.mean(np.maximum(np.sin(x) @ B, 0.1) ** 2) + x[1:, None].sum()

    ml.check_grads(loss, [A], order=3)
    assert type(loss(A)) is not Array


# ---- types


@pytest.mark.parametrize("number", [2, 0.1, True, np.float64(0.1), np.int64(3), np.float16(0.5)])
@pytest.mark.parametrize("f", OPERATORS[:5], ids=lambda f: f.__name__)
def test_numbers_are_weak(number, f):
    x = ml.array(A, dtype=np.float32)
    assert f(x, number).dtype == f(number, x).dtype == np.float32
    np.testing.assert_array_equal(f(x, number).numpy(), f(A.astype(np.float32), float(number)))


@pytest.mark.parametrize("f", OPERATORS, ids=lambda f: f.__name__)
def test_scalars_of_numpys_are_numbers_on_the_left_too(f):
    x = ml.array(A, dtype=np.float32)
    exactly(f(np.float64(1.0), x), f(1.0, A.astype(np.float32)))
    exactly(f(np.float32(1.0), ml.array(A)), f(1.0, A))


def test_numbers_of_every_width_are_python_numbers():
    exactly(ml.array(B) * np.longdouble(2), B * 2)
    exactly(ml.array([1, 2]) * 2.5, np.array([2.5, 5.0]))
    exactly(ml.array([1, 2]) + np.uint8(1), np.array([2, 3]))
    exactly(ml.where(True, 1, 2), 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.bool_])
def test_integers_take_the_type_of_the_floats(dtype, kind):
    x, n = A.astype(dtype), np.array([1, 0, 1], kind)
    for f in (*OPERATORS[:3], np.maximum):
        exactly(f(ml.array(x), n), f(x, n.astype(dtype)))
        exactly(f(ml.array(n), x), f(n.astype(dtype), x))
    exactly(ml.array(x) @ n, x @ n.astype(dtype))
    assert ml.concatenate([x, n[None]]).dtype == dtype
    assert ml.where(n, x, n).dtype == dtype


def test_integers_among_themselves_are_numpys():
    n = np.array([3, 1, 2])
    exactly(ml.array(n) + 1, n + 1)
    exactly(ml.array(n) / 2, n / 2)
    exactly(ml.array(n).sum(), n.sum())
    exactly(ml.array(n).mean(), n.mean())
    exactly(ml.array(n == 1) + n, (n == 1) + n)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda x, y: x + y, "add"),
        (lambda x, y: y @ x.T, "matmul"),
        (lambda x, y: np.where(A > 1, x, y), "where"),
        (lambda x, y: ml.concatenate([x, y]), "concatenate"),
        (lambda x, y: np.einsum("ij,ij->", x, y), "matmul"),
        (lambda x, y: x + y.sum(), "add"),
        (lambda x, y: x + A, "add"),
    ],
)
def test_float_types_do_not_mix(call, name):
    message = rf"^{name}: .*float(32|64)\[.*float(32|64)\[.* mix float types\. Convert one of them"
    with pytest.raises(DtypeError, match=message):
        call(ml.array(A, dtype=np.float32), ml.array(A))


@pytest.mark.parametrize("x", [1j, "a", None, [1j], ["a"], np.array(["a"]), object(), {}])
def test_only_real_numbers_are_arrays(x):
    for make in (ml.array, as_array, ml.sin):
        with pytest.raises(DtypeError, match=r"^array: .*real numbers\. Pass floats, integers"):
            make(x)


# ---- conversions


def test_array_copies():
    user = A.copy()
    x = ml.array(user)
    y = x.T.reshape(-1)
    user[:] = 0
    exactly(x, A)
    exactly(y, A.T.reshape(-1))
    exactly(ml.array(x), A)
    assert not np.shares_memory(ml.array(x).numpy(), x.numpy())


def test_array_takes_what_numpy_takes():
    exactly(ml.array(2), 2)
    exactly(ml.array([1, 2.5]), np.array([1, 2.5]))
    exactly(ml.array([[True], [False]]), np.array([[True], [False]]))
    exactly(ml.array(A, dtype=np.float32), A.astype(np.float32))
    exactly(ml.array([ml.array(1.0), 2.0]), np.array([1.0, 2.0]))
    exactly(ml.array(range(3)), np.arange(3))


@pytest.mark.parametrize(
    "convert",
    [np.asarray, np.array, ml.array, lambda x: ml.array([x, x])],
)
def test_what_is_differentiated_is_not_taken_apart(convert):
    with pytest.raises(TapeError, match=r"^.*: a NumPy array was asked of an Array that is being"):
        ml.grad(lambda x: convert(x).sum())(A)


def test_values_are_read_only():
    x = ml.array(A)
    for view in (x.numpy(), np.asarray(x), np.asarray(x.T)):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
    assert np.shares_memory(np.asarray(x), x.value)
    copied = np.array(x)
    copied[:] = 0
    np.asarray(x, dtype=np.float32)
    exactly(x, A)
    assert np.asarray(x, dtype=np.float32).dtype == np.float32
    with pytest.raises(TypeError, match="item assignment"):
        x[0] = 1


def test_numbers_come_out():
    x = ml.array(2.75)
    assert (float(x), int(x), bool(x), x.item()) == (2.75, 2, True, 2.75)
    assert [type(v) for v in (float(x), int(x), bool(x), x.item())] == [float, int, bool, float]
    assert complex(x) == 2.75
    assert math.sqrt(ml.array([4.0])) == 2
    assert ml.array([[7]]).item() == 7
    assert type(ml.array(True).item()) is bool
    assert [10, 20, 30][ml.array(1)] == 20
    assert bool(ml.array(0.0)) is False
    assert float(ml.vjp(lambda x: x * 2, x)[0]) == 5.5


@pytest.mark.parametrize("x", [[1.0, 2.0], []], ids=str)
def test_no_number_comes_out_of_more_or_less_than_one(x):
    for convert in (float, int, bool, Array.item):
        with pytest.raises(ValueError, match=r"size 1|truth value"):
            convert(ml.array(x))


def test_floats_are_no_index():
    with pytest.raises(TypeError, match="index"):
        [1, 2][ml.array(1.0)]
    with pytest.raises(TypeError, match="integer"):
        ml.array(A)[1.0]


def test_length_and_iteration():
    x = ml.array(A)
    assert len(x) == 2
    for row, expected in zip(x, A, strict=True):
        exactly(row, expected)
    first, second = x
    exactly(first + second, A[0] + A[1])
    np.testing.assert_array_equal(ml.grad(lambda x: sum(row[0] * row[1] for row in x))(A)[:, 2], 0)
    for f in (len, iter):
        with pytest.raises(TypeError, match="no axes"):
            f(ml.array(1.0))


def test_attributes():
    x = ml.array(A)
    assert (x.shape, x.ndim, x.size, x.dtype) == ((2, 3), 2, 6, np.float64)
    exactly(x.T, A.T)
    assert ml.grad(lambda x: x.T[0, 1])(A).numpy().tolist() == [[0, 0, 0], [1, 0, 0]]


def test_repr():
    assert repr(ml.array([1.0, 2.0])) == "Array([1., 2.])"
    assert repr(ml.array([1], dtype=np.float32)) == "Array([1.], dtype=float32)"
    assert repr(ml.array(A)).splitlines()[1].startswith("       [1.5")
    assert describe(ml.array(A)) == "float64[2,3]"
    assert describe(2.5) == "2.5"


def test_methods_are_the_functions():
    x = ml.array(A)
    exactly(x.sum(axis=-1), A.sum(axis=-1))
    exactly(x.mean(0), A.mean(0))
    exactly(x.max(axis=1, keepdims=True), A.max(axis=1, keepdims=True))
    exactly(x.min(), A.min())
    exactly(x.reshape(-1, 2), A.reshape(-1, 2))
    exactly(x.clip(1, 2), A.clip(1, 2))
    exactly(x.astype(np.float32), A.astype(np.float32))
    exactly(x[1:, None], A[1:, None])


def test_arrays_are_not_hashable():
    with pytest.raises(TypeError, match="unhashable"):
        hash(ml.array(1.0))


def test_constants_are_copied_and_pickled():
    for made in (copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        exactly(made(ml.array(A)), A)


def test_what_numpy_lacks_is_no_name_of_an_array():
    with pytest.raises(AttributeError, match="tobytes"):
        ml.array(A).tobytes  # noqa: B018


# ---- NaN and infinity


def test_the_first_op_that_makes_nan_is_named():
    def f(x):
        return (ml.sqrt(x - 1.0) * 2).sum()

    x = ml.array([4.0, 1.0, 0.5])
    with np.errstate(all="ignore"):
        f(x)
        said = r"^sqrt: x float64\[3\] .* is nan at \[2\]"
        with pytest.raises(NonFiniteError, match=said) as e, ml.debug_nans():
            f(x)
        assert e.value.where == (2,)
        with pytest.raises(NonFiniteError, match=r"at \[1\]"), ml.debug_nans():
            ml.grad(f)(ml.array([4.0, 1.0]))  # whose root is 0, where the slope is infinite
        with ml.debug_nans():
            ml.exp(ml.array([np.nan, np.inf])) + 1.0  # are not this op's
            ml.grad(f)(ml.array([4.0, 2.0]))
        f(x)
