"""Which numbers make sense: a range stands beside a field's type, and whoever takes numbers from outside checks it."""

import dataclasses
import functools
import typing
from typing import Annotated


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `low` to `high`; the ends belong to it unless they are said to lie outside."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        """Whether a number lies in the range; NaN lies in none."""
        if not self.low <= number <= self.high:
            return False
        return not (self.above and number == self.low) and not (self.below and number == self.high)

    def __str__(self) -> str:
        low, high = (str(end) if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        return f"{'above' if self.above else 'at least'} {low} and {'below' if self.below else 'at most'} {high}"


#: A part of a whole, a probability, Dice.
Share = Annotated[float, Range(0, 1)]
OtherMetric = Annotated[float, Range(-1e30, 1e30)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
OpenShare = Annotated[float, Range(0, 1, above=True, below=True)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]
#: By how much a share has changed.
ShareChange = Annotated[float, Range(-1, 1)]
#: How many of something there are: cases, voxels, bytes.
Count = Annotated[int, Range(0, 10**15)]
#: Cases, rounds, epochs, processes: what is counted by hand.
Few = Annotated[int, Range(0, 10**6)]
AtLeastOne = Annotated[int, Range(1, 10**6)]
Iterations = Annotated[int, Range(1, 10**9)]
IterationsSoFar = Annotated[int, Range(0, 10**9)]
#: What random generators take, with room for what is added to it.
Seed = Annotated[int, Range(0, 10**18)]
Axis = Annotated[int, Range(0, 2)]
#: Voxels along an axis, and where one of them lies.
Size = Annotated[int, Range(1, 10**7)]
VoxelIndex = Annotated[int, Range(0, 10**7)]
#: A distance between voxels, and one in general.
SpacingMm = Annotated[float, Range(0, 1e30, above=True)]
DistanceMm = Annotated[float, Range(0, 1e30)]
#: Where something lies in a scanner's world.
PositionMm = Annotated[float, Range(-1e30, 1e30)]
#: Of a unit vector, up to rounding.
DirectionCosine = Annotated[float, Range(-1.01, 1.01)]
VolumeMl = Annotated[float, Range(0, 1e30)]
#: What float32 holds.
Intensity = Annotated[float, Range(-3.5e38, 3.5e38)]
IntensitySpread = Annotated[float, Range(0, 3.5e38)]
#: A number in a user's label maps.
LabelValue = Annotated[int, Range(1 - 2**31, 2**31 - 1)]
Seconds = Annotated[float, Range(0, 1e10)]

#: Bytes, and nanoseconds since 1970, or sums of them over a folder; -1 where there is no such file.
FileSize = Annotated[int, Range(-1, 10**18)]
FileTime = Annotated[int, Range(-(10**30), 10**30)]

SizeTriple = tuple[Size, Size, Size]
VoxelTriple = tuple[VoxelIndex, VoxelIndex, VoxelIndex]
SpacingTriple = tuple[SpacingMm, SpacingMm, SpacingMm]


@functools.cache
def type_hints(cls: type) -> dict[str, typing.Any]:
    """The types of a class's fields, with their ranges. Resolving them takes a hundred times as long as using them."""
    return typing.get_type_hints(cls, include_extras=True)


def check_ranges(record: object) -> None:
    """Checks the numbers in a record's own fields; for `__post_init__` of what options and programs fill in.

    Raises:
        ValueError: one is out of its range; the message names field, range and value.
    """
    cls: type = type(record)
    for name, kind in type_hints(cls).items():
        _check(kind, getattr(record, name), name)


def range_of(kind: object) -> Range | None:
    """The range that stands beside a type, also where None may take the number's place."""
    if typing.get_origin(kind) is Annotated:
        return next((each for each in kind.__metadata__ if isinstance(each, Range)), None)  # type: ignore[attr-defined]
    found = (range_of(option) for option in typing.get_args(kind))
    return next((each for each in found if each is not None), None)


def _check(kind: object, value: object, name: str) -> None:
    known = range_of(kind)
    if known is None or value is None:
        return
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            _check_number(known, item, f"{name}[{number}]")
    else:
        _check_number(known, value, name)


def _check_number(known: Range, value: object, name: str) -> None:
    if isinstance(value, int | float) and value not in known:
        raise ValueError(f"'{name}' must be {known}, found {value!r:.40}")
