"""A whole round on a tiny phantom with networks that have learned nothing: what counts is what is done, and when."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flaresemi.compute.sharding import Shard
from flaresemi.dataset import load_dataset
from flaresemi.errors import ConfigError, DatasetError, SelectionError
from flaresemi.files import content_hash
from flaresemi.io.case_store import CaseRecord, CaseStore, LabelStore
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.planning.preparation import case_versions
from flaresemi.planning.splits import load_splits
from flaresemi.plans import Stage
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.pseudolabels.vitals import Vitals
from flaresemi.records import load_record, record_hash
from flaresemi.rounds.exporting import export_round
from flaresemi.rounds.round import Execution, Round
from flaresemi.rounds.state import STEPS, RoundConfig, inputs_hash, save_state
from flaresemi.selection import CaseScore, Selection, load_scores
from flaresemi.training.config import TrainingConfig
from flaresemi.training.mixing import Mixing
from flaresemi.training.runs import RunRecord
from flaresemi.workspace import Workspace

#: With these every case is selected, however bad.
TAKE_ALL = RoundConfig(selection=SelectionRule(rule="case", best_share=1.0))

ON_CPU = Execution(device=torch.device("cpu"), precision="fp32")


@pytest.fixture
def round_one(trained: Path, phantom_dataset: Path, tmp_path: Path) -> Round:
    shutil.copytree(trained, tmp_path / "workspace")
    return Round(Workspace(tmp_path / "workspace"), load_dataset(phantom_dataset), "0", 1, TAKE_ALL, ON_CPU)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "round.json"}


def test_a_round_labels_selects_trains_and_validates(round_one: Round, phantom_dataset: Path) -> None:
    state = round_one.run()
    assert state is not None
    assert state.next_step is None
    folder = round_one.folder
    unlabeled = [case.id for case in load_dataset(phantom_dataset).unlabeled]
    assert [score.case_id for score in load_scores(folder.scores)] == unlabeled
    assert folder.reliable_series.read_text(encoding="utf-8").split() == unlabeled
    assert load_checkpoint(folder.model(Stage.FINE).final).iteration == 3
    assert (folder.model(Stage.FINE).validation / "summary.json").is_file()
    before, after = (load_record(path, Vitals) for path in (folder.vitals_before, folder.vitals))
    assert sorted(after.volumes_ml) == sorted(before.volumes_ml) == sorted(unlabeled)
    assert set(after.dice) == set(before.dice) == set(round_one.split.train)
    assert before.made_with == state.made_with != after.made_with
    # Nothing is done twice.
    before = times(folder.root)
    assert round_one.run() == state
    assert times(folder.root) == before


def test_a_deleted_label_is_made_again(round_one: Round) -> None:
    round_one.run(last_step="select")
    case_id = round_one.pool[0]
    labels = round_one.folder.labels(Stage.FINE)
    shutil.rmtree(labels / case_id)
    round_one.run(last_step="select")
    images = CaseStore(round_one.workspace.preprocessed(Stage.FINE))
    assert LabelStore(labels, images).open(case_id).label_zyx is not None


def test_students_go_on_from_the_weights_that_labeled_with_patches_of_their_own(round_one: Round) -> None:
    teacher = round_one.workspace.model("0", Stage.FINE)
    bias = load_checkpoint(teacher.final).weights["heads.0.bias"]
    start = load_record(teacher.run_record, RunRecord)
    assert round_one.config.start == "previous"
    for config in (round_one.config, dataclasses.replace(round_one.config, start="scratch")):
        round_one.config = config
        assert round_one.run(last_step="train FINE") is not None
        student = round_one.folder.model(Stage.FINE)
        record = load_record(student.run_record, RunRecord)
        assert record.config.seed == start.config.seed + 1
        assert record.config.init_from == (str(teacher.final) if config.start == "previous" else None)
        drawn = load_checkpoint(student.final).weights["heads.0.bias"]
        assert torch.allclose(drawn, bias, atol=1) == (config.start == "previous")


def test_another_pseudo_label_is_selected_and_trained_on_anew(
    round_one: Round, caplog: pytest.LogCaptureFixture
) -> None:
    """As it comes of an image that was prepared anew, though the scores may be what they were."""
    round_one.run(last_step="train FINE")
    store, case_id = round_one.labels.stores[Stage.FINE], round_one.pool[0]
    label = np.array(store.open(case_id).label_zyx)
    organs = len(round_one.plans.labels.names)
    store.write_labels(case_id, label, organs, tuple(range(1, organs + 1)))
    again = Round(round_one.workspace, round_one.dataset, "0", 1, TAKE_ALL, ON_CPU)
    again.run(last_step="train FINE")
    assert "have changed" not in caplog.text  # the same label map, written again
    label[0, 0, 0] = 1 - min(label[0, 0, 0], 1)
    store.write_labels(case_id, label, organs, tuple(range(1, organs + 1)))
    again = Round(round_one.workspace, round_one.dataset, "0", 1, TAKE_ALL, ON_CPU)
    again.run(last_step="train FINE")
    for step in ("select", "train FINE"):
        assert f"the inputs of '{step}' have changed: it is run again" in caplog.text


def test_scans_of_a_held_out_group_are_not_trained_on(round_one: Round, caplog: pytest.LogCaptureFixture) -> None:
    round_one.run(last_step="select")
    fold = load_splits(round_one.workspace.splits).fold("0")
    (unlabeled,) = round_one.pool

    def with_relative(labeled: str) -> Round:
        dataset = round_one.dataset
        grouped = {
            kind: tuple(
                dataclasses.replace(case, group="p" if case.id in (labeled, unlabeled) else None)
                for case in getattr(dataset, kind)
            )
            for kind in ("labeled", "unlabeled")
        }
        return Round(round_one.workspace, dataclasses.replace(dataset, **grouped), "0", 1, TAKE_ALL, ON_CPU)

    assert with_relative(fold.train[0]).tasks[Stage.FINE].unlabeled == (unlabeled,)
    assert with_relative(fold.validation[0]).tasks[Stage.FINE].unlabeled == ()  # of trainers that draw from the pool
    assert with_relative(fold.train[0]).run(last_step="select") is not None
    assert "have changed" not in caplog.text
    with pytest.raises(SelectionError, match="no pseudo-label may be used: of group 'p', of which fold 0 holds"):
        with_relative(fold.validation[0]).run(last_step="select")
    assert "the inputs of 'select' have changed" in caplog.text


def test_what_was_not_labeled_as_it_is_prepared_now_is_not_exported(round_one: Round, tmp_path: Path) -> None:
    round_one.run(last_step="select")
    case_id = round_one.pool[0]
    file = round_one.workspace.preprocessed(Stage.FINE) / case_id / "case.json"
    record = file.read_text(encoding="utf-8")
    known = load_record(file, CaseRecord).source_hash
    file.write_text(record.replace(known, "0" * len(known)), encoding="utf-8")
    with pytest.raises(SelectionError, match=f"prepared again since they were labeled: {case_id}"):
        export_round(round_one, tmp_path / "out", selected_only=True)
    file.write_text(record, encoding="utf-8")
    assert export_round(round_one, tmp_path / "out", selected_only=True) == len(round_one.pool)


def test_replaced_weights_of_the_teacher_begin_the_round_anew(
    round_one: Round, caplog: pytest.LogCaptureFixture
) -> None:
    round_one.run()
    before = load_scores(round_one.folder.scores)
    final = round_one.workspace.model("0", Stage.FINE).final
    checkpoint = load_checkpoint(final)
    weights = {name: value + 0.01 for name, value in checkpoint.weights.items()}
    save_checkpoint(final, dataclasses.replace(checkpoint, weights=weights))
    state = round_one.run()
    assert state is not None
    assert state.next_step is None
    assert "the inputs of 'label' have changed: it is run again" in caplog.text
    assert load_scores(round_one.folder.scores)[0].made_with != before[0].made_with


def test_replaced_weights_of_a_student_are_validated_anew(round_one: Round, caplog: pytest.LogCaptureFixture) -> None:
    round_one.run()
    student = round_one.folder.model(Stage.FINE)
    checkpoint = load_checkpoint(student.final)
    marker = (student.validation / "made_with.json").read_text(encoding="utf-8")
    weights = {name: value + 0.01 for name, value in checkpoint.weights.items()}
    save_checkpoint(student.final, dataclasses.replace(checkpoint, weights=weights))
    round_one.run()
    assert "the inputs of 'validate' have changed: it is run again" in caplog.text
    assert (student.validation / "made_with.json").read_text(encoding="utf-8") != marker


def test_a_stopped_training_goes_on(round_one: Round) -> None:
    round_one.run(last_step="select")
    requests = iter([False, True])
    round_one.execution = dataclasses.replace(ON_CPU, stop_requested=lambda: next(requests, False))
    assert round_one.run() is None
    assert load_checkpoint(round_one.folder.model(Stage.FINE).latest).iteration == 2
    state = round_one.run()
    assert state is not None
    assert state.next_step is None


def test_shards_are_put_together_and_missing_cases_named(round_one: Round) -> None:
    with pytest.raises(SelectionError, match="not labeled in this round"):
        round_one.select()
    round_one.label(Shard(1, 2))  # one case: the second shard has nothing to do
    with pytest.raises(SelectionError, match=round_one.pool[0]):
        round_one.select()
    round_one.label(Shard(0, 2))
    assert round_one.run(last_step="select")


def test_a_shard_that_helps_does_what_others_left_and_stops_when_asked(round_one: Round) -> None:
    second = Shard(1, 2, helps=True)  # the only case belongs to the first
    round_one.execution = dataclasses.replace(ON_CPU, stop_requested=lambda: True)
    assert not round_one.label(second)
    assert round_one.run(last_step="label") is None
    with pytest.raises(SelectionError, match="not labeled in this round"):
        round_one.select()
    round_one.execution = ON_CPU
    assert round_one.label(second)
    assert round_one.run(last_step="select")


def test_the_validation_cases_never_become_pseudo_labels(round_one: Round) -> None:
    round_one.run(last_step="select")
    held_out = set(round_one.split.validation)
    selection = load_record(round_one.folder.selection, Selection)
    assert held_out
    assert not held_out & {case.case_id for case in selection.selected}


def test_a_dataset_without_unlabeled_cases_is_one_clear_message(round_one: Round) -> None:
    empty = dataclasses.replace(round_one.dataset, unlabeled=())
    with pytest.raises(SelectionError, match="no unlabeled cases"):
        Round(round_one.workspace, empty, "0", 1, TAKE_ALL, ON_CPU)


def test_a_fold_that_was_not_trained_is_named(round_one: Round) -> None:
    assert STEPS[0] == "label"
    other = Round(round_one.workspace, round_one.dataset, "1", 1, TAKE_ALL, ON_CPU)
    with pytest.raises(SelectionError, match=r"snapshot_100\.pt is missing"):
        other.run()


def test_mirrored_opinions_are_other_labels(round_one: Round, caplog: pytest.LogCaptureFixture) -> None:
    round_one.run(last_step="label")
    plain = load_record(round_one.folder.case_scores / f"{round_one.pool[0]}.json", CaseScore)
    config = dataclasses.replace(TAKE_ALL, tta=True)
    Round(round_one.workspace, round_one.dataset, "0", 1, config, ON_CPU).run(last_step="label")
    assert "the inputs of 'label' have changed: it is run again" in caplog.text
    mirrored = load_record(round_one.folder.case_scores / f"{round_one.pool[0]}.json", CaseScore)
    assert mirrored.made_with == (*plain.made_with, "tta")


def test_the_state_says_what_that_of_older_versions_said(round_one: Round) -> None:
    """The names of the steps, and hashes of the same things in the same order: their complete rounds are complete."""
    state = round_one.run()
    assert state is not None
    assert tuple(step.name for step in round_one.steps) == tuple(state.steps) == STEPS
    folder, plans, student = round_one.folder, round_one.plans, round_one.folder.model(Stage.FINE)
    labels = LabelStore(folder.labels(Stage.FINE), CaseStore(round_one.workspace.preprocessed(Stage.FINE)))
    labeled_by = inputs_hash(inputs_hash(plans.fine.hash, ""), *state.made_with, *round_one.pool)
    of_cases = [(load_record(folder.case_scores / f"{case_id}.json", CaseScore), labels.record(case_id).label_hash)
                for case_id in round_one.pool]  # fmt: skip
    observed = content_hash(folder.observations)
    selected_from = inputs_hash(labeled_by, inputs_hash(*of_cases), TAKE_ALL.selection, observed)
    chosen = inputs_hash(selected_from, content_hash(folder.selection))
    config = dataclasses.replace(load_record(student.run_record, RunRecord).config, init_from="previous")
    held_out, training = (
        record_hash(case_versions(cases, round_one.workspace))
        for cases in (round_one.split.validation, round_one.split.train)
    )
    assert {name: (step.inputs, step.cases) for name, step in state.steps.items()} == {
        "label": (labeled_by, held_out),
        "select": (selected_from, held_out + training),
        "train COARSE": (inputs_hash(chosen, "not needed"), training),
        "train FINE": (inputs_hash(chosen, config, TAKE_ALL.mixing), training),
        "validate": (inputs_hash(chosen, load_checkpoint(student.final).weights_hash), held_out),
    }
    # Hashes that older versions wrote of the settings.
    settings = TrainingConfig(iterations=3, init_from="previous", seed=1, mirror_axes=(2,)), Mixing()
    assert inputs_hash(*settings) == "9aeb2041cf04e5d6"
    assert inputs_hash(SelectionRule()) == "d78854ecc0141ccd"
    # Older still: nothing was noted of the real cases.
    steps = {name: dataclasses.replace(step, cases="") for name, step in state.steps.items()}
    save_state(folder.state, dataclasses.replace(state, steps=steps))
    before = times(folder.root)
    assert round_one.run() is not None
    assert times(folder.root) == before


def test_plans_and_splits_are_read_once_per_round(round_one: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    round_one.run()
    read: list[Path] = []

    def noted(path: Path, *types: Any, **settings: Any) -> Any:
        read.append(path)
        return load_record(path, *types, **settings)

    for module in ("plans", "planning.splits"):
        monkeypatch.setattr(f"flaresemi.{module}.load_record", noted)
    again = Round(round_one.workspace, round_one.dataset, "0", 1, TAKE_ALL, ON_CPU)
    assert again.run() is not None
    workspace = round_one.workspace
    assert sorted(read) == sorted([workspace.plans, workspace.splits, workspace.fingerprint])


def test_a_case_that_is_prepared_anew_in_mid_round_is_refused(round_one: Round) -> None:
    """What the state says of the cases is what was trained on."""
    round_one.run(last_step="select")
    store, case_id = CaseStore(round_one.workspace.preprocessed(Stage.FINE)), round_one.split.train[0]
    case = store.open(case_id)
    assert case.label_zyx is not None
    store.write(case.record, np.array(case.image_czyx) + 1, np.array(case.label_zyx))
    with pytest.raises(DatasetError, match=f"case '{case_id}' was made anew while it was in use here"):
        round_one.run()


def test_a_round_does_not_train_over_somebody_elses_files(round_one: Round) -> None:
    round_one.run(last_step="select")
    student = round_one.folder.model(Stage.FINE)
    student.root.mkdir(parents=True)
    student.snapshot(36).write_bytes(b"years of work")
    with pytest.raises(ConfigError, match=r"did not write in this folder.*snapshot_036\.pt"):
        round_one.run()
    assert student.snapshot(36).read_bytes() == b"years of work"
    student.snapshot(36).unlink()
    assert round_one.run() is not None
