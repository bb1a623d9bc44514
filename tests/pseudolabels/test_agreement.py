import numpy as np
import pytest

from flaresemi.pseudolabels.agreement import case_agreement, organ_agreement, organ_entropy


def mask(organ: int, start: int, stop: int) -> np.ndarray:
    labels = np.zeros((4, 4, 20), np.uint8)
    labels[:, :, start:stop] = organ
    return labels


def test_identical_masks_agree_fully() -> None:
    labels = mask(1, 0, 10)
    assert organ_agreement(labels, [labels, labels], [1.0])[0] == 1


def test_agreement_is_the_mean_dice_with_the_snapshots() -> None:
    half = organ_agreement(mask(1, 0, 10), [mask(1, 5, 15), mask(1, 0, 10)], [1.0])
    assert half[0] == pytest.approx((0.5 + 1) / 2)


def test_absent_from_both_is_skipped_and_from_one_is_zero() -> None:
    empty, found = mask(1, 0, 0), mask(1, 0, 10)
    assert organ_agreement(empty, [empty, empty], [1.0]) == (None,)
    assert organ_agreement(empty, [found, empty], [1.0]) == (0.0,)
    assert organ_agreement(found, [empty, found], [1.0]) == (0.5,)


def test_specks_count_as_absent() -> None:
    speck = mask(1, 0, 0)
    speck[0, 0, 0] = 1
    assert organ_agreement(speck, [mask(1, 0, 0)], [5.0]) == (None,)
    assert organ_agreement(speck, [mask(1, 0, 10)], [5.0]) == (0.0,)


def test_a_case_with_nothing_in_it_has_no_score() -> None:
    assert case_agreement([None, None]) == 0
    assert case_agreement([None, 0.6, 0.8]) == pytest.approx(0.7)


def test_entropy_is_averaged_inside_the_organ_alone() -> None:
    labels = mask(1, 0, 10)
    entropy = np.where(labels == 1, 0.25, 1.0)
    entropy[:, :, 0] = 0.75
    assert organ_entropy(entropy, labels, 2) == (pytest.approx(0.3), None)


def test_regions_agree_and_are_sure_as_wholes() -> None:
    regions = ((1, 2), (2,))
    saved, snapshot = mask(1, 0, 10), mask(2, 0, 10)
    assert organ_agreement(saved, [snapshot], [1.0, 1.0], regions) == (1.0, 0.0)  # of one shape, told apart otherwise
    saved[:, :, 5:10] = 2
    entropy = np.where(saved == 2, 0.5, 0.25)
    assert organ_entropy(entropy, saved, 2, regions) == (pytest.approx(0.375), pytest.approx(0.5))
