"""The record of a training: who made these weights, from what, with what."""

import dataclasses
import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from flaresemi import __version__
from flaresemi.errors import CheckpointError, ConfigError
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint
from flaresemi.records import load_record
from flaresemi.training.config import Recipe, TrainingConfig
from flaresemi.training.task import TrainingTask

SCHEMA_VERSION = 1
_PACKAGES = ("torch", "numpy", "batchgenerators", "SimpleITK", "scipy")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """All that decided a training, written before its first step.

    Attributes:
        command: The command line.
        trainer: Name of the trainer class.
        recipe: Length and optimizer, resolved; a time budget becomes a number of iterations here, once.
        training_cases: Names of the cases that were trained on.
        validation_cases: Names of the held-out cases.
        device: The processor or card.
        git_revision: Of flaresemi's source, where it is a checkout; with a trailing `+` when it had local changes.
        continued: When the run was resumed.
    """

    schema_version: int = SCHEMA_VERSION
    flaresemi: str = __version__
    command: tuple[str, ...]
    trainer: str
    stage: str
    fold: str
    config: TrainingConfig
    recipe: Recipe
    plan_hash: str
    training_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    device: str
    processes: int
    precision: str
    versions: dict[str, str]
    git_revision: str | None
    started: str
    continued: tuple[str, ...] = ()

    @classmethod
    def begin(cls, task: TrainingTask, config: TrainingConfig, recipe: Recipe, **facts: Any) -> "RunRecord":
        """The record of a training that starts now; `facts` are the fields that the trainer alone knows."""
        return cls(
            stage=task.plan.stage.value,
            fold=task.fold,
            config=config,
            recipe=recipe,
            plan_hash=task.plan.hash,
            validation_cases=task.validation,
            versions=package_versions(),
            git_revision=git_revision(),
            started=now(),
            **facts,
        )


def load_run(task: TrainingTask) -> RunRecord:
    """The record of the training that lies in the task's folder.

    Raises:
        ConfigError: there is none.
        CheckpointError: it was started with other plans.
    """
    record = load_record(task.folder.run_record, RunRecord, error=ConfigError)
    if record.plan_hash != task.plan.hash:
        raise CheckpointError(
            "this training was started with other plans", where=task.folder.run_record,
            fix="put the plans back, or start it anew with --restart",
        )  # fmt: skip
    return record


def load_latest(task: TrainingTask) -> tuple[Checkpoint, dict]:
    """The latest checkpoint of the training that lies in the task's folder, and the state in it.

    Raises:
        CheckpointError: it is missing, damaged, of other plans, or not made to go on from.
    """
    checkpoint = load_checkpoint(task.folder.latest, with_training_state=True)
    if checkpoint.training_state is None or checkpoint.plan.hash != task.plan.hash:
        raise CheckpointError(
            "this checkpoint cannot be continued: it holds no training state or was made with other plans",
            where=task.folder.latest, fix="start the training anew with --restart",
        )  # fmt: skip
    return checkpoint, checkpoint.training_state


def now() -> str:
    """The local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def git_revision() -> str | None:
    """Revision of the checkout that this package runs from; None when it is installed without one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True, encoding="utf-8", timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() or None
