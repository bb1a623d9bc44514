"""Checks of the values of every image, of whatever format: numbers that cannot be computed with."""

import logging
from pathlib import Path

import numpy as np

from flaresemi.errors import ImageError

logger = logging.getLogger(__name__)

#: Beyond this, sums of weighted neighbors leave float32; such values mark voxels that were not measured. Chosen.
LARGEST = 1e30


def replace_unusable(channel_zyx: np.ndarray, path: Path) -> int:
    """Sets voxels that are NaN or infinite, or beyond ±1e30, to the lowest of the others, with a warning.

    Args:
        channel_zyx: float32; changed in place.
        path: For messages.

    Returns:
        How many there were.

    Raises:
        ImageError: there is no other voxel.
    """
    low, high = float(channel_zyx.min()), float(channel_zyx.max())  # NaN where a voxel is
    if low >= -LARGEST and high <= LARGEST:
        return 0
    usable = np.abs(channel_zyx) <= LARGEST
    missing = int(usable.size - np.count_nonzero(usable))
    if missing == usable.size:
        raise ImageError("the image has no finite voxel", where=path)
    lowest = channel_zyx.min(where=usable, initial=np.inf)
    channel_zyx[~usable] = lowest
    logger.warning(
        "%s: %d voxels are NaN or infinite, or beyond ±1e30; they are read as %g, the lowest value",
        path,
        missing,
        lowest,
    )
    return missing
