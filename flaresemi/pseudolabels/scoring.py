"""Scores a segmentation of FINE by those of earlier weights of the same training in the same region."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from flaresemi.geometry import FloatTriple
from flaresemi.inference.fine_stage import FineOutput
from flaresemi.inference.models import cleaning
from flaresemi.inference.predictor import StagePredictor
from flaresemi.inference.sliding_window import most_likely
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.networks.engine import Engine
from flaresemi.pseudolabels.agreement import ABSENT_BELOW, case_agreement, organ_agreement, organ_entropy
from flaresemi.selection import CaseScore, OrganScore


class Scorer:
    """Compares the segmentations of a model with those of earlier weights of its training.

    Args:
        final: The weights that segment.
        snapshots: Earlier weights of the same training.
        median_volumes_ml: Per organ, in the labeled cases; less than a hundredth of it counts as absent.
        made_with: Hashes of the checkpoints, for the record.
        engine: Runs the networks.
        step: Distance of neighboring windows, as a share of the window.
    """

    def __init__(
        self,
        final: Checkpoint,
        snapshots: Sequence[Checkpoint],
        median_volumes_ml: Sequence[float],
        made_with: tuple[str, ...] = (),
        *,
        engine: Engine,
        step: float = 0.5,
    ) -> None:
        self.labels = final.labels
        self.made_with = made_with
        self.median_volumes_ml = tuple(median_volumes_ml)
        self._clean = cleaning([final])
        self._snapshots = [StagePredictor([snapshot], engine=engine, step=step) for snapshot in snapshots]

    def saved(self, output: FineOutput) -> np.ndarray:
        """The mask to save: label indices in the region, (Z, Y, X)."""
        saved = most_likely(output.logits)
        self._clean(saved, self.labels)
        return saved

    def score(
        self,
        case_id: str,
        output: FineOutput,
        image_czyx: np.ndarray,
        fill_c: np.ndarray | None,
        spacing_zyx_mm: FloatTriple,
        flags: tuple[str, ...] = (),
        *,
        contested: bool = False,
    ) -> tuple[np.ndarray, CaseScore, np.ndarray | None]:
        """The mask to save, its score, and, where that is asked for, which of its voxels are contested.

        Args:
            case_id: For the record.
            output: The output of the final weights.
            image_czyx: The prepared image in the region of that output.
            fill_c: Padding value per channel, for a region smaller than a window.
            spacing_zyx_mm: Voxel spacing of the stage.
            flags: Anything unusual found before.
            contested: Whether to look for voxels of which any earlier weights say something else.

        Returns:
            Label indices in the region, (Z, Y, X); the score; and those voxels, bool, or None.
        """
        organs = self.labels.count
        regions = self.labels.regions
        saved = self.saved(output)
        entropy = organ_entropy(_entropy(output.logits), saved, organs, regions)
        others = [snapshot.indices(image_czyx, fill_c)[0] for snapshot in self._snapshots]
        voxel_ml = math.prod(spacing_zyx_mm) / 1000
        least = [ABSENT_BELOW * ml / voxel_ml for ml in self.median_volumes_ml]
        agreement = organ_agreement(saved, others, least, regions)
        voxels = self.labels.per_organ(np.bincount(saved.ravel(), minlength=self.labels.channels))
        touching = [self.labels.organs_of(face.indices) for face in output.touched]
        score = CaseScore(
            case_id=case_id,
            score=case_agreement(agreement),
            organs={
                name: OrganScore(
                    agreement=agreement[index],
                    volume_ml=float(voxels[index] * voxel_ml),
                    entropy=entropy[index],
                    touched_faces=sum(index + 1 in touched for touched in touching),
                )
                for index, name in enumerate(self.labels.names)
            },
            flags=(*flags, *output.notes),
            made_with=self.made_with,
        )
        if not contested:
            return saved, score, None
        differs = np.zeros(saved.shape, bool)
        for other in others:
            differs |= other != saved
        return saved, score, differs


def _entropy(logits_czyx: torch.Tensor) -> np.ndarray:
    """Entropy of the probabilities as a share of the largest possible, (Z, Y, X) float32."""
    largest = logits_czyx.amax(dim=0)
    total, weighted = torch.zeros_like(largest), torch.zeros_like(largest)
    for logit in logits_czyx:  # class by class, to avoid a second array of all classes
        below = logit - largest
        share = torch.exp(below)
        total += share
        weighted += share.mul_(below)
    return ((torch.log(total) - weighted / total) / math.log(logits_czyx.shape[0])).clamp(0, 1).cpu().numpy()
