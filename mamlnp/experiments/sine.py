"""Sine regression (Finn et al. 2017, section 5.1): fit a sine wave from a few of its points."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from .. import losses, nn, optim, parallel, plots
from ..autodiff import grad
from ..backend.machine import one_blas_thread
from ..compile import compile
from ..learner import Learner
from ..meta import MAML, Algorithm, maml
from ..ranks import world
from ..runs import Run
from ..tasks import Batch, Task, counted_rng
from ..tasks.sinusoid import Sinusoids, sine
from . import loop
from .experiment import Experiment, Supervised
from .scores import Row, adaptation_scores, as_table, rows, scorer

# Section 5.1 and figure 2 of the paper: 5-shot mean squared errors after steps of adaptation.
PAPER = {
    "paper MAML": {1: 0.67, 5: 0.38, 10: 0.35},
    "paper pretrained": {1: 2.41, 5: 2.23, 10: 2.19},
}
STEPS = range(11)
TEST_SHOTS = (5, 10, 20)
TEST_QUERIES = 100
FINE_TUNING_LRS = (0.02, 0.01, 0.005, 0.002, 0.001, 0.0005)
TEST_SEED = 2017
CHUNK = 100  # tasks validated at once, whose numbers fit the processor's cache
NETWORK = nn.mlp((1, 40, 40, 1))
ORACLE = nn.mlp((3, 40, 40, 1))  # is told amplitude and phase beside x


@dataclass(frozen=True)
class Config(Supervised):
    """Settings of a run; the paper's but for what the preset says.

    Attributes:
        preset: decides the defaults of all settings: "today" is a recipe that comes out right
            whatever the seed and the machine; "paper" is the authors'.
        num_shots: support points a task.
        num_queries: query points a task, in training.
        inner_lr: alpha, on the mean of the squared errors.
        inner_steps: of the inner loop, in training. Meta-iterations take 1, 2, ..., inner_steps
            steps in turn. After training with 1 alone, the paper's, more steps than one can
            diverge: alpha is at the edge of stability there, and nothing but a second step in
            training keeps theta from it.
        meta_lr: of Adam, the outer loop's optimiser.
        init: how weights begin: "fan-in", uniform within 1 / sqrt(fan in), or "paper", the
            truncated normal of 0.01 in the authors' code.
        baseline_iterations: of the two baselines, which train beside MAML on the same points.
        validation_tasks: how many; the kept parameters are those with the lowest 5-shot error on
            them, averaged over 1, 5 and 10 steps. With this many, a task that diverges once in a
            thousand is among them, and rules its parameters out.
    """

    preset: str = "today"
    meta_iterations: int = 70_000
    num_shots: int = 10
    num_queries: int = 10
    inner_steps: int = 2
    init: Literal["fan-in", "paper"] = "fan-in"
    baseline_iterations: int = 20_000
    validation_tasks: int = 3_000

    may_be_zero: ClassVar[tuple[str, ...]] = ("seed", "baseline_iterations")

    def describe(self) -> dict[str, Any]:
        """What a reader of the log has to know."""
        return {
            "preset": self.preset,
            "meta-gradient": "first order" if self.first_order else "second order",
            "batch norm": "none",
            "loss": "mean of squared errors, summed over tasks",
            "split": "fresh tasks each meta-iteration; validation and test tasks of other streams",
            "seed": self.seed,
        }


PRESETS = {"today": Config(), "paper": Config(preset="paper", inner_steps=1, init="paper")}


def load(config: Config) -> Sinusoids:
    """The distribution of tasks."""
    return Sinusoids()


def loss(params: Any, batch: Batch) -> Any:
    """Each task's mean squared error, (T,)."""
    return losses.mse(NETWORK.apply(params, batch.x), batch.y, reduction="mean")


def algorithm(config: Config, inner_steps: int) -> Algorithm:
    """MAML with a run's settings."""
    return MAML(
        loss,
        inner_lr=config.inner_lr,
        inner_steps=inner_steps,
        first_order=config.first_order,
    )


def _error(params: Any, task: Task) -> Any:
    return loss(params, task.query)


def _initial_weights(config: Config, stream: int) -> Any:
    weights = nn.fan_in if config.init == "fan-in" else nn.truncated_normal(0.01)
    sizes = (3 if stream == 2 else 1, 40, 40, 1)
    rng = counted_rng(config.seed, "init", stream)
    return nn.mlp(sizes, weights=weights).init(rng=rng)


def initial_params(config: Config) -> Any:
    """theta before any training."""
    return _initial_weights(config, 0)


def _validation_tasks(config: Config, waves: Sinusoids) -> Task:
    rng = counted_rng(config.seed, "validation")
    return waves.sample(config.validation_tasks, num_shots=5, num_queries=20, rng=rng)


def _scores(params: Any, task: Task, lr: float) -> np.ndarray:
    """Errors after 0..10 steps, (11, tasks), run once: eagerly."""
    task = loop.placed(task)
    path = maml.inner_loop(loss, params, task.support, inner_lr=lr)
    return adaptation_scores(path, _error, task, steps=STEPS).numpy()


def _tuned_lr(params: Any, validation: Task) -> float:
    """The step size with which a baseline is best after 10 steps of fine-tuning, on validation
    tasks; the paper's baseline has an "automatically tuned step size" too."""

    def error(lr: float) -> float:
        scores = _scores(params, validation, lr)
        return float(np.nan_to_num(scores[-1].mean(dtype=np.float64), nan=np.inf))

    return min(FINE_TUNING_LRS, key=error)


def _regression_step(network: nn.Network, optimizer: optim.Optimizer) -> Callable[..., Any]:
    """One plain step of a baseline on the points of all tasks together."""

    def step(state: Any, batch: Batch) -> Any:
        def mean_error(params: Any) -> Any:
            return losses.mse(network.apply(params, batch.x), batch.y, reduction="mean")

        grads = grad(mean_error)(state["params"])
        params, opt = optimizer.update(state["params"], grads, state["opt"])
        return {"params": params, "opt": opt}

    return step


def train(config: Config, run: Run, waves: Sinusoids, *, resume: bool = False) -> None:
    """Meta-train, with the baselines beside; ends with pictures in the run's folder."""
    ranks = world()
    optimizer, plain = optim.adam(config.meta_lr), optim.adam(1e-3)
    validation = loop.placed(_validation_tasks(config, waves))

    def meta_step(inner_steps: int, *, compiled: bool) -> Any:
        return parallel.meta_step(
            algorithm(config, inner_steps).gradient,
            optimizer=optimizer,
            chunks=1,
            compiled=compiled,
            check=False,  # the tests hold these plans against eager
            ranks=ranks,
            meta_batch_size=config.meta_batch_size,
        )

    meta_steps, eager_meta_steps = (
        {n: meta_step(n, compiled=compiled) for n in range(1, config.inner_steps + 1)}
        for compiled in (not config.eager, False)
    )

    def errors(params: Any, task: Task) -> Any:
        path = maml.inner_loop(loss, params, task.support, inner_lr=config.inner_lr)
        return adaptation_scores(path, _error, task, steps=STEPS)

    chunks = config.validation_tasks // (CHUNK * ranks.size) if config.device == "cpu" else 1
    scores = scorer(errors, chunks=max(1, chunks), compiled=not config.eager, ranks=ranks)
    pretrain, train_oracle = (_regression_step(network, plain) for network in (NETWORK, ORACLE))
    if not config.eager:
        pretrain, train_oracle = (compile(f, check=False) for f in (pretrain, train_oracle))

    def init() -> dict[str, Any]:
        thetas = [_initial_weights(config, stream) for stream in range(3)]
        return {
            name: {"params": theta, "opt": optimizer.init(theta)}
            for name, theta in zip(("maml", "pretrained", "oracle"), thetas, strict=True)
        }

    def draw(n: int) -> Any:
        inner_steps = n % config.inner_steps + 1
        rng = counted_rng(config.seed, "train", n)
        amplitude, phase = waves.sample_parameters(config.meta_batch_size, rng=rng)
        task = waves.sample_points(
            amplitude, phase, num_shots=config.num_shots, num_queries=config.num_queries, rng=rng
        )
        if n >= config.baseline_iterations:
            return inner_steps, task, None, None
        points = Batch(*(np.concatenate(pair, 1) for pair in zip(*task, strict=True)))
        told = _told(points, amplitude, phase)
        flat = Batch(points.x.reshape(-1, 1), points.y.reshape(-1, 1))
        return inner_steps, task, flat, Batch(told.x.reshape(-1, 3), flat.y)

    def maml_step(
        meta_step: Any, state: dict[str, Any], task: Task
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        params, opt, query_losses = meta_step(
            state["maml"]["params"], state["maml"]["opt"], ranks.part(task)
        )
        return {**state, "maml": {"params": params, "opt": opt}}, {"train_loss": query_losses}

    def step(state: dict[str, Any], drawn: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        inner_steps, task, flat, flat_told = drawn
        state, numbers = maml_step(meta_steps[inner_steps], state, task)
        if flat is not None:
            state["pretrained"] = pretrain(state["pretrained"], flat)
            state["oracle"] = train_oracle(state["oracle"], flat_told)
        return state, numbers

    def eager_step(state: dict[str, Any], drawn: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        inner_steps, task, *_ = drawn
        return maml_step(eager_meta_steps[inner_steps], state, task)

    def validate(state: dict[str, Any], _: dict[str, float]) -> tuple[float, dict[str, float]]:
        means = scores(state["maml"]["params"], validation).mean(axis=1, dtype=np.float64)
        shown = {f"validation_{s}_steps": float(means[s]) for s in (1, 5, 10)}
        score = float(means[[1, 5, 10]].mean())
        return score if np.isfinite(score) else float("inf"), shown

    with one_blas_thread():  # for products this small, more would wait for each other
        loop.train(
            run,
            config,
            init=init,
            draw=draw,
            step=step,
            eager_step=eager_step,
            validate=validate,
            resume=resume,
            ranks=ranks,
        )
    if ranks.writes:
        plots.learning_curve(
            run, ["train_loss", "validation_1_steps", "validation_10_steps"], "mean squared error"
        )


def _told(batch: Batch, amplitude: np.ndarray, phase: np.ndarray) -> Batch:
    """The oracle's inputs: x, amplitude and phase."""
    known = [np.broadcast_to(v, batch.x.shape).astype(batch.x.dtype) for v in (amplitude, phase)]
    return Batch(np.concatenate([batch.x, *known], axis=-1), batch.y)


def evaluate(
    config: Config, run: Run, waves: Sinusoids, *, tasks: int = 600
) -> tuple[list[Row], str]:
    """Test errors after 0..10 steps for 5, 10 and 20 shots, the baselines' too, and two pictures.

    The test tasks are the same for every run. Of an exported file, which does not hold them, the
    baselines that were trained are left out.

    Returns:
        The rows, and the tables as text.
    """
    state, about = loop.best_state(run)
    table: list[Row] = []
    parts = [about, "mean squared error over tasks, its 95 % interval, and (the median over tasks)"]
    validation = _validation_tasks(config, waves)
    baselines = {"random init": initial_params(config)}
    if "pretrained" in state:
        baselines = {"pretrained": state["pretrained"]["params"], **baselines}
    methods = {"MAML": (state["maml"]["params"], config.inner_lr)} | {
        name: (params, _tuned_lr(params, validation)) for name, params in baselines.items()
    }
    tuned = ", ".join(f"{name} {methods[name][1]:g}" for name in baselines)
    parts.append(
        f"step size {config.inner_lr:g}; the baselines' tuned on validation tasks: {tuned}"
    )
    for shots in TEST_SHOTS:
        rng = counted_rng(TEST_SEED, "test", shots)
        amplitude, phase = waves.sample_parameters(tasks, rng=rng)
        task = waves.sample_points(
            amplitude, phase, num_shots=shots, num_queries=TEST_QUERIES, rng=rng
        )
        here: list[Row] = []
        setting = f"sine {shots}-shot"
        for name, (params, lr) in methods.items():
            here += rows(setting, name, _scores(params, task, lr))
        columns = list(methods)
        if "oracle" in state:
            told = loop.placed(_told(task.query, amplitude, phase))
            prediction = ORACLE.apply(state["oracle"]["params"], told.x)
            error = losses.mse(prediction, told.y, reduction="mean").numpy()
            here += rows(setting, "oracle", np.repeat(error[None], len(STEPS), axis=0))
            columns.append("oracle")
        if shots == 5:
            columns += PAPER
            here += [
                Row(setting, name, steps, mean, 0.0, 1)
                for name, printed in PAPER.items()
                for steps, mean in printed.items()
            ]
        diverged = [r.diverged for r in here if r.method == "MAML"][-1]
        parts.append(f"\n{setting}, {tasks} tasks, {_divergence(diverged)}")
        parts.append(as_table(here, columns, medians=True))
        table += here
    plots.error_against_steps(
        run.path / "error.png", [r for r in table if r.setting == "sine 5-shot"]
    )
    _draw_fits(waves, methods, run.path / "fits.png")
    parts.append(f"\npictures: {run.path / 'error.png'}, {run.path / 'fits.png'}")
    return table, "\n".join(parts)


def _divergence(diverged: int) -> str:
    """What the number of diverged tasks means, for a reader."""
    if not diverged:
        return f"none of which diverged within {STEPS[-1]} steps"
    return (
        f"{diverged} of which diverged within {STEPS[-1]} steps: on their few points the loss is "
        "too curved for this step size, so every step overshoots further and the error grows "
        "without bound. The mean is theirs alone; the median is not"
    )


def _draw_fits(waves: Sinusoids, methods: dict[str, Any], path: Path) -> None:
    rng = counted_rng(TEST_SEED, "test", 0)
    amplitude, phase = waves.sample_parameters(3, rng=rng)
    grid = np.broadcast_to(np.linspace(-5, 5, 200, dtype=np.float32)[:, None], (3, 200, 1))
    support = waves.sample_points(amplitude, phase, num_shots=5, num_queries=1, rng=rng).support
    task = Task(support, Batch(grid, sine(grid, amplitude, phase).astype(np.float32)))
    curves = {
        name: adaptation_scores(
            maml.inner_loop(loss, params, loop.placed(task).support, inner_lr=lr),
            lambda params, task: NETWORK.apply(params, task.query.x),
            loop.placed(task),
            steps=STEPS,
        ).numpy()
        for name, (params, lr) in methods.items()
        if name != "random init"
    }
    plots.sine_fits(path, task, curves)


def learner(config: Config, params: Any, about: dict[str, Any] | None = None) -> Learner:
    """theta of a run, ready for points of one's own."""
    return Learner(
        network=NETWORK,
        algorithm=functools.partial(algorithm, config),
        params=params,
        inner_steps=config.inner_steps,
        input_shape=(1,),
        about=about or {},
    )


EXPERIMENT = Experiment(
    name="sine",
    summary=__doc__,
    config=Config,
    load=load,
    train=train,
    evaluate=evaluate,
    learner=learner,
    presets=PRESETS,
    theta_at=("maml", "params"),
)
