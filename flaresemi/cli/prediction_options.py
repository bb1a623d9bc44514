"""The options of flaresemi_predict."""

import argparse
from pathlib import Path
from typing import Annotated

from flaresemi.cli.common import StrictParser, add_dataset_options, add_model_options
from flaresemi.cli.dicom_options import add_dicom_options
from flaresemi.cli.numbers import count, number
from flaresemi.cli.probability_options import add_probability_options
from flaresemi.ranges import Range


def prediction_parser() -> argparse.ArgumentParser:
    """The parser of flaresemi_predict."""
    parser = StrictParser(
        prog="flaresemi_predict",
        description="Segments images with trained models. Every label map lies on exactly the grid of its image.",
    )
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        metavar="INPUT",
        help="an image (a file or a folder of DICOM slices), a folder of images, or a text file with one path per line",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUTPUT",
        help="folder for the label maps (CASE.nii.gz and so on); for one image also a file",
    )
    add_dataset_options(parser)
    add_model_options(parser)
    add_dicom_options(parser)
    parser.add_argument("--continue", dest="resume", action="store_true", help="skip cases that are predicted already")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace files that flaresemi_predict did not write, or that were changed since it did",
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse images with warnings (see warnings.csv); the others are predicted"
    )
    parser.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        help="average over images mirrored along the axes that training mirrored (left to right at most, none for "
        "FLARE22): slower, a little better (default: models of nnU-Net only)",
    )
    add_turns_option(parser)
    parser.add_argument(
        "--reliability",
        action="store_true",
        help="also write the expected Dice of every organ to reliability.csv; takes three times FINE's time",
    )
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="also write volume, mean and SD of the intensities, extent and cut-off ends of every organ to "
        "statistics.csv and statistics.json",
    )
    add_probability_options(parser)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also write time, processor use and memory of every case, sampled every 0.1 s, to efficiency/CASE.json",
    )
    parser.add_argument(
        "--step",
        type=number(Annotated[float, Range(0.01, 1)]),
        help="distance of windows as a share of the window (default: 0.5)",
    )
    parser.add_argument(
        "--window",
        choices=("auto", "patch"),
        help="windows of the training patch's size, or larger ones where that computes fewer voxels "
        "(default: patch for models of nnU-Net, otherwise auto)",
    )
    _add_levels(parser)
    add_computing_options(parser, threads="; with --gpus, its share")
    parser.add_argument(
        "--gpus",
        type=count,
        default=1,
        metavar="N",
        help="share the images among N processes, each on a GPU of this machine; as --continue, they skip what is done",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="predict only this part of the images: 0/4; or slurm: the tasks of this job array share them",
    )
    parser.add_argument(
        "--single-process",
        action="store_true",
        help="one thing after the other: nothing is read or written meanwhile; for debugging",
    )
    return parser


def _add_levels(parser: argparse.ArgumentParser) -> None:
    levels = parser.add_mutually_exclusive_group()
    for level, text in (
        ("fast", "step and window that were the fastest at a loss of up to 0.01 Dice on the held-out cases, where "
         "flaresemi_export --speed-levels has measured it"),
        ("balanced", "the same at a loss of up to 0.003"),
        ("exact", "the default: step 0.5"),
    ):  # fmt: skip
        levels.add_argument(f"--{level}", dest="level", action="store_const", const=level, help=text)


def add_computing_options(parser: argparse.ArgumentParser, *, threads: str = "") -> None:
    """Adds `--device`, `--precision`, `--engine` and `--threads`: how networks are computed.

    Args:
        threads: What else there is to say of their number.
    """
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="to compute in")
    parser.add_argument(
        "--engine",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="inference engine on a CPU (default: auto, the fastest by a short check)",
    )
    parser.add_argument("--threads", type=count, metavar="N", help=f"processor threads (default: all cores{threads})")


def add_turns_option(parser: argparse.ArgumentParser) -> None:
    """Whether scans may lie turned."""
    parser.add_argument(
        "--turns",
        action=argparse.BooleanOptionalAction,
        help="segment every scan in four turns in the plane of its slices, and keep the surest (default: as planned, "
        "for thick slices other than CT, but not with models of a round)",
    )
