"""The record of a training: who made these weights, from what, with what."""

import dataclasses
import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from flaresemi import __version__
from flaresemi.training.config import Recipe, TrainingConfig
from flaresemi.training.task import Teaching, TrainingTask

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
        taught_by: The label maps from elsewhere among what was trained on; None without any.
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
    taught_by: Teaching | None = None
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
            taught_by=task.taught_by,
            versions=package_versions(),
            git_revision=git_revision(),
            started=now(),
            **facts,
        )


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
