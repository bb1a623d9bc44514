import dataclasses

import numpy as np
import pytest

from flaresemi.pseudolabels.calibration import Calibration, Observation, calibrate
from flaresemi.records import from_plain, to_plain
from flaresemi.selection import OrganScore

MEDIAN_ML = {"liver": 1500.0, "pancreas": 80.0}


def score(agreement: float | None, volume: float = 80.0, entropy: float = 0.1) -> OrganScore:
    return OrganScore(agreement=agreement, volume_ml=volume, entropy=entropy)


def world(cases: int, seed: int = 0) -> list[Observation]:
    """Agreement flatters: the true Dice is its square, less for the pancreas."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(cases):
        for organ, factor in (("liver", 1.0), ("pancreas", 0.8)):
            agreement = float(generator.uniform(0.4, 0.98))
            dice = min(max(factor * agreement**2 + generator.normal(0, 0.02), 0), 1)
            volume = MEDIAN_ML[organ] * float(generator.uniform(0.8, 1.2))
            made.append(
                Observation(case_id=f"c{number}", organ=organ, score=score(agreement, volume), dice=float(dice))
            )
    return made


def test_it_beats_agreement_where_agreement_flatters() -> None:
    calibration = calibrate(world(20), MEDIAN_ML)
    assert calibration is not None
    assert calibration.is_better
    assert calibration.error < 0.05 < calibration.error_of_agreement
    fresh = [abs((calibration.predict(each.organ, each.score) or 0) - each.dice) for each in world(20, seed=1)]
    assert np.mean(fresh) < 0.06


def test_its_error_is_that_on_cases_which_the_fit_had_not_seen() -> None:
    observations = world(10)
    errors = []
    for left_out in {each.case_id for each in observations}:
        others = calibrate([each for each in observations if each.case_id != left_out], MEDIAN_ML)
        assert others is not None
        errors += [
            abs((others.predict(each.organ, each.score) or 0) - each.dice)
            for each in observations
            if each.case_id == left_out
        ]
    calibration = calibrate(observations, MEDIAN_ML)
    assert calibration is not None
    assert calibration.error == pytest.approx(np.mean(errors))


def test_more_agreement_predicts_more_dice_and_organs_differ() -> None:
    calibration = calibrate(world(20), MEDIAN_ML)
    assert calibration is not None
    low, high = (calibration.predict("liver", score(value, 1500.0)) for value in (0.5, 0.9))
    assert low is not None
    assert high is not None
    assert low < high
    assert (calibration.predict("pancreas", score(0.9)) or 1) < high


def test_more_agreement_never_predicts_less_dice() -> None:
    flipped = [dataclasses.replace(each, dice=1 - each.dice) for each in world(20)]
    calibration = calibrate(flipped, MEDIAN_ML)
    assert calibration is not None
    assert calibration.slope == 0
    for organ in MEDIAN_ML:
        low, high = (calibration.predict(organ, score(value)) for value in (0.5, 0.9))
        assert low == high
        # The mean of the organ, pulled a little toward that of all.
        middle = np.median([each.dice for each in flipped if each.organ == organ])
        assert low == pytest.approx(middle, abs=0.1)


def test_too_little_teaches_nothing() -> None:
    assert calibrate(world(2), MEDIAN_ML) is None
    assert calibrate([], MEDIAN_ML) is None


def test_an_absent_organ_has_no_predicted_dice() -> None:
    calibration = calibrate(world(20), MEDIAN_ML)
    assert calibration is not None
    assert calibration.predict("liver", score(None)) is None


def test_an_unknown_organ_gets_the_pooled_curve() -> None:
    calibration = calibrate(world(20), MEDIAN_ML)
    assert calibration is not None
    assert 0 <= (calibration.predict("spleen", score(0.8)) or -1) <= 1


def test_it_survives_the_file() -> None:
    calibration = calibrate(world(20), MEDIAN_ML)
    assert from_plain(Calibration, to_plain(calibration), source="test") == calibration
