import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flaresemi.evaluation.overlap import dice, dice_per_organ

masks = hnp.arrays(bool, (3, 4, 5))
maps = hnp.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3))


@given(masks)
def test_dice_with_itself_is_one(mask):
    assert dice(mask, mask) == 1.0


@given(masks, masks)
def test_dice_is_symmetric_and_a_share(one, other):
    assert dice(one, other) == dice(other, one)
    assert 0.0 <= dice(one, other) <= 1.0


@given(masks)
def test_nothing_found_and_nothing_there(mask):
    nothing = np.zeros_like(mask)
    assert dice(mask, nothing) == (0.0 if mask.any() else 1.0)


def test_half_of_a_mask_scores_two_thirds():
    whole = np.ones((2, 2, 2), bool)
    half = whole.copy()
    half[0] = False
    assert dice(half, whole) == pytest.approx(2 / 3)


@given(maps, maps)
def test_all_organs_in_one_pass_are_the_organs_one_by_one(prediction, reference):
    expected = [dice(prediction == index, reference == index) for index in (1, 2, 3)]
    assert dice_per_organ(prediction, reference, 3) == pytest.approx(expected)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        dice(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool))
    with pytest.raises(ValueError, match="one shape"):
        dice_per_organ(np.ones((2, 2, 2), int), np.ones((2, 2, 3), int), 1)


def test_dice_of_regions_is_that_of_their_masks():
    generator = np.random.default_rng(0)
    prediction, reference = generator.integers(0, 5, (2, 4, 5, 6)).astype(np.uint8)
    regions = ((1, 2, 3), (2, 3), (3,), (4,))
    expected = tuple(dice(np.isin(prediction, each), np.isin(reference, each)) for each in regions)
    assert dice_per_organ(prediction, reference, 4, regions) == pytest.approx(expected)
    nothing = np.zeros((2, 2, 2), np.uint8)
    assert dice_per_organ(nothing, nothing, 2, ((1, 2), (2,))) == (1.0, 1.0)
    assert dice_per_organ(nothing, nothing + 1, 2, ((1, 2), (2,))) == (0.0, 1.0)
