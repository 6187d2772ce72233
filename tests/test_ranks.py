"""Several processes: how tasks go over them, and trainings under mpiexec."""

import csv
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mamlnp import errors, ranks, tree
from mamlnp.backend.machine import cores
from mamlnp.ranks import SIZES, Ranks, takes_device_memory, world
from mamlnp.runs import CHECKPOINT, METRICS, open_run

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="there is no MPI (pip install mpi4py mpich)",
)
ASKED = "MPIX_Query_cuda_support"


def of(rank, size):
    communicator = SimpleNamespace(rank=rank, size=size)
    return Ranks(communicator, communicator)


@pytest.mark.parametrize(("tasks", "size"), [(1, 1), (7, 3), (8, 4), (25, 2), (5, 5)])
def test_every_task_is_one_ranks(tasks, size):
    task = {"x": np.arange(tasks), "y": [np.arange(2 * tasks).reshape(tasks, 2)]}
    parts = [of(rank, size).part(task) for rank in range(size)]
    assert sorted(x for part in parts for x in part["x"]) == list(range(tasks))
    assert max(len(p["x"]) for p in parts) - min(len(p["x"]) for p in parts) <= 1
    np.testing.assert_array_equal(np.concatenate([p["y"][0] for p in parts]), task["y"][0])


def test_fewer_tasks_than_ranks_are_refused():
    with pytest.raises(errors.ShapeError, match=r"ranks: 3 tasks do not go over 4 processes\."):
        of(0, 4).part(np.zeros(3))


def test_alone_there_is_nothing_to_do():
    alone, x = Ranks(), np.ones(2)
    assert (alone.rank, alone.size, alone.writes) == (0, 1, True)
    assert alone.part(x) is x
    assert alone.total([x])[0] is x
    assert alone.gathered(x) == [x]
    assert alone.told(lambda: 3) == 3
    alone.abort()


@pytest.mark.parametrize(
    ("library", "aware"),
    [({}, False), ({ASKED: lambda: 0}, False), ({ASKED: lambda: 1}, True)],
    ids=["does not say", "no", "yes"],
)
def test_mpi_is_asked_whether_it_takes_device_memory(monkeypatch, library, aware):
    monkeypatch.setattr(ranks, "_mpi", lambda: SimpleNamespace(__file__="MPI.so"))
    monkeypatch.setattr(ctypes, "CDLL", lambda path: SimpleNamespace(**library))
    assert takes_device_memory.__wrapped__() is aware


def test_several_processes_without_mpi4py_are_an_error(monkeypatch):
    monkeypatch.setenv(SIZES[0], "2")
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    world.cache_clear()
    try:
        with pytest.raises(errors.MissingPackageError, match=r"2 processes .* pip install mpi4py"):
            world()
    finally:
        world.cache_clear()


def test_another_mpi_than_the_launchers_is_an_error(monkeypatch):
    alone = SimpleNamespace(size=1)
    mpi = SimpleNamespace(COMM_WORLD=alone, Get_library_version=lambda: "Some MPI 1.0\nof today\0")
    monkeypatch.setenv(SIZES[-1], "4")
    monkeypatch.setattr(ranks, "_mpi", lambda: mpi)
    said = r"^ranks: 4 processes were started but Some MPI 1\.0 finds 1: .* --mpi=pmi2"
    with pytest.raises(errors.MissingPackageError, match=said):
        world.__wrapped__()


# ---- under mpiexec


@mpi
def test_this_mpi_says_whether_it_takes_device_memory():
    words = "from mamlnp.ranks import takes_device_memory; print(takes_device_memory())"
    assert launched(1, "-c", words).stdout in ("True\n", "False\n")


SINE = [
    "--meta-iterations",
    "40",
    "--validate-every",
    "10",
    "--baseline-iterations",
    "5",
    "--validation-tasks",
    "11",
    "--meta-batch-size",
    "7",
]


def launched(size, *words, **how):
    return subprocess.run(
        [MPIEXEC, "-n", str(size), sys.executable, *words],
        capture_output=True, text=True, timeout=300, check=False, **how,
    )  # fmt: skip


def trained(size, path, *more):
    done = launched(size, "-m", "mamlnp", "train", "sine", *SINE, "--out", str(path), *more)
    assert done.returncode == 0, done.stderr
    return open_run(path).load().arrays["state"], done.stdout


@mpi
def test_two_ranks_train_as_one_does_and_the_same_each_time(tmp_path):
    (one, _), (two, said) = trained(1, tmp_path / "one"), trained(2, tmp_path / "two")
    again, _ = trained(2, tmp_path / "again")
    assert "processes          2, " in said
    assert said.count("done. Score it with") == 1
    for a, b, c in zip(*map(tree.leaves, (one, two, again)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(b, c)
    first, second = ((tmp_path / name / METRICS).read_text() for name in ("one", "two"))
    assert [line.count(",") for line in first.split()] == [
        line.count(",") for line in second.split()
    ]


GRADIENT = """
import numpy as np
from mamlnp import checks, optim, parallel, tree
from mamlnp.ranks import world
make, params, task = checks._algorithms()["MAML, conv4, 1 step"]
gradient = make().gradient
task = tree.map(lambda x: np.concatenate([np.asarray(x)] * 3)[:5], task)
how = dict(optimizer=optim.sgd(1.0), chunks=None)
state = optim.sgd(1.0).init(params)
one, _, losses = parallel.meta_step(gradient, **how)(params, state, task)
step = parallel.meta_step(gradient, ranks=world(), meta_batch_size=5, **how)
all_, _, found = step(params, state, world().part(task))
apart = max(
    float(abs(a.numpy() - b.numpy()).max() / abs(a.numpy()).max())
    for a, b in zip(tree.leaves([one, losses]), tree.leaves([all_, found]), strict=True)
)
every = world().gathered(apart)
if world().writes:
    print("apart", *every)
"""


@mpi
@pytest.mark.parametrize("size", [2, 3])
def test_a_meta_gradient_over_ranks_is_that_of_one_process(size):
    done = launched(size, "-W", "ignore", "-c", GRADIENT)
    assert done.stdout.startswith("apart "), done.stderr
    apart = list(map(float, done.stdout.split()[1:]))
    assert len(apart) == size
    assert max(apart) <= 1e-12


@mpi
def test_a_run_of_two_ranks_is_resumed_bit_for_bit(tmp_path):
    whole, _ = trained(2, tmp_path / "whole")
    path = tmp_path / "cut"
    trained(2, path, "--meta-iterations", "20")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(
        config.replace('"meta_iterations": 20', '"meta_iterations": 40')
    )
    done = launched(2, "-m", "mamlnp", "train", "sine", "--resume", str(path))
    assert done.returncode == 0, done.stderr
    state = open_run(path).load().arrays["state"]
    for a, b in zip(tree.leaves(whole), tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


BOUND = """
import os, sys
from mpi4py import MPI
rank, cores = MPI.COMM_WORLD.rank, sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, cores if sys.argv[1] == "shared" else {cores[rank]})
from mamlnp.ranks import world
right = world().threads == (1 if world().bound else len(cores) // 2)
found = world().gathered((world().bound, right))
if world().writes:
    print(*found)
"""


@mpi
@pytest.mark.skipif(cores() < 2, reason="there are no two cores to bind two processes to")
@pytest.mark.parametrize("how", ["shared", "each its own"])
def test_a_rank_takes_its_own_cores_or_its_share(how):
    found = how != "shared", True
    assert launched(2, "-c", BOUND, how).stdout == f"{found} {found}\n"


@mpi
def test_only_training_goes_over_processes():
    done = launched(2, "-m", "mamlnp", "evaluate", "runs/x")
    assert done.returncode != 0
    assert done.stderr.count("mamlnp: only train goes over processes, and 2 were started.") == 1


@mpi
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("-1", "--inner-lr: is -1.0. Pass a number that is positive."),
        ("1e30", "train_loss is not finite in task 0 in meta-iteration 1."),
    ],
)
@pytest.mark.parametrize("more", [(), ("--debug-nans",)], ids=["", "debug"])
def test_what_is_wrong_is_said_once(tmp_path, value, said, more):
    path = str(tmp_path / "a")
    done = launched(2, "-m", "mamlnp", "train", "sine", "--inner-lr", value, "--out", path, *more)
    assert done.returncode != 0
    assert done.stderr.count(said) == 1
    assert "Traceback" not in done.stderr


ALONE = """
import sys
from dataclasses import replace
from mamlnp import cli
from mamlnp.experiments import EXPERIMENTS, sine
from mamlnp.ranks import world
def train(*args, **options):
    if world().rank == int(sys.argv[2]):
        raise {"bug": RuntimeError("a bug"), "interrupt": KeyboardInterrupt()}[sys.argv[1]]
    world().gathered(0)
EXPERIMENTS["sine"] = replace(sine.EXPERIMENT, train=train)
cli.main(["train", "sine"])
"""


@mpi
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("what", "said"),
    [("bug", "RuntimeError: a bug"), ("interrupt", "mamlnp: interrupted.")],
)
def test_what_ends_one_rank_ends_all(tmp_path, what, said, rank):
    done = launched(2, "-c", ALONE, what, str(rank), cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert said in done.stderr


def rank_of(pid):
    """Which rank a process is, by its environment; None if it is none."""
    text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    found = [
        word.partition("=")[2]
        for word in text.split("\0")
        if word.startswith(("PMI_RANK=", "OMPI_COMM_WORLD_RANK="))
    ]
    return int(found[0]) if found else None


def signalled(path, rank, number):
    """A training of two ranks, one of which gets a signal once there is a checkpoint: its exit
    status, and what it said."""
    lasting = [word.replace("40", "100000") for word in SINE]
    words = ["train", "sine", *lasting, "--out", str(path)]
    job = subprocess.Popen(
        [MPIEXEC, "-n", "2", sys.executable, "-m", "mamlnp", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        while not (path / CHECKPOINT).exists():
            assert job.poll() is None
            time.sleep(0.05)
        found = subprocess.run(["pgrep", "-f", f"out {path}"], capture_output=True, text=True)
        pids = [int(pid) for pid in found.stdout.split()]
        os.kill(next(pid for pid in pids if rank_of(pid) == rank), number)
        said, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    return job.returncode, said


@mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_that_is_interrupted_stops_all_with_a_checkpoint(tmp_path, rank):
    path = tmp_path / "run"
    status, said = signalled(path, rank, signal.SIGINT)
    assert status != 0
    done = open_run(path).load().iteration
    assert f"stopped after {done} of 100000 meta-iterations. Continue with: " in said
    assert done % 10 == 0


@mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_ends_the_job_and_leaves_a_checkpoint(tmp_path, rank):
    path = tmp_path / "run"
    status, said = signalled(path, rank, signal.SIGKILL)
    assert status != 0
    assert "Traceback" not in said
    assert f"last checkpoint with: mpiexec -n 2 mamlnp train sine --resume {path}\n" in said
    assert "killed" in said.lower()
    done = open_run(path).load().iteration
    assert done >= 10
    config = path / "config.json"
    config.write_text(config.read_text().replace("100000", f"{done + 10}"))
    again = launched(2, "-m", "mamlnp", "train", "sine", "--resume", str(path))
    assert again.returncode == 0, again.stderr
    assert open_run(path).load().iteration == done + 10


@mpi
@pytest.mark.parametrize("baseline", [(), ("--baseline", "pretrained")], ids=["maml", "pretrained"])
def test_two_ranks_learn_images_as_one_does(tmp_path, baseline):
    rng = np.random.default_rng(0)
    for n in range(12):
        (tmp_path / "data" / f"class{n}").mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / f"class{n}" / f"{i}.png")
    options = "--image-size 16 --filters 2 --num-ways 2 --num-queries 2 --inner-steps 1 "
    options += "--meta-batch-size 3 --meta-iterations 4 --validate-every 1 --validation-tasks 3"
    losses = {}
    for size in (1, 2):
        where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / f"{size}")]
        words = ["-m", "mamlnp", "train", "folder", *options.split(), *where, *baseline]
        done = launched(size, *words, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")})
        assert done.returncode == 0, done.stderr
        with (tmp_path / f"{size}" / METRICS).open() as file:
            losses[size] = [float(row["train_loss"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-4)
    assert len(set(losses[1])) == 4


@mpi
def test_a_policy_is_trained_by_two_ranks_and_the_same_each_time(tmp_path):
    options = ["--meta-iterations", "3", "--meta-batch-size", "5", "--rollouts", "4"]

    def trained(size, name):
        path = str(tmp_path / name)
        done = launched(size, "-m", "mamlnp", "train", "nav2d", *options, "--out", path)
        assert done.returncode == 0, done.stderr
        with (tmp_path / name / METRICS).open() as file:
            rows = list(csv.DictReader(file))
        return open_run(tmp_path / name).load().arrays["state"], rows

    (one, alone), (two, together), (again, _) = (
        trained(size, name) for size, name in ((1, "one"), (2, "two"), (2, "again"))
    )
    for a, b, c in zip(*map(tree.leaves, (one, two, again)), strict=True):
        np.testing.assert_array_equal(b, c)
        assert a.shape == b.shape
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.keys() == theirs.keys()
        assert 0 < float(ours["kl"]) <= 0.01
        assert float(ours["before"]) == pytest.approx(float(theirs["before"]), rel=0.5)


UPDATE = """
import sys
import numpy as np
from mamlnp import optim, tree
from mamlnp.array import array
from mamlnp.ranks import world
from mamlnp.rl.envs import ENVIRONMENTS
from mamlnp.rl.maml_rl import Episodes, Learner, MetaPolicy, Query, flat, per_task
from mamlnp.rl.policy import Policy
from mamlnp.rl.rollout import Sampler

TASKS, rng = 5, np.random.default_rng(0)
environment, broken = ENVIRONMENTS["nav2d"], [int(task) for task in sys.argv[2:]]
simulations = environment.make(TASKS * 4, 1)
policy = Policy(simulations.observation_size, simulations.action_size)
params, tasks = policy.init(rng=rng), environment.sample_tasks(TASKS, rng)
how = dict(optimizer=optim.adam(1e-3) if sys.argv[1] == "adam" else None, max_divergence=0.01)
alone = Learner(MetaPolicy(policy, 0.1), **how)
sampler, thetas = Sampler(policy, simulations, 4), per_task(params, TASKS)
support = sampler.sample(thetas, tasks, rng=rng).experience()
support.advantages[broken] = np.nan
adapted = alone.adapt(thetas, support)
batch = sampler.sample(adapted, tasks, rng=rng).experience()
episodes = Episodes((support,), Query(batch, alone.acting(adapted, batch)))
state = how["optimizer"].init(params) if how["optimizer"] else {}
one = alone.update(params, state, episodes)
ranks = world()
mine = tree.map(lambda leaf: ranks.part(leaf), episodes)
all_ = Learner(MetaPolicy(policy, 0.1), ranks=ranks, **how).update(params, state, mine)
moved = flat(one.params) - flat(params)
apart = np.linalg.norm(flat(all_.params) - flat(one.params)) / np.linalg.norm(moved)
assert one.left_out == all_.left_out == len(broken), (one.left_out, all_.left_out)
if one.report:
    assert one.report.accepted and one.report.backtracks == all_.report.backtracks
found = ranks.gathered((apart, flat(all_.params).tobytes()))
if ranks.writes:
    print(max(a for a, _ in found), len({bits for _, bits in found}))
"""


@mpi
@pytest.mark.parametrize("broken", [(), (1,), (3, 4)], ids=["all", "but one", "none of rank 1's"])
@pytest.mark.parametrize("how", ["trpo", "adam"])
def test_an_update_of_policies_over_ranks_is_that_of_one_process(how, broken):
    done = launched(2, "-W", "ignore", "-c", UPDATE, how, *map(str, broken))
    apart, different = done.stdout.split() or pytest.fail(done.stderr)
    assert float(apart) < 1e-3
    assert different == "1"
