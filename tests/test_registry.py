"""The laws: what holds for every op there is, at inputs that the op itself says how to draw."""

import contextlib
import itertools
import math
from unittest import mock

import exact
import mpmath
import numpy as np
import pytest
import standin
from hypothesis import given, settings, strategies as st
from strategies import HypothesisDraw

import mamlnp as ml
from mamlnp import backend
from mamlnp.array import Array, numpy_names
from mamlnp.draws import Draw, Tails, one, two
from mamlnp.errors import DtypeError, GradientError, MissingRuleError, ShapeError
from mamlnp.gradcheck import TOLERANCES
from mamlnp.op import OF_SHAPES, Op, answers, as_array, op as declare, registry
from mamlnp.vmap import RULES

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
        self.draw = draw

    @property
    def floats(self):
        return [placed(self.args[i]) for i in self.places]

    def __call__(self, *floats):
        full = list(map(placed, self.args))
        for i, x in zip(self.places, floats, strict=True):
            full[i] = x
        return self.op.apply(tuple(full), self.params)

    def with_(self, change):
        """The same op with every array changed, floats and data alike."""
        other = Case.__new__(Case)
        other.__dict__.update(self.__dict__)
        other.args = [change(a) if isinstance(a, np.ndarray) else a for a in self.args]
        return other

    def random_like(self, x):
        return placed(self.draw.rng.standard_normal(x.shape).astype(x.dtype))


def placed(x):
    """An array where the law is tried: NumPy's stay what they are."""
    elsewhere = isinstance(x, np.ndarray) and backend.default_device() != "cpu"
    return Array(in_the_same_order(x)) if elsewhere else x


def in_the_same_order(x):
    """On the device, its elements in memory as they were."""
    axes = sorted(range(x.ndim), key=lambda i: -abs(x.strides[i]))
    return backend.to_device(x.transpose(axes).copy()).transpose(np.argsort(axes).tolist())


def held(x):
    """As an array of NumPy's."""
    return x.numpy() if isinstance(x, Array) else np.asarray(x)


def is_float(x):
    return isinstance(x, np.ndarray | Array) and x.dtype.kind == "f"


def is_differentiable(case):
    return case.op.differentiable and bool(case.floats)


def size(*arrays):
    """The largest magnitude there is: rounding is relative to what goes in as to what comes out."""
    floats = (held(a) for a in arrays if is_float(a) and a.size)
    return max((float(np.abs(a).max()) for a in floats), default=0.0)


def assert_close(a, b, tolerance, scale=0.0):
    a, b = held(a), held(b)
    assert a.shape == b.shape
    if a.dtype.kind != "f":
        np.testing.assert_array_equal(a, b)
    else:
        bound = TOLERANCES[tolerance] * max(scale, size(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def inner(a, b):
    return sum(float(np.vdot(held(x), held(y))) for x, y in zip(a, b, strict=True))


def length(a):
    return math.sqrt(inner(a, a))


# ---- the laws, each a function of an op and a Draw


def forward_equals_reference(op, draw):
    case = Case(op, draw)
    out = case(*case.floats)
    with backend.using_device("cpu"), backend.using_kernels("reference"):
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
            full = list(map(placed, case.args))
            for i, x in zip(places, xs, strict=True):
                full[i] = x
            return op.apply(tuple(full), case.params)

        xs = [placed(case.args[i]) for i in places]
        moved = a(*xs).numpy() - a(*map(ml.zeros_like, xs)).numpy()
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
        assert out.device == backend.default_device()
        assert not case.floats or out.dtype.kind != "f" or out.dtype == draw.dtype
        if is_differentiable(case):
            assert_cotangents_fit(case, *case.floats)


def assert_cotangents_fit(f, *floats):
    out, pullback = ml.vjp(f, *floats)
    for ct, x in zip(pullback(ml.ones_like(out)), floats, strict=True):
        assert (ct.shape, ct.dtype) == (x.shape, x.dtype)


def other_operands_may_be_integers(op, draw):
    """Integers, and Python's numbers where one will do, take the type of the floats beside them."""
    draw.dtype = np.float32
    case = Case(op, draw)
    numbers = [a_whole_number, a_number] if op.shapes == registry["add"].shapes else []
    for i in case.places if len(case.places) > 1 and not op.variadic else ():
        for kind in (whole, *numbers):

            def f(x, i=i, kind=kind):
                args = [placed(kind(a) if is_float(a) else a) for a in case.args]
                args[i] = x
                return op.apply(tuple(args), case.params)

            assert f(placed(case.args[i])).dtype == np.float32
            assert_cotangents_fit(f, placed(case.args[i]))


def whole(x):
    """Integers, away from zero."""
    return (np.sign(x) * np.ceil(np.abs(x))).astype(int)


def a_whole_number(x):
    return whole(x).flat[0].item()


def a_number(x):
    return x.flat[0].item()


def without_copies():
    """Ops get the very arrays that users pass, so that what they do to them is seen."""
    return mock.patch.object(backend, "plain", lambda x, copy: x)


@without_copies()
def nothing_is_mutated(op, draw):
    case = Case(op, draw)
    before = [a.tobytes() for a in case.args if isinstance(a, np.ndarray)]
    out, pullback = ml.vjp(case, *case.floats)
    value = out.numpy().copy()
    if is_differentiable(case):
        ct = case.random_like(out)
        kept = held(ct).copy()
        first = [x.numpy().copy() for x in pullback(ct)]
        for again, x in zip(pullback(ct), first, strict=True):
            assert_the_same(again, x)
        assert_the_same(ct, kept)
    assert_the_same(out, value)
    assert before == [a.tobytes() for a in case.args if isinstance(a, np.ndarray)]


def assert_the_same(a, b):
    """Bit for bit; where threads add repeats up in any order, to rounding."""
    if backend.default_device() == "cpu":
        np.testing.assert_array_equal(held(a), b)
    else:
        assert_close(a, b, "rounding")


def no_memory_is_shared_with_the_user(op, draw):
    case = Case(op, draw)
    out, pullback = ml.vjp(case, *case.floats)
    ct = ml.ones_like(out)
    value, before = out.numpy().copy(), [x.numpy().copy() for x in pullback(ct)]
    for i in case.places:
        case.args[i].fill(np.nan)
    assert_the_same(out, value)
    for x, kept in zip(pullback(ct), before, strict=True):
        assert_the_same(x, kept)
    with pytest.raises(ValueError, match="read-only"):
        out.numpy()[...] = 0


@without_copies()
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


class Derivatives:
    """An op's value, gradient and second derivative, as a function of all its arrays."""

    def __init__(self, op, draw):
        self.case = case = Case(op, draw)
        self.places = [i for i, a in enumerate(case.args) if isinstance(a, np.ndarray)]
        self.arrays = [case.args[i] for i in self.places]
        out = case(*case.floats)
        self.weights = [case.random_like(out), [case.random_like(x) for x in case.floats]]

    def __call__(self, arrays, weights):
        case = self.case
        args = list(case.args)
        for i, x in zip(self.places, arrays, strict=True):
            args[i] = x
        floats = [args[i] for i in case.places]

        def of_floats(floats):
            full = list(args)
            for i, x in zip(case.places, floats, strict=True):
                full[i] = x
            return case.op.apply(tuple(full), case.params)

        if not is_differentiable(case):
            return of_floats(floats)
        first = ml.grad(lambda xs: (of_floats(xs) * weights[0]).sum())
        second = ml.grad(lambda xs: ml.dot(first(xs), weights[1]))
        return of_floats(floats), first(floats), second(floats)

    def shuffled(self):
        return [shuffle(self.case.draw, x, self.case.op) for x in self.arrays]

    def agree(self, got, expected):
        for a, b in zip(ml.tree.leaves(got), ml.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            tolerance = "float32" if a.dtype == np.float32 else "rounding"
            assert_close(a, b, tolerance, size(*self.case.floats, b.numpy()))


def compiled_replay_equals_eager(op, draw):
    """On other data than it was traced with, too."""
    for draw.dtype in (np.float32, np.float64):
        f = Derivatives(op, draw)
        compiled = ml.compile(f)
        for arrays in (f.arrays, f.shuffled()):
            arrays = list(map(placed, arrays))
            f.agree(compiled(arrays, f.weights), f(arrays, f.weights))


def mapped_equals_one_by_one(op, draw):
    """Some arrays mapped, the others shared; derivatives taken inside vmap, and through it."""
    f = Derivatives(op, draw)
    if not f.arrays:
        return
    mapped = [draw.boolean() for _ in f.arrays]
    mapped[draw.integer(0, len(mapped) - 1)] = True
    axes = [0 if m else None for m in mapped]
    examples = [
        [new if m else old for m, new, old in zip(mapped, f.shuffled(), f.arrays, strict=True)]
        for _ in range(3)
    ]
    together = [
        placed(np.stack(each) if m else each[0])
        for m, each in zip(mapped, zip(*examples, strict=True), strict=True)
    ]
    examples = [list(map(placed, arrays)) for arrays in examples]
    one_by_one = [f(arrays, f.weights) for arrays in examples]
    inside = ml.vmap(f, in_axes=(axes, None))(together, f.weights)
    f.agree(inside, ml.tree.map(lambda *each: ml.stack(each), *one_by_one))
    if not is_differentiable(f.case):
        return
    is_active = [i in f.case.places for i in f.places]
    floats = [x for x, active in zip(together, is_active, strict=True) if active]
    directions = [f.case.random_like(x) for x in floats]

    def derivatives(values):
        """The gradient of all values' weighted sum, and its derivative along the directions."""

        def objective(floats):
            rest = iter(floats)
            full = [
                next(rest) if active else x for x, active in zip(together, is_active, strict=True)
            ]
            return (values(full) * f.weights[0]).sum()

        first = ml.grad(objective)
        return first(floats), ml.grad(lambda x: ml.dot(first(x), directions))(floats)

    def value(arrays):
        args = [placed(a) for a in f.case.args]
        for i, x in zip(f.places, arrays, strict=True):
            args[i] = x
        return f.case.op.apply(tuple(args), f.case.params)

    def loop(arrays):
        return ml.stack(
            [
                value([as_array(x)[i] if m else x for x, m in zip(arrays, mapped, strict=True)])
                for i in range(3)
            ]
        )

    f.agree(derivatives(ml.vmap(value, in_axes=(axes,))), derivatives(loop))


def shuffle(draw, x, op):
    """The same elements elsewhere: other data that the op can take as well."""
    if op.shapes.startswith("(..., n, n)") and x.ndim > 1 and x.shape[-1] == x.shape[-2]:
        order = draw.rng.permutation(x.shape[-1])  # as definite as it was
        return x[..., order, :][..., order]
    return draw.rng.permutation(x.reshape(-1)).reshape(x.shape)


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
    args = ml.tree.map(placed, args)
    public = getattr(ml, op.name, op)

    def f(*floats):
        rest = iter(floats)
        return public(*ml.tree.map(lambda x: next(rest) if is_float(x) else x, args), **params)

    floats = [x for x in ml.tree.leaves(args) if is_float(x)]
    try:
        if f(*floats).dtype.kind == "f":
            assert_cotangents_fit(f, *floats)
    except (ShapeError, DtypeError) as error:
        assert str(error).startswith(tuple(f"{name}: " for name in (op.name, *called_by(op))))
        assert any(word in str(error) for word in (*op.arguments, "axis", "shape", "argument"))


def called_by(op):
    """What may complain before the op itself does."""
    return {"take": ["positions"], "custom": ["vjp", "mul"]}.get(op.name, [])


def float_types_do_not_mix(op, draw):
    case = Case(op, draw)
    for i in case.places if len(case.places) > 1 else ():
        args = [*case.args[:i], case.args[i].astype(np.float32), *case.args[i + 1 :]]
        args = list(map(placed, args))
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

EXAMPLES = settings.default.max_examples // 3  # of each of the many laws


WHERE = [*backend.KERNELS, *(["cuda"] if standin.COMPILER or standin.has_device() else [])]


@contextlib.contextmanager
def computing(where):
    """With the kernels of a name, or on a device: a real one if there is one."""
    if where in backend.KERNELS:
        with backend.using_kernels(where):
            yield
    else:
        with standin.device():
            yield


def law(names):
    """A test of every one of the ops, given a Draw, where Hypothesis chooses."""

    def decorate(test):
        @pytest.mark.parametrize("name", names)
        @settings(max_examples=EXAMPLES)
        @given(data=st.data())
        def drawn(name, data):
            with computing(data.draw(st.sampled_from(WHERE))):
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", EVERY_OP)
def test_9_compiled(name, seed):
    compiled_replay_equals_eager(registry[name], Draw(np.random.default_rng(seed)))


@pytest.mark.skipif("cuda" not in WHERE, reason="there is no CUDA device, and no g++ to do as one")
def test_9_compiled_for_a_device():
    """All ops in one plan, whose kernels take long to compile one by one."""
    every = [
        Derivatives(registry[name], Draw(np.random.default_rng(seed), dtype))
        for name in EVERY_OP
        for seed in range(2)
        for dtype in (np.float32, np.float64)
    ]
    inputs = [
        [[f.arrays, f.weights] for f in every],
        [[f.shuffled(), f.weights] for f in every],
    ]
    expected = [[f(*x) for f, x in zip(every, given, strict=True)] for given in inputs]
    with computing("cuda"):
        compiled = ml.compile(lambda given: [f(*x) for f, x in zip(every, given, strict=True)])
        for given, results in zip(inputs, expected, strict=True):
            got = compiled(ml.tree.map(placed, given))
            for f, a, b in zip(every, got, results, strict=True):
                f.agree(ml.tree.map(lambda x: ml.array(x.numpy(), device="cpu"), a), b)


test_11_mapped = law(EVERY_OP)(mapped_equals_one_by_one)


def test_vmap_has_a_rule_for_every_op():
    """Without one it would loop over the examples."""
    assert set(RULES) == set(EVERY_OP) - {"custom"}  # whose function may be anybody's


test_10_misfits = law(EVERY_OP)(misfits_are_explained)
test_10_mixed_types = law(EVERY_OP)(float_types_do_not_mix)
test_10_foreign_types = law(EVERY_OP)(only_real_numbers_are_taken)


# ---- the law of tails: derivatives are right far out, against many more digits

ROUNDINGS = 24  # so many units in the last place a derivative may be off


def is_linear_in_each(op):
    return all(a in op.linear_in for i, a in enumerate(op.arguments) if i not in op.data)


def far_out(f, tails, names, points, alike=False):
    """A function's derivatives of orders 0 to 3 at points, eager and compiled: how many there are,
    and those that are wrong. Where arguments are alike, a step is a tenth of the largest."""
    true, loss = (exact.function(text, names) for text in (tails.exact, tails.loss))
    orders = exact.partials(len(points))
    info = np.finfo(points[0].dtype)

    def all_of(*xs):
        return [mixed(f, order)(*xs) for order in orders]

    with np.errstate(all="ignore"):
        found = [ways(*points) for ways in (all_of, ml.compile(all_of))]
    wrong = []
    for i, point in enumerate(zip(*points, strict=True)):
        with mpmath.workdps(exact.digits(point)):
            for k, order in enumerate(orders):
                at = [mpmath.mpf(float(x)) for x in point]
                right = exact.partial(true, at, order)
                tolerance = ROUNDINGS * info.eps * loss(*at)

                def scale(at=at, order=order):
                    step = (max(map(abs, at)) or 1) / 10 if alike else 0
                    return exact.around(true, at, order, step) if sum(order) > 1 else 0

                for how, values in zip(("eager", "compiled"), found, strict=True):
                    got = held(values[k])[i]
                    if not exact.is_right(got, right, scale, tolerance, info.tiny, info.max):
                        wrong.append((how, order, point, float(got), mpmath.nstr(right, 17)))
    return 2 * len(orders) * len(points[0]), wrong


def mixed(f, order):
    """f's partial derivative, elementwise."""
    for i, n in enumerate(order):
        for _ in range(n):
            f = ml.grad(lambda *xs, f=f: f(*xs).sum(), i)
    return f


TAILED = [name for name in DIFFERENTIABLE if not isinstance(registry[name].tails, str)]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_every_op_says_how_it_is_held_far_out(name):
    op = registry[name]
    assert op.tails or op.pattern is not None or is_linear_in_each(op)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", TAILED)
def test_11_tails(name, dtype):
    op, rng = registry[name], np.random.default_rng(0)
    points = [exact.far_points(domain, dtype, rng) for domain in op.tails.domains]
    if len(op.arguments) > 1:
        points = [
            rng.choice(points[min(i, len(points) - 1)], 120) for i in range(len(op.arguments))
        ]
    count, wrong = far_out(op, op.tails, op.arguments, points)
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:20]}"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [0, 1, 2, 3, -1, -2, 10, 0.5, -0.5, 1.7])
def test_11_tails_of_powers_to_a_number(n, dtype):
    tails = registry["power"].tails
    points = [exact.far_points(tails.domains[0], dtype, np.random.default_rng(0))]
    to_a_number = Tails(f"a ** mpf({n})", tails.domains, tails.loss)
    count, wrong = far_out(lambda a: a**n, to_a_number, ("a",), points)
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:20]}"


def of_three(f, i=None):
    """A function of arrays' last axis as one of three arrays; of its i-th result, if it has any."""

    def of_them(*arrays):
        out = f(ml.stack(arrays, -1))
        return out if i is None else out[..., i]

    return of_them


SUM = "(exp(a) + exp(b) + exp(c))"
MADE_OF_OPS = {
    "logsumexp": (of_three(lambda x: ml.logsumexp(x, -1)), f"log{SUM}"),
    "softmax": (of_three(ml.softmax, 0), f"exp(a) / {SUM}"),
    "softmax, another axis": (of_three(lambda x: ml.softmax(x.T, 0).T, 1), f"exp(b) / {SUM}"),
    "log_softmax": (of_three(ml.log_softmax, 1), f"b - log{SUM}"),
    "norm": (of_three(lambda x: ml.norm(x, axis=-1)), "sqrt(a ** 2 + b ** 2 + c ** 2)"),
}
LOGITS = [
    (0, 0, 0), (7, 7, 7), (40, 0, -3), (0, 40, 39), (5, 5, -60), (300, -300, 1), (-700, 0, -690),
    (1000, 1000, 999), (1e5, 0, 99980), (17, 0, 17), (0, -30, -80),
]  # fmt: skip
VECTORS = [
    (3, 4, 12), (3e200, 4e200, 1e190), (3e20, -4e20, 1e18), (3e-200, 4e-200, -4e-200),
    (1, 1e-30, -1e20), (1e-17, 2e-17, 1e-25), (-5, 1e-3, 2), (-1e150, 1e160, 3),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", MADE_OF_OPS)
def test_11_tails_of_what_is_made_of_ops(name, dtype):
    f, text = MADE_OF_OPS[name]
    points, info = np.array(VECTORS if name == "norm" else LOGITS), np.finfo(dtype)
    sizes = np.where(points, abs(points), 1)
    points = points[((sizes > info.tiny) & (sizes < info.max)).all(1)].astype(dtype)
    count, wrong = far_out(f, Tails(text), ("a", "b", "c"), list(points.T), alike=True)
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:20]}"


# ---- and each can fail: wrong ops, registered nowhere, each of which breaks one law


def sine(xp, x):
    """The sine."""
    return xp.sin(x)


def product(xp, a, b):
    """a times b."""
    return xp.multiply(a, b)


def declared(forward, *rules, draw=None, **declaration):
    made = Op(forward, draw=draw or one(), **declaration)
    for name, rule in zip(made.arguments, rules, strict=False):
        made.vjp(name)(rule)
    return made


def right_at_first_order(ct, out, x):
    return ct * ml.stop_gradient(ml.cos(x))


def right_at_second_order(ct, out, x):
    minus_sine = declared(lambda xp, x: -xp.sin(x), lambda ct, out, x: 0.0 * ct)
    cosine = declared(lambda xp, x: xp.cos(x), lambda ct, out, x: ct * minus_sine(x))
    return ct * cosine(x)


def depends_on_the_kernels(xp, x):
    return x + (backend.kernels_of(x) is backend.KERNELS["cpu"])


def coarse(xp, x):
    return xp.sin(x.astype(xp.float16)).astype(x.dtype) if x.dtype == xp.float32 else xp.sin(x)


def doubled_in_place(xp, x):
    x *= 2
    return x


def spoils_the_cotangent(ct, out, x):
    ct.value[...] = 0
    return ct * x


def depends_on_layout(xp, x):
    return x + (not x.flags.c_contiguous)


def gives_up(xp, x):
    return {0: x, 1: x}[x.ndim]


def two_vectors(d):
    return (d.array((3,)), d.array((3,))), {}


unsummed = declared(product, lambda ct, out, a, b: ct * b, lambda ct, out, a, b: ct * a, draw=two())
BREAKERS = {
    "forward by kernels": (forward_equals_reference, declared(depends_on_the_kernels)),
    "coarse float32": (float32_equals_float64, declared(coarse)),
    "scaled": (
        derivatives_equal_differences,
        declared(sine, lambda ct, out, x: ct * ml.cos(x) * 1.001),
    ),
    "second order": (derivatives_equal_differences, declared(sine, right_at_first_order)),
    "third order": (derivatives_equal_differences, declared(sine, right_at_second_order)),
    "not summed": (derivatives_equal_differences, unsummed),
    "not linear": (
        transpose_is_the_transpose,
        declared(sine, lambda ct, out, x: ct * ml.cos(x), linear_in=("x",)),
    ),
    "not the transpose": (
        transpose_is_the_transpose,
        declared(
            lambda xp, x: xp.roll(x, 1),
            lambda ct, out, x: ml.array(np.roll(ct.value, 1)),
            draw=lambda d: ((d.array((3,)),), {}),
            linear_in=("x",),
        ),
    ),
    "asymmetric": (
        hessian_is_symmetric,
        declared(
            product,
            lambda ct, out, a, b: ct * ml.stop_gradient(b),
            lambda ct, out, a, b: ct * a,
            draw=two_vectors,
        ),
    ),
    "not linear in ct": (jvp_agrees_with_vjp, declared(sine, lambda ct, out, x: ct * ct)),
    "shape": (cotangent_is_like_its_argument, unsummed),
    "dtype": (
        cotangent_is_like_its_argument,
        declared(sine, lambda ct, out, x: ct.astype(np.float64)),
    ),
    "float64": (cotangent_is_like_its_argument, declared(lambda xp, x: xp.sin(x).astype(float))),
    "integers": (
        other_operands_may_be_integers,
        declared(
            product,
            lambda ct, out, a, b: ct * (b * 1.0),
            lambda ct, out, a, b: ct * (a * 1.0),
            draw=two_vectors,
        ),
    ),
    "input overwritten": (nothing_is_mutated, declared(doubled_in_place, differentiable=False)),
    "cotangent overwritten": (nothing_is_mutated, declared(sine, spoils_the_cotangent)),
    "layout": (
        layout_does_not_matter,
        declared(depends_on_layout, draw=one(min_ndim=2), differentiable=False),
    ),
    "unexplained": (misfits_are_explained, declared(gives_up)),
    "mixed types": (float_types_do_not_mix, declared(product, draw=two(), data=("b",))),
}
BROKEN = (AssertionError, DtypeError, KeyError, ShapeError, pytest.fail.Exception)


@pytest.mark.parametrize("case", BREAKERS)
def test_a_law_fails_where_it_is_broken(case):
    law, wrong = BREAKERS[case]
    with pytest.raises(BROKEN):
        for seed in range(50):
            law(wrong, Draw(np.random.default_rng(seed)))


def test_the_law_of_aliasing_fails_where_memory_is_shared():
    with without_copies(), pytest.raises(AssertionError):
        no_memory_is_shared_with_the_user(registry["sin"], Draw(np.random.default_rng(0)))


# ---- declarations


def test_every_op_is_declared_in_full():
    for name, op in registry.items():
        op.check()
        assert op.name == name
        assert op.draw is not None


def test_an_op_without_a_docstring_is_refused():
    with pytest.raises(MissingRuleError, match=r"depends_on_layout: has no docstring"):
        declared(depends_on_layout, lambda ct, out, x: ct).check()


def test_an_op_without_a_rule_is_refused_and_the_argument_named():
    with pytest.raises(MissingRuleError, match=r'product: has no rule for b.*@product\.vjp\("b"\)'):
        declared(product, lambda ct, out, a, b: ct * b).check()
    declared(product, lambda ct, out, a, b: ct * b, data=("b",)).check()
    declared(product, differentiable=False).check()


def test_an_op_without_a_draw_is_refused():
    with pytest.raises(TypeError, match="draw"):
        Op(sine)


def test_a_rule_is_for_an_argument_there_is():
    with pytest.raises(ValueError, match="not in tuple"):
        declared(sine).vjp("y")(right_at_first_order)


PLANTED = {
    "nothing": (lambda ct, out, x: None, DtypeError, "NoneType"),
    "a NumPy array": (lambda ct, out, x: np.ones(x.shape), DtypeError, "ndarray"),
    "what is in an Array": (
        lambda ct, out, x: (ct * ml.cos(x)).value,
        DtypeError,
        "(ndarray|Node)",
    ),
    "a number": (lambda ct, out, x: 2.0, DtypeError, "float 2.0"),
    "a tuple": (lambda ct, out, x: (ct * ml.cos(x),), DtypeError, "tuple"),
    "a sum": (lambda ct, out, x: (ct * x).sum(), ShapeError, r"float64\[\]"),
    "an axis too many": (lambda ct, out, x: ml.stack([ct, ct]), ShapeError, r"float64\[2,2,3\]"),
    "another type": (lambda ct, out, x: (ct * x).astype(np.float32), DtypeError, "float32"),
    "a comparison": (lambda ct, out, x: x > 0, DtypeError, r"bool\[2,3\]"),
}


@pytest.mark.parametrize("way", [lambda f: f, ml.compile], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", PLANTED)
def test_what_a_rule_returns_is_an_array_like_its_argument(name, way):
    rule, error, word = PLANTED[name]
    wrong = declared(sine, rule)
    with pytest.raises(error, match=rf"^sine: its rule for x float64\[2,3\] returned {word}"):
        way(ml.grad(lambda x: wrong(x * 1.0).sum()))(np.ones((2, 3)))
    with pytest.raises(error, match=r"^(sine: its rule for x|astype: float64 to float32) "):
        ml.hvp(lambda x: wrong(x * 1.0).sum(), np.ones((2, 3)), np.ones((2, 3)))


@pytest.mark.parametrize("rule", [lambda ct, out, *xs: (ct,), lambda ct, out, *xs: ct])
def test_a_rule_for_any_number_of_arguments_returns_one_for_each(rule):
    joined = declared(lambda xp, *xs: xp.add(*xs), draw=two())
    joined.vjp("xs")(rule)
    with pytest.raises(DtypeError, match=r"its rule for xs .* Return one for each input"):
        ml.grad(lambda x: joined(x, x * 2.0).sum())(np.ones(3))


CONSTANTS = {
    "of the result's value": lambda ct, out, x: ct * ml.array(np.cos(held(ml.stop_gradient(x)))),
    "of the same size but transposed": lambda ct, out, x: ml.reshape(ct * ml.cos(x), (3, 2)),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_what_a_rule_s_result_cannot_tell_the_check_tells(name):
    """An Array of the right size that is a constant, or has its axes in another order."""
    wrong = declared(sine, CONSTANTS[name])
    with pytest.raises((GradientError, ShapeError)):
        ml.check_grads(lambda x: wrong(x), [np.ones((2, 3))], order=2)


def test_a_name_that_is_taken_is_refused_and_both_places_named():
    def tanh(xp, x):
        """Something else."""

    here, there = r"test_registry\.py:\d+", r"elementwise\.py:\d+"
    known = registry["tanh"], np.tanh(ml.array(1.0))
    with pytest.raises(ValueError, match=rf"{here} declares op tanh, and so does .*{there}"):
        declare(draw=one())(tanh)
    tanh.__name__ = "another_tanh"
    with pytest.raises(ValueError, match=rf"{here} declares numpy\.exp, and .*{there}"):
        declare(draw=one(), numpy=("exp",))(tanh)
    with pytest.raises(ValueError, match=rf"{here} declares Array\.__add__, and .*{there}"):
        declare(draw=two(), operator="add")(tanh)
    with pytest.raises(ValueError, match=r"declares Array\.sum, and so does .*\.py:\d+"):
        declare(draw=one(), method="sum")(tanh)
    with pytest.raises(ValueError, match=r"declares Array\.numpy, and .*array\.py"):
        answers(method="numpy")(tanh)
    assert (registry["tanh"], np.tanh(ml.array(1.0))) == known
    assert "another_tanh" not in registry
    numpy_names.pop("another_tanh", None)


def test_a_module_loaded_again_declares_its_ops_again(monkeypatch):
    def planted_again(xp, x):
        """x."""
        return x

    for _ in range(2):
        made = declare(draw=one(), method="planted_again")(planted_again)
    assert registry.pop("planted_again") is made

    def elsewhere(xp, x):
        """x."""

    elsewhere.__name__ = "planted_again"
    registry["planted_again"] = made
    with pytest.raises(ValueError, match="declares op planted_again"):
        declare(draw=one())(elsewhere)
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)  # typed by hand
    declare(draw=one())(elsewhere)
    for names in (registry, numpy_names):
        del names["planted_again"]
    del ml.array(1.0).__class__.planted_again


@pytest.mark.parametrize("name", sorted(set(EVERY_OP) - set(DIFFERENTIABLE)))
def test_what_is_not_differentiable_gives_constants(name):
    case = Case(registry[name], Draw(np.random.default_rng(0)))
    tracked = []

    def f(*floats):
        out = case(*floats)
        tracked.append(out.serial)
        return out.astype(float).sum()

    gradient = ml.grad(f, tuple(range(len(case.floats))))
    says = case.floats and name not in OF_SHAPES
    with pytest.warns(UserWarning, match=name) if says else contextlib.nullcontext():
        cts = gradient(*case.floats)
    for ct in cts:
        np.testing.assert_array_equal(ct, np.zeros(ct.shape))
    assert tracked == [0]
