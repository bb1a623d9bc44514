"""Organ names and the values that stand for them in the user's files and inside flaresemi."""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from flaresemi.errors import is_one_line, listed, shown
from flaresemi.ranges import DistanceMm, LabelValue
from flaresemi.records import CAME_LATER

#: Voxels that are looked at together: indexing and counting make 64-bit copies. Chosen.
_PIECE = 1 << 20

#: For each organ, in order, the indices of the label map that make it up.
Members = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One organ: a value of the user's label maps, or a region, the union of several.

    Attributes:
        name: As the user calls it.
        value: Its integer in the user's label maps; of a region, the first one.
        tolerance_mm: Tolerance of the surface Dice; None: the default of the dataset (see `evaluation`).
        z_range: True for tubes that end where the annotation stopped: scored only between the first and the last
            slice of the reference.
        more_values: The other integers of a region.
    """

    name: str
    value: LabelValue
    tolerance_mm: DistanceMm | None = None
    z_range: bool = False
    more_values: tuple[LabelValue, ...] = dataclasses.field(default=(), metadata=CAME_LATER)

    def __post_init__(self) -> None:
        if not is_one_line(self.name):
            raise ValueError(f"label name '{shown(self.name)}' holds characters that cannot be seen")
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"label '{self.name}' names a value twice: {list(self.values)}")

    @property
    def values(self) -> tuple[int, ...]:
        """All its integers in the user's label maps."""
        return (self.value, *self.more_values)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelClass:
    """What one index of a label map stands for: a combination of organs that occurs.

    Attributes:
        values: The user's values that mean it; the first one is written.
        organs: Internal indices (1 and up) of the organs that it belongs to.
    """

    values: tuple[int, ...]
    organs: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelSet:
    """The organs of a dataset, in order of their values; with regions, as the user declared them.

    Inside flaresemi a label map holds indices: 0 is background, the others are what can be told apart. Without regions
    that are the organs, and `i` is `labels[i - 1]`. Regions may overlap: then an index stands for a combination of
    organs that occurs (`classes`), and an organ is the union of its indices (`members`). What is judged is judged by
    organ; what the network tells apart are the indices. The user's values are mapped on reading and written back on
    export.

    Attributes:
        labels: The organs, without background.
        background: The user's value of background.
        mirror_pairs: Names of organs that change places when the patient is mirrored left to right; None: it is not
            known which, so that no patient may be mirrored like that.
        written_values: Which of several values with one meaning is written; the lowest where none of these is among
            them.
        ignore: The user's value of voxels that nobody has annotated; None: there are none.
    """

    labels: tuple[Label, ...]
    background: LabelValue = 0
    mirror_pairs: tuple[tuple[str, str], ...] | None = ()
    written_values: tuple[LabelValue, ...] = dataclasses.field(default=(), metadata=CAME_LATER)
    ignore: LabelValue | None = dataclasses.field(default=None, metadata=CAME_LATER)

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a dataset needs at least one label besides background")
        self._check_values()
        names = self.names
        if len(set(names)) != len(names):
            raise ValueError(f"label names must differ, found {names}")
        paired = [name for pair in self.mirror_pairs or () for name in pair]
        for name in paired:
            if name not in names:
                raise ValueError(f"mirror pair names '{name}', which is not a label")
        if len(set(paired)) != len(paired):
            raise ValueError("a label may stand in one mirror pair only")
        if self.has_regions:
            _ = self.mirror_permutation  # raises where a combination has no partner

    def _check_values(self) -> None:
        values = [self.background, *(value for label in self.labels for value in label.values)]
        if self.ignore in values:
            raise ValueError(f"'ignore' has value {self.ignore}, which is {self._meaning(self.ignore)}, too")
        if any(abs(value) >= 1 << 31 for value in (*values, self.ignore or 0)):
            raise ValueError(f"label values must fit 32 bits, found {values}")
        if not self.has_regions:
            if len(set(values)) != len(values):
                raise ValueError(f"label values must differ, found {values}")
            return
        if self.background in values[1:]:
            raise ValueError(f"background, value {self.background}, can be part of no organ")
        seen: dict[frozenset[int], str] = {}
        for label in self.labels:
            other = seen.setdefault(frozenset(label.values), label.name)
            if other != label.name:
                raise ValueError(f"'{other}' and '{label.name}' are the same voxels: values {sorted(label.values)}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def has_regions(self) -> bool:
        """Whether an organ is the union of several values."""
        return any(label.more_values for label in self.labels)

    @property
    def values(self) -> dict[str, int]:
        """The user's value of every organ that has one alone, by name; that of ignored voxels among them."""
        ignore = {} if self.ignore is None else {"ignore": self.ignore}
        return {label.name: label.value for label in self.labels if not label.more_values} | ignore

    @property
    def known_values(self) -> frozenset[int]:
        """All of the user's values, those of background and ignored voxels among them."""
        ignore = () if self.ignore is None else (self.ignore,)
        return frozenset([self.background, *(value for label in self.labels for value in label.values), *ignore])

    @property
    def meanings(self) -> dict[int, str]:
        """The meaning of each of the user's values."""
        return (
            {self.background: "background"}
            | {
                value: " + ".join(self.names[organ - 1] for organ in each.organs)
                for each in self.classes
                for value in each.values
            }
            | ({} if self.ignore is None else {self.ignore: "ignore"})
        )

    def _meaning(self, value: int | None) -> str:
        names = (label.name for label in self.labels if value in label.values)
        return "background" if value == self.background else " + ".join(names)

    @property
    def reading(self) -> tuple[object, ...]:
        """What decides the index of a value, for hashes."""
        ignore = () if self.ignore is None else (f"ignore {self.ignore}",)
        if not self.has_regions:
            return (self.background, *(label.value for label in self.labels), *ignore)
        return (self.background, *((each.values, each.organs) for each in self.classes), *ignore)

    @property
    def classes(self) -> tuple[LabelClass, ...]:
        """What the indices stand for, from 1 on: values that belong to the same organs are one."""
        if not self.has_regions:
            return tuple(LabelClass(values=(label.value,), organs=(i,)) for i, label in enumerate(self.labels, start=1))
        return _combinations(self.labels, self.written_values)

    @property
    def members(self) -> Members:
        """The indices that make up each organ."""
        if not self.has_regions:
            return tuple((i,) for i in range(1, len(self.labels) + 1))
        members: list[list[int]] = [[] for _ in self.labels]
        for index, each in enumerate(self.classes, start=1):
            for organ in each.organs:
                members[organ - 1].append(index)
        return tuple(map(tuple, members))

    @property
    def regions(self) -> Members | None:
        """The same where organs are regions; None: organ `i` is index `i`."""
        return self.members if self.has_regions else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for what each index stands for, from 1 on."""
        return tuple(" + ".join(self.names[organ - 1] for organ in each.organs) for each in self.classes)

    @property
    def count(self) -> int:
        """Number of organs, without background."""
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of network outputs: background and what can be told apart."""
        return (len(self.classes) if self.has_regions else len(self.labels)) + 1

    @property
    def ignored(self) -> int:
        """Internal index of voxels that nobody has annotated: the one behind all that the network tells apart."""
        return self.channels

    def index(self, name: str) -> int:
        """Internal index (1 and up) of an organ among the organs."""
        return self.names.index(name) + 1

    def mask(self, indices: np.ndarray, organ: int) -> np.ndarray:
        """Where an organ (1 and up) is in a label map, bool."""
        if not self.has_regions:
            return indices == organ
        return np.isin(indices, self.members[organ - 1])

    def per_organ(self, counts: np.ndarray) -> np.ndarray:
        """Counts (or sums) per index, background first, to those per organ, background left out."""
        return per_organ(counts[: self.channels], self.regions)

    def painted(self, indices: np.ndarray, organs: Iterable[int] | None = None) -> np.ndarray:
        """A label map to one of organs (1 and up), for pictures: where several overlap, the one of fewest indices.

        Args:
            indices: The label map.
            organs: Those to paint; None: all.
        """
        chosen = set(range(1, self.count + 1) if organs is None else organs)
        members = self.members
        table = np.zeros(self.channels + 1, np.uint8 if self.count < 256 else np.uint16)  # ignored voxels are bare
        for index, each in enumerate(self.classes, start=1):
            table[index] = min(chosen & {*each.organs}, key=lambda organ: (len(members[organ - 1]), -organ), default=0)
        return table[indices]

    def organs_of(self, indices: Iterable[int]) -> tuple[int, ...]:
        """The organs (1 and up) that any of these indices belongs to, in order."""
        classes = self.classes
        return tuple(sorted({organ for index in indices if index for organ in classes[index - 1].organs}))

    def told_apart(self, supervised: Iterable[int]) -> tuple[int, ...]:
        """What can be told apart where some organs alone are known.

        Args:
            supervised: Those organs (1 and up).

        Returns:
            For each index from 0 on, the lowest one that belongs to the same of these organs.
        """
        known = set(supervised)
        first: dict[tuple[int, ...], int] = {(): 0}
        combinations = (tuple(organ for organ in each.organs if organ in known) for each in self.classes)
        return (0, *(first.setdefault(organs, index) for index, organs in enumerate(combinations, start=1)))

    def without(self, organ: int) -> tuple[int, ...]:
        """What each index from 0 on becomes where an organ (1 and up) is taken out: what else of it can be expressed.

        That is the combination of most of its other organs, and of no further one; background where there is none.
        """
        combinations = [frozenset[int](), *(frozenset(each.organs) for each in self.classes)]
        left = [each - {organ} for each in combinations]
        return tuple(
            index
            if organ not in own
            else max(range(len(combinations)), key=lambda i: (combinations[i] <= rest, len(combinations[i]), -i))
            for index, (own, rest) in enumerate(zip(combinations, left, strict=True))
        )

    @property
    def mirror_permutation(self) -> tuple[int, ...]:
        """For each internal index, the index of its partner in a left-right mirrored patient (mostly itself).

        Raises:
            ValueError: a combination of organs has no partner, which a `LabelSet` never holds.
        """
        partner = list(range(self.count + 1))
        for one, other in self.mirror_pairs or ():
            partner[self.index(one)] = self.index(other)
            partner[self.index(other)] = self.index(one)
        classes = self.classes
        index_of = {each.organs: index for index, each in enumerate(classes, start=1)}
        permutation = [0]
        for each in classes:
            mirrored = tuple(sorted(partner[organ] for organ in each.organs))
            if mirrored not in index_of:
                found, wanted = (
                    listed([self.names[organ - 1] for organ in organs]) for organs in (each.organs, mirrored)
                )
                raise ValueError(
                    f"mirror pairs: value {each.values[0]} is {found}, and no value is {wanted}, which it becomes"
                )
            permutation.append(index_of[mirrored])
        return tuple(permutation)

    def mirror_axes(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the axes (0 = z, 1 = y, 2 = x) that images of these organs may be mirrored on."""
        return tuple(axis for axis in axes if axis != 2 or self.mirror_pairs is not None)

    def unknown_values(self, values: np.ndarray) -> tuple[int, ...]:
        """Those of the user's values that this set does not declare, sorted."""
        known = self.known_values
        return tuple(value for value in count_values(values) if value not in known)

    def to_indices(self, values: np.ndarray) -> np.ndarray:
        """The user's values to internal indices, uint8 (up to 255 of them) or uint16; undeclared values become 0."""
        known = self.known_values
        low, high = min(known), max(known)
        index_of = {value: index for index, each in enumerate(self.classes, start=1) for value in each.values}
        if self.ignore is not None:
            index_of[self.ignore] = self.ignored
        indices = np.zeros(values.shape, np.uint8 if max(index_of.values()) < 256 else np.uint16)
        if high - low < 1 << 16:  # a lookup table, for any sane numbering
            table = np.zeros(high - low + 1, indices.dtype)
            for value, index in index_of.items():
                table[value - low] = index
            flat, result = values.reshape(-1), indices.reshape(-1)
            for start in range(0, flat.size, _PIECE):
                piece, target = flat[start : start + _PIECE], result[start : start + _PIECE]
                inside = (piece >= low) & (piece <= high)
                target[inside] = table[piece[inside].astype(np.int64) - low]
            return indices
        for value, index in index_of.items():
            indices[values == value] = index
        return indices

    def to_values(self, indices: np.ndarray) -> np.ndarray:
        """Internal indices to the user's values, in the smallest integer type that holds them all."""
        ignore = [] if self.ignore is None else [self.ignore]
        values = np.array([self.background, *(each.values[0] for each in self.classes), *ignore])
        for kind in (np.uint8, np.int16, np.uint16, np.int32, np.int64):
            if np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max:
                return values.astype(kind)[indices]
        raise ValueError(f"label values do not fit an integer: {values}")


@functools.lru_cache(maxsize=16)
def _combinations(labels: tuple[Label, ...], written: tuple[int, ...]) -> tuple[LabelClass, ...]:
    """The combinations of organs that occur, by their lowest value; of the values of each, the written one first."""
    organs_of: dict[int, list[int]] = {}
    for organ, label in enumerate(labels, start=1):
        for value in label.values:
            organs_of.setdefault(value, []).append(organ)
    values_of: dict[tuple[int, ...], list[int]] = {}
    for value in sorted(organs_of):
        values_of.setdefault(tuple(organs_of[value]), []).append(value)
    return tuple(
        LabelClass(values=tuple(sorted(values, key=lambda value: value not in written)), organs=organs)
        for organs, values in values_of.items()
    )


def partners(organs: Members, mirror_permutation: np.ndarray) -> list[int]:
    """Background and, for each organ, the organ (1 and up) whose place it has in a patient mirrored left to right.

    Args:
        organs: The label indices of each organ.
        mirror_permutation: Label index in such a patient, for each index.
    """
    organ_of = {frozenset(indices): organ for organ, indices in enumerate(organs, start=1)}
    return [0, *(organ_of[frozenset(mirror_permutation[list(indices)].tolist())] for indices in organs)]


def per_organ(counts: np.ndarray, regions: Members | None) -> np.ndarray:
    """Counts (or sums) per index, background first, to those per organ, background left out.

    Args:
        regions: The indices of each organ; None: organ `i` is index `i`.
    """
    if regions is None:
        return counts[1:]
    return np.array([counts[list(indices)].sum() for indices in regions], counts.dtype)


def count_values(values: np.ndarray) -> dict[int, int]:
    """How often each integer stands in an array, in ascending order; faster than sorting where the range is sane."""
    flat = values.reshape(-1)
    if flat.size == 0:
        return {}
    low, high = int(flat.min()), int(flat.max())
    if high - low >= 1 << 16:
        found, counts = np.unique(flat, return_counts=True)
        return {int(value): int(count) for value, count in zip(found, counts, strict=True)}
    total = np.zeros(high - low + 1, np.int64)
    for start in range(0, flat.size, _PIECE):
        total += np.bincount(flat[start : start + _PIECE].astype(np.int64) - low, minlength=total.size)
    return {low + int(index): int(total[index]) for index in np.flatnonzero(total)}
