"""Predictions as DICOM objects: whoever reads them finds the same voxels in the same places."""

import dataclasses
import warnings

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from matplotlib.path import Path as Polygon
from scipy.ndimage import gaussian_filter

from flaresemi import flare22
from flaresemi.errors import ConfigError, ImageError
from flaresemi.inference.dicom_output import DicomOutput
from flaresemi.inference.segmentation import Segmentation
from flaresemi.io import dicom_seg
from flaresemi.io.images import read_image
from flaresemi.io.series import find_series
from flaresemi.labels import Label, LabelSet
from flaresemi.organ_codes import Code, OrganCode
from tests.made_dicom import SECRETS, Stack, rewrite

#: A plane of whole bytes of bits: of others GDCM takes the bits of the next frame.
SHAPE = (7, 18, 16)

AXIAL = np.eye(3)
HEAD_FIRST_PRONE = np.diag([-1.0, -1.0, 1.0])
SAGITTAL = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
a, b = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array([[a, -b, 0.0], [b, a, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
    [[1.0, 0.0, 0.0], [0.0, a, -b], [0.0, b, a]]
)

each_direction = pytest.mark.parametrize("direction", [AXIAL, HEAD_FIRST_PRONE, SAGITTAL, OBLIQUE])

REGIONS = LabelSet(
    labels=(
        Label(name="whole tumor", value=1, more_values=(2, 4)),
        Label(name="tumor core", value=2, more_values=(4,)),
        Label(name="enhancing tumor", value=4),
    )
)


def predicted(folder, labels=flare22.LABELS, direction=AXIAL, *, empty=False):
    """A series in a folder, and a made-up segmentation of it with blobs that have holes."""
    rng = np.random.default_rng(3)
    Stack(array_zyx=rng.integers(-900, 900, SHAPE).astype(np.int16), direction=direction).write(folder)
    source = read_image([folder]).source
    indices = np.zeros(source.canonical.shape_zyx, np.uint8)
    for index in range(1, labels.channels):
        blob = gaussian_filter(rng.random(indices.shape), 1.0)
        indices[blob > np.quantile(blob, 0.8)] = 0 if empty else index
    return Segmentation(indices_zyx=indices, labels=labels, source=source, notes=(), seconds={})


def write(tmp_path, form, segmentation, **changes):
    path = tmp_path / "out.dcm"
    output = DicomOutput(format=form, labels=segmentation.labels, codes={}, models=("FINE 0 ab",))
    dataclasses.replace(output, **changes).write(tmp_path / "scan", path, segmentation)
    return path


def masks(segmentation):
    return [segmentation.mask_in_file(organ) for organ in range(1, segmentation.labels.count + 1)]


def lies_on(image, segmentation):
    """The segments of an image of SimpleITK on the whole grid of the scan: its voxels, where they are."""
    geometry = segmentation.source.geometry
    grid = sitk.Image(*geometry.shape_zyx[::-1], sitk.sitkUInt8)
    grid.SetSpacing(geometry.spacing_zyx_mm[::-1])
    grid.SetOrigin(geometry.origin_xyz_mm)
    grid.SetDirection(geometry.direction)
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor))


@each_direction
@pytest.mark.parametrize("labels", [flare22.LABELS, REGIONS])
def test_highdicom_reads_the_same_voxels_of_a_segmentation(tmp_path, direction, labels):
    import highdicom

    segmentation = predicted(tmp_path / "scan", labels, direction)
    read = highdicom.seg.segread(write(tmp_path, "dicom-seg", segmentation))
    slices = find_series(tmp_path / "scan").slices
    stacked = [pydicom.dcmread(each.path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID for each in slices]
    pixels = read.get_pixels_by_source_instance(
        stacked, segment_numbers=range(1, labels.count + 1), assert_missing_frames_are_empty=True
    )
    for number, mask in enumerate(masks(segmentation), start=1):
        assert mask.any()
        assert np.array_equal(pixels[..., number - 1] > 0, mask)
    assert read.SegmentsOverlap == ("YES" if labels is REGIONS else "NO")


@each_direction
def test_simpleitk_and_pydicom_read_the_same_voxels_of_a_segmentation(tmp_path, direction):
    labels = LabelSet(labels=(Label(name="liver", value=1),))
    segmentation = predicted(tmp_path / "scan", labels, direction)
    path = write(tmp_path, "dicom-seg", segmentation)
    (mask,) = masks(segmentation)
    assert mask.any(axis=(1, 2)).all()
    assert np.array_equal(lies_on(sitk.ReadImage(str(path)), segmentation) > 0, mask)
    dataset, geometry = pydicom.dcmread(path), segmentation.source.geometry
    for frame, plane in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        offset = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float) - geometry.origin_xyz_mm
        z = round(float(np.dot(offset, np.reshape(geometry.direction, (3, 3))[:, 2])) / geometry.spacing_zyx_mm[0])
        assert np.array_equal(plane > 0, mask[z])


def fill(contours, geometry):
    """The voxels whose centers lie within contours, from the patient's coordinates back."""
    matrix = np.reshape(geometry.direction, (3, 3)) * geometry.spacing_zyx_mm[::-1]
    filled = np.zeros(geometry.shape_zyx, bool)
    y, x = np.mgrid[: geometry.shape_zyx[1], : geometry.shape_zyx[2]]
    for contour in contours:
        points = np.reshape([float(value) for value in contour.ContourData], (-1, 3))
        assert len(points) == contour.NumberOfContourPoints
        indices = np.linalg.solve(matrix, (points - geometry.origin_xyz_mm).T).T
        z = round(float(indices[0, 2]))
        assert np.abs(indices[:, 2] - z).max() < 1e-3
        ring = Polygon(np.vstack([indices[:, :2], indices[:1, :2]]))
        filled[z] ^= ring.contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(x.shape)
    return filled


@each_direction
@pytest.mark.parametrize("labels", [flare22.LABELS, REGIONS])
def test_contours_are_around_the_same_voxels(tmp_path, direction, labels, caplog):
    segmentation = predicted(tmp_path / "scan", labels, direction)
    structures = pydicom.dcmread(write(tmp_path, "rtstruct", segmentation))
    assert ("not axial" in caplog.text) == (direction is SAGITTAL or direction is OBLIQUE)
    slices = {f"1.2.77.4711.1.{index + 1}" for index in range(SHAPE[0])}
    (frame,) = structures.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert (frame.FrameOfReferenceUID, series.SeriesInstanceUID) == ("1.2.77.4711.1.0", "1.2.77.4711.1")
    assert {each.ReferencedSOPInstanceUID for each in series.ContourImageSequence} == slices
    for roi, item, name, mask in zip(
        structures.StructureSetROISequence,
        structures.ROIContourSequence,
        labels.names,
        masks(segmentation),
        strict=True,
    ):
        assert (roi.ROIName, roi.ROINumber) == (name, item.ReferencedROINumber)
        assert np.array_equal(fill(item.ContourSequence, segmentation.source.geometry), mask)
        for contour in item.ContourSequence:
            assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID in slices


@pytest.mark.parametrize("form", ["dicom-seg", "rtstruct"])
def test_what_is_said_of_organs_patient_and_purpose(tmp_path, form):
    segmentation = predicted(tmp_path / "scan")
    own = OrganCode(type=Code(value="X1", scheme="99US", meaning="Our liver"))
    made = pydicom.dcmread(write(tmp_path, form, segmentation, codes={"liver": own}, algorithm="abdomen"))
    assert (made.PatientName, made.PatientID, made.StudyInstanceUID) == (SECRETS[0], SECRETS[1], SECRETS[4])
    assert "ab" in str(made) and "abdomen" in made.SeriesDescription
    assert "not for clinical use" in made.SeriesDescription
    if form == "rtstruct":
        assert made.StructureSetLabel == "NOT_FOR_CLINICAL"
        codes = [each.RTROIIdentificationCodeSequence[0] for each in made.RTROIObservationsSequence]
        assert codes[1].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    else:
        assert made.ContentLabel == "NOT_FOR_CLINICAL"
        first, second = made.SegmentSequence[:2]
        codes = [each.SegmentedPropertyTypeCodeSequence[0] for each in (first, second)]
        assert second.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
        assert first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "abdomen"
        light = first.RecommendedDisplayCIELabValue
        assert len(light) == 3 and light != second.RecommendedDisplayCIELabValue
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in codes[:2]] == [
        ("X1", "99US"),
        ("64033007", "SCT"),
    ]


@pytest.mark.parametrize("form", ["dicom-seg", "rtstruct"])
def test_another_label_and_names_in_any_script(tmp_path, form):
    labels = LabelSet(labels=(Label(name="左肾", value=1), Label(name="Ö" * 70, value=2)))
    segmentation = predicted(tmp_path / "scan", labels)
    stack = Stack(array_zyx=np.zeros(SHAPE, np.int16))
    for index, path in enumerate(stack.write(tmp_path / "scan")):
        elements = {"t00080005": ("CS", "ISO_IR 100"), "t00100010": ("PN", "M\u00dcLLER^J".encode("latin1") + b" ")}
        rewrite(path, stack, index, **elements)
    made = pydicom.dcmread(write(tmp_path, form, segmentation, label="Study 7"))
    assert made.PatientName == "MÜLLER^J"
    named = made.StructureSetROISequence if form == "rtstruct" else made.SegmentSequence
    assert [each.ROIName if form == "rtstruct" else each.SegmentLabel for each in named] == ["左肾", "Ö" * 64]
    assert "STUDY_7" in (made.get("ContentLabel"), made.get("StructureSetLabel"))


@pytest.mark.parametrize("form", ["dicom-seg", "rtstruct"])
def test_no_organ_at_all(tmp_path, form):
    segmentation = predicted(tmp_path / "scan", empty=True)
    path = write(tmp_path, form, segmentation)
    made = pydicom.dcmread(path)
    if form == "dicom-seg":
        assert not made.pixel_array.any() and int(made.NumberOfFrames) == 13
        assert len(made.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SHAPE[0]
    else:
        assert not any("ContourSequence" in each for each in made.ROIContourSequence)


@pytest.mark.parametrize("form", ["dicom-seg", "rtstruct"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"t00080018": ("UI", "1.2.3")}, "share a SOP instance UID"),
        ({"t00200052": ("UI", "")}, "no frame of reference"),
        ({"t0020000D": ("UI", "")}, "no study"),
    ],
)
def test_a_series_that_nothing_can_refer_to_is_refused(tmp_path, form, changes, said):
    segmentation = predicted(tmp_path / "scan")
    stack = Stack(array_zyx=np.zeros(SHAPE, np.int16))
    for index, path in enumerate(stack.write(tmp_path / "scan")):
        rewrite(path, stack, index, **changes)
    with pytest.raises(ImageError) as caught, warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path, form, segmentation)
    assert said in str(caught.value)
    assert not any(secret in str(caught.value) for secret in SECRETS)
    assert not (tmp_path / "out.dcm").exists()


def test_a_series_that_changed_meanwhile_is_refused(tmp_path):
    segmentation = predicted(tmp_path / "scan")
    Stack(array_zyx=np.zeros(SHAPE, np.int16), origin=(0.0, 0.0, 1.0)).write(tmp_path / "scan")
    with pytest.raises(ImageError, match="has changed"):
        write(tmp_path, "rtstruct", segmentation)


def test_files_and_a_missing_package_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    output = DicomOutput(format="dicom-seg", labels=flare22.LABELS, codes={})
    with pytest.raises(ConfigError, match=r"1 image\(s\) are files: scan\.nii\.gz"):
        output.check([[tmp_path / "scan.nii.gz"]])
    (tmp_path / "scan").mkdir()
    output.check([[tmp_path / "scan"]])
    monkeypatch.setattr(dicom_seg.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"flaresemi\[dicom\]"):
        output.check([[tmp_path / "scan"]])


def test_organs_without_a_public_code_are_named(tmp_path, caplog):
    labels = LabelSet(labels=(Label(name="thing", value=1), Label(name="liver", value=2)))
    (tmp_path / "scan").mkdir()
    DicomOutput(format="rtstruct", labels=labels, codes={}).check([[tmp_path / "scan"]])
    assert "no code is known for thing:" in caplog.text
