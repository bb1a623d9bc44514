"""Grids in space: shapes and spacings in (Z, Y, X) order, millimetres, and half-open boxes of voxels."""

import dataclasses
import math
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from flaresemi.ranges import DirectionCosine, PositionMm, SizeTriple, SpacingTriple, VoxelTriple

IntTriple = tuple[int, int, int]
FloatTriple = tuple[float, float, float]
Sides = TypeVar("Sides", IntTriple, FloatTriple)

#: Slices are thick where they are more than this many times as thick as their pixels. Source: nnU-Net.
THICK_SLICES = 3.0


def thick_axis(spacing_zyx_mm: FloatTriple) -> int | None:
    """The axis across slices that are much thicker than their pixels; None where there are none.

    0 for axial slices, 1 for coronal, 2 for sagittal ones; of two axes as thick, the first.
    """
    thickest = max(range(3), key=lambda axis: spacing_zyx_mm[axis])
    return thickest if spacing_zyx_mm[thickest] > THICK_SLICES * min(spacing_zyx_mm) else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the voxels of an image lie in the patient.

    Attributes:
        shape_zyx: Voxels per axis.
        spacing_zyx_mm: Distance between voxel centers per axis, mm.
        origin_xyz_mm: Center of voxel (0, 0, 0) in ITK's LPS world, (x, y, z) mm.
        direction: ITK's 3×3 direction matrix, row-major, in (x, y, z) order; its columns are unit vectors.
    """

    shape_zyx: SizeTriple
    spacing_zyx_mm: SpacingTriple
    origin_xyz_mm: tuple[PositionMm, PositionMm, PositionMm] = (0.0, 0.0, 0.0)
    direction: tuple[DirectionCosine, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.shape_zyx) != 3 or any(size < 1 for size in self.shape_zyx):
            raise ValueError(f"shape must be three positive numbers, found {self.shape_zyx}")
        if len(self.spacing_zyx_mm) != 3 or not all(0 < spacing < math.inf for spacing in self.spacing_zyx_mm):
            raise ValueError(f"spacing must be three positive numbers, found {self.spacing_zyx_mm}")
        if len(self.origin_xyz_mm) != 3 or not all(map(math.isfinite, self.origin_xyz_mm)):
            raise ValueError(f"origin must be three finite numbers, found {self.origin_xyz_mm}")
        if len(self.direction) != 9 or not all(map(math.isfinite, self.direction)):
            raise ValueError(f"direction must be nine finite numbers, found {self.direction}")

    @property
    def extent_zyx_mm(self) -> FloatTriple:
        """Size of the volume from outer edge to outer edge, mm."""
        z, y, x = (size * spacing for size, spacing in zip(self.shape_zyx, self.spacing_zyx_mm, strict=True))
        return z, y, x

    def world_xyz_mm(self, index_zyx: tuple[float, float, float]) -> FloatTriple:
        """LPS world position of a (fractional) voxel index."""
        matrix = np.reshape(self.direction, (3, 3))
        step = np.array(index_zyx[::-1], float) * np.array(self.spacing_zyx_mm[::-1], float)
        x, y, z = matrix @ step + np.array(self.origin_xyz_mm, float)
        return float(x), float(y), float(z)

    def far_corner_distance_mm(self, other: "Geometry") -> float:
        """Largest distance between matching corner voxels of two grids; infinite when the shapes differ.

        One number that catches a wrong spacing, origin, flip or rotation, in units a person can judge.
        """
        if self.shape_zyx != other.shape_zyx:
            return math.inf
        corners = [
            tuple(bit * (size - 1) for bit, size in zip(bits, self.shape_zyx, strict=True))
            for bits in np.ndindex(2, 2, 2)
        ]
        return max(math.dist(self.world_xyz_mm(corner), other.world_xyz_mm(corner)) for corner in corners)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BoundingBox:
    """A half-open box of voxels, `start <= index < stop`, in (Z, Y, X) order. Never empty: no box is None.

    `acvl_utils` has boxes, too: as lists of lists, by an import of torch, and that of an empty mask is the whole array.
    """

    start: VoxelTriple
    stop: VoxelTriple

    def __post_init__(self) -> None:
        if len(self.start) != 3 or len(self.stop) != 3:
            raise ValueError("a box has three axes")
        if any(stop <= start for start, stop in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"a box must hold a voxel, found start {self.start}, stop {self.stop}")

    @staticmethod
    def whole(shape_zyx: IntTriple) -> "BoundingBox":
        """The box of a whole volume."""
        return BoundingBox(start=(0, 0, 0), stop=shape_zyx)

    @staticmethod
    def of_slices(sides: Iterable[slice]) -> "BoundingBox":
        """The box with these three sides, (Z, Y, X)."""
        z, y, x = sides
        return BoundingBox(start=(z.start, y.start, x.start), stop=(z.stop, y.stop, x.stop))

    @staticmethod
    def of_mask(mask_zyx: np.ndarray) -> "BoundingBox | None":
        """The smallest box around the true voxels; None when there are none."""
        sides = []
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            hits = np.flatnonzero(mask_zyx.any(axis=others))
            if hits.size == 0:
                return None
            sides.append(slice(int(hits[0]), int(hits[-1]) + 1))
        return BoundingBox.of_slices(sides)

    @property
    def shape_zyx(self) -> IntTriple:
        z, y, x = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        z, y, x = (slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x

    def contains(self, other: "BoundingBox") -> bool:
        return all(a <= b for a, b in zip(self.start, other.start, strict=True)) and all(
            a >= b for a, b in zip(self.stop, other.stop, strict=True)
        )

    def clipped(self, shape_zyx: IntTriple) -> "BoundingBox | None":
        """The part inside a volume of this shape; None when there is none."""
        return self.intersection(BoundingBox.whole(shape_zyx))

    def intersection(self, other: "BoundingBox") -> "BoundingBox | None":
        sides = [
            slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(self.slices, other.slices, strict=True)
        ]
        return None if any(side.stop <= side.start for side in sides) else BoundingBox.of_slices(sides)

    def union(self, other: "BoundingBox") -> "BoundingBox":
        return BoundingBox.of_slices(
            slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(self.slices, other.slices, strict=True)
        )

    def shifted(self, offset_zyx: IntTriple) -> "BoundingBox":
        return BoundingBox.of_slices(
            slice(side.start + offset, side.stop + offset) for side, offset in zip(self.slices, offset_zyx, strict=True)
        )

    def grown(self, margin_mm: float, spacing_zyx_mm: FloatTriple, shape_zyx: IntTriple) -> "BoundingBox":
        """This box with a margin on every face, rounded up to whole voxels and clipped to the volume."""
        margins = [math.ceil(margin_mm / spacing - 1e-6) for spacing in spacing_zyx_mm]
        grown = BoundingBox.of_slices(
            slice(side.start - margin, side.stop + margin) for side, margin in zip(self.slices, margins, strict=True)
        ).clipped(shape_zyx)
        if grown is None:
            raise ValueError(f"box {self} lies outside a volume of shape {shape_zyx}")
        return grown

    def turned(self, quarters: int, shape_zyx: IntTriple) -> "BoundingBox":
        """Where the voxels of this box are once a volume of this shape is turned in its plane, as by `turned_array`."""
        if quarters % 4 == 0:
            return self
        (z, y, x), (_, _, size) = self.slices, shape_zyx
        once = BoundingBox.of_slices((z, slice(size - x.stop, size - x.start), y))
        return once.turned(quarters % 4 - 1, turned_sides(shape_zyx, 1))

    def rescaled(self, from_shape: IntTriple, to_shape: IntTriple) -> "BoundingBox":
        """The smallest box on another sampling of the same extent (edges aligned) that covers this one."""
        sides = []
        for a, b, n, m in zip(self.start, self.stop, from_shape, to_shape, strict=True):
            low = min(max(math.floor(a * m / n + 1e-6), 0), m - 1)
            sides.append(slice(low, max(min(math.ceil(b * m / n - 1e-6), m), low + 1)))
        return BoundingBox.of_slices(sides)


def turned_array(array: np.ndarray, quarters: int) -> np.ndarray:
    """A view of a volume (..., Z, Y, X) turned by quarters in the plane of its slices; once: X first becomes Y last."""
    return np.rot90(array, quarters, axes=(-2, -1))


def turned_sides(sides_zyx: Sides, quarters: int) -> Sides:
    """Shape or spacing of a volume after `turned_array`."""
    z, y, x = sides_zyx
    return (z, x, y) if quarters % 2 else (z, y, x)


def resampled_shape(shape_zyx: IntTriple, spacing_zyx_mm: FloatTriple, target_zyx_mm: FloatTriple) -> IntTriple:
    """Shape of a volume at another spacing: same extent from edge to edge, rounded to whole voxels, at least one."""
    z, y, x = (
        max(1, round(size * spacing / target))
        for size, spacing, target in zip(shape_zyx, spacing_zyx_mm, target_zyx_mm, strict=True)
    )
    return z, y, x


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageGrid:
    """How a stage's voxels lie in the canonical image: crop to the body box, then resample with edges aligned.

    It is the record that undoes preprocessing, and the only thing that maps boxes between the two spaces.

    Attributes:
        canonical_shape_zyx: Shape of the canonical image.
        canonical_spacing_zyx_mm: Its spacing.
        body_box: The crop, in canonical voxels.
        shape_zyx: Shape of the body box after resampling to the stage's spacing.
    """

    canonical_shape_zyx: SizeTriple
    canonical_spacing_zyx_mm: SpacingTriple
    body_box: BoundingBox
    shape_zyx: SizeTriple

    def __post_init__(self) -> None:
        if not BoundingBox.whole(self.canonical_shape_zyx).contains(self.body_box):
            raise ValueError(f"{self.body_box} does not lie in an image of shape {self.canonical_shape_zyx}")
        if len(self.shape_zyx) != 3 or min(self.shape_zyx) < 1:
            raise ValueError(f"shape must be three positive numbers, found {self.shape_zyx}")

    @staticmethod
    def at_spacing(
        canonical_shape_zyx: IntTriple,
        canonical_spacing_zyx_mm: FloatTriple,
        body_box: BoundingBox,
        stage_spacing_zyx_mm: FloatTriple,
    ) -> "StageGrid":
        """The grid of a body box at a stage's spacing."""
        return StageGrid(
            canonical_shape_zyx=canonical_shape_zyx,
            canonical_spacing_zyx_mm=canonical_spacing_zyx_mm,
            body_box=body_box,
            shape_zyx=resampled_shape(body_box.shape_zyx, canonical_spacing_zyx_mm, stage_spacing_zyx_mm),
        )

    @property
    def spacing_zyx_mm(self) -> FloatTriple:
        """The stage's spacing in this case: the plan's, up to the rounding to whole voxels."""
        z, y, x = (
            size * spacing / resampled
            for size, spacing, resampled in zip(
                self.body_box.shape_zyx, self.canonical_spacing_zyx_mm, self.shape_zyx, strict=True
            )
        )
        return z, y, x

    def to_stage(self, canonical_box: BoundingBox) -> BoundingBox | None:
        """The stage voxels that cover a canonical box; None when it lies outside the body box."""
        inside = canonical_box.intersection(self.body_box)
        if inside is None:
            return None
        back = (-self.body_box.start[0], -self.body_box.start[1], -self.body_box.start[2])
        return inside.shifted(back).rescaled(self.body_box.shape_zyx, self.shape_zyx)

    def to_canonical(self, stage_box: BoundingBox) -> BoundingBox:
        """The canonical voxels that cover a box of stage voxels."""
        return stage_box.rescaled(self.shape_zyx, self.body_box.shape_zyx).shifted(self.body_box.start)

    def turned(self, quarters: int) -> "StageGrid":
        """The grid of the same image turned in the plane of its slices, as by `turned_array`."""
        return StageGrid(
            canonical_shape_zyx=turned_sides(self.canonical_shape_zyx, quarters),
            canonical_spacing_zyx_mm=turned_sides(self.canonical_spacing_zyx_mm, quarters),
            body_box=self.body_box.turned(quarters, self.canonical_shape_zyx),
            shape_zyx=turned_sides(self.shape_zyx, quarters),
        )
