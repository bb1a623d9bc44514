"""Estimates count what will be written and computed."""

import dataclasses
import math

import pytest

from flaresemi.geometry import Geometry
from flaresemi.networks.cost import forward_gflop
from flaresemi.planning.estimates import Estimate, estimate, largest, oversized, windows_per_axis
from flaresemi.planning.planner import make_plans
from flaresemi.plans import DatasetFingerprint, Plans


def grids(fingerprint: DatasetFingerprint) -> list[Geometry]:
    return [Geometry(shape_zyx=case.shape_zyx, spacing_zyx_mm=case.spacing_zyx_mm) for case in fingerprint.cases]


@pytest.fixture(scope="module")
def flare_plans(flare_fingerprint: DatasetFingerprint) -> Plans:
    return make_plans(flare_fingerprint, preset="base")


@pytest.fixture(scope="module")
def flare22(flare_fingerprint: DatasetFingerprint, flare_plans: Plans) -> Estimate:
    """50 labeled and 2000 unlabeled abdominal CTs."""
    return estimate(flare_plans, flare_fingerprint, grids(flare_fingerprint), grids(flare_fingerprint) * 40)


def test_flare22_recipe_is_believable(flare22: Estimate) -> None:
    assert (flare22.labeled, flare22.unlabeled) == (50, 2000)
    assert 40 < flare22.disk_gib < 120  # about 15 million voxels of 2 bytes a case
    assert flare22.coarse.disk_gib < flare22.fine.disk_gib / 20
    assert 0.5 < flare22.preprocessing_core_hours < 5
    assert 0.7 < flare22.worker_gib < 4
    assert 4 < flare22.fine.training_gib <= 8
    assert flare22.fine.prediction_gib < flare22.fine.training_gib
    # nnU-Net trains a network and patch of this size in about 15 hours on an A100, that is at about 30 TFLOP/s.
    assert 10 < 250_000 * flare22.fine.training_step_tflop / 30.0 / 3600 < 25


def test_disk_is_exact_where_no_header_lies(hippocampus_fingerprint: DatasetFingerprint) -> None:
    # Spacing 1 mm stays 1 mm and the whole image is body: 2 bytes a voxel for the image, 1 for the label.
    plans = make_plans(hippocampus_fingerprint)
    images = grids(hippocampus_fingerprint)
    voxels = sum(math.prod(image.shape_zyx) for image in images)
    found = estimate(plans, hippocampus_fingerprint, images)
    assert found.fine.disk_gib == pytest.approx(3 * voxels / 2**30)
    assert estimate(plans, hippocampus_fingerprint, [], images).fine.disk_gib == pytest.approx(2 * voxels / 2**30)


def test_costs_add_up_over_cases(flare_fingerprint: DatasetFingerprint, flare_plans: Plans) -> None:
    images = grids(flare_fingerprint)
    once = estimate(flare_plans, flare_fingerprint, images)
    twice = estimate(flare_plans, flare_fingerprint, images * 2)
    assert twice.disk_gib == pytest.approx(2 * once.disk_gib)
    assert twice.preprocessing_core_hours == pytest.approx(2 * once.preprocessing_core_hours)
    assert (twice.worker_gib, twice.fine.training_gib) == (once.worker_gib, once.fine.training_gib)


def test_single_stage_does_not_pay_for_coarse(hippocampus_fingerprint: DatasetFingerprint) -> None:
    plans = make_plans(hippocampus_fingerprint)
    found = estimate(plans, hippocampus_fingerprint, grids(hippocampus_fingerprint))
    assert found.coarse.prediction_tflop == 0
    assert "COARSE    training" not in found.text and "FINE      training" in found.text
    patch = forward_gflop(plans.fine.network, plans.fine.patch_zyx) / 1000
    assert patch <= found.fine.prediction_tflop < 1.5 * patch  # nearly every case is one window


def test_prediction_covers_the_organs_only_when_there_are_two_stages(
    flare_fingerprint: DatasetFingerprint, flare_plans: Plans
) -> None:
    whole = dataclasses.replace(flare_plans, fine=dataclasses.replace(flare_plans.fine, region="body"))
    images = grids(flare_fingerprint)
    two, one = (estimate(plans, flare_fingerprint, images) for plans in (flare_plans, whole))
    assert two.fine.prediction_tflop < one.fine.prediction_tflop


@pytest.mark.parametrize(
    ("size", "window", "count"), [(10, 16, 1), (16, 16, 1), (17, 16, 2), (24, 16, 2), (25, 16, 3), (32, 16, 3)]
)
def test_windows_overlap_by_half(size: int, window: int, count: int) -> None:
    assert windows_per_axis(size, window) == count


def test_text_is_a_few_lines_with_units(flare22: Estimate) -> None:
    lines = flare22.text.splitlines()
    assert len(lines) == 6
    assert "50 labeled and 2000 unlabeled" in lines[0]
    for line in lines[1:]:
        assert "GiB" in line or "MiB" in line or "hours" in line or "minutes" in line


def test_no_images_is_a_broken_contract(flare_fingerprint: DatasetFingerprint, flare_plans: Plans) -> None:
    with pytest.raises(ValueError, match="no images"):
        estimate(flare_plans, flare_fingerprint, [])


def test_images_that_alone_take_too_much_are_named(flare_fingerprint: DatasetFingerprint, flare_plans: Plans) -> None:
    images = {case.case_id: image for case, image in zip(flare_fingerprint.cases, grids(flare_fingerprint))}
    wild = Geometry(shape_zyx=(40, 36, 44), spacing_zyx_mm=(3000.0, 2000.0, 2000.0))
    found = oversized(flare_plans, flare_fingerprint, images | {"wild": wild}, disk_gib=100.0, memory_gib=16.0)
    assert found.keys() == {"wild"}
    assert "40×36×44 voxels of 3000×2000×2000 mm" in found["wild"]
    assert oversized(flare_plans, flare_fingerprint, images, disk_gib=100.0, memory_gib=16.0) == {}
    assert oversized(flare_plans, flare_fingerprint, images, disk_gib=1e-6, memory_gib=16.0) == {}  # it is the disk
    assert "case 'wild': its 40×36×44" in largest(flare_plans, images | {"wild": wild})
