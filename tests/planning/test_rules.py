import csv
import json
import math
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.errors import DatasetError
from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.planning import inspection
from flaresemi.planning.cases import grid_difference, orientation, read_case, spans
from flaresemi.planning.decisions import (
    Decisions,
    apply_decisions,
    load_decisions,
    save_decisions,
    settle,
    usable_cases,
)
from flaresemi.planning.findings import load_warnings
from flaresemi.planning.inspection import inspect_dataset
from flaresemi.planning.rules import judge
from flaresemi.workspace import Workspace
from tests.made_dicom import Stack
from tests.made_nifti import as_nibabel_writes, as_simpleitk_writes, write_nifti
from tests.made_nrrd import SPACING_XYZ, segment_fields, write_nrrd


def found(report):
    """{(case, severity, problem)} of a report."""
    return {(finding.case_id, finding.severity, finding.problem) for finding in report.findings}


def check(small, cache=None, workers=1):
    dataset = small.load()
    return judge(dataset, inspect_dataset(dataset, cache, workers=workers))


def message(report, case_id):
    (finding,) = [finding for finding in report.findings if finding.case_id == case_id]
    return finding.message


def test_a_sound_dataset_has_nothing_to_report(small_dataset):
    report = check(small_dataset())
    assert report.findings == ()
    assert "3 labeled, 1 unlabeled, 1 test; 0 error(s), 0 warning(s)" in report.summary()
    assert "organ 1 3, organ 2 3" in report.summary()


def test_every_broken_file_is_found_in_one_report(small_dataset, shared_data):
    small = small_dataset()
    broken = sorted((shared_data / "robustness" / "broken").iterdir())
    for path in broken:
        shutil.copy(path, small.image_path("unlabeled", f"broken_{path.name.split('.')[0]}"))
    shutil.copy(broken[0], small.label_path("l1"))
    report = check(small)
    assert len(broken) == 5
    assert {finding.case_id for finding in report.errors} == {
        "l1",
        *(f"broken_{path.name.split('.')[0]}" for path in broken),
    }
    assert {finding.problem for finding in report.errors} == {"unreadable"}
    text = report.summary()
    for path in broken:
        assert path.name.split(".")[0] in text
    assert all(finding.file and finding.remedy for finding in report.errors)


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("niivue_odd", "shear.nii.gz", "sheared"),
        ("nibabel_odd", "example4d.nii.gz", "4D"),
        ("niivue_odd", "complex.nii.gz", "complex"),
        ("niivue_odd", "ct_perfusion.nii.gz", "RGB"),
    ],
)
def test_images_of_the_wrong_kind_are_errors(small_dataset, shared_data, folder, name, expected):
    small = small_dataset()
    shutil.copy(shared_data / "robustness" / folder / name, small.image_path("test", "odd"))
    report = check(small)
    assert found(report) == {("odd", "error", "unreadable")}
    assert expected in message(report, "odd")


def test_all_channels_and_the_label_of_one_case_are_reported(small_dataset):
    small = small_dataset(channels=("T1", "T2"))
    for path in (small.image_path("labeled", "l0", 0), small.image_path("labeled", "l0", 1), small.label_path("l0")):
        path.write_bytes(b"")
    report = check(small)
    assert len(report.errors) == 3
    assert len({finding.file for finding in report.errors}) == 3


def test_channels_on_different_grids_are_an_error(small_dataset):
    small = small_dataset(channels=("T1", "T2"))
    small.write(small.image_path("unlabeled", "u0", 1), np.zeros((20, 24, 23), np.int16))
    report = check(small)
    assert found(report) == {("u0", "error", "unreadable")}
    assert "one grid" in message(report, "u0")


GRID_MISTAKES = {
    "spacing": ({"spacing": (1.0, 1.0, 1.0)}, ["spacing 1×1×1 mm, the image 3×1.5×1.5 mm"], True),
    "origin": ({"origin": (30.0, 0.0, 40.0)}, ["corners up to 50 mm apart", "origin 50 mm away"], True),
    "turn": (
        {"direction": (math.cos(0.1), -math.sin(0.1), 0, math.sin(0.1), math.cos(0.1), 0, 0, 0, 1)},
        ["turned by 5.73 degrees"],
        True,
    ),
    "flip": (
        {"direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1)},
        ["stored as RPS, the image as LPS: a flip?", "31.5 mm"],
        False,
    ),
}


@pytest.mark.parametrize("mistake", GRID_MISTAKES)
def test_a_label_map_off_its_image_is_told_by_how_much_and_in_what(small_dataset, mistake):
    changes, expected, fixable = GRID_MISTAKES[mistake]
    small = small_dataset()
    small.write(small.label_path("l0"), small.label_array(0), **changes)
    report = check(small)
    assert found(report) == {("l0", "error", "grids differ")}
    assert all(part in message(report, "l0") for part in expected), message(report, "l0")
    assert ("--fix-geometry" in report.errors[0].remedy) == fixable
    assert ("l0" in report.on_image_grid) == fixable


def test_a_label_map_of_another_shape_cannot_be_fixed(small_dataset):
    small = small_dataset()
    small.write(small.label_path("l0"), np.ones((20, 24, 21), np.uint8))
    report = check(small)
    assert "20×24×21 voxels (z, y, x), the image 20×24×22" in message(report, "l0")
    assert report.on_image_grid == {}


def test_rounding_and_another_axis_order_are_no_mistakes(small_dataset):
    small = small_dataset()
    small.write(small.label_path("l0"), small.label_array(0), origin=(1e-3, 0.0, 0.0), spacing=(1.5 + 1e-6, 1.5, 3.0))
    image = sitk.DICOMOrient(sitk.ReadImage(str(small.label_path("l1"))), "RAS")
    sitk.WriteImage(image, str(small.label_path("l1")))
    assert check(small).findings == ()


def test_unknown_values_are_errors_and_empty_labels_warnings(small_dataset):
    small = small_dataset()
    label = small.label_array(0)
    label[0, 0, :3] = (14, 15, 99)
    small.write(small.label_path("l0"), label)
    small.write(small.label_path("l1"), np.zeros(small.shape, np.uint8))
    report = check(small)
    assert found(report) == {("l0", "error", "unknown label"), ("l1", "warning", "empty label")}
    assert message(report, "l0") == "label map has values 14, 15, 99, the dataset declares 0-2"


def test_labels_that_are_no_integers_are_errors_and_whole_floats_are_not(small_dataset):
    small = small_dataset()
    small.write(small.label_path("l0"), small.label_array(0).astype(np.float32))
    small.write(small.label_path("l1"), small.label_array(1).astype(np.float32) * 0.5)
    report = check(small)
    assert found(report) == {("l1", "error", "unreadable")}
    assert "0.5" in message(report, "l1")


def test_any_integers_may_be_labels(small_dataset):
    assert check(small_dataset(values=(5, 17, 200)[:2])).findings == ()
    assert check(small_dataset("other", values=(-3, 2000))).findings == ()


def test_not_a_number_is_a_warning(small_dataset):
    small = small_dataset()
    image = small.image_array(0, small.label_array(0)).astype(np.float32)
    image[0, 0, :5] = (np.nan, np.inf, -np.inf, np.nan, np.nan)
    small.write(small.image_path("labeled", "l0"), image)
    report = check(small)
    assert found(report) == {("l0", "warning", "not finite")}
    assert message(report, "l0").startswith("5 voxels")


def test_a_ct_that_is_not_in_hounsfield_units_is_pointed_at(small_dataset):
    small = small_dataset(labeled=4)
    for name, change in (("l0", lambda x: x + 1024), ("l1", lambda x: (x + 1024) / 2000)):
        image = change(small.image_array(7, small.label_array(7)).astype(np.float32))
        small.write(small.image_path("labeled", name), image)
    problems = found(check(small))
    assert ("l0", "warning", "no HU") in problems
    assert ("l1", "warning", "no HU") in problems
    assert not {case for case, _, problem in problems if problem == "no HU"} - {"l0", "l1"}
    as_mr = found(check(small.describe(channel_names={"0": "MR"})))
    assert "no HU" not in {problem for *_, problem in as_mr}


@pytest.mark.parametrize(("channel", "is_told"), [("CT", True), (" ct", True), ("MR", False)])
def test_mr_that_is_taken_for_ct_is_pointed_at(small_dataset, channel, is_told):
    """Values from 0 to 900 are in the range of HU, but a CT has air or, where it is clipped, fat."""
    small = small_dataset(channels=(channel,))
    for number in range(3):
        label = small.label_array(number)
        image = np.clip(small.image_array(number, label) * 5.0, 0, 900)
        small.write(small.image_path("labeled", f"l{number}"), image.astype(np.int16))
    findings = [finding for finding in check(small).findings if finding.problem == "no air"]
    assert len(findings) == is_told
    assert all(finding.case_id == "" and '"channel_names"' in finding.remedy for finding in findings)
    clipped = np.maximum(small.image_array(0, small.label_array(0)), -125)
    small.write(small.image_path("labeled", "l0"), clipped)
    assert "no air" not in {problem for _, _, problem in found(check(small))}


def test_without_dataset_json_one_error_shows_all_values_and_a_file_to_copy(small_dataset):
    small = small_dataset(json=False, values=(3, 17))
    report = check(small)
    (error,) = report.errors
    assert error.case_id == ""
    assert "0, 3, 17" in error.message
    assert "17 in 3 case(s) such as 'l0'" in error.message
    text = error.remedy[error.remedy.index("{") :]
    (small.root / "dataset.json").write_text(text)
    assert json.loads(text)["labels"] == {"background": 0, "organ 3": 3, "organ 17": 17}
    assert check(small).errors == ()


def test_flare22s_values_need_no_dataset_json_but_absent_organs_are_said(small_dataset):
    report = check(small_dataset(json=False, layout="flaresemi", values=(1, 13)))
    assert report.errors == ()
    (warning,) = report.warnings
    assert "FLARE22's organs are assumed" in warning.message
    assert "pancreas" in warning.message
    assert "liver" not in warning.message


def test_sides_that_have_no_partner_are_pointed_at(small_dataset):
    small = small_dataset()
    for labels, told in (
        ({"right kidney": 1, "liver": 2}, "right kidney without a partner"),
        ({"RK": 1, "LK": 2}, None),
    ):
        report = check(small.describe(labels=labels))
        texts = [finding.message for finding in report.warnings if finding.problem == "left and right"]
        assert [told in text for text in texts] == ([True] if told else [])
    (finding,) = check(small.describe(labels={"RK": 1, "LK": 2}, mirror_pairs=[])).warnings
    assert "RK and LK, by name, but mirroring does not exchange them" in finding.message


def test_test_cases_of_a_group_that_is_trained_on_are_pointed_at(small_dataset):
    small = small_dataset()
    assert not found(check(small.describe(groups={"p": ["l0", "u0"], "q": ["t0"]})))
    (finding,) = check(small.describe(groups={"p": ["l0", "u0", "t0"]})).warnings
    assert (finding.case_id, finding.problem) == ("t0", "group on both sides")
    assert "of group 'p', like 'l0' (labeled)" in finding.message


def test_duplicates_are_found_by_content_in_whatever_orientation_and_group(small_dataset):
    small = small_dataset(labeled=4)
    image = sitk.ReadImage(str(small.image_path("labeled", "l0")))
    image.SetOrigin((5.0, 6.0, 7.0))
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(sitk.DICOMOrient(image, "RAS"), str(small.image_path("unlabeled", "twin")))
    shutil.copy(small.image_path("labeled", "l1"), small.image_path("test", "copy"))
    for path in (small.image_path("labeled", "l2"), small.label_path("l2")):
        shutil.copy(path, str(path).replace("l2", "l9"))
    report = check(small)
    assert found(report) == {(case, "warning", "duplicate") for case in ("twin", "copy", "l9")}
    assert message(report, "twin") == "the same image as 'l0' (labeled)"
    assert len({finding.remedy for finding in report.warnings}) == 3


def test_one_image_with_two_label_maps_is_an_error_of_both(small_dataset):
    small = small_dataset()
    shutil.copy(small.image_path("labeled", "l0"), small.image_path("labeled", "l1"))
    assert found(check(small)) == {("l0", "error", "contradiction"), ("l1", "error", "contradiction")}


@pytest.mark.parametrize("group", ["labeled", "unlabeled", "test"])
def test_cases_far_from_the_labeled_ones_are_pointed_at(small_dataset, group):
    small = small_dataset(labeled=6)
    label = small.label_array(9)
    for name, spacing in (("wide", (1.5, 1.5, 9.0)), ("same", (1.6, 1.6, 3.3))):
        small.write(small.image_path(group, name), small.image_array(9, label) + (name == "same"), spacing=spacing)
        if group == "labeled":
            small.write(small.label_path(name), label, spacing=spacing)
    report = check(small)
    assert found(report) == {("wide", "warning", "outlier")}
    assert "spacing along z is 9 mm (labeled cases: 3 mm)" in message(report, "wide")


def test_intensities_far_from_the_labeled_ones_are_pointed_at(small_dataset):
    small = small_dataset(labeled=6)
    image = small.image_array(9, small.label_array(9))
    image[image > -500] += 400
    small.write(small.image_path("unlabeled", "bright"), image)
    assert found(check(small)) == {("bright", "warning", "outlier")}


def test_two_kinds_of_labeled_cases_are_two_kinds_and_no_outliers(small_dataset):
    small = small_dataset(labeled=0)
    for number in range(12):
        label = small.label_array(number)
        factor = np.float32(1000 if number % 4 == 0 else 1)
        small.write(small.image_path("labeled", f"l{number:02d}"), small.image_array(number, label) * factor)
        small.write(small.label_path(f"l{number:02d}"), label)
    assert check(small.describe(channel_names={"0": "MR"})).findings == ()


def test_organs_that_a_case_does_not_annotate_are_no_labels(small_dataset):
    small = small_dataset()
    small.describe(annotated_labels={"l0": ["organ 2"]})
    report = check(small)
    assert found(report) == {("l0", "warning", "not annotated")}
    assert "organ 1" in message(report, "l0")
    case = small.load().case("l0")
    _, indices = read_case(case, small.load().labels)
    assert np.unique(indices).tolist() == [0, 2]


def test_every_case_and_every_finding_has_a_row(small_dataset, tmp_path):
    small = small_dataset()
    small.image_path("unlabeled", "u0").write_bytes(b"")
    small.write(small.label_path("l1"), np.zeros(small.shape, np.uint8))
    check(small).write_csv(tmp_path / "integrity.csv")
    with open(tmp_path / "integrity.csv", encoding="utf-8", newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert {case: row["severity"] for case, row in rows.items()} == {
        "l0": "ok",
        "l1": "warning",
        "l2": "ok",
        "u0": "error",
        "t0": "ok",
    }
    assert rows["l0"]["shape_zyx"] == "20 24 22"
    assert rows["l0"]["spacing_zyx_mm"] == "3 1.5 1.5"
    assert rows["l0"]["orientation"] == "LPS"
    assert rows["l0"]["label_values"] == "0-2"
    assert float(rows["l0"]["minimum"]) < -900 < 0 < float(rows["l0"]["maximum"])


def test_warnings_about_cases_can_be_read_back(small_dataset, tmp_path):
    small = small_dataset()
    small.image_path("unlabeled", "u0").write_bytes(b"")  # an error is no warning
    small.write(small.label_path("l1"), np.zeros(small.shape, np.uint8))
    report, path = check(small), tmp_path / "integrity.csv"
    report.write_csv(path)
    assert load_warnings(path) == tuple(finding for finding in report.warnings if finding.case_id)
    assert [finding.case_id for finding in load_warnings(path)] == ["l1"]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="not a list of findings"):
        load_warnings(path)


def test_the_summary_is_cut_where_asked_and_says_so(small_dataset):
    small = small_dataset()
    for number in range(9):
        small.image_path("unlabeled", f"bad{number}").write_bytes(b"")
    report = check(small)
    assert "... and 6 more" in report.summary(most=3)
    assert "more" not in report.summary()
    assert all(f"bad{number}" in report.summary() for number in range(9))


def test_a_second_check_reads_only_what_has_changed(small_dataset, tmp_path, monkeypatch):
    small, cache = small_dataset(), tmp_path / "cache.json"
    first = check(small, cache=cache)
    read = []
    inspect_case = inspection.inspect_case
    monkeypatch.setattr(
        inspection, "inspect_case", lambda case, **rules: read.append(case.id) or inspect_case(case, **rules)
    )
    assert check(small, cache=cache) == first
    assert read == []
    small.write(small.label_path("l1"), np.zeros(small.shape, np.uint8))
    os.utime(small.image_path("test", "t0"), ns=(1, 1))
    assert found(check(small, cache=cache)) == {("l1", "warning", "empty label")}
    assert read == ["l1", "t0"]


def as_slices(small, group, name):
    """Puts DICOM slices in the place of a case's image; returns them."""
    path = small.image_path(group, name)
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    path.unlink()
    return Stack(array_zyx=array, spacing=small.spacing_xyz, origin=(0.0, 0.0, 0.0)).write(
        small.folder(group) / f"{name}_0000"
    )


def test_series_of_slices_are_images_like_any_other(small_dataset):
    small = small_dataset()
    shutil.copy(small.image_path("labeled", "l1"), small.image_path("unlabeled", "twin"))
    for name in ("l0", "l1"):
        as_slices(small, "labeled", name)
    slices = as_slices(small, "test", "t0")
    slices[4].unlink()
    report = check(small)
    assert found(report) == {("twin", "warning", "duplicate"), ("t0", "error", "unreadable")}
    assert "1 slice(s) missing: 6 mm between IM" in message(report, "t0")


def test_a_series_is_read_again_when_one_of_its_slices_has_changed(small_dataset, tmp_path, monkeypatch):
    small, cache = small_dataset(), tmp_path / "cache.json"
    slices = as_slices(small, "labeled", "l0")
    first = check(small, cache=cache)
    read = []
    inspect_case = inspection.inspect_case
    monkeypatch.setattr(
        inspection, "inspect_case", lambda case, **rules: read.append(case.id) or inspect_case(case, **rules)
    )
    assert check(small, cache=cache) == first
    assert read == []
    os.utime(slices[3], ns=(1, 1))
    check(small, cache=cache)
    assert read == ["l0"]
    slices[-1].unlink()
    check(small, cache=cache)
    assert read == ["l0", "l0"]


def test_other_names_of_regions_are_read_anew_where_segments_have_names(small_dataset, tmp_path, monkeypatch):
    small, cache = small_dataset(), tmp_path / "cache.json"
    small.label_path("l1").rename(small.folder("label") / "l1.seg.dcm")
    with open(small.folder("label") / "l1.seg.dcm", "wb") as file:  # its organs are asked for, though it is not whole
        file.write(bytes(128) + b"DICM" + b"1.2.840.10008.5.1.4.1.1.66.4")
    read = []
    inspect_case = inspection.inspect_case
    monkeypatch.setattr(
        inspection, "inspect_case", lambda case, **rules: read.append(case.id) or inspect_case(case, **rules)
    )
    for names, again in ((("whole", "core"), 5), (("whole", "core"), 0), (("core", "whole"), 1)):
        read.clear()
        small.describe(labels={"background": 0, names[0]: [1, 2], names[1]: [2, 3]})
        inspect_dataset(small.load(), cache, workers=1)
        assert len(read) == again
    assert read == ["l1"]


def test_a_damaged_cache_costs_time_only(small_dataset, tmp_path):
    (tmp_path / "cache.json").write_text('{"schema_version": 0, "cases": []}')
    small = small_dataset()
    report = check(small, cache=tmp_path / "cache.json")
    assert report.findings == ()
    assert check(small, cache=tmp_path / "cache.json") == report


def test_what_was_seen_before_a_kill_is_kept(small_dataset, tmp_path, monkeypatch):
    small, cache = small_dataset(), tmp_path / "cache.json"
    inspect_case = inspection.inspect_case

    def killed(case, **rules):
        if case.id == "l2":
            raise KeyboardInterrupt
        return inspect_case(case, **rules)

    monkeypatch.setattr(inspection, "inspect_case", killed)
    with pytest.raises(KeyboardInterrupt):
        check(small, cache=cache)
    read = []
    monkeypatch.setattr(
        inspection, "inspect_case", lambda case, **rules: read.append(case.id) or inspect_case(case, **rules)
    )
    check(small, cache=cache)
    assert read == ["l2", "u0", "t0"]


def test_the_number_of_workers_changes_nothing(small_dataset):
    small = small_dataset()
    assert check(small, workers=1) == check(small, workers=2)


class TestDecisions:
    def bad(self, small_dataset):
        small = small_dataset()
        small.write(small.label_path("l0"), small.label_array(0), spacing=(1.0, 1.0, 1.0))
        small.image_path("unlabeled", "u0").write_bytes(b"")
        return small

    def settle(self, small, before=None, **options):
        dataset = small.load()
        return settle(dataset, inspect_dataset(dataset, None, workers=1), before or Decisions(), **options)

    def test_without_a_decision_errors_stay_errors(self, small_dataset):
        report, decisions = self.settle(self.bad(small_dataset))
        assert set(report.bad_cases) == {"l0", "u0"}
        assert decisions == Decisions()

    def test_bad_cases_are_left_out_everywhere_with_the_reason(self, small_dataset, tmp_path):
        small, workspace = self.bad(small_dataset), Workspace(tmp_path / "w")
        _, decisions = self.settle(small, skip_bad_cases=True)
        save_decisions(workspace, decisions)
        assert {decision.case_id: "empty" in decision.why for decision in load_decisions(workspace).skipped} == {
            "l0": False,
            "u0": True,
        }
        usable = usable_cases(small.load(), workspace)
        assert [case.id for case in usable.labeled] == ["l1", "l2"]
        assert usable.unlabeled == ()

    def test_a_label_map_is_put_on_its_images_grid_and_the_file_stays(self, small_dataset):
        small = self.bad(small_dataset)
        before = small.label_path("l0").read_bytes()
        report, decisions = self.settle(small, fix_geometry=True)
        assert set(report.bad_cases) == {"u0"}
        assert ("l0", "warning", "grid fixed") in found(report)
        case = apply_decisions(small.load(), decisions).case("l0")
        image, indices = read_case(case, small.load().labels)
        assert np.array_equal(indices, small.label_array(0))
        assert indices.shape == image.geometry.shape_zyx
        assert small.label_path("l0").read_bytes() == before
        with pytest.raises(DatasetError, match="does not lie on its image"):
            read_case(small.load().case("l0"), small.load().labels)

    def test_decisions_hold_in_later_runs_as_long_as_they_are_needed(self, small_dataset):
        small = self.bad(small_dataset)
        _, first = self.settle(small, fix_geometry=True, skip_bad_cases=True)
        assert self.settle(small, first)[1] == first
        small.add("unlabeled", "u0", seed=50)
        small.write(small.label_path("l0"), small.label_array(0))
        report, later = self.settle(small, first)
        assert report.findings == ()
        assert later == Decisions()

    def test_a_new_bad_case_is_not_covered_by_an_old_decision(self, small_dataset):
        small = self.bad(small_dataset)
        _, first = self.settle(small, skip_bad_cases=True)
        small.image_path("test", "t0").write_bytes(b"")
        report, later = self.settle(small, first)
        assert set(report.bad_cases) - {decision.case_id for decision in later.skipped} == {"t0"}

    def test_a_flip_is_never_fixed(self, small_dataset):
        small = small_dataset()
        small.write(small.label_path("l0"), small.label_array(0), direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1))
        report, decisions = self.settle(small, fix_geometry=True)
        assert set(report.bad_cases) == {"l0"}
        assert decisions == Decisions()

    def test_no_labeled_case_left_is_an_error(self, small_dataset, tmp_path):
        small = small_dataset(labeled=1)
        small.label_path("l0").write_bytes(b"")
        _, decisions = self.settle(small, skip_bad_cases=True)
        save_decisions(Workspace(tmp_path), decisions)
        with pytest.raises(DatasetError, match="no labeled case"):
            usable_cases(small.load(), Workspace(tmp_path))

    def test_no_decision_leaves_no_file(self, tmp_path):
        workspace = Workspace(tmp_path)
        save_decisions(workspace, Decisions())
        assert not workspace.case_decisions.exists()
        assert load_decisions(workspace) == Decisions()


def test_reading_a_case_refuses_what_nobody_declared(small_dataset):
    small = small_dataset()
    label = small.label_array(0)
    label[0, 0, 0] = 9
    small.write(small.label_path("l0"), label)
    with pytest.raises(DatasetError, match="value 9, the dataset declares 0-2"):
        read_case(small.load().case("l0"), small.load().labels)


def grid(axes=(0, 1, 2), flips=(False,) * 3, **changes):
    geometry = Geometry(**{"shape_zyx": (5, 6, 7), "spacing_zyx_mm": (3.0, 2.0, 1.0), **changes})
    return SourceGrid(geometry=geometry, axes=axes, flips=flips)


def test_orientations_have_nibabels_letters():
    assert orientation(grid()) == "LPS"
    assert orientation(grid(flips=(False, True, True))) == "RAS"
    assert orientation(grid(axes=(2, 0, 1))) == "SLP"  # the file's fastest axis runs to the head


def test_small_turns_are_measured_exactly():
    angle = math.radians(0.2)
    turned = (math.cos(angle), -math.sin(angle), 0, math.sin(angle), math.cos(angle), 0, 0, 0, 1)
    assert grid_difference(grid(), grid()) is None
    difference = grid_difference(grid(direction=turned, shape_zyx=(5, 600, 700)), grid(shape_zyx=(5, 600, 700)))
    assert "turned by 0.2 degrees" in difference.what


def test_spans_of_values():
    assert spans([]) == ""
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe", b"case,\0\n", b'"' + b"x" * 200_000])
def test_another_file_is_no_list_of_findings(tmp_path, content):
    (tmp_path / "integrity.csv").write_bytes(content)
    with pytest.raises(DatasetError, match="not a list of findings"):
        load_warnings(tmp_path / "integrity.csv")
    (tmp_path / "integrity.csv").write_bytes(b"case,severity,problem,file,message,remedy\na,warning\n")
    assert load_warnings(tmp_path / "integrity.csv")[0].message == ""


# Labels outside of the body crop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["CT", "T1"])
def test_labels_that_the_crop_leaves_out_are_a_finding_with_their_share(small_dataset, channel):
    small = small_dataset(channels=(channel,)).with_label_in_air(0.25)
    cropped = [finding for finding in check(small).findings if finding.problem == "cropped"]
    assert [finding.case_id for finding in cropped] == ["l1"]
    assert cropped[0].severity == "warning"
    assert "25 % of organ 1" in cropped[0].message and "organ 2" not in cropped[0].message


def test_facts_without_the_crop_are_found_out_once_more(small_dataset, tmp_path):
    """What an older flaresemi has seen of the files says nothing of it."""
    small, cache = small_dataset().with_label_in_air(0.25), tmp_path / "cache.json"
    check(small, cache=cache)
    content = json.loads(cache.read_text(encoding="utf-8"))
    for case in content["cases"]:
        if case["image"]:
            del case["image"]["body"], case["image"]["body_box"]
        if case["label"]:
            del case["label"]["outside_body"]
    cache.write_text(json.dumps(content), encoding="utf-8")
    assert [finding.case_id for finding in check(small, cache=cache).findings if finding.problem == "cropped"] == ["l1"]


# Files of several programs


def brightness(small, case_id):
    """Mean intensity of each organ, as a case is read for training."""
    dataset = small.load()
    image, organs = read_case(dataset.case(case_id), dataset.labels)
    return [float(image.array_czyx[0][organs == index].mean()) for index in (1, 2)]


@pytest.mark.parametrize("write", [as_nibabel_writes, as_simpleitk_writes])
@pytest.mark.parametrize("mirrored", [True, False])
def test_label_maps_lie_on_images_whose_sform_and_qform_differ(small_dataset, write, mirrored):
    """Whichever of them the program that wrote the label map follows. The brighter organ must stay it."""
    small = small_dataset()
    x, y, z = small.spacing_xyz
    sform, qform = np.diag([-x, -y, z, 1]), np.diag([x, -y, z, 1])
    qform[0, 3] = -x * (small.shape[2] - 1) if mirrored else 30
    label = small.label_array(0)
    image = write_nifti(small.image_path("labeled", "l0"), small.image_array(0, label).T, sform, qform)
    write(small.label_path("l0"), label.T.astype(np.uint8), image)
    report = check(small)
    assert report.errors == ()
    expected = {("l0", "warning", "two positions")}
    if write is as_simpleitk_writes:
        expected.add(("l0", "warning", "other position"))
    assert found(report) == expected
    darker, brighter = brightness(small, "l0")
    assert abs(darker - 120) < 5 and abs(brighter - 180) < 5


def test_a_channel_that_follows_the_other_form_is_told(small_dataset):
    small = small_dataset(channels=("T1", "T2"))
    x, y, z = small.spacing_xyz
    sform, qform = np.diag([-x, -y, z, 1]), np.diag([x, -y, z, 1])
    qform[0, 3] = 30
    label = small.label_array(0)
    first = write_nifti(small.image_path("labeled", "l0", 0), small.image_array(0, label).T, sform, qform)
    as_nibabel_writes(small.label_path("l0"), label.T.astype(np.uint8), first)
    as_simpleitk_writes(small.image_path("labeled", "l0", 1), small.image_array(0, label).T, first)
    assert found(check(small)) == {("l0", "warning", "two positions"), ("l0", "warning", "other position")}


def test_a_label_map_that_lies_on_its_image_in_two_orders_is_refused(small_dataset):
    """It was reordered, and its qform is that of before: taken by that, it would be mirrored."""
    small = small_dataset()
    x, y, z = small.spacing_xyz
    affine, flipped = np.diag([-x, -y, z, 1]), np.diag([x, -y, z, 1])
    flipped[0, 3] = -x * (small.shape[2] - 1)
    label = small.label_array(0)
    write_nifti(small.image_path("labeled", "l0"), small.image_array(0, label).T, affine, affine)
    write_nifti(small.label_path("l0"), label.T[::-1].astype(np.uint8), flipped, affine)
    report = check(small)
    assert ("l0", "error", "grids differ") in found(report)
    assert "other position" not in {problem for _, _, problem in found(report)}
    (finding,) = report.errors
    assert "in two orders" in finding.message and "sform and qform" in finding.remedy
    with pytest.raises(DatasetError, match="in two orders"):
        brightness(small, "l0")
    write_nifti(small.label_path("l0"), label.T[::-1].astype(np.uint8), flipped)
    assert check(small).errors == ()
    assert abs(brightness(small, "l0")[1] - 180) < 5


def test_an_image_that_names_no_orientation_is_told(small_dataset):
    small = small_dataset()
    label = small.label_array(0)
    image = write_nifti(small.image_path("labeled", "l0"), small.image_array(0, label).T)
    for write in (as_nibabel_writes, as_simpleitk_writes):
        write(small.label_path("l0"), label.T.astype(np.uint8), image)
        report = check(small)
        assert report.errors == ()
        assert ("l0", "warning", "no orientation") in found(report)
        assert abs(brightness(small, "l0")[1] - 180) < 5


def slicer_case(small, segments, *, cropped=False):
    """Case l0 as 3D Slicer leaves it."""
    label = small.label_array(0)
    write_nrrd(small.folder("labeled") / "l0_0000.nrrd", (small.image_array(0, label) // 8 + 130).clip(0, 255))
    small.image_path("labeled", "l0").unlink()
    small.label_path("l0").unlink()
    start = (5, 4, 3) if cropped else (0, 0, 0)
    layers = [(label == value)[start[0] :, start[1] :, start[2] :] for value in (1, 2)]
    origin = [index * size for index, size in zip(start[::-1], SPACING_XYZ, strict=True)]
    path = small.folder("label") / "l0.seg.nrrd"
    if {layer for _, _, layer in segments} == {0, 1}:
        return write_nrrd(path, layers, fields=segment_fields(*segments), origin_xyz=origin)
    return write_nrrd(path, layers[0] + 2 * layers[1], fields=segment_fields(*segments), origin_xyz=origin)


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_segmentations_of_slicer_are_label_maps(small_dataset, cropped, layer):
    small = small_dataset()
    slicer_case(small, [("organ 1", 1, 0), ("Organ_2", 1 if layer else 2, layer)], cropped=cropped)
    report = check(small)
    assert [finding for finding in report.findings if finding.problem != "outlier"] == []
    darker, brighter = brightness(small, "l0")
    assert darker + 5 < brighter


def test_names_of_segments_that_contradict_dataset_json_are_findings(small_dataset, tmp_path):
    small, cache = small_dataset(), tmp_path / "cache.json"
    slicer_case(small, [("organ 2", 1, 0), ("tumor", 2, 0)])
    report = check(small, cache=cache)
    assert {("l0", "error", "other names"), ("l0", "warning", "other names")} <= found(report)
    (error,) = report.errors
    assert "segment 'organ 2' has value 1, which is called 'organ 1'" in error.message
    small.describe(labels={"background": 0, "organ 2": 1, "tumor": 2})
    assert check(small, cache=cache).errors == ()


def test_layers_are_read_again_when_names_change(small_dataset, tmp_path):
    """Names tell layers apart, so what was seen of them holds for those names only."""
    small, cache = small_dataset(), tmp_path / "cache.json"
    slicer_case(small, [("liver", 1, 0), ("spleen", 1, 1)])
    (error,) = check(small, cache=cache).errors
    assert "value 1 stands for 'liver', 'spleen'" in error.message
    small.describe(labels={"background": 0, "liver": 1, "spleen": 2})
    assert check(small, cache=cache).errors == ()
    counts = dict(zip(*((facts := check(small, cache=cache).facts["l0"].label).values, facts.counts), strict=True))
    small.describe(labels={"background": 0, "liver": 2, "spleen": 1})
    facts = check(small, cache=cache).facts["l0"].label
    assert dict(zip(facts.values, facts.counts, strict=True)) == {0: counts[0], 1: counts[2], 2: counts[1]}
