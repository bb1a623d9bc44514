"""How sure a network is, how often it is right, and the temperature that brings the two together.

Every logit is divided by one temperature, which leaves the order of the classes as it is, and so the label map.
Source: C. Guo et al., On Calibration of Modern Neural Networks, 2017 (temperature scaling; the expected calibration
error with 15 bins).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from flaresemi.ranges import Count, Few, Range, Share

#: Temperatures that are tried: an eighth of an octave apart. Chosen: neighbors differ less than cases do.
TEMPERATURES = tuple(2.0 ** (step / 8) for step in range(-16, 25))

#: Bins of confidence between 0 and 1.
BINS = 15

#: With fewer held-out cases nothing is fitted (chosen: one is left out in turn, and two must remain).
LEAST_CASES = 3

_Number = Annotated[float, Range(-1e15, 1e15)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceCounts:
    """Of the voxels of one held-out case near its organs, at every temperature.

    Attributes:
        voxels: How many there are.
        losses: The sum of -log(probability of the true class), per temperature.
        gaps: The sum of (probability of the predicted class - whether it is true), per temperature and bin of that
            probability.
    """

    voxels: Count
    losses: tuple[_Number, ...]
    gaps: tuple[tuple[_Number, ...], ...]

    def __post_init__(self) -> None:
        if not len(self.losses) == len(self.gaps) == len(TEMPERATURES) or any(len(row) != BINS for row in self.gaps):
            raise ValueError(f"expected {len(TEMPERATURES)} losses, and as many rows of {BINS} gaps")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    """What a network's logits are divided by, so that its probabilities are right as often as they say.

    The expected calibration error (ECE): the voxels, in bins of their highest probability; in each, the distance of the
    mean probability from the share that is right; their mean, by voxels.

    Attributes:
        value: The temperature; 1 where none made the error smaller on cases left out of the fit.
        cases: How many held-out cases it was fitted on.
        voxels: How many voxels near organs.
        error_before: The ECE without it.
        error_after: The ECE with it: for each case, with the temperature that the others ask for.
    """

    value: Annotated[float, Range(TEMPERATURES[0], TEMPERATURES[-1])]
    cases: Few
    voxels: Count
    error_before: Share
    error_after: Share


def fit_temperature(cases: Sequence[ConfidenceCounts]) -> Temperature | None:
    """The temperature of the least loss over all cases; None where there are too few."""
    cases = [case for case in cases if case.voxels]
    if len(cases) < LEAST_CASES:
        return None
    losses, gaps = np.array([case.losses for case in cases]), np.array([case.gaps for case in cases])
    voxels, one = sum(case.voxels for case in cases), TEMPERATURES.index(1.0)
    chosen = (losses.sum(axis=0) - losses).argmin(axis=1)  # by the other cases
    before = _error(gaps[:, one], voxels)
    after = _error(gaps[np.arange(len(cases)), chosen], voxels)
    best = int(losses.sum(axis=0).argmin()) if after < before else one
    return Temperature(
        value=TEMPERATURES[best],
        cases=len(cases),
        voxels=voxels,
        error_before=before,
        error_after=min(after, before),
    )


def _error(gaps: np.ndarray, voxels: int) -> float:
    return float(np.abs(gaps.sum(axis=0)).sum()) / voxels


def common_temperature(of_folds: Sequence[Temperature | None]) -> float | None:
    """The temperature of the mean logits of several folds: the geometric mean; None unless each has one."""
    known = [each.value for each in of_folds if each is not None]
    if not known or len(known) < len(of_folds):
        return None
    return math.prod(known) ** (1 / len(known))
