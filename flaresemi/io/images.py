"""Images and label maps: files in any orientation to canonical arrays, and label maps back onto their file's grid.

With `dicom`, the only file that knows SimpleITK and its (x, y, z) order. A folder of DICOM slices is an image, too.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from flaresemi.errors import ImageError
from flaresemi.geometry import Geometry
from flaresemi.image_paths import IMAGE_ENDINGS
from flaresemi.io import integrity, nifti
from flaresemi.io.grids import SourceGrid
from flaresemi.io.image_file import NIFTI_ENDINGS, ImageFile, image_ending, last_line, open_image
from flaresemi.io.segments import Segment, merge_layers, type_for
from flaresemi.io.voxels import replace_unusable
from flaresemi.io.writing import written_whole
from flaresemi.labels import LabelSet
from flaresemi.room import enough_memory
from flaresemi.system_errors import is_shortage

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
        disagreement_mm: How far apart NIfTI's two affines place a channel at most.
        other_position: Whether a channel `matches_as_stored` the first only.
    """

    array_czyx: np.ndarray
    source: SourceGrid
    non_finite: int = 0
    modalities: tuple[str, ...] = ()
    disagreement_mm: float = 0.0
    other_position: bool = False

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
        background: The value of what lies around a cropped one.
    """

    array_zyx: np.ndarray
    source: SourceGrid
    segments: tuple[Segment, ...] = ()
    background: int = 0

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
        whole = np.full(grid.canonical.shape_zyx, self.background, type_for(self.array_zyx.dtype, self.background))
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
    array, non_finite, files, other_position = np.empty(0, np.float32), 0, list[ImageFile](), False
    for channel, path in enumerate(map(Path, paths)):
        with enough_memory(path), open_image(path) as file:
            files.append(file if not files else _on_one_grid(file, files[0]))
            other_position |= file.source.matches_as_stored(files[0].source, _CHANNEL_TOLERANCE_VOXELS)
            shape = files[0].source.canonical.shape_zyx
            integrity.check_memory(path, 4 * len(paths) * math.prod(shape))
            fill = files[channel].read()
            if channel == 0:  # memory only for voxels that are there
                array = np.empty((len(paths), *shape), np.float32)
            fill(array[channel])
            del fill
            non_finite += replace_unusable(array[channel], path)
    return Image(
        array_czyx=array,
        source=files[0].source,
        non_finite=non_finite,
        modalities=tuple(file.modality for file in files),
        disagreement_mm=max(file.disagreement_mm for file in files),
        other_position=other_position,
    )


def read_channel(paths: Sequence[Path], channel: int) -> np.ndarray:
    """Reads one channel of an image for looking at it: canonical (Z, Y, X), int16 where that holds it, else float32.

    The same numbers as `read_image` has, without those of other channels and, as a rule, without a copy.

    Raises:
        ImageError: as `read_image`.
    """
    path = Path(paths[channel])
    with enough_memory(path), open_image(path) as file:
        if channel:
            with open_image(Path(paths[0])) as first:
                file = _on_one_grid(file, first)
        integrity.check_memory(path, 4 * math.prod(file.source.canonical.shape_zyx))
        voxels = file.read_compact()
    if voxels.dtype == np.int16:
        return voxels
    replace_unusable(voxels, path)
    return compact(voxels)


def read_label_map(path: Path, labels: LabelSet | None = None) -> LabelMap:
    """Reads a label map and brings it to canonical orientation. Floats are accepted where all are whole numbers.

    Args:
        path: The file.
        labels: The organs, for segments that are told apart by their names alone, and for what lies around them.

    Raises:
        ImageError: as `read_image`, a value is no integer, or segments overlap.
    """
    path = Path(path)
    with enough_memory(path), open_image(path) as file:
        if file.merged is not None:
            merged, segments = file.merged(labels)
        elif file.stored is None:
            raise ImageError("a folder of DICOM slices is no label map", where=path, fix="name a file")
        else:
            integrity.check_memory(path, math.prod(file.source.geometry.shape_zyx))
            layers = [_label_values(layer, file.slope, file.intercept, path) for layer in file.stored()]
            merged, segments = merge_layers(layers, file.segments, labels, path)
        canonical = np.ascontiguousarray(file.source.to_canonical(merged), dtype=merged.dtype.newbyteorder("="))
    background = 0 if labels is None else labels.background
    return LabelMap(array_zyx=canonical, source=file.source, segments=segments, background=background)


def read_grid(path: Path) -> SourceGrid:
    """Reads only where an image's voxels lie, with the checks that need no decompression.

    Raises:
        ImageError: as `open_image`.
    """
    with open_image(path) as file:
        return file.source


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
    if ending not in IMAGE_ENDINGS:
        raise ImageError("files of this kind are only read", where=path, fix="name the label map CASE.nii.gz")
    if values_zyx.shape != source.canonical.shape_zyx:
        raise ValueError(f"label map of shape {values_zyx.shape} for a grid of {source.canonical.shape_zyx}")
    if values_zyx.dtype.kind not in "iub":
        raise ValueError(f"label maps hold integers, found {values_zyx.dtype}")
    values = values_zyx.astype(np.uint8) if values_zyx.dtype.kind == "b" else values_zyx
    _write(path, values, source, ending)


def write_channel(path: Path, image_zyx: np.ndarray, source: SourceGrid) -> None:
    """Writes one channel of an image as NIfTI for other programs, on its source's grid, atomically.

    Args:
        path: Where to; folders are made.
        image_zyx: Canonical array; see `compact`.
        source: The grid of its file.

    Raises:
        OSError: the disk is full or the folder cannot be written to; nothing is left behind.
    """
    _write(Path(path), compact(image_zyx), source, image_ending(Path(path)))


def compact(image_zyx: np.ndarray) -> np.ndarray:
    """The same intensities as int16 where each is such a whole number, else as float32."""
    numbers = np.iinfo(np.int16)
    if numbers.min <= image_zyx.min() and image_zyx.max() <= numbers.max:
        whole = image_zyx.astype(np.int16)
        if np.array_equal(whole, image_zyx):
            return whole
    return image_zyx.astype(np.float32, copy=False)


def _write(path: Path, values: np.ndarray, source: SourceGrid, ending: str) -> None:
    stored = np.ascontiguousarray(source.to_file(values))
    with written_whole(path, expected_bytes=values.nbytes, ending=".mha" if ending == ".mhd" else ending) as temporary:
        if ending in NIFTI_ENDINGS:
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
        raise ImageError(f"the label map could not be written: {last_line(problem)}", where=path) from None


def _on_one_grid(file: ImageFile, first: ImageFile) -> ImageFile:
    """Checks that a channel lies on the grid of the first; returns it as it lies there."""
    if file.source.lies_twice(first.source, _CHANNEL_TOLERANCE_VOXELS):
        raise ImageError(
            "the voxels of this channel lie on the first in two orders, by its sform and by its qform",
            where=f"{file.path} and {first.path}",
            fix="see which is true, and correct the other one in the header",
        )
    if file.source.matches_as_stored(first.source, _CHANNEL_TOLERANCE_VOXELS):
        return dataclasses.replace(file, source=first.source)
    ours, theirs = file.source.canonical, first.source.canonical
    distance = theirs.far_corner_distance_mm(ours)
    if distance > _CHANNEL_TOLERANCE_VOXELS * min(theirs.spacing_zyx_mm):
        found = (
            f"{ours.shape_zyx} and {theirs.shape_zyx} voxels (z, y, x)"
            if math.isinf(distance)
            else f"corners {distance:.3g} mm apart"
        )
        raise ImageError(
            f"the channels of one image must lie on one grid, found {found}", where=f"{file.path} and {first.path}"
        )
    return file


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
    kinds = (
        kind
        for kind in (np.uint8, np.int16, np.int32, np.int64)
        if np.iinfo(kind).min <= round(low) and round(high) <= np.iinfo(kind).max
    )
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
            where=path,
            fix="write the label map as integers with scl_slope 1 and scl_inter 0; check that it is one",
        )
    raise ImageError(found, where=path, fix="resample label maps with nearest neighbor; check that this is no image")
