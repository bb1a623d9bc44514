"""Logits of several plans, each on a grid of its own, to the labels of their mean probabilities on the image's."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.preprocessing.resampling import ALL_LINEAR, SLAB_BYTES, Kind, axes_between, resample_known


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownLogits:
    """What the networks of one plan say of a part of an image; elsewhere they say background.

    Attributes:
        logits_czyx: Of background and every other index, (C, *region.shape_zyx), on any device.
        region: Where, in stage voxels.
        grid: How the stage's voxels lie in the image.
        kinds: How each axis is brought back to the image's own sampling.
    """

    logits_czyx: torch.Tensor
    region: BoundingBox
    grid: StageGrid
    kinds: tuple[Kind, Kind, Kind] = ALL_LINEAR

    @property
    def box(self) -> BoundingBox:
        """Where they lie in the image, in canonical voxels."""
        return self.grid.to_canonical(self.region)

    def in_main_memory(self) -> "KnownLogits":
        """The same on the CPU."""
        return dataclasses.replace(self, logits_czyx=self.logits_czyx.cpu())

    def probabilities(self, box: BoundingBox) -> torch.Tensor:
        """Those in a part of `self.box`, (C, *box.shape_zyx) float32: logits are resampled, then softmax."""
        z, y, x = self.grid.body_box.start
        axes = axes_between(
            self.region, self.grid.shape_zyx, self.grid.body_box.shape_zyx, self.kinds, box.shifted((-z, -y, -x))
        )
        logits = self.logits_czyx.new_empty((len(self.logits_czyx), *box.shape_zyx), dtype=torch.float32)
        for target, logits_zyx in zip(logits, self.logits_czyx, strict=True):
            target.copy_(resample_known(logits_zyx, axes))
        return logits.softmax(dim=0)


@torch.no_grad()
def labels_from_average(parts: Sequence[KnownLogits]) -> tuple[np.ndarray, BoundingBox]:
    """The index of the largest mean probability of several plans; ties go to the lower one.

    Slab by slab, so that no array of all classes on all of the image's voxels ever exists.

    Args:
        parts: At least one; all of one image, with the same classes, on one device.

    Returns:
        Internal indices in the box about all regions, uint8 (up to 256 classes) or uint16; and that box, in canonical
        voxels.
    """
    whole = parts[0].box
    for part in parts[1:]:
        whole = whole.union(part.box)
    classes, device = parts[0].logits_czyx.shape[0], parts[0].logits_czyx.device
    result = np.zeros(whole.shape_zyx, np.uint8 if classes <= 256 else np.uint16)
    depth, height, width = whole.shape_zyx
    planes = max(1, SLAB_BYTES // (8 * classes * height * width))
    for first in range(0, depth, planes):
        last = min(first + planes, depth)
        _, rows, columns = whole.slices
        slab = BoundingBox.of_slices((slice(whole.start[0] + first, whole.start[0] + last), rows, columns))
        total = torch.zeros((classes, *slab.shape_zyx), device=device)
        total[0] = len(parts)
        for part in parts:
            inside = part.box.intersection(slab)
            if inside is None:
                continue
            place = inside.shifted((-slab.start[0], -slab.start[1], -slab.start[2])).slices
            total[(0, *place)] -= 1.0  # there it speaks for itself
            total[(slice(None), *place)] += part.probabilities(inside)
        result[first:last] = total.argmax(dim=0).cpu().numpy()
    return result, whole
