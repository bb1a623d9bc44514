"""flaresemi_train: one stage, one fold."""

import argparse
import contextlib
import dataclasses
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from flaresemi.cli.common import (
    StoppedEarly,
    StrictParser,
    add_dataset_options,
    dataset_words,
    open_workspace,
    print_next,
    run,
)
from flaresemi.cli.signals import StopSignals
from flaresemi.compute.allocation import keep_freed_memory
from flaresemi.compute.device import select_device
from flaresemi.compute.distributed import Ranks, join_ranks, launched_ranks
from flaresemi.compute.precision import PrecisionName
from flaresemi.dataset import Dataset, load_dataset
from flaresemi.errors import CheckpointError, ConfigError
from flaresemi.files import remove_leftovers
from flaresemi.locking import working_alone
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.planning.decisions import usable_cases
from flaresemi.plans import Stage
from flaresemi.records import closest
from flaresemi.training.config import TrainingConfig
from flaresemi.training.distillation import begin_teaching, caution, prepare_labels
from flaresemi.training.resuming import has_state, load_state
from flaresemi.training.runs import recorded_config, recorded_run
from flaresemi.training.semi_supervised import SemiSupervisedTrainer, SemiSupervision
from flaresemi.training.task import TrainingTask, load_task
from flaresemi.training.trainer import Trainer
from flaresemi.training.validation import validate
from flaresemi.workspace import ModelFolder, Workspace

logger = logging.getLogger("flaresemi.cli.train")  # also when run with python -m

_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile(rf"(?:(?P<hours>{_NUMBER})h)?(?:(?P<minutes>{_NUMBER})m)?(?:(?P<seconds>{_NUMBER})s)?")
_CONFIG_FIELDS = {field.name for field in dataclasses.fields(TrainingConfig)}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda options: _train(options, words), _parser(), words)


def _train(options: argparse.Namespace, words: list[str]) -> None:
    if (options.gpus > 1 or options.max_restarts > 0) and launched_ranks() is None:
        _launch(options, words)
        return
    workspace = open_workspace(options)
    stage = Stage(options.stage)
    device = select_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    command = ("flaresemi_train", *words)
    with contextlib.ExitStack() as alone:  # to the end of the validation, when the ranks have parted
        with join_ranks(device.type) as ranks, StopSignals() as signals:
            if ranks.world_size > 1 and device.type == "cuda":
                device = torch.device("cuda", ranks.local_rank)
            task = load_task(workspace, stage, options.fold)
            if ranks.is_main:
                alone.enter_context(working_alone(workspace.lock("models", f"fold_{task.fold}", stage.value), command))
            resume = _resumes(task.folder, options, ranks, device)
            semi = _supervision(options, task, workspace, ranks, resume=resume)
            config = _config(task.folder, options, ranks, resume=resume)
            settings: dict[str, Any] = {
                "device": device, "ranks": ranks, "command": command, "stop_requested": signals.requested,
            }  # fmt: skip
            if semi is None:
                trainer = Trainer(task, config, **settings)
            else:
                trainer = SemiSupervisedTrainer(task, config, semi, **settings)
            if not _is_complete(task.folder, config, resume) and not trainer.fit(resume=resume):
                raise StoppedEarly(f"stopped and saved at iteration {trainer.iteration}; --continue goes on from there")
        if ranks.is_main:
            _finish(options, workspace, trainer.task, device, config.precision)


def _finish(
    options: argparse.Namespace,
    workspace: Workspace,
    task: TrainingTask,
    device: torch.device,
    precision: PrecisionName,
) -> None:
    stage, fold = task.plan.stage, task.fold
    if task.validation and not options.no_validation:
        dataset = _dataset(options, workspace)
        print(validate(task, workspace.model(fold, Stage.COARSE), dataset, device=device, precision=precision))
        if task.taught_by is not None and (doubt := caution(task.taught_by, task.validation)):
            print(doubt)
    words = dataset_words(options)
    if stage is Stage.COARSE:
        taught = [] if task.taught_by is None else ["--pseudo-labels", task.taught_by.folder]
        print_next(["flaresemi_train", "FINE", fold, *words, *taught])
    else:
        print_next(["flaresemi_predict", "-i", "IMAGES", "-o", "PREDICTIONS", *words, "--fold", fold])


def _resumes(folder: ModelFolder, options: argparse.Namespace, ranks: Ranks, device: torch.device) -> bool:
    """Whether to go on with the training in the folder.

    Processes that torchrun has started again after one of them died go on with what they did before, whatever the
    options wanted of an older training. Restarts are counted node by node, so that the ranks have to ask each other.

    Raises:
        ConfigError: there is one, and nothing says what to do with it.
    """
    if ranks.any(ranks.restarts > 0, device):
        options.resume, options.restart = True, False
    exists = has_state(folder)
    if exists and not options.resume and not options.restart:
        raise ConfigError(
            "there is a training in this folder already",
            where=folder.root,
            fix="--continue goes on with it, --restart discards it and begins anew",
        )
    return bool(exists and options.resume)


def _supervision(
    options: argparse.Namespace, task: TrainingTask, workspace: Workspace, ranks: Ranks, *, resume: bool
) -> SemiSupervision | None:
    """What pseudo-labels from elsewhere add, those named or those that a resumed training began with; None: nothing.

    Raises:
        FlaresemiError: they cannot be used, or a resumed training began with others.
    """
    folder: Path | None = options.pseudo_labels
    recorded = recorded_run(task) if resume else None
    teaching = None if recorded is None else recorded.taught_by
    if recorded and folder is not None and (teaching is None or teaching.folder != str(folder.resolve())):
        began_with = "without pseudo-labels" if teaching is None else f"with the pseudo-labels of {teaching.folder}"
        raise ConfigError(
            f"this training began {began_with}", where=task.folder.root,
            fix="leave --pseudo-labels out to go on as it began; --restart begins anew",
        )  # fmt: skip
    if folder is not None and teaching is None:
        teaching = begin_teaching(folder, task, _dataset(options, workspace))
    choices = {name: value for name, value in vars(options).items() if name in ("pseudo_share", "pseudo_augmentation")}
    if teaching is None:
        if choices:
            raise ConfigError("--pseudo-share and --pseudo-augmentation go with --pseudo-labels")
        return None
    try:
        teaching = dataclasses.replace(teaching, **choices)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    if ranks.is_main and (doubt := caution(teaching, task.validation)):
        logger.warning("%s", doubt)
    return prepare_labels(teaching, task, _dataset(options, workspace), workspace, ranks=ranks)


def _dataset(options: argparse.Namespace, workspace: Workspace) -> Dataset:
    return usable_cases(load_dataset(options.dataset), workspace)


def _config(folder: ModelFolder, options: argparse.Namespace, ranks: Ranks, *, resume: bool) -> TrainingConfig:
    """The configuration to train with; discards what `--restart` says.

    A resumed training keeps its recorded options; those given anew replace them.
    """
    given = {name: value for name, value in vars(options).items() if name in _CONFIG_FIELDS}
    if given.keys() & {"epochs", "iterations", "time_budget_seconds"}:
        given = {"epochs": None, "iterations": None, "time_budget_seconds": None} | given
    try:
        config = dataclasses.replace(recorded_config(folder) if resume else TrainingConfig(), **given)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    if options.restart and ranks.is_main and folder.root.exists():
        shutil.rmtree(folder.root)
    ranks.barrier()
    if ranks.is_main:
        for place in (folder.root, folder.validation):
            remove_leftovers(place)
    return config


def _is_complete(folder: ModelFolder, config: TrainingConfig, resume: bool) -> bool:
    if not resume:
        return False
    try:
        latest = load_checkpoint(folder.final)
    except CheckpointError:  # not there yet, or damaged: it is written from the last state
        return False
    try:
        latest = load_state(folder)
    except CheckpointError as problem:
        logger.warning("%s", problem)
    wanted = config.fixed_iterations or latest.total_iterations
    if latest.iteration > wanted:
        raise CheckpointError(
            f"this training has {latest.iteration} iterations already, more than the {wanted} asked for",
            where=folder.latest,
            fix="ask for more, or begin anew with --restart",
        )
    return latest.iteration == wanted


def _launch(options: argparse.Namespace, words: list[str]) -> None:
    """Starts one process per GPU by torchrun."""
    kept = re.sub(r"(^|\0)--(gpus|max-restarts)[=\0][^\0]*", "", "\0".join(words)).strip("\0").split("\0")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.gpus}",
        f"--max-restarts={options.max_restarts}", "-m", "flaresemi.cli.train", *kept,
    ]  # fmt: skip
    code = subprocess.run(command, check=False).returncode
    if code:
        raise ConfigError(f"the training processes ended with code {code}; the reason stands above")


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if not text or match is None or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"'{text}' is not a duration; write 30m, 2h, 1h30m or 45s")
    hours, minutes, seconds = (float(part or 0) for part in match.group("hours", "minutes", "seconds"))
    return 3600 * hours + 60 * minutes + seconds


def _fold(text: str) -> str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a fold; write a number or all{closest(text, ['all'])}")
    return text if text == "all" else str(int(text))


def _axes(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    if not set(text) <= set("zyx"):
        raise argparse.ArgumentTypeError(f"'{text}' does not name axes; write x, yx, zyx or none")
    return tuple(sorted("zyx".index(axis) for axis in set(text)))


def _parser() -> argparse.ArgumentParser:
    parser = StrictParser("flaresemi_train", "Train one stage on one fold.")
    stages = [stage.value for stage in Stage]
    parser.add_argument("stage", choices=stages, help="COARSE finds the organs, FINE draws them")
    parser.add_argument("fold", type=_fold, help="number of the fold that is held out, or all")
    add_dataset_options(parser)
    former = parser.add_mutually_exclusive_group()
    former.add_argument("--continue", dest="resume", action="store_true", help="go on with the training in this folder")
    former.add_argument("--restart", action="store_true", help="discard the training in this folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="train on N GPUs of this machine")
    parser.add_argument(
        "--max-restarts", type=int, default=0, metavar="K",
        help="go on by itself, up to K times, after a process has died [0]",
    )  # fmt: skip
    parser.add_argument("--no-validation", action="store_true", help="skip the validation on whole images at the end")
    default = TrainingConfig()
    student = parser.add_argument_group("student", "learns from pseudo-labels of the unlabeled cases, too")
    student.add_argument(
        "--pseudo-labels", type=Path, metavar="FOLDER",
        help="label maps CASE.nii.gz on the grids of the images: what flaresemi_semi_round --export-labels, "
        "flaresemi_predict or another program wrote",
    )  # fmt: skip
    student.add_argument(
        "--pseudo-share", type=float, default=argparse.SUPPRESS, help="share of the patches from these cases [0.5]"
    )
    student.add_argument(
        "--pseudo-augmentation", choices=["none", "standard", "strong"], default=argparse.SUPPRESS,
        help="strength for these cases [strong]",
    )  # fmt: skip
    chosen = parser.add_argument_group("training", "what is not given has the default in brackets")

    def add(flag: str, kind: Callable[[str], Any], text: str, field: str | None = None, **settings: object) -> None:
        name = field or flag.removeprefix("--").replace("-", "_")
        shown = getattr(default, name)
        note = "" if shown is None else f" [{shown}]"
        chosen.add_argument(
            flag,
            dest=name,
            type=kind,
            default=argparse.SUPPRESS,
            help=text + note,
            **settings,  # type: ignore[arg-type]
        )

    length = chosen.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, default=argparse.SUPPRESS, help="length in epochs")
    length.add_argument(
        "--iterations",
        type=int,
        default=argparse.SUPPRESS,
        help="length in optimizer steps [250000 without any length]",
    )
    length.add_argument(
        "--time-budget", dest="time_budget_seconds", type=_duration, default=argparse.SUPPRESS, metavar="30m",
        help="length in time: some steps are timed, then the number of steps is fixed",
    )  # fmt: skip
    add("--iterations-per-epoch", int, "steps that count as an epoch [250; fewer in a short training]")
    add("--batch-size", int, "patches per step over all GPUs [the plan's]")
    add("--optimizer", str, "auto: adamw below 50000 iterations, else sgd", choices=["auto", "sgd", "adamw"])
    add("--learning-rate", float, "peak [0.01 for sgd; for adamw 0.064 / features of the first level, 0.004 for 16]")
    add("--weight-decay", float, "[3e-5 for sgd, 0.01 for adamw]")
    add("--warmup-iterations", int, "linear rise at the start [none for sgd; a twentieth, at most 200, for adamw]")
    add("--gradient-clip", float, "largest gradient norm")
    add("--ema-decay", float, "averaging of the weights that are validated and saved; 0: off")
    chosen.add_argument(
        "--deep-supervision", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
        help="losses on the lower decoder levels too [on]",
    )  # fmt: skip
    add("--foreground-share", float, "share of patches that are centered on an organ")
    add("--region-jitter-mm", float, "jitter of the faces of the organs' box (two stages)")
    add("--outside-share", float, "share of patches from anywhere in the body (two stages)")
    add("--augmentation", str, "strength", choices=["none", "standard", "strong"])
    chosen.add_argument(
        "--mirror-axes", type=_axes, default=argparse.SUPPRESS, metavar="x|zyx|none",
        help="axes that are flipped; x swaps left and right organs [x]",
    )  # fmt: skip
    add("--validations", int, "cheap validations during the training")
    add("--validation-cases", int, "cases they look at; 0: all")
    add("--checkpoint-minutes", float, "time between two saves of the whole state")
    add("--precision", str, "mixed precision", choices=["auto", "fp32", "bf16", "fp16"])
    add("--loader-workers", int, "processes that prepare patches; 0: none [1 on a CPU, up to 12 for a GPU]")
    add("--init-from", str, "checkpoint to take the first weights from", metavar="CHECKPOINT")
    add("--seed", int, "of everything random")
    return parser


if __name__ == "__main__":
    sys.exit(main())
