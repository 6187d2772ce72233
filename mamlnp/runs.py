"""One run = one folder: ``config.json``, ``metrics.csv``, ``checkpoint.safetensors``, pictures.

Whatever stops a run leaves it usable: files are replaced whole, the checkpoint before the last is
kept and used where the last is damaged, and metrics are dropped on resuming where they went past
the checkpoint. One process at a time trains in a folder. Randomness is counted
(:func:`mamlnp.tasks.counted_rng`), so a checkpoint is arrays and an iteration number, and
continuing from it gives bit for bit what an unbroken run gives.
"""

import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import filelock
import numpy as np
import safetensors
import safetensors.numpy

from .backend import described
from .backend.machine import blas, cores
from .errors import DataError

CONFIG = "config.json"
METRICS = "metrics.csv"
CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint-previous.safetensors"
LOCK = ".lock"
EVALUATION = "evaluation.json"

Config = TypeVar("Config")

# The versions on which the last bits of a result depend.
DECIDES_BITS = ("mamlnp", "numpy", "numba", "blas", "blas_architecture", "device")


class Checkpoint(NamedTuple):
    """What a run was when it was saved.

    Attributes:
        experiment: the name of what ran.
        config: its settings, as JSON keeps them; see :func:`config_as`.
        iteration: how many meta-iterations were done.
        arrays: nested dicts of arrays, as given to :meth:`Run.save`.
        meta: the JSON-able dict given to :meth:`Run.save`.
        versions: what :func:`versions` said then.
    """

    experiment: str
    config: dict[str, Any]
    iteration: int
    arrays: dict[str, Any]
    meta: dict[str, Any]
    versions: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder; made by :func:`create_run` and :func:`open_run`.

    Attributes:
        path: the folder.
        experiment: the name of what runs in it, such as "sine".
        config: the experiment's settings, as JSON keeps them; see :meth:`config_as`.
        versions: what the run began with.
    """

    path: Path
    experiment: str
    config: dict[str, Any]
    versions: dict[str, Any]

    def config_as(self, kind: type[Config]) -> Config:
        """The settings as an instance of the dataclass they were written from.

        Raises:
            DataError: ``kind`` has no such fields.
        """
        return config_as(kind, self.config, f"{self.path / CONFIG}", self.versions)

    def log(self, iteration: int, row: Mapping[str, object]) -> None:
        """Append a row to metrics.csv; the first row's keys become its columns.

        Args:
            iteration: how many meta-iterations were done. Log it before saving a checkpoint of it.
            row: a value a column.

        Raises:
            DataError: the file has other columns or cannot be written.
        """
        path = self.path / METRICS
        columns = ["iteration", *row]
        with _explained(path), path.open("a+", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            file.seek(0)
            header = next(csv.reader([file.readline()]))
            file.seek(0, os.SEEK_END)
            if not header:
                writer.writerow(columns)
            elif header != columns:
                raise DataError(
                    f"{path}: has columns {','.join(header)} but the row has {','.join(columns)}. "
                    "Continue the run with the version that began it, or begin a new one."
                )
            writer.writerow([iteration, *row.values()])

    def save(self, iteration: int, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
        """Replace the checkpoint, and keep the one before it as checkpoint-previous.safetensors.

        Equal runs have equal checkpoints, byte for byte, where their ``meta`` is equal.

        Args:
            iteration: how many meta-iterations were done.
            arrays: nested dicts of NumPy arrays, such as ``{"params": ..., "opt_state": ...}``.
            meta: a JSON-able dict, such as ``{"best_iteration": 900, "best_validation": 0.41}``.

        Raises:
            DataError: the file cannot be written; the old checkpoint is left as it was.
            TypeError: ``arrays`` or ``meta`` holds something else.
        """
        metrics = self.path / METRICS
        if metrics.exists():
            # A checkpoint must never reach the disk before the rows that led to it.
            with _explained(metrics):
                _to_disk(metrics)
        checkpoint = Checkpoint(self.experiment, self.config, iteration, arrays, meta, versions())
        write_checkpoint(self.path / CHECKPOINT, checkpoint, self.path / PREVIOUS)

    def load(self) -> Checkpoint:
        """Read the checkpoint; where it is damaged, the one before it, which is said in one line on
        stderr.

        Raises:
            DataError: there is none, or both are damaged.
        """
        path, previous = self.path / CHECKPOINT, self.path / PREVIOUS
        if not path.exists() and not previous.exists():
            raise DataError(
                f"{path}: there is no checkpoint. The run was stopped before its first one: "
                "begin a new run."
            )
        try:
            return read_checkpoint(path)
        except DataError as error:
            if not previous.exists():
                raise
            before = read_checkpoint(previous)
            print(f"{error} Taken instead: {previous}, of iteration {before.iteration}.",
                  file=sys.stderr)  # fmt: skip
            return before

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in the folder meanwhile.

        Raises:
            DataError: one does already.
        """
        with _explained(self.path):
            lock = filelock.FileLock(self.path / LOCK)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise DataError(
                    f"{self.path}: another process is training in this folder. Wait for it, or "
                    "choose another folder."
                ) from error
        try:
            for left in self.path.glob(".*.[0-9]*.*"):  # half-written by a process that was killed
                left.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def resume(self) -> Checkpoint:
        """Read the checkpoint and drop the rows of metrics.csv that came after it.

        Says in one line on stderr when the continued run cannot be the unbroken one bit for bit.

        Raises:
            DataError: the checkpoint is missing, or it or metrics.csv is damaged.
        """
        checkpoint = self.load()
        self._rewind(checkpoint.iteration)
        now = versions()
        changes = [
            f"{name} {checkpoint.versions[name]} -> {now[name]}"
            for name in DECIDES_BITS
            if checkpoint.versions.get(name, now[name]) != now[name]
        ]
        if changes:
            print(
                f"{self.path}: the last bits will differ from an unbroken run's "
                f"({', '.join(changes)}).",
                file=sys.stderr,
            )
        return checkpoint

    def _rewind(self, iteration: int) -> None:
        path = self.path / METRICS
        if not path.exists():
            return
        with _explained(path):
            lines = path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # cut off as it was written
        kept = lines[:1]
        for number, row in enumerate(lines[1:], start=2):
            try:
                done = int(row.split(b",")[0])
            except ValueError as error:
                raise DataError(
                    f"{path}: line {number} does not begin with an iteration. "
                    "Correct it, or delete the file."
                ) from error
            if done > iteration:
                break
            kept.append(row)
        with atomic_write(path) as partial:
            partial.write_bytes(b"".join(kept))


def config_as(
    kind: type[Config], settings: Mapping[str, Any], where: str, written_by: Mapping[str, Any]
) -> Config:
    """Settings that JSON kept, as an instance of the dataclass they were written from.

    Args:
        kind: the dataclass; fields that ``settings`` lacks take their defaults.
        settings: its fields.
        where: the file they are from, for the error.
        written_by: the versions that wrote them.

    Raises:
        DataError: ``kind`` has no such fields.
    """
    hints = typing.get_type_hints(kind)
    fields = {name: _restored(value, hints.get(name)) for name, value in settings.items()}
    try:
        for name, value in fields.items():
            if name in hints and not _is_a(value, hints[name]):
                raise TypeError(f"{name} is {value!r}")
        return kind(**fields)
    except TypeError as error:
        raise DataError(
            f"{where}: does not fit {kind.__qualname__} ({error}). "
            f"Use mamlnp {written_by.get('mamlnp')}, which wrote it."
        ) from error


def write_checkpoint(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Replace a checkpoint's file, whole or not at all; the old one becomes ``previous``.

    Raises:
        DataError: the file cannot be written; an old one is left as it was.
        TypeError: it holds something that is no array, or meta something JSON does not know.
    """
    leaves: dict[str, np.ndarray] = {}
    record = {**checkpoint._asdict(), "tree": _taken_apart(checkpoint.arrays, "", leaves)}
    del record["arrays"]
    record["sha256"] = _sha256(record, leaves)
    # One entry: safetensors writes several in an order that changes from process to process.
    content = safetensors.numpy.save(leaves, {"mamlnp": json.dumps(record)})
    with atomic_write(path) as partial:
        partial.write_bytes(content)
        if previous is not None and path.exists():
            with atomic_write(previous) as kept:
                shutil.copyfile(path, kept)


def _sha256(record: Mapping[str, Any], leaves: Mapping[str, np.ndarray]) -> str:
    """Of a checkpoint: what stands in JSON, then its arrays in the order of their names."""
    found = hashlib.sha256(json.dumps(record).encode())
    for name in sorted(leaves):
        leaf = leaves[name]
        found.update(f"{name} {leaf.dtype.str} {leaf.shape}".encode())
        found.update(leaf.tobytes())
    return found.hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's file.

    Raises:
        DataError: it is missing, damaged, or not a checkpoint.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            record = json.loads(file.metadata()["mamlnp"])
            expected = record.pop("sha256", None)
            leaves = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if expected not in (None, _sha256(record, leaves)):
                raise ValueError("it does not have the checksum it was written with")
            arrays = _put_together(record.pop("tree"), "", leaves.__getitem__)
            saved = Checkpoint(arrays=arrays, **record)
            _check_record(saved.experiment, saved.config, saved.versions, saved.meta, saved.arrays)
            return saved
    except (
        OSError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
        safetensors.SafetensorError,
    ) as error:
        raise DataError(
            f"{path}: is damaged or not a checkpoint of mamlnp ({error}). "
            "Restore it from a copy, or begin a new run."
        ) from error


def _check_record(experiment: Any, *dictionaries: Any) -> None:
    """Raise TypeError where a file's record is not made of what it should be."""
    if not isinstance(experiment, str):
        raise TypeError(f"experiment is {experiment!r}")
    for found in dictionaries:
        if not isinstance(found, dict):
            raise TypeError(f"{found!r} where there should be names and values")


def create_run(experiment: str, config: Any, path: Path | None = None) -> Run:
    """Make a new run's folder and write its config.json.

    Args:
        experiment: the name of what runs, such as "sine".
        config: a dataclass of numbers, strings, booleans, paths, None, and tuples of all but paths.
        path: the folder, which must be new or empty; without it ``runs/<experiment>``, or the first
            of ``runs/<experiment>-2``, ``-3``, ... that is not there yet.

    Raises:
        DataError: the folder is taken or cannot be written.
        TypeError: ``config`` holds something JSON does not give back.
    """
    if path is None:
        path = _new_folder(Path("runs") / experiment)
    else:
        check_folder(path, empty=True)
        with _explained(path):
            path.mkdir(parents=True, exist_ok=True)
    record = {
        "experiment": experiment,
        "config": dataclasses.asdict(config),
        "versions": versions(),
    }
    text = json.dumps(record, indent=2, default=os.fspath)
    run = Run(path, **json.loads(text))
    try:
        back: Any = run.config_as(type(config))
    except DataError as error:
        back = error
    if back != config:
        raise TypeError(
            f"create_run: {config} comes back from JSON as {back}. "
            "Use numbers, strings, booleans, paths, None, and tuples of all but paths."
        )
    with atomic_write(path / CONFIG) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return run


def open_run(path: Path, experiment: str | None = None) -> Run:
    """The run in an existing folder.

    Args:
        path: the folder.
        experiment: the experiment it must be a run of; None for any.

    Raises:
        DataError: there is no run, its config.json is damaged, or it is of another experiment.
    """
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder. Give one that `mamlnp train` made.")
    file = path / CONFIG
    if not file.exists():
        raise DataError(f"{path}: has no {CONFIG}. Give a folder that `mamlnp train` made.")
    try:
        run = Run(path, **json.loads(file.read_bytes()))
        _check_record(run.experiment, run.config, run.versions)
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file}: is damaged or not of a run of mamlnp ({error}). "
            "Restore it from a copy, or begin a new run."
        ) from error
    if experiment not in (None, run.experiment):
        raise DataError(
            f"{path}: is a run of {run.experiment}, not of {experiment}. "
            f"Continue it with `mamlnp train {run.experiment} --resume {path}`."
        )
    return run


def check_file(path: Path) -> None:
    """Find out before the work whether a file could be written after it.

    Raises:
        DataError: it could not.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}. Make it, or choose another.")
    with _explained(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def check_folder(path: Path, *, empty: bool = False) -> None:
    """The same of a folder, which need not be there yet.

    Raises:
        DataError: files could not be written in it, or it must be ``empty`` and is not.
    """
    with _explained(path):
        if empty and path.is_dir() and any(path.iterdir()):
            raise DataError(
                f"{path}: the folder is not empty. Continue the run in it with "
                f"--resume {path}, or choose another folder."
            )
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Replace a file whole or not at all: yields the temporary path to write to.

    It is in the same folder and has the same suffix, from which plotting tells the format.

    Raises:
        DataError: the file cannot be written; an old one is left as it was.

    >>> with atomic_write(getfixture("tmp_path") / "greeting.txt") as partial:
    ...     partial.write_text("hello")
    5
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with _explained(path):
        try:
            yield partial
            _to_disk(partial)
            partial.replace(path)
            _entries_to_disk(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def version() -> str:
    """Of mamlnp."""
    try:
        return importlib.metadata.version("mamlnp")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, Any]:
    """What results may depend on: versions, the BLAS NumPy uses, the machine.

    >>> sorted(versions())  # doctest: +NORMALIZE_WHITESPACE
    ['blas', 'blas_architecture', 'blas_threads', 'cores', 'cpu', 'device', 'mamlnp', 'numba',
     'numpy', 'platform', 'python']
    """
    found = blas()
    return {
        "mamlnp": version(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": importlib.metadata.version("numba"),
        "blas": found.version,
        "blas_architecture": found.architecture,
        "blas_threads": found.threads,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": cores(),
        "device": described(),
    }


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _new_folder(wanted: Path) -> Path:
    path, number = wanted, 1
    with _explained(wanted):
        while True:
            try:
                path.mkdir(parents=True)
                return path
            except FileExistsError:
                number += 1
                path = wanted.with_name(f"{wanted.name}-{number}")


def _restored(value: Any, hint: Any) -> Any:
    """A field's value from what JSON made of it: lists were tuples, some strings were paths."""
    if isinstance(value, list):
        return tuple(value)
    kinds = typing.get_args(hint) or (hint,)
    return Path(value) if isinstance(value, str) and Path in kinds else value


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a setting's value is of its type; whole numbers are floats too."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in kinds
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, kind) for kind in kinds)
    if hint is float and not isinstance(value, bool):
        return isinstance(value, int | float)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _taken_apart(tree: Any, name: str, leaves: dict[str, np.ndarray]) -> Any:
    """The shape of a tree, for JSON; its arrays go to ``leaves`` under names like "params/w"."""
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, str) or not key or "/" in key:
                raise TypeError(
                    f"save: {key!r} in {name or 'arrays'} cannot be part of a name like params/w. "
                    "Give non-empty strings without '/' as keys."
                )
        return {
            key: _taken_apart(node, f"{name}/{key}" if name else key, leaves)
            for key, node in tree.items()
        }
    is_array = isinstance(tree, np.ndarray | np.generic)
    if not is_array or tree.dtype.kind not in "biuf" or tree.dtype.itemsize > 8:
        raise TypeError(
            f"save: {name} is {getattr(tree, 'dtype', type(tree).__name__)}. "
            "Give nested dicts of NumPy arrays of floats, integers or booleans."
        )
    # safetensors takes the memory as it lies, whatever the strides and the byte order say.
    leaves[name] = np.asarray(tree, tree.dtype.newbyteorder("="), order="C")
    return None


def _put_together(tree: Any, name: str, read: Callable[[str], np.ndarray]) -> Any:
    if tree is None:
        return read(name)
    return {
        key: _put_together(node, f"{name}/{key}" if name else key, read)
        for key, node in tree.items()
    }


def _to_disk(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _entries_to_disk(folder: Path) -> None:
    """So that a new name outlives a power cut, too; where a folder can be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read or written ({error.strerror or error}). "
            "Free some space, or choose a folder you may write to."
        ) from error
