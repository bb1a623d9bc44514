from pathlib import Path

import numpy as np
import pytest

from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.io.case_store import CaseRecord, CaseStore
from flaresemi.labels import Label, LabelSet
from flaresemi.training.anatomy import one_sided, organs_in_one_piece, organs_that_touch

SHAPE = (8, 8, 40)
LABELS = LabelSet(labels=(Label(name="organ", value=1), Label(name="other", value=2)))
GRID = StageGrid(
    canonical_shape_zyx=SHAPE,
    canonical_spacing_zyx_mm=(1.0, 1.0, 1.0),
    body_box=BoundingBox.whole(SHAPE),
    shape_zyx=SHAPE,
)


def pieces(*lengths: int) -> np.ndarray:
    """Organ 1 in pieces of these lengths, organ 2 in one corner."""
    label, start = np.zeros(SHAPE, np.uint8), 0
    label[7, 7, :5] = 2
    for length in lengths:
        label[2:4, 2:4, start : start + length] = 1
        start += length + 2
    return label


def store_of(folder: Path, *label_maps: np.ndarray, supervised: tuple[int, ...] = (1, 2)) -> CaseStore:
    store = CaseStore(folder)
    for number, label in enumerate(label_maps):
        record = CaseRecord.labeled(
            case_id=f"c{number}",
            preprocessing_hash="test",
            grid=GRID,
            label_zyx=label,
            organs=max(2, *supervised),
            supervised=supervised,
        )
        store.write(record, np.zeros((1, *SHAPE), np.float32), label)
    return store


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([(10,), (12,), (8,)], ("organ", "other")),
        ([(10,), (12,), (8, 8)], ("other",)),  # two pieces in one case
        ([(10,), (12,), ()], ("other",)),  # absent in one
        ([(10,), (12,)], ()),  # two cases tell nothing
    ],
)
def test_organs_that_are_one_piece_in_every_case(tmp_path: Path, lengths: list, expected: tuple[str, ...]) -> None:
    store = store_of(tmp_path, *(pieces(*each) for each in lengths))
    assert organs_in_one_piece(store, [f"c{number}" for number in range(len(lengths))], LABELS) == expected


def test_what_varies_like_a_lesion_is_not_taken_for_an_organ(tmp_path: Path) -> None:
    small = pieces()
    small[2, 2, 2:5] = 1  # 3 voxels, against 160
    assert organs_in_one_piece(store_of(tmp_path, small, pieces(40), pieces(40)), ["c0", "c1", "c2"], LABELS) == (
        "other",
    )


def test_a_slip_of_annotation_does_not_count(tmp_path: Path) -> None:
    slipped = pieces(38)
    slipped[5, 5, 39] = 1  # 1 voxel of 153
    store = store_of(tmp_path, slipped, pieces(38), pieces(38))
    assert organs_in_one_piece(store, ["c0", "c1", "c2"], LABELS) == ("organ", "other")


def test_cases_that_do_not_annotate_an_organ_tell_nothing_of_it(tmp_path: Path) -> None:
    store = store_of(tmp_path, *[pieces(10)] * 3, supervised=(1,))
    assert organs_in_one_piece(store, ["c0", "c1", "c2"], LABELS) == ("organ",)


def three(folder: Path, label: np.ndarray) -> CaseStore:
    return store_of(folder, label, np.roll(label, 1, axis=0), np.roll(label, 1, axis=1))


NAMES = ["c0", "c1", "c2"]


def test_organs_that_touch_in_every_case_hang_together(tmp_path: Path) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[2:4, 2:4, 5:10], label[2:4, 2:4, 10:14] = 1, 2
    assert organs_that_touch(three(tmp_path / "always", label), NAMES, LABELS) == (("organ", "other"),)
    apart = label.copy()
    apart[:, :, 10] = 0
    assert organs_that_touch(store_of(tmp_path / "once", label, label, apart), NAMES, LABELS) == ()
    assert organs_that_touch(store_of(tmp_path / "two", label, label), NAMES[:2], LABELS) == ()
    partly = store_of(tmp_path / "partly", label, label, label, supervised=(1,))
    assert organs_that_touch(partly, NAMES, LABELS) == ()


REGIONS = LabelSet(
    labels=(
        Label(name="inside", value=2),
        Label(name="whole", value=1, more_values=(2,)),
        Label(name="beside", value=3),
    )
)


def test_regions_hang_together_where_they_are_one_piece(tmp_path: Path) -> None:
    values = np.zeros(SHAPE, np.uint8)
    values[2:6, 2:6, 5:10], values[3:5, 3:5, 6:8], values[2:6, 2:6, 10:14] = 1, 2, 3
    one = REGIONS.to_indices(values)
    touching = organs_that_touch(store_of(tmp_path / "one", one, one, one, supervised=(1, 2, 3)), NAMES, REGIONS)
    assert touching == (("inside", "whole", "beside"),)
    values[2:6, 2:6, 30:33], values[3:5, 3:5, 31] = 1, 2  # as a tumor may be: each overlaps the other all the same
    two = REGIONS.to_indices(values)
    scattered = store_of(tmp_path / "two", one, one, two, supervised=(1, 2, 3))
    assert organs_that_touch(scattered, NAMES, REGIONS) == ()


@pytest.mark.parametrize(
    ("shifts", "pairs", "expected"),
    [
        ((0, 1, 2), (), ("organ", "other")),  # always 15 voxels to the left of the other
        ((0, 1, 2), (("organ", "other"),), None),  # a pair: it changes places
        ((0, 30, 0), (), None),  # once on the other side
        ((0, 1), (), None),  # two cases tell nothing
    ],
)
def test_an_organ_that_is_always_on_the_same_side_of_another(
    tmp_path: Path, shifts: tuple[int, ...], pairs: tuple, expected: tuple[str, str] | None
) -> None:
    maps = []
    for shift in shifts:
        label = np.zeros(SHAPE, np.uint8)
        label[2:4, 2:4, 2 + shift : 6 + shift] = 1
        label[2:4, 6:8, 17:21] = 2
        maps.append(label)
    labels = LabelSet(labels=LABELS.labels, mirror_pairs=pairs)
    assert one_sided(store_of(tmp_path, *maps), NAMES[: len(maps)], labels, voxel_mm=1.0) == expected


@pytest.mark.parametrize(("start", "expected"), [(2, ("myocardium", "RV and LV")), (17, None)])
def test_a_pair_by_name_has_a_side_where_another_organ_always_lies_beside_its_middle(
    tmp_path: Path, start: int, expected: tuple[str, str] | None
) -> None:
    names = ("RV", "myocardium", "LV")
    labels = LabelSet(
        labels=tuple(Label(name=name, value=value) for value, name in enumerate(names, start=1)),
        mirror_pairs=(("RV", "LV"),),
    )
    maps = []
    for shift in range(3):
        label = np.zeros(SHAPE, np.uint8)
        label[2:4, 2:4, 10 + shift : 14 + shift], label[2:4, 2:4, 26 - shift : 30 - shift] = 1, 3
        label[2:4, 6:8, start : start + 6] = 2
        maps.append(label)
    store = store_of(tmp_path, *maps, supervised=(1, 2, 3))
    assert one_sided(store, ("c0", "c1", "c2"), labels, voxel_mm=1.0) == expected


def test_organs_in_the_middle_are_on_no_side(tmp_path: Path) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[2:4, 2:4, 10:21], label[2:4, 6:8, 11:22] = 1, 2  # a voxel apart, which is how a person draws
    assert one_sided(three(tmp_path, label), NAMES, LABELS, voxel_mm=1.0) is None


@pytest.mark.parametrize(("apart_mm", "expected"), [(12.0, ("organ", "other")), (3.0, None)])
def test_both_stages_say_the_same_of_sides(tmp_path: Path, apart_mm: float, expected: tuple[str, str] | None) -> None:
    """As FINE and COARSE see it: the middle of many voxels is known better than to one of them."""
    for voxel_mm in (1.5, 7.2):
        label = np.zeros(SHAPE, np.uint8)
        wide = round(36 / voxel_mm)
        apart = apart_mm / voxel_mm
        label[2:4, 2:4, 2 : 2 + wide] = 1
        label[2:4, 6:8, 2 + int(apart) : 2 + int(apart) + wide] = 2
        part = round(4 * (apart % 1))  # so many of four rows lie a voxel further
        for row in range(part):
            label[2 + row // 2, 6 + row % 2] = np.roll(label[2 + row // 2, 6 + row % 2], 1)
        store = three(tmp_path / str(voxel_mm), label)
        assert one_sided(store, NAMES, LABELS, voxel_mm=voxel_mm) == expected
