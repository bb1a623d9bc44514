"""Which cases deserve a look, and why in words."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from flaresemi.pseudolabels.selecting import LabeledVolumes, SelectionRule
from flaresemi.reviews import Review
from flaresemi.selection import CaseScore, OrganScore, Selection

Kind = Literal[
    "near the cut",
    "volume",
    "absent",
    "position",
    "out of the region",
    "unlike the labeled cases",
    "changed between rounds",
    "decided on an older label map",
    "label map lost",
    "fell",
]

#: How much each kind of reason weighs, 0 to 1. Chosen: what is hardly possible in a patient first, doubts last. The
#: weights of a case add up, each further one counting half of the one before.
WEIGHTS: dict[Kind, float] = {
    "label map lost": 1.0,
    "volume": 1.0,
    "position": 1.0,
    "fell": 0.9,
    "absent": 0.8,
    "near the cut": 0.7,
    "changed between rounds": 0.6,
    "unlike the labeled cases": 0.5,
    "out of the region": 0.4,
    "decided on an older label map": 0.3,
}

#: A score is near the cut within this distance, and if it is among the closest tenth, or the closest three: a cut that
#: was lowered until enough cases pass it lies amid all of them. Chosen: half of the usual error of a predicted Dice.
_NEAR, _CLOSEST, _FEWEST = 0.05, 0.1, 3

#: A volume has changed between rounds by more than this factor. Chosen.
_CHANGED = 1.5

#: A held-out case fell by more than this mean Dice, or one of its organs by more than that. Chosen.
_FELL, _ORGAN_FELL = 0.02, 0.10

#: An organ is misplaced where it is further from most others than in any labeled case by this much, and by as much
#: again as the labeled cases differ. Chosen: a hand's breadth would be seen by anybody, patients differ by less.
_MISPLACED_MM = 25.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a case deserves a look.

    Attributes:
        kind: What it is.
        text: In words.
        organs: Whom it is about; empty: the whole case.
    """

    kind: Kind
    text: str
    organs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueueItem:
    """A case of the queue.

    Attributes:
        case_id: Its name.
        group: `unlabeled`, or `held out`: then it is only looked at.
        reasons: The weightiest first.
        priority: Orders the queue; the sum of what the reasons weigh.
    """

    case_id: str
    group: Literal["unlabeled", "held out"]
    reasons: tuple[Reason, ...]
    priority: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueueFacts:
    """What a queue is made from; nothing is computed anew for it.

    Attributes:
        cases: All unlabeled ones.
        scores: Of the newest pseudo-labels, by case; empty before the first round.
        former: The same of the round before; empty in the first.
        selection: By these scores; None before the selection.
        rule: Of the selection.
        volumes: Of the organs in the labeled cases.
        unlike: By case, how it differs from the labeled ones, in words.
        misplaced: By case, the organs that lie elsewhere than in the labeled ones, with the distance, mm.
        held_out: By held-out case, Dice by organ before and after the newest complete round.
        reviews: Decisions, by case.
        outdated: Cases whose decision is about an older label map than the newest.
        lost: Cases whose decision vouches for a label map that is gone, or is not what it was.
    """

    cases: tuple[str, ...]
    scores: Mapping[str, CaseScore]
    former: Mapping[str, CaseScore] = dataclasses.field(default_factory=dict)
    selection: Selection | None = None
    rule: SelectionRule = dataclasses.field(default_factory=SelectionRule)
    volumes: Mapping[str, LabeledVolumes] = dataclasses.field(default_factory=dict)
    unlike: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    misplaced: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    held_out: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    reviews: Mapping[str, Review] = dataclasses.field(default_factory=dict)
    outdated: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()


def queue(facts: QueueFacts) -> tuple[QueueItem, ...]:
    """The cases with a reason to look at them, most urgent first; then, without a reason, the other unlabeled ones.

    Of equally urgent ones the lower score comes first. What was decided about the newest label map has no reason left.
    """
    items, near = [], _nearness(facts)
    for case_id in facts.cases:
        is_open = case_id not in facts.reviews or case_id in facts.outdated or case_id in facts.lost
        reasons = _reasons(case_id, facts, near) if is_open and case_id in facts.scores else []
        items.append(_item(case_id, "unlabeled", [*_loss(case_id, facts), *reasons]))
    items += [_item(case_id, "held out", _fall(*dices)) for case_id, dices in facts.held_out.items() if _fall(*dices)]
    scores = {case_id: score.score for case_id, score in facts.scores.items()}
    return tuple(sorted(items, key=lambda item: (-item.priority, scores.get(item.case_id, 0.0), item.case_id)))


def _item(case_id: str, group: Literal["unlabeled", "held out"], reasons: Sequence[Reason]) -> QueueItem:
    ranked = sorted(reasons, key=lambda reason: -WEIGHTS[reason.kind])
    priority = sum(WEIGHTS[reason.kind] * 0.5**place for place, reason in enumerate(ranked))
    return QueueItem(case_id=case_id, group=group, reasons=tuple(ranked), priority=priority)


def _reasons(case_id: str, facts: QueueFacts, near: Mapping[str, float]) -> list[Reason]:
    score = facts.scores[case_id]
    found = [*_near_the_cut(score, facts, near), *_volumes(score, facts), *_changes(score, facts)]
    if misplaced := facts.misplaced.get(case_id):
        told = ", ".join(f"{name} by {distance:.0f} mm" for name, distance in misplaced.items())
        found.append(Reason(kind="position", text=f"elsewhere than in labeled cases: {told}", organs=(*misplaced,)))
    if reaching := tuple(name for name, organ in score.organs.items() if organ.touched_faces):
        text = f"cut off by the region that COARSE found: {', '.join(reaching)}"
        found.append(Reason(kind="out of the region", text=text, organs=reaching))
    if unlike := (*facts.unlike.get(case_id, ()), *score.flags):
        found.append(Reason(kind="unlike the labeled cases", text="; ".join(dict.fromkeys(unlike))))
    if case_id in facts.outdated:
        review = facts.reviews[case_id]
        text = f"decided by {review.who}, in round {review.round}; the label map is another one now"
        found.append(Reason(kind="decided on an older label map", text=text))
    return found


def _loss(case_id: str, facts: QueueFacts) -> list[Reason]:
    if case_id not in facts.lost:
        return []
    text = f"decided by {facts.reviews[case_id].who}; the label map of it is missing or has changed: decide again"
    return [Reason(kind="label map lost", text=text)]


def _nearness(facts: QueueFacts) -> dict[str, float]:
    """What is near the cut of each organ, or of the cases (under an empty name)."""
    if facts.selection is None:
        return {}
    cuts = dict(facts.selection.organ_cuts)
    values: dict[str, list[float]] = {name: [] for name in cuts}
    if facts.selection.rule == "case":
        cuts, values = {}, {}
        if (cut := _case_cut(facts.selection)) is not None:
            cuts, values = {"": cut}, {"": [score.score for score in facts.scores.values()]}
    for score in facts.scores.values():
        for name, organ in score.organs.items():
            if name in values and organ.trust is not None:
                values[name].append(organ.trust)
    near = {}
    for name, known in values.items():
        away = sorted(abs(value - cuts[name]) for value in known)
        closest = away[: max(_FEWEST, math.ceil(_CLOSEST * len(away)))]
        near[name] = min(_NEAR, closest[-1]) if closest else _NEAR
    return near


def _case_cut(selection: Selection) -> float | None:
    """The lowest score of a case that is used; None where none is."""
    return min((case.score for case in selection.selected if case.source == "pseudo"), default=None)


def _near_the_cut(score: CaseScore, facts: QueueFacts, near: Mapping[str, float]) -> list[Reason]:
    """Organs, or the case, just below or just above what is selected."""
    selection = facts.selection
    if selection is None:
        return []
    if selection.rule == "case":
        cut = _case_cut(selection)
        if cut is None or abs(score.score - cut) > near[""]:
            return []
        side = "above" if score.score >= cut else "below"
        return [Reason(kind="near the cut", text=f"score {score.score:.3f}, just {side} the cut of {cut:.3f}")]
    sides: dict[str, list[str]] = {"below": [], "above": []}
    organs = []
    for name, cut in selection.organ_cuts.items():
        value = score.organs[name].trust if name in score.organs else None
        if value is not None and abs(value - cut) <= near[name]:
            sides["above" if value >= cut else "below"].append(f"{name} {value:.2f} (cut {cut:.2f})")
            organs.append(name)
    told = [f"just {side} the cut: {', '.join(names)}" for side, names in sides.items() if names]
    return [Reason(kind="near the cut", text="; ".join(told), organs=tuple(organs))] if told else []


def _volumes(score: CaseScore, facts: QueueFacts) -> list[Reason]:
    """Volumes that no labeled case comes near, and absences of what every labeled case has."""
    implausible, absent = {}, []
    for name, organ in score.organs.items():
        known = facts.volumes.get(name)
        if known is None:
            continue
        if organ.volume_ml == 0 or organ.is_absent:
            absent += [name] if not known.absent else []
        elif _is_implausible(organ, known, facts.rule.volume_factor):
            most = "more" if math.isinf(known.most_ml) else f"{known.most_ml:.3g} ml"
            implausible[name] = f"{name} {organ.volume_ml:.3g} ml (labeled cases: {known.least_ml:.3g} to {most})"
    found = []
    if implausible:
        found.append(Reason(kind="volume", text=", ".join(implausible.values()), organs=(*implausible,)))
    if absent:
        text = f"not found, though every labeled case has it: {', '.join(absent)}"
        found.append(Reason(kind="absent", text=text, organs=tuple(absent)))
    return found


def _is_implausible(organ: OrganScore, known: LabeledVolumes, factor: float) -> bool:
    return not known.least_ml / factor <= organ.volume_ml <= known.most_ml * factor


def _changes(score: CaseScore, facts: QueueFacts) -> list[Reason]:
    """Organs that the round before drew much larger or smaller, or not at all."""
    former = facts.former.get(score.case_id)
    if former is None:
        return []
    changed = {}
    for name, organ in score.organs.items():
        if name not in former.organs:
            continue
        before, now = former.organs[name].volume_ml, organ.volume_ml
        if max(before, now) > _CHANGED * min(before, now):
            changed[name] = f"{name} {before:.3g} to {now:.3g} ml"
    text = f"the round before saw it otherwise: {', '.join(changed.values())}"
    return [Reason(kind="changed between rounds", text=text, organs=(*changed,))] if changed else []


def _fall(before: Mapping[str, float], after: Mapping[str, float]) -> list[Reason]:
    """What a held-out case lost in the newest round."""
    both = [name for name in before if name in after]
    if not both:
        return []
    mean = sum(after[name] - before[name] for name in both) / len(both)
    organs = {name: after[name] - before[name] for name in both if after[name] - before[name] < -_ORGAN_FELL}
    if mean >= -_FELL and not organs:
        return []
    told = [f"mean Dice {mean:+.3f}", *(f"{name} {change:+.2f}" for name, change in organs.items())]
    return [Reason(kind="fell", text=f"held out, and worse after the round: {', '.join(told)}", organs=(*organs,))]


def misplaced_organs(centers_mm: np.ndarray, labeled_mm: np.ndarray) -> dict[int, float]:
    """Organs that lie elsewhere, as seen from most of the others, than in any labeled case.

    Args:
        centers_mm: Center of every organ of one case, (organs, 3); NaN where it is absent.
        labeled_mm: The same of labeled cases, (cases, organs, 3).

    Returns:
        By the organ's place, how far it is beyond the labeled ones, mm; the median over the others.
    """
    offsets = centers_mm[:, None] - centers_mm[None]
    known = labeled_mm[:, :, None] - labeled_mm[:, None]
    is_known = np.isfinite(known).all(-1).sum(0) >= 2
    low = np.where(np.isfinite(known), known, np.inf).min(0)
    high = np.where(np.isfinite(known), known, -np.inf).max(0)
    usable = is_known & np.isfinite(offsets).all(-1)
    np.fill_diagonal(usable, False)
    margin = np.where(usable[..., None], high - low, 0.0) + _MISPLACED_MM
    with np.errstate(invalid="ignore"):
        beyond = np.maximum(low - margin - offsets, offsets - high - margin).max(-1)
    found = {}
    for organ in range(len(centers_mm)):
        others = beyond[organ][usable[organ]]
        if len(others) >= 2 and np.mean(others > 0) > 0.5:
            found[organ] = float(np.median(others[others > 0])) + _MISPLACED_MM
    # One misplaced organ makes the others look misplaced from it alone, which is not the most of them.
    return found
