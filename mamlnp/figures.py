"""Every figure of the documentation, made anew: ``mamlnp figures``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import graph, initialisations, landscape, optim, parallel, plots, tree
from .array import Array, array
from .autodiff import dot, grad, hvp, jvp
from .compile import compile
from .errors import DeviceError
from .experiments import sine
from .experiments.classification import compare_gradients
from .meta import MAML, num_tasks, per_task, total
from .tasks import Task, counted_rng
from .tasks.sinusoid import Sinusoids
from .tasks.strokes import draw_alphabet

ALPHAS = np.geomspace(1e-4, 3e-2, 13)
ITERATIONS, EVERY = 6_000, 200
SHOWN = 14  # characters of an alphabet, and hands
HVP_STEPS = np.geomspace(1e-1, 1e-9, 17)


def all_figures(folder: Path) -> Iterator[str]:
    """Draw them, one after the other.

    Args:
        folder: where to; made if it is not there.

    Yields:
        What was drawn, or why it was not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for order in (1, 2):
        try:
            yield graph.draw(graph.sine(order), folder / f"tape-{order}.svg")
        except DeviceError as error:
            yield str(error)
    for name, title, params, radius in (
        ("untrained", "before training", sine.initial_params(sine.Config()), 1.0),
        ("trained", "meta-trained", initialisations.load("sine").params, 0.3),
    ):
        picture = folder / f"landscape-{name}.png"
        second, first = (
            MAML(sine.loss, inner_lr=0.01, first_order=first_order) for first_order in (False, True)
        )
        found = landscape.around(second, params, _waves(100), beside=first.gradient, radius=radius)
        plots.landscape(picture, found, f"sine network, {title}, 100 tasks")
        yield f"written to {picture}"
    for name, draw in (("first-order", _first_order), ("hvp", _hvp), ("alphabets", _alphabets)):
        picture = folder / f"{name}.png"
        draw(picture)
        yield f"written to {picture}"


def _waves(tasks: int) -> Task:
    return Sinusoids().sample(tasks, num_shots=10, num_queries=10, rng=counted_rng(0, "test"))


def _compared(params: Any, task: Task, inner_lr: float) -> tuple[float, float]:
    """Cosine and ratio of lengths of the first-order to the second-order meta-gradient."""
    gradients = [
        MAML(sine.loss, inner_lr=inner_lr, first_order=first_order).gradient(params, task)[1]
        for first_order in (True, False)
    ]
    found = compare_gradients(*gradients)
    return found["gradient_cosine"], found["gradient_ratio"]


def _first_order(picture: Path) -> None:
    """What first order drops, over meta-training and against alpha."""
    config = sine.Config()
    first = sine.initial_params(config)
    optimizer = optim.adam(config.meta_lr)
    gradient = MAML(sine.loss, inner_lr=config.inner_lr).gradient
    step = parallel.meta_step(gradient, optimizer=optimizer, chunks=1)
    task, waves = _waves(200), Sinusoids()
    params, state = first, optimizer.init(first)
    over = [(0, *_compared(params, task, config.inner_lr))]
    for n in tqdm(range(ITERATIONS), "meta-training", leave=False, delay=1):
        rng = counted_rng(0, "train", n)
        drawn = waves.sample(config.meta_batch_size, num_shots=10, num_queries=10, rng=rng)
        params, state, _ = step(params, state, drawn)
        if (n + 1) % EVERY == 0:
            over.append((n + 1, *_compared(params, task, config.inner_lr)))
    against = {
        "before training": [(a, *_compared(first, task, float(a))) for a in ALPHAS],
        f"after {ITERATIONS:,} meta-iterations": [
            (a, *_compared(params, task, float(a))) for a in ALPHAS
        ],
    }
    plots.first_order(picture, over, against)


def _hvp(picture: Path) -> None:
    """Three ways to a Hessian-vector product: what they cost and how exact they are."""
    params, task = initialisations.load("sine").params, _waves(25)
    vector = tree.map(
        lambda p: array(counted_rng(1, "test").normal(size=p.shape).astype(p.dtype)), params
    )
    length = float(np.sqrt(dot(vector, vector).item()))
    vector = tree.map(lambda v: v * (1 / length), vector)

    def loss(params: Any) -> Array:
        theta = per_task(params, num_tasks(task))
        return total(sine.loss, task.support)(theta)

    def difference(params: Any, v: Any, h: Any) -> Any:
        up, down = (tree.map(lambda p, v, s=s: p + s * h * v, params, v) for s in (1.0, -1.0))
        return tree.map(lambda a, b: (a - b) / (2 * h), grad(loss)(up), grad(loss)(down))

    ways: dict[str, Callable[..., Any]] = {
        "gradient of <gradient, v>": lambda p, v: hvp(loss, p, v),
        "forward over the gradient": lambda p, v: jvp(grad(loss), (p,), (v,))[1],
        "difference of gradients": lambda p, v: difference(p, v, 1e-3),
    }
    base = _seconds(compile(grad(loss)), params)
    costs = {name: _seconds(compile(f), params, vector) / base for name, f in ways.items()}
    doubled = [tree.map(lambda p: array(p.numpy().astype(np.float64)), t) for t in (params, vector)]
    task = tree.map(lambda x: x.astype(np.float64), task)
    truth = hvp(loss, *doubled)
    errors = {}
    for dtype in (np.float32, np.float64):
        p, v = (tree.map(lambda x, d=dtype: array(x.numpy().astype(d)), t) for t in doubled)
        task = tree.map(lambda x, d=dtype: x.astype(d), task)
        quotient = compile(difference)
        exact = _error(hvp(loss, p, v), truth)
        steps = [_error(quotient(p, v, array(dtype(h))), truth) for h in HVP_STEPS]
        errors[np.dtype(dtype).name] = exact, steps
    plots.hessian_products(picture, costs, HVP_STEPS, errors)


def _alphabets(picture: Path) -> None:
    """Characters of some alphabets, and one of them in several hands."""
    rows = {}
    for n in range(4):
        alphabet = draw_alphabet(0, n)
        rows[f"alphabet {n}"] = alphabet[:SHOWN, n]
        last = alphabet[8, :SHOWN]
    rows["14 hands"] = last
    plots.image_rows(picture, rows, "Made-up characters, and one of them in 14 hands")


def _error(found: Any, truth: Any) -> float:
    """Relative to the whole vector's length."""
    a, b = (
        np.concatenate([x.numpy().ravel().astype(np.float64) for x in tree.leaves(t)])
        for t in (found, truth)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _seconds(f: Any, *args: Any) -> float:
    """The fastest of some blocks of calls, per call."""
    f(*args)
    blocks = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(50):
            f(*args)
        blocks.append((time.perf_counter() - began) / 50)
    return min(blocks)
