"""Intensities as the network wants them: about zero mean and unit standard deviation."""

import dataclasses

import numpy as np

from flaresemi.plans import IntensityPlan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChannelScaling:
    """How the intensities of one channel of one image are changed: clipped, then (value - mean) / sd."""

    mean: float
    sd: float
    clip_low: float | None = None
    clip_high: float | None = None


def measure_scaling(
    image_czyx: np.ndarray, intensities: tuple[IntensityPlan, ...], body_mask_zyx: np.ndarray | None
) -> tuple[ChannelScaling, ...]:
    """Resolves an intensity plan for one image: for `zscore`, measures it inside the body.

    Args:
        image_czyx: Intensities, (C, Z, Y, X).
        intensities: One plan per channel.
        body_mask_zyx: Where to measure; None or an empty mask: everywhere.

    Raises:
        ValueError: the image has another number of channels than the plan.
    """
    if len(intensities) != image_czyx.shape[0]:
        raise ValueError(f"image with {image_czyx.shape[0]} channel(s), the plan has {len(intensities)}")
    return tuple(_measure(channel, plan, body_mask_zyx) for channel, plan in zip(image_czyx, intensities, strict=True))


def scale(image_czyx: np.ndarray, scalings: tuple[ChannelScaling, ...]) -> np.ndarray:
    """Applies the scaling of each channel; returns a new float32 array."""
    scaled = np.empty(image_czyx.shape, np.float32)
    for channel, target, scaling in zip(image_czyx, scaled, scalings, strict=True):
        if scaling.clip_low is None and scaling.clip_high is None:
            np.subtract(channel, np.float32(scaling.mean), out=target)
        else:
            np.clip(channel, scaling.clip_low, scaling.clip_high, out=target)
            target -= np.float32(scaling.mean)
        target *= np.float32(1 / scaling.sd)
    return scaled


def normalize(
    image_czyx: np.ndarray, intensities: tuple[IntensityPlan, ...], body_mask_zyx: np.ndarray | None = None
) -> np.ndarray:
    """Normalizes a whole image by its plan; see `measure_scaling` and `scale`."""
    return scale(image_czyx, measure_scaling(image_czyx, intensities, body_mask_zyx))


def _measure(channel_zyx: np.ndarray, plan: IntensityPlan, mask_zyx: np.ndarray | None) -> ChannelScaling:
    if plan.scheme == "ct":
        if plan.mean is None or plan.sd is None:
            raise ValueError("scheme 'ct' needs mean and sd")
        return ChannelScaling(mean=plan.mean, sd=plan.sd, clip_low=plan.clip_low, clip_high=plan.clip_high)
    values = channel_zyx[mask_zyx] if mask_zyx is not None and mask_zyx.any() else channel_zyx.ravel()
    mean = float(values.mean(dtype=np.float64))
    sd = float(values.std(dtype=np.float64))
    # A constant channel carries nothing; rounding must not be blown up into something.
    return ChannelScaling(mean=mean, sd=sd if sd > 1e-6 * max(abs(mean), 1e-30) else 1.0)
