"""Preparation by several processes: the cases of one process, by plans that one of them made."""

import shutil
from pathlib import Path

import pytest

from flaresemi.cli.plan_and_preprocess import main
from flaresemi.dataset import Case
from flaresemi.errors import DatasetError
from flaresemi.io.case_store import CaseStore
from flaresemi.labels import LabelSet
from flaresemi.phantom.dataset import write_phantom_dataset
from flaresemi.planning import preparation
from flaresemi.plans import Stage
from flaresemi.workspace import Workspace


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantom_dataset(root, labeled=3, unlabeled=2, test=0, size=(24, 32, 32), seed=3)
    return root


@pytest.fixture(scope="module")
def planned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planned") / "workspace"
    assert main(["-d", str(data), "-w", str(root), "--workers", "1", "--plan-only", "--quiet"]) == 0
    return root


@pytest.fixture
def workspace(planned: Path, tmp_path: Path) -> Workspace:
    return Workspace(shutil.copytree(planned, tmp_path / "workspace"))


def prepare(data: Path, workspace: Workspace, *words: str) -> int:
    return main(["-d", str(data), "-w", str(workspace.root), "--workers", "1", *words])


def prepared(workspace: Workspace) -> dict[str, bytes]:
    folder = workspace.root / "preprocessed"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def as_task(monkeypatch: pytest.MonkeyPatch, number: int, count: int) -> None:
    for name, value in {"ID": number, "MIN": 0, "MAX": count - 1, "COUNT": count}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def test_parts_by_hand_and_tasks_of_an_array_prepare_what_one_process_does(
    data: Path, planned: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Workspace(shutil.copytree(planned, tmp_path / "alone"))
    assert prepare(data, alone) == 0
    assert prepare(data, workspace, "--shard", "1/3") == 0
    assert len(CaseStore(workspace.preprocessed(Stage.FINE)).case_ids()) == 2
    as_task(monkeypatch, 1, 2)
    assert prepare(data, workspace, "--shard", "slurm") == 0  # its own part, and that of a task which never came
    assert prepared(workspace) == prepared(alone)
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("image.npy")}
    as_task(monkeypatch, 0, 2)
    assert prepare(data, workspace, "--shard", "slurm") == 0
    assert prepare(data, workspace) == 0
    assert {path: path.stat().st_mtime_ns for path in workspace.root.rglob("image.npy")} == before


def test_workers_of_a_task_take_turns_as_they_are_free(
    data: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_task(monkeypatch, 0, 2)
    assert prepare(data, workspace, "--shard", "slurm", "--workers", "2") == 0
    assert len(CaseStore(workspace.preprocessed(Stage.COARSE)).case_ids()) == 5
    assert not workspace.prepared_claims.exists()


def test_what_one_process_has_to_do_first_is_said(
    data: Path, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(data, Workspace(tmp_path / "new"), "--shard", "0/2") == 2
    assert "there are no plans to prepare by" in capsys.readouterr().err
    for words in (["--replan"], ["--preset", "large"], ["--stages", "one"]):
        assert prepare(data, workspace, "--shard", "0/2", *words) == 2
        assert f"{words[0]} decides" in capsys.readouterr().err
    other = shutil.copytree(data, tmp_path / "data")
    image = min((other / "unlabeled_image").iterdir())
    shutil.copy(image, image.with_name("new_0000.nii.gz"))
    assert prepare(other, workspace, "--shard", "0/2") == 2
    told = capsys.readouterr().err
    assert "have not been looked into" in told and "new" in told and "--plan-only first" in told


def test_a_case_that_cannot_be_prepared_is_named_and_the_others_are_done(
    data: Path, planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_labeled(case: Case, labels: LabelSet) -> object:
        if case.label is None:
            raise DatasetError("cannot be read")
        return read(case, labels)

    workspace, read = Workspace(shutil.copytree(planned, tmp_path / "workspace")), preparation.read_case
    monkeypatch.setattr(preparation, "read_case", read_labeled)
    as_task(monkeypatch, 0, 2)
    assert prepare(data, workspace, "--shard", "slurm") == 2
    assert "2 of 5 cases could not be prepared; the others are done" in capsys.readouterr().err
    assert len(CaseStore(workspace.preprocessed(Stage.FINE)).case_ids()) == 3
