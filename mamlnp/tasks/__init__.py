"""Tasks: what is learned from (the support set) and what is judged on (the query set)."""

from typing import Any, NamedTuple

import numpy as np

STREAMS = ("init", "train", "validation", "test", "cosine", "strokes")


class Batch(NamedTuple):
    """Inputs ``x`` and targets ``y``, each with a leading task axis."""

    x: Any
    y: Any


class Task(NamedTuple):
    """A meta-batch of tasks: every leaf has the task axis in front."""

    support: Batch
    query: Batch


def counted_rng(seed: int, stream: str, n: int = 0) -> np.random.Generator:
    """The generator of draw number ``n`` of a named stream of a seed.

    Randomness is counted, not carried: no generator state is ever saved, so a resumed run, a
    second process or a prefetching thread draws what an unbroken run draws.

    >>> a, b = counted_rng(0, "train", 7), counted_rng(0, "train", 7)
    >>> bool(a.random() == b.random())
    True
    """
    return np.random.default_rng([seed, STREAMS.index(stream), n])
