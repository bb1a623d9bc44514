"""Exported pseudo-labels lie on the grids of their images, and are what a prediction with the same weights gives."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flaresemi.dataset import Case
from flaresemi.errors import ConfigError, DatasetError
from flaresemi.geometry import BoundingBox, Geometry
from flaresemi.inference.cascade import Segmenter
from flaresemi.io.case_store import CaseRecord, CaseStore, LabelStore
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import read_grid, read_image, read_label_map, write_label_map
from flaresemi.plans import Stage
from flaresemi.preprocessing.preprocessor import canonical_labels, prepare
from flaresemi.preprocessing.resampling import resample_part
from flaresemi.pseudolabels.exporting import export_labels
from flaresemi.pseudolabels.labeling import Labeler
from flaresemi.pseudolabels.teachers import Teachers
from flaresemi.selection import ExportRecord
from tests.inference.conftest import LABELS, NEVER, make_checkpoint, make_plan
from tests.pseudolabels.test_labeling import MEDIAN_ML, kidney_and_liver

pytestmark = pytest.mark.usefixtures("threshold_networks")

COARSE = make_plan(Stage.COARSE, spacing=(6.0, 6.0, 6.0))
ORGANS = (2.0, NEVER, 5.0)  # right kidney above 200 HU, liver above 500 HU
RECORD = ExportRecord(fold="0", round=1, made_with=("abc",), trained_on=("real",), selection=None)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A scan whose file runs from left to right, back to front and head to feet, at odd spacings."""
    turned = Geometry(
        shape_zyx=(40, 48, 56),
        spacing_zyx_mm=(3.0, 2.5, 2.5),
        origin_xyz_mm=(70.0, 12.0, -33.0),
        direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0),
    )
    grid = SourceGrid(geometry=turned, axes=(0, 1, 2), flips=(True, True, True))
    path = tmp_path / "data" / "scan_0000.nii.gz"
    write_label_map(path, kidney_and_liver().astype(np.int16), grid)
    return Case(id="scan", images=(path,))


def label_and_predict(case: Case, folder: Path, spacing: tuple[float, float, float]) -> tuple[LabelStore, np.ndarray]:
    """The stored pseudo-label of a case, and its prediction by the same weights with the same windows, as values."""
    fine = make_plan(Stage.FINE, spacing=spacing)
    final, coarse = make_checkpoint(fine, ORGANS), make_checkpoint(COARSE, ORGANS)
    image = read_image(case.images)
    prepared = prepare(image, "ct")
    stores = {}
    for plan in (fine, COARSE):
        stores[plan.stage] = CaseStore(folder / plan.stage.value)
        record = CaseRecord.unlabeled(case_id="scan", preprocessing_hash="test", grid=prepared.grid(plan))
        stores[plan.stage].write(record, prepared.stage_image(plan), None)
    teachers = Teachers(fine=final, snapshots=(final,), coarse=coarse)
    labeler = Labeler(teachers, stores[Stage.FINE], stores[Stage.COARSE], MEDIAN_ML, device="cpu", precision="fp32")
    labels = LabelStore(folder / "labels", stores[Stage.FINE])
    labels.write_labels("scan", labeler.label("scan").label_zyx, LABELS.count, (1, 2, 3))
    segmenter = Segmenter([final], [coarse], device="cpu", precision="fp32", window="patch")
    return labels, segmenter.segment(image).values_zyx


def one_label_nearby(store: LabelStore) -> np.ndarray:
    """Where on the image's grid all stage voxels that a voxel is interpolated from have one label."""
    stored = store.open("scan")
    grid, label = stored.record.grid, np.asarray(stored.label_zyx)
    shares = np.stack([(label == index).astype(np.float32) for index in range(LABELS.channels)])
    sure = np.ones(grid.canonical_shape_zyx, bool)
    whole = BoundingBox.whole(grid.shape_zyx)
    large = resample_part(shares, whole, grid.shape_zyx, grid.body_box.shape_zyx)
    sure[grid.body_box.slices] = large.max(axis=0) > 1 - 1e-5
    return sure


def test_without_resampling_it_is_the_prediction(case: Case, tmp_path: Path) -> None:
    store, predicted = label_and_predict(case, tmp_path, (3.0, 2.5, 2.5))
    assert export_labels([case], {case.id: store}, LABELS, tmp_path / "out", RECORD) == 1
    exported = read_label_map(tmp_path / "out" / "scan.nii.gz")
    assert exported.source == read_grid(case.images[0])
    assert set(np.unique(predicted)) == {0, 2, 300}
    np.testing.assert_array_equal(exported.array_zyx, predicted)


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (2.0, 1.5, 1.5)])
def test_with_resampling_it_differs_along_borders_only(
    case: Case, tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    store, predicted = label_and_predict(case, tmp_path, spacing)
    export_labels([case], {case.id: store}, LABELS, tmp_path / "out", RECORD)
    exported = read_label_map(tmp_path / "out" / "scan.nii.gz").array_zyx
    sure = one_label_nearby(store)
    assert (exported[sure] > 0).sum() > 500
    np.testing.assert_array_equal(exported[sure], predicted[sure])
    assert (exported != predicted).sum() < 0.3 * (predicted > 0).sum()  # an organ here is nearly all border


def test_the_way_to_the_image_and_back(case: Case, tmp_path: Path) -> None:
    store, _ = label_and_predict(case, tmp_path, (3.0, 2.5, 2.5))
    stored = store.open("scan")
    canonical = canonical_labels(np.asarray(stored.label_zyx), stored.record.grid)
    np.testing.assert_array_equal(canonical[stored.record.grid.body_box.slices], stored.label_zyx)
    with pytest.raises(ValueError, match="for a stage grid of"):
        canonical_labels(canonical[1:], stored.record.grid)


def test_what_is_written_is_kept_and_rounds_are_not_mixed(case: Case, tmp_path: Path) -> None:
    store, _ = label_and_predict(case, tmp_path, (3.0, 2.5, 2.5))
    out = tmp_path / "out"
    assert export_labels([case], {case.id: store}, LABELS, out, RECORD) == 1
    assert export_labels([case], {case.id: store}, LABELS, out, RECORD) == 0
    with pytest.raises(ConfigError, match="round 1 of fold 0"):
        export_labels([case], {case.id: store}, LABELS, out, dataclasses.replace(RECORD, round=2))
    with pytest.raises(ConfigError, match="produced by other weights"):
        export_labels([case], {case.id: store}, LABELS, out, dataclasses.replace(RECORD, made_with=("xyz",)))
    (out / "exported.json").unlink()
    with pytest.raises(ConfigError, match="there already"):
        export_labels([case], {case.id: store}, LABELS, out, RECORD)


def test_an_image_of_another_shape_is_refused(case: Case, tmp_path: Path) -> None:
    store, _ = label_and_predict(case, tmp_path, (3.0, 2.5, 2.5))
    grid = SourceGrid(
        geometry=Geometry(shape_zyx=(9, 9, 9), spacing_zyx_mm=(1.0, 1.0, 1.0)), axes=(0, 1, 2), flips=(False,) * 3
    )
    write_label_map(case.images[0], np.zeros((9, 9, 9), np.int16), grid)
    with pytest.raises(DatasetError, match="not the one that was labeled"):
        export_labels([case], {case.id: store}, LABELS, tmp_path / "out", RECORD)
