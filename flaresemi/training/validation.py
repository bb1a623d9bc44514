"""The validation that counts: whole images of held-out real cases, in their original geometry, as in prediction."""

import dataclasses
import json
import logging
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from flaresemi.case_names import case_file
from flaresemi.compute.precision import PrecisionName
from flaresemi.compute.sharding import Shard
from flaresemi.confidence import ConfidenceCounts, Temperature, fit_temperature
from flaresemi.dataset import Case, Dataset
from flaresemi.errors import CheckpointError, about_case
from flaresemi.evaluation.overlap import dice, dice_of_annotated
from flaresemi.evaluation.summary import evaluate_folders, save_summary, table
from flaresemi.files import clear_folder, content_hash, write_text
from flaresemi.geometry import BoundingBox
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.postprocessing import keep_largest
from flaresemi.inference.segmentation import write_segmentation
from flaresemi.io.images import Image, write_label_map
from flaresemi.labels import LabelSet
from flaresemi.locking import Claims
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, stored_weights_hash
from flaresemi.planning.cases import read_case, supervised_organs
from flaresemi.plans import Stage
from flaresemi.ranges import Share, ShareChange
from flaresemi.records import CAME_LATER, load_json, load_record, record_hash, save_record
from flaresemi.training import anatomy
from flaresemi.training.confidence import count_confidence
from flaresemi.training.task import TrainingTask
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)

#: Locks of the cases that processes are validating now; there only meanwhile.
_CLAIMED = ".claimed"

#: Keeping only the largest component of an organ must raise its mean Dice by this much to be adopted (chosen).
LARGEST_COMPONENT_GAIN = 0.002

#: So few held-out cases may have no stray piece of an organ that others have: the labeled cases decide, unless its mean
#: Dice falls by that much. Chosen.
FEW_HELD_OUT = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """The record of one validated case, beside its label map.

    Attributes:
        label_map: Hash of the file beside it; empty in results of older versions.
        largest_component_gain: Per organ, what its Dice gains when only the largest component is kept.
        recall: Per organ that is there, the share of its voxels inside the region that COARSE finds; None for FINE.
        confidence: How sure the networks are near organs, and how often right; None for COARSE.
    """

    label_map: str = ""
    largest_component_gain: dict[str, ShareChange]
    recall: dict[str, Share] | None = None
    confidence: ConfidenceCounts | None = dataclasses.field(default=None, metadata=CAME_LATER)


# Where several processes share the cases, one begins and concludes, and all do what lies between.


def begin_validation(task: TrainingTask, coarse_folder: ModelFolder) -> None:
    """Keeps earlier results only if the same weights made them, of the same held-out cases."""
    coarse = _coarse_checkpoint(task, coarse_folder)
    made_with = {
        "final": load_checkpoint(task.folder.final).weights_hash,
        "coarse": coarse.weights_hash if coarse else None,
    }
    _begin(
        task.folder.validation, made_with | ({"cases": record_hash(task.made_from.held_out)} if task.made_from else {})
    )


def validate_cases(
    task: TrainingTask,
    coarse_folder: ModelFolder,
    dataset: Dataset,
    *,
    device: torch.device,
    precision: PrecisionName = "auto",
    shard: Shard = Shard(),  # noqa: B008 (frozen)
) -> None:
    """Predicts the validation cases that are not done with the final weights, each with its record.

    FINE in the organs' box runs behind the COARSE model of the same fold. Until that is trained, the reference's box
    takes its place, and the result says so. COARSE is also judged by what it is for: the share of each organ that
    lies in the region it finds.

    Args:
        coarse_folder: COARSE of the same fold, trained or not.
        dataset: With all decisions about bad cases applied.
        shard: Of this process. One that helps ends when all cases are done, by whichever process.

    Raises:
        FlaresemiError: a checkpoint or a case cannot be read, or the networks' output on it is not finite.
    """
    final, coarse = load_checkpoint(task.folder.final), _coarse_checkpoint(task, coarse_folder)
    folder = task.folder.validation
    # What is kept of an organ is decided here, so every component must be seen.
    drawn = dataclasses.replace(final, keep_largest=())
    segmenter = Segmenter([drawn], [coarse] if coarse else [], device=str(device), precision=precision, engine="torch")
    needs_box = segmenter.two_stage and coarse is None
    cases = {case_id: dataset.case(case_id) for case_id in task.validation}
    names: Iterable[str] = cases
    if shard.helps:
        claims = Claims(folder / _CLAIMED)
        names = claims.hand_out(
            shard.before_others(task.validation), lambda name: _is_validated(cases[name], folder), lambda: False
        )
    hidden = not sys.stderr.isatty() or bool(shard.local_rank)
    for name in tqdm(names, desc="validation", total=len(cases), unit="case", disable=hidden):
        if not _is_validated(cases[name], folder):
            with about_case(name):
                _validate_case(cases[name], segmenter, task, folder, needs_box=needs_box)


def conclude_validation(task: TrainingTask, coarse_folder: ModelFolder, dataset: Dataset) -> str:
    """Scores all cases together and decides what is kept of an organ.

    Writes summary.json and .csv into the training's validation folder, and into the final checkpoint the organs whose
    largest component alone scores better, with the temperature that probabilities are calibrated with.

    Args:
        coarse_folder: As for `validate_cases`, with the dataset.

    Returns:
        The result as text for a terminal.

    Raises:
        FlaresemiError: a checkpoint, a record or a label map cannot be read.
    """
    final, folder = load_checkpoint(task.folder.final), task.folder.validation
    if (folder / _CLAIMED).is_dir():
        Claims(folder / _CLAIMED).clear()
    cases = [dataset.case(case_id) for case_id in task.validation]
    results = [load_record(case_file(folder, case.id, ".json"), CaseResult) for case in cases]
    told = anatomy.organs_in_one_piece(task.store, task.training, task.labels) if len(cases) < FEW_HELD_OUT else ()
    cleaned = organs_to_clean(told, results, task.labels.names)
    temperature = fit_temperature([each.confidence for each in results if each.confidence is not None])
    if (cleaned, temperature) != (final.keep_largest, final.temperature):
        _remember_file(task.folder)
        save_checkpoint(task.folder.final, dataclasses.replace(final, keep_largest=cleaned, temperature=temperature))
    summary = evaluate_folders(
        {case.id: case_file(folder, case.id, ".nii.gz") for case in cases},
        {case.id: _reference_file(case, folder) for case in cases},
        task.labels,
        annotated={case.id: case.annotated for case in cases if case.annotated is not None},
    )
    save_summary(folder / "summary.json", summary)
    lines = [table(summary)]
    helped = organs_to_clean((), results, task.labels.names)
    reasons = {"it scores better here": helped, "one piece in every labeled case": set(cleaned) - set(helped)}
    for why, organs in reasons.items():
        if names := ", ".join(name for name in cleaned if name in organs):
            lines.append(f"prediction will keep only the largest component of {names}: {why}")
    if temperature is not None:
        lines.append(_temperature_text(temperature))
    if task.plan.region == "organs" and _coarse_checkpoint(task, coarse_folder) is None:
        lines.append("validated in the reference's box, which is optimistic: COARSE of this fold is not trained yet")
    if task.plan.stage is Stage.COARSE:
        lines.append(_recall_text(dict(zip(task.validation, results, strict=True))))
    return "\n".join(lines)


def _validate_case(case: Case, segmenter: Segmenter, task: TrainingTask, folder: Path, *, needs_box: bool) -> None:
    image, reference = read_case(case, task.labels)
    if reference is None:
        raise ValueError(f"validation case {case.id} has no label map")
    scores = segmenter.scores(image, organs=BoundingBox.of_mask(reference > 0) if needs_box else None)
    segmentation = segmenter.restore(scores, image.source)
    for note in segmentation.notes:
        logger.info("%s: %s", case.id, note)
    write_segmentation(case_file(folder, case.id, ".nii.gz"), segmentation)
    if case.label_on_image_grid:
        write_label_map(_reference_file(case, folder), task.labels.to_values(reference), image.source)
    result = CaseResult(
        label_map=content_hash(case_file(folder, case.id, ".nii.gz")),
        largest_component_gain=_largest_component_gain(segmentation.indices_zyx, reference, case, task.labels),
        recall=_recall(segmenter, image, reference, task) if task.plan.stage is Stage.COARSE else None,
        confidence=None
        if task.plan.stage is Stage.COARSE
        else count_confidence(
            scores.known,
            segmentation.indices_zyx,
            reference,
            task.labels,
            None if case.annotated is None else supervised_organs(case, task.labels),
        ),
    )
    save_record(case_file(folder, case.id, ".json"), result)  # last: it says that the case is done


def _temperature_text(temperature: Temperature) -> str:
    return (
        f"probabilities are calibrated with the temperature {temperature.value:.3g}: near organs their error (ECE) is "
        f"{temperature.error_before:.4f} without it and {temperature.error_after:.4f} with it, on cases left out"
    )


def _coarse_checkpoint(task: TrainingTask, coarse_folder: ModelFolder) -> Checkpoint | None:
    if task.plan.region == "body" or not coarse_folder.final.exists():
        return None
    return load_checkpoint(coarse_folder.final)


def judged_otherwise(folder: ModelFolder, held_out: Mapping[str, str], coarse: ModelFolder | None = None) -> str:
    """Why the validation in FINE's folder is not of its present weights and held-out cases; empty where it is.

    What is not known is taken for the same: older versions noted less, and models may have been deleted since.

    Args:
        folder: FINE's training.
        held_out: Their present versions by name, see `Origin`.
        coarse: COARSE of the same models; None where FINE works on the whole body.

    Raises:
        FlaresemiError: what stands there cannot be read.
    """
    found = _noted(folder.validation)
    now = {"cases": record_hash(dict(held_out)), "final": _weights_hash(folder)}
    now["coarse"] = _weights_hash(coarse) if coarse is not None else ""
    others = {name for name, present in now.items() if present and found.get(name, present) != present}
    if "cases" in others:
        return "on cases that have changed since"
    if "final" in others:
        return "with other weights than it has now"
    if "coarse" in others:
        return "behind another COARSE" if found["coarse"] else "in the reference's box, before there was a COARSE"
    return ""


def former_files(folder: ModelFolder) -> tuple[str, ...]:
    """Hashes of the file of the final weights before validations added their findings to it; of these weights alone.

    Raises:
        FlaresemiError: what stands beside the validation cannot be read.
    """
    found = _noted(folder.validation)
    return tuple(found.get("files", ())) if found.get("final") == _weights_hash(folder) else ()


def _remember_file(folder: ModelFolder) -> None:
    """Notes which file is about to be written again with the same weights: what it labeled stays what it was."""
    found = _noted(folder.validation)
    if (present := content_hash(folder.final)) not in (files := found.get("files", [])):
        _note(folder.validation, found | {"files": [*files, present]})


def _weights_hash(folder: ModelFolder) -> str:
    """Of the final weights; empty where they are gone, or damaged: whoever uses them says so."""
    try:
        return stored_weights_hash(folder.final)
    except (FileNotFoundError, CheckpointError):
        return ""


def _noted(folder: Path) -> dict[str, Any]:
    """What a validation is of; nothing in results of versions that did not note it."""
    marker = _made_with(folder)
    found = load_json(marker) if marker.exists() else None
    return found if isinstance(found, dict) else {}


def _note(folder: Path, made_with: Mapping[str, Any]) -> None:
    write_text(_made_with(folder), json.dumps(made_with, indent=2) + "\n")


def _made_with(folder: Path) -> Path:
    return folder / "made_with.json"


def _is_validated(case: Case, folder: Path) -> bool:
    """Whether a case has a result, and the label map that it is of."""
    result, label_map = (case_file(folder, case.id, ending) for ending in (".json", ".nii.gz"))
    if not result.exists() or not label_map.is_file():
        return False
    return load_record(result, CaseResult).label_map in ("", content_hash(label_map))


def _begin(folder: Path, made_with: dict[str, str | None]) -> None:
    """Keeps the results in the folder only if the same weights made them, of the same held-out cases."""
    found = _noted(folder)
    files = {"files": found.pop("files")} if "files" in found and found.get("final") == made_with["final"] else {}
    if found.keys() >= made_with.keys() - {"cases"} and made_with | found == made_with:
        if found != made_with:  # an older version did not note the cases
            _note(folder, made_with | files)
        return
    clear_folder(folder)
    _note(folder, made_with | files)


def _reference_file(case: Case, folder: Path) -> Path:
    """The user's label map, or its copy on the image's grid where its own header is wrong."""
    if case.label is None or case.label_on_image_grid:
        return case_file(folder / "references", case.id, ".nii.gz")
    return case.label


def _largest_component_gain(
    predicted_zyx: np.ndarray, reference_zyx: np.ndarray, case: Case, labels: LabelSet
) -> dict[str, float]:
    before = dice_of_annotated(predicted_zyx, reference_zyx, labels)
    after = _cleaned_dice(predicted_zyx, reference_zyx, labels)
    return {
        name: new - old
        for name, old, new in zip(labels.names, before, after, strict=True)
        if (case.annotated is None or name in case.annotated) and old is not None and new is not None
    }


def _cleaned_dice(predicted_zyx: np.ndarray, reference_zyx: np.ndarray, labels: LabelSet) -> tuple[float | None, ...]:
    """Dice of every organ of whose prediction the largest component alone is kept, over the annotated voxels."""
    organs = range(1, labels.count + 1)
    if not labels.has_regions:
        cleaned = predicted_zyx.copy()
        keep_largest(cleaned, organs)
        return dice_of_annotated(cleaned, reference_zyx, labels)
    masks = [labels.mask(predicted_zyx, organ).astype(np.uint8) for organ in organs]
    for mask in masks:
        keep_largest(mask, (1,))
    known = reference_zyx != labels.ignored
    return tuple(
        dice((mask > 0) & known, labels.mask(reference_zyx, organ)) for organ, mask in zip(organs, masks, strict=True)
    )


def organs_to_clean(told: Collection[str], results: Sequence[CaseResult], names: Sequence[str]) -> tuple[str, ...]:
    """The organs of which prediction keeps only the largest component.

    Args:
        told: Those that are one piece in every labeled case.
        results: Of the held-out cases. Organs that it helps are taken; from `FEW_HELD_OUT` on, these alone.
        names: All organs.
    """
    gains: dict[str, list[float]] = {name: [] for name in names}
    for result in results:
        for name, gain in result.largest_component_gain.items():
            gains[name].append(gain)
    means = {name: np.mean(values) if values else 0.0 for name, values in gains.items()}
    trusted = told if len(results) < FEW_HELD_OUT else ()
    return tuple(
        name
        for name, mean in means.items()
        if mean > LARGEST_COMPONENT_GAIN or (name in trusted and mean >= -LARGEST_COMPONENT_GAIN)
    )


def _recall(
    segmenter: Segmenter, image: Image, reference_zyx: np.ndarray, task: TrainingTask
) -> dict[str, float] | None:
    """Share of each organ's reference voxels inside the region that FINE would get.

    Nothing of any organ where there is no region, and FINE searches the whole body; None where there is no organ.
    """
    counts = task.labels.per_organ(np.bincount(reference_zyx.ravel(), minlength=task.labels.channels))
    if not counts.any():
        return None
    organs = segmenter.find_organs(image)
    if organs is None:
        return {}
    region = organs.grown(task.plan.margin_mm, image.geometry.spacing_zyx_mm, image.geometry.shape_zyx)
    inside = reference_zyx[region.slices]
    found = task.labels.per_organ(np.bincount(inside.ravel(), minlength=task.labels.channels))
    return {
        name: float(part / whole) for name, part, whole in zip(task.labels.names, found, counts, strict=True) if whole
    }


def _recall_text(results: dict[str, CaseResult]) -> str:
    recalls = {case_id: result.recall for case_id, result in results.items() if result.recall is not None}
    if not recalls:
        return "no organ to recall"
    shares = [(share, organ, case_id) for case_id, recall in recalls.items() for organ, share in recall.items()]
    parts = []
    if shares:
        worst, organ, case_id = min(shares)
        where = f" ({organ} in {case_id})" if worst < 1 else ""
        parts.append(f"mean {np.mean([share for share, _, _ in shares]):.4f}, worst {worst:.4f}{where}")
    lost = [case_id for case_id, recall in recalls.items() if not recall]
    if lost:
        names = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        parts.append(f"no region found in {len(lost)} of {len(recalls)} cases, where FINE would search all: {names}")
    return f"recall of the region: {'; '.join(parts)}"
