import dataclasses
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.errors import DatasetError
from flaresemi.geometry import BoundingBox
from flaresemi.io.case_store import CaseStore
from flaresemi.io.images import read_image
from flaresemi.planning import preparation
from flaresemi.planning.fingerprint import fingerprint_dataset
from flaresemi.planning.planner import make_plans
from flaresemi.planning.preparation import pending, prepare_dataset, refuse_changed, write_lists
from flaresemi.planning.splits import make_splits
from flaresemi.plans import Stage
from flaresemi.preprocessing.preprocessor import prepare, preprocessing_hash
from flaresemi.workspace import Workspace


def planned(small):
    """The dataset and plans for it whose stages differ."""
    dataset = small.load()
    plans = make_plans(fingerprint_dataset(dataset, None, workers=1))
    fine = dataclasses.replace(plans.fine, spacing_zyx_mm=(3.0, 2.0, 2.0))
    coarse = dataclasses.replace(plans.coarse, spacing_zyx_mm=(6.0, 6.0, 6.0))
    return dataset, dataclasses.replace(plans, fine=fine, coarse=coarse)


def contents(folder):
    """Bytes of every file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def read(monkeypatch):
    """The names of the cases whose files were read."""
    names = []
    read_case = preparation.read_case
    monkeypatch.setattr(preparation, "read_case", lambda case, labels: names.append(case.id) or read_case(case, labels))
    return names


@pytest.mark.parametrize("layout", ["nnU-Net", "flaresemi"])
def test_every_labeled_and_unlabeled_case_is_stored_at_both_stages(small_dataset, workspace, layout):
    dataset, plans = planned(small_dataset(layout=layout))
    assert prepare_dataset(dataset, plans, workspace, workers=1) == 4
    for stage in Stage:
        store = CaseStore(workspace.preprocessed(stage))
        assert store.case_ids() == ("l0", "l1", "l2", "u0")
        for case_id in store.case_ids():
            assert store.has(case_id, preprocessing_hash(plans.body, plans.stage(stage)))


def test_what_is_stored_is_what_preprocessing_gives(small_dataset, workspace):
    small = small_dataset(values=(5, 200))
    dataset, plans = planned(small)
    prepare_dataset(dataset, plans, workspace, workers=1)
    prepared = prepare(read_image(dataset.case("l0").images), plans.body)
    for stage in Stage:
        stored = CaseStore(workspace.preprocessed(stage)).open("l0")
        plan = plans.stage(stage)
        assert stored.record.grid == prepared.grid(plan)
        assert np.array_equal(stored.image_czyx, prepared.stage_image(plan).astype(np.float16))
        assert set(np.unique(stored.label_zyx)) == {0, 1, 2}
        assert stored.record.organs_box == BoundingBox.of_mask(np.asarray(stored.label_zyx) > 0)
        assert stored.record.supervised == (1, 2)
        if stage is Stage.COARSE:  # an organ of two voxels loses its corners
            continue
        volumes = np.array(stored.record.voxels_per_label) * np.prod(stored.record.grid.spacing_zyx_mm)
        truth = [(small.label_array(0) == value).sum() * 3.0 * 1.5 * 1.5 for value in (5, 200)]
        assert volumes == pytest.approx(truth, rel=0.35)


def test_an_unlabeled_case_has_no_label(small_dataset, workspace):
    dataset, plans = planned(small_dataset())
    prepare_dataset(dataset, plans, workspace, workers=1)
    stored = CaseStore(workspace.preprocessed(Stage.FINE)).open("u0")
    assert stored.label_zyx is None
    assert not stored.record.has_label
    assert stored.record.supervised == ()


def test_what_a_case_annotates_is_what_it_supervises(small_dataset, workspace):
    small = small_dataset().describe(annotated_labels={"l0": ["organ 2"]})
    dataset, plans = planned(small)
    prepare_dataset(dataset, plans, workspace, workers=1)
    stored = CaseStore(workspace.preprocessed(Stage.FINE)).open("l0")
    assert stored.record.supervised == (2,)
    assert set(np.unique(stored.label_zyx)) == {0, 2}


def test_channels_stay_in_their_order(small_dataset, workspace):
    dataset, plans = planned(small_dataset(channels=("T1", "T2")))
    prepare_dataset(dataset, plans, workspace, workers=1)
    stored = CaseStore(workspace.preprocessed(Stage.FINE)).open("l1")
    expected = prepare(read_image(dataset.case("l1").images), plans.body).stage_image(plans.fine)
    assert stored.image_czyx.shape[0] == 2
    assert np.array_equal(stored.image_czyx, expected.astype(np.float16))


def test_test_cases_are_prepared_where_asked_for(small_dataset, workspace):
    dataset, plans = planned(small_dataset())
    assert prepare_dataset(dataset, plans, workspace, groups=("test",), workers=1) == 1
    assert CaseStore(workspace.preprocessed(Stage.COARSE)).case_ids() == ("t0",)


def test_the_number_of_workers_changes_no_byte(small_dataset, tmp_path):
    dataset, plans = planned(small_dataset())
    for workers in (1, 2):
        prepare_dataset(dataset, plans, Workspace(tmp_path / str(workers)), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


class TestResume:
    def test_a_second_run_does_nothing(self, small_dataset, workspace, read):
        dataset, plans = planned(small_dataset())
        prepare_dataset(dataset, plans, workspace, workers=1)
        before = contents(workspace.root)
        read.clear()
        assert prepare_dataset(dataset, plans, workspace, workers=1) == 0
        assert read == []
        assert contents(workspace.root) == before

    @pytest.mark.parametrize("damage", ["case folder", "one array", "half a record", "source"])
    def test_what_a_kill_has_left_out_is_made_up_for(self, small_dataset, workspace, read, damage):
        dataset, plans = planned(small_dataset())
        prepare_dataset(dataset, plans, workspace, workers=1)
        before = contents(workspace.root)
        folder = workspace.preprocessed(Stage.FINE) / "l1"
        if damage == "case folder":
            shutil.rmtree(folder)
        elif damage == "one array":
            (folder / "image.npy").unlink()
        elif damage == "half a record":
            (folder / "case.json").write_text('{"case_id": "l1"')
        else:
            (workspace.prepared_sources / "l1.json").unlink()
        read.clear()
        assert prepare_dataset(dataset, plans, workspace, workers=1) == 1
        assert read == ["l1"]
        assert contents(workspace.root) == before

    def test_unfinished_folders_are_cleared_away(self, small_dataset, workspace):
        dataset, plans = planned(small_dataset())
        prepare_dataset(dataset, plans, workspace, workers=1)
        before = contents(workspace.root)
        leftover = workspace.preprocessed(Stage.FINE) / ".partial-12345678"
        leftover.mkdir()
        (leftover / "image.npy").write_bytes(b"half")
        prepare_dataset(dataset, plans, workspace, workers=1)
        assert contents(workspace.root) == before

    def test_only_the_stage_whose_plan_was_edited_is_made_anew(self, small_dataset, workspace):
        dataset, plans = planned(small_dataset())
        prepare_dataset(dataset, plans, workspace, workers=1)
        coarse = contents(workspace.preprocessed(Stage.COARSE))
        edited = dataclasses.replace(plans, fine=dataclasses.replace(plans.fine, spacing_zyx_mm=(3.0, 1.5, 1.5)))
        assert {task.stages for task in pending(dataset, edited, workspace)} == {(Stage.FINE,)}
        times = {path: path.stat().st_mtime_ns for path in workspace.preprocessed(Stage.COARSE).rglob("*")}
        prepare_dataset(dataset, edited, workspace, workers=1)
        assert contents(workspace.preprocessed(Stage.COARSE)) == coarse
        assert {path: path.stat().st_mtime_ns for path in times} == times
        assert pending(dataset, edited, workspace) == []

    def test_a_patch_or_network_changes_no_stored_case(self, small_dataset, workspace):
        dataset, plans = planned(small_dataset())
        prepare_dataset(dataset, plans, workspace, workers=1)
        edited = dataclasses.replace(plans, fine=dataclasses.replace(plans.fine, batch_size=7, margin_mm=3.0))
        assert pending(dataset, edited, workspace) == []

    def test_a_corrected_file_is_prepared_again(self, small_dataset, workspace):
        small = small_dataset()
        dataset, plans = planned(small)
        prepare_dataset(dataset, plans, workspace, workers=1)
        small.write(small.label_path("l2"), small.label_array(17))
        small.add("unlabeled", "u0", seed=51)
        assert [task.case.id for task in pending(dataset, plans, workspace)] == ["l2", "u0"]

    def test_voxels_beside_their_header_are_part_of_a_file(self, small_dataset, workspace):
        """A program that saves a label map again as header and voxels may leave the header as it was."""
        small = small_dataset()
        small.label_path("l2").unlink()
        header, voxels = small.folder("label") / "l2.mhd", small.folder("label") / "l2.raw"
        small.write(header, small.label_array(2).astype(np.uint8))
        dataset, plans = planned(small)
        prepare_dataset(dataset, plans, workspace, workers=1)
        os.utime(voxels, ns=(3, 3))
        refuse_changed(dataset, dataset.labeled, plans, workspace)
        voxels.write_bytes(np.flip(np.frombuffer(voxels.read_bytes(), np.uint8)).tobytes())
        with pytest.raises(DatasetError, match=r"1 case\(s\) have changed since they were prepared: l2"):
            refuse_changed(dataset, dataset.labeled, plans, workspace)
        assert [task.case.id for task in pending(dataset, plans, workspace)] == ["l2"]
        voxels.unlink()
        assert [task.case.id for task in pending(dataset, plans, workspace)] == ["l2"]

    def test_what_could_not_be_read_is_never_the_same(self, small_dataset, workspace, monkeypatch):
        """Neither then nor now is anything known of what the file holds."""
        dataset, plans = planned(small_dataset())
        monkeypatch.setattr(preparation, "case_content_hash", lambda *_: "")
        prepare_dataset(dataset, plans, workspace, workers=1)
        assert pending(dataset, plans, workspace) == []
        os.utime(dataset.labeled[1].images[0], ns=(3, 3))
        assert [task.case.id for task in pending(dataset, plans, workspace)] == [dataset.labeled[1].id]

    def test_copies_with_other_times_are_the_same_files(self, small_dataset, workspace, monkeypatch):
        """A dataset that was copied is not prepared again, and is read once to see that it is the same."""
        small = small_dataset()
        dataset, plans = planned(small)
        prepare_dataset(dataset, plans, workspace, workers=1)
        stored = contents(workspace.preprocessed(Stage.FINE))
        everything = [*dataset.labeled, *dataset.unlabeled]
        for path in (small.image_path("unlabeled", "u0"), small.label_path("l2")):
            os.utime(path, ns=(3, 3))
        refuse_changed(dataset, everything, plans, workspace)
        with monkeypatch.context() as patch:
            patch.setattr(preparation, "case_content_hash", lambda *_: pytest.fail("read again"))
            assert pending(dataset, plans, workspace) == []
        assert contents(workspace.preprocessed(Stage.FINE)) == stored
        label, size = small.label_array(2), small.label_path("l2").stat().st_size
        small.write(small.label_path("l2"), np.flip(label))
        padded = small.label_path("l2").read_bytes()[:size]
        small.label_path("l2").write_bytes(padded + b"\0" * (size - len(padded)))  # as long as before, and another one
        with pytest.raises(DatasetError, match=r"1 case\(s\) have changed since they were prepared: l2"):
            refuse_changed(dataset, everything, plans, workspace)
        assert [task.case.id for task in pending(dataset, plans, workspace)] == ["l2"]

    def test_a_kill_between_the_stages_of_a_corrected_case_is_noticed(self, small_dataset, workspace, monkeypatch):
        small = small_dataset()
        dataset, plans = planned(small)
        prepare_dataset(dataset, plans, workspace, workers=1)
        first, status = small.label_path("l2").read_bytes(), small.label_path("l2").stat()
        small.write(small.label_path("l2"), small.label_array(17))
        prepare_stage = preparation._prepare_stage

        def killed(*args, stage, **rest):
            if stage is Stage.FINE:
                raise KeyboardInterrupt
            prepare_stage(*args, stage=stage, **rest)

        with monkeypatch.context() as patch:
            patch.setattr(preparation, "_prepare_stage", killed)
            with pytest.raises(KeyboardInterrupt):
                prepare_dataset(dataset, plans, workspace, workers=1)
        small.label_path("l2").write_bytes(first)  # what the other half of the store was made from
        os.utime(small.label_path("l2"), ns=(status.st_atime_ns, status.st_mtime_ns))
        assert [task.case.id for task in pending(dataset, plans, workspace)] == ["l2"]


def test_a_bad_file_is_named_at_the_end_and_the_others_are_done(small_dataset, workspace):
    small = small_dataset()
    dataset, plans = planned(small)
    good = small.image_path("labeled", "l0").read_bytes()
    small.image_path("labeled", "l0").write_bytes(good[: len(good) // 2])
    small.write(small.label_path("l1"), small.label_array(1) * 7)
    small.image_path("unlabeled", "u0").write_bytes(b"no header at all")
    with pytest.raises(DatasetError) as caught:
        prepare_dataset(dataset, plans, workspace, workers=1)
    assert "3 of 4 cases" in str(caught.value)
    assert "case 'l0'" in str(caught.value)
    assert str(small.image_path("labeled", "l0")) in str(caught.value)
    assert "case 'l1'" in str(caught.value)
    assert CaseStore(workspace.preprocessed(Stage.FINE)).case_ids() == ("l2",)
    small.add("unlabeled", "u0", seed=50)
    small.image_path("labeled", "l0").write_bytes(good)
    small.write(small.label_path("l1"), small.label_array(1))
    assert prepare_dataset(dataset, plans, workspace, workers=1) == 3


def test_a_full_disk_ends_the_run_and_keeps_what_is_done(small_dataset, workspace, monkeypatch):
    dataset, plans = planned(small_dataset())
    write = CaseStore.write

    def full(self, record, *arrays):
        if record.case_id == "l1":
            raise OSError(28, "No space left on device")
        write(self, record, *arrays)

    with monkeypatch.context() as patch:
        patch.setattr(CaseStore, "write", full)
        with pytest.raises(OSError, match="No space"):
            prepare_dataset(dataset, plans, workspace, workers=1)
    assert CaseStore(workspace.preprocessed(Stage.FINE)).case_ids() == ("l0",)
    assert prepare_dataset(dataset, plans, workspace, workers=1) == 3


def test_lists_name_the_cases_one_a_line(small_dataset, workspace):
    dataset = small_dataset().load()
    splits = make_splits([case.id for case in dataset.labeled], folds=3)
    write_lists(dataset, splits, workspace)
    lists = {path.name: path.read_text(encoding="utf-8").splitlines() for path in workspace.lists.iterdir()}
    assert lists["labeled.txt"] == ["l0", "l1", "l2"]
    assert lists["unlabeled.txt"] == ["u0"]
    assert lists["test.txt"] == ["t0"]
    for number in range(3):
        train, validation = lists[f"fold_{number}_train.txt"], lists[f"fold_{number}_validation.txt"]
        assert sorted(train + validation) == ["l0", "l1", "l2"]
        assert validation == list(splits.folds[number].validation)
    assert len(lists) == 9


def test_a_case_that_does_not_fit_does_not_stop_the_others(small_dataset, workspace):
    small = small_dataset()
    dataset, plans = planned(small)
    path = small.image_path("unlabeled", dataset.unlabeled[0].id)
    image = sitk.ReadImage(str(path))
    image.SetSpacing([1000 * spacing for spacing in image.GetSpacing()])
    sitk.WriteImage(image, str(path))
    with pytest.raises(DatasetError, match=r"1 of .* cases could not be prepared; the others are done") as caught:
        prepare_dataset(dataset, plans, workspace, workers=1)
    assert f"case '{dataset.unlabeled[0].id}': its body's 20×20×18 voxels of 3000×1500×1500 mm" in str(caught.value)
    left = pending(dataset, plans, workspace)
    assert [task.case.id for task in left] == [dataset.unlabeled[0].id]
