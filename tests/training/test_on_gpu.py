"""A training on a GPU beside the same one on a CPU."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from flaresemi.inference.predictor import StagePredictor
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.networks.engine import Engine
from flaresemi.training.config import TrainingConfig
from flaresemi.training.history import read_history
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_has_the_losses_of_a_cpu_and_its_model_predicts_on_both(
    make_task: Callable[..., TrainingTask], quick_config: TrainingConfig, precision: str
) -> None:
    shorter = dataclasses.replace(quick_config, iterations=6, iterations_per_epoch=2, validations=0)
    config = dataclasses.replace(shorter, augmentation_device="cpu")  # which draws other numbers than a GPU
    here, there = make_task("here"), make_task("there")
    assert Trainer(here, config, device=CPU).fit()
    assert Trainer(there, dataclasses.replace(config, precision=precision), device=GPU).fit()
    losses = [[float(row["loss"]) for row in read_history(task.folder.history)] for task in (here, there)]  # type: ignore[arg-type]
    assert len(losses[1]) == 3
    # In fp16 first steps may be left out, until the scale of the gradients fits; all of them change the loss by 8 %.
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.1 if precision == "fp16" else 0.05)
    checkpoint = load_checkpoint(there.folder.final)
    image = np.random.default_rng(0).normal(size=(1, 20, 22, 24)).astype(np.float32)
    expected, found = (
        StagePredictor([checkpoint], engine=Engine(place, "fp32", "torch")).logits(image)[0].cpu()
        for place in (CPU, GPU)
    )
    assert (found - expected).norm() < 0.02 * expected.norm()
