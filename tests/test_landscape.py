"""The landscape is that of the loss after adaptation, and its directions are the gradients'."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mamlnp import maml, nn, tree
from mamlnp.cli import main
from mamlnp.experiments import sine
from mamlnp.landscape import around
from mamlnp.losses import mse
from mamlnp.meta import MAML
from mamlnp.tasks.sinusoid import Sinusoids

NETWORK = nn.mlp((1, 8, 1), activation=np.tanh, weights=nn.fan_in)
HOW: Any = {"inner_lr": 0.1, "inner_steps": 2}


def loss(params: Any, batch: Any) -> Any:
    return mse(NETWORK.apply(params, batch.x), batch.y, reduction="mean")


@pytest.fixture(scope="module")
def found() -> Any:
    params = NETWORK.init(rng=np.random.default_rng(0), dtype=np.float64)
    drawn = Sinusoids().sample(5, num_shots=4, num_queries=6, rng=np.random.default_rng(1))
    task = tree.map(lambda x: x.astype(np.float64), drawn)
    second, first = (MAML(loss, first_order=order, **HOW) for order in (False, True))
    landscape = around(second, params, task, beside=first.gradient, radius=1e-3, points=3)
    return params, task, landscape


def test_its_centre_is_theta(found: Any) -> None:
    params, task, landscape = found
    after = maml.meta_loss(loss, params, task, **HOW).numpy().mean()
    before = maml.meta_loss(loss, params, task, inner_lr=0.1, inner_steps=0).numpy().mean()
    assert landscape.losses[1, 1] == pytest.approx(after)
    assert landscape.before[1, 1] == pytest.approx(before)


def test_its_slopes_are_the_meta_gradients(found: Any) -> None:
    _, _, landscape = found
    along = (landscape.losses[1, 2] - landscape.losses[1, 0]) / 2e-3
    across = (landscape.losses[2, 1] - landscape.losses[0, 1]) / 2e-3
    second, first = landscape.slopes
    assert along == pytest.approx(-second, rel=1e-4)
    assert across == pytest.approx(0, abs=1e-4 * second)  # second order is the gradient
    assert first == pytest.approx(second * landscape.cosine)
    assert 0 < landscape.cosine < 0.9999


def test_the_directions_are_of_length_one(found: Any) -> None:
    _, _, landscape = found
    assert np.linalg.norm(landscape.first) == pytest.approx(1)
    assert landscape.first[0] == pytest.approx(landscape.cosine)


@pytest.mark.parametrize("run", [[], ["sine"]])
def test_the_picture(run: list[str], tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("mamlnp.landscape.around", coarse)
    main(["landscape", *run, "--tasks", "5", "--out", str(tmp_path / "l.png")])
    assert "cosine" in capsys.readouterr().out
    with Image.open(tmp_path / "l.png") as picture:
        assert min(picture.size) > 400


def coarse(*args: Any, **how: Any) -> Any:
    return around(*args, **how, points=5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tasks", "0"], "--tasks: 0. Pass a positive number"),
        (["--radius", "-1"], "--radius: -1.0"),
        (["omniglot-5w1s"], "is no run of sine"),
        (["nothing"], "is neither a run's folder"),
    ],
)
def test_bad_input(argv: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["landscape", *argv])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_sine_is_what_is_looked_at() -> None:
    assert sine.Config().inner_lr == 0.01  # the command's default
