"""Structures to voxels: solids are computed on coarse points, interpolated, and painted slab by slab.

A voxel on a surface gets a share of both sides (partial volume); its label is that of its center.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import map_coordinates

from flaresemi.geometry import BoundingBox, Geometry, IntTriple
from flaresemi.phantom.patient import Layer, Patient, Structure
from flaresemi.phantom.shapes import Points

#: Voxels of a slab: bounds the memory beside the volume itself.
_SLAB_VOXELS = 4_000_000

#: Distance between points at which the bending of the patient is computed; its waves are more than ten times as long.
_BENDING_STEP_MM = 10.0

#: Where the inhomogeneity of tissue is drawn: white noise on a lattice of this spacing, repeated beyond its size.
_TEXTURE_STEP_MM = 6.5
_TEXTURE_SIZE = 40


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Every so many voxels of a box, starting at its first voxel and ending at its last or beyond.

    Attributes:
        box: The voxels that can be interpolated.
        steps_zyx: Voxels between lattice points.
        shape_zyx: Lattice points, at least two per axis.
    """

    box: BoundingBox
    steps_zyx: IntTriple
    shape_zyx: IntTriple

    @staticmethod
    def over(box: BoundingBox, geometry: Geometry, step_mm: float) -> "Lattice":
        """The lattice over a box whose points lie at most about `step_mm` apart, or as far as the voxels do."""
        steps = tuple(max(1, int(step_mm / spacing + 1e-6)) for spacing in geometry.spacing_zyx_mm)
        shape = tuple(max(math.ceil((size - 1) / step) + 1, 2) for size, step in zip(box.shape_zyx, steps, strict=True))
        return Lattice(box=box, steps_zyx=steps, shape_zyx=shape)  # type: ignore[arg-type]

    def points(self, geometry: Geometry) -> Points:
        """LPS world positions of the lattice points, arrays of `shape_zyx`."""
        z, y, x = (
            ((np.arange(count) * step + start) * spacing).astype(np.float32)
            for count, step, start, spacing in zip(
                self.shape_zyx, self.steps_zyx, self.box.start, geometry.spacing_zyx_mm, strict=True
            )
        )
        matrix = np.reshape(geometry.direction, (3, 3)).astype(np.float32)
        origin = np.array(geometry.origin_xyz_mm, np.float32)
        x, y, z = x[None, None, :], y[None, :, None], z[:, None, None]
        world = tuple(matrix[i, 0] * x + matrix[i, 1] * y + matrix[i, 2] * z + origin[i] for i in range(3))
        return world[0], world[1], world[2]

    def stretched(self, values: np.ndarray, box: BoundingBox) -> np.ndarray:
        """Lattice values interpolated linearly to the voxels of a box inside this lattice's."""
        for axis in range(3):
            first = box.start[axis] - self.box.start[axis]
            values = _stretched_axis(values, axis, self.steps_zyx[axis], first, box.shape_zyx[axis])
        return values


class Renderer:
    """Paints the structures of one patient onto one grid.

    Args:
        geometry: The grid.
        patient: Whose structures.
        sharpness_mm: Width that the scanner blurs an edge to, before the voxels do.
    """

    def __init__(self, geometry: Geometry, patient: Patient, sharpness_mm: float) -> None:
        self._geometry = geometry
        self._patient = patient
        self._sharpness_mm = sharpness_mm
        self._whole = BoundingBox.whole(geometry.shape_zyx)
        self._noise = patient.rng("texture").standard_normal((_TEXTURE_SIZE,) * 3, dtype=np.float32)
        self._to_index = np.linalg.inv(
            np.reshape(geometry.direction, (3, 3)) * np.array(geometry.spacing_zyx_mm[::-1], float)
        )

    def render(self, structures: Sequence[Structure], air_hu: float) -> tuple[np.ndarray, np.ndarray]:
        """Paints structures in order.

        Returns:
            image_hu: int16 (Z, Y, X), without noise.
            labels: uint8 (Z, Y, X).
        """
        shape = self._geometry.shape_zyx
        image = np.empty(shape, np.int16)
        labels = np.zeros(shape, np.uint8)
        texture = self._texture()
        prepared = [solids for structure in structures if (solids := self._prepare(structure)) is not None]
        thickness = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
        for first in range(0, shape[0], thickness):
            slab = BoundingBox(start=(first, 0, 0), stop=(min(first + thickness, shape[0]), shape[1], shape[2]))
            hu = np.full(slab.shape_zyx, air_hu, np.float32)
            inhomogeneity = texture[0].stretched(texture[1], slab)
            for lattice, layers, distances in prepared:
                box = lattice.box.intersection(slab)
                if box is None:
                    continue
                inside_slab = box.shifted((-first, 0, 0)).slices
                for layer, distance in zip(layers, distances, strict=True):
                    _paint(
                        layer,
                        lattice.stretched(distance, box),
                        hu[inside_slab],
                        labels[box.slices],
                        inhomogeneity[inside_slab],
                    )
            np.rint(hu, out=hu)
            image[slab.slices] = hu
        return image, labels

    def _prepare(self, structure: Structure) -> tuple[Lattice, tuple[Layer, ...], list[np.ndarray]] | None:
        box = self._voxels(structure)
        if box is None:
            return None
        lattice = Lattice.over(box, self._geometry, structure.step_mm)
        template = self._template(lattice, structure.bends)
        solids = structure.solids(template)
        distances = [
            self._in_voxels(np.asarray(solid, np.float32), lattice, layer.blur_mm)
            for solid, layer in zip(solids, structure.layers, strict=True)
        ]
        return lattice, structure.layers, distances

    def _template(self, lattice: Lattice, bends: bool) -> Points:
        """Where the lattice points lie in the template. The bending is so smooth that every few of them suffice."""
        every = Geometry(
            shape_zyx=lattice.shape_zyx,
            spacing_zyx_mm=tuple(
                step * spacing for step, spacing in zip(lattice.steps_zyx, self._geometry.spacing_zyx_mm, strict=True)
            ),  # type: ignore[arg-type]
            origin_xyz_mm=self._geometry.world_xyz_mm(lattice.box.start),
            direction=self._geometry.direction,
        )
        whole = BoundingBox.whole(lattice.shape_zyx)
        few = Lattice.over(whole, every, _BENDING_STEP_MM)
        x, y, z = (few.stretched(axis, whole) for axis in self._patient.to_template(few.points(every), bends=bends))
        return x, y, z

    def _voxels(self, structure: Structure) -> BoundingBox | None:
        """The voxels where a structure can be, wherever the patient's bending moves it."""
        if structure.box is None:
            return self._whole
        scale = np.array(self._patient.scale_xyz)
        low, high = (np.array(corner) * scale for corner in structure.box)
        reach = self._patient.reach_mm
        low, high = low - reach, high + reach
        corners = np.array([[(low, high)[bit][axis] for axis, bit in enumerate(bits)] for bits in np.ndindex(2, 2, 2)])
        indices = (self._to_index @ (corners - np.array(self._geometry.origin_xyz_mm)).T).T[:, ::-1]
        start = np.floor(np.maximum(indices.min(axis=0) - 1, -1)).astype(int)
        stop = np.ceil(np.minimum(indices.max(axis=0) + 2, np.array(self._geometry.shape_zyx) + 1)).astype(int)
        if (stop <= start).any():
            return None
        return BoundingBox(start=tuple(start.tolist()), stop=tuple(stop.tolist())).clipped(self._geometry.shape_zyx)

    def _in_voxels(self, solid: np.ndarray, lattice: Lattice, blur_mm: float) -> np.ndarray:
        """A distance in units of the width over which its surface is blurred: by the scanner and by the voxels."""
        spacing = self._geometry.spacing_zyx_mm
        across = np.zeros_like(solid)
        steepness = np.zeros_like(solid)
        for axis in range(3):
            slope = np.gradient(solid, lattice.steps_zyx[axis], axis=axis)
            slope *= slope
            across += slope
            steepness += slope / np.float32(spacing[axis] ** 2)
        # Where the gradient vanishes there is no surface; the floor keeps such places out of the way.
        across /= np.maximum(steepness, np.float32(0.1))
        across += np.float32(self._sharpness_mm**2 + blur_mm**2 + 0.1 * min(spacing) ** 2)
        return solid / np.sqrt(across)

    def _texture(self) -> tuple[Lattice, np.ndarray]:
        """Smooth unit noise that stays with the patient, whatever the grid."""
        lattice = Lattice.over(self._whole, self._geometry, _TEXTURE_STEP_MM)
        x, y, z = lattice.points(self._geometry)
        coordinates = np.stack([axis / np.float32(_TEXTURE_STEP_MM) for axis in (z, y, x)])
        values = map_coordinates(self._noise, coordinates, order=1, mode="grid-wrap", output=np.float32)
        values += map_coordinates(self._noise, coordinates * np.float32(0.37) + 7, order=1, mode="grid-wrap")
        return lattice, values * np.float32(1.2)


def _paint(layer: Layer, distance: np.ndarray, hu: np.ndarray, labels: np.ndarray, inhomogeneity: np.ndarray) -> None:
    share = np.clip(0.5 - distance, 0, 1, out=np.empty_like(distance))
    if layer.only_in is not None:
        share *= labels == layer.only_in
    if not share.any():
        return
    target = inhomogeneity * np.float32(layer.texture_hu)
    target += np.float32(layer.hu)
    target -= hu
    target *= share
    hu += target
    if layer.label is not None:
        np.copyto(labels, np.uint8(layer.label), where=distance < 0)


def _stretched_axis(values: np.ndarray, axis: int, step: int, first: int, count: int) -> np.ndarray:
    """Linear interpolation along one axis: `count` samples from `first` on, where lattice points are `step` apart."""
    if step == 1:
        return values[(slice(None),) * axis + (slice(first, first + count),)]
    positions = np.arange(first, first + count)
    low = np.minimum(positions // step, values.shape[axis] - 2)
    weight = ((positions - low * step) / step).astype(np.float32)
    base = int(low[0])
    matrix = np.zeros((count, int(low[-1]) + 2 - base), np.float32)
    matrix[np.arange(count), low - base] = 1 - weight
    matrix[np.arange(count), low - base + 1] += weight
    part = values[(slice(None),) * axis + (slice(base, int(low[-1]) + 2),)]
    if axis == 2:
        return part @ matrix.T
    if axis == 1:
        return np.matmul(matrix, part)
    return (matrix @ part.reshape(len(part), -1)).reshape(count, *part.shape[1:])
