"""Networks that need no training: an organ is what is brighter than a threshold."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image
from flaresemi.labels import Label, LabelSet
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.plans import NetworkPlan, Stage, StagePlan
from tests.made_plans import ct_intensities, stage_plan, two_levels

NEVER = 1e6

LABELS = LabelSet(
    labels=(Label(name="right kidney", value=2), Label(name="left kidney", value=13), Label(name="liver", value=300)),
    mirror_pairs=(("right kidney", "left kidney"),),
)


class ThresholdNetwork(torch.nn.Module):
    """Logit of organ c: how far the first channel is above `threshold[c]`, times `gain[c]`; background: 0."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.deep_supervision = False
        self.register_buffer("threshold", torch.zeros(plan.output_channels))
        self.register_buffer("gain", torch.zeros(plan.output_channels))

    def forward(self, image_bczyx: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1, 1)
        return (image_bczyx[:, :1] - self.threshold.reshape(shape)) * self.gain.reshape(shape)


def make_plan(stage: Stage, *, spacing=(3.0, 3.0, 3.0), patch=(16, 16, 16), region=None, margin_mm=6.0) -> StagePlan:
    return stage_plan(
        two_levels(outputs=LABELS.channels),
        stage=stage,
        spacing_zyx_mm=spacing,
        patch_zyx=patch,
        margin_mm=margin_mm,
        region=region or ("body" if stage is Stage.COARSE else "organs"),
        intensities=(ct_intensities(sd=100.0),),
    )


def make_checkpoint(plan: StagePlan, thresholds=(NEVER, NEVER, NEVER), *, fold="0", **changes) -> Checkpoint:
    """A model whose organs are brighter than these thresholds (in 100 HU); later organs win where several are."""
    weights = {
        "threshold": torch.tensor([0.0, *thresholds]),
        "gain": torch.tensor([0.0, 1.0, 10.0, 100.0]),
    }
    checkpoint = Checkpoint(
        plan=plan,
        body="ct",
        channels=("CT",),
        labels=LABELS,
        fold=fold,
        iteration=10,
        total_iterations=10,
        weights=weights,
        version="test",
    )
    return dataclasses.replace(checkpoint, **changes)


def make_image(array_zyx: np.ndarray, spacing=(3.0, 3.0, 3.0)) -> Image:
    grid = SourceGrid(
        geometry=Geometry(shape_zyx=array_zyx.shape, spacing_zyx_mm=spacing),
        axes=(0, 1, 2),
        flips=(False, False, False),
    )
    return Image(array_czyx=array_zyx[None].astype(np.float32), source=grid)


def make_body(shape=(40, 48, 56)) -> np.ndarray:
    """Soft tissue of 0 HU from the first slice to the last, with air around it in the axial plane."""
    body = np.full(shape, -1000.0, np.float32)
    body[:, 3:-3, 3:-3] = 0.0
    return body


@dataclasses.dataclass(frozen=True)
class Fakes:
    """The makers above, for tests that cannot import this file."""

    labels: LabelSet = LABELS
    never: float = NEVER
    plan: Callable[..., StagePlan] = make_plan
    checkpoint: Callable[..., Checkpoint] = make_checkpoint
    image: Callable[..., Image] = make_image
    body: Callable[..., np.ndarray] = make_body


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """On volumes this small, threads wait for each other more than they work."""


@pytest.fixture
def fakes(monkeypatch) -> Fakes:
    """Makers of models and images; every network built meanwhile is a ThresholdNetwork."""
    monkeypatch.setattr("flaresemi.networks.engine.build_network", ThresholdNetwork)
    monkeypatch.setattr("flaresemi.networks.engine.openvino_is_installed", lambda: False)
    return Fakes()
