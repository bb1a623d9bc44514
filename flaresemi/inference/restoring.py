"""From the logits of a stage to labels on the image's own voxels."""

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from flaresemi.compute.metering import Clock, StepClock, no_clock
from flaresemi.conventions import Convention
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.inference.postprocessing import Cleaning
from flaresemi.inference.segmentation import Segmentation
from flaresemi.inference.segmenter import Save
from flaresemi.io.grids import SourceGrid
from flaresemi.labels import LabelSet
from flaresemi.planning.findings import Finding
from flaresemi.plans import StagePlan
from flaresemi.preprocessing.averaging import KnownLogits
from flaresemi.preprocessing.preprocessor import restoring_kinds
from flaresemi.preprocessing.winners import GrowingLabels, RestoredLabels
from flaresemi.system_errors import lacks_gpu_memory

logger = logging.getLogger(__name__)

#: What is left out of an organ is reported beyond this share of what is kept. Chosen.
NOTABLE_SHARE = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageScores:
    """What the networks of one plan say of an image, before its own voxels get their labels.

    Attributes:
        found: Their logits in the region, and where that is; or labels already, where these logits would be large.
        turned: The grid of the image as the networks saw it.
        findings: Warnings about the image.
        notes: Fallbacks, repairs and retreats.
        seconds: By step.
        temperature: What their probabilities are calibrated by; None: by nothing.
    """

    found: KnownLogits | RestoredLabels
    turned: SourceGrid
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    temperature: float | None = None

    @property
    def known(self) -> KnownLogits:
        """The logits.

        Raises:
            ValueError: only labels are known.
        """
        if isinstance(self.found, RestoredLabels):
            raise ValueError("of these scores only the labels are known")
        return self.found


def placed(
    labels_zyx: np.ndarray, box: BoundingBox, grid: StageGrid, clean: Cleaning, labels: LabelSet
) -> tuple[np.ndarray, list[str]]:
    """A label map of a part of an image, cleaned in place, on all of it; and what a person should know of it.

    Args:
        labels_zyx: Internal indices, (*box.shape_zyx).
        box: Where, in canonical voxels.
        grid: Any of the image's.
        clean: The cleaning.
        labels: The organs.
    """
    notes = _doubts(clean(labels_zyx, labels), labels, math.prod(grid.canonical_spacing_zyx_mm))
    indices = np.zeros(grid.canonical_shape_zyx, labels_zyx.dtype)
    indices[box.slices] = labels_zyx
    return indices, notes if labels_zyx.any() else [*notes, "no organ found in this image"]


def _doubts(kept: Mapping[int, tuple[int, int]], labels: LabelSet, voxel_mm3: float) -> list[str]:
    """Notes of the organs of which much was left out."""
    return [
        f"{labels.names[index - 1]}: {stay * voxel_mm3 / 1000:.3g} ml in one place were kept, "
        f"{go * voxel_mm3 / 1000:.3g} ml in others were left out"
        for index, (stay, go) in kept.items()
        if go > NOTABLE_SHARE * stay
    ]


def restored_labels(
    slabs: Iterable[torch.Tensor],
    region: BoundingBox,
    grid: StageGrid,
    plan: StagePlan,
    convention: Convention | None,
    clock: Clock = no_clock,
) -> RestoredLabels:
    """Resampled logits to labels, on the device of the logits where they fit.

    Args:
        slabs: Scores in the region, (outputs, planes, Y, X) each, from its first plane to its last.
        region: Where, in voxels of the stage.
        grid: Of the stage, for this image.
        plan: Of the stage.
        convention: Of a model of nnU-Net.
        clock: Stands around every slab's work.
    """
    body = grid.body_box
    inside = grid.to_canonical(region)
    where = (grid.shape_zyx, body.shape_zyx, inside.shifted((-body.start[0], -body.start[1], -body.start[2])))
    how = (restoring_kinds(plan, grid), () if convention is None else convention.painted)
    labels = GrowingLabels(region, *where, *how)
    for slab in slabs:
        with clock("restore"):
            _add(labels, slab)
    return RestoredLabels(indices_zyx=labels.indices_zyx, box=inside, grid=grid)


def _add(labels: GrowingLabels, slab_czyx: torch.Tensor) -> None:
    try:
        labels.add(slab_czyx)
        return
    except RuntimeError as problem:
        if not lacks_gpu_memory(problem):
            raise
        logger.info("GPU memory ran out while restoring: done in main memory")
    labels.add(slab_czyx.cpu())


def saved(segmentation: Segmentation, scores: Sequence[ImageScores], save: Save) -> Segmentation:
    """Has saved what the labels were made from; returns them with the seconds that it took."""
    clock = StepClock()
    parts = [dataclasses.replace(each.known, temperature=each.temperature or 1.0) for each in scores]
    if len({part.logits_czyx.device for part in parts}) > 1:
        parts = [part.in_main_memory() for part in parts]
    with clock("save"):
        save(parts, scores[0].turned)
    return dataclasses.replace(segmentation, seconds=segmentation.seconds | clock.seconds)
