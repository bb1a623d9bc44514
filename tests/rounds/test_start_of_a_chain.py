"""The supervised start judges every round: its score must be of the weights that are there, behind their own COARSE."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flaresemi.cli import train
from flaresemi.dataset import load_dataset
from flaresemi.errors import SelectionError
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.rounds.chain import SelfTraining
from flaresemi.rounds.round import Execution, Round
from flaresemi.rounds.state import RoundConfig
from flaresemi.rounds.stopping import StopRule
from flaresemi.training.validation import former_files
from flaresemi.workspace import Workspace
from tests.made_workspace import plan_tiny
from tests.rounds.conftest import QUICK

TAKE_ALL = RoundConfig(selection=SelectionRule(rule="case", best_share=1.0, case_threshold=0.0))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trains(phantom_dataset: Path, tmp_path: Path) -> Callable[..., None]:
    def run(stage: str, *words: str) -> None:
        place = ["-d", str(phantom_dataset), "-w", str(tmp_path / "workspace"), "--device", "cpu"]
        assert train.main([stage, "0", *place, *words]) == 0

    return run


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(trained, tmp_path / "workspace")))


def self_training(workspace: Workspace, dataset: Path) -> SelfTraining:
    def make_round(fold: str, number: int) -> Round:
        execution = Execution(device=torch.device("cpu"), precision="fp32")
        return Round(workspace, load_dataset(dataset), fold, number, TAKE_ALL, execution)

    return SelfTraining(workspace, ("0",), StopRule(), make_round)


def test_a_training_that_went_on_is_judged_by_its_new_weights(
    workspace: Workspace, phantom_dataset: Path, trains: Callable[..., None]
) -> None:
    training = self_training(workspace, phantom_dataset)
    training.judge()
    trains("FINE", "--continue", "--iterations", "4", "--no-validation")
    with pytest.raises(SelectionError, match="round 0 of fold 0 was validated with other weights than it has now"):
        training.run_next()
    assert not workspace.round("0", 1).root.exists()
    trains("FINE", "--continue")
    training.judge()


def test_fine_is_judged_behind_the_coarse_that_is_there(
    phantom_dataset: Path, tmp_path: Path, trains: Callable[..., None]
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    plan_tiny(phantom_dataset, workspace.root, "two")
    training = self_training(workspace, phantom_dataset)
    trains("FINE", *QUICK)
    training.judge()
    trains("COARSE", *QUICK)
    with pytest.raises(SelectionError, match="was validated in the reference's box, before there was a COARSE"):
        training.judge()
    trains("FINE", "--continue")
    training.judge()
    trains("COARSE", *QUICK, "--restart", "--seed", "1")
    with pytest.raises(SelectionError, match="was validated behind another COARSE"):
        training.judge()
    trains("FINE", "--continue")
    training.judge()
    workspace.model("0", Stage.COARSE).final.unlink()  # what is gone is no sign of a change
    training.judge()
    marker = workspace.model("0", Stage.FINE).validation / "made_with.json"
    marker.write_text(json.dumps({}), encoding="utf-8")  # of old versions
    training.judge()


def test_a_round_stays_complete_when_its_start_is_validated_again(
    workspace: Workspace, phantom_dataset: Path, trains: Callable[..., None]
) -> None:
    model = workspace.model("0", Stage.FINE)
    save_checkpoint(model.final, dataclasses.replace(load_checkpoint(model.final), keep_largest=("liver",)))
    training = self_training(workspace, phantom_dataset)
    assert training.run_rounds(1) is not None
    marker = model.validation / "made_with.json"
    noted = json.loads(marker.read_text(encoding="utf-8"))
    marker.write_text(json.dumps(noted | {"final": "others"}), encoding="utf-8")
    with pytest.raises(SelectionError, match="with other weights"):
        training.run_next()
    before = model.final.read_bytes()
    for _ in range(2):
        trains("FINE", "--continue")
    assert model.final.read_bytes() != before  # which organs are kept whole is decided anew
    assert len(former_files(model)) == 1  # the second validation found what the first one had
    assert training.run_next("label") is not None
    assert training.complete_rounds == 1
