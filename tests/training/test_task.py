"""Which unlabeled cases a trainer that asks for them gets, by the command and in rounds."""

import dataclasses
import shutil

import pytest

from flaresemi.cli import train
from flaresemi.planning.decisions import CaseDecision, Decisions, save_decisions
from flaresemi.planning.preparation import prepare_dataset
from flaresemi.planning.splits import load_splits
from flaresemi.plans import Stage, load_plans
from flaresemi.records import load_record
from flaresemi.training.runs import RunRecord
from flaresemi.training.sampling import TrainingCase
from flaresemi.training.task import load_task
from flaresemi.training.trainer import Trainer
from tests.training.conftest import Student


class FromUnlabeled(Trainer):
    """Draws unlabeled cases among the labeled ones."""

    def training_cases(self) -> list[TrainingCase]:
        return [*super().training_cases(), *self.unlabeled_cases()]


QUICK = (
    "--iterations", "2", "--iterations-per-epoch", "2", "--validations", "0", "--loader-workers", "0",
    "--device", "cpu", "--precision", "fp32", "--augmentation", "none", "--no-validation",
    "--trainer", f"{__name__}:FromUnlabeled",
)  # fmt: skip


def learned_from(student: Student, *more: str) -> set[str]:
    """The unlabeled cases that a training of fold 0 draws from."""
    assert train.main(["COARSE", "0", *student.words, *QUICK, *more]) == 0
    record = load_record(student.workspace.model("0", Stage.COARSE).run_record, RunRecord)
    return set(record.training_cases) - set(load_splits(student.workspace.splits).fold("0").train)


def test_unlabeled_cases_are_those_of_the_dataset_that_nobody_left_out(student: Student) -> None:
    dataset = student.data.add("test", "t0", seed=60).load()
    plans, groups = load_plans(student.workspace.plans), ("labeled", "unlabeled", "test")
    assert prepare_dataset(dataset, plans, student.workspace, groups=groups, workers=1) == 1
    save_decisions(student.workspace, Decisions(skipped=(CaseDecision(case_id="u1", why="bad"),)))
    student.data.image_path("unlabeled", "u2").unlink()
    assert learned_from(student) == {"u0"}


def test_unlabeled_cases_of_a_held_out_group_are_not_learned_from(student: Student) -> None:
    split = load_splits(student.workspace.splits).fold("0")
    student.data.describe(groups={"p": [split.validation[0], "u1"], "q": [split.train[0], "u2"]})
    assert learned_from(student) == {"u0", "u2"}


def test_without_the_dataset_it_is_not_known_which_cases_are_unlabeled(
    student: Student, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(student.data.root)
    assert train.main(["COARSE", "0", *student.words, *QUICK]) == 2
    assert "learns from unlabeled cases, and which these are is not known" in capsys.readouterr().err
    words = ["COARSE", "0", *student.words, *QUICK, "--trainer", "default"]
    assert train.main(words) == 0  # which needs none


def test_a_task_knows_them_where_it_knows_the_dataset(student: Student) -> None:
    assert load_task(student.workspace, Stage.FINE, "0").unlabeled is None
    dataset = student.data.load()
    assert load_task(student.workspace, Stage.FINE, "0", dataset).unlabeled == ("u0", "u1", "u2")
    none = dataclasses.replace(dataset, unlabeled=())
    assert load_task(student.workspace, Stage.FINE, "0", none).unlabeled == ()
