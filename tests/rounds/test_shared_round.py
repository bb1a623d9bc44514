"""A round of two processes: the files of one process, whoever dies."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flaresemi.cli import semi_round, train
from flaresemi.compute.crew import Crew
from flaresemi.compute.distributed import Ranks
from flaresemi.dataset import load_dataset
from flaresemi.errors import ConfigError
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.plans import Stage
from flaresemi.records import load_record
from flaresemi.rounds.pieces import Execution
from flaresemi.rounds.round import Round
from flaresemi.rounds.state import RoundConfig, load_state
from flaresemi.training.history import read_history
from flaresemi.training.runs import RunRecord
from flaresemi.workspace import Workspace
from tests.made_workspace import plan_tiny
from tests.rounds.conftest import see_organs_everywhere

#: SGD, since Adam's first steps make much of rounding.
SUPERVISED = [
    "--iterations", "4", "--iterations-per-epoch", "2", "--validations", "0", "--loader-workers", "0",
    "--optimizer", "sgd", "--checkpoint-minutes", "0.0001", "--device", "cpu", "--precision", "fp32",
    "--batch-size", "2",
]  # fmt: skip
ROUND = ["--fold", "0", "--select", "case", "--best-share", "1.0", "--device", "cpu", "--precision", "fp32"]

#: A process of a round; the second one of the first start dies after a step of FINE.
DYING = """
import os, signal, sys
from flaresemi.cli import semi_round
from flaresemi.training.trainer import Trainer

optimize = Trainer._optimize

def count(self, loss):
    optimize(self, loss)
    if (self.ranks.restarts, self.ranks.rank, self.task.plan.stage.value, self.iteration) == (0, 1, "FINE", 2):
        os.kill(os.getpid(), signal.SIGKILL)

Trainer._optimize = count
sys.exit(semi_round.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flaresemi.phantom import write_phantom_dataset

    folder = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom_dataset(folder, labeled=4, unlabeled=3, test=0, size=(32, 40, 40), seed=7)
    return folder


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with both stages of fold 0 trained for a moment."""
    workspace = tmp_path_factory.mktemp("start") / "workspace"
    words = plan_tiny(data, workspace, "two", "--folds", "2")
    for stage in ("COARSE", "FINE"):
        assert train.main([stage, "0", *words, *SUPERVISED]) == 0
        see_organs_everywhere(Workspace(workspace).model("0", Stage(stage)))
    return workspace


@pytest.fixture(scope="module")
def alone(data: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace after a round of one process."""
    workspace = tmp_path_factory.mktemp("alone") / "workspace"
    shutil.copytree(start, workspace)
    assert semi_round.main(["-d", str(data), "-w", str(workspace), *ROUND]) == 0
    return workspace


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): np.load(path) for path in sorted(folder.rglob("*.npy"))}


def same_round(alone: Path, together: Path) -> None:
    """Checks that what is decided is the same, and that trained weights are the same but for rounding."""
    one, other = (Workspace(root).round("0", 1) for root in (alone, together))
    for stage in Stage:
        labels = [arrays(folder.labels(stage)) for folder in (one, other)]
        assert labels[0].keys() == labels[1].keys() and labels[0]
        for name, array in labels[0].items():
            np.testing.assert_array_equal(labels[1][name], array)
    for name in ("observations", "vitals_before", "scores", "selection", "reliable_series"):
        assert getattr(one, name).read_bytes() == getattr(other, name).read_bytes(), name
    assert sorted(path.name for path in one.case_scores.iterdir()) == sorted(
        path.name for path in other.case_scores.iterdir()
    )
    for stage in Stage:
        models = [folder.model(stage) for folder in (one, other)]
        rows = [read_history(model.history) for model in models]
        assert [row["iteration"] for row in rows[0]] == [row["iteration"] for row in rows[1]] == [2, 4]
        for row, theirs in zip(*rows, strict=True):
            assert theirs["loss"] == pytest.approx(row["loss"], rel=1e-4)
        weights = [load_checkpoint(model.final).weights for model in models]
        for name, values in weights[0].items():
            np.testing.assert_allclose(weights[1][name].numpy(), values.numpy(), rtol=1e-3, atol=1e-5)
        summaries = [json.loads((model.validation / "summary.json").read_text()) for model in models]
        assert [case["case_id"] for case in summaries[0]["cases"]] == [
            case["case_id"] for case in summaries[1]["cases"]
        ]
        assert not list(models[1].validation.glob(".claimed"))
    states = [load_state(folder.state) for folder in (one, other)]
    assert all(state is not None and state.next_step is None for state in states)
    assert load_record(other.model(Stage.FINE).run_record, RunRecord).processes == 2


@pytest.mark.timeout(900)  # five processes import torch, at which a busy machine is slow
def test_a_round_of_two_processes_of_which_one_dies_is_that_of_one(
    data: Path, start: Path, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(start, tmp_path / "workspace")
    script = tmp_path / "dying.py"
    script.write_text(DYING, encoding="utf-8")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--monitor-interval", "0.1"]
    place = ["-d", str(data), "-w", str(tmp_path / "workspace")]
    done = launch(*torchrun, "--max-restarts", "1", str(script), *place, *ROUND)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    assert "another process of this launch has died" in done.stderr
    for step in ("label", "select", "train COARSE"):
        assert f"round 1: {step} is done" in done.stderr  # by the second start
    assert re.search(r"going on from iteration [12] of 4", done.stderr)
    assert done.stdout.count("report: ") == 1 and done.stdout.count("next: ") == 1  # one of them speaks
    same_round(alone, tmp_path / "workspace")


def test_what_cannot_be_divided_is_said_before_the_work(data: Path, start: Path, tmp_path: Path) -> None:
    shutil.copytree(start, tmp_path / "workspace")
    workspace = Workspace(tmp_path / "workspace")
    crew = Crew()
    crew.ranks = Ranks(0, 3)
    round = Round(
        workspace, load_dataset(data), "0", 1, RoundConfig(), Execution(device=torch.device("cpu"), crew=crew)
    )
    with pytest.raises(ConfigError, match="a batch of 2 does not divide among 3 processes") as refused:
        round.run()
    assert "which is the students', too" in str(refused.value)
    assert not workspace.round("0", 1).root.exists()
