"""A workspace with a model of one organ in CT, which nobody trained."""

from pathlib import Path

import torch

from flaresemi.labels import Label, LabelSet
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.workspace import Workspace
from tests.made_plans import ct_intensities, stage_plan, two_levels


def write_liver_model(workspace: Path, *, sd_hu: float = 300.0, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Writes FINE of fold 0, for the whole body at 3 mm; the liver has the value 7.

    Args:
        workspace: The folder.
        sd_hu: What one is after normalization, in HU.
        weights: Instead of random ones of a small U-Net.
    """
    network = two_levels(outputs=2)
    plan = stage_plan(network, intensities=(ct_intensities(sd=sd_hu),))
    torch.manual_seed(0)
    checkpoint = Checkpoint(
        plan=plan,
        body="ct",
        channels=("CT",),
        labels=LabelSet(labels=(Label(name="liver", value=7),)),
        fold="0",
        iteration=1,
        total_iterations=1,
        weights=build_network(network).state_dict() if weights is None else weights,
    )
    save_checkpoint(Workspace(workspace).model("0", Stage.FINE).final, checkpoint)
