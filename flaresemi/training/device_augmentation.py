"""Augmentation where the network is: loader processes read patches, and torch does with them what they drew.

A GPU takes an instant for what costs a core of the processor a good part of a second, so that few cores feed it.
"""

import functools
import logging

import numpy as np
import torch

from flaresemi.compute.metering import Clock, no_clock
from flaresemi.errors import ConfigError
from flaresemi.training.draws import Changes, IntensityChanges
from flaresemi.training.losses import IGNORED
from flaresemi.training.patches import Batch, ReadBatch, ReadPatch, ReadSample
from flaresemi.training.transforms import changed_intensities, changed_place

logger = logging.getLogger(__name__)

#: What a trainer may replace that patches pass on their way from the disk to the network.
_HOOKS = frozenset({"training_step", "build_sampler", "case_sampler"})

#: Largest difference of intensities, and largest share of labels, between two devices that compute the same. Chosen:
#: intensities have a standard deviation of 1 and differ by a thousandth; few labels lie just between two voxels.
_CLOSE = 0.01


def augments_on_device(asked: str, device: torch.device, trainer: type, name: str) -> bool:
    """Whether a training augments its patches where its network is.

    `auto` does so on a GPU, which most processors cannot feed otherwise: of a `base` plan, an H200 trains 29 patches a
    second (benchmarks/results/gpu_step.md), and a core augments 5 (benchmarks/results/device_augmentation.md).

    Args:
        asked: `auto`, `cpu` or `device`.
        device: Of the network.
        trainer: The class that trains. One that replaces a hook which patches pass has to say that it knows of it, by
            an attribute `device_augmentation` of its own.
        name: Of the trainer, for the user.

    Raises:
        ConfigError: it is asked for, and the trainer does not know of it, or the device computes something else.
    """
    if asked == "cpu" or (asked == "auto" and device.type != "cuda"):
        return False
    problem = _stranger(trainer, name) or _deviation(device)
    if problem and asked == "device":
        raise ConfigError(problem[0], fix=problem[1])
    if problem:
        logger.warning("patches are augmented on the CPU: %s", problem[0])
    return not problem


def _stranger(trainer: type, name: str) -> tuple[str, str] | None:
    """Why a class cannot train on what is augmented on the device, and what to do; None where it can."""
    strangers = [
        each
        for each in trainer.__mro__
        if _HOOKS & vars(each).keys() and not vars(each).get("device_augmentation", False)
    ]
    if not strangers:
        return None
    hooks = ", ".join(sorted(_HOOKS & vars(strangers[0]).keys()))
    what = f"trainer '{name}' has its own {hooks}, and does not say that it knows of patches augmented on the device"
    return what, "--augmentation-device cpu; or its author sets device_augmentation (docs/extending.md)"


def _deviation(device: torch.device) -> tuple[str, str] | None:
    """That a device makes something else of a small patch than this processor does, and what to do; None: it does not.

    Of all transforms but noise, which every kind of device draws in its own way.
    """
    if device.type == "cpu":
        return None
    image = np.random.default_rng(0).normal(0, 1, (1, 12, 20, 24)).astype(np.float16)
    every = IntensityChanges(
        blur=(0.8,),
        brightness=(1.2,),
        contrast=(0.8,),
        low_resolution=((7, 11, 15),),
        inverted_gamma=(0.8,),
        gamma=(1.4,),
    )
    patch = ReadPatch(
        image_czyx=image,
        label_zyx=(image[0] > 0).astype(np.uint8),
        patch_zyx=(10, 16, 20),
        fill=(-1.0,),
        changes=Changes(angles_zyx=(0.4, 0.2, -0.3), scale=1.2, intensities=every, flips=(2,), swap=(1, 0)),
    )
    batch = ReadBatch((ReadSample(patch),), np.ones((1, 2), bool), np.ones(1, np.float32), np.ones(1, bool))
    here = DeviceAugmentation(torch.device("cpu"))(batch)
    try:
        there = DeviceAugmentation(device)(batch)
    except RuntimeError as problem:  # a kernel that is not there; a lack of memory, which the training tells better
        told = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        return f"{device} cannot do it: {told}", "--augmentation-device cpu"
    off = (here.image_bczyx - there.image_bczyx.cpu()).abs().max()
    others = (here.label_bzyx != there.label_bzyx.cpu()).float().mean()
    if off < _CLOSE and others < _CLOSE:
        return None
    what = f"{device} makes something else of a patch than this processor, off by {off:.2g}, in labels {others:.1%}"
    return what, "--augmentation-device cpu"


class DeviceAugmentation:
    """Makes of patches as they were read those that the network sees; the same ones on the same kind of device.

    Nothing is drawn here but noise, from seeds that were, and nothing waits for the device.

    Args:
        device: Where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator(device)
        self._table = functools.cache(functools.partial(torch.tensor, device=device))

    def __call__(self, batch: ReadBatch, clock: Clock = no_clock) -> Batch:
        """The batch, with tensors on the device for images (float32) and labels (int64).

        Args:
            clock: Stands around `transfer` and `augment`.
        """
        with clock("transfer"):
            moved = [[self._moved(patch) for patch in sample.patches] for sample in batch.samples]
        with clock("augment"):
            made = [self._sample(sample, tensors) for sample, tensors in zip(batch.samples, moved, strict=True)]
            image = torch.stack([first for first, _, _ in made])
            label = torch.stack([each for _, each, _ in made])
            second = image
            if any(each is not None for _, _, each in made):
                second = torch.stack([first if each is None else each for first, _, each in made])
        return Batch(image, label, batch.supervised_bc, batch.weight_b, batch.labeled_b, second)

    def _moved(self, patch: ReadPatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Image, label and, where it is made already, second view."""

        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device, non_blocking=True)

        second = None if patch.second_czyx is None else on_device(patch.second_czyx)
        return on_device(patch.image_czyx), on_device(patch.label_zyx), second

    def _sample(
        self, sample: ReadSample, tensors: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Image, label and second view of what comes out, with the content of the box."""
        image, label, second = self._changed(sample.patch, *tensors[0])
        if sample.content is not None and sample.box is not None:
            where = (..., *sample.box.slices)
            inner_image, inner_label, inner_second = self._changed(sample.content, *tensors[1])
            image[where], label[where] = inner_image, inner_label
            if second is not None:
                second[where] = inner_image if inner_second is None else inner_second
        return image, label, second

    def _changed(
        self, patch: ReadPatch, image: torch.Tensor, label: torch.Tensor, second: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        changes = patch.changes
        image, label = changed_place(
            image.float(), label, patch.patch_zyx, changes, fill=patch.fill, label_fill=patch.label_fill
        )
        image, label = changed_intensities(image, changes.intensities, self._generator), label.long()
        if changes.flips:
            image, label = image.flip([axis + 1 for axis in changes.flips]), label.flip(changes.flips)
        if changes.swap is not None:
            label = self._table(changes.swap)[label]
        if patch.ignored is not None:
            label = label.masked_fill(label == patch.ignored, IGNORED)
        if patch.second is not None:
            second = changed_intensities(image, patch.second, self._generator)
        return image, label, second
