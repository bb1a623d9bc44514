"""The files that flaresemi_predict leaves: which of them are done, which may be replaced, what they say together."""

import argparse
import dataclasses
import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from flaresemi.case_names import case_file
from flaresemi.cli.replacing import refuse_foreign
from flaresemi.compute.metering import Cost
from flaresemi.dataset import Case
from flaresemi.errors import ImageError, SelectionError
from flaresemi.files import content_hash
from flaresemi.image_paths import visible_files
from flaresemi.inference.measurements import (
    STATISTICS,
    STATISTICS_TABLE,
    TABLE_COLUMNS,
    MeasuresTable,
    save_measures,
)
from flaresemi.inference.prediction_records import PredictionRecord, is_prediction, load_prediction, record_file
from flaresemi.inference.probabilities import ProbabilityOutput
from flaresemi.io.images import read_label_map
from flaresemi.planning.findings import Finding
from flaresemi.records import holds_record
from flaresemi.selection import load_scores, save_scores
from flaresemi.tables import read_table, write_table

logger = logging.getLogger("flaresemi.cli.predict")

#: The tables beside the label maps.
RELIABILITY = "reliability.csv"
WARNINGS = "warnings.csv"

_WARNING_COLUMNS = ("case", "problem", "message", "remedy", "file", "refused")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Time and memory of a case, from reading its image to writing its label map.

    Attributes:
        steps: Seconds of each.
    """

    schema_version: int = 1
    case_id: str
    steps: dict[str, float]
    cost: Cost


def is_predicted(
    case: Case,
    output: Path,
    options: argparse.Namespace,
    models: Sequence[str],
    deciding: Mapping[str, str],
    probabilities: ProbabilityOutput | None = None,
    calibration: str = "",
) -> bool:
    """Whether these networks have segmented this very image, and all is there; arguments as of `remaining_jobs`."""
    record = load_prediction(output)
    if record is None or not output.is_file() or content_hash(output) != record.label_map:
        return False
    is_scored = record.score is not None and record.score.calibration in ("", calibration)
    lacks_score = (options.reliability and not is_scored) or (options.statistics and not record.measures)
    lacks_score |= probabilities is not None and not probabilities.is_saved(output.parent, record.saved)
    is_refused = bool(record.findings) and options.strict
    return not (lacks_score or is_refused) and record.is_current(case.images, models, deciding)


def remaining_jobs(
    jobs: Sequence[tuple[Case, Path]],
    options: argparse.Namespace,
    models: Sequence[str],
    deciding: Mapping[str, str],
    probabilities: ProbabilityOutput | None = None,
    calibration: str = "",
) -> list[tuple[Case, Path]]:
    """The cases to predict: with `--continue` those alone of which these networks have not segmented this very image.

    Args:
        jobs: Cases and the files for their label maps.
        options: Of the command.
        models: The networks, see `Segmenter.models`.
        deciding: All else that decides what is written, by name.
        probabilities: What of them is to be saved.
        calibration: With `--reliability`, the hash of what its scores are calibrated by.

    Raises:
        ConfigError: a file is in the place of a label map that may not be replaced.
    """
    remaining, outdated = [], 0
    damaged = set()
    for case, output in jobs:
        record = load_prediction(output)
        if record is not None and output.is_file():
            if options.resume and content_hash(output) == record.label_map:
                if is_predicted(case, output, options, models, deciding, probabilities, calibration):
                    continue
                outdated += not record.is_current(case.images, models, deciding)
            if not is_prediction(output) and not _is_whole(output):
                damaged.add(output)
        remaining.append((case, output))
    if outdated:
        logger.warning(
            "%d label map(s) were predicted by other weights, with other options or from other images: predicted again",
            outdated,
        )
    refuse_foreign(
        (output for _, output in remaining if output not in damaged),
        is_prediction,
        writer="flaresemi_predict",
        overwrite=options.overwrite,
    )
    return remaining


def refuse_foreign_tables(remaining: Sequence[tuple[Case, Path]], results: Path, options: argparse.Namespace) -> None:
    """Checks that the files written besides label maps replace nothing else.

    Raises:
        ConfigError: it would.
    """
    refuse = functools.partial(refuse_foreign, writer="flaresemi_predict", overwrite=options.overwrite)
    refuse((record_file(output) for _, output in remaining), lambda path: holds_record(path, PredictionRecord))
    refuse([results / WARNINGS], _holds_warnings)
    if options.reliability:
        refuse([results / RELIABILITY], _holds_scores)
    if options.statistics:
        refuse([results / STATISTICS], lambda path: holds_record(path, MeasuresTable))
        refuse([results / STATISTICS_TABLE], _holds_statistics)
    if options.measure:
        files = (case_file(results / "efficiency", case.id, ".json") for case, _ in remaining)
        refuse(files, lambda path: holds_record(path, Efficiency))


def _holds_scores(path: Path) -> bool:
    try:
        load_scores(path)
    except SelectionError:
        return False
    return True


def _holds_warnings(path: Path) -> bool:
    try:
        return read_table(path)[0] == _WARNING_COLUMNS
    except (ValueError, OSError):
        return False


def _holds_statistics(path: Path) -> bool:
    try:
        return read_table(path)[0][: len(TABLE_COLUMNS)] == TABLE_COLUMNS
    except (ValueError, OSError):
        return False


def _is_whole(output: Path) -> bool:
    """Whether a label map can be read to its end: a copy that broke off is nobody's work, and predicted again."""
    if output.suffix == ".dcm":  # any object of DICOM may be in its place
        return True
    try:
        read_label_map(output)
    except ImageError as problem:
        logger.warning("predicted again: %s", problem)
        return False
    return True


def update_reliability(results: Path, own: Collection[Path], *, always: bool) -> None:
    """Writes the scores of all scored label maps of a folder, of this run and of earlier ones.

    Args:
        results: The folder.
        own: The label maps of this run.
        always: Also where there is no such table yet.
    """
    if not (always or _holds_scores(results / RELIABILITY)):
        return
    found = [record.score for record in _present_records(results, own) if record.score is not None]
    scores = {score.case_id: score for score in found}
    save_scores(results / RELIABILITY, tuple(scores[case_id] for case_id in sorted(scores)))
    logger.info("reliability of every organ: %s", results / RELIABILITY)


def update_statistics(results: Path, own: Collection[Path], *, always: bool) -> None:
    """Writes the measures of all label maps of a folder that have been measured, of this run and of earlier ones.

    Args:
        results: The folder.
        own: The label maps of this run.
        always: Also where there are no such files yet.
    """
    if not (always or holds_record(results / STATISTICS, MeasuresTable)):
        return
    found = [record.measures for record in _present_records(results, own) if record.measures is not None]
    cases = {measures.case_id: measures for measures in found}
    save_measures(results, tuple(cases[case_id] for case_id in sorted(cases)))
    logger.info("measures of every organ: %s", results / STATISTICS_TABLE)


def _present_records(results: Path, own: Collection[Path]) -> list[PredictionRecord]:
    """Those of the label maps of a folder that are as they were written, the latest last.

    A case has several where it was written in several formats, maybe by other models: those of this run count as later
    than all others, since with `--continue` they need not have been written by it.
    """
    found = {path: record for path in visible_files(results) if (record := load_prediction(path)) is not None}
    present = [path for path, record in found.items() if record.label_map == content_hash(path)]
    return [found[path] for path in sorted(present, key=lambda path: (path in own, path.stat().st_mtime_ns))]


def update_warnings(results: Path, refused: Sequence[Finding], elsewhere: Collection[str] = ()) -> None:
    """Writes the warnings about all label maps of a folder, and about the cases that were refused now.

    Where there is nothing to warn of, there is no such table.

    Args:
        results: The folder.
        refused: Of the cases that were refused now.
        elsewhere: Cases that are another process's to do: what the table says of those that it has refused stays.
    """
    found = [each for path in visible_files(results) for each in _present_findings(path)]
    path = results / WARNINGS
    before = read_table(path)[1] if elsewhere and _holds_warnings(path) else []
    kept = [tuple(row.values()) for row in before if row["case"] in elsewhere and row["refused"] == "yes"]
    if not found and not refused and not kept:
        if _holds_warnings(path):
            path.unlink()
        return
    now = {each.case_id for each in refused}
    told = sorted([*refused, *(each for each in found if each.case_id not in now)], key=lambda each: each.case_id)
    rows: list[tuple[str, ...]] = [
        (each.case_id, each.problem, each.message, each.remedy, each.file, "yes" if each.case_id in now else "no")
        for each in told
    ]
    rows = sorted([*rows, *kept], key=lambda row: row[0])
    write_table(path, [_WARNING_COLUMNS, *rows])
    logger.warning("%d image(s) are warned of: %s", len({row[0] for row in rows}), path)


def _present_findings(label_map: Path) -> tuple[Finding, ...]:
    record = load_prediction(label_map)
    if record is None or not record.findings or record.label_map != content_hash(label_map):
        return ()
    return record.findings
