"""Costs computed from the plan are those of the module that is built from it."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from flaresemi.networks import cost
from flaresemi.networks.building import build_network
from flaresemi.plans import NetworkPlan

PATCH = (8, 16, 16)


def test_parameter_count_is_exact(plan: NetworkPlan) -> None:
    assert cost.parameter_count(plan) == sum(parameter.numel() for parameter in build_network(plan).parameters())


def test_biases_of_transposed_convolutions_are_counted(make_plan: Callable[..., NetworkPlan]) -> None:
    plan = make_plan(arguments={"upsampling_bias": True})
    assert cost.parameter_count(plan) == sum(parameter.numel() for parameter in build_network(plan).parameters())
    assert cost.parameter_count(plan) - cost.parameter_count(make_plan()) == 4 + 8


def test_known_parameter_count() -> None:
    # nnU-Net's default network has 30.7 million parameters; ours has no convolution biases but more heads.
    plan = NetworkPlan(
        block="plain",
        input_channels=1,
        output_channels=14,
        features=(32, 64, 128, 256, 320, 320),
        kernels=((1, 3, 3),) + ((3, 3, 3),) * 5,
        strides=((1, 1, 1), (1, 2, 2)) + ((2, 2, 2),) * 3 + ((1, 2, 2),),
        encoder_convs=(2,) * 6,
        decoder_convs=(2,) * 5,
    )
    assert cost.parameter_count(plan) / 1e6 == pytest.approx(30.7, abs=0.1)


def test_operations_are_those_of_the_convolutions(plan: NetworkPlan) -> None:
    counted = 0.0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.ConvTranspose3d):  # each input voxel is multiplied with the whole kernel
            counted += 2 * inputs[0].numel() * module.out_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.Conv3d):
            counted += 2 * output.numel() * module.in_channels * math.prod(module.kernel_size)

    network = build_network(plan)
    network.deep_supervision = True
    for module in network.modules():
        module.register_forward_hook(count)
    network(torch.randn(1, 1, *PATCH))
    assert cost.forward_gflop(plan, PATCH) == pytest.approx(counted / 1e9, rel=1e-6)


def test_kept_activations_are_those_that_autograd_saves(
    plan: NetworkPlan,
) -> None:
    network = build_network(plan)
    network.deep_supervision = True
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.dim() == 5 and storage.data_ptr() not in parameters:  # no weights, no statistics
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(torch.randn(2, 1, *PATCH))
    assert len(outputs) == 2
    assert cost.kept_activations(plan, PATCH, 2) * 4 == pytest.approx(sum(saved.values()), rel=0.01)


def test_memory_grows_with_batch_patch_and_features(make_plan: Callable[..., NetworkPlan]) -> None:
    plan = make_plan()
    for memory in (cost.training_memory_gib, cost.inference_memory_gib):
        one = memory(plan, PATCH, 1)
        assert one < memory(plan, PATCH, 2) < memory(plan, (16, 16, 16), 2)
        assert one < memory(make_plan(features=(8, 16, 24)), PATCH, 1)
    large = (256, 256, 256)
    assert cost.inference_memory_gib(plan, large, 2) < cost.training_memory_gib(plan, large, 2) / 1.5


SMALL = (16, 32, 64, 128, 160), ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)), (48, 64, 80)
BASE = (32, 64, 128, 256, 320, 320), ((1, 1, 1), (1, 2, 2), *((2, 2, 2),) * 3, (1, 2, 2)), (48, 160, 256)


@pytest.mark.parametrize(("network", "taken_mib"), [(SMALL, 993), (BASE, 6735)])
def test_a_forward_pass_is_estimated_as_it_was_on_an_h200(
    network: tuple, taken_mib: int, make_plan: Callable[..., NetworkPlan]
) -> None:
    # Four windows of FLARE22's plans: benchmarks/results/gpu_step.md.
    features, strides, patch = network
    levels = len(features)
    plan = make_plan(
        output_channels=14,
        features=features,
        strides=strides,
        kernels=((3, 3, 3),) * levels,
        encoder_convs=(2,) * levels,
        decoder_convs=(2,) * (levels - 1),
    )
    assert cost.inference_memory_gib(plan, patch, 4) == pytest.approx(taken_mib / 1024, rel=0.05)
    on_cpu = cost.inference_memory_gib(plan, patch, 4, on_gpu=False)
    assert on_cpu < cost.inference_memory_gib(plan, patch, 4) - 0.3


def test_patch_that_the_strides_do_not_divide_is_refused(make_plan: Callable[..., NetworkPlan]) -> None:
    with pytest.raises(ValueError, match="divisible"):
        cost.forward_gflop(make_plan(), (8, 17, 16))
