"""Model-agnostic meta-learning: Algorithms 1-3 of Finn, Abbeel, Levine 2017.

``loss(params, batch)`` gives one number a task, shape (T,): inputs carry a leading task axis, and
so do the parameters once each task adapts its own copy. A loss written for one task becomes such a
one by :func:`mamlnp.vmap`. Losses are summed over tasks, never averaged, so that alpha means what
it means in the paper.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

from . import tree
from .array import Array
from .autodiff import anew, grad, hvp, stop_gradient, value_and_grad, vjp
from .errors import ShapeError
from .op import as_array, describe
from .ops.elementwise import add, mul, neg, sub, zeros_like
from .ops.reduce import sum
from .ops.shape import broadcast_to
from .optim import Optimizer, check_rate, check_steps
from .tasks import Batch, Task

Tree = Any
Loss = Callable[[Tree, Any], Array]  # (params, a batch of each task) -> (T,)
Method = Literal["backprop", "hvp"]


class _Watched(threading.local):
    """What is called with every loss, params and batch in this thread (see mamlnp.debug_tasks)."""

    check: Callable[[Loss, Tree, Tree], None] | None = None


watched = _Watched()


def num_tasks(batch: Tree) -> int:
    """The length of the task axis, which every leaf has in front."""
    return tree.leaves(batch)[0].shape[0]


def task_losses(loss: Loss, params: Tree, batch: Tree) -> Array:
    """One loss a task, (T,).

    Raises:
        ShapeError: the loss is of another shape. A mean over tasks would divide alpha by T.
    """
    losses, tasks = as_array(loss(params, batch)), num_tasks(batch)
    if losses.shape != (tasks,):
        raise ShapeError(
            f"loss: returned {describe(losses)} for {tasks} tasks, not shape ({tasks},). "
            "Reduce over each task's examples only (tasks are summed here), or write the loss for "
            "one task and pass ml.vmap(loss)."
        )
    if watched.check is not None:
        watched.check(loss, params, batch)
    return losses


def total(loss: Loss, batch: Tree) -> Callable[[Tree], Array]:
    """sum_i L_i as a function of the parameters."""
    return lambda params: sum(task_losses(loss, params, batch))


def per_task(params: Tree, tasks: int) -> Tree:
    """theta once for every task: each leaf (...) becomes (T, ...), so that the gradient of the
    summed losses at this copy is each task's own."""
    return tree.map(lambda p: broadcast_to(p, (tasks, *p.shape)), tree.map(as_array, params))


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
    if (inner_lr is None) == (inner_optimizer is None):
        raise ValueError(
            f"adapt: inner_lr is {inner_lr!r} and inner_optimizer {inner_optimizer!r}. "
            "Pass exactly one of them."
        )
    if isinstance(support, Task):
        raise TypeError(
            "adapt: support is a Task, not a Batch. Pass its support set, task.support."
        )
    check_rate(inner_lr)
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


def adapt(loss: Loss, params: Tree, support: Batch, *, inner_steps: int = 1, **how: Any) -> Tree:
    """theta', after some steps of the inner loop.

    Args:
        loss: (params, batch) -> (T,).
        params: theta; no leaf has the task axis yet.
        support: each task's examples, every leaf (T, ...).
        inner_steps: how many.
        how: ``inner_lr``: alpha, a number or a tree of numbers and Arrays, one for each leaf or
            subtree of params; a leaf whose alpha is the number 0 is meta-learned but not adapted.
            ``inner_optimizer``: an optimiser with state, instead. ``first_order``: treat every
            inner gradient as a constant.

    Returns:
        theta', a tree like params with every leaf (T, ...).

    Raises:
        ShapeError: the loss is not of shape (T,).
        TypeError: support is a Task.
        ValueError: there is not exactly one of inner_lr and inner_optimizer, a number in inner_lr
            is negative, or inner_steps is.
    """
    check_steps(inner_steps)
    return next(itertools.islice(inner_loop(loss, params, support, **how), inner_steps, None))


def meta_loss(loss: Loss, params: Tree, task: Task, **inner: Any) -> Array:
    """Every task's query loss after adaptation, (T,): L_i(theta_i') (Algorithm 1, line 8; docs,
    equation 4.2)."""
    _check_task(task)
    theta = adapt(loss, params, task.support, **inner)
    return task_losses(loss, theta, task.query)


def _check_task(task: Any) -> None:
    if isinstance(task, Batch):
        raise TypeError("meta_loss: task is a Batch, not a Task. Pass Task(support, query).")


def meta_gradient(
    loss: Loss,
    params: Tree,
    task: Task,
    *,
    method: Method = "backprop",
    learn_inner_lr: bool = False,
    **inner: Any,
) -> tuple[Array, Tree]:
    """The gradient by theta of sum_i L_i(theta_i'), through the inner loop.

    Args:
        loss, params: as in :func:`adapt`.
        task: the meta-batch.
        method: "backprop" goes back through the inner loop's operations; "hvp" multiplies by
            (I - H_j alpha P), one exact Hessian-vector product a step, and keeps no tape across
            steps. The two agree to rounding.
        learn_inner_lr: differentiate by inner_lr too (docs, equation 4.4), where numbers take
            params' type.
        inner: as in :func:`adapt`.

    Returns:
        (query losses (T,), gradient like params), or with learn_inner_lr (losses, (gradient by
        params, gradient by inner_lr)).

    Raises:
        ValueError: "hvp" with an inner optimiser, whose recursion is another one; or there is no
            inner_lr to learn.
    """
    if learn_inner_lr:
        inner["inner_lr"] = learnable(inner.get("inner_lr"), params)
    if method == "hvp":
        return _explicit_product(loss, params, task, learn_inner_lr=learn_inner_lr, **inner)
    if method != "backprop":
        raise ValueError(f"meta_gradient: method {method!r}. Pass 'backprop' or 'hvp'.")

    def objective(meta: Tree) -> tuple[Array, Array]:
        if learn_inner_lr:
            theta, alpha = meta
            losses = meta_loss(loss, theta, task, **{**inner, "inner_lr": alpha})
        else:
            losses = meta_loss(loss, meta, task, **inner)
        return sum(losses), losses

    at = (params, inner["inner_lr"]) if learn_inner_lr else params
    (_, losses), grads = value_and_grad(objective, has_aux=True)(at)
    return losses, grads


def learnable(inner_lr: Tree, params: Tree) -> Tree:
    """inner_lr with its numbers as Arrays, which can be differentiated by."""
    if inner_lr is None:
        raise ValueError(
            "meta_gradient: learn_inner_lr is on but there is no inner_lr. Pass one to start from."
        )
    zero = zeros_like(as_array(tree.leaves(params)[0])).sum()  # of params' type, where they are
    return tree.map(lambda a: zero + a if isinstance(a, int | float) else a, inner_lr)


def _explicit_product(
    loss: Loss,
    params: Tree,
    task: Task,
    *,
    learn_inner_lr: bool,
    inner_lr: Tree = None,
    inner_steps: int = 1,
    first_order: bool = False,
    inner_optimizer: Optimizer | None = None,
) -> tuple[Array, Tree]:
    """(I - H_0 alpha P) ... (I - H_{J-1} alpha P) grad L_query(theta_J), from the right (docs,
    equation 4.3).

    H_j is the Hessian of the support loss at theta_j over all leaves; first order has H_j = 0.
    """
    if inner_optimizer is not None or inner_lr is None:
        raise ValueError(
            "meta_gradient: method 'hvp' is for plain gradient descent, but there is an "
            "inner_optimizer or no inner_lr. Pass inner_lr, or use method 'backprop'."
        )
    _check_task(task)
    check_steps(inner_steps)
    check_rate(inner_lr)
    support = total(loss, task.support)
    path = [per_task(params, num_tasks(task.support))]
    for _ in range(inner_steps):
        path.append(descend(path[-1], grad(support)(path[-1]), inner_lr))

    def query(theta: Tree) -> tuple[Array, Array]:
        losses = task_losses(loss, theta, task.query)
        return sum(losses), losses

    (_, losses), v = value_and_grad(query, has_aux=True)(path.pop())
    alpha = tree.broadcast(inner_lr, v)
    alpha_grads = tree.map(zeros_like, v)
    for theta in (tree.map(anew, theta) for theta in reversed(path)):  # no tape was kept
        if learn_inner_lr:
            step = tree.map(lambda g, v: neg(mul(g, v)), grad(support)(theta), v)
            alpha_grads = tree.map(add, alpha_grads, step)
        if not first_order:
            scaled = tree.map(mul, alpha, v)
            v = tree.map(sub, v, hvp(support, theta, scaled))
    grads = tree.map(lambda v: sum(v, 0), v)
    if not learn_inner_lr:
        return losses, grads

    def spread(inner_lr: Tree) -> Tree:
        alpha = tree.broadcast(inner_lr, v)
        return tree.map(lambda a, v: broadcast_to(a, v.shape), alpha, v)

    # The transpose of broadcasting, which is linear, is its pullback.
    return losses, (grads, vjp(spread, inner_lr)[1](alpha_grads)[0])


def meta_step(
    loss: Loss,
    params: Tree,
    opt_state: dict[str, Any],
    task: Task,
    *,
    optimizer: Optimizer,
    **how: Any,
) -> tuple[Tree, dict[str, Any], Array]:
    """The outer loop's update, theta <- theta - beta grad sum_i L_i(theta_i') (line 8), by an
    optimiser.

    Args:
        opt_state: ``optimizer.init(params)``, or what the last step returned.
        optimizer: the outer loop's: ``optim.sgd(beta)`` is the paper's text, ``optim.adam()`` its
            code.
        how: as in :func:`meta_gradient`.

    Returns:
        (new params, new opt_state, query losses (T,)).
    """
    losses, grads = meta_gradient(loss, params, task, **how)
    params, opt_state = optimizer.update(params, grads, opt_state)
    return params, opt_state, losses
