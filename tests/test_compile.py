"""The compiler: a replay is f again, on any data, in any order, and says so when it cannot be."""

import ast
import functools
import gc
import inspect
import math
import os
import random
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from strategies import Program

import mamlnp as ml
from mamlnp import array, checks, grad, tree
from mamlnp.array import Array
from mamlnp.backend.generated import EXPRESSIONS
from mamlnp.backend.machine import Blas
from mamlnp.compile import PASSES, passes, plan as planning
from mamlnp.compile.plan import Eager, Loop
from mamlnp.errors import CaptureError, ShapeError
from mamlnp.gradcheck import TOLERANCES
from mamlnp.losses import accuracy, cross_entropy
from mamlnp.op import registry
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


META = checks._algorithms()


def meta_calls(name, method, dtype=np.float64):
    make, theta, task = META[name]
    rng = np.random.default_rng(0)
    algorithm = make() if method == "backprop" else make(method=method)
    f = algorithm.gradient

    def typed(x):
        x = np.asarray(x.value if isinstance(x, Array) else x)
        return x.astype(dtype) if x.dtype.kind == "f" else x

    calls = [tree.map(typed, (algorithm.init(theta), task))]
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
    make, *_ = META["MAML, mlp, 1 step"]
    algorithm = make()
    _, calls = meta_calls("MAML, mlp, 1 step", "backprop")

    def f(params, task):
        def meta_loss(params):
            adapted = algorithm.adapt(params, task.support)
            return algorithm.loss(adapted, task.query).sum()

        return ml.hvp(meta_loss, params, params)

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


# ---- purity


class Pair(NamedTuple):
    left: object
    right: object


def test_results_share_no_memory():
    def f(x, y):
        return x, x, x.T, x[1:], x + y, (x + y).reshape(-1), ml.ones_like(x), KNOWN, KNOWN

    (a, b), (c, d) = draws((3, 3), (3, 3))
    compiled = ml.compile(f)
    results = [array_.value for args in ((a, b), (a, b), (c, d)) for array_ in compiled(*args)]
    everything = [*results, a, b, c, d, KNOWN.value, *(r._block for r in only(compiled).replays)]
    for i, x in enumerate(everything):
        assert not any(np.shares_memory(x, y) for y in everything[i + 1 :])
    assert all(x.flags.owndata and x.flags.c_contiguous for x in results)


KNOWN = array([1.0, 2.0, 3.0])


def test_inputs_are_never_the_place_of_a_result():
    def f(x, y):  # all are read for the last time as results of their size are made
        return ml.exp(x) + 1.0, x * y + y, (x @ y + x).sum()

    equals_eager(f, *draws((4, 4), (4, 4)))
    x = array(np.ones((4, 4)))
    ml.compile(f)(x, x)
    np.testing.assert_array_equal(x.value, np.ones((4, 4)))


def every_other(x):
    return np.repeat(x, 2, axis=-1)[..., ::2]


def backwards(x):
    return x[::-1].copy()[::-1]


def unaligned(x):
    room = np.zeros(x.nbytes + 1, np.uint8)
    moved = room[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    "laid", [np.asfortranarray, every_other, backwards, unaligned, read_only, array, np.asarray]
)
def test_arguments_may_lie_in_memory_in_any_way(laid):
    compiled = ml.compile(lambda x, y: (x @ y, (x * 2).sum(0)))
    for args in draws((3, 4), (4, 3)):
        agree(compiled(*map(laid, args)), (array(args[0] @ args[1]), array((args[0] * 2).sum(0))))
    assert len(compiled._known) == 1


def test_one_array_may_be_several_arguments():
    compiled = ml.compile(lambda x, y: x - 2 * y)
    x = np.ones(3)
    for args in ((x, x), (x, 3 * x), (x[:3], x[::-1])):
        agree(compiled(*args), array(args[0] - 2 * args[1]))
    assert len(compiled._known) == 1


def test_arguments_and_results_are_trees():
    def f(args, _nothing):
        pair, rest = args["pair"], args["rest"]
        made = Pair(pair.left * 2, [pair.right, None, rest[0]])
        return {"made": made, "kept": (None, "text", 3, rest[1]), "none": {}}

    def call(seed):
        (x, y, z, w), _ = draws((2,), (3,), (), (2, 2), seed=seed)
        return {"pair": Pair(x, array(y)), "rest": [z, (w, None)]}, None

    compiled = equals_eager(f, call(0), call(1))
    assert len(compiled._known) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((np.ones(2), 2), (np.ones(2), 3)),
        ((np.ones(2), 2), (np.ones(2), 2.5)),
        ((np.ones(2, int), 2), (np.ones(2, int), 2.0)),
        ((np.ones(2, int), 1), (np.ones(2, int), True)),
        ((np.ones(2), 2), (np.ones(3), 2)),
        ((np.ones((2, 1)), 2), (np.ones((1, 2)), 2)),
        ((np.ones(2), 2), (np.ones(2, np.float32), 2)),
        ((np.ones(2), 2), (np.ones(2, int), 2)),
        (([np.ones(2)], "twice"), ((np.ones(2),), "twice")),
        (([np.ones(2)], "twice"), ([np.ones(2)], "thrice")),
        (([np.ones(2)], "twice"), ([np.ones(2), np.ones(2)], "twice")),
        (({"a": np.ones(2)}, None), ({"b": np.ones(2)}, None)),
        (({"a": np.ones(2), "b": np.zeros(2)}, 0), ({"b": np.ones(2), "a": np.zeros(2)}, 0)),
    ],
)
def test_another_kind_of_arguments_is_another_trace(first, second):
    factors = {"twice": 2, "thrice": 3, None: 1}

    def f(x, how):
        factor = factors.get(how, how)
        return tree.map(lambda leaf: (leaf * factor, leaf.shape), x)

    compiled = ml.compile(f)
    for args in (first, second, first):
        agree(compiled(*args), f(*lifted(args)))
    assert len(compiled._known) == 2


def test_the_last_plans_are_kept_and_too_many_traces_are_told():
    compiled = ml.compile(lambda x, n: x + n)
    x = np.zeros(1)
    with pytest.warns(UserWarning, match=r"traced 64 times.*pass array\(x\)"):
        for n in range(70):
            assert compiled(x, n).item() == n
    assert len(compiled._known) == 16
    assert compiled(x, 0).item() == 0


def test_an_unhashable_argument_is_refused_by_name():
    def f(x, names):
        return x

    with pytest.raises(CaptureError, match=r"^compile\(f\): an argument that is no array must be"):
        ml.compile(f)(np.ones(2), {"a"})


def test_a_pass_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"no pass \['speed'\]. There are"):
        ml.compile(lambda x: x, without=["speed", "fusion"])


def test_a_compiled_function_keeps_its_name():
    def doubled(x):
        """Twice."""
        return 2 * x

    compiled = ml.compile(doubled)
    assert (compiled.__name__, compiled.__doc__, compiled.__wrapped__) == (
        "doubled",
        "Twice.",
        doubled,
    )


def test_threads_may_share_a_compiled_function():
    def f(x):
        y = ml.tanh(x @ x.T)
        return (y @ y).sum(0), grad(lambda x: ml.tanh(x @ x).sum())(x)

    compiled = ml.compile(f)
    calls = [draws((40, 40), seed=seed)[0] for seed in range(4)]
    expected = [f(array(x)) for (x,) in calls]
    barrier, failures = threading.Barrier(4), []

    def work(i):
        barrier.wait()
        try:
            for _ in range(30):
                agree(compiled(*calls[i]), expected[i])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(compiled._known) == 1


def test_a_replay_that_failed_is_used_again():
    compiled = ml.compile(lambda x, i: ml.take(x, i))
    x = np.arange(3.0)
    for _ in range(3):
        compiled(x, np.array([0]))
        with pytest.raises(ShapeError):
            compiled(x, np.array([3]))
    assert len(only(compiled).replays) == 1


# ---- transforms


def cubes(x, y):
    return (ml.sin(x) ** 3 * y).sum()


TRANSFORMS = {
    "hvp": lambda x, v: ml.hvp(lambda x: cubes(x, v), x, v),
    "jvp": lambda x, v: ml.jvp(lambda x: x**3 * v, (x,), (v,)),
    "jacobian": lambda x, v: ml.jacobian(lambda x: ml.sin(x) * x[0:1] * v)(x),
    "hessian": lambda x, v: ml.hessian(lambda x: cubes(x, v))(x),
    "third": lambda x, v: grad(lambda x: ml.dot(ml.hvp(lambda x: cubes(x, v), x, v), v))(x),
    "checkpoint": lambda x, v: grad(ml.checkpoint(lambda x: cubes(x * v, v)))(x),
    "hvp of checkpoint": lambda x, v: ml.hvp(ml.checkpoint(lambda x: cubes(x, v)), x, v),
    "vjp": lambda x, v: ml.vjp(lambda x: x * v, x)[1](v),
    "confusion": lambda x, v: grad(lambda x: (x * grad(lambda y: (x + y).sum())(v)).sum())(x),
    "stop_gradient": lambda x, v: grad(lambda x: (x * ml.stop_gradient(x * v)).sum())(x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_replays(name):
    equals_eager(TRANSFORMS[name], *draws((3,), (3,)), scale=10.0)


def test_a_compiled_function_is_itself_where_it_is_differentiated():
    runs = []

    def f(x):
        runs.append(0)
        return (ml.sin(x) ** 3).sum()

    compiled = ml.compile(f)
    (x,), (v,) = draws((4,))
    agree(grad(compiled)(x), grad(f)(array(x)))
    agree(ml.hvp(compiled, x, v), ml.hvp(f, array(x), array(v)))
    agree(ml.jvp(compiled, (x,), (v,)), ml.jvp(f, (array(x),), (array(v),)))
    assert not compiled._known
    agree(compiled(x), f(array(x)))
    count = len(runs)
    compiled(v)
    assert len(runs) == count


def test_a_compiled_function_within_another_is_part_of_it():
    inner = ml.compile(lambda x: ml.sin(x) * 2)
    outer = equals_eager(lambda x: inner(x) + grad(lambda x: inner(x).sum())(x), *draws((3,)))
    assert steps(outer) == ["loop"]


def test_nothing_above_it_knows_of_the_compiler():
    above = {"__init__", "__main__", "cli", "compile", "experiments", "parallel"}
    above |= {"figures", "landscape", "rl"}  # its callers too
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).with_suffix("").parts[0] not in above:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in getattr(node, "names", ()) if hasattr(a, "asname")]
                if isinstance(node, ast.ImportFrom):
                    names.append(node.module or "")
                assert not any(name.split(".")[0] == "compile" for name in names), path
                assert not any(name.startswith("mamlnp.compile") for name in names), path


# ---- what cannot be captured


def here():
    return inspect.currentframe().f_back.f_lineno


LINES = [
    lambda x: float(x),
    lambda x: int(x),
    lambda x: bool(x > 0),
    lambda x: x.item(),
    lambda x: x.numpy(),
    lambda x: np.asarray(x),
    lambda x: [0, 1, 2][x.astype(int)],
    lambda x: x if x > 0 else -x,
    lambda x: math.sin(x),
    lambda x: ml.stack([x, x])[ml.stack([x, x]) > 0],
    lambda x: x + np.random.default_rng().random(3),
    lambda x: array([x]),
]


@pytest.mark.parametrize("f", LINES, ids=lambda f: str(f.__code__.co_firstlineno - 1))
def test_what_needs_a_number_says_in_which_line(f):
    line = f.__code__.co_firstlineno
    with pytest.raises(CaptureError) as caught:
        ml.compile(f)(array(2.0))
    assert str(caught.value).startswith(f"{__file__}:{line}: ")


def test_the_line_is_the_users_though_the_library_asked():
    def branch(x):
        return x if x > 0 else -x

    def f(x):
        return grad(branch)(x)

    with pytest.raises(CaptureError) as caught:
        ml.compile(f)(array(2.0))
    assert str(caught.value).startswith(f"{__file__}:{branch.__code__.co_firstlineno + 1}: ")
    assert HERE in str(caught.value)


changing = {
    "a number": lambda x: x * random.random(),
    "a constant": lambda x: x + np.random.default_rng().random(3),
    "another operation": lambda x: random_one([ml.sin, ml.cos])(x),
    "another shape": lambda x: x.reshape(random_one([(1, 3), (3, 1)])),
    "more operations": lambda x: functools.reduce(ml.add, [x] * random_one([2, 5])),
}
TURN = iter(range(1 << 30))


def random_one(options):
    return options[next(TURN) % len(options)]


@pytest.mark.parametrize("what", changing)
def test_a_function_that_differs_at_each_run_is_refused(what):
    compiled = ml.compile(changing[what])
    with pytest.raises(CaptureError, match="each time"):
        compiled(np.ones(3))
    assert not compiled._known


def test_a_function_that_draws_the_same_is_taken():
    def f(x):
        return x + np.random.default_rng(0).random(3)

    equals_eager(f, *draws((3,)))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x @ x,
        lambda x: x + ml.ones_like(x).T,
        lambda x: x.reshape(5),
        lambda x: x.sum(2),
        lambda x: ml.concatenate([x, x[0:1].T]),
        lambda x: ml.conv2d(x, x),
        lambda x: ml.take(x, [9]),
        lambda x: x[5],
    ],
)
def test_errors_of_shape_are_the_eager_ones(f):
    x = np.ones((2, 3))
    with pytest.raises(Exception) as eager:
        f(array(x))
    with pytest.raises(type(eager.value)) as compiled:
        ml.compile(f)(x)
    if not isinstance(eager.value.__cause__, ValueError) or "matmul" not in str(eager.value):
        assert str(compiled.value) == str(eager.value)


def labelled(score):
    return lambda x, labels: score(x.reshape(2, 3), labels)


KERNEL_CHECKED = {
    "cross_entropy": (
        labelled(functools.partial(cross_entropy, reduction="mean")),
        [[0, 2], [1, 1]],
        [[0, 3], [-1, 0]],
    ),
    "accuracy": (labelled(accuracy), [[0, 2], [1, 1]], [[0, 3], [-1, 0]]),
    "take": (ml.take, [[5, -6], [0, 1]], [[6, 0], [0, -7]]),
    "put": (lambda x, i: gather.put(x[0:2], i, (3,)), [[2, -3], [1, 1]], [[3, 0], [0, -4]]),
    "grad of take": (
        lambda x, i: grad(lambda x: (ml.take(x, i) ** 2).sum())(x),
        [[5, -6], [0, 0]],
        [[6, 0], [0, -7]],
    ),
}
HOST_CHECKED = {
    "take along an axis": (
        lambda x, i: ml.take(x.reshape(2, 3), i, 1),
        [[2, -3], [0, 1]],
        [[3, 0], [0, -4]],
    ),
    "getitem": (lambda x, i: x[i], [[5, -6], [0, 1]], [[6, 0], [0, -7]]),
    "take_along_axis": (
        lambda x, i: ml.take_along_axis(x.reshape(2, 3), i.reshape(2, 1), 1),
        [[2, -3], [0, 1]],
        [[3, 0], [0, -4]],
    ),
}


def found_at_replay(f, good, bad, dtype=np.int64):
    """Bad data raises what it does eagerly, and leaves nothing behind for good data."""
    compiled = ml.compile(f)
    x = np.arange(6.0)
    for indices in [*good, *bad, *good, *bad, *bad, *good]:
        i = np.array(indices, dtype)
        if indices in good:
            agree(compiled(x, i), f(array(x), array(i)))
        else:
            with pytest.raises(ShapeError) as eager:
                f(array(x), array(i))
            with pytest.raises(ShapeError) as caught:
                compiled(x, i)
            assert str(caught.value) == str(eager.value)
    assert len(compiled._known) == 1


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("name", KERNEL_CHECKED)
def test_bad_data_met_at_replay_is_told_as_ever(name, dtype):
    f, good, bad = KERNEL_CHECKED[name]
    found_at_replay(f, good, bad, dtype)


@pytest.mark.parametrize("name", HOST_CHECKED)
def test_bad_data_met_by_numpy_is_told_as_ever(name):
    found_at_replay(*HOST_CHECKED[name])


def test_bad_data_met_twice_leaves_nothing_behind():
    def f(x, labels, i):
        return cross_entropy(x, labels, reduction="mean") + x[i].sum()

    compiled = ml.compile(f)
    x, one, bad = np.ones((2, 3)), np.array([1, 1]), np.array([5, 5])
    agree(compiled(x, one, one), f(*lifted((x, one, one))))
    with pytest.raises((ShapeError, IndexError)):
        compiled(x, bad, bad)
    agree(compiled(x, one, one), f(*lifted((x, one, one))))


# ---- every pass


def counted(f, *args, without=()):
    compiled = equals_eager(f, args, without=without, scale=1.0)
    return compiled, compiled.latest().counts


def test_dead_code_is_not_computed():
    def f(x):
        ml.exp(x @ x)
        return x + 1.0

    compiled, counts = counted(f, np.eye(3))
    assert counts["traced"] >= 3
    assert counts["dead code"] == 1
    assert operations(compiled) == ["input", "add"]


def test_what_is_known_is_computed_once():
    table = array(np.arange(3.0))

    def f(x):
        return (
            x * ml.ones_like(x) * 1
            + 0
            + ml.exp(ml.ones_like(x) * table).sum() * ml.zeros_like(x)
            - 0.0
        )

    compiled, counts = counted(f, np.ones(3))
    assert "exp" not in operations(compiled)
    assert counts["constants"] < counts["lowering"]
    compiled, _ = counted(f, np.ones(3), without=["constants"])
    assert "exp" in operations(compiled)
    compiled, _ = counted(lambda x: (1 * x / 1 - 0) ** 1 + ml.neg(-x), np.ones(3))
    assert operations(compiled) == ["input", "add"]


def test_ones_are_dropped_only_where_nothing_changes():
    def f(n, x):
        return n * 1.0, n + 0.0, n / 1, x * array(np.ones((2, 3))), 0 - x, 1 / x, 1**x, x - n * 0

    equals_eager(f, (np.arange(3), np.full(3, 2.0)))


def test_common_subexpressions_are_computed_once():
    def f(x):
        return ml.exp(x * 2.0).sum() + (ml.exp(x * 2.0) * 3.0).sum()

    compiled, _ = counted(f, np.ones(3))
    assert operations(compiled).count("exp") == 1
    compiled, _ = counted(f, np.ones(3), without=["common subexpressions", "products"])
    assert operations(compiled).count("exp") == 2


def test_what_differs_in_a_parameter_is_not_common():
    def f(x):
        parts = x.sum(0), x.sum(1), x.max(0), x[0:2], x[1:3], x + 1, x + 1.5, x + True, x < 1
        return *parts, x.astype(int), x.astype(bool), x.T, array([0, 1, 2]), array([0, 1, 3]), x - 1

    equals_eager(f, *draws((3, 3)))


def test_transposes_go_into_products():
    def f(a, b):
        return a.T @ b, a @ b.T, (a @ b).T, a.T @ b.T, (a.T @ b.T).T

    (args,) = draws((3, 3), (3, 3), calls=1)
    compiled, _ = counted(f, *args)
    assert set(steps(compiled)) <= {"matmul", "loop"}
    assert steps(compiled).count("loop") <= 2  # results that are transposed products of others


@pytest.mark.parametrize("lead", [((), ()), ((2,), (2,)), ((2,), ()), ((), (2,)), ((2, 1), (1, 2))])
@pytest.mark.parametrize("flags", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_products_of_any_layout_need_no_copy(lead, flags):
    sides = [(4, 3), (3, 5)]
    shapes = [
        (*ls, *(s[::-1] if flag else s)) for ls, s, flag in zip(lead, sides, flags, strict=True)
    ]

    def f(a, b):
        a, b = (
            ml.swapaxes(x, -1, -2) if flag else x for x, flag in zip((a, b), flags, strict=True)
        )
        return a @ b, grad(lambda ab: ((ab[0] @ ab[1]) ** 2).sum())((a, b))

    compiled = equals_eager(f, *draws(*shapes), scale=10.0)
    assert "copy" not in operations(compiled) or lead == ((2, 1), (1, 2)) or max(flags)
    equals_eager(lambda a, b: f(a, b)[0], *draws(*shapes), without=["products"])


@pytest.mark.parametrize(
    ("index", "other"),
    [
        (np.s_[1:, 1:], np.s_[:, :]),
        (np.s_[::2, :], np.s_[:, ::2]),
        (np.s_[::-1, :], np.s_[:, ::-1]),
        (np.s_[1:2, :], np.s_[:, 2:3]),
        (np.s_[:, 1:2], np.s_[1:2, :]),
        (np.s_[:0, :], np.s_[:, :]),
        (np.s_[:, :], np.s_[:, :0]),
        (np.s_[:, :0], np.s_[:0, :]),
    ],
)
def test_products_of_parts_are_products(index, other):
    def f(a, b):
        a, b = a[index], b[other]
        if a.shape[1] != b.shape[0]:
            b = b[: a.shape[1]]
        return a @ b[: a.shape[1]], (a @ b[: a.shape[1]]).T @ a

    def square(a, b):
        n = min(a[index].shape[1], b[other].shape[0])
        return f(a[:, :], b) if n == a[index].shape[1] else a[index][:, :n] @ b[other][:n]

    equals_eager(square, *draws((5, 5), (5, 5)))


@pytest.mark.parametrize("sides", [(1, 4, 3), (3, 4, 1), (3, 1, 4), (1, 4, 1), (1, 1, 1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_with_a_side_of_one_is_a_loop(sides, transposed):
    n, k, m = sides

    def f(a, b):
        return (ml.swapaxes(b, -1, -2) @ ml.swapaxes(a, -1, -2)) if transposed else a @ b

    for lead in ((), (2,)):
        compiled = equals_eager(f, *draws((*lead, n, k), (k, m)))
        assert set(steps(compiled)) == {"loop"}
    equals_eager(f, *draws((n, k), (k, m)), without=["products"])


def accumulated(compiled):
    return sum(n.op == "matmul" and len(n.args) == 3 for n in compiled.latest().graph.nodes())


def test_sums_of_products_are_taken_within_them():
    def f(a, b, c):
        return ml.tanh(a @ b + b @ c + c @ a)

    compiled = equals_eager(f, *draws((3, 3), (3, 3), (3, 3)))
    assert accumulated(compiled) == 2
    assert steps(compiled) == ["matmul"] * 3 + ["loop"]
    reshaped = equals_eager(
        lambda a, b, c: ml.tanh((a @ b).reshape(9) + (b @ c).reshape(9)) + (a.T @ a).T.reshape(9),
        *draws((3, 3), (3, 3), (3, 3)),
    )
    assert accumulated(reshaped) == 1


def test_a_product_that_is_used_again_is_not_written_over():
    def f(a, b):
        p, q = a @ b, b @ a
        s = p + q
        return ml.tanh(s), p * 2, q.sum(0), p + b @ b, (p + p) * 1.5

    compiled = equals_eager(f, *draws((3, 3), (3, 3)))
    assert accumulated(compiled) <= 1

    def results(a, b):
        p = a @ b
        return p, p + b @ a, b @ a + a @ a

    equals_eager(results, *draws((3, 3), (3, 3)))


def test_sums_of_products_without_the_memory_pass():
    equals_eager(
        lambda a, b: ml.tanh(a @ b + b @ a) + a, *draws((3, 3), (3, 3)), without=["memory"]
    )


def test_a_chain_with_its_reduction_is_one_step():
    def f(x, y):
        return ml.exp(ml.tanh(x * y + 1.0) - y).sum(1)

    compiled = equals_eager(f, *draws((3, 4), (3, 4)))
    assert steps(compiled) == ["loop"]
    assert held(compiled) == 0
    apart = equals_eager(f, *draws((3, 4), (3, 4)), without=["fusion"])
    assert steps(apart) == ["loop"] * 6


def test_what_is_summed_both_ways_is_read_once():
    compiled = equals_eager(lambda x: ((x * x).sum(0), (x * x).sum(1), x.max()), *draws((3, 4)))
    assert steps(compiled) == ["loop"]


def test_a_loop_that_needs_a_sum_waits_for_it():
    def f(x):
        y = x - x.mean(0)
        z = y / ml.sqrt((y * y).sum(1, keepdims=True) + 1.0)
        return z - z.max(), z.sum(0) * y

    compiled = equals_eager(f, *draws((4, 3)))
    assert steps(compiled).count("loop") > 1


def test_memory_is_used_again():
    def f(x):
        for _ in range(6):
            x = ml.tanh(x @ x)
        return x

    (x,), _ = draws((16, 16))
    with_it, _ = counted(f, x)
    without, _ = counted(f, x, without=["memory"])
    assert held(with_it) < held(without)


@pytest.mark.parametrize("unit", ["product", "loop", "product and loop"])
def test_memory_does_not_grow_with_a_chain(unit):
    def chain(length, x):
        for _ in range(length):
            x = ml.tanh(x @ x) if unit != "loop" else ml.tanh(x) - ml.tanh(x).mean(0)
            x = x @ x if unit == "product and loop" else x
        return x.sum()

    sizes = {
        length: held(equals_eager(functools.partial(chain, length), *draws((16, 16)), scale=300.0))
        for length in (3, 6, 12)
    }
    assert len(set(sizes.values())) == 1
    assert sizes[3] <= 3 * 16 * 16 * 8


def test_a_result_takes_the_place_of_what_is_read_for_the_last_time():
    def f(x):
        y = x @ x
        return ml.tanh(y) @ x

    compiled = equals_eager(f, *draws((16, 16)))
    assert held(compiled) == 16 * 16 * 8


def test_a_place_that_is_read_elsewhere_is_not_written():
    def f(x):  # a sum that reads its operand turned, shifted, repeated, or later
        y = x @ x
        z = y + y.T
        w = z @ x
        u = w + w[::-1]
        v = u @ x
        s = (v - v[0:1]) @ x
        return s[:, ::-1] * s + v

    for without in ((), ("fusion",), ("memory",)):
        equals_eager(f, *draws((4, 4)), without=without, scale=100.0)


def test_loops_walk_as_every_operand_needs():
    def f(x, y, z):
        return (
            x + y,  # repeated along the first and the middle axis
            x.transpose(2, 0, 1) * 2 - z,
            (x * y).sum((0, 2)),
            (x * y).max(1),
            (x - y).min((0, 1)),
            ml.broadcast_to(y, (2, 3, 4)).sum((0, 1)),
            x.reshape(6, 4)[::-1, 1:] * 2,
            x[:, ::-2, ::3] + x[:, 0:2, 0:2],
        )

    equals_eager(f, *draws((2, 3, 4), (1, 4), (4, 2, 3)))


def test_nothing_and_ones_are_walked():
    def f(x, y):
        return x.sum(0), x.sum(1), x + 1, (x * y).sum(), y.sum((0, 1)), y.max(), x.max(1), x.T @ x

    equals_eager(f, *draws((0, 3), (1, 1)))
    equals_eager(lambda x, y: x @ y, *draws((3, 0), (0, 3)))
    equals_eager(lambda x, y: x @ y + x @ y.T, *draws((2, 0, 3), (3, 3)))
    equals_eager(lambda x, y: (ml.tanh(x @ y + y @ x), x @ x), *draws((0, 0), (0, 0)))
    equals_eager(lambda x: (x, x * 2, x.T.sum()), *draws(()))
    equals_eager(lambda: KNOWN * 2, ())
    equals_eager(lambda x: (), *draws((2,)))


SPECIAL = np.array([0.0, 1.0, -1.0, 2.0, np.inf, -np.inf, np.nan, 1e-300, -700.0, 700.0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.filterwarnings("ignore")
def test_infinities_and_nans_go_where_they_go_eagerly(dtype):
    def f(x, y):
        unary_ = [ml.exp, ml.log, ml.tanh, ml.sigmoid, ml.softplus, ml.relu, ml.sqrt, ml.isfinite]
        a, b = x.reshape(-1, 1), y.reshape(1, -1)
        both = ml.maximum(a, b), ml.minimum(a, b), a < b, a == b, ml.where(a, b, 0.0), a / b
        made = (*(u(x) for u in unary_), *both, *both[0:2], ml.sign(x), x.astype(bool))
        powers = [x**p for p in (0, 1, 2, 3, -1, 0.5, 4, 1.7)]
        return made, powers, both[0].max(0), both[1].min(1), both[0].sum(0), ml.logsumexp(b)

    def masked(x, y):  # where NaN or infinite, exactly; elsewhere relative to each element
        return tree.map(lambda r: (r, ml.where(r == r, ml.tanh(r), 9.0)), f(x, y))

    with np.errstate(all="ignore"):
        x = SPECIAL.astype(dtype)
        compiled = ml.compile(masked)
        for args in ((x, x), (x[::-1], x), (x, x[::-1])):
            expected = masked(*lifted(args))
            for a, b in zip(tree.leaves(compiled(*args)), tree.leaves(expected), strict=True):
                tolerance = TOLERANCES["float32" if dtype == np.float32 else "rounding"]
                np.testing.assert_allclose(a.value, b.value, tolerance, 1e-30, strict=True)


def test_large_integers_are_exact_sums():
    def f(n, m):
        return n + m, n * m, n.sum(0), n.max(1), n.min(), n - 3, ml.maximum(n, m), n < m, n == 2, -n

    rng = np.random.default_rng(0)
    equals_eager(f, *([rng.integers(-(2**40), 2**40, (3, 2)) for _ in range(2)] for _ in range(2)))


def test_booleans_are_conditions_and_numbers():
    def f(x, y):
        low = x < y
        return (
            low, low == (x > 0), ml.where(low, x > 0, y > 0), low.astype(float).sum(), low.sum(0),
            low * 2, low * x, low.max(0), low.astype(int) + low, ml.where(low, 1, 0),
        )  # fmt: skip

    equals_eager(f, *draws((3, 2), (3, 2)))


@pytest.mark.parametrize("kind", ["loops", "products", "gathers"])
def test_explain_tells_what_is_done(kind, capsys):
    f = {
        "loops": lambda x: (ml.tanh(x) * 2).sum(0) + ml.tanh(x),
        "products": lambda x: ml.tanh(x @ x) @ x,
        "gathers": lambda x: ml.concatenate([x, x]) * 2,
    }[kind]
    compiled = ml.compile(f)
    x = np.ones((4, 4))
    compiled.explain(x)
    told = capsys.readouterr().out
    compiled(x)
    compiled.explain()
    *told, held_against_eager = told.strip("\n").split("\n")
    assert capsys.readouterr().out.strip("\n").split("\n")[:-1] == told
    assert held_against_eager == "not held against eager: not called yet"
    head, counts, *lines = told
    rows = compiled.latest().plan.rows
    hosts = sum(isinstance(row, Eager) for row in rows)
    assert head.startswith(
        f"compile(<lambda>): {len(rows) - hosts} kernel calls and {hosts} operations run eagerly, "
    )
    assert f"{held(compiled) / 1e6:.3g} MB held" in head
    assert "million operations" in head
    for name in ("traced", "dead code", "lowering", *PASSES[:-1]):
        assert f"{compiled.latest().counts[name]} {name}" in counts
    assert [int(line.split()[0]) for line in lines] == list(
        range(len(compiled.latest().plan.steps))
    )
    assert any("matmul:float64[4,4] of" in line for line in lines) == (kind == "products")


def test_operations_are_counted_by_the_step():
    compiled = equals_eager(lambda x, y: ml.tanh(x @ y) * 2.0, *draws((4, 3), (3, 5)))
    product, loop = compiled.latest().plan.steps
    assert planning.operations(product) == 2 * 4 * 3 * 5
    assert planning.operations(loop) == 2 * 4 * 5


def test_there_is_nothing_to_explain_before_a_call():
    with pytest.raises(CaptureError, match=r"^compile\(sum\): nothing was traced yet"):
        ml.compile(ml.sum).explain()


# ---- without NumPy's library


def test_products_without_addresses_run_through_numpy(monkeypatch):
    monkeypatch.setattr(sys.modules["mamlnp.compile"], "blas", lambda: Blas("x", "x", 1, {}, True))

    def f(a, b):
        y = ml.tanh(a @ b + b @ a)
        return y.T @ y[:, ::-1], ml.exp(y).sum(0), y @ a[0], ml.take(y, [0, 3]) * 2

    compiled = equals_eager(f, *draws((3, 3), (3, 3)))
    kinds = [isinstance(row, Eager) for row in compiled.latest().plan.rows]
    assert True in kinds
    assert kinds != sorted(kinds)  # kernels before and after
    g, calls = meta_calls("MAML, mlp, 3 steps", "backprop")
    equals_eager(g, *calls, scale=1.0)
    monkeypatch.setattr(passes, "LARGEST_WINDOWS", 0)
    equals_eager(ml.conv2d, *draws((2, 5, 5, 2), (3, 3, 2, 3)))


# ---- the kernels on disk

PROGRAM = """
import sys
import numpy as np
import mamlnp as ml
f = ml.compile(lambda x: (ml.tanh(x) * 2.0, (x * x).sum(0), x @ x))
out = f(np.linspace(-1, 1, 9).reshape(3, 3))
print(b"".join(x.numpy().tobytes() for x in out).hex())
"""


def in_process(folder):
    environment = {**os.environ, "MAMLNP_CACHE": str(folder), "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_kernels_are_compiled_by_one_process_for_all(tmp_path):
    first = in_process(tmp_path)
    folder = tmp_path / "kernels"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    sources = sorted(folder.glob("*.py"))
    assert any(path.name.startswith("kernel_") for path in sources)
    assert any(path.name.startswith("product_") for path in sources)
    assert set(folder.iterdir()) == {*sources, *(path.with_suffix("") for path in sources)}
    assert in_process(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    loop = next(path for path in sources if path.name.startswith("kernel_"))
    text = loop.read_text()
    assert ast.get_docstring(ast.parse(text)).startswith("A kernel of mamlnp, generated; safe")
    assert any("tanh_f" in path.read_text() for path in sources)
    (tmp_path / "blocked").write_text("no folder")
    assert in_process(tmp_path / "blocked") == first


# ---- mistakes that were made, or planted and not found by what is above


SURVIVORS = {
    "rows with a gap share one product": (lambda x, b: x[:, :, :3] @ b, [(2, 5, 4), (3, 6)]),
    "large numbers that differ by one": (
        lambda n: (n.astype(int) + 2**60, n.astype(int) + (2**60 + 1)),
        [(3,)],
    ),
    "a product that is a result and a term": (
        lambda a, b: (lambda p: (p, b @ a + p))(a @ b),
        [(3, 3), (3, 3)],
    ),
    "products transposed in other ways": (
        lambda a, b: (a @ b).transpose(0, 2, 1) + (b @ a).transpose(2, 1, 0),
        [(3, 3, 3), (3, 3, 3)],
    ),
    "a sum of ones": (lambda x: (ml.ones_like(x).sum(0), x * 2), [(4, 3)]),
    "ones of two types": (
        lambda x: (ml.ones_like(x) + ml.zeros_like(x), ml.ones_like(x.astype(int)) * 1),
        [(2, 3)],
    ),
    "zeros of both signs": (lambda x: 1 / (ml.relu(-0.0 * x * x) + 0.0), [(3,)]),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", SURVIVORS)
def test_mistakes_that_were_not_found_at_first(name):
    f, shapes = SURVIVORS[name]
    equals_eager(f, *draws(*shapes))


def test_a_subclass_of_dict_is_a_tree_and_another_object_is_not():
    equals_eager(lambda t: t["a"] * 2, (OrderedDict(a=np.ones(2)),))

    class Pair:
        def __init__(self, first):
            self.first = first

    with pytest.raises(CaptureError, match="returns a Pair"):
        ml.compile(Pair)(np.ones(2))


def test_single_elements_are_read_where_they_are():
    equals_eager(lambda x: (x[1, 0] * 2, x[0, 1] + x[1, 1], *x[0]), *draws((2, 3)))


OTHER_TYPES = ["int8", "uint8", "int32", "uint64", "float16", "longdouble"]


@pytest.mark.parametrize("dtype", OTHER_TYPES)
@pytest.mark.parametrize("f", [lambda x: x, lambda x: x.T, ml.ones_like, lambda x: x.T.reshape(6)])
def test_other_types_replay(dtype, f):
    equals_eager(f, (np.arange(6).reshape(2, 3).astype(dtype),))


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_zeros_of_both_signs_are_two_arguments():
    equals_eager(lambda x, s: x / s, (np.ones(2), 0.0), (np.ones(2), -0.0))


def test_the_other_byte_order_is_read_as_it_is():
    compiled = ml.compile(lambda x: x * 2)
    agree(compiled(np.array([1.0, 2.0])), array([2.0, 4.0]))
    np.testing.assert_array_equal(compiled(np.array([1.0, 2.0], ">f8")).value, [2.0, 4.0])


@pytest.mark.parametrize("f", [lambda n: n + (2**60 + 1), lambda n: n == 2**60 + 1])
def test_large_numbers_meet_integers_exactly(f):
    equals_eager(f, (np.array([2**60 + 1, 2**60, 3]),))


def test_nothing_may_be_the_result():
    assert ml.compile(lambda x: None)(np.ones(2)) is None


def test_what_is_closed_over_is_static():
    known = np.array([1.0, 2.0])
    compiled = ml.compile(lambda x: x * known)
    before = compiled(np.ones(2))
    known[:] = [7.0, 8.0]
    agree(compiled(np.ones(2)), before)


def test_what_is_closed_over_and_differentiated_is_not_lost():
    def f(w):
        return ml.compile(lambda x: (x * w).sum())(np.ones(3))

    try:
        found = grad(f)(array([1.0, 2.0, 3.0]))
    except CaptureError:
        return
    agree(found, array(np.ones(3)))


def test_what_is_closed_over_and_traced_is_not_lost():
    def f(w):
        return ml.compile(lambda x: (x * w).sum())(np.ones(3))

    try:
        found = ml.compile(f)(array([1.0, 2.0, 3.0]))
    except CaptureError:
        return
    agree(found, array(6.0))


frozen = {
    "a slice": lambda x: x[random_one([slice(0, 2), slice(1, 3)])],
    "an axis": lambda x: x.sum(random_one([0, 1])),
    "a type": lambda x: (x > 0).astype(random_one([np.float64, np.int64])).astype(np.int32) * 2,
    "the order of arguments": lambda x: ml.sub(*random_one([(x, x * 2), (x * 2, x)])),
    "the order of results": lambda x: random_one([(x, x * 2), (x * 2, x)]),
    "the tree of results": lambda x: random_one([[x * 2], {"a": x * 2}]),
    "a static result": lambda x: (x * 2, random_one([1, 2])),
}


@pytest.mark.parametrize("what", frozen)
def test_a_function_that_differs_in_what_is_static_is_refused(what):
    with pytest.raises(CaptureError, match="each time"):
        ml.compile(frozen[what])(np.ones((3, 3)))


@pytest.mark.parametrize("exponent", [-0.5, -1.5, -2.5])
@pytest.mark.filterwarnings("ignore")
def test_roots_are_those_of_numpy_at_the_edges(exponent):
    x = np.array([-0.0, -np.inf, 0.0, np.inf, 4.0])
    np.testing.assert_allclose(ml.compile(lambda x: x**exponent)(x).value, x**exponent)


def test_a_compiled_function_may_call_itself_on_what_is_known():
    def f(x, n):
        return x + (compiled(np.ones(2), n - 1) if n else 0.0)

    compiled = ml.compile(f)
    agree(compiled(np.ones(2), 2), array([3.0, 3.0]))


@pytest.mark.parametrize("name", META)
def test_a_dropped_plan_leaves_nothing_to_the_garbage_collector(name):
    make, theta, task = META[name]
    algorithm = make()
    meta = algorithm.init(theta)

    def planned():
        run = ml.compile(lambda meta, task: algorithm.gradient(meta, task))
        run(meta, task)
        return [weakref.ref(replay._block) for replay in run.latest().replays]

    planned()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        buffers = planned()
        assert buffers
        assert [block() for block in buffers] == [None] * len(buffers)
        gc.collect()
        assert gc.garbage == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0, -2.0])
UNARY = [
    name
    for name, op in registry.items()
    if name in EXPRESSIONS and op.differentiable and len(op.rules) == 1
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["maximum", "minimum", *UNARY])
@pytest.mark.filterwarnings("ignore:grad. the result depends on no argument")
def test_a_value_and_its_slope_are_the_eager_ones_where_there_is_no_number(name, dtype):
    """A relu that is NaN has the slope 1, and so on: what loops and NumPy may have differently."""
    op, x = registry[name], SPECIAL.astype(dtype)
    arrays = [x] if name in UNARY else [np.repeat(x, len(x)), np.tile(x, len(x))]

    def both(*arrays):
        return op(*arrays), grad(lambda xs: op(*xs).sum())(list(arrays))

    with np.errstate(all="ignore"):
        expected, found = both(*lifted(arrays)), ml.compile(both, check=False)(*arrays)
    for a, b in zip(tree.leaves(expected), tree.leaves(found), strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), 1e-5, equal_nan=True)
