"""MetaImage (.mha, .mhd) and NRRD files: where their voxels lie, and the voxels, decompressed once.

The library reads what their headers say of the grid; the voxels it is not trusted with: it follows a header to any
file of the machine, and takes memory for whatever size is announced.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from flaresemi.errors import ImageError, shown
from flaresemi.geometry import IntTriple
from flaresemi.io import integrity

_HEADER_LIMIT = 16 << 20

#: The library writes past the end of its messages about a longer line of an NRRD header, and dies (seen from 1100
#: characters on). A comment, the content and a pair of key and value do not get there, whatever their length.
_NRRD_LINE_LIMIT = 500

_ONE_FILE = "write one {} file that holds its voxels itself"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VoxelStream:
    """Where the voxels of a file with a text header lie.

    Attributes:
        path: The file that holds them, which may be another than the header's.
        offset: Byte that they start at; None: they are the last bytes of the file.
        encoding: `deflate` is gzip or zlib; `text` and `hex` are digits.
        big_endian: The order of their bytes.
    """

    path: Path
    offset: int | None
    encoding: Literal["raw", "deflate", "text", "hex"]
    big_endian: bool

    def check(self, count: int, dtype: np.dtype) -> None:
        """Checks, without reading them, that `count` voxels can be in the file.

        Raises:
            ImageError: they cannot.
        """
        size, offset = count * dtype.itemsize, self.offset or 0
        if self.encoding == "raw":
            integrity.check_raw(self.path, count=size, offset=offset)
        elif self.encoding == "deflate":
            integrity.check_inflatable(self.path, count=size, offset=offset)
        else:  # a digit and a blank, or two digits a byte
            integrity.check_raw(self.path, count=2 * (count if self.encoding == "text" else size) - 1, offset=offset)

    def read(self, shape_zyx: IntTriple, dtype: np.dtype) -> np.ndarray:
        """The voxels, (Z, Y, X), of this type and the file's byte order.

        Raises:
            ImageError: the file is not whole.
        """
        count = math.prod(shape_zyx)
        self.check(count, dtype)
        stored = dtype.newbyteorder(">" if self.big_endian else "<")
        if self.encoding == "deflate":
            data = integrity.inflate(self.path, count=count * dtype.itemsize, offset=self.offset or 0)
            return data.view(stored).reshape(shape_zyx)
        with integrity.opened(self.path) as file:
            if self.encoding == "raw":
                last = os.fstat(file.fileno()).st_size - count * dtype.itemsize
                file.seek(last if self.offset is None else self.offset)
                return np.fromfile(file, stored, count).reshape(shape_zyx)
            file.seek(self.offset or 0)
            digits = file.read()
        return self._parsed(digits, count, stored).reshape(shape_zyx)

    def _parsed(self, digits: bytes, count: int, stored: np.dtype) -> np.ndarray:
        try:
            if self.encoding == "hex":
                voxels = np.frombuffer(bytes.fromhex(digits.decode("ascii")), stored)
            else:
                voxels = np.array(digits.decode("ascii").replace(",", " ").split()).astype(stored)
        except (ValueError, OverflowError):
            raise integrity.damaged(self.path, "something other than numbers stands among its voxels") from None
        if voxels.size < count:
            raise integrity.too_short(self.path, count * stored.itemsize, f"only {voxels.nbytes} bytes are in the file")
        return voxels[:count]


def find_voxels(path: Path) -> VoxelStream:
    """Reads the text header of a MetaImage or NRRD file as far as to know where its voxels lie.

    Raises:
        ImageError: it is no such header; or the voxels are in several files, in one that is not there, or in one that
            lies outside of the header's folder.
    """
    with integrity.opened(path) as file:
        if path.name.lower().endswith(".nrrd"):
            return _nrrd_stream(path, _nrrd_fields(file, path), file.tell())
        return _meta_stream(path, _meta_fields(file, path), file.tell())


def _meta_fields(file: BinaryIO, path: Path) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in _lines(file, path):
        parts = re.split("[=:]", line, maxsplit=1)  # as MetaIO, which knows both, and capital letters from small ones
        if len(parts) == 1:
            break
        fields[parts[0].strip()] = parts[1].strip()
        if "ElementDataFile" in fields:
            return fields
    raise ImageError("not a MetaImage file: its header has no ElementDataFile", where=path)


def _nrrd_fields(file: BinaryIO, path: Path) -> dict[str, str]:
    if file.read(4) != b"NRRD":
        raise ImageError("not an NRRD file", where=path)
    fields: dict[str, str] = {}
    for line in _lines(file, path):
        if not line:
            return fields
        key, colon, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):
            continue
        if len(line) > _NRRD_LINE_LIMIT and key.strip().lower() != "content":
            raise ImageError(
                f"a line of its header has {len(line)} characters, expected at most {_NRRD_LINE_LIMIT}: "
                f"'{shown(line)}'", where=path,
            )  # fmt: skip
        if colon:
            fields[key.strip().lower()] = value.strip()
    return fields  # a detached header may end without an empty line


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    while line := file.readline(_HEADER_LIMIT):
        if file.tell() > _HEADER_LIMIT:
            raise ImageError("not an image file: its text header has no end", where=path)
        yield line.decode("utf-8", errors="replace").strip()


def _meta_stream(path: Path, fields: dict[str, str], end: int) -> VoxelStream:
    # MetaIO keeps ten axes in fixed arrays, so an absurd number must not reach it.
    if fields.get("NDims") not in ("1", "2", "3", "4", "5"):
        raise ImageError(f"expected a 3D image, the header says NDims = {shown(str(fields.get('NDims')))}", where=path)
    if not _is_true(fields.get("BinaryData", "True")):
        raise ImageError("voxels as text are not supported", where=path, fix="write them as binary data")
    data_file = fields["ElementDataFile"]
    local = data_file.upper() == "LOCAL"
    skip = _integer(fields.get("HeaderSize", "0"), path)
    return VoxelStream(
        path=path if local else _beside(path, data_file, ".mha"),
        offset=None if skip == -1 else skip if skip > 0 else end if local else 0,
        encoding="deflate" if _is_true(fields.get("CompressedData", "False")) else "raw",
        big_endian=_is_true(fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))),
    )


def _nrrd_stream(path: Path, fields: dict[str, str], end: int) -> VoxelStream:
    if "dimension" not in fields:
        raise ImageError("not an NRRD file: its header has no dimension", where=path)
    encoding = _NRRD_ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        raise ImageError(
            f"voxels of encoding '{shown(fields.get('encoding', ''))}' are not supported", where=path,
            fix="write it with encoding raw or gzip",
        )  # fmt: skip
    data_file = fields.get("data file", fields.get("datafile"))
    skip = _integer(fields.get("byte skip", fields.get("byteskip", "0")), path)
    lines = _integer(fields.get("line skip", fields.get("lineskip", "0")), path)
    if lines or (skip and encoding != "raw") or skip < -1:
        raise ImageError("voxels that begin somewhere in a file are not supported", where=path,
                         fix=_ONE_FILE.format(".nrrd"))  # fmt: skip
    start = end if data_file is None else 0
    return VoxelStream(
        path=path if data_file is None else _beside(path, data_file, ".nrrd"),
        offset=None if skip == -1 else start + skip,
        encoding=encoding,
        big_endian=fields.get("endian", "little").lower() == "big",
    )


_NRRD_ENCODINGS: dict[str, Literal["raw", "deflate", "text", "hex"]] = {
    "raw": "raw", "gzip": "deflate", "gz": "deflate", "text": "text", "txt": "text", "ascii": "text", "hex": "hex",
}  # fmt: skip


def _beside(path: Path, name: str, ending: str) -> Path:
    """The file that a header names, which must lie in its folder or below: no header leads a reader elsewhere."""
    if name.upper().startswith("LIST") or "%" in name:
        raise ImageError("voxels in several files are not supported", where=path, fix=f"write one {ending} file")
    if os.path.isabs(name) or ".." in Path(name).parts or "\\" in name:
        raise ImageError(
            f"its voxels should be in '{shown(name)}', outside of its folder", where=path,
            fix=f"put that file beside it, or {_ONE_FILE.format(ending)}",
        )  # fmt: skip
    try:
        if (path.parent / name).is_file():
            return path.parent / name
    except OSError:  # a name that no file system takes
        pass
    raise ImageError(f"its voxels should be in '{shown(name)}', which is not there", where=path)


def _is_true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")  # as MetaIO


def _integer(text: str, path: Path) -> int:
    try:
        return int(text)
    except ValueError:
        raise ImageError(f"the header has '{shown(text)}' where a whole number belongs", where=path) from None
