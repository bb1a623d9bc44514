"""Training curves, time spent and every parameter of a round."""

from collections.abc import Mapping, Sequence

from flaresemi.errors import ConfigError
from flaresemi.plans import Stage
from flaresemi.records import load_record, to_plain
from flaresemi.reporting.charts import Axis, Chart, Point, Series, line_chart
from flaresemi.rounds.report.facts import RoundFacts, name_of
from flaresemi.rounds.state import STEPS, file_hash
from flaresemi.training.history import Row, read_history
from flaresemi.training.runs import RunRecord

_SIZE = (470, 260)


def curves(facts: RoundFacts) -> dict[str, dict[str, object]]:
    """The chapter with the training curves, by stage: this round's students against those before."""
    return {stage.value: _stage_curves(facts, stage) for stage in reversed(facts.stages)}


def _stage_curves(facts: RoundFacts, stage: Stage) -> dict[str, object]:
    """The charts, and the series of their legend."""
    histories = {number: read_history(facts.model(number, stage).history) for number in range(facts.number + 1)}
    loss, dice = (_series(facts, histories, key) for key in ("loss", "validation_mean"))
    charts = [_chart(loss, "training loss", None, stage)] if any(histories.values()) else []
    if dice:
        charts.append(_chart(dice, "mean Dice during training", 1.0, stage))
    return {"charts": charts, "series": max((loss, dice), key=len)}


def _chart(series: Sequence[Series], title: str, high: float | None, stage: Stage) -> Chart:
    points: list[Point] = [point for each in series for point in each.points] or [(1.0, 1.0)]
    return line_chart(
        series,
        Axis(title="iteration", high=max(x for x, _ in points)),
        Axis(title=title, high=max(y for _, y in points) if high is None else high),
        alt=f"{title} of {stage.value} over the iterations: {', '.join(each.name for each in series)}",
        size=_SIZE,
    )


def _series(facts: RoundFacts, histories: Mapping[int, Sequence[Row]], key: str) -> list[Series]:
    made = []
    for number, rows in histories.items():
        points = [(float(str(row["iteration"])), float(str(row[key]))) for row in rows if row.get(key) is not None]
        is_this = number == facts.number
        if points:
            look = 0 if is_this else 1 + number % 5
            made.append(Series(name=name_of(number), points=points, look=look, is_thin=not is_this))
    return made


def times(facts: RoundFacts) -> list[dict[str, object]]:
    """The chapter on the time spent, step by step, then in all: seconds in every round, this round's shares."""
    totals = [sum(step.seconds for step in state.steps.values()) for state in facts.states]
    rows: list[dict[str, object]] = []
    for name in STEPS:
        seconds = [state.steps[name].seconds if name in state.steps else None for state in facts.states]
        rows.append({"name": name, "seconds": seconds, "share": (seconds[-1] or 0.0) / (totals[-1] or 1.0)})
    return [*rows, {"name": "all steps", "seconds": totals}]


def parameters(facts: RoundFacts) -> dict[str, object]:
    """The chapter with every parameter: groups of names and values, and the checkpoints' hashes."""
    groups = [
        ("Round", f"Choices of round {facts.number} (round.json)", flat(to_plain(facts.state.config))),
        ("Stop rule", "When the chain ends", flat(to_plain(facts.rule))),
    ]
    for stage in reversed(facts.stages):
        path = facts.model(facts.number, stage).run_record
        record = flat(to_plain(load_record(path, RunRecord, error=ConfigError))) if path.is_file() else []
        groups.append((f"Training of {stage.value}", f"The record of this training ({path.name})", record))
    data = ("Plans and data", "Hashes identify what a result depends on", flat(_data(facts)))
    return {"groups": groups, "checkpoints": _checkpoints(facts), "data": data}


def _checkpoints(facts: RoundFacts) -> list[tuple[str, str, str]]:
    """Description, hash and file of each."""
    labeled_by = facts.scores[0].made_with if facts.scores else ()
    rows = [("labeled this round's cases", found, "") for found in labeled_by]
    for stage in reversed(facts.stages):
        final = facts.model(facts.number, stage).final
        if final.is_file():
            file = str(final.relative_to(facts.workspace.root))
            rows.append((f"{stage.value} of this round", file_hash(final), file))
    return rows


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


def flat(plain: object, at: str = "") -> list[tuple[str, str]]:
    """Parsed JSON as one line per value, nested names joined by points; lists of plain values on one line."""
    if isinstance(plain, dict) and plain:
        inside = [flat(value, f"{at}.{name}" if at else str(name)) for name, value in plain.items()]
        return [line for lines in inside for line in lines]
    if isinstance(plain, list | dict):
        return [(at, ", ".join(map(_as_text, plain)) or "none")]
    return [(at, _as_text(plain))]


def _as_text(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
