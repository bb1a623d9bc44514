"""The norm is torch's instance norm in every memory format, and convolutions keep the one they are given."""

import pytest
import torch
from torch import nn

from flaresemi.compute.precision import Precision
from flaresemi.networks.blocks import ConvNorm, InstanceNorm, ResidualBlock, channels_last, initialize


def norms(channels: int) -> tuple[InstanceNorm, nn.InstanceNorm3d]:
    ours, reference = InstanceNorm(channels), nn.InstanceNorm3d(channels, affine=True)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2.0)
        ours.bias.normal_()
        reference.weight.copy_(ours.weight)
        reference.bias.copy_(ours.bias)
    return ours, reference


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("batch", [1, 3])
def test_norm_equals_torch_instance_norm_with_its_gradients(memory_format: torch.memory_format, batch: int) -> None:
    torch.manual_seed(0)
    ours, reference = norms(5)
    image = (torch.randn(batch, 5, 4, 6, 7) * 30 + 100).contiguous(memory_format=memory_format)
    upstream = torch.randn_like(image)
    results = []
    # torch's own gets the contiguous format: its gradient for a channels-last batch of one is wrong (torch 2.13).
    for norm, input_format in ((ours, memory_format), (reference, torch.contiguous_format)):
        leaf = image.clone(memory_format=input_format).requires_grad_()
        output = norm(leaf)
        output.backward(upstream.contiguous(memory_format=input_format))
        results.append((output, leaf.grad, norm.weight.grad, norm.bias.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert results[0][0].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_norm_in_bf16_has_fp32_statistics(memory_format: torch.memory_format) -> None:
    # 40³ voxels far from 0: statistics summed in bf16 would be off by far more than the rounding of the result.
    torch.manual_seed(0)
    ours, reference = norms(3)
    image = (torch.randn(2, 3, 40, 40, 40) + 5).bfloat16().contiguous(memory_format=memory_format)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(image)
    assert output.dtype == torch.bfloat16
    expected = reference(image.float())
    assert (output.float() - expected).abs().max() <= 2**-8 * expected.abs().max()


def test_norm_ignores_training_mode_and_other_samples() -> None:
    torch.manual_seed(0)
    ours, _ = norms(4)
    image = channels_last(torch.randn(2, 4, 5, 5, 5))
    together = ours.train()(image)
    alone = ours.eval()(image[1:])
    torch.testing.assert_close(together[1:], alone)


def test_norm_has_no_buffers() -> None:
    assert list(InstanceNorm(3).state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_holds_the_same_numbers_and_lasts_through_convolutions(channels: int, batch: int) -> None:
    image = torch.randn(batch, channels, 24, 32, 32)
    same = channels_last(image)
    assert torch.equal(same, image)
    precision = Precision(torch.device("cpu"))  # what this processor computes in
    if batch == 1 and precision.dtype is None:
        pytest.skip("in fp32 torch computes small convolutions of a batch of one by a kernel that leaves the format")
    with precision.autocast():
        output = ConvNorm(channels, 4, (3, 3, 3))(same)
    assert output.is_contiguous(memory_format=torch.channels_last_3d)
    assert not output.is_contiguous()


def test_residual_block_with_zero_body_is_its_shortcut() -> None:
    block = ResidualBlock(4, 4, (3, 3, 3), (1, 2, 2))
    last_norm = block.body[1][1]
    nn.init.zeros_(last_norm.weight)
    image = torch.rand(1, 4, 4, 6, 6)
    torch.testing.assert_close(block(image), nn.functional.avg_pool3d(image, (1, 2, 2)))


def test_initialization_keeps_the_scale_of_activations() -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(32, 32, 3, padding=1)
    initialize(conv)
    activated = nn.functional.leaky_relu(conv(torch.randn(1, 32, 12, 12, 12)), 0.01)
    assert conv.bias is not None and not conv.bias.any()
    assert 0.7 < activated[..., 2:-2, 2:-2, 2:-2].square().mean() < 1.4  # mean square 1 in, about 1 out
