"""Everything that the report shows of a round, read from disk once; nothing is recomputed."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from flaresemi.case_names import case_file
from flaresemi.errors import SelectionError
from flaresemi.evaluation.flare import OrganMetrics
from flaresemi.evaluation.summary import load_summary
from flaresemi.io.case_store import CaseStore, LabelStore
from flaresemi.plans import DatasetFingerprint, Plans, Stage, load_fingerprint, load_plans
from flaresemi.pseudolabels.calibration import Calibration, Observation, Observations
from flaresemi.pseudolabels.selecting import LabeledVolumes, labeled_volumes, volumes_ml
from flaresemi.pseudolabels.vitals import Vitals
from flaresemi.records import load_record
from flaresemi.rounds.protection import vanishing_organs
from flaresemi.rounds.state import RoundState, load_state
from flaresemi.rounds.stopping import StopRule, Verdict, collapsed_organs, judge
from flaresemi.selection import OUTSIDE, CaseScore, Selection, load_scores
from flaresemi.training.validation import CaseResult
from flaresemi.workspace import ModelFolder, RoundFolder, Workspace

Metric = Literal["dice", "nsd"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Scores of the held-out real cases after one round, by case, by organ."""

    cases: dict[str, dict[str, OrganMetrics]]

    def values(self, metric: Metric) -> dict[str, dict[str, float]]:
        """By case, by organ; organs that a case does not annotate are left out."""
        return {
            case_id: {name: value for name, score in organs.items() if (value := getattr(score, metric)) is not None}
            for case_id, organs in self.cases.items()
        }

    def by_case(self, metric: Metric, organ: str | None = None) -> dict[str, float]:
        """Of each case that has one: the score of an organ, or the mean over all its organs."""
        values = self.values(metric)
        if organ is not None:
            return {case_id: found[organ] for case_id, found in values.items() if organ in found}
        return {case_id: float(np.mean(list(found.values()))) for case_id, found in values.items() if found}

    def mean(self, metric: Metric, organ: str | None = None) -> float | None:
        """Mean of an organ over the cases, or of all organs' means; None where nothing was scored."""
        if organ is not None:
            found = list(self.by_case(metric, organ).values())
        else:
            organs = dict.fromkeys(name for organs in self.values(metric).values() for name in organs)
            found = [mean for name in organs if (mean := self.mean(metric, name)) is not None]
        return float(np.mean(found)) if found else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A paired difference: its mean over the cases, and the standard error of that, None for a single case."""

    mean: float
    error: float | None = None

    @property
    def is_fall(self) -> bool:
        """Whether it fell by more than its standard error."""
        return self.error is not None and self.mean < -self.error


class Recall(NamedTuple):
    """The share of an organ of a held-out case inside the region that COARSE finds."""

    case_id: str
    organ: str
    share: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoundFacts:
    """All that is known of a round and of those before it.

    Attributes:
        workspace: Where everything lies.
        fold: The chain's fold.
        folds: Chains whose held-out cases judge together.
        number: Of the round, from 1.
        rule: When the chain stops.
        verdict: On this round; None where there is no held-out case.
        plans: Of the dataset.
        fingerprint: Of the labeled cases.
        held_out: From the supervised start to this round; empty without held-out cases.
        best_before: The best of the rounds before this one.
        states: Of rounds 1 to this one.
        selections: Of the same rounds; None where a round left none.
        scores: Of this round's pseudo-labels, best first.
        calibration: Of the scores; None where there were too few held-out cases.
        observations: Scores of held-out cases, with their true Dice.
        vitals: Every organ before and after this round; None where nobody looked (versions before).
        vanishing: By round from the first, organs that it was losing, with the reason.
        recall: Recall of this round's COARSE region on the fold's held-out cases; empty without COARSE.
        not_found: Missing files and the consequence, in words.
    """

    workspace: Workspace
    fold: str
    folds: tuple[str, ...]
    number: int
    rule: StopRule
    verdict: Verdict | None
    plans: Plans
    fingerprint: DatasetFingerprint
    held_out: tuple[HeldOut, ...]
    best_before: int
    states: tuple[RoundState, ...]
    selections: tuple[Selection | None, ...]
    scores: tuple[CaseScore, ...]
    calibration: Calibration | None
    observations: tuple[Observation, ...]
    vitals: Vitals | None
    vanishing: tuple[dict[str, str], ...]
    recall: tuple[Recall, ...]
    not_found: tuple[str, ...]

    @property
    def folder(self) -> RoundFolder:
        return self.workspace.round(self.fold, self.number)

    @property
    def state(self) -> RoundState:
        return self.states[-1]

    @property
    def selection(self) -> Selection | None:
        return self.selections[-1]

    @property
    def organs(self) -> tuple[str, ...]:
        return self.plans.labels.names

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage.COARSE, Stage.FINE) if self.plans.two_stage else (Stage.FINE,)

    def label_store(self, case_id: str) -> LabelStore:
        """Where the label map of a case lies on FINE's grid: among the pseudo-labels, or among those of persons."""
        selected = self.selection.selected if self.selection is not None else ()
        is_reviewed = any(case.case_id == case_id and case.source != "pseudo" for case in selected)
        folder = self.folder.reviewed(Stage.FINE) if is_reviewed else self.folder.labels(Stage.FINE)
        return LabelStore(folder, CaseStore(self.workspace.preprocessed(Stage.FINE)))

    def model(self, number: int, stage: Stage) -> ModelFolder:
        """Of this chain; 0 is the supervised start."""
        return self.workspace.round_model(self.fold, number, stage)

    @property
    def collapsed(self) -> dict[str, float]:
        """Organs that collapsed since the best round before, with the change of their mean Dice."""
        before, now = (self.held_out[number].values("dice") for number in (self.best_before, -1))
        return collapsed_organs(before, now, self.rule.collapse, self.vanishing[-1])

    def used_of(self, number: int) -> tuple[int, int, int, int]:
        """Cases that a round used, of how many, and organs of cases, of how many; all 0 without a selection."""
        selection = self.selections[number - 1]
        if selection is None:
            return 0, 0, 0, 0
        pool = len(selection.selected) + len(selection.rejected)
        organs = sum(len(case.supervised) for case in selection.selected)
        return len(selection.selected), pool, organs, pool * len(self.organs)

    @property
    def used(self) -> dict[str, frozenset[str]]:
        """Organs of each unlabeled case that the students were trained on; none of a rejected case."""
        selected = self.selection.selected if self.selection is not None else ()
        used = {case.case_id: frozenset(case.supervised) for case in selected}
        return {case.case_id: used.get(case.case_id, frozenset()) for case in self.scores}

    @property
    def labeled_volumes(self) -> dict[str, LabeledVolumes]:
        """Volumes in the labeled cases, of the organs that are in any."""
        case_ids = [case.case_id for case in self.fingerprint.cases]
        parts = volumes_ml(self.fingerprint, self.organs, case_ids, parts=True)
        return labeled_volumes(volumes_ml(self.fingerprint, self.organs, case_ids), parts)

    @property
    def judge(self) -> str:
        """The quantity that the organs are scored by."""
        organs = (organ for case in self.scores for organ in case.organs.values())
        return "predicted Dice" if any(organ.predicted_dice is not None for organ in organs) else "agreement"

    def change(
        self, since: int, metric: Metric = "dice", organ: str | None = None, *, until: int = -1
    ) -> Change | None:
        """From an earlier round to this one, or to another, over the cases that both have; None where there is none.

        Of an organ, or of the cases' means.
        """
        before, after = (self.held_out[number].by_case(metric, organ) for number in (since, until))
        changes = [after[case_id] - before[case_id] for case_id in before if case_id in after]
        if not changes:
            return None
        error = float(np.std(changes, ddof=1)) / math.sqrt(len(changes)) if len(changes) > 1 else None
        return Change(mean=float(np.mean(changes)), error=error)


def gather(
    workspace: Workspace, fold: str, number: int, *, rule: StopRule, verdict: Verdict | None, folds: Sequence[str]
) -> RoundFacts:
    """Reads what a complete round left; the arguments are attributes of the `RoundFacts`.

    Raises:
        SelectionError: the round was never begun, or a file of it is damaged.
        PlanError: the workspace has no plans.
    """
    states = tuple(_state(workspace, fold, each) for each in range(1, number + 1))
    folder = workspace.round(fold, number)
    not_found: list[str] = []
    held_out = _held_out(workspace, folds, number, not_found)
    paths = (workspace.round(fold, each).selection for each in range(1, number + 1))
    selections = tuple(load_record(path, Selection, error=SelectionError) if path.is_file() else None for path in paths)
    if selections[-1] is None:
        not_found.append(f"{folder.selection}: what was selected is not known")
    if not folder.scores.is_file():
        not_found.append(f"{folder.scores}: the scores are not known")
    scores = load_scores(folder.scores) if folder.scores.is_file() else ()
    calibration = workspace.round_model(fold, number - 1, Stage.FINE).calibration
    calibrated = calibration.is_file() and states[-1].made_with[:1] != (OUTSIDE,)
    observed = (workspace.round(each, number).observations for each in folds)
    vanishing = tuple(vanishing_organs(workspace, folds, each) for each in range(1, number + 1))
    dices = [each.values("dice") for each in held_out[:number]]
    return RoundFacts(
        workspace=workspace,
        fold=fold,
        folds=tuple(folds),
        number=number,
        rule=rule,
        verdict=verdict,
        plans=load_plans(workspace.plans),
        fingerprint=load_fingerprint(workspace.fingerprint),
        held_out=held_out,
        best_before=judge(dices, rule, vanishing).best_round if held_out else 0,
        states=states,
        selections=selections,
        scores=tuple(sorted(scores, key=lambda case: (-case.score, case.case_id))),
        calibration=load_record(calibration, Calibration, error=SelectionError) if calibrated else None,
        observations=tuple(
            each
            for path in observed
            if path.is_file()
            for each in load_record(path, Observations, error=SelectionError).observations
        ),
        vitals=load_record(folder.vitals, Vitals, error=SelectionError) if folder.vitals.is_file() else None,
        vanishing=vanishing,
        recall=_recall(workspace.round_model(fold, number, Stage.COARSE)),
        not_found=tuple(not_found),
    )


def name_of(number: int) -> str:
    """A round's name on the page."""
    return "start" if number == 0 else f"round {number}"


def _state(workspace: Workspace, fold: str, number: int) -> RoundState:
    path = workspace.round(fold, number).state
    state = load_state(path)
    if state is None:
        raise SelectionError(f"there is no round {number} of fold {fold} to report", where=path, fix="run it first")
    return state


def _held_out(workspace: Workspace, folds: Sequence[str], number: int, not_found: list[str]) -> tuple[HeldOut, ...]:
    """The validations of all rounds, over the folds that have them all."""
    rounds: list[dict[str, dict[str, OrganMetrics]]] = [{} for _ in range(number + 1)]
    for fold in folds:
        models = [workspace.round_model(fold, each, Stage.FINE) for each in range(number + 1)]
        paths = [model.validation / "summary.json" for model in models]
        there = [path for path in paths if path.is_file()]
        if len(there) < len(paths):
            if there:
                absent = next(path for path in paths if not path.is_file())
                not_found.append(f"{absent}: the held-out cases of fold {fold} count nowhere on this page")
            continue
        for found, path in zip(rounds, paths, strict=True):
            found.update({case.case_id: case.organs for case in load_summary(path).cases})
    return tuple(HeldOut(cases=found) for found in rounds) if rounds[0] else ()


def _recall(coarse: ModelFolder) -> tuple[Recall, ...]:
    summary = coarse.validation / "summary.json"
    if not summary.is_file():
        return ()
    results = {
        case.case_id: load_record(path, CaseResult)
        for case in load_summary(summary).cases
        if (path := case_file(coarse.validation, case.case_id, ".json")).is_file()
    }
    return tuple(
        Recall(case_id, organ, share)
        for case_id, result in results.items()
        for organ, share in (result.recall or {}).items()
    )
