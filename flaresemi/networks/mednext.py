"""A U-Net of ConvNeXt blocks, after MedNeXt: depthwise convolutions and wide pointwise ones."""

from torch import Tensor, nn

from flaresemi.errors import ConfigError
from flaresemi.geometry import IntTriple
from flaresemi.plans import NetworkPlan


class MedNeXtBlock(nn.Module):
    """Depthwise convolution, norm, widening, GELU, narrowing, and a shortcut about all of it.

    Where features or sampling change, the shortcut is a 1×1×1 convolution of the same stride.

    Args:
        inputs: Features that come in.
        outputs: Features that go out.
        kernel: Of the depthwise convolution.
        stride: Of the depthwise convolution.
        expansion: Features between the pointwise convolutions, relative to `inputs`.
        up: The stride enlarges.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: IntTriple,
        stride: IntTriple = (1, 1, 1),
        *,
        expansion: int,
        up: bool = False,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        strides = stride != (1, 1, 1)
        self.shortcut: nn.Module = nn.Identity()
        if up:
            # So much padding at the far end that every axis is exactly `stride` times as long.
            output_padding = (stride[0] - 1, stride[1] - 1, stride[2] - 1)
            self.depthwise: nn.Module = nn.ConvTranspose3d(
                inputs, inputs, kernel, stride, padding, output_padding, groups=inputs
            )
            self.shortcut = nn.ConvTranspose3d(inputs, outputs, 1, stride, output_padding=output_padding)
        else:
            self.depthwise = nn.Conv3d(inputs, inputs, kernel, stride, padding, groups=inputs)
            if strides or inputs != outputs:
                self.shortcut = nn.Conv3d(inputs, outputs, 1, stride)
        self.norm = nn.GroupNorm(inputs, inputs)
        self.widen = nn.Conv3d(inputs, expansion * inputs, 1)
        self.activation = nn.GELU()
        self.narrow = nn.Conv3d(expansion * inputs, outputs, 1)

    def forward(self, features_bczyx: Tensor) -> Tensor:
        inner = self.norm(self.depthwise(features_bczyx))
        return self.narrow(self.activation(self.widen(inner))) + self.shortcut(features_bczyx)


class MedNeXt(nn.Module):
    """Encoder and decoder of MedNeXt blocks over the levels, kernels, strides and features of a network plan.

    `encoder_convs` and `decoder_convs` of the plan are numbers of blocks; `block` has no meaning here.

    Args:
        plan: The levels.
        expansion: Width of the blocks, at least 1.

    Attributes:
        deep_supervision: As in `UNet`.

    Raises:
        ConfigError: `expansion` is out of its range.

    Source: Roy et al., arXiv 2303.09975, without its residual kernels of 5 that grow from trained kernels of 3.
    """

    def __init__(self, plan: NetworkPlan, *, expansion: int = 2) -> None:
        if not 1 <= expansion <= 16:
            raise ConfigError(f"'expansion' of the network must be within 1..16, found {expansion}")
        super().__init__()
        self.deep_supervision = False
        features = plan.features
        levels = range(len(features))
        self.stem = nn.Conv3d(plan.input_channels, features[0], 1)
        self.down = nn.ModuleList(
            MedNeXtBlock(
                features[level - 1], features[level], plan.kernels[level], plan.strides[level], expansion=expansion
            )
            for level in levels[1:]
        )
        self.up = nn.ModuleList(
            MedNeXtBlock(
                features[level + 1],
                features[level],
                plan.kernels[level],
                plan.strides[level + 1],
                expansion=expansion,
                up=True,
            )
            for level in levels[:-1]
        )
        self.encoder = nn.ModuleList(
            _blocks(features[level], plan.kernels[level], plan.encoder_convs[level], expansion) for level in levels
        )
        self.decoder = nn.ModuleList(
            _blocks(features[level], plan.kernels[level], plan.decoder_convs[level], expansion) for level in levels[:-1]
        )
        self.heads = nn.ModuleList(nn.Conv3d(features[level], plan.output_channels, 1) for level in levels[:-1])

    def forward(self, image_bczyx: Tensor) -> Tensor | list[Tensor]:
        """Logits, as `UNet.forward` gives them."""
        features = self.stem(image_bczyx)
        skips = []
        for level, blocks in enumerate(self.encoder):
            features = blocks(self.down[level - 1](features) if level else features)
            skips.append(features)
        skips.pop()
        logits: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            features = self.decoder[level](self.up[level](features) + skips.pop())
            if self.deep_supervision or level == 0:
                logits.insert(0, self.heads[level](features))
        return logits if self.deep_supervision else logits[0]


def _blocks(features: int, kernel: IntTriple, count: int, expansion: int) -> nn.Sequential:
    return nn.Sequential(*(MedNeXtBlock(features, features, kernel, expansion=expansion) for _ in range(count)))
