"""Chains of rounds: what their folds share, when they are judged, and the models that are kept."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from flaresemi.dataset import load_dataset
from flaresemi.errors import ConfigError, SelectionError
from flaresemi.evaluation.summary import load_summary, save_summary
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.planning.splits import load_splits
from flaresemi.plans import Stage
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.records import load_record, save_record
from flaresemi.rounds.chain import ChainState, SelfTraining, mean_dice
from flaresemi.rounds.final import FinalState, merged
from flaresemi.rounds.folds import FEW_LABELS, usual_folds
from flaresemi.rounds.round import Execution, Round
from flaresemi.rounds.state import RoundConfig, RoundState
from flaresemi.rounds.stopping import StopRule, Verdict
from flaresemi.selection import SelectedCase, Selection
from flaresemi.training.runs import RunRecord
from flaresemi.workspace import Workspace

TAKE_ALL = RoundConfig(selection=SelectionRule(rule="case", best_share=1.0, case_threshold=0.0))


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(trained, tmp_path / "workspace")
    return Workspace(tmp_path / "workspace")


def self_training(workspace: Workspace, dataset: Path, folds: tuple[str, ...]) -> SelfTraining:
    def make_round(fold: str, number: int) -> Round:
        execution = Execution(device=torch.device("cpu"), precision="fp32")
        return Round(workspace, load_dataset(dataset), fold, number, TAKE_ALL, execution, peers=folds)

    return SelfTraining(workspace, folds, StopRule(), make_round)


def test_fold_all_is_trained_and_not_judged(workspace: Workspace, phantom_dataset: Path) -> None:
    shutil.copytree(workspace.model("0", Stage.FINE).root, workspace.model("all", Stage.FINE).root)
    training = self_training(workspace, phantom_dataset, ("all",))
    state = training.run_rounds(1)
    assert state is not None
    assert (state.rounds, state.mean_dice, state.verdict) == (1, (), None)
    assert training.run_rounds(1) == state  # asking again trains no second round
    record = load_record(workspace.round("all", 1).model(Stage.FINE).run_record, RunRecord)
    dataset = load_dataset(phantom_dataset)
    assert set(record.training_cases) == {case.id for case in (*dataset.labeled, *dataset.unlabeled)}
    with pytest.raises(ConfigError, match="holds no case out"):
        training.run_until_converged()


def test_chains_are_judged_on_the_held_out_cases_of_all_folds(workspace: Workspace, phantom_dataset: Path) -> None:
    fine = workspace.model("0", Stage.FINE).validation / "summary.json"
    summary = load_summary(fine)
    others = tuple(dataclasses.replace(case, case_id=f"other_{case.case_id}") for case in summary.cases)
    training = self_training(workspace, phantom_dataset, ("0", "1"))
    with pytest.raises(SelectionError, match="round 0 of fold 1 was not validated") as refused:
        training.judge()
    assert refused.value.fix == "flaresemi_train FINE 1; or name folds that are trained with --fold"  # one stage
    save_summary(
        workspace.model("1", Stage.FINE).validation / "summary.json", dataclasses.replace(summary, cases=others)
    )
    assert training._held_out(0).keys() == {case.case_id for case in (*summary.cases, *others)}
    assert len(training.judge().mean_dice) == 1


def test_folds_that_hold_out_the_same_case_are_not_judged_together(workspace: Workspace, phantom_dataset: Path) -> None:
    splits = load_splits(workspace.splits)
    twice = dataclasses.replace(splits, folds=(splits.folds[0], splits.folds[0]), given="splits_final.json")
    save_record(workspace.splits, twice)
    with pytest.raises(ConfigError, match=f"folds 0, 1 hold out the same cases: {splits.folds[0].validation[0]}"):
        self_training(workspace, phantom_dataset, ("0", "1"))
    self_training(workspace, phantom_dataset, ("0",))
    assert usual_folds(workspace) == ("0",)


def test_the_usual_folds_are_those_that_are_trained_and_validated(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="flaresemi")
    summaries = {fold: workspace.model(fold, Stage.FINE).validation / "summary.json" for fold in "012"}
    summary = summaries["0"].read_bytes()

    def usual(*validated: str) -> str:
        for fold, path in summaries.items():
            path.unlink(missing_ok=True)
            if fold in validated:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(summary)
        return "".join(usual_folds(workspace))

    def judge(*folds: str) -> None:
        save_record(workspace.verdict(folds), ChainState(folds=folds, rounds=0, mean_dice=(), verdict=None))

    splits = load_splits(workspace.splits)
    assert (len(splits.folds), len(splits.case_ids)) == (3, 3)
    assert usual("0") == "0"
    assert "is trained and validated takes part: 0 (of 3 folds)" in caplog.text
    assert [usual("1"), usual("0", "2"), usual("0", "1", "2")] == ["1", "02", "012"]
    assert usual() == "012"  # a message says what to train
    judge("0")
    assert usual("0", "1") == "01"  # it was judged, and its chain has not begun
    save_record(workspace.round("0", 1).state, RoundState(fold="0", round=1, config=TAKE_ALL, steps={}))
    caplog.clear()
    assert usual("0", "1") == "0"
    assert "the chains of fold(s) 0 continue (--fold 0 1:" in caplog.text
    judge("0", "2")
    assert usual("0", "1", "2") == "02"
    many = tuple(f"case_{number}" for number in range(FEW_LABELS))
    save_record(workspace.splits, dataclasses.replace(splits, case_ids=splits.case_ids + many, given="splits.json"))
    assert [usual("0", "1", "2"), usual("2"), usual()] == ["0", "2", "0"]


def test_a_complete_round_of_other_models_is_not_built_upon(workspace: Workspace, phantom_dataset: Path) -> None:
    training = self_training(workspace, phantom_dataset, ("0",))
    assert training.run_rounds(1) is not None
    final = workspace.model("0", Stage.FINE).final
    checkpoint, before = load_checkpoint(final), final.read_bytes()
    save_checkpoint(
        final, dataclasses.replace(checkpoint, weights={name: w + 0.01 for name, w in checkpoint.weights.items()})
    )
    with pytest.raises(SelectionError, match="round 1 is complete, but the models that labeled it have changed since"):
        training.run_next()
    assert training.complete_rounds == 1  # nothing is lost
    final.write_bytes(before)
    workspace.model("0", Stage.FINE).snapshot(36).unlink()  # what labeled an earlier round may be thrown away
    assert training.run_next("label") is not None


def test_a_start_that_was_not_validated_is_said_before_the_work(workspace: Workspace, phantom_dataset: Path) -> None:
    (workspace.model("0", Stage.FINE).validation / "summary.json").unlink()
    with pytest.raises(SelectionError, match="round 0 of fold 0 was not validated"):
        self_training(workspace, phantom_dataset, ("0",)).run_next()
    assert not workspace.round("0", 1).root.exists()


def test_final_models_see_every_label_and_what_the_best_models_drew(
    workspace: Workspace, phantom_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = self_training(workspace, phantom_dataset, ("0",))
    with pytest.raises(SelectionError, match="no round was better"):
        training.train_final()
    state = training.run_rounds(1)
    assert state is not None
    improved = dataclasses.replace(state, verdict=Verdict(best_round=1, stop=True, why=""))
    monkeypatch.setattr(training, "judge", lambda: improved)
    make_round = training.make_round
    monkeypatch.setattr(training, "make_round", lambda *which: stopped(make_round(*which)))
    assert training.train_final() is None
    assert not workspace.final_round.root.exists()
    monkeypatch.setattr(training, "make_round", make_round)
    folder = training.train_final()
    assert folder is not None
    record = load_record(folder.model(Stage.FINE).run_record, RunRecord)
    dataset = load_dataset(phantom_dataset)
    assert set(record.training_cases) == {case.id for case in (*dataset.labeled, *dataset.unlabeled)}
    assert record.validation_cases == ()
    # Round 1 was best, so its models label: in the folder of round 2, which trains nothing.
    second = workspace.round("0", 2)
    assert second.selection.exists()
    assert not second.model(Stage.FINE).root.exists()
    weights = load_checkpoint(folder.model(Stage.FINE).final).weights
    before = folder.model(Stage.FINE).final.stat().st_mtime_ns
    training.train_final()
    assert folder.model(Stage.FINE).final.stat().st_mtime_ns == before
    # A kill at any moment: what is lost is made again, the same.
    shutil.rmtree(folder.model(Stage.FINE).root)
    training.train_final()
    for name, value in load_checkpoint(folder.model(Stage.FINE).final).weights.items():
        assert torch.equal(value, weights[name])
    # Models of which nothing says what they were made from, or something else, are trained again.
    for state in (None, dataclasses.replace(load_record(folder.state, FinalState), inputs="others")):
        folder.state.unlink() if state is None else save_record(folder.state, state)
        before = folder.model(Stage.FINE).final.stat().st_mtime_ns
        training.train_final()
        assert folder.model(Stage.FINE).final.stat().st_mtime_ns != before


def stopped(round: Round) -> Round:
    round.execution = dataclasses.replace(round.execution, stop_requested=lambda: True)
    return round


def selection(fold: str, scores: dict[str, float], rejected: dict[str, str]) -> Selection:
    chosen = tuple(
        SelectedCase(case_id=case_id, score=score, supervised=("liver",), rejected={})
        for case_id, score in scores.items()
    )
    return Selection(round=2, fold=fold, rule="organ", thresholds={}, selected=chosen, rejected=rejected)


def test_chains_are_merged_by_the_better_score() -> None:
    chains, both = merged(
        [
            selection("0", {"a": 0.9, "b": 0.7}, {"c": "no organ accepted", "d": "no organ accepted"}),
            selection("1", {"a": 0.8, "b": 0.75, "c": 0.5}, {"d": "no organ accepted"}),
        ]
    )
    assert chains == {"a": "0", "b": "1", "c": "1"}
    assert [(case.case_id, case.score) for case in both.selected] == [("a", 0.9), ("b", 0.75), ("c", 0.5)]
    assert both.rejected == {"d": "no organ accepted"}


def test_mean_dice_is_over_organs_first() -> None:
    assert mean_dice({"x": {"liver": 1.0, "spleen": 0.5}, "y": {"liver": 0.0}}) == 0.5
    assert mean_dice({}) == 0.0


def test_rounds_are_tracked_as_their_students_and_no_result_depends_on_it(
    workspace: Workspace, phantom_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[Path, list[tuple[dict[str, float], int]]] = {}

    class Kept:
        def __init__(self, folder: Path) -> None:
            self.rows = kept.setdefault(folder, [])

        def log(self, values: Mapping[str, float], step: int) -> None:
            self.rows.append((dict(values), step))

        def close(self) -> None:
            pass

    def opened(name: str, folder: Path, title: str, facts: Mapping[str, object]) -> Kept | None:
        return None if name == "none" else Kept(folder)

    for module in ("flaresemi.training.monitoring", "flaresemi.rounds.tracking"):
        monkeypatch.setattr(f"{module}.open_tracker", opened)
    execution = Execution(device=torch.device("cpu"), precision="fp32", track="mlflow")

    def make_round(fold: str, number: int) -> Round:
        return Round(workspace, load_dataset(phantom_dataset), fold, number, TAKE_ALL, execution, peers=("0",))

    state = SelfTraining(workspace, ("0",), StopRule(), make_round).run_rounds(1)
    student, folder = workspace.round("0", 1).model(Stage.FINE), workspace.chain("0") / "logs"
    assert set(kept) == {student.logs, folder}
    ((figures, step),) = kept[folder]
    selection = load_record(workspace.round("0", 1).selection, Selection)
    summary = load_summary(student.validation / "summary.json")
    assert state is not None
    assert step == 1
    assert (figures["selected/cases"], figures["selected/of"]) == (len(selection.selected), 1)
    assert figures["held_out_dice/mean"] == summary.mean_dice
    assert figures["judged/mean_dice"] == state.mean_dice[1]
    assert figures["selected/liver"] == sum("liver" in case.supervised for case in selection.selected)
    # Started again without the option, the round is complete, and nothing is trained or told again.
    assert self_training(workspace, phantom_dataset, ("0",)).run_rounds(1) == state
    assert len(kept[folder]) == 1
    untracked = self_training(workspace, phantom_dataset, ("0",)).make_round("0", 1)
    assert untracked.training_inputs(Stage.FINE) == make_round("0", 1).training_inputs(Stage.FINE)
