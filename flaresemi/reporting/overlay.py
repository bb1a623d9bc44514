"""Label maps over the image, in three planes: look at them before believing a number."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from flaresemi.files import atomic_path, open_regular
from flaresemi.geometry import BoundingBox, FloatTriple, IntTriple
from flaresemi.labels import LabelSet
from flaresemi.reporting.palette import organ_color
from flaresemi.reporting.pictures import add_legend, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Stands in every picture.
_SOFTWARE = "flaresemi"

_HEIGHT_INCHES = 5.0
#: Width of one of two pictures side by side.
_SIDE_INCHES = 4.2
_LEGEND_INCHES = 2.2
#: Lines of a legend of this height.
_LEGEND_LINES = 28
_FILL = 0.45
_MARGIN_MM = 40.0

#: Of pictures in a page, which are smaller and have no legend of their own.
_REVIEW_INCHES = 3.6
_REVIEW_DPI = 100
_REVIEW_QUALITY = 80
#: Width and height.
IntTwo = tuple[int, int]

_PLANES = ("axial", "coronal", "sagittal")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Plane:
    """One slice in radiological display: head or nose up, the patient's right (or nose) on the left.

    Attributes:
        filled: Indices that are drawn as areas.
        outlined: Indices that are drawn as outlines, or None.
        spacing_mm: Of its rows and columns.
    """

    title: str
    image: np.ndarray
    filled: np.ndarray
    outlined: np.ndarray | None
    spacing_mm: tuple[float, float]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        rows, columns = self.image.shape
        return rows * self.spacing_mm[0], columns * self.spacing_mm[1]


def save_overlay(
    path: Path,
    image_zyx: np.ndarray,
    prediction_zyx: np.ndarray,
    reference_zyx: np.ndarray | None,
    labels: LabelSet,
    spacing_zyx_mm: FloatTriple,
    *,
    window: tuple[float, float] | None = None,
    title: str | None = None,
) -> None:
    """Draws an axial, a coronal and a sagittal slice as a PNG, atomically. Of regions that overlap, the inner is drawn.

    The prediction is filled; the reference, where there is one, is outlined. So a missed organ is an empty outline,
    and an invented one a fill without an outline. The slices are those that cut most organs; they are cut to the box of
    all organs and a margin.

    Args:
        path: Where to.
        image_zyx: One channel in canonical orientation.
        prediction_zyx: Internal indices on the same grid.
        reference_zyx: The same, or None.
        labels: The organs.
        spacing_zyx_mm: Distance between voxel centers; slices are drawn to scale.
        window: Intensities shown as black and white; None: from percentiles of the image.
        title: A line above the picture.

    Raises:
        ValueError: the shapes differ.
    """
    for array in (prediction_zyx, reference_zyx):
        if array is not None and array.shape != image_zyx.shape:
            raise ValueError(f"arrays of one shape expected, found {array.shape} and {image_zyx.shape}")
    prediction_zyx = labels.painted(prediction_zyx)
    reference_zyx = None if reference_zyx is None else labels.painted(reference_zyx)
    chosen = prediction_zyx if reference_zyx is None or not reference_zyx.any() else reference_zyx
    position = busiest_slices(chosen, labels.count)
    maps = [prediction_zyx] if reference_zyx is None else [prediction_zyx, reference_zyx]
    planes = _cut(image_zyx, maps, position, spacing_zyx_mm)
    _save(_draw(planes, labels, window if window is not None else automatic_window(image_zyx), title), path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(Path(path)) as temporary:
        save_figure(
            figure, temporary, format="png", dpi=110, facecolor=figure.get_facecolor(), metadata={"Software": _SOFTWARE}
        )


def save_comparison(
    path: Path,
    image_zyx: np.ndarray,
    predictions_zyx: tuple[np.ndarray, np.ndarray],
    reference_zyx: np.ndarray,
    labels: LabelSet,
    spacing_zyx_mm: FloatTriple,
    *,
    titles: tuple[str, str],
) -> None:
    """Draws two predictions side by side, in the same three slices, as `save_overlay` draws one.

    Args:
        path: Where to.
        image_zyx: One channel in canonical orientation.
        predictions_zyx: Internal indices on the same grid: the left one, the right one.
        reference_zyx: The same.
        labels: The organs.
        spacing_zyx_mm: Distance between voxel centers; slices are drawn to scale.
        titles: Above the two.

    Raises:
        ValueError: the shapes differ.
    """
    for array in (*predictions_zyx, reference_zyx):
        if array.shape != image_zyx.shape:
            raise ValueError(f"arrays of one shape expected, found {array.shape} and {image_zyx.shape}")
    reference_zyx = labels.painted(reference_zyx)
    predictions_zyx = labels.painted(predictions_zyx[0]), labels.painted(predictions_zyx[1])
    position = busiest_slices(reference_zyx if reference_zyx.any() else predictions_zyx[1], labels.count)
    shown = _shown_box([*predictions_zyx, reference_zyx], image_zyx.shape, spacing_zyx_mm)
    sides = [_cut(image_zyx, [each, reference_zyx], position, spacing_zyx_mm, shown) for each in predictions_zyx]
    heights = [_SIDE_INCHES / width for width in _widths(sides[0], 1.0)]
    figure = new_figure(
        figsize=(2 * _SIDE_INCHES + _LEGEND_INCHES, sum(heights) + 0.8), facecolor="black", layout="constrained"
    )
    widths = [_SIDE_INCHES, _SIDE_INCHES, _LEGEND_INCHES]
    places = figure.add_gridspec(len(_PLANES), 3, width_ratios=widths, height_ratios=heights)
    window = automatic_window(image_zyx)
    for column, (planes, title) in enumerate(zip(sides, titles, strict=True)):
        for row, plane in enumerate(planes):
            axes = figure.add_subplot(places[row, column])
            _draw_plane(axes, plane, labels.count, window)
            if row == 0:
                axes.set_title(f"{title}\n{plane.title}", color="white", fontsize=10)
    _draw_legend(figure.add_subplot(places[:, 2]), (*sides[0], *sides[1]), labels)
    _save(figure, path)


def is_overlay(path: Path) -> bool:
    """Whether a file is a picture that `save_overlay` or `save_comparison` wrote."""
    with open(path, "rb", opener=open_regular) as file:
        start = file.read(200)
    return start.startswith(b"\x89PNG") and f"Software\0{_SOFTWARE}".encode() in start


def review_picture(
    image_zyx: np.ndarray,
    used_zyx: np.ndarray,
    rejected_zyx: np.ndarray,
    spacing_zyx_mm: FloatTriple,
    *,
    focus: int | None = None,
) -> tuple[bytes, IntTwo]:
    """Draws a pseudo-label in three planes: what is used as areas, what was rejected as hatched outlines.

    Args:
        image_zyx: One channel in canonical orientation.
        used_zyx: Organs (1 and up) on the same grid.
        rejected_zyx: The same; an organ stands in one of both, a voxel in both where organs overlap.
        spacing_zyx_mm: Distance between voxel centers; slices are drawn to scale.
        focus: The organ that the slices are chosen for, where it is there; None: all of them.

    Returns:
        A JPEG, and its width and height in pixels.

    Raises:
        ValueError: the shapes differ.
    """
    for array in (used_zyx, rejected_zyx):
        if array.shape != image_zyx.shape:
            raise ValueError(f"arrays of one shape expected, found {array.shape} and {image_zyx.shape}")
    label_zyx = np.maximum(used_zyx, rejected_zyx)
    organs = int(label_zyx.max())
    target_zyx = label_zyx
    if focus is not None and (shown := (used_zyx == focus) | (rejected_zyx == focus)).any():
        target_zyx = shown.astype(np.uint8)
    position = busiest_slices(target_zyx, int(target_zyx.max()))
    planes = _cut(image_zyx, [used_zyx, rejected_zyx], position, spacing_zyx_mm)
    widths = _widths(planes, _REVIEW_INCHES)
    figure = new_figure(figsize=(sum(widths), _REVIEW_INCHES + 0.3), facecolor="black", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)  # type: ignore[call-arg, union-attr]
    window = automatic_window(image_zyx)
    for axes, plane in zip(figure.subplots(1, 3, width_ratios=widths), planes, strict=True):
        _draw_plane(axes, plane, organs, window, hatched=True)
    file = io.BytesIO()
    save_figure(
        figure,
        file,
        format="jpeg",
        dpi=_REVIEW_DPI,
        facecolor="black",
        pil_kwargs={"quality": _REVIEW_QUALITY, "optimize": True},
    )
    width, height = (round(inches * _REVIEW_DPI) for inches in figure.get_size_inches())
    return file.getvalue(), (width, height)


def busiest_slices(indices_zyx: np.ndarray, organs: int) -> IntTriple:
    """Per axis, the slice through most organs, and among those the one where they are largest.

    Each organ's area counts relative to its own largest, so that small organs count too. Without any organ: the
    middle.
    """
    position = [size // 2 for size in indices_zyx.shape]
    areas: list[list[np.ndarray]] = [[], [], []]
    for index, box in enumerate(ndimage.find_objects(indices_zyx, max_label=organs), start=1):
        if box is None:
            continue
        mask = indices_zyx[box] == index
        for axis in range(3):
            area = np.zeros(indices_zyx.shape[axis], np.int64)
            area[box[axis]] = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
            areas[axis].append(area / area.max())
    for axis in range(3):
        if areas[axis]:
            shares = np.array(areas[axis])
            # Shares add up to less than one more organ would count, so the number of organs decides first.
            merit = np.count_nonzero(shares, axis=0) + shares.sum(axis=0) / (len(shares) + 1)
            position[axis] = int(np.argmax(merit))
    return position[0], position[1], position[2]


def automatic_window(image_zyx: np.ndarray) -> tuple[float, float]:
    """Intensities for black and white: what most of the patient has, the air around left out."""
    sample = image_zyx[:: max(1, image_zyx.shape[0] // 32), ::2, ::2]
    low, high = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    inside = sample[sample > low + 0.1 * (high - low)]
    if inside.size:
        low, high = (float(value) for value in np.percentile(inside, (3.0, 99.0)))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _shown_box(maps: list[np.ndarray], shape_zyx: IntTriple, spacing_zyx_mm: FloatTriple) -> BoundingBox:
    """The box of all organs of some maps, and a margin; the whole image where there is none."""
    boxes = [box for each in maps if (box := BoundingBox.of_mask(each > 0)) is not None]
    if not boxes:
        return BoundingBox.whole(shape_zyx)
    return functools.reduce(BoundingBox.union, boxes).grown(_MARGIN_MM, spacing_zyx_mm, shape_zyx)


def _cut(
    image_zyx: np.ndarray,
    maps: list[np.ndarray],
    position: IntTriple,
    spacing_zyx_mm: FloatTriple,
    box: BoundingBox | None = None,
) -> tuple[_Plane, ...]:
    """The three slices of an image and of its maps (what is filled, and what is outlined where there is such).

    They are cut to the box; None: to that of the maps.
    """
    shown = box or _shown_box(maps, image_zyx.shape, spacing_zyx_mm)
    planes = []
    for axis, title in enumerate(_PLANES):
        region: list[slice | int] = list(shown.slices)
        region[axis] = position[axis]
        # z runs from the feet up, pictures from the top down
        cuts = [array[tuple(region)][:: 1 if axis == 0 else -1] for array in (image_zyx, *maps)]
        rows, columns = (spacing_zyx_mm[other] for other in range(3) if other != axis)
        planes.append(
            _Plane(
                title=f"{title} {position[axis] + 1}/{image_zyx.shape[axis]}",
                image=cuts[0],
                filled=cuts[1],
                outlined=cuts[2] if len(maps) > 1 else None,
                spacing_mm=(rows, columns),
            )
        )
    return tuple(planes)


def _draw(planes: tuple[_Plane, ...], labels: LabelSet, window: tuple[float, float], title: str | None) -> Figure:
    widths = _widths(planes, _HEIGHT_INCHES)
    columns = math.ceil((len(_drawn(planes, labels)) + 2) / _LEGEND_LINES)
    legend_inches = columns * _LEGEND_INCHES
    figure = new_figure(
        figsize=(sum(widths) + legend_inches, _HEIGHT_INCHES + 0.6), facecolor="black", layout="constrained"
    )
    axes = figure.subplots(1, 4, width_ratios=[*widths, legend_inches])
    for axis, plane in zip(axes, planes, strict=False):
        _draw_plane(axis, plane, labels.count, window)
    _draw_legend(axes[-1], planes, labels, columns=columns)
    if title is not None:
        figure.suptitle(title, color="white", fontsize=11)
    return figure


def _widths(planes: tuple[_Plane, ...], height: float) -> list[float]:
    """Widths of planes that are drawn at one height, to scale as far as they are no strips."""
    return [height * min(max(plane.size_mm[1] / plane.size_mm[0], 0.25), 2.5) for plane in planes]


def _draw_plane(axes: Axes, plane: _Plane, organs: int, window: tuple[float, float], *, hatched: bool = False) -> None:
    height, width = plane.size_mm
    extent = (0.0, width, height, 0.0)
    axes.imshow(
        plane.image,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        extent=extent,
        interpolation="bilinear",
        aspect="equal",
    )
    fill = np.zeros((*plane.filled.shape, 4))
    for index in np.unique(plane.filled[plane.filled > 0]):
        fill[plane.filled == index] = (*organ_color(int(index)), _FILL)
    axes.imshow(fill, extent=extent, interpolation="nearest", aspect="equal")
    if plane.outlined is not None:
        for index in range(1, organs + 1):
            _outline(axes, plane.outlined == index, plane.spacing_mm, organ_color(index), hatched=hatched)
    axes.set_title(plane.title, color="0.8", fontsize=9)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()


def _outline(
    axes: Axes,
    mask: np.ndarray,
    spacing_mm: tuple[float, float],
    color: tuple[float, float, float],
    *,
    hatched: bool,
) -> None:
    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(float)  # closed along the border of the field too
    rows = (np.arange(padded.shape[0]) - 0.5) * spacing_mm[0]
    columns = (np.arange(padded.shape[1]) - 0.5) * spacing_mm[1]
    if hatched:
        area = axes.contourf(columns, rows, padded, levels=[0.5, 1.5], colors="none", hatches=["/////"])
        area.set_edgecolor(color)
        area.set_linewidth(0)
    style = "dashed" if hatched else "solid"
    axes.contour(columns, rows, padded, levels=[0.5], colors=[color], linewidths=1.1, linestyles=style)


def _drawn(planes: tuple[_Plane, ...], labels: LabelSet) -> list[int]:
    """The organs in these slices."""
    maps = [array for plane in planes for array in (plane.filled, plane.outlined) if array is not None]
    seen = {int(index) for array in maps for index in np.unique(array)}
    return [index for index in range(1, labels.count + 1) if index in seen]


def _draw_legend(axes: Axes, planes: tuple[_Plane, ...], labels: LabelSet, *, columns: int = 1) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_axis_off()
    drawn = _drawn(planes, labels)
    handles: list[Patch | Line2D] = [Patch(color=organ_color(index)) for index in drawn]
    names = [labels.names[index - 1] for index in drawn]
    handles.append(Patch(color=(0.7, 0.7, 0.7, _FILL)))
    names.append("filled: prediction")
    if planes[0].outlined is not None:
        handles.append(Line2D([], [], color="0.8"))
        names.append("outline: reference")
    add_legend(axes, handles, names, loc="center left", frameon=False, labelcolor="white", fontsize=9, ncols=columns)
