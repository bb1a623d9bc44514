"""How a training mixes labeled with pseudo-labeled cases."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """A user's choices.

    Attributes:
        pseudo_share: Share of the patches that come from pseudo-labeled cases (0.5: one of each, the seed's 1:1).
        pseudo_augmentation: Strength of their augmentation; labeled cases keep that of the training.
        paste_share: Share of the patches that get a box of a patch of the other kind of case.
        fine_tune: Share of the training, at its end, that sees labeled cases alone.

    Raises:
        ValueError: a share is out of its range.
    """

    pseudo_share: float = 0.5
    pseudo_augmentation: Literal["none", "standard", "strong"] = "strong"
    paste_share: float = 0.5
    fine_tune: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.pseudo_share < 1:
            raise ValueError("pseudo_share must lie between 0 and 1")
        if not 0 <= self.paste_share <= 1:
            raise ValueError("paste_share must be within 0..1")
        if not 0 <= self.fine_tune < 1:
            raise ValueError("fine_tune must be within 0..1 (1 excluded)")
