"""MAML for reinforcement learning (Finn et al. 2017, section 5.3), whatever the environment.

The experiments say which environment (nav2d.py, locomotion.py); what is done with it is here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from tqdm import tqdm

from .. import optim, plots, tree
from ..errors import DataError
from ..ranks import Ranks, world
from ..rl.agent import Agent
from ..rl.envs import ENVIRONMENTS, Environment
from ..rl.maml_rl import Learner, MetaPolicy, inner_loop, meta_step, own_copies
from ..rl.policy import Policy
from ..rl.rollout import Sampler, Transitions
from ..runs import CHECKPOINT, Run, open_run
from ..tasks import counted_rng
from . import loop
from .experiment import Experiment, Training
from .scores import Row, as_table, rows

TEST_SEED = 2017
TEST_STEPS = 3
AT_ONCE = 40  # tasks in evaluation; so many are for validation
FINE_TUNING_LRS = (0.01, 0.03, 0.1, 0.3, 1.0)
LATER_SHARES = (1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.01)
"""Of the first step's size, for the steps after it."""

Returns = Mapping[int, float]
"""Mean returns by the number of gradient steps."""


@dataclass(frozen=True)
class Config(Training):
    """Settings of a run; the paper's but for what the table of deviations says.

    Attributes:
        baseline: train a baseline instead of MAML: "pretrained" is one policy for all tasks
            together, fine-tuned on each; "oracle" one that observes the task.
        init_from: a run's folder, whose parameters training begins from instead of random ones.
        rollouts: a task, before every inner step and after the last.
        eval_rollouts: the same in evaluation.
        inner_lr: alpha, on the mean over time steps; in evaluation of the first step.
        sampling_term: give them the part for the sampling of the first episodes too, which the
            paper's lack (Rothfuss et al. 2019).
        meta_optimizer: "trpo", with exact products of the divergence's Hessian through the inner
            update, or plain "adam".
        max_kl: TRPO's trust region: mean divergence of the adapted policies, in nats.
        curvature_tasks: how many tasks' divergence gives TRPO its metric; all if not given. With a
            quarter of them a meta-iteration takes half the time; that the step stays within the
            trust region is seen on all.
        meta_lr: of Adam.
        discount: gamma.
        gae_lambda: of generalised advantage estimation.
        inner_gae_lambda: the same, of the inner loop; gae_lambda if not given.
        validate_every: meta-iterations from one checkpoint to the next. The last parameters are the
            result: one meta-iteration's returns are too noisy to choose by.
        threads: how many run at once; as many as there are cores if not given.
    """

    baseline: Literal["pretrained", "oracle"] | None = None
    init_from: str | None = None
    meta_iterations: int = 500
    meta_batch_size: int = 40
    rollouts: int = 20
    eval_rollouts: int = 20
    inner_lr: float = 0.1
    sampling_term: bool = False
    meta_optimizer: Literal["trpo", "adam"] = "trpo"
    max_kl: float = 0.01
    curvature_tasks: int | None = None
    discount: float = 0.99
    gae_lambda: float = 1.0
    inner_gae_lambda: float | None = None
    validate_every: int = 10
    threads: int | None = None

    environment: ClassVar[str]
    paper: ClassVar[Mapping[str, Returns]] = {}

    @property
    def trained_steps(self) -> int:
        """Inner steps in training: none for a baseline."""
        return 0 if self.baseline else self.inner_steps

    @property
    def _order(self) -> str:
        if self.first_order:
            return "first order"
        return "second order" + self.sampling_term * ", with the term for the sampling"

    def describe(self) -> dict[str, Any]:
        """What a reader of the log has to know."""
        update = f"Adam, step size {self.meta_lr:g}, on the likelihood-ratio surrogate"
        if self.meta_optimizer == "trpo":
            some = f" over {self.curvature_tasks} tasks" if self.curvature_tasks else ""
            update = f"TRPO, mean divergence at most {self.max_kl:g} nats, exact products{some}"
        facts = {
            "tasks": f"{self.meta_batch_size} a meta-iteration, {self.rollouts} rollouts each",
            "meta-gradient": self._order,
            "inner loop": f"REINFORCE, alpha {self.inner_lr:g}, {self.inner_steps} in training",
            "meta-update": update,
            "batch norm": "none",
            "split": "fresh tasks each meta-iteration; test tasks of another stream",
            "seed": self.seed,
        }
        if self.init_from:
            facts["begins from"] = self.init_from
        if self.baseline:
            facts["meta-gradient"] = f"none: baseline {self.baseline}"
            facts["inner loop"] = "none in training"
        return facts


def policy_of(config: Config, environment: Environment) -> Policy:
    """The paper's network for the environment's observations; the oracle sees the task too."""
    sizes = environment.make(1, 1)
    told = sizes.task_size if config.baseline == "oracle" else 0
    return Policy(sizes.observation_size + told, sizes.action_size)


def load(config: Config) -> Environment:
    """The environment, whose packages must be there.

    Raises:
        DataError: settings that contradict each other.
    """
    if config.first_order and config.sampling_term:
        raise DataError(
            "--sampling-term: belongs to the second derivatives, which --first-order leaves out. "
            "Pass one of them."
        )
    found = ENVIRONMENTS[config.environment]
    found.make(1, 1)
    return found


def beginning(config: Config, environment: Environment) -> Any:
    """theta before training: random, or another run's.

    Raises:
        DataError: that is no run, or of another network.
    """
    expected = policy_of(config, environment).init(rng=counted_rng(config.seed, "init"))
    if config.init_from is None:
        return expected
    run = open_run(Path(config.init_from))
    found = loop.best_state(run).state["params"]
    shapes = [{path: leaf.shape for path, leaf in tree.items(p)} for p in (found, expected)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"--init-from {run.path}: is a run of {run.experiment}, whose parameters have the "
            f"shapes {shapes[0]}, not {shapes[1]}. Pass a run of {config.environment}."
        )
    return found


def begins(config: Config, environment: Environment) -> None:
    """Refuse a run to begin from that does not fit, before a folder is made."""
    if config.init_from is not None:
        beginning(config, environment)


def _sampler(
    config: Config, environment: Environment, policy: Policy, tasks: int, rollouts: int
) -> Sampler:
    simulations = environment.make(tasks * rollouts, config.threads)
    return Sampler(policy, simulations, rollouts, told=config.baseline == "oracle")


def _learner(config: Config, policy: Policy, ranks: Ranks | None = None) -> Learner:
    meta = MetaPolicy(policy, config.inner_lr, config.first_order, config.sampling_term)
    plain = optim.adam(config.meta_lr) if config.meta_optimizer == "adam" else None
    return Learner(
        meta,
        optimizer=plain,
        max_divergence=config.max_kl,
        curvature_tasks=config.curvature_tasks,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        inner_gae_lambda=config.inner_gae_lambda,
        threads=config.threads,
        compiled=not config.eager,
        check=False,  # the tests hold these plans against eager
        ranks=ranks,
    )


def train(config: Config, run: Run, environment: Environment, *, resume: bool = False) -> None:
    """Algorithm 3 over the meta-iterations; ends with a picture in the run's folder."""
    policy, ranks = policy_of(config, environment), world()
    config = replace(config, threads=config.threads or ranks.threads)
    start, stop = ranks.bounds(config.meta_batch_size)
    sampler = _sampler(config, environment, policy, stop - start, config.rollouts)
    learner = _learner(config, policy, ranks)

    def init() -> dict[str, Any]:
        # A resumed run goes on without the one that it began from, which may be gone.
        params = beginning(replace(config, init_from=None) if resume else config, environment)
        plain = config.meta_optimizer == "adam"
        return {"params": params, "opt": optim.adam(config.meta_lr).init(params) if plain else {}}

    def step(state: dict[str, Any], n: int) -> tuple[dict[str, Any], dict[str, float]]:
        began = time.perf_counter()
        rng = counted_rng(config.seed, "train", n)
        tasks = ranks.part(environment.sample_tasks(config.meta_batch_size, rng))
        if ranks.size > 1:
            rng = rng.spawn(ranks.size)[ranks.rank]
        update, seen = meta_step(
            learner,
            sampler,
            state["params"],
            state["opt"],
            tasks,
            inner_steps=config.trained_steps,
            rng=rng,
        )
        if update.left_out == config.meta_batch_size:
            raise DataError(
                f"{run.path}: no task has a finite gradient in meta-iteration {n + 1}. "
                "Lower inner_lr; the last checkpoint is kept."
            )
        numbers = {
            name: float(np.nanmean(np.concatenate(ranks.gathered(episodes.returns()))))
            for name, episodes in (("before", seen[0]), ("after", seen[-1]))
        }
        if update.report is not None:
            numbers["kl"] = update.report.divergence
            numbers["backtracks"] = update.report.backtracks
            numbers["refused"] = float(not update.report.accepted)
        broken = sum(int(transitions.broken.sum()) for transitions in seen)
        numbers["broken_steps"] = sum(ranks.gathered(broken))
        numbers["tasks_left_out"] = update.left_out
        taken = sum(ranks.gathered(sum(int(transitions.counts.sum()) for transitions in seen)))
        numbers["steps_per_second"] = taken / (time.perf_counter() - began)
        return {"params": update.params, "opt": update.state}, numbers

    loop.train(run, config, init=init, draw=lambda n: n, step=step, resume=resume, ranks=ranks)
    if ranks.writes:
        plots.returns_curve(run, config.paper)


# ---- test


def _test_tasks(environment: Environment, count: int, stream: str) -> np.ndarray:
    """Fixed tasks; all equally often where there are few."""
    if environment.spread_tasks is not None:
        return environment.spread_tasks(count)
    return environment.sample_tasks(count, counted_rng(TEST_SEED, stream))


def adapted_returns(
    learner: Learner,
    sampler: Sampler,
    params: Any,
    tasks: np.ndarray,
    lrs: Sequence[float],
    *,
    batch: int,
    seen: Callable[[list[Transitions]], None] = lambda episodes: None,
) -> np.ndarray:
    """Every task's mean return before and after each gradient step, (len(lrs) + 1, tasks).

    Args:
        learner, sampler: of the policy.
        params: theta.
        tasks: (n, task size).
        lrs: alpha of every step.
        batch: tasks at once, as many as the sampler has room for.
        seen: is given all episodes of a batch of tasks.
    """
    parts = []
    for start in range(0, len(tasks), batch):
        here = tasks[start : start + batch]
        padded = np.resize(here, (batch, here.shape[1]))
        rng = counted_rng(TEST_SEED, "test", 1 + start)  # 0 drew the tasks
        episodes, thetas = inner_loop(learner, sampler, params, padded, lrs=lrs, rng=rng)
        episodes.append(sampler.sample(thetas, padded, rng=rng))
        seen(episodes)
        parts.append(np.stack([e.returns()[: len(here)] for e in episodes]))
    return np.concatenate(parts, axis=1)


def tuned_lrs(
    learner: Learner, sampler: Sampler, params: Any, tasks: np.ndarray, firsts: Sequence[float]
) -> list[float]:
    """The step sizes with the highest returns on validation tasks, chosen one step after another.

    Args:
        learner, sampler: of the policy.
        params: theta.
        tasks: as many as the sampler has room for, (n, task size).
        firsts: what the first step's is chosen from; the others are shares of it.
    """
    thetas, lrs = own_copies(params, len(tasks)), list[float]()
    episodes = sampler.sample(thetas, tasks, rng=counted_rng(TEST_SEED, "validation", 1))
    for step in range(TEST_STEPS):
        batch, here, most = learner.support(episodes), thetas, -np.inf
        for lr in [share * lrs[0] for share in LATER_SHARES] if step else firsts:
            adapted = learner.adapt(here, batch, lr)
            rng = counted_rng(TEST_SEED, "validation", step + 2)
            after = sampler.sample(adapted, tasks, rng=rng)
            found = np.nan_to_num(after.returns().mean(), nan=-np.inf)
            if found > most or len(lrs) == step:
                thetas, episodes, most, lrs[step:] = adapted, after, found, [lr]
    return lrs


def evaluate(
    config: Config,
    run: Run,
    environment: Environment,
    *,
    tasks: int = 200,
    baselines: bool = False,
) -> tuple[list[Row], str]:
    """Returns on test tasks after 0 to 3 gradient steps, beside the paper's.

    The test tasks are the same for every run; where there are two directions, half are of each.
    MAML's first step has the size it was trained with; all others are tuned on validation tasks.

    Args:
        tasks: how many test tasks.
        baselines: also a random initialisation, fine-tuned.

    Returns:
        The rows, and a table as text.
    """
    return scored(config, run, environment, tasks=tasks, baselines=baselines)[:2]


def scored(
    config: Config, run: Run, environment: Environment, *, tasks: int, baselines: bool
) -> tuple[list[Row], str, Sequence[float]]:
    """What :func:`evaluate` returns, and the step sizes of the run's own policy."""
    state, about = loop.best_state(run)
    policy = policy_of(config, environment)
    expected = policy.init(rng=counted_rng(config.seed, "init"))
    loop.check_fits(run.path / CHECKPOINT, state["params"], expected)
    learner = _learner(config, policy)
    sampler = _sampler(config, environment, policy, AT_ONCE, config.eval_rollouts)
    test = _test_tasks(environment, tasks, "test")
    name, parts, table = run.experiment, [about], []

    def measured(method: str, params: Any, lrs: Sequence[float]) -> None:
        bar = tqdm(total=-(-tasks // AT_ONCE), desc=method, leave=False, mininterval=_interval())

        def done(episodes: list[Transitions]) -> None:
            bar.update()

        found = adapted_returns(learner, sampler, params, test, lrs, batch=AT_ONCE, seen=done)
        bar.close()
        steps = ", ".join(f"{lr:g}" for lr in lrs) or "none"
        parts.append(f"{method}: step sizes {steps}")
        if diverged := int((~np.isfinite(found)).any(0).sum()):
            parts.append(f"{method}: {diverged} of {tasks} tasks left the finite numbers")
        table.extend(rows(name, method, found, bound=np.inf, note=f"step sizes {steps}"))

    validation = _test_tasks(environment, AT_ONCE, "validation")
    firsts = FINE_TUNING_LRS if config.baseline else (config.inner_lr,)
    lrs = list[float]()
    if config.baseline != "oracle":
        lrs = tuned_lrs(learner, sampler, state["params"], validation, firsts)
    measured(config.baseline or "MAML", state["params"], lrs)
    if baselines:
        chosen = tuned_lrs(learner, sampler, expected, validation, FINE_TUNING_LRS)
        measured("random init", expected, chosen)

    methods = list(dict.fromkeys(row.method for row in table))
    table += [
        Row(name, f"paper {method}", steps, mean, 0.0, 1)
        for method, printed in config.paper.items()
        for steps, mean in printed.items()
    ]
    columns = [
        column
        for method in methods
        for column in (method, f"paper {method}")
        if any(row.method == column for row in table)
    ]
    table = [row for row in table if row.method in columns]
    parts.append(
        f"{name}: mean undiscounted return, 95 % interval over {tasks} tasks, "
        f"{config.eval_rollouts} rollouts before each gradient step"
    )
    parts.append(as_table(table, columns))
    picture = run.path / "returns.png"
    plots.returns_against_steps(picture, table)
    parts.append(f"\npictures: {picture}")
    return table, "\n".join(parts), lrs


def shown_episodes(
    config: Config, environment: Environment, params: Any, lrs: Sequence[float], count: int
) -> tuple[np.ndarray, list[Transitions]]:
    """A few test tasks (count, task size), and their episodes before and after a gradient step of
    each size, for a picture."""
    policy = policy_of(config, environment)
    simulations = environment.make(count * config.eval_rollouts, config.threads)
    kept: list[list[Transitions]] = []
    tasks = _test_tasks(environment, count, "test")
    adapted_returns(
        _learner(config, policy),
        Sampler(policy, simulations, config.eval_rollouts),
        params,
        tasks,
        lrs,
        batch=count,
        seen=kept.append,
    )
    return tasks, kept[0]


def _interval() -> float:
    return 0.5 if sys.stderr.isatty() else 20


def learner(config: Config, params: Any, about: dict[str, Any] | None = None) -> Agent:
    """theta of a run, ready for a task of one's own."""
    return Agent(
        network=policy_of(config, ENVIRONMENTS[config.environment]),
        params=params,
        environment=config.environment,
        inner_lr=config.inner_lr,
        rollouts=config.eval_rollouts,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        inner_gae_lambda=config.inner_gae_lambda,
        told=config.baseline == "oracle",
        about=about or {},
    )


def experiment(
    summary: str,
    config: type[Config],
    presets: Mapping[str, Config],
    evaluate: Callable[..., tuple[list[Row], str]] = evaluate,
) -> Experiment:
    """An experiment on policies, in the environment that its settings name."""
    return Experiment(
        name=config.environment,
        summary=summary,
        config=config,
        load=load,
        train=train,
        evaluate=evaluate,
        learner=learner,
        presets=presets,
        options=("tasks", "baselines"),
        check=begins,
    )
