"""The whole pool of unlabeled cases: labeled once per round, in any number of shards, and put together again."""

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flaresemi.case_names import case_file
from flaresemi.compute.claims import Claims
from flaresemi.compute.sharding import Shard
from flaresemi.errors import DatasetError, FlaresemiError, PredictionError, SelectionError, listed
from flaresemi.evaluation.overlap import dice_per_organ
from flaresemi.files import write_text
from flaresemi.io.case_store import CaseStore, LabelStore
from flaresemi.plans import Stage
from flaresemi.preprocessing.resampling import resample_labels
from flaresemi.pseudolabels.calibration import Observation
from flaresemi.pseudolabels.labeling import LabeledCase, Labeler
from flaresemi.records import load_record, record_hash, save_record
from flaresemi.selection import CaseScore, Selection
from flaresemi.unfinished import remove_leftovers
from flaresemi.workspace import RoundFolder

logger = logging.getLogger(__name__)


def label_pool(
    labeler: Labeler,
    case_ids: Sequence[str],
    folder: RoundFolder,
    *,
    shard: Shard,
    stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Labels the cases that these checkpoints have not labeled yet, one after the other.

    A case is done when its score file is there, which is written last. Memory does not grow with the number of cases.
    Several processes may do this at once: each claims the case that it is labeling.

    Args:
        shard: Which of the cases are for this process, and whether the others are, too, when it has done its own.
        stop_requested: Asked before every case; True ends the work.

    Returns:
        True when all cases of the shard are done, whoever did them; False when it was asked to stop before.

    Raises:
        FlaresemiError: cases are not prepared, damaged, or the networks' output on them cannot be used; it names them,
            and comes after all others were labeled.
    """
    made_with, images = labeler.chain.made_with, labeler.stores

    def is_done(case_id: str) -> bool:
        return is_labeled(case_id, made_with, images, folder)

    is_watched = sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
    with Claims(folder.claims) as claims:
        if shard.helps and not claims.are_exclusive:
            logger.warning("%s: this file system has no locks; every shard labels its own part alone", claims.path)
            shard = dataclasses.replace(shard, helps=False)
        mine = shard.before_others(case_ids)
        left = [case_id for case_id in mine if not is_done(case_id)]
        if left and len(left) < len(mine):
            done = len(mine) - len(left)
            logger.info("%d of %d cases are labeled already, not yet: %s", done, len(mine), listed(left))
        turns = claims.hand_out(left, is_done, stop_requested)
        count = 0
        failures: list[FlaresemiError] = []
        for case_id in tqdm(turns, total=len(left), desc="labeling", unit="case", disable=not is_watched):
            _score_file(folder, case_id).unlink(missing_ok=True)  # an old score shall not vouch for a new label
            try:
                labeled = labeler.label(case_id)
            except FlaresemiError as failure:
                logger.warning("%s", failure)
                failures.append(failure)
                continue
            write_labels(labeler, labeled, folder)
            save_record(_score_file(folder, case_id), labeled.score)
            count += 1
        logger.info("labeled %d of %d cases here", count, len(mine))
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise PredictionError(
            f"{len(failures)} of {len(mine)} cases could not be labeled; the others are done",
            where="\n       ".join(failure.what for failure in failures[:20]), fix=failures[0].fix,
        )  # fmt: skip
    return all(map(is_done, left))


def is_labeled(
    case_id: str, made_with: tuple[str, ...], images: Mapping[Stage, CaseStore], folder: RoundFolder
) -> bool:
    """Whether the case was labeled by these checkpoints, as it is prepared now, and its label maps are there.

    No array is read: of thousands of cases this is asked whenever a round goes on.

    Args:
        made_with: Hashes of the checkpoints.
        images: Prepared cases of every stage that is trained on pseudo-labels.
        folder: Of the round.

    Raises:
        FlaresemiError: the case is not prepared, or a record is damaged.
    """
    if not _score_file(folder, case_id).is_file():
        return False
    score = load_record(_score_file(folder, case_id), CaseScore, error=SelectionError)
    return score.made_with == made_with and all(
        LabelStore(folder.labels(stage), store).is_current(case_id) for stage, store in images.items()
    )


def labels_hash(case_ids: Sequence[str], images: Mapping[Stage, CaseStore], folder: RoundFolder) -> str:
    """Hash of what all cases of a round were labeled with, label maps and scores; no array is read.

    Raises:
        FlaresemiError: a case is not labeled, or a record is damaged.
    """
    stores = [LabelStore(folder.labels(stage), store) for stage, store in images.items()]
    return record_hash(
        [
            (
                load_record(_score_file(folder, case_id), CaseScore, error=SelectionError),
                *(store.record(case_id).label_hash for store in stores),
            )
            for case_id in case_ids
        ]
    )


def write_labels(labeler: Labeler, labeled: LabeledCase, folder: RoundFolder) -> None:
    """Writes a pseudo-label on the grids of all stages that will be trained on it."""
    case_id, organs = labeled.score.case_id, labeler.labels.count
    for stage, images in labeler.stores.items():
        shape = images.open(case_id).record.grid.shape_zyx
        store = LabelStore(folder.labels(stage), images)
        store.write_labels(case_id, resample_labels(labeled.label_zyx, shape), organs, tuple(range(1, organs + 1)))


def merge_scores(case_ids: Sequence[str], made_with: tuple[str, ...], folder: RoundFolder) -> tuple[CaseScore, ...]:
    """The scores of all cases, whichever shard made them, sorted by name.

    What killed shards left behind is removed once all cases are there.

    Raises:
        SelectionError: cases are not labeled yet, or were labeled by other checkpoints; it names them.
    """
    scores, missing = [], []
    for case_id in sorted(case_ids):
        path = _score_file(folder, case_id)
        score = load_record(path, CaseScore, error=SelectionError) if path.is_file() else None
        if score is None or score.made_with != made_with:
            missing.append(case_id)
        else:
            scores.append(score)
    if missing:
        raise SelectionError(
            f"{len(missing)} of {len(case_ids)} cases are not labeled in this round: {listed(missing)}",
            where=folder.case_scores,
            fix="run the labeling step (all of its shards) to the end",
        )
    remove_leftovers(folder.case_scores)
    for stage in Stage:
        CaseStore(folder.labels(stage)).remove_leftovers()
    return tuple(scores)


def observe(labeler: Labeler, case_ids: Sequence[str]) -> list[Observation]:
    """Labels held-out real cases as if they were unlabeled, and compares with their labels, on FINE's grid."""
    observations = []
    for case_id in tqdm(case_ids, desc="calibrating", unit="case", disable=not sys.stderr.isatty()):
        stored = labeler.fine_store.open(case_id)
        if stored.label_zyx is None:
            raise DatasetError(f"case '{case_id}' has no label map to compare with", where=stored.folder)
        labeled = labeler.label(case_id)
        overlap = dice_per_organ(labeled.label_zyx, np.asarray(stored.label_zyx), labeler.labels.count)
        observations += [
            Observation(
                case_id=case_id,
                organ=labeler.labels.names[index - 1],
                score=labeled.score.organs[labeler.labels.names[index - 1]],
                dice=overlap[index - 1],
            )
            for index in stored.record.supervised
        ]
    return observations


def write_reliable_series(folder: RoundFolder, selection: Selection) -> None:
    """The names of the selected cases, one a line, best first: the seed's file."""
    write_text(folder.reliable_series, "".join(f"{case.case_id}\n" for case in selection.selected))


def _score_file(folder: RoundFolder, case_id: str) -> Path:
    return case_file(folder.case_scores, case_id, ".json")
