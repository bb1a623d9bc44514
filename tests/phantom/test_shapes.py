import numpy as np
import pytest

from flaresemi.phantom import shapes


def _points(half_mm: float, step_mm: float) -> shapes.Points:
    axis = np.arange(-half_mm, half_mm + step_mm / 2, step_mm, dtype=np.float32)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return x, y, z


def _volume_ml(solid: np.ndarray, step_mm: float) -> float:
    return float((solid < 0).sum() * step_mm**3 / 1000)


def test_an_ellipsoid_has_its_volume_and_distances_along_its_axes():
    points = _points(40, 1.0)
    solid = shapes.ellipsoid(points, (2.0, -3.0, 1.0), (30.0, 20.0, 10.0))
    assert _volume_ml(solid, 1.0) == pytest.approx(4 / 3 * np.pi * 30 * 20 * 10 / 1000, rel=0.01)
    on_x = tuple(np.array([value], np.float32) for value in (37.0, -3.0, 1.0))
    assert shapes.ellipsoid(on_x, (2.0, -3.0, 1.0), (30.0, 20.0, 10.0))[0] == pytest.approx(5.0, rel=1e-4)
    center = tuple(np.array([value], np.float32) for value in (2.0, -3.0, 1.0))
    assert shapes.ellipsoid(center, (2.0, -3.0, 1.0), (30.0, 20.0, 10.0))[0] == pytest.approx(-10.0)


def test_a_straight_tube_is_a_capsule():
    path = np.array([[0.3, 0.4, -20.2, 8], [0.3, 0.4, 5, 8], [0.3, 0.4, 19.8, 8]])
    expected = (np.pi * 8**2 * 40 + 4 / 3 * np.pi * 8**3) / 1000
    assert _volume_ml(shapes.tube(_points(32, 1.0), path), 1.0) == pytest.approx(expected, rel=0.02)


def test_the_distance_to_a_tube_grows_by_a_millimeter_per_millimeter():
    x = np.array([0.0, 5.0, 8.0, 20.0], np.float32)
    path = np.array([[0, 0, -50, 8], [0, 0, 50, 8]])
    assert shapes.tube((x, 0 * x, 0 * x), path) == pytest.approx(x - 8)


def test_rounded_set_operations_stay_close_to_the_sharp_ones():
    points = _points(30, 2.0)
    a, b = (shapes.ellipsoid(points, center, (20.0, 15.0, 15.0)) for center in ((-8.0, 0.0, 0.0), (8.0, 2.0, 0.0)))
    blend = 6.0
    union, common = shapes.union(a, b, blend), shapes.intersection(a, b, blend)
    assert (union <= np.minimum(a, b) + 1e-5).all()
    assert (union >= np.minimum(a, b) - blend / 4 - 1e-5).all()
    assert (common >= np.maximum(a, b) - 1e-5).all()
    assert (common <= np.maximum(a, b) + blend / 4 + 1e-5).all()
    far = np.abs(a - b) > blend
    assert np.array_equal(union[far], np.minimum(a, b)[far])
    assert np.array_equal(shapes.difference(a, b, blend), shapes.intersection(a, -b, blend))


def test_a_rotation_keeps_lengths_and_moved_applies_it():
    matrix = shapes.rotation_matrix((10.0, 20.0, -30.0))
    assert matrix @ matrix.T == pytest.approx(np.eye(3))
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    points = _points(10, 5.0)
    moved = shapes.moved(points, matrix, (1.0, 2.0, 3.0))
    expected = matrix @ np.array([axis.ravel() for axis in points]) + np.array([[1.0], [2.0], [3.0]])
    assert np.array([axis.ravel() for axis in moved]) == pytest.approx(expected, abs=1e-4)


def test_a_curve_goes_through_its_ends_even_where_knots_coincide():
    knots = np.array([[0, 0, 0, 5], [10, 0, 0, 6], [10, 0, 0, 7], [20, 5, 0, 8.0]])
    path = shapes.curve(knots, 15)
    assert path.shape == (15, 4)
    assert path[0] == pytest.approx(knots[0])
    assert path[-1] == pytest.approx(knots[-1])
