"""Hounsfield units of tissues in the four phases of a contrast injection.

Source: typical values of abdominal CT in radiology textbooks; the spread between patients is chosen: neighbors overlap,
so that intensity alone does not tell organs apart.
"""

import numpy as np

PHASES = ("none", "arterial", "portal", "delayed")

#: Most scans of abdominal collections are portal venous.
PHASE_WEIGHTS = (0.12, 0.18, 0.53, 0.17)

#: Mean HU per phase (none, arterial, portal, delayed).
ENHANCING: dict[str, tuple[float, float, float, float]] = {
    "liver": (56, 70, 108, 90),
    "spleen": (47, 115, 118, 92),
    "kidney cortex": (33, 165, 170, 130),
    "kidney medulla": (30, 70, 145, 135),
    "renal pelvis": (8, 10, 20, 320),
    "pancreas": (40, 98, 96, 74),
    "aorta": (40, 300, 150, 110),
    "portal vein": (40, 95, 160, 112),
    "vena cava": (38, 80, 128, 108),
    "heart": (40, 210, 145, 108),
    "adrenal": (30, 72, 74, 56),
    "stomach wall": (38, 72, 84, 68),
    "duodenum wall": (38, 76, 88, 70),
    "esophagus": (36, 56, 66, 58),
    "bowel wall": (36, 72, 84, 68),
    "muscle": (52, 56, 63, 60),
}

#: Mean HU of what takes up no contrast.
PLAIN: dict[str, float] = {
    "air": -1000,
    "lung": -845,
    "fat": -104,
    "skin": 10,
    "bile": 8,
    "fluid": 14,
    "feces": -20,
    "gas": -920,
    "bone": 520,
    "marrow": 170,
    "disc": 85,
    "canal": 22,
    "cartilage": 95,
    "urine": 6,
    "cyst": 6,
}

#: HU that differ between patients by less than an organ's.
_SPREAD_HU = 7.0


def draw_hu(rng: np.random.Generator, phase: str) -> dict[str, float]:
    """The HU of every tissue in one patient: phase, strength of the injection, fatty liver, and a spread."""
    index = PHASES.index(phase)
    strength = rng.uniform(0.72, 1.25)
    drawn = {
        name: values[0] + strength * (values[index] - values[0]) + rng.normal(0, _SPREAD_HU)
        for name, values in ENHANCING.items()
    }
    drawn |= {name: value + rng.normal(0, 0.4 * _SPREAD_HU) for name, value in PLAIN.items()}
    drawn["air"] = -1000.0
    if rng.random() < 0.15:
        drawn["liver"] -= rng.uniform(20, 55)
    # Mesentery between the organs: clean fat in most, hazy in some, nearly water in the cachectic.
    drawn["visceral fat"] = drawn["fat"] + abs(rng.normal(0, 14)) + _sometimes(rng, 0.12, 25, 60)
    # Some have drunk contrast.
    drawn["stomach content"] = drawn["fluid"] + rng.uniform(0, 35) + _sometimes(rng, 0.15, 80, 220)
    drawn["bowel content"] = drawn["fluid"] + rng.uniform(0, 25) + _sometimes(rng, 0.2, 80, 220)
    drawn["bile"] += _sometimes(rng, 0.1, 15, 40)  # sludge
    return drawn


def _sometimes(rng: np.random.Generator, chance: float, low: float, high: float) -> float:
    happens, amount = rng.random(2)
    return low + amount * (high - low) if happens < chance else 0.0
