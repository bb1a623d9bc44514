"""DICOM files, one slice each: where each says that it lies, and how it has its voxels.

Only what places a slice is read of a file's header. Nothing that identifies a patient is kept, logged or told.
"""

import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flaresemi.errors import ImageError, one_line, shown
from flaresemi.image_paths import DICOM_START, image_stem, starts_as_dicom, visible_files
from flaresemi.io import integrity
from flaresemi.io.dicom_elements import Elements, read_class, read_elements
from flaresemi.io.dicom_voxels import Voxels
from flaresemi.io.voxels import LARGEST

#: Kinds of files that hold one slice, by SOP class: CT, MR, PET, nuclear medicine, secondary capture.
#: Source: DICOM PS3.4, B.5 (https://dicom.nema.org).
_SLICE_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "4", "128", "20", "7"))

#: Kinds that hold all slices of a CT, MR or PET scan in one file: enhanced, and enhanced from older files.
_MULTI_FRAME_CLASSES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2.1", "2.2", "4.1", "4.4", "130", "128.1")
)

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
        spacing_xy_mm: Distance of columns and of rows.
        position_xyz_mm: Of the first voxel's center.
        direction: Unit vectors along a row and along a column: six numbers.
        voxels: How the file has them.
    """

    path: Path
    series_uid: str = dataclasses.field(repr=False)
    belongs_to: tuple[str, str, str] = dataclasses.field(repr=False)
    series_number: str
    modality: str
    image_type: tuple[str, ...]
    spacing_xy_mm: tuple[float, ...]
    position_xyz_mm: tuple[float, ...]
    direction: tuple[float, ...]
    voxels: Voxels

    @property
    def size_xy(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.voxels.size_xy

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
            found = _read_slice(file, path) if starts_as_dicom(start[:DICOM_START]) else None
        if isinstance(found, Slice):
            slices.append(found)
        elif found is not None:
            others[found].append(path)
        elif path.suffix.lower() == ".dcm" or not start.strip(b"\0"):
            raise _damaged(path)
    return slices, others


def _read_slice(file: BinaryIO, path: Path) -> Slice | str:
    """A file's slice; or, in a word, what else it is."""
    elements = read_elements(file)
    if elements is None:
        if (read_class(file) or _SLICE_CLASSES[0]) in _SLICE_CLASSES + _MULTI_FRAME_CLASSES:
            raise _damaged(path)
        return "not an image"  # a report, a document, contours, the index of a disk
    values, numbers = elements.values, elements.numbers
    frames = elements.number("NumberOfFrames", "the number of frames", 1.0)
    if values["SOPClassUID"] in _MULTI_FRAME_CLASSES and frames > 1:
        raise ImageError(
            f"an enhanced multi-frame DICOM file: {frames:g} slices in one file, whose places cannot be checked here",
            where=path,
            fix=_CONVERT,
        )
    if frames > 1:
        return "several frames in one file"
    if values["SamplesPerPixel"] != "1":
        return "color"
    if values["PhotometricInterpretation"] != "MONOCHROME2":  # MONOCHROME1 is a negative
        return f"photometric interpretation {shown(values['PhotometricInterpretation'], 40)}, expected MONOCHROME2"
    position = numbers("ImagePositionPatient", "the position of the slice", 3)
    direction = numbers("ImageOrientationPatient", "the orientation of the slice", 6)
    spacing_yx = numbers("PixelSpacing", "the pixel spacing", 2)
    if not (position and direction and spacing_yx):
        return "no position, orientation or spacing"
    across = np.reshape(direction, (2, 3))
    crooked = max(map(abs, direction)) > 2 or np.abs(across @ across.T - np.eye(2)).max() > _CROOKED
    if crooked or min(spacing_yx) <= 0 or max(*map(abs, position), *spacing_yx) > _FURTHEST_MM:
        raise ImageError(
            "the position, the orientation or the spacing of the slice makes no sense", where=path, fix=_CONVERT
        )
    return Slice(
        path=path,
        series_uid=values["SeriesInstanceUID"],
        belongs_to=(values["PatientID"], values["StudyInstanceUID"], values["FrameOfReferenceUID"]),
        series_number=shown(values["SeriesNumber"], 40) or "?",
        modality=shown(values["Modality"], 40),
        image_type=tuple(part.strip().upper() for part in values["ImageType"].split("\\")),
        spacing_xy_mm=spacing_yx[::-1],
        position_xyz_mm=position,
        direction=direction,
        voxels=_find_voxels(elements, path),
    )


def _find_voxels(elements: Elements, path: Path) -> Voxels:
    """How a file has its voxels; refuses too few of them, bits that are not there, and a slope of no sense."""
    rows, columns = (int(elements.number(keyword, f"the number of {keyword}", 0)) for keyword in ("Rows", "Columns"))
    if not (rows and columns):
        raise _damaged(path)
    bits = elements.number("BitsAllocated", "the bits per voxel", 8.0)
    used = elements.number("BitsStored", "the bits that are used", bits)
    highest = elements.number("HighBit", "the highest bit", used - 1)
    if bits not in (8, 16, 32) or not 1 <= used <= highest + 1 <= bits:
        raise ImageError(
            f"the bits of a voxel make no sense: {used:g} of {bits:g}, the highest number {highest:g}",
            where=path,
            fix="export the series again",
        )
    if highest != used - 1:
        raise ImageError(
            f"the values do not lie in the lowest bits of a voxel: {used:g} are stored, the highest is number "
            f"{highest:g}, expected {used - 1:g}",
            where=path,
            fix="export the series again, with HighBit one less than BitsStored",
        )
    slope = elements.number("RescaleSlope", "the rescale slope", 1.0)
    intercept = elements.number("RescaleIntercept", "the rescale intercept", 0.0)
    if slope == 0.0:
        raise ImageError("the rescale slope is 0", where=path, fix="export the series again")
    if not abs(slope) * 2**bits <= LARGEST or not abs(intercept) <= _MOST_STEPS * abs(slope):
        raise ImageError(
            f"the rescale slope {slope:g} and intercept {intercept:g} make no sense: values would be too large for "
            "float32, or rounded to a few",
            where=path,
            fix="export the series again",
        )
    announced = rows * columns * int(bits) // 8
    if announced > elements.held * (_MOST_COMPRESSION if elements.compressed else 1):
        raise ImageError(
            f"the DICOM file is not whole: its header announces {announced} bytes of voxels, the file has "
            f"{elements.held}",
            where=path,
            fix="copy or download it again",
        )
    return Voxels(
        syntax=elements.syntax,
        offset=elements.offset,
        compressed=elements.compressed,
        in_words=elements.in_words,
        size_xy=(columns, rows),
        bits=int(bits),
        used=int(used),
        slope=slope,
        intercept=intercept,
        signed=elements.number("PixelRepresentation", "the sign of the voxels", 0.0) == 1,
    )


def _damaged(path: Path) -> ImageError:
    return ImageError("the DICOM file is damaged or not whole", where=path, fix="copy or download it again")
