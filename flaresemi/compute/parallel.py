"""A parallel map over cases that bounds memory, keeps tracebacks and tells a killed worker from a broken one."""

import concurrent.futures
import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import TypeVar

import threadpoolctl
import torch
from tqdm import tqdm

from flaresemi.errors import FlaresemiError
from flaresemi.log_lines import format_last_resort
from flaresemi.machine import available_cores, free_memory_gib
from flaresemi.portability import MOST_WORKERS, ended_by, signals_blocked

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_count(gib_per_worker: float, asked: int | None = None) -> int:
    """How many workers fit: `asked` (or one per core), but no more than free memory allows; at least one."""
    wanted = available_cores() if asked is None else max(asked, 1)
    return max(1, min(wanted, MOST_WORKERS, int(free_memory_gib() * 0.8 / max(gib_per_worker, 1e-3))))


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    progress: str | None = None,
    total: int | None = None,
    mute: bool = False,
    ended: Callable[[Item], None] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Yields `(item, function(item))` as they finish, with at most two items per worker under way.

    With one worker everything runs in this process, where a debugger can follow. `function` must be importable
    (a module-level function or a partial of one).

    Args:
        progress: Label of a progress bar on stderr; it is shown only in a terminal.
        total: Length of the bar, where more is counted than is done here; None: the number of items.
        mute: Worker processes log nothing, where what they would say comes back with the results.
        ended: Told of an item at once when the work on it has ended, well or not; with it, `items` are asked for one by
            one, as workers take them, and may wait for that.

    Raises:
        FlaresemiError: a worker died; it names how, the likely cause and the flag to change.
        Exception: whatever `function` raised, with the worker's traceback.
    """
    given = items if ended is not None else list(items)
    count = len(given) if isinstance(given, list) else None
    bar = tqdm(
        total=count if total is None else total,
        desc=progress,
        unit="case",
        disable=progress is None or not sys.stderr.isatty(),
    )
    told = ended or (lambda _: None)
    is_small = workers <= 1 or (count is not None and count <= 1)
    with bar:
        size = workers if count is None else min(workers, count)
        source = _here(function, given, told) if is_small else _pooled(function, given, size, mute, told)
        for pair in source:
            bar.update()
            yield pair


def _here(
    function: Callable[[Item], Result], items: Iterable[Item], ended: Callable[[Item], None]
) -> Iterator[tuple[Item, Result]]:
    for item in items:
        with one_blas_thread():
            result = function(item)
        ended(item)
        yield item, result


def one_blas_thread() -> threadpoolctl.threadpool_limits:
    """Keeps numpy's matrix products on one thread.

    Ours are small, and OpenBLAS's threads wait for each other by spinning: on a busy machine, synthetic scans took ten
    times as long with two threads.
    """
    return threadpoolctl.threadpool_limits(1, user_api="blas")


def _pooled(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    mute: bool,
    ended: Callable[[Item], None],
) -> Iterator[tuple[Item, Result]]:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(mute,)
    )
    waiting = iter(items)
    running: dict[concurrent.futures.Future, Item] = {}
    children: set[BaseProcess] = set()
    try:
        while True:
            for item in waiting:
                with signals_blocked():
                    future = pool.submit(function, item)
                running[future] = item
                future.add_done_callback(functools.partial(_tell, ended, item))
                if len(running) >= 2 * workers:
                    break
            if not running:
                return
            children.update(set(multiprocessing.active_children()) - others)
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                item = running.pop(future)
                yield item, future.result()
    except BrokenProcessPool:
        pool.shutdown(wait=True, cancel_futures=True)
        raise _death(children, workers) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _tell(ended: Callable[[Item], None], item: Item, _: concurrent.futures.Future) -> None:
    ended(item)


def _death(children: set[BaseProcess], workers: int) -> FlaresemiError:
    """A message about the first worker that died by itself (the pool ends the others by SIGTERM)."""
    codes = [child.exitcode for child in children if child.exitcode not in (None, 0, -signal.SIGTERM)]
    code = codes[0] if codes else None
    name = signal.Signals(-code).name if code is not None and code < 0 else ""
    if name == "SIGKILL":
        what = "a worker process was killed from outside (SIGKILL), most likely for lack of memory"
    elif name:
        what = f"a worker process crashed ({name})"
    elif code is not None:
        what = f"a worker process ended by itself with exit code {code}; its last words stand above"
    else:
        what = "a worker process died, most likely for lack of memory"
    return FlaresemiError(
        what,
        where=f"{workers} workers at once, {free_memory_gib():.1f} GiB free now",
        fix="start again with fewer (--workers 1 runs everything in one process); what is done is kept",
    )


def obey_parent() -> None:
    """In a worker: ends it when its parent ends it (by SIGTERM), or is gone; nobody else's signal does.

    A pool's workers wait for work for ever, also when their parent was killed; they would keep their memory.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None:
        if ended_by(parent, seconds=1.0):
            os._exit(0)


def _start_worker(mute: bool) -> None:
    """One thread, Ctrl-C ignored (the parent receives it and ends its workers), and never without a parent."""
    obey_parent()
    format_last_resort()
    if mute:
        logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    one_blas_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
