"""Estimates of what a dataset will cost, before anything is computed: disk, main memory, time, GPU memory."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from flaresemi.geometry import BoundingBox, Geometry, StageGrid, resampled_shape
from flaresemi.networks.cost import forward_gflop, inference_memory_gib, training_memory_gib
from flaresemi.planning.preparation import gib_to_prepare
from flaresemi.plans import DatasetFingerprint, Plans, Stage, StagePlan
from flaresemi.room import becomes, size_text

#: Seconds of one core to prepare a case: per million voxels of the image (unpacking, finding the patient), of its label
#: map, of a stage's image and of a stage's labels. Measured on 2026-11-23 on one AMD EPYC (Zen 4) core: CTs of
#: 41×512×512 and 112×101×122, 13-label phantoms of 60 and 100×512×512; CPU time, so a slow disk adds to it; rounded up.
_SECONDS_PER_IMAGE_MEGAVOXEL = 0.02
_SECONDS_PER_LABEL_MEGAVOXEL = 0.02
_SECONDS_PER_STAGE_MEGAVOXEL = 0.025
_SECONDS_PER_STAGE_LABEL_MEGAVOXEL = 0.012
_SECONDS_PER_CASE = 0.1

#: A training step costs forward, and twice as much backward.
_STEP_FORWARDS = 3

#: Windows overlap by half, so that inner voxels are computed up to 2³ times.
_WINDOW_STEP = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """Of one stage.

    Attributes:
        disk_gib: Its prepared cases: images in float16, labels in a byte.
        training_gib: GPU memory of training.
        training_step_tflop: Operations of one training step, 10¹².
        prediction_gib: GPU memory of predicting with windows of the size of the patch.
        prediction_tflop: Operations of predicting a case, mean over the labeled ones, without mirroring.
    """

    stage: Stage
    disk_gib: float
    training_gib: float
    training_step_tflop: float
    prediction_gib: float
    prediction_tflop: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Estimated cost of a dataset with its plans, good to about a factor of 1.5.

    Attributes:
        labeled: Cases with a label map.
        unlabeled: Cases without.
        worker_gib: Main memory of one preprocessing process, for the largest image.
        preprocessing_core_hours: Time for all cases on one core like the one that the constants were measured on.
    """

    labeled: int
    unlabeled: int
    worker_gib: float
    preprocessing_core_hours: float
    coarse: StageEstimate
    fine: StageEstimate

    @property
    def disk_gib(self) -> float:
        """All that preprocessing writes."""
        return self.coarse.disk_gib + self.fine.disk_gib

    @property
    def text(self) -> str:
        """A few lines for a person."""
        lines = [
            f"estimate for {self.labeled} labeled and {self.unlabeled} unlabeled cases:",
            f"  disk      {size_text(self.disk_gib)} for prepared cases (COARSE {size_text(self.coarse.disk_gib)}, "
            f"FINE {size_text(self.fine.disk_gib)})",
            f"  memory    up to {size_text(self.worker_gib)} for each preprocessing process (--workers)",
            f"  time      {_hours(self.preprocessing_core_hours)} of one core to prepare all cases",
        ]
        for one in (self.coarse, self.fine):
            if one.stage is Stage.COARSE and one.prediction_tflop == 0:
                continue  # a single stage: COARSE is neither trained nor used
            lines.append(
                f"  {one.stage.value:<8}  training: {size_text(one.training_gib)} of GPU memory, "
                f"{one.training_step_tflop:.3g} TFLOP a step; prediction: {size_text(one.prediction_gib)}, "
                f"{one.prediction_tflop:.3g} TFLOP a case"
            )
        return "\n".join(lines)


def estimate(
    plans: Plans, fingerprint: DatasetFingerprint, labeled: Sequence[Geometry], unlabeled: Sequence[Geometry] = ()
) -> Estimate:
    """Estimates from the headers of the images.

    Args:
        fingerprint: Tells how much of an image the patient takes, on the mean of the labeled cases.
        labeled: Canonical grids of the labeled images.
        unlabeled: Canonical grids of the unlabeled ones.

    Raises:
        ValueError: there is neither.
    """
    images = [*labeled, *unlabeled]
    if not images:
        raise ValueError("nothing to estimate: no images")
    fingerprint = fingerprint.cropped(plans.body)
    share = _body_share(fingerprint)
    coarse, fine = (_stage(plans, stage, fingerprint, labeled, unlabeled) for stage in (Stage.COARSE, Stage.FINE))
    seconds = [_preparing_seconds(image, plans, share, True) for image in labeled]
    seconds += [_preparing_seconds(image, plans, share, False) for image in unlabeled]
    return Estimate(
        labeled=len(labeled),
        unlabeled=len(unlabeled),
        worker_gib=max(gib_to_prepare(image, plans) for image in images),
        preprocessing_core_hours=sum(seconds) / 3600,
        coarse=coarse,
        fine=fine,
    )


def oversized(
    plans: Plans, fingerprint: DatasetFingerprint, images: Mapping[str, Geometry], *, disk_gib: float, memory_gib: float
) -> dict[str, str]:
    """The images that alone need more than is free, each with its size after resampling; none if all do.

    Args:
        images: Canonical grids by case.
        disk_gib: What is free.
        memory_gib: What is free.
    """
    share, found = _body_share(fingerprint), {}
    for case_id, image in images.items():
        stages = [_stage_voxels(image, plan) * share for plan in (plans.coarse, plans.fine)]
        stored = 2 * len(plans.channels) * sum(stages) / 2**30  # in float16, while preparing in float32 besides
        resampled = 6 * len(plans.channels) * max(stages) / 2**30
        if stored > disk_gib or resampled > memory_gib:
            found[case_id] = f"{_becomes(image, plans)}, {size_text(stored)} to be stored"
    return found if len(found) < len(images) else {}  # then it is not the images


def largest(plans: Plans, images: Mapping[str, Geometry]) -> str:
    """The image that needs most, and its size after resampling."""
    case_id = max(images, key=lambda case_id: _stage_voxels(images[case_id], plans.fine))
    return f"the largest is case '{case_id}': {_becomes(images[case_id], plans)}"


def _becomes(image: Geometry, plans: Plans) -> str:
    shape, spacing = image.shape_zyx, image.spacing_zyx_mm
    return becomes(StageGrid.at_spacing(shape, spacing, BoundingBox.whole(shape), plans.fine.spacing_zyx_mm))


def windows_per_axis(size: int, window: int) -> int:
    """How many windows that overlap by half cover an axis."""
    return 1 if size <= window else math.ceil((size - window) / (window * _WINDOW_STEP) - 1e-9) + 1


def _stage(
    plans: Plans,
    stage: Stage,
    fingerprint: DatasetFingerprint,
    labeled: Sequence[Geometry],
    unlabeled: Sequence[Geometry],
) -> StageEstimate:
    plan = plans.stage(stage)
    share = _body_share(fingerprint)
    voxels = [sum(_stage_voxels(image, plan) for image in images) * share for images in (labeled, unlabeled)]
    label_bytes = 1 if plans.labels.channels <= 256 else 2
    image_bytes = 2 * len(plans.channels)
    gflop = forward_gflop(plan.network, plan.patch_zyx)
    windows = 0 if stage is Stage.COARSE and not plans.two_stage else _windows(plan, fingerprint)
    return StageEstimate(
        stage=stage,
        disk_gib=(voxels[0] * (image_bytes + label_bytes) + voxels[1] * image_bytes) / 2**30,
        training_gib=training_memory_gib(plan.network, plan.patch_zyx, plan.batch_size),
        training_step_tflop=_STEP_FORWARDS * plan.batch_size * gflop / 1000,
        prediction_gib=inference_memory_gib(plan.network, plan.patch_zyx),
        prediction_tflop=windows * gflop / 1000,
    )


def _windows(plan: StagePlan, fingerprint: DatasetFingerprint) -> float:
    """Windows that predicting a case takes, mean over the labeled cases."""
    total = 0
    for case in fingerprint.cases:
        box = case.body_box
        if plan.region == "organs" and case.foreground_box is not None:
            organs = case.foreground_box.grown(plan.margin_mm, case.spacing_zyx_mm, case.shape_zyx)
            box = organs.intersection(box) or box
        shape = resampled_shape(box.shape_zyx, case.spacing_zyx_mm, plan.spacing_zyx_mm)
        total += math.prod(map(windows_per_axis, shape, plan.patch_zyx))
    return total / max(1, len(fingerprint.cases))


def _preparing_seconds(image: Geometry, plans: Plans, share: float, has_label: bool) -> float:
    voxels = math.prod(image.shape_zyx) / 1e6
    stages = sum(_stage_voxels(image, plans.stage(stage)) for stage in Stage) * share / 1e6
    seconds = len(plans.channels) * (voxels * _SECONDS_PER_IMAGE_MEGAVOXEL + stages * _SECONDS_PER_STAGE_MEGAVOXEL)
    if has_label:
        seconds += voxels * _SECONDS_PER_LABEL_MEGAVOXEL + stages * _SECONDS_PER_STAGE_LABEL_MEGAVOXEL
    return _SECONDS_PER_CASE + seconds


def _body_share(fingerprint: DatasetFingerprint) -> float:
    """Part of an image that the body's box takes, mean over the labeled cases."""
    shares = [math.prod(case.body_box.shape_zyx) / math.prod(case.shape_zyx) for case in fingerprint.cases]
    return sum(shares) / len(shares) if shares else 1.0


def _stage_voxels(image: Geometry, plan: StagePlan) -> int:
    return math.prod(resampled_shape(image.shape_zyx, image.spacing_zyx_mm, plan.spacing_zyx_mm))


def _hours(value: float) -> str:
    return f"{value:.1f} hours" if value >= 1 else f"{max(1, round(value * 60))} minutes"
