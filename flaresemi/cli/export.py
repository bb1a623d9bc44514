"""flaresemi_export: trained models as one folder for other machines and other programs."""

import argparse
import logging
import sys
import tempfile
import typing
from collections.abc import Sequence
from pathlib import Path

from flaresemi.cli.common import StrictParser, add_dataset_options, add_model_options, model_folder_of, print_next, run
from flaresemi.cli.prediction_options import add_computing_options
from flaresemi.comparing.candidates import find_candidate
from flaresemi.comparing.speed import measure_levels
from flaresemi.compute.device import limit_threads
from flaresemi.dataset import load_dataset
from flaresemi.errors import ConfigError
from flaresemi.inference.export import export_models, refuse_export
from flaresemi.inference.levels import LevelName, SpeedLevels
from flaresemi.inference.models import DESCRIPTION, LoadedModels, load_models
from flaresemi.networks.onnx_file import onnx_is_installed
from flaresemi.networks.openvino import openvino_is_installed
from flaresemi.unfinished import PARTIAL

logger = logging.getLogger("flaresemi.cli.export")  # also when run with python -m


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(_export, _parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = StrictParser(
        prog="flaresemi_export",
        description="Writes trained models as one folder: what prediction needs and no more, the networks also as "
        f"OpenVINO programs, and {DESCRIPTION}, which says all that is done before and after them.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="to be made")
    add_dataset_options(parser)
    add_model_options(parser)
    parser.add_argument(
        "--no-programs",
        action="store_true",
        help="checkpoints only: no OpenVINO programs, which need flaresemi[openvino]",
    )
    parser.add_argument(
        "--onnx",
        action="store_true",
        help="also write the networks as ONNX files (needs flaresemi[onnx]); examples/run_onnx.py predicts with them, "
        "by numpy and onnxruntime alone, unless they are nnU-Net's",
    )
    parser.add_argument(
        "--speed-levels",
        action="store_true",
        help="also measure on the held-out cases of the dataset what flaresemi_predict --fast and --balanced mean for "
        "these models, and what they cost",
    )
    add_computing_options(parser)
    return parser


def _export(options: argparse.Namespace) -> None:
    if not options.no_programs and not openvino_is_installed():
        raise ConfigError(
            "OpenVINO is not installed, which writes the programs",
            fix='pip install "flaresemi[openvino]", or leave them out with --no-programs',
        )
    if options.onnx and not onnx_is_installed():
        raise ConfigError(
            "onnx is not installed, which --onnx needs", fix='pip install "flaresemi[onnx]", or leave --onnx out'
        )
    models = load_models(
        model_folder_of(options), folds=options.fold, checkpoint=options.checkpoint, coarse=options.coarse
    )
    refuse_export(models, options.output)
    levels = _levels(options, models) if options.speed_levels else None
    export_models(models, options.output, programs=not options.no_programs, onnx=options.onnx, levels=levels)
    logger.info("written to %s", options.output)
    print_next(["flaresemi_predict", "-m", str(options.output), "-i", "IMAGES", "-o", "PREDICTIONS"])


def _levels(options: argparse.Namespace, models: LoadedModels) -> SpeedLevels:
    """Measures the speed levels of the models that are exported, and tells them.

    Raises:
        ConfigError: other weights than those that the held-out cases judge are exported.
    """
    if options.checkpoint != "final" or options.coarse is not None:
        raise ConfigError(
            "--speed-levels measures final weights with COARSE of their own folds", fix="leave the other options out"
        )
    limit_threads(options.threads)
    candidate = find_candidate(model_folder_of(options), options.fold)
    if not {*models.networks} <= {*candidate.networks}:
        raise ConfigError(
            f"fold {', '.join(each.fold for each in models.fine)} is exported, and the levels are measured with fold "
            f"{', '.join(candidate.runs)}: others hold nothing out",
            where=model_folder_of(options),
            fix=f"export these with --fold {' '.join(candidate.runs)}, or leave --speed-levels out",
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent, prefix=PARTIAL) as scratch:
        levels = measure_levels(
            candidate,
            load_dataset(options.dataset),
            Path(scratch),
            device=options.device,
            precision=options.precision,
            engine=options.engine,
        )
    print("\n".join(levels.told(level) for level in typing.get_args(LevelName)))
    return levels


if __name__ == "__main__":
    sys.exit(main())
