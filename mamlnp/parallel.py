"""One meta-batch over threads, and over processes: chunks of tasks, each replayed by itself.

There is one level of parallelism: a chunk runs on one thread, its products on one BLAS thread, its
kernels without Python's lock. How many chunks there are is a setting, not what the machine has, and
their gradients are summed in their order: the same bits come out on one thread or on many.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from . import tree
from .array import Array
from .backend import device_of, namespace_of
from .backend.machine import cores, one_blas_thread
from .compile import compile
from .errors import ShapeError
from .meta import Algorithm, Gradient, num_tasks
from .ops.elementwise import add
from .ops.shape import concatenate
from .optim import Optimizer
from .ranks import Ranks
from .tasks import Task

Tree = Any
OfTasks = Callable[[Tree, Any], Tree]  # a Task, or any tree whose leaves have the task axis


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads for as long as the process lives; made as they are first needed."""
    return ThreadPoolExecutor(256, thread_name_prefix="mamlnp")


def on_host(x: Tree) -> bool:
    """Are the arrays of a tree NumPy's?"""
    first = next((leaf for leaf in tree.leaves(x) if hasattr(leaf, "shape")), None)
    return first is None or device_of(first.value if isinstance(first, Array) else first) == "cpu"


def split(task: Tree, chunks: int | None) -> list[Tree]:
    """The meta-batch in chunks of tasks, the first ones a task larger where it does not divide;
    None: every task by itself, but all together on a device.

    Raises:
        ShapeError: there are more chunks than tasks, or none.
    """
    if chunks is None and not on_host(task):
        chunks = 1
    if chunks == 1:
        return [task]
    tasks = num_tasks(task)
    chunks = tasks if chunks is None else chunks
    if not 1 <= chunks <= tasks:
        raise ShapeError(
            f"parallel: {tasks} tasks do not make {chunks} chunks. Pass from 1 to {tasks} chunks."
        )
    size, larger = divmod(tasks, chunks)
    stops = [size * i + min(i, larger) for i in range(chunks + 1)]
    return [
        tree.map(lambda x, chunk=slice(*ends): x[chunk], task) for ends in itertools.pairwise(stops)
    ]


def over_tasks(
    f: OfTasks,
    *,
    chunks: int | None = None,
    threads: int | None = None,
    compiled: bool = True,
    check: bool = True,
) -> Callable[[Tree, Task], list[Tree]]:
    """f of every chunk of a meta-batch.

    Args:
        f: (params, task) -> a tree of Arrays.
        chunks: how many, None: one a task. A replay holds the memory of one chunk a thread, and
            is fastest where that fits the processor's cache. On a device None is 1: all tasks
            together keep it busy, and more chunks need less of its memory.
        threads: how many run at once; None: as many as there are cores. A device runs one chunk
            after another.
        compiled: replay f (see :func:`mamlnp.compile`) instead of running it.
        check: hold the first replay of every plan against f run eagerly, on the chunk at hand.

    Returns:
        A function of (params, task): f's results in the order of the chunks.
    """
    run = compile(f, check=check) if compiled else f

    def of_chunks(params: Tree, task: Task) -> list[Tree]:
        parts = split(task, chunks)
        wanted = min(threads or cores(), len(parts)) if on_host(task) else 1
        results: list[Tree] = [None] * len(parts)
        left = iter(range(len(parts)))  # whoever is free takes the next

        def work() -> None:
            for i in left:
                results[i] = run(params, parts[i])

        with one_blas_thread():
            others = [_pool().submit(work) for _ in range(wanted - 1)]
            try:
                work()  # this thread too, instead of waiting
            finally:
                wait(others)
        for other in others:
            other.result()
        return results

    return of_chunks


def _joined(parts: list[tuple[Array, Tree]]) -> tuple[Array, Tree]:
    """All tasks' losses, and the sum of the gradients, chunk after chunk."""
    losses = concatenate([losses for losses, _ in parts]) if len(parts) > 1 else parts[0][0]
    return losses, functools.reduce(
        lambda total, part: tree.map(add, total, part), (grads for _, grads in parts)
    )


def meta_gradient(
    gradient: Gradient,
    *,
    chunks: int | None = None,
    threads: int | None = None,
    compiled: bool = True,
    check: bool = True,
) -> Gradient:
    """An algorithm's gradient, in chunks over threads.

    Args:
        gradient: (meta, task) -> (query losses (T,), the sum over tasks of their gradients), such
            as ``MAML(loss, inner_lr=0.01).gradient``.
        chunks, threads, compiled, check: as in :func:`over_tasks`.
    """
    gradient = _function(gradient)
    of_chunks = over_tasks(gradient, chunks=chunks, threads=threads, compiled=compiled, check=check)
    joined = compile(_joined, check=check) if compiled else _joined

    def of_all(meta: Tree, task: Task) -> tuple[Array, Tree]:
        parts = of_chunks(meta, task)
        return joined(parts) if len(parts) > 1 else parts[0]

    return of_all


def _function(gradient: Any) -> Gradient:
    """Refuse what is no gradient.

    Raises:
        TypeError: it is an Algorithm.
    """
    if isinstance(gradient, Algorithm):
        raise TypeError("parallel: got an Algorithm, not its gradient. Pass algorithm.gradient.")
    return gradient


def _over_ranks(ranks: Ranks, tasks: int, losses: Array, grads: Tree) -> tuple[Array, Tree]:
    """All tasks' losses, and the sum of the gradients, from every rank's own; one Allreduce."""
    start, stop = ranks.bounds(tasks)
    every = namespace_of(losses.value).zeros(tasks, losses.dtype)
    every[start:stop] = losses.value
    every, *sums = ranks.total([every, *(g.value for g in tree.leaves(grads))])
    return Array(every), tree.unflatten(grads, map(Array, sums))


def meta_step(
    gradient: Gradient,
    *,
    optimizer: Optimizer,
    chunks: int | None = None,
    threads: int | None = None,
    compiled: bool = True,
    check: bool = True,
    ranks: Ranks | None = None,
    meta_batch_size: int = 0,
) -> Callable[[Tree, Tree, Task], tuple[Tree, dict[str, Any], Array]]:
    """The outer loop's update as a function of (meta, opt_state, task), in chunks over threads; the
    sum over chunks and the optimiser's update are one replay.

    Args:
        gradient, chunks, threads, compiled, check: as in :func:`meta_gradient`.
        optimizer: of the outer loop.
        ranks: the processes that share each meta-batch; each is given its own tasks, and all get
            the same results, the losses of all tasks among them. This one alone if not given.
        meta_batch_size: how many tasks all ranks have together.

    Returns:
        A function that gives (new meta, new opt_state, query losses (T,)).
    """
    gradient = _function(gradient)

    def update(
        meta: Tree, opt_state: Tree, parts: list[tuple[Array, Tree]]
    ) -> tuple[Tree, dict[str, Any], Array]:
        losses, grads = _joined(parts)
        meta, opt_state = optimizer.update(meta, grads, opt_state)
        return meta, opt_state, losses

    def whole(meta: Tree, opt_state: Tree, task: Task) -> tuple[Tree, dict[str, Any], Array]:
        return update(meta, opt_state, [gradient(meta, task)])

    at_once = compile(whole, check=check) if compiled else whole
    of_chunks = over_tasks(gradient, chunks=chunks, threads=threads, compiled=compiled, check=check)
    updated = compile(update, check=check) if compiled else update
    joined = compile(_joined, check=check) if compiled else _joined

    def step(meta: Tree, opt_state: Tree, task: Task) -> Any:
        if ranks is not None and ranks.size > 1:
            here = joined(of_chunks(meta, task))
            return updated(meta, opt_state, [_over_ranks(ranks, meta_batch_size, *here)])
        if chunks == 1 or (chunks is None and not on_host(task)):
            with one_blas_thread():
                return at_once(meta, opt_state, task)
        return updated(meta, opt_state, of_chunks(meta, task))

    return step
