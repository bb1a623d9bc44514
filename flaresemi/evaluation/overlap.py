"""How much of two masks is shared."""

import numpy as np


def dice(prediction_mask: np.ndarray, reference_mask: np.ndarray) -> float:
    """Dice coefficient of two boolean masks of one shape: twice the shared voxels over the sum of both.

    Both empty: 1. One empty: 0.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction_mask.shape != reference_mask.shape:
        raise ValueError(f"masks of one shape expected, found {prediction_mask.shape} and {reference_mask.shape}")
    total = np.count_nonzero(prediction_mask) + np.count_nonzero(reference_mask)
    if total == 0:
        return 1.0
    return 2.0 * np.count_nonzero(prediction_mask & reference_mask) / total


def dice_per_organ(prediction: np.ndarray, reference: np.ndarray, organs: int) -> tuple[float, ...]:
    """Dice of every organ of two index maps in one pass over the voxels.

    Args:
        prediction: Indices, 0 background to `organs`; any shape.
        reference: The same, of the same shape.
        organs: Number of organs.

    Returns:
        One value per organ, in order of index; 1 where both are empty, 0 where one is.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"maps of one shape expected, found {prediction.shape} and {reference.shape}")
    predicted = np.bincount(prediction.ravel(), minlength=organs + 1)
    referred = np.bincount(reference.ravel(), minlength=organs + 1)
    shared = np.bincount(prediction[prediction == reference], minlength=organs + 1)
    return tuple(
        2.0 * float(shared[index]) / float(total) if (total := predicted[index] + referred[index]) else 1.0
        for index in range(1, organs + 1)
    )
