"""How much of two masks is shared."""

import numpy as np

from flaresemi.labels import LabelSet, Members


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


def dice_per_organ(
    prediction: np.ndarray, reference: np.ndarray, organs: int, regions: Members | None = None
) -> tuple[float, ...]:
    """Dice of every organ of two index maps in one pass over the voxels.

    Args:
        prediction: Indices, 0 is background; any shape.
        reference: The same, of the same shape.
        organs: Number of organs.
        regions: The indices of each organ; None: organ i is index i.

    Returns:
        One value per organ, in order; 1 where both are empty, 0 where one is.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"maps of one shape expected, found {prediction.shape} and {reference.shape}")
    if regions is not None:
        return _dice_of_regions(prediction, reference, regions)
    predicted = np.bincount(prediction.ravel(), minlength=organs + 1)
    referred = np.bincount(reference.ravel(), minlength=organs + 1)
    shared = np.bincount(prediction[prediction == reference], minlength=organs + 1)
    return tuple(
        2.0 * float(shared[index]) / float(total) if (total := predicted[index] + referred[index]) else 1.0
        for index in range(1, organs + 1)
    )


def without_ignored(
    prediction: np.ndarray, reference: np.ndarray, labels: LabelSet
) -> tuple[np.ndarray, np.ndarray, bool]:
    """A prediction and its reference, both of them background where nobody annotated; and whether that is anywhere."""
    ignored = reference == labels.ignored
    if not ignored.any():
        return prediction, reference, False
    nothing = prediction.dtype.type(0), reference.dtype.type(0)
    return np.where(ignored, nothing[0], prediction), np.where(ignored, nothing[1], reference), True


def dice_of_annotated(prediction: np.ndarray, reference: np.ndarray, labels: LabelSet) -> tuple[float | None, ...]:
    """As `dice_per_organ`, over the annotated voxels alone.

    Returns:
        One value per organ; None for an organ that neither has there, while it may be where nobody annotated.
    """
    prediction, reference, is_partial = without_ignored(prediction, reference, labels)
    if is_partial:
        return dice_where_present(prediction, reference, labels)
    return dice_per_organ(prediction, reference, labels.count, labels.regions)


def dice_where_present(prediction: np.ndarray, reference: np.ndarray, labels: LabelSet) -> tuple[float | None, ...]:
    """As `dice_per_organ`, but None for an organ that neither of both has."""
    found = dice_per_organ(prediction, reference, labels.count, labels.regions)
    predicted, referred = (np.bincount(each.ravel(), minlength=labels.channels) for each in (prediction, reference))
    voxels = labels.per_organ(predicted) + labels.per_organ(referred)
    return tuple(value if count else None for value, count in zip(found, voxels, strict=True))


def _dice_of_regions(prediction: np.ndarray, reference: np.ndarray, regions: Members) -> tuple[float, ...]:
    """The same where an organ is a union of indices: one pass counts how often which meets which."""
    channels = 1 + max(index for indices in regions for index in indices)
    pairs = prediction.ravel().astype(np.int64)
    pairs *= channels
    pairs += reference.ravel()
    met = np.bincount(pairs, minlength=channels**2).reshape(channels, channels)
    values = []
    for indices in map(list, regions):
        total = float(met[indices].sum() + met[:, indices].sum())
        values.append(2.0 * float(met[np.ix_(indices, indices)].sum()) / total if total else 1.0)
    return tuple(values)
