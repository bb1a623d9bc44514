"""Folds of the user's own: read as nnU-Net means them, refused where they cannot be meant."""

import json
import logging
from pathlib import Path

import pytest

from flaresemi.errors import DatasetError, PlanError
from flaresemi.planning.given_splits import read_given, refuse_others
from flaresemi.planning.splits import Split, make_splits

CASES = ("a", "b", "c", "d")


def given(folder: Path, content: object, cases: tuple[str, ...] = CASES, **settings):
    path = folder / "splits_final.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_given(path, cases, **({"groups": {}} | settings))


def fold(train: str, val: str) -> dict:
    return {"train": list(train), "val": list(val)}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_number_of_folds_is_taken_as_it_stands(tmp_path: Path, count: int, caplog) -> None:
    content = [fold("cba", "d") if number % 2 else fold("dcb", "a") for number in range(count)]
    found = given(tmp_path, content)
    assert found.names == (*map(str, range(count)), "all")
    assert found.fold("0") == Split(train=("b", "c", "d"), validation=("a",))
    assert found.fold("all").train == CASES
    assert found.given == "splits_final.json"
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "a list of folds is expected"),
        ([], "a list of folds is expected"),
        ([["a"]], 'fold 0 must have "train" and "val"'),
        ([{"train": ["a"], "validation": ["b"]}], 'fold 0 must have "train" and "val"'),
        ([fold("ab", "cd"), {"train": "ab", "val": ["c"]}], '"train" of fold 1 must be a list'),
        ([fold("abb", "cd")], '"train" of fold 0 names b twice'),
        ([fold("abx", "cd")], "fold 0 names 1 case(s) that are not labeled cases of this dataset: x"),
        ([fold("abc", "cd")], "fold 0 trains and validates on c"),
        ([fold("abcd", "")], "fold 0 has no case to validate on"),
        ([fold("", "abcd")], "fold 0 has no case to train on"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        given(tmp_path, content)
    assert said in str(caught.value)
    assert "splits_final.json" in str(caught.value)


def test_a_name_with_its_ending_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"did you mean 'case_1'\?"):
        given(tmp_path, [{"train": ["case_1.nii.gz"], "val": ["case_2"]}], cases=("case_1", "case_2"))


def test_a_group_is_not_divided_between_the_sides(tmp_path: Path) -> None:
    groups = {"a": "patient 1", "b": "patient 1", "c": "patient 2"}
    assert given(tmp_path, [fold("cd", "ab")], groups=groups).groups == {"patient 1": ("a", "b"), "patient 2": ("c",)}
    with pytest.raises(DatasetError, match="trains on a and validates on b of group 'patient 1'"):
        given(tmp_path, [fold("cd", "ab"), fold("ac", "bd")], groups=groups)


def test_cases_of_no_fold_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = given(tmp_path, [fold("a", "b"), fold("b", "ac")])
    assert "fold 0 neither trains nor validates on 2 labeled case(s): c, d" in caplog.text
    assert "no fold has d; fold 'all' alone trains on what no fold has" in caplog.text
    assert found.fold("all").train == CASES


def test_cases_that_are_left_out_leave_the_folds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = given(tmp_path, [fold("abx", "cd")], left_out={"x"})
    assert found.fold("0").train == ("a", "b")
    assert "1 case(s) that are left out are in no fold: x" in caplog.text


def test_cases_that_two_folds_hold_out_are_known(tmp_path: Path) -> None:
    found = given(tmp_path, [fold("ab", "cd"), fold("ac", "bd"), fold("bcd", "a")])
    assert found.held_out_twice(("0", "1", "2")) == ("d",)
    assert found.held_out_twice(("0", "2")) == ()
    assert make_splits(CASES).held_out_twice(("0", "1", "2", "3")) == ()


def test_folds_of_a_workspace_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dealt, own = make_splits(CASES), given(tmp_path, [fold("ab", "cd")])
    refuse_others(own, own, tmp_path / "splits.json", named=True)
    with caplog.at_level(logging.WARNING):
        refuse_others(dealt, own, tmp_path / "splits.json", named=False)
    assert "the folds of this workspace are not those of splits_final.json, and stay" in caplog.text
    with pytest.raises(PlanError, match=r"not those of splits_final\.json"):
        refuse_others(dealt, own, tmp_path / "splits.json", named=True)
