"""Files of numbers between 0 and 1, stored as whole numbers with a scale, written plane by plane."""

import contextlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from flaresemi.errors import ImageError
from flaresemi.files import atomic_path
from flaresemi.geometry import Geometry
from flaresemi.io import integrity, nifti
from flaresemi.io.nifti import NiftiForms

#: Bits of a stored number.
Bits = Literal[8, 16]

#: What the files of probabilities cover: the image, or the box in which the networks looked for organs.
Extent = Literal["image", "region"]

#: The description in the header, by which a file is known to be ours.
_MARK = b"flaresemi_predict: shares"

#: Bytes of a header that holds the mark, of NIfTI-1 or NIfTI-2.
_HEADER_BYTES = 348


def stored_type(bits: Bits) -> np.dtype:
    """The type of the stored numbers; its largest stands for 1."""
    return np.dtype("<u1" if bits == 8 else "<u2")


@contextlib.contextmanager
def share_file(
    path: Path, geometry: Geometry, forms: NiftiForms | None, bits: Bits
) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes a compressed NIfTI of shares, atomically; programs that heed `scl_slope` read numbers between 0 and 1.

    Gives a function that takes the next planes of the file as they are stored, (planes, Y, X) in the file's order.

    Raises:
        ImageError: the path is none that a file can have.
        OSError: the disk is full or the folder cannot be written to; nothing is left behind.
    """
    integrity.check_path(path)
    kind = stored_type(bits)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        # Nearly all is 0 or 1: runs. Of 16 bits, runs alone are not enough, and more effort gains nothing.
        stream = zlib.compressobj(level=1, wbits=31, strategy=zlib.Z_RLE if bits == 8 else zlib.Z_DEFAULT_STRATEGY)
        file.write(stream.compress(nifti.share_header(geometry.shape_zyx, kind, geometry, forms, _MARK)))
        left = geometry.shape_zyx[0]

        def add(planes_zyx: np.ndarray) -> None:
            nonlocal left
            left -= len(planes_zyx)
            file.write(stream.compress(np.ascontiguousarray(planes_zyx, kind).data.cast("B")))

        yield add
        if left:
            raise ValueError(f"{left} planes of {path} are missing")
        file.write(stream.flush())


def holds_shares(path: Path) -> bool:
    """Whether a file was written by `share_file`."""
    try:
        with integrity.opened(path) as file:
            return _MARK in integrity.inflate_start(file, _HEADER_BYTES)
    except (ImageError, OSError, ValueError):
        return False
