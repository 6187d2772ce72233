"""How much better than expected every action was: returns, a linear baseline, advantages.

Arrays are (T, R, H): tasks, lanes, time steps. A lane holds one episode after another (see
:class:`mamlnp.rl.rollout.Transitions`); nothing reaches across their ends.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..backend.machine import cores, one_blas_thread

RIDGE = 1e-5
FARTHEST = 10.0  # observations are clipped to this in the baseline's features


def discounted(values: np.ndarray, ends: np.ndarray, discount: float) -> np.ndarray:
    """sum_k discount^k values[t + k] up to the episode's end.

    Args:
        values: (T, R, H).
        ends: whether an episode ends with this step, (T, R, H).
        discount: gamma, or gamma lambda.

    >>> ends = np.array([[[False, True, False, True]]])
    >>> discounted(np.ones((1, 1, 4)), ends, 0.5)
    array([[[1.5, 1. , 1.5, 1. ]]])
    """
    out = np.zeros(values.shape, np.float64)
    after = np.zeros(values.shape[:-1])
    for t in reversed(range(values.shape[-1])):
        after = values[..., t] + discount * np.where(ends[..., t], 0, after)
        out[..., t] = after
    return out


def features(observations: np.ndarray, times: np.ndarray) -> np.ndarray:
    """What the baseline is linear in: o, o^2, t/100, its square and cube, and 1.

    Args:
        observations: (..., O).
        times: of each step in its episode, from 0, (...).

    Returns:
        float64 (..., 2 O + 4).
    """
    size = observations.shape[-1]
    out = np.empty((*times.shape, 2 * size + 4))
    np.clip(observations, -FARTHEST, FARTHEST, out=out[..., :size])
    np.square(out[..., :size], out=out[..., size : 2 * size])
    t = times / 100.0
    for power in (1, 2, 3):
        out[..., 2 * size + power - 1] = t**power
    out[..., -1] = 1
    return out


def fitted(inputs: np.ndarray, returns: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The linear baseline's values where it was fitted: ridge regression for one task.

    Args:
        inputs: (N, F).
        returns: (N,).
        counts: whether a step counts, (N,).

    Returns:
        (N,). Where the regression fails, the ridge is made ten times larger, five times at most;
        then the values are 0.
    """
    chosen = inputs if counts.all() else inputs[counts]
    square, target = chosen.T @ chosen, chosen.T @ returns[counts]
    for power in range(5):
        try:
            weight = np.linalg.solve(square + RIDGE * 10**power * np.eye(len(square)), target)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(weight).all():
            return inputs @ weight
    return np.zeros(len(returns))


def baseline(
    observations: np.ndarray, times: np.ndarray, returns: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Every task's own baseline at its own steps, tasks over threads.

    Args:
        observations: (T, R, H, O).
        times, returns, counts: (T, R, H).

    Returns:
        (T, R, H).
    """

    def of(task: int) -> np.ndarray:
        inputs = features(observations[task], times[task]).reshape(returns[task].size, -1)
        return fitted(inputs, returns[task].ravel(), counts[task].ravel())

    with one_blas_thread(), ThreadPoolExecutor(cores()) as pool:
        return np.stack(list(pool.map(of, range(len(returns))))).reshape(returns.shape)


def generalised(
    rewards: np.ndarray, values: np.ndarray, ends: np.ndarray, discount: float, gae_lambda: float
) -> np.ndarray:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16); (T, R, H).

    An episode's end has the value 0, whether it was done or cut off, as in the authors' code.
    """
    after = np.zeros(values.shape)
    after[..., :-1] = np.where(ends[..., :-1], 0, values[..., 1:])
    return discounted(rewards + discount * after - values, ends, discount * gae_lambda)


def standardised(advantages: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 over the steps of each task that count; 0 elsewhere."""
    axes = tuple(range(1, advantages.ndim))
    count = np.maximum(weights.sum(axes, keepdims=True), 1)
    mean = (weights * advantages).sum(axes, keepdims=True) / count
    spread = np.sqrt((weights * (advantages - mean) ** 2).sum(axes, keepdims=True) / count)
    return weights * (advantages - mean) / (spread + 1e-8)
