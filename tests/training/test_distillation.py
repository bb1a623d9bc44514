import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flaresemi.compute.distributed import Ranks
from flaresemi.errors import ConfigError, DatasetError, SelectionError
from flaresemi.io.case_store import CaseStore
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.plans import Stage
from flaresemi.preprocessing.preprocessor import stage_labels
from flaresemi.records import load_record, save_record
from flaresemi.selection import EXPORT_RECORD, ExportRecord, SelectedCase, Selection
from flaresemi.training.config import TrainingConfig
from flaresemi.training.distillation import begin_teaching, caution, prepare_labels
from flaresemi.training.runs import RunRecord
from flaresemi.training.semi_supervised import SemiSupervisedTrainer, SemiSupervision
from flaresemi.training.task import Teaching, TrainingTask, load_task
from flaresemi.workspace import ModelFolder
from tests.made_nrrd import segment_fields, write_nrrd
from tests.training.conftest import Student
from tests.training.test_trainer import StopAfter

CPU = torch.device("cpu")
ORGANS = ("organ 5", "organ 200")


def task_of(student: Student, stage: Stage = Stage.FINE, fold: str = "0") -> TrainingTask:
    return load_task(student.workspace, stage, fold)


def begin(student: Student, stage: Stage = Stage.FINE, fold: str = "0") -> Teaching:
    return begin_teaching(student.teacher, task_of(student, stage, fold), student.data.load())


def learn(student: Student, teaching: Teaching | None = None, stage: Stage = Stage.FINE) -> SemiSupervision:
    """As a start of the training would; a resumed one knows its teaching already."""
    given = begin(student, stage) if teaching is None else teaching
    return prepare_labels(given, task_of(student, stage), student.data.load(), student.workspace)


def exported(student: Student, **changes: object) -> ExportRecord:
    """Writes what an export of a round would: u0 whole, of u1 one organ, u2 not at all."""
    selected = (
        SelectedCase(case_id="u0", score=0.9, supervised=ORGANS, rejected={}),
        SelectedCase(case_id="u1", score=0.8, supervised=ORGANS[1:], rejected={ORGANS[0]: "agreement"}, weight=0.5),
    )
    selection = Selection(
        round=1, fold="0", rule="organ", thresholds={}, selected=selected, rejected={"u2": "agreement"}
    )
    record = ExportRecord(
        fold="0", round=1, made_with=("abc",), trained_on=task_of(student).training, selection=selection
    )
    record = dataclasses.replace(record, **changes)  # type: ignore[arg-type]
    save_record(student.teacher / EXPORT_RECORD, record)
    return record


def written_at(student: Student) -> dict[str, int]:
    """When each label map came onto FINE's grid."""
    folder = student.workspace.pseudo_labels("0", Stage.FINE)
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/label.npy")}


@pytest.mark.parametrize("stage", list(Stage))
def test_label_maps_come_onto_the_grid_of_the_stage(student: Student, stage: Stage) -> None:
    labels = learn(student, stage=stage).labels
    assert set(labels) == {"u0", "u1", "u2"}
    for case_id, store in labels.items():
        stored = store.open(case_id)
        grid = CaseStore(student.workspace.preprocessed(stage)).record(case_id).grid
        truth = student.truth(case_id)
        indices = np.where(truth == 5, 1, np.where(truth == 200, 2, 0)).astype(np.uint8)
        assert set(np.unique(indices)) == {0, 1, 2}
        assert stored.record.grid == grid
        np.testing.assert_array_equal(stored.label_zyx, stage_labels(indices, grid))


def test_what_is_there_is_kept_and_a_changed_file_is_taken_anew(student: Student) -> None:
    learn(student)
    before = written_at(student)
    learn(student)
    assert written_at(student) == before
    changed = student.truth("u1")
    changed[changed == 5] = 0
    student.data.write(student.teacher / "u1.nii.gz", changed)
    stored = learn(student).labels["u1"].open("u1")
    assert stored.record.voxels_per_label[0] == 0
    after = written_at(student)
    assert {case_id for case_id in before if before[case_id] != after[case_id]} == {"u1"}


def test_voxels_beside_their_header_are_part_of_a_label_map(student: Student) -> None:
    (student.teacher / "u1.nii.gz").unlink()
    student.data.write(student.teacher / "u1.mhd", student.truth("u1").astype(np.uint8))
    learn(student)
    before = written_at(student)
    teaching, voxels = begin(student), student.teacher / "u1.raw"
    voxels.write_bytes(bytes(voxels.stat().st_size))
    assert learn(student).labels["u1"].open("u1").record.voxels_per_label[0] == 0
    after = written_at(student)
    assert {case_id for case_id in before if before[case_id] != after[case_id]} == {"u1"}
    with pytest.raises(DatasetError, match="case 'u1': its label map is not the one"):
        learn(student, teaching)


def test_other_values_of_the_organs_make_it_anew(student: Student) -> None:
    """The same file means something else then."""
    teaching, task = begin(student), task_of(student)
    one, other = task.labels.labels
    swapped = (dataclasses.replace(one, value=other.value), dataclasses.replace(other, value=one.value))
    task = dataclasses.replace(task, labels=dataclasses.replace(task.labels, labels=swapped))
    before = np.array(learn(student, teaching).labels["u0"].open("u0").label_zyx)
    after = prepare_labels(teaching, task, student.data.load(), student.workspace).labels["u0"].open("u0").label_zyx
    np.testing.assert_array_equal(after, np.array([0, 2, 1])[before])


def test_other_names_of_the_organs_make_anew_what_is_read_by_them(student: Student) -> None:
    (student.teacher / "u1.nii.gz").unlink()
    layers = [np.uint8(student.truth("u1") == value) for value in (5, 200)]
    path = write_nrrd(
        student.teacher / "u1.seg.nrrd", layers, fields=segment_fields((ORGANS[0], 1, 0), (ORGANS[1], 1, 1))
    )
    path.write_bytes(path.read_bytes().replace(b"(0,2.0,0)", b"(0,1.5,0)"))  # the spacing of the image
    before = np.array(learn(student).labels["u1"].open("u1").label_zyx)
    times, task = written_at(student), task_of(student)
    one, other = task.labels.labels
    swapped = (dataclasses.replace(one, name=other.name), dataclasses.replace(other, name=one.name))
    task = dataclasses.replace(task, labels=dataclasses.replace(task.labels, labels=swapped))
    teaching = begin_teaching(student.teacher, task, student.data.load())
    after = prepare_labels(teaching, task, student.data.load(), student.workspace).labels["u1"].open("u1").label_zyx
    np.testing.assert_array_equal(after, np.array([0, 2, 1])[before])
    assert {case_id for case_id in times if times[case_id] != written_at(student)[case_id]} == {"u1"}


def test_ranks_divide_the_work(student: Student) -> None:
    class Unwaiting(Ranks):
        def barrier(self) -> None:
            """The ranks come one after the other here."""

    for rank, there in ((0, {"u0", "u2"}), (1, {"u0", "u1", "u2"})):
        ranks = Unwaiting(rank=rank, world_size=2)
        prepare_labels(begin(student), task_of(student), student.data.load(), student.workspace, ranks=ranks)
        assert set(written_at(student)) == there


def test_a_resumed_training_sees_what_it_began_with(student: Student) -> None:
    teaching = begin(student)
    semi = learn(student, teaching)
    before = written_at(student)
    student.data.write(student.teacher / "u1.nii.gz", student.truth("u0"))
    learn(student, teaching)
    assert written_at(student) == before
    folder = semi.labels["u1"].folder
    shutil.rmtree(folder / "u0")
    shutil.rmtree(folder / "u1")
    with pytest.raises(DatasetError, match=r"1 of 2 label maps(.|\n)*case 'u1': its label map is not the one"):
        learn(student, teaching)
    assert (folder / "u0").is_dir()
    shutil.rmtree(student.teacher)
    shutil.rmtree(folder / "u0")
    with pytest.raises(DatasetError, match="folder not found"):
        learn(student, teaching)


def test_everything_wrong_with_the_files_is_said_at_once(student: Student) -> None:
    student.data.write(student.teacher / "u0.nii.gz", student.truth("u0")[:-1])
    wrong = student.truth("u1")
    wrong[0, 0, 0] = 77
    student.data.write(student.teacher / "u1.nii.gz", wrong)
    with pytest.raises(DatasetError) as caught:
        learn(student)
    assert "2 of 3 label maps cannot be used; the others are done" in caught.value.what
    assert "the label map has 19×24×22 voxels (z, y, x), the image 20×24×22" in caught.value.what
    assert f"label map has value 77, the dataset declares 0, 5, 200 ({student.teacher / 'u1.nii.gz'})" in (
        caught.value.what
    )
    assert set(written_at(student)) == {"u2"}
    student.data.write(student.teacher / "u0.nii.gz", student.truth("u0"), origin=(0.0, 9.0, 0.0))
    with pytest.raises(DatasetError, match=r"case 'u0'(.|\n)*origin 9 mm away"):
        learn(student)


def test_a_label_map_of_a_labeled_case_is_refused(student: Student) -> None:
    held_out = task_of(student).validation[0]
    student.data.write(student.teacher / f"{held_out}.nii.gz", student.truth("u0"))
    with pytest.raises(SelectionError, match=f"belong to labeled cases: {held_out}"):
        begin(student)


def test_label_maps_of_a_held_out_group_are_not_used(student: Student, caplog: pytest.LogCaptureFixture) -> None:
    task = task_of(student)
    student.data.describe(groups={"p": [task.validation[0], "u1"], "q": [task.training[0], "u2"]})
    assert set(begin(student).files) == {"u0", "u2"}
    assert "1 label map(s) are of groups of which fold 0 holds cases out, and are not used: u1" in caplog.text
    assert set(begin(student, fold="all").files) == {"u0", "u1", "u2"}
    student.data.describe(groups={"p": [task.validation[0], "u0", "u1", "u2"]})
    with pytest.raises(SelectionError, match="of another group than"):
        begin(student)


def test_label_maps_without_image_are_named(student: Student, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("t0", "who"):
        (student.teacher / "u0.nii.gz").rename(student.teacher / f"{name}.nii.gz")
        student.data.write(student.teacher / "u0.nii.gz", student.truth("u0"))
    (student.teacher / "u2.nii.gz").unlink()
    with caplog.at_level(logging.WARNING):
        assert set(begin(student).files) == {"u0", "u1"}  # an image without label map is simply not used
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "2 label map(s) belong to no unlabeled case of the dataset and are not used: t0, who" in warning
    for name in ("u0", "u1"):
        (student.teacher / f"{name}.nii.gz").unlink()
    with pytest.raises(SelectionError, match="no label map here can be used"):
        begin(student)


def test_rejected_organs_are_not_supervised(student: Student, quick_config: TrainingConfig) -> None:
    exported(student)
    semi = learn(student)
    assert set(semi.labels) == {"u0", "u1"}  # u2 was not selected
    trainer = SemiSupervisedTrainer(task_of(student), quick_config, semi, device=CPU)
    supervised = {case.case_id: (case.supervised, case.weight) for case in trainer.training_cases()}
    assert {case_id: supervised[case_id] for case_id in semi.labels} == {"u0": ((1, 2), 1.0), "u1": ((2,), 0.5)}
    (student.teacher / EXPORT_RECORD).unlink()
    everything = learn(student).selection.selected
    assert [(case.case_id, case.supervised) for case in everything] == [(f"u{number}", ORGANS) for number in range(3)]


def test_a_selection_of_other_organs_is_refused(student: Student) -> None:
    record = exported(student)
    assert record.selection is not None
    strange = dataclasses.replace(record.selection.selected[0], supervised=("kidney",))
    exported(student, selection=dataclasses.replace(record.selection, selected=(strange,)))
    with pytest.raises(SelectionError, match="organs that this dataset has not: kidney"):
        learn(student)


def test_a_teacher_that_saw_the_held_out_cases(student: Student) -> None:
    held_out = task_of(student).validation
    clean = exported(student)
    assert caution(begin(student), held_out) is None
    assert caution(begin(student, fold="all"), ()) is None
    (student.teacher / EXPORT_RECORD).unlink()
    assert "nothing in the folder of pseudo-labels says" in str(caution(begin(student), held_out))
    exported(student, fold="1", trained_on=(*clean.trained_on, *held_out))
    with pytest.raises(ConfigError, match=f"those of fold 1, whose models.*fold 0 holds out: {held_out[0]}"):
        begin(student)
    assert begin(student, fold="all").files
    exported(student, fold="all", trained_on=(*clean.trained_on, *held_out))
    assert "trained on 1 of the 1 held-out cases: their scores are optimistic" in str(caution(begin(student), held_out))
    exported(student, round=2, taught_outside=True)
    assert "go back to a model from outside" in str(caution(begin(student), held_out))
    exported(student, fold="1", made_with=("outside", "abc"), trained_on=held_out)  # as older versions said
    assert "go back to a model from outside" in str(caution(begin(student), held_out))


def test_the_folder_of_several_folds_is_not_the_one_to_name(student: Student, tmp_path: Path) -> None:
    exported(student)
    outer = dataclasses.replace(student, teacher=tmp_path / "outer")
    shutil.copytree(student.teacher, outer.teacher / "fold_0")
    with pytest.raises(ConfigError) as caught:
        begin(outer)
    assert caught.value.fix == "name one of them: fold_0"


def test_a_student_that_was_stopped_equals_one_that_was_not(
    student: Student, quick_config: TrainingConfig, tmp_path: Path
) -> None:
    exported(student)
    config = dataclasses.replace(quick_config, iterations=4, iterations_per_epoch=2, validations=0)
    whole, parts = (dataclasses.replace(task_of(student), folder=ModelFolder(tmp_path / name)) for name in "ab")
    assert SemiSupervisedTrainer(whole, config, learn(student), device=CPU).fit()
    stopped = SemiSupervisedTrainer(parts, config, learn(student), device=CPU, stop_requested=StopAfter(3))
    assert not stopped.fit()
    shutil.rmtree(student.teacher)
    teaching = load_record(parts.folder.run_record, RunRecord).taught_by
    assert teaching is not None
    assert SemiSupervisedTrainer(parts, config, learn(student, teaching), device=CPU).fit(resume=True)
    weights = load_checkpoint(parts.folder.final).weights
    for name, expected in load_checkpoint(whole.folder.final).weights.items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=0)
