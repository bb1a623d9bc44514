"""The example that runs an export by numpy and onnxruntime alone gives the labels of flaresemi_predict."""

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import SimpleITK
import torch

from flaresemi.cli import export, predict
from flaresemi.inference import turns as turns_module
from flaresemi.io.images import read_image, read_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.networks.engine import trained_network
from flaresemi.plans import IntensityPlan, Stage
from flaresemi.preprocessing.cropping import find_body
from flaresemi.preprocessing.normalization import measure_scaling, scale
from flaresemi.workspace import Workspace
from tests.cli.test_export import models, untrained  # noqa: F401
from tests.made_plans import ct_intensities, stage_plan, two_levels
from tests.preprocessing.test_cropping import hand, scan

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def example(repository: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location("run_onnx", repository / "examples" / "run_onnx.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def compared(example: ModuleType, models: Path, files: Sequence[Path], work: Path) -> tuple[np.ndarray, np.ndarray]:  # noqa: F811
    """Labels by the example and by flaresemi_predict, of an image with a file per channel."""
    assert export.main(["-m", str(models), "-o", str(work / "exported"), "--onnx", "--no-programs"]) == 0
    several = len(files) > 1
    output = work / "labels" if several else work / "labels.nii.gz"
    words = ["-i", str(files[0].parent if several else files[0]), "-o", str(output), "-m", str(models)]
    assert predict.main([*words, "--precision", "fp32", "--engine", "torch", "--device", "cpu"]) == 0
    image = read_image(files)
    found = example.segment(work / "exported", image.array_czyx, image.geometry.spacing_zyx_mm)
    return found, read_label_map(output / "a.nii.gz" if several else output).array_zyx


@pytest.mark.parametrize("body", ["ct", "ct_parts", "foreground", "whole"])
def test_the_body_is_that_of_the_crop(example: ModuleType, body: str) -> None:
    generator = np.random.default_rng(0)
    (trunk, _), (fingers, _), (on_table, _) = scan(), hand(), hand(9.0, table=True)
    noise = generator.normal(0, 15, fingers.shape)
    nothing, air = np.full((1, 10, 20, 30), -1000.0), np.zeros((2, 30, 60, 50))
    air[0, :, 10:30, 20:40], air[1, 5:20, 20:50, 10:30] = 100, 30
    for image, spacing in (
        (trunk, (2.5, 2.0, 2.0)),
        ((fingers + noise)[None], (1.0, 1.0, 1.0)),
        ((np.moveaxis(fingers, 0, 2) + np.moveaxis(noise, 0, 2))[None], (1.0, 1.0, 1.0)),
        ((on_table + noise)[None], (1.0, 1.0, 1.0)),
        (nothing, (1.0, 1.0, 1.0)),
        (air, (2.0, 2.0, 3.0)),
    ):
        image_czyx = image.astype(np.float32)
        box, mask = find_body(image_czyx, spacing, body)  # type: ignore[arg-type]
        found, found_mask = example.find_body(image_czyx, spacing, body)
        assert found == box.slices
        np.testing.assert_array_equal(found_mask, mask)


@pytest.mark.parametrize("scheme", ["zscore", "rescale_to_0_1", "rgb_to_0_1", "none"])
def test_intensities_are_those_of_the_networks(example: ModuleType, scheme: str) -> None:
    generator = np.random.default_rng(0)
    mask = generator.random((20, 30, 40)) < 0.5
    stray = generator.normal(100, 20, mask.shape).astype(np.float32)
    stray[mask.nonzero()[0][0], mask.nonzero()[1][0], mask.nonzero()[2][0]] = 1e6
    plan = IntensityPlan(scheme=scheme)  # type: ignore[arg-type]
    for channel in (stray, stray.clip(0, 200), np.full(mask.shape, 7, np.float32)):
        expected = scale(channel[None], measure_scaling(channel[None], (plan,), mask))[0]
        np.testing.assert_allclose(
            example.intensities(channel, dataclasses.asdict(plan), mask), expected, rtol=1e-6, atol=1e-6
        )


def test_two_stages_give_the_same_labels(
    example: ModuleType,
    models: Path,  # noqa: F811
    tmp_path: Path,
    phantom_dataset: Path,
) -> None:
    (image_file,) = sorted((phantom_dataset / "test_image").iterdir())
    found, expected = compared(example, models, [image_file], tmp_path)
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
    found, expected = compared(example, workspace.models, [image_file], tmp_path)
    assert len(np.unique(expected)) > 1
    assert np.count_nonzero(found != expected) <= 1e-4 * np.count_nonzero(expected)


@pytest.mark.parametrize(
    ("body", "scheme", "turns"),
    [
        ("ct_parts", "ct", False),
        ("foreground", "zscore", True),
        ("foreground", "rescale_to_0_1", False),
        ("whole", "rgb_to_0_1", False),
    ],
)
def test_all_that_is_planned_gives_the_same_labels(
    example: ModuleType,
    tmp_path: Path,
    phantom_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    scheme: str,
    turns: bool,
) -> None:
    """Two channels, and organs that are regions."""
    for module in (example, turns_module):  # an untrained network is hardly surer of one turn than of another
        monkeypatch.setattr(module, "SURER_BY", 0.0)
    network = two_levels(outputs=4, inputs=2)
    ct = ct_intensities(mean=50.0, sd=80.0, low=-200.0, high=300.0)
    intensities = ct if scheme == "ct" else IntensityPlan(scheme=scheme)  # type: ignore[arg-type]
    plan = stage_plan(network, intensities=(intensities,) * 2)
    torch.manual_seed(1)
    labels = LabelSet(
        labels=(
            Label(name="organ", value=1, more_values=(2,)),
            Label(name="rest", value=3),
            Label(name="part", value=2, more_values=(3,)),
        )
    )
    checkpoint = dataclasses.replace(
        untrained(Stage.FINE, 0),
        plan=plan,
        body=body,
        channels=("CT", "CT") if body == "ct_parts" else ("a", "b"),
        labels=labels,
        weights=build_network(network).state_dict(),
        touching=(("organ", "part"),),
        keep_largest=("part", "organ"),
        quarter_turns=turns,
        training_state=None,
    )
    save_checkpoint(Workspace(tmp_path / "work").model("0", Stage.FINE).final, checkpoint)
    (image_file,) = sorted((phantom_dataset / "test_image").iterdir())
    image = SimpleITK.ReadImage(str(image_file))
    files = [tmp_path / "images" / f"a_000{channel}.nii.gz" for channel in range(2)]
    files[0].parent.mkdir()
    for file, shift in zip(files, (0, 50), strict=True):
        SimpleITK.WriteImage(image + shift, str(file))
    found, expected = compared(example, Workspace(tmp_path / "work").models, files, tmp_path)
    assert len(np.unique(expected)) > 2
    assert np.count_nonzero(found != expected) <= 1e-3 * np.count_nonzero(expected)


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


def test_what_the_example_does_not_run_it_says(example: ModuleType, models: Path, tmp_path: Path) -> None:  # noqa: F811
    assert export.main(["-m", str(models), "-o", str(tmp_path / "exported"), "--onnx", "--no-programs"]) == 0
    file = tmp_path / "exported" / "description.json"
    described, image = json.loads(file.read_text(encoding="utf-8")), np.zeros((1, 8, 8, 8), np.float32)
    for change, complaint in (
        ({"body": "nonzero"}, "none of nnU-Net; flaresemi_predict -m runs those"),
        ({"label_values": []}, "export the models again"),
        ({"channels": ["CT", "PET"]}, "the channels are CT, PET"),
    ):
        file.write_text(json.dumps(described | change), encoding="utf-8")
        with pytest.raises(SystemExit, match=complaint):
            example.segment(tmp_path / "exported", image, (3.0, 3.0, 3.0))


def test_mednext_is_written_too(tmp_path: Path) -> None:
    import onnxruntime

    from flaresemi.networks.onnx_file import save_onnx
    from tests.networks.conftest import small_plan

    network = build_network(dataclasses.replace(small_plan(), architecture="mednext")).eval().requires_grad_(False)
    save_onnx(network, tmp_path / "network.onnx")
    image = torch.randn(1, 1, 8, 16, 12)
    found = onnxruntime.InferenceSession(str(tmp_path / "network.onnx")).run(None, {"image": image.numpy()})[0]
    np.testing.assert_allclose(found, network(image).numpy(), rtol=1e-3, atol=1e-4)
