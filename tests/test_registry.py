"""The laws: what holds for every op there is, at inputs that the op itself says how to draw."""

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import HypothesisDraw

import mamlnp as ml
from mamlnp import backend
from mamlnp.array import Array
from mamlnp.draws import Draw, nonzero, one, positive, two
from mamlnp.errors import DtypeError, GradientError, MissingRuleError, ShapeError
from mamlnp.gradcheck import TOLERANCES
from mamlnp.op import Op, registry

EVERY_OP = sorted(registry)
DIFFERENTIABLE = [name for name in EVERY_OP if registry[name].differentiable]
LINEAR = [name for name in EVERY_OP if registry[name].linear_in]


class Case:
    """An op at drawn inputs, as a function of its float arrays alone."""

    def __init__(self, op, draw):
        args, self.params = op.draw(draw)
        if op.bind is not None:
            args, self.params = op.bind(*args, **self.params)
        self.op = op
        self.args = [a.numpy().copy() if isinstance(a, Array) else a for a in args]
        self.places = [i for i, a in enumerate(self.args) if is_float(a)]
        self.floats = [self.args[i] for i in self.places]
        self.draw = draw

    def __call__(self, *floats):
        full = list(self.args)
        for i, x in zip(self.places, floats, strict=True):
            full[i] = x
        return self.op.apply(tuple(full), self.params)

    def with_(self, change):
        """The same op with every array changed, floats and data alike."""
        other = Case.__new__(Case)
        other.__dict__.update(self.__dict__)
        other.args = [change(a) if isinstance(a, np.ndarray) else a for a in self.args]
        other.floats = [other.args[i] for i in self.places]
        return other

    def random_like(self, x):
        return self.draw.rng.standard_normal(x.shape).astype(x.dtype)


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def is_differentiable(case):
    return case.op.differentiable and bool(case.floats)


def size(*arrays):
    """The largest magnitude there is: rounding is relative to what goes in as to what comes out."""
    return max((float(np.abs(a).max()) for a in arrays if is_float(a) and a.size), default=0.0)


def assert_close(a, b, tolerance, scale=0.0):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    if a.dtype.kind != "f":
        np.testing.assert_array_equal(a, b)
    else:
        bound = TOLERANCES[tolerance] * max(scale, size(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def inner(a, b):
    return sum(float(np.vdot(np.asarray(x), np.asarray(y))) for x, y in zip(a, b, strict=True))


def length(a):
    return math.sqrt(inner(a, a))


# ---- the laws, each a function of an op and a Draw


def forward_equals_reference(op, draw):
    case = Case(op, draw)
    out = case(*case.floats)
    with backend.using_kernels("reference"):
        assert_close(out, case(*case.floats), "rounding", size(*case.floats))
    assert_close(out, case(*map(ml.array, case.floats)), "rounding")


def float32_equals_float64(op, draw):
    draw.dtype = np.float32
    case = Case(op, draw)
    out = case(*case.floats)
    exact = case(*(x.astype(np.float64) for x in case.floats))
    assert_close(out.numpy().astype(exact.dtype), exact, "float32", size(*case.floats))


def derivatives_equal_differences(op, draw, order=3):
    case = Case(op, draw)
    ml.check_grads(lambda *xs: case(*xs), case.floats, order=order, rng=draw.rng)


def transpose_is_the_transpose(op, draw):
    case = Case(op, draw)
    names = case.op.arguments * len(case.args) if op.variadic else op.arguments
    linear = [i for i in case.places if names[i] in op.linear_in]
    together = [linear] if op.variadic else [[i] for i in linear]
    for places in together:

        def a(*xs, places=places):
            full = list(case.args)
            for i, x in zip(places, xs, strict=True):
                full[i] = x
            return op.apply(tuple(full), case.params)

        xs = [case.args[i] for i in places]
        moved = a(*xs).numpy() - a(*map(np.zeros_like, xs)).numpy()
        y = case.random_like(moved)
        back = [x.numpy() for x in ml.vjp(a, *xs)[1](y)]
        scale = length([moved]) * length([y]) + length(xs) * length(back)
        assert abs(inner([moved], [y]) - inner(xs, back)) <= TOLERANCES["rounding"] * scale


def hessian_is_symmetric(op, draw):
    case = Case(op, draw)
    if is_differentiable(case):
        weights = case.random_like(case(*case.floats))
        u, v = ([case.random_like(x) for x in case.floats] for _ in range(2))

        def f(xs):
            return (weights * np.sin(case(*xs))).sum()

        hu, hv = ([h.numpy() for h in ml.hvp(f, case.floats, t)] for t in (u, v))
        scale = length(u) * length(hv) + length(v) * length(hu)
        assert abs(inner(u, hv) - inner(v, hu)) <= TOLERANCES["rounding"] * scale


def jvp_agrees_with_vjp(op, draw):
    case = Case(op, draw)
    if is_differentiable(case):
        t = [case.random_like(x) for x in case.floats]
        out, moved = ml.jvp(case, case.floats, t)
        assert_close(out, case(*case.floats), "rounding")
        ct = case.random_like(moved)
        back = [x.numpy() for x in ml.vjp(case, *case.floats)[1](ct)]
        scale = length([ct]) * length([moved]) + length(back) * length(t)
        assert abs(inner([ct], [moved]) - inner(back, t)) <= TOLERANCES["rounding"] * scale


def cotangent_is_like_its_argument(op, draw):
    for draw.dtype in (np.float32, np.float64):
        case = Case(op, draw)
        out = case(*case.floats)
        assert type(out.value) is np.ndarray
        assert not case.floats or out.dtype.kind != "f" or out.dtype == draw.dtype
        if is_differentiable(case):
            assert_cotangents_fit(case, *case.floats)


def assert_cotangents_fit(f, *floats):
    out, pullback = ml.vjp(f, *floats)
    for ct, x in zip(pullback(ml.ones_like(out)), floats, strict=True):
        assert (ct.shape, ct.dtype) == (x.shape, x.dtype)


def other_operands_may_be_integers(op, draw):
    """Integers, and the Python numbers among them, take the type of the floats beside them."""
    draw.dtype = np.float32
    case = Case(op, draw)
    for i in case.places if len(case.places) > 1 and not op.variadic else ():

        def f(x, i=i, number=None):
            whole = [np.sign(a) * np.ceil(np.abs(a)) if is_float(a) else a for a in case.args]
            args = [a.astype(int) if is_float(a) else a for a in whole]
            if number is not None:
                args = [number(a.flat[0]) if is_float(b) else a for a, b in zip(args, whole)]  # noqa: B905
            args[i] = x
            return op.apply(tuple(args), case.params)

        assert f(case.args[i]).dtype == np.float32
        assert_cotangents_fit(f, case.args[i])
        if op.shapes == registry["add"].shapes:
            for number in (int, float):
                assert_cotangents_fit(functools.partial(f, number=number), case.args[i])


def nothing_is_mutated(op, draw):
    case = Case(op, draw)
    before = [a.tobytes() for a in case.args if isinstance(a, np.ndarray)]
    out, pullback = ml.vjp(case, *case.floats)
    value = out.numpy().copy()
    if is_differentiable(case):
        ct = case.random_like(out)
        kept = ct.copy()
        first = [x.numpy().copy() for x in pullback(ct)]
        for again, x in zip(pullback(ct), first, strict=True):
            np.testing.assert_array_equal(again, x)
        np.testing.assert_array_equal(ct, kept)
    np.testing.assert_array_equal(out, value)
    assert before == [a.tobytes() for a in case.args if isinstance(a, np.ndarray)]


def no_memory_is_shared_with_the_user(op, draw):
    case = Case(op, draw)
    arrays = [ml.array(a) for a in case.floats]
    out, pullback = ml.vjp(case, *arrays)
    ct = ml.ones_like(out)
    value, before = out.numpy().copy(), [x.numpy().copy() for x in pullback(ct)]
    for a in case.floats:
        a.fill(np.nan)
    np.testing.assert_array_equal(out, value)
    for x, kept in zip(pullback(ct), before, strict=True):
        np.testing.assert_array_equal(x, kept)
    with pytest.raises(ValueError, match="read-only"):
        out.numpy()[...] = 0


def layout_does_not_matter(op, draw):
    case = Case(op, draw)
    ct = case.random_like(case(*case.floats))

    def everything(case):
        out, pullback = ml.vjp(case, *case.floats)
        return [out, *(pullback(ct) if is_differentiable(case) else ())]

    for change in (transposed_in_memory, spread_in_memory, read_only):
        for got, expected in zip(everything(case.with_(change)), everything(case), strict=True):
            assert_close(got, expected, "rounding", size(*case.floats, ct))


def transposed_in_memory(x):
    return x.T.copy().T


def spread_in_memory(x):
    """The same values with other ones between them, backwards in memory."""
    if not x.ndim:
        return x
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), 77, x.dtype)
    wide[..., ::-2] = x
    return wide[..., ::-2]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def misfits_are_explained(op, draw):
    """Whatever shapes and types come, the op computes or raises one of its declared errors."""
    args, params = op.draw(draw)

    def odd(x):
        if isinstance(x, list):
            return [odd(a) for a in x]
        if not isinstance(x, np.ndarray) or not draw.boolean():
            return x
        shape = tuple(draw.integer(0, 4) for _ in range(draw.integer(0, 4)))
        return np.ones(shape, draw.choice([np.float64, np.float32, np.int64, np.uint8, bool]))

    args = [odd(a) for a in args]
    try:
        out = op(*args, **params)
    except (ShapeError, DtypeError) as error:
        assert str(error).startswith(tuple(f"{name}: " for name in (op.name, *called_by(op))))
        assert any(word in str(error) for word in (*op.arguments, "axis", "shape")), error
        return
    assert all(isinstance(side, int) for side in out.shape)
    floats = [x for x in ml.tree.leaves(args) if is_float(x)]
    if op.differentiable and floats and out.dtype.kind == "f":

        def f(*floats):
            rest = iter(floats)
            return op(*ml.tree.map(lambda x: next(rest) if is_float(x) else x, args), **params)

        assert_cotangents_fit(f, *floats)


def called_by(op):
    """The ops whose errors may come first: those that make another's data."""
    return ("positions",) if op.name == "take" else ()


def float_types_do_not_mix(op, draw):
    case = Case(op, draw)
    for i in case.places if len(case.places) > 1 else ():
        args = [*case.args[:i], case.args[i].astype(np.float32), *case.args[i + 1 :]]
        with pytest.raises(DtypeError, match="mix float types") as caught:
            op.apply(tuple(args), case.params)
        assert str(caught.value).startswith(f"{op.name}: ")
        for k in range(len(args)) if op.variadic else ():
            assert f"{op.arguments[0]}[{k}] float" in str(caught.value)
        for name in () if op.variadic else op.arguments:
            assert f"{name} " in str(caught.value)


def only_real_numbers_are_taken(op, draw):
    case = Case(op, draw)
    for i, j in itertools.product(case.places, (1j, "a")):
        args = list(case.args)
        args[i] = np.full(args[i].shape, j)
        with pytest.raises(DtypeError, match="real numbers"):
            op.apply(tuple(args), case.params)


# ---- every op keeps them, on whichever kernels


def law(names):
    """A test of every one of the ops, given a Draw, on kernels that Hypothesis chooses."""

    def decorate(test):
        @pytest.mark.parametrize("name", names)
        @given(data=st.data())
        def drawn(name, data):
            with backend.using_kernels(data.draw(st.sampled_from(sorted(backend.KERNELS)))):
                test(registry[name], HypothesisDraw(data))

        return drawn

    return decorate


test_1_forward = law(EVERY_OP)(forward_equals_reference)
test_1_forward_in_float32 = law(EVERY_OP)(float32_equals_float64)
test_2_and_3_derivatives = law(DIFFERENTIABLE)(derivatives_equal_differences)
test_4_transpose = law(LINEAR)(transpose_is_the_transpose)
test_5_hessian = law(DIFFERENTIABLE)(hessian_is_symmetric)
test_5_jvp = law(DIFFERENTIABLE)(jvp_agrees_with_vjp)
test_6_cotangents = law(EVERY_OP)(cotangent_is_like_its_argument)
test_6_integers_beside_floats = law(DIFFERENTIABLE)(other_operands_may_be_integers)
test_7_mutation = law(EVERY_OP)(nothing_is_mutated)
test_7_aliasing = law(EVERY_OP)(no_memory_is_shared_with_the_user)
test_8_layout = law(EVERY_OP)(layout_does_not_matter)
test_10_misfits = law(EVERY_OP)(misfits_are_explained)
test_10_mixed_types = law(EVERY_OP)(float_types_do_not_mix)
test_10_foreign_types = law(EVERY_OP)(only_real_numbers_are_taken)
