"""vmap: a function written for one example gives, for all at once, what a loop would."""

import numpy as np
import pytest

import mamlnp as ml
from mamlnp import maml, nn
from mamlnp.errors import CaptureError, ShapeError
from mamlnp.gradcheck import distance
from mamlnp.tasks import Batch, Task

ROUNDING = 1e-12


def rng(seed=0):
    return np.random.default_rng(seed)


def network_and_task(name):
    """A network, and a meta-batch of three small tasks for it, in float64."""
    if name == "mlp":
        network = nn.mlp((2, 5, 4), weights=nn.fan_in)
        shape = (2,)
    elif name == "mlp with batch norm":
        network = nn.mlp((2, 5, 4), weights=nn.fan_in, norm=True, gamma=True)
        shape = (2,)
    else:
        pool = name == "conv4 with pooling"
        network = nn.conv4(4, channels=2, filters=3, image_size=16, pool=pool, gamma=True)
        shape = (16, 16, 2)

    def batch(seed):
        x = rng(seed).normal(size=(3, 4, *shape))
        return Batch(ml.array(x), ml.array(rng(seed).integers(0, 4, (3, 4))))

    return network, Task(batch(1), batch(2))


NETWORKS = ("mlp", "mlp with batch norm", "conv4", "conv4 with pooling")
WAYS = (
    {"method": "backprop"},
    {"method": "hvp"},
    {"first_order": True},
)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_loss_for_one_task_has_the_meta_gradient_of_a_loss_with_the_task_axis(name, how):
    network, task = network_and_task(name)
    params = network.init(rng=rng(), dtype=np.float64)

    def loss(params, batch):
        return ml.losses.cross_entropy(network.apply(params, batch.x), batch.y, reduction="mean")

    how = {"inner_lr": 0.1, "inner_steps": 2, **how}
    losses, gradient = maml.meta_gradient(loss, params, task, **how)
    mapped = lambda params, task: maml.meta_gradient(ml.vmap(loss), params, task, **how)  # noqa: E731
    for meta_gradient in (mapped, ml.compile(mapped)) if "method" in how else (mapped,):
        got = meta_gradient(params, task)
        assert distance(got[0], losses) < ROUNDING
        assert distance(got[1], gradient) < 1e-10


@pytest.mark.parametrize("statistics", ["batch", "image", 2])
def test_batch_norm_takes_each_tasks_own_statistics(statistics):
    x = rng().normal(size=(3, 4, 5, 5, 2))
    params = {"beta": ml.array(rng(1).normal(size=(3, 2)))}
    normal = lambda p, x: nn.batch_norm(p, x, statistics=statistics)  # noqa: E731
    assert distance(ml.vmap(normal)(params, x), normal(params, x)) < ROUNDING


def test_the_way_everybody_writes_a_layer_is_right_when_tasks_and_points_are_equally_many():
    x, y = rng().normal(size=(2, 5, 5, 2))
    params = {"w": ml.array(rng(1).normal(size=(2, 2))), "b": ml.array(rng(2).normal(size=2))}
    task = Task(Batch(ml.array(x), ml.array(y)), Batch(ml.array(y), ml.array(x)))

    def loss(params, batch):
        return ((batch.x @ params["w"] + params["b"] - batch.y) ** 2).mean()

    losses = maml.meta_loss(ml.vmap(loss), params, task, inner_lr=0.1)
    for i in range(5):
        alone = ml.tree.map(lambda a, i=i: a[i : i + 1], task)
        assert distance(
            maml.meta_loss(ml.vmap(loss), params, alone, inner_lr=0.1)[0], losses[i]
        ) < (ROUNDING)


def test_derivatives_pass_by_what_the_function_closes_over():
    w, xs = ml.array(rng().normal(size=3)), ml.array(rng(1).normal(size=(4, 3)))

    def inner(w, x):  # a gradient inside, by what is mapped; by w outside
        slope = ml.grad(lambda z: ml.tanh(w * z).sum() * (z * w).sum() ** 2)(x)
        return (slope * ml.stop_gradient(w) * x).sum()

    mapped = lambda w: ml.vmap(lambda x: inner(w, x))(xs).sum()  # noqa: E731
    loop = lambda w: sum(inner(w, x) for x in xs)  # noqa: E731
    assert distance(ml.grad(mapped)(w), ml.grad(loop)(w)) < ROUNDING
    assert distance(ml.hessian(mapped)(w), ml.hessian(loop)(w)) < ROUNDING
    assert distance(ml.compile(ml.grad(mapped))(w), ml.grad(loop)(w)) < ROUNDING


def test_nothing_passes_a_stop_gradient_inside():
    xs = ml.array(rng().normal(size=(4, 3)))
    f = lambda xs: ml.vmap(lambda x: (x * ml.stop_gradient(x)).sum())(xs).sum()  # noqa: E731
    assert distance(ml.grad(f)(xs), xs) == 0


def test_a_checkpoint_inside_is_differentiated_by_what_is_mapped_and_by_what_is_shared():
    w, xs = ml.array(rng().normal(size=3)), ml.array(rng(1).normal(size=(4, 3)))
    f = lambda w, x: ml.tanh(w * x) ** 3  # noqa: E731

    def through(f):
        return lambda w, xs: (ml.vmap(f, in_axes=(None, 0))(w, xs) ** 2).sum()

    for argnum in (0, 1):
        kept = ml.grad(through(f), argnum)(w, xs)
        assert distance(ml.grad(through(ml.checkpoint(f)), argnum)(w, xs), kept) < ROUNDING


def test_vmaps_nest():
    a, b = rng().normal(size=(2, 4, 3))
    pairs = ml.vmap(lambda x: ml.vmap(lambda y: (x * y).sum())(ml.array(b)))
    assert distance(pairs(ml.array(a)), a @ b.T) < ROUNDING
    outer = ml.vmap(ml.vmap(lambda x, y: x * y, in_axes=(0, None)), in_axes=(None, 0))
    assert distance(outer(ml.array(a[0]), ml.array(b[0])), np.outer(b[0], a[0])) < ROUNDING


def test_a_compiled_function_can_be_mapped():
    xs = ml.array(rng().normal(size=(4, 3)))
    f = lambda x: ml.tanh(x).sum()  # noqa: E731
    assert distance(ml.vmap(ml.compile(f))(xs), ml.vmap(f)(xs)) == 0


def test_a_jacobian_inside_is_one_for_each_example():
    xs = ml.array(rng().normal(size=(4, 3)))
    found = ml.vmap(ml.jacobian(lambda x: x * x.sum()))(xs)
    assert found.shape == (4, 3, 3)
    assert distance(found[2], ml.jacobian(lambda x: x * x.sum())(xs[2])) < ROUNDING


def test_axes_may_be_others_or_none_and_trees():
    x, y = rng().normal(size=(3, 4)), rng().normal(size=3)
    got = ml.vmap(lambda p, y: p["x"] * y + p["c"], in_axes=({"x": 1, "c": None}, None))(
        {"x": ml.array(x), "c": 2.0}, ml.array(y)
    )
    assert distance(got, x.T * y + 2) < ROUNDING
    turned = ml.vmap(lambda x: x, in_axes=(-1,), out_axes=1)(ml.array(x))
    assert distance(turned, x) == 0
    keyword = ml.vmap(lambda x, *, s: x * s)(ml.array(x), s=ml.array(y))
    assert distance(keyword, x * y[:, None]) == 0


def test_a_result_that_does_not_depend_on_the_example_is_repeated():
    xs = ml.array(rng().normal(size=(4, 3)))
    out = ml.vmap(lambda x: {"one": 1.0, "shape": ml.zeros_like(x), "shared": xs[0]})(xs)
    assert out["one"].shape == (4,) and out["shape"].shape == (4, 3)
    assert distance(out["shared"], np.broadcast_to(xs[0].numpy(), (4, 3))) == 0


def test_indices_may_differ_between_examples():
    xs, which = rng().normal(size=(4, 3, 5)), np.array([[0, -1], [2, 2], [1, 0], [0, 1]])
    for f in (
        lambda x, i: x[i],
        lambda x, i: x[1, i],
        lambda x, i: x[:, i],
        lambda x, i: x[i, :, None],
        lambda x, i: x[i[:, None], [0, 3]],
        lambda x, i: ml.take(x, i, axis=1),
    ):
        got = ml.vmap(f)(ml.array(xs), which)
        expected = ml.stack([f(ml.array(x), i) for x, i in zip(xs, which, strict=True)])
        assert distance(got, expected) == 0


def test_an_index_out_of_range_in_one_example_does_not_reach_into_the_next():
    xs = ml.array(rng().normal(size=(4, 3)))
    with pytest.raises(ShapeError, match=r"out of bounds|out of range"):
        ml.vmap(lambda x, i: x[i])(xs, np.array([0, 1, 3, 2]))
    with pytest.raises(ShapeError):
        ml.compile(ml.vmap(lambda x, i: x[i]))(xs, ml.array([0, 1, 3, 2]))


@pytest.mark.parametrize(
    ("f", "error", "says"),
    [
        (lambda x: float(x.sum()), CaptureError, "test_vmap.py:.*a number .* vmap"),
        (lambda x: np.asarray(x), CaptureError, "test_vmap.py:.*vmap"),
        (lambda x: x if x.sum() > 0 else -x, CaptureError, "test_vmap.py:.*where"),
        (lambda x: x[x > 0], CaptureError, "test_vmap.py:.*boolean mask"),
        (lambda x: x @ np.ones((4, 2)), ShapeError, r"float64\[1,3\].* in each of 5 ex"),
    ],
)
def test_what_cannot_be_mapped_is_said_with_the_users_line_and_one_examples_shapes(f, error, says):
    with pytest.raises(error, match=says):
        ml.vmap(f)(ml.array(rng().normal(size=(5, 3))))


def test_arguments_that_do_not_fit_are_named():
    x, y = ml.array(np.ones((3, 2))), ml.array(np.ones((4, 2)))
    with pytest.raises(ShapeError, match=r"float64\[3,2\], float64\[4,2\] have 3 or 4 examples"):
        ml.vmap(lambda x, y: x)(x, y)
    with pytest.raises(ShapeError, match="no examples"):
        ml.vmap(lambda x: x, in_axes=None)(x)
    with pytest.raises(ShapeError, match="axis 0 does not exist"):
        ml.vmap(lambda x: x)(ml.array(1.0))
    with pytest.raises(ShapeError, match="in_axes"):
        ml.vmap(lambda x, y: x, in_axes=(0,))(x, x)


def test_an_array_of_one_example_cannot_outlive_its_function():
    kept = []
    ml.vmap(lambda x: kept.append(x) or x)(ml.array(np.ones((3, 2))))
    with pytest.raises(CaptureError, match="after the function returned"):
        kept[0] + 1.0


@pytest.mark.parametrize("inside", [lambda f: f, ml.grad, lambda f: ml.grad(ml.grad(f))])
def test_a_rule_of_ones_own_is_used_for_every_example(inside):
    @ml.custom_vjp
    def root(x, y):  # in NumPy, which only a real number can be given to
        return {"root": np.sqrt(np.asarray(x)), "both": np.asarray(x) * np.asarray(y)}

    @root.vjp
    def _(ct, out, x, y):
        by_root = ct["root"] / (2 * out["root"])
        return by_root + ct["both"] * y, ct["both"] * x

    def f(x, y):
        out = root(x, y)
        return out["root"] * y + out["both"] ** 2

    def plain(x, y):
        return x**0.5 * y + (x * y) ** 2

    xs, y = np.array([1.0, 2.0, 4.0]), 3.0

    def total(f):
        return lambda xs, y: (ml.vmap(inside(f), (0, None))(xs, y) ** 2).sum()

    for derived in (lambda g: ml.grad(g, (0, 1)), lambda g: ml.hessian(g)):
        found, expected = (ml.tree.leaves(derived(total(g))(xs, y)) for g in (f, plain))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-10)
