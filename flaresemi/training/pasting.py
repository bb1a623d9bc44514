"""Patches with a box of another one: labeled and pseudo-labeled cases in one sample."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaresemi.io.case_store import CaseStore
from flaresemi.plans import StagePlan
from flaresemi.training.sampling import Batch, PatchSampler, TrainingCase


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

    def sample(self, chances: np.ndarray, generator: np.random.Generator) -> Batch:
        """One sample, perhaps with a box of a sample of the other kind."""
        index = generator.choice(len(self.cases), p=chances)
        patch = self.draw(self.cases[index], generator)
        if not self.paste_share or generator.random() >= self.paste_share:
            return patch
        others = np.where(self._is_pseudo != self._is_pseudo[index], chances, 0.0)
        if not others.any():
            return patch
        other = self.cases[generator.choice(len(self.cases), p=others / others.sum())]
        return pasted(patch, self.draw(other, generator), generator)


def pasted(patch: Batch, other: Batch, generator: np.random.Generator) -> Batch:
    """A patch with a box of another one at the same place, image and label: a third to two thirds of each axis.

    An organ is supervised where it is in both. The weight stays: seven eighths of the voxels are the patch's, on
    average.

    Source: after Bai et al., "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation", CVPR 2023,
    arXiv 2305.00673, where the box has two thirds of each axis.
    """
    shape = np.array(patch.label_bzyx.shape[1:])
    size = np.maximum((shape * generator.uniform(1 / 3, 2 / 3, 3)).astype(int), 1)
    start = generator.integers(0, shape - size + 1)
    z, y, x = (slice(int(first), int(first + length)) for first, length in zip(start, size, strict=True))
    image, label = patch.image_bczyx.copy(), patch.label_bzyx.copy()
    image[..., z, y, x], label[..., z, y, x] = other.image_bczyx[..., z, y, x], other.label_bzyx[..., z, y, x]
    second = image
    if patch.second_bczyx is not patch.image_bczyx:
        second = patch.second_bczyx.copy()
        second[..., z, y, x] = other.second_bczyx[..., z, y, x]
    return dataclasses.replace(
        patch,
        image_bczyx=image,
        label_bzyx=label,
        supervised_bc=patch.supervised_bc & other.supervised_bc,
        second_bczyx=second,
    )
