"""The pieces of a U-Net: instance norm that is fast in either memory format, convolution blocks, residual blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flaresemi.geometry import IntTriple

NEGATIVE_SLOPE = 0.01


class InstanceNorm(nn.Module):
    """Instance norm over (Z, Y, X), scale and shift per channel: the numbers of `nn.InstanceNorm3d(affine=True)`.

    Convolutions are often faster in the channels-last format, but torch's instance norm copies such a tensor to the
    contiguous one and back, which costs what was won (and, for a batch of one, returns a wrong gradient: torch
    2.13), and its group norm is far slower backward. Batch norm has a fast kernel for it, and batch norm of one sample
    at a time is instance norm.

    Source: Ulyanov et al., arXiv 1607.08022; the choice of kernels is measured in benchmarks/results/network_step.md on
    a CPU, in gpu_step.md on a GPU.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features_bczyx: Tensor) -> Tensor:
        if _is_channels_last(features_bczyx):
            samples = [self._normalize_one(sample) for sample in features_bczyx.split(1)]
            return samples[0] if len(samples) == 1 else torch.cat(samples)
        return F.instance_norm(features_bczyx.contiguous(), weight=self.weight, bias=self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"

    def _normalize_one(self, sample_1czyx: Tensor) -> Tensor:
        return F.batch_norm(sample_1czyx, None, None, self.weight, self.bias, training=True, momentum=0.0, eps=self.eps)


class ConvNorm(nn.Sequential):
    """Convolution (same size up to the stride), instance norm, and leaky ReLU unless `activation` is False.

    The convolution has no bias: the norm would take it out again.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: IntTriple, stride: IntTriple = (1, 1, 1), *, activation: bool = True
    ) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        layers = [nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False), InstanceNorm(outputs)]
        if activation:
            layers.append(_activation())
        super().__init__(*layers)


class ConvStack(nn.Sequential):
    """`count` times convolution, norm, activation; the first one strides and changes the number of features."""

    def __init__(self, inputs: int, outputs: int, kernel: IntTriple, stride: IntTriple, count: int) -> None:
        super().__init__(
            ConvNorm(inputs, outputs, kernel, stride), *(ConvNorm(outputs, outputs, kernel) for _ in range(count - 1))
        )


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut: mean pooling where the block strides, 1×1×1 convolution where features change.

    Source: He et al., arXiv 1512.03385; pooling in the shortcut: He et al., arXiv 1812.01187 (ResNet-D), the block of
    nnU-Net's residual encoder (arXiv 2404.09556).
    """

    def __init__(self, inputs: int, outputs: int, kernel: IntTriple, stride: IntTriple = (1, 1, 1)) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(inputs, outputs, kernel, stride), ConvNorm(outputs, outputs, kernel, activation=False)
        )
        shortcut: list[nn.Module] = []
        if stride != (1, 1, 1):
            shortcut.append(nn.AvgPool3d(stride, stride))
        if inputs != outputs:
            shortcut.append(ConvNorm(inputs, outputs, (1, 1, 1), activation=False))
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = _activation()

    def forward(self, features_bczyx: Tensor) -> Tensor:
        return self.activation(self.body(features_bczyx) + self.shortcut(features_bczyx))


class ResidualStack(nn.Sequential):
    """`count` residual blocks; the first one strides and changes the number of features."""

    def __init__(self, inputs: int, outputs: int, kernel: IntTriple, stride: IntTriple, count: int) -> None:
        super().__init__(
            ResidualBlock(inputs, outputs, kernel, stride),
            *(ResidualBlock(outputs, outputs, kernel) for _ in range(count - 1)),
        )


def channels_last(image_bczyx: Tensor) -> Tensor:
    """The same numbers in the channels-last memory format, which the layers that follow then keep.

    A single channel lies in memory the same way in both formats. torch calls it contiguous and would go on that way,
    so it gets the strides that tell it otherwise.
    """
    if image_bczyx.shape[1] > 1:
        if torch.onnx.is_in_onnx_export():  # ONNX knows no memory formats
            return image_bczyx
        return image_bczyx.contiguous(memory_format=torch.channels_last_3d)
    batch, _, z, y, x = image_bczyx.shape
    return image_bczyx.reshape(batch, z, y, x, 1).permute(0, 4, 1, 2, 3)


def initialize(module: nn.Module) -> None:
    """He initialization for leaky ReLU of every convolution below `module`, in place; biases become 0.

    Source: He et al., arXiv 1502.01852.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(part.weight, a=NEGATIVE_SLOPE)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _activation() -> nn.Module:
    # In place: what it overwrites, the norm's output, is needed by no backward pass.
    return nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last_3d) and not tensor.is_contiguous()
