"""The series of DICOM slices in a folder: which of them is the scan, and the grid that its slices form.

Slices are ordered by where they lie, never by name or number. What is no even stack of slices is refused, by name.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from flaresemi.errors import ImageError, one_line
from flaresemi.geometry import Geometry
from flaresemi.io.axes import SHEAR_TOLERANCE_DEGREES, make_geometry
from flaresemi.io.dicom import Slice, read_slices

#: A slice may lie this far from its place in an even stack, as a share of the slices' distance, or this many mm where
#: that is more. Chosen: headers round positions to 0.1 mm at worst; a tenth of a voxel is what a grid may be off
#: elsewhere, too.
EVEN_TOLERANCE = 0.1
EVEN_TOLERANCE_MM = 0.05

#: Slices closer than this lie at one position. Chosen: far below the thinnest slices.
SAME_POSITION_MM = 0.01

#: A series that covers less than this share of what the largest one covers is a survey, not the scan. Chosen.
LEAST_COVERAGE = 0.5

#: Another series of this share of the slices may as well be the meant one, like a second phase or kernel. Chosen:
#: thick and thin reconstructions of one scan differ by a factor of 2 and more.
LIKE_COUNT = 0.8

#: Pixel spacings that differ by less than this share, and directions by less than this, are equal up to rounding.
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SliceSeries:
    """A scan as DICOM slices.

    Attributes:
        slices: Along the grid's third axis.
        geometry: The grid that they form.
        note: What was taken and what was left, where the folder holds more than this series; else empty.
        modality: CT, MR, PT and so on, as its slices say; several where they differ, empty where none says it.
    """

    slices: tuple[Slice, ...]
    geometry: Geometry
    note: str
    modality: str = ""


def find_series(folder: Path) -> SliceSeries:
    """Finds the scan in a folder of DICOM files, by their headers alone.

    Of several series, those that cover less than half of the largest one's volume are left (scouts, bolus tracking);
    then derived ones, where there is an original (reformats); of the others, the one with the most slices is taken.

    Raises:
        ImageError: the folder holds no series of two slices or more, or several that may as well be meant; a file is
            damaged or a slice missing; the slices differ, lie unevenly, beside each other, or twice at one position.
    """
    slices, others = read_slices(folder)
    groups: dict[tuple[str, bool], list[Slice]] = defaultdict(list)
    for each in slices:
        groups[each.series_uid, "LOCALIZER" in each.image_type].append(each)
    taken = _pick([group for (_, localizer), group in groups.items() if not localizer and len(group) > 1])
    if taken is None:
        left = _left(groups.values(), others)
        raise ImageError(
            "no series of slices in this folder" + (f", but {left}" if left else ""),
            where=folder,
            fix="name a folder that holds the slices of a CT, MR or PET scan directly in it",
        )
    left = _left((group for group in groups.values() if group is not taken), others)
    ordered, geometry = _stack(taken, folder)
    note = f"taken: {_about(taken)}; left: {left}" if left else ""
    modality = ", ".join(sorted({each.modality for each in taken if each.modality}))
    return SliceSeries(slices=ordered, geometry=geometry, note=note, modality=modality)


def _pick(groups: Sequence[list[Slice]]) -> list[Slice] | None:
    if not groups:
        return None
    coverage = [_coverage_mm3(group) for group in groups]
    kept = [group for group, covered in zip(groups, coverage, strict=True) if covered >= LEAST_COVERAGE * max(coverage)]
    kept = [group for group in kept if not {"DERIVED", "SECONDARY"} & set(group[0].image_type[:2])] or kept
    kept.sort(key=len, reverse=True)
    alike = [group for group in kept if len(group) >= LIKE_COUNT * len(kept[0])]
    if len(alike) > 1:
        raise ImageError(
            f"{len(alike)} series in this folder may be the scan: {'; '.join(map(_about, alike))}",
            where=kept[0][0].path.parent,
            fix="put the slices of the one that is meant into a folder of their own",
        )
    return kept[0]


def _coverage_mm3(group: Sequence[Slice]) -> float:
    first = group[0]
    along = _offsets_mm(group) @ _normal(first)
    return float(np.ptp(along)) * math.prod(first.size_xy) * math.prod(first.spacing_xy_mm)


def _about(group: Sequence[Slice]) -> str:
    first = group[0]
    kind = "localizer" if "LOCALIZER" in first.image_type else f"{len(group)} slices" if len(group) > 1 else "1 slice"
    return f"series {first.series_number} ({first.modality}, {kind}, like {first.name})"


def _left(groups: Iterable[Sequence[Slice]], others: dict[str, list[Path]]) -> str:
    parts = [_about(group) for group in groups]
    parts += [f"{len(paths)} file(s) like {one_line(paths[0].name)} ({what})" for what, paths in others.items()]
    return "; ".join(parts)


def _stack(group: Sequence[Slice], folder: Path) -> tuple[tuple[Slice, ...], Geometry]:
    """Orders the slices of a series and checks that they form a grid."""
    _refuse_strangers(group)
    first = _refuse_differing(group)
    along = _offsets_mm(group) @ _normal(first)
    order = np.argsort(along, kind="stable")
    ordered, along = [group[index] for index in order], along[order] - along[order[0]]
    _refuse_same_position(ordered, along)
    _refuse_sideways(ordered, along)
    _refuse_uneven(ordered, along)
    row, column = np.reshape(first.direction, (2, 3))
    geometry = make_geometry(
        (len(ordered), first.size_xy[1], first.size_xy[0]),
        np.array([*first.spacing_xy_mm, along[-1] / (len(ordered) - 1)]),
        np.array(ordered[0].position_xyz_mm),
        np.stack([row, column, _normal(first)], axis=1),
        folder,
    )
    return tuple(ordered), geometry


def _refuse_strangers(group: Sequence[Slice]) -> None:
    """Checks that all slices are of one patient, study, frame of reference and modality, whose names are not told."""
    for name, value_of in _OWNERS:
        known = Counter(map(value_of, group))
        if len(known) == 1 or (name in _GENERATED and len(known) == len(group)):
            continue
        usual = known.most_common(1)[0][0]
        odd = [each for each in group if value_of(each) != usual]
        raise ImageError(
            f"slices of one series differ in their {name}, {len(odd)} of {len(group)} from the others",
            where=_places(odd),
            fix="put the slices of every scan into a folder of their own",
        )


def _refuse_differing(group: Sequence[Slice]) -> Slice:
    """Checks that all slices are of one size, spacing and orientation; returns one of them."""
    kinds = Counter((each.size_xy, each.spacing_xy_mm, each.direction) for each in group)
    usual, _ = kinds.most_common(1)[0]
    size, spacing, direction = usual
    checks = (
        ("size", "{}×{}", size, lambda each: each.size_xy, lambda value: value == size),
        (
            "pixel spacing",
            "{:g}×{:g} mm",
            spacing,
            lambda each: each.spacing_xy_mm,
            lambda value: np.allclose(value, spacing, rtol=_ROUNDING, atol=0.0),
        ),
        (
            "orientation",
            "{:g} {:g} {:g} / {:g} {:g} {:g}",
            direction,
            lambda each: each.direction,
            lambda value: np.allclose(value, direction, rtol=0.0, atol=_ROUNDING),
        ),
    )
    for name, text, expected, value_of, is_equal in checks:
        odd = [each for each in group if not is_equal(value_of(each))]
        if odd:
            raise ImageError(
                f"{len(odd)} of the {len(group)} slices differ in {name}: {text.format(*value_of(odd[0]))}, expected "
                f"{text.format(*expected)}",
                where=_places(odd),
                fix="remove the slices that are not of this scan",
            )
    return next(each for each in group if (each.size_xy, each.spacing_xy_mm, each.direction) == usual)


#: What tells scans apart that share the number of a series, as careless programs leave them. The values are not shown.
_OWNERS: tuple[tuple[str, Callable[[Slice], str]], ...] = (
    ("patient", lambda each: each.belongs_to[0]),
    ("study", lambda each: each.belongs_to[1]),
    ("frame of reference", lambda each: each.belongs_to[2]),
    ("modality", lambda each: each.modality),
)


#: Of these, some writers make a new one for every file.
_GENERATED = ("study", "frame of reference")


def _refuse_same_position(ordered: Sequence[Slice], along: np.ndarray) -> None:
    places = np.concatenate([[0], np.cumsum(np.diff(along) > SAME_POSITION_MM)])
    counts = np.bincount(places)
    if counts.max() == 1:
        return
    if np.mean(counts > 1) > 0.5:
        raise ImageError(
            f"{len(ordered)} slices at {len(counts)} positions: the series holds several images of one place (phases, "
            "echoes, times, directions)",
            where=ordered[0].path.parent,
            fix="put the slices of one of them into a folder of their own",
        )
    twice = [each for each, place in zip(ordered, places, strict=True) if counts[place] > 1]
    raise ImageError(
        f"{len(twice)} slices share {np.count_nonzero(counts > 1)} position(s)",
        where=_places(twice),
        fix="keep one file per position",
    )


def _refuse_sideways(ordered: Sequence[Slice], along: np.ndarray) -> None:
    first = ordered[0]
    offsets = _offsets_mm(ordered)
    sideways = offsets - along[:, None] * _normal(first)
    distance = np.linalg.norm(sideways, axis=1)
    off = distance - math.tan(math.radians(SHEAR_TOLERANCE_DEGREES)) * along
    if (off <= EVEN_TOLERANCE * min(first.spacing_xy_mm)).all():
        return
    steady = np.abs(sideways - np.outer(along / along[-1], sideways[-1])).max() < 0.5 * min(first.spacing_xy_mm)
    if steady:
        degrees = math.degrees(math.atan2(distance[-1], along[-1]))
        raise ImageError(
            f"the stack is sheared by {degrees:.1f} degrees (gantry tilt): each slice lies a little beside the one "
            "before",
            where=first.path.parent,
            fix="straighten it first, for instance with dcm2niix (its file named _Tilt)",
        )
    worst = int(off.argmax())
    raise ImageError(
        f"a slice lies {distance[worst]:.3g} mm beside the stack",
        where=ordered[worst].path,
        fix="remove the slices that are not of this scan",
    )


def _refuse_uneven(ordered: Sequence[Slice], along: np.ndarray) -> None:
    even = along[-1] / (len(ordered) - 1)
    tolerance = max(EVEN_TOLERANCE * even, EVEN_TOLERANCE_MM)
    if (np.abs(along - even * np.arange(len(ordered))) <= tolerance).all():
        return
    gaps = np.diff(along)
    expected = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    off = np.abs(gaps - expected)
    odd = np.flatnonzero(off > tolerance) if off.max() > tolerance else np.array([off.argmax()])
    found = "; ".join(
        f"{gaps[index]:.4g} mm between {ordered[index].name} and {ordered[index + 1].name}" for index in odd[:3]
    )
    holes = gaps[odd].min() > 1.5 * expected and len(odd) <= max(1, len(gaps) // 4)
    missing = round(float((gaps[odd] / expected - 1).sum()))
    what = f"{missing} slice(s) missing" if holes else "the slices are unevenly spaced"
    raise ImageError(
        f"{what}: {found}{' and so on' if len(odd) > 3 else ''}; expected {expected:.4g} mm (± {tolerance:.2g} mm)",
        where=ordered[0].path.parent,
        fix="copy the series again; slices of another scan or spacing belong into a folder of their own",
    )


def _offsets_mm(group: Sequence[Slice]) -> np.ndarray:
    """Where slices lie, from the first of them: (slices, xyz)."""
    positions = np.array([each.position_xyz_mm for each in group])
    return positions - positions[0]


def _normal(each: Slice) -> np.ndarray:
    row, column = np.reshape(each.direction, (2, 3))
    normal = np.cross(row, column)
    length = float(np.linalg.norm(normal))
    return normal / length if length > 0 else normal


def _places(slices: Sequence[Slice]) -> str:
    names = ", ".join(one_line(each.path) for each in slices[:4])
    return names + (f" and {len(slices) - 4} more" if len(slices) > 4 else "")
