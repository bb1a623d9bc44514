"""A tiny dataset with fold 0 trained, for rounds of self-training."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from flaresemi.cli import train
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.workspace import ModelFolder, Workspace
from tests.made_workspace import plan_tiny

QUICK = [
    "--iterations", "3", "--iterations-per-epoch", "3", "--validations", "0", "--loader-workers", "0",
    "--checkpoint-minutes", "0.0001",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(phantom_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with fold 0 trained for three steps, one stage."""
    workspace = tmp_path_factory.mktemp("round") / "workspace"
    words = plan_tiny(phantom_dataset, workspace, "one")
    assert train.main(["FINE", "0", *words, *QUICK, "--device", "cpu"]) == 0
    see_organs_everywhere(Workspace(workspace).model("0", Stage.FINE))
    return workspace


def see_organs_everywhere(model: ModelFolder, bias: Sequence[float] = (0.0, 50.0, *[0.0] * 12)) -> None:
    """Untrained networks see an organ nowhere; these weights see one everywhere: so there is something to score.

    They pass for those that were validated.
    """
    before = load_checkpoint(model.final).weights_hash
    for path in (model.final, model.snapshot(36), model.snapshot(66)):
        checkpoint = load_checkpoint(path)
        weights = dict(checkpoint.weights)
        weights["heads.0.bias"] = torch.tensor(bias)
        save_checkpoint(path, dataclasses.replace(checkpoint, weights=weights))
    after = load_checkpoint(model.final).weights_hash
    for marker in model.root.parent.glob("*/validation/made_with.json"):
        marker.write_text(marker.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
