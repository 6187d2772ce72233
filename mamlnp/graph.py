"""The tape of a tiny network as a picture: forward, gradient, inner update, gradient through it.

Every box is one Array of the engine's and every arrow an input of the operation that made it, just
as the pullback walks them; only what renames (``alias``) is left out.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import tree
from .array import Array, array
from .autodiff import grad, tape
from .errors import DeviceError
from .meta import maml
from .op import serials
from .ops.elementwise import tanh
from .ops.linear import matmul
from .ops.reduce import mean, sum
from .runs import atomic_write
from .tasks import Batch

HIDDEN = ("alias",)  # nodes that only rename


class Stage(NamedTuple):
    """A part of the computation.

    Attributes:
        name: what a reader calls it.
        colour: of its boxes.
    """

    name: str
    colour: str


GIVEN = Stage("parameters and data", "#ffffff")
SUPPORT = Stage("support loss", "#d7e8f7")
INNER = Stage("its gradient", "#fbe3c0")
UPDATE = Stage("inner update", "#d6efd0")
QUERY = Stage("query loss", "#c3d4f0")
OUTER = Stage("gradient of the query loss", "#e3d4f2")
THROUGH = Stage("second order: back through the inner gradient", "#f6c6cb")
RESULT = Stage("result", "#ffffff")


class Drawn(NamedTuple):
    """A tape with the stage of every node, oldest first."""

    nodes: list[Array]
    stages: list[Stage]
    names: dict[int, str]


def _loss(params: Any, batch: Batch) -> Array:
    """Mean squared error of one tanh unit, one number a task."""
    hidden = tanh(matmul(batch.x, params["w1"]))
    error = matmul(hidden, params["w2"]) - batch.y
    return mean(error * error, (-2, -1))


def sine(order: int) -> Drawn:
    """The tape of one tanh unit on a sine wave's points.

    Args:
        order: 1: the loss and its gradient; 2: all of a MAML step, the meta-gradient too.
    """
    x = np.linspace(-2, 2, 5).reshape(1, 5, 1)
    support, query = (
        Batch(array(x), array(np.sin(x))),
        Batch(array(x + 0.2), array(np.sin(x + 0.2))),
    )
    params = {"w1": array([[0.7]]), "w2": array([[0.9]])}
    marks: list[tuple[int, Stage]] = []

    def mark(stage: Stage) -> None:
        marks.append((next(serials), stage))

    def marked(before: Stage, after: Stage) -> Callable[[Any, Batch], Array]:
        def loss(params: Any, batch: Batch) -> Array:
            mark(before)
            out = _loss(params, batch)
            mark(after)
            return out

        return loss

    def first(theta: Any) -> Any:
        return grad(lambda theta: sum(marked(SUPPORT, INNER)(theta, support)))(theta)

    def second(theta: Any) -> Any:
        def meta(theta: Any) -> Array:
            grads = first(theta)
            mark(UPDATE)
            adapted = maml.descend(theta, grads, 0.1)
            return sum(marked(QUERY, OUTER)(adapted, query))

        return grad(meta)(theta)

    _, nodes = tape(first if order == 1 else second, params)
    names = {}
    targets = [node for node in nodes if node.op.name == "alias"][: len(tree.leaves(params))]
    for name, node in zip(("w1", "w2"), targets, strict=True):
        names[node.serial] = name
    stages = [next((s for n, s in reversed(marks) if n < x.serial), GIVEN) for x in nodes]
    return Drawn(nodes, list(_second_order(nodes, stages)), names)


def _second_order(nodes: list[Array], stages: list[Stage]) -> Iterator[Stage]:
    """The stages, where what only second order has is told from the query loss's own gradient: all
    that is computed with what the support loss and its gradient left, or for that alone."""
    found = {node.serial: stage for node, stage in zip(nodes, stages, strict=True)}
    readers: dict[int, list[int]] = {node.serial: [] for node in nodes}
    for node in nodes:
        before = [x.serial for x in node.inputs if isinstance(x, Array) and x.serial in found]
        for serial in before:
            readers[serial].append(node.serial)
        if found[node.serial] is OUTER and {SUPPORT, INNER, THROUGH} & {found[n] for n in before}:
            found[node.serial] = THROUGH
    for node in reversed(nodes):
        after = {found[n] for n in readers[node.serial]}
        if not after:
            found[node.serial] = RESULT
        elif found[node.serial] is OUTER and after == {THROUGH}:
            found[node.serial] = THROUGH
    return (found[node.serial] for node in nodes)


def _shown(x: Any) -> Any:
    """What a reader sees in its place: the node behind renamings."""
    while isinstance(x, Array) and x.serial and x.op.name in HIDDEN and x.inputs[0].serial:
        x = x.inputs[0]
    return x


def dot(drawn: Drawn) -> str:
    """The tape in Graphviz's language."""
    lines = [
        "digraph tape {",
        '  rankdir=TB; ranksep=0.25; nodesep=0.15; fontname="Helvetica";',
        '  node [shape=box, style="filled,rounded", fontname="Helvetica", fontsize=11, '
        'height=0.3, margin="0.08,0.03"];',
        '  edge [arrowsize=0.5, color="#555555"];',
        *_legend(drawn),
    ]
    kept = [
        (node, stage)
        for node, stage in zip(drawn.nodes, drawn.stages, strict=True)
        if node.op.name not in HIDDEN or _shown(node) is node
    ]
    for node, stage in kept:
        label, colour = node.op.name, stage.colour
        if _shown(node).op.name in HIDDEN:
            label, colour = drawn.names.get(node.serial, "parameter"), GIVEN.colour
        shape = "x".join(map(str, node.shape)) or "scalar"
        lines.append(f'  n{node.serial} [label="{label}  {shape}", fillcolor="{colour}"];')
    known = {node.serial for node, _ in kept}
    lines += [f"  n{node.serial} [peripheries=2];" for node, stage in kept if stage is RESULT]
    for node, _ in kept:
        for x in node.inputs:
            source = _shown(x)
            if isinstance(source, Array) and source.serial in known and source is not node:
                lines.append(f"  n{source.serial} -> n{node.serial};")
    return "\n".join([*lines, "}"]) + "\n"


def _legend(drawn: Drawn) -> Iterator[str]:
    """A box for each stage that is there, in a column of its own."""
    there = set(drawn.stages)
    stages = [GIVEN, *(s for s in (SUPPORT, INNER, UPDATE, QUERY, OUTER, THROUGH) if s in there)]
    yield '  subgraph cluster_legend { label="stages"; color="#bbbbbb"; fontsize=11;'
    for i, stage in enumerate(stages):
        yield f'    s{i} [label="{stage.name}", fillcolor="{stage.colour}"];'
    yield f'    s{len(stages)} [label="{RESULT.name}", fillcolor="{RESULT.colour}", peripheries=2];'
    yield "    " + " -> ".join(f"s{i}" for i in range(len(stages) + 1)) + " [style=invis];"
    yield "  }"


def draw(drawn: Drawn, out: Path) -> str:
    """Write the tape in Graphviz's language beside ``out``, and ``out`` itself if Graphviz is
    installed.

    Args:
        drawn: the tape.
        out: a picture, by its ending; ``.dot`` for the text alone.

    Returns:
        What was written, as text.

    Raises:
        DeviceError: Graphviz is not installed, or cannot write such a file; the text is there.
    """
    text, source = dot(drawn), out.with_suffix(".dot")
    with atomic_write(source) as partial:
        partial.write_text(text, encoding="utf-8")
    if out.suffix == ".dot":
        return f"written to {source}"
    program = shutil.which("dot")
    if program is None:
        raise DeviceError(
            f"graph: {out} needs Graphviz's dot, which is not installed; {source} is written. "
            "Install graphviz, or paste that file into an online viewer."
        )
    with atomic_write(out) as partial:
        done = subprocess.run(
            [program, f"-T{out.suffix[1:]}", "-o", partial, source],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise DeviceError(f"graph: dot cannot write {out} ({done.stderr.strip()}).")
    return f"written to {out} and {source}"
