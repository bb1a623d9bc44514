"""Logits of a stage straight to the labels of another sampling: only classes that can win are resampled."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from flaresemi.geometry import BoundingBox, IntTriple, StageGrid
from flaresemi.preprocessing.resampling import ALL_LINEAR, AxisWeights, Kind, axes_between, resample_known

#: Working memory of one slab of a label map that is made from logits. Chosen: far below what a network needs.
SLAB_BYTES = 64 << 20

#: On a GPU a slab may take so many times as much: for each class of each slab, Python takes 150 µs to say what is to be
#: done, in which a GPU resamples more than a slab of a CPU's. Chosen.
_GPU_SLABS = 4

#: Larger label maps come down from a GPU part by part. Chosen: a CT of 512×512×1000.
_DEVICE_LABEL_BYTES = 256 << 20

#: Edge of the cells, in voxels, that classes are ruled out by.
_CELL = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RestoredLabels:
    """What the networks of one plan make of a part of an image, on its own voxels.

    Attributes:
        indices_zyx: Label indices, (*box.shape_zyx).
        box: Where, in canonical voxels.
        grid: How the stage's voxels lie in the image.
    """

    indices_zyx: np.ndarray
    box: BoundingBox
    grid: StageGrid


class GrowingLabels:
    """Labels that are made from logits as the planes of these come, from the first to the last.

    They are resampled as `kinds` say, class by class with a running maximum; ties go to the lower index. That gives the
    labels of all resampled logits at once, in bounded memory. Of the planes that came, only those are kept that labels
    to come are made from, too.

    Args:
        logits_box: Where the logits lie in the stage grid; its edges go on beyond it.
        stage_shape_zyx: Shape of the stage grid.
        canonical_shape_zyx: Shape of the body crop at the image's own sampling.
        out_box: The part of the body crop to label.
        kinds: How each axis is resampled.
        painted: The index that each channel writes where it is above 0, over what those before it wrote; where none is,
            0. Empty: the largest channel wins, and is its own index.
    """

    def __init__(
        self,
        logits_box: BoundingBox,
        stage_shape_zyx: IntTriple,
        canonical_shape_zyx: IntTriple,
        out_box: BoundingBox,
        kinds: tuple[Kind, Kind, Kind] = ALL_LINEAR,
        painted: Sequence[int] = (),
    ) -> None:
        self._axes = axes_between(logits_box, stage_shape_zyx, canonical_shape_zyx, kinds, out_box)
        self._painted = painted
        self._lowest, self._highest = self._axes[0].index.min(axis=1), self._axes[0].index.max(axis=1)
        self._shape = out_box.shape_zyx
        self._indices: np.ndarray | None = None
        self._on_device: torch.Tensor | None = None  # what is to come into `_indices`, all at once
        self._first_there = 0  # planes before this one are in `_indices` already
        self._made = 0
        self._came = 0
        self._kept: torch.Tensor | None = None  # the last planes that came

    @property
    def indices_zyx(self) -> np.ndarray:
        """All labels, when all planes have come: uint8 (up to 256 classes) or uint16.

        Raises:
            ValueError: planes are missing.
        """
        if self._indices is None or self._made < self._shape[0]:
            raise ValueError(f"logits are known for {self._made} of {self._shape[0]} planes of labels")
        self._bring_down()
        return self._indices

    def _bring_down(self) -> None:
        """Labels that were left on the device of the logits, to main memory."""
        if self._on_device is not None and self._indices is not None:
            there = slice(self._first_there, self._made)
            self._indices[there] = self._on_device[there].cpu().numpy()
            self._on_device = None

    @torch.no_grad()
    def add(self, planes_czyx: torch.Tensor) -> None:
        """Takes the next planes of the logits; where that fails, nothing has changed.

        Args:
            planes_czyx: One channel per class, any float type, on any device.
        """
        if self._indices is None:
            most = max(self._painted, default=len(planes_czyx) - 1)
            self._indices = np.zeros(self._shape, np.uint8 if most < 256 else np.uint16)
        first, known = self._came, self._came + planes_czyx.shape[1]
        ready = int(np.searchsorted(self._highest, known))
        # Labels between what came before and what comes now are made from both, the others from the new planes alone.
        between = min(int(np.searchsorted(self._lowest, first)), ready)
        if between > self._made:
            end = int(self._highest[between - 1]) + 1
            both = self._joined(planes_czyx[:, : end - first])
            self._make(both, end - both.shape[1], slice(self._made, between))
        self._make(planes_czyx, first, slice(max(self._made, between), ready))
        self._kept = self._still_needed(planes_czyx, first, ready)
        self._made, self._came = max(ready, self._made), known

    def _joined(self, planes_czyx: torch.Tensor) -> torch.Tensor:
        """The planes that were kept, and those that follow."""
        if self._kept is None:
            return planes_czyx
        return torch.cat([self._kept.to(planes_czyx.device), planes_czyx], dim=1)

    def _still_needed(self, planes_czyx: torch.Tensor, first: int, ready: int) -> torch.Tensor | None:
        if ready == self._shape[0]:
            return None
        needed = first + planes_czyx.shape[1] - int(self._lowest[ready])  # of the last planes
        if needed <= planes_czyx.shape[1]:
            return planes_czyx[:, planes_czyx.shape[1] - max(needed, 0) :].clone()
        return self._joined(planes_czyx)[:, -needed:].clone()

    def _make(self, planes_czyx: torch.Tensor, first: int, made: slice) -> None:
        """Makes some planes of the labels from planes that hold all that they need, the first of which is `first`."""
        if made.stop <= made.start or self._indices is None:
            return
        whole = self._axes[0]
        axis = AxisWeights(whole.index[made] - first, whole.weight[made], whole.ratio)
        bounded = all(axis.index.shape[1] <= 2 * _CELL for axis in self._axes)
        possible = _possible_cells(planes_czyx, above_zero=bool(self._painted)) if bounded else None
        _, height, width = self._shape
        slab_bytes = SLAB_BYTES * (_GPU_SLABS if _stays(planes_czyx.device) else 1)
        planes = max(1, slab_bytes // (16 * height * width))
        for start in range(made.start, made.stop, planes):
            slab = slice(start, min(start + planes, made.stop))
            part = axis.part(slice(slab.start - made.start, slab.stop - made.start))
            self._put(slab, _winning(planes_czyx, (part, *self._axes[1:]), possible, self._painted))

    def _put(self, slab: slice, labels_zyx: torch.Tensor) -> None:
        """Notes labels; those of a GPU stay there while more are made, unless they are many."""
        if self._indices is None:
            return
        if _stays(labels_zyx.device) and math.prod(self._shape) * labels_zyx.element_size() <= _DEVICE_LABEL_BYTES:
            if self._on_device is None:
                self._on_device, self._first_there = labels_zyx.new_empty(self._shape), slab.start
            self._on_device[slab] = labels_zyx
            return
        self._bring_down()
        self._indices[slab] = labels_zyx.cpu().numpy().astype(self._indices.dtype, copy=False)


def _stays(device: torch.device) -> bool:
    return device.type != "cpu"


def _winning(
    logits_czyx: torch.Tensor, axes: tuple[AxisWeights, ...], possible: np.ndarray | None, painted: Sequence[int]
) -> torch.Tensor:
    """Index of the largest logit, or what is painted; computed only where it is possible, unless that is None."""
    shape = tuple(len(axis.index) for axis in axes)
    best = torch.full(shape, -math.inf, device=logits_czyx.device)
    most = max(painted, default=len(logits_czyx) - 1)
    labels = torch.zeros(shape, dtype=torch.uint8 if most < 256 else torch.int32, device=best.device)
    planes = slice(int(axes[0].index.min()) // _CELL, int(axes[0].index.max()) // _CELL + 1)
    for index, logits_zyx in enumerate(logits_czyx):
        region = tuple(slice(0, size) for size in shape)
        if possible is not None:
            cells = BoundingBox.of_mask(possible[index, planes])
            if cells is None:
                continue
            known = (slice(s.start * _CELL, s.stop * _CELL) for s in cells.shifted((planes.start, 0, 0)).slices)
            region = tuple(axis.voxels_from(part) for axis, part in zip(axes, known, strict=True))
            if any(side.stop <= side.start for side in region):
                continue
        value = resample_known(logits_zyx, tuple(axis.part(side) for axis, side in zip(axes, region, strict=True)))
        if painted:
            labels[region].masked_fill_(value > 0, painted[index])
            continue
        better = value > best[region]
        labels[region].masked_fill_(better, index)
        torch.maximum(best[region], value, out=best[region])
    return labels


def _possible_cells(logits_czyx: torch.Tensor, *, above_zero: bool = False) -> np.ndarray:
    """For every class, the cells of 2×2×2 voxels about which it may be the largest anywhere after interpolation.

    Or, with `above_zero`, above 0.

    What is interpolated lies between the extremes of its taps. So a class cannot win where, over a cell and its
    neighbors, its highest logit is below another's lowest. Most organs are possible in a small part of the volume.

    Returns:
        Bool, (C, *cells).
    """
    if above_zero:
        return torch.stack([_cell_maximum(logits_zyx) > 0 for logits_zyx in logits_czyx]).cpu().numpy()
    floor = -_cell_maximum(-logits_czyx[0])
    for logits_zyx in logits_czyx[1:]:
        floor = torch.maximum(floor, -_cell_maximum(-logits_zyx))
    return torch.stack([_cell_maximum(logits_zyx) >= floor for logits_zyx in logits_czyx]).cpu().numpy()


def _cell_maximum(volume_zyx: torch.Tensor) -> torch.Tensor:
    """Maximum over each cell of 2×2×2 voxels and the cells next to it."""
    for dimension in range(3):
        before = (slice(None),) * dimension
        cells = volume_zyx[(*before, slice(0, None, _CELL))].clone()
        odd = volume_zyx[(*before, slice(1, None, _CELL))]
        paired = cells.narrow(dimension, 0, odd.shape[dimension])
        torch.maximum(paired, odd, out=paired)
        volume_zyx = cells.clone()
        pairs = cells.shape[dimension] - 1
        for target, neighbor in ((0, 1), (1, 0)):
            part = volume_zyx.narrow(dimension, target, pairs)
            torch.maximum(part, cells.narrow(dimension, neighbor, pairs), out=part)
    return volume_zyx
