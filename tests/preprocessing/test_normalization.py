"""Normalization: the plan's numbers for CT, the image's own inside the body for everything else."""

import numpy as np
import pytest
import torch

from flaresemi.plans import IntensityPlan
from flaresemi.preprocessing.normalization import measure_scaling, scale, scale_tensor, stray_range

CT = IntensityPlan(scheme="ct", clip_low=-150.0, clip_high=250.0, mean=50.0, sd=100.0)
OTHER = IntensityPlan(scheme="zscore")


def normalize(image, plans, body_mask=None):
    return scale(image, measure_scaling(image, plans, body_mask))


def test_ct_is_clipped_then_shifted_and_scaled():
    image = np.array([-3024.0, -150.0, 50.0, 250.0, 3000.0], np.float32).reshape(1, 1, 1, 5)
    found = normalize(image, (CT,))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), [-2, -2, 0, 2, 2], rtol=1e-6)
    assert image.min() == -3024, "the input is not changed"


def test_zscore_is_measured_inside_the_body_only():
    generator = np.random.default_rng(0)
    image = generator.normal(300, 40, (1, 10, 11, 12)).astype(np.float32)
    mask = np.zeros(image.shape[1:], bool)
    mask[2:8, 3:9, 3:9] = True
    image[0][~mask] = 0
    found = normalize(image, (OTHER,), mask)[0]
    assert abs(found[mask].mean()) < 1e-4 and abs(found[mask].std() - 1) < 1e-4
    np.testing.assert_allclose(normalize(3 * image + 100, (OTHER,), mask)[0], found, atol=1e-3)


def test_channels_are_normalized_each_by_its_plan():
    image = np.stack([np.full((3, 3, 3), 150.0), np.arange(27.0).reshape(3, 3, 3)]).astype(np.float32)
    found = normalize(image, (CT, OTHER))
    np.testing.assert_allclose(found[0], 1.0)
    assert abs(found[1].std() - 1) < 1e-5


@pytest.mark.parametrize("value", [0.0, 1e-3, 4096.1])
def test_a_constant_channel_becomes_zero(value):
    image = np.full((1, 4, 4, 4), value, np.float32)
    found = normalize(image, (OTHER,))
    assert np.isfinite(found).all() and np.abs(found).max() < 1e-3


def test_small_intensities_are_not_taken_for_a_constant():
    image = np.random.default_rng(0).normal(0, 1e-7, (1, 8, 8, 8)).astype(np.float32)
    assert abs(normalize(image, (OTHER,)).std() - 1) < 1e-3


def test_an_empty_mask_measures_everywhere():
    image = np.random.default_rng(0).normal(5, 2, (1, 6, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(normalize(image, (OTHER,), np.zeros((6, 6, 6), bool)), normalize(image, (OTHER,)))


def test_large_offsets_lose_no_precision():
    image = (1e6 + np.random.default_rng(0).integers(0, 100, (1, 40, 40, 40))).astype(np.float32)
    (scaling,) = measure_scaling(image, (OTHER,), None)
    assert scaling.sd == pytest.approx(image.astype(np.float64).std(), rel=1e-6)
    assert abs(scale(image, (scaling,)).mean(dtype=np.float64)) < 1e-2


def test_channels_must_match_the_plan():
    with pytest.raises(ValueError, match="channel"):
        normalize(np.zeros((2, 3, 3, 3), np.float32), (CT,))


@pytest.mark.parametrize("value", [3e38, -3e38, 1e29, 1e9, -1e9, 5e4])
def test_a_stray_voxel_changes_no_other(value):
    image = np.random.default_rng(0).normal(300, 40, (1, 20, 30, 30)).astype(np.float32)
    expected = normalize(image, (OTHER,))[0]
    spoilt = image.copy()
    spoilt[0, 3, 4, 5] = value
    found = normalize(spoilt, (OTHER,))[0]
    assert np.isfinite(found).all()
    assert abs(found[3, 4, 5]) < 50
    found[3, 4, 5] = expected[3, 4, 5]
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_what_the_image_shows_is_not_stray():
    generator = np.random.default_rng(0)
    angiography = generator.normal(0, 1, (40, 50, 50)).astype(np.float32)
    angiography[generator.random(angiography.shape) < 0.01] = 3000
    metal = generator.normal(300, 40, (40, 50, 50)).astype(np.float32)
    metal[20:24, 20:24, 20:24] = 30_000
    for image in (angiography, metal, np.zeros((5, 5, 5), np.float32)):
        assert stray_range(image) is None
        (scaling,) = measure_scaling(image[None], (OTHER,), None)
        assert scaling.clip_low is None
        assert scaling.mean == pytest.approx(float(image.mean(dtype=np.float64)))


def test_no_normalization_leaves_values_as_they_are_up_to_what_is_stored():
    image = np.array([-70000.0, -1000.0, 0.125, 2500.0, 1e6], np.float32).reshape(1, 1, 1, 5)
    found = normalize(image, (IntensityPlan(scheme="none"),), np.ones((1, 1, 5), bool))
    np.testing.assert_array_equal(found.ravel(), [-65504, -1000, 0.125, 2500, 65504])


def test_rescaling_runs_from_the_lowest_to_the_highest_value_also_outside_of_the_body():
    image = np.linspace(-200, 600, 1000, dtype=np.float32).reshape(1, 10, 10, 10)
    mask = np.zeros((10, 10, 10), bool)
    mask[4:6] = True
    found = normalize(image, (IntensityPlan(scheme="rescale_to_0_1"),), mask)
    np.testing.assert_allclose(found, (image + 200) / 800, atol=1e-6)
    constant = normalize(np.full((1, 3, 3, 3), 7.0, np.float32), (IntensityPlan(scheme="rescale_to_0_1"),))
    np.testing.assert_array_equal(constant, 0)


def test_a_stray_voxel_does_not_squash_what_is_rescaled():
    image = np.random.default_rng(0).uniform(0, 100, (1, 20, 30, 30)).astype(np.float32)
    spoilt = image.copy()
    spoilt[0, 3, 4, 5] = 1e9
    found = normalize(spoilt, (IntensityPlan(scheme="rescale_to_0_1"),))
    assert found.min() == 0 and found.max() == pytest.approx(1)
    assert found[0, 3, 4, 5] == found.max()
    expected = normalize(image, (IntensityPlan(scheme="rescale_to_0_1"),))
    assert np.median(np.abs(found - expected)) < 1e-4


def test_values_beyond_half_precision_and_stray_ones_count_where_nnunet_counts_them():
    image = np.array([-70000.0, 0.125, 1e6], np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(normalize(image, (IntensityPlan(scheme="as_is"),)), image)
    found = normalize(image, (IntensityPlan(scheme="min_max"),))
    np.testing.assert_allclose(found.ravel(), [0, 70000.125 / 1.07e6, 1], rtol=1e-6)
    constant = normalize(np.full((1, 3, 3, 3), 7.0, np.float32), (IntensityPlan(scheme="min_max"),))
    np.testing.assert_array_equal(constant, 0)


def test_colors_are_divided_by_255():
    image = np.array([0.0, 51.0, 255.0], np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(normalize(image, (IntensityPlan(scheme="rgb_to_0_1"),)).ravel(), [0, 0.2, 1], rtol=1e-6)


@pytest.mark.parametrize(
    "plan",
    [CT, OTHER, IntensityPlan(scheme="rescale_to_0_1"), IntensityPlan(scheme="none"), IntensityPlan(scheme="min_max")],
)
def test_a_tensor_is_scaled_to_the_same_numbers(plan):
    image = np.random.default_rng(0).normal(100, 300, (1, 9, 10, 11)).astype(np.float32)
    image[0, 0, 0, 0] = 1e9  # stray
    scalings = measure_scaling(image, (plan,), None)
    before = image.copy()
    found = scale_tensor(torch.from_numpy(image[0]), scalings[0])
    np.testing.assert_array_equal(found.numpy(), scale(image, scalings)[0])
    np.testing.assert_array_equal(image, before)
