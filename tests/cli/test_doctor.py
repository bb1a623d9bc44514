import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flaresemi.cli import doctor
from flaresemi.compute.checkup import Check
from flaresemi.workspace import Workspace
from tests.rounds.made_chain import MadeChain

HEALTHY = Check(name="disk", value="large and fast")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """What the machine is made to be."""
    findings = [HEALTHY]

    def machine(folder: Path) -> Iterator[Check]:
        yield from findings

    monkeypatch.setattr(doctor, "machine", machine)
    return findings


def test_this_machine_is_told_in_a_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor.main([]) in (0, 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    for name in ("Python", "conv3d on cpu", "GFLOP/s", "memory", "open files", "disk speed", "OpenVINO"):
        assert name in text
    assert list(tmp_path.iterdir()) == []


def test_only_problems_change_the_exit_code(found: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    found.append(Check(name="GPU", value="none", verdict="note"))
    assert doctor.main([]) == 0
    found.append(Check(name="memory", value="none", verdict="problem", advice="buy some"))
    capsys.readouterr()
    assert doctor.main([]) == 2
    out = capsys.readouterr().out
    assert "problem  memory" in out
    assert "-> buy some" in out
    assert "1 problem(s)" in out


def test_a_workspace_is_read_whole(found: list[Check], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = MadeChain().write(tmp_path / "workspace")
    for model in workspace.root.rglob("*.pt"):
        with zipfile.ZipFile(model, "w") as archive:
            archive.writestr("data.pkl", b"")
    words = ["-w", str(workspace.root)]
    assert doctor.main(words) == 0
    assert "all readable" in capsys.readouterr().out
    state = next(workspace.root.rglob("round.json"))
    record = next(workspace.root.rglob("run.json"))
    model = record.parent / "snapshot_100.pt"
    for path in (workspace.plans, workspace.fingerprint, state, record):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert doctor.main(words) == 2
        assert path.name in capsys.readouterr().out
        path.write_bytes(whole)
    model.write_bytes(b"half a checkpoint")
    assert doctor.main(words) == 2
    assert "truncated" in capsys.readouterr().out


def test_a_workspace_of_another_version_is_named(
    found: list[Check], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = MadeChain().write(tmp_path / "workspace")
    text = workspace.plans.read_text(encoding="utf-8")
    workspace.plans.write_text(text.replace('"schema_version": 1', '"schema_version": 99', 1), encoding="utf-8")
    assert doctor.main(["-w", str(workspace.root)]) == 2
    assert "schema_version 99 is not known" in " ".join(capsys.readouterr().out.split())


def test_a_workspace_may_be_absent_but_not_a_file(tmp_path: Path) -> None:
    absent = doctor.check_workspace(Workspace(tmp_path / "new"))
    assert absent.verdict == "ok"
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("no folder")
    assert doctor.check_workspace(Workspace(tmp_path / "file")).verdict == "problem"


def test_a_folder_that_only_has_the_name_is_no_workspace(
    found: list[Check], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flaresemi").mkdir()
    assert doctor.main(["-d", str(tmp_path)]) == 0
    assert "workspace" not in capsys.readouterr().out
