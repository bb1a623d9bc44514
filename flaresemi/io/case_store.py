"""Preprocessed cases on disk: whole or absent, opened in no time, patches read without touching the rest."""

import contextlib
import dataclasses
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from flaresemi.case_names import case_file
from flaresemi.errors import DatasetError, shown
from flaresemi.files import content_hash, sync, sync_folder
from flaresemi.io.stored_case import MAX_CLASS_VOXELS, CaseRecord, StoredCase, count_voxels
from flaresemi.machine import open_file_limit
from flaresemi.portability import changed_ns
from flaresemi.records import load_record, record_hash, save_record
from flaresemi.unfinished import remove_leftovers, unfinished_path

logger = logging.getLogger(__name__)

#: Image, label map and sample of voxels.
_FILES_OF_A_CASE = 3

_FLOAT16_MAX = float(np.finfo(np.float16).max)


class CaseStore:
    """A folder of preprocessed cases, one folder each.

    A case is written beside, under a hidden name, and renamed when it is whole, so that half a case is never taken for
    one. Several processes may write different cases at once. Whoever has opened a case gets no other version of it from
    the same store, nor from a copy of it in another process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._versions: dict[str, str] = {}

    def write(self, record: CaseRecord, image_czyx: np.ndarray, label_zyx: np.ndarray | None) -> None:
        """Writes a case, in place of an older one of the same name.

        Args:
            record: `channel_minima` is filled in here.
            image_czyx: Normalized image on the stage grid; stored as float16.
            label_zyx: Internal indices on the stage grid, uint8 or uint16.

        Raises:
            OSError: the disk is full or the folder cannot be written to; nothing is left behind.
        """
        _check_write(record, image_czyx, label_zyx)
        stored = np.clip(image_czyx, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)
        minima = tuple(float(channel.min()) for channel in stored)
        with self._new_case(record.case_id) as folder:
            _save(folder / "image.npy", stored)
            if label_zyx is not None:
                record = _save_labels(folder, record, label_zyx)
            record = dataclasses.replace(record, channel_minima=minima, image_hash=content_hash(folder / "image.npy"))
            save_record(folder / "case.json", record)

    def open(self, case_id: str) -> StoredCase:
        """Opens a case.

        Raises:
            DatasetError: it is not in the store, or damaged, or was made anew since it was first opened.
            OSError: the system does not let it be read.
        """
        record = self.record(case_id)
        folder = self._folder(case_id)
        version = record_hash(record)
        if self._versions.get(case_id, version) != version:
            raise DatasetError(
                f"case '{case_id}' was made anew while it was in use here",
                where=folder,
                fix="what was begun with the old one cannot go on with the new: put plans.json and the case's files "
                f"back, {_AGAIN} and go on; or begin anew",
            )
        try:
            if record.case_id != case_id:
                raise ValueError(f"it says it is case '{shown(record.case_id)}'")
            _refuse_edited(folder, self._contents(record))
            stored = self._stored(folder, record)
        except (FileNotFoundError, ValueError) as problem:  # other errors of the system say nothing of the case
            raise DatasetError(
                f"preprocessed case '{case_id}' is damaged: {problem}",
                where=folder,
                fix=f"delete this folder and {_AGAIN}",
            ) from None
        self._versions[case_id] = version
        return stored

    def record(self, case_id: str) -> CaseRecord:
        """The record of a case; its arrays are not looked at.

        Raises:
            DatasetError: it is not in the store, or its record is damaged.
        """
        folder = self._folder(case_id)
        if not folder.is_dir():
            raise DatasetError(f"case '{case_id}' is not preprocessed", where=folder, fix=_AGAIN)
        return load_record(folder / "case.json", CaseRecord, error=DatasetError)

    def has(self, case_id: str, preprocessing_hash: str) -> bool:
        """Whether the case is there, whole, and made with these settings."""
        if not (self._folder(case_id) / "case.json").is_file():
            return False
        try:
            return self.open(case_id).record.preprocessing_hash == preprocessing_hash
        except DatasetError as problem:
            logger.warning("%s", problem.what)
            return False

    def case_ids(self) -> tuple[str, ...]:
        """The names of the cases that are there, sorted."""
        if not self.folder.is_dir():
            return ()
        return tuple(
            sorted(
                entry.name
                for entry in self.folder.iterdir()
                if not entry.name.startswith(".") and (entry / "case.json").is_file()
            )
        )

    def remove_leftovers(self) -> None:
        """Removes what killed writers left."""
        remove_leftovers(self.folder)

    def _folder(self, case_id: str) -> Path:
        return case_file(self.folder, case_id)  # a name that starts with a dot is a temporary one

    def _temporary_folder(self) -> Path:
        folder = unfinished_path(self.folder)
        folder.mkdir()
        return folder

    def _stored(self, folder: Path, record: CaseRecord) -> StoredCase:
        return StoredCase(folder, record)

    def _contents(self, record: CaseRecord) -> dict[str, str]:
        """Hashes of the arrays that are compared on opening, by file; empty where they are not known."""
        return {"image.npy": record.image_hash, "label.npy": record.label_hash}

    @contextlib.contextmanager
    def _new_case(self, case_id: str) -> Iterator[Path]:
        """A folder to write a case into; it becomes the case when the block ends well."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._temporary_folder()
        try:
            yield unfinished
            self._publish(unfinished, case_id)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _publish(self, unfinished: Path, case_id: str) -> None:
        folder = self._folder(case_id)
        self._versions.pop(case_id, None)
        replaced = self._temporary_folder()
        try:
            if os.path.lexists(folder):  # a link to nowhere, too
                folder.rename(replaced / "case")
            unfinished.rename(folder)
        finally:
            shutil.rmtree(replaced, ignore_errors=True)
        sync_folder(self.folder)


class OpenCases:
    """Cases of a store that are read again and again, of which no more stay open than the system allows.

    Every memory map keeps its file open, and a process may often have 1024 files and no more.

    Args:
        store: Where they are.
        limit: How many stay open; None: what takes no more than half of the files that this process may have open.
    """

    def __init__(self, store: CaseStore, limit: int | None = None) -> None:
        self.store = store
        self.limit = limit
        self._open: dict[str, StoredCase] = {}

    def __getitem__(self, case_id: str) -> StoredCase:
        """The case, open.

        Raises:
            DatasetError: it is not in the store, damaged, or another one than when it was opened first.
        """
        found = self._open.pop(case_id, None) or self.store.open(case_id)
        limit = open_file_limit() // (2 * _FILES_OF_A_CASE) if self.limit is None else self.limit
        while len(self._open) >= max(limit, 1):
            del self._open[next(iter(self._open))]  # the one that was not used for longest
        self._open[case_id] = found
        return found


class LabelStore(CaseStore):
    """Label maps for cases whose images lie in another store: what self-training adds to the unlabeled ones.

    Args:
        folder: Of the label maps and their records.
        images: Where the images are.
    """

    def __init__(self, folder: Path, images: CaseStore) -> None:
        super().__init__(folder)
        self.images = images

    def write_labels(
        self, case_id: str, label_zyx: np.ndarray, organs: int, supervised: tuple[int, ...], source: str = ""
    ) -> None:
        """Writes, or replaces, the label map of a case.

        Args:
            label_zyx: Internal indices on the stage grid of the image, uint8 or uint16.
            organs: Highest index: the number of organs of the dataset, unless they are regions.
            supervised: The organs that the label map is trusted on.
            source: Of the file that the label map comes from, where it was not drawn here.

        Raises:
            DatasetError: the image is not in its store.
            OSError: the disk is full or the folder cannot be written to; nothing is left behind.
        """
        image = self.images.open(case_id)
        record = CaseRecord.labeled(
            case_id=case_id,
            preprocessing_hash=image.record.preprocessing_hash,
            grid=image.record.grid,
            label_zyx=label_zyx,
            organs=organs,
            supervised=supervised,
            source_hash=image.record.source_hash,
        )
        record = dataclasses.replace(record, channel_minima=image.record.channel_minima, label_source=source)
        _check_write(record, image.image_czyx, label_zyx)
        with self._new_case(case_id) as folder:
            save_record(folder / "case.json", _save_labels(folder, record, label_zyx))

    def is_current(self, case_id: str) -> bool:
        """Whether the label map is there and was made for the image as it is prepared now; arrays are not read.

        Raises:
            DatasetError: the image is not in its store, or a record is damaged.
        """
        image = self.images.record(case_id)
        if not (self._folder(case_id) / "case.json").is_file():
            return False
        label = self.record(case_id)
        return (label.source_hash, label.preprocessing_hash, label.grid) == (
            image.source_hash,
            image.preprocessing_hash,
            image.grid,
        )

    def refuse_edited(self, case_id: str) -> None:
        """Reads a label map whole, to see that it is what was written.

        Raises:
            DatasetError: it is missing, or another file by now.
        """
        folder = self._folder(case_id)
        again = "delete this folder and start the same command again: the label map is made anew"
        try:
            found = content_hash(folder / "label.npy")
        except FileNotFoundError:
            raise DatasetError(f"the pseudo-label of case '{case_id}' is missing", where=folder, fix=again) from None
        if self.record(case_id).label_hash not in ("", found):
            raise DatasetError(
                f"the pseudo-label of case '{case_id}' is not the one that was written: its file has changed",
                where=folder,
                fix=again,
            )

    def _contents(self, record: CaseRecord) -> dict[str, str]:
        return {}  # `refuse_edited` reads the label map whole

    def _stored(self, folder: Path, record: CaseRecord) -> StoredCase:
        return StoredCase(folder, record, self.images.open(record.case_id).folder)


_AGAIN = "run flaresemi_plan_and_preprocess again"


def _refuse_edited(folder: Path, known: Mapping[str, str]) -> None:
    """Checks that arrays are those that their record was written for, which is written after them.

    An array whose inode has changed later than the record's is read and compared. If it is the same (it was copied),
    the record is touched, so that it need not be read the next time; no time of a file that others see changes.

    Args:
        known: Hash by file name; empty where it is not known.

    Raises:
        ValueError: an array is another one.
        OSError: a file is missing or cannot be read.
    """
    record = os.stat(folder / "case.json")
    paths = {folder / name: content for name, content in known.items() if content and (folder / name).is_file()}
    later = [path for path in paths if changed_ns(os.stat(path)) > changed_ns(record)]
    for path in later:
        if content_hash(path) != paths[path]:
            raise ValueError(f"{path.name} is not what was written here: the file has changed")
    if later:
        with contextlib.suppress(OSError):  # not ours, or on a disk that cannot be written to: it is read again
            os.utime(folder / "case.json", ns=(record.st_atime_ns, record.st_mtime_ns))


def _check_write(record: CaseRecord, image_czyx: np.ndarray, label_zyx: np.ndarray | None) -> None:
    shape = record.grid.shape_zyx
    if image_czyx.ndim != 4 or image_czyx.shape[1:] != shape:
        raise ValueError(f"image of shape {image_czyx.shape} for a stage grid of {shape}")
    if record.has_label != (label_zyx is not None):
        raise ValueError("has_label contradicts the label map")
    if label_zyx is None:
        return
    if label_zyx.shape != shape or label_zyx.dtype.kind != "u":
        raise ValueError(f"label map {label_zyx.dtype} of shape {label_zyx.shape} for a stage grid of {shape}")
    *counted, ignored = count_voxels(label_zyx, len(record.voxels_per_label))
    if tuple(counted) != record.voxels_per_label:
        raise ValueError(f"voxels_per_label is {record.voxels_per_label}, the label map has {tuple(counted)}")
    if record.annotated_voxels != (label_zyx.size - ignored if ignored else None):
        raise ValueError(f"annotated_voxels is {record.annotated_voxels}, {ignored} are not annotated")


def _sample_voxels(record: CaseRecord, label_zyx: np.ndarray) -> np.ndarray:
    """Up to 10000 voxels of each organ, one after the other, (n, 3); the same on every run.

    Behind them, where there are ignored voxels, up to 10000 of all that are annotated.
    """
    flat = label_zyx.ravel()
    is_annotated = None if record.annotated_voxels is None else flat != record.ignored
    foreground = np.flatnonzero(flat if is_annotated is None else (flat != 0) & is_annotated)
    foreground = foreground[np.argsort(flat[foreground], kind="stable")]  # one organ behind the other: one pass for all
    ends = np.cumsum(record.voxels_per_label)
    chosen = [
        _some(foreground[end - count : end], record.case_id, index)
        for index, (count, end) in enumerate(zip(record.voxels_per_label, ends, strict=True), start=1)
    ]
    if is_annotated is not None:
        chosen.append(_some(np.flatnonzero(is_annotated), record.case_id, record.ignored))
    together = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    return np.stack(np.unravel_index(together, label_zyx.shape), axis=1).astype(np.int32)


def _some(voxels: np.ndarray, case_id: str, index: int) -> np.ndarray:
    """At most so many of these voxels as are kept."""
    if len(voxels) <= MAX_CLASS_VOXELS:
        return voxels
    generator = np.random.default_rng([zlib.crc32(case_id.encode("utf-8", "surrogateescape")), index])
    return np.sort(generator.choice(voxels, MAX_CLASS_VOXELS, replace=False))


def _save_labels(folder: Path, record: CaseRecord, label_zyx: np.ndarray) -> CaseRecord:
    """Writes the label map and its sample of voxels; returns the record with its hash."""
    _save(folder / "label.npy", label_zyx)
    _save(folder / "class_voxels.npy", _sample_voxels(record, label_zyx))
    return dataclasses.replace(record, label_hash=content_hash(folder / "label.npy"))


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        file.flush()
        sync(file.fileno())
