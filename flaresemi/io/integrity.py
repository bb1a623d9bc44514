"""Whether an image file is whole, found out before anything is decoded or allocated.

Readers are not trusted with this: SimpleITK reads a gzip stream that was cut off halfway, and an uncompressed file
that is named .nii.gz, without an error.
"""

import contextlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flaresemi.errors import ImageError
from flaresemi.files import open_regular
from flaresemi.machine import total_memory_gib
from flaresemi.portability import file_in_memory
from flaresemi.system_errors import is_shortage

#: Deflate cannot compress better than this (source: zlib's technical details, "maximum compression factor 1032:1").
_DEFLATE_LIMIT = 1032

#: A stream that announces this many bytes, compressed more than images and most label maps are, is looked through
#: before memory is taken for it. Chosen.
_LARGE = 64 << 20
_COMMON_RATIO = 50

_CHUNK = 1 << 20


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens an image file for reading, at its start; what the system says of it afterwards is told, too.

    Raises:
        ImageError: it does not exist, is no regular file, is empty, is a git-LFS pointer, or the system cannot read it;
            or its path is no text.
        OSError: files or memory ran out, which says nothing of this one.
    """
    check_path(path)
    try:
        with open(path, "rb", opener=open_regular) as file:
            start = file.read(64)
            if not start:
                raise ImageError("the file is empty", where=path, fix="copy or download it again")
            if start.startswith(b"version https://git-lfs"):
                raise ImageError(
                    "the file is a git-LFS pointer, not the image itself", where=path, fix="run 'git lfs pull' there"
                )
            file.seek(0)
            yield file
    except FileNotFoundError:
        raise ImageError("file not found", where=path) from None
    except OSError as problem:
        if is_shortage(problem):
            raise
        raise ImageError(f"the file cannot be read: {problem.strerror or problem}", where=path) from None


def check_path(path: Path) -> None:
    """Checks that a path is text in UTF-8: the library in C++ that reads and writes images dies of any other.

    Raises:
        ImageError: it is not.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise ImageError(
            "the path holds bytes that are no UTF-8", where=path, fix="rename the file or folder"
        ) from None


def raise_shortage(path: Path, problem: RuntimeError) -> None:
    """Raises what the system lacks where a library failed for that reason, so that no file is called damaged for it.

    Raises:
        OSError: no more files can be opened.
        RuntimeError: `problem`, where it tells of a lack of memory.
        ImageError: as `opened`.
    """
    with opened(path):
        if is_shortage(problem):
            raise problem


def path_of(file: BinaryIO) -> Path:
    """The path that a file was opened by."""
    return Path(file.name)


@contextlib.contextmanager
def as_file(content: bytes | memoryview) -> Iterator[str]:
    """A path that holds this; in memory, where the system has such files, so that no folder need be writable."""
    if (descriptor := file_in_memory("image")) is not None:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        yield str(path)


def is_gzip(file: BinaryIO) -> bool:
    """True when a file starts as gzip streams do."""
    file.seek(0)
    return file.read(2) == b"\x1f\x8b"


def inflate_start(file: BinaryIO, count: int) -> bytes:
    """The first `count` bytes inside a gzip file, or fewer where it holds fewer.

    Raises:
        ImageError: the stream is damaged at its start.
    """
    file.seek(0)
    stream = zlib.decompressobj(wbits=47)
    start = bytearray()
    while len(start) < count and not stream.eof:
        data = stream.unconsumed_tail or file.read(4096)
        if not data:
            break
        try:
            start += stream.decompress(data, count - len(start))
        except zlib.error as problem:
            raise damaged(path_of(file), str(problem)) from None
    return bytes(start)


def inflate(file: BinaryIO, *, count: int, offset: int = 0, keep: bool = True) -> np.ndarray:
    """Decompresses a gzip or zlib stream to its very end, checksums included, and returns its first `count` bytes.

    Several gzip members in a row (bgzip, `cat a.gz b.gz`) are one stream. Nothing beyond `count` bytes is held.

    Args:
        file: The file.
        count: Bytes that the stream must hold at least.
        offset: Where in the file the stream starts.
        keep: False only checks, and returns an empty array.

    Raises:
        ImageError: the stream breaks off, is damaged, or holds fewer than `count` bytes; or `count` is more than a
            file of this size can hold, in which case nothing is allocated.
    """
    check_inflatable(file, count=count, offset=offset)
    if keep and count > max(_LARGE, _COMMON_RATIO * _size(file)):
        inflate(file, count=count, offset=offset, keep=False)  # memory only for what is there
    file.seek(offset)
    kept = np.empty(count if keep else 0, np.uint8)
    total = 0
    for piece in _inflated(file):
        if total < kept.size:
            part = np.frombuffer(piece, np.uint8)[: kept.size - total]
            kept[total : total + part.size] = part
        total += len(piece)
    if total < count:
        raise too_short(path_of(file), count, f"only {total} bytes are in the file")
    return kept


def check_inflatable(file: BinaryIO, *, count: int, offset: int = 0) -> None:
    """Checks, without decompressing, that `count` bytes can come out of a compressed file of this size at all.

    Raises:
        ImageError: they cannot.
    """
    size = _size(file)
    if count > (size - offset) * _DEFLATE_LIMIT:
        raise too_short(path_of(file), count, f"which cannot be in the {size} bytes of the file")


def check_raw(file: BinaryIO, *, count: int, offset: int | None) -> None:
    """Checks that `count` uncompressed bytes lie at `offset` of a file.

    Raises:
        ImageError: the file is shorter.
    """
    held = _size(file) - (offset or 0)
    if held < count:
        raise too_short(path_of(file), count, f"only {max(held, 0)} bytes are in the file")


def read_array(file: BinaryIO, dtype: np.dtype, count: int, offset: int | None) -> np.ndarray:
    """The `count` uncompressed numbers that lie at `offset` of a file; None: that are its last ones."""
    file.seek(_size(file) - count * dtype.itemsize if offset is None else offset)
    return np.fromfile(file, dtype, count)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def check_memory(path: Path, count: int) -> None:
    """Checks that this machine, or what a job has of it, holds `count` bytes in memory at all.

    Raises:
        ImageError: it has less.
    """
    memory_gib = total_memory_gib()
    if count > memory_gib * 2**30:
        raise ImageError(
            f"the image takes {count / 2**30:.0f} GiB of memory, there are {memory_gib:.0f}",
            where=path,
            fix="crop or resample it, or give the job more, or use a larger machine",
        )


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    stream = zlib.decompressobj(wbits=47)
    data = file.read(_CHUNK)
    try:
        while True:
            if data:
                yield stream.decompress(data, 16 * _CHUNK)
            if stream.eof:
                rest = stream.unused_data or file.read(_CHUNK)
                if not rest.startswith(b"\x1f\x8b"):  # padding, or the next thing in a container
                    return
                stream, data = zlib.decompressobj(wbits=47), rest
                continue
            data = stream.unconsumed_tail or file.read(_CHUNK)
            if not data:
                raise damaged(path_of(file), "the compressed stream breaks off before its end")
    except zlib.error as problem:
        raise damaged(path_of(file), str(problem)) from None


def damaged(path: Path, why: str) -> ImageError:
    """The complaint about a file whose content cannot be made sense of."""
    return ImageError(f"the file is damaged: {why}", where=path, fix="copy or download it again")


def too_short(path: Path, count: int, found: str) -> ImageError:
    """The complaint about a file that holds less than its header announces."""
    return ImageError(
        f"the file is not whole: its header announces {count} bytes, {found}",
        where=path,
        fix="copy or download it again",
    )
