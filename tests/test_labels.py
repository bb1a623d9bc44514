import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaresemi import flare22
from flaresemi.labels import Label, LabelSet, count_values
from flaresemi.records import from_plain, record_hash


def label_set(values, background=0):
    return LabelSet(labels=tuple(Label(name=f"organ {value}", value=value) for value in values), background=background)


label_sets = st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=2, max_size=9, unique=True).map(
    lambda values: label_set(sorted(values[1:]), background=values[0])
)


@given(label_sets, st.data())
def test_values_become_indices_and_come_back(labels, data):
    known = [labels.background, *(label.value for label in labels.labels)]
    values = np.array(data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=30)))
    indices = labels.to_indices(values)
    assert [known[index] for index in indices] == values.tolist()
    assert labels.to_values(indices).tolist() == values.tolist()
    assert labels.unknown_values(values) == ()


@given(label_sets, st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20))
def test_undeclared_values_are_reported_and_read_as_background(labels, values):
    known = {labels.background, *(label.value for label in labels.labels)}
    array = np.array(values, np.int64)
    assert labels.unknown_values(array) == tuple(sorted({value for value in values if value not in known}))
    assert all(index == 0 for value, index in zip(values, labels.to_indices(array), strict=True) if value not in known)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_the_type_of_the_file_does_not_matter(kind):
    labels = label_set([5, 17, 200, 2000], background=-1)
    values = np.array([0, 5, 17, 200 if kind is not np.int8 else 17]).astype(kind)
    assert labels.to_indices(values).tolist() == [0, 1, 2, 3]


def test_indices_are_small_and_files_too():
    assert label_set([5, 17, 200]).to_indices(np.array([200])).dtype == np.uint8
    assert label_set(range(1, 301)).to_indices(np.array([300])).dtype == np.uint16
    assert label_set(range(1, 301)).to_indices(np.array([300])).tolist() == [300]
    assert label_set([5, 17, 200]).to_values(np.array([3])).dtype == np.uint8
    assert label_set([5, 17, 200], background=-1).to_values(np.array([3])).dtype == np.int16
    assert label_set([5, 70_000]).to_values(np.array([2])).dtype == np.int32


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"labels": ()}, "at least one label"),
        ({"labels": (Label(name="a", value=1), Label(name="b", value=1))}, "values must differ"),
        ({"labels": (Label(name="a", value=0),)}, "values must differ"),
        ({"labels": (Label(name="a", value=1), Label(name="a", value=2))}, "names must differ"),
        ({"labels": (Label(name="a", value=2**40),)}, "32 bits"),
        ({"labels": (Label(name="a", value=1),), "mirror_pairs": (("a", "b"),)}, "not a label"),
        (
            {
                "labels": tuple(Label(name=name, value=i + 1) for i, name in enumerate("abc")),
                "mirror_pairs": (("a", "b"), ("b", "c")),
            },
            "one mirror pair",
        ),
    ],
)
def test_label_sets_that_contradict_themselves_are_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        LabelSet(**broken)


def test_where_sides_are_unknown_nothing_is_mirrored_left_to_right():
    labels = label_set([1, 2])
    assert labels.mirror_axes((0, 2)) == (0, 2)
    unknown = dataclasses.replace(labels, mirror_pairs=None)
    assert unknown.mirror_axes((0, 2)) == (0,)
    assert unknown.mirror_permutation == (0, 1, 2)


def test_mirroring_twice_is_doing_nothing():
    permutation = flare22.LABELS.mirror_permutation
    assert [permutation[index] for index in permutation] == list(range(14))
    assert permutation[flare22.LABELS.index("right kidney")] == flare22.LABELS.index("left kidney")
    assert permutation[0] == 0


def test_flare22_is_the_home_task():
    assert flare22.LABELS.names[0] == "liver"
    assert flare22.LABELS.count == 13
    assert [label.value for label in flare22.LABELS.labels] == list(range(1, 14))
    assert {label.name: label.tolerance_mm for label in flare22.LABELS.labels}["duodenum"] == 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        flare22.LABELS.background = 1  # type: ignore[misc]


@given(
    st.lists(st.integers(-300, 300), max_size=40) | st.lists(st.integers(-(2**40), 2**40), max_size=40),
)
def test_counting_values_is_what_numpy_counts(values):
    array = np.array(values, np.int64)
    found, counts = np.unique(array, return_counts=True)
    assert count_values(array) == dict(zip(found.tolist(), counts.tolist(), strict=True))


def test_counting_does_not_overflow_small_types():
    assert count_values(np.array([-128, 127, 127], np.int8)) == {-128: 1, 127: 2}
    assert count_values(np.array([[0, 65_535]], np.uint16)) == {0: 1, 65_535: 1}


@pytest.mark.parametrize("name", ["liver\nerror: x", "a\x1b[2J", "\u202eevil", "a\u2028b", "\udcff", "a\tb"])
def test_names_that_cannot_be_seen_are_refused(name):
    with pytest.raises(ValueError, match="cannot be seen") as caught:
        Label(name=name, value=1)
    assert name not in str(caught.value)


@pytest.mark.parametrize("name", ["Leber", "肝臓", "kidney (right) + left = both", "$x$", "=1+1", "Nebenniere, rechte"])
def test_names_of_all_scripts_are_names(name):
    assert Label(name=name, value=1).name == name


def regions(organs, **settings):
    """Organs by their values: one, or several."""
    labels = tuple(Label(name=name, value=values[0], more_values=tuple(values[1:])) for name, values in organs.items())
    return LabelSet(labels=labels, **settings)


BRATS = regions({"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing": [3]})
CROSSING = regions({"right side": [1, 2], "liver or kidneys": [2, 3], "liver": [2]})


def test_nested_regions_are_told_apart_by_their_values():
    assert [(each.values, each.organs) for each in BRATS.classes] == [((1,), (1,)), ((2,), (1, 2)), ((3,), (1, 2, 3))]
    assert BRATS.members == BRATS.regions == ((1, 2, 3), (2, 3), (3,))
    assert (BRATS.count, BRATS.channels, BRATS.has_regions) == (3, 4, True)
    assert BRATS.names == ("whole tumor", "tumor core", "enhancing")
    assert BRATS.meanings[2] == "whole tumor + tumor core" == BRATS.class_names[1]
    assert BRATS.values == {"enhancing": 3}


def test_regions_may_cross():
    indices = CROSSING.to_indices(np.array([0, 1, 2, 3]))
    assert indices.tolist() == [0, 1, 2, 3]
    assert CROSSING.mask(indices, 1).tolist() == [False, True, True, False]
    assert CROSSING.mask(indices, 2).tolist() == [False, False, True, True]
    assert CROSSING.per_organ(np.array([100, 5, 7, 11])).tolist() == [12, 18, 7]
    assert CROSSING.organs_of((0, 3)) == (2,) and CROSSING.organs_of((1, 3)) == (1, 2)


def test_values_that_no_region_tells_apart_are_one_and_the_lowest_is_written():
    old_brats = {"whole tumor": [4, 1, 2, 3], "tumor core": [1, 3, 4], "enhancing": [4]}
    labels = regions(old_brats)
    assert labels.channels == 4
    assert labels.to_indices(np.array([1, 3])).tolist() == [1, 1]
    assert labels.to_values(np.array([0, 1, 2, 3])).tolist() == [0, 1, 2, 4]
    assert regions(old_brats, written_values=(3,)).to_values(np.array([1])).tolist() == [3]
    assert regions({"whole": [7, 5]}).to_values(np.array([0, 1])).tolist() == [0, 5]


def test_what_a_part_of_the_organs_tells_apart():
    assert BRATS.told_apart((1, 2, 3)) == (0, 1, 2, 3)
    assert BRATS.told_apart((1,)) == (0, 1, 1, 1)
    assert BRATS.told_apart((2,)) == (0, 0, 2, 2)
    assert BRATS.told_apart((1, 3)) == (0, 1, 1, 3)
    assert CROSSING.told_apart((1,)) == (0, 1, 1, 0)
    assert CROSSING.told_apart(()) == (0, 0, 0, 0)
    assert label_set([5, 17]).told_apart((2,)) == (0, 0, 2)


def test_what_is_left_where_an_organ_is_taken_out():
    assert BRATS.without(3) == (0, 1, 2, 2)
    assert BRATS.without(2) == (0, 1, 1, 1)
    assert BRATS.without(1) == (0, 0, 0, 0)  # a core without its tumor is nothing
    assert CROSSING.without(1) == (0, 0, 3, 3)  # value 2 is liver, too: what can be expressed of it is value 3
    assert label_set([5, 17]).without(2) == (0, 1, 0)


def test_mirroring_exchanges_what_belongs_to_paired_organs():
    kidneys = {"kidneys": [2, 3], "right kidney": [2], "left kidney": [3]}
    assert regions(kidneys, mirror_pairs=(("right kidney", "left kidney"),)).mirror_permutation == (0, 2, 1)
    with pytest.raises(ValueError, match="value 3 is left, hard, and no value is right, hard, which it becomes"):
        regions({"left": [1, 3], "right": [2], "hard": [3]}, mirror_pairs=(("right", "left"),))


def test_pictures_show_the_inner_organ():
    indices = np.array([0, 1, 2, 3])
    assert BRATS.painted(indices).tolist() == [0, 1, 2, 3]
    assert BRATS.painted(indices, {1, 2}).tolist() == [0, 1, 2, 2]
    assert CROSSING.painted(indices).tolist() == [0, 1, 3, 2]
    assert label_set([5, 17]).painted(np.array([0, 1, 2]), {2}).tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("organs", "message"),
    [
        ({"a": [0, 1]}, "background, value 0, can be part of no organ"),
        ({"a": [1, 2], "b": [2, 1]}, "'a' and 'b' are the same voxels"),
        ({"a": [1, 1]}, "names a value twice"),
        ({"a": [1, 2**31]}, "must fit 32 bits"),
    ],
)
def test_regions_that_contradict_themselves_are_refused(organs, message):
    with pytest.raises(ValueError, match=message):
        regions(organs)


def test_a_set_without_regions_is_known_by_what_it_was_known_by_before():
    labels = LabelSet(labels=(Label(name="liver", value=3), Label(name="spleen", value=5, z_range=True)))
    plain = {"labels": [{"name": "liver", "value": 3, "tolerance_mm": None, "z_range": False},
                        {"name": "spleen", "value": 5, "tolerance_mm": None, "z_range": True}],
             "background": 0, "mirror_pairs": []}  # fmt: skip
    assert from_plain(LabelSet, plain, source="plans.json") == labels
    assert record_hash(labels) == record_hash(plain)
    assert labels.reading == (0, 3, 5)
    assert record_hash(BRATS) != record_hash(label_set([1, 2, 3]))
