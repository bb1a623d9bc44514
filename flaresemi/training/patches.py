"""Patches on their way to the network: ready for it, or as they were read, with everything random in them drawn."""

import dataclasses
from typing import Any, Self

import numpy as np
import torch

from flaresemi.geometry import BoundingBox, IntTriple
from flaresemi.training.draws import Changes, IntensityChanges

#: An array on leaving the workers, so that no shared memory is used; a tensor where the device has augmented it.
Voxels = Any


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Patches for the network. `torch.as_tensor` takes every field.

    Attributes:
        image_bczyx: float32.
        label_bzyx: Label indices; `IGNORED` where nobody annotated.
        supervised_bc: Which organs each sample supervises, behind background, which it always does.
        weight_b: Loss weights; 0 for unlabeled samples.
        labeled_b: Which samples have a label map.
        second_bczyx: A second view of the same voxels, other in its intensities alone; where no second view is asked
            for, the image.
    """

    image_bczyx: Voxels
    label_bzyx: Voxels
    supervised_bc: np.ndarray
    weight_b: np.ndarray
    labeled_b: np.ndarray
    second_bczyx: Voxels

    def pin_memory(self) -> Self:
        """The same batch in memory that a GPU copies from by itself, without holding up this process.

        torch's loader calls this, in a thread of its own.
        """
        image, label = pinned(self.image_bczyx), pinned(self.label_bzyx)
        second = image if self.second_bczyx is self.image_bczyx else pinned(self.second_bczyx)
        return dataclasses.replace(self, image_bczyx=image, label_bzyx=label, second_bczyx=second)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReadPatch:
    """A patch with its surroundings, and what will be done to it.

    Attributes:
        image_czyx: As it is stored, float16; float32 where it is augmented already.
        label_zyx: Label indices of the same shape.
        patch_zyx: Shape of what comes out of it.
        fill: What lies outside the image, per channel.
        label_fill: Index of what lies outside the image.
        ignored: Index of voxels that nobody annotated; None: all are, or it is no longer needed.
        changes: All that is done to it.
        second: What makes the second view of what comes out; None: it has none, or has it already.
        second_czyx: The second view, where it is made already.
    """

    image_czyx: np.ndarray
    label_zyx: np.ndarray
    patch_zyx: IntTriple
    fill: tuple[float, ...] = ()
    label_fill: int = 0
    ignored: int | None = None
    changes: Changes = dataclasses.field(default_factory=Changes)
    second: IntensityChanges | None = None
    second_czyx: np.ndarray | None = None

    def pin_memory(self) -> Self:
        """The same in memory that a GPU copies from by itself."""
        second = None if self.second_czyx is None else pinned(self.second_czyx)
        return dataclasses.replace(
            self, image_czyx=pinned(self.image_czyx), label_zyx=pinned(self.label_zyx), second_czyx=second
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ReadSample:
    """A patch, and perhaps the content of a box in it.

    Attributes:
        patch: The patch.
        content: Of the box; None: the patch's own.
        box: Where, in the voxels of what comes out.
    """

    patch: ReadPatch
    content: ReadPatch | None = None
    box: BoundingBox | None = None

    @property
    def patches(self) -> tuple[ReadPatch, ...]:
        """Both, as far as there are two."""
        return (self.patch,) if self.content is None else (self.patch, self.content)

    def pin_memory(self) -> Self:
        """The same in memory that a GPU copies from by itself."""
        content = None if self.content is None else self.content.pin_memory()
        return dataclasses.replace(self, patch=self.patch.pin_memory(), content=content)


@dataclasses.dataclass(frozen=True, slots=True)
class ReadBatch:
    """What becomes a `Batch` on the training's device.

    Attributes:
        samples: The patches.
        supervised_bc: As in a `Batch`.
        weight_b: The same.
        labeled_b: The same.
    """

    samples: tuple[ReadSample, ...]
    supervised_bc: np.ndarray
    weight_b: np.ndarray
    labeled_b: np.ndarray

    def pin_memory(self) -> Self:
        """The same batch in memory that a GPU copies from by itself; torch's loader calls this."""
        return dataclasses.replace(self, samples=tuple(sample.pin_memory() for sample in self.samples))


def pinned(array: np.ndarray) -> np.ndarray:
    """A copy of an array in memory that a GPU copies from by itself; the array, where the system has none to give."""
    try:
        return torch.from_numpy(array).pin_memory().numpy()
    except RuntimeError:  # it is only slower without
        return array
