"""Labels the pool of unlabeled cases, once per round and in any number of shards, and merges the results."""

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flaresemi.case_names import case_file
from flaresemi.compute.sharding import Shard
from flaresemi.errors import DatasetError, FlaresemiError, PredictionError, SelectionError, listed, without_frames
from flaresemi.evaluation.overlap import dice_of_annotated
from flaresemi.files import write_text
from flaresemi.io.case_store import CaseStore, LabelStore
from flaresemi.labels import LabelSet
from flaresemi.locking import Claims
from flaresemi.plans import Stage
from flaresemi.preprocessing.resampling import resample_labels
from flaresemi.pseudolabels.calibration import Observation
from flaresemi.pseudolabels.labeling import LabeledCase, LabelsCases
from flaresemi.records import load_record, record_hash, save_record
from flaresemi.selection import CaseScore, Selection
from flaresemi.unfinished import remove_leftovers
from flaresemi.workspace import RoundFolder

logger = logging.getLogger(__name__)


class PseudoLabels:
    """The pseudo-labels of a round on disk: for each case a score, and a label map on the grid of every trained stage.

    The score is written last: a case is done when its score is there.

    Args:
        folder: The folder of the round.
        images: The prepared cases of every stage that is trained on pseudo-labels.
    """

    def __init__(self, folder: RoundFolder, images: Mapping[Stage, CaseStore]) -> None:
        self.folder = folder
        self.stores = {stage: LabelStore(folder.labels(stage), store) for stage, store in images.items()}

    def score(self, case_id: str) -> CaseScore | None:
        """The score of a case; None where it is not labeled.

        Raises:
            SelectionError: the record is damaged.
        """
        path = self._score_file(case_id)
        return load_record(path, CaseScore, error=SelectionError) if path.is_file() else None

    def is_current(self, case_id: str, made_with: tuple[str, ...]) -> bool:
        """Whether these checkpoints labeled the case in its current preparation, and its label maps are there.

        Reads no array, since this is checked for thousands of cases whenever a round is resumed.

        Raises:
            FlaresemiError: the case is not prepared, or a record is damaged.
        """
        score = self.score(case_id)
        return (
            score is not None
            and score.made_with == made_with
            and all(store.is_current(case_id) for store in self.stores.values())
        )

    def write(self, labeled: LabeledCase, labels: LabelSet) -> None:
        """Writes a label map on the grids of all stages, then its score.

        Args:
            labeled: The label map and its score.
            labels: The organs of the dataset.
        """
        case_id, saved = labeled.score.case_id, labeled.label_zyx
        if labeled.ignored_zyx is not None:
            kind = saved.dtype if labels.ignored <= np.iinfo(saved.dtype).max else np.dtype(np.uint16)
            saved = np.where(labeled.ignored_zyx, kind.type(labels.ignored), saved.astype(kind, copy=False))
        for store in self.stores.values():
            shape = store.images.open(case_id).record.grid.shape_zyx
            label = resample_labels(saved, shape, labels.ignored)
            store.write_labels(case_id, label, labels.channels - 1, tuple(range(1, labels.count + 1)))
        save_record(self._score_file(case_id), labeled.score)

    def discard_score(self, case_id: str) -> None:
        """Removes the score of a case, so that it cannot vouch for a new label map."""
        self._score_file(case_id).unlink(missing_ok=True)

    def hash(self, case_ids: Sequence[str]) -> str:
        """Hash of the label maps and scores of these cases, from their records alone.

        Raises:
            FlaresemiError: a case is not labeled, or a record is damaged.
        """
        return record_hash(
            [
                (
                    load_record(self._score_file(case_id), CaseScore, error=SelectionError),
                    *(store.record(case_id).label_hash for store in self.stores.values()),
                )
                for case_id in case_ids
            ]
        )

    def merged_scores(self, case_ids: Sequence[str], made_with: tuple[str, ...]) -> tuple[CaseScore, ...]:
        """The scores of all cases, from all shards, sorted by case name.

        Once all cases are there, unfinished files of killed shards are removed.

        Raises:
            SelectionError: cases are not labeled yet, or were labeled by other checkpoints; the message names them.
        """
        found = {case_id: self.score(case_id) for case_id in sorted(case_ids)}
        scores = {case_id: score for case_id, score in found.items() if score and score.made_with == made_with}
        if missing := [case_id for case_id in found if case_id not in scores]:
            raise SelectionError(
                f"{len(missing)} of {len(case_ids)} cases are not labeled in this round: {listed(missing)}",
                where=self.folder.case_scores,
                fix="run the labeling step (all of its shards) to the end",
            )
        remove_leftovers(self.folder.case_scores)
        for stage in Stage:
            CaseStore(self.folder.labels(stage)).remove_leftovers()
        return tuple(scores.values())

    def _score_file(self, case_id: str) -> Path:
        return case_file(self.folder.case_scores, case_id, ".json")


def label_pool(
    labeler: LabelsCases,
    labels: PseudoLabels,
    case_ids: Sequence[str],
    *,
    shard: Shard,
    stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Labels the cases that these checkpoints have not labeled yet, one after another.

    Memory use does not grow with the number of cases. Several processes may work at once: each claims the case that it
    is labeling.

    Args:
        labeler: The models.
        labels: The pseudo-labels of the round.
        case_ids: All cases of the pool.
        shard: The part of the cases that this process labels, and whether it then helps with the other parts.
        stop_requested: Polled before every case; True ends the work.

    Returns:
        True when all cases of the shard are done, by whichever process; False when it was asked to stop before.

    Raises:
        FlaresemiError: cases are not prepared or damaged, or the networks' output on them is not finite. The message
            names them; it is raised after all other cases were labeled.
    """

    def is_done(case_id: str) -> bool:
        return labels.is_current(case_id, labeler.made_with)

    is_watched = sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
    failures: list[FlaresemiError] = []
    claims = Claims(labels.folder.claims)
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
    for case_id in tqdm(turns, total=len(left), desc="labeling", unit="case", disable=not is_watched):
        labels.discard_score(case_id)
        try:
            labeled = labeler.label(case_id)
        except FlaresemiError as failure:
            logger.warning("%s", failure)
            failures.append(without_frames(failure))
            continue
        labels.write(labeled, labeler.labels)
        count += 1
    logger.info("labeled %d of %d cases here", count, len(mine))
    _raise_all(failures, len(mine))
    return all(map(is_done, left))


def _raise_all(failures: Sequence[FlaresemiError], of: int) -> None:
    """Raises the failures of several cases as one error."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise PredictionError(
            f"{len(failures)} of {of} cases could not be labeled; the others are done",
            where="\n       ".join(failure.what for failure in failures[:20]),
            fix=failures[0].fix,
        )


def observe(labeler: LabelsCases, case_ids: Sequence[str]) -> dict[str, list[Observation]]:
    """Labels held-out real cases as if they were unlabeled and compares with their labels, on FINE's grid, by case."""
    observations = {}
    for case_id in tqdm(case_ids, desc="calibrating", unit="case", disable=not sys.stderr.isatty()):
        stored = labeler.fine_store.open(case_id)
        if stored.label_zyx is None:
            raise DatasetError(f"case '{case_id}' has no label map to compare with", where=stored.folder)
        labeled = labeler.label(case_id)
        truth = np.asarray(stored.label_zyx)
        overlap = dice_of_annotated(labeled.label_zyx, truth, labeler.labels)
        observations[case_id] = [
            Observation(
                case_id=case_id,
                organ=labeler.labels.names[index - 1],
                score=labeled.score.organs[labeler.labels.names[index - 1]],
                dice=found,
            )
            for index in stored.record.supervised
            if (found := overlap[index - 1]) is not None
        ]
    return observations


def write_reliable_series(folder: RoundFolder, selection: Selection) -> None:
    """Writes the names of the selected cases, one per line, best first: the file that FlareSemiSeg writes."""
    write_text(folder.reliable_series, "".join(f"{case.case_id}\n" for case in selection.selected))
