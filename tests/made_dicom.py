"""DICOM files for tests, written byte by byte, so that what is read does not come from the library that reads it."""

import dataclasses
import struct
from pathlib import Path

import numpy as np

CT, MR, PET = (f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "4", "128"))
ENHANCED_CT, SEGMENTATION, REPORT = (f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2.1", "66.4", "88.11"))

#: What must never be told.
SECRETS = ("DOE^JANE", "PAT-4711", "19620101", "Saint Nowhere", "1.2.77.4711")

_LONG = ("OB", "OW", "SQ", "UN", "UT")


def write_dicom(
    path: Path, elements: dict[str, tuple[str, object]], *, sop_class: str = CT, preamble: bool = True
) -> None:
    """Writes elements, {tag: (VR, value)}, in explicit little endian."""
    meta = b"".join(
        (
            _element("00020001", "OB", b"\0\1"),
            _element("00020002", "UI", sop_class),
            _element("00020003", "UI", "1.2.3"),
            _element("00020010", "UI", "1.2.840.10008.1.2.1"),
        )
    )
    meta = _element("00020000", "UL", struct.pack("<I", len(meta))) + meta
    body = b"".join(_element(tag, *elements[tag]) for tag in sorted(elements))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((bytes(128) + b"DICM" if preamble else b"") + meta + body)


def patient_elements(sop_class: str = CT) -> dict[str, tuple[str, object]]:
    """What every object of a study says, also one that is no image."""
    return {
        "00080016": ("UI", sop_class),
        "00080018": ("UI", "1.2.3"),
        "00080080": ("LO", SECRETS[3]),
        "00100010": ("PN", SECRETS[0]),
        "00100020": ("LO", SECRETS[1]),
        "00100030": ("DA", SECRETS[2]),
        "0020000D": ("UI", SECRETS[4]),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """A scan to be written as slices: (z, y, x) HU, spacing and origin (x, y, z) in mm, direction 3×3."""

    array_zyx: np.ndarray
    spacing: tuple[float, float, float] = (1.5, 1.25, 2.0)
    origin: tuple[float, float, float] = (-12.0, 7.5, 31.25)
    direction: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))
    slope: float = 1.0
    intercept: float = -1024.0
    sop_class: str = CT
    uid: str = "1.2.77.4711.1"
    number: str = "3"
    modality: str = "CT"
    image_type: str = "ORIGINAL\\PRIMARY\\AXIAL"

    def elements(self, index: int) -> dict[str, tuple[str, object]]:
        """Those of slice `index`."""
        plane = self.array_zyx[index]
        position = np.array(self.origin) + self.direction[:, 2] * self.spacing[2] * index
        numbers = lambda values: "\\".join(f"{value:.10g}" for value in values)  # noqa: E731
        stored = np.round((plane - self.intercept) / self.slope).astype("<i2")
        return {
            **patient_elements(self.sop_class),
            "00080008": ("CS", self.image_type),
            "00080018": ("UI", f"{self.uid}.{index + 1}"),
            "00080060": ("CS", self.modality),
            "0020000E": ("UI", self.uid),
            "00200011": ("IS", self.number),
            "00200013": ("IS", str(997 * (index + 3) % 101)),  # instance numbers mislead
            "00200032": ("DS", numbers(position)),
            "00200037": ("DS", numbers(self.direction.T[:2].ravel())),
            "00200052": ("UI", f"{self.uid}.0"),
            "00280002": ("US", 1),
            "00280004": ("CS", "MONOCHROME2"),
            "00280010": ("US", plane.shape[0]),
            "00280011": ("US", plane.shape[1]),
            "00280030": ("DS", numbers(self.spacing[1::-1])),
            "00280100": ("US", 16),
            "00280101": ("US", 16),
            "00280102": ("US", 15),
            "00280103": ("US", 1),
            "00281052": ("DS", f"{self.intercept:g}"),
            "00281053": ("DS", f"{self.slope:g}"),
            "7FE00010": ("OW", stored.tobytes()),
        }

    def write(self, folder: Path, *, prefix: str = "IM", skip: tuple[int, ...] = ()) -> list[Path]:
        """Writes the slices under names whose order says nothing; returns them in the order of the array."""
        paths = [folder / f"{prefix}{3701 * (index + 1) % 10007:04d}" for index in range(len(self.array_zyx))]
        for index, path in enumerate(paths):
            if index not in skip:
                write_dicom(path, self.elements(index), sop_class=self.sop_class)
        return paths


def rewrite(path: Path, stack: Stack, index: int, **changes: tuple[str, object]) -> None:
    """Writes a slice with other elements, named like `t00280004`."""
    elements = stack.elements(index) | {tag[1:].upper(): value for tag, value in changes.items()}
    write_dicom(path, elements, sop_class=stack.sop_class)


def _element(tag: str, kind: str, value: object) -> bytes:
    content = value if isinstance(value, bytes) else b""
    if isinstance(value, str):
        content = value.encode() + (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    elif isinstance(value, int):
        content = struct.pack("<H", value)
    head = struct.pack("<HH", int(tag[:4], 16), int(tag[4:], 16)) + kind.encode()
    if kind in _LONG:
        return head + struct.pack("<HI", 0, len(content)) + content
    return head + struct.pack("<H", len(content)) + content
