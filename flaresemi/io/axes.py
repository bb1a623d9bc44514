"""The axes of a grid as a file declares them: checked for sense, and made perpendicular where rounding tilted them."""

import logging
import math
from pathlib import Path

import numpy as np

from flaresemi.errors import ImageError
from flaresemi.geometry import Geometry, IntTriple

logger = logging.getLogger(__name__)

#: Angles between axes may be off by this much and are made right; beyond it the image is sheared and refused.
#: Chosen: it moves a voxel of a 40 cm field by 3.5 mm at most; gantry tilts are 5 degrees and more.
SHEAR_TOLERANCE_DEGREES = 0.5

#: Directions that miss orthonormality by less than this are rounding, and are kept as they are.
_ROUNDING = 1e-4


def make_geometry(
    shape_zyx: IntTriple, spacing_xyz: np.ndarray, origin_xyz: np.ndarray, direction: np.ndarray, path: Path
) -> Geometry:
    """A grid whose axes are perpendicular; those that are not quite are straightened, with a warning.

    Args:
        shape_zyx: Voxels per axis.
        spacing_xyz: In mm.
        origin_xyz: In mm.
        direction: 3×3; the columns are the directions of x, y and z.
        path: For messages.

    Raises:
        ImageError: as `check_axes`, or the spacing is not positive or the origin not finite.
    """
    check_axes(direction * spacing_xyz, path)
    if not (spacing_xyz > 0).all():  # the library takes a negative voxel size as it stands
        raise ImageError(f"the header's spacing makes no sense: {spacing_xyz.tolist()}", where=path)
    if not np.isfinite(origin_xyz).all():
        raise ImageError(f"the header's origin makes no sense: {origin_xyz.tolist()}", where=path)
    error = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if error > _ROUNDING:
        logger.warning("%s: the axes are not quite perpendicular (off by %.2g) and are straightened", path, error)
        left, _, right = np.linalg.svd(direction)
        direction = left @ right  # the closest orthonormal matrix (polar decomposition)
    x, y, z = (float(value) for value in spacing_xyz)
    ox, oy, oz = (float(value) for value in origin_xyz)
    return Geometry(
        shape_zyx=shape_zyx,
        spacing_zyx_mm=(z, y, x),
        origin_xyz_mm=(ox, oy, oz),
        direction=tuple(float(value) for value in direction.ravel()),
    )


def check_axes(matrix: np.ndarray, path: Path) -> None:
    """Refuses axes of no length, of a kilometer or of no direction, and axes that are not perpendicular.

    Raises:
        ImageError: they are.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(matrix, axis=0)
    if not ((lengths > 1e-6) & (lengths < 1e6)).all():  # nor are they numbers, where one is not
        shown = [[float(f"{value:.6g}") for value in row] for row in matrix]
        raise ImageError(f"the header's axes make no sense: {shown}", where=path)
    unit = matrix / lengths
    cosines = [abs(float(unit[:, a] @ unit[:, b])) for a, b in ((0, 1), (0, 2), (1, 2))]
    off = math.degrees(math.asin(min(max(cosines), 1.0)))
    if off > SHEAR_TOLERANCE_DEGREES:
        raise ImageError(
            f"the image is sheared: its axes are {off:.1f} degrees off a right angle (gantry tilt?)",
            where=path,
            fix="resample it to a straight grid first",
        )
