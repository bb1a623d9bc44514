"""DICOM segmentations, written by highdicom, which is an optional package and imported where it is used."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaresemi.errors import ConfigError, ImageError
from flaresemi.geometry import Geometry
from flaresemi.importing import import_without
from flaresemi.io import integrity
from flaresemi.io.dicom_elements import parsing
from flaresemi.io.dicom_headers import LONG, Authorship, DescribedOrgan, coded, new_uid


def refuse_without_highdicom() -> None:
    """Checks that highdicom is there.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise ConfigError(
            "DICOM segmentations are written by highdicom, which is not installed",
            fix='pip install "flaresemi[dicom]"; --format rtstruct needs no more than is there',
        )


def write_dicom_seg(
    path: Path,
    indices_zyx: np.ndarray,
    mask_of: Callable[[int], np.ndarray] | None,
    headers: Sequence[Any],
    geometry: Geometry,
    organs: Sequence[DescribedOrgan],
    origin: Authorship,
) -> None:
    """Writes a segmentation with a binary segment for every organ; frames without any of it are left out.

    Args:
        path: The file; it is replaced.
        indices_zyx: Organ indices on the slices: index `i` is organ and segment `i`.
        mask_of: Where organs overlap: gives an organ (1 and up) on the slices, bool, (Z, Y, X). None: they do not.
        headers: Of the slices, as `read_headers` gives them.
        geometry: Of the slices.
        organs: In their order.
        origin: Who made it.

    Raises:
        ConfigError: highdicom is not installed.
        ImageError: the headers of the images are such that nothing can be derived from them.
        OSError: it cannot be written.
    """
    refuse_without_highdicom()
    import_without("pydicom", "requests")  # of which the import asks the system for its network
    import highdicom
    from highdicom.content import PixelMeasuresSequence

    if mask_of is None:
        pixels = indices_zyx
    else:
        integrity.check_memory(path, len(organs) * indices_zyx.size)
        pixels = np.empty((*indices_zyx.shape, len(organs)), np.uint8)
        for number in range(1, len(organs) + 1):
            pixels[..., number - 1] = mask_of(number)
    z, y, x = geometry.spacing_zyx_mm
    images, further = list(headers), None
    if not indices_zyx.any():  # one frame of nothing for each organ, not as many as there are slices
        pixels, images, further = pixels[:1], images[:1], images[1:]
    try:
        with parsing():
            made = highdicom.seg.Segmentation(
                source_images=images,
                further_source_images=further,
                pixel_array=pixels,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=_described(organs, origin),
                series_instance_uid=new_uid(),
                series_number=_series_number(headers[0]),
                sop_instance_uid=new_uid(),
                instance_number=1,
                manufacturer="flaresemi",
                manufacturer_model_name=origin.algorithm[:LONG],
                software_versions=origin.version[:LONG],
                device_serial_number="none",
                content_label=origin.code_string,
                content_description=origin.label[:LONG],
                series_description=f"{origin.algorithm}: {origin.label}"[:LONG],
                pixel_measures=PixelMeasuresSequence(pixel_spacing=(y, x), slice_thickness=z, spacing_between_slices=z),
                specific_character_set="ISO_IR 192",
            )
    except ValueError as problem:
        raise ImageError(
            "no segmentation can refer to this DICOM series: its headers lack or distort what the standard requires",
            where=Path(headers[0].filename).parent if getattr(headers[0], "filename", None) else None,
            fix="without --format the label map is written as NIfTI",
        ) from problem
    made.save_as(path, enforce_file_format=True)


def _series_number(first: Any) -> int:
    """Above any that scanners count to, and told from the images' own."""
    number = first.get("SeriesNumber")
    return 9000 + (int(number) % 1000 if number is not None else 0)


def _described(organs: Sequence[DescribedOrgan], origin: Authorship) -> list[Any]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from highdicom.sr import CodedConcept

    def concept(code: Any) -> CodedConcept:
        return CodedConcept(code.value, code.scheme, code.meaning)

    parameters = {f"model {number}": each for number, each in enumerate(origin.models, start=1)}
    identification = AlgorithmIdentificationSequence(
        name=origin.algorithm[:LONG],
        family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=origin.version[:LONG],
        source="flaresemi",
        parameters=parameters or None,
    )
    segments = []
    for number, organ in enumerate(organs, start=1):
        segment = SegmentDescription(
            segment_number=number,
            segment_label=organ.name[:LONG],
            segmented_property_category=concept(organ.code.category),
            segmented_property_type=concept(organ.code.type),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=identification,
            anatomic_regions=None if organ.code.region is None else [concept(organ.code.region)],
            display_color=CIELabColor.from_rgb(*organ.rgb),
        )
        side = [] if organ.code.side is None else [coded(organ.code.side)]
        if side and organ.code.region is not None:
            segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = side
        elif side:
            segment.SegmentedPropertyTypeModifierCodeSequence = side
        segments.append(segment)
    return segments
