"""One synthetic patient: what is drawn once and holds whatever the scanner does.

The template is an average adult lying supine in ITK's LPS frame: x to the patient's left, y to the back, z to the head,
in mm. Its origin lies on the midline between the kidneys. A patient is the template scaled and smoothly bent; each
organ is moved, turned and scaled a little more.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from flaresemi.phantom.shapes import Points, Vector, moved, rotation_matrix
from flaresemi.phantom.tissue import PHASE_WEIGHTS, PHASES, draw_hu

#: How often an organ is missing. Source: chosen; gallbladders are removed often, kidneys and spleens seldom.
_MISSING = {"gallbladder": 0.12, "spleen": 0.02, "right kidney": 0.015, "left kidney": 0.015}

_WAVES = 8
_WAVE_MM = (110.0, 260.0)
_WAVE_AMPLITUDE_MM = 2.2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Intensity and label that one solid is painted with.

    Attributes:
        hu: Mean Hounsfield units.
        texture_hu: Standard deviation of its smooth inhomogeneity.
        label: Value written to the label map; 0 erases, None leaves the labels alone.
        only_in: Paint only where the label map has this value; None: everywhere.
        blur_mm: Width of a fuzzy edge, added to what the scanner blurs.
    """

    hu: float
    texture_hu: float = 4.0
    label: int | None = None
    only_in: int | None = None
    blur_mm: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Solids that are computed together and painted one after the other, over what was painted before.

    Attributes:
        name: Of the structure.
        box: Two corners (x, y, z) in template mm between which all its solids lie; None: everywhere.
        step_mm: Distance between the points at which the solids are computed; between them is interpolated.
        solids: From positions in the template to one array per layer, negative inside, in mm.
        layers: One per solid, in the order in which they are painted.
        bends: Whether it bends with the patient; scaled it is in any case.
    """

    name: str
    box: tuple[Vector, Vector] | None
    step_mm: float
    solids: Callable[[Points], Sequence[np.ndarray]]
    layers: tuple[Layer, ...]
    bends: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """How one organ differs from the template's: turned and scaled about its anchor, then moved."""

    anchor: Vector
    shift: Vector
    scale: Vector
    matrix: np.ndarray

    def to_organ(self, points: Points) -> Points:
        """Positions in the patient's template to positions in the organ's own."""
        inverse = np.diag(1 / np.array(self.scale)) @ self.matrix.T
        anchor = np.array(self.anchor)
        return moved(points, inverse, anchor - inverse @ (anchor + np.array(self.shift)))

    def to_patient(self, points_xyz: np.ndarray) -> np.ndarray:
        """The inverse of `to_organ`, for an (N, 3) array."""
        return (points_xyz - self.anchor) * self.scale @ self.matrix.T + self.anchor + self.shift

    def distance(self, organ_distance: np.ndarray) -> np.ndarray:
        """A distance measured in the organ's frame, in the patient's mm."""
        return organ_distance * np.float32(np.prod(self.scale) ** (1 / 3))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One patient.

    Attributes:
        seed: Of all that is random in the patient.
        phase: Phase of the contrast injection.
        missing: Names of organs that were removed or never grown.
        scale_xyz: Size relative to the template.
        fat: Thickness of the subcutaneous fat relative to the template.
        hu: Hounsfield units by tissue.
        waves: (M, 3, 3) wave vectors (1/mm), sine and cosine amplitudes (mm) of the smooth bending.
    """

    seed: int
    phase: str
    missing: frozenset[str]
    scale_xyz: Vector
    fat: float
    hu: dict[str, float]
    waves: np.ndarray

    @staticmethod
    def draw(seed: int, *, vary: bool = True) -> "Patient":
        """Draws a patient. With `vary` off nobody misses an organ; shapes and tissues are drawn all the same."""
        rng = stream(seed, "patient")
        phase = PHASES[int(rng.choice(len(PHASES), p=PHASE_WEIGHTS))]
        size = np.clip(rng.normal(1.0, 0.045), 0.9, 1.1)
        scale = size * np.clip(rng.normal(1.0, 0.025, 3), 0.94, 1.06)
        fat = float(np.clip(np.exp(rng.normal(0, 0.45)), 0.3, 2.4))
        chances = rng.random(len(_MISSING))
        missing = {name for (name, chance), drawn in zip(_MISSING.items(), chances, strict=True) if drawn < chance}
        if {"right kidney", "left kidney"} <= missing:
            missing.remove("left kidney")
        return Patient(
            seed=seed,
            phase=phase,
            missing=frozenset(missing if vary else ()),
            scale_xyz=(float(scale[0]), float(scale[1]), float(scale[2])),
            fat=fat,
            hu=draw_hu(stream(seed, "tissue"), phase),
            waves=_draw_waves(stream(seed, "waves")),
        )

    def rng(self, name: str) -> np.random.Generator:
        """A random stream of this patient's own for `name`, whatever was drawn for others."""
        return stream(self.seed, name)

    def pose(self, name: str, anchor: Vector, *, shift_mm: float = 5.0, scale: float = 0.06, turn: float = 6.0) -> Pose:
        """Draws how the organ `name` differs from the template's.

        Args:
            anchor: The point it turns about, in template mm.
            shift_mm: Standard deviation of the movement per axis.
            scale: Standard deviation of the size (in logarithm), shared by the axes; half of it per axis on top.
            turn: Standard deviation of the rotation about each axis, degrees.
        """
        rng = self.rng(f"pose {name}")
        draws = np.clip(rng.normal(size=10), -2, 2)
        sizes = np.exp(scale * (draws[0] + 0.5 * draws[1:4]))
        shift = shift_mm * draws[4:7]
        angles = turn * draws[7:10]
        return Pose(
            anchor=anchor,
            shift=(float(shift[0]), float(shift[1]), float(shift[2])),
            scale=(float(sizes[0]), float(sizes[1]), float(sizes[2])),
            matrix=rotation_matrix((float(angles[0]), float(angles[1]), float(angles[2]))),
        )

    @property
    def reach_mm(self) -> float:
        """How far the bending can move a point at most."""
        return float(np.linalg.norm(np.abs(self.waves[:, 1:]).sum(axis=(0, 1))))

    def to_template(self, points: Points, *, bends: bool = True) -> Points:
        """LPS world positions of this patient to positions in the template."""
        x, y, z = points
        moves = [np.zeros(x.shape, np.float32) for _ in range(3)]
        for wave, sine, cosine in self.waves.astype(np.float32) if bends else ():
            phase = wave[0] * x + wave[1] * y + wave[2] * z
            sin, cos = np.sin(phase), np.cos(phase)
            for axis, move in enumerate(moves):
                move += sine[axis] * sin + cosine[axis] * cos
        template = tuple(
            (point + move) / np.float32(scale) for point, move, scale in zip(points, moves, self.scale_xyz, strict=True)
        )
        return template[0], template[1], template[2]


def stream(seed: int, name: str) -> np.random.Generator:
    """An independent random stream per seed and purpose, the same on every platform."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))


def _draw_waves(rng: np.random.Generator) -> np.ndarray:
    directions = rng.normal(size=(_WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = rng.uniform(*_WAVE_MM, size=(_WAVES, 1))
    waves = directions * (2 * np.pi / lengths)
    # Longer waves move more, so that none folds the patient over.
    amplitudes = (
        np.clip(rng.normal(size=(_WAVES, 2, 3)), -2.5, 2.5) * _WAVE_AMPLITUDE_MM * (lengths / _WAVE_MM[1])[:, None]
    )
    return np.concatenate([waves[:, None], amplitudes], axis=1)
