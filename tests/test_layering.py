"""The house's order: who imports whom, and that only the backend knows where arrays live."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import standin

import mamlnp as ml
from mamlnp import backend
from mamlnp.array import Array
from mamlnp.draws import Draw
from mamlnp.op import registry

PACKAGE = Path(ml.__file__).parent
READING_ORDER = re.findall(r"``([a-z]\w*)``", ml.__doc__)
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    here = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return set(imported(path.read_text(encoding="utf-8"), here))


def imported(source, here):
    """Every name that a module imports when it runs: ("mamlnp", "ops", "shape", "reshape")."""
    nodes = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, alias.name) for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes.extend(ast.iter_child_nodes(node))


def module(path):
    """What the reading order calls a file: itself or its folder."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def relative(path):
    return str(path.relative_to(PACKAGE))


def test_imports_are_found_wherever_they_are():
    source = """
if TYPE_CHECKING:
    from .cli import main
else:
    import never.taken
from . import tree
from ..array import Array, array
def f():
    import numba.core as c
    from mamlnp.nn import mlp
"""
    assert set(imported(source, ("mamlnp", "ops", "x"))) == {
        ("mamlnp", "ops", "tree"),
        ("mamlnp", "array", "Array"),
        ("mamlnp", "array", "array"),
        ("numba", "core"),
        ("mamlnp", "nn", "mlp"),
    }


def test_every_module_has_a_place_in_the_reading_order():
    assert len(set(READING_ORDER)) == len(READING_ORDER)
    assert {module(path) for path in FILES} - {"__init__", "__main__"} == set(READING_ORDER)


@pytest.mark.parametrize(
    "path", [path for path in FILES if not module(path).startswith("__")], ids=relative
)
def test_a_module_imports_only_from_those_above_it(path):
    above = READING_ORDER[: READING_ORDER.index(module(path)) + 1]
    used = {names[1] for names in imports(path) if names[0] == "mamlnp" and len(names) > 1}
    assert used <= set(above)


def test_the_ops_import_only_from_those_above_them():
    order = re.findall(r"\w+", ml.ops.__doc__.partition("In reading order:")[2])
    assert set(order) == {path.stem for path in (PACKAGE / "ops").glob("*.py")} - {"__init__"}
    for name in order:
        used = {names[2] for names in imports(PACKAGE / "ops" / f"{name}.py") if "ops" in names}
        assert used <= set(order[: order.index(name)])


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_the_backend_imports_numba_or_cupy(path):
    if module(path) != "backend":
        assert not {names[0] for names in imports(path)} & {"numba", "llvmlite", "cupy"}


@pytest.mark.parametrize("name", ["op", "ops", "tree", "autodiff", "losses", "optim", "maml"])
def test_what_computes_with_arrays_does_not_import_numpy(name):
    for path in (path for path in FILES if module(path) == name):
        assert "numpy" not in {names[0] for names in imports(path)}


# ---- arrays that live elsewhere: no function of NumPy's takes them


@pytest.fixture
def elsewhere(monkeypatch):
    """Within it new arrays are made on a device that is none (see standin.py)."""
    if standin.COMPILER is None:
        pytest.skip("g++ is not installed: the CUDA sources cannot be run without a device")
    standin.installed(monkeypatch)
    return backend.using_device("cuda")


def value_and_cotangents(op, seed):
    drawn, params = op.draw(Draw(np.random.default_rng(seed)))
    args = ml.tree.map(lambda x: ml.array(x) if isinstance(x, np.ndarray) else x, drawn)

    def is_float(x):
        return hasattr(x, "dtype") and x.dtype.kind == "f"

    def f(*floats):
        rest = iter(floats)
        return op(*ml.tree.map(lambda x: next(rest) if is_float(x) else x, args), **params)

    out, pullback = ml.vjp(f, *filter(is_float, ml.tree.leaves(args)))
    return [out, *pullback(ml.ones_like(out))]


def assert_elsewhere(x, expected):
    assert type(x) is Array
    assert type(x.value) is standin.Elsewhere
    assert x.device == "cuda:0"
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_every_op_computes_elsewhere(elsewhere):
    cases = list(itertools.product(registry.values(), range(10)))
    expected = [[x.numpy() for x in value_and_cotangents(*case)] for case in cases]
    with elsewhere:
        for case, numbers in zip(cases, expected, strict=True):
            for x, number in zip(value_and_cotangents(*case), numbers, strict=True):
                assert_elsewhere(x, number)


@pytest.mark.parametrize("method", ["backprop", "hvp"])
def test_a_meta_gradient_is_computed_elsewhere(elsewhere, method):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 2, 3, 6, 5, 1))
    labels = rng.integers(0, 2, (2, 2, 3))
    weights = {
        "filters": rng.standard_normal((3, 3, 1, 2)),
        "head": rng.standard_normal((6, 2)),
        "bias": np.zeros(2),
    }

    def loss(params, batch):
        features = ml.max_pool2d(ml.relu(ml.conv2d(batch.x, params["filters"])), 2)
        features = features.reshape(*batch.x.shape[:2], -1)[..., :6]
        features = features / (1 + ml.norm(features, axis=-1, keepdims=True))
        logits = features @ params["head"] + params["bias"][:, None]
        chosen = ml.take_along_axis(ml.log_softmax(logits), batch.y[..., None], axis=-1)
        return -ml.mean(chosen, axis=(1, 2)) + 0.1 * ml.var(params["head"], axis=(1, 2))

    def meta_gradient():
        params = ml.tree.map(ml.array, weights)
        batches = zip(map(ml.array, images), map(ml.array, labels), strict=True)
        task = ml.Task(*(ml.Batch(x, y) for x, y in batches))
        value, gradient = ml.maml.meta_gradient(
            loss, params, task, inner_lr=0.1, inner_steps=2, method=method
        )
        return [value, *ml.tree.leaves(gradient)]

    expected = [x.numpy() for x in meta_gradient()]
    with elsewhere:
        for x, number in zip(meta_gradient(), expected, strict=True):
            assert_elsewhere(x, number)


def test_importing_the_package_imports_nothing_that_draws():
    source = "import sys, mamlnp; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", source], check=True)
