"""A tiny task: two balls of different brightness, left and right, in three prepared cases; a tiny student's dataset."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.io.case_store import CaseRecord, CaseStore, LabelStore
from flaresemi.labels import Label, LabelSet
from flaresemi.planning.fingerprint import fingerprint_dataset
from flaresemi.planning.planner import make_plans
from flaresemi.planning.preparation import prepare_dataset
from flaresemi.planning.splits import make_splits
from flaresemi.plans import IntensityPlan, NetworkPlan, Stage, StagePlan
from flaresemi.records import save_record
from flaresemi.selection import SelectedCase, Selection
from flaresemi.training.config import TrainingConfig
from flaresemi.training.mixing import Mixing
from flaresemi.training.semi_supervised import SemiSupervision
from flaresemi.training.task import TrainingTask
from flaresemi.workspace import ModelFolder, Workspace
from tests import made_plans
from tests.planning.conftest import SmallDataset

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
        "network": network,
        "spacing_zyx_mm": (2.0, 2.0, 2.0),
        "margin_mm": 4.0,
        "intensities": (IntensityPlan(scheme="zscore"),),
    }
    return made_plans.stage_plan(**(settings | changes))


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


@dataclasses.dataclass(frozen=True)
class Student:
    """A student's dataset and workspace, and a folder with the true label maps of the unlabeled cases u0, u1 and u2."""

    data: SmallDataset
    workspace: Workspace
    teacher: Path

    def truth(self, case_id: str) -> np.ndarray:
        return self.data.label_array(50 + int(case_id[1:]))

    @property
    def words(self) -> list[str]:
        return ["-d", str(self.data.root), "-w", str(self.workspace.root)]


@pytest.fixture(scope="session")
def prepared_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labeled and three unlabeled cases, planned with two stages and prepared. Read it, write elsewhere."""
    root = tmp_path_factory.mktemp("student")
    data = SmallDataset(root=root / "data", values=(5, 200))
    for number in range(3):
        data.add("labeled", f"l{number}", seed=number).add("unlabeled", f"u{number}", seed=50 + number)
    dataset, workspace = data.describe().load(), Workspace(root / "workspace")
    plans = make_plans(fingerprint_dataset(dataset, None, workers=1))
    fine = stage_plan(region="organs", spacing_zyx_mm=(2.5, 1.5, 1.5))
    coarse = stage_plan(stage=Stage.COARSE, spacing_zyx_mm=(4.0, 3.0, 3.0), patch_zyx=(8, 8, 8))
    plans = dataclasses.replace(plans, fine=fine, coarse=coarse)
    save_record(workspace.plans, plans)
    save_record(workspace.splits, make_splits(case.id for case in dataset.labeled))
    prepare_dataset(dataset, plans, workspace, workers=1)
    return root


@pytest.fixture
def student(prepared_student: Path, tmp_path: Path) -> Student:
    root = shutil.copytree(prepared_student, tmp_path / "student")  # times of files are kept
    made = Student(SmallDataset(root=root / "data", values=(5, 200)), Workspace(root / "workspace"), root / "teacher")
    for case_id in ("u0", "u1", "u2"):
        made.data.write(made.teacher / f"{case_id}.nii.gz", made.truth(case_id))
    return made


@pytest.fixture
def make_semi(store: CaseStore, tmp_path: Path) -> Callable[..., SemiSupervision]:
    """Pseudo-labels of three scans: what `spoil` leaves of their true label maps."""

    def make(
        spoil: Callable[[np.ndarray], np.ndarray] = lambda label: label,
        supervised: tuple[str, ...] = LABELS.names,
        **mixing: float,
    ) -> SemiSupervision:
        labels, selected = LabelStore(tmp_path / "labels", store), []
        for number in range(3):
            source, case_id = store.open(f"case_{number}"), f"scan_{number}"
            record = CaseRecord.unlabeled(case_id=case_id, preprocessing_hash="test", grid=source.record.grid)
            store.write(record, np.asarray(source.image_czyx, np.float32), None)
            label = spoil(np.array(source.label_zyx))
            labels.write_labels(case_id, label, organs=2, supervised=(1, 2))
            selected.append(SelectedCase(case_id=case_id, score=0.9, supervised=supervised, rejected={}))
        selection = Selection(round=1, fold="0", rule="organ", thresholds={}, selected=tuple(selected), rejected={})
        stores = dict.fromkeys((case.case_id for case in selected), labels)
        return SemiSupervision(labels=stores, selection=selection, mixing=Mixing(**mixing))

    return make
