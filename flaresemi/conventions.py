"""How images come to a network and its scores back, where a model of another framework does it its own way."""

import dataclasses
from typing import Annotated, Literal

from flaresemi.ranges import Axis, Range
from flaresemi.records import CAME_LATER

#: Words of plans that only models of nnU-Net have. `spline`: cubic B-splines without widening; `nonzero`: what is 0 in
#: every channel is cropped off; `zscore_crop`: mean and sd of the crop; `zscore_nonzero`: those of the voxels that are
#: not 0 and of the holes in them; the others become 0; `as_is`: no limits, as no file in half precision has to hold it;
#: `min_max`: from the lowest to the highest value of the crop, stray ones counted in.
NNUNET_ONLY = frozenset({"spline", "nonzero", "zscore_crop", "zscore_nonzero", "as_is", "min_max"})


LabelIndex = Annotated[int, Range(1, 1 << 16)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """What surrounds a network of nnU-Net v2, as far as a `StagePlan` does not say it.

    Windows have the size of the training patch and count by a Gaussian about their voxel `size // 2`; a volume smaller
    than a window is padded with zeros; mirrored images are averaged unless the user wants it otherwise.

    Attributes:
        orientation: How arrays (Z, Y, X) lie: `file`: in the order of the file; `ras`: canonical, but pointing to
            superior, anterior and right.
        axes: Axis i of the network is axis axes[i] of such an array.
        painted: Of a network that was trained with regions, for each output the index of the label map that it writes
            where it is above 0 (its sigmoid above one half), over what those before it wrote. Empty: the outputs are
            background and every index, and the largest wins.
        largest: Groups of indices. Of each in turn, the largest component of all of them together is kept, and the rest
            becomes background.
    """

    orientation: Literal["file", "ras"]
    axes: tuple[Axis, Axis, Axis]
    painted: tuple[LabelIndex, ...] = dataclasses.field(default=(), metadata=CAME_LATER)
    largest: tuple[tuple[LabelIndex, ...], ...] = dataclasses.field(default=(), metadata=CAME_LATER)

    def __post_init__(self) -> None:
        if sorted(self.axes) != [0, 1, 2]:
            raise ValueError(f"axes must be a permutation of 0, 1 and 2, found {list(self.axes)}")
