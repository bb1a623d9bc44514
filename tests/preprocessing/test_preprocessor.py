"""From image to stage and back: parts agree with the whole, stages with each other, and the grid is the image's own."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flaresemi.geometry import BoundingBox, Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image
from flaresemi.plans import IntensityPlan, StagePlan
from flaresemi.preprocessing import preprocessor
from flaresemi.preprocessing.preprocessor import PreparedImage, prepare, preprocessing_hash, stage_labels
from tests.made_labels import labels_from_logits
from tests.made_plans import ct_intensities, stage_plan, two_levels

CT = ct_intensities(mean=40.0, sd=90.0, low=-200.0, high=300.0)


def make_plan(spacing=(4.0, 3.0, 3.0), intensities=(CT,), **changes) -> StagePlan:
    network = two_levels(outputs=3, inputs=len(intensities))
    return stage_plan(network, **({"spacing_zyx_mm": spacing, "intensities": intensities} | changes))


def make_image(channels: int = 1, shape=(30, 60, 70), spacing=(3.0, 2.0, 2.0)) -> tuple[Image, np.ndarray]:
    """A body with two organs in air, and the organs."""
    generator = np.random.default_rng(0)
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]]
    body = ((y - 30) / 22) ** 2 + ((x - 35) / 28) ** 2 < 1
    label = np.zeros(shape, np.uint8)
    label[((z - 14) / 9) ** 2 + ((y - 26) / 9) ** 2 + ((x - 28) / 12) ** 2 < 1] = 1
    label[((z - 17) / 8) ** 2 + ((y - 36) / 8) ** 2 + ((x - 46) / 9) ** 2 < 1] = 2
    array = np.where(body, 0.0, -1000.0) + 100.0 * (label == 1) + 180.0 * (label == 2)
    array = array + generator.normal(0, 10, (channels, *shape))
    geometry = Geometry(shape_zyx=shape, spacing_zyx_mm=spacing)
    source = SourceGrid(geometry=geometry, axes=(0, 1, 2), flips=(False, False, False))
    return Image(array_czyx=array.astype(np.float32), source=source), label


def test_stage_arrays_cover_the_body_box_at_the_stage_spacing():
    image, label = make_image()
    prepared = prepare(image, "ct")
    plan = make_plan()
    grid = prepared.grid(plan)
    assert prepared.body_mask_zyx.shape == prepared.body_box.shape_zyx
    assert grid.body_box == prepared.body_box and grid.canonical_shape_zyx == (30, 60, 70)
    np.testing.assert_allclose(grid.spacing_zyx_mm, plan.spacing_zyx_mm, rtol=0.05)
    assert prepared.stage_image(plan).shape == (1, *grid.shape_zyx)
    assert stage_labels(label, grid).shape == grid.shape_zyx


@pytest.mark.parametrize("spacing", [(4.0, 3.0, 3.0), (1.5, 1.5, 1.5), (3.0, 2.0, 2.0)])
@pytest.mark.parametrize("resampling", ["linear", "cubic"])
@pytest.mark.parametrize("scheme", ["ct", "zscore"])
def test_a_part_of_the_stage_equals_that_part_of_the_whole(spacing, resampling, scheme):
    image, _ = make_image(channels=2)
    intensity = CT if scheme == "ct" else IntensityPlan(scheme="zscore")
    plan = make_plan(spacing, (intensity, intensity), resampling=resampling)
    whole = prepare(image, "ct").stage_image(plan)
    shape = whole.shape[1:]
    generator = np.random.default_rng(0)
    for _ in range(5):
        start = [int(generator.integers(0, size)) for size in shape]
        stop = [int(generator.integers(low + 1, size + 1)) for low, size in zip(start, shape, strict=True)]
        box = BoundingBox(start=tuple(start), stop=tuple(stop))
        part = prepare(image, "ct").stage_image(plan, box)
        np.testing.assert_allclose(part, whole[(slice(None), *box.slices)], atol=1e-4)


def test_intensities_are_clipped_before_they_are_resampled():
    image, _ = make_image()
    image.array_czyx[0, 15, 30, 35] = 30000  # a metal voxel must not smear
    stage = prepare(image, "ct").stage_image(make_plan())
    assert stage.max() <= (CT.clip_high - CT.mean) / CT.sd + 1e-5


def test_stages_measure_the_same_intensities():
    image, _ = make_image()
    intensities = (IntensityPlan(scheme="zscore"),)
    prepared = prepare(image, "ct")
    fine, coarse = (prepared.stage_image(make_plan((s, s, s), intensities)) for s in (2.0, 6.0))
    crop, mask = prepared.crop_czyx[0], prepared.body_mask_zyx
    expected = (crop - crop[mask].mean()) / crop[mask].std()
    assert fine.mean() == pytest.approx(expected.mean(), abs=0.02)
    assert coarse.mean() == pytest.approx(expected.mean(), abs=0.02)


def test_labels_and_image_lie_on_each_other():
    image, label = make_image()
    prepared = prepare(image, "ct")
    for spacing in ((4.0, 3.0, 3.0), (1.5, 1.5, 1.5), (6.0, 6.0, 6.0)):
        plan = make_plan(spacing)
        stage, labels = prepared.stage_image(plan)[0], stage_labels(label, prepared.grid(plan))
        in_hu = stage * CT.sd + CT.mean
        for index, hu in ((1, 100), (2, 180)):
            assert np.median(in_hu[labels == index]) == pytest.approx(hu, abs=10)


@pytest.mark.parametrize("spacing", [(4.0, 3.0, 3.0), (1.5, 1.5, 1.5), (3.0, 2.0, 2.0)])
def test_restoring_gives_the_labels_back_on_the_image_grid(spacing):
    image, label = make_image()
    prepared = prepare(image, "ct")
    grid = prepared.grid(make_plan(spacing))
    stage = stage_labels(label, grid)
    logits = F.one_hot(torch.from_numpy(stage.astype(np.int64)), 3).permute(3, 0, 1, 2).float()
    crop = BoundingBox.whole(grid.body_box.shape_zyx)
    restored = np.zeros(image.geometry.shape_zyx, np.uint8)
    restored[grid.body_box.slices] = labels_from_logits(
        logits, BoundingBox.whole(grid.shape_zyx), grid.shape_zyx, grid.body_box.shape_zyx, crop
    )
    assert restored.shape == image.source.to_file(restored).shape == image.source.geometry.shape_zyx
    for index in (1, 2):
        a, b = restored == index, label == index
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95


def test_the_hash_names_what_decides_the_arrays_and_nothing_else():
    plan = make_plan()
    same = preprocessing_hash("ct", plan)
    assert same == preprocessing_hash("ct", make_plan())
    for unchanged in (
        make_plan(patch_zyx=(32, 32, 32)),
        make_plan(batch_size=7),
        make_plan(margin_mm=5.0),
        make_plan(reasons={"patch_zyx": "because"}),
    ):
        assert preprocessing_hash("ct", unchanged) == same
    changed = [
        preprocessing_hash("foreground", plan),
        preprocessing_hash("ct", make_plan((4.0, 3.0, 3.1))),
        preprocessing_hash("ct", make_plan(resampling="cubic")),
        preprocessing_hash("ct", make_plan(intensities=(dataclasses.replace(CT, mean=41.0),))),
        preprocessing_hash("ct", make_plan(intensities=(IntensityPlan(scheme="zscore"),))),
    ]
    assert len({same, *changed}) == 6


def test_nothing_is_copied_before_it_is_asked_for():
    image, _ = make_image()
    prepared = prepare(image, "ct")
    assert np.shares_memory(prepared.crop_czyx, image.array_czyx)
    assert isinstance(prepared, PreparedImage)


def test_wrong_use():
    image, label = make_image()
    with pytest.raises(ValueError, match="body rule"):
        prepare(image, "mri")
    with pytest.raises(ValueError, match="shape"):
        stage_labels(label[1:], prepare(image, "ct").grid(make_plan()))
    with pytest.raises(ValueError, match="channel"):
        prepare(image, "ct").stage_image(make_plan(intensities=(CT, CT)))


CPU = torch.device("cpu")


@pytest.mark.parametrize("spacing", [(4.0, 3.0, 3.0), (1.5, 1.5, 1.5), (3.0, 2.0, 2.0)])
@pytest.mark.parametrize("resampling", ["linear", "cubic"])
@pytest.mark.parametrize("scheme", ["ct", "zscore"])
def test_what_is_prepared_on_a_device_is_the_same_up_to_rounding(spacing, resampling, scheme):
    image, _ = make_image(channels=2)
    image = dataclasses.replace(image, array_czyx=image.array_czyx[:, ::-1, :, ::-1])  # as files may lie
    plan = make_plan(spacing, (CT if scheme == "ct" else IntensityPlan(scheme="zscore"),) * 2, resampling=resampling)
    here, there = prepare(image, "ct"), prepare(image, "ct", CPU)
    assert there.body_box == here.body_box
    np.testing.assert_array_equal(there.body_mask_zyx, here.body_mask_zyx)
    for box in (None, BoundingBox(start=(1, 2, 3), stop=(7, 11, 13))):
        found = there.network_image(plan, box)
        assert isinstance(found, torch.Tensor) and found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), here.stage_image(plan, box), rtol=1e-5, atol=1e-5)
        assert isinstance(here.network_image(plan, box), np.ndarray)
    assert not there.notes


def test_splines_are_for_main_memory():
    image, _ = make_image()
    plan = make_plan(resampling="spline")
    found = prepare(image, "ct", CPU).network_image(plan)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, prepare(image, "ct").stage_image(plan))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")]
)
@pytest.mark.parametrize("where", ["upload", "find_body", "resample_known"])
def test_where_the_device_runs_out_of_memory_main_memory_does_it_and_says_so(where, error, monkeypatch):
    image, _ = make_image()
    plan, expected = make_plan(), prepare(image, "ct")
    original = getattr(preprocessor, where)

    def full(*arguments):
        if where != "find_body" or len(arguments) > 3:
            raise error
        return original(*arguments)

    monkeypatch.setattr(preprocessor, where, full)
    prepared = prepare(image, "ct", CPU)
    for _ in range(2):
        found = prepared.network_image(plan)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected.stage_image(plan))
    assert prepared.notes == ["GPU memory ran out, the image was prepared in main memory"]


def test_an_image_that_is_large_beside_the_free_memory_is_not_brought_to_a_gpu(monkeypatch):
    image, _ = make_image()
    gib = image.array_czyx.nbytes / 2**30
    gpu = torch.device("cuda")
    monkeypatch.setattr(preprocessor, "upload", lambda array, device: torch.from_numpy(array))
    for free, there in ((7.9 * gib, False), (8.1 * gib, True)):
        monkeypatch.setattr(preprocessor.Card, "free_gib", lambda _, free=free: free)
        prepared = prepare(image, "ct", gpu)
        assert isinstance(prepared.network_image(make_plan()), torch.Tensor) is there
        assert not prepared.notes
