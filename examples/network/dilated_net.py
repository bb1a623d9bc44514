"""Dilated convolutions at full resolution: a network that is no U-Net."""

from torch import Tensor, nn

from flaresemi.plans import NetworkPlan


class DilatedNet(nn.Module):
    """A chain of convolutions whose dilation doubles, and a head.

    Args:
        plan: Gives the channels; its levels say how often the dilation doubles.
        width: Features of every convolution.
    """

    def __init__(self, plan: NetworkPlan, *, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = plan.input_channels
        for level in range(len(plan.features)):
            dilation = 2**level
            layers += [
                nn.Conv3d(channels, width, 3, padding=dilation, dilation=dilation, bias=False),
                nn.InstanceNorm3d(width, affine=True),
                nn.LeakyReLU(0.01),
            ]
            channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv3d(width, plan.output_channels, 1)

    def forward(self, image_bczyx: Tensor) -> Tensor:
        return self.head(self.body(image_bczyx))
