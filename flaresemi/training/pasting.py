"""Patches with a box of another one: labeled and pseudo-labeled cases in one sample."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaresemi.geometry import BoundingBox, IntTriple
from flaresemi.io.case_store import CaseStore
from flaresemi.plans import StagePlan
from flaresemi.training.patches import Batch, ReadBatch
from flaresemi.training.sampling import PatchSampler, TrainingCase


class PastingSampler(PatchSampler):
    """Random patches, of which some get a box of another one (`pasted`).

    A labeled case's patch gets that of a pseudo-labeled case, and the other way round, as long as both are drawn.

    Args:
        store: The stage's prepared cases, the pseudo-labeled ones among them.
        cases: What to draw from.
        plan: As for `PatchSampler`.
        paste_share: Share of the patches.
        settings: As for `PatchSampler`.
    """

    def __init__(
        self, store: CaseStore, cases: Sequence[TrainingCase], plan: StagePlan, *, paste_share: float, **settings: Any
    ) -> None:
        super().__init__(store, cases, plan, **settings)
        self.paste_share = paste_share
        self._is_pseudo = np.array([case.is_pseudo for case in cases])

    def sample(self, chances: np.ndarray, generator: np.random.Generator) -> Batch | ReadBatch:
        """One sample, perhaps with a box of a sample of the other kind."""
        index = generator.choice(len(self.cases), p=chances)
        patch = self.draw(self.cases[index], generator)
        if not self.paste_share or generator.random() >= self.paste_share:
            return patch
        others = np.where(self._is_pseudo != self._is_pseudo[index], chances, 0.0)
        if not others.any():
            return patch
        other = self.cases[generator.choice(len(self.cases), p=others / others.sum())]
        box = random_box(self.plan.patch_zyx, generator)
        paste = pasted_later if self.on_device else pasted
        return paste(patch, self.draw(other, generator, box), box)  # type: ignore[arg-type] # both are of one kind


def random_box(patch_zyx: IntTriple, generator: np.random.Generator) -> BoundingBox:
    """A third to two thirds of each axis of a patch, anywhere in it.

    Source: after Bai et al., "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation", CVPR 2023,
    arXiv 2305.00673, where the box has two thirds of each axis.
    """
    shape = np.array(patch_zyx)
    size = np.maximum((shape * generator.uniform(1 / 3, 2 / 3, 3)).astype(int), 1)
    start = generator.integers(0, shape - size + 1)
    return BoundingBox(start=tuple(start.tolist()), stop=tuple((start + size).tolist()))


def pasted(patch: Batch, content: Batch, box: BoundingBox) -> Batch:
    """A patch with another content in a box, image and label.

    An organ is supervised where it is in both. The weight stays: seven eighths of the voxels are the patch's, on
    average. The content is prepared by itself, voxel by voxel no more than is pasted: a whole second patch would be
    augmented for an eighth of it, on average.

    Args:
        patch: A batch of one.
        content: The same, of the box's shape.
        box: Where, in the patch's voxels.
    """
    where = (..., *box.slices)
    image = patch.image_bczyx.copy()
    label = patch.label_bzyx.astype(np.promote_types(patch.label_bzyx.dtype, content.label_bzyx.dtype))  # a copy
    image[where], label[where] = content.image_bczyx, content.label_bzyx
    second = image
    if patch.second_bczyx is not patch.image_bczyx:
        second = patch.second_bczyx.copy()
        second[where] = content.second_bczyx
    return dataclasses.replace(
        patch,
        image_bczyx=image,
        label_bzyx=label,
        supervised_bc=patch.supervised_bc & content.supervised_bc,
        second_bczyx=second,
    )


def pasted_later(patch: ReadBatch, content: ReadBatch, box: BoundingBox) -> ReadBatch:
    """The same where patches are augmented on the device, which pastes them then."""
    (outer,), (inner,) = patch.samples, content.samples
    return dataclasses.replace(
        patch,
        samples=(dataclasses.replace(outer, content=inner.patch, box=box),),
        supervised_bc=patch.supervised_bc & content.supervised_bc,
    )
