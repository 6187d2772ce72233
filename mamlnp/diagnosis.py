"""Is that meta-gradient right, and if not, which known mistake makes it?

What another implementation computed for the cases of :mod:`mamlnp.conformance` is held against the
right numbers, and where it differs against those that each known mistake gives. A mistake explains
an answer only if it reproduces every case of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .conformance import (
    ARRAYS,
    MANIFEST,
    MISTAKES,
    RIGHT,
    Case,
    Variant,
    cases,
    named,
    vectors,
)
from .errors import DataError
from .gradcheck import TOLERANCES

Leaves = dict[str, np.ndarray]

FACTOR = 1e-4  # nearer to 1 no factor is told from rounding
LAYOUT = "arrays have their axes in another order"
OTHERS = ("adapted", "support_losses", "query_losses", "first_order", "hvp")


class Fit(NamedTuple):
    """How two gradients compare.

    Attributes:
        error: their distance, relative to the whole right gradient's length.
        turned: names of leaves that only fit with their axes in another order.
    """

    error: float
    turned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """On one case.

    Attributes:
        case: its name.
        error: of the meta-gradient, relative to its whole length.
        agrees: whether that is rounding.
        differs: by leaf the same error of it alone, the largest first, where it does not.
        others: errors of what else was given: adapted parameters, losses, the product.
        explanations: mistakes that reproduce this case, where none reproduces the whole answer.
    """

    case: str
    error: float
    agrees: bool
    differs: dict[str, float] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    explanations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Diagnosis:
    """On a whole answer.

    Attributes:
        verdicts: on each case that was given.
        explanations: every known mistake, or pair of them, or factor, that reproduces all of
            it; none if it is right or nothing does.
        missing: cases that were not given.
        tolerance: beyond which an error is no rounding.
    """

    verdicts: list[Verdict]
    explanations: list[str]
    missing: list[str]
    tolerance: float

    @property
    def right(self) -> bool:
        """Whether every case that was given agrees, and what else was given too."""
        return all(
            v.agrees and all(e <= self.tolerance for e in v.others.values()) for v in self.verdicts
        )

    def __str__(self) -> str:
        lines = []
        for v in self.verdicts:
            says = "agrees" if v.agrees else "DIFFERS"
            lines.append(f"{v.case:14} {says}: relative error {v.error:.1e}")
            for name, error in v.others.items():
                if not error <= self.tolerance:  # NaN is no agreement
                    lines.append(f"{'':14} {name} DIFFER: relative error {error:.1e}")
        lines += [f"{name:14} not given" for name in self.missing]
        wrong = [v for v in self.verdicts if not v.agrees]
        if not wrong:
            return "\n".join([*lines, "right." if self.right else "the meta-gradients are right."])
        if len(self.explanations) == 1:
            lines.append(f"the mistake: {self.explanations[0]}.")
        elif self.explanations:
            lines.append("each of these reproduces the numbers given:")
            lines += [f"  {mistake}" for mistake in self.explanations]
        else:
            lines.append("no known mistake, nor two of them, reproduces all the numbers given.")
            for v in wrong:
                for mistake in v.explanations:
                    lines.append(f"{v.case:14} alone: {mistake}")
                if not v.explanations:
                    parts = ", ".join(f"{name} {error:.1e}" for name, error in v.differs.items())
                    lines.append(f"{v.case:14} parameters that differ: {parts}")
            if all(v.error <= TOLERANCES["float32"] for v in wrong):
                lines.append("the errors are as large as float32's: compute everything in float64.")
        return "\n".join(lines)


def diagnose(given: Mapping[str, np.ndarray], seed: int = 0) -> Diagnosis:
    """Hold an implementation's numbers against the right ones.

    Args:
        given: CASE/meta_gradient/LAYER.NAME -> array, float32 or float64, for one case or more;
            CASE/adapted/..., CASE/support_losses, CASE/query_losses, CASE/first_order/... and
            CASE/hvp/... are compared too where they are.
        seed: that the vectors were written with.

    Raises:
        DataError: a leaf is missing, unknown, or of a shape that no order of axes makes right.
    """
    known = cases(seed)
    answers = {name: _leaves(given, name, "meta_gradient") for name in known}
    answers = {name: leaves for name, leaves in answers.items() if leaves}
    if not answers:
        raise DataError(
            f"verify: nothing is named like {next(iter(known))}/meta_gradient/LAYER.NAME; the "
            f"names are {', '.join(itertools.islice(given, 5)) or 'none'}. See {MANIFEST}."
        )
    single = any(_are_float32(leaves.values()) for leaves in answers.values())
    tolerance = TOLERANCES["float32" if single else "rounding"]
    seen: dict[tuple[str, Variant], Leaves] = {}

    def expected(name: str, how: Variant) -> Leaves:
        if (name, how) not in seen:
            prefix = f"{name}/meta_gradient"
            grads = named(known[name].meta_gradient(how), prefix)
            seen[name, how] = {k.removeprefix(f"{prefix}/"): v for k, v in grads.items()}
        return seen[name, how]

    def explanations(names: Collection[str]) -> list[str]:
        """Every mistake that reproduces these cases, or else every two, or else every factor."""
        for candidates in (_one_mistake(), _two_mistakes()):
            found = []
            for label, how in candidates:
                turned: list[str] = []
                for name in names:
                    error, another_order = fit(answers[name], expected(name, how), tolerance)
                    if not error <= tolerance:  # of NaN neither is true
                        break
                    turned += another_order
                else:
                    found.append(_with_layout(label, turned))
            if found:
                return found
        return factors(names)

    def factors(names: Collection[str]) -> list[str]:
        """Every mistake that reproduces these cases but for a factor in each, or none but that."""
        found = []
        for label, how in _one_mistake():
            scales = {}
            for name in names:
                scale = _factor(answers[name], expected(name, how))
                scaled = {leaf: scale * value for leaf, value in expected(name, how).items()}
                if not scale or not fit(answers[name], scaled, tolerance).error <= tolerance:
                    break
                scales[name] = scale
            else:
                if all(abs(scale - 1) < FACTOR for scale in scales.values()):
                    return []  # is rounding of lesser floats
                scaling = _scaling(scales, tolerance)
                if not label:
                    return [scaling]
                found.append(f"{scaling}; and {label}")
        return found

    verdicts = []
    for name, leaves in answers.items():
        _check(leaves, expected(name, RIGHT), name)
        error, another_order = fit(leaves, expected(name, RIGHT), tolerance)
        agrees = error <= tolerance and not another_order
        differs = {} if agrees else _by_leaf(leaves, expected(name, RIGHT), tolerance)
        error = error if agrees else float(np.linalg.norm(list(differs.values())))
        verdicts.append(Verdict(name, error, agrees, differs, _others(given, known[name], name)))
    joint: list[str] = []
    if not all(v.agrees for v in verdicts) and not (joint := explanations(list(answers))):
        verdicts = [
            v if v.agrees else dataclasses.replace(v, explanations=explanations([v.case]))
            for v in verdicts
        ]
    missing = [name for name in known if name not in answers]
    return Diagnosis(verdicts, joint, missing, tolerance)


def _are_float32(leaves: Iterable[np.ndarray]) -> bool:
    """Were these computed in float32? So their type says, or that float32 holds them exactly."""
    leaves = list(leaves)
    with np.errstate(over="ignore"):
        exactly = (np.array_equal(x, x.astype(np.float32), equal_nan=True) for x in leaves)
        return any(x.dtype != np.float64 for x in leaves) or all(exactly)


def _one_mistake() -> Iterator[tuple[str, Variant]]:
    yield "", RIGHT  # but for the order of axes
    yield from MISTAKES.items()


def _two_mistakes() -> Iterator[tuple[str, Variant]]:
    """Pairs that change different things."""
    for (a, first), (b, second) in itertools.combinations(MISTAKES.items(), 2):
        changes = [
            {f.name: getattr(v, f.name) for f in dataclasses.fields(v)
             if getattr(v, f.name) != getattr(RIGHT, f.name)}
            for v in (first, second)
        ]  # fmt: skip
        if not changes[0].keys() & changes[1].keys():
            yield f"{a}; and {b}", Variant(**changes[0], **changes[1])


def _factor(given: Leaves, expected: Leaves) -> float:
    """The number that expected is multiplied by to come nearest to what was given."""
    if any(given[name].shape != right.shape for name, right in expected.items()):
        return 0.0
    length = sum(float((right**2).sum()) for right in expected.values())
    product = sum(float((given[name] * right).sum()) for name, right in expected.items())
    return product / length if length else 0.0


def _scaling(scales: Mapping[str, float], tolerance: float) -> str:
    low, high = min(scales.values()), max(scales.values())
    if high - low <= 10 * tolerance * abs(high):
        if abs(high + 1) <= 10 * tolerance:
            return "the sign is flipped: every number is minus the right one"
        return f"every number is {high:.6g} times the right one"
    each = ", ".join(f"{scale:.6g} in {name}" for name, scale in scales.items())
    return f"every number is a constant times the right one: {each}"


def _with_layout(label: str, turned: list[str]) -> str:
    if not turned:
        return label
    layout = f"{LAYOUT}: {', '.join(dict.fromkeys(turned))}"
    return f"{label}; and {layout}" if label else layout


def fit(given: Leaves, expected: Leaves, tolerance: float) -> Fit:
    """How well an answer fits, every leaf with its axes as they are if it fits so, else in the
    order in which it fits best."""
    length = np.sqrt(sum(float((e**2).sum()) for e in expected.values())) or 1.0
    total, turned = 0.0, []
    for name, right in expected.items():
        distances = {}
        for axes in itertools.permutations(range(right.ndim)):
            moved = np.transpose(right, axes)
            if moved.shape == given[name].shape:
                distances[axes] = float(np.linalg.norm(given[name] - moved))
        straight = distances.get(tuple(range(right.ndim)), np.inf)
        best = min(distances.values(), default=np.inf)
        if straight > tolerance * length and best <= tolerance * length:
            turned.append(name)
        else:
            best = straight
        total += best**2
    return Fit(float(np.sqrt(total)) / length, tuple(turned))


def _by_leaf(given: Leaves, expected: Leaves, tolerance: float) -> dict[str, float]:
    length = np.sqrt(sum(float((e**2).sum()) for e in expected.values())) or 1.0
    found = {}
    for name, right in expected.items():
        same = given[name].shape == right.shape
        found[name] = float(np.linalg.norm(given[name] - right)) / length if same else np.inf
    wrong = {name: error for name, error in found.items() if not error <= tolerance}
    return dict(sorted(wrong.items(), key=lambda item: -item[1]))


def _leaves(given: Mapping[str, np.ndarray], case: str, quantity: str) -> Leaves:
    prefix = f"{case}/{quantity}/"
    return {
        key.removeprefix(prefix): np.asarray(given[key]) for key in given if key.startswith(prefix)
    }


def _check(leaves: Leaves, expected: Leaves, case: str) -> None:
    """Refuse answers that cannot be compared."""
    for name in sorted(leaves.keys() ^ expected.keys()):
        here = name in leaves
        raise DataError(
            f"verify: {case}/meta_gradient/{name} is {'unknown' if here else 'missing'}. "
            f"The case's parameters are {', '.join(expected)}."
        )
    for name, leaf in leaves.items():
        another_order = sorted(leaf.shape) == sorted(expected[name].shape)
        if not another_order or leaf.dtype.kind != "f":
            raise DataError(
                f"verify: {case}/meta_gradient/{name} is {leaf.dtype}{list(leaf.shape)}, not "
                f"{expected[name].dtype}{list(expected[name].shape)}. Give the gradient that shape."
            )


def _others(given: Mapping[str, np.ndarray], case: Case, name: str) -> dict[str, float]:
    """Errors of what else was given."""
    wanted = [key for key in given if key.startswith(tuple(f"{name}/{q}" for q in OTHERS))]
    if not wanted:
        return {}
    right = vectors(case)
    errors: dict[str, float] = {}
    for quantity in OTHERS:
        keys = [
            k for k in right if k == f"{name}/{quantity}" or k.startswith(f"{name}/{quantity}/")
        ]
        if not any(key in given for key in keys):
            continue
        distance, length = 0.0, 0.0
        for key in keys:
            theirs = np.asarray(given[key]) if key in given else np.full(1, np.nan)
            same = theirs.shape == right[key].shape
            distance += float(((theirs - right[key]) ** 2).sum()) if same else np.inf
            length += float((right[key] ** 2).sum())
        errors[quantity.replace("_", " ")] = float(np.sqrt(distance / (length or 1.0)))
    return errors


def verify(folder: Path, theirs: Path) -> Diagnosis:
    """:func:`diagnose` for files.

    Args:
        folder: what ``mamlnp vectors`` wrote.
        theirs: an .npz with the answers.

    Raises:
        DataError: a file is missing or damaged, or cannot be compared.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        seed = int(manifest["seed"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{folder}: has no readable {MANIFEST} ({error}). Write it with: mamlnp vectors DIR"
        ) from error
    given = read(theirs)
    written = read(folder / ARRAYS)
    for name, case in cases(seed).items():
        for key, theta in named(case.params, f"{name}/theta").items():
            if not np.array_equal(written.get(key), theta):  # type: ignore[arg-type]
                raise DataError(
                    f"{folder / ARRAYS}: {key} is not what this version draws from seed {seed}. "
                    "Write the vectors again with this version."
                )
    return diagnose(given, seed)


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, without running anything that is in it.

    Raises:
        DataError: it is missing, damaged, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged zip file makes NumPy raise nearly anything
        raise DataError(
            f"{path}: is not a whole .npz of plain arrays ({error}). Write it with numpy.savez."
        ) from error
