"""What is recorded, traced or captured keeps its numbers, whatever users do to their buffers."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

import mamlnp as ml
from mamlnp.op import as_array
from mamlnp.tasks import Batch, Task

SIDE = 3


def total(w, buffer):
    """Uses a buffer three times, filled anew for each: 6 x the sum of w."""
    out = 0.0
    for k in (1, 2, 3):
        buffer[...] = k
        out = out + (w * buffer).sum()
    return out


@pytest.mark.parametrize("transform", [lambda f: f, ml.compile], ids=["eager", "compiled"])
def test_a_buffer_filled_anew_is_another_constant(transform):
    f = transform(ml.value_and_grad(lambda w: total(w, np.zeros(SIDE))))
    for _ in range(2):
        value, gradient = f(np.ones(SIDE))
        assert value.item() == 18
        assert gradient.tolist() == [6, 6, 6]


@pytest.mark.parametrize("transform", [lambda f: f, ml.compile], ids=["eager", "compiled"])
def test_a_checkpoints_buffer_filled_anew_is_another_constant(transform):
    f = transform(ml.grad(ml.checkpoint(lambda w: total(w, np.zeros(SIDE)))))
    assert f(np.ones(SIDE)).tolist() == [6, 6, 6]


def test_a_pullback_keeps_the_point_of_its_vjp():
    p, ct, tree = np.ones(SIDE), np.ones(()), {"w": np.full(SIDE, 2.0)}
    _, pullback = ml.vjp(lambda x, t: (x * x * t["w"]).sum(), p, tree)
    p[:], tree["w"][:] = 10.0, 20.0
    first = pullback(ct)
    ct[...] = 7
    assert [x.tolist() for x in (first[0], first[1]["w"])] == [[4, 4, 4], [1, 1, 1]]


def test_results_keep_their_numbers_when_the_arguments_change():
    x = np.arange(3.0)
    results = {
        "identity": ml.vjp(lambda x: x, x)[0],
        "compiled identity": ml.compile(lambda x: x)(x),
        "compiled view": ml.compile(lambda x: x[::-1].reshape(3, 1).T)(x)[0, ::-1],
        "stop_gradient": ml.stop_gradient(x),
        "reshape": ml.reshape(x, (3,)),
        "slices": ml.getitem(x, slice(None)),
        "cotangent": ml.vjp(lambda x: x, np.zeros(3))[1](x)[0],
        "tangent": ml.jvp(lambda x: x, (np.zeros(3),), (x,))[1],
        "array": ml.array(x),
        "list": ml.array([x])[0],
        "aux": ml.grad(lambda w: (w * 1.0, ml.reshape(x, (3,))), has_aux=True)(1.0)[1],
        "checkpoint": ml.checkpoint(lambda x: x)(x),
        "parallel": ml.parallel.over_tasks(lambda p, t: p)({"x": x}, ml.array([1.0]))[0]["x"],
    }
    x[:] = -1
    for name, result in results.items():
        assert result.tolist() == [0, 1, 2], name


def test_parameters_tasks_and_states_of_plain_arrays_keep_their_numbers():
    def loss(params, batch):
        return ((batch.x * params["w"] - batch.y) ** 2).mean(-1)

    def fresh():
        batches = (Batch(np.ones((2, 4)), np.full((2, 4), k)) for k in (2.0, 3.0))
        return {"w": np.ones(1)}, Task(*batches)

    adam = ml.optim.adam(0.1)
    how = {"optimizer": adam, "inner_lr": 0.1}
    gradient = ml.meta.MAML(loss, inner_lr=0.1).gradient

    def eager(params, state, task):
        return ml.maml.meta_step(loss, params, state, task, **how)

    expected = None
    for step in (eager, ml.compile(eager), ml.parallel.meta_step(gradient, optimizer=adam)):
        params, task = fresh()
        state = adam.init(params)
        for _ in range(3):
            new, state, _ = step(params, state, task)
            for leaf in ml.tree.leaves([params, task]):
                if isinstance(leaf, np.ndarray):
                    leaf[...] = np.nan
            params, (_, task) = new, fresh()
        expected = params["w"].item() if expected is None else expected
        assert params["w"].item() == pytest.approx(expected, rel=1e-12)
        assert np.isfinite(expected)


def test_what_a_compiled_function_hands_through_is_a_copy():
    buffer, constant = np.arange(3.0), ml.array([5.0])
    f = ml.compile(lambda x: {"plain": buffer, "input": x, "constant": constant})
    x = ml.array([1.0])
    first = f(x)
    first["plain"][:] = -1
    buffer[:] = -2
    for key in ("input", "constant"):
        first[key].value[:] = -3
    assert (x.tolist(), constant.tolist()) == ([1], [5])
    again = f(x)
    assert again["plain"].tolist() == [0, 1, 2]
    assert (again["input"].tolist(), again["constant"].tolist()) == ([1], [5])


def test_no_view_writes_into_an_array():
    x = ml.array([1.0, 2.0])
    views = [x.numpy(), np.asarray(x), x.__array__(copy=None), np.array(x, copy=False)]
    views += [views[0].reshape(2, 1), np.ravel(views[0]), np.asarray(memoryview(x.numpy()))]
    for view in views:
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 7
    with pytest.raises((ValueError, BufferError), match=r"read-?only"):
        np.from_dlpack(x.numpy())[0] = 7
    np.array(x)[:] = 7
    assert x.tolist() == [1, 2]


def test_a_mapped_file_is_read_when_it_is_used(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float64, "w+", shape=2)
    mapped[:] = 1, 2
    x = as_array(mapped)
    compiled = ml.compile(lambda x: 2 * x)(mapped)
    mapped[:] = -1
    assert type(x.value) is np.ndarray
    assert x.tolist() == [1, 2]
    assert compiled.tolist() == [2, 4]


# ---- random programs that fill their buffers anew between uses

USES = {
    "times": lambda x, b: x * b,
    "plus": lambda x, b: b + x,
    "product": lambda x, b: x @ ml.reshape(b, (SIDE, 1)) * x,
    "where": lambda x, b: ml.where(b > 0, x, 0.5 * x),
    "index": lambda x, b: x[np.argsort(np.asarray(b))] + x,
    "stack": lambda x, b: ml.stack([x, b]).sum(0),
    "list": lambda x, b: ml.concatenate([x, b])[1 : SIDE + 1],
    "numpy": lambda x, b: np.maximum(np.sin(x), b),
    "inner": lambda x, b: ml.grad(lambda y: (y * b * x).sum())(x),
    "kept": lambda x, b: ml.vjp(lambda y: y * y, b)[1](x)[0],
}
programs = st.lists(
    st.tuples(st.sampled_from(sorted(USES)), st.integers(0, 1), st.floats(-2, 2)),
    min_size=1,
    max_size=6,
)


def run(program, x, buffers, snapshot):
    """Every use of a buffer, which is filled anew before it, and with rubbish at the end."""
    start = [b.copy() for b in buffers]
    try:
        for use, which, number in program:
            buffer = buffers[which]
            buffer[:] = buffer[::-1] * 0.5 + number * np.arange(1, SIDE + 1)
            x = USES[use](x, snapshot(buffer))
        return (ml.tanh(x) * snapshot(buffers[0])).sum()
    finally:
        for buffer, before in zip(buffers, start, strict=True):
            buffer[:] = before


@given(program=programs, seed=st.integers(0, 2**32 - 1))
def test_programs_that_reuse_buffers_are_those_that_copy_everything(program, seed):
    rng = np.random.default_rng(seed)
    x, *buffers = rng.normal(size=(3, SIDE))

    def derivatives(f):
        return lambda x: (ml.value_and_grad(f)(x), ml.hvp(f, x, np.ones(SIDE)))

    def reference(x):
        return run(program, x, buffers, lambda b: ml.array(b.copy()))

    def reusing(x):
        return run(program, x, buffers, lambda b: b)

    expected = ml.tree.leaves(derivatives(reference)(x.copy()))
    given_x = x.copy()
    compiled = ml.compile(derivatives(reusing))
    found = [derivatives(reusing)(given_x), compiled(given_x), compiled(given_x)]
    for buffer in (*buffers, given_x):
        buffer[:] = np.nan
    for result in found:
        for a, b in zip(ml.tree.leaves(result), expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-10, atol=1e-10)
