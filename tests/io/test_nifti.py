"""NIfTI: one rule for where voxels lie, and label maps that say it as their images do."""

import itertools
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.errors import ImageError
from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import read_grid, read_image, read_label_map, write_label_map
from tests.made_nifti import as_nibabel_writes, as_simpleitk_writes, write_nifti

#: The part of a header that says where its voxels lie.
PLACE = (
    "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
    "qoffset_y", "qoffset_z",
)  # fmt: skip

#: Two grids in RAS that have nothing to do with each other, and one that mirrors the first left to right, in place.
ONE = np.array([[0, -0.8, 0, 10], [0.7, 0, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])
OTHER = np.array([[-0.7, 0, 0, 50], [0, -0.8, 0, 60], [0, 0, 2.5, 70], [0, 0, 0, 1.0]])
MIRRORED = np.array([[0, 0.8, 0, 10 - 0.8 * 5], [0.7, 0, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])

ARRAY = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)


def save(path: Path, sform=None, qform=None, **changes) -> Path:
    return write_nifti(path, ARRAY, sform, qform, **changes)


def place(path: Path, index_xyz) -> np.ndarray:
    """Where a voxel lies by the grid that is read, in RAS."""
    return np.array(read_grid(path).geometry.world_xyz_mm(tuple(index_xyz[::-1]))) * [-1, -1, 1]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("sform_code", "qform_code"), [*itertools.product(range(5), repeat=2)])
def test_the_sform_counts_then_the_qform_then_the_sizes_and_both_are_written_back(
    tmp_path, kind, ending, sform_code, qform_code
):
    path = save(tmp_path / f"image{ending}", ONE, OTHER, codes=(sform_code, qform_code), kind=kind)
    unoriented = np.diag([-0.7, -0.8, 2.5, 1.0])  # as stored, which is LPS
    counts = ONE if sform_code else OTHER if qform_code else unoriented
    for index in ((0, 0, 0), (4, 5, 6), (1, 2, 3)):
        np.testing.assert_allclose(place(path, index), (counts @ [*index, 1])[:3], atol=1e-4)

    image = read_image([path])
    written = tmp_path / f"label{ending}"
    write_label_map(written, image.array_czyx[0].astype(np.uint8), image.source)
    ours, theirs = nibabel.load(written), nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), ARRAY)
    for field in PLACE:
        np.testing.assert_array_equal(ours.header[field], theirs.header[field].astype(np.float32), field)
    np.testing.assert_array_equal(ours.header["pixdim"][:4], theirs.header["pixdim"][:4].astype(np.float32))
    if kind is nibabel.Nifti1Image:
        one, other = sitk.ReadImage(str(written)), sitk.ReadImage(str(path))
        assert one.GetOrigin() == other.GetOrigin() and one.GetSpacing() == other.GetSpacing()
        assert one.GetDirection() == other.GetDirection()
    label = read_label_map(written)
    np.testing.assert_array_equal(label.array_zyx, image.array_czyx[0])
    assert label.geometry.far_corner_distance_mm(image.geometry) < 1e-3


@pytest.mark.parametrize(("unit", "mm"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
@pytest.mark.parametrize("forms", ["sform", "qform", "neither"])
def test_units_of_length(tmp_path, unit, mm, forms):
    affine = np.diag([-1.5, -2, 3, 1.0]) / [[mm], [mm], [mm], [1]]
    path = save(tmp_path / "a.nii", affine if forms == "sform" else None, affine if forms == "qform" else None)
    header = nibabel.load(path).header
    header["pixdim"][1:4] = np.abs(np.diag(affine)[:3])
    header["xyzt_units"] = unit + 8  # and seconds
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    np.testing.assert_allclose(read_grid(path).geometry.spacing_zyx_mm, (3, 2, 1.5), rtol=1e-6)
    write_label_map(tmp_path / "b.nii", np.zeros(read_grid(path).canonical.shape_zyx, np.uint8), read_grid(path))
    assert read_grid(tmp_path / "b.nii").geometry == read_grid(path).geometry
    np.testing.assert_array_equal(nibabel.load(tmp_path / "b.nii").affine, nibabel.load(path).affine)


def test_a_unit_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ImageError, match="unit of length is not known"):
        read_grid(save(tmp_path / "a.nii", ONE, ONE, unit=5))


def test_qfac_and_quaternions_as_in_the_standards_library(tmp_path):
    """A third axis to the other side; 0 for qfac, which counts as 1; half a turn, which leaves no real part."""
    for qform in (np.diag([-1.0, -1, 2, 1]), np.diag([1.0, 1, -2, 1]), np.diag([-1.0, 1, 2, 1]), OTHER):
        path = save(tmp_path / "a.nii", None, qform)
        for index in ((0, 0, 0), (4, 5, 6)):
            np.testing.assert_allclose(place(path, index), (qform @ [*index, 1])[:3], atol=1e-4)
    path = save(tmp_path / "a.nii", None, OTHER)
    header = nibabel.load(path).header
    header["pixdim"][0] = 0
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    np.testing.assert_allclose(place(path, (4, 5, 6)), (OTHER @ [4, 5, 6, 1])[:3], atol=1e-4)


@pytest.mark.parametrize("field", ["quatern_b", "qoffset_z", "pixdim"])
def test_a_qform_that_is_no_number_leaves_the_sform(tmp_path, field):
    path = save(tmp_path / "a.nii", ONE, ONE)
    header = nibabel.load(path).header
    header[field] = np.nan
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    np.testing.assert_allclose(place(path, (1, 2, 3)), (ONE @ [1, 2, 3, 1])[:3], atol=1e-4)
    source = read_grid(path)
    write_label_map(tmp_path / "b.nii", np.zeros(source.canonical.shape_zyx, np.uint8), source)
    np.testing.assert_allclose(nibabel.load(tmp_path / "b.nii").affine, ONE, atol=1e-5)


def test_what_nifti_1_cannot_hold_is_written_as_nifti_2(tmp_path):
    geometry = Geometry(shape_zyx=(1, 1, 40_000), spacing_zyx_mm=(1.0, 1.0, 0.01))
    write_label_map(tmp_path / "a.nii", np.zeros((1, 1, 40_000), np.uint8), SourceGrid.of(geometry))
    assert isinstance(nibabel.load(tmp_path / "a.nii"), nibabel.Nifti2Image)
    assert read_grid(tmp_path / "a.nii").geometry.far_corner_distance_mm(geometry) < 1e-6


def test_a_label_map_of_another_format_is_written_for_every_reader(tmp_path):
    """From where there are no forms, both say the grid, and libraries agree."""
    turned = tuple(np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]], float).ravel())
    geometry = Geometry(shape_zyx=(4, 5, 6), spacing_zyx_mm=(3.0, 2.0, 1.5), origin_xyz_mm=(7, 8, -9), direction=turned)
    source = SourceGrid.of(geometry)
    write_label_map(tmp_path / "a.nii.gz", np.zeros(source.canonical.shape_zyx, np.int16), source)
    by_itk, by_nibabel = sitk.ReadImage(str(tmp_path / "a.nii.gz")), nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(by_itk.GetDirection(), turned, atol=1e-6)
    np.testing.assert_allclose(by_itk.GetOrigin(), (7, 8, -9), atol=1e-5)
    np.testing.assert_allclose(by_itk.GetSpacing(), (1.5, 2, 3), atol=1e-6)
    for affine in (by_nibabel.get_sform(), by_nibabel.get_qform()):
        np.testing.assert_allclose((affine @ [5, 4, 3, 1])[:3] * [-1, -1, 1], geometry.world_xyz_mm((3, 4, 5)), 1e-5)


# Other programs, which tell one of the two positions


@pytest.mark.parametrize(("sform", "qform"), [(ONE, OTHER), (MIRRORED, ONE), (ONE, None), (None, ONE), (None, None)])
@pytest.mark.parametrize("write", [as_nibabel_writes, as_simpleitk_writes])
def test_a_label_map_that_another_program_wrote_for_an_image_lies_on_it(tmp_path, sform, qform, write):
    """Whichever of the two positions that program took the image to have."""
    path = save(tmp_path / "image.nii.gz", sform, qform)
    image = read_image([path])
    label = read_label_map(write(tmp_path / "label.nii.gz", ARRAY, path)).on(image.source, 0.1)
    assert label.geometry.far_corner_distance_mm(image.geometry) < 1e-3
    np.testing.assert_array_equal(label.array_zyx, image.array_czyx[0])


def test_channels_may_come_from_several_programs(tmp_path):
    path = save(tmp_path / "a.nii.gz", MIRRORED, ONE)
    other = as_simpleitk_writes(tmp_path / "b.nii.gz", ARRAY, path)
    image = read_image([path, other])
    first, second = image.array_czyx
    np.testing.assert_array_equal(first, second)
    assert image.other_position and not read_image([path, path]).other_position


def test_an_old_qform_beside_an_sform_that_lies_on_the_image_leaves_two_orders(tmp_path):
    """Reordered by a program that left the qform of before: nothing says whether the voxels follow one or the other."""
    path = save(tmp_path / "image.nii.gz", ONE, ONE)
    old = write_nifti(tmp_path / "label.nii.gz", ARRAY[:, ::-1].copy(), MIRRORED, ONE)
    image, label = read_grid(path), read_label_map(old)
    assert math.isclose(label.geometry.far_corner_distance_mm(image.canonical), 0, abs_tol=1e-4)
    np.testing.assert_array_equal(label.array_zyx, read_image([path]).array_czyx[0])
    assert label.source.lies_twice(image, 0.1)
    with pytest.raises(ImageError, match="voxels of this channel lie on the first in two orders"):
        read_image([path, old])
    for sform, qform in ((ONE, OTHER), (MIRRORED, ONE), (ONE, None), (None, ONE), (None, None)):
        other = save(tmp_path / "other.nii.gz", sform, qform)
        for write in (as_nibabel_writes, as_simpleitk_writes):
            assert not read_grid(write(tmp_path / "written.nii.gz", ARRAY, other)).lies_twice(read_grid(other), 0.1)
        assert not read_grid(other).lies_twice(read_grid(other), 0.1)


def test_another_order_of_the_same_voxels_is_no_other_position(tmp_path):
    path = save(tmp_path / "a.nii.gz", ONE, ONE)
    image = read_image([path])
    nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), tmp_path / "b.nii.gz")
    label = read_label_map(tmp_path / "b.nii.gz")
    assert not label.source.matches_as_stored(image.source, 0.1)
    np.testing.assert_array_equal(label.on(image.source, 0.1).array_zyx, image.array_czyx[0])
    assert math.isclose(label.geometry.far_corner_distance_mm(image.geometry), 0, abs_tol=1e-4)


# Label maps with a scale


def save_scaled(path: Path, stored: np.ndarray, slope: float, intercept: float = 0.0) -> Path:
    image = nibabel.Nifti1Image(stored, np.diag([-1.0, -1, 1, 1]))
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("highest", [1, 13, 104, 200])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_label_maps_that_nibabel_stored_with_a_scale(tmp_path, highest, dtype):
    """Floats saved as integers: 1 becomes 20 times 0.05098, which is 1.0196."""
    labels = np.resize(np.arange(highest + 1), (5, 6, 40)).astype(np.float64)
    labels[..., -1] = highest
    image = nibabel.Nifti1Image(labels, np.diag([-1.0, -1, 1, 1]))
    image.set_data_dtype(dtype)
    nibabel.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.nii.gz").array_zyx, labels.T)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "values"),
    [
        ([0, 1, 13], 0.99998, 0.0, [0, 1, 13]),
        ([0, 1, 13], 1.00002, 0.0, [0, 1, 13]),
        ([0, 19, 38], 0.052, 0.0, [0, 1, 2]),
        ([-10, 10, 30], -0.1, 1.0, [2, 0, -2]),
        ([-128, 127], 1 / 255, 128 / 255, [0, 1]),
        ([0, 1, 2], 2.0, -1.0, [-1, 1, 3]),
    ],
)
def test_values_within_half_a_step_of_a_whole_number_stand_for_it(tmp_path, stored, slope, intercept, values):
    array = np.resize(np.array(stored, np.int16), (3, 4, 5))
    expected = np.resize(np.array(values), (3, 4, 5)).T
    found = read_label_map(save_scaled(tmp_path / "a.nii.gz", array, slope, intercept)).array_zyx
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept"),
    [([0, 1, 2], 0.1, 0.0), ([0, 1, 2], 1.0, 0.5), ([0, 1, 2], 1.3, 0.0), ([0, 1], 1e-30, 0.0), ([0, 7, 10], 0.1, 0.0)],
)
def test_a_scale_that_leaves_no_whole_numbers_is_named(tmp_path, stored, slope, intercept):
    array = np.resize(np.array(stored, np.int16), (3, 4, 5))
    with pytest.raises(ImageError, match="scl_slope") as caught:
        read_label_map(save_scaled(tmp_path / "a.nii.gz", array, slope, intercept))
    assert "nearest" not in str(caught.value)


@pytest.mark.parametrize(("value", "read"), [(0.99998, 1), (-2.0001, -2), (1e-5, None), (0.988, None)])
def test_floats_that_were_multiplied_are_rounded_and_small_ones_do_not_vanish(tmp_path, value, read):
    array = np.zeros((3, 4, 5), np.float32)
    array[1] = value
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    if read is None:
        with pytest.raises(ImageError, match="nearest neighbor"):
            read_label_map(tmp_path / "a.nii.gz")
    else:
        assert set(np.unique(read_label_map(tmp_path / "a.nii.gz").array_zyx)) == {0, read}
