"""Cases to look at: the most and the least reliable ones and those around the cut, drawn in three planes."""

import dataclasses

import numpy as np

from flaresemi.errors import DatasetError
from flaresemi.reporting.overlay import review_picture
from flaresemi.reporting.page import Html, element, figure, join, notice, paragraph, picture
from flaresemi.reporting.palette import organ_color
from flaresemi.rounds.report.facts import RoundFacts, used_organs
from flaresemi.rounds.report.selected import judged_by
from flaresemi.selection import CaseScore, Selection

#: Pictures at each end of the list, and on each side of the cut.
_AT_THE_ENDS, _AT_THE_CUT = 3, 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A case to draw.

    Attributes:
        score: Of the case.
        why: Why it is shown.
        focus: The organ that it is shown for; None: all of them.
    """

    score: CaseScore
    why: str
    focus: str | None = None


def pictures(facts: RoundFacts) -> Html:
    """The chapter with the pictures."""
    if facts.selection is None or not facts.scores:
        return notice("caution", "This round left no scores or no selection to draw.")
    parts: list[Html] = [
        paragraph(
            "Slices cut as many organs as possible. Areas were used for training; hatched, dashed outlines "
            "are parts of the pseudo-label that were rejected. The patient's right is at the left of axial and coronal "
            "slices."
        )
    ]
    for title, shown in choose(facts).items():
        if shown:
            parts.append(element("h3", title))
            parts += [_drawn(facts, each) for each in shown]
    return join(parts)


def choose(facts: RoundFacts) -> dict[str, list[Shown]]:
    """Which cases are drawn, under which title; none twice."""
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
                why = f"{organ} {side} the cut: {judged_by(facts)} {value:.3f}"
                shown.append(Shown(score=by_name[case_id], why=why, focus=organ))
                taken.add(case_id)
                found += 1
    return shown


def _drawn(facts: RoundFacts, shown: Shown) -> Html:
    case_id = shown.score.case_id
    used = used_organs(facts)[case_id]
    caption = _caption(facts, shown, used)
    try:
        stored = facts.pseudo_labels.open(case_id)
    except DatasetError as problem:
        return figure(notice("caution", f"not drawn: {problem.what}"), caption)
    if stored.label_zyx is None:
        return figure(notice("caution", "not drawn: the pseudo-label is not there"), caption)
    label = np.asarray(stored.label_zyx)
    is_used = np.zeros(len(facts.organs) + 1, bool)
    is_used[[facts.plans.labels.index(organ) for organ in used]] = True
    jpeg, size = review_picture(
        np.asarray(stored.image_czyx[0], np.float32),
        np.where(is_used[label], label, 0),
        np.where(is_used[label], 0, label),
        stored.record.grid.spacing_zyx_mm,
        focus=None if shown.focus is None else facts.plans.labels.index(shown.focus),
    )
    alt = f"Axial, coronal and sagittal slice of {case_id} with its pseudo-label; {shown.why}"
    return figure(picture(jpeg, alt=alt, size=size), caption, class_="case")


def _caption(facts: RoundFacts, shown: Shown, used: frozenset[str]) -> Html:
    """Name, score, fate; which color is which organ; and why organs were rejected."""
    score, selection = shown.score, facts.selection
    chosen = {} if selection is None else {case.case_id: case for case in selection.selected}
    is_used = score.case_id in chosen
    tag = element("span", "used" if is_used else "rejected", class_=f"tag {'good' if is_used else 'bad'}")
    head = join([element("strong", score.case_id), tag, f"score {score.score:.3f} · {shown.why}"], between=" ")
    lines = [element("p", head)]
    present = [organ for organ, found in score.organs.items() if not found.is_absent]
    kept, refused = [each for each in present if each in used], [each for each in present if each not in used]
    if kept:
        lines.append(element("p", "Used: ", join([_organ(facts, each) for each in kept], between=" ")))
    if is_used and refused:
        reasons = chosen[score.case_id].rejected
        named = (join([_organ(facts, each), _reason(reasons.get(each, "rejected"))], between=" ") for each in refused)
        lines.append(element("p", "Rejected: ", join(named, between=" ")))
    elif not is_used and selection is not None:
        lines.append(
            element("p", f"Rejected as a whole: {selection.rejected.get(score.case_id, 'no reason recorded')}. ")
        )
        lines.append(element("p", "Drawn: ", join([_organ(facts, each) for each in refused], between=" ")))
    absent = [organ for organ, found in score.organs.items() if found.is_absent]
    if absent:
        lines.append(element("p", f"Not found: {', '.join(absent)}.", class_="muted"))
    if score.flags:
        lines.append(element("p", f"Noted: {'; '.join(score.flags)}."))
    return join(lines)


def _reason(reason: str) -> Html:
    return element("span", f"({reason})", class_="muted")


def _organ(facts: RoundFacts, organ: str) -> Html:
    red, green, blue = (round(255 * part) for part in organ_color(facts.plans.labels.index(organ)))
    color = element("span", class_="swatch", style=f"background:rgb({red},{green},{blue})")
    return element("span", color, organ, class_="organ")
