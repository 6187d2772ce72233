"""Every Python block of the README and of the documentation runs, and every command exists."""

import csv
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
from PIL import Image

from mamlnp.cli import EXPERIMENTS, main
from mamlnp.learner import BATCH_NORM

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def benchmark(name: str) -> Any:
    """A script of benchmarks/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


reproduce = benchmark("reproduce")


def blocks(page: Path) -> list[str]:
    """The Python in a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)


BLOCKS = [pytest.param(block, id=f"README-{i}") for i, block in enumerate(blocks(README))]
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if blocks(path)]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the README speaks of: letters/CLASS/IMAGE and page/IMAGE."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("letters/alpha/1", "letters/beta/1", "letters/gamma/1", "page/1", "page/2"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40)).astype(np.uint8)).save(path)


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("block", BLOCKS)
def test_python_block_runs(block: str) -> None:
    exec(compile(block, "a block", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_in_order(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    if page.stem == "cuda" and not standin.has_device():
        standin.installed(monkeypatch)
    for block in blocks(page):
        exec(compile(block, "a block", "exec"), names)


def test_there_are_blocks_and_commands() -> None:
    assert len(BLOCKS) == 4 and len(PAGES) >= 7
    trained = set(re.findall(r"mamlnp train ([\w-]+)", README.read_text("utf-8")))
    assert trained == set(EXPERIMENTS)


@pytest.mark.usefixtures("folders")
def test_the_command_beside_the_block_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (b.values[0] for b in BLOCKS if "read_support" in str(b.values[0]))
    exec(compile(str(block), "a block", "exec"), {})
    said = capsys.readouterr().out
    main(["adapt", "omniglot-5w1s", "--support", "letters", "--query", "page"])
    with Path("predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert str({row["image"]: row["class"] for row in rows}) == said.strip()
    for row in rows:
        of_class = {name: float(row[name]) for name in ("alpha", "beta", "gamma")}
        assert sum(of_class.values()) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == max(of_class.values()) == of_class[row["class"]]
    assert "page/1.png" in capsys.readouterr().out


@pytest.mark.parametrize("table", reproduce.TABLES)
def test_tables_are_those_of_the_results(table: str) -> None:
    """What benchmarks/reproduce.py wrote beside the raw results is what the README shows."""
    written = ROOT / "benchmarks" / "results" / f"{table}.md"
    if written.exists():
        readme, text = README.read_text("utf-8"), written.read_text("utf-8")
        assert reproduce.included(readme, table, text) == readme
        assert text in readme


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name) for rows in reproduce.TABLES.values() for row in rows]
)
def test_rows_of_tables_are_commands_that_exist(row: Any) -> None:
    name, *options = row.train.split()
    asked: dict[str, str] = {}
    for word in options:  # an option without a value is a switch
        if word.startswith("--"):
            option = word
            asked[option] = "True"
        else:
            assert asked[option] == "True"
            asked[option] = word
    experiment = EXPERIMENTS[name]
    preset = asked.pop("--preset", None)
    config = experiment.presets[preset] if preset else experiment.config()
    for option, value in asked.items():
        field = option.removeprefix("--").replace("-", "_")
        assert str(getattr(config, field)) != value, f"{option} is the preset's already"
    assert set(row.batch_norms) <= set(BATCH_NORM)


def test_a_row_that_begins_from_another_says_so_wherever_the_runs_are() -> None:
    rows = {row.name: row for row in reproduce.TABLES["ant-dir"]}
    first, then = rows["maml-part1"], rows["maml-part2"]
    words = reproduce.training(then, 2, Path("runs/ant-dir"))
    assert words[words.index("--init-from") + 1] == "runs/ant-dir/maml-part1-2"
    kept = ROOT / "benchmarks" / "runs" / "ant-dir"
    assert reproduce.made_by(kept / "maml-part2-2", then, 2)
    assert not reproduce.made_by(kept / "maml-part3-2", then, 2)
    assert reproduce.made_by(kept / "maml-part1-2", first, 2)
    for row in rows.values():
        if row.begins:  # some of a run of another seed than their own
            (seed,) = row.seeds
            assert reproduce.made_by(kept / f"{row.name}-{seed}", row, seed), row.name
    parts = {name: reproduce.part("ant-dir", row) for name, row in rows.items()}
    assert parts["maml"] == parts["oracle"] == ""
    every = range(1, len(reproduce.ANT_PARTS) + 1)
    assert [parts[f"maml-part{n}"] for n in every] == [f", part {n}" for n in every]
    for table in reproduce.TABLES.values():
        runs = {f"{row.name}-{seed}" for row in table for seed in row.seeds}
        assert {row.begins for row in table} <= {"", *runs}
