"""MAML for reinforcement learning (Finn et al. 2017, section 4.2 and Algorithm 3).

In reading order: ``envs`` (many simulations stepped at once), ``distributions`` (of
actions), ``policy``,
``advantages``, ``rollout`` (episodes of all tasks together), ``maml_rl`` (REINFORCE inside, the
surrogate and the divergence outside), ``trpo`` (the meta-update), ``agent`` (a policy ready to
adapt), ``gym`` (the same environments one at a time, by Gymnasium's interface).
"""
