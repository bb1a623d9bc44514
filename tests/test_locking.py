import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flaresemi.errors import ConfigError
from flaresemi.locking import working_alone

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
