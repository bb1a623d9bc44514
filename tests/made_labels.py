"""Labels of logits that are all there at once, as of one slab."""

from collections.abc import Sequence

import numpy as np
import torch

from flaresemi.geometry import BoundingBox, IntTriple
from flaresemi.preprocessing.resampling import ALL_LINEAR, Kind
from flaresemi.preprocessing.winners import GrowingLabels


def labels_from_logits(
    logits_czyx: torch.Tensor,
    logits_box: BoundingBox,
    stage_shape_zyx: IntTriple,
    canonical_shape_zyx: IntTriple,
    out_box: BoundingBox,
    kinds: tuple[Kind, Kind, Kind] = ALL_LINEAR,
    painted: Sequence[int] = (),
) -> np.ndarray:
    """See `GrowingLabels`."""
    labels = GrowingLabels(logits_box, stage_shape_zyx, canonical_shape_zyx, out_box, kinds, painted)
    labels.add(logits_czyx)
    return labels.indices_zyx
