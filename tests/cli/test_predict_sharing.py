"""flaresemi_predict by several processes: the label maps of one, and whoever dies loses no more than its image."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from flaresemi.cli import predict, predicting, turns
from flaresemi.inference.prediction_records import claims_folder, load_prediction
from flaresemi.tables import read_table
from tests.cli.test_predict import SHAPE, write_raw, write_scan
from tests.made_model import write_bright_model, write_liver_model

NAMES = [f"case_{number}.nii.gz" for number in range(6)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six scans, and a model of random weights, which other processes can build, too."""
    monkeypatch.chdir(tmp_path)
    write_liver_model(tmp_path / "flaresemi", sd_hu=1.0)
    for first, name in enumerate(NAMES):
        write_scan(tmp_path / "scans" / name, first)
    return tmp_path


@pytest.fixture
def bright(folder: Path, bright_is_liver: None) -> Path:
    """The same with a network that takes no time and is of this process alone."""
    write_bright_model(folder / "flaresemi")
    return folder


def words(*more: str) -> list[str]:
    return ["-i", "scans", *more, "--device", "cpu", "--engine", "torch", "--precision", "fp32", "--threads", "1"]


def hashes(output: Path) -> dict[str, str]:
    records = {path.name: load_prediction(path) for path in output.iterdir() if path.is_file()}
    return {name: record.label_map for name, record in records.items() if record is not None}


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.timeout(300)  # another process imports torch, at which a busy machine is slow
def test_a_helper_shares_the_work_and_loses_its_image_alone_when_it_is_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main(words("-o", "alone")) == 0
    alone = hashes(folder / "alone")
    assert sorted(alone) == NAMES
    killed: list[int] = []
    segment = predicting._segment

    def kill_the_helper_when_it_has_done_one(*arguments: object) -> object:
        until = time.monotonic() + 240
        while not killed and time.monotonic() < until:
            if (folder / "out").is_dir() and hashes(folder / "out"):
                children = psutil.Process().children()  # among them what multiprocessing keeps from earlier tests
                (helper,) = (child for child in children if "flaresemi.cli.predict" in child.cmdline())
                helper.kill()
                killed.append(helper.pid)
            time.sleep(0.002)
        return segment(*arguments)

    monkeypatch.setattr(predicting, "_segment", kill_the_helper_when_it_has_done_one)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    capsys.readouterr()
    assert predict.main(words("-o", "out", "--gpus=2")) == 0
    told = capsys.readouterr()
    assert killed and "process 1 of this launch was killed (SIGKILL)" in told.err
    assert hashes(folder / "out") == alone
    (summary,) = [line for line in told.err.splitlines() if "6 label map(s) written to out in" in line]
    by_this_one = int(summary.split(";")[1].split()[0])
    assert 1 <= by_this_one <= 5  # the other one had done one at least
    assert told.out.count("next: ") == 1
    assert not claims_folder(folder / "out").exists()


def test_ranks_skip_what_others_have_done_and_the_first_alone_speaks(
    bright: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_rank(monkeypatch, 1, 2)
    assert predict.main(words("-o", "out")) == 0
    assert sorted(hashes(bright / "out")) == NAMES  # its own part, and that of a rank which never came
    told = capsys.readouterr()
    assert told.out == "" and "label map(s)" not in told.err
    times = {name: (bright / "out" / name).stat().st_mtime_ns for name in NAMES}
    as_rank(monkeypatch, 0, 2)
    assert predict.main(words("-o", "out")) == 0
    assert {name: (bright / "out" / name).stat().st_mtime_ns for name in NAMES} == times
    assert "6 of 6 cases have their label map already" in capsys.readouterr().err


def test_one_message_tells_what_no_rank_could_predict(
    bright: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (bright / "scans" / NAMES[2]).write_bytes(b"damaged")
    as_rank(monkeypatch, 1, 2)
    assert predict.main(words("-o", "out")) == 0  # torchrun would end the others at any other code
    assert "error:" not in capsys.readouterr().err
    as_rank(monkeypatch, 0, 2)
    assert predict.main(words("-o", "out")) == 2
    told = capsys.readouterr().err
    assert told.count("error:") == 1
    assert "1 of 1 case(s) could not be predicted" in told
    assert len(hashes(bright / "out")) == 5


def test_parts_by_hand_make_the_whole(bright: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert predict.main(words("-o", "whole")) == 0
    assert predict.main(words("-o", "out", "--shard", "1/2")) == 0
    assert sorted(hashes(bright / "out")) == NAMES[1::2]
    as_rank(monkeypatch, 1, 2)  # a machine with two GPUs takes the other half
    assert predict.main(words("-o", "out", "--shard", "0/2")) == 0
    assert hashes(bright / "out") == hashes(bright / "whole")


def test_tasks_of_an_array_share_the_list_and_both_write_whole_tables(
    bright: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES[:2]:
        write_raw(bright / "scans" / name, np.zeros(SHAPE, np.int16))  # no Hounsfield units
    for task in ("0", "1"):
        for name, value in {"ID": task, "MIN": "0", "MAX": "1", "COUNT": "2"}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        assert predict.main(words("-o", "out", "--shard", "slurm")) == 0
        assert sorted(hashes(bright / "out")) == NAMES
        assert {row["case"] for row in read_table(bright / "out" / "warnings.csv")[1]} == {"case_0", "case_1"}


def test_a_part_by_hand_keeps_what_another_has_refused(bright: Path) -> None:
    for name in NAMES[:2]:
        write_raw(bright / "scans" / name, np.zeros(SHAPE, np.int16))
    assert predict.main(words("-o", "out", "--strict", "--shard", "0/2")) == 2
    assert predict.main(words("-o", "out", "--strict", "--shard", "1/2")) == 2
    _, rows = read_table(bright / "out" / "warnings.csv")
    assert [(row["case"], row["refused"]) for row in rows] == [("case_0", "yes"), ("case_1", "yes")]
    write_scan(bright / "scans" / NAMES[0], 3)
    assert predict.main(words("-o", "out", "--strict", "--shard", "0/2", "--continue")) == 0
    _, rows = read_table(bright / "out" / "warnings.csv")
    assert [row["case"] for row in rows] == ["case_1"]


def test_what_cannot_be_shared_is_refused(bright: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(words("-o", "out", "--gpus", "2", "--measure")) == 2
    assert "--measure measures one case with nothing beside it" in capsys.readouterr().err
    assert predict.main(words("-o", "out", "--shard", "2/2")) == 2
    assert "no shard 2 of 2" in capsys.readouterr().err


def test_without_locks_each_rank_keeps_to_its_part(bright: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLocks(turns.Claims):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.are_exclusive = False

    monkeypatch.setattr(turns, "Claims", NoLocks)
    as_rank(monkeypatch, 1, 2)
    assert predict.main(words("-o", "out")) == 0
    assert sorted(hashes(bright / "out")) == NAMES[1::2]
