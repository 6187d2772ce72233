"""Reference meta-gradients for other implementations: small cases, their numbers and conventions.

A case is a meta-batch of tasks, a network's parameters and the numbers that MAML makes of them, all
float64. It can be computed as it should be, or with one of the mistakes that implementations make
(a :class:`Variant`), which is how :mod:`mamlnp.diagnosis` recognises one.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from . import losses, nn, tree
from .array import Array, array
from .autodiff import grad, hvp, stop_gradient
from .backend import to_host
from .errors import DataError
from .gradcheck import check_grads
from .meta import Loss, maml, num_tasks, per_task, task_losses, total
from .op import Op
from .ops.elementwise import exp, mul, power, relu, square, sub, tanh
from .ops.linear import conv2d, matmul
from .ops.pool import max_pool2d
from .ops.reduce import mean, sum
from .ops.shape import expand_dims
from .rl.distributions import Gaussian
from .runs import atomic_write, versions
from .tasks import Batch, Task

Params = Any
Reduction = Literal["mean", "sum", "sum/shots", "sum/ways", "mean/ways"]
Statistics = Literal[
    "batch", "constant", "constant in the Hessian", "saved", "saved with values", "frozen"
]

ARRAYS, MANIFEST = "vectors.npz", "manifest.json"


@dataclass(frozen=True)
class Variant:
    """A way to compute a meta-gradient; the default is the right one.

    Attributes:
        first_order: inner gradients are constants.
        inner_reduction, outer_reduction: over a set's examples; "sum/shots" is ways times the mean.
        extra_steps: of the inner loop.
        statistics: of batch norm: the batch's own; those, but as "constant" in every derivative; in
            the second only, because a Hessian of constant statistics was taken ("constant in the
            Hessian") or because the backward pass has them "saved" as numbers, perhaps "with [the
            normalised] values" (docs, below equation 6.4); or "frozen" at mean 0 and variance 1, as
            averages are that were never updated.
        held: batch norm's parameters that the inner loop does not adapt.
        outer_set: whose loss is differentiated in the end.
        differentiated: whether the gradient goes back through all inner steps or the last only.
        over_tasks: how tasks' gradients are put together.
    """

    first_order: bool = False
    inner_reduction: Reduction = "mean"
    outer_reduction: Reduction = "mean"
    extra_steps: int = 0
    statistics: Statistics = "batch"
    held: tuple[str, ...] = ()
    outer_set: Literal["query", "support"] = "query"
    differentiated: Literal["all steps", "last step"] = "all steps"
    over_tasks: Literal["sum", "mean"] = "sum"


RIGHT = Variant()

REDUCTIONS: dict[Reduction, str] = {
    "sum": "a sum over examples instead of a mean",
    "sum/shots": "a sum divided by shots (ways times the mean)",
    "sum/ways": "a sum divided by ways (shots times the mean)",
    "mean/ways": "a mean divided by ways once more",
}

SECOND = "batch norm's statistics are constants in the second derivative"

MISTAKES: dict[str, Variant] = {
    "first order instead of second: the inner gradient is a constant": Variant(first_order=True),
    **{
        f"{which} loss is {text}": Variant(
            inner_reduction="mean" if which == "the outer" else reduction,
            outer_reduction="mean" if which == "the inner" else reduction,
        )
        for reduction, text in REDUCTIONS.items()
        for which in ("each", "the inner", "the outer")
    },
    "an inner step is missing": Variant(extra_steps=-1),
    "there is an inner step too many": Variant(extra_steps=1),
    "batch norm's statistics are frozen (mean 0, variance 1), not the batch's": Variant(
        statistics="frozen"
    ),
    "batch norm's statistics are constants in every derivative": Variant(statistics="constant"),
    f"{SECOND}: the Hessian is that of constant statistics": Variant(
        statistics="constant in the Hessian"
    ),
    f"{SECOND}: its backward pass has mean and variance as saved numbers": Variant(
        statistics="saved"
    ),
    f"{SECOND}: its backward pass has mean, variance and normalised values as saved numbers": (
        Variant(statistics="saved with values")
    ),
    "batch norm's beta and gamma are not adapted in the inner loop": Variant(
        held=("beta", "gamma")
    ),
    "batch norm's beta is not adapted in the inner loop": Variant(held=("beta",)),
    "batch norm's gamma is not adapted in the inner loop": Variant(held=("gamma",)),
    "the gradient is of the support loss instead of the query loss": Variant(outer_set="support"),
    "only the last inner step is differentiated through": Variant(differentiated="last step"),
    "tasks are averaged instead of summed": Variant(over_tasks="mean"),
}


@dataclass(frozen=True)
class Case:
    """A meta-batch and what is asked of it.

    Attributes:
        name: in files.
        about: the loss, in words.
        params: theta, nested dicts of float64 Arrays.
        task: the meta-batch.
        losses: (statistics) -> the inner and the outer loss, (params, batch) -> (T,), means.
        inner_lr: alpha, on those means.
        inner_steps: how many.
        examples: over which the mean of a set is: (support, query).
        ways: classes, where there are any.
        conventions: what else the numbers depend on, by name.
    """

    name: str
    about: str
    params: Params
    task: Task
    losses: Callable[[Statistics], tuple[Loss, Loss]]
    inner_lr: float
    inner_steps: int
    examples: tuple[int, int] = (1, 1)
    ways: int = 1
    conventions: dict[str, str] = field(default_factory=dict)

    def _scaled(self, loss: Loss, reduction: Reduction, examples: int) -> Loss:
        shots = examples / self.ways if self.ways > 1 else 1
        scale = {
            "mean": 1,
            "sum": examples,
            "sum/shots": self.ways,
            "sum/ways": shots,
            "mean/ways": 1 / self.ways,
        }[reduction]
        return loss if scale == 1 else lambda params, batch: loss(params, batch) * float(scale)

    def losses_after(self, params: Params, how: Variant = RIGHT) -> Array:
        """Every task's loss after adaptation, (T,), as a function of theta."""
        inner, outer, batch, alpha = self._ways(how)
        tasks, support = num_tasks(self.task), self.task.support
        theta = per_task(params, tasks)
        steps = self.inner_steps + how.extra_steps
        for step in range(steps):
            if how.differentiated == "last step" and step < steps - 1:
                constant = stop_gradient(_stepped(inner, theta, support, alpha))
                theta = _attached(constant, per_task(params, tasks))
            elif how.first_order:
                grads = grad(total(inner, support))(stop_gradient(theta))
                theta = maml.descend(theta, grads, alpha)
            else:
                theta = _stepped(inner, theta, support, alpha)
        return task_losses(outer, theta, batch)

    def meta_gradient(self, how: Variant = RIGHT) -> Params:
        """The gradient by theta of the sum (or mean) over tasks of those losses."""
        if how.statistics == "constant in the Hessian":
            grads = self._by_products(how)
        else:
            grads = grad(lambda params: sum(self.losses_after(params, how)))(self.params)
        if how.over_tasks == "mean":
            grads = tree.map(lambda g: g / float(num_tasks(self.task)), grads)
        return grads

    def _ways(self, how: Variant) -> tuple[Loss, Loss, Any, Any]:
        """The inner and the outer loss, the outer one's batch, and alpha for every leaf."""
        late = how.statistics == "constant in the Hessian"
        inner, outer = self.losses("batch" if late else how.statistics)
        query = how.outer_set == "query"
        return (
            self._scaled(inner, how.inner_reduction, self.examples[0]),
            self._scaled(outer, how.outer_reduction, self.examples[query]),
            self.task.query if query else self.task.support,
            _rates(self.params, self.inner_lr, how.held),
        )

    def _by_products(self, how: Variant) -> Params:
        """(I - alpha H_0) ... (I - alpha H_J) grad L with Hessians of constant statistics."""
        inner, outer, batch, alpha = self._ways(how)
        support = self.task.support
        constant = self._scaled(self.losses("constant")[0], how.inner_reduction, self.examples[0])
        path = [per_task(self.params, num_tasks(self.task))]
        for _ in range(self.inner_steps + how.extra_steps):
            path.append(_stepped(inner, path[-1], support, alpha))
        v = grad(total(outer, batch))(path.pop())
        rates = tree.broadcast(alpha, v)
        while path and not how.first_order:
            theta = path.pop()
            scaled = tree.map(lambda a, x: x * float(a), rates, v)
            v = tree.map(sub, v, hvp(total(constant, support), theta, scaled))
            if how.differentiated == "last step":
                break
        return tree.map(lambda g: sum(g, 0), v)

    def adapted(self) -> Params:
        """theta' of every task."""
        inner, _ = self.losses("batch")
        return maml.adapt(
            inner,
            self.params,
            self.task.support,
            inner_lr=self.inner_lr,
            inner_steps=self.inner_steps,
        )

    def support_losses(self) -> Array:
        """Every task's support loss at theta."""
        tasks = num_tasks(self.task)
        inner, _ = self.losses("batch")
        return task_losses(inner, per_task(self.params, tasks), self.task.support)

    def _support_loss(self, params: Params) -> Array:
        theta = per_task(params, num_tasks(self.task))
        return sum(task_losses(self.losses("batch")[0], theta, self.task.support))

    def support_hvp(self, vector: Params) -> Params:
        """The product of a vector with the Hessian at theta of the summed support losses."""
        return hvp(self._support_loss, self.params, vector)

    def error(self) -> float:
        """The largest relative error of meta-gradient and Hessian against central differences.

        Raises:
            GradientError: one is wrong.
        """
        return max(
            check_grads(lambda p: sum(self.losses_after(p)), [self.params], order=1).error(),
            check_grads(self._support_loss, [self.params], order=2).error(),
        )


def _rates(params: Params, lr: float, held: tuple[str, ...]) -> Any:
    """alpha for every leaf: 0 for those that are held."""
    return {
        layer: {name: 0 if name in held else lr for name in leaves}
        for layer, leaves in params.items()
    }


def _stepped(loss: Loss, theta: Params, support: Any, alpha: Any) -> Params:
    return maml.descend(theta, grad(total(loss, support))(theta), alpha)


def _attached(theta: Params, copies: Params) -> Params:
    """The value of theta, with the derivative of the copies: as if the step had not been seen."""
    return tree.map(lambda t, p: t + (p - stop_gradient(p)), theta, copies)


# ---- the cases


def _arrays(rng: np.random.Generator, shapes: dict[str, dict[str, tuple[int, ...]]]) -> Params:
    """Weights of a size that keeps activations near 1, biases and shifts near 0, scales near 1."""

    def leaf(name: str, shape: tuple[int, ...]) -> Array:
        values = rng.normal(size=shape)
        if name == "w":
            return array(values / np.sqrt(np.prod(shape[:-1])))
        return array(0.2 * values + (name == "gamma"))

    return {
        layer: {name: leaf(name, shape) for name, shape in leaves.items()}
        for layer, leaves in shapes.items()
    }


def quadratic(rng: np.random.Generator) -> Case:
    """L(theta) = 1/2 theta' A theta - b' theta: everything has a closed form."""
    tasks, size = 3, 4

    def batch() -> Batch:
        root = rng.normal(size=(tasks, size, size))
        return Batch(root @ root.swapaxes(-1, -2) / size, rng.normal(size=(tasks, size)))

    def loss(params: Params, batch: Batch) -> Array:
        theta = params["point"]["theta"]
        product = matmul(batch.x, expand_dims(theta, -1))[..., 0]
        return sum(theta * (0.5 * product - batch.y), -1)

    return Case(
        "quadratic",
        "1/2 theta' A theta - b' theta, A in x and b in y; one number a task, nothing averaged",
        {"point": {"theta": array(rng.normal(size=size))}},
        Task(batch(), batch()),
        lambda _: (loss, loss),
        inner_lr=0.2,
        inner_steps=1,
    )


def sine(rng: np.random.Generator, steps: int) -> Case:
    """The paper's network on sine waves, smaller, with tanh, which has no kinks."""
    tasks, points, width = 3, 5, 8
    network = nn.mlp((1, width, width, 1), activation=tanh)
    shapes = {
        f"linear{i + 1}": {"w": (a, b), "b": (b,)}
        for i, (a, b) in enumerate(itertools.pairwise((1, width, width, 1)))
    }

    def batch(amplitude: np.ndarray, phase: np.ndarray) -> Batch:
        x = rng.uniform(-3, 3, (tasks, points, 1))
        return Batch(x, amplitude * np.sin(x - phase))

    wave = rng.uniform(0.5, 2, (tasks, 1, 1)), rng.uniform(0, np.pi, (tasks, 1, 1))

    def loss(params: Params, batch: Batch) -> Array:
        return losses.mse(network.apply(params, batch.x), batch.y, reduction="mean")

    return Case(
        f"sine-{steps}-step{'s' * (steps > 1)}",
        f"mean squared error of an MLP 1-{width}-{width}-1 with tanh over {points} points",
        _arrays(rng, shapes),
        Task(batch(*wave), batch(*wave)),
        lambda _: (loss, loss),
        inner_lr=0.1,
        inner_steps=steps,
        examples=(points, points),
    )


def convolutional(rng: np.random.Generator) -> Case:
    """Stride, transductive batch norm with scale and shift, max-pooling, a mean over the image."""
    tasks, ways, shots, queries, size, channels, filters = 2, 3, 2, 4, 8, 2, 3
    shapes = {
        "conv1": {"w": (3, 3, channels, filters), "beta": (filters,), "gamma": (filters,)},
        "conv2": {"w": (3, 3, filters, filters), "beta": (filters,), "gamma": (filters,)},
        "head": {"w": (filters, ways), "b": (ways,)},
    }

    def batch(count: int) -> Batch:
        y = np.broadcast_to(np.arange(ways).repeat(count), (tasks, ways * count)).copy()
        x = rng.normal(size=(tasks, ways * count, size, size, channels))
        return Batch(x + 0.5 * y[..., None, None, None], y)

    def of(statistics: Statistics) -> tuple[Loss, Loss]:
        def loss(params: Params, batch: Batch) -> Array:
            x = conv2d(batch.x, params["conv1"]["w"], stride=2, padding="SAME")
            x = relu(_normalised(params["conv1"], x, statistics))
            x = conv2d(x, params["conv2"]["w"], stride=1, padding="SAME")
            x = max_pool2d(relu(_normalised(params["conv2"], x, statistics)))
            logits = nn.linear(params["head"], mean(x, (-3, -2)))
            return losses.cross_entropy(logits, batch.y, reduction="mean")

        return loss, loss

    return Case(
        "conv",
        "mean cross-entropy of a net: conv 3x3 stride 2, batch norm, relu, conv 3x3 stride 1, "
        "batch norm, relu, max-pool 2x2 stride 2, mean over the image, linear; no biases but the "
        "last",
        _arrays(rng, shapes),
        Task(batch(shots), batch(queries)),
        of,
        inner_lr=0.4,
        inner_steps=1,
        examples=(ways * shots, ways * queries),
        ways=ways,
        conventions={
            "padding": "TensorFlow's SAME: at stride 2 on 8 pixels none before and one after, at "
            "stride 1 one on each side; the max-pool has none",
            "batch_norm": "transductive: support and query batch each by their own mean and biased "
            f"variance, through which every derivative goes; epsilon {EPSILON}; no running "
            "averages; then gamma and beta, both adapted",
        },
    )


EPSILON, AXES = 1e-3, (-4, -3, -2)


def _statistics(x: Array) -> tuple[Array, Array]:
    """Mean, and one over the root of the variance, of every channel."""
    average = mean(x, AXES, keepdims=True)
    return average, power(mean(square(sub(x, average)), AXES, keepdims=True) + EPSILON, -0.5)


def _saving(xp: Any, x: Any, gamma: Any, *, values: bool) -> Any:
    """Batch norm as written by hand: gamma times the normalised x, its statistics saved as numbers
    for a backward pass that is right once."""
    average = xp.mean(x, AXES, keepdims=True)
    variance = xp.mean((x - average) ** 2, AXES, keepdims=True)
    return (x - average) * (variance + EPSILON) ** -0.5 * gamma


# Not registered: of a rule that is wrong on purpose nobody wants to hear in `mamlnp check`.
saving = Op(
    _saving,
    draw=lambda d: ((d.array((3, 2, 2, 2)), d.array((1, 1, 1, 2))), {"values": d.boolean()}),
)


def _saved(x: Array, values: bool) -> tuple[Array, Array]:
    """Normalised x, and its scale, as a backward pass has them that saved numbers."""
    average, scale = map(stop_gradient, _statistics(x))
    hat = sub(x, average) * scale
    return stop_gradient(hat) if values else hat, scale


@saving.vjp("x")
def _(ct: Array, out: Array, x: Array, gamma: Array, *, values: bool) -> Array:
    hat, scale = _saved(x, values)
    along = mean(ct * hat, AXES, keepdims=True)
    return gamma * scale * (ct - mean(ct, AXES, keepdims=True) - hat * along)


@saving.vjp("gamma")
def _(ct: Array, out: Array, x: Array, gamma: Array, *, values: bool) -> Array:
    return sum(ct * _saved(x, values)[0], AXES, keepdims=True)


def _normalised(params: Params, x: Array, statistics: Statistics) -> Array:
    """Batch norm whose statistics may be treated wrongly."""
    beta, gamma = (expand_dims(params[name], AXES) for name in ("beta", "gamma"))
    if statistics in ("saved", "saved with values"):
        return saving(x, gamma, values=statistics == "saved with values") + beta
    average, scale = _statistics(x)
    if statistics == "constant":
        average, scale = stop_gradient(average), stop_gradient(scale)
    elif statistics == "frozen":
        average, scale = average * 0.0, scale * 0.0 + (1.0 + EPSILON) ** -0.5
    return mul(sub(x, average) * scale, gamma) + beta


class Steps(NamedTuple):
    """Time steps of episodes that were had already.

    Attributes:
        observations, actions, advantages: (T, N, O), (T, N, A), (T, N).
        log_prob: of the actions under the policy that took them, (T, N).
    """

    observations: Any
    actions: Any
    advantages: Any
    log_prob: Any


def reinforce(rng: np.random.Generator) -> Case:
    """REINFORCE inside, the likelihood-ratio surrogate outside."""
    tasks, steps, seen, acts, width = 2, 6, 3, 2, 5
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "linear1": {"w": (seen, width), "b": (width,)},
        "linear2": {"w": (width, acts), "b": (acts,)},
        "scale": {"log_std": (acts,)},
    }

    def distribution(params: Params, observations: Any) -> Gaussian:
        hidden = tanh(nn.linear(params["linear1"], observations))
        return Gaussian(nn.linear(params["linear2"], hidden), params["scale"]["log_std"])

    def batch() -> Steps:
        observations, actions = (rng.normal(size=(tasks, steps, side)) for side in (seen, acts))
        advantages, log_probs = rng.normal(size=(2, tasks, steps))
        return Steps(observations, actions, advantages, 0.1 * log_probs - 2)

    def inner(params: Params, batch: Steps) -> Array:
        chosen = distribution(params, batch.observations).log_prob(batch.actions)
        return -mean(chosen * batch.advantages, -1)

    def outer(params: Params, batch: Steps) -> Array:
        chosen = distribution(params, batch.observations).log_prob(batch.actions)
        return -mean(exp(chosen - batch.log_prob) * batch.advantages, -1)

    return Case(
        "reinforce",
        "inner: -mean(log pi(a|o) A); outer: -mean(pi(a|o) / exp(log_prob) A); pi a diagonal "
        f"Gaussian, its mean an MLP {seen}-{width}-{acts} with tanh, its standard deviation "
        "exp(log_std), adapted too; the means are over time steps",
        _arrays(rng, shapes),
        Task(batch(), batch()),  # type: ignore[arg-type]
        lambda _: (inner, outer),
        inner_lr=0.1,
        inner_steps=1,
        examples=(steps, steps),
    )


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "quadratic": quadratic,
    "sine-1-step": functools.partial(sine, steps=1),
    "sine-5-steps": functools.partial(sine, steps=5),
    "conv": convolutional,
    "reinforce": reinforce,
}


def cases(seed: int = 0) -> dict[str, Case]:
    """All cases, drawn by a seed."""
    return {
        name: make(np.random.default_rng([seed, number]))
        for number, (name, make) in enumerate(CASES.items())
    }


# ---- files


def _vector(params: Params) -> Params:
    """What the Hessian is multiplied with: the same for everyone, from the parameters' places."""
    sizes = itertools.count(1)
    return tree.map(
        lambda p: array(np.cos(next(sizes) + np.arange(p.size)).reshape(p.shape)), params
    )


def named(params: Params, prefix: str) -> dict[str, np.ndarray]:
    """Leaves under names like conv/theta/conv1.w."""
    return {
        f"{prefix}/{layer}.{name}": to_host(leaf.value)
        for layer, leaves in params.items()
        for name, leaf in leaves.items()
    }


def vectors(case: Case) -> dict[str, np.ndarray]:
    """A case's inputs and right numbers by name."""
    second, first = (case.meta_gradient(Variant(first_order=order)) for order in (False, True))
    vector = _vector(case.params)
    found = {
        f"{case.name}/{name}/{field}": np.asarray(leaf)
        for name, batch in zip(("support", "query"), case.task, strict=True)
        for field, leaf in batch._asdict().items()
    }
    return {
        **found,
        **named(case.params, f"{case.name}/theta"),
        **named(case.adapted(), f"{case.name}/adapted"),
        f"{case.name}/support_losses": case.support_losses().numpy(),
        f"{case.name}/query_losses": case.losses_after(case.params).numpy(),
        **named(second, f"{case.name}/meta_gradient"),
        **named(first, f"{case.name}/first_order"),
        **named(vector, f"{case.name}/vector"),
        **named(case.support_hvp(vector), f"{case.name}/hvp"),
    }


CONVENTIONS = {
    "support, query": "a task's two sets, CASE/support/... and CASE/query/..., with a leading task "
    "axis; labels are whole numbers from 0",
    "theta": "the parameters before adaptation, CASE/theta/LAYER.NAME",
    "adapted": "every task's own after the inner loop, theta - alpha grad of its support loss, "
    "again and again; a leading task axis",
    "support_losses": "at theta, one a task",
    "query_losses": "after adaptation, one a task",
    "meta_gradient": "by theta of the SUM over tasks of the query losses after adaptation, through "
    "the inner loop: second order",
    "first_order": "the same with inner gradients as constants",
    "vector": "what the Hessian is multiplied with, CASE/vector/LAYER.NAME",
    "hvp": "the Hessian at theta of the SUM over tasks of the support losses, times vector",
    "layout": "images are (tasks, images, height, width, channels); to channels-first: "
    "transpose(0, 1, 4, 2, 3). Convolution weights are (height, width, in, out); to (out, in, "
    "height, width): transpose(3, 2, 0, 1). Linear weights are (in, out): y = x w + b",
}


def write(folder: Path, seed: int = 0) -> str:
    """Write all cases: vectors.npz and manifest.json, each whole or not at all.

    Every case is checked against finite differences first; the manifest has the error.

    Returns:
        What was written, as text.

    Raises:
        DataError: the folder cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    manifest: dict[str, Any] = {"seed": seed, "versions": versions(), "conventions": CONVENTIONS}
    manifest["cases"] = {}
    lines = []
    for name, case in cases(seed).items():
        arrays |= vectors(case)
        error = case.error()
        manifest["cases"][name] = {
            "loss": case.about,
            "loss_reduction": "mean" if name != "quadratic" else "none",
            "alpha": case.inner_lr,
            "inner_steps": case.inner_steps,
            "tasks": num_tasks(case.task),
            **case.conventions,
            "error_against_finite_differences": error,
        }
        lines.append(f"{name:14} checked against finite differences: relative error {error:.0e}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error}). Choose another folder.") from error
    with atomic_write(folder / ARRAYS) as partial:
        np.savez(partial, **arrays)  # type: ignore[arg-type]
    with atomic_write(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return "\n".join([*lines, f"written: {folder / ARRAYS} and {folder / MANIFEST}"])
