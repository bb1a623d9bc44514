"""The transforms of batchgenerators in torch, on any device, with all that is random given to them.

Numbers stay on the device, and nothing waits for it: means and limits are tensors, parameters are Python's numbers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from batchgenerators.augmentations.utils import (
    create_matrix_rotation_x_3d,
    create_matrix_rotation_y_3d,
    create_matrix_rotation_z_3d,
)
from torch.nn import functional

from flaresemi.geometry import IntTriple
from flaresemi.training.draws import Changes, IntensityChanges

#: Coordinates in float32 are this exact, in voxels: what is less outside lies on the border, what is less below a half
#: is rounded up, as scipy does with halves. Chosen: their error is a ten-millionth of the patch's size.
_EXACT_VOXELS = 1e-4

#: How many standard deviations a blur looks at: scipy's default.
_BLUR_REACH = 4.0


def changed_place(
    image_czyx: torch.Tensor,
    label_zyx: torch.Tensor,
    patch_zyx: IntTriple,
    changes: Changes,
    *,
    fill: Sequence[float],
    label_fill: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle of a patch, rotated and scaled: linearly the image, by the nearest voxel the labels.

    Args:
        image_czyx: float32.
        label_zyx: Label indices of the same shape, of any type.
        patch_zyx: Shape of what comes out.
        changes: Angles and scale.
        fill: What lies outside, per channel.
        label_fill: The same of the labels.

    Returns:
        Image (C, *patch) and label (*patch), of the given types; views of what was given where neither is changed.
    """
    if changes.angles_zyx is None and changes.scale is None:
        places = zip(image_czyx.shape[1:], patch_zyx, strict=True)
        middle = tuple(slice((read - size) // 2, (read - size) // 2 + size) for read, size in places)
        return image_czyx[:, *middle], label_zyx[middle]
    sizes = tuple(image_czyx.shape[1:])
    grid, outside = _coordinates(_matrix(changes), sizes, patch_zyx, image_czyx.device)
    image = functional.grid_sample(
        image_czyx[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    for channel, value in zip(image, fill, strict=True):
        channel.masked_fill_(outside, value)
    for column, size in enumerate(reversed(sizes)):
        grid[..., column] += 2 * _EXACT_VOXELS / size
    label = functional.grid_sample(
        label_zyx[None, None].float(), grid[None], mode="nearest", padding_mode="border", align_corners=False
    )[0, 0]
    return image, label.masked_fill_(outside, label_fill).to(label_zyx.dtype)


def _matrix(changes: Changes) -> np.ndarray:
    """From the place of a voxel about the middle of what comes out to its place about the middle of what is read."""
    z, y, x = changes.angles_zyx or (0.0, 0.0, 0.0)
    matrix = create_matrix_rotation_z_3d(x, create_matrix_rotation_y_3d(y, create_matrix_rotation_x_3d(z)))
    return matrix.T * (1.0 if changes.scale is None else changes.scale)


def _coordinates(
    matrix: np.ndarray, sizes_zyx: Sequence[int], patch_zyx: IntTriple, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each voxel comes from, as `grid_sample` wants it: (Z, Y, X, 3), x first, borders at ±1; and where not.

    Outside begins at the centers of the outermost voxels, as it does for scipy.
    """
    z, y, x = (torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2 for size in patch_zyx)
    grid = torch.empty((*patch_zyx, 3), device=device)
    outside = torch.zeros(patch_zyx, device=device, dtype=torch.bool)
    for axis, size in enumerate(sizes_zyx):
        by_z, by_y, by_x = (matrix[axis] * 2 / size).tolist()
        place = (z * by_z)[:, None, None] + (y * by_y)[:, None] + x * by_x
        outside |= place.abs() > 1 - 1 / size + 2 * _EXACT_VOXELS / size
        grid[..., 2 - axis] = place
    return grid, outside


def changed_intensities(
    image_czyx: torch.Tensor, changes: IntensityChanges, generator: torch.Generator
) -> torch.Tensor:
    """Another look of a patch, float32 as it; what was given stays as it is.

    Args:
        generator: Of the image's device; it is seeded for the noise.
    """
    image = image_czyx
    if changes.noise is not None:
        sd, seed = changes.noise
        generator.manual_seed(seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image = torch.add(image, noise, alpha=sd)
    channels = list(image)
    for place in range(len(channels)):
        channel = channels[place]
        if changes.blur is not None and (sd_voxels := changes.blur[place]) is not None:
            channel = blurred(channel, sd_voxels)
        if changes.brightness is not None:
            channel = channel * changes.brightness[place]
        if changes.contrast is not None:
            channel = with_contrast(channel, changes.contrast[place])
        if changes.low_resolution is not None and (shape := changes.low_resolution[place]) is not None:
            channel = at_low_resolution(channel, shape)
        if changes.inverted_gamma is not None:
            channel = -with_gamma(-channel, changes.inverted_gamma[place])
        if changes.gamma is not None:
            channel = with_gamma(channel, changes.gamma[place])
        channels[place] = channel
    return torch.stack(channels)


def blurred(image_zyx: torch.Tensor, sd_voxels: float) -> torch.Tensor:
    """Convolved with a Gaussian, mirrored at its borders, as `scipy.ndimage.gaussian_filter` does."""
    reach = int(_BLUR_REACH * sd_voxels + 0.5)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sd_voxels) ** 2)
    weights /= 2 * weights.sum() - weights[0]
    for axis, size in enumerate(image_zyx.shape):
        padded = _mirrored(image_zyx, axis, reach)
        image_zyx = image_zyx * float(weights[0])
        for away, weight in enumerate(weights[1:].tolist(), start=1):
            image_zyx.add_(padded.narrow(axis, reach - away, size), alpha=weight)
            image_zyx.add_(padded.narrow(axis, reach + away, size), alpha=weight)
    return image_zyx


def _mirrored(image_zyx: torch.Tensor, axis: int, reach: int) -> torch.Tensor:
    """With `reach` planes more on both sides of an axis, the outermost ones twice, however few there are."""
    size = image_zyx.shape[axis]
    if reach > size:
        image_zyx = _mirrored(image_zyx, axis, size)
        return _mirrored(image_zyx, axis, reach - size)
    before, after = image_zyx.narrow(axis, 0, reach), image_zyx.narrow(axis, size - reach, reach)
    return torch.cat([before.flip(axis), image_zyx, after.flip(axis)], axis)


def with_contrast(image_zyx: torch.Tensor, factor: float) -> torch.Tensor:
    """Farther from the mean, or nearer, within the limits that it had."""
    mean, (lowest, highest) = image_zyx.mean(), image_zyx.aminmax()
    return ((image_zyx - mean) * factor + mean).clamp(lowest, highest)


def at_low_resolution(image_zyx: torch.Tensor, shape_zyx: IntTriple) -> torch.Tensor:
    """By the nearest voxel to a smaller shape, linearly back."""
    small = image_zyx
    for axis, (size, fewer) in enumerate(zip(image_zyx.shape, shape_zyx, strict=True)):
        # In double precision as scipy: places that lie in the middle of two voxels are no rarity.
        places = torch.arange(fewer, device=image_zyx.device, dtype=torch.float64) + 0.5
        nearest = (places * (size / fewer)).floor_().clamp_(max=size - 1).long()
        small = small.index_select(axis, nearest)
    before = tuple(image_zyx.shape)
    return functional.interpolate(small[None, None], size=before, mode="trilinear", align_corners=False)[0, 0]


def with_gamma(image_zyx: torch.Tensor, gamma: float) -> torch.Tensor:
    """Its range to the power of gamma, brought back to the mean and standard deviation that it had."""
    sd, mean = torch.std_mean(image_zyx, correction=0)
    lowest, highest = image_zyx.aminmax()
    span = highest - lowest + 1e-7
    image = ((image_zyx - lowest) / span).pow_(gamma).mul_(span)
    sd_now, mean_now = torch.std_mean(image, correction=0)
    return image.sub_(mean_now).mul_(sd / (sd_now + 1e-8)).add_(mean)
