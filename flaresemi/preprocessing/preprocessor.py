"""An image and its labels on the voxels of a stage."""

import dataclasses
import functools
import logging
import math
import typing

import numpy as np
import torch
from scipy import ndimage

from flaresemi.compute.card import Card
from flaresemi.compute.device import upload
from flaresemi.geometry import BoundingBox, IntTriple, StageGrid, resampled_shape
from flaresemi.io.images import Image
from flaresemi.plans import BodyRule, IntensityPlan, StagePlan
from flaresemi.preprocessing.cropping import find_body
from flaresemi.preprocessing.normalization import ChannelScaling, measure_scaling, scale, scale_tensor
from flaresemi.preprocessing.resampling import (
    ALL_LINEAR,
    Kind,
    axes_between,
    input_support,
    resample_known,
    resample_labels,
    resample_part,
)
from flaresemi.preprocessing.splines import logit_kinds, resample_spline, separate_axis, spline_shape
from flaresemi.records import record_hash
from flaresemi.room import refuse_unfit
from flaresemi.system_errors import lacks_gpu_memory

logger = logging.getLogger(__name__)

#: Of a GPU's free memory, what an image may take that is prepared there: the rest is for networks and sums. Chosen.
_DEVICE_SHARE = 1 / 8

#: What is said where that is too little all the same.
_RETREAT = "GPU memory ran out, the image was prepared in main memory"

#: Raised when the same plan begins to give other voxels, so that stored cases are made anew.
_ALGORITHM = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Decisive:
    algorithm: int
    body: str
    spacing_zyx_mm: tuple[float, ...]
    resampling: str
    intensities: tuple[IntensityPlan, ...]


def preprocessing_hash(body: str, plan: StagePlan) -> str:
    """Identifies what decides a stage's stored arrays: not the patch, the network or the region."""
    return record_hash(
        _Decisive(
            algorithm=_ALGORITHM,
            body=body,
            spacing_zyx_mm=plan.spacing_zyx_mm,
            resampling=plan.resampling,
            intensities=plan.intensities,
        )
    )


class PreparedImage:
    """An image cut down to the patient, ready for every stage.

    Attributes:
        image: The canonical image.
        body_box: Where the patient is, in canonical voxels.
        body_mask_zyx: Bool, of the box's shape.
        crop_czyx: The image in the box; a view.
        notes: Retreats, in words.

    Args:
        tensor_czyx: The whole image on a device, where `network_image` is made then.
    """

    def __init__(
        self,
        image: Image,
        body_box: BoundingBox,
        body_mask_zyx: np.ndarray,
        tensor_czyx: torch.Tensor | None = None,
    ) -> None:
        self.image = image
        self.body_box = body_box
        self.body_mask_zyx = body_mask_zyx
        self.crop_czyx = image.array_czyx[(slice(None), *body_box.slices)]
        self.notes: list[str] = []
        self._tensor_czyx = None if tensor_czyx is None else tensor_czyx[(slice(None), *body_box.slices)]
        self._scalings: dict[tuple[IntensityPlan, ...], tuple[ChannelScaling, ...]] = {}

    @property
    def body_share(self) -> float:
        """Share of the image's voxels that are the patient."""
        return np.count_nonzero(self.body_mask_zyx) / math.prod(self.image.geometry.shape_zyx)

    def grid(self, plan: StagePlan) -> StageGrid:
        """How the voxels of a stage lie in this image."""
        geometry, shape = self.image.geometry, spline_shape if plan.resampling == "spline" else resampled_shape
        return StageGrid(
            canonical_shape_zyx=geometry.shape_zyx,
            canonical_spacing_zyx_mm=geometry.spacing_zyx_mm,
            body_box=self.body_box,
            shape_zyx=shape(self.body_box.shape_zyx, geometry.spacing_zyx_mm, plan.spacing_zyx_mm),
        )

    def stage_image(self, plan: StagePlan, box: BoundingBox | None = None) -> np.ndarray:
        """The image on a stage's voxels, normalized and then resampled.

        Intensities are measured over the whole body at the image's own sampling, so that stages and parts agree.

        Args:
            plan: The stage.
            box: Part of the stage's grid; only what it needs is computed. Equal to that part of the whole up to
                rounding.

        Returns:
            float32, (C, *box.shape_zyx).

        Raises:
            ImageError: that takes more memory than is free.
        """
        grid = self.grid(plan)
        to_shape = grid.shape_zyx
        from_shape: IntTriple = self.body_box.shape_zyx
        box = BoundingBox.whole(to_shape) if box is None else box
        refuse_unfit(grid, bytes_per_voxel=4 * len(self.crop_czyx), shape_zyx=box.shape_zyx)
        if plan.resampling == "spline":
            return self._spline_image(plan, to_shape)[(slice(None), *box.slices)]
        support = input_support(from_shape, to_shape, plan.resampling, box)
        scalings = self._scaling(plan.intensities)
        result = np.empty((len(self.crop_czyx), *box.shape_zyx), np.float32)
        for index, scaling in enumerate(scalings):  # channel by channel: one more copy of one channel, not of all
            part = scale(self.crop_czyx[index : index + 1, *support.slices], (scaling,))
            result[index] = resample_part(part, support, from_shape, to_shape, plan.resampling, box)[0]
        return result

    def network_image(self, plan: StagePlan, box: BoundingBox | None = None) -> np.ndarray | torch.Tensor:
        """As `stage_image`; where the image is on a device, made there: the same up to rounding, and a tensor.

        When the device's memory runs out, it is made in main memory from then on, with a note.
        """
        if self._tensor_czyx is None or plan.resampling == "spline":
            return self.stage_image(plan, box)
        try:
            return self._device_image(self._tensor_czyx, plan, plan.resampling, box)
        except RuntimeError as problem:
            if not lacks_gpu_memory(problem):
                raise
            self._tensor_czyx = None
            self.notes.append(_RETREAT)
            logger.warning("%s", _RETREAT)
        return self.stage_image(plan, box)

    @torch.no_grad()
    def _device_image(
        self, tensor_czyx: torch.Tensor, plan: StagePlan, kind: Kind, box: BoundingBox | None
    ) -> torch.Tensor:
        shapes = (self.body_box.shape_zyx, self.grid(plan).shape_zyx)
        box = BoundingBox.whole(shapes[1]) if box is None else box
        support = input_support(*shapes, kind, box)
        axes = axes_between(support, *shapes, (kind,) * 3, box)
        result = tensor_czyx.new_empty((len(tensor_czyx), *box.shape_zyx))
        for channel, target, scaling in zip(tensor_czyx, result, self._scaling(plan.intensities), strict=True):
            target.copy_(resample_known(scale_tensor(channel[support.slices], scaling), axes))
        return result

    def _spline_image(self, plan: StagePlan, shape_zyx: IntTriple) -> np.ndarray:
        """The whole of it, which a spline needs anyway."""
        axis = separate_axis(self.image.geometry.spacing_zyx_mm, plan.spacing_zyx_mm)
        result = np.empty((len(self.crop_czyx), *shape_zyx), np.float32)
        for index, scaling in enumerate(self._scaling(plan.intensities)):
            part = scale(self.crop_czyx[index : index + 1], (scaling,))
            if plan.intensities[index].scheme == "zscore_nonzero":
                part[:, ~self.filled_mask_zyx] = 0.0
            result[index] = resample_spline(part, shape_zyx, axis)[0]
        return result

    @functools.cached_property
    def filled_mask_zyx(self) -> np.ndarray:
        """`body_mask_zyx` with all holes in it."""
        return ndimage.binary_fill_holes(self.body_mask_zyx)

    def _scaling(self, intensities: tuple[IntensityPlan, ...]) -> tuple[ChannelScaling, ...]:
        if intensities not in self._scalings:
            filled = any(intensity.scheme == "zscore_nonzero" for intensity in intensities)
            mask = self.filled_mask_zyx if filled else self.body_mask_zyx
            self._scalings[intensities] = measure_scaling(self.crop_czyx, intensities, mask)
        return self._scalings[intensities]


def restoring_kinds(plan: StagePlan, grid: StageGrid) -> tuple[Kind, Kind, Kind]:
    """How a stage's logits are brought back to the canonical voxels of its grid, axis by axis."""
    if plan.resampling != "spline":
        return ALL_LINEAR
    return logit_kinds(separate_axis(plan.spacing_zyx_mm, grid.canonical_spacing_zyx_mm))


def prepare(image: Image, body: str, device: torch.device | None = None) -> PreparedImage:
    """Finds the patient in an image.

    Args:
        image: The canonical image.
        body: A `BodyRule`; see `find_body`.
        device: The image is copied there, and prepared there for networks, where it has the memory; None: nowhere.
    """
    if body not in typing.get_args(BodyRule):
        raise ValueError(f"unknown body rule '{body}'")
    find = functools.partial(find_body, image.array_czyx, image.geometry.spacing_zyx_mm, body)  # type: ignore[arg-type]
    if device is None or not _has_room(device, image):
        return PreparedImage(image, *find())
    try:
        tensor = upload(image.array_czyx, device)
        return PreparedImage(image, *find(tensor), tensor)
    except RuntimeError as problem:
        if not lacks_gpu_memory(problem):
            raise
        logger.warning("%s", _RETREAT)
    prepared = PreparedImage(image, *find())
    prepared.notes.append(_RETREAT)
    return prepared


def _has_room(device: torch.device, image: Image) -> bool:
    if device.type != "cuda" or image.array_czyx.nbytes < _DEVICE_SHARE * 2**30 * Card(device).free_gib():
        return True
    logger.info("the image is prepared in main memory: it is large beside the free memory of the GPU")
    return False


def stage_labels(indices_zyx: np.ndarray, grid: StageGrid, ignored: int | None = None) -> np.ndarray:
    """A label map on a stage's voxels.

    Args:
        indices_zyx: Internal indices on the whole canonical image, uint8 or uint16.
        grid: The stage's grid of that image.
        ignored: As for `resample_labels`.
    """
    if indices_zyx.shape != grid.canonical_shape_zyx:
        raise ValueError(f"label map of shape {indices_zyx.shape} for an image of {grid.canonical_shape_zyx}")
    return resample_labels(indices_zyx[grid.body_box.slices], grid.shape_zyx, ignored)


def canonical_labels(indices_zyx: np.ndarray, grid: StageGrid, ignored: int | None = None) -> np.ndarray:
    """A stage's label map on the voxels of the canonical image: the way back of `stage_labels`.

    Args:
        indices_zyx: Internal indices on the whole stage grid, uint8 or uint16.
        grid: The stage's grid of the image.
        ignored: As for `resample_labels`.
    """
    if indices_zyx.shape != grid.shape_zyx:
        raise ValueError(f"label map of shape {indices_zyx.shape} for a stage grid of {grid.shape_zyx}")
    canonical = np.zeros(grid.canonical_shape_zyx, indices_zyx.dtype)
    canonical[grid.body_box.slices] = resample_labels(indices_zyx, grid.body_box.shape_zyx, ignored)
    return canonical
