"""RT structure sets: organs as contours on the slices of a DICOM series, in the patient's coordinates."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaresemi.geometry import Geometry
from flaresemi.importing import import_without
from flaresemi.io.contours import outlines
from flaresemi.io.dicom_headers import LONG, PATIENT_AND_STUDY, Authorship, DescribedOrgan, coded, new_uid, now

_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"  # retired, and what every program expects there

_CONTOUR_DATA = 0x3006_0050

#: A normal this far from the patient's axis is that of no axial series. Chosen: what headers round.
_AXIAL = 1e-3


def is_axial(geometry: Geometry) -> bool:
    """Whether slices lie across the patient's axis, as programs for radiotherapy take for granted."""
    return bool(abs(abs(geometry.direction[8]) - 1) < _AXIAL)


def write_rtstruct(
    path: Path,
    mask_of: Callable[[int], np.ndarray],
    headers: Sequence[Any],
    geometry: Geometry,
    organs: Sequence[DescribedOrgan],
    origin: Authorship,
) -> None:
    """Writes a structure set.

    Args:
        path: The file; it is replaced.
        mask_of: Gives an organ (1 and up) on the slices, bool, (Z, Y, X).
        headers: Of the slices, as `read_headers` gives them.
        geometry: Of the slices.
        organs: In their order; the number of an organ is that of its ROI.
        origin: Who made it.

    Raises:
        OSError: it cannot be written.
    """
    import_without("pydicom", "requests")  # of which the import asks the system for its network
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian

    first, structures = headers[0], Dataset()
    for keyword in PATIENT_AND_STUDY:
        if keyword in first:
            setattr(structures, keyword, first[keyword].value)
    structures.SpecificCharacterSet = "ISO_IR 192"
    structures.SOPClassUID, structures.SOPInstanceUID = _STRUCTURE_SET, new_uid()
    structures.SeriesInstanceUID, structures.SeriesNumber = new_uid(), None
    structures.Modality, structures.SeriesDescription = "RTSTRUCT", f"{origin.algorithm}: {origin.label}"[:LONG]
    structures.Manufacturer, structures.ManufacturerModelName = "flaresemi", origin.algorithm[:LONG]
    structures.SoftwareVersions, structures.OperatorsName = origin.version[:LONG], ""
    structures.FrameOfReferenceUID, structures.PositionReferenceIndicator = first.FrameOfReferenceUID, ""
    structures.InstanceCreationDate, structures.InstanceCreationTime = now()
    structures.StructureSetDate, structures.StructureSetTime = now()
    structures.StructureSetLabel, structures.StructureSetName = origin.code_string, origin.label[:LONG]
    structures.StructureSetDescription = "; ".join(
        [f"{origin.label}. Made by {origin.algorithm} {origin.version}", *origin.models]
    )[:1024]
    structures.ApprovalStatus = "UNAPPROVED"
    structures.ReferencedFrameOfReferenceSequence = [_frame_of_reference(headers)]
    numbered = list(enumerate(organs, start=1))
    structures.StructureSetROISequence = [_roi(number, organ, first, origin) for number, organ in numbered]
    structures.RTROIObservationsSequence = [_observation(number, organ) for number, organ in numbered]
    structures.ROIContourSequence = [
        _contours(number, organ, mask_of(number), headers, geometry) for number, organ in numbered
    ]
    # Explicit little endian has no room for the numbers of a long contour.
    structures.file_meta = FileMetaDataset()
    structures.file_meta.MediaStorageSOPClassUID = structures.SOPClassUID
    structures.file_meta.MediaStorageSOPInstanceUID = structures.SOPInstanceUID
    structures.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    structures.save_as(path, enforce_file_format=True)


def _reference(header: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def _frame_of_reference(headers: Sequence[Any]) -> Any:
    from pydicom.dataset import Dataset

    series = Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(header) for header in headers]
    study = Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_COMPONENT, headers[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    item = Dataset()
    item.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    item.RTReferencedStudySequence = [study]
    return item


def _roi(number: int, organ: DescribedOrgan, first: Any, origin: Authorship) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ROINumber, item.ReferencedFrameOfReferenceUID = number, first.FrameOfReferenceUID
    item.ROIName, item.ROIGenerationAlgorithm = organ.name[:LONG], "AUTOMATIC"
    item.ROIGenerationDescription = f"{origin.algorithm} {origin.version}"[:LONG]
    return item


def _observation(number: int, organ: DescribedOrgan) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ObservationNumber, item.ReferencedROINumber = number, number
    item.RTROIInterpretedType, item.ROIInterpreter = "ORGAN", ""
    code = coded(organ.code.type)
    code.SegmentedPropertyCategoryCodeSequence = [coded(organ.code.category)]
    if organ.code.side is not None:
        code.SegmentedPropertyTypeModifierCodeSequence = [coded(organ.code.side)]
    item.RTROIIdentificationCodeSequence = [code]
    return item


def _contours(
    number: int, organ: DescribedOrgan, mask_zyx: np.ndarray, headers: Sequence[Any], geometry: Geometry
) -> Any:
    from pydicom.dataset import Dataset

    columns = np.reshape(geometry.direction, (3, 3)) * geometry.spacing_zyx_mm[::-1]
    item, contours = Dataset(), []
    item.ROIDisplayColor, item.ReferencedROINumber = list(organ.rgb), number
    for z in np.flatnonzero(mask_zyx.any(axis=(1, 2))).tolist():
        corner = np.array([float(value) for value in headers[z].ImagePositionPatient])
        for ring in outlines(mask_zyx[z]):
            points = corner + ring[:, 1:] * columns[:, 0] + ring[:, :1] * columns[:, 1]
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourImageSequence = [_reference(headers[z])]
            contour[_CONTOUR_DATA] = _numbers(points)
            contours.append(contour)
    if contours:
        item.ContourSequence = contours
    return item


def _numbers(points: np.ndarray) -> Any:
    """Coordinates in mm as the element that holds them; as bytes, since objects for all numbers take a minute."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    text = "\\".join(f"{value:.4f}" for value in points.ravel().tolist()).encode("ascii")
    text += b" " * (len(text) % 2)
    return RawDataElement(Tag(_CONTOUR_DATA), "DS", len(text), text, 0, True, True)
