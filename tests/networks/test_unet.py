"""The U-Net does what its plan says."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from flaresemi.compute.precision import Precision
from flaresemi.networks.building import build_network
from flaresemi.plans import NetworkPlan


def test_deep_supervision_gives_every_decoder_level_full_resolution_first(plan: NetworkPlan) -> None:
    network = build_network(plan)
    image = torch.randn(2, 1, 4, 16, 24)
    assert network.deep_supervision is False
    single = network(image)
    network.deep_supervision = True
    several = network(image)
    assert [tuple(level.shape) for level in several] == [(2, 3, 4, 16, 24), (2, 3, 4, 8, 12)]
    torch.testing.assert_close(several[0], single)


def test_every_parameter_learns_under_deep_supervision(plan: NetworkPlan) -> None:
    network = build_network(plan)
    network.deep_supervision = True
    sum(level.square().mean() for level in network(torch.randn(1, 1, 4, 16, 16))).backward()
    silent = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


def test_layout_of_the_input_does_not_matter(plan: NetworkPlan) -> None:
    network = build_network(plan)
    image = torch.randn(2, 1, 4, 16, 16)
    expected = network(image)
    torch.testing.assert_close(network(image.contiguous(memory_format=torch.channels_last_3d)), expected)
    strided = torch.randn(2, 1, 4, 16, 32)[..., ::2].copy_(image)
    torch.testing.assert_close(network(strided), expected)


def test_cpu_runs_channels_last_from_the_first_layer_on(make_plan: Callable[..., NetworkPlan]) -> None:
    # One convolution that falls back to the contiguous memory format slows down all that follow.
    network = build_network(make_plan())
    lost: list[str] = []

    def check(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if output.is_contiguous() or not output.is_contiguous(memory_format=torch.channels_last_3d):
            lost.append(type(module).__name__)

    for module in network.modules():
        # A head has nothing behind it. On one thread torch computes kernels of one voxel in the contiguous format.
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and module not in network.heads:
            module.register_forward_hook(check)
    with Precision(torch.device("cpu")).autocast():  # what this processor computes in
        network(torch.randn(2, 1, 16, 32, 32))
    assert lost == []


def test_bf16_autocast_agrees_with_fp32(plan: NetworkPlan) -> None:
    torch.manual_seed(0)
    network = build_network(plan)
    image = torch.randn(2, 1, 8, 16, 16)
    with torch.no_grad():
        exact = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(image)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_first_level_is_blind_across_slices_with_kernel_1_3_3(make_plan: Callable[..., NetworkPlan]) -> None:
    network = build_network(make_plan())
    assert network.encoder[0][0][0].kernel_size == (1, 3, 3)
    assert network.encoder[1][0][0].stride == (1, 2, 2)
    assert network.upsampling[0].kernel_size == network.upsampling[0].stride == (1, 2, 2)


def test_several_channels(make_plan: Callable[..., NetworkPlan]) -> None:
    network = build_network(make_plan(input_channels=3))
    assert network(torch.randn(1, 3, 4, 16, 16)).shape == (1, 3, 4, 16, 16)


def test_size_that_the_strides_do_not_divide_is_refused(make_plan: Callable[..., NetworkPlan]) -> None:
    with pytest.raises(ValueError, match=r"multiples of \(2, 4, 4\)"):
        build_network(make_plan())(torch.randn(1, 1, 4, 18, 16))


def test_same_seed_same_weights(plan: NetworkPlan) -> None:
    torch.manual_seed(5)
    one = build_network(plan).state_dict()
    torch.manual_seed(5)
    other = build_network(plan).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("block", ["plain", "residual"])
def test_network_can_fit_a_simple_target(make_plan: Callable[..., NetworkPlan], block: str) -> None:
    torch.manual_seed(0)
    network = build_network(make_plan(block, output_channels=2))
    image = torch.randn(1, 1, 4, 16, 16)
    target = (nn.functional.avg_pool3d(image, (1, 3, 3), 1, (0, 1, 1))[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(image), target)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
