"""Layers and networks: the task axis against loops, statistics, derivatives, initial weights."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

import mamlnp as ml
from mamlnp import array, check_grads, grad, nn, tree
from mamlnp.autodiff import tape
from mamlnp.gradcheck import TOLERANCES

ROUNDING = TOLERANCES["rounding"]
seeds = st.integers(0, 2**32 - 1)


def close(actual, expected):
    np.testing.assert_allclose(
        np.asarray(actual), np.asarray(expected), ROUNDING, ROUNDING, strict=True
    )


def perturbed(params, rng):
    """Parameters with nothing at a special value such as 0 or 1."""
    return tree.map(lambda p: array(p.numpy() + 0.3 * rng.normal(size=p.shape)), params)


def for_each_task(params, tasks, rng):
    return [perturbed(params, rng) for _ in range(tasks)]


def stacked(trees):
    return tree.map(lambda *leaves: ml.stack(leaves), *trees)


networks = {
    "mlp": (nn.mlp((3, 4, 4, 2), weights=nn.xavier), (5, 3)),
    "mlp tanh": (nn.mlp((3, 4, 2), weights=nn.xavier, activation=ml.tanh), (5, 3)),
    "mlp norm": (nn.mlp((3, 4, 2), weights=nn.xavier, norm=True), (5, 3)),
    "mlp norm gamma": (nn.mlp((3, 4, 4, 2), weights=nn.xavier, norm=True, gamma=True), (5, 3)),
    "conv4": (nn.conv4(2, filters=3, image_size=7), (4, 7, 7, 1)),
    "conv4 gamma": (nn.conv4(2, filters=2, image_size=8, channels=3, gamma=True), (3, 8, 8, 3)),
    "conv4 pool": (nn.conv4(2, filters=2, image_size=18, pool=True), (3, 18, 18, 1)),
}
each_network = pytest.mark.parametrize(
    ("network", "shape"), networks.values(), ids=[name.replace(" ", "-") for name in networks]
)


# ---- the task axis


@each_network
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_task_axis_is_a_loop_over_tasks(network, shape, tasks):
    rng = np.random.default_rng(0)
    params = network.init(rng=rng, dtype=np.float64)
    own = for_each_task(params, tasks, rng)
    x = rng.normal(size=(tasks, *shape))
    together = network.apply(stacked(own), x)
    assert together.shape == (tasks, shape[0], 2)
    close(together, [network.apply(p, x[t]).numpy() for t, p in enumerate(own)])
    shared = network.apply(own[0], x)
    close(shared, [network.apply(own[0], x[t]).numpy() for t in range(tasks)])
    same_inputs = network.apply(stacked(own), x[0])
    close(same_inputs, [network.apply(p, x[0]).numpy() for p in own])


@each_network
def test_each_tasks_gradient_is_its_own(network, shape):
    rng = np.random.default_rng(1)
    own = for_each_task(network.init(rng=rng, dtype=np.float64), 2, rng)
    x = rng.normal(size=(2, *shape))

    def total(params, x):
        return (network.apply(params, x) ** 2).sum()

    together = grad(total)(stacked(own), x)
    alone = stacked([grad(total)(p, x[t]) for t, p in enumerate(own)])
    tree.map(close, together, alone)


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 5, 3)], ids=["vectors", "images"])
def test_batch_norm_takes_the_task_axis_on_either_side(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape))
    own = [{"beta": rng.normal(size=3), "gamma": rng.normal(size=3)} for _ in range(2)]
    both = tree.map(lambda *leaves: np.stack(leaves), *own)
    loop = [nn.batch_norm(p, x[t]).numpy() for t, p in enumerate(own)]
    close(nn.batch_norm(both, x), loop)
    close(nn.batch_norm(own[0], x), [nn.batch_norm(own[0], x[t]).numpy() for t in range(2)])
    close(nn.batch_norm(both, x[0]), [nn.batch_norm(p, x[0]).numpy() for p in own])


def test_linear_takes_the_task_axis_on_either_side():
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 5))
    close(nn.linear({"w": w, "b": b}, x), np.stack([x[t] @ w[t] + b[t] for t in range(2)]))
    close(nn.linear({"w": w[0], "b": b[0]}, x), x @ w[0] + b[0])
    close(nn.linear({"w": w, "b": b}, x[0]), np.stack([x[0] @ w[t] + b[t] for t in range(2)]))
    close(nn.linear({"w": w[0], "b": b[0]}, x[0]), x[0] @ w[0] + b[0])


# ---- batch norm


@given(seed=seeds, scale=st.floats(1e-3, 1e3), lead=st.sampled_from([(), (2,)]))
def test_batch_norm_normalises_each_channel_of_each_task(seed, scale, lead):
    rng = np.random.default_rng(seed)
    x = scale * (rng.normal(size=(*lead, 4, 3, 2, 5)) + rng.normal(size=5))
    found = nn.batch_norm({"beta": np.zeros(5)}, x, eps=1e-3).numpy()
    mean, var = x.mean((-4, -3, -2), keepdims=True), x.var((-4, -3, -2), keepdims=True)
    close(found, (x - mean) / np.sqrt(var + 1e-3))
    np.testing.assert_allclose(found.mean((-4, -3, -2)), 0, atol=1e-9)  # of cancelling terms
    close(found.var((-4, -3, -2)), (var / (var + 1e-3)).reshape(*lead, 5))
    # Vectors: only the batch axis is averaged over.
    x = x[..., 0, 0, :]
    found = nn.batch_norm({"beta": np.zeros(5)}, x)
    close(found, (x - x.mean(-2, keepdims=True)) / np.sqrt(x.var(-2, keepdims=True) + 1e-3))


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("rest", [(3, 2, 5), (5,)], ids=["images", "vectors"])
def test_batch_norm_by_the_first_examples_is_theirs_for_all(lead, rest):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*lead, 6, *rest)) + 3
    params = {"beta": rng.normal(size=5), "gamma": rng.normal(size=5)}
    axes = (-4, -3, -2) if len(rest) == 3 else (-2,)
    first = np.take(x, range(4), axis=axes[0])
    mean, var = first.mean(axes, keepdims=True), first.var(axes, keepdims=True)
    expected = params["gamma"] * (x - mean) / np.sqrt(var + 1e-3) + params["beta"]
    found = nn.batch_norm(params, x, statistics=4)
    close(found, expected)
    close(np.take(found.numpy(), range(4), axis=axes[0]), nn.batch_norm(params, first).numpy())
    close(nn.batch_norm(params, x, statistics=6), nn.batch_norm(params, x).numpy())


@pytest.mark.parametrize("lead", [(), (2,)])
def test_batch_norm_of_each_image_sees_no_other(lead):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*lead, 3, 4, 2, 5))
    params = {"beta": rng.normal(size=(*lead, 5)), "gamma": rng.normal(size=(*lead, 5))}
    together = nn.batch_norm(params, x, statistics="image").numpy()
    alone = [nn.batch_norm(params, x[..., i : i + 1, :, :, :]).numpy() for i in range(3)]
    close(together, np.concatenate(alone, axis=-4))
    with pytest.raises(ml.errors.ShapeError, match="'image' for vectors"):
        nn.batch_norm(params, x[..., 0, 0, :], statistics="image")


@pytest.mark.parametrize("statistics", [2, "image"])
def test_batch_norm_by_other_statistics_has_right_derivatives(statistics):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, 2, 2))
    params = {"beta": rng.normal(size=2), "gamma": rng.normal(size=2)}
    report = check_grads(lambda p, x: nn.batch_norm(p, x, statistics=statistics), [params, x], 2)
    assert report.error() < TOLERANCES["difference"]


def test_gamma_is_optional_and_beta_shifts():
    rng = np.random.default_rng(0)
    x, beta, gamma = rng.normal(size=(6, 3)), rng.normal(size=3), rng.normal(size=3)
    plain = nn.batch_norm({"beta": np.zeros(3)}, x).numpy()
    close(nn.batch_norm({"beta": beta}, x), plain + beta)
    close(nn.batch_norm({"beta": beta, "gamma": gamma}, x), gamma * plain + beta)
    for network, where in ((nn.mlp((2, 3, 1), norm=True), "linear1"), (nn.conv4(2), "conv1")):
        assert "gamma" not in network.init(rng=rng)[where]
    for network, where in (
        (nn.mlp((2, 3, 1), norm=True, gamma=True), "linear1"),
        (nn.conv4(2, gamma=True), "conv1"),
    ):
        params = network.init(rng=rng)[where]
        assert (params["gamma"].numpy() == 1).all() and (params["beta"].numpy() == 0).all()


@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-6, 1e-2, 1.0])
def test_batch_norm_near_zero_variance_has_right_finite_derivatives(spread):
    rng = np.random.default_rng(0)
    x = 0.7 + spread * rng.normal(size=(4, 2))
    params = {"beta": rng.normal(size=2), "gamma": rng.normal(size=2)}
    report = check_grads(nn.batch_norm, [params, x], order=3)
    assert report.error() < TOLERANCES["difference"]
    second = ml.hvp(lambda x: (nn.batch_norm(params, x) ** 3).sum(), array(x), array(x))
    assert np.isfinite(second.numpy()).all()


def test_batch_norm_of_a_constant_batch_has_the_closed_forms_slope():
    # At variance 0 the square has no slope: only the centring and 1 / sqrt(eps) remain.
    x = np.full((4, 1), 0.7)
    found = ml.jacobian(lambda x: nn.batch_norm({"beta": np.zeros(1)}, x))(array(x))
    close(found[:, 0, :, 0], (np.eye(4) - 1 / 4) / math.sqrt(1e-3))


@pytest.mark.parametrize("order", [1, 2])
def test_a_bias_before_batch_norm_has_no_effect(order):
    network, shape = networks["mlp norm gamma"]
    rng = np.random.default_rng(0)
    params = perturbed(network.init(rng=rng, dtype=np.float64), rng)
    x = rng.normal(size=shape)

    def f(params):
        return (network.apply(params, x) ** 3).sum()

    gradient = grad(f if order == 1 else lambda p: ml.dot(grad(f)(p), grad(f)(p)))(params)
    size = math.sqrt(ml.dot(gradient, gradient).item())
    for name, bias in ((name, layer["b"]) for name, layer in gradient.items()):
        largest = abs(bias).max().item()
        if name == "linear3":
            assert largest > 1e-3 * size
        else:
            assert largest < 1e-13 * size
    assert "b" not in nn.conv4(2).init(rng=rng)["conv1"]


def test_batch_norm_is_transductive():
    rng = np.random.default_rng(0)
    network, shape = networks["conv4"]
    params, x = network.init(rng=rng, dtype=np.float64), rng.normal(size=shape)
    whole, part = network.apply(params, x).numpy(), network.apply(params, x[:2]).numpy()
    assert np.abs(whole[:2] - part).max() > 1e-3


# ---- networks


def sides(network, params, x, op):
    """The images' sides at every op of that name, in the order they were made."""
    nodes = tape(network.apply, params, x)[1]
    return [node.shape[-3:-1] for node in nodes if node.op.name == op]


def test_conv4_for_omniglot_halves_28_down_to_2():
    network = nn.conv4(5, filters=2)
    params = network.init(rng=np.random.default_rng(0))
    x = np.zeros((3, 28, 28, 1), np.float32)
    assert sides(network, params, x, "relu") == [(14, 14), (7, 7), (4, 4), (2, 2)]
    assert network.apply(params, x).shape == (3, 5)
    shapes = tree.map(lambda p: p.shape, nn.conv4(5).init(rng=np.random.default_rng(0)))
    convs = {f"conv{i}": {"w": (3, 3, 64, 64), "beta": (64,)} for i in (2, 3, 4)}
    first = {"conv1": {"w": (3, 3, 1, 64), "beta": (64,)}}
    assert shapes == {**first, **convs, "head": {"w": (64, 5), "b": (5,)}}


def test_conv4_for_mini_imagenet_pools_84_down_to_5():
    network = nn.conv4(5, channels=3, filters=2, image_size=84, pool=True)
    params = network.init(rng=np.random.default_rng(0))
    x = np.zeros((2, 84, 84, 3), np.float32)
    assert sides(network, params, x, "relu") == [(84, 84), (42, 42), (21, 21), (10, 10)]
    assert params["head"]["w"].shape == (5 * 5 * 2, 5)
    assert network.apply(params, x).shape == (2, 5)
    full = nn.conv4(5, channels=3, filters=32, image_size=84, pool=True)
    head = full.init(rng=np.random.default_rng(0))["head"]["w"]
    assert head.shape == (800, 5)


def test_conv4_is_what_the_paper_says():
    rng = np.random.default_rng(0)
    for pool in (False, True):
        network = nn.conv4(3, filters=2, image_size=34, pool=pool, gamma=True)
        params = perturbed(network.init(rng=rng, dtype=np.float64), rng)
        x = images = rng.normal(size=(4, 34, 34, 1))  # sides 17, 9, 5, 3 or 17, 8, 4, 2
        for i in range(1, 5):
            layer = params[f"conv{i}"]
            x = ml.conv2d(x, layer["w"], stride=1 if pool else 2, padding="SAME").numpy()
            x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3)
            x = np.maximum(x * layer["gamma"].numpy() + layer["beta"].numpy(), 0)
            if pool:
                n, side, _, c = x.shape
                x = x[:, : side // 2 * 2, : side // 2 * 2]
                x = x.reshape(n, side // 2, 2, side // 2, 2, c).max((2, 4))
        features = x.reshape(4, -1) if pool else x.mean((1, 2))
        expected = features @ params["head"]["w"].numpy() + params["head"]["b"].numpy()
        close(network.apply(params, images), expected)


def test_the_mlps_are_what_the_paper_says():
    rng = np.random.default_rng(0)
    sine = nn.mlp((1, 40, 40, 1))
    params = perturbed(sine.init(rng=rng, dtype=np.float64), rng)
    x = rng.normal(size=(10, 1))
    h = x
    for name in ("linear1", "linear2"):
        h = np.maximum(h @ params[name]["w"].numpy() + params[name]["b"].numpy(), 0)
    expected = h @ params["linear3"]["w"].numpy() + params["linear3"]["b"].numpy()
    close(sine.apply(params, x), expected)
    assert sum(p.size for p in tree.leaves(params)) == 40 + 40 + 1600 + 40 + 40 + 1

    omniglot = nn.mlp((784, 256, 128, 64, 64, 5), norm=True)
    params = omniglot.init(rng=rng)
    assert [params[f"linear{i}"]["w"].shape[1] for i in range(1, 6)] == [256, 128, 64, 64, 5]
    assert ["beta" in params[f"linear{i}"] for i in range(1, 6)] == [True] * 4 + [False]
    x = rng.normal(size=(2, 5, 784)).astype(np.float32)
    assert omniglot.apply(params, x).shape == (2, 5, 5)
    normed = tape(omniglot.apply, params, x)[1]
    assert [n.shape for n in normed if n.op.name == "relu"] == [
        (2, 5, s) for s in (256, 128, 64, 64)
    ]


@each_network
def test_float32_parameters_give_float32_and_the_same_numbers(network, shape):
    rng = np.random.default_rng(0)
    params = network.init(rng=rng)
    assert {p.dtype for p in tree.leaves(params)} == {np.dtype(np.float32)}
    x = rng.normal(size=(2, *shape)).astype(np.float32)
    single = network.apply(params, x)
    assert single.dtype == np.float32
    double = network.apply(tree.map(lambda p: p.astype(np.float64), params), x.astype(np.float64))
    size = np.abs(double.numpy()).max()
    np.testing.assert_allclose(single, double, 0, TOLERANCES["float32"] * size)


# ---- layers, chains and cells

layers = {
    "dense": (nn.dense(3, 2), (4, 3)),
    "conv": (nn.conv(2, 3, side=3, stride=2), (2, 5, 5, 2)),
    "norm": (nn.norm(3), (5, 3)),
    "layer norm": (nn.layer_norm(3), (4, 3)),
    "chain": (nn.chain(a=nn.chain(nn.dense(3, 4), nn.norm(4)), b=nn.dense(4, 2)), (5, 3)),
}


@pytest.mark.parametrize(
    ("layer", "shape"), layers.values(), ids=[name.replace(" ", "-") for name in layers]
)
def test_a_layer_takes_the_task_axis(layer, shape):
    rng = np.random.default_rng(0)
    own = for_each_task(layer.init(rng=rng, dtype=np.float64), 3, rng)
    x = rng.normal(size=(3, *shape))
    alone = [layer.apply(p, y) for p, y in zip(own, x, strict=True)]
    close(layer.apply(stacked(own), x), np.stack(alone))


def test_an_embedding_takes_the_task_axis():
    layer, rng = nn.embedding(6, 2), np.random.default_rng(0)
    own, words = for_each_task(layer.init(rng=rng), 3, rng), rng.integers(0, 6, (3, 4))
    expected = np.stack([p["w"].numpy()[w] for p, w in zip(own, words, strict=True)])
    close(layer.apply(stacked(own), words), expected)
    close(layer.apply(own[0], words), own[0]["w"].numpy()[words])


def test_layer_norm_is_its_equation():
    layer, rng = nn.layer_norm(5), np.random.default_rng(0)
    params, x = perturbed(layer.init(rng=rng, dtype=np.float64), rng), rng.normal(size=(3, 5))
    scaled = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    close(layer.apply(params, x), scaled * params["gamma"].numpy() + params["beta"].numpy())


def test_dropout_drops_by_the_noise_it_is_given():
    layer, x = nn.dropout(0.25), np.ones((2, 3))
    noise = np.array([[0.1, 0.25, 0.9], [0.2, 0.3, 0.0]])
    close(layer.apply({}, x, noise=noise), np.array([[0, 4 / 3, 4 / 3], [0, 4 / 3, 0]]))
    close(layer.apply({}, x), x)
    many = np.random.default_rng(0).random(100_000)
    assert layer.apply({}, np.ones(100_000), noise=many).mean().item() == pytest.approx(1, abs=0.01)
    for rate in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="dropout: rate is"):
            nn.dropout(rate)


def test_dropout_in_a_compiled_step_has_new_noise_each_time():
    network = nn.chain(hidden=nn.dense(2, 3), drop=nn.dropout(0.5), out=nn.dense(3, 1))
    params = network.init(rng=np.random.default_rng(0))
    x, rng = np.ones((4, 2), np.float32), np.random.default_rng(1)
    step = ml.compile(lambda x, noise: network.apply(params, x, noise=noise))
    noises = [{"drop": rng.random((4, 3), np.float32)} for _ in range(3)]
    found = [step(x, noise).numpy() for noise in noises]
    assert len(step._known) == 1
    for noise, out in zip(noises, found, strict=True):
        np.testing.assert_allclose(out, network.apply(params, x, noise=noise), 1e-5, 1e-6)
    assert not np.array_equal(found[0], found[1])


def test_noise_for_no_layer_is_refused():
    network = nn.chain(hidden=nn.dense(2, 3), drop=nn.dropout(0.5))
    params = network.init(rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"noise is for 'dorp'\. The layers: hidden, drop"):
        network.apply(params, np.ones((4, 2), np.float32), noise={"dorp": np.ones((4, 3))})


def test_layers_that_share_a_dict_have_names_of_their_own():
    with pytest.raises(ValueError, match="chain: two layers have 'b'"):
        nn.chain(nn.dense(2, 2), nn.dense(2, 2)).init(rng=np.random.default_rng(0))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand_lstm(p, state, x):
    h, c = state
    i, f, g, o = np.split(np.concatenate([x, h], -1) @ p["w"] + p["b"], 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h, c), h


def by_hand_gru(p, state, x):
    (h,) = state
    of_x, of_h = (np.split(y @ p[k]["w"] + p[k]["b"], 3, -1) for k, y in (("x", x), ("h", h)))
    reset, kept = sigmoid(of_x[0] + of_h[0]), sigmoid(of_x[1] + of_h[1])
    h = (1 - kept) * np.tanh(of_x[2] + reset * of_h[2]) + kept * h
    return (h,), h


CELLS = {"lstm": (nn.lstm(2, 3), by_hand_lstm, 2), "gru": (nn.gru(2, 3), by_hand_gru, 1)}
each_cell = pytest.mark.parametrize("name", CELLS)


@each_cell
def test_a_cell_over_a_sequence_is_its_equations(name):
    cell, by_hand, states = CELLS[name]
    rng = np.random.default_rng(0)
    params = perturbed(cell.init(rng=rng, dtype=np.float64), rng)
    xs = rng.normal(size=(4, 6, 2))
    last, outputs = nn.unroll(cell, params, cell.start(params, (4,)), xs)
    numbers, state = tree.map(lambda p: p.numpy(), params), (np.zeros((4, 3)),) * states
    for n in range(6):
        state, out = by_hand(numbers, state, xs[:, n])
        close(outputs[:, n], out)
    close(ml.stack(last), np.stack(state))


@each_cell
def test_a_long_sequence_replays_with_its_gradient(name):
    cell, _, _ = CELLS[name]
    rng = np.random.default_rng(0)
    params, xs = cell.init(rng=rng, dtype=np.float64), rng.normal(size=(2, 40, 2))

    def loss(params, xs):
        return nn.unroll(cell, params, cell.start(params, (2,)), xs)[1].sum()

    eager, replayed = (f(params, xs) for f in (grad(loss), ml.compile(grad(loss))))
    for a, b in zip(tree.leaves(eager), tree.leaves(replayed), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), 1e-9, 1e-12)


@each_cell
def test_a_cell_takes_each_tasks_own_parameters(name):
    cell, _, _ = CELLS[name]
    rng = np.random.default_rng(0)
    own = for_each_task(cell.init(rng=rng, dtype=np.float64), 3, rng)
    x = rng.normal(size=(3, 5, 2))
    _, out = cell.step(stacked(own), cell.start(stacked(own), (3, 5)), x)
    alone = [cell.step(p, cell.start(p, (5,)), y)[1] for p, y in zip(own, x, strict=True)]
    close(out, np.stack(alone))


# ---- derivatives


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("tasks", [(), (2,)], ids=["one", "tasks"])
def test_derivatives_of_layers(order, tasks):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=(*tasks, *shape))

    norm = {"beta": draw(2), "gamma": draw(2)}
    for layer, args in (
        (nn.linear, [{"w": draw(3, 2), "b": draw(2)}, draw(4, 3)]),
        (nn.batch_norm, [norm, draw(3, 2)]),
        (nn.batch_norm, [norm, draw(2, 2, 1, 2)]),
        (nn.batch_norm, [{"beta": draw(2)}, draw(2, 1, 2, 2)]),
    ):
        assert check_grads(layer, args, order=order).error() < TOLERANCES["difference"]


small_networks = {
    "mlp": (nn.mlp((2, 3, 1), weights=nn.xavier), (4, 2)),
    "mlp norm": (nn.mlp((2, 3, 2), weights=nn.xavier, norm=True, gamma=True), (4, 2)),
    "conv4": (nn.conv4(2, filters=2, image_size=5, gamma=True), (3, 5, 5, 1)),
    "conv4 pool": (nn.conv4(2, filters=1, image_size=16, pool=True), (3, 16, 16, 1)),
}


@pytest.mark.parametrize(
    ("network", "shape"),
    small_networks.values(),
    ids=[name.replace(" ", "-") for name in small_networks],
)
def test_derivatives_of_networks_to_third_order(network, shape):
    rng = np.random.default_rng(0)
    params = perturbed(network.init(rng=rng, dtype=np.float64), rng)
    report = check_grads(network.apply, [params, rng.normal(size=shape)], order=3)
    assert report.error() < TOLERANCES["difference"]
    assert {c.order for c in report.comparisons} == {1, 2, 3}


# ---- initial weights


def drawn(initializer, shape, seed=0):
    return initializer(shape, np.random.default_rng(seed))


def test_normal_weights():
    x = drawn(nn.normal(0.3), (200, 500))
    assert abs(x.mean()) < 4 * 0.3 / math.sqrt(x.size)
    assert x.std() == pytest.approx(0.3, rel=0.01)
    assert np.mean(np.abs(x) > 0.6) == pytest.approx(0.0455, rel=0.1)  # beyond 2 sigma


def test_truncated_normal_weights():
    x = drawn(nn.truncated_normal(0.01), (200, 500))
    assert np.abs(x).max() <= 0.02
    assert np.abs(x).max() > 0.0199
    assert abs(x.mean()) < 4 * 0.01 / math.sqrt(x.size)
    # A normal cut at 2 sigma: variance 1 - 2 * 2 phi(2) / (2 Phi(2) - 1).
    cut = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    assert x.std() == pytest.approx(0.01 * math.sqrt(cut), rel=0.01)


@pytest.mark.parametrize("shape", [(300, 200), (3, 3, 40, 60)])
@pytest.mark.parametrize("initializer", [nn.xavier, nn.fan_in])
def test_uniform_weights(initializer, shape):
    x = drawn(initializer, shape)
    window, (inputs, outputs) = math.prod(shape[:-2]), shape[-2:]
    bounds = {
        nn.xavier: math.sqrt(6 / (window * (inputs + outputs))),
        nn.fan_in: 1 / math.sqrt(window * inputs),
    }
    bound = bounds[initializer]
    assert 0.999 * bound < x.max() <= bound and -bound <= x.min() < -0.999 * bound
    assert x.std() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_networks_draw_their_weights_as_asked():
    rng = np.random.default_rng(0)
    mlp = nn.mlp((1, 40, 40, 1)).init(rng=rng)
    assert mlp["linear2"]["w"].numpy().std() == pytest.approx(0.0088, rel=0.05)
    wide = nn.mlp((1, 40, 40, 1), weights=nn.normal(2.0)).init(rng=rng)
    assert wide["linear2"]["w"].numpy().std() == pytest.approx(2.0, rel=0.1)
    conv = nn.conv4(5, head=nn.normal(1.0)).init(rng=rng)
    assert conv["head"]["w"].numpy().std() == pytest.approx(1.0, rel=0.15)
    assert conv["conv2"]["w"].numpy().std() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.05)
    for params in (mlp, conv):
        for path, p in tree.items(params):
            if path.endswith(("['b']", "['beta']")):
                assert (p.numpy() == 0).all()


def test_the_same_seed_draws_the_same_weights():
    for network in (nn.mlp((1, 4, 1)), nn.conv4(2, filters=2)):
        first, again, other = (network.init(rng=np.random.default_rng(seed)) for seed in (0, 0, 1))
        tree.map(lambda a, b: np.testing.assert_array_equal(a, b), first, again)
        name = next(iter(first))
        assert (first[name]["w"].numpy() != other[name]["w"].numpy()).any()
