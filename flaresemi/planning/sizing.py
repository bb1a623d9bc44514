"""Spacing, patch, network and batch of a stage within a budget."""

import dataclasses
import math
from typing import Literal

from flaresemi.errors import PlanError
from flaresemi.geometry import FloatTriple, IntTriple
from flaresemi.networks.cost import forward_gflop, training_memory_gib
from flaresemi.planning.presets import Preset
from flaresemi.planning.regions import Extents, largest_organ_mm3, significant, target_spacing
from flaresemi.planning.topology import MIN_FEATURE_SIZE, Topology, fit_patch, round_up
from flaresemi.plans import DatasetFingerprint, NetworkPlan

#: FINE is coarsened while its region holds more patches than this: a patch then spans about half of the region along
#: each axis, and so sees which side of the body it is on. Chosen: with 24 patches, a network of 21 CPU minutes called
#: right kidneys left ones (benchmarks/coarse_to_fine.py).
PATCHES_PER_REGION = 8

#: COARSE may cost this share of FINE, over their regions, unless the organs would be lost.
COARSE_SHARE = 1 / 8

#: The largest organ keeps at least this many voxels in COARSE, whatever that costs. Chosen: six times what `organs_box`
#: takes for a speck, so that half of a pair is found, too, and not all of it need be.
FOUND_VOXELS = 48

#: COARSE's spacing is at least so many times FINE's, on every axis.
COARSE_FACTOR = 2.0

#: COARSE gains nothing from voxels finer than this on one axis while another is coarser, mm. Chosen: half an organ's
#: margin is 10 mm, and TotalSegmentator crops at 6 mm.
LOCALIZING_MM = 4.0

#: Patches per training step: at least, at most, and the share of all voxels of the dataset. Source: nnU-Net for the
#: first and last (a batch should be no large part of a small dataset); the upper end is chosen.
MIN_BATCH, MAX_BATCH, MAX_BATCH_SHARE = 2, 8, 0.05

_STEP = 1.03  # spacings grow by 3 % at a time, as in nnU-Net


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The budget of one training step."""

    memory_gib: float
    voxels: float  # patch × batch; infinite where only memory counts

    def allows(self, network: NetworkPlan, patch_zyx: IntTriple, batch_size: int) -> bool:
        return (
            batch_size * math.prod(patch_zyx) <= self.voxels
            and training_memory_gib(network, patch_zyx, batch_size) <= self.memory_gib
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SizedStage:
    """A stage's spacing with the patch and network that go with it."""

    spacing_zyx_mm: FloatTriple
    region_zyx: IntTriple
    patch_zyx: IntTriple
    network: NetworkPlan

    @property
    def patches(self) -> float:
        """Patches that the region holds, by voxels."""
        return math.prod(self.region_zyx) / math.prod(self.patch_zyx)

    @property
    def region_gflop(self) -> float:
        return forward_gflop(self.network, self.patch_zyx) * self.patches


class Sizer:
    """Fits both stages to one fingerprint, preset and amount of memory."""

    def __init__(self, fingerprint: DatasetFingerprint, preset: Preset, memory_gib: float, extents: Extents) -> None:
        self.fingerprint = fingerprint
        self.preset = preset
        voxels = math.inf
        if preset.voxels_per_step is not None:
            voxels = preset.voxels_per_step * max(1.0, memory_gib / preset.memory_gib)
        self.budget = Budget(memory_gib=memory_gib, voxels=voxels)
        self.extents = extents
        self.native_mm, self.native_reason = target_spacing(fingerprint)
        self.organ_mm3 = largest_organ_mm3(fingerprint)

    def fine(self, region_mm: FloatTriple) -> SizedStage:
        """FINE for a region of this size: the native spacing, coarsened while the region holds too many patches."""
        spacing = self.native_mm
        while True:
            sized = self.fine_at(spacing, region_mm)
            if sized.patches <= PATCHES_PER_REGION:
                return sized
            finest = significant(min(spacing) * _STEP)
            spacing = (max(spacing[0], finest), max(spacing[1], finest), max(spacing[2], finest))

    def fine_at(self, spacing_mm: FloatTriple, region_mm: FloatTriple) -> SizedStage:
        region = _voxels(region_mm, spacing_mm)
        fitted = fit_patch(
            region,
            spacing_mm,
            len(self.preset.features),
            lambda patch, topology: self.budget.allows(self._fine_network(topology), patch, MIN_BATCH),
        )
        if fitted is None:
            raise PlanError(
                f"no patch fits into {self.budget.memory_gib:g} GiB of GPU memory",
                where="--gpu-memory-gib",
                fix=f"this preset was made for {self.preset.memory_gib:g} GiB; --preset small needs least",
            )
        return SizedStage(
            spacing_zyx_mm=spacing_mm, region_zyx=region, patch_zyx=fitted[0], network=self._fine_network(fitted[1])
        )

    def coarse(self, fine: SizedStage) -> SizedStage:
        """COARSE: the finest spacing at which one patch holds a large body within the budget and FINE's share.

        The share may be exceeded where the largest organ would have fewer than `FOUND_VOXELS`: FINE is cheap where
        organs are small.
        """
        finest, coarsest = (COARSE_FACTOR * extreme(fine.spacing_zyx_mm) for extreme in (min, max))
        base = min(coarsest, max(finest, LOCALIZING_MM))
        limit = COARSE_SHARE * fine.region_gflop

        def at(base_mm: float) -> FloatTriple:
            z, y, x = (max(significant(base_mm), COARSE_FACTOR * spacing) for spacing in fine.spacing_zyx_mm)
            return z, y, x

        while True:
            spacing = at(base)
            region = _voxels(self.extents.large_body_mm, spacing)
            patch, topology = round_up(region, spacing, len(self.preset.coarse_features))
            network = self._network(topology, self.preset.coarse_features, "plain")
            fits = self.budget.allows(network, patch, MIN_BATCH)
            is_worth_it = forward_gflop(network, patch) <= limit or self.organ_voxels(at(base * _STEP)) < FOUND_VOXELS
            if (fits and is_worth_it) or max(region) <= 2 * MIN_FEATURE_SIZE:  # nothing is left to save below that
                return SizedStage(spacing_zyx_mm=spacing, region_zyx=region, patch_zyx=patch, network=network)
            base *= _STEP

    def organ_voxels(self, spacing_mm: FloatTriple) -> float:
        """Voxels of the largest organ of a case at a spacing; infinite where no case has one."""
        return math.inf if self.organ_mm3 is None else self.organ_mm3 / math.prod(spacing_mm)

    def batch_size(self, sized: SizedStage) -> int:
        voxels = MAX_BATCH_SHARE * len(self.fingerprint.cases) * math.prod(sized.region_zyx)
        size = MIN_BATCH
        while (
            size < MAX_BATCH
            and (size + 1) * math.prod(sized.patch_zyx) <= voxels
            and self.budget.allows(sized.network, sized.patch_zyx, size + 1)
        ):
            size += 1
        return size

    def _fine_network(self, topology: Topology) -> NetworkPlan:
        network = self._network(topology, self.preset.features, self.preset.block)
        return dataclasses.replace(
            network, architecture=self.preset.architecture, arguments=dict(self.preset.arguments)
        )

    def _network(
        self, topology: Topology, features: tuple[int, ...], block: Literal["plain", "residual"]
    ) -> NetworkPlan:
        levels = topology.levels
        plain = block == "plain"
        return NetworkPlan(
            block=block,
            input_channels=len(self.fingerprint.channels),
            output_channels=self.fingerprint.labels.channels,
            features=features[:levels],
            kernels=topology.kernels,
            strides=topology.strides,
            encoder_convs=(2,) * levels if plain else self.preset.encoder_convs[:levels],
            decoder_convs=((2 if plain else self.preset.decoder_convs),) * (levels - 1),
        )


def _voxels(extent_mm: FloatTriple, spacing_mm: FloatTriple) -> IntTriple:
    z, y, x = (
        max(1, math.ceil(extent / spacing - 1e-3)) for extent, spacing in zip(extent_mm, spacing_mm, strict=True)
    )
    return z, y, x
