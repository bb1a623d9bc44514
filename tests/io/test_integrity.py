"""Whether files are whole is found out without reading them, and without allocating what they pretend to hold."""

import gzip
import os
import tracemalloc
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.errors import ImageError
from flaresemi.io import integrity
from flaresemi.io.images import read_grid, read_image


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(-500, 500, (12, 30, 31)).astype(np.int16)


def write(path, volume) -> None:
    image = sitk.GetImageFromArray(volume)
    sitk.WriteImage(image, str(path), path.suffix != ".nii")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, volume, ending):
    path = tmp_path / f"a{ending}"
    write(path, volume)
    whole = path.read_bytes()
    for kept in [*range(0, 400, 29), *range(400, len(whole), len(whole) // 12), len(whole) - 5, len(whole) - 1]:
        path.write_bytes(whole[:kept])
        with pytest.raises(ImageError) as caught:
            read_image([path])
        assert caught.value.where == str(path)
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_image([path]).array_czyx[0], volume)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_a_flipped_bit_in_a_compressed_file_is_seen(tmp_path, volume, ending):
    path = tmp_path / f"a{ending}"
    write(path, volume)
    whole = bytearray(path.read_bytes())
    whole[-len(whole) // 3] ^= 4
    path.write_bytes(whole)
    with pytest.raises(ImageError, match="damaged"):
        read_image([path])


def test_several_gzip_members_and_padding_are_one_stream(tmp_path, volume):
    write(tmp_path / "a.nii", volume)
    plain = (tmp_path / "a.nii").read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(b"".join(gzip.compress(plain[i : i + 5000]) for i in range(0, len(plain), 5000)) + bytes(100))
    np.testing.assert_array_equal(read_image([path]).array_czyx[0], volume)


def test_headers_that_announce_the_world_allocate_nothing(tmp_path, volume):
    write(tmp_path / "a.nii", volume)
    plain = bytearray((tmp_path / "a.nii").read_bytes())
    plain[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(plain)
    (tmp_path / "huge.nii.gz").write_bytes(gzip.compress(bytes(plain)))
    for ending in (".mha", ".nrrd"):
        write(tmp_path / f"a{ending}", volume)
        text = (tmp_path / f"a{ending}").read_bytes()
        (tmp_path / f"huge{ending}").write_bytes(text.replace(b"31 30 12", b"31000 30000 12000"))
    tracemalloc.start()
    for path in tmp_path.glob("huge*"):
        for read in (read_grid, lambda p: read_image([p])):
            with pytest.raises(ImageError, match="not whole"):
                read(path)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.nii.gz", b"", "empty"),
        ("a.nrrd", b"", "empty"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-LFS"),
        ("a.mha", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-LFS"),
        ("a.nii.gz", b"\x5c\x01\x00\x00" + bytes(400), "not compressed"),
        ("a.nii.gz", gzip.compress(b"hello", mtime=0), "breaks off within its header"),
        ("a.nii.gz", gzip.compress(bytes(1000), mtime=0), "not a NIfTI file"),
        ("a.nii", b"PK\x03\x04" + bytes(1000), "not a NIfTI file"),
        ("a.mha", b"hello world\n", "not a MetaImage"),
        ("a.mha", b"NDims = 50\nDimSize = 1\nElementDataFile = LOCAL\n", "NDims = 50"),
        ("a.mha", (b"a = " + b"x" * (1 << 20) + b"\n") * 20, "no end"),
        ("a.mhd", b"NDims = 3\nDimSize = 2 2 2\nElementDataFile = LIST\n", "several files"),
        ("a.nrrd", b"NRRD0004\nencoding: raw\n\n", "no dimension"),
        ("a.nrrd", b"NRRD0004\ndata file: a.raw\nData File: b.raw\n\n", "says 'data file' twice"),
        ("a.nrrd", b"NRRD0004\ndimension: 3\nspace origin: (1\0,2,3)\n\n", "bytes that are no text"),
        ("a.mha", b"NDims = 3\nOffset = 1\0 2 3\nElementDataFile = LOCAL\n", "bytes that are no text"),
        ("a.nrrd", b"NRRD0004\ndimension: 3\nencoding: raw\nbyte skip: many\n\n", "whole number"),
    ],
)
def test_what_is_no_image_is_said(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=expected) as caught:
        read_image([path])
    assert caught.value.where == str(path)


def test_detached_voxels(tmp_path, volume):
    image = sitk.GetImageFromArray(volume)
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    np.testing.assert_array_equal(read_image([tmp_path / "a.mhd"]).array_czyx[0], volume)
    raw = tmp_path / "a.raw"
    raw.write_bytes(raw.read_bytes()[:-1])
    with pytest.raises(ImageError, match="not whole") as caught:
        read_image([tmp_path / "a.mhd"])
    assert caught.value.where == str(raw)
    raw.unlink()
    with pytest.raises(ImageError, match=r"should be in 'a\.raw'"):
        read_grid(tmp_path / "a.mhd")


def test_an_empty_folder_is_no_series(tmp_path):
    (tmp_path / "a.nii.gz").mkdir()
    with pytest.raises(ImageError, match="no series of slices"):
        read_image([tmp_path / "a.nii.gz"])


def test_inflate_keeps_what_was_asked_for(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 3 << 20).astype(np.uint8)
    path = tmp_path / "a"
    path.write_bytes(b"header" + zlib.compress(content.tobytes()))
    with integrity.opened(path) as file:
        np.testing.assert_array_equal(integrity.inflate(file, count=1 << 20, offset=6), content[: 1 << 20])
        assert integrity.inflate(file, count=3 << 20, offset=6, keep=False).size == 0
        with pytest.raises(ImageError, match="only"):
            integrity.inflate(file, count=(3 << 20) + 1, offset=6)


META = (
    b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = %s\nDimSize = 5 4 3\n"
    b"ElementType = MET_SHORT\n"
)
NRRD = (
    b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 4 3\n"
    b"space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: %s\nspace origin: (0,0,0)\n"
)
NUMBERS = np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 7


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mhd", META % b"False" + b"ElementDataFile = ../secret.raw\n"),
        ("a.mhd", META % b"False" + b"ElementDataFile : ../secret.raw\nElementDataFile = LOCAL\n"),
        ("a.mhd", META % b"False" + b"ElementDataFile = sub/../../secret.raw\n"),
        ("a.mhd", META % b"False" + b"ElementDataFile = ..\\secret.raw\n"),
        ("a.mhd", META % b"False" + b"ElementDataFile = {}\n"),
        ("a.nrrd", NRRD % b"little" + b"encoding: raw\ndata file: ../secret.raw\n"),
        ("a.nrrd", NRRD % b"little" + b"encoding: raw\nDATAFILE: ../secret.raw\n"),
        ("a.nrrd", NRRD % b"little" + b"encoding: raw\ndata file: {}\n"),
    ],
)
def test_no_header_leads_out_of_its_folder(tmp_path, name, header):
    (tmp_path / "secret.raw").write_bytes(bytes(120))
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / name
    path.write_bytes(header.replace(b"{}", bytes(tmp_path / "secret.raw")))
    for read in (read_grid, lambda path: read_image([path])):
        with pytest.raises(ImageError, match="outside of its folder"):
            read(path)


def test_a_name_of_voxels_that_no_file_system_takes(tmp_path):
    (tmp_path / "a.mhd").write_bytes(META % b"False" + b"ElementDataFile = " + b"x" * 5000 + b"\n")
    with pytest.raises(ImageError, match="which is not there") as caught:
        read_grid(tmp_path / "a.mhd")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("big", [False, True])
def test_voxels_are_read_as_the_library_reads_them(tmp_path, big):
    stored = NUMBERS.astype(">i2" if big else "<i2").tobytes()
    meta, nrrd = META % (b"True" if big else b"False"), NRRD % (b"big" if big else b"little")
    local = b"ElementDataFile = LOCAL\n"
    (tmp_path / "voxels.raw").write_bytes(stored)
    files = {
        "raw.mha": meta + local + stored,
        "last.mha": meta + b"HeaderSize = -1\n" + local + b"junk" + stored,
        "packed.mha": meta + b"CompressedData = True\n" + local + zlib.compress(stored),
        "beside.mhd": meta + b"ElementDataFile = voxels.raw\n",
        "raw.nrrd": nrrd + b"encoding: raw\n\n" + stored,
        "last.nrrd": nrrd + b"encoding: raw\nbyte skip: -1\n\njunk" + stored,
        "packed.nrrd": nrrd + b"encoding: gzip\n\n" + gzip.compress(stored),
        "text.nrrd": nrrd + b"encoding: ascii\n\n" + b" ".join(b"%d" % value for value in NUMBERS.ravel()),
        "hex.nrrd": nrrd + b"encoding: hex\n\n" + stored.hex().encode(),
        "beside.nrrd": nrrd + b"encoding: raw\ndata file: voxels.raw\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        found = read_image([tmp_path / name]).array_czyx[0]
        np.testing.assert_array_equal(found, NUMBERS, name)
        if name != "packed.mha":  # MetaIO wants to know the compressed size beforehand
            np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))), NUMBERS, name)


def test_memory_is_taken_only_for_voxels_that_are_there(tmp_path):
    header = (NRRD % b"little").replace(b"5 4 3", b"1000 500 100") + b"encoding: gzip\n\n"
    (tmp_path / "bomb.nrrd").write_bytes(header + gzip.compress(bytes(90 << 20), 1))
    tracemalloc.start()
    with pytest.raises(ImageError, match="not whole"):
        read_image([tmp_path / "bomb.nrrd"])
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_an_image_larger_than_the_machine(tmp_path, monkeypatch):
    (tmp_path / "a.nrrd").write_bytes(NRRD % b"little" + b"encoding: raw\n\n" + NUMBERS.tobytes())
    monkeypatch.setattr(integrity, "total_memory_gib", lambda: 1e-7)
    with pytest.raises(ImageError, match="GiB of memory, there are"):
        read_image([tmp_path / "a.nrrd"])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(ImageError, match="not a file"):
        read_image([tmp_path / "a.nii"])


@pytest.mark.parametrize(
    "line", ["labels: " + '"a" ' * 500, "encoding: " + "x" * 2000, "y" * 2000, "sizes: " + "5 " * 900]
)
def test_lines_that_the_library_dies_of_are_refused(tmp_path, line):
    (tmp_path / "a.nrrd").write_bytes(NRRD % b"little" + line.encode() + b"\nencoding: raw\n\n" + NUMBERS.tobytes())
    with pytest.raises(ImageError, match=f"a line of its header has {len(line.strip())} characters"):
        read_image([tmp_path / "a.nrrd"])


def test_comments_and_keys_of_an_nrrd_file_may_be_long_and_lines_have_no_more_bytes_than_characters(
    tmp_path, monkeypatch
):
    shown, as_file = [], integrity.as_file
    monkeypatch.setattr(integrity, "as_file", lambda content: shown.append(content) or as_file(content))
    lines = "\n".join(
        [
            "#" + "a" * 5000,
            "content: " + "b" * 5000,
            "Segment0_Name:=" + "c: " * 5000,
            'labels: "' + "µ" * 450 + '" "" ""',
        ]
    )
    (tmp_path / "a.nrrd").write_bytes(NRRD % b"little" + lines.encode() + b"\nencoding: raw\n\n" + NUMBERS.tobytes())
    np.testing.assert_array_equal(read_image([tmp_path / "a.nrrd"]).array_czyx[0], NUMBERS)
    assert len(shown) == 1 and max(map(len, shown[0].splitlines())) <= 500
