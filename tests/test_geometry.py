import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaresemi.geometry import BoundingBox, Geometry, StageGrid, resampled_shape, thick_axis

sizes = st.integers(1, 40)
shapes = st.tuples(sizes, sizes, sizes)
spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)


@st.composite
def boxes(draw, shape):
    start = [draw(st.integers(0, size - 1)) for size in shape]
    stop = [draw(st.integers(a + 1, size)) for a, size in zip(start, shape, strict=True)]
    return BoundingBox(start=tuple(start), stop=tuple(stop))


@st.composite
def grids(draw):
    shape = draw(shapes)
    return StageGrid.at_spacing(shape, draw(spacings), draw(boxes(shape)), draw(spacings))


def box(start, stop):
    return BoundingBox(start=start, stop=stop)


@pytest.mark.parametrize(
    "broken",
    [
        {"shape_zyx": (0, 1, 1)},
        {"shape_zyx": (1, 1)},
        {"spacing_zyx_mm": (0.0, 1.0, 1.0)},
        {"spacing_zyx_mm": (-1.0, 1.0, 1.0)},
        {"spacing_zyx_mm": (math.nan, 1.0, 1.0)},
        {"spacing_zyx_mm": (math.inf, 1.0, 1.0)},
        {"origin_xyz_mm": (math.nan, 0.0, 0.0)},
        {"direction": (1.0,) * 8},
        {"direction": (math.nan,) * 9},
    ],
)
def test_impossible_grids_are_refused(broken):
    with pytest.raises(ValueError, match="must be"):
        Geometry(**{"shape_zyx": (2, 2, 2), "spacing_zyx_mm": (1.0, 1.0, 1.0), **broken})


def test_world_positions_follow_origin_direction_and_spacing():
    quarter_turn = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # the x axis of the array points along world y
    grid = Geometry(
        shape_zyx=(5, 4, 3), spacing_zyx_mm=(3.0, 2.0, 1.0), origin_xyz_mm=(10.0, 20.0, 30.0), direction=quarter_turn
    )
    assert grid.world_xyz_mm((0, 0, 0)) == (10.0, 20.0, 30.0)
    assert grid.world_xyz_mm((0, 0, 1)) == (10.0, 21.0, 30.0)
    assert grid.world_xyz_mm((0, 1, 0)) == (8.0, 20.0, 30.0)
    assert grid.world_xyz_mm((1, 0, 0)) == (10.0, 20.0, 33.0)
    assert grid.extent_zyx_mm == (15.0, 8.0, 3.0)


def test_the_far_corner_sees_spacing_origin_flip_and_shape():
    one = Geometry(shape_zyx=(11, 11, 11), spacing_zyx_mm=(1.0, 1.0, 1.0))
    wider = Geometry(shape_zyx=(11, 11, 11), spacing_zyx_mm=(1.0, 1.0, 1.5))
    moved = Geometry(shape_zyx=(11, 11, 11), spacing_zyx_mm=(1.0, 1.0, 1.0), origin_xyz_mm=(3.0, 4.0, 0.0))
    flipped = Geometry(
        shape_zyx=(11, 11, 11), spacing_zyx_mm=(1.0, 1.0, 1.0), direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
    )
    other = Geometry(shape_zyx=(11, 11, 12), spacing_zyx_mm=(1.0, 1.0, 1.0))
    assert one.far_corner_distance_mm(one) == 0
    assert one.far_corner_distance_mm(wider) == pytest.approx(5.0)
    assert one.far_corner_distance_mm(moved) == pytest.approx(5.0)
    assert one.far_corner_distance_mm(flipped) == pytest.approx(20.0)
    assert one.far_corner_distance_mm(other) == math.inf


def test_an_empty_box_does_not_exist():
    with pytest.raises(ValueError, match="must hold a voxel"):
        box((1, 1, 1), (1, 2, 2))
    assert BoundingBox.of_mask(np.zeros((3, 4, 5), bool)) is None
    assert box((0, 0, 0), (2, 2, 2)).intersection(box((2, 0, 0), (3, 2, 2))) is None
    assert box((5, 5, 5), (9, 9, 9)).clipped((5, 9, 9)) is None


@given(st.data(), shapes)
def test_the_box_of_a_mask_is_the_smallest_that_holds_it(data, shape):
    wanted = data.draw(boxes(shape))
    mask = np.zeros(shape, bool)
    mask[wanted.start] = True
    mask[tuple(stop - 1 for stop in wanted.stop)] = True
    assert BoundingBox.of_mask(mask) == wanted


@given(st.data(), shapes)
def test_intersection_and_union_are_those_of_the_voxels(data, shape):
    one, other = data.draw(boxes(shape)), data.draw(boxes(shape))
    masks = []
    for each in (one, other):
        mask = np.zeros(shape, bool)
        mask[each.slices] = True
        masks.append(mask)
    assert one.intersection(other) == BoundingBox.of_mask(masks[0] & masks[1])
    assert one.union(other) == BoundingBox.of_mask(masks[0] | masks[1])
    assert one.contains(other) == bool((masks[0] | ~masks[1]).all())


def test_a_margin_is_in_millimetres_rounded_up_and_clipped():
    grown = box((5, 5, 5), (6, 6, 6)).grown(3.0, (1.0, 2.0, 10.0), (7, 20, 20))
    assert grown == box((2, 3, 4), (7, 8, 7))
    assert box((5, 5, 5), (6, 6, 6)).grown(0.0, (1.0, 1.0, 1.0), (9, 9, 9)) == box((5, 5, 5), (6, 6, 6))


def test_a_margin_about_nothing_is_a_broken_contract():
    with pytest.raises(ValueError, match="outside"):
        box((8, 8, 8), (9, 9, 9)).grown(0.0, (1.0, 1.0, 1.0), (4, 4, 4))


@given(shapes, spacings, spacings)
def test_resampling_keeps_the_extent_to_half_a_voxel(shape, spacing, target):
    for size, old, resampled, new in zip(shape, spacing, resampled_shape(shape, spacing, target), target, strict=True):
        assert resampled >= 1
        assert abs(resampled * new - size * old) <= 0.5 * new + 1e-9 or resampled == 1


@given(st.data(), shapes, shapes)
def test_a_rescaled_box_covers_the_same_extent(data, shape, other):
    before = data.draw(boxes(shape))
    after = before.rescaled(shape, other)
    assert BoundingBox.whole(other).contains(after)
    for a, b, c, d, n, m in zip(before.start, before.stop, after.start, after.stop, shape, other, strict=True):
        assert c / m <= a / n + 1e-5
        assert d / m >= b / n - 1e-5
        assert c + 1 > a * m / n - 1e-5 or c == m - 1  # and is the smallest that does
        assert d - 1 < b * m / n + 1e-5 or d == c + 1


@given(st.data(), shapes)
def test_rescaling_to_the_same_shape_changes_nothing(data, shape):
    one = data.draw(boxes(shape))
    assert one.rescaled(shape, shape) == one


@given(st.data(), grids())
def test_a_box_goes_to_the_stage_and_back_without_losing_a_voxel(data, grid):
    wanted = data.draw(boxes(grid.canonical_shape_zyx))
    inside = wanted.intersection(grid.body_box)
    there = grid.to_stage(wanted)
    if inside is None:
        assert there is None
        return
    assert BoundingBox.whole(grid.shape_zyx).contains(there)
    back = grid.to_canonical(there)
    assert back.contains(inside)
    assert grid.body_box.contains(back)


@given(grids())
def test_the_whole_stage_is_the_whole_body(grid):
    assert grid.to_stage(grid.body_box) == BoundingBox.whole(grid.shape_zyx)
    assert grid.to_canonical(BoundingBox.whole(grid.shape_zyx)) == grid.body_box


@given(grids())
def test_a_stage_has_the_extent_of_its_body(grid):
    for size, spacing, body, canonical in zip(
        grid.shape_zyx, grid.spacing_zyx_mm, grid.body_box.shape_zyx, grid.canonical_spacing_zyx_mm, strict=True
    ):
        assert size * spacing == pytest.approx(body * canonical)


def test_a_stage_grid_that_cannot_be_is_refused():
    whole = {"canonical_shape_zyx": (4, 4, 4), "canonical_spacing_zyx_mm": (1.0, 1.0, 1.0)}
    with pytest.raises(ValueError, match="does not lie in"):
        StageGrid(**whole, body_box=box((0, 0, 0), (4, 4, 5)), shape_zyx=(4, 4, 4))
    with pytest.raises(ValueError, match="positive"):
        StageGrid(**whole, body_box=box((0, 0, 0), (4, 4, 4)), shape_zyx=(4, 0, 4))


def test_all_corners_are_looked_at():
    # A rotation about the middle keeps some corners close to where they were: the largest distance counts.
    angle = math.radians(10)
    turned = (math.cos(angle), -math.sin(angle), 0.0, math.sin(angle), math.cos(angle), 0.0, 0.0, 0.0, 1.0)
    one = Geometry(shape_zyx=(2, 101, 101), spacing_zyx_mm=(1.0, 1.0, 1.0))
    other = Geometry(shape_zyx=(2, 101, 101), spacing_zyx_mm=(1.0, 1.0, 1.0), direction=turned)
    corners = itertools.product((0, 1), (0, 100), (0, 100))
    expected = max(math.dist(one.world_xyz_mm(corner), other.world_xyz_mm(corner)) for corner in corners)
    assert one.far_corner_distance_mm(other) == expected
    assert expected == pytest.approx(2 * math.sin(angle / 2) * 100 * math.sqrt(2))


@pytest.mark.parametrize(
    ("spacing_zyx_mm", "axis"),
    [
        ((8.0, 1.5, 1.5), 0),
        ((0.7, 4.0, 0.7), 1),
        ((0.7, 0.7, 4.0), 2),
        ((5.0, 1.0, 5.0), 0),
        ((4.0, 1.0, 5.0), 2),
        ((3.0, 1.0, 1.0), None),
        ((1.0, 1.0, 1.0), None),
    ],
)
def test_thick_slices_are_recognized_along_any_axis(spacing_zyx_mm, axis):
    assert thick_axis(spacing_zyx_mm) == axis
