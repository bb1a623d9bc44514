"""A model from elsewhere labels the pool: by the names of organs, and none that it does not know is supervised."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flaresemi.cli import semi_round
from flaresemi.dataset import Dataset, load_dataset
from flaresemi.errors import ConfigError
from flaresemi.inference.cascade import Segmenter
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.preprocessing.preprocessor import stage_labels
from flaresemi.pseudolabels.calibration import Observation, Observations
from flaresemi.pseudolabels.outside import dice_reached, with_dice_reached
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.pseudolabels.teachers import made_with
from flaresemi.pseudolabels.vitals import Vitals
from flaresemi.records import load_record, save_record
from flaresemi.rounds.exporting import export_round
from flaresemi.rounds.origin import taught_outside
from flaresemi.rounds.round import Execution, Round
from flaresemi.rounds.state import RoundConfig
from flaresemi.selection import EXPORT_RECORD, CaseScore, ExportRecord, OrganScore, Selection, load_scores
from flaresemi.training.runs import RunRecord
from flaresemi.workspace import Workspace
from tests.made_nnunet import write_results

TAKE_ALL = RoundConfig(selection=SelectionRule(rule="case", best_share=1.0))
ON_CPU = Execution(device=torch.device("cpu"), precision="fp32")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {"background": 0, "tumor": 1, "spleen": 2, "liver": 3}
    sizes = {"spacing": [10.0, 9.0, 9.0], "patch_size": [16, 32, 32]}  # the whole phantom in a few windows
    return write_results(tmp_path_factory.mktemp("teacher") / "Dataset001_Made", labels=labels, change=sizes)


def _round(workspace: Path, dataset: Dataset, teacher: Path, number: int = 1) -> Round:
    config = dataclasses.replace(TAKE_ALL, teacher=str(teacher))
    return Round(Workspace(workspace), dataset, "0", number, config, ON_CPU)


def test_the_pool_is_labeled_by_the_names_of_organs(
    trained: Path, phantom_dataset: Path, teacher: Path, tmp_path: Path
) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    dataset = load_dataset(phantom_dataset)
    round_one = _round(workspace, dataset, teacher)
    state = round_one.run(last_step="train FINE")
    assert state is not None
    assert state.made_with[0] == "outside"
    case = dataset.unlabeled[0]
    segmenter = Segmenter.load(teacher, device="cpu", engine="torch")
    theirs = segmenter.segment(segmenter.read(case.images)).indices_zyx
    names = round_one.plans.labels.names
    expected = np.zeros_like(theirs)
    for place, name in ((2, "spleen"), (3, "liver")):
        expected[theirs == place] = names.index(name) + 1
    stored = round_one.labels.stores[Stage.FINE].open(case.id)
    assert stored.label_zyx is not None
    np.testing.assert_array_equal(np.asarray(stored.label_zyx), stage_labels(expected, stored.record.grid))
    selection = load_record(round_one.folder.selection, Selection)
    assert selection.selected[0].supervised == tuple(name for name in names if name in ("spleen", "liver"))
    assert selection.selected[0].rejected["pancreas"] == "the teacher does not know it"
    (score,) = load_scores(round_one.folder.scores)
    observed = load_record(round_one.folder.observations, Observations).observations
    reached = [each.dice for each in observed if each.organ == "liver"]
    assert score.organs["liver"].predicted_dice == pytest.approx(np.mean(reached), abs=1e-6)
    student = round_one.folder.model(Stage.FINE)
    assert load_checkpoint(student.final).iteration == 3
    assert load_record(student.run_record, RunRecord).config.init_from is not None  # the supervised model's weights
    assert not round_one.calibration_file.exists()
    # What it makes of an organ says who may teach it; a loss is measured from the supervised models, too.
    before, start = (
        load_record(path, Vitals) for path in (round_one.folder.vitals_before, round_one.folder.vitals_start)
    )
    supervised = Workspace(workspace).model("0", Stage.FINE)
    assert (before.made_with, start.made_with) == (state.made_with, made_with(supervised, None))
    first = names[0]  # which those supervised models see everywhere
    assert start.volumes_ml[case.id][first] > before.volumes_ml[case.id][first]
    assert start.volumes_ml.keys() == before.volumes_ml.keys()
    # Nothing is known of what it was trained on, here and in later rounds of the chain.
    export_round(round_one, tmp_path / "out", selected_only=False)
    record = load_record(tmp_path / "out" / EXPORT_RECORD, ExportRecord)
    assert (record.trained_on, record.taught_outside) == ((), True)
    save_record(tmp_path / "out" / EXPORT_RECORD, dataclasses.replace(record, trained_on=round_one.split.train))
    assert export_round(round_one, tmp_path / "out", selected_only=False) == 0  # begun by an older version
    assert load_record(tmp_path / "out" / EXPORT_RECORD, ExportRecord) == record
    assert taught_outside(round_one.workspace, ["0"])
    assert not taught_outside(round_one.workspace, ["1"])


def test_labels_are_not_made_twice_and_another_teacher_labels_anew(
    trained: Path, phantom_dataset: Path, teacher: Path, tmp_path: Path
) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    dataset = load_dataset(phantom_dataset)
    round_one = _round(workspace, dataset, teacher)
    round_one.run(last_step="select")
    scores = round_one.folder.case_scores / f"{dataset.unlabeled[0].id}.json"
    before = scores.stat().st_mtime_ns
    again = _round(workspace, dataset, teacher)
    again.execution = dataclasses.replace(ON_CPU, precision="auto")
    again.run(last_step="select")
    assert scores.stat().st_mtime_ns == before
    Round(Workspace(workspace), dataset, "0", 1, TAKE_ALL, ON_CPU).run(last_step="label")
    assert load_record(scores, CaseScore).made_with[0] != "outside"


def test_students_of_other_first_weights_are_trained_again(
    trained: Path, phantom_dataset: Path, teacher: Path, tmp_path: Path
) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    round_one = _round(workspace, load_dataset(phantom_dataset), teacher)
    round_one.run(last_step="select")
    before = round_one.training_inputs(Stage.FINE)
    final = Workspace(workspace).model("0", Stage.FINE).final
    checkpoint = load_checkpoint(final)
    save_checkpoint(final, dataclasses.replace(checkpoint, keep_largest=("liver",)))
    assert round_one.training_inputs(Stage.FINE) == before  # what a validation adds leaves them what they are
    weights = {name: value + 0.01 for name, value in checkpoint.weights.items()}
    save_checkpoint(final, dataclasses.replace(checkpoint, weights=weights))
    assert round_one.training_inputs(Stage.FINE) != before
    state = round_one.run(last_step="label")
    assert state is not None
    start = load_record(round_one.folder.vitals_start, Vitals)
    assert start.made_with == made_with(Workspace(workspace).model("0", Stage.FINE), None)
    without = Round(Workspace(workspace), load_dataset(phantom_dataset), "0", 1, TAKE_ALL, ON_CPU)
    without.run(last_step="label")
    assert not without.folder.vitals_start.exists()


def test_teachers_that_know_nothing_of_the_dataset(
    trained: Path, phantom_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    stranger = write_results(tmp_path / "Dataset001_Made", labels={"background": 0, "Leber": 1})
    with pytest.raises(ConfigError, match="knows no organ of the dataset: it knows Leber"):
        _round(workspace, load_dataset(phantom_dataset), stranger).run(last_step="label")
    place = ["-d", str(phantom_dataset), "-w", str(workspace), "--fold", "0", "--device", "cpu"]
    assert semi_round.main([*place, "--step", "label", "--teacher", str(tmp_path / "nowhere")]) == 2
    assert "model folder not found" in capfd.readouterr().err
    assert semi_round.main([*place, "--step", "label", "--teacher", str(stranger), "--ignore-contested"]) == 2
    assert "labels without snapshots" in capfd.readouterr().err


def test_the_dice_to_expect_is_that_of_labeled_cases_held_out_ones_first() -> None:
    there = OrganScore(agreement=1.0, volume_ml=3.0, entropy=None)
    absent = OrganScore(agreement=None, volume_ml=0.0, entropy=None)
    score = CaseScore(case_id="a", score=1.0, organs={"liver": there, "spleen": absent, "aorta": there})
    observed = [
        Observation(case_id=case, organ=organ, score=there, dice=dice)
        for case, organ, dice in (("b", "liver", 0.5), ("c", "liver", 0.75), ("b", "spleen", 0.5))
    ]
    rightly = (Observation(case_id="d", organ=organ, score=absent, dice=1.0) for organ in ("liver", "aorta"))
    observed.extend(rightly)  # not found where they are not: that says nothing of those that are found
    training = {"e": {"liver": 0.9, "aorta": 0.25}, "f": {"aorta": 0.5}}
    found = with_dice_reached(score, dice_reached(observed, training)).organs
    assert (found["liver"].trust, found["spleen"].trust, found["aorta"].trust) == (0.625, None, 0.375)
    observed.append(Observation(case_id="e", organ="liver", score=absent, dice=0.0))  # missed
    assert dice_reached(observed, training)["liver"] == pytest.approx(1.25 / 3)
    assert dice_reached(observed, {}).keys() == {"liver", "spleen"}
