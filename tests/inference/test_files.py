"""From files to files: grids, orientations, model folders, the one-function API."""

import dataclasses
import doctest
import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest

from flaresemi.appearance import Norm
from flaresemi.errors import CheckpointError, ImageError
from flaresemi.geometry import Geometry
from flaresemi.inference import Segmenter, api, predict
from flaresemi.inference.checks import UnusualImageError
from flaresemi.inference.models import load_models
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import read_grid, read_label_map, write_label_map
from flaresemi.networks.checkpoint import save_checkpoint
from flaresemi.plans import Stage
from flaresemi.workspace import ModelFolder, Workspace


@pytest.fixture
def scan(fakes):
    array = fakes.body((24, 32, 40))
    array[6:14, 8:20, 10:17] = 300.0
    array[8:12, 12:22, 24:30] = 600.0
    return array


def source_in_order(
    shape, spacing, axes=(0, 1, 2), flips=(False, False, False), turn=((1, 0, 0), (0, 1, 0), (0, 0, 1))
):
    """The grid of a file that holds the same voxels in another order of axes; `turn` is the canonical direction."""
    canonical = Geometry(
        shape_zyx=shape, spacing_zyx_mm=spacing, origin_xyz_mm=(-31.5, 12.25, 100.0), direction=tuple(np.ravel(turn))
    )
    inverse = np.argsort(axes)
    columns = np.reshape(canonical.direction, (3, 3))
    direction = np.empty((3, 3))
    for axis in range(3):  # canonical axis i (z, y, x) is file axis axes[i]
        direction[:, 2 - axes[axis]] = columns[:, 2 - axis] * (-1 if flips[axis] else 1)
    first = tuple(shape[axis] - 1 if flips[axis] else 0 for axis in range(3))
    geometry = Geometry(
        shape_zyx=tuple(shape[axis] for axis in inverse),
        spacing_zyx_mm=tuple(spacing[axis] for axis in inverse),
        origin_xyz_mm=canonical.world_xyz_mm(first),
        direction=tuple(direction.ravel()),
    )
    return SourceGrid(geometry=geometry, axes=axes, flips=flips)


def write_scan(path, scan, **order):
    write_label_map(path, scan.astype(np.int16), source_in_order(scan.shape, (3.0, 2.0, 2.0), **order))
    return path


def write_models(fakes, root, folds=("0",), stages=(Stage.COARSE, Stage.FINE), threshold=1.5):
    for fold, stage in itertools.product(folds, stages):
        spacing = (3.0, 2.5, 2.5) if stage is Stage.FINE else (6.0, 6.0, 6.0)
        plan = fakes.plan(stage, spacing=spacing, patch=(32, 32, 32))
        checkpoint = fakes.checkpoint(plan, (threshold, 4.2, fakes.never), fold=fold)
        save_checkpoint(Workspace(root).model(fold, stage).final, checkpoint)
    return root / "models"


def test_48_orientations_one_segmentation_on_every_grid(fakes, scan, tmp_path):
    segmenter = Segmenter.load(write_models(fakes, tmp_path))
    reference = None
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            path = write_scan(tmp_path / "scan.nii.gz", scan, axes=axes, flips=flips)
            segmentation = segmenter.predict_file([path], tmp_path / "out.nii.gz")
            written = read_label_map(tmp_path / "out.nii.gz")
            if reference is None:
                reference = written.array_zyx
                assert set(np.unique(reference)) == {0, 2, 13}
            assert np.array_equal(written.array_zyx, reference)
            assert read_grid(path).geometry.far_corner_distance_mm(written.source.geometry) < 1e-3
            assert np.array_equal(written.source.to_file(written.array_zyx), segmentation.file_array)
            assert list(segmentation.seconds) == ["read", "body", "coarse", "fine", "restore", "write"]


@pytest.mark.parametrize("ending", [".nii", ".mha", ".nrrd"])
def test_an_oblique_scan_keeps_its_grid_in_every_format(fakes, scan, tmp_path, ending):
    angle = np.deg2rad(17)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    path = write_scan(tmp_path / f"scan{ending}", scan, axes=(1, 2, 0), flips=(True, False, True), turn=turn)
    Segmenter.load(write_models(fakes, tmp_path)).predict_file([path], tmp_path / f"out{ending}")
    written = read_label_map(tmp_path / f"out{ending}")
    assert read_grid(path).geometry.far_corner_distance_mm(written.source.geometry) < 1e-3
    assert (written.array_zyx[7:13, 10:18, 11:16] == 2).all()


def test_one_function_from_file_to_label_map(fakes, scan, tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz", scan, axes=(2, 0, 1), flips=(True, False, False))
    models = write_models(fakes, tmp_path)
    label_map = predict(path, models)
    assert label_map.shape == read_grid(path).geometry.shape_zyx
    assert not (tmp_path / "out.nii.gz").exists()
    again = predict([str(path)], str(models), str(tmp_path / "out.nii.gz"), device="cpu", precision="fp32")
    assert np.array_equal(label_map, again)
    written = read_label_map(tmp_path / "out.nii.gz")
    assert np.array_equal(written.source.to_file(written.array_zyx), label_map)


def test_the_example_runs(fakes, scan, tmp_path, monkeypatch):
    write_scan(tmp_path / "scan.nii.gz", scan)
    write_models(fakes, tmp_path / "flaresemi")
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(api, verbose=False)
    assert results.attempted == 3
    assert results.failed == 0


def test_other_channels_than_the_model_are_refused(fakes, scan, tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz", scan)
    segmenter = Segmenter.load(write_models(fakes, tmp_path))
    with pytest.raises(ImageError, match=r"2 channel\(s\), the model was trained with 1: CT") as caught:
        segmenter.predict_file([path, path], tmp_path / "out.nii.gz")
    assert str(path) in str(caught.value)


def test_models_are_found_wherever_they_are(fakes, scan, tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz", scan)
    write_models(fakes, tmp_path / "data" / "flaresemi", folds=("0", "1"))
    expected = predict(path, tmp_path / "data" / "flaresemi" / "models")
    places = (tmp_path / "data", tmp_path / "data" / "flaresemi", tmp_path / "data" / "flaresemi" / "models" / "fold_1")
    for place in places:
        assert np.array_equal(predict(path, place), expected)
    moved = tmp_path / "elsewhere" / "my abdomen model"
    shutil.move(tmp_path / "data" / "flaresemi" / "models" / "fold_0", moved)
    shutil.rmtree(tmp_path / "data")
    for place in (moved, moved / "FINE"):
        assert np.array_equal(predict(path, place), expected)


def test_folds_are_all_where_it_is_trained_and_else_every_finished_one(fakes, tmp_path, caplog):
    caplog.set_level("INFO", "flaresemi")

    def used(**options):
        caplog.clear()
        Segmenter.load(models, **options)
        return [record.message.split(":")[0] for record in caplog.records if " of fold " in record.message]

    models = write_models(fakes, tmp_path, folds=("0", "2", "10"))
    shutil.move(models / "fold_2" / "FINE" / "snapshot_100.pt", models / "fold_2" / "FINE" / "checkpoint_latest.pt")
    both = [f"{stage} of fold {fold}" for stage in ("COARSE", "FINE") for fold in ("0", "10")]
    assert used() == both
    assert used(folds=["10", "10"]) == ["COARSE of fold 10", "FINE of fold 10"]
    write_models(fakes, tmp_path, folds=("all",))
    assert used() == ["COARSE of fold all", "FINE of fold all"]
    assert used(folds=["10", "0"]) == [
        f"{stage} of fold {fold}" for stage in ("COARSE", "FINE") for fold in ("10", "0")
    ]


def test_missing_models_are_named_with_the_command_that_makes_them(fakes, tmp_path):
    with pytest.raises(CheckpointError, match="model folder not found"):
        Segmenter.load(tmp_path / "nothing")
    with pytest.raises(
        CheckpointError, match=r"no trained model in this folder\s.* holds nothing\s.*flaresemi_train FINE 0"
    ):
        Segmenter.load(tmp_path)
    models = write_models(fakes, tmp_path, folds=("1",), stages=(Stage.FINE,))
    with pytest.raises(
        CheckpointError, match=r"COARSE was not trained(.|\s)*holds FINE(.|\s)*flaresemi_train COARSE 1"
    ):
        Segmenter.load(models)
    with pytest.raises(CheckpointError, match=r"no models of fold '3'(.|\s)*holds fold 1"):
        Segmenter.load(models, folds=["3"])
    folder = ModelFolder(models / "fold_1" / "FINE")
    shutil.move(folder.final, folder.latest)
    with pytest.raises(
        CheckpointError, match=r"there is: latest(.|\s)*FINE 1 --continue, or predict with --checkpoint latest"
    ):
        Segmenter.load(models)
    shutil.rmtree(folder.root)
    write_models(fakes, tmp_path, folds=("1",), stages=(Stage.COARSE,))
    with pytest.raises(CheckpointError, match=r"FINE was not trained(.|\s)*flaresemi_train FINE 1"):
        Segmenter.load(models)


def test_unfinished_and_borrowed_models(fakes, scan, tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz", scan)
    models = write_models(fakes, tmp_path, stages=(Stage.FINE,))
    others = write_models(fakes, tmp_path / "other", folds=("4",), stages=(Stage.COARSE,))
    fine = ModelFolder(models / "fold_0" / "FINE")
    borrowed = predict(path, models, coarse=others)
    assert borrowed.any()
    shutil.move(fine.final, fine.latest)
    shutil.move(others / "fold_4" / "COARSE" / "snapshot_100.pt", others / "fold_4" / "COARSE" / "checkpoint_latest.pt")
    assert np.array_equal(predict(path, models, coarse=others, checkpoint="latest"), borrowed)


def test_one_coarse_serves_an_ensemble(fakes, scan, tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz", scan)
    models = write_models(fakes, tmp_path, folds=("0", "1"), stages=(Stage.FINE,))
    write_models(fakes, tmp_path, folds=("1",), stages=(Stage.COARSE,))
    assert predict(path, models).any()
    with pytest.raises(CheckpointError, match="COARSE of fold 1 is there"):
        predict(path, models, folds=["0"])


def test_models_that_do_not_belong_together_are_refused(fakes, tmp_path):
    models = write_models(fakes, tmp_path, folds=("0", "1"))
    other = fakes.checkpoint(fakes.plan(Stage.FINE, spacing=(5.0, 5.0, 5.0), patch=(32, 32, 32)), fold="1")
    file = ModelFolder(models / "fold_1" / "FINE").final
    save_checkpoint(file, other)
    with pytest.raises(CheckpointError, match=r"different plans \(spacing_zyx_mm\)") as caught:
        Segmenter.load(models)
    assert str(file) in str(caught.value)
    plan = fakes.plan(Stage.FINE, spacing=(3.0, 2.5, 2.5), patch=(32, 32, 32))
    save_checkpoint(file, fakes.checkpoint(dataclasses.replace(plan, batch_size=7, reasons={"x": "y"}), fold="1"))
    Segmenter.load(models)  # what only training needs may differ
    save_checkpoint(file, fakes.checkpoint(plan, fold="1", channels=("MR",)))
    with pytest.raises(CheckpointError, match="differ in their channels"):
        Segmenter.load(models)


def test_naming_the_package_is_cheap():
    program = "import sys, flaresemi.inference; sys.exit(bool({'torch', 'SimpleITK', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_the_package_does_not_have():
    import flaresemi.inference

    with pytest.raises(AttributeError, match="no attribute 'sement'"):
        flaresemi.inference.sement  # noqa: B018


def test_models_that_were_taught_the_wrong_sides_are_told(fakes, tmp_path, caplog):
    """As older versions trained them, where they did not understand the names."""
    for pairs, axes, told in (
        ((), (2,), True),
        ((), (), False),
        (None, (2,), False),
        (fakes.labels.mirror_pairs, (2,), False),
    ):
        plan = fakes.plan(Stage.FINE, region="body")
        labels = dataclasses.replace(fakes.labels, mirror_pairs=pairs)
        checkpoint = dataclasses.replace(fakes.checkpoint(plan), labels=labels, mirror_axes=axes)
        save_checkpoint(ModelFolder(tmp_path / "fold_0" / "FINE").final, checkpoint)
        load_models(tmp_path)
        assert ("right kidney and left kidney, by name" in caplog.text) == told
        caplog.clear()


def test_images_unlike_the_training_data_are_told_and_refused(fakes, scan, tmp_path, caplog):
    norm = Norm(quantity="the median of tissue in the middle", unit=" HU", median=0.0, lowest=-300.0, highest=300.0)
    plan = fakes.plan(Stage.FINE, region="body")
    segmenter = Segmenter([fakes.checkpoint(plan, norms=(norm,))], device="cpu")
    usual, bright = (fakes.image(scan + shift) for shift in (0.0, 400.0))
    assert segmenter.segment(usual, strict=True).findings == ()
    (finding,) = segmenter.segment(bright, name="scan").findings
    assert (finding.problem, finding.severity) == ("far from training", "warning")
    assert finding.message == "the median of tissue in the middle is 400 HU (labeled cases: 0 HU)"
    assert f"scan: {finding.message}" in caplog.text
    with pytest.raises(UnusualImageError, match="is 400 HU") as refused:
        segmenter.segment(bright, strict=True)
    assert refused.value.findings == (finding,)
    old = Segmenter([fakes.checkpoint(plan)], device="cpu")
    assert old.segment(bright).findings == ()
    (finding,) = old.segment(fakes.image(scan + 2024)).findings[1:]
    assert finding.problem == "clipped"


def test_one_function_refuses_too(fakes, scan, tmp_path):
    write_models(fakes, tmp_path)
    path = write_scan(tmp_path / "scan.nii.gz", scan * 0)
    with pytest.raises(UnusualImageError, match="every voxel is 0"):
        predict(path, tmp_path, strict=True, device="cpu")
    assert not predict(path, tmp_path, tmp_path / "out.nii.gz", device="cpu").any()
    with pytest.raises(UnusualImageError):
        predict(path, tmp_path, tmp_path / "strict.nii.gz", strict=True, device="cpu")
    assert not (tmp_path / "strict.nii.gz").exists()
