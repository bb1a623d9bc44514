"""Cross-entropy of the hardest voxels alone, in place of that of all."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional

from flaresemi.labels import Members
from flaresemi.ranges import OpenShare, check_ranges
from flaresemi.training.losses import IGNORED, DeepSupervisionLoss, merge_unsupervised
from flaresemi.training.trainer import Trainer


class TopKLoss(nn.Module):
    """Mean cross-entropy of the voxels that are farthest off.

    Args:
        share: Of the voxels of a patch.
        organs: The label indices of each organ, where organs are regions.
    """

    def __init__(self, share: float, organs: Members | None = None) -> None:
        super().__init__()
        self.share = share
        self.organs = organs

    def forward(
        self, logits_bczyx: torch.Tensor, target_bzyx: torch.Tensor, supervised_bc: torch.Tensor
    ) -> torch.Tensor:
        """A loss per sample; what a sample cannot tell apart, since it does not annotate all organs, is one."""
        logits, target = merge_unsupervised(logits_bczyx.float(), target_bzyx, supervised_bc, self.organs)
        losses = functional.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED).flatten(1)
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
        return DeepSupervisionLoss(TopKLoss(self.settings.share, self.task.labels.regions))
