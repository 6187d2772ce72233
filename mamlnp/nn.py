"""Networks as pairs of pure functions; parameters are nested dicts of Arrays.

Every layer takes inputs with or without a leading task axis, and parameters that are shared by the
tasks or, with the same axis in front, each task's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from . import backend
from .array import Array
from .errors import ShapeError, check_rng
from .op import as_array, describe
from .ops.elementwise import mul, power, relu, square, sub
from .ops.linear import conv2d, matmul
from .ops.pool import max_pool2d
from .ops.reduce import mean
from .ops.shape import expand_dims, reshape

Params = dict[str, Any]
Statistics = int | Literal["batch", "image"]
Initializer = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]


class _Init(Protocol):
    def __call__(self, *, rng: np.random.Generator, dtype: Any = ...) -> Params: ...


class Network(NamedTuple):
    """Attributes:
    init: ``init(rng=..., dtype=np.float32)`` -> params.
    apply: ``apply(params, x)`` -> outputs. Those with batch norm take ``statistics`` too, see
        :func:`batch_norm`.
    """

    init: _Init
    apply: Callable[..., Array]


# ---- initial weights, drawn on the host


def normal(std: float) -> Initializer:
    """N(0, std^2)."""
    return lambda shape, rng: rng.normal(0.0, std, shape)


def truncated_normal(std: float) -> Initializer:
    """N(0, std^2), drawn again where it is beyond two standard deviations (TensorFlow's)."""

    def draw(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        out = rng.normal(0.0, 1.0, shape)
        while (far := np.abs(out) > 2).any():
            out[far] = rng.normal(0.0, 1.0, far.sum())
        return out * std

    return draw


def fan_in(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """U[-a, a] with a = 1 / sqrt(fan in): PyTorch's for linear layers (after LeCun et al. 1998)."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return rng.uniform(-bound, bound, shape)


def xavier(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """U[-a, a] with a = sqrt(6 / (fan in + fan out)) (Glorot & Bengio 2010)."""
    window = math.prod(shape[:-2])
    bound = math.sqrt(6 / (window * (shape[-2] + shape[-1])))
    return rng.uniform(-bound, bound, shape)


def _made(draw: Initializer, shape: tuple[int, ...], rng: np.random.Generator, dtype: Any) -> Array:
    return Array(backend.to_device(draw(shape, rng).astype(dtype)))


def _constant(value: float, side: int, dtype: Any) -> Array:
    return Array(backend.to_device(np.full(side, value, dtype)))


# ---- layers


def linear(params: Params, x: Any) -> Array:
    """x w + b: (..., N, in) -> (..., N, out), with w (in, out) and b (out,)."""
    return matmul(x, params["w"]) + expand_dims(params["b"], -2)


def batch_norm(
    params: Params, x: Any, *, statistics: Statistics = "batch", eps: float = 1e-3
) -> Array:
    """Each channel to mean 0 and variance 1 over the batch at hand, then scaled and shifted (docs,
    equation 6.3; its derivative, equation 6.4, is what the parts' rules make).

    Transductive, as in the paper's code: always the statistics of the very batch, the query batch's
    own at test, with no running averages (Ioffe & Szegedy 2015, Algorithm 1). The other two kinds
    of statistics let no query see another.

    Args:
        params: "beta" (C,), and "gamma" (C,) if there is a scale.
        x: images (N, H, W, C) or, in a network of vectors, (N, C); or either with the task axis.
        statistics: what mean and variance are taken over: all of the "batch"; a number n: the first
            n examples of it, such as a support set in front of the queries; "image": every image by
            itself.
        eps: added to the variance, which keeps every derivative finite where it is 0.

    The variance has to be in the float type's range: activations stay below 1e19 in float32.

    Raises:
        ShapeError: "image" for vectors, whose variance would be 0.
    """
    x = as_array(x)
    axes = (-4, -3, -2) if x.ndim >= 4 else (-2,)
    seen: Array = x
    over: tuple[int, ...] = axes
    if statistics == "image":
        if axes == (-2,):
            raise ShapeError(
                f"batch_norm: statistics 'image' for vectors {describe(x)}, whose variance is 0. "
                "Use 'batch', or the number of examples to take them over."
            )
        over = (-3, -2)
    elif statistics != "batch":
        seen = x[(..., slice(statistics), *(slice(None),) * (-axes[0] - 1))]
    average = mean(seen, over, keepdims=True)
    centred = sub(x, average)
    spread = centred if seen is x else sub(seen, average)
    scale = power(mean(square(spread), over, keepdims=True) + eps, -0.5)
    if "gamma" in params:
        scale = mul(scale, expand_dims(params["gamma"], axes))
    return centred * scale + expand_dims(params["beta"], axes)


def _norm_params(channels: int, gamma: bool, dtype: Any) -> Params:
    scale = {"gamma": _constant(1.0, channels, dtype)} if gamma else {}
    return {"beta": _constant(0.0, channels, dtype), **scale}


def mlp(
    sizes: Sequence[int],
    *,
    activation: Callable[[Any], Array] = relu,
    weights: Initializer | None = None,
    norm: bool = False,
    gamma: bool = False,
) -> Network:
    """Linear layers with an activation between them, and batch norm before it if ``norm``.

    Args:
        sizes: of the input, every hidden layer, and the output: (1, 40, 40, 1) for the sine waves,
            (784, 256, 128, 64, 64, 5) with ``norm`` for Omniglot.
        activation: after every layer but the last.
        weights: how they are drawn; the paper's truncated normal of 0.01 if None.
        norm: batch norm after every layer but the last (inputs are then (..., N, features)).
        gamma: whether that batch norm has a scale.

    Inputs of more than (..., N, features), such as images, are flattened by the caller.
    """
    draw = weights or truncated_normal(0.01)
    names = [f"linear{i + 1}" for i in range(len(sizes) - 1)]

    def init(*, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        check_rng("init", rng)
        params: Params = {}
        for name, fan_in, fan_out in zip(names, sizes[:-1], sizes[1:], strict=True):
            params[name] = {
                "w": _made(draw, (fan_in, fan_out), rng, dtype),
                "b": _constant(0.0, fan_out, dtype),
            }
            if norm and name != names[-1]:
                params[name] |= _norm_params(fan_out, gamma, dtype)
        return params

    def apply(params: Params, x: Any, *, statistics: Statistics = "batch") -> Array:
        for name in names[:-1]:
            x = linear(params[name], x)
            x = activation(batch_norm(params[name], x, statistics=statistics) if norm else x)
        return linear(params[names[-1]], x)

    return Network(init, apply)


def conv4(
    num_ways: int,
    *,
    channels: int = 1,
    filters: int = 64,
    image_size: int = 28,
    pool: bool = False,
    gamma: bool = False,
    head: Initializer = xavier,
) -> Network:
    """Four modules of 3x3 convolution, batch norm and ReLU, then a linear layer (section 5.2).

    Args:
        num_ways: classes.
        channels: of the images.
        filters: of every convolution: 64 for Omniglot, 32 for mini-ImageNet.
        image_size: height and width in pixels; 28 for Omniglot, 84 for mini-ImageNet.
        pool: False: stride 2, then the mean over the image (Omniglot: 28-14-7-4-2, 64 features).
            True: stride 1 and 2x2 max-pooling, then flattened (mini-ImageNet: 84-42-21-10-5,
            800 features).
        gamma: whether batch norm has a scale; the authors' has none.
        head: how the last layer's weights are drawn; the authors: normal(1.0) for Omniglot, xavier
            for mini-ImageNet.

    Differs from the paper: there is no bias before batch norm, which would subtract it again (its
    gradient is exactly zero).
    """
    names = [f"conv{i + 1}" for i in range(4)]
    side = image_size
    for _ in names:
        side = side // 2 if pool else -(-side // 2)
    features = filters * side**2 if pool else filters

    def init(*, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        check_rng("init", rng)
        params: Params = {}
        for name, fan_in in zip(names, (channels, filters, filters, filters), strict=True):
            params[name] = {
                "w": _made(xavier, (3, 3, fan_in, filters), rng, dtype),
                **_norm_params(filters, gamma, dtype),
            }
        params["head"] = {
            "w": _made(head, (features, num_ways), rng, dtype),
            "b": _constant(0.0, num_ways, dtype),
        }
        return params

    def apply(params: Params, x: Any, *, statistics: Statistics = "batch") -> Array:
        for name in names:
            x = conv2d(x, params[name]["w"], stride=1 if pool else 2, padding="SAME")
            x = relu(batch_norm(params[name], x, statistics=statistics))
            x = max_pool2d(x) if pool else x
        x = reshape(x, (*x.shape[:-3], features)) if pool else mean(x, (-3, -2))
        return linear(params["head"], x)

    return Network(init, apply)
