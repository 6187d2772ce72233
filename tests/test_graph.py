"""Pictures of tapes: every node once, with its stage; Graphviz only where it is installed."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mamlnp import graph
from mamlnp.cli import main


def test_a_gradient_has_two_stages() -> None:
    assert set(graph.sine(1).stages) == {graph.GIVEN, graph.SUPPORT, graph.INNER, graph.RESULT}


def test_a_maml_step_has_all_stages_in_order() -> None:
    drawn = graph.sine(2)
    first = list(dict.fromkeys(drawn.stages))
    order = [graph.GIVEN, graph.SUPPORT, graph.INNER, graph.UPDATE, graph.QUERY]
    assert [stage for stage in first if stage in order] == order
    assert set(first) - set(order) == {graph.OUTER, graph.THROUGH, graph.RESULT}
    assert drawn.stages.count(graph.RESULT) == 2  # the gradients by w1 and w2


def test_what_second_order_adds_reads_the_support_loss_or_serves_what_does() -> None:
    drawn = graph.sine(2)
    stage = {node.serial: s for node, s in zip(drawn.nodes, drawn.stages, strict=True)}
    for node, mine in zip(drawn.nodes, drawn.stages, strict=True):
        read = {stage[x.serial] for x in node.inputs if getattr(x, "serial", 0) in stage}
        if mine is graph.OUTER:
            assert not read & {graph.SUPPORT, graph.INNER, graph.THROUGH}


@pytest.mark.parametrize("order", [1, 2])
def test_the_text_has_every_node_and_edges_between_them_only(order: int) -> None:
    drawn = graph.sine(order)
    text = graph.dot(drawn)
    boxes = set(re.findall(r"^  (n\d+) \[label", text, re.M))
    shown = [node for node in drawn.nodes if node.op.name != "alias"]
    assert {f"n{node.serial}" for node in shown} <= boxes
    ends = set(sum(re.findall(r"(n\d+) -> (n\d+);", text), ()))
    assert ends <= boxes and text.count('label="w1') == text.count('label="w2') == 1
    for name in ("support loss", "its gradient", "result"):
        assert name in text


def test_without_graphviz_the_text_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main(["graph", "sine", "--out", str(tmp_path / "g.svg")])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Graphviz's dot, which is not installed" in line and "g.dot is written" in line
    assert (tmp_path / "g.dot").read_text().startswith("digraph tape")
    main(["graph", "sine", "--order", "1", "--out", str(tmp_path / "first.dot")])
    assert (tmp_path / "first.dot").exists()


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_draws_it(tmp_path: Path, capsys: Any) -> None:
    main(["graph", "sine", "--out", str(tmp_path / "g.svg")])
    assert "second order: back through" in (tmp_path / "g.svg").read_text()
    with pytest.raises(SystemExit):
        main(["graph", "sine", "--out", str(tmp_path / "g.nothing")])
    assert "dot cannot write" in capsys.readouterr().err
    assert not (tmp_path / "g.nothing").exists()
