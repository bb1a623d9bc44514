"""Label maps on disk, as the tests of folders and commands need them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import write_label_map
from flaresemi.labels import Label, LabelSet

SHAPE = (10, 16, 16)

WriteMap = Callable[..., Path]


@pytest.fixture
def labels() -> LabelSet:
    """Two organs with values that are not their indices; the liver has a tolerance of its own."""
    return LabelSet(labels=(Label(name="liver", value=4, tolerance_mm=1.0), Label(name="spleen", value=9)))


@pytest.fixture
def write_map() -> WriteMap:
    """Writes a liver (4) and, unless told otherwise, a spleen (9), each moved by some voxels along x."""

    def write(path, liver=0, spleen=0, spacing=(2.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), extra=None):
        values = np.zeros(SHAPE, np.uint8)
        values[2:8, 2:8, 2 + liver : 8 + liver] = 4
        if spleen is not None:
            values[2:8, 10:14, 2 + spleen : 6 + spleen] = 9
        if extra is not None:
            values[0, 0, 0] = extra
        geometry = Geometry(shape_zyx=SHAPE, spacing_zyx_mm=spacing, origin_xyz_mm=origin)
        write_label_map(path, values, SourceGrid(geometry=geometry, axes=(0, 1, 2), flips=(False, False, False)))
        return path

    return write
