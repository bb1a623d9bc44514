"""Smooth solids as functions of position: negative inside, zero on the surface, about millimeters near it.

Positions are three float32 arrays (x, y, z) in mm of one shape; every function returns an array of that shape.
"""

import itertools

import numpy as np
from scipy.interpolate import CubicSpline

Points = tuple[np.ndarray, np.ndarray, np.ndarray]
Vector = tuple[float, float, float]


def rotation_matrix(degrees_xyz: Vector) -> np.ndarray:
    """Rotation about x, then y, then z, as a 3×3 matrix in (x, y, z) order."""
    a, b, c = np.deg2rad(degrees_xyz)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def moved(points: Points, matrix: np.ndarray, offset: Vector | np.ndarray = (0.0, 0.0, 0.0)) -> Points:
    """`matrix @ point + offset` for every point."""
    x, y, z = points
    m = np.asarray(matrix, np.float32)
    o = np.asarray(offset, np.float32)
    return (
        m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + o[0],
        m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + o[1],
        m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + o[2],
    )


def ellipsoid(points: Points, center: Vector, radii: Vector) -> np.ndarray:
    """An ellipsoid along the axes; the distance is exact to first order at the surface."""
    x, y, z = (axis - np.float32(c) for axis, c in zip(points, center, strict=True))
    a, b, c = (np.float32(radius) for radius in radii)
    scaled = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2)
    # At the very center 0/0 stands for the depth of the center, which the smallest radius bounds.
    return scaled * (scaled - 1) / np.maximum(slope, 1e-6) - (slope < 1e-6) * min(radii)


def cylinder(points: Points, center_xy: tuple[float, float], radii_xy: tuple[float, float]) -> np.ndarray:
    """An elliptic cylinder along z, without ends."""
    x, y = points[0] - np.float32(center_xy[0]), points[1] - np.float32(center_xy[1])
    a, b = (np.float32(radius) for radius in radii_xy)
    scaled = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2)
    return scaled * (scaled - 1) / np.maximum(slope, 1e-6) - (slope < 1e-6) * min(radii_xy)


def tube(points: Points, path: np.ndarray, squash: Vector = (1.0, 1.0, 1.0)) -> np.ndarray:
    """A tube of varying radius along a polyline, with round ends.

    Args:
        path: (N, 4) array of x, y, z and radius, mm.
        squash: Factors by which the cross section is narrowed along x, y and z.
    """
    x, y, z = (axis * np.float32(factor) for axis, factor in zip(points, squash, strict=True))
    knots = np.asarray(path, np.float32) * np.array([*squash, 1], np.float32)
    nearest = np.full(np.broadcast(x, y, z).shape, np.inf, np.float32)
    for start, stop in itertools.pairwise(knots):
        along = stop[:3] - start[:3]
        length2 = max(float(along @ along), 1e-6)
        px, py, pz = x - start[0], y - start[1], z - start[2]
        t = np.clip((px * along[0] + py * along[1] + pz * along[2]) / np.float32(length2), 0, 1)
        px -= t * along[0]
        py -= t * along[1]
        pz -= t * along[2]
        distance = np.sqrt(px * px + py * py + pz * pz)
        distance -= start[3] + t * (stop[3] - start[3])
        np.minimum(nearest, distance, out=nearest)
    return nearest


def sheet(points: Points, start_xy: tuple[float, float], stop_xy: tuple[float, float]) -> np.ndarray:
    """Distance to a flat sheet that stands along z over the segment from `start_xy` to `stop_xy`; never negative."""
    x, y = points[0] - np.float32(start_xy[0]), points[1] - np.float32(start_xy[1])
    dx, dy = np.float32(stop_xy[0] - start_xy[0]), np.float32(stop_xy[1] - start_xy[1])
    t = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - t * dx, y - t * dy)


def curve(knots: np.ndarray, count: int) -> np.ndarray:
    """A smooth curve through (N, K) knots, sampled at `count` parameters spread by the knots' distances in space."""
    knots = np.asarray(knots, float)
    steps = np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1)
    reached = np.concatenate([[0], np.cumsum(np.maximum(steps, 1e-3))])
    return CubicSpline(reached, knots)(np.linspace(0, reached[-1], count))


def union(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Union of two solids with a rounded seam of about `blend_mm`."""
    h = np.maximum(np.float32(blend_mm) - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h / np.float32(4 * blend_mm)


def intersection(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Common part of two solids with a rounded edge of about `blend_mm`."""
    h = np.maximum(np.float32(blend_mm) - np.abs(a - b), 0)
    return np.maximum(a, b) + h * h / np.float32(4 * blend_mm)


def difference(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """The difference of `a` and `b`, with a rounded edge of about `blend_mm`."""
    return intersection(a, -b, blend_mm)
