"""The verdict on a round, and the held-out real cases behind it."""

from flaresemi.errors import listed
from flaresemi.plans import Stage
from flaresemi.reporting.charts import Axis, Series, line_chart
from flaresemi.reporting.page import number as shown
from flaresemi.rounds.report.facts import Change, Metric, RoundFacts, name_of

_METRICS: tuple[tuple[str, Metric], ...] = (("Dice", "dice"), ("NSD", "nsd"))


def summary(facts: RoundFacts) -> dict[str, object]:
    """The summary at the top: whether the round helped and by how much, the organs that clearly fell, key figures."""
    tone, headline = _headline(facts)
    since = {organ: facts.change(facts.best_before, organ=organ) for organ in facts.organs} if facts.held_out else {}
    return {
        "tone": tone,
        "headline": headline,
        "falls": [(organ, change) for organ, change in since.items() if change is not None and change.is_fall],
        "figures": _figures(facts),
    }


def _headline(facts: RoundFacts) -> tuple[str, str]:
    """Its tone and its text."""
    number = facts.number
    if not facts.held_out or facts.verdict is None:
        if facts.vanishing[-1]:
            lost = listed(list(facts.vanishing[-1]))
            return "bad", f"Round {number} is losing {lost}; no labeled case was held out to judge it."
        return "caution", f"Round {number} cannot be judged: no labeled case was held out."
    since, gain = name_of(facts.best_before), facts.change(facts.best_before)
    if facts.collapsed:
        return "bad", f"Round {number} lost what was known: {', '.join(facts.collapsed)} collapsed since {since}."
    if gain is None:
        return "caution", f"Round {number} cannot be compared with {since}: they have no scored case in common."
    spread = "from a single case, so without a standard error" if gain.error is None else f"± {gain.error:.4f}"
    told = f"{abs(gain.mean):.4f} {spread}, since {since}."
    if facts.verdict.best_round == number:
        return "good", f"Round {number} helped: mean Dice rose by {told}"
    if gain.is_fall:
        return "bad", f"Round {number} did harm: mean Dice fell by {told}"
    sign = "+" if gain.mean >= 0 else "−"
    return "caution", f"Round {number} brought no clear gain: mean Dice changed by {sign}{told}"


def _figures(facts: RoundFacts) -> list[tuple[str, object, str]]:
    """Key figures: name, value, and what to compare it with."""
    rows: list[tuple[str, object, str]] = []
    if facts.held_out:
        for title, metric in _METRICS:
            start, now = (shown(facts.held_out[number].mean(metric)) for number in (0, -1))
            rows.append((f"Mean {title}, held-out", now, f"start {start}"))
        folds = f"of fold{'s' if len(facts.folds) > 1 else ''} {', '.join(facts.folds)}"
        rows.append(("Held-out cases", len(facts.held_out[-1].cases), folds))
    if facts.selection is not None:
        cases, pool, organs, most = facts.used_of(facts.number)
        rows.append(("Unlabeled cases used", cases, f"of {pool}"))
        rows.append(("Organ labels used", f"{organs / most:.0%}" if most else "–", f"{organs} of {most}"))
    return rows


def results(facts: RoundFacts) -> dict[str, object]:
    """The chapter on the held-out cases.

    Per metric, `tables` has for each organ, and at last for their mean, the score of every round and the change since
    each of the rounds in `compared`, of which the last is this one.
    """
    compared = sorted({0, facts.best_before, facts.number})
    tables = {
        title: [
            {
                "organ": organ or "mean",
                "scores": [each.mean(metric, organ) for each in facts.held_out],
                "changes": [facts.change(number, metric, organ) for number in compared[:-1]],
            }
            for organ in (*facts.organs, None)
        ]
        for title, metric in _METRICS
        if facts.held_out
    }
    series = [
        Series(
            name=f"mean {title}",
            look=look,
            points=[
                (number, mean) for number, each in enumerate(facts.held_out) if (mean := each.mean(metric)) is not None
            ],
        )
        for look, (title, metric) in enumerate(_METRICS)
    ]
    recall = facts.recall if Stage.COARSE in facts.stages else ()
    return {
        "held_out": len(facts.held_out[-1].cases) if facts.held_out else 0,
        "rounds": [_round(facts, number) for number in range(facts.number + 1)],
        "compared": {number: name_of(number) for number in compared},
        "tables": tables,
        "series": series,
        "chart": _chart(facts, series) if facts.held_out else None,
        "cases": _cases(facts) if facts.held_out else [],
        "recall": sum(each.share for each in recall) / len(recall) if recall else None,
        "worst": min(recall, key=lambda each: each.share, default=None),
    }


def _round(facts: RoundFacts, number: int) -> dict[str, object]:
    """A round's scores, its training labels and its duration."""
    return {
        "name": name_of(number),
        "is_best": facts.verdict is not None and facts.verdict.best_round == number,
        "means": [facts.held_out[number].mean(metric) for _, metric in _METRICS] if facts.held_out else [],
        "change": facts.change(0, until=number) if number and facts.held_out else None,
        "used": facts.used_of(number) if number and facts.selections[number - 1] is not None else None,
        "seconds": sum(step.seconds for step in facts.states[number - 1].steps.values()) if number else None,
    }


def _chart(facts: RoundFacts, series: list[Series]) -> object:
    values = [value for each in series for _, value in each.points]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max((high - low) * 0.15, 0.01)
    told = (f"{name_of(number)} {shown(each.mean('dice'))}" for number, each in enumerate(facts.held_out))
    return line_chart(
        series,
        Axis(title="round (0: supervised start)", high=facts.number, is_whole=True),
        Axis(title="held-out cases", low=max(low - room, 0.0), high=min(high + room, 1.0)),
        alt=f"Mean Dice and NSD of the held-out cases by round; Dice: {', '.join(told)}",
        size=(620, 240),
    )


def _cases(facts: RoundFacts) -> list[dict[str, object]]:
    """The held-out cases, the largest loss first, each with the organ that fell most since the start."""
    means = [each.by_case("dice") for each in facts.held_out]
    start, now = means[0], means[-1]
    organs_before, organs_now = (facts.held_out[number].values("dice") for number in (0, -1))
    rows: list[dict[str, object]] = []
    for case_id in sorted(now, key=lambda each: now[each] - start.get(each, 0.0)):
        before, after = organs_before.get(case_id, {}), organs_now[case_id]
        falls = {organ: after[organ] - before[organ] for organ in after if organ in before}
        organ = min(falls, key=lambda each: falls[each], default="")
        rows.append(
            {
                "case_id": case_id,
                "means": [each.get(case_id) for each in means],
                "change": Change(mean=now[case_id] - start[case_id]) if case_id in start else None,
                "organ": organ,
                "fall": Change(mean=falls[organ]) if falls.get(organ, 0.0) < 0 else None,
            }
        )
    return rows
