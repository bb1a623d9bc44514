"""DICOM segmentations as label maps: which voxels the frames of a segment hold, and what its name or number means."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaresemi.errors import ImageError, listed, shown
from flaresemi.geometry import Geometry
from flaresemi.image_paths import SEGMENTATION_CLASSES
from flaresemi.importing import import_without
from flaresemi.io import integrity
from flaresemi.io.axes import make_geometry
from flaresemi.io.dicom_elements import parsing, unpacked
from flaresemi.io.segments import Segment, plain_name
from flaresemi.io.series import EVEN_TOLERANCE, EVEN_TOLERANCE_MM
from flaresemi.labels import LabelSet

_CONVERT = "export it as an uncompressed binary segmentation, or as NIfTI"

#: The name of voxels that nobody has annotated, as in `LabelSet.values`.
_IGNORE = "ignore"

#: Among the voxels of one frame, how many may be asked for. Chosen: no scanner has as many.
_MOST_VOXELS = 1 << 40


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DicomSegmentation:
    """A DICOM segmentation, without its voxels.

    Attributes:
        path: The file.
        geometry: The slices from the first to the last one that has a frame.
        names: Of every segment, by its number.
        frames: Of every frame, its slice and its segment; 0 where the voxels themselves say it.
        bits: Of a voxel: 1, 8 or 16.
    """

    path: Path
    geometry: Geometry
    names: dict[int, str]
    frames: tuple[tuple[int, int], ...]
    bits: int

    def merged(self, labels: LabelSet | None) -> tuple[np.ndarray, tuple[Segment, ...]]:
        """One label map, (Z, Y, X), of all segments, with the segments that are in it and their values.

        A segment with the name of an organ is that organ. Others have their number for a value.

        Args:
            labels: The organs; None: numbers count alone.

        Raises:
            ImageError: the file is damaged, two segments have one value, or segments share voxels that no value means.
        """
        present = sorted({number for _, number in self.frames} - {0}) or sorted(self.names)
        known = {plain_name(name): name for name in _names(labels)}
        named = {number: known[name] for number in present if (name := plain_name(self.names.get(number, ""))) in known}
        if labels is not None and labels.has_regions and {*named.values()} - {_IGNORE}:
            return self._of_regions(labels, named, present)
        values = {number: labels.values[named[number]] if labels and number in named else number for number in present}
        twice = sorted(value for value in set(values.values()) if list(values.values()).count(value) > 1)
        if twice:
            both = [shown(self.names.get(number, str(number))) for number in present if values[number] == twice[0]]
            raise ImageError(
                f"{len(both)} segments stand for value {twice[0]}: {listed(both)}",
                where=self.path,
                fix='give the segments the names of "labels" in dataset.json, or its values for numbers',
            )
        background = 0 if labels is None else labels.background
        merged = np.full(self.geometry.shape_zyx, background, np.int32)
        for plane, number, found in self._planes(merged):
            if self.bits > 1:  # numbers, not masks
                for value in np.unique(found[found > 0]).tolist():
                    plane[found == value] = values.get(value, value)
                continue
            shared = np.count_nonzero(plane[found] != background)
            if shared:
                name = shown(self.names.get(number, ""))
                raise ImageError(
                    f"its segments overlap: {shared} voxels of a slice are in '{name}' and in another",
                    where=self.path,
                    fix='remove the overlap, or declare the organs as regions in dataset.json ("labels")',
                )
            plane[found] = values[number]
        return merged, tuple(Segment(name=self.names.get(n, ""), value=values[n], layer=0) for n in present)

    def _of_regions(
        self, labels: LabelSet, named: dict[int, str], present: Sequence[int]
    ) -> tuple[np.ndarray, tuple[Segment, ...]]:
        """The same where organs are regions, which overlap: what a voxel is in decides its value."""
        strange = [shown(self.names.get(number, str(number))) for number in present if number not in named]
        if strange or labels.count > 63:
            raise ImageError(
                f"some segments have names of regions, {listed(strange)} has none"
                if strange
                else f"{labels.count} regions, expected 63 at most in a DICOM segmentation",
                where=self.path,
                fix='give all segments the names of "labels" in dataset.json, or use another format',
            )
        ignored = np.iinfo(np.int64).min  # the bit that no region has
        bit = {number: ignored if name == _IGNORE else 1 << (labels.index(name) - 1) for number, name in named.items()}
        inside = np.zeros(self.geometry.shape_zyx, np.int64)
        for plane, number, found in self._planes(inside):
            if self.bits > 1:
                for value in np.unique(found[found > 0]).tolist():
                    plane[found == value] |= bit.get(value, 0)
            else:
                plane[found] |= bit[number]
        meant = {sum(1 << (organ - 1) for organ in each.organs): each.values[0] for each in labels.classes}
        merged = np.full(inside.shape, labels.background, np.int32)
        for combination in np.unique(inside[inside > 0]).tolist():
            if combination not in meant:
                names = [name for organ, name in enumerate(labels.names) if combination >> organ & 1]
                raise ImageError(
                    f"voxels are in {' and '.join(names)} and in nothing else, which no value of dataset.json means",
                    where=self.path,
                    fix='give this combination a value in "labels", or correct the segments',
                )
            merged[inside == combination] = meant[combination]
        if labels.ignore is not None:  # whatever else is there
            merged[inside < 0] = labels.ignore
        return merged, ()  # names have been understood

    def _planes(self, volume_zyx: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """For each frame its plane of a volume, its segment's number, and its voxels: a mask, or numbers."""
        rows, columns = self.geometry.shape_zyx[1:]
        size = rows * columns
        try:
            with parsing():
                data = _read(self.path, with_voxels=True).get("PixelData") or b""
        except ValueError:
            raise _damaged(self.path) from None
        if len(data) * 8 < len(self.frames) * size * self.bits:
            raise _damaged(self.path)
        stored = np.frombuffer(data, "<u2" if self.bits == 16 else np.uint8)
        for index, (z, number) in enumerate(self.frames):
            if self.bits == 1:  # frames follow each other bit by bit
                first = index * size
                part = stored[first // 8 : (first + size + 7) // 8]
                found = np.unpackbits(part, bitorder="little")[first % 8 : first % 8 + size].astype(bool)
            else:
                found = stored[index * size : (index + 1) * size]
            yield volume_zyx[z], number, found.reshape(rows, columns)


def _names(labels: LabelSet | None) -> tuple[str, ...]:
    """What a segment may be called to be read by its name."""
    if labels is None:
        return ()
    return labels.names if labels.ignore is None else (_IGNORE, *labels.names)


def read_segmentation(path: Path) -> DicomSegmentation:
    """Reads all of a DICOM segmentation but its voxels.

    Raises:
        ImageError: the file is damaged, something else, or of a kind that is not read (fractional, compressed); or its
            frames form no even stack.
    """
    dataset = _read(path, with_voxels=False)
    try:
        with parsing():
            return _understood(dataset, path)
    except ValueError:
        raise _damaged(path) from None


def _understood(dataset: Any, path: Path) -> DicomSegmentation:
    if str(dataset.get("SOPClassUID", "")) not in SEGMENTATION_CLASSES:
        raise ImageError("this DICOM file is no segmentation", where=path, fix="name a label map, or a DICOM SEG file")
    kind, syntax = str(dataset.SegmentationType), dataset.file_meta.TransferSyntaxUID
    bits = int(dataset.BitsAllocated)
    if kind not in ("BINARY", "LABELMAP") or bits not in (1, 8, 16) or (kind == "BINARY") != (bits == 1):
        raise ImageError(f"a segmentation of the kind {shown(kind)}, expected a binary one", where=path, fix=_CONVERT)
    if syntax.is_encapsulated or not syntax.is_little_endian:
        raise ImageError("a compressed segmentation", where=path, fix=_CONVERT)
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.NumberOfFrames)
    if len(groups) != count or min(rows, columns, count) < 1 or rows * columns > _MOST_VOXELS:
        raise _damaged(path)
    shared = dataset.get("SharedFunctionalGroupsSequence") or [groups[0]]

    def of(group: Any, name: str) -> Any:
        return (group.get(name) or shared[0].get(name) or groups[0][name].value)[0]

    measures = of(groups[0], "PixelMeasuresSequence")
    direction = [float(value) for value in of(groups[0], "PlaneOrientationSequence").ImageOrientationPatient]
    if any(
        [float(value) for value in of(group, "PlaneOrientationSequence").ImageOrientationPatient] != direction
        for group in groups
    ):
        raise ImageError("its frames do not lie in one direction", where=path, fix=_CONVERT)
    positions = [
        [float(value) for value in of(group, "PlanePositionSequence").ImagePositionPatient] for group in groups
    ]
    row, column = np.reshape(direction, (2, 3))
    normal = np.cross(row, column)
    slices, first, spacing = _stacked(np.array(positions), normal, measures, path)
    numbers = [0] * count
    if kind == "BINARY":
        numbers = [int(of(group, "SegmentIdentificationSequence").ReferencedSegmentNumber) for group in groups]
    y, x = (float(value) for value in measures.PixelSpacing)
    geometry = make_geometry(
        (max(slices) + 1, rows, columns),
        np.array([x, y, spacing]),
        np.array(positions[first]),
        np.stack([row, column, normal], axis=1),
        path,
    )
    integrity.check_memory(path, 4 * math.prod(geometry.shape_zyx))
    return DicomSegmentation(
        path=path,
        geometry=geometry,
        names={int(each.SegmentNumber): str(each.get("SegmentLabel", "")) for each in dataset.SegmentSequence},
        frames=tuple(zip(slices, numbers, strict=True)),
        bits=bits,
    )


def _stacked(positions: np.ndarray, normal: np.ndarray, measures: Any, path: Path) -> tuple[list[int], int, float]:
    """The slice of every frame, the frame of the first slice, and the distance of slices in mm."""
    offsets = positions - positions[0]
    along = offsets @ normal
    first = int(along.argmin())
    along = along - along[first]
    gaps = np.diff(np.unique(np.round(along, 3)))
    told = measures.get("SpacingBetweenSlices") or (measures.get("SliceThickness") if gaps.size == 0 else None)
    spacing = abs(float(told)) if told else float(gaps.min())
    if gaps.size and spacing > 0:  # what is told is rounded
        steps = round(float(along.max()) / spacing)
        spacing = float(along.max()) / steps if steps else spacing
    if not spacing > 0:
        raise ImageError("the distance of its slices is not told", where=path, fix=_CONVERT)
    slices = np.round(along / spacing)
    sideways = np.linalg.norm(offsets - offsets[first] - along[:, None] * normal, axis=1)
    tolerance = max(EVEN_TOLERANCE * spacing, EVEN_TOLERANCE_MM)
    if max(np.abs(along - slices * spacing).max(), sideways.max()) > tolerance:
        raise ImageError("its frames lie unevenly, or beside each other", where=path, fix=_CONVERT)
    return slices.astype(int).tolist(), first, spacing


def _read(path: Path, *, with_voxels: bool) -> Any:
    import_without("pydicom", "requests")  # of which the import asks the system for its network
    from pydicom import dcmread

    try:
        with integrity.opened(path) as file, parsing():
            return dcmread(unpacked(file), stop_before_pixels=not with_voxels, force=True)
    except ValueError:
        raise _damaged(path) from None


def _damaged(path: Path) -> ImageError:
    return ImageError(
        "the DICOM segmentation is damaged or not whole", where=path, fix="copy, download or export it again"
    )
