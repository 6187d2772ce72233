"""float32 sums of many terms keep their digits: eager and compiled, along every axis, in put."""

import numpy as np
import pytest

import mamlnp as ml
from mamlnp import backend

CLOSE = 2e-6  # relative: some roundings of float32; one by one, these sums are off by 1e-4
LONG = 300_000

SUMS = {
    "all": ((LONG,), lambda x: ml.sum(x)),
    "all of a matrix": ((LONG // 3, 3), lambda x: ml.sum(x)),
    "first axis": ((LONG, 3), lambda x: ml.sum(x, 0)),
    "middle axis": ((2, LONG, 3), lambda x: ml.sum(x, 1)),
    "first and last": ((LONG, 3, 2), lambda x: ml.sum(x, (0, 2))),
    "last axis": ((2, LONG), lambda x: ml.sum(x, -1)),
    "transposed": ((LONG, 3), lambda x: ml.sum(x.T, 1)),
    "mean": ((LONG, 3), lambda x: ml.mean(x, 0)),
    "keepdims": ((LONG, 3), lambda x: ml.sum(x, 0, keepdims=True)),
    "sum_to": ((LONG, 3), lambda x: ml.ops.shape.sum_to(x, (1, 3))),
    "the transpose of broadcasting": (
        (LONG, 3), lambda x: ml.grad(lambda b: ml.sum(x * b))(x[0] * 0),
    ),
    "a product with ones": ((LONG,), lambda x: (x[None] @ (x[:, None] * 0 + 1))[0]),
}  # fmt: skip


@pytest.mark.parametrize("way", [*backend.KERNELS, "compiled", "unfused"])
@pytest.mark.parametrize("name", SUMS)
def test_a_long_sum_keeps_its_digits(name, way):
    if name == "a product with ones" and way not in ("compiled", "unfused"):
        pytest.skip("eagerly a product is BLAS's")
    shape, f = SUMS[name]
    x = np.full(shape, 0.1, np.float32)
    exact = f(ml.array(x.astype(np.float64))).numpy()
    if way in backend.KERNELS:
        with backend.using_kernels(way):
            got = f(ml.array(x))
    else:
        got = ml.compile(f, without=("fusion",) if way == "unfused" else ())(x)
    assert got.dtype == np.float32 and got.shape == exact.shape
    np.testing.assert_allclose(got, exact, rtol=CLOSE)


@pytest.mark.parametrize("way", [*backend.KERNELS, "compiled"])
def test_what_is_put_on_one_place_many_times_keeps_its_digits(way):
    x, places = np.full(LONG, 0.1, np.float32), np.arange(LONG) % 2

    def f(x, places):
        return ml.grad(lambda y: ml.sum(ml.take(y, places) * x))(x[:2] * 0)

    if way == "compiled":
        got = ml.compile(f)(x, places)
    else:
        with backend.using_kernels(way):
            got = f(ml.array(x), ml.array(places))
    np.testing.assert_allclose(got, np.full(2, LONG / 2 * float(x[0])), rtol=CLOSE)


@pytest.mark.parametrize("shape", [(1000, 70), (70, 1000), (3, 700, 5), (700, 3, 600), (5, 2, 2)])
def test_a_sum_in_parts_is_every_term_once(shape):
    """Whole numbers, of which every sum is exact."""
    x = np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)
    axes = [(i,) for i in range(len(shape))] + [(0, len(shape) - 1), tuple(range(len(shape)))]

    def f(x):
        return [ml.sum(x * 1, axis) for axis in axes], [ml.sum(x.T + 1, axis) for axis in axes]

    expected = f(ml.array(x.astype(np.float64)))
    for got in (f(ml.array(x)), ml.compile(f)(x)):
        for a, b in zip(ml.tree.leaves(got), ml.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
