"""Did the round help? The verdict, and the held-out real cases behind it."""

import numpy as np

from flaresemi.plans import Stage
from flaresemi.reporting.charts import Axis, Series, line_chart
from flaresemi.reporting.page import (
    Column,
    Html,
    Tone,
    change,
    details,
    element,
    figure,
    join,
    notice,
    pairs,
    paragraph,
    table,
)
from flaresemi.rounds.report.facts import Change, Metric, RoundFacts, dice, used_organs
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
    mark = element("span", {"good": "▲ ", "bad": "▼ ", "caution": "● "}.get(tone, "● "), class_="mark", aria_hidden="true")
    told: list[Html] = []
    if facts.verdict is not None:
        told.append(paragraph(f"The stop rule says: {facts.verdict.why}."))
        best = name_of(facts.verdict.best_round)
        ending = "The chain ends here" if facts.verdict.stop else "The chain goes on"
        told.append(paragraph(f"{ending}; the models to use are those of ", element("strong", best), "."))
    box = element("div", element("p", mark, headline, class_="headline"), *told, class_=f"verdict {tone}")
    return join([box, _key_figures(facts), notice("caution", OPTIMISM) if facts.held_out else None])


def _headline(facts: RoundFacts) -> tuple[Tone, str]:
    number = facts.number
    if not facts.held_out or facts.verdict is None:
        return "caution", f"Round {number} cannot be judged: no labeled case was held out."
    since, gain = facts.best_before, facts.change(facts.best_before)
    fallen = collapsed_organs(dice(facts.held_out[since]), dice(facts.held_out[-1]), facts.rule.collapse)
    if fallen:
        return "bad", f"Round {number} lost what was known: {', '.join(fallen)} collapsed since {name_of(since)}."
    told = _told(gain)
    if facts.verdict.best_round == number:
        return "good", f"Round {number} helped: mean Dice changed by {told} since {name_of(since)}."
    if gain is not None and gain.is_fall:
        return "bad", f"Round {number} did harm: mean Dice changed by {told} since {name_of(since)}."
    return "caution", f"Round {number} brought no clear gain: mean Dice changed by {told} since {name_of(since)}."


def _told(gain: Change | None) -> str:
    if gain is None:
        return "an unknown amount"
    sign = "+" if gain.mean >= 0 else "−"
    error = "with one case, so without a standard error" if gain.error is None else f"± {gain.error:.4f}"
    return f"{sign}{abs(gain.mean):.4f} {error}"


def _key_figures(facts: RoundFacts) -> Html:
    rows: list[tuple[object, object]] = []
    for metric, title in _METRICS if facts.held_out else ():
        start, now = facts.held_out[0].mean(metric), facts.held_out[-1].mean(metric)
        below = element("small", f"start {figure_text(start)}")
        rows.append((f"Mean {title}, held-out", join([figure_text(now), below])))
    if facts.held_out:
        cases = element("small", f"of {_folds_told(facts)}")
        rows.append(("Held-out cases", join([len(facts.held_out[-1].cases), cases])))
    if facts.selection is not None:
        used = used_organs(facts)
        organs, pool = sum(map(len, used.values())), len(facts.scores)
        rows.append(("Pseudo-labeled cases used", join([len(facts.selection.selected), element("small", f"of {pool}")])))
        share = f"{organs / max(pool * len(facts.organs), 1):.0%}"
        rows.append(("Organ labels used", join([share, element("small", f"{organs} of {pool * len(facts.organs)}")])))
    return element("div", pairs(rows), class_="key")


def _folds_told(facts: RoundFacts) -> str:
    return f"fold {facts.fold}" if len(facts.folds) == 1 else f"folds {', '.join(facts.folds)}"


def results(facts: RoundFacts) -> Html:
    """The chapter on the held-out cases."""
    if not facts.held_out:
        return join([
            notice(
                "caution",
                f"The chain of fold '{facts.fold}' has no validated held-out cases: whether the round helped is not known. "
                "The chapters below tell what was selected and how the training went, which proves nothing about the result.",
            ),
            rounds_table(facts),
        ])  # fmt: skip
    return join([
        organ_table(facts),
        paragraph(
            "Differences are paired case by case, with their standard error. ▲ and ▼ mark every rise and fall; those beyond "
            "one standard error stand in bold and color. NSD is the share of the surface within each organ's tolerance.",
            class_="muted",
        ),
        element("h3", "Round by round"),
        _rounds_chart(facts),
        rounds_table(facts),
        details("Every organ in every round", *(_organs_by_round(facts, metric, title) for metric, title in _METRICS)),
        details("Every held-out case", _cases_table(facts)),
        _recall(facts),
    ])  # fmt: skip


def organ_table(facts: RoundFacts) -> Html:
    """Dice and NSD of each organ, with the change since the start and since the best round before."""
    best, compares = facts.best_before, facts.best_before > 0
    columns, rows = [Column(title="Organ", numeric=False)], []
    for _, title in _METRICS:
        columns.append(Column(title="start", group=title))
        if compares:
            columns.append(Column(title=name_of(best), group=title))
        columns += [
            Column(title=name_of(facts.number), group=title),
            Column(title="since start", group=title),
        ]
        if compares:
            columns.append(Column(title=f"since {name_of(best)}", group=title))
    for organ in facts.organs:
        cells: list[object] = [organ]
        for metric, _ in _METRICS:
            cells += _organ_cells(facts, metric, organ, compares)
        rows.append(cells)
    mean: list[object] = ["mean"]
    for metric, _ in _METRICS:
        mean += _organ_cells(facts, metric, None, compares)
    caption = (
        f"Held-out real cases ({len(facts.held_out[-1].cases)}): round {facts.number} against the supervised start"
        + (f" and {name_of(best)}, the best before it" if compares else "")
    )
    return table(columns, rows, caption=caption, foot=[mean])


def _organ_cells(facts: RoundFacts, metric: Metric, organ: str | None, compares: bool) -> list[object]:
    def level(number: int) -> str:
        held_out = facts.held_out[number]
        if organ is None:
            return figure_text(held_out.mean(metric))
        values = list(held_out.organ(organ, metric).values())
        return figure_text(float(np.mean(values)) if values else None)

    def since(number: int) -> Html:
        found = facts.change(number, metric, organ)
        return change(None) if found is None else change(found.mean, error=found.error)

    best = facts.best_before
    if compares:
        return [level(0), level(best), level(facts.number), since(0), since(best)]
    return [level(0), level(facts.number), since(0)]


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
    chart = line_chart(
        series,
        Axis(title="round (0: supervised start)", low=0, high=facts.number, is_whole=True),
        Axis(title="held-out cases", low=max(low - room, 0.0), high=min(high + room, 1.0)),
        alt="Mean Dice and NSD of the held-out cases by round: "
        + ", ".join(f"{name_of(number)} {figure_text(each.mean('dice'))}" for number, each in enumerate(facts.held_out)),
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
        falls = {organ: now[case_id][organ] - start[case_id][organ] for organ in now[case_id] if organ in start[case_id]}
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
