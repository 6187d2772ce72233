"""The first replay of a plan is held against the function, and says what it found."""

import threading

import numpy as np
import pytest

import mamlnp as ml
from mamlnp import backend, parallel
from mamlnp.compile import passes, verify
from mamlnp.compile.trace import Graph
from mamlnp.errors import CompileError, ShapeError


@pytest.fixture(autouse=True)
def nobody_else_checks(monkeypatch):
    """What is planted here must be found by the first replay, not by the checks of all tests."""
    monkeypatch.setattr(verify._Setting, "depth", 0)


NETWORK = ml.nn.mlp((2, 8, 3), weights=ml.nn.xavier)


def loss(params, batch):
    return ml.losses.cross_entropy(NETWORK.apply(params, batch.x), batch.y, reduction="mean")


def problem(dtype=np.float32, tasks=4):
    rng = np.random.default_rng(0)

    def batch(n):
        x = rng.normal(size=(tasks, n, 2)).astype(dtype)
        return ml.Batch(x, rng.integers(0, 3, (tasks, n)))

    return NETWORK.init(rng=rng, dtype=dtype), ml.Task(batch(4), batch(5))


gradient = ml.meta.MAML(loss, inner_lr=0.1).gradient


def told(compiled):
    return compiled.latest().held


def plant(monkeypatch, name, *, dtype, output, factor=1.01, place=None):
    """Let a pass scale an output, or one element of it, where it is of this type."""
    real = getattr(passes, name)

    def wrong(graph, *args, **how):
        graph = real(graph, *args, **how)
        if len(graph.outputs) <= output or graph.outputs[output].dtype != dtype:
            return graph
        x = graph.outputs[output]
        factors = np.full(x.shape, factor, dtype)
        if place is not None:
            factors[...] = 1
            factors[place] = factor
        scaled = passes.elementwise("mul", (x, passes.constant(factors)), x.shape, x.dtype)
        outputs = list(graph.outputs)
        outputs[output] = scaled
        return Graph(graph.inputs, outputs)

    monkeypatch.setattr(passes, name, wrong)


@pytest.mark.parametrize("output", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "function, name", [("products", "products"), ("share", "common subexpressions")]
)
def test_a_pass_that_spoils_one_output_is_named(function, name, dtype, output, monkeypatch):
    if function == "share":  # which the pass of products calls too
        monkeypatch.setattr(passes, "products", lambda graph, rule, *, windows: graph)
    plant(monkeypatch, function, dtype=dtype, output=output)
    with pytest.raises(CompileError, match=f"(?s)output.*'{name}'.*without={{'{name}'}}"):
        ml.compile(gradient)(*problem(dtype))
    ml.compile(gradient, without={name})(*problem(dtype))


def test_one_wrong_element_is_enough(monkeypatch):
    plant(monkeypatch, "products", dtype=np.float32, output=1, place=(1, 3))
    with pytest.raises(CompileError, match=r"output \[1\]"):
        ml.compile(gradient)(*problem())


def test_what_is_wrong_stays_wrong_at_the_next_call(monkeypatch):
    plant(monkeypatch, "products", dtype=np.float32, output=1)
    compiled = ml.compile(gradient)
    for _ in range(2):
        with pytest.raises(CompileError):
            compiled(*problem())


def test_a_fault_of_no_one_pass_is_found_too(monkeypatch):
    real = passes.lower

    def wrong(node, args):
        return real(node, args) if node.op != "relu" else passes.like(node, args[:1]).args[0]

    monkeypatch.setattr(passes, "lower", wrong)
    with pytest.raises(CompileError, match="No one pass makes the difference"):
        ml.compile(gradient)(*problem())


@pytest.mark.parametrize("chunks", [None, 1, 2])
def test_a_meta_step_in_chunks_is_held_too(chunks, monkeypatch):
    params, task = problem()
    optimizer = ml.optim.sgd(0.1)
    how = {"optimizer": optimizer, "chunks": chunks}
    plant(monkeypatch, "products", dtype=np.float32, output=1)
    with pytest.raises(CompileError, match="compiled=False"):
        parallel.meta_step(gradient, **how)(params, optimizer.init(params), task)
    parallel.meta_step(gradient, check=False, **how)(params, optimizer.init(params), task)


def test_the_function_runs_eagerly_once_for_a_plan_whatever_the_chunks():
    runs = []

    def counted(params, batch):
        runs.append(isinstance(batch.x.value, np.ndarray))
        return loss(params, batch)

    params, task = problem()
    step = parallel.meta_gradient(
        ml.meta.MAML(counted, inner_lr=0.1).gradient, chunks=None, threads=3
    )
    for _ in range(3):
        step(params, task)
    assert runs.count(True) == 2  # one task's support and query


def test_threads_that_make_the_first_call_together_wait_for_one_check(monkeypatch):
    plant(monkeypatch, "products", dtype=np.float32, output=0)
    compiled, given, found = ml.compile(gradient), problem(), []

    def call():
        try:
            found.append(compiled(*given))
        except CompileError as error:
            found.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(isinstance(x, CompileError) for x in found)


def test_explain_says_what_the_check_found(capsys):
    compiled = ml.compile(gradient)
    compiled.explain(*problem())
    assert "not held against eager: not called yet\n" in capsys.readouterr().out
    compiled(*problem())
    compiled.explain()
    assert "held against eager: the largest difference is 0" in capsys.readouterr().out
    unchecked = ml.compile(gradient, check=False)
    unchecked(*problem())
    unchecked.explain()
    assert "not held against eager: check=False\n" in capsys.readouterr().out


def test_a_function_too_large_to_run_eagerly_is_not_held(monkeypatch):
    monkeypatch.setattr(backend, "available_memory", lambda x=None: 10_000)
    runs = []

    def counted(x):
        runs.append(isinstance(x.value, np.ndarray))
        return ml.tanh(x) * x

    compiled = ml.compile(counted)
    compiled(np.ones(1_000))
    assert told(compiled).startswith("not held against eager: its arrays would need 2.4e-05 GB")
    assert not any(runs)
    compiled(np.ones(10))
    assert told(compiled).startswith("held") and any(runs)


def test_nan_is_nan_and_infinity_infinity():
    compiled = ml.compile(lambda x: (ml.log(x) * 2, ml.sqrt(x), x / 0.0))
    compiled(np.array([-1.0, 0.0, 1.0]))
    assert told(compiled) == "held against eager: the largest difference is 0 of tolerance"


def test_integers_have_to_be_the_same(monkeypatch):
    plant(monkeypatch, "products", dtype=np.int64, output=0, factor=2)
    with pytest.raises(CompileError):
        ml.compile(lambda x, n: n + 1)(np.ones(3), np.arange(3))


def test_what_the_function_raises_is_raised():
    calls = []

    def f(x):
        calls.append(x)
        if isinstance(x.value, np.ndarray):
            raise ShapeError("f: not today")
        return x * 2

    with pytest.raises(ShapeError, match="not today"):
        ml.compile(f)(np.ones(3))


# ---- what rounding explains is no error


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_kink_within_rounding_is_no_error(dtype):
    """Whether relu lets through what is 0 but for rounding, nobody can say."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 64, 300)).astype(dtype)

    def f(a, b):
        exactly_zero = (a * b).sum(-1) - (a[:, None] @ b[:, :, None])[:, 0, 0]
        return ml.grad(lambda s: (ml.relu(exactly_zero * s) / exactly_zero * s).sum())(ml.sum(a[0]))

    compiled = ml.compile(f)
    compiled(a, b)
    assert told(compiled).startswith("held against eager")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_chaotic_descent_is_no_error(dtype):
    def f(x):
        x = (x * 1.0).sum(-1) / 1001
        for _ in range(100):
            x = 3.99 * x * (1 - x)
        return x

    compiled = ml.compile(f)
    x = np.random.default_rng(0).uniform(size=(20, 1001)).astype(dtype)
    got, eager = compiled(x), f(ml.array(x))
    assert abs(got - eager).max().item() > 0.1
    assert told(compiled).endswith("they differ as far as rounding moves f there")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_cancels_but_for_rounding_is_no_error(dtype):
    weights = np.random.default_rng(0).normal(size=300).astype(dtype)  # closed over, in its type

    def f(a):
        return ((a * weights).sum(-1) - (a @ weights[:, None])[:, 0]) * 1000

    compiled = ml.compile(f)
    compiled(np.random.default_rng(1).normal(size=(40, 300)).astype(dtype))
    assert told(compiled).startswith("held against eager")


def test_a_wrong_pass_is_found_in_a_function_with_kinks(monkeypatch):
    plant(monkeypatch, "products", dtype=np.float32, output=1)
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 64, 300)).astype(np.float32)

    def f(a, b):
        exactly_zero = (a * b).sum(-1) - (a[:, None] @ b[:, :, None])[:, 0, 0]
        return ml.relu(exactly_zero) / exactly_zero, ml.tanh(a)

    with pytest.raises(CompileError, match=r"output \[1\]"):
        ml.compile(f)(a, b)
