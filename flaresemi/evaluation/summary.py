"""Scores of many cases as one record: JSON for programs, CSV for spreadsheets, a table for the terminal."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flaresemi.errors import DatasetError
from flaresemi.evaluation.flare import OrganScore
from flaresemi.evaluation.folders import CaseScores, default_tolerance_mm, match_cases, score_cases
from flaresemi.files import write_text
from flaresemi.labels import LabelSet
from flaresemi.records import load_record, save_record

SCHEMA_VERSION = 1

_METRICS = ("dice", "nsd", "hd95_mm")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """One metric of one organ over the cases that have it.

    Attributes:
        count: How many cases.
        sd: Standard deviation of the sample (n - 1); None for a single case.
    """

    count: int
    mean: float
    sd: float | None
    median: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OrganSummary:
    """One organ over all cases.

    Attributes:
        tolerance_mm: Of the surface Dice.
        z_range: Whether only the reference's slices counted.
        cases: How many cases were scored; those that do not annotate the organ are not.
        present: In how many of them the reference has the organ. In the others the score is 1 for a prediction that is
            empty too, and 0 for any other.
        dice: None where no case was scored.
        nsd: The same.
        hd95_mm: Over the cases where neither mask is empty; None where there is none.
    """

    name: str
    tolerance_mm: float
    z_range: bool
    cases: int
    present: int
    dice: Statistics | None
    nsd: Statistics | None
    hd95_mm: Statistics | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All scores of a set of predictions.

    Attributes:
        official: Whether the peculiarities of the organizers' scripts were reproduced.
        mean_dice: Mean over the organs of the organs' means; None where nothing was scored.
        mean_nsd: The same.
        mean_hd95_mm: The same, over the organs that have one.
        organs: In the order of the label set.
        missing: Cases with a reference and no prediction. They count nowhere.
        cases: The scores, in the order of the case names.
    """

    schema_version: int = SCHEMA_VERSION
    official: bool
    mean_dice: float | None
    mean_nsd: float | None
    mean_hd95_mm: float | None
    organs: tuple[OrganSummary, ...]
    missing: tuple[str, ...]
    cases: tuple[CaseScores, ...]

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {self.schema_version} is not known, expected {SCHEMA_VERSION}")


def evaluate_folders(
    predictions: Path | Mapping[str, Path],
    references: Path | Mapping[str, Path],
    labels: LabelSet,
    *,
    annotated: Mapping[str, tuple[str, ...]] | None = None,
    official: bool = False,
    allow_missing: bool = False,
    tolerance_mm: float | None = None,
    workers: int | None = None,
) -> Summary:
    """Scores the predictions of many cases.

    Args:
        predictions: A folder of label maps named by case, one such file, or the file of each case.
        references: The same; the cases are those that have a reference.
        labels: The organs, with the values that stand for them in all files.
        annotated: Per case, the organs that its reference annotates; cases that are not named annotate all.
        official: See `evaluate_case`.
        allow_missing: Score the cases that have a prediction and list the others, instead of refusing.
        tolerance_mm: Surface Dice tolerance of the organs that name none; None: the larger of 2 mm and the coarsest
            median spacing of the references.
        workers: Processes; None: as many as cores and free memory allow, where there is work for them.

    Raises:
        DatasetError: a folder is not there or holds no label map, a prediction is missing, two files stand for one
            case.
        ImageError: a file cannot be read, has undeclared values, or does not lie on its reference's grid.
    """
    pairs, missing = match_cases(predictions, references, annotated or {})
    if missing and not (allow_missing and pairs):
        listed = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise DatasetError(
            f"{len(missing)} of {len(missing) + len(pairs)} cases have no prediction: {listed}",
            where=predictions if isinstance(predictions, Path) else None,
            fix="--allow-missing scores the others" if pairs else "predictions are named like their references",
        )
    if tolerance_mm is None:
        tolerance_mm = default_tolerance_mm([pair.reference for pair in pairs])
    scores = score_cases(pairs, labels, default_tolerance_mm=tolerance_mm, official=official, workers=workers)
    return summarize(scores, labels, default_tolerance_mm=tolerance_mm, official=official, missing=missing)


def summarize(
    cases: Sequence[CaseScores],
    labels: LabelSet,
    *,
    default_tolerance_mm: float,
    official: bool = False,
    missing: Sequence[str] = (),
) -> Summary:
    """The record of scored cases. `default_tolerance_mm` and `official` are what they were scored with."""
    organs = []
    for label in labels.labels:
        scores = [score for case in cases if (score := case.organs[label.name]).dice is not None]
        organs.append(
            OrganSummary(
                name=label.name,
                tolerance_mm=default_tolerance_mm if label.tolerance_mm is None else label.tolerance_mm,
                z_range=label.z_range,
                cases=len(scores),
                present=sum(bool(score.reference_ml) for score in scores),
                dice=_statistics(scores, "dice"),
                nsd=_statistics(scores, "nsd"),
                hd95_mm=_statistics(scores, "hd95_mm"),
            )
        )
    return Summary(
        official=official,
        mean_dice=_mean([organ.dice for organ in organs]),
        mean_nsd=_mean([organ.nsd for organ in organs]),
        mean_hd95_mm=_mean([organ.hd95_mm for organ in organs]),
        organs=tuple(organs),
        missing=tuple(sorted(missing)),
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
    )


def save_summary(path: Path, summary: Summary) -> None:
    """Writes a summary as JSON, and beside it, ending .csv, one row per case and organ. Both atomically."""
    path = Path(path)
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    columns = [field.name for field in dataclasses.fields(OrganScore)]
    writer.writerow(["case", "organ", *columns])
    for case in summary.cases:
        for organ, score in case.organs.items():
            writer.writerow([case.case_id, organ, *(_rounded(getattr(score, column)) for column in columns)])
    write_text(path.with_suffix(".csv"), rows.getvalue())
    save_record(path, summary)


def load_summary(path: Path) -> Summary:
    """Reads what `save_summary` wrote.

    Raises:
        DatasetError: the file is missing or is no summary.
    """
    return load_record(path, Summary, error=DatasetError)


def table(summary: Summary) -> str:
    """A summary for a terminal: a row per organ, then the means, then what to know about them."""
    rows = [("", "cases", "present", "Dice", "median", "NSD", "HD95 mm")]
    for organ in summary.organs:
        rows.append(
            (
                organ.name + (" *" if organ.z_range else ""),
                str(organ.cases),
                str(organ.present),
                _spread(organ.dice, 3),
                f"{organ.dice.median:.3f}" if organ.dice else "-",
                _spread(organ.nsd, 3),
                _spread(organ.hd95_mm, 1),
            )
        )
    means = (summary.mean_dice, summary.mean_nsd, summary.mean_hd95_mm)
    dice, nsd, hd95_mm = (f"{mean:.{digits}f}" if mean is not None else "-" for mean, digits in zip(means, (3, 3, 1)))
    rows.append(("mean over organs", "", "", dice, "", nsd, hd95_mm))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *_notes(summary)])


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    """Names and figures with a spread flush left, so that means stand below means; counts flush right."""
    cells = zip(row, widths, strict=True)
    return [cell.rjust(width) if at in (1, 2) else cell.ljust(width) for at, (cell, width) in enumerate(cells)]


def _notes(summary: Summary) -> list[str]:
    tolerances = sorted({organ.tolerance_mm for organ in summary.organs})
    span = f"{tolerances[0]:g}" if len(tolerances) == 1 else f"{tolerances[0]:g} to {tolerances[-1]:g}"
    notes = [f"mean ± sd over cases; NSD tolerance {span} mm; HD95 over cases where both masks have the organ"]
    if any(organ.z_range for organ in summary.organs):
        notes.append("* scored in the reference's slices only")
    if any(organ.present < organ.cases for organ in summary.organs):
        notes.append("where the reference lacks an organ: 1 if the prediction lacks it too, else 0")
    if summary.official:
        notes.append("as the official scripts: last slice of * left out, NSD 0 below Dice 0.2, four digits")
    if summary.missing:
        notes.append(f"no prediction, counted nowhere: {', '.join(summary.missing)}")
    return notes


def _statistics(scores: Sequence[OrganScore], metric: str) -> Statistics | None:
    values = [value for score in scores if (value := getattr(score, metric)) is not None]
    if not values:
        return None
    return Statistics(
        count=len(values),
        mean=float(np.mean(values)),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        median=float(np.median(values)),
    )


def _mean(statistics: Sequence[Statistics | None]) -> float | None:
    means = [each.mean for each in statistics if each is not None]
    return float(np.mean(means)) if means else None


def _spread(statistics: Statistics | None, digits: int) -> str:
    if statistics is None:
        return "-"
    mean = f"{statistics.mean:.{digits}f}"
    return mean if statistics.sd is None else f"{mean} ± {statistics.sd:.{digits}f}"


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
