"""The speed levels of a model: its held-out cases, predicted with every step and window that may be worth it."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch

from flaresemi.comparing.candidates import Candidate
from flaresemi.comparing.judging import NOTABLE_RATIO, Scored, difference, scored
from flaresemi.comparing.predicting import HeldOutCases
from flaresemi.compute.device import device_name, select_device
from flaresemi.dataset import Dataset
from flaresemi.inference.cascade import SegmenterOptions
from flaresemi.inference.levels import MeasuredSetting, SpeedLevels
from flaresemi.inference.predictor import WindowMode

logger = logging.getLogger(__name__)

#: By how much the mean Dice of a level may be behind that of the default. Chosen: the first is next to nothing.
ALLOWED = {"balanced": 0.003, "fast": 0.01}

_STEPS = (0.5, 0.625, 0.75, 1.0)
_WINDOWS: tuple[WindowMode, ...] = ("auto", "patch")

#: What is tried, the default first. Windows of the patch's size at its step compute more than it, so they are left out.
SETTINGS = tuple(each for each in itertools.product(_STEPS, _WINDOWS) if each != (0.5, "patch"))


def measure_levels(
    candidate: Candidate, dataset: Dataset, scratch: Path, **options: Unpack[SegmenterOptions]
) -> SpeedLevels:
    """Predicts and scores the held-out cases with all settings.

    Args:
        candidate: The models.
        dataset: That they were trained on.
        scratch: Folder for the label maps and their scores.
        options: As for `Segmenter`, but step and window.

    Raises:
        FlaresemiError: a case cannot be read, or nothing could be scored.
    """
    found = []
    for step, window in SETTINGS:
        logger.info("speed levels: step %g, window %s", step, window)
        held_out = HeldOutCases([candidate], dataset, scratch / f"{step:g}_{window}", averages=False)
        ((members, results),) = held_out.predict(**options | {"step": step, "window": window}).items()
        found.append(scored(members, results))
    return levels_of(candidate, dataset.name, device_name(_device(options)), found)


def levels_of(candidate: Candidate, dataset: str, machine: str, found: Sequence[Scored]) -> SpeedLevels:
    """Which setting each level is.

    A level is the fastest setting that is behind the default by no more than is allowed, and notably faster.

    Args:
        candidate: The models.
        dataset: Its name.
        machine: That the times are of.
        found: The scores of `SETTINGS`, in their order.
    """
    exact = found[0]
    curve = []
    for (step, window), each in zip(SETTINGS, found, strict=True):
        gain = difference(exact, each)
        curve.append(
            MeasuredSetting(
                step=step,
                window=window,
                mean_dice=each.mean,
                seconds=each.seconds,
                ahead=gain.mean,
                ahead_within=gain.half_width if gain.cases > 1 else None,
            )
        )
    levels = {"exact": 0}
    for level, allowed in ALLOWED.items():
        near = [place for place, each in enumerate(curve) if each.ahead >= -allowed]
        fastest = min(near, key=lambda place: curve[place].seconds)
        levels[level] = fastest if exact.seconds >= NOTABLE_RATIO * curve[fastest].seconds else 0
    return SpeedLevels(
        dataset=dataset,
        machine=machine,
        folds=tuple(candidate.runs),
        cases=len(exact.dice),
        networks=candidate.networks,
        curve=tuple(curve),
        levels=levels,
    )


def _device(options: SegmenterOptions) -> torch.device:
    return select_device(options.get("device", "auto"))
