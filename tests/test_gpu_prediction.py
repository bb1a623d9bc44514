"""The script that measures prediction on a GPU, tried in tiny where there is none: it is not to fail later."""

import importlib
import json
from pathlib import Path

import pytest

from flaresemi.inference import cascade


def test_it_runs_goes_on_and_tells_what_it_found(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, one_thread: None
) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    monkeypatch.setattr(cascade, "StepClock", cascade.StepClock)  # which the script replaces
    script = importlib.import_module("gpu_prediction")
    monkeypatch.setattr(script, "TRIES", 1)
    monkeypatch.setattr(script.running, "when_and_what", lambda: "today")
    monkeypatch.setattr(script, "CASES", [("small", 14, 100)])
    monkeypatch.setattr(script, "RESTORED", [(117, 100)])
    monkeypatch.setattr(script, "WATCHED_SECONDS", 0)
    words = ["--tiny", "--work", str(tmp_path), "--parts", "images", "restoring", "upload"]
    script.main(words)
    rows = (tmp_path / "gpu_prediction" / "gpu_prediction.jsonl").read_text(encoding="utf-8").splitlines()
    parts = [json.loads(row)["key"]["part"] for row in rows]
    assert [parts.count(part) for part in ("images", "restoring", "upload")] == [3, 1, 2]
    table = (tmp_path / "gpu_prediction" / "gpu_prediction.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert all(f"| {name} |" in table for name, _, _ in script.VARIANTS)
    script.main(words)
    assert (tmp_path / "gpu_prediction" / "gpu_prediction.jsonl").read_text(encoding="utf-8").splitlines() == rows
