"""The examples run, top to bottom, with a few meta-iterations."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import mamlnp as ml
from mamlnp.tasks.strokes import load_strokes

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    """A script of examples/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["sine", "omniglot", "nav2d"])
def test_an_example_fits_a_screen(name):
    assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) <= 60


def test_sine_learns(capsys):
    assert example("sine").main(600) < 3.5
    assert "new waves, after 10 steps" in capsys.readouterr().out


def test_omniglot_learns(monkeypatch, capsys):
    characters = load_strokes(seed=0, alphabets=6)
    monkeypatch.setattr(ml.tasks.omniglot, "load_omniglot", lambda folder: characters)
    script = example("omniglot")
    monkeypatch.setattr(script, "FILTERS", 8)
    monkeypatch.setattr(script, "TEST_BATCHES", 3)
    assert script.main(40) > 0.3  # by chance 0.2
    assert "5-way 1-shot" in capsys.readouterr().out


def test_nav2d_runs(capsys):
    assert np.isfinite(example("nav2d").main(2))
    assert "meta-iteration 2" in capsys.readouterr().out
