"""The reliability of a prediction: the scores of pseudo-labels, for any image."""

import dataclasses
from pathlib import Path
from typing import Self

import numpy as np

from flaresemi.errors import CheckpointError, ConfigError
from flaresemi.geometry import FloatTriple
from flaresemi.inference.fine_stage import FineOutput
from flaresemi.inference.segmenter import ImageSegmenter, Watch
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.networks.engine import Engine
from flaresemi.pseudolabels.calibration import Calibration, with_predictions
from flaresemi.pseudolabels.scoring import Scorer
from flaresemi.pseudolabels.teachers import COMPARED_SNAPSHOTS, weights_hash
from flaresemi.records import load_record, record_hash
from flaresemi.selection import CaseScore
from flaresemi.workspace import ModelFolder


class Reliability:
    """Scores the segmentations of a FINE model by its own earlier weights, and predicts their Dice.

    Args:
        final: FINE's final checkpoint, in the folder of its training.
        engine: Runs the networks; the one that segments.
        step: Distance of neighboring windows, as a share of the window.

    Raises:
        CheckpointError: the earlier weights or the calibration of their scores are not beside it.
    """

    def __init__(self, final: Path, *, engine: Engine, step: float = 0.5) -> None:
        folder = ModelFolder(final.parent)
        files = [folder.snapshot(percent) for percent in COMPARED_SNAPSHOTS]
        for path in (*files, folder.calibration):
            if not path.is_file():
                raise CheckpointError(
                    f"{path.name} is missing, which --reliability needs",
                    where=folder.root,
                    fix="flaresemi_semi_round --step select writes it; it must be copied with the model",
                )
        checkpoint, *snapshots = (load_checkpoint(path) for path in (final, *files))
        self.calibration = load_record(folder.calibration, Calibration, error=CheckpointError)
        #: Hash of the calibration, which the scores have.
        self.calibration_hash = record_hash(self.calibration)
        if self.calibration.made_with not in ("", weights_hash([checkpoint, *snapshots])):
            raise CheckpointError(
                "calibration.json was learned for other weights than those beside it",
                where=folder.root,
                fix="put the checkpoints back that it belongs to; flaresemi_semi_round --step select writes it again",
            )
        self._scorer = Scorer(
            checkpoint,
            snapshots,
            [self.calibration.median_ml[name] for name in checkpoint.labels.names],
            engine=engine,
            step=step,
        )

    @classmethod
    def of(cls, segmenter: ImageSegmenter, *, step: float = 0.5) -> Self:
        """The judge of what a segmenter does.

        Raises:
            ConfigError: it averages several models.
            CheckpointError: the model cannot judge itself.
        """
        if len(segmenter.fine_files) > 1:
            raise ConfigError(
                "several models are averaged: the snapshots of one training are compared", fix="give one --fold"
            )
        return cls(segmenter.fine_files[0], engine=segmenter.engine, step=step)

    def watch(self, case_id: str, judged: list[CaseScore]) -> Watch:
        """Judges every output that it is shown, for `ImageSegmenter.segment`, and adds the scores to a list."""

        def watch(
            output: FineOutput, image_czyx: np.ndarray, fill_c: np.ndarray | None, spacing_zyx_mm: FloatTriple
        ) -> None:
            judged.append(self.judge(case_id, output, image_czyx, fill_c, spacing_zyx_mm))

        return watch

    def judge(
        self,
        case_id: str,
        output: FineOutput,
        image_czyx: np.ndarray,
        fill_c: np.ndarray | None,
        spacing_zyx_mm: FloatTriple,
    ) -> CaseScore:
        """The score of a segmentation; its predicted Dice is None where agreement alone was closer to the truth.

        Args:
            case_id: For the record.
            output: The output of the final weights.
            image_czyx: The prepared image in the region of that output.
            fill_c: Padding value per channel, for a region smaller than a window.
            spacing_zyx_mm: Voxel spacing of the stage.
        """
        _, score, _ = self._scorer.score(case_id, output, image_czyx, fill_c, spacing_zyx_mm)
        score = dataclasses.replace(score, calibration=self.calibration_hash)
        return with_predictions(score, self.calibration) if self.calibration.is_better else score


def summary_line(score: CaseScore) -> str:
    """A score as one line of text, least reliable organ first."""
    calibrated = any(organ.predicted_dice is not None for organ in score.organs.values())
    values = {name: organ.predicted_dice if calibrated else organ.agreement for name, organ in score.organs.items()}
    present = sorted((value, name) for name, value in values.items() if value is not None)
    if not present:
        return "no organ to judge"
    measure = "predicted Dice" if calibrated else "agreement of the snapshots"
    return f"{measure}: " + ", ".join(f"{name} {value:.2f}" for value, name in present)
