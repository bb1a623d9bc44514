"""Facts of every file of a dataset, gathered in one parallel pass and kept, so that no file is read twice.

Labeled cases have their part of the fingerprint measured in this pass, too. Nothing is judged here; see `rules`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import time
from pathlib import Path
from typing import Annotated

import numpy as np

from flaresemi.appearance import Look
from flaresemi.compute.parallel import parallel_map, worker_count
from flaresemi.dataset import Case, Dataset
from flaresemi.errors import DatasetError, FlaresemiError, ImageError
from flaresemi.geometry import BoundingBox, Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.image_file import files_of
from flaresemi.io.images import Image, LabelMap, read_image, read_label_map
from flaresemi.io.segments import Segment
from flaresemi.labels import LabelSet, count_values
from flaresemi.planning.cases import GRID_TOLERANCE_VOXELS, organs_of
from flaresemi.planning.fingerprint import dependencies, gib_to_measure, keep, measure
from flaresemi.planning.sources import FileStamp, file_stamp, stamps
from flaresemi.plans import BodyRule, ChannelFacts, body_rule
from flaresemi.preprocessing.looks import look_at, measure_channel
from flaresemi.preprocessing.preprocessor import prepare
from flaresemi.ranges import Count, DistanceMm, LabelValue, Range
from flaresemi.records import load_record, save_record

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2

#: Values of a label map are listed up to this many; more is no label map. Chosen: many more than anybody has organs.
MAX_LISTED_VALUES = 4096

#: Main memory per byte of an image file while it is looked at. Measured: 6.2 bytes per voxel; CTs take 0.3 to 0.95
#: bytes per voxel compressed.
_BYTES_PER_COMPRESSED_BYTE = 25
_BYTES_PER_RAW_BYTE = 7

_SECONDS_BETWEEN_SAVES = 20.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a file cannot be used, as its reader says it."""

    file: str
    what: str
    fix: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """An image that can be read.

    Attributes:
        source: Its grid.
        channels: Its intensities.
        non_finite: Voxels that are NaN or infinite.
        disagreement_mm: How far apart NIfTI's two affines place it.
        content: Hash of its voxels in canonical order; without spacing, origin and direction, which exports lose.
        body: How the patient was looked for; None in images without a label map, where nobody asks.
        body_box: What was found.
        modalities: Of each channel, what DICOM calls it (CT, MR and so on); "" where no file says it.
        other_position: Whether a channel lies on the first only as it is stored, see `Image`.
    """

    source: SourceGrid
    channels: tuple[ChannelFacts, ...]
    non_finite: Count
    disagreement_mm: DistanceMm
    content: str
    body: BodyRule | None = None
    body_box: BoundingBox | None = None
    modalities: tuple[str, ...] = ()
    other_position: bool = False

    @property
    def geometry(self) -> Geometry:
        return self.source.canonical


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """A label map that can be read.

    Attributes:
        source: Its grid.
        values: The integers in it, ascending, at most `MAX_LISTED_VALUES`.
        counts: How many voxels each has.
        content: Hash of its voxels in canonical order.
        outside_body: How many voxels of each value lie outside of the image's `body_box`; empty where none does.
        segments: What the values stand for, where the file says it.
    """

    source: SourceGrid
    values: tuple[Annotated[int, Range(-(2**64), 2**64)], ...]
    counts: tuple[Count, ...]
    content: str
    segments: tuple[Segment, ...] = ()
    outside_body: tuple[Count, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaseFacts:
    """Everything that was seen of one case. Either part is None where it cannot be read; `problems` says why.

    Attributes:
        organs: The dataset's values by name, where they count in reading its label map; see `_organs`.
    """

    case_id: str
    files: tuple[FileStamp, ...]
    image: ImageFacts | None
    label: LabelFacts | None
    problems: tuple[Problem, ...]
    organs: dict[str, LabelValue] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InspectedCases:
    """The file that facts are kept in."""

    schema_version: int = SCHEMA_VERSION
    cases: tuple[CaseFacts, ...]


def inspect_dataset(
    dataset: Dataset, cache: Path | None, *, workers: int | None, measured: Path | None = None
) -> dict[str, CaseFacts]:
    """Facts of every case, labeled, unlabeled and test; files that have not changed since are not read again.

    Args:
        dataset: What to look at.
        cache: File that facts are kept in; None: nowhere.
        workers: Processes; None: as many as cores and memory allow.
        measured: Folder of `fingerprint_dataset`, for what is measured of labeled cases on the way; None: nothing is.
    """
    cases = {case.id: case for case in (*dataset.labeled, *dataset.unlabeled, *dataset.test)}
    organs = _organs(dataset.labels)
    known = _load(cache)
    body = body_rule(dataset.channels)
    facts = {case.id: known[case.id] for case in cases.values() if _is_current(known.get(case.id), case, body, organs)}
    waiting = [case for case in cases.values() if case.id not in facts]
    if not waiting:
        return facts
    logger.info("looking into %d case(s)%s", len(waiting), f"; {len(facts)} known" if facts else "")
    labeled = [case for case in waiting if case.label is not None]
    count = worker_count(max(gib_to_measure(labeled), *map(_gib_to_inspect, waiting)), workers)
    inspect = functools.partial(inspect_case, body=body, labels=dataset.labels, measured=measured)
    _save(cache, facts)  # before anything else is written: by it the folder is known as a workspace
    saved = time.monotonic()
    try:
        for case, found in parallel_map(inspect, waiting, workers=count, progress="integrity", mute=True):
            facts[case.id] = found
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                _save(cache, facts)
                saved = time.monotonic()
    finally:
        _save(cache, facts)
    return {case_id: facts[case_id] for case_id in cases}


def not_inspected(dataset: Dataset, cache: Path) -> list[str]:
    """The cases of which nothing is kept that was seen in the files as they are; see `inspect_dataset`."""
    known, body, organs = _load(cache), body_rule(dataset.channels), _organs(dataset.labels)
    cases = {case.id: case for case in (*dataset.labeled, *dataset.unlabeled, *dataset.test)}
    return sorted(name for name, case in cases.items() if not _is_current(known.get(name), case, body, organs))


def _is_current(known: CaseFacts | None, case: Case, body: BodyRule, organs: dict[str, int]) -> bool:
    """Whether what is known of a case was seen in the files that there are, by this rule and these names."""
    if known is None or known.files != stamps(case) or known.organs not in (None, organs):
        return False
    return known.label is None or known.image is None or known.image.body == body


def inspect_case(case: Case, body: BodyRule, labels: LabelSet, measured: Path | None) -> CaseFacts:
    """Reads the files of one case; what is wrong with them is noted, not raised.

    Args:
        case: The case.
        body: How the patient is found.
        labels: The dataset's organs.
        measured: As for `inspect_dataset`.
    """
    files, depends_on = stamps(case), dependencies(case, labels, body)
    problems: list[Problem] = []
    image = _read_image(case, problems)
    prepared = None if image is None or case.label is None else prepare(image, body)
    look = None if prepared is None else look_at(prepared)
    found = None if image is None else _image_facts(image, body, look)
    label = _read_label(case, labels, problems)
    if measured is not None and prepared is not None and look is not None and label is not None:
        with contextlib.suppress(DatasetError):  # the rules say why; once it is decided upon, the fingerprint reads it
            indices = organs_of(case, labels, label, prepared.image.source)
            keep(measured, case, measure(case, labels, prepared, look, indices), depends_on)
    return CaseFacts(
        case_id=case.id,
        files=files,
        image=found,
        label=None if label is None else _label_facts(label, found),
        problems=tuple(problems),
        organs=_organs(labels) if _has_names(case) else None,
    )


def _image_facts(image: Image, body: BodyRule, look: Look | None) -> ImageFacts:
    return ImageFacts(
        source=image.source,
        channels=tuple(map(measure_channel, image.array_czyx)) if look is None else look.channels,
        non_finite=image.non_finite,
        disagreement_mm=image.disagreement_mm,
        content=_hash(image.array_czyx),
        body=None if look is None else body,
        modalities=image.modalities,
        other_position=image.other_position,
        body_box=None if look is None else look.body_box,
    )


def _read_image(case: Case, problems: list[Problem]) -> Image | None:
    try:
        return read_image(case.images)
    except ImageError as error:
        together = [error]
    # The reader stops at the first channel that it cannot take; the user shall hear of all of them.
    alone = [problem for path in case.images if (problem := _trouble(path)) is not None]
    problems.extend(map(_problem, alone or together))
    return None


def _trouble(path: Path) -> ImageError | None:
    try:
        read_image([path])
    except ImageError as error:
        return error
    return None


def _problem(error: FlaresemiError) -> Problem:
    return Problem(file=error.where or "", what=error.what, fix=error.fix or "correct the file, or remove the case")


def _has_names(case: Case) -> bool:
    """Whether segments of a label map may have names, which `read_label_map` reads them by."""
    return case.label is not None and case.label.name.lower().endswith((".nrrd", ".dcm"))


def _organs(labels: LabelSet) -> dict[str, int]:
    """What reading segments depends on: the values of the organs by their names; of background where it is not 0."""
    regions = {f"{each.name} = {value}": value for each in labels.labels if each.more_values for value in each.values}
    return labels.values | regions | ({"background": labels.background} if labels.background else {})


def _read_label(case: Case, labels: LabelSet, problems: list[Problem]) -> LabelMap | None:
    if case.label is None:
        return None
    try:
        return read_label_map(case.label, labels)
    except ImageError as error:
        problems.append(_problem(error))
        return None


def _label_facts(label: LabelMap, image: ImageFacts | None) -> LabelFacts:
    counts = count_values(label.array_zyx)
    listed = list(counts)[:MAX_LISTED_VALUES]
    placed = label.array_zyx if image is None else label.on(image.source, GRID_TOLERANCE_VOXELS).array_zyx
    box = image.body_box if image is not None and image.geometry.shape_zyx == placed.shape else None
    inside = counts if box is None else count_values(placed[box.slices])
    outside = tuple(max(counts[value] - inside.get(value, 0), 0) for value in listed)  # cropped maps have less of 0
    return LabelFacts(
        source=label.source,
        values=tuple(listed),
        counts=tuple(counts[value] for value in listed),
        content=_hash(label.array_zyx),
        segments=label.segments,
        outside_body=outside if any(outside) else (),
    )


def _hash(array: np.ndarray) -> str:
    """Hash of an array's shape and values, whatever integer type they are stored in."""
    kind = np.float32 if array.dtype.kind == "f" else np.int64
    state = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    for plane in array.reshape(-1, *array.shape[-2:]):  # without a copy of the whole
        state.update(np.ascontiguousarray(plane, dtype=kind).data)
    return state.hexdigest()


def _gib_to_inspect(case: Case) -> float:
    """Main memory that looking into a case takes, guessed from its files' sizes."""
    size = 0
    for path in case.images:
        # Slices are compressed by half at most.
        raw = path.is_dir() or files_of(path)[-1].name.lower().endswith((".nii", ".raw"))
        size += (_BYTES_PER_RAW_BYTE if raw else _BYTES_PER_COMPRESSED_BYTE) * max(file_stamp(path).size, 0)
    return 0.4 + size / 2**30


def _load(cache: Path | None) -> dict[str, CaseFacts]:
    if cache is None or not cache.is_file():
        return {}
    try:
        kept = load_record(cache, InspectedCases)
    except FlaresemiError as problem:  # it only saves time: another version's is made anew
        logger.info("what was known of the files cannot be used and is found out again: %s", problem.what)
        return {}
    return {facts.case_id: facts for facts in kept.cases}


def _save(cache: Path | None, facts: dict[str, CaseFacts]) -> None:
    if cache is not None:
        save_record(cache, InspectedCases(cases=tuple(facts[case_id] for case_id in sorted(facts))))
