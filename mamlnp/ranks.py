"""One training over several processes (MPI): each takes some tasks of every meta-batch.

Every rank runs the same program on the same counted draws. What tasks add up to, gradients and the
like, is summed over ranks by one Allreduce, after which all ranks hold the same numbers and go on
alike; only rank 0 writes. Without MPI there is one rank, and nothing is imported.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from . import backend, tree
from .backend.machine import affinity, cores
from .errors import MissingPackageError, ShapeError

Tree = Any
T = TypeVar("T")

# How the launchers of MPICH, Open MPI and Slurm tell a process how many there are.
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


class Ranks:
    """The processes of one training, or the only one.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        local_rank, local_size: the same on this machine.
        bound: whether each of them has cores of its own.
    """

    def __init__(self, communicator: Any = None, local: Any = None, *, bound: bool = False) -> None:
        self._communicator, self.bound = communicator, bound
        self.rank, self.size = 0, 1
        self.local_rank, self.local_size = 0, 1
        if communicator is not None:
            self.rank, self.size = communicator.rank, communicator.size
            self.local_rank, self.local_size = local.rank, local.size

    @property
    def threads(self) -> int:
        """How many each may use: the cores it is bound to, or its share of those it shares."""
        return cores() if self.bound else max(1, cores() // self.local_size)

    @property
    def writes(self) -> bool:
        """Is this the rank that writes and prints?"""
        return self.rank == 0

    def bounds(self, tasks: int) -> tuple[int, int]:
        """From which to which task of a meta-batch are this rank's, the first ones' a task more.

        Raises:
            ShapeError: there are fewer tasks than ranks.
        """
        if tasks < self.size:
            raise ShapeError(
                f"ranks: {tasks} tasks do not go over {self.size} processes. "
                "Raise the meta-batch size, or start fewer processes."
            )
        each, more = divmod(tasks, self.size)
        start = each * self.rank + min(self.rank, more)
        return start, start + each + (self.rank < more)

    def part(self, task: Tree) -> Tree:
        """This rank's tasks of a meta-batch."""
        if self.size == 1:
            return task
        start, stop = self.bounds(tree.leaves(task)[0].shape[0])
        return tree.map(lambda leaf: leaf[start:stop], task)

    def total(self, arrays: list[Any]) -> list[Any]:
        """The sum over ranks of native arrays of one type, by one Allreduce: from card to card
        where MPI can, else through the host's memory."""
        if self.size == 1:
            return arrays
        xp = backend.namespace_of(arrays[0])
        flat = xp.concatenate([x.ravel() for x in arrays])
        on_host = backend.device_of(flat) == "cpu"
        if not on_host and takes_device_memory():
            xp.cuda.get_current_stream().synchronize()  # it may still be being computed
        elif not on_host:
            flat = backend.to_host(flat)
        self._communicator.Allreduce(_mpi().IN_PLACE, flat)
        flat = xp.asarray(flat)
        sums, start = [], 0
        for x in arrays:
            sums.append(flat[start : start + x.size].reshape(x.shape))
            start += x.size
        return sums

    def gathered(self, x: T) -> list[T]:
        """What every rank has, in their order, on all of them."""
        return [x] if self.size == 1 else self._communicator.allgather(x)

    def told(self, say: Callable[[], T]) -> T:
        """What rank 0 finds; an error of its own is raised on all."""
        if self.size == 1:
            return say()
        found, error = None, None
        if self.writes:
            try:
                found = say()
            except Exception as raised:
                error = raised
        found, error = self._communicator.bcast((found, error))
        if error is not None:
            raise error
        return found

    def abort(self) -> None:
        """End all processes: one of them cannot go on, and the others would wait for it forever."""
        if self.size > 1:
            sys.stderr.flush()
            time.sleep(1)  # a launcher passes on nothing more once it is told to end them
            self._communicator.Abort(1)


def _mpi() -> Any:
    return importlib.import_module("mpi4py.MPI")


@functools.cache
def takes_device_memory() -> bool:
    """Whether MPI sums what is in a CUDA device's memory. One that does not would read the address
    as the host's, and crash; MPICH and Open MPI say which they are."""
    says = getattr(ctypes.CDLL(_mpi().__file__), "MPIX_Query_cuda_support", None)
    return says is not None and bool(says())


@functools.cache
def world() -> Ranks:
    """All processes that a launcher such as mpiexec started; one, if none did.

    Raises:
        MissingPackageError: there are several, but mpi4py is not installed, or for another MPI.
    """
    size = max(int(os.environ.get(name, "1") or 1) for name in SIZES)
    if size == 1:
        return Ranks()
    try:
        mpi = _mpi()
    except ImportError as error:
        raise MissingPackageError(
            f"ranks: {size} processes were started but mpi4py is not there ({error}). "
            "Run: pip install mpi4py, with an MPI such as the package mpich."
        ) from error
    found = mpi.COMM_WORLD.size
    if found != size:
        library = mpi.Get_library_version().split("\n")[0].rstrip(" \0")
        raise MissingPackageError(
            f"ranks: {size} processes were started but {library} finds {found}: mpi4py is for "
            "another MPI than the launcher's. Start with its own mpiexec (srun: with --mpi=pmi2 "
            "or pmix), or install mpi4py for the launcher's."
        )
    local = mpi.COMM_WORLD.Split_type(mpi.COMM_TYPE_SHARED)
    each = local.allgather(affinity())
    return Ranks(mpi.COMM_WORLD, local, bound=sum(map(len, each)) == len(set().union(*each)))
