"""MAML for policies, top to bottom (Finn et al. 2017, section 5.3): find a goal in the plane.

    python examples/nav2d.py [META-ITERATIONS]

A point moves in the plane and is told at each step how far its goal is, but never where. It learns
a policy from which one policy-gradient step on a few episodes finds the way to a new goal.
"""

import sys

import numpy as np

from mamlnp.rl.envs import ENVIRONMENTS
from mamlnp.rl.maml_rl import Learner, MetaPolicy, inner_loop, meta_step
from mamlnp.rl.policy import Policy
from mamlnp.rl.rollout import Sampler

ALPHA = 0.5


def main(meta_iterations: int = 100) -> float:
    """Meta-train, and print returns at new goals; returns the mean return after one step."""
    environment = ENVIRONMENTS["nav2d"]
    sizes = environment.make(1, 1)
    policy = Policy(sizes.observation_size, sizes.action_size)
    learner = Learner(MetaPolicy(policy, ALPHA))  # TRPO, by exact products through the inner step
    sampler = Sampler(policy, environment.make(20 * 20, None), rollouts=20)

    params, state = policy.init(rng=np.random.default_rng(0)), {}
    for n in range(1, meta_iterations + 1):
        rng = np.random.default_rng([1, n])
        goals = environment.sample_tasks(20, rng)
        update, episodes = meta_step(learner, sampler, params, state, goals, inner_steps=1, rng=rng)
        params, state = update.params, update.state
        before, after = (np.nanmean(e.returns()) for e in episodes)
        print(f"meta-iteration {n}: return {before:.1f} before the step, {after:.1f} after it")

    rng = np.random.default_rng(2)
    goals = environment.sample_tasks(20, rng)
    episodes, adapted = inner_loop(learner, sampler, params, goals, lrs=[ALPHA], rng=rng)
    episodes.append(sampler.sample(adapted, goals, rng=rng))
    before, after = (float(np.nanmean(e.returns())) for e in episodes)
    print(f"new goals: return {before:.1f} before the step, {after:.1f} after it")
    return after


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
