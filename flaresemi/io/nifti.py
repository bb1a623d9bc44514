"""NIfTI files without a reader that guesses: header, affine and voxels as the file has them, decompressed once.

Where the voxels lie is decided here alone, for images and label maps: by the sform where its code is positive, else by
the qform where its code is, else by the voxel sizes.
"""

import dataclasses
import logging
import math
import zlib
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np

from flaresemi.errors import ImageError
from flaresemi.geometry import Geometry, IntTriple
from flaresemi.importing import import_without
from flaresemi.io import integrity
from flaresemi.io.axes import check_axes, make_geometry
from flaresemi.ranges import Range

logger = logging.getLogger(__name__)

#: NIfTI data type codes whose voxels are single real numbers.
#: Source: the NIfTI-1 and NIfTI-2 standards (https://nifti.nimh.nih.gov).
_REAL_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_OTHER_TYPES = {
    0: "no data type",
    1: "single bits",
    32: "complex numbers",
    128: "RGB colors",
    1536: "128-bit floats",
    1792: "complex numbers",
    2048: "complex numbers",
    2304: "RGBA colors",
}

#: Millimetres per unit of length, by the spatial part of xyzt_units; 0 is unknown and taken as mm.
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}

#: Sizes of voxels and lengths of the affine's columns that differ by less than this part are one number, rounded twice.
_ROUNDING = 1e-5

#: Corners that sform and qform place further apart than this are said. Chosen: rounding is far below it.
_APART_MM = 1.0

_Code = Annotated[int, Range(0, 32767)]
_SENSIBLE = Range(-1e100, 1e100)
_Number = Annotated[float, _SENSIBLE]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NiftiForms:
    """The position fields of a NIfTI header, number by number as stored, to be written again.

    A form whose numbers make no sense has the code 0, and zeros.

    Attributes:
        sform_code: Positive where the sform counts.
        qform_code: Positive where the qform stands.
        units: The spatial part of xyzt_units.
        pixdim: The sign of the qform's third axis (its `qfac`), and the sizes of a voxel.
        quaternion: b, c and d of the qform.
        offset: The qform's origin.
        srow: The rows of the sform, one after the other.
    """

    sform_code: _Code
    qform_code: _Code
    units: Annotated[int, Range(0, 3)]
    pixdim: tuple[_Number, _Number, _Number, _Number]
    quaternion: tuple[_Number, _Number, _Number]
    offset: tuple[_Number, _Number, _Number]
    srow: tuple[_Number, ...]

    @property
    def sform(self) -> np.ndarray | None:
        """4×4, from (x, y, z) voxel index to the file's RAS world in its unit; None where it does not count."""
        return np.vstack([np.reshape(self.srow, (3, 4)), [0, 0, 0, 1]]) if self.sform_code > 0 else None

    @property
    def qform(self) -> np.ndarray | None:
        """The same of the qform. Source: nifti_quatern_to_mat44 of the standard's own library."""
        if self.qform_code <= 0:
            return None
        b, c, d = self.quaternion
        rest = 1.0 - (b * b + c * c + d * d)
        if rest < 1e-7:  # half a turn, or quaternions that are no unit: made one
            length = math.sqrt(b * b + c * c + d * d)
            a, b, c, d = 0.0, b / length, c / length, d / length
        else:
            a = math.sqrt(rest)
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        x, y, z = map(abs, self.pixdim[1:])
        affine = np.eye(4)
        affine[:3, :3] = rotation * [x, y, -z if self.pixdim[0] < 0 else z]
        affine[:3, 3] = self.offset
        return affine

    @property
    def unoriented(self) -> bool:
        """Whether there are sizes of voxels and nothing else."""
        return self.sform_code <= 0 and self.qform_code <= 0

    @property
    def mm(self) -> float:
        """Millimetres per unit of length."""
        return _MILLIMETRES[self.units]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NiftiHeader:
    """The content of a NIfTI header, checked for sense.

    Attributes:
        shape_zyx: Voxels per array axis; trailing axes of length 1 are left out.
        dtype: Of the stored voxels, with the file's byte order.
        offset: First byte of the voxels.
        slope: Stored voxels are multiplied by this ...
        intercept: ... and this is added.
        forms: Where the voxels lie.
    """

    shape_zyx: IntTriple
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    forms: NiftiForms

    @property
    def voxel_bytes(self) -> int:
        return math.prod(self.shape_zyx) * self.dtype.itemsize

    @property
    def affines_lps_mm(self) -> tuple[np.ndarray, ...]:
        """4×4, from (x, y, z) voxel index to LPS world in mm; the first counts, the second is what others may take.

        Where both forms stand, that is the sform and the qform. Where there is neither, the standard names no
        orientation: then the axes run to the left, to the back and up from an origin of 0, as stored, which is how ITK
        takes it; nibabel's way (to the left, to the front and up, 0 in the middle) is the second.
        """
        forms = self.forms
        lps_mm = np.diag([-forms.mm, -forms.mm, forms.mm, 1.0])
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused with the geometry
            found = tuple(lps_mm @ form for form in (forms.sform, forms.qform) if form is not None)
        if found:
            return found
        sizes = forms.mm * np.abs(forms.pixdim[1:])
        middle = (np.array(self.shape_zyx[::-1]) - 1) / 2 * sizes
        as_nibabel = np.diag([*(sizes * [1, -1, 1]), 1.0])
        as_nibabel[:3, 3] = middle * [-1, 1, -1]
        return np.diag([*sizes, 1.0]), as_nibabel

    @property
    def disagreement_mm(self) -> float:
        """Where sform and qform both stand, how far apart they place a corner of the image."""
        if self.forms.sform is None or self.forms.qform is None:
            return 0.0
        x, y, z = (np.array([0, size - 1]) for size in self.shape_zyx[::-1])
        corners = np.stack([*(grid.ravel() for grid in np.meshgrid(x, y, z)), np.ones(8)])
        with np.errstate(over="ignore", invalid="ignore"):
            apart = (self.forms.sform - self.forms.qform) @ corners * self.forms.mm
            return float(np.linalg.norm(apart[:3], axis=0).max())


def read_header(file: BinaryIO) -> NiftiHeader:
    """Reads and checks a header, and that the file can hold what it announces.

    Raises:
        ImageError: the file is no single-file NIfTI, is not compressed as its name says, or is shorter than it
            announces; or it is 4D, complex, RGB, or otherwise not one real number per voxel.
    """
    path = integrity.path_of(file)
    compressed = integrity.is_gzip(file)
    if path.name.lower().endswith(".gz") and not compressed:
        raise ImageError(
            "the file is named .gz but is not compressed",
            where=path,
            fix="if it is a NIfTI file, rename it to .nii or compress it with gzip; otherwise copy it again",
        )
    file.seek(0)
    block = integrity.inflate_start(file, 540) if compressed else file.read(540)
    if compressed and len(block) < 348:
        raise ImageError("the file breaks off within its header", where=path, fix="copy or download it again")
    header = _parse(block, path)
    if compressed:
        integrity.check_inflatable(file, count=header.offset + header.voxel_bytes)
    else:
        integrity.check_raw(file, count=header.voxel_bytes, offset=header.offset)
    return header


def read_voxels(file: BinaryIO, header: NiftiHeader) -> np.ndarray:
    """The stored voxels, (Z, Y, X), in the file's own type and byte order; the scaling is not applied.

    Raises:
        ImageError: the file is not whole.
    """
    if integrity.is_gzip(file):
        data = integrity.inflate(file, count=header.offset + header.voxel_bytes)
        return data[header.offset :].view(header.dtype).reshape(header.shape_zyx)
    voxels = integrity.read_array(file, header.dtype, math.prod(header.shape_zyx), header.offset)
    return voxels.reshape(header.shape_zyx)


def find_geometries(header: NiftiHeader, path: Path) -> tuple[Geometry, Geometry | None]:
    """The grid that counts, and the other one that a header may be read to say, where it is another.

    Raises:
        ImageError: the axes are no grid.
    """
    first, *others = header.affines_lps_mm
    geometry = _geometry(first, header, path)
    if header.disagreement_mm > _APART_MM:
        logger.warning(
            "%s: sform and qform place the image %.3g mm apart; the sform counts", path, header.disagreement_mm
        )
    if header.forms.unoriented:
        logger.info("%s: the header names no orientation; the axes are taken to run left, back and up", path)
    try:
        second = _geometry(others[0], header, path) if others else None
    except ImageError:  # nobody can use it
        second = None
    if second is not None and geometry.far_corner_distance_mm(second) <= _ROUNDING * min(geometry.spacing_zyx_mm):
        second = None
    return geometry, second


def _geometry(affine: np.ndarray, header: NiftiHeader, path: Path) -> Geometry:
    matrix = affine[:3, :3]
    check_axes(matrix, path)
    lengths = np.linalg.norm(matrix, axis=0)
    sizes = header.forms.mm * np.abs(header.forms.pixdim[1:])  # the same numbers, before they were turned and rounded
    spacing = np.where(np.abs(sizes - lengths) <= _ROUNDING * lengths, sizes, lengths)
    return make_geometry(header.shape_zyx, spacing, affine[:3, 3], matrix / lengths, path)


def write(path: Path, voxels_zyx: np.ndarray, geometry: Geometry, forms: NiftiForms | None) -> None:
    """Writes a single-file NIfTI-1, compressed where its name ends with .gz; NIfTI-2 where that cannot hold it.

    Args:
        path: Where to.
        voxels_zyx: Of an integer type.
        geometry: Where they lie; both forms say it, with code 1 (scanner).
        forms: What the header says instead, where it shall say it as the header of another file does.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    content = _content(voxels_zyx, geometry, forms)
    with open(path, "wb") as file:
        if not path.name.lower().endswith(".gz"):
            file.writelines(content)
            return
        # Of a label map in bytes, runs are all there is: three times as fast as the search for more, within 25 %.
        strategy = zlib.Z_RLE if voxels_zyx.itemsize == 1 else zlib.Z_DEFAULT_STRATEGY
        stream = zlib.compressobj(wbits=31, strategy=strategy)
        for part in content:
            file.write(stream.compress(part))
        file.write(stream.flush())


def _content(voxels_zyx: np.ndarray, geometry: Geometry, forms: NiftiForms | None) -> tuple[bytes, memoryview]:
    """Header and voxels of a single-file NIfTI."""
    voxels = np.ascontiguousarray(voxels_zyx, voxels_zyx.dtype.newbyteorder("<"))
    header = _header(voxels.shape, voxels.dtype, geometry, forms)
    return header.binaryblock + bytes(4), voxels.data.cast("B")  # no extensions


def share_header(
    shape_zyx: IntTriple, dtype: np.dtype, geometry: Geometry, forms: NiftiForms | None, mark: bytes
) -> bytes:
    """What stands before the voxels of a file of shares: whole numbers, the largest of which stands for 1.

    Args:
        shape_zyx: Of the voxels.
        dtype: Theirs, unsigned and in little endian.
        geometry: As of `write`.
        forms: As of `write`.
        mark: The description in the header, up to 79 characters.
    """
    header = _header(shape_zyx, dtype, geometry, forms)
    header["scl_slope"], header["descrip"] = 1 / np.iinfo(dtype).max, mark
    return header.binaryblock + bytes(4)


def _header(shape_zyx: IntTriple, dtype: np.dtype, geometry: Geometry, forms: NiftiForms | None) -> Any:
    nibabel = import_without("nibabel", "pydicom")  # only NIfTI needs it; the two take a while to import

    numbers = [*geometry.spacing_zyx_mm, *geometry.origin_xyz_mm]
    if forms is not None:
        numbers += [*forms.srow, *forms.offset, *forms.quaternion, *forms.pixdim]
    largest = float(np.finfo(np.float32).max)
    small = max(shape_zyx) <= np.iinfo(np.int16).max and max(map(abs, numbers)) <= largest
    header = nibabel.Nifti1Header() if small else nibabel.Nifti2Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape_zyx[::-1])
    header["magic"], header["vox_offset"] = (b"n+1", 352) if small else (b"n+2\0\r\n\032\n", 544)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["xyzt_units"] = 2 if forms is None else forms.units
    if forms is None:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ _affine_lps_mm(geometry)
        header.set_sform(affine, 1)
        header.set_qform(affine, 1)
        header["pixdim"][1:4] = geometry.spacing_zyx_mm[::-1]
    else:
        header["sform_code"], header["qform_code"] = forms.sform_code, forms.qform_code
        header["pixdim"][:4] = forms.pixdim
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = forms.quaternion
        header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = forms.offset
        header["srow_x"], header["srow_y"], header["srow_z"] = np.reshape(forms.srow, (3, 4))
    return header


def _affine_lps_mm(geometry: Geometry) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(geometry.direction, (3, 3)) * geometry.spacing_zyx_mm[::-1]
    affine[:3, 3] = geometry.origin_xyz_mm
    return affine


def _parse(block: bytes, path: Path) -> NiftiHeader:
    nibabel = import_without("nibabel", "pydicom")  # only NIfTI needs it; the two take a while to import

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
    offset = float(header["vox_offset"])
    # Writers leave 0 for "right after the header and the four bytes that follow it".
    start = int(offset) if math.isfinite(offset) and offset >= size else size + 4
    return NiftiHeader(
        shape_zyx=shape_zyx,
        dtype=_dtype(header, path),
        offset=start,
        slope=slope,
        intercept=intercept,
        forms=_forms(header, path),
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
            f"expected a 3D image, found {what} of {'x'.join(map(str, shape))}",
            where=path,
            fix="split it into one 3D file per channel: CASE_0000, CASE_0001, ...",
        )
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


def _forms(header: Any, path: Path) -> NiftiForms:
    units = int(header["xyzt_units"]) & 7
    if units not in _MILLIMETRES:
        raise ImageError(
            f"the header's unit of length is not known (xyzt_units {units})",
            where=path,
            fix="write sizes and positions in mm, and 2 as the unit",
        )

    def numbers(*fields: str) -> tuple[float, ...]:
        return tuple(float(value) for field in fields for value in np.ravel(header[field]))

    sform_code, qform_code = (min(max(int(header[field]), 0), 32767) for field in ("sform_code", "qform_code"))
    srow, pixdim = numbers("srow_x", "srow_y", "srow_z"), numbers("pixdim")[:4]
    quaternion = numbers("quatern_b", "quatern_c", "quatern_d")
    offset = numbers("qoffset_x", "qoffset_y", "qoffset_z")
    if not _sensible(srow):
        if sform_code:
            raise ImageError(f"the header's axes make no sense: sform {srow}", where=path)
        srow = (0.0,) * 12
    if not _sensible(pixdim) and sform_code:
        x, y, z = (float(length) for length in np.linalg.norm(np.reshape(srow, (3, 4))[:, :3], axis=0))
        pixdim, qform_code = (1.0, x, y, z), 0
    if not _sensible(pixdim):
        raise ImageError(f"the header's voxel sizes make no sense: {pixdim[1:]}", where=path)
    if not _sensible((*quaternion, *offset)):
        quaternion, offset, qform_code = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0
    return NiftiForms(
        sform_code=sform_code,
        qform_code=qform_code,
        units=units,
        pixdim=pixdim,  # type: ignore[arg-type]
        quaternion=quaternion,  # type: ignore[arg-type]
        offset=offset,  # type: ignore[arg-type]
        srow=srow,
    )


def _sensible(values: tuple[float, ...]) -> bool:
    return all(value in _SENSIBLE for value in values)
