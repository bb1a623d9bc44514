"""A training whose organs are regions learns them, also from cases that annotate some of them alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from flaresemi.errors import ConfigError
from flaresemi.io.case_store import CaseStore
from flaresemi.labels import Label, LabelSet
from flaresemi.training.config import TrainingConfig
from flaresemi.training.losses import DeepSupervisionLoss, SegmentationLoss
from flaresemi.training.monitoring import quick_validation
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer
from tests.training.conftest import write_case

BALLS = LabelSet(
    labels=(Label(name="balls", value=1, more_values=(2,)), Label(name="right ball", value=2)), mirror_pairs=None
)


def test_regions_are_learned_from_cases_that_annotate_one_or_both(
    tmp_path: Path, make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, one_thread: None
) -> None:
    store = CaseStore(tmp_path / "store")
    for number, supervised in enumerate([(1, 2), (1,), (2,), (1, 2)]):
        write_case(store, f"c{number}", number, supervised)
    task = make_task(labels=BALLS, store=store, training=("c0", "c1", "c2"), validation=("c3",))
    config = dataclasses.replace(quick_config, iterations=120, iterations_per_epoch=60, learning_rate=1e-2)
    trainer = Trainer(task, config, device=torch.device("cpu"))
    assert trainer.fit()
    dice = quick_validation(
        trainer.averaged_network, store, ("c3",), task.plan, BALLS, torch.device("cpu"), trainer.precision
    )
    assert dice.keys() == {"balls", "right ball"}
    assert dice["balls"] > 0.8 and dice["right ball"] > 0.6


class Unaware(Trainer):
    """A trainer that takes every index for an organ."""

    def build_loss(self) -> nn.Module:
        return DeepSupervisionLoss(SegmentationLoss())


def test_a_loss_that_does_not_know_of_regions_is_refused(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig
) -> None:
    Unaware(make_task("plain"), quick_config, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="does not know of regions"):
        Unaware(make_task("regions", labels=BALLS), quick_config, device=torch.device("cpu"))
