"""The elements of a DICOM file before its voxels, read by pydicom, and where the voxels lie.

The library in C++ takes memory for whatever length an element announces, gigabytes for a file of 700 bytes, and keeps
it. So it never sees a file, and pydicom sees one that gives no more than it holds.
"""

import contextlib
import dataclasses
import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from flaresemi.errors import ImageError
from flaresemi.image_paths import DICOM_START
from flaresemi.importing import import_without
from flaresemi.io import integrity

#: Binary numbers of two bytes, and text, by the standard's keywords. Source: DICOM PS3.6.
_BINARY = {
    "SamplesPerPixel": 0x0028_0002,
    "Rows": 0x0028_0010,
    "Columns": 0x0028_0011,
    "BitsAllocated": 0x0028_0100,
    "BitsStored": 0x0028_0101,
    "HighBit": 0x0028_0102,
    "PixelRepresentation": 0x0028_0103,
}
_TAGS = _BINARY | {
    "ImageType": 0x0008_0008,
    "SOPClassUID": 0x0008_0016,
    "Modality": 0x0008_0060,
    "PatientID": 0x0010_0020,
    "StudyInstanceUID": 0x0020_000D,
    "SeriesInstanceUID": 0x0020_000E,
    "SeriesNumber": 0x0020_0011,
    "ImagePositionPatient": 0x0020_0032,
    "ImageOrientationPatient": 0x0020_0037,
    "FrameOfReferenceUID": 0x0020_0052,
    "PhotometricInterpretation": 0x0028_0004,
    "NumberOfFrames": 0x0028_0008,
    "PixelSpacing": 0x0028_0030,
    "RescaleIntercept": 0x0028_1052,
    "RescaleSlope": 0x0028_1053,
}

_PIXELS = 0x7FE0_0010
_UNDEFINED = 0xFFFF_FFFF

_LITTLE, _DEFLATED = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.1.99"

#: No slice is as large, whatever a deflated file unpacks to. Chosen.
_MOST_INFLATED = 256 << 20

#: What pydicom raises of files that it cannot make sense of, and what it stumbles over.
UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    struct.error,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """The content of a DICOM header.

    Attributes:
        path: The file.
        values: Its elements by keyword, as text; empty where one is absent.
        syntax: How it is encoded.
        in_words: Whether its voxels are words of two bytes, whose order is the file's.
        offset: First byte of its voxels.
        held: How many bytes of them are there.
        compressed: Whether they are a compressed stream.
    """

    path: Path
    values: dict[str, str]
    syntax: str
    in_words: bool
    offset: int
    held: int
    compressed: bool

    def numbers(self, keyword: str, name: str, count: int) -> tuple[float, ...]:
        """The numbers of an element; none where it is absent or empty.

        Raises:
            ImageError: they are not as many, or no finite numbers.
        """
        text, tag = self.values[keyword], _TAGS[keyword]
        try:
            values = tuple(map(float, text.split("\\"))) if text else ()
        except ValueError:
            values = (math.nan,)
        if len(values) not in (0, count) or not all(map(math.isfinite, values)):
            raise ImageError(
                f"{name} (tag {tag >> 16:04x},{tag & 0xFFFF:04x}) makes no sense",
                where=self.path,
                fix="convert the series to NIfTI first, for instance with dcm2niix",
            )
        return values

    def number(self, keyword: str, name: str, otherwise: float) -> float:
        """The one number of an element, or what counts where it is absent or empty; as `numbers`."""
        return (*self.numbers(keyword, name, 1), otherwise)[0]


class BoundedFile:
    """A file that takes no memory for more than it holds, whatever it is asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = file.seek(0, os.SEEK_END)
        self._file, self.seek, self.tell = file, file.seek, file.tell
        file.seek(0)

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes; of a negative number, the rest."""
        rest = max(self.size - self.tell(), 0)
        return self._file.read(rest if count < 0 else min(count, rest))


def unpacked(file: BinaryIO) -> Any:
    """A file from its start, as a `BoundedFile`; what it unpacks to where all but its first group is deflated.

    Raises:
        ImageError: it cannot be unpacked.
    """
    file.seek(0)
    start = file.read(1024)
    if _DEFLATED not in start:
        return BoundedFile(file)
    at = DICOM_START if start[128:DICOM_START] == b"DICM" else 0
    end = at + 12 + int.from_bytes(start[at + 8 : at + 12], "little")  # the first group begins with its length
    file.seek(end)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        rest = stream.decompress(file.read(), _MOST_INFLATED)
        if not stream.eof:
            raise zlib.error("the compressed stream breaks off, or is larger than any slice")
    except zlib.error as problem:
        raise integrity.damaged(integrity.path_of(file), str(problem)) from None
    return BoundedFile(io.BytesIO(start[:end].replace(_DEFLATED, _LITTLE.ljust(len(_DEFLATED), b"\0")) + rest))


def read_elements(file: BinaryIO) -> Elements | None:
    """Reads a file up to its voxels; None where it breaks off, makes no sense or has no voxels.

    Raises:
        ImageError: as `unpacked`.
    """
    import_without("pydicom", "requests")  # of which the import asks the system for its network
    from pydicom.encaps import parse_fragments

    opened = unpacked(file)
    voxels = []

    def at_voxels(tag: int, kind: str | None, length: int) -> bool:
        if tag == _PIXELS:
            voxels.append((opened.tell(), length, kind))
        return tag == _PIXELS

    try:
        with silenced():
            dataset = _read_partial(opened, at_voxels, list(_TAGS.values()))
            values = {keyword: _text(dataset.get_item(tag)) for keyword, tag in _TAGS.items() if tag in dataset}
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
            offset, length, kind = voxels[-1]
            compressed = length == _UNDEFINED
            opened.seek(offset if compressed else offset + length)
            if compressed:
                parse_fragments(opened)
    except OSError as problem:
        if problem.errno is not None:
            raise
        return None  # pydicom's own
    except UNREADABLE:
        return None
    if opened.tell() > opened.size + 1:  # some writers forget the last byte, which makes a length even
        return None
    held = opened.size - offset if compressed else min(opened.size - offset, length)
    return Elements(
        path=integrity.path_of(file),
        values=dict.fromkeys(_TAGS, "") | values,
        syntax=syntax,
        in_words=kind != "OB",
        offset=offset,
        held=held,
        compressed=compressed,
    )


def read_class(file: BinaryIO) -> str:
    """The SOP class that a file declares in its first group, if it can be read; a UID of the standard."""
    try:
        with silenced():
            meta = _read_partial(unpacked(file), lambda *_: True, []).file_meta
            return str(meta.get("MediaStorageSOPClassUID", ""))
    except (OSError, *UNREADABLE):
        return ""


def _read_partial(file: Any, stop: Callable[..., bool], tags: list[int]) -> Any:
    import_without("pydicom", "requests")  # of which the import asks the system for its network
    from pydicom.errors import BytesLengthException  # only DICOM needs it, and it takes a while to import
    from pydicom.filereader import read_partial

    try:
        return read_partial(file, stop, force=True, specific_tags=tags)
    except BytesLengthException as problem:
        raise ValueError(str(problem)) from None


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keeps from the log what pydicom says of odd values, as it tells them."""
    from pydicom.config import logger as log

    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def parsing() -> Iterator[None]:
    """Turns whatever pydicom raises of a file that makes no sense into a ValueError, and keeps its log silent."""
    import_without("pydicom", "requests")  # of which the import asks the system for its network
    from pydicom.errors import BytesLengthException  # only DICOM needs it, and it takes a while to import

    try:
        with silenced():
            yield
    except OSError as problem:
        if problem.errno is not None:
            raise
        raise ValueError(str(problem)) from None  # pydicom's own
    except (BytesLengthException, *UNREADABLE) as problem:
        raise ValueError(str(problem)) from problem


def _text(item: Any) -> str:
    content = item.value or b""
    if not isinstance(content, bytes):
        raise ValueError("a sequence where a value belongs")
    if item.tag in _BINARY.values():
        order: Literal["little", "big"] = "little" if item.is_little_endian else "big"
        return "\\".join(str(int.from_bytes(content[at : at + 2], order)) for at in range(0, len(content), 2))
    return content.decode("utf-8", errors="replace").strip(" \0")
