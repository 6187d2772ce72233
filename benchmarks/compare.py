"""One second-order meta-step: mamlnp against PyTorch, JAX and autograd, on the same tensors.

    python benchmarks/compare.py [--setting NAME] [--json FILE]

Needs ``pip install '.[peers]'``; an implementation whose package is missing is left out and said
so. Every implementation runs in a process of its own. First its whole meta-gradient is held against
mamlnp's in float64; then all are timed in turn, one block each, again and again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

AGREEMENT = 1e-3  # relative distance of a float32 meta-gradient
BLOCK_SECONDS = 0.2
SETTINGS = {
    "sine": {"tasks": 25, "shots": 10, "inner_lr": 0.01, "inner_steps": 1},
    "sine-5-steps": {"tasks": 25, "shots": 10, "inner_lr": 0.01, "inner_steps": 5},
}

Step = Callable[[], list[np.ndarray]]


def tensors(setting: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights and data of one meta-step, in float64."""
    rng = np.random.default_rng(0)
    arrays = {}
    for i, (fan_in, fan_out) in enumerate(((1, 40), (40, 40), (40, 1))):
        arrays[f"w{i}"] = rng.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out))
        arrays[f"b{i}"] = rng.normal(0, 0.1, fan_out)
    amplitude = rng.uniform(0.1, 5, (setting["tasks"], 1, 1))
    phase = rng.uniform(0, np.pi, (setting["tasks"], 1, 1))
    for part in ("support", "query"):
        x = rng.uniform(-5, 5, (setting["tasks"], setting["shots"], 1))
        arrays |= {f"{part}_x": x, f"{part}_y": amplitude * np.sin(x - phase)}
    return arrays


def parameters(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [arrays[name] for name in ("w0", "b0", "w1", "b1", "w2", "b2")]


def ours_eager(arrays: dict[str, np.ndarray], setting: dict[str, Any]) -> Step:
    from mamlnp import Batch, Task, array, losses, maml, nn, tree

    net = nn.mlp((1, 40, 40, 1))
    values = iter(parameters(arrays))
    params = {f"linear{i}": {"w": array(next(values)), "b": array(next(values))} for i in (1, 2, 3)}
    task = Task(*(Batch(arrays[f"{p}_x"], arrays[f"{p}_y"]) for p in ("support", "query")))

    def loss(params: Any, batch: Batch) -> Any:
        return losses.mse(net.apply(params, batch.x), batch.y, reduction="mean")

    inner = {"inner_lr": setting["inner_lr"], "inner_steps": setting["inner_steps"]}

    def step() -> list[np.ndarray]:
        return [g.numpy() for g in tree.leaves(maml.meta_gradient(loss, params, task, **inner)[1])]

    return step


def _plain_maml(
    params: Any, task: Any, setting: dict[str, Any], grad: Any, predict: Any, mean: Any
) -> Any:
    """One task's query loss after adaptation, in any framework with a functional gradient."""
    support_x, support_y, query_x, query_y = task

    def loss(params: Any, x: Any, y: Any) -> Any:
        return mean((predict(params, x) - y) ** 2)

    for _ in range(setting["inner_steps"]):
        grads = grad(loss)(params, support_x, support_y)
        params = [p - setting["inner_lr"] * g for p, g in zip(params, grads, strict=True)]
    return loss(params, query_x, query_y)


def _data(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [arrays[name] for name in ("support_x", "support_y", "query_x", "query_y")]


def torch_vmap(arrays: dict[str, np.ndarray], setting: dict[str, Any]) -> Step:
    import torch

    torch.set_num_threads(1)  # faster than two at these sizes
    params = [torch.tensor(p) for p in parameters(arrays)]
    data = [torch.tensor(x) for x in _data(arrays)]

    def predict(params: Any, x: Any) -> Any:
        for w, b in ((0, 1), (2, 3)):
            x = torch.relu(torch.addmm(params[b], x, params[w]))
        return torch.addmm(params[5], x, params[4])

    def one(params: Any, *task: Any) -> Any:
        return _plain_maml(params, task, setting, torch.func.grad, predict, torch.mean)

    def total(params: Any) -> Any:
        return torch.func.vmap(one, in_dims=(None, 0, 0, 0, 0))(params, *data).sum()

    gradient = torch.func.grad(total)
    return lambda: [g.numpy() for g in gradient(params)]


def torch_loop(arrays: dict[str, np.ndarray], setting: dict[str, Any]) -> Step:
    import torch

    torch.set_num_threads(1)  # faster than two at these sizes
    params = [torch.tensor(p, requires_grad=True) for p in parameters(arrays)]
    tasks = list(zip(*(torch.tensor(x) for x in _data(arrays)), strict=True))

    def predict(params: Any, x: Any) -> Any:
        for w, b in ((0, 1), (2, 3)):
            x = torch.relu(torch.addmm(params[b], x, params[w]))
        return torch.addmm(params[5], x, params[4])

    def grad(loss: Any) -> Any:
        return lambda params, *xy: torch.autograd.grad(loss(params, *xy), params, create_graph=True)

    def step() -> list[np.ndarray]:
        losses = [_plain_maml(params, t, setting, grad, predict, torch.mean) for t in tasks]
        return [g.numpy() for g in torch.autograd.grad(sum(losses), params)]

    return step


def jax_jit(arrays: dict[str, np.ndarray], setting: dict[str, Any]) -> Step:
    import jax
    import jax.numpy as jnp

    params = [jnp.asarray(p) for p in parameters(arrays)]
    data = [jnp.asarray(x) for x in _data(arrays)]

    def predict(params: Any, x: Any) -> Any:
        for w, b in ((0, 1), (2, 3)):
            x = jax.nn.relu(x @ params[w] + params[b])
        return x @ params[4] + params[5]

    def one(params: Any, *task: Any) -> Any:
        return _plain_maml(params, task, setting, jax.grad, predict, jnp.mean)

    def total(params: Any) -> Any:
        return jax.vmap(one, in_axes=(None, 0, 0, 0, 0))(params, *data).sum()

    gradient = jax.jit(jax.grad(total))
    return lambda: [np.asarray(g) for g in gradient(params)]


def autograd_batched(arrays: dict[str, np.ndarray], setting: dict[str, Any]) -> Step:
    import autograd
    import autograd.numpy as anp

    params, data = parameters(arrays), _data(arrays)
    tasks = setting["tasks"]

    def predict(params: Any, x: Any) -> Any:
        for w, b in ((0, 1), (2, 3)):
            x = anp.maximum(anp.matmul(x, params[w]) + params[b][:, None], 0)
        return anp.matmul(x, params[4]) + params[5][:, None]

    def total(params: Any) -> Any:
        # Each task's own copy of the parameters, so that one batched product serves all tasks.
        ones = anp.ones((tasks, 1, 1), params[0].dtype)
        copies = [p * (ones if p.ndim == 2 else ones[:, 0]) for p in params]
        mean = lambda x: anp.sum(x) / x[0].size  # noqa: E731
        return _plain_maml(copies, data, setting, autograd.grad, predict, mean)

    gradient = autograd.grad(total)
    return lambda: gradient(params)


IMPLEMENTATIONS = {
    "mamlnp eager": ours_eager,
    "torch.func.vmap": torch_vmap,
    "torch, looping tasks": torch_loop,
    "jax.jit of vmap": jax_jit,
    "autograd": autograd_batched,
}


def worker(name: str, setting: dict[str, Any], folder: Path) -> None:
    """Write the float32 meta-gradient, then answer every line of input with a median time in ms."""
    make = IMPLEMENTATIONS[name]
    arrays = {k: v.astype(np.float32) for k, v in tensors(setting).items()}
    step = make(arrays, setting)
    np.savez(folder / "gradient.npz", *step())
    for _ in range(20):
        step()
    began = time.perf_counter()
    step()
    count = max(3, int(BLOCK_SECONDS / (time.perf_counter() - began)))
    print("ready", flush=True)
    for _ in sys.stdin:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        print(1e3 * statistics.median(times), flush=True)


def distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    apart = sum(float(((x - y) ** 2).sum()) for x, y in zip(a, b, strict=True))
    return (apart / sum(float((y**2).sum()) for y in b)) ** 0.5


def compare(name: str, repeats: int) -> list[dict[str, Any]]:
    """One row an implementation."""
    setting = SETTINGS[name]
    exact = ours_eager(tensors(setting), setting)()
    rows, workers = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for i, implementation in enumerate(IMPLEMENTATIONS):
            folder = Path(scratch) / str(i)
            folder.mkdir()
            process = subprocess.Popen(
                [sys.executable, __file__, "--setting", name, "--worker", implementation, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None and process.stderr is not None
            if process.stdout.readline().strip() != "ready":
                print(f"{implementation}: left out ({process.stderr.read().strip()[-200:]})")
                continue
            with np.load(folder / "gradient.npz") as saved:
                apart = distance(list(saved.values()), exact)
            if not apart < AGREEMENT:
                raise SystemExit(f"{implementation}: the meta-gradient is off by {apart:.1e}.")
            workers[implementation] = (process, apart)
        times: dict[str, list[float]] = {w: [] for w in workers}
        for _ in range(repeats):
            for implementation, (process, _) in workers.items():
                process.stdin.write("\n")
                process.stdin.flush()
                times[implementation].append(float(process.stdout.readline()))
        for implementation, (process, apart) in workers.items():
            process.stdin.close()
            process.wait()
            low, _, high = statistics.quantiles(times[implementation], n=4)
            row = {
                "setting": name,
                "order": 2,
                "implementation": implementation,
                "median_ms": statistics.median(times[implementation]),
                "spread_ms": high - low,
                "grad_rel_diff": apart,
            }
            rows.append(row)
    return rows


def versions() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "cores": os.cpu_count()}
    for package in ("mamlnp", "numpy", "numba", "torch", "jax", "autograd"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, action="append")
    parser.add_argument("--repeats", type=int, default=20, help="blocks an implementation")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, folder = options.worker
        return worker(name, SETTINGS[options.setting[0]], Path(folder))
    print(versions())
    rows = []
    for setting in options.setting or SETTINGS:
        print(f"{setting}: second-order meta-gradient, {SETTINGS[setting]}, float32")
        for row in compare(setting, options.repeats):
            rows.append(row)
            print(
                f"  {row['implementation']:24}{row['median_ms']:9.3f} ms  "
                f"(quartiles {row['spread_ms']:.3f} apart; gradient within "
                f"{row['grad_rel_diff']:.0e})"
            )
    if options.json:
        partial = options.json.with_suffix(".partial")
        partial.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")
        partial.replace(options.json)


if __name__ == "__main__":
    main()
