"""`flaresemi_find_best`: which of several trained models, or which average of them, predicts."""

import argparse
import functools
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from flaresemi.cli.common import StrictParser, print_next, run
from flaresemi.cli.prediction_options import add_computing_options
from flaresemi.cli.replacing import refuse_foreign
from flaresemi.comparing.candidates import find_candidates
from flaresemi.comparing.finding import choice_path, find_best, page_path, table_path
from flaresemi.comparing.page import table
from flaresemi.comparing.predicting import HeldOutCases, HeldOutResult
from flaresemi.compute.device import limit_threads
from flaresemi.dataset import load_dataset
from flaresemi.errors import ConfigError
from flaresemi.inference.choice import BestConfiguration
from flaresemi.inference.prediction_records import is_prediction
from flaresemi.locking import working_alone
from flaresemi.records import holds_record

logger = logging.getLogger("flaresemi.cli.find_best")  # also when run with python -m


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(functools.partial(_find_best, words=words), _parser(), words)


def _parser() -> argparse.ArgumentParser:
    parser = StrictParser(
        prog="flaresemi_find_best",
        description="Compares trained models (one and two stages, several presets) on the cases that they held out, "
        "and writes which of them, or which average, flaresemi_predict -m FOLDER takes. Goes on where it was stopped.",
    )
    parser.add_argument(
        "-m",
        "--model",
        dest="models",
        nargs="+",
        type=Path,
        required=True,
        metavar="WORKSPACE",
        help="the models to compare: two or more workspaces, or folders of models as flaresemi_predict -m takes them",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="for the choice and all that it stands on"
    )
    parser.add_argument(
        "-d", "--dataset", type=Path, default=Path("."), metavar="DATASET", help="dataset folder (default: this folder)"
    )
    parser.add_argument(
        "--fold", nargs="+", metavar="FOLD", help="folds whose held-out cases count (default: all that are finished)"
    )
    parser.add_argument(
        "--no-averages", action="store_true", help="compare each model by itself: no averages of several are predicted"
    )
    add_computing_options(parser)
    return parser


def _find_best(options: argparse.Namespace, words: Sequence[str]) -> None:
    limit_threads(options.threads)
    candidates = find_candidates(options.models, options.fold)
    dataset = load_dataset(options.dataset)
    held_out = HeldOutCases(candidates, dataset, options.output, averages=not options.no_averages)
    _refuse_foreign(options.output, held_out)
    with working_alone(options.output / ".lock-find_best", ("flaresemi_find_best", *words)):
        choice = find_best(
            candidates,
            held_out,
            dataset,
            device=options.device,
            precision=options.precision,
            engine=options.engine,
        )
    print(table(choice))
    print(f"\nwritten: {choice_path(options.output)} and {page_path(options.output)}")
    print_next(["flaresemi_predict", "-m", str(options.output), "-i", "IMAGES", "-o", "PREDICTIONS"])


def _refuse_foreign(output: Path, held_out: HeldOutCases) -> None:
    """Checks that only results of this command are replaced.

    Raises:
        ConfigError: another file would be.
    """
    refuse = functools.partial(refuse_foreign, writer="flaresemi_find_best", overwrite=False)
    if os.path.lexists(output) and not output.is_dir():
        raise ConfigError("this is no folder", where=output, fix="name another with -o")
    record = choice_path(output)
    if not _is_ours(record):
        refuse([record, page_path(output), table_path(output)], _is_ours)  # the record is written before the others
    refuse(held_out.label_maps, is_prediction)
    refuse(held_out.results, lambda path: holds_record(path, HeldOutResult))


def _is_ours(path: Path) -> bool:
    return holds_record(path, BestConfiguration)


if __name__ == "__main__":
    sys.exit(main())
