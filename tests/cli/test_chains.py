"""Rounds of two folds side by side: what the processes would do is done here, one after the other."""

import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from flaresemi.cli import semi_round, train
from flaresemi.cli.chains import most_gpus
from flaresemi.cli.side_by_side import Ending, Place
from flaresemi.compute.distributed import LAUNCHED
from flaresemi.plans import Stage
from flaresemi.rounds.state import load_state
from flaresemi.workspace import Workspace
from tests.made_workspace import plan_tiny
from tests.rounds.conftest import QUICK, see_organs_everywhere

ROUND = ["--fold", "0", "1", "--select", "case", "--best-share", "1.0", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flaresemi.phantom import write_phantom_dataset

    folder = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom_dataset(folder, labeled=4, unlabeled=2, test=0, size=(32, 40, 40), seed=7)
    return folder


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two folds trained for a moment."""
    workspace = tmp_path_factory.mktemp("start") / "workspace"
    words = plan_tiny(data, workspace, "one", "--folds", "2")
    for fold in "01":
        assert train.main(["FINE", fold, *words, *QUICK, "--device", "cpu", "--precision", "fp32"]) == 0
        see_organs_everywhere(Workspace(workspace).model(fold, Stage.FINE))
    return workspace


class Processes:
    """In the place of `side_by_side`.

    Attributes:
        begun: Fold and step of each process, in their order.
        killed: One of them.
    """

    def __init__(self, killed: tuple[str, str] | None = None) -> None:
        self.begun: list[tuple[str, str]] = []
        self.killed = killed

    def __call__(self, commands: Mapping[str, Sequence[str]], at: Sequence[Place], **_: object) -> dict[str, Ending]:
        assert len(at) == 2
        return {name: Ending(self.run(list(command[3:]))) for name, command in commands.items()}

    def run(self, words: list[str]) -> int:
        options = semi_round.round_parser().parse_args(words)
        assert options.fold == ["0", "1"] and options.gpus == 1
        self.begun.append((options.chain, options.step))
        if self.begun[-1] == self.killed:
            return -signal.SIGKILL
        os.environ[LAUNCHED] = str(time.monotonic())
        try:
            return semi_round.main(words)
        finally:
            del os.environ[LAUNCHED]


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> dict[Path, dict]:
    """What a tracker is told, by the folder of each run: its names, its facts, and its steps in their order."""
    runs: dict[Path, dict] = {}

    class Tracker:
        def __init__(self, steps: list[int]) -> None:
            self.steps = steps

        def log(self, values: Mapping[str, float], step: int) -> None:
            assert values
            self.steps.append(step)

        def close(self) -> None:
            pass

    def opened(name: str, folder: Path, title: str, facts: Mapping[str, object]) -> Tracker | None:
        if name == "none":
            return None
        run = runs.setdefault(folder, {"titles": set(), "facts": dict(facts), "steps": []})
        run["titles"].add(title)
        return Tracker(run["steps"])

    for module in ("flaresemi.training.monitoring", "flaresemi.rounds.tracking"):
        monkeypatch.setattr(f"{module}.open_tracker", opened)
    monkeypatch.setattr("flaresemi.cli.semi_round.refuse_without_tracker", lambda name: None)
    return runs


def contents(workspace: Path) -> dict[str, bytes]:
    """What the rounds decided."""
    found = {}
    for fold in "01":
        folder = Workspace(workspace).round(fold, 1)
        for path in (folder.observations, folder.scores, folder.selection, folder.reliable_series):
            found[f"{fold} {path.name}"] = path.read_bytes()
        summary = folder.model(Stage.FINE).validation / "summary.json"
        found[f"{fold} summary"] = summary.read_bytes()
    return found


def test_folds_side_by_side_give_what_they_give_in_turn(
    data: Path,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tracked: dict[Path, dict],
) -> None:
    place = {name: ["-d", str(data), "-w", str(shutil.copytree(start, tmp_path / name))] for name in ("one", "two")}
    assert semi_round.main([*place["one"], *ROUND]) == 0
    capsys.readouterr()
    processes = Processes(killed=("1", "validate"))
    monkeypatch.setattr("flaresemi.cli.chains.side_by_side", processes)
    together = [*place["two"], *ROUND, "--gpus", "3", "--track", "mlflow"]
    assert not tracked
    assert semi_round.main(together) == 2
    assert processes.begun == [("0", "label"), ("1", "label"), ("0", "validate"), ("1", "validate")]
    failed = capsys.readouterr()
    assert failed.err.count("error: ") == 1
    assert "1 of 2 have failed" in failed.err and "fold 1: was killed (SIGKILL)" in failed.err
    assert "report: " not in failed.out  # they are judged when all are there
    state = load_state(Workspace(tmp_path / "two").round("0", 1).state)
    assert state is not None and state.next_step is None  # the other went on to its end
    processes.killed = None
    assert semi_round.main(together) == 0
    told = capsys.readouterr().out
    assert told.count("report: ") == 2
    assert "next: flaresemi_semi_round --fold 0 1" in told and "--gpus 3" in told
    assert told.count("next: flaresemi") == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    verdicts = [Workspace(tmp_path / name).verdict(("0", "1")).read_bytes() for name in ("one", "two")]
    assert verdicts[0] == verdicts[1]
    # Every student and every chain has a run of its own, which the same command goes on with.
    found = Workspace(tmp_path / "two")
    students = {found.round(fold, 1).model(Stage.FINE).logs: f"FINE fold {fold}, round 1" for fold in "01"}
    chains = {found.chain(fold) / "logs": f"rounds of fold {fold}" for fold in "01"}
    assert {folder: run["titles"] for folder, run in tracked.items()} == {
        folder: {title} for folder, title in (students | chains).items()
    }
    assert [tracked[folder]["facts"]["fold"] for folder in (*students, *chains)] == ["0", "1", "0", "1"]
    assert {run["facts"]["dataset"] for run in tracked.values()} == {"data"}
    assert [tracked[folder]["steps"] for folder in chains] == [[1], [1]]
    # Chains that were run by hand are told of by the command that judges them; once.
    for fold in "01":
        found.round(fold, 1).report.unlink()
    for _ in range(2):
        assert semi_round.main([*place["two"], *ROUND, "--rounds", "1", "--track", "mlflow"]) == 0
        assert [tracked[folder]["steps"] for folder in chains] == [[1, 1], [1, 1]]


def test_a_chain_alone_is_a_part_of_all(
    data: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["-d", str(data), "-w", str(shutil.copytree(start, tmp_path / "work"))]
    assert semi_round.main([*place, *ROUND, "--chain", "2"]) == 2
    assert "--chain 2 is none of the folds 0, 1" in capsys.readouterr().err
    assert semi_round.main([*place, *ROUND, "--chain", "0", "--until-converged"]) == 2
    assert "does not go with --until-converged" in capsys.readouterr().err
    assert semi_round.main([*place, *ROUND, "--chain", "0"]) == 2  # the other has not labeled what calibrates
    assert "run the labeling step to its end" in capsys.readouterr().err
    assert semi_round.main([*place, *ROUND, "--chain", "1", "--step", "label"]) == 0
    out = capsys.readouterr().out
    assert "fold 1, round 1: done up to 'label'; next comes 'select'" in out
    assert out.rstrip().endswith("--chain 1")
    for _ in range(2):  # a second time, all is there
        assert semi_round.main([*place, *ROUND, "--chain", "0", "--rounds", "1"]) == 0
        out = capsys.readouterr().out
        assert "fold 0, round 1: done up to 'validate'; next comes 'the next round'" in out
        assert "next: flaresemi_semi_round --fold 0 1 " in out
    assert not Workspace(tmp_path / "work").verdict(("0", "1")).exists()


@pytest.mark.parametrize(
    ("batches", "limit", "count"), [([2, 2], 4, 2), ([2, 4], 2, 2), ([4, 6], 5, 2), ([3, 2], 4, 1)]
)
def test_a_chain_has_as_many_gpus_as_its_batches_divide_among(batches: list[int], limit: int, count: int) -> None:
    assert most_gpus(batches, limit) == count


def test_one_fold_is_shared_by_all_processes(
    data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("torch.distributed.run.main", commands.append)
    place = ["-d", str(data), "-w", str(start), *ROUND, "--gpus", "2"]
    assert semi_round.main([*place, "--fold", "0"]) == 0
    assert semi_round.main([*place, "--final"]) == 0
    assert semi_round.main([*place, "--chain", "1"]) == 0
    assert len(commands) == 3 and all("--nproc-per-node=2" in each for each in commands)
    assert not os.path.lexists(Workspace(start).round("0", 1).root)
