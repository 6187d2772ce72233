"""Algorithms: what MAML and Meta-SGD share, and room for those with a state of their own."""

import functools

import numpy as np
import pytest

import mamlnp as ml
from mamlnp import Batch, Task, meta, nn, optim, parallel, tree
from mamlnp.errors import ShapeError
from mamlnp.gradcheck import TOLERANCES, check_algorithm
from mamlnp.losses import mse
from mamlnp.meta import MAML, Algorithm, MetaSGD, through
from mamlnp.ops.elementwise import square

TASKS = 5
NETWORK = nn.mlp((1, 6, 1), activation=ml.tanh, weights=nn.fan_in)


def loss(params, batch):
    return mse(NETWORK.apply(params, batch.x), batch.y, reduction="mean")


def problem(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    sets = (Batch(*rng.normal(size=(2, TASKS, n, 1)).astype(dtype)) for n in (4, 3))
    return NETWORK.init(rng=np.random.default_rng(0), dtype=dtype), Task(*sets)


def reptile(*, inner_lr, inner_steps, decay=0.9):
    """Reptile whose inner steps are scaled by a moment that is handed from task to task."""

    def descended(state, support):
        tasks = meta.num_tasks(support)
        theta, moment = (meta.per_task(state[part], tasks) for part in ("params", "moment"))
        for _ in range(inner_steps):
            grads = ml.grad(meta.total(loss, support))(theta)
            moment = tree.map(lambda m, g: decay * m + (1 - decay) * square(g), moment, grads)
            theta = tree.map(
                lambda p, m, g: p - inner_lr * g / (ml.sqrt(m) + 1e-3), theta, moment, grads
            )
        return {"params": theta, "moment": moment}

    def gradient(state, task):
        new = descended(state, task.support)
        losses = meta.task_losses(loss, new["params"], task.query)
        return losses, tree.map(lambda old, new: ml.sum(old - new, 0), state, new)

    def optimizer(of_theta, tasks):
        return optim.parts({"params": of_theta, "moment": optim.sgd(1 / tasks)})

    return Algorithm(
        adapt=lambda state, support: descended(state, support)["params"],
        loss=loss,
        gradient=gradient,
        init=lambda theta: {"params": theta, "moment": tree.map(ml.zeros_like, theta)},
        optimizer=optimizer,
    )


def annealed(*, inner_lr, over):
    """MAML whose loss after one step gives way to that after two, the longer the training."""

    def gradient(state, task):
        def objective(theta):
            path = ml.maml.inner_loop(loss, theta, task.support, inner_lr=inner_lr)
            _, first, last = (
                meta.task_losses(loss, theta, task.query)
                for theta, _ in zip(path, range(3), strict=False)
            )
            share = ml.minimum(state["done"] / over, 1.0)
            return ((1 - share) * first + share * last).sum(), last

        (_, losses), grads = ml.value_and_grad(objective, has_aux=True)(state["params"])
        return losses, {"params": grads, "done": -ml.ones_like(losses).sum()}

    adapt = MAML(loss, inner_lr=inner_lr, inner_steps=2).adapt
    return Algorithm(
        adapt=lambda state, support: adapt(state["params"], support),
        loss=loss,
        gradient=gradient,
        init=lambda theta: {"params": theta, "done": ml.array(0.0)},
        optimizer=lambda of_theta, tasks: optim.parts(
            {"params": of_theta, "done": optim.sgd(1 / tasks)}
        ),
    )


def remembering():
    """A learner that adapts to a memory: the mean of the support set, read by a network."""
    reads = nn.mlp((3, 6, 1), activation=ml.tanh, weights=nn.fan_in)

    def adapt(params, support):
        seen = ml.concatenate([support.x, support.y], -1).mean(1, keepdims=True)
        return {"params": meta.per_task(params, meta.num_tasks(support)), "memory": seen}

    def answers(adapted, batch):
        memory = ml.broadcast_to(adapted["memory"], (*batch.x.shape[:2], 2))
        x = ml.concatenate([batch.x, memory], -1)
        return mse(reads.apply(adapted["params"], x), batch.y, reduction="mean")

    return reads, through(adapt, answers)


ALGORITHMS = {
    "MAML": MAML(loss, inner_lr=0.1),
    "first order": MAML(loss, inner_lr=0.1, first_order=True),
    "explicit product": MAML(loss, inner_lr=0.1, method="hvp"),
    "Meta-SGD": MetaSGD(loss, inner_lr=0.1),
    "a moment of its own": reptile(inner_lr=0.1, inner_steps=3),
    "annealed": annealed(inner_lr=0.1, over=10.0),
}


def trained(algorithm, *, chunks, threads=1, compiled=True, iterations=6, state=None):
    """(meta, opt_state) after some meta-steps; from a state, the ones that are left."""
    optimizer = algorithm.optimizer(optim.adam(0.01), TASKS)
    step = parallel.meta_step(
        algorithm.gradient, optimizer=optimizer, chunks=chunks, threads=threads, compiled=compiled
    )
    start = algorithm.init(problem()[0])
    done, meta, opt = state or (0, start, optimizer.init(start))
    for n in range(done, iterations):
        meta, opt, losses = step(meta, opt, problem(n)[1])
        assert losses.shape == (TASKS,)
    return iterations, meta, opt


def bits(state):
    return [x.numpy().tobytes() for x in tree.leaves(state[1:])]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_carried_along_is_the_same_on_one_thread_or_many_and_compiled_or_not(name):
    algorithm = ALGORITHMS[name]
    one = trained(algorithm, chunks=3, threads=1)
    assert bits(trained(algorithm, chunks=3, threads=4)) == bits(one)
    for how in ({"chunks": 1}, {"chunks": None}, {"chunks": 2, "compiled": False}):
        other = trained(algorithm, **how)
        for a, b in zip(tree.leaves(one[1:]), tree.leaves(other[1:]), strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_training_that_goes_on_is_the_unbroken_one(name):
    algorithm = ALGORITHMS[name]
    half = trained(algorithm, chunks=2, iterations=3)
    assert bits(trained(algorithm, chunks=2, state=half)) == bits(trained(algorithm, chunks=2))


def test_how_far_the_training_is_does_not_make_another_plan():
    algorithm = ALGORITHMS["annealed"]
    _, state, _ = trained(algorithm, chunks=1)
    assert float(state["done"]) == pytest.approx(6)
    step = ml.compile(algorithm.gradient)
    weights = []
    for done in (0.0, 5.0, 10.0):
        _, grads = step({**state, "done": ml.array(done)}, problem()[1])
        weights.append(grads["params"]["linear1"]["w"].numpy())
    assert len(step._known) == 1
    np.testing.assert_allclose(weights[1], (weights[0] + weights[2]) / 2, rtol=1e-9)


def test_a_moment_is_the_mean_of_what_tasks_made_of_it():
    algorithm, (params, task) = ALGORITHMS["a moment of its own"], problem()
    _, state, _ = trained(algorithm, chunks=1, iterations=1)
    alone = [
        algorithm.gradient(algorithm.init(params), tree.map(lambda x, i=i: x[i : i + 1], task))[1]
        for i in range(TASKS)
    ]
    for path, leaf in tree.items(state["moment"]):
        found = [-dict(tree.items(grads["moment"]))[path].numpy() for grads in alone]
        np.testing.assert_allclose(leaf.numpy(), np.mean(found, 0), rtol=1e-9)


def test_a_memory_is_learned_through():
    reads, algorithm = remembering()
    params, task = reads.init(rng=np.random.default_rng(0), dtype=np.float64), problem()[1]
    assert check_algorithm(algorithm, params, task).error() < TOLERANCES["difference"]
    losses, _ = ml.compile(algorithm.gradient)(params, task)
    np.testing.assert_allclose(losses.numpy(), algorithm.gradient(params, task)[0].numpy())


def test_meta_sgd_learns_alpha():
    params, task = problem()
    algorithm = MetaSGD(loss, inner_lr=0.01, inner_steps=2)
    state = algorithm.init(params)
    optimizer = optim.adam(0.003)
    step = parallel.meta_step(algorithm.gradient, optimizer=optimizer)
    opt, losses = optimizer.init(state), []
    for _ in range(200):
        state, opt, found = step(state, opt, task)
        losses.append(float(found.mean()))
    rates = np.concatenate([a.numpy().ravel() for a in tree.leaves(state["inner_lr"])])
    assert losses[-1] < 0.8 * losses[0]
    assert rates.std() > 0.001  # each its own


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_lr": -0.1}, r"inner_lr is -0\.1\. Pass a finite number"),
        ({"inner_lr": {"linear1": 0.1, "linear2": -1.0}}, r"inner_lr\['linear2'\] is -1\.0"),
        ({"inner_lr": float("nan")}, "inner_lr is nan"),
        ({"inner_lr": 0.1, "inner_steps": -1}, "inner_steps is -1"),
        ({"inner_lr": 0.1, "inner_steps": 1.5}, r"inner_steps is 1\.5"),
        ({"inner_lr": 0.1, "method": "forward"}, "is 'forward'"),
        ({}, "exactly one of them"),
    ],
    ids=str,
)
def test_a_wrong_setting_fails_where_the_algorithm_is_made(wrong, message):
    with pytest.raises(ValueError, match=message):
        MAML(loss, **wrong)


@pytest.mark.parametrize("make", [MAML, functools.partial(MetaSGD, inner_lr=0.1)])
def test_a_misspelt_setting_fails_where_the_algorithm_is_made(make):
    with pytest.raises(TypeError, match="inner_stepss"):
        make(loss, inner_stepss=3)


def test_meta_sgd_refuses_what_would_learn_no_alpha():
    with pytest.raises(ValueError, match=r"inner_steps is 0\. Pass a whole number, 1 or more"):
        MetaSGD(loss, inner_lr=0.1, inner_steps=0)
    for rate in (-0.1, float("inf")):
        with pytest.raises(ValueError, match="inner_lr is"):
            MetaSGD(loss, inner_lr=rate)


def test_one_set_of_examples_is_refused():
    params, task = problem()
    with pytest.raises(TypeError, match=r"Pass Task\(support, query\)"):
        MAML(loss, inner_lr=0.1).gradient(params, task.support)


def test_parts_take_their_own_rules_and_no_others():
    rule = optim.parts({"a": optim.sgd(1.0), "b": optim.adam(0.1)})
    state = rule.init({"a": ml.array(1.0), "b": ml.array(2.0)})
    new, state = rule.update({"a": ml.array(1.0), "b": ml.array(2.0)}, {"a": 3.0, "b": 3.0}, state)
    assert float(new["a"]) == -2.0 and float(new["b"]) == pytest.approx(1.9)
    assert int(state["step"]) == int(state["parts"]["b"]["step"]) == 1
    with pytest.raises(ShapeError, match=r"a, b.*a, c"):
        rule.init({"a": ml.array(1.0), "c": ml.array(2.0)})
