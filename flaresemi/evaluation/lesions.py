"""Scores of single lesions: which were found, which were missed, and what was called one without being one."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import cc3d
import numpy as np

from flaresemi.compute.parallel import parallel_map
from flaresemi.evaluation.folders import CasePair, read_pair
from flaresemi.evaluation.overlap import without_ignored
from flaresemi.files import open_regular
from flaresemi.labels import LabelSet
from flaresemi.tables import write_table

#: A lesion is found if a predicted one covers it to this intersection over union. Chosen: as nnDetection scores; what
#: finds a lesion need not outline it, which its Dice tells.
LEAST_IOU = 0.1

#: Borders of the volumes that are told apart, ml. Chosen: balls of 6, 12 and 27 mm.
BINS_ML = (0.1, 1.0, 10.0)

COLUMNS = ("case", "organ", "lesion", "reference_ml", "prediction_ml", "dice")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LesionScore:
    """One lesion of one case.

    Attributes:
        organ: What it is one of.
        kind: `found`, `missed` (in the reference alone) or `false` (in the prediction alone).
        reference_ml: Its volume in the reference; None: it is not there.
        prediction_ml: The same in the prediction.
        dice: Of the two; None but for one that was found.
    """

    case_id: str
    organ: str
    kind: str
    reference_ml: float | None
    prediction_ml: float | None
    dice: float | None


def score_lesions(
    case_id: str,
    prediction_zyx: np.ndarray,
    reference_zyx: np.ndarray,
    spacing_zyx_mm: tuple[float, float, float],
    labels: LabelSet,
    organs: Sequence[str],
) -> list[LesionScore]:
    """Matches the lesions of a prediction with those of its reference.

    A lesion is what hangs together, corners included. Each is matched once at most, those that overlap most first.
    Voxels that nobody annotated in the reference count nowhere.

    Args:
        case_id: The case.
        prediction_zyx: Internal indices.
        reference_zyx: The same, of the same shape.
        spacing_zyx_mm: Distance between voxel centers.
        labels: The organs.
        organs: Names of those whose pieces are lesions.
    """
    prediction_zyx, reference_zyx, _ = without_ignored(prediction_zyx, reference_zyx, labels)
    voxel_ml = float(np.prod(spacing_zyx_mm)) / 1000
    scores = []
    for organ in organs:
        masks = (labels.mask(each, labels.index(organ)) for each in (prediction_zyx, reference_zyx))
        predicted, referred = (cc3d.connected_components(mask, connectivity=26) for mask in masks)
        in_prediction, in_reference = (np.bincount(each.ravel()) for each in (predicted, referred))
        pairs = _matched(predicted, referred, in_prediction, in_reference)
        for number in range(1, len(in_reference)):
            partner, shared = pairs.get(number, (0, 0))
            sizes = in_reference[number], in_prediction[partner]
            scores.append(
                LesionScore(
                    case_id=case_id,
                    organ=organ,
                    kind="found" if partner else "missed",
                    reference_ml=float(sizes[0]) * voxel_ml,
                    prediction_ml=float(sizes[1]) * voxel_ml if partner else None,
                    dice=2 * shared / float(sum(sizes)) if partner else None,
                )
            )
        taken = {partner for partner, _ in pairs.values()}
        for number in set(range(1, len(in_prediction))) - taken:
            volume = float(in_prediction[number]) * voxel_ml
            scores.append(
                LesionScore(
                    case_id=case_id, organ=organ, kind="false", reference_ml=None, prediction_ml=volume, dice=None
                )
            )
    return scores


def _matched(
    predicted: np.ndarray, referred: np.ndarray, in_prediction: np.ndarray, in_reference: np.ndarray
) -> dict[int, tuple[int, int]]:
    """For each lesion of the reference that was found, its partner and the voxels that they share."""
    both = (predicted > 0) & (referred > 0)
    found, counts = np.unique(np.stack([referred[both], predicted[both]]), axis=1, return_counts=True)
    overlaps = [
        (int(count) / float(in_reference[one] + in_prediction[other] - count), int(one), int(other), int(count))
        for (one, other), count in zip(found.T, counts, strict=True)
    ]
    pairs: dict[int, tuple[int, int]] = {}
    taken: set[int] = set()
    for iou, one, other, count in sorted(overlaps, key=lambda overlap: (-overlap[0], *overlap[1:])):
        if iou >= LEAST_IOU and one not in pairs and other not in taken:
            pairs[one] = other, count
            taken.add(other)
    return pairs


def lesions_of_pairs(
    pairs: Sequence[CasePair], labels: LabelSet, organs: Sequence[str], *, workers: int
) -> list[LesionScore]:
    """The lesions of many cases, by case.

    Raises:
        ImageError: a file cannot be read, or the two of a case do not lie on one grid.
    """
    score = functools.partial(_score_pair, labels=labels, organs=tuple(organs))
    found = {pair.case_id: scores for pair, scores in parallel_map(score, pairs, workers=workers, progress="lesions")}
    return [each for pair in pairs for each in found[pair.case_id]]


def _score_pair(pair: CasePair, *, labels: LabelSet, organs: Sequence[str]) -> list[LesionScore]:
    prediction, reference = read_pair(pair, labels)
    predicted, referred = (labels.to_indices(each.array_zyx) for each in (prediction, reference))
    known = [name for name in organs if pair.annotated is None or name in pair.annotated]
    return score_lesions(pair.case_id, predicted, referred, reference.geometry.spacing_zyx_mm, labels, known)


def save_lesions(path: Path, scores: Sequence[LesionScore]) -> None:
    """Writes a row for every lesion.

    Raises:
        OSError: it cannot be written.
    """
    rows = [
        (each.case_id, each.organ, each.kind, *map(_rounded, (each.reference_ml, each.prediction_ml, each.dice)))
        for each in scores
    ]
    write_table(path, [COLUMNS, *rows])


def is_lesion_table(path: Path) -> bool:
    """Whether a file is a table that `save_lesions` wrote, by its first line."""
    with open(path, "rb", opener=open_regular) as file:
        return file.readline(1000).strip() == ",".join(COLUMNS).encode()


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def lesions_told(scores: Sequence[LesionScore], organs: Sequence[str], cases: int) -> str:
    """The lesions of all cases as a table for a terminal, by volume in the reference; false ones by their own."""
    edges = (0.0, *BINS_ML, float("inf"))
    rows = [("", "ml", "lesions", "found", "missed", "false", "Dice of the found")]
    for organ in organs:
        of_organ = [each for each in scores if each.organ == organ]
        for low, high in (*itertools.pairwise(edges), (0.0, float("inf"))):
            inside = [each for each in of_organ if low <= (each.reference_ml or each.prediction_ml or 0.0) < high]
            count = {kind: sum(each.kind == kind for each in inside) for kind in ("found", "missed", "false")}
            dice = [each.dice for each in inside if each.dice is not None]
            total = count["found"] + count["missed"]
            share = f" ({count['found'] / total:.0%})" if total else ""
            is_all = (low, high) == (0.0, float("inf"))
            volumes = "all" if is_all else f"{low:g} to {high:g}" if high < float("inf") else f"from {low:g}"
            mean = f"{np.mean(dice):.3f}" if dice else "-"
            found, missed, false = (str(count[kind]) for kind in ("found", "missed", "false"))
            rows.append((organ, volumes, str(total), f"{found}{share}", missed, false, mean))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [*lines, f"lesions of {cases} case(s); found: an intersection over union of {LEAST_IOU:g} and more, each once"]
    )
