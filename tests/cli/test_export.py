"""The models are untrained: what is tested is that they stay the same function."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from flaresemi.cli import export, predict
from flaresemi.inference.export import ExportDescription
from flaresemi.inference.models import DESCRIPTION, load_models
from flaresemi.io.images import read_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flaresemi.networks.engine import trained_network
from flaresemi.networks.openvino import openvino_is_installed
from flaresemi.plans import Stage
from flaresemi.records import load_record
from flaresemi.workspace import Workspace
from tests.made_plans import ct_intensities, stage_plan, two_levels

needs_openvino = pytest.mark.skipif(not openvino_is_installed(), reason="needs OpenVINO")


def untrained(stage, seed):
    network = two_levels(outputs=4)
    size = 6.0 if stage is Stage.COARSE else 3.0
    plan = stage_plan(
        network,
        stage=stage,
        spacing_zyx_mm=(size,) * 3,
        region="body" if stage is Stage.COARSE else "organs",
        intensities=(ct_intensities(mean=50.0, sd=80.0, low=-200.0, high=300.0),),
    )
    torch.manual_seed(seed)
    return Checkpoint(
        plan=plan,
        body="ct",
        channels=("CT",),
        fold="0",
        iteration=1,
        total_iterations=1,
        labels=LabelSet(labels=tuple(Label(name=name, value=10 * value) for value, name in enumerate("abc", start=1))),
        weights=build_network(network).state_dict(),
        keep_largest=("b",),
        training_state={"step": torch.ones(1)},
    )


@pytest.fixture
def models(tmp_path):
    workspace = Workspace(tmp_path / "work")
    for seed, stage in enumerate(Stage):
        folder = workspace.model("0", stage)
        save_checkpoint(folder.final, untrained(stage, seed))
        (folder.root / "history.jsonl").write_text("", encoding="utf-8")
    return workspace.models


def test_the_folder_holds_what_prediction_needs_and_no_more(models, tmp_path, capsys):
    assert export.main(["-m", str(models), "-o", str(tmp_path / "exported"), "--no-programs"]) == 0
    assert "next: flaresemi_predict -m" in capsys.readouterr().out
    files = {str(path.relative_to(tmp_path / "exported")) for path in (tmp_path / "exported").rglob("*.*")}
    assert files == {DESCRIPTION, "fold_0/FINE/snapshot_100.pt", "fold_0/COARSE/snapshot_100.pt"}
    assert load_checkpoint(tmp_path / "exported/fold_0/FINE/snapshot_100.pt", True).training_state is None
    description = load_record(tmp_path / "exported" / DESCRIPTION, ExportDescription)
    assert list(description.stages) == ["COARSE", "FINE"]
    assert description.keep_largest == ("b",)
    assert description.stages["FINE"].margin_mm == 20.0


def test_an_export_has_whatever_coarse_it_was_made_with(models, tmp_path):
    other = Workspace(tmp_path / "other")
    for fold in ("1", "2"):
        checkpoint = dataclasses.replace(untrained(Stage.COARSE, 7), fold=fold)
        save_checkpoint(other.model(fold, Stage.COARSE).final, checkpoint)
    words = ["-m", str(models), "-o", str(tmp_path / "exported"), "--no-programs", "--coarse", str(other.models)]
    assert export.main(words) == 0
    networks = load_models(tmp_path / "exported").networks
    assert networks == load_models(models, coarse=other.models).networks
    assert [name.split()[:2] for name in networks] == [["COARSE", "1"], ["COARSE", "2"], ["FINE", "0"]]


@needs_openvino
def test_the_exported_models_predict_the_same(models, tmp_path, phantom_dataset):
    exported = tmp_path / "exported"
    assert export.main(["-m", str(models), "-o", str(exported)]) == 0
    (image,) = sorted((phantom_dataset / "test_image").iterdir())
    drawn = []
    for name, folder in (("before", models), ("after", exported)):
        output = tmp_path / name / "case.nii.gz"
        words = ["-i", str(image), "-o", str(output), "-m", str(folder), "--precision", "fp32", "--engine", "openvino"]
        assert predict.main(words) == 0
        drawn.append(read_label_map(output).array_zyx)
    np.testing.assert_array_equal(*drawn)
    assert len(np.unique(drawn[0])) > 1


#: Another program, in a process of its own: an OpenVINO that is dropped takes the stack of signal handlers with it.
OTHER_PROGRAM = """
import sys
import numpy as np
sys.modules["openvino_telemetry"] = None
import openvino
program = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for path in sys.argv[2:]:
    np.save(path + ".logits.npy", program({"image": np.load(path)})[0])
"""


@needs_openvino
def test_the_programs_need_nothing_of_flaresemi(models, tmp_path):
    exported = tmp_path / "exported"
    assert export.main(["-m", str(models), "-o", str(exported)]) == 0
    description = json.loads((exported / DESCRIPTION).read_text(encoding="utf-8"))
    for stage in description["stages"].values():
        (network,) = stage["networks"]
        original = trained_network(load_checkpoint(exported / network["checkpoint"]))
        larger = [size + stage["window_divisor_zyx"][0] for size in stage["window_zyx"]]
        images = {}
        for number, window in enumerate((stage["window_zyx"], larger)):
            path = tmp_path / f"{number}.npy"
            images[path] = np.random.default_rng(0).normal(size=(2, 1, *window)).astype(np.float32)
            np.save(path, images[path])
        words = [sys.executable, "-c", OTHER_PROGRAM, str(exported / network["program"]), *map(str, images)]
        subprocess.run(words, check=True, cwd=tmp_path)
        for path, image in images.items():
            with torch.inference_mode():
                expected = original(torch.from_numpy(image)).numpy()
            np.testing.assert_allclose(np.load(f"{path}.logits.npy"), expected, rtol=1e-3, atol=1e-4)


def test_nothing_is_overwritten_and_nothing_left_behind(models, tmp_path, capsys, monkeypatch):
    (tmp_path / "exported").mkdir()
    words = ["-m", str(models), "-o", str(tmp_path / "exported")]
    assert export.main([*words, "--no-programs"]) == 2
    assert "already" in capsys.readouterr().err
    (tmp_path / "exported").rmdir()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flaresemi.inference.export.save_record", full)
    assert export.main([*words, "--no-programs"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["work"]


def test_without_openvino_it_says_how_to_go_on(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flaresemi.cli.export.openvino_is_installed", lambda: False)
    assert export.main(["-m", str(models), "-o", str(tmp_path / "exported")]) == 2
    assert "--no-programs" in capsys.readouterr().err


def test_what_judges_predictions_goes_along(models, tmp_path):
    fine = Workspace(tmp_path / "work").model("0", Stage.FINE)
    save_checkpoint(fine.snapshot(36), untrained(Stage.FINE, 7))
    fine.calibration.write_text("{}", encoding="utf-8")
    assert export.main(["-m", str(models), "-o", str(tmp_path / "exported"), "--no-programs"]) == 0
    assert (tmp_path / "exported/fold_0/FINE/calibration.json").is_file()
    assert load_checkpoint(tmp_path / "exported/fold_0/FINE/snapshot_036.pt", True).training_state is None


@pytest.mark.parametrize("made", ["folder", "file", "link"])
def test_what_another_process_made_meanwhile_is_left(models, tmp_path, capsys, monkeypatch, made):
    out = tmp_path / "out"

    def rename(source, target):  # at the last moment
        monkeypatch.undo()
        (tmp_path / "theirs").mkdir()
        ((tmp_path / "theirs") / "a.txt").write_text("theirs")
        if made == "folder":
            (tmp_path / "theirs").rename(out)
        elif made == "file":
            out.write_text("theirs")
        else:
            out.symlink_to(tmp_path / "theirs")
        os.rename(source, target)

    monkeypatch.setattr("flaresemi.inference.export.os.rename", rename)
    assert export.main(["-m", str(models), "-o", str(out), "--no-programs"]) == 2
    assert "there is something at this place already" in capsys.readouterr().err
    assert (out if made == "file" else out / "a.txt").read_text() == "theirs"
    assert not list(tmp_path.glob(".partial-*"))


def test_two_checkpoints_that_claim_one_fold_are_not_exported_as_one(models, tmp_path, capsys):
    shutil.copytree(models / "fold_0", models / "fold_1")
    assert export.main(["-m", str(models), "-o", str(tmp_path / "out"), "--no-programs"]) == 2
    assert "two of these checkpoints say that they are fold_0/COARSE" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
