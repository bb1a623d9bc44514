"""Of another model, what fits is taken; outputs by the names of organs, inputs by those of channels."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flaresemi.errors import CheckpointError
from flaresemi.labels import Label, LabelSet
from flaresemi.networks import building
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flaresemi.plans import IntensityPlan, NetworkPlan, Stage, StagePlan
from flaresemi.records import load_record
from flaresemi.training.config import TrainingConfig
from flaresemi.training.runs import RunRecord
from flaresemi.training.starting import Start, load_start, start_from
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer
from flaresemi.workspace import Workspace
from tests.made_nnunet import write_results

MakeTask = Callable[..., TrainingTask]

PLAN = NetworkPlan(
    block="plain",
    input_channels=1,
    output_channels=3,
    features=(4, 6, 8),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    encoder_convs=(1, 2, 2),
    decoder_convs=(1, 2),
)


def _labels(*names: str) -> LabelSet:
    return LabelSet(labels=tuple(Label(name=name, value=value) for value, name in enumerate(names, start=1)))


@pytest.fixture
def liver_and_spleen(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    plan = StagePlan(
        stage=Stage.FINE,
        spacing_zyx_mm=(3.0, 1.5, 1.5),
        patch_zyx=(8, 16, 16),
        batch_size=2,
        region="body",
        margin_mm=0.0,
        resampling="linear",
        intensities=(IntensityPlan(scheme="zscore"),),
        network=PLAN,
        reasons={},
    )
    checkpoint = Checkpoint(
        plan=plan,
        body="foreground",
        channels=("T1",),
        labels=_labels("liver", "spleen"),
        fold="0",
        iteration=1,
        total_iterations=1,
        weights=build_network(PLAN).state_dict(),
    )
    save_checkpoint(tmp_path / "model.pt", checkpoint)
    return tmp_path / "model.pt"


def _built(plan: NetworkPlan = PLAN, **changes: object) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(2)
    plan = dataclasses.replace(plan, **changes)
    network = build_network(plan)
    network.plan = plan  # type: ignore[assignment] # that of this test
    return network, {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _start(network: torch.nn.Module, labels: LabelSet, channels: tuple[str, ...], path: Path) -> Start | None:
    return start_from(network, network.plan, labels, channels, path)  # type: ignore[arg-type]


def test_rows_of_organs_and_channels_are_matched_by_name(liver_and_spleen: Path) -> None:
    theirs = load_checkpoint(liver_and_spleen).weights
    network, random = _built(input_channels=3, output_channels=4)
    start = _start(network, _labels("kidney", "spleen", "aorta"), ("CT", "T1", "T2"), liver_and_spleen)
    ours = network.state_dict()
    for name in ("heads.0.weight", "heads.0.bias", "heads.1.weight"):
        for row, (expected, place) in enumerate([(theirs, 0), (random, 1), (theirs, 2), (random, 3)]):
            assert torch.equal(ours[name][row], expected[name][place])
    first = "encoder.0.0.0.weight"
    for channel in range(3):
        assert torch.equal(ours[first][:, channel], theirs[first][:, 0])  # the mean of one is itself
    assert torch.equal(ours["encoder.1.0.0.weight"], theirs["encoder.1.0.0.weight"])
    assert start is not None
    assert (start.organs, start.channels) == (("spleen",), ("T1",))
    rows = {each.tensor: each for each in start.tensors}
    assert (rows["heads.0.bias"].taken, rows["heads.0.bias"].numbers) == (2, 4)
    assert "rows of organs with the same name" in start.table()


def test_new_channels_start_from_the_mean(liver_and_spleen: Path, tmp_path: Path) -> None:
    two, _ = _built(input_channels=2)
    model = load_checkpoint(liver_and_spleen)
    plan = dataclasses.replace(
        model.plan,
        network=dataclasses.replace(PLAN, input_channels=2),
        intensities=(IntensityPlan(scheme="zscore"),) * 2,
    )
    weights = two.state_dict()
    save_checkpoint(tmp_path / "two.pt", dataclasses.replace(model, plan=plan, channels=("T1", "T2"), weights=weights))
    network, _ = _built(input_channels=2)
    _start(network, _labels("liver", "spleen"), ("T2", "FLAIR"), tmp_path / "two.pt")
    found, given = network.state_dict()["encoder.0.0.0.weight"], weights["encoder.0.0.0.weight"]
    assert torch.equal(found[:, 0], given[:, 1])
    torch.testing.assert_close(found[:, 1], given.mean(dim=1))


def test_another_depth_and_other_kernels(liver_and_spleen: Path) -> None:
    theirs = load_checkpoint(liver_and_spleen).weights
    network, random = _built(
        features=(4, 6, 8, 8),
        kernels=((3, 3, 3),) * 4,
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
        encoder_convs=(1, 2, 2, 1),
        decoder_convs=(1, 2, 1),
    )
    start = _start(network, _labels("liver", "spleen"), ("T1",), liver_and_spleen)
    ours = network.state_dict()
    assert torch.equal(ours["encoder.2.0.0.weight"], theirs["encoder.2.0.0.weight"])
    for name in ("encoder.0.0.0.weight", "encoder.3.0.0.weight"):
        assert torch.equal(ours[name], random[name])
    assert start is not None
    why = {each.tensor: each.why for each in start.tensors}
    assert why["encoder.0.0.0.weight"] == "random: shape [4, 1, 3, 3, 3], the other model has [4, 1, 1, 3, 3]"
    assert why["encoder.3.0.0.weight"] == "random: the other model has no such layer"


def test_the_same_kind_of_model_is_taken_whole(liver_and_spleen: Path) -> None:
    network, _ = _built()
    assert _start(network, _labels("liver", "spleen"), ("T1",), liver_and_spleen) is None
    theirs = load_checkpoint(liver_and_spleen).weights
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in network.state_dict().items())


def test_the_same_shapes_with_other_organs_are_matched_by_name(liver_and_spleen: Path) -> None:
    network, _ = _built()
    assert _start(network, _labels("spleen", "liver"), ("T1",), liver_and_spleen) is not None
    ours, theirs = network.state_dict()["heads.0.bias"], load_checkpoint(liver_and_spleen).weights["heads.0.bias"]
    assert torch.equal(ours, theirs[[0, 2, 1]])


class OfAnotherPackage(torch.nn.Module):
    """Heads whose names and axes are its own, and two convolutions that take the image."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.body = torch.nn.Conv3d(4, 4, 3, padding=1)
        self.first = torch.nn.Conv3d(plan.input_channels, 4, 3, padding=1)
        self.beside = torch.nn.Conv3d(plan.input_channels, 4, 1)
        self.head = torch.nn.Conv3d(4, plan.output_channels, 1)
        self.rough = torch.nn.ConvTranspose3d(4, plan.output_channels, 2, stride=2)


@pytest.mark.parametrize("outputs", [("spleen", "liver"), ("kidney", "spleen", "liver")])
def test_outputs_and_inputs_of_any_network_are_matched_by_name(
    liver_and_spleen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: tuple[str, ...]
) -> None:
    monkeypatch.setitem(building.ARCHITECTURES, "another", OfAnotherPackage)
    plan = dataclasses.replace(PLAN, architecture="another", input_channels=2)
    model = load_checkpoint(liver_and_spleen)
    stage = dataclasses.replace(model.plan, network=plan, intensities=model.plan.intensities * 2)
    theirs = {name: tensor.clone() for name, tensor in build_network(plan).state_dict().items()}
    model = dataclasses.replace(model, plan=stage, channels=("T1", "T2"), weights=theirs)
    save_checkpoint(tmp_path / "other.pt", model)
    network, _ = _built(plan, output_channels=len(outputs) + 1)
    assert _start(network, _labels(*outputs), ("T2", "T1"), tmp_path / "other.pt") is not None
    ours, (spleen, liver) = network.state_dict(), (1 + outputs.index(name) for name in ("spleen", "liver"))
    for name, axis in {"head.weight": 0, "head.bias": 0, "rough.weight": 1, "rough.bias": 0}.items():
        found = ours[name].index_select(axis, torch.tensor([0, liver, spleen]))
        assert torch.equal(found, theirs[name]), name
    for name in ("first.weight", "beside.weight"):
        assert torch.equal(ours[name], theirs[name][:, [1, 0]]), name
    assert torch.equal(ours["body.weight"], theirs["body.weight"])


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_model_of_nnunet(tmp_path: Path, what: str) -> None:
    model = write_results(tmp_path / "Dataset001_Made")
    network, _ = _built(decoder_convs=(1, 2), encoder_convs=(1, 2, 2))
    path = model if what == "folder" else model / "fold_0" / "checkpoint_final.pth"
    start = _start(network, _labels("tumor", "spleen"), ("CT",), path)
    content = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    ours = network.state_dict()
    assert torch.equal(ours["encoder.2.1.0.weight"], content["encoder.stages.2.0.convs.1.conv.weight"])
    assert torch.equal(ours["heads.0.weight"][2], content["decoder.seg_layers.1.weight"][2])
    assert start is not None
    assert start.organs == ("spleen",)


def test_the_second_network_of_a_cascade_of_nnunet(tmp_path: Path) -> None:
    """Inputs of labels stay behind, and are no part of the mean for a new channel; the first network is not needed."""
    model = write_results(tmp_path / "Dataset001_Made", name="nnUNetTrainer__nnUNetPlans__3d_cascade_fullres")
    network, _ = _built(decoder_convs=(1, 2), encoder_convs=(1, 2, 2), input_channels=2)
    _start(network, _labels("tumor", "spleen"), ("PET", "CT"), model)
    content = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    theirs, ours = content["encoder.stages.0.0.convs.0.conv.weight"], network.state_dict()["encoder.0.0.0.weight"]
    assert theirs.shape[1] == 3
    assert torch.equal(ours, theirs[:, [0, 0]])


def test_the_outputs_of_nnunets_regions_are_no_rows_of_ours(tmp_path: Path) -> None:
    labels = {"background": 0, "liver": [1, 2], "spleen": 1}
    model = write_results(tmp_path / "Dataset001_Made", labels=labels, order=[2, 1])
    network, _ = _built(decoder_convs=(1, 2), encoder_convs=(1, 2, 2))
    start = _start(network, _labels("spleen", "liver"), ("CT",), model)
    assert start is not None
    assert start.organs == ()
    assert {each.taken for each in start.tensors if each.tensor.startswith("heads.0")} == {0}


def test_outputs_of_regions_are_matched_by_the_organs_that_they_stand_for(liver_and_spleen: Path) -> None:
    """An output for a combination of organs is none of a single organ, whatever their order."""
    theirs = load_checkpoint(liver_and_spleen).weights["heads.0.bias"]
    regions = LabelSet(
        labels=(Label(name="organs", value=1, more_values=(2,)), Label(name="spleen", value=2)), mirror_pairs=()
    )
    network, random = _built()
    assert _start(network, regions, ("T1",), liver_and_spleen) is not None
    ours = network.state_dict()["heads.0.bias"]
    assert ours[0] == theirs[0]
    assert torch.equal(ours[1:], random["heads.0.bias"][1:])


def test_nothing_fits(liver_and_spleen: Path) -> None:
    network, _ = _built(features=(5, 7, 9))
    with pytest.raises(CheckpointError, match="nothing of this model fits"):
        _start(network, _labels("liver", "spleen"), ("T1",), liver_and_spleen)


def test_a_folder_of_models_stands_for_its_only_fold(liver_and_spleen: Path, tmp_path: Path) -> None:
    weights = load_checkpoint(liver_and_spleen).weights["heads.0.bias"]
    workspace = Workspace(tmp_path / "workspace")
    folder = workspace.model("1", Stage.FINE)
    save_checkpoint(folder.final, load_checkpoint(liver_and_spleen))
    for path in (workspace.root, workspace.models, folder.root.parent, folder.root):
        assert torch.equal(load_start(path, Stage.FINE).weights["heads.0.bias"], weights)
    other = workspace.model("0", Stage.FINE)
    save_checkpoint(other.final, load_checkpoint(liver_and_spleen))
    for path, stage, complaint in (
        (
            workspace.root,
            Stage.FINE,
            f"of several folds is trained here: 0, 1.*--init-from {re.escape(str(other.root))}",
        ),
        (workspace.root, Stage.COARSE, "no COARSE is trained"),
        (tmp_path / "nowhere", Stage.FINE, "no model to start from at this place.*--init-from names"),
    ):
        with pytest.raises(CheckpointError, match=f"(?s){complaint}"):
            load_start(path, stage)
    assert torch.equal(load_start(folder.root, Stage.FINE).weights["heads.0.bias"], weights)


def test_what_was_taken_stands_in_the_record(make_task: MakeTask, quick_config: TrainingConfig, tmp_path: Path) -> None:
    first, second = make_task("first"), make_task("second")
    Trainer(first, quick_config, device=torch.device("cpu")).fit()
    model = load_checkpoint(first.folder.final)
    renamed = tuple(dataclasses.replace(label, name=f"{label.name} there") for label in model.labels.labels[1:])
    labels = LabelSet(labels=(model.labels.labels[0], *renamed))
    save_checkpoint(tmp_path / "other.pt", dataclasses.replace(model, labels=labels))
    config = dataclasses.replace(quick_config, init_from=str(tmp_path / "other.pt"))
    Trainer(second, config, device=torch.device("cpu")).fit()
    record = load_record(second.folder.run_record, RunRecord)
    assert record.started_from is not None
    assert record.started_from.organs == model.labels.names[:1]
    assert load_record(first.folder.run_record, RunRecord).started_from is None
