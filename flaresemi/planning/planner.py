"""From a fingerprint to plans: every number with its reason, the same on every machine."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from flaresemi.channels import is_ct, scheme_of
from flaresemi.errors import PlanError
from flaresemi.geometry import THICK_SLICES, FloatTriple, thick_axis
from flaresemi.planning import reasons
from flaresemi.planning.presets import PRESETS, Preset, PresetName
from flaresemi.planning.regions import LOST_SHARE, measure_extents
from flaresemi.planning.sizing import SizedStage, Sizer
from flaresemi.plans import (
    BodyRule,
    DatasetFingerprint,
    IntensityPlan,
    NetworkArgument,
    Plans,
    Stage,
    StagePlan,
    body_rule,
)
from flaresemi.sides import mirroring_told

logger = logging.getLogger(__name__)

StagesName = Literal["auto", "one", "two"]

#: Margin about the organs' box, the same in training and prediction. Source: FlareSemiSeg's inference.
MARGIN_MM = 20.0

#: Pixels of slices count as square up to this ratio of their sides. Chosen.
SQUARE_PIXELS = 1.1

#: One stage suffices when the median body at FINE's spacing holds at most so many FINE patches.
ONE_STAGE_PATCHES = 1.5

#: ... and the organs with their margin fill at least this share of it. Chosen: at 0.16 (hearts of ACDC), a FINE of one
#: stage was 0.11 Dice behind one in the organs' region, at 0.29 (openkbp) they were equal (docs/few_labels.md).
ONE_STAGE_SHARE = 0.25

#: One stage also suffices, however large the body, where the organs with their margin fill at least this share of it.
#: Chosen: COARSE saves FINE no more than a fifth of its work then, costs an eighth, and may cut something off.
WHOLE_BODY_SHARE = 0.8


def make_plans(
    fingerprint: DatasetFingerprint,
    *,
    preset: PresetName = "small",
    memory_gib: float | None = None,
    stages: StagesName = "auto",
    architecture: str | None = None,
    arguments: Mapping[str, NetworkArgument] | None = None,
) -> Plans:
    """Decides spacings, patches, batches and networks of both stages.

    Args:
        memory_gib: GPU memory that training may take; None: what the preset was made for.
        stages: `auto`: one where the organs fill at least 80 % of the median body, or 25 % of one that holds at most
            1.5 FINE patches, else two.
        architecture: Who builds FINE's network, on the preset's levels and features; None: as the preset says.
        arguments: Of that builder; None: those of the preset, or none for another architecture.

    Raises:
        PlanError: the fingerprint has no case, or nothing fits into the memory.
    """
    if not fingerprint.cases:
        raise PlanError("no labeled case to plan from", where=fingerprint.dataset_name)
    family = _family(preset, architecture, arguments)
    memory = float(family.memory_gib if memory_gib is None else memory_gib)
    if not (memory > 0 and math.isfinite(memory)):
        raise PlanError(f"GPU memory must be a positive number of GiB, found {memory}", where="--gpu-memory-gib")
    body, body_reason = choose_body(fingerprint)
    measured, fingerprint = fingerprint, fingerprint.cropped(body)
    extents = measure_extents(fingerprint, MARGIN_MM)
    sizer = Sizer(fingerprint, family, memory, extents)
    two, stages_reason = _choose_stages(sizer, stages)
    fine = sizer.fine(_organs_mm(sizer) if two else extents.body_mm)
    coarse = sizer.coarse(fine)
    logger.info("%s: %s", fingerprint.dataset_name, stages_reason)
    small = reasons.small_organs(fingerprint, fine)
    for told in small.values():
        logger.warning("%s: %s", fingerprint.dataset_name, told)
    intensities, intensities_reason = _intensities(fingerprint)
    turns, turns_reason = _choose_turns(fingerprint.channels, fine.spacing_zyx_mm, coarse.spacing_zyx_mm)
    return Plans(
        dataset_name=fingerprint.dataset_name,
        channels=fingerprint.channels,
        labels=fingerprint.labels,
        fingerprint_hash=measured.hash,
        preset=preset,
        memory_gib=memory,
        body=body,
        fine=_stage_plan(
            sizer,
            fine,
            stage=Stage.FINE,
            region="organs" if two else "body",
            intensities=intensities,
            reasons=reasons.fine(sizer, fine, two, MARGIN_MM)
            | {"intensities": intensities_reason, "quarter_turns": turns_reason},
            quarter_turns=turns,
        ),
        coarse=_stage_plan(
            sizer,
            coarse,
            stage=Stage.COARSE,
            region="body",
            intensities=intensities,
            reasons=reasons.coarse(sizer, coarse, fine.region_gflop)
            | {"intensities": intensities_reason, "quarter_turns": "how scans are turned stands in FINE's plan"},
        ),
        reasons={
            "preset": reasons.preset(family, preset),
            "memory_gib": reasons.memory(preset, memory, memory_gib is None),
            "body": body_reason,
            "stages": stages_reason,
            "mirroring": mirroring_told(fingerprint.labels.names, fingerprint.labels.mirror_pairs),
            **small,
            **reasons.annotated(fingerprint),
            **reasons.ignored(fingerprint, two),
        },
    )


def _stage_plan(sizer: Sizer, sized: SizedStage, **decided: Any) -> StagePlan:
    return StagePlan(
        spacing_zyx_mm=sized.spacing_zyx_mm,
        patch_zyx=sized.patch_zyx,
        batch_size=sizer.batch_size(sized),
        margin_mm=MARGIN_MM,
        resampling="linear",
        network=sized.network,
        **decided,
    )


def _family(preset: PresetName, architecture: str | None, arguments: Mapping[str, NetworkArgument] | None) -> Preset:
    family = PRESETS[preset]
    if architecture is None and arguments is None:
        return family
    return dataclasses.replace(family, architecture=architecture or family.architecture, arguments=arguments or {})


def choose_body(fingerprint: DatasetFingerprint) -> tuple[BodyRule, str]:
    """How the patient is found, and why: not at all where labels say that what would be cut off matters."""
    names = fingerprint.labels.names
    lost = [
        (outside / voxels, case.case_id, name)
        for case in fingerprint.cases
        for outside, voxels, name in zip(case.voxels_outside_body, case.voxels_per_label, names, strict=False)
        if outside > LOST_SHARE * voxels
    ]
    if not lost:
        return body_rule(fingerprint.channels), reasons.body(fingerprint.channels)
    share, case_id, name = max(lost)
    cases = len({case_id for _, case_id, _ in lost})
    return "whole", (
        f"nothing is cropped: the body crop would leave out more than {100 * LOST_SHARE:g} % of a labeled organ in "
        f"{cases} of {len(fingerprint.cases)} labeled cases, most of all {100 * share:.3g} % of {name} in {case_id}"
    )


def _choose_turns(channels: tuple[str, ...], *spacings_zyx_mm: FloatTriple) -> tuple[bool, str]:
    """Whether scans may lie turned in the plane of their slices, and why.

    Args:
        spacings_zyx_mm: Of the stages, FINE's first.
    """
    if any(map(is_ct, channels)):
        return False, "scans are segmented as they lie: files of CT say how the patient lay"
    if thick_axis(spacings_zyx_mm[0]) != 0:
        return (
            False,
            "scans are segmented as they lie: they have no axial slices that are more than "
            f"{THICK_SLICES:g} times as thick as their pixels",
        )
    if any(max(y, x) > SQUARE_PIXELS * min(y, x) for _, y, x in spacings_zyx_mm):
        return False, "scans are segmented as they lie: their pixels are not square"
    return True, (
        f"slices are more than {THICK_SLICES:g} times as thick as their pixels, and no CT: they were laid by hand, so "
        "each scan is segmented in four turns in their plane, and as it lies unless another turn is clearly surer"
    )


def _choose_stages(sizer: Sizer, stages: StagesName) -> tuple[bool, str]:
    """Whether there are two stages, and why."""
    if stages == "one":
        return False, "one stage, as asked for: FINE works on the whole body"
    if stages == "two":
        return True, "two stages, as asked for: COARSE finds the organs, FINE segments them in their box"
    if sizer.extents.organs_mm is None:
        return False, "one stage: no case has a labeled voxel, so there is no box of organs to look for"
    organs = sizer.fine(_organs_mm(sizer))
    body = sizer.fine_at(organs.spacing_zyx_mm, sizer.extents.body_mm)
    size = (
        f"the median body, {reasons.shape(body.region_zyx)} voxels at FINE's spacing, holds {body.patches:.1f} patches"
    )
    share = math.prod(organs.region_zyx) / math.prod(body.region_zyx)
    filled = f"the organs with their margin fill {100 * share:.0f} % of it"
    if share >= WHOLE_BODY_SHARE:
        return False, f"one stage: {size}, and {filled}, so that finding them first would save next to nothing"
    if body.patches > ONE_STAGE_PATCHES:
        return (
            True,
            f"two stages: {size}, more than {ONE_STAGE_PATCHES:g}, so COARSE finds the organs and FINE segments them",
        )
    size += f", at most {ONE_STAGE_PATCHES:g}, and {filled}"
    if share < ONE_STAGE_SHARE:
        return (
            True,
            f"two stages: {size}, less than {100 * ONE_STAGE_SHARE:g}: FINE learns more from patches of the organs",
        )
    return False, f"one stage: {size}, so finding the organs first would gain nothing"


def _organs_mm(sizer: Sizer) -> tuple[float, float, float]:
    return sizer.extents.organs_mm or sizer.extents.body_mm


def _intensities(fingerprint: DatasetFingerprint) -> tuple[tuple[IntensityPlan, ...], str]:
    plans, texts = [], []
    for number, channel in enumerate(fingerprint.channels):
        plan, text = _intensity(fingerprint, number, channel)
        plans.append(plan)
        texts.append(text)
    return tuple(plans), "; ".join(texts)


def _intensity(fingerprint: DatasetFingerprint, number: int, channel: str) -> tuple[IntensityPlan, str]:
    if not is_ct(channel):
        scheme = scheme_of(channel)
        return IntensityPlan(scheme=scheme), f"{channel}: {reasons.INTENSITIES[scheme]}"
    if number < len(fingerprint.intensities):
        found = fingerprint.intensities[number]
        low, high = found.percentile_00_5, found.percentile_99_5
        if low < high and found.sd > 0:
            plan = IntensityPlan(scheme="ct", clip_low=low, clip_high=high, mean=found.mean, sd=found.sd)
            return plan, (
                f"{channel}: 99 % of the organs' voxels lie between {low:.0f} and {high:.0f} HU; "
                f"mean {found.mean:.0f}, SD {found.sd:.0f}"
            )
    return IntensityPlan(
        scheme="zscore"
    ), f"{channel}: no labeled voxels to measure HU in, so each image's own mean and SD"
