"""Label maps on disk: which prediction belongs to which reference, and the scores of each pair."""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flaresemi.case_names import check_name, refuse_alike
from flaresemi.compute.parallel import parallel_map, worker_count
from flaresemi.errors import DatasetError, ImageError
from flaresemi.evaluation.flare import OrganMetrics, evaluate_case
from flaresemi.evaluation.metrics import load_metrics
from flaresemi.image_paths import IMAGE_ENDINGS, label_stem
from flaresemi.io.images import LabelMap, read_grid, read_label_map
from flaresemi.io.segments import EXPORT, RENUMBER, contradictions
from flaresemi.labels import LabelSet, count_values

logger = logging.getLogger(__name__)

#: Least tolerance of the surface Dice where nobody declared one.
SMALLEST_TOLERANCE_MM = 2.0

#: Corners of prediction and reference may be this share of the finest spacing apart: each voxel still lies on its own.
#: Chosen; headers written by different programs differ by rounding in float32, up to some hundredths of a millimetre.
GRID_TOLERANCE = 0.25

#: Share of the marked voxels that must agree as they are stored for a header to be suspected. Chosen: another scan's or
#: a mirrored label map reaches a third at most.
_LEAST_STORED_AGREEMENT = 0.5

#: Voxels in all cases from which on starting processes (some seconds each) is worth it.
_WORTH_PROCESSES = 50_000_000

#: Two label maps as read and as indices, and the distance transform of a large organ.
_BYTES_PER_VOXEL = 24


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CasePair:
    """The two label maps of a case.

    Attributes:
        annotated: Names of the organs that the reference annotates; None: all.
        image: Their image, which tells where label maps of several programs lie; None: not known.
    """

    case_id: str
    prediction: Path
    reference: Path
    annotated: tuple[str, ...] | None = None
    image: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Which predictions belong to which references.

    Attributes:
        pairs: Sorted by case.
        missing: Cases with a reference only, sorted.
        surplus: Cases with a prediction only, sorted.
    """

    pairs: tuple[CasePair, ...]
    missing: tuple[str, ...]
    surplus: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaseScores:
    """The scores of one case, by organ."""

    case_id: str
    organs: dict[str, OrganMetrics]


def match_cases(
    predictions: Path | Mapping[str, Path],
    references: Path | Mapping[str, Path],
    annotated: Mapping[str, tuple[str, ...]],
    images: Mapping[str, Path] | None = None,
) -> Matches:
    """Pairs files by case, which is the name without its ending; two single files form a pair whatever their names.

    Args:
        predictions: A folder, a file, or the file of each case.
        references: The same.
        annotated: See `CasePair`; cases that are not named annotate all.
        images: The image of each case, where it is known. Without it, some pairs cannot be read; see `read_pair`.

    Raises:
        DatasetError: a folder or file is not there, a folder holds no label map, or two files stand for one case.
    """
    referred = files_by_case(references)
    predicted = {case_id: path for case_id, path in files_by_case(predictions).items() if path.exists()}
    if _is_file(predictions) and _is_file(references):
        predicted = dict(zip(referred, predicted.values()))
    pairs = tuple(
        CasePair(
            case_id=case_id,
            prediction=predicted[case_id],
            reference=reference,
            annotated=annotated.get(case_id),
            image=(images or {}).get(case_id),
        )
        for case_id, reference in sorted(referred.items())
        if case_id in predicted
    )
    return Matches(
        pairs=pairs,
        missing=tuple(sorted(referred.keys() - predicted.keys())),
        surplus=tuple(sorted(predicted.keys() - referred.keys())),
    )


def default_tolerance_mm(references: Sequence[Path]) -> float:
    """Tolerance of the surface Dice for organs that name none: 2 mm or the coarsest median spacing, if that is larger.

    A tolerance below the slice distance would judge the grid and not the segmentation.

    Raises:
        ImageError: a header cannot be read.
    """
    spacings = [read_grid(path).canonical.spacing_zyx_mm for path in references]
    return max(SMALLEST_TOLERANCE_MM, float(np.median(spacings, axis=0).max()))


def stored_otherwise(pairs: Sequence[CasePair]) -> tuple[str, ...]:
    """The cases whose prediction and reference store their voxels in different orders.

    Raises:
        ImageError: a header cannot be read.
    """
    grids = ((pair.case_id, read_grid(pair.prediction), read_grid(pair.reference)) for pair in pairs)
    return tuple(name for name, one, other in grids if (one.axes, one.flips) != (other.axes, other.flips))


def score_cases(
    pairs: Sequence[CasePair],
    labels: LabelSet,
    *,
    default_tolerance_mm: float,
    official: bool = False,
    workers: int | None = None,
    metrics: Sequence[str] = (),
) -> tuple[CaseScores, ...]:
    """Scores pairs of files in parallel, in the order of `pairs`.

    Raises:
        ImageError: a file cannot be read, has undeclared values, or does not lie on its reference's grid.
    """
    voxels = [math.prod(read_grid(pair.reference).geometry.shape_zyx) for pair in pairs]
    if workers is None and sum(voxels) < _WORTH_PROCESSES:
        workers = 1
    count = worker_count(0.5 + max(voxels, default=0) * _BYTES_PER_VOXEL / 2**30, workers)
    score = functools.partial(
        score_pair, labels=labels, default_tolerance_mm=default_tolerance_mm, official=official, metrics=tuple(metrics)
    )
    scored = {pair.case_id: scores for pair, scores in parallel_map(score, pairs, workers=count, progress="evaluation")}
    return tuple(scored[pair.case_id] for pair in pairs)


def score_pair(
    pair: CasePair,
    *,
    labels: LabelSet,
    default_tolerance_mm: float,
    official: bool = False,
    metrics: Sequence[str] = (),
) -> CaseScores:
    """Reads and scores one case; officially, in the order in which the reference's file has its slices.

    Raises:
        ImageError: as `score_cases`.
    """
    prediction, reference = read_pair(pair, labels)
    for path, label_map in ((pair.prediction, prediction), (pair.reference, reference)):
        allowed = labels if label_map is reference else dataclasses.replace(labels, ignore=None)
        unknown = allowed.unknown_values(label_map.array_zyx)
        if unknown:
            known = sorted(allowed.known_values)
            raise ImageError(
                f"case '{pair.case_id}': label map has value {', '.join(map(str, unknown[:10]))}, "
                f"declared are {_ranges(known)}",
                where=path,
                fix='add the organ to "labels" in dataset.json (and name its folder with -d), or correct the file',
            )
    arrays = [labels.to_indices(each.array_zyx) for each in (prediction, reference)]
    spacing = reference.geometry.spacing_zyx_mm
    if official:  # its slices are those of the file's last axis as nibabel loads it, which is the first one here
        arrays = [reference.source.to_file(array) for array in arrays]
        spacing = reference.source.geometry.spacing_zyx_mm
    scores = evaluate_case(
        arrays[0],
        arrays[1],
        spacing,
        labels,
        default_tolerance_mm=default_tolerance_mm,
        annotated=pair.annotated,
        official=official,
        metrics=load_metrics(metrics),
    )
    return CaseScores(case_id=pair.case_id, organs=dict(zip(labels.names, scores, strict=True)))


def read_pair(pair: CasePair, labels: LabelSet) -> tuple[LabelMap, LabelMap]:
    """Prediction and reference of a case, on one grid.

    Raises:
        ImageError: a file cannot be read, or they do not lie on one grid.
    """
    maps = []
    for path in (pair.prediction, pair.reference):
        label_map = read_label_map(path, labels)
        values = list(count_values(label_map.array_zyx)) if label_map.segments else ()
        wrong, strange = contradictions(label_map.segments, labels, values)
        if wrong:
            raise ImageError(f"case '{pair.case_id}': {wrong[0]}", where=path, fix=RENUMBER)
        for what in strange:
            logger.warning("%s: %s", path, what)
        maps.append(label_map)
    prediction, reference = maps
    if pair.image is not None and prediction.source.geometry != reference.source.geometry:
        with contextlib.suppress(ImageError):  # it is only asked
            image = read_grid(pair.image)
            prediction, reference = prediction.on(image, GRID_TOLERANCE), reference.on(image, GRID_TOLERANCE)
    if prediction.source.matches_as_stored(reference.source, GRID_TOLERANCE):
        logger.warning(
            "case '%s': prediction and reference lie on each other by NIfTI's sform in one header and by the qform in "
            "the other; their voxels are compared one by one",
            pair.case_id,
        )
    reference = reference.on(prediction.source, GRID_TOLERANCE)
    prediction = prediction.on(reference.source, GRID_TOLERANCE)
    distance = prediction.geometry.far_corner_distance_mm(reference.geometry)
    if distance > GRID_TOLERANCE * min(reference.geometry.spacing_zyx_mm):
        found = (
            f"{prediction.geometry.shape_zyx} and {reference.geometry.shape_zyx} voxels (z, y, x)"
            if math.isinf(distance)
            else f"their corners are {distance:.3g} mm apart"
        )
        fix = EXPORT if reference.source.cropped else "predict the image that the reference was drawn on"
        if prediction.source.cropped and reference.source.cropped:
            fix = "each is cropped to a part of its image: name the images, with -d or --images"
        raise ImageError(
            f"case '{pair.case_id}': prediction and reference lie on different grids: {found}",
            where=f"{pair.prediction} and {pair.reference}",
            fix=fix,
        )
    _refuse_mirrored(pair, prediction, reference, labels.background)
    return prediction, reference


def _refuse_mirrored(pair: CasePair, prediction: LabelMap, reference: LabelMap, background: int) -> None:
    """Refuses files that agree voxel by voxel as they are stored, but not where their headers place them.

    A prediction that is only bad agrees in neither way.
    """
    ours, theirs = prediction.source, reference.source
    if (ours.axes, ours.flips) == (theirs.axes, theirs.flips) or ours.geometry.shape_zyx != theirs.geometry.shape_zyx:
        return
    placed = _agreement(prediction.array_zyx, reference.array_zyx, background)
    if placed > _LEAST_STORED_AGREEMENT:
        return
    stored = _agreement(ours.to_file(prediction.array_zyx), theirs.to_file(reference.array_zyx), background)
    if stored > max(_LEAST_STORED_AGREEMENT, 2 * placed):
        raise ImageError(
            f"case '{pair.case_id}': prediction and reference agree voxel by voxel as they are stored ({stored:.0%} of "
            f"what is marked), but not where their headers place them ({placed:.0%})",
            where=f"{pair.prediction} and {pair.reference}",
            fix="one header is mirrored; if that is since their image's sform and qform differ, name the images: "
            "-d DATASET or --images FOLDER",
        )


def _agreement(one: np.ndarray, other: np.ndarray, background: int) -> float:
    """Of the voxels that are marked in either array, the share that is marked alike."""
    marked = (one != background) | (other != background)
    return np.count_nonzero(marked & (one == other)) / max(int(np.count_nonzero(marked)), 1)


def files_by_case(source: Path | Mapping[str, Path]) -> dict[str, Path]:
    """The label maps of a folder by their names without ending; or one file, or what is given by case already.

    Raises:
        DatasetError: there is no such place, no label map in it, or two for one case.
    """
    if not isinstance(source, Path):
        return dict(source)
    if source.is_file():
        return {label_stem(source) or source.name: source}
    if not source.is_dir():
        raise DatasetError("folder not found", where=source)
    files: dict[str, Path] = {}
    for path in sorted(source.iterdir()):
        case_id = None if path.name.startswith(".") else label_stem(path)
        if case_id is None:
            continue
        if case_id in files:
            raise DatasetError(f"two label maps for case '{case_id}'", where=f"{files[case_id]} and {path}")
        files[check_name(case_id, where=path)] = path
    refuse_alike(files, where=source)
    if not files:
        raise DatasetError(
            "no label maps in this folder", where=source, fix=f"label maps end with {', '.join(IMAGE_ENDINGS)}"
        )
    return files


def _is_file(source: Path | Mapping[str, Path]) -> bool:
    return isinstance(source, Path) and source.is_file()


def _ranges(values: Sequence[int]) -> str:
    """Sorted integers as '0-13, 20'."""
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
