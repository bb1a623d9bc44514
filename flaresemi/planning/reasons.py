"""Why a number in the plans is what it is, in words a user can check."""

import math

from flaresemi.channels import is_ct
from flaresemi.geometry import FloatTriple, IntTriple
from flaresemi.networks.cost import forward_gflop, parameter_count, training_memory_gib
from flaresemi.planning import regions, sizing
from flaresemi.planning.presets import Preset
from flaresemi.planning.sizing import SizedStage, Sizer
from flaresemi.plans import DatasetFingerprint

#: Why a channel that is no CT is normalized as it is.
INTENSITIES = {
    "zscore": "no CT, so mean and SD of each image inside the body",
    "none": "intensities as they are, as the name asks for",
    "rescale_to_0_1": "from the lowest to the highest value of each image, as the name asks for",
    "rgb_to_0_1": "divided by 255, as the name asks for",
}

#: An organ of fewer voxels is hardly learned. Chosen: a ball of two voxels across.
SMALL_VOXELS = 8


def shape(values: IntTriple) -> str:
    """126 × 58 × 108."""
    return " × ".join(str(value) for value in values)


def millimeters(values: FloatTriple) -> str:
    """2.5 × 0.8 × 0.8 mm."""
    return " × ".join(f"{value:.4g}" for value in values) + " mm"


def fine(sizer: Sizer, stage: SizedStage, two: bool, margin_mm: float) -> dict[str, str]:
    """Reasons of FINE's plan, by field."""
    whole = "the organs' box with its margin" if two else "the body"
    spacing = sizer.native_reason
    if stage.spacing_zyx_mm != sizer.native_mm:
        spacing += (
            f"; coarsened to {millimeters(stage.spacing_zyx_mm)}, finest axes first, until {whole} holds at most "
            f"{sizing.PATCHES_PER_REGION} patches"
        )
    return _common(sizer, stage) | {
        "spacing_zyx_mm": spacing,
        "patch_zyx": (
            f"the largest in the budget with the proportions of {whole} (median {shape(stage.region_zyx)} voxels, "
            f"{stage.patches:.1f} patches), divisible by the strides"
        ),
        "region": (
            "two stages: FINE works in the box that COARSE finds" if two else "one stage: FINE works on the whole body"
        ),
        "margin_mm": f"{margin_mm:g} mm about the organs' box, in training and prediction"
        if two
        else "unused: one stage",
    }


def coarse(sizer: Sizer, stage: SizedStage, fine_gflop: float) -> dict[str, str]:
    """Reasons of COARSE's plan, by field; `fine_gflop` is what FINE costs over its region."""
    share = forward_gflop(stage.network, stage.patch_zyx) / fine_gflop
    organ = sizer.organ_voxels(stage.spacing_zyx_mm)
    unless = kept = ""
    if share > sizing.COARSE_SHARE:
        unless = f", unless the largest organ of a case would have fewer than {sizing.FOUND_VOXELS} voxels then"
    if organ < math.inf:
        few = f", fewer than the {sizing.FOUND_VOXELS} with which it is surely found" * (organ < sizing.FOUND_VOXELS)
        kept = f"; the largest organ of a case (median) has {organ:.0f} voxels{few}"
    return _common(sizer, stage) | {
        "spacing_zyx_mm": (
            f"the finest that is at least {sizing.COARSE_FACTOR:g} times FINE's on every axis and about isotropic "
            f"(no finer than {sizing.LOCALIZING_MM:g} mm where FINE is coarser on another axis), and at which one "
            f"patch holds a large body within the budget and costs at most 1/{1 / sizing.COARSE_SHARE:.0f} of FINE"
            f"{unless} (here {100 * share:.1f} %){kept}"
        ),
        "patch_zyx": (
            f"holds the 95th-percentile body ({millimeters(sizer.extents.large_body_mm)}, "
            f"{shape(stage.region_zyx)} voxels), so one pass finds the organs"
        ),
        "region": "COARSE always works on the body",
        "margin_mm": "margin about the box that COARSE finds, as in FINE",
    }


def preset(chosen: Preset, name: str) -> str:
    """The reason that describes a preset."""
    blocks = f"{chosen.block} blocks" if chosen.architecture == "unet" else f"the network '{chosen.architecture}'"
    text = f"{name}: {blocks}, {chosen.features[0]} to {chosen.features[-1]} features"
    if chosen.voxels_per_step is not None:
        text += f", at most {chosen.voxels_per_step:,} voxels per training step so that two CPU cores can train it"
    return text


def memory(name: str, gib: float, default: bool) -> str:
    """Where the memory budget comes from."""
    return f"{gib:g} GiB, {f'what {name} is made for' if default else 'as asked for (--gpu-memory-gib)'}"


def body(channels: tuple[str, ...]) -> str:
    """How the patient is found."""
    if is_ct(channels[0]):
        return "the first channel is CT, where HU distinguish air from tissue"
    return f"the first channel is no CT ({', '.join(channels)}): the threshold comes from each image's histogram"


def ignored(fingerprint: DatasetFingerprint, two: bool) -> dict[str, str]:
    """What follows from voxels that nobody annotated; nothing where there are none."""
    partial = [case for case in fingerprint.cases if case.ignored_voxels]
    if not partial:
        return {}
    known = [1 - case.ignored_voxels / math.prod(case.shape_zyx) for case in partial]
    text = (
        f"{len(partial)} of {len(fingerprint.cases)} labeled cases are annotated in part ({100 * min(known):.2g} to "
        f"{100 * max(known):.2g} % of their voxels): the organs' boxes, volumes and intensities are of that part"
    )
    if two:
        text += (
            "; FINE is trained where an organ may be, in the box of organs and ignored voxels, and meets smaller "
            "boxes in prediction: --stages one avoids that"
        )
    return {"ignored": text}


def small_organs(fingerprint: DatasetFingerprint, stage: SizedStage) -> dict[str, str]:
    """What FINE's spacing leaves too little of to learn; nothing where there is no such organ."""
    voxel_mm3 = math.prod(stage.spacing_zyx_mm)
    volumes = regions.median_organs_mm3(fingerprint)
    few = [
        f"{name} {volumes[name] / voxel_mm3:.2g}"
        for name in fingerprint.labels.names
        if name in volumes and volumes[name] / voxel_mm3 < SMALL_VOXELS
    ]
    if not few:
        return {}
    return {
        "small_organs": (
            f"at FINE's spacing of {millimeters(stage.spacing_zyx_mm)}, organs of fewer than {SMALL_VOXELS} voxels "
            f"(median) are hardly learned: {', '.join(few)}; more memory (--gpu-memory-gib, --preset) may keep them"
        )
    }


def annotated(fingerprint: DatasetFingerprint) -> dict[str, str]:
    """What follows from cases that annotate some organs alone; nothing where there are none."""
    partial = [case for case in fingerprint.cases if not all(case.annotated)]
    if not partial:
        return {}
    box = "is that of the others"
    if not regions.telling_cases(fingerprint)[1]:
        box = (
            f"is the {regions.PARTIAL_PERCENTILE}th percentile of theirs, since none has every organ, and may be small"
        )
    text = f"{len(partial)} of {len(fingerprint.cases)} labeled cases annotate some organs alone: the organs' box {box}"
    return {"annotated": text}


def _common(sizer: Sizer, stage: SizedStage) -> dict[str, str]:
    size = sizer.batch_size(stage)
    network = stage.network
    gib = training_memory_gib(network, stage.patch_zyx, size)
    limits = f"{sizer.budget.memory_gib:g} GiB (estimate {gib:.2f})"
    if math.isfinite(sizer.budget.voxels):
        limits += f", {sizer.budget.voxels:,.0f} voxels per step (here {size * math.prod(stage.patch_zyx):,})"
    return {
        "batch_size": (
            f"the largest from {sizing.MIN_BATCH} to {sizing.MAX_BATCH} within {limits} and "
            f"{100 * sizing.MAX_BATCH_SHARE:g} % of all labeled voxels, never below {sizing.MIN_BATCH}"
        ),
        "resampling": "linear with antialiasing: fast, and no worse for organs than cubic",
        "network": (
            f"{len(network.features)} levels: an axis is halved while 4 voxels remain and its spacing is within a "
            "factor of 2 of the finest, which also gives it kernel 3; "
            f"{parameter_count(network) / 1e6:.1f} million parameters, "
            f"{forward_gflop(network, stage.patch_zyx):.0f} GFLOP a patch"
        ),
    }
