"""Segmentations of 3D Slicer (.seg.nrrd): segments with names and values, in one layer of voxels or in several."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flaresemi.errors import ImageError, listed, shown
from flaresemi.labels import LabelSet, count_values
from flaresemi.ranges import LabelValue, Range, VoxelIndex

EXPORT = (
    "export it from 3D Slicer as one label map: module Segmentations, 'Export/import models and labelmaps', Export, "
    "Labelmap, with the image as reference volume"
)

#: What to do about names that contradict the dataset's.
RENUMBER = "give its segments the values of dataset.json, or correct names and values there"

#: Names that 3D Slicer gives by itself.
_NO_NAME = re.compile(r"(segment[ _]?\d*)?", re.IGNORECASE)

#: Values and layers that a header may name.
_VALUES, _LAYERS = Range(-(2**31) + 1, 2**31 - 1), Range(0, 10**6)

_FIELD = re.compile(r"Segment(\d{1,6})_(ID|Name|LabelValue|Layer)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One structure of a segmentation.

    Attributes:
        name: As its author called it.
        value: Of its voxels in its layer.
        layer: Which layer it is in; two segments of different layers may have one value.
    """

    name: str
    value: LabelValue
    layer: VoxelIndex


def find_segments(pairs: Mapping[str, str], path: Path) -> tuple[Segment, ...]:
    """The segments that the keys and values of an NRRD header describe; none where it is no segmentation.

    Raises:
        ImageError: a value or layer is no number.
    """
    fields: dict[int, dict[str, str]] = collections.defaultdict(dict)
    for key, text in pairs.items():
        match = _FIELD.fullmatch(key.strip())
        if match:
            fields[int(match[1])][match[2]] = text.strip()
    # Until 2020 Slicer gave each segment a layer of its own, with 1 in it, and wrote neither.
    return tuple(
        Segment(
            name=found.get("Name", found.get("ID", "")),
            value=_integer(found.get("LabelValue", "1"), path, _VALUES),
            layer=_integer(found.get("Layer", str(number)), path, _LAYERS),
        )
        for number, found in sorted(fields.items())
    )


def merge_layers(
    layers: Sequence[np.ndarray], segments: Sequence[Segment], labels: LabelSet | None, path: Path
) -> tuple[np.ndarray, tuple[Segment, ...]]:
    """One label map of layers that do not overlap, and its segments with the values that they have in it.

    One layer is taken as it is; but what is 0, and so in no segment, is the dataset's background.

    Args:
        layers: Each (Z, Y, X), of an integer type.
        segments: What they hold.
        labels: The organs. Their names tell segments apart that have the same value in different layers.
        path: For messages.

    Raises:
        ImageError: two segments share a voxel, or a value that names cannot tell apart.
    """
    background = 0 if labels is None else labels.background
    if len(layers) == 1:
        alone = layers[0]
        if segments and background and all(each.value for each in segments):
            alone = np.where(alone == 0, background, alone.astype(type_for(alone.dtype, background), copy=False))
        return alone, tuple(segments)
    values = _values(layers, segments, {} if labels is None else labels.values, path)
    merged = np.full(layers[0].shape, background, np.int64 if layers[0].dtype.itemsize > 4 else np.int32)
    for layer, found in enumerate(values):
        for stored, value in found.items():
            voxels = layers[layer] == stored
            shared = np.count_nonzero(voxels & (merged != background) & (merged != value))
            if shared:
                raise ImageError(
                    f"its segments overlap: {shared} voxels are in {_name(segments, layer, stored)} and in another",
                    where=path,
                    fix=f"remove the overlap, or {EXPORT}",
                )
            merged[voxels] = value
    renumbered = (values[each.layer].get(each.value) if 0 <= each.layer < len(values) else None for each in segments)
    return merged, tuple(
        each if value is None else dataclasses.replace(each, value=value)
        for each, value in zip(segments, renumbered, strict=True)
    )


def _values(
    layers: Sequence[np.ndarray], segments: Sequence[Segment], organs: Mapping[str, int], path: Path
) -> list[dict[int, int]]:
    """For each layer, which value its values stand for: itself, or that of its segment's name where all are named."""
    found = [[value for value in count_values(layer) if value] for layer in layers]
    counts = collections.Counter(value for values in found for value in values)
    doubles = sorted(value for value, count in counts.items() if count > 1)
    if not doubles:
        return [{value: value for value in values} for values in found]
    known = {plain_name(name): value for name, value in organs.items()}
    named = {(each.layer, each.value): known.get(plain_name(each.name)) for each in segments}
    values = [{value: named.get((layer, value)) for value in each} for layer, each in enumerate(found)]
    if any(value is None for each in values for value in each.values()):
        names = [_name(segments, layer, doubles[0]) for layer, each in enumerate(found) if doubles[0] in each]
        raise ImageError(
            f"{len(layers)} layers, and value {doubles[0]} stands for {listed(names)}",
            where=path,
            fix=f'give the segments the names of "labels" in dataset.json, or {EXPORT}',
        )
    return values  # type: ignore[return-value]


def type_for(dtype: np.dtype, value: int) -> np.dtype:
    """An integer type for an array that shall hold this value, too: its own where that does."""
    numbers = np.iinfo(dtype)
    return dtype if numbers.min <= value <= numbers.max else np.dtype(np.int64)


def contradictions(segments: Sequence[Segment], labels: LabelSet, values: Sequence[int]) -> tuple[list[str], list[str]]:
    """Compares the names that segments have with those that the dataset gives their values.

    3D Slicer numbers segments in the order in which they stand in its list, which may be another in every case.

    Args:
        segments: Of a label map whose values are the segments' own.
        labels: The organs.
        values: Those that are in the label map; others do not matter.

    Returns:
        Segments that are called like another organ than the one their value stands for; and segments that are called
        like none. Each as a sentence.
    """
    known = {plain_name(name): value for name, value in labels.values.items()}
    names = {value: name for name, value in labels.values.items()}
    wrong, strange = [], []
    for segment in segments:
        meant, name = known.get(plain_name(segment.name)), names.get(segment.value)
        if segment.value not in values or meant == segment.value or _NO_NAME.fullmatch(segment.name.strip()):
            continue
        if meant is not None:
            others = {labels.background: "background"} | dict.fromkeys(labels.known_values, "something else")
            what = f"called '{name}'" if name else others.get(segment.value, "unknown")
            wrong.append(
                f"segment '{shown(segment.name)}' has value {segment.value}, which is {what} in the dataset's labels; "
                f"there it is {meant}"
            )
        elif name is not None:
            strange.append(
                f"value {segment.value} is '{name}' in the dataset's labels, the segment's name is "
                f"'{shown(segment.name)}'"
            )
    return wrong, strange


def _name(segments: Sequence[Segment], layer: int, value: int) -> str:
    names = [each.name for each in segments if (each.layer, each.value) == (layer, value)]
    return f"'{shown(names[0])}'" if names else f"value {value} of layer {layer}"


def plain_name(name: str) -> str:
    """A name as it is compared: case, and what separates its words, do not matter."""
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


def _integer(text: str, path: Path, sensible: Range) -> int:
    try:
        number = int(text)
        if number in sensible:
            return number
    except ValueError:
        pass
    raise ImageError(f"the header has '{shown(text)}' where a value or a layer of a segment belongs", where=path)
