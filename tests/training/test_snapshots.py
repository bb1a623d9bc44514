from collections.abc import Callable

import pytest
import torch

from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flaresemi.training.schedule import marks
from flaresemi.training.snapshots import renew_snapshots
from flaresemi.training.task import TrainingTask
from flaresemi.workspace import ModelFolder
from tests.training.conftest import LABELS, stage_plan

PERCENTS = (36, 66, 100)


def checkpoint(iteration: int, total: int, fold: str = "0") -> Checkpoint:
    return Checkpoint(
        plan=stage_plan(), body="ct", channels=("CT",), labels=LABELS, fold=fold, iteration=iteration,
        total_iterations=total, weights={"a": torch.full((1,), float(iteration))},
    )  # fmt: skip


@pytest.fixture
def folder(make_task: Callable[..., TrainingTask]) -> ModelFolder:
    return make_task().folder


def kept(folder: ModelFolder) -> dict[int, tuple[int, int]]:
    """Iteration of the weights and length of the training, by percent."""
    found = {}
    for percent in PERCENTS:
        if folder.snapshot(percent).exists():
            snapshot = load_checkpoint(folder.snapshot(percent))
            assert float(snapshot.weights["a"]) == snapshot.iteration
            found[percent] = (snapshot.iteration, snapshot.total_iterations)
    return found


def test_the_marks() -> None:
    assert marks(100, PERCENTS) == {36: 36, 66: 66, 100: 100}
    assert marks(6, PERCENTS) == {2: 36, 4: 66, 6: 100}


@pytest.mark.parametrize("times", [1, 2])  # as after a kill
def test_a_longer_training_has_no_snapshot_of_the_shorter_one(folder: ModelFolder, times: int) -> None:
    for iteration, percent in marks(100, PERCENTS).items():
        save_checkpoint(folder.snapshot(percent), checkpoint(iteration, 100))
    for _ in range(times):
        renew_snapshots(folder, checkpoint(100, 100), marks(200, PERCENTS))
    # 72 is passed, and 66 the nearest that was kept; 132 is still to come; what predicts stays until there is better.
    assert kept(folder) == {36: (66, 200), 100: (100, 100)}


def test_what_is_of_another_training_is_not_taken(folder: ModelFolder) -> None:
    save_checkpoint(folder.snapshot(36), checkpoint(36, 100, fold="1"))
    folder.snapshot(66).write_bytes(b"damaged")
    renew_snapshots(folder, checkpoint(90, 100), marks(120, PERCENTS))
    assert kept(folder) == {36: (90, 120), 66: (90, 120)}


def test_marks_that_are_still_to_come_have_none(folder: ModelFolder) -> None:
    save_checkpoint(folder.snapshot(36), checkpoint(36, 100))
    renew_snapshots(folder, checkpoint(40, 100), marks(1000, PERCENTS))
    assert kept(folder) == {}
