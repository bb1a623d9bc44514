from collections.abc import Mapping, Sequence

import pytest

from flaresemi.comparing.judging import Judgment, judge
from flaresemi.comparing.predicting import HeldOutResult, Members
from flaresemi.errors import DatasetError
from flaresemi.evaluation.flare import OrganMetrics
from flaresemi.evaluation.folders import CaseScores
from flaresemi.inference.prediction_records import ImageVersion

#: Four cases about these values: differences of a hundredth between models are clear, since all cases agree.
CASES = (0.70, 0.75, 0.80, 0.85)


def results(dice: Sequence[float | None], seconds: float) -> tuple[HeldOutResult, ...]:
    return tuple(
        HeldOutResult(
            label_map="",
            reference=ImageVersion(name="", size=1, mtime_ns=1, content=""),
            scored_by="",
            seconds={"fine": 0.75 * seconds, "restore": 0.25 * seconds},
            scores=CaseScores(
                case_id=f"case_{number}",
                organs={
                    "liver": OrganMetrics(dice=value, nsd=value, hd95_mm=None, reference_ml=1.0, prediction_ml=1.0),
                    "spleen": OrganMetrics(dice=None, nsd=None, hd95_mm=None, reference_ml=None, prediction_ml=1.0),
                },
            ),
        )
        for number, value in enumerate(dice)
    )


def judged(found: Mapping[Members, tuple[Sequence[float], float]]) -> Judgment:
    stages = {"one": 1, "two": 2, "large": 1}
    return judge({members: results(*each) for members, each in found.items()}, stages)


def moved(*by: float) -> tuple[float, ...]:
    by = by if len(by) > 1 else by * len(CASES)
    return tuple(value + change for value, change in zip(CASES, by, strict=True))


def test_two_stages_that_are_ahead_are_kept_whatever_they_take() -> None:
    found = judged({("one",): (CASES, 1.0), ("two",): (moved(0.02, 0.03, 0.02, 0.03), 3.0)})
    assert found.chosen == ("two",)
    # 0.02, 0.03, 0.02, 0.03: mean 0.025, standard error 0.002887, times 3.182 (Student, 3 degrees of freedom, 97.5 %)
    assert (
        found.why[1] == "two stages (two) are ahead of one (one) by 0.0250 ± 0.0092 Dice on 4 held-out cases: keep them"
    )
    assert [each.members for each in found.results] == [("two",), ("one",)]
    assert (found.results[1].ahead, found.results[1].ahead_within) == (
        pytest.approx(-0.025),
        pytest.approx(0.00919, abs=1e-5),
    )


def test_without_a_difference_the_faster_one_is_taken() -> None:
    found = judged({("one",): (CASES, 1.0), ("two",): (moved(0.02, -0.01, 0.02, -0.01), 3.0)})
    assert found.chosen == ("one",)
    assert "no difference between two stages (two) and one (one), +0.0050 ± " in found.why[1]
    assert found.why[1].endswith("take one stage, it is 3.0 times as fast")
    assert "one is 3.0 times as fast as two, which has the highest mean of single models" in found.why[2]
    other = judged({("one",): (CASES, 3.0), ("two",): (moved(-0.02, 0.01, -0.02, 0.01), 1.0)})
    assert other.chosen == ("two",)
    assert other.why[1].endswith("take two stages, they are 3.0 times as fast")


def test_a_large_difference_is_not_given_up_since_few_cases_cannot_show_it() -> None:
    found = judged({("one",): (CASES, 1.0), ("two",): (moved(0.20, -0.05, 0.20, -0.05), 3.0)})
    assert found.chosen == ("two",)
    assert "too few to tell two stages (two) and one (one) apart, +0.0750 ± " in found.why[1]
    alone = judged({("one",): ((0.5,), 1.0), ("two",): ((0.6,), 3.0)})
    assert alone.chosen == ("two",)
    assert "+0.1000 Dice on one held-out case for two: two stages until more folds are compared" in alone.why[1]


def test_two_stages_that_are_behind_go_and_equal_times_do_not_decide() -> None:
    found = judged({("one",): (moved(0.03, 0.02, 0.03, 0.02), 3.0), ("two",): (CASES, 1.0)})
    assert (found.chosen, found.why[1].rpartition(": ")[2]) == (("one",), "take one stage")
    equal = judged({("one",): (CASES, 1.0), ("two",): (moved(0.02, -0.01, 0.02, -0.01), 1.05)})
    assert equal.chosen == ("two",)
    assert equal.why[1].endswith("nor in time: take either")


@pytest.mark.parametrize(("gain", "taken"), [((0.02, 0.03, 0.02, 0.03), True), ((0.02, -0.01, 0.02, -0.01), False)])
def test_an_average_has_to_be_ahead_of_the_best_model(gain: tuple[float, ...], taken: bool) -> None:
    found = judged({("one",): (CASES, 1.0), ("large",): (moved(-0.05), 3.0), ("one", "large"): (moved(*gain), 4.0)})
    assert found.chosen == (("one", "large") if taken else ("one",))
    assert found.why[0].startswith(
        "the average of one and large predicts" if taken else "one predicts: mean Dice 0.7750"
    )
    assert ("no average is shown to be worth" in found.why[-1]) is not taken
    assert "4.0 times its time" in found.why[-1]
    assert len(found.why) == 2  # nothing is said of stages: all have one


def test_cases_without_a_score_do_not_count_and_one_must_have_one() -> None:
    found = judged({("one",): ((*CASES, None), 1.0), ("two",): ((*moved(0.02, 0.03, 0.02, 0.03), None), 3.0)})
    assert len(found.results[0].dice) == 4
    assert "4 held-out cases" in found.why[0]
    assert found.results[0].organs == {"liver": pytest.approx(0.8)}
    with pytest.raises(DatasetError, match="no held-out case annotates"):
        judged({("one",): ((None,), 1.0), ("two",): ((None,), 3.0)})


def test_a_case_that_only_one_of_two_scored_is_in_no_difference_of_the_two() -> None:
    found = judged({("one",): ((*CASES, None), 1.0), ("two",): ((*moved(0.04), 0.0), 3.0)})
    one, two = sorted(found.results, key=lambda result: result.members)
    assert (len(one.dice), len(two.dice)) == (4, 5)
    assert two.ahead == pytest.approx(0.04) or one.ahead == pytest.approx(-0.04)
    with pytest.raises(DatasetError, match="one and two cannot be compared"):
        judged({("one",): ((0.5, None), 1.0), ("two",): ((None, 0.4), 3.0)})
