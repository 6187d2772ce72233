"""Loads and stores at plain addresses, for generated kernels: ``load_f4(address, index, scope)``.

Scope 0 is memory that a kernel only reads, 1, 2, ... are its results. The compiler is told that
memory of different scopes is never the same, which lets it vectorise loops over many arrays without
a check. (Where a result takes the place of an operand, it is computed of that operand: each element
has to be read before it is written.)
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

RESULTS = 8  # the most results a kernel can have

_TYPES: dict[str, tuple[Any, Any]] = {
    "f4": (types.float32, ir.FloatType()),
    "f8": (types.float64, ir.DoubleType()),
    "i8": (types.int64, ir.IntType(64)),
    "b1": (types.boolean, ir.IntType(8)),
    "u1": (types.uint8, ir.IntType(8)),
}


def _scopes(module: Any, numbers: Any) -> Any:
    domain = module.add_metadata([ir.MetaDataString(module, "mamlnp")])
    return module.add_metadata(
        [module.add_metadata([ir.MetaDataString(module, f"mamlnp{n}"), domain]) for n in numbers]
    )


def _declare(access: Any, builder: Any, scope: int) -> Any:
    others = [n for n in range(RESULTS + 1) if n != scope]
    access.set_metadata("alias.scope", _scopes(builder.module, [scope]))
    access.set_metadata("noalias", _scopes(builder.module, others))
    return access


def _load(code: str) -> Any:
    kind, native = _TYPES[code]

    @intrinsic(prefer_literal=True)
    def load(typing: Any, address: Any, index: Any, scope: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = builder.gep(builder.inttoptr(args[0], native.as_pointer()), [args[1]])
            value = _declare(builder.load(place), builder, scope.literal_value)
            return cgutils.is_not_null(builder, value) if code == "b1" else value

        return kind(types.int64, types.int64, scope), generate

    return load


def _store(code: str) -> Any:
    kind, native = _TYPES[code]

    @intrinsic(prefer_literal=True)
    def store(typing: Any, address: Any, index: Any, scope: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = builder.gep(builder.inttoptr(args[0], native.as_pointer()), [args[1]])
            value = builder.zext(args[3], native) if code == "b1" else args[3]
            _declare(builder.store(value, place), builder, scope.literal_value)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, scope, kind), generate

    return store


def _sum_in_any_order(code: str) -> Any:
    """x + y of a long sum, which may be added in any order: a loop of them can be vectorised."""
    kind, _ = _TYPES[code]

    @intrinsic
    def plus(typing: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.fadd(*args, flags=("reassoc",))

        return kind(kind, kind), generate

    return plus


load_f4, load_f8, load_i8, load_b1, load_u1 = map(_load, _TYPES)
store_f4, store_f8, store_i8, store_b1, store_u1 = map(_store, _TYPES)
plus_f4, plus_f8 = map(_sum_in_any_order, ("f4", "f8"))


@intrinsic
def apart(typing: Any) -> Any:
    """Keep the function that calls this out of its callers, which are many: compiling takes
    time."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


def _heap() -> Any:
    """Memory of the C library's: zeros_f8(count) is the address of so many zeros, and free(address)
    gives them back."""

    def function(builder: Any, name: str, result: Any, *args: Any) -> Any:
        kind = ir.FunctionType(result, [a.type for a in args])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    @intrinsic
    def zeros_f8(typing: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return function(builder, "calloc", ir.IntType(64), args[0], ir.IntType(64)(8))

        return types.int64(types.int64), generate

    @intrinsic
    def free(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            function(builder, "free", ir.VoidType(), args[0])
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return zeros_f8, free


zeros_f8, free = _heap()
