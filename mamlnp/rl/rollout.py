"""Episodes of all tasks together: one forward pass a time step, every task's own policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..backend.machine import one_blas_thread
from ..compile import compile
from ..errors import ShapeError
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
    """Lanes of time steps: (T, R, L), where an episode that ends early is followed by another.

    A lane begins episodes until it is as long as the horizon, and ends what it began. Of a task's
    episodes count, in the order of their beginnings, as many as make R x horizon steps or more: as
    the authors' sampler does it. Whether an episode counts must not depend on its own length: were
    those dropped that are under way when a lane is full, the short ones would be too many.

    Attributes:
        observations: before each step, float32 (T, R, L, O).
        actions: float32 (T, R, L, A).
        rewards: float32 (T, R, L).
        times: of each step in its episode, from 0.
        ends: whether an episode ends with this step, done, broken or cut off.
        broken: whether the simulator broke at this step.
        counts: whether a step counts: it was taken, did not break, and is of an episode that does.
        horizon: steps after which an episode is cut off.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    times: np.ndarray
    ends: np.ndarray
    broken: np.ndarray
    counts: np.ndarray
    horizon: int

    def returns(self) -> np.ndarray:
        """The mean undiscounted return of each task's first episodes, one a lane, (T,): of those
        at whose steps the simulator did not break; NaN where there are none."""
        first = np.cumsum(self.ends, axis=-1) - self.ends == 0
        whole = ~(first & self.broken).any(-1)
        sums = np.where(first, self.rewards, 0).sum(-1, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return np.where(whole, sums, 0).sum(-1) / whole.sum(-1)

    def experience(self, *, discount: float = 0.99, gae_lambda: float = 1.0) -> Experience:
        """The steps that count, with advantages over a linear baseline, fitted on these very steps,
        standardised for each task.

        N is R x horizon where no episode ended early, and R + 1 times the horizon where one did,
        enough in any case; what is left has weight 0.
        """
        returns = discounted(self.rewards, self.ends, discount)
        values = baseline(self.observations, self.times, returns, self.counts)
        advantages = generalised(self.rewards, values, self.ends, discount, gae_lambda)
        found = self.counts.sum((1, 2))
        weights = self.counts / np.maximum(found, 1)[:, None, None]
        leaves = self.observations, self.actions, standardised(advantages, self.counts), weights
        tasks, rollouts, _ = self.counts.shape
        room = rollouts * self.horizon
        if self.counts.all() and self.counts.shape[2] == self.horizon:
            shapes = ((tasks, room, *leaf.shape[3:]) for leaf in leaves)
            flat = map(np.reshape, leaves, shapes)
            return Experience(*(leaf.astype(np.float32, copy=False) for leaf in flat))
        room += self.horizon
        packed = [np.zeros((tasks, room, *leaf.shape[3:]), np.float32) for leaf in leaves]
        for leaf, into in zip(leaves, packed, strict=True):
            for task, count in enumerate(found):
                into[task, :count] = leaf[task][self.counts[task]]
        return Experience(*packed)


class Sampler:
    """Steps tasks x rollouts simulations together, a lane each.

    Args:
        policy: whose parameters act.
        simulations: as many as tasks x rollouts.
        rollouts: R, lanes a task.
        told: whether the policy observes the task too, as the oracle does.

    Raises:
        ShapeError: the policy observes something else.
    """

    def __init__(
        self, policy: Policy, simulations: Simulations, rollouts: int, *, told: bool = False
    ) -> None:
        seen = simulations.observation_size + told * simulations.task_size
        if policy.observation_size != seen:
            raise ShapeError(
                f"Sampler: the policy observes {policy.observation_size} numbers, the environment "
                f"gives {seen}. {'' if told else 'If it observes the task too, pass told=True.'}"
            )
        self.policy, self.simulations, self.rollouts = policy, simulations, rollouts
        self._told = told
        self._act = compile(policy.distribution, check=False)  # a few products, no gradient

    def sample(self, params: Any, tasks: np.ndarray, *, rng: np.random.Generator) -> Transitions:
        """Episodes of every task, by its own parameters.

        Args:
            params: each task's own, every leaf (T, ...).
            tasks: (T, task size).
            rng: of initial states and actions.
        """
        simulations, rollouts, horizon = self.simulations, self.rollouts, self.simulations.horizon
        shape, num = (len(tasks), rollouts), len(tasks) * rollouts
        lanes = num, 2 * horizon - 1
        observations = np.zeros((*lanes, self.policy.observation_size), np.float32)
        width = self.policy.kind.width(self.policy.action_size)
        actions = np.zeros((*lanes, width), np.float32)
        rewards, begun = np.zeros(lanes, np.float32), np.zeros(lanes, np.int64)
        taken, ends, broken = (np.zeros(lanes, bool) for _ in range(3))
        each = np.repeat(tasks, rollouts, axis=0)
        task, lane = np.divmod(np.arange(num), rollouts)
        # Of a task's episodes, by when they began and then by lane: how many steps each has had.
        episode, lengths = lane.copy(), np.zeros((len(tasks), horizon * rollouts), np.int64)

        def wanted() -> np.ndarray:
            """Whether those before an episode are too few, of every episode of every task."""
            return np.cumsum(lengths, axis=1) - lengths < rollouts * horizon

        seen = simulations.reset(each, rng=rng)
        size = seen.shape[1]
        acting, t = np.arange(num), 0
        with one_blas_thread():
            while len(acting):
                observations[acting, t, :size] = seen[acting]
                if self._told:
                    observations[acting, t, size:] = each[acting]
                policy = self._act(params, observations[:, t].reshape(*shape, -1))
                chosen = policy.sample(rng).reshape(num, -1)[acting]
                step = simulations.step(chosen, None if len(acting) == num else acting)
                begun[:, t] = episode // rollouts
                over = step.done | step.broken | (t + 1 - begun[acting, t] == horizon)
                actions[acting, t], taken[acting, t] = chosen, True
                rewards[acting, t] = np.where(step.broken, 0, step.rewards)
                ends[acting, t], broken[acting, t] = over, step.broken
                lengths[task[acting], episode[acting]] += 1
                seen[acting], done, t = step.observations, acting[over], t + 1
                if t < horizon and len(done):
                    seen[done] = simulations.reset(which=done, rng=rng)
                    episode[done] = t * rollouts + lane[done]
                elif t >= horizon:
                    acting = acting[~over]
                    acting = acting[wanted()[task[acting], episode[acting]]]
        numbers = begun * rollouts + lane[:, None]
        counts = taken & ~broken & wanted()[task[:, None], numbers]
        times = np.arange(lanes[1]) - begun

        def of_lanes(found: np.ndarray) -> np.ndarray:
            return found[:, :t].reshape(*shape, t, *found.shape[2:])

        return Transitions(
            observations=of_lanes(observations),
            actions=of_lanes(actions),
            rewards=of_lanes(rewards),
            times=of_lanes(times),
            ends=of_lanes(ends),
            broken=of_lanes(broken),
            counts=of_lanes(counts),
            horizon=horizon,
        )
