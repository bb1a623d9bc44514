import functools
import logging
import pickle

import numpy as np
import pytest

from flaresemi.errors import DatasetError, ImageError
from flaresemi.evaluation.folders import CasePair, default_tolerance_mm, match_cases, score_cases, score_pair
from flaresemi.io.images import read_grid, read_image, read_label_map, write_label_map
from tests.made_nifti import as_nibabel_writes, as_simpleitk_writes, write_nifti
from tests.made_nrrd import segment_fields, write_nrrd


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


# Files of several programs

#: RAS; the second mirrors the first left to right, in place, so that only the voxels tell.
FORMS = (np.diag([2.0, -1, 1, 1]), np.diag([-2.0, -1, 1, 1]) + np.eye(4, k=3) * 2.0 * 9)


def organs_xyz() -> np.ndarray:
    array = np.zeros((10, 16, 16), np.uint8)
    array[1:4, 2:8, 2:8] = 4
    array[2:4, 10:14, 2:6] = 9
    return array


def dice(prediction, reference, labels, image=None):
    pair = CasePair(case_id="a", prediction=prediction, reference=reference, image=image)
    return [score.dice for score in score_pair(pair, labels=labels, default_tolerance_mm=2).organs.values()]


@pytest.fixture
def scan(tmp_path):
    """An image whose sform and qform differ by left and right."""
    return write_nifti(tmp_path / "image.nii.gz", organs_xyz().astype(np.int16), *FORMS)


def test_a_label_map_equals_itself_whatever_its_header_says(scan, labels, tmp_path):
    image = read_image([scan])
    write_label_map(tmp_path / "ours.nii.gz", image.array_czyx[0].astype(np.uint8), image.source)
    ours = tmp_path / "ours.nii.gz"
    for write in (as_nibabel_writes, as_simpleitk_writes):
        theirs = write(tmp_path / f"{write.__name__}.nii.gz", organs_xyz(), scan)
        for pair in ((ours, ours), (theirs, theirs), (ours, theirs), (theirs, ours)):
            assert dice(*pair, labels) == [1, 1]


def test_two_programs_that_took_an_image_to_lie_elsewhere_are_not_scored_in_silence(scan, labels, tmp_path):
    """Neither file says that the other's position is one of its image's."""
    one = as_nibabel_writes(tmp_path / "one.nii.gz", organs_xyz(), scan)
    other = as_simpleitk_writes(tmp_path / "other.nii.gz", organs_xyz(), scan)
    with pytest.raises(ImageError, match=r"agree voxel by voxel as they are stored \(100%.*headers place them \(0%"):
        dice(one, other, labels)
    assert dice(one, other, labels, scan) == [1, 1], "their image says that either is one"
    assert dice(other, one, labels, scan) == [1, 1]


def test_a_bad_prediction_in_another_order_is_scored(scan, labels, tmp_path):
    as_nibabel_writes(tmp_path / "reference.nii.gz", organs_xyz(), scan)
    reference = read_label_map(tmp_path / "reference.nii.gz")
    worse = np.roll(reference.array_zyx, (4, 4, 3), (0, 1, 2))
    write_nifti(tmp_path / "grid.nii.gz", organs_xyz(), FORMS[1])
    write_label_map(tmp_path / "prediction.nii.gz", worse, read_grid(tmp_path / "grid.nii.gz"))
    assert max(dice(tmp_path / "prediction.nii.gz", tmp_path / "reference.nii.gz", labels)) < 0.5


def test_a_segmentation_of_slicer_is_a_reference(labels, tmp_path, caplog):
    """Cropped, two layers with one value; its name ends with .seg.nrrd."""
    liver, spleen = (value == organs_xyz().T for value in (4, 9))
    write_nrrd(tmp_path / "p" / "a.nrrd", organs_xyz().T)
    part = (slice(1, 9), slice(2, 15), slice(1, 5))
    fields = segment_fields(("Liver", 1, 0), ("spleen", 1, 1))
    write_nrrd(tmp_path / "r" / "a.seg.nrrd", [liver[part], spleen[part]], fields=fields, origin_xyz=(1.5, 4, 3))
    (pair,) = match_cases(tmp_path / "p", tmp_path / "r", {}).pairs
    scores = score_pair(pair, labels=labels, default_tolerance_mm=2).organs
    assert [score.dice for score in scores.values()] == [1, 1]

    fields = segment_fields(("spleen", 4, 0), ("liver", 9, 0))
    write_nrrd(tmp_path / "r" / "a.seg.nrrd", organs_xyz().T, fields=fields)
    with pytest.raises(ImageError, match="'spleen' has value 4, which is called 'liver'"):
        score_pair(pair, labels=labels, default_tolerance_mm=2)

    write_nrrd(tmp_path / "r" / "a.seg.nrrd", organs_xyz().T, fields=segment_fields(("tumor", 4, 0)))
    with caplog.at_level(logging.WARNING):
        score_pair(pair, labels=labels, default_tolerance_mm=2)
    assert "the segment's name is 'tumor'" in caplog.text
