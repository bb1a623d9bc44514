"""The labels that the first network of a cascade found, as inputs of the second: nnU-Net's 3d_cascade_fullres.

Source: nnunetv2 2.8.1 (predict_from_raw_data.py, default_preprocessor.py, cropping.py, label_handling.py).
"""

import numpy as np

from flaresemi.geometry import BoundingBox
from flaresemi.inference.predictor import StagePredictor
from flaresemi.inference.restoring import restored_labels
from flaresemi.labels import LabelSet
from flaresemi.plans import StagePlan
from flaresemi.preprocessing.preprocessor import PreparedImage
from flaresemi.preprocessing.splines import resample_values, separate_axis

#: Value of what is 0 in the image around the patient: a label of its own while labels are resampled.
_OUTSIDE = -1


def label_inputs(
    first: StagePredictor, prepared: PreparedImage, plan: StagePlan, labels: LabelSet
) -> tuple[np.ndarray, tuple[str, ...]]:
    """What the second network sees behind the image's channels.

    The first network's label map is made as if it were the result, on the image's own voxels, and resampled from there.

    Args:
        first: The first network.
        prepared: The image.
        plan: Of the second network.
        labels: Of both.

    Returns:
        For each of the labels' values, in ascending order, where it is: 0 or 1, float32, (values, *shape of the
        second network's grid); and notes.

    Raises:
        ImageError: that takes more memory than is free.
        PredictionError: the first network's output is not finite.
    """
    grid = prepared.grid(first.plan)
    whole = BoundingBox.whole(grid.shape_zyx)
    first.refuse_too_large(grid, whole, whole=False)
    padding = np.zeros(first.plan.network.input_channels, np.float32)
    found, notes = first.over_slabs(
        prepared.stage_image(first.plan),
        lambda slabs: restored_labels(slabs, whole, grid, first.plan, first.convention),
        padding,
    )
    values = labels.to_values(found.indices_zyx).astype(np.int32)
    values[(values == labels.background) & ~prepared.filled_mask_zyx] = _OUTSIDE
    axis = separate_axis(grid.canonical_spacing_zyx_mm, plan.spacing_zyx_mm)
    values = resample_values(values, prepared.grid(plan).shape_zyx, axis)
    return np.stack([values == value for value in label_values(labels)]).astype(np.float32), notes


def label_values(labels: LabelSet) -> tuple[int, ...]:
    """The values of a cascade's labels, one input each."""
    return tuple(sorted(labels.known_values - {labels.background}))
