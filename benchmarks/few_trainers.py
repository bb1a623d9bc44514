"""Trainers that benchmarks/few.py compares with the default one: how much organs of different sizes count."""

from torch import nn

from flaresemi.training.losses import DeepSupervisionLoss, SegmentationLoss
from flaresemi.training.trainer import Trainer


class MeanOfVoxels(Trainer):
    """Cross-entropy is the plain mean over all voxels, as nnU-Net has it."""

    size_power = 1.0

    def build_loss(self) -> nn.Module:
        return DeepSupervisionLoss(SegmentationLoss(self.task.labels.regions, size_power=self.size_power))


class RootOfVoxels(MeanOfVoxels):
    """Background and each organ of the patch count with the root of their voxels."""

    size_power = 0.5
