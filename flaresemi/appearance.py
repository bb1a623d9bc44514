"""The look of scans in a few numbers, and how far one is from those that a network was trained on."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import numpy as np

from flaresemi.channels import is_ct, scheme_of
from flaresemi.geometry import BoundingBox, FloatTriple, Geometry
from flaresemi.plans import ChannelFacts, DatasetFingerprint
from flaresemi.ranges import Range

#: A scan is far out when it is further from the labeled median than this many robust standard deviations ...
#: Chosen: wide, since a warning that comes for every tenth case is read by nobody.
_DEVIATIONS = 6.0

#: ... so many times further than all but this share of the labeled cases, which may come in two kinds ...
_SHARE = 0.1
_BEYOND = 1.5

#: ... and further than what a network bears easily: a factor in spacing, a factor in size, a factor in contrast,
#: HU in the middle of a CT; parts of the contrast. Chosen: scaling in augmentation covers up to 1.4, body and field of
#: view differ by 2. With them, no test image of openkbp, hippocampus, acdc and btcv is told of, whether all of their
#: labeled cases are known or any four of them.
_SPACING_FACTOR = 2.0
_SIZE_FACTOR = 2.5
_CONTRAST_FACTOR = 10.0
_CT_HU = 250.0
_CT_EDGE_HU = 500.0
_NEGATIVE_CONTRASTS = 0.5
_MIDDLE_CONTRASTS = 0.3

#: Below this a CT holds what scanners fill in outside of their field of view.
_AIR_HU = -1000.0

#: What logarithms and back may change of a number.
_ROUNDING = 1e-6

#: Makes a median of distances a normal distribution's standard deviation.
_TO_DEVIATION = 1.4826


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The compared quantities of a scan.

    Attributes:
        geometry: Its canonical grid.
        channels: Their intensities.
        body_box: Where the patient is; None where nobody looked.
        body_share: Share of the voxels that are the patient; None likewise.
    """

    geometry: Geometry
    channels: tuple[ChannelFacts, ...]
    body_box: BoundingBox | None = None
    body_share: float | None = None

    @property
    def body_zyx_mm(self) -> FloatTriple | None:
        """Size of the patient's box."""
        if self.body_box is None:
            return None
        sizes = zip(self.body_box.shape_zyx, self.geometry.spacing_zyx_mm, strict=True)
        z, y, x = (size * spacing for size, spacing in sizes)
        return z, y, x


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """The usual values of one quantity: its median among the labeled cases, and the limits of what is near them."""

    quantity: str
    unit: str
    median: Annotated[float, Range(-1e40, 1e40)]
    lowest: Annotated[float, Range(-1e40, 1e40)]
    highest: Annotated[float, Range(-1e40, 1e40)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number that is compared.

    Attributes:
        name: What it is called in the message.
        unit: Its unit.
        of: Takes it from a scan; None where that does not have it.
        logarithmic: Compared by ratio, not by difference.
        least: The smallest ratio or difference that is worth a word.
        normalized: Whether normalization takes it out, so that the networks never see it.
    """

    name: str
    unit: str
    of: Callable[[Look], float | None]
    logarithmic: bool
    least: float
    normalized: bool = False

    def scale(self, value: float) -> float:
        return math.log(max(value, 1e-12)) if self.logarithmic else value

    def unscale(self, value: float) -> float:
        return math.exp(min(value, 90.0)) if self.logarithmic else value

    def limit(self, values: np.ndarray) -> float:
        """How far from the median of the (scaled) values of the labeled cases is far out."""
        distances = np.abs(values - np.median(values))
        return max(
            _DEVIATIONS * spread(values),
            _BEYOND * float(np.quantile(distances, 1 - _SHARE, method="lower")),
            math.log(self.least) if self.logarithmic else self.least,
        )

    def told(self, value: float, usual: float) -> str:
        """A value that is far out, in words."""
        return f"{self.name} is {value + 0.0:.4g}{self.unit} (labeled cases: {usual + 0.0:.4g}{self.unit})"


def spread(values: np.ndarray) -> float:
    """A standard deviation that single outliers do not change."""
    return _TO_DEVIATION * float(np.median(np.abs(values - np.median(values))))


def norms_of(fingerprint: DatasetFingerprint) -> tuple[Norm, ...]:
    """The look of the labeled cases, for the checkpoints that are trained on them.

    A limit is where a scan would be an outlier among them, and at least the range that they cover, widened by their
    spread on both ends: none of them is beyond it.
    """
    looks = [
        Look(
            geometry=Geometry(shape_zyx=case.shape_zyx, spacing_zyx_mm=case.spacing_zyx_mm),
            channels=case.channel_facts,
            body_box=case.body_box,
            body_share=case.body_share,
        )
        for case in fingerprint.cases
    ]
    norms = []
    for quantity in quantities(fingerprint.channels):
        found = [value for value in map(quantity.of, looks) if value is not None]
        if not found or quantity.normalized:
            continue
        values = np.array([quantity.scale(value) for value in found])
        middle, limit, width = float(np.median(values)), quantity.limit(values), spread(values) + _ROUNDING
        norms.append(
            Norm(
                quantity=quantity.name,
                unit=quantity.unit,
                median=quantity.unscale(middle),
                lowest=quantity.unscale(min(middle - limit, float(values.min()) - width)),
                highest=quantity.unscale(max(middle + limit, float(values.max()) + width)),
            )
        )
    return tuple(norms)


def far_from(norms: Sequence[Norm], look: Look, channels: tuple[str, ...]) -> list[str]:
    """In what a scan is far from those that a network was trained on, in words.

    Args:
        norms: That the network's checkpoint carries.
        look: The scan. What it does not have is not compared.
        channels: Names of its channels.
    """
    known = {norm.quantity: norm for norm in norms}
    told = []
    for quantity in quantities(channels):
        norm = known.get(quantity.name)
        value = quantity.of(look) if norm is not None else None
        if norm is not None and value is not None and not norm.lowest <= value <= norm.highest:
            told.append(quantity.told(value, norm.median))
    return told


def quantities(channels: tuple[str, ...]) -> Iterator[Quantity]:
    """All numbers that are compared of scans with these channels."""
    for axis, name in enumerate("zyx"):
        yield Quantity(
            name=f"spacing along {name}",
            unit=" mm",
            logarithmic=True,
            least=_SPACING_FACTOR,
            of=lambda look, axis=axis: look.geometry.spacing_zyx_mm[axis],  # type: ignore[misc]
        )
    for axis, name in enumerate("zyx"):
        yield Quantity(
            name=f"size along {name}",
            unit=" mm",
            logarithmic=True,
            least=_SIZE_FACTOR,
            of=lambda look, axis=axis: look.geometry.extent_zyx_mm[axis],  # type: ignore[misc]
        )
    for axis, name in enumerate("zyx"):
        yield Quantity(
            name=f"the body's size along {name}",
            unit=" mm",
            logarithmic=True,
            least=_SIZE_FACTOR,
            of=lambda look, axis=axis: None if look.body_zyx_mm is None else look.body_zyx_mm[axis],  # type: ignore[misc]
        )
    yield Quantity(
        name="the body's share of the image",
        unit="",
        logarithmic=True,
        least=_SIZE_FACTOR,
        of=lambda look: look.body_share,
    )
    for index, channel in enumerate(channels):
        number = f"{index} " if channels.count(channel) > 1 else ""  # what a name cannot tell apart
        suffix = f" of channel {number}'{channel}'" if len(channels) > 1 else ""
        if is_ct(channel):
            yield from _ct_quantities(index, suffix)
        else:
            yield from _other_quantities(index, suffix, normalized=scheme_of(channel) in ("zscore", "rescale_to_0_1"))


def _ct_quantities(index: int, suffix: str) -> Iterator[Quantity]:
    def facts(look: Look) -> ChannelFacts | None:
        return look.channels[index] if look.channels else None

    def taken(name: str, take: Callable[[ChannelFacts], float], least: float) -> Quantity:
        return Quantity(
            name=name,
            unit=" HU",
            logarithmic=False,
            least=least,
            of=lambda look: None if (found := facts(look)) is None else take(found),
        )

    yield taken(f"the median{suffix} of tissue in the middle", lambda found: found.tissue_50, _CT_HU)
    yield taken(f"the 5th percentile{suffix} in the middle", lambda found: found.middle_05, _CT_EDGE_HU)
    yield taken(f"the 95th percentile{suffix} in the middle", lambda found: found.middle_95, _CT_EDGE_HU)
    yield taken(f"the lowest value{suffix} (down to air)", lambda found: max(found.minimum, _AIR_HU), _CT_HU)


def _other_quantities(index: int, suffix: str, *, normalized: bool) -> Iterator[Quantity]:
    def contrast(look: Look) -> float | None:
        return look.channels[index].middle_95 - look.channels[index].middle_05 if look.channels else None

    def in_contrasts(look: Look, take: Callable[[ChannelFacts], float]) -> float | None:
        whole = contrast(look)
        return take(look.channels[index]) / whole if whole else None

    yield Quantity(
        name=f"the contrast{suffix} in the middle (95th less 5th percentile)",
        unit="",
        logarithmic=True,
        least=_CONTRAST_FACTOR,
        of=contrast,
        normalized=normalized,
    )
    yield Quantity(
        name=f"the lowest value{suffix}",
        unit=" contrasts of the middle",
        logarithmic=False,
        least=_NEGATIVE_CONTRASTS,
        of=lambda look: in_contrasts(look, lambda found: found.minimum),
    )
    yield Quantity(
        name=f"the median{suffix} in the middle",
        unit=" of the way from the 5th to the 95th percentile",
        logarithmic=False,
        least=_MIDDLE_CONTRASTS,
        of=lambda look: in_contrasts(look, lambda found: found.tissue_50 - found.middle_05),
    )
