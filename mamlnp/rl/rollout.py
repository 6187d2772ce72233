"""Episodes of all tasks together: one forward pass a time step, every task's own policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..backend.machine import one_blas_thread
from ..compile import compile
from .advantages import baseline, discounted, generalised, standardised
from .envs.simulations import Simulations
from .policy import Policy


class Experience(NamedTuple):
    """What a policy gradient is taken from; every leaf has the task axis in front.

    Attributes:
        observations: (T, N, O).
        actions: (T, N, A).
        advantages: (T, N).
        weights: 1 / the number of steps of the task that count, or 0 for one that does not: a sum
            with them is a mean, (T, N).
    """

    observations: Any
    actions: Any
    advantages: Any
    weights: Any


@dataclass(frozen=True)
class Transitions:
    """Lanes of time steps: (T, R, H), where an episode that ends early is followed by another.

    Attributes:
        observations: before each step, float32 (T, R, H, O).
        actions: float32 (T, R, H, A).
        rewards: float32 (T, R, H).
        times: of each step in its episode, from 0.
        ends: whether an episode ends with this step, done, broken or cut off.
        counts: whether a step counts: not if the simulator broke there, nor if its episode was
            still under way when the lane, begun later than the episode's horizon ago, was full.
        broken: how many steps the simulator broke at.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    times: np.ndarray
    ends: np.ndarray
    counts: np.ndarray
    broken: int

    def returns(self) -> np.ndarray:
        """The mean undiscounted return of each task's first episodes, which all came to their
        ends, (T,)."""
        first = np.cumsum(self.ends, axis=-1) - self.ends == 0
        return np.where(first, self.rewards, 0).sum(-1, dtype=np.float64).mean(-1)

    def experience(self, *, discount: float = 0.99, gae_lambda: float = 1.0) -> Experience:
        """With advantages over a linear baseline, fitted on these very steps, standardised for
        each task over the steps that count."""
        returns = discounted(self.rewards, self.ends, discount)
        values = baseline(self.observations, self.times, returns, self.counts)
        advantages = generalised(self.rewards, values, self.ends, discount, gae_lambda)
        counts = self.counts.astype(np.float64)
        weights = counts / np.maximum(counts.sum((1, 2), keepdims=True), 1)
        leaves = self.observations, self.actions, standardised(advantages, counts), weights
        tasks, size = len(self.rewards), self.rewards[0].size
        flat = (
            leaf.reshape(tasks, size, *leaf.shape[3:]).astype(np.float32, copy=False)
            for leaf in leaves
        )
        return Experience(*flat)


class Sampler:
    """Steps tasks x rollouts simulations together.

    Args:
        policy: whose parameters act.
        simulations: as many as tasks x rollouts.
        rollouts: R, lanes a task.
        told: whether the policy observes the task too, as the oracle does.
    """

    def __init__(
        self, policy: Policy, simulations: Simulations, rollouts: int, *, told: bool = False
    ) -> None:
        self.policy, self.simulations, self.rollouts = policy, simulations, rollouts
        self._told = told
        self._act = compile(policy.distribution)

    def sample(self, params: Any, tasks: np.ndarray, *, rng: np.random.Generator) -> Transitions:
        """Lanes as long as the environment's horizon.

        Args:
            params: each task's own, every leaf (T, ...).
            tasks: (T, task size).
            rng: of initial states and actions.
        """
        simulations, shape = self.simulations, (len(tasks), self.rollouts)
        lanes, steps = (*shape, simulations.horizon), range(simulations.horizon)
        observations = np.empty((*lanes, self.policy.observation_size), np.float32)
        actions = np.empty((*lanes, self.policy.action_size), np.float32)
        rewards, times = np.empty(lanes, np.float32), np.zeros(lanes, np.int64)
        over, broken = np.empty(lanes, bool), np.empty(lanes, bool)
        each = np.repeat(tasks, self.rollouts, axis=0)
        told = each.astype(np.float32).reshape(*shape, -1)
        noise = rng.standard_normal((len(steps), *shape, self.policy.action_size), np.float32)
        seen = simulations.reset(each, rng=rng)
        with one_blas_thread():
            for t in steps:
                now = observations[:, :, t]
                now[..., : seen.shape[1]] = seen.reshape(*shape, -1)
                if self._told:
                    now[..., seen.shape[1] :] = told
                policy = self._act(params, now)
                std = np.exp(policy.log_std.value)[:, None]
                actions[:, :, t] = policy.mean.value + std * noise[t]
                step = simulations.step(actions[:, :, t].reshape(len(each), -1))
                seen, ended = step.observations, step.done | step.broken
                rewards[:, :, t] = np.where(step.broken, 0, step.rewards).reshape(shape)
                broken[:, :, t] = step.broken.reshape(shape)
                over[:, :, t] = ended.reshape(shape)
                if t + 1 < len(steps):
                    times[:, :, t + 1] = np.where(over[:, :, t], 0, times[:, :, t] + 1)
                    if ended.any():
                        which = np.flatnonzero(ended)
                        seen[which] = simulations.reset(which=which, rng=rng)
        later = np.cumsum(over[..., ::-1], axis=-1)[..., ::-1] > 0
        first = np.cumsum(over, axis=-1) - over == 0
        ends = over.copy()
        ends[..., -1] = True  # cut off
        counts = (later | first) & ~broken
        return Transitions(observations, actions, rewards, times, ends, counts, int(broken.sum()))
