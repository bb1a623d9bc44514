"""Images and label maps: files in any orientation to canonical arrays, and label maps back onto their file's grid.

With `dicom`, the only file that knows SimpleITK and its (x, y, z) order. A folder of DICOM slices is an image, too.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from flaresemi.errors import ImageError
from flaresemi.geometry import Geometry
from flaresemi.image_paths import IMAGE_ENDINGS
from flaresemi.io import integrity, nifti
from flaresemi.io.axes import check_axes, make_geometry
from flaresemi.io.dicom import fill_volume
from flaresemi.io.grids import SourceGrid
from flaresemi.io.segments import Segment, find_segments, merge_layers
from flaresemi.io.series import Series, find_series
from flaresemi.io.text_headers import TextHeader, read_text_header
from flaresemi.io.voxels import replace_unusable
from flaresemi.io.writing import written_whole
from flaresemi.room import enough_memory
from flaresemi.system_errors import is_shortage

logger = logging.getLogger(__name__)

#: Corners of channels may be this share of the finest spacing apart: headers are rounded.
_CHANNEL_TOLERANCE_VOXELS = 0.1

#: Label values may be this share off a whole number: they have been through a multiplication in single precision.
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """An image in canonical orientation.

    Attributes:
        array_czyx: float32, all finite.
        source: The grid of its (first) file.
        non_finite: How many voxels were NaN or infinite, or beyond ±1e30; they hold the lowest value of their channel.
        modalities: Of each channel, what DICOM calls it (CT, MR and so on); "" where the file does not say it.
    """

    array_czyx: np.ndarray
    source: SourceGrid
    non_finite: int = 0
    modalities: tuple[str, ...] = ()

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
        segments: What the values stand for, where the file says it.
    """

    array_zyx: np.ndarray
    source: SourceGrid
    segments: tuple[Segment, ...] = ()

    @property
    def geometry(self) -> Geometry:
        """The canonical grid."""
        return self.source.canonical

    def on(self, grid: SourceGrid, tolerance_voxels: float) -> "LabelMap":
        """This label map on the whole of another file's grid, where its header says how; as it is, where it does not.

        It does where the two `matches_as_stored`, and where a cropped segmentation is a part of the grid.
        """
        if self.source.matches_as_stored(grid, tolerance_voxels):
            return self.as_stored(grid)
        box = self.source.box_within(grid, tolerance_voxels)
        if box is None:
            return self
        whole = np.zeros(grid.canonical.shape_zyx, self.array_zyx.dtype)
        whole[box.slices] = self.array_zyx
        return dataclasses.replace(self, array_zyx=whole, source=grid)

    def as_stored(self, grid: SourceGrid) -> "LabelMap":
        """The same voxels, one by one in the order of the files, on the grid of another file of the same shape."""
        array = np.ascontiguousarray(grid.to_canonical(self.source.to_file(self.array_zyx)))
        return dataclasses.replace(self, array_zyx=array, source=grid)


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
        read_grid(Path(path)) if slices is None else SourceGrid.of(slices.geometry)
        for path, slices in zip(paths, series, strict=True)
    ]
    first = sources[0].canonical
    for channel, (path, source) in enumerate(zip(paths[1:], sources[1:], strict=True), start=1):
        if source.matches_as_stored(sources[0], _CHANNEL_TOLERANCE_VOXELS):
            sources[channel] = sources[0]
        distance = first.far_corner_distance_mm(sources[channel].canonical)
        if distance > _CHANNEL_TOLERANCE_VOXELS * min(first.spacing_zyx_mm):
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
    with enough_memory(paths[0]):
        for channel, (path, source, slices) in enumerate(zip(paths, sources, series, strict=True)):
            read = _read_voxels(Path(path), source) if slices is None else None
            if channel == 0:  # memory only for voxels that are there
                array = np.empty((len(paths), *first.shape_zyx), np.float32)
            if slices is not None:
                _fill_slices(array[channel], Path(path), source, slices)
            elif read is not None:
                _fill_channel(array[channel], source, *read)
            non_finite += replace_unusable(array[channel], Path(path))
    modalities = tuple("" if slices is None else slices.modality for slices in series)
    return Image(array_czyx=array, source=sources[0], non_finite=non_finite, modalities=modalities)


def read_label_map(path: Path, organs: Mapping[str, int] | None = None) -> LabelMap:
    """Reads a label map and brings it to canonical orientation. Floats are accepted where all are whole numbers.

    Args:
        path: The file.
        organs: Value by name, for a segmentation whose segments are told apart by their names alone.

    Raises:
        ImageError: as `read_image`, a value is no integer, or segments overlap.
    """
    path = Path(path)
    source = read_grid(path)
    integrity.check_memory(path, math.prod(source.geometry.shape_zyx))
    segments: tuple[Segment, ...] = ()
    with enough_memory(path):
        if image_ending(path) in _NIFTI_ENDINGS:
            header = nifti.read_header(path)
            layers = [_label_values(nifti.read_voxels(path, header), header.slope, header.intercept, path)]
        else:
            text = read_text_header(path)
            layers = [_label_values(layer, 1.0, 0.0, path) for layer in _read_layers(path, source, text)]
            segments = find_segments(text.pairs, path)
        merged, segments = merge_layers(layers, segments, organs or {}, path)
        canonical = np.ascontiguousarray(source.to_canonical(merged), dtype=merged.dtype.newbyteorder("="))
    return LabelMap(array_zyx=canonical, source=source, segments=segments)


def read_grid(path: Path) -> SourceGrid:
    """Reads only where an image's voxels lie, with the checks that need no decompression.

    Raises:
        ImageError: the file is empty, too short, no 3D image of real numbers, or its axes are no grid; or as
            `find_series` for a folder.
    """
    path = Path(path)
    if path.is_dir():
        return SourceGrid.of(find_series(path).geometry)
    if image_ending(path) in _NIFTI_ENDINGS:
        header, geometry, second = nifti.read_geometries(path)
        return SourceGrid.of(geometry, second=second, forms=header.forms)
    reader, text = _open_reader(path)
    _check_voxels(path, reader, text)
    return SourceGrid.of(_text_geometry(path, reader, text), cropped=bool(find_segments(text.pairs, path)))


def write_label_map(path: Path, values_zyx: np.ndarray, source: SourceGrid) -> None:
    """Writes a label map onto its source's grid, atomically; the ending chooses the format.

    A NIfTI file says where it lies in the words of its image, sform and qform, so that each program takes both to lie
    in one place, whichever it follows. A .mhd file holds its voxels itself, as .mha does: two files cannot be replaced
    at once.

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
    stored = np.ascontiguousarray(source.to_file(values))
    with written_whole(path, expected_bytes=values.nbytes, ending=".mha" if ending == ".mhd" else ending) as temporary:
        if ending in _NIFTI_ENDINGS:
            nifti.write(temporary, stored, source.geometry, source.forms)
        else:
            _write_with_library(temporary, stored, source.geometry, path)


def _write_with_library(temporary: Path, stored_zyx: np.ndarray, geometry: Geometry, path: Path) -> None:
    image = sitk.GetImageFromArray(stored_zyx)
    image.SetSpacing(geometry.spacing_zyx_mm[::-1])
    image.SetOrigin(geometry.origin_xyz_mm)
    image.SetDirection(geometry.direction)
    try:
        sitk.WriteImage(image, str(temporary), useCompression=True)
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
    if image_ending(path) in _NIFTI_ENDINGS:
        header = nifti.read_header(path)
        return nifti.read_voxels(path, header), header.slope, header.intercept
    layers = _read_layers(path, source, read_text_header(path))
    if len(layers) > 1:
        raise ImageError(
            f"expected one number per voxel, found a list of {len(layers)}", where=path,
            fix="write one 3D file per channel: CASE_0000, CASE_0001, ...",
        )  # fmt: skip
    return layers[0], 1.0, 0.0


def _read_layers(path: Path, source: SourceGrid, header: TextHeader) -> np.ndarray:
    """The stored voxels of a MetaImage or NRRD file, (layer, Z, Y, X) in its own order."""
    reader, _ = _open_reader(path)
    shape = list(source.geometry.shape_zyx)
    axis = 0 if header.layer_axis is None else 3 - header.layer_axis  # NumPy counts from the other end
    shape.insert(axis, reader.GetNumberOfComponents())
    return np.moveaxis(header.voxels.read(tuple(shape), _VOXEL_TYPES[reader.GetPixelID()]), axis, 0)


def _label_values(stored: np.ndarray, slope: float, intercept: float, path: Path) -> np.ndarray:
    """The integers that stored voxels stand for.

    A program that stores label maps with a scale rounds each value to the closest multiple: what lies within half a
    step of a whole number stands for it, as long as a step is smaller than the distance of two of them.
    """
    scaled = slope != 1.0 or intercept != 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        values = stored * slope + intercept if scaled else stored
    if values.dtype.kind != "f":
        return values
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("the label map has NaN or infinite values", where=path)
    kinds = (kind for kind in (np.uint8, np.int16, np.int32, np.int64)
             if np.iinfo(kind).min <= round(low) and round(high) <= np.iinfo(kind).max)  # fmt: skip
    kind = next(kinds, None)
    if kind is None:
        raise ImageError(f"label values from {low:g} to {high:g} do not fit an integer", where=path)
    closest = np.rint(values)
    if (closest == values).all():
        return closest.astype(kind)
    apart = np.abs(values - closest)
    if scaled and stored.dtype.kind != "f" and abs(slope) < 1:
        wrong = apart > abs(slope) / 2 * (1 + _ROUNDING)
    else:
        wrong = apart > _ROUNDING * np.minimum(np.abs(values), 1)
    if not wrong.any():
        return closest.astype(kind)
    first = int(np.argmax(wrong))
    found = f"label values must be integers, found {float(values.flat[first]):g}"
    if scaled:
        raise ImageError(
            f"{found}: {stored.flat[first]} as stored, times scl_slope {slope:g}, plus scl_inter {intercept:g}",
            where=path, fix="write the label map as integers with scl_slope 1 and scl_inter 0; check that it is one",
        )  # fmt: skip
    raise ImageError(found, where=path, fix="resample label maps with nearest neighbor; check that this is no image")


def _text_geometry(path: Path, reader: sitk.ImageFileReader, header: TextHeader) -> Geometry:
    dimension, (x, y, z) = reader.GetDimension(), reader.GetSize()[:3]
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[:3, :3]
    spacing, origin = np.array(reader.GetSpacing()[:3]), np.array(reader.GetOrigin()[:3])
    if (header.world_mm, header.voxel_mm) != ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is refused below
            matrix = direction * spacing * header.voxel_mm * np.array(header.world_mm)[:, None]
            spacing, origin = np.linalg.norm(matrix, axis=0), origin * header.voxel_mm * header.world_mm
            check_axes(matrix, path)
            direction = matrix / spacing
    return make_geometry((z, y, x), spacing, origin, direction, path)


def _open_reader(path: Path) -> tuple[sitk.ImageFileReader, TextHeader]:
    header = read_text_header(path)  # refuses headers that would harm the reader
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as problem:
        integrity.raise_shortage(path, problem)
        raise ImageError(f"the header cannot be read: {_last_line(problem)}", where=path) from None
    return reader, header


def _check_voxels(path: Path, reader: sitk.ImageFileReader, header: TextHeader) -> None:
    """Checks kind, dimension and size of a MetaImage or NRRD file."""
    size, pixel = reader.GetSize(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
    components = reader.GetNumberOfComponents()
    if reader.GetPixelID() not in _VOXEL_TYPES or (components != 1 and header.layer_axis is None):
        raise ImageError(f"expected one number per voxel, found {pixel}", where=path)
    if len(size) < 3 or any(length != 1 for length in size[3:]):
        raise ImageError(f"expected a 3D image, found {len(size)}D of {'x'.join(map(str, size))}", where=path)
    if min(size) < 1 or components < 1:
        raise ImageError(f"the header's dimensions make no sense: {size}", where=path)
    header.voxels.check(components * math.prod(size), _VOXEL_TYPES[reader.GetPixelID()])


_NIFTI_ENDINGS = (".nii", ".nii.gz")

#: Of single numbers and of lists of them.
_VOXEL_TYPES: dict[int, np.dtype] = {
    getattr(sitk, f"sitk{vector}{name}"): np.dtype(name.lower())
    for name in ("Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float32", "Float64")
    for vector in ("", "Vector")
}


def _last_line(problem: RuntimeError) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
