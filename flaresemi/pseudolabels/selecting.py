"""From scores to the pseudo-labels that a round trains on."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

from flaresemi.errors import SelectionError
from flaresemi.plans import DatasetFingerprint
from flaresemi.ranges import Range, Share, check_ranges
from flaresemi.selection import CaseScore, OrganScore, Rule, SelectedCase, Selection


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRule:
    """The numbers that decide.

    Attributes:
        rule: `case`: whole cases by score (the seed's rule); `organ`: each organ on its own.
        best_share: `case`, first round: this share of the cases, best first.
        case_threshold: `case`, later rounds: scores above it; when fewer than `least_share` of the cases pass, the
            best share is taken after all.
        least_share: See above.
        require_complete: `case`: leave out cases that lack an organ (the completeness filter of the seed's code).
        organ_threshold: `organ`: least predicted Dice, or agreement where there is no calibration.
        organ_share: `organ`: the threshold is lower, down to its half, for an organ of which fewer than this share of
            the cases that have it reach it: one threshold for all leaves out what is hard to draw altogether.
        volume_factor: `organ`: a volume more than this factor outside the labeled ones is implausible.
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
        least_ml: The smallest where it is present.
        most_ml: The largest.
        absent: In how many of the cases it is absent.
    """

    least_ml: float
    most_ml: float
    absent: int


def volumes_ml(
    fingerprint: DatasetFingerprint, organs: Sequence[str], case_ids: Collection[str]
) -> dict[str, list[float]]:
    """Volumes by organ in those labeled cases that annotate it; 0 where it is absent."""
    volumes: dict[str, list[float]] = {name: [] for name in organs}
    for case in fingerprint.cases:
        if case.case_id not in case_ids:
            continue
        z, y, x = case.spacing_zyx_mm
        for name, voxels, annotated in zip(organs, case.voxels_per_label, case.annotated, strict=True):
            if annotated:
                volumes[name].append(voxels * z * y * x / 1000)
    return volumes


def labeled_volumes(volumes: Mapping[str, Sequence[float]]) -> dict[str, LabeledVolumes]:
    """What `volumes_ml` found, in short; organs that are present in no case are left out."""
    present = {name: [volume for volume in found if volume > 0] for name, found in volumes.items()}
    return {
        name: LabeledVolumes(least_ml=min(found), most_ml=max(found), absent=len(volumes[name]) - len(found))
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
) -> Selection:
    """Decides which pseudo-labels the next training may use.

    Args:
        scores: Of all unlabeled cases.
        rule: The numbers.
        volumes: By organ, of the labeled cases; an organ that is missing here was in none of them.
        round: Number of the round, from 1.
        fold: The chain's fold.
        barred: Cases that may not be used however good they are, with the reason.

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
        notes = _lowered(cuts, rule)
        selected, rejected = _select_organs(ranked, rule, volumes, cuts)
    if not selected:
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
    """Best score first; there must be one."""
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
    """The seed's rule: the best half first, later what scores above the threshold."""
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
    ranked: list[CaseScore], rule: SelectionRule, volumes: Mapping[str, LabeledVolumes], cuts: Mapping[str, float]
) -> tuple[list[SelectedCase], dict[str, str]]:
    """Every organ on its own; a case with nothing accepted that is really there is rejected."""
    selected: list[SelectedCase] = []
    rejected: dict[str, str] = {}
    for case in ranked:
        reasons = {
            name: reason_against(organ, volumes.get(name), rule, cuts[name]) for name, organ in case.organs.items()
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
    return selected, rejected


def _organ_cuts(scores: Sequence[CaseScore], rule: SelectionRule) -> dict[str, float]:
    """By organ: the threshold, or down to its half where `organ_share` of the cases that have it do not reach it."""
    cuts = {}
    for name in scores[0].organs:
        known = sorted((value for case in scores if (value := case.organs[name].trust) is not None), reverse=True)
        count = math.ceil(rule.organ_share * len(known) - 1e-9)
        cuts[name] = rule.organ_threshold
        if count:
            reached = math.floor(1000 * known[count - 1]) / 1000  # as reasons and reports can tell it
            cuts[name] = min(rule.organ_threshold, max(rule.organ_threshold / 2, reached))
    return cuts


def _lowered(cuts: Mapping[str, float], rule: SelectionRule) -> tuple[str, ...]:
    low = [f"{name} {cut:g}" for name, cut in cuts.items() if cut < rule.organ_threshold]
    if not low:
        return ()
    share = f"fewer than {rule.organ_share:.0%} of the cases that have it reach {rule.organ_threshold:g}"
    return (f"a lower threshold, where {share}: {', '.join(low)}",)


def reason_against(organ: OrganScore, volumes: LabeledVolumes | None, rule: SelectionRule, cut: float) -> str | None:
    """Why an organ of a pseudo-label is not to be trusted; None if it is.

    An absence is trusted only where the labels know such patients: the model that overlooks an organ everywhere agrees
    with itself about it, too.
    """
    if volumes is None:
        return "in no labeled case"
    value = organ.trust
    if value is None:
        return None if volumes.absent > 0 else "absent, but present in every labeled case"
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
