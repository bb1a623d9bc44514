"""Cases that are far from the labeled ones in spacing, size or intensity."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from flaresemi.appearance import Look, quantities
from flaresemi.dataset import Dataset
from flaresemi.planning.inspection import CaseFacts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A case that is unlike the labeled ones, and in what."""

    case_id: str
    what: str


def find_outliers(dataset: Dataset, facts: dict[str, CaseFacts]) -> list[Outlier]:
    """Compares every case with the labeled ones, by median and median absolute deviation (in logarithms for ratios)."""
    found: dict[str, list[str]] = {}
    for case_id, what in _compare(dataset, facts):
        found.setdefault(case_id, []).append(what)
    return [Outlier(case_id=case_id, what=", ".join(found[case_id])) for case_id in facts if case_id in found]


def _compare(dataset: Dataset, facts: dict[str, CaseFacts]) -> Iterator[tuple[str, str]]:
    looks = {
        case_id: Look(geometry=found.image.geometry, channels=found.image.channels)
        for case_id, found in facts.items()
        if found.image is not None
    }
    labeled = {case.id for case in dataset.labeled}
    for quantity in quantities(dataset.channels):
        found = {case_id: quantity.of(look) for case_id, look in looks.items()}
        values = {case_id: quantity.scale(value) for case_id, value in found.items() if value is not None}
        reference = np.array([value for case_id, value in values.items() if case_id in labeled])
        if not reference.size:
            continue
        middle, limit = float(np.median(reference)), quantity.limit(reference)
        for case_id, value in values.items():
            if abs(value - middle) > limit:
                yield case_id, quantity.told(quantity.unscale(value), quantity.unscale(middle))
