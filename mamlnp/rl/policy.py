"""A diagonal Gaussian policy (Finn et al. 2017, section 5.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..array import Array, array
from ..op import as_array
from ..ops.elementwise import exp, square, sub
from ..ops.reduce import sum
from ..ops.shape import expand_dims

Params = Any
LOG_2PI = math.log(2 * math.pi)


class Gaussian(NamedTuple):
    """Attributes:
    mean: (..., N, A).
    log_std: the same for every state, (..., A).
    """

    mean: Array
    log_std: Array


@dataclass(frozen=True)
class Policy:
    """pi_theta(a | o) = N(mean(o), exp(log_std)^2), mean an MLP with ReLU.

    Attributes:
        observation_size, action_size: O and A.
        hidden: the sizes of the hidden layers.
        network: gives the mean.
    """

    observation_size: int
    action_size: int
    hidden: tuple[int, ...] = (100, 100)
    network: nn.Network = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = (self.observation_size, *self.hidden, self.action_size)
        object.__setattr__(self, "network", nn.mlp(sizes, weights=nn.xavier))

    def init(self, *, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """Glorot's uniform weights, zero biases, a standard deviation of 1."""
        log_std = array(np.zeros(self.action_size, dtype))
        return {**self.network.init(rng=rng, dtype=dtype), "log_std": log_std}

    def distribution(self, params: Params, observations: Any) -> Gaussian:
        """The policy's distributions at observations (..., N, O) (docs, equation 7.1)."""
        layers = {name: layer for name, layer in params.items() if name != "log_std"}
        return Gaussian(self.network.apply(layers, observations), as_array(params["log_std"]))


def log_prob(policy: Gaussian, actions: Any) -> Array:
    """log pi(a | o), (..., N), of actions (..., N, A).

    >>> standard = Gaussian(array([[0.0]]), array([0.0]))
    >>> round(float(log_prob(standard, [[1.0]])[0]), 4)
    -1.4189
    """
    log_std = expand_dims(policy.log_std, -2)
    scaled = sub(actions, policy.mean) * exp(-log_std)
    size = policy.log_std.shape[-1]
    return -0.5 * sum(square(scaled), -1) - sum(log_std, -1) - 0.5 * size * LOG_2PI


def kl(old: Gaussian, new: Gaussian) -> Array:
    """KL(old || new) in nats at each state, (..., N).

    >>> a, b = Gaussian(array([[0.0]]), array([0.0])), Gaussian(array([[1.0]]), array([0.0]))
    >>> float(kl(a, a)[0]), float(kl(a, b)[0])
    (0.0, 0.5)
    """
    log_ratio = expand_dims(new.log_std - old.log_std, -2)
    moved = square(sub(new.mean, old.mean)) * exp(-2 * expand_dims(new.log_std, -2))
    return sum(log_ratio + 0.5 * (exp(-2 * log_ratio) + moved) - 0.5, -1)


def fisher_product(policy: Gaussian, tangent: Gaussian) -> Gaussian:
    """The Fisher information of each state's Gaussian times a tangent: mean / sigma^2, 2 log_std.

    It is the Hessian of KL(policy || .) at the policy itself. For log_std, which all states share,
    it is that of one state.
    """
    precision = exp(-2 * expand_dims(policy.log_std, -2))
    return Gaussian(precision * tangent.mean, 2 * tangent.log_std)
