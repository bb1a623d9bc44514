"""FINE at work in a region that may have to grow: shared by prediction and by the labeling of prepared cases."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch

from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.inference.predictor import StagePredictor
from flaresemi.inference.regions import TouchedFace, at_least, extended, inner_sides, touched_by, touched_faces
from flaresemi.inference.sliding_window import most_likely
from flaresemi.labels import LabelSet
from flaresemi.plans import StagePlan
from flaresemi.preprocessing.winners import RestoredLabels

#: How often a region is extended when the segmentation reaches its faces.
MAX_REPAIRS = 2

#: A face is moved by the plan's margin, but at least by this much (chosen: a margin of 0 must not stop the repair).
LEAST_REPAIR_MM = 10.0

#: Makes labels from the scores in a region, slab by slab.
Restore = Callable[[Iterator[torch.Tensor], BoundingBox], RestoredLabels]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FineOutput:
    """What FINE says of a region.

    Attributes:
        found: Logits of background and every other index, (channels, *region.shape_zyx); or, where these are large, the
            labels that were made of them.
        region: Where, in stage voxels; larger than requested if an organ was cut off.
        touched: Faces of the region that organs still reach.
        notes: Retreats and repairs, in words.
    """

    found: torch.Tensor | RestoredLabels
    region: BoundingBox
    touched: tuple[TouchedFace, ...]
    notes: tuple[str, ...]

    @property
    def logits(self) -> torch.Tensor:
        """The logits.

        Raises:
            ValueError: only labels are known.
        """
        if isinstance(self.found, RestoredLabels):
            raise ValueError("of this output only the labels are known")
        return self.found


def fine_region(organs: BoundingBox | None, plan: StagePlan, grid: StageGrid) -> BoundingBox | None:
    """The region that FINE segments first: the organs' box and its margin, at least a patch where the body continues.

    Args:
        organs: Their box in canonical voxels.
        plan: Of FINE.
        grid: Of FINE, for this image.

    Returns:
        A box of stage voxels; None where no organ is known inside the body.
    """
    found = None if organs is None else grid.to_stage(organs)
    if found is None:
        return None
    margin = found.grown(plan.margin_mm, grid.spacing_zyx_mm, grid.shape_zyx)
    return at_least(margin, plan.patch_zyx, grid.shape_zyx)


def segment_region(
    predictor: StagePredictor,
    crop: Callable[[BoundingBox], np.ndarray | torch.Tensor],
    region: BoundingBox,
    grid: StageGrid,
    labels: LabelSet,
    fill_c: np.ndarray | None,
    repairs: int = MAX_REPAIRS,
    restore: Restore | None = None,
) -> FineOutput:
    """Segments a region; where an organ reaches a face with image behind it, extends that face and segments again.

    Args:
        crop: Gives the prepared image in a box of stage voxels, (channels, *box.shape_zyx) float32, on any device.
        region: Where to begin.
        fill_c: Padding value per channel where the body is smaller than a window.
        repairs: How often the region may still be extended.
        restore: Called where the logits are large, so that they are never there all at once; None: they are wanted.

    Raises:
        ImageError: the region takes more memory than is free.
        PredictionError: the networks' output is not finite.
    """
    predictor.refuse_too_large(grid, region, whole=restore is None)
    if restore is not None and predictor.in_slabs(region.shape_zyx):
        output = _in_slabs(predictor, crop(region), region, grid, fill_c, restore)
    else:
        logits, retreats = predictor.logits(crop(region), fill_c)
        faces = touched_faces(logits, region, grid.shape_zyx)
        output = FineOutput(found=logits, region=region, touched=faces, notes=retreats)
        del logits
    faces, retreats = output.touched, output.notes
    if not faces:
        return output
    if repairs == 0:
        note = f"{_named(faces, labels)} even then: it may be cut off there"
        return dataclasses.replace(output, notes=(*retreats, note))
    del output  # two of them need not fit
    margin = max(predictor.plan.margin_mm, LEAST_REPAIR_MM)
    note = f"{_named(faces, labels)}: extended there by {margin:g} mm, segmented again"
    larger = extended(region, faces, margin, grid.spacing_zyx_mm, grid.shape_zyx)
    again = segment_region(predictor, crop, larger, grid, labels, fill_c, repairs - 1, restore)
    return dataclasses.replace(again, notes=(*retreats, note, *again.notes))


def _in_slabs(
    predictor: StagePredictor,
    image_czyx: np.ndarray | torch.Tensor,
    region: BoundingBox,
    grid: StageGrid,
    fill_c: np.ndarray | None,
    restore: Restore,
) -> FineOutput:
    """Labels at once, without ever having the logits of the whole region; and the faces that organs reach."""
    inside = bool(inner_sides(region, grid.shape_zyx))

    def use(slabs: Iterator[torch.Tensor]) -> tuple[RestoredLabels, list[np.ndarray]]:
        parts: list[np.ndarray] = []

        def seen() -> Iterator[torch.Tensor]:
            for slab in slabs:
                if inside:
                    parts.append(most_likely(slab))
                yield slab

        return restore(seen(), region), parts

    (restored, parts), retreats = predictor.over_slabs(image_czyx, use, fill_c)
    faces: tuple[TouchedFace, ...] = ()
    if inside:
        faces = touched_by(np.concatenate(parts), predictor.plan.network.output_channels, region, grid.shape_zyx)
    return FineOutput(found=restored, region=region, touched=faces, notes=retreats)


def _named(faces: tuple[TouchedFace, ...], labels: LabelSet) -> str:
    reaching = (", ".join(labels.names[organ - 1] for organ in labels.organs_of(face.indices)) for face in faces)
    parts = (f"{face.name} face ({organs})" for face, organs in zip(faces, reaching, strict=True))
    return f"FINE's segmentation reaches the region's {', '.join(parts)}"
