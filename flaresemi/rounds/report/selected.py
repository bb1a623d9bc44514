"""What was selected: the scores, where the cut fell, and what was accepted of every organ."""

import re
import statistics
from collections.abc import Mapping, Sequence

from flaresemi.reporting.charts import Axis, Strip, histogram, scatter, strips
from flaresemi.reporting.page import (
    Column,
    Html,
    bullets,
    element,
    figure,
    join,
    notice,
    paragraph,
    share_bar,
    table,
)
from flaresemi.rounds.report.facts import RoundFacts, used_organs
from flaresemi.selection import Selection

_NUMBER = re.compile(r"\d+(?:\.\d+)?")

#: Width and height of charts that stand side by side.
_HALF = (480, 300)


def selected(facts: RoundFacts) -> Html:
    """The chapter on the selection."""
    selection = facts.selection
    if selection is None or not facts.scores:
        return notice("caution", "This round left no scores or no selection to report.")
    return join([
        paragraph(_rule_told(selection)),
        *(notice("caution", note) for note in selection.notes),
        paragraph(_judge_told(facts)),
        element("h3", "Scores"),
        element("div", _case_histogram(facts, selection), _worth(facts), class_="columns"),
        element("h3", "Organ by organ"),
        _organ_strips(facts),
        _organ_table(facts),
        _reasons(facts, selection),
    ])  # fmt: skip


def _rule_told(selection: Selection) -> str:
    thresholds = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in selection.thresholds.items())
    what = {
        "organ": "Each organ of each case was judged on its own; what was rejected is not supervised in that case.",
        "case": "Whole cases were judged by their score.",
    }[selection.rule]
    return f"{what} Rule: {thresholds}."


def _judge_told(facts: RoundFacts) -> str:
    calibration = facts.calibration
    if calibration is None:
        return "Agreement itself was the judge: there were too few held-out organs to learn the Dice to expect from it."
    judge = "Agreement itself was the judge: a predicted Dice was learned, but came no closer to the truth. "
    if calibration.is_better:
        judge = "The judge was the predicted Dice, learned on held-out real cases from agreement. "
    return judge + (
        f"On held-out cases left out of the fit it erred by {calibration.error:.3f} on average, "
        f"agreement itself by {calibration.error_of_agreement:.3f} ({calibration.observations} organs)."
    )


def _worth(facts: RoundFacts) -> Html | None:
    """What a score was worth where the real labels are known."""
    points = [(each.score.agreement, each.dice) for each in facts.observations if each.score.agreement is not None]
    if not points:
        return None
    chart = scatter(
        points,
        Axis(title="agreement of the snapshots", low=0, high=1),
        Axis(title="true Dice", low=0, high=1),
        alt=f"True Dice against agreement for {len(points)} organs of held-out cases",
        size=_HALF,
    )
    mean = statistics.mean(agreement - dice for agreement, dice in points)
    direction = "flatters" if mean > 0 else "is too modest"
    caption = (
        f"What agreement is worth: {len(points)} organs of held-out real cases, labeled by the same models. Points "
        f"below the line promise more than they hold; on average agreement {direction} "
        f"by {abs(mean):.3f}."
    )
    return figure(chart, caption)


def _case_histogram(facts: RoundFacts, selection: Selection) -> Html:
    names = {case.case_id for case in selection.selected}
    used = [case.score for case in facts.scores if case.case_id in names]
    refused = [case.score for case in facts.scores if case.case_id not in names]
    cut = min(used) if selection.rule == "case" and used and refused else None
    chart = histogram(
        used,
        refused,
        Axis(title="score of a case: mean agreement of its organs", low=0, high=1),
        alt=f"Scores of {len(facts.scores)} unlabeled cases; {len(used)} used, {len(refused)} rejected",
        cut=cut,
        size=_HALF,
    )
    scores = [case.score for case in facts.scores]
    told = (
        f"{len(used)} used, {len(refused)} rejected. Scores from {min(scores):.3f} to {max(scores):.3f}, "
        f"median {statistics.median(scores):.3f}."
    )
    meaning = None if cut is None else f"the least score that was used: {cut:.3f}"
    return figure(chart, join([told, _legend(meaning)], between=" "))


def _legend(cut: str | None) -> Html:
    entries = [element("span", class_="swatch used"), "used ", element("span", class_="swatch refused"), "rejected "]
    if cut is not None:
        entries += [element("span", class_="swatch cut"), cut]
    return element("span", *entries)


def _organ_strips(facts: RoundFacts) -> Html:
    used = used_organs(facts)
    cuts = facts.selection.organ_cuts if facts.selection is not None else {}
    rows = []
    for organ in facts.organs:
        values = {case.case_id: value for case in facts.scores if (value := case.organs[organ].trust) is not None}
        rows.append(
            Strip(
                name=organ,
                used=[value for case_id, value in values.items() if organ in used[case_id]],
                refused=[value for case_id, value in values.items() if organ not in used[case_id]],
                cut=cuts.get(organ),
            )
        )
    what = judged_by(facts)
    chart = strips(rows, Axis(title=what, low=0, high=1), alt=f"Distribution of {what} for each organ")
    caption = "Every row has its own height."
    if cuts:
        caption += " What lies left of its cut, and others for the reasons below, was rejected."
    return figure(chart, join([caption, _legend("cut" if cuts else None)], between=" "))


def judged_by(facts: RoundFacts) -> str:
    """What the organs' scores are called."""
    predicted = any(organ.predicted_dice is not None for case in facts.scores for organ in case.organs.values())
    return "predicted Dice" if predicted else "agreement"


def _organ_table(facts: RoundFacts) -> Html:
    used, pool = used_organs(facts), len(facts.scores)
    columns = [
        Column(title="Organ", numeric=False),
        Column(title="used"),
        Column(title="of these absent"),
        Column(title="all", group=f"median {judged_by(facts)}"),
        Column(title="used", group=f"median {judged_by(facts)}"),
        Column(title="median used", group="volume, ml"),
        Column(title="labeled cases", group="volume, ml"),
    ]
    volumes = labeled_volumes_ml(facts)
    rows = []
    for organ in facts.organs:
        scores = {case.case_id: case.organs[organ] for case in facts.scores}
        taken = [score for case_id, score in scores.items() if organ in used[case_id]]
        present = [score for score in taken if not score.is_absent]
        known = volumes[organ]
        rows.append([
            organ,
            share_bar(len(taken) / pool, f"{len(taken)} of {pool}"),
            len(taken) - len(present),
            _median([value for score in scores.values() if (value := score.trust) is not None], 3),
            _median([value for score in taken if (value := score.trust) is not None], 3),
            _median([score.volume_ml for score in present], 1),
            f"{min(known):.4g} to {max(known):.4g}" if known else "–",
        ])  # fmt: skip
    return table(columns, rows, caption="What was accepted of each organ")


def _median(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f}" if values else "–"


def labeled_volumes_ml(facts: RoundFacts) -> Mapping[str, list[float]]:
    """Volumes of each organ in the labeled cases that have it."""
    volumes: dict[str, list[float]] = {name: [] for name in facts.organs}
    for case in facts.fingerprint.cases:
        z, y, x = case.spacing_zyx_mm
        for name, voxels in zip(facts.organs, case.voxels_per_label, strict=True):
            if voxels:
                volumes[name].append(voxels * z * y * x / 1000)
    return volumes


def _reasons(facts: RoundFacts, selection: Selection) -> Html | None:
    organs = [reason for case in selection.selected for reason in case.rejected.values()]
    cases = list(selection.rejected.values())
    if not organs and not cases:
        return None
    parts = [element("h3", "Why the others were rejected")]
    for reasons, told in (
        (cases, f"{len(cases)} of {len(facts.scores)} cases as a whole:"),
        (organs, f"{len(organs)} organs of the {len(selection.selected)} used cases:"),
    ):
        if reasons:
            parts += [paragraph(told), bullets(f"{count} × {reason}" for reason, count in kinds(reasons).items())]
    return join(parts)


def kinds(reasons: Sequence[str]) -> dict[str, int]:
    """How often which reason stood, the most frequent first; numbers that differ between the like are left out."""
    found: dict[str, list[list[str]]] = {}
    for reason in reasons:
        found.setdefault(_NUMBER.sub("…", reason), []).append(_NUMBER.findall(reason))
    counts: dict[str, int] = {}
    for template, numbers in found.items():
        words = template.split("…")
        same = [values[0] if len(set(values)) == 1 else "…" for values in zip(*numbers, strict=True)]
        counts["".join(word + value for word, value in zip(words, [*same, ""], strict=True))] = len(numbers)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
