"""What a user can get wrong with images and checkpoints: one clear line, exit status 2, no run."""

import io
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mamlnp as ml
from mamlnp import cli, nn
from mamlnp.runs import versions
from mamlnp.tasks.sinusoid import Sinusoids

TINY = ["--meta-iterations", "2", "--validate-every", "1", "--validation-tasks", "2"]
SMALL = [*TINY, "--filters", "2", "--num-ways", "2", "--num-queries", "2", "--inner-steps", "1"]
FOLDER = ["train", "folder", "--data", "data", "--image-size", "16", *SMALL]
MINI = ["train", "miniimagenet", "--data", "data", *SMALL]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MAMLNP_DATA", raising=False)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a command that failed has said."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def image(path: Path, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).integers(0, 256, (20, 24, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path, kind)


def classes(folder: str = "data", count: int = 8, each: int = 4) -> None:
    for c in range(count):
        for i in range(each):
            image(Path(folder) / f"class{c}" / f"{i}.png")


def tables() -> None:
    for split in ("train", "val", "test"):
        lines = ["filename,label"]
        for c in range(3):
            for i in range(4):
                image(Path("data/images") / f"{split}{c}{i}.jpg", "JPEG")
                lines.append(f"{split}{c}{i}.jpg,{split}{c}")
        Path(f"data/{split}.csv").write_text("\n".join(lines))


def cut(path: str) -> None:
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])


def bomb(path: str) -> None:
    """A PNG of a hundred bytes that claims to be 60,000 x 60,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def missing_folder() -> None:
    pass


def empty_class() -> None:
    classes()
    Path("data/class9").mkdir()


def too_few_images() -> None:
    classes()
    for i in (1, 2, 3):
        Path(f"data/class2/{i}.png").unlink()


def too_few_classes() -> None:
    classes(count=4)


def truncated_png() -> None:
    classes()
    cut("data/class1/2.png")


def truncated_jpeg() -> None:
    tables()
    cut("data/images/val11.jpg")


def image_bomb() -> None:
    classes()
    bomb("data/class1/2.png")


def text_for_an_image() -> None:
    classes()
    Path("data/class1/2.png").write_text("hello")


def pipe_for_an_image() -> None:
    classes()
    Path("data/class1/2.png").unlink()
    os.mkfifo("data/class1/2.png")


def pickle_that_runs_code() -> None:
    Path("data").mkdir()
    for split in ("train", "val", "test"):
        Path(f"data/mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(Evil()))


def table_with_a_missing_file() -> None:
    tables()
    Path("data/images/train12.jpg").unlink()


@pytest.mark.parametrize(
    ("make", "arguments", "expected"),
    [
        (missing_folder, FOLDER, "data: there is no such folder"),
        (missing_folder, MINI, "data: there is no such folder"),
        (empty_class, FOLDER, "class9: holds no images"),
        (too_few_images, FOLDER, "num_shots 1 + num_queries 2 images of a class, but class2 has 1"),
        (
            too_few_classes,
            FOLDER,
            "data: sample: num_ways is 2 but there are 1",
        ),
        (
            classes,
            [*FOLDER, "--image-size", "15"],
            "--image-size: 15 is nothing after four",
        ),
        (classes, [*FOLDER, "--num-ways", "1"], "--num-ways: 1 leaves nothing to tell apart"),
        (classes, [*FOLDER, "--inner-lr", "inf"], "--inner-lr: is inf. Pass a number that is"),
        (classes, [*FOLDER, "--seed", "-1"], "--seed: is -1. Pass a number that is positive, or 0"),
        (truncated_png, FOLDER, "class1/2.png: is damaged"),
        (truncated_jpeg, MINI, "val11.jpg: is damaged"),
        (image_bomb, FOLDER, "class1/2.png: claims"),
        (text_for_an_image, FOLDER, "class1/2.png: is none of PNG, JPEG"),
        (pipe_for_an_image, FOLDER, "class1/2.png: is no file"),
        (pickle_that_runs_code, MINI, "posix.system"),
        (table_with_a_missing_file, MINI, "train.csv: line 8: train12.jpg is not among the images"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_images(
    make: Callable[[], None],
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make()
    assert expected in failure(capsys, *arguments)
    assert not Path("runs").exists() and not Path("pwned").exists()


def trained(out: str, *options: str) -> None:
    cli.main([*FOLDER, *options, "--out", out])


def test_a_checkpoint_of_another_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    classes(count=12)
    trained("two")
    trained("three", "--filters", "3")
    checkpoint = Path("three/checkpoint.safetensors").read_bytes()
    Path("two/checkpoint.safetensors").write_bytes(checkpoint)
    capsys.readouterr()
    for arguments in (
        ["evaluate", "two", "--tasks", "2"],
        ["train", "folder", "--resume", "two"],
        ["adapt", "two", "--support", "data", "--query", "data"],
    ):
        line = failure(capsys, *arguments)
        assert "two/checkpoint.safetensors: is of another architecture" in line
        assert "float32[3], not float32[2]" in line


def test_a_half_written_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    classes(count=12)
    trained("run")
    cut("run/checkpoint.safetensors")
    capsys.readouterr()
    cli.main(["evaluate", "run", "--tasks", "2"])
    line, *_ = capsys.readouterr().err.splitlines()
    assert "run/checkpoint.safetensors: is damaged" in line
    assert "Taken instead: run/checkpoint-previous.safetensors, of iteration 1." in line
    cut("run/checkpoint-previous.safetensors")
    for arguments in (
        ["evaluate", "run"],
        ["train", "folder", "--resume", "run"],
        ["adapt", "run", "--support", "data", "--query", "data"],
    ):
        assert "checkpoint-previous.safetensors: is damaged" in failure(capsys, *arguments)


def test_json_that_is_nested_too_deep(capsys: pytest.CaptureFixture[str]) -> None:
    deep = "[" * 100_000
    classes(count=12)
    trained("run")
    cli.main(["evaluate", "run", "--tasks", "2"])
    cli.main(["vectors", "vectors"])
    capsys.readouterr()
    for damaged, arguments, said in (
        (
            "vectors/manifest.json",
            ["verify", "vectors", "none.npz"],
            "has no readable manifest.json",
        ),
        ("run/evaluation.json", ["export", "run", "exported.safetensors"], "is damaged"),
        ("run/classes.json", ["evaluate", "run"], "cannot be read"),
        ("run/config.json", ["evaluate", "run"], "is damaged or not of a run"),
    ):
        Path(damaged).write_text(deep)
        line = failure(capsys, *arguments)
        assert said in line and "recursion" in line


def test_classes_that_are_not_those_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The split is drawn from the folders that are there: one more could make a training class
    a held-out one."""
    classes(count=12)
    trained("run")
    classes(count=13)
    capsys.readouterr()
    for arguments in (["evaluate", "run", "--tasks", "2"], ["train", "folder", "--resume", "run"]):
        line = failure(capsys, *arguments)
        assert "run/classes.json: the " in line and "not those the run began with" in line
    shutil.rmtree("data/class12")
    cli.main(["evaluate", "run", "--tasks", "2"])


def test_a_resumed_run_may_have_its_data_and_threads_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    classes(count=12)
    trained("run")
    Path("data").rename("moved")
    capsys.readouterr()
    assert "there is no such folder" in failure(capsys, "train", "folder", "--resume", "run")
    cli.main(["train", "folder", "--resume", "run", "--data", "moved", "--threads", "1"])
    capsys.readouterr()
    line = failure(capsys, "train", "folder", "--resume", "run", "--data", "moved", "--seed", "1")
    assert "keeps its settings but data and threads" in line


def test_a_baseline_is_no_learner(capsys: pytest.CaptureFixture[str]) -> None:
    classes(count=12)
    trained("run", "--baseline", "pretrained")
    cli.main(["evaluate", "run", "--tasks", "2"])
    capsys.readouterr()
    for arguments in (
        ["adapt", "run", "--support", "data", "--query", "data"],
        ["export", "run", "theta.safetensors"],
    ):
        assert "a pretrained baseline has no outputs for new" in failure(capsys, *arguments)
    assert not Path("theta.safetensors").exists()


def test_an_exported_file_is_no_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    classes(count=12)
    trained("run")
    cli.main(["evaluate", "run", "--tasks", "2"])
    cli.main(["export", "run", "run/checkpoint.safetensors"])
    capsys.readouterr()
    for arguments in (["evaluate", "run"], ["train", "folder", "--resume", "run"]):
        assert "is no checkpoint of a training" in failure(capsys, *arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_ways", "5"), ("num_ways", 2.5), ("inner_lr", None), ("loss", "max"), ("gamma", 1)],
)
def test_settings_of_other_types(name: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    classes(count=12)
    trained("run")
    record = json.loads(Path("run/config.json").read_text())
    record["config"][name] = value
    Path("run/config.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert f"run/config.json: does not fit Config ({name} is {value!r})" in failure(
        capsys, "evaluate", "run"
    )


@pytest.mark.parametrize("record", ['{"experiment": ["a"], "config": {}, "versions": {}}', "[]"])
def test_a_run_of_nothing(record: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/config.json").write_text(record)
    assert "run/config.json: is damaged" in failure(capsys, "evaluate", "run")


def test_more_than_there_is_memory_for(capsys: pytest.CaptureFixture[str]) -> None:
    classes(count=12)
    line = failure(capsys, *FOLDER, "--filters", "10000000000000")
    assert "too little memory" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "omniglot", "--preset", "paper"], "there is no 'paper' of omniglot"),
        (["train", "folder"], "--data: not given"),
        (
            [*FOLDER, "--train-classes", "a.txt"],
            "--validation-classes, --test-classes: not given, but the other lists are",
        ),
        (["adapt", "nowhere", "--support", "data", "--query", "data"], "nowhere: is neither"),
        (["adapt", "sine", "--support", "data", "--query", "data"], "does not classify images"),
        (
            ["adapt", "omniglot-5w1s", "--support", "data", "--query", "data"],
            "data: holds 8 classes, but omniglot-5w1s tells 5 apart",
        ),
        (
            ["adapt", "omniglot-5w1s", "--support", "no", "--query", "data"],
            "no: there is no such folder",
        ),
        (["export", "nowhere", "theta.safetensors"], "nowhere: there is no such folder"),
    ],
)
def test_bad_arguments(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    classes()
    assert expected in failure(capsys, *arguments)
    assert not Path("runs").exists() and not Path("predictions.csv").exists()


def test_an_image_that_is_no_image_among_the_queries(capsys: pytest.CaptureFixture[str]) -> None:
    classes(count=3)
    classes("query", count=1)
    Path("query/class0/0.png").write_bytes(io.BytesIO(b"nothing").getvalue())
    line = failure(capsys, "adapt", "omniglot-5w1s", "--support", "data", "--query", "query")
    assert "query/class0/0.png: is none of" in line


@pytest.mark.parametrize("rng", [0, None, np.random.RandomState(0)])
def test_what_is_no_generator_is_refused_in_a_line(rng: Any) -> None:
    says = r": rng is .*, not a generator. Pass numpy.random.default_rng\(0\)"
    with pytest.raises(TypeError, match="init" + says):
        nn.mlp((1, 4, 1)).init(rng=rng)
    with pytest.raises(TypeError, match="sample" + says):
        Sinusoids().sample(2, num_shots=1, num_queries=1, rng=rng)


def test_arrays_of_the_other_byte_order_are_taken() -> None:
    x = np.array([1.0, 2.0, 3.0], ">f4")
    for f in (
        lambda x: (ml.tanh(x) * x * np.ones(3, "f4")).sum(),
        ml.compile(lambda x: (x * x).sum()),
    ):
        expected = ml.grad(f)(x.astype("f4"))
        found = ml.grad(f)(x)
        assert found.dtype == np.float32 and found.dtype.isnative
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    assert ml.array(x).dtype.isnative and (ml.array([1.0], np.float32) * x[:1]).dtype.isnative


def test_a_scalar_of_numpys_keeps_its_type_where_it_is_differentiated() -> None:
    assert ml.grad(lambda x: x * x)(np.float32(2)).dtype == np.float32
    assert (ml.array([1.0], np.float32) * np.float64(2)).dtype == np.float32  # an operand is weak


def test_another_librarys_array_is_taken_by_its_numbers() -> None:
    class Theirs:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.array([1.0, 2.0])

    assert ml.grad(lambda x: (x * Theirs()).sum())(Theirs()).numpy().tolist() == [1.0, 2.0]


def test_the_package_lists_what_it_has_and_its_version() -> None:
    assert {"load", "initialisations", "rl", "__version__"} <= set(dir(ml))
    assert ml.__version__ == versions()["mamlnp"] and ml.rl.__name__ == "mamlnp.rl"
