"""What every algorithm has, and what they share: losses of one number a task, summed over tasks.

``loss(params, batch)`` gives one number a task, shape (T,): inputs carry a leading task axis, and
so do the parameters once each task adapts its own copy. A loss written for one task becomes such a
one by :func:`mamlnp.vmap`. Losses are summed over tasks, never averaged, so that alpha means what
it means in the paper.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import tree
from ..array import Array
from ..autodiff import value_and_grad
from ..errors import ShapeError
from ..op import as_array, describe
from ..ops.reduce import sum
from ..ops.shape import broadcast_to
from ..optim import Optimizer
from ..tasks import Batch, Task

Tree = Any
Meta = Any
Loss = Callable[[Tree, Any], Array]  # (params, a batch of each task) -> (T,)
Adapt = Callable[[Meta, Any], Tree]
Gradient = Callable[[Meta, Any], tuple[Array, Meta]]


class Algorithm(NamedTuple):
    """A way to learn to learn.

    ``meta`` is a tree of all that one meta-step hands to the next: theta, or a dict of theta and
    other parts. A part may be learned by gradient, as the rates of :mod:`.meta_sgd` are. It may
    also be a state that tasks propose anew, such as a moment, or how far the training is: its
    gradient is then the old value minus each task's new one, and ``optimizer`` moves it by
    :func:`mamlnp.optim.sgd` of 1 / T, to the mean of what T tasks proposed. So it is summed over
    chunks, threads and processes, and kept in checkpoints, like all of meta.

    Attributes:
        adapt: (meta, support) -> what each task has learned, every leaf (T, ...): parameters, or a
            memory of the examples.
        loss: (what was learned, batch) -> one number a task, (T,).
        gradient: (meta, task) -> (query losses (T,), the sum over tasks of their gradients, a tree
            like meta).
        init: theta -> meta, before any meta-step.
        optimizer: (the outer loop's optimiser of theta, T) -> that of meta.
    """

    adapt: Adapt
    loss: Loss
    gradient: Gradient
    init: Callable[[Tree], Meta] = lambda theta: theta
    optimizer: Callable[[Optimizer, int], Optimizer] = lambda optimizer, tasks: optimizer


def through(adapt: Adapt, loss: Loss) -> Algorithm:
    """The algorithm whose gradient goes back through everything that ``adapt`` does."""

    def gradient(meta: Meta, task: Task) -> tuple[Array, Meta]:
        check_task(task)

        def objective(meta: Meta) -> tuple[Array, Array]:
            losses = task_losses(loss, adapt(meta, task.support), task.query)
            return sum(losses), losses

        (_, losses), grads = value_and_grad(objective, has_aux=True)(meta)
        return losses, grads

    return Algorithm(adapt, loss, gradient)


# ---- tasks


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


def check_task(task: Any) -> None:
    """Refuse one set of examples where two are needed.

    Raises:
        TypeError: it is a Batch.
    """
    if isinstance(task, Batch):
        raise TypeError("meta_loss: task is a Batch, not a Task. Pass Task(support, query).")
