import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flaresemi.appearance import Norm
from flaresemi.errors import PredictionError
from flaresemi.io.case_store import CaseRecord, CaseStore
from flaresemi.plans import Stage
from flaresemi.preprocessing.preprocessor import prepare
from flaresemi.pseudolabels.labeling import Labeler
from flaresemi.pseudolabels.teachers import Teachers
from tests.inference.conftest import NEVER, make_body, make_checkpoint, make_image, make_plan

pytestmark = pytest.mark.usefixtures("threshold_networks")

FINE, COARSE = make_plan(Stage.FINE), make_plan(Stage.COARSE, spacing=(6.0, 6.0, 6.0))
MEDIAN_ML = (10.0, 10.0, 10.0)


def stores(folder: Path, array_zyx: np.ndarray) -> tuple[CaseStore, CaseStore]:
    prepared = prepare(make_image(array_zyx), "ct")
    made = []
    for plan in (FINE, COARSE):
        store = CaseStore(folder / plan.stage.value)
        record = CaseRecord.unlabeled(case_id="scan", preprocessing_hash="test", grid=prepared.grid(plan))
        store.write(record, prepared.stage_image(plan), None)
        made.append(store)
    return made[0], made[1]


def kidney_and_liver() -> np.ndarray:
    """A ball of 300 HU (the right kidney) and a slab of 600 HU (the liver) in soft tissue."""
    body = make_body((40, 48, 56))
    z, y, x = np.indices(body.shape)
    body[(z - 20) ** 2 + (y - 24) ** 2 + (x - 18) ** 2 < 36] = 300
    body[14:26, 16:30, 32:42] = 600
    return body


def labeler(
    folder: Path, snapshots: list[tuple[float, float, float]], array_zyx: np.ndarray, **changes: object
) -> Labeler:
    organs = (2.0, NEVER, 5.0)  # right kidney above 200 HU, liver above 500 HU, no left kidney
    teachers = Teachers(
        fine=make_checkpoint(FINE, organs, **changes),
        snapshots=tuple(make_checkpoint(FINE, thresholds) for thresholds in snapshots),
        coarse=make_checkpoint(COARSE, organs),
        made_with=("abc",),
    )
    fine, coarse = stores(folder, array_zyx)
    return Labeler(teachers, fine, coarse, MEDIAN_ML, device="cpu", precision="fp32")


def test_snapshots_that_see_the_same_agree(tmp_path: Path) -> None:
    same = (2.0, NEVER, 5.0)
    made = labeler(tmp_path, [same, same], kidney_and_liver()).label("scan")
    organs = made.score.organs
    assert organs["right kidney"].agreement == 1
    assert organs["liver"].agreement == 1
    assert organs["left kidney"].is_absent
    assert made.score.score == 1
    assert made.score.made_with == ("abc",)
    assert organs["liver"].volume_ml == pytest.approx(12 * 14 * 10 * 0.027, rel=0.15)
    assert organs["right kidney"].touched_faces == 0


def test_a_snapshot_that_missed_an_organ_disagrees_about_it_alone(tmp_path: Path) -> None:
    made = labeler(tmp_path, [(2.0, NEVER, NEVER), (2.0, NEVER, 5.0)], kidney_and_liver()).label("scan")
    # Without the liver, the kidney's threshold claims its voxels, too: only the liver is seen by one of two.
    assert made.score.organs["liver"].agreement == pytest.approx(0.5)


def test_the_label_lies_on_the_whole_grid(tmp_path: Path) -> None:
    same = (2.0, NEVER, 5.0)
    made = labeler(tmp_path, [same], kidney_and_liver())
    case = made.label("scan")
    stored = made.fine_store.open("scan")
    assert case.label_zyx.shape == stored.record.grid.shape_zyx
    expected = np.asarray(stored.image_czyx[0]) > 2
    inside = np.zeros_like(expected)
    inside[case.region.slices] = True
    np.testing.assert_array_equal(case.label_zyx > 0, expected & inside)
    assert (expected & inside).sum() > 0.95 * expected.sum()


def test_segmenting_gives_the_label_that_labeling_saves(tmp_path: Path) -> None:
    body = kidney_and_liver()
    body[28:32, 30:34, 24:28] = 600  # a second piece of the liver, which is not kept
    whole = labeler(tmp_path / "whole", [(2.0, NEVER, 5.0)], body).segment("scan")
    made = labeler(tmp_path / "cleaned", [(2.0, NEVER, 5.0)], body, keep_largest=("liver",))
    segmented, labeled = made.segment("scan"), made.label("scan").label_zyx
    np.testing.assert_array_equal(segmented, labeled)
    assert set(np.unique(segmented)) == {0, 1, 3}
    assert segmented.dtype == labeled.dtype
    assert 0 < np.count_nonzero(whole) - np.count_nonzero(segmented) < 200


def test_an_empty_scan_is_searched_whole_and_scores_zero(tmp_path: Path) -> None:
    same = (2.0, NEVER, 5.0)
    made = labeler(tmp_path, [same], make_body((40, 48, 56))).label("scan")
    assert made.score.score == 0
    assert not made.label_zyx.any()
    assert "searched the whole body" in made.score.flags[0]


def test_teachers_need_something_to_compare_with() -> None:
    fine = make_checkpoint(FINE)
    with pytest.raises(ValueError, match="at least one snapshot"):
        Teachers(fine=fine, snapshots=(), coarse=None)
    with pytest.raises(ValueError, match="COARSE is needed"):
        Teachers(fine=fine, snapshots=(fine,), coarse=None)


def test_an_output_that_is_not_finite_names_the_case(tmp_path: Path) -> None:
    made = labeler(tmp_path, [(2.0, NEVER, 1e37)], kidney_and_liver())
    with pytest.raises(PredictionError, match="case 'scan': the output of FINE is not finite"):
        made.label("scan")


def test_a_body_unlike_the_labeled_ones_is_flagged(tmp_path: Path) -> None:
    made = labeler(tmp_path, [(2.0, NEVER, 5.0)], kidney_and_liver())
    assert made.label("scan").score.flags == ()
    norm = Norm(quantity="the body's size along z", unit=" mm", median=400.0, lowest=200.0, highest=800.0)
    made.teachers = dataclasses.replace(made.teachers, fine=dataclasses.replace(made.teachers.fine, norms=(norm,)))
    assert made.label("scan").score.flags == ("the body's size along z is 120 mm (labeled cases: 400 mm)",)
