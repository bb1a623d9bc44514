"""The work of flaresemi_predict, whose options are read before torch is imported."""

import argparse
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from flaresemi.case_names import case_file
from flaresemi.cli.common import model_folder_of, print_next
from flaresemi.cli.dicom_options import dicom_output, ending_of
from flaresemi.cli.inputs import find_cases, named_by_output, output_paths, refuse_overwriting, results_folder
from flaresemi.cli.launching import helpers, wait_for, without_options
from flaresemi.cli.prediction_files import (
    Efficiency,
    is_predicted,
    refuse_foreign_tables,
    remaining_jobs,
    update_reliability,
    update_statistics,
    update_warnings,
)
from flaresemi.cli.probability_options import check_probability_options, probability_output, refuse_foreign_shares
from flaresemi.cli.turns import Turns
from flaresemi.compute.background import FinishBehind, read_ahead
from flaresemi.compute.device import limit_threads
from flaresemi.compute.distributed import Ranks, launched_ranks
from flaresemi.compute.metering import Meter, StepClock
from flaresemi.compute.sharding import Shard, joint_shard
from flaresemi.dataset import Case
from flaresemi.errors import ConfigError, FlaresemiError, ImageError, without_frames
from flaresemi.inference.averaging import load_segmenter
from flaresemi.inference.dicom_output import DicomOutput
from flaresemi.inference.levels import SpeedLevels, load_levels
from flaresemi.inference.measurements import CaseMeasures, measure
from flaresemi.inference.prediction_records import write_prediction
from flaresemi.inference.probabilities import ProbabilityOutput, SavedProbabilities
from flaresemi.inference.segmentation import Segmentation, write_segmentation
from flaresemi.inference.segmenter import ImageSegmenter, Save
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image
from flaresemi.machine import available_cores
from flaresemi.planning.findings import Finding
from flaresemi.preprocessing.averaging import KnownLogits
from flaresemi.pseudolabels.reliability import Reliability, summary_line
from flaresemi.records import save_record
from flaresemi.selection import CaseScore
from flaresemi.unfinished import remove_leftovers

logger = logging.getLogger("flaresemi.cli.predict")

Value = TypeVar("Value")

#: From the files of an image, one per channel, to what is in them.
Reader = Callable[[tuple[Path, ...]], Image]


def predict(options: argparse.Namespace, words: list[str], read: Reader) -> None:
    """Predicts what the options name.

    Args:
        options: Of the command.
        words: The same as they were given.
        read: Reads an image.

    Raises:
        FlaresemiError: something is wrong with the options, the models, or an image.
    """
    levels = _set_level(options)
    ranks = launched_ranks() or Ranks(0, options.gpus)
    part = joint_shard(options.shard, ranks)
    options.threads = options.threads or (max(available_cores() // options.gpus, 1) if options.gpus > 1 else None)
    limit_threads(options.threads)
    if not options.input.exists():  # before the models are loaded, which takes a while
        raise ConfigError("input not found", where=options.input)
    ending = ending_of(options)
    check_probability_options(options)
    if options.measure and ranks.world_size > 1:
        raise ConfigError("--measure measures one case with nothing beside it", fix="leave --gpus and torchrun out")
    options.resume |= part.helps  # what others have done meanwhile is done
    segmenter = _load(options, part)
    if levels is not None:
        levels.refuse_others(segmenter.models)
    cases = find_cases(options.input, channels=len(segmenter.channels))
    cases = named_by_output(cases, options.output, ending)
    dicom = dicom_output(options, segmenter)
    if dicom is not None:
        dicom.check([case.images for case in cases])
    jobs, results = _jobs(options, cases, part, ending)
    extras = _Extras(
        dicom=dicom,
        options=segmenter.options | ({} if dicom is None else dicom.options),
        reliability=Reliability.of(segmenter, step=options.step) if options.reliability else None,
        statistics=options.statistics,
        probabilities=probability_output(options, segmenter),
        efficiency=results / "efficiency" if options.measure else None,
        strict=options.strict,
    )
    calibration = "" if extras.reliability is None else extras.reliability.calibration_hash
    deciding = (options, segmenter.models, extras.options, extras.probabilities, calibration)
    remaining = remaining_jobs(jobs, *deciding)
    refuse_foreign_tables(remaining, results, options)
    refuse_foreign_shares(extras.probabilities, remaining, overwrite=options.overwrite)
    if len(remaining) < len(jobs):
        logger.info("%d of %d cases have their label map already", len(jobs) - len(remaining), len(jobs))
    remove_leftovers(*{output.parent for _, output in jobs})
    for folder in {output.parent for _, output in remaining}:
        folder.mkdir(parents=True, exist_ok=True)
    case_ids = [case.id for case in cases]
    turns = Turns(remaining, part, case_ids, results, lambda case, output: is_predicted(case, output, *deciding))
    threads = [] if options.threads is None else ["--threads", str(options.threads)]
    helping = [*threads, *without_options(words, "--gpus", "--threads")]
    with helpers("flaresemi.cli.predict", helping, Ranks() if launched_ranks() else ranks) as others:
        # What is measured is one case, so nothing of another one may be read or written meanwhile.
        overlap = not (options.single_process or options.measure)
        failures = _predict_all(segmenter, turns, extras, read, overlap=overlap)
        if not turns.are_shared:
            wait_for(others)
    if ranks.is_main:
        _conclude(options, turns, results, {output for _, output in jobs}, failures)


def _set_level(options: argparse.Namespace) -> SpeedLevels | None:
    """Sets step and window as a level has them; gives the measurement that it stands on, if it is not the default.

    Raises:
        ConfigError: there is none, or step or window are named as well.
    """
    levels = None
    if options.level is not None:
        if options.step is not None or options.window is not None:
            raise ConfigError(f"--{options.level} sets step and window itself", fix="leave it out, or the others")
        if options.level != "exact":
            levels = load_levels(model_folder_of(options))
            setting = levels.setting(options.level)
            logger.info("%s", levels.told(options.level))
            options.step, options.window = setting.step, setting.window
    options.step = 0.5 if options.step is None else options.step
    return levels


def _load(options: argparse.Namespace, part: Shard) -> ImageSegmenter:
    return load_segmenter(
        model_folder_of(options),
        folds=options.fold,
        checkpoint=options.checkpoint,
        coarse=options.coarse,
        device=str(part.device(options.device)) if part.local_rank is not None else options.device,
        tta=options.tta,
        turns=options.turns,
        step=options.step,
        window=options.window,
        precision=options.precision,
        engine=options.engine,
    )


def _jobs(
    options: argparse.Namespace, cases: Sequence[Case], part: Shard, ending: str | None
) -> tuple[list[tuple[Case, Path]], Path]:
    """The cases that this process may have to do with their label maps, and the folder of these."""
    jobs = list(zip(cases, output_paths(cases, options.input, options.output, ending), strict=True))
    refuse_overwriting(jobs, options.input, overwrite=options.overwrite)
    mine = set(part.before_others([case.id for case in cases]))
    return [(case, output) for case, output in jobs if case.id in mine], results_folder(options.output, ending)


def _conclude(
    options: argparse.Namespace,
    turns: Turns,
    results: Path,
    own: Collection[Path],
    failures: Sequence[tuple[Case, FlaresemiError]],
) -> None:
    """Writes the tables beside the label maps, of which `own` are those of this run, and tells what was done.

    Raises:
        ImageError: cases could not be predicted.
    """
    with turns.alone():
        update_reliability(results, own, always=options.reliability)
        update_statistics(results, own, always=options.statistics)
        refused = [each for case, error in failures for each in _about(case, getattr(error, "findings", ()))]
        update_warnings(results, refused, turns.elsewhere)
    if failures:
        raise _summary(failures, len(turns))
    logger.info("%s", turns.told(options.output))
    if options.output.is_dir():
        organs = [] if options.dataset == Path(".") else ["-d", str(options.dataset)]
        words = ["-p", str(options.output), "-r", "REFERENCES", "-o", "SUMMARY.json", *organs]
        print_next(["flaresemi_evaluate", *words])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Extras:
    """Results about every case besides its label map.

    Attributes:
        reliability: Judges it.
        statistics: Whether its organs are measured.
        probabilities: What of them is saved; None: nothing.
        efficiency: Folder for what it cost.
        strict: Whether an image that is warned of is refused.
        dicom: Writes results as DICOM objects; None: they are label maps.
        options: All that decides what is written, by name.
    """

    reliability: Reliability | None
    statistics: bool
    probabilities: ProbabilityOutput | None
    efficiency: Path | None
    strict: bool
    dicom: DicomOutput | None
    options: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class _Read:
    case: Case
    output: Path
    image: Image | FlaresemiError


@dataclasses.dataclass(frozen=True, slots=True)
class _Predicted:
    segmentation: Segmentation
    score: CaseScore | None
    measures: CaseMeasures | None
    saved: SavedProbabilities | None


def _predict_all(
    segmenter: ImageSegmenter, turns: Turns, extras: _Extras, read: Reader, *, overlap: bool
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
            failures.append((case, without_frames(error)))
            turns.end(case)
            return None

    def write(case: Case, output: Path, predicted: _Predicted) -> dict[str, float]:
        seconds = _write(segmenter, case, output, extras, predicted)
        turns.end(case, is_written=True)
        return seconds

    bar = functools.partial(tqdm, total=len(turns), desc="predict", unit="case", disable=not turns.is_watched)
    if extras.efficiency is not None:
        for case, output in bar(turns):

            def work(job: tuple[Case, Path] = (case, output)) -> dict[str, float]:
                started = time.perf_counter()
                found = _read(segmenter, read, job)
                return write(*job, _segment(segmenter, found, extras, time.perf_counter() - started))

            with Meter(segmenter.engine.device) as meter:
                seconds = attempt(case, work)
            if seconds is not None:
                efficiency = Efficiency(case_id=case.id, steps=seconds, cost=meter.cost)
                save_record(case_file(extras.efficiency, case.id, ".json"), efficiency)
        return failures
    reading = read_ahead(functools.partial(_read, segmenter, read), turns, overlap=overlap)
    with contextlib.closing(reading) as images, turns, FinishBehind(overlap=overlap) as finish:
        for found, waited in bar(images):
            predicted = attempt(found.case, functools.partial(_segment, segmenter, found, extras, waited))
            if predicted is not None:
                last = functools.partial(write, found.case, found.output, predicted)
                finish(functools.partial(attempt, found.case, last))
    return failures


def _read(segmenter: ImageSegmenter, read: Reader, job: tuple[Case, Path]) -> _Read:
    case, output = job
    try:
        return _Read(case, output, segmenter.checked(read(case.images), case.images))
    except FlaresemiError as error:  # for when it is this case's turn
        return _Read(case, output, without_frames(error))


def _segment(segmenter: ImageSegmenter, read: _Read, extras: _Extras, waited: float) -> _Predicted:
    """Segments an image, scores its reliability and measures its organs if requested."""
    case, image = read.case, read.image
    if isinstance(image, FlaresemiError):
        raise image
    judged: list[CaseScore] = []
    judge = None if extras.reliability is None else extras.reliability.watch(case.id, judged)
    saved: list[SavedProbabilities] = []
    save = None if extras.probabilities is None else _saving(extras.probabilities, read, saved)
    segmentation = segmenter.segment(image, watch=judge, save=save, name=case.id, strict=extras.strict)
    for score in judged:
        logger.info("%s: %s", case.id, summary_line(score))
    segmentation = dataclasses.replace(
        segmentation, seconds={"read": waited, **segmentation.seconds}, findings=_about(case, segmentation.findings)
    )
    measures = measure(case.id, segmentation, image, segmenter.channels) if extras.statistics else None
    return _Predicted(segmentation, judged[-1] if judged else None, measures, saved[-1] if saved else None)


def _saving(output: ProbabilityOutput, read: _Read, saved: list[SavedProbabilities]) -> Save:
    """What saves the probabilities of a case while they are there, and notes it in `saved`."""

    def save(parts: Sequence[KnownLogits], grid: SourceGrid) -> None:
        saved.append(output.save(read.output.parent, read.case.id, parts, grid))

    return save


def _write(
    segmenter: ImageSegmenter, case: Case, output: Path, extras: _Extras, predicted: _Predicted
) -> dict[str, float]:
    """Writes the label map, logs the case, and returns the seconds of every step."""
    clock, dicom = StepClock(), extras.dicom
    with clock("write"):
        write_prediction(
            output,
            predicted.segmentation,
            images=case.images,
            models=segmenter.models,
            options=extras.options,
            score=predicted.score,
            measures=predicted.measures,
            saved=predicted.saved,
            write=write_segmentation if dicom is None else functools.partial(dicom.write, case.images[0]),
        )
    seconds = predicted.segmentation.seconds | clock.seconds
    logger.info("%s", _line(case, predicted.segmentation, seconds))
    return seconds


def _about(case: Case, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Warnings with what they are about."""
    return tuple(dataclasses.replace(each, case_id=case.id, file=str(case.images[0])) for each in findings)


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
