"""How a patient is scanned: field of view, spacing, tilt, the file's axes, noise and the scan circle."""

import dataclasses

import numpy as np

from flaresemi.geometry import Geometry, IntTriple
from flaresemi.io.grids import SourceGrid
from flaresemi.phantom.patient import Patient
from flaresemi.phantom.shapes import rotation_matrix
from flaresemi.phantom.torso import Torso

#: Template z between which all organs lie, with the lung bases above and the ends of the great vessels below.
_FIELD_Z_MM = (-112.0, 156.0)

#: Template z between which there is a body to scan.
_LONGEST_FIELD_Z_MM = (-285.0, 255.0)

#: How often each happens. Source: chosen.
_CUT_OFF = 0.2
_LONG_FIELD = 0.2
_NARROW_FIELD = 0.08
_OBLIQUE = 0.3
_SCAN_CIRCLE = 0.4

_AXES: tuple[IntTriple, ...] = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One scan of a patient.

    Attributes:
        source: The grid, canonical and as it lies in the file.
        sharpness_mm: Width of an edge.
        noise_hu: Standard deviation of the noise.
        padding_hu: Value outside the scan circle; None: air everywhere.
    """

    source: SourceGrid
    sharpness_mm: float
    noise_hu: float
    padding_hu: int | None

    @staticmethod
    def draw(patient: Patient, torso: Torso, shape_zyx: IntTriple, *, vary: bool = True) -> "Scan":
        """Draws a scan whose field holds the body at any shape; `vary` off: an upright, whole, ordinary field."""
        rng = patient.rng("scan")
        low, high, width = _field(rng, vary)
        direction = _tilt(rng) if vary and rng.random() < _OBLIQUE else np.eye(3)
        canonical = _geometry(patient, torso, shape_zyx, (low, high, width), direction)
        axes, flips = _file_order(rng) if vary else ((0, 1, 2), (False, False, False))
        return Scan(
            source=in_file_order(canonical, axes, flips),
            sharpness_mm=float(rng.uniform(1.0, 2.2)),
            noise_hu=float(rng.uniform(9, 24)),
            padding_hu=int(rng.choice([-1024, -2048, -3024])) if vary and rng.random() < _SCAN_CIRCLE else None,
        )

    def expose(self, image_hu: np.ndarray, patient: Patient) -> None:
        """Adds noise and the padding outside the scan circle to an int16 (Z, Y, X) image, in place.

        The noise of neighbors in a slice is correlated, as a reconstruction kernel makes it; slices are independent.
        """
        rng = patient.rng("noise")
        outside = _outside_circle(image_hu.shape[1:]) if self.padding_hu is not None else None
        for section in image_hu:
            noise = rng.standard_normal(section.shape, dtype=np.float32)
            for axis in (0, 1):
                noise = noise + 0.45 * (np.roll(noise, 1, axis) + np.roll(noise, -1, axis))
            noise *= np.float32(self.noise_hu / (1 + 2 * 0.45**2))
            noise += section
            np.clip(np.rint(noise, out=noise), -1024, 3071, out=noise)
            section[...] = noise
            if outside is not None:
                section[outside] = self.padding_hu


def in_file_order(canonical: Geometry, axes: IntTriple, flips: tuple[bool, bool, bool]) -> SourceGrid:
    """The source grid of a file whose array holds canonical axis i as its axis axes[i], backwards where flips[i]."""
    columns = np.reshape(canonical.direction, (3, 3))
    shape, spacing, directions = [1, 1, 1], [1.0, 1.0, 1.0], np.zeros((3, 3))
    first = [0.0, 0.0, 0.0]
    for i, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        shape[axis], spacing[axis] = canonical.shape_zyx[i], canonical.spacing_zyx_mm[i]
        directions[:, 2 - axis] = columns[:, 2 - i] * (-1 if flip else 1)
        first[i] = canonical.shape_zyx[i] - 1.0 if flip else 0.0
    return SourceGrid(
        geometry=Geometry(
            shape_zyx=(shape[0], shape[1], shape[2]),
            spacing_zyx_mm=(spacing[0], spacing[1], spacing[2]),
            origin_xyz_mm=canonical.world_xyz_mm((first[0], first[1], first[2])),
            direction=tuple(float(value) + 0.0 for value in directions.ravel()),
        ),
        axes=axes,
        flips=flips,
    )


def _field(rng: np.random.Generator, vary: bool) -> tuple[float, float, float]:
    """Lower and upper end of the field in template z, and its width relative to the body's."""
    low, high = _FIELD_Z_MM
    chances, amounts = rng.random(3), rng.random(4)
    if not vary:
        return low, high, 1.12
    if chances[0] < _LONG_FIELD:
        low, high = low - 40 - 130 * amounts[0], high + 20 + 60 * amounts[1]
    else:
        low, high = low - 35 * amounts[0], high + 25 * amounts[1]
    if chances[1] < _CUT_OFF / 2:
        high = 60 + 70 * amounts[2]
    elif chances[1] < _CUT_OFF:
        low = -60 + 55 * amounts[2]
    width = 0.86 + 0.12 * amounts[3] if chances[2] < _NARROW_FIELD else 1.04 + 0.24 * amounts[3]
    return low, high, width


def _geometry(
    patient: Patient, torso: Torso, shape_zyx: IntTriple, field: tuple[float, float, float], direction: np.ndarray
) -> Geometry:
    rng = patient.rng("table height")
    low, high, width = field
    scale_x, scale_y, scale_z = patient.scale_xyz
    body_x = 2 * (torso.half_width + torso.wall + torso.fat[1]) * scale_x
    front, back = (edge * scale_y for edge in torso.front_and_back)
    # Square pixels that hold the body's width, and its depth with some of the table.
    pixel = width * max(body_x / shape_zyx[2], (back - front + 30) / shape_zyx[1])
    middle_y = (front + back) / 2 + rng.uniform(5, 20)
    low, high = low * scale_z, high * scale_z
    # Slices stay within what scanners do: many slices make a longer field, not ever thinner ones.
    step = max((high - low) / shape_zyx[0], 0.8)
    longest = (_LONGEST_FIELD_Z_MM[0] * scale_z, _LONGEST_FIELD_Z_MM[1] * scale_z)
    extent = step * shape_zyx[0]
    middle_z = (low + high) / 2
    if extent > high - low + step:
        slack = extent / 2
        middle_z = float(np.clip(middle_z, longest[0] + slack, max(longest[1] - slack, longest[0] + slack)))
    spacing = np.round(np.array([pixel, pixel, step]), 4)
    center = np.array([rng.uniform(-6, 6), middle_y, middle_z])
    origin = center - direction @ ((np.array(shape_zyx[::-1]) - 1) / 2 * spacing)
    return Geometry(
        shape_zyx=shape_zyx,
        spacing_zyx_mm=(float(spacing[2]), float(spacing[1]), float(spacing[0])),
        origin_xyz_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(float(value) for value in direction.ravel()),
    )


def _tilt(rng: np.random.Generator) -> np.ndarray:
    axis = rng.normal(size=3)
    turned = axis / np.linalg.norm(axis) * rng.uniform(2, 10)
    return rotation_matrix((float(turned[0]), float(turned[1]), float(turned[2])))


def _file_order(rng: np.random.Generator) -> tuple[IntTriple, tuple[bool, bool, bool]]:
    """Mostly LPS, as scanners write, or RAS, as NIfTI tools do; else any of the 48 orders."""
    kind = rng.random()
    if kind < 0.45:
        return (0, 1, 2), (False, False, False)
    if kind < 0.7:
        return (0, 1, 2), (False, True, True)
    flips = rng.random(3) < 0.5
    return _AXES[int(rng.integers(len(_AXES)))], (bool(flips[0]), bool(flips[1]), bool(flips[2]))


def _outside_circle(shape_yx: tuple[int, ...]) -> np.ndarray:
    y, x = (np.arange(size) - (size - 1) / 2 for size in shape_yx)
    radius = max(shape_yx) / 2
    return np.hypot(y[:, None], x[None, :]) > radius
