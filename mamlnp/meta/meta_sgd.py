"""Meta-SGD (Li, Zhou, Chen, Li 2017): alpha is meta-learned beside theta."""

from __future__ import annotations

from .. import tree
from ..array import Array
from ..autodiff import grad, vjp
from ..op import as_array
from ..ops.elementwise import add, mul, neg, zeros_like
from ..ops.reduce import sum
from ..ops.shape import broadcast_to
from ..optim import check_rate, check_steps
from ..tasks import Batch, Task
from .algorithm import Algorithm, Loss, Tree, through, total
from .maml import Method, adapt, by_products, explicit_product


def MetaSGD(  # noqa: N802 (an algorithm's name)
    loss: Loss,
    *,
    inner_lr: float,
    inner_steps: int = 1,
    first_order: bool = False,
    method: Method = "backprop",
) -> Algorithm:
    """theta' = theta - alpha o grad L_i(theta), with theta and alpha both learned (their equation
    1; docs, equation 4.4). meta is {"params": theta, "inner_lr": alpha}.

    Args:
        loss: (params, batch) -> (T,).
        inner_lr: every number of alpha before training. alpha is of theta's shape then; a meta of
            your own may have one number for a leaf or a subtree instead.
        inner_steps, first_order, method: as in :func:`mamlnp.meta.MAML`.

    Raises:
        ValueError: inner_steps is below 1: no alpha would be learned.

    >>> from mamlnp import array
    >>> algorithm = MetaSGD(lambda w, b: ((b.x * w - b.y) ** 2).sum(-1), inner_lr=0.25)
    >>> algorithm.init(array([1.0]))
    {'params': Array([1.]), 'inner_lr': Array([0.25])}
    """
    check_steps(inner_steps, least=1)
    check_rate(inner_lr)

    def init(theta: Tree) -> Tree:
        alpha = tree.map(lambda p: zeros_like(as_array(p)) + inner_lr, theta)
        return {"params": theta, "inner_lr": alpha}

    def adapted(meta: Tree, support: Batch) -> Tree:
        return adapt(
            loss,
            meta["params"],
            support,
            inner_lr=meta["inner_lr"],
            inner_steps=inner_steps,
            first_order=first_order,
        )

    def gradient(meta: Tree, task: Task) -> tuple[Array, Tree]:
        """The same by explicit products; step j adds -g_j o v_{j+1} to alpha's gradient."""
        losses, path = explicit_product(
            loss,
            meta["params"],
            task,
            inner_lr=meta["inner_lr"],
            inner_steps=inner_steps,
            first_order=first_order,
        )
        *steps, (_, v) = path
        alpha_grads = tree.map(zeros_like, v)
        for theta, after in steps:
            grads = grad(total(loss, task.support))(theta)
            step = tree.map(lambda g, v: neg(mul(g, v)), grads, after)
            alpha_grads = tree.map(add, alpha_grads, step)

        def spread(inner_lr: Tree) -> Tree:
            return tree.map(lambda a, v: broadcast_to(a, v.shape), tree.broadcast(inner_lr, v), v)

        # The transpose of broadcasting, which is linear, is its pullback.
        alpha_grads = vjp(spread, meta["inner_lr"])[1](alpha_grads)[0]
        return losses, {"params": tree.map(lambda v: sum(v, 0), v), "inner_lr": alpha_grads}

    algorithm = through(adapted, loss)._replace(init=init)
    return algorithm._replace(gradient=gradient) if by_products(method) else algorithm
