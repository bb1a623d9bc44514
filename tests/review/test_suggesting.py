"""What to label next: chance among the unlike, by what rounds and persons left behind."""

from flaresemi.review.decisions import ReviewDecision, decide
from flaresemi.review.suggesting import label_next
from flaresemi.selection import CaseScore
from tests.review.made_review import MadeReview
from tests.review.test_queue import score

CASES = [f"case_{number:02d}" for number in range(20)]
SCORES = {name: score(name, liver=(0.9, 50 + place), spleen=(0.9, 10)) for place, name in enumerate(CASES)}


def names(scores: dict[str, CaseScore] | None = None, count: int = 4, **settings: object) -> list[str]:
    known = SCORES if scores is None else scores
    return [each.case_id for each in label_next(CASES, known, {"liver"}, count, **{"seed": 1} | settings)]


def test_one_of_each_part_by_volume_by_chance_and_again_the_same() -> None:
    chosen = names()
    assert [CASES.index(name) // 5 for name in chosen] == [0, 1, 2, 3]
    assert names() == chosen
    drawn = {tuple(names(seed=seed)) for seed in range(20)}
    assert len(drawn) > 10
    assert {name for each in drawn for name in each} > {*CASES[:3], *CASES[-3:]}  # any case may be the one
    assert (
        label_next(CASES, SCORES, {"liver"}, 4, seed=1)[1].why
        == "by chance, of part 2 of 4 by the volume of all organs"
    )
    assert sorted(names(count=50)) == CASES
    assert label_next([], {}, (), 3, seed=1) == ()


def test_cases_without_an_organ_that_all_have_come_last() -> None:
    missed = {name: score(name, liver=(None, 0), spleen=(0.9, 10)) for name in CASES[:10]}
    chosen = names(SCORES | missed)
    assert len(chosen) == 4
    assert not {*chosen} & {*missed}
    assert {*names(SCORES | missed, count=12)} & {*missed}  # there are not enough others
    spleen = {name: score(name, liver=(0.9, 50), spleen=(None, 0)) for name in CASES[:10]}
    assert {*names(SCORES | spleen)} & {*spleen}  # labeled cases lack it, too
    assert len(names({})) == 4  # before the first round
    assert label_next(CASES, {}, {"liver"}, 4, seed=1)[0].why == "by chance"


def test_what_is_suggested_stays_until_all_of_it_is_labeled() -> None:
    chosen = names()
    assert names(done={chosen[1]}) == [chosen[0], chosen[2], chosen[3]]
    following = names(done={*chosen})
    assert len(following) == 4
    assert not {*following} & {*chosen}
    assert names(done={*CASES}) == []


def test_what_a_person_vouches_for_needs_no_label_and_what_was_rejected_waits_for_one(made: MadeReview) -> None:
    material = made.material()
    first, second, third = sorted(material.unlabeled)
    organs = material.labels.names
    assert {each.case_id for each in material.queue()[1]} == {first, second, third}
    accepted = ReviewDecision(revision=0, looked_at=material.label_hash(first, 2), accepted=organs)
    decide(material, first, "Ann", accepted)
    decide(
        material, second, "Ann", ReviewDecision(revision=0, looked_at=material.label_hash(second, 2), rejected=organs)
    )
    assert {each.case_id for each in material.queue()[1]} == {second, third}
    assert [each.case_id for each in material.label_next(only=[first, third])] == [third]
