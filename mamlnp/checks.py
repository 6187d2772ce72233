"""What ``mamlnp check`` checks: every op, every layer and loss, and the meta-gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import losses, nn, optim, tree
from .draws import Draw
from .errors import GradientError
from .gradcheck import Report, check_algorithm, check_grads
from .meta import MAML, Algorithm, MetaSGD, task_losses
from .op import Op, registry
from .ops.elementwise import tanh
from .ops.linear import conv2d, einsum, matmul
from .ops.pool import avg_pool2d, max_pool2d
from .ops.reduce import log_softmax, logsumexp, mean, norm as vector_length, softmax, var
from .ops.shape import stack
from .tasks import Batch, Task

OP_TRIALS = 5  # draws an op


class Row(NamedTuple):
    """The verdict on one op, layer or meta-gradient.

    Attributes:
        name: what was checked.
        errors: the largest relative error of order 1, 2, ...; empty if there is none to give.
        verdict: the worst of its comparisons' (see :class:`mamlnp.gradcheck.Comparison`), or "not
            compared" of what is not differentiable.
        passed: whether nothing is wrong or undecided.
        note: the failure, or what else there is to say.
    """

    name: str
    errors: list[float]
    verdict: str
    passed: bool
    note: str


def names() -> list[str]:
    """Everything there is to check."""
    return [*registry, *_layers(), *_algorithms()]


def all_rows(order: int, only: str | None = None) -> Iterator[Row]:
    """Check everything, or one thing, to an order."""
    for name, op in registry.items():
        if only in (None, name):
            yield _op_row(op, order)
    for name, (f, args) in _layers().items():
        if only in (None, name):
            yield _row(name, order, [partial(check_grads, f, args, order)])
    for name, (make, theta, task) in _algorithms().items():
        if only in (None, name):
            yield _algorithm_row(name, order, make, theta, task)


def _row(name: str, order: int, trials: list[Callable[[], Report]]) -> Row:
    errors, kinks = [0.0] * order, 0
    notes: dict[str, float] = {}
    for trial in trials:
        try:
            report = trial()
        except GradientError as error:
            return Row(name, [], error.verdict, False, str(error))
        errors = [max(e, report.error(k)) for k, e in enumerate(errors, 1)]
        kinks += report.kinks
        notes |= report.notes
    said = [f"{kinks} differences left out at kinks"] if kinks else []
    said += [f"{what} differs by {value:.1e}" for what, value in notes.items()]
    return Row(name, errors, "right", True, ", ".join(said))


def _op_row(op: Op, order: int) -> Row:
    if not op.differentiable:
        return Row(op.name, [], "not compared", True, "not differentiable, by declaration")

    def trial(seed: int) -> Report:
        args, params = op.draw(Draw(np.random.default_rng(seed)))

        def f(*arrays: Any) -> Any:
            return op(*arrays, **params)

        f.__name__ = op.name
        return check_grads(f, args, order)

    return _row(op.name, order, [partial(trial, seed) for seed in range(OP_TRIALS)])


def _flat(images: Any) -> Any:
    """The mean over each image."""
    return mean(images, (-3, -2))


def _layers() -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    """Compositions, each with small arguments; two tasks where there is a task axis."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    def params(network: nn.Network | nn.Cell) -> Any:
        return network.init(rng=rng, dtype=np.float64)

    images, labels = draw(2, 2, 5, 5, 2), np.array([[0, 2, 1], [1, 1, 0]])
    vector_norm = {"beta": draw(3), "gamma": draw(3)}

    def each(layer: nn.Network | nn.Cell) -> Any:
        """Parameters of each of two tasks."""
        return tree.map(lambda *leaves: stack(leaves), params(layer), params(layer))

    def read(cell: nn.Cell) -> Callable[..., Any]:
        """A cell over a sequence, for every task and each of three examples."""

        def reading(params: Any, xs: Any) -> Any:
            state = cell.start(params, (2, 3))
            for n in range(2):
                state, out = cell.step(params, state, xs[:, :, n])
            return out

        return reading

    cells = {"lstm": nn.lstm(2, 2), "gru": nn.gru(2, 2)}
    dense, conv, norm = nn.dense(3, 2), nn.conv(2, 2, stride=2), nn.norm(2)
    layer_norm, embedding, dropout = nn.layer_norm(3), nn.embedding(4, 2), nn.dropout(0.3)
    chained = nn.chain(first=nn.chain(conv, norm, nn.function(tanh)), flat=nn.function(_flat))
    noise, words = rng.random((2, 3, 4)), np.array([[0, 3, 0], [1, 1, 2]])
    mlp = nn.mlp((2, 4, 1), activation=tanh, weights=nn.xavier)
    normed = nn.mlp((2, 4, 3), weights=nn.xavier, norm=True, gamma=True)
    stride = nn.conv4(3, filters=2, channels=2, image_size=5, gamma=True)
    pool = nn.conv4(3, filters=2, channels=2, image_size=16, pool=True)
    return {
        "matmul of vectors": (matmul, [draw(3), draw(2, 3, 4)]),
        "einsum": (lambda a, b: einsum("tij,kjt->ik", a, b), [draw(2, 3, 4), draw(2, 4, 2)]),
        "indexing": (lambda x: x[np.array([0, 2, 0]), 1:], [draw(3, 4)]),
        "var": (lambda x: var(x, axis=1), [draw(2, 4)]),
        "logsumexp": (lambda x: logsumexp(x, -1), [draw(2, 4)]),
        "softmax": (softmax, [draw(2, 4)]),
        "log_softmax": (log_softmax, [draw(2, 4)]),
        "norm of vectors": (lambda x: vector_length(x, axis=-1), [draw(2, 4)]),
        "conv2d": (lambda x, w: conv2d(x, w, stride=2), [images, draw(2, 3, 3, 2, 3)]),
        "max_pool2d": (max_pool2d, [images]),
        "avg_pool2d": (avg_pool2d, [images]),
        "linear": (nn.linear, [{"w": draw(3, 2), "b": draw(2)}, draw(2, 4, 3)]),
        "batch_norm": (nn.batch_norm, [{"beta": draw(2), "gamma": draw(2)}, images]),
        "batch_norm of vectors": (nn.batch_norm, [vector_norm, draw(2, 4, 3)]),
        "dense": (dense.apply, [each(dense), draw(2, 4, 3)]),
        "conv": (conv.apply, [each(conv), images]),
        "norm": (norm.apply, [each(norm), images]),
        "layer_norm": (layer_norm.apply, [each(layer_norm), draw(2, 2, 3)]),
        "embedding": (lambda params: embedding.apply(params, words), [each(embedding)]),
        "dropout": (lambda x: dropout.apply({}, x, noise=noise), [draw(2, 3, 4)]),
        "chain": (chained.apply, [each(chained), images]),
        **{name: (read(cell), [each(cell), draw(2, 3, 2, 2)]) for name, cell in cells.items()},
        "mse": (lambda p, y: losses.mse(p, y, reduction="mean"), [draw(2, 3, 1), draw(2, 3, 1)]),
        "cross_entropy": (
            lambda x: losses.cross_entropy(x, labels, reduction="mean"),
            [draw(2, 3, 3)],
        ),
        "mlp": (mlp.apply, [params(mlp), draw(2, 3, 2)]),
        "mlp with batch norm": (normed.apply, [params(normed), draw(2, 4, 2)]),
        "conv4, stride 2": (stride.apply, [params(stride), images]),
        "conv4, max-pool": (pool.apply, [params(pool), draw(2, 16, 16, 2)]),
    }


def _algorithms() -> dict[str, tuple[partial[Algorithm], Any, Task]]:
    """Algorithms with theta and a meta-batch each."""
    rng = np.random.default_rng(0)
    mlp = nn.mlp((1, 4, 1), activation=tanh, weights=nn.xavier)
    conv = nn.conv4(2, filters=2, image_size=6, gamma=True)

    def points() -> Batch:
        return Batch(rng.standard_normal((3, 4, 1)), rng.standard_normal((3, 4, 1)))

    def pictures() -> Batch:
        return Batch(rng.standard_normal((2, 4, 6, 6, 1)), np.array([[0, 0, 1, 1], [1, 0, 1, 0]]))

    def regression(params: Any, batch: Batch) -> Any:
        return losses.mse(mlp.apply(params, batch.x), batch.y, reduction="mean")

    def classification(params: Any, batch: Batch) -> Any:
        return losses.cross_entropy(conv.apply(params, batch.x), batch.y, reduction="mean")

    waves_task, images_task = Task(points(), points()), Task(pictures(), pictures())
    theta, phi = (net.init(rng=rng, dtype=np.float64) for net in (mlp, conv))
    adam = optim.adam(0.1, eps_root=0.1)
    waves, images = (theta, waves_task), (phi, images_task)
    return {
        "MAML, mlp, 1 step": (partial(MAML, regression, inner_lr=0.1), *waves),
        "MAML, mlp, 3 steps": (partial(MAML, regression, inner_lr=0.1, inner_steps=3), *waves),
        "MAML, mlp, inner Adam": (partial(MAML, regression, inner_optimizer=adam), *waves),
        "MAML, conv4, 1 step": (partial(MAML, classification, inner_lr=0.4), *images),
        "Meta-SGD, mlp, 2 steps": (
            partial(MetaSGD, regression, inner_lr=0.1, inner_steps=2),
            *waves,
        ),
    }


def _algorithm_row(name: str, order: int, make: partial[Algorithm], theta: Any, task: Task) -> Row:
    algorithm = make()
    meta = algorithm.init(theta)

    def objective(meta: Any) -> Any:
        return task_losses(algorithm.loss, algorithm.adapt(meta, task.support), task.query)

    product = None if "inner_optimizer" in make.keywords else make(method="hvp").gradient
    first_order = make(first_order=True).gradient
    return _row(
        name,
        order,
        [
            lambda: check_grads(objective, [meta], order),
            lambda: check_algorithm(
                algorithm, meta, task, product=product, first_order=first_order
            ),
        ],
    )
