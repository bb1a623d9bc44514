"""The unlabeled surroundings of the organs: bowel, vessels, heart, muscles, lesions. It is there to mislead."""

import numpy as np

from flaresemi import flare22
from flaresemi.phantom import shapes
from flaresemi.phantom.organs import Box, liver_solid
from flaresemi.phantom.patient import Layer, Patient, Structure
from flaresemi.phantom.shapes import Points
from flaresemi.phantom.torso import Torso

_LIVER = flare22.LABELS.labels[flare22.LABELS.index("liver") - 1].value

_COLON = {
    "ascending": ((-88, -10, -135, 26), (-100, 4, -100, 25), (-101, 2, -65, 23), (-90, -18, -34, 22)),
    "transverse": ((-84, -40, -36, 20), (-45, -70, -48, 19), (5, -76, -50, 18), (55, -70, -24, 18), (96, -30, 10, 18)),
    "descending": ((108, -8, 14, 17), (108, 16, -30, 15), (104, 18, -80, 15), (96, 4, -140, 15)),
    "sigmoid": ((92, 0, -145, 15), (62, -20, -185, 16), (20, -2, -205, 17), (4, 24, -235, 18), (2, 34, -280, 20)),
}  # fmt: skip

#: Vessels: knots (x, y, z, radius) and the tissue that gives their HU.
_VESSELS = {
    "superior mesenteric vein": (((-4, -22, -110, 4), (-8, -18, -40, 5.5), (-6, -17, 6, 6)), "portal vein"),
    "portal vein": (((-6, -17, 6, 6.5), (-22, -12, 28, 7), (-42, -12, 46, 6.5)), "portal vein"),
    "splenic vein": (((-6, -16, 8, 4.5), (24, -14, 22, 4.5), (56, -2, 36, 4), (88, 14, 52, 3.5)), "portal vein"),
    "superior mesenteric artery": (((8, 12, 18, 4), (6, -6, 6, 3.8), (4, -16, -30, 3.6), (6, -20, -100, 3)), "aorta"),
    "celiac trunk": (((9, 12, 36, 3.6), (6, 0, 38, 3.4), (-18, -8, 36, 2.8)), "aorta"),
    "left renal vein": (((-10, 14, 4, 5), (14, 8, 4, 4.5), (46, 30, 4, 5)), "vena cava"),
    "right renal vein": (((-28, 20, -4, 5), (-48, 32, -6, 4.6)), "vena cava"),
    "left renal artery": (((16, 22, 0, 3), (46, 34, 2, 2.8)), "aorta"),
    "right renal artery": (((0, 24, 0, 3), (-20, 33, -2, 2.8), (-46, 36, -6, 2.6)), "aorta"),
    "right common iliac artery": (((3, 20, -98, 6), (-26, 14, -150, 5.5), (-48, -10, -210, 5)), "aorta"),
    "left common iliac artery": (((3, 20, -98, 6), (28, 14, -150, 5.5), (50, -10, -210, 5)), "aorta"),
    "right common iliac vein": (((-12, 22, -104, 8), (-30, 20, -150, 7), (-50, 0, -210, 6)), "vena cava"),
    "left common iliac vein": (((-10, 24, -106, 8), (26, 24, -150, 7), (48, 0, -210, 6)), "vena cava"),
}  # fmt: skip

_HEPATIC = {
    "right portal branch": ((-42, -12, 46, 6), (-70, -14, 52, 4.5), (-100, -4, 40, 3)),
    "left portal branch": ((-42, -12, 46, 6), (-30, -34, 60, 4.5), (0, -52, 74, 3)),
    "right hepatic vein": ((-24, 6, 108, 5), (-60, 4, 92, 4.5), (-100, 6, 60, 2.5)),
    "middle hepatic vein": ((-24, 2, 108, 5), (-48, -24, 82, 4), (-62, -44, 40, 2.5)),
    "left hepatic vein": ((-22, -2, 110, 5), (-4, -34, 96, 4), (20, -56, 84, 2.5)),
}

_MUSCLES = {
    "right psoas": ((-22, 50, 24, 8), (-34, 48, -40, 18), (-44, 40, -110, 23), (-56, 14, -190, 21), (-64, -9, -250, 8)),
    "left psoas": ((22, 50, 24, 8), (34, 48, -40, 18), (44, 40, -110, 23), (56, 14, -190, 21), (64, -9, -250, 8)),
    "right crus": ((-24, 6, 98, 4), (-20, 22, 74, 5), (-15, 29, 30, 5), (-11, 33, -20, 4)),
    "left crus": ((24, 8, 98, 4), (24, 24, 70, 5), (20, 31, 30, 5), (15, 34, -14, 4)),
    "right quadratus": ((-62, 70, 6, 9), (-66, 68, -50, 15), (-70, 62, -110, 14)),
    "left quadratus": ((62, 70, 6, 9), (66, 68, -50, 15), (70, 62, -110, 14)),
}  # fmt: skip


def bowel(patient: Patient, torso: Torso) -> list[Structure]:
    """Colon and small bowel; painted before the organs, which push them aside."""
    rng = patient.rng("bowel")
    structures = [
        _loop(patient, torso, f"{name} colon", _wandered(rng, knots, 7.0), haustra=2.2)
        for name, knots in _COLON.items()
    ]
    for index in range(int(rng.integers(20, 28))):
        near_stomach = index < 4
        low, high = ((30, -72, -42), (92, -22, 14)) if near_stomach else ((-78, -78, -190), (88, 0, -22))
        places = [rng.uniform(low, high)]
        heading = rng.normal(size=3)
        for _ in range(4):
            inward = (np.add(low, high) / 2 - places[-1]) / np.subtract(high, low)
            heading = 0.6 * heading / np.linalg.norm(heading) + 0.7 * rng.normal(size=3) + inward
            places.append(np.clip(places[-1] + 24 * heading / np.linalg.norm(heading), low, high))
        radii = rng.uniform(8.5, 14) * rng.uniform(0.85, 1.15, len(places))
        knots = np.concatenate([np.array(places), radii[:, None]], axis=1)
        structures.append(_loop(patient, torso, f"small bowel {index}", knots, haustra=0.5))
    return structures


def vessels(patient: Patient) -> list[Structure]:
    """Branches of the great vessels and the portal system; painted over the organs that they cross."""
    return [
        _solid_tube(patient, name, knots, Layer(hu=patient.hu[tissue], label=0), wander_mm=3.0)
        for name, (knots, tissue) in _VESSELS.items()
    ]


def muscles(patient: Patient) -> list[Structure]:
    """Psoas, quadratus and the crura of the diaphragm, which look like adrenals and vessels without contrast."""
    layer = Layer(hu=patient.hu["muscle"], texture_hu=9)
    return [_solid_tube(patient, name, knots, layer, wander_mm=2.5) for name, knots in _MUSCLES.items()]


def liver_inside(patient: Patient, torso: Torso) -> list[Structure]:
    """Vessels of the liver and, in some patients, cysts or tumors. They belong to the liver's label."""
    hu = patient.hu
    layer = Layer(hu=0.75 * hu["portal vein"] + 0.25 * hu["liver"], only_in=_LIVER, blur_mm=1.5)
    structures = [_solid_tube(patient, name, knots, layer, wander_mm=5.0) for name, knots in _HEPATIC.items()]
    rng = patient.rng("lesions")
    if rng.random() < 0.3:
        structures += [_lesion(patient, torso, rng, index) for index in range(int(rng.integers(1, 5)))]
    return structures


def heart(patient: Patient, torso: Torso) -> Structure:
    """Heart in its fat, on the diaphragm; bladder-like smoothness, blood inside."""
    pose = patient.pose("heart", (18, -36, 158), shift_mm=5.0, scale=0.05)
    tilt = shapes.rotation_matrix((0, 25, -35))
    center = np.array((20.0, -38.0, 158.0))

    def solids(points: Points) -> list[np.ndarray]:
        local = shapes.moved(pose.to_organ(points), tilt, center - tilt @ center)
        fat = shapes.intersection(shapes.ellipsoid(local, (20, -38, 158), (70, 50, 50)), torso.cavity(points) + 2, 8.0)
        fat = np.maximum(fat, 2 - torso.above_diaphragm(points))
        muscle = shapes.intersection(fat + 5, 5 - torso.above_diaphragm(points), 6.0)
        return [fat, muscle, np.maximum(muscle + 9, np.abs(local[0] - 22) * -1 + 5)]

    return Structure(
        name="heart",
        box=((-75, -110, 80), (115, 40, 240)),
        step_mm=4.0,
        solids=solids,
        layers=(
            Layer(hu=patient.hu["fat"] + 15, texture_hu=10, label=0),
            Layer(hu=patient.hu["muscle"] * 1.3, label=0),
            Layer(hu=patient.hu["heart"], texture_hu=6),
        ),
    )


def bladder(patient: Patient) -> Structure:
    """The urinary bladder, in fields that reach the pelvis."""
    pose = patient.pose("bladder", (0, -35, -240), shift_mm=5.0, scale=0.15)
    return Structure(
        name="bladder",
        box=((-75, -105, -315), (75, 35, -165)),
        step_mm=4.0,
        solids=lambda points: [shapes.ellipsoid(pose.to_organ(points), (0, -35, -240), (46, 38, 40))],
        layers=(Layer(hu=patient.hu["urine"], texture_hu=3),),
    )


def _lesion(patient: Patient, torso: Torso, rng: np.random.Generator, index: int) -> Structure:
    center = (float(rng.uniform(-105, 20)), float(rng.uniform(-60, 30)), float(rng.uniform(20, 100)))
    radius = float(rng.uniform(5, 24))
    liver = liver_solid(patient, torso)
    if rng.random() < 0.4:
        layer = Layer(hu=patient.hu["cyst"], texture_hu=3, only_in=_LIVER)
    else:
        hu = patient.hu["liver"] - float(rng.uniform(15, 45))
        layer = Layer(hu=hu, texture_hu=12, only_in=_LIVER, blur_mm=4.0)

    def solids(points: Points) -> list[np.ndarray]:
        ball = shapes.ellipsoid(points, center, (radius, radius * 0.9, radius * 1.1))
        return [np.maximum(ball, liver(points) + 2)]

    box = _box(np.array([[*center, 1.1 * radius]]), 4)
    return Structure(name=f"lesion {index}", box=box, step_mm=2.5, solids=solids, layers=(layer,))


def _loop(patient: Patient, torso: Torso, name: str, knots: np.ndarray, haustra: float) -> Structure:
    rng = patient.rng(name)
    path = shapes.curve(knots, 22 if haustra > 1 else 14)
    path[:, 3] = np.maximum(path[:, 3] + haustra * np.sin(np.arange(len(path)) * 1.9 + rng.uniform(0, 6)), 4)
    colon = haustra > 1
    level = float(path[:, 1].mean() + rng.uniform(-14, 4 if colon else -4))
    content = Layer(hu=patient.hu["bowel content"], texture_hu=10)
    if colon:
        content = Layer(hu=patient.hu["feces"] + float(rng.uniform(-60, 60)), texture_hu=float(rng.uniform(25, 110)))

    def solids(points: Points) -> list[np.ndarray]:
        solid = torso.inside(points, shapes.tube(points, path), gap_mm=2.0)
        inside = solid + np.float32(2.5)
        return [solid, inside, np.maximum(inside, points[1] - np.float32(level))]

    return Structure(
        name=name,
        box=_box(path, 3),
        step_mm=3.0,
        solids=solids,
        layers=(Layer(hu=patient.hu["bowel wall"], texture_hu=7), content, Layer(hu=patient.hu["gas"])),
    )


def _solid_tube(patient: Patient, name: str, knots: tuple, layer: Layer, *, wander_mm: float) -> Structure:
    path = shapes.curve(_wandered(patient.rng(name), knots, wander_mm, keep_first=True), 12)
    return Structure(
        name=name,
        box=_box(path, 3),
        step_mm=2.0,
        solids=lambda points: [shapes.tube(points, path)],
        layers=(layer,),
    )


def _wandered(rng: np.random.Generator, knots: tuple, by_mm: float, keep_first: bool = False) -> np.ndarray:
    moved = np.array(knots, float)
    start = 1 if keep_first else 0
    moved[start:, :3] += by_mm * np.clip(rng.normal(size=(len(moved) - start, 3)), -2, 2)
    moved[:, 3] *= np.exp(0.1 * np.clip(rng.normal(size=len(moved)), -2, 2))
    return moved


def _box(path: np.ndarray, margin_mm: float) -> Box:
    reach = path[:, 3].max() + margin_mm
    low, high = path[:, :3].min(axis=0) - reach, path[:, :3].max(axis=0) + reach
    return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))
