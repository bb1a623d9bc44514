"""The Dice that an organ of a pseudo-label probably has, learned on held-out cases whose real labels are known."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from flaresemi.ranges import Count, Range, Share, VolumeMl
from flaresemi.selection import CaseScore, OrganScore

#: Of a calibration (in 1 it was fitted over other scores too), and of what it is learned from.
CALIBRATION_VERSION, OBSERVATIONS_VERSION = 2, 1

#: Fewer observations than these teach nothing beyond agreement itself (chosen).
LEAST_OBSERVATIONS = 15

#: Strength of the pull of the slope toward none, and of an organ's offset toward zero: an organ seen once is believed
#: by half. What was tried differs little (benchmarks/results/calibration.md).
SLOPE_RIDGE, ORGAN_RIDGE = 1.0, 1.0

_CLIP = 0.01

LogOdds = Annotated[float, Range(-1000, 1000)]
Slope = Annotated[float, Range(0, 1000)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """An organ of a held-out case: what the scores said, and its true Dice."""

    case_id: str
    organ: str
    score: OrganScore
    dice: Share


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What the held-out cases of one fold showed in one round."""

    schema_version: int = OBSERVATIONS_VERSION
    observations: tuple[Observation, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A logistic curve of Dice over the logit of agreement, with an offset per organ.

    It never falls: more agreement is never less to expect. With entropy and volume it is no better
    (benchmarks/results/calibration.md).

    Attributes:
        intercept: Of the curve.
        slope: Of the curve.
        offsets: Per organ, pulled toward 0.
        median_ml: Per organ, of the labeled cases; by it agreement knows an absent organ.
        observations: How many it was fitted on.
        error: Mean absolute error on cases left out of the fit.
        error_of_agreement: The same error if agreement itself were the prediction.
        made_with: Hash of the weights that were judged, see `weights_hash`; empty where an older version wrote it.
    """

    schema_version: int = CALIBRATION_VERSION
    intercept: LogOdds
    slope: Slope
    offsets: dict[str, LogOdds]
    median_ml: dict[str, VolumeMl]
    observations: Count
    error: Share
    error_of_agreement: Share
    made_with: str = ""

    @property
    def is_better(self) -> bool:
        """Whether it beat raw agreement on cases that the fit had not seen."""
        return self.error < self.error_of_agreement

    def predict(self, organ: str, score: OrganScore) -> float | None:
        """Expected Dice of an organ; None where it is absent from all masks."""
        if score.agreement is None:
            return None
        return _sigmoid(self.intercept + self.slope * _logit(score.agreement) + self.offsets.get(organ, 0.0))


def with_predictions(score: CaseScore, calibration: Calibration) -> CaseScore:
    """The score with the Dice to expect of every organ."""
    organs = {
        name: dataclasses.replace(organ, predicted_dice=calibration.predict(name, organ))
        for name, organ in score.organs.items()
    }
    return dataclasses.replace(score, organs=organs)


def calibrate(observations: Sequence[Observation], median_ml: dict[str, float]) -> Calibration | None:
    """Fits the curve, and judges it by leaving out one case at a time.

    Args:
        observations: Organs of held-out real cases; those that are absent everywhere are left out.
        median_ml: Per organ, median volume of the labeled cases, for the record.

    Returns:
        None where there are too few observations to learn from.
    """
    present = [each for each in observations if each.score.agreement is not None]
    cases = sorted({each.case_id for each in present})
    if len(present) < LEAST_OBSERVATIONS or len(cases) < 3:
        return None
    errors, raw_errors = [], []
    for left_out in cases:
        trial = _fit([each for each in present if each.case_id != left_out], median_ml)
        for each in present:
            if each.case_id == left_out:
                errors.append(abs((trial.predict(each.organ, each.score) or 0.0) - each.dice))
                raw_errors.append(abs((each.score.agreement or 0.0) - each.dice))
    return dataclasses.replace(
        _fit(present, median_ml), error=float(np.mean(errors)), error_of_agreement=float(np.mean(raw_errors))
    )


def _fit(observations: Sequence[Observation], median_ml: dict[str, float]) -> Calibration:
    """Ridge regression of the logit of Dice, in one linear system; its errors are not known yet."""
    organs = sorted({each.organ for each in observations})
    rows = [
        [1.0, _logit(each.score.agreement or 0.0), *(float(organ == each.organ) for organ in organs)]
        for each in observations
    ]
    matrix, target = np.array(rows), np.array([_logit(each.dice) for each in observations])
    penalty = np.diag([0.0, SLOPE_RIDGE, *[ORGAN_RIDGE] * len(organs)])
    intercept, slope, *offsets = np.linalg.solve(matrix.T @ matrix + penalty, matrix.T @ target)
    if slope < 0:  # by chance, as few observations have it
        matrix[:, 1] = 0.0
        intercept, slope, *offsets = np.linalg.solve(matrix.T @ matrix + penalty, matrix.T @ target)
    return Calibration(
        intercept=float(intercept), slope=float(slope), offsets=dict(zip(organs, map(float, offsets), strict=True)),
        median_ml=median_ml, observations=len(observations), error=math.nan, error_of_agreement=math.nan,
    )  # fmt: skip


def _logit(share: float) -> float:
    clipped = min(max(share, _CLIP), 1 - _CLIP)
    return math.log(clipped / (1 - clipped))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-min(max(value, -30.0), 30.0)))
