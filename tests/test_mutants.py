"""Every derivative rule, changed in every small way, fails the check: none goes unnoticed."""

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import test_numpy_names
import test_ops

import mamlnp as ml
from mamlnp import check_grads
from mamlnp.draws import Draw
from mamlnp.errors import GradientError
from mamlnp.op import Op, registry

DRAWS = 12
# Calls that only give a cotangent its argument's shape: a mutant leaves them out.
SHAPING = {
    "_fit", "sum_to", "broadcast_to", "reshape", "expand_dims", "swapaxes", "matrix_transpose",
    "transpose", "squeeze",
}  # fmt: skip
SUMS, PRODUCTS = {"add", "sub"}, {"mul", "div"}

# What the declared edges are tested by, where draws at random do not come.
EDGES: list[Callable[[], Any]] = [
    test_numpy_names.test_equal_eigenvalues_have_derivatives_without_their_vectors_turning,
    test_ops.test_powers_of_zero,
    test_ops.test_a_power_of_exponent_0_or_1_still_depends_on_it,
    functools.partial(test_ops.test_nan_has_a_gradient_as_well, lambda f: f),
    *(
        functools.partial(test_ops.test_whole_exponents_use_no_logarithm, x, n)
        for x, n in itertools.product((-2.0, 0.0, 3.0), range(5))
    ),
    *(
        functools.partial(test_ops.test_ties_of_many_share_equally, f, top)
        for f, top in ((ml.max, 3.0), (ml.min, -3.0))
    ),
]

# Mutants that compute the same, with the reason.
EQUIVALENT = {
    "power, a: no factor in line 8: mul(ct, b)": "b is 1 there",
    "power, b: no condition in line 4: "
    "where(safe, mul(mul(ct, out), log(where(safe, a, ones_like(b)))), 0.0)": (
        "the logarithm is that of 1 where it is not safe; only an infinite power tells"
    ),
}


class _Change(ast.NodeTransformer):
    """Makes the n-th change that there is to make; counts them."""

    def __init__(self, n: int) -> None:
        self.left, self.label = n, ""

    def _changed(self, node: ast.expr, choices: list[tuple[str, ast.expr]]) -> ast.expr:
        for label, new in choices:
            if self.left == 0:
                self.label = f"{label} in line {node.lineno}: {ast.unparse(node)}"
                self.left = -1
                return new
            self.left -= self.left > 0
        return node

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        name = getattr(node.func, "id", "")
        choices: list[tuple[str, ast.expr]] = []
        if name in SHAPING:
            choices = [("no shape", node.args[0])]
        elif name in SUMS and len(node.args) == 2:
            choices = [("first term only", node.args[0]), ("second term only", node.args[1])]
        elif name in PRODUCTS and len(node.args) == 2:
            choices = [("no factor", node.args[0]), ("no first factor", node.args[1])]
        elif name == "neg":
            choices = [("no sign", node.args[0])]
        elif name == "where" and len(node.args) == 3:
            choices = [("no condition", node.args[1]), ("no condition", node.args[2])]
        return self._changed(node, choices)

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        self.generic_visit(node)
        if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
            return self._changed(node, [("left only", node.left), ("right only", node.right)])
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        self.generic_visit(node)
        if isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
            return self._changed(node, [("no sign", node.operand)])
        return node


def rewritten(rule: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The rule with each change to its source, one at a time."""
    if rule.__closure__:  # made by another function: no source of its own
        return
    n = 0
    while True:
        module = ast.parse(textwrap.dedent(inspect.getsource(rule)))
        function = module.body[0]
        if not isinstance(function, ast.FunctionDef):
            return
        function.decorator_list = []
        change = _Change(n)
        function.body = [change.visit(statement) for statement in function.body]
        if not change.label:
            return
        function.name = "mutant"
        scope: dict[str, Any] = {}
        exec(compile(ast.fix_missing_locations(module), "mutant", "exec"), rule.__globals__, scope)
        yield change.label, scope["mutant"]
        n += 1


def scaled(rule: Callable[..., Any], by: float) -> Callable[..., Any]:
    def mutant(*args: Any, **params: Any) -> Any:
        out = rule(*args, **params)
        return tuple(x * by for x in out) if isinstance(out, tuple) else out * by

    return mutant


def mutants(rule: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield "sign flipped", scaled(rule, -1.0)
    yield "scaled by 1.01", scaled(rule, 1.01)
    yield from rewritten(rule)


def caught(op: Op) -> bool:
    """Does any of a few draws fail? Any error counts: a wrong shape is as good as a wrong value."""
    for seed in range(DRAWS):
        args, params = op.draw(Draw(np.random.default_rng([seed, 7])))

        def f(*arrays: Any, params: Any = params) -> Any:
            return op(*arrays, **params)

        try:
            check_grads(f, args, 2)
        except GradientError as error:
            if error.report is not None:
                return True
        except Exception:
            return True
    for edge in EDGES:
        try:
            edge()
        except Exception:
            return True
    return False


CHECKED = [op for op in registry.values() if op.differentiable]


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in CHECKED])
def test_the_rules_as_they_are_pass(op: Op) -> None:
    assert not caught(op)


def test_every_mutant_is_caught(capsys: Any) -> None:
    survivors, count = [], 0
    for op in CHECKED:
        for position, rule in list(op.rules.items()):
            for label, mutant in mutants(rule):
                name = f"{op.name}, {op.arguments[position]}: {label}"
                op.rules[position] = mutant
                try:
                    found = caught(op)
                finally:
                    op.rules[position] = rule
                count += 1
                if not found:
                    survivors.append(name)
    with capsys.disabled():
        print(
            f"\n{count} mutants of derivative rules: {count - len(survivors)} caught, "
            f"{len(survivors)} compute the same"
        )
    assert sorted(survivors) == sorted(EQUIVALENT), "\n".join(survivors)
