import json
import logging

import pytest

from flaresemi import flare22
from flaresemi.dataset import LAYOUTS, declared_labels, find_images, load_dataset
from flaresemi.errors import DatasetError

NNUNET = "nnU-Net"


def make(
    root, layout=NNUNET, *, labeled=("a_0000", "b_0000"), labels=("a", "b"), unlabeled=(), test=(), json_text=None
):
    """An image folder of empty files: nothing but names is looked at."""
    for folder, stems in zip(LAYOUTS[layout], (labeled, labels, unlabeled, test), strict=True):
        (root / folder).mkdir()
        for stem in stems:
            (root / folder / (stem if "." in stem else f"{stem}.nii.gz")).touch()
    if json_text is not None:
        (root / "dataset.json").write_text(json_text if isinstance(json_text, str) else json.dumps(json_text))
    return root


def ids(cases):
    return [case.id for case in cases]


def complaint(root):
    with pytest.raises(DatasetError) as caught:
        load_dataset(root)
    return str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_give_the_same_cases(tmp_path, layout):
    dataset = load_dataset(make(tmp_path, layout, unlabeled=("u_0000",), test=("t_0000",)))
    assert (ids(dataset.labeled), ids(dataset.unlabeled), ids(dataset.test)) == (["a", "b"], ["u"], ["t"])
    case = dataset.case("a")
    assert case.images == (tmp_path / LAYOUTS[layout][0] / "a_0000.nii.gz",)
    assert case.label == tmp_path / LAYOUTS[layout][1] / "a.nii.gz"
    assert dataset.case("u").label is None


def test_a_segmentation_of_slicer_is_its_images_label_map_and_never_an_image(tmp_path, caplog):
    root = make(tmp_path, labeled=("a_0000.nrrd", "a.seg.nrrd", "b_0000.nrrd"), labels=("a.seg.nrrd", "b.seg.nrrd"))
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(root)
    assert {case.id: case.label.name for case in dataset.labeled} == {"a": "a.seg.nrrd", "b": "b.seg.nrrd"}
    assert [image.name for case in dataset.labeled for image in case.images] == ["a_0000.nrrd", "b_0000.nrrd"]
    assert "passed over" in caplog.text and "a.seg.nrrd" in caplog.text


def test_without_dataset_json_the_organs_are_those_of_flare22_on_trust(tmp_path):
    dataset = load_dataset(make(tmp_path, "flaresemi"))
    assert dataset.labels == flare22.LABELS
    assert dataset.labels_assumed
    assert dataset.channels == ("CT",)
    assert dataset.name == tmp_path.name


def test_a_dataset_json_says_it_all(tmp_path):
    content = {
        "name": "neck",
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "left gland": 200, "right gland": 5, "cord": 17},
        "z_range": ["cord"],
        "tolerances_mm": {"cord": 3},
        "annotated_labels": {"b": ["cord"]},
        "numTraining": 2,
    }
    stems = ("a_0000", "a_0001", "b_0000", "b_0001")
    dataset = load_dataset(make(tmp_path, labeled=stems, json_text=content))
    assert (dataset.name, dataset.channels, dataset.labels_assumed) == ("neck", ("T1", "T2"), False)
    assert dataset.labels.names == ("right gland", "cord", "left gland")  # in the order of their values
    assert dataset.labels.mirror_pairs == (("right gland", "left gland"),)
    assert [label.z_range for label in dataset.labels.labels] == [False, True, False]
    assert [label.tolerance_mm for label in dataset.labels.labels] == [None, 3.0, None]
    assert dataset.case("b").annotated == ("cord",)
    assert dataset.case("a").annotated is None
    assert [path.name for path in dataset.case("a").images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_the_decathlons_older_form_of_labels_and_channels(tmp_path):
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "2": "tumour"}}
    dataset = load_dataset(make(tmp_path, json_text=content))
    assert dataset.channels == ("MRI",)
    assert [(label.name, label.value) for label in dataset.labels.labels] == [("liver", 1), ("tumour", 2)]


def test_background_need_not_be_zero(tmp_path):
    dataset = load_dataset(make(tmp_path, json_text={"labels": {"background": -1, "organ": 0}}))
    assert dataset.labels.background == -1


def test_mirror_pairs_can_be_declared(tmp_path):
    content = {"labels": {"dexter": 1, "sinister": 2}, "mirror_pairs": [["dexter", "sinister"]]}
    dataset = load_dataset(make(tmp_path, json_text=content))
    assert dataset.labels.mirror_pairs == (("dexter", "sinister"),)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".NII.GZ"])
def test_all_formats_are_found_and_other_files_are_not(tmp_path, ending):
    make(tmp_path, labeled=(f"a_0000{ending}", "notes.txt", ".hidden.nii.gz"), labels=("a.nii.gz",))
    assert ids(load_dataset(tmp_path).labeled) == ["a"]


def test_names_without_channel_numbers_are_taken_whole(tmp_path):
    dataset = load_dataset(make(tmp_path, labeled=("a", "b"), unlabeled=("u",)))
    assert ids(dataset.labeled) == ["a", "b"]
    assert ids(dataset.unlabeled) == ["u"]


def test_numbered_patients_are_not_taken_for_channels(tmp_path):
    stems = ("patient_0000", "patient_0001")
    dataset = load_dataset(make(tmp_path, labeled=stems, labels=stems, unlabeled=("other_0000", "other_0001")))
    assert ids(dataset.labeled) == list(stems)
    assert ids(dataset.unlabeled) == ["other_0000", "other_0001"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"labels": ("a",)}, "images without a label map: b"),
        ({"labels": ("a", "b", "c")}, "label maps without an image: c"),
        ({"labels": ("a", "b_0000")}, "label maps without an image: b_0000"),
        ({"labeled": ()}, "no labeled images"),
        ({"labeled": ("a_0000", "b_0000", "b_0000.mha")}, "two files for case 'b', channel 0"),
        ({"labels": ("a", "b", "b.mha")}, "two label maps for case 'b'"),
        ({"labeled": ("a_0000", "b_0000", "b_0002")}, "channels [0, 2], expected 0 to 1"),
        ({"labeled": ("a_0000", "b_0000", "b_0001")}, "case 'a' has 1 channel(s), the dataset has 2"),
        ({"unlabeled": ("a_0000",)}, "case 'a' is in two groups"),
        ({"unlabeled": ("u_0000",), "test": ("u_0000",)}, "case 'u' is in two groups"),
    ],
)
def test_cases_that_do_not_fit_together_are_named(tmp_path, change, expected):
    assert expected in complaint(make(tmp_path, **change))


def test_every_case_that_lacks_something_is_named_at_once(tmp_path):
    text = complaint(make(tmp_path, labeled=("a_0000", "b_0000", "c_0000"), labels=("c", "d")))
    assert "images without a label map: a, b" in text
    assert "label maps without an image: d" in text


GOOD = {"labels": {"background": 0, "liver": 1, "spleen": 2}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold an object"),
        ({**GOOD, "name": 3}, "name must be a text"),
        ({"labels": []}, '"labels" must be an object'),
        ({"labels": {"background": 0}}, "at least one label"),
        ({"labels": {"background": 0, "whole": []}}, "label 'whole' has no value"),
        ({"labels": {"background": 0, "whole": [1, "a"]}}, "label 'whole' must be an integer, found 'a'"),
        ({"labels": {"background": 0, "whole": [0, 1]}}, "background, value 0, can be part of no organ"),
        ({"labels": {"a": [1, 2], "b": [2, 1]}}, "'a' and 'b' are the same voxels: values [1, 2]"),
        ({"labels": {"a": [1, 2]}, "regions_class_order": [1, 2]}, "must be a list of 1 integers, one for each label"),
        ({"labels": {"a": [1, 2]}, "regions_class_order": 1}, "must be a list of 1 integers, one for each label"),
        (
            {"labels": {"left": [1, 3], "right": 2, "hard": 3}, "mirror_pairs": [["left", "right"]]},
            "mirror pairs: value 3 is left, hard, and no value is right, hard, which it becomes",
        ),
        ({"labels": {"liver": 1.5}}, "label 'liver' must be an integer, found 1.5"),
        ({"labels": {"liver": True}}, "label 'liver' must be an integer, found True"),
        ({"labels": {"liver": "--5"}}, "must be an integer"),
        ({"labels": {"liver": 1, "spleen": 1}}, "label values must differ"),
        ({"labels": {"liver": 0}}, "besides background, which is value 0 (here 'liver')"),
        ({"labels": {"0": "background", "1": "liver", "2": "liver"}}, "two labels have one name"),
        ({**GOOD, "channel_names": {"1": "CT"}}, "channel_names must be like"),
        ({**GOOD, "channel_names": {"0": "CT", "1": "PET"}}, "case 'a' has 1 channel(s), the dataset has 2: CT, PET"),
        ({**GOOD, "z_range": ["livre"]}, "'livre', which is not a label (did you mean 'liver'?)"),
        ({**GOOD, "z_range": "liver"}, "z_range must be a list"),
        ({**GOOD, "tolerances_mm": {"liver": 0}}, "tolerances_mm of 'liver' must be a positive number"),
        ({**GOOD, "tolerances_mm": {"liver": 10**400}}, "tolerances_mm of 'liver' must be a positive number"),
        ({**GOOD, "tolerances_mm": [1]}, '"tolerances_mm" must be an object'),
        ({**GOOD, "mirror_pairs": [["liver", "spline"]]}, "'spline', which is not a label"),
        ({**GOOD, "mirror_pairs": [["liver"]]}, "dataset.json"),
        ({**GOOD, "mirror_pairs": 3}, "dataset.json"),
        ({**GOOD, "annotated_labels": {"z": ["liver"]}}, "annotated_labels names cases that do not exist: z"),
        ({**GOOD, "annotated_labels": {"a": ["kidney"]}}, "'kidney', which is not a label"),
        ({**GOOD, "annotated_labels": {"a": []}}, "annotated_labels of 'a' names no label"),
        ({**GOOD, "annotated_labels": ["a"]}, '"annotated_labels" must be an object'),
    ],
)
def test_every_mistake_in_dataset_json_is_named_with_the_file(tmp_path, content, expected):
    text = complaint(make(tmp_path, json_text=content))
    assert expected in text
    if expected[:4] != "case":
        assert str(tmp_path / "dataset.json") in text


def test_groups_are_those_of_the_cases(tmp_path):
    content = {**GOOD, "groups": {"p1": ["a", "u", "t"], "p2": ["b"], "p3": ["v"]}}
    make(tmp_path, unlabeled=("u_0000", "v_0000"), test=("t_0000",), json_text=content)
    dataset = load_dataset(tmp_path)
    assert [dataset.case(name).group for name in "abuvt"] == ["p1", "p2", "p1", "p3", "p1"]
    assert dataset.unlabeled_relatives(["a"]) == {"u": "p1"}
    assert dataset.unlabeled_relatives(["b"]) == {}


def test_groups_of_cases_that_do_not_exist_are_refused(tmp_path):
    make(tmp_path, labeled=("scan_1_0000",), labels=("scan_1",), json_text={**GOOD, "groups": {"p": ["scan_7"]}})
    assert "groups names cases that do not exist: scan_7 (did you mean 'scan_1'?)" in complaint(tmp_path)


def test_folders_that_are_no_dataset(tmp_path):
    assert "not found" in complaint(tmp_path / "absent")
    assert "not a dataset folder" in complaint(tmp_path)
    make(tmp_path, "flaresemi")
    make(tmp_path, NNUNET)
    assert "two layouts" in complaint(tmp_path)


def test_a_case_that_does_not_exist(tmp_path):
    with pytest.raises(DatasetError, match="no case 'z'"):
        load_dataset(make(tmp_path)).case("z")


def test_the_images_of_a_folder(tmp_path):
    with pytest.raises(DatasetError, match="folder not found"):
        find_images(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DatasetError, match="no images in this folder"):
        find_images(tmp_path)
    for name in ("b_0000.nii.gz", "b_0001.nii.gz", "a_0000.mha", "a_0001.mha"):
        (tmp_path / name).touch()
    cases = find_images(tmp_path)
    assert ids(cases) == ["a", "b"]
    assert [len(case.images) for case in cases] == [2, 2]


def test_declared_labels_need_no_cases(tmp_path):
    assert declared_labels(tmp_path) == (None, {})
    content = {"labels": {"background": 0, "liver": 3, "spleen": 1}, "annotated_labels": {"a": ["spleen"]}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    labels, annotated = declared_labels(tmp_path)
    assert labels is not None
    assert labels.names == ("spleen", "liver")
    assert annotated == {"a": ("spleen",)}
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        declared_labels(tmp_path)


def test_folders_of_slices_are_images_and_label_maps_are_files(tmp_path):
    for case in ("case_1_0000", "case_2_0000"):
        (tmp_path / "imagesTr" / case).mkdir(parents=True)
        (tmp_path / "imagesTr" / case / "IM1").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "imagesTr" / "notes").mkdir()
    (tmp_path / "labelsTr" / "case_2").mkdir(parents=True)
    (tmp_path / "labelsTr" / "case_2" / "IM1").write_bytes(bytes(128) + b"DICM")
    for case in ("case_1", "case_2"):
        (tmp_path / "labelsTr" / f"{case}.nii.gz").touch()
    dataset = load_dataset(tmp_path)
    assert ids(dataset.labeled) == ["case_1", "case_2"]
    assert dataset.labeled[0].images == (tmp_path / "imagesTr" / "case_1_0000",)
    assert dataset.labeled[1].label == tmp_path / "labelsTr" / "case_2.nii.gz"


def test_the_real_datasets_load(shared_data):
    neck = load_dataset(shared_data / "openkbp")
    assert (len(neck.labeled), len(neck.unlabeled), len(neck.test)) == (34, 80, 17)
    assert neck.labels.mirror_pairs == (("right parotid", "left parotid"),)
    assert len(load_dataset(shared_data / "hippocampus").labeled) == 260


def test_texts_of_a_dataset_stand_on_one_line_without_what_a_terminal_obeys(tmp_path):
    odd = "a\nerror: all is lost\x1b[2J\u202e"
    kept = {"labels": {"background": 0, "liver": 1}}
    folder = tmp_path / "\x1b[2Jd\udcff"
    folder.mkdir()
    assert load_dataset(make(folder)).name == "\\x1b[2Jd\\udcff"
    for content in (
        {"labels": {"background": 0, odd: 1}},
        {"labels": {odd: [1, 2]}},
        {**kept, "channel_names": {"0": odd}},
        {**kept, "annotated_labels": {odd: ["liver"]}},
        {**kept, "annotated_labels": {"a": [odd]}},
        {**kept, "tolerances_mm": {odd: 1}},
        {**kept, "z_range": [odd]},
        {**kept, "mirror_pairs": [["liver", odd]]},
    ):
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        if not (tmp_path / LAYOUTS[NNUNET][0]).exists():
            make(tmp_path)
        message = complaint(tmp_path)
        assert "\x1b" not in message and "\u202e" not in message
        assert not any(line.startswith("error") for line in message.splitlines())
    (tmp_path / "dataset.json").write_text(json.dumps({**kept, "name": odd}))
    assert load_dataset(tmp_path).name == "a\\nerror: all is lost\\x1b[2J\\u202e"
