"""NIfTI files without a reader that guesses: header, affine and voxels as the file has them, decompressed once."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from flaresemi.errors import ImageError
from flaresemi.geometry import IntTriple
from flaresemi.io import integrity

logger = logging.getLogger(__name__)

#: NIfTI data type codes whose voxels are single real numbers.
#: Source: the NIfTI-1 and NIfTI-2 standards (https://nifti.nimh.nih.gov).
_REAL_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_OTHER_TYPES = {
    0: "no data type", 1: "single bits", 32: "complex numbers", 128: "RGB colors", 1536: "128-bit floats",
    1792: "complex numbers", 2048: "complex numbers", 2304: "RGBA colors",
}  # fmt: skip

#: Millimetres per unit of the affine, by the spatial part of xyzt_units; 0 is unknown and taken as mm.
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NiftiHeader:
    """What a NIfTI header says, checked for sense.

    Attributes:
        shape_zyx: Voxels per array axis; trailing axes of length 1 are left out.
        dtype: Of the stored voxels, with the file's byte order.
        offset: First byte of the voxels.
        slope: Stored voxels are multiplied by this ...
        intercept: ... and this is added.
        affine_lps_mm: 4×4, from (x, y, z) voxel index to LPS world in mm: the sform where there is one, else the
            qform, else the voxel sizes along the world's axes (as ITK takes it).
        disagreement_mm: Where sform and qform both stand, how far apart they place a corner of the image.
    """

    shape_zyx: IntTriple
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    affine_lps_mm: np.ndarray
    disagreement_mm: float

    @property
    def voxel_bytes(self) -> int:
        return math.prod(self.shape_zyx) * self.dtype.itemsize

    @property
    def is_scaled(self) -> bool:
        """Whether the true values differ from the stored ones."""
        return self.slope != 1.0 or self.intercept != 0.0


def read_header(path: Path) -> NiftiHeader:
    """Reads and checks a header, and that the file can hold what it announces.

    Raises:
        ImageError: the file is no single-file NIfTI, is not compressed as its name says, or is shorter than it
            announces; or it is 4D, complex, RGB, or otherwise not one real number per voxel.
    """
    compressed = integrity.is_gzip(path)
    if path.name.lower().endswith(".gz") and not compressed:
        raise ImageError(
            "the file is named .gz but is not compressed", where=path,
            fix="if it is a NIfTI file, rename it to .nii or compress it with gzip; otherwise copy it again",
        )  # fmt: skip
    if compressed:
        block = integrity.inflate_start(path, 540)
    else:
        with integrity.opened(path) as file:
            block = file.read(540)
    if compressed and len(block) < 348:
        raise ImageError("the file breaks off within its header", where=path, fix="copy or download it again")
    header = _parse(block, path)
    if compressed:
        integrity.check_inflatable(path, count=header.offset + header.voxel_bytes)
    else:
        integrity.check_raw(path, count=header.voxel_bytes, offset=header.offset)
    return header


def read_voxels(path: Path, header: NiftiHeader) -> np.ndarray:
    """The stored voxels, (Z, Y, X), in the file's own type and byte order; the scaling is not applied.

    Raises:
        ImageError: the file is not whole.
    """
    if integrity.is_gzip(path):
        data = integrity.inflate(path, count=header.offset + header.voxel_bytes)
        return data[header.offset :].view(header.dtype).reshape(header.shape_zyx)
    with integrity.opened(path) as file:
        file.seek(header.offset)
        voxels = np.fromfile(file, header.dtype, math.prod(header.shape_zyx))
    return voxels.reshape(header.shape_zyx)


def _parse(block: bytes, path: Path) -> NiftiHeader:
    import nibabel  # only NIfTI needs it, and it takes a while to import

    starts = {size.to_bytes(4, order): size for size in (348, 540) for order in ("little", "big")}
    size = starts.get(block[:4], 0)
    if not size or len(block) < size:
        raise ImageError("not a NIfTI file", where=path, fix="correct the file's ending, or copy it again")
    kind = nibabel.Nifti1Header if size == 348 else nibabel.Nifti2Header
    header = kind(block[:size], check=False)
    magic = bytes(header["magic"].tobytes())[:3]
    if magic not in (b"n+1", b"n+2"):
        raise ImageError(
            f"not a single-file NIfTI (magic {magic!r})", where=path, fix="convert .hdr/.img pairs to .nii.gz"
        )
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        slope, intercept = 1.0, 0.0  # the standard's way to say "no scaling"
    shape_zyx = _shape(header, path)
    affine, disagreement = _affine(header, shape_zyx)
    offset = float(header["vox_offset"])
    # Writers leave 0 for "right after the header and the four bytes that follow it".
    start = int(offset) if math.isfinite(offset) and offset >= size else size + 4
    return NiftiHeader(
        shape_zyx=shape_zyx,
        dtype=_dtype(header, path),
        offset=start,
        slope=slope,
        intercept=intercept,
        affine_lps_mm=affine,
        disagreement_mm=disagreement,
    )


def _shape(header: Any, path: Path) -> IntTriple:
    dims = [int(size) for size in header["dim"]]
    count, sizes = dims[0], dims[1:]
    if not 1 <= count <= 7 or any(size < 1 for size in sizes[:count]):
        raise ImageError(f"the header's dimensions make no sense: {dims}", where=path)
    shape = sizes[:count]
    if any(size != 1 for size in shape[3:]):
        what = "a 4D image" if count == 4 else f"a {count}D image"
        raise ImageError(
            f"expected a 3D image, found {what} of {'x'.join(map(str, shape))}", where=path,
            fix="split it into one 3D file per channel: CASE_0000, CASE_0001, ...",
        )  # fmt: skip
    if len(shape) < 3:
        raise ImageError(f"expected a 3D image, found {len(shape)}D of {'x'.join(map(str, shape))}", where=path)
    return shape[2], shape[1], shape[0]


def _dtype(header: Any, path: Path) -> np.dtype:
    code = int(header["datatype"])
    if code not in _REAL_TYPES:
        found = _OTHER_TYPES.get(code, f"an unknown data type ({code})")
        raise ImageError(f"expected one number per voxel, found {found}", where=path)
    dtype = np.dtype(_REAL_TYPES[code])
    return dtype.newbyteorder(header.endianness)


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused afterwards
def _affine(header: Any, shape_zyx: IntTriple) -> tuple[np.ndarray, float]:
    unit = _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    to_lps_mm = np.diag([-unit, -unit, unit, 1.0])
    sform = header.get_sform() if int(header["sform_code"]) > 0 else None
    qform = _qform(header) if int(header["qform_code"]) > 0 else None
    if sform is None and qform is None:
        sizes = np.abs(np.asarray(header["pixdim"], float)[1:4])
        return np.diag([*(unit * sizes), 1.0]), 0.0
    if sform is None or qform is None:
        return to_lps_mm @ (qform if sform is None else sform), 0.0
    x, y, z = (np.array([0, size - 1]) for size in shape_zyx[::-1])
    corners = np.stack([*(grid.ravel() for grid in np.meshgrid(x, y, z)), np.ones(8)])
    apart = to_lps_mm @ (sform - qform) @ corners
    return to_lps_mm @ sform, float(np.linalg.norm(apart[:3], axis=0).max())


def _qform(header: Any) -> np.ndarray | None:
    from nibabel.spatialimages import HeaderDataError

    try:
        return header.get_qform()
    except (ValueError, HeaderDataError):  # quaternions that are no rotation, negative voxel sizes, a qfac of 0.5
        return None
