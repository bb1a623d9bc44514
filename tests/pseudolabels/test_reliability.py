"""Predictions are judged as pseudo-labels are: same image, same weights, same score."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from flaresemi.cli import predict
from flaresemi.dataset import load_dataset
from flaresemi.io.case_store import CaseStore
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import Stage, load_plans
from flaresemi.pseudolabels.calibration import Calibration
from flaresemi.pseudolabels.labeling import Labeler
from flaresemi.pseudolabels.reliability import summary_line
from flaresemi.pseudolabels.teachers import judged_weights_hash, load_teachers
from flaresemi.records import save_record
from flaresemi.selection import CaseScore, OrganScore, load_scores
from flaresemi.workspace import Workspace
from tests.rounds.conftest import trained  # noqa: F401

MEDIAN_ML = 2.0


def calibration(workspace: Workspace, *, error: float, slope: float = 0.5) -> Calibration:
    names = load_plans(workspace.plans).labels.names
    made = Calibration(
        intercept=0.0,
        slope=slope,
        offsets={},
        median_ml=dict.fromkeys(names, MEDIAN_ML),
        observations=40,
        error=error,
        error_of_agreement=0.1,
    )
    save_record(workspace.model("0", Stage.FINE).calibration, made)
    return made


def judge(workspace: Workspace, dataset: Path, output: Path, *more: str) -> tuple[CaseScore, ...]:
    words = ["-i", str(dataset / "unlabeled_image"), "-o", str(output), "-m", str(workspace.models), "--fold", "0"]
    assert predict.main([*words, "--reliability", "--device", "cpu", "--precision", "fp32", *more]) == 0
    return load_scores(output / "reliability.csv")


def test_a_prediction_has_the_score_of_its_pseudo_label(
    trained: Path,  # noqa: F811
    phantom_dataset: Path,
    tmp_path: Path,
) -> None:
    workspace = Workspace(trained)
    learned = calibration(workspace, error=0.05)
    found = judge(workspace, phantom_dataset, tmp_path / "out")
    store = CaseStore(workspace.preprocessed(Stage.FINE))
    plans = load_plans(workspace.plans)
    teachers = load_teachers(workspace.model("0", Stage.FINE), None, plans)
    labeler = Labeler(teachers, store, store, [MEDIAN_ML] * plans.labels.count, device="cpu", precision="fp32")
    assert [score.case_id for score in found] == [case.id for case in load_dataset(phantom_dataset).unlabeled]
    for score in found:
        expected = labeler.label(score.case_id).score
        assert score.score == pytest.approx(expected.score, abs=1e-3)
        for name, organ in score.organs.items():
            # Prepared cases are stored in half precision: a voxel here and there may fall to another class.
            assert organ.volume_ml == pytest.approx(expected.organs[name].volume_ml, rel=1e-2, abs=0.5)
            assert organ.predicted_dice == pytest.approx(learned.predict(name, organ))


def test_a_calibration_that_was_no_better_than_agreement_is_not_used(
    trained: Path,  # noqa: F811
    phantom_dataset: Path,
    tmp_path: Path,
) -> None:
    calibration(Workspace(trained), error=0.2)
    for score in judge(Workspace(trained), phantom_dataset, tmp_path / "out"):
        assert all(organ.predicted_dice is None for organ in score.organs.values())


def test_earlier_scores_are_kept_when_the_command_goes_on(
    trained: Path,  # noqa: F811
    phantom_dataset: Path,
    tmp_path: Path,
) -> None:
    calibration(Workspace(trained), error=0.05)
    first = judge(Workspace(trained), phantom_dataset, tmp_path / "out")
    assert judge(Workspace(trained), phantom_dataset, tmp_path / "out", "--continue") == first


def test_scores_of_another_calibration_are_not_kept(
    trained: Path,  # noqa: F811
    phantom_dataset: Path,
    tmp_path: Path,
) -> None:
    calibration(Workspace(trained), error=0.05)
    judge(Workspace(trained), phantom_dataset, tmp_path / "out")
    learned = calibration(Workspace(trained), error=0.04, slope=1.0)
    for score in judge(Workspace(trained), phantom_dataset, tmp_path / "out", "--continue"):
        for name, organ in score.organs.items():
            assert organ.predicted_dice == pytest.approx(learned.predict(name, organ))


def test_the_table_is_complete_after_a_kill_and_after_a_start_that_judged_nothing(
    trained: Path,  # noqa: F811
    phantom_dataset: Path,
    tmp_path: Path,
) -> None:
    calibration(Workspace(trained), error=0.05)
    whole = judge(Workspace(trained), phantom_dataset, tmp_path / "whole")
    images = sorted((phantom_dataset / "unlabeled_image").iterdir())
    words = ["-o", str(tmp_path / "out"), "-m", str(Workspace(trained).models), "--fold", "0", "--device", "cpu"]
    assert predict.main(["-i", str(images[0]), *words, "--precision", "fp32"]) == 0  # without a score
    judge(Workspace(trained), phantom_dataset, tmp_path / "out", "--continue")
    (tmp_path / "out" / "reliability.csv").unlink()  # it is written at the very end
    (tmp_path / "out" / case_output(images[-1])).unlink()
    assert judge(Workspace(trained), phantom_dataset, tmp_path / "out", "--continue") == whole


def case_output(image: Path) -> str:
    return image.name.replace("_0000", "")


def test_a_model_that_cannot_judge_itself_says_what_is_missing(
    trained: Path,  # noqa: F811
    phantom_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace = Workspace(trained)
    workspace.model("0", Stage.FINE).calibration.unlink(missing_ok=True)
    words = ["-i", str(phantom_dataset / "unlabeled_image"), "-o", str(tmp_path), "-m", str(workspace.models)]
    assert predict.main([*words, "--fold", "0", "--device", "cpu", "--reliability"]) == 2
    assert "calibration.json is missing" in capsys.readouterr().err


def test_a_calibration_of_other_weights_is_refused(
    trained: Path,  # noqa: F811
    phantom_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    model = workspace.model("0", Stage.FINE)
    shutil.copytree(Workspace(trained).model("0", Stage.FINE).root, model.root)
    learned = calibration(Workspace(trained), error=0.05)
    save_record(model.calibration, dataclasses.replace(learned, made_with=judged_weights_hash(model)))
    judge(workspace, phantom_dataset, tmp_path / "out")
    checkpoint = load_checkpoint(model.snapshot(36))
    next(iter(checkpoint.weights.values())).mul_(0.5)
    save_checkpoint(model.snapshot(36), checkpoint)
    words = ["-i", str(phantom_dataset / "unlabeled_image"), "-o", str(tmp_path / "other"), "-m", str(workspace.models)]
    assert predict.main([*words, "--fold", "0", "--reliability", "--device", "cpu"]) == 2
    assert "calibration.json was learned for other weights" in capsys.readouterr().err


def test_the_line_begins_with_the_least_reliable_organ() -> None:
    def score(**dice: float | None) -> CaseScore:
        organs = {
            name: OrganScore(agreement=0.5, predicted_dice=value, volume_ml=1.0, entropy=0.1)
            for name, value in dice.items()
        }
        return CaseScore(case_id="a", score=0.5, organs=organs)

    assert summary_line(score(liver=0.9, spleen=0.0)) == "predicted Dice: spleen 0.00, liver 0.90"
    assert summary_line(score(liver=None)) == "agreement of the snapshots: liver 0.50"
