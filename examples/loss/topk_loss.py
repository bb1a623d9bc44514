"""Cross-entropy of the hardest voxels alone, in place of that of all."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional

from flaresemi.ranges import OpenShare, check_ranges
from flaresemi.training.losses import DeepSupervisionLoss, merge_unsupervised
from flaresemi.training.trainer import Trainer


class TopKLoss(nn.Module):
    """Mean cross-entropy of the voxels that are farthest off.

    Args:
        share: Of the voxels of a patch.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(
        self, logits_bczyx: torch.Tensor, target_bzyx: torch.Tensor, supervised_bc: torch.Tensor
    ) -> torch.Tensor:
        """A loss per sample; an organ that a sample does not annotate counts as background there."""
        logits, target = merge_unsupervised(logits_bczyx.float(), target_bzyx, supervised_bc)
        losses = functional.cross_entropy(logits, target, reduction="none").flatten(1)
        return losses.topk(max(round(self.share * losses.shape[1]), 1), dim=1).values.mean(dim=1)


class TopKTrainer(Trainer):
    """A training with another loss."""

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        """What the user chooses: `--trainer-setting share=0.2`."""

        share: OpenShare = 0.1

        def __post_init__(self) -> None:
            check_ranges(self)

    def build_loss(self) -> nn.Module:
        return DeepSupervisionLoss(TopKLoss(self.settings.share))
