"""A round that dies (SIGKILL, just before one of its files gets its name) and is started again is the round it was."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flaresemi.cli import semi_round
from flaresemi.networks.checkpoint import load_checkpoint
from flaresemi.plans import Stage
from flaresemi.workspace import Workspace

#: Kills its own process when the file of this number would get its name.
DYING = """
import os, signal, sys
from flaresemi.cli import semi_round

left, replace = int(sys.argv[1]), os.replace

def count_down(*names, **settings):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names, **settings)

os.replace = count_down
semi_round.main(sys.argv[2:])
"""

pytestmark = pytest.mark.usefixtures("one_thread")


def contents(rounds: Path) -> dict[str, object]:
    """Every file of a chain's rounds, without what tells the time."""
    found: dict[str, object] = {}
    for path in sorted(path for path in rounds.rglob("*") if path.is_file()):
        name = str(path.relative_to(rounds))
        if "/logs/" in name or path.name == "curves.png" or path.suffix == ".html":
            continue
        if path.name in ("round.json", "run.json", "history.jsonl"):
            text = path.read_text(encoding="utf-8")
            lines = text.splitlines() if path.suffix == ".jsonl" else [text]
            found[name] = [timeless(json.loads(line)) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def timeless(value: object) -> object:
    times = ("seconds", "patches_per_second", "started", "continued", "git_revision")
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in times}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def test_a_killed_round_ends_like_one_that_was_not(trained: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    workspace, whole_one = tmp_path / "workspace", tmp_path / "whole"
    words = [
        "-d", str(phantom_dataset), "-w", str(workspace), "--fold", "0", "--rounds", "1", "--length", "2",
        "--select", "case", "--best-share", "1", "--device", "cpu", "--precision", "fp32",
    ]  # fmt: skip
    student = Workspace(workspace).round("0", 1).model(Stage.FINE)
    shutil.copytree(trained, workspace)
    assert semi_round.main(words) == 0
    workspace.rename(whole_one)  # the records name the place of the weights that it started from
    shutil.copytree(trained, workspace)
    for files in (7, 16):  # in the selection, then in the training
        command = [sys.executable, "-c", DYING, str(files), *words]
        process = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, encoding="utf-8", check=False
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
    assert 0 < load_checkpoint(student.latest).iteration < 6
    assert semi_round.main(words) == 0
    whole, killed = (contents(place / "rounds") for place in (whole_one, workspace))
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []
    assert any(name.endswith("snapshot_100.pt") for name in whole)
