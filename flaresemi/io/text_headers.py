"""MetaImage (.mha, .mhd) and NRRD files: where their voxels lie, and the voxels, decompressed once; units of length.

The library reads what headers say of the grid, from a copy of the lines that say it. With files it is not trusted: it
follows a header to any other file, and takes memory for whatever size is announced. pynrrd would not help: it takes a
header apart, but leaves its meaning (spaces, spacings, axes that are none) to its user, knows no limits, and refuses
headers that others read.
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
from flaresemi.geometry import FloatTriple
from flaresemi.io import integrity

#: Millimetres per unit of length, by its name in lower case. What names none ("", "?") is taken as mm, as everywhere.
#: Source: MetaIO's names of `DistanceUnits`; NRRD leaves its words free and suggests "mm" and the like.
_MILLIMETRES = {
    unit: size
    for size, units in (
        (1.0, ("", "?", "???", "none", "unknown", "mm", "millimeter", "millimetre")),
        (1e-6, ("nm", "nanometer", "nanometre")),
        (1e-3, ("um", "µm", "μm", "micron", "micrometer", "micrometre")),
        (10.0, ("cm", "centimeter", "centimetre")),
        (100.0, ("dm", "decimeter", "decimetre")),
        (1000.0, ("m", "meter", "metre")),
        (25.4, ("in", "inch", "inche")),
    )
    for unit in units
}

_HEADER_LIMIT = 16 << 20

#: The library writes past the end of its messages about a longer line of an NRRD header, and dies (seen from 1100
#: characters on). A comment, the content and a pair of key and value are not shown to it, whatever their length.
_NRRD_LINE_LIMIT = 500

#: Where voxels lie is none of the library's business.
_NRRD_FILE_FIELDS = ("data file", "datafile", "byte skip", "byteskip", "line skip", "lineskip")

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

    def check(self, file: BinaryIO, count: int, dtype: np.dtype) -> None:
        """Checks, without reading them, that `count` voxels can be in the file.

        Raises:
            ImageError: they cannot.
        """
        size, offset = count * dtype.itemsize, self.offset or 0
        if self.encoding == "raw":
            integrity.check_raw(file, count=size, offset=offset)
        elif self.encoding == "deflate":
            integrity.check_inflatable(file, count=size, offset=offset)
        else:  # a digit and a blank, or two digits a byte
            integrity.check_raw(file, count=2 * (count if self.encoding == "text" else size) - 1, offset=offset)

    def read(self, file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The voxels, of this type and the file's byte order, in an array whose last axis is the file's first.

        Raises:
            ImageError: the file is not whole.
        """
        count = math.prod(shape)
        stored = dtype.newbyteorder(">" if self.big_endian else "<")
        if self.encoding == "deflate":
            data = integrity.inflate(file, count=count * dtype.itemsize, offset=self.offset or 0)
            return data.view(stored).reshape(shape)
        if self.encoding == "raw":
            return integrity.read_array(file, stored, count, self.offset).reshape(shape)
        file.seek(self.offset or 0)
        return self._parsed(file.read(), count, stored).reshape(shape)

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextHeader:
    """The parts of a MetaImage or NRRD header that the library does not tell.

    Attributes:
        voxels: Where they lie.
        world_mm: Millimetres per unit of the world's x, y and z, which origin and directions are told in.
        voxel_mm: Millimetres per unit of the sizes of a voxel along the file's first axes, where those are told alone.
        layer_axis: Which of the file's axes (its first is 0) counts layers of voxels, and nothing in the patient.
        pairs: Keys and values that a program has left for itself.
        text: The header as the library may see it: without what leads to other files, and whatever is not the format's.
    """

    voxels: VoxelStream
    text: str
    world_mm: FloatTriple = (1.0, 1.0, 1.0)
    voxel_mm: FloatTriple = (1.0, 1.0, 1.0)
    layer_axis: int | None = None
    pairs: dict[str, str] = dataclasses.field(default_factory=dict)


def read_text_header(file: BinaryIO) -> TextHeader:
    """Reads the text header of a MetaImage or NRRD file, but for what the library reads of it.

    Raises:
        ImageError: it is no such header; or the voxels are in several files, in one that is not there, or in one that
            lies outside of the header's folder; or its lengths have a unit that is not known.
    """
    path = integrity.path_of(file)
    if path.name.lower().endswith(".nrrd"):
        fields, pairs, text = _nrrd_fields(file, path)
        return TextHeader(
            voxels=_nrrd_stream(path, fields, file.tell()),
            text=text,
            world_mm=_nrrd_units(path, fields, "space units"),
            voxel_mm=_nrrd_units(path, fields, "units"),
            layer_axis=_nrrd_layer_axis(fields),
            pairs=pairs,
        )
    fields, text = _meta_fields(file, path)
    unit = _millimetres(fields.get("DistanceUnits", ""), path)
    return TextHeader(voxels=_meta_stream(path, fields, file.tell()), text=text, world_mm=(unit, unit, unit))


def _meta_fields(file: BinaryIO, path: Path) -> tuple[dict[str, str], str]:
    fields: dict[str, str] = {}
    text = ""
    for line in _lines(file, path):
        parts = re.split("[=:]", line, maxsplit=1)  # as MetaIO, which knows both, and capital letters from small ones
        if len(parts) == 1:
            break
        fields[parts[0].strip()] = parts[1].strip()
        if "ElementDataFile" in fields:
            return fields, f"{text}ElementDataFile = LOCAL\n"
        text += f"{line}\n"
    raise ImageError("not a MetaImage file: its header has no ElementDataFile", where=path)


def _nrrd_fields(file: BinaryIO, path: Path) -> tuple[dict[str, str], dict[str, str], str]:
    """The fields of the format, by their names in lower case; pairs of key and value; and the lines of the format."""
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    lines = _lines(file, path)
    text = f"{next(lines)}\n"
    if not text.startswith("NRRD"):
        raise ImageError("not an NRRD file", where=path)
    for line in lines:
        if not line:
            break
        key, colon, value = line.partition(":")
        name = key.strip().lower()
        if value.startswith("=") and not line.startswith("#"):
            pairs[key] = value[1:]
        elif not line.startswith("#") and name != "content":
            if len(line) > _NRRD_LINE_LIMIT:
                raise ImageError(
                    f"a line of its header has {len(line)} characters, expected at most {_NRRD_LINE_LIMIT}: "
                    f"'{shown(line)}'",
                    where=path,
                )
            if colon and name in fields:
                raise ImageError(f"its header says '{shown(name)}' twice", where=path)
            if colon:
                fields[name] = value.strip()
            if name not in _NRRD_FILE_FIELDS:
                text += f"{line}\n"
    return fields, pairs, f"{text}\n"  # a detached header may end without an empty line


def _nrrd_units(path: Path, fields: dict[str, str], key: str) -> FloatTriple:
    """Millimetres per unit along three axes: the words in quotes, axes that number something else left out."""
    units = re.findall(r'"([^"]*)"', fields.get(key, ""))
    layer = _nrrd_layer_axis(fields)
    if key == "units" and layer is not None and layer < len(units):
        del units[layer]
    x, y, z = (_millimetres(unit, path) for unit in (*units, "", "", "")[:3])
    return x, y, z


def _nrrd_layer_axis(fields: dict[str, str]) -> int | None:
    """The axis of kind `list`; or one of another kind, where it holds one number per voxel and so changes nothing."""
    kinds, sizes = fields.get("kinds", "").lower().split(), fields.get("sizes", "").split()
    for axis, (kind, size) in enumerate(zip(kinds, sizes, strict=False)):
        if len(kinds) > 3 and (kind == "list" or (size == "1" and kind not in ("domain", "space", "time"))):
            return axis
    return None


def _millimetres(unit: str, path: Path) -> float:
    name = unit.strip().lower()
    size = _MILLIMETRES.get(name.removesuffix("s") if len(name) > 3 else name)  # "microns", but neither "s" nor "ms"
    if size is None:
        raise ImageError(
            f"its lengths are in '{shown(unit)}', which is not known",
            where=path,
            fix="write spacing and origin in mm (known are nm, um, mm, cm, dm, m and in)",
        )
    return size


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    while line := file.readline(_HEADER_LIMIT):
        if file.tell() > _HEADER_LIMIT:
            raise ImageError("not an image file: its text header has no end", where=path)
        if b"\0" in line:
            raise ImageError(
                "its text header holds bytes that are no text", where=path, fix="copy or download it again"
            )
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
            f"voxels of encoding '{shown(fields.get('encoding', ''))}' are not supported",
            where=path,
            fix="write it with encoding raw or gzip",
        )
    data_file = fields.get("data file", fields.get("datafile"))
    skip = _integer(fields.get("byte skip", fields.get("byteskip", "0")), path)
    lines = _integer(fields.get("line skip", fields.get("lineskip", "0")), path)
    if lines or (skip and encoding != "raw") or skip < -1:
        raise ImageError(
            "voxels that begin somewhere in a file are not supported", where=path, fix=_ONE_FILE.format(".nrrd")
        )
    start = end if data_file is None else 0
    return VoxelStream(
        path=path if data_file is None else _beside(path, data_file, ".nrrd"),
        offset=None if skip == -1 else start + skip,
        encoding=encoding,
        big_endian=fields.get("endian", "little").lower() == "big",
    )


_NRRD_ENCODINGS: dict[str, Literal["raw", "deflate", "text", "hex"]] = {
    "raw": "raw",
    "gzip": "deflate",
    "gz": "deflate",
    "text": "text",
    "txt": "text",
    "ascii": "text",
    "hex": "hex",
}


def _beside(path: Path, name: str, ending: str) -> Path:
    """The file that a header names, which must lie in its folder or below: no header leads a reader elsewhere."""
    if name.upper().startswith("LIST") or "%" in name:
        raise ImageError("voxels in several files are not supported", where=path, fix=f"write one {ending} file")
    if os.path.isabs(name) or ".." in Path(name).parts or "\\" in name:
        raise ImageError(
            f"its voxels should be in '{shown(name)}', outside of its folder",
            where=path,
            fix=f"put that file beside it, or {_ONE_FILE.format(ending)}",
        )
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
