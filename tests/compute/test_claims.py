"""Claims: one process at a time, for as long as it lives."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from flaresemi.compute.claims import Claims

NAMES = [f"case_{number}" for number in range(12)]
SPAWNING = multiprocessing.get_context("spawn")


def never() -> bool:
    return False


def work(folder: Path, names: list[str], seconds: float) -> None:
    """Does names: one line in a file per name, which is there when its work is done."""
    with Claims(folder / "claims") as claims:
        for name in claims.hand_out(names, lambda name: (folder / name).exists(), never):
            with open(folder / f"{name}.begun", "a", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(seconds)
            (folder / name).touch()


def begun(folder: Path) -> dict[str, list[str]]:
    """Who began each name, in turn."""
    return {path.stem: path.read_text(encoding="ascii").split() for path in folder.glob("*.begun")}


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    started: list[BaseProcess] = []

    def begin(seconds: float, names: list[str] = NAMES) -> BaseProcess:
        started.append(SPAWNING.Process(target=work, args=(tmp_path, names, seconds)))
        started[-1].start()
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.join()


def wait_for(path: Path) -> None:
    for _ in range(1000):
        if path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(path)


def test_every_name_is_done_once_and_a_slow_process_holds_up_nobody(start, tmp_path: Path) -> None:
    slow = start(2.0)
    wait_for(tmp_path / "case_0.begun")
    others = [start(0.02, NAMES[::-1]), start(0.02, NAMES[3:] + NAMES[:3])]
    for process in (slow, *others):
        process.join(timeout=30)
        assert process.exitcode == 0
    owners = begun(tmp_path)
    assert sorted(owners) == sorted(NAMES)
    assert all(len(each) == 1 for each in owners.values()), owners
    assert [name for name, each in owners.items() if each == [str(slow.pid)]] == ["case_0"]


def test_what_a_killed_process_was_doing_is_done_by_one_that_waits(start, tmp_path: Path) -> None:
    doomed = start(60.0)
    wait_for(tmp_path / "case_0.begun")
    other = start(0.0)
    wait_for(tmp_path / NAMES[-1])
    assert not (tmp_path / "case_0").exists()
    assert other.is_alive()
    os.kill(doomed.pid, signal.SIGKILL)
    other.join(timeout=30)
    assert other.exitcode == 0
    assert begun(tmp_path)["case_0"] == [str(doomed.pid), str(other.pid)]
    assert (tmp_path / "case_0").exists()


def test_who_waits_for_another_can_be_stopped(start, tmp_path: Path) -> None:
    start(60.0, ["case_0"])
    wait_for(tmp_path / "case_0.begun")
    answers = iter([False, False, True])
    with Claims(tmp_path / "claims") as claims:
        assert list(claims.hand_out(["case_0"], lambda name: False, lambda: next(answers))) == []
        with claims.claim("case_0") as taken:
            assert not taken
        with claims.claim("case_1") as taken:
            assert taken


def test_without_locks_every_claim_is_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    number = errno.ENOLCK
    monkeypatch.setattr(fcntl, "lockf", fail)
    with Claims(tmp_path / "claims") as claims:
        assert not claims.are_exclusive
        done: set[str] = set()
        for name in claims.hand_out(NAMES, done.__contains__, never):
            done.add(name)
        assert done == set(NAMES)
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), Claims(tmp_path / "claims"):
        pass
