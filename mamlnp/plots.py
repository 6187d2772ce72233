"""Pictures of runs. Drawn off screen; written whole or not at all."""

from __future__ import annotations

import csv
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

# A notebook sets MPLBACKEND for all that it starts. Where that backend is not installed, matplotlib
# would refuse to be imported, though nothing here is drawn by it.
if "MPLBACKEND" in os.environ and "matplotlib" not in sys.modules:
    _backend = os.environ.pop("MPLBACKEND")
    import matplotlib

    os.environ["MPLBACKEND"] = _backend
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .runs import METRICS, Run, atomic_write
from .tasks import Task

if TYPE_CHECKING:
    from .experiments.scores import Row
    from .landscape import Landscape

COLOURS = ("#d1495b", "#00798c", "#8d96a3", "#edae49", "#30638e", "#66a182")
DARK, GREY, RIGHT, WRONG = "#222222", "#6b7280", "#1b7f3b", "#c1121f"
SHOWN = 5  # support images of a class, and queries of a class, on the page of an episode


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    yield figure
    with atomic_write(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        figure.savefig(partial)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _legend(figure: Figure, axes: Any, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _log(axes: Any, values: np.ndarray) -> None:
    """A logarithmic axis for the values, if one of them is positive, with plain numbers on it."""
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive):
        decades = np.log10(positive.max() / positive.min())
        marks = range(1, 10) if decades < 0.7 else (1, 2, 5) if decades < 4 else (1,)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=marks))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _setting(run: Run) -> str:
    ways, shots = run.config.get("num_ways"), run.config.get("num_shots")
    return f"{run.experiment} {ways}-way {shots}-shot" if ways else run.experiment


def _metrics(run: Run) -> dict[str, np.ndarray]:
    """The columns of metrics.csv, (rows,) each; none where there are no rows."""
    path = run.path / METRICS
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    columns = table[0] if table else ()
    return {name: np.array([float(row[name]) for row in table]) for name in columns}


@contextmanager
def _over_training(path: Path, table: dict[str, np.ndarray], title: str) -> Iterator[Any]:
    """Two panels, one above the other, that share an axis of meta-iterations."""
    with _figure(path, 6.8, 5.6) as figure:
        panels = figure.subplots(2, sharex=True)
        yield panels
        last, took = table["iteration"][-1], timedelta(seconds=round(table["wall_seconds"][-1]))
        panels[1].set_xlabel(f"meta-iterations ({last:.0f} in {took} h:min:s)")
        panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle(title)
        for axes in panels:
            _plain(axes)


def learning_curve(run: Run, columns: Sequence[str], label: str, *, log: bool = True) -> None:
    """``curve.png`` in the run's folder: columns of metrics.csv against meta-iterations."""
    table = _metrics(run)
    if not table:
        return
    with _figure(run.path / "curve.png", 6.4, 4) as figure:
        axes = figure.subplots()
        for name, colour in zip(columns, COLOURS, strict=False):
            shown = name.replace("_", " ")
            axes.plot(table["iteration"], table[name], ".-", ms=3, label=shown, color=colour)
        axes.set(xlabel="meta-iterations", ylabel=label, title=f"{run.experiment}: learning curve")
        if log:
            axes.set_yscale("log")
            top = 2 * max(table[name][0] for name in columns)
            if any(not (table[name] < top).all() for name in columns):
                axes.set_ylim(top=top)
                axes.set_title(f"{axes.get_title()} (spikes: a task diverged)")
        _plain(axes)
        _legend(figure, axes)


def classification_curve(run: Run) -> None:
    """``curve.png``: the training loss, and the accuracy on validation classes with its interval
    and its best, against meta-iterations."""
    table = _metrics(run)
    if not table:
        return
    iterations = table["iteration"]
    accuracy, spread = 100 * table["validation_accuracy"], 100 * table["validation_ci95"]
    best = accuracy.argmax()
    title, loss = _setting(run), "query loss on training\ntasks, after adaptation"
    if baseline := run.config.get("baseline"):
        title, loss = f"{title}, {baseline}", "loss on training classes"
    title = f"{title}: learning curve"
    with _over_training(run.path / "curve.png", table, title) as (top, bottom):
        _log(top, table["train_loss"])
        top.plot(iterations, table["train_loss"], ".-", color=COLOURS[0])
        top.set_ylabel(loss)
        bottom.plot(iterations, accuracy, ".-", color=COLOURS[1])
        band = accuracy - spread, accuracy + spread
        bottom.fill_between(
            iterations, *band, color=COLOURS[1], alpha=0.2, lw=0, label="95 % interval over tasks"
        )
        bottom.errorbar(
            iterations[best],
            accuracy[best],
            spread[best],
            fmt="o",
            color=DARK,
            capsize=3,
            label=f"best: {accuracy[best]:.1f} ± {spread[best]:.1f} % "
            f"at meta-iteration {iterations[best]:.0f}",
        )
        bottom.set_ylabel("accuracy on\nvalidation classes (%)")
        queries, steps = (run.config.get(name) for name in ("num_queries", "eval_steps"))
        asked = f"{queries} {'query' if queries == 1 else 'queries'} a class"
        note = f"{asked}, after {steps} gradient steps, transductive batch norm"
        bottom.set_title(note, fontsize=8, color=GREY, loc="left")
        bottom.set_ylim(top=min(101, bottom.get_ylim()[1]))
        bottom.legend(loc="best", fontsize=8)


def gradient_cosine(run: Run) -> None:
    """``cosine.png``: how the first-order meta-gradient differs from the second-order one, in
    direction and in length, against meta-iterations; nothing where that was not measured."""
    table = _metrics(run)
    if not any(np.isfinite(table.get("gradient_cosine", ()))):
        return
    cosine, ratio = table["gradient_cosine"], table["gradient_ratio"]
    title = f"{_setting(run)}: the meta-gradient without second derivatives\n"
    title += "(first order) against the full one (second order)"
    with _over_training(run.path / "cosine.png", table, title) as (top, bottom):
        _log(bottom, np.append(ratio, 1))
        for axes, y, text in (
            (top, 1, "same\ndirection"),
            (top, 0, "at right\nangles"),
            (bottom, 1, "same\nlength"),
        ):
            axes.axhline(y, color=DARK, ls=":", lw=1.2)
            at_right = axes.get_yaxis_transform()
            axes.text(1.01, y, text, transform=at_right, va="center", fontsize=8, color=DARK)
        for axes, values in ((top, cosine), (bottom, ratio)):
            axes.plot(table["iteration"], values, ".-", color=COLOURS[0])
        top.set_ylabel("cosine of the angle\nbetween the two")
        bottom.set_ylabel("length of first order /\nlength of second order")


def landscape(path: Path, found: Landscape, title: str) -> None:
    """The query loss around theta, without adaptation and after it, with both directions."""
    with _figure(path, 10.5, 5.2) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        drawn = (("before adaptation", found.before), ("after adaptation", found.losses))
        for axes, (name, losses) in zip(panels, drawn, strict=True):
            finite = losses[np.isfinite(losses)]
            levels = np.quantile(finite, np.linspace(0, 0.95, 16))
            surface = axes.contourf(
                found.along, found.across, losses, np.unique(levels), cmap="YlGnBu_r", extend="max"
            )
            figure.colorbar(surface, ax=axes, shrink=0.8, format="{x:.3g}", label="query loss")
            length = 0.8 * found.along[-1]
            for (x, y), colour, label in (
                (found.second, COLOURS[0], "second order: the gradient of what is on the right"),
                (found.first, COLOURS[3], "first order: the inner gradient as a constant"),
            ):
                arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2.2}
                axes.annotate("", (length * x, length * y), (0, 0), arrowprops=arrow)
                axes.plot([], [], color=colour, lw=2.2, label=label)
            axes.plot(0, 0, "o", color=DARK, mec="white", zorder=5, label="theta")
            axes.set(title=f"query loss {name}", xlabel="along the second-order direction")
            axes.set_aspect("equal")
            axes.locator_params(nbins=5)  # more would run into each other
        panels[0].set_ylabel("across it")
        share = found.slopes[1] / found.slopes[0] if found.slopes[0] else np.nan
        figure.suptitle(
            f"{title}; cosine of the two directions {found.cosine:.2f}: a step of one length "
            f"down the first-order\none takes {100 * share:.0f} % of what second order takes "
            "from the loss after adaptation",
            fontsize=10,
        )
        _legend(figure, panels[0])


def first_order(
    path: Path,
    over: Sequence[tuple[float, float, float]],
    against: Mapping[str, Sequence[tuple[float, float, float]]],
) -> None:
    """The first-order meta-gradient beside the second-order one.

    Args:
        path: the picture.
        over: (meta-iteration, cosine, ratio of lengths) over training.
        against: by label, (alpha, cosine, ratio) at some parameters.
    """
    with _figure(path, 9.6, 5.6) as figure:
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        columns = [{"over meta-training": over}, against]
        for (top, bottom), lines in zip(panels.T, columns, strict=True):
            for (label, line), colour in zip(lines.items(), COLOURS, strict=False):
                x, cosine, ratio = np.array(line).T
                top.plot(x, cosine, ".-", ms=4, color=colour, label=label)
                bottom.plot(x, ratio, ".-", ms=4, color=colour)
            for axes in (top, bottom):
                axes.axhline(1, color=DARK, ls=":", lw=1.2)
                _plain(axes)
        panels[1, 0].set_xlabel("meta-iterations, alpha = 0.01")
        panels[1, 1].set(xlabel="alpha", xscale="log")
        panels[0, 1].legend(loc="lower left", fontsize=8)
        panels[0, 0].set_ylabel("cosine of the angle\nto second order")
        panels[1, 0].set_ylabel("length of first order /\nlength of second order")
        figure.suptitle("sine waves: what first order drops (dotted: nothing)")


def hessian_products(
    path: Path,
    costs: Mapping[str, float],
    steps: np.ndarray,
    errors: Mapping[str, tuple[float, Sequence[float]]],
) -> None:
    """What a Hessian-vector product costs three ways, and how exact a difference is.

    Args:
        path: the picture.
        costs: by way, time in gradients.
        steps: of the difference.
        errors: by float type, that of the exact product and those of the difference.
    """
    with _figure(path, 9.6, 3.8) as figure:
        left, right = figure.subplots(1, 2)
        bars = left.barh(list(costs), list(costs.values()), color=COLOURS[1])
        left.bar_label(bars, fmt="%.1f", padding=3)
        left.set(xlabel="time of a gradient = 1", title="cost, compiled")
        left.invert_yaxis()
        left.margins(x=0.15)
        for (name, (exact, line)), colour in zip(errors.items(), COLOURS, strict=False):
            right.plot(steps, line, ".-", color=colour, label=f"difference, {name}")
            if exact:  # nothing is nowhere on a logarithmic axis
                right.axhline(exact, color=colour, ls="--", lw=1.2, label=f"exact, {name}")
        right.set(xscale="log", yscale="log", xlabel="step of the difference")
        right.set(ylabel="relative error", title="error")
        right.legend(fontsize=8)
        for axes in (left, right):
            _plain(axes)


def returns_curve(run: Run, paper: Mapping[str, Mapping[int, float]]) -> None:
    """``curve.png``: mean returns before and after adaptation against meta-iterations, with what
    the paper reports after one step, and the divergence of each meta-update."""
    table = _metrics(run)
    if not table:
        return
    baseline = run.config.get("baseline")
    title = f"{run.experiment}, {baseline}" if baseline else run.experiment
    with _over_training(run.path / "curve.png", table, f"{title}: learning curve") as (top, bottom):
        lines = [("after", "after adaptation", COLOURS[0]), ("before", "before", COLOURS[1])]
        if baseline:
            lines = [("after", "return", COLOURS[0])]
        for name, label, colour in lines:
            top.plot(table["iteration"], table[name], ".-", ms=4, color=colour, label=label)
        printed = paper.get(baseline or "MAML", {})
        steps = 0 if baseline else 1
        if steps in printed:
            label = f"the paper{f' after {steps} step' if steps else ''}: {printed[steps]:g}"
            top.axhline(printed[steps], color=DARK, ls=":", lw=1.2, label=label)
        top.set_ylabel("mean return on training\ntasks, since the last mark")
        top.legend(loc="best", fontsize=8)
        if "kl" in table:
            bottom.plot(table["iteration"], table["kl"], ".-", ms=4, color=COLOURS[4])
            bottom.axhline(run.config["max_kl"], color=DARK, ls=":", lw=1.2)
        bottom.set_ylabel("divergence of a\nmeta-update (nats)")
        bottom.set_ylim(bottom=0)


def returns_against_steps(path: Path, table: Sequence[Row]) -> None:
    """Test return after each number of gradient steps, a line a method with the 95 % interval; what
    the paper reports in the same colour, as circles."""
    methods = [name for name in dict.fromkeys(r.method for r in table) if "paper" not in name]
    tasks = max(row.tasks for row in table)
    with _figure(path, 6.8, 4.2) as figure:
        axes = figure.subplots()
        for n, name in enumerate(methods):
            colour = COLOURS[n % len(COLOURS)]
            line = ".-" if n < len(COLOURS) else ".--"  # so that no two look alike
            for method in (name, f"paper {name}"):
                chosen = [row for row in table if row.method == method]
                steps = [row.steps for row in chosen]
                means = np.array([row.mean for row in chosen])
                spread = np.array([row.ci95 for row in chosen])
                if method == name:
                    axes.plot(steps, means, line, color=colour, label=method)
                    axes.fill_between(
                        steps, means - spread, means + spread, color=colour, alpha=0.2
                    )
                elif chosen:
                    axes.plot(steps, means, "o", mfc="none", color=colour, label=method)
        axes.set(
            xlabel="policy-gradient steps",
            ylabel="mean return of an episode",
            title=f"{table[0].setting}: {tasks} test tasks, band: 95 % interval",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes)
        _legend(figure, axes)


def paths(path: Path, goals: np.ndarray, episodes: Sequence[Any]) -> None:
    """The paths of a few rollouts in the plane: a row a task, a column a number of gradient steps.

    Args:
        path: the picture.
        goals: (T, 2).
        episodes: before and after each step, :class:`~mamlnp.rl.rollout.Transitions` of the tasks.
    """
    tasks, columns = len(goals), len(episodes)
    with _figure(path, 2.6 * columns, 2.7 * tasks + 0.4) as figure:
        panels = figure.subplots(tasks, columns, squeeze=False, sharex=True, sharey=True)
        for steps, found in enumerate(episodes):
            returns = found.returns()
            for task, axes in enumerate(panels[:, steps]):
                for lane in range(min(SHOWN, found.rewards.shape[1])):
                    last = int(found.ends[task, lane].argmax())
                    x, y = found.observations[task, lane, : last + 1, :2].T
                    axes.plot(x, y, lw=0.9, color=COLOURS[1], alpha=0.8)
                axes.plot(0, 0, "o", ms=5, color=DARK, label="start")
                axes.plot(*goals[task], "*", ms=13, color=COLOURS[0], label="goal")
                axes.set_title(f"return {returns[task]:.1f}", fontsize=9)
                axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
                _plain(axes)
            text = f"after {steps} steps".removesuffix("s" * (steps == 1))
            panels[0, steps].annotate(
                text if steps else "before adaptation",
                (0.5, 1.2),
                xycoords="axes fraction",
                ha="center",
                fontsize=10,
            )
        for task in range(tasks):
            panels[task, 0].set_ylabel(f"task {task + 1}")
        _legend(figure, panels[0, 0])


def error_against_steps(path: Path, table: Sequence[Row]) -> None:
    """Test error after each number of inner steps, a line a method, with the 95 % interval."""
    methods = list(dict.fromkeys(row.method for row in table))
    with _figure(path, 6.4, 4) as figure:
        axes = figure.subplots()
        for name, colour in zip(methods, COLOURS, strict=False):
            chosen = [row for row in table if row.method == name]
            steps = [row.steps for row in chosen]
            means = np.array([row.mean for row in chosen])
            spread = np.array([row.ci95 for row in chosen])
            if chosen[0].tasks == 1:
                axes.plot(steps, means, "o", markerfacecolor="none", color=colour, label=name)
                continue
            axes.plot(steps, means, color=colour, label=name)
            axes.fill_between(steps, means - spread, means + spread, color=colour, alpha=0.2)
        axes.set(
            xlabel="gradient steps on the support points",
            ylabel="mean squared error",
            title=f"{table[0].setting}: {table[0].tasks} test tasks, band: 95 % interval",
            ylim=(-0.1, None),
        )
        _plain(axes)
        _legend(figure, axes)


def accuracy_against_steps(
    path: Path, table: Sequence[Row], *, chance: float, reported: int, note: str
) -> None:
    """Test accuracy after each number of inner steps, a line a method, with the 95 % interval.

    Args:
        path: the picture.
        table: shares, not percent. Methods named alike up to a comma have the same colour.
        chance: the share that guessing gets right.
        reported: the number of steps after which accuracies are written beside the lines.
        note: what else a reader has to know.
    """
    methods = list(dict.fromkeys(row.method for row in table))
    families, variants = (
        list(dict.fromkeys(name.partition(", ")[part] for name in methods)) for part in (0, 2)
    )
    last = max(row.steps for row in table)
    labels = [(100 * chance, f"chance {100 * chance:.1f}", DARK, ":")]
    with _figure(path, 8.4, 4.8) as figure:
        axes = figure.subplots()
        for name in methods:
            family, _, variant = name.partition(", ")
            colour = COLOURS[families.index(family) % len(COLOURS)]
            style = ("-", "--", "-.")[variants.index(variant) % 3]
            chosen = [row for row in table if row.method == name]
            steps = [row.steps for row in chosen]
            means = 100 * np.array([row.mean for row in chosen])
            spread = 100 * np.array([row.ci95 for row in chosen])
            axes.plot(steps, means, style, marker=".", ms=4, color=colour)
            axes.fill_between(steps, means - spread, means + spread, color=colour, alpha=0.2, lw=0)
            at = steps.index(reported)
            text = f"{name}  {means[at]:.1f} ± {spread[at]:.1f}"
            labels.append((means[-1], text, colour, style))
        axes.axhline(100 * chance, color=DARK, ls=":")
        axes.axvline(reported, color=GREY, lw=0.8, ls="--")
        low, high = axes.get_ylim()
        high = min(101, high)
        axes.set(xlim=(-0.15, last + 0.15), ylim=(low, high))
        labels.sort()
        places = _apart(np.array([y for y, *_ in labels]), 0.05 * (high - low), high)
        for (y, text, colour, style), place in zip(labels, places, strict=True):
            line = {"arrowstyle": "-", "color": colour, "ls": style, "lw": 1.2, "relpos": (0, 0.5)}
            axes.annotate(
                text,
                (last, y),
                (1.06 * last + 0.4, place),
                color=DARK,
                fontsize=9,
                va="center",
                annotation_clip=False,
                arrowprops=line,
            )
        axes.set(xlabel="gradient steps on the support images", ylabel="accuracy on queries (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle(
            f"{table[0].setting}: {table[0].tasks} test tasks, band: 95 % interval; "
            f"numbers: after {reported} steps"
        )
        axes.set_title(
            textwrap.fill(note, 110), fontsize=8, color=GREY, loc="left", parse_math=False
        )
        _plain(axes)


def _apart(wanted: np.ndarray, gap: float, high: float) -> np.ndarray:
    """Increasing positions (N,) near the wanted ones, a gap apart, none above ``high``."""
    places = wanted.copy()
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    places[-1] = min(places[-1], high)
    for i in reversed(range(len(places) - 1)):
        places[i] = min(places[i], places[i + 1] - gap)
    return places


def image_rows(path: Path, rows: Mapping[str, npt.NDArray[np.uint8]], title: str) -> None:
    """Rows of images, ink white on black, each with its name before it.

    Args:
        path: the picture.
        rows: for each name uint8 (images, height, width), of all names equally many.
        title: above them.
    """
    longest = max(len(images) for images in rows.values())
    with _figure(path, 1.2 + 0.4 * longest, 0.45 + 0.45 * len(rows)) as figure:
        figure.suptitle(title, fontsize=10)
        for axes, (name, images) in zip(
            np.atleast_1d(figure.subplots(len(rows))), rows.items(), strict=True
        ):
            framed = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=90)
            axes.imshow(np.concatenate(framed, axis=1), cmap="gray", vmin=0, vmax=255)
            axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, color=DARK)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)


def episode(
    path: Path,
    task: Task,
    probabilities: npt.ArrayLike,
    names: Sequence[str],
    *,
    title: str,
    note: str,
) -> None:
    """The page of one episode: a row a class with its support images, then the queries of that
    class with what was predicted for them.

    Args:
        path: the picture.
        task: one task without task axis: images (N, H, W, C) in [0, 1], C 1 or 3, and class
            numbers (N,).
        probabilities: of each class for each query, (N, ways).
        names: of the classes; of a path the last two parts are shown.
        title: of the page.
        note: what else a reader has to know.
    """
    probabilities = np.asarray(probabilities)
    support, query = (np.asarray(batch.x) for batch in task)
    predicted = probabilities.argmax(-1)
    rows_of = [np.asarray(task.support.y), np.asarray(task.query.y)]
    most = [min(SHOWN, int(np.bincount(rows, minlength=1).max())) for rows in rows_of]

    # In inches, from the top left corner.
    side, pitches, gap, row_height, head = 0.9, (0.98, 1.62), 0.3, 1.45, 1.15
    starts = 1.85, 1.85 + most[0] * pitches[0] + gap
    width = max(7.5, starts[1] + most[1] * pitches[1] + 0.1)
    height = head + row_height * len(names)
    with _figure(path, width, height) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))

        def write(x: float, y: float, text: str, size: float, **how: Any) -> None:
            text = text.encode("utf-8", "replace").decode("utf-8")  # a class's name may be none
            axes.text(x, y, text, fontsize=size, va="top", parse_math=False, **how)

        def draw(image: np.ndarray, x: float, y: float) -> None:
            extent = (x, x + side, y + side, y)
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent)

        write(0.15, 0.12, textwrap.shorten(title, int(12 * width)), 12, color=DARK)
        right = int((predicted == rows_of[1]).sum())
        summary = f"✓ right, ✗ wrong: {right} of {len(query)} query images right; {note}"
        write(0.15, 0.42, summary, 9, color=GREY)
        write(0.15, 0.82, "class", 9, color=DARK)
        write(starts[0], 0.82, "support images", 9, color=DARK)
        write(starts[1], 0.82, "query images: predicted class, its probability", 9, color=DARK)
        for c, name in enumerate(names):
            y = head + row_height * c
            axes.axhline(y - 0.06, color=GREY, lw=0.4)
            found = [np.flatnonzero(rows == c) for rows in rows_of]
            lines = [_short(part, 20) for part in name.split("/")[-2:]]
            write(0.15, y + 0.08, "/\n".join(lines), 9, color=DARK)
            counts = [
                f"{SHOWN} of {len(those)} {what} shown"
                for those, what in zip(found, ("support", "queries"), strict=True)
                if len(those) > SHOWN
            ]
            write(0.15, y + 0.5, "\n".join(counts), 7, color=GREY)
            for i, n in enumerate(found[0][:SHOWN]):
                draw(support[n], starts[0] + i * pitches[0], y)
            for i, n in enumerate(found[1][:SHOWN]):
                x = starts[1] + i * pitches[1]
                draw(query[n], x, y)
                percent = f"{100 * probabilities[n, predicted[n]]:.0f} %"
                caption, colour = f"✓ {_label(names[predicted[n]])}\n{percent}", RIGHT
                if predicted[n] != c:
                    caption = f"✗ {_label(names[predicted[n]])}\n{percent}\ntrue: {_label(name)}"
                    colour = WRONG
                write(x, y + side + 0.06, caption, 6.5, color=colour)
                axes.add_patch(Rectangle((x, y), side, side, fill=False, color=colour, lw=2))
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
        axes.axis("off")


def _label(name: str) -> str:
    """The last two parts of a class's name, in at most 22 characters."""
    *parents, last = name.split("/")[-2:]
    last = _short(last, max(14, 21 - sum(map(len, parents))))
    return "/".join([*(_short(parent, 21 - len(last)) for parent in parents), last])


def _short(text: str, most: int) -> str:
    """Both ends of what is too long."""
    head = most // 2
    return text if len(text) <= most else f"{text[:head]}…{text[head + 1 - most :]}"


def sine_fits(path: Path, task: Task, curves: dict[str, np.ndarray]) -> None:
    """What each method predicts before adaptation and after 1 and 10 steps.

    Args:
        path: the picture.
        task: support points, and as query a grid of x with the true curve, each (T, N, 1).
        curves: by method, predictions on the grid after 0, 1, 2, ... steps, (steps + 1, T, N, 1).
    """
    tasks, last = len(task.query.x), len(next(iter(curves.values()))) - 1
    with _figure(path, 4 * tasks, 3 * len(curves)) as figure:
        panels = figure.subplots(len(curves), tasks, squeeze=False, sharex=True, sharey="col")
        for row, (name, predictions) in zip(panels, curves.items(), strict=True):
            for i, axes in enumerate(row):
                grid = task.query.x[i, :, 0]
                axes.plot(grid, task.query.y[i, :, 0], color="#222222", lw=1.2, label="truth")
                styles = ((0, ":", "#8d96a3"), (1, "--", "#edae49"), (last, "-", "#d1495b"))
                for steps, style, colour in styles:
                    label = "before" if not steps else f"{steps} step{'s' if steps > 1 else ''}"
                    axes.plot(grid, predictions[steps, i, :, 0], style, color=colour, label=label)
                support = task.support
                axes.plot(
                    support.x[i, :, 0], support.y[i, :, 0], "^", color="#7b2d8b", label="support"
                )
                axes.set_title(f"{name}, task {i + 1}", fontsize=10)
                _plain(axes)
        _legend(figure, panels[0][0], columns=5)
