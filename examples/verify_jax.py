"""JAX's meta-gradients through mamlnp's check:

mamlnp vectors vectors && python examples/verify_jax.py && mamlnp verify vectors jax.npz
"""

import json
from pathlib import Path

import jax
import numpy as np
from jax import grad, lax, numpy as jnp, vmap

jax.config.update("jax_enable_x64", True)
vectors = {k: jnp.asarray(v) for k, v in np.load("vectors/vectors.npz").items()}
cases = json.loads(Path("vectors/manifest.json").read_text())["cases"]


def mlp(p, x, layers):
    for i in range(1, layers):
        x = jnp.tanh(x @ p[f"linear{i}.w"] + p[f"linear{i}.b"])
    return x @ p[f"linear{layers}.w"] + p[f"linear{layers}.b"]


def conv(p, x, layer, stride):
    dims = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, p[f"{layer}.w"], 2 * [stride], "SAME", dimension_numbers=dims)
    scale = p[f"{layer}.gamma"] / jnp.sqrt(x.var((0, 1, 2)) + 1e-3)
    return jax.nn.relu((x - x.mean((0, 1, 2))) * scale + p[f"{layer}.beta"])


def loss(case, p, b, outer=False):
    if case == "quadratic":
        return p["point.theta"] @ (b["x"] @ p["point.theta"] / 2 - b["y"])
    if case == "conv":
        x = conv(p, conv(p, b["x"], "conv1", 2), "conv2", 1)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        logits = x.mean((1, 2)) @ p["head.w"] + p["head.b"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), b["y"][:, None], 1).mean()
    if case == "reinforce":
        mean, std = mlp(p, b["observations"], 2), jnp.exp(p["scale.log_std"])
        new = jax.scipy.stats.norm.logpdf(b["actions"], mean, std).sum(-1)
        return -((jnp.exp(new - b["log_prob"]) if outer else new) * b["advantages"]).mean()
    return ((mlp(p, b["x"], 3) - b["y"]) ** 2).mean()


def meta_gradient(case, alpha, steps):
    theta, support, query = (
        {k.split("/")[2]: v for k, v in vectors.items() if k.startswith(f"{case}/{part}/")}
        for part in ("theta", "support", "query")
    )

    def adapted_loss(p, support, query):
        for _ in range(steps):
            g = grad(lambda p: loss(case, p, support))(p)
            p = {k: p[k] - alpha * g[k] for k in p}
        return loss(case, p, query, outer=True)

    return grad(lambda p: vmap(adapted_loss, (None, 0, 0))(p, support, query).sum())(theta)


answer = {}
for case, how in cases.items():
    for name, g in meta_gradient(case, how["alpha"], how["inner_steps"]).items():
        answer[f"{case}/meta_gradient/{name}"] = np.asarray(g)
np.savez("jax.npz", **answer)
