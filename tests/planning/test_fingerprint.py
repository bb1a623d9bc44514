import dataclasses
import json
import os

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.errors import DatasetError, ImageError
from flaresemi.geometry import BoundingBox
from flaresemi.planning import fingerprint
from flaresemi.planning.fingerprint import SAMPLES_PER_CASE, fingerprint_dataset, measure_case
from flaresemi.planning.inspection import inspect_dataset
from flaresemi.planning.planner import make_plans
from flaresemi.plans import body_rule, load_fingerprint
from flaresemi.records import record_hash, save_record, to_plain


def fingerprint_of(small, folder=None, workers=1):
    return fingerprint_dataset(small.load(), folder, workers=workers)


def test_facts_are_those_of_the_arrays(small_dataset):
    small = small_dataset(values=(5, 200))
    case = fingerprint_of(small).cases[1]
    label = small.label_array(1)
    assert case.case_id == "l1"
    assert case.shape_zyx == (20, 24, 22)
    assert case.spacing_zyx_mm == (3.0, 1.5, 1.5)
    assert case.voxels_per_label == ((label == 5).sum(), (label == 200).sum())
    assert case.foreground_box == BoundingBox.of_mask(label != 0)
    assert case.annotated == (True, True)
    assert case.body_box.contains(case.foreground_box)


def test_unlabeled_and_test_cases_have_no_say(small_dataset):
    small = small_dataset()
    before = fingerprint_of(small)
    small.image_path("unlabeled", "u0").write_bytes(b"")
    small.add("test", "t1", seed=70)
    assert fingerprint_of(small) == before
    assert [case.case_id for case in before.cases] == ["l0", "l1", "l2"]


def test_the_axis_order_of_the_files_changes_no_fact(small_dataset):
    small = small_dataset()
    before = fingerprint_of(small)
    for path, order in ((small.image_path("labeled", "l0"), "RAS"), (small.label_path("l0"), "IPR")):
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), order), str(path))
    assert fingerprint_of(small) == before


def test_percentiles_are_those_of_the_foreground(small_dataset):
    small = small_dataset(labeled=1)
    label = small.label_array(0)
    values = small.image_array(0, label)[label > 0]
    (found,) = fingerprint_of(small).intensities
    assert found.mean == pytest.approx(values.mean(), abs=2)
    assert found.sd == pytest.approx(values.std(), rel=0.03)
    assert found.percentile_05 == pytest.approx(np.percentile(values, 5), abs=3)
    assert found.percentile_95 == pytest.approx(np.percentile(values, 95), abs=3)
    assert found.percentile_00_5 <= found.percentile_05 <= found.percentile_50 <= found.percentile_95
    assert values.min() <= found.percentile_00_5
    assert found.percentile_99_5 <= values.max()


def test_every_case_weighs_the_same_however_large_its_organs_are(small_dataset):
    small = small_dataset(labeled=0)
    for name, size, value in (("big", 12, 100), ("tiny", 1, 300)):
        label = np.zeros(small.shape, np.uint8)
        label[4 : 4 + size, 6 : 6 + size, 6 : 6 + size] = 1
        small.write(small.image_path("labeled", name), np.where(label > 0, value, -1000).astype(np.int16))
        small.write(small.label_path(name), label)
    (found,) = fingerprint_of(small).intensities
    assert found.mean == 200


def test_a_case_without_foreground_lends_nothing(small_dataset):
    small = small_dataset()
    before = fingerprint_of(small)
    small.add("labeled", "l3", seed=3)
    small.write(small.label_path("l3"), np.zeros(small.shape, np.uint8))
    after = fingerprint_of(small)
    assert after.intensities == before.intensities
    assert after.cases[3].foreground_box is None
    assert after.cases[3].voxels_per_label == (0, 0)


def test_no_foreground_anywhere_is_an_error(small_dataset):
    small = small_dataset(labeled=1)
    small.write(small.label_path("l0"), np.zeros(small.shape, np.uint8))
    with pytest.raises(DatasetError, match="no organ is marked"):
        fingerprint_of(small)


def test_channels_are_measured_apart(small_dataset):
    small = small_dataset(channels=("T1", "T2"))
    image = np.full(small.shape, 7.0, np.float32)
    image[2:18, 4:20, 4:18] = 9.0
    for name in ("l0", "l1", "l2"):
        small.write(small.image_path("labeled", name, 1), image)
    one, two = fingerprint_of(small).intensities
    assert one.mean > 100
    assert (two.mean, two.sd) == (9.0, 0.0)


def test_organs_that_are_not_annotated_are_not_counted(small_dataset):
    small = small_dataset()
    small.describe(annotated_labels={"l0": ["organ 2"]})
    case = fingerprint_of(small).cases[0]
    label = small.label_array(0)
    assert case.annotated == (False, True)
    assert case.voxels_per_label == (0, (label == 2).sum())
    assert case.foreground_box == BoundingBox.of_mask(label == 2)


def test_the_number_of_workers_changes_nothing(small_dataset, tmp_path):
    small = small_dataset()
    assert fingerprint_of(small, tmp_path / "one", 1) == fingerprint_of(small, tmp_path / "two", 2)


def test_samples_are_a_fixed_draw_from_the_foreground(small_dataset):
    dataset = small_dataset(channels=("CT", "PET")).load()
    case = dataset.labeled[0]
    first, again = (measure_case(case, dataset.labels, "ct").samples for _ in range(2))
    renamed = measure_case(dataclasses.replace(case, id="other"), dataset.labels, "ct").samples
    assert first.shape == (2, SAMPLES_PER_CASE)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, renamed)


def test_the_record_survives_its_file(small_dataset, tmp_path):
    found = fingerprint_of(small_dataset())
    save_record(tmp_path / "fingerprint.json", found)
    assert load_fingerprint(tmp_path / "fingerprint.json") == found


class TestResume:
    @pytest.fixture
    def measured(self, monkeypatch):
        """The names of the cases that were measured, not taken from disk."""
        names = []
        measure = fingerprint.measure_case
        monkeypatch.setattr(
            fingerprint, "measure_case", lambda case, *rest: names.append(case.id) or measure(case, *rest)
        )
        return names

    def test_only_what_is_missing_is_measured(self, small_dataset, tmp_path, measured):
        small = small_dataset()
        whole = fingerprint_of(small, tmp_path)
        (tmp_path / "l0.json").unlink()
        (tmp_path / "l1.npy").unlink()
        measured.clear()
        assert fingerprint_of(small, tmp_path) == whole
        assert measured == ["l0", "l1"]
        assert fingerprint_of(small, tmp_path) == whole
        assert measured == ["l0", "l1"]

    def test_a_kill_between_two_cases_loses_neither(self, small_dataset, tmp_path, measured):
        small = small_dataset()
        expected = fingerprint_of(small)
        good = small.image_path("labeled", "l2").read_bytes()
        small.image_path("labeled", "l2").write_bytes(b"")
        with pytest.raises(ImageError):
            fingerprint_of(small, tmp_path)
        small.image_path("labeled", "l2").write_bytes(good)
        measured.clear()
        assert fingerprint_of(small, tmp_path) == expected
        assert measured == ["l2"]

    @pytest.mark.parametrize("name", ["l0.json", "l0.npy"])
    def test_half_a_file_is_measured_again(self, small_dataset, tmp_path, measured, name):
        small = small_dataset()
        whole = fingerprint_of(small, tmp_path)
        half = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(half[: len(half) // 2])
        measured.clear()
        assert fingerprint_of(small, tmp_path) == whole
        assert measured == ["l0"]

    def test_a_corrected_file_is_measured_again(self, small_dataset, tmp_path, measured):
        small = small_dataset()
        whole = fingerprint_of(small, tmp_path)
        small.write(small.label_path("l1"), small.label_array(1) * 0 + 1)
        os.utime(small.image_path("labeled", "l2"), ns=(5, 5))
        measured.clear()
        assert fingerprint_of(small, tmp_path) != whole
        assert measured == ["l1", "l2"]

    def test_another_annotation_or_numbering_is_measured_again_and_another_name_is_not(
        self, small_dataset, tmp_path, measured
    ):
        small = small_dataset()
        fingerprint_of(small, tmp_path)
        measured.clear()
        small.describe(annotated_labels={"l1": ["organ 1"]})
        fingerprint_of(small, tmp_path)
        assert measured == ["l1"]
        measured.clear()
        small.describe(labels={"background": 0, "liver": 1, "spleen": 2}, annotated_labels={"l1": ["liver"]})
        fingerprint_of(small, tmp_path)
        assert measured == []
        names = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}
        small.describe(labels=names, annotated_labels={"l1": ["liver"]})
        fingerprint_of(small, tmp_path)
        assert measured == ["l0", "l1", "l2"]

    def test_the_dataset_may_move(self, small_dataset, tmp_path, measured):
        small = small_dataset()
        whole = fingerprint_of(small, tmp_path / "w")
        small.root = small.root.rename(tmp_path / "moved")
        measured.clear()
        assert fingerprint_of(small, tmp_path / "w") == whole
        assert measured == []

    def test_what_was_inspected_is_measured_already(self, small_dataset, tmp_path, measured):
        small = small_dataset(channels=("CT", "PET"))
        expected = fingerprint_of(small)
        measured.clear()
        inspect_dataset(small.load(), None, workers=1, measured=tmp_path)
        assert fingerprint_of(small, tmp_path) == expected
        assert measured == []

    def test_what_is_decided_of_a_case_is_measured_afterwards(self, small_dataset, tmp_path, measured):
        small = small_dataset()
        small.write(small.label_path("l1"), small.label_array(1), origin=(9.0, 0.0, 0.0))
        inspect_dataset(small.load(), None, workers=1, measured=tmp_path)
        dataset = small.load()
        labeled = tuple(dataclasses.replace(case, label_on_image_grid=case.id == "l1") for case in dataset.labeled)
        dataset = dataclasses.replace(dataset, labeled=labeled)
        found = fingerprint_dataset(dataset, tmp_path, workers=1)
        assert measured == ["l1"]
        assert found == fingerprint_dataset(dataset, None, workers=1)

    def test_kept_files_are_plain(self, small_dataset, tmp_path):
        fingerprint_of(small_dataset(), tmp_path)
        assert sorted(os.listdir(tmp_path / "")) == sorted(
            ["dataset", *(f"l{n}.{kind}" for n in range(3) for kind in ("json", "npy"))]
        )
        assert json.loads((tmp_path / "l0.json").read_text(encoding="utf-8"))["fingerprint"]["case_id"] == "l0"


@pytest.mark.parametrize("channels", [("CT",), (" ct",), ("MR",), ("PET", "CT"), ("CT", "PET")])
def test_the_patient_is_found_as_the_plans_will_say(small_dataset, channels):
    small = small_dataset(channels=channels)
    assert make_plans(fingerprint_of(small)).body == body_rule(channels)


def outside(small, share):
    return fingerprint_of(small.with_label_in_air(share))


def test_what_the_crop_leaves_out_is_counted(small_dataset):
    small = small_dataset()
    first, second, _ = outside(small, 0.25).cases
    assert first.voxels_outside_body == ()
    assert second.voxels_outside_body == (round(0.25 * (small.label_array(1) == 1).sum()), 0)


def test_labels_that_contradict_the_crop_end_it(small_dataset):
    plans = make_plans(outside(small_dataset(), 0.25))
    assert plans.body == "whole"
    assert "25 % of organ 1 in l1" in plans.reasons["body"]
    shape = plans.fine.patch_zyx
    assert shape[1] >= 24 and shape[2] >= 22, "planned for whole images"


def test_stray_voxels_do_not_end_the_crop(small_dataset):
    assert make_plans(outside(small_dataset(), 0.005)).body == "ct_parts"


def test_the_hash_is_that_of_fingerprints_from_before(small_dataset):
    made = fingerprint_of(small_dataset())
    plain = to_plain(made)
    for case in plain["cases"]:
        del case["voxels_outside_body"], case["channel_facts"], case["body_share"], case["ignored_voxels"]
    del plain["labels"]["ignore"], plain["labels"]["written_values"]
    for label in plain["labels"]["labels"]:
        del label["more_values"]
    assert made.hash == record_hash(plain)
