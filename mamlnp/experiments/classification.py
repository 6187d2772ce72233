"""N-way K-shot classification of images (Finn et al. 2017, section 5.2), whatever the images.

The experiments say where images come from (omniglot.py, miniimagenet.py, folder.py); what is done
with them is here.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from .. import losses, nn, optim, parallel, plots, tree
from ..array import Array, array
from ..backend import to_host
from ..errors import DataError
from ..learner import BATCH_NORM, NO_STATISTICS, BatchNorm, Classifier, query_logits
from ..meta import MAML, Algorithm, Loss, maml
from ..ops.shape import reshape
from ..ranks import world
from ..runs import CHECKPOINT, Run, atomic_write
from ..tasks import Batch, Task, counted_rng
from ..tasks.fewshot import ClassImages
from . import loop
from .experiment import Experiment, Supervised
from .scores import Row, adaptation_scores, as_table, rows, scorer

Data = dict[str, ClassImages]

CLASSES = "classes.json"  # in a run's folder: the classes of each split, with their images' number
CHUNK = 25  # tasks drawn at once in validation and test
TEST_SEED = 2017
TEST_STEPS = 10
TEST_QUERIES = (1, 15)
TEST_1 = TEST_SEED + 1  # seed of the test tasks with one query a class
COSINE_TASKS = 8
SMALLEST = 16  # side of an image that four poolings by 2 leave something of, in pixels
MLP = (256, 128, 64, 64)
SGD_LR = 0.3  # on the mean over tasks of the mean loss; the paper gives none
FINE_TUNING_LRS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Config(Supervised):
    """Settings of a run; the paper's but for what the preset says.

    Attributes:
        preset: decides the defaults of all settings. STYLE-NwKs with the style "paper" (the
            authors' code) or "today" (what reaches its accuracies soonest), N ways, K shots; then
            -mlp for the network without convolution, -first-order, -sgd for the paper's plain
            meta-update: today-5w1s, paper-20w5s, paper-5w1s-mlp-first-order ...
        baseline: train a baseline instead of MAML: "pretrained" is one network that learns all
            training classes at once, on as many images, and is fine-tuned on each task.
        num_ways: classes a task.
        num_queries: query images a class, in training and validation.
        network: "conv4", or "mlp", which is 256-128-64-64.
        filters: of each of the four convolutions.
        head_std: standard deviation of the last layer's first weights; Glorot's uniform ones if
            not given.
        gamma: whether batch norm has a scale.
        adapt_norm: whether the inner loop adapts batch norm's beta (and gamma) too.
        loss: cross-entropy as the "mean" over a set's images, or as the "sum/shots", the authors'
            sum over them divided by num_shots, for which alpha is num_ways times smaller.
        eval_steps: after which validation and the reported accuracy are taken.
        meta_optimizer: of the outer loop: "adam", the code's, or "sgd", the paper's text.
        meta_lr: its step size, on the sum over tasks.
        meta_lr_decay: "cosine" to 0 over the meta-iterations, or "none".
        clip: bound on every element of the meta-gradient, averaged over tasks.
        validation_tasks: how many; the kept parameters are the most accurate on them, and are
            tested on as many at the end.
        chunks: into how many parts a meta-batch is split for the threads; one a task if not
            given. It decides the last bits of the result; the number of threads does not.
        threads: how many run at once; as many as there are cores if not given.
        device: where to compute, "cpu" or "cuda"; images that are in memory are kept there too.
    """

    preset: str = "today-5w1s"
    baseline: Literal["pretrained"] | None = None
    num_ways: int = 5
    network: Literal["conv4", "mlp"] = "conv4"
    filters: int = 64
    head_std: float | None = 0.1
    gamma: bool = True
    adapt_norm: bool = True
    loss: Literal["mean", "sum/shots"] = "mean"
    inner_lr: float = 2.0
    eval_steps: int = 3
    meta_batch_size: int = 32
    meta_optimizer: Literal["adam", "sgd"] = "adam"
    meta_lr: float = 3e-3
    meta_lr_decay: Literal["cosine", "none"] = "cosine"
    clip: float | None = None
    validate_every: int = 250
    chunks: int | None = None
    threads: int | None = None

    may_be_zero: ClassVar[tuple[str, ...]] = ("seed", "head_std")
    # What an experiment says of its images.
    pool: ClassVar[bool] = True
    inverted: ClassVar[bool] = False
    paper: ClassVar[Mapping[tuple[str, int, int, bool], str]] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels that the network takes."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """Where the images are from, for the log and for errors."""
        raise NotImplementedError

    @property
    def split_name(self) -> str:
        """Which classes are trained on and tested on, for the log."""
        raise NotImplementedError

    @property
    def images(self) -> str:
        """What the network sees, for the log."""
        height, width, channels = self.image_shape
        return f"{height}x{width}, {'colour' if channels == 3 else 'grey'}"

    def is_the_papers(self, names: Collection[str]) -> bool:
        """Whether classes of these names are of the data that the paper reports on."""
        return True

    def describe(self) -> dict[str, Any]:
        """What a reader of the log has to know."""
        norm = "beta and gamma" if self.gamma else "beta"
        scale = self.num_ways if self.loss == "mean" else 1 / self.num_ways
        other = "the paper's sum over images / shots" if self.loss == "mean" else "a mean"
        conv4 = self.network == "conv4"
        head = f"N(0, {self.head_std:g}^2)" if self.head_std is not None else "Glorot's"
        facts: dict[str, Any] = {
            "preset": self.preset,
            "tasks": f"{self.num_ways} ways, {self.num_shots} shots, in training "
            f"{self.num_queries} queries a class; {self.meta_batch_size} tasks a meta-iteration",
            "images": f"{self.images}; from {self.source}",
            "network": self.network
            + (f", {self.filters} filters, last layer's weights " if conv4 else f" {MLP}")
            + (head if conv4 else ""),
            "meta-gradient": "first order" if self.first_order else "second order",
            "inner loop": f"alpha {self.inner_lr:g}, {self.inner_steps} steps in training, "
            f"{self.eval_steps} in validation",
            "loss": f"cross-entropy, {self.loss} over images (alpha {self.inner_lr:g} on it is "
            f"{self.inner_lr / scale:g} on {other}), summed over tasks",
            "batch norm": "transductive in training (always the batch's own statistics), "
            f"{norm} {'adapted' if self.adapt_norm else 'not adapted'} in the inner loop",
            "meta-update": f"{self.meta_iterations:,} of {self.meta_optimizer}, meta learning rate "
            f"{self.meta_lr:g}, decay {self.meta_lr_decay}, meta-gradient "
            + (f"clipped to +-{self.clip:g}" if self.clip else "not clipped"),
            "validation": f"on {self.validation_tasks} tasks, every {self.validate_every:,} "
            "meta-iterations",
            "split": self.split_name,
            "seed": self.seed,
        }
        if self.baseline:
            facts["meta-gradient"] = f"none: baseline {self.baseline}, plain gradients"
            facts["inner loop"] = f"none in training; fine-tuned for {self.eval_steps} steps"
        return facts


def presets(
    styles: Mapping[str, tuple[Any, Mapping[str, Any]]],
    settings: Mapping[str, Mapping[str, Any]],
    *,
    networks: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Every preset of an experiment: STYLE-NwKs, then a network's ending, -first-order, -sgd.

    Args:
        styles: for each style a Config, and what it decides whatever the setting.
        settings: for "5w1s" and the like, what it decides, with alpha for the loss "sum/shots".
        networks: for the ending of each network, what it decides; "" is the usual one.
    """
    found = {}
    for (style, (config, fixed)), (setting, values), network, order, update in itertools.product(
        styles.items(),
        settings.items(),
        (networks or {"": {}}).items(),
        (("", {}), ("-first-order", {"first_order": True})),
        ("", "-sgd"),
    ):
        name = f"{style}-{setting}{network[0]}{order[0]}{update}"
        new = replace(config, preset=name, **values, **network[1], **order[1])
        summed = 1.0
        if new.loss == "mean":
            new = replace(new, inner_lr=new.inner_lr * new.num_ways)
        else:
            summed = new.num_ways * new.num_queries / new.num_shots  # as large as a mean
        new = replace(new, **fixed)
        if update:
            lr = SGD_LR / (new.meta_batch_size * summed)
            new = replace(new, meta_optimizer="sgd", meta_lr=lr)
        found[name] = new
    return found


def checked(config: Config, data: Data) -> Data:
    """The data, if tasks can be drawn from every split of it.

    Raises:
        DataError: there are too few classes, or too few images of one.
    """
    if config.num_ways < 2:
        raise DataError(f"--num-ways: {config.num_ways} leaves nothing to tell apart. Pass 2.")
    if config.pool and config.image_shape[0] < SMALLEST:
        raise DataError(
            f"--image-size: {config.image_shape[0]} is nothing after four poolings by 2. "
            f"Pass {SMALLEST} or more."
        )
    for split, images in data.items():
        try:
            images.sample(
                1,
                num_ways=config.num_ways,
                num_shots=config.num_shots,
                num_queries=1 if split == "test" else config.num_queries,
                rng=counted_rng(config.seed, "init"),
            )
        except DataError as error:
            raise DataError(
                f"{len(images.names)} {split} classes of {config.source}: {error} "
                "Or change --num-ways, --num-shots or --num-queries."
            ) from error
    return data


def check_classes(run: Run, data: Data) -> None:
    """Hold the classes of each split, and how many images they have, against those that the run
    began with; of a run that begins, keep them in its folder.

    Raises:
        DataError: they are others, so that classes held out now might have been trained on.
    """
    path = run.path / CLASSES
    now = {
        split: dict(zip(images.names, images.counts.tolist(), strict=True))
        for split, images in data.items()
    }
    if not path.exists():
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return
    try:
        began = json.loads(path.read_bytes())
        differing = {
            split: sorted(found.items() ^ began[split].items()) for split, found in now.items()
        }
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Restore it from a copy.") from error
    for split, classes in differing.items():
        if classes:
            raise DataError(
                f"{path}: the {split} classes are not those the run began with: "
                f"{classes[0][0]} is one too many, missing, or has other images. "
                "Put the images back as they were, or begin a new run."
            )


def network(config: Config, outputs: int) -> nn.Network:
    """The paper's network with so many outputs, for the experiment's images."""
    height, width, channels = config.image_shape
    if config.network == "mlp":
        inputs = height * width * channels
        vectors = nn.mlp((inputs, *MLP, outputs), norm=True, gamma=config.gamma)
        return nn.Network(
            vectors.init,
            lambda params, x, **how: vectors.apply(
                params, reshape(x, (*x.shape[:-3], inputs)), **how
            ),
        )
    return nn.conv4(
        outputs,
        channels=channels,
        filters=config.filters,
        image_size=height,
        pool=config.pool,
        gamma=config.gamma,
        head=nn.xavier if config.head_std is None else nn.normal(config.head_std),
    )


def inner_lr(config: Config, params: Any) -> Any:
    """alpha for every leaf: 0 for batch norm's if it is not adapted."""
    if config.adapt_norm:
        return config.inner_lr
    return {
        layer: {name: 0 if name in ("beta", "gamma") else config.inner_lr for name in leaves}
        for layer, leaves in params.items()
    }


def task_loss(config: Config, net: nn.Network) -> Loss:
    """The loss of each task, (params, batch) -> (T,)."""

    def loss(params: Any, batch: Batch) -> Array:
        logits = net.apply(params, batch.x)
        if config.loss == "mean":
            return losses.cross_entropy(logits, batch.y, reduction="mean")
        return losses.cross_entropy(logits, batch.y, reduction="sum") / config.num_shots

    return loss


def algorithm(config: Config, loss: Loss, params: Any) -> Algorithm:
    """MAML with a run's settings; a baseline's network learns all classes, and does not adapt."""
    return MAML(
        loss,
        inner_lr=inner_lr(config, params),
        inner_steps=0 if config.baseline else config.inner_steps,
        first_order=config.first_order,
    )


def _accuracy(net: nn.Network, batch_norm: BatchNorm) -> Callable[[Any, Task], Array]:
    return lambda params, task: losses.accuracy(
        query_logits(net, params, task, batch_norm), task.query.y
    )


def _chunks(
    config: Config, images: ClassImages, tasks: int, num_queries: int, stream: str, seed: int
) -> Iterator[Task]:
    for n in range(math.ceil(tasks / CHUNK)):
        task = images.sample(
            min(CHUNK, tasks - n * CHUNK),
            num_ways=config.num_ways,
            num_shots=config.num_shots,
            num_queries=num_queries,
            rng=counted_rng(seed, stream, n),
        )
        yield loop.placed(task)


def _placed(data: Data) -> Data:
    """The images that are in memory where tasks are computed with, each array once."""
    arrays = {id(x.images): x.images for x in data.values()}
    moved = {key: loop.placed(images) for key, images in arrays.items()}
    return {split: replace(x, images=moved[id(x.images)]) for split, x in data.items()}


def _validation(config: Config, data: Data) -> Iterator[Task]:
    tasks, queries = config.validation_tasks, config.num_queries
    return _chunks(config, data["validation"], tasks, queries, "validation", config.seed)


Accuracies = Callable[[Any, Iterable[Task]], np.ndarray]
"""Of (params, meta-batches of tasks): accuracies, (numbers of steps, tasks)."""


def _accuracies(config: Config, scores: Callable[[Any, Task], Array]) -> Accuracies:
    ranks = world()
    of_tasks = scorer(
        scores,
        chunks=1 if config.eager else None,
        threads=config.threads or ranks.threads,
        compiled=not config.eager,
        ranks=ranks,
    )
    return lambda params, batches: np.concatenate([of_tasks(params, b) for b in batches], axis=1)


def maml_accuracies(config: Config, steps: Collection[int], batch_norm: BatchNorm) -> Accuracies:
    """Accuracies of adapting theta by the inner loop, after each of some numbers of steps."""
    net = network(config, config.num_ways)
    loss, accuracy = task_loss(config, net), _accuracy(net, batch_norm)

    def scores(params: Any, task: Task) -> Array:
        path = maml.inner_loop(loss, params, task.support, inner_lr=inner_lr(config, params))
        return adaptation_scores(path, accuracy, task, steps=steps)

    return _accuracies(config, scores)


# ---- training


def train(config: Config, run: Run, data: Data, *, resume: bool = False) -> None:
    """Meta-train on the training classes, or train a baseline there.

    Ends with pictures, and MAML's with the accuracy on test tasks, which are evaluate's.
    """
    ranks = world()
    threads = config.threads or ranks.threads
    rate: Any = config.meta_lr
    if config.meta_lr_decay == "cosine":
        rate = optim.cosine(config.meta_lr, config.meta_iterations)
    optimizer = optim.adam(rate) if config.meta_optimizer == "adam" else optim.sgd(rate)
    if config.clip:
        optimizer = optim.clipped(optimizer, config.clip * config.meta_batch_size)
    outputs = config.num_ways if not config.baseline else data["train"].num_labels
    net = network(config, outputs)
    loss, first = task_loss(config, net), net.init(rng=counted_rng(config.seed, "init"))
    meta_step, eager_meta_step = (
        parallel.meta_step(
            algorithm(config, loss, first).gradient,
            optimizer=optimizer,
            chunks=config.chunks if compiled else 1,
            threads=threads,
            compiled=compiled,
            check=False,  # the tests hold these plans against eager
            ranks=ranks,
            meta_batch_size=config.meta_batch_size,
        )
        for compiled in (not config.eager, False)
    )
    gradients = [
        parallel.meta_gradient(
            algorithm(replace(config, first_order=first_order), loss, first).gradient,
            threads=threads,
            compiled=not config.eager,
            check=False,
        )
        for first_order in (True, False)
    ]
    accuracies = maml_accuracies(config, (config.eval_steps,), "transductive")
    tune = tuner(config, data, "transductive")
    given = data
    ranks.told(lambda: check_classes(run, given))
    data = _placed(data)
    sizes = ", ".join(f"{len(images.names)} {split}" for split, images in data.items())
    if ranks.writes:
        print(f"{'classes':18} {sizes}", flush=True)

    mine = slice(*ranks.bounds(config.meta_batch_size))

    def sample(stream: str, n: int, tasks: int, part: slice = slice(None)) -> Task:
        return data["train"].sample(
            tasks,
            num_ways=config.num_ways,
            num_shots=config.num_shots,
            num_queries=config.num_queries,
            rng=counted_rng(config.seed, stream, n),
            part=part,
        )

    def init() -> dict[str, Any]:
        return {"params": first, "opt": optimizer.init(first)}

    def draw(n: int) -> Task:
        if not config.baseline:
            return sample("train", n, config.meta_batch_size, mine)
        size = config.num_ways * (config.num_shots + config.num_queries)
        rng = counted_rng(config.seed, "train", n)
        batch = data["train"].sample_labelled(config.meta_batch_size, size, rng=rng, part=mine)
        return Task(batch, batch)

    def step(
        state: dict[str, Any], task: Task, meta_step: Any = meta_step
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        params, opt, query_losses = meta_step(state["params"], state["opt"], task)
        return {"params": params, "opt": opt}, {"train_loss": query_losses}

    def validate(state: dict[str, Any], _: dict[str, float]) -> tuple[float, dict[str, float]]:
        params, shown = state["params"], {}
        if config.baseline:
            tuned = tune(config.baseline, _for_tasks(config, params))
            scores, shown["fine_tuning_lr"] = tuned.scores, tuned.lr
        else:
            scores = accuracies(params, _validation(config, data))
            task = loop.placed(sample("cosine", 0, min(COSINE_TASKS, config.meta_batch_size)))
            shown |= compare_gradients(*(gradient(params, task)[1] for gradient in gradients))
        (row,) = rows("validation", config.baseline or "MAML", scores)
        return -row.mean, {"validation_accuracy": row.mean, "validation_ci95": row.ci95, **shown}

    best = loop.train(
        run,
        config,
        init=init,
        draw=draw,
        step=step,
        eager_step=functools.partial(step, meta_step=eager_meta_step),
        validate=validate,
        resume=resume,
        ranks=ranks,
    )
    lines = {}
    if not config.baseline:
        batches = list(_chunks(config, data["test"], config.validation_tasks, 1, "test", TEST_1))
        metric = _metric(config, data)
        found = {
            f"MAML, {config.eval_steps} steps": accuracies(best["params"], batches),
            f"nearest neighbour on pixels, {metric}": _nearest_accuracies(metric, batches)[None],
        }
        lines["test tasks"] = (
            f"{config.validation_tasks}, {config.num_ways}-way {config.num_shots}-shot, of "
            f"{len(data['test'].names)} held-out classes, with 1 query a class"
        )
        lines["test accuracy"] = "; ".join(
            f"{method}: {100 * row.mean:.1f} +- {100 * row.ci95:.1f} %"
            for method, scores in found.items()
            for row in rows("test", method, scores)
        )
    if ranks.writes:
        pictures = [run.path / name for name in ("curve.png", "cosine.png")]
        plots.classification_curve(run)
        plots.gradient_cosine(run)
        if not config.baseline:
            pictures.append(run.path / "episode.png")
            _draw_episode(config, data["test"], best["params"], "transductive", pictures[-1])
        lines["kept"] = loop.best_state(run).about
        lines["pictures"] = ", ".join(f"{path}" for path in pictures if path.exists())
        print("\n".join(f"{key:18} {value}" for key, value in lines.items()), flush=True)


def compare_gradients(first_order: Any, second_order: Any) -> dict[str, float]:
    """The cosine between two gradients, and the ratio of their lengths: the size of equation 5.2
    of the docs."""
    a, b = (
        np.concatenate([to_host(g.value).ravel().astype(np.float64) for g in tree.leaves(grads)])
        for grads in (first_order, second_order)
    )
    lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    return {
        "gradient_cosine": float(a @ b) / (lengths[0] * lengths[1]) if all(lengths) else math.nan,
        "gradient_ratio": lengths[0] / lengths[1] if lengths[1] else math.nan,
    }


# ---- baselines


class Tuned(NamedTuple):
    """How a network is fine-tuned best.

    Attributes:
        part: "all" of it, or only its "head".
        lr: step size, on the mean cross-entropy.
        scores: accuracies on the validation tasks, (1, tasks).
    """

    part: Literal["all", "head"]
    lr: float
    scores: np.ndarray


def _head(params: Any) -> str:
    return list(params)[-1]


def _for_tasks(config: Config, params: Any) -> Any:
    """A baseline's features under a new last layer, of zeros, for the classes of a task."""
    if not config.baseline:
        return params
    old = params[_head(params)]
    new = {
        "w": np.zeros((old["w"].shape[0], config.num_ways), old["w"].dtype),
        "b": np.zeros(config.num_ways, old["b"].dtype),
    }
    return {**params, _head(params): tree.map(array, new)}


def _fine_tuning(
    config: Config, part: str, steps: Collection[int], batch_norm: BatchNorm
) -> Callable[[Any, float, Iterable[Task]], np.ndarray]:
    """Accuracies of fine-tuning params by gradient descent on the support set, of (params, lr,
    meta-batches of tasks): the step size is data, so that one plan serves all."""
    net = network(config, config.num_ways)
    loss, accuracy = task_loss(replace(config, loss="mean"), net), _accuracy(net, batch_norm)

    def scores(params_and_lr: Any, task: Task) -> Array:
        params, lr = params_and_lr
        rate = {name: lr if part == "all" or name == _head(params) else 0 for name in params}
        path = maml.inner_loop(loss, params, task.support, inner_lr=rate)
        return adaptation_scores(path, accuracy, task, steps=steps)

    accuracies = _accuracies(config, scores)
    return lambda params, lr, batches: accuracies((params, array(np.float32(lr))), batches)


def _progress(label: str, tasks: int, batches: Iterable[Task]) -> Iterable[Task]:
    # None: of many short ones, each line would stay in a log.
    total = math.ceil(tasks / CHUNK)
    return tqdm(batches, label, total, leave=False, dynamic_ncols=True, disable=None)


def tuner(config: Config, data: Data, batch_norm: BatchNorm) -> Callable[[str, Any], Tuned]:
    """A function of (a label, params): what is fine-tuned, and by which step size; the most
    accurate on the validation tasks."""
    parts: tuple[Literal["all", "head"], ...] = ("all", "head")
    of = {part: _fine_tuning(config, part, (config.eval_steps,), batch_norm) for part in parts}

    def tune(name: str, params: Any) -> Tuned:
        found = []
        for part, lr in itertools.product(parts, FINE_TUNING_LRS):
            label = f"{name}, validation: {part}, {lr:g}"
            batches = _progress(label, config.validation_tasks, _validation(config, data))
            found.append(Tuned(part, lr, of[part](params, lr, batches)))
        return max(found, key=lambda tuned: float(tuned.scores.mean()))

    return tune


def nearest_neighbour(metric: str, task: Task) -> np.ndarray:
    """The share of queries whose nearest support image, pixel by pixel, is of their class: (T,).

    Args:
        metric: "euclidean" or "cosine".
        task: images, (T, N, H, W, C).
    """
    task = tree.map(to_host, task)
    support, query = (batch.x.reshape(*batch.x.shape[:2], -1).astype(np.float32) for batch in task)
    lengths = [np.linalg.norm(x, axis=-1) for x in (support, query)]
    products = query @ support.swapaxes(-1, -2)
    if metric == "cosine":
        distances = -products / np.maximum(lengths[1][..., None] * lengths[0][:, None], 1e-12)
    else:
        distances = lengths[0][:, None] ** 2 - 2 * products
    nearest = np.take_along_axis(task.support.y, distances.argmin(-1), axis=-1)
    return (nearest == task.query.y).mean(-1)


def _metric(config: Config, data: Data) -> str:
    """The one by which the nearest neighbour is right most often on validation tasks."""
    return max(
        ("euclidean", "cosine"),
        key=lambda metric: _nearest_accuracies(metric, _validation(config, data)).mean(),
    )


def _nearest_accuracies(metric: str, batches: Iterable[Task]) -> np.ndarray:
    return np.concatenate([nearest_neighbour(metric, task) for task in batches])


# ---- test


class Elsewhere(NamedTuple):
    """An experiment of images and its Config, for a network that was trained in another."""

    experiment: str
    config: Any


def evaluate(
    config: Config,
    run: Run,
    data: Data,
    *,
    tasks: int = 600,
    batch_norm: BatchNorm = "transductive",
    baselines: bool = False,
    on: Elsewhere | None = None,
) -> tuple[list[Row], str]:
    """Accuracy on held-out classes after 0, 1, ..., 10 steps, with 1 and with 15 queries a class.

    The test tasks are the same for every run of a split. Leaves two pictures in the run's folder.

    Args:
        data: the run's, or those of ``on``.
        tasks: how many test tasks.
        batch_norm: whose statistics normalise the queries.
        baselines: also fine-tuning from random weights, and the nearest neighbour on pixels, both
            tuned on the validation tasks.
        on: the experiment whose classes it is scored on, where that is another than the run's.

    Returns:
        The rows, and a table as text.
    """
    if batch_norm == "per-query" and config.network == "mlp":
        raise DataError(NO_STATISTICS)
    if on is None:
        check_classes(run, data)
    where = on or Elsewhere(run.experiment, config)
    data = _placed(data)
    state, about = loop.best_state(run)
    params = _for_tasks(config, state["params"])
    expected = network(config, config.num_ways).init(rng=counted_rng(0, "init"))
    loop.check_fits(run.path / CHECKPOINT, params, expected)
    steps = range(max(TEST_STEPS, config.eval_steps) + 1)
    parts = [about]
    methods: dict[str, Callable[[Iterable[Task]], np.ndarray]] = {}
    if not config.baseline:
        methods["MAML"] = functools.partial(maml_accuracies(config, steps, batch_norm), params)
    fine_tuned: dict[str, Any] = {config.baseline: params} if config.baseline else {}
    if baselines:
        first = network(config, config.num_ways).init(rng=counted_rng(config.seed, "init"))
        fine_tuned["random init"] = first
    tune, notes = tuner(config, data, batch_norm), {}
    for name, theta in fine_tuned.items():
        tuned = tune(name, theta)
        notes[name] = f"{tuned.part} fine-tuned by {tuned.lr:g}"
        parts.append(f"{name}: fine-tunes {tuned.part}, step size {tuned.lr:g}: best in validation")
        scores = _fine_tuning(config, tuned.part, steps, batch_norm)
        methods[name] = functools.partial(scores, theta, tuned.lr)
    if baselines:
        metric = _metric(config, data)
        notes["nearest neighbour"] = f"{metric} distance"
        parts.append(f"nearest neighbour: {metric} distance of pixels, best in validation")
        methods["nearest neighbour"] = lambda batches: np.repeat(
            _nearest_accuracies(metric, batches)[None], len(steps), axis=0
        )

    test, setting = data["test"], (config.num_ways, config.num_shots)
    theirs = where.config.is_the_papers(test.names)
    label = where.experiment if theirs else "photographs"
    name = f"{label} {setting[0]}-way {setting[1]}-shot"
    trained = f"trained on {run.experiment}; " if on else ""
    note = f"{trained}split {where.config.split_name}; "
    note += f"batch norm {batch_norm}: {BATCH_NORM[batch_norm]}"
    printed = "not given"
    if theirs and not (config.baseline or on):
        printed = config.paper.get((config.network, *setting, config.first_order), printed)
    parts.append(
        f"{name}: accuracy in %, 95 % interval over {tasks} tasks of {len(test.names)} held-out "
        f"classes; {note}; {config.eval_steps} steps were fixed before. The paper: {printed}"
    )
    table, drawn = [], []
    largest = int(test.counts.min()) - config.num_shots
    for queries in sorted({min(wanted, largest) for wanted in TEST_QUERIES}):
        asked = f"{queries} {'query' if queries == 1 else 'queries'} a class"
        here = []
        for method, accuracies in methods.items():
            batches = _chunks(config, test, tasks, queries, "test", TEST_SEED + queries)
            measured = accuracies(_progress(f"{method}, {asked}", tasks, batches))
            here += rows(f"{name}, {asked}", method, measured, note=notes.get(method, ""))
        parts += [f"\n{asked}", as_table(here, list(methods), percent=True)]
        drawn += [replace(row, setting=name, method=f"{row.method}, {asked}") for row in here]
        table += here
    kind = f"-{on.experiment}" if on else ""
    kind += "" if batch_norm == "transductive" else f"-{batch_norm}"
    pictures = [run.path / f"accuracy{kind}.png"]
    plots.accuracy_against_steps(
        pictures[0], drawn, chance=1 / config.num_ways, reported=config.eval_steps, note=note
    )
    if not config.baseline:
        pictures.append(run.path / f"episode{kind}.png")
        _draw_episode(config, test, params, batch_norm, pictures[1])
    parts.append(f"\npictures: {', '.join(map(str, pictures))}")
    return table, "\n".join(parts)


def _draw_episode(
    config: Config, test: ClassImages, params: Any, batch_norm: BatchNorm, path: Path
) -> None:
    model = learner(config, tree.map(lambda p: Array(to_host(p.value)), params))
    rng = counted_rng(TEST_SEED, "test")
    queries = min(5, int(test.counts.min()) - config.num_shots)
    classes = test.sample_classes(1, num_ways=config.num_ways, rng=rng)
    episode = test.sample_images(classes, num_shots=config.num_shots, num_queries=queries, rng=rng)
    task = tree.map(lambda leaf: to_host(leaf)[0], episode)
    with warnings.catch_warnings(action="ignore"):  # nobody chose these images
        adapted = model.adapt(task.support.x, task.support.y)
        probabilities = adapted.predict(task.query.x, batch_norm=batch_norm)
    names = [test.names[c] for c in classes[0]]
    title = f"An episode of classes never trained on, after {model.inner_steps} gradient steps"
    plots.episode(path, task, probabilities, names, title=title, note=f"batch norm {batch_norm}")


def learner(config: Config, params: Any, about: dict[str, Any] | None = None) -> Classifier:
    """theta of a run, ready for images of one's own.

    The loss is the mean over images, whatever it was in training, so that alpha does not depend on
    how many there are.

    Raises:
        DataError: it is a baseline's, whose last layer is for its training classes.
    """
    if config.baseline:
        raise DataError(
            f"a {config.baseline} baseline has no outputs for new classes. It can be scored, with "
            "mamlnp evaluate; adapt what was trained without --baseline."
        )
    if config.loss != "mean":
        config = replace(config, loss="mean", inner_lr=config.inner_lr * config.num_ways)
    net = network(config, config.num_ways)
    loss = task_loss(config, net)
    return Classifier(
        network=net,
        algorithm=lambda steps: algorithm(replace(config, inner_steps=steps), loss, params),
        params=params,
        inner_steps=config.eval_steps,
        input_shape=config.image_shape,
        about=about or {},
        outputs=config.num_ways,
        inverted=config.inverted,
    )


def experiment(
    name: str,
    summary: str,
    config: type[Config],
    load: Callable[[Any], Data],
    presets: Mapping[str, Config],
) -> Experiment:
    """An experiment on images: whose, and where they come from."""
    return Experiment(
        name=name,
        summary=summary,
        config=config,
        load=load,
        train=train,
        evaluate=evaluate,
        learner=learner,
        presets=presets,
        options=("tasks", "batch_norm", "baselines", "on"),
    )
