"""Resampling as nnU-Net v2 does it: cubic B-splines through the voxels, without widening where an axis shrinks.

Where voxels are long (`separate_axis`), slices are resampled one by one, and along that axis the nearest one is taken.
nnU-Net asks scikit-image for it, which asks scipy, which sums 64 products for every voxel; the same numbers come axis
by axis from 4 products each, in single precision and a part of the memory.

Source: nnunetv2/preprocessing/resampling/default_resampling.py (nnU-Net 2.8.1).
"""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from flaresemi.geometry import FloatTriple, IntTriple
from flaresemi.labels import count_values
from flaresemi.preprocessing.resampling import AxisWeights, Kind, apply_axis, axis_weights

#: Spacing of one axis, in spacings of the finest, from which slices are resampled one by one.
ANISOTROPY = 3.0

#: Voxels of a label map that are made at once. Chosen: a hundred megabytes of work.
_SLAB_VOXELS = 1 << 20

#: What scipy puts around an image before it looks for the coefficients of the spline.
_PADDING = 12


def separate_axis(from_spacing_zyx_mm: FloatTriple, to_spacing_zyx_mm: FloatTriple) -> int | None:
    """The axis along which the nearest slice is taken; None: all axes are interpolated.

    Args:
        from_spacing_zyx_mm: Of what is resampled.
        to_spacing_zyx_mm: Of the result.
    """
    for spacing in (from_spacing_zyx_mm, to_spacing_zyx_mm):
        if max(spacing) / min(spacing) > ANISOTROPY:
            longest = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return longest[0] if len(longest) == 1 else None
    return None


def spline_shape(shape_zyx: IntTriple, spacing_zyx_mm: FloatTriple, target_zyx_mm: FloatTriple) -> IntTriple:
    """Shape at another spacing, halves rounded as nnU-Net's order of dividing and multiplying rounds them."""
    sizes = zip(shape_zyx, spacing_zyx_mm, target_zyx_mm, strict=True)
    z, y, x = (max(1, round(spacing / target * size)) for size, spacing, target in sizes)
    return z, y, x


def logit_kinds(axis: int | None) -> tuple[Kind, Kind, Kind]:
    """How logits are brought back along each axis, where `axis` is that of `separate_axis`."""
    kinds: list[Kind] = ["nearest" if number == axis else "interpolate" for number in range(3)]
    return kinds[0], kinds[1], kinds[2]


@torch.no_grad()
def resample_spline(image_czyx: np.ndarray, shape_zyx: IntTriple, axis: int | None) -> np.ndarray:
    """Resamples an image to another shape of the same extent; no value leaves the range of what it is made from.

    Args:
        image_czyx: float32, (C, Z, Y, X).
        shape_zyx: Of the result.
        axis: From `separate_axis`.

    Returns:
        float32, (C, *shape_zyx); the image itself where it has this shape.
    """
    shape: IntTriple = image_czyx.shape[1:]
    if shape == tuple(shape_zyx):
        return image_czyx
    result = np.empty((len(image_czyx), *shape_zyx), np.float32)
    inside = tuple(number for number in range(3) if number != axis)
    for channel_zyx, target in zip(image_czyx, result, strict=True):
        low, high = (bound(axis=inside, keepdims=True) for bound in (channel_zyx.min, channel_zyx.max))
        volume = torch.from_numpy(np.ascontiguousarray(channel_zyx, np.float32))
        # The axis that shrinks most comes first: what follows has less to do.
        for number in sorted(inside, key=lambda each: shape_zyx[each] / shape[each]):
            if shape[number] != shape_zyx[number]:
                volume = _along(volume, number, shape_zyx[number])
        volume.clamp_(torch.from_numpy(low), torch.from_numpy(high))
        if axis is not None and shape[axis] != shape_zyx[axis]:
            whole = slice(0, shape_zyx[axis]), slice(0, shape[axis])
            volume = _weighted(volume, axis, axis_weights(shape[axis], shape_zyx[axis], "nearest", *whole))
        target[...] = volume.numpy()
    return result


def resample_values(labels_zyx: np.ndarray, shape_zyx: IntTriple, axis: int | None) -> np.ndarray:
    """Resamples a label map to another shape of the same extent, as nnU-Net brings labels to a network's voxels.

    Each value by linear interpolation of its mask, then the largest; where several are equally large, the value of the
    nearest voxel if it is one of them, else the lowest. Whether they are equal is decided by rounding: it is done in
    double precision, and multiplied and summed up in the order of scipy's `zoom`.

    Args:
        labels_zyx: Any integers, (Z, Y, X).
        shape_zyx: Of the result.
        axis: From `separate_axis`.

    Returns:
        Of the same type; the label map itself where it has this shape.

    Source: batchgenerators 0.25.5 (augmentations/utils.py, resize_segmentation); versions before 0.25.5 differ in ties.
    """
    shape: IntTriple = labels_zyx.shape
    if shape == tuple(shape_zyx):
        return labels_zyx
    sides = [_taps(*sizes, nearest=number == axis) for number, sizes in enumerate(zip(shape, shape_zyx, strict=True))]
    result = np.empty(shape_zyx, labels_zyx.dtype)
    planes = max(1, _SLAB_VOXELS // math.prod(shape_zyx[1:]))
    for start in range(0, shape_zyx[0], planes):
        slab = slice(start, start + planes)
        result[slab] = _likeliest(labels_zyx, [[(index[slab], weight[slab]) for index, weight in sides[0]], *sides[1:]])
    return result


#: For every voxel along an axis, one that it is made from, and its weight.
_Tap = tuple[np.ndarray, np.ndarray]


def _taps(old: int, new: int, *, nearest: bool) -> list[_Tap]:
    center = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    if nearest:
        return [(np.floor(center + 0.5).astype(np.intp), np.ones(new))]
    low = np.floor(center).astype(np.intp)
    share = center - low
    return [(low, 1 - share), (np.minimum(low + 1, old - 1), share)]


def _likeliest(labels_zyx: np.ndarray, sides: Sequence[Sequence[_Tap]]) -> np.ndarray:
    """The values of the largest weights in a part of the result."""
    planes = np.concatenate([index for index, _ in sides[0]])
    values = list(count_values(labels_zyx[planes.min() : planes.max() + 1]))
    nearest = labels_zyx[np.ix_(*(np.where(side[-1][1] < 0.5, side[0][0], side[-1][0]) for side in sides))]
    if len(values) == 1:
        return nearest
    corners = [
        (
            labels_zyx[np.ix_(*(index for index, _ in taps))],
            functools.reduce(np.multiply, np.ix_(*(w for _, w in taps))),
        )
        for taps in itertools.product(*sides)
    ]
    won, best = np.zeros_like(nearest), np.full(nearest.shape, -1.0)
    top = np.zeros(nearest.shape, bool)  # whether the nearest voxel's value is at the top
    for value in values:
        score = np.zeros(nearest.shape)
        for part, weight in corners:
            score += weight * (part == value)
        better, own = score > best, nearest == value
        top = np.where(better, own, top | (own & (score == best)))
        won[better] = value
        np.maximum(best, score, out=best)
    return np.where(top, nearest, won)


def _along(volume_zyx: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """The spline through the voxels of one axis, at those of another sampling; beyond the ends the last goes on."""
    length = volume_zyx.shape[axis]
    ends = [(_PADDING, _PADDING) if number == axis else (0, 0) for number in range(3)]
    padded = np.pad(volume_zyx.numpy(), ends, mode="edge")
    coefficients = ndimage.spline_filter1d(padded, 3, axis, output=np.float32, mode="nearest")
    del padded
    center = (np.arange(size) + 0.5) * (length / size) - 0.5 + _PADDING
    first = np.floor(center).astype(np.int64) - 1
    index = first[:, None] + np.arange(4)
    weight = _b_spline(index - center[:, None]).astype(np.float32)
    return _weighted(torch.from_numpy(coefficients), axis, AxisWeights(index, weight, size / length))


def _weighted(volume_zyx: torch.Tensor, axis: int, weights: AxisWeights) -> torch.Tensor:
    span = weights.span
    return apply_axis(volume_zyx.narrow(axis, span.start, span.stop - span.start), axis, weights)


def _b_spline(distance: np.ndarray) -> np.ndarray:
    """Source: M. Unser, Splines: a perfect fit for signal and image processing, 1999."""
    d = np.abs(distance)
    return np.where(d < 1, 2 / 3 - d * d + d**3 / 2, np.where(d < 2, (2 - d) ** 3 / 6, 0.0))
