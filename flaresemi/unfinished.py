"""Files and folders that are not finished yet: what they are called, and which of them killed programs have left."""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from pathlib import Path

from flaresemi.machine import first_line
from flaresemi.portability import is_running

#: What the name of everything unfinished begins with.
PARTIAL = ".partial-"

_OURS = re.compile(rf"{re.escape(PARTIAL)}(?P<host>[0-9a-f]{{8}})-(?P<process>\d+)-(?P<start>\d+)-[0-9a-f]{{8}}(\..*)?")

#: Names that do not say whose they are, as earlier versions gave them: of `tempfile`, and of cases.
_OLDER = re.compile(rf"{re.escape(PARTIAL)}([a-z0-9_]{{8}}|[0-9a-f]{{32}})(\..*)?")

#: Whether a process of another host lives is not known here. What nobody wrote to for so long is given up. Chosen: no
#: file of ours takes nearly so long.
_FORGOTTEN_SECONDS = 24 * 3600

#: What the end of a name may have; a name of 255 bytes is the longest that file systems take.
_LONGEST_ENDING = 48


def unfinished_path(folder: Path, name: str = "") -> Path:
    """A path in a folder for what is being made: its name says by whom, and ends as `name` does.

    The first time that this process asks for one in a folder, it removes what killed programs left there.
    """
    _remove_leftovers_once(os.path.abspath(folder), os.getpid())
    ending = f".{name[-_LONGEST_ENDING:]}" if name else ""
    return Path(folder) / f"{PARTIAL}{_owner(os.getpid())}-{uuid.uuid4().hex[:8]}{ending}"


def remove_leftovers(*folders: Path) -> None:
    """Removes what killed programs left unfinished directly in folders; never what a living one may be writing."""
    for folder in folders:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in [each for each in os.scandir(folder) if each.name.startswith(PARTIAL)]:
                if _is_left(Path(entry)):
                    _remove(entry)


def _remove(entry: os.DirEntry) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry, ignore_errors=True)
    else:
        Path(entry).unlink(missing_ok=True)


@functools.lru_cache(maxsize=1024)
def _remove_leftovers_once(folder: str, process: int) -> None:  # a forked process has its own number, and looks again
    remove_leftovers(Path(folder))


def _is_left(path: Path) -> bool:
    """Whether whoever made this is gone; False, too, for what flaresemi did not name."""
    name = _OURS.fullmatch(path.name)
    if name is None:
        return _OLDER.fullmatch(path.name) is not None
    lives = _lives(int(name["process"]), int(name["start"])) if name["host"] == _host() else None
    if lives is None:
        with contextlib.suppress(OSError):
            return time.time() - os.lstat(path).st_mtime > _FORGOTTEN_SECONDS
        return False
    return not lives


def _lives(process: int, start: int) -> bool | None:
    """Whether a process of this host is running that began then; its number may be another's by now. None: unknown."""
    running = is_running(process)
    if not running:
        return running
    state, found = _state_and_start(process)
    return state not in ("Z", "X") and (0 in (start, found) or start == found)


@functools.lru_cache(maxsize=4)
def _owner(process: int) -> str:
    return f"{_host()}-{process}-{_state_and_start(process)[1]}"


@functools.cache
def _host() -> str:
    """Stands for this host since it was booted, and for this container: where a process's number means something."""
    try:
        numbers = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        numbers = ""
    words = (socket.gethostname(), first_line("/proc/sys/kernel/random/boot_id"), numbers)
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _state_and_start(process: int) -> tuple[str, int]:
    """A letter for what a process does, and when it began, in ticks since the boot; 0 where that is not known.

    psutil's time of creation is none that lasts: it moves whenever the clock is set.
    """
    fields = first_line(f"/proc/{process}/stat").rpartition(")")[2].split()  # its name may hold spaces
    return (fields[0], int(fields[19])) if len(fields) > 19 else ("", 0)
