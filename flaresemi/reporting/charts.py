"""Charts as shapes at their pixels, which `charts.html` writes as SVG and `page.css` colors.

Not by matplotlib: its SVG of the same charts is three to sixteen times as long, takes up to seconds instead of
milliseconds, and brings fonts and colors of its own, so that it would follow neither a dark screen nor paper.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]

#: Room around the plot for numbers and titles, pixels.
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 42

#: Series that look unlike each other; with more, looks repeat.
_LOOKS = 6

#: More points than this are joined without a mark on each.
_MOST_MARKS = 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a chart: what it measures, where it begins and ends, and whether only integers have a meaning."""

    title: str
    low: float = 0.0
    high: float = 1.0
    is_whole: bool = False

    def share(self, value: float) -> float:
        """How far along the axis a value lies, 0 to 1."""
        if self.high <= self.low:
            return 0.5
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers along the axis, few enough to be read."""
        rough = (self.high - self.low) / most
        if rough <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
        if self.is_whole:
            step = max(1.0, round(step))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart: its name, its points, its color and dashes (from 0 on), and whether it matters less."""

    name: str
    points: Sequence[Point]
    look: int = 0
    is_thin: bool = False

    @property
    def kind(self) -> str:
        return f"look{self.look % _LOOKS}{' thin' if self.is_thin else ''}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One row of a chart of strips: a name, its values, used and rejected, and the border between them."""

    name: str
    used: Sequence[float]
    rejected: Sequence[float]
    cut: float | None = None


class Chart:
    """A plot and its shapes, in pixels from the upper left corner; each has a kind, which is a class of `page.css`.

    Attributes:
        levels: Values of the y axis with a line across the plot and a text at its left: its numbers, at first.
        text_rise: How far above its line such a text stands.
        boxes: Left, top, width, height, kind.
        lines: Start, end, kind.
        curves: Points, kind.
        dots: Center, kind.
    """

    def __init__(self, x: Axis, y: Axis, *, alt: str, size: tuple[int, int], left: int = _LEFT) -> None:
        """Begins a chart.

        Args:
            x: The axis that runs to the right.
            y: The axis that runs up.
            alt: What the chart shows, in words.
            size: Width and height.
            left: Room at the left of the plot.
        """
        self.x, self.y, self.alt, self.left = x, y, alt, left
        self.width, self.height = size
        self.levels = [(tick, f"{tick:g}") for tick in y.ticks(5)]
        self.text_rise = -4
        self.boxes: list[tuple[float, float, float, float, str]] = []
        self.lines: list[tuple[Point, Point, str]] = []
        self.curves: list[tuple[list[Point], str]] = []
        self.dots: list[tuple[Point, str]] = []

    def at(self, x: float, y: float) -> Point:
        """The place of two values."""
        return (
            round(self.left + self.x.share(x) * (self.width - self.left - _RIGHT), 1),
            round(self.height - _BOTTOM - self.y.share(y) * (self.height - _TOP - _BOTTOM), 1),
        )

    def bars(
        self, used: Sequence[float], rejected: Sequence[float], *, bins: int, base: float = 0, unit: float | None = None
    ) -> None:
        """Adds a bar for every bin: how many values lie where, those that were rejected on those that were used.

        Args:
            used: Values that were accepted.
            rejected: Values that were not.
            bins: Along the x axis.
            base: Where the bars stand, on the y axis.
            unit: Height of one value, on the y axis; None: so that the highest bar fills 0.8.
        """
        counts, edges = _counts((used, rejected), self.x, bins)
        unit = unit or 0.8 / max(counts.sum(axis=0).max(), 1)
        tops = np.full(bins, self.at(self.x.low, base)[1])
        for row, kind in zip(counts, ("used", "rejected"), strict=True):
            for number in np.flatnonzero(row):
                (left, bottom), (right, top) = self.at(edges[number], 0), self.at(edges[number + 1], unit * row[number])
                height = max(bottom - top, 1.5)
                tops[number] -= height
                width = max(right - left - 0.8, 0.5)
                self.boxes.append((left, round(float(tops[number]), 1), round(width, 1), round(height, 1), kind))


def _counts(groups: Sequence[Sequence[float]], x: Axis, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """How many values of each group lie in which bin, and the edges of the bins."""
    edges = np.linspace(x.low, x.high, bins + 1)
    return np.array([np.histogram(np.clip(values, x.low, x.high), edges)[0] for values in groups]), edges


def line_chart(series: Sequence[Series], x: Axis, y: Axis, *, alt: str, size: tuple[int, int]) -> Chart:
    """Lines over common axes."""
    chart = Chart(x, y, alt=alt, size=size)
    for each in series:
        points = [chart.at(*point) for point in each.points]
        chart.curves.append((points, each.kind))
        if len(points) <= _MOST_MARKS and not each.is_thin:
            chart.dots += [(point, f"dot {each.kind}") for point in points]
    return chart


def scatter(points: Sequence[Point], x: Axis, y: Axis, *, alt: str, size: tuple[int, int]) -> Chart:
    """Points, with the line on which both values are the same."""
    chart = Chart(x, y, alt=alt, size=size)
    low, high = max(x.low, y.low), min(x.high, y.high)
    chart.lines.append((chart.at(low, low), chart.at(high, high), "diagonal"))
    chart.dots += [(chart.at(*point), "point") for point in points]
    return chart


def histogram(
    used: Sequence[float], rejected: Sequence[float], x: Axis, *, alt: str, cut: float | None, size: tuple[int, int]
) -> Chart:
    """How many values lie where, with the border between both kinds, unless it lies at no one value."""
    bins = 25
    counts, _ = _counts((used, rejected), x, bins)
    y = Axis(title="cases", high=max(int(counts.sum(axis=0).max()), 1) * 1.05, is_whole=True)
    chart = Chart(x, y, alt=alt, size=size)
    chart.bars(used, rejected, bins=bins, unit=1)
    if cut is not None:
        chart.lines.append((chart.at(cut, 0), chart.at(cut, y.high), "cut"))
    return chart


def strips(rows: Sequence[Strip], x: Axis, *, alt: str, width: int = 700) -> Chart:
    """A small histogram per row, one below the other, each to its own height."""
    size = (width, 30 * len(rows) + _TOP + _BOTTOM)
    left = 24 + 7 * max((len(row.name) for row in rows), default=0)
    chart = Chart(x, Axis(title="", high=len(rows)), alt=alt, size=size, left=left)
    chart.levels = [(base, row.name) for base, row in enumerate(reversed(rows))]
    chart.text_rise = 6
    for base, row in enumerate(reversed(rows)):
        chart.bars(row.used, row.rejected, bins=40, base=base)
        if row.cut is not None:
            chart.lines.append((chart.at(row.cut, base), chart.at(row.cut, base + 0.87), "cut"))
    return chart
