"""Hypothesis in the place of an op's random generator, so that what fails shrinks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

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
