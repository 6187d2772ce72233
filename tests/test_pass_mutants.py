"""Every mistake planted in the compiler's passes, fusion or plan is caught: by the check of each
pass on numbers, by the plan's verifier, or by the values."""

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from test_compile import agree, lifted
from test_compile_graphs import Images, Matrices, parameters, residual, turned

import mamlnp as ml
from mamlnp import array, grad, tree
from mamlnp.compile import fuse, passes, plan as planning, verify
from mamlnp.compile.trace import trace
from mamlnp.errors import CompileError

# ---- what is compiled


def numbers(*shapes: Any, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [0.5 * rng.standard_normal(shape) for shape in shapes]


def through(network: Any) -> Any:
    """Every layer after the other, each reading what the last ones made."""

    def f(p: Any) -> Any:
        values = [p["x"], p["y"]]
        weights = [p["w0"], p["w1"], p["w0"]]
        for layer in network.layers.values():
            recent = [values[-1], values[-2], values[-1 - len(values) % 2]]
            values.append(layer(p, *recent[: network.reads], *weights[: network.reads]))
        return sum((x * x).sum() for x in values) * 0.01

    return lambda p, v: (f(p), grad(f)(p), ml.hvp(f, p, v))


def named(network: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {k: 0.4 * rng.standard_normal(s) for k, s in network.shapes.items()}


def moved(x: Any, y: Any, n: Any) -> Any:
    """Views of views, sums of them, known numbers, results that are arguments or are alike."""
    twice = ml.transpose(ml.transpose(x, (1, 2, 0)), (1, 0, 2))
    p, q = x @ y, y @ x
    known = ml.array(np.full(x.shape, 0.1)) * ml.array(np.arange(27.0).reshape(x.shape) / 7) + x
    return (
        twice,
        ml.transpose(p, (1, 0, 2)) + ml.transpose(q, (2, 1, 0)),
        known,
        known,
        ml.sum(ml.ones_like(x), 1),
        ml.zeros_like(x),
        ml.zeros_like(x[0]),
        ml.sum(ml.broadcast_to(x[0], (3, 3, 3)) * 1.5, 0),
        ml.sum(ml.ones_like(x) * 3, 1) + x[:, 0],
        x * 2.0 - ml.neg(ml.neg(y)) / 1.0,
        ml.array(np.arange(3.0)) + x,
        ml.array(np.arange(3.0) + 1) * y,
        y**2 + (x * 0.5) / 2.0,
        n * 1.0,
        x,
        twice,
        x[1:, ::-1] * y[:-1, 1:2],
        ml.reshape(ml.transpose(x), (9, 3)) * 2.0,
        y[2],
        ml.broadcast_to(y[:, :1], (3, 3, 3)) + ml.mean(x, -1, keepdims=True) + x,
        ml.exp(x - ml.max(x, -1, keepdims=True)) / ml.sum(ml.exp(x), -1, keepdims=True),
    )


def multiplied(x: Any, w: Any, t: Any, b: Any) -> Any:
    """Batches of products, of every layout; sums of them."""
    lead = ml.transpose(x, (1, 0, 2, 3))
    z, again = x @ w + x @ b[0], x @ w + x @ b[2]
    return (
        lead @ t,
        x @ b,
        x[..., :2, :] @ w,
        turned(x) @ x,
        turned(x) @ (x @ w[:, :1]),
        w @ turned(w) + turned(w) @ w,
        z @ w + z,
        ml.tanh(again @ w + again),
        ((x @ (6 * w)) * x).sum(0),
        ml.exp(x) @ w,
        ml.relu(x @ w + x @ b[1] + lead.swapaxes(0, 1) @ b[0]).sum((0, 1)),
        x + z @ w,
        (x @ (2 * w) + x @ (3 * w)) + (x @ (4 * w) + x @ (5 * w)),
        (ml.tanh(x) > 0) * ml.exp(x) @ w,
    )


def narrow(n: Any, x: Any, w: Any) -> Any:
    """Loops over elements of several sizes, one after another."""
    kept, product = x * 3 > 0.5, x @ w
    aside = ml.where(turned(kept), turned(product), 0.1).sum()
    chosen = ml.where(kept, product, 0.1) @ w
    for _ in range(3):
        mask = x > ml.max(x, 0) * 0.5
        n = n + ml.astype(mask, np.int64)
        x = x - ml.mean(ml.where(mask, x, 0.1 * x), 0) + ml.sum(x, 1, keepdims=True)
    return n, x, aside, product, chosen


def pooled(x: Any, w: Any) -> Any:
    """Windows of pools apart and overlapping, of images that lie otherwise; their positions."""
    aside = ml.transpose(x, (0, 2, 1, 3))

    def loss(x: Any) -> Any:
        return (
            (ml.max_pool2d(x, 2) ** 2).sum()
            + (ml.max_pool2d(ml.transpose(x, (0, 2, 1, 3)), 2) ** 3).sum()
            + (ml.max_pool2d(x, 3, 2) ** 2).sum()
        )

    where = ml.ops.pool.pool_positions(x, size=(2, 2), stride=2)
    return loss(x), grad(loss)(x), where, ml.take(x, where), ml.conv2d(aside, w)


def windows_of_tasks(x: Any, w: Any) -> Any:
    found = ml.ops.linear.patches(x, size=(3, 3), stride=1, padding=((0, 0), (0, 0)))
    return ml.reshape(found, (2, 3, 18, 18)) @ w


PROGRAMS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "moved": (moved, [*numbers((3, 3, 3), (3, 3, 3)), np.arange(3)]),
    "multiplied": (multiplied, numbers((2, 3, 4, 4), (4, 4), (3, 2, 4, 4), (3, 4, 4))),
    "narrow": (narrow, [np.arange(35).reshape(5, 7), *numbers((5, 7), (7, 7))]),
    "residual": (
        lambda p, v, x: ml.hvp(lambda p: residual(p, x), p, v),
        [parameters(0), parameters(1), *numbers((3, 4))],
    ),
    "pooled": (pooled, numbers((2, 4, 6, 2), (3, 3, 2, 2))),
    "windows of tasks": (windows_of_tasks, numbers((2, 3, 2, 5, 5, 2), (3, 18, 4))),
    "without constants": (moved, [*numbers((3, 3, 3), (3, 3, 3)), np.arange(3)]),
    "matrices": (through(Matrices), [named(Matrices, 0), named(Matrices, 1)]),
    "images": (through(Images), [named(Images, 0), named(Images, 1)]),
}
WITHOUT = {"without constants": ("constants",)}


# ---- what a mistake is


class Mutant(NamedTuple):
    """Attributes:
    name: what the mistake is.
    owner: of the function: a module or class of the compiler.
    function: whose text is changed.
    old: the text; it stands there once.
    new: what it becomes.
    also: another mistake, without which this one does not matter.
    """

    name: str
    owner: Any
    function: str
    old: str
    new: str
    also: "Mutant | None" = None


def changed(mutant: Mutant) -> Callable[..., Any]:
    function = getattr(mutant.owner, mutant.function)
    text = textwrap.dedent(inspect.getsource(function))
    assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.function} has another text"
    text = text.replace(mutant.old, mutant.new).replace("@staticmethod\n", "")
    scope: dict[str, Any] = {}
    exec("from __future__ import annotations\n" + text, function.__globals__, scope)
    return scope[mutant.function]


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The mistake, wherever the compiler knows the function by name."""
    function = getattr(mutant.owner, mutant.function)
    static = isinstance(inspect.getattr_static(mutant.owner, mutant.function), staticmethod)
    new = staticmethod(changed(mutant)) if static else changed(mutant)
    modules = [m for name, m in sys.modules.items() if name.startswith("mamlnp.compile")]
    with ExitStack() as stack:
        if mutant.also:
            stack.enter_context(planted(mutant.also))
        for place in [mutant.owner] if inspect.isclass(mutant.owner) else modules:
            if getattr(place, mutant.function, None) is function and place is not verify:
                stack.enter_context(mock.patch.object(place, mutant.function, new))
        yield


COUNTED = Mutant("a use count wrong", passes, "_accumulating",
                 "uses[node.number] == 1", "uses[node.number] >= 1")  # fmt: skip

MUTANTS = [
    # passes
    Mutant("shared whatever the parameters", passes, "share", "repr(node.params), ", ""),
    Mutant("shared whatever the shape", passes, "share", "node.shape, ", ""),
    Mutant("shared whatever the constant", passes, "share", ", data)", ")"),
    Mutant("constants folded in float32", passes, "_simplified",
           "np.asarray(out, node.dtype)", "np.asarray(np.float32(out), node.dtype)"),
    Mutant("times two is nothing", passes, "_simplified",
           '("mul", (x, y)) if _is(y, 1)', '("mul", (x, y)) if _is(y, 2)'),
    Mutant("squares are nothing", passes, "_simplified",
           '("div" | "power", (x, y)) if _is(y, 1)', '("div" | "power", (x, y)) if _is(y, 2)'),
    Mutant("minus minus is minus", passes, "_simplified", "same = y.args[0]", "same = y"),
    Mutant("times one keeps the type", passes, "_simplified", " and same.dtype == node.dtype", ""),
    Mutant("a dropped broadcast", passes, "_simplified",
           "return broadcast_to(like(node, args, shape), node.shape)",
           "return like(node, args, shape)"),
    Mutant("a sum of equal numbers is one of them", passes, "total",
           'x.params["value"] * count', 'x.params["value"]'),
    Mutant("transposes joined in the wrong order", passes, "transpose",
           'tuple(x.params["axes"][a] for a in axes)', 'tuple(axes[a] for a in x.params["axes"])'),
    Mutant("a transpose is a reshape", passes, "transpose",
           "long == sorted(long)", "long[:1] != sorted(long)[-1:]"),
    Mutant("(a b)' = a' b'", passes, "_transposed",
           "(swapped(b), swapped(a))", "(swapped(a), swapped(b))"),
    Mutant("a thin product summed along the other axis", passes, "_thin",
           "x, y, axis = swapped(a), b, -2", "x, y, axis = swapped(a), b, -1"),
    Mutant("windows that overlap have winners", passes, "winners",
           'size == (positions.params["stride"],) * 2 and ', ""),
    Mutant("positions that are asked for are winners", passes, "winners",
           "positions not in graph.outputs and ", ""),
    Mutant("a product added to itself", passes, "_summed",
           "like(a, (*a.args, b))", "like(a, (*a.args, a))"),
    Mutant("two sums within one product", passes, "_summed", " and len(a.args) == 2", ""),
    Mutant("different transposes joined", passes, "_summed", " and a.params == b.params", ""),
    Mutant("weights that serve some tasks", passes, "convolutions",
           "in (1, math.prod(lead))", "<= math.prod(lead)"),
    Mutant("parts added along another axis", passes, "in_parts",
           "total(product, (len(lead),)", "total(product, (len(lead) + 1,)"),
    Mutant("parts that forget what they add to", passes, "in_parts",
           "if len(args) == 3:", "if len(args) == 4:"),
    Mutant("the second step of a maximum is a sum", passes, "in_two_steps",
           "Node(node.op, (part,)", 'Node("sum", (part,)'),
    Mutant("a second step over fewer axes", passes, "in_two_steps",
           "for a in axes[:late])", "for a in axes[:1])"),
    # settling and fusion
    Mutant("kernels read views", fuse, "settle",
           "a if _is_plain(a, memory) else copy(a)", "a"),
    Mutant("one result for two", fuse, "settle", " or x in outputs", ""),
    Mutant("an argument is a result", fuse, "settle",
           '("input", "constant", "fill")', '("constant", "fill")'),
    Mutant("a view is a result", fuse, "settle", "x.op in VIEWS or ", ""),
    Mutant("a transposed matrix read as it is", fuse, "matrix", "return True, ", "return False, "),
    Mutant("tasks in another order have one stride", fuse, "batch", "outer != side * inner",
           "outer < 0"),
    Mutant("a slice begins at the beginning", fuse.Memory, "_moved", "base.offset + start",
           "base.offset"),
    Mutant("a transpose is in order", fuse.Memory, "is_whole",
           "dense(x.shape, access.strides)", "bool(access.strides)"),
    Mutant("a loop placed before what it reads", fuse._Fusion, "_shares",
           "self.when.get(at, -1) >= position", "self.when.get(at, -1) > position"),
    Mutant("what other steps read is not kept", fuse._Fusion, "_kept",
           "if node.op not in VIEWS:", "if node.op not in (*VIEWS, 'matmul'):"),
    # the plan
    Mutant("a liveness off by one", planning.Plan, "__init__",
           "if last[x] == i and", "if last[x] in (i, i + 1) and"),
    Mutant("released before the results are placed", planning.Plan, "__init__",
           "        for node in made:\n            heir",
           "        for node in dying:\n            self.arena.release(node)\n"
           "        for node in made:\n            heir"),
    Mutant("a product adds to what nobody put there", planning.Plan, "__init__",
           "if heir is None and _adds(row):", "if False:"),
    Mutant("beta = 1 too many", planning.Plan, "__init__", "self.rows.append(row)",
           "self.rows.append(Row(row.kernel, [*row.words[:-1], 1]) if isinstance(row, Row) and "
           "row.kernel[0] == 'product' else row)"),
    Mutant("beta = 0 too many", planning, "_product", "int(len(node.args) == 3)", "0"),
    Mutant("a product written over its factor", planning.Plan, "_heir",
           "step.args[2] if step.args[2] not in factors else None", "step.args[2]", COUNTED),
    Mutant("an heir of another shape", planning.Plan, "_heir",
           "all(a.shape == node.shape and self.memory.is_whole(a) for a in views)", "True"),
    Mutant("an heir of what another result reads", planning.Plan, "_heir",
           "any(a in needed for a in views)", "True"),
    Mutant("an heir of another type", planning.Plan, "_heir", "x.dtype == node.dtype", "True"),
    Mutant("a gap that stays as large", planning.Arena, "take",
           "(offset + need, size - need)", "(offset, size)"),
    Mutant("a gap that is too small", planning.Arena, "take", "if size >= need", "if size"),
    Mutant("a gap in the middle grows", planning.Arena, "take",
           "if last[1] and sum(last) == self.size:", "if last[1]:"),
    Mutant("gaps joined that do not touch", planning.Arena, "release",
           "if gap[0] + gap[1] == start:", "if gap[0] + gap[1] <= start:"),
    Mutant("memory rounded down", planning.Arena, "bytes_of", "-(-node.size * node.dtype.itemsize "
           "// ALIGNMENT)", "(node.size * node.dtype.itemsize // ALIGNMENT)"),
    Mutant("loops walk along what is repeated", planning, "_broadcast",
           "0 if side == 1 else s", "s"),
    Mutant("axes joined that some walk apart", planning, "_collapsed",
           "if sides and all(", "if sides and any("),
    Mutant("sums begun but for one", planning._Nest, "__init__",
           "[r.size for r in", "[r.size - 1 for r in"),
    Mutant("operands taken for one", planning._Nest, "_source",
           "key = (access.root, access.offset, strides)", "key = (access.root, 0, strides)"),
    Mutant("matrices that serve some of a batch", planning, "batch_stride",
           "if own == math.prod(lead) else None", ""),
    Mutant("rows with a gap taken as one product", planning, "_product",
           " and sa == n * lda", ""),
    Mutant("height for width in a pool", planning, "_pooled",
           "At(node, 0), n, h, w, c]", "At(node, 0), n, w, h, c]"),
    Mutant("height for width in windows", planning, "_windows",
           "At(node, 0), n, h, w, c,", "At(node, 0), n, w, h, c,"),
    Mutant("too little scratch memory", planning, "_scratch",
           "(_lines(node, line), line)", "(1, line)"),
]  # fmt: skip

# No pass is wrong in these, so that nothing but the verifier can tell before a replay does.
VERIFIERS_OWN = {
    "a liveness off by one",
    "a loop placed before what it reads",
    "a product adds to what nobody put there",
    "a product written over its factor",
    "an argument is a result",
    "an heir of another type",
    "an heir of what another result reads",
    "beta = 1 too many",
    "gaps joined that do not touch",
    "released before the results are placed",
    "weights that serve some tasks",
}

# Mistakes that change no value, with the reason.
HARMLESS = [
    (
        Mutant("nothing dies", planning.Plan, "__init__",
               "if last[x] == i and", "if last[x] + 1 == i and"),
        "no memory is used again",
    ),
    (
        COUNTED,
        "the plan copies what a product adds to where it is read again: it costs time only",
    ),
]  # fmt: skip


# ---- how it is caught


def planned(name: str) -> str:
    """What the checks say of a program's passes and plan, not run: "", or the error."""
    f, args = PROGRAMS[name]
    try:
        ml.compile(f, without=WITHOUT.get(name, ())).explain(*lifted(args))
    except Exception as error:
        return str(error) or repr(error)
    return ""


def on_a_device() -> str:
    """The two passes that only a device needs."""

    def f(x: Any, y: Any) -> Any:
        return ml.transpose(x) @ y + y.T @ x, ml.max(x * 2.0), ml.max(ml.reshape(y, (2, 2, 72)))

    arrays = [array(x) for x in numbers((48, 6), (48, 6))]
    graph, *_ = trace(f, tuple(arrays))
    try:
        graph = passes.products(passes.rewrite(graph, passes.lower), passes.lower, windows=False)
        check = verify.Passes(graph, [x.value for x in arrays])
        for name in ("in_parts", "in_two_steps"):
            graph = getattr(passes, name)(graph)
            check(name, graph)
    except Exception as error:
        return str(error) or repr(error)
    return ""


@contextmanager
def thresholds() -> Iterator[None]:
    """Small arrays are treated as large ones."""
    small = {"LARGEST_WINDOWS": 0, "WORTHWHILE": 1, "WIDE": 5, "FEWEST_ROWS": 2}
    with mock.patch.multiple(passes, **small), mock.patch("builtins.print"):
        yield


def by_pass_checks() -> bool:
    with mock.patch.object(verify, "check_plan", lambda plan: None):
        return any(planned(name) for name in PROGRAMS) or bool(on_a_device())


def by_the_verifier() -> bool:
    silent = mock.patch.object(verify.Passes, "__call__", lambda self, name, graph: None)
    with silent:
        return any(planned(name) for name in PROGRAMS)


def by_values() -> bool:
    for f, args in PROGRAMS.values():
        expected = f(*lifted(args))
        scale = max(float(np.abs(x.numpy()).max()) for x in tree.leaves(expected))
        try:
            agree(ml.compile(f)(*args), expected, scale)
        except (AssertionError, CompileError):
            return True
    return False


def catchers(mutant: Mutant) -> list[str]:
    """What catches it; the values are asked, for a wrong plan may crash, only after both checks."""
    with thresholds(), planted(mutant):
        ways = {"pass checks": by_pass_checks(), "verifier": by_the_verifier()}
        if not any(ways.values()):
            ways["values"] = by_values()
    return [way for way, caught in ways.items() if caught]


def test_the_compiler_as_it_is_passes() -> None:
    with thresholds():
        said = {name: planned(name) for name in PROGRAMS}
        assert not any(said.values()), said
        assert not on_a_device()
        assert not by_values()


def test_every_mutant_of_the_passes_and_the_plan_is_caught(capsys: Any) -> None:
    found = {mutant.name: catchers(mutant) for mutant in MUTANTS}
    caught = {w: sum(w in ways for ways in found.values()) for w in ("pass checks", "verifier")}
    alone = {name for name, ways in found.items() if ways == ["verifier"]}
    with capsys.disabled():
        print(
            f"\n{len(MUTANTS)} mutants of passes, fusion and plan: "
            f"{sum(map(bool, found.values()))} caught, {caught['pass checks']} by the checks of "
            f"passes, {caught['verifier']} by the plan's verifier, {len(alone)} by it alone"
        )
    assert [name for name, ways in found.items() if not ways] == []
    assert alone >= VERIFIERS_OWN


@pytest.mark.parametrize(("mutant", "why"), HARMLESS, ids=[m.name for m, _ in HARMLESS])
def test_a_mistake_that_is_harmless_changes_no_value(mutant: Mutant, why: str) -> None:
    with thresholds(), planted(mutant):
        assert not by_pass_checks() and not by_the_verifier() and not by_values()
