"""`flaresemi_predict`: images to label maps."""

import argparse
import contextlib
import dataclasses
import functools
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from flaresemi.case_names import case_file
from flaresemi.cli.common import (
    StrictParser,
    add_dataset_options,
    add_model_options,
    model_folder_of,
    print_next,
    run,
)
from flaresemi.cli.inputs import find_cases, output_paths, refuse_overwriting
from flaresemi.cli.numbers import count, number
from flaresemi.cli.prediction_files import (
    Efficiency,
    refuse_foreign_tables,
    remaining_jobs,
    update_reliability,
    update_warnings,
)
from flaresemi.compute.background import FinishBehind, read_ahead
from flaresemi.compute.device import limit_threads
from flaresemi.compute.metering import Meter, StepClock
from flaresemi.dataset import Case
from flaresemi.errors import ConfigError, FlaresemiError, ImageError
from flaresemi.geometry import FloatTriple
from flaresemi.image_paths import image_stem
from flaresemi.inference.cascade import Segmenter, Watch
from flaresemi.inference.fine_stage import FineOutput
from flaresemi.inference.prediction_records import write_prediction
from flaresemi.inference.segmentation import Segmentation
from flaresemi.io.images import Image
from flaresemi.planning.findings import Finding
from flaresemi.pseudolabels.reliability import Reliability, summary_line
from flaresemi.ranges import Range
from flaresemi.records import save_record
from flaresemi.selection import CaseScore
from flaresemi.unfinished import remove_leftovers

logger = logging.getLogger("flaresemi.cli.predict")  # also when run with python -m

Value = TypeVar("Value")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(_predict, _parser(), argv)


def _parser() -> argparse.ArgumentParser:
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
        help="average over mirrored images: slower, a little better (default: models of nnU-Net only, as nnU-Net does)",
    )
    parser.add_argument(
        "--reliability",
        action="store_true",
        help="also write the expected Dice of every organ to reliability.csv; takes three times FINE's time",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also write time, processor use and memory of every case, sampled every 0.1 s, to efficiency/CASE.json",
    )
    parser.add_argument(
        "--step",
        type=number(Annotated[float, Range(0.01, 1)]),
        default=0.5,
        help="distance of windows as a share of the window (default: 0.5)",
    )
    parser.add_argument(
        "--window",
        choices=("auto", "patch"),
        help="windows of the training patch's size, or larger ones where that computes fewer voxels "
        "(default: patch for models of nnU-Net, otherwise auto)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="to compute in")
    parser.add_argument(
        "--engine",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="inference engine on a CPU (default: auto, the fastest by a short check)",
    )
    parser.add_argument("--threads", type=count, metavar="N", help="processor threads (default: all cores)")
    parser.add_argument(
        "--single-process",
        action="store_true",
        help="one thing after the other: nothing is read or written meanwhile; for debugging",
    )
    return parser


def _predict(options: argparse.Namespace) -> None:
    limit_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.input.exists():  # before the models are loaded, which takes a while
        raise ConfigError("input not found", where=options.input)
    segmenter = Segmenter.load(
        model_folder_of(options),
        folds=options.fold,
        checkpoint=options.checkpoint,
        coarse=options.coarse,
        device=options.device,
        tta=options.tta,
        step=options.step,
        window=options.window,
        precision=options.precision,
        engine=options.engine,
    )
    cases = find_cases(options.input, channels=len(segmenter.channels))
    jobs = list(zip(cases, output_paths(cases, options.input, options.output), strict=True))
    refuse_overwriting(jobs, options.input, overwrite=options.overwrite)
    results = options.output if image_stem(options.output) is None or options.output.is_dir() else options.output.parent
    extras = _Extras(
        reliability=_reliability(options, segmenter) if options.reliability else None,
        efficiency=results / "efficiency" if options.measure else None,
        strict=options.strict,
    )
    remaining = remaining_jobs(jobs, options, segmenter)
    refuse_foreign_tables(remaining, results, options)
    if len(remaining) < len(jobs):
        logger.info("%d of %d cases have their label map already", len(jobs) - len(remaining), len(jobs))
    remove_leftovers(*{output.parent for _, output in jobs})
    for folder in {output.parent for _, output in remaining}:
        folder.mkdir(parents=True, exist_ok=True)
    # What is measured is one case, so nothing of another one may be read or written meanwhile.
    failures = _predict_all(segmenter, remaining, extras, overlap=not (options.single_process or options.measure))
    update_reliability(results, always=options.reliability)
    update_warnings(
        results, [each for case, error in failures for each in _about(case, getattr(error, "findings", ()))]
    )
    if failures:
        raise _summary(failures, len(remaining))
    logger.info("%d label map(s) written to %s", len(remaining), options.output)
    if options.output.is_dir():
        print_next(f"flaresemi_evaluate -p {shlex.quote(str(options.output))} -r REFERENCES -o SUMMARY.json")


def _reliability(options: argparse.Namespace, segmenter: Segmenter) -> Reliability:
    """The judge of every prediction.

    Raises:
        ConfigError: several folds are averaged.
        CheckpointError: the model cannot judge itself.
    """
    if len(segmenter.fine_files) > 1:
        raise ConfigError(
            "several folds are averaged: the snapshots of one training are compared", fix="give one --fold"
        )
    return Reliability(segmenter.fine_files[0], engine=segmenter.engine, step=options.step)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Extras:
    """Results about every case besides its label map.

    Attributes:
        reliability: Judges it.
        efficiency: Folder for what it cost.
        strict: Whether an image that is warned of is refused.
    """

    reliability: Reliability | None
    efficiency: Path | None
    strict: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Predicted:
    segmentation: Segmentation
    score: CaseScore | None


def _predict_all(
    segmenter: Segmenter, jobs: Sequence[tuple[Case, Path]], extras: _Extras, *, overlap: bool
) -> list[tuple[Case, FlaresemiError]]:
    """Predicts every case that it can; returns the others, and why.

    With `overlap`, the next case is read and the one before written meanwhile: three are in memory at most.
    """
    failures: list[tuple[Case, FlaresemiError]] = []

    def attempt(case: Case, work: Callable[[], Value]) -> Value | None:
        try:
            return work()
        except FlaresemiError as error:
            logger.warning("%s: %s", case.id, error)
            failures.append((case, error))
            return None

    bar = tqdm(jobs, desc="predict", unit="case", disable=not sys.stderr.isatty() or len(jobs) < 2)
    reading = read_ahead(functools.partial(_read, segmenter), [case for case, _ in jobs], overlap=overlap)
    with contextlib.closing(reading) as images, FinishBehind(overlap=overlap) as finish:
        for case, output in bar:
            segment = functools.partial(_segment, segmenter, case, images, extras)
            if extras.efficiency is None:
                predicted = attempt(case, segment)
                if predicted is not None:
                    write = functools.partial(_write, segmenter, case, output, predicted)
                    finish(functools.partial(attempt, case, write))
                continue
            with Meter(segmenter.engine.device) as meter:
                seconds = attempt(case, lambda: _write(segmenter, case, output, segment()))  # noqa: B023 (called at once)
            if seconds is not None:
                efficiency = Efficiency(case_id=case.id, steps=seconds, cost=meter.cost)
                save_record(case_file(extras.efficiency, case.id, ".json"), efficiency)
    return failures


def _read(segmenter: Segmenter, case: Case) -> Image | FlaresemiError:
    try:
        return segmenter.read(case.images)
    except FlaresemiError as error:  # for when it is this case's turn
        return error


def _segment(
    segmenter: Segmenter, case: Case, images: Iterator[tuple[Image | FlaresemiError, float]], extras: _Extras
) -> _Predicted:
    """Segments the next image, and scores its reliability if requested."""
    image, waited = next(images)
    if isinstance(image, FlaresemiError):
        raise image
    judged: list[CaseScore] = []
    judge = None if extras.reliability is None else _judge(extras.reliability, case.id, judged)
    segmentation = segmenter.segment(image, watch=judge, name=case.id, strict=extras.strict)
    for score in judged:
        logger.info("%s: %s", case.id, summary_line(score))
    segmentation = dataclasses.replace(
        segmentation, seconds={"read": waited, **segmentation.seconds}, findings=_about(case, segmentation.findings)
    )
    return _Predicted(segmentation, judged[-1] if judged else None)


def _write(segmenter: Segmenter, case: Case, output: Path, predicted: _Predicted) -> dict[str, float]:
    """Writes the label map, logs the case, and returns the seconds of every step."""
    clock = StepClock()
    with clock("write"):
        write_prediction(
            output,
            predicted.segmentation,
            images=case.images,
            models=segmenter.models,
            options=segmenter.options,
            score=predicted.score,
        )
    seconds = predicted.segmentation.seconds | clock.seconds
    logger.info("%s", _line(case, predicted.segmentation, seconds))
    return seconds


def _about(case: Case, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Warnings with what they are about."""
    return tuple(dataclasses.replace(each, case_id=case.id, file=str(case.images[0])) for each in findings)


def _judge(reliability: Reliability, case_id: str, judged: list[CaseScore]) -> Watch:
    def watch(
        output: FineOutput, image_czyx: np.ndarray, fill_c: np.ndarray | None, spacing_zyx_mm: FloatTriple
    ) -> None:
        judged.append(reliability.judge(case_id, output, image_czyx, fill_c, spacing_zyx_mm))

    return watch


def _line(case: Case, segmentation: Segmentation, seconds: dict[str, float]) -> str:
    steps = ", ".join(f"{step} {taken:.1f}" for step, taken in seconds.items())
    return "; ".join([f"{case.id}: {sum(seconds.values()):.1f} s ({steps})", *segmentation.notes])


def _summary(failures: Sequence[tuple[Case, FlaresemiError]], total: int) -> FlaresemiError:
    lines = [f"{case.id}: {error.what} ({case.images[0]})" for case, error in failures]
    shown = lines[:20] + ([f"and {len(lines) - 20} more"] if len(lines) > 20 else [])
    return ImageError(
        f"{len(failures)} of {total} case(s) could not be predicted; the others are done",
        where="\n       ".join(shown),
        fix="mend or remove these files, then start again with --continue",
    )


if __name__ == "__main__":
    sys.exit(main())
