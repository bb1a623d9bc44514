"""Headers and voxels of DICOM files: every encoding, every length that lies, and nothing of a file for C++."""

import dataclasses
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from flaresemi.errors import ImageError
from flaresemi.io.dicom_elements import BoundedFile, read_class, read_elements
from flaresemi.io.images import read_image
from tests.made_dicom import CT, REPORT, SECRETS, Stack, patient_elements, rewrite, write_dicom

ARRAY = np.random.default_rng(0).integers(-1000, 1000, (3, 16, 12)).astype(np.int16)

IMPLICIT, LITTLE, DEFLATED, BIG = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2"))


def found(path: Path):
    with open(path, "rb") as file:
        return read_elements(file)


def recoded(path: Path, syntax: str) -> None:
    """Writes a file of explicit little endian in another encoding, by hand where the library would not."""
    dataset = pydicom.dcmread(path)
    if syntax == BIG:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    anew = pydicom.Dataset()
    for element in dataset:
        anew.add_new(element.tag, element.VR, element.value)
    anew.preamble, anew.file_meta = dataset.preamble, dataset.file_meta
    anew.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path, anew, implicit_vr=syntax == IMPLICIT, little_endian=syntax != BIG)


def test_what_a_file_says(tmp_path: Path) -> None:
    path = Stack(array_zyx=ARRAY).write(tmp_path)[0]
    elements = found(path)
    assert elements.syntax == LITTLE and not elements.compressed and elements.in_words
    assert elements.held == 2 * 16 * 12 == path.stat().st_size - elements.offset
    assert (elements.values["Rows"], elements.values["Columns"], elements.values["Modality"]) == ("16", "12", "CT")
    assert elements.numbers("PixelSpacing", "the spacing", 2) == (1.25, 1.5)
    with open(path, "rb") as file:
        assert read_class(file) == CT


def test_wherever_a_file_is_cut_off_before_its_end_it_is_seen(tmp_path: Path) -> None:
    path = Stack(array_zyx=ARRAY[:, :4, :4]).write(tmp_path)[0]
    whole = path.read_bytes()
    for size in range(len(whole) - 1):
        path.write_bytes(whole[:size])
        assert found(path) is None, size
    path.write_bytes(whole[:-1])
    assert found(path) is not None  # the last byte is forgiven, where the voxels do without
    with pytest.raises(ImageError, match="not whole"):
        read_image([tmp_path])


@pytest.mark.parametrize("preamble", [True, False])
@pytest.mark.parametrize("syntax", [IMPLICIT, LITTLE, DEFLATED, BIG])
def test_every_encoding_is_the_same_image(tmp_path: Path, syntax: str, preamble: bool) -> None:
    for path in Stack(array_zyx=ARRAY).write(tmp_path):
        recoded(path, syntax)
        path.write_bytes(path.read_bytes()[0 if preamble else 132 :])
        assert found(path).syntax == (LITTLE if syntax == DEFLATED else syntax)
    np.testing.assert_array_equal(read_image([tmp_path]).array_czyx[0], ARRAY)


def test_bytes_of_a_big_endian_file_are_told_from_words(tmp_path: Path) -> None:
    stack = Stack(array_zyx=ARRAY % 100, intercept=0)
    for index, path in enumerate(stack.write(tmp_path)):
        stored = stack.array_zyx[index].astype(np.uint8).tobytes()
        eight = {"t00280100": ("US", 8), "t00280101": ("US", 8), "t00280102": ("US", 7), "t00280103": ("US", 0)}
        rewrite(path, stack, index, **eight, t7FE00010=("OW", stored))
        recoded(path, BIG)
    np.testing.assert_array_equal(read_image([tmp_path]).array_czyx[0], stack.array_zyx)


def test_a_deflated_file_that_is_damaged_or_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Stack(array_zyx=ARRAY).write(tmp_path)
    recoded(paths[0], DEFLATED)
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[:-200])
    with pytest.raises(ImageError, match="breaks off"):
        read_image([tmp_path])
    monkeypatch.setattr("flaresemi.io.dicom_elements._MOST_INFLATED", 1 << 20)
    start = whole[: 144 + int.from_bytes(whole[140:144], "little")]  # the first group, whose length it says itself
    packer = zlib.compressobj(wbits=-15)
    paths[0].write_bytes(start + packer.compress(bytes(64 << 20)) + packer.flush())
    tracemalloc.start()
    with pytest.raises(ImageError, match="larger than any slice"):
        read_image([tmp_path])
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("nested", [False, True])
def test_no_memory_is_taken_for_a_length_that_lies(tmp_path: Path, nested: bool) -> None:
    paths = Stack(array_zyx=ARRAY).write(tmp_path)
    content = paths[1].read_bytes()
    at = content.index(b"\x10\x00\x20\x00LO")
    absurd = b"UT\0\0" + struct.pack("<I", 0x6FFFFFFE)  # two reserved bytes, then a length of four
    if nested:  # a sequence and an item of unknown length around it
        head = struct.pack("<HH2sHIHHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
        paths[1].write_bytes(content[:at] + head + content[at : at + 4] + absurd + content[at + 8 :])
    else:
        paths[1].write_bytes(content[: at + 4] + absurd + content[at + 8 :])
    tracemalloc.start()
    with pytest.raises(ImageError, match="damaged or not whole") as caught:
        read_image([tmp_path])
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert caught.value.where == str(paths[1])


def test_a_first_group_whose_length_is_no_number(tmp_path: Path) -> None:
    path = Stack(array_zyx=ARRAY).write(tmp_path)[1]
    content = path.read_bytes()
    path.write_bytes(content[:138] + struct.pack("<H", 3) + content[140:])  # of four bytes
    with pytest.raises(ImageError, match="damaged or not whole"):
        read_image([tmp_path])


def test_a_bounded_file_gives_what_there_is() -> None:
    file = BoundedFile(io.BytesIO(b"0123456789"))
    assert file.read(4) == b"0123" and file.read(1 << 62) == b"456789" and file.read(5) == b""
    file.seek(8)
    assert file.read() == b"89"
    file.seek(99)
    assert file.read(5) == b""


def test_a_report_that_breaks_off_is_no_slice(tmp_path: Path) -> None:
    path = tmp_path / "report"
    write_dicom(path, patient_elements(REPORT), sop_class=REPORT)
    path.write_bytes(path.read_bytes()[:-3])
    assert found(path) is None
    with open(path, "rb") as file:
        assert read_class(file) == REPORT


@pytest.mark.parametrize(("bits", "used", "signed"), [(16, 12, 0), (16, 12, 1), (32, 28, 1), (8, 7, 0), (32, 32, 1)])
def test_bits_that_are_not_used_are_no_part_of_a_value(tmp_path: Path, bits: int, used: int, signed: int) -> None:
    low, high = (-(1 << (used - 1)), 1 << (used - 1)) if signed else (0, 1 << used)
    values = np.random.default_rng(1).integers(max(low, -(1 << 23)), min(high, 1 << 23), (2, 5, 6))
    noise = np.random.default_rng(2).integers(0, 1 << (bits - used), values.shape) << used
    stack = Stack(array_zyx=np.zeros((2, 5, 6)))
    for index, path in enumerate(stack.write(tmp_path)):
        stored = (values[index] & ((1 << used) - 1) | noise[index]).astype(f"<u{bits // 8}").tobytes()
        rewrite(path, stack, index, t00280100=("US", bits), t00280101=("US", used), t00280102=("US", used - 1),
                t00280103=("US", signed), t00281052=("DS", "0"), t7FE00010=("OW", stored))  # fmt: skip
    np.testing.assert_array_equal(read_image([tmp_path]).array_czyx[0], values)


def test_voxels_that_share_bytes_are_refused(tmp_path: Path) -> None:
    stack = Stack(array_zyx=ARRAY)
    paths = stack.write(tmp_path)
    rewrite(paths[0], stack, 0, t00280100=("US", 12), t00280101=("US", 12), t00280102=("US", 11))
    with pytest.raises(ImageError, match="the bits of a voxel make no sense: 12 of 12"):
        read_image([tmp_path])


COMPRESSED = {"rle": "1.2.840.10008.1.2.5", "JPEG": "1.2.840.10008.1.2.4.70", "JPEG2000": "1.2.840.10008.1.2.4.90"}


def write_compressed(path: Path, plane: np.ndarray, index: int, kind: str) -> None:
    """A slice, without loss."""
    if kind == "rle":
        write_dicom(path, Stack(array_zyx=plane[None], origin=(0, 0, 2 * index)).elements(0))
        dataset = pydicom.dcmread(path)
        dataset.compress(COMPRESSED["rle"], encoding_plugin="pydicom")
        dataset.save_as(path)
        return
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(kind)
    image = sitk.GetImageFromArray(plane[None])
    for tag, value in (("0020|000e", "1.2"), ("0008|0060", "CT"), ("0020|0032", f"0\\0\\{2 * index}")):
        image.SetMetaData(tag, value)
    image.SetMetaData("0020|0037", "1\\0\\0\\0\\1\\0")
    writer.SetFileName(str(path))
    writer.Execute(image)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_the_library_decodes_compressed_voxels_and_sees_no_file(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (3, 64, 64)).astype(np.int16)
    for index, plane in enumerate(array):
        write_compressed(tmp_path / f"{index}.dcm", plane, index, kind)
        assert found(tmp_path / f"{index}.dcm").syntax == COMPRESSED[kind]
    seen = []
    named = sitk.ImageFileReader.SetFileName
    monkeypatch.setattr(
        sitk.ImageFileReader,
        "SetFileName",
        lambda reader, name: seen.append(Path(name).read_bytes()) or named(reader, name),
    )
    np.testing.assert_array_equal(read_image([tmp_path]).array_czyx[0], array)
    assert len(seen) == 3
    assert not any(secret.encode() in content for secret in SECRETS for content in seen)
    whole = (tmp_path / "1.dcm").read_bytes()
    (tmp_path / "1.dcm").write_bytes(whole[:-700])
    with pytest.raises(ImageError, match="damaged"):
        read_image([tmp_path])


def test_voxels_that_are_not_compressed_need_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(array_zyx=ARRAY, slope=2.0)
    stack.write(tmp_path)
    monkeypatch.setattr(sitk, "ImageFileReader", None)
    stored = np.round((ARRAY + 1024.0) / 2.0)
    np.testing.assert_array_equal(read_image([tmp_path]).array_czyx[0], stored * 2 - 1024)


def test_a_file_that_is_shorter_than_it_was_is_refused(tmp_path: Path) -> None:
    from flaresemi.io.dicom import read_slices
    from flaresemi.io.dicom_voxels import read_plane

    Stack(array_zyx=ARRAY).write(tmp_path)
    one = read_slices(tmp_path)[0][0]
    one.path.write_bytes(one.path.read_bytes()[:-2])
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_plane(one.path, one.voxels)
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_plane(one.path, dataclasses.replace(one.voxels, compressed=True))
