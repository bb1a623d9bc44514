"""Facts of the labeled cases that plans are made from. No decisions here."""

import dataclasses
import functools
import logging
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flaresemi.appearance import Look
from flaresemi.case_names import case_file
from flaresemi.compute.parallel import parallel_map, worker_count
from flaresemi.dataset import Case, Dataset
from flaresemi.errors import DatasetError, FlaresemiError
from flaresemi.files import atomic_path, map_array
from flaresemi.geometry import BoundingBox
from flaresemi.labels import LabelSet
from flaresemi.planning.cases import read_case, read_geometries, supervised_organs
from flaresemi.planning.sources import source_hash
from flaresemi.plans import BodyRule, CaseFingerprint, DatasetFingerprint, IntensityStatistics, body_rule
from flaresemi.preprocessing.looks import look_at
from flaresemi.preprocessing.preprocessor import PreparedImage, prepare
from flaresemi.records import load_record, save_record

logger = logging.getLogger(__name__)

#: Foreground voxels that a case lends to the intensity statistics. Each case lends as many, however large its organs
#: are, so that no patient counts more than another. Chosen: nnU-Net takes 10,000 from each case, too.
SAMPLES_PER_CASE = 10_000

#: Of what a measurement consists; to be raised whenever a rule in this module or of the body crop changes.
_RULES = 3

#: Main memory per voxel and channel while a case is inspected and measured, bytes. Measured on a phantom of
#: 92×491×491 with a label map of bytes: 8.2; rounded up, as label maps come in larger types.
_BYTES_PER_VOXEL = 12


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaseMeasurement:
    """A measured case.

    Attributes:
        fingerprint: Its facts.
        samples: Intensities of voxels in the foreground, (C, 10000) float32; (C, 0) where there is none.
    """

    fingerprint: CaseFingerprint
    samples: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A measured case on disk, with all that it depends on."""

    depends_on: str
    fingerprint: CaseFingerprint


def fingerprint_dataset(
    dataset: Dataset, folder: Path | None, *, workers: int | None = None, body: BodyRule | None = None
) -> DatasetFingerprint:
    """Measures all labeled cases. The result is the same whatever the number of workers.

    Args:
        dataset: What to measure; only its labeled cases are.
        folder: Where measured cases are kept, so that a killed run can be resumed; None: nowhere.
        workers: Processes; None: as many as cores and memory allow.
        body: How the patient is found; None: as suits the channels.

    Raises:
        DatasetError: a case cannot be used, or no organ is marked in any of them.
        ImageError: a file cannot be read.
    """
    body = body or body_rule(dataset.channels)
    measured: dict[str, CaseMeasurement] = {}
    for case in dataset.labeled:
        kept = _load(case, dataset, folder, body)
        if kept is not None:
            measured[case.id] = kept
    waiting = [case for case in dataset.labeled if case.id not in measured]
    if waiting:
        logger.info("measuring %d labeled case(s)%s", len(waiting), f"; {len(measured)} known" if measured else "")
        measure = functools.partial(_measure_and_keep, dataset=dataset, folder=folder, body=body)
        count = worker_count(gib_to_measure(waiting), workers)
        for case, result in parallel_map(measure, waiting, workers=count, progress="fingerprint", mute=True):
            measured[case.id] = result
    ordered = [measured[case.id] for case in dataset.labeled]
    return DatasetFingerprint(
        dataset_name=dataset.name,
        channels=dataset.channels,
        labels=dataset.labels,
        cases=tuple(each.fingerprint for each in ordered),
        intensities=_statistics([each.samples for each in ordered], dataset),
    )


def organs_by_case(fingerprint: DatasetFingerprint) -> dict[str, frozenset[str]]:
    """The organs that each labeled case has and annotates."""
    names = fingerprint.labels.names
    return {
        case.case_id: frozenset(
            name
            for name, voxels, annotated in zip(names, case.voxels_per_label, case.annotated, strict=True)
            if voxels and annotated
        )
        for case in fingerprint.cases
    }


def gib_to_measure(cases: Sequence[Case]) -> float:
    """Main memory that measuring the largest of these cases takes, by their headers."""
    voxels = max((math.prod(grid.shape_zyx) for grid in read_geometries(cases).values()), default=0)
    return 0.4 + _BYTES_PER_VOXEL * voxels * max((len(case.images) for case in cases), default=1) / 2**30


def measure_case(case: Case, labels: LabelSet, body: BodyRule) -> CaseMeasurement:
    """Reads and measures one labeled case.

    Args:
        case: With a label map.
        labels: The organs of the dataset.
        body: How the patient is found.

    Raises:
        ImageError: a file cannot be read.
        DatasetError: the label map does not fit the image or the dataset.
    """
    image, indices = read_case(case, labels)
    if indices is None:
        raise ValueError(f"case '{case.id}' has no label map")
    prepared = prepare(image, body)
    return measure(case, labels, prepared, look_at(prepared), indices)


def measure(
    case: Case, labels: LabelSet, prepared: PreparedImage, look: Look, indices_zyx: np.ndarray
) -> CaseMeasurement:
    """Measures a labeled case that was read: its image, what that looks like, and its organs on the image's grid.

    Of voxels that nobody annotated nothing is measured: the organs' box, volumes and intensities are of what is known.
    """
    image, box = prepared.image, prepared.body_box
    ignored = 0
    if labels.ignore is not None:
        is_ignored = indices_zyx == labels.ignored
        ignored = int(np.count_nonzero(is_ignored))
        indices_zyx = np.where(is_ignored, indices_zyx.dtype.type(0), indices_zyx)
    counts = _voxels_per_organ(indices_zyx, labels)
    outside = counts - _voxels_per_organ(indices_zyx[box.slices], labels)
    supervised = supervised_organs(case, labels)
    return CaseMeasurement(
        fingerprint=CaseFingerprint(
            case_id=case.id,
            shape_zyx=image.geometry.shape_zyx,
            spacing_zyx_mm=image.geometry.spacing_zyx_mm,
            body_box=box,
            foreground_box=BoundingBox.of_mask(indices_zyx != 0),
            voxels_per_label=tuple(int(count) for count in counts),
            annotated=tuple(organ in supervised for organ in range(1, labels.count + 1)),
            voxels_outside_body=tuple(int(count) for count in outside) if outside.any() else (),
            channel_facts=look.channels,
            body_share=look.body_share,
            ignored_voxels=ignored,
        ),
        samples=_sample(image.array_czyx, indices_zyx, case.id),
    )


def _voxels_per_organ(indices_zyx: np.ndarray, labels: LabelSet) -> np.ndarray:
    channels = labels.channels
    counts = (np.bincount(plane.ravel(), minlength=channels) for plane in indices_zyx)
    return labels.per_organ(sum(counts, start=np.zeros(channels, np.int64)))


def _sample(image_czyx: np.ndarray, indices_zyx: np.ndarray, case_id: str) -> np.ndarray:
    """Intensities at random foreground voxels, with replacement, the same on every run and machine."""
    foreground = np.flatnonzero(indices_zyx)
    if foreground.size == 0:
        return np.empty((image_czyx.shape[0], 0), np.float32)
    generator = np.random.default_rng(zlib.crc32(case_id.encode("utf-8", "surrogateescape")))
    chosen = np.sort(foreground[generator.integers(foreground.size, size=SAMPLES_PER_CASE)])
    return image_czyx.reshape(image_czyx.shape[0], -1)[:, chosen]


def _statistics(samples: list[np.ndarray], dataset: Dataset) -> tuple[IntensityStatistics, ...]:
    together = np.concatenate(samples, axis=1).astype(np.float64)
    if together.shape[1] == 0:
        raise DatasetError(
            "no organ is marked in any labeled case",
            where=dataset.root,
            fix="see that the label maps and the values in dataset.json are the right ones",
        )
    statistics = []
    for channel in together:
        low, five, half, most, high = (float(value) for value in np.percentile(channel, (0.5, 5, 50, 95, 99.5)))
        statistics.append(
            IntensityStatistics(
                percentile_00_5=low,
                percentile_05=five,
                percentile_50=half,
                percentile_95=most,
                percentile_99_5=high,
                mean=float(channel.mean()),
                sd=float(channel.std()),
            )
        )
    return tuple(statistics)


def _measure_and_keep(case: Case, *, dataset: Dataset, folder: Path | None, body: BodyRule) -> CaseMeasurement:
    depends_on = dependencies(case, dataset.labels, body)
    measurement = measure_case(case, dataset.labels, body)
    if folder is not None:
        keep(folder, case, measurement, depends_on)
    return measurement


def keep(folder: Path, case: Case, measurement: CaseMeasurement, depends_on: str) -> None:
    """Writes what `fingerprint_dataset` finds of a measured case.

    Args:
        folder: Where to.
        case: The case.
        measurement: What was found.
        depends_on: Its `dependencies` before it was read: a file that changed meanwhile is measured again.
    """
    record, samples = _paths(folder, case)
    with atomic_path(samples) as temporary, open(temporary, "wb") as file:
        np.save(file, measurement.samples, allow_pickle=False)
    # The record is written last: where it is, the samples are.
    save_record(record, _Kept(depends_on=depends_on, fingerprint=measurement.fingerprint))


def _load(case: Case, dataset: Dataset, folder: Path | None, body: BodyRule) -> CaseMeasurement | None:
    """A case that was measured before, from the same files by the same rules; None: measure it."""
    if folder is None:
        return None
    record, samples = _paths(folder, case)
    if not record.is_file() or not samples.is_file():
        return None
    try:
        kept = load_record(record, _Kept)
        values = np.array(map_array(samples))
    except (FlaresemiError, ValueError) as problem:
        logger.info("the kept measurement of case '%s' cannot be used and is made anew: %s", case.id, problem)
        return None
    is_same = kept.depends_on == dependencies(case, dataset.labels, body)
    if not is_same or values.ndim != 2 or len(values) != len(case.images):
        return None
    return CaseMeasurement(fingerprint=kept.fingerprint, samples=values)


def dependencies(case: Case, labels: LabelSet, body: BodyRule) -> str:
    """Identifies what a measurement of a case is made from now."""
    return source_hash(case, labels, f"fingerprint {_RULES}, body {body}")


def _paths(folder: Path, case: Case) -> tuple[Path, Path]:
    return case_file(folder, case.id, ".json"), case_file(folder, case.id, ".npy")
