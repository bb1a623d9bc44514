"""FLARE22, the home task, as data: its 13 organs, their label values and how they are scored.

Source: FLARE22 challenge, https://flare22.grand-challenge.org, and its evaluation script (NSD tolerances in mm).
"""

from flaresemi.labels import Label, LabelSet

_ORGANS: tuple[tuple[str, float], ...] = (
    ("liver", 5.0),
    ("right kidney", 3.0),
    ("spleen", 3.0),
    ("pancreas", 5.0),
    ("aorta", 2.0),
    ("inferior vena cava", 2.0),
    ("right adrenal gland", 2.0),
    ("left adrenal gland", 2.0),
    ("gallbladder", 2.0),
    ("esophagus", 3.0),
    ("stomach", 5.0),
    ("duodenum", 7.0),
    ("left kidney", 3.0),
)

#: Tubes that annotators cut off where the field or their patience ends: scored in the reference's z-range only.
_Z_RANGE = ("aorta", "inferior vena cava", "esophagus")

LABELS = LabelSet(
    labels=tuple(
        Label(name=name, value=index + 1, tolerance_mm=tolerance, z_range=name in _Z_RANGE)
        for index, (name, tolerance) in enumerate(_ORGANS)
    ),
    mirror_pairs=(("right kidney", "left kidney"), ("right adrenal gland", "left adrenal gland")),
)
