"""The kernels: the readable ones against loops, the fast ones against those."""

import inspect
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from strategies import HypothesisDraw

from mamlnp import array, backend
from mamlnp.backend import cpu, reference

KERNELS = [pytest.param(backend.KERNELS[name], id=name) for name in sorted(backend.KERNELS)]
NAMES = ["fold", "patches", "pool_positions", "put"]
TYPES = [np.float32, np.float64, np.int64, np.uint8]


class Windows:
    """Drawn images, and every window of them, index by index."""

    def __init__(self, data, dtype=None, *, padded=True):
        d = HypothesisDraw(data)
        self.size = (d.integer(1, 4), d.integer(1, 3))
        self.stride = d.integer(1, 3)
        self.padding = ((0, 0), (0, 0))
        if padded:
            self.padding = tuple((d.integer(0, 2), d.integer(0, 2)) for _ in self.size)
        self.shape = tuple(
            max(1, k - sum(pair)) + d.integer(0, 4)
            for k, pair in zip(self.size, self.padding, strict=True)
        )
        self.lead, self.channels = d.shape(max_ndim=2), d.integer(1, 3)
        self.dtype = dtype or d.choice(TYPES)
        self.d = d
        self.counts = tuple(
            len(range(0, side + sum(pair) - k + 1, self.stride))
            for side, pair, k in zip(self.shape, self.padding, self.size, strict=True)
        )

    def numbers(self, *shape):
        values = self.d.rng.integers(0, 9, (*self.lead, *shape))
        return laid_out(values.astype(self.dtype), self.d.integer(0, 2))

    def images(self):
        return self.numbers(*self.shape, self.channels)

    def of_windows(self):
        return self.numbers(*self.counts, math.prod(self.size) * self.channels)

    def pixels(self):
        """(place in the windows, place in the image), where the latter is inside the image."""
        (kh, kw), ((top, _), (left, _)) = self.size, self.padding
        for i, j, di, dj, c in itertools.product(
            *map(range, (*self.counts, kh, kw, self.channels))
        ):
            row, column = i * self.stride + di - top, j * self.stride + dj - left
            if 0 <= row < self.shape[0] and 0 <= column < self.shape[1]:
                yield (..., i, j, (di * kw + dj) * self.channels + c), (..., row, column, c)


def laid_out(x, how):
    """The same values, contiguous, transposed in memory, or with others between them."""
    if how == 1:
        return x.T.copy().T
    if how == 2:
        wide = np.full((*x.shape, 2), 77, x.dtype)
        wide[..., 0] = x
        return wide[..., 0]
    return x


def same(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kernels", KERNELS)
@given(data=st.data())
def test_patches_are_a_loop(kernels, data):
    w = Windows(data)
    x = w.images()
    expected = np.zeros_like(w.of_windows())
    for window, pixel in w.pixels():
        expected[window] = x[pixel]
    same(kernels.patches(x, w.size, w.stride, w.padding), expected)


@pytest.mark.parametrize("kernels", KERNELS)
@given(data=st.data())
def test_fold_is_a_loop(kernels, data):
    w = Windows(data)
    p = w.of_windows()
    expected = np.zeros_like(w.images())
    for window, pixel in w.pixels():
        expected[pixel] += p[window]
    same(kernels.fold(p, w.size, w.stride, w.padding, w.shape), expected)


@pytest.mark.parametrize("kernels", KERNELS)
@given(data=st.data())
def test_pool_positions_are_a_loop(kernels, data):
    w = Windows(data, padded=False)
    x = w.images()
    if w.dtype in (np.float32, np.float64):
        x[w.d.mask(x.shape)] = w.d.choice([np.nan, np.inf, -np.inf, -0.0])
    expected = np.zeros((*w.lead, *w.counts, w.channels), np.int64)
    for *lead, i, j, c in np.ndindex(expected.shape):
        best = None
        for di, dj in itertools.product(*map(range, w.size)):
            place = (*lead, i * w.stride + di, j * w.stride + dj, c)
            if best is None or beats(x[place], x[best]):
                best = place
        expected[(*lead, i, j, c)] = np.ravel_multi_index(best, x.shape)
    same(kernels.pool_positions(x, w.size, w.stride), expected)


def beats(new, old):
    """The first NaN is the largest, then the first of the largest."""
    return not np.isnan(old) and (np.isnan(new) or new > old)


@pytest.mark.parametrize("kernels", KERNELS)
@given(data=st.data())
def test_put_is_a_loop(kernels, data):
    d = HypothesisDraw(data)
    shape, many = d.shape(), d.shape()
    size = math.prod(shape)
    positions = laid_out(d.integers(many, -size, size - 1), d.integer(0, 2))
    values = laid_out(d.integers(many, -9, 9).astype(d.choice(TYPES)), d.integer(0, 2))
    expected = np.zeros(size, values.dtype)
    with np.errstate(over="ignore"):  # small integers wrap, as they do in the kernels
        for place in np.ndindex(many):
            expected[positions[place]] += values[place]
    same(kernels.put(values, positions, shape), expected.reshape(shape))


@given(data=st.data())
def test_fast_kernels_equal_the_readable_ones(data):
    w = Windows(data, data.draw(st.sampled_from([np.float32, np.float64])))
    x, p = (w.d.rng.standard_normal(a.shape).astype(w.dtype) for a in (w.images(), w.of_windows()))
    where = (w.size, w.stride, w.padding)
    same(cpu.patches(x, *where), reference.patches(x, *where))
    fast, readable = (k.fold(p, *where, w.shape) for k in (cpu, reference))
    np.testing.assert_allclose(fast, readable, rtol=0, atol=100 * np.finfo(w.dtype).eps)
    positions = w.d.integers(x.shape, 0, 4)
    fast, readable = (k.put(x, positions, (5,)) for k in (cpu, reference))
    np.testing.assert_allclose(fast, readable, rtol=0, atol=100 * np.finfo(w.dtype).eps)


@pytest.mark.parametrize("kernels", KERNELS)
@given(data=st.data())
def test_fold_is_the_transpose_of_patches(kernels, data):
    w = Windows(data, np.float64)
    x, p = w.images(), w.of_windows()
    patches = kernels.patches(x, w.size, w.stride, w.padding)
    fold = kernels.fold(p, w.size, w.stride, w.padding, w.shape)
    assert np.vdot(patches, p) == np.vdot(x, fold)  # small whole numbers: no rounding


@pytest.mark.parametrize("kernels", KERNELS)
def test_pooling_by_hand(kernels):
    x = np.array([[1, 3, 3, 0], [2, 3, np.nan, np.nan], [5, 5, -np.inf, -np.inf]])[:, :, None]
    same(kernels.pool_positions(x, (2, 2), 1)[..., 0], np.array([[1, 6, 6], [8, 6, 6]]))
    same(kernels.pool_positions(x, (3, 2), 2)[..., 0], np.array([[8, 6]]))
    same(kernels.pool_positions(x[2:], (1, 2), 2)[..., 0], np.array([[0, 2]]))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("lead, c", [((0,), 1), ((2, 0), 3), ((2,), 0)])
def test_no_images_have_no_windows(kernels, lead, c):
    x = np.ones((*lead, 4, 5, c))
    where = ((2, 3), 1, ((0, 1), (1, 0)))
    p = kernels.patches(x, *where)
    assert p.shape == (*lead, 4, 4, 6 * c)
    assert kernels.fold(p, *where, (4, 5)).shape == x.shape
    assert kernels.pool_positions(x, (2, 2), 2).shape == (*lead, 2, 2, c)
    same(kernels.put(np.ones(0), np.zeros(0, int), (2,)), np.zeros(2))


@pytest.mark.parametrize("dtype", [bool, np.float16, np.longdouble, np.int16, ">f8"], ids=str)
def test_types_that_are_not_compiled_for_are_computed_all_the_same(dtype):
    x = np.arange(12).reshape(1, 3, 4, 1).astype(dtype)
    where = ((2, 2), 1, ((0, 0), (0, 0)))
    p = cpu.patches(x, *where)
    same(p, reference.patches(x, *where))
    same(cpu.fold(p, *where, (3, 4)), reference.fold(p, *where, (3, 4)))
    same(cpu.pool_positions(x, (2, 2), 2), reference.pool_positions(x, (2, 2), 2))
    same(cpu.put(x, np.ones(x.shape, int), (2,)), reference.put(x, np.ones(x.shape, int), (2,)))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    "size, stride, padding, problem",
    [
        ((5, 1), 1, ((0, 0), (0, 0)), "5x1 is larger"),
        ((1, 6), 2, ((0, 0), (0, 0)), "1x6 is larger"),
        ((5, 5), 2, ((0, 0), (0, 0)), "5x5 is larger"),
        ((0, 1), 1, ((0, 0), (0, 0)), "start at 1"),
        ((1, 1), 0, ((0, 0), (0, 0)), "start at 1"),
        ((1, 1), -1, ((0, 0), (0, 0)), "start at 1"),
        ((1, 1), 1, ((0, 0), (-1, 0)), "padding at 0"),
    ],
)
def test_windows_that_do_not_fit_are_refused(kernels, size, stride, padding, problem):
    x = np.ones((1, 4, 5, 1))
    calls = [
        lambda: kernels.patches(x, size, stride, padding),
        lambda: kernels.fold(x, size, stride, padding, (4, 5)),
    ]
    if padding == ((0, 0), (0, 0)):
        calls.append(lambda: kernels.pool_positions(x, size, stride))
    for call in calls:
        with pytest.raises(ValueError, match=problem):
            call()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("shape", [(1, 3, 3, 4), (1, 2, 4, 4), (2, 3, 4, 6), (2, 4, 3, 4)])
def test_windows_of_another_image_are_refused(kernels, shape):
    with pytest.raises(ValueError, match="such an image has 3 by 4 windows"):
        kernels.fold(np.ones(shape), (2, 2), 1, ((0, 0), (0, 0)), (4, 5))


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_exists_twice_with_one_signature(name):
    signatures = {inspect.signature(getattr(k, name)) for k in backend.KERNELS.values()}
    assert len(signatures) == 1
    assert all(getattr(k, name).__doc__ for k in backend.KERNELS.values())


# ---- the seam


def test_kernels_are_chosen_for_a_while():
    x = np.zeros(1)
    assert backend.kernels_of(x) is cpu
    with pytest.raises(KeyError, match="cuda9"), backend.using_kernels("cuda9"):
        pass
    with backend.using_kernels("reference"):
        assert backend.kernels_of(x) is reference
        with backend.using_kernels("cpu"):
            assert backend.kernels_of(x) is cpu
        assert backend.kernels_of(x) is reference
    with pytest.raises(ZeroDivisionError), backend.using_kernels("reference"):
        1 / 0  # noqa: B018
    assert backend.kernels_of(x) is cpu


def test_namespaces():
    assert backend.namespace_of(np.zeros(1)) is np
    assert backend.default_namespace() is np
    for x in (1.0, [1.0], array(1.0)):
        with pytest.raises(TypeError, match=r"is not an array\. Convert it with array"):
            backend.namespace_of(x)
        with pytest.raises(TypeError, match="is not an array"):
            backend.kernels_of(x)
        assert not backend.is_native(x)
    for x in (np.zeros(1), np.zeros(()), np.float32(1), np.True_):
        assert backend.is_native(x)
        assert backend.is_scalar(x) == (not isinstance(x, np.ndarray))


def test_host_and_device_share_memory():
    x = np.zeros(3)
    assert backend.to_host(x) is x
    assert backend.to_device(x) is x
