import pytest

from flaresemi.evaluation.paired import paired_changes
from flaresemi.rounds.stopping import StopRule, judge


def cases(*values: float, spleen: float = 0.8) -> dict[str, dict[str, float]]:
    return {f"case_{number}": {"liver": value, "spleen": spleen} for number, value in enumerate(values)}


START = cases(0.80, 0.82, 0.84)


def test_a_clear_gain_moves_the_best_round() -> None:
    verdict = judge([START, cases(0.84, 0.86, 0.88)], StopRule())
    assert (verdict.best_round, verdict.stop) == (1, False)


def test_a_gain_within_its_standard_error_does_not() -> None:
    verdict = judge([START, cases(0.70, 0.82, 0.97)], StopRule())
    assert (verdict.best_round, verdict.stop) == (0, False)


def test_a_gain_below_min_delta_does_not() -> None:
    assert judge([START, cases(0.82, 0.84, 0.86)], StopRule(min_delta=0.02)).best_round == 0


def test_patience_counts_rounds_since_the_last_improvement() -> None:
    better = cases(0.84, 0.86, 0.88)
    assert not judge([START, START, better, better], StopRule(patience=2)).stop
    verdict = judge([START, better, better, better], StopRule(patience=2))
    assert (verdict.best_round, verdict.stop) == (1, True)
    assert "2 in a row" in verdict.why


def test_a_collapsed_organ_stops_at_once_even_when_the_mean_rises() -> None:
    verdict = judge([START, cases(0.99, 0.99, 0.99, spleen=0.69)], StopRule())
    assert (verdict.best_round, verdict.stop) == (0, True)
    assert "spleen fell by 0.110" in verdict.why


def test_one_lost_organ_among_many_cases_is_no_collapse() -> None:
    lost = START | {"case_0": {"liver": 0.80, "spleen": 0.0}}
    assert not judge([START, lost], StopRule()).stop
    assert judge([cases(0.8), cases(0.8, spleen=0.0)], StopRule()).stop  # all that is known fell


def test_an_organ_that_vanishes_elsewhere_and_falls_here_stops_at_once() -> None:
    fallen = cases(0.84, 0.86, 0.88, spleen=0.77)
    assert judge([START, fallen], StopRule()).best_round == 1
    verdict = judge([START, fallen], StopRule(), [{"spleen"}])
    assert (verdict.best_round, verdict.stop) == (0, True)
    assert verdict.why == "round 1: spleen fell by 0.030 below round 0, and is vanishing in other cases"
    rising = cases(0.84, 0.86, 0.88)
    assert judge([START, rising], StopRule(), [{"spleen"}]).best_round == 1  # the held-out cases know better
    assert judge([START, rising, fallen], StopRule(), [{"spleen"}, ()]).best_round == 1


def test_max_rounds_stops() -> None:
    rising = [cases(0.5 + 0.1 * number, 0.5 + 0.1 * number) for number in range(4)]
    verdict = judge(rising, StopRule(max_rounds=3))
    assert (verdict.best_round, verdict.stop) == (3, True)


def test_one_held_out_case_proves_nothing() -> None:
    verdict = judge([cases(0.5), cases(0.9)], StopRule())
    assert verdict.best_round == 0
    assert verdict.why == (
        "round 1: +0.2000 against round 0 on one held-out case, which cannot tell it from chance: no improvement"
    )


def test_rounds_with_other_cases_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="different cases"):
        paired_changes(START, cases(0.8, 0.8))


def test_a_held_out_case_without_a_scored_organ_says_nothing() -> None:
    better = cases(0.84, 0.86, 0.88)
    told = judge([START, better], StopRule())
    assert judge([START | {"empty": {}}, better | {"empty": {}}], StopRule()) == told
    assert judge([START | {"empty": {}}, better | {"empty": {"liver": 0.0}}], StopRule()) == told
    with pytest.raises(ValueError, match="no held-out case has an organ"):
        judge([{"empty": {}}], StopRule())
    with pytest.raises(ValueError, match="scored in both"):
        paired_changes({"a": {"liver": 0.5}, "b": {}}, {"a": {}, "b": {"liver": 0.5}})
