"""Voxels that nobody annotated: known on reading, kept on every grid, found by no loss, score, box or statistic."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from flaresemi.dataset import load_dataset
from flaresemi.description import Description
from flaresemi.errors import DatasetError, ImageError
from flaresemi.evaluation.flare import evaluate_case
from flaresemi.evaluation.folders import CasePair, score_pair
from flaresemi.evaluation.overlap import dice_of_annotated
from flaresemi.evaluation.summary import summarize
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.io.case_store import CaseRecord, CaseStore
from flaresemi.labels import Label, LabelSet
from flaresemi.planning.cases import read_case
from flaresemi.planning.fingerprint import fingerprint_dataset
from flaresemi.planning.inspection import inspect_dataset
from flaresemi.planning.planner import make_plans
from flaresemi.planning.rules import judge
from flaresemi.planning.sources import source_hash
from flaresemi.plans import Stage
from flaresemi.preprocessing.resampling import resample_labels
from flaresemi.pseudolabels.selecting import labeled_volumes, volumes_ml
from flaresemi.records import from_plain, record_hash, to_plain
from flaresemi.training.anatomy import organs_in_one_piece
from flaresemi.training.augmentation import Augmentation
from flaresemi.training.losses import IGNORED, merge_unsupervised
from flaresemi.training.pasting import pasted
from flaresemi.training.sampling import PatchSampler, TrainingCase
from tests.training.conftest import SHAPE, stage_plan

LABELS = LabelSet(
    labels=(Label(name="left ball", value=1), Label(name="right ball", value=2)),
    mirror_pairs=(("right ball", "left ball"),),
    ignore=9,
)
NOBODY = LABELS.ignored
SPACING = (2.0, 1.0, 1.0)


def describe(folder: Path, labels: dict, **more: object) -> Description:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **more}), encoding="utf-8")
    return Description(folder / "dataset.json")


class TestLabels:
    def test_nnunet_declares_it_among_the_labels(self, tmp_path):
        labels = describe(tmp_path, {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}).labels
        assert labels.names == ("liver", "spleen")
        assert (labels.ignore, labels.ignored, labels.channels) == (3, 3, 3)
        assert labels.unknown_values(np.array([0, 1, 2, 3, 4])) == (4,)
        values = np.array([3, 0, 1, 2], np.int16)
        np.testing.assert_array_equal(labels.to_indices(values), [3, 0, 1, 2])
        np.testing.assert_array_equal(labels.to_values(labels.to_indices(values)), values)

    def test_with_regions(self, tmp_path):
        declared = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 7}
        labels = describe(tmp_path, declared, regions_class_order=[1, 2]).labels
        indices = labels.to_indices(np.array([0, 1, 2, 7]))
        assert indices[3] == labels.ignored == labels.channels
        np.testing.assert_array_equal(labels.to_values(indices), [0, 1, 2, 7])
        np.testing.assert_array_equal(labels.painted(indices)[3], 0)

    @pytest.mark.parametrize(
        ("labels", "said"),
        [
            ({"background": 0, "liver": 1, "ignore": 1}, "'ignore' has value 1, which is liver, too"),
            ({"background": 0, "liver": 1, "ignore": 0}, "'ignore' has value 0, which is background, too"),
            ({"background": 0, "liver": 1, "ignore": [2]}, "label 'ignore' must be an integer"),
            ({"background": 0, "ignore": 1}, "at least one label besides background"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, tmp_path, labels, said):
        with pytest.raises(DatasetError) as caught:
            describe(tmp_path, labels)
        assert said in str(caught.value)

    def test_organs_up_to_a_byte_and_beyond(self):
        for count, kind in ((254, np.uint8), (255, np.uint16), (300, np.uint16)):
            labels = LabelSet(labels=tuple(Label(name=f"o{n}", value=n) for n in range(1, count + 1)), ignore=999)
            indices = labels.to_indices(np.array([0, count, 999]))
            assert indices.dtype == kind and indices.tolist() == [0, count, count + 1]

    def test_records_from_before_have_none_and_keep_their_hashes(self):
        plain = to_plain(dataclasses.replace(LABELS, ignore=None))
        del plain["ignore"]
        found = from_plain(LabelSet, plain, source="x")
        assert found.ignore is None
        assert record_hash(found) != record_hash(LABELS)
        assert record_hash(found) == record_hash(dataclasses.replace(LABELS, ignore=None))
        assert dataclasses.replace(LABELS, ignore=None).reading == (0, 1, 2)


@pytest.fixture
def scribbles(tmp_path):
    """Two cases with an organ each; of the second, nobody annotated more than a line through organ and background."""
    generator = np.random.default_rng(0)
    for number in (1, 2):
        label = np.zeros((24, 26, 28), np.uint8)
        label[6:18, 6:18, 6:18] = 1
        image = (1000.0 * (label > 0) + generator.normal(0, 30, label.shape)).astype(np.float32)
        if number == 2:
            line = label[12, 12, :].copy()
            label[:] = 9
            label[12, 12, :] = line
        for folder, array, name in (("imagesTr", image, f"c{number}_0000"), ("labelsTr", label, f"c{number}")):
            (tmp_path / folder).mkdir(exist_ok=True)
            stored = sitk.GetImageFromArray(array)
            stored.SetSpacing((1.0, 1.0, 2.0))
            sitk.WriteImage(stored, str(tmp_path / folder / f"{name}.nii.gz"))
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "ball": 1, "other": 2, "ignore": 9}}
    (tmp_path / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return tmp_path


class TestFacts:
    def test_boxes_volumes_and_intensities_are_of_what_is_annotated(self, scribbles):
        found = fingerprint_dataset(load_dataset(scribbles), None, workers=1)
        whole, line = found.cases
        assert (whole.ignored_voxels, line.ignored_voxels) == (0, 24 * 26 * 28 - 28)
        assert line.voxels_per_label == (12, 0)
        assert line.foreground_box == BoundingBox(start=(12, 12, 6), stop=(13, 13, 18))
        assert found.intensities[0].percentile_05 > 900, "ignored voxels lend no intensities"
        assert volumes_ml(found, ("ball", "other"), ("c1", "c2"))["ball"] == [pytest.approx(12**3 * 2 / 1000)]

    def test_plans_say_it(self, scribbles):
        found = fingerprint_dataset(load_dataset(scribbles), None, workers=1)
        assert "1 of 2 labeled cases are annotated in part (0.16 to 0.16 %" in make_plans(found).reasons["ignored"]
        assert "--stages one avoids that" in make_plans(found, stages="two").reasons["ignored"]
        without = dataclasses.replace(found, cases=found.cases[:1])
        assert "ignored" not in make_plans(without).reasons

    def test_what_a_value_means_decides_what_was_read(self, scribbles):
        dataset = load_dataset(scribbles)
        labels = dataclasses.replace(dataset.labels, ignore=None)
        organ = dataclasses.replace(labels, labels=(*labels.labels, Label(name="third", value=9)))
        hashes = {source_hash(dataset.labeled[1], each, "") for each in (dataset.labels, labels, organ)}
        assert len(hashes) == 3

    def test_partial_labels_stay_beside_it(self, scribbles):
        dataset = load_dataset(scribbles)
        case = dataclasses.replace(dataset.labeled[1], annotated=("other",))
        _, indices = read_case(case, dataset.labels)
        assert set(np.unique(indices)) == {0, dataset.labels.ignored}

    def test_the_report_knows_it(self, scribbles):
        def problems():
            dataset = load_dataset(scribbles)
            report = judge(dataset, inspect_dataset(dataset, None, workers=1))
            return {(each.problem, each.message) for each in report.findings}

        assert not {problem for problem, _ in problems()} & {"unknown label", "empty label", "no background"}
        for number in (1, 2):
            path = scribbles / "labelsTr" / f"c{number}.nii.gz"
            image = sitk.ReadImage(str(path))
            array = sitk.GetArrayFromImage(image)
            array[array == 0] = 9
            if number == 2:
                array[:] = 9
            changed = sitk.GetImageFromArray(array)
            changed.CopyInformation(image)
            sitk.WriteImage(changed, str(path))
        assert ("empty label", "every voxel is ignored") in problems()
        assert "no background" in {problem for problem, _ in problems()}


class TestOtherGrids:
    def test_a_line_stays_on_any_grid(self):
        label = np.full((40, 40, 40), NOBODY, np.uint8)
        label[:, 20, :] = 0
        label[:, 20, 10:30] = 1
        for shape, rows in (((20, 20, 20), 1), ((40, 17, 23), 1), ((7, 9, 9), 1), ((60, 80, 60), 2), ((40, 39, 41), 1)):
            found = resample_labels(label, shape, NOBODY)
            known = (found != NOBODY).any(axis=(0, 2))
            assert np.count_nonzero(known) == rows and (found != NOBODY).any(axis=1).all(), shape
            assert np.count_nonzero(found == 1) == pytest.approx(np.count_nonzero(found == 0), rel=0.35)

    def test_an_annotated_slice_is_never_lost(self):
        for place in range(12):
            label = np.full((12, 9, 9), NOBODY, np.uint8)
            label[place] = 1
            for slices in range(1, 25):
                found = resample_labels(label, (slices, 9, 9), NOBODY)
                assert (found == 1).any() and set(np.unique(found)) <= {1, NOBODY}, (place, slices)

    def test_elsewhere_ignored_voxels_have_no_say(self):
        label = np.zeros((12, 24, 24), np.uint8)
        label[:, 6:18, 6:18] = 1
        dense = resample_labels(label, (12, 17, 17))
        hole = label.copy()
        hole[:, 10:14, 10:14] = NOBODY
        found = resample_labels(hole, (12, 17, 17), NOBODY)
        known = found != NOBODY
        assert 0 < np.count_nonzero(~known) < 0.1 * found.size
        np.testing.assert_array_equal(found[known], dense[known])

    def test_without_ignored_voxels_nothing_changes(self):
        label = np.random.default_rng(0).integers(0, 3, (9, 10, 11)).astype(np.uint8)
        np.testing.assert_array_equal(resample_labels(label, (7, 13, 6), NOBODY), resample_labels(label, (7, 13, 6)))


def write(store: CaseStore, case_id: str, label: np.ndarray, organs: int = 2) -> CaseRecord:
    grid = StageGrid(
        canonical_shape_zyx=label.shape,
        canonical_spacing_zyx_mm=(2.0, 2.0, 2.0),
        body_box=BoundingBox.whole(label.shape),
        shape_zyx=label.shape,
    )
    record = CaseRecord.labeled(
        case_id=case_id, preprocessing_hash="test", grid=grid, label_zyx=label, organs=organs, supervised=(1, 2)
    )
    image = np.random.default_rng(0).normal(2, 1, (1, *label.shape)).astype(np.float32)
    store.write(record, image, label)
    return record


def corner() -> np.ndarray:
    """Annotated is one corner, with an organ in it."""
    label = np.full(SHAPE, NOBODY, np.uint8)
    label[:6, :6, :6] = 0
    label[2:4, 2:4, 2:4] = 1
    return label


class TestPatches:
    def test_the_store_counts_and_finds_what_is_annotated(self, tmp_path):
        store = CaseStore(tmp_path)
        record = write(store, "corner", corner())
        assert (record.voxels_per_label, record.annotated_voxels) == ((8, 0), 216)
        assert record.organs_box == BoundingBox.whole(SHAPE), "an organ may be anywhere"
        case = store.open("corner")
        assert len(case.class_voxels(1)) == 8 and len(case.class_voxels(2)) == 0
        sample = case.annotated_sample()
        assert len(sample) == 216 and (sample < 6).all()
        _, label = case.read_patch((-2, 0, 0), (4, 2, 2))
        assert (label[:2] == NOBODY).all() and (label[2:] == 0).all()
        with pytest.raises(ValueError, match="annotated_voxels"):
            store.write(dataclasses.replace(record, annotated_voxels=None), np.zeros((1, *SHAPE), np.float32), corner())

    @pytest.mark.parametrize("region", ["body", "organs"])
    @pytest.mark.parametrize("strength", ["none", "standard"])
    def test_every_patch_has_annotated_voxels(self, tmp_path, region, strength):
        store, plan = CaseStore(tmp_path), stage_plan(region=region, patch_zyx=(8, 8, 8))
        write(store, "corner", corner())
        augmentation = Augmentation(
            plan.patch_zyx, plan.spacing_zyx_mm, "standard", (0, 1, 2), LABELS.mirror_permutation
        )
        sampler = PatchSampler(
            store,
            [TrainingCase(case_id="corner", supervised=(1, 2), augmentation=strength)],
            plan,
            foreground_share=0.3,
            region_jitter_mm=2.0,
            outside_share=0.3,
            augmentations={"standard": augmentation},
            seed=1,
        )
        batches = [sampler[(iteration, 0)] for iteration in range(25)]
        assert all((batch.label_bzyx != IGNORED).any() for batch in batches)
        assert all({*np.unique(batch.label_bzyx)} <= {IGNORED, 0, 1, 2} for batch in batches)
        assert any((batch.label_bzyx == IGNORED).any() for batch in batches)

    def test_dense_cases_draw_as_before(self, tmp_path):
        label = np.where(corner() == NOBODY, 0, corner()).astype(np.uint8)
        record = write(CaseStore(tmp_path), "dense", label)
        assert record.annotated_voxels is None and len(CaseStore(tmp_path).open("dense").annotated_sample()) == 0

    def test_corners_of_a_turned_patch_are_ignored(self):
        augmentation = Augmentation((16, 16, 16), (1.0, 1.0, 1.0), "strong", (0, 1, 2), LABELS.mirror_permutation)
        shape = augmentation.input_zyx
        label, image = np.ones(shape, np.uint8), np.ones((1, *shape), np.float32)
        seen = set()
        for seed in range(60):
            _, turned, _ = augmentation(image, label, np.zeros(1, np.float32), seed, label_fill=NOBODY)
            seen |= {*np.unique(turned).tolist()}
        assert seen == {1, 2, NOBODY}, "mirrored left to right, the ball changes its name, and ignored voxels do not"

    def test_what_is_pasted_keeps_it(self, tmp_path):
        store, plan = CaseStore(tmp_path), stage_plan(patch_zyx=(8, 8, 8))
        write(store, "corner", corner())
        write(store, "dense", np.ones(SHAPE, np.uint8))
        cases = [TrainingCase(case_id=name, supervised=(1, 2), augmentation="none") for name in ("dense", "corner")]
        settings = {"foreground_share": 0.0, "region_jitter_mm": 0.0, "outside_share": 0.0, "augmentations": {}}
        dense, corner_case = (PatchSampler(store, [case], plan, seed=0, **settings)[(0, 0)] for case in cases)
        box = BoundingBox(start=(2, 2, 2), stop=(6, 6, 6))
        content = dataclasses.replace(
            corner_case,
            **{name: getattr(corner_case, name)[(..., *box.slices)] for name in ("image_bczyx", "label_bzyx")},
        )
        content = dataclasses.replace(content, second_bczyx=content.image_bczyx)
        for patch, other in ((dense, content), (corner_case, None)):
            if other is not None:
                found = pasted(patch, other, box)
                assert (found.label_bzyx[(..., *box.slices)] == content.label_bzyx).all()
                assert found.label_bzyx.min() >= IGNORED and found.label_bzyx.max() <= 2


def test_lines_are_no_pieces(tmp_path):
    store = CaseStore(tmp_path)
    for number in range(4):
        write(store, f"c{number}", corner())
    assert organs_in_one_piece(store, ("c0", "c1", "c2", "c3"), LABELS) == ()
    for number in range(4):
        write(store, f"c{number}", np.where(corner() == NOBODY, 0, corner()).astype(np.uint8))
    assert organs_in_one_piece(CaseStore(tmp_path), ("c0", "c1", "c2", "c3"), LABELS) == ("left ball",)


def test_losses_of_others_meet_it_under_one_number():
    target = torch.tensor([[[[2, IGNORED, 1, 0]]]])
    logits = torch.randn(1, 3, 1, 1, 4)
    supervised = torch.tensor([[True, False, True]])
    _, merged = merge_unsupervised(logits, target, supervised)
    assert merged.flatten().tolist() == [2, IGNORED, 0, 0]


class TestScores:
    def masks(self):
        reference = np.zeros((16, 20, 20), np.uint8)
        reference[3:9, 2:10, 2:10] = 1
        prediction = reference.copy()
        prediction[:, 15:, 15:] = 1
        return prediction, reference

    def score(self, prediction, reference, **options):
        return evaluate_case(prediction, reference, SPACING, LABELS, **({"default_tolerance_mm": 2.0} | options))

    def test_ignored_voxels_count_nowhere(self):
        prediction, reference = self.masks()
        assert self.score(prediction, reference)[0].dice < 0.9
        reference[:, 14:, 14:] = NOBODY
        ball, other = self.score(prediction, reference)
        assert (ball.dice, ball.nsd, ball.hd95_mm) == (1.0, 1.0, 0.0), "they lie apart: its surface is known"
        assert ball.prediction_ml == pytest.approx(np.count_nonzero(prediction) * 2 / 1000), "of the whole prediction"
        assert (other.dice, other.nsd, other.reference_ml) == (None, None, None), "it may be where nobody looked"
        np.testing.assert_allclose(dice_of_annotated(prediction, reference, LABELS)[0], 1.0)
        assert dice_of_annotated(prediction, reference, LABELS)[1] is None

    def test_a_surface_next_to_them_is_not_known(self):
        prediction, reference = self.masks()
        reference[:, 10:, :] = NOBODY
        ball = self.score(prediction, reference)[0]
        assert (ball.dice, ball.nsd, ball.hd95_mm) == (1.0, None, None)
        assert self.score(prediction, reference, official=True)[0].dice == 1.0

    def test_an_organ_found_where_background_is_annotated_is_wrong(self):
        prediction, reference = self.masks()
        prediction[0, 0, 0] = 2
        reference[:, 14:, 14:] = NOBODY
        assert self.score(prediction, reference)[1].dice == 0.0

    def test_a_summary_counts_what_is_scored(self):
        prediction, reference = self.masks()
        reference[:, 10:, :] = NOBODY
        scores = dict(zip(LABELS.names, self.score(prediction, reference), strict=True))
        from flaresemi.evaluation.folders import CaseScores

        summary = summarize([CaseScores(case_id="c", organs=scores)], LABELS, default_tolerance_mm=2.0)
        assert (summary.mean_dice, summary.mean_nsd, summary.organs[1].cases) == (1.0, None, 0)
        assert summary.cautions == ()

    def test_files_and_no_prediction_of_it(self, tmp_path):
        prediction, reference = self.masks()
        reference[:, 14:, 14:] = NOBODY
        for name, array in (("p", prediction), ("r", reference)):
            sitk.WriteImage(sitk.GetImageFromArray(LABELS.to_values(array)), str(tmp_path / f"{name}.nii.gz"))
        pair = CasePair(case_id="c", prediction=tmp_path / "p.nii.gz", reference=tmp_path / "r.nii.gz")
        assert score_pair(pair, labels=LABELS, default_tolerance_mm=2.0).organs["left ball"].dice == 1.0
        with pytest.raises(ImageError, match="label map has value 9, declared are 0-2"):
            score_pair(dataclasses.replace(pair, prediction=pair.reference), labels=LABELS, default_tolerance_mm=2.0)


def test_volumes_of_parts_bound_from_below_alone():
    parts = {"ball": [0.5, 0.2], "other": [3.0], "third": []}
    found = labeled_volumes({"ball": [], "other": [10.0, 0.0], "third": []}, parts)
    assert (found["ball"].least_ml, found["ball"].most_ml, found["ball"].absent) == (0.2, float("inf"), 0)
    assert (found["other"].least_ml, found["other"].most_ml, found["other"].absent) == (10.0, 10.0, 1)
    assert "third" not in found


def test_both_stages_are_prepared_with_it(scribbles, tmp_path):
    from flaresemi.planning.preparation import prepare_dataset
    from flaresemi.workspace import Workspace

    dataset, workspace = load_dataset(scribbles), Workspace(tmp_path / "workspace")
    plans = make_plans(fingerprint_dataset(dataset, None, workers=1), stages="two")
    assert prepare_dataset(dataset, plans, workspace, workers=1) == 2
    for stage in Stage:
        record = CaseStore(workspace.preprocessed(stage)).open("c2").record
        assert record.annotated_voxels, stage
        assert CaseStore(workspace.preprocessed(stage)).open("c1").record.annotated_voxels is None
