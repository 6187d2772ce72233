"""What a policy draws its actions from, at every state by itself.

A distribution is a tree of Arrays, so that it passes through derivatives and compiled plans. A
policy is made for a kind of them; nothing else here knows which.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from ..array import Array, array
from ..backend import to_host
from ..op import as_array
from ..ops.elementwise import astype, exp, mul, square, sub
from ..ops.gather import take_along_axis
from ..ops.reduce import log_softmax, sum
from ..ops.shape import expand_dims, squeeze

Params = dict[str, Any]
LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """What a kind of distribution has."""

    @classmethod
    def parameters(cls, size: int, dtype: Any) -> Params:
        """What it is learned by beside the network's outputs, for actions of a size."""
        ...

    @classmethod
    def width(cls, size: int) -> int:
        """How many numbers an action is stored as."""
        ...

    @classmethod
    def of(cls, outputs: Array, params: Params) -> Self:
        """The distributions that a network's outputs (..., N, size) mean."""
        ...

    def log_prob(self, actions: Any) -> Array:
        """log pi(a | o), (..., N), of actions (..., N, width)."""
        ...

    def kl(self, new: Self) -> Array:
        """KL(self || new) in nats at each state, (..., N)."""
        ...

    def fisher_product(self, tangent: Self, weights: Any) -> Self:
        """The weighted sum over states of the Fisher information times a tangent, as a cotangent.

        It is the Hessian of the states' KL(self || .), with weights (..., N), at self itself.
        """
        ...

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """An action at each state, (..., N, width), on the host."""
        ...

    def mode(self) -> np.ndarray:
        """The most likely action at each state, (..., N, width), on the host."""
        ...


class Gaussian(NamedTuple):
    """A diagonal Gaussian (Finn et al. 2017, section 5.3).

    Attributes:
        mean: (..., N, A).
        log_std: the same for every state, (..., A).

    >>> a, b = Gaussian(array([[0.0]]), array([0.0])), Gaussian(array([[1.0]]), array([0.0]))
    >>> round(float(a.log_prob([[1.0]])[0]), 4)
    -1.4189
    >>> float(a.kl(a)[0]), float(a.kl(b)[0])
    (0.0, 0.5)
    """

    mean: Array
    log_std: Array

    @classmethod
    def parameters(cls, size: int, dtype: Any) -> Params:
        """A standard deviation of 1."""
        return {"log_std": array(np.zeros(size, dtype))}

    @classmethod
    def width(cls, size: int) -> int:
        """One number for each part of the action."""
        return size

    @classmethod
    def of(cls, outputs: Array, params: Params) -> Gaussian:
        """The outputs are the mean."""
        return cls(outputs, as_array(params["log_std"]))

    def log_prob(self, actions: Any) -> Array:
        """log pi(a | o), (..., N), of actions (..., N, A)."""
        log_std = expand_dims(self.log_std, -2)
        scaled = sub(actions, self.mean) * exp(-log_std)
        size = self.log_std.shape[-1]
        return -0.5 * sum(square(scaled), -1) - sum(log_std, -1) - 0.5 * size * LOG_2PI

    def kl(self, new: Gaussian) -> Array:
        """KL(self || new) in nats at each state, (..., N)."""
        log_ratio = expand_dims(new.log_std - self.log_std, -2)
        moved = square(sub(new.mean, self.mean)) * exp(-2 * expand_dims(new.log_std, -2))
        return sum(log_ratio + 0.5 * (exp(-2 * log_ratio) + moved) - 0.5, -1)

    def fisher_product(self, tangent: Gaussian, weights: Any) -> Gaussian:
        """mean / sigma^2 and 2 log_std, of every state; log_std, which states share, sums up."""
        precision = exp(-2 * expand_dims(self.log_std, -2))
        mean, log_std = precision * tangent.mean, 2 * tangent.log_std
        return Gaussian(weights[..., None] * mean, sum(weights, -1)[..., None] * log_std)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """mean + sigma z, z standard normal."""
        mean, std = to_host(self.mean.value), np.exp(to_host(self.log_std.value))
        return mean + std[..., None, :] * rng.standard_normal(mean.shape, mean.dtype)

    def mode(self) -> np.ndarray:
        """The mean."""
        return to_host(self.mean.value)


class Categorical(NamedTuple):
    """One of A actions, stored as its number.

    Attributes:
        logits: (..., N, A).

    >>> a = Categorical(array([[0.0, 0.0]]))
    >>> round(float(a.log_prob([[1.0]])[0]), 4)
    -0.6931
    >>> float(a.kl(a)[0]), a.sample(np.random.default_rng(0)).shape
    (0.0, (1, 1))
    """

    logits: Array

    @classmethod
    def parameters(cls, size: int, dtype: Any) -> Params:
        """None: the logits are the network's."""
        return {}

    @classmethod
    def width(cls, size: int) -> int:
        """The action's number."""
        return 1

    @classmethod
    def of(cls, outputs: Array, params: Params) -> Categorical:
        """The outputs are the logits."""
        return cls(outputs)

    def log_prob(self, actions: Any) -> Array:
        """log pi(a | o), (..., N), of actions (..., N, 1)."""
        chosen = take_along_axis(log_softmax(self.logits), astype(actions, int), axis=-1)
        return squeeze(chosen, -1)

    def kl(self, new: Categorical) -> Array:
        """KL(self || new) in nats at each state, (..., N)."""
        old, new_log = log_softmax(self.logits), log_softmax(new.logits)
        return sum(exp(old) * (old - new_log), -1)

    def fisher_product(self, tangent: Categorical, weights: Any) -> Categorical:
        """(diag(p) - p p') t, of every state."""
        p = exp(log_softmax(self.logits))
        product = p * (tangent.logits - sum(mul(p, tangent.logits), -1, keepdims=True))
        return Categorical(weights[..., None] * product)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """The largest of logits plus Gumbel noise."""
        logits = to_host(self.logits.value)
        noisy = logits + rng.gumbel(size=logits.shape).astype(logits.dtype)
        return noisy.argmax(-1)[..., None].astype(logits.dtype)

    def mode(self) -> np.ndarray:
        """The largest logit's number."""
        logits = to_host(self.logits.value)
        return logits.argmax(-1)[..., None].astype(logits.dtype)
