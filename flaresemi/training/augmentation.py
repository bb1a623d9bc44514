"""Random transforms of a patch, by batchgenerators, seeded anew for every sample."""

import copy
import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from batchgenerators.augmentations.spatial_transformations import augment_spatial
from batchgenerators.transforms.abstract_transforms import Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform

from flaresemi import extensions
from flaresemi.errors import ConfigError
from flaresemi.geometry import FloatTriple, IntTriple, thick_axis


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """How often and how far a patch is changed.

    Attributes:
        rotation_degrees: Largest angle about an axis.
        scaling: Smallest and largest factor.
        intensity_factor: What nnU-Net's probabilities of the intensity transforms are multiplied by, up to 0.5.
        more: Makes further transforms of intensities, called like those of batchgenerators with `data` (B, C, Z, Y, X),
            giving a dict that has it. They draw from numpy's global generator.
    """

    rotation_probability: float
    rotation_degrees: float
    scaling_probability: float
    scaling: tuple[float, float]
    intensity_factor: float
    more: Callable[[], Sequence[Callable[..., dict[str, Any]]]] | None = None

    def share(self, standard: float) -> float:
        """How often a patch is changed by what nnU-Net changes this share of."""
        return min(standard * self.intensity_factor, 0.5)


#: nnU-Net's transforms of intensities: their range, and the share of patches that each changes.
NOISE_SD, NOISE_SHARE = (0.0, 0.1), 0.1
BLUR_VOXELS, BLUR_SHARE = (0.5, 1.0), 0.2
BRIGHTNESS, BRIGHTNESS_SHARE = (0.75, 1.25), 0.15
CONTRAST, CONTRAST_SHARE = (0.75, 1.25), 0.15
ZOOM, ZOOM_SHARE = (0.5, 1.0), 0.25
GAMMA, GAMMA_SHARE, INVERTED_GAMMA_SHARE = (0.7, 1.5), 0.3, 0.1
#: Of a patch that is blurred, or seen at a lower resolution, the share of channels that are.
CHANNEL_SHARE = 0.5

#: `standard` has nnU-Net's ranges and probabilities; `strong` (for pseudo-labeled cases) changes more, more often;
#: `geometric` is the standard one without any change of intensities.
STRENGTHS = {
    "geometric": Strength(
        rotation_probability=0.2, rotation_degrees=30, scaling_probability=0.2, scaling=(0.7, 1.4), intensity_factor=0.0
    ),
    "standard": Strength(
        rotation_probability=0.2, rotation_degrees=30, scaling_probability=0.2, scaling=(0.7, 1.4), intensity_factor=1.0
    ),
    "strong": Strength(
        rotation_probability=0.4, rotation_degrees=45, scaling_probability=0.4, scaling=(0.6, 1.5), intensity_factor=2.0
    ),
}


def strength_of(name: str) -> Strength:
    """The strength of a name: ours, or one that an installed package declares.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in STRENGTHS:
        return STRENGTHS[name]
    found, package = extensions.load(extensions.AUGMENTATIONS, name, own=("none", *STRENGTHS))
    if not isinstance(found, Strength):
        raise ConfigError(f"'{name}' of {package} is no flaresemi.training.augmentation.Strength")
    return found


class Augmentation:
    """Rotation, scaling, noise, blur, brightness, contrast, low resolution, gamma and left/right-safe mirroring.

    Args:
        patch_zyx: Shape of what comes out.
        spacing_zyx_mm: Of the patch: where it has thick slices, along whichever axis, rotation stays in their plane.
        strength: A name that `strength_of` knows.
        mirror_axes: Axes that are flipped half of the time.
        mirror_permutation: Label index after a left-right flip, for each index.
    """

    def __init__(
        self,
        patch_zyx: IntTriple,
        spacing_zyx_mm: FloatTriple,
        strength: str,
        mirror_axes: tuple[int, ...],
        mirror_permutation: tuple[int, ...],
    ) -> None:
        self.patch_zyx = patch_zyx
        self.strength = strength_of(strength)
        self.mirror_axes = mirror_axes
        self.mirror_permutation = np.append(mirror_permutation, len(mirror_permutation))  # ignored voxels stay it
        self.swaps_labels = list(mirror_permutation) != list(range(len(mirror_permutation)))
        self.thick_axis = thick_axis(spacing_zyx_mm)
        self.intensity = _intensity_transforms(self.strength)

    def turns_about(self, axis: int) -> bool:
        """Whether patches are rotated about this axis."""
        return self.thick_axis in (None, axis)

    @property
    def input_zyx(self) -> IntTriple:
        """Shape of the patch to read: larger than what comes out, so that most rotations find tissue at the corners."""
        grow = (1.0 if axis == self.thick_axis else 1.2 for axis in range(3))
        z, y, x = (math.ceil(size * factor / 2) * 2 for size, factor in zip(self.patch_zyx, grow, strict=True))
        return z, y, x

    def of_shape(self, patch_zyx: IntTriple) -> Self:
        """The same for patches of another shape."""
        other = copy.copy(self)
        other.patch_zyx = patch_zyx
        return other

    def __call__(
        self, image_czyx: np.ndarray, label_zyx: np.ndarray, fill: np.ndarray, seed: int, label_fill: int = 0
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Transforms one sample; the same seed gives the same result in any process.

        Args:
            image_czyx: float32, of shape `input_zyx`.
            label_zyx: Label indices of the same shape.
            fill: What lies outside the image, per channel (C,).
            seed: For numpy's and Python's global generators, which batchgenerators draws from.
            label_fill: Index of what lies outside the image.

        Returns:
            Image (C, *patch) float32, label (*patch) of the input's type, and whether left and right organs have
            changed places: what is known of a left kidney is known of the right one then.
        """
        random.seed(seed)
        np.random.seed(seed % 2**32)
        image, label = self._spatial(image_czyx, label_zyx, fill, label_fill)
        image = self.intensity(data=image[None])["data"][0]
        swapped = False
        for axis in self.mirror_axes:
            if np.random.random() < 0.5:
                image, label = np.flip(image, axis + 1), np.flip(label, axis)
                swapped = swapped or (axis == 2 and self.swaps_labels)
        if swapped:
            label = self.mirror_permutation[label]
        return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(label, label_zyx.dtype), swapped

    def _spatial(
        self, image_czyx: np.ndarray, label_zyx: np.ndarray, fill: np.ndarray, label_fill: int
    ) -> tuple[np.ndarray, np.ndarray]:
        angle = math.radians(self.strength.rotation_degrees)
        around_z, around_y, around_x = ((-angle, angle) if self.turns_about(axis) else (0.0, 0.0) for axis in range(3))
        base = fill.reshape(-1, 1, 1, 1)
        image, label = augment_spatial(
            (image_czyx - base)[None],  # so that zero, the one fill value on offer, is air in every channel
            label_zyx[None, None].astype(np.float32),
            self.patch_zyx,
            patch_center_dist_from_border=None,
            do_elastic_deform=False,
            angle_x=around_z,
            angle_y=around_y,
            angle_z=around_x,
            scale=self.strength.scaling,
            border_mode_data="constant",
            border_cval_seg=label_fill,
            order_data=1,
            order_seg=0,
            random_crop=False,
            p_rot_per_sample=self.strength.rotation_probability,
            p_scale_per_sample=self.strength.scaling_probability,
        )
        return image[0] + base, np.rint(label[0, 0]).astype(label_zyx.dtype)


class SecondView:
    """Another look of a patch: its intensities are transformed (again), its voxels stay where they are.

    Args:
        strength: A name that `strength_of` knows: how often which transform.
    """

    def __init__(self, strength: str) -> None:
        self.strength = strength_of(strength)
        self.intensity = _intensity_transforms(self.strength)

    def __call__(self, image_czyx: np.ndarray, seed: int) -> np.ndarray:
        """The other look, of the same shape and type; the image stays as it is, the same seed gives the same look."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return np.ascontiguousarray(self.intensity(data=image_czyx[None].copy())["data"][0], np.float32)


def _intensity_transforms(strength: Strength) -> Compose:
    """nnU-Net's intensity transforms, as often as the strength says, and its own."""
    share = strength.share
    return Compose(
        [
            GaussianNoiseTransform(NOISE_SD, p_per_sample=share(NOISE_SHARE)),
            GaussianBlurTransform(
                BLUR_VOXELS,
                different_sigma_per_channel=True,
                p_per_sample=share(BLUR_SHARE),
                p_per_channel=CHANNEL_SHARE,
            ),
            BrightnessMultiplicativeTransform(BRIGHTNESS, p_per_sample=share(BRIGHTNESS_SHARE)),
            ContrastAugmentationTransform(CONTRAST, p_per_sample=share(CONTRAST_SHARE)),
            SimulateLowResolutionTransform(
                ZOOM,
                per_channel=True,
                p_per_channel=CHANNEL_SHARE,
                order_downsample=0,
                order_upsample=1,
                p_per_sample=share(ZOOM_SHARE),
            ),
            GammaTransform(GAMMA, True, per_channel=True, retain_stats=True, p_per_sample=share(INVERTED_GAMMA_SHARE)),
            GammaTransform(GAMMA, False, per_channel=True, retain_stats=True, p_per_sample=share(GAMMA_SHARE)),
            *(strength.more() if strength.more else ()),
        ]
    )
