"""flaresemi_train: one stage, one fold."""

import argparse
import dataclasses
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from flaresemi.cli.common import (
    StoppedEarly,
    StrictParser,
    add_dataset_options,
    add_time_limit_option,
    count,
    dataset_words,
    duration,
    print_next,
    run,
    workspace_of,
)
from flaresemi.cli.signals import StopSignals
from flaresemi.compute.allocation import keep_freed_memory
from flaresemi.compute.device import select_device
from flaresemi.compute.distributed import Ranks, join_ranks
from flaresemi.compute.precision import PrecisionName
from flaresemi.dataset import load_dataset
from flaresemi.errors import CheckpointError, ConfigError
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.planning.decisions import usable_cases
from flaresemi.plans import Stage
from flaresemi.records import closest, load_record
from flaresemi.training.config import TrainingConfig
from flaresemi.training.profiling import profile
from flaresemi.training.runs import RunRecord
from flaresemi.training.task import TrainingTask, load_task
from flaresemi.training.trainer import Trainer
from flaresemi.training.validation import validate
from flaresemi.workspace import ModelFolder, Workspace

logger = logging.getLogger("flaresemi.cli.train")  # also when run with python -m

_PROFILED_STEPS = 20
_CONFIG_FIELDS = {field.name for field in dataclasses.fields(TrainingConfig)}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda options: _train(options, words), _parser(), words)


def _train(options: argparse.Namespace, words: list[str]) -> None:
    if options.gpus > 1 and "LOCAL_RANK" not in os.environ:
        _launch(options, words)
        return
    workspace = workspace_of(options)
    stage = Stage(options.stage)
    device = select_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    stopping = StopSignals(options.time_limit)
    with join_ranks(device.type) as ranks, stopping as signals:
        if ranks.world_size > 1 and device.type == "cuda":
            device = torch.device("cuda", ranks.local_rank)
        task = load_task(workspace, stage, options.fold)
        if options.profile is not None:
            rehearsed = Trainer(task, _config(task.folder, options), device=device, ranks=ranks)
            told = profile(rehearsed, options.profile).table()
            if ranks.is_main:
                print(told)
            return
        resume, config = _starting_point(task.folder, options, ranks)
        trainer = Trainer(
            task,
            config,
            device=device,
            ranks=ranks,
            command=("flaresemi_train", *words),
            stop_requested=signals.requested,
        )
        if not _is_complete(task.folder, config, resume) and not trainer.fit(resume=resume):
            raise StoppedEarly(
                f"stopped and saved at iteration {trainer.iteration}; the same command with --continue goes on"
            )
        if ranks.any(signals.requested(), device) and task.validation and not options.no_validation:
            raise StoppedEarly("trained and saved; the same command with --continue validates on whole images")
    if ranks.is_main:
        _finish(options, workspace, task, device, config.precision)


def _finish(
    options: argparse.Namespace,
    workspace: Workspace,
    task: TrainingTask,
    device: torch.device,
    precision: PrecisionName,
) -> None:
    stage, fold = task.plan.stage, task.fold
    if task.validation and not options.no_validation:
        dataset = usable_cases(load_dataset(options.dataset), workspace)
        print(validate(task, workspace.model(fold, Stage.COARSE), dataset, device=device, precision=precision))
    words = dataset_words(options)
    if stage is Stage.COARSE:
        print_next(["flaresemi_train", "FINE", fold, *words])
    else:
        print_next(["flaresemi_predict", "-i", "IMAGES", "-o", "PREDICTIONS", *words, "--fold", fold])


def _starting_point(folder: ModelFolder, options: argparse.Namespace, ranks: Ranks) -> tuple[bool, TrainingConfig]:
    """Whether to resume, and with which configuration.

    A resumed training keeps its recorded options; those given anew replace them.
    """
    exists = folder.latest.exists()
    if exists and not options.resume and not options.restart:
        raise ConfigError(
            "there is a training in this folder already",
            where=folder.root,
            fix="--continue goes on with it, --restart discards it and begins anew",
        )
    if options.restart and ranks.is_main and folder.root.exists():
        shutil.rmtree(folder.root)
    ranks.barrier()
    return exists and options.resume, _config(folder, options)


def _config(folder: ModelFolder, options: argparse.Namespace) -> TrainingConfig:
    """What is given, on top of the defaults or, with --continue, of what the training was started with."""
    given = {name: value for name, value in vars(options).items() if name in _CONFIG_FIELDS}
    if given.keys() & {"epochs", "iterations", "time_budget_seconds"}:
        given = {"epochs": None, "iterations": None, "time_budget_seconds": None} | given
    try:
        if options.resume and folder.latest.exists():
            recorded = load_record(folder.run_record, RunRecord, error=ConfigError).config
            return dataclasses.replace(recorded, **given)
        return TrainingConfig(**given)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None


def _is_complete(folder: ModelFolder, config: TrainingConfig, resume: bool) -> bool:
    if not resume or not folder.final.exists():
        return False
    latest = load_checkpoint(folder.latest)
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
    kept = re.sub(r"(^|\0)--gpus[=\0][^\0]*", "", "\0".join(words)).strip("\0").split("\0")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.gpus}",
        "-m", "flaresemi.cli.train", *kept,
    ]  # fmt: skip
    code = subprocess.run(command, check=False).returncode
    if code:
        raise ConfigError(f"the training processes ended with code {code}; the reason stands above")


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
    parser.add_argument("--continue", dest="resume", action="store_true", help="go on with the training in this folder")
    parser.add_argument("--restart", action="store_true", help="discard the training in this folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="train on N GPUs of this machine")
    add_time_limit_option(parser)
    parser.add_argument(
        "--profile", type=count, nargs="?", const=_PROFILED_STEPS, metavar="N",
        help=f"do not train: run N steps of this training [{_PROFILED_STEPS}] and tell where their time goes",
    )  # fmt: skip
    parser.add_argument("--no-validation", action="store_true", help="skip the validation on whole images at the end")
    default = TrainingConfig()
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
        "--time-budget", dest="time_budget_seconds", type=duration, default=argparse.SUPPRESS, metavar="30m",
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
    chosen.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
        help="run the network through torch.compile, where that works here [off]",
    )  # fmt: skip
    add("--init-from", str, "checkpoint to take the first weights from", metavar="CHECKPOINT")
    add("--seed", int, "of everything random")
    return parser


if __name__ == "__main__":
    sys.exit(main())
