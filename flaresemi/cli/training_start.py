"""The start of flaresemi_train: a new training or a resumed one, its configuration, its pseudo-labels."""

import argparse
import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from flaresemi.cli.common import flag_of
from flaresemi.cli.mixing_options import given_mixing
from flaresemi.compute.distributed import Ranks
from flaresemi.dataset import Dataset, load_dataset
from flaresemi.errors import CheckpointError, ConfigError, DatasetError
from flaresemi.files import clear_folder
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.planning.decisions import usable_cases
from flaresemi.planning.preparation import refuse_changed
from flaresemi.plans import load_plans
from flaresemi.training.config import MAY_CHANGE, TrainingConfig
from flaresemi.training.distillation import begin_teaching, caution, prepare_labels
from flaresemi.training.resuming import has_state, load_state, refuse_fewer
from flaresemi.training.runs import recorded_config, recorded_teaching, refuse_foreign_files
from flaresemi.training.semi_supervised import SemiSupervision
from flaresemi.training.task import TrainingTask
from flaresemi.unfinished import remove_leftovers
from flaresemi.workspace import ModelFolder, Workspace

logger = logging.getLogger("flaresemi.cli.train")

_CONFIG_FIELDS = {field.name for field in dataclasses.fields(TrainingConfig)}


def resumes(folder: ModelFolder, options: argparse.Namespace, ranks: Ranks) -> bool:
    """Whether to resume the training in the folder.

    Processes that torchrun has started again after one of them died go on with what they did before, whatever the
    options wanted of an older training. Restarts are counted node by node, so that the ranks have to ask each other.

    Raises:
        ConfigError: there is one, and nothing says what to do with it.
    """
    if ranks.any(ranks.restarts > 0):
        options.resume, options.restart = True, False
    exists = has_state(folder) or os.path.lexists(folder.final)
    if exists and not options.resume and not options.restart:
        raise ConfigError(
            "there is a training in this folder already",
            where=folder.root,
            fix="--continue goes on with it, --restart discards it and begins anew",
        )
    if not exists and not options.restart:
        refuse_foreign_files(folder)
    return bool(exists and options.resume)


def supervision(
    options: argparse.Namespace, task: TrainingTask, workspace: Workspace, ranks: Ranks, *, resume: bool
) -> SemiSupervision | None:
    """The supervision by external labels, those named or those that a resumed training began with; None: by none.

    Raises:
        FlaresemiError: they cannot be used, or a resumed training began with others.
    """
    folder: Path | None = options.pseudo_labels
    teaching = recorded_teaching(task) if resume else None
    if resume and folder is not None and (teaching is None or teaching.folder != str(folder.resolve())):
        began_with = "without pseudo-labels" if teaching is None else f"with the pseudo-labels of {teaching.folder}"
        raise ConfigError(
            f"this training began {began_with}",
            where=task.folder.root,
            fix="leave --pseudo-labels out to go on as it began; --restart begins anew",
        )
    if folder is not None and teaching is None:
        teaching = begin_teaching(folder, task, usable_dataset(options, workspace))
    choices = given_mixing(options)
    if teaching is None:
        if choices:
            raise ConfigError(f"{', '.join(map(flag_of, choices))} would do nothing without --pseudo-labels")
        return None
    if resume:
        refuse_other_choices(task.folder, teaching.mixing, choices)
    try:
        teaching = dataclasses.replace(teaching, mixing=dataclasses.replace(teaching.mixing, **choices))
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    if ranks.is_main and (doubt := caution(teaching, task.validation)):
        logger.warning("%s", doubt)
    return prepare_labels(teaching, task, usable_dataset(options, workspace), workspace, ranks=ranks)


def refuse_other_dataset(
    options: argparse.Namespace, task: TrainingTask, workspace: Workspace, dataset: Dataset | None
) -> None:
    """Checks that the cases of a training still are what they were prepared from, where the dataset is at hand.

    Args:
        dataset: See `dataset_at_hand`.

    Raises:
        FlaresemiError: they are not, or the dataset is not there and will be needed for the validation.
    """
    try:
        dataset = dataset or usable_dataset(options, workspace)  # which says what is wrong
    except DatasetError as problem:
        if task.validation and not options.no_validation:
            raise
        logger.info("whether the dataset has changed since it was prepared is not known: %s", problem.what)
        return
    cases = [dataset.case(case_id) for case_id in (*task.training, *task.validation)]
    refuse_changed(dataset, cases, load_plans(workspace.plans), workspace)


def usable_dataset(options: argparse.Namespace, workspace: Workspace) -> Dataset:
    """The dataset without the cases that were left out."""
    return usable_cases(load_dataset(options.dataset), workspace)


def dataset_at_hand(options: argparse.Namespace, workspace: Workspace) -> Dataset | None:
    """The same; None where it is not there: what is prepared can be trained on without it."""
    try:
        return usable_dataset(options, workspace)
    except DatasetError:
        return None


def configuration(folder: ModelFolder, options: argparse.Namespace, *, resume: bool) -> TrainingConfig:
    """The configuration to train with: what is given, on top of the defaults or of what the training began with.

    Raises:
        ConfigError: the options do not fit together.
    """
    given = {name: value for name, value in vars(options).items() if name in _CONFIG_FIELDS}
    if given.keys() & {"epochs", "iterations", "time_budget_seconds"}:
        given = {"epochs": None, "iterations": None, "time_budget_seconds": None} | given
    begun = recorded_config(folder) if resume else TrainingConfig()
    if resume:
        refuse_other_choices(folder, begun, {name: given[name] for name in given if name not in MAY_CHANGE})
    try:
        return dataclasses.replace(begun, **given)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None


def refuse_other_choices(folder: ModelFolder, begun: object, given: Mapping[str, object]) -> None:
    """Checks that the options of a resumed training are those that it began with.

    Args:
        begun: The record that has these fields.
        given: The options that were given, by field.

    Raises:
        ConfigError: one is another.
    """
    for name, value in given.items():
        if getattr(begun, name) != value:
            told = "its default" if getattr(begun, name) is None else str(getattr(begun, name))
            raise ConfigError(
                f"{flag_of(name)} {value}: this training began with {told}, and its steps so far were made with that",
                where=folder.root,
                fix="leave the option out to go on as it began; --restart begins anew",
            )


def clear(folder: ModelFolder, options: argparse.Namespace, ranks: Ranks) -> None:
    """Discards what `--restart` says, and what killed writers left behind; no rank goes on before."""
    if ranks.is_main:
        if options.restart:
            if folder.root.parent.is_symlink():
                clear_folder(folder.root.parent)  # which refuses it
            clear_folder(folder.root, folder.NAMES)
        for place in (folder.root, folder.validation):
            remove_leftovers(place)
    ranks.barrier()


def is_complete(folder: ModelFolder, config: TrainingConfig) -> bool:
    """Whether the training in the folder is as long as it shall be, and its final weights are whole.

    Raises:
        CheckpointError: it is longer.
    """
    try:
        latest = load_checkpoint(folder.final)
    except CheckpointError:  # not there yet, or damaged: it is written from the last state
        return False
    try:
        latest = load_state(folder)
    except CheckpointError as problem:
        logger.warning("%s", problem)
    wanted = config.fixed_iterations or latest.total_iterations
    refuse_fewer(latest, wanted, folder)
    return latest.iteration == wanted
