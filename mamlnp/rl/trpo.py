"""Trust region policy optimisation (Schulman et al. 2015, appendix C): how far to go, and where.

Nothing here knows of policies: a loss and a divergence are functions of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Product = Callable[[np.ndarray], np.ndarray]


def conjugate_gradient(
    product: Product, b: np.ndarray, *, iterations: int = 10, tolerance: float = 1e-10
) -> tuple[np.ndarray, np.ndarray]:
    """x with A x = b, from x = 0, and A x (Hestenes & Stiefel 1952).

    Args:
        product: v -> A v, A symmetric and positive definite.
        b: float64 (P,).
        iterations: at most; as many as A has different eigenvalues solve it but for rounding.
        tolerance: of the residual's squared length.

    >>> conjugate_gradient(lambda v: np.array([2.0, 4.0]) * v, np.array([2.0, 4.0]))
    (array([1., 1.]), array([2., 4.]))
    """
    x, residual = np.zeros_like(b), b.copy()
    direction, length = b.copy(), float(b @ b)
    for _ in range(iterations):
        if length < tolerance:
            break
        along = product(direction)
        step = length / float(direction @ along)
        x += step * direction
        residual -= step * along
        new_length = float(residual @ residual)
        direction = residual + new_length / length * direction
        length = new_length
    return x, b - residual


class Report(NamedTuple):
    """What an update did.

    Attributes:
        loss: by how much it fell.
        divergence: of the new from the old, in nats.
        backtracks: how often the step was shortened.
        accepted: whether there was a step at all.
    """

    loss: float
    divergence: float
    backtracks: int
    accepted: bool


def trust_region_step(
    theta: np.ndarray,
    gradient: np.ndarray,
    product: Product,
    evaluate: Callable[[np.ndarray], tuple[float, float]],
    *,
    max_divergence: float = 0.01,
    damping: float = 1e-5,
    iterations: int = 10,
    shorter: float = 0.8,
    most: int = 15,
) -> tuple[np.ndarray, Report]:
    """The step along A^-1 g that the divergence's quadratic model allows, shortened until the loss
    falls and the divergence itself is allowed.

    Args:
        theta: (P,), float64.
        gradient: g of the loss at theta.
        product: v -> A v, A the Hessian of the divergence at theta.
        evaluate: theta -> (loss, divergence from the theta given here).
        max_divergence: the trust region, in nats.
        damping: added to A's diagonal.
        iterations: of the conjugate gradient.
        shorter: what a step is multiplied by when it is refused.
        most: how many steps are tried.

    Returns:
        The new theta, or the old one if every step was refused; and what happened.
    """
    direction, along = conjugate_gradient(
        lambda v: product(v) + damping * v, gradient, iterations=iterations
    )
    curvature = float(direction @ along)
    if not curvature > 0:
        return theta, Report(0.0, 0.0, 0, accepted=False)
    step = math.sqrt(2 * max_divergence / curvature) * direction
    before, _ = evaluate(theta)
    for k in range(most):
        new = theta - shorter**k * step
        loss, divergence = evaluate(new)
        if loss < before and divergence <= max_divergence:
            return new, Report(before - loss, divergence, k, accepted=True)
    return theta, Report(0.0, 0.0, most, accepted=False)
