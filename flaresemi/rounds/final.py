"""The final models: trained once, after the rounds, on every label and the chains' best pseudo-labels."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from flaresemi.errors import SelectionError
from flaresemi.files import clear_folder
from flaresemi.io.case_store import LabelStore
from flaresemi.planning.splits import ALL
from flaresemi.plans import Stage
from flaresemi.pseudolabels.calibration import Calibration
from flaresemi.pseudolabels.teachers import judged_weights_hash
from flaresemi.ranges import Few
from flaresemi.records import load_record, save_record
from flaresemi.rounds.round import Round
from flaresemi.rounds.state import inputs_hash, load_state
from flaresemi.selection import SelectedCase, Selection
from flaresemi.workspace import RoundFolder

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinalState:
    """The inputs of the final models.

    Attributes:
        inputs: Hash of everything that determines them, except the real cases.
        cases: Hash of the real cases, as they were prepared; empty in states of older versions.
        folds: The chains whose pseudo-labels they are trained on.
        labels_of_round: The round in which the best models produced these pseudo-labels.
        chains: Per pseudo-labeled case, the fold whose label map was chosen.
    """

    schema_version: int = SCHEMA_VERSION
    inputs: str
    cases: str = ""
    folds: tuple[str, ...]
    labels_of_round: Few
    chains: dict[str, str]


def train_final(rounds: Sequence[Round]) -> RoundFolder | None:
    """Trains COARSE and FINE on all labeled cases and the pseudo-labels of these rounds; resumable.

    Nothing is held out, so these models have no score of their own; the chains' score is the best estimate.

    Args:
        rounds: One per chain, all with the same number: the round that the best models labeled. It is labeled and
            selected from first where that is not done. If its own students have begun, the selection is made apart, by
            the decisions and options of today.

    Returns:
        The folder of the models; None when training was asked to stop.

    Raises:
        FlaresemiError: as raised by the rounds.
    """
    first, folder = rounds[0], rounds[0].workspace.final_round
    before = load_record(folder.state, FinalState, error=SelectionError) if folder.state.exists() else None
    is_underway = before is not None and not folder.model(Stage.FINE).final.exists()
    for round in rounds:
        begun = load_state(round.folder.state)
        if begun is not None and "train COARSE" in begun.steps:
            round.choose_apart(round.workspace.final_choice(round.fold))
        # Of another round, it is not what these models began with.
        is_same_round = before is not None and before.labels_of_round == round.number
        round.reviews.keeps = is_underway and is_same_round and round.chosen.selection.exists()
    for last_step in ("label", "select"):  # all folds label first: each selects by a calibration on all of them
        if any(round.run(last_step=last_step) is None for round in rounds):
            return None
    chains, selection = merged([load_record(round.chosen.selection, Selection) for round in rounds])
    state = FinalState(
        inputs=inputs_hash(*(round.training_inputs(stage) for round in rounds for stage in first.stages)),
        cases=inputs_hash(*("".join(round.real_cases) for round in rounds)),
        folds=tuple(round.fold for round in rounds),
        labels_of_round=first.number,
        chains=chains,
    )
    if before is None:
        clear_folder(folder.root, folder.NAMES)  # left by an interrupted removal of outdated models
    elif not _is_same(before, state):
        logger.warning("the inputs of the final models have changed: they are trained again")
        clear_folder(folder.root, folder.NAMES)
    save_record(folder.state, state)
    save_record(folder.selection, selection)
    for stage in first.stages:
        by_fold = {round.fold: round for round in rounds}
        labels = {
            case.case_id: by_fold[chains[case.case_id]].reviews.label_store(stage, case) for case in selection.selected
        }
        if not _train(first, stage, selection, labels):
            return None
    if first.calibration_file.exists():  # the final models have no held-out cases; those of the chain are alike
        fine = folder.model(Stage.FINE)
        calibration = load_record(first.calibration_file, Calibration, error=SelectionError)
        save_record(fine.calibration, dataclasses.replace(calibration, made_with=judged_weights_hash(fine)))
    return folder


def _is_same(before: FinalState, now: FinalState) -> bool:
    return before in (now, dataclasses.replace(now, cases=""))


def merged(selections: Sequence[Selection]) -> tuple[dict[str, str], Selection]:
    """Merges the selections of several chains, with the highest-scoring pseudo-label of each case.

    Returns:
        The fold whose pseudo-label was chosen, by case; and the merged selection.
    """
    best: dict[str, tuple[SelectedCase, str]] = {}
    for selection in selections:
        for case in selection.selected:
            if case.case_id not in best or case.rank > best[case.case_id][0].rank:
                best[case.case_id] = (case, selection.fold)
    everywhere = set.intersection(*(set(selection.rejected) for selection in selections))
    ordered = sorted(best.values(), key=lambda item: (-item[0].score, item[0].case_id))
    chosen = dataclasses.replace(
        selections[0],
        fold="all",
        selected=tuple(case for case, _ in ordered),
        rejected={case_id: why for case_id, why in selections[0].rejected.items() if case_id in everywhere},
    )
    return {case.case_id: fold for case, fold in ordered}, chosen


def _train(round: Round, stage: Stage, selection: Selection, labels: Mapping[str, LabelStore]) -> bool:
    folder = round.workspace.final_round.model(stage)
    if folder.final.exists():
        logger.info("final %s is trained", stage.value)
        return True
    task = round.prepared.task(stage, ALL, round.dataset)
    task = dataclasses.replace(task, folder=folder, purpose="final models")
    return round.fit(task, selection, labels)
