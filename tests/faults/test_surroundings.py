"""Disks, clocks, places and other processes: what goes wrong around a command."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flaresemi.cli import plan_and_preprocess, predict, semi_round, train
from flaresemi.cli.signals import StopSignals
from flaresemi.errors import DatasetError, FlaresemiError
from flaresemi.io.case_store import CaseStore, OpenCases
from flaresemi.locking import working_alone
from flaresemi.plans import Stage, load_plans
from flaresemi.training.loading import failures_told, load_batches
from flaresemi.training.sampling import AddressSampler, PatchSampler, TrainingCase
from flaresemi.workspace import Workspace
from tests.faults.conftest import PLAN, PREDICT, TRAIN, Whole
from tests.faults.injection import differences, listing, read_only, run_command, small_disk


def test_a_second_process_is_refused_and_others_are_not(
    whole: Whole, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = Path(shutil.copytree(whole.trained, tmp_path / "workspace"))
    words = ["-d", str(whole.data), "-w", str(place)]
    commands = {
        ("preprocessed",): (plan_and_preprocess, PLAN[1:]),
        ("models", "fold_0", "FINE"): (train, (*TRAIN[1:], "--continue")),
        ("rounds", "fold_0"): (semi_round, ("--fold", "0")),
    }
    for part, (command, usual) in commands.items():
        before = listing(place)
        with working_alone(Workspace(place).lock(*part), ["flaresemi_first"]):
            assert command.main([*usual, *words]) == 2
            told = capfd.readouterr().err
            assert f"process {os.getpid()} on {os.uname().nodename} since" in told
            assert "flaresemi_first" in told
            if part == ("models", "fold_0", "FINE"):  # other parts go on meanwhile
                assert plan_and_preprocess.main([*PLAN[1:], *words]) == 0
                assert train.main(["FINE", "1", *words, *TRAIN[3:], "--iterations", "1", "--no-validation"]) == 0
                shutil.rmtree(place / "models" / "fold_1")
            if part == ("rounds", "fold_0"):
                assert semi_round.main(["--fold", "0", "--status", *words]) == 0
        if part != ("models", "fold_0", "FINE"):
            changed = {name for name in before.keys() ^ listing(place).keys() if "folds_0.json" not in name}
            assert changed <= {"rounds"}
    assert train.main([*TRAIN[1:], *words, "--continue"]) == 0


@pytest.mark.parametrize("command", [PLAN, TRAIN, PREDICT], ids=lambda words: words[0])
def test_a_full_disk(command: tuple[str, ...], whole: Whole, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 8192) as mounted:
        if not mounted:
            pytest.skip("mounting a disk is not permitted here")
        place = disk / "place"
        if command is TRAIN:
            shutil.copytree(whole.small, place)
            command = (*TRAIN, "--continue", "-d", str(whole.data), "-w", str(place))
        elif command is PLAN:
            command = (*PLAN, "-d", str(whole.data), "-w", str(place))
        else:
            models = str(whole.trained / "models")
            command = (*PREDICT, "--continue", "-i", str(whole.data / "labeled_image"), "-m", models, "-o", str(place))
        free = {"plan_and_preprocess": 100, "train": 150, "predict": 6}[command[0]]
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free * 1024))
        end = run_command(command, tmp_path / "log")
        assert end.code == 2, end.said
        assert "no space left on the disk" in end.said or "not enough disk space" in end.said
        assert end.said.count("error:") == 1
        ballast.unlink()
        assert run_command(command, tmp_path / "log").code == 0
        expected = {"plan_and_preprocess": whole.planned, "train": whole.trained, "predict": whole.predicted}
        assert differences(expected[command[0]], place) == []


def test_read_only_data(whole: Whole, tmp_path: Path) -> None:
    before = listing(whole.data)
    with read_only(whole.data, tmp_path / "data") as mounted:
        data = tmp_path / "data" if mounted else whole.data
        for words in (
            (*PLAN, "-d", data, "-w", tmp_path / "workspace"),
            (*PREDICT, "-i", data / "labeled_image", "-m", whole.trained / "models", "-o", tmp_path / "out"),
        ):
            end = run_command(words, tmp_path / "log")
            assert end.code == 0, end.said
        if mounted:
            end = run_command((*PLAN, "-d", data), tmp_path / "log")
            assert end.code == 2
            assert "this place is read-only" in end.said
    assert listing(whole.data) == before
    assert differences(whole.planned, tmp_path / "workspace") == []


def test_a_workspace_that_was_moved(whole: Whole, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Trained from weights that are gone by then, stopped, moved, and started again with other paths."""
    first = Path(shutil.copytree(whole.small, tmp_path / "first"))
    weights = Path(shutil.copyfile(whole.trained / "models" / "fold_0" / "FINE" / "snapshot_036.pt", tmp_path / "w.pt"))
    words = [*TRAIN[1:], "-d", str(whole.data), "--init-from", str(weights)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, "requested", lambda _: True)
        assert train.main([*words, "-w", str(first)]) == 143
    weights.unlink()
    second = first.rename(tmp_path / "elsewhere")
    data = Path(shutil.copytree(whole.data, tmp_path / "data"))
    place = ["-d", str(data), "-w", str(second)]
    assert train.main(["FINE", "0", *place, "--continue", "--device", "cpu"]) == 0
    assert plan_and_preprocess.main([*PLAN[1:], *place]) == 0
    assert "all cases are prepared already" in capfd.readouterr().err
    assert semi_round.main(["--fold", "0", "--status", *place]) == 0
    assert "0 complete rounds" in capfd.readouterr().out
    images = ["-i", str(data / "test_image"), "-d", str(data), "-w", str(second), "-o", str(tmp_path / "out")]
    assert predict.main([*PREDICT[1:], *images]) == 0


@pytest.mark.parametrize("second", [0, 4102444800])
def test_files_of_other_years(second: int, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was wrong when they were written, and jumps while the next command runs."""
    place = Path(shutil.copytree(whole.trained, tmp_path / "workspace"))
    for path in place.rglob("*"):
        os.utime(path, (second, second))
    now = time.time()
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now + (-1) ** next(jumps) * 10**8)
    words = ["-d", str(whole.data), "-w", str(place)]
    assert plan_and_preprocess.main([*PLAN[1:], *words]) == 0
    assert train.main([*TRAIN[1:], *words, "--iterations", "7", "--continue", "--no-validation"]) == 0
    prepared = [path for path in (place / "preprocessed").rglob("*") if path.is_file()]
    assert {path.stat().st_mtime for path in prepared} == {second}


#: Kills the process that prepares its patches after the first step.
KILLING = """
import multiprocessing, sys
from flaresemi.cli import train
from flaresemi.cli.signals import StopSignals

def kill(signals):
    for child in multiprocessing.active_children():
        print("killed", child.pid, flush=True)
        child.kill()
    return False

StopSignals.requested = kill
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_killed_loader_process(whole: Whole, tmp_path: Path) -> None:
    place = Path(shutil.copytree(whole.small, tmp_path / "workspace"))
    words = [*TRAIN[1:], "-d", str(whole.data), "-w", str(place), "--iterations", "12", "--no-validation"]
    done = subprocess.run(
        [sys.executable, "-c", KILLING, *words, "--loader-workers", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    killed = done.stdout.split("killed ", 1)[1].splitlines()[0]
    assert done.stderr.count("error:") == 1
    assert f"a process that prepares patches died: process {killed}" in done.stderr
    assert train.main([*words, "--continue"]) == 0


def test_an_unreadable_file_under_a_loader_process_is_told() -> None:
    text = "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out"
    with pytest.raises(FlaresemiError, match="run flaresemi_plan_and_preprocess again") as told, failures_told():
        raise RuntimeError(text)
    assert "process 12 is killed by signal: Bus error" in told.value.what
    with pytest.raises(FlaresemiError, match="process 12 is killed by signal: Killed"), failures_told():
        try:
            raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
        finally:  # as torch does, whose file cannot be ended
            raise RuntimeError("unexpected pos 2339520 vs 2339408")
    with pytest.raises(RuntimeError, match="another"), failures_told():
        raise RuntimeError("another")


def test_a_case_that_is_damaged_while_it_is_trained_on(whole: Whole, tmp_path: Path) -> None:
    """What the loader finds arrives as what it is, not as the text of a traceback."""
    place = Path(shutil.copytree(whole.small, tmp_path / "workspace"))
    plan = load_plans(place / "plans.json").stage(Stage.FINE)
    store = CaseStore(Workspace(place).preprocessed(Stage.FINE))
    sampler = PatchSampler(
        store,
        [TrainingCase(case_id="phantom_0001", supervised=(1,))],
        plan,
        foreground_share=0.5,
        region_jitter_mm=0.0,
        outside_share=0.0,
        augmentations={},
        seed=0,
    )
    batches = load_batches(sampler, AddressSampler(range(3), range(2)), 0)
    assert torch.is_tensor(torch.from_numpy(next(batches).image_bczyx))
    sampler._opened = OpenCases(store)
    (store.folder / "phantom_0001" / "image.npy").write_bytes(b"")
    with pytest.raises(DatasetError, match="preprocessed case 'phantom_0001' is damaged") as told:
        next(batches)
    assert "Traceback" not in str(told.value)
