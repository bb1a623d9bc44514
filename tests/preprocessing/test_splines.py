"""Splines are those of scikit-image, which nnU-Net asks for them, value by value."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.transform import resize

from flaresemi.geometry import BoundingBox
from flaresemi.preprocessing.splines import logit_kinds, resample_spline, resample_values, separate_axis, spline_shape
from tests.made_labels import labels_from_logits

SHAPES = [((20, 30, 25), (31, 22, 50)), ((5, 30, 25), (9, 41, 13)), ((1, 7, 9), (2, 9, 4)), ((6, 7, 8), (6, 9, 8))]


@pytest.mark.parametrize(("shape", "to"), SHAPES)
def test_images_are_those_of_scikit_image(shape: tuple[int, int, int], to: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = resize(image.astype(float), to, 3, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(resample_spline(image[None], to, None)[0], expected, atol=2e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_taken_one_by_one(axis: int) -> None:
    image = np.random.default_rng(0).standard_normal((9, 10, 11)).astype(np.float32)
    to = (13, 7, 17)
    flat = [size for number, size in enumerate(to) if number != axis]
    planes = np.stack(
        [
            resize(plane.astype(float), flat, 3, mode="edge", anti_aliasing=False)
            for plane in np.moveaxis(image, axis, 0)
        ]
    )
    place = (len(planes) / to[axis]) * (np.arange(to[axis]) + 0.5) - 0.5
    grid = np.meshgrid(place, *map(np.arange, flat), indexing="ij")
    expected = np.moveaxis(ndimage.map_coordinates(planes, grid, order=0, mode="nearest"), 0, axis)
    np.testing.assert_allclose(resample_spline(image[None], to, axis)[0], expected, atol=2e-6)


@pytest.mark.parametrize(("shape", "to"), SHAPES)
def test_logits_are_interpolated_without_widening(shape: tuple[int, int, int], to: tuple[int, int, int]) -> None:
    logits = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    expected = np.stack([resize(each.astype(float), to, 1, mode="edge", anti_aliasing=False) for each in logits])
    box = BoundingBox.whole
    found = labels_from_logits(torch.from_numpy(logits), box(shape), shape, to, box(to), logit_kinds(None))
    assert (found == expected.argmax(0)).all()


def _masks_of_scikit_image(labels: np.ndarray, to: tuple[int, ...]) -> np.ndarray:
    """batchgenerators' rule: each value's mask, the largest; of equals the nearest voxel's value, else the lowest."""
    values = np.unique(labels)
    scores = np.stack([_linear(labels == value, to) for value in values])
    nearest = np.searchsorted(values, resize(labels.astype(float), to, 0, mode="edge", anti_aliasing=False))
    top = np.take_along_axis(scores, nearest[None], 0)[0] == scores.max(0)
    return values[np.where(top, nearest, scores.argmax(0))]


def _linear(mask: np.ndarray, to: tuple[int, ...]) -> np.ndarray:
    return resize(mask.astype(float), to, 1, mode="edge", anti_aliasing=False)


@pytest.mark.parametrize("slab", [1, 1 << 20])
@pytest.mark.parametrize("shape_and_to", [*SHAPES, ((20, 30, 26), (10, 15, 13)), ((23, 13, 9), (7, 4, 3))])
def test_label_maps_are_those_of_nnunet_ties_too(
    shape_and_to: tuple[tuple[int, int, int], tuple[int, int, int]], slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flaresemi.preprocessing.splines._SLAB_VOXELS", slab)
    shape, to = shape_and_to
    labels = np.random.default_rng(0).choice([-1, 0, 2, 5, 300], shape)
    assert (resample_values(labels, to, None) == _masks_of_scikit_image(labels, to)).all()
    for axis in (0, 1, 2):  # plane by plane, then the nearest plane
        flat = tuple(size for number, size in enumerate(to) if number != axis)
        planes = np.stack([_masks_of_scikit_image(plane, flat) for plane in np.moveaxis(labels, axis, 0)])
        place = np.floor((len(planes) / to[axis]) * (np.arange(to[axis]) + 0.5)).astype(int)
        assert (resample_values(labels, to, axis) == np.moveaxis(planes[place], 0, axis)).all()


def test_halves_of_voxels_are_rounded_as_nnunet_rounds_them() -> None:
    """15 voxels of 2.77 mm at 5.54 mm are 7.5, or a little less if the extent is computed first."""
    assert spline_shape((15, 27, 1), (2.77, 1.52, 1.0), (5.54, 3.04, 9.0)) == (8, 14, 1)


@pytest.mark.parametrize(
    ("old", "new", "axis"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
        ((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 5.0), 2),
        ((1.0, 5.0, 1.0), (1.0, 1.0, 5.0), 1),  # the image's own spacing comes first
        ((5.0, 5.0, 1.0), (1.0, 1.0, 5.0), None),  # two long axes: nnU-Net interpolates all
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
    ],
)
def test_the_axis_of_long_voxels(old: tuple, new: tuple, axis: int | None) -> None:
    assert separate_axis(old, new) == axis
