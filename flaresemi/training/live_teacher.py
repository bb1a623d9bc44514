"""Training with a live teacher: the averaged weights label the unlabeled patches of every step anew."""

import dataclasses
import logging
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import nn

from flaresemi.errors import ConfigError
from flaresemi.ranges import Range, Share, check_ranges
from flaresemi.training.augmentation import SecondView
from flaresemi.training.losses import IGNORED, merge_unsupervised
from flaresemi.training.pasting import random_box
from flaresemi.training.patches import Batch
from flaresemi.training.sampling import LabeledAndUnlabeled, Samples
from flaresemi.training.semi_supervised import SemiSupervisedTrainer
from flaresemi.training.trainer import Trainer

logger = logging.getLogger(__name__)

#: Added to the seed of what is drawn of pseudo-labeled cases, and of the boxes.
_PSEUDO, _BOXES = 1_000_003, 2_000_003


class LiveTeacherTrainer(SemiSupervisedTrainer):
    """Half of the samples of a step are labeled, half pseudo-labeled, and each of them gets a box of the other.

    What a voxel of a pseudo-labeled case teaches is decided anew in every step: what the averaged network says of a
    view of the patch that is changed in its geometry alone, where it is sure; what both it and the pseudo-label on
    disk say, where it is not; nothing, where they differ then. The network learns it from a view whose intensities
    are changed strongly. So the labels grow better while it trains, and a weak start, which is sure of little, falls
    back to what was selected.

    Source: the averaged teacher after Tarvainen and Valpola, arXiv 1703.01780; strong views of what is sure after Sohn
    et al., arXiv 2001.07685, and Yang et al., arXiv 2208.09910; boxes in both directions after Bai et al., arXiv
    2305.00673.
    """

    device_augmentation: ClassVar[bool] = True

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        """What the user chooses.

        Attributes:
            confidence: The teacher is sure of a voxel from this probability on.
            waits: Part of the training, at its beginning, in which the labels on disk alone teach, since the averaged
                weights are not yet better than those that made them.
        """

        confidence: Annotated[float, Range(0.5, 1)] = 0.9
        waits: Share = 0.2

        def __post_init__(self) -> None:
            check_ranges(self)

    def build_sampler(self) -> Samples:
        """Labeled and pseudo-labeled patches in every step, in the ratio of `pseudo_share`."""
        if self.semi.mixing.fine_tune:
            raise ConfigError("a live teacher teaches to the end", fix="leave --fine-tune out")
        cases = self.training_cases()
        labeled = Trainer.case_sampler(self, [case for case in cases if not case.is_pseudo])
        views = [
            dataclasses.replace(case, augmentation="geometric" if case.augmentation != "none" else "none")
            for case in cases
            if case.is_pseudo
        ]
        if not views:
            raise ConfigError(
                "a live teacher labels pseudo-labeled cases, and every selected case is one that a person corrected",
                fix="--trainer default",
            )
        strength = self.semi.mixing.pseudo_augmentation
        pseudo = Trainer.case_sampler(
            self,
            views,
            second_view=None if strength == "none" else SecondView(strength),
            seed=self.config.seed + _PSEUDO,
        )
        self._counts = self._divided(self.batch_size)
        if self.ranks.is_main:
            self._tell_other_share()
        return LabeledAndUnlabeled(labeled, pseudo, *self._counts)

    def _divided(self, batch_size: int) -> tuple[int, int]:
        """How many samples of a batch are labeled and pseudo-labeled: at least one of each."""
        of_pseudo = min(max(round(batch_size * self.semi.mixing.pseudo_share), 1), max(batch_size - 1, 1))
        return max(batch_size - of_pseudo, 1), of_pseudo

    def _tell_other_share(self) -> None:
        """Warns where the processes, each for itself, do not draw in the ratio in which one alone would."""
        processes = self.ranks.world_size
        (labeled, pseudo), (labeled_alone, pseudo_alone) = self._counts, self._divided(self.batch_size * processes)
        if pseudo * labeled_alone != pseudo_alone * labeled:
            logger.warning(
                "each of %d processes draws %d of %d samples from pseudo-labeled cases; one alone would draw %d of %d",
                processes,
                pseudo,
                labeled + pseudo,
                pseudo_alone,
                labeled_alone + pseudo_alone,
            )

    @property
    def samples_per_step(self) -> int:
        """Samples of this rank in every step; two where the batch is one."""
        return sum(self._counts)

    def training_step(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Forward passes of teacher and network, and the loss of the mixed patches."""
        count = self._counts[0]
        with self.clock("transfer"):
            weak, strong = (
                torch.as_tensor(array).to(self.device, non_blocking=True)
                for array in (batch.image_bczyx, batch.second_bczyx)
            )
            target = torch.as_tensor(batch.label_bzyx).to(self.device, non_blocking=True).long()
            supervised = torch.from_numpy(batch.supervised_bc).to(self.device)
            weight = torch.from_numpy(batch.weight_b).to(self.device)
        if self.iteration >= self.settings.waits * self.schedule.total_iterations:
            with self.clock("forward"):
                target[count:] = self._taught(weak[count:], target[count:], supervised[count:])
        image, target, supervised = self._mixed(torch.cat([weak[:count], strong[count:]]), target, supervised, count)
        with self.clock("forward"), self.precision.autocast():
            outputs = network(image)
        with self.clock("loss"):
            outputs = outputs if isinstance(outputs, list) else [outputs]
            return (self.loss(outputs, target, supervised) * weight).mean()

    @torch.no_grad()
    def _taught(
        self, weak_bczyx: torch.Tensor, on_disk_bzyx: torch.Tensor, supervised_bc: torch.Tensor
    ) -> torch.Tensor:
        """What pseudo-labeled patches teach, (B, Z, Y, X); where nothing is on disk, what the teacher is sure of."""
        with self.precision.autocast():
            logits = self.averaged_network(weak_bczyx)
        logits, on_disk = merge_unsupervised(logits.float(), on_disk_bzyx, supervised_bc, self.task.labels.regions)
        sure, said = logits.softmax(1).max(1)
        return said.masked_fill((sure < self.settings.confidence) & (said != on_disk), IGNORED)

    def _mixed(
        self, image_bczyx: torch.Tensor, target_bzyx: torch.Tensor, supervised_bc: torch.Tensor, labeled: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The samples with boxes of samples of the other kind; the first `labeled` are of one kind.

        An organ is supervised where it is in both.
        """
        image, target, supervised = image_bczyx.clone(), target_bzyx.clone(), supervised_bc.clone()
        kinds = [range(labeled), range(labeled, len(image_bczyx))]
        for kind, (own, others) in enumerate(zip(kinds, reversed(kinds), strict=True)):
            for number, place in enumerate(own):
                position = self.ranks.rank * len(own) + number
                generator = np.random.default_rng((self.config.seed + _BOXES, self.iteration, kind, position))
                if generator.random() >= self.semi.mixing.paste_share:
                    continue
                other = others[number % len(others)]
                box = (..., *random_box(self.task.plan.patch_zyx, generator).slices)
                image[place][box] = image_bczyx[other][box]
                target[place][box] = target_bzyx[other][box]
                supervised[place] &= supervised_bc[other]
        return image, target, supervised
