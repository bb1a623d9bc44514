"""Resampling as nnU-Net v2 does it: cubic B-splines through the voxels, without widening where an axis shrinks.

Where voxels are long (`separate_axis`), slices are resampled one by one, and along that axis the nearest one is taken.
nnU-Net asks scikit-image for it, which asks scipy, which sums 64 products for every voxel; the same numbers come axis
by axis from 4 products each, in single precision and a part of the memory.

Source: nnunetv2/preprocessing/resampling/default_resampling.py (nnU-Net 2.8.1).
"""

import numpy as np
import torch
from scipy import ndimage

from flaresemi.geometry import FloatTriple, IntTriple
from flaresemi.preprocessing.resampling import AxisWeights, Kind, apply_axis, axis_weights

#: Spacing of one axis, in spacings of the finest, from which slices are resampled one by one.
ANISOTROPY = 3.0

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
