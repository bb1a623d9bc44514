"""Segmentations of 3D Slicer: one layer or several, cropped or not, with names that may contradict the dataset's."""

import numpy as np
import pytest

from flaresemi.errors import ImageError
from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import read_grid, read_image, read_label_map, write_label_map
from flaresemi.io.segments import Segment, contradictions
from flaresemi.labels import Label, LabelSet
from tests.made_nrrd import SPACING_XYZ, segment_fields, write_nrrd

LABELS = LabelSet(labels=(Label(name="liver", value=1), Label(name="left kidney", value=2)))

LIVER = np.zeros((4, 5, 6), np.uint8)
LIVER[1:3, 1:3, 1:3] = 1
KIDNEY = np.zeros((4, 5, 6), np.uint8)
KIDNEY[1:3, 3:5, 2:6] = 1


@pytest.mark.parametrize("layers_last", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_layers_that_do_not_overlap_are_one_label_map(tmp_path, layers_last, compressed):
    path = write_nrrd(
        tmp_path / "a.seg.nrrd", [LIVER, 2 * KIDNEY], layers_last=layers_last, compressed=compressed,
        fields=segment_fields(("liver", 1, 0), ("left kidney", 2, 1)), origin_xyz=(7, 8, 9),
    )  # fmt: skip
    found = read_label_map(path)
    np.testing.assert_array_equal(found.array_zyx, LIVER + 2 * KIDNEY)
    assert found.geometry.origin_xyz_mm == (7, 8, 9) and found.geometry.spacing_zyx_mm == SPACING_XYZ[::-1]
    assert found.segments == (Segment(name="liver", value=1, layer=0), Segment(name="left kidney", value=2, layer=1))


@pytest.mark.parametrize("fields", [(), segment_fields(("liver", 1, 0), ("left kidney", 2, 0))])
def test_a_single_layer_is_a_label_map_like_any(tmp_path, fields):
    for name, array in (("flat", LIVER + 2 * KIDNEY), ("layer", [LIVER + 2 * KIDNEY])):
        path = write_nrrd(tmp_path / f"{name}.seg.nrrd", array, fields=fields)
        np.testing.assert_array_equal(read_label_map(path).array_zyx, LIVER + 2 * KIDNEY)


@pytest.mark.parametrize(
    "segments",
    [(("liver", 1, 0), ("left kidney", 1, 1)), (("Liver", None, None), ("Left_Kidney", None, None))],
)
def test_one_value_in_two_layers_is_told_apart_by_names(tmp_path, segments):
    path = write_nrrd(tmp_path / "a.seg.nrrd", [LIVER, KIDNEY], fields=segment_fields(*segments))
    found = read_label_map(path, LABELS)
    np.testing.assert_array_equal(found.array_zyx, LIVER + 2 * KIDNEY)
    assert contradictions(found.segments, LABELS, [0, 1, 2]) == ([], [])
    with pytest.raises(ImageError, match=r"value 1 stands for '.*iver', '.*idney'") as caught:
        read_label_map(path, LabelSet(labels=(Label(name="spleen", value=1),)))
    assert "reference volume" in str(caught.value)


def test_layers_without_names_that_share_a_value_are_refused(tmp_path):
    with pytest.raises(ImageError, match="value 1 stands for value 1 of layer 0, value 1 of layer 1"):
        read_label_map(write_nrrd(tmp_path / "a.nrrd", [LIVER, KIDNEY]), LABELS)


def test_segments_that_overlap_are_refused_with_the_way_out(tmp_path):
    both = KIDNEY.copy()
    both[1, 1, 1] = 1
    path = write_nrrd(tmp_path / "a.seg.nrrd", [LIVER, 2 * both],
                      fields=segment_fields(("liver", 1, 0), ("left kidney", 2, 1)))  # fmt: skip
    with pytest.raises(ImageError, match="1 voxels are in 'left kidney'") as caught:
        read_label_map(path, LABELS)
    assert "reference volume" in str(caught.value)


def test_layers_are_no_image_but_one_is(tmp_path):
    with pytest.raises(ImageError, match="a list of 2"):
        read_image([write_nrrd(tmp_path / "a.nrrd", [LIVER, KIDNEY])])
    np.testing.assert_array_equal(read_image([write_nrrd(tmp_path / "a.nrrd", [LIVER])]).array_czyx[0], LIVER)


def image_grid(shape_zyx=(10, 11, 12), origin=(-30.0, -20.0, 5.0)) -> SourceGrid:
    x, y, z = SPACING_XYZ
    return SourceGrid.of(Geometry(shape_zyx=shape_zyx, spacing_zyx_mm=(z, y, x), origin_xyz_mm=origin))


@pytest.mark.parametrize("start_zyx", [(0, 0, 0), (2, 3, 4), (6, 6, 6)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_a_cropped_segmentation_is_put_where_it_lies(tmp_path, start_zyx, flips):
    """On the image's lattice; the image may be stored in another order."""
    grid = image_grid()
    canonical = grid.canonical
    turned = SourceGrid(geometry=canonical, axes=(0, 1, 2), flips=flips).canonical
    image = SourceGrid.of(turned)
    path = write_nrrd(tmp_path / "a.seg.nrrd", LIVER, fields=segment_fields(("liver", 1, 0)),
                      origin_xyz=canonical.world_xyz_mm(start_zyx))  # fmt: skip
    placed = read_label_map(path).on(image, 0.1)
    expected = np.zeros((10, 11, 12), np.uint8)
    z, y, x = start_zyx
    expected[z : z + 4, y : y + 5, x : x + 6] = LIVER
    np.testing.assert_array_equal(placed.array_zyx, expected)
    assert placed.geometry.far_corner_distance_mm(canonical) < 1e-6


@pytest.mark.parametrize("start_zyx", [(2.4, 3, 4), (7, 3, 4), (-1, 0, 0)])
def test_a_segmentation_off_the_lattice_or_beyond_the_image_is_left_to_be_refused(tmp_path, start_zyx):
    grid = image_grid()
    path = write_nrrd(tmp_path / "a.seg.nrrd", LIVER, fields=segment_fields(("liver", 1, 0)),
                      origin_xyz=grid.canonical.world_xyz_mm(start_zyx))  # fmt: skip
    label = read_label_map(path)
    assert label.on(grid, 0.1) is label


@pytest.mark.parametrize("background", [9, 300, -1])
def test_what_lies_in_no_segment_is_background_whatever_its_value(tmp_path, background):
    """Also where 0 is an organ; and in a type that holds that value."""
    labels = LabelSet(
        labels=(Label(name="brain", value=0), Label(name="liver", value=1), Label(name="left kidney", value=2)),
        background=background,
    )
    grid, box = image_grid(), (slice(2, 6), slice(3, 8), slice(4, 10))
    expected = np.full((10, 11, 12), background)
    expected[box] = np.where(KIDNEY, 2, np.where(LIVER, 1, background))
    names = ("liver", "left kidney")
    for number, (array, values) in enumerate((([LIVER, KIDNEY], (1, 1)), ([LIVER + 2 * KIDNEY], (1, 2)))):
        layers = [0, len(array) - 1]
        path = write_nrrd(tmp_path / f"{number}.seg.nrrd", array, fields=segment_fields(*zip(names, values, layers)),
                          origin_xyz=grid.canonical.world_xyz_mm((2, 3, 4)))  # fmt: skip
        np.testing.assert_array_equal(read_label_map(path, labels).on(grid, 0.1).array_zyx, expected)


def test_a_label_map_that_is_no_segmentation_is_not_filled_up(tmp_path):
    """What lies around it may be anything."""
    grid = image_grid()
    label = read_label_map(write_nrrd(tmp_path / "a.nrrd", LIVER, origin_xyz=grid.canonical.world_xyz_mm((2, 3, 4))))
    assert label.on(grid, 0.1) is label


def test_names_that_contradict_the_datasets():
    names = (("Left_Kidney", 1), ("liver", 2), ("tumor", 2), ("Segment_3", 1), ("liver", 1), ("liver", 7))
    segments = [Segment(name=name, value=value, layer=0) for name, value in names]
    wrong, strange = contradictions(segments, LABELS, [0, 1, 2])
    assert [text.split(",")[0] for text in wrong] == [
        "segment 'Left_Kidney' has value 1",
        "segment 'liver' has value 2",
    ]
    assert "called 'liver'" in wrong[0] and "there it is 2" in wrong[0]
    assert len(strange) == 1 and "'tumor'" in strange[0]


# Units of length, of both text formats


@pytest.mark.parametrize(
    ("unit", "mm"),
    [("mm", 1), ("", 1), ("um", 1e-3), ("µm", 1e-3), ("microns", 1e-3), ("nm", 1e-6), ("cm", 10), ("m", 1000),
     ("Meters", 1000), ("inches", 25.4), ("in", 25.4)],
)  # fmt: skip
def test_nrrd_space_units(tmp_path, unit, mm):
    path = write_nrrd(
        tmp_path / "a.nrrd", LIVER, origin_xyz=(1, 2, -3), fields=[f'space units: "{unit}" "mm" "{unit}"']
    )
    geometry = read_grid(path).geometry
    np.testing.assert_allclose(geometry.spacing_zyx_mm, (3 * mm, 2, 1.5 * mm))
    np.testing.assert_allclose(geometry.origin_xyz_mm, (mm, 2, -3 * mm))
    write_label_map(tmp_path / "b.nrrd", LIVER, read_grid(path))
    assert read_grid(tmp_path / "b.nrrd").geometry.far_corner_distance_mm(geometry) < 1e-6 * mm


def test_nrrd_units_of_spacings(tmp_path):
    lines = ["NRRD0004", "type: uint8", "dimension: 3", "sizes: 6 5 4", "spacings: 500 600 2", 'units: "um" "um" "mm"',
             "encoding: raw", "", ""]  # fmt: skip
    (tmp_path / "a.nrrd").write_bytes("\n".join(lines).encode() + LIVER.tobytes())
    np.testing.assert_allclose(read_grid(tmp_path / "a.nrrd").geometry.spacing_zyx_mm, (2, 0.6, 0.5))


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1), ("um", 1e-3), ("cm", 10), ("?", 1)])
def test_metaimage_distance_units(tmp_path, unit, mm):
    lines = ("ObjectType = Image", "NDims = 3", "BinaryData = True", "Offset = 1 2 3", "ElementSpacing = 1.5 2 3",
             f"DistanceUnits = {unit}", "DimSize = 6 5 4", "ElementType = MET_UCHAR",
             "ElementDataFile = LOCAL\n")  # fmt: skip
    (tmp_path / "a.mha").write_bytes("\n".join(lines).encode() + LIVER.tobytes())
    geometry = read_grid(tmp_path / "a.mha").geometry
    np.testing.assert_allclose(geometry.spacing_zyx_mm, (3 * mm, 2 * mm, 1.5 * mm))
    np.testing.assert_allclose(geometry.origin_xyz_mm, (mm, 2 * mm, 3 * mm))


@pytest.mark.parametrize("unit", ["parsec", "s", "ms", "pixel"])
def test_units_that_are_not_known_are_refused(tmp_path, unit):
    path = write_nrrd(tmp_path / "a.nrrd", LIVER, fields=[f'space units: "{unit}" "{unit}" "{unit}"'])
    with pytest.raises(ImageError, match=f"lengths are in '{unit}'"):
        read_grid(path)
