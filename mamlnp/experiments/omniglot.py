"""Few-shot classification of handwritten characters (Finn et al. 2017, section 5.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import losses, maml, nn, optim, parallel, plots
from ..runs import Run
from ..tasks import Batch, Task, counted_rng
from ..tasks.fewshot import ClassImages
from ..tasks.omniglot import load_omniglot
from . import loop
from .scores import Row, as_table, rows, scorer

# Table 1 of the paper, conv4: test accuracy in percent.
PAPER = {
    (5, 1): "98.7 +- 0.4",
    (5, 5): "99.9 +- 0.1",
    (20, 1): "95.8 +- 0.3",
    (20, 5): "98.9 +- 0.2",
}
TEST_SEED = 2017
Data = dict[str, ClassImages]

CHUNK = 25  # tasks evaluated at once


@dataclass(frozen=True)
class Config:
    """Settings of a run; the paper's but for what a preset says.

    Attributes:
        preset: "default" or "paper", which only decides the defaults of what follows.
        data: folder with the two official zips, or with them unpacked; else the environment
            variable MAMLNP_DATA; else they are downloaded.
        num_ways: classes a task.
        num_shots: support images a class.
        num_queries: query images a class, in training.
        filters: of each of the four convolutions.
        head_std: standard deviation of the last layer's first weights.
        gamma: whether batch norm has a scale.
        adapt_norm: whether the inner loop adapts batch norm's beta (and gamma) too.
        inner_lr: alpha, on the MEAN cross-entropy of the support images. The paper's 0.4 is on the
            sum over them divided by num_shots, which is num_ways times as much: 2.0 for 5 ways.
        inner_steps: in training.
        eval_steps: in validation and test.
        first_order: leave out the second derivatives.
        meta_iterations: outer steps.
        meta_batch_size: tasks an outer step.
        meta_lr: of Adam, the outer loop's optimiser.
        meta_lr_decay: "cosine" to 0 over the meta-iterations, or "none".
        resize: "antialias", or the authors' "nearest", which leaves images binary.
        split: "vinyals", the fixed split, or "random", the authors' sizes drawn by split_seed.
        split_seed: of the random split.
        validate_every: meta-iterations from one validation (and checkpoint) to the next.
        validation_tasks: how many; the kept parameters are the most accurate on them.
        chunks: into how many parts a meta-batch is split for the threads; one a task if not
            given. It decides the last bits of the result; the number of threads does not.
        threads: how many run at once; as many as there are cores if not given.
        eager: run every operation as it comes, instead of compiling the meta-step.
        seed: of everything random.
    """

    preset: Literal["default", "paper"] = "default"
    data: Path | None = None
    num_ways: int = 5
    num_shots: int = 1
    num_queries: int = 1
    filters: int = 64
    head_std: float = 0.1
    gamma: bool = True
    adapt_norm: bool = True
    inner_lr: float = 2.0
    inner_steps: int = 1
    eval_steps: int = 3
    first_order: bool = False
    meta_iterations: int = 60_000
    meta_batch_size: int = 32
    meta_lr: float = 3e-3
    meta_lr_decay: Literal["cosine", "none"] = "cosine"
    resize: Literal["antialias", "nearest"] = "antialias"
    split: Literal["vinyals", "random"] = "vinyals"
    split_seed: int = 0
    validate_every: int = 250
    validation_tasks: int = 600
    chunks: int | None = None
    threads: int | None = None
    eager: bool = False
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """What a reader of the log has to know."""
        adapted = "adapted" if self.adapt_norm else "not adapted"
        return {
            "meta-gradient": "first order" if self.first_order else "second order",
            "batch norm": "transductive (always the batch's own statistics), "
            f"{'beta and gamma' if self.gamma else 'beta'} {adapted} in the inner loop",
            "loss": f"mean cross-entropy (alpha {self.inner_lr} on the mean is "
            f"{self.inner_lr / self.num_ways:g} on the paper's sum), summed over tasks",
            "split": self.split + (f" (seed {self.split_seed})" if self.split == "random" else ""),
            "seed": self.seed,
        }


PRESETS = {
    "default": Config(),
    "paper": Config(
        preset="paper",
        head_std=1.0,
        gamma=False,
        adapt_norm=False,
        meta_lr=1e-3,
        meta_lr_decay="none",
        resize="nearest",
        split="random",
    ),
}


def network(config: Config) -> nn.Network:
    """The paper's convolutional network, with stride 2 instead of pooling."""
    return nn.conv4(
        config.num_ways,
        filters=config.filters,
        gamma=config.gamma,
        head=nn.normal(config.head_std),
    )


def inner_lr(config: Config, params: Any) -> Any:
    """alpha for every leaf: 0 for batch norm's if it is not adapted."""
    if config.adapt_norm:
        return config.inner_lr
    return {
        layer: {name: 0 if name in ("beta", "gamma") else config.inner_lr for name in leaves}
        for layer, leaves in params.items()
    }


def load(config: Config) -> Data:
    """The characters of the three splits."""
    return load_omniglot(
        config.data, resize=config.resize, split=config.split, split_seed=config.split_seed
    )


def _losses(config: Config) -> tuple[maml.Loss, maml.Loss]:
    net = network(config)

    def loss(params: Any, batch: Batch) -> Any:
        return losses.cross_entropy(net.apply(params, batch.x), batch.y, reduction="mean")

    def accuracy(params: Any, batch: Batch) -> Any:
        return losses.accuracy(net.apply(params, batch.x), batch.y)

    return loss, accuracy


def _chunks(
    config: Config, images: ClassImages, tasks: int, num_queries: int, stream: str, seed: int
) -> Iterator[Task]:
    for n in range(math.ceil(tasks / CHUNK)):
        yield images.sample(
            min(CHUNK, tasks - n * CHUNK),
            num_ways=config.num_ways,
            num_shots=config.num_shots,
            num_queries=num_queries,
            rng=counted_rng(seed, stream, n),
        )


def _scorer(config: Config, params: Any) -> Callable[[Any, Iterator[Task]], np.ndarray]:
    """A function of (params, batches of tasks): accuracies after each step, (steps + 1, tasks)."""
    loss, accuracy = _losses(config)
    score = scorer(
        loss,
        accuracy,
        steps=config.eval_steps,
        inner_lr=inner_lr(config, params),
        chunks=1 if config.eager else None,
        threads=config.threads,
        compiled=not config.eager,
    )
    return lambda params, batches: np.concatenate([score(params, task) for task in batches], axis=1)


def train(config: Config, run: Run, data: Data, *, resume: bool = False) -> None:
    """Meta-train on the training characters; ends with a picture in the run's folder."""
    loss, _ = _losses(config)
    rate: Any = config.meta_lr
    if config.meta_lr_decay == "cosine":
        rate = optim.cosine(config.meta_lr, config.meta_iterations)
    optimizer = optim.adam(rate)
    first = network(config).init(rng=counted_rng(config.seed, "init"))
    meta_step = parallel.meta_step(
        loss,
        optimizer=optimizer,
        chunks=1 if config.eager else config.chunks,
        threads=config.threads,
        compiled=not config.eager,
        inner_lr=inner_lr(config, first),
        inner_steps=config.inner_steps,
        first_order=config.first_order,
    )
    accuracies = _scorer(config, first)

    def init() -> dict[str, Any]:
        return {"params": first, "opt": optimizer.init(first)}

    def step(state: dict[str, Any], n: int) -> tuple[dict[str, Any], float]:
        task = data["train"].sample(
            config.meta_batch_size,
            num_ways=config.num_ways,
            num_shots=config.num_shots,
            num_queries=config.num_queries,
            rng=counted_rng(config.seed, "train", n),
        )
        params, opt, query_losses = meta_step(state["params"], state["opt"], task)
        return {"params": params, "opt": opt}, float(query_losses.numpy().mean())

    def validate(state: dict[str, Any]) -> tuple[float, dict[str, float]]:
        chunks = _chunks(
            config,
            data["validation"],
            config.validation_tasks,
            config.num_queries,
            "validation",
            config.seed,
        )
        means = accuracies(state["params"], chunks).mean(axis=1, dtype=np.float64)
        score = float(means[config.eval_steps])
        return -score, {"validation_accuracy": score}

    loop.train(run, config, init=init, step=step, validate=validate, resume=resume)
    plots.learning_curve(run, ["train_loss", "validation_accuracy"], "loss, accuracy", log=False)


def evaluate(config: Config, run: Run, data: Data, *, tasks: int = 600) -> tuple[list[Row], str]:
    """Accuracy on held-out characters after 0, 1, ... steps, with 1 and with 15 queries a class.

    The test tasks are the same for every run of a split.

    Returns:
        The rows, and a table as text.
    """
    state, about = loop.best_state(run)
    test = data["test"]
    name = f"omniglot {config.num_ways}-way {config.num_shots}-shot"
    table: list[Row] = []
    accuracies = _scorer(config, state["params"])
    for queries in (1, 15):
        chunks = _chunks(config, test, tasks, queries, "test", TEST_SEED + queries)
        table += rows(name, f"MAML, {queries} q/class", accuracies(state["params"], chunks))
    parts = [
        about,
        f"{name}: accuracy in %, 95 % interval over {tasks} tasks of {len(test.names)} held-out "
        f"characters; split {config.split}, transductive batch norm",
        as_table(table, [f"MAML, {queries} q/class" for queries in (1, 15)], percent=True),
        f"paper, {config.eval_steps} steps, {config.num_shots} q/class: "
        f"{PAPER.get((config.num_ways, config.num_shots), 'not given')}",
    ]
    return table, "\n".join(parts)
