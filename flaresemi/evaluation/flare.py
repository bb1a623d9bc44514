"""One case scored by FLARE's rules: Dice, surface Dice (NSD) and HD95 per organ.

Source: FLARE22's rules and scripts, https://github.com/JunMa11/FLARE.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from scipy import ndimage

from flaresemi.evaluation.metrics import Metric, measure
from flaresemi.evaluation.overlap import dice, without_ignored
from flaresemi.evaluation.surface import surface_distances
from flaresemi.geometry import FloatTriple
from flaresemi.labels import Label, LabelSet
from flaresemi.ranges import DistanceMm, OtherMetric, Share, VolumeMl

#: Below this Dice the official script does not compute the surface Dice and calls it 0. (As published for FLARE24; for
#: FLARE23 the floor is 0.1, and the script in FLARE22's folder has none.)
_OFFICIAL_DICE_FLOOR = 0.2

#: The official script rounds every score before it takes means.
_OFFICIAL_DIGITS = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OrganMetrics:
    """How well one organ of one case was found.

    Attributes:
        dice: 0 to 1; None where the case does not annotate the organ.
        nsd: Surface Dice at the organ's tolerance, 0 to 1; None where `dice` is, and next to ignored voxels.
        hd95_mm: Distance within which 95 percent of both surfaces lie; None also where a mask is empty.
        reference_ml: Volume of the organ in the whole reference, as far as it is annotated; None where `dice` is.
        prediction_ml: Volume of the organ in the whole prediction.
        more: Metrics of other packages, by name; None as they say, and where `dice` is.
    """

    dice: Share | None
    nsd: Share | None
    hd95_mm: DistanceMm | None
    reference_ml: VolumeMl | None
    prediction_ml: VolumeMl
    more: dict[str, OtherMetric | None] = dataclasses.field(default_factory=dict)


def evaluate_case(
    prediction_zyx: np.ndarray,
    reference_zyx: np.ndarray,
    spacing_zyx_mm: FloatTriple,
    labels: LabelSet,
    *,
    default_tolerance_mm: float,
    annotated: Collection[str] | None = None,
    official: bool = False,
    metrics: Mapping[str, Metric] | None = None,
) -> tuple[OrganMetrics, ...]:
    """Scores every organ of one case.

    Both masks empty: Dice and NSD are 1. One empty: 0. Organs that are marked `z_range` count only between the first
    and the last slice of the reference, where it has any.

    Voxels that nobody annotated in the reference count nowhere. An organ that neither map has elsewhere is not scored:
    it may be there. Its surface is not scored where such voxels touch the box about it.

    Args:
        prediction_zyx: Internal indices (0 background); axis 0 is that of a z-range: on the canonical grid it runs from
            the feet up, in the organizers' scripts it is the file's, wherever that leads.
        reference_zyx: The same, of the same shape.
        spacing_zyx_mm: Distance between voxel centers.
        labels: The organs.
        default_tolerance_mm: Tolerance of the surface Dice of organs that name none.
        annotated: Names of the organs that the reference annotates; None: all. The others are not scored.
        official: Do as the organizers' scripts do: leave out the last slice of a z-range, call the NSD 0 where Dice
            is below 0.2, round scores to four digits.
        metrics: Of other packages, by name; they get the whole masks, whatever `z_range` says.

    Returns:
        A score per organ, in the order of the label set.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction_zyx.shape != reference_zyx.shape:
        raise ValueError(f"maps of one shape expected, found {prediction_zyx.shape} and {reference_zyx.shape}")
    known = _Known(prediction_zyx, reference_zyx, labels)
    prediction_zyx, reference_zyx, _ = without_ignored(prediction_zyx, reference_zyx, labels)
    voxel_ml = float(np.prod(spacing_zyx_mm)) / 1000.0
    found = [ndimage.find_objects(each, max_label=labels.channels - 1) for each in (prediction_zyx, reference_zyx)]
    scores = []
    for organ, (label, indices) in enumerate(zip(labels.labels, labels.members, strict=True), start=1):
        box = _around(boxes[index - 1] for boxes in found for index in indices)
        prediction, reference = (labels.mask(each[box], organ) for each in (prediction_zyx, reference_zyx))
        scored = (annotated is None or label.name in annotated) and (
            known.everywhere or prediction.any() or reference.any()
        )
        overlap = surface = hd95_mm = None
        if scored:
            tolerance_mm = default_tolerance_mm if label.tolerance_mm is None else label.tolerance_mm
            if known.about(box):
                overlap, surface, hd95_mm = _score(prediction, reference, spacing_zyx_mm, label, tolerance_mm, official)
            else:
                overlap = _overlap(*_scored_slices(prediction, reference, label, official), official)
        scores.append(
            OrganMetrics(
                dice=overlap,
                nsd=surface,
                hd95_mm=hd95_mm,
                reference_ml=np.count_nonzero(reference) * voxel_ml if scored else None,
                prediction_ml=(np.count_nonzero(prediction) if known.everywhere else known.voxels[organ - 1])
                * voxel_ml,
                more=measure(metrics or {}, prediction, reference, spacing_zyx_mm)
                if scored
                else dict.fromkeys(metrics or {}),
            )
        )
    return tuple(scores)


def _score(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_zyx_mm: FloatTriple,
    label: Label,
    tolerance_mm: float,
    official: bool,
) -> tuple[float, float, float | None]:
    """Dice, NSD and HD95 of one organ's masks, given in a box about both."""
    prediction, reference = _scored_slices(prediction, reference, label, official)
    overlap = dice(prediction, reference)
    if not prediction.any() or not reference.any():
        return overlap, overlap, None
    distances = surface_distances(prediction, reference, spacing_zyx_mm)
    surface, hd95_mm = distances.surface_dice(tolerance_mm), distances.hausdorff_mm(95.0)
    if official:
        surface = 0.0 if overlap < _OFFICIAL_DICE_FLOOR else surface
        overlap, surface = round(overlap, _OFFICIAL_DIGITS), round(surface, _OFFICIAL_DIGITS)
    return overlap, surface, hd95_mm


def _overlap(prediction: np.ndarray, reference: np.ndarray, official: bool) -> float:
    overlap = dice(prediction, reference)
    return round(overlap, _OFFICIAL_DIGITS) if official else overlap


def _scored_slices(
    prediction: np.ndarray, reference: np.ndarray, label: Label, official: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of one organ, of a tube in the reference's slices alone."""
    if not label.z_range or not reference.any():
        return prediction, reference
    kept = _reference_slices(reference, official)
    return prediction[kept], reference[kept]


class _Known:
    """Where somebody has annotated a reference.

    Attributes:
        everywhere: All of it.
        voxels: Of each organ, in the whole prediction; empty where all is annotated.
    """

    def __init__(self, prediction_zyx: np.ndarray, reference_zyx: np.ndarray, labels: LabelSet) -> None:
        ignored = reference_zyx == labels.ignored
        self.everywhere = not ignored.any()
        self._ignored = None if self.everywhere else ignored
        self.voxels = (
            np.empty(0, np.int64)
            if self.everywhere
            else labels.per_organ(np.bincount(prediction_zyx.ravel(), minlength=labels.channels))
        )

    def about(self, box: tuple[slice, ...]) -> bool:
        """Whether all of a box and the voxels next to it is annotated: else a surface may only be where that ends."""
        if self._ignored is None:
            return True
        return not self._ignored[tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)].any()


def _reference_slices(reference: np.ndarray, official: bool) -> slice:
    """From the first to the last slice of a reference that is not empty."""
    present = np.flatnonzero(reference.any(axis=(1, 2)))
    first, last = int(present[0]), int(present[-1])
    # The official script slices up to the last slice's index, which leaves that slice out; of a reference of one slice
    # nothing would remain (there it fails), so that one is kept.
    return slice(first, max(last, first + 1) if official else last + 1)


def _around(boxes: Iterable[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    """The box about boxes of `ndimage.find_objects`; an empty box when all are None."""
    there = [box for box in boxes if box is not None]
    if not there:
        return (slice(0, 0),) * 3
    return tuple(slice(min(side.start for side in sides), max(side.stop for side in sides)) for sides in zip(*there))
