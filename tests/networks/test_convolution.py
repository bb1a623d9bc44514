"""Gradients of a network in bf16 on a CPU are those of fp32 up to rounding, also in layers deeper than their input."""

import pytest
import torch
from torch import nn

from flaresemi.compute.precision import Precision
from flaresemi.networks.convolution import Convolution

CPU = torch.device("cpu")


def gradients(layer: nn.Conv3d, image: torch.Tensor, precision: Precision) -> list[torch.Tensor]:
    """By the weights and the image."""
    leaf = image.clone().requires_grad_()
    spoilt = [torch.full((size,), torch.nan) for size in (1000, 10_000, 100_000, 1_000_000, 3_000_000)]
    del spoilt  # memory that the layer may get holds NaN now
    with precision.autocast():
        output = layer(leaf)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad((output.float() * upstream).sum(), [layer.weight, leaf]))


@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize(
    ("kernel", "planes", "stride"),
    [(3, 2, (1, 1, 1)), (3, 2, (1, 2, 2)), (3, 1, (1, 1, 1)), (3, 3, (1, 1, 1)), (5, 4, (1, 1, 1)), (5, 4, (2, 2, 2))],
)
def test_gradients_in_bf16(kernel: int, planes: int, stride: tuple[int, int, int], groups: int) -> None:
    torch.manual_seed(0)
    layer = Convolution(32, 32, kernel, stride, kernel // 2, groups=groups, bias=False)
    image = torch.randn(2, 32, planes, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    exact = gradients(layer, image, Precision(CPU, "fp32"))
    for _ in range(3):
        for mine, theirs in zip(gradients(layer, image, Precision(CPU, "bf16")), exact, strict=True):
            assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_only_what_is_wrong_is_computed_otherwise() -> None:
    layer = Convolution(4, 4, 3, padding=1)
    with Precision(CPU, "bf16").autocast():
        assert layer(torch.zeros(1, 4, 2, 4, 4)).dtype == layer(torch.zeros(1, 4, 3, 4, 4)).dtype == torch.bfloat16
        assert layer._is_affected(torch.zeros(1, 4, 2, 4, 4))
        assert not layer._is_affected(torch.zeros(1, 4, 3, 4, 4))  # as many planes as the kernel
        assert not layer._is_affected(torch.zeros(1, 4, 1, 4, 4))  # one plane comes out
        with torch.no_grad():
            assert not layer._is_affected(torch.zeros(1, 4, 2, 4, 4))
    assert not layer._is_affected(torch.zeros(1, 4, 2, 4, 4))
