import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flaresemi.geometry import BoundingBox
from flaresemi.inference.regions import at_least, extended, organs_box, touched_by, touched_faces


def box(start, stop):
    return BoundingBox(start=start, stop=stop)


def test_box_of_all_organs():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:6, 3:8, 4:9] = 1
    labels[10:14, 3:8, 12:19] = 2
    assert organs_box(labels) == box((2, 3, 4), (14, 8, 19))


@pytest.mark.parametrize("organ", [1, 2, 3])
def test_specks_do_not_drag_the_box(organ):
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[20:30, 20:30, 20:30] = 1
    labels[30:34, 20:30, 20:30] = 2
    labels[0:2, 0:2, 0] = organ  # four voxels in a far corner, whatever organ they claim to be
    assert organs_box(labels) == box((20, 20, 20), (34, 30, 30))


def test_a_small_share_of_a_large_organ_is_a_speck_but_a_small_organ_is_not():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[20:32, 20:32, 20:32] = 1
    labels[0:3, 0:3, 0:4] = 1  # 36 of 1728 voxels: 2 %
    assert organs_box(labels) == box((20, 20, 20), (32, 32, 32))
    labels[0:3, 0:3, 0:4] = 2  # an organ of its own
    assert organs_box(labels) == box((0, 0, 0), (32, 32, 32))


def test_two_halves_of_an_organ_both_count():
    labels = np.zeros((30, 10, 30), np.uint8)
    labels[5:10, 2:8, 2:8] = 3
    labels[5:10, 2:8, 20:24] = 3
    assert organs_box(labels) == box((5, 2, 2), (10, 8, 24))


def test_no_organ_and_only_specks_have_no_box():
    labels = np.zeros((9, 9, 9), np.uint8)
    assert organs_box(labels) is None
    labels[4, 4, 4:7] = 1
    assert organs_box(labels) is None


@given(
    low=st.tuples(*[st.integers(0, 14)] * 3),
    size=st.tuples(*[st.integers(1, 6)] * 3),
    minimum=st.tuples(*[st.integers(1, 30)] * 3),
)
def test_grown_to_a_smallest_size_inside_the_volume(low, size, minimum):
    shape = (20, 20, 20)
    original = box(low, tuple(a + s for a, s in zip(low, size, strict=True)))
    grown = at_least(original, minimum, shape)
    assert grown.contains(original)
    assert BoundingBox.whole(shape).contains(grown)
    assert grown.shape_zyx == tuple(min(max(s, m), 20) for s, m in zip(size, minimum, strict=True))


def logits_of(labels, organs):
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), organs + 1).permute(3, 0, 1, 2).float()


def test_touched_faces_are_named_where_the_image_goes_on():
    labels = np.zeros((6, 8, 10), np.int64)
    labels[0, 2:5, 2:5] = 1
    labels[2:4, 2:6, 9] = 2
    labels[-1, 2:5, 2:5] = 2
    region = box((3, 0, 0), (9, 8, 10))
    faces = touched_faces(logits_of(labels, 2), region, (20, 30, 30))
    assert [(face.axis, face.high, face.indices) for face in faces] == [
        (0, False, (1,)),
        (0, True, (2,)),
        (2, True, (2,)),
    ]
    assert [face.name for face in faces] == ["inferior", "superior", "left"]


def test_the_border_of_the_image_is_no_touched_face():
    labels = np.ones((6, 8, 10), np.int64)
    region = box((0, 5, 0), (6, 13, 10))
    assert [face.name for face in touched_faces(logits_of(labels, 1), region, (6, 30, 10))] == ["anterior", "posterior"]
    assert touched_faces(logits_of(labels, 1), region, region.stop)[0].name == "anterior"
    assert touched_faces(logits_of(labels, 1), box((0, 0, 0), (6, 8, 10)), (6, 8, 10)) == ()


def test_a_few_voxels_do_not_touch():
    labels = np.zeros((6, 8, 10), np.int64)
    labels[0, 0, 0:3] = 1
    assert touched_faces(logits_of(labels, 1), box((3, 3, 3), (9, 11, 13)), (20, 20, 20)) == ()


def test_a_stray_blob_does_not_touch_but_a_small_organ_does():
    labels = np.zeros((20, 30, 30), np.int64)
    labels[6:16, 8:28, 8:28] = 1
    labels[0:2, 4:8, 4:8] = 1  # 32 of 4032 voxels
    region = box((5, 5, 5), (25, 35, 35))
    assert touched_faces(logits_of(labels, 2), region, (60, 60, 60)) == ()
    labels[0:2, 4:8, 4:8] = 2  # all there is of it
    (face,) = touched_faces(logits_of(labels, 2), region, (60, 60, 60))
    assert (face.name, face.indices) == ("inferior", (2,))


@pytest.mark.parametrize("seed", range(4))
def test_a_label_map_touches_what_its_scores_touch(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, (3, 4, 5)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    labels[generator.random(labels.shape) < 0.3] = 0
    region = box((3, 0, 5), (15, 16, 25))
    expected = touched_faces(logits_of(labels, 3), region, (40, 40, 40))
    assert expected
    assert touched_by(labels.astype(np.uint8), 4, region, (40, 40, 40)) == expected


def test_only_touched_faces_move():
    labels = np.zeros((6, 8, 10), np.int64)
    labels[:, :, 0] = 1
    labels[1:5, 1:7, 1:3] = 1
    region = box((10, 10, 4), (16, 18, 14))
    faces = touched_faces(logits_of(labels, 1), region, (40, 40, 40))
    moved = extended(region, faces, 10.0, (5.0, 2.5, 2.0), (40, 40, 40))
    # the right face is full; the organ's edge also lies in the four faces beside it, six voxels or more in each
    assert moved == box((8, 6, 0), (18, 22, 14))
    only_right = tuple(face for face in faces if face.axis == 2)
    assert extended(region, only_right, 4.0, (5.0, 2.5, 2.0), (40, 40, 40)) == box((10, 10, 2), (16, 18, 14))
