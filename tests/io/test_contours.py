"""Outlines say the same voxels to whoever fills them, by either rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path

from flaresemi.io.contours import outlines


def even_odd(polygons, shape):
    """Voxels whose centers lie within an odd number of polygons, all lines counted together."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = np.zeros(shape, bool)
    for ring in polygons:
        for (y0, x0), (y1, x1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                inside ^= ((y0 <= y) != (y1 <= y)) & (x0 + (y - y0) / (y1 - y0) * (x1 - x0) < x)
    return inside


def winding(polygons, shape):
    """Voxels that a polygon goes around at all."""
    centers = np.argwhere(np.ones(shape, bool))
    found = [Path(np.vstack([ring, ring[:1]])).contains_points(centers).reshape(shape) for ring in polygons]
    return np.logical_or.reduce([np.zeros(shape, bool), *found])


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_mask(mask):
    polygons = outlines(mask)
    assert np.array_equal(even_odd(polygons, mask.shape), mask)
    assert np.array_equal(winding(polygons, mask.shape), mask)


@pytest.mark.parametrize("seed", range(8))
def test_organs_with_holes_in_holes(seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((14, 16)) < 0.7, np.ones((3, 3))) > 0
    mask[5:30, 5:30] = True
    mask[8:27, 8:27] = False
    mask[10:25, 10:25] = True
    mask[14:18, 14:20] = False
    polygons = outlines(mask)
    assert np.array_equal(even_odd(polygons, mask.shape), mask)
    assert np.array_equal(winding(polygons, mask.shape), mask)


def test_one_voxel_is_a_diamond_around_its_center():
    (ring,) = outlines(np.pad(np.ones((1, 1), bool), 2))
    assert {tuple(corner) for corner in ring.tolist()} == {(1.5, 2.0), (2.5, 2.0), (2.0, 1.5), (2.0, 2.5)}


def test_straight_lines_have_no_points_within():
    (ring,) = outlines(np.pad(np.ones((40, 60), bool), 1))
    assert len(ring) == 8


def test_thousands_of_holes_take_seconds():
    mask = np.ones((200, 200), bool)
    mask[1:-1:4, 1:-1:4] = False
    (ring,) = outlines(mask)
    assert np.array_equal(winding([ring], mask.shape), mask)
