"""A training as one picture: loss, validation Dice, learning rate and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flaresemi.files import atomic_path
from flaresemi.reporting.palette import organ_color
from flaresemi.reporting.pictures import add_legend, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

#: More organs than this are drawn without their names.
_MOST_NAMES = 16

Points = tuple[list[float], list[float]]


def save_curves(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Draws the rows of a history as a PNG, atomically.

    Args:
        path: Where to.
        rows: One per epoch, with "iteration" and any of "loss", "learning_rate", "seconds" (of the epoch),
            "validation_mean" and "validation_dice" (organ to Dice). What a row lacks is not drawn.
    """
    figure = new_figure(figsize=(11, 7), layout="constrained")
    loss, score, rate, speed = figure.subplots(2, 2).ravel()
    _line(loss, _series(rows, "loss"), "loss")
    _draw_dice(score, rows)
    _line(rate, _series(rows, "learning_rate"), "learning rate")
    _line(speed, _speed(rows), "iterations per second")
    speed.set_ylim(bottom=0)
    for axes in (loss, score, rate, speed):
        axes.grid(alpha=0.3)
        axes.set_xlabel("iteration")
    with atomic_path(Path(path)) as temporary:
        save_figure(figure, temporary, format="png", dpi=90)


def _draw_dice(axes: Axes, rows: Sequence[Mapping[str, object]]) -> None:
    """Thin lines for the organs, a thick one for their mean."""
    organs: dict[str, Points] = {}
    for row in rows:
        scores = row.get("validation_dice")
        if isinstance(scores, Mapping):
            for organ, value in scores.items():
                iterations, values = organs.setdefault(organ, ([], []))
                iterations.append(_number(row, "iteration"))
                values.append(float(value))
    lines: list[Line2D] = []
    for index, (organ, points) in enumerate(sorted(organs.items()), start=1):
        lines += axes.plot(*points, color=organ_color(index), linewidth=1, marker=".", markersize=3, label=organ)
    mean = _series(rows, "validation_mean")
    if mean[0]:
        lines += axes.plot(*mean, color="black", linewidth=2.5, marker=".", label="mean")
    axes.set_title("validation Dice")
    axes.set_ylim(0, 1.02)
    if lines and len(organs) <= _MOST_NAMES:
        add_legend(axes, lines, [*sorted(organs), "mean"][: len(lines)], fontsize=7, ncols=2, loc="lower right")


def _line(axes: Axes, points: Points, title: str) -> None:
    axes.plot(*points, color="tab:blue", marker="." if len(points[0]) < 30 else None)
    axes.set_title(title)


def _series(rows: Sequence[Mapping[str, object]], key: str) -> Points:
    """Iterations and values of the rows that have this key."""
    having = [row for row in rows if row.get(key) is not None]
    return [_number(row, "iteration") for row in having], [_number(row, key) for row in having]


def _speed(rows: Sequence[Mapping[str, object]]) -> Points:
    """Iterations per second of each epoch; an epoch's iterations are those since the row before."""
    iterations, speeds = [], []
    before = 0.0
    for row in rows:
        now = _number(row, "iteration")
        seconds = row.get("seconds")
        if seconds and now > before:
            iterations.append(now)
            speeds.append((now - before) / _number(row, "seconds"))
        before = now
    return iterations, speeds


def _number(row: Mapping[str, object], key: str) -> float:
    return float(row[key])  # type: ignore[arg-type]
