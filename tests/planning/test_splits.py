"""Folds share out the labeled cases, and stay as they are once written."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaresemi.errors import ConfigError, PlanError
from flaresemi.planning.splits import Split, Splits, load_or_make_splits, load_splits, make_splits

CASES = tuple(f"case_{number:02d}" for number in range(12))


@settings(deadline=None)
@given(
    cases=st.sets(st.text("abc012", min_size=1), min_size=2, max_size=40),
    folds=st.integers(2, 7),
    seed=st.integers(0, 99),
)
def test_each_case_validates_exactly_once_and_trains_otherwise(cases: set[str], folds: int, seed: int) -> None:
    splits = make_splits(cases, folds, seed)
    assert len(splits.folds) == min(folds, len(cases))
    validated = [case for fold in splits.folds for case in fold.validation]
    assert sorted(validated) == sorted(cases)
    for fold in splits.folds:
        assert sorted(fold.train + fold.validation) == sorted(cases)
        assert fold.train == tuple(sorted(fold.train))
    lengths = [len(fold.validation) for fold in splits.folds]
    assert max(lengths) - min(lengths) <= 1


GOLDEN = ("case_00", "case_04", "case_08")


def test_same_on_every_machine() -> None:
    # Golden: a change here would put validation cases of existing models into training.
    assert make_splits(CASES, 4, seed=1).folds[0].validation == GOLDEN


def test_order_of_ids_does_not_matter_but_the_seed_does() -> None:
    assert make_splits(CASES[::-1]) == make_splits(CASES)
    assert make_splits(CASES, seed=2).folds != make_splits(CASES, seed=1).folds


def test_all_trains_on_everything_and_validates_on_nothing() -> None:
    assert make_splits(CASES).fold("all") == Split(train=CASES, validation=())


def test_few_cases() -> None:
    assert make_splits(["b", "a"]).names == ("0", "1", "all")
    single = make_splits(["a"])
    assert single.names == ("all",)
    with pytest.raises(ConfigError, match=r"no fold '0': 1 labeled case\n.*folds are all"):
        single.fold("0")


@pytest.mark.parametrize("name", ["5", "-1", "00", "ALL", "", "one"])
def test_fold_that_does_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match="folds are 0, 1, 2, 3, 4, all"):
        make_splits(CASES).fold(name)


def test_bad_requests() -> None:
    with pytest.raises(ConfigError, match="at least 2 folds"):
        make_splits(CASES, 1)
    for cases in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="each only once"):
            make_splits(cases)


def test_existing_file_is_obeyed_and_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    made = load_or_make_splits(path, CASES, 5, seed=3)
    before = path.read_bytes()
    assert load_or_make_splits(path, CASES, 4, seed=9) == made == load_splits(path)
    assert path.read_bytes() == before


def test_changed_cases_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    load_or_make_splits(path, CASES)
    before = path.read_bytes()
    with pytest.raises(PlanError, match=r"1 new \(extra\), 2 gone \(case_00, case_01\)") as problem:
        load_or_make_splits(path, (*CASES[2:], "extra"))
    assert "remove this file" in str(problem.value) and str(path) in str(problem.value)
    assert path.read_bytes() == before


def test_edited_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    load_or_make_splits(path, CASES)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["folds"][1]["train"] = list(CASES)
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match="fold 1 trains and validates on"):
        load_splits(path)
    content["folds"][1] = {"train": ["x"], "validation": ["case_00"]}
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match="names x, not in case_ids"):
        load_splits(path)


def test_record_holds_the_seed() -> None:
    assert isinstance(make_splits(CASES, seed=7), Splits)
    assert make_splits(CASES, seed=7).seed == 7
