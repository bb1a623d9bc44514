"""Probabilities that say too much are told by the held-out cases, and mended without touching a label."""

import dataclasses

import numpy as np
import pytest
import torch

from flaresemi.confidence import BINS, TEMPERATURES, ConfidenceCounts, Temperature, common_temperature, fit_temperature
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.labels import Label, LabelSet
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.preprocessing.averaging import KnownLogits
from flaresemi.training.confidence import count_confidence
from flaresemi.workspace import Workspace
from tests.made_model import write_liver_model

LABELS = LabelSet(labels=(Label(name="liver", value=1), Label(name="spleen", value=2)))
SHAPE = (24, 32, 32)


def case(seed, sharpness, *, labels=LABELS, **changes):
    """Logits that are right as often as they say, made sharper; the label map they give, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    honest = torch.randn((3, *SHAPE), generator=generator)
    honest[0] += 1.0
    draws = torch.distributions.Categorical(probs=honest.softmax(dim=0).permute(1, 2, 3, 0))
    torch.manual_seed(seed)
    truth = draws.sample().numpy().astype(np.uint8)
    grid = StageGrid.at_spacing(SHAPE, (3.0,) * 3, BoundingBox.whole(SHAPE), (3.0,) * 3)
    known = KnownLogits(logits_czyx=honest * sharpness, region=BoundingBox.whole(SHAPE), grid=grid)
    return known, honest.argmax(dim=0).numpy().astype(np.uint8), truth


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_logits_sharp(sharpness):
    counts = [count_confidence(*case(seed, sharpness), LABELS) for seed in range(3)]
    fitted = fit_temperature(counts)
    assert fitted.value == pytest.approx(sharpness, rel=0.15)
    assert fitted.error_after < 0.03
    assert fitted.error_before == pytest.approx(fitted.error_after, abs=0.02) or sharpness != 1.0
    assert sharpness == 1.0 or fitted.error_before > 3 * fitted.error_after
    assert (fitted.cases, fitted.voxels) == (3, sum(each.voxels for each in counts))
    assert fit_temperature(counts[:2]) is None


def test_the_error_is_the_distance_of_confidence_and_share_that_is_right():
    right, wrong = [0.0] * BINS, [0.0] * BINS
    right[10], wrong[10], wrong[14] = -3.0, 1.0, 2.0  # in bin 10 the gaps of two cases partly cancel
    counts = [
        ConfidenceCounts(voxels=10, losses=(1.0,) * len(TEMPERATURES), gaps=(tuple(gaps),) * len(TEMPERATURES))
        for gaps in (right, wrong, [0.0] * BINS)
    ]
    fitted = fit_temperature(counts)
    assert fitted.error_before == pytest.approx((2.0 + 2.0) / 30)
    assert (fitted.value, fitted.error_after) == (1.0, fitted.error_before)  # nothing is better: nothing is changed


def test_ignored_voxels_and_organs_that_nobody_annotated_do_not_count():
    labels = dataclasses.replace(LABELS, ignore=9)
    known, predicted, truth = case(0, 1.0)
    truth[:, :, 16:] = labels.ignored
    some = count_confidence(known, predicted, truth, labels)
    assert 0 < some.voxels < 0.7 * count_confidence(known, predicted, case(0, 1.0)[2], LABELS).voxels
    _, _, truth = case(0, 1.0)
    merged = np.where(truth == 2, 0, truth).astype(np.uint8)
    one = TEMPERATURES.index(1.0)
    alone = count_confidence(known, predicted, merged, LABELS, supervised=(1,))
    assert np.abs(alone.gaps[one]).sum() / alone.voxels < 0.03  # the spleen's probability counts as background's
    told_apart = count_confidence(known, predicted, merged, LABELS)
    assert told_apart.losses[one] > alone.losses[one] + 0.2 * alone.voxels


def test_voxels_where_the_networks_did_not_look_do_not_count_and_others_are_interpolated():
    known, predicted, truth = case(0, 1.0)
    half = dataclasses.replace(known, logits_czyx=known.logits_czyx[:, :12], region=BoundingBox.whole((12, 32, 32)))
    assert (
        count_confidence(half, predicted, truth, LABELS).voxels
        < count_confidence(known, predicted, truth, LABELS).voxels
    )
    grid = StageGrid.at_spacing(
        (20, 30, 40), (2.0, 1.0, 1.5), BoundingBox(start=(1, 2, 3), stop=(19, 28, 37)), (3.0, 2.5, 1.0)
    )
    region = BoundingBox(start=(1, 1, 2), stop=(8, 9, 40))
    logits = torch.randn((3, *region.shape_zyx), generator=torch.Generator().manual_seed(1))
    known = KnownLogits(logits_czyx=logits, region=region, grid=grid)
    voxels = np.argwhere(np.ones(known.box.shape_zyx, bool))[::7] + known.box.start
    everywhere = known.probabilities(known.box)
    expected = everywhere[(slice(None), *(voxels - known.box.start).T)]
    assert torch.allclose(known.at(voxels).softmax(dim=0), expected, atol=1e-5)


def test_a_temperature_travels_with_the_weights_and_folds_share_their_mean(tmp_path):
    write_liver_model(tmp_path)
    written = Workspace(tmp_path).model("0", Stage.FINE).final
    assert load_checkpoint(written).temperature is None
    temperature = Temperature(value=2.0, cases=3, voxels=100, error_before=0.2, error_after=0.1)
    save_checkpoint(tmp_path / "a.pt", dataclasses.replace(load_checkpoint(written), temperature=temperature))
    assert load_checkpoint(tmp_path / "a.pt").temperature == temperature
    other = dataclasses.replace(temperature, value=8.0)
    assert common_temperature([temperature, other]) == pytest.approx(4.0)
    assert common_temperature([temperature, None]) is None
