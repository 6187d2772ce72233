"""Every Python block of the README and of the documentation runs, and every command exists."""

import re
from pathlib import Path

import pytest

from mamlnp.cli import EXPERIMENTS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCKS = [
    pytest.param(block, id=f"{path.stem}-{i}")
    for path in (README, *sorted((ROOT / "docs").glob("*.md")))
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_block_runs(block: str) -> None:
    exec(compile(block, "a block", "exec"), {})


def test_there_are_blocks_and_commands() -> None:
    assert len(BLOCKS) == 3
    trained = set(re.findall(r"mamlnp train (\w+)", README.read_text("utf-8")))
    assert trained == set(EXPERIMENTS)
