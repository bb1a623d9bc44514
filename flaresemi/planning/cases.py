"""One case of the dataset, read for use: its image, and its organs as indices on the image's own grid."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from flaresemi.dataset import Case
from flaresemi.errors import DatasetError, ImageError
from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image, LabelMap, read_grid, read_image, read_label_map
from flaresemi.io.segments import RENUMBER, contradictions
from flaresemi.labels import LabelSet, count_values

#: Grids whose corners lie closer than this part of a voxel are one grid. Chosen: far below what a label map can show,
#: far above the rounding of headers (1e-8 in one, 1e-3 mm across a body in float32).
GRID_TOLERANCE_VOXELS = 0.1

_TURN_DEGREES = 0.05
_SPACING_RATIO = 1e-4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GridDifference:
    """How the grid of a label map differs from its image's.

    Attributes:
        distance_mm: Largest distance between matching corners; infinite when the shapes differ.
        what: The difference in words.
        fixable: True where the voxels can be matched one by one: same shape, stored in the same axis order. A flip is
            not: whether the voxels or the header are mirrored cannot be seen.
    """

    distance_mm: float
    what: str
    fixable: bool


def grid_difference(label: SourceGrid, image: SourceGrid) -> GridDifference | None:
    """Compares the grid of a label map with its image's, in the patient; None if they agree.

    They are also where they match as they are stored, by a position that counts in one of the headers only, and where
    the label map is a cropped part of the image's grid; but not where they agree in two ways.
    """
    if label.lies_twice(image, GRID_TOLERANCE_VOXELS):
        what = "the voxels of the label map lie on its image in two orders, by its sform and by its qform"
        return GridDifference(distance_mm=0.0, what=what, fixable=False)
    if label.matches_as_stored(image, GRID_TOLERANCE_VOXELS) or label.box_within(image, GRID_TOLERANCE_VOXELS):
        return None
    ours, theirs = label.canonical, image.canonical
    distance = theirs.far_corner_distance_mm(ours)
    if distance <= GRID_TOLERANCE_VOXELS * min(theirs.spacing_zyx_mm):
        return None
    if math.isinf(distance):
        what = f"the label map has {_times(ours.shape_zyx)} voxels (z, y, x), the image {_times(theirs.shape_zyx)}"
        if label.cropped:
            what += ", and it is no part of the image's grid"
        return GridDifference(distance_mm=distance, what=what, fixable=False)
    same_order = (label.axes, label.flips) == (image.axes, image.flips)
    parts = [] if same_order else [f"it is stored as {orientation(label)}, the image as {orientation(image)}: a flip?"]
    ratios = [a / b for a, b in zip(ours.spacing_zyx_mm, theirs.spacing_zyx_mm, strict=True)]
    if any(abs(ratio - 1) > _SPACING_RATIO for ratio in ratios):
        parts.append(f"spacing {_times(ours.spacing_zyx_mm)} mm, the image {_times(theirs.spacing_zyx_mm)} mm")
    turn = _turn_degrees(ours, theirs)
    if turn > _TURN_DEGREES:
        parts.append(f"turned by {turn:.3g} degrees")
    shift = math.dist(ours.origin_xyz_mm, theirs.origin_xyz_mm)
    if shift > GRID_TOLERANCE_VOXELS * min(theirs.spacing_zyx_mm):
        parts.append(f"origin {shift:.3g} mm away")
    what = f"the label map does not lie on its image: corners up to {distance:.3g} mm apart ({'; '.join(parts)})"
    return GridDifference(distance_mm=distance, what=what, fixable=same_order)


def orientation(source: SourceGrid) -> str:
    """Where the file's x, y and z axes run to, in nibabel's letters: 'LPS' for ITK's identity, 'RAS' for NIfTI's."""
    letters = [""] * 3
    for canonical, (axis, flip) in enumerate(zip(source.axes, source.flips, strict=True)):
        letters[2 - axis] = ("SPL", "IAR")[flip][canonical]
    return "".join(letters)


def supervised_organs(case: Case, labels: LabelSet) -> tuple[int, ...]:
    """Internal indices (1 and up) of the organs that a labeled case annotates."""
    indices = {name: index for index, name in enumerate(labels.names, start=1)}
    return (
        tuple(indices.values()) if case.annotated is None else tuple(sorted(map(indices.__getitem__, case.annotated)))
    )


def read_case(case: Case, labels: LabelSet) -> tuple[Image, np.ndarray | None]:
    """Reads a case: its image and, where it is labeled, the organs on the image's grid.

    Organs that the case does not annotate are background, whatever the file holds: nobody vouches for them. Of regions,
    what only such organs tell apart is one (`LabelSet.told_apart`).

    Voxels that nobody annotated have the index `labels.ignored`.

    Returns:
        The image, and internal indices, (Z, Y, X), uint8 or uint16; None for an unlabeled case.

    Raises:
        ImageError: a file cannot be read.
        DatasetError: the label map does not lie on the image, or has values that nobody declared.
    """
    image = read_image(case.images)
    return image, None if case.label is None else read_organs(case, labels, image.source)


def read_organs(case: Case, labels: LabelSet, image: SourceGrid) -> np.ndarray:
    """Reads the label map of a labeled case; as `read_case`, for when the image itself is not needed.

    Args:
        image: The grid of its image.
    """
    if case.label is None:
        raise ValueError(f"case '{case.id}' has no label map")
    return organs_of(case, labels, read_label_map(case.label, labels), image)


def organs_of(case: Case, labels: LabelSet, label: LabelMap, image: SourceGrid) -> np.ndarray:
    """The organs of a label map that was read; as `read_case`.

    Raises:
        DatasetError: it does not lie on the image, or has values that nobody declared.
    """
    difference = grid_difference(label.source, image)
    label = label.on(image, GRID_TOLERANCE_VOXELS)
    if difference is not None and not (case.label_on_image_grid and difference.fixable):
        raise DatasetError(
            f"case '{case.id}': {difference.what}",
            where=case.label,
            fix="flaresemi_plan_and_preprocess --check-only says more",
        )
    wrong, _ = contradictions(label.segments, labels, list(count_values(label.array_zyx)) if label.segments else ())
    if wrong:
        raise DatasetError(f"case '{case.id}': {wrong[0]}", where=case.label, fix=RENUMBER)
    unknown = labels.unknown_values(label.array_zyx)
    if unknown:
        raise DatasetError(
            f"case '{case.id}': {unknown_values_text(unknown, labels)}",
            where=case.label,
            fix='add the organ to "labels" in dataset.json, or correct the file',
        )
    indices = labels.to_indices(label.array_zyx)
    if case.annotated is not None:
        table = (*labels.told_apart(supervised_organs(case, labels)), labels.ignored)
        indices = np.array(table[: int(np.iinfo(indices.dtype).max) + 1], indices.dtype)[indices]
    return indices


def read_geometries(cases: Iterable[Case]) -> dict[str, Geometry]:
    """Canonical grids of cases by their names, from the headers; bad ones are left out: reading the voxels says why."""
    geometries = {}
    for case in cases:
        with contextlib.suppress(ImageError):
            geometries[case.id] = read_grid(case.images[0]).canonical
    return geometries


def unknown_values_text(unknown: tuple[int, ...], labels: LabelSet) -> str:
    """One sentence about values that a label map has and the dataset does not declare."""
    declared = sorted(labels.known_values)
    some = ", ".join(map(str, unknown[:8])) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
    return f"label map has value{'s' if len(unknown) > 1 else ''} {some}, the dataset declares {spans(declared)}"


def spans(values: list[int]) -> str:
    """Integers in ascending order as '0-13' or '0, 5-7, 200'."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _times(values: tuple[float, ...]) -> str:
    return "×".join(f"{value:.6g}" for value in values)


def _turn_degrees(one: Geometry, other: Geometry) -> float:
    """Angle of the rotation that takes one grid's axes to the other's."""
    matrix = np.reshape(one.direction, (3, 3)).T @ np.reshape(other.direction, (3, 3))
    # The sine keeps small angles exact, where the cosine of the trace would lose them.
    sine = np.linalg.norm([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]) / 2
    return math.degrees(math.atan2(float(sine), (float(np.trace(matrix)) - 1) / 2))
