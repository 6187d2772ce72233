"""One MAML meta-gradient: mamlnp against PyTorch, JAX and autograd, on the same tensors.

    python benchmarks/compare.py [--setting NAME] [--order 1] [--device cuda] [--json FILE]
        [--against FOLDER]

Needs ``pip install '.[peers]'``; an implementation whose package is missing is left out and said
so. Every implementation runs in a process of its own, with one thread or with all cores, whichever
is faster. First its whole float32 meta-gradient is held against mamlnp's in float64; then all are
timed in turn, one block each, again and again, while the others sleep.

Some are out of the question in some settings. One that is not ready within ``--limit`` seconds,
compilation and the first step included, is left out; one whose step takes more than 20 times the
fastest so far is timed by three steps on the spot and takes no turns.

The last of them is no implementation but the floor: the products that the mathematics cannot do
without (see ``products``), each alone, at the faster of two layouts.

On a CUDA device steps are launched one after another and waited for at the end of a block, whose
time is taken by events of the device (of JAX, which has none, by the clock). Products are full
float32 in all of them; with ``--tf32`` TensorFloat-32, and gradients may be further apart.

``--against`` another checkout of mamlnp times that one's steps beside these, and nothing else: what
a change costs, as the median of the blocks' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

AGREEMENT = 1e-3  # relative distance of a float32 meta-gradient
TF32_AGREEMENT = 5e-2  # whose products keep 10 bits of each factor
BLOCK_SECONDS = 0.2
SHORT_SECONDS = 0.05  # a step below this may be faster on one core
LONG_SECONDS = 2  # a step above this takes a turn in every fourth round only
HOPELESS = 20  # times the fastest so far

_SINE = {"net": "mlp", "tasks": 25, "shots": 10, "inner_lr": 0.01}
_OMNIGLOT = {"net": "conv4", "size": 28, "channels": 1, "filters": 64, "pool": False}
_MINI = {"net": "conv4", "size": 84, "channels": 3, "filters": 32, "pool": True}
SETTINGS = {
    "sine": _SINE | {"inner_steps": 1},
    "sine-5-steps": _SINE | {"inner_steps": 5},
    "omniglot": _OMNIGLOT
    | {"tasks": 32, "ways": 5, "queries": 1, "inner_lr": 0.1, "inner_steps": 1},
    "omniglot-15-queries": _OMNIGLOT
    | {"tasks": 32, "ways": 5, "queries": 15, "inner_lr": 0.1, "inner_steps": 1},
    "omniglot-20-way": _OMNIGLOT
    | {"tasks": 16, "ways": 20, "queries": 1, "inner_lr": 0.02, "inner_steps": 5},
    "mini-imagenet": _MINI
    | {"tasks": 4, "ways": 5, "queries": 15, "inner_lr": 0.002, "inner_steps": 5, "seed": 1},
}
# Where float32 puts a unit on the other side of a kink than float64, gradients differ by more than
# rounding. So relus are mostly active, steps small, and the draw for mini-ImageNet is the first of
# which mamlnp's gradients stay within 5e-4 when the weights and data change in their last bit.

Setting = dict[str, Any]
Arrays = dict[str, np.ndarray]
Step = Callable[[], list[Any]]  # the gradient, in arrays of the framework's own
PARTS = ("support_x", "support_y", "query_x", "query_y")


# ---- the weights and the data, the same for all


def tensors(setting: Setting) -> Arrays:
    """Weights and data of one meta-step, in float32; classes are one-hot."""
    rng = np.random.default_rng(setting.get("seed", 0))
    arrays = _waves(setting, rng) if setting["net"] == "mlp" else _images(setting, rng)
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def _waves(setting: Setting, rng: np.random.Generator) -> Arrays:
    arrays = {}
    for i, (fan_in, fan_out) in enumerate(((1, 40), (40, 40), (40, 1)), 1):
        arrays[f"linear{i}.w"] = rng.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out))
        arrays[f"linear{i}.b"] = rng.normal(0, 0.1, fan_out)
    amplitude = rng.uniform(0.1, 5, (setting["tasks"], 1, 1))
    phase = rng.uniform(0, np.pi, (setting["tasks"], 1, 1))
    for part in ("support", "query"):
        x = rng.uniform(-5, 5, (setting["tasks"], setting["shots"], 1))
        arrays |= {f"{part}_x": x, f"{part}_y": amplitude * np.sin(x - phase)}
    return arrays


def _images(setting: Setting, rng: np.random.Generator) -> Arrays:
    """Each class is a coarse pattern, each of its images that pattern with noise."""
    arrays = {}
    tasks, ways, size = setting["tasks"], setting["ways"], setting["size"]
    channels, filters = setting["channels"], setting["filters"]
    for i, fan_in in enumerate((channels, filters, filters, filters), 1):
        bound = np.sqrt(6 / (9 * (fan_in + filters)))
        arrays[f"conv{i}.w"] = rng.uniform(-bound, bound, (3, 3, fan_in, filters))
        arrays[f"conv{i}.beta"] = rng.normal(3, 0.1, filters)  # few near the kink of ReLU
        arrays[f"conv{i}.gamma"] = rng.normal(1, 0.1, filters)
    features = 25 * filters if setting["pool"] else filters
    arrays["head.w"] = rng.normal(0, 0.8 / np.sqrt(features), (features, ways))
    arrays["head.b"] = rng.normal(0, 0.1, ways)
    coarse = rng.normal(size=(tasks, ways, 1, 7, 7, channels))
    pattern = coarse.repeat(size // 7, -3).repeat(size // 7, -2)
    for part, shots in (("support", 1), ("query", setting["queries"])):
        noise = rng.normal(0, 0.3, (tasks, ways, shots, size, size, channels))
        x = (pattern + noise).reshape(tasks, ways * shots, size, size, channels)
        y = np.broadcast_to(np.eye(ways).repeat(shots, 0), (tasks, ways * shots, ways))
        arrays |= {f"{part}_x": x, f"{part}_y": y}
    return arrays


def parameters(arrays: Arrays) -> list[np.ndarray]:
    return [value for name, value in arrays.items() if name not in PARTS]


# ---- mamlnp


def _ours(arrays: Arrays, setting: Setting, order: int) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The loss, the parameters, the meta-batch, and how to adapt."""
    from mamlnp import Batch, Task, array, losses, nn, tree

    params: dict[str, Any] = {}
    for name, value in arrays.items():
        if name not in PARTS:
            layer, leaf = name.split(".")
            params.setdefault(layer, {})[leaf] = array(value)
    how = {k: setting[k] for k in ("inner_lr", "inner_steps")} | {"first_order": order == 1}
    if setting["net"] == "mlp":
        net = nn.mlp((1, 40, 40, 1))

        def loss(params: Any, batch: Batch) -> Any:
            return losses.mse(net.apply(params, batch.x), batch.y, reduction="mean")

        batches = [Batch(arrays[f"{p}_x"], arrays[f"{p}_y"]) for p in ("support", "query")]
    else:
        net = nn.conv4(
            setting["ways"],
            channels=setting["channels"],
            filters=setting["filters"],
            image_size=setting["size"],
            pool=setting["pool"],
            gamma=True,
        )

        def loss(params: Any, batch: Batch) -> Any:
            return losses.cross_entropy(net.apply(params, batch.x), batch.y, reduction="mean")

        batches = [
            Batch(arrays[f"{p}_x"], arrays[f"{p}_y"].argmax(-1)) for p in ("support", "query")
        ]
    return loss, params, tree.map(array, Task(*batches)), how


def ours_eager(arrays: Arrays, setting: Setting, order: int) -> Step:
    from mamlnp import maml, tree

    loss, params, task, how = _ours(arrays, setting, order)

    return lambda: tree.leaves(maml.meta_gradient(loss, params, task, **how)[1])


def ours_compiled(arrays: Arrays, setting: Setting, order: int, *, check: bool = False) -> Step:
    from mamlnp import meta, parallel, tree

    loss, params, task, how = _ours(arrays, setting, order)
    # A sine task is too small to be a chunk of its own.
    chunks = 1 if setting["net"] == "mlp" else None
    gradient = parallel.meta_gradient(meta.MAML(loss, **how).gradient, chunks=chunks, check=check)
    return lambda: tree.leaves(gradient(params, task)[1])


def reference(arrays: Arrays, setting: Setting, order: int) -> Step:
    """A task at a time, which needs less memory: the gradients of the tasks add up."""

    def step() -> list[np.ndarray]:
        sums = [np.zeros_like(p) for p in parameters(arrays)]
        for i in range(setting["tasks"]):
            one = arrays | {part: arrays[part][i : i + 1] for part in PARTS}
            for s, g in zip(sums, ours_eager(one, setting, order)(), strict=True):
                s += g.numpy()
        return sums

    return step


# ---- the peers: one network, written once, with what each framework calls its own


class Framework(NamedTuple):
    """Images are (..., N, H, W, C) in all of them; how they lie in memory is each one's affair."""

    xp: Any  # with NumPy's names
    grad: Any
    linear: Callable[[Any, Any, Any], Any]
    relu: Callable[[Any], Any]
    log_softmax: Callable[[Any], Any]
    pad: Callable[[Any, int, int], Any]  # so many pixels before and after, both ways
    conv: Any = None  # (x, w, stride, before, after); None: patches @ weights
    norm: Any = None  # (x, beta, gamma), where one differentiation is all
    pool: Any = None


def loss_function(f: Framework, setting: Setting, *, once: bool) -> Callable[[Any, Any, Any], Any]:
    """(list of parameters, x, y) -> the mean over a task's examples.

    ``once``: it will be differentiated once only. A framework's own batch norm is fast then, but
    slower than its formula when its derivative is differentiated in turn.
    """
    xp = f.xp

    def conv(x: Any, w: Any) -> Any:
        stride = 1 if setting["pool"] else 2
        side = -(-x.shape[-2] // stride)
        padding = (side - 1) * stride + 3 - x.shape[-2]  # SAME: the odd pixel goes to the end
        before, after = padding // 2, padding - padding // 2
        if f.conv:
            return f.conv(x, w, stride, before, after)
        x = f.pad(x, before, after)
        reach = stride * (side - 1) + 1
        views = [
            x[..., i : i + reach : stride, j : j + reach : stride, :]
            for i in range(3)
            for j in range(3)
        ]
        patches = xp.concatenate(views, -1)
        rows = patches.reshape(*patches.shape[:-4], -1, patches.shape[-1])
        out = rows @ w.reshape(*w.shape[:-4], -1, w.shape[-1])
        return out.reshape(*patches.shape[:-1], -1)

    def norm(x: Any, beta: Any, gamma: Any) -> Any:
        if f.norm and once:
            return f.norm(x, beta, gamma)
        axes = (-4, -3, -2)
        centred = x - xp.mean(x, axis=axes, keepdims=True)
        variance = xp.mean(centred * centred, axis=axes, keepdims=True)
        scale = gamma[..., None, None, None, :] * (variance + 1e-3) ** -0.5
        return centred * scale + beta[..., None, None, None, :]

    def pool(x: Any) -> Any:
        if f.pool:
            return f.pool(x)
        side, channels = x.shape[-2] // 2, x.shape[-1]
        x = x[..., : 2 * side, : 2 * side, :]
        x = x.reshape(*x.shape[:-3], side, 2, side, 2, channels)
        return xp.max(xp.max(x, -2), -3)

    def conv4(params: Any, x: Any) -> Any:
        *modules, w, b = params
        for kernel, beta, gamma in zip(modules[::3], modules[1::3], modules[2::3], strict=True):
            x = f.relu(norm(conv(x, kernel), beta, gamma))
            x = pool(x) if setting["pool"] else x
        x = x.reshape(*x.shape[:-3], -1) if setting["pool"] else xp.mean(x, axis=(-3, -2))
        return f.linear(x, w, b)

    def mlp(params: Any, x: Any) -> Any:
        *hidden, w, b = params
        for v, c in zip(hidden[::2], hidden[1::2], strict=True):
            x = f.relu(f.linear(x, v, c))
        return f.linear(x, w, b)

    def squared_error(params: Any, x: Any, y: Any) -> Any:
        return xp.mean((mlp(params, x) - y) ** 2, axis=(-2, -1))

    def cross_entropy(params: Any, x: Any, y: Any) -> Any:
        return -xp.mean(xp.sum(y * f.log_softmax(conv4(params, x)), axis=-1), axis=-1)

    return squared_error if setting["net"] == "mlp" else cross_entropy


def maml(f: Framework, setting: Setting, order: int, sum: Any = lambda x: x) -> Callable[..., Any]:
    """(theta, *task) -> the meta-gradient of a task, by a framework whose grad is a function's.

    ``sum`` makes one number of the losses, where several tasks are one batch.
    """
    support_loss = loss_function(f, setting, once=order == 1)
    query_loss = loss_function(f, setting, once=True)
    gradient = f.grad(lambda *args: sum(support_loss(*args)))

    def adapt(params: Any, x: Any, y: Any) -> Any:
        for _ in range(setting["inner_steps"]):
            grads = gradient(params, x, y)
            params = [p - setting["inner_lr"] * g for p, g in zip(params, grads, strict=True)]
        return params

    def first(params: Any, *task: Any) -> Any:
        adapted = adapt(params, *task[:2])
        return f.grad(lambda params: sum(query_loss(params, *task[2:])))(adapted)

    def second(params: Any, *task: Any) -> Any:
        return f.grad(lambda params: sum(query_loss(adapt(params, *task[:2]), *task[2:])))(params)

    return first if order == 1 else second


def _torch(conv: str) -> Framework:
    """``conv``: "patches", "last" (its own, channels last in memory), "first" (channels first)."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    layout = torch.channels_last if conv == "last" else torch.contiguous_format

    def own(x: Any, w: Any, stride: int, before: int, after: int) -> Any:
        x, w = x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1)
        if before != after:
            x, before = F.pad(x, (before, after, before, after)), 0
        x, w = x.contiguous(memory_format=layout), w.contiguous(memory_format=layout)
        return F.conv2d(x, w, stride=stride, padding=before).permute(0, 2, 3, 1)

    def norm(x: Any, beta: Any, gamma: Any) -> Any:
        x = x.permute(0, 3, 1, 2)
        out = F.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-3)
        return out.permute(0, 2, 3, 1)

    return Framework(
        torch,
        torch.func.grad,
        linear=lambda x, w, b: torch.addmm(b, x, w),
        relu=torch.relu,
        log_softmax=lambda x: F.log_softmax(x, -1),
        pad=lambda x, before, after: F.pad(x, (0, 0, before, after, before, after)),
        conv=None if conv == "patches" else own,
        norm=None if conv == "patches" else norm,
        pool=lambda x: F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1),
    )


def torch_loop(
    arrays: Arrays, setting: Setting, order: int, *, conv: str = "last", graphed: bool = False
) -> Step:
    import torch

    framework = _torch(conv)
    support_loss = loss_function(framework, setting, once=order == 1)
    query_loss = loss_function(framework, setting, once=True)
    theta = [torch.tensor(p, requires_grad=True) for p in parameters(arrays)]
    tasks = list(zip(*(torch.tensor(arrays[part]) for part in PARTS), strict=True))

    def gradient(support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
        params = theta
        for _ in range(setting["inner_steps"]):
            loss = support_loss(params, support_x, support_y)
            grads = torch.autograd.grad(loss, params, create_graph=order == 2)
            params = [p - setting["inner_lr"] * g for p, g in zip(params, grads, strict=True)]
        return torch.autograd.grad(query_loss(params, query_x, query_y), theta)

    def step() -> list[Any]:
        sums = list(gradient(*tasks[0]))
        for task in tasks[1:]:  # one graph at a time: faster than all at once, and smaller
            torch._foreach_add_(sums, gradient(*task))
        return sums

    return _graphed(step) if graphed else step


def _graphed(step: Step) -> Step:
    """A step of PyTorch's as one CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()

    def replay() -> list[Any]:
        graph.replay()
        return found

    return replay


def torch_vmap(
    arrays: Arrays,
    setting: Setting,
    order: int,
    *,
    conv: str = "first",
    compiled: bool = False,
    graphed: bool = False,
) -> Step:
    import torch

    one = maml(_torch(conv), setting, order)
    params = [torch.tensor(p) for p in parameters(arrays)]
    data = [torch.tensor(arrays[part]) for part in PARTS]

    def gradient(params: Any, *data: Any) -> Any:
        every = torch.func.vmap(one, in_dims=(None, 0, 0, 0, 0))(params, *data)
        return [g.sum(0) for g in every]

    if compiled:
        gradient = torch.compile(gradient, dynamic=False, fullgraph=True)

    def step() -> list[Any]:
        return gradient(params, *data)

    return _graphed(step) if graphed else step


def jax_jit(
    arrays: Arrays, setting: Setting, order: int, *, conv: str = "own", mapped: bool = False
) -> Step:
    import jax
    import jax.numpy as jnp

    def own(x: Any, w: Any, stride: int, before: int, after: int) -> Any:
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            ((before, after), (before, after)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def pad(x: Any, before: int, after: int) -> Any:
        return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))

    framework = Framework(
        jnp,
        jax.grad,
        linear=lambda x, w, b: x @ w + b,
        relu=jax.nn.relu,
        log_softmax=jax.nn.log_softmax,
        pad=pad,
        conv=None if conv == "patches" else own,
    )
    one = maml(framework, setting, order)
    params = [jnp.asarray(p) for p in parameters(arrays)]
    data = [jnp.asarray(arrays[part]) for part in PARTS]

    @jax.jit
    def gradient(params: Any, *data: Any) -> Any:
        if mapped:
            every = jax.lax.map(lambda task: one(params, *task), data)
        else:
            every = jax.vmap(one, in_axes=(None, 0, 0, 0, 0))(params, *data)
        return [g.sum(0) for g in every]

    return lambda: gradient(params, *data)


def autograd_batches(arrays: Arrays, setting: Setting, order: int) -> Step:
    """All sine tasks as one batch; images, whose tape is large, a task at a time."""
    import autograd
    import autograd.numpy as anp

    def log_softmax(x: Any) -> Any:
        x = x - anp.max(x, -1, keepdims=True)
        return x - anp.log(anp.sum(anp.exp(x), -1, keepdims=True))

    def pad(x: Any, before: int, after: int) -> Any:
        return anp.pad(x, ((0, 0), (0, 0), (before, after), (before, after), (0, 0)), "constant")

    framework = Framework(
        anp,
        autograd.grad,
        linear=lambda x, w, b: anp.matmul(x, w) + b[:, None],
        relu=lambda x: anp.maximum(x, 0),
        log_softmax=log_softmax,
        pad=pad,
    )
    gradient = maml(framework, setting, order, sum=anp.sum)
    batch = setting["tasks"] if setting["net"] == "mlp" else 1
    # Each task's own copy of the parameters, so that one batched product serves all tasks.
    theta = [np.broadcast_to(p, (batch, *p.shape)).copy() for p in parameters(arrays)]

    def step() -> list[np.ndarray]:
        sums = [np.zeros_like(p) for p in parameters(arrays)]
        for i in range(0, setting["tasks"], batch):
            grads = gradient(theta, *(arrays[part][i : i + batch] for part in PARTS))
            sums = [s + g.sum(0) for s, g in zip(sums, grads, strict=True)]
        return sums

    return step


# ---- the floor


class Product(NamedTuple):
    """Of a layer with weights (inputs, outputs), for each of the tasks: "forward" is rows @
    weights, "input" the gradient by the rows, "weight" that by the weights.

    ``shared``: the weights are the same for all tasks, or their gradient is summed over tasks, so
    that one product serves them all.
    """

    kind: str
    shared: bool
    tasks: int
    rows: int
    inputs: int
    outputs: int

    def sides(self, batch: int) -> tuple[int, int, int]:
        """i, j, k of the products (i, j) @ (j, k) that do it in a batch of so many."""
        rows = self.tasks * self.rows // batch
        return {
            "forward": (rows, self.inputs, self.outputs),
            "input": (rows, self.outputs, self.inputs),
            "weight": (self.inputs, rows, self.outputs),
        }[self.kind]

    @property
    def flops(self) -> int:
        return 2 * self.tasks * self.rows * self.inputs * self.outputs


def layers(setting: Setting) -> list[tuple[int, int, int]]:
    """Rows an example, inputs and outputs of each layer as a product; conv is patches @ weights."""
    if setting["net"] == "mlp":
        return [(1, 1, 40), (1, 40, 40), (1, 40, 1)]
    out, side, channels = [], setting["size"], setting["channels"]
    for _ in range(4):
        side = side if setting["pool"] else -(-side // 2)
        out.append((side**2, 9 * channels, setting["filters"]))
        side = side // 2 if setting["pool"] else side
        channels = setting["filters"]
    return [*out, (1, channels * side**2 if setting["pool"] else channels, setting["ways"])]


def products(setting: Setting, order: int) -> Counter[Product]:
    """The products that the mathematics needs, and how often.

    A gradient takes three a layer: y = P W, gW = P^T c and gP = c W^T. Differentiating that in turn
    takes two for each of them: with v, u and r the cotangents of gW, gP and y, c gets P v + u W,
    P gets c v^T + r W^T and W gets u^T c + P^T r. That is nine on the support set, three on the
    query set, whose gradient is not differentiated. Of the first layer P is the data, and neither
    gP nor the cotangent of P is wanted: four and two.

    In the first inner step all tasks still share theta, whose gradient is a sum over them; so is
    the query's gradient in first order.
    """
    found: Counter[Product] = Counter()
    tasks, ways = setting["tasks"], setting.get("ways", 1)
    examples = {
        "support": setting.get("shots") or ways,
        "query": setting.get("shots") or ways * setting["queries"],
    }

    def need(part: str, layer: int, kind: str, shared: bool) -> None:
        each, inputs, outputs = layers(setting)[layer]
        found[Product(kind, shared, tasks, each * examples[part], inputs, outputs)] += 1

    for layer in range(len(layers(setting))):
        for step in range(setting["inner_steps"]):
            start = step == 0
            need("support", layer, "forward", start)
            need("support", layer, "weight", False)
            if layer:
                need("support", layer, "input", start)
            if order == 2:
                need("support", layer, "forward", False)  # P v
                need("support", layer, "weight", start)  # P^T r
                if layer:
                    need("support", layer, "forward", start)  # u W
                    need("support", layer, "input", False)  # c v^T
                    need("support", layer, "input", start)  # r W^T
                    need("support", layer, "weight", start)  # u^T c
        need("query", layer, "forward", False)
        need("query", layer, "weight", order == 1)
        if layer:
            need("query", layer, "input", False)
    return found


def _variants(
    product: Product, scratch: list[np.ndarray], pool: ThreadPoolExecutor, cores: int
) -> Iterator[tuple[int, Callable[[], Any]]]:
    """(BLAS threads, the product) in every way: the cores inside BLAS, over the tasks, or only one
    at work; and what is multiplied from a transpose as a view or as a copy made before.
    """
    for chunks, threads in {(1, cores), (cores, 1), (1, 1)}:
        batch = chunks if product.shared else product.tasks
        i, j, k = product.sides(batch)
        a, b, out = (
            flat[: batch * m * n].reshape(batch, m, n)
            for flat, m, n in zip(scratch, (i, j, i), (j, k, k), strict=True)
        )
        if product.shared and product.kind != "weight":
            b = np.broadcast_to(b[:1], b.shape)
        pairs = [(a, b)]
        if product.kind == "input":
            pairs.append((a, np.swapaxes(b.reshape(batch, k, j), 1, 2)))
        elif product.kind == "weight":
            pairs.append((np.swapaxes(a.reshape(batch, j, i), 1, 2), b))
        for a, b in pairs:
            if chunks == 1:
                yield threads, partial(np.matmul, a, b, out=out)
            else:
                split = [np.array_split(x, chunks) for x in (a, b, out)]
                yield threads, partial(_at_once, pool, split)


def _at_once(pool: ThreadPoolExecutor, split: list[list[np.ndarray]]) -> None:
    list(pool.map(np.matmul, *split))


def seconds(step: Callable[[], Any], times: int) -> list[float]:
    out = []
    for _ in range(times):
        began = time.perf_counter()
        step()
        out.append(time.perf_counter() - began)
    return out


def floor_on_cuda(_: Arrays, setting: Setting, order: int) -> Step:
    """The same on a device."""
    import cupy

    from mamlnp.backend import cuda

    needed = products(setting, order)
    largest = max(
        p.tasks * max(p.rows * p.inputs, p.rows * p.outputs, p.inputs * p.outputs) for p in needed
    )
    scratch = [cupy.ones(largest, np.float32) for _ in range(3)]
    a, b, c = (block.data.ptr for block in scratch)
    runs: list[Callable[[], Any]] = []
    for product, count in needed.items():
        batch = 1 if product.shared else product.tasks
        i, j, k = product.sides(batch)
        ways = []
        for ta, tb in itertools.product((0, 1), (0, 1)):  # a factor as it lies, or transposed
            first, second = (a, i if ta else j, i * j), (b, j if tb else k, j * k)
            words = [batch, ta, tb, i, k, j, *first, *second, c, k, i * k, 0]
            ways.append(cuda.product("f4", words))
        fastest = min(ways, key=lambda run: min(by_events(run, 4) for _ in range(3)))
        runs += [fastest] * count

    def all_at_once() -> None:
        for run in runs:
            run()

    graph = cuda.captured(all_at_once)
    keep = scratch  # for as long as the graph

    def step() -> list[np.ndarray]:
        graph()
        return keep[:0]

    return step


def floor(_: Arrays, setting: Setting, order: int) -> Step:
    """Every product at its fastest, as often as it is needed."""
    from threadpoolctl import ThreadpoolController

    needed, cores = products(setting, order), usable_cores()
    limit = partial(ThreadpoolController().limit, user_api="blas")
    pool = ThreadPoolExecutor(cores)
    largest = max(
        p.tasks * max(p.rows * p.inputs, p.rows * p.outputs, p.inputs * p.outputs) for p in needed
    )
    rng = np.random.default_rng(0)
    scratch = [rng.standard_normal(largest, np.float32) for _ in range(3)]
    plan: dict[int, list[tuple[int, Callable[[], Any]]]] = {}
    for product, count in needed.items():
        best = (float("inf"), 1, lambda: None)
        for threads, run in _variants(product, scratch, pool, cores):
            with limit(limits=threads):
                best = min(best, (min(seconds(run, 4)), threads, run), key=lambda found: found[0])
        plan.setdefault(best[1], []).append((count, best[2]))

    def step() -> list[np.ndarray]:
        for threads, runs in plan.items():
            with limit(limits=threads):
                for count, run in runs:
                    for _ in range(count):
                        run()
        return []

    return step


def best_rate(device: str) -> float:
    """Operations a second of a large float32 product."""
    if device == "cuda":
        import cupy

        a = cupy.ones((8192, 8192), np.float32)
        out = a.copy()
        return 2 * 8192**3 / min(by_events(lambda: cupy.matmul(a, a, out=out), 4) for _ in "123")
    a = np.ones((2048, 2048), np.float32)
    out = a.copy()
    return 2 * 2048**3 / min(seconds(lambda: np.matmul(a, a, out=out), 8))


# ---- a device


def by_events(step: Callable[[], Any], times: int) -> float:
    """Seconds of a step by events on CuPy's stream, which PyTorch's is too."""
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(times):
        step()
    stop.record()
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop) / 1e3 / times


def _by_clock(step: Callable[[], Any], times: int) -> float:
    """Seconds of a step of JAX's."""
    import jax

    began = time.perf_counter()
    for _ in range(times):
        out = step()
    jax.block_until_ready(out)
    return (time.perf_counter() - began) / times


def _prepare(name: str, tf32: bool) -> contextlib.AbstractContextManager[Any]:
    """An implementation's package makes its arrays on the device, within what is returned."""
    if name.startswith("torch"):
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        return torch.device("cuda")
    elif name.startswith("jax"):
        import jax

        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if tf32 else "highest")
    elif name.startswith("mamlnp"):
        import mamlnp

        return mamlnp.using_device("cuda")
    return contextlib.nullcontext()


def on_host(x: Any) -> np.ndarray:
    """An array of any framework's as NumPy's; waits for it."""
    if type(x).__module__ == "torch":
        x = x.detach().cpu()
    return x.numpy() if hasattr(x, "numpy") else np.asarray(x)


# ---- one process each


IMPLEMENTATIONS: dict[str, Callable[[Arrays, Setting, int], Step]] = {
    "mamlnp compiled": ours_compiled,
    "mamlnp eager": ours_eager,
    "torch loop": torch_loop,
    "torch loop, patches": partial(torch_loop, conv="patches"),
    "torch vmap": torch_vmap,
    "torch vmap, patches": partial(torch_vmap, conv="patches"),
    "torch compile": partial(torch_vmap, compiled=True),
    "torch compile, patches": partial(torch_vmap, conv="patches", compiled=True),
    "jax map": partial(jax_jit, mapped=True),
    "jax map, patches": partial(jax_jit, mapped=True, conv="patches"),
    "jax vmap": jax_jit,
    "jax vmap, patches": partial(jax_jit, conv="patches"),
    "autograd": autograd_batches,
}
ON_CUDA: dict[str, Callable[[Arrays, Setting, int], Step]] = {
    **{name: step for name, step in IMPLEMENTATIONS.items() if name != "autograd"},
    "torch loop, CUDA graph": partial(torch_loop, graphed=True),
    "torch vmap, CUDA graph": partial(torch_vmap, graphed=True),
    "torch vmap, patches, CUDA graph": partial(torch_vmap, conv="patches", graphed=True),
    "torch compile, CUDA graph": partial(torch_vmap, compiled=True, graphed=True),
    "torch compile, patches, CUDA graph": partial(
        torch_vmap, conv="patches", compiled=True, graphed=True
    ),
}
OTHERS = {"reference": reference, "floor": floor}
OURS = "mamlnp compiled", "mamlnp eager"
BEFORE = ", before"  # of the other checkout


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(name: str, setting: Setting, order: int, folder: Path, device: str, *, tf32: bool) -> None:
    """Write the gradient; then answer each number read with the median of so many steps, or on a
    device with their mean."""
    with contextlib.suppress(OSError):  # should memory run out, let it end this and nothing else
        Path("/proc/self/oom_score_adj").write_text("1000")
    arrays = tensors(setting)
    if name == "reference":
        arrays = {k: v.astype(np.float64) for k, v in arrays.items()}
    known, place = IMPLEMENTATIONS | OTHERS, contextlib.nullcontext()
    if device == "cuda" and name != "reference":
        known, place = ON_CUDA | {"floor": floor_on_cuda}, _prepare(name, tf32)
    with place:
        step = known[name](arrays, setting, order)
    np.savez(folder / "gradient.npz", *map(on_host, step()))

    def measured(times: int) -> float:
        if device == "cpu":  # in NumPy's arrays, which waits for those who compute meanwhile
            return statistics.median(seconds(lambda: list(map(on_host, step())), times))
        return (_by_clock if name.startswith("jax") else by_events)(step, times)

    answer = {"seconds": 0.0}
    if name != "reference":
        answer["seconds"] = measured(1)
        answer["seconds"] = measured(min(20, 1 + int(BLOCK_SECONDS / answer["seconds"])))
    if name == "floor":
        answer["rate"] = best_rate(device)
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": measured(int(line))}), flush=True)
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}))


class LeftOutError(Exception):
    """An implementation gives no answer."""


class Worker:
    """An implementation in a process of its own, on so many cores; made when it is warm."""

    def __init__(
        self,
        name: str,
        setting: str,
        order: int,
        cores: int,
        folder: Path,
        limit: float,
        device: list[str],
        against: Path | None = None,
    ) -> None:
        self.name, self.cores, self.folder, self.limit = name, cores, folder, limit
        self.times: list[float] = []
        self.apart = self.peak_mb = float("nan")
        # Else glibc gives large blocks back and fetches them anew, page by page, at every step. The
        # mamlnp command sees to that itself.
        environment = {
            **os.environ,
            "MALLOC_MMAP_THRESHOLD_": str(2**33),
            "MALLOC_TRIM_THRESHOLD_": str(2**34),
            "JAX_PLATFORMS": "cuda" if "cuda" in device else "cpu",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the device is everybody's
            "CUPY_TF32": "1" if "--tf32" in device else "0",
        }
        script = __file__
        if name.endswith(BEFORE):
            assert against is not None
            environment["PYTHONPATH"] = str(against)
            (script,) = map(str, against.glob("benchmarks/**/compare.py"))  # for its own interface
        command = [sys.executable, script, "--setting", setting, "--order", str(order), *device]
        folder.mkdir()
        with (folder / "errors").open("w") as errors:
            self.process = subprocess.Popen(
                [*command, "--work", name.removesuffix(BEFORE), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,  # so that what it starts can be ended with it
                preexec_fn=partial(_keep_to, cores),
            )
        self.ready = self.answer()
        self.seconds = self.ready["seconds"]

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        began, timer = time.perf_counter(), threading.Timer(self.limit, self.end)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        self.end()
        if time.perf_counter() - began > self.limit:
            raise LeftOutError(f"over {self.limit:.0f} s")
        complaint = (self.folder / "errors").read_text().split("\n")
        raise LeftOutError(next((c[:200] for c in reversed(complaint) if c), "it was ended"))

    def time(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{max(1, int(BLOCK_SECONDS / self.seconds))}\n")
        self.process.stdin.flush()
        self.times.append(1e3 * self.answer()["seconds"])

    def finish(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.peak_mb = self.answer()["peak_mb"]
        self.process.wait()

    def spread(self) -> float:
        """From quartile to quartile."""
        low, _, high = statistics.quantiles(self.times, n=4)
        return high - low

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _keep_to(cores: int) -> None:
    """The libraries make as many threads as there are cores for the process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


# ---- the comparison


def distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    apart = sum(float(((x - y) ** 2).sum()) for x, y in zip(a, b, strict=True))
    return (apart / sum(float((y**2).sum()) for y in b)) ** 0.5


def saved_gradient(worker: Worker) -> list[np.ndarray]:
    with np.load(worker.folder / "gradient.npz") as saved:
        return list(saved.values())


def compare(setting: str, order: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row an implementation."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        device = ["--device", options.device, *(["--tf32"] if options.tf32 else [])]
        agreement = TF32_AGREEMENT if options.tf32 else AGREEMENT

        def start(name: str, cores: int, limit: float = threading.TIMEOUT_MAX) -> Worker:
            folder = Path(scratch) / f"{name} {cores}"
            worker = Worker(name, setting, order, cores, folder, limit, device, options.against)
            stack.callback(worker.end)
            return worker

        def fastest(name: str) -> Worker:
            worker = start(name, usable_cores(), options.limit)
            if worker.seconds > SHORT_SECONDS or worker.cores == 1 or options.device == "cuda":
                return worker
            quick, slow = sorted((worker, start(name, 1, options.limit)), key=lambda w: w.seconds)
            slow.end()
            return quick

        exact = start("reference", usable_cores())
        exact.end()
        floor = start("floor", usable_cores())
        workers: list[Worker] = []
        every = IMPLEMENTATIONS if options.device == "cpu" else ON_CUDA
        chosen = options.implementation or every
        if options.against:
            chosen = [name + end for name in options.implementation or OURS for end in ("", BEFORE)]
        for name in chosen:
            if SETTINGS[setting]["net"] == "mlp" and ("patches" in name or name == "jax map"):
                continue
            cores = {w.name + BEFORE: w.cores for w in workers}.get(name)
            try:
                worker = start(name, cores, options.limit) if cores else fastest(name)
                worker.apart = distance(saved_gradient(worker), saved_gradient(exact))
                if not worker.apart < agreement:
                    raise LeftOutError(f"its meta-gradient is off by {worker.apart:.1e}")
                fastest_yet = min((w.seconds for w in workers), default=np.inf)
                hopeless = worker.seconds > HOPELESS * fastest_yet
                if hopeless or options.device == "cuda":  # whose memory they would fill together
                    for _ in range(3 if hopeless else options.repeats):
                        worker.time()
                    worker.finish()
                workers.append(worker)
            except LeftOutError as reason:
                print(f"  {name}: left out ({reason})", flush=True)
        turns = [w for w in (floor, *workers) if not w.times]
        for i in range(options.repeats):
            for worker in turns[:: 1 - 2 * (i % 2)]:  # there and back: neither is always first
                if i % max(1, min(4, options.repeats // 2)) == 0 or worker.seconds < LONG_SECONDS:
                    worker.time()
        for worker in turns:
            worker.finish()
    flops = sum(p.flops * count for p, count in products(SETTINGS[setting], order).items())
    return [
        {
            "setting": setting,
            "order": order,
            "implementation": worker.name,
            "device": options.device,
            "tf32": options.tf32,
            "cores": worker.cores,
            "median_ms": statistics.median(worker.times),
            "spread_ms": worker.spread(),
            "repeats": len(worker.times),
            "peak_mb": worker.peak_mb,
            "grad_rel_diff": worker.apart,
            "floor_ms": statistics.median(floor.times),
            "floor_spread_ms": floor.spread(),
            "floor_at_best_rate_ms": 1e3 * flops / floor.ready["rate"],
            **_change(worker, workers),
        }
        for worker in workers
    ]


def _change(worker: Worker, workers: list[Worker]) -> dict[str, float]:
    """This checkout's time as a multiple of the other's, of blocks that followed each other."""
    for other in workers:
        if other.name == worker.name + BEFORE:
            ratios = [a / b for a, b in zip(worker.times, other.times, strict=True)]
            return {"times_before": statistics.median(ratios)}
    return {}


def report(rows: list[dict[str, Any]]) -> None:
    """The rows of one setting and order, beside the fastest peer and the floor."""
    peer = fastest_peer(rows)
    for row in rows:
        ratio = f"{row['median_ms'] / peer:8.2f} x" if peer else " " * 10
        print(
            f"  {row['implementation']:24}{row['median_ms']:11.3f} ms{row['spread_ms']:10.3f}"
            f"{ratio}{row['cores']:5}{row['peak_mb']:9.0f} MB{row['grad_rel_diff']:11.0e}"
            + (f"   {row['times_before']:.3f} x before" if "times_before" in row else "")
        )
    if rows:
        print(
            f"  {'floor':24}{rows[0]['floor_ms']:11.3f} ms{rows[0]['floor_spread_ms']:10.3f}"
            f"   (at the best rate of a product {rows[0]['floor_at_best_rate_ms']:.3f} ms)"
        )


def fastest_peer(rows: list[dict[str, Any]]) -> float | None:
    peers = [r["median_ms"] for r in rows if not r["implementation"].startswith("mamlnp")]
    return min(peers, default=None)


def summary(rows: list[dict[str, Any]]) -> None:
    """What mamlnp compiled is held against, as ratios."""
    found: dict[str, dict[int, Any]] = {}
    for (setting, order), group in itertools.groupby(rows, lambda r: (r["setting"], r["order"])):
        group = list(group)
        by_name = {row["implementation"]: row for row in group}
        if not (ours := by_name.get("mamlnp compiled")):
            continue
        found.setdefault(setting, {})[order] = ours
        ratios = [f"{ours['median_ms'] / ours['floor_ms']:.2f} x the floor"]
        if peer := fastest_peer(group):
            ratios.append(f"{peer / ours['median_ms']:.2f} x as fast as the fastest peer")
        if jax := by_name.get("jax vmap"):
            ratios.append(f"{ours['median_ms'] / jax['median_ms']:.2f} x the time of jax vmap")
        print(f"{setting}, order {order}: mamlnp compiled takes {', '.join(ratios)}")
    for setting, orders in found.items():
        if len(orders) == 2:
            time = orders[1]["median_ms"] / orders[2]["median_ms"]
            floor = orders[1]["floor_ms"] / orders[2]["floor_ms"]
            print(
                f"{setting}: first order takes {time:.2f} of second order's time, its floor "
                f"{floor:.2f}; ratio {time / floor:.2f}"
            )


def versions(device: str) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    from threadpoolctl import threadpool_info

    found: dict[str, Any] = {"python": platform.python_version(), "cores": usable_cores()}
    for package in ("mamlnp", "numpy", "numba", "torch", "jax", "autograd"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if device == "cuda":
        import mamlnp

        with mamlnp.using_device("cuda"):
            found["device"] = mamlnp.backend.described()
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return found | {"blas": [f"{b['internal_api']} {b.get('architecture')}" for b in blas]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="default: all")
    parser.add_argument("--order", type=int, choices=(1, 2), help="default: both")
    parser.add_argument("--implementation", choices=ON_CUDA | IMPLEMENTATIONS, action="append")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tf32", action="store_true", help="products on tensor cores; cuda only")
    parser.add_argument("--against", type=Path, help="another checkout of mamlnp")
    parser.add_argument("--repeats", type=int, default=20, help="blocks an implementation")
    parser.add_argument("--limit", type=float, default=300, help="seconds to get ready in")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        name, folder = options.work
        setting = SETTINGS[options.setting[0]]
        return work(name, setting, options.order, Path(folder), options.device, tf32=options.tf32)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the workers end too
    settings = {name: SETTINGS[name] for name in options.setting or SETTINGS}
    result: dict[str, Any] = {
        "versions": versions(options.device),
        "settings": settings,
        "rows": [],
    }
    print(result["versions"])
    for setting in settings:
        for order in (options.order,) if options.order else (1, 2):
            print(f"{setting}, order {order}: {settings[setting]}, float32", flush=True)
            rows = compare(setting, order, options)
            report(rows)
            result["rows"] += rows
            if options.json:
                partly = options.json.with_suffix(".partial")
                partly.write_text(json.dumps(result, indent=1) + "\n")
    summary(result["rows"])
    if options.json:
        partly.replace(options.json)


if __name__ == "__main__":
    main()
