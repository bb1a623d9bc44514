"""From an image to its organs: COARSE finds the region, FINE segments in it."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch

from flaresemi.compute.device import select_device
from flaresemi.compute.metering import Clock, StepClock, no_clock
from flaresemi.compute.precision import PrecisionName
from flaresemi.confidence import common_temperature
from flaresemi.errors import ConfigError
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.inference.checks import check_prepared, refusal
from flaresemi.inference.fine_stage import fine_region, segment_region
from flaresemi.inference.label_inputs import label_inputs
from flaresemi.inference.models import CheckpointName, LoadedModels, cleaning, load_models
from flaresemi.inference.orientation import quarter_turned, turned, turned_back
from flaresemi.inference.predictor import StagePredictor, WindowMode
from flaresemi.inference.regions import organs_box
from flaresemi.inference.restoring import ImageScores, placed, restored_labels, saved
from flaresemi.inference.segmentation import Segmentation
from flaresemi.inference.segmenter import ImageSegmenter, Save, Watch
from flaresemi.inference.turns import SURER_BY, SeenImage, surest
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.networks.engine import Engine, EngineName
from flaresemi.networks.kept import Kept
from flaresemi.planning.findings import Finding
from flaresemi.plans import Stage
from flaresemi.preprocessing.averaging import KnownLogits
from flaresemi.preprocessing.preprocessor import PreparedImage, prepare, restoring_kinds
from flaresemi.preprocessing.winners import RestoredLabels
from flaresemi.records import record_hash
from flaresemi.room import enough_memory
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)


class SegmenterOptions(TypedDict, total=False):
    """The options of a `Segmenter`, each explained there."""

    device: str
    tta: bool | None
    step: float
    precision: PrecisionName
    engine: EngineName
    window: WindowMode | None
    turns: bool | None


class Segmenter(ImageSegmenter):
    """Trained models, ready for any number of images.

    Args:
        fine: Checkpoints that segment, one per fold (their logits are averaged). A stage whose region is the body works
            alone, so COARSE by itself is put here, too.
        coarse: Checkpoints that find the organs; not needed when `fine` works on the whole body, or when every call
            brings the organs' box. Without either, FINE searches the whole body. In a cascade of nnU-Net, the first
            network, whose labels the second sees.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        tta: Average over the mirrorings that the networks were trained with: slower, a little better. None: as the
            framework that trained them does, nnU-Net with and flaresemi without.
        step: Distance of neighbouring windows, as a share of the window.
        precision: Of the networks' computation; `auto` knows the device, and computes models of nnU-Net in fp32 on a
            CPU, as nnU-Net does.
        engine: Who computes; on a CPU `auto` measures what is fastest, see `Engine`.
        window: `auto` lets windows be somewhat larger than the training patch where that computes fewer voxels. None:
            `patch` for models of nnU-Net, otherwise `auto`.
        kept: Where the engine keeps what the next process need not find out again.
        turns: Segment every image in four turns in the plane of its slices, and keep the surest. None: as the plan has
            it, but for models that were trained on pseudo-labels.
    """

    def __init__(  # noqa: PLR0913 (nearly all are options, by keyword)
        self,
        fine: Sequence[Checkpoint],
        coarse: Sequence[Checkpoint] = (),
        *,
        device: str = "auto",
        tta: bool | None = None,
        step: float = 0.5,
        precision: PrecisionName = "auto",
        engine: EngineName = "auto",
        window: WindowMode | None = None,
        kept: Kept | None = None,
        turns: bool | None = None,
    ) -> None:
        if not fine:
            raise ValueError("a segmenter needs a checkpoint to segment with")
        if fine[0].plan.label_inputs and not coarse:
            raise ValueError("the second network of a cascade needs the first")
        self._convention, self._clean = fine[0].convention, cleaning(fine)
        named = {name: each for name, each in {"engine": engine, "precision": precision}.items() if each != "auto"}
        place = select_device(device)
        if self._convention is not None:  # what nnU-Net itself predicts, unless something else is asked for
            tta, window = tta is None or tta, window or "patch"
            precision = "fp32" if precision == "auto" and place.type == "cpu" else precision
        tta, window = bool(tta), window or "auto"
        self.engine = Engine(place, precision, engine, kept)
        self._turns = fine[0].quarter_turns if turns is None else turns
        if self._turns and self._convention is not None:
            raise ConfigError("models of nnU-Net segment images as they lie", fix="leave out --turns")
        #: Where images are prepared; None: in main memory, as those of nnU-Net's models are, by splines.
        self._preparing = place if place.type == "cuda" and self._convention is None else None
        self.fine_files, self.models = (), ()
        self.options = {
            "tta": str(tta),
            "step": str(step),
            "cleaning": str(self._clean),
            "meaning": record_hash([fine[0].body, fine[0].labels, fine[0].channels]),
        }
        self.options |= named  # what is left as it is by default stands in no record, as in those of earlier versions
        if self._turns:
            self.options["turns"] = f"surer by {SURER_BY:g}"
        if self._convention is not None:
            self.options["convention"] = record_hash(self._convention)
        if self._convention is not None or window != "auto":
            self.options["window"] = window
        stage = functools.partial(StagePredictor, engine=self.engine, step=step, window=window)
        #: The checkpoints in `fine`, without their weights.
        self.facts = tuple(dataclasses.replace(each, weights={}) for each in fine)
        self.channels = fine[0].channels
        self.labels = fine[0].labels
        self.body = fine[0].body
        self.temperatures = (common_temperature([each.temperature for each in fine]),)
        self.two_stage = fine[0].plan.region == "organs"
        self._fine = stage(fine, tta=tta)
        # One look at the whole body needs no mirrored second opinion.
        self._coarse = stage(coarse) if coarse and self.two_stage else None
        self._first = stage(coarse, tta=tta) if fine[0].plan.label_inputs else None

    @classmethod
    def load(
        cls,
        model_folder: Path,
        *,
        folds: Sequence[str] | None = None,
        checkpoint: CheckpointName = "final",
        coarse: Path | None = None,
        **options: Unpack[SegmenterOptions],
    ) -> "Segmenter":
        """Loads trained models; see `load_models` for what is found where and `Segmenter` for the other options.

        Raises:
            CheckpointError: no models, or models that do not belong together.
            ConfigError: the device is not there.
        """
        return cls.of(load_models(model_folder, folds=folds, checkpoint=checkpoint, coarse=coarse), **options)

    @classmethod
    def of(cls, models: LoadedModels, **options: Unpack[SegmenterOptions]) -> "Segmenter":
        """Trained models that were loaded; see `Segmenter` for the options."""
        segmenter = cls(models.fine, models.coarse, kept=_kept_beside(models), **options)
        segmenter.fine_files, segmenter.models = models.fine_files, models.networks
        return segmenter

    def find_organs(self, image: Image) -> BoundingBox | None:
        """The organs' box as COARSE sees it, in canonical voxels, without margin; None when it finds no organ.

        Raises:
            ValueError: there is no COARSE model here.
        """
        coarse = self._fine if self._fine.plan.stage is Stage.COARSE else self._coarse
        if coarse is None:
            raise ValueError("there is no COARSE model to find the organs with")
        box, _ = _find_organs(coarse, prepare(image, self.body, self._preparing))
        return box

    def segment(
        self,
        image: Image,
        *,
        organs: BoundingBox | None = None,
        watch: Watch | None = None,
        save: Save | None = None,
        name: str = "",
        strict: bool = False,
    ) -> Segmentation:
        """As `ImageSegmenter.segment`.

        Args:
            organs: Their box in canonical voxels, where it is known; it takes the place of COARSE, and the plan's
                margin is added to it all the same.
        """
        whole = watch is not None or save is not None
        scores = self.scores(image, organs=organs, watch=watch, name=name, strict=strict, whole=whole)
        segmentation = self.restore(scores, image.source)
        return segmentation if save is None else saved(segmentation, [scores], save)

    @enough_memory()
    def scores(
        self,
        image: Image,
        *,
        organs: BoundingBox | None = None,
        watch: Watch | None = None,
        name: str = "",
        strict: bool = False,
        told: Collection[Finding] = (),
        whole: bool = True,
    ) -> ImageScores:
        """The first part of `segment`: all that the networks do.

        Args:
            told: Warnings that need not be logged once more.
            whole: The logits are wanted; False: where they are large, labels do.
        """
        if image.array_czyx.shape[0] != len(self.channels):
            raise ValueError(f"the image has {image.array_czyx.shape[0]} channels, not {len(self.channels)}")
        clock = StepClock()
        if self._convention is not None:
            image = turned(image, self._convention)
        with clock("body"):
            prepared = prepare(image, self.body, self._preparing)
            findings = check_prepared(self.facts[0], prepared)
        if findings and strict:
            raise refusal(findings)
        for finding in (each for each in findings if each not in told):
            logger.warning("%s%s (%s)", f"{name}: " if name else "", finding.message, finding.remedy)
        quarters, more = 0, tuple[str, ...]()
        if self._turns:
            turn = functools.partial(self._turned_look, image, prepared, organs, clock)
            look, quarters, more = surest(turn, lambda look: look.surety(self._clean, self.labels))
        else:
            look = self._look(prepared, organs, clock, whole=whole)
        if watch is not None:
            with clock("watch"):
                shown = look.crop(look.output.region)
                shown = shown.cpu().numpy() if isinstance(shown, torch.Tensor) else shown
                watch(look.output, shown, look.fill_c, look.grid.spacing_zyx_mm)
        return ImageScores(
            found=self._found(look, quarters),
            turned=image.source,
            findings=findings,
            notes=(*prepared.notes, *more, *look.notes),
            seconds=clock.seconds,
            temperature=self.temperatures[0],
        )

    def _look(self, prepared: PreparedImage, organs: BoundingBox | None, clock: StepClock, *, whole: bool) -> SeenImage:
        """Finds the organs and segments them."""
        region, notes = self._region(prepared, organs, clock)
        grid = prepared.grid(self._fine.plan)
        crop, more = self._crop(prepared, clock)
        with clock("fine"):
            fill_c = self._padding(prepared, region)
            restore = None if whole else functools.partial(self._restored, grid, clock)
            output = segment_region(self._fine, crop, region, grid, self.labels, fill_c, restore=restore)
        if restoring := clock.seconds.pop("restore", 0.0):  # a part of it, and a step of its own
            clock.seconds["fine"] -= restoring
            clock.seconds["restore"] = restoring
        return SeenImage(output=output, grid=grid, crop=crop, fill_c=fill_c, notes=(*notes, *more, *output.notes))

    def _turned_look(
        self, image: Image, prepared: PreparedImage, organs: BoundingBox | None, clock: StepClock, quarters: int
    ) -> SeenImage:
        """What is found in the image once it is turned; `prepared` and `organs` are of the image as it lies."""
        if quarters:
            organs = None if organs is None else organs.turned(quarters, image.geometry.shape_zyx)
            with clock("body"):
                prepared = prepare(quarter_turned(image, quarters), self.body, self._preparing)
        return self._look(prepared, organs, clock, whole=True)

    @enough_memory()
    def restore(self, scores: ImageScores, source: SourceGrid) -> Segmentation:
        """The second part of `segment`: labels on the image's own voxels, cleaned.

        Args:
            source: The grid of the image.
        """
        clock = StepClock()
        clock.seconds.update(scores.seconds)
        with clock("restore"):
            found = scores.found
            if isinstance(found, KnownLogits):
                found = self._restored(found.grid, no_clock, [found.logits_czyx], found.region)
            indices, doubts = placed(found.indices_zyx, found.box, found.grid, self._clean, self.labels)
            if self._convention is not None:
                indices = turned_back(indices, scores.turned, source)
        return Segmentation(
            indices_zyx=indices,
            labels=self.labels,
            source=source,
            notes=(*scores.notes, *doubts),
            seconds=clock.seconds,
            findings=scores.findings,
        )

    def _found(self, look: SeenImage, quarters: int) -> KnownLogits | RestoredLabels:
        """What was found in an image that had been turned by so many quarters, on the image as it lies."""
        if isinstance(look.output.found, RestoredLabels):
            return look.output.found
        grid = look.grid.turned(-quarters)
        return KnownLogits(
            logits_czyx=look.output.found.rot90(-quarters, (-2, -1)),
            region=look.region_before(quarters),
            grid=grid,
            kinds=restoring_kinds(self._fine.plan, grid),
            independent=self._convention is not None and bool(self._convention.painted),
        )

    def _restored(
        self, grid: StageGrid, clock: Clock, slabs: Iterable[torch.Tensor], region: BoundingBox
    ) -> RestoredLabels:
        return restored_labels(slabs, region, grid, self._fine.plan, self._convention, clock)

    def _crop(
        self, prepared: PreparedImage, clock: StepClock
    ) -> tuple[Callable[[BoundingBox], np.ndarray | torch.Tensor], tuple[str, ...]]:
        """What gives FINE's inputs in a box of its stage grid, and notes."""
        if self._first is None:
            return functools.partial(prepared.network_image, self._fine.plan), ()
        image = functools.partial(prepared.stage_image, self._fine.plan)
        with clock("coarse"):
            found, notes = label_inputs(self._first, prepared, self._fine.plan, self.labels)
        return lambda box: np.concatenate((image(box), found[(slice(None), *box.slices)])), notes

    def _region(
        self, prepared: PreparedImage, organs: BoundingBox | None, clock: StepClock
    ) -> tuple[BoundingBox, list[str]]:
        """The box that FINE segments first, on its stage grid, and notes."""
        plan = self._fine.plan
        grid = prepared.grid(plan)
        whole = BoundingBox.whole(grid.shape_zyx)
        if not self.two_stage:
            return whole, []
        notes: list[str] = []
        if organs is None and self._coarse is not None:
            with clock("coarse"):
                organs, notes = _find_organs(self._coarse, prepared)
        region = fine_region(organs, plan, grid)
        if region is None:
            missing = "no COARSE model" if self._coarse is None else "COARSE found no organ"
            return whole, [*notes, f"{missing}: FINE searched the whole body"]
        return region, notes

    def _padding(self, prepared: PreparedImage, region: BoundingBox) -> np.ndarray | None:
        """The padding values of training: each channel's minimum over the whole body; None where nothing is padded."""
        plan = self._fine.plan
        if self._convention is not None:
            return np.zeros(plan.network.input_channels, np.float32)
        if all(size >= patch for size, patch in zip(region.shape_zyx, plan.patch_zyx, strict=True)):
            return None
        return np.asarray(torch.as_tensor(prepared.network_image(plan)).amin(dim=(1, 2, 3)).cpu())


def _kept_beside(models: LoadedModels) -> Kept | None:
    """Where what was found out about these models is kept; those of nnU-Net lie in a folder of nnU-Net's."""
    if models.fine[0].convention is not None:
        return None
    return Kept(ModelFolder(models.fine_files[0].parent).compiled)


def _find_organs(coarse: StagePredictor, prepared: PreparedImage) -> tuple[BoundingBox | None, list[str]]:
    """The organs' box in canonical voxels as COARSE sees it, without margin, and notes."""
    grid = prepared.grid(coarse.plan)
    coarse.refuse_too_large(grid, BoundingBox.whole(grid.shape_zyx), whole=False)
    indices, notes = coarse.indices(prepared.network_image(coarse.plan))
    box = organs_box(indices)
    return None if box is None else grid.to_canonical(box), list(notes)
