"""What travels between the server and the page: images and label maps from left to right, back to front, feet to head.

That is the order of NIfTI's world (RAS) that the viewer works in, so that a voxel of the page is a voxel of the server.
"""

import zlib

import numpy as np

from flaresemi.errors import SelectionError
from flaresemi.geometry import Geometry, IntTriple

#: The page draws in bytes: background, organs, and what nobody annotated.
MOST_CLASSES = 254


Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def read_box(text: str, shape_zyx: IntTriple) -> Box:
    """A box of an image as the page asks for it, `x0,x1,y0,y1,z0,z1`: the first voxel and the one behind the last.

    Raises:
        SelectionError: it is none, is empty, or is not within the image.
    """
    words = text.split(",")
    if len(words) == 6 and all(word.isascii() and word.isdecimal() and len(word) < 7 for word in words):
        bounds = list(map(int, words))
        pairs = tuple(zip(bounds[::2], bounds[1::2], strict=True))
        if all(0 <= first < end <= size for (first, end), size in zip(pairs, shape_zyx[::-1], strict=True)):
            return pairs[0], pairs[1], pairs[2]
    raise SelectionError("there is no such box in the image", fix="reload the page")


def box_bytes(image_zyx: np.ndarray, box: Box) -> bytes:
    """The voxels of a box of a canonical image for the page, little-endian."""
    (x0, x1), (y0, y1), (z0, z1) = box
    return _turned(image_zyx)[z0:z1, y0:y1, x0:x1].astype(image_zyx.dtype.newbyteorder("<"), copy=False).tobytes()


def world_ras_mm(geometry: Geometry) -> list[list[float]]:
    """Where a voxel (x, y, z) of the page lies: three rows of (x, y, z, 1), for mm to the right, front and head."""
    _, y, x = geometry.shape_zyx

    def place(at: tuple[int, int, int]) -> np.ndarray:
        return np.multiply(geometry.world_xyz_mm((at[2], y - 1 - at[1], x - 1 - at[0])), (-1, -1, 1))

    start = place((0, 0, 0))
    steps = [place(at) - start for at in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    return np.stack([*steps, start], axis=1).tolist()


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
