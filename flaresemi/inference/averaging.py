"""Models of several plans at work together: the mean of their probabilities, on the image's own voxels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np

from flaresemi.compute.metering import StepClock
from flaresemi.errors import CheckpointError
from flaresemi.geometry import BoundingBox
from flaresemi.inference.cascade import Segmenter, SegmenterOptions
from flaresemi.inference.models import CheckpointName, cleaning, load_all_models
from flaresemi.inference.restoring import ImageScores, placed, saved
from flaresemi.inference.segmentation import Segmentation
from flaresemi.inference.segmenter import ImageSegmenter, Save, Watch
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image
from flaresemi.planning.findings import Finding
from flaresemi.preprocessing.averaging import KnownLogits, labels_from_average
from flaresemi.room import enough_memory
from flaresemi.system_errors import lacks_gpu_memory


def load_segmenter(
    model: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: CheckpointName = "final",
    coarse: Path | None = None,
    **options: Unpack[SegmenterOptions],
) -> ImageSegmenter:
    """Loads whatever predicts: models of one plan, or all that `flaresemi_find_best` chose.

    Args:
        model: As for `load_all_models`, with the three arguments that follow it.
        options: As for `Segmenter`.

    Raises:
        CheckpointError: no models, or models that do not belong together.
        ConfigError: the device is not there.
    """
    loaded = load_all_models(model, folds=folds, checkpoint=checkpoint, coarse=coarse)
    segmenters = [Segmenter.of(each, **options) for each in loaded]
    return segmenters[0] if len(segmenters) == 1 else AveragedSegmenter(segmenters)


class AveragedSegmenter(ImageSegmenter):
    """The models of several plans as one: each finds and segments its region, then their probabilities are averaged.

    What lies outside of a plan's region is background to that plan. Label maps are cleaned as most of the models have
    it.

    Args:
        members: One per plan, at least two.

    Raises:
        CheckpointError: they have other organs or channels, or one is a model of nnU-Net.
    """

    def __init__(self, members: Sequence[Segmenter]) -> None:
        if len(members) < 2:
            raise ValueError("an average is of at least two")
        first = members[0]
        for member in members:
            _refuse_other(first, member)
        self.members = tuple(members)
        self.channels, self.labels, self.engine = first.channels, first.labels, first.engine
        self.fine_files = tuple(file for member in members for file in member.fine_files)
        self.models = tuple(name for member in members for name in member.models)
        self.temperatures = tuple(temperature for member in members for temperature in member.temperatures)
        self._clean = cleaning([each for member in members for each in member.facts])
        own = {f"{name} {at}": value for at, member in enumerate(members) for name, value in member.options.items()}
        self.options = {**own, "average": str(self._clean)}

    def segment(
        self,
        image: Image,
        *,
        watch: Watch | None = None,
        save: Save | None = None,
        name: str = "",
        strict: bool = False,
    ) -> Segmentation:
        """As `ImageSegmenter.segment`; there is no output of one FINE to watch.

        Raises:
            ValueError: it is to be watched.
        """
        if watch is not None:
            raise ValueError("several plans have no common output to watch")
        scores: list[ImageScores] = []
        told: tuple[Finding, ...] = ()
        for member in self.members:
            scores.append(member.scores(image, name=name, strict=strict, told=told))
            told += scores[-1].findings
        segmentation = self.restore(scores, image.source)
        return segmentation if save is None else saved(segmentation, scores, save)

    @enough_memory()
    def restore(self, scores: Sequence[ImageScores], source: SourceGrid) -> Segmentation:
        """The label map that follows from what each member says of an image, in their order.

        Args:
            source: The grid of the image.
        """
        clock = StepClock()
        with clock("restore"):
            labels, box = _average([each.known for each in scores])
            indices, doubts = placed(labels, box, scores[0].known.grid, self._clean, self.labels)
        notes = [f"plan {at}: {note}" for at, each in enumerate(scores, start=1) for note in each.notes]
        steps = dict.fromkeys(step for each in scores for step in each.seconds)
        return Segmentation(
            indices_zyx=indices,
            labels=self.labels,
            source=source,
            notes=(*notes, *doubts),
            seconds={step: sum(each.seconds.get(step, 0.0) for each in scores) for step in steps} | clock.seconds,
            findings=tuple(dict.fromkeys(finding for each in scores for finding in each.findings)),
        )


def _average(parts: Sequence[KnownLogits]) -> tuple[np.ndarray, BoundingBox]:
    """Of logits that may lie on different devices; in main memory where that of the GPU does not do."""
    if len({part.logits_czyx.device for part in parts}) == 1:
        try:
            return labels_from_average(parts)
        except RuntimeError as problem:
            if not lacks_gpu_memory(problem):
                raise
    return labels_from_average([part.in_main_memory() for part in parts])


def _refuse_other(first: Segmenter, other: Segmenter) -> None:
    for field in ("labels", "channels"):
        if getattr(first, field) != getattr(other, field):
            raise CheckpointError(
                f"these models differ in their {field} and cannot be averaged",
                where=" and ".join(map(str, (*first.fine_files[:1], *other.fine_files[:1]))),
                fix="average models that were trained on the same dataset",
            )
    if other.facts[0].convention is not None:
        raise CheckpointError("a model of nnU-Net cannot be averaged with others", fix="predict with it alone")
