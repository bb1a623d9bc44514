"""Files of tensors as torch writes them: checked as archives, read without running code, refused in one message."""

import errno
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from flaresemi.errors import CheckpointError, shown
from flaresemi.files import open_regular
from flaresemi.system_errors import is_shortage

_AGAIN = "copy it again; on the machine that trained it, flaresemi_train with --continue writes final weights anew"

#: How torch names what a file asks to be imported or called, which is not done.
_CODE = (
    re.compile(r"GLOBAL (?P<name>[\w.]+)"),
    re.compile(r"reduce for unrecognized function (?P<name>.+)"),
)


def read_tensors(path: Path, stand_ins: Mapping[str, Any] | None = None, *, mapped: bool = False) -> object:
    """What a file holds: tensors on the CPU and plain types. No code in the file is run, nothing it names imported.

    Args:
        path: The file.
        stand_ins: By the full name of what the file may name besides: what is called in its place.
        mapped: Leave the tensors in the file until they are used; whoever keeps one copies it.

    Raises:
        CheckpointError: it is missing, cut off or damaged, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError("checkpoint not found", where=path, fix="train it first, or name another with -m")
    with open(path, "rb", opener=open_regular) as file:
        _check_archive(file, path)
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (stand_in, name) for name, stand_in in (stand_ins or {}).items()
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as problem:
        if is_shortage(problem):
            raise CheckpointError(
                "there is not enough memory for what this checkpoint announces",
                where=path,
                fix="close other programs; if there is much memory, the file is damaged: copy it again",
            ) from None
        code = next((found for pattern in _CODE if (found := pattern.search(str(problem)))), None)
        if code is not None:
            raise CheckpointError(
                f"this file asks to run '{shown(code['name'])}', which no file of weights needs: it was not run, and "
                "nothing of the file is used",
                where=path,
                fix="do not open it with other programs; get the model again from whom you trust",
            ) from None
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise CheckpointError(
            f"not a flaresemi checkpoint, or a damaged one: {shown(reason, 200)}",
            where=path,
            fix="name a .pt file from a model folder",
        ) from None


#: Exceptions of unpickling malformed content, besides those that it documents.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    UserWarning,
)


def _check_archive(file: BinaryIO, path: Path) -> None:
    """Checks that a zip archive is whole and holds no more than the file does.

    torch writes one, uncompressed, whose directory stands at the end: a file that was cut off has none, and a changed
    byte is caught by the checksums, which torch itself does not look at.
    """
    try:
        size = os.fstat(file.fileno()).st_size
        _check_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > size
            if packed or (size < _ZIP64_FROM and any(entry.extra for entry in entries)):  # other sizes may stand there
                raise ValueError("it is packed as no checkpoint is")
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error) as problem:
        raise _not_whole(path, problem) from None
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # a place before the start of the file
            raise
        raise _not_whole(path, problem) from None
    if broken is not None:
        raise damaged(path, f"bad checksum in {shown(broken)}")


def _check_directory(file: BinaryIO, size: int) -> None:
    """Checks that an archive's directory is where its end says, and ends where that begins.

    Python looks for it in one of these places and torch in the other: what is checked shall be what is read.

    Raises:
        ValueError: it is not, or something follows the archive's end.
        struct.error: the file is shorter than an end of an archive.
    """
    file.seek(max(size - _ENDS, 0))
    ends = file.read(_ENDS)
    signature, *_, length, start, comment = struct.unpack("<4s4H2LH", ends[-22:])
    end = size - 22
    if signature != b"PK\5\6" or comment:
        raise ValueError("it has no end")
    if ends[-42:-38] == b"PK\6\7":  # another end before this one, for large archives, and a word about where it is
        (end,) = struct.unpack("<Q", ends[-34:-26])
        signature, *_, length, start = struct.unpack("<4sQ2H2L4Q", ends[:56])
        if signature != b"PK\6\6" or end != size - _ENDS:
            raise ValueError("it has two ends")
    if start + length != end:
        raise ValueError("it has two directories")


#: The bytes of the three ends of an archive, and the size from which entries need more than they have by themselves.
_ENDS, _ZIP64_FROM = 56 + 20 + 22, 0xFFFFFFFF


def _not_whole(path: Path, problem: Exception) -> CheckpointError:
    what = f"truncated, damaged or no checkpoint at all: {shown(str(problem), 200)}"
    return CheckpointError(what, where=path, fix=_AGAIN)


def damaged(path: Path, why: str) -> CheckpointError:
    """The error for a file that is not what it was when it was written."""
    return CheckpointError(f"damaged checkpoint: {why}", where=path, fix=_AGAIN)
