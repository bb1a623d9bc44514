"""A teacher from outside of the workspace: a model of nnU-Net, or one that another dataset trained, labels the pool."""

import dataclasses
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaresemi.dataset import Dataset
from flaresemi.errors import ConfigError, about_case, listed
from flaresemi.geometry import BoundingBox
from flaresemi.inference.cascade import Segmenter
from flaresemi.io.case_store import CaseStore
from flaresemi.plans import Plans
from flaresemi.preprocessing.preprocessor import stage_labels
from flaresemi.pseudolabels.calibration import Observation
from flaresemi.pseudolabels.labeling import LabeledCase
from flaresemi.records import record_hash
from flaresemi.selection import OUTSIDE, CaseScore, OrganScore, Selection

logger = logging.getLogger(__name__)

_UNKNOWN = "the teacher does not know it"


class OutsideTeacher:
    """Labels cases as `flaresemi_predict` does; organs are matched by name.

    It is one model, so that there is nothing for it to agree with: how far it can be trusted with an organ is what it
    reaches on labeled cases. Organs that it does not know are supervised nowhere.

    Args:
        model: What `load_models` takes.
        plans: Of the workspace, for organs and channels.
        dataset: Whose images are labeled.
        fine_store: The same cases at FINE's spacing.
        options: Of the `Segmenter`: device, precision, and `tta`, where False means as the model's framework does.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: it knows none of the organs, or has other channels.
    """

    def __init__(
        self,
        model: Path,
        plans: Plans,
        dataset: Dataset,
        fine_store: CaseStore,
        **options: Any,
    ) -> None:
        # A named engine: labeling again on this machine gives the same labels.
        self._segmenter = Segmenter.load(model, **options | {"engine": "torch", "tta": options.get("tta") or None})
        self.labels = plans.labels
        self.fine_store = fine_store
        self._dataset = dataset
        if self.labels.has_regions or self._segmenter.labels.has_regions:
            raise ConfigError(
                "a teacher from outside cannot label regions",
                where=model,
                fix="write its label maps with flaresemi_predict, and learn from them: flaresemi_train --pseudo-labels",
            )
        theirs = self._segmenter.labels.names
        self.unknown = tuple(name for name in self.labels.names if name not in theirs)
        if len(self.unknown) == self.labels.count:
            raise ConfigError(
                f"this teacher knows no organ of the dataset: it knows {listed(theirs)}",
                where=model,
                fix=f"organs are matched by name; dataset.json calls them {listed(self.labels.names)}",
            )
        if len(self._segmenter.channels) != len(plans.channels):
            raise ConfigError(
                f"this teacher sees {len(self._segmenter.channels)} channel(s): {listed(self._segmenter.channels)}",
                where=model,
                fix=f"the dataset has {len(plans.channels)}: {listed(plans.channels)}",
            )
        #: Place in our label set of each of its outputs; 0 where we have no such organ.
        self._places = np.array(
            [0, *(self.labels.index(name) if name in self.labels.names else 0 for name in theirs)], np.uint16
        )
        # How the machine computes differs from one start of a round to another; labels are not made again for that.
        options = {key: value for key, value in self._segmenter.options.items() if key not in ("engine", "precision")}
        decisive = [self._segmenter.models, sorted(options.items())]
        self.made_with: tuple[str, ...] = (OUTSIDE, record_hash(decisive))
        logger.info(
            "%s labels %s%s",
            model,
            listed([name for name in self.labels.names if name in theirs]),
            f"; it does not know {listed(self.unknown)}" if self.unknown else "",
        )

    def label(self, case_id: str) -> LabeledCase:
        """Labels one case.

        Raises:
            DatasetError: the case is not prepared, or damaged.
            ImageError: its image cannot be read, or needs more memory than is free.
            PredictionError: the networks' output is not finite.
        """
        with about_case(case_id):
            grid = self.fine_store.open(case_id).record.grid
            image = self._segmenter.read(self._dataset.case(case_id).images)
            segmentation = self._segmenter.segment(image, name=case_id)
            indices = self._places[segmentation.indices_zyx].astype(np.uint8 if self.labels.count < 256 else np.uint16)
            voxel_ml = math.prod(grid.canonical_spacing_zyx_mm) / 1000
            counts = np.bincount(indices.ravel(), minlength=self.labels.channels)
            organs = {
                name: self._organ(name, int(counts[self.labels.index(name)]) * voxel_ml) for name in self.labels.names
            }
            return LabeledCase(
                label_zyx=stage_labels(indices, grid),
                region=BoundingBox.whole(grid.shape_zyx),
                score=CaseScore(
                    case_id=case_id,
                    score=1.0 if counts[1:].any() else 0.0,
                    organs=organs,
                    flags=(*segmentation.notes, *(finding.message for finding in segmentation.findings)),
                    made_with=self.made_with,
                ),
            )

    def segment(self, case_id: str) -> np.ndarray:
        """The label map alone, on FINE's grid; errors as `label`."""
        return self.label(case_id).label_zyx

    def _organ(self, name: str, volume_ml: float) -> OrganScore:
        if name in self.unknown:
            return OrganScore(agreement=0.0, volume_ml=0.0, entropy=None)
        return OrganScore(agreement=1.0 if volume_ml else None, volume_ml=volume_ml, entropy=None)

    def without_unknown(self, selection: Selection) -> Selection:
        """The selection, in which no organ is supervised that the teacher does not know."""
        return dataclasses.replace(
            selection,
            selected=tuple(
                dataclasses.replace(
                    case,
                    supervised=tuple(name for name in case.supervised if name not in self.unknown),
                    rejected=case.rejected | dict.fromkeys(self.unknown, _UNKNOWN),
                )
                for case in selection.selected
            ),
        )


def dice_reached(
    observations: Sequence[Observation], of_training: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The mean Dice that the teacher reaches with every organ that a labeled case measures.

    An organ that is rightly not found in a held-out case says nothing of one that is found; one that is missed does.

    Args:
        observations: Of the held-out cases.
        of_training: Dice by labeled case of the training, by organ that it has, for organs of which held-out cases say
            nothing.
    """
    held_out: dict[str, list[float]] = {}
    for each in observations:
        if not each.score.is_absent or each.dice == 0:
            held_out.setdefault(each.organ, []).append(each.dice)
    training: dict[str, list[float]] = {}
    for organs in of_training.values():
        for name, dice in organs.items():
            training.setdefault(name, []).append(dice)
    return {name: statistics.mean(found) for name, found in (training | held_out).items()}


def with_dice_reached(score: CaseScore, reached: Mapping[str, float]) -> CaseScore:
    """The score, with what the teacher reaches as the expected Dice of every organ that is there."""
    organs = {
        name: organ
        if organ.is_absent or name not in reached
        else dataclasses.replace(organ, predicted_dice=reached[name])
        for name, organ in score.organs.items()
    }
    return dataclasses.replace(score, organs=organs)
