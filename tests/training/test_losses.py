import math

import pytest
import torch
from torch.nn import functional

from flaresemi.training import losses
from flaresemi.training.losses import (
    IGNORED,
    DeepSupervisionLoss,
    SegmentationLoss,
    merge_unsupervised,
    subsample,
    usual_size_power,
)

SHAPE = (6, 8, 10)


def target_with(*organs: int) -> torch.Tensor:
    target = torch.zeros(1, *SHAPE, dtype=torch.int64)
    for organ in organs:
        target[0, organ] = organ
    return target


def certain(target: torch.Tensor, channels: int = 4) -> torch.Tensor:
    return 30.0 * torch.nn.functional.one_hot(target, channels).movedim(-1, 1).float()


def all_supervised(channels: int = 4, batch: int = 1) -> torch.Tensor:
    return torch.ones(batch, channels, dtype=torch.bool)


def test_the_perfect_prediction_costs_nothing() -> None:
    target = target_with(1, 3)
    assert SegmentationLoss()(certain(target), target, all_supervised()).item() == pytest.approx(0, abs=1e-5)


def test_a_wrong_organ_costs_cross_entropy_and_dice() -> None:
    target = target_with(1)
    loss = SegmentationLoss()(certain(target_with(2)), target, all_supervised())
    assert loss.item() > 1  # Dice 0 alone costs 1


def test_absent_organs_get_no_dice_term() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(1, 4, *SHAPE), target_with()
    plain = torch.nn.functional.cross_entropy(logits, target)
    assert SegmentationLoss()(logits, target, all_supervised()).item() == pytest.approx(plain.item(), rel=1e-5)


def test_matches_the_textbook_formula() -> None:
    torch.manual_seed(1)
    logits, target = torch.randn(1, 4, *SHAPE), target_with(1, 2)
    probabilities = logits.softmax(dim=1)[0]
    dice = [
        2 * probabilities[organ][target[0] == organ].sum() / (probabilities[organ].sum() + (target == organ).sum())
        for organ in (1, 2)
    ]
    expected = torch.nn.functional.cross_entropy(logits, target) + 1 - sum(dice) / 2
    assert SegmentationLoss()(logits, target, all_supervised()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_small_organ_counts_with_the_root_of_its_voxels() -> None:
    target = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    target[0, 0, 0] = 1  # 4 of 64 voxels: roots 2 and sqrt(60)
    logits = torch.zeros(1, 2, 4, 4, 4)
    logits[:, 0] = 3.0  # wrong about the organ alone
    right, wrong = -math.log(1 / (1 + math.exp(-3.0))), -math.log(1 / (1 + math.exp(3.0)))
    expected = (2 * wrong + 60**0.5 * right) / (2 + 60**0.5)
    found = SegmentationLoss(dice_weight=0.0, size_power=usual_size_power(13))(logits, target, all_supervised(2))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    plain = SegmentationLoss(dice_weight=0.0, size_power=usual_size_power(3))(logits, target, all_supervised(2))
    assert plain.item() == pytest.approx(functional.cross_entropy(logits, target).item(), rel=1e-5)
    alike = SegmentationLoss(dice_weight=0.0, size_power=0.0)(logits, target, all_supervised(2))
    assert alike.item() == pytest.approx((wrong + right) / 2, rel=1e-5)


def test_unsupervised_organs_are_part_of_background() -> None:
    torch.manual_seed(2)
    logits, target = torch.randn(1, 4, *SHAPE, dtype=torch.float64), target_with(1, 2)
    supervised = torch.tensor([[True, True, False, True]])
    merged, merged_target = merge_unsupervised(logits, target, supervised)
    probabilities, before = merged.softmax(dim=1), logits.softmax(dim=1)
    torch.testing.assert_close(probabilities[:, 0], before[:, 0] + before[:, 2])
    torch.testing.assert_close(probabilities[:, 1], before[:, 1])
    assert probabilities[:, 2].max() < 1e-12
    assert not (merged_target == 2).any()
    assert ((merged_target == 1) == (target == 1)).all()


def test_nothing_is_learned_about_the_share_of_background_and_an_unsupervised_organ() -> None:
    """Moving probability between background and the unsupervised organ does not change the loss."""
    target = target_with(1)
    supervised = torch.tensor([[True, True, False, True]])
    as_background = certain(target)
    as_organ = as_background.clone()
    as_organ[:, 2], as_organ[:, 0] = as_background[:, 0], as_background[:, 2]
    loss = SegmentationLoss()
    assert loss(as_organ, target, supervised).item() == pytest.approx(
        loss(as_background, target, supervised).item(), abs=1e-5
    )
    assert loss(as_organ, target, all_supervised()).item() > 1


def test_gradients_stay_finite_with_unsupervised_organs() -> None:
    logits = torch.randn(1, 4, *SHAPE, requires_grad=True)
    supervised = torch.tensor([[True, False, False, True]])
    SegmentationLoss()(logits, target_with(1, 3), supervised).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_batch_is_the_mean_of_its_samples() -> None:
    torch.manual_seed(3)
    logits = torch.randn(2, 4, *SHAPE)
    target = torch.cat([target_with(1), target_with(2, 3)])
    together = SegmentationLoss()(logits, target, all_supervised(batch=2))
    for sample in range(2):
        alone = SegmentationLoss()(logits[sample : sample + 1], target[sample : sample + 1], all_supervised())
        assert together[sample].item() == pytest.approx(alone.item(), rel=1e-5)


def test_deep_supervision_weighs_levels_by_halves_and_leaves_out_the_lowest() -> None:
    target = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    target[:, 2:6, 2:6, 2:6] = 1
    levels = [torch.zeros(1, 2, size, size, size, requires_grad=True) for size in (8, 4, 2)]
    single = SegmentationLoss()
    expected = (
        single(levels[0], target, all_supervised(2))
        + 0.5 * single(levels[1], subsample(target, levels[1].shape[2:]), all_supervised(2))
    ) / 1.5
    loss = DeepSupervisionLoss(single)(levels, target, all_supervised(2))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.sum().backward()
    assert levels[2].grad is not None  # distributed training needs every level in the graph
    assert not levels[2].grad.any()


def test_ignored_voxels_change_nothing() -> None:
    torch.manual_seed(3)
    logits, target = torch.randn(2, 4, *SHAPE), torch.cat([target_with(1, 2), target_with(3)])
    supervised = torch.tensor([[True, True, True, True], [True, False, True, True]])
    expected = SegmentationLoss()(logits, target, supervised)
    wider, more = torch.randn(2, 4, *SHAPE[:2], 12), torch.full((2, *SHAPE[:2], 12), IGNORED)
    wider[..., 1:11], more[..., 1:11] = logits, target
    wider.requires_grad_()
    loss = SegmentationLoss()(wider, more, supervised)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert wider.grad is not None and not wider.grad[..., [0, 11]].any() and wider.grad[..., 1:11].any()


def test_a_sample_of_ignored_voxels_alone_costs_nothing() -> None:
    loss = SegmentationLoss()(torch.randn(1, 4, *SHAPE), torch.full((1, *SHAPE), IGNORED), all_supervised())
    assert loss.tolist() == [0.0]


#: Two regions that cross, and one inside both: index 1 is a, 2 is a, b and c, 3 is b.
REGIONS = ((1, 2), (2, 3), (2,))


def a_case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 3, 4, 5, generator=generator, requires_grad=True)
    return logits, torch.randint(0, 4, (2, 3, 4, 5), generator=generator)


def test_dice_is_of_the_regions_and_cross_entropy_of_the_indices():
    logits, target = a_case()
    probability = logits.softmax(dim=1)
    expected = functional.cross_entropy(logits, target, reduction="none").mean(dim=(1, 2, 3))
    for indices in REGIONS:
        inside, found = sum(target == i for i in indices).bool(), sum(probability[:, i] for i in indices)
        overlap, size = (found * inside).sum(dim=(1, 2, 3)), found.sum(dim=(1, 2, 3)) + inside.sum(dim=(1, 2, 3))
        expected = expected + (1 - 2 * overlap / size) / 3
    loss = SegmentationLoss(REGIONS)(logits, target, torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(loss, expected)


def test_what_the_supervised_regions_do_not_tell_apart_is_one():
    logits, target = a_case()
    supervised = torch.tensor([[True, True, False, False], [True, False, True, False]])
    merged, merged_target = merge_unsupervised(logits, target, supervised, REGIONS)
    probability, before = merged.softmax(dim=1), logits.softmax(dim=1)
    torch.testing.assert_close(probability[0, 1], before[0, 1] + before[0, 2])  # a: index 1 and 2 are alike
    torch.testing.assert_close(probability[0, 0], before[0, 0] + before[0, 3])
    torch.testing.assert_close(probability[1, 2], before[1, 2] + before[1, 3])  # b: index 2 and 3 are
    torch.testing.assert_close(probability[1, 0], before[1, 0] + before[1, 1])
    assert probability[0, 2:].max() == 0 and probability[1, 1].max() == 0
    assert torch.equal(merged_target[0], torch.tensor([0, 1, 1, 0])[target[0]])
    assert torch.equal(merged_target[1], torch.tensor([0, 0, 2, 2])[target[1]])


def test_a_region_alone_is_learned_as_by_a_network_of_two_outputs():
    logits, target = a_case()
    supervised = torch.tensor([[True, True, False, False]] * 2)
    loss = SegmentationLoss(REGIONS)(logits, target, supervised)
    two = torch.stack([logits[:, [0, 3]].logsumexp(dim=1), logits[:, 1:3].logsumexp(dim=1)], dim=1)
    expected = SegmentationLoss()(two, torch.tensor([0, 1, 1, 0])[target], torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_organs_of_one_index_each_are_what_they_are_without_regions():
    logits, target = a_case()
    supervised = torch.tensor([[True, True, False, True], [True, False, False, True]])
    plain, regions = SegmentationLoss(), SegmentationLoss(((1,), (2,), (3,)))
    torch.testing.assert_close(plain(logits, target, supervised), regions(logits, target, supervised))
    for one, other in zip(
        merge_unsupervised(logits, target, supervised),
        merge_unsupervised(logits, target, supervised, ((1,), (2,), (3,))),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_ignored_voxels_change_nothing_of_regions():
    logits, target = a_case()
    supervised = torch.tensor([[True, True, False, True], [True] * 4])
    expected = SegmentationLoss(REGIONS)(logits, target, supervised)
    wider = torch.cat([logits, torch.randn(2, 4, 3, 4, 2)], dim=4)
    more = torch.cat([target, torch.full((2, 3, 4, 2), IGNORED)], dim=3)
    torch.testing.assert_close(SegmentationLoss(REGIONS)(wider, more, supervised), expected)


@pytest.mark.parametrize("supervision", ["all", "some"])
@pytest.mark.parametrize("organs", [None, tuple((index, index + 1) for index in range(1, 70)) + ((70,),)])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("size_power", [0.5, 1.0])
def test_many_organs_are_the_same_loss_part_by_part(monkeypatch, supervision, organs, ignored, size_power):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 71, 9, 6, 7, generator=generator, requires_grad=True)
    target = torch.randint(0, 71, (2, 9, 6, 7), generator=generator)
    target[0, 3:5] = 0
    if ignored:
        target[0, :, 2] = IGNORED
        target[1] = IGNORED
    supervised = torch.ones(2, 71, dtype=torch.bool)
    if supervision == "some":
        supervised[0, 1::3] = False
    found = []
    for many, part_bytes in ((1000, 0), (64, 0), (64, 4 * 2 * 71 * 2 * 42), (64, 1 << 40)):
        monkeypatch.setattr(losses, "MANY_OUTPUTS", many)
        monkeypatch.setattr(losses, "PART_BYTES", part_bytes)
        loss = SegmentationLoss(organs, size_power=size_power)(logits, target, supervised)
        (gradient,) = torch.autograd.grad((loss * torch.tensor([1.0, 3.0])).sum(), logits)
        found.append((loss, gradient))
    (expected, slope), *others = found
    for loss, gradient in others:
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-8)


def test_of_many_organs_nothing_of_the_size_of_the_logits_is_kept():
    logits = torch.randn(1, 80, 16, 16, 16, requires_grad=True)
    target = torch.randint(0, 80, (1, 16, 16, 16))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        loss = SegmentationLoss()(logits, target, all_supervised(80))
    assert sum(each.numel() == logits.numel() for each in kept) == 1  # the logits themselves
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_few_organs_are_the_loss_that_they_always_were():
    assert losses.MANY_OUTPUTS >= 64
    logits = torch.randn(1, 64, 4, 4, 4, requires_grad=True)
    loss = SegmentationLoss()(logits, torch.zeros(1, 4, 4, 4, dtype=torch.int64), all_supervised(64))
    assert "SumsOverParts" not in _names(loss.grad_fn)
    many = torch.randn(1, 65, 4, 4, 4, requires_grad=True)
    loss = SegmentationLoss()(many, torch.zeros(1, 4, 4, 4, dtype=torch.int64), all_supervised(65))
    assert "SumsOverParts" in _names(loss.grad_fn)


def _names(node) -> str:
    return "" if node is None else node.name() + "".join(_names(before) for before, _ in node.next_functions)
