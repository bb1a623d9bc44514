"""Exports pseudo-labels for other programs: on the grids of the user's images, with the user's label values."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flaresemi.case_names import case_file
from flaresemi.dataset import Case
from flaresemi.errors import ConfigError, DatasetError, listed
from flaresemi.image_paths import image_stem, visible_files
from flaresemi.io.case_store import LabelStore
from flaresemi.io.images import read_grid, write_label_map
from flaresemi.labels import LabelSet
from flaresemi.preprocessing.preprocessor import canonical_labels
from flaresemi.records import load_record, save_record
from flaresemi.selection import EXPORT_RECORD, ExportRecord

logger = logging.getLogger(__name__)


def export_labels(
    cases: Sequence[Case], stores: Mapping[str, LabelStore], labels: LabelSet, folder: Path, record: ExportRecord
) -> int:
    """Writes CASE.nii.gz for every case that has none in the folder yet.

    The exported label map is the pseudo-label that training uses, resampled from FINE's voxels class by class, through
    the same grids as a prediction's logits. A voxel between stage voxels of one label therefore has the label that
    `flaresemi_predict` gives it; along borders, labels and logits may round differently.

    Args:
        cases: Unlabeled cases.
        stores: Per case, where its label map on FINE's grid lies.
        labels: The organs and their values.
        folder: The output folder.
        record: Describes the pseudo-labels; saved beside them.

    Returns:
        The number of files written by this call.

    Raises:
        ConfigError: the folder holds other files.
        DatasetError: a pseudo-label is missing, or its image has changed.
    """
    outputs = {case.id: case_file(folder, case.id, ".nii.gz") for case in cases}
    _check_folder(folder, outputs, record)
    left = [case for case in cases if not outputs[case.id].exists()]
    for case in tqdm(left, desc="exporting", unit="case", disable=not sys.stderr.isatty()):
        stored = stores[case.id].open(case.id)
        source = read_grid(case.images[0])
        if source.canonical.shape_zyx != stored.record.grid.canonical_shape_zyx or stored.label_zyx is None:
            raise DatasetError(
                f"the image of case '{case.id}' is not the one that was labeled",
                where=case.images[0],
                fix="run flaresemi_plan_and_preprocess again, and the round",
            )
        indices = canonical_labels(np.asarray(stored.label_zyx), stored.record.grid, labels.ignored)
        write_label_map(outputs[case.id], labels.to_values(indices), source)
    return len(left)


def _check_folder(folder: Path, outputs: dict[str, Path], record: ExportRecord) -> None:
    """Checks that the folder holds nothing but pseudo-labels of the same round, and saves the record in it."""
    path = folder / EXPORT_RECORD
    if os.path.lexists(path):
        found = load_record(path, ExportRecord, error=ConfigError)
        if found.teacher == record.teacher:
            save_record(path, record)
            return
        what = f"this folder holds the pseudo-labels of round {found.round} of fold {found.fold}"
        if (found.fold, found.round) == (record.fold, record.round):
            what += ", produced by other weights"
        raise ConfigError(what, where=folder, fix="name another folder, or remove this one")
    there = [output for output in outputs.values() if os.path.lexists(output)]
    if there:
        raise ConfigError(
            f"{len(there)} of the files to be written are there already", where=there[0], fix="name another folder"
        )
    others = [each.name for each in visible_files(folder) if image_stem(each) is not None]
    if others:
        raise ConfigError(
            f"this folder holds other images or label maps: {listed(others)}", where=folder, fix="name another folder"
        )
    save_record(path, record)
