"""The data elements of a DICOM file: what it says that it is, and whether their lengths fit into it.

The library takes memory for whatever length an element announces, gigabytes for a file of 700 bytes, and keeps it when
the file turns out to be shorter. So the lengths are looked at first, and no value is read but the identifiers.

Source: DICOM PS3.5, 7.1 and 7.5, and PS3.10, 7.1 (https://dicom.nema.org).
"""

import dataclasses
import os
import struct
from typing import BinaryIO

from flaresemi.image_paths import DICOM_START

SOP_CLASS = 0x0002_0002
TRANSFER_SYNTAX = 0x0002_0010

_PIXELS = 0x7FE0_0010
_ITEM = 0xFFFE_E000
_END_OF_SEQUENCE = 0xFFFE_E0DD
_UNDEFINED = 0xFFFF_FFFF

_DEFLATED = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"

#: Value representations: those whose length takes two bytes, and four.
_SHORT = (
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
)  # fmt: skip
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """What a walk over the elements of a file found.

    Attributes:
        meta: The identifiers of its first group by tag: what it holds, and how it is encoded.
        fit: No element is longer than the rest of the file, and the first group is as it must be. A byte more is
            forgiven: some writers forget the last one, which makes a length even.
    """

    meta: dict[int, str]
    fit: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Element:
    tag: int
    kind: bytes
    value: int
    length: int


def read_elements(file: BinaryIO) -> Elements:
    """Walks over all elements, also those in sequences."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    at = DICOM_START if file.read(DICOM_START)[128:] == b"DICM" else 0
    meta: dict[int, str] = {}
    explicit, order, in_meta, in_fragments = True, "<", True, False
    while at + 8 <= size:
        head = _at(file, at, 12)
        if in_meta and head[:2] != b"\x02\x00":
            in_meta = False
            syntax = meta.get(TRANSFER_SYNTAX)
            if syntax == _DEFLATED:
                break
            explicit, order = _is_kind(head[4:6]), ">" if syntax == _BIG_ENDIAN else "<"  # some files say it wrong
        element = _parsed(head, at, order, explicit=explicit)
        if in_meta and not _is_kind(element.kind):
            return Elements(meta=meta, fit=False)
        if element.tag == _END_OF_SEQUENCE:
            in_fragments = False
        at = element.value
        if element.length == _UNDEFINED:
            if element.kind == b"UN":  # encoded in another way inside
                break
            in_fragments = in_fragments or element.tag == _PIXELS
            continue
        if at + element.length > size + 1:
            return Elements(meta=meta, fit=False)
        if in_meta and element.kind == b"UI":
            meta[element.tag] = _at(file, at, element.length).decode("ascii", errors="replace").strip(" \0")
        if element.kind != b"SQ" and (element.tag != _ITEM or in_fragments):
            at += element.length
    return Elements(meta=meta, fit=True)


def _is_kind(text: bytes) -> bool:
    return text in _SHORT or text in _LONG


def _parsed(head: bytes, at: int, order: str, *, explicit: bool) -> _Element:
    """An element by its first bytes, in the library's reading: what is no kind has a length of two bytes."""
    group, number = struct.unpack_from(order + "HH", head)
    kind = head[4:6] if explicit and group != 0xFFFE else b""
    if kind in _LONG:
        start, length = 12, int.from_bytes(head[8:12], "little" if order == "<" else "big")
    elif kind:
        start, (length,) = 8, struct.unpack_from(order + "H", head, 6)
    else:
        start, (length,) = 8, struct.unpack_from(order + "I", head, 4)
    return _Element(tag=group << 16 | number, kind=kind, value=at + start, length=length)


def _at(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
