import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaresemi import flare22
from flaresemi.labels import Label, LabelSet, count_values


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
