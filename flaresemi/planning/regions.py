"""The spacing of the data and the extents of body and organs in mm, from a fingerprint."""

import dataclasses
import math

import numpy as np

from flaresemi.geometry import FloatTriple, resampled_shape
from flaresemi.plans import CaseFingerprint, DatasetFingerprint

#: An axis is anisotropic beyond this ratio of spacing, and of voxels, to the other axes. Source: nnU-Net.
ANISOTROPY = 3.0

#: Labels contradict the body crop where it leaves out more than this part of an organ in a case. Chosen: stray voxels
#: in the air are less, and losing as much is worse than resampling some air.
LOST_SHARE = 0.01

#: Where no case annotates every organ, the organs' box is this percentile of the cases' boxes. Chosen: near the
#: largest, since each is of some organs alone.
PARTIAL_PERCENTILE = 90


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extents:
    """Sizes over the labeled cases, (Z, Y, X) mm, each axis on its own.

    Attributes:
        body_mm: Median of the body boxes.
        large_body_mm: Their 95th percentile.
        organs_mm: Median of the organs' boxes with the margin on every face, each cut to its body, over the cases that
            annotate every organ; the 90th percentile of all where none does, whose boxes are too small. None when no
            case has a labeled voxel.
    """

    body_mm: FloatTriple
    large_body_mm: FloatTriple
    organs_mm: FloatTriple | None


def measure_extents(fingerprint: DatasetFingerprint, margin_mm: float) -> Extents:
    """Summarizes the boxes of a fingerprint."""
    bodies = np.array([_extent(case.body_box.shape_zyx, case.spacing_zyx_mm) for case in fingerprint.cases])
    cases, are_complete = telling_cases(fingerprint)
    organs = [_organs_with_margin(case, margin_mm) for case in cases]
    middle = 50 if are_complete else PARTIAL_PERCENTILE
    return Extents(
        body_mm=_triple(np.median(bodies, axis=0)),
        large_body_mm=_triple(np.percentile(bodies, 95, axis=0)),
        organs_mm=_triple(np.percentile(np.array(organs), middle, axis=0)) if organs else None,
    )


def telling_cases(fingerprint: DatasetFingerprint) -> tuple[list[CaseFingerprint], bool]:
    """The cases that tell how large organs are, and whether they annotate every organ.

    Those with a labeled voxel that annotate all; where there are none, those that annotate some.
    """
    labeled = [case for case in fingerprint.cases if case.foreground_box is not None]
    complete = [case for case in labeled if all(case.annotated)]
    return (complete, True) if complete else (labeled, False)


def largest_organ_mm3(fingerprint: DatasetFingerprint) -> float | None:
    """Volume of the largest organ of a case, the median over `telling_cases`; None where none has a labeled voxel.

    It is what COARSE finds last as its voxels grow.
    """
    found = [max(case.voxels_per_label) * math.prod(case.spacing_zyx_mm) for case in telling_cases(fingerprint)[0]]
    return float(np.median(found)) if found else None


def median_organs_mm3(fingerprint: DatasetFingerprint) -> dict[str, float]:
    """Volume of each organ, the median over the cases that have it; without those that none has."""
    found: dict[str, list[float]] = {}
    for case in fingerprint.cases:
        for name, voxels in zip(fingerprint.labels.names, case.voxels_per_label, strict=True):
            if voxels:
                found.setdefault(name, []).append(voxels * math.prod(case.spacing_zyx_mm))
    return {name: float(np.median(volumes)) for name, volumes in found.items()}


def target_spacing(fingerprint: DatasetFingerprint) -> tuple[FloatTriple, str]:
    """The spacing that FINE starts from, (Z, Y, X) mm, and why.

    The median of each axis; where the coarsest axis is more than three times coarser than the others and has more than
    three times fewer voxels, the 10th percentile on that axis, but nothing finer than the others.

    Source: nnU-Net (doi 10.1038/s41592-020-01008-z).
    """
    spacings = np.array([case.spacing_zyx_mm for case in fingerprint.cases])
    target = [significant(float(value)) for value in np.median(spacings, axis=0)]
    reason = f"median spacing of {len(spacings)} labeled case{'s' if len(spacings) > 1 else ''}"
    median = (target[0], target[1], target[2])
    shapes = [resampled_shape(case.body_box.shape_zyx, case.spacing_zyx_mm, median) for case in fingerprint.cases]
    shape = np.median(np.array(shapes), axis=0)
    worst = max(range(3), key=lambda axis: target[axis])
    others = [axis for axis in range(3) if axis != worst]
    coarse = target[worst] > ANISOTROPY * max(target[axis] for axis in others)
    if coarse and shape[worst] * ANISOTROPY < min(shape[axis] for axis in others):
        low = significant(float(np.percentile(spacings[:, worst], 10)))
        target[worst] = max(low, *(target[axis] for axis in others))
        reason += (
            f"; axis {'zyx'[worst]} is over {ANISOTROPY:g} times coarser and shorter than the others, hence its "
            f"10th percentile, {target[worst]:g} mm, not its median {median[worst]:g}"
        )
    return (target[0], target[1], target[2]), reason


def significant(value: float) -> float:
    """Five significant digits: what a person can read, and far below a voxel over a whole scan."""
    return float(f"{value:.5g}")


def _organs_with_margin(case: CaseFingerprint, margin_mm: float) -> FloatTriple:
    if case.foreground_box is None:
        raise ValueError(f"case {case.case_id} has no labeled voxel")
    organs = np.array(_extent(case.foreground_box.shape_zyx, case.spacing_zyx_mm))
    return _triple(np.minimum(organs + 2 * margin_mm, _extent(case.body_box.shape_zyx, case.spacing_zyx_mm)))


def _extent(shape_zyx: tuple[int, int, int], spacing_zyx_mm: FloatTriple) -> FloatTriple:
    z, y, x = (size * spacing for size, spacing in zip(shape_zyx, spacing_zyx_mm, strict=True))
    return z, y, x


def _triple(values: np.ndarray) -> FloatTriple:
    return float(values[0]), float(values[1]), float(values[2])
