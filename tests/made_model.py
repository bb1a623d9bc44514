"""A workspace with a model of one organ in CT, which nobody trained."""

from pathlib import Path

import torch

from flaresemi.labels import Label, LabelSet
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint, save_checkpoint
from flaresemi.plans import NetworkPlan, Stage
from flaresemi.workspace import Workspace
from tests.made_plans import ct_intensities, stage_plan, two_levels


class BrightIsLiver(torch.nn.Module):
    """The liver is where the sum of all channels exceeds a threshold."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.zeros(1))

    def forward(self, image_bczyx: torch.Tensor) -> torch.Tensor:
        bright = image_bczyx.sum(dim=1, keepdim=True) - self.threshold
        return torch.cat([torch.zeros_like(bright), bright], dim=1)


def write_bright_model(workspace: Path, *, threshold_hu: float = 150.0, channels: int = 1) -> None:
    """Writes weights of a `BrightIsLiver`, which must be built in the place of networks: see `bright_is_liver`."""
    write_liver_model(workspace, sd_hu=1.0, weights={"threshold": torch.tensor([threshold_hu])}, channels=channels)


def write_liver_model(
    workspace: Path, *, sd_hu: float = 300.0, weights: dict[str, torch.Tensor] | None = None, channels: int = 1
) -> None:
    """Writes FINE of fold 0, for the whole body at 3 mm; the liver has the value 7.

    Args:
        workspace: The folder.
        sd_hu: What one is after normalization, in HU.
        weights: Instead of random ones of a small U-Net.
        channels: Of the image, all of them CT.
    """
    network = two_levels(outputs=2, inputs=channels)
    plan = stage_plan(network, intensities=(ct_intensities(sd=sd_hu),) * channels)
    torch.manual_seed(0)
    checkpoint = Checkpoint(
        plan=plan,
        body="ct",
        channels=("CT",) * channels,
        labels=LabelSet(labels=(Label(name="liver", value=7),)),
        fold="0",
        iteration=1,
        total_iterations=1,
        weights=build_network(network).state_dict() if weights is None else weights,
    )
    save_checkpoint(Workspace(workspace).model("0", Stage.FINE).final, checkpoint)
