"""Charts as SVG inside a page: sharp on paper, colored by the page's style sheet, and told apart by more than color."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from flaresemi.reporting.page import Html, element, join

#: Room around the plot for numbers and titles, pixels.
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 42

#: Series that look unlike each other; with more, looks repeat.
LOOKS = 6

#: More points than this are joined without a mark on each.
_MOST_MARKS = 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart.

    Attributes:
        name: In the legend.
        points: Places (x, y).
        look: Color and dashes, from 0 on.
        is_thin: Less important than the others.
    """

    name: str
    points: Sequence[tuple[float, float]]
    look: int = 0
    is_thin: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a chart.

    Attributes:
        title: What it measures.
        low: Where it begins; None: where the values do.
        high: Where it ends.
        is_whole: Numbers between the integers mean nothing.
    """

    title: str
    low: float | None = None
    high: float | None = None
    is_whole: bool = False

    def over(self, values: Sequence[float]) -> "Axis":
        """The axis with both ends, those that were open taken from the values."""
        low = min(values, default=0.0) if self.low is None else self.low
        high = max(values, default=1.0) if self.high is None else self.high
        if high <= low:
            low, high = low - 0.5, low + 0.5
        return dataclasses.replace(self, low=low, high=high)

    def share(self, value: float) -> float:
        """How far along the axis a value lies, 0 to 1; the axis has both ends."""
        low, high = self.ends
        return min(max((value - low) / (high - low), 0.0), 1.0)

    @property
    def ends(self) -> tuple[float, float]:
        if self.low is None or self.high is None:
            raise ValueError("the axis has no ends yet")
        return self.low, self.high

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers along the axis, few enough to be read."""
        low, high = self.ends
        rough = (high - low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
        if self.is_whole:
            step = max(1.0, round(step))
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """The plot's place in the picture."""

    x: Axis
    y: Axis
    width: int
    height: int

    def at(self, x: float, y: float) -> tuple[float, float]:
        return (
            round(_LEFT + self.x.share(x) * (self.width - _LEFT - _RIGHT), 1),
            round(self.height - _BOTTOM - self.y.share(y) * (self.height - _TOP - _BOTTOM), 1),
        )

    def axes(self) -> Html:
        """Grid, numbers and titles."""
        (x_low, x_high), (y_low, y_high) = self.x.ends, self.y.ends
        parts = []
        for tick in self.y.ticks(5):
            left, y = self.at(x_low, tick)
            parts.append(_line((left, y), self.at(x_high, tick), "grid"))
            parts.append(_text(left - 7, y + 4, f"{tick:g}", "end"))
        for tick in self.x.ticks():
            x, bottom = self.at(tick, y_low)
            parts.append(_line((x, bottom), (x, bottom + 4), "axis"))
            parts.append(_text(x, bottom + 17, f"{tick:g}", "middle"))
        parts.append(_line(self.at(x_low, y_low), self.at(x_high, y_low), "axis"))
        middle_x, middle_y = self.at((x_low + x_high) / 2, (y_low + y_high) / 2)
        parts.append(_text(middle_x, self.height - 6, self.x.title, "middle", "title"))
        parts.append(
            element("text", self.y.title, x=12, y=middle_y, text_anchor="middle", class_="title",
                    transform=f"rotate(-90 12 {middle_y})")
        )  # fmt: skip
        return join(parts)

    def picture(self, parts: Iterable[Html], alt: str) -> Html:
        return _svg(self.width, self.height, alt, self.axes(), *parts)


def line_chart(
    series: Sequence[Series], x: Axis, y: Axis, *, alt: str, size: tuple[int, int], with_legend: bool = True
) -> Html:
    """Lines over common axes, with a legend above where there are several.

    Args:
        series: The lines.
        x: The axis that runs to the right.
        y: The axis that runs up.
        alt: What the chart shows, in words.
        size: Width and height, pixels.
        with_legend: False where several charts share one.
    """
    frame = _Frame(
        x=x.over([place for each in series for place, _ in each.points]),
        y=y.over([place for each in series for _, place in each.points]),
        width=size[0], height=size[1],
    )  # fmt: skip
    parts = []
    for each in series:
        places = [frame.at(*point) for point in each.points]
        look = f"look{each.look % LOOKS}{' thin' if each.is_thin else ''}"
        parts.append(element("polyline", points=_points(places), class_=f"series {look}"))
        if len(places) <= _MOST_MARKS and not each.is_thin:
            parts += [element("circle", cx=x, cy=y, r=3, class_=f"dot {look}") for x, y in places]
    chart = frame.picture(parts, alt)
    return join([legend(series), chart]) if with_legend and len(series) > 1 else chart


def legend(series: Sequence[Series]) -> Html:
    """Which line is which."""
    entries = []
    for each in series:
        look = f"look{each.look % LOOKS}{' thin' if each.is_thin else ''}"
        line = element("line", x1=1, y1=6, x2=27, y2=6, class_=f"series {look}")
        sample = element("svg", line, width=28, height=12, aria_hidden="true", class_="chart")
        entries.append(element("li", sample, each.name))
    return element("ul", *entries, class_="legend")


def scatter(points: Sequence[tuple[float, float]], x: Axis, y: Axis, *, alt: str, size: tuple[int, int]) -> Html:
    """Points, with the line on which both values are the same."""
    frame = _Frame(x=x.over([a for a, _ in points]), y=y.over([b for _, b in points]), width=size[0], height=size[1])
    low, high = max(frame.x.ends[0], frame.y.ends[0]), min(frame.x.ends[1], frame.y.ends[1])
    parts = [_line(frame.at(low, low), frame.at(high, high), "diagonal")]
    parts += [
        element("circle", cx=place[0], cy=place[1], r=3.5, class_="point")
        for place in (frame.at(*point) for point in points)
    ]
    return frame.picture(parts, alt)


def histogram(
    used: Sequence[float], refused: Sequence[float], x: Axis, *, alt: str, cut: float | None, size: tuple[int, int]
) -> Html:
    """How many values lie where; those that were refused stand, hatched, on those that were used.

    Args:
        used: Values that were accepted.
        refused: Values that were not.
        x: With both ends.
        alt: What the chart shows, in words.
        cut: Where the border between both lies; None: at no one value.
        size: Width and height, pixels.
    """
    bins = 25
    below, above = _counts(used, x, bins), _counts(refused, x, bins)
    heights = [low + high for low, high in zip(below, above, strict=True)]
    frame = _Frame(
        x=x, y=Axis(title="cases", low=0, high=max(*heights, 1) * 1.05, is_whole=True), width=size[0], height=size[1]
    )
    low, high = x.ends
    step = (high - low) / bins
    parts = []
    for index, (first, second) in enumerate(zip(below, above, strict=True)):
        left, right = low + index * step, low + (index + 1) * step
        for start, count, kind in ((0, first, "used"), (first, second, "refused")):
            if count:
                parts.append(_box(frame.at(left, start + count), frame.at(right, start), kind))
    if cut is not None:
        parts += [_line(frame.at(cut, 0), frame.at(cut, frame.y.ends[1]), "cut")]
    return frame.picture(parts, alt)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One row of a chart of strips: a name, its values, used and refused, and a border."""

    name: str
    used: Sequence[float]
    refused: Sequence[float]
    cut: float | None = None


def strips(rows: Sequence[Strip], x: Axis, *, alt: str, width: int = 700) -> Html:
    """A small histogram per row, one below the other, each to its own height; refused values are hatched.

    Args:
        rows: From top to bottom.
        x: With both ends.
        alt: What the chart shows, in words.
        width: Pixels.
    """
    bins, row_height, left = 40, 30, 24 + 7 * max((len(row.name) for row in rows), default=0)
    bottom = len(rows) * row_height + 8
    reach = width - left - _RIGHT

    def place(value: float) -> float:
        return round(left + x.share(value) * reach, 1)

    low, high = x.ends
    parts = []
    for number, row in enumerate(rows):
        base = (number + 1) * row_height
        below, above = _counts(row.used, x, bins), _counts(row.refused, x, bins)
        highest = max(max(map(sum, zip(below, above, strict=True))), 1)
        parts += [_text(left - 10, base - 6, row.name, "end"), _line((left, base), (width - _RIGHT, base), "grid")]
        for index, (first, second) in enumerate(zip(below, above, strict=True)):
            span = place(low + index * (high - low) / bins), place(low + (index + 1) * (high - low) / bins)
            top = float(base)
            for count, kind in ((first, "used"), (second, "refused")):
                if count:
                    size = max((row_height - 6) * count / highest, 1.5)
                    parts.append(_box((span[0], round(top - size, 1)), (span[1], round(top, 1)), kind))
                    top -= size
        if row.cut is not None:
            parts.append(_line((place(row.cut), base - row_height + 4), (place(row.cut), base), "cut"))
    for tick in x.ticks():
        parts.append(_text(place(tick), bottom + 12, f"{tick:g}", "middle"))
    parts.append(_text(left + reach / 2, bottom + 32, x.title, "middle", "title"))
    return _svg(width, bottom + 38, alt, *parts)


def step(before: float, after: float, *, width: int = 150) -> Html:
    """A share's way on the scale from 0 to 1: from a ring to a disk. For a table that has the numbers, too."""
    height, room = 16, 6

    def place(value: float) -> float:
        return round(room + min(max(value, 0.0), 1.0) * (width - 2 * room), 1)

    kind = "fall" if after < before else "rise"
    return element(
        "svg",
        _line((room, height / 2), (width - room, height / 2), "grid"),
        _line((place(before), height / 2), (place(after), height / 2), f"way {kind}"),
        element("circle", cx=place(before), cy=height / 2, r=3.2, class_=f"ring {kind}"),
        element("circle", cx=place(after), cy=height / 2, r=4, class_=f"disk {kind}"),
        viewBox=f"0 0 {width} {height}", width=width, height=height, aria_hidden="true", class_="chart",
    )  # fmt: skip


def _counts(values: Sequence[float], x: Axis, bins: int) -> list[int]:
    counts = [0] * bins
    for value in values:
        counts[min(int(x.share(value) * bins), bins - 1)] += 1
    return counts


def _svg(width: int, height: int, alt: str, *parts: Html) -> Html:
    return element(
        "svg", element("title", alt), *parts,
        viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", aria_label=alt, class_="chart",
    )  # fmt: skip


def _line(start: tuple[float, float], stop: tuple[float, float], kind: str) -> Html:
    return element("line", x1=start[0], y1=start[1], x2=stop[0], y2=stop[1], class_=kind)


def _box(upper_left: tuple[float, float], lower_right: tuple[float, float], kind: str) -> Html:
    width, height = round(lower_right[0] - upper_left[0], 1), round(lower_right[1] - upper_left[1], 1)
    return element("rect", x=upper_left[0], y=upper_left[1], width=max(width - 0.8, 0.5), height=height, class_=kind)


def _text(x: float, y: float, text: str, anchor: str, kind: str | None = None) -> Html:
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=kind)


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)
