import dataclasses
import itertools
import warnings

import numpy as np
import pytest
from scipy import ndimage

from flaresemi.evaluation import surface
from flaresemi.evaluation.surface import surface_distances

SPACING = (2.5, 0.7, 0.8)


def cube(start, stop, shape=(20, 20, 20)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def blob(seed, shape=(14, 26, 22)):
    """A random smooth shape that touches the border of the volume more often than not."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, (1.5, 3, 3)) > 0.02


@pytest.fixture(params=["tree", "transform"])
def _way(request, monkeypatch):
    """Distances are found in two ways, chosen by cost; both must obey every law."""
    monkeypatch.setattr(surface, "_SPARSE", 0 if request.param == "tree" else 10**9)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("steps", [1, 3])
def test_cubes_shifted_by_k_voxels_are_that_many_mm_apart(axis, steps):
    one = cube((5, 5, 5), (12, 12, 12))
    other = np.roll(one, steps, axis)
    distances = surface_distances(one, other, SPACING)
    assert distances.hausdorff_mm(100) == pytest.approx(steps * SPACING[axis])
    assert distances.hausdorff_mm(95) == pytest.approx(steps * SPACING[axis])


@pytest.mark.usefixtures("_way")
def test_a_cube_in_a_cube_is_a_margin_away_on_every_face():
    inner, outer = cube((6, 6, 6), (10, 10, 10)), cube((4, 4, 4), (12, 12, 12))
    distances = surface_distances(inner, outer, (1.0, 1.0, 1.0))
    assert distances.prediction_mm.min() == distances.prediction_mm.max() == 2.0
    assert distances.reference_mm.min() == 2.0
    assert distances.surface_dice(1.999) == 0.0
    assert distances.surface_dice(2.0) > 0.5


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("seed", range(3))
def test_the_distance_of_a_mask_to_itself_is_zero(seed):
    mask = blob(seed)
    distances = surface_distances(mask, mask.copy(), SPACING)
    assert distances.hausdorff_mm(100) == 0.0
    assert distances.surface_dice(0.0) == 1.0


@pytest.mark.usefixtures("_way")
def test_prediction_and_reference_may_change_places():
    there, back = (surface_distances(one, other, SPACING) for one, other in ((blob(1), blob(2)), (blob(2), blob(1))))
    assert there.surface_dice(2.0) == pytest.approx(back.surface_dice(2.0))
    assert there.hausdorff_mm() == pytest.approx(back.hausdorff_mm())
    np.testing.assert_allclose(there.prediction_mm, back.reference_mm)


def test_a_larger_tolerance_never_scores_less():
    distances = surface_distances(blob(1), blob(2), SPACING)
    scores = [distances.surface_dice(tolerance) for tolerance in np.linspace(0, 30, 61)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1] == 1.0


def test_a_higher_percentage_never_is_nearer():
    distances = surface_distances(blob(1), blob(2), SPACING)
    reach = [distances.hausdorff_mm(percent) for percent in (1, 25, 50, 75, 95, 100)]
    assert reach == sorted(reach)
    assert reach[-1] == max(distances.prediction_mm.max(), distances.reference_mm.max())


def test_a_distance_equal_to_the_tolerance_is_within_despite_rounding():
    one = cube((5, 5, 5), (12, 12, 12))
    distances = surface_distances(one, np.roll(one, (1, 3), axis=(1, 2)), (2.5, 1.4, 1.6))  # 1.4² + 4.8² = 5²
    assert distances.prediction_mm.max() > 5.0
    assert distances.surface_dice(5.0) == 1.0
    assert distances.surface_dice(4.99) < 1.0


@pytest.mark.parametrize("seed", range(3))
def test_mirrored_and_transposed_masks_score_the_same(seed):
    one, other = blob(seed), blob(seed + 10)
    plain = surface_distances(one, other, SPACING)
    turned = surface_distances(
        one[::-1, :, ::-1].transpose(2, 0, 1), other[::-1, :, ::-1].transpose(2, 0, 1), (SPACING[2], *SPACING[:2])
    )
    assert turned.surface_dice(2.0) == pytest.approx(plain.surface_dice(2.0))
    assert turned.hausdorff_mm() == pytest.approx(plain.hausdorff_mm())


@pytest.mark.usefixtures("_way")
def test_a_mask_at_the_border_is_closed_there():
    """Space around a volume changes nothing: what lies outside is outside the mask."""
    one, other = cube((0, 3, 0), (4, 9, 10), (8, 10, 10)), cube((0, 4, 0), (5, 10, 10), (8, 10, 10))
    tight = surface_distances(one, other, SPACING)
    roomy = surface_distances(np.pad(one, 6), np.pad(other, 6), SPACING)
    assert tight.prediction_mm2.sum() == pytest.approx(roomy.prediction_mm2.sum())
    assert tight.surface_dice(1.0) == pytest.approx(roomy.surface_dice(1.0))
    assert tight.hausdorff_mm() == pytest.approx(roomy.hausdorff_mm())


def test_flat_faces_have_their_area_in_mm2():
    whole = cube((2, 2, 2), (12, 14, 16))
    distances = surface_distances(whole, whole, SPACING)
    depth, height, width = 10 * SPACING[0], 12 * SPACING[1], 14 * SPACING[2]
    area = 2 * (depth * height + depth * width + height * width)
    assert distances.prediction_mm2.sum() == pytest.approx(area, rel=0.1)  # corners and edges are cut off
    assert distances.prediction_mm2.sum() < area


def test_one_voxel_is_an_octahedron():
    distances = surface_distances(cube((3, 3, 3), (4, 4, 4)), cube((3, 3, 3), (4, 4, 4)), (1.0, 1.0, 1.0))
    assert distances.prediction_mm2.size == 8
    assert distances.prediction_mm2.sum() == pytest.approx(np.sqrt(3))  # of edge 1/sqrt(2)


def test_both_ways_of_finding_distances_agree(monkeypatch):
    found = []
    for sparse in (0, 10**9):
        monkeypatch.setattr(surface, "_SPARSE", sparse)
        found.append(surface_distances(blob(3), blob(4), SPACING))
    np.testing.assert_allclose(found[0].prediction_mm, found[1].prediction_mm, atol=1e-9)
    np.testing.assert_allclose(found[0].reference_mm, found[1].reference_mm, atol=1e-9)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
@pytest.mark.parametrize("seed", range(4))
def test_the_reference_program_gives_the_same_numbers(seed, spacing):
    program = pytest.importorskip("surface_distance", exc_type=ImportError)
    one, other = blob(seed), blob(seed + 20)
    ours = surface_distances(one, other, spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses names that scipy has deprecated
        theirs = program.compute_surface_distances(other, one, spacing)
    for tolerance in (0.1, 1.05, 2.05, 5.01):  # a distance of 5.000000000000001 mm is beyond 5 mm for it, not for us
        expected = program.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert ours.surface_dice(tolerance) == pytest.approx(expected, rel=1e-6)
    for percent in (50, 95, 100):
        assert ours.hausdorff_mm(percent) == pytest.approx(program.compute_robust_hausdorff(theirs, percent))


def test_what_has_no_surface_is_refused():
    with pytest.raises(ValueError, match="empty"):
        surface_distances(cube((1, 1, 1), (3, 3, 3)), np.zeros((20, 20, 20), bool), SPACING)
    with pytest.raises(ValueError, match="one shape"):
        surface_distances(cube((1, 1, 1), (3, 3, 3)), np.ones((2, 2, 2), bool), SPACING)


def test_masks_that_are_nearly_all_empty_have_the_same_surface(monkeypatch):
    rng = np.random.default_rng(5)
    for shape in ((9, 14, 11), (1, 6, 7), (1, 1, 1)):
        masks = [rng.random(shape) < share for share in (0.02, 0.3, 0.7)]
        for mask in masks:
            mask.flat[[0, -1]] = True  # to the last corner of the box
        for prediction, reference in itertools.permutations(masks, 2):
            found = []
            for empty in (0, 10**9):
                monkeypatch.setattr(surface, "_EMPTY", empty)  # always voxel by voxel, or never
                found.append(surface_distances(prediction, reference, (2.5, 0.8, 1.1)))
            for field in dataclasses.fields(found[0]):
                assert np.array_equal(*(getattr(each, field.name) for each in found))
