"""How sure a network is of a held-out case near its organs, and whether it is right there."""

import numpy as np
import torch
from scipy.ndimage import find_objects

from flaresemi.confidence import BINS, TEMPERATURES, ConfidenceCounts
from flaresemi.geometry import BoundingBox, FloatTriple
from flaresemi.labels import LabelSet
from flaresemi.preprocessing.averaging import KnownLogits

#: A voxel near an organ lies up to this far from one of its own, on each axis. Chosen: there it is decided what is its.
NEAR_MM = 5.0

#: Voxels per organ, the same for small and large ones, and at most so many of a case (chosen: less than a second).
_PER_ORGAN, _PER_CASE = 1000, 20_000


@torch.no_grad()
def count_confidence(
    known: KnownLogits,
    predicted_zyx: np.ndarray,
    reference_zyx: np.ndarray,
    labels: LabelSet,
    supervised: tuple[int, ...] | None = None,
) -> ConfidenceCounts:
    """Compares the probabilities of voxels near organs with what is true there.

    Of every organ, voxels are drawn that it has in either label map, and each is moved at random by up to `NEAR_MM` on
    each axis; what then lies where the networks did not look, or nobody has annotated, is left out.

    Args:
        known: The logits.
        predicted_zyx: The label map made of them, on the canonical grid.
        reference_zyx: The true one.
        labels: The organs.
        supervised: The organs (1 and up) that the case annotates; what only the others tell apart is one. None: all.
    """
    voxels = _near_organs(predicted_zyx, reference_zyx, labels, known.grid.canonical_spacing_zyx_mm)
    box = known.box
    inside = ((voxels >= box.start) & (voxels < box.stop)).all(axis=1)
    true = reference_zyx[tuple(voxels.T)]
    kept = inside & (true != labels.ignored)
    voxels, true = voxels[kept], torch.from_numpy(true[kept].astype(np.int64))
    logits = known.at(voxels).cpu()
    merged = None if supervised is None else torch.tensor(labels.told_apart(supervised))
    losses, gaps = [], []
    for temperature in TEMPERATURES:
        shares = (logits / temperature).softmax(dim=0)
        if merged is not None:
            shares = torch.zeros_like(shares).index_add_(0, merged, shares)
        of_true = shares.gather(0, true[None])[0]
        confidence, found = shares.max(dim=0)
        losses.append(float(-of_true.clamp_min(1e-12).log().double().sum()))
        bins = (confidence * BINS).long().clamp_max(BINS - 1)
        gap = (confidence - (found == true).float()).double()
        gaps.append(tuple(torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, gap).tolist()))
    return ConfidenceCounts(voxels=len(voxels), losses=tuple(losses), gaps=tuple(gaps))


def _near_organs(
    predicted_zyx: np.ndarray, reference_zyx: np.ndarray, labels: LabelSet, spacing_zyx_mm: FloatTriple
) -> np.ndarray:
    """Voxels near organs, (n, 3); the same ones every time."""
    random = np.random.default_rng(0)
    indices = range(1, labels.channels)
    count = max(1, min(_PER_ORGAN, _PER_CASE // len(indices)))
    reach = np.maximum(np.round(NEAR_MM / np.array(spacing_zyx_mm)), 1).astype(np.int64)
    found = [np.empty((0, 3), np.int64)]
    boxes = (find_objects(each, max_label=labels.channels - 1) for each in (predicted_zyx, reference_zyx))
    for index, pair in zip(indices, zip(*boxes, strict=True), strict=True):
        sides = [BoundingBox.of_slices(each) for each in pair if each is not None]
        if not sides:
            continue
        box = sides[0].union(sides[-1])
        own = (predicted_zyx[box.slices] == index) | (reference_zyx[box.slices] == index)
        drawn = random.choice(np.flatnonzero(own), count)
        moved = random.integers(-reach, reach, (count, 3), endpoint=True)
        found.append(np.stack(np.unravel_index(drawn, own.shape), axis=1) + box.start + moved)
    voxels = np.concatenate(found)
    return voxels[((voxels >= 0) & (voxels < reference_zyx.shape)).all(axis=1)]
