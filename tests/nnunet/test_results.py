"""A model of nnU-Net predicts here what it predicts there; what cannot be run is refused by its name."""

import dataclasses
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor

from flaresemi.errors import CheckpointError
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.export import export_models
from flaresemi.inference.models import check_together, load_models
from flaresemi.inference.probabilities import ProbabilityOutput, organ_files
from flaresemi.nnunet.results import is_nnunet, load_nnunet
from flaresemi.plans import Stage
from tests.made_nnunet import reference_labels, write_results

pytestmark = pytest.mark.usefixtures("one_thread")

ANISOTROPIC = {"spacing": [6.0, 1.5, 1.6], "patch_size": [4, 16, 16]}


def _scan(
    path: Path,
    spacing: tuple[float, float, float] = (1.2, 1.9, 2.5),
    direction: tuple[float, ...] | None = None,
    *,
    factor: float = 1.0,
    stray: float | None = None,
) -> Path:
    """Smooth noise in HU, with nothing around it; its axes differ in every way."""
    rng = np.random.default_rng(5)
    array = np.zeros((14, 26, 31), np.float32)
    array[1:13, 3:24, 2:29] = 80 * rng.standard_normal((12, 21, 27)).astype(np.float32) + 60
    array *= factor
    if stray is not None:
        array[5, 6, 7] = stray
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


def _agreement(model: Path, scan: Path, *, residual: bool = False, folds: tuple[str, ...] = ("0",)) -> float:
    found = _predicted(model, scan)
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


@pytest.mark.parametrize(
    ("scheme", "scan"),
    [
        ("NoNormalization", {"factor": 1000.0}),
        ("RescaleTo01Normalization", {}),
        ("RescaleTo01Normalization", {"stray": 40_000.0}),
    ],
)
def test_intensities_are_neither_clipped_nor_left_out(tmp_path: Path, scheme: str, scan: dict[str, float]) -> None:
    model = write_results(tmp_path / "Dataset001_Made", change={"normalization_schemes": [scheme]})
    assert _agreement(model, _scan(tmp_path / "scan.nii.gz", **scan)) >= 0.9995
    export_models(load_models(model), tmp_path / "exported", programs=False)
    description = json.loads((tmp_path / "exported" / "description.json").read_text())
    (channel,) = description["stages"]["FINE"]["intensities"]
    assert f"'{channel['scheme']}'" in " ".join(description["steps"])


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


REGIONS = {"background": 0, "all": [1, 2, 3], "core": [2, 3], "rim": 3}


@pytest.mark.parametrize(
    ("labels", "order"),
    [(None, None), ({"background": 0, "whole": [1, 2], "front": 1, "ignore": 3}, [2, 1]), (REGIONS, [1, 2, 3])],
)
@pytest.mark.parametrize(
    ("change", "others"),
    [({}, {"transpose_forward": [2, 0, 1]}), ({"spacing": [6.0, 1.5, 1.6], "patch_size": [4, 16, 16]}, {})],
)
def test_a_cascade_and_regions_are_those_of_nnunet(
    tmp_path: Path, labels: dict | None, order: list[int] | None, change: dict, others: dict
) -> None:
    folder = tmp_path / "Dataset001_Made"
    low, second = (
        write_results(
            folder, labels=labels, order=order, change=change, name=f"nnUNetTrainer__nnUNetPlans__{name}", **others
        )
        for name in ("3d_lowres", "3d_cascade_fullres")
    )
    scan = _scan(tmp_path / "scan.nii.gz")
    first = _predicted(low, scan)
    assert (first == reference_labels(low, scan, residual=False)).mean() >= 0.9995
    expected = reference_labels(second, scan, residual=False, previous=first)
    assert len(np.unique(first)) > 2
    assert len(np.unique(expected)) > 2
    assert (_predicted(second, scan) == expected).mean() >= 0.9995
    blind = reference_labels(second, scan, residual=False, previous=np.zeros_like(first))
    assert (blind == expected).mean() < 0.99  # so that what the first network found does matter


def _predicted(model: Path, scan: Path, **options: Any) -> np.ndarray:
    segmenter = Segmenter.load(model, device="cpu", engine="torch", **options)
    return segmenter.segment(segmenter.read([scan])).file_array


def _cascade(folder: Path, folds: tuple[str, ...] = ("0",), first: tuple[str, ...] = ("0",)) -> Path:
    write_results(folder, folds=first, name="nnUNetTrainer__nnUNetPlans__3d_lowres")
    return write_results(folder, folds=folds, name="nnUNetTrainer__nnUNetPlans__3d_cascade_fullres")


@pytest.mark.parametrize(
    ("folds", "first", "taken"),
    [(("0",), ("0", "1"), ["0"]), (("0", "1"), ("0",), ["0"]), (("all",), ("0", "1"), ["0", "1"])],
)
def test_a_cascade_in_an_archive_and_as_a_folder_of_ours(
    tmp_path: Path, folds: tuple[str, ...], first: tuple[str, ...], taken: list[str]
) -> None:
    second = _cascade(tmp_path / "Dataset001_Made", folds, first)
    archive = _archive(tmp_path / "model.zip", tmp_path)
    models = load_models(archive)
    assert [each.fold for each in models.coarse] == taken
    assert [each.fold for each in models.fine] == list(folds)
    export_models(models, tmp_path / "exported", programs=False)
    scan = _scan(tmp_path / "scan.nii.gz")
    found = [_predicted(place, scan) for place in (second, archive, tmp_path / "exported")]
    assert all((each == found[0]).all() for each in found)
    steps = " ".join(json.loads((tmp_path / "exported" / "description.json").read_text())["steps"])
    assert "COARSE" in steps


def test_a_cascade_without_its_first_network(tmp_path: Path) -> None:
    second = _cascade(tmp_path / "Dataset001_Made")
    scan = _scan(tmp_path / "scan.nii.gz")
    expected = _predicted(second, scan)
    elsewhere = tmp_path / "elsewhere"
    (second.parent / "nnUNetTrainer__nnUNetPlans__3d_lowres").rename(elsewhere)
    with pytest.raises(CheckpointError, match=r"the first, nnUNetTrainer__nnUNetPlans__3d_lowres, is not there"):
        load_models(second)
    assert (_predicted(second, scan, coarse=elsewhere) == expected).all()
    with pytest.raises(CheckpointError, match="needs no COARSE"):
        load_models(elsewhere, coarse=elsewhere)
    alone = load_nnunet(second, alone=True)  # what a training starts from
    assert [each.plan.stage for each in alone.values()] == [Stage.FINE]
    with pytest.raises(ValueError, match="needs the first"):
        Segmenter(list(alone.values()), device="cpu")


def test_one_of_several_models_in_an_archive(tmp_path: Path) -> None:
    second = _cascade(tmp_path / "Dataset001_Made")
    full = write_results(second.parent)
    archive = _archive(tmp_path / "model.zip", tmp_path)
    for chosen, place in ((full, archive), (second, archive / "Dataset001_Made" / second.name)):
        (file,) = [path for path, model in load_nnunet(place).items() if model.plan.stage is Stage.FINE]
        assert file == archive / chosen.relative_to(tmp_path) / "fold_0" / "checkpoint_final.pth"
    with pytest.raises(CheckpointError, match="no trained model of nnU-Net v2 here"):
        load_nnunet(archive / "Dataset002_Other")


def _postprocessing(model: Path, folds: str, *groups: object, name: str = "remove_all_but_largest_component") -> None:
    folder = model / f"crossval_results_folds_{folds}"
    folder.mkdir(exist_ok=True)
    content = {
        "postprocessing_fns": [f"{name}_from_segmentation"] * len(groups),
        "postprocessing_kwargs": [{"labels_or_regions": group} for group in groups],
    }
    (folder / "postprocessing.json").write_text(json.dumps(content))


@pytest.mark.parametrize("regions", [False, True])
def test_the_largest_components_that_its_cross_validation_chose(tmp_path: Path, regions: bool) -> None:
    """As nnU-Net's own function has it, one after the other, for the folds that it was found for."""
    made: dict[str, Any] = {"labels": REGIONS, "order": [1, 2, 3]} if regions else {}
    model = write_results(tmp_path / "Dataset001_Made", folds=("0", "1"), **made)
    scan = _scan(tmp_path / "scan.nii.gz")
    expected = _predicted(model, scan)
    groups = [[1, 2], 1] if not regions else [[1, 2, 3], [2, 3]]
    _postprocessing(model, "0_1", *groups)
    for group in groups:
        mask = np.isin(expected, group)
        numbers, _ = ndimage.label(mask, np.ones((3, 3, 3)))
        expected[mask & (numbers != np.bincount(numbers[mask]).argmax())] = 0
    export_models(load_models(_archive(tmp_path / "model.zip", tmp_path)), tmp_path / "exported", programs=False)
    for place in (model, tmp_path / "model.zip", tmp_path / "exported"):
        assert (_predicted(place, scan) == expected).all()
    assert load_models(model, folds=["0"]).fine[0].convention.largest == ()  # type: ignore[union-attr]


def test_a_cascade_keeps_the_largest_components_of_its_second_network(tmp_path: Path) -> None:
    second = _cascade(tmp_path / "Dataset001_Made", ("0", "1"), ("0", "1"))
    first = second.parent / "nnUNetTrainer__nnUNetPlans__3d_lowres"
    scan = _scan(tmp_path / "scan.nii.gz")
    expected = _predicted(second, scan)
    _postprocessing(second, "0_1", 1)
    _postprocessing(first, "0_1", 2)  # the second network sees the first one's labels as they are
    mask = expected == 1
    numbers, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count > 1
    expected[mask & (numbers != np.bincount(numbers[mask]).argmax())] = 0
    export_models(load_models(second), tmp_path / "exported", programs=False)
    for place in (second, tmp_path / "exported"):
        assert (_predicted(place, scan) == expected).all()


def test_folds_that_were_cleaned_otherwise_do_not_belong_together(tmp_path: Path) -> None:
    models = load_nnunet(write_results(tmp_path / "Dataset001_Made", folds=("0", "1")))
    path, model = next(iter(models.items()))
    assert model.convention is not None
    other = dataclasses.replace(model.convention, largest=((1,),))
    with pytest.raises(CheckpointError, match="differ in their convention"):
        check_together(models | {path: dataclasses.replace(model, convention=other)})


@pytest.mark.parametrize(
    ("groups", "name"),
    [((1,), "anything"), ((7,), "remove_all_but_largest_component"), (({},), "remove_all_but_largest_component")],
)
def test_postprocessing_that_is_something_else(tmp_path: Path, groups: tuple, name: str) -> None:
    model = write_results(tmp_path / "Dataset001_Made")
    _postprocessing(model, "0", *groups, name=name)
    with pytest.raises(CheckpointError, match=r"postprocessing\.json of this model of nnU-Net cannot be used"):
        load_models(model)


def test_pickled_postprocessing_is_told_and_not_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = write_results(tmp_path / "Dataset001_Made")
    (model / "crossval_results_folds_0").mkdir()
    (model / "crossval_results_folds_0" / "postprocessing.pkl").write_bytes(pickle.dumps(_Code()))
    for place in (model, _archive(tmp_path / "model.zip", tmp_path)):
        caplog.clear()
        load_models(place)
        assert [each.message for each in caplog.records if each.levelname == "WARNING"] == [
            "crossval_results_folds_0/postprocessing.pkl is not read, since it may run code, and there is no "
            "postprocessing.json beside it: label maps are those before postprocessing"
        ]


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


def _regional(order: list[int], **labels: list[int]) -> Callable[[dict], None]:
    """Other labels: by default, of three values and regions."""
    labels = labels or {"a": [1, 2, 3], "b": [2, 3], "c": [3]}

    def change(dataset: dict) -> None:
        dataset.update(labels={"background": 0, **labels}, regions_class_order=order)

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dataset.json", lambda d: d["labels"].update(all=[1, 2]), "regions_class_order must be a list of 3"),
        ("dataset.json", _regional([1, 2, 7]), r"regions_class_order \[1, 2, 7\] writes a value that is no label"),
        ("dataset.json", _regional([1, 2], both=[1, 2], all=[1, 2, 3]), "two values that are parts of the same"),
        ("plans.json", _base(patch_size=[16, 16]), "2D slices"),
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
    (full / "plans.json").rename(full / "plans")  # without it no model: the next in order is the cascade
    cascade = write_results(folder, name="nnUNetTrainer__nnUNetPlans__3d_cascade_fullres")
    write_results(folder, name="nnUNetTrainer__nnUNetPlans__2d")
    assert next(iter(load_nnunet(tmp_path, alone=True))).parent.parent == cascade
    (full / "plans").rename(full / "plans.json")
    write_results(folder, name="nnUNetTrainer__otherPlans__3d_fullres")
    with pytest.raises(CheckpointError, match="5 models of nnU-Net are here"):
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
    ids=["above", "absolute", "backslashes", "weights", "plans"],  # and not the contents themselves
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


@pytest.mark.parametrize(("labels", "order"), [(None, None), (REGIONS, [1, 2, 3])])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIOWithReorient"])
def test_saved_probabilities_give_the_labels(
    tmp_path: Path, labels: dict | None, order: list[int] | None, reader: str
) -> None:
    model = write_results(tmp_path / "Dataset001_Made", labels=labels, order=order, image_reader_writer=reader)
    scan = _scan(tmp_path / "scan.nii.gz", direction=(0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    segmenter = Segmenter.load(model, device="cpu", engine="torch")
    output = ProbabilityOutput(organs=True, uncertainty=False, bits=16, extent="image", labels=segmenter.labels)
    found = segmenter.segment(
        segmenter.read([scan]), save=lambda parts, grid: output.save(tmp_path, "a", parts, grid)
    ).file_array
    shares = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "probabilities" / "a" / name)))
        for name in organ_files(segmenter.labels)
    ]
    if labels is None:
        assert (np.argmax(shares, axis=0) == found).mean() >= 0.999
        return
    painted = np.zeros_like(found)
    for share, value in zip(shares[1:], order or [], strict=True):
        painted[share > 0.5] = value
    assert (painted == found).mean() >= 0.999
    assert len(np.unique(found)) > 2
