"""The 13 FLARE organs of a patient, as structures in painting order.

Coordinates are template mm, (x to the left, y to the back, z to the head). Source: sizes and neighbours as in anatomy
textbooks and public abdominal CT; the curves are drawn by hand.
"""

from collections.abc import Callable

import numpy as np

from flaresemi import flare22
from flaresemi.phantom import shapes
from flaresemi.phantom.patient import Layer, Patient, Pose, Structure
from flaresemi.phantom.shapes import Points, Vector
from flaresemi.phantom.torso import Torso

Box = tuple[Vector, Vector]
_VALUE = {label.name: label.value for label in flare22.LABELS.labels}

_STOMACH = (
    (52, 14, 110, 19), (66, 10, 97, 27), (78, -10, 76, 28), (80, -36, 50, 25), (64, -54, 26, 20), (36, -62, 13, 17),
    (8, -56, 14, 13.5), (-14, -46, 20, 9),
)  # fmt: skip
_DUODENUM = (
    (-20, -43, 20, 8), (-36, -32, 22, 11), (-48, -16, 12, 10), (-52, -6, -12, 10), (-46, 0, -34, 10), (-26, 1, -46, 9),
    (0, -1, -46, 8.5), (22, -2, -40, 9), (34, -6, -24, 9), (36, -16, -10, 8.5),
)  # fmt: skip
_PANCREAS = (
    (-22, -8, -24, 9), (-30, -16, -6, 15), (-20, -24, 8, 14), (0, -28, 18, 10), (26, -26, 26, 11.5), (54, -6, 34, 11),
    (76, 16, 42, 9.5), (90, 24, 46, 6.5),
)  # fmt: skip
_ESOPHAGUS = (
    (2, 24, 250, 8), (3, 24, 200, 8), (7, 16, 160, 8), (14, 4, 132, 9), (26, -2, 116, 9), (40, 4, 106, 10),
)  # fmt: skip
_AORTA = (
    (24, 32, 260, 12), (22, 31, 190, 11.5), (16, 26, 130, 11), (8, 22, 70, 10), (9, 22, 10, 9), (8, 22, -50, 8.5),
    (3, 21, -96, 8.5),
)  # fmt: skip
_VENA_CAVA = (
    (-16, -20, 158, 11), (-20, -6, 128, 12), (-24, 6, 100, 12), (-23, 14, 60, 11), (-20, 19, 10, 10), (-18, 21, -50, 9),
    (-12, 22, -100, 10),
)  # fmt: skip
_GALLBLADDER = ((-40, -30, 30, 5), (-44, -38, 24, 8), (-50, -52, 13, 13), (-55, -64, 1, 14), (-57, -68, -5, 11))

_KIDNEY_CENTER = {"right": (-66.0, 40.0, -8.0), "left": (66.0, 38.0, 8.0)}
_ADRENAL_CENTER = {"right": (-31.0, 27.0, 50.0), "left": (34.0, 22.0, 54.0)}


def organs(patient: Patient, torso: Torso) -> list[Structure]:
    """All organs that this patient has. Later ones lie over earlier ones where they meet."""
    drawn = [
        _hollow(patient, torso, "stomach", _STOMACH, squash=(1.0, 1.12, 1.0), wall_mm=4.0),
        _spleen(patient, torso),
        _liver(patient, torso),
        *(_kidney(patient, torso, side) for side in ("right", "left")),
        _pancreas(patient, torso),
        _hollow(patient, torso, "duodenum", _DUODENUM, squash=(1.0, 1.0, 1.0), wall_mm=3.0),
        _gallbladder(patient, torso),
        *(_adrenal(patient, torso, side) for side in ("right", "left")),
        _esophagus(patient),
        _vessel(patient, "inferior vena cava", "vena cava", _VENA_CAVA, (1.0, 1.28, 1.0), 0.12),
        _vessel(patient, "aorta", "aorta", _AORTA, (1.0, 1.0, 1.0), 0.09),
    ]
    return [structure for structure in drawn if structure.name not in patient.missing]


def liver_solid(patient: Patient, torso: Torso) -> Callable[[Points], np.ndarray]:
    """The liver: what lies under the right dome, above a slanting lower face and right of a slanting left face."""
    rng = patient.rng("liver")
    drop, reach, slant, back = np.clip(rng.normal(size=4), -2, 2)
    pose = patient.pose("liver", (-50, -10, 60), shift_mm=3.0, scale=0.02, turn=3.0)

    def solid(points: Points) -> np.ndarray:
        x, y, z = pose.to_organ(points)
        # The lower face: low on the right, high under the left lobe, higher toward the back.
        face = -13 - 7 * drop + (88 + 5 * drop) / (1 + np.exp(-(x + 36 + 5 * slant) / 27)) + 0.22 * (y + 10)
        lower = (face - z) * np.float32(0.62)
        left = (y + (0.85 + 0.08 * slant) * x - 10 - 5 * back) * np.float32(0.75)
        tip = x - np.float32(62 + 14 * reach)
        shape = shapes.intersection(shapes.intersection(lower, left, 26.0), tip, 24.0)
        return torso.inside(points, shape)

    return solid


def _liver(patient: Patient, torso: Torso) -> Structure:
    solid = liver_solid(patient, torso)
    return Structure(
        name="liver",
        box=((-170, -125, -110), (125, 90, 165)),
        step_mm=3.5,
        solids=lambda points: [solid(points)],
        layers=(Layer(hu=patient.hu["liver"], texture_hu=9, label=_VALUE["liver"], blur_mm=1.0),),
    )


def _spleen(patient: Patient, torso: Torso) -> Structure:
    pose = patient.pose("spleen", (106, 28, 54), shift_mm=4.0, scale=0.07, turn=7.0)
    tilt = shapes.rotation_matrix((25, 12, 20))

    def solids(points: Points) -> list[np.ndarray]:
        local = pose.to_organ(points)
        center = np.array((106.0, 28.0, 54.0))
        body = shapes.ellipsoid(shapes.moved(local, tilt, center - tilt @ center), (106, 28, 54), (36, 52, 58))
        hollow = shapes.ellipsoid(local, (60, -10, 60), (36, 35, 58))
        return [torso.inside(points, pose.distance(shapes.difference(body, hollow, 8.0)))]

    layer = Layer(hu=patient.hu["spleen"], texture_hu=8, label=_VALUE["spleen"], blur_mm=0.5)
    return Structure(name="spleen", box=((20, -60, -40), (175, 110, 165)), step_mm=3.0, solids=solids, layers=(layer,))


def _kidney(patient: Patient, torso: Torso, side: str) -> Structure:
    sign = 1.0 if side == "left" else -1.0
    center = _KIDNEY_CENTER[side]
    pose = patient.pose(f"{side} kidney", center, shift_mm=5.0, scale=0.05, turn=6.0)
    # Both sides are one shape in a frame whose x points away from the spine.
    lean = shapes.rotation_matrix((-10, 13, 0)) @ shapes.rotation_matrix((0, 0, -28))
    rng = patient.rng(f"{side} kidney")
    stretch, bulge = np.clip(rng.normal(size=2), -2, 2)
    cyst = rng.uniform(-1, 1, 3) * (20, 18, 40) if rng.random() < 0.2 else None
    hu = patient.hu

    def solids(points: Points) -> list[np.ndarray]:
        x, y, z = pose.to_organ(points)
        local = shapes.moved(((x - center[0]) * np.float32(sign), y - center[1], z - center[2]), lean.T)
        body = shapes.ellipsoid(local, (0, 0, 0), (30 + bulge, 27, 54 * (1 + 0.05 * stretch)))
        sinus = shapes.ellipsoid(local, (-22, 0, 0), (19, 9, 25))
        solid = shapes.difference(body, sinus, 7.0)
        pelvis = shapes.ellipsoid(local, (-19, 0, -4), (10, 5, 13))
        solid = torso.inside(points, pose.distance(solid), gap_mm=5.0)
        medulla = np.maximum(solid + 8, shapes.ellipsoid(local, (-6, 0, 0), (22, 20, 46)))
        pits = [] if cyst is None else [shapes.ellipsoid(local, tuple(cyst), (9, 9, 9))]
        return [solid, medulla, np.maximum(pelvis, body), *pits]

    value = _VALUE[f"{side} kidney"]
    layers = [
        Layer(hu=hu["kidney cortex"], texture_hu=9, label=value),
        Layer(hu=hu["kidney medulla"], texture_hu=9, only_in=value, blur_mm=4.0),
        Layer(hu=hu["renal pelvis"], texture_hu=5, label=0),
    ]
    if cyst is not None:
        layers.append(Layer(hu=hu["cyst"], only_in=value))
    box = _around(center, (58, 58, 92))
    return Structure(name=f"{side} kidney", box=box, step_mm=2.5, solids=solids, layers=tuple(layers))


def _adrenal(patient: Patient, torso: Torso, side: str) -> Structure:
    sign = 1.0 if side == "left" else -1.0
    center = _ADRENAL_CENTER[side]
    pose = patient.pose(f"{side} adrenal gland", center, shift_mm=3.0, scale=0.06, turn=9.0)
    rng = patient.rng(f"{side} adrenal gland")
    thickness = 1.75 * float(np.exp(np.clip(rng.normal(0, 0.12), -0.25, 0.25)))
    spread = float(rng.uniform(0.25, 0.5))

    def solids(points: Points) -> list[np.ndarray]:
        x, y, z = pose.to_organ(points)
        x, y, z = (x - center[0]) * np.float32(sign), y - center[1], z - center[2]
        # An upside-down Y: one body at the top and front, two limbs that part toward the feet and the back.
        part = spread * np.clip(12 - z, 0, 40)
        body = shapes.sheet((x, y, z), (0, -10), (0, -2))
        outer = shapes.sheet((x - part * np.clip(y + 2, 0, 30) / 22, y, z), (0, -2), (6, 15))
        inner = shapes.sheet((x + part * np.clip(y + 2, 0, 30) / 30, y, z), (0, -2), (-5, 13))
        nearest = shapes.union(shapes.union(body, outer, 2.0), inner, 2.0)
        taper = np.float32(thickness) * np.sqrt(np.clip(1 - (z / 20) ** 2, 0.05, 1))
        solid = np.maximum(nearest - taper, np.abs(z) - 17)
        return [torso.inside(points, pose.distance(solid))]

    layer = Layer(hu=patient.hu["adrenal"], label=_VALUE[f"{side} adrenal gland"])
    box = _around(center, (42, 42, 38))
    return Structure(name=f"{side} adrenal gland", box=box, step_mm=1.4, solids=solids, layers=(layer,))


def _pancreas(patient: Patient, torso: Torso) -> Structure:
    pose, path = _bent(patient, "pancreas", _PANCREAS, (0, -15, 15), wander_mm=3.5, count=26)
    rng = patient.rng("pancreas lobes")
    path[:, 3] += 0.9 * np.sin(np.arange(len(path)) * rng.uniform(1.5, 2.2) + rng.uniform(0, 6))
    fading = float(rng.uniform(0, 28))  # lobules with fat between them in older patients

    def solids(points: Points) -> list[np.ndarray]:
        solid = shapes.tube(pose.to_organ(points), path, (1.0, 1.12, 0.9))
        return [torso.inside(points, pose.distance(solid))]

    layer = Layer(
        hu=patient.hu["pancreas"] - 0.5 * fading, texture_hu=9 + fading / 2, label=_VALUE["pancreas"], blur_mm=2.5
    )
    box = _path_box(pose, path, 8)
    return Structure(name="pancreas", box=box, step_mm=2.5, solids=solids, layers=(layer,))


def _hollow(patient: Patient, torso: Torso, name: str, knots: tuple, *, squash: Vector, wall_mm: float) -> Structure:
    """Stomach or duodenum: a wall around content, with gas where it rises to, the front."""
    wide = 0.16 if name == "stomach" else 0.09
    middle = np.mean(np.array(knots)[:, :3], axis=0)
    pose, path = _bent(patient, name, knots, (middle[0], middle[1], middle[2]), wander_mm=4.0, count=24, wide=wide)
    rng = patient.rng(f"{name} content")
    front, back = path[:, 1].min() - path[:, 3].max(), path[:, 1].max()
    level = float(front + rng.uniform(0.0, 0.5 if name == "stomach" else 0.4) * (back - front))
    if name == "duodenum" and rng.random() < 0.4:
        level = -1e3  # no gas
    value = _VALUE[name]

    def solids(points: Points) -> list[np.ndarray]:
        local = pose.to_organ(points)
        solid = torso.inside(points, pose.distance(shapes.tube(local, path, squash)))
        content = solid + np.float32(wall_mm)
        return [solid, content, np.maximum(content, local[1] - np.float32(level))]

    layers = (
        Layer(hu=patient.hu[f"{name} wall"], texture_hu=8, label=value, blur_mm=0.8),
        Layer(hu=patient.hu["stomach content" if name == "stomach" else "bowel content"], texture_hu=14, only_in=value),
        Layer(hu=patient.hu["gas"], texture_hu=6, only_in=value),
    )
    return Structure(name=name, box=_path_box(pose, path, 8), step_mm=2.5, solids=solids, layers=layers)


def _gallbladder(patient: Patient, torso: Torso) -> Structure:
    pose, path = _bent(patient, "gallbladder", _GALLBLADDER, (-44, -40, 20), wander_mm=2.0, count=10, wide=0.13)

    def solids(points: Points) -> list[np.ndarray]:
        solid = torso.inside(points, pose.distance(shapes.tube(pose.to_organ(points), path)))
        return [solid, solid + 2]

    value = _VALUE["gallbladder"]
    layers = (
        Layer(hu=patient.hu["bowel wall"], label=value),
        Layer(hu=patient.hu["bile"], texture_hu=4, only_in=value, blur_mm=1.0),
    )
    return Structure(name="gallbladder", box=_path_box(pose, path, 6), step_mm=2.0, solids=solids, layers=layers)


def _esophagus(patient: Patient) -> Structure:
    pose, path = _bent(patient, "esophagus", _ESOPHAGUS, (26, -2, 112), wander_mm=2.5, count=24)
    rng = patient.rng("esophagus content")
    opening = 5.0 if rng.random() < 0.35 else 20.0
    value = _VALUE["esophagus"]

    def solids(points: Points) -> list[np.ndarray]:
        solid = pose.distance(shapes.tube(pose.to_organ(points), path, (1.0, 1.1, 1.0)))
        return [solid, solid + np.float32(opening)]

    layers = (
        Layer(hu=patient.hu["esophagus"], texture_hu=7, label=value, blur_mm=0.8),
        Layer(hu=patient.hu["gas"], only_in=value),
    )
    return Structure(name="esophagus", box=_path_box(pose, path, 4), step_mm=2.5, solids=solids, layers=layers)


def _vessel(patient: Patient, name: str, tissue: str, knots: tuple, squash: Vector, wide: float) -> Structure:
    pose, path = _bent(patient, name, knots, (0, 20, 30), wander_mm=2.5, count=26, wide=wide)
    calcified = name == "aorta" and patient.rng("calcium").random() < 0.4
    phase = patient.rng("calcium place").uniform(0, 6)

    def solids(points: Points) -> list[np.ndarray]:
        local = pose.to_organ(points)
        solid = pose.distance(shapes.tube(local, path, squash))
        if not calcified:
            return [solid]
        # Plaques: short stretches of one side of the wall.
        x, y, z = local
        place = np.sin(z / 9 + phase) + np.sin((x + y) / 5 + z / 17)
        return [solid, np.maximum(np.abs(solid + 1.2) - 1.4, (1.45 - place) * 5)]

    layers = [Layer(hu=patient.hu[tissue], texture_hu=6, label=_VALUE[name])]
    if calcified:
        layers.append(Layer(hu=650, texture_hu=60))
    box = _path_box(pose, path, 4)
    return Structure(name=name, box=box, step_mm=2.5, solids=solids, layers=tuple(layers))


def _bent(
    patient: Patient, name: str, knots: tuple, anchor: Vector, *, wander_mm: float, count: int, wide: float = 0.1
) -> tuple[Pose, np.ndarray]:
    """An organ's pose and its own course of a template curve: every knot moved a little, the whole wider or thinner."""
    rng = patient.rng(f"course {name}")
    moved = np.array(knots, float)
    moved[:, :3] += wander_mm * np.clip(rng.normal(size=(len(moved), 3)), -2, 2)
    moved[:, 3] *= np.exp(wide * np.clip(rng.normal(), -2, 2) + 0.06 * np.clip(rng.normal(size=len(moved)), -2, 2))
    path = shapes.curve(moved, count)
    path[:, 3] = np.maximum(path[:, 3], 1.0)
    return patient.pose(name, anchor, shift_mm=3.0, scale=0.04, turn=3.0), path


def _path_box(pose: Pose, path: np.ndarray, margin_mm: float) -> Box:
    centers = pose.to_patient(path[:, :3])
    reach = path[:, 3].max() * max(pose.scale) * 1.15 + margin_mm
    low, high = centers.min(axis=0) - reach, centers.max(axis=0) + reach
    return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))


def _around(center: Vector, half: Vector) -> Box:
    low = (center[0] - half[0], center[1] - half[1], center[2] - half[2])
    return low, (center[0] + half[0], center[1] + half[1], center[2] + half[2])
