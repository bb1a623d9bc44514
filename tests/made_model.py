"""A workspace with a model of one organ in CT, which nobody trained."""

from pathlib import Path

import torch

from flaresemi.labels import Label, LabelSet
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint, save_checkpoint
from flaresemi.plans import IntensityPlan, NetworkPlan, Stage, StagePlan
from flaresemi.workspace import Workspace


def write_liver_model(workspace: Path, *, sd_hu: float = 300.0, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Writes FINE of fold 0, for the whole body at 3 mm; the liver has the value 7.

    Args:
        workspace: The folder.
        sd_hu: What one is after normalization, in HU.
        weights: Instead of random ones of a small U-Net.
    """
    network = NetworkPlan(
        block="plain",
        input_channels=1,
        output_channels=2,
        features=(4, 8),
        kernels=((3, 3, 3),) * 2,
        strides=((1, 1, 1), (2, 2, 2)),
        encoder_convs=(1, 1),
        decoder_convs=(1,),
    )
    plan = StagePlan(
        stage=Stage.FINE,
        spacing_zyx_mm=(3.0, 3.0, 3.0),
        patch_zyx=(16, 16, 16),
        batch_size=2,
        margin_mm=20.0,
        resampling="linear",
        region="body",
        network=network,
        reasons={},
        intensities=(IntensityPlan(scheme="ct", clip_low=-1000.0, clip_high=1000.0, mean=0.0, sd=sd_hu),),
    )
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
