"""The average symmetric surface distance."""

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


def assd_mm(
    prediction_zyx: np.ndarray, reference_zyx: np.ndarray, spacing_zyx_mm: tuple[float, float, float]
) -> float | None:
    """Mean distance of each surface's voxels to the other surface; None where a mask is empty."""
    if not prediction_zyx.any() or not reference_zyx.any():
        return None
    one, other = _surface(prediction_zyx), _surface(reference_zyx)
    there = distance_transform_edt(~other, spacing_zyx_mm)[one]
    back = distance_transform_edt(~one, spacing_zyx_mm)[other]
    return float(np.concatenate([there, back]).mean())


def _surface(mask_zyx: np.ndarray) -> np.ndarray:
    padded = np.pad(mask_zyx, 1)
    return (padded & ~binary_erosion(padded))[1:-1, 1:-1, 1:-1]
