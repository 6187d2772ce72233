"""Model-agnostic meta-learning: Algorithms 1 and 2 of Finn, Abbeel, Levine 2017."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

from .. import tree
from ..array import Array
from ..autodiff import anew, grad, hvp, stop_gradient, value_and_grad
from ..ops.elementwise import mul, sub
from ..ops.reduce import sum
from ..optim import Optimizer, check_rate, check_steps
from ..tasks import Batch, Task
from .algorithm import (
    Algorithm,
    Loss,
    Tree,
    check_task,
    num_tasks,
    per_task,
    task_losses,
    through,
    total,
)

Method = Literal["backprop", "hvp"]


def descend(params: Tree, grads: Tree, inner_lr: Tree) -> Tree:
    """theta - alpha P g (docs, equation 4.1); P drops the leaves whose alpha is the number 0."""
    alpha = tree.broadcast(inner_lr, params)
    return tree.map(lambda p, g, a: p if _frozen(a) else sub(p, mul(a, g)), params, grads, alpha)


def _frozen(alpha: Any) -> bool:
    return isinstance(alpha, int | float) and alpha == 0


def inner_loop(
    loss: Loss,
    params: Tree,
    support: Batch,
    *,
    inner_lr: Tree = None,
    first_order: bool = False,
    inner_optimizer: Optimizer | None = None,
) -> Iterator[Tree]:
    """theta_0 = theta, theta_1, theta_2, ...: for every task at once, without end,
    theta_{j+1} = theta_j - alpha grad L_i(theta_j) (Algorithm 1, lines 5-6); with ``first_order``
    the meta-gradient through it is equation 5.1 of the docs.

    Arguments and errors are those of :func:`adapt`.
    """
    _check(inner_lr, inner_optimizer)
    if isinstance(support, Task):
        raise TypeError(
            "adapt: support is a Task, not a Batch. Pass its support set, task.support."
        )
    theta = per_task(params, num_tasks(support))
    state = inner_optimizer.init(theta) if inner_optimizer else {}
    while True:
        yield theta
        here = stop_gradient(theta) if first_order else theta
        grads = grad(total(loss, support))(here)
        if inner_optimizer:
            theta, state = inner_optimizer.update(theta, grads, state)
        else:
            theta = descend(theta, grads, inner_lr)


def _check(inner_lr: Tree, inner_optimizer: Optimizer | None) -> None:
    """Refuse what no inner loop can be made of."""
    if (inner_lr is None) == (inner_optimizer is None):
        raise ValueError(
            f"adapt: inner_lr is {inner_lr!r} and inner_optimizer {inner_optimizer!r}. "
            "Pass exactly one of them."
        )
    check_rate(inner_lr)


def adapt(
    loss: Loss,
    params: Tree,
    support: Batch,
    *,
    inner_lr: Tree = None,
    inner_steps: int = 1,
    first_order: bool = False,
    inner_optimizer: Optimizer | None = None,
) -> Tree:
    """theta', after some steps of the inner loop.

    Args:
        loss: (params, batch) -> (T,).
        params: theta; no leaf has the task axis yet.
        support: each task's examples, every leaf (T, ...).
        inner_lr: alpha, a number or a tree of numbers and Arrays, one for each leaf or subtree of
            params. A leaf whose alpha is the number 0 is meta-learned but not adapted.
        inner_steps: how many.
        first_order: treat every inner gradient as a constant.
        inner_optimizer: an optimiser with state, instead of ``inner_lr``.

    Returns:
        theta', a tree like params with every leaf (T, ...).

    Raises:
        ShapeError: the loss is not of shape (T,).
        TypeError: support is a Task.
        ValueError: there is not exactly one of inner_lr and inner_optimizer, a number in inner_lr
            is negative, or inner_steps is.
    """
    check_steps(inner_steps)
    path = inner_loop(
        loss,
        params,
        support,
        inner_lr=inner_lr,
        first_order=first_order,
        inner_optimizer=inner_optimizer,
    )
    return next(itertools.islice(path, inner_steps, None))


def MAML(  # noqa: N802 (an algorithm's name)
    loss: Loss,
    *,
    inner_lr: Tree = None,
    inner_steps: int = 1,
    first_order: bool = False,
    inner_optimizer: Optimizer | None = None,
    method: Method = "backprop",
) -> Algorithm:
    """theta learns to be a good place to begin: the gradient of sum_i L_i(theta_i') by theta,
    through the inner loop (Algorithm 1, line 8; docs, equation 4.2).

    Args:
        loss, inner_lr, inner_steps, first_order, inner_optimizer: as in :func:`adapt`.
        method: "backprop" goes back through the inner loop's operations; "hvp" multiplies by
            (I - H_j alpha P), one exact Hessian-vector product a step, and keeps no tape across
            steps. The two agree to rounding.

    Raises:
        ValueError: a setting that :func:`adapt` refuses, or "hvp" with an inner optimiser, whose
            recursion is another one.

    >>> from mamlnp import Batch, Task, array
    >>> batch = Batch(array([[1.0]]), array([[3.0]]))
    >>> algorithm = MAML(lambda w, b: ((b.x * w - b.y) ** 2).sum(-1), inner_lr=0.25)
    >>> algorithm.gradient(array([1.0]), Task(batch, batch))
    (Array([1.]), Array([-1.]))
    """
    check_steps(inner_steps)
    _check(inner_lr, inner_optimizer)

    def adapted(theta: Tree, support: Batch) -> Tree:
        return adapt(
            loss,
            theta,
            support,
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            first_order=first_order,
            inner_optimizer=inner_optimizer,
        )

    algorithm = through(adapted, loss)
    if not by_products(method):
        return algorithm
    if inner_optimizer is not None:
        raise ValueError(
            "MAML: method 'hvp' is for plain gradient descent, but there is an inner_optimizer. "
            "Pass inner_lr, or use method 'backprop'."
        )

    def gradient(theta: Tree, task: Task) -> tuple[Array, Tree]:
        losses, path = explicit_product(
            loss, theta, task, inner_lr=inner_lr, inner_steps=inner_steps, first_order=first_order
        )
        for _, v in path:  # noqa: B007 (the last is the product)
            pass
        return losses, tree.map(lambda v: sum(v, 0), v)

    return algorithm._replace(gradient=gradient)


def by_products(method: Method) -> bool:
    """Whether the meta-gradient is made of explicit products.

    Raises:
        ValueError: there is no such method.
    """
    if method not in ("backprop", "hvp"):
        raise ValueError(f"method: is {method!r}. Pass 'backprop' or 'hvp'.")
    return method == "hvp"


def explicit_product(
    loss: Loss, params: Tree, task: Task, *, inner_lr: Tree, inner_steps: int, first_order: bool
) -> tuple[Array, Iterator[tuple[Tree, Tree]]]:
    """(I - H_0 alpha P) ... (I - H_{J-1} alpha P) grad L_query(theta_J), from the right (docs,
    equation 4.3), where H_j is the Hessian of the support loss at theta_j over all leaves; first
    order has H_j = 0.

    Returns:
        The query losses (T,), and from step J - 1 down to 0 theta_j with v_{j+1}, the product so
        far; at last params with v_0, the whole product. All have the task axis.
    """
    check_task(task)
    support = total(loss, task.support)
    path = [per_task(params, num_tasks(task.support))]
    for _ in range(inner_steps):
        path.append(descend(path[-1], grad(support)(path[-1]), inner_lr))

    def query(theta: Tree) -> tuple[Array, Array]:
        losses = task_losses(loss, theta, task.query)
        return sum(losses), losses

    (_, losses), v = value_and_grad(query, has_aux=True)(path.pop())

    def backwards(v: Tree) -> Iterator[tuple[Tree, Tree]]:
        alpha = tree.broadcast(inner_lr, v)
        for theta in (tree.map(anew, theta) for theta in reversed(path)):  # no tape was kept
            yield theta, v
            if not first_order:
                v = tree.map(sub, v, hvp(support, theta, tree.map(mul, alpha, v)))
        yield params, v

    return losses, backwards(v)


def meta_loss(
    loss: Loss,
    params: Tree,
    task: Task,
    *,
    inner_lr: Tree = None,
    inner_steps: int = 1,
    first_order: bool = False,
    inner_optimizer: Optimizer | None = None,
) -> Array:
    """Every task's query loss after adaptation, (T,): L_i(theta_i') (Algorithm 1, line 8; docs,
    equation 4.2).

    Arguments and errors are those of :func:`adapt`, for a Task.
    """
    check_task(task)
    adapted = adapt(
        loss,
        params,
        task.support,
        inner_lr=inner_lr,
        inner_steps=inner_steps,
        first_order=first_order,
        inner_optimizer=inner_optimizer,
    )
    return task_losses(loss, adapted, task.query)


def meta_gradient(
    loss: Loss,
    params: Tree,
    task: Task,
    *,
    inner_lr: Tree = None,
    inner_steps: int = 1,
    first_order: bool = False,
    inner_optimizer: Optimizer | None = None,
    method: Method = "backprop",
) -> tuple[Array, Tree]:
    """The gradient by theta of sum_i L_i(theta_i'), through the inner loop.

    Args:
        loss, inner_lr, inner_steps, first_order, inner_optimizer, method: as in :func:`MAML`.
        params: theta.
        task: the meta-batch.

    Returns:
        (query losses (T,), gradient like params).
    """
    algorithm = MAML(
        loss,
        inner_lr=inner_lr,
        inner_steps=inner_steps,
        first_order=first_order,
        inner_optimizer=inner_optimizer,
        method=method,
    )
    return algorithm.gradient(params, task)


def meta_step(
    loss: Loss,
    params: Tree,
    opt_state: dict[str, Any],
    task: Task,
    *,
    optimizer: Optimizer,
    inner_lr: Tree = None,
    inner_steps: int = 1,
    first_order: bool = False,
    inner_optimizer: Optimizer | None = None,
    method: Method = "backprop",
) -> tuple[Tree, dict[str, Any], Array]:
    """The outer loop's update, theta <- theta - beta grad sum_i L_i(theta_i') (line 8), by an
    optimiser.

    Args:
        opt_state: ``optimizer.init(params)``, or what the last step returned.
        optimizer: the outer loop's: ``optim.sgd(beta)`` is the paper's text, ``optim.adam()`` its
            code.
        loss, params, task, inner_lr, inner_steps, first_order, inner_optimizer, method: as in
            :func:`meta_gradient`.

    Returns:
        (new params, new opt_state, query losses (T,)).
    """
    losses, grads = meta_gradient(
        loss,
        params,
        task,
        inner_lr=inner_lr,
        inner_steps=inner_steps,
        first_order=first_order,
        inner_optimizer=inner_optimizer,
        method=method,
    )
    params, opt_state = optimizer.update(params, grads, opt_state)
    return params, opt_state, losses
