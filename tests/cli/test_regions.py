"""A dataset whose organs are regions that cross, from dataset.json to a report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.cli import evaluate, export, plan_and_preprocess, predict, semi_round, train
from flaresemi.evaluation.summary import load_summary
from flaresemi.inference.export import ExportDescription
from flaresemi.inference.models import DESCRIPTION
from flaresemi.io.case_store import CaseStore
from flaresemi.plans import Stage, load_fingerprint, load_plans
from flaresemi.records import load_record
from flaresemi.selection import load_scores
from flaresemi.training.history import read_history
from flaresemi.workspace import Workspace
from tests.made_workspace import plan_tiny
from tests.planning.conftest import SmallDataset
from tests.rounds.conftest import see_organs_everywhere

RIGHT, SOFT = "right side", "liver or kidneys"
REGIONS = {"background": 0, RIGHT: [1, 2], SOFT: [2, 3]}
CPU = ["--device", "cpu", "--precision", "fp32"]
QUICK = [*CPU, "--iterations", "4", "--iterations-per-epoch", "2", "--validations", "2", "--loader-workers", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of four labeled cases, one of which annotates a region alone, with both stages of fold 0 trained."""
    root = tmp_path_factory.mktemp("regions")
    data = SmallDataset(root=root / "data", values=(1, 2, 3), shape=(20, 24, 28))
    for number in range(4):
        data.add("labeled", f"l{number}", seed=number)
    for number in range(2):
        data.add("unlabeled", f"u{number}", seed=50 + number)
    data.add("test", "t0", seed=60).describe(labels=REGIONS, annotated_labels={"l1": [RIGHT]})
    words = plan_tiny(data.root, root / "workspace", "two")
    splits = root / "workspace" / "splits.json"
    folds = json.loads(splits.read_text())
    folds["folds"][0] = {"train": ["l1", "l2", "l3"], "validation": ["l0"]}
    splits.write_text(json.dumps(folds))
    for stage in ("COARSE", "FINE"):
        assert train.main([stage, "0", *words, *QUICK, "--no-validation"]) == 0
    for stage in Stage:  # both regions are seen where the body is dense: index 2
        see_organs_everywhere(Workspace(root / "workspace").model("0", stage), bias=(0.0, 0.0, 50.0, 0.0))
    return root


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "place"))  # times of files are kept


def options(place: Path) -> list[str]:
    return ["-d", str(place / "data"), "-w", str(place / "workspace")]


def test_regions_are_measured_prepared_and_validated_as_wholes(trained: Path) -> None:
    workspace = Workspace(trained / "workspace")
    plans, fingerprint = load_plans(workspace.plans), load_fingerprint(workspace.fingerprint)
    assert plans.labels.names == (RIGHT, SOFT)
    assert plans.fine.network.output_channels == plans.coarse.network.output_channels == 4
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(trained / "data/labelsTr/l0.nii.gz")))
    assert fingerprint.cases[0].voxels_per_label == (np.isin(values, (1, 2)).sum(), np.isin(values, (2, 3)).sum())
    assert fingerprint.cases[1].annotated == (True, False)
    store = CaseStore(workspace.preprocessed(Stage.FINE))
    assert len(store.record("l0").voxels_per_label) == 3
    assert store.record("l1").supervised == (1,)
    assert set(np.unique(store.open("l1").label_zyx)) == {0, 1}  # values 1 and 2 are not told apart there
    assert set(np.unique(store.open("l0").label_zyx)) == {0, 1, 2, 3}
    (*_, last) = read_history(workspace.model("0", Stage.FINE).history)
    assert set(last["validation_dice"]) <= {RIGHT, SOFT}  # type: ignore[call-overload]


def test_a_training_goes_on_and_validates(place: Path) -> None:
    words = [*options(place), *QUICK]
    assert train.main(["FINE", "0", *words, "--continue"]) == 0
    summary = load_summary(Workspace(place / "workspace").model("0", Stage.FINE).validation / "summary.json")
    assert [organ.name for organ in summary.organs] == [RIGHT, SOFT]
    assert summary.organs[0].dice is not None and summary.organs[0].dice.mean > 0


def test_prediction_evaluation_and_export_speak_of_regions(place: Path) -> None:
    out = place / "out"
    model = ["-m", str(place / "workspace"), *CPU, "--engine", "torch"]
    assert predict.main(["-i", str(place / "data/imagesTs"), "-o", str(out), "--tta", *model]) == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "t0.nii.gz")))
    assert set(np.unique(found)) <= {0, 2} and (found == 2).any()

    for name, value in (("p", 2), ("r", 3)):
        array = np.zeros((6, 6, 6), np.uint8)
        array[1:4, 1:4, 1:4], array[1:4, 1:4, 4] = 1, value
        image = sitk.GetImageFromArray(array)
        sitk.WriteImage(image, str(place / f"{name}.nii.gz"))
    scored = place / "summary.json"
    pair = ["-p", str(place / "p.nii.gz"), "-r", str(place / "r.nii.gz"), "-o", str(scored)]
    assert evaluate.main([*pair, "-d", str(place / "data"), "--workers", "1"]) == 0
    means = {organ.name: organ.dice.mean for organ in load_summary(scored).organs if organ.dice}
    assert means == {RIGHT: pytest.approx(2 * 27 / (27 + 36)), SOFT: 1.0}

    target = place / "export"
    assert export.main(["-m", str(place / "workspace"), "-o", str(target), "--no-programs"]) == 0
    description = load_record(target / DESCRIPTION, ExportDescription)
    assert description.label_values == (0, 1, 2, 3)
    assert description.label_organs == ((), (RIGHT,), (RIGHT, SOFT), (SOFT,))


def test_a_round_scores_selects_and_reports_regions(place: Path) -> None:
    assert train.main(["FINE", "0", *options(place), *QUICK, "--continue"]) == 0  # its held-out case is judged
    words = [*options(place), *CPU, "--fold", "0", "--select", "case", "--best-share", "1", "--rounds", "1"]
    assert semi_round.main(words) == 0
    folder = Workspace(place / "workspace").round("0", 1)
    scores = load_scores(folder.scores)
    assert all(tuple(score.organs) == (RIGHT, SOFT) for score in scores)
    assert scores[0].organs[RIGHT].agreement is not None
    page = folder.report.read_text(encoding="utf-8")
    assert RIGHT in page and SOFT in page


def test_regions_that_have_changed_are_refused_by_what_was_made_for_others(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "data" / "dataset.json"
    content = json.loads(file.read_text())
    content["labels"][SOFT] = [1, 2, 3]
    file.write_text(json.dumps(content))
    assert plan_and_preprocess.main([*options(place), "--workers", "1", "--quiet"]) == 2
    assert "labels" in capsys.readouterr().err
    assert train.main(["FINE", "0", *options(place), *QUICK, "--restart"]) == 2
    assert plan_and_preprocess.main([*options(place), "--workers", "1", "--quiet", "--keep-plans"]) == 2
