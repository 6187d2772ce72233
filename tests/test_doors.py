"""What is being differentiated cannot leave the tape unseen: every door out of an Array, at every
nesting, refuses what is recorded and lets everything else pass."""

import array
import copy
import math
import operator
import pickle
import struct

import numpy as np
import pytest

import mamlnp as ml
from mamlnp.errors import CaptureError, TapeError
from mamlnp.tasks import Batch


def into(write):
    """A door that writes into a plain array."""
    return lambda x: write(np.zeros(3), x)


# Ways to make plain numbers or plain arrays of an Array without axes.
DOORS = {
    "float": float,
    "int": int,
    "complex": complex,
    "item": lambda x: x.item(),
    "numpy": lambda x: x.numpy(),
    "tolist": lambda x: x.tolist(),
    "np.float64": np.float64,
    "np.float32": np.float32,
    "np.asarray": np.asarray,
    "np.array": lambda x: np.array(x, copy=True),
    "np.array of a list": lambda x: np.array([x, x]),
    "np.array of nested lists": lambda x: np.array([[x, 1.0], [2.0, x]]),
    "math.exp": math.exp,
    "math.hypot": lambda x: math.hypot(x, 1.0),
    "math.fsum": lambda x: math.fsum([x, x]),
    "math.floor": math.floor,
    "%": lambda x: "%.3f" % x,  # noqa: UP031
    "pickle": pickle.dumps,
    "array.array": lambda x: array.array("d", [x]),
    "y[0] = x": into(lambda y, x: y.__setitem__(0, x)),
    "y[0, 0] = x": lambda x: np.zeros((2, 2)).__setitem__((0, 0), x),
    "y[:] = x": into(lambda y, x: y.__setitem__(slice(None), x)),
    "y[mask] = x": into(lambda y, x: y.__setitem__(y == 0, x)),
    "y[indices] = x": into(lambda y, x: y.__setitem__([0, 1], x)),
    "y.fill": into(lambda y, x: y.fill(x)),
    "y.put": into(lambda y, x: y.put(0, x)),
    "np.full": lambda x: np.full(3, x),
    "np.fromiter": lambda x: np.fromiter((x for _ in range(3)), float),
    "np.fill_diagonal": lambda x: np.fill_diagonal(np.zeros((2, 2)), x),
    "np.random": lambda x: np.random.default_rng(0).normal(x),
}
WRITES = {  # NumPy hands them over as calls, and they are refused for constants too
    "y += x": into(operator.iadd),
    "out=": lambda x: np.exp(x, out=np.zeros(())),
    "np.add.at": into(lambda y, x: np.add.at(y, 0, x)),
    "np.copyto": into(np.copyto),
    "np.put": into(lambda y, x: np.put(y, 0, x)),
    "np.place": into(lambda y, x: np.place(y, y == 0, x)),
}
DULL = {  # what calls float(x) tells of its failure in its own words
    "struct.pack": lambda x: struct.pack("d", x),
    "y.flat[0] = x": into(lambda y, x: y.flat.__setitem__(0, x)),
}
EVERY = DOORS | WRITES


def through(door):
    """A function of a scalar that a number leaves by the door."""

    def f(x):
        door(x)
        return x * x

    return f


def adapted(f):
    """f of the parameters within a meta-gradient's inner loop."""

    def loss(params, batch):
        return ml.mean(f(params["w"].sum() * 1.0) * batch.x, -1)

    batch = Batch(ml.array([[1.0, 2.0]]), ml.array([[0.0, 0.0]]))

    def after(params):
        return ml.maml.adapt(loss, params, batch, inner_lr=0.1).pop("w").sum()

    return ml.grad(after)({"w": ml.array(1.5)})


NESTINGS = {
    "grad": lambda f: ml.grad(f)(1.5),
    "value_and_grad with aux": lambda f: ml.value_and_grad(lambda x: (f(x), x), has_aux=True)(1.5),
    "the inner of two grads": lambda f: ml.grad(lambda x: x * ml.grad(f)(2.0))(1.5),
    "the outer of two grads": lambda f: ml.grad(lambda x: ml.grad(lambda y: y * f(x))(1.0))(1.5),
    "grad of grad": lambda f: ml.grad(ml.grad(f))(1.5),
    "vjp": lambda f: ml.vjp(f, 1.5),
    "jvp": lambda f: ml.jvp(f, (1.5,), (1.0,)),
    "hvp": lambda f: ml.hvp(f, 1.5, 1.0),
    "jacobian": lambda f: ml.jacobian(f)(1.5),
    "hessian": lambda f: ml.hessian(f)(1.5),
    "checkpoint": lambda f: ml.grad(ml.checkpoint(f))(1.5),
    "an inner loop": adapted,
    "a pullback": lambda f: ml.grad(lambda x: ml.vjp(lambda y: y * y, 3.0)[1](f(x))[0])(1.5),
}


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("door", EVERY)
def test_what_is_differentiated_leaves_by_no_door(door, nesting):
    if door in WRITES and nesting == "checkpoint":  # whose first run is on constants
        with pytest.raises(TypeError):
            NESTINGS[nesting](through(EVERY[door]))
        return
    with pytest.raises(TapeError) as caught:
        NESTINGS[nesting](through(EVERY[door]))
    message = str(caught.value)
    assert message.startswith(f"{__file__}:")
    assert "ml.stop_gradient(x) first" in message


@pytest.mark.parametrize("door", DULL)
def test_what_hides_the_reason_refuses_too(door):
    with pytest.raises((struct.error, ValueError), match=r"not a float|setting single item"):
        ml.grad(through(DULL[door]))(1.5)


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("door", DOORS | DULL)
def test_what_is_not_differentiated_leaves_by_every_door(door, nesting):
    leave, outside = (DOORS | DULL)[door], ml.array(1.5)

    def f(x):
        leave(outside)  # closed over
        leave(ml.stop_gradient(x))
        leave((x > 0).astype(float))  # has no derivative
        leave(ml.grad(lambda y: y * y)(outside))  # independent of x
        return x * x

    for result in ml.tree.leaves(NESTINGS[nesting](f)):
        if isinstance(result, ml.Array) and not result.shape:
            leave(result)


@pytest.mark.parametrize("door", DOORS)
def test_what_is_only_traced_leaves_by_no_door(door):
    for f in (through(DOORS[door]), ml.grad(through(DOORS[door]))):
        with pytest.raises((CaptureError, ValueError)) as caught:
            ml.compile(f)(ml.array(1.5))
        reason = caught.value if isinstance(caught.value, CaptureError) else caught.value.__cause__
        assert isinstance(reason, CaptureError)
        assert str(reason).startswith(f"{__file__}:")


def test_what_comes_out_of_the_outermost_transform_is_a_constant():
    x = ml.array([1.0, 2.0])
    out, pullback = ml.vjp(lambda x: (x**3).sum(), x)
    results = {
        "value": out,
        "pullback": pullback(1.0),
        "of a kept pullback": ml.grad(lambda u: pullback(u)[0].sum())(1.0),
        "of a kept pullback, again": ml.vjp(pullback, 1.0)[1]((ml.ones_like(x),)),
        "jacobian": ml.jacobian(lambda x: x * x)(x),
        "hessian": ml.hessian(lambda x: (x**3).sum())(x),
        "jvp": ml.jvp(lambda x: x**3, (x,), (x,)),
        "hvp": ml.hvp(lambda x: (x**3).sum(), x, x),
    }
    for name, result in results.items():
        assert all(leaf.serial == 0 for leaf in ml.tree.leaves(result)), name


def test_looking_and_branching_are_allowed():
    seen = []

    def f(x):
        seen.extend([repr(x), str(x), bool(x), x > 1, len(x[None])])
        return x * x if x > 1 else x

    assert ml.grad(f)(1.5).item() == 3
    assert seen[:3] == ["Array(1.5)", "Array(1.5)", True]


def test_a_copy_is_the_array_itself():
    def f(x):
        assert copy.copy(x) is x
        return (copy.deepcopy({"x": x})["x"] ** 2).sum()

    assert ml.grad(f)(ml.array([1.0, 2.0])).tolist() == [2.0, 4.0]


def test_a_constant_is_pickled():
    x = ml.array([[1.0, 2.0]], dtype=np.float32)
    back = pickle.loads(pickle.dumps({"x": x}))["x"]
    assert back.dtype == x.dtype
    assert back.tolist() == [[1.0, 2.0]]


def test_a_checker_says_what_left_the_tape_and_blames_no_rule():
    for check in (
        lambda: ml.check_grads(lambda x: float(x) * x, [2.0]),
        lambda: ml.check_hvp(lambda x: float(x) * x, 2.0),
    ):
        with pytest.raises(TapeError, match=r"test_doors\.py:\d+: a number was asked") as caught:
            check()
        assert "Correct its rule" not in str(caught.value)


def test_a_penalty_written_with_float_is_no_wrong_gradient():
    def loss(w):
        return (w * w).sum() + 0.1 * float((w * w).sum())

    with pytest.raises(TapeError):
        ml.grad(loss)(np.ones(2))
    assert float(loss(ml.array([1.0, 1.0]))) == pytest.approx(2.2)
