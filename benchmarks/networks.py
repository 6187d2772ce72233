"""Networks of many kinds against JAX in float64: every derivative to order 3, and meta-gradients.

    python benchmarks/networks.py [--networks 300] [--minutes 9] [--file FILE]

Each network is written once, for either library. Its loss, gradient, the gradient's derivative
along a random direction, that one's along another, and two meta-gradients (through one and two
inner steps, by both methods, over three tasks, the loss mapped by vmap) are computed by mamlnp,
eagerly and compiled, and by JAX. Differences are relative to the largest element of a derivative by
all parameters. What is done is kept in FILE: the command goes on there, and prints the summary.
Without JAX, mamlnp compiled is held against mamlnp eager alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import mamlnp as ml

# XLA takes longer to compile than all else takes; its fastest way is as right.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = None

TOLERANCE = 1e-8  # of derivatives by JAX and by mamlnp, both float64
TASKS = 3
ALPHA = 0.05
Params = dict[str, Any]


class Problem(NamedTuple):
    """Attributes:
    params: of the network.
    data: what every task has another of.
    loss: (library, params, data) -> a number.
    order: the highest derivative that is compared; less where the loss takes gradients itself.
    """

    params: Params
    data: Params
    loss: Callable[[Any, Params, Params], Any]
    order: int = 3


# ---- either library


def mamlnp_functions() -> SimpleNamespace:
    names = "tanh exp log sqrt sin softplus sigmoid sum mean square concatenate stack softmax relu"
    names += " einsum maximum where swapaxes reshape logsumexp log_softmax cos expm1 log1p norm"
    names += " minimum max min var transpose expand_dims broadcast_to pad flip take"
    return SimpleNamespace(
        **{name: getattr(ml, name) for name in names.split()},
        grad=ml.grad,
        map=ml.tree.map,
        conv=lambda x, w: ml.conv2d(x, w),
    )


def jax_functions() -> SimpleNamespace:
    names = "tanh exp log sqrt sin sum mean square concatenate stack einsum maximum where"
    names += " swapaxes reshape cos expm1 log1p minimum max min var transpose expand_dims"
    names += " broadcast_to pad flip take"

    def conv(x: Any, w: Any) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)

    return SimpleNamespace(
        **{name: getattr(jnp, name) for name in names.split()},
        softplus=jax.nn.softplus,
        sigmoid=jax.nn.sigmoid,
        softmax=lambda x, axis=-1: jax.nn.softmax(x, axis),
        logsumexp=lambda x, axis=None: jax.scipy.special.logsumexp(x, axis),
        log_softmax=lambda x, axis=-1: jax.nn.log_softmax(x, axis),
        norm=lambda x, axis=None, keepdims=False: jnp.linalg.norm(x, axis=axis, keepdims=keepdims),
        relu=jax.nn.relu,
        grad=jax.grad,
        map=jax.tree_util.tree_map,
        conv=conv,
    )


# ---- the networks


class Draw:
    """Small random sizes, weights and choices."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def size(self, low: int = 2, high: int = 4) -> int:
        return int(self.rng.integers(low, high + 1))

    def weights(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape) / math.sqrt(max(1, math.prod(shape[:-1])))

    def values(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape)

    def activation(self) -> Callable[[Any, Any], Any]:
        name = ("tanh", "softplus", "sin", "sigmoid")[self.rng.integers(4)]
        return lambda m, x: getattr(m, name)(x)


def squares(m: Any, x: Any, y: Any) -> Any:
    return m.mean(m.square(x - y))


def recurrent(d: Draw) -> Problem:
    n, steps, inputs, h = d.size(), d.size(2, 4), d.size(), d.size()
    gates = int(d.rng.integers(1, 4))  # plain, GRU-like, LSTM-like
    p = {
        "x": d.weights(inputs, 4 * h),
        "h": d.weights(h, 4 * h),
        "b": d.values(4 * h),
        "o": d.weights(h, 1),
    }

    def loss(m: Any, p: Params, data: Params) -> Any:
        h = cell = data["x"][:, 0, :1] * p["b"][: p["h"].shape[0]]
        size = p["h"].shape[0]
        for t in range(steps):
            z = data["x"][:, t] @ p["x"] + h @ p["h"] + p["b"]
            a, b, c, e = (z[:, i * size : (i + 1) * size] for i in range(4))
            if gates == 1:
                h = m.tanh(a)
            elif gates == 2:
                h = m.sigmoid(a) * h + (1.0 - m.sigmoid(a)) * m.tanh(b + m.sigmoid(c) * h)
            else:
                cell = m.sigmoid(a) * cell + m.sigmoid(b) * m.tanh(c)
                h = m.sigmoid(e) * m.tanh(cell)
        return squares(m, h @ p["o"], data["y"])

    return Problem(p, {"x": d.values(n, steps, inputs), "y": d.values(n, 1)}, loss)


def layer_norm(m: Any, x: Any) -> Any:
    centred = x - m.mean(x, axis=-1, keepdims=True)
    return centred / m.sqrt(m.mean(m.square(centred), axis=-1, keepdims=True) + 1e-2)


def attention(d: Draw) -> Problem:
    n, length, size = d.size(2, 3), d.size(2, 4), d.size(2, 4)
    act = d.activation()
    p = {name: d.weights(size, size) for name in ("q", "k", "v", "a", "b")}

    def loss(m: Any, p: Params, data: Params) -> Any:
        x = data["x"]
        q, k, v = (layer_norm(m, x) @ p[name] for name in "qkv")
        scores = m.softmax(q @ m.swapaxes(k, -1, -2) / math.sqrt(size), axis=-1)
        x = x + scores @ v
        x = x + act(m, layer_norm(m, x) @ p["a"]) @ p["b"]
        return squares(m, x, data["y"])

    return Problem(p, {"x": d.values(n, length, size), "y": d.values(n, length, size)}, loss)


def residual(d: Draw) -> Problem:
    n, size, blocks = d.size(2, 4), d.size(2, 4), d.size(1, 3)
    act = d.activation()
    p = {f"{name}{i}": d.weights(size, size) for i in range(blocks) for name in "ab"}
    p |= {"in": d.weights(size, size), "out": d.weights(size, 2)}

    def loss(m: Any, p: Params, data: Params) -> Any:
        y = data["x"] @ p["in"]
        for i in range(blocks):
            y = y + act(m, y @ p[f"a{i}"]) @ p[f"b{i}"]
        return squares(m, y @ p["out"], data["y"])

    return Problem(p, {"x": d.values(n, size), "y": d.values(n, 2)}, loss)


def group_norm(d: Draw) -> Problem:
    n, side, groups, each = d.size(2, 3), d.size(3, 4), 2, d.size(1, 2)
    act, channels = d.activation(), groups * each
    p = {"w": d.weights(3, 3, 2, channels), "v": d.weights(3, 3, channels, channels)}
    p |= {"g": 1 + 0.1 * d.values(channels), "b": d.values(channels), "o": d.weights(channels, 2)}

    def loss(m: Any, p: Params, data: Params) -> Any:
        x = m.conv(data["x"], p["w"])
        apart = m.reshape(x, (n, side * side, groups, each))
        centred = apart - m.mean(apart, axis=(1, 3), keepdims=True)
        scale = m.sqrt(m.mean(m.square(centred), axis=(1, 3), keepdims=True) + 1e-2)
        y = m.reshape(centred / scale, (n, side, side, channels)) * p["g"] + p["b"]
        y = x + m.conv(act(m, y), p["v"])
        return squares(m, m.mean(y, axis=(1, 2)) @ p["o"], data["y"])

    return Problem(p, {"x": d.values(n, side, side, 2), "y": d.values(n, 2)}, loss)


def weight_norm(d: Draw) -> Problem:
    n, size = d.size(2, 4), d.size(2, 4)
    act = d.activation()
    p = {
        "v": d.weights(size, size),
        "g": 1 + 0.1 * d.values(size),
        "b": d.values(size),
        "o": d.weights(size, 1),
    }

    def loss(m: Any, p: Params, data: Params) -> Any:
        w = p["g"] * p["v"] / m.sqrt(m.sum(m.square(p["v"]), axis=0))
        return squares(m, act(m, act(m, data["x"] @ w + p["b"]) @ w) @ p["o"], data["y"])

    return Problem(p, {"x": d.values(n, size), "y": d.values(n, 1)}, loss)


def hypernetwork(d: Draw) -> Problem:
    n, inputs, size, code = d.size(2, 4), d.size(), d.size(), d.size()
    act = d.activation()
    p = {
        "z": d.values(code),
        "w": d.weights(code, inputs * size),
        "v": d.weights(code, size),
        "b": d.values(size),
    }

    def loss(m: Any, p: Params, data: Params) -> Any:
        w = m.reshape(m.tanh(p["z"]) @ p["w"], (inputs, size))
        h = act(m, data["x"] @ w + p["b"])
        return squares(m, h @ m.reshape(p["z"] @ p["v"], (size, 1)), data["y"])

    return Problem(p, {"x": d.values(n, inputs), "y": d.values(n, 1)}, loss)


def physics_informed(d: Draw) -> Problem:
    """Burgers' equation, u_t + u u_x = nu u_xx, at some points."""
    n, size = d.size(2, 3), d.size(2, 3)
    p = {
        "w": d.weights(2, size),
        "b": d.values(size),
        "v": d.weights(size, size),
        "o": d.weights(size, 1),
    }

    def loss(m: Any, p: Params, data: Params) -> Any:
        def u(x: Any) -> Any:
            return m.tanh(m.tanh(x @ p["w"] + p["b"]) @ p["v"]) @ p["o"]

        def slopes(x: Any) -> Any:
            return m.grad(lambda x: m.sum(u(x)))(x)

        x = data["x"]
        second = m.grad(lambda x: m.sum(slopes(x)[:, 0]))(x)
        first = slopes(x)
        left = first[:, 1:] + u(x) * first[:, :1] - 0.1 * second[:, :1]
        return m.mean(m.square(left)) + squares(m, u(data["edge"]), data["y"])

    data = {"x": d.values(n, 2), "edge": d.values(n, 2), "y": d.values(n, 1)}
    return Problem(p, data, loss, 2)


def unrolled_solver(d: Draw) -> Problem:
    """Gradient descent on a quadratic, or Newton's iteration for an inverse root, unrolled."""
    size, steps = d.size(2, 3), d.size(3, 6)
    descends = bool(d.rng.integers(2))
    p = {"a": d.weights(size, size), "w": d.weights(size, size)}

    def loss(m: Any, p: Params, data: Params) -> Any:
        matrix = p["a"] @ m.swapaxes(p["a"], 0, 1) + data["ridge"]
        z = data["x"] @ p["w"]
        if descends:
            for _ in range(steps):
                z = z - 0.1 * (z @ matrix - data["x"])
            return m.mean(m.square(z - data["y"]))
        scale = m.sum(m.square(matrix))
        inverse = matrix / scale
        for _ in range(steps):
            inverse = 2.0 * inverse - inverse @ matrix @ inverse
        return m.mean(m.square(z @ inverse - data["y"]))

    data = {"x": d.values(2, size), "y": d.values(2, size), "ridge": np.eye(size)}
    return Problem(p, data, loss)


def small_loss(m: Any, p: Params, x: Any, y: Any) -> Any:
    return squares(m, m.tanh(x @ p["w"] + p["b"]) @ p["o"], y)


def small_network(d: Draw) -> tuple[Params, Params]:
    n, size = d.size(2, 4), d.size(2, 3)
    p = {"w": d.weights(1, size), "b": d.values(size), "o": d.weights(size, 1)}
    return p, {name: d.values(n, 1) for name in ("x", "y", "x2", "y2")}


def adam_inside(d: Draw) -> Problem:
    p, data = small_network(d)
    steps = d.size(2, 4)

    def loss(m: Any, p: Params, data: Params) -> Any:
        first = second = m.map(lambda x: x * 0.0, p)
        gradient = m.grad(lambda p: small_loss(m, p, data["x"], data["y"]))
        for t in range(1, steps + 1):
            g = gradient(p)
            first = m.map(lambda a, g: 0.9 * a + 0.1 * g, first, g)
            second = m.map(lambda a, g: 0.99 * a + 0.01 * m.square(g), second, g)
            by, root = 1 - 0.9**t, 1 - 0.99**t

            def moved(q: Any, a: Any, b: Any, by: float = by, root: float = root) -> Any:
                return q - 0.05 * (a / by) / (m.sqrt(b / root + 1e-4) + 1e-3)

            p = m.map(moved, p, first, second)
        return small_loss(m, p, data["x2"], data["y2"])

    return Problem(p, data, loss, 2)


def twenty_inner_steps(d: Draw) -> Problem:
    p, data = small_network(d)

    def loss(m: Any, p: Params, data: Params) -> Any:
        gradient = m.grad(lambda p: small_loss(m, p, data["x"], data["y"]))
        for _ in range(20):
            p = m.map(lambda q, g: q - 0.05 * g, p, gradient(p))
        return small_loss(m, p, data["x2"], data["y2"])

    return Problem(p, data, loss, 1)


def densely_connected(d: Draw) -> Problem:
    n, size = d.size(2, 4), d.size(2, 3)
    act = d.activation()
    p = {f"w{i}": d.weights((i + 1) * size, size) for i in range(3)} | {"o": d.weights(4 * size, 1)}

    def loss(m: Any, p: Params, data: Params) -> Any:
        parts = [data["x"]]
        for i in range(3):
            parts.append(act(m, m.concatenate(parts, -1) @ p[f"w{i}"]))
        every = m.concatenate(parts, -1)
        gram = m.swapaxes(every, 0, 1) @ every / n
        return squares(m, every @ p["o"], data["y"]) + 0.1 * m.mean(m.square(gram))

    return Problem(p, {"x": d.values(n, size), "y": d.values(n, 1)}, loss)


def shared_weights(d: Draw) -> Problem:
    """An autoencoder whose decoder is the encoder's transpose, used twice."""
    n, size, code = d.size(2, 4), d.size(2, 4), d.size(2, 3)
    act = d.activation()
    p = {"w": d.weights(size, code), "b": d.values(code), "c": d.values(size)}

    def loss(m: Any, p: Params, data: Params) -> Any:
        x, total = data["x"], 0.0
        for _ in range(2):
            h = act(m, x @ p["w"] + p["b"])
            x = h @ m.swapaxes(p["w"], 0, 1) + p["c"]
            total = total + squares(m, x, data["y"])
        return total + m.logsumexp(m.sum(m.square(p["w"]), axis=0), axis=0)

    return Problem(p, {"x": d.values(n, size), "y": d.values(n, size)}, loss)


KINDS = (
    recurrent, attention, residual, group_norm, weight_norm, hypernetwork, physics_informed,
    unrolled_solver, adam_inside, twenty_inner_steps, densely_connected, shared_weights,
)  # fmt: skip


# ---- what is computed of each


def derivatives(m: Any, inner: Any, problem: Problem, grad: Any) -> Callable[..., list[Any]]:
    """(params, data, directions) -> the loss, and its derivatives up to the problem's order."""

    def of(params: Params, data: Params, directions: list[Params]) -> list[Any]:
        def along(f: Any, v: Params) -> Any:
            return lambda p: inner(grad(f)(p), v)

        f: Any = lambda p: problem.loss(m, p, data)  # noqa: E731
        out = [f(params)]
        for order in range(problem.order):
            out.append(grad(f)(params))
            if order + 1 < problem.order:
                f = along(f, directions[order])
        return out

    return of


def jax_meta_gradient(m: Any, problem: Problem, steps: int) -> Callable[..., Any]:
    def of(params: Params, support: Params, query: Params) -> Any:
        def one(params: Params, support: Params, query: Params) -> Any:
            for _ in range(steps):
                g = jax.grad(lambda p: problem.loss(m, p, support))(params)
                params = jax.tree_util.tree_map(lambda p, g: p - ALPHA * g, params, g)
            return problem.loss(m, params, query)

        many = jax.vmap(one, in_axes=(None, 0, 0))
        return jax.grad(lambda p: many(p, support, query).sum())(params)

    return of


def differences(a: Any, b: Any, least: float = 0.0) -> float:
    """The largest, relative to the largest element of all leaves of b, or to ``least``."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    ml.tree.map(lambda x, y: pairs.append((_host(x), _host(y))), a, b)
    size = max(least, *(float(np.abs(y).max(initial=0.0)) for _, y in pairs)) or 1.0
    worst = max(float(np.abs(x - y).max(initial=0.0)) for x, y in pairs) / size
    return worst if math.isfinite(worst) else math.inf


def _host(x: Any) -> np.ndarray:
    return x.numpy() if isinstance(x, ml.Array) else np.asarray(x)


def by_jax(f: Callable[..., Any], *args: Any) -> Any:
    """f of the arguments, compiled by JAX; where that has a NaN, an operation at a time. (The
    meta-gradient of program 2000 has one compiled alone, and differences of its loss agree with the
    other.)"""
    given = [jax.tree_util.tree_map(jnp.asarray, x) for x in args]
    out = jax.jit(f)(*given)
    sound = all(bool(jnp.isfinite(x).all()) for x in jax.tree_util.tree_leaves(out))
    return out if sound else f(*given)


def compared(index: int) -> dict[str, Any]:
    """One network: the worst difference of everything that is computed."""
    kind = KINDS[index % len(KINDS)]
    d = Draw(index)
    problem = kind(d)
    m = mamlnp_functions()
    directions = [ml.tree.map(lambda x: d.values(*x.shape), problem.params) for _ in range(2)]
    tasks = [
        ml.tree.map(
            lambda x: np.stack([x + 0.3 * d.values(*x.shape) for _ in range(TASKS)]), problem.data
        )
        for _ in range(2)
    ]
    place = lambda t: ml.tree.map(ml.array, t)  # noqa: E731
    meta_steps = (1, 2) if problem.order == 3 else (1,)

    def ours(params: Params, data: Params, directions: Any, support: Params, query: Params) -> Any:
        task = ml.Task(support, query)
        loss = ml.vmap(lambda p, data: problem.loss(m, p, data))
        metas = [
            ml.maml.meta_gradient(
                loss, params, task, inner_lr=ALPHA, inner_steps=steps, method=method
            )[1]
            for steps in meta_steps
            for method in ("backprop", "hvp")
        ]
        return derivatives(m, ml.dot, problem, ml.grad)(params, data, directions), metas

    given = [place(x) for x in (problem.params, problem.data, directions, *tasks)]
    eager = ours(*given)
    replayed = ml.compile(ours, check=False)(*given)
    found = {"compiled against eager": differences(replayed, eager)}
    if jax is not None:
        j = jax_functions()

        def inner(a: Any, b: Any) -> Any:
            parts = jax.tree_util.tree_map(lambda x, y: jnp.sum(x * y), a, b)
            return sum(jax.tree_util.tree_leaves(parts))

        computed = derivatives(j, inner, problem, jax.grad)
        theirs = by_jax(computed, problem.params, problem.data, directions)
        for order, (a, c, b) in enumerate(zip(eager[0], replayed[0], theirs, strict=True)):
            found[f"order {order}, eager"] = differences(a, b)
            found[f"order {order}, compiled"] = differences(c, b)
        metas = zip(_pairs(eager[1]), _pairs(replayed[1]), strict=True)
        for steps, (a, c) in zip(meta_steps, metas, strict=True):
            b = by_jax(jax_meta_gradient(j, problem, steps), problem.params, *tasks)
            for form, both in (("eager", a), ("compiled", c)):
                found[f"meta-gradient, {form}"] = max(
                    found.get(f"meta-gradient, {form}", 0.0), *(differences(x, b) for x in both)
                )
    return {"network": index, "kind": kind.__name__, "differences": found}


def _pairs(found: list[Any]) -> Iterator[list[Any]]:
    """What the two methods give, for each number of inner steps."""
    return (found[i : i + 2] for i in range(0, len(found), 2))


def summary(rows: list[dict[str, Any]]) -> str:
    """The worst difference of every comparison, and how many are wrong."""
    worst: dict[str, tuple[float, str]] = {}
    for row in rows:
        for name, value in row["differences"].items():
            worst[name] = max(
                worst.get(name, (-1.0, "")), (value, f"{row['kind']} {row['network']}")
            )
    wrong = sum(max(row["differences"].values()) > TOLERANCE for row in rows)
    lines = [f"{name:32} {value:.1e}  ({which})" for name, (value, which) in worst.items()]
    return "\n".join([*lines, f"{len(rows)} networks, {wrong} wrong (more than {TOLERANCE:.0e})"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=9.0, help="of this part")
    parser.add_argument("--file", type=Path, default=Path("networks.jsonl"))
    options = parser.parse_args()
    if jax is not None:
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_platforms", "cpu")
    rows = (
        [json.loads(line) for line in options.file.read_text().splitlines()]
        if options.file.exists()
        else []
    )
    done = {row["network"] for row in rows}
    until = time.monotonic() + 60 * options.minutes
    with options.file.open("a") as file:
        for index in range(options.networks):
            if index in done or time.monotonic() > until:
                continue
            row = compared(index)
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    print(summary(rows))
    left = options.networks - len(rows)
    if left > 0:
        print(f"{left} are left: run the same command again.")
    raise SystemExit(any(max(row["differences"].values()) > TOLERANCE for row in rows))


if __name__ == "__main__":
    main()
