"""Networks of other packages, and of ours, are built, measured, saved and run alike."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flaresemi.errors import ConfigError
from flaresemi.networks import cost
from flaresemi.networks.building import build_network, build_on_meta
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from flaresemi.networks.engine import Engine
from flaresemi.networks.measuring import measure
from flaresemi.networks.openvino import NotConvertedError, OpenVinoNetwork, openvino_is_installed
from flaresemi.networks.unet import UNet
from flaresemi.plans import NetworkPlan, Stage
from flaresemi.records import from_plain, record_hash, to_plain
from tests.inference.conftest import make_checkpoint
from tests.inference.conftest import make_plan as make_stage_plan
from tests.made_package import install

PATCH = (8, 16, 16)

#: A package with a network of its own, not even a U-Net.
CODE = """
import torch
from torch import nn

class Flat(nn.Module):
    def __init__(self, plan, *, width=4):
        super().__init__()
        self.first = nn.Conv3d(plan.input_channels, width, 3, padding=1)
        self.last = nn.Conv3d(width, plan.output_channels, 1)

    def forward(self, image):
        return self.last(self.first(image).relu())

class Sorted(Flat):
    def forward(self, image):
        return self.last(self.first(image)) + torch.special.bessel_j0(image[:, :1])

def not_a_module(plan):
    return 3
"""


def checkpoint_of(network: NetworkPlan, weights: dict[str, torch.Tensor]) -> Checkpoint:
    stage = make_stage_plan(Stage.FINE, region="body")
    ends = {"input_channels": stage.network.input_channels, "output_channels": stage.network.output_channels}
    stage = dataclasses.replace(stage, network=dataclasses.replace(network, **ends))
    return dataclasses.replace(make_checkpoint(stage), weights=weights)


@pytest.fixture
def flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_plan: Callable[..., NetworkPlan]) -> NetworkPlan:
    points = "[flaresemi.networks]\nflat = flatnets:Flat\nsorted = flatnets:Sorted\nnothing = flatnets:not_a_module\n"
    monkeypatch.syspath_prepend(install(tmp_path / "site", "flatnets", CODE, points))
    return make_plan(architecture="flat", arguments={"width": 6})


def test_a_network_of_another_package_is_built_with_its_arguments(flat: NetworkPlan) -> None:
    network = build_network(flat)
    assert network.first.out_channels == 6
    assert network.divisor_zyx == flat.divisor_zyx
    assert network(torch.zeros(1, flat.input_channels, *PATCH)).shape == (1, flat.output_channels, *PATCH)


def test_its_costs_come_from_the_module(flat: NetworkPlan) -> None:
    channels, width, outputs, voxels = flat.input_channels, 6, flat.output_channels, 8 * 16 * 16
    assert cost.parameter_count(flat) == width * (27 * channels + 1) + outputs * (width + 1)
    assert cost.forward_gflop(flat, PATCH) == pytest.approx(2e-9 * voxels * width * (27 * channels + outputs))
    wide = dataclasses.replace(flat, arguments={"width": 600})
    assert cost.training_memory_gib(wide, PATCH, 2) > cost.training_memory_gib(flat, PATCH, 2)
    assert cost.inference_memory_gib(wide, PATCH) > cost.inference_memory_gib(flat, PATCH)


@pytest.mark.parametrize("block", ["plain", "residual"])
def test_measuring_agrees_with_the_formulas_of_our_own(block: str, make_plan: Callable[..., NetworkPlan]) -> None:
    plan = make_plan(block=block)
    measured = measure(build_on_meta(plan), (2, plan.input_channels, *PATCH))
    assert measured.gflop == pytest.approx(2 * cost.forward_gflop(plan, PATCH), rel=1e-6)
    assert measured.kept == pytest.approx(cost.kept_activations(plan, PATCH, 2), rel=0.01)
    assert measured.live >= measured.largest


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_a_checkpoint_names_who_builds_it(name: str, flat: NetworkPlan, tmp_path: Path) -> None:
    if name == "openvino" and not openvino_is_installed():
        pytest.skip("OpenVINO is not installed")
    torch.manual_seed(0)
    network = build_network(checkpoint_of(flat, {}).plan.network)
    save_checkpoint(tmp_path / "flat.pt", checkpoint_of(flat, network.state_dict()))
    loaded = load_checkpoint(tmp_path / "flat.pt")
    load_weights(build_network(loaded.plan.network), loaded)
    windows = torch.randn(2, loaded.plan.network.input_channels, 4, 8, 12)
    forward = Engine(torch.device("cpu"), "fp32", name).load(loaded)
    torch.testing.assert_close(forward(windows), network(windows).detach(), rtol=1e-4, atol=1e-5)


def test_what_openvino_cannot_convert_torch_computes(flat: NetworkPlan, caplog: pytest.LogCaptureFixture) -> None:
    if not openvino_is_installed():
        pytest.skip("OpenVINO is not installed")
    plan = dataclasses.replace(flat, architecture="sorted")
    network = build_network(checkpoint_of(plan, {}).plan.network)
    checkpoint = checkpoint_of(plan, network.state_dict())
    windows = torch.randn(1, checkpoint.plan.network.input_channels, 4, 8, 8)
    logits = Engine(torch.device("cpu")).load(checkpoint)(windows)
    torch.testing.assert_close(logits, network(windows).detach(), rtol=0.1, atol=0.1)
    assert "OpenVINO cannot convert this Sorted" in caplog.text
    with pytest.raises(NotConvertedError, match="--engine torch"):
        Engine(torch.device("cpu"), "fp32", "openvino").load(checkpoint)


def test_a_network_derived_from_ours_is_not_taken_for_it() -> None:
    if not openvino_is_installed():
        pytest.skip("OpenVINO is not installed")

    class Shifted(UNet):
        def forward(self, image_bczyx: torch.Tensor) -> torch.Tensor:
            return super().forward(image_bczyx) + 1

    plan = make_stage_plan(Stage.FINE, region="body").network
    network = Shifted(plan).eval()
    network.input_channels = plan.input_channels
    windows = torch.randn(1, plan.input_channels, 4, 8, 8)
    compiled = OpenVinoNetwork(network, precision="fp32", threads=1)
    torch.testing.assert_close(compiled(windows), network(windows).detach(), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_a_network_that_is_not_installed_is_refused(
    make_plan: Callable[..., NetworkPlan], tmp_path: Path
) -> None:
    plan = make_plan(architecture="os:system")
    save_checkpoint(tmp_path / "x.pt", checkpoint_of(plan, {"a": torch.zeros(3)}))
    with pytest.raises(ConfigError, match="no installed package has 'os:system'"):
        load_checkpoint(tmp_path / "x.pt")


def test_what_cannot_be_built_is_told(flat: NetworkPlan, make_plan: Callable[..., NetworkPlan]) -> None:
    with pytest.raises(ConfigError, match=r"'flat' of flatnets 1\.2 does not build a network with \(depth=3\)"):
        build_network(dataclasses.replace(flat, arguments={"depth": 3}))
    with pytest.raises(ConfigError, match="built no torch module but int"):
        build_network(dataclasses.replace(flat, architecture="nothing", arguments={}))
    with pytest.raises(ConfigError, match="'expansion' of the network must be within"):
        build_network(make_plan(architecture="mednext", arguments={"expansion": 0}))


def test_mednext_has_the_sizes_of_its_plan(make_plan: Callable[..., NetworkPlan]) -> None:
    plan = make_plan(architecture="mednext", arguments={"expansion": 3})
    network = build_network(plan)
    image = torch.randn(1, plan.input_channels, *PATCH)
    full = network(image)
    assert full.shape == (1, plan.output_channels, *PATCH)
    network.deep_supervision = True
    levels = network(image)
    torch.testing.assert_close(levels[0], full)
    sizes = [PATCH]
    for stride in plan.strides[1:-1]:
        sizes.append(tuple(size // step for size, step in zip(sizes[-1], stride, strict=True)))
    assert [tuple(level.shape[2:]) for level in levels] == sizes
    sum(level.sum() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_plans_from_before_there_were_architectures_keep_their_hash(make_plan: Callable[..., NetworkPlan]) -> None:
    plan = make_plan()
    older = {key: value for key, value in to_plain(plan).items() if key not in ("architecture", "arguments")}
    assert from_plain(NetworkPlan, older, source="x") == plan
    assert record_hash(older) == record_hash(plan) != record_hash(make_plan(arguments={"a": 1}))
