"""One small dataset, prepared, trained and predicted once without any fault: what every injection is compared with."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.faults.injection import run_command
from tests.made_workspace import shrink

PLAN = ("plan_and_preprocess", "--preset", "small", "--stages", "one", "--workers", "1")
TRAIN = (
    "train", "FINE", "0", "--iterations", "6", "--iterations-per-epoch", "2", "--validations", "3", "--device", "cpu",
    "--precision", "fp32", "--loader-workers", "0", "--checkpoint-minutes", "0",
)  # fmt: skip
PREDICT = ("predict", "--device", "cpu", "--precision", "fp32", "--engine", "torch")


@dataclasses.dataclass(frozen=True)
class Whole:
    """What the commands left when nothing went wrong.

    Attributes:
        data: The dataset.
        planned: Workspace after planning.
        small: The same with networks that take no time.
        trained: The same, trained.
        predicted: Label maps.
        cpu_seconds: Of the commands, by name.
    """

    data: Path
    planned: Path
    small: Path
    trained: Path
    predicted: Path
    cpu_seconds: dict[str, float]


@pytest.fixture(scope="session")
def whole(phantom_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    made = Whole(
        phantom_dataset, *(root / name for name in ("planned", "small", "trained", "predicted")), cpu_seconds={}
    )

    def run(words: tuple[str | Path, ...]) -> None:
        end = run_command(words, root / "log")
        assert end.code == 0, end.said
        made.cpu_seconds[str(words[0])] = end.cpu_seconds

    run((*PLAN, "-d", made.data, "-w", made.planned))
    shutil.copytree(made.planned, made.small)
    shrink(made.small)
    shutil.copytree(made.small, made.trained)
    run((*TRAIN, "-d", made.data, "-w", made.trained))
    run((*PREDICT, "-i", made.data / "labeled_image", "-m", made.trained / "models", "-o", made.predicted))
    return made
