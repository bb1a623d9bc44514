"""Writes the report of a round."""

from collections.abc import Sequence
from pathlib import Path

from flaresemi import __version__
from flaresemi.files import write_text
from flaresemi.reporting.page import render
from flaresemi.rounds.report.cases import pictures
from flaresemi.rounds.report.cautions import cautions
from flaresemi.rounds.report.facts import RoundFacts, gather, name_of
from flaresemi.rounds.report.record import curves, parameters, times
from flaresemi.rounds.report.results import results, summary
from flaresemi.rounds.report.selected import selected
from flaresemi.rounds.stopping import StopRule, Verdict
from flaresemi.training.runs import now
from flaresemi.workspace import Workspace

#: Address within the page, which is the template's name too, and title.
_CHAPTERS = (
    ("results", "Did it help?"),
    ("organs", "Is an organ vanishing?"),
    ("selection", "What was selected"),
    ("pictures", "Cases in pictures"),
    ("curves", "Training curves"),
    ("warnings", "Warnings"),
    ("time", "Time spent"),
    ("parameters", "Every parameter"),
)


def write_report(
    workspace: Workspace,
    fold: str,
    number: int,
    *,
    rule: StopRule,
    verdict: Verdict | None,
    folds: Sequence[str] = (),
) -> Path:
    """Writes the page of a complete round, atomically; it can be written again at any time, since nothing is computed.

    The page is self-contained: style and pictures are inside, and nothing is fetched.

    Args:
        workspace: Where everything lies.
        fold: The chain's fold.
        number: Of the round, from 1.
        rule: When the chain ends.
        verdict: On this round; None where nothing is held out (fold 'all').
        folds: Chains whose held-out cases judge together, this one among them; none: this one alone.

    Returns:
        The file.

    Raises:
        SelectionError: the round was never begun, or a file of it is damaged.
        PlanError: the workspace has no plans.
    """
    facts = gather(workspace, fold, number, rule=rule, verdict=verdict, folds=tuple(folds) or (fold,))
    write_text(facts.folder.report, _page(facts))
    return facts.folder.report


def _page(facts: RoundFacts) -> str:
    return render(
        "rounds/report/report.html",
        title=f"Self-training, round {facts.number} of fold {facts.fold}",
        chapters=_CHAPTERS,
        dataset=facts.plans.dataset_name,
        organs=len(facts.organs),
        written=now().replace("T", " "),
        version=__version__,
        fold=facts.fold,
        number=facts.number,
        is_judged=bool(facts.held_out),
        best_before=facts.best_before,
        verdict=facts.verdict,
        summary=summary(facts),
        results=results(facts),
        vitals=facts.vitals,
        selected=selected(facts),
        pictures=pictures(facts),
        curves=curves(facts),
        warnings=cautions(facts),
        times=times(facts),
        parameters=parameters(facts),
        name_of=name_of,
        duration=_duration,
    )


def _duration(seconds: float | None) -> str:
    """A duration in words; a dash where there is none."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
