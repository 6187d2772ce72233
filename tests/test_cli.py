"""The command line, as a user types it."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mamlnp import checks, cli, conformance, figures
from mamlnp.experiments import EXPERIMENTS, sine
from mamlnp.op import registry

TINY = ["--meta-iterations", "4", "--validate-every", "2", "--validation-tasks", "5"]
DATA = os.environ.get("MAMLNP_DATA")


def run(*arguments: str) -> int:
    """The exit status."""
    try:
        cli.main(arguments)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert run(*arguments) == 0
        text = capsys.readouterr().out
        assert all(word in text for word in ("train sine", "train omniglot", "evaluate", "check"))


@pytest.mark.parametrize("command", [["train", "sine"], ["train", "omniglot"], ["evaluate"]])
def test_every_command_explains_its_options(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*command, "--help") == 0
    assert f"mamlnp {' '.join(command)}" in capsys.readouterr().out


def test_version_names_what_results_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("mamlnp ")
    assert run("--version", "-v") == 0
    text = capsys.readouterr().out
    names = ("mamlnp", "numpy", "numba", "blas", "blas_architecture", "blas_threads", "cores")
    assert all(f"{name} " in text for name in names)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["bogus"], "'bogus' is not a command"),
        (["train", "bogus"], "train: bogus is not an experiment"),
        (["evaluate", "nowhere"], "nowhere: there is no such folder"),
        (["train", "omniglot", "--preset", "today5w1s"], "no 'today5w1s' of omniglot. Near it are"),
        (["train", "sine", "--out", "file/run"], "file/run: cannot be read or written"),
        (["train", "sine", "--resume", "nowhere"], "nowhere: there is no such folder"),
        (["train", "omniglot", "--data", "nowhere"], "nowhere"),
        (["train", "sine", "--meta-batch-size", "0"], "--meta-batch-size: is 0"),
        (["train", "sine", "--inner-steps", "-1"], "--inner-steps: is -1"),
        (["check", "--op", "bogus"], "there is no 'bogus' to check"),
        (["check", "--order", "7"], "7 is not an order to check"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("runs").exists()


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "sine", "--seeed", "1") == 2
    assert "--seeed" in "".join(capsys.readouterr())


def test_train_evaluate_and_resume_sine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "sine", *TINY) == 0
    out = capsys.readouterr().out
    assert "second order" in out and "mamlnp evaluate runs/sine" in out
    assert sorted(os.listdir("runs/sine")) == [
        ".lock",
        "checkpoint-previous.safetensors",
        "checkpoint.safetensors",
        "config.json",
        "curve.png",
        "metrics.csv",
    ]
    assert run("evaluate", "runs/sine", "--tasks", "10", "--json", "rows.json") == 0
    record = json.loads(Path("rows.json").read_text())
    assert {"setting", "method", "steps", "mean", "ci95", "tasks"} <= set(record["rows"][0])
    assert record["config"]["meta_iterations"] == 4

    assert run("train", "sine", "--resume", "runs/sine") == 0  # already done: nothing changes
    assert run("train", "sine", "--resume", "runs/sine", "--seed", "5") == 2
    said = capsys.readouterr().err
    assert "keeps its settings" in said and "--seed 5 (the run has 0)" in said
    assert run("train", "omniglot", "--resume", "runs/sine") == 2
    assert run("train", "sine", *TINY, "--out", "runs/sine") == 2
    assert "not empty" in capsys.readouterr().err
    assert run("train", "sine", *TINY) == 0
    assert Path("runs/sine-2").is_dir()


def test_first_order_is_said_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "sine", *TINY, "--first-order") == 0
    assert "first order" in capsys.readouterr().out


@pytest.mark.skipif(DATA is None, reason="MAMLNP_DATA does not name a folder with Omniglot")
@pytest.mark.parametrize("preset", ["today-5w1s", "paper-5w1s"])
def test_train_and_evaluate_omniglot(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", preset, "--filters", "4", "--meta-batch-size", "2"]
    assert run("train", "omniglot", *TINY, *options) == 0
    config = json.loads(Path("runs/omniglot/config.json").read_text())["config"]
    assert config["head_std"] == (1.0 if preset == "paper-5w1s" else 0.1)
    assert run("evaluate", "runs/omniglot", "--tasks", "10") == 0
    text = capsys.readouterr().out
    assert "held-out classes" in text and "transductive" in text


def test_check_prints_a_verdict_and_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "--op", "matmul", "--order", "2", "--json", "check.json") == 0
    text = capsys.readouterr().out
    assert "1 right, 0 wrong" in text and "order 2" in text and "order 3" not in text
    (row,) = json.loads(Path("check.json").read_text())["rows"]
    assert row["name"] == "matmul" and row["passed"] and len(row["errors"]) == 2


def test_check_fails_on_a_wrong_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sin = registry["sin"]

    def wrong(ct: Any, out: Any, x: Any) -> Any:
        return ct * out

    monkeypatch.setitem(sin.rules, 0, wrong)
    assert run("check", "--op", "sin") == 1
    text = capsys.readouterr().out
    assert "WRONG" in text and "0 right, 1 wrong: sin" in text


def test_everything_that_can_be_checked_is_right() -> None:
    table = list(checks.all_rows(order=2))
    assert [row.name for row in table] == checks.names()
    assert all(row.passed for row in table), [row for row in table if not row.passed]


# ---- check, of a user's own function

MINE = '''
import numpy as np
from mamlnp.draws import one
from mamlnp.op import op, registry


def energy(x, w):
    return (np.tanh(x @ w) ** 2).sum()


def hinge(x):
    return np.maximum(x, 0.0)


@op(draw=one())
def tripled(xp, x):
    """3 x."""
    return 3 * x


@tripled.vjp("x")
def _(ct, out, x):
    return 2.0 * ct


del registry["tripled"]


def wrong(x):
    return tripled(x).sum()


def unknown(x):
    return np.interp(x, [0.0, 1.0], [1.0, 2.0])


def chosen(x, index):
    return x[index] ** 2


def random(x):
    return x * np.random.default_rng().normal()


def copies(x):
    y = x.copy()
    y[0] = 0
    return y


def logarithm(x):
    return np.log(x)


number = 3
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    np.save(tmp_path / "w.npy", np.ones((4, 2)))
    content = (tmp_path / "w.npy").read_bytes()
    (tmp_path / "damaged.npy").write_bytes(content.replace(b"}", b"(", 1))
    with (tmp_path / "long.npy").open("wb") as file:  # of which NumPy says so in three lines
        header = {"descr": "<f8", "fortran_order": False, "shape": (1,) * 9000}
        np.lib.format.write_array_header_2_0(file, header)


@pytest.mark.usefixtures("mine")
def test_a_right_function_of_ones_own(capsys: Any) -> None:
    assert run(*["check", "mine:energy", "--args", "3x4", "w.npy", "--json", "out.json"]) == 0
    shown = capsys.readouterr().out
    assert "mine:energy: right to order 3" in shown and "WRONG" not in shown
    assert len(json.loads(Path("out.json").read_text())["rows"]) == 10


@pytest.mark.usefixtures("mine")
def test_what_was_not_compared_is_said(capsys: Any) -> None:
    np.save("whole.npy", np.array([0, 2]))
    assert run(*["check", "mine:chosen", "--args", "3", "whole.npy", "--order", "1"]) == 0
    assert "1 not differentiable, not compared: index int64[2]" in capsys.readouterr().out
    assert run(*["check", "--order", "1", "--op", "argmax"]) == 0
    assert "0 right, 0 wrong, 1 not differentiable, not compared" in capsys.readouterr().out


@pytest.mark.usefixtures("mine")
def test_a_kink_is_told_from_an_error(capsys: Any) -> None:
    assert run(*["check", "mine:hinge", "--args", "[1e-9, 1.0]", "--order", "1"]) == 0
    assert "differences left out at kinks" in capsys.readouterr().out


@pytest.mark.usefixtures("mine")
def test_a_wrong_rule_of_ones_own_is_named(capsys: Any) -> None:
    assert run(*["check", "mine:wrong", "--args", "5"]) == 1
    shown = capsys.readouterr().out
    assert "WRONG" in shown and "The op at fault is tripled" in shown


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["mine"], "names no function. Write it as module:name"),
        (["mine:nothing"], "cannot be imported"),
        (["nowhere:f"], "cannot be imported"),
        (["mine:number"], "is no function"),
        (["mine:energy", "--args", "3x4"], "missing a required argument"),
        (["mine:hinge", "--args", "three"], "is neither a shape"),
        (["mine:hinge", "--args", "none.npy"], "is neither a shape"),
        (["mine:hinge", "--args", "damaged.npy"], "is neither a shape"),
        (["mine:hinge", "--args", "long.npy"], "is neither a shape"),
        (["mine:hinge", "--args", "[" * 100_000], "is neither a shape"),
        (["mine:unknown", "--args", "3"], "mine:unknown fails in line 34 of mine.py: Unavailable"),
        (["mine:copies", "--args", "3"], "mine:copies fails in line 47 of mine.py: Unavailable"),
        (["mine:logarithm", "--args", "[1, -1]"], "is not finite there"),
        (["mine:hinge", "--args", "0x3"], "nothing to differentiate by in its arguments"),
        (["mine:random", "--args", "3"], "not deterministic"),
    ],
)
def test_what_cannot_be_checked(argv: list[str], message: str, capsys: Any) -> None:
    assert run(*["check", *argv]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


# ---- every door


COMMANDS = [
    *("evaluate", "adapt", "render", "export", "vectors", "verify", "graph", "landscape"),
    *("figures", "check"),
    *(f"train {name}" for name in EXPERIMENTS),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_level(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "--help") == 0
    assert f"usage: mamlnp {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["train"], ["train", "--help"], ["train", "-h"]])
def test_help_of_train_names_every_experiment(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in EXPERIMENTS) and "evaluate" not in shown


NOWHERE = "there is no folder no/such"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("evaluate RUN --json no/such/a.json", NOWHERE),
        ("adapt omniglot-5w1s --support s --query q --out no/such/a.csv", NOWHERE),
        ("adapt omniglot-5w1s --support s --query q --out folder", "folder: is a folder"),
        ("render cheetah-dir --out no/such/a.gif", NOWHERE),
        ("export RUN no/such/a.safetensors", NOWHERE),
        ("graph sine --out no/such/a.dot", NOWHERE),
        ("landscape --out no/such/a.png", NOWHERE),
        ("check --json no/such/a.json", NOWHERE),
        ("vectors file/a", "file/a: cannot be read or written"),
        ("figures file/a", "file/a: cannot be read or written"),
        ("train sine --out folder", "folder: the folder is not empty"),
        ("train folder --data nowhere --out folder", "folder: the folder is not empty"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    Path("folder").mkdir()
    Path("folder", "a").touch()
    if "RUN" in arguments:
        assert run("train", "sine", *TINY, "--out", "RUN") == 0
        idle = dataclasses.replace(sine.EXPERIMENT, evaluate=lambda *_, **__: pytest.fail("worked"))
        monkeypatch.setitem(EXPERIMENTS, "sine", idle)
    capsys.readouterr()
    for module, work in ((conformance, "write"), (figures, "all_figures"), (checks, "all_rows")):
        monkeypatch.setattr(module, work, lambda *_: pytest.fail("worked"))
    assert run(*arguments.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line


def images(folder: str, *names: bytes) -> None:
    """A file of noise, other noise each, under these names."""
    Path(folder).mkdir(parents=True)
    for name in names:
        pixels = np.frombuffer(name.ljust(64, b"."), np.uint8).reshape(8, 8)
        Image.fromarray(pixels).save(f"{folder}/new.png")
        os.rename(f"{folder}/new.png", os.fsencode(folder) + b"/" + name)


@pytest.mark.skipif(sys.platform != "linux", reason="names there are text")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_that_is_no_text_loses_nothing(encoding: str) -> None:
    for name in (b"caf\xe9", b"other"):
        images(os.fsdecode(b"support/" + name), name + b".png")
    images("query", b"q\xe9.png", "\u00e9.png".encode())
    done = subprocess.run(
        [sys.executable, "-m", "mamlnp", "adapt", "omniglot-5w1s", "--support", "support",
         "--query", "query"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"written to predictions.csv" in done.stdout and done.stdout.count(b"query/") == 2
    table = Path("predictions.csv").read_bytes()
    assert all(name in table for name in (b"caf\xe9", b"query/q\xe9.png", "\u00e9".encode()))


def test_what_adapt_cannot_know_and_what_it_left_out_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images("support/one", b"a.png")
    images("query", b"a.png")
    Path("query/photo.heic").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("adapt", "omniglot-5w1s", "--support", "support", "--query", "query") == 0
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("mamlnp: query: photo.heic left out")
    assert second.startswith("mamlnp: adapt: all images are of one class")


def test_the_home_of_a_path_is_found_whatever_the_shell_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run("train", "folder", "--data=~/images") == 2
    assert f"{tmp_path}/home/images: there is no such folder" in capsys.readouterr().err
    Path("home").mkdir()
    assert run("train", "sine", *TINY, "--out=~/run") == 0
    assert Path("home/run/config.json").exists()
    assert run("evaluate", "~/run", "--tasks", "5") == 0
    assert run("graph", "sine", "--out=~/tape.dot") == 0 and Path("home/tape.dot").exists()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MPLBACKEND", "module://no_such.backend", ""),
        ("NUMBA_DISABLE_JIT", "1", "NUMBA_DISABLE_JIT: is set"),
    ],
)
def test_what_other_programs_set_is_harmless_or_said(name: str, value: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mamlnp", "train", "sine", *TINY],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, name: value, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "Traceback" not in done.stderr and says in done.stderr
    assert done.returncode == (2 if says else 0)


def test_ctrl_c_while_importing_is_a_line() -> None:
    program = (
        "import builtins, runpy, sys\n"
        "usual = builtins.__import__\n"
        "def stopped(name, *rest, **more):\n"
        "    if name == 'tyro':\n"
        "        raise KeyboardInterrupt\n"
        "    return usual(name, *rest, **more)\n"
        "builtins.__import__ = stopped\n"
        "sys.argv = ['mamlnp', '--version']\n"
        "runpy.run_module('mamlnp', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (130, "mamlnp: interrupted.\n")


def test_a_name_that_comes_with_the_package_is_scored_like_a_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    how = ("--tasks", "2")
    assert run("evaluate", "nav2d", *how) == 0
    first = capsys.readouterr().out
    assert Path("runs/nav2d/evaluation.json").exists() and "runs/nav2d" in first
    assert run("evaluate", "nav2d", *how) == 0
    assert capsys.readouterr().out == first
    Path("runs/nav2d").rename("runs/omniglot-5w1s")
    assert run("evaluate", "omniglot-5w1s", *how) == 2
    assert "runs/omniglot-5w1s: holds another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([4.0, 1.0, 0.5], ""),
        (
            [4.0, 1.0, 4e15],
            "done, but the training diverged: its loss was 4 to begin with and is 4e+15",
        ),
        ([4.0], ""),
        ([], ""),
    ],
)
def test_a_training_that_diverged_does_not_end_as_if_it_were_done(
    losses: list[float], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def train(config: Any, run: Any, *_: Any, **__: Any) -> None:
        for n, loss in enumerate(losses):
            run.log(n, {"train_loss": loss})

    monkeypatch.setitem(EXPERIMENTS, "sine", dataclasses.replace(sine.EXPERIMENT, train=train))
    assert run("train", "sine", "--out", "run") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(says or "done. ") and last.endswith("mamlnp evaluate run")


def test_a_run_that_was_stopped_says_of_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "sine", *TINY, "--out", "run") == 0
    config = Path("run/config.json")
    config.write_text(config.read_text().replace('"meta_iterations": 4', '"meta_iterations": 9000'))
    assert run("evaluate", "run", "--tasks", "5") == 0
    assert (
        "best of 4 on 5 validation tasks (of 9000 that were asked for)" in capsys.readouterr().out
    )
