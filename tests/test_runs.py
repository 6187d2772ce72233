import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, strategies as st

from mamlnp import runs
from mamlnp.errors import DataError


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    inner_lr: float = 0.01
    shots: tuple[int, ...] = (5, 10, 20)
    data: Path | None = None
    preset: str = "default"


@pytest.fixture
def run(tmp_path):
    return runs.create_run("sine", Config(), tmp_path / "run")


def trees():
    dtypes = st.sampled_from(["f4", "f8", "i8", "i4", "u1", "?", "f2", ">f8"])
    shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    arrays = npst.arrays(dtypes, shapes)
    leaves = st.one_of(
        arrays, arrays.map(np.transpose), arrays.map(lambda a: a[::2] if a.ndim else a)
    )
    names = st.text(min_size=1, max_size=4).filter(lambda name: "/" not in name)
    branches = st.dictionaries(names, st.deferred(lambda: leaves | branches), max_size=3)
    return branches


def assert_same_tree(a, b):
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same_tree(a[key], b[key])
    else:
        assert isinstance(b, np.ndarray)
        assert a.dtype.newbyteorder("=") == b.dtype
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)  # which takes NaN for equal to NaN


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(arrays=trees(), meta=st.dictionaries(st.text(), json_values, max_size=3), n=st.integers(0))
def test_a_checkpoint_gives_back_what_it_was_given(tmp_path_factory, arrays, meta, n):
    run = runs.create_run("sine", Config(), tmp_path_factory.mktemp("run"))
    run.save(n, arrays, meta)
    checkpoint = run.load()
    assert_same_tree(arrays, checkpoint.arrays)
    assert (checkpoint.iteration, checkpoint.meta) == (n, meta)
    assert checkpoint.versions == runs.versions()


def test_a_loaded_array_can_be_written_to(run):
    run.save(1, {"w": np.zeros(3)}, {})
    run.load().arrays["w"][0] = 1.0


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"w": 1.0}, "w is float"),
        ({"params": {"w": [np.zeros(2)]}}, "params/w is list"),
        ({"w": np.zeros(2, complex)}, "w is complex128"),
        ({"w": np.array(["a"])}, "w is <U1"),
        ({"a/b": np.zeros(2)}, "'a/b'"),
        ({"params": {3: np.zeros(2)}}, "3 in params"),
        ({"": np.zeros(2)}, "'' in arrays"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_refused(run, arrays, said):
    with pytest.raises(TypeError, match=said):
        run.save(1, arrays, {})
    assert not (run.path / runs.CHECKPOINT).exists()


def test_equal_runs_write_equal_checkpoints(tmp_path):
    script = (
        "import sys, pathlib, numpy as np, dataclasses; from mamlnp import runs\n"
        "@dataclasses.dataclass\n"
        "class Config: seed: int = 0\n"
        "run = runs.create_run('sine', Config(), pathlib.Path(sys.argv[1]))\n"
        "run.save(3, {'b': np.ones(3), 'a': {'w': np.zeros(2)}}, {'best': 1, 'mean': 0.5})\n"
    )
    for name in "ab":
        subprocess.run([sys.executable, "-c", script, tmp_path / name], check=True)
    a, b = ((tmp_path / name / runs.CHECKPOINT).read_bytes() for name in "ab")
    assert a == b


@given(data=st.data())
def test_a_cut_off_checkpoint_is_a_data_error(tmp_path_factory, data):
    run = runs.create_run("sine", Config(), tmp_path_factory.mktemp("run"))
    run.save(1, {"w": np.arange(10.0)}, {})
    path = run.path / runs.CHECKPOINT
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DataError, match=f"{path}: is damaged"):
        run.load()


@given(data=st.data())
def test_a_damaged_byte_is_a_data_error_or_changes_nothing(tmp_path_factory, data):
    run = runs.create_run("sine", Config(), tmp_path_factory.mktemp("run"))
    run.save(1, {"w": np.arange(10.0)}, {"seconds": 1.5})
    written, path = run.load(), run.path / runs.CHECKPOINT
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = run.load()
    except DataError as error:
        assert str(path) in str(error)
    else:  # white space, or a name in the header that nobody reads
        assert loaded._replace(arrays=None) == written._replace(arrays=None)
        assert_same_tree(loaded.arrays, written.arrays)


def test_the_checkpoint_before_a_damaged_one_is_taken_and_that_is_said(run, capsys):
    for n in (1, 2, 3):
        run.log(n, {"loss": 1 / n})
        run.save(n, {"w": np.full(3, n)}, {})
    assert run.load().iteration == 3
    path = run.path / runs.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1])
    resumed = run.resume()
    assert resumed.iteration == 2
    assert (resumed.arrays["w"] == 2).all()
    assert (run.path / runs.METRICS).read_text().count("\n") == 3  # the header and two rows
    told = capsys.readouterr().err
    assert told.startswith(f"{path}: is damaged")
    assert f"Taken instead: {run.path / runs.PREVIOUS}, of iteration 2." in told
    path.unlink()  # as if a process were killed between two names
    assert run.load().iteration == 2
    (run.path / runs.PREVIOUS).write_bytes(b"")
    with pytest.raises(DataError, match=f"{runs.PREVIOUS}: is damaged"):
        run.load()


def test_two_processes_do_not_train_in_one_folder(run):
    script = (
        "import sys, pathlib; from mamlnp import errors, runs\n"
        "try:\n"
        "    with runs.open_run(pathlib.Path(sys.argv[1])).locked(): print('locked')\n"
        "except errors.DataError as error: print(error)\n"
    )

    def other():
        command = [sys.executable, "-c", script, run.path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with run.locked():
        assert other().startswith(f"{run.path}: another process is training in this folder.")
    assert other() == "locked\n"


def test_what_a_killed_process_left_half_written_is_removed(run):
    left = run.path / ".checkpoint.123.safetensors"
    left.write_bytes(b"half")
    with run.locked():
        assert not left.exists()
    assert (run.path / runs.CONFIG).exists()


def test_a_foreign_checkpoint_is_a_data_error(run):
    import safetensors.numpy

    safetensors.numpy.save_file({"w": np.zeros(2)}, run.path / runs.CHECKPOINT)
    with pytest.raises(DataError, match="not a checkpoint of mamlnp"):
        run.load()


def test_a_missing_checkpoint_is_a_data_error(run):
    with pytest.raises(DataError, match="there is no checkpoint"):
        run.load()


@pytest.fixture
def files_of_at_most():
    """A limit on the size of files: writing past it fails in the middle, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


def test_a_full_disk_leaves_the_old_checkpoint(run, files_of_at_most):
    run.save(1, {"w": np.zeros(10_000)}, {})
    told = pytest.raises(DataError, match=r"checkpoint\.safetensors: cannot be read or written")
    with told, files_of_at_most(20_000):
        run.save(2, {"w": np.ones(10_000)}, {})
    assert run.load().iteration == 1
    assert sorted(os.listdir(run.path)) == [runs.CHECKPOINT, runs.CONFIG]


def test_a_full_disk_at_a_row_is_a_data_error_and_the_run_resumes(run, files_of_at_most):
    run.log(1, {"loss": 0.5})
    run.save(1, {}, {})
    size = (run.path / runs.METRICS).stat().st_size
    told = pytest.raises(DataError, match=r"metrics\.csv: cannot be read or written")
    with told, files_of_at_most(size + 3):
        run.log(2, {"loss": 0.25})
    assert (run.path / runs.METRICS).stat().st_size == size + 3
    run.resume()
    run.log(2, {"loss": 0.25})
    assert (run.path / runs.METRICS).read_text() == "iteration,loss\n1,0.5\n2,0.25\n"


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="this system has no users to change to")
def test_a_folder_that_may_not_be_written_to_is_a_data_error_and_nothing_is_lost():
    with tempfile.TemporaryDirectory() as scratch:  # tmp_path is not for other users to enter
        os.chmod(scratch, 0o755)
        run = runs.create_run("sine", Config(), Path(scratch) / "run")
        run.log(1, {"loss": 0.5})
        run.save(1, {"w": np.zeros(3)}, {})
        before = {path.name: path.read_bytes() for path in run.path.iterdir()}
        os.chmod(run.path, 0o555)
        user = os.geteuid()
        if not user:
            os.seteuid(65534)  # everything is allowed to root
        try:
            for what in (
                lambda: run.save(2, {"w": np.ones(3)}, {}),
                lambda: run.log(2, {"loss": 0.25}),
                run.locked().__enter__,
            ):
                with pytest.raises(DataError, match=r"cannot be .*\(Permission denied\)") as told:
                    what()
                assert f"{told.value}".startswith(f"{run.path}")
                assert "\n" not in f"{told.value}"
            assert run.load().iteration == 1
        finally:
            os.seteuid(user)
        assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
        os.chmod(run.path, 0o755)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_stopped_at_any_moment_changes_nothing(run, monkeypatch, moment, error):
    run.save(1, {"w": np.zeros(3)}, {})

    def stop(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(moment, stop)
        with pytest.raises((DataError, KeyboardInterrupt)):
            run.save(2, {"w": np.ones(3)}, {})
    assert run.load().iteration == 1
    assert sorted(os.listdir(run.path)) == [runs.CHECKPOINT, runs.CONFIG]


def test_a_killed_process_leaves_a_whole_checkpoint(run):
    script = (
        "import sys, pathlib, itertools, numpy as np; from mamlnp import runs\n"
        "run = runs.open_run(pathlib.Path(sys.argv[1]))\n"
        "for n in itertools.count(1): run.save(n, {'w': np.full(300_000, n)}, {})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, run.path])
    try:
        while not (run.path / runs.CHECKPOINT).exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    checkpoint = run.load()
    assert (checkpoint.arrays["w"] == checkpoint.iteration).all()


@given(
    every=st.integers(1, 4),
    saved=st.integers(1, 10),
    went_on_to=st.integers(0, 5),
    torn=st.integers(0, 12),
)
def test_an_interrupted_and_resumed_run_has_the_metrics_of_an_unbroken_one(
    tmp_path_factory, every, saved, went_on_to, torn
):
    def train(run, first, last):
        for n in range(first, last + 1):
            if n % every == 0:
                run.log(n, {"train_loss": n / 3, "name": f"a, {n}", "accuracy": np.float32(1 / n)})

    unbroken = runs.create_run("sine", Config(), tmp_path_factory.mktemp("unbroken"))
    train(unbroken, 1, 20)

    broken = runs.create_run("sine", Config(), tmp_path_factory.mktemp("broken"))
    train(broken, 1, saved)
    broken.save(saved, {}, {})
    train(broken, saved + 1, saved + went_on_to)
    with (broken.path / runs.METRICS).open("a") as file:
        file.write("16,5.33,0.0625\n"[:torn])

    resumed = runs.open_run(broken.path, "sine")
    train(resumed, resumed.resume().iteration + 1, 20)
    expected = (unbroken.path / runs.METRICS).read_bytes()
    assert (broken.path / runs.METRICS).read_bytes() == expected


def test_rows_have_the_columns_of_the_first(run):
    run.log(1, {"loss": 0.5})
    with pytest.raises(DataError, match="has columns iteration,loss but the row has iteration,acc"):
        run.log(2, {"acc": 0.5})


def test_a_damaged_row_is_a_data_error(run):
    run.save(3, {}, {})
    (run.path / runs.METRICS).write_text("iteration,loss\n1,0.5\nx,0.5\n3,0.5\n")
    with pytest.raises(DataError, match=r"metrics\.csv: line 3 "):
        run.resume()


def test_resume_says_when_the_bits_will_differ(run, capsys, monkeypatch):
    run.save(1, {}, {})
    run.resume()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(runs, "versions", lambda: then | {"blas_architecture": "Z80", "cpu": "Z80"})
    then = run.load().versions
    run.resume()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"blas_architecture {then['blas_architecture']} -> Z80" in said
    assert "cpu" not in said


def test_versions_say_which_blas_numpy_uses():
    found = runs.versions()
    assert found["numpy"] == np.__version__
    built_with = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    if "openblas" in built_with:
        assert found["blas"].startswith("openblas")
        assert found["blas_architecture"]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "config", [Config(), Config(seed=3, shots=(1,), data=Path("some/where"), inner_lr=float("inf"))]
)
def test_a_config_comes_back_as_it_was(tmp_path, config):
    runs.create_run("sine", config, tmp_path)
    run = runs.open_run(tmp_path, "sine")
    assert run.experiment == "sine"
    assert run.config_as(Config) == config


def test_a_config_that_would_not_come_back_is_refused(tmp_path):
    @dataclasses.dataclass
    class Nested:
        inner: Config

    with pytest.raises(TypeError, match="comes back from JSON as"):
        runs.create_run("sine", Nested(Config()), tmp_path)
    with pytest.raises(TypeError, match="comes back from JSON as"):
        runs.create_run("sine", Config(shots=[1, 2]), tmp_path)
    assert not (tmp_path / runs.CONFIG).exists()


def test_a_config_of_another_version_is_a_data_error(run):
    @dataclasses.dataclass
    class Newer:
        seed: int = 0

    with pytest.raises(DataError, match=r"config\.json: does not fit .*Newer"):
        run.config_as(Newer)


def test_a_new_run_takes_the_first_free_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [runs.create_run("sine", Config()).path for _ in range(3)]
    assert paths == [Path("runs/sine"), Path("runs/sine-2"), Path("runs/sine-3")]


def test_a_taken_folder_is_a_data_error(run):
    with pytest.raises(DataError, match=f"not empty. .* --resume {run.path}"):
        runs.create_run("sine", Config(), run.path)


def test_a_folder_that_cannot_be_made_is_a_data_error(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("a file is in the way")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="runs/sine: cannot be read or written"):
        runs.create_run("sine", Config())
    with pytest.raises(DataError, match="runs/mine: cannot be read or written"):
        runs.create_run("sine", Config(), Path("runs/mine"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"experiment": "sine"}', b"\xff\xfe"])
def test_a_damaged_config_is_a_data_error(run, content):
    (run.path / runs.CONFIG).write_bytes(content)
    with pytest.raises(DataError, match=r"config\.json: is damaged"):
        runs.open_run(run.path)


def test_what_is_not_a_run_is_a_data_error(tmp_path, run):
    with pytest.raises(DataError, match="there is no such folder"):
        runs.open_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no config\.json"):
        runs.open_run(tmp_path)
    with pytest.raises(DataError, match="is a run of sine, not of omniglot"):
        runs.open_run(run.path, "omniglot")
