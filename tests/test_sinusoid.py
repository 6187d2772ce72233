"""The sine tasks: points lie on the curves, curves are drawn as the paper says."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mamlnp.tasks import counted_rng
from mamlnp.tasks.sinusoid import Sinusoids, sine


@given(
    num_tasks=st.integers(1, 5),
    num_shots=st.integers(1, 6),
    num_queries=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_points_lie_on_the_curve_of_their_task(num_tasks, num_shots, num_queries, seed):
    rng = np.random.default_rng(seed)
    amplitude, phase = Sinusoids().sample_parameters(num_tasks, rng=rng)
    assert amplitude.shape == phase.shape == (num_tasks, 1, 1)
    task = Sinusoids().sample_points(
        amplitude, phase, num_shots=num_shots, num_queries=num_queries, rng=rng, dtype=np.float64
    )
    for batch, num in ((task.support, num_shots), (task.query, num_queries)):
        assert batch.x.shape == batch.y.shape == (num_tasks, num, 1)
        for t in range(num_tasks):
            for k in range(num):
                expected = amplitude[t, 0, 0] * math.sin(batch.x[t, k, 0] - phase[t, 0, 0])
                assert batch.y[t, k, 0] == pytest.approx(expected, rel=1e-14)


def test_ranges_are_filled_evenly():
    rng = np.random.default_rng(0)
    amplitude, phase = Sinusoids().sample_parameters(20_000, rng=rng)
    task = Sinusoids().sample(2000, num_shots=5, num_queries=5, rng=rng)
    ranges = ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi), (task.support.x, -5.0, 5.0))
    for values, low, high in (*ranges, (task.query.x, -5.0, 5.0)):
        assert low <= values.min() and values.max() <= high
        counts, _ = np.histogram(values, bins=10, range=(low, high))
        assert counts.min() > 0.85 * values.size / 10


def test_ranges_can_be_chosen():
    sinusoids = Sinusoids(amplitude=(2.0, 3.0), phase=(-1.0, 0.0), x_range=(7.0, 8.0))
    amplitude, phase = sinusoids.sample_parameters(500, rng=np.random.default_rng(0))
    task = sinusoids.sample(50, num_shots=5, num_queries=5, rng=np.random.default_rng(0))
    for values, low in ((amplitude, 2.0), (phase, -1.0), (task.support.x, 7.0)):
        assert low <= values.min() < low + 0.1 and low + 0.9 < values.max() <= low + 1


def test_two_steps_draw_the_same_tasks_as_one():
    sizes = {"num_shots": 5, "num_queries": 15}
    whole = Sinusoids().sample(3, **sizes, rng=counted_rng(1, "test", 4))
    rng = counted_rng(1, "test", 4)
    amplitude, phase = Sinusoids().sample_parameters(3, rng=rng)
    steps = Sinusoids().sample_points(amplitude, phase, **sizes, rng=rng)
    for a, b in zip((*whole.support, *whole.query), (*steps.support, *steps.query), strict=True):
        np.testing.assert_array_equal(a, b)


def test_tasks_sets_and_draws_all_differ():
    first, second = (
        Sinusoids().sample(25, num_shots=10, num_queries=10, rng=counted_rng(0, "train", n))
        for n in (0, 1)
    )
    x = np.concatenate([batch.x.ravel() for task in (first, second) for batch in task])
    assert len(np.unique(x)) > 0.99 * x.size
    amplitude, phase = Sinusoids().sample_parameters(25, rng=np.random.default_rng(0))
    assert len(np.unique(amplitude)) == len(np.unique(phase)) == 25


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_element_type_and_layout(dtype):
    rng = np.random.default_rng(0)
    task = Sinusoids().sample(3, num_shots=2, num_queries=4, rng=rng, dtype=dtype)
    for array in (*task.support, *task.query):
        assert array.dtype == dtype and array.flags.c_contiguous


def test_float32_is_the_default():
    task = Sinusoids().sample(1, num_shots=1, num_queries=1, rng=np.random.default_rng(0))
    assert {array.dtype for batch in task for array in batch} == {np.dtype(np.float32)}


def test_the_curve_broadcasts():
    x = np.linspace(-5, 5, 7)
    phase = np.array([[0.0], [1.0]])
    np.testing.assert_allclose(sine(x, 3.0, phase), [3 * np.sin(x), 3 * np.sin(x - 1)])
