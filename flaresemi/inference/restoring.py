"""From the logits of a stage to labels on the image's own voxels."""

import logging

import numpy as np
import torch

from flaresemi.conventions import Convention
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.plans import StagePlan
from flaresemi.preprocessing.preprocessor import restoring_kinds
from flaresemi.preprocessing.resampling import labels_from_logits

logger = logging.getLogger(__name__)


def restored_labels(
    logits_czyx: torch.Tensor, region: BoundingBox, grid: StageGrid, plan: StagePlan, convention: Convention | None
) -> tuple[np.ndarray, BoundingBox]:
    """Resampled logits to labels, on the device of the logits where they fit.

    Args:
        logits_czyx: Scores in the region, (outputs, *region.shape_zyx).
        region: Where, in voxels of the stage.
        grid: Of the stage, for this image.
        plan: Of the stage.
        convention: Of a model of nnU-Net.

    Returns:
        Label indices in a box, and the box, in canonical voxels.
    """
    body = grid.body_box
    inside = grid.to_canonical(region)
    where = (grid.shape_zyx, body.shape_zyx, inside.shifted((-body.start[0], -body.start[1], -body.start[2])))
    how = (restoring_kinds(plan, grid), () if convention is None else convention.painted)
    try:
        return labels_from_logits(logits_czyx, region, *where, *how), inside
    except torch.OutOfMemoryError:
        logger.info("GPU memory ran out while restoring: done in main memory")
    return labels_from_logits(logits_czyx.cpu(), region, *where, *how), inside
