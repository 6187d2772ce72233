"""Fused loops as numba source, compiled once and kept on disk.

A :class:`LoopNest` says what to compute; :func:`source` writes it down so that a person can read
it, and :func:`kernel` gives the address of the compiled function. Sides, strides, addresses and
numbers come in a row of 64-bit integers when it is called, so that one kernel serves every layer
and inner step that do the same.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np

from ..errors import MissingPackageError
from . import machine_code, memory, replay, transcendental

CODES = {np.dtype(t): t for t in ("f4", "f8", "i8", "b1")}


class Operand(NamedTuple):
    """Attributes:
    code: the elements' type, "f4", "f8", "i8" or "b1".
    inner: the innermost stride in elements: 0, 1, or -1 for any other.
    """

    code: str
    inner: int


class Value(NamedTuple):
    """One elementwise operation.

    Attributes:
        op: its name.
        args: ("x", i): the i-th operand; ("v", i): the i-th value; ("c", i): the i-th number.
        code: the type of the result.
        within: the type in which it is computed.
        exponent: for a power, the number it is to, if it is one.
    """

    op: str
    args: tuple[tuple[str, int], ...]
    code: str
    within: str
    exponent: float | None = None


class Result(NamedTuple):
    """Attributes:
    value: where it comes from, as in Value.args.
    operand: its memory.
    reduction: "" if every element is stored; else "sum", "max" or "min".
    """

    value: tuple[str, int]
    operand: Operand
    reduction: str


class LoopNest(NamedTuple):
    """Attributes:
    depth: how many loops.
    reads: the operands read.
    numbers: the types, "f8" or "i8", of the numbers that come with the call.
    values: in the order of computation.
    results: what is written.
    """

    depth: int
    reads: tuple[Operand, ...]
    numbers: tuple[str, ...]
    values: tuple[Value, ...]
    results: tuple[Result, ...]


EXPRESSIONS = {
    "copy": "{0}",
    "astype": "{0}",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "abs": "abs({0})",
    "sqrt": "math.sqrt({0})",
    "exp": "math.exp({0})",
    "expm1": "math.expm1({0})",
    "log": "math.log({0})",
    "log1p": "math.log1p({0})",
    "sin": "math.sin({0})",
    "cos": "math.cos({0})",
    "tanh": "math.tanh({0})",
    "sigmoid": "(ONE if {0} >= ZERO else math.exp(-abs({0}))) / (ONE + math.exp(-abs({0})))",
    "sigmoid_slope": "math.exp(-abs({0})) / (ONE + math.exp(-abs({0})))"
    " / (ONE + math.exp(-abs({0})))",
    "softplus": "(ZERO if {0} < ZERO else {0}) + math.log1p(math.exp(-abs({0})))",
    "relu": "ZERO if {0} <= ZERO else {0}",
    "relu_slope": "not {0} <= ZERO",
    "sign": "ONE if {0} > ZERO else (-ONE if {0} < ZERO else ({0} if {0} != {0} else ZERO))",
    "maximum": "{0} if {0} > {1} or {0} != {0} else {1}",
    "minimum": "{0} if {0} < {1} or {0} != {0} else {1}",
    "where": "{1} if {0} else {2}",
    "isfinite": "math.isfinite({0})",
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "power": "math.pow({0}, {1})",
}
# On the host these are functions without branches, which LLVM can vectorise; on a device, C's.
HOST = EXPRESSIONS | {
    name: f"{name}_TYPE({'{0}, {1}' if name == 'power' else '{0}'})"
    for name in (name.removesuffix("_f4") for name in transcendental.FUNCTIONS)
    if name in EXPRESSIONS
}
PERIODIC = ("sin", "cos")
ASKED = 1024  # elements, of all of which together it is asked whether C's are needed
PLAIN = 1024  # terms of a float32 sum that a plain loop adds
# Of the parts of a longer one: terms along the innermost loop (some dozen sums at once, being
# vectorised), rows along others; and work for each element that is then added in float64.
TERMS, ROWS, FULL = 512, 64, 64
ROOT = "math.sqrt(-{0} if {0} < LOWEST else {0} + ZERO)"  # of -inf and -0 as of inf and 0
# Powers that need no logarithm, those of batch normalisation's derivatives among them. Where the
# result is a denormal number it may be 0, since the divisor overflows.
POWERS = {
    2.0: "{0} * {0}",
    3.0: "{0} * {0} * {0}",
    -1.0: "ONE / {0}",
    -2.0: "ONE / ({0} * {0})",
    0.5: "math.sqrt({0})",  # as NumPy has it, of -inf and -0 too
    1.5: f"abs({{0}}) * {ROOT}",
    -0.5: f"ONE / {ROOT}",
    -1.5: f"ONE / (abs({{0}}) * {ROOT})",
    -2.5: f"ONE / ({{0}} * {{0}} * {ROOT})",
}

HEADER = '''"""A kernel of mamlnp, generated; safe to delete. Backend {backend}."""
import math
import numpy as np
from mamlnp.backend.memory import *  # noqa: F403
f4, f8, i8, b1, u1 = np.float32, np.float64, np.int64, np.bool_, np.uint8
'''
FIXED = """from mamlnp.backend.replay import DATA, call, gemm_{gemm} as gemm
load, store, number, zero, width = load_{code}, store_{code}, {code}, {code}(0), {width}
"""
IDENTITIES = {"sum": "0", "max": "-np.inf", "min": "np.inf"}
LEAST = {"max": "-9223372036854775807 - 1", "min": "9223372036854775807"}
COMBINE = {
    "sum": "{a} + {v}",
    "max": "{v} if {v} > {a} or {v} != {v} else {a}",
    "min": "{v} if {v} < {a} or {v} != {v} else {a}",
}


def has_long_sums(nest: LoopNest, words: Sequence[Any]) -> bool:
    """Would a plain loop lose digits of a float32 sum, called with this row?"""
    terms = math.prod(words[: nest.depth])
    reduced = [r for r in nest.results if r.reduction]
    sizes = words[len(words) - len(reduced) :]
    return any(is_float32_sum(r) and terms > PLAIN * n for r, n in zip(reduced, sizes, strict=True))


def source(nest: LoopNest, long: bool = False) -> str:
    """The loops as Python text, for numba.

    Where there are ``long`` float32 sums, all loops run in parts, outside of which the parts' sums
    are added in float64: text that takes twice as long to compile.
    """
    lines: list[str] = []
    word = iter(range(1 << 20))

    def get(name: str, kind: str = "i8") -> None:
        lines.append(f"    {name} = load_{kind}(row, {next(word)}, 0)")

    for d in range(nest.depth):
        get(f"n{d}")
    operands = [(f"x{i}", x) for i, x in enumerate(nest.reads)]
    operands += [(f"y{i}", r.operand) for i, r in enumerate(nest.results)]
    for name, operand in operands:
        get(f"{name}_at")
        for d in range(nest.depth - (operand.inner >= 0)):
            get(f"{name}_s{d}")
    for i, code in enumerate(nest.numbers):
        get(f"c{i}", code)
    for i, result in enumerate(nest.results):
        if result.reduction:
            get(f"y{i}_size")
            lines += [
                f"    for i in range(y{i}_size):",
                f"        store_{result.operand.code}(y{i}_at, i, {i + 1}, {identity(result)})",
            ]
    inner = nest.depth - 1
    sums = [i for i, r in enumerate(nest.results) if long and is_float32_sum(r)]
    along = any(nest.results[i].operand.inner == 0 for i in sums)  # the innermost loop
    parted = [d for d in range(nest.depth) if sums and (d < inner or along)]
    ends = [(f"first{d}", f"last{d}") if d in parted else ("0", f"n{d}") for d in range(nest.depth)]
    out = "    "  # the depth of the loops over parts
    if sums:
        steps = {d: ROWS if d < inner else TERMS for d in parted}
        several = " or ".join(f"n{d} > {step}" for d, step in steps.items())
        size = " + ".join(f"y{i}_size" for i in sums)
        lines += [
            f"    several = {several or False}",  # and not a condition within, to compile but once
            f"    done, enough = 0, {FULL} * ({size}) if several else {1 << 62}",
        ]
        lines += [f"    y{i}_more = zeros_f8(y{i}_size) if several else 0" for i in sums]
        for d, step in steps.items():
            lines += [
                f"{out}last{d} = 0",
                f"{out}while last{d} < n{d}:",
                f"{out}    first{d}, last{d} = last{d}, min(last{d} + {step}, n{d})",
            ]
            out += "    "
    for d, (first, last) in enumerate(ends):
        pad = out + "    " * d
        if d == inner:
            lines += [
                f"{pad}a{i} = {identity(r)}"
                for i, r in enumerate(nest.results)
                if r.reduction and r.operand.inner == 0
            ]
            lines += [pad + line for line in _innermost(nest, first, last)]
            break
        lines.append(f"{pad}for i{d} in range({first}, {last}):")
        for name, _ in operands:
            before = f"{name}_o{d - 1} + " if d else ""
            lines.append(f"{pad}    {name}_o{d} = {before}i{d} * {name}_s{d}")
    pad = out + "    " * inner
    for i, r in enumerate(nest.results):
        if r.reduction and r.operand.inner == 0:
            code, at = r.operand.code, f"y{i}_o{inner - 1}" if inner else "0"
            lines.append(f"{pad}b{i} = load_{code}(y{i}_at, {at}, {i + 1})")
            joined = COMBINE[r.reduction].format(a=f"b{i}", v=f"a{i}")
            lines.append(f"{pad}store_{code}(y{i}_at, {at}, {i + 1}, {joined})")
    if sums:
        sides = [f"({last} - {first})" for first, last in ends]
        lines += [
            f"{out}done += {' * '.join(sides)}",
            f"{out}if done >= enough:",
            f"{out}    done = 0",
            *(f"{out}    drain(y{i}_at, y{i}_more, y{i}_size)" for i in sums),
            "    if several:",
            *(f"        refill(y{i}_at, y{i}_more, y{i}_size)" for i in sums),
        ]
    header = HEADER.format(backend=_stamp())
    if sums:
        header += "from mamlnp.backend.replay import drain, refill\n"
    if any(HOST[v.op] != EXPRESSIONS[v.op] and v.exponent is None for v in nest.values):
        header += "from mamlnp.backend.transcendental import *  # noqa: F403\n"
        lines.insert(0, "    wide_vectors()")
    return header + "\n\ndef kernel(row):\n" + "\n".join(lines) + "\n"


def is_float32_sum(result: Result) -> bool:
    """Does adding many terms lose digits?"""
    return result.reduction == "sum" and result.operand.code == "f4"


def _innermost(nest: LoopNest, first: str, last: str) -> list[str]:
    """The innermost loop; in blocks, each by C's sin and cos if its elements need them."""
    i = f"i{nest.depth - 1}"

    def loop(start: str, stop: str, body: list[str]) -> list[str]:
        return [f"for {i} in range({start}, {stop}):", *(f"    {line}" for line in body)]

    if not any(v.op in PERIODIC for v in nest.values):
        return loop(first, last, _body(nest))
    exact = HOST | {name: EXPRESSIONS[name] for name in PERIODIC}
    return [
        f"for start in range({first}, {last}, {ASKED}):",
        f"    stop = min(start + {ASKED}, {last})",
        "    far = 0",
        *(f"    {line}" for line in loop("start", "stop", _asking(nest))),
        "    if far:",
        *(f"        {line}" for line in loop("start", "stop", _body(nest, exact))),
        "    else:",
        *(f"        {line}" for line in loop("start", "stop", _body(nest))),
    ]


def identity(result: Result) -> str:
    """What a reduction begins with."""
    code, kind = result.operand.code, result.reduction
    if code == "i8" and kind in LEAST:
        return f"i8({LEAST[kind]})"
    return f"{code}({IDENTITIES[kind]})"


def _index(name: str, operand: Operand, inner: int) -> str:
    parts = [f"{name}_o{inner - 1}"] if inner else []
    if operand.inner:
        parts.append(f"i{inner}" if operand.inner == 1 else f"i{inner} * {name}_s{inner}")
    return " + ".join(parts) or "0"


Expression = tuple[str, str, str]  # a name, a type, and how it is computed


def expressions(
    nest: LoopNest, written: Mapping[str, str] = EXPRESSIONS
) -> tuple[list[Expression], list[Expression]]:
    """What is computed at a point of the space, of the operands x0, ... and the numbers c0, ...:
    all values v0, ..., and what goes into the results y0, ...; ``written`` is how."""
    codes = {f"c{i}": code for i, code in enumerate(nest.numbers)}
    codes |= {f"x{i}": x.code for i, x in enumerate(nest.reads)}
    values: list[Expression] = []
    for i, value in enumerate(nest.values):
        args = []
        for j, (kind, number) in enumerate(value.args):
            name = f"{kind}{number}"
            within = "b1" if value.op == "where" and j == 0 else value.within
            args.append(name if codes.get(name) == within else _cast(within, name))
        template = POWERS.get(value.exponent or 0.0, written[value.op])
        text = template.format(*args).replace("TYPE", value.within)
        text = text.replace("ZERO", f"{value.within}(0)").replace("ONE", f"{value.within}(1)")
        if "LOWEST" in text:
            text = text.replace("LOWEST", f"{value.within}({np.finfo(value.within).min})")
        is_so = value.code == value.within in ("f4", "f8")  # it has that type already
        values.append((f"v{i}", value.code, text if is_so else _cast(value.code, text)))
        codes[f"v{i}"] = value.code
    results: list[Expression] = []
    for i, r in enumerate(nest.results):
        name, code = "".join(map(str, r.value)), r.operand.code
        results.append((f"y{i}", code, name if codes.get(name) == code else _cast(code, name)))
    return values, results


def _body(nest: LoopNest, written: Mapping[str, str] = HOST) -> list[str]:
    """What is done at a point."""
    inner, lines = nest.depth - 1, _loads(nest)
    values, results = expressions(nest, written)
    lines += [f"{name} = {text}" for name, _, text in values]
    for i, (r, (name, code, text)) in enumerate(zip(nest.results, results, strict=True)):
        at = _index(name, r.operand, inner)
        if r.reduction and r.operand.inner == 0:
            joined = COMBINE[r.reduction].format(a=f"a{i}", v=text)
            if r.reduction == "sum" and code in ("f4", "f8"):
                joined = f"plus_{code}(a{i}, {text})"
            lines.append(f"a{i} = {joined}")
            continue
        if r.reduction:
            lines.append(f"b{i} = load_{code}({name}_at, {at}, {i + 1})")
            text = COMBINE[r.reduction].format(a=f"b{i}", v=text)
        lines.append(f"store_{code}({name}_at, {at}, {i + 1}, {text})")
    return lines


def _loads(nest: LoopNest) -> list[str]:
    return [
        f"x{i} = load_{x.code}(x{i}_at, {_index(f'x{i}', x, nest.depth - 1)}, 0)"
        for i, x in enumerate(nest.reads)
    ]


def _asking(nest: LoopNest) -> list[str]:
    """Whether an argument of sin or cos is too far from 0; what the question does not need, LLVM
    leaves out."""
    lines = _loads(nest)
    for value, (name, _, text) in zip(nest.values, expressions(nest, HOST)[0], strict=True):
        if value.op in PERIODIC:
            argument = text.partition(f"{value.op}_{value.within}(")[2].removesuffix(")")
            lines.append(f"far |= is_far({argument}, reach_{value.within})")
        lines.append(f"{name} = {text}")
    return lines


def _cast(code: str, text: str) -> str:
    return f"bool({text})" if code == "b1" else f"{code}({text})"


@functools.cache
def _stamp() -> str:
    """Kernels compiled for another version of what they import are other kernels."""
    modules = machine_code, memory, replay, transcendental
    texts = (inspect.getsource(module).encode() for module in modules)
    return hashlib.sha256(b"".join(texts)).hexdigest()[:8]


@functools.cache
def cache_folder() -> Path:
    """Where kernels are kept: MAMLNP_CACHE or the user's cache; else a folder of this process."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("MAMLNP_CACHE") or Path(base) / "mamlnp") / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="mamlnp-kernels-"))


@functools.cache
def loops(nest: LoopNest, long: bool = False) -> int:
    """The address of the compiled loops, for long sums if need be."""
    return _compiled(source(nest, long), "kernel")


@functools.cache
def fixed(name: str, code: str, wide: bool = True) -> int:
    """The address of one of :mod:`.replay`'s kernels for elements of a type.

    Args:
        name: the function's.
        code: "f4", "f8" or "i8".
        wide: for a product, whether the library's integers have 64 bits.
    """
    gemm = (code if code in ("f4", "f8") else "f4") + ("" if wide else "_narrow")
    names = FIXED.format(gemm=gemm, code=code, width=int(code[1]))
    text = HEADER.format(backend=_stamp()) + names
    for part in (replay.gather, replay.scatter, getattr(replay, name)):
        text += "\n\n" + inspect.getsource(part)
    return _compiled(text, name)


def _compiled(text: str, function: str) -> int:
    """The address of a function in a module with this text, from the disk where it is there."""
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise MissingPackageError(
            "NUMBA_DISABLE_JIT: is set, and without numba's compiler no compiled function can run. "
            "Unset it, or run eagerly: leave compile out, and give a training --eager."
        )
    known = text + machine_code.machine()
    symbol = f"{function}_{hashlib.sha256(known.encode()).hexdigest()[:20]}"
    path = cache_folder() / symbol
    if path.exists():
        library = machine_code.loaded(path.read_bytes(), symbol)
    else:
        library = machine_code.made(text, function, symbol)
        _write(path.with_suffix(".py"), text.encode())  # to be read by people alone
        _write(path, library.saved())
    _libraries.append(library)
    return library.address


_libraries: list[machine_code.Library] = []  # whose code is called


def _write(path: Path, content: bytes) -> None:
    """All of a file or nothing, whoever else writes it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
        partial.write(content)
    os.replace(partial.name, path)
