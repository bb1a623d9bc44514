"""A mean teacher: the averaged weights say what an unlabeled patch shows, the network learns it from another view.

Source: Tarvainen and Valpola, arXiv 1703.01780, with the strong second view of FixMatch (arXiv 2001.07685).
"""

import dataclasses
from typing import Annotated, ClassVar

import torch
from torch import nn
from torch.nn import functional

from flaresemi.ranges import Range, Share, check_ranges
from flaresemi.training.augmentation import SecondView
from flaresemi.training.sampling import Batch, LabeledAndUnlabeled, Samples
from flaresemi.training.trainer import Trainer


class MeanTeacher(Trainer):
    """Learns from labeled patches and, as many in every step, from unlabeled ones."""

    #: Its hooks work as well on batches of tensors, which the device has augmented.
    device_augmentation: ClassVar[bool] = True

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        """What the user chooses.

        Attributes:
            weight: Of the unlabeled patches, against 1 for the labeled ones, when it has risen.
            rise: Part of the training in which it rises from 0.
            confidence: Least probability of what a voxel is said to be.
        """

        weight: Annotated[float, Range(0, 100)] = 1.0
        rise: Share = 0.3
        confidence: Share = 0.8

        def __post_init__(self) -> None:
            check_ranges(self)

    def build_sampler(self) -> Samples:
        labeled = self.case_sampler(self.training_cases())
        unlabeled = self.case_sampler(
            self.unlabeled_cases(), second_view=SecondView("strong"), seed=self.config.seed + 1_000_003
        )
        return LabeledAndUnlabeled(labeled, unlabeled, self.batch_size, self.batch_size)

    @property
    def samples_per_step(self) -> int:
        return 2 * self.batch_size

    def training_step(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        labeled, weak, strong, annotated, supervised = (
            torch.as_tensor(part).to(self.device)
            for part in (
                batch.labeled_b, batch.image_bczyx, batch.second_bczyx, batch.label_bzyx, batch.supervised_bc
            )
        )  # fmt: skip
        with torch.no_grad(), self.precision.autocast():
            said = self.averaged_network(weak[~labeled]).float().softmax(1)
        sure, target = said.max(1)
        with self.precision.autocast():  # one forward pass, as distributed training wants it
            outputs = network(torch.where(labeled[:, None, None, None, None], weak, strong))
        outputs = outputs if isinstance(outputs, list) else [outputs]
        taught = [output[labeled] for output in outputs]
        loss = self.loss(taught, annotated[labeled].long(), supervised[labeled]).mean()
        entropy = functional.cross_entropy(outputs[0][~labeled].float(), target, reduction="none")
        return loss + self._weight() * (entropy * (sure > self.settings.confidence)).mean()

    def _weight(self) -> float:
        risen = self.iteration / max(self.settings.rise * self.schedule.total_iterations, 1)
        return self.settings.weight * min(risen, 1.0)
