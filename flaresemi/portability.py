"""What not every system has, in one place: no other module names a system or asks for something that one lacks.

Linux has all of it. macOS cannot wait for a signal, bind a process to cores, or keep a file in memory alone. Windows
has no locks, limits and signals of this kind either, does not open folders, and keeps a file that is open from being
renamed or removed. `make lint` checks the types of the package for each of the three.
"""

import contextlib
import errno
import math
import mmap
import os
import re
import signal
import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

if sys.platform != "win32":
    import fcntl
    import resource

#: Flags of `os.open`: refuse a link; do not wait for the other end of a pipe.
NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)

#: Whether a folder can be opened, to wait until the names in it are on the disk.
OPENS_FOLDERS = sys.platform != "win32"

#: Whether the C library may be glibc.
HAS_GLIBC = sys.platform == "linux"

#: How many processes one pool can have.
MOST_WORKERS = 61 if sys.platform == "win32" else 1 << 16

#: What the system, unlike others, does not take for a name: devices, characters of its own, an end that it drops.
NO_NAME = re.compile(
    r'(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[<>:"|?*].*|.*[. ]' if sys.platform == "win32" else r"(?!)", re.IGNORECASE
)

#: Signals that ask a command to save and leave. Schedulers send them to all processes of a job.
if sys.platform == "win32":
    ASKED_TO_LEAVE: tuple[signal.Signals, ...] = (signal.SIGTERM,)
else:
    ASKED_TO_LEAVE = (signal.SIGTERM, signal.SIGUSR1)

Limit = Literal["RLIMIT_NOFILE", "RLIMIT_AS", "RLIMIT_DATA"]


def bound_cores() -> int:
    """Cores that this process is bound to; all of the machine where processes are not bound."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    else:
        return os.cpu_count() or 1


def core_numbers() -> list[int]:
    """The cores that this process is bound to; none where processes are not bound."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    else:
        return []


@contextlib.contextmanager
def on_cores(numbers: Collection[int]) -> Iterator[None]:
    """Binds this thread to some cores while the block runs, and for good what it starts there; none: does nothing."""
    if sys.platform == "linux" and numbers:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, numbers)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)
    else:
        yield


def announce(memory: mmap.mmap, start: int, length: int) -> None:
    """Says that a part of a mapped file will be read soon: the system begins to read it, and no more than that."""
    if sys.platform != "win32":
        page = start - start % mmap.PAGESIZE
        memory.madvise(mmap.MADV_WILLNEED, page, start + length - page)


if sys.platform == "win32":

    def limits(kind: Limit) -> tuple[float, float]:
        """The soft and the hard limit of this process; infinite where there is none."""
        return math.inf, math.inf

    def raise_limit(kind: Limit, soft: int) -> None:
        """Raises the soft limit, where the system lets it."""

    def lock_alone(descriptor: int) -> None:
        """Locks a file as long as it is open, for this process alone.

        Raises:
            BlockingIOError: another process has locked it.
            OSError: it cannot be locked; ENOSYS where the system has no such locks.
        """
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def is_running(process: int) -> bool | None:
        """Whether there is a process of this number; None where the system cannot be asked without harm."""
        return None

    def peak_bytes() -> int:
        """The most main memory that this process has held so far."""
        import psutil

        return psutil.Process().memory_info().peak_wset

    def changed_ns(status: os.stat_result) -> int:
        """When a file, or what is known of it, changed last."""
        return max(status.st_ctime_ns, status.st_mtime_ns)  # the first is when it was made

else:

    def limits(kind: Limit) -> tuple[float, float]:
        soft, hard = resource.getrlimit(getattr(resource, kind))
        infinity = resource.RLIM_INFINITY
        return math.inf if soft == infinity else soft, math.inf if hard == infinity else hard

    def raise_limit(kind: Limit, soft: int) -> None:
        number = getattr(resource, kind)
        with contextlib.suppress(OSError, ValueError):  # macOS has another limit below the hard one
            resource.setrlimit(number, (soft, resource.getrlimit(number)[1]))

    def lock_alone(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def is_running(process: int) -> bool | None:
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass  # it is another user's
        return True

    def peak_bytes() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def changed_ns(status: os.stat_result) -> int:
        return status.st_ctime_ns


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Blocks the signals that ask to save and leave, in processes started in here from their first moment on.

    Those must wait for them, by `ended_by`. A signal that comes meanwhile reaches this process afterwards. Where
    nobody can wait for a signal, nothing is blocked, and workers die of it.
    """
    if sys.platform == "linux":
        from multiprocessing import resource_tracker

        before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKED_TO_LEAVE)
        try:
            # Python's process for shared memory would die of SIGUSR1. Starting it lets SIGTERM through again.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, ASKED_TO_LEAVE)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        yield


def ended_by(parent: "BaseProcess", seconds: float) -> bool:
    """In a worker: waits; True where its parent has sent it SIGTERM or is gone. It takes blocked signals."""
    if sys.platform == "linux":
        asked = signal.sigtimedwait(ASKED_TO_LEAVE, seconds)
        is_told = asked is not None and asked.si_signo == signal.SIGTERM and asked.si_pid == parent.pid
        return is_told or os.getppid() != parent.pid
    else:
        parent.join(seconds)
        return not parent.is_alive()


def file_in_memory(name: str) -> int | None:
    """A descriptor of a file that is in no folder, and goes when it is closed; None where there is no such thing."""
    if sys.platform == "linux":
        return os.memfd_create(name)
    else:
        return None


def forget_cached(descriptor: int) -> None:
    """Lets the system forget its copy of a file in main memory, where it can be asked to."""
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
