"""compile(f): trace once, then replay at the machine's speed, with the same results.

In reading order: ``trace`` (f runs once on Nodes, which makes a graph), ``passes`` (equal graphs
that compute less), ``fuse`` (which operations share a loop, what is kept in memory), ``plan`` (the
kernels and the memory of a replay), ``host`` and ``device`` (a replay on each of them). ``verify``
holds each of them against the one before, ``mirror`` the first replay against f. Nothing outside
knows of this folder but who calls it.
"""

from __future__ import annotations

import functools
import importlib
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from .. import backend, tree
from ..array import Array
from ..backend.machine import advise, blas
from ..errors import CaptureError, DeviceError
from ..op import as_array
from . import host, mirror, passes, verify
from .fuse import settle, steps
from .plan import BadDataError, Plan
from .trace import Graph, check_repeats, trace
from .verify import debug_compile as debug_compile

Tree = Any

PASSES = ("constants", "common subexpressions", "products", "fusion", "memory")
MOST_PLANS = 16  # kept for one function


class Traced:
    """A function for arguments of one kind: its plan, and memory for every thread that runs it.

    Attributes:
        out: what the function returns, an Array for each of the graph's outputs.
        graph: after all passes.
        counts: how many operations there were when traced, and after each pass.
        plan: what is run.
        source: the graph as traced, until a replay was held against the function.
        held: what came of that (see mirror.py); "" until then.
        replays: of the plan, those that no thread is running.
    """

    def __init__(
        self, f: Callable[..., Any], args: Tree, without: Collection[str], device: str
    ) -> None:
        graph, self.out, made = trace(f, args, device)
        check_repeats(graph, self.out, *trace(f, args, device)[:2])
        self.source, self.held = graph, ""
        on_host = device == "cpu"
        libraries = not on_host or bool(blas().functions)  # whose products can be called
        self.counts = {"traced": made}
        check = None
        if verify.is_debugging():
            arrays = [x.value for x in tree.leaves(args) if x.__class__ is Array]
            check = verify.Passes(graph, arrays)

        def after(name: str, graph: Graph) -> Graph:
            if check:
                check(name, graph)
            self.counts[name] = sum(
                x.op not in ("input", "constant", "fill") for x in graph.nodes()
            )
            return graph

        after("dead code", graph)
        graph = after("lowering", passes.rewrite(graph, passes.lower))
        rule = passes.lower
        if "constants" not in without:
            rule = passes.simplify
            graph = after("constants", passes.rewrite(graph, rule))
        if "common subexpressions" not in without:
            graph = after("common subexpressions", passes.share(graph))
        if "products" not in without:
            windows = on_host and libraries
            graph = after("products", passes.products(graph, rule, windows=windows))
        if not on_host:
            graph = after("long products", passes.in_parts(graph))
            graph = after("wide reductions", passes.in_two_steps(graph))
        self.graph = settle(graph)
        if check:
            check("settling", self.graph)
        todo = steps(self.graph, fused="fusion" not in without, alike=not on_host)
        self.counts["fusion"] = len(todo)
        self.plan = Plan(self.graph, todo, products=libraries, reuse="memory" not in without)
        if check:
            verify.check_plan(self.plan)
        where = host if on_host else importlib.import_module(f"{__name__}.device")
        self._replay: Callable[[Plan], Any] = where.Replay
        self.replays: list[Any] = []

    def __call__(self, values: list[Any]) -> Any:
        """The results for these inputs; raises BadDataError."""
        try:
            replay = self.replays.pop()
        except IndexError:
            replay = self._replay(self.plan)
        try:
            results = replay(values)
        finally:
            self.replays.append(replay)
        rest = iter(results)

        def own(x: Any) -> Any:
            if x.__class__ is Array:
                return Array(next(rest))
            return x.copy() if isinstance(x, np.ndarray) else x

        return tree.map(own, self.out)


class Compiled:
    """What :func:`compile` makes of a function."""

    def __init__(self, f: Callable[..., Any], without: Collection[str], check: bool = True) -> None:
        functools.update_wrapper(self, f)
        advise()
        self._f, self._without, self._check = f, without, check
        self._known: OrderedDict[Any, Traced] = OrderedDict()
        self._lock = threading.RLock()
        self._traces = 0

    def __call__(self, *args: Any) -> Any:
        leaves: list[Array] = []
        kinds: list[Any] = []
        _flatten(args, leaves, kinds)
        values = []
        for x in leaves:
            value = x.value
            if x.serial or hasattr(value, "level"):  # something differentiates, traces or maps
                return self._f(*args)
            in_order = value.flags.c_contiguous
            values.append(
                value if in_order else backend.namespace_of(value).ascontiguousarray(value)
            )
        traced = self._traced(args, leaves, kinds)
        try:
            out = traced(values)
        except BadDataError as error:
            self._f(*_lifted(args))  # which says what is wrong with the data
            raise CaptureError(
                f"{self._name()}: an index or a label was out of range; on a device it may have "
                "been in a call before this one. Run without compile to find it."
            ) from error
        if not traced.held:
            self._hold(traced, args, values, out)
        return out

    def _hold(self, traced: Traced, args: Any, values: list[Any], out: Any) -> None:
        """Hold the first replay of a plan against f; other threads wait, so that no result leaves
        before it is known to be right."""
        with self._lock:
            if traced.held:
                return
            if not self._check:
                traced.held = "not held against eager: check=False"
                return

            def planned(graph: Graph, values: list[Any], without: Collection[str]) -> Any:
                def again(*args: Array) -> list[Array]:
                    return list(map(Array, mirror.anew(graph, [x.value for x in args])))

                device = backend.device_of(values[0]) if values else backend.default_device()
                left_out = {*self._without, *without}
                return Traced(again, list(map(Array, values)), left_out, device)(values)

            used = [name for name in PASSES if name not in self._without]
            traced.held = mirror.held(
                self._name(), self._f, _lifted(args), traced.source, values, out, planned, used
            )
            traced.source = traced.graph  # the other one is no longer needed

    def explain(self, *args: Any) -> None:
        """Print the plan for such arguments; without any, the last one made.

        Raises:
            CaptureError: there is none yet.
        """
        if args:
            leaves: list[Array] = []
            kinds: list[Any] = []
            _flatten(args, leaves, kinds)
            traced = self._traced(args, leaves, kinds)
        else:
            traced = self.latest()
        print(self._name(), traced.plan.described(traced.counts), sep=": ")
        print(traced.held or "not held against eager: not called yet")

    def latest(self) -> Traced:
        """What was traced last.

        Raises:
            CaptureError: nothing was yet.
        """
        if not self._known:
            raise CaptureError(
                f"{self._name()}: nothing was traced yet. Call it, or explain(*args)."
            )
        return next(reversed(self._known.values()))

    def _name(self) -> str:
        return f"compile({getattr(self._f, '__name__', repr(self._f))})"

    def _traced(self, args: Tree, leaves: list[Array], kinds: list[Any]) -> Traced:
        natives = {x.value.__class__ for x in leaves}
        if len(natives) > 1:
            where = sorted({x.device for x in leaves})
            raise DeviceError(
                f"{self._name()}: its arguments are on {' and '.join(where)}. Move them to one "
                "device with to_device."
            )
        key = (*natives, *kinds)
        try:
            found = self._known.get(key)
        except TypeError as error:
            raise CaptureError(
                f"{self._name()}: an argument that is no array must be hashable ({error}). "
                "Close over it instead."
            ) from None
        if found is None:
            with self._lock:
                if key not in self._known:
                    device = leaves[0].device if leaves else backend.default_device()
                    self._known[key] = Traced(self._f, _lifted(args), self._without, device)
                    self._count()
                found = self._known[key]
        return found

    def _count(self) -> None:
        self._traces += 1
        while len(self._known) > MOST_PLANS:
            self._known.popitem(last=False)
        if self._traces == 4 * MOST_PLANS:
            warnings.warn(
                f"{self._name()}: traced {self._traces} times. A Python number among the arguments "
                "is static, each value a trace of its own: pass array(x) for one that varies.",
                stacklevel=4,
            )


def _lifted(args: Tree) -> Tree:
    return tree.map(lambda x: as_array(x) if _is_raw(x) else x, args)


def _is_raw(x: Any) -> bool:
    """Is it an array of NumPy's or CuPy's?"""
    return backend.is_native(x) and not backend.is_scalar(x)


def _flatten(x: Tree, leaves: list[Array], kinds: list[Any]) -> None:
    """Collect a tree's arrays, and all that a plan depends on."""
    kind = x.__class__
    if kind is Array:
        leaves.append(x)
        kinds.append(x.value.shape)
        kinds.append(x.value.dtype.str)
    elif isinstance(x, dict):
        kinds.append((kind, *x))
        for child in x.values():
            _flatten(child, leaves, kinds)
    elif isinstance(x, tree.SEQUENCES):
        kinds.append((kind, len(x)))
        for child in x:
            _flatten(child, leaves, kinds)
    elif _is_raw(x):
        _flatten(as_array(x, lent=True), leaves, kinds)  # a call is over before x changes
    else:
        kinds.append((kind, repr(x) if kind is float else x))  # 0.0 is not -0.0


def compile(
    f: Callable[..., Any], *, without: Collection[str] = (), check: bool = True
) -> Compiled:
    """f, traced once for every kind of arguments and then replayed from an optimised plan.

    Args:
        f: a pure function of trees of Arrays to a tree of Arrays. What else is in its arguments
            (numbers, strings) is static: another value is another trace. So is all it closes over.
        without: passes to leave out, of "constants", "common subexpressions", "products", "fusion"
            and "memory": to see what each is worth.
        check: hold the first replay of every plan against f itself, run eagerly once on the same
            arguments. What is left out, ``explain()`` says: a function whose arrays, all kept at
            once, would need more than a quarter of the memory that is available.

    Returns:
        A function that gives what f gives, to rounding. Where its arguments are being
        differentiated it is f itself. ``explain()`` prints what it does.

    Raises:
        CompileError: (when called) a plan's first replay differs from f run eagerly by more than
            rounding can: a fault of the compiler's. It names the pass to leave out.
        CaptureError: (when called) f asks for a number that is not known yet (float(x), bool(x)),
            has a shape that depends on data, or makes other constants each time it runs.
        ValueError: there is no such pass.

    >>> from mamlnp import array, grad
    >>> slope = compile(grad(lambda x: (x**3).sum()))
    >>> slope(array([1.0, 2.0])), slope(array([10.0, 0.0]))
    (Array([ 3., 12.]), Array([300.,   0.]))
    """
    unknown = set(without) - set(PASSES)
    if unknown:
        raise ValueError(f"compile: there is no pass {sorted(unknown)}. There are {PASSES}.")
    return Compiled(f, frozenset(without), check)
