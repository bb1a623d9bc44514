"""Files that were cut off, spoilt or written by another version: a clear message, and its advice works."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flaresemi.cli import plan_and_preprocess, predict, semi_round, train
from flaresemi.cli.signals import StopSignals
from tests.faults.conftest import PLAN, PREDICT, TRAIN, Whole
from tests.faults.injection import differences

Run = Callable[..., str]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(whole: Whole, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on the workspace of this test and gives what it said."""
    commands = {
        "plan": (plan_and_preprocess, PLAN),
        "train": (train, TRAIN),
        "round": (semi_round, ("", "--fold", "0")),
    }
    place = ["-d", str(whole.data), "-w", str(tmp_path / "workspace")]

    def start(name: str, *words: str, code: int = 0) -> str:
        command, usual = commands[name]
        capfd.readouterr()
        found = command.main([*usual[1:], *place, *words])
        said = capfd.readouterr().err
        assert found == code, said
        assert said.count("error:") == (code == 2), said
        return said

    return start


@pytest.fixture
def workspace(whole: Whole, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.trained, tmp_path / "workspace"))


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def spoilt(path: Path) -> None:
    path.write_bytes(b"\xff\x00\xfe" * 10)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = pytest.mark.parametrize("damage", [half, spoilt, emptied])
Damage = Callable[[Path], None]


@DAMAGES
def test_plans(damage: Damage, workspace: Path, run: Run) -> None:
    damage(workspace / "plans.json")
    assert "plans.json" in run("plan", code=2)
    assert "plans.json" in run("train", "--continue", code=2)
    run("plan", "--replan")


@DAMAGES
def test_splits(damage: Damage, whole: Whole, workspace: Path, run: Run) -> None:
    damage(workspace / "splits.json")
    assert "splits.json" in run("train", "--continue", code=2)
    assert "remove it and run the command that wrote it again" in run("plan", code=2)
    (workspace / "splits.json").unlink()
    run("plan")
    assert (workspace / "splits.json").read_bytes() == (whole.planned / "splits.json").read_bytes()


@DAMAGES
def test_what_can_be_found_out_again(damage: Damage, whole: Whole, workspace: Path, run: Run) -> None:
    """Cases are prepared again, records written again, without being asked to."""
    prepared = workspace / "preprocessed" / "FINE" / "phantom_0001"
    damages = ["fingerprint.json", "inspected_cases.json", "fingerprint_cases/phantom_0002.json"]
    damages += ["fingerprint_cases/phantom_0003.npy", "preprocessed/sources/phantom_0002.json"]
    for name in damages:
        damage(workspace / name)
    for path in (prepared, *(prepared.with_name(f"phantom_000{number}") for number in (2, 3))):
        damage(path / {"1": "image.npy", "2": "label.npy", "3": "case.json"}[path.name[-1]])
    assert "not preprocessed for these plans: phantom_0001" in run("train", "--continue", code=2)
    run("plan")
    different = differences(whole.small, workspace)
    assert [name for name in different if not name.startswith("only in one: models/")] == []
    run("train", "--continue")


@DAMAGES
def test_the_record_of_a_run(damage: Damage, whole: Whole, workspace: Path, run: Run) -> None:
    damage(workspace / "models" / "fold_0" / "FINE" / "run.json")
    run("train", "--iterations", "8", "--continue", "--no-validation")
    record = json.loads((workspace / "models" / "fold_0" / "FINE" / "run.json").read_text(encoding="utf-8"))
    before = json.loads((whole.trained / "models" / "fold_0" / "FINE" / "run.json").read_text(encoding="utf-8"))
    assert record["config"] == before["config"] | {"iterations": 8}
    assert record["training_cases"] == before["training_cases"]


@pytest.fixture
def stopped(whole: Whole, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose training was stopped after four of six steps; its model folder."""
    shutil.copytree(whole.small, tmp_path / "workspace")
    steps = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "requested", lambda _: next(steps) == 4)
        run("train", code=143)
    return tmp_path / "workspace" / "models" / "fold_0" / "FINE"


@pytest.mark.parametrize("name", ["checkpoint_latest.pt", "run.json", "history.jsonl"])
def test_a_training_that_goes_on(name: str, whole: Whole, stopped: Path, run: Run) -> None:
    rows = (stopped / "history.jsonl").read_text(encoding="utf-8")
    half(stopped / name)
    if name == "history.jsonl":
        (stopped / name).write_text(f"{rows[:20]}\n{rows}", encoding="utf-8")
        assert "is not the row of an epoch" in run("train", "--continue", code=2)
        (stopped / name).write_text(rows, encoding="utf-8")
    said = run("train", "--continue")
    assert name != "checkpoint_latest.pt" or "checkpoint_previous.pt takes its place" in said
    assert differences(whole.trained, stopped.parents[2]) == []


@DAMAGES
def test_final_weights(
    damage: Damage, whole: Whole, workspace: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    model = workspace / "models" / "fold_0" / "FINE"
    damage(model / "snapshot_100.pt")
    images = ["-i", str(whole.data / "test_image"), "-m", str(workspace / "models"), "-o", str(workspace / "out")]
    assert predict.main([*PREDICT[1:], *images]) == 2
    assert "flaresemi_train with --continue" in capfd.readouterr().err
    run("train", "--continue")
    assert predict.main([*PREDICT[1:], *images]) == 0
    shutil.rmtree(workspace / "out")
    damage(model / "checkpoint_latest.pt")  # of a training that is complete: it is not needed any more
    run("train", "--continue")
    shutil.copyfile(
        whole.trained / "models" / "fold_0" / "FINE" / "checkpoint_latest.pt", model / "checkpoint_latest.pt"
    )
    assert differences(whole.trained, workspace) == []


@pytest.mark.parametrize("version", [0, 99])
def test_other_versions(version: int, workspace: Path, run: Run) -> None:
    """They have other keys as well; what counts is told."""
    said = {0: "written by an older flaresemi", 99: "update this one"}[version]

    def write(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({"renamed": 1} | content | {"schema_version": version}), encoding="utf-8")

    for name, command, words in (
        ("plans.json", "plan", []),
        ("splits.json", "train", ["--continue"]),
        ("fingerprint.json", "round", []),
        ("models/fold_0/FINE/run.json", "train", ["--continue"]),
        ("models/fold_0/FINE/validation/summary.json", "round", ["--status"]),
        ("case_decisions.json", "plan", []),
    ):
        path = workspace / name
        before = path.read_bytes() if path.exists() else None
        if before is None:
            path.write_text("{}")
        write(path)
        output = run(command, *words, code=2 if name != "models/fold_0/FINE/validation/summary.json" else 0)
        assert said in output or "summary" in name, name
        path.unlink() if before is None else path.write_bytes(before)
    for name in ("preprocessed/FINE/phantom_0001/case.json", "inspected_cases.json"):
        write(workspace / name)
    run("plan")  # prepared and inspected again
    run("train", "--continue")


def test_a_raw_file_that_becomes_unreadable(whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(shutil.copytree(whole.data, tmp_path / "data"))
    words = ["-i", str(data / "labeled_image"), "-m", str(whole.trained / "models"), "-o", str(tmp_path / "out")]
    image = data / "labeled_image" / "phantom_0002_0000.nii.gz"
    content = image.read_bytes()
    half(image)
    assert predict.main([*PREDICT[1:], *words]) == 2
    error = capsys.readouterr().err
    assert "1 of 3 case(s) could not be predicted; the others are done" in error
    assert str(image) in error
    image.write_bytes(content)
    assert predict.main([*PREDICT[1:], *words, "--continue"]) == 0
    assert differences(whole.predicted, tmp_path / "out") == []
