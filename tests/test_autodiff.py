"""The transforms: every order, any nesting, trees, threads, and memory that goes at once."""

import gc
import math
import re
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.polynomial import polynomial

import mamlnp as ml
from mamlnp import Array, array, checkpoint, grad, tree, value_and_grad, vjp
from mamlnp.autodiff import tape
from mamlnp.draws import one
from mamlnp.errors import DtypeError, MissingRuleError, ShapeError
from mamlnp.gradcheck import TOLERANCES
from mamlnp.op import Op, recording
from mamlnp.tasks.sinusoid import Sinusoids

numbers = st.floats(-2, 2)
seeds = st.integers(0, 2**32 - 1)


def close(actual, expected):
    """Equal to rounding, leaf by leaf, shapes and types included."""

    def leaf(a, e):
        e = np.asarray(getattr(e, "value", e), float)
        size = max(1.0, np.abs(e).max(initial=0.0))
        rounding = TOLERANCES["rounding"]
        np.testing.assert_allclose(a.numpy(), e, rounding, rounding * size, strict=True)

    tree.map(leaf, actual, expected)


def derivative(f, order):
    for _ in range(order):
        f = grad(f)
    return f


def watched(name, rule):
    """The identity, as an op of that name that is not registered, with a rule of its own."""

    def forward(xp, x):
        return x

    forward.__name__ = name
    made = Op(forward, draw=one())
    made.vjp("x")(rule)
    return made


# ---- any order


@given(x=numbers, order=st.integers(0, 5))
def test_sine_to_fifth_order(x, order):
    close(array(derivative(ml.sin, order)(x)), math.sin(x + order * math.pi / 2))


@given(x=numbers, order=st.integers(0, 5))
def test_exponential_to_fifth_order(x, order):
    close(array(derivative(ml.exp, order)(x)), math.exp(x))
    close(array(derivative(lambda x: x * ml.exp(x), order)(x)), (x + order) * math.exp(x))


@given(x=numbers, n=st.integers(0, 7), order=st.integers(0, 5))
def test_powers_to_fifth_order(x, n, order):
    falls_to = math.perm(n, order) * x ** max(n - order, 0)
    close(array(derivative(lambda x: x**n, order)(x)), float(falls_to))


@given(x=st.floats(0.5, 2), order=st.integers(1, 5))
def test_logarithm_and_reciprocal_to_fifth_order(x, order):
    last = (-1) ** (order - 1) * math.factorial(order - 1)
    close(derivative(ml.log, order)(x), last / x**order)
    close(derivative(lambda x: 1 / x, order)(x), -last * order / x ** (order + 1))


# ---- nesting


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: x * grad(lambda y: x + y)(1.0), lambda x: 1.0),
        (lambda x: x * grad(lambda y: x * y)(2.0), lambda x: 2 * x),
        (lambda x: x * grad(lambda y: x * y * y)(x), lambda x: 6 * x**2),
        (lambda x: grad(lambda y: grad(lambda z: x * y * z)(y))(x), lambda x: 1.0),
        (lambda x: grad(lambda x: x**3)(x) * x, lambda x: 9 * x**2),
        (
            lambda x: x * grad(lambda y: y * grad(lambda z: x * y * z * z)(y))(x),
            lambda x: 24 * x**3,
        ),
        (lambda x: grad(lambda y: x)(x) + x, lambda x: 1.0),
        (lambda x: grad(lambda y: grad(lambda z: y)(x) + x * y)(x), lambda x: 1.0),
    ],
)
def test_an_inner_gradient_sees_only_its_own_variable(f, expected):
    close(grad(f)(1.5), expected(1.5))


def test_an_inner_gradient_closes_over_what_the_outer_one_made():
    def f(x):
        h = ml.sin(x)
        return grad(lambda y: h * y**3)(x)

    x = 0.7
    close(grad(f)(x), math.cos(x) * 3 * x**2 + 6 * x * math.sin(x))
    close(
        grad(grad(f))(x),
        -math.sin(x) * 3 * x**2 + 12 * x * math.cos(x) + 6 * math.sin(x),
    )


@given(seed=seeds)
def test_three_nested_gradients_are_the_mixed_partial_derivative(seed):
    rng = np.random.default_rng(seed)
    coefficients = rng.normal(size=(3, 3, 3))
    x0, y0, z0 = rng.uniform(-1.5, 1.5, 3)

    def p(x, y, z):
        terms = [c * x**i * y**j * z**k for (i, j, k), c in np.ndenumerate(coefficients)]
        return sum(terms[1:], start=terms[0])

    nested = grad(lambda x: grad(lambda y: grad(lambda z: p(x, y, z))(z0))(y0))(x0)
    mixed = coefficients
    for axis in range(3):
        mixed = polynomial.polyder(mixed, axis=axis)
    close(nested, polynomial.polyval3d(x0, y0, z0, mixed))
    # The same point reached from inside: every argument is the outermost variable.
    diagonal = grad(lambda x: grad(lambda y: grad(lambda z: p(x, y, z))(x))(x))(x0)
    inner = polynomial.polyder(polynomial.polyder(coefficients, axis=1), axis=2)
    partials = [polynomial.polyder(inner, axis=axis) for axis in range(3)]
    # d/dx at y = x is p_yx + p_yy, and at z = x of p_z inside it is p_zx, once for each place.
    expected = polynomial.polyval3d(x0, x0, x0, partials[0])
    close(grad(lambda x: grad(lambda y: grad(lambda z: p(x, y, z))(x0))(x0))(x0), expected)
    total = sum(polynomial.polyval3d(x0, x0, x0, part) for part in partials)
    close(diagonal, total)


@given(x=numbers, rate=st.floats(0.01, 0.5), steps=st.integers(0, 4))
def test_a_gradient_through_gradient_descent(x, rate, steps):
    def descended(theta):
        for _ in range(steps):
            theta = theta - rate * grad(lambda y: y * y)(theta)
        return theta

    close(array(grad(descended)(x)), (1 - 2 * rate) ** steps)
    close(array(grad(grad(descended))(x)), 0.0)


def test_transforms_nest_in_each_other():
    def cubes(x):
        return (x**3).sum()

    x, v = array([1.0, -2.0]), array([0.5, 3.0])
    close(grad(lambda x: ml.hvp(cubes, x, v).sum())(x), 6 * v)
    close(grad(lambda x: ml.jvp(cubes, (x,), (v,))[1])(x), 6 * x * v)
    close(grad(lambda x: ml.jacobian(lambda y: y**3)(x).sum())(x), 6 * x)
    close(grad(lambda x: ml.hessian(cubes)(x).sum())(x), [6.0, 6.0])
    close(ml.jvp(grad(cubes), (x,), (v,))[1], ml.hvp(cubes, x, v))
    close(ml.jvp(lambda x: ml.jvp(cubes, (x,), (v,))[1], (x,), (v,))[1], 6 * (x * v * v).sum())
    close(ml.jacobian(lambda y: vjp(lambda x: x**3, y)[1](v)[0])(x), np.diag((6 * x * v).numpy()))


# ---- arguments and trees


class Pair(NamedTuple):
    left: Any
    right: Any


def test_argnums_choose_the_arguments():
    def f(a, b, c):
        return a * b * b * c

    close(grad(f)(2.0, 3.0, 5.0), 45.0)
    close(grad(f, 1)(2.0, 3.0, 5.0), 60.0)
    close(grad(f, -1)(2.0, 3.0, 5.0), 18.0)
    found = grad(f, (2, 0))(2.0, 3.0, 5.0)
    assert isinstance(found, tuple)
    close(found, (18.0, 45.0))
    close(grad(f, (1,))(2.0, 3.0, 5.0), (60.0,))


def test_other_arguments_may_be_anything():
    def f(x, name, scale=1.0, *, shift=None):
        assert name == "any" and shift is None
        return x * scale

    close(grad(f)(2.0, "any", scale=4.0, shift=None), 4.0)


def test_gradients_are_trees_like_their_arguments():
    params = {"w": Pair(2.0, [3.0, array([1.0, 5.0])]), "b": (7.0, None), "none": {}}

    def f(p):
        first, second = p["w"].right
        return p["w"].left * first**2 * second.sum() + p["b"][0]

    found = grad(f)(params)
    assert isinstance(found["w"], Pair) and isinstance(found["w"].right, list)
    assert found["b"][1] is None and found["none"] == {}
    close(found, {"w": Pair(54.0, [72.0, [18.0, 18.0]]), "b": (1.0, None), "none": {}})


def test_a_float32_tree_has_a_float32_gradient():
    params = {"w": array([1.0, 2.0], np.float32)}
    value, found = value_and_grad(lambda p: (p["w"] ** 3).mean() * 2)(params)
    assert value.dtype == found["w"].dtype == np.float32


def test_has_aux_hands_through_what_is_not_differentiated():
    def f(x):
        return x**3, {"double": 2 * x, "name": "cube"}

    (value, aux), found = value_and_grad(f, has_aux=True)(2.0)
    close((value, found, aux["double"]), (8.0, 12.0, 4.0))
    assert aux["name"] == "cube"
    found, aux = grad(f, has_aux=True)(2.0)
    close((found, aux["double"]), (12.0, 4.0))
    # Inside another gradient what is handed through is differentiated like anything else.
    close(grad(lambda x: grad(f, has_aux=True)(x)[1]["double"])(2.0), 2.0)


def test_unused_inputs_have_zeros_of_their_shape():
    params = {"used": array([1.0, 2.0]), "idle": [array(np.ones((2, 3))), 1.0]}
    expected = {"used": [1.0, 1.0], "idle": [np.zeros((2, 3)), 0.0]}
    close(grad(lambda p: p["used"].sum())(params), expected)
    close(grad(lambda x: array(3.0))(2.0), 0.0)
    close(grad(grad(lambda x: 2.0 * x))(2.0), 0.0)
    _, pullback = vjp(lambda a, b: a, 2.0, array([1.0, 2.0]))
    close(pullback(1.0), (1.0, [0.0, 0.0]))


def test_strict_names_the_unused_input():
    params = {"used": 1.0, "idle": [1.0, 2.0]}
    with pytest.raises(MissingRuleError, match=r"argument \[0\]\['idle'\]\[1\]"):
        grad(lambda p: p["used"] * p["idle"][0], strict=True)(params)
    with pytest.raises(MissingRuleError, match=r"argument \[2\]"):
        grad(lambda a, b, c: a * b, (0, 2), strict=True)(1.0, 2.0, 3.0)
    close(grad(lambda p: p["used"] * p["idle"][0] * p["idle"][1], strict=True)(params)["used"], 2.0)


def test_only_what_has_one_element_has_a_gradient():
    with pytest.raises(ShapeError, match=r"grad: the function returned float64\[2\], not a scalar"):
        grad(lambda x: x)(array([1.0, 2.0]))
    value, gradient = value_and_grad(lambda x: x[:1] ** 2)(array([3.0, 2.0]))
    assert value.tolist() == [9.0]
    assert gradient.tolist() == [6.0, 0.0]


@pytest.mark.parametrize("leaf", [3, True, np.arange(3), array([1, 2])])
def test_only_floats_can_be_differentiated(leaf):
    with pytest.raises(DtypeError, match=r"grad: argument \[1\]\['n'\] is (int64|bool)\["):
        grad(lambda a, p: a, 1)(1.0, {"n": leaf})
    with pytest.raises(DtypeError, match=r"vjp: argument \[0\]"):
        vjp(lambda x: x, leaf)


# ---- vjp, jvp and what is made of them


def test_a_pullback_can_be_called_many_times():
    x = array([1.0, 2.0])
    (square, double), pullback = vjp(lambda x: (x * x, 2 * x), x)
    close((square, double), ([1.0, 4.0], [2.0, 4.0]))
    for a, b in ((1.0, 0.0), (0.0, 1.0), (3.0, -2.0), (1.0, 0.0)):
        ct = (array([a, 0.0]), array([b, b]))
        close(pullback(ct), ([2 * a + 2 * b, 2 * b],))


def test_a_pullback_can_itself_be_differentiated():
    _, pullback = vjp(lambda x: x**3, 2.0)
    close(grad(lambda u: pullback(u)[0] ** 2)(1.0), 2 * 12.0 * 12.0)


def test_a_cotangent_must_fit_the_output():
    _, pullback = vjp(lambda x: 2 * x, array([1.0, 2.0]))
    with pytest.raises(ShapeError, match=r"vjp: the cotangent float64\[\] .* float64\[2\]"):
        pullback(1.0)
    _, pullback = vjp(lambda x: (x, x), 1.0)
    with pytest.raises(ShapeError, match="tuple of length 2 against tuple of length 3"):
        pullback((1.0, 1.0, 1.0))


def smooth(x, w):
    return {"sum": ml.tanh(x @ w) + ml.sin(x).sum(), "mean": ml.exp(0.3 * w).mean(axis=0)}


@given(seed=seeds)
def test_jvp_and_vjp_are_each_others_transpose(seed):
    rng = np.random.default_rng(seed)
    primals = (array(rng.normal(size=(2, 3))), array(rng.normal(size=(3, 2))))
    tangents = tuple(array(rng.normal(size=p.shape)) for p in primals)
    out, out_tangent = ml.jvp(smooth, primals, tangents)
    value, pullback = vjp(smooth, *primals)
    close(out, value)
    ct = tree.map(lambda y: array(rng.normal(size=y.shape)), value)
    close(ml.dot(ct, out_tangent), ml.dot(pullback(ct), tangents))


@given(x=numbers, t=numbers)
def test_jvp_equals_its_closed_form(x, t):
    out, out_tangent = ml.jvp(lambda a, b: ml.sin(a) * b, (x, 3.0), (t, 2.0))
    close(array(out), math.sin(x) * 3)
    close(array(out_tangent), math.cos(x) * t * 3 + math.sin(x) * 2)
    close(ml.jvp(lambda x: array([1.0, 2.0]), (x,), (t,))[1], [0.0, 0.0])
    # Along a tangent it is linear, so its derivative by that is J itself.
    close(grad(lambda t: ml.jvp(ml.sin, (x,), (t,))[1])(t), math.cos(x))


@given(seed=seeds)
def test_second_derivatives_of_a_quadratic_form(seed):
    rng = np.random.default_rng(seed)
    a, x, v = rng.normal(size=(3, 3)), array(rng.normal(size=3)), array(rng.normal(size=3))

    def f(x):
        return (x @ a @ x) / 2 + (x**3).sum()

    exact = (a + a.T) / 2 + 6 * np.diag(x.numpy())
    close(ml.hessian(f)(x), exact)
    close(ml.hvp(f, x, v), exact @ v.numpy())
    close(ml.jacobian(grad(f))(x), exact)


def test_hvp_of_a_tree():
    at = {"a": 2.0, "b": array([1.0, 3.0])}
    v = {"a": 1.0, "b": array([1.0, -1.0])}
    found = ml.hvp(lambda p: p["a"] ** 2 * (p["b"] ** 2).sum(), at, v)
    # f = a^2 |b|^2: Haa = 2|b|^2, Hab = 4 a b, Hbb = 2 a^2 I
    close(found, {"a": 20.0 + 8.0 * (1 - 3), "b": [8.0 + 8.0, 24.0 - 8.0]})


@pytest.mark.parametrize("argnums", [1, -1])
def test_jacobian_has_the_outputs_shape_then_the_arguments(argnums):
    a, x = np.arange(6.0).reshape(2, 3), array(np.ones((3, 2)))
    found = ml.jacobian(lambda a, x: a @ (x * x), argnums)(a, x)
    expected = 2 * np.einsum("ik,jl->ijkl", a, np.eye(2))
    close(found, expected)
    close(ml.jacobian(lambda a, x: (x**2).sum(), argnums)(a, x), 2 * np.ones((3, 2)))
    close(ml.hessian(lambda a, x: (x**3).sum(), argnums)(a, array([2.0])), [[12.0]])
    close(ml.jacobian(ml.sin)(0.5), math.cos(0.5))


def test_jacobian_and_hessian_of_trees_and_several_arguments():
    def f(p, x, k):
        return {"y": p["w"] @ x * k, "n": (p["b"] * x[0], 1.0)}

    w, b, x = np.arange(6.0).reshape(2, 3), 2.0, np.array([1.0, -1.0, 2.0])
    by_p, by_x = {"w": 0, "b": 0}, 0
    found = ml.jacobian(f, (0, 1))({"w": w, "b": b}, x, 3)
    assert tree.map(lambda _: 0, found) == {
        "y": (by_p, by_x), "n": ((by_p, by_x), (by_p, by_x))
    }  # fmt: skip
    close(found["y"][0], {"w": 3 * np.einsum("ij,k->ijk", np.eye(2), x), "b": np.zeros(2)})
    close(found["y"][1], 3 * w)
    close(found["n"][0], ({"w": np.zeros((2, 3)), "b": 1.0}, [2.0, 0.0, 0.0]))
    close(found["n"][1], ({"w": np.zeros((2, 3)), "b": 0.0}, np.zeros(3)))
    assert list(ml.jacobian(f, 1)({"w": w, "b": b}, x, k=3)) == ["y", "n"]

    def g(p, x):
        return p["a"] ** 2 * (p["c"] * x**3).sum()

    p = {"a": array(2.0), "c": array([3.0, 4.0])}
    found = ml.hessian(g, (0, 1))(p, array([1.0, 2.0]))
    mixed = {"a": [36.0, 192.0], "c": np.diag([12.0, 48.0])}
    close(found[0]["a"][0], {"a": 70.0, "c": [4.0, 32.0]})
    close(found[0]["c"][0], {"a": [4.0, 32.0], "c": np.zeros((2, 2))})
    close({name: found[0][name][1] for name in p}, mixed)
    close(found[1][0], mixed)
    close(found[1][1], np.diag([72.0, 192.0]))
    compiled = ml.compile(ml.hessian(g, (0, 1)))(p, array([1.0, 2.0]))
    close(compiled, tree.map(lambda x: x.numpy(), found))


def test_jacobian_of_nothing_and_of_what_does_not_depend():
    assert ml.jacobian(lambda x: x[:0] * x.sum())(np.ones(3)).shape == (0, 3)
    assert ml.jacobian(lambda x: x.sum())(np.ones((0, 2))).shape == (0, 2)
    close(ml.jacobian(ml.argmax)(np.ones(3)), np.zeros(3))
    found = ml.jacobian(lambda x: 2 * x)(np.ones(2, np.float32))
    assert (found.dtype, found.tolist()) == (np.float32, [[2, 0], [0, 2]])
    assert ml.jacobian(lambda x: (), (0,))(1.0) == ()
    with pytest.raises(DtypeError, match=r"jacobian: argument \[0\] is int64"):
        ml.jacobian(lambda x: x)(np.arange(3))


@pytest.mark.parametrize("v", [np.ones((3, 3)), np.ones(1), 1.0, np.ones((1, 3))], ids=np.shape)
def test_tangents_and_inner_products_do_not_broadcast(v):
    x, shown = np.ones(3), re.escape(f"{list(np.shape(v))}".replace(" ", ""))
    for call, line in (
        (lambda: ml.hvp(lambda x: (x**3).sum(), x, v), "hvp: the tangent {} is for an argument"),
        (lambda: ml.jvp(ml.sin, (x,), (v,)), "jvp: the tangent {} is for an argument"),
        (lambda: ml.vjp(ml.sin, x)[1](v), "vjp: the cotangent {} is for an output"),
    ):
        line = line.format(f"float64{shown}")
        with pytest.raises(ShapeError, match=rf"^{line} float64\[3\]\. Pass one of"):
            call()
    with pytest.raises(ShapeError, match=r"^dot: float64\[3\] and .* have different shapes"):
        ml.dot({"a": x}, {"a": v})


def test_strict_names_what_only_argmax_depends_on():
    def f(x):
        return ml.argmax(x) * 1.0

    with pytest.warns(UserWarning, match="depends on no argument but through argmax") as said:
        close(grad(f)(np.ones(3)), np.zeros(3))
    assert said[0].filename == __file__
    close(grad(f, strict=None)(np.ones(3)), np.zeros(3))
    close(ml.hvp(lambda x: (x * ml.sign(x)).sum(), np.ones(3), np.ones(3)), np.zeros(3))
    with pytest.raises(MissingRuleError, match="the result does not depend on argument"):
        grad(f, strict=True)(np.ones(3))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_stop_gradient_stops_every_order(order):
    def f(x):
        return x * ml.stop_gradient({"cube": x**3})["cube"] + ml.stop_gradient(x) ** 4

    close(derivative(f, order)(2.0), 8.0 if order == 1 else 0.0)
    close(derivative(lambda x: f(x) + x**3, order)(2.0), [20.0, 12.0, 6.0][order - 1])


def test_numpys_own_functions_can_be_differentiated():
    def plain(x, w):
        h = np.tanh(x @ w) + np.maximum(x, 0).mean(axis=-1, keepdims=True)
        h = np.concatenate([h, np.exp(-(x[:, 1:] ** 2))], axis=1)
        return np.sum(np.where(h > 0.5, h**3, h)) + np.sqrt(np.var(w, axis=0)).sum()

    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 3)), rng.normal(size=(3, 2))
    assert plain(array(x), array(w)).item() == pytest.approx(plain(x, w), rel=1e-14)
    report = ml.check_grads(plain, [x, w], order=3)
    assert report.error() < TOLERANCES["difference"]


def test_the_tape_lists_what_was_recorded_oldest_first():
    out, nodes = tape(lambda x: {"y": ml.sin(x) * x}, 2.0)
    assert [node.op.name for node in nodes] == ["alias", "sin", "mul"]
    close(out, {"y": 2 * math.sin(2)})


# ---- rules of one's own


@ml.custom_vjp
def cube_root(x):
    return np.cbrt(np.asarray(x))  # on constants: NumPy will do


@cube_root.vjp
def _(ct, out, x):
    return (ct / (3 * out**2),)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_a_rule_of_ones_own_has_every_order(order):
    factor = math.prod(1 / 3 - k for k in range(order))
    close(derivative(cube_root, order)(8.0), factor * 8.0 ** (1 / 3 - order))
    close(derivative(lambda x: cube_root(x) ** 3, order)(2.0), [2.0, 1.0, 0.0, 0.0, 0.0][order])


def test_a_rule_of_ones_own_works_in_every_transform():
    ml.check_grads(cube_root, [np.array([0.5, 2.0])], order=3)
    ml.check_hvp(lambda x: cube_root(x * x).sum(), array([0.5, 2.0]))
    close(grad(lambda x: x * grad(lambda y: cube_root(y) * x)(1.0))(3.0), 2.0)
    close(grad(checkpoint(lambda x: cube_root(x) * x))(8.0), 2.0 + 8 / 12)
    close(ml.jacobian(cube_root)(array([1.0, 8.0])), [[1 / 3, 0.0], [0.0, 1 / 12]])
    assert cube_root.__name__ == "cube_root"
    assert cube_root(8.0).item() == 2
    assert ml.vjp(cube_root, 8.0)[1](1.0)[0].serial == 0


def solved(p, x, scale, *, times):
    """Trees, a static number, labels and keywords in; a tree out."""
    return {"y": scale * p["w"] * x["x"][x["i"]], "z": (p["b"] * times, p["w"].sum())}


twin = ml.custom_vjp(solved)


@twin.vjp
def _(ct, out, p, x, scale, *, times):
    chosen = x["x"][x["i"]]
    by_w = ct["y"] * scale * chosen + ct["z"][1]
    back = ml.put(ct["y"] * scale * p["w"], x["i"], x["x"].shape)
    return {"b": ct["z"][0] * times, "w": by_w}, {"x": back, "i": x["i"]}, None


def test_a_rule_of_ones_own_takes_trees_and_what_is_static():
    p, x = {"w": array([1.0, 2.0]), "b": 3.0}, {"x": array([4.0, 5.0, 6.0]), "i": np.array([2, 0])}

    def through(f):
        def g(p, at):
            out = f(p, {"x": at, "i": x["i"]}, 2, times=3)
            return (out["y"] ** 2).sum() + out["z"][0] ** 2 * out["z"][1]

        return g

    for derived in (
        lambda g: ml.value_and_grad(g, (0, 1)),
        lambda g: ml.hessian(g, (0, 1)),
        lambda g: ml.compile(ml.hessian(g, (0, 1))),
    ):
        expected = tree.map(lambda x: x.numpy(), derived(through(solved))(p, x["x"]))
        close(derived(through(twin))(p, x["x"]), expected)


def fixed_point(w, b):
    """The x with x = tanh(w x + b)."""
    x = ml.zeros_like(b)
    for _ in range(60):
        x = ml.tanh(w @ x + b)
    return x


implicit = ml.custom_vjp(fixed_point)


@implicit.vjp
def _(ct, x, w, b):
    pull = vjp(lambda x: ml.tanh(w @ x + b), x)[1]
    u = ct
    for _ in range(60):
        u = ct + pull(u)[0]
    return vjp(lambda w, b: ml.tanh(w @ x + b), w, b)[1](u)


def test_an_implicit_fixed_point_has_the_derivatives_of_its_iteration():
    rng = np.random.default_rng(0)
    w, b, v = 0.2 * rng.normal(size=(3, 3)), rng.normal(size=3), rng.normal(size=(3, 3))
    ml.check_grads(implicit, [w, b], order=2)

    def derived(f):
        def total(w, b):
            return (f(w, b) ** 3).sum()

        return lambda w, b: (ml.grad(total, (0, 1))(w, b), ml.hvp(lambda w: total(w, b), w, v))

    expected = tree.map(lambda x: x.numpy(), derived(fixed_point)(w, b))
    close(derived(implicit)(w, b), expected)
    close(ml.compile(derived(implicit))(w, b), expected)


def test_a_rule_of_ones_own_refuses_to_lose_a_derivative():
    def f(x):
        g = ml.custom_vjp(lambda y: x * y)
        g.vjp(lambda ct, out, y: (ct * x,))
        return g(x)

    for transform in (lambda f: f, ml.compile):
        with pytest.raises(MissingRuleError, match="custom_vjp: the function closes over"):
            transform(grad(f))(array(2.0))
    with pytest.raises(MissingRuleError, match=r"custom_vjp: double has no rule. Declare"):
        grad(ml.custom_vjp(double))(1.0)
    assert ml.custom_vjp(double)(2.0).item() == 4
    with pytest.raises(DtypeError, match=r"custom_vjp: the function returned int64\[\]"):
        ml.custom_vjp(ml.argmax)(array([1.0]))


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    "rule, kind, line",
    [
        (lambda ct, out, x, y: ct, ShapeError, "Array float64[2]. Return a tuple with"),
        (
            lambda ct, out, x, y: (ct,),
            ShapeError,
            "tuple. Return a tuple with a cotangent",
        ),
        (lambda ct, out, x, y: (ct, ct), DtypeError, "Array float64[2] for argument [1]['a']"),
        (lambda ct, out, x, y: (ct, {"b": ct}), ShapeError, "for argument [1]['a'], which is"),
        (
            lambda ct, out, x, y: (ct.sum(), None),
            ShapeError,
            "Array float64[] for argument [0], ",
        ),
        (
            lambda ct, out, x, y: (0.0, None),
            ShapeError,
            "float for argument [0], which is A",
        ),
        (
            lambda ct, out, x, y: (np.ones(2), None),
            DtypeError,
            "ndarray float64[2] for argument [0], which is Array float64[2]. Return a tree like ",
        ),
        (
            lambda ct, out, x, y: (array([1, 2]), None),
            DtypeError,
            "Array int64[2] for argument [0], which is Array float64[2]. Return a tree like ",
        ),
    ],
)
def test_what_a_rule_of_ones_own_returns_is_checked(rule, kind, line):
    def scaled(x, y):
        return x * y["a"]

    f = ml.custom_vjp(scaled)
    f.vjp(rule)
    start = "custom_vjp: scaled: its rule returned"
    with pytest.raises(kind, match=rf"^{start} .*{re.escape(line)}|^{start} {re.escape(line)}"):
        grad(lambda x: f(x, {"a": 2.0 * x}).sum())(array([1.0, 2.0]))


def test_none_is_the_cotangent_of_what_does_not_matter():
    f = ml.custom_vjp(lambda x, y: x * 1.0)
    f.vjp(lambda ct, out, x, y: (ct, None))
    found = grad(lambda x, y: f(x, y).sum(), (0, 1))(array([1.0]), {"a": array([2.0, 3.0])})
    close(found, ([1.0], {"a": [0.0, 0.0]}))


# ---- checkpoint


def layered(p, x):
    return {"y": ml.tanh(x * p["w"]) ** 2, "z": (ml.sin(x + p["b"]), p["w"].sum())}


@pytest.mark.parametrize("order", [1, 2, 3])
def test_checkpoint_changes_no_derivative(order):
    rng = np.random.default_rng(0)
    x, t = (array(rng.normal(size=3)) for _ in range(2))
    p = {"w": array(rng.normal(size=3)), "b": array(rng.normal(size=()))}

    def total(f):
        def g(x):
            q = tree.map(lambda leaf: leaf * x.mean(), p)
            out = f(q, f(q, x)["y"])
            return (out["y"] * out["z"][0]).sum() * out["z"][1]

        return g

    def along(f, order):
        if order == 0:
            return f
        below = along(f, order - 1)
        return lambda x: ml.dot(grad(below)(x), t)

    close(along(total(checkpoint(layered)), order)(x), along(total(layered), order)(x))
    nested = checkpoint(lambda q, y: checkpoint(layered)(q, y))
    close(along(total(nested), order)(x), along(total(layered), order)(x))


def test_checkpoint_keeps_trees_and_values():
    p = {"w": array([1.0, 2.0]), "b": 3.0}
    plain = layered(p | {"b": array(3.0)}, array([1.0, 2.0]))
    saved = checkpoint(layered)(p, array([1.0, 2.0]))
    close(saved, plain)
    assert saved["y"].serial == 0
    found = grad(lambda p: checkpoint(layered)(p, array([1.0, 2.0]))["z"][1])(p)
    close(found, {"w": [1.0, 1.0], "b": 0.0})


def test_checkpoint_refuses_to_lose_a_derivative():
    def f(x):
        return checkpoint(lambda y: x * y)(x)

    close(f(array(2.0)), 4.0)
    with pytest.raises(MissingRuleError, match="checkpoint: the function closes over"):
        grad(f)(2.0)


def peak(f):
    """The most memory that running f holds at once, in bytes."""
    tracemalloc.start()
    try:
        f()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_checkpoint_saves_memory():
    def segment(x):
        for _ in range(10):
            x = ml.sin(x)
        return x

    def chain(f):
        def g(x):
            for _ in range(20):
                x = f(x)
            return x.sum()

        return g

    x = array(np.linspace(0, 1, 10_000))
    plain, saved = (peak(lambda f=f: grad(chain(f))(x)) for f in (segment, checkpoint(segment)))
    assert plain > 200 * x.value.nbytes
    assert saved < plain / 5


# ---- no graph beyond need, no leak


def test_the_outermost_gradient_builds_no_graph():
    leaked = []

    def f(x):
        leaked.append(ml.sin(x))
        return leaked[-1] * x, leaked[-1]

    (value, aux), found = value_and_grad(f, has_aux=True)(2.0)
    for x in (value, aux, found, *leaked):
        assert x.serial == 0 and x.op is None and x.inputs == ()
    close(leaked[0], math.sin(2.0))
    # A leak is a constant to whatever is differentiated next.
    close(grad(lambda x: x * leaked[0])(3.0), math.sin(2.0))
    out, pullback = vjp(ml.sin, 2.0)
    assert out.serial == pullback(1.0)[0].serial == 0
    for transformed in (ml.hessian(lambda x: x**3)(2.0), *ml.jvp(ml.sin, (2.0,), (1.0,))):
        assert transformed.serial == 0


def test_the_tape_is_freed_while_it_is_pulled_back():
    later, alive = [], []

    def rule(ct, out, x):
        alive.append(later[0]() is not None)
        return ct

    probe = watched("probe", rule)

    def f(x):
        h = ml.sin(probe(x))
        later.append(weakref.ref(h))
        return ml.exp(h)

    close(grad(f)(0.5), math.cos(0.5) * math.exp(math.sin(0.5)))
    assert alive == [False]


class NoGarbageCollection:
    """Memory that goes in here went by reference counts alone."""

    def __enter__(self):
        gc.collect()
        gc.disable()

    def __exit__(self, *_):
        gc.enable()


def small_problem():
    network = ml.nn.mlp((1, 8, 8, 1))
    task = Sinusoids().sample(3, num_shots=5, num_queries=5, rng=np.random.default_rng(0))

    def loss(params, batch):
        return ml.losses.mse(network.apply(params, batch.x), batch.y, reduction="mean")

    return loss, network.init(rng=np.random.default_rng(1)), task


def test_intermediates_die_at_once():
    seen = []

    def watch(x):
        seen.append(weakref.ref(x))
        return x

    def f(x):
        inner = grad(lambda y: watch(watch(ml.sin(y)) * watch(x * y)))(x)
        saved = checkpoint(lambda y: watch(ml.exp(y)))(x)
        return watch(inner * watch(saved)) + watch(ml.hvp(lambda y: watch(y**3), x, 1.0))

    with NoGarbageCollection():
        for transformed in (grad(f), grad(grad(f)), ml.jacobian(f), lambda x: vjp(f, x)[1](1.0)):
            transformed(0.5)
        ml.jvp(f, (0.5,), (1.0,))
        assert len(seen) > 40
        assert [ref() for ref in seen if ref() is not None] == []


def test_nothing_is_left_for_the_garbage_collector():
    loss, params, task = small_problem()
    optimizer = ml.optim.adam()
    state = optimizer.init(params)
    with NoGarbageCollection():
        for how in ({}, {"method": "hvp"}, {"first_order": True}):
            how = {"inner_lr": 0.01, "inner_steps": 2, **how}
            ml.maml.meta_step(loss, params, state, task, optimizer=optimizer, **how)
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            left = [x for x in gc.garbage if type(x).__module__.startswith("mamlnp")]
            left += [x for x in gc.garbage if isinstance(x, np.ndarray)]
            assert left == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()


def test_memory_of_a_thousand_meta_steps_is_flat():
    loss, params, task = small_problem()
    optimizer = ml.optim.adam()
    state = optimizer.init(params)
    blocks = []
    with NoGarbageCollection():
        for step in range(1, 1001):
            params, state, _ = ml.maml.meta_step(
                loss, params, state, task, optimizer=optimizer, inner_lr=0.01
            )
            if step in (500, 1000):  # Python's and NumPy's own caches are full before step 500
                blocks.append(sys.getallocatedblocks())
    assert blocks[1] - blocks[0] < 100  # one object left behind a step would be 500


# ---- threads and exceptions


def test_nested_gradients_in_many_threads():
    def work(n):
        def f(x):
            inner = grad(lambda y: ml.sin(x * y) * grad(lambda z: x * y * z**n)(y))(x)
            return inner + ml.hvp(lambda y: y**n, x, 1.0) + checkpoint(ml.exp)(x)

        return [derivative(f, order)(0.3 + n / 10).item() for order in (0, 1, 2)]

    alone = [work(n) for n in range(12)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(work, [n for _ in range(4) for n in range(12)]))
    finally:
        sys.setswitchinterval(interval)
    assert together == alone * 4


def test_a_pullback_in_one_thread_leaves_recording_as_it_is_in_another():
    entered, resume = threading.Event(), threading.Event()

    def rule(ct, out, x):
        entered.set()
        assert resume.wait(30)
        return ct

    slow = watched("slow", rule)
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(grad(lambda x: slow(x) * x), 3.0)
        assert entered.wait(30)
        assert grad(lambda x: x * recording.on)(2.0).item() == 1
        close(derivative(lambda x: x**3, 2)(2.0), 12.0)
        close(ml.jvp(lambda x: x**3, (2.0,), (1.0,))[1], 12.0)
        resume.set()
        close(elsewhere.result(), 6.0)


def test_threads_can_differentiate_inside_one_gradient():
    def f(x):
        with ThreadPoolExecutor(2) as pool:
            parts = pool.map(lambda n: grad(lambda y: x * y**n)(x), (2, 3))
            return sum(parts, start=array(0.0))

    # 2 x^2 + 3 x^3
    close(grad(f)(2.0), 4 * 2.0 + 9 * 4.0)
    close(grad(grad(f))(2.0), 4.0 + 18 * 2.0)


def test_exceptions_leave_recording_as_it_was():
    class BreakdownError(Exception):
        pass

    def failing(ct, out, x):
        raise BreakdownError

    fails_back = watched("fails_back", failing)

    def fails_forward(x):
        raise BreakdownError

    def f(x):
        for bad in (fails_forward, fails_back, lambda y: fails_back(x * y)):
            with pytest.raises(BreakdownError):
                grad(bad)(x)
            assert recording.on
        return x**3

    for bad in (fails_forward, fails_back):
        with pytest.raises(BreakdownError):
            grad(bad)(2.0)
        with pytest.raises(BreakdownError):
            grad(grad(bad))(2.0)
        assert not recording.on  # at the top, where nothing is differentiated
    close(derivative(f, 1)(2.0), 12.0)
    close(derivative(f, 2)(2.0), 12.0)

    def forgiving(ct, out, x):
        with pytest.raises(BreakdownError):
            grad(fails_forward)(1.0)
        assert not recording.on
        return 2 * ct

    assert grad(watched("forgiving", forgiving))(3.0).serial == 0


def test_an_op_without_a_rule_is_named():
    def forward(xp, x):
        return x

    forward.__name__ = "ruleless"
    ruleless = Op(forward, draw=one())
    with pytest.raises(
        MissingRuleError, match=r'ruleless: has no rule for x.*@ruleless.vjp\("x"\)'
    ):
        grad(lambda x: ruleless(x) * 2)(1.0)
    assert isinstance(ruleless(array(1.0)), Array)
