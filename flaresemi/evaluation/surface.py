"""Distances between the surfaces of two masks, computed once; surface Dice and Hausdorff distances follow from them.

The surface of a mask is the set of its surface elements: the corners where eight voxels meet of which some, but not
all, belong to the mask. An element has the area, in mm², of the marching-cubes surface that separates the eight, and
a distance to the nearest element of the other mask.

Source: Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy for
radiotherapy", arXiv 1809.04430, and its reference program `surface-distance`. Release 0.1 of that program on PyPI
uses names that NumPy 2 has removed, so the definition is implemented here; a test compares the two number by number.
"""

import dataclasses
import functools
import math

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import marching_cubes, mesh_surface_area

from flaresemi.geometry import BoundingBox, FloatTriple

#: A distance this close above the tolerance counts as within. 5 mm can come out as 5.000000000000001, and spacings come
#: from float32 headers.
_ROUNDING_MM = 1e-6

#: Voxels of the box per surface element from which on a tree search beats a distance transform even at its worst
#: (measured: 0.1 µs per voxel of a feature transform, 2 µs per query between near surfaces, 20 µs between far ones).
_SPARSE = 200


#: Voxels of the box per voxel of a mask from which on its surface is found from these alone: an organ with a stray
#: voxel across the body has a box that is nearly all empty. Measured: 0.15 µs per voxel of the mask, 20 ns per one of
#: the box.
_EMPTY = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceDistances:
    """Every surface element of two masks: how far it is from the other surface, and how large.

    Attributes:
        prediction_mm: From each element of the prediction to the nearest element of the reference.
        prediction_mm2: Areas of the prediction's elements.
        reference_mm: From each element of the reference to the nearest element of the prediction.
        reference_mm2: Areas of the reference's elements.
    """

    prediction_mm: np.ndarray
    prediction_mm2: np.ndarray
    reference_mm: np.ndarray
    reference_mm2: np.ndarray

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces' area that lies within the tolerance of the other surface (NSD), 0 to 1."""
        within = 0.0
        for distances, areas in self._both():
            within += float(areas[distances <= tolerance_mm + _ROUNDING_MM].sum())
        return within / float(self.prediction_mm2.sum() + self.reference_mm2.sum())

    def hausdorff_mm(self, percent: float = 95.0) -> float:
        """The distance within which `percent` of either surface's area lies; the larger of the two directions."""
        return max(_percentile(distances, areas, percent) for distances, areas in self._both())

    def _both(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return (self.prediction_mm, self.prediction_mm2), (self.reference_mm, self.reference_mm2)


def surface_distances(
    prediction_mask: np.ndarray, reference_mask: np.ndarray, spacing_zyx_mm: FloatTriple
) -> SurfaceDistances:
    """Measures two masks of one grid. What lies outside the arrays counts as outside the masks.

    Only the box about both masks is looked at, so whole volumes may be given.

    Args:
        prediction_mask: Boolean, (Z, Y, X).
        reference_mask: Boolean, of the same shape.
        spacing_zyx_mm: Distance between voxel centers.

    Raises:
        ValueError: the shapes differ, or a mask is empty (it has no surface to measure to).
    """
    if prediction_mask.shape != reference_mask.shape:
        raise ValueError(f"masks of one shape expected, found {prediction_mask.shape} and {reference_mask.shape}")
    boxes = BoundingBox.of_mask(prediction_mask), BoundingBox.of_mask(reference_mask)
    if boxes[0] is None or boxes[1] is None:
        raise ValueError("an empty mask has no surface")
    box = boxes[0].union(boxes[1])
    areas = _element_areas(tuple(spacing_zyx_mm))
    prediction, prediction_mm2 = _surface(prediction_mask[box.slices], areas)
    reference, reference_mm2 = _surface(reference_mask[box.slices], areas)
    z, y, x = box.shape_zyx
    corners = (z + 1, y + 1, x + 1)
    return SurfaceDistances(
        prediction_mm=_distances(prediction, reference, corners, spacing_zyx_mm),
        prediction_mm2=prediction_mm2,
        reference_mm=_distances(reference, prediction, corners, spacing_zyx_mm),
        reference_mm2=reference_mm2,
    )


def _surface(mask: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface elements, (n, 3) indices among the corners of the voxels, and their areas, mm²."""
    voxels = np.flatnonzero(mask)
    if _EMPTY * voxels.size < mask.size:
        return _surface_of_voxels(voxels, mask.shape, areas)
    padded = np.pad(mask, 1).view(np.uint8)
    depth, height, width = (size - 1 for size in padded.shape)
    codes = np.zeros((depth, height, width), np.uint8)
    for bit, (z, y, x) in enumerate(np.ndindex(2, 2, 2)):
        codes |= padded[z : z + depth, y : y + height, x : x + width] << bit
    elements = (codes != 0) & (codes != 255)
    return np.argwhere(elements), areas[codes[elements]]


def _surface_of_voxels(
    voxels: np.ndarray, shape_zyx: tuple[int, ...], areas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same from the voxels of a mask (flat indices): each is one of the eight about its own eight corners."""
    corners = tuple(size + 1 for size in shape_zyx)
    first = np.ravel_multi_index(np.unravel_index(voxels, shape_zyx), corners)  # of the eight corners of each
    codes = np.zeros(math.prod(corners), np.uint8)
    for bit, offset in enumerate(np.ndindex(2, 2, 2)):  # seen from its last corner a voxel is the first of eight
        codes[first + np.ravel_multi_index([1 - step for step in offset], corners)] |= np.uint8(1 << bit)
    elements = np.flatnonzero((codes != 0) & (codes != 255))
    return np.stack(np.unravel_index(elements, corners), axis=1), areas[codes[elements]]


def _distances(of: np.ndarray, to: np.ndarray, corners_zyx: tuple[int, ...], spacing_zyx_mm: FloatTriple) -> np.ndarray:
    """From each element of `of` to the nearest of `to`, mm; both (n, 3) indices among so many corners."""
    if _SPARSE * max(len(of), len(to)) < math.prod(corners_zyx):
        # Unbalanced trees answer the queries of far surfaces ten times faster than balanced ones.
        tree = KDTree(to * spacing_zyx_mm, balanced_tree=False, compact_nodes=False)
        return tree.query(of * spacing_zyx_mm)[0]
    # Only the nearest element is asked for, not the distance: the latter would be computed in every voxel of the box.
    outside = np.ones(corners_zyx, bool)
    outside[tuple(to.T)] = False
    nearest = ndimage.distance_transform_edt(
        outside, sampling=spacing_zyx_mm, return_distances=False, return_indices=True
    )
    queries = tuple(of.T)
    steps = [(near[queries] - here) * step for near, here, step in zip(nearest, queries, spacing_zyx_mm, strict=True)]
    return np.sqrt(np.sum(np.square(steps), axis=0))


def _percentile(distances: np.ndarray, areas: np.ndarray, percent: float) -> float:
    order = np.argsort(distances)
    covered = np.cumsum(areas[order])
    at = int(np.searchsorted(covered / covered[-1], percent / 100.0))
    return float(distances[order[min(at, len(order) - 1)]])


@functools.lru_cache(maxsize=64)
def _element_areas(spacing_zyx_mm: FloatTriple) -> np.ndarray:
    """Marching-cubes area, mm², for each of the 256 ways in which eight voxels can be in or out of a mask.

    A way and its complement share a surface: the one with fewer voxels is meshed, so that both sides of a surface
    give the same area and voxels that touch in an edge or a corner only are kept apart.
    """
    areas = np.zeros(256)
    for code in range(1, 255):
        cube = np.array([code >> bit & 1 for bit in range(8)], np.float32).reshape(2, 2, 2)
        if cube.sum() > 4:
            cube = 1 - cube
        vertices, faces, _, _ = marching_cubes(cube, 0.5, method="lorensen")
        areas[code] = mesh_surface_area(vertices * np.asarray(spacing_zyx_mm), faces)
    return areas
