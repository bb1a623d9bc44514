"""What a user can break between two starts of a round: one clear message, and when it is mended the round goes on."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from flaresemi.cli import plan_and_preprocess
from flaresemi.dataset import load_dataset
from flaresemi.errors import CheckpointError, ConfigError, DatasetError, SelectionError
from flaresemi.plans import Stage
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.rounds.chain import SelfTraining
from flaresemi.rounds.round import Execution, Round
from flaresemi.rounds.state import RoundConfig
from flaresemi.rounds.stopping import StopRule
from flaresemi.selection import load_scores
from flaresemi.workspace import Workspace

TAKE_ALL = RoundConfig(selection=SelectionRule(rule="case", best_share=1.0))


@pytest.fixture
def data(phantom_dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(phantom_dataset, tmp_path / "data")  # times of files are kept


@pytest.fixture
def new_round(trained: Path, data: Path, tmp_path: Path) -> Callable[[], Round]:
    """Makes the round as a new start of the command would."""
    workspace = Workspace(shutil.copytree(trained, tmp_path / "workspace"))

    def make() -> Round:
        execution = Execution(device=torch.device("cpu"), precision="fp32")
        return Round(workspace, load_dataset(data), "0", 1, TAKE_ALL, execution)

    return make


def test_when_nothing_is_rejected_it_is_said(new_round: Callable[[], Round], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        new_round().run(last_step="select")
    assert "every pseudo-label was selected" in caplog.text


def test_an_edited_pseudo_label_is_not_trained_on(new_round: Callable[[], Round]) -> None:
    new_round().run(last_step="select")
    round = new_round()
    stored = round.labels.stores[Stage.FINE].open(round.pool[0])
    file = stored.folder / "label.npy"
    drawn = file.read_bytes()
    file.write_bytes(drawn[:-1] + bytes([drawn[-1] ^ 1]))
    with pytest.raises(DatasetError, match=f"pseudo-label of case '{round.pool[0]}' is not the one that was written"):
        round.run()
    shutil.rmtree(stored.folder)  # what the message says
    state = new_round().run()
    assert state is not None
    assert state.next_step is None
    assert file.read_bytes() == drawn


def test_an_edited_real_label_is_named(new_round: Callable[[], Round], data: Path) -> None:
    new_round().run(last_step="select")
    label = load_dataset(data).labeled[1].label
    assert label is not None
    before, content = label.stat(), label.read_bytes()
    label.unlink()  # the dataset is shared by links
    label.write_bytes(content + b"\0")
    with pytest.raises(
        DatasetError, match=f"have changed since they were prepared: {load_dataset(data).labeled[1].id}"
    ):
        new_round()
    label.write_bytes(content)
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    state = new_round().run(last_step="select")
    assert state is not None
    assert state.next_step == "train COARSE"


def test_a_deleted_real_label_is_named(new_round: Callable[[], Round], data: Path) -> None:
    label = load_dataset(data).labeled[1].label
    assert label is not None
    label.unlink()
    with pytest.raises(DatasetError, match="without a label map"):
        new_round()


def test_plans_that_change_in_mid_round(new_round: Callable[[], Round], tmp_path: Path) -> None:
    new_round().run(last_step="select")
    selection = new_round().folder.selection
    selected = selection.read_bytes()
    path = tmp_path / "workspace" / "plans.json"
    before = path.read_text(encoding="utf-8")
    plans = json.loads(before)
    plans["fine"]["patch_zyx"] = [16, 32, 32]
    path.write_text(json.dumps(plans))
    with pytest.raises(ConfigError, match="trained with other plans"):
        new_round().run()
    path.write_text(before)
    state = new_round().run()
    assert state is not None
    assert state.next_step is None
    assert selection.read_bytes() == selected


def test_snapshots_that_were_not_kept(new_round: Callable[[], Round], tmp_path: Path) -> None:
    model = Workspace(tmp_path / "workspace").model("0", Stage.FINE)
    model.snapshot(36).rename(tmp_path / "elsewhere.pt")
    with pytest.raises(SelectionError, match=r"snapshot_036\.pt is missing, the weights that the final ones"):
        new_round().run()
    (tmp_path / "elsewhere.pt").rename(model.snapshot(36))
    assert new_round().run(last_step="select") is not None


def test_a_checkpoint_that_is_none(new_round: Callable[[], Round], tmp_path: Path) -> None:
    model = Workspace(tmp_path / "workspace").model("0", Stage.FINE)
    whole = model.final.read_bytes()
    model.final.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        new_round().run()
    model.final.write_bytes(whole)
    assert new_round().run(last_step="select") is not None


def test_one_labeled_case_has_no_fold(new_round: Callable[[], Round], tmp_path: Path) -> None:
    path = tmp_path / "workspace" / "splits.json"
    splits = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(splits | {"case_ids": splits["case_ids"][:1], "folds": []}))
    with pytest.raises(ConfigError, match="there is no fold '0': 1 labeled case"):
        new_round()


def test_a_case_that_is_gone_from_the_prepared_ones(new_round: Callable[[], Round], tmp_path: Path) -> None:
    new_round().run(last_step="select")
    round = new_round()
    prepared = Workspace(tmp_path / "workspace").preprocessed(Stage.FINE) / round.pool[0]
    prepared.rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=f"case '{round.pool[0]}' is not preprocessed"):
        round.run()
    (tmp_path / "elsewhere").rename(prepared)
    assert new_round().run(last_step="select") is not None


def test_a_case_that_is_gone_from_the_dataset(
    new_round: Callable[[], Round], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = load_dataset(data)
    added = dataset.test[0].images[0].rename(dataset.unlabeled[0].images[0].parent / "another_0000.nii.gz")
    words = ["-d", str(data), "-w", str(tmp_path / "workspace"), "--workers", "1", "--quiet"]
    assert plan_and_preprocess.main(words) == 0
    new_round().run(last_step="select")
    folder = new_round().folder
    assert [score.case_id for score in load_scores(folder.scores)] == ["another", dataset.unlabeled[0].id]
    kept = folder.case_scores / f"{dataset.unlabeled[0].id}.json"
    written = kept.stat().st_mtime_ns
    added.unlink()
    new_round().run(last_step="select")
    assert "the inputs of 'label' have changed" in caplog.text
    assert [score.case_id for score in load_scores(folder.scores)] == [dataset.unlabeled[0].id]
    assert kept.stat().st_mtime_ns == written  # the case that is still there is not labeled again


def test_a_score_file_that_was_spoilt(new_round: Callable[[], Round]) -> None:
    new_round().run(last_step="select")
    round = new_round()
    score = round.folder.case_scores / f"{round.pool[0]}.json"
    score.write_text(score.read_text(encoding="utf-8")[:100])
    with pytest.raises(SelectionError, match="not valid JSON"):
        round.run()
    score.unlink()
    assert new_round().run(last_step="select") is not None


def test_folds_that_were_exchanged(new_round: Callable[[], Round], tmp_path: Path) -> None:
    """The models that label were trained on the cases that would judge them and calibrate their scores."""
    path = tmp_path / "workspace" / "splits.json"
    splits = json.loads(path.read_text(encoding="utf-8"))
    splits["folds"].reverse()
    path.write_text(json.dumps(splits))
    with pytest.raises(CheckpointError, match="would be judged by cases that it was trained on"):
        new_round().run(last_step="label")


def test_a_training_case_that_was_corrected_and_prepared_again(
    new_round: Callable[[], Round], data: Path, tmp_path: Path
) -> None:
    case_id = new_round().split.train[0]
    label = load_dataset(data).case(case_id).label
    assert label is not None
    image = sitk.ReadImage(str(label))
    label.unlink()  # the dataset is shared by links
    sitk.WriteImage(sitk.ChangeLabel(image, {1: 2}), str(label), True)
    words = ["-d", str(data), "-w", str(tmp_path / "workspace"), "--workers", "1", "--quiet", "--keep-plans"]
    assert plan_and_preprocess.main(words) == 0
    with pytest.raises(CheckpointError, match=r"1 case\(s\) that this training began with are others now"):
        new_round().run(last_step="label")


def test_a_changed_unlabeled_image_is_named(new_round: Callable[[], Round], data: Path) -> None:
    new_round().run(last_step="select")
    image = load_dataset(data).unlabeled[0].images[0]
    content = image.read_bytes()
    image.unlink()
    image.write_bytes(content + b"\0")
    with pytest.raises(DatasetError, match="have changed since they were prepared"):
        new_round().run(last_step="select")


def test_a_validation_on_other_cases_does_not_count(new_round: Callable[[], Round], data: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    training = SelfTraining(workspace, ("0",), StopRule(), lambda fold, number: new_round())
    training.judge()
    marker = workspace.model("0", Stage.FINE).validation / "made_with.json"
    found = json.loads(marker.read_text(encoding="utf-8"))
    marker.write_text(json.dumps(found | {"cases": "others"}))
    with pytest.raises(SelectionError, match="was validated on cases that have changed since"):
        training.judge()
    marker.write_text(json.dumps({name: value for name, value in found.items() if name != "cases"}))  # of old versions
    training.judge()
