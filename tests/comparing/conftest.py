"""Two workspaces of one dataset whose trained models can be compared, in a second."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flaresemi.cli import find_best, train
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.workspace import Workspace
from tests.made_workspace import plan_tiny

QUICK = ["--iterations", "1", "--iterations-per-epoch", "1", "--validations", "0", "--loader-workers", "0"]


FIXED = ("--engine", "torch", "--precision", "fp32", "--quiet")


@pytest.fixture(scope="session")
def trained_pair(phantom_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with workspaces `one` and `two`, with one and two stages, folds 0 and 1 of three trained for a step.

    `best` holds their comparison. The networks see organs everywhere: the liver in `one`, the right kidney in `two`.
    """
    root = tmp_path_factory.mktemp("pair")
    for name in ("one", "two"):
        words = plan_tiny(phantom_dataset, root / name, stages=name)
        for fold in ("0", "1"):
            for stage in ("COARSE", "FINE") if name == "two" else ("FINE",):
                assert train.main([stage, fold, *words, *QUICK, "--no-validation", "--device", "cpu", "--quiet"]) == 0
                sees(Workspace(root / name), fold, Stage(stage), organ=1 if name == "one" else 2)
    models = [str(root / name) for name in ("one", "two")]
    assert find_best.main(["-d", str(phantom_dataset), "-m", *models, "-o", str(root / "best"), *FIXED]) == 0
    return root


def sees(workspace: Workspace, fold: str, stage: Stage, *, organ: int, logit: float = 8.0) -> None:
    """Makes the final network of a training see one organ nearly everywhere."""
    path = workspace.model(fold, stage).final
    checkpoint = load_checkpoint(path)
    bias = torch.zeros(14)
    bias[organ] = logit
    weights = {**checkpoint.weights, "heads.0.bias": bias}
    save_checkpoint(path, dataclasses.replace(checkpoint, weights=weights, keep_largest=()))


@pytest.fixture
def pair(trained_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantom_dataset: Path) -> Path:
    """A copy of it beside a link to the dataset, `data`; the current folder."""
    shutil.copytree(trained_pair, tmp_path / "pair")
    (tmp_path / "pair" / "data").symlink_to(phantom_dataset)
    monkeypatch.chdir(tmp_path / "pair")
    return tmp_path / "pair"


@pytest.fixture
def find(pair: Path) -> Callable[..., int]:
    """Runs the command on the pair."""

    def run(*words: str, models: tuple[str, ...] = ("one", "two")) -> int:
        return find_best.main(["-d", "data", "-m", *models, "-o", "best", *FIXED, *words])

    return run
