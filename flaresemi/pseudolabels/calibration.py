"""The expected Dice of an organ of a pseudo-label, learned on held-out cases whose real labels are known."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from flaresemi.ranges import Count, Range, Share, VolumeMl
from flaresemi.selection import CaseScore, OrganScore

#: Schema versions of a calibration (version 1 was fitted on further scores, too) and of the observations behind it.
CALIBRATION_VERSION, OBSERVATIONS_VERSION = 2, 1

#: With fewer observations, agreement itself is the better estimate (chosen).
LEAST_OBSERVATIONS = 15

#: Ridge penalties of the slope and of an organ's offset: the offset of an organ seen once is halved. Other values that
#: were tried differ little (benchmarks/results/calibration.md).
SLOPE_RIDGE, ORGAN_RIDGE = 1.0, 1.0

_CLIP = 0.01

LogOdds = Annotated[float, Range(-1000, 1000)]
Slope = Annotated[float, Range(0, 1000)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """An organ of a held-out case: its scores and its true Dice."""

    case_id: str
    organ: str
    score: OrganScore
    dice: Share


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """The observations on the held-out cases of one fold in one round."""

    schema_version: int = OBSERVATIONS_VERSION
    observations: tuple[Observation, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A logistic curve of Dice over the logit of agreement, with an offset per organ.

    It is monotonic: higher agreement never predicts a lower Dice. Adding entropy and volume makes it no better
    (benchmarks/results/calibration.md).

    Attributes:
        intercept: Of the curve, log odds.
        slope: Of the curve.
        offsets: Per organ, log odds, shrunk toward 0.
        median_ml: Per organ, its median volume in the labeled cases, below a share of which it counts as absent.
        observations: How many it was fitted on.
        error: Mean absolute error on cases left out of the fit.
        error_of_agreement: The same error with agreement itself as the prediction.
        made_with: Hash of the judged weights, see `weights_hash`; empty in files of older versions.
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
        """Whether it is closer to the truth than raw agreement on cases left out of the fit."""
        return self.error < self.error_of_agreement

    def predict(self, organ: str, score: OrganScore) -> float | None:
        """The expected Dice of an organ; None where it is absent from all masks."""
        if score.agreement is None:
            return None
        return _sigmoid(self.intercept + self.slope * _logit(score.agreement) + self.offsets.get(organ, 0.0))


def with_predictions(score: CaseScore, calibration: Calibration) -> CaseScore:
    """The score with the expected Dice of every organ."""
    organs = {
        name: dataclasses.replace(organ, predicted_dice=calibration.predict(name, organ))
        for name, organ in score.organs.items()
    }
    return dataclasses.replace(score, organs=organs)


def calibrate(observations: Sequence[Observation], median_ml: dict[str, float]) -> Calibration | None:
    """Fits the curve and estimates its error by leave-one-case-out cross-validation.

    Args:
        observations: Organs of held-out real cases; those that are absent from all masks are ignored.
        median_ml: Per organ, median volume in the labeled cases, for the record.

    Returns:
        None where there are too few observations.
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
    """Ridge regression of the logit of Dice as one linear system; its errors are NaN."""
    organs = sorted({each.organ for each in observations})
    rows = [
        [1.0, _logit(each.score.agreement or 0.0), *(float(organ == each.organ) for organ in organs)]
        for each in observations
    ]
    matrix, target = np.array(rows), np.array([_logit(each.dice) for each in observations])
    penalty = np.diag([0.0, SLOPE_RIDGE, *[ORGAN_RIDGE] * len(organs)])
    intercept, slope, *offsets = np.linalg.solve(matrix.T @ matrix + penalty, matrix.T @ target)
    if slope < 0:  # by chance, where observations are few
        matrix[:, 1] = 0.0
        intercept, slope, *offsets = np.linalg.solve(matrix.T @ matrix + penalty, matrix.T @ target)
    return Calibration(
        intercept=float(intercept),
        slope=float(slope),
        offsets=dict(zip(organs, map(float, offsets), strict=True)),
        median_ml=median_ml,
        observations=len(observations),
        error=math.nan,
        error_of_agreement=math.nan,
    )


def _logit(share: float) -> float:
    clipped = min(max(share, _CLIP), 1 - _CLIP)
    return math.log(clipped / (1 - clipped))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-min(max(value, -30.0), 30.0)))
