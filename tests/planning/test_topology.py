"""Topology follows sizes and ratios of spacings; patches fit, and are never larger than what they cover."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaresemi.geometry import FloatTriple, IntTriple
from flaresemi.planning.topology import Topology, choose_topology, fit_patch, round_up

sizes = st.tuples(*[st.integers(1, 200)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)


def test_isotropic_cube_halves_to_four_voxels() -> None:
    topology = choose_topology((64, 64, 64), (1.0, 1.0, 1.0), 6)
    assert topology.strides == ((1, 1, 1),) + ((2, 2, 2),) * 4
    assert topology.kernels == ((3, 3, 3),) * 5
    assert choose_topology((64, 64, 64), (1.0, 1.0, 1.0), 3).levels == 3


def test_thick_slices_are_left_alone_until_the_others_have_caught_up() -> None:
    # 5 mm slices of 0.8 mm pixels: two poolings bring the pixels to 3.2 mm.
    topology = choose_topology((32, 192, 192), (5.0, 0.8, 0.8), 6)
    assert topology.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert topology.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))


def test_nnunet_topology_of_hippocampus() -> None:
    # nnU-Net's published plan for this dataset: patch 40 × 56 × 40, three poolings on every axis.
    patch, topology = round_up((36, 50, 35), (1.0, 1.0, 1.0), 6)
    assert patch == (40, 56, 40)
    assert topology.divisor_zyx == (8, 8, 8)


def test_axis_of_one_voxel_has_kernel_one() -> None:
    topology = choose_topology((1, 64, 64), (1.0, 1.0, 1.0), 5)
    assert {kernel[0] for kernel in topology.kernels} == {1}
    assert {stride[0] for stride in topology.strides} == {1}


@settings(deadline=None)
@given(size=sizes, spacing=spacings, scale=st.floats(0.1, 10.0))
def test_only_ratios_of_spacings_matter(size: IntTriple, spacing: FloatTriple, scale: float) -> None:
    # Ratios that lie on the threshold may fall to either side by rounding.
    ratios = [a / b * 2**power for a in spacing for b in spacing for power in range(-6, 7)]
    if any(abs(ratio - 2) < 1e-5 for ratio in ratios if ratio not in (0.5, 1.0, 2.0)):
        return
    scaled = (spacing[0] * scale, spacing[1] * scale, spacing[2] * scale)
    assert choose_topology(size, spacing, 6) == choose_topology(size, scaled, 6)


@settings(deadline=None)
@given(size=sizes, spacing=spacings)
def test_axes_may_be_permuted(size: IntTriple, spacing: FloatTriple) -> None:
    topology = choose_topology(size, spacing, 6)
    mirrored = choose_topology(size[::-1], spacing[::-1], 6)
    assert mirrored.strides == tuple(stride[::-1] for stride in topology.strides)
    assert mirrored.kernels == tuple(kernel[::-1] for kernel in topology.kernels)


@settings(deadline=None)
@given(size=sizes, spacing=spacings, levels=st.integers(2, 6))
def test_rounded_patch_is_divisible_large_enough_and_has_two_levels(
    size: IntTriple, spacing: FloatTriple, levels: int
) -> None:
    patch, topology = round_up(size, spacing, levels)
    assert 2 <= topology.levels <= levels
    for wanted, got, divisor in zip(size, patch, topology.divisor_zyx, strict=True):
        assert got % divisor == 0
        assert wanted <= got < max(wanted, 8) + 2 ** (levels - 1)
        assert divisor == 1 or got // divisor >= 4


@settings(deadline=None)
@given(region=sizes, spacing=spacings, voxels=st.integers(2000, 400_000))
def test_fitted_patch_fits_and_lies_in_the_rounded_region(region: IntTriple, spacing: FloatTriple, voxels: int) -> None:
    largest, _ = round_up(region, spacing, 6)

    def fits(patch: IntTriple, topology: Topology) -> bool:
        assert all(size % divisor == 0 for size, divisor in zip(patch, topology.divisor_zyx, strict=True))
        return math.prod(patch) <= voxels

    fitted = fit_patch(region, spacing, 6, fits)
    assert fitted is not None
    patch, topology = fitted
    assert math.prod(patch) <= voxels
    assert all(size <= limit for size, limit in zip(patch, largest, strict=True))
    assert topology == choose_topology(patch, spacing, 6)
    if math.prod(largest) <= voxels and max(region) <= 64:
        assert patch == largest


def test_patch_keeps_the_proportions_of_its_region() -> None:
    fitted = fit_patch((200, 100, 200), (1.0, 1.0, 1.0), 6, lambda patch, _: math.prod(patch) <= 500_000)
    assert fitted is not None
    shares = [size / whole for size, whole in zip(fitted[0], (200, 100, 200), strict=True)]
    assert max(shares) / min(shares) < 1.25


@pytest.mark.parametrize("region", [(64, 64, 64), (3, 3, 3), (1, 1, 200)])
def test_nothing_fits_is_told(region: IntTriple) -> None:
    assert fit_patch(region, (1.0, 1.0, 1.0), 6, lambda patch, topology: False) is None
