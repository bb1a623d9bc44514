"""What a dataset.json may say, in which forms, and what is said of one that is wrong."""

import json
import logging
from pathlib import Path

import pytest

from flaresemi.dataset import load_dataset
from flaresemi.description import Description
from flaresemi.errors import DatasetError

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def describe(folder: Path, content: object) -> Description:
    path = folder / "dataset.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return Description(path)


def complaint(folder: Path, content: object) -> str:
    with pytest.raises(DatasetError) as caught:
        describe(folder, content)
    return str(caught.value)


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_channels_are_numbered_beyond_nine_in_any_order(tmp_path: Path, key: str) -> None:
    numbers = [10, *range(10)]
    channels = {str(number): f"echo {number}" for number in numbers}
    found = describe(tmp_path, {key: channels, "labels": LABELS}).channels
    assert found == tuple(f"echo {number}" for number in range(11))


def test_a_normalization_that_is_misspelt_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        describe(tmp_path, {"channel_names": {"0": "no_norm", "1": "noNorm"}, "labels": LABELS})
    assert "channel 'no_norm' is normalized by its mean and SD; did you mean 'noNorm'?" in caplog.text
    assert caplog.text.count("did you mean") == 1


def test_more_than_nine_labels_have_their_numbers_as_values(tmp_path: Path) -> None:
    reversed_form = {"0": "background"} | {str(value): f"organ {value}" for value in (11, 10, 2, 1)}
    labels = describe(tmp_path, {"labels": reversed_form}).labels
    assert labels is not None
    assert [(label.name, label.value) for label in labels.labels] == [(f"organ {n}", n) for n in (1, 2, 10, 11)]


@pytest.mark.parametrize("word", ["CT", ["CT"], {"0": "CT"}, {"0000": "CT"}])
def test_one_channel_may_be_a_word(tmp_path: Path, word: object) -> None:
    assert describe(tmp_path, {"modality": word, "labels": LABELS}).channels == ("CT",)


@pytest.mark.parametrize(
    "wrong", [{"1": "CT"}, {"0": "A", "2": "B"}, {"x": "CT"}, {}, 3, {"0": None}, {"0": ["CT"]}, ""]
)
def test_channels_that_make_no_sense_are_told_by_their_own_key(tmp_path: Path, wrong: object) -> None:
    assert 'modality must be like {"0": "CT"}' in complaint(tmp_path, {"modality": wrong, "labels": LABELS})
    assert "channel_names must be like" in complaint(tmp_path, {"channel_names": wrong, "labels": LABELS})


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "a": 1, "b": 2},
        {"Background": 0, "a": 1, "b": 2},
        {"BACKGROUND": "0", "a": 1, "b": 2},
        {"bg": 0, "a": 1, "b": 2},
        {"none": 0, "a": 1, "b": 2},
        {"unlabeled": 0, "a": 1, "b": 2},
        {"Clear Label": 0, "a": 1, "b": 2},
        {"0": "Background", "1": "a", "2": "b"},
        {"0": "BG", "2": "b", "1": "a"},
        {"a": 1, "b": 2},
    ],
)
def test_value_0_is_background_whatever_it_is_called(
    tmp_path: Path, labels: dict, caplog: pytest.LogCaptureFixture
) -> None:
    found = describe(tmp_path, {"labels": labels}).labels
    assert found is not None
    assert (found.names, found.background) == (("a", "b"), 0)
    assert caplog.text == ""


def test_a_name_of_its_own_at_value_0_is_background_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = describe(tmp_path, {"labels": {"liver": 0, "spleen": 1}}).labels
    assert found is not None
    assert found.names == ("spleen",)
    assert "value 0 is background, whatever it is called: 'liver' is no organ" in caplog.text


def test_background_at_another_value_is_obeyed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = describe(tmp_path, {"labels": {"Background": 9, "organ": 0}}).labels
    assert found is not None
    assert (found.names, found.background) == (("organ",), 9)
    assert "background is value 9, as \"labels\" says; value 0 is 'organ'" in caplog.text


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"bg": 1, "liver": 2}, "label 'bg' is called background and has value 1, but background is value 0"),
        (
            {"none": 0, "Background": 1},
            "'Background' is called background and has value 1, but background is value 0, here called 'none'",
        ),
        ({"background": 0, "liver": 0}, "'background' and 'liver' both have value 0"),
        ({"bg": 0}, "at least one label besides background, which is value 0 (here 'bg')"),
    ],
)
def test_two_backgrounds_or_nothing_else_is_refused_exactly(tmp_path: Path, labels: dict, expected: str) -> None:
    assert expected in complaint(tmp_path, {"labels": labels})


def test_an_organ_that_is_called_like_background_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    describe(tmp_path, {"labels": {"background": 0, "liver": 1, "unlabeled": 255}})
    assert "'unlabeled' is learned as an organ" in caplog.text


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("label", "labels"),
        ("Labels", "labels"),
        ("lables", "labels"),
        ("label_names", "labels"),
        ("channels", "channel_names"),
        ("channelNames", "channel_names"),
        ("modalities", "modality"),
        ("mirrorPairs", "mirror_pairs"),
        ("tolerance_mm", "tolerances_mm"),
        ("annotated_label", "annotated_labels"),
        ("group", "groups"),
        ("z-range", "z_range"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_right_one(tmp_path: Path, key: str, meant: str) -> None:
    content = {"labels": LABELS, key: {}} if meant != "labels" else {key: LABELS}
    text = complaint(tmp_path, content)
    assert f"unknown key '{key}' (did you mean '{meant}'?)" in text


def test_files_listed_elsewhere_are_not_passed_over(tmp_path: Path) -> None:
    listed = {"a": {"images": ["x/a_0000.nii.gz"], "label": "x/a.nii.gz"}}
    complaint(tmp_path, {"labels": LABELS, "channel_names": {"0": "CT"}, "dataset": listed})
    with pytest.raises(DatasetError, match=r"(?s)lists the cases' files.*imagesTr/CASE_0000"):
        load_dataset(tmp_path)  # which has no folders: this is why


def test_a_key_of_somebody_else_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {"labels": LABELS, "channel_names": {"0": "CT"}, "labelsTr": 3, "hospital": "x", "numTraining": 2}
    with caplog.at_level(logging.INFO, logger="flaresemi"):
        assert describe(tmp_path, content).channels == ("CT",)
    assert "key 'hospital' is not used" in caplog.text
    assert "numTraining" not in caplog.text


@pytest.mark.parametrize(
    "more",
    [
        {"channel_names": {"0": "T1"}},
        {"modality": "MR"},
        {"numTraining": 2},
        {"classes": ["a", "b"]},
        {"tolerances_mm": {"liver": 5}},
        {"mirror_pairs": []},
    ],
)
def test_without_labels_a_description_of_something_else_is_refused(tmp_path: Path, more: dict) -> None:
    text = complaint(tmp_path, {"name": "mine"} | more)
    assert '"labels" is missing' in text
    assert "background" in text


def test_without_labels_a_name_may_stand_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert describe(tmp_path, {"name": "mine", "channel_names": {"0": "CT"}}).labels is None
    assert "names no organs: FLARE22's are assumed" in caplog.text


def test_an_error_of_syntax_has_a_place_and_no_advice_to_remove_the_file(tmp_path: Path) -> None:
    text = complaint(tmp_path, '{\n  "labels": {"background": 0, "liver": 1},\n  "name": "x",\n}\n')
    assert "not valid JSON in line 4, column 1" in text
    text = complaint(tmp_path, '{"labels": {"background": 0\n "liver": 1}}')
    assert "in line 2, column 2" in text
    assert '"liver": 1}}' in text
    for broken in ("{", '{"a": NaN}', '{"a": 1, "a": 2}'):
        text = complaint(tmp_path, broken)
        assert "not valid JSON" in text
        assert "correct it" in text
        assert "remove" not in text
    (tmp_path / "dataset.json").write_bytes('{"labels": {}}'.encode("utf-16"))
    with pytest.raises(DatasetError, match="expected JSON in UTF-8") as caught:
        Description(tmp_path / "dataset.json")
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "declared", "pairs"),
    [
        (("RK", "LK"), ..., (("RK", "LK"),)),
        (("RK", "liver"), ..., None),
        (("RK", "liver"), [], ()),
        (("RK", "LK"), None, None),
        (("RK", "LK", "RML"), [["RK", "LK"]], (("RK", "LK"),)),
    ],
)
def test_pairs_come_from_the_names_unless_they_are_declared(
    tmp_path: Path, names: tuple[str, ...], declared: object, pairs: object
) -> None:
    content: dict = {"labels": {name: value for value, name in enumerate(names, start=1)}}
    if declared is not ...:
        content["mirror_pairs"] = declared
    labels = describe(tmp_path, content).labels
    assert labels is not None
    assert labels.mirror_pairs == pairs


@pytest.mark.parametrize("wrong", [3, "RK", ["RK", "LK"], [["RK"]], {"RK": "LK"}, [["RK", "LK", "RK"]]])
def test_pairs_in_another_form_are_refused(tmp_path: Path, wrong: object) -> None:
    assert "mirror_pairs must be a list of pairs" in complaint(
        tmp_path, {"labels": {"RK": 1, "LK": 2}, "mirror_pairs": wrong}
    )


def test_groups_name_cases_once(tmp_path: Path) -> None:
    content = {"labels": LABELS, "groups": {"p1": ["a", "b"], "p2": ["c"]}}
    assert describe(tmp_path, content).groups == {"p1": ("a", "b"), "p2": ("c",)}
    content["groups"]["p2"].append("a")
    assert "case 'a' stands in 'p1' and in 'p2'" in complaint(tmp_path, content)
    for wrong in (["a"], {"a": "p1"}, {"p1": [3]}):
        assert '"groups" must be an object like' in complaint(tmp_path, {"labels": LABELS, "groups": wrong})
