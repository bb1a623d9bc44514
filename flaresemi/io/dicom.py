"""DICOM files, one slice each: where each says that it lies, and its voxels. With `images`, alone in knowing SimpleITK.

Only what places a slice is read of a file's header. Nothing that identifies a patient is kept, logged or told.
"""

import dataclasses
import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from flaresemi.errors import ImageError, one_line, shown
from flaresemi.image_paths import DICOM_START, image_stem, starts_as_dicom, visible_files
from flaresemi.io import integrity
from flaresemi.io.dicom_elements import SOP_CLASS, TRANSFER_SYNTAX, Elements, read_elements
from flaresemi.io.voxels import LARGEST

#: Kinds of files that hold one slice, by SOP class: CT, MR, PET, nuclear medicine, secondary capture.
#: Source: DICOM PS3.4, B.5 (https://dicom.nema.org).
_SLICE_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "4", "128", "20", "7"))

#: Kinds that hold all slices of a CT, MR or PET scan in one file: enhanced, and enhanced from older files.
_MULTI_FRAME_CLASSES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2.1", "2.2", "4.1", "4.4", "130", "128.1")
)

#: Transfer syntaxes of voxels that are not compressed; of a file without one, too.
_NATIVE = ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")

#: No lossless compression of slices comes near this; a header that announces more voxels is wrong. Chosen.
_MOST_COMPRESSION = 1000

#: Rows and columns may be this far from unit vectors at a right angle: 0.6 degrees. Chosen.
_CROOKED = 0.01

#: No scanner is as large. Chosen.
_FURTHEST_MM = 1e6

#: Beyond this many steps from 0, two values that differ by a step are one in float32.
_MOST_STEPS = 1 << 24

_CONVERT = "convert the series to NIfTI first, for instance with dcm2niix"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Where the voxels of a file lie.

    Attributes:
        path: The file.
        series_uid: Tells series apart; it identifies a patient's scan and is never shown.
        belongs_to: Patient, study and frame of reference, as they are called in files; never shown either.
        series_number: As the scanner counted; '?' where it is not told.
        modality: CT, MR, PT and so on.
        image_type: Original or derived, primary or secondary, then what the maker says, like AXIAL or LOCALIZER.
        size_xy: Columns and rows.
        spacing_xy_mm: Distance of columns and of rows.
        position_xyz_mm: Of the first voxel's center.
        direction: Unit vectors along a row and along a column: six numbers.
    """

    path: Path
    series_uid: str = dataclasses.field(repr=False)
    belongs_to: tuple[str, str, str] = dataclasses.field(repr=False)
    series_number: str
    modality: str
    image_type: tuple[str, ...]
    size_xy: tuple[int, int]
    spacing_xy_mm: tuple[float, ...]
    position_xyz_mm: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def name(self) -> str:
        """Of the file, for messages."""
        return one_line(self.path.name)


def read_slices(folder: Path) -> tuple[list[Slice], dict[str, list[Path]]]:
    """Reads the headers of all DICOM files that lie directly in a folder.

    Returns:
        The slices, and the files that are DICOM but no slice of a gray volume, by what they are.

    Raises:
        ImageError: a file is damaged, so that it cannot be said whether a slice is lost; or it holds a whole scan.
    """
    slices: list[Slice] = []
    others: dict[str, list[Path]] = defaultdict(list)
    for path in visible_files(folder):
        if image_stem(path) is not None:
            continue
        with integrity.opened(path) as file:
            start = file.read(4096)
            elements = read_elements(file) if starts_as_dicom(start[:DICOM_START]) else None
        if elements is not None:
            found = _read_header(path, elements)
            if isinstance(found, Slice):
                slices.append(found)
            else:
                others[found].append(path)
        elif path.suffix.lower() == ".dcm" or not start.strip(b"\0"):
            raise _damaged(path)
    return slices, others


def fill_volume(volume_zyx: np.ndarray, files: tuple[Path, ...]) -> None:
    """Reads slices, rescaled by what each file says of itself, into the planes of a volume (HU for a CT).

    Raises:
        ImageError: a file cannot be decoded.
    """
    for plane_yx, path in zip(volume_zyx, files, strict=True):
        try:
            image = _reader(path).Execute()
        except RuntimeError as problem:
            integrity.raise_shortage(path, problem)
            raise ImageError(
                "the voxels of this DICOM file cannot be decoded: damaged, or compressed in an unknown way", where=path,
                fix=f"copy it again, or {_CONVERT}",
            ) from None  # fmt: skip
        plane_yx[...] = sitk.GetArrayViewFromImage(image)[0]


def _read_header(path: Path, elements: Elements) -> Slice | str:
    """A file's slice; or, in a word, what else it is."""
    reader = _reader(path)
    if not (elements.fit and _opens(reader)):
        if elements.meta.get(SOP_CLASS, _SLICE_CLASSES[0]) in _SLICE_CLASSES + _MULTI_FRAME_CLASSES:
            raise _damaged(path)
        return "not an image"  # a report, a document, contours, the index of a disk
    size = reader.GetSize()
    if _text(reader, "0008|0016") in _MULTI_FRAME_CLASSES and size[2] > 1:
        raise ImageError(
            f"an enhanced multi-frame DICOM file: {size[2]} slices in one file, whose places cannot be checked here",
            where=path, fix=_CONVERT,
        )  # fmt: skip
    if size[2] > 1:
        return "several frames in one file"
    if reader.GetNumberOfComponents() != 1 or _text(reader, "0028|0002") != "1":
        return "color"
    if _text(reader, "0028|0004") != "MONOCHROME2":  # SimpleITK would turn MONOCHROME1 into its negative
        return f"photometric interpretation {shown(_text(reader, '0028|0004'), 40)}, expected MONOCHROME2"
    position = _numbers(reader, path, "0020|0032", "the position of the slice", 3)
    direction = _numbers(reader, path, "0020|0037", "the orientation of the slice", 6)
    spacing_yx = _numbers(reader, path, "0028|0030", "the pixel spacing", 2)
    if not (position and direction and spacing_yx):
        return "no position, orientation or spacing"
    across = np.reshape(direction, (2, 3))
    crooked = max(map(abs, direction)) > 2 or np.abs(across @ across.T - np.eye(2)).max() > _CROOKED
    if crooked or min(spacing_yx) <= 0 or max(*map(abs, position), *spacing_yx) > _FURTHEST_MM:
        raise ImageError(
            "the position, the orientation or the spacing of the slice makes no sense", where=path, fix=_CONVERT
        )
    _check(reader, path, native=elements.meta.get(TRANSFER_SYNTAX, "") in _NATIVE)
    return Slice(
        path=path,
        series_uid=_text(reader, "0020|000e"),
        belongs_to=(_text(reader, "0010|0020"), _text(reader, "0020|000d"), _text(reader, "0020|0052")),
        series_number=shown(_text(reader, "0020|0011"), 40) or "?",
        modality=shown(_text(reader, "0008|0060"), 40),
        image_type=tuple(part.strip().upper() for part in _text(reader, "0008|0008").split("\\")),
        size_xy=(size[0], size[1]),
        spacing_xy_mm=spacing_yx[::-1],
        position_xyz_mm=position,
        direction=direction,
    )


def _check(reader: sitk.ImageFileReader, path: Path, *, native: bool) -> None:
    """Refuses what SimpleITK reads without a word: too few voxels, bits that are not there, and a slope of no sense."""
    (bits,) = _numbers(reader, path, "0028|0100", "the bits per voxel", 1) or (8.0,)
    (used,) = _numbers(reader, path, "0028|0101", "the bits that are used", 1) or (bits,)
    (highest,) = _numbers(reader, path, "0028|0102", "the highest bit", 1) or (used - 1,)
    if not 1 <= used <= highest + 1 <= bits <= 64:
        raise ImageError(
            f"the bits of a voxel make no sense: {used:g} of {bits:g}, the highest number {highest:g}", where=path,
            fix="export the series again",
        )  # fmt: skip
    (slope,) = _numbers(reader, path, "0028|1053", "the rescale slope", 1) or (1.0,)
    (intercept,) = _numbers(reader, path, "0028|1052", "the rescale intercept", 1) or (0.0,)
    if slope == 0.0:
        raise ImageError("the rescale slope is 0", where=path, fix="export the series again")
    if not abs(slope) * 2**bits <= LARGEST or not abs(intercept) <= _MOST_STEPS * abs(slope):
        raise ImageError(
            f"the rescale slope {slope:g} and intercept {intercept:g} make no sense: values would be too large for "
            "float32, or rounded to a few", where=path, fix="export the series again",
        )  # fmt: skip
    announced = math.prod(reader.GetSize()) * int(bits) // 8
    held = os.path.getsize(path)
    if announced > held * (1 if native else _MOST_COMPRESSION):
        raise ImageError(
            f"the DICOM file is not whole: its header announces {announced} bytes of voxels, the file has {held}",
            where=path, fix="copy or download it again",
        )  # fmt: skip


def _damaged(path: Path) -> ImageError:
    return ImageError("the DICOM file is damaged or not whole", where=path, fix="copy or download it again")


def _reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _opens(reader: sitk.ImageFileReader) -> bool:
    try:
        reader.ReadImageInformation()
    except RuntimeError as problem:
        integrity.raise_shortage(Path(reader.GetFileName()), problem)
        return False
    return True


def _text(reader: sitk.ImageFileReader, tag: str) -> str:
    return reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""


def _numbers(reader: sitk.ImageFileReader, path: Path, tag: str, name: str, count: int) -> tuple[float, ...]:
    """The numbers of a tag; none where it is absent or empty."""
    text = _text(reader, tag)
    if not text:
        return ()
    try:
        values = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ImageError(f"{name} (tag {tag.replace('|', ',')}) makes no sense", where=path, fix=_CONVERT)
    return values
