"""Trained models as one folder that needs neither the dataset nor flaresemi: checkpoints, programs, a description."""

import dataclasses
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from flaresemi import __version__
from flaresemi.conventions import Convention
from flaresemi.errors import CheckpointError, ConfigError
from flaresemi.files import copy_file
from flaresemi.geometry import FloatTriple, IntTriple
from flaresemi.inference.fine_stage import LEAST_REPAIR_MM, MAX_REPAIRS
from flaresemi.inference.levels import SPEED_LEVELS, SpeedLevels
from flaresemi.inference.models import DESCRIPTION, LoadedModels, cleaning
from flaresemi.inference.postprocessing import ATTACHED_SHARE
from flaresemi.inference.predictor import LONGEST_WINDOW_PATCHES
from flaresemi.inference.regions import SPECK_SHARE, SPECK_VOXELS, TOUCHING_VOXELS
from flaresemi.inference.sliding_window import GAUSSIAN_SIGMA
from flaresemi.inference.turns import SURER_BY
from flaresemi.labels import LabelClass, LabelSet
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flaresemi.networks.engine import trained_network
from flaresemi.networks.onnx_file import save_onnx
from flaresemi.networks.openvino import NotConvertedError, save_program
from flaresemi.plans import IntensityPlan
from flaresemi.preprocessing.cropping import BODY_HU
from flaresemi.preprocessing.splines import ANISOTROPY
from flaresemi.ranges import LabelValue
from flaresemi.records import CAME_LATER, save_record
from flaresemi.unfinished import unfinished_path
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportedNetwork:
    """One trained network.

    Attributes:
        checkpoint: Its weights, for flaresemi and torch; a path in the folder, as the next one.
        program: The same network for OpenVINO (.xml, with a .bin beside it): input `image` (batch, channels, Z, Y, X)
            float32, of any batch and any window size divisible by the stage's `window_divisor_zyx`; output logits
            (batch, outputs, Z, Y, X) float32, background first. None where OpenVINO was not installed.
        onnx: The same as an ONNX file, for a batch of one; None where it was not asked for.
    """

    fold: str
    checkpoint: str
    program: str | None
    onnx: str | None = dataclasses.field(default=None, metadata=CAME_LATER)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportedStage:
    """One stage of the cascade; see `StagePlan` for the fields that it shares with it."""

    networks: tuple[ExportedNetwork, ...]
    region: Literal["body", "organs"]
    spacing_zyx_mm: FloatTriple
    resampling: Literal["linear", "cubic", "spline"]
    intensities: tuple[IntensityPlan, ...]
    window_zyx: IntTriple
    window_divisor_zyx: IntTriple
    margin_mm: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportDescription:
    """Everything that is done to an image, for running the networks with other programs.

    Attributes:
        label_values: The value that is written for each output of the networks, background first (models of nnU-Net
            that were trained with regions have no output for it); empty in older ones.
        label_organs: The organs that each output belongs to: one, or several where organs are regions.
        quarter_turns: The image is segmented in four turns in the plane of its slices, and the surest is kept.
        steps: In words and in order.
    """

    schema_version: int = 1
    flaresemi: str
    channels: tuple[str, ...]
    labels: LabelSet
    body: str
    keep_largest: tuple[str, ...]
    touching: tuple[tuple[str, ...], ...]
    stages: dict[str, ExportedStage]
    label_values: tuple[LabelValue, ...] = ()
    label_organs: tuple[tuple[str, ...], ...] = ()
    quarter_turns: bool = dataclasses.field(default=False, metadata=CAME_LATER)
    steps: tuple[str, ...]


def export_models(
    models: LoadedModels, folder: Path, *, programs: bool, onnx: bool = False, levels: SpeedLevels | None = None
) -> None:
    """Writes trained models as a folder that `flaresemi_predict -m` and other programs can use.

    What predicts the reliability of a prediction goes along where it is beside a FINE checkpoint.

    Args:
        models: From `load_models`.
        folder: To be made; it appears when it is complete.
        programs: Also write every network as an OpenVINO program, which needs OpenVINO.
        onnx: Also write every network as an ONNX file, which needs the package onnx.
        levels: What was measured of their speed.

    Raises:
        ConfigError: there is something at the folder's place, also where it was made meanwhile.
        CheckpointError: two checkpoints are of one stage and fold.
    """
    refuse_export(models, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished_path(folder.parent)
    partial.mkdir()
    try:
        stages = {
            checkpoints[0].plan.stage.value: _stage(checkpoints, partial, programs=programs, onnx=onnx)
            for checkpoints in (models.coarse, models.fine)
            if checkpoints
        }
        for checkpoint, file in zip(models.fine, models.fine_files, strict=True):
            _copy_reliability(file, partial / _place(checkpoint))
        fine, cleaned, outputs = models.fine[0], cleaning(models.fine), _outputs(models.fine[0])
        description = ExportDescription(
            flaresemi=__version__,
            channels=fine.channels,
            labels=fine.labels,
            body=fine.body,
            keep_largest=tuple(fine.labels.names[index - 1] for index in cleaned.largest),
            touching=tuple(tuple(fine.labels.names[index - 1] for index in group) for group in cleaned.touching),
            stages=stages,
            label_values=tuple(written.values[0] if written else fine.labels.background for written, _ in outputs),
            label_organs=tuple(tuple(fine.labels.names[organ - 1] for organ in organs) for _, organs in outputs),
            quarter_turns=fine.quarter_turns,
            steps=tuple(_nnunet_steps(fine, fine.convention) if fine.convention else _steps(fine, bool(models.coarse))),
        )
        save_record(partial / DESCRIPTION, description)
        if levels is not None:
            save_record(partial / SPEED_LEVELS, levels)
        try:
            os.rename(partial, folder)
        except (FileExistsError, NotADirectoryError):
            raise _taken(folder) from None
        except OSError as problem:
            if problem.errno != errno.ENOTEMPTY:
                raise
            raise _taken(folder) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_export(models: LoadedModels, folder: Path) -> None:
    """Checks that models can be exported to a folder, which may be worth knowing before something takes hours.

    Raises:
        ConfigError: there is something at the folder's place.
        CheckpointError: two checkpoints are of one stage and fold.
    """
    if os.path.lexists(folder):
        raise _taken(folder)
    places = [_place(checkpoint) for checkpoint in (*models.coarse, *models.fine)]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise CheckpointError(
            f"two of these checkpoints say that they are {twice}: one would replace the other",
            fix="name different folds with --fold",
        )


def _outputs(fine: Checkpoint) -> list[tuple[LabelClass | None, tuple[int, ...]]]:
    """What each output of the networks writes (None: background), and the organs that it means."""
    classes = fine.labels.classes
    if fine.convention is not None and fine.convention.painted:
        return [(classes[index - 1], (organ,)) for organ, index in enumerate(fine.convention.painted, start=1)]
    return [(None, ()), *((each, each.organs) for each in classes)]


def _taken(folder: Path) -> ConfigError:
    return ConfigError("there is something at this place already", where=folder, fix="name a new folder with -o")


def _place(checkpoint: Checkpoint) -> str:
    return f"fold_{checkpoint.fold}/{checkpoint.plan.stage.value}"


def _stage(checkpoints: Sequence[Checkpoint], folder: Path, *, programs: bool, onnx: bool) -> ExportedStage:
    plan = checkpoints[0].plan
    return ExportedStage(
        networks=tuple(_network(checkpoint, folder, programs=programs, onnx=onnx) for checkpoint in checkpoints),
        region=plan.region,
        spacing_zyx_mm=plan.spacing_zyx_mm,
        resampling=plan.resampling,
        intensities=plan.intensities,
        window_zyx=plan.patch_zyx,
        window_divisor_zyx=plan.network.divisor_zyx,
        margin_mm=plan.margin_mm,
    )


def _network(checkpoint: Checkpoint, folder: Path, *, programs: bool, onnx: bool) -> ExportedNetwork:
    place = _place(checkpoint)
    final = ModelFolder(folder / place).final
    save_checkpoint(final, dataclasses.replace(checkpoint, training_state=None))
    program = f"{place}/network.xml" if programs else None
    if program is not None:
        try:
            save_program(trained_network(checkpoint), folder / program)
        except NotConvertedError as problem:
            logger.warning("%s; its weights are exported all the same", problem.what)
            program = None
    file = f"{place}/network.onnx" if onnx else None
    if file is not None:
        save_onnx(trained_network(checkpoint), folder / file)
    return ExportedNetwork(fold=checkpoint.fold, checkpoint=f"{place}/{final.name}", program=program, onnx=file)


def _copy_reliability(file: Path, place: Path) -> None:
    """The earlier snapshots and the calibration, where the exported weights are those that they belong to."""
    source, target = ModelFolder(file.parent), ModelFolder(place)
    if file != source.final or not source.calibration.is_file():
        return
    copy_file(source.calibration, target.calibration)
    for path in source.root.glob("snapshot_*.pt"):
        if path != source.final:
            save_checkpoint(target.root / path.name, load_checkpoint(path))


#: How intensities are normalized, scheme by scheme.
_INTENSITIES = (
    "Intensities, per channel: 'ct': clip to [clip_low, clip_high], subtract mean, divide by sd; 'zscore': "
    "subtract the mean and divide by the SD of the image inside the body, holes filled (a few voxels of which one "
    "alone would decide the SD are left out of it, and clipped to ten times the distance of the 5th and 95th "
    "percentiles beyond them); 'none': as it is, within ±65504; 'rescale_to_0_1': subtract the lowest value in the "
    "box, divide by the highest less the lowest (the same few voxels left out, and clipped); 'rgb_to_0_1': divide "
    "by 255."
)


def _nnunet_steps(fine: Checkpoint, convention: Convention) -> Iterator[str]:
    """What is done around a network of nnU-Net, as `Convention` and `StagePlan` have it."""
    lies = "as in the file" if convention.orientation == "file" else "pointing to superior, anterior and right"
    yield (
        f"Orient: the image's axes (Z, Y, X) {lies}, then in the order {list(convention.axes)}; spacings and windows "
        "below are in this order. One file per channel, stacked in the order of `channels`."
    )
    yield "Crop to the box of the voxels that are not 0 in every channel."
    yield (
        "Intensities, per channel: 'ct': clip to [clip_low, clip_high], subtract mean, divide by sd; 'zscore_crop': "
        "subtract the mean and divide by the SD of the crop; 'zscore_nonzero': those of the voxels that are not 0 in "
        "every channel, and of the holes in them; the others become 0; 'as_is': nothing; 'min_max': subtract the "
        "lowest value of the crop, divide by the highest less the lowest; 'rgb_to_0_1': divide by 255."
    )
    yield (
        "Resample to the stage's spacing: round(voxels * spacing / stage spacing) voxels per axis; voxel i lies at "
        "(i + 0.5) * old / new - 0.5; cubic B-splines through the voxels, clipped to the range of the image. Where "
        f"the spacing of the image, or else the stage's, is over {ANISOTROPY:g} times as long on one axis as another, "
        "slices are taken one by one, and the nearest one along that axis."
    )
    yield (
        "Windows of `window_zyx`, at most half a window apart, the last one flush; smaller volumes are padded with 0 "
        "on both sides. The logits of every window are the mean over all mirrorings that training used; those of all "
        f"windows are averaged, weighted by a Gaussian about voxel size // 2 with a SD of {GAUSSIAN_SIGMA:g} windows, "
        "and over all networks."
    )
    if fine.plan.label_inputs:
        yield (
            "COARSE does all of this first, up to its label values on the voxels of the crop. Those are resampled to "
            "FINE's voxels: each value by linear interpolation of its mask (the nearest slice where slices are taken "
            "one by one), then the largest, where background that is 0 in the image and no hole is a value of its "
            "own; equals: that of the nearest voxel, else the lowest. FINE sees, behind the image's channels, for "
            "each value in ascending order 1 where it is and 0 elsewhere."
        )
    winner = (
        "write, output by output, its value of `label_values` where it is above 0, over what is there"
        if convention.painted
        else "take the largest"
    )
    yield (
        "Restore: interpolate the logits linearly at the voxels of the crop (the nearest slice where slices were "
        f"resampled one by one) and {winner}; all else is background."
    )
    if convention.largest:
        values = [[fine.labels.classes[index - 1].values[0] for index in group] for group in convention.largest]
        yield (
            f"Clean: of each of these groups of values in turn, {values}, keep the largest component (26 neighbors) "
            "of all of them together; the rest is background."
        )
    yield "Write output i as `label_values[i]` on the image's own axes and geometry."


_TURNS = (
    "Turns: do all of this to the image turned by 0, 90, 180 and 270 degrees in the plane of its slices. How sure a "
    "turn is: twice the sum of each organ's probability where the label map has it, divided by the sum of all organs' "
    "probabilities and the label map's voxels, at FINE's spacing. Keep the surest turn if it is surer by more than "
    f"{SURER_BY:g} than the image as it lies, else that one; turn the label map back."
)


def _steps(fine: Checkpoint, two_stage: bool) -> Iterator[str]:
    yield (
        "Orient: order and flip the image's axes to (Z, Y, X), pointing to superior, posterior and left; nothing is "
        "resampled. One file per channel, stacked in the order of `channels`."
    )
    if fine.body == "whole":
        yield "Body: nothing is cropped; the box is the whole image."
    elif fine.body.startswith("ct"):
        parts = (
            " Where thin or separate dense pieces that look like the patient (fingers, toes; no sheets as wide as a "
            "table) would take more than a hundredth of its volume outside of that box, it is the box of both."
        )
        yield (
            "Body: average the image over blocks of about 4 mm; the patient is what lies above "
            f"{BODY_HU:g} HU and survives a 2D opening with a disk of 20 mm, pieces smaller than a quarter of the "
            "largest left out; crop to its box and one block more on every face."
            + (parts if fine.body == "ct_parts" else "")
        )
    else:
        yield (
            "Body: average the image over blocks of about 4 mm; the patient is what lies above a tenth of the way from "
            "the 2nd to the 98th percentile, pieces smaller than a hundredth of the largest left out; crop to its box "
            "and one block more on every face, unless that saves less than a tenth of the image."
        )
    yield _INTENSITIES
    yield (
        "Resample the body's box to a stage's spacing: round(voxels * spacing / stage spacing) voxels per axis; voxel "
        "i lies at (i + 0.5) * old / new - 0.5; triangle kernel ('linear') or Catmull-Rom ('cubic'), widened by "
        "old / new where the axis shrinks; the border repeated."
    )
    yield (
        f"Windows: per axis `window_zyx` or longer, up to {LONGEST_WINDOW_PATCHES:g} times in steps of the divisor, as "
        "computes the fewest voxels; at most half a window apart, the last one flush; smaller volumes are padded on "
        "both sides with the channel's minimum. The logits of all windows are averaged, weighted by a Gaussian about "
        f"the window's center with a SD of {GAUSSIAN_SIGMA:g} windows, and over all networks of the stage."
    )
    if two_stage:
        yield (
            "COARSE sees the whole body. Its largest logits give the organs; components (26 neighbors) under "
            f"{SPECK_VOXELS} voxels or under {SPECK_SHARE:g} of the organ's largest are left out; the box of the rest "
            "is where the organs are. Without any organ FINE searches the whole body."
        )
        yield (
            "FINE sees the organs' box with `margin_mm` on every face, at least `window_zyx` large. Where an organ "
            f"(not a component that COARSE's rule leaves out) reaches a face with {TOUCHING_VOXELS} voxels and the "
            f"image goes on, that face moves by max(margin_mm, {LEAST_REPAIR_MM:g} mm) and FINE segments again, at "
            f"most {MAX_REPAIRS} times."
        )
    else:
        yield f"{fine.plan.stage.value} sees the whole body."
    yield (
        "Restore: interpolate the logits linearly at the image's voxels (the inverse of the resampling) and take the "
        "largest; outside of the box is background."
    )
    yield _cleaning_told(fine.labels)
    if fine.quarter_turns:
        yield _TURNS
    yield "Write output i as `label_values[i]` on the image's own axes and geometry."


def _cleaning_told(labels: LabelSet) -> str:
    rest = "the output with most of its other organs and no further one" if labels.has_regions else "background"
    return (
        "Clean: the organs of each group in `touching` together fall into components (26 neighbors); the main one has "
        f"the most organs with at least {ATTACHED_SHARE:g} of the most voxels that any component has of them, and of "
        "such ones the most voxels. Of the organs that it has like that, keep what lies in it. Then, of the organs in "
        f"`keep_largest`, keep the largest component. What is left out of an organ is {rest}."
    )
