"""Dice and cross-entropy that know which organs a case supervises, and which voxels nobody has labeled."""

import torch
from torch import nn
from torch.nn import functional

#: Label index of a voxel that has no label: it is part of no loss.
IGNORED = -1


class SegmentationLoss(nn.Module):
    """Cross-entropy plus Dice, averaged per sample, then over the batch.

    Organs that a case does not supervise have their probability added to background before both terms, and get no
    Dice term: the network may find them or not. Dice is averaged over the supervised organs that are present in the
    patch; an absent one is left to the cross-entropy (a Dice of an empty reference is 0 or 1 by rounding).

    Voxels whose label index is `IGNORED` are part of neither term; a sample of such voxels alone has loss 0.

    Because each sample's loss is a mean of its own, the mean over several processes is that of one process on the
    same global batch.

    Args:
        dice_weight: Of the Dice term, against 1 for cross-entropy.
    """

    def __init__(self, dice_weight: float = 1.0) -> None:
        super().__init__()
        self.dice_weight = dice_weight

    def forward(
        self, logits_bczyx: torch.Tensor, target_bzyx: torch.Tensor, supervised_bc: torch.Tensor
    ) -> torch.Tensor:
        """Loss per sample, shape (B,).

        Args:
            logits_bczyx: Background and every organ, any floating type.
            target_bzyx: Internal label indices, or `IGNORED`; int64.
            supervised_bc: True where organ c is annotated in the sample; background (c = 0) always is.
        """
        logits = logits_bczyx.float()
        known = None
        if bool((target_bzyx == IGNORED).any()):
            known = (target_bzyx != IGNORED).to(logits.dtype)
            target_bzyx = target_bzyx.clamp_min(0)
        if not bool(supervised_bc.all()):
            logits, target_bzyx = merge_unsupervised(logits, target_bzyx, supervised_bc)
        log_probabilities = functional.log_softmax(logits, dim=1)
        log_target = log_probabilities.gather(1, target_bzyx[:, None])[:, 0]
        if known is None:
            cross_entropy = -log_target.mean(dim=(1, 2, 3))
        else:
            cross_entropy = -(log_target * known).sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3)).clamp_min(1)
        return cross_entropy + self.dice_weight * self._dice_loss(log_probabilities, log_target, target_bzyx, known)

    def _dice_loss(
        self,
        log_probabilities: torch.Tensor,
        log_target: torch.Tensor,
        target_bzyx: torch.Tensor,
        known_bzyx: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, channels = log_probabilities.shape[:2]
        target = target_bzyx.flatten(1)
        hits = log_target.new_zeros(batch, channels)
        found, ones = log_target.exp().flatten(1), torch.ones_like(target, dtype=hits.dtype)
        predicted = log_probabilities[:, 1:].exp()
        if known_bzyx is not None:
            ones = known_bzyx.flatten(1)
            found, predicted = found * ones, predicted * known_bzyx[:, None]
        overlap = hits.scatter_add(1, target, found)[:, 1:]
        size = hits.scatter_add(1, target, ones)[:, 1:]
        predicted = predicted.sum(dim=(2, 3, 4))
        present = size > 0  # unsupervised organs were merged into background, so they are never present
        dice = 2 * overlap / (predicted + size).clamp_min(1e-5)
        return ((1 - dice) * present).sum(dim=1) / present.sum(dim=1).clamp_min(1)


def merge_unsupervised(
    logits_bczyx: torch.Tensor, target_bzyx: torch.Tensor, supervised_bc: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Moves the probability (logsumexp of logits) and the voxels of unsupervised organs to background."""
    supervised = supervised_bc.clone()
    supervised[:, 0] = True
    hidden = ~supervised[:, :, None, None, None]
    lowest = torch.finfo(logits_bczyx.dtype).min / 4
    outside = hidden.clone()
    outside[:, 0] = True
    background = torch.logsumexp(logits_bczyx.masked_fill(~outside, lowest), dim=1, keepdim=True)
    merged = torch.cat([background, logits_bczyx[:, 1:].masked_fill(hidden[:, 1:], lowest)], dim=1)
    keep = supervised.gather(1, target_bzyx.flatten(1)).view_as(target_bzyx)
    return merged, target_bzyx * keep


class DeepSupervisionLoss(nn.Module):
    """The same loss on every decoder level, halving in weight; targets are subsampled by the strides.

    The lowest of several levels gets weight 0: it is too coarse to teach anything, but stays part of the graph, as
    distributed training wants every parameter to take part. Source: nnU-Net.
    """

    def __init__(self, loss: SegmentationLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, outputs: list[torch.Tensor], target_bzyx: torch.Tensor, supervised_bc: torch.Tensor
    ) -> torch.Tensor:
        """Loss per sample, shape (B,): the weighted mean over the levels."""
        weights = [0.5**level for level in range(len(outputs))]
        if len(weights) > 1:
            weights[-1] = 0.0
        total = target_bzyx.new_zeros(len(target_bzyx), dtype=torch.float32)
        for weight, logits in zip(weights, outputs, strict=True):
            total = total + weight * self.loss(logits, subsample(target_bzyx, logits.shape[2:]), supervised_bc)
        return total / sum(weights)


def subsample(target_bzyx: torch.Tensor, shape_zyx: torch.Size) -> torch.Tensor:
    """Nearest-neighbor subsampling of a label map to a lower level's shape, at voxel centers."""
    if target_bzyx.shape[1:] == shape_zyx:
        return target_bzyx
    steps = [size // low for size, low in zip(target_bzyx.shape[1:], shape_zyx, strict=True)]
    z, y, x = (slice(step // 2, None, step) for step in steps)
    return target_bzyx[:, z, y, x]
