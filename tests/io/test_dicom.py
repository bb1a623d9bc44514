"""A folder of DICOM slices is an image like any other, and nothing that is no even stack is taken for one."""

import dataclasses
import logging
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.errors import ImageError
from flaresemi.io.images import read_grid, read_image, write_label_map
from flaresemi.io.series import find_series
from tests.made_dicom import ENHANCED_CT, MR, PET, REPORT, SECRETS, SEGMENTATION, Stack, patient_elements, rewrite
from tests.made_dicom import write_dicom as write

SHAPE = (6, 7, 5)


def phantom(shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)


def turn(x_degrees: float, z_degrees: float) -> np.ndarray:
    a, b = math.radians(x_degrees), math.radians(z_degrees)
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_z = np.array([[math.cos(b), -math.sin(b), 0], [math.sin(b), math.cos(b), 0], [0, 0, 1]])
    return about_z @ about_x


def write_nifti(path: Path, stack: Stack) -> Path:
    image = sitk.GetImageFromArray(stack.array_zyx)
    image.SetSpacing(stack.spacing)
    image.SetOrigin(stack.origin)
    image.SetDirection(stack.direction.ravel())
    sitk.WriteImage(image, str(path))
    return path


def refused(folder: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image([folder])
    with pytest.raises(ImageError):
        read_grid(folder)
    message = str(caught.value)
    assert not any(secret in message for secret in SECRETS)
    return message


@pytest.mark.parametrize(
    "direction",
    [
        np.eye(3),
        turn(0, 180),
        turn(20, -35),
        np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),  # sagittal
        np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),  # coronal
    ],
    ids=["axial", "prone", "oblique", "sagittal", "coronal"],
)
def test_a_series_is_the_same_image_as_its_volume_in_nifti(tmp_path, direction):
    stack = Stack(array_zyx=phantom(), direction=direction)
    stack.write(tmp_path / "series")
    ours, expected = read_image([tmp_path / "series"]), read_image([write_nifti(tmp_path / "volume.nii.gz", stack)])
    np.testing.assert_array_equal(ours.array_czyx, expected.array_czyx)
    assert ours.geometry.far_corner_distance_mm(expected.geometry) < 1e-3
    assert read_grid(tmp_path / "series") == ours.source
    theirs = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    grid = ours.source.geometry
    assert grid.shape_zyx == theirs.GetSize()[::-1]
    np.testing.assert_allclose(grid.spacing_zyx_mm, theirs.GetSpacing()[::-1], atol=1e-6)
    np.testing.assert_allclose(grid.origin_xyz_mm, theirs.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(grid.direction, theirs.GetDirection(), atol=1e-6)
    np.testing.assert_array_equal(ours.source.to_file(ours.array_czyx[0]), sitk.GetArrayFromImage(theirs))


def test_a_label_map_lies_on_the_slices(tmp_path):
    stack = Stack(array_zyx=phantom(), direction=turn(20, -35))
    stack.write(tmp_path / "series")
    image = read_image([tmp_path / "series"])
    bright = (image.array_czyx[0] > 0).astype(np.uint8)
    write_label_map(tmp_path / "label.nii.gz", bright, image.source)
    written = sitk.ReadImage(str(tmp_path / "label.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), stack.array_zyx > 0)
    np.testing.assert_allclose(written.GetOrigin(), stack.origin, atol=1e-3)
    content = (tmp_path / "label.nii.gz").read_bytes() + str(
        [written.GetMetaData(key) for key in written.GetMetaDataKeys()]
    ).encode()
    assert not any(secret.encode() in content for secret in SECRETS)


@pytest.mark.parametrize(("sop_class", "modality"), [(PET, "PT"), (MR, "MR")])
def test_every_slice_is_rescaled_by_its_own_slope(tmp_path, sop_class, modality):
    array = phantom().astype(np.float64)
    expected = np.empty_like(array)
    for index in range(len(array)):
        slope = 0.37 * (index + 1)
        stack = Stack(array_zyx=array, slope=slope, intercept=0.5 * index, sop_class=sop_class, modality=modality)
        elements = stack.elements(index)
        write(tmp_path / f"{index * 7 % 11}", elements, sop_class=sop_class)
        stored = np.frombuffer(elements["7FE00010"][1], "<i2").reshape(array.shape[1:])
        expected[index] = stored * slope + 0.5 * index
    np.testing.assert_allclose(read_image([tmp_path]).array_czyx[0], expected, rtol=1e-6)


def test_what_is_no_slice_is_left_where_it_is(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    stack = Stack(array_zyx=phantom())
    stack.write(tmp_path / "series")
    alone = read_image([tmp_path / "series"])
    assert not caplog.records
    write(tmp_path / "series" / "DICOMDIR", {}, sop_class="1.2.840.10008.1.3.10")
    write(tmp_path / "series" / "report", patient_elements(REPORT), sop_class=REPORT)
    frames = {
        **stack.elements(0),
        "00080016": ("UI", SEGMENTATION),
        "00280008": ("IS", "2"),
        "7FE00010": ("OW", bytes(140)),
    }
    write(tmp_path / "series" / "seg", frames, sop_class=SEGMENTATION)
    (tmp_path / "series" / "README.txt").write_text("what a viewer leaves")
    (tmp_path / "series" / "label.nii.gz").write_text("not looked at")
    (tmp_path / "series" / ".cache").write_bytes(b"")
    Stack(array_zyx=phantom(), uid="1.9").write(tmp_path / "series" / "deeper")
    np.testing.assert_array_equal(read_image([tmp_path / "series"]).array_czyx, alone.array_czyx)
    (record,) = caplog.records
    assert "taken: series 3 (CT, 6 slices" in record.getMessage()
    assert "2 file(s) like DICOMDIR (not an image)" in record.getMessage()
    assert "1 file(s) like seg (several frames in one file)" in record.getMessage()
    assert not any(secret in record.getMessage() for secret in SECRETS)


def test_files_without_a_preamble_are_read(tmp_path):
    stack = Stack(array_zyx=phantom())
    for index in range(len(stack.array_zyx)):
        write(tmp_path / f"{index}", stack.elements(index), preamble=False)
    np.testing.assert_array_equal(read_image([tmp_path]).array_czyx[0], stack.array_zyx)


def test_of_several_series_the_scan_is_taken(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    scan = Stack(array_zyx=phantom((8, 7, 5)))
    scan.write(tmp_path, prefix="a")
    thick = Stack(array_zyx=phantom((4, 7, 5)), spacing=(1.5, 1.25, 4.0), uid="1.1", number="4")
    thick.write(tmp_path, prefix="b")
    coronal = Stack(
        array_zyx=phantom((20, 7, 5)), spacing=(1.5, 1.25, 1.0), direction=turn(90, 0), uid="1.2", number="5",
        image_type="DERIVED\\SECONDARY\\REFORMATTED",
    )  # fmt: skip
    coronal.write(tmp_path, prefix="c")
    scout = Stack(
        array_zyx=phantom((2, 40, 40)),
        spacing=(3, 3, 90),
        uid="1.3",
        number="1",
        image_type="ORIGINAL\\PRIMARY\\LOCALIZER",
    )
    scout.write(tmp_path, prefix="d")
    bolus = Stack(array_zyx=phantom((9, 7, 5)), spacing=(1.5, 1.25, 0.0), uid="1.4", number="2")
    bolus.write(tmp_path, prefix="e")
    np.testing.assert_array_equal(read_image([tmp_path]).array_czyx[0], scan.array_zyx)
    (record,) = caplog.records
    taken, left = record.getMessage().split("; left: ")
    assert "taken: series 3 (CT, 8 slices" in taken
    assert re.findall(r"series (\d) \(CT, ([\w ]+),", left) == [
        ("4", "4 slices"), ("5", "20 slices"), ("1", "localizer"), ("2", "9 slices"),
    ]  # fmt: skip
    assert not any(secret in record.getMessage() for secret in SECRETS)


def test_a_scout_among_the_slices_of_its_series_is_left(tmp_path):
    scan = Stack(array_zyx=phantom())
    scan.write(tmp_path)
    scout = dataclasses.replace(scan, array_zyx=phantom((1, 20, 20)), image_type="ORIGINAL\\PRIMARY\\LOCALIZER")
    scout.write(tmp_path, prefix="scout")
    assert read_grid(tmp_path).geometry.shape_zyx == SHAPE


def test_two_series_that_may_both_be_meant_are_refused(tmp_path):
    Stack(array_zyx=phantom((10, 7, 5))).write(tmp_path, prefix="soft")
    Stack(array_zyx=phantom((9, 7, 5)), uid="1.1", number="4").write(tmp_path, prefix="bone")
    message = refused(tmp_path)
    assert "2 series in this folder may be the scan" in message
    assert "series 3 (CT, 10 slices, like soft" in message
    assert "series 4 (CT, 9 slices, like bone" in message
    assert "a folder of their own" in message


@pytest.mark.parametrize("index", [1, 3, 4])
def test_a_missing_slice_is_named_by_its_neighbors(tmp_path, index):
    paths = Stack(array_zyx=phantom()).write(tmp_path, skip=(index,))
    message = refused(tmp_path)
    assert message.startswith("1 slice(s) missing: 4 mm between ")
    assert f"between {paths[index - 1].name} and {paths[index + 1].name}; expected 2 mm (± 0.25 mm)" in message
    assert str(tmp_path) in message


def test_uneven_spacing_is_refused_and_rounding_is_not(tmp_path):
    for name, steps, expected in (
        ("changing", [0, 5, 10, 15, 17.5, 20, 22.5], "unevenly spaced: 5 mm between IM3701 and IM7402; "),
        ("drifting", np.cumsum([0.0] + [1.0] * 20 + [1.09] * 20), "unevenly spaced: 1.09 mm between "),
        ("rounded", np.round(1.25 * np.arange(20), 1), None),
    ):
        stack = Stack(array_zyx=phantom((len(steps), 4, 4)))
        for index, path in enumerate(stack.write(tmp_path / name)):
            rewrite(path, stack, index, t00200032=("DS", f"0\\0\\{steps[index]:g}"))
        if expected is None:
            assert read_grid(tmp_path / name).geometry.spacing_zyx_mm[0] == pytest.approx(1.25, rel=0.01)
        else:
            assert expected in refused(tmp_path / name)


def test_a_slice_twice_is_refused_with_both_names(tmp_path):
    paths = Stack(array_zyx=phantom()).write(tmp_path)
    (tmp_path / "copy of a slice").write_bytes(paths[2].read_bytes())
    message = refused(tmp_path)
    assert message.startswith("2 slices share 1 position(s)")
    assert str(paths[2]) in message
    assert str(tmp_path / "copy of a slice") in message


def test_several_times_in_one_series_are_refused(tmp_path):
    Stack(array_zyx=phantom()).write(tmp_path, prefix="early")
    Stack(array_zyx=phantom(seed=1)).write(tmp_path, prefix="late")
    assert "12 slices at 6 positions: the series holds several images of one place" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"t00280030": ("DS", "1.25\\1.6")}, "differ in pixel spacing: 1.6×1.25 mm, expected 1.5×1.25 mm"),
        ({"t00200037": ("DS", "0.99995\\0.01\\0\\-0.01\\0.99995\\0")}, "differ in orientation: 0.99995 0.01 0"),
        (
            {"t00280010": ("US", 4), "t00280011": ("US", 4), "t7FE00010": ("OW", bytes(32))},
            "differ in size: 4×4, expected 5×7",
        ),
    ],
)
def test_a_slice_that_differs_is_named(tmp_path, changes, expected):
    stack = Stack(array_zyx=phantom())
    paths = stack.write(tmp_path)
    rewrite(paths[3], stack, 3, **changes)
    message = refused(tmp_path)
    assert message.startswith("1 of the 6 slices " + expected)
    assert message.splitlines()[1].strip() == str(paths[3])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"t00100020": ("LO", "PAT-4712")}, "patient"),
        ({"t00100020": ("LO", "")}, "patient"),
        ({"t0020000d": ("UI", "1.2.77.4712")}, "study"),
        ({"t00200052": ("UI", "1.2.77.4711.52")}, "frame of reference"),
        ({"t00080060": ("CS", "MR")}, "modality"),
    ],
)
@pytest.mark.parametrize("others", [1, 3])
def test_slices_of_two_scans_that_share_a_series_are_refused(tmp_path, changes, expected, others):
    stack = Stack(array_zyx=phantom())
    paths = stack.write(tmp_path)
    for index in range(others):
        rewrite(paths[index], stack, index, **changes)
    message = refused(tmp_path)
    assert f"slices of one series differ in their {expected}, {others} of 6 from the others" in message
    assert "4712" not in message and ".52" not in message


def test_identifiers_that_a_writer_made_for_every_file_tell_nothing(tmp_path):
    stack = Stack(array_zyx=phantom())
    for index, path in enumerate(stack.write(tmp_path)):
        rewrite(path, stack, index, t0020000d=("UI", f"1.2.77.{index}"), t00200052=("UI", f"1.2.78.{index}"))
    np.testing.assert_array_equal(read_image([tmp_path]).array_czyx[0], stack.array_zyx)


HOSTILE = "IM\nerror: all is lost\x1b[2J"
SEEN = "IM\\nerror: all is lost\\x1b[2J"


def test_text_of_a_header_and_names_of_files_are_told_without_what_a_terminal_obeys(tmp_path, caplog):
    stack = Stack(array_zyx=phantom(), number="\x1b[2J3", modality="C\nerror: T")
    stack.write(tmp_path / "two", prefix=f"one {HOSTILE}")
    dataclasses.replace(stack, uid="1.2.3", number="4").write(tmp_path / "two", prefix=HOSTILE)
    gap = stack.write(tmp_path / "gap", prefix=HOSTILE, skip=(3,))
    twice = stack.write(tmp_path / "twice", prefix=HOSTILE)
    (twice[0].parent / f"b{HOSTILE}").write_bytes(twice[0].read_bytes())
    odd = stack.write(tmp_path / "odd", prefix=HOSTILE)
    rewrite(odd[3], stack, 3, t00280030=("DS", "1.25\\1.6"))
    broken = stack.write(tmp_path / "broken", prefix=HOSTILE)
    broken[2].write_bytes(broken[2].read_bytes()[:-40])
    assert gap[0].exists()
    for folder in ("two", "gap", "twice", "odd", "broken"):
        message = refused(tmp_path / folder)
        assert SEEN in message and "\x1b" not in message and "\nerror" not in message
    assert "series \\x1b[2J3 (C\\nerror: T, 6 slices" in refused(tmp_path / "two")
    stack.write(tmp_path / "left")
    write(tmp_path / "left" / HOSTILE, patient_elements(REPORT), sop_class=REPORT)
    with caplog.at_level(logging.INFO):
        read_image([tmp_path / "left"])
    assert SEEN in caplog.text and "\x1b" not in caplog.text


def test_gantry_tilt_is_refused_with_its_angle(tmp_path):
    stack = Stack(array_zyx=phantom())
    for index, path in enumerate(stack.write(tmp_path)):
        shift = 2.0 * index * math.tan(math.radians(12))
        rewrite(path, stack, index, t00200032=("DS", f"0\\{shift:.6f}\\{2.0 * index}"))
    message = refused(tmp_path)
    assert "sheared by 12.0 degrees (gantry tilt)" in message
    assert "dcm2niix" in message


def test_a_slice_beside_the_stack_is_named(tmp_path):
    stack = Stack(array_zyx=phantom())
    paths = stack.write(tmp_path)
    rewrite(paths[2], stack, 2, t00200032=("DS", f"{stack.origin[0] + 4}\\{stack.origin[1]}\\{stack.origin[2] + 4}"))
    message = refused(tmp_path)
    assert "a slice lies 4 mm beside the stack" in message
    assert str(paths[2]) in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:300],
        lambda content: content[:-30],
        lambda content: bytes(len(content)),
    ],
    ids=["empty", "in the preamble", "in the header", "in the voxels", "all zero"],
)
def test_a_damaged_file_is_named_because_a_slice_may_be_lost(tmp_path, damage):
    paths = Stack(array_zyx=phantom()).write(tmp_path)
    paths[5].write_bytes(damage(paths[5].read_bytes()))  # the last one: its position would not be missed
    message = refused(tmp_path)
    assert "empty" in message or "damaged or not whole" in message
    assert str(paths[5]) in message


def test_what_is_named_dicom_and_is_none_is_refused(tmp_path):
    Stack(array_zyx=phantom()).write(tmp_path)
    (tmp_path / "IM0099.DCM").write_text("<html>404 Not Found</html>")
    assert str(tmp_path / "IM0099.DCM") in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"t00280010": ("US", 65535), "t00280011": ("US", 65535)}, "announces 8589672450 bytes of voxels"),
        ({"t00281053": ("DS", "0")}, "the rescale slope is 0"),
        ({"t00281053": ("DS", "nan")}, r"the rescale slope (tag 0028,1053) makes no sense"),
        ({"t00200032": ("DS", "1\\2")}, r"the position of the slice (tag 0020,0032) makes no sense"),
        ({"t00200037": ("DS", "1\\0\\0\\1\\0\\0")}, "or the spacing of the slice makes no sense"),
        ({"t00280030": ("DS", "0\\1")}, "or the spacing of the slice makes no sense"),
        ({"t00200037": ("DS", "1e200\\0\\0\\0\\1\\0")}, "or the spacing of the slice makes no sense"),
        ({"t00280030": ("DS", "1e30\\1")}, "or the spacing of the slice makes no sense"),
        ({"t00200032": ("DS", "0\\0\\-1e300")}, "or the spacing of the slice makes no sense"),
        ({"t00200032": ("DS", "0\\inf\\0")}, "the position of the slice (tag 0020,0032) makes no sense"),
        ({"t00281053": ("DS", "inf")}, "the rescale slope (tag 0028,1053) makes no sense"),
        ({"t00281053": ("DS", "1e300")}, "the rescale slope 1e+300 and intercept -1024 make no sense"),
        ({"t00281053": ("DS", "-1e34")}, "the rescale slope -1e+34 and intercept -1024 make no sense"),
        ({"t00281053": ("DS", "1e-9")}, "the rescale slope 1e-09 and intercept -1024 make no sense"),
        ({"t00281052": ("DS", "1e300")}, "the rescale slope 1 and intercept 1e+300 make no sense"),
        ({"t00281052": ("DS", "-2e7")}, "the rescale slope 1 and intercept -2e+07 make no sense"),
        ({"t00281052": ("DS", "nan")}, "the rescale intercept (tag 0028,1052) makes no sense"),
        ({"t00280101": ("US", 17)}, "the bits of a voxel make no sense: 17 of 16, the highest number 15"),
        ({"t00280101": ("US", 0)}, "the bits of a voxel make no sense: 0 of 16"),
        ({"t00280102": ("US", 16)}, "the bits of a voxel make no sense: 16 of 16, the highest number 16"),
        ({"t00280102": ("US", 7)}, "the bits of a voxel make no sense: 16 of 16, the highest number 7"),
        (
            {"t00280101": ("US", 12)},
            "do not lie in the lowest bits of a voxel: 12 are stored, the highest is number 15, expected 11",
        ),
    ],
)
def test_headers_that_make_no_sense_are_refused_with_the_file(tmp_path, changes, expected):
    stack = Stack(array_zyx=phantom())
    paths = stack.write(tmp_path)
    rewrite(paths[1], stack, 1, **changes)
    message = refused(tmp_path)
    assert expected in message
    assert str(paths[1]) in message


def test_negatives_and_colors_are_no_scan(tmp_path):
    stack = Stack(array_zyx=phantom())
    for name, changes, expected in (
        ("negative", {"t00280004": ("CS", "MONOCHROME1")}, "(photometric interpretation MONOCHROME1, expected MONO"),
        ("color", {"t00280004": ("CS", "RGB"), "t00280002": ("US", 3), "t00280100": ("US", 8), "t00280101": ("US", 8),
                   "t00280102": ("US", 7), "t7FE00010": ("OW", bytes(106))}, "(color)"),
        ("placeless", {"t00200032": ("DS", "")}, "(no position, orientation or spacing)"),
    ):  # fmt: skip
        for index, path in enumerate(stack.write(tmp_path / name)):
            rewrite(path, stack, index, **changes)
        message = refused(tmp_path / name)
        assert "no series of slices in this folder, but 6 file(s) like IM1096 " + expected in message


def test_an_enhanced_multi_frame_file_is_refused_by_name(tmp_path):
    stack = Stack(array_zyx=phantom(), sop_class=ENHANCED_CT)
    frames = {**stack.elements(0), "00280008": ("IS", "6"), "7FE00010": ("OW", phantom().tobytes())}
    write(tmp_path / "all in one", frames, sop_class=ENHANCED_CT)
    message = refused(tmp_path)
    assert "an enhanced multi-frame DICOM file: 6 slices in one file" in message
    assert str(tmp_path / "all in one") in message


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_without_a_stack(tmp_path, count):
    Stack(array_zyx=phantom((count, 4, 4))).write(tmp_path)
    message = refused(tmp_path)
    assert message.startswith("no series of slices in this folder" + (", but series 3 (CT, 1 slice," if count else ""))


def test_compressed_slices_are_read_and_broken_ones_are_not(tmp_path):
    array = phantom((3, 64, 64))
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG2000")
    for index, plane in enumerate(array):
        image = sitk.GetImageFromArray(plane[None])
        for tag, value in (("0020|000e", "1.2"), ("0008|0060", "CT"), ("0020|0032", f"0\\0\\{index}")):
            image.SetMetaData(tag, value)
        image.SetMetaData("0020|0037", "1\\0\\0\\0\\1\\0")
        writer.SetFileName(str(tmp_path / f"{index}.dcm"))
        writer.Execute(image)
    np.testing.assert_array_equal(read_image([tmp_path]).array_czyx[0], array)
    content = (tmp_path / "1.dcm").read_bytes()
    start = content.index(b"\xff\x4f\xff\x51")  # the code stream
    damaged = content[: start + 8] + struct.pack(">I", 3) + bytes(60) + content[start + 72 :]
    (tmp_path / "1.dcm").write_bytes(damaged)
    with pytest.raises(ImageError, match=r"damaged"):
        read_image([tmp_path])


def test_channels_may_be_series(tmp_path):
    one, other = Stack(array_zyx=phantom()), Stack(array_zyx=phantom(seed=1))
    one.write(tmp_path / "a_0000")
    other.write(tmp_path / "a_0001")
    image = read_image([tmp_path / "a_0000", tmp_path / "a_0001"])
    np.testing.assert_array_equal(image.array_czyx, [one.array_zyx, other.array_zyx])
    mixed = read_image([tmp_path / "a_0000", write_nifti(tmp_path / "a_0001.nii.gz", other)])
    np.testing.assert_array_equal(mixed.array_czyx, image.array_czyx)
    moved = dataclasses.replace(other, origin=(0.0, 0.0, 0.0))
    with pytest.raises(ImageError, match="must lie on one grid"):
        read_image([tmp_path / "a_0000", write_nifti(tmp_path / "moved.nii.gz", moved)])


def test_the_library_below_says_nothing_of_the_patient(tmp_path):
    stack = Stack(array_zyx=phantom())
    paths = stack.write(tmp_path)
    write(tmp_path / "report", patient_elements(REPORT), sop_class=REPORT)
    paths[1].write_bytes(paths[1].read_bytes()[:-40])
    code = (
        "import sys, logging; from pathlib import Path; logging.basicConfig(level=0)\n"
        "from flaresemi.errors import ImageError; from flaresemi.io.images import read_image\n"
        "try: read_image([Path(sys.argv[1])])\n"
        "except ImageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, encoding="utf-8", check=True
    )
    assert "damaged" in done.stdout
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)


def test_the_order_of_names_and_numbers_does_not_matter(tmp_path):
    paths = Stack(array_zyx=phantom()).write(tmp_path)
    assert sorted(paths) != paths
    assert [each.path for each in find_series(tmp_path).slices] == paths
