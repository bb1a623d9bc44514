"""flaresemi_train: one stage, one fold."""

import argparse
import contextlib
import logging
import shlex
import sys
from collections.abc import Sequence

import torch

from flaresemi.cli.common import StoppedEarly, dataset_words, open_workspace, print_next, run
from flaresemi.cli.launching import launch_ranks, launched_at
from flaresemi.cli.output import require_printed
from flaresemi.cli.repeating import for_prediction, repeated
from flaresemi.cli.signals import StopSignals
from flaresemi.cli.training_options import training_parser
from flaresemi.cli.training_start import (
    clear,
    configuration,
    dataset_at_hand,
    is_complete,
    refuse_other_dataset,
    resumes,
    supervision,
    usable_dataset,
)
from flaresemi.compute.allocation import keep_freed_memory
from flaresemi.compute.device import limit_threads, select_device
from flaresemi.compute.distributed import Ranks, join_ranks, launched_ranks
from flaresemi.compute.sharding import joint_shard
from flaresemi.errors import ConfigError
from flaresemi.locking import working_alone
from flaresemi.plans import Stage
from flaresemi.rounds.folds import folds_and_reason
from flaresemi.training.distillation import caution
from flaresemi.training.profiling import profile
from flaresemi.training.task import TrainingTask, load_task
from flaresemi.training.tracking import refuse_without_tracker
from flaresemi.training.trainers import make_trainer
from flaresemi.training.validation import begin_validation, conclude_validation, validate_cases
from flaresemi.workspace import Workspace

logger = logging.getLogger("flaresemi.cli.train")  # also when run with python -m

_GO_ON = "the same command with --continue goes on"

#: Of one stage alone, or of this start.
_NOT_AGAIN = ("resume", "restart", "profile", "pseudo_labels", "init_from")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda options: _train(options, words), training_parser(), words)


def _train(options: argparse.Namespace, words: list[str]) -> None:
    if (options.gpus > 1 or options.max_restarts > 0) and launched_ranks() is None:
        module, restarts = "flaresemi.cli.train", options.max_restarts
        launch_ranks(module, words, gpus=options.gpus, max_restarts=restarts, go_on=_GO_ON)
        return
    workspace = open_workspace(options)
    stage = Stage(options.stage)
    device = select_device(options.device)
    limit_threads()
    if device.type == "cpu":
        keep_freed_memory()
    command = ("flaresemi_train", *words)
    stopping = StopSignals(options.time_limit, began=launched_at())
    with contextlib.ExitStack() as alone:  # to the end of the validation, when the ranks have parted
        with join_ranks(device.type) as ranks, stopping as signals:
            device = ranks.device(device)
            dataset = dataset_at_hand(options, workspace)
            task = load_task(workspace, stage, options.fold, dataset)
            if options.profile is not None:
                _profile(options, task, device, ranks)
                return
            if ranks.is_main:
                alone.enter_context(working_alone(workspace.lock("models", f"fold_{task.fold}", stage.value), command))
                refuse_other_dataset(options, task, workspace, dataset)
            ranks.barrier()  # files that look changed are read
            resume = resumes(task.folder, options, ranks)
            semi = supervision(options, task, workspace, ranks, resume=resume)
            config = configuration(task.folder, options, resume=resume)
            refuse_without_tracker(config.track)
            clear(task.folder, options, ranks)
            trainer = make_trainer(
                task, config, semi, device=device, ranks=ranks, command=command, stop_requested=signals.requested
            )
            if not (resume and is_complete(task.folder, config)) and not trainer.fit(resume=resume):
                raise StoppedEarly(
                    f"stopped and saved at iteration {trainer.iteration}; the same command with --continue goes on"
                )
            if ranks.any(signals.requested()) and task.validation and not options.no_validation:
                raise StoppedEarly("trained and saved; the same command with --continue validates on whole images")
            validates = bool(task.validation) and not options.no_validation
            coarse = workspace.model(task.fold, Stage.COARSE)
            if validates and ranks.is_main:
                begin_validation(trainer.task, coarse)
            ranks.barrier()
        if validates:  # each by itself: it waits for the others by their results, which may take longer than a barrier
            part, precision = joint_shard(None, ranks), config.precision
            dataset = usable_dataset(options, workspace)
            validate_cases(trainer.task, coarse, dataset, device=device, precision=precision, shard=part)
        if ranks.is_main:
            _finish(options, workspace, trainer.task)


def _profile(options: argparse.Namespace, task: TrainingTask, device: torch.device, ranks: Ranks) -> None:
    """Prints where the time of this training's steps goes; nothing is written, and so no pseudo-label prepared.

    Raises:
        ConfigError: pseudo-labels are named.
    """
    if options.pseudo_labels is not None:
        raise ConfigError(
            "--profile looks at real labels alone",
            fix="leave --pseudo-labels out: the networks cost the same",
        )
    config = configuration(task.folder, options, resume=options.resume and task.folder.run_record.exists())
    told = profile(make_trainer(task, config, device=device, ranks=ranks), options.profile).table()
    if ranks.is_main:
        print(told)
        require_printed()


def _finish(options: argparse.Namespace, workspace: Workspace, task: TrainingTask) -> None:
    stage, fold = task.plan.stage, task.fold
    if task.validation and not options.no_validation:
        print(conclude_validation(task, workspace.model(fold, Stage.COARSE), usable_dataset(options, workspace)))
        if task.taught_by is not None and (doubt := caution(task.taught_by, task.validation)):
            print(doubt)
    coarse, fine = (workspace.model(fold, each).final.is_file() for each in (Stage.COARSE, Stage.FINE))
    if stage is Stage.COARSE or (task.plan.region == "organs" and not coarse):
        words = repeated(training_parser(), options, without=_NOT_AGAIN)
        taught = [] if task.taught_by is None else ["--pseudo-labels", task.taught_by.folder]
        following = Stage.FINE if stage is Stage.COARSE else Stage.COARSE
        goes_on = ["--continue"] if following is Stage.FINE and fine else []
        print_next(["flaresemi_train", following.value, fold, *words, *taught, *goes_on])
        return
    place, how = dataset_words(options), for_prediction(options)
    predict = ["flaresemi_predict", "-i", "IMAGES", "-o", "PREDICTIONS", *place, "--fold", fold, *how]
    if folds := _folds_of_round(options, workspace, task):
        print_next(["flaresemi_semi_round", *place, "--fold", *folds, *how])
        print(f"or:   {shlex.join(predict)}", flush=True)
    else:
        print_next(predict)


def _folds_of_round(options: argparse.Namespace, workspace: Workspace, task: TrainingTask) -> tuple[str, ...]:
    """The folds of a round of self-training that may come next; none where nothing is unlabeled or judges it.

    A student of label maps from elsewhere has learned from the unlabeled cases already.
    """
    is_judged = bool(task.validation) and not options.no_validation
    if not is_judged or task.taught_by is not None or not usable_dataset(options, workspace).unlabeled:
        return ()
    usual, _ = folds_and_reason(workspace)
    return usual if task.fold in usual else (task.fold,)


if __name__ == "__main__":
    sys.exit(main())
