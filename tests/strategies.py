"""Hypothesis in the place of an op's random generator, so that what fails shrinks."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

import mamlnp as ml
from mamlnp import array
from mamlnp.draws import Draw

seeds = st.integers(0, 2**32 - 1)


class HypothesisDraw(Draw):
    """A :class:`Draw` whose shapes and choices Hypothesis makes, and whose numbers come from a
    seed that Hypothesis draws.

    Args:
        data: what ``st.data()`` gives.
        dtype: the float type of the arrays.
    """

    def __init__(self, data: st.DataObject, dtype: Any = np.float64) -> None:
        super().__init__(np.random.default_rng(data.draw(seeds, "seed")), dtype)
        self.data = data

    def integer(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def choice(self, options: Sequence[Any]) -> Any:
        return self.data.draw(st.sampled_from(options))

    def boolean(self) -> bool:
        return self.data.draw(st.booleans())


# ---- random programs

SIDES = st.sampled_from([0, 1, 1, 2, 3])
UNARY = {
    name: getattr(ml, name)
    for name in ("neg", "abs", "tanh", "relu", "sin", "cos", "sigmoid", "softplus")
} | {
    "exp of -abs": lambda x: ml.exp(-ml.abs(x)),
    "expm1 of -abs": lambda x: ml.expm1(-ml.abs(x)),
    "log of square + 1": lambda x: ml.log(x * x + 1),
    "log1p of square": lambda x: ml.log1p(x * x),
    "sqrt of square + 1": lambda x: ml.sqrt(x * x + 1),
    "cube of tanh": lambda x: ml.tanh(x) ** 3,
    "quotient with square + 1": lambda x: x / (x * x + 1),
}
BINARY = ["add", "sub", "mul", "maximum", "minimum", "less", "equal"]


def binary(name, a, b):
    if name in ("less", "equal"):
        return ml.where(a < b if name == "less" else a == b, a, b)
    if name == "mul":
        return ml.tanh(a * b) if hasattr(a, "dtype") and hasattr(b, "dtype") else a * b
    return {"add": lambda: a + b, "sub": lambda: a - b}.get(
        name, lambda: getattr(ml, name, None)(a, b)
    )()


class Program:
    """A random expression: instructions, each a function of the values so far.

    Every choice is Hypothesis's, so that what fails shrinks to a small program.
    """

    def __init__(self, data, dtype, most=9):
        draw = data.draw
        self.inputs = [
            tuple(draw(st.lists(SIDES, min_size=0, max_size=3)))
            for _ in range(draw(st.integers(1, 3)))
        ]
        self.instructions, self.text = [], []
        self.dtype = dtype
        values = [array(x) for x in self.arguments(0)]
        for _ in range(draw(st.integers(1, most))):
            made = self._instruction(draw, values)
            if made is not None:
                text, places, function = made
                self.text.append(f"v{len(values)} = {text} of {places}")
                self.instructions.append((places, function))
                values.append(function(*(values[p] for p in places)))
        places = st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3)
        self.outputs = [*draw(places), len(values) - 1]

    def arguments(self, seed, ties=True):
        """Inputs; with ties, many of their elements are equal."""
        rng = np.random.default_rng(seed)
        if not ties:
            return [rng.normal(size=s).astype(self.dtype) for s in self.inputs]
        return [
            rng.choice([-1.5, -0.5, 0.0, 0.25, 1.0, 2.0], s).astype(self.dtype) for s in self.inputs
        ]

    def __repr__(self):
        return f"inputs {self.inputs}; " + "; ".join(self.text) + f"; outputs {self.outputs}"

    def values(self, *inputs):
        values = list(inputs)
        for places, function in self.instructions:
            values.append(function(*(values[p] for p in places)))
        return values

    def __call__(self, *inputs):
        values = self.values(*inputs)
        return [values[p] for p in self.outputs]

    def _instruction(self, draw, values):
        place = st.integers(0, len(values) - 1)
        i = draw(place)
        x = values[i]
        kind = draw(
            st.sampled_from(
                ["unary", "scalar", "binary", "reduce", "move", "slice", "matmul", "data"]
            )
        )
        if kind == "unary":
            name = draw(st.sampled_from(list(UNARY)))
            return name, [i], UNARY[name]
        if kind == "scalar":
            name, number = (
                draw(st.sampled_from(BINARY)),
                draw(st.sampled_from([0, 1, 2, -0.5, True])),
            )
            if draw(st.booleans()):
                return f"{name} {number!r}", [i], lambda x: binary(name, x, number)
            return f"{number!r} {name}", [i], lambda x: binary(name, number, x)
        if kind == "binary":
            fitting = [j for j, y in enumerate(values) if broadcast(x.shape, y.shape) is not None]
            j = draw(st.sampled_from(fitting))
            name = draw(st.sampled_from(BINARY))
            return name, [i, j], functools.partial(binary, name)
        if kind == "reduce":
            axes = draw(st.sampled_from([None, *range(x.ndim), tuple(range(x.ndim))[:2]]))
            chosen = range(x.ndim) if axes is None else np.atleast_1d(axes)
            count = math.prod(x.shape[a] for a in chosen)
            name = draw(st.sampled_from(["sum", "mean", "max", "min"] if count else ["sum"]))
            keep = draw(st.booleans())
            return f"{name} {axes} {keep}", [i], lambda x: getattr(x, name)(axes, keepdims=keep)
        if kind == "move":
            return self._move(draw, i, x)
        if kind == "slice":
            index = tuple(
                draw(
                    st.sampled_from([slice(None), slice(None, None, -1), slice(1, None), slice(-1)])
                )
                if s < 2 or draw(st.booleans())
                else draw(st.sampled_from([0, -1, slice(None, None, 2), slice(None, None, -2)]))
                for s in x.shape
            )
            if not any(isinstance(s, slice) for s in index):  # see the test of single elements
                index = (*index, None)
            return f"{index}", [i], lambda x: x[index]
        if kind == "matmul":
            fitting = [j for j, y in enumerate(values) if multiplies(x, y)]
            if not fitting:
                return ("matmul with its transpose", [i], gram) if x.ndim >= 2 else None
            return "matmul", [i, draw(st.sampled_from(fitting))], lambda a, b: ml.tanh(a @ b)
        return self._data(draw, i, x)

    def _move(self, draw, i, x):
        name = draw(st.sampled_from(["transpose", "reshape", "broadcast", "grow", "pad", "join"]))
        if name == "transpose":
            axes = draw(st.permutations(range(x.ndim)))
            return f"transpose {axes}", [i], lambda x: x.transpose(axes) if x.ndim else x
        if name == "reshape":
            shape = draw(st.sampled_from([x.shape[::-1], (x.size,), (1, x.size, 1), (*x.shape, 1)]))
            return f"reshape {shape}", [i], lambda x: x.reshape(shape)
        if name == "broadcast":
            shape = tuple(2 if s == 1 else s for s in x.shape)
            shape = (*draw(st.sampled_from([(), (2,), (0,), (1,)])), *shape)[-4:]
            fits = broadcast(x.shape, shape) == shape
            return (
                (f"broadcast {shape}", [i], lambda x: ml.broadcast_to(x, shape)) if fits else None
            )
        if name == "grow" and x.ndim < 4:
            axis = draw(st.integers(0, x.ndim))
            return f"expand {axis}", [i], lambda x: ml.expand_dims(x, axis)
        if name == "pad" and x.ndim and x.size < 100:
            return "pad", [i], lambda x: ml.pad(x, [(0, 1)] * x.ndim)
        if name == "join" and x.ndim and x.size < 100:
            axis = draw(st.integers(0, x.ndim - 1))
            return f"join {axis}", [i], lambda x: ml.concatenate([x, x * 2], axis)
        return None

    def _data(self, draw, i, x):
        name = draw(st.sampled_from(["mask", "mask times", "integers", "ones", "known", "take"]))
        if name == "mask":
            return name, [i], lambda x: ml.where(x > 0, x, -0.5)
        if name == "mask times":
            return name, [i], lambda x: (x > 0.25) * x
        if name == "integers":
            return name, [i], lambda x: x * (x > 0).astype(int) + (x < 0).astype(int)
        if name == "ones":
            return name, [i], lambda x: ml.ones_like(x) * 2 + x * ml.zeros_like(x)
        if name == "known":
            numbers = np.arange(x.shape[-1] if x.ndim else 1)
            return name, [i], lambda x: x + array(numbers.reshape(x.shape[-1:]))
        if not x.size:
            return None
        last = np.array([0, x.size - 1, -1])
        return name, [i], lambda x: ml.take(x, array(last))


def gram(x):
    return ml.tanh(x @ x.swapaxes(-1, -2))


def broadcast(a, b):
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


def multiplies(a, b):
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        return False
    return broadcast(a.shape[:-2], b.shape[:-2]) is not None
