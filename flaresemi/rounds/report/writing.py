"""The page as a whole: what is read, in which order, and the file it becomes."""

from collections.abc import Sequence
from pathlib import Path

from flaresemi import __version__
from flaresemi.files import write_text
from flaresemi.reporting.page import Html, Section, element, join, page, paragraph
from flaresemi.rounds.report.cases import pictures
from flaresemi.rounds.report.cautions import about_cases, about_the_round, cautions
from flaresemi.rounds.report.facts import RoundFacts, gather
from flaresemi.rounds.report.record import curves, parameters, times
from flaresemi.rounds.report.results import results, verdict_box
from flaresemi.rounds.report.selected import selected
from flaresemi.rounds.stopping import StopRule, Verdict
from flaresemi.training.runs import now
from flaresemi.workspace import Workspace


def write_report(
    workspace: Workspace,
    fold: str,
    number: int,
    *,
    rule: StopRule,
    verdict: Verdict | None,
    folds: Sequence[str] = (),
) -> Path:
    """Writes the page of a complete round, atomically; again whenever asked, since nothing is computed.

    The page needs nothing but itself: style and pictures are inside, and nothing is fetched.

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
    sections = (
        Section(name="results", title="Did it help?", body=results(facts)),
        Section(name="selection", title="What was selected", body=selected(facts)),
        Section(name="pictures", title="Cases in pictures", body=pictures(facts)),
        Section(name="curves", title="Training curves", body=curves(facts)),
        Section(name="warnings", title="Warnings", body=cautions(facts)),
        Section(name="time", title="Time spent", body=times(facts)),
        Section(name="parameters", title="Every parameter", body=parameters(facts)),
    )
    return page(f"Self-training, round {facts.number} of fold {facts.fold}", lead=_lead(facts), sections=sections)


def _lead(facts: RoundFacts) -> Html:
    written = now().replace("T", " ")
    line = f"{facts.plans.dataset_name} · {len(facts.organs)} organs · written {written} · flaresemi {__version__}"
    told = f"{len(about_the_round(facts))} about the round, {len(about_cases(facts))} about unlabeled cases"
    link = element("a", "Warnings", href="#warnings")
    return join([paragraph(line, class_="lead"), verdict_box(facts), paragraph(link, f": {told}.")])
