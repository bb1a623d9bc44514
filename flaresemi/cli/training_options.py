"""The options of flaresemi_train."""

import argparse
from pathlib import Path
from typing import get_args

from flaresemi.cli.common import StrictParser, add_dataset_options, add_time_limit_option, add_trainer_options, duration
from flaresemi.cli.launching import add_launch_options
from flaresemi.cli.mixing_options import add_mixing_options
from flaresemi.cli.numbers import count, field_type
from flaresemi.plans import Stage
from flaresemi.records import closest
from flaresemi.training.config import TrackerName, TrainingConfig

_PROFILED_STEPS = 20


def training_parser() -> argparse.ArgumentParser:
    """The parser of flaresemi_train. Fields of `TrainingConfig` are among the options only if given."""
    parser = StrictParser("flaresemi_train", "Train one stage on one fold.")
    stages = [stage.value for stage in Stage]
    parser.add_argument("stage", choices=stages, help="COARSE finds the organs, FINE segments them")
    parser.add_argument("fold", type=_fold, help="number of the fold that is held out, or all")
    add_dataset_options(parser)
    former = parser.add_mutually_exclusive_group()
    former.add_argument("--continue", dest="resume", action="store_true", help="resume the training in this folder")
    former.add_argument("--restart", action="store_true", help="discard the training in this folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_launch_options(parser, "train on N GPUs of this machine")
    add_time_limit_option(parser)
    parser.add_argument(
        "--profile",
        type=count,
        nargs="?",
        const=_PROFILED_STEPS,
        metavar="N",
        help=f"do not train: run N steps of this training [{_PROFILED_STEPS}] and print where their time goes",
    )
    parser.add_argument("--no-validation", action="store_true", help="skip the validation on whole images at the end")
    _add_student_options(parser)
    _add_training_options(parser)
    return parser


def _add_student_options(parser: argparse.ArgumentParser) -> None:
    student = parser.add_argument_group("student", "learns from pseudo-labels of the unlabeled cases, too")
    student.add_argument(
        "--pseudo-labels",
        type=Path,
        metavar="FOLDER",
        help="label maps CASE.nii.gz on the grids of the images: what flaresemi_semi_round --export-labels, "
        "flaresemi_predict or another program wrote",
    )
    add_mixing_options(student)


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    default = TrainingConfig()
    chosen = parser.add_argument_group("training", "what is not given has the default in brackets")

    def add(flag: str, text: str, **settings: object) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        shown = getattr(default, name)
        note = "" if shown is None else f" [{shown}]"
        chosen.add_argument(
            flag,
            dest=name,
            type=field_type(TrainingConfig, name),
            default=argparse.SUPPRESS,
            help=text + note,
            **settings,  # type: ignore[arg-type]
        )

    length = chosen.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=field_type(TrainingConfig, "epochs"), default=argparse.SUPPRESS, help="length in epochs"
    )
    length.add_argument(
        "--iterations",
        type=field_type(TrainingConfig, "iterations"),
        default=argparse.SUPPRESS,
        help="length in optimizer steps [250000 without any length]",
    )
    length.add_argument(
        "--time-budget",
        dest="time_budget_seconds",
        type=duration,
        default=argparse.SUPPRESS,
        metavar="30m",
        help="length in time: the number of steps is adapted while training",
    )
    add("--iterations-per-epoch", "steps that count as an epoch [250; fewer in a short training]")
    add("--batch-size", "patches per step over all GPUs [the plan's]")
    add("--optimizer", "auto: muon below 50000 iterations, else sgd", choices=["auto", "sgd", "adamw", "muon"])
    add("--learning-rate", "peak [0.01 for sgd; otherwise 0.064 / features of the first level, 0.004 for 16]")
    add("--weight-decay", "[3e-5 for sgd, 0.01 otherwise]")
    add("--warmup-iterations", "linear rise at the start [none for sgd; a twentieth, at most 200, otherwise]")
    add("--gradient-clip", "largest gradient norm")
    add("--ema-decay", "averaging of the weights that are validated and saved; 0: off")
    chosen.add_argument(
        "--deep-supervision",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="losses on the lower decoder levels, too [on]",
    )
    add("--foreground-share", "share of patches that are centered on an organ")
    add("--region-jitter-mm", "jitter of the faces of the organs' box (two stages)")
    add("--outside-share", "share of patches from anywhere in the body (two stages)")
    add("--augmentation", "none, standard, strong, or a name that an installed package declares")
    add(
        "--augmentation-device",
        "where patches are augmented: by the loader's processes, or where the network is; auto: there, if it is a GPU",
        choices=["auto", "cpu", "device"],
    )
    chosen.add_argument(
        "--mirror-axes",
        type=_axes,
        default=argparse.SUPPRESS,
        metavar="x|zyx|none",
        help="axes that are flipped; x swaps paired organs [x, where left and right are alike but for these]",
    )
    add("--validations", "quick validations during the training")
    add("--validation-cases", "cases they look at; 0: all")
    add("--checkpoint-minutes", "time between two saves of the whole state")
    add("--precision", "mixed precision", choices=["auto", "fp32", "bf16", "fp16"])
    add("--loader-workers", "processes that prepare patches; 0: none [1 on a CPU, up to 12 for a GPU]")
    chosen.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="run the network through torch.compile, where that works here [off]",
    )
    add(
        "--init-from",
        "model to start from, of any organs: what fits is taken; a checkpoint or model folder of flaresemi or nnU-Net",
        metavar="MODEL",
    )
    add_tracking_option(
        chosen,
        "also keep the numbers of every epoch by MLflow (MLFLOW_TRACKING_URI, or files in logs/) or Weights & Biases "
        "(files in logs/ for wandb sync; wandb-online sends them)",
    )
    add("--seed", "of everything random")
    add_trainer_options(chosen)


def add_tracking_option(group: argparse._ArgumentGroup, told: str) -> None:
    """Adds `--track`, which stands among the options only if it was given."""
    group.add_argument("--track", help=told, choices=get_args(TrackerName), default=argparse.SUPPRESS)


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
