"""Resampling: parts equal the whole, nothing aliases, and labels come out as the plain way would give them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from flaresemi.geometry import BoundingBox
from flaresemi.preprocessing import resampling
from flaresemi.preprocessing.resampling import input_support, resample_labels, resample_part

SHAPES = [(9, 14, 11), (18, 28, 22), (20, 17, 40), (4, 5, 6), (9, 5, 30), (1, 1, 1)]


def resample_image(image: np.ndarray, shape: tuple, *how) -> np.ndarray:
    """All of the image is known."""
    known = image.shape[1:]
    return resample_part(image, BoundingBox.whole(known), known, shape, *how)


def box_within(generator: np.random.Generator, shape: tuple) -> BoundingBox:
    start = [int(generator.integers(0, size)) for size in shape]
    stop = [int(generator.integers(low + 1, size + 1)) for low, size in zip(start, shape, strict=True)]
    return BoundingBox(start=tuple(start), stop=tuple(stop))


def organs(shape: tuple, count: int, seed: int = 0) -> np.ndarray:
    """A label map of smooth regions."""
    generator = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(generator.normal(size=shape), 3) for _ in range(count)]
    return np.argmax(fields, axis=0).astype(np.uint8)


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_part_equals_the_same_part_of_the_whole(shape, kind):
    generator = np.random.default_rng(0)
    image = generator.normal(size=(2, 9, 14, 11)).astype(np.float32)
    whole = resample_image(image, shape, kind)
    assert whole.shape == (2, *shape) and whole.dtype == np.float32
    for _ in range(10):
        box = box_within(generator, shape)
        expected = whole[(slice(None), *box.slices)]
        np.testing.assert_allclose(resample_image(image, shape, kind, box), expected, atol=1e-5)
        support = input_support((9, 14, 11), shape, kind, box)
        cut = image[(slice(None), *support.slices)]
        np.testing.assert_allclose(resample_part(cut, support, (9, 14, 11), shape, kind, box), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_the_same_shape_changes_no_bit(kind):
    image = np.random.default_rng(0).normal(size=(1, 9, 14, 11)).astype(np.float32)
    np.testing.assert_array_equal(resample_image(image, (9, 14, 11), kind), image)
    # An axis that stays keeps its values when others change.
    flat = np.repeat(image[:, :, :1], 14, axis=2)
    np.testing.assert_allclose(
        resample_image(flat, (9, 20, 11), kind), np.repeat(flat[:, :, :1], 20, axis=2), atol=1e-6
    )


def test_enlarging_is_trilinear():
    image = np.random.default_rng(0).normal(size=(1, 9, 14, 11)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(image)[None], size=(20, 14, 29), mode="trilinear")[0].numpy()
    np.testing.assert_allclose(resample_image(image, (20, 14, 29)), expected, atol=1e-4)


def test_shrinking_is_antialiased_as_torch_does_in_two_dimensions():
    # Away from the border, where torch leaves taps out and flaresemi repeats the edge.
    image = np.random.default_rng(0).normal(size=(1, 1, 60, 60)).astype(np.float32)
    for kind, mode in (("linear", "bilinear"), ("cubic", "bicubic")):
        expected = F.interpolate(torch.from_numpy(image), size=(23, 41), mode=mode, antialias=True)[0].numpy()
        found = resample_image(image, (1, 23, 41), kind)[0]
        np.testing.assert_allclose(found[:, 4:-4, 4:-4], expected[:, 4:-4, 4:-4], atol=1e-5)


def test_fine_stripes_become_gray_and_not_coarse_stripes():
    stripes = np.tile([0.0, 1.0], 50).astype(np.float32).reshape(1, 1, 1, 100)
    shrunk = resample_image(stripes, (1, 1, 33))[0, 0, 0, 2:-2]
    assert np.abs(shrunk - 0.5).max() < 0.06


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_constants_stay_and_ramps_stay_ramps(shape, kind):
    constant = np.full((1, 9, 14, 11), 3.25, np.float32)
    np.testing.assert_allclose(resample_image(constant, shape, kind), 3.25, rtol=1e-6)
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32), (1, 2, 2, 40)).copy()
    for size in (13, 27, 40, 75):
        found = resample_image(ramp, (2, 2, size), kind)[0, 0, 0]
        expected = (np.arange(size) + 0.5) * 40 / size - 0.5
        inner = slice(size // 4, -size // 4)
        # A widened kernel sees its taps at uneven distances, which moves a ramp by a hundredth of a voxel.
        np.testing.assert_allclose(found[inner], expected[inner], atol=1e-4 if size >= 40 else 0.05)


def test_read_only_and_flipped_arrays():
    image = np.random.default_rng(0).normal(size=(1, 5, 6, 7)).astype(np.float32)
    flipped = image[:, ::-1, :, ::-1]
    np.testing.assert_array_equal(resample_image(flipped, (8, 6, 9)), resample_image(flipped.copy(), (8, 6, 9)))
    image.flags.writeable = False
    assert resample_image(image, (3, 3, 3)).shape == (1, 3, 3, 3)


def plain_labels(indices: np.ndarray, shape: tuple) -> tuple[np.ndarray, np.ndarray]:
    """All classes at once, and how far the winner is ahead."""
    classes = np.arange(int(indices.max()) + 1)
    masks = (indices[None] == classes[:, None, None, None]).astype(np.float32)
    weights = np.sort(resample_image(masks, shape), axis=0)
    ahead = weights[-1] - weights[-2] if len(classes) > 1 else np.ones(shape)
    return resample_image(masks, shape).argmax(axis=0), ahead


@pytest.mark.parametrize("shape", [(24, 30, 40), (40, 50, 33), (10, 13, 12), (24, 60, 7), (50, 30, 40)])
def test_labels_are_those_of_all_classes_at_once(shape):
    indices = organs((24, 30, 40), 5)
    indices[indices == 3] = 7  # numbers may be missing
    found = resample_labels(indices, shape)
    expected, ahead = plain_labels(indices, shape)
    assert found.dtype == indices.dtype and found.shape == shape
    np.testing.assert_array_equal(found[ahead > 1e-5], expected[ahead > 1e-5])


def test_label_ties_go_to_the_lower_index():
    indices = np.array([2, 1], np.uint8).reshape(1, 1, 2)
    assert resample_labels(indices, (1, 1, 3)).ravel().tolist() == [2, 1, 1]
    indices = np.array([1, 0], np.uint8).reshape(1, 1, 2)
    assert resample_labels(indices, (1, 1, 3)).ravel().tolist() == [1, 0, 0]


def test_empty_full_and_wide_label_maps():
    for dtype in (np.uint8, np.uint16):
        assert not resample_labels(np.zeros((4, 5, 6), dtype), (9, 9, 9)).any()
        assert (resample_labels(np.full((4, 5, 6), 3, dtype), (9, 9, 9)) == 3).all()
    wide = np.zeros((6, 6, 6), np.uint16)
    wide[2:4] = 1000
    assert set(np.unique(resample_labels(wide, (12, 12, 12)))) == {0, 1000}


def test_planes_on_a_cpu_and_the_matrix_on_a_gpu_are_the_same():
    volume = torch.randn((7, 5, 6), generator=torch.Generator().manual_seed(0))
    for size in (3, 5, 12):
        axis = resampling.axis_weights(7, size, "cubic", slice(0, size), slice(0, 7))
        planes = resampling.apply_axis(volume, 0, axis)
        matrix = (axis.matrix(volume.device) @ volume.reshape(7, -1)).reshape(size, 5, 6)
        torch.testing.assert_close(planes, matrix, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    from_size=st.integers(1, 40),
    to_size=st.integers(1, 40),
    kind=st.sampled_from(["linear", "cubic"]),
    data=st.data(),
)
def test_any_sizes(from_size, to_size, kind, data):
    start = data.draw(st.integers(0, to_size - 1))
    stop = data.draw(st.integers(start + 1, to_size))
    image = np.random.default_rng(0).uniform(1, 2, (1, 1, from_size, 1)).astype(np.float32)
    whole = resample_image(image, (1, to_size, 1), kind)
    box = BoundingBox(start=(0, start, 0), stop=(1, stop, 1))
    np.testing.assert_allclose(resample_image(image, (1, to_size, 1), kind, box), whole[:, :, start:stop], atol=1e-5)
    slack = 0.0 if kind == "linear" else 0.3
    assert image.min() - slack - 1e-5 <= whole.min() and whole.max() <= image.max() + slack + 1e-5


@pytest.mark.parametrize(("size", "to"), [(9, 20), (20, 9), (12, 12), (1, 5)])
@pytest.mark.parametrize("kind", ["linear", "cubic", "interpolate", "nearest"])
def test_the_matrix_of_a_part_is_cut_out_of_that_of_the_axis(size, to, kind):
    cpu = torch.device("cpu")
    axis = resampling.axis_weights(size, to, kind, slice(0, to), slice(0, size))
    inner = axis.part(slice(to // 4, to))
    for part in (axis, inner, inner.part(slice(1, 3)), axis.part(slice(to - 1, to))):
        assert torch.equal(part._part_of_matrix(cpu), part.matrix(cpu))
        volume = torch.rand(part.span.stop - part.span.start, 3, 4)
        by_matrix = (part._part_of_matrix(cpu) @ volume.reshape(len(volume), -1)).reshape(-1, 3, 4)
        torch.testing.assert_close(by_matrix, resampling.apply_axis(volume, 0, part))
    assert len(axis._matrices) == 1 and not inner._matrices
