"""What is measured of every organ of a prediction: volume, intensities, extent, and whether the scan cuts it off."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.ndimage import find_objects

from flaresemi.geometry import BoundingBox
from flaresemi.inference.regions import FACE_NAMES
from flaresemi.inference.segmentation import Segmentation
from flaresemi.io.images import Image
from flaresemi.ranges import Count, DistanceMm, Intensity, IntensitySpread, VolumeMl
from flaresemi.records import save_record
from flaresemi.tables import write_table


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OrganMeasures:
    """One organ of one case.

    Attributes:
        organ: Its name.
        voxels: How many it has, on the image's grid.
        volume_ml: What they take.
        mean: Of the intensities in each channel, in its unit (HU for CT); empty without voxels.
        sd: Their standard deviation (of the voxels, not of a sample).
        extent_xyz_mm: Length of its box from right to left, front to back and bottom to top, along the image's axes.
        touches: Faces of the scan that it reaches, so that it may go on beyond: `inferior`, `superior` and so on.
    """

    organ: str
    voxels: Count
    volume_ml: VolumeMl
    mean: tuple[Intensity, ...]
    sd: tuple[IntensitySpread, ...]
    extent_xyz_mm: tuple[DistanceMm, DistanceMm, DistanceMm]
    touches: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaseMeasures:
    """All organs of one case, in the order of the labels.

    Attributes:
        channels: Names of the image's channels.
    """

    case_id: str
    channels: tuple[str, ...]
    organs: tuple[OrganMeasures, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeasuresTable:
    """The measures of all cases of a folder."""

    schema_version: int = 1
    cases: tuple[CaseMeasures, ...]


def measure(case_id: str, segmentation: Segmentation, image: Image, channels: tuple[str, ...]) -> CaseMeasures:
    """Measures every organ of a prediction.

    Args:
        case_id: Its case.
        segmentation: The prediction.
        image: What it is of, on the same grid.
        channels: Names of its channels.
    """
    labels, indices = segmentation.labels, segmentation.indices_zyx
    counts, means, deviations = _moments(indices, image.array_czyx, labels.channels)
    boxes = find_objects(indices, max_label=labels.channels - 1)
    spacing = segmentation.source.canonical.spacing_zyx_mm
    organs = []
    for name, members in zip(labels.names, labels.members, strict=True):
        present = [index for index in members if counts[index]]
        total = int(counts[present].sum())
        box = _union(boxes[index - 1] for index in present)
        mean = (means[:, present] * counts[present]).sum(axis=1) / max(total, 1)
        spread = deviations[:, present] + counts[present] * (means[:, present] - mean[:, None]) ** 2
        sd = np.sqrt(spread.sum(axis=1) / max(total, 1))
        z, y, x = (0, 0, 0) if box is None else box.shape_zyx
        organs.append(
            OrganMeasures(
                organ=name,
                voxels=total,
                volume_ml=total * math.prod(spacing) / 1000,
                mean=tuple(mean.tolist()) if total else (),
                sd=tuple(sd.tolist()) if total else (),
                extent_xyz_mm=(x * spacing[2], y * spacing[1], z * spacing[0]),
                touches=() if box is None else tuple(_touched(box, indices.shape)),
            )
        )
    return CaseMeasures(case_id=case_id, channels=channels, organs=tuple(organs))


def _moments(
    indices_zyx: np.ndarray, image_czyx: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels of every index, (classes,); mean and sum of squared deviations, (channels, classes); slice by slice."""
    counts = np.zeros(classes, np.int64)
    means, deviations = np.zeros((2, len(image_czyx), classes))
    for plane in indices_zyx:
        counts += np.bincount(plane.ravel(), minlength=classes)
    some = np.maximum(counts, 1)
    for channel, volume in enumerate(image_czyx):
        for plane, values in zip(indices_zyx, volume, strict=True):
            means[channel] += np.bincount(plane.ravel(), values.ravel(), classes)
        means[channel] /= some
        for plane, values in zip(indices_zyx, volume, strict=True):
            apart = values - means[channel][plane]
            deviations[channel] += np.bincount(plane.ravel(), (apart * apart).ravel(), classes)
    return counts, means, deviations


def _union(boxes: Iterable[tuple[slice, ...] | None]) -> BoundingBox | None:
    union: BoundingBox | None = None
    for sides in boxes:
        if sides is not None:
            box = BoundingBox.of_slices(sides)
            union = box if union is None else union.union(box)
    return union


def _touched(box: BoundingBox, shape_zyx: tuple[int, ...]) -> Iterable[str]:
    for names, start, stop, size in zip(FACE_NAMES, box.start, box.stop, shape_zyx, strict=True):
        yield from (name for name, reached in zip(names, (start == 0, stop == size), strict=True) if reached)


def save_measures(folder: Path, cases: tuple[CaseMeasures, ...]) -> None:
    """Writes the measures of cases as a table, `statistics.csv`, and as a record, `statistics.json`.

    Raises:
        OSError: they cannot be written.
    """
    save_record(folder / STATISTICS, MeasuresTable(cases=cases))
    write_table(folder / STATISTICS_TABLE, table_of(cases))


#: The files.
STATISTICS, STATISTICS_TABLE = "statistics.json", "statistics.csv"

#: Of the table; behind them mean and SD of every channel.
TABLE_COLUMNS = ("case", "organ", "voxels", "volume_ml", "extent_x_mm", "extent_y_mm", "extent_z_mm", "touches")


def table_of(cases: Iterable[CaseMeasures]) -> list[tuple[object, ...]]:
    """A row for every case and organ, below one with names."""
    cases = tuple(cases)
    channels = tuple(dict.fromkeys(channel for case in cases for channel in _numbered(case.channels)))
    head = [f"{what} {name}" for name, _ in channels for what in ("mean", "sd")]
    rows: list[tuple[object, ...]] = [(*TABLE_COLUMNS, *head)]
    for case in cases:
        for organ in case.organs:
            values = ((f"{mean:.6g}", f"{sd:.6g}") for mean, sd in zip(organ.mean, organ.sd, strict=True))
            known = dict(zip(_numbered(case.channels), values, strict=False))  # none, where it was not found
            numbers = [cell for channel in channels for cell in known.get(channel, ("", ""))]
            extent = [f"{length:.6g}" for length in organ.extent_xyz_mm]
            touches = " ".join(organ.touches)
            rows.append((case.case_id, organ.organ, organ.voxels, f"{organ.volume_ml:.6g}", *extent, touches, *numbers))
    return rows


def _numbered(channels: tuple[str, ...]) -> list[tuple[str, int]]:
    """Each name with how many of the channels before are called the same."""
    return [(name, channels[:place].count(name)) for place, name in enumerate(channels)]
