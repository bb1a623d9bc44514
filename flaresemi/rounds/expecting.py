"""The Dice to expect of the pool's pseudo-labels, by what their teacher reaches on labeled cases."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from flaresemi.pseudolabels.calibration import Observations, calibrate, with_predictions
from flaresemi.pseudolabels.outside import with_dice_reached
from flaresemi.pseudolabels.teachers import judged_weights_hash
from flaresemi.records import save_record
from flaresemi.selection import CaseScore
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)


def with_expected_dice(
    scores: tuple[CaseScore, ...],
    records: Sequence[Observations],
    medians_ml: Mapping[str, float],
    teacher: ModelFolder,
    reached: Mapping[str, float] | None,
) -> tuple[CaseScore, ...]:
    """Calibrates the scores, where that is better than the agreement itself; keeps the calibration beside the teacher.

    Args:
        scores: Of the pool.
        records: What was observed of the held-out cases of every chain.
        medians_ml: Volume of every organ in the labeled cases.
        teacher: FINE's training that labeled.
        reached: Of a model from outside, what it reaches with every organ that labeled cases measure, which is taken
            then. None: `teacher` labeled.
    """
    if reached is not None:
        return tuple(with_dice_reached(score, reached) for score in scores)
    observed = [each for record in records for each in record.observations]
    calibration = calibrate(observed, dict(medians_ml))
    if calibration is None:
        teacher.calibration.unlink(missing_ok=True)
        return scores
    calibration = dataclasses.replace(calibration, made_with=judged_weights_hash(teacher))
    save_record(teacher.calibration, calibration)
    logger.info(
        "predicted Dice: mean error %.3f on held-out cases (agreement itself: %.3f)",
        calibration.error,
        calibration.error_of_agreement,
    )
    if not calibration.is_better:
        return scores
    return tuple(with_predictions(score, calibration) for score in scores)
