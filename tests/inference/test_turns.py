import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from flaresemi.conventions import Convention
from flaresemi.errors import ConfigError
from flaresemi.geometry import BoundingBox, FloatTriple, Geometry, StageGrid, turned_array, turned_sides
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.orientation import quarter_turned, turned_back
from flaresemi.inference.postprocessing import Cleaning
from flaresemi.inference.turns import surest, surety
from flaresemi.io.case_store import CaseRecord, CaseStore
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.plans import Stage
from flaresemi.preprocessing.preprocessor import prepare
from flaresemi.pseudolabels.labeling import Labeler
from flaresemi.pseudolabels.teachers import Teachers
from tests.inference.conftest import LABELS, NEVER, Fakes, ThresholdNetwork

ORGANS = (NEVER, NEVER, 5.0)


@pytest.mark.parametrize("quarters", range(-4, 5))
def test_boxes_and_grids_turn_with_the_array(quarters: int) -> None:
    array = np.zeros((4, 6, 9), bool)
    box = BoundingBox(start=(1, 0, 2), stop=(3, 2, 7))
    array[box.slices] = True
    turned = turned_array(array, quarters)
    assert BoundingBox.of_mask(turned) == box.turned(quarters, array.shape)
    assert turned.shape == turned_sides(array.shape, quarters)
    assert box.turned(quarters, array.shape).turned(-quarters, turned.shape) == box


def test_a_turned_grid_is_that_of_the_turned_image() -> None:
    body = BoundingBox(start=(0, 2, 1), stop=(8, 30, 19))
    grid = StageGrid.at_spacing((8, 40, 20), (8.0, 1.0, 1.3), body, (8.0, 1.5, 1.5))
    turned = StageGrid.at_spacing((8, 20, 40), (8.0, 1.3, 1.0), body.turned(1, (8, 40, 20)), (8.0, 1.5, 1.5))
    assert grid.turned(1) == turned
    assert grid.turned(1).turned(3) == grid
    organs = BoundingBox(start=(2, 5, 4), stop=(5, 17, 9))
    there = organs.turned(1, grid.canonical_shape_zyx)
    assert turned.to_stage(there) == grid.to_stage(organs).turned(1, grid.shape_zyx)  # type: ignore[union-attr]


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize(
    ("axes", "flips"), [((0, 1, 2), (False,) * 3), ((0, 2, 1), (True, False, True)), ((2, 0, 1), (False, True, True))]
)
def test_a_turned_image_finds_back_to_its_file(quarters: int, axes: tuple, flips: tuple) -> None:
    geometry = Geometry(shape_zyx=(4, 6, 9), spacing_zyx_mm=(8.0, 1.0, 1.5))
    source = SourceGrid(geometry=geometry, axes=axes, flips=flips)
    file = np.arange(4 * 6 * 9, dtype=np.float32).reshape(4, 6, 9)
    image = Image(array_czyx=source.to_canonical(file)[None], source=source)
    turned = quarter_turned(image, quarters)
    np.testing.assert_array_equal(turned.array_czyx[0], turned_array(image.array_czyx[0], quarters))
    assert turned.geometry.shape_zyx == turned.array_czyx.shape[1:]
    np.testing.assert_array_equal(turned.source.to_file(turned.array_czyx[0]), file)
    np.testing.assert_array_equal(turned_back(turned.array_czyx[0], turned.source, source), image.array_czyx[0])


def test_surety_is_dice_of_the_label_map_with_its_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 5, 6) * 2
    shares = logits.softmax(dim=0)
    found = logits.argmax(dim=0)
    inside = shares.gather(0, found[None])[0][found > 0].sum()
    expected = 2 * inside / (shares[1:].sum() + (found > 0).sum())
    assert surety(logits, Cleaning(), LABELS) == pytest.approx(float(expected), rel=1e-5)


def test_nothing_found_is_nothing_sure() -> None:
    logits = torch.zeros(4, 2, 2, 2)
    logits[0] = 1
    assert surety(logits, Cleaning(), LABELS) == 0


def test_pieces_that_are_cleaned_away_make_it_less_sure() -> None:
    logits = torch.zeros(4, 4, 8, 8)
    logits[0], logits[3, :, :4, :4], logits[3, :, 6:, 6:] = 5, 10, 10
    assert surety(logits, Cleaning(largest=(3,)), LABELS) < surety(logits, Cleaning(), LABELS) - 0.05


@pytest.mark.parametrize(
    ("sureties", "kept", "looked"),
    [
        ((0.96, 1.0, 1.0, 1.0), 0, 1),  # nothing can be clearly surer
        ((0.90, 0.94, 0.2, 0.3), 0, 4),
        ((0.80, 0.90, 0.95, 0.92), 2, 4),
        ((0.00, 0.00, 0.0, 0.0), 0, 4),
    ],
)
def test_as_it_lies_unless_another_turn_is_clearly_surer(sureties: tuple[float, ...], kept: int, looked: int) -> None:
    seen = []

    def look(quarters: int) -> float:
        seen.append(quarters)
        return sureties[quarters]

    found, quarters, notes = surest(look, lambda sure: sure)
    assert (found, quarters, len(seen)) == (sureties[kept], kept, looked)
    assert bool(notes) == bool(kept)


class UprightNetwork(ThresholdNetwork):
    """Sees the liver surely where the window is brighter to the left, hardly elsewhere."""

    def forward(self, image_bczyx: torch.Tensor) -> torch.Tensor:
        half = image_bczyx.shape[-1] // 2
        upright = image_bczyx[..., half:].mean() > image_bczyx[..., :half].mean() + 0.5
        return super().forward(image_bczyx) * (1.0 if upright else 0.002)


def _scan(fakes: Fakes) -> np.ndarray:
    body = fakes.body((24, 48, 48))
    body[:, :, 24:] += 150  # the side that is upright to the left
    body[8:16, 20:30, 26:36] = 600
    body[12, 21, 27] = 800  # no symmetry
    return body


def _upright_model(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, *, quarter_turns: bool = False, **plan: object
) -> Checkpoint:
    monkeypatch.setattr("flaresemi.networks.engine.build_network", UprightNetwork)
    whole = fakes.plan(Stage.FINE, region="body", patch=(24, 48, 48), margin_mm=0.0)
    return fakes.checkpoint(dataclasses.replace(whole, **plan), ORGANS, quarter_turns=quarter_turns)


def _lying(fakes: Fakes, quarters: int, spacing: FloatTriple = (3.0, 3.0, 3.0)) -> Image:
    array = np.ascontiguousarray(turned_array(_scan(fakes), quarters))
    return fakes.image(array, turned_sides(spacing, quarters))


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (3.0, 2.0, 3.0)])
@pytest.mark.parametrize("quarters", range(4))
def test_a_scan_that_lies_turned_is_segmented_as_if_it_did_not(
    quarters: int, spacing: FloatTriple, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _upright_model(fakes, monkeypatch)
    upright, lying = (_lying(fakes, turn, spacing) for turn in (0, quarters))
    expected = Segmenter([model], device="cpu").segment(upright).indices_zyx
    assert np.count_nonzero(expected == 3) > 600
    made = Segmenter([model], device="cpu", turns=True).segment(lying)
    np.testing.assert_array_equal(made.indices_zyx, turned_array(expected, quarters))
    assert any("turned by" in note for note in made.notes) == bool(quarters)


def test_models_say_whether_scans_may_lie_turned(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    lying = _lying(fakes, 1)
    for planned, asked, turned in ((True, None, True), (False, None, False), (True, False, False), (False, True, True)):
        segmenter = Segmenter([_upright_model(fakes, monkeypatch, quarter_turns=planned)], device="cpu", turns=asked)
        assert any("turned by" in note for note in segmenter.segment(lying).notes) == turned
        assert ("turns" in segmenter.options) == turned


def test_known_organs_and_saved_logits_lie_as_the_scan_does(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    lying = _lying(fakes, 1)
    there = BoundingBox.of_mask(lying.array_czyx[0] > 500)
    assert there is not None
    model = _upright_model(fakes, monkeypatch, region="organs", margin_mm=24.0, patch_zyx=(24, 28, 28))
    seen = []
    segmenter = Segmenter([model], device="cpu", turns=True)
    made = segmenter.segment(lying, organs=there, save=lambda parts, _: seen.extend(parts))
    assert any("turned by" in note for note in made.notes)
    np.testing.assert_array_equal(made.indices_zyx == 3, lying.array_czyx[0] > 500)
    (part,) = seen
    assert part.region.shape_zyx < part.grid.shape_zyx  # not the whole body, which lies alike in every turn
    found = part.logits_czyx.argmax(dim=0).numpy() == 3
    np.testing.assert_array_equal(found, made.indices_zyx[part.region.shifted(part.grid.body_box.start).slices] == 3)


def test_pseudo_labels_lie_as_the_scan_does(fakes: Fakes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = _upright_model(fakes, monkeypatch, quarter_turns=True)
    lying = _lying(fakes, 3)
    prepared = prepare(lying, "ct")
    store = CaseStore(tmp_path)
    record = CaseRecord.unlabeled(case_id="scan", preprocessing_hash="test", grid=prepared.grid(model.plan))
    store.write(record, prepared.stage_image(model.plan), None)
    teachers = Teachers(fine=model, snapshots=(model,), coarse=None, made_with=("abc",))
    labeler = Labeler(teachers, store, store, (10.0,) * 3, device="cpu", precision="fp32", ignore_contested=True)
    labeled = labeler.label("scan")
    expected = np.asarray(store.open("scan").image_czyx[0]) > 5
    np.testing.assert_array_equal(labeled.label_zyx == 3, expected)
    np.testing.assert_array_equal(labeler.segment("scan"), labeled.label_zyx)
    assert labeled.score.organs["liver"].agreement == 1
    assert labeled.ignored_zyx is not None
    assert not labeled.ignored_zyx.any()
    assert labeled.region.contains(BoundingBox.of_mask(expected))  # type: ignore[arg-type]
    assert any("turned by" in flag for flag in labeled.score.flags)


def test_models_of_nnunet_see_scans_as_they_lie(fakes: Fakes) -> None:
    convention = Convention(orientation="file", axes=(0, 1, 2))
    with pytest.raises(ConfigError, match="as they lie"):
        Segmenter([fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), convention=convention)], turns=True)
