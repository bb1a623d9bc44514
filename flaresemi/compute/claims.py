"""Which of many processes works on what: claims that end with the process that made them."""

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flaresemi.files import open_no_link

#: What file systems say that know no locks: Lustre without its option flock, NFS whose lock service does not run.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_WAIT_SECONDS = 0.5


class Claims:
    """Names that processes claim, on one machine or on several that share a folder; a context manager.

    A claim is a lock on one byte of one empty file that all of them open; the name says which byte. The kernel (on NFS
    the server) gives up the locks of a process that ends, however it ends: a claim does not outlive its owner, and no
    heartbeat or clock has to tell the slow from the dead. Locks of fcntl, not of flock: those of a range have to be
    passed on to the server of a network file system, and thousands of names need one file.

    Where there are no locks, every claim is granted, and `are_exclusive` is False. Some mounts (Lustre's localflock)
    keep locks within each machine; several machines may then work on one name, which must do no harm.

    Args:
        path: The file; made where it is missing, and never written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.are_exclusive = True

    def __enter__(self) -> "Claims":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_no_link(self.path, os.O_RDWR)
        with self.claim(""):  # shows whether there are locks
            return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Claims a name while the block runs; gives False where another process has it."""
        taken = self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, name)
        try:
            yield taken
        finally:
            if taken:
                self._lock(fcntl.LOCK_UN, name)

    def hand_out(
        self, names: Sequence[str], is_done: Callable[[str], bool], stop_requested: Callable[[], bool]
    ) -> Iterator[str]:
        """Gives the names that nobody has done or is doing, each claimed until the next one is asked for.

        It ends when all of them are done: what others are doing is waited for, and taken over from those that die.

        Args:
            names: In the order of preference.
            is_done: Asked before a name is given, when it is claimed.
            stop_requested: Asked before each name, and while waiting; True ends it.
        """
        while names:
            busy = []
            for name in names:
                if stop_requested():
                    return
                if is_done(name):
                    continue
                with self.claim(name) as taken:
                    if not taken:
                        busy.append(name)
                    elif not is_done(name):  # its owner may have finished it a moment ago
                        yield name
            if len(busy) == len(names):
                time.sleep(_WAIT_SECONDS)
            names = busy

    def _lock(self, kind: int, name: str) -> bool:
        # 48 bits of a hash: two of ten thousand names share a byte once in a million times, and then take turns.
        place = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6])
        try:
            fcntl.lockf(self._file, kind, 1, place)
        except (BlockingIOError, PermissionError):  # POSIX allows either for a lock that another process holds
            return False
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise
            self.are_exclusive = False
        return True
