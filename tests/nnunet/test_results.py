"""A model of nnU-Net predicts here what it predicts there; what cannot be run is refused by its name."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from flaresemi.errors import CheckpointError
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.export import export_models
from flaresemi.inference.models import load_models
from flaresemi.nnunet.results import is_nnunet, load_nnunet
from tests.made_nnunet import reference_labels, write_results

pytestmark = pytest.mark.usefixtures("one_thread")

ANISOTROPIC = {"spacing": [6.0, 1.5, 1.6], "patch_size": [4, 16, 16]}


def _scan(
    path: Path, spacing: tuple[float, float, float] = (1.2, 1.9, 2.5), direction: tuple[float, ...] | None = None
) -> Path:
    """Smooth noise in HU, with nothing around it; its axes differ in every way."""
    rng = np.random.default_rng(5)
    array = np.zeros((14, 26, 31), np.float32)
    array[1:13, 3:24, 2:29] = 80 * rng.standard_normal((12, 21, 27)).astype(np.float32) + 60
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


def _agreement(model: Path, scan: Path, *, residual: bool = False, folds: tuple[str, ...] = ("0",)) -> float:
    segmenter = Segmenter.load(model, device="cpu", engine="torch")
    found = segmenter.segment(segmenter.read([scan])).file_array
    expected = reference_labels(model, scan, residual=residual, folds=folds)
    assert set(np.unique(expected)) == {0, 1, 2}
    return float((found == expected).mean())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("change", "others"),
    [
        ({}, {}),
        ({}, {"transpose_forward": [2, 0, 1]}),
        (ANISOTROPIC, {"transpose_forward": [0, 2, 1]}),
        ({"normalization_schemes": ["ZScoreNormalization"]}, {}),
        ({"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [True]}, {}),
        ({"patch_size": [16, 32, 32]}, {}),
    ],
)
def test_labels_are_those_of_nnunet(tmp_path: Path, residual: bool, change: dict, others: dict) -> None:
    model = write_results(tmp_path / "Dataset001_Made", residual=residual, change=change, **others)
    scan = _scan(tmp_path / "scan.nii.gz")
    assert _agreement(model, scan, residual=residual) >= 0.9995


def test_folds_are_averaged_and_files_keep_their_own_axes(tmp_path: Path) -> None:
    model = write_results(tmp_path / "Dataset001_Made", folds=("0", "1", "all"))
    scan = _scan(tmp_path / "scan.nii.gz", direction=(0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    assert _agreement(model, scan, folds=("0", "1")) >= 0.9995


def test_an_image_of_few_slices_is_resampled_slice_by_slice(tmp_path: Path) -> None:
    model = write_results(tmp_path / "Dataset001_Made")
    scan = _scan(tmp_path / "scan.nii.gz", spacing=(1.2, 1.9, 7.0))
    assert _agreement(model, scan) >= 0.9995


def test_a_reader_that_turns_images_sees_them_pointing_to_anterior_and_right(tmp_path: Path) -> None:
    """Stored like this already, a scan is the same for both readers; one that is turned gives the same labels."""
    model = write_results(tmp_path / "Dataset001_Made", image_reader_writer="NibabelIOWithReorient")
    turned = _scan(tmp_path / "turned.nii.gz", direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    assert _agreement(model, turned) >= 0.9995
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(turned)))
    flipped = sitk.GetImageFromArray(array[:, ::-1, ::-1])  # the same patient, stored in ITK's own order
    flipped.SetSpacing((1.2, 1.9, 2.5))
    sitk.WriteImage(flipped, str(tmp_path / "flipped.nii.gz"))
    segmenter = Segmenter.load(model, device="cpu", engine="torch")
    found = segmenter.segment(segmenter.read([tmp_path / "flipped.nii.gz"])).file_array
    assert (found[:, ::-1, ::-1] == reference_labels(model, turned, residual=False)).mean() >= 0.9995


def test_the_archive_and_what_is_exported_from_it_predict_the_same(tmp_path: Path) -> None:
    model = write_results(tmp_path / "Dataset001_Made", labels={"background": 0, "b": 2, "a": 1, "ignore": 3})
    archive = _archive(tmp_path / "model.zip", tmp_path)
    export_models(load_models(archive), tmp_path / "exported", programs=False)
    scan = _scan(tmp_path / "scan.nii.gz")
    found = []
    for place in (model, tmp_path / "Dataset001_Made", archive, tmp_path / "exported"):
        segmenter = Segmenter.load(place, device="cpu", engine="torch")
        assert segmenter.labels.names == ("a", "b")
        found.append(segmenter.segment(segmenter.read([scan])).file_array)
    assert all((each == found[0]).all() for each in found)
    description = json.loads((tmp_path / "exported" / "description.json").read_text())
    assert "B-splines" in " ".join(description["steps"])
    assert description["stages"]["FINE"]["resampling"] == "spline"


def test_mirroring_and_windows_are_those_of_nnunet_unless_asked_otherwise(tmp_path: Path) -> None:
    model = write_results(tmp_path / "Dataset001_Made")
    usual = Segmenter.load(model, device="cpu")
    assert (usual.options["tta"], usual.options["window"]) == ("True", "patch")
    other = Segmenter.load(model, device="cpu", tta=False, window="auto")
    assert (other.options["tta"], other.options["window"]) == ("False", "auto")


def test_plans_in_the_words_of_older_versions(tmp_path: Path) -> None:
    model = write_results(tmp_path / "Dataset001_Made")
    scan = _scan(tmp_path / "scan.nii.gz")
    segmenter = Segmenter.load(model, device="cpu", engine="torch")
    expected = segmenter.segment(segmenter.read([scan])).file_array
    plans = json.loads((model / "plans.json").read_text())
    arguments = plans["configurations"]["base"].pop("architecture")["arch_kwargs"]
    assert arguments["features_per_stage"] == [4, 6, 8]
    plans["configurations"]["base"] |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
        "pool_op_kernel_sizes": arguments["strides"],
    }
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(CheckpointError, match="shape"):  # 4, 8, 8 features, not 4, 6, 8: said, not guessed
        Segmenter.load(model, device="cpu", engine="torch")
    plans["configurations"]["base"]["architecture"] = {
        "network_class_name": "x.PlainConvUNet",
        "arch_kwargs": arguments,
    }
    (model / "plans.json").write_text(json.dumps(plans))
    segmenter = Segmenter.load(model, device="cpu", engine="torch")
    assert (segmenter.segment(segmenter.read([scan])).file_array == expected).all()


def _changed(model: Path, name: str, change: Callable[[dict], object]) -> None:
    content = json.loads((model / name).read_text())
    change(content)
    (model / name).write_text(json.dumps(content))


def _base(**changes: object) -> Callable[[dict], None]:
    return lambda plans: plans["configurations"]["base"].update(changes)


def _network(**changes: object) -> Callable[[dict], None]:
    return lambda plans: plans["configurations"]["base"]["architecture"]["arch_kwargs"].update(changes)


def _class(name: str) -> Callable[[dict], None]:
    return lambda plans: plans["configurations"]["base"]["architecture"].update(network_class_name=name)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dataset.json", lambda d: d["labels"].update(all=[1, 2]), "trained with regions"),
        ("plans.json", _base(patch_size=[16, 16]), "2D slices"),
        ("plans.json", _base(previous_stage="3d_lowres"), "cascade"),
        ("plans.json", _class("a.b.Primus"), "'a.b.Primus' cannot be run"),
        ("plans.json", _network(dropout_op="torch.nn.Dropout3d"), "dropout_op"),
        ("plans.json", _network(nonlin="torch.nn.ReLU"), "nonlin torch.nn.ReLU"),
        ("plans.json", _base(normalization_schemes=["Own"]), "Own normalizes"),
        ("plans.json", _base(preprocessor_name="Own"), "preprocessor_name is Own"),
        ("plans.json", _base(resampling_fn_data="resample_torch_fornnunet"), "resample_torch_fornnunet"),
        ("plans.json", _base(inherits_from="3d_fullres"), "inherit from each other"),
        ("plans.json", lambda p: p.update(image_reader_writer="Tiff3DIO"), "Tiff3DIO"),
        ("plans.json", lambda p: p.pop("configurations"), "cannot be used"),
        ("dataset.json", lambda d: d.update(labels={"background": 0, "liver": 2}), "numbered from 1"),
        ("dataset.json", lambda d: d.update(channel_names={"0": "CT", "1": "PET"}), "normalization_schemes"),
        ("dataset.json", lambda d: d["labels"].update(more=3), r"heads\.0\.weight.*shape"),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_name(tmp_path: Path, name: str, change: Callable, message: str) -> None:
    model = write_results(tmp_path / "Dataset001_Made")
    _changed(model, name, change)
    with pytest.raises(CheckpointError, match=message):
        Segmenter.load(model, device="cpu", engine="torch")


def test_several_models_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset001_Made"
    low = write_results(folder, name="nnUNetTrainer__nnUNetPlans__3d_lowres", configurations={})
    full = write_results(folder)
    assert [path.parent.parent for path in load_nnunet(tmp_path)] == [full]
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_nnunet(low)
    write_results(folder, name="nnUNetTrainer__otherPlans__3d_fullres")
    with pytest.raises(CheckpointError, match="3 models of nnU-Net are here"):
        load_nnunet(folder)


def test_folds_and_checkpoints_that_are_not_there(tmp_path: Path) -> None:
    model = write_results(tmp_path / "Dataset001_Made", folds=("0", "all"))
    assert [checkpoint.fold for checkpoint in load_nnunet(model).values()] == ["0"]
    assert [checkpoint.fold for checkpoint in load_nnunet(model, folds=["all"]).values()] == ["all"]
    with pytest.raises(CheckpointError, match="of fold 3"):
        load_nnunet(model, folds=["0", "3"])
    with pytest.raises(CheckpointError, match=r"no fold has its checkpoint_best\.pth"):
        load_nnunet(model, checkpoint="best")
    with pytest.raises(CheckpointError, match="needs no COARSE"):
        load_models(model, coarse=model)
    assert not is_nnunet(tmp_path / "nowhere")


class _Code:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_results(tmp_path / "Dataset001_Made")
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    for place in ("logging", "network_weights"):
        torch.save(content | {place: _Code()}, file)
        with pytest.raises(CheckpointError, match=r"asks to run '\w+\.system'"):
            load_nnunet(model)
    (model / "postprocessing.pkl").write_bytes(pickle.dumps(_Code()))
    torch.save(content, file)
    load_nnunet(model)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"network_weights": [1]},
        {"network_weights": {1: torch.zeros(2)}},
        {"network_weights": {"a": torch.zeros(2)}},
        {"network_weights": {"encoder.stages.0.0.convs.0.conv.weight": torch.ones(1).expand(1 << 40)}},
        {"inference_allowed_mirroring_axes": (0, 7)},
        {"inference_allowed_mirroring_axes": "all"},
    ],
)
def test_damaged_checkpoints(tmp_path: Path, change: dict) -> None:
    model = write_results(tmp_path / "Dataset001_Made")
    file = model / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False) | change, file)
    with pytest.raises(CheckpointError):
        load_nnunet(model)


def test_views_of_few_numbers_are_not_copied_as_many(tmp_path: Path) -> None:
    model = write_results(tmp_path / "Dataset001_Made")
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    weights: dict[str, Tensor] = content["network_weights"]
    weights["encoder.stages.2.0.convs.1.conv.weight"] = torch.ones(1).expand(8, 8, 3, 3, 3)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="more numbers than there are"):
        load_nnunet(model)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = write_results(tmp_path / "Dataset001_Made")
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    weights: dict[str, Tensor] = content["network_weights"]
    weights["decoder.seg_layers.1.bias"][0] = float("nan")
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="not finite"):
        load_nnunet(model)


def _archive(path: Path, root: Path, extra: tuple[tuple[str, bytes], ...] = ()) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.glob("Dataset*/**/*")):
            if file.is_file():
                archive.write(file, file.relative_to(root))
        for name, content in extra:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("../plans.json", b"{}", "outside of its folder"),
        ("/tmp/plans.json", b"{}", "outside of its folder"),
        ("a\\..\\..\\plans.json", b"{}", "outside of its folder"),
        ("x/fold_0/checkpoint_final.pth", b"\0" * (200 << 20), "unpacks to far more"),
        ("x/plans.json", b" " * (65 << 20), "unpacks to far more"),
    ],
)
def test_archives_that_leave_their_folder_or_fill_the_disk(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write_results(tmp_path / "Dataset001_Made")
    archive = _archive(tmp_path / "model.zip", tmp_path, ((name, content),))
    with pytest.raises(CheckpointError, match=message):
        load_nnunet(archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Dataset001_Made", "model.zip"]


def test_an_archive_without_a_model_or_cut_off(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(CheckpointError, match="no trained model"):
        load_nnunet(tmp_path / "other.zip")
    write_results(tmp_path / "Dataset001_Made")
    whole = _archive(tmp_path / "model.zip", tmp_path).read_bytes()
    middle = len(whole) // 2
    (tmp_path / "model.zip").write_bytes(whole[:middle] + bytes(8) + whole[middle + 8 :])
    with pytest.raises(CheckpointError):
        load_nnunet(tmp_path / "model.zip")
