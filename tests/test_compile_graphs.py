"""Graphs with fan-out: what is used by several others, in every pass, is right for all of them."""

from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from test_compile import WAYS, draws, equals_eager, largest, lifted, ways

import mamlnp as ml
from mamlnp import array, grad, maml, tree
from mamlnp.compile import PASSES, passes
from mamlnp.ops import linear
from mamlnp.tasks import Batch, Task


def residual(p, x):
    y = x @ p["o"]
    y = y + ml.relu(y @ p["a"]) @ p["b"]
    return ml.sum(ml.square(y @ p["h"]))


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    shapes: ClassVar = {"o": (4, 4), "a": (4, 6), "b": (6, 4), "h": (4, 5)}
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


# ---- graphs drawn at random, in which everything is used again and again

ALONE = [tuple(p for p in PASSES if p != name) for name in PASSES]  # what to leave out
ROWS, SIDE = 3, 4


class Drawn:
    """A network drawn by Hypothesis: every layer reads any earlier values, whatever else does.

    Subclasses say how values and weights are shaped, and which layers there are.
    """

    layers: ClassVar[dict[str, Any]]
    shapes: ClassVar[dict[str, tuple[int, ...]]]
    reads = 3  # values that a layer is given, and weights

    def __init__(self, data, most=6):
        draw = data.draw
        count = draw(st.integers(1, most))
        self.text, self.steps = [], []
        for i in range(count):
            name = draw(st.sampled_from(sorted(self.layers)))
            earlier = st.integers(0, i + 1)  # two inputs, and a value for every layer
            values = [draw(earlier) for _ in range(self.reads)]
            weights = [draw(st.sampled_from(["w0", "w1", "w2"])) for _ in range(self.reads)]
            self.text.append(f"v{i + 2} = {name} of {values} by {weights}")
            self.steps.append((self.layers[name], values, weights))
        outputs = st.lists(st.integers(0, count + 1), max_size=3)
        self.outputs = [*draw(outputs), count + 1]  # inputs, inner values, the same twice
        self.dtype = draw(st.sampled_from([np.float64, np.float32]))
        self.without = draw(st.sampled_from([(), (), (), *WAYS, *ALONE]))

    def __repr__(self):
        return "; ".join([*self.text, f"outputs {self.outputs}, {self.dtype.__name__}, "
                          f"without {self.without}"])  # fmt: skip

    def parameters(self, seed):
        rng = np.random.default_rng(seed)
        draw = {name: 0.4 * rng.standard_normal(shape) for name, shape in self.shapes.items()}
        return {name: x.astype(self.dtype) for name, x in draw.items()}

    def __call__(self, p):
        values = [p["x"], p["y"]]
        for layer, places, weights in self.steps:
            values.append(layer(p, *(values[i] for i in places), *(p[w] for w in weights)))
        return [values[i] for i in self.outputs]

    def loss(self, p):
        return sum((out * out * (i + 1)).sum() for i, out in enumerate(self(p))) * 0.1

    def derivatives(self, p, v):
        return self(p), grad(self.loss)(p), ml.hvp(self.loss, p, v)


def turned(x):
    return ml.swapaxes(x, -1, -2)


def flattened(x):
    return ml.reshape(x, (*x.shape[:-2], ROWS * SIDE))


class Matrices(Drawn):
    shapes: ClassVar = {
        "x": (ROWS, SIDE), "y": (ROWS, SIDE), "w0": (SIDE, SIDE), "w1": (SIDE, SIDE),
        "w2": (SIDE, SIDE), "wide": (2 * SIDE, SIDE), "b": (SIDE,),
    }  # fmt: skip
    layers: ClassVar = {
        "product": lambda p, x, y, z, a, b, c: x @ a,
        "turned product": lambda p, x, y, z, a, b, c: turned(a @ turned(x)),
        "sum": lambda p, x, y, z, a, b, c: x + y,
        "difference": lambda p, x, y, z, a, b, c: x - 0.5 * y,
        "relu": lambda p, x, y, z, a, b, c: ml.relu(x + ml.expand_dims(p["b"], -2)),
        "tanh": lambda p, x, y, z, a, b, c: ml.tanh(x),
        "two products": lambda p, x, y, z, a, b, c: x @ a + y @ b,
        "three products": lambda p, x, y, z, a, b, c: x @ a + y @ b + z @ c,
        "a product added": lambda p, x, y, z, a, b, c: x + y @ a,
        "residual": lambda p, x, y, z, a, b, c: x + ml.relu(x @ a) @ b,
        "dense": lambda p, x, y, z, a, b, c: ml.concatenate([x, y], -1) @ p["wide"],
        "gram": lambda p, x, y, z, a, b, c: ml.tanh(x @ turned(x)) @ y,
        "attention": lambda p, x, y, z, a, b, c: (
            ml.softmax((x @ a) @ turned(x @ b), axis=-1) @ (y @ c)
        ),
        "flattened": lambda p, x, y, z, a, b, c: ml.reshape(
            flattened(x @ a) + flattened(y @ b), x.shape
        ),
        "centred": lambda p, x, y, z, a, b, c: x - y.mean(-2, keepdims=True),
        "a column": lambda p, x, y, z, a, b, c: x + y @ a[..., :1],
        "turned sums": lambda p, x, y, z, a, b, c: turned(turned(x @ a) + turned(y @ b)),
    }


def _upwards(x):
    """Each pixel as four."""
    n, h, w, c = x.shape
    wide = ml.broadcast_to(ml.reshape(x, (n, h, 1, w, 1, c)), (n, h, 2, w, 2, c))
    return ml.reshape(wide, (n, 2 * h, 2 * w, c))


class Images(Drawn):
    reads = 2
    shapes: ClassVar = {
        "x": (2, 4, 4, 2), "y": (2, 4, 4, 2), "w0": (3, 3, 2, 2), "w1": (3, 3, 2, 2),
        "w2": (1, 1, 2, 2),
    }  # fmt: skip
    layers: ClassVar = {
        "convolution": lambda p, x, y, a, b: ml.conv2d(x, a),
        "two convolutions": lambda p, x, y, a, b: ml.conv2d(x, a) + ml.conv2d(y, b),
        "residual": lambda p, x, y, a, b: x + ml.conv2d(ml.relu(ml.conv2d(x, a)), b),
        "max-pool branch": lambda p, x, y, a, b: y + _upwards(ml.max_pool2d(ml.conv2d(x, a), 2)),
        "sum": lambda p, x, y, a, b: x + y,
        "product": lambda p, x, y, a, b: x * ml.tanh(y),
        "strided": lambda p, x, y, a, b: y + _upwards(ml.conv2d(x, a, stride=2)),
    }


def first_calls(network):
    return [(network.parameters(seed), network.parameters(seed + 9)) for seed in (1, 2)]


def replays(network, f, calls):
    scale = max(1.0, *(largest(f(*lifted(args))) for args in calls))
    equals_eager(f, *calls, without=network.without, scale=scale)


windows = st.sampled_from([passes.LARGEST_WINDOWS, 0])  # made by the line, where they are larger
few = settings(max_examples=max(5, settings.default.max_examples // 4))


@few
@given(data=st.data())
def test_a_network_replays_with_its_derivatives(data):
    network = Matrices(data)
    replays(network, network.derivatives, first_calls(network))


@few
@given(data=st.data(), largest_windows=windows)
def test_a_network_of_images_replays_with_its_derivatives(data, largest_windows):
    network = Images(data, most=3)
    with mock.patch.object(passes, "LARGEST_WINDOWS", largest_windows):
        replays(network, network.derivatives, first_calls(network))


@given(data=st.data(), largest_windows=windows)
@pytest.mark.parametrize("kind", [Matrices, Images])
def test_every_pass_and_plan_of_a_network_is_right(kind, data, largest_windows):
    """Plans, which debug_compile holds against the function, without the kernels."""
    network = kind(data)
    p, v = (tree.map(array, x) for x in first_calls(network)[0])
    with mock.patch.object(passes, "LARGEST_WINDOWS", largest_windows):
        ml.compile(network.derivatives, without=network.without).explain(p, v)


@few
@given(data=st.data(), method=st.sampled_from(["backprop", "hvp"]))
def test_a_meta_gradient_of_a_network_replays(data, method):
    network = Matrices(data, most=4)

    def loss(params, batch):
        *_, out = network({**params, "x": batch.x, "y": ml.tanh(batch.x)})
        return ml.losses.mse(out, batch.y, reduction="mean")

    def f(params, task):
        how = {"inner_lr": 0.1, "inner_steps": 2, "method": method}
        return maml.meta_gradient(loss, params, task, **how)

    def call(seed):
        params = network.parameters(seed)
        shape = 2, ROWS, SIDE  # two tasks
        x, y = params.pop("x"), params.pop("y")
        support = Batch(np.stack([x, y]), np.stack([y, x]))
        query = Batch(np.zeros(shape, x.dtype) + x, np.zeros(shape, x.dtype) + y)
        return params, Task(support, query)

    replays(network, f, [call(1), call(2)])
