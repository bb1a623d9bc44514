"""Held-out cases predicted by every model and by averages of several: kept, and gone on with after a stop."""

import dataclasses
import itertools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from tqdm import tqdm

from flaresemi.case_names import case_file
from flaresemi.comparing.candidates import Candidate
from flaresemi.compute.device import device_name
from flaresemi.dataset import Case, Dataset
from flaresemi.errors import ConfigError, DatasetError, about_case
from flaresemi.evaluation.flare import evaluate_case
from flaresemi.evaluation.folders import CaseScores, default_tolerance_mm
from flaresemi.files import content_hash
from flaresemi.inference.averaging import AveragedSegmenter
from flaresemi.inference.cascade import Segmenter, SegmenterOptions
from flaresemi.inference.prediction_records import ImageVersion, load_prediction, write_prediction
from flaresemi.inference.restoring import ImageScores
from flaresemi.inference.segmentation import Segmentation
from flaresemi.inference.segmenter import ImageSegmenter
from flaresemi.io.images import Image
from flaresemi.networks.openvino import openvino_is_installed
from flaresemi.planning.cases import read_case
from flaresemi.ranges import Seconds
from flaresemi.records import CAME_LATER, load_record, record_hash, save_record

logger = logging.getLogger(__name__)

#: Names of the models whose probabilities are averaged; one predicts alone.
Members = tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutResult:
    """The record of one held-out case, as one configuration predicted it.

    Attributes:
        label_map: Hash of the file that was scored.
        reference: Its label map by hand, as it was read.
        scored_by: Hash of all else that decides the scores.
        seconds: Of every step from the image to the label map, without reading and writing.
        timed_on: The machine that took them, see `_machine`; empty in older ones.
        scores: By organ.
    """

    schema_version: int = 1
    label_map: str
    reference: ImageVersion
    scored_by: str
    seconds: dict[str, Seconds]
    timed_on: str = dataclasses.field(default="", metadata=CAME_LATER)
    scores: CaseScores


class HeldOutCases:
    """The held-out cases of all compared folds, and what is made of them.

    Args:
        candidates: From `find_candidates`.
        dataset: That they were trained on.
        output: Folder for label maps and scores.
        averages: Also average every pair of candidates, and all of them.

    Raises:
        ConfigError: the dataset has other organs than the models.
        DatasetError: a held-out case is not in it, or has no label map any more.
    """

    def __init__(self, candidates: Sequence[Candidate], dataset: Dataset, output: Path, *, averages: bool) -> None:
        self.candidates = candidates
        self.output = output
        names = [candidate.name for candidate in candidates]
        sizes = sorted({1, 2, len(names)} if averages else {1})
        self.configurations: tuple[Members, ...] = tuple(
            members for size in sizes for members in itertools.combinations(names, size)
        )
        self.labels = candidates[0].labels
        _refuse_other_labels(candidates[0], dataset)
        moved = frozenset().union(*(each.moved or () for each in candidates))
        self.cases = {
            fold: tuple(_held_out_case(dataset, case_id, moved) for case_id in sorted(case_ids))
            for fold, case_ids in candidates[0].held_out.items()
        }
        grids = [
            case.images[0] if case.label_on_image_grid or case.label is None else case.label
            for cases in self.cases.values()
            for case in cases
        ]
        self.tolerance_mm = default_tolerance_mm(grids)

    @property
    def label_maps(self) -> Iterator[Path]:
        """The files of all predictions."""
        return (self._label_map(members, case) for members, case in self._all())

    @property
    def results(self) -> Iterator[Path]:
        """The files of all their scores."""
        return (self._result(members, case) for members, case in self._all())

    def _all(self) -> Iterator[tuple[Members, Case]]:
        for members, cases in itertools.product(self.configurations, self.cases.values()):
            yield from ((members, case) for case in cases)

    def predict(self, **options: Unpack[SegmenterOptions]) -> dict[Members, tuple[HeldOutResult, ...]]:
        """Predicts and scores what is not done yet; each case by the models of the fold that held it out.

        Where this machine goes on with what another one began, it does all: their times cannot be compared.

        Args:
            options: As for `Segmenter`.

        Raises:
            FlaresemiError: models or a case cannot be read; the cases before it are kept.
        """
        results = self._predict(options)
        machines = {result.timed_on for found in results.values() for result in found}
        if len(machines) > 1:
            logger.warning("some of the cases were timed on another machine, or with other threads: predicted again")
            results = self._predict(options, timed_here=True)
        return results

    def _predict(
        self, options: SegmenterOptions, *, timed_here: bool = False
    ) -> dict[Members, tuple[HeldOutResult, ...]]:
        """As `predict`; with `timed_here`, nothing is kept that another machine has timed."""
        results: dict[Members, list[HeldOutResult]] = {members: [] for members in self.configurations}
        total = sum(map(len, self.cases.values()))
        with tqdm(total=total, desc="held-out cases", unit="case", disable=not sys.stderr.isatty()) as bar:
            for fold, cases in self.cases.items():
                segmenters = {
                    each.name: Segmenter.load(each.folder, folds=[fold], **options) for each in self.candidates
                }
                together = {
                    members: AveragedSegmenter([segmenters[name] for name in members])
                    for members in self.configurations
                    if len(members) > 1
                }
                for case in cases:
                    with about_case(case.id):
                        found = self._case(case, segmenters, together, timed_here=timed_here)
                    for members, result in found.items():
                        results[members].append(result)
                    logger.info("%s: %s", case.id, ", ".join(map(_told, found.items())))
                    bar.update()
        return {members: tuple(found) for members, found in results.items()}

    def _case(
        self,
        case: Case,
        segmenters: Mapping[str, Segmenter],
        together: Mapping[Members, AveragedSegmenter],
        *,
        timed_here: bool,
    ) -> dict[Members, HeldOutResult]:
        """The results of a case, of which those that are missing are made now."""
        by_members: dict[Members, Segmenter | AveragedSegmenter] = {(name,): each for name, each in segmenters.items()}
        by_members |= together
        known = {members: self._kept(case, members, by_members[members]) for members in self.configurations}
        missing = [
            members
            for members, result in known.items()
            if result is None or (timed_here and result.timed_on != _machine(by_members[members]))
        ]
        if missing:
            image, reference = read_case(case, self.labels)
            if reference is None:
                raise DatasetError("it has no label map", where=case.images[0])
            scores: dict[str, ImageScores] = {}
            for name in dict.fromkeys(name for members in missing for name in members):
                told = [finding for each in scores.values() for finding in each.findings]
                scores[name] = segmenters[name].scores(image, name=case.id, told=told)
            for members in missing:
                own = [scores[name] for name in members]
                segmentation = (
                    together[members].restore(own, image.source)
                    if len(members) > 1
                    else segmenters[members[0]].restore(own[0], image.source)
                )
                known[members] = self._scored(case, members, by_members[members], segmentation, image, reference)
        return {members: result for members, result in known.items() if result is not None}

    def _scored(
        self,
        case: Case,
        members: Members,
        segmenter: Segmenter | AveragedSegmenter,
        segmentation: Segmentation,
        image: Image,
        reference_zyx: np.ndarray,
    ) -> HeldOutResult:
        """Writes a label map, and then its scores, which say that it is done."""
        path = self._label_map(members, case)
        write_prediction(path, segmentation, images=case.images, models=segmenter.models, options=segmenter.options)
        scores = evaluate_case(
            segmentation.indices_zyx,
            reference_zyx,
            image.geometry.spacing_zyx_mm,
            self.labels,
            default_tolerance_mm=self.tolerance_mm,
            annotated=case.annotated,
        )
        result = HeldOutResult(
            label_map=content_hash(path),
            reference=ImageVersion.of(_reference(case)),
            scored_by=self._scored_by(case),
            seconds=segmentation.seconds,
            timed_on=_machine(segmenter),
            scores=CaseScores(case_id=case.id, organs=dict(zip(self.labels.names, scores, strict=True))),
        )
        save_record(self._result(members, case), result)
        return result

    def _kept(self, case: Case, members: Members, segmenter: Segmenter | AveragedSegmenter) -> HeldOutResult | None:
        """The result of an earlier start, if the same models would predict and score the same again."""
        path, file = self._label_map(members, case), self._result(members, case)
        if not path.is_file() or not file.is_file():
            return None
        try:
            record, result = load_prediction(path), load_record(file, HeldOutResult, error=ConfigError)
        except ConfigError:  # made anew
            return None
        is_current = (
            record is not None
            and record.is_current(case.images, segmenter.models, segmenter.options)
            and result.reference.is_of(_reference(case))
            and (result.label_map, result.scored_by) == (content_hash(path), self._scored_by(case))
        )
        return result if is_current else None

    def _scored_by(self, case: Case) -> str:
        return record_hash([self.labels, self.tolerance_mm, case.annotated, case.label_on_image_grid])

    def _label_map(self, members: Members, case: Case) -> Path:
        return case_file(self.output / "predictions" / "+".join(members), case.id, ".nii.gz")

    def _result(self, members: Members, case: Case) -> Path:
        return case_file(self.output / "scores" / "+".join(members), case.id, ".json")


def mean_dice(result: HeldOutResult) -> float | None:
    """Over the organs that were scored; None where none was."""
    found = [score.dice for score in result.scores.organs.values() if score.dice is not None]
    return float(np.mean(found)) if found else None


def _machine(segmenter: ImageSegmenter) -> str:
    """What the times of a segmenter depend on besides its models and options."""
    openvino = ", OpenVINO" if openvino_is_installed() else ""  # the engine `auto` may take it
    return f"{device_name(segmenter.engine.device)}, {torch.get_num_threads()} threads{openvino}"


def _told(item: tuple[Members, HeldOutResult]) -> str:
    members, result = item
    dice = mean_dice(result)
    return f"{'+'.join(members)} {'-' if dice is None else f'{dice:.3f}'} ({sum(result.seconds.values()):.1f} s)"


def _held_out_case(dataset: Dataset, case_id: str, moved: frozenset[str]) -> Case:
    case = dataset.case(case_id)
    if case.label is None:
        raise DatasetError(f"held-out case '{case_id}' has no label map here", where=dataset.root)
    return dataclasses.replace(case, label_on_image_grid=case_id in moved)


def _reference(case: Case) -> Path:
    if case.label is None:
        raise ValueError(f"held-out case {case.id} has no label map")
    return case.label


def _refuse_other_labels(candidate: Candidate, dataset: Dataset) -> None:
    same = dataset.labels_assumed or dataset.labels.meanings == candidate.labels.meanings
    if not same or len(dataset.channels) != len(candidate.channels):
        raise ConfigError(
            f"this dataset has other organs or channels than '{candidate.name}' was trained with",
            where=dataset.root,
            fix="name the dataset that the models were trained on with -d",
        )
