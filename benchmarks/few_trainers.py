"""Trainers that benchmarks/few.py compares with the default one."""

from torch import nn

from flaresemi.training.losses import DeepSupervisionLoss, SegmentationLoss
from flaresemi.training.trainer import Trainer


class MeanOfVoxels(Trainer):
    """Cross-entropy is the plain mean over all voxels, as nnU-Net has it."""

    def build_loss(self) -> nn.Module:
        return DeepSupervisionLoss(SegmentationLoss(self.task.labels.regions, size_power=1.0))


class RootOfVoxels(Trainer):
    """In cross-entropy, background and each organ of the patch count with the root of their voxels."""

    def build_loss(self) -> nn.Module:
        return DeepSupervisionLoss(SegmentationLoss(self.task.labels.regions, size_power=0.5))


class OrgansAlike(Trainer):
    """In cross-entropy, background and each organ of the patch count alike, whatever their size."""

    def build_loss(self) -> nn.Module:
        return DeepSupervisionLoss(SegmentationLoss(self.task.labels.regions, size_power=0.0))
