"""Every Python block of the README runs, and every command in it exists."""

import re
from pathlib import Path

import pytest

from mamlnp.cli import EXPERIMENTS

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_block_runs(block: str) -> None:
    exec(compile(block, str(README), "exec"), {})


def test_there_are_blocks_and_commands() -> None:
    assert len(BLOCKS) == 2
    trained = set(re.findall(r"mamlnp train (\w+)", TEXT))
    assert trained == set(EXPERIMENTS)
