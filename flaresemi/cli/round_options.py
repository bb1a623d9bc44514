"""The options of flaresemi_semi_round."""

import argparse
import logging
import os
from pathlib import Path

from flaresemi.cli.common import (
    StrictParser,
    add_dataset_options,
    add_field_option,
    add_time_limit_option,
    add_trainer_options,
)
from flaresemi.cli.launching import add_launch_options
from flaresemi.cli.mixing_options import add_mixing_options
from flaresemi.cli.numbers import count
from flaresemi.cli.training_options import add_tracking_option
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.rounds.folds import FEW_LABELS
from flaresemi.rounds.state import PRESETS, STEPS, RoundConfig
from flaresemi.rounds.stopping import StopRule

#: What a start was asked to do, which is not asked for again; how, is.
NOT_AGAIN = (
    *("fold", "until_converged", "rounds", "final", "status", "report", "step", "chain", "shard"),
    *("export_labels", "export_which"),
)

logger = logging.getLogger("flaresemi.cli.semi_round")


def round_parser() -> argparse.ArgumentParser:
    """The parser of flaresemi_semi_round. What decides a round is among the options only if given."""
    parser = StrictParser(
        "flaresemi_semi_round",
        "Label the unlabeled cases with a trained fold, select what can be trusted, train on it, judge. "
        "What is done already is not done again.",
    )
    add_dataset_options(parser)
    parser.add_argument(
        "--fold",
        nargs="+",
        metavar="FOLD",
        help="folds whose cases are held out to judge by; 'all' holds out none "
        f"[0; with fewer than {FEW_LABELS} labeled cases every fold that is trained and validated]",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_launch_options(parser, "share the work among N GPUs of this machine; several folds run side by side")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="mixed precision")
    add_time_limit_option(parser)
    _add_actions(parser.add_argument_group("what to do"))
    _add_choices(parser)
    return parser


def _add_actions(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "--until-converged", action="store_true", help="run round after round until the stop rule ends it"
    )
    what.add_argument("--rounds", type=count, metavar="N", help="run until N rounds are complete")
    what.add_argument(
        "--final",
        action="store_true",
        help="train the final models, on all labels and the best models' pseudo-labels "
        "(--until-converged does so at its end)",
    )
    what.add_argument("--status", action="store_true", help="print the progress of the chain, and do nothing else")
    what.add_argument(
        "--report", action="store_true", help="write the last complete round's page again, and do nothing else"
    )
    what.add_argument(
        "--chain",
        metavar="FOLD",
        help="of all folds, run the current round of this one alone, beside processes that run the others; the same "
        "command without it judges them",
    )
    what.add_argument("--step", choices=STEPS, help="stop after this step of the round")
    what.add_argument(
        "--shard",
        metavar="I/N",
        help="label only this part of the unlabeled cases: 0/4, slurm (this task of a job "
        "array) or torchrun (this rank)",
    )
    what.add_argument(
        "--export-labels",
        type=Path,
        metavar="FOLDER",
        help="write the newest pseudo-labels as CASE.nii.gz on the grids of their images, and do nothing else",
    )
    what.add_argument(
        "--export-which", choices=["selected", "all"], default="selected", help="of which cases [selected]"
    )


def _preset(name: str) -> str:
    if name != "seed":
        return name
    logger.warning("--preset seed is deprecated and goes in 0.2: say --preset flaresemiseg")
    return "flaresemiseg"


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """Fields of the records that decide a round; what is not given stays with its preset."""
    parser.add_argument(
        "--tta", action="store_true", default=argparse.SUPPRESS, help="label by the mean over mirrored images too"
    )
    parser.add_argument(
        "--ignore-contested",
        action="store_true",
        default=argparse.SUPPRESS,
        help="leave out the voxels of pseudo-labels on which snapshots of the models disagree",
    )
    parser.add_argument(
        "--teacher",
        metavar="MODEL",
        type=os.path.abspath,
        default=argparse.SUPPRESS,
        help="label with this model in the first round, nnU-Net's or another workspace's; organs are matched by name",
    )
    rule = parser.add_argument_group("selection", "what is not given has the default in brackets")
    defaults, round_defaults, stop_defaults = SelectionRule(), RoundConfig(), StopRule()
    rule.add_argument(
        "--preset",
        choices=list(PRESETS),
        type=_preset,
        default=argparse.SUPPRESS,
        help="flaresemiseg: whole cases, best half first; students from scratch, nothing pasted",
    )
    rule.add_argument("--select", choices=["case", "organ"], help="judge whole cases, or each organ on its own [organ]")

    add_field_option(
        rule, "organ_threshold", defaults, "organ: least predicted Dice, or agreement without a calibration"
    )
    add_field_option(rule, "organ_share", defaults, "organ: a lower threshold where fewer cases reach it")
    add_field_option(rule, "volume_factor", defaults, "organ: how far outside the labeled volumes is implausible")
    add_field_option(rule, "best_share", defaults, "case: share of the cases that the first round takes")
    add_field_option(rule, "case_threshold", defaults, "case: least score in later rounds")
    rule.add_argument(
        "--require-complete", action="store_true", default=argparse.SUPPRESS, help="case: only cases with every organ"
    )
    students = parser.add_argument_group("students")
    add_mixing_options(students)
    add_field_option(students, "start", round_defaults, "weights to start from", choices=["scratch", "previous"])
    add_field_option(students, "length", round_defaults, "iterations, relative to the supervised training")
    add_trainer_options(students)
    add_tracking_option(students, "keep their numbers, and figures of each round, as flaresemi_train [as supervised]")
    stop = parser.add_argument_group("stop rule")
    add_field_option(stop, "patience", stop_defaults, "rounds without an improvement before the chain ends")
    add_field_option(stop, "min_delta", stop_defaults, "mean Dice that counts as an improvement")
    add_field_option(stop, "max_rounds", stop_defaults, "most rounds")
