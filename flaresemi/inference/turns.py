"""Images that may lie turned in the plane of their slices: each is segmented in four turns, and the surest is kept.

The slices of MR are laid by hand, oblique ones lie between the axes, and many files have lost how they lay, so the same
organ is upright in one scan and on its side in another. Networks that saw few cases segment what lies as those did.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.inference.fine_stage import FineOutput
from flaresemi.inference.postprocessing import Cleaning
from flaresemi.inference.sliding_window import most_likely
from flaresemi.labels import LabelSet

#: A turned image must be segmented so much more surely than the image as it lies. Chosen on 87 volumes of ACDC
#: (docs/few_labels.md): without it, four were turned that should not be.
SURER_BY = 0.05

Seen = TypeVar("Seen")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeenImage:
    """What FINE says of an image, and the image as it was seen, perhaps turned.

    Attributes:
        grid: Of FINE.
        crop: Gives FINE's inputs in a box of its grid.
        fill_c: The padding value of each channel; None where nothing is padded.
        notes: Fallbacks, repairs and retreats.
    """

    output: FineOutput
    grid: StageGrid
    crop: Callable[[BoundingBox], np.ndarray | torch.Tensor]
    fill_c: np.ndarray | None
    notes: tuple[str, ...]

    def surety(self, clean: Cleaning, labels: LabelSet) -> float:
        """See `surety`."""
        return surety(self.output.logits, clean, labels)

    def region_before(self, quarters: int) -> BoundingBox:
        """The region that was segmented, in the image before it was turned by so many quarters."""
        return self.output.region.turned(-quarters, self.grid.shape_zyx)


def surety(logits_czyx: torch.Tensor, clean: Cleaning, labels: LabelSet) -> float:
    """How sure networks are of all organs together: Dice of the cleaned label map with its own probabilities.

    Args:
        logits_czyx: Of background and every other index, in the region that was segmented.

    Returns:
        0 (no organ) to 1.
    """
    indices = most_likely(logits_czyx)
    clean(indices, labels)
    found = torch.from_numpy(indices.astype(np.int64)).to(logits_czyx.device)
    total = torch.logsumexp(logits_czyx.float(), dim=0)
    of_labels = (logits_czyx.gather(0, found[None])[0] - total).exp()
    organs = found > 0
    expected = float((1 - (logits_czyx[0] - total).exp()).sum()) + int(organs.sum())
    return 2 * float(of_labels[organs].sum()) / expected if organs.any() else 0.0


def surest(look: Callable[[int], Seen], surety_of: Callable[[Seen], float]) -> tuple[Seen, int, tuple[str, ...]]:
    """What is seen of an image in the turn in which that is surest: as it lies, unless another one is clearly surer.

    Args:
        look: Sees the image turned by so many quarters, as by `turned_array`.
        surety_of: Says how sure that is, 0 to 1.

    Returns:
        What is seen, the quarters, and a note where these are not 0.
    """
    best, quarters = look(0), 0
    as_it_lies = highest = surety_of(best)
    for turn in (1, 2, 3):
        if as_it_lies + SURER_BY >= 1:
            break  # nothing is that much surer
        other = look(turn)
        sure = surety_of(other)
        if sure > max(highest, as_it_lies + SURER_BY):
            best, quarters, highest = other, turn, sure
    if not quarters:
        return best, 0, ()
    note = (
        f"segmented turned by {90 * quarters} degrees in the plane of the slices: the networks are surer of it so "
        f"({highest:.2f}) than as it lies ({as_it_lies:.2f})"
    )
    return best, quarters, (note,)
