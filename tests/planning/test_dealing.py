"""Folds are even, keep groups whole and spread rare organs; without either they are what they always were."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from flaresemi.planning.dealing import deal

CASES = [f"case_{number:02d}" for number in range(23)]


def dealt_one_by_one(cases: list[str], folds: int, seed: int) -> list[tuple[str, ...]]:
    shuffled = sorted(cases, key=lambda case: hashlib.sha256(f"{seed}:{case}".encode()).digest())
    return [tuple(sorted(shuffled[number::folds])) for number in range(folds)]


@settings(deadline=None)
@given(count=st.integers(2, 40), folds=st.integers(2, 7), seed=st.integers(0, 99))
def test_where_every_case_has_every_organ_they_are_dealt_one_by_one(count: int, folds: int, seed: int) -> None:
    cases = [f"c{number}" for number in range(count)]
    organs = {case: {"liver", "spleen"} for case in cases}
    expected = dealt_one_by_one(cases, min(folds, count), seed)
    assert deal(cases, folds, seed, {}, organs) == deal(cases, folds, seed, {}, {}) == expected
    assert deal(cases, folds, seed, {case: f"alone {case}" for case in cases}, organs) == expected


@settings(deadline=None, max_examples=50)
@given(
    data=st.data(),
    present=st.dictionaries(st.sampled_from(["x", "y", "z"]), st.integers(1, 8), min_size=1),
    seed=st.integers(0, 9),
)
def test_a_rare_organ_stands_in_as_many_folds_as_it_can(data: st.DataObject, present: dict, seed: int) -> None:
    organs = {case: {"liver"} for case in CASES}
    for organ, count in present.items():
        for case in data.draw(st.lists(st.sampled_from(CASES), min_size=count, max_size=count, unique=True)):
            organs[case].add(organ)
    folds = deal(CASES, 5, seed, {}, organs)
    assert sorted(case for fold in folds for case in fold) == CASES
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    assert deal(CASES[::-1], 5, seed, {}, organs) == folds
    for organ, count in present.items():
        having = [any(organ in organs[case] for case in fold) for fold in folds]
        assert sum(having) == min(5, count)


def test_an_organ_that_is_spread_already_changes_nothing() -> None:
    before = dealt_one_by_one(CASES, 5, 22)
    organs = {case: {"liver"} for case in CASES}
    for fold in before[:3]:
        organs[fold[0]] = {"liver", "rare"}
    assert deal(CASES, 5, 22, {}, organs) == before


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=15), folds=st.integers(2, 6), seed=st.integers(0, 9))
def test_groups_stay_whole_and_sizes_even(sizes: list[int], folds: int, seed: int) -> None:
    groups = {f"p{number}_{scan}": f"p{number}" for number, size in enumerate(sizes) for scan in range(size)}
    made = deal(list(groups), folds, seed, groups, {"p0_0": {"rare"}, "p1_0": {"rare"}})
    assert len(made) == min(folds, len(sizes))
    assert sorted(case for fold in made for case in fold) == sorted(groups)
    where = {case: number for number, fold in enumerate(made) for case in fold}
    for group in set(groups.values()):
        assert len({where[case] for case, own in groups.items() if own == group}) == 1
    assert max(map(len, made)) - min(map(len, made)) <= max(sizes)
    assert where["p0_0"] != where["p1_0"]


def test_one_group_has_no_folds() -> None:
    assert deal(["a", "b"], 5, 22, {"a": "p", "b": "p"}, {}) == []
    assert deal(["a"], 5, 22, {}, {}) == []
