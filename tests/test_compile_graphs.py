"""Graphs with fan-out: what is used by several others, in every pass, is right for all of them."""

import numpy as np
import pytest
from test_compile import draws, equals_eager, ways

import mamlnp as ml
from mamlnp import grad
from mamlnp.compile import passes
from mamlnp.ops import linear


def residual(p, x):
    y = x @ p["o"]
    y = y + ml.relu(y @ p["a"]) @ p["b"]
    return ml.sum(ml.square(y @ p["h"]))


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"o": (4, 4), "a": (4, 6), "b": (6, 4), "h": (4, 5)}
    return {name: rng.standard_normal(s) * 0.5 for name, s in shapes.items()}


@ways
def test_a_residual_block_has_its_hessian_vector_product(without):
    def f(p, v, x):
        return ml.hvp(lambda p: residual(p, x), p, v)

    calls = [(parameters(i), parameters(i + 9), draws((3, 4))[0][0]) for i in range(2)]
    equals_eager(f, *calls, without=without, scale=10.0)


# What a sum of two products is used by besides.
USED_AGAIN = {
    "a product added to it, and another": lambda z, x, c, o: (z + x @ c, z @ o),
    "a product added to it, and a result": lambda z, x, c, o: (z, z + x @ c),
    "two products added to it": lambda z, x, c, o: (z + x @ c, z + x @ o),
    "a product of itself added to it": lambda z, x, c, o: z + z @ o,
    "itself": lambda z, x, c, o: z + z,
    "views of both": lambda z, x, c, o: (
        ml.reshape(z, (8, 2)) + ml.reshape(x @ c, (8, 2)),
        ml.transpose(z) @ o,
    ),
}


@ways
@pytest.mark.parametrize("name", USED_AGAIN)
def test_a_sum_of_products_that_is_used_again_keeps_its_value(name, without):
    def f(x, a, b, c, o):
        return USED_AGAIN[name](x @ a + x @ b, x, c, o)

    equals_eager(f, *draws(*[(4, 4)] * 5), without=without, scale=10.0)


@pytest.mark.parametrize("lead", [(1, 3), (2, 1), (3,), (), (2, 3)])
def test_large_windows_take_weights_that_serve_some_of_the_tasks(lead, monkeypatch):
    monkeypatch.setattr(passes, "LARGEST_WINDOWS", 0)

    def f(x, w):
        def out(xw):
            windows = linear.patches(xw[0], size=(3, 3), stride=1, padding=((0, 0), (0, 0)))
            return ml.reshape(windows, (2, 3, 18, 18)) @ xw[1]

        return out((x, w)), grad(lambda xw: (out(xw) ** 2).sum())((x, w))

    calls = draws((2, 3, 2, 5, 5, 2), (*lead, 18, 4))
    equals_eager(f, *calls, scale=100.0)
