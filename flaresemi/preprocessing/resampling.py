"""Between samplings of one extent: images and label maps.

Edges are aligned (voxel i of n covers [i, i + 1] / n of the extent), so a shape says everything. Resampling is
separable: one weight matrix per axis. Shrinking widens the kernel by the factor, so that nothing is skipped
(antialiasing); torch's trilinear interpolation does not do that. Beyond the edges the outermost voxels go on.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from scipy import ndimage

from flaresemi.geometry import BoundingBox, IntTriple

#: `linear` and `cubic` widen where an axis shrinks; `interpolate` (linear) and `nearest` do not.
Kind = Literal["linear", "cubic", "interpolate", "nearest"]

ALL_LINEAR: tuple[Kind, Kind, Kind] = ("linear", "linear", "linear")


@torch.no_grad()
def resample_part(
    part_czyx: np.ndarray,
    part_box: BoundingBox,
    from_shape: IntTriple,
    to_shape: IntTriple,
    kind: Kind = "linear",
    box: BoundingBox | None = None,
) -> np.ndarray:
    """Resamples an image to another shape of the same extent, or computes only a part of that.

    Args:
        part_czyx: The part of the image that is known, float32, (C, *part_box.shape_zyx).
        part_box: Where that lies; what lies beyond it is taken as its edge, and not needed with `input_support`.
        from_shape: Shape of the whole image.
        to_shape: Shape of the whole result.
        kind: `linear`, or `cubic` (Catmull-Rom, which may overshoot).
        box: Part of the result to compute; equal to the same part of the whole up to rounding.

    Returns:
        float32, (C, *box.shape_zyx). Axes that keep their length keep their values exactly.
    """
    box = BoundingBox.whole(to_shape) if box is None else box
    result = np.empty((part_czyx.shape[0], *box.shape_zyx), np.float32)
    axes = axes_between(part_box, from_shape, to_shape, (kind,) * 3, box)
    for channel, target in zip(part_czyx, result, strict=True):
        known = channel if channel.flags.writeable and min(channel.strides) > 0 else channel.copy()  # as torch wants it
        target[...] = resample_known(torch.from_numpy(known), axes).numpy()
    return result


def input_support(from_shape: IntTriple, to_shape: IntTriple, kind: Kind, box: BoundingBox) -> BoundingBox:
    """The input voxels that a part of the result is made from."""
    axes = axes_between(BoundingBox.whole(from_shape), from_shape, to_shape, (kind,) * 3, box)
    return BoundingBox.of_slices(axis.span for axis in axes)


def resample_labels(indices_zyx: np.ndarray, shape_zyx: IntTriple, ignored: int | None = None) -> np.ndarray:
    """Resamples a label map: each class by linear interpolation of its mask, then the largest; ties to the lower index.

    Only classes that are present are computed, each where it can win. A voxel is ignored where none of the input's
    annotated ones lies in it (on a finer grid: where it lies in an ignored one), so that lines and slices of a voxel's
    width are never lost; elsewhere ignored voxels have no say.

    Args:
        indices_zyx: uint8 or uint16, (Z, Y, X).
        shape_zyx: Shape of the result.
        ignored: Index of voxels that nobody annotated; None: there are none.
    """
    shape: IntTriple = indices_zyx.shape
    if shape == tuple(shape_zyx):
        return indices_zyx.copy()
    regions = {
        index: _reach(BoundingBox.of_slices(found), shape, shape_zyx)
        for index, found in enumerate(ndimage.find_objects(indices_zyx), start=1)
        if found is not None
    }
    if ignored is not None and regions.pop(ignored, None) is not None:
        result = _largest_class(indices_zyx, shape_zyx, regions)
        result[~_any_within(indices_zyx != ignored, shape_zyx)] = ignored
        return result
    return _largest_class(indices_zyx, shape_zyx, regions)


def _any_within(mask_zyx: np.ndarray, shape_zyx: IntTriple) -> np.ndarray:
    """For each voxel of another grid, whether the center of a voxel of a mask lies in it, or its own center in one."""
    for axis, to in enumerate(shape_zyx):
        size = mask_zyx.shape[axis]
        if to < size:  # voxel i has those from i * size / to - 1/2 on, rounded up
            mask_zyx = np.logical_or.reduceat(mask_zyx, (2 * np.arange(to) * size + to - 1) // (2 * to), axis=axis)
        else:
            mask_zyx = mask_zyx.take((2 * np.arange(to) + 1) * size // (2 * to), axis=axis)
    return mask_zyx


def _largest_class(indices_zyx: np.ndarray, shape_zyx: IntTriple, regions: Mapping[int, BoundingBox]) -> np.ndarray:
    """The class of the largest weight, of background and those that have a region of the result."""
    result = np.zeros(shape_zyx, indices_zyx.dtype)
    if not regions:
        return result
    union = next(iter(regions.values()))
    for region in regions.values():
        union = union.union(region)
    best = _class_weight(indices_zyx, 0, shape_zyx, union)
    labels = result[union.slices]
    for index, region in sorted(regions.items()):
        inside = region.shifted((-union.start[0], -union.start[1], -union.start[2])).slices
        weight = _class_weight(indices_zyx, index, shape_zyx, region)
        better = weight > best[inside]
        labels[inside][better] = index
        np.maximum(best[inside], weight, out=best[inside])
    return result


@dataclasses.dataclass(frozen=True, slots=True)
class AxisWeights:
    """How the voxels of one axis of the result are made: the sum over k of weight[:, k] × input[index[:, k]].

    Attributes:
        index: (n, k), voxels of the part of the input that is at hand.
        weight: (n, k), float32; each row sums to 1.
        ratio: How much longer the axis becomes.
        whole: What this is a part of, and the first voxel of the part.
    """

    index: np.ndarray
    weight: np.ndarray
    ratio: float
    whole: "tuple[AxisWeights, int] | None" = None
    _matrices: dict[torch.device, torch.Tensor] = dataclasses.field(default_factory=dict)

    def part(self, wanted: slice) -> "AxisWeights":
        """The same for some voxels of the result only."""
        whole, first = self.whole or (self, 0)
        return AxisWeights(self.index[wanted], self.weight[wanted], self.ratio, (whole, first + (wanted.start or 0)))

    def voxels_from(self, known: slice) -> slice:
        """The voxels of the result whose middle tap is one of these input voxels."""
        middle = self.index[:, (self.index.shape[1] - 1) // 2]
        return slice(int(np.searchsorted(middle, known.start)), int(np.searchsorted(middle, known.stop)))

    @property
    def span(self) -> slice:
        """The input voxels that are used."""
        return slice(int(self.index.min()), int(self.index.max()) + 1)

    @property
    def is_identity(self) -> bool:
        """Whether the voxels of the span are simply taken; beyond known voxels the last one is taken repeatedly."""
        return self.index.shape[1] == 1 and bool((np.diff(self.index[:, 0]) == 1).all())

    def matrix(self, device: torch.device) -> torch.Tensor:
        """The weights as a dense matrix, (n, length of the span)."""
        return self._matrix(self.span) if device.type == "cpu" else self._part_of_matrix(device)

    def _part_of_matrix(self, device: torch.device) -> torch.Tensor:
        """The same out of that of the whole axis, which is made once: bringing one to a GPU holds up all that is under
        way there."""
        whole, first = self.whole or (self, 0)
        if device not in whole._matrices:
            whole._matrices[device] = whole._matrix(slice(0, int(whole.index.max()) + 1)).to(device)
        return whole._matrices[device][first : first + len(self.index), self.span]

    def _matrix(self, span: slice) -> torch.Tensor:
        matrix = np.zeros((self.index.shape[0], span.stop - span.start), np.float32)
        np.add.at(matrix, (np.arange(self.index.shape[0])[:, None], self.index - span.start), self.weight)
        return torch.from_numpy(matrix)


def axes_between(
    part_box: BoundingBox, from_shape: IntTriple, to_shape: IntTriple, kinds: tuple[Kind, ...], box: BoundingBox
) -> tuple[AxisWeights, ...]:
    """How a part of another sampling, `box`, is made where `part_box` of the one at hand is known; axis by axis."""
    sizes = zip(from_shape, to_shape, kinds, box.slices, part_box.slices, strict=True)
    return tuple(axis_weights(*each) for each in sizes)


def axis_weights(from_size: int, to_size: int, kind: Kind, wanted: slice, known: slice) -> AxisWeights:
    """How the `wanted` voxels of an axis are made from the `known` ones of another sampling of it."""
    positions = np.arange(wanted.start, wanted.stop)
    step = from_size / to_size
    center = (positions + 0.5) * step - 0.5
    if from_size == to_size:
        index, weight = positions[:, None], np.ones((positions.size, 1))
    elif kind == "nearest":
        index, weight = np.floor(center + 0.5).astype(np.int64)[:, None], np.ones((positions.size, 1))
    else:
        width = 1.0 if kind == "interpolate" else max(step, 1.0)
        radius = width * (2.0 if kind == "cubic" else 1.0)
        first = np.floor(center - radius).astype(np.int64) + 1
        index = first[:, None] + np.arange(math.ceil(2 * radius))
        kernel = _catmull_rom if kind == "cubic" else _triangle
        weight = kernel((index - center[:, None]) / width)
        weight /= weight.sum(axis=1, keepdims=True)
    index = np.clip(index, 0, from_size - 1)
    index = np.clip(index, known.start, known.stop - 1) - known.start
    return AxisWeights(index, weight.astype(np.float32), to_size / from_size)


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(distance), 0.0)


def _catmull_rom(distance: np.ndarray) -> np.ndarray:
    """Source: R. Keys, Cubic convolution interpolation for digital image processing, 1981, with a = -1/2."""
    d = np.abs(distance)
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return np.where(d < 1.0, near, np.where(d < 2.0, far, 0.0))


def resample_known(volume_zyx: torch.Tensor, axes: tuple[AxisWeights, ...]) -> torch.Tensor:
    """Applies the three axes to the known part of a volume; float32 on the volume's device."""
    volume = volume_zyx[tuple(axis.span for axis in axes)].float()
    with torch.autocast(volume.device.type, enabled=False):  # a caller's mixed precision is not meant for this
        # The axis that shrinks most comes first: what follows has less to do.
        for dimension in sorted(range(3), key=lambda d: (axes[d].ratio, -d)):
            if not axes[dimension].is_identity:
                volume = apply_axis(volume, dimension, axes[dimension])
    return volume


def apply_axis(volume: torch.Tensor, dimension: int, axis: AxisWeights) -> torch.Tensor:
    """Resamples one axis of a volume, which holds the weights' span of it and no more."""
    if dimension == 0 and volume.device.type == "cpu":
        return _combine_planes(volume, axis.index - axis.span.start, axis.weight)
    matrix = axis.matrix(volume.device)
    if dimension == 2:
        return volume @ matrix.T
    if dimension == 1:
        return matrix @ volume
    return (matrix @ volume.reshape(volume.shape[0], -1)).reshape(-1, *volume.shape[1:])


def _combine_planes(volume: torch.Tensor, index: np.ndarray, weight: np.ndarray) -> torch.Tensor:
    """Weighted sums of planes one by one, which on a CPU is faster than a matrix that is nearly all zeros."""
    result = volume.new_empty((index.shape[0], *volume.shape[1:]))
    for plane, indices, weights in zip(result, index.tolist(), weight.tolist(), strict=True):
        if len(indices) == 2:
            torch.lerp(volume[indices[0]], volume[indices[1]], weights[1], out=plane)
            continue
        torch.mul(volume[indices[0]], weights[0], out=plane)
        for i, w in zip(indices[1:], weights[1:], strict=True):
            if w:
                plane.add_(volume[i], alpha=w)
    return result


def _reach(box: BoundingBox, from_shape: IntTriple, to_shape: IntTriple) -> BoundingBox:
    """The voxels of the result that a box of the input has any weight in (or a few more)."""
    reach = tuple(math.ceil(max(a / b, 1.0)) for a, b in zip(from_shape, to_shape, strict=True))
    grown = BoundingBox.of_slices(
        slice(max(side.start - r, 0), min(side.stop + r, size))
        for side, r, size in zip(box.slices, reach, from_shape, strict=True)
    )
    return grown.rescaled(from_shape, to_shape)


def _class_weight(indices_zyx: np.ndarray, index: int, shape_zyx: IntTriple, box: BoundingBox) -> np.ndarray:
    from_shape: IntTriple = indices_zyx.shape
    support = input_support(from_shape, shape_zyx, "linear", box)
    mask = (indices_zyx[support.slices] == index).astype(np.float32)
    return resample_part(mask[None], support, from_shape, shape_zyx, "linear", box)[0]
