"""Cases that are far from the labeled ones in spacing, size or intensity."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from flaresemi.dataset import Dataset
from flaresemi.planning.inspection import CaseFacts, ImageFacts
from flaresemi.plans import is_ct

#: A case is far out when it is further from the labeled median than this many robust standard deviations ...
#: Chosen: wide, since a warning that comes for every tenth case is read by nobody.
_DEVIATIONS = 6.0

#: ... so many times further than all but this share of the labeled cases, which may come in two kinds ...
_SHARE = 0.1
_BEYOND = 1.5

#: ... and further than what a network bears easily: a factor in spacing, a factor in size, a factor in contrast,
#: HU in the middle of a CT. Chosen: scaling in augmentation covers up to 1.4, body and field of view differ by 2.
_SPACING_FACTOR = 2.0
_SIZE_FACTOR = 2.5
_CONTRAST_FACTOR = 10.0
_CT_HU = 250.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A case that is unlike the labeled ones, and in what."""

    case_id: str
    what: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Quantity:
    """A number that is compared.

    Attributes:
        name: What it is called in the message.
        unit: Its unit.
        of: Takes it from an image; None where it has none.
        logarithmic: Compared by ratio, not by difference.
        least: The smallest ratio or difference that is worth a word.
    """

    name: str
    unit: str
    of: Callable[[ImageFacts], float]
    logarithmic: bool
    least: float

    def scale(self, value: float) -> float:
        return math.log(max(value, 1e-12)) if self.logarithmic else value


def find_outliers(dataset: Dataset, facts: dict[str, CaseFacts]) -> list[Outlier]:
    """Compares every case with the labeled ones, by median and median absolute deviation (in logarithms for ratios)."""
    found: dict[str, list[str]] = {}
    for case_id, what in _compare(dataset, facts):
        found.setdefault(case_id, []).append(what)
    return [Outlier(case_id=case_id, what=", ".join(found[case_id])) for case_id in facts if case_id in found]


def _compare(dataset: Dataset, facts: dict[str, CaseFacts]) -> Iterator[tuple[str, str]]:
    readable = [found for found in facts.values() if found.image is not None]
    labeled = {case.id for case in dataset.labeled}
    for quantity in _quantities(dataset.channels):
        values = {found.case_id: quantity.of(found.image) for found in readable if found.image is not None}
        reference = np.array([quantity.scale(value) for case_id, value in values.items() if case_id in labeled])
        if not reference.size:
            continue
        middle = float(np.median(reference))
        distances = np.abs(reference - middle)
        limit = max(
            _DEVIATIONS * 1.4826 * float(np.median(distances)),  # the factor makes it a normal's standard deviation
            _BEYOND * float(np.quantile(distances, 1 - _SHARE, method="lower")),
            math.log(quantity.least) if quantity.logarithmic else quantity.least,
        )
        usual = math.exp(middle) if quantity.logarithmic else middle
        for found in readable:
            value = values[found.case_id]
            if abs(quantity.scale(value) - middle) > limit:
                yield (
                    found.case_id,
                    f"{quantity.name} is {value:.4g}{quantity.unit} (labeled cases: {usual:.4g}{quantity.unit})",
                )


def _quantities(channels: tuple[str, ...]) -> Iterator[_Quantity]:
    for axis, name in enumerate("zyx"):
        yield _Quantity(
            name=f"spacing along {name}", unit=" mm", logarithmic=True, least=_SPACING_FACTOR,
            of=lambda image, axis=axis: image.geometry.spacing_zyx_mm[axis],  # type: ignore[misc]
        )  # fmt: skip
    for axis, name in enumerate("zyx"):
        yield _Quantity(
            name=f"size along {name}", unit=" mm", logarithmic=True, least=_SIZE_FACTOR,
            of=lambda image, axis=axis: image.geometry.extent_zyx_mm[axis],  # type: ignore[misc]
        )  # fmt: skip
    for index, channel in enumerate(channels):
        suffix = f" of channel '{channel}'" if len(channels) > 1 else ""
        if is_ct(channel):
            yield _Quantity(
                name=f"the median{suffix} of tissue in the middle", unit=" HU", logarithmic=False, least=_CT_HU,
                of=lambda image, index=index: image.channels[index].tissue_50,  # type: ignore[misc]
            )  # fmt: skip
        else:
            yield _Quantity(
                name=f"the contrast{suffix} in the middle (95th less 5th percentile)", unit="", logarithmic=True,
                least=_CONTRAST_FACTOR,
                of=lambda image, index=index: image.channels[index].middle_95 - image.channels[index].middle_05,  # type: ignore[misc]
            )  # fmt: skip
