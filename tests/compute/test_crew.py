"""What the first process calls for is done by all of them; and one alone tells of what goes wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flaresemi.compute.crew import Crew
from tests.compute.act_as_crew import lead

ROOT = Path(__file__).parents[2]


def told(what: str) -> dict[int, object]:
    """What each process says."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    script = Path(__file__).with_name("act_as_crew.py")
    command = [sys.executable, str(script), what]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=240, check=True)
    return dict(map(json.loads, done.stdout.splitlines()))


def test_all_do_what_the_first_one_calls_for() -> None:
    assert told("ends") == {0: [[0, 3, 6], "process 2 cannot", [0, 2, 4]], 1: "done", 2: "done"}


def test_the_first_process_tells_why_another_failed() -> None:
    found = told("fails")
    assert found[0] == ["FlaresemiError", "process 1 of this launch: process 1 cannot"]
    assert {found[1][0], found[2][0]} == {"ToldError"}


@pytest.mark.parametrize(("what", "left"), [("dies", {0, 2}), ("first dies", {1, 2})])
def test_one_of_those_that_are_left_tells_that_another_has_died(what: str, left: set[int]) -> None:
    found = told(what)
    assert found.keys() == left
    assert sorted(kind for kind, _ in found.values()) == ["LostError", "ToldError"]
    if 0 in left:
        assert found[0][0] == "LostError"  # the first one, where it is there


def test_at_a_barrier_no_limit_holds() -> None:
    assert told("waits") == {0: ["met", "met", "met"], 1: "done", 2: "done"}


def test_one_process_does_all_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", "ends"])
    crew = Crew()
    assert lead(crew)[0] == [0]
    crew.dismiss("done")
