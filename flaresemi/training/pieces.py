"""Which organs are one piece, as the labeled cases tell: of those, prediction keeps the largest component."""

from collections.abc import Iterable, Mapping

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
