"""What the labeled cases tell of organs: which are one piece, which touch, whether left and right are alike."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flaresemi.geometry import BoundingBox
from flaresemi.inference.postprocessing import organ_components
from flaresemi.io.case_store import CaseStore
from flaresemi.labels import LabelSet

#: Fewer cases with an organ tell nothing of how many pieces it has. Chosen.
LEAST_CASES = 3

#: An organ is one piece where its largest component has this share of its voxels; the rest is slips of annotation.
#: Chosen.
ONE_PIECE = 0.99

#: What is more than this many times as large in one case as in another is a lesion rather than an organ, and of lesions
#: there may be several in the next case. Chosen: among 24 patients, spleens and gallbladders differ by up to 31.
LARGEST_RATIO = 50.0

#: An organ lies on one side of another where its mean offset is this many times the SD of the offset over the cases,
#: and more than a few voxels, or millimeters where these are less: the stages of a cascade shall see the same.
#: Chosen: with three cases, chance makes fewer than one pair in twenty look like that.
ONE_SIDED_SDS, ONE_SIDED_VOXELS, ONE_SIDED_MM = 3.0, 3.0, 5.0


def organs_in_one_piece(store: CaseStore, cases: Iterable[str], labels: LabelSet) -> tuple[str, ...]:
    """Names of the organs that are there, as one piece of about one size, in every labeled case that annotates them.

    Cases with voxels that nobody annotated tell nothing of it.

    Args:
        store: A stage's prepared cases.
        cases: The labeled ones to look at.
    """
    volumes: dict[int, list[float]] = {organ: [] for organ in range(1, labels.count + 1)}
    scattered: set[int] = set()
    for case_id in cases:
        stored = store.open(case_id)
        if stored.record.annotated_voxels is not None:  # lines are no pieces, and what lies between them is not known
            continue
        sizes = _organ_sizes(stored.label_zyx, stored.record.supervised, labels)
        for organ in stored.record.supervised:
            total, largest = sizes[organ]
            volumes[organ].append(float(total))
            if largest < ONE_PIECE * total:
                scattered.add(organ)
    return tuple(
        labels.names[organ - 1]
        for organ, found in volumes.items()
        if len(found) >= LEAST_CASES and 0 < max(found) <= LARGEST_RATIO * min(found) and organ not in scattered
    )


def organs_that_touch(store: CaseStore, cases: Sequence[str], labels: LabelSet) -> tuple[tuple[str, ...], ...]:
    """Groups of organs that hang together: each touches another one of the group in every case that annotates both.

    Regions overlap, and so touch by what they are, of a tumor in several places, too. They hang together where all of
    a group is one piece besides, in every case.

    Args:
        store: A stage's prepared cases.
        cases: The labeled ones to look at.
        labels: The organs.
    """
    met = np.zeros((labels.count + 1, labels.count + 1), np.int64)
    touched = np.zeros_like(met)
    complete = [case_id for case_id in cases if store.open(case_id).record.annotated_voxels is None]
    for case_id in complete:
        stored = store.open(case_id)
        annotated = [0, *stored.record.supervised]
        met[np.ix_(annotated, annotated)] += 1
        touched += _organ_contacts(stored.label_zyx, labels)
    always = (met >= LEAST_CASES) & (touched == met)
    groups = [{organ} for organ in range(1, labels.count + 1)]
    for one, other in itertools.combinations(range(1, labels.count + 1), 2):
        if always[one, other]:
            first, second = (next(group for group in groups if organ in group) for organ in (one, other))
            if first is not second:
                groups.remove(second)
                first |= second
    found = [sorted(group) for group in groups if len(group) > 1]
    if labels.has_regions:
        found = [group for group in found if _is_one_piece(store, complete, labels, group)]
    return tuple(tuple(labels.names[organ - 1] for organ in group) for group in found)


def _is_one_piece(store: CaseStore, cases: Iterable[str], labels: LabelSet, organs: Sequence[int]) -> bool:
    """Whether organs together are one piece in every case that annotates all of them."""
    indices = sorted(set().union(*(labels.members[organ - 1] for organ in organs)))
    for case_id in cases:
        stored = store.open(case_id)
        if stored.label_zyx is not None and set(organs) <= set(stored.record.supervised):
            together = np.isin(np.asarray(stored.label_zyx), indices).astype(np.uint8)
            total, largest = _component_sizes(together, 2)[1]
            if largest < ONE_PIECE * total:
                return False
    return True


def one_sided(store: CaseStore, cases: Sequence[str], labels: LabelSet, *, voxel_mm: float) -> tuple[str, str] | None:
    """Two organs of which one always lies to the same side of the other, or None.

    Where there are such, a patient mirrored left to right, with paired organs exchanged, has another anatomy, and a
    network that is shown mirrored patients learns two, of which there is one. A pair counts by the middle between both:
    kidneys have none to their sides, but the liver; and what is called the left ventricle of a heart is no mirror image
    of the right one, which the myocardium around one of them tells.

    Args:
        store: A stage's prepared cases.
        cases: The labeled ones to look at.
        voxel_mm: Width of the stage's voxels, along x.

    Returns:
        Their names, for the user; of a pair, those of both.
    """
    pairs = [(labels.index(one), labels.index(other)) for one, other in labels.mirror_pairs or ()]
    names = dict(enumerate(labels.names, start=1))
    centers = {organ: np.full(len(cases), np.nan) for organ in names}
    for row, case_id in enumerate(cases):
        stored = store.open(case_id)
        for organ in stored.record.supervised:
            voxels = np.concatenate([stored.class_voxels(index) for index in labels.members[organ - 1]])
            if len(voxels):
                centers[organ][row] = voxels[:, 2].mean()
    alone = set(names) - {organ for pair in pairs for organ in pair}
    places = {names[organ]: centers[organ] for organ in sorted(alone)}
    places |= {f"{names[one]} and {names[other]}": (centers[one] + centers[other]) / 2 for one, other in pairs}
    least = min(ONE_SIDED_VOXELS, ONE_SIDED_MM / voxel_mm)
    for one, other in itertools.combinations(places, 2):
        offsets = places[one] - places[other]
        offsets = offsets[np.isfinite(offsets)]
        if len(offsets) < LEAST_CASES:
            continue
        if abs(offsets.mean()) > max(ONE_SIDED_SDS * offsets.std(ddof=1), least):
            return one, other
    return None


def _organ_contacts(label_zyx: np.ndarray | None, labels: LabelSet) -> np.ndarray:
    """Which organs touch or overlap, (organs + 1, organs + 1) of 0 and 1."""
    found = _contacts(label_zyx, labels.channels)
    if not labels.has_regions:
        return found
    if label_zyx is not None:
        present = np.unique(np.asarray(label_zyx))
        found[present, present] = 1
    belongs = np.zeros((labels.count + 1, labels.channels), np.int64)
    for organ, indices in enumerate(labels.members, start=1):
        belongs[organ, list(indices)] = 1
    return (belongs @ found @ belongs.T > 0).astype(np.int64)


def _contacts(label_zyx: np.ndarray | None, channels: int) -> np.ndarray:
    """Which labels have voxels that share a face, (channels, channels) of 0 and 1."""
    found = np.zeros((channels, channels), np.int64)
    box = None if label_zyx is None else BoundingBox.of_mask(np.asarray(label_zyx) > 0)
    if label_zyx is None or box is None:
        return found
    part = np.array(label_zyx[box.slices])
    for axis in range(3):
        low, high = (np.take(part, range(*ends), axis) for ends in ((0, part.shape[axis] - 1), (1, part.shape[axis])))
        differ = (low != high) & (low > 0) & (high > 0)
        found[low[differ], high[differ]] = 1
    return found | found.T


def _organ_sizes(
    label_zyx: np.ndarray | None, organs: Iterable[int], labels: LabelSet
) -> Mapping[int, np.ndarray] | np.ndarray:
    """Voxels of each organ and of its largest component, by organ; a region is looked at by itself."""
    if not labels.has_regions or label_zyx is None:
        return _component_sizes(label_zyx, labels.channels)
    whole = np.asarray(label_zyx)
    return {organ: _component_sizes(labels.mask(whole, organ).astype(np.uint8), 2)[1] for organ in organs}


def _component_sizes(label_zyx: np.ndarray | None, channels: int) -> np.ndarray:
    """Voxels of each label and of its largest component, (channels, 2)."""
    sizes = np.zeros((channels, 2), np.int64)
    box = None if label_zyx is None else BoundingBox.of_mask(np.asarray(label_zyx) > 0)
    if label_zyx is None or box is None:
        return sizes
    found = organ_components(np.array(label_zyx[box.slices]))  # a copy: cc3d reads nothing that it may not write
    np.add.at(sizes[:, 0], found.organs[1:], found.sizes[1:])
    np.maximum.at(sizes[:, 1], found.organs[1:], found.sizes[1:])
    return sizes
