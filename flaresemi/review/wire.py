"""What travels between the server and the page: images and label maps from left to right, back to front, feet to head.

That is the order of NIfTI's world (RAS) that the viewer works in, so that a voxel of the page is a voxel of the server.
"""

import dataclasses
import zlib

import numpy as np

from flaresemi.errors import SelectionError
from flaresemi.geometry import Geometry, IntTriple
from flaresemi.io.images import compact
from flaresemi.io.nifti import as_bytes

#: The page draws in bytes: background, organs, and what nobody annotated.
MOST_CLASSES = 254


def image_file(image_zyx: np.ndarray, geometry: Geometry) -> bytes:
    """One channel of a canonical image as a NIfTI file for the page."""
    return as_bytes(compact(_turned(image_zyx)), _turned_geometry(geometry))


def packed(indices_zyx: np.ndarray) -> bytes:
    """A canonical label map for the page: bytes, compressed."""
    stream = zlib.compressobj(level=1, wbits=31, strategy=zlib.Z_RLE)
    return stream.compress(np.ascontiguousarray(_turned(indices_zyx), np.uint8).data) + stream.flush()


def unpacked(body: bytes, shape_zyx: IntTriple, highest: int) -> np.ndarray:
    """The canonical label map that a page sent.

    Args:
        body: Compressed.
        shape_zyx: Of the canonical image.
        highest: The largest index that there may be.

    Raises:
        SelectionError: it is no label map of this image.
    """
    voxels = int(np.prod(shape_zyx))
    stream = zlib.decompressobj(wbits=31)
    try:
        raw = stream.decompress(body, voxels + 1)
    except zlib.error:
        raise SelectionError("what was sent is no compressed label map", fix="reload the page") from None
    if len(raw) != voxels or not stream.eof or stream.unused_data:
        raise SelectionError(f"the label map that was sent has not the {voxels} voxels of the image", fix="reload it")
    turned = np.frombuffer(raw, np.uint8).reshape(shape_zyx)
    if int(turned.max()) > highest:
        raise SelectionError(f"the label map that was sent has value {turned.max()}, at most {highest} is known")
    return np.ascontiguousarray(_turned(turned))


def _turned(array_zyx: np.ndarray) -> np.ndarray:
    """From canonical (LPS) to RAS order, and back."""
    return array_zyx[:, ::-1, ::-1]


def _turned_geometry(geometry: Geometry) -> Geometry:
    _, y, x = geometry.shape_zyx
    matrix = np.reshape(geometry.direction, (3, 3)) * [-1, -1, 1]
    origin = geometry.world_xyz_mm((0, y - 1, x - 1))
    return dataclasses.replace(geometry, origin_xyz_mm=origin, direction=tuple(map(float, matrix.ravel())))
