"""Small synthetic datasets on disk, cheap enough to make anew for every test; fingerprints of typical datasets."""

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi import flare22
from flaresemi.dataset import LAYOUTS, Dataset, load_dataset
from flaresemi.geometry import BoundingBox, FloatTriple, IntTriple
from flaresemi.labels import Label, LabelSet
from flaresemi.plans import CaseFingerprint, DatasetFingerprint, IntensityStatistics


@dataclasses.dataclass
class SmallDataset:
    """A dataset folder: a body of soft tissue in air with two organs, a little different in every case."""

    root: Path
    layout: str = "nnU-Net"
    values: tuple[int, ...] = (1, 2)
    channels: tuple[str, ...] = ("CT",)
    shape: tuple[int, int, int] = (20, 24, 22)
    spacing_xyz: tuple[float, float, float] = (1.5, 1.5, 3.0)

    def folder(self, group: str) -> Path:
        return self.root / LAYOUTS[self.layout][("labeled", "label", "unlabeled", "test").index(group)]

    def add(self, group: str, name: str, seed: int) -> "SmallDataset":
        """Writes one case."""
        label = self.label_array(seed)
        for channel in range(len(self.channels)):
            self.write(self.image_path(group, name, channel), self.image_array(seed + 100 * channel, label))
        if group == "labeled":
            self.write(self.label_path(name), label)
        return self

    def image_path(self, group: str, name: str, channel: int = 0) -> Path:
        return self.folder(group) / f"{name}_{channel:04d}.nii.gz"

    def label_path(self, name: str) -> Path:
        return self.folder("label") / f"{name}.nii.gz"

    def label_array(self, seed: int) -> np.ndarray:
        dz, dy, dx = np.random.default_rng(seed).integers(0, 3, 3)
        label = np.zeros(self.shape, np.int32)
        for index, value in enumerate(self.values):
            label[6 + dz : 12 + dz, 6 + dy : 14 + dy, 5 + 6 * index + dx : 9 + 6 * index + dx] = value
        return label

    def with_label_in_air(self, share: float) -> "SmallDataset":
        """In case l1, this share of the first organ lies in the air, far from the body."""
        label = self.label_array(1)
        organ = np.flatnonzero(label == self.values[0])
        moved = organ[: round(share * organ.size)]
        label.flat[moved] = 0
        label[:, 0].flat[: moved.size] = self.values[0]
        self.write(self.label_path("l1"), label)
        return self

    def image_array(self, seed: int, label: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng([seed, 1])
        image = np.full(self.shape, -1000.0)
        image[1:-1, 3:-3, 3:-3] = 40
        for index, value in enumerate(self.values):
            image[label == value] = 120 + 60 * index
        return (image + generator.normal(0, 10, self.shape)).round().astype(np.int16)

    def write(self, path: Path, array: np.ndarray, **changes) -> None:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(changes.get("spacing", self.spacing_xyz))
        image.SetOrigin(changes.get("origin", (0.0, 0.0, 0.0)))
        image.SetDirection(changes.get("direction", (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)))
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))

    def describe(self, **changes) -> "SmallDataset":
        """Writes a dataset.json."""
        names = {"background": 0} | {f"organ {value}": value for value in self.values}
        channels = {str(index): name for index, name in enumerate(self.channels)}
        content = {"name": "small", "channel_names": channels, "labels": names} | changes
        (self.root / "dataset.json").write_text(json.dumps(content))
        return self

    def load(self) -> Dataset:
        return load_dataset(self.root)


@pytest.fixture
def small_dataset(tmp_path):
    """Makes a dataset folder of three labeled, one unlabeled and one test case."""

    def make(name: str = "dataset", *, labeled: int = 3, json: bool = True, **settings) -> SmallDataset:
        small = SmallDataset(root=tmp_path / name, **settings)
        for number in range(labeled):
            small.add("labeled", f"l{number}", seed=number)
        small.add("unlabeled", "u0", seed=50).add("test", "t0", seed=60)
        return small.describe() if json else small

    return make


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
    organ_mm3: float | None = None,
) -> DatasetFingerprint:
    """A fingerprint from (shape, spacing, body shape or None for all, organs' shape or None for none) per case.

    Each organ measures `organ_mm3`; None: all together fill half of their box.
    """
    cases = []
    for number, (shape, spacing, body, organs) in enumerate(sizes):
        body_box = _centered(shape, shape if body is None else body)
        voxels = 0
        if organs is not None:
            share = math.prod(organs) / (2 * labels.count)
            voxels = max(1, round(share if organ_mm3 is None else organ_mm3 / math.prod(spacing)))
        cases.append(
            CaseFingerprint(
                case_id=f"case_{number:03d}",
                shape_zyx=shape,
                spacing_zyx_mm=spacing,
                body_box=body_box,
                foreground_box=None if organs is None else _centered(shape, organs),
                voxels_per_label=(voxels,) * labels.count,
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
