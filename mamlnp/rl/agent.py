"""A meta-learned policy, ready to adapt to a task of one's own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import tree
from ..errors import DataError
from .envs import ENVIRONMENTS
from .maml_rl import Learner, MetaPolicy, inner_loop
from .policy import Policy
from .rollout import Sampler


@dataclass(frozen=True, repr=False)
class Agent:
    """theta of a policy, and how to adapt it.

    Attributes:
        network: the policy that theta parametrises.
        params: theta, or theta' once adapted; no task axis.
        environment: its name, such as "nav2d" or "ant-dir".
        inner_lr: alpha.
        rollouts: before each inner step.
        discount, gae_lambda, inner_gae_lambda: of the advantages, as in training.
        told: whether the policy observes the task too, after what the environment gives.
        about: where it comes from: experiment, settings, scores.
    """

    network: Policy
    params: Any
    environment: str
    inner_lr: float
    rollouts: int
    discount: float = 0.99
    gae_lambda: float = 1.0
    inner_gae_lambda: float | None = None
    told: bool = False
    about: dict[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        """What it is, without its parameters."""
        numbers = sum(leaf.size for leaf in tree.leaves(self.params))
        return f"<Agent of {self.environment}: {numbers:,} parameters>"

    def act(
        self, observations: npt.ArrayLike, *, rng: np.random.Generator | None = None
    ) -> npt.NDArray[np.float32]:
        """An action for each observation, (N, O) -> (N, A) or (O,) -> (A,).

        Args:
            observations: as the environment gives them; the task after them, if it is told.
            rng: to draw from the policy; its mean without one.
        """
        seen = np.asarray(observations, np.float32)
        policy = self.network.distribution(self.params, np.atleast_2d(seen))
        action = policy.mode() if rng is None else policy.sample(rng)
        return action.reshape(*seen.shape[:-1], -1)

    def adapt(
        self,
        task: npt.ArrayLike,
        *,
        inner_steps: int = 1,
        rng: np.random.Generator,
    ) -> Agent:
        """theta' after as many policy-gradient steps, each on rollouts of its own in the task: the
        first of size alpha, the others half of it, as in the authors' evaluation.

        Args:
            task: a goal of the environment's, such as (0.3, -0.2) in nav2d or -1 for backwards.
            inner_steps: how many.
            rng: of the rollouts.
        """
        if inner_steps < 0:
            raise DataError(f"adapt: inner_steps is {inner_steps}. Pass 0 or more.")
        environment = ENVIRONMENTS[self.environment]
        goal = environment.as_task(task)[None]
        simulations = environment.make(self.rollouts, None)
        sampler = Sampler(self.network, simulations, self.rollouts, told=self.told)
        learner = Learner(
            MetaPolicy(self.network, self.inner_lr),
            discount=self.discount,
            gae_lambda=self.gae_lambda,
            inner_gae_lambda=self.inner_gae_lambda,
        )
        lrs = [self.inner_lr / (2 if step else 1) for step in range(inner_steps)]
        _, thetas = inner_loop(learner, sampler, self.params, goal, lrs=lrs, rng=rng)
        return replace(self, params=tree.map(lambda leaf: leaf[0], thetas))
