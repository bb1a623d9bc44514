"""Whether an image file is whole, found out before anything is decoded or allocated.

Readers are not trusted with this: SimpleITK reads a gzip stream that was cut off halfway, and an uncompressed file
that is named .nii.gz, without an error.
"""

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flaresemi.errors import ImageError

#: Deflate cannot compress better than this (source: zlib's technical details, "maximum compression factor 1032:1").
_DEFLATE_LIMIT = 1032

_CHUNK = 1 << 20
_HEADER_LIMIT = 16 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VoxelStream:
    """Where the voxels of a file with a text header lie.

    Attributes:
        path: The file that holds them, which may be another than the header's.
        offset: Byte that they start at; None: they are the last bytes of the file.
        encoding: `raw`, `deflate` (gzip or zlib), or `other` (text and bzip2, which are left to the reader).
    """

    path: Path
    offset: int | None
    encoding: str


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens an image file for reading, at its start.

    Raises:
        ImageError: it does not exist, is empty, is a git-LFS pointer, or the system cannot read it.
    """
    try:
        with open(path, "rb") as file:
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
        raise ImageError(f"the file cannot be read: {problem.strerror or problem}", where=path) from None


def is_gzip(path: Path) -> bool:
    """True when a file starts as gzip streams do.

    Raises:
        ImageError: as `opened`.
    """
    with opened(path) as file:
        return file.read(2) == b"\x1f\x8b"


def inflate_start(path: Path, count: int) -> bytes:
    """The first `count` bytes inside a gzip file, or fewer where it holds fewer.

    Raises:
        ImageError: as `opened`, or the stream is damaged at its start.
    """
    with opened(path) as file:
        stream = zlib.decompressobj(wbits=47)
        start = bytearray()
        while len(start) < count and not stream.eof:
            data = stream.unconsumed_tail or file.read(4096)
            if not data:
                break
            try:
                start += stream.decompress(data, count - len(start))
            except zlib.error as problem:
                raise _damaged(path, str(problem)) from None
        return bytes(start)


def inflate(path: Path, *, count: int, offset: int = 0, keep: bool = True) -> np.ndarray:
    """Decompresses a gzip or zlib stream to its very end, checksums included, and returns its first `count` bytes.

    Several gzip members in a row (bgzip, `cat a.gz b.gz`) are one stream. Nothing beyond `count` bytes is held.

    Args:
        path: The file.
        count: Bytes that the stream must hold at least.
        offset: Where in the file the stream starts.
        keep: False only checks, and returns an empty array.

    Raises:
        ImageError: the stream breaks off, is damaged, or holds fewer than `count` bytes; or `count` is more than a
            file of this size can hold, in which case nothing is allocated.
    """
    check_inflatable(path, count=count, offset=offset)
    with opened(path) as file:
        file.seek(offset)
        kept = np.empty(count if keep else 0, np.uint8)
        total = 0
        for piece in _inflated(file, path):
            if total < kept.size:
                part = np.frombuffer(piece, np.uint8)[: kept.size - total]
                kept[total : total + part.size] = part
            total += len(piece)
    if total < count:
        raise _too_short(path, count, f"only {total} bytes are in the file")
    return kept


def check_inflatable(path: Path, *, count: int, offset: int = 0) -> None:
    """Checks, without decompressing, that `count` bytes can come out of a compressed file of this size at all.

    Raises:
        ImageError: they cannot, or as `opened`.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
    if count > (size - offset) * _DEFLATE_LIMIT:
        raise _too_short(path, count, f"which cannot be in the {size} bytes of the file")


def check_raw(path: Path, *, count: int, offset: int | None) -> None:
    """Checks that `count` uncompressed bytes lie at `offset` of a file.

    Raises:
        ImageError: the file is shorter, or as `opened`.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size < count + (offset or 0):
        raise _too_short(path, count, f"only {max(size - (offset or 0), 0)} bytes are in the file")


def find_voxels(path: Path) -> VoxelStream:
    """Reads the text header of a MetaImage (.mha, .mhd) or NRRD file as far as to know where its voxels lie.

    Raises:
        ImageError: it is no such header, or the voxels are in several files.
    """
    with opened(path) as file:
        fields = _nrrd_fields(file, path) if file.read(4) == b"NRRD" else _meta_fields(file, path)
        end = file.tell()
    stream = _nrrd_stream(path, fields, end) if path.name.lower().endswith(".nrrd") else _meta_stream(path, fields, end)
    if not stream.path.is_file():
        raise ImageError(f"its voxels should be in '{stream.path.name}', which is not there", where=path)
    return stream


def _inflated(file: BinaryIO, path: Path) -> Iterator[bytes]:
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
                raise _damaged(path, "the compressed stream breaks off before its end")
    except zlib.error as problem:
        raise _damaged(path, str(problem)) from None


def _meta_fields(file: BinaryIO, path: Path) -> dict[str, str]:
    file.seek(0)
    fields: dict[str, str] = {}
    for line in _lines(file, path):
        key, equals, value = line.partition("=")
        if not equals:
            break
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            return fields
    raise ImageError("not a MetaImage file: its header has no ElementDataFile", where=path)


def _nrrd_fields(file: BinaryIO, path: Path) -> dict[str, str]:
    file.seek(0)
    fields: dict[str, str] = {}
    for line in _lines(file, path):
        if not line:
            return fields
        key, colon, value = line.partition(":")
        if colon and not value.startswith("=") and not line.startswith("#"):
            fields[key.strip().lower()] = value.strip()
    return fields  # a detached header may end without an empty line


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    while line := file.readline(_HEADER_LIMIT):
        if file.tell() > _HEADER_LIMIT:
            raise ImageError("not an image file: its text header has no end", where=path)
        yield line.decode("utf-8", errors="replace").strip()


def _meta_stream(path: Path, fields: dict[str, str], end: int) -> VoxelStream:
    # MetaIO keeps ten axes in fixed arrays, so an absurd number must not reach it.
    if fields.get("ndims") not in ("1", "2", "3", "4", "5"):
        raise ImageError(f"expected a 3D image, the header says NDims = {fields.get('ndims')}", where=path)
    data_file = fields["elementdatafile"]
    if data_file.upper().startswith("LIST") or "%" in data_file:
        raise ImageError("voxels in several files are not supported", where=path, fix="write one .mha file")
    local = data_file.upper() == "LOCAL"
    header_size = fields.get("headersize", "0")
    offset = end if local else (None if header_size == "-1" else _integer(header_size, path))
    if fields.get("compresseddata", "false").lower() in ("true", "1"):
        encoding = "deflate"
    else:
        encoding = "raw" if fields.get("binarydata", "true").lower() in ("true", "1") else "other"
    return VoxelStream(path=path if local else path.parent / data_file, offset=offset, encoding=encoding)


def _nrrd_stream(path: Path, fields: dict[str, str], end: int) -> VoxelStream:
    if "dimension" not in fields:
        raise ImageError("not an NRRD file: its header has no dimension", where=path)
    encoding = fields.get("encoding", "").lower()
    kind = "deflate" if encoding in ("gzip", "gz") else "raw" if encoding == "raw" else "other"
    data_file = fields.get("data file", fields.get("datafile"))
    if data_file is not None and (data_file.upper().startswith("LIST") or "%" in data_file):
        raise ImageError("voxels in several files are not supported", where=path, fix="write one .nrrd file")
    skip = _integer(fields.get("byte skip", "0"), path)
    if _integer(fields.get("line skip", "0"), path):
        kind = "other"
    if data_file is None:
        return VoxelStream(path=path, offset=None if skip < 0 else end + skip, encoding=kind)
    return VoxelStream(path=path.parent / data_file, offset=None if skip < 0 else skip, encoding=kind)


def _integer(text: str, path: Path) -> int:
    try:
        return int(text)
    except ValueError:
        raise ImageError(f"the header has '{text}' where a whole number belongs", where=path) from None


def _damaged(path: Path, why: str) -> ImageError:
    return ImageError(f"the file is damaged: {why}", where=path, fix="copy or download it again")


def _too_short(path: Path, count: int, found: str) -> ImageError:
    return ImageError(
        f"the file is not whole: its header announces {count} bytes, {found}",
        where=path,
        fix="copy or download it again",
    )
