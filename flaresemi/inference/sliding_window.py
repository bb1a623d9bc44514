"""A network applied window by window to a volume of any size."""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image

from flaresemi.geometry import IntTriple

#: Width of the Gaussian importance of a window, as a share of the window. Source: nnU-Net (Isensee 2021).
GAUSSIAN_SIGMA = 1 / 8


def window_starts(size: int, window: int, step: float) -> tuple[int, ...]:
    """Where windows begin along one axis: the first at 0, the last flush with the end, the others spread evenly.

    Args:
        size: Voxels of the volume on this axis, at least `window`.
        window: Voxels of the window.
        step: Largest distance of two neighbours as a share of the window, above 0 and at most 1.

    Raises:
        ValueError: the window is larger than the volume, or the step is out of range.
    """
    if not 0 < window <= size:
        raise ValueError(f"a window of {window} voxels does not fit into {size}")
    if not 0 < step <= 1:
        raise ValueError(f"step must be above 0 and at most 1, found {step}")
    steps = math.ceil((size - window) / max(window * step, 1))
    return tuple(round(index * (size - window) / max(steps, 1)) for index in range(steps + 1))


def gaussian_importance(
    window: int, device: torch.device | None = None, *, center: float | None = None
) -> torch.Tensor:
    """Weight of each voxel of a window along one axis, (window,) float32: 1 in the middle, e^-8 at the ends.

    The importance in 3D is the product over the axes, so the sum over all windows is such a product, too.

    Args:
        window: Its voxels.
        device: Of the result.
        center: Where it is 1, in voxels; None: in the middle.
    """
    position = torch.arange(window, dtype=torch.float32, device=device) - (
        (window - 1) / 2 if center is None else center
    )
    return torch.exp(-0.5 * (position / (window * GAUSSIAN_SIGMA)).square())


def slide(
    image_czyx: torch.Tensor,
    forward: Callable[[torch.Tensor], torch.Tensor],
    window_zyx: IntTriple,
    *,
    step: float = 0.5,
    batch: int = 1,
    fill_c: torch.Tensor | None = None,
    centered: bool = True,
) -> torch.Tensor:
    """Weighted mean of the output of `forward` for each voxel over all windows that contain it.

    A volume smaller than the window is padded on both sides, and cropped back.

    Args:
        image_czyx: The volume, (channels, Z, Y, X). The result is summed up on its device.
        forward: Maps windows (batch, channels, *window) to (batch, outputs, *window); it may work on another device.
        window_zyx: Shape of a window.
        step: Distance of neighbouring windows, as a share of the window.
        batch: Windows per call of `forward`.
        fill_c: Padding value per channel, which should be that of training; None: its minimum.
        centered: Whether a window counts most in its middle; False: in voxel `size // 2`, as in nnU-Net.

    Returns:
        (outputs, Z, Y, X) float32.
    """
    device, shape = image_czyx.device, image_czyx.shape[1:]
    padded, inner = _padded(image_czyx, window_zyx, fill_c)
    starts = [window_starts(*sizes, step) for sizes in zip(padded.shape[1:], window_zyx, strict=True)]
    importance = [gaussian_importance(size, device, center=None if centered else size // 2) for size in window_zyx]
    importance_zyx = _outer(importance)
    places = [
        tuple(slice(start, start + size) for start, size in zip(corner, window_zyx, strict=True))
        for corner in itertools.product(*starts)
    ]
    total: torch.Tensor | None = None
    for group in _grouped(places, batch):
        outputs = forward(torch.stack([padded[(slice(None), *place)] for place in group]))
        outputs = outputs.to(device, torch.float32)
        if total is None:
            total = torch.zeros((outputs.shape[1], *padded.shape[1:]), device=device)
        for place, output in zip(group, outputs, strict=True):
            total[(slice(None), *place)].addcmul_(output, importance_zyx)
    if total is None:
        raise ValueError(f"no window in a volume of shape {tuple(shape)}")
    for axis in range(3):
        weight = torch.zeros(padded.shape[axis + 1], device=device)
        for start in starts[axis]:
            weight[start : start + window_zyx[axis]] += importance[axis]
        total /= weight.reshape([-1 if other == axis else 1 for other in range(3)])
    return total[(slice(None), *inner)]


def most_likely(logits_czyx: torch.Tensor) -> np.ndarray:
    """The class with the largest logit, (Z, Y, X), in the smallest unsigned type that holds all of them."""
    kind = np.uint8 if logits_czyx.shape[0] <= 256 else np.uint16
    return logits_czyx.argmax(dim=0).cpu().numpy().astype(kind)


def _padded(
    image_czyx: torch.Tensor, window_zyx: IntTriple, fill_c: torch.Tensor | None
) -> tuple[torch.Tensor, tuple[slice, slice, slice]]:
    """The image, at least as large as the window, and where the original lies in it."""
    if all(size >= window for size, window in zip(image_czyx.shape[1:], window_zyx, strict=True)):
        return image_czyx, (slice(None),) * 3
    fill = image_czyx.amin(dim=(1, 2, 3)) if fill_c is None else fill_c
    padded = [
        pad_nd_image(channel_zyx, window_zyx, kwargs={"value": value}, return_slicer=True)
        for channel_zyx, value in zip(image_czyx, fill.tolist(), strict=True)  # it pads all that it gets with one value
    ]
    return torch.stack([channel_zyx for channel_zyx, _ in padded]), padded[0][1]


def _outer(weights: list[torch.Tensor]) -> torch.Tensor:
    z, y, x = weights
    return z[:, None, None] * y[None, :, None] * x[None, None, :]


def _grouped(places: list[tuple[slice, ...]], size: int) -> Iterator[list[tuple[slice, ...]]]:
    for first in range(0, len(places), size):
        yield places[first : first + size]
