"""NumPy's functions, methods and operators on Arrays: right to the second derivative, or refused in
one line."""

import re
from pathlib import Path

import numpy as np
import pytest

import mamlnp as ml
from mamlnp import numpy_names
from mamlnp.array import Array, numpy_names as names
from mamlnp.errors import CaptureError, DtypeError, ShapeError, TapeError, UnavailableError

X = np.random.default_rng(0).uniform(0.3, 1.4, (3, 4))
S = X[:, :3] + 3 * np.eye(3)  # far from singular
M = X > 0.8
I = np.array([2, 0, 1])  # noqa: E741


def calls(*texts):
    """What stands between bars, as functions of x."""
    each = [text.strip() for text in "".join(texts).split("|")]
    return {text: eval(f"lambda x: {text}", globals()) for text in each}


CALLS = {
    "elementwise": (X, calls(
        "np.tan(x) | np.arctan(x) | np.arcsin(x / 2) | np.arccos(x / 2) | np.arcsinh(x - 1) |"
        "np.arccosh(x + 1) | np.arctanh(x / 2) | np.sinh(x) | np.cosh(x) | np.log2(x) |"
        "np.log10(x) | np.exp2(x) | np.deg2rad(x) | np.rad2deg(x) | np.cbrt(x) | np.sinc(x) |"
        "np.sinc(x * 0) | np.logaddexp(x, 1 - x) | np.logaddexp2(x, 0.5) | np.arctan2(x, 1 - x) |"
        "np.hypot(x, x - 1) | np.hypot(2.0, x) | np.fmax(x, 0.8) | np.fmin(0.8, x) |"
        "np.float_power(x, 3) | np.fmod(x, 0.7) | np.fmod(-x, 0.7) | np.mod(x, 0.7) |"
        "np.remainder(x, x - 1.7) | np.copysign(x, x - 1) | np.heaviside(x - 1, 0.5) * x |"
        "np.nan_to_num(x) | np.real(x) | np.conjugate(x) | np.positive(x) | np.clip(x, 0.5, 1) |"
        "np.clip(x, a_min=0.5, a_max=1) | np.clip(x, None, 1) | np.clip(x, min=0.5) |"
        "np.where(M, x, -x) | np.where(x > 1, x, 0) | np.select([x > 1, x > 0.5], [x, -x], 0.1) |"
        "x % 0.7 | 2.0 % x | divmod(x, 0.7)[1] | +x | np.modf(3 * x)[0] | np.full_like(x, x[0, 0])"
    )),
    "reductions": (X, calls(
        "np.sum(x, 0) | np.sum(x, 0, None, None, True) | np.sum(x, dtype=np.float64) |"
        "np.sum(x, where=M) | np.sum(x, initial=2.0) | np.mean(x, 0) | np.mean(x, where=M) |"
        "np.mean(x, 0, None, None, True) | np.max(x, 1) | np.max(x, initial=1.0) |"
        "np.min(x, where=M, initial=9.0) | np.amax(x) | np.var(x, ddof=1) | np.var(x, 0) |"
        "np.var(x, where=M, keepdims=True) | np.std(x) | np.std(x, 0, ddof=1) | np.std(x, -1) |"
        "np.std(x, where=M) | np.prod(x) | np.prod(x, 0) | np.prod(x, (0, 1), keepdims=True) |"
        "np.cumsum(x) | np.cumsum(x, 1) | np.cumprod(x, 0) | np.cumprod(x) | np.ptp(x, 0) |"
        "np.nansum(x, 1) | np.median(x) | np.median(x, 1, keepdims=True) | np.add.reduce(x) |"
        "np.multiply.reduce(x, axis=1) | np.logaddexp.reduce(x, 1) | np.maximum.reduce(x) |"
        "np.maximum.accumulate(x, 1) | np.multiply.accumulate(x) | np.add.accumulate(x, 1) |"
        "np.multiply.outer(x[0], x[1]) | np.subtract.outer(x[0], x) | np.linalg.norm(x) |"
        "np.linalg.norm(x, axis=0) | np.linalg.norm(x, 'fro') | np.linalg.norm(x, 1) |"
        "np.linalg.norm(x, np.inf, keepdims=True) | np.linalg.norm(x[0], 3) |"
        "np.linalg.norm(x, -np.inf, axis=1) | np.linalg.norm(x[0], ord=1) |"
        "np.linalg.vector_norm(x, axis=1, ord=2.5) | np.linalg.matrix_norm(x) |"
        "x.std() | x.prod(0) | x.cumsum(1) | x.sum(0, keepdims=True) | x.mean(0, None) |"
        "x.var(ddof=1) | x.max(0, None, True) | x.trace() | sum(x)"
    )),
    "moves": (X, calls(
        "np.reshape(x, (4, 3), order='F') | x.reshape(2, 6, order='F') | np.ravel(x, order='F') |"
        "x.flatten() | np.moveaxis(x, (0, 1), (1, 0)) | np.rollaxis(x, 1) | np.tile(x, (2, 1)) |"
        "np.repeat(x, 2, axis=0) | x.repeat(2) | np.repeat(x, [1, 0, 2], axis=0) | np.roll(x, 1) |"
        "np.roll(x, (1, -1), axis=(0, 1)) | np.fliplr(x) | np.flipud(x) | np.rot90(x) |"
        "np.rot90(x, 3) | np.diff(x) | np.diff(x, n=2, axis=0) | np.gradient(x, axis=0) |"
        "np.gradient(x, 0.5)[1] | np.triu(x) | np.tril(x, -1) | np.diag(x[0]) | np.diag(x, 1) |"
        "np.diagonal(x) | x.diagonal(1) | np.diagflat(x[0], -1) | np.atleast_3d(x[0]) |"
        "np.atleast_2d(x[0], x)[0] | np.concatenate([x, x], axis=None) | np.vstack([x, 2 * x]) |"
        "np.hstack([x[0, 0], x[1, 1]]) | np.dstack([x, x]) | np.column_stack([x[0], x[1]]) |"
        "np.block([[x, np.ones((3, 1))], [x * x, np.zeros((3, 1))]]) | np.append(x, 2.0) |"
        "np.append(x, x, axis=0) | np.split(x, 2, axis=1)[1] | np.array_split(x, 2)[0] |"
        "np.hsplit(x, [1, 3])[1] | np.vsplit(x, 3)[2] | np.unstack(x)[1] | np.delete(x, 1, 0) |"
        "np.resize(x, (2, 3)) | np.pad(x, 1) | np.pad(x, np.int64(1)) | np.pad(x[0], (1,)) |"
        "np.pad(x, ((1, 2),)) | np.pad(x, 1, 'constant') | np.pad(x, 1, constant_values=1.0) |"
        "np.pad(x, 1, constant_values=((1, 2), (3, 4))) | np.pad(x, 2, mode='edge') |"
        "np.pad(x, 2, 'reflect') | np.pad(x, 5, mode='symmetric') | np.pad(x, 5, mode='wrap') |"
        "np.broadcast_arrays(x[:, :1], x)[0] | np.meshgrid(x[0], x[1])[1] | np.sort(x, 0) |"
        "np.sort(x, None) | np.partition(x, 1) | np.permute_dims(x, (1, 0)) | x.mT |"
        "np.take(x, I, axis=1, mode='clip') | x.take(0) | np.compress([True, False], x, axis=0) |"
        "np.extract(M, x) | np.fft.fftshift(x) | x[range(2)] | x[(0, 1), :] | x[np.ix_(I, [0])] |"
        "np.linspace(x[0, 0], x[0, 1], 3) | np.squeeze(x[None]) | x.copy() | np.copy(x) |"
        "np.linalg.diagonal(x[None]) | np.array(x, like=x) | np.take_along_axis(x, I[:, None], 1)"
    )),
    "products": (X, calls(
        "np.dot(x, x.T) | np.dot(x[0], x[1]) | np.dot(2.0, x) | x.dot(x.T) | np.inner(x, x) |"
        "np.dot(x, np.ones((2, 4, 3))) | np.inner(x, 2.0) | np.outer(x[0], x[1]) |"
        "np.vdot(x, x) | np.tensordot(x, x) | np.tensordot(x, x, axes=([1], [1])) |"
        "np.tensordot(x, x, 0) | np.kron(x, x[:2]) | np.kron(x[0], x) | np.vecdot(x, x) |"
        "np.cross(x[:, :3], x[:, 1:]) | np.cross(x.T, [1.0, 2.0, 3.0]) | np.trace(x) |"
        "np.einsum('ij,kj', x, x) | np.einsum('...j,kj->...k', x, x) | np.einsum('ij->', x) |"
        "np.einsum('ii->i', x[:, :3]) | np.einsum('ii', x[:, :3]) | np.einsum('i...->...', x) |"
        "np.einsum('ij,kj->ik', x, x, optimize=True) | np.einsum('ji', x) | np.einsum('iji->j', "
        "x[:, :3, None] * x[0, :3]) | np.einsum(x, [0, 1], x, [2, 1], [2, 0]) |"
        "np.einsum(x, [0, ...], x, [0, ...]) | np.einsum('ij,ij->ij', x, x[:1]) |"
        "np.einsum('...i,...i', x[:, None], x)"
    )),
    "linalg": (S, calls(
        "np.linalg.inv(x) | np.linalg.solve(x, np.arange(3.0)) | np.linalg.solve(x, x[:, :2]) |"
        "np.linalg.solve(x, np.ones((2, 3, 1))) | np.linalg.det(x) | np.linalg.slogdet(-x)[1] |"
        "np.linalg.det(np.stack([x, -x])) | np.linalg.cholesky(x @ x.T) | np.linalg.eigh(x)[0] |"
        "np.linalg.cholesky(x @ x.T, upper=True) | np.linalg.eigvalsh(x, 'U') |"
        "np.linalg.eigh(x)[1] | np.linalg.eigh(x, 'U').eigenvectors | np.linalg.trace(x) |"
        "np.linalg.cholesky(np.stack([x, 2 * x]) @ x.T @ x)"
    )),
}  # fmt: skip
EVERY = {text: (x, f) for x, fs in CALLS.values() for text, f in fs.items()}


@pytest.mark.parametrize("text", EVERY)
def test_numpys_functions_are_right_to_the_second_derivative(text):
    x, f = EVERY[text]
    expected = np.asarray(f(x.copy()))
    out = f(ml.array(x))
    assert type(out) is Array
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-14)
    ml.check_grads(f, [x], order=2)


@pytest.mark.parametrize("text", [t for t in EVERY if "partition" not in t])
def test_they_are_compiled_and_keep_float32(text):
    x, f = EVERY[text]
    gradient = ml.grad(lambda x: (f(x) * f(x)).sum())
    np.testing.assert_allclose(ml.compile(f)(x), f(ml.array(x)), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ml.compile(gradient)(x), gradient(x), rtol=1e-10, atol=1e-12)
    if "np.ones" not in text and "np.zeros" not in text and "np.arange" not in text:
        small = x.astype(np.float32)
        if f(small).dtype == np.float32:
            assert f(ml.array(small)).dtype == np.float32
            assert gradient(small).dtype == np.float32


MAPPED = [
    t for t in EVERY if not re.search(r"M\b|ix_|np.ones|np.arange|\[1, 0, 2\]|extract|partition", t)
]


@pytest.mark.parametrize("text", MAPPED)
def test_they_are_mapped(text):
    x, f = EVERY[text]
    xs = np.stack([x, x + 0.01])
    each = np.stack([np.asarray(f(ml.array(x))) for x in xs])
    np.testing.assert_allclose(ml.vmap(f)(xs), each, rtol=1e-12, atol=1e-13)


STEPS = calls(
    "np.isnan(x) | np.isinf(x) | np.isposinf(-x) | np.signbit(x - 1) | np.logical_and(x > 1, x) |"
    "np.logical_or(x > 1, x < 0.5) | np.logical_xor(x > 1, M) | np.logical_not(x > 1) |"
    "(x > 0.5) & (x < 1) | (x > 1) | (x < 0.5) | ~(x > 1) | (x > 1) ^ M |"
    "np.floor(5 * x) |"
    "np.ceil(5 * x) | np.rint(5 * x) | np.trunc(-5 * x) | np.fix(5 * x) | np.round(x, 2) |"
    "x.round(1) | round(x[0, 0], 1) | np.floor_divide(x, 0.3) | x // 0.3 | divmod(x, 0.3)[0] |"
    "np.any(x > 1) | np.all(x > 1, 0) | (x > 1).any(1) | (x > 9).all() |"
    "np.count_nonzero(x > 1, 0) |"
    "np.argsort(x, 0) | x.argsort() | np.argmax(x, 1) | np.argmax(x, 1, keepdims=True) |"
    "np.isclose(x, x + 1e-9) | np.argwhere(x > 1) | np.nonzero(x > 1)[1] | np.where(x > 1)[0] |"
    "np.flatnonzero(x > 1) | np.searchsorted(np.arange(4.0), x) | np.digitize(x, [0.5, 1.0]) |"
    "np.imag(x) | np.angle(-x) | np.empty_like(x) * 0 | np.zeros_like(x, dtype=int) |"
    "np.ones_like(x) | np.full_like(x, 2.0) | x == None | x != None | np.isreal(x)"
)


@pytest.mark.parametrize("text", STEPS)
def test_what_moves_in_steps_is_a_constant(text):
    f, expected = STEPS[text], np.asarray(STEPS[text](X.copy()))
    seen = []

    def loss(x):
        seen.append(f(x))
        return (x * np.sum(seen[-1] * 1.0)).sum()

    ml.grad(loss)(X)
    for out in (f(ml.array(X)), *seen):
        assert (type(out), out.serial) == (Array, 0)
        assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(out, expected)


def test_what_is_asked_of_shapes_and_types_is_answered_anywhere():
    def f(x):
        assert np.shape(x) == (3, 4)
        assert (np.ndim(x), np.size(x), np.result_type(x)) == (2, 12, np.float64)
        assert np.size(x, 1) == 4
        assert not np.iscomplexobj(x)
        return (x * x).sum()

    np.testing.assert_allclose(ml.grad(f)(X), 2 * X)
    np.testing.assert_allclose(ml.compile(ml.grad(f))(X), 2 * X)
    np.testing.assert_allclose(ml.vmap(ml.grad(f))(X[None]), 2 * X[None])


def test_yes_and_no_are_pythons():
    def f(x):
        assert np.allclose(x, x * 1.0) is True
        assert np.array_equal(x, x) is True
        return (x * x).sum()

    np.testing.assert_allclose(ml.grad(f)(X), 2 * X)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: np.linalg.svd(x)[1],
        lambda x: np.linalg.pinv(x),
        lambda x: np.linalg.norm(x, 2),
        lambda x: np.unique(x),
        lambda x: np.interp(x, [0.0, 1.0], [1.0, 3.0]),
        lambda x: np.corrcoef(x),
        lambda x: np.pad(x, 1, mode="linear_ramp"),
        lambda x: np.histogram(x, 3)[0],
        lambda x: np.concatenate([x, x], dtype=np.float32),
        lambda x: np.add(x, 1, dtype=np.float32),
        lambda x: np.quantile(x, [0.2, 0.5]),
        lambda x: np.add.reduceat(x, [0, 2], axis=1),
    ],
)
def test_numpy_itself_answers_where_all_is_constant(call):
    out = call(ml.array(X))
    assert type(out) is Array
    np.testing.assert_array_equal(out, call(X))
    with pytest.raises(UnavailableError):
        ml.grad(lambda x: call(x).sum())(X)


def test_complex_results_of_constants_are_numpys():
    assert type(np.fft.fft(ml.array(X))) is np.ndarray


REFUSED = {
    "numpy.linalg.svd: has no derivative rule for Arrays. Nearest: numpy.linalg.eigh": (
        lambda x: np.linalg.svd(x)
    ),
    "numpy.unique: has no derivative rule for Arrays. Nearest: numpy.sort": lambda x: np.unique(x),
    "numpy.fft: has no derivative rule": lambda x: np.fft.fft(x),
    "numpy.nanvar: has no derivative rule for Arrays. Nearest: numpy.var": (lambda x: np.nanvar(x)),
    "numpy.pad: mode='mean' has no derivative rule for Arrays. Use one of: constant, edge": (
        lambda x: np.pad(x, 1, mode="mean")
    ),
    "norm: ord='nuc' over 2 axes has no derivative rule": lambda x: np.linalg.norm(x, "nuc"),
    "numpy.sin: cannot be called with dtype= on Arrays. It takes x.": (
        lambda x: np.sin(x, dtype=np.float64)
    ),
    "numpy.add: takes no where= on Arrays. Use numpy.where": lambda x: np.add(x, 1, where=M),
    "numpy.stack: takes no dtype= here. Use astype first.": (
        lambda x: np.stack([x, x], dtype=np.float32)
    ),
    "Array.sum: cannot be called with foo= on Arrays. It takes a, axis, dtype, out, keepdims": (
        lambda x: x.sum(foo=1)
    ),
    "Array.fill: has no derivative rule for Arrays. Nearest: numpy.full_like": lambda x: x.fill(0),
    "Array.flat: has no derivative rule": lambda x: x.flat,
    "x[...] = y: an Array takes no item assignment": lambda x: x.__setitem__(0, 1.0),
    "hash: an Array is unhashable": hash,
    "gradient: takes places only that are equally far apart": (
        lambda x: np.gradient(x[0], np.array([0.0, 1.0, 3.0, 4.0]))
    ),
    "numpy.multiply.at: cannot write": lambda x: np.multiply.at(ml.array(X), 0, 1.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_there_is_not_is_refused_in_one_line(message):
    with pytest.raises(UnavailableError) as caught:
        ml.grad(lambda x: ml.sum(REFUSED[message](x)))(X)
    said = str(caught.value)
    assert said.startswith(message)
    assert "\n" not in said
    assert not re.search(r"alias|anew|custom|positions|pool|put_slices|_answer|object at", said)


def test_a_refusal_is_an_error_that_numpys_users_expect():
    with pytest.raises(TypeError):
        ml.grad(lambda x: np.interp(x, [0.0, 1.0], [1.0, 3.0]).sum())(X)
    assert not hasattr(ml.array(X), "ptp")


def test_a_boolean_is_needed_for_bits():
    with pytest.raises(DtypeError, match=r"bitwise_and: .*use numpy\.logical_and"):
        ml.array([1, 2]) & ml.array([1, 0])
    with pytest.raises(ShapeError, match=r"no truth value. Use x.any\(\) or x.all\(\)"):
        bool(ml.array(X) > 1)


def test_the_argument_of_a_function_is_not_changed_in_place():
    def f(x):
        x *= 2.0
        return x.sum()

    with pytest.raises(UnavailableError, match=r"test_numpy_names.*Write x = x \* y") as caught:
        ml.grad(f)(X)
    assert f"{__file__}:" in str(caught.value)

    def total(x):
        out = 0.0
        for row in x:
            out += (row * row).sum()
        return out

    np.testing.assert_allclose(ml.grad(total)(X), 2 * X)


def test_a_number_is_formatted():
    x = ml.array(1.23456)
    assert (f"{x:.3f}", f"{x}", f"{x[None]:8.2f}") == ("1.235", "Array(1.23456)", "    1.23")
    assert f"{ml.array(X)}" == str(ml.array(X))
    assert ml.grad(lambda x: x * len(f"{x:.1f}"))(1.5).item() == 3.0


def test_lists_of_what_is_differentiated_are_stacked():
    np.testing.assert_allclose(ml.grad(lambda x: ml.mean([x, 3 * x, 1.0]))(2.0), 4 / 3)
    np.testing.assert_allclose(ml.grad(lambda x: ml.sum([[x, x], [x * x, 0.0]]))(2.0), 6.0)


def test_the_edges():
    assert ml.grad(np.std)(np.ones(3)).tolist() == [0.0, 0.0, 0.0]
    zeros = np.array([0.0, 2.0, 0.0, 3.0])
    np.testing.assert_array_equal(ml.hessian(np.prod)(zeros)[0], [0.0, 0.0, 6.0, 0.0])
    np.testing.assert_array_equal(ml.grad(lambda x: np.cumprod(x).sum())(zeros), [3, 0, 0, 0])
    assert ml.grad(np.hypot, (0, 1))(0.0, 0.0) == (ml.array(0.0), ml.array(0.0))
    assert np.hypot(ml.array(3e200), 4e200).item() == pytest.approx(5e200)
    assert np.logaddexp(ml.array(-np.inf), 1.0).item() == 1.0
    assert (1e20 % ml.array(3.0)).item() == 1e20 % 3.0
    assert np.arctan2(ml.array(-0.0), -1.0).item() == -np.pi


def test_equal_eigenvalues_have_derivatives_without_their_vectors_turning():
    a = np.diag([2.0, 2.0, 5.0])

    def f(a):
        values, vectors = np.linalg.eigh(a)
        return (values**2).sum() + (vectors[:, :2] @ vectors[:, :2].T)[0, 2]

    expected = 2 * a + np.array([[0, 0, 0], [0, 0, 0], [-1 / 3, 0, 0]])  # the plane tilts
    np.testing.assert_allclose(ml.grad(f)(a), expected, atol=1e-12)


def test_a_singular_matrix_is_named():
    with pytest.raises(ShapeError, match=r"^solve: .*Singular matrix"):
        np.linalg.inv(ml.array(np.ones((2, 2))))
    with pytest.raises(ShapeError, match=r"^inv: a float64\[3,4\] is no square matrix"):
        np.linalg.inv(ml.array(X))


def test_what_depends_on_data_cannot_be_compiled():
    with pytest.raises(CaptureError):
        ml.compile(lambda x: x[np.argwhere(x > 1)[:, 0]])(ml.array(X))


SPECIAL = calls(
    "sp.erf(x) | sp.erfc(3 * x) | sp.expit(x) | sp.logit(x / 2) | sp.xlogy(x, x) | sp.ndtr(x) |"
    "sp.xlog1py(x, x) | sp.entr(x) | sp.rel_entr(x, x + 0.1) | sp.kl_div(x, 1.0) |"
    "sp.log_expit(x) | sp.gamma(x) | sp.gammaln(x) | sp.digamma(x) | sp.rgamma(x) |"
    "sp.beta(x, 2.0) | sp.betaln(x, x) | sp.betainc(1.5, 2.0, x / 2) | sp.gammainc(1.5, x) |"
    "sp.gammaincc(1.5, x) | sp.erfinv(x / 2) | sp.erfcinv(x) | sp.j0(x) | sp.j1(x) | sp.y0(x) |"
    "sp.y1(x) | sp.i0(x) | sp.i1(x) | sp.jv(2, x) | sp.yn(2, x) | sp.iv(1.5, x) | sp.ive(1.5, x)"
)


@pytest.mark.parametrize("text", SPECIAL)
def test_scipys_functions_are_right_to_the_second_derivative(text):
    globals()["sp"] = pytest.importorskip("scipy.special")
    f = SPECIAL[text]
    np.testing.assert_allclose(f(ml.array(X)), f(X), rtol=1e-12, atol=1e-14)
    ml.check_grads(f, [X], order=2)
    np.testing.assert_allclose(ml.compile(f)(X), f(X), rtol=1e-12)


def test_the_edge_of_x_log_y_is_scipys():
    sp = pytest.importorskip("scipy.special")
    x, y = ml.array([0.0, 0.0, 2.0]), ml.array([0.0, 3.0, 2.0])
    np.testing.assert_array_equal(sp.xlogy(x, y), sp.xlogy(x.numpy(), y.numpy()))
    assert np.isfinite(ml.grad(lambda x: sp.xlogy(x, y).sum())(x).numpy()).all()


def test_what_scipy_would_make_an_array_of_is_refused_at_the_users_line():
    sp = pytest.importorskip("scipy.special")
    with pytest.raises(TapeError, match=r"test_numpy_names\.py:\d+: a NumPy array was asked"):
        ml.grad(lambda x: sp.logsumexp(x))(X)


PAGE = Path(__file__).parents[1] / "docs" / "numpy.md"


def test_the_page_lists_what_there_is():
    page = PAGE.read_text(encoding="utf-8")
    listed = set(re.findall(r"`([\w.]+)`", page.partition("## Functions")[2]))
    there = {*names, *numpy_names.MOVES, *numpy_names.STEPS, *numpy_names.QUERIES}
    known = {n for n in there if hasattr(np, n.partition(".")[0]) or hasattr(np.linalg, n)}
    assert known - {"linalg.diagonal", "linalg.norm", "linalg.trace"} <= listed
