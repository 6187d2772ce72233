"""The sine tasks: regress a sine wave from a few of its points."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import check_rng
from . import Batch, Task


def sine(x: Any, amplitude: Any, phase: Any) -> Any:
    """The curve of a task, ``amplitude * sin(x - phase)``; the arguments broadcast.

    >>> float(sine(math.pi, 2.0, math.pi / 2))
    2.0
    """
    return amplitude * np.sin(x - phase)


@dataclass(frozen=True)
class Sinusoids:
    """Sine waves with a random amplitude and phase, seen at random points.

    Each is drawn uniformly from a range ``(low, high)``, the phase in radians. The defaults are
    those of Finn et al. 2017, section 5.1.

    >>> task = Sinusoids().sample(25, num_shots=10, num_queries=5, rng=np.random.default_rng(0))
    >>> task.support.x.shape, task.query.y.shape
    ((25, 10, 1), (25, 5, 1))
    """

    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, math.pi)
    x_range: tuple[float, float] = (-5.0, 5.0)

    def sample_parameters(
        self, num_tasks: int, *, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Draw the amplitudes and phases of ``num_tasks`` tasks, each (T, 1, 1)."""
        check_rng("sample", rng)
        size = (num_tasks, 1, 1)
        return rng.uniform(*self.amplitude, size), rng.uniform(*self.phase, size)

    def sample_points(
        self,
        amplitude: npt.NDArray[np.float64],
        phase: npt.NDArray[np.float64],
        *,
        num_shots: int,
        num_queries: int,
        rng: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
    ) -> Task:
        """Draw points of the curves given by ``amplitude`` and ``phase``, each (T, 1, 1).

        Returns:
            Support and query, both with x and y of shape (T, K, 1) and element type ``dtype``:
            K is ``num_shots`` in the support set and ``num_queries`` in the query set.
        """
        check_rng("sample", rng)
        x = rng.uniform(*self.x_range, (len(amplitude), num_shots + num_queries, 1))
        y = sine(x, amplitude, phase)
        support, query = np.s_[:, :num_shots], np.s_[:, num_shots:]
        return Task(
            Batch(x[support].astype(dtype), y[support].astype(dtype)),
            Batch(x[query].astype(dtype), y[query].astype(dtype)),
        )

    def sample(
        self,
        num_tasks: int,
        *,
        num_shots: int,
        num_queries: int,
        rng: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
    ) -> Task:
        """Draw ``num_tasks`` fresh tasks: ``sample_parameters``, then ``sample_points``.

        The same ``rng`` gives the same tasks either way, so an oracle that is told amplitude and
        phase is judged on the very tasks the others are judged on.
        """
        amplitude, phase = self.sample_parameters(num_tasks, rng=rng)
        return self.sample_points(
            amplitude, phase, num_shots=num_shots, num_queries=num_queries, rng=rng, dtype=dtype
        )
