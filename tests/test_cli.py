"""The command line, as a user types it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamlnp import checks, cli
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
    assert "keeps its settings" in capsys.readouterr().err
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
    return np.sinc(x)


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
        (["mine:unknown", "--args", "3"], "mine:unknown fails in line 34 of mine.py: TypeError"),
        (["mine:copies", "--args", "3"], "mine:copies fails in line 46 of mine.py: AttributeErr"),
        (["mine:logarithm", "--args", "[1, -1]"], "is not finite there"),
        (["mine:hinge", "--args", "0x3"], "nothing to differentiate by in its arguments"),
        (["mine:random", "--args", "3"], "not deterministic"),
    ],
)
def test_what_cannot_be_checked(argv: list[str], message: str, capsys: Any) -> None:
    assert run(*["check", *argv]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
