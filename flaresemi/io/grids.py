"""The grid of a file, how the canonical array lies in it, and when two files lie on each other."""

import dataclasses
import itertools

import numpy as np

from flaresemi.geometry import BoundingBox, Geometry, IntTriple
from flaresemi.io.nifti import NiftiForms
from flaresemi.ranges import Axis


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceGrid:
    """A file's own grid, and how the canonical array lies in it. Undoes the reordering on writing.

    Attributes:
        geometry: As in the file.
        axes: Canonical axis i (Z, Y, X) is axis axes[i] of the file's (Z, Y, X) array.
        flips: Whether canonical axis i runs backwards in the file.
        second: Where other programs may take the voxels to lie, where that is another place (NIfTI's other form).
        forms: What a NIfTI header says of the grid, so that label maps can say it in the same words.
        cropped: Whether what lies around the grid is known to be background (3D Slicer crops its segmentations).
    """

    geometry: Geometry
    axes: tuple[Axis, Axis, Axis]
    flips: tuple[bool, bool, bool]
    second: Geometry | None = None
    forms: NiftiForms | None = None
    cropped: bool = False

    @staticmethod
    def of(
        geometry: Geometry, *, second: Geometry | None = None, forms: NiftiForms | None = None, cropped: bool = False
    ) -> "SourceGrid":
        """The grid of a file, with the order that brings its voxels closest to ITK's identity."""
        axes, flips = _closest_axes(geometry.direction)
        return SourceGrid(geometry=geometry, axes=axes, flips=flips, second=second, forms=forms, cropped=cropped)

    @property
    def canonical(self) -> Geometry:
        """The grid of the canonical array: the same voxels, in the same places."""
        file = self.geometry
        columns = np.reshape(file.direction, (3, 3))
        order = [2 - axis for axis in self.axes[::-1]]  # in ITK's (x, y, z) counting
        signs = np.array([-1.0 if flip else 1.0 for flip in self.flips[::-1]])
        first = [0.0, 0.0, 0.0]
        for axis, flip in zip(self.axes, self.flips, strict=True):
            first[axis] = file.shape_zyx[axis] - 1.0 if flip else 0.0
        return Geometry(
            shape_zyx=tuple(file.shape_zyx[axis] for axis in self.axes),  # type: ignore[arg-type]
            spacing_zyx_mm=tuple(file.spacing_zyx_mm[axis] for axis in self.axes),  # type: ignore[arg-type]
            origin_xyz_mm=file.world_xyz_mm((first[0], first[1], first[2])),
            direction=tuple(float(value) + 0.0 for value in (columns[:, order] * signs).ravel()),
        )

    def to_canonical(self, array_zyx: np.ndarray) -> np.ndarray:
        """A view of a file's array in canonical order."""
        steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return array_zyx.transpose(self.axes)[steps]

    def to_file(self, array_zyx: np.ndarray) -> np.ndarray:
        """A view of a canonical array in the file's order."""
        steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return array_zyx[steps].transpose(np.argsort(self.axes))

    def matches_as_stored(self, other: "SourceGrid", tolerance_voxels: float) -> bool:
        """Whether two files belong together voxel by voxel, in their own order, though they count as lying elsewhere.

        So it is where the two positions that a NIfTI header can tell differ and another program, having read one file,
        told only the one that does not count in the other.
        """
        limit = tolerance_voxels * min(other.geometry.spacing_zyx_mm)
        first, *others = (
            ours.far_corner_distance_mm(theirs) <= limit
            for ours, theirs in itertools.product((self.geometry, self.second), (other.geometry, other.second))
            if ours is not None and theirs is not None
        )
        return not first and any(others)

    def lies_twice(self, other: "SourceGrid", tolerance_voxels: float) -> bool:
        """Whether two files belong together where their voxels count, in another order, and also as they are stored.

        So it is where a program reordered the voxels, said so in the form that counts, and left the other as it was; or
        where the header of the other file was changed. Nothing says which of the two orders is right.
        """
        limit = tolerance_voxels * min(other.canonical.spacing_zyx_mm)
        if self.second is None or not self.matches_as_stored(other, tolerance_voxels):
            return False
        theirs = [grid for grid in (other.geometry, other.second) if grid is not None]
        by_second = any(self.second.far_corner_distance_mm(grid) <= limit for grid in theirs)
        return by_second and self.canonical.far_corner_distance_mm(other.canonical) <= limit

    def box_within(self, other: "SourceGrid", tolerance_voxels: float) -> BoundingBox | None:
        """Which canonical voxels of another grid this one, being cropped, consists of; None: it does not."""
        ours, theirs = self.canonical, other.canonical
        if not self.cropped or ours.shape_zyx == theirs.shape_zyx:
            return None
        matrix = np.reshape(theirs.direction, (3, 3)) * theirs.spacing_zyx_mm[::-1]
        offset = np.array(ours.origin_xyz_mm) - theirs.origin_xyz_mm
        z, y, x = (round(float(index)) for index in np.linalg.solve(matrix, offset)[::-1])
        box = BoundingBox.whole(ours.shape_zyx).shifted((z, y, x))
        if not BoundingBox.whole(theirs.shape_zyx).contains(box):
            return None
        part = dataclasses.replace(theirs, shape_zyx=ours.shape_zyx, origin_xyz_mm=theirs.world_xyz_mm(box.start))
        limit = tolerance_voxels * min(theirs.spacing_zyx_mm)
        return box if part.far_corner_distance_mm(ours) <= limit else None


def _closest_axes(direction: tuple[float, ...]) -> tuple[IntTriple, tuple[bool, bool, bool]]:
    """The permutation and flips that bring a direction closest to the identity.

    At a tie (an image turned by exactly 45 degrees) the candidate whose canonical direction is the largest by its
    digits wins, so that the choice depends on where the voxels lie, not on how the file orders them.
    """
    columns = np.reshape(direction, (3, 3))
    candidates = [(order, signs) for order in itertools.permutations(range(3)) for signs in _SIGNS]
    traces = [sum(signs[i] * columns[i, order[i]] for i in range(3)) for order, signs in candidates]
    closest = [pair for pair, trace in zip(candidates, traces, strict=True) if trace > max(traces) - 1e-6]
    order, signs = max(closest, key=lambda pair: tuple(np.round(columns[:, pair[0]] * pair[1], 6).ravel() + 0.0))
    z, y, x = (2 - axis for axis in order[::-1])
    return (z, y, x), (signs[2] < 0, signs[1] < 0, signs[0] < 0)


_SIGNS = tuple(itertools.product((1.0, -1.0), repeat=3))
