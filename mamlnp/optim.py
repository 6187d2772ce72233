"""Optimisers as pairs of pure functions: ``init(params)`` and ``update(params, grads, state)``.

They are made of ops, so one can also be the inner loop's and be differentiated through, and be
compiled: the number of steps so far is an Array. A learning rate is a number, or a function of that
Array (from 0), written in ops too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import tree
from .array import Array
from .errors import ShapeError
from .ops.elementwise import astype, clip, cos, expm1, minimum, neg, ones_like, sqrt, zeros_like

Tree = Any
Rate = float | Callable[[Any], Any]


class Optimizer(NamedTuple):
    """Attributes:
    init: params -> state, a dict with the number of steps so far (an integer Array without axes)
        and trees like params.
    update: (params, grads, state) -> (new params, new state).
    """

    init: Callable[[Tree], dict[str, Any]]
    update: Callable[[Tree, Tree, dict[str, Any]], tuple[Tree, dict[str, Any]]]


def _at(rate: Rate, step: Array) -> Any:
    return rate(step) if callable(rate) else rate


def _zero(params: Tree) -> Array:
    """The number of steps before the first one, where the parameters are."""
    first = next(iter(tree.leaves(params)), 0)
    return astype(zeros_like(first).sum(), int)


def _typed(rate: Any, like: Array) -> Any:
    """A rate for a leaf: numbers take its type by themselves, Arrays are converted."""
    return astype(rate, like.dtype) if isinstance(rate, Array) else rate


def cosine(peak: float, steps: int) -> Callable[[Any], Array]:
    """From ``peak`` down to 0 over ``steps`` steps, along half a cosine.

    >>> [round(float(cosine(1.0, 4)(i)), 3) for i in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return lambda step: 0.5 * peak * (1 + cos(minimum(step, steps) * (math.pi / steps)))


def sgd(lr: Rate, momentum: float = 0.0) -> Optimizer:
    """Gradient descent: m <- momentum m + g, params <- params - lr m."""

    def init(params: Tree) -> dict[str, Any]:
        return {"step": _zero(params), **({"m": tree.map(zeros_like, params)} if momentum else {})}

    def update(params: Tree, grads: Tree, state: dict[str, Any]) -> tuple[Tree, dict[str, Any]]:
        rate = _at(lr, state["step"])
        new = {"step": state["step"] + 1}
        if momentum:
            grads = new["m"] = tree.map(lambda m, g: momentum * m + g, state["m"], grads)
        return tree.map(lambda p, g: p - _typed(rate, p) * g, params, grads), new

    return Optimizer(init, update)


def adam(
    lr: Rate = 1e-3, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0
) -> Optimizer:
    """Adam (Kingma & Ba 2015, Algorithm 1).

    Args:
        lr: step size.
        b1, b2: decay of the first and second moments.
        eps: added to the root.
        eps_root: added under the root. Where the optimiser itself is differentiated it must be
            positive: the root of an exactly zero second moment has an infinite derivative.
    """

    def init(params: Tree) -> dict[str, Any]:
        return {
            "step": _zero(params),
            "m": tree.map(zeros_like, params),
            "v": tree.map(zeros_like, params),
        }

    def update(params: Tree, grads: Tree, state: dict[str, Any]) -> tuple[Tree, dict[str, Any]]:
        step = state["step"] + 1
        m = tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], grads)
        v = tree.map(lambda v, g: b2 * v + (1 - b2) * (g * g), state["v"], grads)
        # m / (1 - b1^t) over sqrt(v / (1 - b2^t)) + eps, the corrections taken out of the leaves.
        one = astype(ones_like(step), float)
        corrections = (neg(expm1(step * math.log(b))) if b else one for b in (b1, b2))
        first, second = corrections
        root = sqrt(second)
        rate = _at(lr, state["step"]) * root / first

        def moved(p: Any, m: Any, v: Any) -> Any:
            v = v + _typed(eps_root * second, p) if eps_root else v
            return p - _typed(rate, p) * m / (sqrt(v) + _typed(eps * root, p))

        return tree.map(moved, params, m, v), {"step": step, "m": m, "v": v}

    return Optimizer(init, update)


def clipped(optimizer: Optimizer, bound: float) -> Optimizer:
    """Every element of the gradient to [-bound, bound] before the optimiser sees it (the authors'
    code, for mini-ImageNet).

    >>> from mamlnp import array
    >>> rule = clipped(sgd(1.0), 10.0)
    >>> rule.update(array(0.0), array(-25.0), rule.init(array(0.0)))[0]
    Array(10.)
    """

    def update(params: Tree, grads: Tree, state: dict[str, Any]) -> tuple[Tree, dict[str, Any]]:
        within = tree.map(lambda g: clip(g, -bound, bound), grads)
        return optimizer.update(params, within, state)

    return Optimizer(optimizer.init, update)


def parts(rules: Mapping[str, Optimizer]) -> Optimizer:
    """Each part of a dict by a rule of its own.

    Raises:
        ShapeError: there are other parts than rules.

    >>> from mamlnp import array
    >>> rule = parts({"theta": sgd(1.0), "alpha": sgd(0.5)})
    >>> theta = {"theta": array(0.0), "alpha": array(1.0)}
    >>> rule.update(theta, {"theta": 1.0, "alpha": 1.0}, rule.init(theta))[0]
    {'theta': Array(-1.), 'alpha': Array(0.5)}
    """

    def init(params: Tree) -> dict[str, Any]:
        if params.keys() != rules.keys():
            raise ShapeError(
                f"parts: the rules are for {', '.join(rules)} but the parameters have "
                f"{', '.join(params)}. Pass one rule for each part."
            )
        states = {name: rule.init(params[name]) for name, rule in rules.items()}
        return {"step": _zero(params), "parts": states}

    def update(params: Tree, grads: Tree, state: dict[str, Any]) -> tuple[Tree, dict[str, Any]]:
        new = {
            name: rule.update(params[name], grads[name], state["parts"][name])
            for name, rule in rules.items()
        }
        return (
            {name: moved for name, (moved, _) in new.items()},
            {"step": state["step"] + 1, "parts": {name: after for name, (_, after) in new.items()}},
        )

    return Optimizer(init, update)


# ---- what no descent can be made of


def check_steps(inner_steps: int, least: int = 0) -> None:
    """Refuse what is no number of steps.

    Raises:
        ValueError: it is not whole, or below ``least``.
    """
    if not hasattr(inner_steps, "__index__") or inner_steps < least:
        raise ValueError(
            f"adapt: inner_steps is {inner_steps!r}. Pass a whole number, {least} or more."
        )


def check_rate(inner_lr: Any) -> None:
    """Refuse an alpha that climbs the loss or leads nowhere.

    Raises:
        ValueError: a number in it is negative, NaN or infinite.
    """
    for path, alpha in tree.items(inner_lr):
        if isinstance(alpha, int | float) and not 0 <= alpha < math.inf:
            raise ValueError(
                f"adapt: inner_lr{path} is {alpha}. Pass a finite number that is not negative."
            )
