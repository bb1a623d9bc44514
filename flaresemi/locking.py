"""One process at a time: a second one that was started by mistake learns who the first one is."""

import contextlib
import datetime
import errno
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from flaresemi.errors import ConfigError
from flaresemi.files import open_no_link

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

#: What a filesystem without locks answers.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

_LONGEST_TOLD = 500

#: What a lock begins with.
_OWNER = b"process "


@contextlib.contextmanager
def working_alone(path: Path, command: Sequence[str]) -> Iterator[None]:
    """Holds a lock while the block runs.

    The kernel releases it at any death of the process, also by SIGKILL, so that it never has to be removed by hand; at
    an ordinary end its file goes as well. Worker processes do not inherit it. Where the filesystem has no locks, or the
    system is Windows, the block runs all the same, after a warning.

    Args:
        path: The file of the lock. Whoever works on the same thing names the same file.
        command: What this process does, for the message to the other.

    Raises:
        ConfigError: another process holds it, and the message names that process; or its file is something else.
        OSError: the file cannot be made.
    """
    started = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    owner = f"process {os.getpid()} on {socket.gethostname()} since {started}: {shlex.join(command)}"
    file = _taken(path, owner)
    try:
        yield
    finally:
        if file is not None:
            if _has_name(file, path):
                path.unlink()  # before it is released: later it may be another's
            file.close()


def _taken(path: Path, owner: str) -> BinaryIO | None:
    """The open file of the lock, which is held now; None where there are no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(_opened(path))
        if not _lock(file, path):
            return None
        if not _has_name(file, path):  # whoever had it before has just removed it
            return _taken(path, owner)
        file.truncate(0)
        file.write(f"{owner}\n".encode("utf-8", "surrogateescape"))
        file.flush()
        opened.pop_all()
        return file


def _opened(path: Path) -> BinaryIO:
    """The file of the lock; what is no lock is left as it is.

    Raises:
        ConfigError: something else has its name.
        OSError: it cannot be made.
    """
    file = open(path, "a+b", opener=open_no_link)  # noqa: SIM115 (the caller's)
    file.seek(0)
    if file.read(len(_OWNER)) not in (b"", _OWNER):
        file.close()
        raise ConfigError(
            "a file that flaresemi did not write has the name of its lock", where=path,
            fix="see what it is, and remove or rename it",
        )  # fmt: skip
    return file


def _lock(file: BinaryIO, path: Path) -> bool:
    """Whether there are locks here; if so it is held now."""
    if sys.platform == "win32":
        reason = "no file locks on Windows"
    else:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            raise _refusal(file, path) from None
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise
            reason = "this filesystem has no locks"
    logger.warning("%s: see to it yourself that no other process works on %s", reason, path.parent)
    return False


def _has_name(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _refusal(file: BinaryIO, path: Path) -> ConfigError:
    file.seek(0)
    text = file.read(_LONGEST_TOLD).decode("utf-8", "replace").strip()
    owner = "".join(letter if letter.isprintable() else "?" for letter in text)
    return ConfigError(
        f"another process is at work here: {owner or 'one that has just begun'}",
        where=path.parent,
        fix="let it end, or stop it (on its host: kill and its number); then the same command goes on from there",
    )
