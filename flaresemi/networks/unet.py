"""The U-Net of a network plan."""

import torch
from torch import Tensor, nn

from flaresemi.networks.blocks import ConvNorm, ConvStack, ResidualStack, channels_last, initialize
from flaresemi.plans import NetworkPlan


class UNet(nn.Module):
    """A 3D U-Net with a plain or residual encoder, a plain decoder and a segmentation head on every decoder level.

    Attributes:
        deep_supervision: True: `forward` returns the logits of every decoder level, for training. False (the default):
            the full resolution only.
        channels_last: Whether a GPU computes in the channels-last format where gradients are wanted; a CPU always does.
            False (the default): only a CPU does.

    Args:
        plan: Level by level.
        upsampling_bias: Whether the transposed convolutions have a bias: those of nnU-Net's models do.

    Source: Çiçek et al., arXiv 1606.06650; strides in convolutions, transposed convolutions with kernel = stride,
    instance norm, leaky ReLU and deep supervision as in nnU-Net (Isensee et al., doi 10.1038/s41592-020-01008-z).
    """

    def __init__(self, plan: NetworkPlan, upsampling_bias: bool = False) -> None:
        super().__init__()
        self.deep_supervision = False
        self.channels_last = False
        self.divisor_zyx = plan.divisor_zyx
        stack = ConvStack if plan.block == "plain" else ResidualStack
        features = plan.input_channels
        if plan.block == "residual":
            self.stem: nn.Module = ConvNorm(features, plan.features[0], plan.kernels[0])
            features = plan.features[0]
        else:
            self.stem = nn.Identity()
        self.encoder = nn.ModuleList()
        for level, outputs in enumerate(plan.features):
            self.encoder.append(
                stack(features, outputs, plan.kernels[level], plan.strides[level], plan.encoder_convs[level])
            )
            features = outputs
        self.upsampling = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.heads = nn.ModuleList()
        for level in range(len(plan.features)):
            self._add_decoder_level(plan, level, upsampling_bias)
        initialize(self)

    def forward(self, image_bczyx: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image.

        Args:
            image_bczyx: (B, input channels, Z, Y, X); each size divisible by the plan's `divisor_zyx`.

        Returns:
            Logits (B, output channels, Z, Y, X), before softmax; with `deep_supervision` a list of them, full
            resolution first, one per decoder level.

        Raises:
            ValueError: a size is not divisible.
        """
        if any(size % divisor for size, divisor in zip(image_bczyx.shape[2:], self.divisor_zyx, strict=True)):
            raise ValueError(
                f"image of {tuple(image_bczyx.shape[2:])} voxels, expected multiples of {self.divisor_zyx}"
            )
        if image_bczyx.device.type == "cpu" or (self.channels_last and torch.is_grad_enabled()):
            image_bczyx = channels_last(image_bczyx)
        features = self.stem(image_bczyx)
        skips = []
        for stack in self.encoder:
            features = stack(features)
            skips.append(features)
        skips.pop()  # the lowest level leads up directly
        logits: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            upsampled = self.upsampling[level](features)
            # `pop`, so that prediction frees each skip once it has been used.
            features = self.decoder[level](torch.cat((upsampled, skips.pop()), dim=1))
            if self.deep_supervision or level == 0:
                logits.insert(0, self.heads[level](features))
        return logits if self.deep_supervision else logits[0]

    def _add_decoder_level(self, plan: NetworkPlan, level: int, upsampling_bias: bool) -> None:
        """Adds what leads from level + 1 up to `level`; the lowest level has nothing."""
        if level + 1 == len(plan.features):
            return
        outputs, below, stride = plan.features[level], plan.features[level + 1], plan.strides[level + 1]
        self.upsampling.append(nn.ConvTranspose3d(below, outputs, stride, stride, bias=upsampling_bias))
        self.decoder.append(ConvStack(2 * outputs, outputs, plan.kernels[level], (1, 1, 1), plan.decoder_convs[level]))
        self.heads.append(nn.Conv3d(outputs, plan.output_channels, 1))
