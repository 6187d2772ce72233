"""What an experiment is: the settings of its training, and the functions that commands call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from ..errors import DataError

# Settings that do not change results (threads and device may change the last bits).
PLACES = ("data", "threads", "device", "on_nan", "debug_nans")


@dataclass(frozen=True)
class Training:
    """Settings of every training.

    Attributes:
        preset: decides the defaults of what follows.
        meta_iterations: outer steps.
        meta_batch_size: tasks an outer step.
        inner_lr: alpha.
        inner_steps: of the inner loop, in training.
        first_order: leave out the second derivatives.
        meta_lr: step size of the outer loop's optimiser.
        validate_every: meta-iterations from one validation (and checkpoint) to the next.
        eager: run every operation as it comes, instead of compiling the meta-step.
        seed: of everything random.
    """

    preset: str = "paper"
    meta_iterations: int = 60_000
    meta_batch_size: int = 25
    inner_lr: float = 0.01
    inner_steps: int = 1
    first_order: bool = False
    meta_lr: float = 1e-3
    validate_every: int = 1_000
    eager: bool = False
    seed: int = 0

    may_be_zero: ClassVar[tuple[str, ...]] = ("seed",)

    def place(self) -> Literal["cpu", "cuda"]:
        """Where the training computes."""
        return "cpu"

    def describe(self) -> dict[str, Any]:
        """What a reader of the log has to know."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse counts and rates that mean nothing.

        Raises:
            DataError: a number that must be positive is not.
        """
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not (value >= 0 if name in self.may_be_zero else value > 0) or value == math.inf:
                option, least = name.replace("_", "-"), ", or 0" * (name in self.may_be_zero)
                raise DataError(f"--{option}: is {value}. Pass a number that is positive{least}.")


@dataclass(frozen=True)
class Supervised(Training):
    """Settings of every training on examples.

    Attributes:
        num_shots: support examples of a task (of a class, where there are classes).
        num_queries: query examples, in training.
        validation_tasks: how many.
        device: where to compute, "cpu" or "cuda".
        on_nan: where a loss is NaN or infinite: "stop", or "skip" the meta-step and count it. To
            skip steps, the new parameters are looked at after each step too.
        debug_nans: on stopping, take the step again, eagerly, to name the first op that made it.
    """

    num_shots: int = 1
    num_queries: int = 1
    validation_tasks: int = 600
    device: Literal["cpu", "cuda"] = "cpu"
    on_nan: Literal["stop", "skip"] = "stop"
    debug_nans: bool = True

    def place(self) -> Literal["cpu", "cuda"]:
        """Where the training computes."""
        return self.device


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments, or one beside them.

    Attributes:
        name: what commands and runs call it.
        summary: one line for people.
        config: the class of its settings.
        load: config -> the data.
        train: (config, run, data, resume=False): trains and leaves a checkpoint.
        evaluate: (config, run, data, options of the command) -> (rows, a table as text).
        learner: (config, theta, about) -> what a user adapts.
        presets: named settings.
        options: which options of the command ``evaluate`` takes.
        theta_at: the keys that lead to theta in a run's state.
        check: (config, data) -> None: refuses a training before its folder is made.
    """

    name: str
    summary: str
    config: type[Training]
    load: Callable[[Any], Any]
    train: Callable[..., None]
    evaluate: Callable[..., tuple[list[Any], str]]
    learner: Callable[..., Any]
    presets: Mapping[str, Training] = field(default_factory=dict)
    options: tuple[str, ...] = ("tasks",)
    theta_at: tuple[str, ...] = ("params",)
    check: Callable[[Any, Any], None] = lambda config, data: None

    def theta(self, state: Any) -> Any:
        """The meta-learned parameters in a run's state."""
        for key in self.theta_at:
            state = state[key]
        return state

    def state(self, theta: Any) -> Any:
        """A run's state with theta alone."""
        for key in reversed(self.theta_at):
            theta = {key: theta}
        return theta
