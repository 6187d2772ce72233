"""Kernels as machine code: a small part of Python, written down in LLVM's language.

numba would compile the same text, but its type inference took nine tenths of the time of a first
compiled call. All types here are known as one reads on: a function's arguments are int64, and a
variable has the type of what it is first given. There are assignments (of tuples too), ``for`` over
a range, ``while``, ``if``, ``continue``, arithmetic, comparisons, conditional expressions, casts,
min, max, abs, functions of ``math``, the instructions of :mod:`.memory`, :mod:`.transcendental` and
:mod:`.replay`, and calls of other such functions. numba's code generator optimises the result, for
this processor.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import itertools
import math
import pickle
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

I64, BIT = ir.IntType(64), ir.IntType(1)
NATIVE = {
    types.boolean: BIT,
    types.uint8: ir.IntType(8),
    types.int64: I64,
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
}
WIDTH = list(NATIVE)  # of two types the later one holds both
FLOATS = types.float32, types.float64
CASTS = {
    bool: types.boolean,
    np.bool_: types.boolean,
    np.uint8: types.uint8,
    int: types.int64,
    float: types.float64,
    np.int64: types.int64,
    np.float32: types.float32,
    np.float64: types.float64,
}
ARITHMETIC = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.BitOr: "or_"}
SIGNS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
OF_LLVM = "sqrt", "sin", "cos", "exp", "log", "pow"  # what LLVM knows of C's library
Unit = dict[str, ast.FunctionDef]


class Value(NamedTuple):
    """Attributes:
    kind: numba's name of its type; None of what has no value.
    code: LLVM's value.
    """

    kind: Any
    code: Any


class _Function:
    """One function, as it is written down.

    Attributes:
        unit: the functions of the same text.
        names: what all other names in it are.
        variables: the type and the place of each.
    """

    def __init__(
        self, module: Any, symbol: str, node: ast.FunctionDef, unit: Unit, names: dict[str, Any]
    ) -> None:
        self.module, self.unit, self.names = module, unit, names
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(node.args.args))
        self.function = ir.Function(module, kind, symbol)
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self.variables: dict[str, tuple[Any, Any]] = {}
        self.latches: list[Any] = []  # of the loops around, where the next turn is prepared
        for argument, code in zip(node.args.args, self.function.args, strict=True):
            self.store(argument.arg, Value(types.int64, code))
        self.block(node.body)
        self.builder.ret_void()

    # ---- statements

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            getattr(self, f"_{type(statement).__name__}")(statement)

    def store(self, name: str, value: Value) -> None:
        if name not in self.variables:
            with self.builder.goto_entry_block():
                place = self.builder.alloca(NATIVE[value.kind], name=name)
            self.variables[name] = value.kind, place
        kind, place = self.variables[name]
        self.builder.store(self.cast(value, kind), place)

    def _Assign(self, x: ast.Assign) -> None:  # noqa: N802 (the tree's names)
        (target,) = x.targets
        if isinstance(target, ast.Name):
            return self.store(target.id, self.value(x.value))
        assert isinstance(target, ast.Tuple)
        given = x.value.elts if isinstance(x.value, ast.Tuple) else self._choices(x.value)
        values = [v if isinstance(v, Value) else self.value(v) for v in given]
        for name, value in zip(target.elts, values, strict=True):
            self.store(name.id, value)  # type: ignore[attr-defined]

    def _choices(self, x: Any) -> list[Value]:
        """One tuple or another, element by element."""
        pairs = zip(x.body.elts, x.orelse.elts, strict=True)
        return [self.value(ast.IfExp(x.test, *pair)) for pair in pairs]

    def _AugAssign(self, x: ast.AugAssign) -> None:  # noqa: N802
        name = x.target.id  # type: ignore[union-attr]
        self.store(name, self.value(ast.BinOp(ast.Name(name), x.op, x.value)))

    def _Expr(self, x: ast.Expr) -> None:  # noqa: N802
        if not isinstance(x.value, ast.Constant):  # a docstring
            self.value(x.value)

    def _If(self, x: ast.If) -> None:  # noqa: N802
        with self.builder.if_else(self.truth(self.value(x.test))) as (then, otherwise):
            with then:
                self.block(x.body)
            with otherwise:
                self.block(x.orelse)

    def _Continue(self, x: ast.Continue) -> None:  # noqa: N802
        self.builder.branch(self.latches[-1])
        self.builder.position_at_end(self.builder.append_basic_block())  # which nothing reaches

    def _turns(self, body: list[ast.stmt], goes_on: Any, again: Callable[[], Any]) -> None:
        """The body, and again while ``again()``, if ``goes_on`` at all."""
        builder = self.builder
        inside, latch, after = (builder.append_basic_block() for _ in range(3))
        builder.cbranch(goes_on, inside, after)
        builder.position_at_end(inside)
        self.latches.append(latch)
        self.block(body)
        self.latches.pop()
        builder.branch(latch)
        builder.position_at_end(latch)
        builder.cbranch(again(), inside, after)
        builder.position_at_end(after)

    def _While(self, x: ast.While) -> None:  # noqa: N802
        def holds() -> Any:
            return self.truth(self.value(x.test))

        self._turns(x.body, holds(), holds)

    def _For(self, x: ast.For) -> None:  # noqa: N802
        name, builder = x.target.id, self.builder  # type: ignore[attr-defined]
        given = [self.value(a).code for a in x.iter.args]  # type: ignore[attr-defined]
        start, stop, step = (I64(0), *given, I64(1)) if len(given) == 1 else (*given, I64(1))[:3]
        with builder.goto_entry_block():
            turn = builder.alloca(I64)
        builder.store(start, turn)
        self.store(name, Value(types.int64, start))

        def again() -> Any:
            following = builder.add(builder.load(turn), step, flags=("nsw",))
            builder.store(following, turn)
            self.store(name, Value(types.int64, following))
            return builder.icmp_signed("<", following, stop)

        self._turns(x.body, builder.icmp_signed("<", start, stop), again)

    # ---- expressions

    def value(self, x: ast.expr) -> Value:
        return getattr(self, f"_{type(x).__name__}")(x)

    def truth(self, x: Value) -> Any:
        return self.cast(x, types.boolean)

    def cast(self, x: Value, kind: Any) -> Any:
        """The value as one of another type."""
        builder, native = self.builder, NATIVE[kind]
        if x.kind == kind:
            return x.code
        if kind == types.boolean:
            compare = builder.fcmp_unordered if x.kind in FLOATS else builder.icmp_signed
            return compare("!=", x.code, x.code.type(0))
        if x.kind in FLOATS:
            if kind in FLOATS:
                wider = kind == types.float64
                return (builder.fpext if wider else builder.fptrunc)(x.code, native)
            return builder.fptosi(x.code, native)
        if kind in FLOATS:
            signed = x.kind == types.int64
            return (builder.sitofp if signed else builder.uitofp)(x.code, native)
        wider = WIDTH.index(kind) > WIDTH.index(x.kind)
        return (builder.zext if wider else builder.trunc)(x.code, native)

    def alike(self, *values: Value) -> tuple[Any, list[Any]]:
        """The values as ones of a type that holds them all."""
        kind = max((v.kind for v in values), key=WIDTH.index)
        return kind, [self.cast(v, kind) for v in values]

    def _Constant(self, x: ast.Constant) -> Value:  # noqa: N802
        return self.constant(x.value)

    def constant(self, x: Any) -> Value:
        kind = CASTS[type(x)]
        return Value(kind, NATIVE[kind](float(x) if kind in FLOATS else int(x)))

    def _Name(self, x: ast.Name) -> Value:  # noqa: N802
        if x.id not in self.variables:
            return self.constant(self.names[x.id])
        kind, place = self.variables[x.id]
        return Value(kind, self.builder.load(place))

    def _Attribute(self, x: ast.Attribute) -> Value:  # noqa: N802
        return self.constant(self.object(x))

    def object(self, x: ast.expr) -> Any:
        """What a name, or a module's attribute, is."""
        if isinstance(x, ast.Attribute):
            return getattr(self.object(x.value), x.attr)
        name = x.id  # type: ignore[attr-defined]
        return self.names[name] if name in self.names else getattr(builtins, name)

    def _BinOp(self, x: ast.BinOp) -> Value:  # noqa: N802
        kind, (a, b) = self.alike(self.value(x.left), self.value(x.right))
        if isinstance(x.op, ast.FloorDiv | ast.Mod):
            return Value(kind, self._whole(a, b, isinstance(x.op, ast.Mod)))
        name = ("f" if kind in FLOATS else "") + ARITHMETIC[type(x.op)]
        return Value(kind, getattr(self.builder, name)(a, b))

    def _whole(self, a: Any, b: Any, rest: bool) -> Any:
        """a // b or a % b, whose rest has the sign of b."""
        builder = self.builder
        down, left = builder.sdiv(a, b), builder.srem(a, b)
        apart = builder.icmp_signed("<", builder.xor(left, b), I64(0))
        less = builder.and_(builder.icmp_signed("!=", left, I64(0)), apart)
        if rest:
            return builder.select(less, builder.add(left, b), left)
        return builder.select(less, builder.sub(down, I64(1)), down)

    def _UnaryOp(self, x: ast.UnaryOp) -> Value:  # noqa: N802
        operand = self.value(x.operand)
        if isinstance(x.op, ast.Not):
            return Value(types.boolean, self.builder.not_(self.truth(operand)))
        negate = self.builder.fneg if operand.kind in FLOATS else self.builder.neg
        return Value(operand.kind, negate(operand.code))

    def _BoolOp(self, x: ast.BoolOp) -> Value:  # noqa: N802
        join = self.builder.or_ if isinstance(x.op, ast.Or) else self.builder.and_
        found = [self.truth(self.value(v)) for v in x.values]
        return Value(types.boolean, functools.reduce(join, found))

    def _Compare(self, x: ast.Compare) -> Value:  # noqa: N802
        values = [self.value(v) for v in (x.left, *x.comparators)]
        pairs = zip(x.ops, itertools.pairwise(values), strict=True)
        found = [self.compared(SIGNS[type(sign)], *pair) for sign, pair in pairs]
        return Value(types.boolean, functools.reduce(self.builder.and_, found))

    def compared(self, sign: str, a: Value, b: Value) -> Any:
        kind, pair = self.alike(a, b)
        if kind in FLOATS:  # NaN is not equal, and not anything else
            compare = self.builder.fcmp_unordered if sign == "!=" else self.builder.fcmp_ordered
        else:
            signed = kind == types.int64
            compare = self.builder.icmp_signed if signed else self.builder.icmp_unsigned
        return compare(sign, *pair)

    def _IfExp(self, x: ast.IfExp) -> Value:  # noqa: N802
        builder, ends = self.builder, []
        with builder.if_else(self.truth(self.value(x.test))) as sides:
            for side, part in zip(sides, (x.body, x.orelse), strict=True):
                with side:
                    ends.append((self.value(part), builder.block))
        (first, _), (second, _) = ends
        assert first.kind == second.kind, ast.unparse(x)
        either = builder.phi(NATIVE[first.kind])
        for value, block in ends:
            either.add_incoming(value.code, block)
        return Value(first.kind, either)

    def _Call(self, x: ast.Call) -> Value:  # noqa: N802
        called = getattr(x.func, "id", "")
        if called in self.unit:
            return self.called(called, self.unit, self.names, x.args)
        f = self.object(x.func)
        if isinstance(f, FunctionType):  # of another module's, which is written down here too
            node = parsed(inspect.getsource(f))[0]
            assert isinstance(node, ast.FunctionDef)
            return self.called(f.__name__, {f.__name__: node}, f.__globals__, x.args)
        values = [self.value(a) for a in x.args]
        if f in CASTS:
            return Value(CASTS[f], self.cast(values[0], CASTS[f]))
        if f in (min, max):
            kind, pair = self.alike(*values)
            first = self.builder.icmp_signed("<" if f is min else ">", *pair)
            return Value(kind, self.builder.select(first, *pair))
        name = getattr(f, "__name__", "")
        if f is abs or getattr(math, name, None) is f:
            return self.of_c(name, values)
        return self.instruction(f, x.args, values)

    def called(self, name: str, unit: Unit, names: dict[str, Any], args: list[ast.expr]) -> Value:
        """A call of a function, which is written down before its first one."""
        function = self.module.globals.get(name)
        if function is None:
            function = _Function(self.module, name, unit[name], unit, names).function
            function.linkage = "internal"
        self.builder.call(function, [self.value(a).code for a in args])
        return Value(None, None)

    def of_c(self, name: str, values: list[Value]) -> Value:
        """A function of C's library."""
        kind, codes = self.alike(*values)
        if name == "isfinite":
            size = self.of_c("abs", values).code
            return Value(types.boolean, self.builder.fcmp_ordered("<", size, size.type(math.inf)))
        if kind not in FLOATS:  # abs
            negative = self.builder.icmp_signed("<", codes[0], I64(0))
            return Value(kind, self.builder.select(negative, self.builder.neg(codes[0]), codes[0]))
        native = NATIVE[kind]
        signature = ir.FunctionType(native, [native] * len(codes))
        if name == "abs" or name in OF_LLVM:
            name = {"abs": "fabs"}.get(name, name)
            function = self.module.declare_intrinsic(f"llvm.{name}", [native], signature)
        else:
            name += "f" * (kind == types.float32)
            function = self.module.globals.get(name) or ir.Function(self.module, signature, name)
        return Value(kind, self.builder.call(function, codes))

    def instruction(self, f: Any, args: list[ast.expr], values: list[Value]) -> Value:
        """What numba calls an intrinsic: it writes itself down."""
        kinds = [
            types.literal(a.value) if isinstance(a, ast.Constant) else v.kind
            for a, v in zip(args, values, strict=True)
        ]
        signature, generate = f.__wrapped__(None, *kinds)
        codes = [
            v.code if isinstance(kind, types.Literal) else self.cast(v, kind)
            for v, kind in zip(values, signature.args, strict=True)
        ]
        return Value(
            signature.return_type,
            generate(cpu_target.target_context, self.builder, signature, codes),
        )


def parsed(text: str) -> list[ast.stmt]:
    """A text's statements.

    Python 3.11 counts the depth of all threads' trees together: it refuses a tree that was made
    while another thread made its own. Hence the lock.
    """
    with global_compiler_lock:
        return ast.parse(text).body


def _read(text: str) -> tuple[Unit, dict[str, Any]]:
    """A text's functions, and what its other lines name."""
    body = parsed(text)
    unit = {x.name: x for x in body if isinstance(x, ast.FunctionDef)}
    names: dict[str, Any] = {}
    rest = ast.Module([x for x in body if not isinstance(x, ast.FunctionDef)], [])
    exec(compile(rest, "<kernel>", "exec"), names)
    return unit, names


def machine() -> str:
    """What machine code depends on: this processor, and who makes it."""
    return f"numba {numba.__version__} {_generator().magic_tuple()}"


def _generator() -> Any:
    return cpu_target.target_context.codegen()


class Library:
    """Machine code, which must not be collected while it can be called.

    Attributes:
        address: where its function begins.
    """

    def __init__(self, library: Any, symbol: str) -> None:
        self._library = library
        self.address: int = library.get_pointer_to_function(symbol)

    def saved(self) -> bytes:
        """What :func:`loaded` takes."""
        return pickle.dumps(self._library.serialize_using_object_code())

    def described(self) -> str:
        """It, optimised, in LLVM's language."""
        return self._library.get_llvm_str()


def made(text: str, function: str, symbol: str) -> Library:
    """One of a text's functions, as the machine runs it."""
    unit, names = _read(text)
    with global_compiler_lock:
        library = _generator().create_library(symbol)
        library.enable_object_caching()
        module = library.create_ir_module(symbol)
        _Function(module, symbol, unit[function], unit, names)
        library.add_ir_module(module)
        library.finalize()
        return Library(library, symbol)


def loaded(saved: bytes, symbol: str) -> Library:
    """The same, made before."""
    with global_compiler_lock:
        return Library(_generator().unserialize_library(pickle.loads(saved)), symbol)
