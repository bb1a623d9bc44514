"""Dice and cross-entropy that know which organs a case supervises, and which voxels nobody has labeled."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

from flaresemi.labels import Members

#: Label index of a voxel that has no label: it is part of no loss.
IGNORED = -1

#: From this many organs on, background and each organ count in cross-entropy with the root of their voxels: small ones
#: are found after fewer steps, and fewer are never found. With two or three it gained nothing. See docs/few_labels.md.
MANY_ORGANS = 5

#: With more outputs the loss is computed part by part. Chosen: up to here all at once takes little.
MANY_OUTPUTS = 64

#: Logits of a part, in bytes as float32. Chosen: few parts, and little memory beside the gradient.
PART_BYTES = 16 << 20


def usual_size_power(organs: int) -> float:
    """The `size_power` of a training with so many organs."""
    return 0.5 if organs >= MANY_ORGANS else 1.0


class SegmentationLoss(nn.Module):
    """Cross-entropy plus Dice, averaged per sample, then over the batch.

    Cross-entropy is of the indices of the label map, Dice of the organs. The probability of an organ that is a region,
    a union of indices, is the sum of theirs.

    What a case cannot tell apart, since it does not supervise all organs, is merged before both terms: indices that
    belong to the same supervised organs add their probabilities, those that belong to none are background. Organs that
    are not supervised get no Dice term: the network may find them or not. Dice is averaged over the supervised organs
    that are present in the patch; an absent one is left to the cross-entropy (a Dice of an empty reference is 0 or 1 by
    rounding).

    Voxels whose label index is `IGNORED` are part of neither term; a sample of such voxels alone has loss 0.

    Because each sample's loss is a mean of its own, the mean over several processes is that of one process on the
    same global batch.

    Args:
        organs: The indices of each organ; None: organ c is index c.
        dice_weight: Of the Dice term, against 1 for cross-entropy.
        size_power: Cross-entropy is the mean of each index's mean over its voxels in the patch, weighted with this
            power of their number. 1: the plain mean over all voxels, as nnU-Net has it; 0: all indices alike.
    """

    def __init__(self, organs: Members | None = None, dice_weight: float = 1.0, size_power: float = 1.0) -> None:
        super().__init__()
        self.organs = organs
        self.dice_weight = dice_weight
        self.size_power = size_power

    def forward(
        self, logits_bczyx: torch.Tensor, target_bzyx: torch.Tensor, supervised_bc: torch.Tensor
    ) -> torch.Tensor:
        """Loss per sample, shape (B,).

        Args:
            logits_bczyx: Of background and every other index, any floating type.
            target_bzyx: Internal label indices, or `IGNORED`; int64.
            supervised_bc: True where organ c is annotated in the sample; background (c = 0) always is.
        """
        if logits_bczyx.shape[1] > MANY_OUTPUTS:
            return self._in_parts(logits_bczyx, target_bzyx, supervised_bc)
        logits = logits_bczyx.float()
        known = None
        if bool((target_bzyx == IGNORED).any()):
            known = (target_bzyx != IGNORED).to(logits.dtype)
            target_bzyx = target_bzyx.clamp_min(0)
        if not bool(supervised_bc.all()):
            logits, target_bzyx = merge_unsupervised(logits, target_bzyx, supervised_bc, self.organs)
        log_probabilities = functional.log_softmax(logits, dim=1)
        log_target = log_probabilities.gather(1, target_bzyx[:, None])[:, 0]
        return self._loss(*self._sums(log_probabilities, log_target, target_bzyx, known), supervised_bc)

    def _in_parts(
        self, logits_bczyx: torch.Tensor, target_bzyx: torch.Tensor, supervised_bc: torch.Tensor
    ) -> torch.Tensor:
        """The same from sums over parts of the patch, each computed once more for the gradient.

        So nothing of the size of the logits is made but their gradient. Sums are rounded otherwise than all at once.
        """
        plain = self.organs is None and bool(supervised_bc.all())
        sums = _SumsOverParts.apply(self._part, plain, logits_bczyx, target_bzyx, supervised_bc)
        channels, organs = logits_bczyx.shape[1], supervised_bc.shape[1] - 1
        parts = sums.split((channels, channels, organs, organs, organs), dim=1)
        return self._loss(parts[0], parts[1], parts[2], parts[3], parts[4], supervised_bc)

    def _part(self, logits_bczyx: torch.Tensor, target_bzyx: torch.Tensor, supervised_bc: torch.Tensor) -> torch.Tensor:
        """What the loss needs of a part of the patch, (B, 2 × indices + 3 × organs): it adds up over the parts."""
        logits, known = logits_bczyx.float(), (target_bzyx != IGNORED).float()
        target_bzyx = target_bzyx.clamp_min(0)
        if not bool(supervised_bc.all()):
            logits, target_bzyx = merge_unsupervised(logits, target_bzyx, supervised_bc, self.organs)
        log_probabilities = functional.log_softmax(logits, dim=1)
        log_target = log_probabilities.gather(1, target_bzyx[:, None])[:, 0]
        return torch.cat(self._sums(log_probabilities, log_target, target_bzyx, known), dim=1)

    def _loss(
        self,
        surprise: torch.Tensor,
        voxels: torch.Tensor,
        overlap: torch.Tensor,
        predicted: torch.Tensor,
        size: torch.Tensor,
        supervised_bc: torch.Tensor,
    ) -> torch.Tensor:
        """Per sample, from what `_sums` gives."""
        weights = voxels**self.size_power * (voxels > 0)
        cross_entropy = (weights * surprise / voxels.clamp_min(1)).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
        return cross_entropy + self.dice_weight * _dice_loss(overlap, predicted, size, supervised_bc)

    def _sums(
        self,
        log_probabilities: torch.Tensor,
        log_target: torch.Tensor,
        target_bzyx: torch.Tensor,
        known_bzyx: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each index, (B, indices): the cross-entropy of its voxels, summed, and their number; of each organ,
        (B, organs): the probability inside it, all its probability, and its voxels.
        """
        batch, channels = log_probabilities.shape[:2]
        target, log = target_bzyx.flatten(1), log_target.flatten(1)
        nothing = log_target.new_zeros(batch, channels)
        found, ones = log.exp(), torch.ones_like(log)
        probabilities = log_probabilities[:, 1:].exp()
        if known_bzyx is not None:
            ones = known_bzyx.flatten(1)
            found, probabilities = found * ones, probabilities * known_bzyx[:, None]
        surprise = nothing.scatter_add(1, target, -log * ones)
        voxels = nothing.scatter_add(1, target, ones)
        overlap, size = nothing.scatter_add(1, target, found)[:, 1:], voxels[:, 1:]
        predicted = probabilities.sum(dim=(2, 3, 4))
        if self.organs is not None:
            overlap = _overlaps(probabilities, target_bzyx, overlap, self.organs)
            size, predicted = (_per_organ(each, self.organs) for each in (size, predicted))
        return surprise, voxels, overlap, predicted, size


def _dice_loss(
    overlap: torch.Tensor, predicted: torch.Tensor, size: torch.Tensor, supervised_bc: torch.Tensor
) -> torch.Tensor:
    """1 - Dice, mean over the supervised organs that are present; per sample."""
    present = (size > 0) & supervised_bc[:, 1:]
    dice = 2 * overlap / (predicted + size).clamp_min(1e-5)
    return ((1 - dice) * present).sum(dim=1) / present.sum(dim=1).clamp_min(1)


#: Sums over the voxels of a part: of its logits, its target, and the supervised organs.
_Part = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class _SumsOverParts(torch.autograd.Function):
    """The sum of a function of logits over parts of the patch, in the memory of a part and, later, of the gradient."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        part: _Part,
        plain: bool,
        logits_bczyx: torch.Tensor,
        target_bzyx: torch.Tensor,
        supervised_bc: torch.Tensor,
    ) -> torch.Tensor:
        ctx.part, ctx.plain = part, plain  # type: ignore[attr-defined]
        ctx.save_for_backward(logits_bczyx, target_bzyx, supervised_bc)
        total: torch.Tensor | None = None
        for planes in _parts(logits_bczyx):
            sums = part(logits_bczyx[:, :, planes], target_bzyx[:, planes], supervised_bc)
            total = sums if total is None else total.add_(sums)
        if total is None:
            raise ValueError(f"a patch of shape {tuple(logits_bczyx.shape)} has no planes")
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[None, None, torch.Tensor, None, None]:
        logits, target, supervised = ctx.saved_tensors  # type: ignore[attr-defined]
        result = torch.empty_like(logits)
        for planes in _parts(logits):
            if ctx.plain:  # type: ignore[attr-defined]
                result[:, :, planes] = _slope(logits[:, :, planes], target[:, planes], gradient)
                continue
            with torch.enable_grad():
                own = logits[:, :, planes].detach().requires_grad_()
                sums = ctx.part(own, target[:, planes], supervised)  # type: ignore[attr-defined]
            (result[:, :, planes],) = torch.autograd.grad(sums, own, gradient)
        return None, None, result, None, None


def _slope(logits_bczyx: torch.Tensor, target_bzyx: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """By the logits of a part, where organ c is index c and all are supervised: in half the time that autograd takes.

    Args:
        logits_bczyx: Of the part.
        target_bzyx: Of the part.
        gradient: By its sums, as `SegmentationLoss._part` gives them.
    """
    known, index = (target_bzyx != IGNORED).float(), target_bzyx.clamp_min(0)[:, None]
    channels, organs = logits_bczyx.shape[1], logits_bczyx.shape[1] - 1
    by_surprise, _, by_overlap, by_predicted, _ = gradient.split((channels, channels, organs, organs, organs), dim=1)
    by_overlap, by_predicted = (functional.pad(each, (1, 0)) for each in (by_overlap, by_predicted))  # background: 0
    probabilities = functional.softmax(logits_bczyx.float(), dim=1)
    own = index.flatten(1)
    by_own = by_overlap.gather(1, own).view_as(known) * probabilities.gather(1, index)[:, 0]
    up = (by_own - by_surprise.gather(1, own).view_as(known)) * known
    mean = (by_predicted[:, None] @ probabilities.flatten(2)).view_as(known) * known
    result = probabilities * by_predicted[:, :, None, None, None]
    result *= known[:, None]
    result.addcmul_(probabilities, (mean + up)[:, None], value=-1)
    return result.scatter_add_(1, index, up[:, None])


def _parts(logits_bczyx: torch.Tensor) -> Iterator[slice]:
    """Some planes each."""
    depth = logits_bczyx.shape[2]
    count = max(1, PART_BYTES * depth // (4 * max(logits_bczyx.numel(), 1)))
    return (slice(start, start + count) for start in range(0, depth, count))


def _per_organ(per_index_bc: torch.Tensor, organs: Members) -> torch.Tensor:
    """Sums over the indices of each organ, (B, organs), of numbers per index without background."""
    return torch.stack([per_index_bc[:, [index - 1 for index in indices]].sum(dim=1) for indices in organs], dim=1)


def _overlaps(
    probabilities_bczyx: torch.Tensor, target_bzyx: torch.Tensor, overlap_bc: torch.Tensor, organs: Members
) -> torch.Tensor:
    """The probability of each organ inside it, summed, (B, organs).

    Args:
        probabilities_bczyx: Without background.
        target_bzyx: Label indices.
        overlap_bc: The same of each index, which is that of an organ of one index.
    """
    overlaps = []
    for indices in organs:
        if len(indices) == 1:
            overlaps.append(overlap_bc[:, indices[0] - 1])
            continue
        inside = torch.isin(target_bzyx, torch.tensor(indices, device=target_bzyx.device))
        probability = sum(probabilities_bczyx[:, index - 1] for index in indices)
        overlaps.append((probability * inside).sum(dim=(1, 2, 3)))
    return torch.stack(overlaps, dim=1)


def merge_unsupervised(
    logits_bczyx: torch.Tensor,
    target_bzyx: torch.Tensor,
    supervised_bc: torch.Tensor,
    organs: Members | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges what the samples cannot tell apart: probabilities (logsumexp of logits) and voxels.

    Of the indices that belong to the same supervised organs, the lowest one gets all; background gets those that belong
    to none. Without regions that means: organs that are not supervised become background.

    Args:
        logits_bczyx: Of background and every other index.
        target_bzyx: Label indices; `IGNORED` stays.
        supervised_bc: True where organ c is annotated in the sample.
        organs: The indices of each organ; None: organ c is index c.

    Returns:
        Logits and target of the same shapes; indices that gave their probability away have a logit of next to nothing.
    """
    heir = _heirs(supervised_bc, logits_bczyx.shape[1], organs)
    own = torch.arange(heir.shape[1], device=heir.device)
    lowest = torch.finfo(logits_bczyx.dtype).min / 4
    merged = logits_bczyx.masked_fill((heir != own)[:, :, None, None, None], lowest)
    for index in heir[heir != own].unique().tolist():
        others = (heir != index)[:, :, None, None, None]
        together = torch.logsumexp(logits_bczyx.masked_fill(others, lowest), dim=1)
        merged = torch.cat([merged[:, :index], together[:, None], merged[:, index + 1 :]], dim=1)
    target = heir.gather(1, target_bzyx.clamp_min(0).flatten(1)).view_as(target_bzyx)
    return merged, target.masked_fill(target_bzyx == IGNORED, IGNORED)


def _heirs(supervised_bc: torch.Tensor, channels: int, organs: Members | None) -> torch.Tensor:
    """For each index, the lowest one that belongs to the same supervised organs, (B, channels) int64."""
    if organs is None:
        return torch.arange(channels, device=supervised_bc.device) * supervised_bc
    belongs = supervised_bc.new_zeros(len(organs), channels)
    for organ, indices in enumerate(organs):
        belongs[organ, list(indices)] = True
    known = (belongs * supervised_bc[:, 1:, None]).float()  # (B, organs, channels)
    shared, count = known.transpose(1, 2) @ known, known.sum(dim=1)
    alike = (shared == count[:, :, None]) & (shared == count[:, None, :])
    return alike.float().argmax(dim=2)  # the first of the largest


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
