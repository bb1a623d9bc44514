"""The record of a training: who made these weights, from what, with what."""

import dataclasses
import datetime
import importlib.metadata
import logging
import platform
import subprocess
from pathlib import Path
from typing import Any

from flaresemi import __version__
from flaresemi.errors import CheckpointError, ConfigError
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.ranges import AtLeastOne
from flaresemi.records import from_plain, load_json, load_record, parse_json, save_record
from flaresemi.training.config import Recipe, TrainingConfig
from flaresemi.training.resuming import load_state
from flaresemi.training.schedule import Decision, Schedule
from flaresemi.training.task import Teaching, TrainingTask
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_PACKAGES = ("torch", "numpy", "batchgenerators", "SimpleITK", "scipy")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """All that decided a training, written before its first step.

    Attributes:
        command: The command line.
        trainer: Name of the trainer class.
        recipe: Length and optimizer, resolved; with a time budget, the length of the schedule.
        decisions: With a time budget: when the training was given another number of steps, and which.
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
    processes: AtLeastOne
    precision: str
    versions: dict[str, str]
    git_revision: str | None
    started: str
    taught_by: Teaching | None = None
    continued: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()

    @property
    def schedule(self) -> Schedule:
        """The schedule as it was decided last."""
        return Schedule(self.recipe, self.decisions)

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


def recorded_run(task: TrainingTask) -> RunRecord | None:
    """The record of a training that goes on; None where the file is lost, so that it has to be written anew.

    Raises:
        ConfigError: it was edited, and holds what is not known or not allowed.
        CheckpointError: the training was started with other plans.
    """
    path = task.folder.run_record
    if _is_lost(path):
        logger.warning("%s is lost or damaged; it is written anew", path)
        return None
    record = load_record(path, RunRecord, error=ConfigError)
    if record.plan_hash != task.plan.hash:
        raise CheckpointError(
            "this training was started with other plans", where=path,
            fix="put the plans back, or start it anew with --restart",
        )  # fmt: skip
    return record


def record_decisions(task: TrainingTask, decisions: tuple[Decision, ...]) -> None:
    """Keeps what was decided while the training goes on, before it has an effect."""
    path = task.folder.run_record
    save_record(path, dataclasses.replace(load_record(path, RunRecord, error=ConfigError), decisions=decisions))


def recorded_config(folder: ModelFolder) -> TrainingConfig:
    """The user's choices for a training that goes on: from its record, or from its state where that is lost.

    Raises:
        FlaresemiError: the record was edited and is wrong, or there is no whole state.
    """
    if not _is_lost(folder.run_record):
        return load_record(folder.run_record, RunRecord, error=ConfigError).config
    return from_plain(TrainingConfig, _saved(folder, "config"), source=folder.latest, error=CheckpointError)


def recorded_teaching(task: TrainingTask) -> Teaching | None:
    """The label maps from elsewhere that a training goes on with: from its record, or from its state.

    Raises:
        FlaresemiError: the record was edited and is wrong, or there is no whole state.
    """
    record = recorded_run(task)
    if record is not None:
        return record.taught_by
    saved, source = _saved(task.folder, "taught_by"), task.folder.latest
    return None if saved is None else from_plain(Teaching, saved, source=source, error=CheckpointError)


def _saved(folder: ModelFolder, name: str) -> Any:
    """What a trainer's state says of how it was begun."""
    state = load_state(folder, with_training_state=True).training_state or {}
    try:
        return parse_json(str(state.get(name)))
    except ValueError as problem:
        raise CheckpointError(f"'{name}' in it cannot be read: {problem}", where=folder.latest) from None


def load_latest(task: TrainingTask) -> tuple[Checkpoint, dict]:
    """The newest whole checkpoint of the training that lies in the task's folder, and the state in it.

    Raises:
        CheckpointError: it is missing, damaged, of other plans, or not made to go on from.
    """
    checkpoint = load_state(task.folder, with_training_state=True)
    if checkpoint.training_state is None or checkpoint.plan.hash != task.plan.hash:
        raise CheckpointError(
            "this checkpoint cannot be continued: it holds no training state or was made with other plans",
            where=task.folder.latest, fix="start the training anew with --restart",
        )  # fmt: skip
    return checkpoint, checkpoint.training_state


def _is_lost(path: Path) -> bool:
    try:
        load_json(path, error=ConfigError)
    except ConfigError:
        return True
    return False


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
