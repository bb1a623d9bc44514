"""The geometry of charts, in pixels; `charts.html` writes them as SVG, `page.css` colors them.

matplotlib's SVG of the same charts is two to sixteen times as long, takes up to seconds instead of milliseconds, and
brings its own fonts and colors, so it would follow neither a dark screen nor paper.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]

#: Margins around the plot for numbers and titles, pixels.
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 42

#: Distinguishable styles; with more series, they repeat.
_LOOKS = 6

#: Longer lines have no markers.
_MOST_MARKS = 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a chart: its title and limits, and whether only integers are meaningful."""

    title: str
    low: float = 0.0
    high: float = 1.0
    is_whole: bool = False

    def share(self, value: float) -> float:
        """The position of a value along the axis, 0 to 1."""
        if self.high <= self.low:
            return 0.5
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers along the axis, few enough to be legible."""
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
    """One line of a chart: its name, points and style (color and dashes, from 0), and whether it is secondary."""

    name: str
    points: Sequence[Point]
    look: int = 0
    is_thin: bool = False

    @property
    def kind(self) -> str:
        return f"look{self.look % _LOOKS}{' thin' if self.is_thin else ''}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One row of a strip chart: its name, the used and the rejected values, and the threshold between them."""

    name: str
    used: Sequence[float]
    rejected: Sequence[float]
    cut: float | None = None


class Chart:
    """A plot and its shapes, in pixels from the upper left corner; each has a kind, which is a class of `page.css`.

    Attributes:
        levels: Values of the y axis with a grid line and a label at its left; by default, the ticks.
        text_rise: Distance of these labels above their lines.
        boxes: Left, top, width, height, kind.
        lines: Start, end, kind.
        curves: Points, kind.
        dots: Center, kind.
    """

    def __init__(self, x: Axis, y: Axis, *, alt: str, size: tuple[int, int], left: int = _LEFT) -> None:
        """Begins a chart.

        Args:
            x: The horizontal axis.
            y: The vertical axis.
            alt: What the chart shows, in words.
            size: Width and height.
            left: Margin at the left of the plot.
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
        """The pixel at two values."""
        return (
            round(self.left + self.x.share(x) * (self.width - self.left - _RIGHT), 1),
            round(self.height - _BOTTOM - self.y.share(y) * (self.height - _TOP - _BOTTOM), 1),
        )

    def bars(
        self, used: Sequence[float], rejected: Sequence[float], *, bins: int, base: float = 0, unit: float | None = None
    ) -> None:
        """Adds a stacked bar per bin: the rejected values on top of the used ones.

        Args:
            used: Values that were accepted.
            rejected: Values that were not.
            bins: Along the x axis.
            base: Bottom of the bars, on the y axis.
            unit: Height of one value, on the y axis; None: the highest bar is 0.8 high.
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
    """Counts per group and bin, and the edges of the bins."""
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
    """Points, with the line of equality."""
    chart = Chart(x, y, alt=alt, size=size)
    low, high = max(x.low, y.low), min(x.high, y.high)
    chart.lines.append((chart.at(low, low), chart.at(high, high), "diagonal"))
    chart.dots += [(chart.at(*point), "point") for point in points]
    return chart


def histogram(
    used: Sequence[float], rejected: Sequence[float], x: Axis, *, alt: str, cut: float | None, size: tuple[int, int]
) -> Chart:
    """A stacked histogram, with the threshold between used and rejected values where there is a single one."""
    bins = 25
    counts, _ = _counts((used, rejected), x, bins)
    y = Axis(title="cases", high=max(int(counts.sum(axis=0).max()), 1) * 1.05, is_whole=True)
    chart = Chart(x, y, alt=alt, size=size)
    chart.bars(used, rejected, bins=bins, unit=1)
    if cut is not None:
        chart.lines.append((chart.at(cut, 0), chart.at(cut, y.high), "cut"))
    return chart


def strips(rows: Sequence[Strip], x: Axis, *, alt: str) -> Chart:
    """A small histogram per row, each to its own scale."""
    size = (700, 30 * len(rows) + _TOP + _BOTTOM)
    left = 24 + 7 * max((len(row.name) for row in rows), default=0)
    chart = Chart(x, Axis(title="", high=len(rows)), alt=alt, size=size, left=left)
    chart.levels = [(base, row.name) for base, row in enumerate(reversed(rows))]
    chart.text_rise = 6
    for base, row in enumerate(reversed(rows)):
        chart.bars(row.used, row.rejected, bins=40, base=base)
        if row.cut is not None:
            chart.lines.append((chart.at(row.cut, base), chart.at(row.cut, base + 0.87), "cut"))
    return chart
