"""Images and label maps: files in any orientation to canonical arrays, and label maps back onto their file's grid.

With `dicom`, the only file that knows SimpleITK and its (x, y, z) order. A folder of DICOM slices is an image, too.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from flaresemi.errors import ImageError
from flaresemi.geometry import Geometry, IntTriple
from flaresemi.image_paths import IMAGE_ENDINGS
from flaresemi.io import integrity, nifti
from flaresemi.io.axes import check_axes, make_geometry
from flaresemi.io.dicom import fill_volume
from flaresemi.io.series import Series, find_series
from flaresemi.io.text_headers import find_voxels
from flaresemi.io.voxels import replace_unusable
from flaresemi.io.writing import written_whole
from flaresemi.ranges import Axis
from flaresemi.system_errors import is_shortage

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceGrid:
    """A file's own grid, and how the canonical array lies in it. Undoes the reordering on writing.

    Attributes:
        geometry: As in the file.
        axes: Canonical axis i (Z, Y, X) is axis axes[i] of the file's (Z, Y, X) array.
        flips: Whether canonical axis i runs backwards in the file.
    """

    geometry: Geometry
    axes: tuple[Axis, Axis, Axis]
    flips: tuple[bool, bool, bool]

    @property
    def canonical(self) -> Geometry:
        """The grid of the canonical array: the same voxels, in the same places."""
        file = self.geometry
        columns = np.reshape(file.direction, (3, 3))
        order = [2 - axis for axis in self.axes[::-1]]  # in ITK's (x, y, z) counting
        signs = np.array([-1.0 if flip else 1.0 for flip in self.flips[::-1]])
        first = [0.0, 0.0, 0.0]
        for axis, flip in zip(self.axes, self.flips, strict=True):
            first[axis] = file.shape_zyx[axis] - 1.0 if flip else 0.0
        return Geometry(
            shape_zyx=tuple(file.shape_zyx[axis] for axis in self.axes),  # type: ignore[arg-type]
            spacing_zyx_mm=tuple(file.spacing_zyx_mm[axis] for axis in self.axes),  # type: ignore[arg-type]
            origin_xyz_mm=file.world_xyz_mm((first[0], first[1], first[2])),
            direction=tuple(float(value) + 0.0 for value in (columns[:, order] * signs).ravel()),
        )

    def to_canonical(self, array_zyx: np.ndarray) -> np.ndarray:
        """A view of a file's array in canonical order."""
        steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return array_zyx.transpose(self.axes)[steps]

    def to_file(self, array_zyx: np.ndarray) -> np.ndarray:
        """A view of a canonical array in the file's order."""
        steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return array_zyx[steps].transpose(np.argsort(self.axes))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """An image in canonical orientation.

    Attributes:
        array_czyx: float32, all finite.
        source: The grid of its (first) file.
        non_finite: How many voxels were NaN or infinite, or beyond ±1e30; they hold the lowest value of their channel.
    """

    array_czyx: np.ndarray
    source: SourceGrid
    non_finite: int = 0

    @property
    def geometry(self) -> Geometry:
        """The canonical grid."""
        return self.source.canonical


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelMap:
    """A label map in canonical orientation.

    Attributes:
        array_zyx: The user's values, of an integer type.
        source: The file's grid.
    """

    array_zyx: np.ndarray
    source: SourceGrid

    @property
    def geometry(self) -> Geometry:
        """The canonical grid."""
        return self.source.canonical


def read_image(paths: Sequence[Path]) -> Image:
    """Reads an image, one file or folder of DICOM slices per channel, and brings it to canonical orientation.

    Raises:
        ImageError: a file is not whole, not a 3D image of real numbers, sheared, or has no finite voxel; a folder
            holds no even stack of slices, or several; or the channels lie on different grids (corners further apart
            than a tenth of a voxel).
    """
    if not paths:
        raise ValueError("an image has at least one file")
    series = [find_series(Path(path)) if Path(path).is_dir() else None for path in paths]
    sources = [
        read_grid(Path(path)) if slices is None else _source(slices.geometry)
        for path, slices in zip(paths, series, strict=True)
    ]
    first = sources[0].canonical
    for path, source in zip(paths[1:], sources[1:], strict=True):
        distance = first.far_corner_distance_mm(source.canonical)
        if distance > 0.1 * min(first.spacing_zyx_mm):
            found = (
                f"{source.canonical.shape_zyx} and {first.shape_zyx} voxels (z, y, x)"
                if math.isinf(distance)
                else f"corners {distance:.3g} mm apart"
            )
            raise ImageError(
                f"the channels of one image must lie on one grid, found {found}", where=f"{path} and {paths[0]}"
            )
    voxels = math.prod(first.shape_zyx)
    integrity.check_memory(paths[0], 4 * len(paths) * voxels)
    array, non_finite = np.empty((0, *first.shape_zyx), np.float32), 0
    with _enough_memory(paths[0]):
        for channel, (path, source, slices) in enumerate(zip(paths, sources, series, strict=True)):
            read = _read_voxels(Path(path), source) if slices is None else None
            if channel == 0:  # memory only for voxels that are there
                array = np.empty((len(paths), *first.shape_zyx), np.float32)
            if slices is not None:
                _fill_slices(array[channel], Path(path), source, slices)
            elif read is not None:
                _fill_channel(array[channel], source, *read)
            non_finite += replace_unusable(array[channel], Path(path))
    return Image(array_czyx=array, source=sources[0], non_finite=non_finite)


def read_label_map(path: Path) -> LabelMap:
    """Reads a label map and brings it to canonical orientation. Floats are accepted where all are whole numbers.

    Raises:
        ImageError: as `read_image`, or a value is no integer.
    """
    path = Path(path)
    source = read_grid(path)
    integrity.check_memory(path, math.prod(source.geometry.shape_zyx))
    with _enough_memory(path):
        stored, slope, intercept = _read_voxels(path, source)
        canonical = np.ascontiguousarray(source.to_canonical(stored), dtype=stored.dtype.newbyteorder("="))
        if slope != 1.0 or intercept != 0.0:
            canonical = canonical * slope + intercept
        if canonical.dtype.kind == "f":
            canonical = _whole_numbers(canonical, path)
    return LabelMap(array_zyx=canonical, source=source)


def read_grid(path: Path) -> SourceGrid:
    """Reads only where an image's voxels lie, with the checks that need no decompression.

    Raises:
        ImageError: the file is empty, too short, no 3D image of real numbers, or its axes are no grid; or as
            `find_series` for a folder.
    """
    path = Path(path)
    if path.is_dir():
        return _source(find_series(path).geometry)
    ending = image_ending(path)
    geometry = _nifti_geometry(path) if ending in (".nii", ".nii.gz") else _text_header_geometry(path)
    return _source(geometry)


def write_label_map(path: Path, values_zyx: np.ndarray, source: SourceGrid) -> None:
    """Writes a label map onto its source's grid, atomically; the ending chooses the format.

    A .mhd file holds its voxels itself, as .mha does: two files cannot be replaced at once.

    Args:
        path: Where to; folders are made.
        values_zyx: Canonical array of the user's values, of an integer type.
        source: The grid of the image that was segmented.

    Raises:
        ImageError: the ending is none that is known, or the writer failed for a reason that is not the system's.
        OSError: the disk is full or the folder cannot be written to; nothing is left behind.
    """
    path = Path(path)
    ending = image_ending(path)
    if values_zyx.shape != source.canonical.shape_zyx:
        raise ValueError(f"label map of shape {values_zyx.shape} for a grid of {source.canonical.shape_zyx}")
    if values_zyx.dtype.kind not in "iub":
        raise ValueError(f"label maps hold integers, found {values_zyx.dtype}")
    values = values_zyx.astype(np.uint8) if values_zyx.dtype.kind == "b" else values_zyx
    image = sitk.GetImageFromArray(np.ascontiguousarray(source.to_file(values)))
    image.SetSpacing(source.geometry.spacing_zyx_mm[::-1])
    image.SetOrigin(source.geometry.origin_xyz_mm)
    image.SetDirection(source.geometry.direction)
    with written_whole(path, expected_bytes=values.nbytes, ending=".mha" if ending == ".mhd" else ending) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=ending != ".nii")
        except RuntimeError as problem:
            if is_shortage(problem):
                raise
            raise ImageError(f"the label map could not be written: {_last_line(problem)}", where=path) from None


def image_ending(path: Path) -> str:
    """The ending that says a file's format, in lower case.

    Raises:
        ImageError: it is none of `IMAGE_ENDINGS`.
    """
    name = Path(path).name.lower()
    for ending in IMAGE_ENDINGS:
        if name.endswith(ending):
            return ending
    raise ImageError("not an image file by its name", where=path, fix=f"images end with {', '.join(IMAGE_ENDINGS)}")


def _source(geometry: Geometry) -> SourceGrid:
    axes, flips = _closest_axes(geometry.direction)
    return SourceGrid(geometry=geometry, axes=axes, flips=flips)


@contextlib.contextmanager
def _enough_memory(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise ImageError(
            "there is not enough memory for this image", where=path, fix="close other programs, or crop or resample it"
        ) from None


def _fill_slices(channel_zyx: np.ndarray, path: Path, source: SourceGrid, series: Series) -> None:
    if series.note:
        logger.info("%s: %s", path, series.note)
    fill_volume(source.to_file(channel_zyx), series.files)  # slice by slice: no other array of the whole


def _fill_channel(
    channel_zyx: np.ndarray, source: SourceGrid, stored: np.ndarray, slope: float, intercept: float
) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is replaced
        channel_zyx[...] = source.to_canonical(stored)
        if slope != 1.0:
            channel_zyx *= np.float32(slope)
        if intercept != 0.0:
            channel_zyx += np.float32(intercept)


def _read_voxels(path: Path, source: SourceGrid) -> tuple[np.ndarray, float, float]:
    """The stored voxels in the file's order, and the slope and intercept that are still to be applied."""
    if image_ending(path) in (".nii", ".nii.gz"):
        header = nifti.read_header(path)
        return nifti.read_voxels(path, header), header.slope, header.intercept
    dtype = _VOXEL_TYPES[_open_reader(path).GetPixelID()]
    return find_voxels(path).read(source.geometry.shape_zyx, dtype), 1.0, 0.0


def _whole_numbers(values: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("the label map has NaN or infinite values", where=path)
    for kind in (np.uint8, np.int16, np.int32, np.int64):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            whole = values.astype(kind)
            different = whole != values
            if not different.any():
                return whole
            raise ImageError(
                f"label values must be integers, found {float(values[different][0]):g}", where=path,
                fix="resample label maps with nearest neighbor; check that this is no image",
            )  # fmt: skip
    raise ImageError(f"label values from {low:g} to {high:g} do not fit an integer", where=path)


def _nifti_geometry(path: Path) -> Geometry:
    header = nifti.read_header(path)
    affine = header.affine_lps_mm
    check_axes(affine[:3, :3], path)
    if header.disagreement_mm > 1.0:
        logger.warning("%s: sform and qform place the image %.3g mm apart", path, header.disagreement_mm)
    try:
        return _reader_geometry(_open_reader(path), header.shape_zyx, path)
    except ImageError:
        # SimpleITK refuses NIfTI-2, and axes that are not orthonormal to four digits. The header says it all the same.
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        return make_geometry(header.shape_zyx, spacing, affine[:3, 3], affine[:3, :3] / spacing, path)


def _text_header_geometry(path: Path) -> Geometry:
    reader = _open_reader(path)
    _check_voxels(path, reader)
    size = reader.GetSize()
    return _reader_geometry(reader, (size[2], size[1], size[0]), path)


def _reader_geometry(reader: sitk.ImageFileReader, shape_zyx: IntTriple, path: Path) -> Geometry:
    if reader.GetSize()[:3] != shape_zyx[::-1]:
        raise ImageError(f"the header's size is read as {reader.GetSize()}, expected {shape_zyx[::-1]}", where=path)
    dimension = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[:3, :3]
    return make_geometry(
        shape_zyx, np.array(reader.GetSpacing()[:3]), np.array(reader.GetOrigin()[:3]), direction, path
    )


def _open_reader(path: Path) -> sitk.ImageFileReader:
    integrity.check_path(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        if image_ending(path) in (".mha", ".mhd", ".nrrd"):
            find_voxels(path)  # refuses headers that would harm the reader
        reader.ReadImageInformation()
    except RuntimeError as problem:
        integrity.raise_shortage(path, problem)
        raise ImageError(f"the header cannot be read: {_last_line(problem)}", where=path) from None
    return reader


def _check_voxels(path: Path, reader: sitk.ImageFileReader) -> None:
    """Checks kind, dimension and size of a MetaImage or NRRD file."""
    size, pixel = reader.GetSize(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() not in _VOXEL_TYPES:
        raise ImageError(f"expected one number per voxel, found {pixel}", where=path)
    if len(size) < 3 or any(length != 1 for length in size[3:]):
        raise ImageError(f"expected a 3D image, found {len(size)}D of {'x'.join(map(str, size))}", where=path)
    if min(size) < 1:
        raise ImageError(f"the header's dimensions make no sense: {size}", where=path)
    find_voxels(path).check(math.prod(size), _VOXEL_TYPES[reader.GetPixelID()])


_VOXEL_TYPES: dict[int, np.dtype] = {
    sitk.sitkInt8: np.dtype(np.int8), sitk.sitkUInt8: np.dtype(np.uint8), sitk.sitkInt16: np.dtype(np.int16),
    sitk.sitkUInt16: np.dtype(np.uint16), sitk.sitkInt32: np.dtype(np.int32), sitk.sitkUInt32: np.dtype(np.uint32),
    sitk.sitkInt64: np.dtype(np.int64), sitk.sitkUInt64: np.dtype(np.uint64), sitk.sitkFloat32: np.dtype(np.float32),
    sitk.sitkFloat64: np.dtype(np.float64),
}  # fmt: skip


def _closest_axes(direction: tuple[float, ...]) -> tuple[IntTriple, tuple[bool, bool, bool]]:
    """The permutation and flips that bring a direction closest to the identity.

    At a tie (an image turned by exactly 45 degrees) the candidate whose canonical direction is the largest by its
    digits wins, so that the choice depends on where the voxels lie, not on how the file orders them.
    """
    columns = np.reshape(direction, (3, 3))
    candidates = [(order, signs) for order in itertools.permutations(range(3)) for signs in _SIGNS]
    traces = [sum(signs[i] * columns[i, order[i]] for i in range(3)) for order, signs in candidates]
    closest = [pair for pair, trace in zip(candidates, traces, strict=True) if trace > max(traces) - 1e-6]
    order, signs = max(closest, key=lambda pair: tuple(np.round(columns[:, pair[0]] * pair[1], 6).ravel() + 0.0))
    z, y, x = (2 - axis for axis in order[::-1])
    return (z, y, x), (signs[2] < 0, signs[1] < 0, signs[0] < 0)


_SIGNS = tuple(itertools.product((1.0, -1.0), repeat=3))


def _last_line(problem: RuntimeError) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
