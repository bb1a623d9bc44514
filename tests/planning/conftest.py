"""Small synthetic datasets on disk, cheap enough to make anew for every test."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.dataset import LAYOUTS, Dataset, load_dataset


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
