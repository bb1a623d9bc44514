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


ORGANS = {case: frozenset({"liver", "rare"} if case == "case_03" else {"liver"}) for case in CASES}
GROUPS = {"case_00": "p", "case_01": "p", "case_02": "p", "case_05": "q"}


def test_an_organ_that_no_training_case_has_is_said_with_fold_and_case(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "splits.json"
    for _ in range(2):  # made, and read again
        splits = load_or_make_splits(path, CASES, organs=ORGANS)
        (number,) = (index for index, fold in enumerate(splits.folds) if "case_03" in fold.validation)
        assert f"fold {number} trains without rare, which only cases that it holds out have (case_03)" in caplog.text
        assert caplog.text.count("trains without") == 1
        caplog.clear()


def test_groups_are_recorded_and_never_divided(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "splits.json"
    splits = load_or_make_splits(path, CASES, groups=GROUPS)
    assert splits.groups == {"p": ("case_00", "case_01", "case_02"), "q": ("case_05",)}
    assert all(splits.divided_groups(name) == () for name in splits.names)
    assert load_or_make_splits(path, CASES, groups=GROUPS) == splits
    assert caplog.text == ""


def test_fewer_groups_than_folds() -> None:
    groups = dict.fromkeys(CASES[:6], "p") | dict.fromkeys(CASES[6:], "q")
    assert make_splits(CASES, groups=groups).names == ("0", "1", "all")
    single = make_splits(CASES, groups=dict.fromkeys(CASES, "p"))
    with pytest.raises(ConfigError, match=r"no fold '0': 12 labeled cases in 1 group\n"):
        single.fold("0")


def test_groups_that_came_later_are_noticed_and_the_file_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "splits.json"
    splits = load_or_make_splits(path, CASES)
    before = path.read_bytes()
    one, other = splits.folds[0].validation[0], splits.folds[1].validation[0]
    load_or_make_splits(path, CASES, groups={one: "p", other: "p"})
    assert f"fold 0 trains on {other} and validates on {one} of group 'p'" in caplog.text
    assert "the groups in dataset.json are others than when the folds were made" in caplog.text
    caplog.clear()
    load_or_make_splits(path, CASES, groups=dict.fromkeys(splits.folds[0].validation, "p"))
    assert "they still keep the groups together" in caplog.text
    assert path.read_bytes() == before


def test_folds_edited_by_hand_that_divide_a_group_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "splits.json"
    splits = load_or_make_splits(path, CASES, groups=GROUPS)
    content = json.loads(path.read_text(encoding="utf-8"))
    (number,) = (index for index, fold in enumerate(splits.folds) if "case_00" in fold.validation)
    content["folds"][number]["validation"].remove("case_00")
    content["folds"][number]["train"].append("case_00")
    path.write_text(json.dumps(content))
    load_or_make_splits(path, CASES, groups=GROUPS)
    told = f"fold {number} trains on case_00 and validates on case_01, case_02 of group 'p'"
    assert told in caplog.text
    assert told in load_splits(path).divided_groups(str(number))[0]


def test_a_file_of_before_there_were_groups_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "splits.json"
    splits = load_or_make_splits(path, CASES)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["groups"]
    path.write_text(json.dumps(content))
    assert load_or_make_splits(path, CASES) == splits
    assert caplog.text == ""
