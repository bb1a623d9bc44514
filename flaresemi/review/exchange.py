"""The queue as a folder for other programs (3D Slicer, ITK-SNAP, napari), from which `corrections` are taken back."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flaresemi.case_names import case_file
from flaresemi.errors import ConfigError
from flaresemi.files import content_hash, write_text
from flaresemi.image_paths import visible_files
from flaresemi.io.images import write_channel, write_label_map
from flaresemi.labels import LabelSet
from flaresemi.planning.preparation import case_versions
from flaresemi.ranges import Few
from flaresemi.records import save_record
from flaresemi.reporting.palette import organ_color
from flaresemi.review.material import Material
from flaresemi.review.queue import QueueItem
from flaresemi.tables import write_table

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1

#: Files beside the images and label maps.
QUEUE_RECORD, QUEUE_TABLE, SNAP_TABLE, SLICER_TABLE = "queue.json", "queue.csv", "organs.label.txt", "organs.ctbl"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportedCase:
    """A case of an exported queue.

    Attributes:
        label: Hash of the file of its label map; empty: none was written.
        looked_at: Hash of the pseudo-label on FINE's grid; empty: there was none.
        revision: Of the decision at that time; 0: none.
        image: The version of the image's files, by content; empty: not known.
        voxels: Hash of the label map's voxels, which stay the same where another program only saves them anew; empty:
            none was written, or not known.
        reviewed: Whether that label map is the one that the decision vouches for.
    """

    case_id: str
    label: str = ""
    looked_at: str = ""
    revision: Few = 0
    image: str = ""
    voxels: str = ""
    reviewed: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportedQueue:
    """The record beside an exported queue, by which it is told what was changed.

    Attributes:
        fold: Of the chain.
        round: Whose pseudo-labels; 0: none.
        cases: The most urgent first.
    """

    schema_version: int = SCHEMA_VERSION
    fold: str
    round: Few
    cases: tuple[ExportedCase, ...]


def export_queue(material: Material, folder: Path, most: int) -> int:
    """Writes the most urgent cases: `images`, `labels`, tables of names and values, and why each deserves a look.

    Of a case that was corrected before, the label map is the corrected one. Held-out cases are left out.

    Args:
        material: The workspace.
        folder: A new or empty folder.
        most: How many cases.

    Returns:
        The number of cases.

    Raises:
        ConfigError: the folder holds something.
        FlaresemiError: an image cannot be read.
    """
    if os.path.lexists(folder) and (not folder.is_dir() or any(visible_files(folder))):
        raise ConfigError("this folder is not empty", where=folder, fix="name another one; it need not be there")
    number = material.newest
    items, _ = material.queue()
    chosen = [item for item in items if item.group == "unlabeled"][:most]
    exported = [_export_case(material, item.case_id, folder, number) for item in chosen]
    _write_tables(material.labels, folder)
    _write_queue(chosen, folder)
    save_record(folder / QUEUE_RECORD, ExportedQueue(fold=material.fold, round=number, cases=tuple(exported)))
    return len(exported)


def _export_case(material: Material, case_id: str, folder: Path, number: int) -> ExportedCase:
    case = material.unlabeled[case_id]
    image = material.image(case)
    for channel, array in enumerate(image.array_czyx):
        write_channel(case_file(folder / "images", case_id, f"_{channel:04d}.nii.gz"), array, image.source)
    review = material.review(case_id)
    if review is not None and review.label_revision and not material.has_label_map(review):
        logger.warning("%s: the label map that %s decided about is missing or has changed", case_id, review.who)
    reviewed = material.label_map(case, "reviewed", number)
    seen = reviewed or material.label_map(case, "newest", number)
    written = voxels = ""
    if seen is not None:
        path = case_file(folder / "labels", case_id, ".nii.gz")
        write_label_map(path, material.labels.to_values(seen.indices_zyx), image.source)
        written, voxels = content_hash(path), voxels_hash(seen.indices_zyx)
    return ExportedCase(
        case_id=case_id,
        label=written,
        looked_at=material.label_hash(case_id, number),
        revision=review.revision if review else 0,
        image=case_versions([case_id], material.workspace)[case_id],
        voxels=voxels,
        reviewed=reviewed is not None,
    )


def voxels_hash(indices_zyx: np.ndarray) -> str:
    """Identifies what a label map says, whatever type its indices are stored as."""
    return hashlib.sha256(np.ascontiguousarray(indices_zyx, "<u2").data).hexdigest()[:16]


def _write_tables(labels: LabelSet, folder: Path) -> None:
    """Names, values and colors, in the words of ITK-SNAP and of 3D Slicer."""
    snap = ['    0     0    0    0        0  0  0    "Clear Label"']
    slicer = ["# Color table: value, name, red, green, blue, opacity", "0 background 0 0 0 0"]
    for value, name, color in named_values(labels):
        red, green, blue = color
        snap.append(f'{value:5d}   {red:3d}  {green:3d}  {blue:3d}        1  1  1    "{name}"')
        slicer.append(f"{value} {name.replace(' ', '_')} {red} {green} {blue} 255")
    write_text(folder / SNAP_TABLE, "\n".join(snap) + "\n")
    write_text(folder / SLICER_TABLE, "\n".join(slicer) + "\n")


def named_values(labels: LabelSet) -> list[tuple[int, str, tuple[int, int, int]]]:
    """The user's value, the name and the color of everything that a label map of the dataset can say."""
    rows = [
        (each.values[0], name, _color(min(each.organs)))
        for each, name in zip(labels.classes, labels.class_names, strict=True)
    ]
    return rows if labels.ignore is None else [*rows, (labels.ignore, "ignore", (128, 128, 128))]


def _color(organ: int) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in organ_color(organ))
    return red, green, blue


def _write_queue(items: Sequence[QueueItem], folder: Path) -> None:
    rows: list[list[object]] = [["rank", "case", "why"]]
    rows += [
        [rank, item.case_id, "; ".join(each.text for each in item.reasons)] for rank, item in enumerate(items, start=1)
    ]
    write_table(folder / QUEUE_TABLE, rows)
