"""500 functions whose verdict is known, and what check_grads says of each.

    python benchmarks/planted.py [--seed 0] [--wrong]

Every kind is drawn some twenty times by the seed: right functions and functions with a planted
mistake, easy ones and those that fool a difference (stiff, noisy, with a state, at the edge of a
domain, very large, very small, flat, kinked). A verdict is wrong if it says right of a mistake,
wrong of what is right, or anything but "not deterministic" of what changes; of most kinds only one
verdict will do. Exit status 1 if any verdict is wrong; --wrong prints their messages.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import mamlnp as ml
from mamlnp.draws import one
from mamlnp.errors import GradientError
from mamlnp.op import Op

COUNT = 500
RIGHT, WRONG, UNSETTLED = {"right"}, {"wrong"}, {"does not settle"}


class Planted(NamedTuple):
    """A function, where it is checked, to which order, and the verdicts that are true."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    order: int
    verdicts: set[str]


Rng = np.random.Generator
KINDS: dict[str, Callable[[Rng], Planted]] = {}


def kind(make: Callable[[Rng], Planted]) -> Callable[[Rng], Planted]:
    KINDS[make.__name__.replace("_", " ")] = make
    return make


def plant(name: str, forward: Any, pattern: Any = None, **rules: Any) -> Op:
    """An op that is nowhere registered."""
    forward.__name__ = name
    made = Op(forward, draw=one(), pattern=pattern)
    for argument, rule in rules.items():
        made.vjp(argument)(rule)
    return made


# Functions of each element, and the slopes their rules multiply by.
ELEMENTWISE: dict[str, tuple[Any, Any]] = {
    "sin": (lambda xp, x: xp.sin(x), ml.cos),
    "exp": (lambda xp, x: xp.exp(x), ml.exp),
    "cube": (lambda xp, x: x**3, lambda x: 3.0 * x * x),
    "tanh": (lambda xp, x: xp.tanh(x), lambda x: 1.0 - ml.tanh(x) ** 2),
    "log1p": (lambda xp, x: xp.log1p(x * x), lambda x: 2.0 * x / (1.0 + x * x)),
}
EDGED: dict[str, tuple[Any, Any]] = {
    "log": (lambda xp, x: xp.log(x), lambda x: 1.0 / x),
    "sqrt": (lambda xp, x: xp.sqrt(x), lambda x: 0.5 / ml.sqrt(x)),
    "reciprocal": (lambda xp, x: 1 / x, lambda x: -1.0 / (x * x)),
}


def last(x: Any, by: float) -> Any:
    """1 for every element but the last."""
    factors = np.ones(x.shape)
    factors[..., -1] += by
    return factors


# What is planted: (ct, slope function, x) -> cotangent, and the order at which it is wrong.
MISTAKES: dict[str, tuple[Any, int]] = {
    "a ten-thousandth too large": (lambda ct, d, x: ct * d(x) * 1.0001, 1),
    "a hundredth too small": (lambda ct, d, x: ct * d(x) * 0.99, 1),
    "a sign": (lambda ct, d, x: -(ct * d(x)), 1),
    "forgotten": (lambda ct, d, x: ct * 0.0, 1),
    "one element": (lambda ct, d, x: ct * d(x) * last(x, 0.5), 1),
    "slope elsewhere": (lambda ct, d, x: ct * d(x * 1.001), 1),
    "reversed": (lambda ct, d, x: ml.flip(ct * d(x), -1), 1),
    "second order lost": (lambda ct, d, x: ct * ml.stop_gradient(d(x)), 2),
    "cotangent lost": (lambda ct, d, x: ml.stop_gradient(ct) * d(x), 2),
}


def pick(rng: Rng, options: dict[str, Any]) -> tuple[str, Any]:
    name = list(options)[rng.integers(len(options))]
    return name, options[name]


def elementwise(rng: Rng, right: bool, table: dict[str, Any] = ELEMENTWISE) -> tuple[Op, int]:
    """An op, and the order to check it to."""
    name, (forward, slope) = pick(rng, table)
    if right:
        return plant(name, lambda xp, x: forward(xp, x), x=lambda ct, out, x: ct * slope(x)), 2
    what, (mistake, order) = pick(rng, MISTAKES)
    made = plant(
        f"{name} with {what}",
        lambda xp, x: forward(xp, x),
        x=lambda ct, out, x: mistake(ct, slope, x),
    )
    return made, order


def drawn(rng: Rng) -> tuple[Op, int, set[str]]:
    right = rng.random() < 0.5
    return (*elementwise(rng, right), RIGHT if right else WRONG)


def point(rng: Rng, n: int = 4) -> np.ndarray:
    """Away from 0, where the slopes are not flat and not equal."""
    return rng.uniform(0.3, 1.5, n) * rng.choice([-1, 1], n)


# ---- easy ones


@kind
def smooth(rng: Rng) -> Planted:
    op, order, verdicts = drawn(rng)
    w = rng.normal(size=(4, 3))
    return Planted(lambda x: ml.tanh(0.3 * op(x) @ w), (point(rng),), order, verdicts)


@kind
def third_order(rng: Rng) -> Planted:
    right = rng.random() < 0.5
    cosine = plant(
        "cosine",
        lambda xp, x: xp.cos(x),
        x=lambda ct, out, x: -ct * (ml.sin(x) if right else ml.stop_gradient(ml.sin(x))),
    )
    sine = plant("sine", lambda xp, x: xp.sin(x), x=lambda ct, out, x: ct * cosine(x))
    return Planted(lambda x: sine(x) * x, (point(rng),), 3, RIGHT if right else WRONG)


@kind
def a_dropped_term(rng: Rng) -> Planted:
    share = 10 ** rng.uniform(-4, -2)
    op = plant(
        "two terms",
        lambda xp, x: xp.sin(x) + share * xp.exp(x),
        x=lambda ct, out, x: ct * ml.cos(x),
    )
    return Planted(lambda x: op(x).sum(), (point(rng),), 1, WRONG)


@kind
def matrices(rng: Rng) -> Planted:
    wrong = rng.random() < 0.5
    product = plant(
        "product",
        lambda xp, a, b: xp.matmul(a, b),
        a=lambda ct, out, a, b: ct @ (b if wrong else b.T),
        b=lambda ct, out, a, b: a.T @ ct,
    )
    args = rng.normal(size=(2, 3, 3))
    return Planted(lambda a, b: ml.tanh(product(a, b)), (*args,), 2, WRONG if wrong else RIGHT)


@kind
def a_constant_that_is_none(rng: Rng) -> Planted:
    def f(x: Any) -> Any:
        return (x - ml.stop_gradient(ml.mean(x))) ** 2 * ml.sin(x)

    return Planted(f, (point(rng),), 1, WRONG)


@kind
def many_leaves(rng: Rng) -> Planted:
    op, order, verdicts = drawn(rng)
    leaves = {f"w{n}": point(rng, 2) for n in range(30)}
    which = f"w{rng.integers(30)}"

    def f(p: Any) -> Any:
        parts = [(op(w) if k == which else ml.sin(w)).sum() for k, w in p.items()]
        return sum(parts[1:], parts[0]) ** 2

    return Planted(f, (leaves,), 1 if order == 1 else 2, verdicts)


@kind
def float32_arguments(rng: Rng) -> Planted:
    op, order, verdicts = drawn(rng)
    return Planted(op, (point(rng).astype(np.float32),), order, verdicts)


# ---- where a step is too long


@kind
def stiff(rng: Rng) -> Planted:
    op, order, verdicts = drawn(rng)
    while "one element" in op.name:  # whose share of so stiff a sum can be below the tolerance
        op, order, verdicts = drawn(rng)
    rate = 10 ** rng.uniform(1, 2)
    return Planted(lambda x: ml.exp(rate * op(x) * 0.1), (point(rng),), order, verdicts)


@kind
def fast_waves(rng: Rng) -> Planted:
    rate = 10 ** rng.uniform(2, 6)
    right = rng.random() < 0.5
    by = 1.0 if right else 1 + 10 ** rng.uniform(-4, -1)
    wave = plant(
        "wave",
        lambda xp, x: xp.sin(rate * x),
        x=lambda ct, out, x: by * rate * ct * ml.cos(rate * x),
    )
    return Planted(lambda x: wave(x).sum(), (point(rng),), 1, RIGHT if right else WRONG)


@kind
def at_an_edge(rng: Rng) -> Planted:
    right = rng.random() < 0.5
    op, order = elementwise(rng, right, EDGED)
    at = 10 ** rng.uniform(-13, -4) * rng.uniform(1, 10, 3)
    return Planted(lambda x: op(x), (at,), order, RIGHT if right else WRONG)


@kind
def almost_one(rng: Rng) -> Planted:
    right = rng.random() < 0.5
    by = 1.0 if right else 1 + 10 ** rng.uniform(-3, -1)
    op = plant("entropy", lambda xp, x: xp.log1p(-x), x=lambda ct, out, x: -by * ct / (1 - x))
    return Planted(op, (1 - 10 ** rng.uniform(-6, -2, 3),), 1, RIGHT if right else WRONG)


@kind
def two_slopes(rng: Rng) -> Planted:
    right = rng.random() < 0.5
    rate = 10 ** rng.uniform(6, 9)

    def f(x: Any) -> Any:
        ripple = ml.sin(rate * x) / rate
        return ml.sin(x) + (ripple if right else ml.stop_gradient(ripple))

    return Planted(f, (point(rng),), 1, (RIGHT if right else WRONG) | UNSETTLED)


# ---- large and small


@kind
def large_and_small_arguments(rng: Rng) -> Planted:
    op, order, verdicts = drawn(rng)
    size = 10 ** rng.uniform(-8, 8)
    return Planted(lambda x: op(x / size), (size * point(rng),), order, verdicts)


@kind
def large_and_small_results(rng: Rng) -> Planted:
    op, order, verdicts = drawn(rng)
    size = 10 ** rng.uniform(-20, 20)
    return Planted(lambda x: size * op(x), (point(rng),), order, verdicts)


@kind
def large_beside_small(rng: Rng) -> Planted:
    right = rng.random() < 0.5
    op, order = elementwise(rng, right, {"log": EDGED["log"]})
    at = 10 ** rng.uniform(-8, 8, 4)
    return Planted(lambda x: op(x), (at,), order, RIGHT if right else WRONG)


# ---- where there is nothing to see, or only noise


@kind
def flat(rng: Rng) -> Planted:
    at = point(rng)
    functions = [
        (lambda x: ml.softmax(x).sum(), at),
        (lambda x: ml.stop_gradient(x) * 3.0, at),
        (lambda x: (x > 0).astype(np.float64) + ml.sign(x), at),
        (lambda x: x**3, 0 * at),
        (lambda x: (x - at) ** 2, at),
        (lambda x: -(ml.softmax(at) * ml.log_softmax(x)).sum(), at),
        (lambda b: ml.var(b + at) ** 2, np.array(0.7)),
        (lambda b: ml.nn.batch_norm({"beta": b}, np.ones((1, 3, 2)) + b), at[:2]),
    ]
    f, x = functions[rng.integers(2 if rng.random() < 0.2 else len(functions))]
    if f is functions[1][0]:  # kept from being differentiated, but not constant
        return Planted(f, (x,), 1, WRONG)
    return Planted(f, (x,), 2, RIGHT)


@kind
def a_mistake_where_it_is_flat(rng: Rng) -> Planted:
    at = point(rng)
    name, (mistake, _) = pick(rng, {k: v for k, v in MISTAKES.items() if v[1] == 1})
    op = plant(name, lambda xp, x: xp.sin(x), x=lambda ct, out, x: mistake(ct, ml.cos, x))
    return Planted(lambda x: (op(x) - np.sin(at)) ** 2, (at,), 1, WRONG)


@kind
def hidden_by_rounding(rng: Rng) -> Planted:
    op, order, verdicts = drawn(rng)
    large = 10 ** rng.uniform(4, 12)
    true = (verdicts if order == 1 else RIGHT) | UNSETTLED
    return Planted(lambda x: (op(x) + large) - large, (point(rng),), 1, true)


@kind
def noise_that_repeats(rng: Rng) -> Planted:
    op, order, verdicts = drawn(rng)
    size = 10 ** rng.uniform(-7, -2)

    def noise(x: Any) -> Any:
        return ml.stop_gradient(size * ml.sin(1e16 * ml.sin(1e3 * x)))

    true = UNSETTLED if size > 1e-5 else (verdicts if order == 1 else RIGHT) | UNSETTLED
    return Planted(lambda x: op(x) + noise(x), (point(rng),), 1, true)


@kind
def rounded_to_float32(rng: Rng) -> Planted:
    op, order, verdicts = drawn(rng)

    def f(x: Any) -> Any:
        y = op(x)
        exact = ml.stop_gradient(y).numpy()
        return y + (exact.astype(np.float32) - exact)

    return Planted(f, (point(rng),), 1, (verdicts if order == 1 else RIGHT) | UNSETTLED)


# ---- what changes


@kind
def fresh_noise(rng: Rng) -> Planted:
    op, order, _ = drawn(rng)
    fresh, size = np.random.default_rng(rng.integers(99)), 10 ** rng.uniform(-8, 0)
    return Planted(
        lambda x: op(x) + size * fresh.normal(size=4),
        (point(rng),),
        order,
        {"not deterministic"},
    )


@kind
def fresh_masks(rng: Rng) -> Planted:
    op, order, _ = drawn(rng)
    fresh = np.random.default_rng(rng.integers(99))
    return Planted(
        lambda x: op(x) * (fresh.random(100) > 0.1),
        (point(rng, 100),),
        order,
        {"not deterministic"},
    )


@kind
def a_state(rng: Rng) -> Planted:
    op, order, _ = drawn(rng)
    state = {"calls": 0, "mean": np.zeros(4)}
    which = rng.integers(3)

    def f(x: Any) -> Any:
        state["calls"] += 1
        if which == 0:
            return op(x) * (1 + 1e-6 * state["calls"])
        if which == 1:  # only every fifth time
            return op(x) + 0.1 * (state["calls"] // 5)
        state["mean"] = 0.9 * state["mean"] + 0.1 * ml.stop_gradient(x).numpy()
        return op(x - state["mean"])

    return Planted(f, (point(rng),), order, {"not deterministic"})


@kind
def a_rule_that_changes(rng: Rng) -> Planted:
    fresh, size = np.random.default_rng(rng.integers(99)), 10 ** rng.uniform(-6, 0)
    op = plant(
        "fresh",
        lambda xp, x: xp.sin(x),
        x=lambda ct, out, x: ct * ml.cos(x) * (1 + size * fresh.normal()),
    )
    return Planted(lambda x: op(x).sum(), (point(rng),), 1, {"not deterministic"})


# ---- kinks


@kind
def kinks(rng: Rng) -> Planted:
    near = rng.uniform(-3e-6, 3e-6, 20) * (rng.random(20) < 0.8)
    functions = [
        (ml.relu, near),
        (ml.abs, near),
        (lambda x: ml.maximum(x, x[::-1]) ** 2, near),
        (lambda x: ml.max(x) * x, np.full(5, 2.0)),
        (lambda x: ml.relu(ml.relu(3 * x) - ml.relu(x) + 1e-6).sum(), near),
        (lambda x: ml.where(x > 0, x**2 + x, 3 * x), near),
        (lambda x: ml.clip(x, 0.0, 1.0) ** 2, 1 + near),
    ]
    f, x = functions[rng.integers(len(functions))]
    return Planted(f, (x,), 2, RIGHT)


@kind
def a_mistake_at_kinks(rng: Rng) -> Planted:
    near = rng.uniform(-3e-6, 3e-6, 8) * (rng.random(8) < 0.8)
    leak = 10 ** rng.uniform(-4, 0)
    op = plant(
        "leaky",
        lambda xp, x: xp.maximum(x, 0),
        lambda xp, x: x > 0,
        x=lambda ct, out, x: ml.where(x > 0, ct, leak * ct),
    )
    return Planted(op, (np.concatenate([near, [-0.4, 0.7]]),), 1, WRONG)


@kind
def kinks_everywhere(rng: Rng) -> Planted:
    rate = 10 ** rng.uniform(14.5, 15.5)
    return Planted(
        lambda x: ml.relu(ml.sin(rate * x)).sum(), (rng.uniform(0.5, 1, 50),), 1, {"kink"}
    )


def planted(seed: int = 0, count: int = COUNT) -> Iterator[tuple[str, Planted]]:
    """The functions, kind after kind in turn."""
    kinds = list(KINDS.items())
    for n in range(count):
        name, make = kinds[n % len(kinds)]
        yield name, make(np.random.default_rng([seed, n]))


def verdict(of: Planted) -> tuple[str, str]:
    """What check_grads says: the verdict and the message."""
    try:
        ml.check_grads(of.f, of.args, of.order)
    except GradientError as error:
        return error.verdict, str(error)
    return "right", ""


def main() -> None:
    parser = argparse.ArgumentParser(description="What check_grads says of 500 functions.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wrong", action="store_true", help="print the messages of wrong verdicts")
    asked = parser.parse_args()
    began = time.perf_counter()
    table: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for n, (name, of) in enumerate(planted(asked.seed)):
        said, message = verdict(of)
        table[name][said] += 1
        if said not in of.verdicts:
            wrong.append(f"{n} {name}: {said}, not {' or '.join(of.verdicts)}: {message}")
    columns = ["right", "wrong", "kink", "does not settle", "not deterministic"]
    print(f"{'planted':34}" + "".join(f"{c:>18}" for c in columns))
    for name, counts in table.items():
        print(f"{name:34}" + "".join(f"{counts[c] or '':>18}" for c in columns))
    if asked.wrong:
        print("\n".join(wrong))
    total = sum(map(Counter.total, table.values()))
    print(f"{total} functions, {len(wrong)} wrong verdicts, {time.perf_counter() - began:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
