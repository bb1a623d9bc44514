"""What augmentation does to one patch, drawn as numbers: what computes it, on whatever device, draws nothing more.

As often and as far as batchgenerators, by the strengths of `augmentation`, from a generator of the sample's own.
"""

import dataclasses

import numpy as np

from flaresemi.geometry import FloatTriple, IntTriple
from flaresemi.training.augmentation import (
    BLUR_SHARE,
    BLUR_VOXELS,
    BRIGHTNESS,
    BRIGHTNESS_SHARE,
    CHANNEL_SHARE,
    CONTRAST,
    CONTRAST_SHARE,
    GAMMA,
    GAMMA_SHARE,
    INVERTED_GAMMA_SHARE,
    NOISE_SD,
    NOISE_SHARE,
    ZOOM,
    ZOOM_SHARE,
    Augmentation,
    SecondView,
    Strength,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IntensityChanges:
    """Changes of a patch's intensities, in this order; None: not this one. Tuples have a number per channel.

    Attributes:
        noise: Standard deviation of what is added to every voxel, and the seed of that.
        blur: Standard deviation of a Gaussian, in voxels; None: not this channel.
        brightness: Factor.
        contrast: Factor about the mean; minimum and maximum stay.
        low_resolution: Shape that the channel is brought to, and back from; None: not this channel.
        inverted_gamma: Exponent, of the inverted channel; mean and standard deviation stay.
        gamma: Exponent; mean and standard deviation stay.
    """

    noise: tuple[float, int] | None = None
    blur: tuple[float | None, ...] | None = None
    brightness: tuple[float, ...] | None = None
    contrast: tuple[float, ...] | None = None
    low_resolution: tuple[IntTriple | None, ...] | None = None
    inverted_gamma: tuple[float, ...] | None = None
    gamma: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """All that is done to a patch; by default nothing but cutting its middle out.

    Attributes:
        angles_zyx: Rotation about each axis, in radians; None: none.
        scale: Factor of the step from voxel to voxel; None: 1.
        intensities: What is done to the intensities then.
        flips: Axes that are flipped at last.
        swap: Label index after that, for each index; None: as it was.
    """

    angles_zyx: FloatTriple | None = None
    scale: float | None = None
    intensities: IntensityChanges = IntensityChanges()
    flips: tuple[int, ...] = ()
    swap: tuple[int, ...] | None = None


def is_drawn(made: Augmentation | SecondView | None) -> bool:
    """Whether what this does is all among `Changes`: neither a class nor a strength with more to it."""
    return made is None or (type(made) in (Augmentation, SecondView) and made.strength.more is None)


def draw_changes(augmentation: Augmentation, channels: int, seed: int) -> Changes:
    """Draws what an augmentation does to a patch; the same seed gives the same in any process."""
    generator = np.random.default_rng(seed)
    strength = augmentation.strength
    angles = scale = None
    if generator.random() < strength.rotation_probability:
        angle = np.radians(strength.rotation_degrees)
        z, y, x = (
            float(generator.uniform(-angle, angle)) if augmentation.turns_about(axis) else 0.0 for axis in range(3)
        )
        angles = (z, y, x)
    if generator.random() < strength.scaling_probability:
        scale = _about_one(strength.scaling, generator)
    intensities = _draw_intensities(strength, augmentation.patch_zyx, channels, generator)
    flips = tuple(axis for axis in augmentation.mirror_axes if generator.random() < 0.5)
    swaps = 2 in flips and augmentation.swaps_labels
    swap = tuple(augmentation.mirror_permutation.tolist()) if swaps else None
    return Changes(angles_zyx=angles, scale=scale, intensities=intensities, flips=flips, swap=swap)


def draw_second_view(view: SecondView, channels: int, patch_zyx: IntTriple, seed: int) -> IntensityChanges:
    """Draws what makes the other look of a patch; the same seed gives the same in any process."""
    return _draw_intensities(view.strength, patch_zyx, channels, np.random.default_rng(seed))


def _draw_intensities(
    strength: Strength, patch_zyx: IntTriple, channels: int, generator: np.random.Generator
) -> IntensityChanges:
    def happens(standard: float) -> bool:
        return generator.random() < strength.share(standard)

    def uniform(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    def chosen() -> tuple[bool, ...]:
        return tuple((generator.random(channels) < CHANNEL_SHARE).tolist())

    def shape() -> IntTriple:
        z, y, x = np.maximum(np.round(np.array(patch_zyx) * generator.uniform(*ZOOM)), 1).astype(int).tolist()
        return z, y, x

    every = range(channels)
    return IntensityChanges(
        noise=(uniform(*NOISE_SD), int(generator.integers(2**63))) if happens(NOISE_SHARE) else None,
        blur=tuple(uniform(*BLUR_VOXELS) if is_it else None for is_it in chosen()) if happens(BLUR_SHARE) else None,
        brightness=tuple(uniform(*BRIGHTNESS) for _ in every) if happens(BRIGHTNESS_SHARE) else None,
        contrast=tuple(_about_one(CONTRAST, generator) for _ in every) if happens(CONTRAST_SHARE) else None,
        low_resolution=tuple(shape() if is_it else None for is_it in chosen()) if happens(ZOOM_SHARE) else None,
        inverted_gamma=tuple(_about_one(GAMMA, generator) for _ in every) if happens(INVERTED_GAMMA_SHARE) else None,
        gamma=tuple(_about_one(GAMMA, generator) for _ in every) if happens(GAMMA_SHARE) else None,
    )


def _about_one(limits: tuple[float, float], generator: np.random.Generator) -> float:
    """As often below 1 as above, as far as the limits go there."""
    low, high = limits
    if generator.random() < 0.5 and low < 1:
        return float(generator.uniform(low, 1))
    return float(generator.uniform(max(low, 1), high))
