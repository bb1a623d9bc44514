"""The frame that holds the organs: skin, fat, muscle, ribs, lungs, spine and pelvis."""

import dataclasses

import numpy as np

from flaresemi.phantom import shapes
from flaresemi.phantom.patient import Layer, Patient, Structure
from flaresemi.phantom.shapes import Points, Vector

_RIB_PERIOD_MM = 27.0
_VERTEBRA_PERIOD_MM = 34.0

#: (x, y) of the axis of the vertebral bodies and of the spinal canal.
_SPINE_XY = (0.0, 52.0)
_CANAL_XY = (0.0, 79.0)

#: Where the skin of the back lies over the tips of the spine, without fat.
_BACK_Y_MM = 112.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Torso:
    """Walls that organs lean on, in template mm.

    Attributes:
        half_width: Half the width of the abdominal cavity.
        half_depth: Half its depth.
        center_y: The middle of its depth.
        wall: Thickness of the muscle around it.
        fat: Thickness of the fat at the front, the sides and the back.
        domes: (x, y, z) of the tops of the right and left half of the diaphragm.
    """

    half_width: float
    half_depth: float
    center_y: float
    wall: float
    fat: Vector
    domes: tuple[Vector, Vector]

    @staticmethod
    def draw(patient: Patient) -> "Torso":
        rng = patient.rng("torso")
        width, depth, top, lean = np.clip(rng.normal(size=4), -2, 2)
        fat = patient.fat
        right = 128.0 + 6 * top
        return Torso(
            half_width=139 * (1 + 0.035 * width),
            half_depth=84 * (1 + 0.05 * depth),
            center_y=-11.0,
            wall=float(rng.uniform(11, 16)),
            fat=(13 * fat, 16 * fat, 11 * fat),
            domes=((-66.0, -10.0, right), (66.0, -8.0, right - 11 + 4 * lean)),
        )

    @property
    def front_and_back(self) -> tuple[float, float]:
        """y of the skin at the front and at the back."""
        return self.center_y - self.half_depth - self.wall - self.fat[0], _BACK_Y_MM + self.fat[2]

    def cavity(self, points: Points) -> np.ndarray:
        """The inside of the muscle wall."""
        x, y, z = points
        waist = 1 - np.float32(0.06) * np.exp(-(((z + 45) / 60) ** 2))
        taper = 1 - np.float32(0.16) * np.clip((z - 110) / 180, 0, 1.2)
        return _rounded(x / (waist * taper), y - np.float32(self.center_y), self.half_width, self.half_depth)

    def skin(self, points: Points) -> np.ndarray:
        """The body's surface."""
        x, y, z = points
        front, back = self.front_and_back
        waist = 1 - np.float32(0.05) * np.exp(-(((z + 45) / 60) ** 2))
        half_width = self.half_width + self.wall + self.fat[1]
        return _rounded(x / waist, y - np.float32((front + back) / 2), half_width, (back - front) / 2)

    def above_diaphragm(self, points: Points) -> np.ndarray:
        """Signed height over the diaphragm, about the distance to it; positive in the chest."""
        x, y, z = points
        right, left = (
            np.float32(58) * (((x - np.float32(center_x)) / 72) ** 2 + ((y - np.float32(center_y)) / 80) ** 2) - top
            for center_x, center_y, top in self.domes
        )
        return (z + np.minimum(shapes.union(right, left, 30.0), np.float32(60))) * np.float32(0.75)

    def inside(self, points: Points, solid: np.ndarray, gap_mm: float = 3.0) -> np.ndarray:
        """The part of an abdominal solid that the walls leave: inside the cavity and under the diaphragm."""
        solid = shapes.intersection(solid, self.cavity(points) + np.float32(gap_mm), 8.0)
        return shapes.intersection(solid, self.above_diaphragm(points) + np.float32(2), 6.0)


def backdrop(patient: Patient, torso: Torso) -> Structure:
    """Everything that the organs are painted over, from the skin inward."""
    hu = patient.hu

    def solids(points: Points) -> list[np.ndarray]:
        skin, cavity, above = torso.skin(points), torso.cavity(points), torso.above_diaphragm(points)
        x, y, z = points
        erector = np.minimum(shapes.cylinder(points, (38, 90), (31, 19)), shapes.cylinder(points, (-38, 90), (31, 19)))
        muscle = np.maximum(shapes.union(cavity - np.float32(torso.wall), erector, 10.0), skin + 4)
        beside_mediastinum = np.abs(x - 6) - 24 - np.float32(0.12) * np.maximum(15 - y, 0) - 4 * np.sin(z / 23)
        lungs = np.maximum(np.maximum(cavity + 3, 1.5 - above), -beside_mediastinum)
        return [skin, skin + 2, muscle, cavity, lungs, _ribs(torso, points, cavity), _iliac(points, cavity)]

    return Structure(
        name="backdrop",
        box=None,
        step_mm=4.0,
        solids=solids,
        layers=(
            Layer(hu=hu["skin"]),
            Layer(hu=hu["fat"], texture_hu=7),
            Layer(hu=hu["muscle"], texture_hu=11),
            Layer(hu=hu["visceral fat"], texture_hu=13),
            Layer(hu=hu["lung"], texture_hu=38),
            Layer(hu=hu["bone"], texture_hu=70),
            Layer(hu=hu["bone"], texture_hu=70),
        ),
    )


def spine(patient: Patient) -> Structure:
    """Vertebrae, discs and the spinal canal; painted over organs, so that none grows into bone."""
    hu = patient.hu
    rng = patient.rng("spine")
    offset = float(rng.uniform(0, _VERTEBRA_PERIOD_MM))

    def solids(points: Points) -> list[np.ndarray]:
        x, y, z = points
        level = np.mod(z + np.float32(offset), np.float32(_VERTEBRA_PERIOD_MM)) - np.float32(_VERTEBRA_PERIOD_MM / 2)
        column = shapes.cylinder(points, _SPINE_XY, (23, 17))
        body = shapes.intersection(column + 1.5 - (level / 12) ** 2, np.abs(level) - 13, 4.0)
        canal = shapes.cylinder(points, _CANAL_XY, (9, 8))
        arch = np.maximum(np.abs(canal - 3) - 3.0, np.abs(level) - 10)
        spinous = np.maximum(np.maximum(np.abs(x) - 3, np.abs(y - 98) - 12), np.abs(level + 4) - 9)
        wings = np.maximum(np.maximum(np.abs(x) - 33, np.abs(y - 75) - 4.5), np.abs(level) - 6)
        behind = np.maximum(shapes.union(shapes.union(arch, spinous, 3.0), wings, 3.0), -canal)
        return [column + 1, body, body + 2.5, behind, canal]

    return Structure(
        name="spine",
        box=((-42, 30, -1e4), (42, 114, 1e4)),
        step_mm=2.5,
        solids=solids,
        layers=(
            Layer(hu=hu["disc"], label=0),
            Layer(hu=hu["bone"], texture_hu=50, label=0),
            Layer(hu=hu["marrow"], texture_hu=35),
            Layer(hu=0.8 * hu["bone"], texture_hu=80, label=0),
            Layer(hu=hu["canal"]),
        ),
    )


def table(patient: Patient, torso: Torso) -> Structure:
    """The couch under the back: a shell around foam, curved across and straight along the patient."""
    rng = patient.rng("table")
    gap, bend, width = rng.uniform(3, 12), rng.uniform(3e-4, 9e-4), rng.uniform(190, 250)
    top = _BACK_Y_MM + torso.fat[2] + float(gap)

    def solids(points: Points) -> list[np.ndarray]:
        x, y, _ = points
        height = y - np.float32(top + 22) + np.float32(bend) * x * x
        slab = np.maximum(np.abs(height) - 20, np.abs(x) - np.float32(width))
        return [slab, slab + 5]

    return Structure(
        name="table",
        box=((-270, top - 70, -1e4), (270, top + 50, 1e4)),
        step_mm=2.5,
        solids=solids,
        layers=(
            Layer(hu=float(rng.uniform(-180, 120)), texture_hu=8),
            Layer(hu=float(rng.uniform(-960, -900)), texture_hu=3),
        ),
        bends=False,
    )


def blanket(patient: Patient, torso: Torso) -> Structure | None:
    """A sheet over the front of some patients: a thin line in the air."""
    rng = patient.rng("blanket")
    if rng.random() > 0.45:
        return None
    gap, waves = float(rng.uniform(4, 14)), float(rng.uniform(0.02, 0.05))

    def solids(points: Points) -> list[np.ndarray]:
        x, y, z = points
        fold = 3 * np.sin(np.float32(waves) * x + np.float32(0.7 * waves) * z)
        return [np.maximum(np.abs(torso.skin(points) - gap - fold) - 1.2, y - 30)]

    return Structure(
        name="blanket",
        box=None,
        step_mm=3.0,
        solids=solids,
        layers=(Layer(hu=float(rng.uniform(-820, -400)), texture_hu=40),),
    )


def _ribs(torso: Torso, points: Points, cavity: np.ndarray) -> np.ndarray:
    # Ribs lie in the wall and fall from the spine to the side; below the costal margin there are none.
    x, y, z = points
    slanted = z + np.float32(0.36) * (np.abs(x) - y)
    level = np.mod(slanted, np.float32(_RIB_PERIOD_MM)) - np.float32(_RIB_PERIOD_MM / 2)
    bar = np.hypot((cavity - np.float32(torso.wall / 2)) * np.float32(1.5), level) - np.float32(5.5)
    margin = -22 - np.float32(0.45) * y + np.maximum(-y - 35, 0)
    return np.maximum(bar, (margin - z) * np.float32(0.7))


def _iliac(points: Points, cavity: np.ndarray) -> np.ndarray:
    x, y, z = points
    crest = z + np.float32(112) + ((y - 20) / 9) ** 2 * np.float32(0.8)
    plate = np.maximum(np.abs(cavity - 3) - 4, crest * np.float32(0.7))
    return np.maximum(plate, 25 - np.abs(x))


def _rounded(x: np.ndarray, y: np.ndarray, a: float, b: float) -> np.ndarray:
    # A curve between an ellipse (c = 2) and a rectangle: (X² + Y² + c X Y)^(1/4) = 1 with X = (x/a)², Y = (y/b)².
    c = np.float32(1.45)
    u, v = x / np.float32(a), y / np.float32(b)
    p, q = u * u, v * v
    power4 = p * p + q * q + c * p * q
    radius = np.sqrt(np.sqrt(power4))
    slope = np.hypot(u * (2 * p + c * q) / np.float32(a), v * (2 * q + c * p) / np.float32(b))
    # slope / (2 radius³) is the gradient; near the axis it is bounded by that of the shorter half.
    return (radius - 1) * 2 * radius**3 / np.maximum(slope, 1e-6) - (slope < 1e-6) * np.float32(min(a, b))
