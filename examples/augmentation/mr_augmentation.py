"""What MR images differ in: a smooth field of brightness, and more rotation."""

from typing import Any

import numpy as np
from scipy.ndimage import zoom

from flaresemi.training.augmentation import Strength


class BiasField:
    """Multiplies the image by a smooth random field.

    Args:
        largest: Logarithm of the largest factor.
        probability: How often.
    """

    def __init__(self, largest: float = 0.3, probability: float = 0.5) -> None:
        self.largest = largest
        self.probability = probability

    def __call__(self, data: np.ndarray, **others: Any) -> dict[str, Any]:
        """Transforms a batch (B, C, Z, Y, X) with numpy's global generator, which was seeded for this sample."""
        for sample in data:
            if np.random.random() < self.probability:
                points = np.random.uniform(-self.largest, self.largest, (3, 3, 3))
                shape = sample.shape[1:]
                field = zoom(points, [size / 3 for size in shape], order=3, mode="nearest", grid_mode=True)
                lowest = sample.min()
                sample[:] = (sample - lowest) * np.exp(field) + lowest
        return {"data": data, **others}


def _more() -> list[BiasField]:
    return [BiasField()]


MR = Strength(
    rotation_probability=0.3, rotation_degrees=45, scaling_probability=0.2, scaling=(0.7, 1.4), intensity_factor=1.0,
    more=_more,
)  # fmt: skip
