"""Selects the pseudo-labels that a round trains on, by their scores."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

from flaresemi.errors import SelectionError
from flaresemi.plans import CaseFingerprint, DatasetFingerprint
from flaresemi.ranges import Range, Share, check_ranges
from flaresemi.selection import CaseScore, OrganScore, Rule, SelectedCase, Selection

#: Absences are doubted when they are so many times as frequent as in the labeled cases, and so many more (chosen).
_ABSENT_FACTOR, _ABSENT_MORE = 2, 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRule:
    """The numbers of the selection.

    Attributes:
        rule: `case`: whole cases by score (FlareSemiSeg's rule); `organ`: each organ on its own.
        best_share: `case`, first round: this share of the cases, best first.
        case_threshold: `case`, later rounds: cases that score above it; if fewer than `least_share` of the cases do,
            the best share as in the first round.
        least_share: See `case_threshold`.
        require_complete: `case`: leave out cases that lack an organ (the completeness filter of FlareSemiSeg's code).
        organ_threshold: `organ`: minimum predicted Dice, or agreement where there is no calibration.
        organ_share: `organ`: where fewer than this share of the cases that have an organ reach its threshold, it is
            lowered, by half at most: one threshold for all would exclude an organ that is hard to segment.
        volume_factor: `organ`: volumes beyond those of the labeled cases by more than this factor are implausible.
    """

    rule: Rule = "organ"
    best_share: Share = 0.5
    case_threshold: Share = 0.9
    least_share: Share = 0.1
    require_complete: bool = False
    organ_threshold: Share = 0.8
    organ_share: Share = 0.5
    volume_factor: Annotated[float, Range(1, 1e6)] = 2.0

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabeledVolumes:
    """Volumes of one organ in the labeled cases that annotate it.

    Attributes:
        least_ml: The smallest, where the organ is present.
        most_ml: The largest.
        absent: The number of cases that lack the organ.
        present: The number of those that have it.
    """

    least_ml: float
    most_ml: float
    absent: int
    present: int = 1


def case_volumes_ml(case: CaseFingerprint) -> list[float]:
    """Volume of each organ of a labeled case, ml; NaN where the label map does not annotate it."""
    z, y, x = case.spacing_zyx_mm
    counted = zip(case.voxels_per_label, case.annotated, strict=True)
    return [voxels * z * y * x / 1000 if annotated else math.nan for voxels, annotated in counted]


def volumes_ml(
    fingerprint: DatasetFingerprint, organs: Sequence[str], case_ids: Collection[str], *, parts: bool = False
) -> dict[str, list[float]]:
    """Volumes of each organ in the labeled cases that annotate it, ml; 0 where it is absent.

    Args:
        parts: Of the cases with ignored voxels instead, of which that is known of each organ that is annotated.
    """
    volumes: dict[str, list[float]] = {name: [] for name in organs}
    for case in fingerprint.cases:
        if case.case_id not in case_ids or bool(case.ignored_voxels) != parts:
            continue
        for name, volume in zip(organs, case_volumes_ml(case), strict=True):
            if not math.isnan(volume):
                volumes[name].append(volume)
    return volumes


def labeled_volumes(
    volumes: Mapping[str, Sequence[float]], parts: Mapping[str, Sequence[float]] | None = None
) -> dict[str, LabeledVolumes]:
    """Summary of the result of `volumes_ml`; organs that no case has are left out.

    Args:
        parts: What is known of the organs' volumes in cases with ignored voxels. Of an organ that no other case has, it
            is less than the volume, which may be any then.
    """
    present = {name: [volume for volume in found if volume > 0] for name, found in volumes.items()}
    unknown = {
        name: LabeledVolumes(least_ml=min(known), most_ml=math.inf, absent=0)
        for name, found in (parts or {}).items()
        if (known := [volume for volume in found if volume > 0]) and not present[name]
    }
    return unknown | {
        name: LabeledVolumes(
            least_ml=min(found), most_ml=max(found), absent=len(volumes[name]) - len(found), present=len(found)
        )
        for name, found in present.items()
        if found
    }


def select(
    scores: Sequence[CaseScore],
    rule: SelectionRule,
    volumes: Mapping[str, LabeledVolumes],
    *,
    round: int,
    fold: str,
    barred: Mapping[str, str] | None = None,
    no_teacher: Mapping[str, str] | None = None,
    may_be_empty: bool = False,
) -> Selection:
    """Selects the pseudo-labels that the next training uses.

    Args:
        scores: The scores of all unlabeled cases.
        rule: The numbers of the selection.
        volumes: By organ, in the labeled cases; an organ that is missing here is present in none of them.
        round: Number of the round, from 1.
        fold: The chain's fold.
        barred: Cases that must not be used whatever their score, with the reason.
        no_teacher: Organs that must not be supervised in any of them, with the reason; not for whole cases.
        may_be_empty: Something else will be trained on, so that nothing need be selected.

    Raises:
        SelectionError: there are no scores, or nothing is selected.
    """
    barred = {case.case_id: barred[case.case_id] for case in scores if case.case_id in barred} if barred else {}
    ranked = _ranked([case for case in scores if case.case_id not in barred], barred)
    cuts: dict[str, float] = {}
    if rule.rule == "case":
        numbers: tuple[str, ...] = ("best_share", "case_threshold", "least_share")
        selected, rejected, notes = _select_cases(ranked, rule, round)
    else:
        numbers = ("organ_threshold", "organ_share", "volume_factor")
        cuts = _organ_cuts(ranked, rule)
        selected, rejected, notes = _select_organs(ranked, rule, volumes, cuts, no_teacher or {})
    if not selected and not may_be_empty:
        best = ranked[0]
        raise SelectionError(
            f"no pseudo-label is good enough: the best case, '{best.case_id}', has a score of {best.score:.3f}",
            fix="train the labeling models longer, or lower the thresholds (--organ-threshold, --case-threshold)",
        )
    if not (rejected or barred) and not any(case.rejected for case in selected):
        notes = (*notes, "every pseudo-label was selected: the thresholds rejected nothing")
    return Selection(
        round=round,
        fold=fold,
        rule=rule.rule,
        thresholds={name: float(getattr(rule, name)) for name in numbers},
        selected=tuple(selected),
        rejected=rejected | barred,
        notes=notes,
        organ_cuts=cuts,
    )


def _ranked(usable: list[CaseScore], barred: Mapping[str, str]) -> list[CaseScore]:
    """The usable cases, best score first; there must be at least one."""
    if not usable and not barred:
        raise SelectionError(
            "there are no unlabeled cases to select from", fix="add some to the dataset and plan again"
        )
    if not usable:
        raise SelectionError(
            f"no pseudo-label may be used: {next(iter(barred.values()))}", fix="add unlabeled cases of other groups"
        )
    return sorted(usable, key=lambda case: (-case.score, case.case_id))


def _select_cases(
    ranked: list[CaseScore], rule: SelectionRule, round: int
) -> tuple[list[SelectedCase], dict[str, str], tuple[str, ...]]:
    """FlareSemiSeg's rule: the best half in the first round, cases that score above the threshold in later ones."""
    notes: tuple[str, ...] = ()
    rejected: dict[str, str] = {}
    candidates = ranked
    if rule.require_complete:
        for case in ranked:
            missing = [name for name, organ in case.organs.items() if organ.volume_ml == 0]
            if missing:
                rejected[case.case_id] = f"lacks {', '.join(missing)}"
        candidates = [case for case in ranked if case.case_id not in rejected]
    best = candidates[: math.ceil(rule.best_share * len(candidates))]
    chosen, reason = best, f"not among the best {rule.best_share:.0%}"
    if round > 1:
        passing = [case for case in candidates if case.score > rule.case_threshold]
        if len(passing) >= rule.least_share * len(candidates):
            chosen, reason = passing, f"score not above {rule.case_threshold:g}"
        else:
            notes = (
                f"only {len(passing)} of {len(candidates)} cases score above {rule.case_threshold:g}: "
                f"the best {rule.best_share:.0%} were taken instead",
            )
    chosen = [case for case in chosen if case.score > 0]
    names = {case.case_id for case in chosen}
    rejected |= {case.case_id: f"{reason} ({case.score:.3f})" for case in candidates if case.case_id not in names}
    selected = [
        SelectedCase(case_id=case.case_id, score=case.score, supervised=tuple(case.organs), rejected={})
        for case in chosen
    ]
    return selected, rejected, notes


def _select_organs(
    ranked: list[CaseScore],
    rule: SelectionRule,
    volumes: Mapping[str, LabeledVolumes],
    cuts: Mapping[str, float],
    no_teacher: Mapping[str, str],
) -> tuple[list[SelectedCase], dict[str, str], tuple[str, ...]]:
    """Accepts each organ on its own; a case in which no organ that is present was accepted is rejected."""
    doubted = _doubtful_absences(ranked, volumes)
    selected: list[SelectedCase] = []
    rejected: dict[str, str] = {}
    for case in ranked:
        reasons = {
            name: no_teacher.get(name)
            or (doubted.get(name) if organ.is_absent else None)
            or reason_against(organ, volumes.get(name), rule, cuts[name])
            for name, organ in case.organs.items()
        }
        accepted = tuple(name for name, reason in reasons.items() if reason is None)
        if not any(not case.organs[name].is_absent for name in accepted):
            rejected[case.case_id] = "no organ accepted"
            continue
        selected.append(
            SelectedCase(
                case_id=case.case_id,
                score=case.score,
                supervised=accepted,
                rejected={name: reason for name, reason in reasons.items() if reason is not None},
            )
        )
    notes = [f"no pseudo-label of {name} is learned from: {why}" for name, why in no_teacher.items()]
    notes += [f"no absence of {name} is learned from: {why}" for name, why in doubted.items()]
    return selected, rejected, (*_lowered(cuts, rule), *notes)


def _doubtful_absences(scores: Sequence[CaseScore], volumes: Mapping[str, LabeledVolumes]) -> dict[str, str]:
    """Organs that are absent far more often than in the labeled cases: the models miss them, then, not the patients.

    No test decides: with few labeled cases none could, and an absence that is not taught costs little.
    """
    doubtful = {}
    for name, known in volumes.items():
        absent = sum(case.organs[name].is_absent for case in scores)
        labeled = known.absent + known.present
        expected = len(scores) * known.absent / labeled
        if known.absent and absent > _ABSENT_FACTOR * expected and absent - expected >= _ABSENT_MORE:
            where = f"{absent} of {len(scores)} unlabeled cases, but {known.absent} of {labeled} labeled ones"
            doubtful[name] = f"absent from {where}"
    return doubtful


def _organ_cuts(scores: Sequence[CaseScore], rule: SelectionRule) -> dict[str, float]:
    """The threshold of each organ, lowered by half at most where fewer than `organ_share` of its cases reach it."""
    cuts = {}
    for name in scores[0].organs:
        known = sorted((value for case in scores if (value := case.organs[name].trust) is not None), reverse=True)
        count = math.ceil(rule.organ_share * len(known) - 1e-9)
        cuts[name] = rule.organ_threshold
        if count:
            reached = math.floor(1000 * known[count - 1]) / 1000  # to the digits that reasons and reports show
            cuts[name] = min(rule.organ_threshold, max(rule.organ_threshold / 2, reached))
    return cuts


def _lowered(cuts: Mapping[str, float], rule: SelectionRule) -> tuple[str, ...]:
    low = [f"{name} {cut:g}" for name, cut in cuts.items() if cut < rule.organ_threshold]
    if not low:
        return ()
    share = f"fewer than {rule.organ_share:.0%} of the cases that have it reach {rule.organ_threshold:g}"
    return (f"a lower threshold, where {share}: {', '.join(low)}",)


def reason_against(organ: OrganScore, volumes: LabeledVolumes | None, rule: SelectionRule, cut: float) -> str | None:
    """The reason why an organ of a pseudo-label is rejected; None if it is accepted.

    An absence is accepted only where a labeled case lacks the organ too: a model that overlooks an organ everywhere
    also agrees with itself. Nor is it where the label map has a few voxels of the organ: what is said to be absent
    would be learned from them as present.
    """
    if volumes is None:
        return "in no labeled case"
    value = organ.trust
    if value is None and not volumes.absent:
        return "absent, but present in every labeled case"
    if value is None:
        return "specks only, which count as absent" if organ.volume_ml > 0 else None
    if value < cut:
        what = "agreement" if organ.predicted_dice is None else "predicted Dice"
        return f"{what} {math.floor(1000 * value) / 1000:.3f} below {cut:g}"
    if organ.touched_faces:
        return "reaches out of the region"
    if (
        organ.volume_ml < volumes.least_ml / rule.volume_factor
        or organ.volume_ml > volumes.most_ml * rule.volume_factor
    ):
        return f"{organ.volume_ml:.0f} ml, labeled cases have {volumes.least_ml:.0f} to {volumes.most_ml:.0f}"
    return None
