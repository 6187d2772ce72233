"""The documentation and the code lead to each other: equations to functions, and back."""

import importlib
import inspect
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import mamlnp as ml

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "docs").glob("[0-9]_*.md"))
NAME = re.compile(r"`(mamlnp(?:\.\w+)+)`")


def equations(path: Path) -> list[tuple[str, str]]:
    """Every equation's number, with what is written from it to the next one or heading."""
    parts = re.split(r"\\tag\{([\d.]+)\}", path.read_text("utf-8"))
    return [
        (n, re.split(r"^#", text, flags=re.M)[0])
        for n, text in zip(parts[1::2], parts[2::2], strict=True)
    ]


EQUATIONS = {number: text for path in CHAPTERS for number, text in equations(path)}


def found(name: str) -> Any:
    """The module, class or function of a dotted name."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for part in parts[split:]:
            thing = inspect.getattr_static(thing, part)
        return thing
    raise ImportError(name)


def named(docstring: str) -> list[str]:
    """The equations that a docstring names."""
    lists = re.findall(r"equations? ((?:\d\.\d+(?:,| and)? ?)+)", docstring)
    return [number for text in lists for number in re.findall(r"\d\.\d+", text)]


def test_equations_are_numbered_in_order() -> None:
    assert len(CHAPTERS) == 7
    for path in CHAPTERS:
        chapter = path.name[0]
        numbers = [number for number, _ in equations(path)]
        assert numbers == [f"{chapter}.{n}" for n in range(1, len(numbers) + 1)] != []


@pytest.mark.parametrize("number", EQUATIONS)
def test_an_equation_leads_to_its_function_and_that_one_back(number: str) -> None:
    name = NAME.search(EQUATIONS[number])
    assert name is not None, f"equation {number} names no function"
    text = inspect.getdoc(found(name[1])) or ""
    assert f"equation {number}" in text, f"no line of {name[1]}'s docstring says equation {number}"


def test_every_name_in_the_documentation_exists() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        for name in NAME.findall(path.read_text("utf-8")):
            found(name)


def test_no_function_names_an_equation_that_is_not_there() -> None:
    for path in Path(ml.__file__).parent.rglob("*.py"):
        for text in re.findall(r'"""(.*?)"""', path.read_text("utf-8"), re.S):
            if "docs" in text:
                assert set(named(" ".join(text.split()))) <= set(EQUATIONS), path


def test_references_to_equations_exist() -> None:
    for path in CHAPTERS:
        text = re.sub(r"\\tag\{.*?\}|```.*?```", "", path.read_text("utf-8"), flags=re.S)
        referred = Counter(re.findall(r"\((\d\.\d)\)", text))
        assert set(referred) <= set(EQUATIONS), path


def test_figures_are_there_and_links_lead_somewhere() -> None:
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+)", text):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.name}: {target}"
