"""Organ names and the values that stand for them in the user's files and inside flaresemi."""

import dataclasses

import numpy as np

from flaresemi.errors import is_one_line, shown
from flaresemi.ranges import DistanceMm, LabelValue

#: Voxels that are looked at together: indexing and counting make 64-bit copies. Chosen.
_PIECE = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One organ.

    Attributes:
        name: As the user calls it.
        value: Its integer in the user's label maps.
        tolerance_mm: Tolerance of the surface Dice; None: the default of the dataset (see `evaluation`).
        z_range: True for tubes that end where the annotation stopped: scored only between the first and the last
            slice of the reference.
    """

    name: str
    value: LabelValue
    tolerance_mm: DistanceMm | None = None
    z_range: bool = False

    def __post_init__(self) -> None:
        if not is_one_line(self.name):
            raise ValueError(f"label name '{shown(self.name)}' holds characters that cannot be seen")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelSet:
    """The organs of a dataset, in order of their values.

    Inside flaresemi a label map holds indices: 0 is background, `i` is `labels[i - 1]`. The user's values are
    mapped on reading and written back on export.

    Attributes:
        labels: The organs, without background.
        background: The user's value of background.
        mirror_pairs: Names of organs that change places when the patient is mirrored left to right; None: it is not
            known which, so that no patient may be mirrored like that.
    """

    labels: tuple[Label, ...]
    background: LabelValue = 0
    mirror_pairs: tuple[tuple[str, str], ...] | None = ()

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a dataset needs at least one label besides background")
        values = [self.background, *(label.value for label in self.labels)]
        if len(set(values)) != len(values):
            raise ValueError(f"label values must differ, found {values}")
        if any(abs(value) >= 1 << 31 for value in values):
            raise ValueError(f"label values must fit 32 bits, found {values}")
        names = self.names
        if len(set(names)) != len(names):
            raise ValueError(f"label names must differ, found {names}")
        paired = [name for pair in self.mirror_pairs or () for name in pair]
        for name in paired:
            if name not in names:
                raise ValueError(f"mirror pair names '{name}', which is not a label")
        if len(set(paired)) != len(paired):
            raise ValueError("a label may stand in one mirror pair only")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def values(self) -> dict[str, int]:
        """The user's value of every organ, by name."""
        return {label.name: label.value for label in self.labels}

    @property
    def meanings(self) -> dict[int, str]:
        """The meaning of each of the user's values."""
        return {self.background: "background"} | {label.value: label.name for label in self.labels}

    @property
    def count(self) -> int:
        """Number of organs, without background."""
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of network outputs: background and every organ."""
        return len(self.labels) + 1

    def index(self, name: str) -> int:
        """Internal index (1 and up) of an organ."""
        return self.names.index(name) + 1

    @property
    def mirror_permutation(self) -> tuple[int, ...]:
        """For each internal index, the index of its partner in a left-right mirrored patient (mostly itself)."""
        permutation = list(range(self.channels))
        for one, other in self.mirror_pairs or ():
            permutation[self.index(one)] = self.index(other)
            permutation[self.index(other)] = self.index(one)
        return tuple(permutation)

    def mirror_axes(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the axes (0 = z, 1 = y, 2 = x) that images of these organs may be mirrored on."""
        return tuple(axis for axis in axes if axis != 2 or self.mirror_pairs is not None)

    def unknown_values(self, values: np.ndarray) -> tuple[int, ...]:
        """Those of the user's values that this set does not declare, sorted."""
        known = {self.background, *(label.value for label in self.labels)}
        return tuple(value for value in count_values(values) if value not in known)

    def to_indices(self, values: np.ndarray) -> np.ndarray:
        """The user's values to internal indices, uint8 (up to 255 organs) or uint16; undeclared values become 0."""
        low = min(self.background, *(label.value for label in self.labels))
        high = max(self.background, *(label.value for label in self.labels))
        indices = np.zeros(values.shape, np.uint8 if self.count < 256 else np.uint16)
        if high - low < 1 << 16:  # a lookup table, for any sane numbering
            table = np.zeros(high - low + 1, indices.dtype)
            for index, label in enumerate(self.labels, start=1):
                table[label.value - low] = index
            flat, result = values.reshape(-1), indices.reshape(-1)
            for start in range(0, flat.size, _PIECE):
                piece, target = flat[start : start + _PIECE], result[start : start + _PIECE]
                inside = (piece >= low) & (piece <= high)
                target[inside] = table[piece[inside].astype(np.int64) - low]
            return indices
        for index, label in enumerate(self.labels, start=1):
            indices[values == label.value] = index
        return indices

    def to_values(self, indices: np.ndarray) -> np.ndarray:
        """Internal indices to the user's values, in the smallest integer type that holds them all."""
        values = np.array([self.background, *(label.value for label in self.labels)])
        for kind in (np.uint8, np.int16, np.uint16, np.int32, np.int64):
            if np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max:
                return values.astype(kind)[indices]
        raise ValueError(f"label values do not fit an integer: {values}")


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
