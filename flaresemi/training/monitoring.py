"""Monitoring of a running training: TensorBoard, the curve picture and a cheap validation."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from flaresemi.compute.precision import Precision
from flaresemi.evaluation.overlap import dice_where_present, without_ignored
from flaresemi.geometry import BoundingBox
from flaresemi.inference.sliding_window import most_likely, slide_in_slabs
from flaresemi.io.case_store import CaseStore
from flaresemi.labels import LabelSet
from flaresemi.plans import StagePlan
from flaresemi.reporting.curves import save_curves
from flaresemi.system_errors import lacks_gpu_memory
from flaresemi.training.history import Row, read_history
from flaresemi.training.patches import Batch, ReadBatch
from flaresemi.training.task import TrainingTask
from flaresemi.training.tracking import Tracker, open_tracker
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)


class Monitor:
    """Writes each epoch's row to TensorBoard and to a tracker, and redraws the curves.

    Args:
        folder: Of the training.
        iteration: Where the training starts; TensorBoard drops what it had seen after that point.
        enabled: False on all ranks but the first: nothing is written then.
        track: Name of the tracker, see `open_tracker`.
        title: Of the training, for the tracker.
        facts: The settings of the training, for the tracker.
    """

    def __init__(
        self,
        folder: ModelFolder,
        iteration: int,
        *,
        enabled: bool,
        track: str = "none",
        title: str = "",
        facts: Mapping[str, object] | None = None,
    ) -> None:
        self.folder = folder
        self.writer = None
        self.tracker: Tracker | None = None
        if enabled:
            self.tracker = open_tracker(track, folder.logs, title, facts or {})
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder.logs), purge_step=iteration + 1)

    def add(self, row: Row) -> None:
        """Shows one epoch."""
        if self.writer is None:
            return
        step = int(row["iteration"])  # type: ignore[call-overload]
        values = _numbers_of(row)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()
        if self.tracker is not None:
            self.tracker.log(values, step)
        save_curves(self.folder.curves, read_history(self.folder.history))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        if self.tracker is not None:
            self.tracker.close()


def _numbers_of(row: Row) -> dict[str, float]:
    """The numbers of an epoch by name; those of an organ by that, too."""
    values: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            values |= {f"{name}/{organ}": score for organ, score in value.items()}
        elif name not in ("iteration", "epoch"):
            values[name] = value  # type: ignore[assignment]
    return values


def progress(
    batches: Iterator[Batch | ReadBatch], task: TrainingTask, first: int, last: int, *, enabled: bool
) -> "tqdm[Batch | ReadBatch]":
    """The batches of steps `first` to `last`, with a bar in a terminal, whose `total` may change."""
    quiet = not (enabled and sys.stderr.isatty())
    return tqdm(batches, desc=task.title, total=last, initial=first, unit="step", disable=quiet)


def quick_validation(
    network: nn.Module,
    store: CaseStore,
    case_ids: Sequence[str],
    plan: StagePlan,
    labels: LabelSet,
    device: torch.device,
    precision: Precision,
) -> dict[str, float]:
    """Mean Dice per organ on prepared cases, at the stage's spacing: cheap, for following a training.

    Where the stage works in the organs' box, the reference's box is used, which COARSE would not find so exactly: an
    optimistic figure.

    Returns:
        Organs that no case annotates, or that are absent from all references and predictions, are left out.
    """
    scores: dict[str, list[float]] = {}
    for case_id in case_ids:
        stored = store.open(case_id)
        if stored.label_zyx is None:
            continue
        box = _reference_region(stored.record.organs_box, plan, stored.record.grid.shape_zyx)
        image = torch.from_numpy(stored.image_czyx[(slice(None), *box.slices)].astype(np.float32))
        predicted = _predicted(network, image, plan, device, precision)
        reference = np.asarray(stored.label_zyx[box.slices])
        predicted, reference, _ = without_ignored(predicted, reference, labels)
        found = dice_where_present(predicted, reference, labels)
        for organ in stored.record.supervised:
            if (value := found[organ - 1]) is not None:
                scores.setdefault(labels.names[organ - 1], []).append(value)
    return {organ: float(np.mean(values)) for organ, values in sorted(scores.items())}


def _predicted(
    network: nn.Module, image_czyx: torch.Tensor, plan: StagePlan, device: torch.device, precision: Precision
) -> np.ndarray:
    """Label indices, (Z, Y, X); where image and sums do not fit onto the device beside the training, they stay here."""

    def forward(windows_bczyx: torch.Tensor) -> torch.Tensor:
        with precision.autocast():
            return network(windows_bczyx.to(device))

    def summed(place: torch.device) -> np.ndarray:
        with torch.inference_mode():
            slabs = slide_in_slabs(image_czyx.to(place), forward, plan.patch_zyx, step=0.75)
            return np.concatenate([most_likely(slab) for slab in slabs])

    try:
        return summed(device)
    except RuntimeError as problem:
        if not lacks_gpu_memory(problem):
            raise
        logger.info("GPU memory ran out in a validation: summed up in main memory")
    return summed(torch.device("cpu"))


def _reference_region(organs: BoundingBox | None, plan: StagePlan, shape_zyx: tuple[int, int, int]) -> BoundingBox:
    if plan.region == "body" or organs is None:
        return BoundingBox.whole(shape_zyx)
    return organs.grown(plan.margin_mm, plan.spacing_zyx_mm, shape_zyx)
