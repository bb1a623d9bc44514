"""`flaresemi_evaluate`: label maps against their references."""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flaresemi import flare22
from flaresemi.case_names import case_file
from flaresemi.cli.common import StrictParser, print_next, run
from flaresemi.cli.numbers import count
from flaresemi.cli.replacing import refuse_foreign
from flaresemi.dataset import declared_labels, find_images, load_dataset
from flaresemi.errors import ConfigError, DatasetError
from flaresemi.evaluation.folders import GRID_TOLERANCE, CasePair, CaseScores, match_cases, read_pair
from flaresemi.evaluation.lesions import is_lesion_table, lesions_of_pairs, lesions_told, save_lesions
from flaresemi.evaluation.summary import Summary, evaluate_folders, is_score_table, save_summary, table
from flaresemi.io.images import read_image
from flaresemi.labels import LabelSet
from flaresemi.plans import load_plans
from flaresemi.records import closest, holds_record
from flaresemi.reporting.overlay import is_overlay, save_overlay

#: Pictures that the hint at the end asks for.
_HINTED_OVERLAYS = "3"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda options: _evaluate(options, words), _parser(), words)


def _parser() -> argparse.ArgumentParser:
    parser = StrictParser(
        prog="flaresemi_evaluate",
        description="Scores label maps against references by FLARE's rules: Dice, surface Dice (NSD) and HD95 of every "
        "organ and case. Writes SUMMARY.json and, beside it, SUMMARY.csv.",
    )
    parser.add_argument(
        "-p", "--predictions", type=Path, required=True, metavar="PREDICTIONS", help="folder of label maps, or one file"
    )
    parser.add_argument(
        "-r",
        "--references",
        type=Path,
        required=True,
        metavar="REFERENCES",
        help="folder of reference label maps with the same names, or one file",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="SUMMARY.json", help="file for the scores")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "-d",
        "--dataset",
        type=Path,
        metavar="DATASET",
        help="folder whose dataset.json names the organs (default: this folder; without the file: FLARE22's organs)",
    )
    source.add_argument("--plans", type=Path, metavar="PLANS.json", help="take the organs from plans instead")
    source.add_argument(
        "-m", "--model", type=Path, metavar="MODEL_FOLDER", help="take the organs from trained models instead"
    )
    parser.add_argument(
        "--z-range",
        nargs="*",
        metavar="ORGAN",
        help="organs to score in the reference's slices only, instead of those that are declared so (none: no organ)",
    )
    parser.add_argument(
        "--lesions",
        nargs="+",
        default=[],
        metavar="ORGAN",
        help="organs whose pieces are lesions: also score these one by one (found, missed, false), by volume, "
        "to SUMMARY_lesions.csv",
    )
    parser.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        default=[],
        metavar="NAME",
        help="a further metric, by the name that an installed package declares; once for each",
    )
    parser.add_argument(
        "--official",
        action="store_true",
        help="as the organizers' scripts: leave out the last slice of a z-range, NSD 0 below Dice 0.2, four digits",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="also replace files that flaresemi_evaluate did not write"
    )
    parser.add_argument("--allow-missing", action="store_true", help="score what is there when predictions are missing")
    parser.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="processes (default: as cores, memory and the work suggest)",
    )
    parser.add_argument(
        "--overlays",
        type=count,
        metavar="N",
        help="write pictures of the N cases with the lowest Dice, beside SUMMARY.json",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="images for the overlays, and where label maps lie if headers leave it open (default: those of DATASET)",
    )
    return parser


def _evaluate(options: argparse.Namespace, words: Sequence[str]) -> None:
    if options.output.suffix.lower() != ".json":
        raise ConfigError("the output must be named like a JSON file", where=options.output, fix="-o SUMMARY.json")
    images = _images(options)
    if options.overlays and images is None:
        raise ConfigError(
            "overlays need the images, and DATASET is no dataset folder",
            where=_dataset(options),
            fix="name their folder with --images, or the dataset with -d",
        )
    _refuse_foreign(options)
    labels, annotated = _labels(options)
    labels = _with_z_range(labels, options.z_range)
    first_channels = {case_id: channels[0] for case_id, channels in (images or {}).items()}
    _refuse_unknown(options.lesions, labels, "--lesions")
    summary = evaluate_folders(
        options.predictions,
        options.references,
        labels,
        annotated=annotated,
        official=options.official,
        metrics=options.metrics,
        allow_missing=options.allow_missing,
        workers=options.workers,
        images=first_channels,
    )
    save_summary(options.output, summary)
    print(table(summary))
    print(f"\nwritten: {options.output} and {options.output.with_suffix('.csv')}")
    if options.lesions:
        _score_lesions(options, labels, annotated, first_channels)
    if options.overlays:
        folder = _overlays(options.output)
        found = match_cases(options.predictions, options.references, annotated, first_channels).pairs
        pairs = {pair.case_id: pair for pair in found}
        for case in worst_cases(summary, options.overlays):
            print(_draw(pairs[case.case_id], case, labels, folder))
    elif images:
        print_next(["flaresemi_evaluate", *words, "--overlays", _HINTED_OVERLAYS])


def _refuse_foreign(options: argparse.Namespace) -> None:
    """Checks that only evaluations are replaced.

    Raises:
        ConfigError: another file would be.
    """
    refuse = functools.partial(refuse_foreign, writer="flaresemi_evaluate", overwrite=options.overwrite)
    refuse([options.output], _is_evaluation)
    refuse([options.output.with_suffix(".csv")], is_score_table)
    if options.lesions:
        refuse([_lesions(options.output)], is_lesion_table)
    if options.overlays:
        pairs = match_cases(options.predictions, options.references, {}).pairs
        refuse((case_file(_overlays(options.output), pair.case_id, ".png") for pair in pairs), is_overlay)


def _is_evaluation(path: Path) -> bool:
    """Whether a file is a summary that this command wrote, and not the validation of a training."""
    return holds_record(path, Summary) and not path.with_name("made_with.json").exists()


def _score_lesions(
    options: argparse.Namespace,
    labels: LabelSet,
    annotated: Mapping[str, tuple[str, ...]],
    images: Mapping[str, Path],
) -> None:
    """Scores lesions one by one, writes and prints them."""
    pairs = match_cases(options.predictions, options.references, annotated, images).pairs
    scores = lesions_of_pairs(pairs, labels, options.lesions, workers=options.workers or 1)
    save_lesions(_lesions(options.output), scores)
    print(f"\n{lesions_told(scores, options.lesions, len(pairs))}\n\nwritten: {_lesions(options.output)}")


def _lesions(output: Path) -> Path:
    return output.with_name(f"{output.stem}_lesions.csv")


def _overlays(output: Path) -> Path:
    return output.with_name(f"{output.stem}_overlays")


def worst_cases(summary: Summary, count: int) -> tuple[CaseScores, ...]:
    """The scored cases with the lowest mean Dice, worst first."""
    scored = [case for case in summary.cases if _mean_dice(case) is not None]
    return tuple(sorted(scored, key=lambda case: _mean_dice(case) or 0.0)[:count])


def _dataset(options: argparse.Namespace) -> Path:
    return options.dataset if options.dataset is not None else Path(".")


def _labels(options: argparse.Namespace) -> tuple[LabelSet, dict[str, tuple[str, ...]]]:
    """The organs, from wherever the options point to, and per case those that dataset.json says are annotated."""
    folder = _dataset(options)
    if not folder.is_dir():
        raise DatasetError("dataset folder not found", where=folder)
    labels = _labels_of_models(options)
    declared, annotated = declared_labels(folder)
    if labels is not None:
        known = {case: tuple(name for name in names if name in labels.names) for case, names in annotated.items()}
        return labels, known
    if declared is None:
        print(f"no dataset.json names the organs in {folder.resolve()}: FLARE22's 13 are assumed\n")
        return flare22.LABELS, {}
    return declared, annotated


def _labels_of_models(options: argparse.Namespace) -> LabelSet | None:
    """The organs of plans or of trained models, where these are named."""
    if options.plans is not None:
        return load_plans(options.plans).labels
    if options.model is not None:
        from flaresemi.inference.models import load_all_models  # needs torch: the rest of this command does not

        return load_all_models(options.model)[0].fine[0].labels
    return None


def _with_z_range(labels: LabelSet, organs: list[str] | None) -> LabelSet:
    """The same organs, of which the named ones alone are scored in the reference's slices only."""
    if organs is None:
        return labels
    _refuse_unknown(organs, labels, "--z-range")
    return dataclasses.replace(
        labels, labels=tuple(dataclasses.replace(label, z_range=label.name in organs) for label in labels.labels)
    )


def _refuse_unknown(organs: Sequence[str], labels: LabelSet, option: str) -> None:
    for name in organs:
        if name not in labels.names:
            raise ConfigError(
                f"{option} names '{name}', which is not an organ{closest(name, labels.names)}",
                fix=f"organs are {', '.join(labels.names)}",
            )


def _images(options: argparse.Namespace) -> Mapping[str, tuple[Path, ...]] | None:
    """Image files per case; None if none are named and this folder is no dataset."""
    if options.images is not None:
        cases = find_images(options.images)
    else:
        try:
            dataset = load_dataset(_dataset(options))
        except DatasetError:
            return None
        cases = (*dataset.labeled, *dataset.test, *dataset.unlabeled)
    return {case.id: case.images for case in cases}


def _draw(pair: CasePair, case: CaseScores, labels: LabelSet, folder: Path) -> str:
    """Draws one case; says where the picture is, or why there is none."""
    if pair.image is None:
        return f"no image for case '{pair.case_id}', it is not drawn"
    image = read_image([pair.image])
    prediction, reference = (found.on(image.source, GRID_TOLERANCE) for found in read_pair(pair, labels))
    if image.geometry.far_corner_distance_mm(reference.geometry) > GRID_TOLERANCE * min(image.geometry.spacing_zyx_mm):
        return f"the image of case '{pair.case_id}' is not on its reference's grid, it is not drawn"
    path = case_file(folder, pair.case_id, ".png")
    save_overlay(
        path,
        image.array_czyx[0],
        labels.to_indices(prediction.array_zyx),
        labels.to_indices(reference.array_zyx),
        labels,
        image.geometry.spacing_zyx_mm,
        title=f"{pair.case_id}: mean Dice {_mean_dice(case):.3f}",
    )
    return str(path)


def _mean_dice(case: CaseScores) -> float | None:
    values = [score.dice for score in case.organs.values() if score.dice is not None]
    return float(np.mean(values)) if values else None


if __name__ == "__main__":
    sys.exit(main())
