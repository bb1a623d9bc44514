"""Cases to look at in three planes: the most and the least reliable ones and those around the cut."""

import base64
import dataclasses

import numpy as np

from flaresemi.errors import DatasetError
from flaresemi.reporting.overlay import review_picture
from flaresemi.reporting.palette import organ_color
from flaresemi.rounds.report.facts import RoundFacts
from flaresemi.selection import CaseScore, Selection

#: Pictures at each end of the list, and on each side of the cut.
_AT_THE_ENDS, _AT_THE_CUT = 3, 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A case to show.

    Attributes:
        score: Of the case.
        why: Why it is shown.
        focus: The organ that it is shown for; None: all of them.
    """

    score: CaseScore
    why: str
    focus: str | None = None


def pictures(facts: RoundFacts) -> dict[str, list[dict[str, object]]]:
    """The chapter with the pictures: cases under their titles."""
    return {title: [_described(facts, each) for each in shown] for title, shown in choose(facts).items() if shown}


def choose(facts: RoundFacts) -> dict[str, list[Shown]]:
    """The cases to show, by title; none twice."""
    selection = facts.selection
    if selection is None:
        return {}
    ranked = list(facts.scores)
    ends = min(_AT_THE_ENDS, (len(ranked) + 1) // 2)
    best = [Shown(score=case, why="most reliable") for case in ranked[:ends]]
    worst = [Shown(score=case, why="least reliable") for case in ranked[ends:][::-1][:ends]]
    taken = {each.score.case_id for each in (*best, *worst)}
    left = [case for case in ranked if case.case_id not in taken]
    cut = (
        _around_the_organ_cut(facts, selection, left)
        if selection.rule == "organ"
        else _around_the_case_cut(selection, left)
    )
    return {"Most reliable": best, "Around the cut": cut, "Least reliable": worst}


def _around_the_case_cut(selection: Selection, ranked: list[CaseScore]) -> list[Shown]:
    names = {case.case_id for case in selection.selected}
    above = [case for case in ranked if case.case_id in names][-_AT_THE_CUT:]
    below = [case for case in ranked if case.case_id not in names][:_AT_THE_CUT]
    return [
        *(Shown(score=case, why="just above the cut") for case in above),
        *(Shown(score=case, why="just below the cut") for case in below),
    ]


def _around_the_organ_cut(facts: RoundFacts, selection: Selection, ranked: list[CaseScore]) -> list[Shown]:
    """The organs whose score came closest to their cut, on both sides; each from another case."""
    near = sorted(
        (abs(value - cut), value >= cut, case.case_id, organ, value)
        for case in ranked
        for organ, cut in selection.organ_cuts.items()
        if (value := case.organs[organ].trust) is not None
    )
    by_name = {case.case_id: case for case in ranked}
    shown: list[Shown] = []
    taken: set[str] = set()
    for is_above, side in ((True, "just above"), (False, "just below")):
        found = 0
        for _, above, case_id, organ, value in near:
            if found < _AT_THE_CUT and above == is_above and case_id not in taken:
                why = f"{organ} {side} the cut: {facts.judge} {value:.3f}"
                shown.append(Shown(score=by_name[case_id], why=why, focus=organ))
                taken.add(case_id)
                found += 1
    return shown


def _described(facts: RoundFacts, shown: Shown) -> dict[str, object]:
    """A case: its picture, score and outcome, the organs that were used, and why others were rejected."""
    score, selection = shown.score, facts.selection
    used = facts.used[score.case_id]
    chosen = next((case for case in selection.selected if case.case_id == score.case_id), None) if selection else None
    colors = {organ: organ_color(facts.plans.labels.index(organ)) for organ in facts.organs}
    present = [organ for organ, found in score.organs.items() if not found.is_absent]
    return {
        "score": score,
        "why": shown.why,
        "is_used": chosen is not None,
        "reason": selection.rejected.get(score.case_id, "no reason recorded") if selection else "",
        "used": [organ for organ in present if organ in used],
        "rejected": {
            organ: chosen.rejected.get(organ, "rejected") if chosen else None for organ in present if organ not in used
        },
        "absent": [organ for organ, found in score.organs.items() if found.is_absent],
        "colors": {organ: f"rgb({','.join(str(round(255 * part)) for part in rgb)})" for organ, rgb in colors.items()},
        **_picture(facts, shown),
    }


def _picture(facts: RoundFacts, shown: Shown) -> dict[str, object]:
    """A JPEG in base 64 with its width and height, or the problem that prevented it."""
    case_id = shown.score.case_id
    try:
        stored = facts.label_store(case_id).open(case_id)
    except DatasetError as problem:
        return {"problem": problem.what}
    if stored.label_zyx is None:
        return {"problem": "the pseudo-label is not there"}
    label, labels = np.asarray(stored.label_zyx), facts.plans.labels
    used = {labels.index(organ) for organ in facts.used[case_id]}
    jpeg, size = review_picture(
        np.asarray(stored.image_czyx[0], np.float32),
        labels.painted(label, used),
        labels.painted(label, set(range(1, labels.count + 1)) - used),
        stored.record.grid.spacing_zyx_mm,
        focus=None if shown.focus is None else labels.index(shown.focus),
    )
    return {"problem": None, "jpeg": base64.b64encode(jpeg).decode("ascii"), "size": size}
