"""The record of a training: who made these weights, from what, with what."""

import dataclasses
import datetime
import importlib.metadata
import json
import logging
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from flaresemi import __version__
from flaresemi.errors import CheckpointError, ConfigError, listed
from flaresemi.extensions import AUGMENTATIONS, NETWORKS, Package, declared_by, package_of
from flaresemi.files import entries
from flaresemi.networks.building import ARCHITECTURES
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.ranges import AtLeastOne, IterationsSoFar
from flaresemi.records import from_plain, holds_record, load_json, load_record, parse_json, save_record, to_plain
from flaresemi.training.augmentation import STRENGTHS
from flaresemi.training.config import Recipe, TrainingConfig, lengthened
from flaresemi.training.resuming import load_state, refuse_fewer
from flaresemi.training.schedule import Decision, Schedule, marks
from flaresemi.training.snapshots import renew_snapshots
from flaresemi.training.starting import Start
from flaresemi.training.task import Origin, Teaching, TrainingTask, other_fold
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_PACKAGES = ("torch", "numpy", "batchgenerators", "SimpleITK", "scipy")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunChange:
    """A value of the record that changed when a training was resumed.

    Attributes:
        iteration: Steps that were done before.
        at: When.
        name: Of a field of the record or of its config.
        before: Its value until then, as text.
        after: Its value from then on.
    """

    iteration: IterationsSoFar
    at: str
    name: str
    before: str
    after: str


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
        made_from: What it stands on; None in records of older versions.
        changes: What of all this became another when it was resumed, and when; the fields have the newest values.
        started_from: What of another model it began with; None where that is nothing, or all of it.
        packages: The package of each part that is not flaresemi's own: `trainer`, `network`, `augmentation NAME`.
        augmented_on: Where patches are augmented: by the loader's processes, or where the network is.
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
    made_from: Origin | None = None
    changes: tuple[RunChange, ...] = ()
    packages: dict[str, Package] = dataclasses.field(default_factory=dict)
    started_from: Start | None = None
    augmented_on: Literal["cpu", "device"] = "cpu"

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
            made_from=task.made_from,
            versions=package_versions(),
            git_revision=git_revision(),
            started=now(),
            **facts,
        )


def gone_on(
    task: TrainingTask,
    record: RunRecord,
    config: TrainingConfig,
    total: int,
    *,
    cases: Sequence[str],
    writes: bool,
    **facts: Any,
) -> RunRecord:
    """The record of a training that goes on: what has become another is noted with the step from which on it counts.

    Another length leaves the optimizer and its numbers as they are, and moves the marks of the snapshots.

    Args:
        total: Steps in all.
        cases: Names of all cases that it draws from.
        writes: Of several ranks, this one writes files.
        facts: Fields that the trainer alone knows.

    Raises:
        CheckpointError: there is no whole state to go on from, it began with other cases, or it has more steps already.
        ConfigError: another package is to go on with it.
    """
    _compare_packages(record.packages, facts["packages"], task.folder.run_record)
    differing = set(record.training_cases) ^ set(cases)
    if differing:
        raise CheckpointError(
            f"{len(differing)} case(s) are trained on now or were before, not both: {listed(sorted(differing))}",
            where=task.folder.run_record,
            fix="put the cases back as they were, or train this anew with --restart",
        )
    recipe = lengthened(record.recipe, config, total)
    facts |= {"versions": package_versions(), "flaresemi": __version__}
    before, after = _flat(record), _flat(dataclasses.replace(record, config=config, recipe=recipe, **facts))
    changed = [name for name in after if before[name] != after[name]]
    changes = record.changes
    if changed:
        state = load_state(task.folder)
        refuse_fewer(state, config.fixed_iterations, task.folder)
        changes += tuple(
            RunChange(iteration=state.iteration, at=now(), name=name, before=before[name], after=after[name])
            for name in changed
        )
        if writes and record.recipe.total_iterations != total:
            renew_snapshots(task.folder, state, marks(total, config.snapshot_percents))
    return dataclasses.replace(
        record,
        config=config,
        recipe=recipe,
        taught_by=task.taught_by,
        changes=changes,
        continued=(*record.continued, now()),
        made_from=task.made_from or record.made_from,
        **facts,
    )


def used_packages(trainer: type, architecture: str, strengths: Iterable[str]) -> dict[str, Package]:
    """Who holds the parts of a training that are not flaresemi's own.

    Args:
        trainer: The class that trains.
        architecture: Of the network.
        strengths: Names of all augmentation that is used.
    """
    found = {f"augmentation {name}": declared_by(AUGMENTATIONS, name) for name in {*strengths} - {"none", *STRENGTHS}}
    if architecture not in ARCHITECTURES:
        found["network"] = declared_by(NETWORKS, architecture)
    if trainer.__module__.partition(".")[0] != "flaresemi":
        found["trainer"] = package_of(trainer.__module__)
    return {part: package for part, package in found.items() if package is not None}


def _compare_packages(before: Mapping[str, Package], now: Mapping[str, Package], where: Path) -> None:
    """Checks that the packages of a training that goes on are those that it began with; says it where versions differ.

    Raises:
        ConfigError: another package holds a part now.
    """
    for part in sorted(before.keys() | now.keys()):
        was, is_now = before.get(part), now.get(part)
        if (was and was.package) != (is_now and is_now.package):
            raise ConfigError(
                f"the {part} of this training comes from {is_now or 'flaresemi'}; it began with {was or 'flaresemi'}",
                where=where,
                fix="install that package again, or begin anew with --restart",
            )
        if was != is_now:
            logger.warning("the %s of this training comes from %s; it began with %s", part, is_now, was)


def _flat(record: RunRecord) -> dict[str, str]:
    """The values that may change when a training is resumed, by name, as text."""
    whole = {
        name: getattr(record, name)
        for name in ("flaresemi", "versions", "device", "processes", "precision", "packages", "augmented_on")
    }
    parts = {f"{part}.{name}": value for part in ("config", "recipe")
             for name, value in to_plain(getattr(record, part)).items()}  # type: ignore[attr-defined] # fmt: skip
    return {name: json.dumps(to_plain(value), sort_keys=True) for name, value in (whole | parts).items()}


def recorded_run(task: TrainingTask) -> RunRecord | None:
    """The record of a training that goes on; None where the file is lost, so that it has to be written anew.

    Raises:
        ConfigError: it was edited, and holds what is not known or not allowed.
        CheckpointError: the training was started with other plans.
    """
    path = task.folder.run_record
    refuse_other_origin(task)
    if _is_lost(path):
        logger.warning("%s is lost or damaged; it is written anew", path)
        return None
    record = load_record(path, RunRecord, error=ConfigError)
    if record.plan_hash != task.plan.hash:
        raise CheckpointError(
            "this training was started with other plans",
            where=path,
            fix="put the plans back, or start it anew with --restart",
        )
    return record


def refuse_foreign_files(folder: ModelFolder) -> None:
    """Checks that a training which begins anew replaces nothing but what a killed start left.

    Raises:
        ConfigError: files are there that no training of ours, which writes its record first, can have left.
    """
    written = [path for path in entries(folder.root, ModelFolder.NAMES) if path != folder.logs]
    if written and not holds_record(folder.run_record, RunRecord):
        raise ConfigError(
            f"there are files that flaresemi did not write in this folder, or no record of the training that did: "
            f"{listed([path.name for path in written])}",
            where=folder.root,
            fix="see what they are, and move them away; --restart removes them",
        )


def record_decisions(task: TrainingTask, decisions: tuple[Decision, ...]) -> None:
    """Keeps what was decided while the training goes on, before it has an effect."""
    path = task.folder.run_record
    save_record(path, dataclasses.replace(load_record(path, RunRecord, error=ConfigError), decisions=decisions))


def refuse_other_origin(task: TrainingTask, *, goes_on: bool = True) -> None:
    """Checks that the training in the task's folder, where there is one, stands on what the task does.

    Args:
        goes_on: See `Origin.refuse_other`.

    Raises:
        CheckpointError: it does not, so that nothing that it trained can be gone on with, or judged by this fold.
        ConfigError: its record was edited, and holds what is not known or not allowed.
    """
    path = task.folder.run_record
    if not path.exists() or _is_lost(path):
        begun = _saved_origin(task.folder)
        if begun is not None and task.made_from is not None:
            begun.refuse_other(task.made_from, where=task.folder.root, goes_on=goes_on)
        return
    record = load_record(path, RunRecord, error=ConfigError)
    if record.made_from is not None and task.made_from is not None:
        record.made_from.refuse_other(task.made_from, where=path, goes_on=goes_on)
    seen = sorted(set(record.training_cases) & set(task.validation))
    same = record.validation_cases == task.validation and set(task.training) <= set(record.training_cases)
    if seen or (goes_on and not same):
        raise other_fold(seen, path)


def _saved_origin(folder: ModelFolder) -> Origin | None:
    """The origin that the newest state records; None where there is no state, or it records none."""
    try:
        state = load_state(folder, with_training_state=True).training_state or {}
    except CheckpointError:
        return None
    if "made_from" not in state:
        return None
    saved = _saved(folder, "made_from")
    return None if saved is None else from_plain(Origin, saved, source=folder.latest, error=CheckpointError)


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
    """A value that a trainer's state keeps of its beginning."""
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
            where=task.folder.latest,
            fix="start the training anew with --restart",
        )
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
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() or None
