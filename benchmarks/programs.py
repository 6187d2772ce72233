"""Random programs and networks of many kinds, against JAX in float64.

    python benchmarks/programs.py [--programs 3000] [--networks 300] [--minutes 9] [--processes 2]
        [--file FILE] [--ci]

A program is a few parameters and data, some ten instructions that each take any earlier values
(fan-out, shared parts, broadcasting, reductions, indices, products, convolutions, choices) and a
loss of several of them; it is written once, for either library. Its loss, gradient, the gradient's
derivative along a random direction and that one's along another are computed by mamlnp, eagerly and
compiled, and by JAX; of every fifth program a meta-gradient too. After every tenth program comes
one of the networks of benchmarks/networks.py, which says what is computed of it. Every seed is
fixed. What is done is kept in FILE: the same command goes on there, and prints the summary.

Without JAX, and with --ci, mamlnp compiled is held against mamlnp eager, and the second derivatives
against differences of gradients; --ci takes as many as fit in three minutes, and keeps nothing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import networks
import numpy as np
from networks import ALPHA, TASKS, TOLERANCE, Draw, Params, Problem

import mamlnp as ml

DIFFERENCE = "a difference of gradients"
TOLERANCES = {DIFFERENCE: 1e-6}  # where it is not that of networks.py
# Relative to at least so much: where a derivative vanishes JAX gives rounding for zero. (No tanh is
# taken far out, where JAX's 1 - tanh(x)^2 has no digits left.)
differences = functools.partial(networks.differences, least=1e-6)
STEPS = (1e-4, 1e-5, 1e-6)
SIDES = (1, 2, 3)
LARGEST = 40  # elements of a value


class Instruction(NamedTuple):
    """Attributes:
    name: for the program's text.
    places: which values it takes.
    compute: (library, values) -> a value.
    """

    name: str
    places: tuple[int, ...]
    compute: Callable[..., Any]


UNARY: dict[str, Callable[[Any, Any], Any]] = {
    **{
        name: lambda m, x, name=name: getattr(m, name)(x)
        for name in ("tanh", "sin", "cos", "sigmoid", "softplus", "relu", "expm1")
    },
    "abs": lambda m, x: abs(x),
    "neg": lambda m, x: -x,
    "exp": lambda m, x: m.exp(-0.5 * x),
    "log": lambda m, x: m.log(x * x + 1.0),
    "log1p": lambda m, x: m.log1p(m.square(x)),
    "sqrt": lambda m, x: m.sqrt(x * x + 0.5),
    "cube": lambda m, x: x**3 * 0.1,
    "root": lambda m, x: (x * x + 0.3) ** 0.7,
    "inverse": lambda m, x: 1.0 / (x * x + 1.0),
    "inverse root": lambda m, x: (x * x + 0.5) ** -0.5,
    "clip": lambda m, x: m.minimum(m.maximum(x, -0.7), 0.8),
}
BINARY: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add": lambda m, a, b: a + b,
    "sub": lambda m, a, b: a - b,
    "mul": lambda m, a, b: a * b,
    "div": lambda m, a, b: a / (b * b + 1.0),
    "maximum": lambda m, a, b: m.maximum(a, b),
    "minimum": lambda m, a, b: m.minimum(a, b),
    "where": lambda m, a, b: m.where(a > b, a * b, b),
    "power": lambda m, a, b: (a * a + 0.5) ** m.tanh(b),
    "gated": lambda m, a, b: m.sigmoid(a) * b,
    "residual": lambda m, a, b: a + m.tanh(0.5 * (a + b)),
}


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


class Maker:
    """Draws instructions, and runs them as it goes, so that each fits what is there."""

    def __init__(self, d: Draw) -> None:
        self.d, self.m = d, networks.mamlnp_functions()
        self.params = {name: d.values(*self.shape()) for name in "abc"[: d.size(2, 3)]}
        self.data = {name: d.values(*self.shape()) for name in "xy"[: d.size(1, 2)]}
        self.values = [ml.array(v) for v in (*self.params.values(), *self.data.values())]
        self.instructions: list[Instruction] = []
        kinds = [self.unary, self.binary, self.binary, self.product, self.reduction, self.moved]
        kinds += [self.chosen, self.joined, self.normalised]
        target = len(self.values) + d.size(4, 9)
        while len(self.values) < target:
            kind = self.convolved if d.rng.random() < 0.02 else self.pick(kinds)
            made = kind()
            if made is not None:
                self.add(*made)

    def pick(self, options: Any) -> Any:
        return list(options)[self.d.rng.integers(len(options))]

    def shape(self) -> tuple[int, ...]:
        return tuple(self.pick(SIDES) for _ in range(self.pick((0, 1, 2, 2, 3))))

    def place(self) -> int:
        """Any value, the latest ones rather."""
        latest = self.d.rng.random() < 0.4
        n = len(self.values)
        return int(self.d.rng.integers(max(0, n - 3) if latest else 0, n))

    def add(self, name: str, places: tuple[int, ...], compute: Callable[..., Any]) -> None:
        value = compute(self.m, *(self.values[i] for i in places))
        if value.size > LARGEST:
            return
        if not np.abs(value.numpy()).max() < 5:  # and with it derivatives of high orders
            self.add(f"sine of {name}", places, lambda m, *xs: m.sin(compute(m, *xs)))
            return
        self.instructions.append(Instruction(name, places, compute))
        self.values.append(value)

    def unary(self) -> Any:
        name = self.pick(UNARY)
        return name, (self.place(),), UNARY[name]

    def binary(self) -> Any:
        i, j, name = self.place(), self.place(), self.pick(BINARY)
        if broadcast(self.values[i].shape, self.values[j].shape) is not None:
            return name, (i, j), BINARY[name]
        return None

    def product(self) -> Any:
        fitting = [
            (i, j)
            for i, j in itertools.product(range(len(self.values)), repeat=2)
            if (a := self.values[i].shape)[-1:]
            and (b := self.values[j].shape)
            and a[-1] == b[-2:][0]
            and (len(a) == 1 or len(b) == 1 or broadcast(a[:-2], b[:-2]) is not None)
        ]
        i = self.place()
        if self.values[i].ndim >= 2 and self.d.rng.random() < 0.4:
            return "gram", (i,), lambda m, x: x @ m.swapaxes(x, -1, -2)
        squares = [(i, j) for i, j in fitting if self.values[i].ndim == self.values[j].ndim == 2]
        if squares and self.d.rng.random() < 0.3:
            pair = self.pick(squares)
            return "einsum", pair, lambda m, a, b: m.einsum("ij,jk->ki", a, b)
        return ("matmul", self.pick(fitting), lambda m, a, b: a @ b) if fitting else None

    def reduction(self) -> Any:
        i = self.place()
        x = self.values[i]
        axis = self.pick([None, *range(x.ndim)])
        name, keep = self.pick(("sum", "mean", "max", "min", "var")), bool(self.pick((0, 1)))
        return f"{name} {axis}", (i,), lambda m, x: getattr(m, name)(x, axis=axis, keepdims=keep)

    def normalised(self) -> Any:
        i = self.place()
        x = self.values[i]
        if not x.ndim:
            return None
        axis, kind = (
            int(self.pick(range(x.ndim))),
            self.pick(("norm", "layer", "log", "soft", "lse")),
        )
        return (
            f"{kind} {axis}",
            (i,),
            {
                "norm": lambda m, x: x / (1.0 + m.norm(x + 0.1, axis=axis, keepdims=True)),
                "layer": lambda m, x: (
                    (x - m.mean(x, axis=axis, keepdims=True))
                    / m.sqrt(m.var(x, axis=axis, keepdims=True) + 0.3)
                ),
                "log": lambda m, x: m.log_softmax(x, axis=axis),
                "soft": lambda m, x: m.softmax(x, axis=axis),
                "lse": lambda m, x: m.logsumexp(x, axis=axis),
            }[kind],
        )

    def moved(self) -> Any:
        i = self.place()
        x = self.values[i]
        kind = self.pick(("transpose", "reshape", "expand", "broadcast", "pad", "flip"))
        if kind == "transpose" and x.ndim >= 2:
            axes = [int(a) for a in self.d.rng.permutation(x.ndim)]
            return kind, (i,), lambda m, x: m.transpose(x, axes)
        if kind == "reshape":
            shape = self.pick([x.shape[::-1], (x.size,), (1, x.size), (*x.shape, 1)])
            return kind, (i,), lambda m, x: m.reshape(x, shape)
        if kind == "broadcast":
            shape = (self.pick(SIDES), *x.shape)
            return kind, (i,), lambda m, x: m.broadcast_to(x, shape)
        if kind == "expand":
            axis = int(self.pick(range(x.ndim + 1)))
            return kind, (i,), lambda m, x: m.expand_dims(x, axis)
        if kind == "pad" and x.ndim:
            width = [(int(self.pick((0, 1))), int(self.pick((0, 1)))) for _ in x.shape]
            return kind, (i,), lambda m, x: m.pad(x, width)
        if kind == "flip" and x.ndim:
            return kind, (i,), lambda m, x: m.flip(x, -1)
        return None

    def chosen(self) -> Any:
        i = self.place()
        x = self.values[i]
        if not x.ndim:
            return None
        if self.pick((0, 1)):
            index = tuple(
                self.pick([slice(None), slice(None, None, -1), slice(-1, None), 0]) for _ in x.shape
            )
            return f"{index}", (i,), lambda m, x: x[index]
        axis = int(self.pick(range(x.ndim)))
        rows = self.d.rng.integers(0, x.shape[axis], self.d.size(1, 3))
        return f"take {rows} {axis}", (i,), lambda m, x: m.take(x, rows, axis=axis)

    def joined(self) -> Any:
        i, j = self.place(), self.place()
        a, b = self.values[i], self.values[j]
        if a.shape == b.shape:
            return "stack", (i, j), lambda m, a, b: m.stack([a, b])
        if a.shape[1:] == b.shape[1:] and a.ndim == b.ndim:
            return "concatenate", (i, j), lambda m, a, b: m.concatenate([a, b, a])
        return None

    def convolved(self) -> Any:
        i, j = self.place(), self.place()

        def conv(m: Any, x: Any, w: Any) -> Any:
            image = m.reshape(m.tanh(m.sum(x)) * np.linspace(-1, 1, 12), (1, 3, 4, 1))
            image = image + m.mean(w) * m.square(image)
            window = m.reshape(m.sum(w) * np.linspace(0.5, -0.3, 8), (2, 2, 1, 2))
            return m.mean(m.tanh(m.conv(image, window)), axis=(1, 2))

        return "conv", (i, j), conv


def random_program(d: Draw) -> tuple[Problem, str]:
    """A program, and its text."""
    made = Maker(d)
    first = len(made.values) - len(made.instructions)
    used = {place for instruction in made.instructions for place in instruction.places}
    ends = [i for i in range(first, len(made.values)) if i not in used]
    ends += d.rng.integers(0, len(made.values), 2).tolist()
    weights = [d.values(*made.values[i].shape) for i in ends]

    def loss(m: Any, p: Params, data: Params) -> Any:
        values = [*(p[name] for name in made.params), *(data[name] for name in made.data)]
        for _, places, compute in made.instructions:
            values.append(compute(m, *(values[i] for i in places)))
        parts = [m.sum(w * m.sin(values[i])) for i, w in zip(ends, weights, strict=True)]
        return functools.reduce(lambda a, b: a + b, parts)

    given = [f"{name}{list(x.shape)}" for name, x in {**made.params, **made.data}.items()]
    lines = [f"v{first + i} = {x.name} of {x.places}" for i, x in enumerate(made.instructions)]
    return Problem(made.params, made.data, loss), "; ".join([*given, *lines, f"ends {ends}"])


def compared(index: int) -> dict[str, Any]:
    """One program: the worst difference of everything that is computed."""
    d = Draw(10_000 + index)
    problem, text = random_program(d)
    m = networks.mamlnp_functions()
    params, data = problem.params, problem.data
    directions = [ml.tree.map(lambda x: d.values(*x.shape), params) for _ in range(2)]
    tasks = [
        ml.tree.map(lambda x: np.stack([x + 0.3 * d.values(*x.shape) for _ in range(TASKS)]), data)
        for _ in range(2)
    ]

    def meta_gradient(params: Params, support: Params, query: Params) -> Any:
        loss = ml.vmap(lambda p, data: problem.loss(m, p, data))
        task = ml.Task(support, query)
        return ml.maml.meta_gradient(loss, params, task, inner_lr=ALPHA, inner_steps=1)[1]

    computed: Any = networks.derivatives(m, ml.dot, problem, ml.grad)
    with_meta, jax = index % 5 == 0, networks.jax
    ours = [(computed, (params, data, directions))]
    ours += [(meta_gradient, (params, *tasks))] * with_meta
    eager = [f(*ml.tree.map(ml.array, given)) for f, given in ours]
    replayed = [
        ml.compile(f, check=False)(*ml.tree.map(ml.array, given))
        for f, given in (ours if index % 15 == 0 else ours[:1])
    ]
    found = {
        "compiled against eager": max(map(differences, replayed, eager)),
    }
    if jax is None:
        found[DIFFERENCE] = apart(computed, params, data, directions)
        return {"what": f"program {index}", "text": text, "differences": found}
    j = networks.jax_functions()

    def inner(a: Any, b: Any) -> Any:
        parts = jax.tree_util.tree_map(lambda x, y: (x * y).sum(), a, b)
        return sum(jax.tree_util.tree_leaves(parts))

    theirs = networks.derivatives(j, inner, problem, jax.grad)
    right = networks.by_jax(theirs, params, data, directions)
    for order, (a, b, c) in enumerate(zip(right, eager[0], replayed[0], strict=True)):
        found[f"order {order}, eager"] = differences(b, a)
        found[f"order {order}, compiled"] = differences(c, a)
    if with_meta:
        right = networks.by_jax(networks.jax_meta_gradient(j, problem, 1), params, *tasks)
        for form, got in zip(("eager", "compiled"), (eager[1:], replayed[1:]), strict=True):
            found |= {f"meta-gradient, {form}": differences(x, right) for x in got}
    return {"what": f"program {index}", "text": text, "differences": found}


def apart(computed: Any, params: Params, data: Params, directions: list[Params]) -> float:
    """How far derivatives along a direction are from differences of gradients, by the best of some
    steps: a kink spoils a long one, rounding a short one."""
    place = functools.partial(ml.tree.map, ml.array)
    along = computed(params, data, directions)[2]
    found = []
    for step in STEPS:
        ends = [
            computed(
                place(ml.tree.map(lambda x, v, h=h: x + h * v, params, directions[0])),
                data,
                directions,
            )[1]
            for h in (step, -step)
        ]
        slope = ml.tree.map(lambda a, b, step=step: (a - b) / (2 * step), *ends)
        found.append(differences(slope, along))
    return min(found)


def network(index: int) -> dict[str, Any]:
    row = networks.compared(index)
    return {"what": f"{row['kind']} {index}", "text": "", "differences": row["differences"]}


def one(item: tuple[bool, int]) -> dict[str, Any]:
    """One program or, if so, network."""
    is_network, index = item
    try:
        row = (network if is_network else compared)(index)
    except Exception as error:  # as wrong as a number is
        text = f"{type(error).__name__}: {error}"
        row = {"what": f"{'network' if is_network else 'program'} {index}", "text": text}
        row["differences"] = {"fails": float("inf")}
    return {"item": item, **row}


def is_wrong(row: dict[str, Any]) -> bool:
    return any(not x <= TOLERANCES.get(name, TOLERANCE) for name, x in row["differences"].items())


def summary(rows: list[dict[str, Any]]) -> str:
    """The worst difference of every comparison, and what is wrong."""
    worst: dict[str, tuple[float, str]] = {}
    for row in rows:
        for name, value in row["differences"].items():
            worst[name] = max(worst.get(name, (-1.0, "")), (value, row["what"]))
    lines = [f"{name:32} {value:.1e}  ({what})" for name, (value, what) in worst.items()]
    wrong = [row for row in rows if is_wrong(row)]
    lines += [f"WRONG: {row['what']}: {row['differences']} {row['text']}" for row in wrong]
    counts = [sum(bool(row["item"][0]) is kind for row in rows) for kind in (False, True)]
    comparisons = sum(len(row["differences"]) for row in rows)
    return "\n".join(
        [*lines, f"{counts[0]} programs, {counts[1]} networks, {comparisons} comparisons: "
                 f"{len(wrong)} wrong"]
    )  # fmt: skip


def begin(jax_too: bool) -> None:
    """In every process."""
    if not jax_too:
        networks.jax = None
    if networks.jax is not None:
        networks.jax.config.update("jax_enable_x64", True)
        networks.jax.config.update("jax_platforms", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", type=int, default=3000)
    parser.add_argument("--networks", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=9.0, help="of this part")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--file", type=Path, default=Path("programs.jsonl"))
    parser.add_argument("--ci", action="store_true", help="three minutes without JAX")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.ci:
        options.minutes = 2.8
    elif options.file.exists():
        rows = [json.loads(line) for line in options.file.read_text().splitlines()]
    done = {(bool(kind), index) for kind, index in (row["item"] for row in rows)}
    programs = [(False, i) for i in range(options.programs)]
    for i in range(options.networks):
        programs.insert(min(11 * i + 10, len(programs)), (True, i))
    until = time.monotonic() + 60 * options.minutes

    def left() -> Iterator[tuple[bool, int]]:
        for item in programs:
            if item not in done and time.monotonic() < until:
                yield item

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, begin, (not options.ci,)) as pool:
        running: set[Future[dict[str, Any]]] = set()
        remaining = left()
        while True:
            more = itertools.islice(remaining, options.processes + 1 - len(running))
            running |= {pool.submit(one, item) for item in more}
            if not running:
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for row in (future.result() for future in finished):
                rows.append(row)
                if not options.ci:
                    with options.file.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    print(summary(rows))
    if not options.ci and len(rows) < len(programs):
        print(f"{len(programs) - len(rows)} are left: run the same command again.")
    raise SystemExit(any(map(is_wrong, rows)))


if __name__ == "__main__":
    main()
