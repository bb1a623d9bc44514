"""Images on disk: a file by its ending, or a folder that holds the DICOM slices of a series."""

import functools
import logging
import os
import re
from pathlib import Path

from flaresemi.extensions import READERS, installed
from flaresemi.files import open_regular
from flaresemi.system_errors import is_shortage

logger = logging.getLogger(__name__)

#: File name endings that are read as images, longest first.
IMAGE_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")


@functools.cache
def image_endings() -> tuple[str, ...]:
    """All endings that are read as images: ours, and those that installed packages read."""
    return (*IMAGE_ENDINGS, *sorted({f".{name.lower()}" for name in installed(READERS)} - set(IMAGE_ENDINGS)))


#: How 3D Slicer names a segmentation, which is a label map and never an image.
SEGMENTATION_ENDING = ".seg.nrrd"

#: What DICOM segmentations are, by SOP class: of segments, and of numbers. Source: DICOM PS3.4, B.5.
SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")

#: What the names of DICOM objects end with, and of segmentations that flaresemi_predict writes.
_DICOM_ENDINGS = (".seg.dcm", ".dcm")

#: How many bytes `starts_as_dicom` wants to see.
DICOM_START = 132

#: What a folder without images should have held, for messages.
EXPECTED = f"images end with {', '.join(IMAGE_ENDINGS)}, or are folders with the DICOM slices directly in them"


def image_stem(path: Path) -> str | None:
    """A file's name without its image ending; None when it is no image.

    Of a segmentation of 3D Slicer, CASE.seg.nrrd, it is CASE.
    """
    for ending in (SEGMENTATION_ENDING, *image_endings()):
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return None


def label_stem(path: Path) -> str | None:
    """The name of a label map's file without its ending; None when it is none.

    It is that of an image, or CASE.seg.dcm or CASE.dcm if it holds a DICOM segmentation.
    """
    for ending in _DICOM_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)] if _holds_segmentation(path) else None
    return image_stem(path)


def _holds_segmentation(path: Path) -> bool:
    try:
        with open(path, "rb", opener=open_regular) as file:
            start = file.read(1024)
    except OSError as problem:
        if is_shortage(problem):
            raise
        return False
    classes = re.findall(rb"[0-9.]+", start[DICOM_START:])
    return starts_as_dicom(start) and any(each.encode() in classes for each in SEGMENTATION_CLASSES)


def image_name(path: Path) -> str | None:
    """The name of an image: a series folder's whole name, a file's name without its ending; None for others."""
    if path.is_dir() and holds_slices(path):
        return Path(os.path.abspath(path)).name  # '.' has no name of its own
    return image_stem(path)


def starts_as_dicom(start: bytes) -> bool:
    """Whether a file that starts like this is DICOM: marked so, or without a preamble, as old archives write them."""
    return start[128:DICOM_START] == b"DICM" or start[:4] == b"\x02\x00\x00\x00" or start[:2] == b"\x08\x00"


def holds_slices(folder: Path) -> bool:
    """Whether DICOM files lie directly in a folder; an index of other folders (DICOMDIR) does not count."""
    return any(
        path.name.upper() != "DICOMDIR" and image_stem(path) is None and _is_dicom(path)
        for path in visible_files(folder)
    )


def visible_files(folder: Path) -> list[Path]:
    """The files that lie directly in a folder, by name; hidden ones are left out."""
    return [path for path in _visible(folder) if path.is_file()]


def named_images(folder: Path) -> list[tuple[str, Path]]:
    """Name and path of every image of a folder: image files, and subfolders with slices. Others are passed over."""
    found = []
    for path in _visible(folder):
        name = image_name(path)
        if name:
            found.append((name, path))
        elif path.is_dir() and any(inner.is_dir() and holds_slices(inner) for inner in _visible(path)):
            logger.warning("%s: passed over, its DICOM slices lie in folders within it; name or move those", path)
    return found


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        logger.warning("%s: passed over, this folder may not be read", folder)
        return []


def _is_dicom(path: Path) -> bool:
    try:
        with open(path, "rb", opener=open_regular) as file:
            return starts_as_dicom(file.read(DICOM_START))
    except OSError as problem:
        if is_shortage(problem):
            raise
        return False
