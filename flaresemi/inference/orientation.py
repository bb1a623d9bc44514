"""An image that lies in another way: as a network of another framework wants it, or turned by quarters."""

import dataclasses

import numpy as np

from flaresemi.conventions import Convention
from flaresemi.geometry import turned_array
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image


def turned(image: Image, convention: Convention) -> Image:
    """The image in the order of axes that a network was trained with; its `geometry` is that of the turned array."""
    source = image.source
    if convention.orientation == "file":
        axes, flips = (0, 1, 2), (False, False, False)
    else:  # ours points to posterior and left, theirs to anterior and right
        axes, flips = source.axes, (source.flips[0], not source.flips[1], not source.flips[2])
    z, y, x = convention.axes
    grid = dataclasses.replace(source, axes=(axes[z], axes[y], axes[x]), flips=(flips[z], flips[y], flips[x]))
    array = np.stack([np.ascontiguousarray(grid.to_canonical(source.to_file(each))) for each in image.array_czyx])
    return dataclasses.replace(image, array_czyx=array, source=grid)


def turned_back(indices_zyx: np.ndarray, turned_grid: SourceGrid, source: SourceGrid) -> np.ndarray:
    """A label map on the turned array, on the canonical one."""
    return np.ascontiguousarray(source.to_canonical(turned_grid.to_file(indices_zyx)))


def quarter_turned(image: Image, quarters: int) -> Image:
    """The image turned in the plane of its slices, as by `turned_array`; its `geometry` is that of the turned array."""
    if quarters == 0:
        return image
    (z, y, x), (up, back, left) = image.source.axes, image.source.flips
    once = dataclasses.replace(image.source, axes=(z, x, y), flips=(up, not left, back))
    array = np.ascontiguousarray(turned_array(image.array_czyx, 1))
    return quarter_turned(dataclasses.replace(image, array_czyx=array, source=once), quarters - 1)
