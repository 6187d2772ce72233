"""How much better than expected every action was: returns, a linear baseline, advantages.

Arrays are (T, R, H): tasks, lanes, time steps. A lane holds one episode after another (see
:class:`mamlnp.rl.rollout.Transitions`); nothing reaches across their ends.
"""

from __future__ import annotations

import numpy as np

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
        observations: (T, R, H, O).
        times: of each step in its episode, from 0, (T, R, H).

    Returns:
        float64 (T, R * H, 2 O + 4).
    """
    seen = np.clip(observations.astype(np.float64), -FARTHEST, FARTHEST)
    t = times[..., None] / 100.0
    all_of = np.concatenate([seen, seen**2, t, t**2, t**3, np.ones_like(t)], axis=-1)
    return all_of.reshape(len(observations), -1, all_of.shape[-1])


def fitted(inputs: np.ndarray, returns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The linear baseline's values where it was fitted: ridge regression, task by task.

    Args:
        inputs: (T, N, F).
        returns: (T, N).
        weights: 1 where a step counts, else 0, (T, N).

    Returns:
        (T, N). Where the regression fails, the ridge is made ten times larger, five times at most.
    """
    counted = inputs * weights[..., None]
    squares = counted.swapaxes(-1, -2) @ inputs
    targets = (counted * returns[..., None]).sum(1)
    out = np.zeros(returns.shape)
    for task, (square, target) in enumerate(zip(squares, targets, strict=True)):
        ridge = RIDGE
        for _ in range(5):
            try:
                weight = np.linalg.solve(square + ridge * np.eye(len(square)), target)
            except np.linalg.LinAlgError:
                weight = np.full(len(target), np.nan)
            if np.isfinite(weight).all():
                out[task] = inputs[task] @ weight
                break
            ridge *= 10
    return out


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
