"""A prediction, and how it becomes a file on the input's grid."""

import dataclasses
from pathlib import Path

import numpy as np

from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import write_label_map
from flaresemi.labels import LabelSet
from flaresemi.planning.findings import Finding


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segmentation:
    """The organs of one image.

    Attributes:
        indices_zyx: Organ indices on the whole canonical grid of the image; 0 is background.
        labels: The organs.
        source: The grid of the file that the image came from.
        findings: Reasons not to trust it: warnings about the image.
        notes: Fallbacks, repairs and retreats that a person should know of.
        seconds: Time per step, in order: read, body, coarse, fine, restore, write; only those that were taken.
    """

    indices_zyx: np.ndarray
    labels: LabelSet
    source: SourceGrid
    notes: tuple[str, ...]
    seconds: dict[str, float]
    findings: tuple[Finding, ...] = ()

    @property
    def values_zyx(self) -> np.ndarray:
        """The label map with the user's values, on the canonical grid."""
        return self.labels.to_values(self.indices_zyx)

    @property
    def file_array(self) -> np.ndarray:
        """The label map with the user's values, axes ordered and directed as in the file, (Z, Y, X) as ITK has it."""
        return np.ascontiguousarray(self.source.to_file(self.values_zyx))

    def mask_in_file(self, organ: int) -> np.ndarray:
        """Where an organ (1 and up) is, bool, axes ordered and directed as in the file."""
        return np.ascontiguousarray(self.source.to_file(self.labels.mask(self.indices_zyx, organ)))


def write_segmentation(path: Path, segmentation: Segmentation) -> None:
    """Writes a segmentation on exactly the grid of its image, with the user's values, atomically.

    Raises:
        ImageError: the file format cannot hold it.
    """
    write_label_map(path, segmentation.values_zyx, segmentation.source)
