"""One process at a time, for as long as it lives: on a part of a workspace, and on each of many cases."""

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from flaresemi.errors import ConfigError
from flaresemi.locking import Claims, working_alone

#: Holds the lock of its first argument until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from flaresemi.locking import working_alone

with working_alone(Path(sys.argv[1]), ["flaresemi_train", "FINE", "0", "-d", "my data"]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_of_the_first_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "workspace" / ".lock-models"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        for _ in range(2):  # the one that was refused has changed nothing
            with pytest.raises(ConfigError) as refusal, working_alone(path, ["second"]):
                pass
            message = str(refusal.value)
            assert f"process {first.pid} on {os.uname().nodename} since {time.strftime('%Y-')}" in message
            assert "flaresemi_train FINE 0 -d 'my data'" in message
            assert str(path.parent) in message
        first.send_signal(signal.SIGKILL)
    assert path.exists()  # what a killed process leaves is of no consequence
    with working_alone(path, ["second"]):
        assert "second" in path.read_text(encoding="utf-8")
        assert "my data" not in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == []


def test_it_is_released_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with pytest.raises(KeyError), working_alone(path, ["one"]):
            raise KeyError
    assert not path.exists()


def test_different_parts_are_worked_on_side_by_side(tmp_path: Path) -> None:
    with working_alone(tmp_path / "one", ["one"]), working_alone(tmp_path / "other", ["other"]):
        assert len(list(tmp_path.iterdir())) == 2


def test_the_lock_of_a_later_owner_is_not_removed(tmp_path: Path) -> None:
    """Somebody removed the file by hand, and another process has begun."""
    path = tmp_path / "lock"
    with working_alone(path, ["one"]):
        path.unlink()
        path.write_text("another")
    assert path.read_text() == "another"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_it_goes_on_with_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    done = False
    with caplog.at_level(logging.WARNING), working_alone(tmp_path / "lock", ["one"]):
        done = True
    assert done
    assert "this filesystem has no locks" in caplog.text


def test_what_stands_in_the_file_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with working_alone(path, ["one"]):
        path.write_bytes(b"\x1b[2J\xff" + b"x" * 10_000)
        with pytest.raises(ConfigError) as refusal, working_alone(path, ["second"]):
            pass
    assert "\x1b" not in str(refusal.value)
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("is_link", [False, True])
def test_what_is_no_lock_is_left_as_it_is(tmp_path: Path, is_link: bool) -> None:
    lock, theirs = tmp_path / ".lock-models", tmp_path / "theirs"
    theirs.write_text("years of work")
    lock.symlink_to(theirs) if is_link else os.link(theirs, lock)
    with (
        pytest.raises(ConfigError, match="link" if is_link else "did not write") as caught,
        working_alone(lock, ["train"]),
    ):
        pass
    assert str(lock) in str(caught.value)
    assert theirs.read_text() == "years of work"


NAMES = [f"case_{number}" for number in range(12)]
SPAWNING = multiprocessing.get_context("spawn")


def never() -> bool:
    return False


def work(folder: Path, names: list[str], seconds: float | None) -> None:
    """Does names: one line in a file per name, which is there when its work is done; None: when all others are."""
    claims = Claims(folder / "claims")
    for name in claims.hand_out(names, lambda name: (folder / name).exists(), never):
        with open(folder / f"{name}.begun", "a", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
        if seconds is None:
            for other in set(NAMES) - {name}:
                wait_for(folder / other)
        else:
            time.sleep(seconds)
        (folder / name).touch()


def begun(folder: Path) -> dict[str, list[str]]:
    """Who began each name, in turn."""
    return {path.stem: path.read_text(encoding="ascii").split() for path in folder.glob("*.begun")}


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    started: list[BaseProcess] = []

    def begin(seconds: float | None, names: list[str] = NAMES) -> BaseProcess:
        started.append(SPAWNING.Process(target=work, args=(tmp_path, names, seconds)))
        started[-1].start()
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.join()


def wait_for(path: Path) -> None:
    for _ in range(6000):  # a busy machine takes its time to start a process
        if path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(path)


def test_every_name_is_done_once_and_a_slow_process_holds_up_nobody(start, tmp_path: Path) -> None:
    slow = start(None)
    wait_for(tmp_path / "case_0.begun")
    others = [start(0.02, NAMES[::-1]), start(0.02, NAMES[3:] + NAMES[:3])]
    for process in (slow, *others):
        process.join(timeout=60)
        assert process.exitcode == 0
    owners = begun(tmp_path)
    assert sorted(owners) == sorted(NAMES)
    assert all(len(each) == 1 for each in owners.values()), owners
    assert [name for name, each in owners.items() if each == [str(slow.pid)]] == ["case_0"]
    assert list((tmp_path / "claims").iterdir()) == []


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
    claims = Claims(tmp_path / "claims")
    assert list(claims.hand_out(["case_0"], lambda name: False, lambda: next(answers))) == []
    with claims.claim("case_0") as taken:
        assert not taken
    with claims.claim("case_1") as taken:
        assert taken


def test_without_locks_every_claim_is_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    number = errno.ENOLCK
    monkeypatch.setattr(fcntl, "flock", fail)
    claims = Claims(tmp_path / "claims")
    assert not claims.are_exclusive
    done: set[str] = set()
    for name in claims.hand_out(NAMES, done.__contains__, never):
        done.add(name)
    assert done == set(NAMES)
    assert list(claims.path.iterdir()) == []
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        Claims(tmp_path / "claims")


def test_a_name_stays_claimed_until_its_work_has_ended(tmp_path: Path) -> None:
    claims, ended, done = Claims(tmp_path / "claims"), set(), set()
    given = claims.hand_out(["a", "b", "c"], done.__contains__, never, ended.__contains__)
    assert [next(given), next(given)] == ["a", "b"]
    with claims.claim("a") as is_taken:  # flock asks each opened file
        assert not is_taken
    ended.add("a")  # well or not
    assert next(given) == "c"
    with claims.claim("a") as is_taken:
        assert is_taken
    with claims.claim("b") as is_taken:
        assert not is_taken
    threading.Timer(0.2, lambda: ended.update("bc")).start()
    assert list(given) == []  # it ends when all that it gave has
    assert ended == {"a", "b", "c"}
    claims.clear()
    assert not claims.path.exists()


def test_a_folder_that_another_process_has_cleared_is_clear(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims")
    claims.path.rmdir()  # the other one was done at the same moment
    claims.clear()
    assert not claims.path.exists()


def test_what_killed_processes_left_is_cleared_and_what_is_claimed_is_not(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims")
    (claims.path / "left").write_bytes(b"process 1 on a since b: c")
    with claims.claim("held") as is_taken:
        assert is_taken
        claims.clear()
        assert [path.name for path in claims.path.iterdir()] == ["held"]
