"""kill -9 at random moments of a command; the next start goes on, and what it leaves is what one start leaves."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import PLAN, PREDICT, TRAIN, Whole
from tests.faults.injection import differences, run_command

KILLS = 2


def _plan(whole: Whole, place: Path) -> tuple[tuple[str | Path, ...], Path]:
    return (*PLAN, "-d", whole.data, "-w", place), whole.planned


def _train(whole: Whole, place: Path) -> tuple[tuple[str | Path, ...], Path]:
    if not place.exists():
        shutil.copytree(whole.small, place)
    return (*TRAIN, "-d", whole.data, "-w", place, "--continue"), whole.trained


def _predict(whole: Whole, place: Path) -> tuple[tuple[str | Path, ...], Path]:
    images, models = whole.data / "labeled_image", whole.trained / "models"
    return (*PREDICT, "-i", images, "-m", models, "-o", place, "--continue"), whole.predicted


@pytest.mark.parametrize("command", [_plan, _train, _predict])
def test_a_killed_command_ends_like_one_that_was_not(
    command: Callable[[Whole, Path], tuple[tuple[str | Path, ...], Path]], whole: Whole, tmp_path: Path
) -> None:
    words, expected = command(whole, tmp_path / "place")
    moments = random.Random(f"kill {words[0]}")
    for _ in range(KILLS):
        moment = moments.uniform(0, 0.8) * whole.cpu_seconds[str(words[0])]
        end = run_command(words, tmp_path / "log", kill_after=moment)
        assert end.code == -signal.SIGKILL, end.said
    end = run_command(words, tmp_path / "log")
    assert end.code == 0, end.said
    left = [path for path in (tmp_path / "place").rglob(".*") if command is not _predict]
    assert left == []
    assert [name for name in differences(expected, tmp_path / "place") if ".partial-" not in name] == []
