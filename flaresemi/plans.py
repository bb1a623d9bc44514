"""Fingerprints (measured in a dataset) and plans (decided for it). Read without torch."""

import dataclasses
import enum
from pathlib import Path
from typing import Annotated, Literal

from flaresemi.channels import Scheme, is_ct
from flaresemi.conventions import NNUNET_ONLY
from flaresemi.errors import PlanError
from flaresemi.geometry import BoundingBox, IntTriple
from flaresemi.labels import LabelSet
from flaresemi.ranges import Count, Intensity, IntensitySpread, Range, Share, SizeTriple, SpacingTriple, check_ranges
from flaresemi.records import CAME_LATER, load_record, record_hash

SCHEMA_VERSION = 1

Channels = Annotated[int, Range(1, 1 << 16)]
Features = Annotated[int, Range(1, 4096)]
Kernel = Annotated[int, Range(1, 31)]
Stride = Annotated[int, Range(1, 2)]
Convs = Annotated[int, Range(1, 64)]
PlannedSpacingMm = Annotated[float, Range(1e-4, 1e4)]
PatchEdge = Annotated[int, Range(1, 4096)]
BatchSize = Annotated[int, Range(1, 10_000)]
NetworkArgument = bool | Annotated[int, Range(-(10**9), 10**9)] | Annotated[float, Range(-1e9, 1e9)] | str
MarginMm = Annotated[float, Range(0, 500)]
MemoryGib = Annotated[float, Range(0, 1e5, above=True)]
PlannedSpread = Annotated[float, Range(1e-6, 3.5e38)]

#: Prepared images are stored in float16, which ends here.
_MOST_SDS = 65504


class Stage(enum.StrEnum):
    """The two networks: COARSE finds the organs in the body, FINE segments them."""

    COARSE = "COARSE"
    FINE = "FINE"


#: How the patient is found in an image; see `Plans.body`.
BodyRule = Literal["ct", "ct_parts", "foreground", "whole", "nonzero"]


def body_rule(channels: tuple[str, ...]) -> BodyRule:
    """How the patient is found in images with these channels, unless labels contradict it (see `Plans.body`)."""
    return "ct_parts" if is_ct(channels[0]) else "foreground"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IntensityStatistics:
    """Intensities of one channel over the foreground of all labeled cases (each case weighs the same)."""

    percentile_00_5: Intensity
    percentile_05: Intensity
    percentile_50: Intensity
    percentile_95: Intensity
    percentile_99_5: Intensity
    mean: Intensity
    sd: IntensitySpread

    def __post_init__(self) -> None:
        found = (self.percentile_00_5, self.percentile_05, self.percentile_50, self.percentile_95, self.percentile_99_5)
        if list(found) != sorted(found):
            raise ValueError(f"the percentiles must not fall, found {list(found)}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFacts:
    """Intensities of one channel. The percentiles are of the middle half of each axis, where the patient is.

    Attributes:
        tissue_50: Median of the middle's voxels above -500, so without air in a CT; of all where hardly any are.
        stray: How many voxels lie so far from all others that one of them would decide the mean and SD.
    """

    minimum: Intensity
    maximum: Intensity
    middle_05: Intensity
    middle_95: Intensity
    tissue_50: Intensity
    stray: Count = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaseFingerprint:
    """Facts of one labeled case, on its canonical grid.

    Attributes:
        body_box: Where the patient is.
        foreground_box: Box of all labels; None when the label map is empty.
        voxels_per_label: Voxel count per organ, in the order of the label set (background left out).
        annotated: Per organ, whether the label map annotates it.
        voxels_outside_body: Of `voxels_per_label`, how many lie outside of `body_box`; empty where none does.
        channel_facts: Intensities of each channel; empty in older fingerprints.
        body_share: Share of the image's voxels that are the patient; None in older fingerprints.
        ignored_voxels: Voxels that nobody annotated; box and counts know nothing of them.
    """

    case_id: str
    shape_zyx: SizeTriple
    spacing_zyx_mm: SpacingTriple
    body_box: BoundingBox
    foreground_box: BoundingBox | None
    voxels_per_label: tuple[Count, ...]
    annotated: tuple[bool, ...]
    voxels_outside_body: tuple[Count, ...] = ()
    channel_facts: tuple[ChannelFacts, ...] = ()
    body_share: Share | None = None
    ignored_voxels: Count = dataclasses.field(default=0, metadata=CAME_LATER)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFingerprint:
    """Facts of the labeled cases of a dataset; no decisions. Frozen for all rounds of self-training.

    Attributes:
        intensities: One entry per channel; none where no case has a labeled voxel.
    """

    schema_version: int = SCHEMA_VERSION
    dataset_name: str
    channels: tuple[str, ...]
    labels: LabelSet
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[IntensityStatistics, ...]

    def __post_init__(self) -> None:
        if self.intensities and len(self.intensities) != len(self.channels):
            raise ValueError(f"intensities needs one entry for each of the {len(self.channels)} channels")
        for case in self.cases:
            if not len(case.voxels_per_label) == len(case.annotated) == self.labels.count:
                raise ValueError(f"case '{case.case_id}' needs one voxel count and one annotated flag per label")
            if len(case.voxels_outside_body) not in (0, self.labels.count):
                raise ValueError(f"case '{case.case_id}' needs one count of voxels outside of the body per label")

    @property
    def hash(self) -> str:
        """Identifies the facts that plans were made from.

        Without what no plan depends on, or what follows from the rest, which older fingerprints do not have.
        """
        return record_hash(self, without=("reasons", "voxels_outside_body", "channel_facts", "body_share"))

    def cropped(self, body: BodyRule) -> "DatasetFingerprint":
        """The same where a plan crops no image: bodies are whole images then, and their share of them is not known."""
        if body != "whole":
            return self
        wholes = ((case, BoundingBox.whole(case.shape_zyx)) for case in self.cases)
        cases = (dataclasses.replace(case, body_box=whole, body_share=None) for case, whole in wholes)
        return dataclasses.replace(self, cases=tuple(cases))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IntensityPlan:
    """How one channel is normalized.

    `ct`: clip to [clip_low, clip_high], subtract mean, divide by sd. The numbers are unused and None in all others.
    `zscore`: mean and sd of the image inside the body. `none`: as it is. `rescale_to_0_1`: from the lowest to the
    highest value of the image. `rgb_to_0_1`: divided by 255. Others are for models of nnU-Net; see `conventions`.
    """

    scheme: Scheme
    clip_low: Intensity | None = None
    clip_high: Intensity | None = None
    mean: Intensity | None = None
    sd: PlannedSpread | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.scheme == "ct":
            if None in (self.clip_low, self.clip_high, self.mean, self.sd):
                raise ValueError("scheme 'ct' needs clip_low, clip_high, mean and sd")
            if not self.clip_low < self.clip_high:  # type: ignore[operator]
                raise ValueError("scheme 'ct' needs clip_low < clip_high")
            if max(abs(clip - self.mean) for clip in (self.clip_low, self.clip_high)) > _MOST_SDS * self.sd:  # type: ignore[operator]
                raise ValueError(f"scheme 'ct' needs clip_low and clip_high within {_MOST_SDS} sd of mean")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """An encoder and a decoder, level by level; level 0 has full resolution.

    Attributes:
        block: `plain` (convolution, instance norm, leaky ReLU) or `residual` (nnU-Net's ResEnc encoder).
        features: Feature maps per level.
        kernels: Convolution kernel per level, (Z, Y, X).
        strides: Downsampling on entering each level; the first is (1, 1, 1).
        encoder_convs: Convolutions (plain) or blocks (residual) per encoder level.
        decoder_convs: Convolutions per decoder level; one entry fewer than levels.
        architecture: Who builds the network from this plan: `unet`, `mednext`, or what an installed package calls so
            in the entry-point group `flaresemi.networks`.
        arguments: What the builder takes besides this plan.
    """

    block: Literal["plain", "residual"]
    input_channels: Channels
    output_channels: Channels
    features: tuple[Features, ...]
    kernels: tuple[tuple[Kernel, Kernel, Kernel], ...]
    strides: tuple[tuple[Stride, Stride, Stride], ...]
    encoder_convs: tuple[Convs, ...]
    decoder_convs: tuple[Convs, ...]
    architecture: str = dataclasses.field(default="unet", metadata=CAME_LATER)
    arguments: dict[str, NetworkArgument] = dataclasses.field(default_factory=dict, metadata=CAME_LATER)

    def __post_init__(self) -> None:
        check_ranges(self)
        levels = len(self.features)
        if not 2 <= levels <= 16:
            raise ValueError(f"a network needs 2 to 16 levels, found {levels}")
        per_level = (self.kernels, self.strides, self.encoder_convs)
        if any(len(entries) != levels for entries in per_level) or len(self.decoder_convs) != levels - 1:
            raise ValueError(
                "features, kernels, strides and encoder_convs need one entry per level, decoder_convs one fewer"
            )
        if self.strides[0] != (1, 1, 1):
            raise ValueError("the first stride must be [1, 1, 1]")
        if any(size % 2 == 0 for kernel in self.kernels for size in kernel):
            raise ValueError("kernel sizes must be odd")

    @property
    def divisor_zyx(self) -> IntTriple:
        """A patch must be divisible by this on each axis."""
        total = [1, 1, 1]
        for stride in self.strides:
            total = [product * step for product, step in zip(total, stride, strict=True)]
        return total[0], total[1], total[2]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """Everything that one network needs to know, from the image to its patches.

    Attributes:
        spacing_zyx_mm: Voxel spacing that images are resampled to.
        patch_zyx: Training patch, voxels at that spacing.
        batch_size: Patches per training step, over all GPUs.
        region: `body`: the stage works on the body crop; `organs`: in the organs' box plus margin, which COARSE finds.
        margin_mm: Margin about the organs' box, the same in training and prediction.
        resampling: Interpolation of images; `spline` is that of nnU-Net's models.
        reasons: For each number above, why it is what it is. Changes nothing.
        label_inputs: Further inputs, in cascades of nnU-Net: where COARSE found each value.
        quarter_turns: Scans may lie turned in the plane of their slices: without pseudo-labels, all turns are tried.
    """

    stage: Stage
    spacing_zyx_mm: tuple[PlannedSpacingMm, PlannedSpacingMm, PlannedSpacingMm]
    patch_zyx: tuple[PatchEdge, PatchEdge, PatchEdge]
    batch_size: BatchSize
    region: Literal["body", "organs"]
    margin_mm: MarginMm
    resampling: Literal["linear", "cubic", "spline"]
    intensities: tuple[IntensityPlan, ...]
    network: NetworkPlan
    reasons: dict[str, str]
    label_inputs: Count = dataclasses.field(default=0, metadata=CAME_LATER)
    quarter_turns: bool = dataclasses.field(default=False, metadata=CAME_LATER)

    def __post_init__(self) -> None:
        check_ranges(self)
        for size, divisor in zip(self.patch_zyx, self.network.divisor_zyx, strict=True):
            if size % divisor:
                raise ValueError(
                    f"patch_zyx {list(self.patch_zyx)} must be divisible by {list(self.network.divisor_zyx)}, "
                    "the product of the network's strides"
                )
        if self.patch_zyx == self.network.divisor_zyx:
            raise ValueError(
                f"patch_zyx {list(self.patch_zyx)} is a single voxel on the network's last level: it must be larger, "
                "or the network have fewer strides of 2"
            )
        if len(self.intensities) + self.label_inputs != self.network.input_channels:
            raise ValueError("intensities needs one entry per input channel of the network")
        if self.stage is Stage.COARSE and self.region != "body":
            raise ValueError("COARSE works on the body")

    @property
    def hash(self) -> str:
        """Identifies what decides the result (not the reasons)."""
        return record_hash(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """The decisions for a dataset. A user may edit the file; every command reads it strictly and obeys.

    Attributes:
        fingerprint_hash: Of the fingerprint that it was made from.
        preset: Network family that was asked for.
        memory_gib: GPU memory that training was fitted into.
        body: How the patient is found in an image: `ct_parts`: by a threshold in HU, with hands, feet and other thin
            parts; `ct`: the same without them, as plans had it before there was another; `foreground`: by the image's
            own histogram; `whole`: not at all, nothing is cropped. (`nonzero`, in models of nnU-Net: what is not 0.)
        fine: The stage that segments. Its `region` decides whether there are two stages.
        coarse: The stage that finds; unused, but trainable, when `fine.region` is `body`.
    """

    schema_version: int = SCHEMA_VERSION
    dataset_name: str
    channels: tuple[str, ...]
    labels: LabelSet
    fingerprint_hash: str
    preset: Literal["small", "base", "large", "resenc_m", "mednext"]
    memory_gib: MemoryGib
    body: BodyRule
    fine: StagePlan
    coarse: StagePlan
    reasons: dict[str, str]

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.fine.stage is not Stage.FINE or self.coarse.stage is not Stage.COARSE:
            raise ValueError("'fine' must have stage FINE and 'coarse' stage COARSE")
        for plan in (self.fine, self.coarse):
            if {plan.resampling, self.body, *(each.scheme for each in plan.intensities)} & NNUNET_ONLY:
                raise ValueError(f"{sorted(NNUNET_ONLY)} are for models of nnU-Net")
            if plan.network.output_channels != self.labels.channels:
                raise ValueError(
                    f"{plan.stage} has {plan.network.output_channels} output channels, "
                    f"{self.labels.channels - 1} labels and background need {self.labels.channels}"
                )
            if (inputs := plan.network.input_channels) != len(self.channels):
                raise ValueError(f"{plan.stage} has {inputs} input channels, not {len(self.channels)}")

    @property
    def measured_body(self) -> BodyRule | None:
        """How the body was found in the fingerprint of plans from before `ct_parts`; None: as `body_rule` says."""
        return "ct" if self.body == "ct" and is_ct(self.channels[0]) else None

    def stage(self, stage: Stage) -> StagePlan:
        return self.fine if stage is Stage.FINE else self.coarse

    def refuse_other_dataset(self, labels: LabelSet, channels: tuple[str, ...], *, where: object) -> None:
        """Checks that what is trained by these plans would mean the organs and channels of the dataset.

        Args:
            labels, channels: Of the dataset.
            where: The dataset, for the message.

        Raises:
            PlanError: it would not.
        """
        meanings = ("labels", self.labels.meanings, labels.meanings)
        for what, ours, theirs in (meanings, ("channels", self.channels, channels)):
            if ours != theirs:
                raise _contradiction(what, where)

    def refuse_other_labels(self, labels: LabelSet, *, where: object) -> None:
        """Checks that the labels still are those of the fingerprint, in all that is known of them.

        Raises:
            PlanError: they are not.
        """
        if self.labels != labels:
            raise _contradiction("labels", where)

    @property
    def two_stage(self) -> bool:
        """Whether FINE works inside the region that COARSE finds."""
        return self.fine.region == "organs"


def _contradiction(what: str, where: object) -> PlanError:
    return PlanError(
        f"plans.json has other {what} than dataset.json",
        where=where,
        fix=f"put the {what} of the one or the other back; or flaresemi_plan_and_preprocess --keep-plans, which takes "
        "those of the dataset where organs and channels have the same names, or --replan",
    )


def load_plans(path: Path) -> Plans:
    """Reads plans.json.

    Raises:
        PlanError: it is missing (run flaresemi_plan_and_preprocess), or a key or value in it is wrong.
    """
    _refuse_absent(path)
    return load_record(path, Plans)


def load_fingerprint(path: Path) -> DatasetFingerprint:
    """Reads fingerprint.json.

    Raises:
        PlanError: it is missing or damaged.
    """
    _refuse_absent(path)
    return load_record(path, DatasetFingerprint)


def _refuse_absent(path: Path) -> None:
    if not path.is_file():
        raise PlanError(
            f"no {path.name} in this workspace",
            where=path,
            fix="run flaresemi_plan_and_preprocess first, or name the workspace with -w",
        )
