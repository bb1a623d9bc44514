"""The memory layout in which a network is trained on a GPU."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from flaresemi.compute.precision import Precision
from flaresemi.networks.blocks import ConvStack, channels_last

logger = logging.getLogger(__name__)

#: Largest relative difference between the layouts that counts as rounding: some ulps of bf16. A wrong kernel is off by
#: about 1.
_ROUNDING = 0.05


def trains_channels_last(device: torch.device, precision: Precision) -> bool:
    """Whether a training on a GPU should compute in the channels-last layout: in half precision, where it is right.

    Backward, cuDNN's convolutions in half precision are several times slower in the contiguous layout. Forward alone
    they are not, and in fp32 the layouts have not been compared.

    Source: measured, benchmarks/results/gpu_step.md.
    """
    if device.type != "cuda" or precision.dtype is None:
        return False
    if agrees(device, precision):
        return True
    logger.warning(
        "torch %s computes other numbers in the channels-last layout on this GPU; training keeps to the contiguous one",
        torch.__version__,
    )
    return False


def agrees(device: torch.device, precision: Precision) -> bool:
    """Whether convolutions and norms give the same results and gradients in both layouts, for batches of one and two.

    Kernels differ by layout, and not all that torch has had were right (see `blocks.InstanceNorm`).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = ConvStack(4, 8, (3, 3, 3), (1, 1, 1), 2).to(device)
        for batch in (1, 2):
            image, upstream = torch.randn(batch, 4, 6, 8, 10), torch.randn(batch, 8, 6, 8, 10)
            pair = (image.to(device), upstream.to(device))
            contiguous, last = (_numbers(block, *pair, precision, last=last) for last in (False, True))
            if any((a - b).norm() > _ROUNDING * a.norm() for a, b in zip(contiguous, last, strict=True)):
                return False
    return True


def _numbers(
    block: ConvStack, image: Tensor, upstream: Tensor, precision: Precision, *, last: bool
) -> Iterator[Tensor]:
    """The result, the gradient of the image, and those of all parameters."""
    leaf = image.clone().requires_grad_()
    with precision.autocast():
        output = block(channels_last(leaf) if last else leaf)
    found = torch.autograd.grad((output.float() * upstream).sum(), [leaf, *block.parameters()])
    return (each.float() for each in (output.detach(), *found))
