"""The selection: scores, thresholds, and what was accepted of every organ."""

import re
import statistics
from collections.abc import Sequence

from flaresemi.reporting.charts import Axis, Chart, Strip, histogram, scatter, strips
from flaresemi.rounds.report.facts import RoundFacts
from flaresemi.selection import Selection

_NUMBER = re.compile(r"\d+(?:\.\d+)?")

#: Width and height of charts side by side.
_HALF = (480, 300)


def selected(facts: RoundFacts) -> dict[str, object]:
    """The chapter on the selection; nothing where the round left none."""
    selection = facts.selection
    if selection is None or not facts.scores:
        return {}
    scores = [case.score for case in facts.scores]
    organs = [reason for case in selection.selected for reason in case.rejected.values()]
    return {
        "outside": facts.state.config.teacher if facts.number == 1 else None,
        "rule": selection.rule,
        "thresholds": ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in selection.thresholds.items()),
        "notes": selection.notes,
        "calibration": facts.calibration,
        "judge": facts.judge,
        "used": len(selection.selected),
        "rejected": len(selection.rejected),
        "pool": len(scores),
        "least": min(scores),
        "most": max(scores),
        "median": statistics.median(scores),
        **_case_histogram(facts, selection),
        **_agreement_against_dice(facts),
        "strips": _organ_strips(facts, selection),
        "has_cuts": bool(selection.organ_cuts),
        "organs": [_organ(facts, organ) for organ in facts.organs],
        "case_reasons": count_reasons(list(selection.rejected.values())),
        "organ_reasons": count_reasons(organs),
        "rejected_organs": len(organs),
    }


def _agreement_against_dice(facts: RoundFacts) -> dict[str, object]:
    """Agreement against the true Dice of held-out cases: a chart, and the mean bias of agreement."""
    points = [(each.score.agreement, each.dice) for each in facts.observations if each.score.agreement is not None]
    if not points:
        return {"observations": 0}
    chart = scatter(
        points,
        Axis(title="agreement of the snapshots"),
        Axis(title="true Dice"),
        alt=f"True Dice against agreement for {len(points)} organs of held-out cases",
        size=_HALF,
    )
    bias = statistics.mean(agreement - dice for agreement, dice in points)
    return {"observations": len(points), "scatter": chart, "bias": bias}


def _case_histogram(facts: RoundFacts, selection: Selection) -> dict[str, object]:
    """The scores of the cases, and the lowest that was used, where that is the threshold."""
    names = {case.case_id for case in selection.selected}
    used = [case.score for case in facts.scores if case.case_id in names]
    rejected = [case.score for case in facts.scores if case.case_id not in names]
    cut = min(used) if selection.rule == "case" and used and rejected else None
    chart = histogram(
        used,
        rejected,
        Axis(title="score of a case: mean agreement of its organs"),
        alt=f"Scores of {len(facts.scores)} unlabeled cases; {len(used)} used, {len(rejected)} rejected",
        cut=cut,
        size=_HALF,
    )
    return {"histogram": chart, "cut": cut}


def _organ_strips(facts: RoundFacts, selection: Selection) -> Chart:
    used, rows = facts.used, []
    for organ in facts.organs:
        values = {case.case_id: value for case in facts.scores if (value := case.organs[organ].trust) is not None}
        rows.append(
            Strip(
                name=organ,
                used=[value for case_id, value in values.items() if organ in used[case_id]],
                rejected=[value for case_id, value in values.items() if organ not in used[case_id]],
                cut=selection.organ_cuts.get(organ),
            )
        )
    return strips(rows, Axis(title=facts.judge), alt=f"Distribution of {facts.judge} for each organ")


def _organ(facts: RoundFacts, organ: str) -> dict[str, object]:
    """How often an organ was accepted, its scores and its volumes."""
    used = facts.used
    scores = [case.organs[organ] for case in facts.scores]
    taken = [case.organs[organ] for case in facts.scores if organ in used[case.case_id]]
    present = [score for score in taken if not score.is_absent]
    return {
        "name": organ,
        "used": len(taken),
        "absent": len(taken) - len(present),
        "median": _median([value for score in scores if (value := score.trust) is not None]),
        "median_used": _median([value for score in taken if (value := score.trust) is not None]),
        "volume_ml": _median([score.volume_ml for score in present]),
        "labeled": facts.labeled_volumes.get(organ),
    }


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def count_reasons(reasons: Sequence[str]) -> dict[str, int]:
    """Counts of like reasons, the most frequent first; numbers that differ among them are left out."""
    found: dict[str, list[list[str]]] = {}
    for reason in reasons:
        found.setdefault(_NUMBER.sub("…", reason), []).append(_NUMBER.findall(reason))
    counts: dict[str, int] = {}
    for template, numbers in found.items():
        words = template.split("…")
        same = [values[0] if len(set(values)) == 1 else "…" for values in zip(*numbers, strict=True)]
        counts["".join(word + value for word, value in zip(words, [*same, ""], strict=True))] = len(numbers)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
