"""A tiny task: two balls of different brightness, left and right, in three prepared cases."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.io.case_store import CaseRecord, CaseStore
from flaresemi.labels import Label, LabelSet
from flaresemi.plans import IntensityPlan, NetworkPlan, Stage, StagePlan
from flaresemi.training.config import TrainingConfig
from flaresemi.training.task import TrainingTask
from flaresemi.workspace import ModelFolder

SHAPE = (24, 26, 28)
LABELS = LabelSet(
    labels=(Label(name="left ball", value=1), Label(name="right ball", value=2)),
    mirror_pairs=(("right ball", "left ball"),),
)


def stage_plan(**changes: object) -> StagePlan:
    network = NetworkPlan(
        block="plain",
        input_channels=1,
        output_channels=3,
        features=(4, 8, 8),
        kernels=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        encoder_convs=(1, 1, 1),
        decoder_convs=(1, 1),
    )
    settings: dict = {
        "stage": Stage.FINE,
        "spacing_zyx_mm": (2.0, 2.0, 2.0),
        "patch_zyx": (16, 16, 16),
        "batch_size": 2,
        "region": "body",
        "margin_mm": 4.0,
        "resampling": "linear",
        "intensities": (IntensityPlan(scheme="zscore"),),
        "network": network,
        "reasons": {},
    }
    return StagePlan(**(settings | changes))


def write_case(store: CaseStore, case_id: str, seed: int, supervised: tuple[int, ...] = (1, 2)) -> None:
    generator = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    label = np.zeros(SHAPE, np.uint8)
    for index, center_x in ((1, 20), (2, 8)):
        center = np.array([12, 13, center_x]) + generator.integers(-2, 3, 3)
        label[(z - center[0]) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2 < 16] = index
    image = (2.0 * (label > 0) + generator.normal(0, 0.3, SHAPE))[None].astype(np.float32)
    grid = StageGrid(
        canonical_shape_zyx=SHAPE,
        canonical_spacing_zyx_mm=(2.0, 2.0, 2.0),
        body_box=BoundingBox.whole(SHAPE),
        shape_zyx=SHAPE,
    )
    record = CaseRecord.labeled(
        case_id=case_id, preprocessing_hash="test", grid=grid, label_zyx=label, organs=2, supervised=supervised
    )
    store.write(record, image, label)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> CaseStore:
    store = CaseStore(tmp_path_factory.mktemp("store"))
    for number in range(3):
        write_case(store, f"case_{number}", number)
    write_case(store, "right_only", 7, supervised=(2,))
    return store


@pytest.fixture
def make_task(store: CaseStore, tmp_path: Path) -> Callable[..., TrainingTask]:
    def make(name: str = "run", **changes: object) -> TrainingTask:
        settings: dict = {
            "plan": stage_plan(),
            "body": "ct",
            "labels": LABELS,
            "channels": ("CT",),
            "fold": "0",
            "store": store,
            "training": ("case_0", "case_1"),
            "validation": ("case_2",),
            "folder": ModelFolder(tmp_path / name),
        }
        return TrainingTask(**(settings | changes))

    return make


@pytest.fixture
def quick_config() -> TrainingConfig:
    return TrainingConfig(
        iterations=12, iterations_per_epoch=4, loader_workers=0, precision="fp32", validations=3, learning_rate=3e-3
    )
