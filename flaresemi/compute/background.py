"""Input and output beside the computation: one item is read ahead, one is finished behind."""

import concurrent.futures
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def read_ahead(
    read: Callable[[Item], Value], items: Iterable[Item], *, overlap: bool
) -> Generator[tuple[Value, float], None, None]:
    """Yields what was read of each item, and the seconds that were spent on waiting for it.

    Args:
        read: What it raises is raised when that item's turn comes, and ends the reading.
        items: In order; each is asked for when it is to be read.
        overlap: A thread asks for one item and reads it while the one before is worked on: two are in memory at most.
    """
    if not overlap:
        for item in items:
            start = time.perf_counter()
            yield read(item), time.perf_counter() - start
        return
    coming = iter(items)
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        reading = pool.submit(_read_next, read, coming)
        while True:
            start = time.perf_counter()
            found = reading.result()
            waited = time.perf_counter() - start
            if found is None:
                return
            reading = pool.submit(_read_next, read, coming)
            yield found[0], waited


def _read_next(read: Callable[[Item], Value], items: Iterator[Item]) -> tuple[Value] | None:
    """What is read of the next item; None where there is none."""
    for item in items:
        return (read(item),)
    return None


class BegunEarly(Generic[Item, Value]):
    """Reads items; the one that surely comes first, on a thread from the start of the `with` block on.

    Args:
        read: From an item to what it holds; what it raises is raised when the item is asked for.
        first: That item; None: nothing is begun.
    """

    def __init__(self, read: Callable[[Item], Value], first: Item | None) -> None:
        self._read, self._first = read, first
        self._pool = None if first is None else concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="first")
        self._reading: concurrent.futures.Future[Value] | None = None

    def __call__(self, item: Item) -> Value:
        if self._reading is None or item != self._first:
            return self._read(item)
        reading, self._reading = self._reading, None  # held by nobody once it is handed out
        return reading.result()

    def __enter__(self) -> "BegunEarly[Item, Value]":
        if self._pool is not None and self._first is not None:
            self._reading = self._pool.submit(self._read, self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()


class FinishBehind:
    """Does the last piece of work on every item on a thread while the next one is worked on; or at once.

    One piece at a time: a second one waits for the first, so that no more than one item is held. What a piece raises
    is raised at the next call, or at the end of the `with` block.

    Args:
        overlap: Whether there is a thread.
    """

    def __init__(self, *, overlap: bool) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="finish") if overlap else None
        self._last: concurrent.futures.Future | None = None

    def __call__(self, work: Callable[[], object]) -> None:
        self._wait()
        if self._pool is None:
            work()
        else:
            self._last = self._pool.submit(work)

    def __enter__(self) -> "FinishBehind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        if kind is None:
            self._wait()

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()
