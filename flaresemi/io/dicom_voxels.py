"""The voxels of DICOM slices: as numbers from the file, or decoded from a file that is written anew around a stream."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from flaresemi.errors import ImageError
from flaresemi.importing import import_without
from flaresemi.io import integrity
from flaresemi.io.dicom_elements import UNREADABLE, silenced, unpacked
from flaresemi.system_errors import is_shortage

#: Transfer syntaxes whose words have their high byte first. Source: DICOM PS3.5, annex A; the second is GE's own.
_BIG = ("1.2.840.10008.1.2.2", "1.2.840.113619.5.2")

_CT = "1.2.840.10008.5.1.4.1.1.2"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Voxels:
    """How a file has the voxels of its slice.

    Attributes:
        syntax: How the file is encoded.
        offset: First byte of them.
        compressed: Whether they are a compressed stream.
        in_words: Whether they are words of two bytes, whose order is the file's.
        size_xy: Columns and rows.
        bits: What a voxel takes: 8, 16 or 32.
        used: How many of these hold its value, the lowest ones.
        signed: Whether values may be negative.
        slope: Stored values are multiplied by this ...
        intercept: ... and this is added.
    """

    syntax: str
    offset: int
    compressed: bool
    in_words: bool
    size_xy: tuple[int, int]
    bits: int
    used: int
    signed: bool
    slope: float
    intercept: float


def read_plane(path: Path, voxels: Voxels) -> np.ndarray:
    """A slice, (Y, X), rescaled by what its file says of itself (HU for a CT).

    Raises:
        ImageError: it cannot be decoded.
    """
    x, y = voxels.size_xy
    try:
        with integrity.opened(path) as opened:
            file = unpacked(opened)
            file.seek(voxels.offset)
            content = file.read(-1 if voxels.compressed else x * y * voxels.bits // 8)
        with silenced():
            stored = (_decoded if voxels.compressed else _parsed)(content, voxels).reshape(y, x)
    except (RuntimeError, *UNREADABLE) as problem:
        if is_shortage(problem):
            raise
        raise ImageError(
            "the voxels of this DICOM file cannot be decoded: damaged, or compressed in an unknown way",
            where=path,
            fix="copy it again, or convert the series to NIfTI first, for instance with dcm2niix",
        ) from None
    if (voxels.slope, voxels.intercept) == (1.0, 0.0):
        return stored
    return stored * voxels.slope + voxels.intercept  # in double precision


def _parsed(content: bytes, voxels: Voxels) -> np.ndarray:
    if voxels.syntax in _BIG and voxels.in_words:
        if voxels.bits == 32:
            raise ValueError("programs do not agree in which order such words are")
        content = np.frombuffer(content, ">u2").astype("<u2").tobytes()
    values = np.frombuffer(content, f"<{'i' if voxels.signed else 'u'}{voxels.bits // 8}")
    unused = voxels.bits - voxels.used
    return values << unused >> unused if unused else values  # what stands there is no part of the value


def _decoded(stream: bytes, voxels: Voxels) -> np.ndarray:
    import_without("pydicom", "requests")  # of which the import asks the system for its network
    from pydicom.dataset import Dataset, FileMetaDataset  # only DICOM needs it, and it takes a while to import
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import UID

    anew, written = Dataset(), io.BytesIO()
    anew.file_meta = FileMetaDataset()
    anew.file_meta.TransferSyntaxUID = UID(voxels.syntax)
    anew.SOPClassUID, anew.SamplesPerPixel, anew.PhotometricInterpretation = _CT, 1, "MONOCHROME2"
    anew.Columns, anew.Rows = voxels.size_xy
    anew.BitsAllocated, anew.BitsStored, anew.HighBit = voxels.bits, voxels.used, voxels.used - 1
    anew.PixelRepresentation = int(voxels.signed)
    anew.PixelData = encapsulate([*generate_frames(stream, number_of_frames=1)])
    anew["PixelData"].VR, anew["PixelData"].is_undefined_length = "OB", True
    anew.save_as(written)
    with integrity.as_file(written.getbuffer()) as path:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(path)
        return sitk.GetArrayFromImage(reader.Execute())
