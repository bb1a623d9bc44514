"""Which axes a U-Net pools, with which kernels, and the largest patch that fits: nnU-Net's rules.

Source: Isensee et al., doi 10.1038/s41592-020-01008-z, supplementary note on network topology and patch size.
"""

import dataclasses
import math
from collections.abc import Callable

from flaresemi.geometry import FloatTriple, IntTriple

#: An axis is not pooled to fewer voxels than this.
MIN_FEATURE_SIZE = 4

#: An axis takes part in pooling and gets kernel 3 while its spacing is at most this many times the finest.
MAX_SPACING_RATIO = 2.0

#: Edge of the isotropic cube (in mm) that a patch is cut from before any budget is looked at, voxels.
LARGEST_EDGE = 256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Kernels and strides per level, (Z, Y, X); level 0 has full resolution."""

    kernels: tuple[IntTriple, ...]
    strides: tuple[IntTriple, ...]

    @property
    def levels(self) -> int:
        return len(self.strides)

    @property
    def divisor_zyx(self) -> IntTriple:
        """A patch must be divisible by this on each axis."""
        z, y, x = (math.prod(stride[axis] for stride in self.strides) for axis in range(3))
        return z, y, x


def choose_topology(patch_zyx: IntTriple, spacing_zyx_mm: FloatTriple, max_levels: int) -> Topology:
    """Halves every axis that is long enough and not much coarser than the others, level by level.

    An axis is pooled while half of it still has `MIN_FEATURE_SIZE` voxels and its spacing is within a factor of
    `MAX_SPACING_RATIO` of the finest. It gets kernel 3 from the level on where its spacing is within that factor,
    kernel 1 before; an axis of one voxel always has kernel 1. Only ratios of spacings matter.
    """
    sizes, spacing = list(patch_zyx), list(spacing_zyx_mm)
    wide = [False, False, False]
    kernels: list[IntTriple] = []
    strides: list[IntTriple] = []
    stride: IntTriple = (1, 1, 1)
    while True:
        near = [step <= MAX_SPACING_RATIO * min(spacing) * (1 + 1e-6) for step in spacing]
        wide = [was or (now and size > 1) for was, now, size in zip(wide, near, patch_zyx, strict=True)]
        kernels.append((3 if wide[0] else 1, 3 if wide[1] else 1, 3 if wide[2] else 1))
        strides.append(stride)
        pooled = [now and size >= 2 * MIN_FEATURE_SIZE for now, size in zip(near, sizes, strict=True)]
        if len(strides) == max_levels or not any(pooled):
            return Topology(kernels=tuple(kernels), strides=tuple(strides))
        stride = (1 + pooled[0], 1 + pooled[1], 1 + pooled[2])
        sizes = [math.ceil(size / step) for size, step in zip(sizes, stride, strict=True)]
        spacing = [old * step for old, step in zip(spacing, stride, strict=True)]


def round_up(shape_zyx: IntTriple, spacing_zyx_mm: FloatTriple, max_levels: int) -> tuple[IntTriple, Topology]:
    """The smallest patch around a shape that its own topology divides, with at least two levels."""
    patch = _at_least_two_levels(shape_zyx, spacing_zyx_mm)
    while True:
        topology = choose_topology(patch, spacing_zyx_mm, max_levels)
        rounded = _multiples(patch, topology.divisor_zyx, math.ceil)
        if rounded == patch:
            return patch, topology
        patch = rounded


def fit_patch(
    region_zyx: IntTriple,
    spacing_zyx_mm: FloatTriple,
    max_levels: int,
    fits: Callable[[IntTriple, Topology], bool],
) -> tuple[IntTriple, Topology] | None:
    """The largest patch of the region's aspect ratio that `fits`.

    It starts as the region, rounded up to what the strides divide and cut to a cube (in mm) of `LARGEST_EDGE` voxels,
    and loses one step on the axis on which it covers most of the region until it fits.

    Returns:
        The patch and its topology; None when not even the smallest patch fits.
    """
    mean = math.prod(spacing_zyx_mm) ** (1 / 3)
    limits = [math.ceil(LARGEST_EDGE * mean / spacing) for spacing in spacing_zyx_mm]
    z, y, x = (min(size, limit) for size, limit in zip(region_zyx, limits, strict=True))
    patch, topology = round_up((z, y, x), spacing_zyx_mm, max_levels)
    while not fits(patch, topology):
        axes = [axis for axis in range(3) if patch[axis] > 2 * MIN_FEATURE_SIZE]
        if not axes:
            return None
        fullest = max(axes, key=lambda axis: patch[axis] / region_zyx[axis])
        smaller = list(patch)
        smaller[fullest] -= topology.divisor_zyx[fullest]
        patch, topology = _round_down((smaller[0], smaller[1], smaller[2]), spacing_zyx_mm, max_levels)
    return patch, topology


def _round_down(shape_zyx: IntTriple, spacing_zyx_mm: FloatTriple, max_levels: int) -> tuple[IntTriple, Topology]:
    patch = _at_least_two_levels(shape_zyx, spacing_zyx_mm)
    while True:
        topology = choose_topology(patch, spacing_zyx_mm, max_levels)
        rounded = _multiples(patch, topology.divisor_zyx, math.floor)
        if rounded == patch:
            return patch, topology
        patch = rounded


def _multiples(shape: IntTriple, divisor: IntTriple, rounding: Callable[[float], int]) -> IntTriple:
    z, y, x = (rounding(size / step) * step for size, step in zip(shape, divisor, strict=True))
    return z, y, x


def _at_least_two_levels(shape: IntTriple, spacing: FloatTriple) -> IntTriple:
    """Lengthens a volume that is too small to pool at all, on the longest of its fine axes."""
    fine = [axis for axis in range(3) if spacing[axis] <= MAX_SPACING_RATIO * min(spacing) * (1 + 1e-6)]
    longest = max(fine, key=lambda axis: shape[axis])
    sizes = list(shape)
    sizes[longest] = max(sizes[longest], 2 * MIN_FEATURE_SIZE)
    return sizes[0], sizes[1], sizes[2]
