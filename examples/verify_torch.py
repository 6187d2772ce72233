"""PyTorch's meta-gradients through mamlnp's check:

mamlnp vectors vectors && python examples/verify_torch.py && mamlnp verify vectors torch.npz
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch.func import grad, vmap

vectors = {k: torch.tensor(v) for k, v in np.load("vectors/vectors.npz").items()}
cases = json.loads(Path("vectors/manifest.json").read_text())["cases"]


def mlp(p, x, layers):
    for i in range(1, layers):
        x = torch.tanh(x @ p[f"linear{i}.w"] + p[f"linear{i}.b"])
    return x @ p[f"linear{layers}.w"] + p[f"linear{layers}.b"]


def conv(p, x, layer, pad, stride):
    x = F.conv2d(F.pad(x, pad), p[f"{layer}.w"].permute(3, 2, 0, 1), stride=stride)
    # By hand: the second derivative of F.batch_norm under vmap is wrong in PyTorch 2.13.
    x = x - x.mean((0, 2, 3), keepdim=True)
    x = x / torch.sqrt((x**2).mean((0, 2, 3), keepdim=True) + 1e-3)
    beta, gamma = (p[f"{layer}.{name}"][:, None, None] for name in ("beta", "gamma"))
    return F.relu(x * gamma + beta)


def loss(case, p, b, outer=False):
    if case == "quadratic":
        return p["point.theta"] @ (b["x"] @ p["point.theta"] / 2 - b["y"])
    if case == "conv":
        x = conv(p, b["x"].permute(0, 3, 1, 2), "conv1", (0, 1, 0, 1), 2)
        x = F.max_pool2d(conv(p, x, "conv2", (1, 1, 1, 1), 1), 2).mean((2, 3))
        return F.cross_entropy(x @ p["head.w"] + p["head.b"], b["y"])
    if case == "reinforce":
        mean, log_std = mlp(p, b["observations"], 2), p["scale.log_std"]
        z = (b["actions"] - mean) / log_std.exp()
        new = -(z**2 / 2 + log_std + np.log(2 * np.pi) / 2).sum(-1)
        return -((torch.exp(new - b["log_prob"]) if outer else new) * b["advantages"]).mean()
    return F.mse_loss(mlp(p, b["x"], 3), b["y"])


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
        answer[f"{case}/meta_gradient/{name}"] = g.numpy()
np.savez("torch.npz", **answer)
