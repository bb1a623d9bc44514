"""The headers of a DICOM series, whole: what an object that is derived from its images repeats and refers to."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from flaresemi.errors import ImageError
from flaresemi.geometry import Geometry
from flaresemi.importing import import_without
from flaresemi.io import integrity
from flaresemi.io.dicom_elements import parsing, unpacked
from flaresemi.io.series import find_series
from flaresemi.organ_codes import OrganCode

#: What an object repeats of the patient and the study of its images, by the standard's keywords. Source: DICOM PS3.3,
#: modules Patient, General Study and Patient Study.
PATIENT_AND_STUDY = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientIdentityRemoved",
    "DeidentificationMethod", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription",
    "AccessionNumber", "ReferringPhysicianName", "PatientAge", "PatientSize", "PatientWeight",
)  # fmt: skip

#: Those of them that have to be there, if empty.
_REQUIRED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip

#: What ties an object to its images.
_TIES = {
    "SOPClassUID": "SOP class",
    "SOPInstanceUID": "SOP instance UID",
    "StudyInstanceUID": "study",
    "SeriesInstanceUID": "series",
    "FrameOfReferenceUID": "frame of reference",
}

_AS_FILES = "without --format the label map is written as NIfTI, which refers to nothing"

#: How long a text of a header may be. Source: DICOM PS3.5, 6.2 (LO, SH).
LONG, SHORT = 64, 16

DicomFormat = Literal["dicom-seg", "rtstruct"]

#: What the names of the files end with.
ENDINGS: dict[DicomFormat, str] = {"dicom-seg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}

#: What objects are labeled with unless told otherwise.
NOT_CLINICAL = "not for clinical use"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DescribedOrgan:
    """What is said of an organ in a DICOM object.

    Attributes:
        name: As the user calls it.
        code: What it is.
        rgb: Its color, 0 to 255.
    """

    name: str
    code: OrganCode
    rgb: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Authorship:
    """Who made a DICOM object, and what it may be used for.

    Attributes:
        algorithm: Name of the model.
        version: Of flaresemi and of the model.
        models: Every network of it.
        label: What the object is labeled with: its purpose.
    """

    algorithm: str
    version: str
    models: tuple[str, ...] = ()
    label: str

    @property
    def code_string(self) -> str:
        """The label as DICOM's content label has it: capitals, digits and underscores, 16 at most."""
        words = "".join(char if char.isascii() and char.isalnum() else "_" for char in self.label.upper())
        if words == "NOT_FOR_CLINICAL_USE":
            return "NOT_FOR_CLINICAL"
        return words[:SHORT].strip("_") or "SEGMENTATION"


def read_headers(folder: Path, geometry: Geometry) -> tuple[Any, ...]:
    """The headers of the series of a folder, in the order of the slices of a grid that was read from it.

    Raises:
        ImageError: the folder holds another grid by now, or a slice cannot be referred to; as `find_series`.
    """
    import_without("pydicom", "requests")  # of which the import asks the system for its network
    from pydicom import dcmread

    series = find_series(folder)
    if series.geometry != geometry:
        raise ImageError("the DICOM series has changed since it was read", where=folder, fix="predict it again")
    headers = []
    for each in series.slices:
        try:
            with integrity.opened(each.path) as file, parsing():
                header = dcmread(unpacked(file), stop_before_pixels=True, force=True)
                header.decode()
        except ValueError:
            raise ImageError("the header of this DICOM file cannot be read whole", where=each.path) from None
        _refuse_untied(header, each.path)
        for keyword in _REQUIRED:
            if keyword not in header:
                setattr(header, keyword, "")
        if not header.get("SliceThickness"):
            header.SliceThickness = geometry.spacing_zyx_mm[0]
        headers.append(header)
    _refuse_unlike(headers, folder)
    return tuple(headers)


def _refuse_untied(header: Any, path: Path) -> None:
    missing = [name for keyword, name in _TIES.items() if not header.get(keyword)]
    if missing:
        raise ImageError(f"this slice has no {missing[0]}, by which results refer to it", where=path, fix=_AS_FILES)


def _refuse_unlike(headers: Sequence[Any], folder: Path) -> None:
    if len({header.SOPInstanceUID for header in headers}) < len(headers):
        raise ImageError(
            "slices share a SOP instance UID: nothing can refer to one of them", where=folder, fix=_AS_FILES
        )
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if len({header[keyword].value for header in headers}) > 1:
            raise ImageError(
                f"the slices of this series differ in their {_TIES[keyword]}: results can refer to one alone",
                where=folder,
                fix=_AS_FILES,
            )


def new_uid() -> str:
    """An identifier that nothing else has."""
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None))  # 2.25. and a random number: of nobody


def coded(code: Any) -> Any:
    """A code as an item of a DICOM sequence."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def now() -> tuple[str, str]:
    """Date and time as DICOM writes them."""
    present = datetime.datetime.now()
    return present.strftime("%Y%m%d"), present.strftime("%H%M%S.%f")
