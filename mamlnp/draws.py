"""How test inputs are drawn: the small vocabulary in which every op declares its own.

An op's ``draw`` takes one of these and returns ``(args, params)``. Here choices come from a NumPy
generator (``mamlnp check``); the test suite substitutes Hypothesis, which shrinks what fails. And
how closely what is then computed in two ways has to agree.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]

# The only tolerances there are, relative to the size of what is compared.
TOLERANCES = {
    "difference": 1e-6,  # an exact derivative against a central difference
    "rounding": 1e-10,  # two exact ways to the same float64 number
    "float32": 1e-4,  # the same computation in float32 and in float64
}


class Domain(NamedTuple):
    """Numbers between ``low`` and ``high``, of either sign if ``signed``."""

    low: float
    high: float
    signed: bool = False

    def sample(self, shape: Shape, rng: np.random.Generator) -> np.ndarray:
        values = rng.uniform(self.low, self.high, shape)
        return values * rng.choice([-1.0, 1.0], shape) if self.signed else values


reals = Domain(-2.0, 2.0)
positive = Domain(0.3, 3.0)
nonzero = Domain(0.3, 3.0, signed=True)
anywhere = Domain(-math.inf, math.inf)
above_zero = Domain(0.0, math.inf)


class Tails(NamedTuple):
    """What an op is, to any number of digits, and how far out its derivatives have to be right.

    The tests hold the derivatives of orders 1 to 3 against it, from the smallest numbers to the
    largest, wherever they are in the float type's range.

    Attributes:
        exact: the op in Python and mpmath's functions, of its arguments by name.
        domains: of each argument; the last one is that of all that follow.
        loss: how much larger the error may be than a few roundings, of the arguments too.
    """

    exact: str
    domains: tuple[Domain, ...] = (anywhere,)
    loss: str = "1"


class Draw:
    """Random shapes, choices and arrays for one trial.

    Args:
        rng: where everything comes from.
        dtype: the float type of the arrays.
    """

    def __init__(self, rng: np.random.Generator, dtype: Any = np.float64) -> None:
        self.rng = rng
        self.dtype = dtype

    def integer(self, low: int, high: int) -> int:
        """A number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def choice(self, options: Sequence[Any]) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def boolean(self) -> bool:
        return self.integer(0, 1) == 1

    def shape(self, min_ndim: int = 0, max_ndim: int = 3, max_side: int = 3) -> Shape:
        ndim = self.integer(min_ndim, max_ndim)
        return tuple(self.integer(1, max_side) for _ in range(ndim))

    def array(self, shape: Shape, domain: Domain = reals) -> np.ndarray:
        return np.asarray(domain.sample(shape, self.rng), self.dtype)

    def integers(self, shape: Shape, low: int, high: int) -> np.ndarray:
        """Integers from low to high, both included."""
        return np.asarray(self.rng.integers(low, high + 1, shape), np.int64)

    def mask(self, shape: Shape) -> np.ndarray:
        return np.asarray(self.rng.random(shape) < 0.5)

    def broadcastable(self, shape: Shape) -> Shape:
        """A shape that broadcasts to ``shape``: leading axes dropped, some sides made 1."""
        kept = shape[self.integer(0, len(shape)) :]
        return tuple(1 if self.boolean() else side for side in kept)

    def axis(self, ndim: int) -> int:
        """One axis of an array with ``ndim`` >= 1 axes, counted from either end."""
        return self.integer(-ndim, ndim - 1)

    def axes(self, ndim: int) -> int | Shape | None:
        """What a reduction takes: None, one axis, or a tuple of several."""
        kind = self.choice(["all", "one", "some"])
        if kind == "all" or ndim == 0:
            return None
        if kind == "one":
            return self.axis(ndim)
        return tuple(a - ndim if self.boolean() else a for a in range(ndim) if self.boolean())


Drawn = tuple[tuple[Any, ...], dict[str, Any]]
Drawer = Callable[[Draw], Drawn]


def one(domain: Domain = reals, min_ndim: int = 0) -> Drawer:
    """One array."""
    return lambda d: ((d.array(d.shape(min_ndim), domain),), {})


def two(first: Domain = reals, second: Domain = reals) -> Drawer:
    """Two arrays that broadcast together, either of which may be the smaller."""

    def draw(d: Draw) -> Drawn:
        shape = d.shape()
        shapes = [shape, d.broadcastable(shape)]
        if d.boolean():
            shapes.reverse()
        return (d.array(shapes[0], first), d.array(shapes[1], second)), {}

    return draw
