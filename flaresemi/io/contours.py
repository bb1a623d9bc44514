"""The outlines of regions in a slice as closed polygons, which say the same voxels to whoever fills them.

They run halfway between the voxels inside and those outside, so that no center of a voxel lies on a line, whatever rule
a program has for that. A hole is reached by a keyhole, two lines in one place, as DICOM asks of closed contours.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np


def outlines(mask_yx: np.ndarray) -> list[np.ndarray]:
    """The polygons around the regions of a mask, each with the holes in it.

    Args:
        mask_yx: bool; voxels that touch at a corner alone belong to two polygons.

    Returns:
        Of each its corners, (n, 2) as (y, x) in voxels, the first not repeated; neighbors on a straight line are left
        out.
    """
    rows, columns = np.flatnonzero(mask_yx.any(axis=1)), np.flatnonzero(mask_yx.any(axis=0))
    if rows.size == 0:
        return []
    from skimage.measure import find_contours  # seldom needed, and it takes a while to import

    first = np.array([rows[0] - 1, columns[0] - 1])
    part = np.pad(mask_yx[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1).astype(np.float32)
    rings = [_corners(ring[:-1] + first) for ring in find_contours(part, 0.5)]
    areas = [_area(ring) for ring in rings]  # negative around voxels, positive around holes
    outer = [ring for ring, area in zip(rings, areas, strict=True) if area < 0]
    return _joined(outer, [ring for ring, area in zip(rings, areas, strict=True) if area > 0])


@dataclasses.dataclass(slots=True)
class _Keyhole:
    """How a hole hangs on another ring: where it is left, where that is met, and how far along the edges there."""

    hole: int
    leaves: np.ndarray
    leaves_edge: int
    meets: np.ndarray
    meets_edge: int
    along: float


def _joined(outer: list[np.ndarray], inner: list[np.ndarray]) -> list[np.ndarray]:
    """Outer rings, each with its holes joined to it by keyholes along a row.

    A keyhole goes from where a hole reaches furthest to the next ring, which reaches further: so each hole ends at an
    outer ring, by way of others or not. Corners lie at whole and half rows. Each keyhole has a row of its own between
    those, so that no two of them, nor a corner or a voxel's center, lie in one.
    """
    if not inner:
        return outer
    rings = [*outer, *inner]
    own = np.concatenate([np.full(len(ring), number) for number, ring in enumerate(rings)])
    edge = np.concatenate([np.arange(len(ring)) for ring in rings])
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    hanging: dict[int, list[_Keyhole]] = collections.defaultdict(list)
    exits: dict[int, _Keyhole] = {}
    for k, number in enumerate(range(len(outer), len(rings))):
        y = _row_of_keyhole(rings[number]) + _share_of_row(rings[number]) * 0.5 * (k + 1) / (2 * len(inner) + 2)
        at = np.flatnonzero((starts[:, 0] < y) != (ends[:, 0] < y))
        along = (y - starts[at, 0]) / (ends[at, 0] - starts[at, 0])
        x = starts[at, 1] + along * (ends[at, 1] - starts[at, 1])
        mine = np.flatnonzero(own[at] == number)
        last = mine[x[mine].argmax()]
        beyond = np.flatnonzero(x > x[last])
        first = beyond[x[beyond].argmin()]
        exits[number] = _Keyhole(
            hole=number,
            leaves=np.array([y, x[last]]),
            leaves_edge=int(edge[at[last]]),
            meets=np.array([y, x[first]]),
            meets_edge=int(edge[at[first]]),
            along=float(along[first]),
        )
        hanging[int(own[at[first]])].append(exits[number])
    return [_walked(number, rings, hanging, exits) for number in range(len(outer))]


def _row_of_keyhole(ring: np.ndarray) -> float:
    return float(ring[ring[:, 1].argmax(), 0])


def _share_of_row(ring: np.ndarray) -> float:
    """Whether the edge behind the corner that reaches furthest, or else the one before it, goes down or up: 1 or -1."""
    at = int(ring[:, 1].argmax())
    behind, before = ring[(at + 1) % len(ring), 0] - ring[at, 0], ring[at - 1, 0] - ring[at, 0]
    return float(np.sign(behind or before))


def _walked(
    number: int, rings: list[np.ndarray], hanging: dict[int, list[_Keyhole]], exits: dict[int, _Keyhole]
) -> np.ndarray:
    """All corners of a ring and of what hangs on it, in the order of one line through them."""
    corners: list[np.ndarray] = []
    stack = [_steps(rings[number], hanging[number], None)]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
        elif isinstance(step, _Keyhole):
            stack.append(_steps(rings[step.hole], hanging[step.hole], exits[step.hole]))
        else:
            corners.append(step)
    return np.stack(corners)


def _steps(ring: np.ndarray, hanging: list[_Keyhole], leaving: _Keyhole | None) -> Iterator[np.ndarray | _Keyhole]:
    """The corners of a ring, and between them the keyholes that meet it; of a hole from its own keyhole on."""
    begin, start = (0, 0.0) if leaving is None else (leaving.leaves_edge, _place(ring, leaving))
    on_edge: dict[int, list[_Keyhole]] = collections.defaultdict(list)
    for each in sorted(hanging, key=lambda each: each.along):
        on_edge[each.meets_edge].append(each)

    def through(keyholes: Iterable[_Keyhole]) -> Iterator[np.ndarray | _Keyhole]:
        for each in keyholes:
            yield each.meets
            yield each
            yield each.meets

    if leaving is not None:
        yield leaving.leaves
        yield from through(each for each in on_edge[begin] if each.along > start)
        begin += 1
    for index in (at % len(ring) for at in range(begin, begin + len(ring))):
        yield ring[index]
        is_own = leaving is not None and index == leaving.leaves_edge
        yield from through(each for each in on_edge[index] if not is_own or each.along < start)
    if leaving is not None:
        yield leaving.leaves


def _place(ring: np.ndarray, leaving: _Keyhole) -> float:
    """How far along its edge a hole is left."""
    one, other = ring[leaving.leaves_edge, 0], ring[(leaving.leaves_edge + 1) % len(ring), 0]
    return float((leaving.leaves[0] - one) / (other - one))


def _corners(ring: np.ndarray) -> np.ndarray:
    """A ring without the points at which it does not turn."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9]


def _area(ring: np.ndarray) -> float:
    """Twice the area, with the sign of the sense of rotation."""
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]).sum())
