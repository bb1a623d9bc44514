"""Agreement between the snapshots of one training on a case: the raw measure of reliability."""

from collections.abc import Sequence

import numpy as np

from flaresemi.evaluation.overlap import dice_per_organ
from flaresemi.labels import Members, per_organ

#: An organ with less than this share of its median labeled volume counts as absent: specks are not an organ.
ABSENT_BELOW = 0.01


def organ_agreement(
    saved_zyx: np.ndarray,
    snapshots_zyx: Sequence[np.ndarray],
    least_voxels: Sequence[float],
    regions: Members | None = None,
) -> tuple[float | None, ...]:
    """Mean Dice between the saved mask and those of the snapshots, for each organ.

    A pair is skipped where both masks lack the organ, and counts 0 where one of them does. ST++ (arXiv 2106.05095)
    compares with the mask of the last checkpoint; here it is the mask that training will use.

    Args:
        saved_zyx: Label indices of the saved mask, (Z, Y, X).
        snapshots_zyx: Label indices by the earlier snapshots, of the same shape.
        least_voxels: Per organ, the smallest number of voxels that counts as present.
        regions: The indices of each organ; None: organ i is index i.

    Returns:
        One value per organ; None where every pair was skipped.
    """
    organs = len(least_voxels)
    least = np.maximum(np.asarray(least_voxels, float), 1.0)
    in_saved = _counts(saved_zyx, organs, regions) >= least
    values: list[list[float]] = [[] for _ in range(organs)]
    for snapshot in snapshots_zyx:
        in_snapshot = _counts(snapshot, organs, regions) >= least
        overlap = dice_per_organ(snapshot, saved_zyx, organs, regions)
        for organ in range(organs):
            if in_saved[organ] and in_snapshot[organ]:
                values[organ].append(overlap[organ])
            elif in_saved[organ] or in_snapshot[organ]:
                values[organ].append(0.0)
    return tuple(float(np.mean(found)) if found else None for found in values)


def case_agreement(organs: Sequence[float | None]) -> float:
    """Mean over the organs that are not absent; 0 when all of them are."""
    found = [value for value in organs if value is not None]
    return float(np.mean(found)) if found else 0.0


def organ_entropy(
    entropy_zyx: np.ndarray, saved_zyx: np.ndarray, organs: int, regions: Members | None = None
) -> tuple[float | None, ...]:
    """Mean entropy inside each organ of the saved mask.

    Args:
        entropy_zyx: Entropy of the probabilities of each voxel, as a share of the largest possible (0 sure, 1 a guess).
        saved_zyx: Label indices.
        organs: Number of organs.
        regions: The indices of each organ; None: organ i is index i.

    Returns:
        One value per organ; None where the organ has no voxel.
    """
    counts = _counts(saved_zyx, organs, regions)
    sums = _counts(saved_zyx, organs, regions, weights=entropy_zyx.ravel())
    return tuple(float(total / count) if count else None for total, count in zip(sums, counts, strict=True))


def _counts(
    labels_zyx: np.ndarray, organs: int, regions: Members | None, weights: np.ndarray | None = None
) -> np.ndarray:
    """Voxels of each organ, or the sums of their weights."""
    most = organs if regions is None else max(index for indices in regions for index in indices)
    return per_organ(np.bincount(labels_zyx.ravel(), weights=weights, minlength=most + 1), regions)
