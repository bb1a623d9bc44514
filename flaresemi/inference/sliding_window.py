"""A network applied window by window to a volume of any size."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image

from flaresemi.geometry import IntTriple

#: Width of the Gaussian importance of a window, as a share of the window. Source: nnU-Net (Isensee 2021).
GAUSSIAN_SIGMA = 1 / 8

#: Voxels whose largest class is found at a time. Chosen: 32 MiB.
_AT_ONCE = 4 << 20


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


def slide_in_slabs(
    image_czyx: torch.Tensor,
    forward: Callable[[torch.Tensor], torch.Tensor],
    window_zyx: IntTriple,
    *,
    step: float = 0.5,
    batch: int = 1,
    fill_c: torch.Tensor | None = None,
    centered: bool = True,
    whole: bool = False,
) -> Iterator[torch.Tensor]:
    """Weighted mean of the output of `forward` for each voxel over all windows that contain it, slab by slab.

    Slabs are whole planes, from the first to the last, in the memory of a window's planes. One is given when no window
    to come reaches it. A call of `forward` gets windows of one layer; windows are summed in the order in which they are
    summed for the whole, so that the numbers are the same. A volume smaller than the window is padded on both sides,
    and cropped back.

    Args:
        image_czyx: The volume, (channels, Z, Y, X). The result is summed up on its device.
        forward: Maps windows (batch, channels, *window) to (batch, outputs, *window); it may work on another device.
        window_zyx: Shape of a window.
        step: Distance of neighbouring windows, as a share of the window.
        batch: Windows per call of `forward`.
        fill_c: Padding value per channel, which should be that of training; None: its minimum.
        centered: Whether a window counts most in its middle; False: in voxel `size // 2`, as in nnU-Net.
        whole: One slab of everything.

    Yields:
        (outputs, planes, Y, X) float32, which the next step overwrites.
    """
    device, shape = image_czyx.device, image_czyx.shape[1:]
    padded, inner = _padded(image_czyx, window_zyx, fill_c)
    starts = [window_starts(*sizes, step) for sizes in zip(padded.shape[1:], window_zyx, strict=True)]
    importance = [gaussian_importance(size, device, center=None if centered else size // 2) for size in window_zyx]
    importance_zyx = _outer(importance)
    weights = _summed(importance, starts, padded.shape[1:])
    layers = [starts[0]] if whole else [(start,) for start in starts[0]]
    if len(layers) > 1:
        inner = (slice(None), *inner[1:])  # an axis of several windows is not padded
    total: torch.Tensor | None = None
    for layer, end in zip(layers, [*(following[0] for following in layers[1:]), padded.shape[1]], strict=True):
        first, done = layer[0], end - layer[0]
        corners = list(itertools.product(layer, *starts[1:]))
        for group in _grouped(corners, batch):
            places = [_window_at(corner, window_zyx) for corner in group]
            outputs = forward(torch.stack([padded[(slice(None), *place)] for place in places]))
            outputs = outputs.to(device, torch.float32)
            if total is None:
                planes = layer[-1] + window_zyx[0] - first
                total = torch.zeros((outputs.shape[1], planes, *padded.shape[2:]), device=device)
            for (z, y, x), output in zip(places, outputs, strict=True):
                total[:, z.start - first : z.stop - first, y, x].addcmul_(output, importance_zyx)
        if total is None:
            raise ValueError(f"no window in a volume of shape {tuple(shape)}")
        finished = total[:, :done]
        finished /= weights[0][first:end, None, None]
        finished /= weights[1][:, None]
        finished /= weights[2]
        yield finished[(slice(None), *inner)]
        if end < padded.shape[1]:
            _move_up(total, done)


def _window_at(corner: tuple[int, ...], window_zyx: IntTriple) -> tuple[slice, slice, slice]:
    z, y, x = (slice(start, start + size) for start, size in zip(corner, window_zyx, strict=True))
    return z, y, x


def _summed(
    importance: list[torch.Tensor], starts: list[tuple[int, ...]], shape_zyx: Sequence[int]
) -> list[torch.Tensor]:
    """The sum of the windows' importance along each axis."""
    weights = []
    for own, places, size in zip(importance, starts, shape_zyx, strict=True):
        weight = torch.zeros(size, device=own.device)
        for start in places:
            weight[start : start + len(own)] += own
        weights.append(weight)
    return weights


def _move_up(total_czyx: torch.Tensor, done: int) -> None:
    """Drops the first planes of a volume, in place: those behind them move up, and zeros follow."""
    kept = total_czyx.shape[1] - done
    for start in range(0, kept, done):  # so many at a time as do not overlap with where they go
        count = min(done, kept - start)
        total_czyx[:, start : start + count] = total_czyx[:, start + done : start + done + count]
    total_czyx[:, kept:] = 0


def most_likely(logits_czyx: torch.Tensor) -> np.ndarray:
    """The class with the largest logit, (Z, Y, X), in the smallest unsigned type that holds all of them."""
    kind = np.uint8 if logits_czyx.shape[0] <= 256 else np.uint16
    result = np.empty(logits_czyx.shape[1:], kind)
    planes = max(1, _AT_ONCE // math.prod(result.shape[1:]))
    for start in range(0, len(result), planes):  # torch's indices take eight bytes each
        part = slice(start, start + planes)
        found = logits_czyx[:, part].argmax(dim=0)
        if kind is np.uint8:
            found = found.to(torch.uint8)  # what comes down from a GPU is an eighth of it
        result[part] = found.cpu().numpy()
    return result


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


def _grouped(corners: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    for first in range(0, len(corners), size):
        yield corners[first : first + size]
