import dataclasses
import math
import typing

import pytest

from flaresemi.ranges import AtLeastOne, Range, Share, check_ranges, range_of


@pytest.mark.parametrize(
    ("known", "inside", "outside"),
    [
        (Range(0, 1), [0, 1, 0.5, -0.0], [-1e-9, 1.1, math.nan, math.inf, 10**400, -(10**400)]),
        (Range(0, 1, above=True), [1e-300, 1], [0, 0.0, math.nan]),
        (Range(0, 1, below=True), [0, 0.999], [1, 1.0]),
    ],
)
def test_what_lies_in_a_range(known: Range, inside: list[float], outside: list[float]) -> None:
    assert all(number in known for number in inside)
    assert not any(number in known for number in outside)


def test_a_range_in_words() -> None:
    assert str(Range(0, 1)) == "at least 0 and at most 1"
    assert str(Range(0, 2**31, above=True, below=True)) == "above 0 and below 2147483648"
    assert str(Range(1e-4, 1e30)) == "at least 0.0001 and at most 1e+30"


def test_the_range_of_a_type() -> None:
    assert range_of(Share) == range_of(Share | None) == range_of(tuple[Share, ...]) == Range(0, 1)
    assert range_of(float) is range_of(str | None) is None


@dataclasses.dataclass(frozen=True)
class Options:
    share: Share = 0.5
    count: AtLeastOne | None = None
    parts: tuple[Share, ...] = ()
    name: str = ""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"share": math.nan}, "'share' must be at least 0 and at most 1, found nan"),
        ({"count": 0}, "'count' must be at least 1 and at most 1000000, found 0"),
        ({"parts": (0.1, 2.0)}, "'parts[1]' must be"),
    ],
)
def test_fields_that_programs_fill_in(changes: dict[str, typing.Any], told: str) -> None:
    check_ranges(Options())
    with pytest.raises(ValueError, match="must be") as caught:
        check_ranges(Options(**changes))
    assert told in str(caught.value)
