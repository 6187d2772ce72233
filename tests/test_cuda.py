"""CUDA: all sources compiled for a device, and run without one, the seam's errors, and on a device,
where there is one, the kernels and plans themselves."""

import importlib
import importlib.util
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
from hypothesis import HealthCheck, given, settings, strategies as st
from strategies import Program

import mamlnp as ml
from mamlnp import backend, checks, optim, parallel, ranks, tree
from mamlnp.backend import cublas, cuda_source, reference
from mamlnp.errors import CaptureError, DeviceError, ShapeError
from mamlnp.gradcheck import TOLERANCES

META = checks._algorithms()
DTYPES = [np.float32, np.float64, np.int64, np.int32, np.uint8]


@pytest.fixture(params=["stand-in", "device"])
def cuda(request: Any, monkeypatch: Any) -> Any:
    """The module of CUDA kernels: its sources run thread by thread, and on a device."""
    if request.param == "device":
        if not standin.has_device():
            pytest.skip("there is no CUDA device, or no CuPy")
    elif standin.COMPILER is None:
        pytest.skip("g++ is not installed: the CUDA sources cannot be run without a device")
    else:
        standin.installed(monkeypatch)
    return importlib.import_module("mamlnp.backend.cuda")


# ---- every source compiles for a device, by NVIDIA's own compiler


def says(text: str, folder: Path) -> str:
    """What NVIDIA's compiler says: NVRTC if it is there, else nvcc."""
    if standin.nvrtc() is not None:
        return standin.nvidia_says(text)
    if shutil.which("nvcc") is None:
        pytest.skip("there is neither NVRTC (pip install nvidia-cuda-nvrtc-cu12) nor nvcc")
    (folder / "k.cu").write_text(text)
    command = ["nvcc", "-ptx", "-Werror", "all-warnings", "-arch=compute_80", "-std=c++17"]
    command += [folder / "k.cu", "-o", folder / "k.ptx"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


class Sources:
    """In the place of CuPy's RawModule: keeps what would be compiled."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, code: str, options: Any) -> Any:
        assert "--fmad=false" in options  # or a maximum may equal nothing
        self.texts.append(code)
        return types.SimpleNamespace(get_function=lambda name: lambda grid, block, args: None)


@pytest.fixture
def sources(monkeypatch: Any) -> Any:
    standin.installed(monkeypatch)
    kept = Sources()
    cupy = importlib.import_module("mamlnp.backend.cuda").cupy
    monkeypatch.setattr(cupy, "RawModule", kept)
    monkeypatch.setattr(cublas, "product", lambda *_: None)
    with backend.using_device("cuda"):
        yield kept


def test_the_kernels_compile_for_a_device(sources: Any, tmp_path: Path) -> None:
    cuda = importlib.import_module("mamlnp.backend.cuda")
    for dtype in DTYPES:
        x = on(cuda, np.ones((2, 4, 4, 3), dtype))
        p = cuda.patches(x, (2, 2), 1, ((0, 0), (0, 0)))
        cuda.fold(p, (2, 2), 1, ((0, 0), (0, 0)), (4, 4))
        cuda.put(x, cuda.pool_positions(x, (4, 4), 4).reshape(-1)[:1], (9,))
    templates, kernels = cuda_source.TEMPLATES.read_text(), set()
    for text in sources.texts:
        assert text.startswith(templates)
        kernels.add(text.removeprefix(templates))
    assert len(kernels) == 3 * len(DTYPES) + 2
    renamed = [text.replace(" k0(", f" k{i}(") for i, text in enumerate(sorted(kernels))]
    assert not says("\n".join([templates, *renamed]), tmp_path)


@pytest.mark.parametrize("name", META)
def test_the_plan_of_a_meta_step_compiles_for_a_device(
    name: str, sources: Any, tmp_path: Path
) -> None:
    step, args = meta_step(name, np.float32, check=False)  # nothing runs
    step(*tree.map(on_device, args))
    (text,) = sources.texts
    assert text.count("__global__") > 20
    assert not says(text, tmp_path)


def test_what_is_wrong_does_not_compile(tmp_path: Path) -> None:
    assert "undefined" in says("__global__ void f(float *x) { x[0] = y; }\n", tmp_path)


# ---- the kernels


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
    monkeypatch.setattr(cuda_source, "THREADS", 3)
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 2)
    x = numbers(0, (2, 5, 5, 2), np.float32)
    found = cuda.patches(on(cuda, x), (3, 3), 1, ((1, 1), (1, 1)))
    np.testing.assert_array_equal(found.get(), reference.patches(x, (3, 3), 1, ((1, 1), (1, 1))))


def test_nan_wins_a_window(cuda: Any) -> None:
    x = np.float32([[[1], [np.nan]], [[3], [np.nan]]])
    assert cuda.pool_positions(on(cuda, x), (2, 2), 2).get().tolist() == [[[1]]]


# ---- plans


def on_device(x: Any) -> Any:
    return ml.array(x, device="cuda") if isinstance(x, np.ndarray) else x


def meta_step(name: str, dtype: Any, *, check: bool = True) -> tuple[Any, Any]:
    """A step and its arguments, in NumPy's arrays."""
    make, theta, task = META[name]
    algorithm = make()
    optimizer = optim.adam(0.01)

    def typed(x: Any) -> Any:
        x = x.numpy() if isinstance(x, ml.Array) else np.asarray(x)
        return x.astype(dtype) if x.dtype.kind == "f" else x

    params, task = tree.map(typed, (algorithm.init(theta), task))
    state = tree.map(typed, optimizer.init(tree.map(ml.array, params)))
    step = parallel.meta_step(algorithm.gradient, optimizer=optimizer, check=check)
    return step, (params, state, task)


def assert_agree(got: Any, expected: Any, dtype: Any = np.float64, scale: float = 1.0) -> None:
    tolerance = TOLERANCES["float32" if dtype == np.float32 else "rounding"]
    for a, b in zip(tree.leaves(got), tree.leaves(expected), strict=True):
        assert a.device.startswith("cuda")
        a, b = (x.numpy() if isinstance(x, ml.Array) else np.asarray(x) for x in (a, b))
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        bound = tolerance * max(scale, np.abs(b).max(initial=0, where=np.isfinite(b)))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", META)
def test_meta_steps_are_replayed(name: str, dtype: Any) -> None:
    """Three, each from the last: the first launches kernel by kernel, then there is a graph."""
    step, (params, state, task) = meta_step(name, dtype)
    here, there = (params, state), tree.map(on_device, (params, state))
    for _ in range(3):
        *here, _ = step(*here, task)
        *there, _ = step(*there, tree.map(on_device, task))
        assert_agree(there, here, dtype)


@pytest.mark.usefixtures("cuda")
def test_layers_are_replayed() -> None:
    layers = checks._layers()
    for name in (
        "indexing",
        "cross_entropy",
        "dropout",
        "embedding",
    ):  # which hold arrays of NumPy's
        del layers[name]
    rng = np.random.default_rng(0)
    args = {
        name: tree.map(lambda x: x.numpy() if isinstance(x, ml.Array) else x, given)
        for name, (_, given) in layers.items()
    }

    def everything(args: Any, weights: Any) -> Any:
        def weighted(name: str, given: Any) -> Any:
            return (layers[name][0](*given) * weights[name]).sum()

        return {
            name: (
                layers[name][0](*given),
                ml.grad(lambda given, name=name: weighted(name, given))(given),
            )
            for name, given in args.items()
        }

    shapes = {name: f(*args[name]).shape for name, (f, _) in layers.items()}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    compiled = ml.compile(everything)
    expected = everything(*tree.map(ml.array, (args, weights)))
    for _ in range(2):
        assert_agree(compiled(*tree.map(on_device, (args, weights))), expected)


SUMS = [
    ((3000, 2), 0), ((2, 3000), 1), ((40, 50), (0, 1)), ((7, 300, 5), 1), ((7, 5, 300), (0, 2)),
    ((1, 1), 0), ((0, 3), 0), ((3, 0), 0), ((5, 0), 1), ((), ()), ((33, 1, 65), (0,)),
]  # fmt: skip


@pytest.mark.usefixtures("cuda")
def test_reductions_of_all_sides() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape, _ in SUMS]
    numbers = [rng.integers(-9, 9, shape) for shape, _ in SUMS]
    arrays[0][1234, 1] = np.nan

    def f(arrays: Any, numbers: Any) -> Any:
        found = []
        for x, n, (_, axis) in zip(arrays, numbers, SUMS, strict=True):
            found += [ml.sum(x * 2.0, axis=axis), ml.sum(n, axis=axis), ml.sum(n > 0, axis=axis)]
            found.append(x - 1.0)
            if x.size:
                found += [ml.max(x, axis=axis), ml.min(n, axis=axis)]
        return found

    compiled = ml.compile(f)
    for _ in range(2):
        given = tree.map(on_device, (arrays, numbers))
        assert_agree(compiled(*given), f(*tree.map(ml.array, (arrays, numbers))))


@pytest.mark.usefixtures("cuda")
def test_reductions_to_few_results_take_two_steps(monkeypatch: Any) -> None:
    passes = importlib.import_module("mamlnp.compile.passes")
    monkeypatch.setattr(passes, "WORTHWHILE", 100)
    monkeypatch.setattr(passes, "WIDE", 40)
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 5, 3))

    def f(x: Any) -> Any:
        return ml.sum(x * x, axis=(1, 2, 3)), ml.max(x, axis=(0, 1, 4)), ml.min(x), x.mean((1, 2))

    compiled = ml.compile(f)
    assert_agree(compiled(on_device(x)), f(ml.array(x)))
    found = [n.op for n in compiled.latest().graph.nodes() if n.op in ("sum", "max", "min")]
    assert sorted(found) == ["max"] * 2 + ["min"] * 2 + ["sum"] * 4


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
def test_products_of_many_rows_are_sums_of_groups(lead: Any, monkeypatch: Any) -> None:
    passes = importlib.import_module("mamlnp.compile.passes")
    monkeypatch.setattr(passes, "FEWEST_ROWS", 3)
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((*lead, 36, n)) for n in (5, 4, 4))

    def f(a: Any, b: Any, c: Any) -> Any:
        first, second = a.swapaxes(-1, -2), ml.tanh(a).swapaxes(-1, -2)
        return first @ b, first @ c + second @ ml.tanh(b)  # the last adds to the one before

    compiled = ml.compile(f)
    for _ in range(2):
        assert_agree(compiled(*map(on_device, (a, b, c))), f(*map(ml.array, (a, b, c))))
    found = [n.shape for n in compiled.latest().graph.nodes() if n.op == "matmul"]
    assert found == [(*lead, 12, 5, 4)] * 3


@pytest.mark.usefixtures("cuda")
def test_many_arrays_are_copied_by_several_kernels(monkeypatch: Any) -> None:
    monkeypatch.setattr(cuda_source, "MOST_COPIES", 2)
    arrays = [np.full(n, n, np.float32) for n in range(5)] + [np.arange(4), np.array([True])]

    def f(arrays: Any) -> Any:
        return [x > 0 if x.dtype == bool else x + x for x in arrays]

    compiled = ml.compile(f)
    for _ in range(2):
        assert_agree(compiled(tree.map(on_device, arrays)), f(tree.map(ml.array, arrays)))


@pytest.mark.usefixtures("cuda")
def test_a_maximum_is_equal_to_itself_in_every_kernel() -> None:
    """A product and a sum that were rounded once in one kernel and twice in another would not be,
    and the gradient would vanish."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((64, 50)).astype(np.float32) for _ in range(2))
    f = ml.grad(lambda a, b: ml.max(a * b + 1, 1).sum() + ((a * b) * (a * b)).sum())
    assert_agree([ml.compile(f)(on_device(a), on_device(b))], [f(a, b)], np.float32)


@settings(parent=same, max_examples=30 if standin.has_device() else 5)
@given(data=st.data())
def test_random_programs_are_replayed_with_their_gradients(cuda: Any, data: Any) -> None:
    program = Program(data, np.float64, most=20)

    def f(*inputs: Any) -> Any:
        def total(inputs: Any) -> Any:
            return sum((out * (i + 1)).sum() for i, out in enumerate(program(*inputs)))

        return program(*inputs), ml.grad(total)(list(inputs))

    compiled, calls = ml.compile(f), [program.arguments(seed) for seed in (1, 2, 3)]
    expected = [f(*map(ml.array, inputs)) for inputs in calls]
    sizes = [x.numpy() for x in tree.leaves(expected) if x.dtype.kind == "f" and x.size]
    scale = max((float(np.abs(x).max()) for x in sizes), default=1.0)
    with backend.using_device("cuda"):
        for inputs, wanted in zip(calls, expected, strict=True):
            assert_agree(compiled(*map(ml.array, inputs)), wanted, scale=scale)


@pytest.mark.usefixtures("cuda")
def test_what_no_kernel_does_runs_between_two_graphs() -> None:
    def f(x: Any, n: Any) -> Any:
        y = ml.tanh(x) + 1.0
        chosen = ml.take(y.astype(np.float16), n).astype(np.float64)
        return ml.exp(chosen) * 2.0, y

    x, n = np.linspace(0, 1, 12).reshape(3, 4), np.array([3, 0, 11])
    compiled = ml.compile(f)
    for shift in range(3):
        expected = f(ml.array(x + shift), ml.array(n))
        assert_agree(compiled(on_device(x + shift), on_device(n)), expected)
    device = importlib.import_module("mamlnp.compile.device")
    (replay,) = compiled.latest().replays
    kinds = [isinstance(segment, device.Segment) for segment in replay.segments]
    assert kinds[0]
    assert kinds[-1]
    assert False in kinds


@pytest.mark.usefixtures("cuda")
def test_strided_arguments_and_constants() -> None:
    table = on_device(np.arange(12.0).reshape(3, 4))

    def f(x: Any) -> Any:
        return x @ table.T + table[:, :3], x.T * 2.0

    x = np.random.default_rng(0).standard_normal((4, 3)).T
    expected = (x @ table.numpy().T + table.numpy()[:, :3], x.T * 2.0)
    assert_agree(ml.compile(f)(ml.array(on_device(x.T).value.T)), expected)


@pytest.mark.usefixtures("cuda")
def test_bad_labels_are_told_in_this_call_or_the_next() -> None:
    def loss(logits: Any, labels: Any) -> Any:
        return ml.losses.cross_entropy(logits, labels, reduction="mean")

    compiled, logits = ml.compile(loss), on_device(np.zeros((2, 3)))
    good, bad = on_device(np.array([0, 2])), on_device(np.array([0, 3]))
    compiled(logits, good)
    with pytest.raises((ShapeError, CaptureError), match=r"class_labels: they run|out of range"):
        compiled(logits, bad)
        compiled(logits, good).numpy()  # waits for the device
        compiled(logits, good)
    assert np.isfinite(compiled(logits, good).numpy())

    def chosen(x: Any, n: Any) -> Any:
        return ml.take(x, n) * 2.0

    compiled = ml.compile(chosen)
    with pytest.raises((CaptureError, ShapeError), match=r"out of (range|bounds)"):
        compiled(on_device(np.ones(3)), on_device(np.array([0, 3]))).numpy()
        compiled(on_device(np.ones(3)), on_device(np.array([0, 0])))


@pytest.mark.usefixtures("cuda")
def test_an_index_out_of_range_is_told_without_a_plan_too() -> None:
    with pytest.raises(ShapeError, match=r"take: .* out of range for 3 elements"):
        ml.take(on_device(np.ones(3)), on_device(np.array([0, 3])))


@pytest.mark.usefixtures("cuda")
def test_a_plan_is_for_one_device() -> None:
    here, there = np.ones(3), on_device(np.ones(3))
    compiled = ml.compile(lambda x, y: x * y)
    assert compiled(here, here).device == "cpu"
    assert compiled(there, there).device == "cuda:0"
    with pytest.raises(DeviceError, match=r"arguments are on cpu and cuda:0\. Move them"):
        compiled(here, there)
    with pytest.raises(DeviceError, match=r"test_cuda.py:\d+: an array on cpu meets .*zeros_like"):
        ml.compile(lambda x: x * np.ones(3))(there)


def test_too_little_memory_says_how_much_and_what_lowers_it(monkeypatch: Any) -> None:
    standin.installed(monkeypatch)
    cupy: Any = sys.modules["cupy"]

    def empty(*_: Any) -> None:
        raise standin.OutOfMemoryError

    x = on_device(np.ones(3))
    monkeypatch.setattr(cupy, "empty", empty, raising=False)
    with pytest.raises(
        DeviceError, match=r"needs .* GB .* of which 1 of 2 GB are free\. Lower meta"
    ):
        ml.compile(lambda x: ml.tanh(x) @ x)(x)


def test_products_are_in_tf32_where_asked_for(monkeypatch: Any) -> None:
    standin.installed(monkeypatch)
    cuda, kinds = importlib.import_module("mamlnp.backend.cuda"), []

    def product(*args: Any) -> None:
        kinds.append(args[-1])

    monkeypatch.setattr(cublas, "product", product)
    monkeypatch.delenv("CUPY_TF32", raising=False)
    for dtype, setting in ((np.float32, "0"), (np.float32, "1"), (np.float64, "1")):
        monkeypatch.setenv("CUPY_TF32", setting)
        x = on_device(np.ones((3, 3), dtype))
        ml.compile(lambda x: x @ x, check=False)(x)
    assert cuda.products_type() == "TF32"
    first, second, third = kinds[0], kinds[2], kinds[4]
    assert first == cublas.COMPUTE_FLOAT32
    assert second == cublas.COMPUTE_TF32
    assert third == cublas.COMPUTE_FLOAT64


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
def test_an_array_made_of_one_on_a_device_stays_there() -> None:
    x = ml.array([1.0, 2.0], device="cuda")
    for made in (ml.array(x), ml.array(x.value), ml.array(x, np.float32)):
        assert made.device == "cuda:0"
        assert made.value is not x.value
        np.testing.assert_array_equal(made.numpy(), [1, 2])
    assert ml.array(x, np.float32).dtype == np.float32
    assert ml.array(x, device="cpu").device == "cpu"
    with pytest.raises(TypeError, match="is being differentiated"):
        ml.grad(lambda x: ml.array(x).sum())(x)


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
    with pytest.raises(DeviceError, match=r"needs CuPy, .*pip install cupy-cuda12x"):
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


# ---- over processes


@pytest.mark.parametrize("aware", [True, False])
def test_sums_over_ranks_go_through_the_host_unless_mpi_takes_device_memory(
    cuda: Any, monkeypatch: Any, aware: bool
) -> None:
    taken: list[type] = []

    def allreduce(_: Any, buffer: Any) -> None:  # of three ranks that have the same
        taken.append(type(buffer))
        buffer[...] = buffer * 3

    communicator = types.SimpleNamespace(rank=0, size=3, Allreduce=allreduce)
    monkeypatch.setattr(ranks, "takes_device_memory", lambda: aware)
    monkeypatch.setattr(ranks, "_mpi", lambda: types.SimpleNamespace(IN_PLACE=None))
    arrays = [cuda.cupy.ones((2, 3), np.float32), cuda.cupy.arange(4, dtype=np.float32)]
    sums = ranks.Ranks(communicator, communicator).total(arrays)
    assert taken == [cuda.cupy.ndarray if aware else np.ndarray]
    assert [backend.device_of(x) for x in sums] == ["cuda:0", "cuda:0"]
    np.testing.assert_array_equal(backend.to_host(sums[0]), np.full((2, 3), 3))
    np.testing.assert_array_equal(backend.to_host(sums[1]), [0, 3, 6, 9])
