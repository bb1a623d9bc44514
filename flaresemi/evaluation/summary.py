"""Scores of many cases as one record: JSON for programs, CSV for spreadsheets, a table for the terminal."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from flaresemi.errors import DatasetError, listed
from flaresemi.evaluation.flare import OrganMetrics
from flaresemi.evaluation.folders import CaseScores, default_tolerance_mm, match_cases, score_cases, stored_otherwise
from flaresemi.files import open_regular
from flaresemi.labels import LabelSet
from flaresemi.ranges import DistanceMm, Few, OtherMetric, Share
from flaresemi.records import load_record, save_record
from flaresemi.tables import write_table

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1

#: Of the table: case, organ, and its scores.
_COLUMNS = ("case", "organ", *(field.name for field in dataclasses.fields(OrganMetrics) if field.name != "more"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """One metric of one organ over the cases that have it.

    Attributes:
        count: How many cases.
        sd: Standard deviation of the sample (n - 1); None for a single case.
    """

    count: Few
    mean: DistanceMm
    sd: DistanceMm | None
    median: DistanceMm


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
        more: Means of other packages' metrics, over the cases where they give a number.
    """

    name: str
    tolerance_mm: DistanceMm
    z_range: bool
    cases: Few
    present: Few
    dice: Statistics | None
    nsd: Statistics | None
    hd95_mm: Statistics | None
    more: dict[str, OtherMetric | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("dice", "nsd"):
            found = getattr(self, name)
            if found is not None and max(found.mean, found.median, found.sd or 0.0) > 1:
                raise ValueError(f"{name} lies between 0 and 1, found {found.mean} and {found.median}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All scores of a set of predictions.

    Attributes:
        official: Whether the peculiarities of the organizers' scripts were reproduced.
        mean_dice: Mean over the organs of the organs' means; None where nothing was scored.
        mean_nsd: The same.
        mean_hd95_mm: The same, over the organs that have one.
        mean_dice_present: As `mean_dice`, of the cases alone whose reference has the organ: an absent organ that is
            rightly not found counts 1 by FLARE's rules, which says little where many are absent.
        mean_nsd_present: The same.
        organs: In the order of the label set.
        missing: Cases with a reference and no prediction. They count nowhere.
        cases: The scores, in the order of the case names.
        cautions: Why a score may say less than it seems to.
    """

    schema_version: int = SCHEMA_VERSION
    official: bool
    mean_dice: Share | None
    mean_nsd: Share | None
    mean_hd95_mm: DistanceMm | None
    mean_dice_present: Share | None
    mean_nsd_present: Share | None
    organs: tuple[OrganSummary, ...]
    missing: tuple[str, ...]
    cases: tuple[CaseScores, ...]
    cautions: tuple[str, ...] = ()


def evaluate_folders(
    predictions: Path | Mapping[str, Path],
    references: Path | Mapping[str, Path],
    labels: LabelSet,
    *,
    annotated: Mapping[str, tuple[str, ...]] | None = None,
    official: bool = False,
    allow_missing: bool = False,
    workers: int | None = None,
    images: Mapping[str, Path] | None = None,
    metrics: Sequence[str] = (),
) -> Summary:
    """Scores the predictions of many cases.

    The surface Dice tolerance of organs that name none is the larger of 2 mm and the coarsest median spacing of the
    references.

    Args:
        predictions: A folder of label maps named by case, one such file, or the file of each case.
        references: The same; the cases are those that have a reference.
        labels: The organs, with the values that stand for them in all files.
        annotated: Per case, the organs that its reference annotates; cases that are not named annotate all.
        official: See `evaluate_case`.
        allow_missing: Score the cases that have a prediction and list the others, instead of refusing.
        workers: Processes; None: as many as cores and free memory allow, where there is work for them.
        images: The image of each case, where it is known: programs that write label maps may take it to lie elsewhere.
        metrics: Names of metrics that installed packages declare.

    Raises:
        DatasetError: a folder is not there or holds no label map, a prediction is missing, two files stand for one
            case.
        ImageError: a file cannot be read, has undeclared values, or does not lie on its reference's grid.
    """
    found = match_cases(predictions, references, annotated or {}, images)
    if found.missing and not (allow_missing and found.pairs):
        raise DatasetError(
            f"{len(found.missing)} of {len(found.missing) + len(found.pairs)} cases have no prediction: "
            f"{_few(found.missing)}",
            where=predictions if isinstance(predictions, Path) else None,
            fix="--allow-missing scores the others" if found.pairs else "predictions are named like their references",
        )
    if found.surplus:
        logger.warning(
            "%d prediction(s) have no reference and are left out: %s", len(found.surplus), _few(found.surplus)
        )
    tolerance_mm = default_tolerance_mm([pair.reference for pair in found.pairs])
    scores = score_cases(
        found.pairs, labels, default_tolerance_mm=tolerance_mm, official=official, workers=workers, metrics=metrics
    )
    summary = summarize(scores, labels, default_tolerance_mm=tolerance_mm, official=official, missing=found.missing)
    if official and (others := stored_otherwise(found.pairs)):
        caution = (
            "the organizers' script looks at no header, and would compare other voxels with each other where "
            f"prediction and reference store them in different orders: {listed(others)}"
        )
        summary = dataclasses.replace(summary, cautions=(*summary.cautions, caution))
    for caution in summary.cautions:
        logger.warning("%s", caution)
    return summary


def summarize(
    cases: Sequence[CaseScores],
    labels: LabelSet,
    *,
    default_tolerance_mm: float,
    official: bool = False,
    missing: Sequence[str] = (),
) -> Summary:
    """The record of scored cases. `default_tolerance_mm` and `official` are what they were scored with."""
    organs, present_dice, present_nsd = [], [], []
    for label in labels.labels:
        scores = [score for case in cases if (score := case.organs[label.name]).dice is not None]
        present = [score for score in scores if score.reference_ml]
        present_dice.append(_statistics(present, "dice"))
        present_nsd.append(_statistics(present, "nsd"))
        organs.append(
            OrganSummary(
                name=label.name,
                tolerance_mm=default_tolerance_mm if label.tolerance_mm is None else label.tolerance_mm,
                z_range=label.z_range,
                cases=len(scores),
                present=len(present),
                dice=_statistics(scores, "dice"),
                nsd=_statistics(scores, "nsd"),
                hd95_mm=_statistics(scores, "hd95_mm"),
                more={name: _mean_of([score.more[name] for score in scores]) for name in _other_metrics(scores)},
            )
        )
    return Summary(
        official=official,
        mean_dice=_mean([organ.dice for organ in organs]),
        mean_nsd=_mean([organ.nsd for organ in organs]),
        mean_hd95_mm=_mean([organ.hd95_mm for organ in organs]),
        mean_dice_present=_mean(present_dice),
        mean_nsd_present=_mean(present_nsd),
        organs=tuple(organs),
        missing=tuple(sorted(missing)),
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        cautions=tuple(_cautions(organs, cases)),
    )


def _cautions(organs: Sequence[OrganSummary], cases: Sequence[CaseScores]) -> Iterator[str]:
    """Organs whose tolerance is larger than they are: surfaces anywhere in them count as equal."""
    small = []
    for organ in organs:
        scores = (case.organs[organ.name] for case in cases)
        volumes = [score.reference_ml for score in scores if score.nsd is not None]
        sizes_mm = [2 * (3000 * volume / (4 * math.pi)) ** (1 / 3) for volume in volumes if volume]
        if any(size <= organ.tolerance_mm for size in sizes_mm):
            count = sum(size <= organ.tolerance_mm for size in sizes_mm)
            small.append(f"{organ.name} ({count} of {len(sizes_mm)} case(s), from {min(sizes_mm):.2g} mm)")
    if small:
        yield (
            "the NSD says nothing where its tolerance is larger than the organ (the diameter of a ball of its volume): "
            f"{listed(small)}; give tolerances_mm in dataset.json, and check the spacing"
        )


def save_summary(path: Path, summary: Summary) -> None:
    """Writes a summary as JSON, and beside it, ending .csv, one row per case and organ. Both atomically."""
    path = Path(path)
    columns, others = _COLUMNS[2:], _other_metrics([score for case in summary.cases for score in case.organs.values()])
    rows = [[*_COLUMNS, *others]]
    for case in summary.cases:
        for organ, score in case.organs.items():
            values = [getattr(score, column) for column in columns] + [score.more.get(name) for name in others]
            rows.append([case.case_id, organ, *map(_rounded, values)])
    write_table(path.with_suffix(".csv"), rows)
    save_record(path, summary)


def is_score_table(path: Path) -> bool:
    """Whether a file is a table of scores that `save_summary` wrote, by its first line."""
    with open(path, "rb", opener=open_regular) as file:
        return file.readline(1000).strip().startswith(",".join(_COLUMNS).encode())


def load_summary(path: Path) -> Summary:
    """Reads what `save_summary` wrote.

    Raises:
        DatasetError: the file is missing or is no summary.
    """
    return load_record(path, Summary, error=DatasetError)


def table(summary: Summary) -> str:
    """A summary for a terminal: a row per organ, then the means, then what to know about them."""
    others = list(dict.fromkeys(name for organ in summary.organs for name in organ.more))
    rows = [("", "cases", "present", "Dice", "median", "NSD", "HD95 mm", *others)]
    for organ in summary.organs:
        rows.append(
            (
                organ.name + (" *" if organ.z_range else ""),
                str(organ.cases),
                str(organ.present),
                _spread(organ.dice, 3),
                f"{organ.dice.median:.3f}" if organ.dice else "-",
                _spread(organ.nsd, 3),
                _spread(organ.hd95_mm, _decimals(organ.hd95_mm.mean if organ.hd95_mm else None)),
                *(_figure(organ.more.get(name)) for name in others),
            )
        )
    hd95_mm = _figure(summary.mean_hd95_mm, _decimals(summary.mean_hd95_mm))
    means_of_others = [_figure(_mean_of([organ.more.get(name) for organ in summary.organs])) for name in others]
    last_columns = (hd95_mm, *means_of_others)
    means = [("mean over organs", "", "", _figure(summary.mean_dice), "", _figure(summary.mean_nsd), *last_columns)]
    if any(organ.present < organ.cases for organ in summary.organs):
        present = _figure(summary.mean_dice_present), "", _figure(summary.mean_nsd_present)
        means.append(("mean where present", "", "", *present, *last_columns))
    widths = [max(len(row[column]) for row in rows + means) for column in range(len(rows[0]))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows + means]
    rule = "-" * max(map(len, lines))
    organs, last = lines[1 : len(rows)], lines[len(rows) :]
    return "\n".join([lines[0], rule, *organs, rule, *last, *_notes(summary)])


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
        notes.append(f"no prediction, counted nowhere: {_few(summary.missing)}")
    notes += [f"caution: {caution}" for caution in summary.cautions]
    return notes


def _decimals(value_mm: float | None) -> int:
    """Digits behind the point of a distance: one, of small ones so many that two digits count."""
    return 1 if not value_mm or value_mm >= 1 else 1 - math.floor(math.log10(value_mm))


def _statistics(scores: Sequence[OrganMetrics], metric: str) -> Statistics | None:
    values = [value for score in scores if (value := getattr(score, metric)) is not None]
    if not values:
        return None
    return Statistics(
        count=len(values),
        mean=float(np.mean(values)),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        median=float(np.median(values)),
    )


def _other_metrics(scores: Sequence[OrganMetrics]) -> list[str]:
    return list(dict.fromkeys(name for score in scores for name in score.more))


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean(statistics: Sequence[Statistics | None]) -> float | None:
    means = [each.mean for each in statistics if each is not None]
    return float(np.mean(means)) if means else None


def _spread(statistics: Statistics | None, digits: int) -> str:
    if statistics is None:
        return "-"
    mean = _figure(statistics.mean, digits)
    return mean if statistics.sd is None else f"{mean} ± {_figure(statistics.sd, digits)}"


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _few(case_ids: Sequence[str]) -> str:
    return ", ".join(case_ids[:10]) + (f" and {len(case_ids) - 10} more" if len(case_ids) > 10 else "")


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
