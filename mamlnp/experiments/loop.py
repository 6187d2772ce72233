"""The outer loop of every experiment: steps, a progress bar, validation, checkpoints, resuming."""

from __future__ import annotations

import csv
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from .. import tree
from ..array import Array
from ..backend import to_device, to_host, use_card
from ..errors import DataError, NonFiniteError
from ..op import debug_nans
from ..ranks import Ranks
from ..runs import CHECKPOINT, METRICS, Checkpoint, Run
from .experiment import Supervised, Training

Tree = Any


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """Ctrl-C: the run was saved and can be resumed."""


Step = Callable[[Tree, Any], tuple[Tree, dict[str, Any]]]
Validation = Callable[[Tree, dict[str, float]], tuple[float, dict[str, float]]]


def train(
    run: Run,
    config: Training,
    *,
    init: Callable[[], Tree],
    draw: Callable[[int], Any],
    step: Step,
    eager_step: Step | None = None,
    validate: Validation | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> Tree:
    """Run the meta-iterations of a run, from its checkpoint if ``resume``.

    What a step takes is drawn from its own number, so a resumed run is bit for bit the unbroken
    one, and it can be drawn while the step before runs. The checkpoint holds the state and the best
    state so far by validation.

    Args:
        run: where config, metrics and checkpoint are.
        config: how many meta-iterations in all, and after how many each a row is logged and the
            checkpoint replaced.
        init: makes the first state, a nested dict of Arrays and numbers.
        draw: n -> what step n takes; run ahead, on a thread of its own.
        step: (state, what was drawn) -> (new state, numbers), such as {"train_loss": 0.3}; their
            means since the last validation are logged. An Array's mean counts as one number, and
            on a device is taken only then, so that it is not waited for at each step.
        eager_step: the same without compile, to find the op that made a number that is not finite.
        validate: (state, those means) -> (score, what to log too); the lowest score is the best.
            Without it the last state is.
        resume: whether the run goes on from its checkpoint.
        ranks: the processes that do all this together, of which the first writes.

    Returns:
        The best state.

    Raises:
        Interrupted: after Ctrl-C, with everything saved.
        DataError: a number of the steps is not finite any more, another process trains in the
            folder, or the checkpoint is of another architecture.
    """
    ranks = ranks or Ranks()
    with run.locked() if ranks.writes else nullcontext():
        return _train(run, config, init, draw, step, eager_step, validate, ranks, resume=resume)


def _train(
    run: Run,
    config: Training,
    init: Callable[[], Tree],
    draw: Callable[[int], Any],
    step: Step,
    eager_step: Step | None,
    validate: Validation | None,
    ranks: Ranks,
    *,
    resume: bool,
) -> Tree:
    iterations, validate_every = config.meta_iterations, config.validate_every
    start, seconds = 0, 0.0
    best: dict[str, Any] = {"iteration": None, "score": None}
    recent: dict[str, list[Any]] = {}
    state = init()
    best_state = state
    if resume:
        saved = ranks.told(run.resume)
        where = run.path / CHECKPOINT
        check_kind(where, saved)
        check_fits(where, saved.arrays["state"], state)
        check_fits(where, saved.arrays["best"], state)
        start, state = saved.iteration, from_host(saved.arrays["state"])
        best_state = from_host(saved.arrays["best"])
        recent = {
            name: numbers.tolist() for name, numbers in saved.arrays.get("recent", {}).items()
        }
        best, seconds = saved.meta["best"], saved.meta["wall_seconds"]

    supervised = config if isinstance(config, Supervised) else None
    skips = supervised is not None and supervised.on_nan == "skip"
    looks = eager_step if supervised and supervised.debug_nans else None
    began, earlier, sound = time.perf_counter(), state, (start, state)

    def failed(wrong: str, number: int, states: dict[int, Tree]) -> DataError:
        remedy = ", or leave such steps out with --on-nan skip" * (supervised is not None)
        return DataError(
            f"{run.path}: {wrong} in meta-iteration {number}. {_culprit(looks, draw, states)}Lower "
            f"inner_lr or meta_lr{remedy}; the last checkpoint is kept."
        )

    def check(n: int) -> None:
        """Nothing may be kept, or judged by validation, that is not finite."""
        for name, found in recent.items():  # of a device, which is not waited for at each step
            found[:] = [_fetched(number) for number in found]
            for i, number in enumerate(found, start=n + 1 - len(found)):
                if not skips and (wrong := _not_finite({name: number})):
                    raise failed(wrong, i + 1, _states(step, draw, sound, i) if looks else {})
        if wrong := _damaged(state):
            raise failed(wrong, n + 1, {n: earlier})

    def save(done: int) -> None:
        arrays = {
            "state": tree.map(_to_host, state),
            "best": tree.map(_to_host, best_state),
            "recent": {name: _numbers(found) for name, found in recent.items()},
        }
        wall = seconds + time.perf_counter() - began
        if ranks.writes:
            run.save(done, arrays, {"best": best, "wall_seconds": wall})

    with (
        _asked_to_stop() as asked,
        _progress(run, start, iterations, silent=not ranks.writes) as bar,
        ThreadPoolExecutor(1, thread_name_prefix="draw", initializer=use_card) as ahead,
    ):
        drawing = ahead.submit(_drawn, draw, start)
        for n in range(start, iterations):
            drawn = drawing.result()
            if n + 1 < iterations:
                drawing = ahead.submit(_drawn, draw, n + 1)
            new, numbers = step(state, drawn)
            if skips:  # which asks at each step, and so waits for a device
                numbers = {name: _fetched(number) for name, number in numbers.items()}
            wrong = _not_finite(numbers)
            if skips and not wrong:
                wrong = _damaged(new)
            if wrong and not skips:
                states = {n: state} if n == start else {n - 1: earlier, n: state}
                raise failed(wrong, n + 1, states)
            if skips:
                numbers = {name: math.nan if wrong else x for name, x in numbers.items()}
                numbers["skipped"] = float(bool(wrong))
            earlier, state = state, state if wrong else new
            for name, number in numbers.items():
                recent.setdefault(name, []).append(number)
            bar.update()
            done = n + 1
            if done % validate_every == 0 or done == iterations:
                check(n)
                sound = done, state
                mean = _mean_of_finite if skips else np.mean
                means = {name: float(mean(_numbers(x))) for name, x in recent.items()}
                for name, number in means.items():
                    if not np.isfinite(number):
                        raise DataError(
                            f"{run.path}: {name} is {number} around iteration {done}. "
                            "Lower inner_lr or meta_lr; the last checkpoint is kept."
                        )
                recent = {}
                score, shown = validate(state, means) if validate else (None, {})
                if score is None or best["score"] is None or score < best["score"]:
                    best, best_state = {"iteration": done, "score": score}, state
                bar.set_postfix(_short({**means, **shown}))
                wall = seconds + time.perf_counter() - began
                row = {**means, **shown, "wall_seconds": round(wall, 2)}
                if ranks.writes:
                    run.log(done, row)
                save(done)
            stops = asked.is_set()
            if ranks.size > 1:  # all at once, or none
                stops = done % validate_every == 0 and any(ranks.gathered(stops))
            if stops:
                if done % validate_every and done != iterations:
                    check(n)
                    save(done)
                raise Interrupted(
                    f"stopped after {done} of {iterations} meta-iterations. Continue with: "
                    f"mamlnp train {run.experiment} --resume {run.path}"
                )
    return best_state


def _not_finite(numbers: dict[str, Any]) -> str:
    """What is not finite, of numbers, and of Arrays on the host whose first axis is the tasks."""
    for name, number in numbers.items():
        value = number.value if isinstance(number, Array) else number
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                task, *_ = np.argwhere(~np.isfinite(np.atleast_1d(value)))[0]
                return f"{name} is not finite in task {task}"
        elif isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}"
    return ""


def _states(
    step: Step, draw: Callable[[int], Any], sound: tuple[int, Tree], n: int
) -> dict[int, Tree]:
    """The states before the meta-iterations n - 1 and n, made again from an earlier one."""
    at, state = sound
    states = {at: state}
    while at < n:
        state, at = step(state, _drawn(draw, at))[0], at + 1
        states = {at - 1: states[at - 1], at: state}
    return states


def _damaged(state: Tree) -> str:
    """Which of a state's arrays is not finite."""
    for path, leaf in tree.items(state):
        value = _to_host(leaf)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"state{path} is not finite after the update"
    return ""


def _culprit(step: Step | None, draw: Callable[[int], Any], states: dict[int, Tree]) -> str:
    """The first op that made a number that is not finite, in the first of these iterations in which
    there is one: a gradient is seen only in the losses of the next."""
    if step is None:
        return ""
    for n, state in states.items():
        try:
            with debug_nans(), np.errstate(all="ignore"):
                step(state, _drawn(draw, n))
        except NonFiniteError as error:
            return f"The first op that made such a number, in meta-iteration {n + 1}, is {error} "
    return ""


def _mean_of_finite(numbers: np.ndarray) -> float:
    """Of the steps that were not skipped."""
    kept = numbers[np.isfinite(numbers)]
    return float(np.mean(kept)) if kept.size else math.nan


def placed(x: Tree) -> Tree:
    """A tree with NumPy's arrays where they are computed with."""
    return tree.map(lambda leaf: to_device(leaf) if isinstance(leaf, np.ndarray) else leaf, x)


def _drawn(draw: Callable[[int], Any], n: int) -> Any:
    return placed(draw(n))


def _fetched(number: Any) -> Any:
    """A number of a step, on the host."""
    return Array(to_host(number.value)) if isinstance(number, Array) else number


def _numbers(found: list[Any]) -> np.ndarray:
    return np.array([float(x.numpy().mean()) if isinstance(x, Array) else x for x in found])


def diverged(run: Run) -> str:
    """What to say of a training whose loss ended above twice what it began with; nothing of
    others."""
    path = run.path / METRICS
    if not path.exists():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        found = [float(row.get("train_loss", "nan")) for row in csv.DictReader(file)]
    if not found or not found[-1] > 2 * found[0] > 0:
        return ""
    return (
        f"done, but the training diverged: its loss was {found[0]:.3g} to begin with and is "
        f"{found[-1]:.3g} now. Lower inner_lr or meta_lr."
    )


class Best(NamedTuple):
    """A run's best state by validation; the last, if it was stopped before validating or is of an
    experiment that does not.

    Attributes:
        state: as the run's steps made it.
        about: one line on where it comes from.
    """

    state: Tree
    about: str


def best_state(run: Run) -> Best:
    """Read a run's best state from its checkpoint."""
    checkpoint = run.load()
    check_kind(run.path / CHECKPOINT, checkpoint)
    best, done = checkpoint.meta["best"], checkpoint.iteration
    validated = best["score"] is not None
    state = checkpoint.arrays["best" if validated else "state"]
    tasks = "validation tasks"
    if number := run.config.get("validation_tasks"):
        tasks = f"{number} {tasks}"
    which = f"{best['iteration']}, best of {done} on {tasks}" if validated else f"{done}"
    if done < (asked := run.config.get("meta_iterations", done)):
        which += f" (of {asked} that were asked for)"
    about = (
        f"{run.path}: parameters of meta-iteration {which}; trained for "
        f"{checkpoint.meta['wall_seconds']:.0f} s"
    )
    if done < (planned := run.config.get("meta_iterations", done)):
        about += f"; stopped after {done:,} of {planned:,} meta-iterations"
    return Best(from_host(state), about)


def check_kind(where: Path, saved: Checkpoint) -> None:
    """Refuse what is no checkpoint of a training, such as an exported file.

    Raises:
        DataError: it is not.
    """
    missing = {"state", "best"} - saved.arrays.keys()
    if missing or not {"best", "wall_seconds"} <= saved.meta.keys():
        raise DataError(
            f"{where}: is no checkpoint of a training but another file of mamlnp, with "
            f"{', '.join(saved.arrays) or 'nothing'} in it. Put back the one that belongs there."
        )


def check_fits(where: Path, found: Tree, expected: Tree) -> None:
    """Refuse parameters of another architecture.

    Raises:
        DataError: a leaf is missing, is one too many, or has another shape or type.
    """
    here, there = (
        {
            path: f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in tree.items(tree.map(_to_host, params))
        }
        for params in (found, expected)
    )
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise DataError(
                f"{where}: is of another architecture than its settings: {name} is "
                f"{here.get(name, 'missing')}, not {there.get(name, 'there')}. "
                "Put back the file that belongs there."
            )


def _to_host(leaf: Any) -> np.ndarray:
    return to_host(leaf.value) if isinstance(leaf, Array) else np.asarray(leaf)


def from_host(saved: Tree) -> Tree:
    """A tree of NumPy arrays as Arrays."""
    return tree.map(lambda leaf: Array(to_device(leaf)), saved)


def _short(numbers: dict[str, float]) -> dict[str, str]:
    return {name: f"{number:.4g}" for name, number in numbers.items()}


def _progress(run: Run, start: int, iterations: int, *, silent: bool) -> Any:
    return tqdm(
        disable=silent,
        total=iterations,
        initial=start,
        desc=run.experiment,
        unit="it",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    )


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Ctrl-C asks to stop after the iteration under way; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(*_: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
