import functools
import pickle

import pytest

from flaresemi.errors import DatasetError, ImageError
from flaresemi.evaluation.folders import CasePair, default_tolerance_mm, match_cases, score_cases, score_pair
from flaresemi.io.images import read_label_map


@pytest.fixture
def folders(tmp_path, write_map):
    """Predictions of cases a, b, d; references of a, b, c."""
    for name in "abc":
        write_map(tmp_path / "references" / f"{name}.nii.gz")
    for shift, name in enumerate("abd"):
        write_map(tmp_path / "predictions" / f"{name}.mha", liver=shift)
    (tmp_path / "predictions" / "summary.json").write_text("{}")
    (tmp_path / "predictions" / ".a.nii.gz").write_text("left by a killed writer")
    return tmp_path / "predictions", tmp_path / "references"


def test_cases_are_matched_by_name_without_ending(folders):
    found = match_cases(*folders, {"b": ("liver",)})
    assert [(pair.case_id, pair.annotated) for pair in found.pairs] == [("a", None), ("b", ("liver",))]
    assert [pair.prediction.name for pair in found.pairs] == ["a.mha", "b.mha"]
    assert (found.missing, found.surplus) == (("c",), ("d",))


def test_files_of_cases_may_be_given_one_by_one(folders):
    predictions, references = folders
    found = match_cases(
        {"a": predictions / "a.mha", "c": predictions / "not_there.nii.gz"},
        {name: references / f"{name}.nii.gz" for name in "abc"},
        {},
    )
    assert [pair.case_id for pair in found.pairs] == ["a"]
    assert found.missing == ("b", "c")


def test_two_files_are_a_pair_whatever_their_names(folders):
    predictions, references = folders
    found = match_cases(predictions / "d.mha", references / "a.nii.gz", {})
    assert [(pair.case_id, pair.prediction.name) for pair in found.pairs] == [("a", "d.mha")]
    assert not found.missing
    assert not found.surplus


def test_folders_that_cannot_be_matched_are_refused(folders, tmp_path, write_map):
    predictions, references = folders
    with pytest.raises(DatasetError, match="not found"):
        match_cases(tmp_path / "nowhere", references, {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no label maps"):
        match_cases(predictions, tmp_path / "empty", {})
    write_map(predictions / "a.nii.gz")
    with pytest.raises(DatasetError, match="two label maps for case 'a'"):
        match_cases(predictions, references, {})


def test_the_default_tolerance_is_the_coarsest_median_spacing_but_not_below_2_mm(tmp_path, write_map):
    fine = [write_map(tmp_path / f"{i}.nii.gz", spacing=(1.5, 0.7, 0.7)) for i in range(2)]
    coarse = [write_map(tmp_path / f"{i}.nii.gz", spacing=(5.0, 0.7, 0.7)) for i in range(2, 5)]
    assert default_tolerance_mm(fine) == 2.0
    assert default_tolerance_mm([*fine, *coarse]) == pytest.approx(5.0)


def test_cases_are_scored_in_order_of_their_pairs(folders, labels, write_map):
    predictions, references = folders
    write_map(predictions / "c.nii.gz", spleen=None)
    cases = score_cases(match_cases(predictions, references, {}).pairs, labels, default_tolerance_mm=2.0)
    assert [case.case_id for case in cases] == ["a", "b", "c"]
    assert cases[0].organs["liver"].dice == 1.0
    assert cases[1].organs["liver"].hd95_mm == pytest.approx(1.0)
    assert cases[2].organs["spleen"].dice == 0.0


def test_work_and_scores_travel_between_processes(folders, labels):
    pair = match_cases(*folders, {}).pairs[0]
    score = functools.partial(score_pair, labels=labels, default_tolerance_mm=2.0)
    there = pickle.loads(pickle.dumps((score, pair)))
    cases = there[0](there[1])
    assert pickle.loads(pickle.dumps(cases)) == score(pair)


def pair_of(prediction, reference):
    return CasePair(case_id="p1", prediction=prediction, reference=reference)


def test_grids_that_differ_are_refused_naming_both_files(tmp_path, labels, write_map):
    reference = write_map(tmp_path / "reference.nii.gz")
    for name, changed in {"moved": {"origin": (0.0, 0.4, 0.0)}, "stretched": {"spacing": (2.1, 1.0, 1.0)}}.items():
        prediction = write_map(tmp_path / f"{name}.nii.gz", **changed)
        with pytest.raises(ImageError, match=r"case 'p1'.*different grids.*mm apart") as caught:
            score_pair(pair_of(prediction, reference), labels=labels, default_tolerance_mm=2.0)
        assert prediction.name in str(caught.value)
        assert reference.name in str(caught.value)


def test_rounding_in_a_header_is_no_difference(tmp_path, labels, write_map):
    reference = write_map(tmp_path / "reference.nii.gz")
    prediction = write_map(tmp_path / "prediction.nii.gz", origin=(0.0, 0.01, 0.0))
    score_pair(pair_of(prediction, reference), labels=labels, default_tolerance_mm=2.0)


@pytest.mark.parametrize("wrong", ["prediction", "reference"])
def test_undeclared_values_are_refused_naming_case_value_and_file(tmp_path, labels, write_map, wrong):
    files = {
        name: write_map(tmp_path / f"{name}.nii.gz", extra=13 if name == wrong else None)
        for name in ("prediction", "reference")
    }
    with pytest.raises(ImageError, match="case 'p1': label map has value 13, declared are 0, 4, 9") as caught:
        score_pair(pair_of(**files), labels=labels, default_tolerance_mm=2.0)
    assert f"{wrong}.nii.gz" in str(caught.value)


def test_the_axis_order_of_a_file_does_not_matter(shared_data, tmp_path):
    """One segmentation stored with two axis orders (LAS, and that of its CT) is one segmentation."""
    folder = shared_data / "totalsegmentator"
    files = folder / "example_seg_dicom.nii.gz", folder / "example_seg_dicom_on_ct_grid.nii.gz"
    one, other = (read_label_map(path) for path in files)
    assert one.source.flips != other.source.flips
    assert one.geometry.far_corner_distance_mm(other.geometry) < 0.05
    assert (one.array_zyx == other.array_zyx).mean() > 0.99
