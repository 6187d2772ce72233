"""The inner and outer loop: against plain loops, closed forms and finite differences."""

import functools
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, strategies as st

import mamlnp as ml
from mamlnp import Batch, Task, array, check_meta_gradient, grad, maml, meta, nn, optim, tree
from mamlnp.errors import DtypeError, ShapeError
from mamlnp.gradcheck import TOLERANCES, check_algorithm, distance
from mamlnp.losses import cross_entropy, mse
from mamlnp.meta import MetaSGD
from mamlnp.op import recording

ROUNDING = TOLERANCES["rounding"]
seeds = st.integers(0, 2**32 - 1)
methods = pytest.mark.parametrize("method", ["backprop", "hvp"])
steps = pytest.mark.parametrize("inner_steps", [0, 1, 2, 3])


def close(actual, expected):
    def leaf(a, e):
        e = np.asarray(getattr(e, "value", e), float)
        size = max(1.0, np.abs(e).max(initial=0.0))
        np.testing.assert_allclose(a.numpy(), e, ROUNDING, ROUNDING * size, strict=True)

    tree.map(leaf, actual, expected)


def apart(a, b):
    """The relative distance of two trees of one shape."""
    tree.map(lambda x, y: np.testing.assert_equal(x.shape, y.shape), a, b)
    return distance(a, b)


class Problem(NamedTuple):
    loss: meta.Loss
    params: dict
    task: Task


@functools.cache
def regression(activation=ml.tanh, tasks=3, seed=0):
    network = nn.mlp((1, 5, 4, 1), activation=activation, weights=nn.normal(0.8))
    rng = np.random.default_rng(seed)
    params = network.init(rng=rng, dtype=np.float64)
    params = tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), params)
    x, phase = rng.uniform(-2, 2, (2, tasks, 6, 1)), rng.uniform(0, 3, (tasks, 1, 1))

    def loss(params, batch):
        return mse(network.apply(params, batch.x), batch.y, reduction="mean")

    return Problem(loss, params, Task(*(Batch(part, np.sin(part + phase)) for part in x)))


@functools.cache
def classification(pool=False, gamma=True, tasks=2, seed=0):
    side = 16 if pool else 6
    network = nn.conv4(2, filters=2, image_size=side, pool=pool, gamma=gamma)
    rng = np.random.default_rng(seed)
    params = network.init(rng=rng, dtype=np.float64)
    params = tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape), params)

    def batch():
        return Batch(rng.normal(size=(tasks, 4, side, side, 1)), rng.integers(0, 2, (tasks, 4)))

    def loss(params, batch):
        return cross_entropy(network.apply(params, batch.x), batch.y, reduction="mean")

    return Problem(loss, params, Task(batch(), batch()))


@functools.cache
def vectors_classification(tasks=2):
    network = nn.mlp((3, 4, 3, 2), weights=nn.xavier, norm=True, gamma=True)
    rng = np.random.default_rng(0)
    params = network.init(rng=rng, dtype=np.float64)
    params = tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape), params)

    def batch():
        return Batch(rng.normal(size=(tasks, 5, 3)), rng.integers(0, 2, (tasks, 5)))

    def loss(params, batch):
        return cross_entropy(network.apply(params, batch.x), batch.y, reduction="sum")

    return Problem(loss, params, Task(batch(), batch()))


problems = pytest.mark.parametrize(
    "problem",
    [
        regression(),
        regression(ml.relu),
        vectors_classification(),
        classification(),
        classification(pool=True, gamma=False),
    ],
    ids=["mlp-tanh", "mlp-relu", "mlp-norm", "conv4-stride", "conv4-pool"],
)


def one_task(batch, t):
    return Batch(batch.x[t : t + 1], batch.y[t : t + 1])


def single(task, t):
    return Task(one_task(task.support, t), one_task(task.query, t))


# ---- the inner loop


@problems
@pytest.mark.parametrize("inner_steps", [0, 1, 3])
def test_adapt_is_a_loop_over_tasks_and_steps(problem, inner_steps):
    loss, params, task = problem
    adapted = maml.adapt(loss, params, task.support, inner_lr=0.1, inner_steps=inner_steps)
    for t in range(meta.num_tasks(task.support)):
        theta = params
        for _ in range(inner_steps):
            # One task of its own, whose parameters have no task axis at all.
            grads = grad(lambda p, t=t: loss(p, one_task(task.support, t))[0])(theta)
            theta = tree.map(lambda p, g: p - 0.1 * g, theta, grads)
        close(tree.map(lambda p, t=t: p[t], adapted), theta)


def test_the_inner_loop_gives_every_step():
    loss, params, task = regression()
    path = maml.inner_loop(loss, params, task.support, inner_lr=0.1)
    for inner_steps in range(4):
        close(
            next(path),
            maml.adapt(loss, params, task.support, inner_lr=0.1, inner_steps=inner_steps),
        )


def test_adaptation_learns_the_support_set():
    loss, params, task = regression()
    before = loss(meta.per_task(params, 3), task.support).numpy()
    adapted = maml.adapt(loss, params, task.support, inner_lr=0.05, inner_steps=20)
    assert (loss(adapted, task.support).numpy() < 0.7 * before).all()


def test_meta_loss_is_the_query_loss_after_adaptation():
    loss, params, task = regression()
    adapted = maml.adapt(loss, params, task.support, inner_lr=0.1, inner_steps=2)
    found = maml.meta_loss(loss, params, task, inner_lr=0.1, inner_steps=2)
    assert found.shape == (3,)
    close(found, loss(adapted, task.query))
    assert np.abs(found.numpy() - loss(adapted, task.support).numpy()).max() > 1e-3


def test_parameters_may_be_plain_numpy():
    loss, params, task = regression()
    plain = tree.map(np.asarray, params)
    for method in ("backprop", "hvp"):
        losses, grads = maml.meta_gradient(loss, plain, task, inner_lr=0.1, method=method)
        expected = maml.meta_gradient(loss, params, task, inner_lr=0.1, method=method)
        close((losses, grads), expected)


@pytest.mark.parametrize(
    "reduced",
    [lambda losses: losses.mean(), lambda losses: losses.sum(), lambda losses: losses[:, None]],
)
@methods
def test_a_loss_that_is_not_one_number_a_task_is_refused(reduced, method):
    loss, params, task = regression()

    def wrong(params, batch):
        return reduced(loss(params, batch))

    for f in (
        lambda: maml.adapt(wrong, params, task.support, inner_lr=0.1),
        lambda: maml.meta_loss(wrong, params, task, inner_lr=0.1),
        lambda: maml.meta_gradient(wrong, params, task, inner_lr=0.1, method=method),
        lambda: maml.meta_gradient(wrong, params, task, inner_lr=0.1, inner_steps=0, method=method),
    ):
        with pytest.raises(ShapeError, match=r"loss: returned float64\[.*\] for 3 tasks"):
            f()
        assert not recording.on


# ---- tasks are summed


@methods
def test_the_meta_gradient_is_the_sum_of_each_tasks(method):
    loss, params, task = regression()
    how = {"inner_lr": 0.1, "inner_steps": 2, "method": method}
    losses, grads = maml.meta_gradient(loss, params, task, **how)
    alone = [maml.meta_gradient(loss, params, single(task, t), **how) for t in range(3)]
    close(losses, np.concatenate([part.numpy() for part, _ in alone]))
    close(grads, tree.map(lambda *parts: sum(parts), *(part for _, part in alone)))


@methods
@pytest.mark.parametrize("problem", [regression(), classification()], ids=["mlp", "conv4"])
def test_a_task_twice_has_twice_the_gradient(problem, method):
    loss, params, task = problem
    once = single(task, 0)
    twice = tree.map(lambda x: np.concatenate([x, x]), once)
    how = {"inner_lr": 0.1, "inner_steps": 2, "method": method}
    (loss_once, grads_once), (loss_twice, grads_twice) = (
        maml.meta_gradient(loss, params, task, **how) for task in (once, twice)
    )
    close(loss_twice, np.repeat(loss_once.numpy(), 2))
    close(grads_twice, tree.map(lambda g: 2 * g, grads_once))


def test_support_and_query_may_have_different_sizes():
    loss, params, task = regression()
    task = Task(Batch(task.support.x[:, :2], task.support.y[:, :2]), task.query)
    check_meta_gradient(loss, params, task, inner_lr=0.1, inner_steps=2)


# ---- two ways, finite differences, first order


rates = {
    "number": lambda params: 0.1,
    "tree": lambda params: {
        name: {leaf: 0.05 * (i + 1) for i, leaf in enumerate(layer)}
        for name, layer in params.items()
    },
    "subtrees": lambda params: {name: 0.1 / (i + 1) for i, name in enumerate(params)},
    "held": lambda params: {
        name: {leaf: 0 if leaf in ("beta", "b") else 0.1 for leaf in layer}
        for name, layer in params.items()
    },
    "held whole": lambda params: {name: 0.1 * (i % 2) for i, name in enumerate(params)},
    "arrays": lambda params: tree.map(
        lambda p: array(np.random.default_rng(0).uniform(0, 0.2, p.shape)), params
    ),
    "numpy arrays": lambda params: tree.map(
        lambda p: np.random.default_rng(0).uniform(0, 0.2, p.shape), params
    ),
}
each_rate = pytest.mark.parametrize(
    "rate", rates.values(), ids=[name.replace(" ", "-") for name in rates]
)


@problems
@steps
def test_the_two_ways_agree(problem, inner_steps):
    loss, params, task = problem
    how = {"inner_lr": 0.1, "inner_steps": inner_steps}
    losses, grads = maml.meta_gradient(loss, params, task, **how)
    other_losses, other = maml.meta_gradient(loss, params, task, method="hvp", **how)
    close(other_losses, losses)
    assert apart(other, grads) < ROUNDING


@pytest.mark.parametrize(
    "problem", [regression(), vectors_classification()], ids=["mlp", "mlp-norm"]
)
@each_rate
@steps
def test_the_two_ways_agree_for_every_kind_of_rate(problem, rate, inner_steps):
    loss, params, task = problem
    how = {"inner_lr": rate(params), "inner_steps": inner_steps}
    _, grads = maml.meta_gradient(loss, params, task, **how)
    _, other = maml.meta_gradient(loss, params, task, method="hvp", **how)
    assert apart(other, grads) < ROUNDING
    adapted = maml.adapt(loss, params, task.support, **how)
    for (path, alpha), before, after in zip(
        tree.items(tree.broadcast(how["inner_lr"], params)),
        tree.leaves(params),
        tree.leaves(adapted),
        strict=True,
    ):
        still = np.all(np.asarray(alpha) == 0) or inner_steps == 0
        moved = np.abs(after.numpy() - before.numpy()).max()
        assert moved == 0 if still else moved > 0 or path.endswith("['b']")


@problems
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_the_meta_gradient_equals_finite_differences(problem, inner_steps):
    report = check_meta_gradient(*problem, inner_lr=0.2, inner_steps=inner_steps)
    assert report.error() < TOLERANCES["difference"]
    assert report.notes["explicit product"] < ROUNDING
    assert report.notes["first order"] > 1e-3


@each_rate
def test_finite_differences_agree_for_every_kind_of_rate(rate):
    problem = vectors_classification()
    report = check_meta_gradient(*problem, inner_lr=rate(problem.params), inner_steps=2)
    assert report.error() < TOLERANCES["difference"]


def test_the_meta_gradient_can_itself_be_differentiated():
    loss, params, task = regression()

    def f(params):
        return maml.meta_loss(loss, params, task, inner_lr=0.1).sum()

    report = ml.check_hvp(f, params)
    assert report.error() < TOLERANCES["difference"]


@methods
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_first_order_is_the_query_gradient_at_the_adapted_parameters(method, inner_steps):
    loss, params, task = regression()
    how = {"inner_lr": 0.1, "inner_steps": inner_steps}
    losses, grads = maml.meta_gradient(loss, params, task, first_order=True, method=method, **how)
    adapted = maml.adapt(loss, params, task.support, **how)
    query = grad(lambda p: loss(p, task.query).sum())(adapted)
    close(losses, loss(adapted, task.query))
    close(grads, tree.map(lambda g: g.sum(axis=0), query))
    _, second = maml.meta_gradient(loss, params, task, method=method, **how)
    assert apart(grads, second) > 1e-2


@methods
@problems
def test_float32_follows_float64(problem, method):
    loss, params, task = problem
    how = {"inner_lr": 0.1, "inner_steps": 2, "method": method}
    _, double = maml.meta_gradient(loss, params, task, **how)

    def halved(x):
        return x.astype(np.float32) if x.dtype.kind == "f" else x

    losses, found = maml.meta_gradient(loss, *(tree.map(halved, x) for x in (params, task)), **how)
    assert {losses.dtype, *(g.dtype for g in tree.leaves(found))} == {np.dtype(np.float32)}
    assert apart(tree.map(lambda g: g.astype(np.float64), found), double) < TOLERANCES["float32"]


# ---- learned rates


def learned_rates(loss, params, task, alpha, inner_steps, method="backprop"):
    """Meta-SGD's query losses, its gradient by theta, and that by alpha."""
    dtype = tree.leaves(params)[0].dtype
    meta = {"params": params, "inner_lr": tree.map(lambda a: np.asarray(a, dtype), alpha)}
    algorithm = MetaSGD(loss, inner_lr=0.1, inner_steps=inner_steps, method=method)
    losses, grads = algorithm.gradient(meta, task)
    return losses, grads["params"], grads["inner_lr"]


@each_rate
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_learned_rates_both_ways_and_by_finite_differences(rate, inner_steps):
    loss, params, task = regression()
    alpha = rate(params)
    problem = loss, params, task, alpha, inner_steps
    losses, grads, by_alpha = learned_rates(*problem)
    _, plain = maml.meta_gradient(loss, params, task, inner_lr=alpha, inner_steps=inner_steps)
    assert apart(grads, plain) < ROUNDING
    other_losses, *other = learned_rates(*problem, "hvp")
    close(other_losses, losses)
    assert apart(other, [grads, by_alpha]) < ROUNDING
    tree.map(lambda g, a: np.testing.assert_equal(g.shape, array(a).shape), by_alpha, alpha)
    meta = {"params": params, "inner_lr": tree.map(np.float64, alpha)}
    algorithm = MetaSGD(loss, inner_lr=0.1, inner_steps=inner_steps)
    report = check_algorithm(algorithm, meta, task)
    assert report.error() < TOLERANCES["difference"]
    assert len(report.comparisons) == len(tree.leaves([params, alpha]))


@methods
@each_rate
def test_learned_rates_keep_float32(rate, method):
    loss, params, task = tree.map(
        lambda x: x.astype(np.float32) if hasattr(x, "dtype") else x, regression()
    )
    alpha = tree.map(lambda a: a.astype(np.float32) if hasattr(a, "shape") else a, rate(params))
    _, *result = learned_rates(loss, params, task, alpha, 2, method)
    assert {g.dtype for g in tree.leaves(result)} == {np.dtype(np.float32)}


@methods
def test_the_first_step_along_alpha_is_minus_the_product_of_gradients(method):
    loss, params, task = regression()
    *_, by_alpha = learned_rates(loss, params, task, 0.0, 1, method)
    theta = meta.per_task(params, 3)
    support, query = (grad(lambda p, batch=batch: loss(p, batch).sum())(theta) for batch in task)
    close(by_alpha, -ml.dot(support, query).item())


@methods
def test_trees_of_tuples_and_lists_work(method):
    loss, params, task = regression()
    names = list(params)
    listed = [(params[name]["w"], params[name]["b"]) for name in names]

    def of_listed(listed, batch):
        named = {name: {"w": w, "b": b} for name, (w, b) in zip(names, listed, strict=True)}
        return loss(named, batch)

    for rate in (0.1, [0.1, 0.2, 0.05], [(0.1, 0.2), 0.1, (0.3, 0.05)]):
        _, grads, by_alpha = learned_rates(of_listed, listed, task, rate, 2, method)
        full = tree.broadcast(rate, listed)
        named = {name: {"w": w, "b": b} for name, (w, b) in zip(names, full, strict=True)}
        _, expected, by_named = learned_rates(loss, params, task, named, 2, method)
        close(tree.leaves(grads), tree.leaves(expected))
        summed = {
            1: lambda leaves: [sum(leaves)],
            3: lambda leaves: [sum(leaves[i : i + 2]) for i in (0, 2, 4)],
            5: lambda leaves: [*leaves[:2], leaves[2] + leaves[3], *leaves[4:]],
        }[len(tree.leaves(rate))]
        close(tree.leaves(by_alpha), summed(tree.leaves(by_named)))


# ---- closed forms


def quadratic(tasks, n, seed):
    """L_i = 1/2 (theta - c_i)' A_i (theta - c_i), support and query each with its own A and c."""
    rng = np.random.default_rng(seed)

    def half():
        a = rng.normal(size=(tasks, n, n))
        return Batch(a @ a.swapaxes(1, 2) / n, rng.normal(size=(tasks, n)))

    def loss(params, batch):
        off = ml.expand_dims(params["theta"] - batch.y, -1)
        return (off * (batch.x @ off)).sum(axis=(-2, -1)) / 2

    return loss, rng.normal(size=n), Task(half(), half())


@methods
@given(seed=seeds, inner_steps=st.integers(0, 4), alpha=st.floats(0.01, 0.3))
def test_a_quadratic_has_its_closed_form(method, seed, inner_steps, alpha):
    loss, theta, task = quadratic(3, 4, seed)
    (a_support, c_support), (a_query, c_query) = task
    expected, by_alpha, losses = np.zeros(4), 0.0, []
    for a, c, b, d in zip(a_support, c_support, a_query, c_query, strict=True):
        step = np.eye(4) - alpha * a
        power = np.linalg.matrix_power(step, inner_steps)
        last = c + power @ (theta - c)
        query_grad = b @ (last - d)
        expected += power @ query_grad
        if inner_steps:
            slope = -inner_steps * a @ np.linalg.matrix_power(step, inner_steps - 1) @ (theta - c)
            by_alpha += slope @ query_grad
        losses.append((last - d) @ query_grad / 2)
    how = {"inner_lr": alpha, "inner_steps": inner_steps, "method": method}
    found = maml.meta_gradient(loss, {"theta": theta}, task, **how)
    close(found, (losses, {"theta": expected}))
    if inner_steps:
        found = learned_rates(loss, {"theta": theta}, task, alpha, inner_steps, method)
        close(found, (losses, {"theta": expected}, by_alpha))


@methods
def test_different_rates_on_a_quadratic_have_their_closed_form(method):
    loss, theta, task = quadratic(2, 3, 0)
    alpha = np.array([0.1, 0.0, 0.3])
    expected = np.zeros(3)
    for a, c, b, d in zip(*task.support, *task.query, strict=True):
        here, factors = theta, np.eye(3)
        for _ in range(3):
            factors = factors @ (np.eye(3) - a * alpha)  # I - H alpha, from the left
            here = here - alpha * (a @ (here - c))
        expected += factors @ (b @ (here - d))
    _, grads = maml.meta_gradient(
        loss, {"theta": theta}, task, inner_lr={"theta": alpha}, inner_steps=3, method=method
    )
    close(grads, {"theta": expected})


@methods
def test_what_is_held_still_feels_the_curvature(method):
    # L = 1/2 (u v - 1)^2 with v held: d/dv sees the inner step of u through the mixed derivative.
    def loss(params, batch):
        return ml.square(params["u"] * params["v"] - batch.x[:, 0]) / 2

    task = Task(*(Batch(np.full((1, 1), value), np.zeros((1, 1))) for value in (1.0, 2.0)))
    u, v, alpha = 0.7, 1.3, 0.2
    after = u - alpha * (u * v - 1) * v
    query = after * v - 2
    by_u = query * v * (1 - alpha * v * v)
    by_v = query * (after + v * -alpha * (2 * u * v - 1))
    _, grads = maml.meta_gradient(
        loss, {"u": u, "v": v}, task, inner_lr={"u": alpha, "v": 0}, method=method
    )
    close(grads, {"u": by_u, "v": by_v})


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_held_is_not_even_touched():
    def loss(params, batch):  # its derivative by what is held is infinite at 0
        return ml.sqrt(params["held"]) + params["free"] * batch.x

    batch = Batch(np.ones(2), np.ones(2))
    adapted = maml.adapt(loss, {"held": 0.0, "free": 1.0}, batch, inner_lr={"held": 0, "free": 0.1})
    close(adapted, {"held": [0.0, 0.0], "free": [0.9, 0.9]})


# ---- optimisers inside and outside


inner_optimizers = {
    "sgd": lambda: optim.sgd(0.1),
    "momentum": lambda: optim.sgd(0.1, momentum=0.9),
    "adam": lambda: optim.adam(0.05, b2=0.9, eps_root=1e-3),
}


@pytest.mark.parametrize("name", inner_optimizers)
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_an_inner_optimizer_equals_finite_differences(name, inner_steps):
    inner = {"inner_optimizer": inner_optimizers[name](), "inner_steps": inner_steps}
    report = check_meta_gradient(*regression(), **inner)
    assert report.error() < TOLERANCES["difference"]
    assert report.notes["first order"] > 1e-3


def test_plain_descent_as_an_inner_optimizer_is_plain_descent():
    loss, params, task = regression()
    plain = maml.meta_gradient(loss, params, task, inner_lr=0.1, inner_steps=3)
    close(
        maml.meta_gradient(loss, params, task, inner_optimizer=optim.sgd(0.1), inner_steps=3), plain
    )


@pytest.mark.parametrize("name", inner_optimizers)
def test_every_task_has_its_own_optimizer(name):
    loss, params, task = regression()
    optimizer = inner_optimizers[name]()
    adapted = maml.adapt(loss, params, task.support, inner_optimizer=optimizer, inner_steps=3)
    for t in range(3):
        theta, state = params, optimizer.init(params)
        for _ in range(3):
            grads = grad(lambda p, t=t: loss(p, one_task(task.support, t))[0])(theta)
            theta, state = optimizer.update(theta, grads, state)
        close(tree.map(lambda p, t=t: p[t], adapted), theta)


def test_wrong_combinations_are_refused():
    loss, params, task = regression()
    with pytest.raises(ValueError, match=r"'hvp' is for plain gradient descent.*backprop"):
        maml.meta_gradient(loss, params, task, method="hvp", inner_optimizer=optim.adam())
    with pytest.raises(ValueError, match=r"is 'forward'\. Pass 'backprop' or 'hvp'"):
        maml.meta_gradient(loss, params, task, method="forward", inner_lr=0.1)
    for wrong in ({}, {"inner_lr": 0.1, "inner_optimizer": optim.sgd(0.1)}):
        with pytest.raises(ValueError, match="Pass exactly one of them"):
            maml.adapt(loss, params, task.support, **wrong)
        with pytest.raises(ValueError, match="Pass exactly one of them"):
            maml.meta_gradient(loss, params, task, **wrong)
    with pytest.raises(ValueError, match=r"inner_steps is 0\. Pass a whole number, 1 or more"):
        MetaSGD(loss, inner_lr=0.1, inner_steps=0)
    with pytest.raises(ShapeError):
        maml.adapt(loss, params, task.support, inner_lr={"linear1": 0.1})
    with pytest.raises(DtypeError):
        maml.adapt(loss, {"n": 3}, task.support, inner_lr=0.1)


@methods
@pytest.mark.parametrize(
    "optimizer", [optim.sgd(0.01), optim.sgd(0.01, 0.9), optim.adam()], ids=["sgd", "mom", "adam"]
)
def test_meta_step_is_the_optimizers_update_by_the_meta_gradient(optimizer, method):
    loss, params, task = regression()
    how = {"inner_lr": 0.1, "inner_steps": 2, "method": method}
    state = optimizer.init(params)
    expected, expected_state = params, state
    for _ in range(2):
        losses, grads = maml.meta_gradient(loss, expected, task, **how)
        expected, expected_state = optimizer.update(expected, grads, expected_state)
        params, state, found = maml.meta_step(loss, params, state, task, optimizer=optimizer, **how)
        close(found, losses)
    close(params, expected)
    assert state["step"] == 2


@methods
def test_meta_learning_lowers_the_loss_after_adaptation(method):
    loss, params, task = regression()
    optimizer = optim.adam(0.02)
    state, seen = optimizer.init(params), []
    for _ in range(30):
        params, state, losses = maml.meta_step(
            loss, params, state, task, optimizer=optimizer, inner_lr=0.1, method=method
        )
        seen.append(losses.numpy().sum())
    assert seen[-1] < 0.5 * seen[0]


# ---- memory


@methods
@problems
def test_results_hold_no_graph(problem, method):
    loss, params, task = problem
    result = maml.meta_gradient(loss, params, task, inner_lr=0.1, inner_steps=2, method=method)
    assert all(x.serial == 0 for x in tree.leaves(result))


def test_the_explicit_product_keeps_no_tape_across_steps():
    loss, params, _ = regression()
    rng = np.random.default_rng(0)
    batch = Batch(*rng.normal(size=(2, 2, 2000, 1)))

    def peak(method, inner_steps):
        tracemalloc.start()
        try:
            maml.meta_gradient(
                loss,
                params,
                Task(batch, batch),
                inner_lr=0.01,
                inner_steps=inner_steps,
                method=method,
            )
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    growth = {method: peak(method, 9) - peak(method, 1) for method in ("backprop", "hvp")}
    activations = 2 * 2000 * (5 + 4) * 8  # bytes that the tape of one step keeps at the least
    assert growth["backprop"] > 8 * activations
    assert growth["hvp"] < activations / 4


# ---- one task alone


def mixing(params, batch):
    """The bias (T, 1) meets (T, N, 1) along the examples, when they are as many as the tasks."""
    return ((batch.x @ params["w"] + params["b"] - batch.y) ** 2).mean((1, 2))


def right(params, batch):
    return mixing(params | {"b": params["b"][:, None]}, batch)


def linear_problem():
    rng = np.random.default_rng(0)
    task = Task(*(Batch(x, np.sin(x)) for x in rng.normal(size=(2, 5, 5, 1))))
    return {"w": rng.normal(size=(1, 1)), "b": np.zeros(1)}, task


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", ["backprop", "hvp"])
def test_a_loss_that_mixes_tasks_is_told_so_under_debug_tasks(dtype, method):
    params, task = tree.map(lambda x: x.astype(dtype), linear_problem())
    maml.meta_gradient(mixing, params, task, inner_lr=0.1, method=method)  # silently
    with ml.debug_tasks():
        maml.meta_gradient(right, params, task, inner_lr=0.1, method=method)
        with pytest.raises(ShapeError, match=r"tasks are broadcast against .*params\['b'\]"):
            maml.meta_gradient(mixing, params, task, inner_lr=0.1, method=method)
    maml.meta_gradient(mixing, params, task, inner_lr=0.1, method=method)


def test_a_loss_that_mixes_tasks_labels_is_told_so():
    params, task = linear_problem()
    flat = Task(*(Batch(b.x, b.y[..., 0]) for b in task))

    def loss(params, batch):  # (T, N, 1) - (T, N)
        return ((batch.x @ params["w"] - batch.y) ** 2).mean((1, 2))

    with ml.debug_tasks(), pytest.raises(ShapeError, match="broadcast against examples"):
        maml.adapt(loss, params, flat.support, inner_lr=0.1)


def test_what_the_batch_does_not_hold_is_told_under_debug_tasks():
    params, task = linear_problem()

    def loss(params, batch):  # closes over the labels
        labels = ml.reshape(task.support.y, batch.x.shape)
        return ((batch.x @ params["w"] - labels) ** 2).mean((1, 2))

    with ml.debug_tasks(), pytest.raises(ShapeError, match="task 0 of 5 has none alone"):
        maml.adapt(loss, params, task.support, inner_lr=0.1)


@problems
def test_debug_tasks_changes_nothing_of_what_is_right(problem):
    plain = maml.meta_gradient(*problem, inner_lr=0.1)
    with ml.debug_tasks():
        checked = maml.meta_gradient(*problem, inner_lr=0.1)
        ml.compile(lambda p: maml.meta_gradient(problem.loss, p, problem.task, inner_lr=0.1))(
            problem.params
        )
    assert distance(plain, checked) == 0


def test_a_random_loss_is_not_judged_under_debug_tasks():
    params, task = linear_problem()
    rng = np.random.default_rng(0)

    def loss(params, batch):
        return right(params, batch) * rng.normal()

    with ml.debug_tasks():
        maml.adapt(loss, params, task.support, inner_lr=0.1)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"inner_steps": -1}, ValueError, "adapt: inner_steps is -1. Pass a whole number"),
        ({"inner_steps": 1.5}, ValueError, "adapt: inner_steps is 1.5"),
        ({"inner_lr": -0.1}, ValueError, "adapt: inner_lr is -0.1. Pass a finite number"),
        ({"inner_lr": {"w": -0.1}}, ValueError, r"adapt: inner_lr\['w'\] is -0.1"),
        ({"inner_lr": float("nan")}, ValueError, "adapt: inner_lr is nan"),
    ],
)
@pytest.mark.parametrize("method", ["backprop", "hvp"])
def test_steps_and_rates_that_mean_nothing_are_refused(how, error, says, method) -> None:
    batch = Batch(np.ones((2, 3, 1)), np.ones((2, 3, 1)))
    how = {"inner_lr": 0.1, **how}

    def loss(params, batch):
        return mse(batch.x * ml.reshape(params["w"], (-1, 1, 1)), batch.y, reduction="mean")

    with pytest.raises(error, match=says):
        maml.meta_gradient(loss, {"w": 1.0}, Task(batch, batch), method=method, **how)
    with pytest.raises(error, match=says):
        maml.adapt(loss, {"w": 1.0}, batch, **how)
    with pytest.raises(TypeError, match=r"adapt: support is a Task, not a Batch. Pass .*support"):
        maml.adapt(loss, {"w": 1.0}, Task(batch, batch), inner_lr=0.1)
    with pytest.raises(TypeError, match="meta_loss: task is a Batch, not a Task"):
        maml.meta_gradient(loss, {"w": 1.0}, batch, inner_lr=0.1, method=method)
