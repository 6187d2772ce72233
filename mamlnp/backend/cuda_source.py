"""Everything a compiled plan runs on a CUDA device but products, as CUDA C.

A row (a loop nest or the name of a template of kernels.cu, and what it is called with) becomes a
:class:`Kernel`: its sides, strides and numbers are written into its text, where the compiler makes
multiplications of divisions by them, and only addresses are left to be passed. Kernels of the same
text are one. Python's expressions of :mod:`.generated` are translated, so that an operation is
written down once for both machines.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .generated import COMBINE, LoopNest, Operand, Result, expressions, identity
from .machine_code import parsed

TEMPLATES = Path(__file__).with_name("kernels.cu")
THREADS = 256  # of a block, where a thread makes one element
MOST_THREADS = 1024  # of a block, where threads share a sum
LANES = 32  # threads that read neighbouring elements together
ENOUGH = 1 << 17  # threads that keep a device busy
LARGEST_NARROW = 1 << 30  # numbers below it fit 32 bits, even one step further


class Kernel(NamedTuple):
    """Attributes:
    text: all but its name: CUDA C of the parameters, and of the body.
    grid: how many blocks it is launched in.
    threads: of a block.
    args: what it is called with; addresses as they were given.
    """

    text: str
    grid: tuple[int, ...]
    threads: int
    args: tuple[Any, ...]

    def named(self, name: str) -> str:
        """The whole function."""
        bounds = f"__launch_bounds__({self.threads})"  # or there may be too few registers for them
        return f'extern "C" __global__ {bounds} void {name}{self.text}'


def program(kernels: Sequence[Kernel]) -> tuple[str, dict[str, str]]:
    """The text of all kernels, and the name of each by its own text."""
    names: dict[str, str] = {}
    parts = [TEMPLATES.read_text(encoding="utf-8")]
    for kernel in kernels:
        if kernel.text not in names:
            names[kernel.text] = f"k{len(names)}"
            parts.append(kernel.named(names[kernel.text]))
    return "\n".join(parts), names


# ---- templates: one element each

ARGUMENTS = {  # the types of the addresses that each takes, T is the elements'
    "patches": "TT", "fold": "TT", "pool_positions": "Ti8", "pool_winners": "Tu1",
    "pool_take": "Tu1T", "pool_put": "Tu1T", "take": "Ti8T", "put": "Ti8T", "class_labels": "TT",
    "copy": "TT",
}  # fmt: skip


def element(
    name: str,
    code: str,
    words: Sequence[Any],
    count: Any,
    *,
    reach: int = 0,
    most_blocks: int = 1 << 30,
) -> Kernel:
    """A template of kernels.cu for elements of a type.

    Args:
        name: the template's.
        code: the type of the elements, "f4", "f8", "i8", "i4" or "u1".
        words: what it is called with. Python's integers are written into the text; NumPy's, and
            addresses, are passed.
        count: of the result's elements, likewise.
        reach: of the largest array's elements.
        most_blocks: launched; threads go on to further elements if these are too few.
    """
    types = iter(_types(name, code))
    parameters: list[str] = []
    texts: list[str] = []
    args: list[Any] = []
    for word in [*words, count]:
        if isinstance(word, int):
            texts.append(str(word))
            continue
        kind = "i8 " if isinstance(word, np.integer) else f"{next(types, 'i8')} *"
        parameters.append(f"{kind}a{len(args)}")
        texts.append(f"a{len(args)}")
        args.append(word)
    passed = any(isinstance(w, np.integer) for w in args)
    largest = max(w for w in [*words, count, reach] if isinstance(w, int))
    index = "i8" if passed else _index(largest)
    *given, number = texts
    call = f"{name}<{code}, {index}>({', '.join(['at', *given])})"
    text = f"({', '.join(parameters)}) {{\n    EACH({index}, at, {number}) {call};\n}}\n"
    blocks = min(most_blocks, -(-int(count) // THREADS))
    return Kernel(text, (blocks,), THREADS, tuple(args))


def _types(name: str, code: str) -> list[str]:
    """Of the addresses."""
    text = ARGUMENTS[name].replace("T", code)
    return [text[i : i + 2] for i in range(0, len(text), 2)]


def _index(largest: int) -> str:
    """The type of numbers up to this one: 32 bits are several times faster."""
    return "i4" if largest < LARGEST_NARROW else "i8"


MOST_COPIES = 256  # arrays that one kernel copies: an address each, of 4 KB in all
MOST_COPYING = 128  # blocks for one array


def copies(arrays: Sequence[Any], places: Sequence[int], *, out: bool) -> list[Kernel]:
    """Kernels that each copy some arrays into a block of memory, or out of it.

    Args:
        arrays: with a size and a dtype.
        places: of each in the block, in bytes.
        out: whether they are copied out.

    Returns:
        Kernels whose args are numbers of arrays. They take the block, then those arrays: CuPy
        passes its own arrays several times faster than it does numbers.
    """
    some = [i for i, x in enumerate(arrays) if x.size]
    groups = [some[i : i + MOST_COPIES] for i in range(0, len(some), MOST_COPIES)]
    return [_copies(arrays, places, group, out) for group in groups]


def _copies(arrays: Sequence[Any], places: Sequence[int], group: list[int], out: bool) -> Kernel:
    parameters, cases, largest = ["char *block"], [], 0
    for case, i in enumerate(group):
        x = arrays[i]
        code = {4: "i4", 8: "i8"}.get(x.dtype.itemsize, "u1")
        count = x.size * x.dtype.itemsize // int(code[1])
        parameters.append(f"{code} *a{case}")
        pair = [f"a{case}", f"({code} *)(block + {places[i]}LL)"]
        call = f"copy<{code}, {_index(count)}>({', '.join(['at', *(pair[::-1] if out else pair)])})"
        cases.append(f"    case {case}: EACH({_index(count)}, at, {count}) {call}; break;\n")
        largest = max(largest, count)
    text = f"({', '.join(parameters)}) {{\n    switch (blockIdx.y) {{\n{''.join(cases)}    }}\n}}\n"
    grid = (min(MOST_COPYING, -(-largest // THREADS)), len(group))
    return Kernel(text, grid, THREADS, tuple(group))


# ---- loop nests


def loops(nest: LoopNest, words: Sequence[Any]) -> Kernel:
    """Fused loops: a thread for each element, or some threads for each sum."""
    return _Loops(nest, words).kernel()


class _Loops:
    """A LoopNest with its row, being written."""

    def __init__(self, nest: LoopNest, words: Sequence[Any]) -> None:
        self.nest = nest
        rest = iter(words)
        self.sides = [next(rest) for _ in range(nest.depth)]
        self.addresses: list[Any] = []
        self.strides: dict[str, list[int]] = {}
        self.operands: dict[str, Operand] = {f"x{i}": x for i, x in enumerate(nest.reads)}
        self.operands |= {f"y{i}": r.operand for i, r in enumerate(nest.results)}
        for name, operand in self.operands.items():
            self.addresses.append(next(rest))
            fixed = [operand.inner] if operand.inner >= 0 else []
            self.strides[name] = [next(rest) for _ in range(nest.depth - len(fixed))] + fixed
        self.numbers = [_number(code, next(rest)) for code in nest.numbers]
        self.sums = [f"y{i}" for i, r in enumerate(nest.results) if r.reduction]
        axes = range(nest.depth)
        self.reduced = [d for d in axes if self.sums and not any(self._walks(d))]
        self.kept = [d for d in axes if d not in self.reduced]
        for d in self.kept:
            if self.sums and not all(self._walks(d)):
                raise ValueError("the reductions of a loop run over different axes")
        self.outer = math.prod(self.sides[d] for d in self.kept)
        self.inner = math.prod(self.sides[d] for d in self.reduced)
        reach = [
            sum((n - 1) * abs(s) for n, s in zip(self.sides, strides, strict=True))
            for strides in self.strides.values()
        ]
        self.index = _index(max([self.outer * max(1, self.inner) + MOST_THREADS, *reach]))

    def _walks(self, axis: int) -> list[int]:
        """How far the reductions' results move along an axis."""
        return [self.strides[name][axis] for name in self.sums]

    def kernel(self) -> Kernel:
        parameters = ", ".join(f"{x.code} *{name}" for name, x in self.operands.items())
        body, blocks, threads = self._reducing() if self.sums else self._elementwise()
        text = f"({parameters}) {{\n" + "".join(f"    {line}\n" for line in body) + "}\n"
        return Kernel(text, (blocks,), threads, tuple(self.addresses))

    def _elementwise(self) -> tuple[list[str], int, int]:
        point = self._point()
        lines = [f"EACH({self.index}, at, {self.outer}) {{"]
        lines += _indented([*self._unravelled("at", self.kept, point), *point])
        return [*lines, "}"], -(-self.outer // THREADS), THREADS

    def _reducing(self) -> tuple[list[str], int, int]:
        """Threads of one block share each result: every one takes part of what is reduced, then a
        tree joins them, always in the same order. Neighbouring threads read neighbouring elements,
        so they share a result if the innermost axis is reduced, and else have one each."""
        outer, inner, index = self.outer, self.inner, self.index
        apart = self.nest.depth - 1 in self.kept  # neighbours have a result each
        lanes = min(LANES, _power(outer)) if apart else 1
        shared = min(_power(inner), _power(-(-ENOUGH // max(1, outer))), MOST_THREADS // lanes)
        if not apart:
            shared = max(shared, min(LANES, _power(inner)))
        results = min(_power(outer), max(lanes, THREADS // shared))  # of one block
        threads, step = results * shared, results if apart else 1
        at, mine = (
            (f"threadIdx.x % {results}", f"threadIdx.x / {results}")
            if apart
            else (f"threadIdx.x / {shared}", f"threadIdx.x % {shared}")
        )
        point = self._point()
        inside = [*self._unravelled("part", self.reduced, point), *point]
        lines = [
            f"const {index} at = ({index})blockIdx.x * {results} + {at}, mine = {mine};",
            *(f"{self.operands[y].code} {y}_sum = {self._identity(y)};" for y in self.sums),
            f"if (at < {outer}) {{",
            *_indented(self._unravelled("at", self.kept, point)),
            f"    for ({index} part = mine; part < {inner}; part += {shared}) {{",
            *_indented(_indented(inside)),
            "    }",
            "}",
        ]
        total = "{}_sum"
        if shared > 1:
            total = "{}_shared[threadIdx.x]"
            lines += self._tree(shared, threads, step)
        stores = [f"{y}[{self._offset(y, self.kept)}] = {total.format(y)};" for y in self.sums]
        unravelled = self._unravelled("at", self.kept, stores)
        lines += [f"if (at < {outer} && mine == 0) {{", *_indented([*unravelled, *stores]), "}"]
        return lines, -(-outer // results), threads

    def _tree(self, shared: int, threads: int, step: int) -> list[str]:
        """The parts of threads that share a result, joined two by two."""
        lines, joins = [], []
        for y in self.sums:
            code = self.operands[y].code
            lines += [
                f"__shared__ {code} {y}_shared[{threads}];",
                f"{y}_shared[threadIdx.x] = {y}_sum;",
            ]
            joins += [
                f"const {code} {y}_a = {y}_shared[threadIdx.x];",
                f"const {code} {y}_b = {y}_shared[threadIdx.x + half * {step}];",
                f"{y}_shared[threadIdx.x] = {self._joined(y, f'{y}_a', f'{y}_b')};",
            ]
        return [
            *lines,
            f"for (int half = {shared // 2}; half; half /= 2) {{",
            "    __syncthreads();",
            "    if (mine < half) {",
            *_indented(_indented(joins)),
            "    }",
            "}",
        ]

    def _point(self) -> list[str]:
        """What is done at one point of the space."""
        every = [*self.kept, *self.reduced]
        lines = [
            f"const {x.code} x{i}_v = x{i}[{self._offset(f'x{i}', every)}];"
            for i, x in enumerate(self.nest.reads)
        ]
        names = {f"x{i}": f"x{i}_v" for i in range(len(self.nest.reads))}
        names |= {f"c{i}": number for i, number in enumerate(self.numbers)}
        values, results = expressions(self.nest)
        for name, code, text in values:
            lines.append(f"const {code} {name} = {_translated(text, names)};")
        for y, code, text in results:
            value = _translated(text, names)
            if y in self.sums:
                lines += [
                    f"const {code} {y}_v = {value};",
                    f"{y}_sum = {self._joined(y, f'{y}_sum', f'{y}_v')};",
                ]
            else:
                lines.append(f"{y}[{self._offset(y, every)}] = {value};")
        return lines

    def _result(self, y: str) -> Result:
        return self.nest.results[int(y[1:])]

    def _joined(self, y: str, a: str, v: str) -> str:
        code = self.operands[y].code
        return _translated(f"{code}({COMBINE[self._result(y).reduction].format(a=a, v=v)})", {})

    def _identity(self, y: str) -> str:
        return _translated(identity(self._result(y)), {})

    def _unravelled(self, flat: str, axes: list[int], uses: list[str]) -> list[str]:
        """The index along each axis that is used."""
        sides = {d: max(1, self.sides[d]) for d in axes}  # of nothing, no index is ever reached
        lines, whole = [], math.prod(sides.values())
        for d, side in sides.items():
            whole //= side
            text = flat if whole == 1 else f"{flat} / {whole}"
            text = text if d == axes[0] else f"{text} % {side}"
            if any(f"d{d}" in line for line in uses):
                lines.append(f"const {self.index} d{d} = {text};")
        return lines

    def _offset(self, name: str, axes: list[int]) -> str:
        parts = []
        for d in axes:
            stride = self.strides[name][d]
            if stride:
                parts.append(f"d{d}" if stride == 1 else f"d{d} * {stride}")
        return " + ".join(parts) or "0"


def _power(n: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(0, n - 1).bit_length()


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _number(code: str, bits: int) -> str:
    if code == "i8":
        return f"({bits}LL)" if bits > -(2**63) else "(-9223372036854775807LL - 1)"
    value = float(np.int64(bits).view(np.float64))
    return f"({value!r})" if math.isfinite(value) else f"__longlong_as_double({bits}LL)"


# ---- Python's expressions in C

SIGNS: dict[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.USub: "-", ast.Not: "!",
    ast.Or: "||", ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">",
    ast.GtE: ">=",
}  # fmt: skip


def _translated(text: str, names: dict[str, str]) -> str:
    """An expression of generated.py in C, with other names for what it names."""

    def c(x: ast.expr) -> str:
        match x:
            case ast.Name():
                return names.get(x.id, x.id)
            case ast.Constant():
                return f"{x.value}LL" if isinstance(x.value, int) else repr(x.value)
            case ast.Attribute():  # of Python's math or NumPy: C has the same name
                return x.attr
            case ast.IfExp():
                return f"({c(x.test)} ? {c(x.body)} : {c(x.orelse)})"
            case ast.BinOp():
                return f"({c(x.left)} {SIGNS[type(x.op)]} {c(x.right)})"
            case ast.UnaryOp():
                return f"({SIGNS[type(x.op)]}{c(x.operand)})"
            case ast.BoolOp():
                return f"({f' {SIGNS[type(x.op)]} '.join(map(c, x.values))})"
            case ast.Compare():
                return f"({c(x.left)} {SIGNS[type(x.ops[0])]} {c(x.comparators[0])})"
            case ast.Call():
                return f"{c(x.func)}({', '.join(map(c, x.args))})"
        raise NotImplementedError(ast.unparse(x))

    (statement,) = parsed(text)
    assert isinstance(statement, ast.Expr), text
    return c(statement.value)
