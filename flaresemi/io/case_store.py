"""Preprocessed cases on disk: whole or absent, opened in no time, patches read without touching the rest."""

import contextlib
import dataclasses
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flaresemi.errors import DatasetError
from flaresemi.files import PARTIAL, remove_leftovers
from flaresemi.geometry import BoundingBox, IntTriple, StageGrid
from flaresemi.records import load_record, save_record

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1

#: Voxels kept per organ for drawing patches on it. Chosen: many more than any training draws from one case.
MAX_CLASS_VOXELS = 10_000

_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaseRecord:
    """What is known of one preprocessed case.

    Attributes:
        preprocessing_hash: Of what decided the arrays; a case with another hash is made anew.
        grid: How the arrays lie in the canonical image.
        organs_box: Box of all labels, in stage voxels; None when there are none.
        supervised: Internal indices (1 and up) of the organs that the label map annotates.
        voxels_per_label: Stage voxels per organ; empty when unlabeled.
        has_label: Whether there is a label map.
        channel_minima: Lowest stored value per channel (air), which pads patches that reach outside. Filled in on
            writing.
    """

    schema_version: int = SCHEMA_VERSION
    case_id: str
    preprocessing_hash: str
    grid: StageGrid
    organs_box: BoundingBox | None
    supervised: tuple[int, ...]
    voxels_per_label: tuple[int, ...]
    has_label: bool
    channel_minima: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {self.schema_version} is not known to this flaresemi")

    @staticmethod
    def unlabeled(*, case_id: str, preprocessing_hash: str, grid: StageGrid) -> "CaseRecord":
        """The record of a case without a label map."""
        return CaseRecord(
            case_id=case_id, preprocessing_hash=preprocessing_hash, grid=grid,
            organs_box=None, supervised=(), voxels_per_label=(), has_label=False,
        )  # fmt: skip

    @staticmethod
    def labeled(
        *,
        case_id: str,
        preprocessing_hash: str,
        grid: StageGrid,
        label_zyx: np.ndarray,
        organs: int,
        supervised: tuple[int, ...],
    ) -> "CaseRecord":
        """The record of a case with a label map; its box and voxels are counted here.

        Args:
            label_zyx: Internal indices, on the stage grid.
            organs: Number of organs of the dataset.
            supervised: Indices of those that this case annotates.
        """
        counts = _count(label_zyx, organs)
        return CaseRecord(
            case_id=case_id,
            preprocessing_hash=preprocessing_hash,
            grid=grid,
            organs_box=BoundingBox.of_mask(label_zyx != 0),
            supervised=supervised,
            voxels_per_label=counts,
            has_label=True,
        )


class StoredCase:
    """One preprocessed case. Its arrays are memory-mapped: opening costs nothing, and workers get no copy.

    Attributes:
        record: What is known of it.
        image_czyx: float16, (C, Z, Y, X), read-only.
        label_zyx: Internal indices, (Z, Y, X), uint8 or uint16, read-only; None when unlabeled.

    Args:
        folder: Of the label map and the record.
        record: What is known of it.
        image_folder: Of the image, where that is another one.
    """

    def __init__(self, folder: Path, record: CaseRecord, image_folder: Path | None = None) -> None:
        self.folder = folder
        self.record = record
        self.image_folder = folder if image_folder is None else image_folder
        self.image_czyx: np.ndarray = np.load(self.image_folder / "image.npy", mmap_mode="r")
        self.label_zyx: np.ndarray | None = None
        self._class_voxels: np.ndarray | None = None
        if record.has_label:
            self.label_zyx = np.load(folder / "label.npy", mmap_mode="r")
            self._class_voxels = np.load(folder / "class_voxels.npy", mmap_mode="r")
        self._check()

    def __reduce__(self) -> tuple:
        return StoredCase, (
            self.folder,
            self.record,
            self.image_folder,
        )  # a pickled memory map would carry the whole volume

    def class_voxels(self, index: int) -> np.ndarray:
        """Stage voxels of one organ (internal index, 1 and up): all, or a fixed sample of 10000; (n, 3), (Z, Y, X)."""
        if self._class_voxels is None:
            return np.empty((0, 3), np.int32)
        sizes = [min(count, MAX_CLASS_VOXELS) for count in self.record.voxels_per_label]
        start = sum(sizes[: index - 1])
        return np.asarray(self._class_voxels[start : start + sizes[index - 1]])

    def read_patch(self, start_zyx: IntTriple, shape_zyx: IntTriple) -> tuple[np.ndarray, np.ndarray | None]:
        """Reads a box of voxels, which may reach outside the case or lie there altogether.

        Outside, the image has its channel's lowest value (air) and the label map background.

        Returns:
            The image, float32, (C, *shape), and the labels, (*shape); None when unlabeled. Both may be written to.
        """
        size = self.record.grid.shape_zyx
        source, target = [], []
        for start, length, limit in zip(start_zyx, shape_zyx, size, strict=True):
            low, high = max(start, 0), min(start + length, limit)
            high = max(high, low)
            source.append(slice(low, high))
            target.append(slice(low - start, high - start))
        if any(part.stop == part.start for part in source):
            source, target = [slice(0, 0)] * 3, [slice(0, 0)] * 3
        image = np.empty((self.image_czyx.shape[0], *shape_zyx), np.float32)
        whole = all(part.stop - part.start == length for part, length in zip(source, shape_zyx, strict=True))
        if not whole:
            image[...] = np.reshape(self.record.channel_minima, (-1, 1, 1, 1))
        image[(slice(None), *target)] = self.image_czyx[(slice(None), *source)]
        if self.label_zyx is None:
            return image, None
        label = np.zeros(shape_zyx, self.label_zyx.dtype)
        label[tuple(target)] = self.label_zyx[tuple(source)]
        return image, label

    def _check(self) -> None:
        shape = self.record.grid.shape_zyx
        image, label, voxels = self.image_czyx, self.label_zyx, self._class_voxels
        if image.dtype != np.float16 or image.shape != (len(self.record.channel_minima), *shape):
            raise ValueError(f"image.npy holds {image.dtype} {image.shape}, its record says {shape}")
        if label is not None and (label.dtype.kind != "u" or label.shape != shape):
            raise ValueError(f"label.npy holds {label.dtype} {label.shape}, its record says {shape}")
        expected = sum(min(count, MAX_CLASS_VOXELS) for count in self.record.voxels_per_label)
        if voxels is not None and voxels.shape != (expected, 3):
            raise ValueError(f"class_voxels.npy holds {voxels.shape}, its record says {expected} voxels")


class CaseStore:
    """A folder of preprocessed cases, one folder each.

    A case is written beside, under a hidden name, and renamed when it is whole, so that half a case is never taken for
    one. Several processes may write different cases at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

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
                _save_labels(folder, record, label_zyx)
            save_record(folder / "case.json", dataclasses.replace(record, channel_minima=minima))

    def open(self, case_id: str) -> StoredCase:
        """Opens a case.

        Raises:
            DatasetError: it is not in the store, or damaged.
        """
        folder = self._folder(case_id)
        if not folder.is_dir():
            raise DatasetError(f"case '{case_id}' is not preprocessed", where=folder, fix=_AGAIN)
        record = load_record(folder / "case.json", CaseRecord, error=DatasetError)
        try:
            if record.case_id != case_id:
                raise ValueError(f"it says it is case '{record.case_id}'")
            return self._stored(folder, record)
        except (OSError, ValueError) as problem:
            raise DatasetError(
                f"preprocessed case '{case_id}' is damaged: {problem}", where=folder,
                fix=f"delete this folder and {_AGAIN}",
            ) from None  # fmt: skip

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
        """Removes what killed writers left. Only for when nobody else writes to the store."""
        if not self.folder.is_dir():
            return
        remove_leftovers(self.folder)
        for leftover in self.folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _folder(self, case_id: str) -> Path:
        # A name that starts with a dot is a temporary one, and a separator would leave the store.
        if not case_id or case_id.startswith(".") or "/" in case_id or os.sep in case_id or "\0" in case_id:
            raise ValueError(f"'{case_id}' cannot be the name of a case")
        return self.folder / case_id

    def _temporary_folder(self) -> Path:
        folder = self.folder / f"{PARTIAL}{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def _stored(self, folder: Path, record: CaseRecord) -> StoredCase:
        return StoredCase(folder, record)

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
        replaced = self._temporary_folder()
        try:
            if folder.exists():
                folder.rename(replaced / "case")
            unfinished.rename(folder)
        finally:
            shutil.rmtree(replaced, ignore_errors=True)
        _sync_folder(self.folder)


class LabelStore(CaseStore):
    """Label maps for cases whose images lie in another store: what self-training adds to the unlabeled ones.

    Args:
        folder: Of the label maps and their records.
        images: Where the images are.
    """

    def __init__(self, folder: Path, images: CaseStore) -> None:
        super().__init__(folder)
        self.images = images

    def write_labels(self, case_id: str, label_zyx: np.ndarray, organs: int, supervised: tuple[int, ...]) -> None:
        """Writes, or replaces, the label map of a case.

        Args:
            label_zyx: Internal indices on the stage grid of the image, uint8 or uint16.
            organs: Number of organs of the dataset.
            supervised: Indices of those that the label map is trusted on.

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
        )
        record = dataclasses.replace(record, channel_minima=image.record.channel_minima)
        _check_write(record, image.image_czyx, label_zyx)
        with self._new_case(case_id) as folder:
            _save_labels(folder, record, label_zyx)
            save_record(folder / "case.json", record)

    def _stored(self, folder: Path, record: CaseRecord) -> StoredCase:
        return StoredCase(folder, record, self.images.open(record.case_id).folder)


_AGAIN = "run flaresemi_plan_and_preprocess again"


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
    counted = _count(label_zyx, len(record.voxels_per_label))
    if counted != record.voxels_per_label:
        raise ValueError(f"voxels_per_label is {record.voxels_per_label}, the label map has {counted}")


def _count(label_zyx: np.ndarray, organs: int) -> tuple[int, ...]:
    total = np.zeros(organs + 1, np.int64)
    for plane in label_zyx:  # bincount makes a 64-bit copy, so plane by plane
        counts = np.bincount(plane.ravel(), minlength=organs + 1)
        if counts.size > organs + 1:
            raise ValueError(f"label index {counts.size - 1} where there are {organs} organs")
        total += counts
    return tuple(int(count) for count in total[1:])


def _sample_voxels(record: CaseRecord, label_zyx: np.ndarray) -> np.ndarray:
    """Up to 10000 voxels of each organ, one after the other, (n, 3); the same on every run."""
    flat = label_zyx.ravel()
    foreground = np.flatnonzero(flat)
    values = flat[foreground]
    chosen = []
    for index, count in enumerate(record.voxels_per_label, start=1):
        voxels = foreground[values == index]
        if count > MAX_CLASS_VOXELS:
            generator = np.random.default_rng([zlib.crc32(record.case_id.encode("utf-8", "surrogateescape")), index])
            voxels = np.sort(generator.choice(voxels, MAX_CLASS_VOXELS, replace=False))
        chosen.append(voxels)
    together = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    return np.stack(np.unravel_index(together, label_zyx.shape), axis=1).astype(np.int32)


def _save_labels(folder: Path, record: CaseRecord, label_zyx: np.ndarray) -> None:
    _save(folder / "label.npy", label_zyx)
    _save(folder / "class_voxels.npy", _sample_voxels(record, label_zyx))


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
