"""Cleaning a label map after it was drawn."""

from collections.abc import Iterable

import cc3d
import numpy as np

from flaresemi.geometry import BoundingBox


def keep_largest(labels_zyx: np.ndarray, organs: Iterable[int]) -> np.ndarray:
    """Keeps the largest component (26 neighbours) of each of these organs; the rest of them becomes background.

    One pass over the common box of the organs labels the components of all of them at once.

    Args:
        labels_zyx: Organ indices; changed in place.
        organs: Indices of the organs to clean; those that are not there are fine.

    Returns:
        `labels_zyx`.
    """
    wanted = np.zeros(int(np.iinfo(labels_zyx.dtype).max) + 1, bool)
    wanted[list(organs)] = True
    if not wanted.any():
        return labels_zyx
    box = BoundingBox.of_mask(wanted[labels_zyx])
    if box is None:
        return labels_zyx
    part = labels_zyx[box.slices]  # a view: what is written here is written to the label map
    cleaned = np.where(wanted[part], part, part.dtype.type(0))
    components, count = cc3d.connected_components(cleaned, connectivity=26, return_N=True)
    statistics = cc3d.statistics(components)
    largest: dict[int, tuple[int, int]] = {}  # organ -> (voxels, component)
    for component in range(1, count + 1):
        inside = statistics["bounding_boxes"][component]
        organ = int(part[inside][components[inside] == component][0])
        candidate = (int(statistics["voxel_counts"][component]), -component)  # equal sizes: the first one
        largest[organ] = max(largest.get(organ, candidate), candidate)
    dropped = np.ones(count + 1, bool)
    dropped[0] = False
    dropped[[-component for _, component in largest.values()]] = False
    part[dropped[components]] = 0
    return labels_zyx
