"""One preprocessed case: its record, its memory-mapped arrays, and how a patch of them is read.

By boxes of our own: `crop_and_pad_nd` of `acvl_utils` reads a patch 1.2 to 5 times as slowly, has one padding value for
all channels and 0 for what lies outside altogether, and brings blosc2 into every worker (0.25 s, two threads).
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np

from flaresemi.files import map_array, read_box
from flaresemi.geometry import BoundingBox, IntTriple, StageGrid
from flaresemi.ranges import Count, Range

SCHEMA_VERSION = 1

#: Voxels kept per organ for drawing patches on it. Chosen: many more than any training draws from one case.
MAX_CLASS_VOXELS = 10_000


#: Index of an organ inside flaresemi, and what float16 holds.
Organ = Annotated[int, Range(1, 2**16)]
StoredIntensity = Annotated[float, Range(-65504, 65504)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaseRecord:
    """The record of one preprocessed case.

    Attributes:
        preprocessing_hash: Of what decided the arrays; a case with another hash is made anew.
        grid: How the arrays lie in the canonical image.
        organs_box: Box of all that may be an organ (organs, and what nobody annotated), in stage voxels; None where
            there is nothing.
        supervised: The organs (1 and up) that the label map annotates.
        voxels_per_label: Stage voxels per index of the label map, from 1 on: per organ, unless organs are regions;
            empty when unlabeled.
        has_label: Whether there is a label map.
        source_hash: Of the files that the case was prepared from; empty where that is not known.
        channel_minima: Lowest stored value per channel (air), which pads patches that reach outside. Filled in on
            writing.
        image_hash: Of the stored image, so that a later change is noticed; empty where it lies elsewhere. Filled in on
            writing.
        label_hash: The same of the label map; empty without one.
        label_source: Of the file that a pseudo-label came from; empty where it was drawn here.
        annotated_voxels: Voxels that somebody annotated, as an organ or as background; None: all. The others have the
            index behind the last one.
    """

    schema_version: int = SCHEMA_VERSION
    case_id: str
    preprocessing_hash: str
    grid: StageGrid
    organs_box: BoundingBox | None
    supervised: tuple[Organ, ...]
    voxels_per_label: tuple[Count, ...]
    has_label: bool
    source_hash: str = ""
    channel_minima: tuple[StoredIntensity, ...] = ()
    image_hash: str = ""
    label_hash: str = ""
    label_source: str = ""
    annotated_voxels: Count | None = None

    @property
    def ignored(self) -> int:
        """Index of the voxels that nobody annotated."""
        return len(self.voxels_per_label) + 1

    @staticmethod
    def unlabeled(*, case_id: str, preprocessing_hash: str, grid: StageGrid, source_hash: str = "") -> "CaseRecord":
        """The record of a case without a label map."""
        return CaseRecord(
            case_id=case_id,
            preprocessing_hash=preprocessing_hash,
            grid=grid,
            organs_box=None,
            supervised=(),
            voxels_per_label=(),
            has_label=False,
            source_hash=source_hash,
        )

    @staticmethod
    def labeled(
        *,
        case_id: str,
        preprocessing_hash: str,
        grid: StageGrid,
        label_zyx: np.ndarray,
        organs: int,
        supervised: tuple[int, ...],
        source_hash: str = "",
    ) -> "CaseRecord":
        """The record of a case with a label map; its box and voxels are counted here.

        Args:
            label_zyx: Internal indices, on the stage grid.
            organs: Highest index: the number of organs of the dataset, unless they are regions.
            supervised: The organs that this case annotates.
        """
        *counts, ignored = count_voxels(label_zyx, organs)
        return CaseRecord(
            case_id=case_id,
            preprocessing_hash=preprocessing_hash,
            grid=grid,
            organs_box=BoundingBox.of_mask(label_zyx != 0),
            supervised=supervised,
            voxels_per_label=tuple(counts),
            has_label=True,
            source_hash=source_hash,
            annotated_voxels=label_zyx.size - ignored if ignored else None,
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
        self.image_czyx: np.ndarray = map_array(self.image_folder / "image.npy")
        self.label_zyx: np.ndarray | None = None
        self._class_voxels: np.ndarray | None = None
        if record.has_label:
            self.label_zyx = map_array(folder / "label.npy")
            self._class_voxels = map_array(folder / "class_voxels.npy")
        self._check()

    def __reduce__(self) -> tuple:
        return StoredCase, (
            self.folder,
            self.record,
            self.image_folder,
        )  # a pickled memory map would carry the whole volume

    def class_voxels(self, index: int) -> np.ndarray:
        """Stage voxels of one index of the label map (1 and up): all, or a fixed sample of 10000; (n, 3), (Z, Y, X)."""
        if self._class_voxels is None:
            return np.empty((0, 3), np.int32)
        sizes = sample_sizes(self.record)
        start = sum(sizes[: index - 1])
        return np.asarray(self._class_voxels[start : start + sizes[index - 1]])

    def annotated_sample(self) -> np.ndarray:
        """Stage voxels that somebody annotated, as whatever, up to 10000; (n, 3). None where nothing is ignored."""
        if self._class_voxels is None or self.record.annotated_voxels is None:
            return np.empty((0, 3), np.int32)
        return np.asarray(self._class_voxels[len(self._class_voxels) - sample_sizes(self.record)[-1] :])

    def read_patch(
        self, start_zyx: IntTriple, shape_zyx: IntTriple, dtype: type[np.floating] = np.float32
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Reads a box of voxels, which may reach outside the case or lie there altogether.

        Outside, the image has its channel's lowest value (air) and the label map background; where it has ignored
        voxels, those outside are, too: else borders would outweigh what is annotated.

        Args:
            dtype: Of the image; float16, as which it is stored, loses nothing.

        Returns:
            The image, (C, *shape), and the labels, (*shape); None when unlabeled. Both may be written to.
        """
        wanted = BoundingBox.whole(shape_zyx).shifted(start_zyx)
        inside = wanted.clipped(self.record.grid.shape_zyx)
        image = np.empty((self.image_czyx.shape[0], *shape_zyx), dtype)
        label = None if self.label_zyx is None else np.full(shape_zyx, self.outside_label, self.label_zyx.dtype)
        if inside != wanted:
            image[...] = np.reshape(self.record.channel_minima, (-1, 1, 1, 1))
        if inside is not None:
            z, y, x = start_zyx
            target = inside.shifted((-z, -y, -x)).slices
            image[:, *target] = read_box(self.image_czyx, inside.slices)
            if self.label_zyx is not None and label is not None:
                label[target] = read_box(self.label_zyx, inside.slices)
        return image, label

    @property
    def outside_label(self) -> int:
        """Index of what lies outside the case."""
        return 0 if self.record.annotated_voxels is None else self.record.ignored

    def _check(self) -> None:
        shape = self.record.grid.shape_zyx
        image, label, voxels = self.image_czyx, self.label_zyx, self._class_voxels
        if image.dtype != np.float16 or image.shape != (len(self.record.channel_minima), *shape):
            raise ValueError(f"image.npy holds {image.dtype} {image.shape}, its record says {shape}")
        if label is not None and (label.dtype.kind != "u" or label.shape != shape):
            raise ValueError(f"label.npy holds {label.dtype} {label.shape}, its record says {shape}")
        expected = sum(sample_sizes(self.record))
        if voxels is not None and (voxels.shape != (expected, 3) or voxels.dtype != np.int32):
            raise ValueError(f"class_voxels.npy holds {voxels.dtype} {voxels.shape}, its record says {expected} voxels")


def sample_sizes(record: CaseRecord) -> list[int]:
    """How many voxels are kept of each index, and, where voxels are ignored, of all that are annotated."""
    counts = (
        record.voxels_per_label
        if record.annotated_voxels is None
        else (*record.voxels_per_label, record.annotated_voxels)
    )
    return [min(count, MAX_CLASS_VOXELS) for count in counts]


def count_voxels(label_zyx: np.ndarray, organs: int) -> tuple[int, ...]:
    """Voxels of each index from 1 on, and of those that nobody annotated, whose index is the one behind the last.

    Raises:
        ValueError: an index is larger.
    """
    total = np.zeros(organs + 2, np.int64)
    for plane in label_zyx:  # bincount makes a 64-bit copy, so plane by plane
        counts = np.bincount(plane.ravel(), minlength=organs + 2)
        if counts.size > organs + 2:
            raise ValueError(f"label index {counts.size - 1} where there are {organs} organs")
        total += counts
    return tuple(int(count) for count in total[1:])
