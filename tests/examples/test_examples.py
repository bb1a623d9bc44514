"""The packages of examples/, installed next to flaresemi: each does what docs/extending.md says, in every command."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flaresemi.cli import evaluate, export, predict, semi_round, train
from flaresemi.errors import ImageError
from flaresemi.image_paths import image_endings
from flaresemi.io.images import read_image, read_label_map
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.plans import Stage
from flaresemi.workspace import ModelFolder, Workspace
from tests.made_workspace import plan_tiny

ROOT = Path(__file__).parents[2]
EXAMPLES = ("network", "loss", "augmentation", "mean_teacher", "reader", "metric")
CPU = ("--device", "cpu", "--precision", "fp32")
TORCH = ("--engine", "torch")  # the same numbers, whatever is faster here

#: What each is named by: the options of the plans, and those of the training.
TRAININGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "network": (("--network", "dilated", "--network-argument", "width=4"), ()),
    "loss": ((), ("--trainer", "topk", "--trainer-setting", "share=0.2")),
    "augmentation": ((), ("--augmentation", "mr")),
    "mean_teacher": ((), ("--trainer", "mean_teacher", "--trainer-setting", "weight=0.5")),
}


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where pip has put the packages, while they are on the path."""
    root = tmp_path_factory.mktemp("examples")
    sources = [shutil.copytree(ROOT / "examples" / name, root / name) for name in EXAMPLES]
    words = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, "--target", str(root / "site"), *map(str, sources)],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "site")
        importlib.invalidate_caches()
        image_endings.cache_clear()
        yield root / "site"
    image_endings.cache_clear()


def models(workspace: Path) -> ModelFolder:
    return Workspace(workspace).model("0", Stage.FINE)


def planned(dataset: Path, folder: Path, *more: str) -> tuple[list[str], Path]:
    """The options that name a dataset, and a workspace of it with one tiny stage."""
    workspace = folder / "workspace"
    return plan_tiny(dataset, workspace, "one", *more)[:2], workspace


def kill_when_saved(words: list[str], folder: ModelFolder, site: Path) -> None:
    """Starts a training in a process of its own, which gets SIGKILL when it has saved its state."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "flaresemi.cli.train", *words], env=environment)
    deadline = time.monotonic() + 300
    while not folder.latest.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it had ended before it could be killed"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TRAININGS)
def test_an_example_trains_is_killed_resumes_predicts_is_exported_and_does_a_round(
    name: str, phantom_dataset: Path, site: Path, tmp_path: Path
) -> None:
    plan, chosen = TRAININGS[name]
    data, workspace = planned(phantom_dataset, tmp_path, *plan)
    whole = tmp_path / "whole"
    shutil.copytree(workspace, whole)
    length = ["--iterations", "12", "--iterations-per-epoch", "4", "--validations", "1", "--checkpoint-minutes", "0"]
    words = ["FINE", "0", *data, *length, "--loader-workers", "0", *CPU, *chosen]
    assert train.main([*words, "-w", str(whole)]) == 0
    kill_when_saved([*words, "-w", str(workspace)], models(workspace), site)
    assert train.main([*words, "-w", str(workspace), "--continue"]) == 0
    expected, resumed = (load_checkpoint(models(place).final).weights for place in (whole, workspace))
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())
    record = json.loads(models(workspace).run_record.read_text(encoding="utf-8"))
    part = {"network": "network", "augmentation": "augmentation mr"}.get(name, "trainer")
    assert record["packages"][part]["version"] == "1.0"
    assert record["changes"] == []

    images, trained = str(phantom_dataset / "unlabeled_image"), ["-m", str(workspace / "models")]
    assert predict.main(["-i", images, "-o", str(tmp_path / "predicted"), *trained, *CPU, *TORCH]) == 0
    assert export.main([*trained, "-o", str(tmp_path / "exported")]) == 0
    exported = ["-m", str(tmp_path / "exported")]
    assert predict.main(["-i", images, "-o", str(tmp_path / "by_export"), *exported, *CPU, *TORCH]) == 0
    assert list((tmp_path / "exported").rglob("*.xml"))
    for path in sorted((tmp_path / "predicted").glob("*.nii.gz")):
        one, other = (read_label_map(each).array_zyx for each in (path, tmp_path / "by_export" / path.name))
        assert np.array_equal(one, other)
    take_all = ["--select", "case", "--best-share", "1.0", "--rounds", "1"]
    students = TRAININGS["mean_teacher"][1] if name == "network" else ()  # of another trainer than the supervised model
    assert semi_round.main([*data, "-w", str(workspace), "--fold", "0", *CPU, *take_all, *students]) == 0
    student = Workspace(workspace).round("0", 1).model(Stage.FINE)
    record = json.loads(student.run_record.read_text(encoding="utf-8"))
    assert (
        record["trainer"]
        == {
            "network": "SemiSupervisedMeanTeacher",
            "loss": "SemiSupervisedTopKTrainer",
            "augmentation": "SemiSupervisedTrainer",
            "mean_teacher": "SemiSupervisedMeanTeacher",
        }[name]
    )
    assert load_checkpoint(student.final).iteration == 12


def test_a_method_does_not_go_on_with_other_unlabeled_cases(
    phantom_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, workspace = planned(phantom_dataset, tmp_path)
    words = ["FINE", "0", *data, "-w", str(workspace), "--validations", "0", *CPU, "--loader-workers", "0"]
    assert train.main([*words, "--iterations", "2", "--trainer", "mean_teacher"]) == 0
    record = models(workspace).run_record
    content = record.read_text(encoding="utf-8")
    assert '"phantom_0004"' in content  # the unlabeled one
    record.write_text(content.replace('"phantom_0004"', '"phantom_0009"'), encoding="utf-8")
    assert train.main([*words, "--iterations", "4", "--continue"]) == 2
    assert "2 case(s) are trained on now or were before, not both: phantom_0004, phantom_0009" in capfd.readouterr().err
    record.write_text(content, encoding="utf-8")
    assert train.main([*words, "--iterations", "4", "--continue"]) == 0


def test_another_package_does_not_go_on_with_a_training(
    phantom_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, workspace = planned(phantom_dataset, tmp_path)
    words = ["FINE", "0", *data, "-w", str(workspace), "--iterations", "2", "--validations", "0", *CPU]
    words += ["--loader-workers", "0"]
    assert train.main([*words, "--trainer", "topk", "--trainer-setting", "shear=0.2"]) == 2
    assert "did you mean 'share'" in capfd.readouterr().err
    assert train.main([*words, "--trainer", "topl"]) == 2
    assert "did you mean 'topk'" in capfd.readouterr().err
    assert train.main([*words, "--trainer", "topk_loss:TopKTrainer"]) == 0
    assert train.main([*words, "--continue", "--iterations", "4", "--trainer", "mean_teacher"]) == 2
    assert "this training began with topk_loss:TopKTrainer" in capfd.readouterr().err
    record = models(workspace).run_record
    content = json.loads(record.read_text(encoding="utf-8"))
    content["packages"]["trainer"]["version"] = "0.9"
    record.write_text(json.dumps(content), encoding="utf-8")
    assert train.main([*words, "--continue", "--iterations", "4"]) == 0
    assert "comes from topk-loss 1.0; it began with topk-loss 0.9" in capfd.readouterr().err
    content["packages"]["trainer"]["package"] = "another"
    record.write_text(json.dumps(content), encoding="utf-8")
    assert train.main([*words, "--continue", "--iterations", "6"]) == 2
    assert "it began with another 0.9" in capfd.readouterr().err


def test_a_reader_opens_its_files_like_any_other(phantom_dataset: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(phantom_dataset, tmp_path / "data"))
    for folder in ("labeled_image", "unlabeled_image", "test_image"):
        for path in (data / folder).glob("*.nii.gz"):
            image = read_image([path])
            np.savez_compressed(
                path.with_name(path.name.replace(".nii.gz", ".npz")),
                voxels=image.array_czyx[0],
                shape_zyx=image.geometry.shape_zyx,
                spacing_zyx_mm=image.geometry.spacing_zyx_mm,
            )
            label = data / "labeled_mask" / path.name.replace("_0000", "")
            if label.exists():
                values = read_label_map(label).array_zyx
                np.savez_compressed(
                    label.with_name(label.name.replace(".nii.gz", ".npz")),
                    voxels=values,
                    shape_zyx=values.shape,
                    spacing_zyx_mm=image.geometry.spacing_zyx_mm,
                )
                label.unlink()
            path.unlink()
    description = data / "dataset.json"
    if description.exists():
        content = json.loads(description.read_text(encoding="utf-8"))
        description.write_text(json.dumps(content | {"file_ending": ".npz"}), encoding="utf-8")
    named, workspace = planned(data, tmp_path)
    words = [*named, "-w", str(workspace)]
    assert train.main(["FINE", "0", *words, "--iterations", "2", "--loader-workers", "0", *CPU]) == 0
    trained = ["-m", str(workspace / "models")]
    assert predict.main(["-i", str(data / "unlabeled_image"), "-o", str(tmp_path / "out"), *trained, *CPU]) == 0
    assert list((tmp_path / "out").glob("*.nii.gz"))
    broken = data / "unlabeled_image" / "broken_0000.npz"
    broken.write_bytes(b"PK" + bytes(100))
    with pytest.raises(ImageError, match=r"npz-reader 1\.0 cannot read it"):
        read_image([broken])


def test_a_metric_stands_beside_the_others(
    phantom_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = str(phantom_dataset / "labeled_mask")
    words = ["-p", labels, "-r", labels, "-d", str(phantom_dataset), "-o", str(tmp_path / "scores.json")]
    assert evaluate.main([*words, "--metric", "assd_mm"]) == 0
    assert "assd_mm" in capsys.readouterr().out
    summary = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert {organ["more"]["assd_mm"] for organ in summary["organs"]} <= {0.0, None}
    assert (tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines()[0].endswith(",assd_mm")
    assert evaluate.main([*words, "--metric", "assd_mm"]) == 0  # it is recognized as ours, and replaced
    assert evaluate.main([*words, "--metric", "asd_mm"]) == 2
    assert "did you mean 'assd_mm'" in capsys.readouterr().err


def test_what_the_page_shows_is_what_the_examples_hold() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*/*.*")]
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= len(EXAMPLES)
    for block in blocks:
        for part in block.strip("\n").split("\n...\n"):
            assert any(part.strip("\n") in source for source in sources), part
    assert all(f"examples/{name}" in page for name in EXAMPLES)
