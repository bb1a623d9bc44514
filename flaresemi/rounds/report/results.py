"""Did the round help? The verdict, and the held-out real cases behind it."""

import numpy as np

from flaresemi.plans import Stage
from flaresemi.reporting.charts import Axis, Series, line_chart, step
from flaresemi.reporting.page import (
    Column,
    Html,
    Tone,
    change,
    details,
    element,
    figure,
    join,
    key_figures,
    notice,
    paragraph,
    table,
)
from flaresemi.rounds.report.facts import Metric, RoundFacts, dice
from flaresemi.rounds.stopping import collapsed_organs

OPTIMISM = "The best of several rounds is an optimistic figure: it was chosen by the cases that it is measured on."

_METRICS: tuple[tuple[Metric, str], ...] = (("dice", "Dice"), ("nsd", "NSD"))


def name_of(number: int) -> str:
    return "start" if number == 0 else f"round {number}"


def figure_text(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def verdict_box(facts: RoundFacts) -> Html:
    """The first thing to read: helped or not, by how much, and what comes next."""
    tone, headline = _headline(facts)
    mark = element(
        "span", {"good": "▲ ", "bad": "▼ ", "caution": "● "}.get(tone, "● "), class_="mark", aria_hidden="true"
    )
    told = [_falls(facts)]
    if facts.verdict is not None:
        best = element("strong", name_of(facts.verdict.best_round))
        ending = "The chain ends here" if facts.verdict.stop else "The chain goes on"
        told.append(paragraph(f"{ending}; the models to use are those of ", best, "."))
        told.append(paragraph(f"Stop rule: {facts.verdict.why}.", class_="muted"))
    box = element("div", element("p", mark, headline, class_="headline"), *told, class_=f"verdict {tone}")
    return join([box, _key_figures(facts), notice("caution", OPTIMISM) if facts.held_out else None])


def _falls(facts: RoundFacts) -> Html | None:
    """Organs that are worse than in the best round before, beyond doubt."""
    if not facts.held_out:
        return None
    since = facts.best_before
    changes = {organ: facts.change(since, organ=organ) for organ in facts.organs}
    falls = {organ: found for organ, found in changes.items() if found is not None and found.is_fall}
    if not falls:
        return paragraph(f"No organ fell by more than its standard error since {name_of(since)}.")
    named = (join([organ, change(found.mean, error=found.error)], between=" ") for organ, found in falls.items())
    count = "1 organ" if len(falls) == 1 else f"{len(falls)} organs"
    told = f"{count} fell by more than the standard error since {name_of(since)}: "
    return paragraph(told, join(named, between=", "), ".")


def _headline(facts: RoundFacts) -> tuple[Tone, str]:
    number = facts.number
    if not facts.held_out or facts.verdict is None:
        return "caution", f"Round {number} cannot be judged: no labeled case was held out."
    since, gain = facts.best_before, facts.change(facts.best_before)
    fallen = collapsed_organs(dice(facts.held_out[since]), dice(facts.held_out[-1]), facts.rule.collapse)
    if fallen:
        return "bad", f"Round {number} lost what was known: {', '.join(fallen)} collapsed since {name_of(since)}."
    if gain is None:
        return (
            "caution",
            f"Round {number} cannot be compared with {name_of(since)}: they have no scored case in common.",
        )
    spread = "from a single case, so without a standard error" if gain.error is None else f"± {gain.error:.4f}"
    told = f"{abs(gain.mean):.4f} {spread}, since {name_of(since)}."
    if facts.verdict.best_round == number:
        return "good", f"Round {number} helped: mean Dice rose by {told}"
    if gain.is_fall:
        return "bad", f"Round {number} did harm: mean Dice fell by {told}"
    way = "+" if gain.mean >= 0 else "−"
    return "caution", f"Round {number} brought no clear gain: mean Dice changed by {way}{told}"


def _key_figures(facts: RoundFacts) -> Html:
    rows: list[tuple[object, object, object]] = []
    for metric, title in _METRICS if facts.held_out else ():
        start, now = facts.held_out[0].mean(metric), facts.held_out[-1].mean(metric)
        rows.append((f"Mean {title}, held-out", figure_text(now), f"start {figure_text(start)}"))
    if facts.held_out:
        rows.append(("Held-out cases", len(facts.held_out[-1].cases), f"of {_folds_told(facts)}"))
    if facts.selection is not None:
        pool = len(facts.selection.selected) + len(facts.selection.rejected)
        organs, most = sum(len(case.supervised) for case in facts.selection.selected), pool * len(facts.organs)
        rows.append(("Unlabeled cases used", len(facts.selection.selected), f"of {pool}"))
        rows.append(("Organ labels used", f"{organs / most:.0%}" if most else "–", f"{organs} of {most}"))
    return key_figures(rows)


def _folds_told(facts: RoundFacts) -> str:
    return f"fold {facts.fold}" if len(facts.folds) == 1 else f"folds {', '.join(facts.folds)}"


def results(facts: RoundFacts) -> Html:
    """The chapter on the held-out cases."""
    if not facts.held_out:
        return join([
            notice(
                "caution",
                f"The chain of fold '{facts.fold}' has no validated held-out cases: whether the round helped is not "
                "known. What was selected and how the training went is told below, and proves nothing "
                "about the result.",
            ),
            rounds_table(facts),
        ])  # fmt: skip
    return join([
        *(organ_table(facts, metric, title) for metric, title in _METRICS),
        paragraph(
            "Differences are paired case by case, with their standard error. ▲ and ▼ mark every rise and fall; those "
            "beyond one standard error stand in bold and color. NSD is the share of the surface that lies within each "
            "organ's tolerance.",
            class_="muted",
        ),
        element("h3", "Round by round"),
        _rounds_chart(facts),
        rounds_table(facts),
        details("Every organ in every round", *(_organs_by_round(facts, metric, title) for metric, title in _METRICS)),
        details("Every held-out case", _cases_table(facts)),
        _recall(facts),
    ])  # fmt: skip


def organ_table(facts: RoundFacts, metric: Metric, title: str) -> Html:
    """A metric of each organ, with the change since the start and since the best round before."""
    best, compares = facts.best_before, facts.best_before > 0
    now = name_of(facts.number)
    titles = ["start", now, "since start"]
    if compares:
        titles = ["start", name_of(best), now, "since start", f"since {name_of(best)}"]
    columns = [Column(title="Organ", numeric=False), *(Column(title=each) for each in titles)]
    columns.append(Column(title=f"start ○ to {now} ●, on 0 to 1", numeric=False))
    rows = [[organ, *_organ_cells(facts, metric, organ, compares)] for organ in facts.organs]
    caption = (
        f"{title} of the held-out real cases ({len(facts.held_out[-1].cases)}): {now} against the supervised start"
        + (f" and {name_of(best)}, the best before it" if compares else "")
    )
    return table(columns, rows, caption=caption, foot=[["mean", *_organ_cells(facts, metric, None, compares)]])


def _organ_cells(facts: RoundFacts, metric: Metric, organ: str | None, compares: bool) -> list[object]:
    def level(number: int) -> float | None:
        held_out = facts.held_out[number]
        if organ is None:
            return held_out.mean(metric)
        values = list(held_out.organ(organ, metric).values())
        return float(np.mean(values)) if values else None

    def since(number: int) -> Html:
        found = facts.change(number, metric, organ)
        return change(None) if found is None else change(found.mean, error=found.error)

    shown = [0, facts.best_before, facts.number] if compares else [0, facts.number]
    start, now = level(0), level(facts.number)
    return [
        *(figure_text(level(number)) for number in shown),
        *(since(number) for number in shown[:-1]),
        None if start is None or now is None else step(start, now),
    ]


def rounds_table(facts: RoundFacts) -> Html:
    """One row per round: what it reached, what it was trained on, what it took."""
    columns = [Column(title="Round", numeric=False)]
    if facts.held_out:
        columns += [Column(title="mean Dice"), Column(title="mean NSD"), Column(title="Dice since start")]
    columns += [Column(title="cases used"), Column(title="organ labels used"), Column(title="time")]
    rows = []
    for number in range(facts.number + 1):
        cells: list[object] = [_round_name(facts, number)]
        if facts.held_out:
            found = facts.change(0, until=number) if number else None
            cells += [figure_text(facts.held_out[number].mean(metric), 4) for metric, _ in _METRICS]
            cells.append(change(None) if found is None else change(found.mean, digits=4, error=found.error))
        selection = facts.selections[number - 1] if number else None
        if selection is None:
            cells += ["–", "–"]
        else:
            pool = len(selection.selected) + len(selection.rejected)
            organs = sum(len(case.supervised) for case in selection.selected)
            cells += [f"{len(selection.selected)} of {pool}", f"{organs} of {pool * len(facts.organs)}"]
        seconds = sum(step.seconds for step in facts.states[number - 1].steps.values()) if number else None
        cells.append("–" if seconds is None else duration(seconds))
        rows.append(cells)
    return table(columns, rows, caption="All rounds of this chain")


def _round_name(facts: RoundFacts, number: int) -> Html:
    tag = None
    if facts.verdict is not None and facts.verdict.best_round == number:
        tag = element("span", "best", class_="tag good")
    return join([name_of(number), tag], between=" ")


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _rounds_chart(facts: RoundFacts) -> Html:
    series = [
        Series(name=f"mean {title}", look=look, points=_curve([each.mean(metric) for each in facts.held_out]))
        for look, (metric, title) in enumerate(_METRICS)
    ]
    values = [value for each in series for _, value in each.points]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max((high - low) * 0.15, 0.01)
    told = (f"{name_of(number)} {figure_text(each.mean('dice'))}" for number, each in enumerate(facts.held_out))
    chart = line_chart(
        series,
        Axis(title="round (0: supervised start)", low=0, high=facts.number, is_whole=True),
        Axis(title="held-out cases", low=max(low - room, 0.0), high=min(high + room, 1.0)),
        alt=f"Mean Dice and NSD of the held-out cases by round; Dice: {', '.join(told)}",
        size=(620, 240),
    )
    return figure(chart, "Means over organs and held-out cases. The axis does not begin at 0.")


def _curve(values: list[float | None]) -> list[tuple[float, float]]:
    return [(float(number), value) for number, value in enumerate(values) if value is not None]


def _organs_by_round(facts: RoundFacts, metric: Metric, title: str) -> Html:
    columns = [Column(title="Organ", numeric=False)]
    columns += [Column(title=name_of(number)) for number in range(facts.number + 1)]
    rows = []
    for organ in facts.organs:
        found = [list(each.organ(organ, metric).values()) for each in facts.held_out]
        rows.append([organ, *(figure_text(float(np.mean(values)) if values else None) for values in found)])
    foot = ["mean", *(figure_text(each.mean(metric)) for each in facts.held_out)]
    return table(columns, rows, caption=f"Mean {title} of the held-out cases", foot=[foot])


def _cases_table(facts: RoundFacts) -> Html:
    columns = [Column(title="Case", numeric=False)]
    columns += [Column(title=name_of(number), group="mean Dice") for number in range(facts.number + 1)]
    columns += [Column(title="change since start"), Column(title="largest fall since start", numeric=False)]
    means = [each.case_means("dice") for each in facts.held_out]
    start, now = facts.held_out[0].values("dice"), facts.held_out[-1].values("dice")
    rows = []
    for case_id in sorted(means[-1], key=lambda each: means[-1][each] - means[0].get(each, 0.0)):
        falls = {
            organ: now[case_id][organ] - start[case_id][organ] for organ in now[case_id] if organ in start[case_id]
        }
        organ = min(falls, key=lambda each: falls[each], default=None)
        fall = join([organ, change(falls[organ])], between=" ") if organ is not None and falls[organ] < 0 else "–"
        rows.append([
            case_id, *(figure_text(each.get(case_id)) for each in means),
            change(means[-1][case_id] - means[0][case_id]) if case_id in means[0] else change(None), fall,
        ])  # fmt: skip
    return table(columns, rows, caption="Held-out cases, the largest loss first")


def _recall(facts: RoundFacts) -> Html | None:
    """What COARSE's region keeps of the organs: what it cuts off, FINE cannot draw."""
    if not facts.recall or Stage.COARSE not in facts.stages:
        return None
    worst = min(facts.recall, key=lambda each: each.share)
    mean = float(np.mean([each.share for each in facts.recall]))
    return paragraph(
        f"COARSE of this round keeps {mean:.2%} of the organs of the held-out cases in its region; the least is "
        f"{worst.share:.1%} ({worst.organ} in {worst.case_id})."
    )
