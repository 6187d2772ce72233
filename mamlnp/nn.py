"""Networks as pairs of pure functions; parameters are nested dicts of Arrays.

Every layer takes inputs with or without a leading task axis, and parameters that are shared by the
tasks or, with the same axis in front, each task's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from . import backend
from .array import Array
from .errors import ShapeError, check_rng
from .op import as_array, describe
from .ops.elementwise import (
    greater_equal,
    mul,
    power,
    relu,
    sigmoid,
    square,
    sub,
    tanh,
    where,
    zeros_like,
)
from .ops.gather import take
from .ops.linear import conv2d, matmul
from .ops.pool import max_pool2d
from .ops.reduce import mean
from .ops.shape import broadcast_to, concatenate, expand_dims, reshape, stack
from .vmap import vmap

Params = dict[str, Any]
Statistics = int | Literal["batch", "image"]
Initializer = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]


class _Init(Protocol):
    def __call__(self, *, rng: np.random.Generator, dtype: Any = ...) -> Params: ...


class _Apply(Protocol):
    def __call__(
        self, params: Params, x: Any, *, statistics: Statistics = ..., noise: Any = ...
    ) -> Array: ...


class Network(NamedTuple):
    """A layer, or layers one after another.

    Attributes:
        init: ``init(rng=..., dtype=np.float32)`` -> params.
        apply: ``apply(params, x, statistics="batch", noise=None)`` -> outputs. ``statistics`` are
            those of :func:`batch_norm`; ``noise`` is what :func:`dropout` takes. Other layers
            ignore both.
    """

    init: _Init
    apply: _Apply


class Cell(NamedTuple):
    """A layer with a memory, which reads a sequence one element at a time (see :func:`unroll`).

    Attributes:
        init: ``init(rng=..., dtype=np.float32)`` -> params.
        start: (params, lead) -> the first state, of arrays (*lead, size).
        step: (params, state, x (*lead, inputs)) -> (new state, output (*lead, size)).
    """

    init: _Init
    start: Callable[[Params, tuple[int, ...]], Any]
    step: Callable[[Params, Any, Any], tuple[Any, Array]]


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


def function(f: Callable[[Any], Array]) -> Network:
    """A layer without parameters."""
    return _layer(lambda rng, dtype: {}, lambda params, x: f(x))


def _layer(
    draw: Callable[[np.random.Generator, Any], Params], apply: Callable[[Params, Any], Array]
) -> Network:
    """A layer that needs neither statistics nor noise."""

    def init(*, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        check_rng("init", rng)
        return draw(rng, dtype)

    def plain(
        params: Params, x: Any, *, statistics: Statistics = "batch", noise: Any = None
    ) -> Array:
        return apply(params, x)

    return Network(init, plain)


def dense(inputs: int, outputs: int, *, weights: Initializer = xavier) -> Network:
    """:func:`linear` with weights (inputs, outputs) and biases that begin at 0."""
    return _layer(lambda rng, dtype: {
        "w": _made(weights, (inputs, outputs), rng, dtype), "b": _constant(0.0, outputs, dtype)
    }, linear)  # fmt: skip


def conv(
    inputs: int, outputs: int, *, side: int = 3, stride: int = 1, weights: Initializer = xavier
) -> Network:
    """A convolution of images (..., H, W, inputs), padded with zeros ("SAME"), without a bias."""
    return _layer(
        lambda rng, dtype: {"w": _made(weights, (side, side, inputs, outputs), rng, dtype)},
        lambda params, x: conv2d(x, params["w"], stride=stride, padding="SAME"),
    )


def norm(channels: int, *, gamma: bool = True) -> Network:
    """:func:`batch_norm`, with a scale if ``gamma``."""

    def init(*, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        scale = {"gamma": _constant(1.0, channels, dtype)} if gamma else {}
        return {"beta": _constant(0.0, channels, dtype), **scale}

    def apply(
        params: Params, x: Any, *, statistics: Statistics = "batch", noise: Any = None
    ) -> Array:
        return batch_norm(params, x, statistics=statistics)

    return Network(init, apply)


def layer_norm(size: int, *, eps: float = 1e-5) -> Network:
    """Each vector (..., N, size) to mean 0 and variance 1, scaled and shifted (Ba, Kiros & Hinton
    2016)."""

    def apply(params: Params, x: Any) -> Array:
        centred = sub(x, mean(x, -1, keepdims=True))
        scaled = centred * power(mean(square(centred), -1, keepdims=True) + eps, -0.5)
        return scaled * expand_dims(params["gamma"], -2) + expand_dims(params["beta"], -2)

    return _layer(lambda rng, dtype: {
        "beta": _constant(0.0, size, dtype), "gamma": _constant(1.0, size, dtype)
    }, apply)  # fmt: skip


def embedding(count: int, size: int, *, weights: Initializer | None = None) -> Network:
    """Numbers from 0 to count - 1 as vectors: (..., N) -> (..., N, size); N(0, 1) to begin with."""

    def apply(params: Params, x: Any) -> Array:
        w = as_array(params["w"])
        return take(w, x, axis=0) if w.ndim == 2 else vmap(partial(take, axis=0))(w, x)

    return _layer(
        lambda rng, dtype: {"w": _made(weights or normal(1.0), (count, size), rng, dtype)}, apply
    )


def dropout(rate: float) -> Network:
    """Elements are 0 with probability ``rate``, the others larger by 1 / (1 - rate) (Srivastava et
    al. 2014).

    The randomness is data: ``noise`` is uniform numbers in [0, 1), of x's shape, which the caller
    draws (by :func:`mamlnp.tasks.counted_rng`, say). So a compiled step has new ones each time, and
    a resumed training has the same. Without noise, x stays as it is.

    Raises:
        ValueError: rate is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate is {rate}. Pass a number from 0 to below 1.")

    def apply(
        params: Params, x: Any, *, statistics: Statistics = "batch", noise: Any = None
    ) -> Array:
        if noise is None:
            return as_array(x)
        return where(greater_equal(noise, rate), mul(x, 1 / (1 - rate)), 0.0)

    return Network(function(as_array).init, apply)


def chain(*layers: Network, **named: Network) -> Network:
    """Layers one after another.

    Args:
        layers: whose parameters share one dict.
        named: whose parameters have a dict each, by name, after ``layers``. The noise of such a
            layer is found by name too.

    Raises:
        ValueError: two layers that share a dict have a parameter of the same name; or there is
            noise for a name that no layer has.

    >>> block = chain(conv(1, 8), norm(8), function(relu))
    >>> network = chain(conv1=block, flat=function(lambda x: mean(x, (-3, -2))), head=dense(8, 5))
    >>> params = network.init(rng=np.random.default_rng(0))
    >>> {name: list(layer) for name, layer in params.items()}
    {'conv1': ['w', 'beta', 'gamma'], 'head': ['w', 'b']}
    >>> network.apply(params, np.zeros((2, 28, 28, 1), np.float32)).shape
    (2, 5)
    """

    def init(*, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        check_rng("init", rng)
        params: Params = {}
        made = [layer.init(rng=rng, dtype=dtype) for layer in layers]
        for name, layer in named.items():
            own = layer.init(rng=rng, dtype=dtype)
            made += [{name: own}] if own else []
        for own in made:
            if twice := params.keys() & own.keys():
                raise ValueError(f"chain: two layers have {min(twice)!r}. Give them names.")
            params |= own
        return params

    def apply(
        params: Params, x: Any, *, statistics: Statistics = "batch", noise: Any = None
    ) -> Array:
        for layer in layers:
            x = layer.apply(params, x, statistics=statistics, noise=noise)
        if isinstance(noise, dict) and not layers and (wrong := noise.keys() - named.keys()):
            raise ValueError(f"chain: noise is for {min(wrong)!r}. The layers: {', '.join(named)}.")
        for name, layer in named.items():
            own = noise.get(name) if isinstance(noise, dict) else None
            x = layer.apply(params.get(name, {}), x, statistics=statistics, noise=own)
        return as_array(x)

    return Network(init, apply)


# ---- recurrence


def lstm(inputs: int, size: int, *, weights: Initializer = xavier) -> Cell:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; its forget gate, which begins open,
    Gers et al. 2000). The state is (h, c), and h is the output."""

    def init(*, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        check_rng("init", rng)
        bias = np.repeat([0.0, 1.0, 0.0, 0.0], size).astype(dtype)
        return {
            "w": _made(weights, (inputs + size, 4 * size), rng, dtype),
            "b": Array(backend.to_device(bias)),
        }

    def step(params: Params, state: Any, x: Any) -> tuple[Any, Array]:
        h, c = state
        gates = linear(params, concatenate([x, h], -1))
        i, f, g, o = (gates[..., k * size : (k + 1) * size] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return (h, c), h

    return Cell(init, lambda params, lead: (_zeros(params["w"], lead, size),) * 2, step)


def gru(inputs: int, size: int, *, weights: Initializer = xavier) -> Cell:
    """The gated recurrent unit (Cho et al. 2014; the reset gate after the product, as in cuDNN).
    The state is (h,), and h is the output."""
    of_input, of_state = (dense(n, 3 * size, weights=weights) for n in (inputs, size))

    def init(*, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        return {"x": of_input.init(rng=rng, dtype=dtype), "h": of_state.init(rng=rng, dtype=dtype)}

    def step(params: Params, state: Any, x: Any) -> tuple[Any, Array]:
        (h,) = state
        (xr, xz, xn), (hr, hz, hn) = (
            [part[..., k * size : (k + 1) * size] for k in range(3)]
            for part in (linear(params["x"], x), linear(params["h"], h))
        )
        reset, kept = sigmoid(xr + hr), sigmoid(xz + hz)
        h = (1 - kept) * tanh(xn + reset * hn) + kept * h
        return (h,), h

    return Cell(init, lambda params, lead: (_zeros(params["h"]["w"], lead, size),), step)


def _zeros(like: Any, lead: tuple[int, ...], size: int) -> Array:
    """Zeros (*lead, size), of a type and in a place like another array's."""
    return broadcast_to(zeros_like(as_array(like)[..., 0, 0]).sum(), (*lead, size))


def unroll(cell: Cell, params: Params, state: Any, xs: Any) -> tuple[Any, Array]:
    """A cell over a sequence.

    Args:
        cell: the cell.
        params: its parameters.
        state: the first one, such as ``cell.start(params, lead)``.
        xs: (*lead, N, inputs), N elements one after another.

    Returns:
        (the last state, the outputs (*lead, N, size)).

    >>> cell = lstm(2, 4)
    >>> params = cell.init(rng=np.random.default_rng(0))
    >>> xs = np.ones((3, 5, 2), np.float32)
    >>> state, outputs = unroll(cell, params, cell.start(params, (3,)), xs)
    >>> outputs.shape
    (3, 5, 4)
    """
    xs, outputs = as_array(xs), []
    for n in range(xs.shape[-2]):
        state, out = cell.step(params, state, xs[..., n, :])
        outputs.append(out)
    return state, stack(outputs, -2)


# ---- the paper's networks


def mlp(
    sizes: Sequence[int],
    *,
    activation: Callable[[Any], Array] = relu,
    weights: Initializer | None = None,
    norm: bool = False,
    gamma: bool = False,
) -> Network:
    """Dense layers with an activation between them, and batch norm before it if ``norm``.

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
    layers = [dense(*pair, weights=draw) for pair in itertools.pairwise(sizes)]
    for i, size in enumerate(sizes[1:-1]):
        layers[i] = _hidden(layers[i], activation, size if norm else 0, gamma)
    return chain(**{f"linear{i}": layer for i, layer in enumerate(layers, 1)})


def _hidden(
    layer: Network, activation: Callable[[Any], Array], channels: int, gamma: bool
) -> Network:
    """A layer with its activation, and batch norm of so many channels between them, if any."""
    between = [norm(channels, gamma=gamma)] if channels else []
    return chain(layer, *between, function(activation))


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
    """Four modules of 3x3 convolution, batch norm and ReLU, then a dense layer (section 5.2).

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
    side, stride = image_size, 1 if pool else 2
    for _ in range(4):
        side = side // 2 if pool else -(-side // 2)
    features = filters * side**2 if pool else filters

    def module(inputs: int) -> Network:
        layer = _hidden(conv(inputs, filters, stride=stride), relu, filters, gamma)
        return chain(layer, function(max_pool2d)) if pool else layer

    def flat(x: Array) -> Array:
        return reshape(x, (*x.shape[:-3], features)) if pool else mean(x, (-3, -2))

    modules = {f"conv{i + 1}": module(filters if i else channels) for i in range(4)}
    last = chain(function(flat), dense(features, num_ways, weights=head))
    return chain(**modules, head=last)
