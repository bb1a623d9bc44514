"""The validation that counts: whole images of held-out real cases, in their original geometry, as in prediction."""

import dataclasses
import json
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from flaresemi.compute.precision import PrecisionName
from flaresemi.dataset import Case, Dataset
from flaresemi.evaluation.overlap import dice_per_organ
from flaresemi.evaluation.summary import evaluate_folders, save_summary, table
from flaresemi.files import write_text
from flaresemi.geometry import BoundingBox
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.export import write_segmentation
from flaresemi.inference.postprocessing import keep_largest
from flaresemi.io.images import Image, read_image, read_label_map
from flaresemi.labels import LabelSet
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flaresemi.plans import Stage
from flaresemi.records import load_json
from flaresemi.training.task import TrainingTask
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)

#: Keeping only the largest component of an organ must raise its mean Dice by this much to be adopted (chosen).
LARGEST_COMPONENT_GAIN = 0.002


def validate(
    task: TrainingTask,
    coarse_folder: ModelFolder,
    dataset: Dataset,
    *,
    device: torch.device,
    precision: PrecisionName = "auto",
) -> str:
    """Predicts every validation case with the final weights and scores it; resumable case by case.

    FINE in the organs' box runs behind the COARSE model of the same fold. Until that is trained, the reference's box
    takes its place, and the result says so. COARSE is also judged by what it is for: the share of each organ that
    lies in the region it finds.

    Writes label maps, summary.json and .csv (for COARSE recall.json too) into the training's validation folder, and
    the organs whose largest component alone scores better into the final checkpoint.

    Returns:
        The result as text for a terminal.
    """
    final = load_checkpoint(task.folder.final)
    coarse = _coarse_checkpoint(task, coarse_folder)
    folder = task.folder.validation
    _begin(folder, {"final": _identity(final), "coarse": _identity(coarse) if coarse else None})
    segmenter = Segmenter([final], [coarse] if coarse else [], device=str(device), precision=precision)
    cases = [dataset.case(case_id) for case_id in task.validation]
    needs_box = segmenter.two_stage and coarse is None
    for case in tqdm(cases, desc="validation", unit="case", disable=not sys.stderr.isatty()):
        output = folder / f"{case.id}.nii.gz"
        if output.exists() or case.label is None:
            continue
        image = read_image(case.images)
        organs = _reference_box(case, task.labels) if needs_box else None
        segmentation = segmenter.segment(image, organs=organs)
        for note in segmentation.notes:
            logger.info("%s: %s", case.id, note)
        if task.plan.stage is Stage.COARSE:
            _save_recall(folder, case, segmenter, image, task)
        write_segmentation(output, segmentation)
    lines = []
    if not final.keep_largest:
        helped = _largest_components_that_help(folder, cases, task.labels)
        if helped:
            save_checkpoint(task.folder.final, dataclasses.replace(final, keep_largest=helped))
            lines.append(f"largest component only, as it scores better here: {', '.join(helped)}")
    summary = evaluate_folders(
        {case.id: folder / f"{case.id}.nii.gz" for case in cases},
        {case.id: case.label for case in cases if case.label is not None},
        task.labels,
        annotated={case.id: case.annotated for case in cases if case.annotated is not None},
    )
    save_summary(folder / "summary.json", summary)
    lines.insert(0, table(summary))
    if needs_box:
        lines.append(
            "FINE was validated in the reference's box, which is optimistic: COARSE of this fold is not trained yet"
        )
    if task.plan.stage is Stage.COARSE:
        lines.append(_recall_text(folder))
    return "\n".join(lines)


def _coarse_checkpoint(task: TrainingTask, coarse_folder: ModelFolder) -> Checkpoint | None:
    if task.plan.region == "body" or not coarse_folder.final.exists():
        return None
    return load_checkpoint(coarse_folder.final)


def _identity(checkpoint: Checkpoint) -> str:
    total = sum(float(value.double().abs().sum()) for value in checkpoint.weights.values())
    return f"{checkpoint.plan.hash} {checkpoint.iteration} {total:.12g}"


def _begin(folder: Path, made_with: dict[str, str | None]) -> None:
    """Keeps the predictions in the folder only if the same weights made them."""
    marker = folder / "made_with.json"
    if marker.exists() and load_json(marker) == made_with:
        return
    if folder.exists():
        for old in folder.iterdir():
            old.unlink()
    write_text(marker, json.dumps(made_with, indent=2) + "\n")


def _reference_box(case: Case, labels: LabelSet) -> BoundingBox | None:
    return BoundingBox.of_mask(_reference(case, labels) > 0)


def _reference(case: Case, labels: LabelSet) -> np.ndarray:
    if case.label is None:
        raise ValueError(f"case {case.id} has no label map")
    return labels.to_indices(read_label_map(case.label).array_zyx)


def _largest_components_that_help(folder: Path, cases: list[Case], labels: LabelSet) -> tuple[str, ...]:
    """Organs whose mean Dice rises when only their largest component is kept."""
    gains: dict[str, list[float]] = {}
    for case in cases:
        reference = _reference(case, labels)
        predicted = labels.to_indices(read_label_map(folder / f"{case.id}.nii.gz").array_zyx)
        before = dice_per_organ(predicted, reference, labels.count)
        after = dice_per_organ(keep_largest(predicted, range(1, labels.channels)), reference, labels.count)
        for name, old, new in zip(labels.names, before, after, strict=True):
            if case.annotated is None or name in case.annotated:
                gains.setdefault(name, []).append(new - old)
    return tuple(name for name, values in gains.items() if np.mean(values) > LARGEST_COMPONENT_GAIN)


def _save_recall(folder: Path, case: Case, segmenter: Segmenter, image: Image, task: TrainingTask) -> None:
    """Share of each organ's reference voxels inside the region that FINE would get."""
    reference = _reference(case, task.labels)
    organs = segmenter.find_organs(image)
    inside = reference
    if organs is not None:  # without a box, FINE searches the whole body
        region = organs.grown(task.plan.margin_mm, image.geometry.spacing_zyx_mm, image.geometry.shape_zyx)
        inside = reference[region.slices]
    counts = np.bincount(reference.ravel(), minlength=task.labels.channels)
    found = np.bincount(inside.ravel(), minlength=task.labels.channels)
    recall = {
        name: float(found[index] / counts[index])
        for index, name in enumerate(task.labels.names, start=1)
        if counts[index]
    }
    write_text(folder / f"{case.id}.recall.json", json.dumps(recall, indent=2) + "\n")


def _recall_text(folder: Path) -> str:
    worst: tuple[float, str, str] = (1.0, "", "")
    values: list[float] = []
    for path in sorted(folder.glob("*.recall.json")):
        recall = load_json(path)
        for organ, share in recall.items():  # type: ignore[attr-defined]
            values.append(share)
            worst = min(worst, (share, path.name.removesuffix(".recall.json"), organ))
    if not values:
        return "no organ to recall"
    text = f"recall of the region: mean {np.mean(values):.4f}, worst {worst[0]:.4f}"
    return text + (f" ({worst[2]} in {worst[1]})" if worst[0] < 1 else "")
