"""Damaged and hostile files for every reader, and random words for the command line.

    python benchmarks/fuzz.py [--inputs 100000] [--json FILE]

Each input is a valid one with some bytes flipped, cut out, doubled, inserted or taken from another,
with numbers made extreme; some pickles and zips name what they should not. A reader must return, or
raise DataError, whose text is one line; the command line must end with status 0, 1 or 2 and print
no traceback. Nothing may run that a file asks to run, nothing may be written outside the folder
that a reader is given, and no input may take more than some seconds or some gigabytes.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import pickle
import random
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tyro
from PIL import Image

from mamlnp import cli, diagnosis, initialisations, runs
from mamlnp.errors import DataError
from mamlnp.experiments import classification, sine
from mamlnp.runs import atomic_write, versions
from mamlnp.tasks import images, miniimagenet, omniglot

MEMORY = 6 << 30  # of address space: a bomb must fail, not swap
SECONDS = 20


@dataclass(frozen=True)
class Options:
    """Damaged and hostile input for every reader.

    Attributes:
        inputs: in all, divided over the readers.
        only: readers; all if not given.
        seed: of everything random.
        json: write the counts here too.
    """

    inputs: int = 100_000
    only: tuple[str, ...] = ()
    seed: int = 0
    json: Path | None = None


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One of some valid contents with up to eight changes."""
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        at = rng.randrange(len(content) + 1)
        length = min(rng.choice([1, 1, 2, 4, 16, 256]), len(content) - at)
        if rng.random() < 0.01:  # deeper than a parser may recurse
            content[at:at] = rng.choice([b"[", b'{"a":', b"("]) * 100_000
        match rng.randrange(7):
            case 0 if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(content):
                content[at] = rng.randrange(256)
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length] * rng.choice([1, 1, 50])
            case 4:
                content[at:at] = rng.randbytes(rng.choice([1, 4, 32]))
            case 5:
                other = rng.choice(seeds)
                start = rng.randrange(len(other))
                content[at : at + length] = other[start : start + length]
            case 6:
                extreme = rng.choice([0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000])
                content[at : at + 4] = extreme.to_bytes(4, rng.choice(["little", "big"]))
    return bytes(content[: rng.randrange(len(content) + 1)] if rng.random() < 0.1 else content)


# ---- the readers: each gives valid contents, and reads one file


def pictures() -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"):
        for mode in ("RGB", "L", "P"):
            file = io.BytesIO()
            pixels = rng.integers(0, 256, (9, 7, 3)).astype(np.uint8)
            with contextlib.suppress(OSError):
                Image.fromarray(pixels).convert(mode).save(file, kind)
                found.append(file.getvalue())
    return found


def zips() -> list[bytes]:
    found = []
    names = ["a/1.png", "b/1.png"], ["../up.png", "a/1.png"], ["/root.png"], ["a/../../b.png"]
    for paths in names:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in paths:
                archive.writestr(path, pictures()[0])
            if paths[0].startswith("/"):
                archive.writestr("bomb.png", bytes(200_000_000))
        found.append(file.getvalue())
    return found


def read_zip(path: Path) -> None:
    with images.images_in_zip(path) as found:
        images.decode(list(found.values()), size=8, channels=3)


def characters() -> list[bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(4):
            drawing = io.BytesIO()
            Image.new("1", (105, 105), i % 2).save(drawing, "PNG")
            name = f"images_background/Greek/character0{i % 2}/{i}.png"
            archive.writestr(name, drawing.getvalue())
    return [file.getvalue()]


def read_characters(path: Path) -> None:
    found = omniglot._read_characters("images_background", path)
    omniglot._images(found, "nearest")


class Hostile:
    """Asks whoever unpickles it to write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was_run",)


def pickles() -> list[bytes]:
    images_ = np.zeros((4, 6, 6, 3), np.uint8)
    content: dict[str, Any] = {"image_data": images_, "class_dict": {"a": [0, 1], "b": [2, 3]}}
    found = [pickle.dumps(content, protocol) for protocol in range(6)]
    return [*found, *(pickle.dumps({**content, "x": Hostile()}, p) for p in range(6))]


def checkpoints() -> list[bytes]:
    found = []
    for arrays in ({"state": {"w": np.arange(6.0)}, "best": {}}, {"params": {"w": np.ones(2)}}):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.safetensors"
            checkpoint = runs.Checkpoint("sine", {"seed": 0}, 3, arrays, {"best": {}}, versions())
            runs.write_checkpoint(path, checkpoint)
            found.append(path.read_bytes())
    return found


def configs() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        run = runs.create_run("sine", sine.Config(), Path(folder) / "run")
        return [(run.path / runs.CONFIG).read_bytes()]


def read_config(path: Path) -> None:
    run = runs.open_run(path.parent)
    run.config_as(sine.Config)


@functools.cache
def other_files() -> dict[str, bytes]:
    """What is in a run's folder beside its checkpoint."""
    names = (runs.CONFIG, configs), (runs.METRICS, metrics), (runs.PREVIOUS, checkpoints)
    return {name: contents()[0] for name, contents in names}


def read_run(path: Path) -> None:
    """Resume a run whose checkpoint is damaged: the one before it must be taken, in one line."""
    for name, content in other_files().items():
        (path.parent / name).write_bytes(content)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            runs.open_run(path.parent).resume()
    except DataError as error:
        raise AssertionError("the checkpoint before it was not taken") from error
    if said.getvalue():
        assert said.getvalue().count("\n") == 1
        raise DataError(said.getvalue()[:-1])


def metrics() -> list[bytes]:
    file = io.StringIO()
    table = csv.writer(file)
    table.writerow(["iteration", "train_loss"])
    table.writerows([n, 1 / n] for n in range(1, 6))
    return [file.getvalue().encode()]


def read_metrics(path: Path) -> None:
    runs.Run(path.parent, "sine", {}, {})._rewind(3)


def evaluations() -> list[bytes]:
    rows = [{"setting": "sine", "method": "MAML", "steps": 1, "mean": 0.5}]
    return [json.dumps({"command": "mamlnp train sine", "rows": rows}).encode()]


def class_lists() -> list[bytes]:
    return [json.dumps({"train": {"a": 2, "b": 3}, "test": {"c": 4}}).encode()]


def read_class_list(path: Path) -> None:
    data: Any = {
        "train": SimpleNamespace(names=("a", "b"), counts=np.array([2, 3])),
        "test": SimpleNamespace(names=("c",), counts=np.array([4])),
    }
    classification.check_classes(runs.Run(path.parent, "folder", {}, {}), data)


def numbers() -> list[bytes]:
    found = []
    for values in (np.arange(6.0).reshape(2, 3), np.array([Hostile()], object)):
        file = io.BytesIO()
        np.save(file, values)
        found.append(file.getvalue())
    return found


def drawings() -> list[bytes]:
    file = io.BytesIO()
    np.savez_compressed(file, images=np.zeros((2, 3, 28, 28), np.uint8))
    return [file.getvalue()]


def read_cached_images(path: Path) -> None:
    if images._is_whole(path, (2, 3)):
        _ = images.ImageFile(path, (2, 3))[np.array([1, 0])]


def archives() -> list[bytes]:
    file = io.BytesIO()
    np.savez(file, **{"sine/meta_gradient/linear1.w": np.ones((1, 4))})
    loaded = io.BytesIO()
    np.savez(loaded, x=np.array([Hostile()], object))
    return [file.getvalue(), loaded.getvalue()]


Reader = tuple[str, Callable[[], list[bytes]], Callable[[Path], Any]]
READERS: dict[str, Reader] = {
    "images": (
        "x.png",
        pictures,
        lambda path: images.read_image("x.png", path.read_bytes(), size=8, channels=3),
    ),
    "zips of images": ("x.zip", zips, read_zip),
    "Omniglot's zips": ("images_background.zip", characters, read_characters),
    "tables": (
        "train.csv",
        lambda: [b"filename,label\na.jpg,cat\nb.jpg,dog\n", b"\xef\xbb\xbffilename,class\na,b\n"],
        lambda path: list(miniimagenet._rows(path)),
    ),
    "pickles": ("x.pkl", pickles, miniimagenet._unpickled),
    "checkpoints": ("x.safetensors", checkpoints, runs.read_checkpoint),
    "exported files": (
        "x.safetensors",
        lambda: [next(initialisations.HERE.glob("sine.safetensors")).read_bytes()],
        initialisations.load,
    ),
    "config.json": (runs.CONFIG, configs, read_config),
    "metrics.csv": (runs.METRICS, metrics, read_metrics),
    "run folders": (runs.CHECKPOINT, checkpoints, read_run),
    "others' gradients": ("x.npz", archives, diagnosis.read),
    "manifests": (
        diagnosis.MANIFEST,
        lambda: [b'{"seed": 3, "format": 1}'],
        lambda path: diagnosis.verify(path.parent, path.parent / "absent.npz"),
    ),
    "evaluations": ("evaluation.json", evaluations, initialisations._rows),
    "class lists": (classification.CLASSES, class_lists, read_class_list),
    "arguments": ("x.npy", numbers, lambda path: cli._argument(f"{path}", 0)),
    "Omniglot's cache": ("x.npz", drawings, omniglot._load_cache),
    "images' cache": ("x.npy", numbers, read_cached_images),
    "an index in the cache": ("x.json", lambda: [b'{"a": 2, "b": 3}'], miniimagenet._index),
}

WORDS = [
    "train", "evaluate", "adapt", "render", "export", "vectors", "verify", "check", "graph",
    "landscape", "figures", "sine", "omniglot", "ant-dir", "--seed", "--inner-lr", "--out",
    "--json", "--data", "--preset", "--resume", "--device", "--help", "--version", "-v", "--op",
    "--args", "--meta-iterations", "0", "-1", "1e999", "nan", "x", "", "no/such/folder",
    "today-5w1s", "é", "\0", "--", "=", "--seed=", "os:system", "2x3", "[1", "--order", "9",
]  # fmt: skip
LENGTHY = {"figures", "vectors", "landscape", "graph"}  # do what they are asked to, for seconds


def command_line(rng: random.Random) -> str:
    """What is wrong with how the command took some words; nothing if all is well."""
    words = [rng.choice(WORDS) for _ in range(rng.randrange(7))]
    if words[:1] and (words[0] in LENGTHY or words == ["check"]):
        words[0] = "nonsense"
    if words[:1] == ["train"] and not any(w in ("--help", "nan", "-1", "x") for w in words):
        words.append("--nonsense")  # which would train, if all else were right
    if words[:1] == ["check"] and "--op" not in words and "os:system" not in words:
        words.append("--nonsense")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(words)
            status: Any = 0
        except SystemExit as stopped:
            status = stopped.code
        except BaseException:
            return f"{words}: {traceback.format_exc()}"
    wrong = status not in (0, 1, 2, None) or "Traceback" in err.getvalue()
    return f"{words}: status {status}, {err.getvalue()}" if wrong else ""


def fuzzed(name: str, count: int, seed: int) -> Counter[str]:
    """What became of so many inputs."""
    rng, found = random.Random(f"{seed} {name}"), Counter[str]()
    file, seeds, read = READERS.get(name, ("", list, print))
    contents = seeds()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        inside = Path(scratch) / "inside"
        inside.mkdir()
        path = inside / file
        around = set(os.listdir("/"))
        for n in range(count):
            began = time.process_time()  # of this process alone, however busy the machine is
            if name == "command line":
                wrong = command_line(rng)
                found["refused or done"] += not wrong
            else:
                path.write_bytes(mutated(rng, contents))
                wrong = ""
                try:
                    read(path)
                    found["read"] += 1
                except DataError as error:
                    found["refused"] += 1
                    wrong = f"two lines: {error}" if "\n" in f"{error}" else ""
                except BaseException:
                    wrong = traceback.format_exc()
            if time.process_time() - began > SECONDS:
                wrong += f" took over {SECONDS} s"
            others = {p.name for p in Path(scratch).iterdir()} - {"inside"}
            others |= set(os.listdir("/")) - around
            if others and name != "command line":
                wrong += f" wrote {others}"
            if wrong:
                found["wrong"] += 1
                print(f"{name}, input {n}: {wrong}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    asked = tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    names = [*READERS, "command line"]
    rows: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for name in asked.only or names:
            count = -(-asked.inputs // len(names))
            rows[name] = dict(fuzzed(name, count, asked.seed))
            print(f"{name}: {rows[name]}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    wrong = sum(row.get("wrong", 0) for row in rows.values())
    print(f"{wrong} wrong; at most {peak:.2f} GB of memory")
    if asked.json is not None:
        found = {"versions": versions(), "rows": rows, "peak_gb": peak}
        with atomic_write(asked.json) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
