"""Optimisers against independent NumPy implementations, and as something to differentiate."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mamlnp import array, check_grads, grad, tree
from mamlnp.gradcheck import TOLERANCES
from mamlnp.optim import adam, clipped, cosine, sgd

ROUNDING = TOLERANCES["rounding"]
seeds = st.integers(0, 2**32 - 1)
rates = st.floats(1e-3, 0.5)


def close(actual, expected):
    tree.map(
        lambda a, e: np.testing.assert_allclose(
            a.numpy(), np.asarray(e, float), ROUNDING, ROUNDING, strict=True
        ),
        actual,
        expected,
    )


def random_tree(rng):
    return {"w": rng.normal(size=(2, 3)), "b": (rng.normal(size=3), rng.normal(size=()))}


def run(optimizer, params, grads):
    params = tree.map(array, params)
    state = optimizer.init(params)
    for g in grads:
        params, state = optimizer.update(params, tree.map(array, g), state)
    return params, state


def each_leaf(step, params, grads):
    """The reference, run on every leaf by itself."""
    leaves = []
    for i, p in enumerate(tree.leaves(params)):
        leaves.append(step(p, [tree.leaves(g)[i] for g in grads]))
    return tree.unflatten(params, leaves)


@given(seed=seeds, lr=rates, momentum=st.sampled_from([0.0, 0.5, 0.9]))
def test_sgd(seed, lr, momentum):
    rng = np.random.default_rng(seed)
    params, grads = random_tree(rng), [random_tree(rng) for _ in range(4)]

    def reference(p, gs):
        velocity = np.zeros_like(p)
        for g in gs:
            velocity = momentum * velocity + g
            p = p - lr * velocity
        return p

    found, state = run(sgd(lr, momentum), params, grads)
    close(found, each_leaf(reference, params, grads))
    assert state["step"] == 4


@given(
    seed=seeds,
    lr=rates,
    b1=st.floats(0, 0.95),
    b2=st.floats(0, 0.999),
    eps=st.sampled_from([1e-8, 1e-3]),
    eps_root=st.sampled_from([0.0, 1e-4]),
)
def test_adam(seed, lr, b1, b2, eps, eps_root):
    rng = np.random.default_rng(seed)
    params, grads = random_tree(rng), [random_tree(rng) for _ in range(4)]

    def reference(p, gs):
        m = v = np.zeros_like(p)
        for t, g in enumerate(gs, 1):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
            p = p - lr * m_hat / (np.sqrt(v_hat + eps_root) + eps)
        return p

    found, state = run(adam(lr, b1, b2, eps, eps_root), params, grads)
    close(found, each_leaf(reference, params, grads))
    assert state["step"] == 4


def test_adams_defaults_are_the_papers():
    found, _ = run(adam(), {"x": np.array(2.0)}, [{"x": np.array(0.5)}] * 2)
    expected = 2.0
    for _ in range(2):  # with one gradient both corrected moments are its own
        expected -= 1e-3 * 0.5 / (0.5 + 1e-8)
    close(found, {"x": expected})


def test_a_rate_may_depend_on_the_step():
    params, grads = {"x": np.array(1.0)}, [{"x": np.array(1.0)}] * 3
    found, _ = run(sgd(lambda step: 0.1 * (step + 1)), params, grads)
    close(found, {"x": 1 - 0.1 - 0.2 - 0.3})
    found, _ = run(adam(lambda step: 0.1 * (step + 1), eps=0.0), params, grads)
    close(found, {"x": 1 - 0.1 - 0.2 - 0.3})


def test_cosine_goes_from_the_peak_to_zero_and_stays():
    rate = cosine(0.4, 10)
    assert rate(0) == 0.4
    assert float(rate(5)) == pytest.approx(0.2, rel=1e-15)
    assert float(rate(10)) == float(rate(11)) == float(rate(1000)) == 0
    values = [float(rate(step)) for step in range(11)]
    assert values == sorted(values, reverse=True)
    assert [float(rate(3)), float(rate(7))] == pytest.approx(
        [0.2 * (1 + math.cos(0.3 * math.pi)), 0.2 * (1 - math.cos(0.3 * math.pi))], rel=1e-14
    )


@pytest.mark.parametrize("optimizer", [sgd(0.1), sgd(0.1, 0.9), adam(), adam(eps_root=1e-4)])
def test_float32_stays_float32_and_nothing_is_overwritten(optimizer):
    params = {"w": array([1.0, 2.0], np.float32)}
    grads = {"w": array([0.5, 0.0], np.float32)}
    state = optimizer.init(params)
    before = (params["w"].numpy().copy(), grads["w"].numpy().copy())
    new, new_state = optimizer.update(params, grads, state)
    again, _ = optimizer.update(params, grads, state)
    assert {x.dtype for x in tree.leaves((new, new_state)) if x.dtype.kind == "f"} == {
        np.dtype(np.float32)
    }
    assert state["step"] == 0 and new_state["step"] == 1
    np.testing.assert_array_equal(new["w"], again["w"])
    np.testing.assert_array_equal((params["w"], grads["w"]), before)


@pytest.mark.parametrize(
    "optimizer",
    [sgd(0.1), sgd(0.1, 0.9), adam(0.1, b2=0.9, eps_root=1e-2)],
    ids=["sgd", "momentum", "adam"],
)
def test_an_optimizer_can_be_differentiated_through(optimizer):
    def trained(x):
        params, state = {"x": x}, optimizer.init({"x": x})
        for _ in range(3):
            grads = grad(lambda p: (p["x"] ** 4).sum() / 4)(params)
            params, state = optimizer.update(params, grads, state)
        return params["x"]

    report = check_grads(trained, [np.array([0.5, -1.2, 0.8])], order=2)
    assert report.error() < TOLERANCES["difference"]


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("eps_root", [0.0, 1e-8])
def test_adam_at_a_zero_gradient_has_a_finite_derivative_only_with_eps_root(eps_root):
    optimizer = adam(0.1, eps_root=eps_root)

    def after(x):
        params, _ = optimizer.update({"x": x}, {"x": x * x}, optimizer.init({"x": x}))
        return params["x"]

    # x = 0: the gradient x^2 and its slope are 0, so the step does not depend on x.
    found = grad(after)(0.0)
    assert found.item() == 1.0 if eps_root else math.isnan(found.item())


@given(seed=seeds)
def test_clipping_bounds_every_element_of_the_gradient(seed):
    rng = np.random.default_rng(seed)
    params, grads = random_tree(rng), tree.map(lambda g: 20 * g, random_tree(rng))
    within = tree.map(lambda g: np.clip(g, -10, 10), grads)
    for optimizer in (sgd(0.1), adam(0.1)):
        found, _ = run(clipped(optimizer, 10.0), params, [grads, grads])
        expected, _ = run(optimizer, params, [within, within])
        close(found, tree.map(lambda leaf: leaf.numpy(), expected))
