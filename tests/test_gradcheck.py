"""The checker is checked: wrong rules planted on purpose must fail it, kinks must not."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from strategies import Program

import mamlnp as ml
from mamlnp import array, check_grads, check_hvp, check_meta_gradient, maml
from mamlnp.autodiff import checkpoint, stop_gradient
from mamlnp.draws import Draw, one
from mamlnp.errors import DtypeError, GradientError, MissingRuleError, ShapeError
from mamlnp.gradcheck import TOLERANCES, check_algorithm
from mamlnp.op import Op, registry
from mamlnp.ops.elementwise import cos, greater, less, neg, sin, where
from mamlnp.ops.shape import sum_to, swapaxes
from mamlnp.tasks import Batch, Task

seeds = st.integers(0, 2**32 - 1)


def plant(name, forward, *, pattern=None, **rules):
    """An op that is nowhere registered, with these rules."""
    forward.__name__ = name
    made = Op(forward, draw=one(), pattern=pattern)
    for argument, rule in rules.items():
        made.vjp(argument)(rule)
    return made


def sine(name, rule):
    return plant(name, lambda xp, x: xp.sin(x), x=rule)


def failure(f, args, order):
    with pytest.raises(GradientError) as caught:
        check_grads(f, args, order=order)
    return str(caught.value)


def parsed(message):
    """(argument, order, numeric, exact) of a message, from its first sentence."""
    found = re.search(
        r"argument (.+?), order (\d): finite differences give (\S+), the rules (\S+) \(", message
    )
    argument, order, numeric, exact = found.groups()
    return argument, int(order), float(numeric), float(exact)


POINT = np.array([0.3, -0.8, 1.1])

# Rules of one argument, wrong in one way each.
first_order = {
    "scaled": lambda ct, out, x: ct * cos(x) * 1.001,
    "sign": lambda ct, out, x: neg(ct * cos(x)),
    "constant": lambda ct, out, x: ct * cos(x) + 1e-3,
    "forgotten": lambda ct, out, x: ct * 0.0,
    "another": lambda ct, out, x: ct * cos(out),
    "transposed": lambda ct, out, x: (ct * cos(x))[::-1],
    "one element": lambda ct, out, x: ct * cos(x) * array([1.0, 1.0, 1.01]),
    "nan": lambda ct, out, x: ct * cos(x) / 0.0,
}


@pytest.mark.parametrize("rule", first_order.values(), ids=first_order)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_rule_wrong_at_first_order_is_caught_and_named(rule):
    wrong = sine("planted", rule)
    message = failure(wrong, [POINT], 1)
    assert message.startswith("check_grads: planted: argument x, order 1: finite differences give")
    assert "The op at fault is planted (x float64[3]): argument x, order 1" in message
    assert message.endswith("Correct its rule.")


@given(scale=st.floats(1.001, 100) | st.floats(-100, 0.999), at=st.floats(-1.2, 1.2))
def test_both_numbers_are_printed(scale, at):
    message = failure(sine("scaled", lambda ct, out, x: ct * cos(x) * scale), [at], 1)
    argument, order, numeric, exact = parsed(message)
    assert (argument, order) == ("x", 1)
    assert exact == pytest.approx(numeric * scale, rel=1e-5)


def wrong_at(order):
    """A sine whose rules are right below that order."""
    if order == 1:
        return sine("planted1", lambda ct, out, x: 1.01 * ct * cos(x))
    if order == 2:
        return sine("planted2", lambda ct, out, x: ct * stop_gradient(cos(x)))
    # The rule's rule has the right value but is itself a constant.
    cosine = plant(
        "cosine", lambda xp, x: xp.cos(x), x=lambda ct, out, x: neg(ct * stop_gradient(sin(x)))
    )
    return sine("planted3", lambda ct, out, x: ct * cosine(x))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_rule_is_caught_at_the_order_where_it_is_wrong(order):
    wrong = wrong_at(order)
    if order > 1:
        assert check_grads(wrong, [POINT], order=order - 1).error() < TOLERANCES["difference"]
    message = failure(wrong, [POINT], 3)
    assert parsed(message)[:2] == ("x", order)
    culprit = "cosine" if order == 3 else f"planted{order}"
    assert f"The op at fault is {culprit} (" in message


def test_the_rules_rule_is_named_when_that_is_the_wrong_one():
    cosine = plant("cosine", lambda xp, x: xp.cos(x), x=lambda ct, out, x: ct * sin(x))
    message = failure(sine("innocent", lambda ct, out, x: ct * cosine(x)), [POINT], 2)
    assert parsed(message)[:2] == ("x", 2)
    assert "The op at fault is cosine (x float64[3]): argument x, order 1" in message


def test_a_wrong_cotangent_argument_is_named():
    # Linear in ct at first order, but the pullback forgets that it depends on it.
    wrong = sine("planted", lambda ct, out, x: stop_gradient(ct) * cos(x))
    assert parsed(failure(wrong, [POINT], 2))[:2] == ("the cotangent of order 1", 2)


matmul_rules = {
    "a not transposed": ("a", {"a": lambda ct, out, a, b: ct @ b}),
    "b not transposed": ("b", {"b": lambda ct, out, a, b: a @ ct}),
    "b out of order": ("b", {"b": lambda ct, out, a, b: ct @ swapaxes(a, -1, -2)}),
}


@pytest.mark.parametrize(("argument", "rules"), matmul_rules.values(), ids=matmul_rules)
def test_a_transposed_matrix_product_is_caught(argument, rules):
    rng = np.random.default_rng(0)
    square = [rng.normal(size=(3, 3)), rng.normal(size=(3, 3))]
    correct = {
        "a": lambda ct, out, a, b: ct @ swapaxes(b, -1, -2),
        "b": lambda ct, out, a, b: swapaxes(a, -1, -2) @ ct,
    }
    right = plant("right", lambda xp, a, b: xp.matmul(a, b), **correct)
    wrong = plant("planted", lambda xp, a, b: xp.matmul(a, b), **(correct | rules))
    assert check_grads(right, square, order=3).error() < TOLERANCES["difference"]
    message = failure(wrong, square, 1)
    assert parsed(message)[:2] == (argument, 1)
    assert f"planted (a float64[3,3], b float64[3,3]): argument {argument}, order 1" in message


def sums(fit):
    return plant(
        "planted",
        lambda xp, a, b: xp.add(a, b),
        a=lambda ct, out, a, b: ct,
        b=lambda ct, out, a, b: fit(ct, b.shape),
    )


def test_a_forgotten_sum_over_broadcast_axes_is_caught():
    args = [np.ones((2, 3)), np.ones(3)]
    assert check_grads(sums(sum_to), args, order=2).error() < TOLERANCES["difference"]
    message = failure(sums(lambda ct, shape: ct), args, 1)
    assert "planted: its rule for b float64[3] returned float64[2,3]" in message
    # Inside a function, where another op stumbles over it or nothing does.
    for f in (
        lambda x, b: sums(lambda ct, shape: ct)(x, ml.sin(b)),
        lambda x, b: sums(lambda ct, shape: ct)(x, ml.concatenate([b[:1], b[1:]])),
    ):
        assert "The op at fault is planted (" in failure(f, args, 1)


def test_a_mean_instead_of_a_sum_over_broadcast_axes_is_caught():
    wrong = sums(lambda ct, shape: ct.mean(axis=0))
    assert parsed(failure(wrong, [np.ones((2, 3)), np.ones(3)], 1))[:2] == ("b", 1)


def test_another_float_type_is_caught():
    wrong = sine("planted", lambda ct, out, x: stop_gradient(ct * cos(x)).astype(np.float32))
    assert "float32[3]" in failure(wrong, [POINT], 1)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_culprit_is_named_deep_inside_a_function(order):
    wrong = wrong_at(order)

    def network(params, x):
        h = ml.tanh(x @ params["w"] + params["b"])
        h = h - ml.logsumexp(wrong(h) * 2.0, axis=-1, keepdims=True)
        return ml.mean(h * h)

    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}
    message = failure(network, [params, rng.normal(size=(4, 3))], 3)
    assert message.startswith("check_grads: network: ")
    assert parsed(message)[:2] == ("params['w']", order)
    culprit = "cosine" if order == 3 else f"planted{order}"
    assert f"The op at fault is {culprit} (" in message


every_rule = [(op, i) for op in registry.values() for i in op.rules]


@pytest.mark.parametrize(("op", "i"), every_rule, ids=[f"{o.name}-{i}" for o, i in every_rule])
def test_a_scaled_rule_of_any_op_is_caught(op, i, monkeypatch):
    right = op.rules[i]

    def scaled(*args, **params):
        ct = right(*args, **params)
        return [1.001 * part for part in ct] if op.variadic else 1.001 * ct

    def caught(seed):
        args, params = op.draw(Draw(np.random.default_rng(seed)))
        try:
            check_grads(lambda *arrays: op(*arrays, **params), args, order=1)
        except GradientError as error:
            assert f"The op at fault is {op.name} (" in str(error)
            return True
        return False

    assert not any(caught(seed) for seed in range(5))
    monkeypatch.setitem(op.rules, i, scaled)
    assert any(caught(seed) for seed in range(5))  # some draws have a derivative of zero


def test_a_missing_rule_is_named():
    ruleless = plant("ruleless", lambda xp, a, b: xp.add(a, b), a=lambda ct, out, a, b: ct)
    with pytest.raises(MissingRuleError, match="ruleless: has no rule for b"):
        check_grads(ruleless, [1.0, 2.0])


def test_every_argument_and_order_is_compared():
    def f(p, *, scale=2.0):
        return p["a"] * ml.sin(p["b"][0]) * scale, p["a"] + p["b"][1]

    report = check_grads(f, [{"a": POINT, "b": [POINT, POINT]}], order=2)
    seen = [(c.order, c.argument) for c in report.comparisons]
    names = ["p['a']", "p['b'][0]", "p['b'][1]"]
    cts = [f"cotangent {i} of order 1" for i in (0, 1)]
    assert seen[:3] == [(1, name) for name in names]
    assert seen[3:] == [(2, name) for name in (*names, *cts)]
    assert report.error(1) <= report.error() < TOLERANCES["difference"]
    assert report.kinks == 0


def test_whole_numbers_and_indices_are_held():
    report = check_grads(ml.take, [POINT, np.array([0, 2, 2])], order=2)
    assert {c.argument for c in report.comparisons} == {"x", "the cotangent of order 1"}
    assert check_grads(ml.power, [POINT, 3], order=3).error() < TOLERANCES["difference"]


def test_float32_arguments_are_checked_in_float64():
    assert check_grads(ml.tanh, [POINT.astype(np.float32)], order=3).error() < 1e-6


def test_a_checkpointed_function_is_checked_as_it_is():
    right = checkpoint(lambda x: ml.sin(x) * x)
    assert check_grads(right, [POINT], order=3).error() < TOLERANCES["difference"]
    failure(checkpoint(wrong_at(2)), [POINT], 2)


def test_a_constant_has_derivatives_of_zero():
    assert check_grads(lambda x: array([1.0, 2.0]), [POINT], order=2).error() == 0


def test_the_registry_is_left_alone():
    plant("planted", lambda xp, x: x)
    assert "planted" not in registry


@pytest.mark.parametrize(
    ("f", "at"),
    [
        (lambda x: x**3, np.zeros(2)),
        (lambda x: (x - 0.3) ** 2, np.array([0.3, 0.3])),
        (lambda x: -(ml.softmax(POINT) * ml.log_softmax(x)).sum(), POINT),  # least at POINT
        (lambda x: (ml.log_softmax(x) * np.ones(3)).sum() + 1e4, np.zeros(3)),
        (lambda b: ml.var(b + POINT) ** 2, np.array(0.7)),
    ],
)
def test_a_derivative_that_vanishes_is_no_error(f, at):
    assert check_grads(f, [at], order=3).error() < TOLERANCES["difference"]


def test_a_wrong_rule_is_caught_where_the_right_derivative_vanishes():
    wrong = sine("planted", lambda ct, out, x: ct * cos(x) + 1e-4)
    assert parsed(failure(lambda x: ml.square(x) * 1e-3 + wrong(x) - x, [0.0], 1))[1] == 1


def test_functions_of_numpys_are_checked():
    assert check_grads(np.tanh, [POINT], order=2).error() < TOLERANCES["difference"]
    assert check_grads(np.sum, [POINT, 0], order=2).error() < TOLERANCES["difference"]


# ---- kinks

near_zero = np.random.default_rng(0).uniform(-3e-6, 3e-6, 60)
near_ties = 1 + near_zero.reshape(1, 6, 10, 1)

piecewise = {
    "relu": (ml.relu, near_zero),
    "abs": (ml.abs, near_zero),
    "maximum": (lambda x: ml.maximum(x, x[::-1]), near_zero),
    "clip": (lambda x: ml.clip(x, 0.0, 1.0) ** 2 * 1e6, near_zero),
    "max": (lambda x: ml.max(x**2) * 3.0, 1 + near_zero),
    "max_pool2d": (lambda x: ml.max_pool2d(x) ** 2, near_ties),
    "argmax": (lambda x: ml.take(x**2, ml.argmax(x)) * x[0], 1 + near_zero),
    "where": (lambda x: ml.where(x > 0, x**2 + x, 3 * x), near_zero),
    "mask": (lambda x: (x > 0).astype(float) * (x + x**3), near_zero),
    "boolean index": (lambda x: (x[:2] ** 2).sum() + x[x > 0].sum(), near_zero),
    "sign": (lambda x: x * ml.sign(x) + x**2, near_zero),
    "branch": (lambda x: ml.sin(x) if x > 0 else 2 * x, np.array(1e-7)),
    "relu network": (lambda x: ml.relu(ml.relu(x * 3.0) - ml.relu(x) * 2 + 1e-6).sum(), near_zero),
}


@pytest.mark.parametrize(("f", "at"), piecewise.values(), ids=piecewise)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_kink_nearby_is_reported_and_no_failure(f, at, order):
    report = check_grads(f, [at], order=order)
    assert report.kinks > 0
    assert report.error() < TOLERANCES["difference"]


@pytest.mark.parametrize(
    ("f", "at"),
    [
        (ml.relu, np.zeros(4)),
        (ml.abs, np.array([0.0, 1.0])),
        (ml.max, np.array([2.0, 2.0, 2.0])),
        (lambda x: ml.maximum(x, 1.0), np.array([1.0, 1.0, 3.0])),
        (lambda x: ml.max_pool2d(x), np.ones((1, 4, 4, 1))),
    ],
)
def test_a_point_on_a_kink_is_left_a_little(f, at):
    report = check_grads(f, [at], order=3)
    assert report.kinks > 0
    assert report.error() < TOLERANCES["difference"]


def test_a_point_where_every_direction_kinks_is_told_from_an_error():
    def teeth(x):
        return ml.relu(ml.sin(x * 1e15)).sum()

    message = failure(teeth, [np.linspace(0, 1, 50)], 1)
    assert re.fullmatch(
        "check_grads: teeth: argument x, order 1: all differences cross a kink, where they mean "
        "nothing. Choose another point.",
        message,
    )


def planted_relu(rule):
    return plant("planted", lambda xp, x: xp.maximum(x, 0), pattern=lambda xp, x: x > 0, x=rule)


some_near_zero = np.concatenate([near_zero[:5], [0.0, 0.7, -0.4, 1.5]])

wrong_relus = {
    "scaled": lambda ct, out, x: ct * 1.01 * greater(x, 0),
    "leaks": lambda ct, out, x: where(greater(x, 0), ct, 0.01 * ct),
    "other side": lambda ct, out, x: ct * less(x, 0),
    "passes all": lambda ct, out, x: ct,
    "other threshold": lambda ct, out, x: ct * greater(x, 1.0),
}


@pytest.mark.parametrize("rule", wrong_relus.values(), ids=wrong_relus)
def test_a_kink_excuses_no_wrong_rule(rule):
    right = planted_relu(lambda ct, out, x: ct * greater(x, 0))
    assert check_grads(right, [some_near_zero], order=3).kinks > 0
    message = failure(planted_relu(rule), [some_near_zero], 1)
    assert parsed(message)[:2] == ("x", 1)
    assert "The op at fault is planted" in message


def test_a_kink_excuses_no_wrong_second_order():
    wrong = plant(
        "planted",
        lambda xp, x: xp.where(x > 0, x**3, x),
        pattern=lambda xp, x: x > 0,
        x=lambda ct, out, x: where(greater(x, 0), ct * 3 * stop_gradient(x) ** 2, ct),
    )
    message = failure(wrong, [some_near_zero], 3)
    assert parsed(message)[:2] == ("x", 2)
    assert "The op at fault is planted" in message


def test_the_innocent_relu_is_not_blamed_for_another_op():
    wrong = wrong_at(1)
    message = failure(lambda x: wrong(ml.relu(x)).sum() + ml.abs(x).max(), [some_near_zero], 2)
    assert "The op at fault is planted1 (" in message


@given(seed=seeds)
def test_right_functions_pass_wherever_they_are_checked(seed):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(5, 3)), rng.normal(size=(3, 2)) * 10 ** rng.uniform(-3, 0)

    def f(x, w):
        return ml.log_softmax(ml.relu(x @ w) - ml.tanh(x[:, :1]) ** 2).max(axis=0)

    assert check_grads(f, [x, w], order=2, rng=rng).error() < TOLERANCES["difference"]


# ---- nothing to compare, and what was not


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((np.arange(3),), r"arguments \(x int64\[3\]\). Pass one that is a float"),
        ((np.zeros((0, 3)),), r"arguments \(x float64\[0,3\]\). Pass one .* has elements"),
        (({},), r"arguments \(none\)"),
        ((np.array([True, False]),), r"arguments \(x bool\[2\]\)"),
    ],
)
def test_an_empty_comparison_of_arguments_is_an_error(args, message):
    with pytest.raises(
        (DtypeError, ShapeError), match=f"nothing to differentiate by in .*{message}"
    ):
        check_grads(lambda x: x, args)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x > 0, r"\(result bool\[3\]\)"),
        (ml.argmax, r"\(result int64\[\]\)"),
        (lambda x: x[:0], r"\(result float64\[0\]\)"),
        (lambda x: (), r"\(nothing\)"),
    ],
)
def test_an_empty_comparison_of_results_is_an_error(f, message):
    with pytest.raises((DtypeError, ShapeError), match=f"nothing .* in what it returns {message}"):
        check_grads(f, (POINT,))


@pytest.mark.parametrize("order", [0, -1, 1.5])
def test_an_order_below_one_compares_nothing(order):
    with pytest.raises(ValueError, match=f"check_grads: order is {order}. Pass 1, 2 or 3."):
        check_grads(ml.sin, (POINT,), order)


@pytest.mark.parametrize(
    ("args", "shown"),
    [(POINT, r"float64\[3\]"), (array(POINT), "float64"), ({"x": 1.0}, "one dict")],
)
def test_arguments_that_are_not_in_a_tuple_are_one_clear_line(args, shown):
    with pytest.raises(TypeError, match=f"the arguments are {shown}.*Write check_grads\\(f, \\(x,"):
        check_grads(ml.sin, args)


def test_what_was_not_compared_is_counted_and_said():
    def f(x, index, empty):
        return x[index] ** 2, ml.argmax(x)

    report = check_grads(f, (POINT, np.array([0, 2]), np.zeros(0)), order=1)
    assert report.not_compared == ["index int64[2]", "empty float64[0]", "result[1] int64[]"]
    shown = str(report).splitlines()
    assert shown[0] == "right: 1 derivative compared"
    assert shown[-1].startswith("3 not differentiable, not compared: index int64[2], ")
    assert len(shown) < 6 and "Comparison(" not in repr(report)


def test_check_hvp_and_check_meta_gradient_compare_something():
    with pytest.raises(DtypeError, match=r"check_hvp: x is int64\[3\]. Only floats"):
        check_hvp(lambda x: x.sum(), np.arange(3))
    with pytest.raises(ShapeError, match="check_hvp: x has no elements"):
        check_hvp(lambda x: x.sum(), np.zeros(0))
    loss, _, task = regression(ml.tanh)
    with pytest.raises(ShapeError, match="check_meta_gradient: params has no elements"):
        check_meta_gradient(loss, {}, task, inner_lr=0.1)
    with pytest.raises(DtypeError, match=r"check_meta_gradient: params\['w'\] is int64"):
        check_meta_gradient(loss, {"w": np.arange(2)}, task, inner_lr=0.1)


def test_a_float32_array_of_the_functions_own_is_said_to_stop_the_check():
    own = np.ones(3, np.float32)
    with pytest.raises(DtypeError, match="makes float arguments float64, and they meet a float32"):
        check_grads(lambda x: ml.array(own) * x, (own,))


# ---- five verdicts


def verdict(f, args, order=1):
    with pytest.raises(GradientError) as caught:
        check_grads(f, args, order)
    assert caught.value.report.verdict == caught.value.verdict
    return caught.value.verdict, str(caught.value)


def test_what_is_random_is_found_first_and_no_op_is_accused():
    rng = np.random.default_rng(0)
    wrong = wrong_at(1)
    for f in (
        lambda x: (wrong(x) * rng.normal(size=3)).sum(),
        lambda x: (ml.relu(x) * (rng.random(3) > 0.1)).sum(),
        lambda x: x**2 + 3 * stop_gradient(x) + 1e-3 * rng.normal(size=3),
    ):
        said, message = verdict(f, (POINT,))
        assert said == "not deterministic"
        assert "op at fault" not in message and "Correct its rule" not in message
        assert "a generator made anew" in message
    for check in (check_hvp, lambda f, x: check_meta_gradient(*noisy_task(), inner_lr=0.1)):
        with pytest.raises(GradientError) as caught:
            check(lambda x: (x**2 * rng.normal()).sum(), POINT)
        assert caught.value.verdict == "not deterministic"


def noisy_task():
    rng = np.random.default_rng(0)
    loss, params, task = regression(ml.tanh)
    return (lambda params, batch: loss(params, batch) * rng.normal()), params, task


def test_a_counter_that_seldom_shows_is_found():
    calls = []

    def f(x):
        calls.append(0)
        return x**2 + len(calls) // 5

    assert verdict(f, (POINT,))[0] == "not deterministic"


def test_noise_passes_no_wrong_rule_and_accuses_no_right_one():
    for size in (1e-3, 1e-5):
        for g in (ml.sin, wrong_at(1)):

            def f(x, g=g, size=size):
                return g(x) + stop_gradient(size * ml.sin(1e16 * x))

            said, message = verdict(f, (POINT,))
            assert said == "does not settle"
            assert "op at fault" not in message and "Correct its rule" not in message


def test_a_step_that_is_too_long_accuses_no_right_rule():
    for rate in (1e3, 1e6):
        x = np.random.default_rng(1).normal(size=5)
        assert check_grads(lambda x, rate=rate: np.sin(rate * x), (x,), 1).error() < 1e-6
    assert check_grads(lambda x: ml.exp(30 * x), (POINT,), 3).error() < 1e-6
    assert check_grads(ml.log, (np.full(3, 1e-12),), 3).error() < 1e-6
    assert check_grads(lambda x: x**20, (np.full(3, 1e-8),), 1).error() < 1e-6


def test_a_function_that_hides_a_dependence_accuses_no_op():
    said, message = verdict(lambda x: x**2 + 3 * stop_gradient(x), (POINT,))
    assert said == "wrong"
    assert "No op's rules are at fault by themselves" in message
    assert "Correct its rule" not in message


def planted_functions():
    """benchmarks/planted.py, which is no package, as a module."""
    path = Path(__file__).parents[1] / "benchmarks" / "planted.py"
    spec = importlib.util.spec_from_file_location("planted", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = module
    spec.loader.exec_module(module)
    return module


def test_no_verdict_on_500_planted_functions_is_wrong():
    planted = planted_functions()
    wrong = [
        (n, name, said)
        for n, (name, of) in enumerate(planted.planted())
        if (said := planted.verdict(of)[0]) not in of.verdicts
    ]
    assert not wrong


# ---- check_hvp


def test_check_hvp_passes_a_right_hessian():
    at = {"w": POINT, "b": 0.5}
    report = check_hvp(lambda p: (ml.sin(p["w"]) ** 2 * p["b"] ** 3).sum(), at)
    assert [c.argument for c in report.comparisons] == ["x['w']", "x['b']"]
    assert report.error() < TOLERANCES["difference"]
    assert 0 <= report.notes["asymmetry"] < TOLERANCES["rounding"]
    assert check_hvp(lambda x: x.sum(), POINT).error() == 0


def test_check_hvp_counts_kinks():
    assert check_hvp(lambda x: (ml.relu(x) ** 2).sum(), some_near_zero).kinks > 0


def test_check_hvp_catches_a_wrong_second_order():
    wrong = wrong_at(2)
    with pytest.raises(GradientError, match=r"check_hvp: hvp: argument x, order 2: .*check_grads"):
        check_hvp(lambda x: (wrong(x) * x).sum(), POINT)


def test_check_hvp_catches_an_asymmetric_hessian():
    # Consistent with its own gradient, so differences of that agree; but it is no gradient.
    lopsided = plant(
        "lopsided",
        lambda xp, a, b: xp.multiply(a, b),
        a=lambda ct, out, a, b: ct * b,
        b=lambda ct, out, a, b: 2 * ct * a,
    )
    with pytest.raises(GradientError, match=r"check_hvp: <u, H v> is .* but <v, H u>"):
        check_hvp(lambda x: lopsided(x[0] * 1.0, x[1] * 1.0), np.array([0.5, 2.0]))


def test_check_hvp_catches_a_wrong_product(monkeypatch):
    monkeypatch.setattr("mamlnp.gradcheck.hvp", lambda f, x, v: 2 * ml.hvp(f, x, v))
    with pytest.raises(GradientError, match=r"<u, H v> is .* but <v, H u>"):
        check_hvp(lambda x: (x**4).sum(), POINT)


# ---- check_meta_gradient


def regression(activation, seed=0):
    network = ml.nn.mlp((1, 5, 1), activation=activation, weights=ml.nn.normal(0.8))
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (2, 3, 8, 1))
    task = Task(*(Batch(part, np.sin(part)) for part in x))

    def loss(params, batch):
        return ml.losses.mse(network.apply(params, batch.x), batch.y, reduction="mean")

    return loss, network.init(rng=rng, dtype=np.float64), task


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_check_meta_gradient_passes_maml(inner_steps):
    loss, params, task = regression(ml.tanh)
    report = check_meta_gradient(loss, params, task, inner_lr=0.1, inner_steps=inner_steps)
    assert [c.argument for c in report.comparisons] == [
        f"params['linear{i}']['{leaf}']" for i in (1, 2) for leaf in "wb"
    ]
    assert report.error() < TOLERANCES["difference"]
    assert report.notes["explicit product"] < TOLERANCES["rounding"]
    assert report.notes["first order"] > 1e-3


def test_check_meta_gradient_without_adaptation_has_no_second_order():
    loss, params, task = regression(ml.tanh)
    report = check_meta_gradient(loss, params, task, inner_lr=0.1, inner_steps=0)
    assert report.notes == {"first order": 0.0, "explicit product": 0.0}
    # Nothing to learn from, nothing to divide by.
    report = check_meta_gradient(
        lambda params, batch: 0 * loss(params, batch), params, task, inner_lr=0.1
    )
    assert report.notes == {"first order": 0.0, "explicit product": 0.0}


def test_check_algorithm_covers_learned_rates():
    loss, params, task = regression(ml.tanh)
    rates = {"linear1": {"w": 0.1, "b": array([0.2, 0.1, 0.1, 0.1, 0.3])}, "linear2": 0.05}
    meta = {"params": params, "inner_lr": ml.tree.map(np.asarray, rates)}
    algorithm, products = (
        ml.meta.MetaSGD(loss, inner_lr=0.1, inner_steps=2, method=method)
        for method in ("backprop", "hvp")
    )
    report = check_algorithm(algorithm, meta, task, product=products.gradient)
    names = [c.argument for c in report.comparisons]
    assert names[4:] == [
        "meta['inner_lr']['linear1']['w']",
        "meta['inner_lr']['linear1']['b']",
        "meta['inner_lr']['linear2']",
    ]
    assert report.error() < TOLERANCES["difference"]
    assert report.notes["explicit product"] < TOLERANCES["rounding"]


def test_check_meta_gradient_takes_an_inner_optimizer():
    loss, params, task = regression(ml.tanh)
    report = check_meta_gradient(
        loss, params, task, inner_optimizer=ml.optim.sgd(0.1, momentum=0.9), inner_steps=2
    )
    assert list(report.notes) == ["first order"]


def test_check_meta_gradient_catches_a_wrong_second_order():
    loss, params, task = regression(wrong_at(2))
    with pytest.raises(GradientError, match=r"check_meta_gradient: meta-gradient: argument params"):
        check_meta_gradient(loss, params, task, inner_lr=0.1)
    # The mistake is one of second order: without adaptation there is nothing wrong.
    check_meta_gradient(loss, params, task, inner_lr=0.1, inner_steps=0)


def test_check_meta_gradient_catches_first_order_in_disguise():
    loss, params, task = regression(ml.tanh)
    with pytest.raises(GradientError, match="meta-gradient"):
        check_meta_gradient(loss, params, task, inner_lr=0.1, first_order=True)


def mixing(params, batch):
    """As everybody writes it: the bias (T, 1) meets (T, N, 1) along the examples."""
    return ((batch.x @ params["w"] + params["b"] - batch.y) ** 2).mean((1, 2))


def linear_task(points=5):
    rng = np.random.default_rng(0)
    return {"w": rng.normal(size=(1, 1)), "b": np.zeros(1)}, Task(
        *(Batch(x, np.sin(x)) for x in rng.normal(size=(2, 5, points, 1)))
    )


def test_check_meta_gradient_tells_tasks_broadcast_against_examples():
    params, task = linear_task()
    with pytest.raises(ShapeError) as caught:
        check_meta_gradient(mixing, params, task, inner_lr=0.1)
    assert "among 5 tasks" in str(caught.value) and "ml.vmap(loss)" in str(caught.value)
    assert "It depends on other tasks' params['b'] float64[5,1]." in str(caught.value)


def test_check_meta_gradient_catches_two_ways_that_differ(monkeypatch):
    loss, params, task = regression(ml.tanh)
    monkeypatch.setattr(
        maml, "hvp", lambda f, x, v: ml.tree.map(lambda h: 1.01 * h, ml.hvp(f, x, v))
    )
    with pytest.raises(GradientError, match="backprop and the explicit product differ by"):
        check_meta_gradient(loss, params, task, inner_lr=0.1)


def test_a_function_that_is_not_finite_is_no_wrong_rule():
    for f, x in ((np.log, [1.0, -1.0]), (np.sqrt, [0.0, 1.0]), (np.exp, [1e3])):
        with np.errstate(all="ignore"), pytest.raises(GradientError, match="not finite") as caught:
            check_grads(f, [np.array(x)])
        assert caught.value.verdict == "does not settle"


# ---- random programs


@given(data=st.data())
def test_random_programs_are_right_to_third_order(data):
    program = Program(data, np.float64, most=12)

    def f(*inputs):
        return program(*inputs)

    args = program.arguments(data.draw(seeds, "numbers"), ties=False)
    try:
        check_grads(f, args, 3)
    except GradientError as error:
        if error.verdict != "kink":  # whichever way one looks
            raise
    except ShapeError:  # nothing to compare
        assert not all(y.size for y in ml.tree.leaves([args, f(*args)]))
