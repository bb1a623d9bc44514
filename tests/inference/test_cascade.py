import dataclasses

import numpy as np
import pytest
import torch

from flaresemi.geometry import BoundingBox
from flaresemi.inference import Segmenter
from flaresemi.inference.predictor import StagePredictor
from flaresemi.plans import Stage


@pytest.fixture
def scan(fakes):
    """A bright block (300 HU) with a brighter core (600 HU) in a body of 0 HU."""
    array = fakes.body()
    array[12:24, 18:30, 20:36] = 300.0
    array[15:20, 20:26, 24:32] = 600.0
    return array


def expected_indices(scan):
    return ((scan > 200).astype(np.uint8) + 2 * (scan > 500)).astype(np.uint8)  # 1 around, 3 in the core


FINE_THRESHOLDS = (1.5, 1e6, 4.2)


@pytest.mark.parametrize(
    ("spacing", "axes"), [((3.0, 3.0, 3.0), ()), ((2.5, 4.0, 5.0), (2,)), ((4.5, 2.5, 3.0), (0, 1))]
)
def test_where_scores_are_large_labels_are_made_slab_by_slab_and_the_same(fakes, scan, monkeypatch, spacing, axes):
    array = scan + np.random.default_rng(0).normal(scale=150.0, size=scan.shape).astype(np.float32)
    plan = fakes.plan(Stage.FINE, spacing=spacing, patch=(8, 8, 8))
    fine = [
        fakes.checkpoint(plan, thresholds, fold=str(fold), mirror_axes=axes)
        for fold, thresholds in enumerate((FINE_THRESHOLDS, (1.0, 2.0, 5.0)))
    ]
    coarse = [fakes.checkpoint(fakes.plan(Stage.COARSE, spacing=(6.0, 6.0, 6.0), patch=(8, 8, 8)), (1.5, 1e6, 1e6))]
    small = BoundingBox(start=(14, 20, 24), stop=(22, 28, 32))  # organs go on beyond it
    for models, organs in ((coarse, None), ((), None), ((), small)):
        segmenter = Segmenter(fine, models, engine="torch", tta=True)
        found = []
        for limit in (1 << 40, 0):
            monkeypatch.setattr("flaresemi.inference.predictor.LARGE_SUMS_BYTES", limit)
            found.append(segmenter.segment(fakes.image(array), organs=organs))
        whole, slabs = found
        assert len(np.unique(whole.indices_zyx)) > 1
        assert np.array_equal(slabs.indices_zyx, whole.indices_zyx)
        assert slabs.notes == whole.notes and list(slabs.seconds) == list(whole.seconds)
        assert axes or organs is None or any("segmented again" in note for note in slabs.notes)
        logits = segmenter.scores(fakes.image(array), organs=organs).known.logits_czyx  # whole where they are wanted
        assert logits.shape[0] == 4
        with pytest.raises(ValueError, match="only the labels"):
            segmenter.scores(fakes.image(array), organs=organs, whole=False).known  # noqa: B018


def test_two_stages_draw_exactly_on_the_image(fakes, scan):
    fine = fakes.checkpoint(fakes.plan(Stage.FINE), FINE_THRESHOLDS)
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE, spacing=(6.0, 6.0, 6.0)), (1.5, 1e6, 1e6))
    segmentation = Segmenter([fine], [coarse]).segment(fakes.image(scan))
    assert np.array_equal(segmentation.indices_zyx, expected_indices(scan))
    assert segmentation.notes == ()
    assert list(segmentation.seconds) == ["body", "coarse", "fine", "restore"]
    assert set(np.unique(segmentation.values_zyx)) == {0, 2, 300}


def test_fine_looks_only_at_the_region(fakes, scan):
    scan[2:6, 5:9, 5:9] = 300.0  # bright enough for FINE, too dark for COARSE
    fine = fakes.checkpoint(fakes.plan(Stage.FINE, patch=(8, 8, 8)), FINE_THRESHOLDS)
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE), (4.0, 1e6, 1e6))
    segmentation = Segmenter([fine], [coarse]).segment(fakes.image(scan))
    assert not segmentation.indices_zyx[2:6, 5:9, 5:9].any()
    assert np.array_equal(segmentation.indices_zyx[7:], expected_indices(scan)[7:])


def test_one_stage_draws_in_the_whole_body(fakes, scan):
    scan[0:3, 5:9, 5:9] = 300.0
    fine = fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), FINE_THRESHOLDS)
    segmentation = Segmenter([fine]).segment(fakes.image(scan))
    assert np.array_equal(segmentation.indices_zyx, expected_indices(scan))
    assert list(segmentation.seconds) == ["body", "fine", "restore"]


def test_coarse_alone_is_a_model_too(fakes, scan):
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE), FINE_THRESHOLDS)
    assert np.array_equal(Segmenter([coarse]).segment(fakes.image(scan)).indices_zyx, expected_indices(scan))


def test_no_organ_in_coarse_falls_back_to_the_body_and_says_so(fakes, scan):
    fine = fakes.checkpoint(fakes.plan(Stage.FINE), FINE_THRESHOLDS)
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE))
    segmentation = Segmenter([fine], [coarse]).segment(fakes.image(scan))
    assert np.array_equal(segmentation.indices_zyx, expected_indices(scan))
    assert segmentation.notes == ("COARSE found no organ: FINE searched the whole body",)


def test_an_image_without_organs_is_no_accident(fakes):
    fine = fakes.checkpoint(fakes.plan(Stage.FINE), FINE_THRESHOLDS)
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE))
    segmentation = Segmenter([fine], [coarse]).segment(fakes.image(fakes.body()))
    assert not segmentation.indices_zyx.any()
    assert segmentation.notes[-1] == "no organ found in this image"


@pytest.mark.parametrize("value", [0.0, -1000.0])
@pytest.mark.parametrize("shape", [(1, 9, 7), (3, 40, 40), (20, 3, 5)])
def test_images_smaller_than_a_patch_and_without_a_body(fakes, shape, value):
    fine = fakes.checkpoint(fakes.plan(Stage.FINE), (1.5, 1e6, 1e6))
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE), (1.5, 1e6, 1e6))
    array = np.full(shape, value)
    array[0, 1:3, 2:5] = 400.0
    segmentation = Segmenter([fine], [coarse]).segment(fakes.image(array))
    assert np.array_equal(segmentation.indices_zyx, array > 200)


def test_an_organ_cut_off_by_its_box_is_segmented_again(fakes, scan):
    scan[12:24, 18:30, 6:36] = 300.0  # reaches far to the right, where COARSE sees only the core
    scan[15:20, 20:26, 24:32] = 600.0
    fine = fakes.checkpoint(fakes.plan(Stage.FINE, patch=(8, 8, 8), margin_mm=24.0), FINE_THRESHOLDS)
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE), (4.0, 1e6, 1e6))
    segmentation = Segmenter([fine], [coarse]).segment(fakes.image(scan))
    assert np.array_equal(segmentation.indices_zyx, expected_indices(scan))
    assert segmentation.notes == (
        "FINE's segmentation reaches the region's right face (right kidney): extended there by 24 mm, segmented again",
        "FINE's segmentation reaches the region's right face (right kidney): extended there by 24 mm, segmented again",
    )


def test_repairs_end_after_two_and_say_what_may_be_missing(fakes):
    scan = fakes.body((24, 40, 120))
    scan[8:16, 12:24, 6:114] = 300.0
    scan[8:16, 12:24, 52:68] = 600.0
    fine = fakes.checkpoint(fakes.plan(Stage.FINE, patch=(8, 8, 8), margin_mm=12.0), FINE_THRESHOLDS)
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE), (4.0, 1e6, 1e6))
    segmentation = Segmenter([fine], [coarse]).segment(fakes.image(scan))
    drawn = BoundingBox.of_mask(segmentation.indices_zyx > 0)
    assert (drawn.start[2], drawn.stop[2]) == (52 - 3 * 4, 68 + 3 * 4)
    assert len(segmentation.notes) == 3
    assert segmentation.notes[-1] == (
        "FINE's segmentation reaches the region's right face (right kidney), left face (right kidney) even then: "
        "it may be cut off there"
    )


def test_an_organ_that_ends_with_the_image_needs_no_repair(fakes, scan):
    scan[0:24, 18:30, 20:36] = 300.0
    fine = fakes.checkpoint(fakes.plan(Stage.FINE), (1.5, 1e6, 1e6))
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE), (1.5, 1e6, 1e6))
    segmentation = Segmenter([fine], [coarse]).segment(fakes.image(scan))
    assert segmentation.indices_zyx[0, 18:30, 20:36].all()
    assert segmentation.notes == ()


def test_a_known_box_takes_the_place_of_coarse(fakes, scan):
    fine = fakes.checkpoint(fakes.plan(Stage.FINE), FINE_THRESHOLDS)
    segmenter = Segmenter([fine])
    organs = BoundingBox.of_mask(scan > 200)
    segmentation = segmenter.segment(fakes.image(scan), organs=organs)
    assert np.array_equal(segmentation.indices_zyx, expected_indices(scan))
    assert "coarse" not in segmentation.seconds
    without = segmenter.segment(fakes.image(scan))
    assert np.array_equal(without.indices_zyx, expected_indices(scan))
    assert without.notes == ("no COARSE model: FINE searched the whole body",)


def test_where_coarse_sees_organs(fakes, scan):
    fine = fakes.checkpoint(fakes.plan(Stage.FINE), FINE_THRESHOLDS)
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE), (1.5, 1e6, 1e6))
    image = fakes.image(scan)
    for segmenter in (Segmenter([fine], [coarse]), Segmenter([coarse])):
        assert segmenter.find_organs(image) == BoundingBox.of_mask(scan > 200)
    assert Segmenter([coarse]).find_organs(fakes.image(fakes.body())) is None
    with pytest.raises(ValueError, match="no COARSE model"):
        Segmenter([fine]).find_organs(image)


def test_fine_gets_the_box_of_the_organs_and_the_margin(fakes, scan, monkeypatch):
    looked_at = []
    over_slabs = StagePredictor.over_slabs

    def spy(self, image_czyx, *how, **options):
        looked_at.append(image_czyx.shape[1:])
        return over_slabs(self, image_czyx, *how, **options)

    monkeypatch.setattr(StagePredictor, "over_slabs", spy)
    fine = fakes.checkpoint(fakes.plan(Stage.FINE, patch=(8, 8, 8), margin_mm=9.0), FINE_THRESHOLDS)
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE), (1.5, 1e6, 1e6))
    Segmenter([fine], [coarse]).segment(fakes.image(scan))
    assert looked_at[1] == (12 + 2 * 3, 12 + 2 * 3, 16 + 2 * 3)
    looked_at.clear()
    Segmenter([fine]).segment(fakes.image(scan), organs=BoundingBox(start=(12, 18, 20), stop=(14, 20, 22)))
    assert looked_at[0] == (2 + 2 * 3, 2 + 2 * 3, 2 + 2 * 3)


def test_stages_of_other_spacings_agree_with_the_image(fakes, scan):
    spacing = (2.0, 1.5, 1.5)
    fine = fakes.checkpoint(fakes.plan(Stage.FINE, spacing=(2.5, 2.2, 2.2)), (1.5, 1e6, 1e6))
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE, spacing=(5.0, 5.0, 5.0)), (1.5, 1e6, 1e6))
    drawn = Segmenter([fine], [coarse]).segment(fakes.image(scan, spacing)).indices_zyx == 1
    truth = scan > 150
    assert 2 * (drawn & truth).sum() / (drawn.sum() + truth.sum()) > 0.93
    for side in ("start", "stop"):
        found = getattr(BoundingBox.of_mask(drawn), side)
        assert np.abs(np.subtract(found, getattr(BoundingBox.of_mask(truth), side))).max() <= 1


def test_folds_are_averaged(fakes, scan):
    plan = fakes.plan(Stage.FINE, region="body")
    low, high = fakes.checkpoint(plan, (1.0, 1e6, 1e6)), fakes.checkpoint(plan, (6.4, 1e6, 1e6), fold="1")
    image = fakes.image(scan)
    # Mean threshold 3.7: the block of 300 HU is out, the core of 600 HU is in.
    assert np.array_equal(Segmenter([low, high]).segment(image).indices_zyx, scan > 500)
    assert np.array_equal(Segmenter([low]).segment(image).indices_zyx, scan > 200)
    assert not Segmenter([high]).segment(image).indices_zyx.any()


def test_largest_component_where_most_folds_say_so(fakes, scan):
    scan[30:33, 30:33, 20:23] = 300.0
    plan = fakes.plan(Stage.FINE, region="body")
    plain = fakes.checkpoint(plan, (1.5, 1e6, 1e6))
    cleaning = fakes.checkpoint(plan, (1.5, 1e6, 1e6), keep_largest=("right kidney",))
    image = fakes.image(scan)
    both = Segmenter([plain, cleaning]).segment(image).indices_zyx
    assert both[31, 31, 21] == 1
    cleaned = Segmenter([cleaning, cleaning, plain]).segment(image).indices_zyx
    assert np.array_equal(cleaned > 0, (scan > 200) & (np.arange(40) < 28)[:, None, None])


class SideNetwork(torch.nn.Module):
    """Bright voxels in the low half of the window (the patient's right) are the right kidney, others the left one."""

    def __init__(self, plan) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.zeros(plan.output_channels))
        self.register_buffer("gain", torch.zeros(plan.output_channels))

    def forward(self, image_bczyx):
        bright = image_bczyx[:, 0] - 1.5
        low = torch.arange(image_bczyx.shape[-1]) < image_bczyx.shape[-1] // 2
        zero = torch.zeros_like(bright)
        return torch.stack([zero, bright * low + (~low) * -1, bright * ~low + low * -1, zero - 1], dim=1)


def test_mirroring_swaps_left_and_right(fakes, monkeypatch):
    monkeypatch.setattr("flaresemi.networks.engine.build_network", SideNetwork)
    monkeypatch.setattr("flaresemi.networks.engine.openvino_is_installed", lambda: False)
    array = fakes.body((16, 32, 64))
    array[5:10, 10:20, 10:20] = 300.0
    array[4:12, 12:22, 44:52] = 300.0
    plan = fakes.plan(Stage.FINE, patch=(16, 32, 64), region="body")
    image, mirrored = fakes.image(array), fakes.image(array[:, :, ::-1].copy())
    for axes in ((), (2,), (0, 1, 2)):
        segmenter = Segmenter([fakes.checkpoint(plan, mirror_axes=axes)], tta=True)
        drawn = segmenter.segment(image).indices_zyx
        assert (drawn[5:10, 10:20, 10:20] == 1).all()
        assert (drawn[4:12, 12:22, 44:52] == 2).all()
        permutation = np.array(fakes.labels.mirror_permutation, np.uint8)
        assert np.array_equal(segmenter.segment(mirrored).indices_zyx, permutation[drawn[:, :, ::-1]])


def test_options_say_what_was_asked_for_and_nothing_of_defaults(fakes):
    def options(**asked):
        return Segmenter([fakes.checkpoint(fakes.plan(Stage.COARSE))], device="cpu", **asked).options

    default = options()
    assert {*default} == {"tta", "step", "cleaning", "meaning"}
    assert options(window="auto", engine="auto", precision="auto") == default
    asked = {"window": "patch", "engine": "torch", "precision": "fp32"}
    assert options(**asked) == default | asked


def test_images_with_other_channels_are_a_broken_contract(fakes, scan):
    fine = fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), FINE_THRESHOLDS)
    image = fakes.image(scan)
    two = type(image)(array_czyx=np.concatenate([image.array_czyx] * 2), source=image.source)
    with pytest.raises(ValueError, match="2 channels, not 1"):
        Segmenter([fine]).segment(two)
    with pytest.raises(ValueError, match="needs a checkpoint"):
        Segmenter([])


def test_thin_scans_are_padded_with_the_lowest_value_of_the_body(fakes, monkeypatch):
    seen = []

    class Recorder(torch.nn.Module):
        def __init__(self, plan) -> None:
            super().__init__()
            self.register_buffer("threshold", torch.zeros(plan.output_channels))
            self.register_buffer("gain", torch.zeros(plan.output_channels))

        def forward(self, image_bczyx):
            seen.append(image_bczyx.clone())
            return torch.zeros((1, 4, *image_bczyx.shape[2:]))

    monkeypatch.setattr("flaresemi.networks.engine.build_network", Recorder)
    monkeypatch.setattr("flaresemi.networks.engine.openvino_is_installed", lambda: False)
    scan = fakes.body((6, 60, 60))
    fine = fakes.checkpoint(fakes.plan(Stage.FINE, margin_mm=0.0))
    organs = BoundingBox(start=(2, 26, 26), stop=(4, 34, 34))
    Segmenter([fine], engine="torch").segment(fakes.image(scan), organs=organs)
    (window,) = seen
    assert (window[0, 0, :5] == -10).all()  # air, though there is none in the region
    assert (window[0, 0, 5:11] == 0).all()
    assert (window[0, 0, 11:] == -10).all()


def test_voxels_of_the_stage_that_are_those_of_the_image_need_no_resampling(fakes, scan, monkeypatch):
    monkeypatch.setattr("flaresemi.preprocessing.winners.SLAB_BYTES", 1)  # one plane per slab
    fine = fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), FINE_THRESHOLDS)
    assert np.array_equal(Segmenter([fine]).segment(fakes.image(scan)).indices_zyx, expected_indices(scan))


def test_what_is_left_out_of_an_organ_is_told_where_it_is_much(fakes, scan):
    whole = scan.copy()
    scan[0:3, 5:9, 5:9] = 300.0  # 48 voxels beside 2,064: not worth a word
    checkpoint = fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), FINE_THRESHOLDS)
    names = (checkpoint.labels.names[0],)
    segmenter = Segmenter([dataclasses.replace(checkpoint, keep_largest=names)])
    segmentation = segmenter.segment(fakes.image(scan))
    assert np.array_equal(segmentation.indices_zyx, expected_indices(whole))
    assert segmentation.notes == ()
    scan[0:10, 2:8, 2:10] = 300.0
    segmentation = segmenter.segment(fakes.image(scan))
    assert np.array_equal(segmentation.indices_zyx, expected_indices(whole))
    (note,) = segmentation.notes
    assert note.startswith(f"{names[0]}: ") and "ml in others were left out" in note


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (2.5, 4.0, 5.0)])
def test_where_the_image_is_prepared_on_a_device_the_labels_are_the_same(fakes, scan, monkeypatch, spacing):
    array = scan + np.random.default_rng(0).normal(scale=20.0, size=scan.shape).astype(np.float32)
    fine = fakes.checkpoint(fakes.plan(Stage.FINE, spacing=spacing, patch=(8, 8, 8)), FINE_THRESHOLDS)
    coarse = fakes.checkpoint(fakes.plan(Stage.COARSE, spacing=(6.0, 6.0, 6.0)), (1.5, 1e6, 1e6))
    thin = fakes.checkpoint(fakes.plan(Stage.FINE, spacing=spacing, patch=(64, 8, 8), region="body"), FINE_THRESHOLDS)
    for models in (([fine], [coarse]), ([fine],), ([thin],)):
        here, there = Segmenter(*models), Segmenter(*models)
        monkeypatch.setattr(there, "_preparing", torch.device("cpu"))
        shown = []
        found = [
            each.segment(fakes.image(array), watch=lambda *said, shown=shown: shown.append(said[1:3]))
            for each in (here, there)
        ]
        assert np.array_equal(found[1].indices_zyx, found[0].indices_zyx)
        assert found[1].indices_zyx.any() and found[1].notes == found[0].notes
        assert isinstance(shown[1][0], np.ndarray)
        np.testing.assert_allclose(shown[1][0], shown[0][0], rtol=1e-5, atol=1e-5)
        if shown[0][1] is not None:
            np.testing.assert_allclose(shown[1][1], shown[0][1], rtol=1e-5, atol=1e-5)


def test_a_retreat_of_the_preparation_is_a_note(fakes, scan, monkeypatch):
    segmenter = Segmenter([fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), FINE_THRESHOLDS)])
    expected = segmenter.segment(fakes.image(scan))
    monkeypatch.setattr(segmenter, "_preparing", torch.device("cpu"))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("flaresemi.preprocessing.preprocessor.scale_tensor", full)
    found = segmenter.segment(fakes.image(scan))
    assert np.array_equal(found.indices_zyx, expected.indices_zyx)
    assert found.notes == ("GPU memory ran out, the image was prepared in main memory",)
