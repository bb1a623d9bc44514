import numpy as np
from scipy import ndimage

from flaresemi.inference.postprocessing import Cleaning, clean_organs, keep_attached, keep_largest
from flaresemi.labels import Label, LabelSet


def cleaned(labels: np.ndarray, organs: tuple[int, ...]) -> np.ndarray:
    copy = labels.copy()
    keep_largest(copy, organs)
    return copy


def test_keeps_the_largest_of_the_named_organs_only():
    labels = np.zeros((12, 12, 24), np.uint8)
    labels[1:5, 1:5, 1:5] = 1
    labels[8:10, 8:10, 8:10] = 1
    labels[1:5, 1:5, 5:9] = 2  # touches organ 1 without being part of it
    labels[8:10, 8:10, 10:12] = 2
    labels[0, 0, 20] = 3
    labels[5, 5, 22] = 3
    expected = labels.copy()
    expected[8:10, 8:10, 8:10] = 0
    assert np.array_equal(cleaned(labels, (1,)), expected)
    expected[8:10, 8:10, 10:12] = 0
    assert np.array_equal(cleaned(labels, (1, 2)), expected)


def test_same_as_one_organ_at_a_time_with_scipy():
    random = np.random.default_rng(3)
    labels = (ndimage.gaussian_filter(random.random((30, 28, 26)), 1.2) * 400).astype(np.int64) % 5
    labels = labels.astype(np.uint8)
    expected = labels.copy()
    for organ in (1, 2, 4):
        components, count = ndimage.label(labels == organ, structure=np.ones((3, 3, 3)))
        assert count > 1
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        expected[(labels == organ) & (components != sizes.argmax())] = 0
    assert np.array_equal(cleaned(labels, (1, 2, 4)), expected)


def test_nothing_to_do():
    labels = np.zeros((4, 4, 4), np.uint8)
    assert not cleaned(labels, (1, 2)).any()
    labels[0, 0, 0] = labels[3, 3, 3] = 1
    assert cleaned(labels, ()).sum() == 2
    assert cleaned(labels, (2,)).sum() == 2
    assert cleaned(labels, (1,)).sum() == 1  # equal sizes: one of them stays


def test_works_on_a_view_and_with_many_organs():
    labels = np.zeros((6, 6, 6), np.uint16)
    labels[1, 1, 1:4] = 300
    labels[4, 4, 4] = 300
    keep_largest(labels[::-1], (300,))
    assert labels.sum() == 900


def test_tells_what_was_kept_and_what_was_left_out():
    labels = np.zeros((6, 6, 12), np.uint8)
    labels[1, 1, 1:5] = 1
    labels[4, 4, [2, 6, 7]] = 1
    labels[2, 4, :3] = 2
    assert keep_largest(labels, (1, 2, 3)) == {1: (4, 3), 2: (3, 0)}
    assert keep_largest(labels, ()) == {}


def test_what_is_dropped_of_a_region_stays_what_it_is_besides():
    tumor = LabelSet(
        labels=(
            Label(name="whole", value=1, more_values=(2, 3)),
            Label(name="core", value=2, more_values=(3,)),
            Label(name="enhancing", value=3),
        )
    )
    row = np.array([[[1, 2, 2, 3, 1, 2, 1, 0, 1, 2, 0]]], np.uint8)

    def kept(organs: tuple[int, ...]) -> list[int]:
        copy = row.copy()
        clean_organs(copy, tumor, organs)
        return copy[0, 0].tolist()

    assert kept((2,)) == [1, 2, 2, 3, 1, 1, 1, 0, 1, 1, 0]
    assert kept((1,)) == [1, 2, 2, 3, 1, 2, 1, 0, 0, 0, 0]
    assert kept((1, 2)) == [1, 2, 2, 3, 1, 1, 1, 0, 0, 0, 0]
    assert kept(()) == row[0, 0].tolist()


HEART = LabelSet(labels=tuple(Label(name=name, value=value) for value, name in enumerate(("wall", "left", "right"), 1)))

#: The same values as regions: "whole" is the left one with its wall.
NESTED_HEART = LabelSet(
    labels=(
        Label(name="left", value=2),
        Label(name="whole", value=1, more_values=(2,)),
        Label(name="right", value=3),
    )
)


def heart() -> np.ndarray:
    """Organ 1 about organ 2, organ 3 beside them; far away a piece of 3 that is larger than organ 3 itself."""
    labels = np.zeros((12, 12, 40), np.uint8)
    labels[2:8, 2:8, 2:8], labels[4:6, 4:6, 4:6] = 1, 2
    labels[2:8, 2:8, 8:10] = 3
    return labels


def test_a_larger_piece_elsewhere_is_not_the_organ_where_another_one_hangs_together_with_its_neighbors():
    labels = heart()
    labels[2:8, 2:8, 30:36] = 3
    assert keep_attached(labels, HEART, (1, 2, 3)) == {1: (208, 0), 2: (8, 0), 3: (72, 216)}
    assert np.array_equal(labels, heart())


def test_regions_hang_together_like_the_values_that_they_are_made_of():
    values = heart()
    values[2:8, 2:8, 30:36] = 3  # a larger piece of the right one, and a whole of both others, elsewhere
    values[2:8, 2:8, 20:26], values[4:6, 4:6, 22:24] = 1, 2
    labels = NESTED_HEART.to_indices(values)
    kept = keep_attached(labels, NESTED_HEART, (1, 2, 3))
    assert kept == {1: (8, 8), 2: (216, 216), 3: (72, 216)}
    assert np.array_equal(labels, NESTED_HEART.to_indices(heart()))


def test_an_organ_that_is_only_elsewhere_is_not_lost():
    labels = heart()
    labels[labels == 3] = 0
    labels[2:8, 2:8, 30:36] = 3
    expected = labels.copy()
    expected[0, 0, 0] = 0
    labels[0, 0, 0] = 1
    assert keep_attached(labels, HEART, (1, 2, 3)) == {1: (208, 1), 2: (8, 0), 3: (216, 0)}
    assert np.array_equal(labels, expected)


def test_most_organs_count_before_most_voxels():
    labels = heart()
    labels[:, :, 12:36] = 3  # larger than all the heart, and not attached to it
    keep_attached(labels, HEART, (1, 2, 3))
    assert np.array_equal(labels[:, :, :10], heart()[:, :, :10])
    assert (labels[:, :, 12:36] == 3).all()  # what organ 3 has beside the heart is next to nothing: both stay


def test_cleaning_attaches_first_and_keeps_the_largest_then():
    labels = heart()
    labels[2:8, 2:8, 30:36] = 3
    labels[9, 9, 9] = 4
    labels[11, 11, 11:13] = 4
    named = LabelSet(labels=tuple(Label(name=str(index), value=index) for index in range(1, 5)))
    told = Cleaning(touching=((1, 2, 3),), largest=(3, 4))(labels, named)
    assert told[3] == (72, 216)
    assert told[4] == (2, 1)
    assert np.array_equal(labels[:, :, :10] * (labels[:, :, :10] != 4), heart()[:, :, :10])
