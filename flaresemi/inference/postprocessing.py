"""The connected components of a label map, and its cleaning.

By `cc3d` itself: `acvl_utils` finds the components of one mask at a time (13 organs take six times as long), keeps all
that are as large as the largest, and imports scikit-image for it, half a second.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import cc3d
import numpy as np

from flaresemi.geometry import BoundingBox
from flaresemi.labels import LabelSet

#: An organ is in a piece of its group where the piece has this share of the most that any has of it. Chosen.
ATTACHED_SHARE = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OrganComponents:
    """Components (26 neighbours) of one label each; number 0 is the background.

    Attributes:
        numbers_zyx: The component that each voxel belongs to.
        organs: Label of each component, (n,).
        sizes: Its voxels, (n,).
        boxes: Its box, as slices.
    """

    numbers_zyx: np.ndarray
    organs: np.ndarray
    sizes: np.ndarray
    boxes: Sequence[tuple[slice, ...]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """How label maps are cleaned, by organ indices.

    Attributes:
        touching: Groups of organs that hang together, see `keep_attached`.
        largest: Organs of which only the largest component is kept.
        together: Groups of label indices, see `keep_largest_of`; before all else.
    """

    touching: tuple[tuple[int, ...], ...] = ()
    largest: tuple[int, ...] = ()
    together: tuple[tuple[int, ...], ...] = ()

    def __call__(self, labels_zyx: np.ndarray, labels: LabelSet) -> dict[int, tuple[int, int]]:
        """Cleans a label map in place; gives, per organ that was looked at, the voxels kept and those left out."""
        for group in self.together:
            keep_largest_of(labels_zyx, group)
        attached = [keep_attached(labels_zyx, labels, group) for group in self.touching]
        kept = {index: counts for group in attached for index, counts in group.items()}
        for index, (stay, go) in clean_organs(labels_zyx, labels, self.largest).items():
            kept[index] = (stay, go + kept.get(index, (0, 0))[1])
        return kept


def organ_components(labels_zyx: np.ndarray) -> OrganComponents:
    """Finds the components of all organs at once."""
    numbers, count = cc3d.connected_components(np.ascontiguousarray(labels_zyx), connectivity=26, return_N=True)
    statistics = cc3d.statistics(numbers)
    boxes = statistics["bounding_boxes"]
    organs = [labels_zyx[boxes[n]][numbers[boxes[n]] == n][0] for n in range(1, count + 1)]
    return OrganComponents(
        numbers_zyx=numbers,
        organs=np.array([0, *organs], np.int64),
        sizes=statistics["voxel_counts"].astype(np.int64),
        boxes=boxes,
    )


def clean_organs(labels_zyx: np.ndarray, labels: LabelSet, organs: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Keeps the largest component (26 neighbors) of each of these organs.

    What is dropped of a region stays what it is besides: of a tumor in a kidney, kidney. Where no value of the dataset
    means exactly that, it becomes what comes closest and adds nothing.

    Args:
        labels_zyx: Label indices; changed in place.
        labels: What they mean.
        organs: The organs to clean, 1 and up.

    Returns:
        As `keep_largest`, by organ.
    """
    if not labels.has_regions:
        return keep_largest(labels_zyx, organs)
    kept: dict[int, tuple[int, int]] = {}
    for organ in sorted(organs, key=lambda organ: -len(labels.members[organ - 1])):  # what lies inside comes later
        mask = labels.mask(labels_zyx, organ).astype(np.uint8)
        if found := keep_largest(mask, (1,)):
            kept[organ] = found[1]
        _take_out(labels_zyx, labels, organ, mask == 0)
    return kept


def keep_largest(labels_zyx: np.ndarray, organs: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Keeps the largest component (26 neighbours) of each of these organs; the rest of them becomes background.

    One pass over the common box of the organs labels the components of all of them at once.

    Args:
        labels_zyx: Organ indices; changed in place.
        organs: Indices of the organs to clean; those that are not there are fine.

    Returns:
        Per organ that is there, the voxels that were kept and those that were left out.
    """
    wanted = np.zeros(int(np.iinfo(labels_zyx.dtype).max) + 1, bool)
    wanted[list(organs)] = True
    if not wanted.any():
        return {}
    box = BoundingBox.of_mask(wanted[labels_zyx])
    if box is None:
        return {}
    part = labels_zyx[box.slices]  # a view: what is written here is written to the label map
    found = organ_components(np.where(wanted[part], part, part.dtype.type(0)))
    descending = np.argsort(-found.sizes, kind="stable")  # equal sizes: the first one is the largest
    _, first = np.unique(found.organs[descending], return_index=True)
    dropped = np.ones(found.sizes.size, bool)
    dropped[descending[first]] = False
    part[dropped[found.numbers_zyx]] = 0
    kept: dict[int, tuple[int, int]] = {}
    for index in np.unique(found.organs[found.organs > 0]).tolist():
        own = found.organs == index
        kept[index] = (int(found.sizes[own & ~dropped].sum()), int(found.sizes[own & dropped].sum()))
    return kept


def keep_largest_of(labels_zyx: np.ndarray, indices: Sequence[int]) -> None:
    """Keeps the largest component (26 neighbors) of several indices together; the rest of them becomes background.

    As nnU-Net does it: components of one size are all kept.

    Args:
        labels_zyx: Label indices; changed in place.
        indices: Which, 1 and up.
    """
    mask = np.isin(labels_zyx, indices)
    numbers, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    if count > 1:
        sizes = np.bincount(numbers.ravel())[1:]
        labels_zyx[mask & np.isin(numbers - 1, np.flatnonzero(sizes < sizes.max()))] = 0


def keep_attached(labels_zyx: np.ndarray, labels: LabelSet, organs: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Keeps, of organs that touch each other in every patient, what hangs together.

    Of the pieces of all of them together, the one that holds most of the organs (of these, the largest) is kept. An
    organ that has next to nothing there stays as it is: better a piece in the wrong place than an organ lost. What is
    left out of a region becomes what `clean_organs` makes of it.

    Args:
        labels_zyx: Label indices; changed in place.
        labels: What they mean.
        organs: The organs, 1 and up.

    Returns:
        Per organ that is there, the voxels that were kept and those that were left out.
    """
    members = [labels.members[organ - 1] for organ in organs]
    indices = sorted(set().union(*members))
    wanted = np.zeros(int(np.iinfo(labels_zyx.dtype).max) + 1, bool)
    wanted[indices] = True
    box = BoundingBox.of_mask(wanted[labels_zyx])
    if box is None:
        return {}
    part = labels_zyx[box.slices]
    numbers, count = cc3d.connected_components(wanted[part], connectivity=26, return_N=True)
    inside = numbers > 0
    places = np.searchsorted(indices, part[inside])
    by_index = np.bincount((numbers[inside] - 1) * len(indices) + places, minlength=count * len(indices))
    belongs = np.array([[index in own for own in members] for index in indices], np.int64)
    sizes = by_index.reshape(count, len(indices)) @ belongs
    there = sizes >= np.maximum(ATTACHED_SHARE * sizes.max(axis=0), 1)
    main = max(range(count), key=lambda piece: (int(there[piece].sum()), int(by_index.reshape(count, -1)[piece].sum())))
    kept: dict[int, tuple[int, int]] = {}
    apart = numbers != main + 1
    for place in sorted(range(len(organs)), key=lambda place: -len(members[place])):  # what lies inside comes later
        total, attached = int(sizes[:, place].sum()), int(sizes[main, place])
        if total and there[main, place]:
            _take_out(part, labels, organs[place], apart)
            kept[organs[place]] = (attached, total - attached)
        elif total:
            kept[organs[place]] = (total, 0)
    return kept


def _take_out(part: np.ndarray, labels: LabelSet, organ: int, where: np.ndarray) -> None:
    """Takes an organ out of a part of a label map, in place."""
    if not labels.has_regions:
        part[(part == organ) & where] = 0
        return
    dropped = labels.mask(part, organ) & where
    part[dropped] = np.array(labels.without(organ), part.dtype)[part[dropped]]
