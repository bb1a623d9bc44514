"""Images in NumPy's .npz files: `voxels` (Z, Y, X), `shape_zyx` and `spacing_zyx_mm`."""

from pathlib import Path

import numpy as np

from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.image_file import ImageFile


def read_npz(path: Path) -> ImageFile:
    """Opens a file: its grid now, its voxels when they are asked for."""
    with np.load(path, allow_pickle=False) as file:
        z, y, x = (int(size) for size in file["shape_zyx"])
        spacing = tuple(float(edge) for edge in file["spacing_zyx_mm"])
    geometry = Geometry(
        shape_zyx=(z, y, x),
        spacing_zyx_mm=spacing,
        origin_xyz_mm=(0.0, 0.0, 0.0),
        direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    )

    def stored() -> np.ndarray:
        with np.load(path, allow_pickle=False) as file:
            return file["voxels"][None]  # one number per voxel: one layer

    return ImageFile(path=path, source=SourceGrid.of(geometry), stored=stored)
