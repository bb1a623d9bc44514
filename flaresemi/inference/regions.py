"""Boxes: where COARSE found organs, and whether FINE segmented them to the end."""

import dataclasses

import numpy as np
import torch

from flaresemi.geometry import BoundingBox, FloatTriple, IntTriple
from flaresemi.inference.postprocessing import organ_components
from flaresemi.inference.sliding_window import most_likely

#: Components smaller than this are noise. Chosen: a ball of two voxels across.
SPECK_VOXELS = 8

#: So are components below this share of the largest one of their organ. Chosen: half a kidney is kept, a stray blob
#: in another part of the body is not.
SPECK_SHARE = 0.05

#: An organ touches a face with at least this many voxels; fewer are noise at the edge of a window (chosen).
TOUCHING_VOXELS = 4

#: Names of the six faces in the canonical orientation, (low end, high end) of each axis (Z, Y, X).
FACE_NAMES = (("inferior", "superior"), ("anterior", "posterior"), ("right", "left"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TouchedFace:
    """A face of a box that organs reach although the image continues beyond it.

    Attributes:
        axis: 0 to 2, (Z, Y, X).
        high: Whether it is the high end of that axis.
        indices: Of the label map, those that touch it.
    """

    axis: int
    high: bool
    indices: tuple[int, ...]

    @property
    def name(self) -> str:
        return FACE_NAMES[self.axis][self.high]


def organs_box(labels_zyx: np.ndarray) -> BoundingBox | None:
    """The box of all organs in a label map, without small specks; None if there is nothing else.

    A component (26 neighbours) is a speck when it has fewer than `SPECK_VOXELS` voxels or less than `SPECK_SHARE` of
    the largest component of its organ: one stray voxel must not drag the box across the body.

    Args:
        labels_zyx: Organ indices, 0 is background.
    """
    _, boxes = _without_specks(labels_zyx)
    kept: BoundingBox | None = None
    for box in boxes:
        kept = box if kept is None else kept.union(box)
    return kept


def _without_specks(labels_zyx: np.ndarray) -> tuple[np.ndarray, list[BoundingBox]]:
    """Where the organs are, specks left out (bool, (Z, Y, X)), and the boxes of their components."""
    found = organ_components(labels_zyx)
    largest = np.zeros(found.organs.max() + 1, np.int64)
    np.maximum.at(largest, found.organs, found.sizes)
    kept = found.sizes >= np.maximum(SPECK_VOXELS, SPECK_SHARE * largest[found.organs])
    kept[0] = False
    return kept[found.numbers_zyx], [
        BoundingBox.of_slices(found.boxes[number]) for number in np.flatnonzero(kept).tolist()
    ]


def at_least(box: BoundingBox, minimum_zyx: IntTriple, shape_zyx: IntTriple) -> BoundingBox:
    """The box grown evenly to a smallest size, shifted to stay inside the volume and clipped where it cannot.

    Real surroundings are better context for a network than padding.
    """
    sides = []
    for low, high, minimum, size in zip(box.start, box.stop, minimum_zyx, shape_zyx, strict=True):
        wanted = min(max(high - low, minimum), size)
        first = min(max(low - (wanted - (high - low)) // 2, 0), size - wanted)
        sides.append(slice(first, first + wanted))
    return BoundingBox.of_slices(sides)


def touched_faces(logits_czyx: torch.Tensor, box: BoundingBox, shape_zyx: IntTriple) -> tuple[TouchedFace, ...]:
    """The faces of a region that organs reach although the image continues there.

    Faces that lie on the border of the volume do not count: the organ ends there because the image does. Nor does what
    `organs_box` calls a speck: a stray blob at the edge is no organ that was cut off.

    Args:
        logits_czyx: Scores of background and every other index in the region, (channels, *box.shape_zyx).
        box: The region.
        shape_zyx: Shape of the volume that the region is a part of.
    """
    reached = np.zeros(logits_czyx.shape[0], bool)
    for axis, high in inner_sides(box, shape_zyx):
        reached |= _reaching(most_likely(logits_czyx.select(axis + 1, -high)[:, None]), len(reached))
    if not reached.any():
        return ()
    return touched_by(most_likely(logits_czyx), len(reached), box, shape_zyx)  # of the whole region: seldom needed


def touched_by(
    labels_zyx: np.ndarray, channels: int, box: BoundingBox, shape_zyx: IntTriple
) -> tuple[TouchedFace, ...]:
    """The same of the label map that these scores make; it may be changed.

    Args:
        labels_zyx: Label indices in the region.
        channels: Background and every other index.
        box: The region.
        shape_zyx: Shape of the volume that the region is a part of.
    """
    sides = inner_sides(box, shape_zyx)
    reached = np.zeros(channels, bool)
    for axis, high in sides:
        reached |= _reaching(labels_zyx.take(-high, axis), channels)
    if not reached.any():
        return ()
    labels_zyx *= reached[labels_zyx]
    labels_zyx *= _without_specks(labels_zyx)[0]
    faces = []
    for axis, high in sides:
        organs = np.flatnonzero(_reaching(labels_zyx.take(-high, axis), channels))
        if organs.size:
            faces.append(TouchedFace(axis=axis, high=high, indices=tuple(organs.tolist())))
    return tuple(faces)


def inner_sides(box: BoundingBox, shape_zyx: IntTriple) -> list[tuple[int, bool]]:
    """The faces of a region behind which its volume goes on: axis, and whether it is the high end."""
    return [
        (axis, high)
        for axis in range(3)
        for high in (False, True)
        if (box.stop[axis] != shape_zyx[axis] if high else box.start[axis] != 0)
    ]


def _reaching(face: np.ndarray, classes: int) -> np.ndarray:
    """Whether each class is an organ with enough voxels on a face; bool, (classes,)."""
    reaching = np.bincount(face.ravel(), minlength=classes) >= TOUCHING_VOXELS
    reaching[0] = False
    return reaching


def extended(
    box: BoundingBox,
    faces: tuple[TouchedFace, ...],
    margin_mm: float,
    spacing_zyx_mm: FloatTriple,
    shape_zyx: IntTriple,
) -> BoundingBox:
    """The box with these faces moved outwards by a margin, clipped to the volume."""
    grown = box.grown(margin_mm, spacing_zyx_mm, shape_zyx).slices
    sides = list(box.slices)
    for face in faces:
        old, new = sides[face.axis], grown[face.axis]
        sides[face.axis] = slice(old.start, new.stop) if face.high else slice(new.start, old.stop)
    return BoundingBox.of_slices(sides)
