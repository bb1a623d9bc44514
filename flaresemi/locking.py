"""One process at a time on a part of a workspace, or on each of many cases: a lock that ends with its process.

A lock is the kernel's (`flock` on a file): it is released however its process dies, also by SIGKILL, so that no
heartbeat or clock has to tell the slow from the dead, and nothing has to be removed by hand. Linux passes it on to the
server of an NFS share. Some mounts (Lustre's localflock) keep locks within each machine.

filelock would take over no more than the call of flock: it fails where a file system has no locks, does not say who
holds one, and neither tells a file that is not ours nor leaves a folder as it was.
"""

import contextlib
import datetime
import errno
import logging
import os
import shlex
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from flaresemi.case_names import case_file
from flaresemi.errors import ConfigError, InUseError
from flaresemi.files import open_no_link
from flaresemi.portability import lock_alone

logger = logging.getLogger(__name__)

#: What a file system without locks answers, and Windows: Lustre without its option flock, NFS whose lock service does
#: not run.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

_LONGEST_TOLD = 500

#: What a lock begins with.
_OWNER = b"process "

#: Between two looks at what others are doing, and at what this process has not finished yet.
_WAIT_SECONDS = 0.5
_OWN_SECONDS = 0.05


@contextlib.contextmanager
def working_alone(path: Path, command: Sequence[str]) -> Iterator[None]:
    """Holds a lock while the block runs; its file goes at an ordinary end. Worker processes do not inherit it.

    Where the file system has no locks, or the system is Windows, the block runs all the same, after a warning.

    Args:
        path: The file of the lock. Whoever works on the same thing names the same file.
        command: What this process does, for the message to the other.

    Raises:
        InUseError: another process holds it, and the message names that process.
        ConfigError: the file is something else.
        OSError: the file cannot be made.
    """
    with _held(path, command) as is_held:
        if not is_held:
            logger.warning(
                "this filesystem has no locks: see to it yourself that no other process works on %s", path.parent
            )
        yield


class Claims:
    """Names of cases that processes claim, on one machine or on several that share a folder.

    Attributes:
        path: The folder, which holds a lock for every case that is claimed.
        are_exclusive: False where there are no locks; every claim is granted then. Several processes may work on one
            name there, and where locks are kept within each machine, which must do no harm.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _held(self.path / f".{uuid.uuid4().hex}") as self.are_exclusive:  # shows whether there are locks
            pass

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Claims a name while the block runs; gives False where another process has it."""
        with contextlib.ExitStack() as lock:
            is_taken = True
            if self.are_exclusive:
                try:
                    lock.enter_context(_held(case_file(self.path, name)))
                except InUseError:
                    is_taken = False
            yield is_taken

    def hand_out(
        self,
        names: Sequence[str],
        is_done: Callable[[str], bool],
        stop_requested: Callable[[], bool],
        is_finished: Callable[[str], bool] = lambda _: True,
    ) -> Iterator[str]:
        """Gives the names that nobody has done or is doing, each claimed until the next one is asked for.

        It ends when all of them are done: what others are doing is waited for, and taken over from those that die.

        Args:
            names: In the order of preference.
            is_done: Asked before a name is given, when it is claimed.
            stop_requested: Asked before each name, and while waiting; True ends it.
            is_finished: For who asks for the next name before the last one is done: whether the work on a name that was
                given has come to its end, well or not. Until then it stays claimed.
        """
        held: dict[str, contextlib.ExitStack] = {}
        try:
            while names or held:
                busy = []
                for name in names:
                    _release(held, is_finished)
                    if stop_requested():
                        return
                    if is_done(name):
                        continue
                    with contextlib.ExitStack() as claim:
                        if not claim.enter_context(self.claim(name)):
                            busy.append(name)
                        elif not is_done(name):  # its owner may have finished it a moment ago
                            held[name] = claim.pop_all()
                            yield name
                _release(held, is_finished)
                if busy and len(busy) == len(names):
                    time.sleep(_WAIT_SECONDS)
                elif held and not busy:
                    if stop_requested():
                        return
                    time.sleep(_OWN_SECONDS)
                names = busy
        finally:
            _release(held, lambda _: True)

    def clear(self) -> None:
        """Removes what killed processes have left, and the folder itself where nobody claims anything."""
        paths: list[Path] = []
        with contextlib.suppress(FileNotFoundError):  # another process that was done, too, has just removed it
            paths = list(self.path.iterdir()) if self.are_exclusive else []
        for path in paths:
            if path.is_file():
                with contextlib.suppress(InUseError), _held(path):
                    pass
        with contextlib.suppress(OSError):
            self.path.rmdir()


def _release(held: dict[str, contextlib.ExitStack], is_finished: Callable[[str], bool]) -> None:
    """Gives up the claims of the names that are finished."""
    for name in [name for name in held if is_finished(name)]:
        held.pop(name).close()


@contextlib.contextmanager
def _held(path: Path, command: Sequence[str] = ()) -> Iterator[bool]:
    """Holds a lock while the block runs; gives False where there are no locks."""
    with contextlib.ExitStack() as opened:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = opened.enter_context(open(path, "a+b", opener=open_no_link))
            except FileNotFoundError:  # whoever was the last one here has just removed the folder
                continue
            _refuse_foreign(file, path)
            is_held = _lock(file, path)
            if not is_held or _has_name(file, path):
                break
            opened.close()  # whoever had it before has just removed it
        if is_held:
            started = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            owner = f"process {os.getpid()} on {socket.gethostname()} since {started}: {shlex.join(command)}\n"
            file.truncate(0)
            file.write(owner.encode("utf-8", "surrogateescape"))
            file.flush()
        try:
            yield is_held
        finally:
            has_name = _has_name(file, path)
            if not is_held:
                opened.close()  # Windows removes no open file
            if has_name:
                with contextlib.suppress(PermissionError):  # another process has it open there
                    path.unlink()  # before it is released: later it may be another's


def _refuse_foreign(file: BinaryIO, path: Path) -> None:
    """Checks that a file is a lock, or empty; what is none is left as it is."""
    file.seek(0)
    if file.read(len(_OWNER)) not in (b"", _OWNER):
        raise ConfigError(
            "a file that flaresemi did not write has the name of its lock",
            where=path,
            fix="see what it is, and remove or rename it",
        )


def _lock(file: BinaryIO, path: Path) -> bool:
    """Locks the file; False where there are no locks."""
    try:
        lock_alone(file.fileno())
    except (BlockingIOError, PermissionError):  # of a file that could be opened for writing
        raise _refusal(file, path) from None
    except OSError as problem:
        if problem.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _has_name(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _refusal(file: BinaryIO, path: Path) -> InUseError:
    file.seek(0)
    text = file.read(_LONGEST_TOLD).decode("utf-8", "replace").strip()
    owner = "".join(letter if letter.isprintable() else "?" for letter in text)
    return InUseError(
        f"another process is at work here: {owner or 'one that has just begun'}",
        where=path.parent,
        fix="let it end, or stop it (on its host: kill and its number); then the same command goes on from there",
    )
