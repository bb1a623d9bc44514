"""What is looked at in the values of every image, of whatever format: numbers that cannot be computed with."""

import logging
import math
from pathlib import Path

import numpy as np

from flaresemi.errors import ImageError

logger = logging.getLogger(__name__)

#: Beyond this, sums of weighted neighbors leave float32; such values mark voxels that were not measured. Chosen.
LARGEST = 1e30

#: How many voxels tell what is usual in an image. Chosen.
_SAMPLE = 1 << 16


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
        _warn_of_a_lone_value(channel_zyx, low, high, path)
        return 0
    usable = np.abs(channel_zyx) <= LARGEST
    missing = int(usable.size - np.count_nonzero(usable))
    if missing == usable.size:
        raise ImageError("the image has no finite voxel", where=path)
    lowest = channel_zyx.min(where=usable, initial=np.inf)
    channel_zyx[~usable] = lowest
    logger.warning(
        "%s: %d voxels are NaN or infinite, or beyond ±1e30; they are read as %g, the lowest value", path, missing,
        lowest,
    )  # fmt: skip
    _warn_of_a_lone_value(channel_zyx, float(lowest), float(channel_zyx.max()), path)
    return missing


def _warn_of_a_lone_value(channel_zyx: np.ndarray, lowest: float, highest: float, path: Path) -> None:
    """Warns of a voxel so far from the others that it alone makes the standard deviation of the image.

    Intensities that are scaled by it would leave all else as good as constant.
    """
    sample = channel_zyx.reshape(-1)[:: max(1, channel_zyx.size // _SAMPLE)]
    low, middle, high = (float(value) for value in np.percentile(sample, (0.5, 50.0, 99.5)))
    furthest = max(lowest, highest, key=lambda value: abs(value - middle))
    # A voxel at this distance adds a quarter of the usual range, squared, to the variance of all.
    if high > low and abs(furthest - middle) > (high - low) * math.sqrt(channel_zyx.size) / 2:
        logger.warning(
            "%s: a voxel of %g lies far outside of the others (%g to %g); where intensities are scaled by their "
            "standard deviation it spoils the result", path, furthest, low, high,
        )  # fmt: skip
