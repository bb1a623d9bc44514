"""Which patch of which case: sample j of iteration i depends on (seed, i, j) alone."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from flaresemi.compute.metering import Clock, no_clock
from flaresemi.compute.parallel import obey_parent, one_blas_thread
from flaresemi.errors import DatasetError, FlaresemiError
from flaresemi.geometry import BoundingBox, IntTriple
from flaresemi.io.case_store import CaseStore, OpenCases, StoredCase
from flaresemi.labels import Members, partners
from flaresemi.log_lines import format_last_resort
from flaresemi.plans import StagePlan
from flaresemi.system_errors import explained
from flaresemi.training.augmentation import Augmentation, SecondView
from flaresemi.training.draws import Changes, draw_changes, draw_second_view, is_drawn
from flaresemi.training.losses import IGNORED
from flaresemi.training.patches import Batch, ReadBatch, ReadPatch, ReadSample


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCase:
    """A case as training sees it.

    Attributes:
        case_id: Name in the case store.
        supervised: Indices of the organs that its label map may be trusted on.
        share: How often it is drawn, relative to the others.
        weight: Of its loss.
        augmentation: Strength of its augmentation: `none` or what `strength_of` knows.
        last_iteration: It is not drawn any more from this iteration on; None: to the end.
        is_pseudo: Its label map is a pseudo-label.
        is_labeled: False: no label map is asked for; the sample is background alone, of weight 0.
    """

    case_id: str
    supervised: tuple[int, ...]
    share: float = 1.0
    weight: float = 1.0
    augmentation: str = "standard"
    last_iteration: int | None = None
    is_pseudo: bool = False
    is_labeled: bool = True


class Samples(Dataset):
    """The source of a training's samples.

    Attributes:
        cases: All that it draws from.
        clock: Stands around the steps `read` and `augment` of a sample.
    """

    cases: tuple[TrainingCase, ...]
    clock: Clock

    def __getitem__(self, address: tuple[int, int]) -> Batch | ReadBatch:
        """The sample of an iteration at a position of the global batch, as a batch of one: always the same."""
        raise NotImplementedError


class PatchSampler(Samples):
    """Random patches, addressed by (iteration, position in the global batch).

    Args:
        store: The stage's prepared cases.
        cases: What to draw from.
        plan: Patch size, region and margin.
        foreground_share: Share of patches centered on an organ; the organ is drawn uniformly among those that the
            case supervises and has, so that small ones are seen as often as large ones. Of cases with ignored voxels,
            all other patches are centered on annotated ones.
        region_jitter_mm: Jitter of each face of the organs' box.
        outside_share: Share of patches drawn from anywhere in the body, where the stage works in the organs' box.
        augmentations: By strength name; a missing one means none.
        organs: The label indices of each organ; None: organ i is index i.
        second_view: Makes the second view of a patch that is augmented already; None: none is made.
        seed: Of everything drawn here.
        on_device: Patches are augmented later, where the network is: samples are a `ReadBatch`. What is not all among
            `Changes` is done here all the same.
    """

    def __init__(  # noqa: PLR0913 (nearly all are options, by keyword)
        self,
        store: CaseStore,
        cases: Sequence[TrainingCase],
        plan: StagePlan,
        *,
        foreground_share: float,
        region_jitter_mm: float,
        outside_share: float,
        augmentations: Mapping[str, Augmentation],
        organs: Members | None = None,
        second_view: SecondView | None = None,
        seed: int,
        on_device: bool = False,
    ) -> None:
        self.store = store
        self.cases = tuple(cases)
        self.plan = plan
        self.foreground_share = foreground_share
        self.region_jitter_mm = region_jitter_mm
        self.outside_share = outside_share
        self.augmentations = augmentations
        self.organs = organs or tuple((index,) for index in range(1, plan.network.output_channels))
        self.second_view = second_view
        self.seed = seed
        self.on_device = on_device
        self.clock = no_clock
        self._shares = np.array([case.share for case in cases], float)
        self._last = np.array([np.inf if case.last_iteration is None else case.last_iteration for case in cases])
        self._opened = OpenCases(store)

    def __getitem__(self, address: tuple[int, int]) -> Batch | ReadBatch:
        iteration, position = address
        return self.sample(self.probabilities(iteration), np.random.default_rng((self.seed, iteration, position)))

    def sample(self, chances: np.ndarray, generator: np.random.Generator) -> Batch | ReadBatch:
        """One sample.

        Args:
            chances: How probably each case is drawn.
            generator: Of everything random in it.
        """
        return self.draw(self.cases[generator.choice(len(self.cases), p=chances)], generator)

    def draw(
        self, case: TrainingCase, generator: np.random.Generator, box: BoundingBox | None = None
    ) -> Batch | ReadBatch:
        """A random patch of a case, as a batch of one; with a box, no more than that part of the patch."""
        stored = self._opened[case.case_id]
        augmentation = self.augmentations.get(case.augmentation)
        part = box or BoundingBox.whole(self.plan.patch_zyx)
        shape = part.shape_zyx
        if augmentation and box:
            augmentation = augmentation.of_shape(shape)
        read_shape = augmentation.input_zyx if augmentation else shape
        is_later = self.on_device and is_drawn(augmentation) and is_drawn(self.second_view)
        with self.clock("read"):
            patch = self._patch_start(stored, case, generator)
            places = zip(patch, part.start, read_shape, shape, strict=True)
            z, y, x = (first + inside - (read - size) // 2 for first, inside, read, size in places)
            image, label = stored.read_patch((z, y, x), read_shape, dtype=np.float16 if is_later else np.float32)
        if label is None and case.is_labeled:
            raise DatasetError(f"case '{case.case_id}' has no label map to train on", where=stored.folder)
        if label is None or not case.is_labeled:
            label = np.zeros(image.shape[1:], np.uint8)
        seeds = [int(generator.integers(2**32)) if made else 0 for made in (augmentation, self.second_view)]
        if is_later:
            read = self._later(stored, image, label, shape, augmentation, seeds)
            swapped = read.changes.swap is not None
        else:
            with self.clock("augment"):
                image, label, second, swapped = self._augmented(stored, image, label, augmentation, seeds)
            read = ReadPatch(image_czyx=image, label_zyx=label, patch_zyx=shape, second_czyx=second)
        supervised = np.zeros((1, len(self.organs) + 1), bool)
        supervised[0, [0, *case.supervised]] = True
        if swapped and augmentation:
            supervised = np.take(supervised, partners(self.organs, augmentation.mirror_permutation), axis=1)
        weight = np.array([case.weight if case.is_labeled else 0.0], np.float32)
        labeled = np.array([case.is_labeled])
        if self.on_device:
            return ReadBatch((ReadSample(read),), supervised, weight, labeled)
        view = image[None]
        second = view if read.second_czyx is None else read.second_czyx[None]
        return Batch(view, label[None], supervised, weight, labeled, second)

    def _augmented(
        self,
        stored: StoredCase,
        image: np.ndarray,
        label: np.ndarray,
        augmentation: Augmentation | None,
        seeds: Sequence[int],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, bool]:
        """Image, label and second view, for good; and whether left and right have changed places."""
        swapped = False
        if augmentation:
            fill = np.array(stored.record.channel_minima, np.float32)
            outside = {"label_fill": stored.outside_label} if stored.outside_label else {}
            image, label, swapped = augmentation(image, label, fill, seeds[0], **outside)
        if stored.record.annotated_voxels is not None:
            label = np.where(label == stored.record.ignored, IGNORED, label.astype(np.int32))
        return image, label, self.second_view(image, seeds[1]) if self.second_view else None, swapped

    def _later(
        self,
        stored: StoredCase,
        image: np.ndarray,
        label: np.ndarray,
        patch_zyx: IntTriple,
        augmentation: Augmentation | None,
        seeds: Sequence[int],
    ) -> ReadPatch:
        """The same, to be done on the device."""
        channels = len(image)
        return ReadPatch(
            image_czyx=image,
            label_zyx=label.astype(np.int32) if label.dtype == np.uint16 else label,  # torch computes little with it
            patch_zyx=patch_zyx,
            fill=stored.record.channel_minima,
            label_fill=stored.outside_label,
            ignored=None if stored.record.annotated_voxels is None else stored.record.ignored,
            changes=draw_changes(augmentation, channels, seeds[0]) if augmentation else Changes(),
            second=draw_second_view(self.second_view, channels, patch_zyx, seeds[1]) if self.second_view else None,
        )

    def probabilities(self, iteration: int) -> np.ndarray:
        """How probably each case is drawn in an iteration."""
        shares = np.where(iteration < self._last, self._shares, 0.0)
        return shares / shares.sum()

    def _patch_start(self, stored: StoredCase, case: TrainingCase, generator: np.random.Generator) -> IntTriple:
        if self.plan.region == "organs" and generator.random() < self.outside_share:
            body = BoundingBox.whole(stored.record.grid.shape_zyx)
            return draw_start(body, self.plan.patch_zyx, _annotated_voxel(stored, body, generator), generator)
        region = training_region(stored, self.plan, self.region_jitter_mm, generator)
        center: np.ndarray | None = None
        if generator.random() < self.foreground_share:
            counts = stored.record.voxels_per_label
            present = [organ for organ in case.supervised if any(counts[index - 1] for index in self.organs[organ - 1])]
            if present:
                indices = self.organs[present[generator.integers(len(present))] - 1]
                voxels = np.concatenate([stored.class_voxels(index) for index in indices])
                if len(voxels):
                    center = voxels[generator.integers(len(voxels))]
        if center is None:
            center = _annotated_voxel(stored, region, generator)
        return draw_start(region, self.plan.patch_zyx, center, generator)


def _annotated_voxel(stored: StoredCase, region: BoundingBox, generator: np.random.Generator) -> np.ndarray | None:
    """A random annotated voxel, of the region where it has one; None where all are annotated, or none."""
    voxels = stored.annotated_sample()
    if not len(voxels):
        return None
    inside = voxels[((voxels >= region.start) & (voxels < region.stop)).all(axis=1)]
    chosen = inside if len(inside) else voxels
    return chosen[generator.integers(len(chosen))]


class LabeledAndUnlabeled(Samples):
    """Two samplers in every step: of each rank's samples, the first ones are labeled, the others are not.

    Args:
        labeled: Draws the first `labeled_per_step`.
        unlabeled: Draws the other `unlabeled_per_step`, by addresses of its own.
        labeled_per_step: Samples of one rank and step.
        unlabeled_per_step: The same.
    """

    def __init__(
        self, labeled: PatchSampler, unlabeled: PatchSampler, labeled_per_step: int, unlabeled_per_step: int
    ) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.per_step = (labeled_per_step, unlabeled_per_step)
        self.cases = (*labeled.cases, *unlabeled.cases)
        self.clock = no_clock

    def __getitem__(self, address: tuple[int, int]) -> Batch | ReadBatch:
        iteration, position = address
        self.labeled.clock = self.unlabeled.clock = self.clock
        rank, place = divmod(position, sum(self.per_step))
        labeled, unlabeled = self.per_step
        if place < labeled:
            return self.labeled[(iteration, rank * labeled + place)]
        return self.unlabeled[(iteration, rank * unlabeled + place - labeled)]


def training_region(
    stored: StoredCase, plan: StagePlan, jitter_mm: float, generator: np.random.Generator
) -> BoundingBox:
    """The part of a case that patches are drawn from: the body crop, or the organs' box with margin and jitter."""
    shape = stored.record.grid.shape_zyx
    organs = stored.record.organs_box
    if plan.region == "body" or organs is None:
        return BoundingBox.whole(shape)
    moved = organs.grown(plan.margin_mm, plan.spacing_zyx_mm, shape)
    start, stop = [], []
    for axis, spacing in enumerate(plan.spacing_zyx_mm):
        shift = generator.uniform(-jitter_mm, jitter_mm, 2) / spacing
        low = min(max(round(moved.start[axis] + shift[0]), 0), organs.stop[axis] - 1)
        high = max(min(round(moved.stop[axis] + shift[1]), shape[axis]), low + 1)
        start.append(low)
        stop.append(high)
    return BoundingBox(start=tuple(start), stop=tuple(stop))


def draw_start(
    region: BoundingBox, patch_zyx: IntTriple, center_zyx: np.ndarray | None, generator: np.random.Generator
) -> IntTriple:
    """First voxel of a random patch.

    The patch lies inside the region where the region is larger, and holds the region where it is smaller. With a
    center, the patch holds that voxel, at a random place in its middle half as far as the region allows.
    """
    start = []
    for axis, patch in enumerate(patch_zyx):
        low, high = sorted((region.start[axis], region.stop[axis] - patch))
        first, last = low, high
        if center_zyx is not None:
            voxel = int(center_zyx[axis])
            first = min(max(voxel - patch + 1 + patch // 4, low), high)
            last = max(min(voxel - patch // 4, high), first)
        start.append(int(generator.integers(first, last + 1)))
    return start[0], start[1], start[2]


class AddressSampler(Sampler):
    """Addresses (iteration, position) of one rank's samples, in order.

    Args:
        iterations: From where the training stands to its end.
        positions: This rank's part of the global batch.
    """

    def __init__(self, iterations: range, positions: range) -> None:
        self.iterations = iterations
        self.positions = positions

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for iteration in self.iterations:
            for position in self.positions:
                yield iteration, position

    def __len__(self) -> int:
        return len(self.iterations) * len(self.positions)


def build_loader(sampler: Dataset, addresses: AddressSampler, workers: int, *, pin: bool = False) -> DataLoader:
    """Batches in order, prepared by `workers` processes (0: in this one); in place of one, what made it impossible.

    Args:
        pin: Hand them over in pinned memory, as a GPU wants them.
    """
    return DataLoader(
        _Told(sampler),
        batch_size=len(addresses.positions),
        sampler=addresses,
        num_workers=workers,
        collate_fn=_collate,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker if workers else None,
        pin_memory=pin,
    )


class _Told(Dataset):
    """Hands over as a value what a user can mend: torch would raise the text of a traceback in its place."""

    def __init__(self, sampler: Dataset) -> None:
        self.sampler = sampler

    def __getitem__(self, address: tuple[int, int]) -> Batch | FlaresemiError:
        try:
            return self.sampler[address]
        except FlaresemiError as error:
            return error
        except (OSError, MemoryError, RuntimeError) as error:
            trouble = explained(error)
            if trouble is None:
                raise
            return trouble


def _collate(samples: list[Batch | ReadBatch | FlaresemiError]) -> Batch | ReadBatch | FlaresemiError:
    drawn: list[Any] = []
    for sample in samples:
        if isinstance(sample, FlaresemiError):
            return sample
        drawn.append(sample)
    kind = type(drawn[0])
    columns = {
        field.name: _joined([getattr(sample, field.name) for sample in drawn])
        for field in dataclasses.fields(kind)
        if field.name != "second_bczyx"
    }
    if issubclass(kind, ReadBatch):
        return kind(**columns)
    if all(sample.second_bczyx is sample.image_bczyx for sample in drawn):
        return kind(**columns, second_bczyx=columns["image_bczyx"])
    return kind(**columns, second_bczyx=np.concatenate([sample.second_bczyx for sample in drawn]))


def _joined(parts: list[Any]) -> Any:
    return tuple(itertools.chain(*parts)) if isinstance(parts[0], tuple) else np.concatenate(parts)


def _start_worker(_: int) -> None:
    obey_parent()
    format_last_resort()
    torch.set_num_threads(1)
    one_blas_thread()
