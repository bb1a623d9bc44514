"""The example that runs an export by numpy and onnxruntime alone gives the labels of flaresemi_predict."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from flaresemi.cli import export, predict
from flaresemi.io.images import read_image, read_label_map
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.networks.engine import trained_network
from flaresemi.plans import Stage
from flaresemi.workspace import Workspace
from tests.cli.test_export import models, untrained  # noqa: F401

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def example(repository: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location("run_onnx", repository / "examples" / "run_onnx.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def compared(example: ModuleType, models: Path, image_file: Path, work: Path) -> tuple[np.ndarray, np.ndarray]:  # noqa: F811
    """Labels by the example and by flaresemi_predict."""
    assert export.main(["-m", str(models), "-o", str(work / "exported"), "--onnx", "--no-programs"]) == 0
    words = ["-i", str(image_file), "-o", str(work / "labels.nii.gz"), "-m", str(models), "--precision", "fp32"]
    assert predict.main([*words, "--engine", "torch", "--device", "cpu"]) == 0
    image = read_image([image_file])
    found = example.segment(work / "exported", image.array_czyx, image.geometry.spacing_zyx_mm)
    return found, read_label_map(work / "labels.nii.gz").array_zyx


def test_two_stages_give_the_same_labels(
    example: ModuleType,
    models: Path,  # noqa: F811
    tmp_path: Path,
    phantom_dataset: Path,
) -> None:
    (image_file,) = sorted((phantom_dataset / "test_image").iterdir())
    found, expected = compared(example, models, image_file, tmp_path)
    assert len(np.unique(expected)) > 1
    assert np.count_nonzero(found != expected) <= 1e-4 * np.count_nonzero(expected)


def test_one_stage_and_two_folds_give_the_same_labels(
    example: ModuleType, tmp_path: Path, phantom_dataset: Path
) -> None:
    workspace = Workspace(tmp_path / "work")
    for seed, fold in enumerate("01"):
        checkpoint = untrained(Stage.FINE, seed)
        plan = dataclasses.replace(checkpoint.plan, region="body", resampling="cubic")
        cleaned = {"touching": (("a", "c"),), "keep_largest": ("a", "b")}
        fine = dataclasses.replace(checkpoint, plan=plan, fold=fold, training_state=None, **cleaned)
        save_checkpoint(workspace.model(fold, Stage.FINE).final, fine)
    (image_file,) = sorted((phantom_dataset / "test_image").iterdir())
    found, expected = compared(example, workspace.models, image_file, tmp_path)
    assert len(np.unique(expected)) > 1
    assert np.count_nonzero(found != expected) <= 1e-4 * np.count_nonzero(expected)


def test_an_onnx_file_is_the_same_function_for_windows_of_any_size(models: Path, tmp_path: Path) -> None:  # noqa: F811
    import onnxruntime

    assert export.main(["-m", str(models), "-o", str(tmp_path / "exported"), "--onnx", "--no-programs"]) == 0
    description = json.loads((tmp_path / "exported" / "description.json").read_text(encoding="utf-8"))
    (network,) = description["stages"]["FINE"]["networks"]
    original = trained_network(load_checkpoint(tmp_path / "exported" / network["checkpoint"]))
    session = onnxruntime.InferenceSession(str(tmp_path / "exported" / network["onnx"]))
    for shape in ((16, 16, 16), (8, 24, 4)):
        image = torch.randn(1, 1, *shape)
        with torch.inference_mode():
            expected = original(image).numpy()
        np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], expected, rtol=1e-3, atol=1e-4)


def test_a_network_of_another_package_that_onnx_does_not_know_is_one_clear_message(
    models: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Odd(torch.nn.Module):
        input_channels, divisor_zyx = 1, (2, 2, 2)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(image)

    monkeypatch.setattr("flaresemi.inference.export.trained_network", lambda _: Odd())
    assert export.main(["-m", str(models), "-o", str(tmp_path / "exported"), "--onnx", "--no-programs"]) == 2
    assert "cannot write this Odd as ONNX" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_without_the_package_it_says_how_to_go_on(
    models: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("flaresemi.cli.export.onnx_is_installed", lambda: False)
    assert export.main(["-m", str(models), "-o", str(tmp_path / "exported"), "--onnx", "--no-programs"]) == 2
    assert "onnx is not installed" in capsys.readouterr().err


def test_mednext_is_written_too(tmp_path: Path) -> None:
    import onnxruntime

    from flaresemi.networks.onnx_file import save_onnx
    from tests.networks.conftest import small_plan

    network = build_network(dataclasses.replace(small_plan(), architecture="mednext")).eval().requires_grad_(False)
    save_onnx(network, tmp_path / "network.onnx")
    image = torch.randn(1, 1, 8, 16, 12)
    found = onnxruntime.InferenceSession(str(tmp_path / "network.onnx")).run(None, {"image": image.numpy()})[0]
    np.testing.assert_allclose(found, network(image).numpy(), rtol=1e-3, atol=1e-4)
