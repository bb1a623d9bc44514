"""NRRD files written by hand: segmentations as 3D Slicer writes them, and units of length."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

#: x to the left, y to the back, z up, in mm.
SPACING_XYZ = (1.5, 2.0, 3.0)


def write_nrrd(
    path: Path,
    array_zyx: np.ndarray | Sequence[np.ndarray],
    *,
    origin_xyz: Sequence[float] = (0, 0, 0),
    fields: Sequence[str] = (),
    layers_last: bool = False,
    compressed: bool = False,
) -> Path:
    """Writes one array, or several as layers of one file (an axis of kind `list`, which comes first in Slicer's files).

    Args:
        path: Where to.
        array_zyx: uint8.
        origin_xyz: In mm, LPS.
        fields: More lines of the header.
        layers_last: Whether the axis of layers is the last.
        compressed: Whether voxels are compressed.
    """
    x, y, z = SPACING_XYZ
    directions, kinds = [f"({x},0,0)", f"(0,{y},0)", f"(0,0,{z})"], ["domain"] * 3
    array = np.asarray(array_zyx, np.uint8)
    if array.ndim == 4:
        at = 3 if layers_last else 0
        directions.insert(at, "none")
        kinds.insert(at, "list")
        array = np.moveaxis(array, 0, 3 - at)
    lines = [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {array.ndim}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, array.shape[::-1]))}",
        f"space directions: {' '.join(directions)}",
        f"kinds: {' '.join(kinds)}",
        "endian: little",
        f"encoding: {'gzip' if compressed else 'raw'}",
        f"space origin: ({','.join(map(str, origin_xyz))})",
        *fields,
        "",
        "",
    ]
    voxels = np.ascontiguousarray(array).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode() + (gzip.compress(voxels, mtime=0) if compressed else voxels))
    return path


def segment_fields(*segments: tuple[str, int | None, int | None]) -> list[str]:
    """What Slicer says of segments: name, value, layer; older versions told neither value nor layer."""
    fields = ["Segmentation_ConversionParameters:=", "Segmentation_MasterRepresentation:=Binary labelmap"]
    for number, (name, value, layer) in enumerate(segments):
        fields += [f"Segment{number}_ID:=Segment_{number}", f"Segment{number}_Name:={name}"]
        fields += [] if value is None else [f"Segment{number}_LabelValue:={value}"]
        fields += [] if layer is None else [f"Segment{number}_Layer:={layer}"]
    return fields
