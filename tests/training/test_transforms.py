"""Every transform in torch against that of batchgenerators, with the same parameters; and how often, and how far."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from batchgenerators.augmentations import (
    color_augmentations,
    noise_augmentations,
    resample_augmentations,
    spatial_transformations,
)
from scipy.stats import ks_2samp

from flaresemi.training.augmentation import STRENGTHS, Augmentation, SecondView, Strength
from flaresemi.training.draws import Changes, IntensityChanges, draw_changes, draw_second_view, is_drawn
from flaresemi.training.transforms import (
    at_low_resolution,
    blurred,
    changed_intensities,
    changed_place,
    with_contrast,
    with_gamma,
)

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """An image as a scan is: float32, negative and positive values, structure larger than a voxel."""
    field = np.random.default_rng(seed).normal(0, 1, shape)
    for axis in (-3, -2, -1):
        field = field + np.roll(field, 1, axis) + np.roll(field, -1, axis)
    return field.astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sd_voxels", [0.5, 0.73, 1.0])
@pytest.mark.parametrize("shape", [(9, 20, 31), (2, 5, 16), (1, 3, 4)])
def test_blur(shape: tuple[int, ...], sd_voxels: float, device: torch.device) -> None:
    image = smooth(shape)
    expected = noise_augmentations.augment_gaussian_blur(image[None].copy(), (sd_voxels, sd_voxels))[0]
    given = torch.tensor(image, device=device)
    np.testing.assert_allclose(blurred(given, sd_voxels).cpu(), expected, atol=1e-5)
    np.testing.assert_array_equal(given.cpu(), image)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_contrast(factor: float, device: torch.device) -> None:
    image = smooth((9, 20, 31))
    expected = color_augmentations.augment_contrast(image[None].copy(), lambda: factor)[0]
    found = with_contrast(torch.tensor(image, device=device), factor).cpu()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.max() <= image.max()
    assert found.min() >= image.min()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("zoom", [0.5, 0.61, 0.75, 0.99])
@pytest.mark.parametrize("shape", [(9, 20, 31), (16, 24, 48), (2, 3, 4)])
def test_low_resolution(shape: tuple[int, int, int], zoom: float, device: torch.device) -> None:
    image = smooth(shape)
    expected = resample_augmentations.augment_linear_downsampling_scipy(
        image[None].copy(), (zoom, zoom), order_downsample=0, order_upsample=1
    )[0]
    z, y, x = np.round(np.array(shape) * zoom).astype(int).tolist()
    np.testing.assert_allclose(
        at_low_resolution(torch.tensor(image, device=device), (z, y, x)).cpu(), expected, atol=1e-4
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("inverted", [False, True])
def test_gamma(gamma: float, inverted: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth((9, 20, 31))
    monkeypatch.setattr(np.random, "uniform", lambda low, high: gamma)
    expected = color_augmentations.augment_gamma(
        image[None].copy(), (0.7, 1.5), invert_image=inverted, per_channel=True, retain_stats=True
    )[0]
    given = torch.tensor(image, device=device)
    found = (-with_gamma(-given, gamma) if inverted else with_gamma(given, gamma)).cpu()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose([found.mean(), found.std()], [image.mean(), image.std()], rtol=1e-3)


def test_a_constant_image_stays_finite() -> None:
    flat = torch.full((4, 5, 6), -3.0)
    for changed in (with_gamma(flat, 0.7), with_contrast(flat, 1.25), blurred(flat, 1.0)):
        np.testing.assert_allclose(changed, flat, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("patch", "read"), [((10, 16, 20), (12, 20, 24)), ((8, 12, 12), (8, 16, 16)), ((5, 9, 7), (6, 12, 10))]
)
@pytest.mark.parametrize(
    ("angles", "scale"),
    [
        ((0.3, -0.2, 0.5), None),
        ((0.4, 0.0, 0.0), None),
        (None, 0.7),
        (None, 1.4),
        ((-0.5, 0.1, 0.2), 1.25),
        (None, None),
    ],
)
def test_rotation_and_scaling(
    patch: tuple[int, int, int],
    read: tuple[int, int, int],
    angles: tuple[float, float, float] | None,
    scale: float | None,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linear within rounding, labels but for voxels that lie just between two; outside, what was asked for."""
    image, fill, label_fill = np.stack([smooth(read), smooth(read, 1) + 9]), (-2.0, 5.0), 3
    label = (smooth(read, 2) > 0).astype(np.uint8) + (smooth(read, 3) > 0)
    augmentation = Augmentation(patch, (1.0, 1.0, 1.0), "standard", (), (0, 1, 2))
    changes = Changes(angles_zyx=angles, scale=scale)
    expected_image, expected_label = by_batchgenerators(
        image, label, augmentation, changes, fill, label_fill, monkeypatch
    )
    found_image, found_label = changed_place(
        torch.tensor(image, device=device),
        torch.tensor(label, device=device),
        patch,
        changes,
        fill=fill,
        label_fill=label_fill,
    )
    assert found_label.dtype == torch.uint8
    np.testing.assert_allclose(found_image.cpu(), expected_image, atol=2e-3)
    assert (found_label.cpu().numpy() != expected_label).mean() < 2e-3
    if scale == 1.4:
        assert (expected_label == label_fill).any()
        assert (expected_image[0] == fill[0]).any()


def by_batchgenerators(
    image: np.ndarray,
    label: np.ndarray,
    augmentation: Augmentation,
    changes: Changes,
    fill: tuple[float, ...],
    label_fill: int,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[np.ndarray, np.ndarray]:
    """What `Augmentation` makes of a patch with these angles and this scale."""
    augmentation.strength = dataclasses.replace(
        augmentation.strength,
        rotation_probability=float(changes.angles_zyx is not None),
        scaling_probability=float(changes.scale is not None),
    )
    turn = spatial_transformations.rotate_coords_3d
    resize = spatial_transformations.scale_coords
    with monkeypatch.context() as patched:
        patched.setattr(
            spatial_transformations, "rotate_coords_3d", lambda coords, *_: turn(coords, *(changes.angles_zyx or ()))
        )
        patched.setattr(spatial_transformations, "scale_coords", lambda coords, _: resize(coords, changes.scale))
        return augmentation._spatial(image, label, np.array(fill, np.float32), label_fill)


@pytest.mark.parametrize("device", DEVICES)
def test_the_changes_come_in_nnunets_order_and_leave_the_patch_alone(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, channel by channel, against the numpy functions one after the other."""
    image = np.stack([smooth((8, 12, 16)), smooth((8, 12, 16), 1)])
    changes = IntensityChanges(
        noise=(0.07, 5),
        blur=(None, 0.8),
        brightness=(0.8, 1.2),
        contrast=(1.2, 0.8),
        low_resolution=((5, 7, 10), None),
        inverted_gamma=(0.8, 1.3),
        gamma=(1.4, 0.7),
    )
    given = torch.tensor(image, device=device)
    generator = torch.Generator(device)
    found = changed_intensities(given, changes, generator)
    np.testing.assert_array_equal(given.cpu(), image)
    generator.manual_seed(5)
    expected = image + 0.07 * torch.randn(image.shape, generator=generator, device=device).cpu().numpy()
    expected[1] = noise_augmentations.augment_gaussian_blur(expected[1:], (0.8, 0.8))[0]
    # Of brightness, a first factor is drawn and not used.
    uniforms = iter([0.0, 0.8, 1.2, 0.8, 1.3, 1.4, 0.7])
    factors = iter([1.2, 0.8])
    monkeypatch.setattr(np.random, "uniform", lambda low, high: next(uniforms))
    resize = resample_augmentations.resize
    expected = color_augmentations.augment_brightness_multiplicative(expected)
    with monkeypatch.context() as patched:
        patched.setattr(np.random, "uniform", lambda *_: 0.0)  # whether a channel is changed
        expected = color_augmentations.augment_contrast(expected, lambda: next(factors))
    small = resize(expected[0].astype(float), (5, 7, 10), order=0, mode="edge", anti_aliasing=False)
    expected[0] = resize(small, (8, 12, 16), order=1, mode="edge", anti_aliasing=False)
    for inverted in (True, False):
        expected = color_augmentations.augment_gamma(
            expected, (0.7, 1.5), invert_image=inverted, per_channel=True, retain_stats=True
        )
    np.testing.assert_allclose(found.cpu(), expected, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_noise_has_its_standard_deviation_and_is_seeded(device: torch.device) -> None:
    image = torch.zeros(2, 24, 24, 24, device=device)
    generator = torch.Generator(device)
    one, same, other = (
        changed_intensities(image, IntensityChanges(noise=(0.05, seed)), generator) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    np.testing.assert_allclose([one.mean().cpu(), one.std().cpu()], [0, 0.05], atol=1e-3)
    assert not torch.equal(one[0], one[1])


class Seen:
    """What batchgenerators drew, by the numpy functions that it calls with it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[str, list[float]] = {}
        self._watch(monkeypatch, spatial_transformations, "rotate_coords_3d", lambda _, *angles: {"angle": angles})
        self._watch(monkeypatch, spatial_transformations, "scale_coords", lambda _, scale: {"scale": (scale,)})
        self._watch(monkeypatch, noise_augmentations, "gaussian_filter", lambda _, sd, **__: {"blur": (sd,)})
        self._watch(monkeypatch, resample_augmentations, "resize", self._shape)
        self._watch(monkeypatch, np.random, "normal", lambda mean, sd, size: {"noise": (sd,)})
        self._watch(monkeypatch, np, "power", lambda _, gamma: {"gamma": (gamma,)})

    def _shape(self, _: np.ndarray, shape: tuple[int, ...], *, order: int, **__: object) -> dict[str, tuple]:
        return {"zoom": (shape[0] / 100,)} if order == 0 else {}

    def _watch(self, monkeypatch: pytest.MonkeyPatch, place: object, name: str, told: Callable[..., dict]) -> None:
        before = getattr(place, name)

        def watched(*arguments: object, **named: object) -> object:
            for key, values in told(*arguments, **named).items():
                self.values.setdefault(key, []).extend(values)
            return before(*arguments, **named)

        monkeypatch.setattr(place, name, watched)


@pytest.mark.parametrize("strength", sorted(STRENGTHS))
def test_everything_is_drawn_as_often_and_as_far_as_by_batchgenerators(
    strength: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One slim patch of two channels, many times; with brightness and contrast told by what they make of it."""
    count, shape = 700, (100, 1, 1)
    augmentation = Augmentation(shape, (1.0, 1.0, 1.0), strength, (2,), (0, 1))
    seen = Seen(monkeypatch)
    label, image = np.zeros(augmentation.input_zyx, np.uint8), np.stack([smooth(augmentation.input_zyx)] * 2)
    for seed in range(count):
        augmentation(image, label, np.zeros(2, np.float32), seed)
    drawn = [draw_changes(augmentation, 2, seed) for seed in range(count)]
    looks = [each.intensities for each in drawn]
    found: dict[str, list[float]] = {
        "angle": [angle for each in drawn if each.angles_zyx for angle in each.angles_zyx],
        "scale": [each.scale for each in drawn if each.scale is not None],
        "noise": [look.noise[0] for look in looks if look.noise for _ in range(2)],
        "blur": [sd for look in looks for sd in look.blur or () if sd is not None],
        "zoom": [small[0] / 100 for look in looks for small in look.low_resolution or () if small is not None],
        "gamma": [gamma for look in looks for gamma in (*(look.inverted_gamma or ()), *(look.gamma or ()))],
    }
    assert {name for name, values in found.items() if values} == seen.values.keys()
    for name, expected in seen.values.items():
        # Two draws of a share of 700 differ by less than four of their standard deviations.
        assert abs(len(found[name]) - len(expected)) < 4 * np.sqrt(6 * max(len(expected), 1)), name
        assert ks_2samp(found[name], expected).pvalue > 1e-3, name
    flips = np.mean([each.flips == (2,) for each in drawn])
    assert abs(flips - 0.5) < 0.08


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_brightness_and_contrast_are_drawn_as_by_batchgenerators(name: str) -> None:
    augment = {
        "brightness": lambda image: color_augmentations.augment_brightness_multiplicative(image, (0.75, 1.25)),
        "contrast": lambda image: color_augmentations.augment_contrast(image, (0.75, 1.25), preserve_range=False),
    }[name]
    np.random.seed(0)
    image = np.array([-1.0, 1.0], np.float64).reshape(1, 2, 1, 1)
    expected = [float(augment(image.copy())[0, 1, 0, 0]) for _ in range(500)]
    view = SecondView("standard")
    found = [getattr(draw_second_view(view, 1, (4, 4, 4), seed), name) for seed in range(3000)]
    values = [each[0] for each in found if each is not None]
    assert abs(len(values) / 3000 - 0.15) < 0.025
    assert ks_2samp(values, expected).pvalue > 1e-3


@pytest.mark.parametrize("thick", range(3), ids=["axial", "coronal", "sagittal"])
def test_thick_slices_are_turned_about_their_axis_alone(thick: int) -> None:
    shape, spacing = np.insert([32, 32], thick, 4).tolist(), np.insert([1.5, 1.5], thick, 8.0).tolist()
    augmentation = Augmentation(tuple(shape), tuple(spacing), "strong", (), (0, 1))
    angles = np.array(
        [each.angles_zyx for each in (draw_changes(augmentation, 1, seed) for seed in range(500)) if each.angles_zyx]
    )
    assert not np.delete(angles, thick, axis=1).any()
    assert 0.7 < np.abs(angles[:, thick]).max() < np.radians(45)


def test_a_turn_in_the_plane_of_slices_leaves_each_where_it_is() -> None:
    image = np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1) * np.ones((1, 6, 20, 20), np.float32)
    found, _ = changed_place(
        torch.from_numpy(image),
        torch.zeros(6, 20, 20, dtype=torch.uint8),
        (6, 8, 8),
        Changes(angles_zyx=(2.0, 0.0, 0.0)),
        fill=(-9.0,),
        label_fill=0,
    )
    np.testing.assert_allclose(found[0, :, 4, 4], range(6), atol=1e-4)  # also the outermost ones


def test_the_same_seed_draws_the_same() -> None:
    augmentation = Augmentation((8, 8, 8), (1.0, 1.0, 1.0), "strong", (0, 1, 2), (0, 2, 1))
    assert [draw_changes(augmentation, 2, seed) for seed in range(50)] == [
        draw_changes(augmentation, 2, seed) for seed in range(50)
    ]
    drawn = [draw_changes(augmentation, 2, seed) for seed in range(50)]
    assert len(set(drawn)) == 50
    assert {each.swap for each in drawn} == {None, (0, 2, 1, 3)}
    assert all((each.swap is not None) == (2 in each.flips) for each in drawn)


def test_what_has_more_to_it_is_not_drawn() -> None:
    class Other(Augmentation):
        def __call__(self, *arguments, **named):  # type: ignore[no-untyped-def]
            return super().__call__(*arguments, **named)

    parts = ((8, 8, 8), (1.0, 1.0, 1.0), "standard", (), (0, 1))
    more = Augmentation(*parts)
    more.strength = Strength(**dataclasses.asdict(more.strength) | {"more": lambda: ()})
    assert is_drawn(None)
    assert is_drawn(Augmentation(*parts))
    assert is_drawn(SecondView("strong"))
    assert not is_drawn(more)
    assert not is_drawn(Other(*parts))
