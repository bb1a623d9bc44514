"""The network families that a user can ask for."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from flaresemi.plans import NetworkArgument

PresetName = Literal["small", "base", "large", "resenc_m", "mednext"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A network family and the memory budget that it is designed for.

    Attributes:
        block: Encoder blocks.
        features: Of FINE, from full resolution down; as many are used as the patch has levels.
        coarse_features: Of COARSE, whose blocks are always plain.
        encoder_convs: Convolutions (plain) or blocks (residual) per level.
        decoder_convs: Convolutions per decoder level.
        memory_gib: GPU memory that training may take when the user names none.
        architecture: Who builds FINE's network from its plan, see `NetworkPlan`. COARSE is a U-Net always.
        arguments: Of that builder.
        voxels_per_step: Voxels of patch times batch in one training step, at that memory; None: as many as fit.
    """

    block: Literal["plain", "residual"]
    features: tuple[int, ...]
    coarse_features: tuple[int, ...]
    encoder_convs: tuple[int, ...]
    decoder_convs: int
    memory_gib: float
    voxels_per_step: int | None = None
    architecture: str = "unet"
    arguments: Mapping[str, NetworkArgument] = dataclasses.field(default_factory=dict)


#: Source: `base` has the features and depth of nnU-Net's default network; `large` and `resenc_m` have the blocks of its
#: ResEnc-L and -M, which differ in the memory that they are made for (arXiv 2404.09556); `mednext` those of MedNeXt-S
#: (arXiv 2303.09975). `small` is chosen: half a million voxels train in about half a second on two CPU cores with bf16
#: (benchmarks/network_step.py).
PRESETS: dict[PresetName, Preset] = {
    "small": Preset(
        block="plain",
        features=(16, 32, 64, 128, 160),
        coarse_features=(8, 16, 32, 64, 80),
        encoder_convs=(2, 2, 2, 2, 2),
        decoder_convs=2,
        memory_gib=1.0,
        voxels_per_step=2**19,
    ),
    "base": Preset(
        block="plain",
        features=(32, 64, 128, 256, 320, 320),
        coarse_features=(16, 32, 64, 128, 160),
        encoder_convs=(2, 2, 2, 2, 2, 2),
        decoder_convs=2,
        memory_gib=8.0,
    ),
    "large": Preset(
        block="residual",
        features=(32, 64, 128, 256, 320, 320),
        coarse_features=(16, 32, 64, 128, 160),
        encoder_convs=(1, 3, 4, 6, 6, 6),
        decoder_convs=1,
        memory_gib=24.0,
    ),
    "mednext": Preset(
        block="plain",
        features=(32, 64, 128, 256, 512),
        coarse_features=(16, 32, 64, 128, 160),
        encoder_convs=(2, 2, 2, 2, 2),
        decoder_convs=2,
        memory_gib=16.0,
        architecture="mednext",
        arguments={"expansion": 2},
    ),
}
PRESETS["resenc_m"] = dataclasses.replace(PRESETS["large"], memory_gib=9.0)
