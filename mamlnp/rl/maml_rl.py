"""MAML for reinforcement learning: Algorithm 3 of Finn, Abbeel, Levine 2017.

The inner loop descends the REINFORCE loss of the episodes that theta's policy had; the outer one
the likelihood-ratio surrogate of the episodes that the adapted policies had, through the inner
update, within a trust region of their mean divergence. Losses are one number a task, (T,); over
tasks there are means, so that the trust region does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import parallel, tree
from ..array import Array, array
from ..autodiff import grad, hvp, jvp, stop_gradient, value_and_grad, vjp
from ..backend import to_host
from ..meta import maml, num_tasks, per_task, total
from ..ops.elementwise import exp, mul, neg
from ..ops.reduce import sum
from ..ops.shape import concatenate
from ..optim import Optimizer
from ..ranks import Ranks
from .distributions import Distribution
from .policy import Policy
from .rollout import Experience, Sampler, Transitions
from .trpo import Report, trust_region_step

Params = Any


class Query(NamedTuple):
    """The adapted policies' episodes, and those policies as they were.

    Attributes:
        experience: from them.
        old: their distributions at its observations.
    """

    experience: Experience
    old: Distribution


class Episodes(NamedTuple):
    """A meta-batch of tasks.

    Attributes:
        support: for every inner step the episodes it learns from.
        query: those of the policies after the last.
    """

    support: tuple[Experience, ...]
    query: Query


@dataclass(frozen=True)
class MetaPolicy:
    """The functions of theta that Algorithm 3 is made of.

    Attributes:
        policy: what theta parametrises.
        inner_lr: alpha.
        first_order: treat every inner gradient as a constant.
        sampling_term: give the inner loss's second derivative the part for the sampling too, which
            the paper's meta-gradient lacks (docs, equation 7.7).
    """

    policy: Policy
    inner_lr: float
    first_order: bool = False
    sampling_term: bool = False

    def reinforce(self, params: Params, batch: Experience) -> Array:
        """Each task's -mean(log pi(a | o) A), (T,) (docs, equation 7.3): the paper's equation 4 in
        the form whose gradient is the policy gradient, equation 7.2 (Williams 1992). Its second
        derivative has no part for the sampling, equation 7.7.

        With ``sampling_term`` it is -mean(pi(a | o) / stop(pi(a | o)) A), which has it (docs,
        equation 7.8; the low variance curvature estimator of Rothfuss et al. 2019): another value,
        the same gradient."""
        chosen = self.policy.distribution(params, batch.observations).log_prob(batch.actions)
        if self.sampling_term:
            chosen = exp(chosen - stop_gradient(chosen))
        return neg(sum(mul(batch.weights, batch.advantages) * chosen, -1))

    def descend(self, params: Params, batch: Experience, *, lr: Any = None) -> Params:
        """theta' = theta - alpha grad L(theta) for every task's own theta (line 7; docs,
        equation 7.4)."""
        here = stop_gradient(params) if self.first_order else params
        grads = grad(total(self.reinforce, batch))(here)
        return maml.descend(params, grads, self.inner_lr if lr is None else lr)

    def adapt(self, params: Params, support: tuple[Experience, ...], tasks: int) -> Params:
        """Every task's theta' after as many inner steps as there are batches."""
        theta = per_task(params, tasks)
        for batch in support:
            theta = self.descend(theta, batch)
        return theta

    def adapted(self, params: Params, task: Episodes) -> Distribution:
        """The adapted policies at the query's observations."""
        adapted = self.adapt(params, task.support, num_tasks(task))
        return self.policy.distribution(adapted, task.query.experience.observations)

    def surrogate(self, params: Params, task: Episodes) -> tuple[Array, Array]:
        """Each task's -mean(pi_theta'(a | o) / pi_old(a | o) A) and its mean KL(old || theta'),
        (T,) both (Schulman et al. 2015, their equation 14; docs, equation 7.5 and
        equation 7.9)."""
        return self._surrogate(self.adapted(params, task), task)

    def _surrogate(self, new: Distribution, task: Episodes) -> tuple[Array, Array]:
        batch, old = task.query
        ratio = exp(new.log_prob(batch.actions) - old.log_prob(batch.actions))
        loss = neg(sum(mul(batch.weights, batch.advantages) * ratio, -1))
        return loss, sum(mul(batch.weights, old.kl(new)), -1)

    def meta_gradient(self, params: Params, task: Episodes) -> tuple[Array, Params]:
        """The losses (T,), and the gradient by theta of their sum, through the inner loop (docs,
        equation 7.6)."""

        def objective(theta: Params) -> tuple[Array, Array]:
            losses, _ = self.surrogate(theta, task)
            return sum(losses), losses

        (_, losses), grads = value_and_grad(objective, has_aux=True)(params)
        return losses, grads

    def divergence_product(self, at: tuple[Params, Params], task: Episodes) -> Params:
        """H v, H the Hessian of the tasks' summed mean KL(old || theta'), where old is theta'.

        There the divergence has its minimum, so that H is exactly J' M J (docs, equation 7.10): J
        is the derivative of the adapted policies by theta, through the inner update, and M is the
        Fisher information of their distributions. No third derivative is in it.

        Args:
            at: theta and v.
            task: the meta-batch.
        """
        params, vector = at
        weights = task.query.experience.weights

        def adapted(theta: Params) -> Distribution:
            return self.adapted(theta, task)

        new, tangent = jvp(adapted, (params,), (vector,))
        _, pullback = vjp(adapted, params)
        return pullback(new.fisher_product(tangent, weights))[0]

    def divergence_hvp(self, at: tuple[Params, Params], task: Episodes) -> Params:
        """The same H v twice backward through the divergence, wherever theta is: third derivatives
        of the policy and all. The specification of :meth:`divergence_product`."""
        params, vector = at
        return hvp(lambda theta: sum(self.surrogate(theta, task)[1]), params, vector)


class Update(NamedTuple):
    """What a meta-update did.

    Attributes:
        params: the new theta.
        state: of the outer loop's optimiser.
        report: of the trust region; None for a plain step, and where there was none.
        left_out: how many tasks it knows nothing of, because their gradients were not finite.
    """

    params: Params
    state: Any
    report: Report | None = None
    left_out: int = 0


class Learner:
    """Lines 7 and 10 of Algorithm 3 for a whole meta-batch, over threads, a task at a time.

    Args:
        meta: the functions of theta.
        optimizer: of a plain meta-update; without one it is a trust region's.
        max_divergence: the trust region: mean KL of the adapted policies, in nats.
        curvature_tasks: how many of the tasks the divergence's Hessian is taken from, which decides
            the first step tried; whether one is taken is decided on all. All if not given.
        discount: of the advantages.
        gae_lambda: of the advantages that the meta-update learns from.
        inner_gae_lambda: of those that inner steps learn from; gae_lambda if not given. Short of 1
            a step has less of the episodes' chance, and what it is biased by, the meta-update sees.
        threads: how many run at once; as many as there are cores if not given.
        compiled: replay plans instead of running operation by operation.
        check: hold the first replay of every plan against one task run eagerly.
        ranks: the processes that share each meta-batch; each is given its own tasks, and all come
            to the same theta.
    """

    def __init__(
        self,
        meta: MetaPolicy,
        *,
        optimizer: Optimizer | None = None,
        max_divergence: float = 0.01,
        curvature_tasks: int | None = None,
        discount: float = 0.99,
        gae_lambda: float = 1.0,
        inner_gae_lambda: float | None = None,
        threads: int | None = None,
        compiled: bool = True,
        check: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        def over(f: Callable[..., Any]) -> Callable[[Any, Any], list[Any]]:
            return parallel.over_tasks(f, threads=threads, compiled=compiled, check=check)

        self.meta, self._optimizer, self._max_divergence = meta, optimizer, max_divergence
        self._ranks = ranks or Ranks()
        self._curvature_tasks = curvature_tasks and max(1, curvature_tasks // self._ranks.size)
        self._discount, self._lambda = discount, gae_lambda
        self._inner_lambda = gae_lambda if inner_gae_lambda is None else inner_gae_lambda
        self._adapted = over(lambda lr, task: meta.descend(*task, lr=lr))
        self._acting = over(lambda _, task: meta.policy.distribution(*task))
        self._surrogate = over(meta.surrogate)
        self._gradient = over(meta.meta_gradient)
        self._product = over(meta.divergence_product)

    def support(self, episodes: Transitions) -> Experience:
        """What an inner step learns from episodes."""
        return episodes.experience(discount=self._discount, gae_lambda=self._inner_lambda)

    def query(self, episodes: Transitions) -> Experience:
        """What the meta-update learns from episodes."""
        return episodes.experience(discount=self._discount, gae_lambda=self._lambda)

    def adapt(self, params: Params, batch: Experience, lr: float | None = None) -> Params:
        """Every task's own theta after one inner step (line 7), leaves (T, ...)."""
        alpha = array(np.float32(self.meta.inner_lr if lr is None else lr))
        return _joined(self._adapted(alpha, (params, batch)))

    def acting(self, params: Params, batch: Experience) -> Distribution:
        """The distributions that every task's own theta has at the observations."""
        return _joined(self._acting((), (params, batch.observations)))

    def update(self, params: Params, state: Any, task: Episodes) -> Update:
        """theta after the meta-update (line 10), on the tasks whose gradients are finite: one whose
        inner step diverged must not stop the others."""
        gradients = [flat(grads) for _, grads in self._gradient(params, task)]
        finite = [i for i, gradient in enumerate(gradients) if np.isfinite(gradient).all()]
        counts = self._ranks.gathered((len(finite), len(gradients) - len(finite)))
        known, left_out = (int(n) for n in np.sum(counts, axis=0))
        if not known:
            return Update(params, state, None, left_out)
        if len(finite) < len(gradients):
            task = tree.map(lambda leaf: leaf[finite], task)

        def mean(found: Iterable[np.ndarray], size: int = len(gradients[0])) -> np.ndarray:
            every = np.array(list(found)).reshape(-1, size)
            total, count = self._ranks.total([every.sum(0), np.array([len(every)], np.float64)])
            return total / count

        gradient = mean(gradients[i] for i in finite)
        if self._optimizer is not None:
            stepped = self._optimizer.update(params, like(params, gradient), state)
            return Update(*stepped, None, left_out)

        some = tree.map(lambda leaf: leaf[: self._curvature_tasks], task)

        def product(vector: np.ndarray) -> np.ndarray:
            at = (params, like(params, vector))
            return mean(map(flat, self._product(at, some) if finite else ()))

        def evaluate(theta: np.ndarray) -> tuple[float, float]:
            found = self._surrogate(like(params, theta), task) if finite else ()
            loss, divergence = mean(map(flat, found), 2)
            return float(loss), float(divergence)

        theta, report = trust_region_step(
            flat(params), gradient, product, evaluate, max_divergence=self._max_divergence
        )
        new = like(params, theta) if report.accepted else params
        return Update(new, state, report, left_out)


def flat(params: Any) -> np.ndarray:
    """All numbers of a tree in one float64 vector."""
    leaves = [to_host(leaf.value).ravel() for leaf in tree.leaves(params)]
    return np.concatenate(leaves, dtype=np.float64)


def like(params: Params, vector: np.ndarray) -> Params:
    """The tree with a vector's numbers, in the types of params."""
    leaves = tree.leaves(params)
    parts = np.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = (
        array(part.reshape(leaf.shape).astype(leaf.dtype))
        for part, leaf in zip(parts, leaves, strict=True)
    )
    return tree.unflatten(params, shaped)


def _joined(parts: list[Any]) -> Any:
    """The results of all chunks, task after task."""
    return tree.map(lambda *leaves: concatenate(leaves), *parts) if len(parts) > 1 else parts[0]


def inner_loop(
    learner: Learner,
    sampler: Sampler,
    params: Params,
    tasks: np.ndarray,
    *,
    lrs: Sequence[float],
    rng: np.random.Generator,
) -> tuple[list[Transitions], Params]:
    """Algorithm 3, lines 5 to 7: from theta, every task takes one step after another, each on
    episodes of its own.

    Args:
        learner: makes the steps.
        sampler: gives a policy's episodes.
        params: theta.
        tasks: (T, task size).
        lrs: alpha of every step.
        rng: of the episodes.

    Returns:
        The episodes before each step, and every task's theta after the last, leaves (T, ...).
    """
    thetas, episodes = own_copies(params, len(tasks)), list[Transitions]()
    for lr in lrs:
        episodes.append(sampler.sample(thetas, tasks, rng=rng))  # line 5
        thetas = learner.adapt(thetas, learner.support(episodes[-1]), lr)  # lines 6 and 7
    return episodes, thetas


def meta_step(
    learner: Learner,
    sampler: Sampler,
    params: Params,
    state: Any,
    tasks: np.ndarray,
    *,
    inner_steps: int,
    rng: np.random.Generator,
) -> tuple[Update, list[Transitions]]:
    """One iteration of Algorithm 3.

    Args:
        learner: the inner and the outer update.
        sampler: gives a policy's episodes.
        params: theta.
        state: of a plain meta-update's optimiser.
        tasks: (T, task size) (line 3).
        inner_steps: how many.
        rng: of the episodes.

    Returns:
        The update, and the episodes before every inner step and after the last.
    """
    lrs = [learner.meta.inner_lr] * inner_steps
    before, thetas = inner_loop(learner, sampler, params, tasks, lrs=lrs, rng=rng)
    after = sampler.sample(thetas, tasks, rng=rng)  # line 8
    batch = learner.query(after)
    query = Query(batch, learner.acting(thetas, batch))
    support = tuple(map(learner.support, before))
    return learner.update(params, state, Episodes(support, query)), [*before, after]  # line 10


def own_copies(params: Params, tasks: int) -> Params:
    """theta once for every task, as memory of its own: leaves (T, ...)."""

    def copies(leaf: Array) -> Array:
        value = to_host(leaf.value)
        return array(np.broadcast_to(value, (tasks, *value.shape)).copy())

    return tree.map(copies, params)
