"""How the round was made: training curves, time, and every parameter."""

from collections.abc import Mapping, Sequence

from flaresemi.errors import ConfigError
from flaresemi.plans import Stage
from flaresemi.records import load_record, to_plain
from flaresemi.reporting.charts import Axis, Series, legend, line_chart
from flaresemi.reporting.page import Column, Html, details, element, join, notice, paragraph, share_bar, table
from flaresemi.rounds.report.facts import RoundFacts
from flaresemi.rounds.report.results import duration, name_of
from flaresemi.rounds.state import STEPS, file_hash
from flaresemi.training.history import Row, read_history
from flaresemi.training.runs import RunRecord

_SIZE = (470, 260)


def curves(facts: RoundFacts) -> Html:
    """The chapter with the training curves: this round's students against those before."""
    parts: list[Html] = []
    for stage in reversed(facts.stages):
        parts.append(element("h3", f"{stage.value} student"))
        parts.append(_stage_curves(facts, stage))
    parts.append(
        paragraph(
            "The Dice during training is a cheap look at the prepared cases; for FINE in the organs' box it is an "
            "optimistic one. Losses of rounds compare only in part: pseudo-labels and stronger augmentation "
            "change them.",
            class_="muted",
        )
    )
    return join(parts)


def _stage_curves(facts: RoundFacts, stage: Stage) -> Html:
    histories = {number: read_history(facts.model(number, stage).history) for number in range(facts.number + 1)}
    shown = {number: rows for number, rows in histories.items() if rows}
    if not shown:
        return notice("caution", "No history of this training was found.")
    loss = _series(facts, shown, "loss")
    dice = _series(facts, shown, "validation_mean")
    charts = [_chart(loss, "training loss", None, stage)]
    if dice:
        charts.append(_chart(dice, "mean Dice during training", 1.0, stage))
    most = max((loss, dice), key=len)
    return join([legend(most) if len(most) > 1 else None, element("div", *charts, class_="columns")])


def _chart(series: list[Series], title: str, high: float | None, stage: Stage) -> Html:
    alt = f"{title} of {stage.value} over the iterations: {', '.join(each.name for each in series)}"
    return line_chart(
        series,
        Axis(title="iteration", low=0),
        Axis(title=title, low=0, high=high),
        alt=alt,
        size=_SIZE,
        with_legend=False,
    )


def _series(facts: RoundFacts, histories: Mapping[int, Sequence[Row]], key: str) -> list[Series]:
    made = []
    for number, rows in histories.items():
        points = [(float(str(row["iteration"])), float(str(row[key]))) for row in rows if row.get(key) is not None]
        if points:
            is_this = number == facts.number
            look = 0 if is_this else 1 + number % 5
            made.append(Series(name=name_of(number), points=points, look=look, is_thin=not is_this))
    return made


def times(facts: RoundFacts) -> Html:
    """The chapter on the time spent."""
    columns = [Column(title="Step", numeric=False)]
    columns += [Column(title=name_of(number)) for number in range(1, facts.number + 1)]
    columns.append(Column(title=f"share of round {facts.number}"))
    total = sum(step.seconds for step in facts.state.steps.values())
    rows = []
    for name in STEPS:
        seconds = [state.steps[name].seconds if name in state.steps else None for state in facts.states]
        share = (seconds[-1] or 0.0) / total if total else 0.0
        rows.append(
            [name, *("–" if each is None else duration(each) for each in seconds), share_bar(share, f"{share:.0%}")]
        )
    sums = [duration(sum(step.seconds for step in state.steps.values())) for state in facts.states]
    return table(columns, rows, caption="Wall-clock time per step, over all starts", foot=[["all steps", *sums, ""]])


def parameters(facts: RoundFacts) -> Html:
    """The chapter with every number that decided something."""
    parts = [
        details("Round", _values(to_plain(facts.state.config), f"Choices of round {facts.number} (round.json)")),
        details("Stop rule", _values(to_plain(facts.rule), "When the chain ends")),
    ]
    for stage in reversed(facts.stages):
        parts.append(details(f"Training of {stage.value}", _training(facts, stage)))
    parts.append(details("Checkpoints", _checkpoints(facts)))
    parts.append(details("Plans and data", _values(_data(facts), "Hashes identify what a result depends on")))
    return join(parts)


def _training(facts: RoundFacts, stage: Stage) -> Html:
    path = facts.model(facts.number, stage).run_record
    if not path.is_file():
        return paragraph("No record of this training was found.")
    record = load_record(path, RunRecord, error=ConfigError)
    return _values(to_plain(record), f"The record of this training ({path.name})")


def _checkpoints(facts: RoundFacts) -> Html:
    labeled_by = facts.scores[0].made_with if facts.scores else ()
    rows: list[Sequence[object]] = [["labeled this round's cases", element("code", hash_), ""] for hash_ in labeled_by]
    for stage in reversed(facts.stages):
        final = facts.model(facts.number, stage).final
        if final.is_file():
            where = final.relative_to(facts.workspace.root)
            rows.append([f"{stage.value} of this round", element("code", file_hash(final)), element("code", where)])
    columns = [
        Column(title="What", numeric=False),
        Column(title="SHA-256", numeric=False),
        Column(title="file", numeric=False),
    ]
    return table(columns, rows, caption="First digits of the files' hashes")


def _data(facts: RoundFacts) -> dict[str, object]:
    held_out = facts.held_out[-1].cases if facts.held_out else {}
    return {
        "dataset": facts.plans.dataset_name,
        "workspace": str(facts.workspace.root),
        "fold": facts.fold,
        "judged over folds": ", ".join(facts.folds),
        "labeled cases": len(facts.fingerprint.cases),
        "held-out cases": sorted(held_out),
        "unlabeled cases": len(facts.scores),
        "fingerprint": facts.plans.fingerprint_hash,
        **{f"plan of {stage.value}": facts.plans.stage(stage).hash for stage in facts.stages},
        "preset": facts.plans.preset,
    }


def _values(plain: object, caption: str) -> Html:
    columns = [Column(title="name", numeric=False), Column(title="value", numeric=False)]
    rows = [[element("code", name), value] for name, value in flat(plain)]
    return table(columns, rows, caption=caption)


def flat(plain: object, at: str = "") -> list[tuple[str, str]]:
    """Parsed JSON as one line per value, nested names joined by points; lists of plain values on one line."""
    if isinstance(plain, dict):
        inside = [flat(value, f"{at}.{name}" if at else str(name)) for name, value in plain.items()]
        return [line for lines in inside for line in lines]
    if isinstance(plain, list):
        return [(at, ", ".join(map(_told, plain)) or "none")]
    return [(at, _told(plain))]


def _told(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
