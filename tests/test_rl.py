"""The mathematics of policy-gradient MAML, against closed forms, loops and finite differences."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mamlnp import array, check_grads, maml, meta, tree
from mamlnp.autodiff import grad, hvp, stop_gradient
from mamlnp.errors import ShapeError
from mamlnp.ops.elementwise import exp
from mamlnp.ops.reduce import sum as total
from mamlnp.rl import advantages
from mamlnp.rl.distributions import Categorical, Gaussian
from mamlnp.rl.envs import ENVIRONMENTS
from mamlnp.rl.envs.simulations import Step
from mamlnp.rl.maml_rl import (
    Episodes,
    Learner,
    MetaPolicy,
    Query,
    flat,
    like,
    meta_step,
    per_task,
)
from mamlnp.rl.policy import Policy
from mamlnp.rl.rollout import Experience, Sampler, Transitions
from mamlnp.rl.trpo import conjugate_gradient, trust_region_step

POLICY = Policy(3, 2, hidden=(5, 4))
T, N = 2, 7


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaussian(seed: int, *shape: int) -> Gaussian:
    mean, log_std = rng(seed).normal(size=shape), 0.3 * rng(seed + 1).normal(size=shape[-1])
    return Gaussian(array(mean), array(log_std))


def experience(seed: int, dtype: Any = np.float64, counted: int = N) -> Experience:
    draw = rng(seed)
    weights = np.zeros((T, N))
    weights[:, :counted] = 1 / counted
    leaves = (
        draw.normal(size=(T, N, 3)),
        draw.normal(size=(T, N, 2)),
        draw.normal(size=(T, N)),
        weights,
    )
    return Experience(*(leaf.astype(dtype) for leaf in leaves))


def params_of(seed: int = 3, dtype: Any = np.float64) -> Any:
    """With a standard deviation that is not 1, and biases that are not 0."""
    params = POLICY.init(rng=rng(seed), dtype=dtype)
    return tree.map(
        lambda p: array(p.numpy() + 0.1 * rng(9).normal(size=p.shape).astype(dtype)), params
    )


def episodes(meta: MetaPolicy, params: Any, inner_steps: int = 1, **how: Any) -> Episodes:
    """Support and query of T tasks, the query's old policies those adapted from params."""
    support = tuple(experience(10 + j, **how) for j in range(inner_steps))
    batch = experience(20, **how)
    adapted = meta.adapt(params, support, T)
    return Episodes(support, Query(batch, POLICY.distribution(adapted, batch.observations)))


# ---- the Gaussian


def test_log_probability_in_closed_form() -> None:
    policy, actions = gaussian(0, 6, 2), rng(5).normal(size=(6, 2))
    std = np.exp(policy.log_std.numpy())
    density = np.exp(-0.5 * ((actions - policy.mean.numpy()) / std) ** 2)
    density /= std * np.sqrt(2 * np.pi)
    np.testing.assert_allclose(policy.log_prob(actions).numpy(), np.log(density).sum(-1))


def test_divergence_is_the_mean_log_ratio() -> None:
    old, new = gaussian(0, 1, 2), gaussian(4, 1, 2)
    actions = old.mean.numpy() + np.exp(old.log_std.numpy()) * rng(7).normal(size=(400_000, 2))
    ratio = (old.log_prob(actions) - new.log_prob(actions)).numpy()
    assert old.kl(new).numpy()[0] == pytest.approx(ratio.mean(), abs=4 * ratio.std() / 632)
    assert old.kl(old).numpy()[0] == pytest.approx(0, abs=1e-15)


def categorical(seed: int, *shape: int) -> Categorical:
    return Categorical(array(rng(seed).normal(size=shape)))


@pytest.mark.parametrize("make", [gaussian, categorical])
def test_fisher_information_is_the_divergences_hessian(make: Any) -> None:
    policy, tangent, weights = make(0, 4, 3), make(4, 4, 3), rng(1).uniform(size=4)
    h = 1e-4

    def gradient(by: float) -> Any:
        at = type(policy)(*(p + by * t for p, t in zip(policy, tangent, strict=True)))
        return grad(lambda new: total(policy.kl(new) * weights))(at)

    product = policy.fisher_product(tangent, weights)
    for up, down, exact in zip(gradient(h), gradient(-h), product, strict=True):
        np.testing.assert_allclose((up - down).numpy() / (2 * h), exact.numpy(), rtol=1e-5)


def test_a_categorical_distribution_in_closed_form() -> None:
    old, new = categorical(0, 5, 3), categorical(1, 5, 3)
    p, q = (
        np.exp(x.logits.numpy()) / np.exp(x.logits.numpy()).sum(-1, keepdims=True)
        for x in (old, new)
    )
    actions = np.array([[0.0], [2.0], [1.0], [1.0], [0.0]])
    chosen = np.take_along_axis(p, actions.astype(int), -1)[:, 0]
    np.testing.assert_allclose(old.log_prob(actions).numpy(), np.log(chosen))
    np.testing.assert_allclose(old.kl(new).numpy(), (p * np.log(p / q)).sum(-1))
    many = Categorical(array(np.broadcast_to(old.logits.numpy()[0], (100_000, 3))))
    counts = np.bincount(many.sample(rng(2))[:, 0].astype(int)) / 100_000
    np.testing.assert_allclose(counts, p[0], atol=0.01)
    np.testing.assert_array_equal(old.mode()[:, 0], p.argmax(-1))


def test_policies_of_discrete_actions_learn_through_the_inner_step() -> None:
    """Algorithm 3 with a categorical policy: the product of the divergence's Hessian is exact."""
    policy = Policy(3, 4, hidden=(5,), kind=Categorical)
    params, meta = policy.init(rng=rng(), dtype=np.float64), MetaPolicy(policy, 0.3)
    assert "log_std" not in params

    def experience(seed: int) -> Experience:
        draw = rng(seed)
        actions = draw.integers(0, 4, (2, 6, 1)).astype(float)
        return Experience(
            draw.normal(size=(2, 6, 3)), actions, draw.normal(size=(2, 6)), np.full((2, 6), 1 / 6)
        )

    support, batch = experience(1), experience(2)
    adapted = meta.adapt(params, (support,), 2)
    old = stop_gradient(policy.distribution(adapted, batch.observations))
    task = Episodes((support,), Query(batch, old))
    vector = tree.map(lambda p: array(rng(3).normal(size=p.shape)), params)
    exact, product = (
        f((params, vector), task) for f in (meta.divergence_hvp, meta.divergence_product)
    )
    np.testing.assert_allclose(flat(product), flat(exact), rtol=1e-8, atol=1e-12)
    assert check_grads(lambda p: meta.surrogate(p, task)[0], [params]).error() < 1e-5


def test_the_policy_begins_with_standard_deviation_one() -> None:
    params = POLICY.init(rng=rng())
    assert not params["log_std"].numpy().any()
    assert params["linear1"]["w"].shape == (3, 5) and not params["linear3"]["b"].numpy().any()


# ---- returns, baseline, advantages


def lanes(seed: int = 0, shape: tuple[int, int, int] = (2, 3, 12)) -> tuple[np.ndarray, np.ndarray]:
    """Values, and where episodes end, in every lane at its last step too."""
    ends = rng(seed).random(shape) < 0.25
    ends[..., -1] = True
    return rng(seed + 1).normal(size=shape), ends


@given(seed=st.integers(0, 1000), discount=st.sampled_from([0.0, 0.9, 1.0]))
def test_discounted_sums_stop_at_the_ends_of_episodes(seed: int, discount: float) -> None:
    values, ends = lanes(seed)
    found = advantages.discounted(values, ends, discount)
    for where in np.ndindex(*values.shape):
        expected, weight = 0.0, 1.0
        for t in range(where[2], values.shape[2]):
            expected += weight * values[(*where[:2], t)]
            weight *= discount
            if ends[(*where[:2], t)]:
                break
        assert found[where] == pytest.approx(expected, abs=1e-12)


def test_with_lambda_one_an_advantage_is_return_less_value() -> None:
    rewards, ends = lanes()
    values = rng(8).normal(size=rewards.shape)
    found = advantages.generalised(rewards, values, ends, 0.9, 1.0)
    np.testing.assert_allclose(found, advantages.discounted(rewards, ends, 0.9) - values)


def test_with_lambda_zero_an_advantage_is_one_temporal_difference() -> None:
    rewards, ends = lanes()
    values = rng(8).normal(size=rewards.shape)
    found = advantages.generalised(rewards, values, ends, 0.9, 0.0)
    for lane in np.ndindex(*rewards.shape[:2]):
        for t in range(rewards.shape[2]):
            after = 0.0 if ends[(*lane, t)] else values[(*lane, t + 1)]
            expected = rewards[(*lane, t)] + 0.9 * after - values[(*lane, t)]
            assert found[(*lane, t)] == pytest.approx(expected)


def test_the_features_of_the_baseline() -> None:
    observations = np.full((2, 1), 20.0, np.float32)
    found = advantages.features(observations, np.array([0, 50]))
    np.testing.assert_allclose(found, [[10, 100, 0, 0, 0, 1], [10, 100, 0.5, 0.25, 0.125, 1]])


def test_the_baseline_is_least_squares_on_the_steps_that_count() -> None:
    inputs, weight = rng().normal(size=(40, 4)), rng(1).normal(size=4)
    returns, counts = inputs @ weight, np.arange(40) < 30
    returns[30:] = 1e6  # must not be seen
    found = advantages.fitted(inputs, returns, counts)
    np.testing.assert_allclose(found[:30], returns[:30], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[30:], inputs[30:] @ weight, rtol=1e-4, atol=1e-4)


def test_every_task_has_a_baseline_of_its_own() -> None:
    observations, times = rng().normal(size=(3, 2, 5, 1)), np.tile(np.arange(5), (3, 2, 1))
    returns = np.array([1.0, -2.0, 3.0])[:, None, None] * observations[..., 0]
    found = advantages.baseline(observations, times, returns, np.ones((3, 2, 5), bool))
    np.testing.assert_allclose(found, returns, rtol=1e-3, atol=1e-3)


def test_a_regression_that_fails_gets_a_larger_ridge_or_nothing() -> None:
    counts = np.ones(5, bool)
    assert np.isfinite(advantages.fitted(np.zeros((5, 2)), np.ones(5), counts)).all()
    assert not advantages.fitted(np.full((5, 2), np.nan), np.ones(5), counts).any()


def test_standardising_sees_only_the_steps_that_count() -> None:
    values, counts = rng().normal(3, 5, (2, 3, 4)), np.ones((2, 3, 4))
    counts[:, 2] = 0
    values[:, 2] = 1e9
    found = advantages.standardised(values, counts)
    assert not found[:, 2].any()
    np.testing.assert_allclose(found[:, :2].mean((1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(found[:, :2].std((1, 2)), 1, rtol=1e-6)


# ---- rollouts


class Counting:
    """Observes how many steps its episode has had; done after as many as its task says; breaks
    where the task is negative, at that step."""

    observation_size, action_size, task_size, horizon = 1, 1, 1, 8

    def __init__(self, count: int) -> None:
        self.steps, self.tasks = np.zeros(count), np.zeros(count)

    def reset(self, tasks: Any = None, which: Any = None, *, rng: np.random.Generator) -> Any:
        if tasks is not None:
            self.tasks = tasks[:, 0]
        which = slice(None) if which is None else which
        self.steps[which] = 0
        return self.steps[which][:, None].astype(np.float32)

    def step(self, actions: np.ndarray, which: Any = None) -> Step:
        assert np.isfinite(actions).all()
        which = slice(None) if which is None else which
        self.steps[which] += 1
        steps, tasks = self.steps[which], self.tasks[which]
        over = self.ended(steps, tasks)
        broken = over & (tasks < 0)
        seen = np.where(broken, np.nan, steps)[:, None].astype(np.float32)
        return Step(seen, np.where(broken, np.nan, 1.0), over & ~broken, broken)

    def ended(self, steps: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return steps == np.abs(tasks)


class Dying(Counting):
    """Ends with this probability at each step."""

    horizon = 20

    def __init__(self, count: int, probability: float) -> None:
        super().__init__(count)
        self.probability, self.rng = probability, rng(5)

    def ended(self, steps: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        return self.rng.random(len(steps)) < self.probability


def counted(*tasks: float, lanes: int = 2) -> Transitions:
    policy = Policy(1, 1, hidden=(2,))
    thetas = per_task(policy.init(rng=rng()), len(tasks))
    sampler = Sampler(policy, Counting(lanes * len(tasks)), lanes)
    return sampler.sample(thetas, np.array(tasks)[:, None], rng=rng(1))


def test_an_episode_that_ends_early_is_followed_by_another_that_comes_to_its_end() -> None:
    found = counted(3, 100)
    assert found.times[0, 0].tolist() == [0, 1, 2] * 3
    assert found.observations[0, 0, :, 0].tolist() == [0, 1, 2] * 3
    assert found.ends[0, 0].tolist() == [False, False, True] * 3
    assert found.times[1, 0, :8].tolist() == list(range(8)) and found.ends[1, 0, 7]
    assert found.returns().tolist() == [3, 8]


def test_episodes_count_until_there_are_rollouts_times_the_horizon_of_steps() -> None:
    found = counted(3, 100)
    assert found.counts[0].all()  # the sixth is begun when there are 15 steps, and 16 are wanted
    assert found.counts[1].sum() == 16 and not found.counts[1, :, 8:].any()
    three = counted(3, lanes=3)
    assert three.counts.sum() == 24 and three.counts[0, :2].all()
    assert not three.counts[0, 2, 6:].any()  # the ninth: 24 were there before it


def test_whether_an_episode_counts_does_not_depend_on_its_length() -> None:
    """With a chance p of ending at every step, a share p of the steps short of the horizon are
    ends (Wald); were unfinished episodes dropped there would be more."""
    policy, p, lanes, tasks = Policy(1, 1, hidden=(2,)), 0.08, 4, 1500
    sampler = Sampler(policy, Dying(lanes * tasks, p), lanes)
    thetas = per_task(policy.init(rng=rng()), tasks)
    found = sampler.sample(thetas, np.zeros((tasks, 1)), rng=rng(1))
    kept = found.counts & (found.times < Dying.horizon - 1)
    share, n = found.ends[kept].mean(), kept.sum()
    assert share == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))
    steps = found.counts.sum((1, 2))
    assert steps.min() >= lanes * Dying.horizon
    assert steps.max() < (lanes + 1) * Dying.horizon
    lengths = found.times[found.counts & found.ends] + 1
    whole = (1 - (1 - p) ** Dying.horizon) / p  # the mean length of all episodes
    assert lengths.mean() == pytest.approx(whole, rel=0.02)


def test_a_broken_step_ends_its_episode_and_poisons_nothing() -> None:
    found = counted(-3, 100)
    assert found.broken.sum() == 6  # three times in each of two lanes
    assert found.counts[0, 0].tolist() == [True, True, False] * 3
    for leaf in (found.observations, found.actions, found.rewards, *found.experience()):
        assert np.isfinite(leaf).all()
    returns = found.returns()
    assert np.isnan(returns[0]) and returns[1] == 8


def test_a_task_that_broke_everywhere_is_no_good_task() -> None:
    """0 would be the best return there is where all rewards are negative."""
    policy = Policy(2, 2, hidden=(3,))
    sampler = Sampler(policy, ENVIRONMENTS["nav2d"].make(4, None), 2)
    thetas = per_task(policy.init(rng=rng()), 2)
    thetas["linear1"]["w"] = (
        array(np.float32([np.nan, 1]).reshape(2, 1, 1)) * thetas["linear1"]["w"]
    )
    returns = sampler.sample(thetas, np.ones((2, 2)), rng=rng()).returns()
    assert np.isnan(returns[0]) and returns[1] < 0


def test_weights_make_means_over_the_steps_that_count() -> None:
    batch = counted(3, 100).experience()
    np.testing.assert_allclose(batch.weights.sum(1), 1, rtol=1e-6)
    assert [(weights > 0).sum() for weights in batch.weights] == [18, 16]
    assert batch.weights.shape == (2, 24)
    assert not batch.advantages[batch.weights == 0].any()
    assert counted(100, 100).experience().weights.shape == (2, 16)


def test_a_sampler_refuses_a_policy_of_other_observations() -> None:
    with pytest.raises(ShapeError, match="observes 3 numbers, the environment gives 1"):
        Sampler(Policy(3, 1), Counting(2), 2)


def test_one_task_that_diverged_is_left_out() -> None:
    meta, params = MetaPolicy(POLICY, 0.3), params_of(dtype=np.float32)
    task = episodes(meta, params, dtype=np.float32)
    for leaf in task.support[0]:
        assert len(leaf) == T == 2
    alone = tree.map(lambda leaf: leaf[1:], task)
    task.support[0].advantages[0] = np.nan
    learner = Learner(meta)
    update, expected = (learner.update(params, {}, each) for each in (task, alone))
    assert update.left_out == 1 and expected.left_out == 0
    assert update.report is not None and update.report.accepted
    np.testing.assert_array_equal(flat(update.params), flat(expected.params))
    task.support[0].advantages[:] = np.nan
    update = learner.update(params, {}, task)
    assert update.left_out == 2 and (flat(update.params) == flat(params)).all()


def test_the_oracle_is_told_the_task() -> None:
    policy = Policy(2, 1, hidden=(2,))
    sampler = Sampler(policy, Counting(2), 1, told=True)
    thetas = per_task(policy.init(rng=rng()), 2)
    found = sampler.sample(thetas, np.array([[5.0], [7.0]]), rng=rng())
    for told, seen, counts in zip((5, 7), found.observations, found.counts, strict=True):
        assert (seen[counts][:, 1] == told).all()


def test_each_task_acts_by_its_own_parameters() -> None:
    policy = Policy(2, 2, hidden=(3,))
    sampler = Sampler(policy, ENVIRONMENTS["nav2d"].make(40, None), 20)
    thetas = per_task(policy.init(rng=rng()), 2)
    thetas["linear2"]["w"] = thetas["linear2"]["w"] * 0.0
    thetas["linear2"]["b"] = array(np.float32([[3, 3], [-3, -3]]))
    found = sampler.sample(thetas, np.zeros((2, 2)), rng=rng())
    means = found.actions.mean((1, 2))
    np.testing.assert_allclose(means, [[3, 3], [-3, -3]], atol=0.1)
    np.testing.assert_allclose((found.actions - means[:, None, None]).std(), 1, rtol=0.05)


# ---- Algorithm 3


@pytest.mark.parametrize("inner_steps", [0, 1, 2])
def test_the_meta_policy_gradient_is_the_surrogates(inner_steps: int) -> None:
    meta, params = MetaPolicy(POLICY, 0.3), params_of()
    task = episodes(meta, params, inner_steps, counted=5)
    moved = tree.map(lambda p: p + 0.05, params)  # where ratios are not 1
    check_grads(lambda theta: total(meta.surrogate(theta, task)[0]), (moved,), order=1)
    losses, gradient = meta.meta_gradient(moved, task)
    expected = grad(lambda theta: total(meta.surrogate(theta, task)[0]))(moved)
    np.testing.assert_allclose(flat(gradient), flat(expected), rtol=1e-12)
    np.testing.assert_array_equal(losses.numpy(), meta.surrogate(moved, task)[0].numpy())


def test_at_the_old_policies_the_surrogates_gradient_is_reinforces() -> None:
    """There the ratio's gradient is the log-probability's (docs/7_policy_gradients.md)."""
    meta, params = MetaPolicy(POLICY, 0.3), params_of()
    task = episodes(meta, params)

    def score(theta: Any) -> Any:
        adapted = meta.adapt(theta, task.support, T)
        return total(meta.reinforce(adapted, task.query.experience))

    np.testing.assert_allclose(flat(meta.meta_gradient(params, task)[1]), flat(grad(score)(params)))


def test_the_inner_step_is_the_paper_s() -> None:
    meta, params, batch = MetaPolicy(POLICY, 0.3), params_of(), experience(1)
    (one,) = [meta.adapt(params, (batch,), T)]
    same = maml.adapt(meta.reinforce, params, batch, inner_lr=0.3)
    np.testing.assert_allclose(flat(one), flat(same), rtol=1e-12)
    for task in range(T):
        alone = Experience(*(leaf[task : task + 1] for leaf in batch))
        grads = grad(lambda p, alone=alone: total(meta.reinforce(p, alone)))(params)
        expected = tree.map(lambda p, g: p - 0.3 * g, params, grads)
        np.testing.assert_allclose(flat(tree.map(lambda p, i=task: p[i], one)), flat(expected))


def test_with_the_sampling_term_the_meta_gradient_is_that_of_likelihood_ratios() -> None:
    """Of an inner loss by ratios to the policy that acted, as it was (docs, equation 7.8)."""
    plain, with_term = (MetaPolicy(POLICY, 0.3, sampling_term=term) for term in (False, True))
    params, task = params_of(), episodes(plain, params_of())
    (batch,) = task.support

    def log_probs(theta: Any) -> Any:
        return POLICY.distribution(theta, batch.observations).log_prob(batch.actions)

    acted = log_probs(params).numpy()

    def surrogate(theta: Any) -> Any:
        def inner(theta: Any) -> Any:
            return -total(batch.weights * batch.advantages * exp(log_probs(theta) - acted))

        thetas = meta.per_task(theta, T)
        adapted = tree.map(lambda p, g: p - 0.3 * g, thetas, grad(inner)(thetas))
        new = POLICY.distribution(adapted, task.query.experience.observations)
        return total(with_term._surrogate(new, task)[0])

    check_grads(surrogate, (params,), order=1)
    found = flat(with_term.meta_gradient(params, task)[1])
    np.testing.assert_allclose(found, flat(grad(surrogate)(params)), rtol=1e-9, atol=1e-12)
    adapted = (flat(meta.adapt(params, task.support, T)) for meta in (plain, with_term))
    np.testing.assert_allclose(*adapted, rtol=1e-12)
    without = flat(plain.meta_gradient(params, task)[1])
    assert np.linalg.norm(found - without) > 0.01 * np.linalg.norm(found)


def test_with_the_sampling_term_the_inner_hessian_is_the_expected_returns() -> None:
    """One step of reward a^2 has the expected return mean^2 + sigma^2. Quadrature stands for the
    episodes, so that nothing is left to chance."""
    policy, mean, log_std = Policy(1, 1, hidden=()), 0.7, -0.3
    points, weights = np.polynomial.hermite_e.hermegauss(9)
    actions = (mean + np.exp(log_std) * points)[None, :, None]
    nothing = np.zeros_like(actions)
    layer = {"w": array(np.zeros((1, 1))), "b": array(np.array([mean]))}
    params = {"linear1": layer, "log_std": array(np.array([log_std]))}
    weights = weights[None] / weights.sum()
    batch = Experience(nothing, actions, actions[..., 0] ** 2, weights)

    def hessian(meta: MetaPolicy) -> np.ndarray:
        def loss(theta: Any) -> Any:
            return total(meta.reinforce(theta, batch))

        size = flat(params).size
        columns = (flat(hvp(loss, params, like(params, e))) for e in np.eye(size))
        return np.stack(list(columns))[np.ix_([1, 2], [1, 2])]  # b and log_std; w sees zeros

    exact = -np.diag([2, 4 * np.exp(2 * log_std)])
    found = hessian(MetaPolicy(policy, 0.1, sampling_term=True))
    np.testing.assert_allclose(found, exact, atol=1e-12)
    assert np.abs(hessian(MetaPolicy(policy, 0.1)) - exact).max() > 1


def test_first_order_leaves_out_the_second_derivatives() -> None:
    params = params_of()
    second, first = (MetaPolicy(POLICY, 0.3, first_order=order) for order in (False, True))
    task = episodes(second, params)
    a, b = (flat(meta.meta_gradient(params, task)[1]) for meta in (second, first))
    adapted = second.adapt(params, task.support, T)
    direct = grad(
        lambda theta: total(
            second._surrogate(POLICY.distribution(theta, task.query.experience.observations), task)[
                0
            ]
        )
    )(adapted)
    np.testing.assert_allclose(b, flat(tree.map(lambda g: total(g, 0), direct)), rtol=1e-10)
    assert np.linalg.norm(a - b) > 0.01 * np.linalg.norm(a)


@pytest.mark.parametrize("inner_steps", [0, 1, 2])
@pytest.mark.parametrize("how", [{}, {"first_order": True}, {"sampling_term": True}])
def test_the_two_exact_products_agree_at_the_old_policies(
    inner_steps: int, how: dict[str, bool]
) -> None:
    meta, params = MetaPolicy(POLICY, 0.3, **how), params_of()
    task = episodes(meta, params, inner_steps, counted=5)
    v = like(params, rng(4).normal(size=flat(params).size))
    fast, twice = (f((params, v), task) for f in (meta.divergence_product, meta.divergence_hvp))
    np.testing.assert_allclose(flat(fast), flat(twice), rtol=1e-8, atol=1e-12)


def test_the_exact_product_is_the_limit_of_the_authors_difference() -> None:
    meta, params = MetaPolicy(POLICY, 0.3), params_of()
    task = episodes(meta, params)
    v = rng(4).normal(size=flat(params).size)
    gradient = grad(lambda theta: total(meta.surrogate(theta, task)[1]))

    def difference(h: float) -> np.ndarray:
        up, down = (flat(gradient(like(params, flat(params) + s * h * v))) for s in (1, -1))
        return (up - down) / (2 * h)

    exact = flat(meta.divergence_product((params, like(params, v)), task))
    errors = [np.linalg.norm(difference(h) - exact) / np.linalg.norm(exact) for h in (1e-4, 1e-5)]
    assert errors[1] < 1e-6 and errors[1] < errors[0] / 50


def test_away_from_the_old_policies_only_the_double_backward_product_is_the_hessian() -> None:
    meta, params = MetaPolicy(POLICY, 0.3), params_of()
    task, moved = episodes(meta, params), tree.map(lambda p: p + 0.1, params)
    v = like(params, rng(4).normal(size=flat(params).size))
    check_grads(lambda theta: total(meta.surrogate(theta, task)[1]), (moved,), order=2)
    fast, twice = (
        flat(f((moved, v), task)) for f in (meta.divergence_product, meta.divergence_hvp)
    )
    assert np.linalg.norm(fast - twice) > 1e-3 * np.linalg.norm(twice)


def test_steps_that_do_not_count_change_nothing() -> None:
    meta, params = MetaPolicy(POLICY, 0.3), params_of()
    v = like(params, rng(4).normal(size=flat(params).size))

    def results(padding: float) -> list[np.ndarray]:
        task = episodes(meta, params, counted=4)
        for batch in (*task.support, task.query.experience):
            for leaf in batch[:3]:
                leaf[:, 4:] = padding
        old = meta.adapted(params, task)
        task = task._replace(query=task.query._replace(old=old))
        loss, divergence = meta.surrogate(tree.map(lambda p: p + 0.1, params), task)
        return [
            loss.numpy(),
            divergence.numpy(),
            flat(meta.meta_gradient(params, task)[1]),
            flat(meta.divergence_product((params, v), task)),
        ]

    for a, b in zip(results(0.0), results(7.0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_learner_does_what_its_functions_do(compiled: bool) -> None:
    meta, params = MetaPolicy(POLICY, 0.3), params_of(dtype=np.float32)
    learner = Learner(meta, compiled=compiled)
    batch = experience(1, np.float32)
    thetas = learner.adapt(per_task(params, T), batch, 0.15)
    same = MetaPolicy(POLICY, 0.15).adapt(params, (batch,), T)
    np.testing.assert_allclose(flat(thetas), flat(same), rtol=1e-4, atol=1e-6)
    acting = learner.acting(thetas, batch)
    expected = POLICY.distribution(thetas, batch.observations)
    np.testing.assert_allclose(acting.mean.numpy(), expected.mean.numpy(), rtol=1e-4, atol=1e-6)
    task = episodes(meta, params, dtype=np.float32)
    update = learner.update(params, {}, task)
    assert update.report is not None and update.report.accepted
    loss, divergence = (
        float(x.numpy().astype(np.float64).mean()) for x in meta.surrogate(update.params, task)
    )
    before = float(meta.surrogate(params, task)[0].numpy().mean())
    assert update.report.loss == pytest.approx(before - loss, rel=1e-2, abs=1e-5)
    assert update.report.divergence == pytest.approx(divergence, rel=1e-2)
    assert 0.005 < divergence <= 0.01 and loss < before


def test_one_iteration_of_algorithm_3_on_navigation() -> None:
    from mamlnp import optim

    environment = ENVIRONMENTS["nav2d"]
    policy = Policy(2, 2, hidden=(8,))
    sampler, tasks = Sampler(policy, environment.make(12, None), 4), np.eye(3, 2)
    params, plain = policy.init(rng=rng()), optim.adam(1e-2)
    for optimizer in (None, plain):
        learner = Learner(MetaPolicy(policy, 0.1), optimizer=optimizer)
        state = plain.init(params) if optimizer else {}
        for inner_steps in (0, 1, 2):
            update, seen = meta_step(
                learner, sampler, params, state, tasks, inner_steps=inner_steps, rng=rng(1)
            )
            assert len(seen) == inner_steps + 1
            assert (flat(update.params) != flat(params)).any()
            assert (update.report is None) == (optimizer is not None)


def test_each_loop_has_a_lambda_of_its_own() -> None:
    policy = Policy(2, 2, hidden=(8,))
    sampler, tasks = Sampler(policy, ENVIRONMENTS["nav2d"].make(12, None), 4), np.eye(3, 2)
    params = policy.init(rng=rng())

    def iteration(**lambdas: float) -> tuple[np.ndarray, np.ndarray]:
        learner = Learner(MetaPolicy(policy, 0.1), **lambdas)  # type: ignore[arg-type]
        update, seen = meta_step(learner, sampler, params, {}, tasks, inner_steps=1, rng=rng(1))
        return flat(update.params), seen[-1].rewards

    theta, adapted = iteration(gae_lambda=0.5)
    for same, as_asked in zip(
        (theta, adapted), iteration(gae_lambda=0.5, inner_gae_lambda=0.5), strict=True
    ):
        assert np.array_equal(same, as_asked)
    assert not np.array_equal(iteration(gae_lambda=0.5, inner_gae_lambda=1.0)[1], adapted)
    outer, still = iteration(gae_lambda=1.0, inner_gae_lambda=0.5)
    assert np.array_equal(still, adapted) and not np.array_equal(outer, theta)


# ---- TRPO


def symmetric(size: int, seed: int = 0) -> np.ndarray:
    root = rng(seed).normal(size=(size, size))
    return root @ root.T + 0.5 * np.eye(size)


@given(size=st.integers(1, 8), seed=st.integers(0, 100))
def test_conjugate_gradient_solves_in_as_many_steps_as_there_are_unknowns(
    size: int, seed: int
) -> None:
    a, b = symmetric(size, seed), rng(seed + 1).normal(size=size)
    found, along = conjugate_gradient(lambda v: a @ v, b, iterations=2 * size, tolerance=1e-22)
    np.testing.assert_allclose(found, np.linalg.solve(a, b), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(along, b, rtol=1e-6, atol=1e-8)
    early, along = conjugate_gradient(lambda v: a @ v, b, iterations=1)
    np.testing.assert_allclose(along, a @ early, rtol=1e-9, atol=1e-12)


def test_conjugate_gradient_stops_when_it_is_done() -> None:
    products = []

    def product(v: np.ndarray) -> np.ndarray:
        products.append(v)
        return 3 * v

    np.testing.assert_allclose(conjugate_gradient(product, np.array([3.0, 6.0]))[0], [1, 2])
    assert len(products) == 1
    assert not conjugate_gradient(product, np.zeros(2))[0].any()


def test_the_step_fills_the_trust_region_of_a_quadratic() -> None:
    a, g, theta = symmetric(4), rng(1).normal(size=4), rng(2).normal(size=4)

    def evaluate(at: np.ndarray) -> tuple[float, float]:
        moved = at - theta
        return float(g @ moved), float(0.5 * moved @ a @ moved)

    new, report = trust_region_step(
        theta, g, lambda v: a @ v, evaluate, max_divergence=0.1, damping=0.0
    )
    assert report.accepted
    assert report.divergence == pytest.approx(0.1, rel=0.4) and report.divergence <= 0.1
    direction = np.linalg.solve(a, g)
    cosine = (theta - new) @ direction / np.linalg.norm(theta - new) / np.linalg.norm(direction)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_a_step_is_shortened_until_the_divergence_is_allowed() -> None:
    theta, g = np.zeros(2), np.array([1.0, 0.0])

    def evaluate(at: np.ndarray) -> tuple[float, float]:
        return float(g @ at), float(2 * at @ at)  # four times what the product says

    new, report = trust_region_step(theta, g, lambda v: v, evaluate, max_divergence=0.01)
    assert report.accepted and report.divergence <= 0.01 < report.divergence / 0.8**2
    assert report.backtracks == 4 and new[0] < 0


def test_a_step_that_never_helps_is_not_taken() -> None:
    theta, g = np.ones(2), np.array([1.0, 0.0])
    new, report = trust_region_step(theta, g, lambda v: v, lambda at: (0.0, 0.0))
    assert not report.accepted and (new == theta).all() and report.backtracks == 15
    new, report = trust_region_step(theta, g, lambda v: -v, lambda at: (0.0, 0.0))
    assert not report.accepted and (new == theta).all()
