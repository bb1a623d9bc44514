import dataclasses

import numpy as np
import pytest

from flaresemi import flare22
from flaresemi.geometry import Geometry
from flaresemi.io.images import read_grid, read_image, read_label_map, write_label_map
from flaresemi.phantom import Phantom, make_phantom
from flaresemi.phantom.patient import Patient

_NAMES = flare22.LABELS.names
_SEEDS = range(8)

#: Millilitres between which an organ of an adult lies, with room for sampling at 8 mm.
_PLAUSIBLE_ML = {
    "liver": (600, 2600),
    "right kidney": (50, 330),
    "spleen": (40, 500),
    "pancreas": (25, 170),
    "aorta": (25, 230),
    "inferior vena cava": (20, 260),
    "right adrenal gland": (0, 16),
    "left adrenal gland": (0, 16),
    "gallbladder": (6, 90),
    "esophagus": (4, 60),
    "stomach": (120, 600),
    "duodenum": (20, 190),
    "left kidney": (50, 330),
}


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed, shape_zyx=(48, 48, 48), vary=False) for seed in _SEEDS]


def _volume_ml(phantom: Phantom, name: str) -> float:
    voxel_ml = float(np.prod(phantom.geometry.spacing_zyx_mm)) / 1000
    return float((phantom.label == flare22.LABELS.index(name)).sum()) * voxel_ml


def _center(phantom: Phantom, name: str, rows: slice = slice(None)) -> tuple[float, float, float]:
    """LPS world position of an organ's middle, within some slices."""
    z, y, x = np.argwhere(phantom.label[rows] == flare22.LABELS.index(name)).mean(axis=0)
    return phantom.geometry.world_xyz_mm((z + (rows.start or 0), y, x))


def _has(phantom: Phantom, name: str) -> bool:
    return bool((phantom.label == flare22.LABELS.index(name)).any())


def test_the_same_seed_gives_the_same_phantom_and_another_seed_another():
    first, again, other = (make_phantom(seed, shape_zyx=(20, 24, 24)) for seed in (5, 5, 6))
    assert np.array_equal(first.image_hu, again.image_hu)
    assert np.array_equal(first.label, again.label)
    assert first.source == again.source
    assert not np.array_equal(first.label, other.label)


def test_a_phantom_does_not_touch_the_global_random_state():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    make_phantom(1, shape_zyx=(12, 12, 12))
    assert np.array_equal(before, np.random.get_state()[1])


def test_types_shapes_and_values(phantoms):
    for phantom in phantoms:
        assert phantom.image_hu.dtype == np.int16
        assert phantom.label.dtype == np.uint8
        assert phantom.image_hu.shape == phantom.label.shape == phantom.geometry.shape_zyx == (48, 48, 48)
        assert phantom.label.max() <= 13
        assert -1024 <= phantom.image_hu.min() < -900
        assert 300 < phantom.image_hu.max() <= 3071


def test_large_organs_are_always_there_and_small_ones_in_most(phantoms):
    small = ("right adrenal gland", "left adrenal gland")
    for name in _NAMES:
        present = sum(_has(phantom, name) for phantom in phantoms)
        assert present >= len(phantoms) - (2 if name in small else 0), name


def test_organs_have_plausible_sizes(phantoms):
    for phantom in phantoms:
        for name, (low, high) in _PLAUSIBLE_ML.items():
            assert low <= _volume_ml(phantom, name) <= high, name


def test_sizes_differ_between_patients_by_what_they_do_in_people(phantoms):
    for name in ("liver", "spleen", "left kidney", "stomach"):
        volumes = [_volume_ml(phantom, name) for phantom in phantoms]
        assert 0.05 < np.std(volumes) / np.mean(volumes) < 0.6, name


def test_organs_lie_on_their_side(phantoms):
    for phantom in phantoms:
        # x grows toward the patient's left.
        assert _center(phantom, "right kidney")[0] < -25
        assert _center(phantom, "left kidney")[0] > 25
        assert _center(phantom, "liver")[0] < _center(phantom, "stomach")[0]
        assert _center(phantom, "gallbladder")[0] < _center(phantom, "left kidney")[0]
        assert _center(phantom, "spleen")[0] > 50
        if _has(phantom, "right adrenal gland") and _has(phantom, "left adrenal gland"):
            assert _center(phantom, "right adrenal gland")[0] < _center(phantom, "left adrenal gland")[0]


def test_the_aorta_lies_left_of_the_vena_cava_and_before_the_spine(phantoms):
    for phantom in phantoms:
        rows = slice(16, 32)
        aorta, cava = (_center(phantom, name, rows) for name in ("aorta", "inferior vena cava"))
        assert aorta[0] > cava[0] + 8
        assert aorta[1] < 50


def test_neighbors_are_stacked_as_in_people(phantoms):
    for phantom in phantoms:
        heights = {name: _center(phantom, name)[2] for name in ("liver", "left kidney", "esophagus", "duodenum")}
        assert heights["esophagus"] > heights["liver"] > heights["duodenum"]
        # The stomach lies before the kidney: y grows toward the back.
        assert _center(phantom, "stomach")[1] < _center(phantom, "left kidney")[1]


def test_no_label_outside_the_body(phantoms):
    for phantom in phantoms:
        inside = phantom.image_hu[phantom.label > 0]
        # Gas in the stomach is as dark as air, so the share is bounded, not the least value.
        assert np.mean(inside < -500) < 0.1
        edge = np.ones(phantom.label.shape, bool)
        edge[:, 3:-3, 3:-3] = False
        assert not phantom.label[edge].any()


def test_left_and_right_kidney_look_alike(phantoms):
    for phantom in phantoms:
        right, left = (
            np.median(phantom.image_hu[phantom.label == flare22.LABELS.index(f"{side} kidney")])
            for side in ("right", "left")
        )
        assert abs(right - left) < 25


def test_intensity_alone_does_not_tell_organs_apart(phantoms):
    overlapping = 0
    for phantom in phantoms:
        ranges = [
            np.percentile(phantom.image_hu[phantom.label == value], (25, 75))
            for value in range(1, 14)
            if (phantom.label == value).any()
        ]
        overlapping += sum(a[0] < b[1] and b[0] < a[1] for i, a in enumerate(ranges) for b in ranges[:i])
    assert overlapping / len(phantoms) > 15  # of 78 pairs


def test_one_patient_on_two_grids_is_one_anatomy():
    coarse = make_phantom(2, shape_zyx=(44, 56, 56), vary=False)
    fine_geometry = _refined(coarse.geometry)
    fine = make_phantom(2, shape_zyx=fine_geometry.shape_zyx, vary=False, geometry=fine_geometry)
    for name in ("liver", "spleen", "left kidney", "right kidney", "stomach", "pancreas"):
        assert _volume_ml(fine, name) == pytest.approx(_volume_ml(coarse, name), rel=0.08), name
        assert _center(fine, name) == pytest.approx(_center(coarse, name), abs=2.0), name


def _refined(geometry: Geometry) -> Geometry:
    """The same extent with twice the voxels per axis, edges aligned."""
    first = geometry.world_xyz_mm((-0.25, -0.25, -0.25))
    return dataclasses.replace(
        geometry,
        shape_zyx=tuple(2 * size for size in geometry.shape_zyx),
        spacing_zyx_mm=tuple(spacing / 2 for spacing in geometry.spacing_zyx_mm),
        origin_xyz_mm=first,
    )


def test_a_turned_grid_sees_the_same_organs():
    straight = make_phantom(4, shape_zyx=(40, 44, 44), vary=False)
    angle = np.deg2rad(9.0)
    direction = (np.cos(angle), -np.sin(angle), 0.0, np.sin(angle), np.cos(angle), 0.0, 0.0, 0.0, 1.0)
    turned = dataclasses.replace(straight.geometry, direction=tuple(map(float, direction)))
    center = np.array(straight.geometry.world_xyz_mm((19.5, 21.5, 21.5)))
    shift = center - np.array(turned.world_xyz_mm((19.5, 21.5, 21.5)))
    turned = dataclasses.replace(turned, origin_xyz_mm=tuple((np.array(turned.origin_xyz_mm) + shift).tolist()))
    other = make_phantom(4, shape_zyx=(40, 44, 44), vary=False, geometry=turned)
    for name in ("liver", "left kidney", "spleen"):
        assert _center(other, name) == pytest.approx(_center(straight, name), abs=3.0), name


def test_a_geometry_of_another_shape_is_refused():
    geometry = Geometry(shape_zyx=(8, 8, 8), spacing_zyx_mm=(40.0, 50.0, 50.0))
    with pytest.raises(ValueError, match="shape"):
        make_phantom(0, shape_zyx=(8, 8, 9), geometry=geometry)


@pytest.mark.parametrize("shape_zyx", [(2, 2, 2), (3, 40, 7), (1, 16, 16), (40, 6, 9)])
def test_any_shape_can_be_made(shape_zyx):
    phantom = make_phantom(9, shape_zyx=shape_zyx)
    assert phantom.image_hu.shape == shape_zyx
    assert all(np.isfinite(phantom.geometry.spacing_zyx_mm))


def test_organs_are_missing_about_as_often_as_they_should():
    missing = [Patient.draw(seed).missing for seed in range(600)]
    shares = {name: sum(name in names for names in missing) / 600 for name in ("gallbladder", "spleen", "left kidney")}
    assert 0.07 < shares["gallbladder"] < 0.18
    assert 0.003 < shares["spleen"] < 0.05
    assert 0.001 < shares["left kidney"] < 0.05
    assert not any({"left kidney", "right kidney"} <= names for names in missing)
    assert set().union(*(Patient.draw(seed, vary=False).missing for seed in range(50))) == set()


def test_a_missing_organ_has_no_label():
    seed = next(seed for seed in range(100) if "gallbladder" in Patient.draw(seed).missing)
    phantom = make_phantom(seed, shape_zyx=(40, 48, 48))
    assert "gallbladder" in phantom.missing
    assert not _has(phantom, "gallbladder")


def test_all_phases_occur():
    assert {Patient.draw(seed).phase for seed in range(60)} == {"none", "arterial", "portal", "delayed"}


def test_grids_vary_and_survive_a_file(tmp_path):
    kinds = set()
    for seed in range(12):
        phantom = make_phantom(seed, shape_zyx=(10, 12, 14))
        write_label_map(tmp_path / "label.nii.gz", phantom.label, phantom.source)
        write_label_map(tmp_path / "image.nii.gz", phantom.image_hu, phantom.source)
        image, label = read_image([tmp_path / "image.nii.gz"]), read_label_map(tmp_path / "label.nii.gz")
        assert np.array_equal(label.array_zyx, phantom.label)
        assert np.array_equal(image.array_czyx[0], phantom.image_hu)
        assert read_grid(tmp_path / "image.nii.gz").canonical.far_corner_distance_mm(phantom.geometry) < 1e-2
        oblique = not np.allclose(np.abs(phantom.geometry.direction), np.eye(3).ravel())
        kinds.add((phantom.source.axes, phantom.source.flips, oblique))
    assert len(kinds) >= 5
    assert {oblique for *_, oblique in kinds} == {True, False}
