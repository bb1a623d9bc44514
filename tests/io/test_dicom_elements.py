import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.errors import ImageError
from flaresemi.io.dicom_elements import SOP_CLASS, TRANSFER_SYNTAX, read_elements
from flaresemi.io.images import read_image
from tests.made_dicom import CT, SECRETS, Stack

META = b"\x02\x00\x10\x00UI"


def element(order: str, group: int, number: int, kind: str, content: bytes, length: int | None = None) -> bytes:
    """An element; without a kind in the implicit encoding; `length` instead of the true one."""
    tag = struct.pack(order + "HH", group, number)
    length = len(content) if length is None else length
    if not kind:
        return tag + struct.pack(order + "I", length) + content
    if kind in ("SQ", "OB", "OW", "UN"):
        return tag + kind.encode() + b"\0\0" + struct.pack(order + "I", length) + content
    return tag + kind.encode() + struct.pack(order + "H", length) + content


def file(tmp_path: Path, syntax: str, body: bytes) -> Path:
    text = syntax.encode() + b"\0" * (len(syntax) % 2)
    path = tmp_path / "file"
    path.write_bytes(bytes(128) + b"DICM" + META + struct.pack("<H", len(text)) + text + body)
    return path


def fits(path: Path) -> bool:
    with open(path, "rb") as opened:
        return read_elements(opened).fit


def test_what_a_file_is_stands_in_its_first_group(tmp_path: Path) -> None:
    path = Stack(array_zyx=np.zeros((1, 4, 4), np.int16)).write(tmp_path)[0]
    with open(path, "rb") as opened:
        found = read_elements(opened)
    assert found.fit
    assert found.meta[SOP_CLASS] == CT
    assert found.meta[TRANSFER_SYNTAX] == "1.2.840.10008.1.2.1"


def test_wherever_a_file_is_cut_off_inside_of_an_element_it_is_seen(tmp_path: Path) -> None:
    path = Stack(array_zyx=np.zeros((1, 4, 4), np.int16)).write(tmp_path)[0]
    whole = path.read_bytes()
    fitting = set()
    for size in range(132, len(whole)):
        path.write_bytes(whole[:size])
        if fits(path):
            fitting.add(size)
    for value in (SECRETS[3].encode(), bytes(32)):  # a text in the middle, the voxels at the end
        begin, end = whole.rindex(value), whole.rindex(value) + len(value)
        assert not fitting & set(range(begin, end - 1))
    assert len(whole) - 1 in fitting  # the last byte is forgiven


@pytest.mark.parametrize(("syntax", "order", "kinds"), [
    ("1.2.840.10008.1.2", "<", False), ("1.2.840.10008.1.2.1", "<", True), ("1.2.840.10008.1.2.2", ">", True),
    ("1.2.840.10008.1.2.1", "<", False),
])  # fmt: skip
def test_every_encoding_is_understood(tmp_path: Path, syntax: str, order: str, kinds: bool) -> None:
    def body(length: int | None) -> bytes:
        name = element(order, 0x10, 0x10, "PN" if kinds else "", b"ab")
        return name + element(order, 0x11, 0x10, "OW" if kinds else "", b"1234", length)

    assert fits(file(tmp_path, syntax, body(None)))
    assert fits(file(tmp_path, syntax, body(5)))
    assert not fits(file(tmp_path, syntax, body(6)))
    assert not fits(file(tmp_path, syntax, body(0x7FFFFFFF)))


@pytest.mark.parametrize("defined", [True, False])
def test_sequences_are_looked_into(tmp_path: Path, defined: bool) -> None:
    def body(length: int | None) -> bytes:
        inner = element("<", 8, 0x100, "UN", b"12", length)
        if defined:
            item = element("<", 0xFFFE, 0xE000, "", inner)
            return element("<", 8, 0x1140, "SQ", item)
        item = element("<", 0xFFFE, 0xE000, "", inner, 0xFFFFFFFF) + element("<", 0xFFFE, 0xE00D, "", b"")
        return element("<", 8, 0x1140, "SQ", item, 0xFFFFFFFF) + element("<", 0xFFFE, 0xE0DD, "", b"")

    after = element("<", 0x10, 0x10, "PN", b"ab")
    assert fits(file(tmp_path, "1.2.840.10008.1.2.1", body(None) + after))
    assert not fits(file(tmp_path, "1.2.840.10008.1.2.1", body(1 << 20) + after))
    assert not fits(file(tmp_path, "1.2.840.10008.1.2.1", body(None) + element("<", 0x10, 0x10, "PN", b"ab", 900)))


def test_compressed_voxels_are_pieces_that_fit(tmp_path: Path) -> None:
    def body(length: int | None) -> bytes:
        pieces = element("<", 0xFFFE, 0xE000, "", b"") + element("<", 0xFFFE, 0xE000, "", b"\xff\xd8ab", length)
        return element("<", 0x7FE0, 0x10, "OB", pieces, 0xFFFFFFFF) + element("<", 0xFFFE, 0xE0DD, "", b"") + b"rest"

    assert fits(file(tmp_path, "1.2.840.10008.1.2.4.70", body(None)))
    assert not fits(file(tmp_path, "1.2.840.10008.1.2.4.70", body(1 << 30)))


def test_after_compressed_voxels_items_are_looked_into_again(tmp_path: Path) -> None:
    def body(length: int | None) -> bytes:
        voxels = element("<", 0x7FE0, 0x10, "OB", element("<", 0xFFFE, 0xE000, "", b"ab"), 0xFFFFFFFF)
        item = element("<", 0xFFFE, 0xE000, "", element("<", 0x400, 0x520, "OB", b"12", length))
        return voxels + element("<", 0xFFFE, 0xE0DD, "", b"") + element("<", 0xFFFA, 0xFFFA, "SQ", item)

    assert fits(file(tmp_path, "1.2.840.10008.1.2.4.70", body(None)))
    assert not fits(file(tmp_path, "1.2.840.10008.1.2.4.70", body(1 << 30)))


def test_the_first_group_knows_no_other_kinds(tmp_path: Path) -> None:
    path = file(tmp_path, "1.2.840.10008.1.2.1", element("<", 0x10, 0x10, "PN", b"ab"))
    assert fits(path)
    path.write_bytes(path.read_bytes().replace(META, META[:-2] + b"UK"))
    assert not fits(path)


def test_unknown_values_of_unknown_length_are_encoded_in_another_way(tmp_path: Path) -> None:
    implicit = element("<", 0x11, 0x10, "", b"\x7f" * 0x574F)  # whose length would be the kind OW
    assert fits(file(tmp_path, "1.2.840.10008.1.2.1", element("<", 9, 0x1001, "UN", implicit, 0xFFFFFFFF)))


def test_what_is_not_understood_is_left_to_the_library(tmp_path: Path) -> None:
    odd = element("<", 0x10, 0x10, "??", b"ab")
    assert fits(file(tmp_path, "1.2.840.10008.1.2.1", element("<", 0x10, 0x10, "PN", b"ab") + odd))
    assert fits(file(tmp_path, "1.2.840.10008.1.2.1.99", b"deflated"))
    assert fits(file(tmp_path, "1.2.840.10008.1.2.1", bytes(200)))  # padding


def test_an_absurd_length_never_reaches_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Stack(array_zyx=np.zeros((3, 4, 4), np.int16)).write(tmp_path)
    content = paths[1].read_bytes()
    at = content.index(b"\x10\x00\x20\x00LO") + 4
    # UT instead of LO: two reserved bytes, then a length of four.
    paths[1].write_bytes(content[:at] + b"UT\0\0" + struct.pack("<I", 0x6FFFFFFE) + content[at + 4 :])
    opened = []
    read = sitk.ImageFileReader.ReadImageInformation

    def noted(reader: sitk.ImageFileReader) -> None:
        opened.append(reader.GetFileName())
        read(reader)

    monkeypatch.setattr(sitk.ImageFileReader, "ReadImageInformation", noted)
    with pytest.raises(ImageError, match="damaged or not whole"):
        read_image([tmp_path])
    assert str(paths[1]) not in opened
