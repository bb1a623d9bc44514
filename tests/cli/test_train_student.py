"""A student from the command line: it learns from label maps in a folder, and is like any other model afterwards."""

import shutil
from pathlib import Path

import pytest

from flaresemi.cli import predict, train
from flaresemi.io.images import read_label_map
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.plans import Stage
from flaresemi.records import load_record
from flaresemi.training.runs import RunRecord
from tests.training.conftest import Student, prepared_student, student  # noqa: F401

QUICK = [
    "--iterations", "2", "--iterations-per-epoch", "2", "--validations", "0", "--loader-workers", "0",
    "--device", "cpu", "--precision", "fp32", "--pseudo-augmentation", "none", "--augmentation", "none",
]  # fmt: skip


def record_of(student: Student, stage: Stage, fold: str) -> RunRecord:  # noqa: F811
    return load_record(student.workspace.model(fold, stage).run_record, RunRecord)


def test_a_student_is_trained_and_predicts(
    student: Student,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taught = ["--pseudo-labels", str(student.teacher)]
    assert train.main(["COARSE", "all", *student.words, *QUICK, *taught]) == 0
    said = capsys.readouterr()
    assert f"next: flaresemi_train FINE all -d {student.words[1]}" in said.out
    assert f"--pseudo-labels {student.teacher}" in said.out
    assert "optimistic" not in said.err + said.out  # nothing is held out
    assert train.main(["FINE", "all", *student.words, *QUICK, *taught, "--pseudo-share", "0.25"]) == 0
    record = record_of(student, Stage.FINE, "all")
    assert record.taught_by is not None
    assert record.taught_by.folder == str(student.teacher)
    assert set(record.taught_by.files) == {"u0", "u1", "u2"} < set(record.training_cases)
    mixing = record.taught_by.mixing
    assert (mixing.pseudo_share, mixing.pseudo_augmentation) == (0.25, "none")
    assert record.trainer == "SemiSupervisedTrainer"
    image = student.data.image_path("unlabeled", "u0")
    words = ["-i", str(image), "-o", str(tmp_path / "out.nii.gz"), "-m", str(student.workspace.models)]
    assert predict.main([*words, "--device", "cpu", "--precision", "fp32", "--engine", "torch"]) == 0
    assert read_label_map(tmp_path / "out.nii.gz").array_zyx.shape == student.data.shape


def test_a_student_goes_on_as_it_began(
    student: Student,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["COARSE", "0", *student.words, *QUICK]
    assert train.main([*words, "--pseudo-labels", str(student.teacher)]) == 0
    said = capsys.readouterr()
    assert "their scores are optimistic" in said.err
    assert "their scores are optimistic" in said.out  # beside the scores, too
    other = shutil.copytree(student.teacher, tmp_path / "other")
    assert train.main([*words, "--continue", "--pseudo-labels", str(other)]) == 2
    assert f"this training began with the pseudo-labels of {student.teacher}" in capsys.readouterr().err
    shutil.rmtree(student.teacher)
    assert train.main([*words, "--continue", "--pseudo-share", "0.75"]) == 2
    assert "--pseudo-share 0.75: this training began with" in capsys.readouterr().err
    longer = ["--iterations", "3", "--no-validation"]
    assert train.main([*words, "--continue", *longer]) == 0
    assert load_checkpoint(student.workspace.model("0", Stage.COARSE).final).iteration == 3
    taught_by = record_of(student, Stage.COARSE, "0").taught_by
    assert taught_by is not None
    # What it learns from outlasts its record.
    student.workspace.model("0", Stage.COARSE).run_record.write_text("half a rec")
    assert train.main([*words, "--continue", "--iterations", "4", "--no-validation"]) == 0
    record = record_of(student, Stage.COARSE, "0")
    assert (record.taught_by, record.trainer) == (taught_by, "SemiSupervisedTrainer")
    # A folder that cannot be used does not cost the training that is there.
    (other / "u0.nii.gz").write_bytes(b"no image")
    assert train.main([*words, "--restart", "--pseudo-labels", str(other)]) == 2
    assert "1 of 1 label maps cannot be used" in capsys.readouterr().err
    assert load_checkpoint(student.workspace.model("0", Stage.COARSE).final).iteration == 4
    # Without the option, a training begins anew without a teacher.
    alone = [word for word in words if word not in ("--pseudo-augmentation", "none", "--augmentation")]
    assert train.main([*alone, "--restart", "--no-validation"]) == 0
    assert record_of(student, Stage.COARSE, "0").taught_by is None
    assert train.main([*alone, "--continue", "--pseudo-labels", str(other)]) == 2
    assert "this training began without pseudo-labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--pseudo-share", "0.3"], "--pseudo-share would do nothing without --pseudo-labels"),
        (["--pseudo-labels", "TEACHER", "--pseudo-share", "1"], "must be a number, above 0 and below 1"),
        (
            ["--pseudo-labels", "TEACHER", "--paste-share", "1.5"],
            "--paste-share: must be a number, at least 0 and at most 1",
        ),
        (["--pseudo-labels", "nowhere"], "folder not found"),
        (["--pseudo-label", "TEACHER"], "did you mean '--pseudo-labels'"),
    ],
)
def test_wrong_options_give_one_clear_message(
    student: Student,  # noqa: F811
    words: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [str(student.teacher) if word == "TEACHER" else word for word in words]
    assert train.main(["FINE", "0", *student.words, *named]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error:") == 1
    assert complaint in errors
