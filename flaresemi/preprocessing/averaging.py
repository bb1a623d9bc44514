"""Logits of several plans, each on a grid of its own, to their mean probabilities on the image's, and to labels."""

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.preprocessing.resampling import ALL_LINEAR, Kind, axes_between, resample_known
from flaresemi.preprocessing.winners import SLAB_BYTES
from flaresemi.system_errors import lacks_gpu_memory

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownLogits:
    """What the networks of one plan say of a part of an image; elsewhere they say background.

    Attributes:
        logits_czyx: Of background and every other index, (C, *region.shape_zyx), on any device.
        region: Where, in stage voxels.
        grid: How the stage's voxels lie in the image.
        kinds: How each axis is brought back to the image's own sampling.
        independent: Whether every channel speaks of one organ by itself (its sigmoid), as in a model of nnU-Net with
            regions; there is none of background then.
        temperature: What the logits are divided by before they become probabilities.
    """

    logits_czyx: torch.Tensor
    region: BoundingBox
    grid: StageGrid
    kinds: tuple[Kind, Kind, Kind] = ALL_LINEAR
    independent: bool = False
    temperature: float = 1.0

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
        if self.temperature != 1.0:
            logits /= self.temperature
        return logits.sigmoid() if self.independent else logits.softmax(dim=0)

    def at(self, voxels: np.ndarray) -> torch.Tensor:
        """The logits of single canonical voxels in `self.box`, (n, 3), as (C, n) float32 on their device."""
        corner, first = np.array(self.box.start), self.grid.body_box.start
        box = self.box.shifted((-first[0], -first[1], -first[2]))
        axes = axes_between(self.region, self.grid.shape_zyx, self.grid.body_box.shape_zyx, self.kinds, box)
        taps = [
            [(axis.index[at, tap], axis.weight[at, tap]) for tap in range(axis.index.shape[1])]
            for axis, at in zip(axes, (voxels - corner).T, strict=True)
        ]
        device = self.logits_czyx.device
        result = torch.zeros((len(self.logits_czyx), len(voxels)), device=device)
        for combination in itertools.product(*taps):
            z, y, x = (torch.from_numpy(index).to(device) for index, _ in combination)
            weight = torch.from_numpy(np.prod([each for _, each in combination], axis=0)).to(device)
            result += self.logits_czyx[:, z, y, x].float() * weight
        return result


def box_of(parts: Sequence[KnownLogits]) -> BoundingBox:
    """The box about all regions, in canonical voxels."""
    whole = parts[0].box
    for part in parts[1:]:
        whole = whole.union(part.box)
    return whole


def mean_probabilities(
    parts: Sequence[KnownLogits], *, axis: int = 0, backwards: bool = False
) -> Iterator[tuple[BoundingBox, torch.Tensor]]:
    """The mean probabilities of several plans in the box about all regions, slab by slab.

    So no array of all classes on all of the image's voxels ever exists. Where a GPU's memory does not do, it goes on in
    main memory.

    Args:
        parts: At least one; all of one image, with the same classes, on one device.
        axis: The canonical axis across which the slabs lie.
        backwards: Whether the last slab comes first.

    Yields:
        A slab in canonical voxels, and (C, *slab.shape_zyx) float32.
    """
    whole, classes = box_of(parts), parts[0].logits_czyx.shape[0]
    sides = list(whole.slices)
    across = sides[axis]
    planes = max(1, SLAB_BYTES // (8 * classes * (math.prod(whole.shape_zyx) // whole.shape_zyx[axis])))
    starts = range(across.start, across.stop, planes)
    for first in reversed(starts) if backwards else starts:
        sides[axis] = slice(first, min(first + planes, across.stop))
        slab = BoundingBox.of_slices(sides)
        mean: torch.Tensor | None = None
        try:
            mean = _mean_in(parts, slab)
        except RuntimeError as problem:
            if not lacks_gpu_memory(problem):
                raise
            logger.info("GPU memory ran out while restoring: done in main memory")
        if mean is None:
            parts = [part.in_main_memory() for part in parts]
            mean = _mean_in(parts, slab)
        yield slab, mean


@torch.no_grad()
def _mean_in(parts: Sequence[KnownLogits], slab: BoundingBox) -> torch.Tensor:
    if len(parts) == 1:
        return parts[0].probabilities(slab)
    total = torch.zeros((len(parts[0].logits_czyx), *slab.shape_zyx), device=parts[0].logits_czyx.device)
    if not parts[0].independent:
        total[0] = len(parts)
    for part in parts:
        inside = part.box.intersection(slab)
        if inside is None:
            continue
        place = inside.shifted((-slab.start[0], -slab.start[1], -slab.start[2])).slices
        if not part.independent:
            total[(0, *place)] -= 1.0  # there it speaks for itself
        total[(slice(None), *place)] += part.probabilities(inside)
    return total.div_(len(parts))


def labels_from_average(parts: Sequence[KnownLogits]) -> tuple[np.ndarray, BoundingBox]:
    """The index of the largest mean probability of several plans; ties go to the lower one.

    Args:
        parts: As of `mean_probabilities`.

    Returns:
        Internal indices in the box about all regions, uint8 (up to 256 classes) or uint16; and that box, in canonical
        voxels.
    """
    whole, classes = box_of(parts), parts[0].logits_czyx.shape[0]
    result = np.zeros(whole.shape_zyx, np.uint8 if classes <= 256 else np.uint16)
    for slab, probabilities in mean_probabilities(parts):
        planes = slice(slab.start[0] - whole.start[0], slab.stop[0] - whole.start[0])
        result[planes] = probabilities.argmax(dim=0).cpu().numpy()
    return result, whole
