"""A convolution whose gradients are right on a CPU in bf16, too."""

import torch
from torch import Tensor, nn


class Convolution(nn.Conv3d):
    """`nn.Conv3d`, computed in fp32 where torch's gradient of its weights in bf16 is wrong on a CPU.

    Where the input has fewer planes than the kernel and the output has more than one, that gradient holds numbers that
    were in memory before: of any size, or NaN, and others each time (torch 2.13 on processors with AVX512-BF16). In a
    U-Net these are layers of two planes at the bottom, whose cost is next to nothing.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._is_affected(input):
            return super()._conv_forward(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            output = super()._conv_forward(input.float(), weight, bias)
        return output.to(torch.get_autocast_dtype("cpu"))

    def _is_affected(self, image_bczyx: Tensor) -> bool:
        planes, kernel = image_bczyx.shape[-3], self.dilation[0] * (self.kernel_size[0] - 1) + 1
        if image_bczyx.device.type != "cpu" or not torch.is_grad_enabled() or planes >= kernel:
            return False
        # All planes that a kernel starts at, with padding of any kind, but for the first.
        more_than_one = planes + 2 * self._reversed_padding_repeated_twice[-1] - kernel >= self.stride[0]
        return more_than_one and torch.is_autocast_enabled("cpu")
