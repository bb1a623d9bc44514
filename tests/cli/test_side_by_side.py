import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from flaresemi.cli.side_by_side import Ending, Place, all_done, places, side_by_side
from flaresemi.compute.distributed import LAUNCHED
from flaresemi.errors import FlaresemiError
from flaresemi.portability import core_numbers


def shell(line: str) -> list[str]:
    return ["/bin/sh", "-c", line]


def never() -> bool:
    return False


def test_one_that_fails_or_is_killed_leaves_the_others_going(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {
        "fold 0": shell(
            f"echo begun; echo 'error: no pseudo-label'; echo '       lower it'; touch {tmp_path}/0; exit 2"
        ),
        "fold 1": shell(f"touch {tmp_path}/1; kill -KILL $$"),
        # Begins in the place of one that has failed.
        "fold 2": shell(f"test -e {tmp_path}/0 || test -e {tmp_path}/1 || exit 9; touch {tmp_path}/2"),
    }
    endings = side_by_side(commands, [Place(), Place()], began=0.0, stop_requested=never)
    assert {name: each.code for name, each in endings.items()} == {"fold 0": 2, "fold 1": -signal.SIGKILL, "fold 2": 0}
    assert (tmp_path / "2").exists()
    said = capsys.readouterr().err
    assert "fold 0: begun" in said
    assert "no pseudo-label" not in said  # that comes at the end, once
    with pytest.raises(FlaresemiError) as failure:
        all_done(endings, "the same command goes on")
    told = str(failure.value)
    assert told.startswith("2 of 3 have failed")
    assert "fold 0: no pseudo-label\n       lower it" in told
    assert "fold 1: was killed (SIGKILL), most likely for lack of memory" in told
    assert told.endswith("the same command goes on")


def test_all_of_them_are_asked_to_stop_and_no_other_begins(tmp_path: Path) -> None:
    waits = shell(f"trap 'exit 143' TERM; touch {tmp_path}/ready; while :; do sleep 0.02; done")
    endings = side_by_side(
        {"fold 0": waits, "fold 1": waits},
        [Place()],
        began=0.0,
        stop_requested=(tmp_path / "ready").exists,
    )
    assert {name: each.code for name, each in endings.items()} == {"fold 0": 143, "fold 1": None}
    assert not all_done(endings, "")
    assert all_done({"fold 0": Ending(0), "fold 1": Ending(0)}, "")


def test_an_interruption_ends_what_was_started(tmp_path: Path) -> None:
    def interrupt() -> bool:
        if (tmp_path / "ready").exists():
            raise KeyboardInterrupt
        return False

    waits = shell(f"trap 'touch {tmp_path}/ended; exit 143' TERM; touch {tmp_path}/ready; while :; do sleep 0.02; done")
    with pytest.raises(KeyboardInterrupt):
        side_by_side({"fold 0": waits}, [Place()], began=0.0, stop_requested=interrupt)
    assert (tmp_path / "ended").exists()


def test_each_has_its_gpus_its_cores_and_the_time_limit_of_all(tmp_path: Path) -> None:
    began, core = time.monotonic(), core_numbers()[:1]
    told = f"import os; print('error: ', {LAUNCHED!r} in os.environ and (os.environ[{LAUNCHED!r}]"
    told += ", os.environ['CUDA_VISIBLE_DEVICES'], sorted(os.sched_getaffinity(0))))"
    place = Place({"CUDA_VISIBLE_DEVICES": "3,4"}, frozenset(core))
    bound = core_numbers()
    endings = side_by_side({"it": [sys.executable, "-c", told]}, [place], began=began, stop_requested=never)
    assert endings["it"].told.strip() == str((str(began), "3,4", core))
    assert core_numbers() == bound


def test_gpus_and_cores_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flaresemi.cli.side_by_side.core_numbers", lambda: list(range(10, 20)))
    assert [place.environment for place in places(2, 2, "cpu")] == [{}, {}]
    assert [sorted(place.cores) for place in places(3, 1, "cpu")] == [[10, 11, 12], [13, 14, 15], [16, 17, 18]]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in places(2, 2, "auto")] == ["0,1", "2,3"]
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in places(5, 1, "cuda")] == ["0", "1", "2", "3", "0"]
    assert [place.environment for place in places(2, 1, "cuda:1")] == [{}, {}]
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "6,GPU-7")
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in places(2, 1, "auto")] == ["6", "GPU-7"]
    monkeypatch.setattr("flaresemi.cli.side_by_side.core_numbers", lambda: [0])
    assert [place.cores for place in places(2, 1, "cpu")] == [frozenset(), frozenset()]
