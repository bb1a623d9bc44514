import dataclasses

import numpy as np
import pytest

from flaresemi.evaluation.flare import evaluate_case
from flaresemi.labels import Label, LabelSet

SPACING = (2.0, 1.0, 1.0)
LIVER, TUBE = 1, 2
LABELS = LabelSet(
    labels=(Label(name="liver", value=4, tolerance_mm=1.0), Label(name="tube", value=9, z_range=True)),
)


def volume():
    """A liver, and a tube in slices 4 to 9."""
    indices = np.zeros((16, 20, 20), np.uint8)
    indices[3:9, 2:10, 2:10] = LIVER
    indices[4:10, 12:16, 12:16] = TUBE
    return indices


def score(prediction, reference, **options):
    return evaluate_case(prediction, reference, SPACING, LABELS, **({"default_tolerance_mm": 2.0} | options))


def test_a_perfect_prediction_scores_one_and_zero_mm():
    for organ in score(volume(), volume()):
        assert (organ.dice, organ.nsd, organ.hd95_mm) == (1.0, 1.0, 0.0)


def test_volumes_are_in_millilitres():
    liver, tube = score(np.zeros_like(volume()), volume())
    assert liver.reference_ml == pytest.approx(6 * 8 * 8 * 2 / 1000)
    assert tube.reference_ml == pytest.approx(6 * 4 * 4 * 2 / 1000)
    assert (liver.prediction_ml, tube.prediction_ml) == (0.0, 0.0)


def test_empty_masks():
    """Both empty: 1. One empty: 0. No distance either way."""
    nothing = np.zeros_like(volume())
    for organ in score(nothing, nothing):
        assert (organ.dice, organ.nsd, organ.hd95_mm) == (1.0, 1.0, None)
    for pair in ((nothing, volume()), (volume(), nothing)):
        for organ in score(*pair):
            assert (organ.dice, organ.nsd, organ.hd95_mm) == (0.0, 0.0, None)


def test_a_tube_counts_in_the_slices_of_its_reference_only():
    longer = volume()
    longer[0:4, 12:16, 12:16] = TUBE
    longer[10:16, 12:16, 12:16] = TUBE
    tube = score(longer, volume())[1]
    assert (tube.dice, tube.nsd, tube.hd95_mm) == (1.0, 1.0, 0.0)
    assert tube.prediction_ml > tube.reference_ml


def test_other_organs_count_everywhere():
    longer = volume()
    longer[9:12, 2:10, 2:10] = LIVER
    liver = score(longer, volume())[0]
    assert liver.dice < 1
    assert liver.hd95_mm == 6.0


def test_the_last_slice_of_a_tube_counts_except_by_the_official_script():
    shorter = volume()
    shorter[9] = 0
    assert score(shorter, volume())[1].dice == pytest.approx(2 * 5 / 11)
    assert score(shorter, volume(), official=True)[1].dice == 1.0
    first = volume()
    first[4, 12:16, 12:16] = 0  # the first slice counts for both
    assert score(first, volume())[1].dice == pytest.approx(2 * 5 / 11)
    assert score(first, volume(), official=True)[1].dice == pytest.approx(2 * 4 / 9, abs=1e-4)


def test_a_tube_found_outside_its_slices_only_is_not_found():
    elsewhere = volume()
    elsewhere[elsewhere == TUBE] = 0
    elsewhere[11:14, 12:16, 12:16] = TUBE
    tube = score(elsewhere, volume())[1]
    assert (tube.dice, tube.nsd, tube.hd95_mm) == (0.0, 0.0, None)


def test_a_tube_of_one_slice_is_scored_in_both_modes():
    flat = np.zeros_like(volume())
    flat[5, 12:16, 12:16] = TUBE
    for official in (False, True):
        assert score(flat, flat, official=official)[1].dice == 1.0
        assert score(np.zeros_like(flat), flat, official=official)[1].dice == 0.0


def test_the_official_script_gives_no_surface_score_below_a_dice_of_a_fifth():
    """A thin shell around the liver: its surface is near, its voxels are others."""
    reference = np.zeros_like(volume())
    reference[3:9, 4:14, 4:14] = LIVER
    shell = np.zeros_like(reference)
    shell[2:10, 3:15, 3:15] = LIVER
    shell[3:9, 4:14, 4:14] = 0
    shell[3, 4:14, 4:14] = LIVER
    wide = dataclasses.replace(LABELS, labels=(dataclasses.replace(LABELS.labels[0], tolerance_mm=5.0),))
    results = [
        evaluate_case(shell, reference, SPACING, wide, default_tolerance_mm=2.0, official=official)[0]
        for official in (False, True)
    ]
    assert results[0].dice < 0.2
    assert results[0].nsd > 0.9
    assert results[1].nsd == 0.0
    assert results[1].dice == round(results[0].dice, 4)


def test_an_organ_uses_its_own_tolerance_or_the_default():
    shifted = np.roll(volume(), 2, axis=2)
    liver, tube = score(shifted, volume(), default_tolerance_mm=2.0)
    assert liver.nsd < 1.0
    assert tube.nsd == 1.0
    assert score(shifted, volume(), default_tolerance_mm=1.9)[1].nsd < 1.0


def test_an_organ_that_a_case_does_not_annotate_is_not_scored():
    liver, tube = score(volume(), np.where(volume() == TUBE, 0, volume()), annotated=("liver",))
    assert liver.dice == 1.0
    assert (tube.dice, tube.nsd, tube.hd95_mm, tube.reference_ml) == (None, None, None, None)
    assert tube.prediction_ml > 0


def test_anisotropic_spacing_reaches_the_distances():
    assert score(np.roll(volume(), 1, axis=0), volume())[0].hd95_mm == 2.0
    assert score(np.roll(volume(), 1, axis=1), volume())[0].hd95_mm == 1.0


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        score(volume()[1:], volume())


def test_regions_are_scored_as_the_union_of_their_values():
    wall, cavity = 1, 2
    heart = LabelSet(labels=(Label(name="epicardium", value=2, more_values=(3,)), Label(name="cavity", value=3)))
    reference, prediction = np.zeros((2, 12, 16, 16), np.uint8)
    reference[2:10, 2:12, 2:12], reference[4:8, 4:10, 4:10] = wall, cavity
    prediction[2:10, 2:12, 2:12], prediction[4:8, 4:10, 4:7] = wall, cavity
    epicardium, inside = evaluate_case(prediction, reference, SPACING, heart, default_tolerance_mm=2.0)
    assert (epicardium.dice, epicardium.nsd, epicardium.hd95_mm) == (1.0, 1.0, 0.0)
    assert epicardium.reference_ml == pytest.approx(8 * 10 * 10 * 2 / 1000)
    assert inside.dice == pytest.approx(2 * 3 / 9)
    (whole, nothing) = evaluate_case(
        np.zeros_like(reference), reference, SPACING, heart, default_tolerance_mm=2.0, annotated=("epicardium",)
    )
    assert (whole.dice, nothing.dice, nothing.reference_ml) == (0.0, None, None)
