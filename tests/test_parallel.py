"""A meta-batch in chunks over threads: the same numbers as at once, whatever the threads."""

import numpy as np
import pytest

import mamlnp as ml
from mamlnp import parallel
from mamlnp.errors import ShapeError
from mamlnp.gradcheck import TOLERANCES
from mamlnp.meta import MAML

NETWORK = ml.nn.mlp((2, 8, 3), weights=ml.nn.xavier)


def loss(params, batch):
    return ml.losses.cross_entropy(NETWORK.apply(params, batch.x), batch.y, reduction="mean")


ALGORITHM = MAML(loss, inner_lr=0.1)


def problem(tasks=7, dtype=np.float64):
    rng = np.random.default_rng(0)

    def batch(n):
        return ml.Batch(
            rng.normal(size=(tasks, n, 2)).astype(dtype), rng.integers(0, 3, (tasks, n))
        )

    return NETWORK.init(rng=rng, dtype=dtype), ml.Task(batch(4), batch(5))


def assert_close(a, b):
    for x, y in zip(ml.tree.leaves(a), ml.tree.leaves(b), strict=True):
        bound = TOLERANCES["rounding"] * max(1.0, float(np.abs(y).max()))
        np.testing.assert_allclose(x, y, rtol=0, atol=bound)


def same_bits(a, b):
    pairs = zip(ml.tree.leaves(a), ml.tree.leaves(b), strict=True)
    return all(x.numpy().tobytes() == y.numpy().tobytes() for x, y in pairs)


def test_an_algorithm_in_the_place_of_its_gradient_is_refused():
    with pytest.raises(TypeError, match=r"Pass algorithm\.gradient"):
        parallel.meta_gradient(ALGORITHM)
    with pytest.raises(TypeError, match=r"Pass algorithm\.gradient"):
        parallel.meta_step(ALGORITHM, optimizer=ml.optim.sgd(0.1))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("chunks", [1, 2, 3, 7, None])
def test_chunks_add_up_to_the_whole(chunks, compiled):
    params, task = problem()
    how = {"inner_lr": 0.1, "inner_steps": 2}
    gradient = parallel.meta_gradient(MAML(loss, **how).gradient, chunks=chunks, compiled=compiled)
    assert_close(gradient(params, task), ml.maml.meta_gradient(loss, params, task, **how))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("chunks", [1, 3])
def test_a_step_is_the_step_of_the_algorithm(chunks, compiled):
    params, task = problem()
    optimizer = ml.optim.adam(ml.optim.cosine(0.1, 5))
    step = parallel.meta_step(
        ALGORITHM.gradient, optimizer=optimizer, chunks=chunks, compiled=compiled
    )
    ours, expected = [(params, optimizer.init(params))] * 2
    for _ in range(3):
        *ours, losses = step(*ours, task)
        *expected, other = ml.maml.meta_step(
            loss, *expected, task, optimizer=optimizer, inner_lr=0.1
        )
        assert_close((ours, losses), (expected, other))
    assert ours[1]["step"] == 3


@pytest.mark.parametrize("compiled", [True, False])
def test_the_threads_do_not_change_a_bit(compiled):
    params, task = problem(dtype=np.float32)
    found = [
        parallel.meta_gradient(ALGORITHM.gradient, chunks=4, threads=n, compiled=compiled)
        for n in (1, 2, 5)
    ]
    first = found[0](params, task)
    assert all(same_bits(first, gradient(params, task)) for gradient in found for _ in range(5))


def test_parts_of_the_meta_batch_cover_it_in_order():
    _, task = problem()
    for chunks in range(1, 8):
        parts = parallel.split(task, chunks)
        sizes = [len(part.support.x) for part in parts]
        assert len(parts) == chunks and max(sizes) - min(sizes) <= 1
        np.testing.assert_array_equal(np.concatenate([p.query.y for p in parts]), task.query.y)
    assert len(parallel.split(task, None)) == 7


@pytest.mark.parametrize("chunks", [0, 8])
def test_more_chunks_than_tasks_are_refused(chunks):
    params, task = problem()
    with pytest.raises(
        ShapeError, match=rf"7 tasks do not make {chunks} chunks\. Pass from 1 to 7"
    ):
        parallel.meta_gradient(ALGORITHM.gradient, chunks=chunks)(params, task)


def test_a_chunk_that_fails_says_why():
    params, task = problem()
    gradient = parallel.meta_gradient(ALGORITHM.gradient, chunks=3, threads=2)
    gradient(params, task)
    bad = ml.Task(task.support, ml.Batch(task.query.x, task.query.y + 1))
    with pytest.raises(ShapeError, match="they run from 1 to 3 but there are 3 classes"):
        gradient(params, bad)
    gradient(params, task)


def test_blas_has_one_thread_meanwhile_and_then_what_it_had():
    from mamlnp.backend import machine

    params, task = problem()
    before, meanwhile = machine.blas().threads, []

    def watched(params, batch):
        meanwhile.append(machine.blas().threads)
        return loss(params, batch)

    gradient = MAML(watched, inner_lr=0.1).gradient
    parallel.meta_gradient(gradient, chunks=2, compiled=False)(params, task)
    assert set(meanwhile) <= {1, None}
    assert machine.blas().threads == before
