"""Fingerprints of typical datasets, made by hand."""

import dataclasses
import random
from collections.abc import Callable

import pytest

from flaresemi import flare22
from flaresemi.geometry import BoundingBox, FloatTriple, IntTriple
from flaresemi.labels import Label, LabelSet
from flaresemi.plans import CaseFingerprint, DatasetFingerprint, IntensityStatistics

CT_INTENSITIES = IntensityStatistics(
    percentile_00_5=-160.0,
    percentile_05=-40.0,
    percentile_50=95.0,
    percentile_95=190.0,
    percentile_99_5=260.0,
    mean=90.0,
    sd=70.0,
)

NO_INTENSITIES = IntensityStatistics(
    percentile_00_5=0.0, percentile_05=0.0, percentile_50=0.0, percentile_95=0.0, percentile_99_5=0.0, mean=0.0, sd=0.0
)


def fingerprint_of(
    sizes: list[tuple[IntTriple, FloatTriple, IntTriple | None, IntTriple | None]],
    *,
    channels: tuple[str, ...] = ("CT",),
    labels: LabelSet = flare22.LABELS,
    name: str = "made",
) -> DatasetFingerprint:
    """A fingerprint from (shape, spacing, body shape or None for all, organs' shape or None for none) per case."""
    cases = []
    for number, (shape, spacing, body, organs) in enumerate(sizes):
        body_box = _centered(shape, shape if body is None else body)
        cases.append(
            CaseFingerprint(
                case_id=f"case_{number:03d}",
                shape_zyx=shape,
                spacing_zyx_mm=spacing,
                body_box=body_box,
                foreground_box=None if organs is None else _centered(shape, organs),
                voxels_per_label=(0 if organs is None else 1000,) * labels.count,
                annotated=(True,) * labels.count,
            )
        )
    return DatasetFingerprint(
        dataset_name=name,
        channels=channels,
        labels=labels,
        cases=tuple(cases),
        intensities=(CT_INTENSITIES,) * len(channels),
    )


@pytest.fixture(scope="session")
def make_fingerprint() -> Callable[..., DatasetFingerprint]:
    return fingerprint_of


@pytest.fixture(scope="session")
def flare_fingerprint() -> DatasetFingerprint:
    """50 abdominal CTs, 512×512×about 100 at about 0.8×0.8×2.5 mm, 13 organs."""
    draw = random.Random(22)
    sizes: list = []
    for _ in range(50):
        slices = draw.randrange(71, 130)
        pixel = draw.choice((0.68, 0.74, 0.7813, 0.82, 0.9))
        thickness = draw.choice((2.5, 2.5, 2.5, 3.0, 2.0))
        body = (slices, draw.randrange(290, 360), draw.randrange(420, 490))
        organs = (min(slices, round(240 / thickness)), round(190 / pixel), round(270 / pixel))
        sizes.append(((slices, 512, 512), (thickness, pixel, pixel), body, organs))
    return fingerprint_of(sizes, name="FLARE22")


@pytest.fixture(scope="session")
def openkbp_fingerprint() -> DatasetFingerprint:
    """34 head-and-neck CTs, about 108×58×126 (x, y, z) voxels at 4.688×4.688×2.5 mm, 7 organs, crops of the body."""
    draw = random.Random(7)
    labels = LabelSet(labels=tuple(Label(name=f"organ {value}", value=value) for value in range(1, 8)))
    sizes: list = []
    for _ in range(34):
        shape = (draw.randrange(122, 129), draw.randrange(53, 66), draw.randrange(98, 120))
        sizes.append((shape, (2.5, 4.688, 4.688), None, (97, 39, 32)))
    return fingerprint_of(sizes, labels=labels, name="openkbp")


@pytest.fixture(scope="session")
def hippocampus_fingerprint() -> DatasetFingerprint:
    """208 MR crops of about 36×50×35 (z, y, x) voxels at 1 mm, 2 labels; the whole image is body."""
    draw = random.Random(4)
    labels = LabelSet(labels=(Label(name="anterior", value=1), Label(name="posterior", value=2)))
    sizes: list = []
    for _ in range(208):
        shape = (draw.randrange(31, 42), draw.randrange(45, 56), draw.randrange(32, 39))
        sizes.append((shape, (1.0, 1.0, 1.0), None, (26, 39, 22)))
    return fingerprint_of(sizes, channels=("MRI",), labels=labels, name="hippocampus")


@pytest.fixture(scope="session")
def empty_fingerprint(flare_fingerprint: DatasetFingerprint) -> DatasetFingerprint:
    """A dataset whose label maps are all empty."""
    cases = tuple(dataclasses.replace(case, foreground_box=None) for case in flare_fingerprint.cases[:5])
    return dataclasses.replace(flare_fingerprint, cases=cases, intensities=(NO_INTENSITIES,))


def _centered(shape: IntTriple, inner: IntTriple) -> BoundingBox:
    z, y, x = ((outer - size) // 2 for outer, size in zip(shape, inner, strict=True))
    return BoundingBox(start=(z, y, x), stop=(z + inner[0], y + inner[1], x + inner[2]))
