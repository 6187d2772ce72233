"""The house's order: who imports whom, and that only the backend knows where arrays live."""

import ast
import operator
import re
from pathlib import Path

import numpy as np
import pytest

import mamlnp as ml
from mamlnp import backend
from mamlnp.array import Array
from mamlnp.backend import reference
from mamlnp.draws import Draw
from mamlnp.op import registry

PACKAGE = Path(ml.__file__).parent
READING_ORDER = re.findall(r"``([a-z]\w*)``", ml.__doc__)
FILES = sorted(PACKAGE.rglob("*.py"))
# The order within a folder, where it is not the alphabet's: the one its __init__ imports in.
OPS = ["shape", "elementwise", "reduce", "gather", "linear", "pool"]


def imports(path):
    """Every module that a file imports, absolutely: ("mamlnp", "ops", "shape")."""
    here = path.relative_to(PACKAGE.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, alias.name) for alias in node.names)


def module(path):
    """The name the reading order has for a file."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def ours(names):
    """Those of the imported names that are modules of the reading order."""
    return {parts[1] for parts in names if parts[0] == "mamlnp" and parts[1:]} - {"__version__"}


def test_every_module_has_a_place_in_the_reading_order():
    assert len(set(READING_ORDER)) == len(READING_ORDER)
    assert {module(path) for path in FILES} - {"__init__", "__main__"} == set(READING_ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_those_above_it(path):
    if module(path) not in ("__init__", "__main__"):
        above = READING_ORDER[: READING_ORDER.index(module(path)) + 1]
        assert ours(imports(path)) <= set(above)


def test_the_order_of_the_ops():
    tree = ast.parse((PACKAGE / "ops" / "__init__.py").read_text(encoding="utf-8"))
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert [alias.name for alias in imported[-1].names] == OPS
    for path in (PACKAGE / "ops" / f"{name}.py" for name in OPS):
        used = {parts[2] for parts in imports(path) if parts[:2] == ("mamlnp", "ops")}
        assert used <= set(OPS[: OPS.index(path.stem)])


def test_the_imports_found_are_those_there_are(tmp_path):
    assert set(imports(PACKAGE / "ops" / "pool.py")) >= {
        ("mamlnp", "backend"),
        ("mamlnp", "op", "op"),
        ("mamlnp", "ops", "linear", "patches"),
        ("typing", "Any"),
    }
    hidden = PACKAGE.parent / "mamlnp" / "x.py"  # never written: only its place counts
    source = tmp_path / "x.py"
    source.write_text("def f():\n    import numba.core\n    from .nn import mlp\n")
    assert list(imports(source))[0] == ("numba", "core") if hidden == source else True


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_backend_imports_numba_or_cupy(path):
    if module(path) != "backend":
        assert not {parts[0] for parts in imports(path)} & {"numba", "cupy", "llvmlite"}


@pytest.mark.parametrize(
    "name", ["op", "ops", "tree", "autodiff", "losses", "optim", "maml"]
)
def test_what_computes_with_arrays_does_not_import_numpy(name):
    for path in (p for p in FILES if module(p) == name):
        assert "numpy" not in {parts[0] for parts in imports(path)}


# ---- arrays that live elsewhere: no function of NumPy's takes them


class Elsewhere:
    """A native array as another device's would be: a namespace of its own, and no way into
    NumPy's but the backend's."""

    __array_ufunc__ = None

    def __init__(self, held):
        self.held = np.asarray(held)

    def __array__(self, *args, **kwargs):
        raise TypeError("this array is elsewhere: only the backend may bring it here")

    def __getattr__(self, name):
        found = getattr(self.held, name)
        return there(found) if callable(found) else found

    def __len__(self):
        return len(self.held)

    def __setitem__(self, index, x):
        self.held[here(index)] = here(x)


def here(x):
    if isinstance(x, tuple | list):
        return type(x)(map(here, x))
    return x.held if isinstance(x, Elsewhere) else x


def there(function):
    """A function of NumPy's as one of Elsewhere's, which refuses NumPy's arrays."""

    def moved(*args, **kwargs):
        assert not any(isinstance(x, np.ndarray) for x in args)
        out = function(*map(here, args), **kwargs)
        return Elsewhere(out) if isinstance(out, np.ndarray | np.generic) else out

    return moved


for dunder in "add sub mul truediv pow matmul".split():
    for name in (f"__{dunder}__", f"__r{dunder}__"):
        setattr(Elsewhere, name, lambda a, b, f=name: there(getattr(a.held, f))(b))
for dunder in "neg abs eq ne lt le gt ge getitem".split():
    function = getattr(operator, dunder)
    setattr(Elsewhere, f"__{dunder}__", lambda *args, f=function: there(f)(*args))


class Namespace:
    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        found = getattr(self.module, name)
        return there(found) if callable(found) and not isinstance(found, type) else found


@pytest.fixture
def elsewhere(monkeypatch):
    namespace = Namespace(np)
    monkeypatch.setitem(backend.namespaces, Elsewhere, namespace)
    monkeypatch.setattr(backend, "is_native", lambda x: isinstance(x, Elsewhere | np.ndarray | np.generic))
    monkeypatch.setattr(backend, "default_namespace", lambda: namespace)
    monkeypatch.setattr(backend, "kernels_of", lambda x: Namespace(reference))
    monkeypatch.setattr(backend, "to_host", here)
    monkeypatch.setattr(
        backend, "to_device", lambda x: x if isinstance(x, Elsewhere) else Elsewhere(x)
    )


def value_and_cotangents(op, seed):
    args, params = op.draw(Draw(np.random.default_rng(seed)))
    floats = [x for x in ml.tree.leaves(args) if getattr(x, "dtype", None) == float]

    def f(*floats):
        rest = iter(floats)
        return op(
            *ml.tree.map(lambda x: next(rest) if getattr(x, "dtype", None) == float else x, args),
            **params,
        )

    out, pullback = ml.vjp(f, *floats)
    return [out, *pullback(ml.ones_like(out))]


def test_every_op_computes_elsewhere(request):
    expected = {
        (name, seed): [x.numpy() for x in value_and_cotangents(op, seed)]
        for name, op in registry.items()
        for seed in range(10)
    }
    request.getfixturevalue("elsewhere")
    for (name, seed), numbers in expected.items():
        for x, number in zip(value_and_cotangents(registry[name], seed), numbers, strict=True):
            assert type(x) is Array
            assert type(x.value) is Elsewhere, name
            np.testing.assert_allclose(x.numpy(), number, rtol=1e-12, atol=1e-12)


def loss(params, task):
    hidden = ml.nn.relu if False else ml.relu
    return hidden(task @ params).sum()
