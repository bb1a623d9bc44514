"""How a training mixes labeled with pseudo-labeled cases."""

import dataclasses

from flaresemi.ranges import OpenShare, Share, ShareBelowOne, check_ranges


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """A user's choices.

    Attributes:
        pseudo_share: Share of the patches that come from pseudo-labeled cases (0.5: one of each, FlareSemiSeg's 1:1).
        pseudo_augmentation: Strength of their augmentation, by its name; labeled cases keep that of the training.
        paste_share: Share of the patches that get a box of a patch of the other kind of case.
        fine_tune: Share of the training, at its end, that sees labeled cases alone.

    Raises:
        ValueError: a share is out of its range.
    """

    pseudo_share: OpenShare = 0.5
    pseudo_augmentation: str = "strong"
    paste_share: Share = 0.5
    fine_tune: ShareBelowOne = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)
