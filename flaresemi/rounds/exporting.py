"""The pseudo-labels of a round as files for other programs."""

import logging
from pathlib import Path

from flaresemi.errors import SelectionError, listed
from flaresemi.planning.preparation import refuse_changed
from flaresemi.plans import Stage
from flaresemi.pseudolabels.exporting import export_labels
from flaresemi.records import load_record
from flaresemi.rounds.origin import taught_outside
from flaresemi.rounds.round import Round
from flaresemi.rounds.state import load_state
from flaresemi.selection import OUTSIDE, ExportRecord, Selection

logger = logging.getLogger(__name__)


def export_round(round: Round, folder: Path, *, selected_only: bool) -> int:
    """Writes the pseudo-labels of a round as CASE.nii.gz on the grids of their images; resumable.

    They are those that the round was labeled with, whatever the current options say.

    Returns:
        The number of files written by this call.

    Raises:
        FlaresemiError: the labeling or selection step is not done, an image has changed, or the folder holds other
            pseudo-labels.
    """
    state = load_state(round.folder.state)
    made_with = state.made_with if state else round.made_with()
    wanted = {score.case_id for score in round.labels.merged_scores(round.pool, made_with)}
    selection = load_record(round.folder.selection, Selection, error=SelectionError) if selected_only else None
    if selection is not None:
        wanted = {case.case_id for case in selection.selected}
    if stale := [case_id for case_id in round.unlabeled(made_with) if case_id in wanted]:
        raise SelectionError(
            f"{len(stale)} case(s) were prepared again since they were labeled: {listed(stale)}",
            where=round.folder.root,
            fix="label them again: flaresemi_semi_round --step label",
        )
    cases = [case for case in round.dataset.unlabeled if case.id in wanted]
    refuse_changed(round.dataset, cases, round.plans, round.workspace)
    record = ExportRecord(
        fold=round.fold,
        round=round.number,
        made_with=made_with,
        trained_on=() if made_with[:1] == (OUTSIDE,) else round.split.train,
        taught_outside=taught_outside(round.workspace, [round.fold]),
        selection=selection,
    )
    stores = {case.id: round.labels.stores[Stage.FINE] for case in cases}
    if selection is not None:
        stores |= {case.case_id: round.reviews.label_store(Stage.FINE, case) for case in selection.selected}
    labels = round.plans.labels
    in_parts = [case.id for case in cases if stores[case.id].record(case.id).annotated_voxels is not None]
    if in_parts and labels.ignore is None:
        logger.warning(
            "%d case(s) were corrected in some slices alone, and dataset.json has no value for the others "
            '("ignore"): they are not exported: %s',
            len(in_parts),
            listed(in_parts),
        )
        cases = [case for case in cases if case.id not in in_parts]
    return export_labels(cases, stores, labels, folder, record)
