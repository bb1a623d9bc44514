"""Whether a round is losing an organ: what the models before and after it make of labeled cases and of the pool.

No case need be held out for that. Two facts are at hand: the Dice of the models on labeled cases that they were trained
on, which is the best that can be hoped for of other cases; and the volumes in the pool beside those in the labeled
cases, where a loss shows, whether the organ shrinks or is not found at all.
"""

import dataclasses
import math
import statistics
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from flaresemi.errors import DatasetError
from flaresemi.evaluation.overlap import dice_of_annotated
from flaresemi.evaluation.paired import mean_and_error
from flaresemi.pseudolabels.agreement import ABSENT_BELOW
from flaresemi.pseudolabels.labeling import LabelsCases
from flaresemi.ranges import Share, VolumeMl
from flaresemi.selection import CaseScore

SCHEMA_VERSION = 1

#: Cases that are looked at. From case to case, the part of an organ that is lost varies by 0.2 where it is not lost
#: everywhere (chosen as the usual size): of 32 cases the mean is then known to 0.035, and a loss of a tenth stands out
#: by three standard errors. Labeled ones are few anyway, and their Dice varies less.
LABELED_CASES, POOL_CASES = 8, 32

#: An organ is vanishing when the part of its volume that is missing rises by more than this in the pool, beyond three
#: standard errors: with 13 organs in each of several rounds, two would raise false alarms.
_RISE, _RISE_ERRORS = 0.10, 3.0

#: Or when its Dice on labeled cases falls by more than this, its standard error not counted, beyond what the other
#: organs lost, and by more than a third of what it was: a student that sees pseudo-labels as well fits the labeled
#: cases a little less closely, small organs least of all.
_FALL, _FALL_SHARE = 0.10, 1 / 3

#: Fewer cases of the pool than this say nothing.
_LEAST_POOL = 5

#: What is labeled systematically too small is no teacher: more than a quarter of the volume is missing beyond what the
#: labeled cases vary by, and more than two standard errors. Of few labeled cases these are taken to vary at least so
#: much, as patients do, whatever the two or three at hand say.
_SHORT, _SHORT_ERRORS, _LEAST_SPREAD = 0.25, 2.0, 0.2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OrganVitals:
    """An organ before and after a round.

    Attributes:
        labeled_ml: Median volume in the labeled cases that have it.
        found_before: Share of the cases of the pool in which the models before find it.
        found: By the students.
        volume_before_ml: Median volume in the same cases, absences among them.
        volume_ml: By the students.
        missing_before: Mean part of the labeled median that is missing in these cases; an absent organ misses all.
        missing: By the students.
        missing_labeled: The same in the labeled cases, which vary, too.
        dice_before: Mean Dice on labeled cases that the models were trained on; None where none of them has it.
        dice: Of the students.
        warning: Why it is said to be vanishing; empty where it is not.
    """

    labeled_ml: VolumeMl
    found_before: Share
    found: Share
    volume_before_ml: VolumeMl
    volume_ml: VolumeMl
    missing_before: Share
    missing: Share
    missing_labeled: Share
    dice_before: Share | None
    dice: Share | None
    warning: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What some models make of every organ.

    Attributes:
        made_with: Hashes of the models.
        dice: By labeled case that they were trained on, by organ that it has.
        volumes_ml: By case of the pool, by organ.
        organs: Beside the models before; empty for those themselves.
    """

    schema_version: int = SCHEMA_VERSION
    made_with: tuple[str, ...]
    dice: dict[str, dict[str, Share]]
    volumes_ml: dict[str, dict[str, VolumeMl]]
    organs: dict[str, OrganVitals] = dataclasses.field(default_factory=dict)

    @property
    def vanishing(self) -> dict[str, str]:
        """The organs that are vanishing, each with the reason."""
        return {name: organ.warning for name, organ in self.organs.items() if organ.warning}


def spread(case_ids: Sequence[str], count: int) -> tuple[str, ...]:
    """So many of the cases, the same ones each time, from all over the sorted list."""
    ordered = sorted(case_ids)
    if len(ordered) <= count:
        return tuple(ordered)
    return tuple(ordered[round(place)] for place in np.linspace(0, len(ordered) - 1, count))


def dice_of_labeled(labeler: LabelsCases, case_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Dice of every organ that a labeled case annotates and has, by case, on FINE's grid.

    Raises:
        FlaresemiError: a case is not prepared, or cannot be segmented.
    """
    found: dict[str, dict[str, float]] = {}
    labels = labeler.labels
    for case_id in _watched(case_ids):
        stored = labeler.fine_store.open(case_id)
        if stored.label_zyx is None:
            raise DatasetError(f"case '{case_id}' has no label map to compare with", where=stored.folder)
        overlap = dice_of_annotated(labeler.segment(case_id), np.asarray(stored.label_zyx), labels)
        voxels = labels.per_organ(np.array([0, *stored.record.voxels_per_label]))
        found[case_id] = {
            labels.names[organ - 1]: dice
            for organ in stored.record.supervised
            if voxels[organ - 1] > 0 and (dice := overlap[organ - 1]) is not None
        }
    return found


def volumes_of_pool(labeler: LabelsCases, case_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Volume of every organ, by case, ml.

    Raises:
        FlaresemiError: a case is not prepared, or cannot be segmented.
    """
    found: dict[str, dict[str, float]] = {}
    labels = labeler.labels
    for case_id in _watched(case_ids):
        voxel_ml = math.prod(labeler.fine_store.open(case_id).record.grid.spacing_zyx_mm) / 1000
        counts = labels.per_organ(np.bincount(labeler.segment(case_id).ravel(), minlength=labels.channels))
        found[case_id] = {name: float(count * voxel_ml) for name, count in zip(labels.names, counts, strict=True)}
    return found


def _watched(case_ids: Sequence[str]) -> tqdm:
    return tqdm(case_ids, desc="looking after organs", unit="case", disable=not sys.stderr.isatty())


def compared(
    start: Vitals, before: Vitals, after: Vitals, labeled_ml: Mapping[str, Sequence[float]]
) -> dict[str, OrganVitals]:
    """Every organ that a labeled case has, after a round, with a warning where it is vanishing.

    Args:
        start: Of the supervised models. A loss is measured from there as well as from the round before, so that many
            small ones are one.
        before: Of the models that labeled the round.
        after: Of its students.
        labeled_ml: By organ, volumes in the labeled cases that annotate it, 0 where it is absent.
    """
    references = {"before it": before}
    if start.made_with != before.made_with:
        references["at the start"] = start
    organs = {}
    for name, volumes in labeled_ml.items():
        median_ml = median_present(volumes)
        if median_ml:
            organs[name] = _compared(name, before, after, volumes, median_ml)
            reasons = [
                f"{reason} {since}"
                for since, reference in references.items()
                for reason in (_loss_in_pool(name, reference, after, volumes), _fall_of_dice(name, reference, after))
                if reason
            ]
            organs[name] = dataclasses.replace(organs[name], warning="; ".join(reasons))
    return organs


def _compared(name: str, before: Vitals, after: Vitals, labeled_ml: Sequence[float], median_ml: float) -> OrganVitals:
    pairs = _paired(before.volumes_ml, after.volumes_ml, name)
    volumes = [[pair[which] for pair in pairs] for which in (0, 1)]
    found = [_mean([float(each >= ABSENT_BELOW * median_ml) for each in of_it]) for of_it in volumes]
    missing = [_mean(_missing(of_it, median_ml)) for of_it in volumes]
    dices = _paired(before.dice, after.dice, name)
    return OrganVitals(
        labeled_ml=median_ml,
        found_before=found[0],
        found=found[1],
        volume_before_ml=statistics.median(volumes[0]) if pairs else 0.0,
        volume_ml=statistics.median(volumes[1]) if pairs else 0.0,
        missing_before=missing[0],
        missing=missing[1],
        missing_labeled=_mean(_missing(labeled_ml, median_ml)),
        dice_before=_mean([pair[0] for pair in dices]) if dices else None,
        dice=_mean([pair[1] for pair in dices]) if dices else None,
    )


def _loss_in_pool(name: str, before: Vitals, after: Vitals, labeled_ml: Sequence[float]) -> str:
    """Why an organ is vanishing in the pool; empty where it is not.

    A volume above the labeled median misses nothing, so that one which is cleaned of what did not belong to it is no
    loss; and what is missing must be more than in the labeled cases.
    """
    pairs = _paired(before.volumes_ml, after.volumes_ml, name)
    if len(pairs) < _LEAST_POOL:
        return ""
    median_ml = median_present(labeled_ml)
    was, now = (np.array(_missing([pair[which] for pair in pairs], median_ml)) for which in (0, 1))
    rise, error = mean_and_error(list(now - was))
    excess = float(now.mean()) - _mean(_missing(labeled_ml, median_ml))
    if rise <= _RISE or rise <= _RISE_ERRORS * error or excess <= _RISE:
        return ""
    return f"{now.mean():.0%} of its usual volume is missing in unlabeled cases, {was.mean():.0%}"


def _fall_of_dice(name: str, before: Vitals, after: Vitals) -> str:
    """Why an organ is vanishing in labeled cases; empty where it is not."""
    falls = {
        organ: mean_and_error([now - was for was, now in pairs])
        for organ in sorted({organ for case in before.dice.values() for organ in case})
        if len(pairs := _paired(before.dice, after.dice, organ)) > 1
    }
    if name not in falls:
        return ""
    others = [change for organ, (change, _) in falls.items() if organ != name]
    general = max(min(statistics.median(others), 0.0), -_FALL) if others else 0.0
    change, error = falls[name]
    was = _mean([pair[0] for pair in _paired(before.dice, after.dice, name)])
    if change + error - general >= -_FALL or -change <= _FALL_SHARE * was:
        return ""
    return f"its Dice on labeled cases of the training is {was + change:.2f}, {was:.2f}"


def no_teacher(
    scores: Sequence[CaseScore],
    teachers: Vitals,
    labeled_ml: Mapping[str, Sequence[float]],
    least_dice: float,
) -> dict[str, str]:
    """Organs whose pseudo-labels must not be learned from, whatever their scores say, each with the reason.

    Args:
        scores: Of the whole pool.
        teachers: Of the models that labeled it.
        labeled_ml: As for `compared`.
        least_dice: Mean Dice that a model must reach on cases that it was trained on. None is barred for that where
            no organ reaches it.
    """
    learned = {
        name: _mean(dices)
        for name in labeled_ml
        if (dices := [organs[name] for organs in teachers.dice.values() if name in organs])
    }
    barred = {}
    if any(dice >= least_dice for dice in learned.values()):
        barred = {
            name: f"Dice {dice:.2f} on the labeled cases of its training"
            for name, dice in learned.items()
            if dice < least_dice
        }
    for name, volumes in labeled_ml.items():
        if name not in barred and (reason := _short(name, scores, volumes)):
            barred[name] = reason
    return barred


def _short(name: str, scores: Sequence[CaseScore], labeled_ml: Sequence[float]) -> str:
    """Why an organ is labeled systematically too small, or too often not at all; empty where it is not."""
    median_ml = median_present(labeled_ml)
    if not median_ml or len(labeled_ml) < 2 or len(scores) < _LEAST_POOL:
        return ""
    pool = mean_and_error(_missing([case.organs[name].volume_ml for case in scores], median_ml))
    labeled = _missing(labeled_ml, median_ml)
    spread_of_labeled = max(float(np.std(labeled, ddof=1)), _LEAST_SPREAD) / math.sqrt(len(labeled))
    excess, error = pool[0] - _mean(labeled), math.hypot(pool[1], spread_of_labeled)
    if excess <= _SHORT or excess <= _SHORT_ERRORS * error:
        return ""
    return f"{pool[0]:.0%} of its usual volume is missing in unlabeled cases, {_mean(labeled):.0%} in labeled ones"


def _paired(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]], organ: str
) -> list[tuple[float, float]]:
    """Values of an organ in the cases that both have."""
    return [
        (before[case][organ], after[case][organ])
        for case in sorted(before.keys() & after.keys())
        if organ in before[case] and organ in after[case]
    ]


def _missing(volumes_ml: Sequence[float], median_ml: float) -> list[float]:
    """The part of the usual volume that is missing, 0 to 1; 0 for larger ones."""
    return [max(1 - volume / median_ml, 0.0) for volume in volumes_ml]


def median_present(volumes_ml: Sequence[float]) -> float:
    """The median of the volumes above 0; 0 where there is none."""
    present = [volume for volume in volumes_ml if volume > 0]
    return statistics.median(present) if present else 0.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
