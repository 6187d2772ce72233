"""The compiler: a replay is f again, on any data, in any order, and says so when it cannot be."""

import ast
import functools
import inspect
import math
import os
import random
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import mamlnp as ml
from mamlnp import array, checks, grad, maml, tree
from mamlnp.array import Array
from mamlnp.backend.machine import Blas
from mamlnp.compile import PASSES, plan as planning
from mamlnp.compile.plan import Host, Loop
from mamlnp.errors import CaptureError, ShapeError
from mamlnp.gradcheck import TOLERANCES
from mamlnp.ops import gather

HERE = Path(__file__).name
PACKAGE = Path(ml.__file__).parent
seeds = st.integers(0, 2**32 - 1)
WAYS = [(), *((name,) for name in PASSES), PASSES]  # what to leave out
ways = pytest.mark.parametrize("without", WAYS, ids=lambda w: " and ".join(w)[:20] or "none out")


def largest(*trees):
    arrays = [np.asarray(x.value) for x in tree.leaves(trees) if isinstance(x, Array)]
    return max(
        (float(np.abs(a).max()) for a in arrays if a.size and a.dtype.kind == "f"), default=0
    )


def agree(got, expected, scale=0.0):
    """The same trees: structure, types, shapes, and values to rounding."""

    def leaf(a, b):
        assert type(a) is type(b)
        if not isinstance(b, Array):
            assert a == b
            return
        a, b = a.value, np.asarray(b.value)
        assert type(a) is np.ndarray
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b)
            return
        tolerance = TOLERANCES["float32" if b.dtype == np.float32 else "rounding"]
        finite = b[np.isfinite(b)]
        bound = tolerance * max(scale, float(np.abs(finite).max(initial=0.0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)

    assert tree.map(lambda x: 0, got) == tree.map(lambda x: 0, expected)
    tree.map(leaf, got, expected)


def lifted(args):
    return tree.map(lambda x: array(x) if isinstance(x, np.ndarray) else x, args)


def copied(args):
    return tree.map(lambda x: array(x) if hasattr(x, "dtype") else x, args)


def equals_eager(f, *calls, without=(), scale=0.0):
    """Compiled once, f gives at every call, and at the first again, what it gives eagerly; what was
    given stays as it is, and so do the arguments. Returns the compiled function."""
    compiled = ml.compile(f, without=without)
    given = []
    for args in (*calls, calls[0]):
        before = copied(args)
        expected = f(*lifted(args))
        got = compiled(*args)
        agree(got, expected, scale)
        agree(copied(args), before)
        given.append((got, copied(got)))
    for got, kept in given:
        agree(got, kept)
    return compiled


def draws(*shapes, seed=0, calls=2, dtype=np.float64):
    """Arguments of these shapes for some calls."""
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(s).astype(dtype) for s in shapes] for _ in range(calls)]


def only(compiled):
    """The one Traced of a compiled function."""
    (traced,) = compiled._known.values()
    return traced


def operations(compiled):
    return [node.op for node in compiled.latest().graph.nodes()]


def steps(compiled):
    """What is done: "loop", or an operation's name."""
    return ["loop" if isinstance(s, Loop) else s.op for s in compiled.latest().plan.steps]


def held(compiled):
    return compiled.latest().plan.arena.size


# ---- layers, losses, meta-gradients

LAYERS = checks._layers()
SMALL = ["linear", "batch_norm of vectors", "mlp with batch norm", "logsumexp", "conv2d"]


def shuffled(x, rng):
    x = np.asarray(x.value if isinstance(x, Array) else x)
    return rng.permutation(x.reshape(-1)).reshape(x.shape)


def derivatives(f):
    """f's value, gradient and second derivative, each along given weights."""

    def all_three(args, weights):
        first = grad(lambda xs: (f(*xs) * weights[0]).sum())
        second = grad(lambda xs: ml.dot(first(xs), weights[1]))
        return f(*args), first(args), second(args)

    return all_three


def layer_calls(name, dtype=np.float64):
    f, args = LAYERS[name]
    rng = np.random.default_rng(0)
    args = tree.map(lambda x: np.asarray(x.value if isinstance(x, Array) else x, dtype), args)
    out = f(*lifted(args))

    def weights():
        like = tree.map(lambda x: rng.standard_normal(x.shape).astype(dtype), args)
        return [rng.standard_normal(out.shape).astype(dtype), like]

    other = tree.map(lambda x: shuffled(x, rng), args)
    return derivatives(f), [(args, weights()), (other, weights())]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_replays_with_its_derivatives(name):
    f, calls = layer_calls(name)
    equals_eager(f, *calls, scale=1.0)


@pytest.mark.parametrize("name", ["mlp with batch norm", "cross_entropy", "max_pool2d"])
def test_a_layer_replays_in_float32(name):
    f, calls = layer_calls(name, np.float32)
    equals_eager(f, *calls, scale=1.0)


@ways
@pytest.mark.parametrize("name", SMALL)
def test_a_layer_replays_without_a_pass(name, without):
    f, calls = layer_calls(name)
    equals_eager(f, *calls, without=without, scale=1.0)


META = checks._meta_gradients()


def meta_calls(name, method, dtype=np.float64):
    loss, params, task, inner = META[name]
    rng = np.random.default_rng(0)

    def f(params, task):
        return maml.meta_gradient(loss, params, task, method=method, **inner)

    def typed(x):
        x = np.asarray(x.value if isinstance(x, Array) else x)
        return x.astype(dtype) if x.dtype.kind == "f" else x

    calls = [tree.map(typed, (params, task))]
    calls.append(tree.map(lambda x: shuffled(x, rng), calls[0]))
    return f, calls


@pytest.mark.parametrize(
    ("name", "method"),
    [(n, m) for n in META for m in ("backprop", "hvp") if m == "backprop" or "Adam" not in n],
)
def test_a_meta_gradient_replays(name, method):
    f, calls = meta_calls(name, method)
    equals_eager(f, *calls, scale=1.0)


def test_a_meta_gradient_replays_in_float32():
    f, calls = meta_calls("MAML, mlp, 1 step", "backprop", np.float32)
    equals_eager(f, *calls, scale=1.0)


@ways
def test_a_meta_gradient_replays_without_a_pass(without):
    f, calls = meta_calls("MAML, mlp, 3 steps", "backprop")
    equals_eager(f, *calls, without=without, scale=1.0)


def test_the_hessian_of_a_meta_loss_replays():
    loss, params, task, inner = META["MAML, mlp, 1 step"]
    _, calls = meta_calls("MAML, mlp, 1 step", "backprop")

    def f(params, task):
        return ml.hvp(lambda p: maml.meta_loss(loss, p, task, **inner).sum(), params, params)

    equals_eager(f, *calls, scale=1.0)


def large_convolution(padding="SAME", stride=1, tasks=(), dtype=np.float32):
    """Windows of more than a megabyte, which are multiplied a few lines at a time."""
    rng = np.random.default_rng(0)

    def f(x, w, ct):
        out = ml.conv2d(x, w, stride=stride, padding=padding)
        first = grad(lambda xw: (ml.conv2d(*xw, stride=stride, padding=padding) ** 2 * ct).sum())
        return out, first((x, w))

    shapes = (*tasks, 3, 42, 42, 40), (*tasks, 3, 3, 40, 4)
    out = f(*lifted([np.zeros(s, dtype) for s in shapes]), 1.0)[0]
    return f, [
        tuple(rng.standard_normal(s).astype(dtype) for s in (*shapes, out.shape)) for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("padding", "stride", "tasks"), [("SAME", 1, ()), ("VALID", 2, (2,)), (2, 1, (1,))]
)
def test_products_with_large_windows_make_them_by_the_line(padding, stride, tasks):
    f, calls = large_convolution(padding, stride, tasks)
    if stride == 2:
        calls = [
            (np.concatenate([x, x], -4), w, np.concatenate([ct, ct], -4)) for x, w, ct in calls
        ]
    compiled = equals_eager(f, *calls, scale=30.0)
    assert {"conv", "conv_weights", "conv_images"} <= set(operations(compiled))
    assert "patches" not in operations(compiled)


def test_large_windows_add_to_what_is_there():
    def f(x, w, v):  # two gradients of each kind, which are sums of products
        return grad(lambda xw: (ml.conv2d(*xw) * v + ml.conv2d(xw[0], xw[1] * 2.0) ** 2).sum())(
            (x, w)
        )

    calls = draws((3, 42, 42, 40), (3, 3, 40, 4), (3, 42, 42, 4), dtype=np.float32)
    compiled = equals_eager(f, *calls, scale=100.0)
    sums = [n.op for n in compiled.latest().graph.nodes() if len(n.nodes) == 3 and "conv" in n.op]
    assert sums


@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (2, 1, 4, 4, 2)])
@pytest.mark.parametrize("size", [2, (3, 2), 3])
def test_pooling_by_winners_is_pooling(shape, size):
    if np.min(shape[-3:-1]) < np.max(size):
        size = 2

    def f(x, ct):
        def pooled(x):
            return ml.max_pool2d(x, size)

        first = grad(lambda x: (pooled(x) ** 3 * ct).sum())
        return pooled(x), first(x), grad(lambda x: ml.dot(first(x), x))(x)

    rng = np.random.default_rng(0)
    x = rng.integers(-1, 2, shape).astype(float)  # with ties
    out = ml.max_pool2d(x, size)
    calls = [(x, np.ones(out.shape)), (x[..., ::-1, :, :] * 1.5, rng.standard_normal(out.shape))]
    calls.append((np.where(rng.random(shape) < 0.1, np.nan, x), np.ones(out.shape)))
    compiled = equals_eager(f, *calls)
    square = np.max(size) == np.min(size)
    assert ("pool_winners" in operations(compiled)) == square or shape[-2] == 6


def test_pooling_positions_that_are_asked_for_are_given():
    def f(x):
        positions = ml.ops.pool.pool_positions(x, size=(2, 2), stride=2)
        return positions, ml.take(x, positions), ml.take(x * 2, positions)

    equals_eager(f, *draws((1, 4, 4, 2)))


def test_overlapping_pools_replay():
    equals_eager(
        grad(lambda x: (ml.max_pool2d(x, 3, 2) ** 2).sum()), *draws((2, 7, 7, 2)), scale=1.0
    )


# ---- random expressions

SIDES = st.sampled_from([0, 1, 1, 2, 3])
UNARY = ["neg", "abs", "tanh", "relu", "sin", "exp of -abs"]
BINARY = ["add", "sub", "mul", "maximum", "minimum", "less", "equal"]


def unary(name, x):
    return ml.exp(-ml.abs(x)) if name == "exp of -abs" else getattr(ml, name)(x)


def binary(name, a, b):
    if name in ("less", "equal"):
        return ml.where(a < b if name == "less" else a == b, a, b)
    if name == "mul":
        return ml.tanh(a * b) if hasattr(a, "dtype") and hasattr(b, "dtype") else a * b
    return {"add": lambda: a + b, "sub": lambda: a - b}.get(
        name, lambda: getattr(ml, name, None)(a, b)
    )()


class Program:
    """A random expression: instructions, each a function of the values so far.

    Every choice is Hypothesis's, so that what fails shrinks to a small program.
    """

    def __init__(self, data, dtype):
        draw = data.draw
        self.inputs = [
            tuple(draw(st.lists(SIDES, min_size=0, max_size=3)))
            for _ in range(draw(st.integers(1, 3)))
        ]
        self.instructions, self.text = [], []
        self.dtype = dtype
        values = lifted(self.arguments(0))
        for _ in range(draw(st.integers(1, 9))):
            made = self._instruction(draw, values)
            if made is not None:
                text, places, function = made
                self.text.append(f"v{len(values)} = {text} of {places}")
                self.instructions.append((places, function))
                values.append(function(*(values[p] for p in places)))
        places = st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3)
        self.outputs = [*draw(places), len(values) - 1]

    def arguments(self, seed):
        rng = np.random.default_rng(seed)  # many equal elements: ties
        return [
            rng.choice([-1.5, -0.5, 0.0, 0.25, 1.0, 2.0], s).astype(self.dtype) for s in self.inputs
        ]

    def __repr__(self):
        return f"inputs {self.inputs}; " + "; ".join(self.text) + f"; outputs {self.outputs}"

    def values(self, *inputs):
        values = list(inputs)
        for places, function in self.instructions:
            values.append(function(*(values[p] for p in places)))
        return values

    def __call__(self, *inputs):
        values = self.values(*inputs)
        return [values[p] for p in self.outputs]

    def _instruction(self, draw, values):
        place = st.integers(0, len(values) - 1)
        i = draw(place)
        x = values[i]
        kind = draw(
            st.sampled_from(
                ["unary", "scalar", "binary", "reduce", "move", "slice", "matmul", "data"]
            )
        )
        if kind == "unary":
            name = draw(st.sampled_from(UNARY))
            return name, [i], functools.partial(unary, name)
        if kind == "scalar":
            name, number = (
                draw(st.sampled_from(BINARY)),
                draw(st.sampled_from([0, 1, 2, -0.5, True])),
            )
            if draw(st.booleans()):
                return f"{name} {number!r}", [i], lambda x: binary(name, x, number)
            return f"{number!r} {name}", [i], lambda x: binary(name, number, x)
        if kind == "binary":
            fitting = [j for j, y in enumerate(values) if broadcast(x.shape, y.shape)]
            j = draw(st.sampled_from(fitting))
            name = draw(st.sampled_from(BINARY))
            return name, [i, j], functools.partial(binary, name)
        if kind == "reduce":
            axes = draw(st.sampled_from([None, *range(x.ndim), tuple(range(x.ndim))[:2]]))
            chosen = range(x.ndim) if axes is None else np.atleast_1d(axes)
            count = math.prod(x.shape[a] for a in chosen)
            name = draw(st.sampled_from(["sum", "mean", "max", "min"] if count else ["sum"]))
            keep = draw(st.booleans())
            return f"{name} {axes} {keep}", [i], lambda x: getattr(x, name)(axes, keepdims=keep)
        if kind == "move":
            return self._move(draw, i, x)
        if kind == "slice":
            index = tuple(
                draw(
                    st.sampled_from([slice(None), slice(None, None, -1), slice(1, None), slice(-1)])
                )
                if s < 2 or draw(st.booleans())
                else draw(st.sampled_from([0, -1, slice(None, None, 2), slice(None, None, -2)]))
                for s in x.shape
            )
            if not any(isinstance(s, slice) for s in index):  # see the test of single elements
                index = (*index, None)
            return f"{index}", [i], lambda x: x[index]
        if kind == "matmul":
            fitting = [j for j, y in enumerate(values) if multiplies(x, y)]
            if not fitting:
                return ("matmul with its transpose", [i], gram) if x.ndim >= 2 else None
            return "matmul", [i, draw(st.sampled_from(fitting))], lambda a, b: ml.tanh(a @ b)
        return self._data(draw, i, x)

    def _move(self, draw, i, x):
        name = draw(st.sampled_from(["transpose", "reshape", "broadcast", "grow", "pad", "join"]))
        if name == "transpose":
            axes = draw(st.permutations(range(x.ndim)))
            return f"transpose {axes}", [i], lambda x: x.transpose(axes) if x.ndim else x
        if name == "reshape":
            shape = draw(st.sampled_from([x.shape[::-1], (x.size,), (1, x.size, 1), (*x.shape, 1)]))
            return f"reshape {shape}", [i], lambda x: x.reshape(shape)
        if name == "broadcast":
            shape = tuple(2 if s == 1 else s for s in x.shape)
            shape = (*draw(st.sampled_from([(), (2,), (0,), (1,)])), *shape)[-4:]
            fits = broadcast(x.shape, shape) == shape
            return (
                (f"broadcast {shape}", [i], lambda x: ml.broadcast_to(x, shape)) if fits else None
            )
        if name == "grow" and x.ndim < 4:
            axis = draw(st.integers(0, x.ndim))
            return f"expand {axis}", [i], lambda x: ml.expand_dims(x, axis)
        if name == "pad" and x.size < 100:
            return "pad", [i], lambda x: ml.pad(x, [(0, 1)] * x.ndim)
        if name == "join" and x.ndim and x.size < 100:
            axis = draw(st.integers(0, x.ndim - 1))
            return f"join {axis}", [i], lambda x: ml.concatenate([x, x * 2], axis)
        return None

    def _data(self, draw, i, x):
        name = draw(st.sampled_from(["mask", "mask times", "integers", "ones", "known", "take"]))
        if name == "mask":
            return name, [i], lambda x: ml.where(x > 0, x, -0.5)
        if name == "mask times":
            return name, [i], lambda x: (x > 0.25) * x
        if name == "integers":
            return name, [i], lambda x: x * (x > 0).astype(int) + (x < 0).astype(int)
        if name == "ones":
            return name, [i], lambda x: ml.ones_like(x) * 2 + x * ml.zeros_like(x)
        if name == "known":
            numbers = np.arange(x.shape[-1] if x.ndim else 1)
            return name, [i], lambda x: x + array(numbers.reshape(x.shape[-1:]))
        if not x.size:
            return None
        return (
            name,
            [i],
            lambda x: (
                ml.take(
                    x, (x * 2).astype(int) % 1 + array([0, x.size - 1]).reshape(2, *[1] * x.ndim)
                )
                if False
                else ml.take(x, np.array([0, x.size - 1, -1]))
            ),
        )


def gram(x):
    return ml.tanh(x @ x.swapaxes(-1, -2))


def broadcast(a, b):
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


def multiplies(a, b):
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        return False
    return broadcast(a.shape[:-2], b.shape[:-2]) is not None


def with_gradient(program):
    def f(*inputs):
        def total(inputs):
            return sum((out * (i + 1)).sum() for i, out in enumerate(program(*inputs)))

        return program(*inputs), grad(total)(list(inputs))

    return f


def random_graphs(data, dtype, without=()):
    program = Program(data, dtype)
    f = with_gradient(program)
    calls = [program.arguments(seed) for seed in (1, 2)]
    scale = max(largest(program.values(*lifted(c)), f(*lifted(c))) for c in calls)
    equals_eager(f, *calls, without=without, scale=scale)


@given(data=st.data())
def test_random_graphs_replay_with_their_gradients(data):
    random_graphs(data, np.float64, data.draw(st.sampled_from([(), (), *WAYS])))


@settings(max_examples=5)
@given(data=st.data())
def test_random_graphs_replay_in_float32(data):
    random_graphs(data, np.float32)
