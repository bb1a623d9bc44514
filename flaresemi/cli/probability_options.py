"""The options of flaresemi_predict for probabilities and uncertainty."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from flaresemi.cli.replacing import refuse_foreign
from flaresemi.dataset import Case
from flaresemi.errors import ConfigError
from flaresemi.io.shares import Bits, Extent, holds_shares
from flaresemi.unfinished import remove_leftovers

if TYPE_CHECKING:
    from flaresemi.inference.probabilities import ProbabilityOutput
    from flaresemi.inference.segmenter import ImageSegmenter

logger = logging.getLogger("flaresemi.cli.predict")


def add_probability_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--save-probabilities`, `--save-uncertainty` and how they are stored."""
    parser.add_argument(
        "--save-probabilities",
        action="store_true",
        help="also write the probability of background and every organ to probabilities/CASE/ORGAN.nii.gz",
    )
    parser.add_argument(
        "--probability-bits",
        type=int,
        choices=get_args(Bits),
        help="bits of a stored probability (default: 8, steps of 0.004; 16: steps of 0.000015)",
    )
    parser.add_argument(
        "--probability-extent",
        choices=get_args(Extent),
        help="grid of the files: the image's, or only the region in it where organs were looked for (default: image)",
    )
    parser.add_argument(
        "--save-uncertainty",
        action="store_true",
        help="also write 1 minus the highest probability of every voxel to uncertainty/CASE.nii.gz",
    )


def check_probability_options(options: argparse.Namespace) -> None:
    """Checks that no option is given that has no effect.

    Raises:
        ConfigError: one is.
    """
    for name in ("probability_bits", "probability_extent"):
        if getattr(options, name) is not None and not options.save_probabilities:
            raise ConfigError(
                f"--{name.replace('_', '-')} says how probabilities are saved, and none are",
                fix="add --save-probabilities",
            )


def probability_output(options: argparse.Namespace, segmenter: "ImageSegmenter") -> "ProbabilityOutput | None":
    """What of the probabilities is saved, and whether they are calibrated, which is told; None: nothing."""
    if not (options.save_probabilities or options.save_uncertainty):
        return None
    from flaresemi.inference.probabilities import ProbabilityOutput  # and torch

    told = ["not calibrated" if each is None else f"temperature {each:.3g}" for each in segmenter.temperatures]
    logger.info("probabilities of %s: %s", "the model" if len(told) == 1 else "the plans", ", ".join(told))
    return ProbabilityOutput(
        organs=options.save_probabilities,
        uncertainty=options.save_uncertainty,
        bits=options.probability_bits or 8,
        extent=options.probability_extent or "image",
        labels=segmenter.labels,
        temperatures=segmenter.temperatures,
    )


def refuse_foreign_shares(
    output: "ProbabilityOutput | None", remaining: Sequence[tuple[Case, Path]], *, overwrite: bool
) -> None:
    """Checks that the files replace none that flaresemi_predict did not write, and removes what killed programs left.

    Raises:
        ConfigError: one would.
    """
    if output is None:
        return
    files = [file for case, label_map in remaining for file in output.files(label_map.parent, case.id)]
    refuse_foreign(files, holds_shares, writer="flaresemi_predict", overwrite=overwrite)
    remove_leftovers(*{file.parent for file in files})
