"""An image file or a folder of DICOM slices, opened once: where its voxels lie, checked; and the voxels on demand."""

import contextlib
import dataclasses
import logging
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK as sitk

from flaresemi import extensions
from flaresemi.errors import ImageError, shown
from flaresemi.files import content_hash
from flaresemi.geometry import Geometry
from flaresemi.image_paths import IMAGE_ENDINGS, image_endings, visible_files
from flaresemi.io import integrity, nifti
from flaresemi.io.axes import check_axes, make_geometry
from flaresemi.io.dicom_labels import read_segmentation
from flaresemi.io.dicom_voxels import read_plane
from flaresemi.io.grids import SourceGrid
from flaresemi.io.segments import Segment, find_segments
from flaresemi.io.series import find_series
from flaresemi.io.text_headers import TextHeader, read_text_header
from flaresemi.labels import LabelSet
from flaresemi.records import record_hash

logger = logging.getLogger(__name__)

NIFTI_ENDINGS = (".nii", ".nii.gz")
_TEXT_HEADERS = (".mha", ".mhd", ".nrrd")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFile:
    """An opened image file: its header, read and checked once; voxels are read on demand.

    Attributes:
        path: The file, or the folder of slices.
        source: Its grid.
        layers: How many numbers each voxel has.
        slope: Stored numbers are multiplied by this ...
        intercept: ... and this is added.
        segments: What the values of a label map stand for, where the file says it.
        disagreement_mm: How far apart NIfTI's two affines place the image.
        modality: What DICOM calls it (CT, MR and so on); "" where the file does not say it.
        stored: Reads and decompresses the numbers as the file has them, (layer, Z, Y, X), in its own order and type;
            None of slices, which are scaled one by one.
        merged: Of a DICOM segmentation, gives its label map, with values by the organs' names.
        fill_planes: Of slices, reads them, scaled, into an array in the file's order.
    """

    path: Path
    source: SourceGrid
    layers: int = 1
    slope: float = 1.0
    intercept: float = 0.0
    segments: tuple[Segment, ...] = ()
    disagreement_mm: float = 0.0
    modality: str = ""
    stored: Callable[[], np.ndarray] | None = None
    merged: Callable[[LabelSet | None], tuple[np.ndarray, tuple[Segment, ...]]] | None = None
    fill_planes: Callable[[np.ndarray], None] = lambda volume_zyx: None

    def read(self) -> Callable[[np.ndarray], None]:
        """Reads the voxels of an image; returns what fills a canonical float32 array with them, scaled.

        In two steps, so that memory is taken only for voxels that are there. What does not fit becomes infinite.

        Raises:
            ImageError: the file is not whole, or a voxel is more than one number.
        """
        if self.merged is not None:
            raise ImageError("a DICOM segmentation is no image", where=self.path, fix="name an image")
        if self.stored is None:
            return lambda channel_zyx: self.fill_planes(self.source.to_file(channel_zyx))
        if self.layers > 1:
            raise ImageError(
                f"expected one number per voxel, found a list of {self.layers}",
                where=self.path,
                fix="write one 3D file per channel: CASE_0000, CASE_0001, ...",
            )
        (layer,) = self.stored()
        return lambda channel_zyx: self._scale_into(channel_zyx, layer)

    def read_compact(self) -> np.ndarray:
        """Reads the voxels of an image in canonical order: as stored where 16 bits hold them unscaled, else float32.

        Much faster than `read` where they do, and half the memory; what it returns may be a view.

        Raises:
            ImageError: as `read`.
        """
        if self.stored is not None and self.merged is None and self.layers == 1:
            (layer,) = self.stored()
            numbers = np.iinfo(np.int16)
            is_short = layer.dtype.kind in "iu" and layer.dtype.itemsize <= 2 and (self.slope, self.intercept) == (1, 0)
            if is_short and (layer.dtype != np.uint16 or layer.max() <= numbers.max):
                return self.source.to_canonical(layer.astype(np.int16, copy=False))
            channel = np.empty(self.source.canonical.shape_zyx, np.float32)
            self._scale_into(channel, layer)
            return channel
        fill = self.read()
        channel = np.empty(self.source.canonical.shape_zyx, np.float32)
        fill(channel)
        return channel

    def _scale_into(self, channel_zyx: np.ndarray, stored_zyx: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            channel_zyx[...] = self.source.to_canonical(stored_zyx)
            if self.slope != 1.0:
                channel_zyx *= np.float32(self.slope)
            if self.intercept != 0.0:
                channel_zyx += np.float32(self.intercept)


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[ImageFile]:
    """Opens an image file, or a folder of DICOM slices, and checks what needs no decompression.

    Its voxels can be read as long as it is open.

    Raises:
        ImageError: the file is empty, too short, no 3D image of real numbers, or its axes are no grid; or as
            `find_series` for a folder. While it is open, too: the system cannot read on.
    """
    path = Path(path)
    if path.is_dir():
        yield _open_series(path)
        return
    if path.name.lower().endswith(".dcm"):
        found = read_segmentation(path)
        yield ImageFile(path=path, source=SourceGrid.of(found.geometry, cropped=True), merged=found.merged)
        return
    ending = image_ending(path)
    with integrity.opened(path) as file:
        if ending not in IMAGE_ENDINGS:
            yield _open_with_other_package(ending, path)
            return
        if ending in NIFTI_ENDINGS:
            yield _open_nifti(file, path)
            return
        header = read_text_header(file)
        beside = header.voxels.path != path
        with integrity.opened(header.voxels.path) if beside else contextlib.nullcontext(file) as voxels:
            yield _open_with_text_header(header, voxels, path)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that an image or a label map consists of: a folder's; a header and the file of its voxels; or itself.

    Of a header that cannot be read, or whose voxels are not there, it is the header alone: reading it will say why.

    Raises:
        OSError: files or memory ran out.
    """
    if path.is_dir():
        return tuple(visible_files(path))
    header = _text_header(path)
    return (path,) if header is None or header.voxels.path == path else (path, header.voxels.path)


def content_of(path: Path) -> str:
    """Hash of what the files of an image or a label map hold, whatever they are called.

    Raises:
        OSError: one cannot be read.
    """
    contents = [content_hash(each) for each in files_of(path)]
    return contents[0] if len(contents) == 1 else record_hash(contents)


def is_read_by_organs(path: Path, labels: LabelSet) -> bool:
    """Whether more of the organs than what their values mean decides what a label map holds.

    It does where segments have names (DICOM) or several layers, and where what is in no segment is not 0.

    Raises:
        OSError: files or memory ran out.
    """
    if path.name.lower().endswith(".dcm"):
        return True
    header = _text_header(path)
    try:
        segments = () if header is None else find_segments(header.pairs, path)
    except ImageError:  # reading it will say why
        return False
    return len({segment.layer for segment in segments}) > 1 or (labels.background != 0 and bool(segments))


def _text_header(path: Path) -> TextHeader | None:
    """None of files that have none, or none that can be read."""
    if not path.name.lower().endswith(_TEXT_HEADERS):
        return None
    try:
        with integrity.opened(path) as file:
            return read_text_header(file)
    except ImageError:
        return None


def image_ending(path: Path) -> str:
    """The ending that says a file's format, in lower case.

    Raises:
        ImageError: it is none of `image_endings`.
    """
    name = Path(path).name.lower()
    for ending in image_endings():
        if name.endswith(ending):
            return ending
    raise ImageError("not an image file by its name", where=path, fix=f"images end with {', '.join(image_endings())}")


#: What reading a broken file raises, in Python and the usual libraries.
_BY_READERS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)


def _open_with_other_package(ending: str, path: Path) -> ImageFile:
    reader, package = extensions.load(extensions.READERS, ending[1:], error=ImageError)

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except _BY_READERS as problem:
            raise ImageError(f"{package} cannot read it: {shown(str(problem), 200)}", where=path) from problem

    opened = call(reader, path)  # type: ignore[arg-type]
    if not isinstance(opened, ImageFile) or opened.stored is None:
        raise ImageError(f"the reader of {package} gave no ImageFile whose voxels can be asked for", where=path)
    expected, stored = (opened.layers, *opened.source.geometry.shape_zyx), opened.stored

    def checked() -> np.ndarray:
        array = np.asarray(call(stored))
        if array.shape != expected or array.dtype.kind not in "iuf":
            raise ImageError(
                f"the reader of {package} gave {array.dtype} numbers of shape {array.shape}, expected {expected}",
                where=path,
            )
        return array

    return dataclasses.replace(opened, stored=checked)


def _open_series(path: Path) -> ImageFile:
    series = find_series(path)

    def fill(volume_zyx: np.ndarray) -> None:
        if series.note:
            logger.info("%s: %s", path, series.note)
        for plane_yx, each in zip(volume_zyx, series.slices, strict=True):  # no other array of the whole
            plane_yx[...] = read_plane(each.path, each.voxels)

    return ImageFile(path=path, source=SourceGrid.of(series.geometry), modality=series.modality, fill_planes=fill)


def _open_nifti(file: BinaryIO, path: Path) -> ImageFile:
    header = nifti.read_header(file)
    geometry, second = nifti.find_geometries(header, path)
    return ImageFile(
        path=path,
        source=SourceGrid.of(geometry, second=second, forms=header.forms),
        slope=header.slope,
        intercept=header.intercept,
        disagreement_mm=header.disagreement_mm,
        stored=lambda: nifti.read_voxels(file, header)[None],
    )


def _open_with_text_header(header: TextHeader, voxels: BinaryIO, path: Path) -> ImageFile:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if image_ending(path) == ".nrrd" else "MetaImageIO")
    with integrity.as_file(header.text.encode("ascii", errors="replace")) as copy:  # no character is longer
        reader.SetFileName(copy)
        try:
            reader.ReadImageInformation()
        except RuntimeError as problem:
            integrity.raise_shortage(path, problem)
            said = last_line(problem).replace(copy, path.name)
            raise ImageError(f"the header cannot be read: {said}", where=path) from None
    layers = reader.GetNumberOfComponents()
    dtype = _check_voxels(path, reader, header)
    header.voxels.check(voxels, layers * math.prod(reader.GetSize()), dtype)
    segments = find_segments(header.pairs, path)
    geometry = _text_geometry(path, reader, header)

    def stored() -> np.ndarray:
        shape = list(geometry.shape_zyx)
        axis = 0 if header.layer_axis is None else 3 - header.layer_axis  # NumPy counts from the other end
        shape.insert(axis, layers)
        return np.moveaxis(header.voxels.read(voxels, tuple(shape), dtype), axis, 0)

    source = SourceGrid.of(geometry, cropped=bool(segments))
    return ImageFile(path=path, source=source, layers=layers, segments=segments, stored=stored)


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


def _check_voxels(path: Path, reader: sitk.ImageFileReader, header: TextHeader) -> np.dtype:
    """Checks kind, dimension and size of a MetaImage or NRRD file, and returns the type of its numbers."""
    size, pixel = reader.GetSize(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
    components, dtype = reader.GetNumberOfComponents(), _VOXEL_TYPES.get(reader.GetPixelID())
    if dtype is None or (components != 1 and header.layer_axis is None):
        raise ImageError(f"expected one number per voxel, found {pixel}", where=path)
    if len(size) < 3 or any(length != 1 for length in size[3:]):
        raise ImageError(f"expected a 3D image, found {len(size)}D of {'x'.join(map(str, size))}", where=path)
    if min(size) < 1 or components < 1:
        raise ImageError(f"the header's dimensions make no sense: {size}", where=path)
    return dtype


#: Of single numbers and of lists of them.
_VOXEL_TYPES: dict[int, np.dtype] = {
    getattr(sitk, f"sitk{vector}{name}"): np.dtype(name.lower())
    for name in ("Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float32", "Float64")
    for vector in ("", "Vector")
}


def last_line(problem: RuntimeError) -> str:
    """The last line of a library's error message."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
