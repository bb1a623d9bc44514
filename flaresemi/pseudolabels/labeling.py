"""Labels prepared unlabeled cases with trained models and scores the result, one case at a time."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from flaresemi.appearance import Look, far_from
from flaresemi.compute.device import select_device
from flaresemi.compute.precision import PrecisionName
from flaresemi.errors import about_case
from flaresemi.geometry import BoundingBox, Geometry, StageGrid, turned_array
from flaresemi.inference.fine_stage import fine_region, segment_region
from flaresemi.inference.models import cleaning
from flaresemi.inference.predictor import StagePredictor
from flaresemi.inference.regions import organs_box
from flaresemi.inference.turns import SeenImage, surest
from flaresemi.io.case_store import CaseStore, StoredCase
from flaresemi.labels import LabelSet
from flaresemi.networks.engine import Engine
from flaresemi.plans import Stage
from flaresemi.pseudolabels.scoring import Scorer
from flaresemi.pseudolabels.teachers import Teachers
from flaresemi.room import enough_memory
from flaresemi.selection import CaseScore


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabeledCase:
    """A pseudo-label with its score.

    Attributes:
        label_zyx: Label indices on the whole FINE grid of the case.
        region: The box that FINE segmented, in FINE voxels.
        score: How far the label map can be trusted.
        ignored_zyx: Where it teaches nothing, bool; None: nowhere.
    """

    label_zyx: np.ndarray
    region: BoundingBox
    score: CaseScore
    ignored_zyx: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prepared:
    """A prepared image of a stage, as it lies or turned.

    Attributes:
        fill_c: Padding value per channel.
    """

    image_czyx: np.ndarray
    grid: StageGrid
    fill_c: np.ndarray

    @staticmethod
    def of(stored: StoredCase, quarters: int) -> "_Prepared":
        return _Prepared(
            image_czyx=turned_array(stored.image_czyx, quarters),
            grid=stored.record.grid.turned(quarters),
            fill_c=np.array(stored.record.channel_minima, np.float32),
        )

    def crop(self, box: BoundingBox) -> np.ndarray:
        """The image in a box, float32."""
        return np.ascontiguousarray(self.image_czyx[(slice(None), *box.slices)], np.float32)


class LabelsCases(Protocol):
    """Whoever labels the pool.

    Attributes:
        labels: The organs.
        fine_store: Prepared cases at FINE's spacing.
        made_with: Identifies it, for the record.
    """

    labels: LabelSet
    fine_store: CaseStore
    made_with: tuple[str, ...]

    def label(self, case_id: str) -> LabeledCase:
        """Labels one case."""

    def segment(self, case_id: str) -> np.ndarray:
        """The label map alone, on FINE's grid."""


class Labeler:
    """Labels prepared cases: COARSE finds the region, then the final weights and every snapshot segment it.

    Since the snapshots share the region, their agreement cannot reveal what COARSE missed; an organ that still reaches
    a face of the region after its repair is therefore flagged.

    Args:
        teachers: The checkpoints that label.
        fine_store: Prepared cases at FINE's spacing.
        coarse_store: The same at COARSE's; needed only with two stages.
        median_volumes_ml: Per organ, in the labeled cases; less than a hundredth of it counts as absent.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: The numeric precision of the networks.
        step: Distance of neighboring windows, as a share of the window.
        tta: The final weights segment by the mean over mirrored images.
        ignore_contested: Leave out the voxels on which the snapshots disagree with them.
    """

    def __init__(
        self,
        teachers: Teachers,
        fine_store: CaseStore,
        coarse_store: CaseStore,
        median_volumes_ml: Sequence[float],
        *,
        device: str = "auto",
        precision: PrecisionName = "auto",
        step: float = 0.5,
        tta: bool = False,
        ignore_contested: bool = False,
    ) -> None:
        # A named engine: labeling again on this machine gives the same labels.
        engine = Engine(select_device(device), precision, "torch")
        stage = functools.partial(StagePredictor, engine=engine, step=step)
        self.teachers = teachers
        self._ignore_contested = ignore_contested
        self.made_with = teachers.made_with
        self.labels = teachers.fine.labels
        self.fine_store = fine_store
        self.coarse_store = coarse_store
        fine, coarse = teachers.fine, teachers.coarse
        self._final, self._clean = stage([fine], tta=tta), cleaning([fine])
        self._scorer = Scorer(fine, teachers.snapshots, median_volumes_ml, teachers.made_with, engine=engine, step=step)
        self._coarse = stage([coarse]) if coarse and fine.plan.region == "organs" else None

    @property
    def stores(self) -> dict[Stage, CaseStore]:
        """Prepared cases of the stages that will be trained on the pseudo-labels."""
        fine = {Stage.FINE: self.fine_store}
        return fine if self._coarse is None else fine | {Stage.COARSE: self.coarse_store}

    def label(self, case_id: str) -> LabeledCase:
        """Labels one case.

        Raises:
            DatasetError: the case is not prepared, or damaged.
            ImageError: it needs more memory than is free.
            PredictionError: the networks' output is not finite.
        """
        with about_case(case_id):
            return self._label(case_id)

    def segment(self, case_id: str) -> np.ndarray:
        """The label map that `label` would save, not scored: label indices on the whole FINE grid of the case.

        Raises:
            FlaresemiError: as in `label`.
        """
        with about_case(case_id):
            return self._segment(case_id)

    @enough_memory()
    def _segment(self, case_id: str) -> np.ndarray:
        stored = self.fine_store.open(case_id)
        look, quarters = self._look(case_id, stored)
        saved = self._scorer.saved(look.output)
        return _on_grid(stored, turned_array(saved, -quarters), look.region_before(quarters))

    @enough_memory()
    def _label(self, case_id: str) -> LabeledCase:
        stored = self.fine_store.open(case_id)
        look, quarters = self._look(case_id, stored)
        flags = (*look.notes, *self._unlike_training(stored.record.grid))
        image = np.asarray(look.crop(look.output.region))
        saved, score, contested = self._scorer.score(
            case_id, look.output, image, look.fill_c, look.grid.spacing_zyx_mm, flags, contested=self._ignore_contested
        )
        region = look.region_before(quarters)
        return LabeledCase(
            label_zyx=_on_grid(stored, turned_array(saved, -quarters), region),
            region=region,
            score=score,
            ignored_zyx=None if contested is None else _on_grid(stored, turned_array(contested, -quarters), region),
        )

    def _look(self, case_id: str, stored: StoredCase) -> tuple[SeenImage, int]:
        """What the final weights say of a case, and by how many quarters it was turned for that."""
        if not self.teachers.fine.quarter_turns:
            return self._look_at(case_id, stored, 0), 0
        look, quarters, notes = surest(
            functools.partial(self._look_at, case_id, stored), lambda look: look.surety(self._clean, self.labels)
        )
        return dataclasses.replace(look, notes=(*notes, *look.notes)), quarters

    def _look_at(self, case_id: str, stored: StoredCase, quarters: int) -> SeenImage:
        fine = _Prepared.of(stored, quarters)
        region, flags = self._region(case_id, fine.grid, quarters)
        output = segment_region(self._final, fine.crop, region, fine.grid, self.labels, fine.fill_c)
        return SeenImage(output=output, grid=fine.grid, crop=fine.crop, fill_c=fine.fill_c, notes=flags)

    def _unlike_training(self, grid: StageGrid) -> list[str]:
        """How a scan's grid and body differ from those of the labeled cases; the integrity report covers its voxels."""
        geometry = Geometry(shape_zyx=grid.canonical_shape_zyx, spacing_zyx_mm=grid.canonical_spacing_zyx_mm)
        look = Look(geometry=geometry, channels=(), body_box=grid.body_box)
        return far_from(self.teachers.fine.norms, look, self.teachers.fine.channels)

    def _region(self, case_id: str, fine_grid: StageGrid, quarters: int) -> tuple[BoundingBox, tuple[str, ...]]:
        whole = BoundingBox.whole(fine_grid.shape_zyx)
        if self._coarse is None:
            return whole, ()
        coarse = _Prepared.of(self.coarse_store.open(case_id), quarters)
        everything = BoundingBox.whole(coarse.grid.shape_zyx)
        self._coarse.refuse_too_large(coarse.grid, everything, whole=False)
        box = organs_box(self._coarse.indices(coarse.crop(everything), coarse.fill_c)[0])
        organs = None if box is None else coarse.grid.to_canonical(box)
        region = fine_region(organs, self._final.plan, fine_grid)
        if region is None:
            return whole, ("COARSE found no organ: FINE searched the whole body",)
        return region, ()


def _on_grid(stored: StoredCase, saved_zyx: np.ndarray, region: BoundingBox) -> np.ndarray:
    label = np.zeros(stored.record.grid.shape_zyx, saved_zyx.dtype)
    label[region.slices] = saved_zyx
    return label
