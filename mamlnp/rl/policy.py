"""Policies: a network from observations to a distribution of actions (Finn et al. 2017, section
5.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import nn
from .distributions import Distribution, Gaussian

Params = Any


@dataclass(frozen=True)
class Policy:
    """pi_theta(a | o), whose distribution an MLP with ReLU gives at every observation.

    Attributes:
        observation_size, action_size: O and A; A is the number of actions where they are discrete.
        hidden: the sizes of the hidden layers.
        kind: of distribution: :class:`Gaussian`, N(mean(o), exp(log_std)^2), or
            :class:`~.distributions.Categorical`.
        network: gives the mean, or the logits.
    """

    observation_size: int
    action_size: int
    hidden: tuple[int, ...] = (100, 100)
    kind: type[Distribution] = Gaussian
    network: nn.Network = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = (self.observation_size, *self.hidden, self.action_size)
        object.__setattr__(self, "network", nn.mlp(sizes, weights=nn.xavier))

    def init(self, *, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """Glorot's uniform weights, zero biases, and what the distribution begins with."""
        layers = self.network.init(rng=rng, dtype=dtype)
        return {**layers, **self.kind.parameters(self.action_size, dtype)}

    def distribution(self, params: Params, observations: Any) -> Any:
        """The policy's distributions at observations (..., N, O) (docs, equation 7.1)."""
        return self.kind.of(self.network.apply(params, observations), params)
