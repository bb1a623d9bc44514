"""The trained networks of one stage, as one function from a prepared volume to logits."""

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
import torch

from flaresemi.compute.card import Card
from flaresemi.errors import PredictionError
from flaresemi.geometry import BoundingBox, IntTriple, StageGrid
from flaresemi.inference.sliding_window import most_likely, slide_in_slabs, window_starts
from flaresemi.machine import free_memory_gib
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.networks.cost import inference_memory_gib
from flaresemi.networks.engine import Engine, Forward
from flaresemi.networks.gpu_ways import MEMORY_SHARE
from flaresemi.room import refuse_unfit
from flaresemi.system_errors import lacks_gpu_memory

logger = logging.getLogger(__name__)

WindowMode = Literal["auto", "patch"]

#: With `auto`, a window is up to this many patches long on an axis, so that fewer overlap. Measured with
#: benchmarks/fast_path.py: the mean Dice does not fall with this; it does with 2.
LONGEST_WINDOW_PATCHES = 1.375

#: Sums of windows that would be larger than this are made, and used, slab by slab. Chosen: less is no matter beside the
#: libraries, and whole sums are the faster ones where a region is segmented again.
LARGE_SUMS_BYTES = 128 << 20

_X_AXIS = 2

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class _Attempt:
    """One way to go over a volume: window, windows per forward pass, and where volume and sums lie."""

    window_zyx: IntTriple
    batch: int
    place: torch.device


class StagePredictor:
    """Runs the networks of one stage over a volume, window by window.

    Several folds are one ensemble: the mean of their logits (as in nnU-Net), summed window by window, so that the
    memory of one fold is enough.

    Args:
        checkpoints: Of the same stage and plan, one per fold.
        engine: Runs the networks.
        tta: Also predict the mirrored window, for every subset of the axes that training mirrored, and take the mean.
        step: Distance of neighbouring windows, as a share of the window.
        window: `patch`: windows have the size of the training patch; `auto`: larger, where that computes fewer voxels.
            A model of nnU-Net has its own rule about what counts in a window; see `Convention`.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        *,
        engine: Engine,
        tta: bool = False,
        step: float = 0.5,
        window: WindowMode = "auto",
    ) -> None:
        self.plan = checkpoints[0].plan
        self.device = engine.device
        self._engine = engine
        self.step = step
        self.window = window
        self.convention = checkpoints[0].convention
        painted = self.convention.painted if self.convention is not None else ()
        permutation = list(range(len(painted))) if painted else list(checkpoints[0].labels.mirror_permutation)
        self._permutation = torch.tensor(permutation, device=self.device)  # a list would go to the GPU in every pass
        axes = [checkpoint.labels.mirror_axes(checkpoint.mirror_axes) if tta else () for checkpoint in checkpoints]
        if tta and not any(axes):
            logger.warning("%s was trained without mirroring: there are no mirrored images to average", self.plan.stage)
        self._members = [
            (engine.load(checkpoint), _mirrorings(own)) for checkpoint, own in zip(checkpoints, axes, strict=True)
        ]
        self._activations = 2 if engine.needs_fp32 else 1

    def window_zyx(self, region_zyx: IntTriple) -> IntTriple:
        """The window for a region: the training patch or, if requested and memory allows, a larger one."""
        patch = self.plan.patch_zyx
        if self.window == "patch":
            return patch
        larger = larger_window(region_zyx, patch, self.plan.network.divisor_zyx, self.step)
        if larger == patch:
            return patch
        batch = self._engine.windows_per_pass(self.plan, larger)
        on_gpu = self.device.type == "cuda"
        needed = inference_memory_gib(self.plan.network, larger, batch, on_gpu=on_gpu) * self._activations
        return larger if needed < _free_gib(self.device) * (MEMORY_SHARE if on_gpu else 1) else patch

    def in_slabs(self, region_zyx: IntTriple) -> bool:
        """Whether the scores of a region are so large that they had better never be there all at once."""
        scores = 4 * self.plan.network.output_channels * math.prod(region_zyx)
        return scores > LARGE_SUMS_BYTES and region_zyx[0] > self.plan.patch_zyx[0]

    def refuse_too_large(self, grid: StageGrid, region: BoundingBox, *, whole: bool = True) -> None:
        """Checks, before the image is resampled, that a region and its scores fit into memory.

        Args:
            whole: The scores are wanted all at once.

        Raises:
            ImageError: they do not.
        """
        network, planes = self.plan.network, region.shape_zyx[0]
        at_once = planes if whole or not self.in_slabs(region.shape_zyx) else self.plan.patch_zyx[0]
        refuse_unfit(
            grid,
            bytes_per_voxel=4 * (network.input_channels + network.output_channels * at_once / planes),
            shape_zyx=region.shape_zyx,
            more_gib=_free_gib(self.device) if self.device.type == "cuda" else 0.0,
        )

    def logits(
        self, image_czyx: np.ndarray | torch.Tensor, fill_c: np.ndarray | None = None
    ) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Scores of background and all organs, all at once.

        Args:
            image_czyx: As for `over_slabs`, with the argument that follows it.

        Returns:
            Logits (labels + 1, Z, Y, X) float32 on the device, or in main memory when they do not fit there; and a
            note for every such retreat.

        Raises:
            RuntimeError: not even one window fits.
            PredictionError: the networks' output is not finite.
        """
        return self.over_slabs(image_czyx, _only, fill_c, whole=True)

    def indices(
        self, image_czyx: np.ndarray | torch.Tensor, fill_c: np.ndarray | None = None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """The label index of the largest score, (Z, Y, X), in the smallest type; as `most_likely` of `logits`."""
        return self.over_slabs(image_czyx, lambda slabs: np.concatenate([most_likely(slab) for slab in slabs]), fill_c)

    def over_slabs(
        self,
        image_czyx: np.ndarray | torch.Tensor,
        use: Callable[[Iterator[torch.Tensor]], T],
        fill_c: np.ndarray | None = None,
        *,
        whole: bool = False,
    ) -> tuple[T, tuple[str, ...]]:
        """What becomes of the scores of background and all organs, slab by slab where they are large.

        When the GPU's memory runs out, it is tried again with one window of the patch's size at a time, and then with
        the sums in main memory.

        Args:
            image_czyx: Prepared volume at the stage's spacing, (channels, Z, Y, X) float32, on any device.
            use: Gets logits (labels + 1, planes, Y, X), float32, from the first plane to the last; each is overwritten
                by the next. Called anew after every retreat.
            fill_c: Padding value per channel of a volume smaller than a window; None: its own minimum per channel.
            whole: One slab, whatever its size.

        Returns:
            What `use` gives, and a note for every retreat.

        Raises:
            RuntimeError: not even one window fits.
            PredictionError: the networks' output is not finite.
        """
        shape = (image_czyx.shape[1], image_czyx.shape[2], image_czyx.shape[3])
        whole = whole or not self.in_slabs(shape)
        window = self.window_zyx(shape)
        image = image_czyx
        if not isinstance(image, torch.Tensor):
            image = torch.from_numpy(np.ascontiguousarray(image, np.float32))
        fill = None if fill_c is None else torch.from_numpy(fill_c)
        patch, main_memory = self.plan.patch_zyx, torch.device("cpu")
        attempts = [
            (_Attempt(window, self._engine.windows_per_pass(self.plan, window), self.device), ""),
            (_Attempt(patch, 1, self.device), "one window at a time"),
            (_Attempt(patch, 1, main_memory), "one window at a time, summed up in main memory"),
        ]
        if attempts[0][0] == attempts[1][0]:
            del attempts[1]
        notes: list[str] = []
        for number, (attempt, told) in enumerate(attempts):
            if number:
                self._engine.retreat()
                notes.append(f"{self.plan.stage.value}: GPU memory ran out, tried again with {told}")
                logger.warning("%s", notes[-1])
            try:
                return self._attempt(image, fill, attempt, use, whole=whole), tuple(notes)
            except RuntimeError as problem:
                if number == len(attempts) - 1 or not lacks_gpu_memory(problem):
                    raise
        raise ValueError("no attempt was made")

    def _finite(self, logits_czyx: torch.Tensor) -> torch.Tensor:
        """The logits. Where one is NaN or infinite, the largest says nothing: most often all would be background."""
        # The sum is finite if all are, short of scores that no network gives; then each of them is checked.
        if not torch.isfinite(logits_czyx.sum()) and not all(torch.isfinite(each).all() for each in logits_czyx):
            raise PredictionError(
                f"the output of {self.plan.stage.value} is not finite (NaN or infinity)",
                fix="see whether the image's intensities make sense; if they do: --precision fp32, or another "
                "checkpoint",
            )
        return logits_czyx

    def _attempt(
        self,
        image: torch.Tensor,
        fill: torch.Tensor | None,
        attempt: _Attempt,
        use: Callable[[Iterator[torch.Tensor]], T],
        *,
        whole: bool,
    ) -> T:
        with torch.inference_mode():
            slabs = slide_in_slabs(
                image.to(attempt.place),
                self._forward,
                attempt.window_zyx,
                step=self.step,
                batch=attempt.batch,
                fill_c=fill,
                centered=self.convention is None,
                whole=whole,
            )
            return use(map(self._finite, slabs))

    def _forward(self, windows_bczyx: torch.Tensor) -> torch.Tensor:
        """Mean logits of all networks and mirrorings for a batch of windows."""
        windows = windows_bczyx.to(self.device)
        total: torch.Tensor | None = None
        for forward, mirrorings in self._members:
            for axes in mirrorings:
                part = self._mirrored(forward, windows, axes).div_(len(mirrorings) * len(self._members))
                total = part if total is None else total.add_(part)
        if total is None:
            raise ValueError("no network to predict with")
        return total

    def _mirrored(self, forward: Forward, windows: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        """Logits of the mirrored windows, mirrored back: float32, a tensor of its own."""
        dimensions = [axis + 2 for axis in axes]
        logits = forward(windows.flip(dimensions) if axes else windows)
        if _X_AXIS in axes:  # what looks like the right kidney in the mirror is the left one
            logits = logits.index_select(1, self._permutation)
        return logits.flip(dimensions) if axes else logits


def _only(slabs: Iterator[torch.Tensor]) -> torch.Tensor:
    (whole,) = slabs
    return whole


def larger_window(region_zyx: IntTriple, patch_zyx: IntTriple, divisor_zyx: IntTriple, step: float) -> IntTriple:
    """The window of one to `LONGEST_WINDOW_PATCHES` patches on every axis that computes the fewest voxels in all."""
    z, y, x = (_window_length(*sizes, step) for sizes in zip(region_zyx, patch_zyx, divisor_zyx, strict=True))
    return z, y, x


def _window_length(region: int, patch: int, divisor: int, step: float) -> int:
    def computed(length: int) -> int:
        return len(window_starts(max(region, length), length, step)) * length

    return min(range(patch, int(LONGEST_WINDOW_PATCHES * patch) + 1, divisor), key=computed)


def _mirrorings(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All subsets of the axes, the empty one first."""
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(sorted(axes), count)]


def _free_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return Card(device).free_gib()
    return free_memory_gib()
