"""More organs than a byte can number: read, checked, prepared, drawn, trained, restored, scored."""

import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from flaresemi.dataset import load_dataset
from flaresemi.evaluation.flare import evaluate_case
from flaresemi.evaluation.overlap import dice_where_present
from flaresemi.geometry import BoundingBox
from flaresemi.inference.postprocessing import keep_largest
from flaresemi.inference.sliding_window import most_likely
from flaresemi.io.case_store import CaseStore
from flaresemi.labels import Label, LabelSet
from flaresemi.planning.cases import read_case
from flaresemi.planning.inspection import inspect_dataset
from flaresemi.planning.rules import judge
from flaresemi.plans import NetworkPlan
from flaresemi.preprocessing.resampling import resample_labels
from flaresemi.reporting.overlay import busiest_slices, save_overlay
from flaresemi.training.losses import IGNORED
from flaresemi.training.sampling import PatchSampler, TrainingCase
from flaresemi.training.trainer import Trainer
from tests.made_labels import labels_from_logits
from tests.test_ignored_voxels import write
from tests.training.conftest import stage_plan

COUNT = 300
LABELS = LabelSet(labels=tuple(Label(name=f"organ {n}", value=n) for n in range(1, COUNT + 1)), ignore=COUNT + 1)


def blocks(shape=(20, 20, 24)) -> np.ndarray:
    """Blocks of 2×4×4 voxels, of all organs, uint16."""
    z, y, x = np.indices(shape)
    return (z // 2 * 30 + y // 4 * 6 + x // 4 + 1).astype(np.uint16)


def test_all_values_of_a_label_map_are_seen(tmp_path):
    for folder, array, name in (
        ("imagesTr", np.full((20, 20, 24), 40, np.int16), "c_0000"),
        ("labelsTr", blocks(), "c"),
    ):
        (tmp_path / folder).mkdir()
        array[0, 0, 0] = 0
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / folder / f"{name}.nii.gz"))
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0} | LABELS.values}
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    dataset = load_dataset(tmp_path)
    problems = {finding.problem for finding in judge(dataset, inspect_dataset(dataset, None, workers=1)).findings}
    assert not problems & {"absent organ", "unknown label", "empty label"}
    _, indices = read_case(dataset.labeled[0], dataset.labels)
    assert indices.max() == COUNT and indices.dtype == np.uint16


def network(**changes) -> NetworkPlan:
    return dataclasses.replace(stage_plan().network, output_channels=COUNT + 1, **changes)


def test_a_training_step(make_task, quick_config, tmp_path):
    store, label = CaseStore(tmp_path / "store"), blocks()
    label[:, :, 20:] = LABELS.ignored
    record = write(store, "case_0", label, organs=COUNT)
    assert len(record.voxels_per_label) == COUNT and min(record.voxels_per_label[:5]) == 32
    case = store.open("case_0")
    for index in (1, 5, 257, 299):
        assert (label[tuple(case.class_voxels(index).T)] == index).all() and len(case.class_voxels(index)) == 32
    plan = stage_plan(network=network())
    task = make_task(store=store, plan=plan, labels=LABELS, training=("case_0",), validation=())
    config = dataclasses.replace(quick_config, iterations=2, iterations_per_epoch=2, validations=0)
    trainer = Trainer(task, config, device=torch.device("cpu"))
    batches = [trainer.sampler[(iteration, 0)] for iteration in range(8)]
    assert {batch.label_bzyx.dtype for batch in batches} == {np.dtype(np.int32)}
    assert min(batch.label_bzyx.min() for batch in batches) == IGNORED
    assert max(batch.label_bzyx.max() for batch in batches) > 255
    assert trainer.fit()


def test_labels_beyond_a_byte_reach_the_loss_unsigned(tmp_path):
    store = CaseStore(tmp_path)
    write(store, "case_0", blocks(), organs=COUNT)
    plan = stage_plan(network=network())
    settings = {"foreground_share": 1.0, "region_jitter_mm": 0.0, "outside_share": 0.0, "augmentations": {}, "seed": 0}
    sampler = PatchSampler(
        store, [TrainingCase(case_id="case_0", supervised=(257, 300), augmentation="none")], plan, **settings
    )
    batch = sampler[(0, 0)]
    assert batch.label_bzyx.dtype == np.uint16
    target = torch.from_numpy(batch.label_bzyx).long()
    assert target.max() > 255 and set(target.unique().tolist()) == set(np.unique(batch.label_bzyx).tolist())


def test_restored_cleaned_and_scored():
    label = blocks((10, 12, 12))
    labels = dataclasses.replace(LABELS, ignore=None)
    logits = (
        torch.nn.functional.one_hot(torch.from_numpy(label.astype(np.int64)), COUNT + 1).permute(3, 0, 1, 2).float()
    )
    np.testing.assert_array_equal(most_likely(logits), label)
    box = BoundingBox.whole(label.shape)
    whole = BoundingBox.whole((20, 24, 24))
    restored = labels_from_logits(logits, box, label.shape, whole.shape_zyx, whole)
    assert restored.dtype == np.uint16
    np.testing.assert_array_equal(resample_labels(restored, label.shape), label)
    cleaned = label.copy()
    assert len(keep_largest(cleaned, range(1, COUNT + 1))) == len(np.unique(label))
    np.testing.assert_array_equal(cleaned, label)
    scores = evaluate_case(label, label, (1.0, 1.0, 1.0), labels, default_tolerance_mm=1.0)
    assert len(scores) == COUNT and all(score.dice == 1.0 for score in scores)
    present = dice_where_present(label, np.where(label == 7, 0, label), labels)
    assert present[6] == 0.0 and present[0] == 1.0
    assert [value is None for value in present] == [index not in label for index in range(1, COUNT + 1)]


@pytest.mark.parametrize("seed", range(3))
def test_the_busiest_slices_are_those_of_counting_every_organ(seed):
    indices = np.random.default_rng(seed).integers(0, 5, (6, 7, 8)).astype(np.uint16)
    indices[indices == 3] = 0
    indices[:, 2:4] *= 60
    expected = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        areas = [np.count_nonzero(indices == index, axis=others) for index in range(1, COUNT + 1)]
        shares = np.array([area / area.max() for area in areas if area.any()])
        expected.append(int(np.argmax(np.count_nonzero(shares, axis=0) + shares.sum(axis=0) / (len(shares) + 1))))
    assert busiest_slices(indices, COUNT) == tuple(expected)


def test_a_legend_of_many_organs_has_columns(tmp_path):
    label, image = blocks(), np.zeros((20, 20, 24), np.float32)
    sizes = []
    for shown in (label, np.minimum(label, 3)):
        path = tmp_path / f"{shown.max()}.png"
        save_overlay(path, image, shown, None, LABELS, (1.0, 1.0, 1.0))
        sizes.append(sitk.ReadImage(str(path)).GetSize())
    assert sizes[0][1] == sizes[1][1] and sizes[0][0] > sizes[1][0] + 400
