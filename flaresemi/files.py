"""Atomic writes (a file is either whole, with its final name, or not there), and what tells a file from another."""

import contextlib
import errno
import fnmatch
import functools
import hashlib
import logging
import mmap
import os
import shutil
import stat
import tempfile
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from flaresemi.errors import ConfigError
from flaresemi.portability import NO_LINK, NO_WAIT, OPENS_FOLDERS, announce
from flaresemi.unfinished import PARTIAL, unfinished_path

logger = logging.getLogger(__name__)

#: What a file system answers that cannot be told to write at once, though it writes.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was written there takes its name when the block ends well.

    The temporary name starts with `.partial-` and ends as `path` does, so that writers which choose the
    format by the extension work unchanged. When the block raises, the temporary file is removed and whatever
    stood at `path` before is untouched.

    Raises:
        ConfigError: something that is neither a file nor a link stands there, such as a device.
        OSError: it cannot be written.
    """
    path = Path(path)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(mode := os.lstat(path).st_mode) and not stat.S_ISLNK(mode):
            raise _no_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished_path(path.parent, path.name)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            sync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(descriptor: int) -> None:
    """Waits until a file or folder is on the disk, where the file system knows how.

    Raises:
        OSError: it could not be written.
    """
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in _NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system and the file system know how.

    Raises:
        OSError: they could not be written.
    """
    if OPENS_FOLDERS:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes `text` (UTF-8) atomically, the same bytes on every system."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def passing_folder(variable: str) -> Iterator[None]:
    """While the block runs, a variable of the environment names an empty folder, which then goes; if set, it stays.

    For libraries that make a folder in the home of the user, or beside other temporary files, when they are imported.
    """
    if variable in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ[variable] = folder
        try:
            yield
        finally:
            del os.environ[variable]


def open_no_link(path: str | Path, flags: int) -> int:
    """A descriptor of a file that is made where it is missing; an `opener`.

    Raises:
        ConfigError: what has the name is a link or no ordinary file.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | NO_LINK | NO_WAIT, 0o666)
    except OSError as problem:
        if problem.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _no_file(path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path)
    return descriptor


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file for reading; an `opener`. A pipe that nobody writes to is not waited for.

    Raises:
        OSError: it cannot be read, or is a pipe or a device.
    """
    descriptor = os.open(path, flags | NO_WAIT)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # Python itself tells of a folder
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", os.fspath(path))
    return descriptor


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a file.

    Raises:
        OSError: as `open_regular`.
        UnicodeDecodeError: it is in no such encoding.
    """
    with open(path, encoding=encoding, errors=errors, opener=open_regular) as file:
        return file.read()


def _no_file(path: str | Path) -> ConfigError:
    return ConfigError(
        "something that is no ordinary file (a link, a folder, a pipe) is in the place of a file of flaresemi",
        where=path,
        fix="see what it is, and remove or rename it",
    )


def map_array(path: Path) -> np.ndarray:
    """A .npy file's array, memory-mapped and read-only; nothing of it is read, and no code in it run.

    Raises:
        ValueError: it is no such file, a damaged one, or shorter than its header says.
        OSError: it cannot be read.
    """
    os.close(open_regular(path))
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except _BAD_HEADER:
        raise ValueError(f"{path.name} is no array, or a damaged one") from None


def read_box(array: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """A box of an array of planes, (..., Y, X), which is read as a whole where the array is mapped.

    Row by row, the system would guess what comes next: it reads the planes one after the other, and whatever lies
    between them (benchmarks/results/slow_disk.md).

    Args:
        array: Of `map_array`, or any other.
        box: A slice with start and stop for each of the last axes; of those before them, all is read.
    """
    slab: np.ndarray = array[(..., *box)]  # type: ignore[arg-type] # numpy's stubs know no slices here
    memory: object = array.base
    if isinstance(memory, mmap.mmap) and slab.size:
        first = slab.__array_interface__["data"][0] - np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
        length = sum((size - 1) * stride for size, stride in zip(slab.shape[-2:], slab.strides[-2:], strict=True))
        for plane in np.ndindex(slab.shape[:-2]):
            start = first + sum(index * stride for index, stride in zip(plane, slab.strides[:-2], strict=True))
            announce(memory, start, length + slab.itemsize)
    return slab


#: What numpy raises of a header that it cannot parse, besides ValueError.
_BAD_HEADER = (
    SyntaxError,
    tokenize.TokenError,
    UserWarning,
    EOFError,
    TypeError,
    OverflowError,
    MemoryError,
    RecursionError,
)


def clear_folder(folder: Path, names: Sequence[str] = ("*",)) -> None:
    """Removes what is in a folder, and the folder if nothing is left in it. Links in it are removed, not followed.

    Args:
        folder: It need not be there.
        names: Patterns of what is removed; the rest stays.

    Raises:
        ConfigError: it is a link: what it leads to is not ours to remove.
        OSError: something in it cannot be removed.
    """
    if folder.is_symlink():
        raise ConfigError(
            "this folder is a link, and what it leads to would be removed",
            where=f"{folder} -> {os.readlink(folder)}",
            fix="remove the link, or what it leads to, yourself; then start the same command again",
        )
    if not folder.exists():
        return
    ours = set(entries(folder, (*names, f"{PARTIAL}*")))
    for path in sorted(folder.iterdir()):
        if path not in ours:
            logger.warning("%s is not removed: flaresemi did not write it", path)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    with contextlib.suppress(OSError):  # something is left
        folder.rmdir()


def entries(folder: Path, names: Sequence[str]) -> list[Path]:
    """The direct entries of a folder that match one of these patterns, sorted; dead links, too."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if any(fnmatch.fnmatchcase(path.name, name) for name in names))


def copy_file(source: Path, target: Path) -> None:
    """Copies what a file holds, atomically; a target that is a link is replaced, not followed."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def content_hash(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file; an unchanged file (size, time) is read only once.

    Raises:
        FileNotFoundError: it is not there.
    """
    status = os.stat(path)
    return _content_hash(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _content_hash(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb", opener=open_regular) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
