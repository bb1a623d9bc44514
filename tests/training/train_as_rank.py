"""One rank of a two-process training, started by test_trainer.py through torchrun."""

import contextlib
import dataclasses
import sys
from pathlib import Path

import torch

from flaresemi.compute.distributed import join_ranks
from flaresemi.io.case_store import CaseStore
from flaresemi.training.config import TrainingConfig
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer
from flaresemi.workspace import ModelFolder
from tests.training.conftest import LABELS, stage_plan

with join_ranks("cpu") as ranks:
    task = TrainingTask(
        plan=stage_plan(),
        body="ct",
        labels=LABELS,
        channels=("CT",),
        fold="0",
        store=CaseStore(Path(sys.argv[1])),
        training=("case_0", "case_1"),
        validation=("case_2",),
        folder=ModelFolder(Path(sys.argv[2]) / "together"),
    )
    config = TrainingConfig(
        iterations=6, iterations_per_epoch=2, loader_workers=0, precision="fp32", validations=0, learning_rate=3e-3
    )
    device = torch.device("cpu")
    Trainer(task, config, device=device, ranks=ranks).fit()
    parts = dataclasses.replace(task, folder=ModelFolder(Path(sys.argv[2]) / "parts"))
    asked = iter([False, False, True])  # in the middle of an epoch
    Trainer(parts, config, device=device, ranks=ranks, stop_requested=lambda: next(asked)).fit()
    ranks.barrier()  # the main one has saved
    Trainer(parts, config, device=device, ranks=ranks).fit(resume=True)

    class Timed(Trainer):
        """Steps take a second, later two; on the other rank's clock a hundred."""

        def build_stopwatch(self):
            self.seconds = 0.0
            return contextlib.nullcontext(lambda: self.seconds)

        def training_step(self, network, batch):
            self.seconds += (1.0 if self.seconds < 10 else 2.0) * (1 if ranks.is_main else 100)
            return super().training_step(network, batch)

    budgeted = dataclasses.replace(task, folder=ModelFolder(Path(sys.argv[2]) / "budgeted"))
    config = dataclasses.replace(config, iterations=None, iterations_per_epoch=50, time_budget_seconds=30.0)
    Timed(budgeted, config, device=device, ranks=ranks, stop_requested=lambda: next(asked, False)).fit()
