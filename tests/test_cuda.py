"""CUDA: the kernels' sources compiled and run without a device, the seam's errors, and on a device,
where there is one, the kernels themselves."""

import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
from hypothesis import HealthCheck, given, settings, strategies as st

import mamlnp as ml
from mamlnp import backend
from mamlnp.backend import reference
from mamlnp.errors import DeviceError

SOURCES = sorted(Path(backend.__file__).parent.glob("*.cu"))
DTYPES = [np.float32, np.float64, np.int64, np.int32, np.uint8]


def has_device() -> bool:
    if importlib.util.find_spec("cupy") is None:
        return False
    try:
        with backend.using_device("cuda"):
            return True
    except DeviceError:
        return False


@pytest.fixture(params=["stand-in", "device"])
def cuda(request: Any, monkeypatch: Any) -> Any:
    """The module of CUDA kernels: its sources run thread by thread, and on a device."""
    if request.param == "device":
        if not has_device():
            pytest.skip("there is no CUDA device, or no CuPy")
    elif standin.COMPILER is None:
        pytest.skip("g++ is not installed: the CUDA sources cannot be run without a device")
    else:
        standin.installed(monkeypatch)
    return importlib.import_module("mamlnp.backend.cuda")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_sources_compile_for_a_device(source: Path, tmp_path: Path) -> None:
    command = ["nvcc", "-ptx", "-Werror", "all-warnings", "-arch=compute_80", source]
    done = subprocess.run([*command, "-o", tmp_path / "k.ptx"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "patches_f4" in (tmp_path / "k.ptx").read_text()


@st.composite
def windows(draw: Any) -> tuple[Any, ...]:
    size = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.integers(1, 3))
    sides = st.integers(0, 2)
    padding = draw(st.tuples(st.tuples(sides, sides), st.tuples(sides, sides)))
    shape = draw(st.tuples(st.integers(3, 6), st.integers(3, 6)))
    lead = draw(st.sampled_from([(), (1,), (2, 3)]))
    return (*lead, *shape, draw(st.integers(1, 3))), size, stride, padding


def numbers(seed: int, shape: Any, dtype: Any) -> np.ndarray:
    """Many of them equal."""
    return np.random.default_rng(seed).integers(0, 5, shape).astype(dtype)


def on(cuda: Any, x: np.ndarray) -> Any:
    return cuda.cupy.asarray(x)


same = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@same
@given(drawn=windows(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 100))
def test_windows_are_the_references(cuda: Any, drawn: Any, dtype: Any, seed: int) -> None:
    shape, size, stride, padding = drawn
    x = numbers(seed, shape, dtype)
    cut = reference.patches(x, size, stride, padding)
    np.testing.assert_array_equal(cuda.patches(on(cuda, x), size, stride, padding).get(), cut)
    p = numbers(seed + 1, cut.shape, dtype)
    folded = reference.fold(p, size, stride, padding, shape[-3:-1])
    found = cuda.fold(on(cuda, p), size, stride, padding, shape[-3:-1])
    np.testing.assert_array_equal(found.get(), folded)
    positions = reference.pool_positions(x, size, stride)
    np.testing.assert_array_equal(cuda.pool_positions(on(cuda, x), size, stride).get(), positions)


@same
@given(dtype=st.sampled_from(DTYPES), seed=st.integers(0, 100))
def test_put_adds_repeats_up(cuda: Any, dtype: Any, seed: int) -> None:
    values, rng = numbers(seed, (4, 5), dtype), np.random.default_rng(seed)
    positions = rng.integers(-12, 12, (4, 5))
    found = cuda.put(on(cuda, values), on(cuda, positions), (3, 4))
    expected = reference.put(values, positions, (3, 4))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.get(), expected)


def test_more_elements_than_threads(cuda: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(cuda, "THREADS", 3)
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 2)
    x = numbers(0, (2, 5, 5, 2), np.float32)
    found = cuda.patches(on(cuda, x), (3, 3), 1, ((1, 1), (1, 1)))
    np.testing.assert_array_equal(found.get(), reference.patches(x, (3, 3), 1, ((1, 1), (1, 1))))


def test_nan_wins_a_window(cuda: Any) -> None:
    x = np.float32([[[1], [np.nan]], [[3], [np.nan]]])
    assert cuda.pool_positions(on(cuda, x), (2, 2), 2).get().tolist() == [[[1]]]


# ---- the seam


@pytest.mark.usefixtures("cuda")
def test_arrays_decide_where_they_are_computed_with() -> None:
    x = ml.array([1.0, 2.0], device="cuda")
    assert x.device == "cuda:0" and ml.array([1.0]).device == "cpu"
    gradient = ml.grad(lambda x: (np.tanh(x) * x).sum())(x)
    assert gradient.device == "cuda:0"
    expected = ml.grad(lambda x: (np.tanh(x) * x).sum())(x.numpy())
    np.testing.assert_allclose(gradient.numpy(), expected.numpy())
    assert float(gradient[0]) == pytest.approx(float(expected[0]))
    with ml.using_device("cuda"):
        assert ml.array([1.0]).device == "cuda:0"
    assert ml.array([1.0]).device == "cpu"


@pytest.mark.usefixtures("cuda")
def test_devices_do_not_mix() -> None:
    x = ml.array([1.0, 2.0], device="cuda")
    for other in (ml.array([1.0, 2.0]), np.ones(2)):
        with pytest.raises(DeviceError, match=r"add: .* are on cpu and cuda:0. .*zeros_like"):
            x + other
    with pytest.raises(DeviceError, match="are on cpu and cuda:0"):
        ml.grad(lambda x: (x * np.zeros(2)).sum())(x)  # made on the host, in a loss
    np.testing.assert_array_equal((x + 1.0 + ml.zeros_like(x)).numpy(), [2, 3])


@pytest.mark.usefixtures("cuda")
def test_nothing_is_copied_unasked() -> None:
    x = ml.array([1.0, 2.0], device="cuda")
    with pytest.raises(DeviceError, match=r"asarray: this Array is on cuda:0, .* x.numpy\(\)"):
        np.asarray(x)
    np.testing.assert_array_equal(x.numpy(), [1, 2])


def test_without_cupy_or_device_one_line_says_what_to_do(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "mamlnp.backend.cuda", raising=False)
    with pytest.raises(DeviceError, match=r"needs CuPy, .*pip install 'mamlnp\[cuda\]'"):
        ml.array([1.0], device="cuda")
    if standin.COMPILER is None:
        return
    standin.installed(monkeypatch)
    cupy: Any = sys.modules["cupy"]
    for answer in (lambda: 0, lambda: 1 / 0):
        monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", answer)
        with pytest.raises(DeviceError, match=r"CuPy finds no device.*nvidia-smi"):
            ml.using_device("cuda").__enter__()


def test_there_are_two_kinds_of_devices() -> None:
    with pytest.raises(DeviceError, match=r"there is no 'tpu'\. Use one of: cpu, cuda"):
        ml.array([1.0], device="tpu")
