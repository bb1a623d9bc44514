"""The memory format in which a network is trained on a GPU."""

import logging

import torch
from torch import Tensor, nn

from flaresemi.compute.precision import Precision
from flaresemi.networks.blocks import ConvNorm, channels_last

logger = logging.getLogger(__name__)

#: Largest relative difference between the formats that counts as rounding. Four layers without activations differ by a
#: few hundredths when every one rounds to bf16 otherwise; a wrong kernel is off by about 1.
ROUNDING = 0.1


def trains_channels_last(device: torch.device, precision: Precision) -> bool:
    """Whether a training on this GPU should compute in the channels-last format: in bf16, where its numbers are right.

    A training step of a large network is about four times as fast in it, and a forward pass of several windows slower.
    In fp16 and fp32 only a small network has been compared, whose steps take as long in either.

    Source: measured, benchmarks/results/gpu_step.md.
    """
    if device.type != "cuda" or precision.name != "bf16":
        return False
    try:
        if agrees(device, precision):
            logger.info("training in the channels-last memory format")
            return True
        reason = "its numbers are not those of the contiguous one"
    except RuntimeError as problem:  # a kernel that is not there
        reason = str(problem).strip().splitlines()[0]
    logger.warning("training in the contiguous memory format, since in the channels-last one, on this GPU: %s", reason)
    return False


def agrees(device: torch.device, precision: Precision) -> bool:
    """Whether the layers of a network give the same results and gradients in both formats, for batches of one and two.

    Kernels differ by format, and not all that torch has had were right (see `blocks.InstanceNorm`).

    Raises:
        RuntimeError: torch cannot compute a layer there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` would seed the GPUs, too
        # Without activations, which near zero make a large difference of a small one.
        layers = nn.Sequential(
            ConvNorm(1, 8, (1, 3, 3), activation=False),
            ConvNorm(8, 16, (3, 3, 3), (2, 2, 2), activation=False),
            nn.ConvTranspose3d(16, 8, (2, 2, 2), (2, 2, 2), bias=False),
            nn.Conv3d(8, 4, 1),
        ).to(device)
        for batch in (1, 2):
            image, upstream = torch.randn(batch, 1, 12, 16, 20), torch.randn(batch, 4, 12, 16, 20)
            pair = (image.to(device), upstream.to(device))
            contiguous, last = (_numbers(layers, *pair, precision, last=last) for last in (False, True))
            if not all((a - b).norm() <= ROUNDING * a.norm() for a, b in zip(contiguous, last, strict=True)):
                return False
    return True


def _numbers(layers: nn.Module, image: Tensor, upstream: Tensor, precision: Precision, *, last: bool) -> list[Tensor]:
    """The result, the gradient of the image, and those of all parameters."""
    leaf = image.clone().requires_grad_()
    with precision.autocast():
        output = layers(channels_last(leaf) if last else leaf)
    found = torch.autograd.grad((output.float() * upstream).sum(), [leaf, *layers.parameters()])
    return [each.float() for each in (output.detach(), *found)]
