import logging

import numpy as np
import pytest

from flaresemi.errors import DatasetError
from flaresemi.labels import LabelSet
from flaresemi.records import dumps, load_record
from tests.test_description import describe


def labels_of(tmp_path, labels, **content):
    return describe(tmp_path, {"labels": labels, **content}).labels


def test_brats_is_read_as_nnunet_reads_it(tmp_path, caplog):
    brats = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}
    with caplog.at_level(logging.WARNING):
        labels = labels_of(tmp_path, brats, regions_class_order=[1, 2, 3])
    assert labels.names == ("whole tumor", "tumor core", "enhancing tumor")
    assert labels.to_values(labels.to_indices(np.arange(4))).tolist() == [0, 1, 2, 3]
    assert not caplog.records


def test_kits_writes_each_region_with_its_value_of_the_order(tmp_path, caplog):
    kits = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}
    with caplog.at_level(logging.WARNING):
        labels = labels_of(tmp_path, kits, regions_class_order=[1, 3, 2])
    assert [labels.to_values(np.array(index)).item() for index in (1, 2, 3)] == [1, 2, 3]
    assert labels.meanings[3] == "kidney + masses"
    assert not caplog.records


def test_of_values_with_one_meaning_the_one_of_the_order_is_written(tmp_path):
    old_brats = {"background": 0, "whole": [1, 2, 3, 4], "core": [1, 3, 4], "enhancing": 4}
    assert labels_of(tmp_path, old_brats, regions_class_order=[2, 3, 4]).to_values(np.array([1])).item() == 3
    assert labels_of(tmp_path, old_brats).to_values(np.array([1])).item() == 1


def test_an_order_that_cannot_say_an_overlap_is_warned_of_and_the_overlap_written(tmp_path, caplog):
    crossing = {"background": 0, "right side": [1, 2], "liver": [2, 3]}
    labels = labels_of(tmp_path, crossing, regions_class_order=[1, 3])
    assert labels.to_values(np.array([1, 2, 3])).tolist() == [1, 2, 3]
    (warning,) = caplog.messages
    assert "would write right side + liver as 3, which is liver; 2 is written" in warning


def test_an_order_without_regions_means_nothing_as_in_nnunet(tmp_path):
    plain = {"background": 0, "spleen": [2], "liver": 1}
    labels = labels_of(tmp_path, plain, regions_class_order=[7])
    assert labels == labels_of(tmp_path, {"background": 0, "spleen": 2, "liver": 1})
    assert labels.names == ("liver", "spleen") and not labels.has_regions


def test_sides_that_regions_contradict_are_not_mirrored(tmp_path, caplog):
    labels = labels_of(tmp_path, {"left kidney": [1, 3], "right kidney": 2, "tumor": 3})
    assert labels.mirror_pairs is None
    assert "nothing is mirrored left to right: mirror pairs: value 3 is left kidney, tumor" in caplog.text


def test_a_dataset_of_one_region_alone(tmp_path):
    labels = labels_of(tmp_path, {"background": 0, "kidneys": [2, 3]})
    assert (labels.channels, labels.background) == (2, 0)
    assert labels.to_values(np.array([0, 1])).tolist() == [0, 2]
    assert labels_of(tmp_path, {"kidneys": ["2", 3]}) == labels


@pytest.mark.parametrize("order", [[1], [1, 2.5, 3], "123", [True, 2, 3], [1, 2, None]])
def test_other_orders_are_refused_with_the_file(tmp_path, order):
    with pytest.raises(DatasetError, match="regions_class_order must be a list of 3 integers") as complaint:
        labels_of(tmp_path, {"a": [1, 2, 3], "b": [2, 3], "c": 3}, regions_class_order=order)
    assert "dataset.json" in str(complaint.value)


def test_a_label_set_with_regions_comes_back_from_its_record(tmp_path):
    labels = labels_of(tmp_path, {"a": [3, 1], "b": 3}, regions_class_order=[1, 3])
    (tmp_path / "labels.json").write_text(dumps(labels))
    assert load_record(tmp_path / "labels.json", LabelSet) == labels
