"""DICOM segmentations are label maps: what highdicom writes is read back on the grid of the series."""

import dataclasses

import numpy as np
import pydicom
import pytest

from flaresemi.dataset import load_dataset
from flaresemi.errors import DatasetError, ImageError
from flaresemi.evaluation.folders import CasePair, read_pair
from flaresemi.image_paths import label_stem
from flaresemi.inference.dicom_output import DicomOutput
from flaresemi.inference.segmentation import Segmentation
from flaresemi.io.images import read_grid, read_image, read_label_map, write_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.planning.cases import GRID_TOLERANCE_VOXELS, read_case
from tests.made_dicom import Stack

SHAPE = (9, 10, 11)

ORGANS = LabelSet(
    labels=(Label(name="liver", value=5), Label(name="left kidney", value=2), Label(name="spleen", value=300))
)
REGIONS = LabelSet(
    labels=(
        Label(name="whole tumor", value=1, more_values=(2, 4)),
        Label(name="tumor core", value=2, more_values=(4,)),
        Label(name="enhancing tumor", value=4),
    )
)


def write(tmp_path, labels=ORGANS, *, direction=None, only=slice(2, 7), seed=0, indices=None):
    """A series and a segmentation of some of its slices; returns the values that it means, on the canonical grid."""
    rng = np.random.default_rng(seed)
    direction = np.eye(3) if direction is None else direction
    Stack(array_zyx=rng.integers(-900, 900, SHAPE).astype(np.int16), direction=direction).write(tmp_path / "scan")
    source = read_image([tmp_path / "scan"]).source
    if indices is None:
        indices = np.zeros(source.canonical.shape_zyx, np.uint8)
        source.to_file(indices)[only] = rng.integers(0, labels.channels, source.to_file(indices)[only].shape)
    segmentation = Segmentation(indices_zyx=indices, labels=labels, source=source, notes=(), seconds={})
    output = DicomOutput(format="dicom-seg", labels=labels, codes={})
    output.write(tmp_path / "scan", tmp_path / "scan.seg.dcm", segmentation)
    return segmentation.values_zyx, source


def edit(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


@pytest.mark.parametrize("labels", [ORGANS, REGIONS])
@pytest.mark.parametrize(
    "direction",
    [np.eye(3), np.diag([1.0, -1.0, -1.0]), np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])],
)
@pytest.mark.parametrize("only", [slice(None), slice(2, 7), slice(4, 5), slice(1, 9, 3)])
def test_what_is_written_is_read_by_the_names_of_its_segments(tmp_path, labels, direction, only):
    values, source = write(tmp_path, labels, direction=direction, only=only)
    read = read_label_map(tmp_path / "scan.seg.dcm", labels).on(source, GRID_TOLERANCE_VOXELS)
    assert read.geometry == source.canonical
    assert np.array_equal(read.array_zyx, values)


def test_names_that_no_organ_has_leave_the_numbers(tmp_path):
    values, source = write(tmp_path)

    def rename(dataset):
        for segment, name in zip(dataset.SegmentSequence, ("LEFT_KIDNEY", "lesion", "Segment_3"), strict=True):
            segment.SegmentLabel = name

    edit(tmp_path / "scan.seg.dcm", rename)
    with pytest.raises(ImageError, match="2 segments stand for value 2: LEFT_KIDNEY, lesion"):
        read_label_map(tmp_path / "scan.seg.dcm", ORGANS)
    read = read_label_map(tmp_path / "scan.seg.dcm").on(source, GRID_TOLERANCE_VOXELS).array_zyx
    for number, value in enumerate((5, 2, 300), start=1):
        assert np.array_equal(read == number, values == value)


def test_overlaps_need_regions_that_mean_them(tmp_path):
    write(tmp_path, REGIONS)
    path = tmp_path / "scan.seg.dcm"
    with pytest.raises(ImageError, match="its segments overlap"):
        read_label_map(path)
    other = LabelSet(
        labels=(
            Label(name="whole tumor", value=1, more_values=(2,)),
            Label(name="tumor core", value=2, more_values=(3,)),
            Label(name="enhancing tumor", value=4),
        )
    )
    with pytest.raises(ImageError, match="whole tumor and tumor core and enhancing tumor and in nothing else"):
        read_label_map(path, other)
    few = dataclasses.replace(REGIONS, labels=(*REGIONS.labels[:2], Label(name="ring", value=4)))
    with pytest.raises(ImageError, match="enhancing tumor has none"):
        read_label_map(path, few)


@pytest.mark.parametrize("background", [7, -1])
def test_what_lies_in_no_segment_is_background_whatever_its_value(tmp_path, background):
    """Also where 0 is an organ."""
    labels = dataclasses.replace(ORGANS, background=background, labels=(Label(name="brain", value=0), *ORGANS.labels))
    values, source = write(tmp_path, labels)
    assert set(np.unique(values)) == {background, 0, 2, 5, 300}
    read = read_label_map(tmp_path / "scan.seg.dcm", labels).on(source, GRID_TOLERANCE_VOXELS)
    assert np.array_equal(read.array_zyx, values)


@pytest.mark.parametrize("labels", [ORGANS, REGIONS])
def test_a_segment_named_ignore_is_what_nobody_annotated(tmp_path, labels):
    values, source = write(tmp_path, labels)
    name, value = ("spleen", 300) if labels is ORGANS else ("enhancing tumor", 4)

    def rename(dataset):
        for segment in dataset.SegmentSequence:
            segment.SegmentLabel = "Ignore" if segment.SegmentLabel == name else segment.SegmentLabel

    edit(tmp_path / "scan.seg.dcm", rename)
    others = tuple(each for each in labels.labels if each.name != name)
    ignoring = dataclasses.replace(labels, labels=others, ignore=99)
    read = read_label_map(tmp_path / "scan.seg.dcm", ignoring).on(source, GRID_TOLERANCE_VOXELS).array_zyx
    assert np.array_equal(read, np.where(values == value, 99, values))


def test_a_segment_named_ignore_leaves_regions_their_numbers(tmp_path):
    values, source = write(tmp_path)

    def rename(dataset):
        for segment, name in zip(dataset.SegmentSequence, ("one", "two", "ignore"), strict=True):
            segment.SegmentLabel = name

    edit(tmp_path / "scan.seg.dcm", rename)
    labels = LabelSet(labels=(Label(name="a", value=1, more_values=(2,)), Label(name="b", value=2)), ignore=99)
    read = read_label_map(tmp_path / "scan.seg.dcm", labels).on(source, GRID_TOLERANCE_VOXELS).array_zyx
    for value, written in ((1, 5), (2, 2), (99, 300)):
        assert np.array_equal(read == value, values == written)


def test_numbers_in_voxels(tmp_path):
    """A segmentation of the kind LABELMAP, as newer programs write it."""
    import highdicom

    write(tmp_path)
    binary = highdicom.seg.segread(tmp_path / "scan.seg.dcm")
    slices = sorted((tmp_path / "scan").iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    headers = [pydicom.dcmread(path) for path in slices]
    for header in headers:
        header.SliceThickness = 2.0
        header.AccessionNumber = header.StudyID = header.StudyDate = header.StudyTime = header.PatientSex = ""
    values = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    made = highdicom.seg.Segmentation(
        headers, values, "LABELMAP", binary.SegmentSequence, highdicom.UID(), 1, highdicom.UID(), 1, "a", "b", "c", "d"
    )
    made.save_as(tmp_path / "numbers.dcm")
    assert label_stem(tmp_path / "numbers.dcm") == "numbers"
    read = read_label_map(tmp_path / "numbers.dcm", ORGANS).array_zyx
    assert np.array_equal(read, np.array([0, 5, 2, 300])[values])


def test_a_dataset_with_dicom_on_both_sides(tmp_path):
    values, source = write(tmp_path)
    write_label_map(tmp_path / "whole.nii.gz", values, source)
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "scan").rename(tmp_path / "imagesTr" / "a_0000")
    (tmp_path / "scan.seg.dcm").rename(tmp_path / "labelsTr" / "a.seg.dcm")
    names = '{"labels": {"background": 0, "liver": 5, "left kidney": 2, "spleen": 300}}'
    (tmp_path / "dataset.json").write_text(names, encoding="utf-8")
    dataset = load_dataset(tmp_path)
    (case,) = dataset.labeled
    assert (case.id, case.label) == ("a", tmp_path / "labelsTr" / "a.seg.dcm")
    _, organs = read_case(case, dataset.labels)
    assert np.array_equal(dataset.labels.to_values(organs), values)
    pair = CasePair(case_id="a", prediction=case.label, reference=tmp_path / "whole.nii.gz")
    for compared in (pair, dataclasses.replace(pair, prediction=pair.reference, reference=case.label)):
        assert all(np.array_equal(each.array_zyx, values) for each in read_pair(compared, dataset.labels))
    Stack(array_zyx=np.zeros(SHAPE, np.int16), origin=(0.0, 0.0, 0.0)).write(case.images[0])
    with pytest.raises(DatasetError, match=r"does not lie on|no part of the image's grid"):
        read_case(case, dataset.labels)


def test_other_objects_are_no_label_maps(tmp_path):
    Stack(array_zyx=np.zeros(SHAPE, np.int16)).write(tmp_path / "scan", prefix="a")
    slice_file = next((tmp_path / "scan").iterdir())
    slice_file = slice_file.rename(tmp_path / "a.dcm")
    assert label_stem(slice_file) is None
    assert label_stem(tmp_path / "missing.dcm") is None
    with pytest.raises(ImageError, match="no segmentation"):
        read_label_map(slice_file)
    write(tmp_path / "b")
    with pytest.raises(ImageError, match="is no image"):
        read_image([tmp_path / "b" / "scan.seg.dcm"])


def drop_position(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


def shift(dataset):
    dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient[0] += 3


def cut(dataset):
    dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_position, "damaged or not whole"),
        (shift, "unevenly, or beside"),
        (cut, "damaged or not whole"),
        (lambda dataset: setattr(dataset, "NumberOfFrames", 3), "damaged or not whole"),
        (lambda dataset: setattr(dataset, "SegmentationType", "FRACTIONAL"), "expected a binary one"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, change, said):
    write(tmp_path)
    path = tmp_path / "scan.seg.dcm"
    edit(path, change)
    with pytest.raises(ImageError, match=said):
        read_label_map(path, ORGANS)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_breaks_off_is_refused(tmp_path, share):
    write(tmp_path)
    path = tmp_path / "scan.seg.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ImageError):
        read_label_map(path, ORGANS)
    path.write_bytes(whole)
    read_grid(path)
