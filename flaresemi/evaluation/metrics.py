"""Metrics that other installed packages add to those of FLARE."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flaresemi import extensions
from flaresemi.errors import ConfigError
from flaresemi.geometry import FloatTriple

#: Takes the masks of one organ in a box about both, (Z, Y, X), and the distance between voxel centers in mm; gives a
#: number, or None where the metric means nothing, as of an empty mask.
Metric = Callable[[np.ndarray, np.ndarray, FloatTriple], float | None]


def load_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics of these names.

    Raises:
        ConfigError: no installed package declares one of them, or it is no function.
    """
    found: dict[str, Metric] = {}
    for name in names:
        metric, package = extensions.load(extensions.METRICS, name)
        if not callable(metric):
            raise ConfigError(f"'{name}' of {package} is no metric: it cannot be called")
        found[name] = metric
    return found


def measure(
    metrics: Mapping[str, Metric], prediction: np.ndarray, reference: np.ndarray, spacing_zyx_mm: FloatTriple
) -> dict[str, float | None]:
    """The value of each metric for one organ's masks.

    Raises:
        ConfigError: one gave something that is no finite number.
    """
    values: dict[str, float | None] = {}
    for name, metric in metrics.items():
        value = metric(prediction, reference, spacing_zyx_mm)
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"metric '{name}' gave {value}", fix="let it give None where it means nothing")
        values[name] = None if value is None else float(value)
    return values
