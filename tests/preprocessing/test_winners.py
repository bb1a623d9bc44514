"""Logits to labels: as the plain way would give them, and the same whether they come at once or plane by plane."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flaresemi.geometry import BoundingBox
from flaresemi.preprocessing import winners
from flaresemi.preprocessing.resampling import resample_labels
from flaresemi.preprocessing.splines import logit_kinds
from flaresemi.preprocessing.winners import GrowingLabels
from tests.made_labels import labels_from_logits
from tests.preprocessing.test_resampling import box_within, organs, resample_image


def plain_argmax(logits, logits_box, stage_shape, canonical_shape, out_box) -> tuple[np.ndarray, np.ndarray]:
    """All classes at full size at once: edges replicated to the whole stage grid, resampled, compared, cut."""
    padding = [(0, 0)] + [
        (start, size - stop) for start, stop, size in zip(logits_box.start, logits_box.stop, stage_shape, strict=True)
    ]
    whole = np.pad(logits.float().numpy(), padding, mode="edge")
    large = resample_image(whole, canonical_shape)[(slice(None), *out_box.slices)]
    ordered = np.sort(large, axis=0)
    return large.argmax(axis=0), ordered[-1] - ordered[-2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "canonical_shape", [(21, 33, 26), (12, 16, 14), (30, 16, 40), (9, 12, 40), (12, 16, 30), (4, 5, 6)]
)
def test_labels_from_logits_are_those_of_all_logits_at_once(canonical_shape, dtype, monkeypatch):
    generator = np.random.default_rng(0)
    stage_shape = (12, 16, 14)
    for case in range(6):
        box = BoundingBox.whole(stage_shape) if case == 0 else box_within(generator, stage_shape)
        out_box = BoundingBox.whole(canonical_shape) if case < 2 else box_within(generator, canonical_shape)
        # Random logits let every class win anywhere; regions let most classes be ruled out in most places.
        noise = generator.normal(size=(5, *box.shape_zyx))
        if case % 2:
            regions = organs(stage_shape, 5, case)[box.slices]
            noise = 8.0 * (regions[None] == np.arange(5)[:, None, None, None]) + noise
        logits = torch.from_numpy(noise.astype(np.float32)).to(dtype)
        expected, ahead = plain_argmax(logits, box, stage_shape, canonical_shape, out_box)
        for slab_bytes in (1 << 28, 1):
            monkeypatch.setattr(winners, "SLAB_BYTES", slab_bytes)
            found = labels_from_logits(logits, box, stage_shape, canonical_shape, out_box)
            assert found.dtype == np.uint8 and found.shape == out_box.shape_zyx
            np.testing.assert_array_equal(found[ahead > 1e-5], expected[ahead > 1e-5])


def test_most_classes_are_ruled_out_in_most_places():
    # A guard on speed: without it every class costs a whole volume.
    centers = np.random.default_rng(0).uniform(0, 48, (14, 3, 1, 1, 1))
    distances = np.sqrt(((np.indices((48, 48, 48))[None] - centers) ** 2).sum(axis=1))
    logits = torch.from_numpy((5.0 - distances).astype(np.float32))
    assert winners._possible_cells(logits).mean() < 0.5


def test_one_hot_logits_of_organs_give_the_organs_back():
    indices = np.zeros((60, 90, 90), np.uint8)
    z, y, x = np.mgrid[:60, :90, :90]
    for index, (center, radius) in enumerate([((30, 30, 30), 24), ((27, 65, 60), 18), ((42, 33, 70), 14)], start=1):
        inside = sum((g - c) ** 2 for g, c in zip((z, y, x), center, strict=True)) < radius**2
        indices[inside] = index
    stage_shape = (48, 72, 72)
    stage = resample_labels(indices, stage_shape)
    logits = F.one_hot(torch.from_numpy(stage.astype(np.int64)), 4).permute(3, 0, 1, 2).float()
    whole = BoundingBox.whole
    back = labels_from_logits(logits, whole(stage_shape), stage_shape, indices.shape, whole(indices.shape))
    for index in (1, 2, 3):
        a, b = back == index, indices == index
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.98


def test_more_than_256_classes():
    logits = torch.zeros((300, 2, 2, 2))
    logits[299] = 1
    whole = BoundingBox.whole((2, 2, 2))
    found = labels_from_logits(logits, whole, (2, 2, 2), (4, 4, 4), BoundingBox.whole((4, 4, 4)))
    assert found.dtype == np.uint16 and (found == 299).all()


def test_mixed_precision_of_the_caller_changes_nothing():
    logits = torch.randn((3, 6, 6, 6), generator=torch.Generator().manual_seed(0))
    whole = BoundingBox.whole
    plain = labels_from_logits(logits, whole((6, 6, 6)), (6, 6, 6), (13, 13, 13), whole((13, 13, 13)))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = labels_from_logits(logits, whole((6, 6, 6)), (6, 6, 6), (13, 13, 13), whole((13, 13, 13)))
    np.testing.assert_array_equal(plain, mixed)


@pytest.mark.parametrize("kinds", [("linear",) * 3, logit_kinds(None), logit_kinds(0), logit_kinds(1)])
@pytest.mark.parametrize("painted", [(), (2, 300, 1, 4, 3)])
def test_labels_of_planes_that_come_one_after_the_other_are_those_of_all_at_once(kinds, painted):
    generator = np.random.default_rng(0)
    stage = (13, 10, 9)
    for canonical in ((30, 17, 9), (13, 10, 9), (7, 21, 12), (4, 5, 20), (1, 3, 3)):
        box = box_within(generator, stage)
        out = box_within(generator, canonical)
        logits = torch.from_numpy(generator.normal(size=(5, *box.shape_zyx)).astype(np.float32))
        expected = labels_from_logits(logits, box, stage, canonical, out, kinds, painted)
        depth = box.shape_zyx[0]
        for cuts in (range(1, depth), generator.integers(0, depth, 2), [depth // 2]):
            labels = GrowingLabels(box, stage, canonical, out, kinds, painted)
            for start, stop in itertools.pairwise([0, *sorted(cuts), depth]):
                slab = logits[:, start:stop].clone()
                labels.add(slab)
                slab.fill_(float("nan"))  # as where the next slab overwrites it
            assert labels.indices_zyx.dtype == expected.dtype
            np.testing.assert_array_equal(labels.indices_zyx, expected)


def test_labels_are_not_given_before_all_planes_have_come():
    whole = BoundingBox.whole((4, 4, 4))
    labels = GrowingLabels(whole, (4, 4, 4), (4, 4, 4), whole)
    for _ in range(2):
        with pytest.raises(ValueError, match="of 4 planes"):
            labels.indices_zyx  # noqa: B018
        labels.add(torch.zeros((2, 1, 4, 4)))


@pytest.mark.parametrize("classes", [3, 300])
def test_labels_that_stay_on_the_device_until_all_are_made_are_the_same(classes, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(classes, 6, 4, 5, generator=generator)
    whole, shapes = BoundingBox.whole((6, 4, 5)), ((6, 4, 5), (13, 9, 11))
    out = BoundingBox(start=(2, 1, 3), stop=(12, 8, 9))
    expected = labels_from_logits(logits, whole, *shapes, out)
    monkeypatch.setattr(winners, "SLAB_BYTES", 16 * 7 * 6 * 2 // winners._GPU_SLABS)  # two planes
    monkeypatch.setattr(winners, "_stays", lambda _: True)
    downloads = []
    bring_down = GrowingLabels._bring_down
    monkeypatch.setattr(GrowingLabels, "_bring_down", lambda self: (downloads.append(1), bring_down(self)))
    for limit, count in ((1 << 20, 1), (0, 6)):  # in parts, each brings down what there is, and the end does
        downloads.clear()
        monkeypatch.setattr(winners, "_DEVICE_LABEL_BYTES", limit)
        np.testing.assert_array_equal(labels_from_logits(logits, whole, *shapes, out), expected)
        assert len(downloads) == count


@pytest.mark.parametrize("comes_back", [False, True])
def test_where_the_device_fails_half_way_the_labels_are_completed_in_main_memory(comes_back, monkeypatch):
    """And where it has memory again later, those that were made meanwhile stay."""
    logits = torch.randn(3, 12, 9, 10, generator=torch.Generator().manual_seed(0))
    whole, shapes = BoundingBox.whole((12, 9, 10)), ((12, 9, 10), (25, 20, 23))
    out = BoundingBox.whole((25, 20, 23))
    expected = labels_from_logits(logits, whole, *shapes, out)
    monkeypatch.setattr(winners, "SLAB_BYTES", 16 * 20 * 23 * 2 // winners._GPU_SLABS)
    on_gpu, made = [True], []
    monkeypatch.setattr(winners, "_stays", lambda _: on_gpu[0])
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, shape: self.new_full(shape, 99))  # whatever lies there
    winning = winners._winning

    def fail_once(*arguments):
        made.append(1)
        if len(made) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return winning(*arguments)

    monkeypatch.setattr(winners, "_winning", fail_once)
    labels = GrowingLabels(whole, *shapes, out)
    labels.add(logits[:, :5])
    with pytest.raises(torch.OutOfMemoryError):
        labels.add(logits[:, 5:9])
    on_gpu[0] = False
    labels.add(logits[:, 5:9])
    on_gpu[0] = comes_back
    labels.add(logits[:, 9:])
    np.testing.assert_array_equal(labels.indices_zyx, expected)
