"""What the image in docker/ runs, without Docker: the same folders, no home, nothing to write but the outputs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flaresemi.cli import export, predict
from flaresemi.workspace import Workspace
from tests.rounds.conftest import trained  # noqa: F401

DOCKER = Path(__file__).parents[2] / "docker"

#: What computes the same labels every time.
NOT_MEASURED = ["--device", "cpu", "--engine", "torch"]


@pytest.fixture
def container(trained: Path, phantom_dataset: Path, tmp_path: Path) -> Path:  # noqa: F811
    """What the image holds in /workspace, with the inputs mounted."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    shutil.copy(DOCKER / "predict.sh", workspace)
    assert export.main(["-m", str(Workspace(trained).models), "-o", str(workspace / "model"), "--no-programs"]) == 0
    shutil.copytree(phantom_dataset / "unlabeled_image", workspace / "inputs")
    (workspace / "outputs").mkdir()
    return workspace


def run(container: Path, home: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "predict.sh", *NOT_MEASURED],
        cwd=container,
        env={"PATH": path, "HOME": str(home)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_every_input_gets_its_label_map(container: Path, trained: Path, tmp_path: Path) -> None:  # noqa: F811
    before = {path: path.stat().st_mtime_ns for part in ("model", "inputs") for path in (container / part).rglob("*")}
    done = run(container, tmp_path / "no_home")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "no_home").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    inputs = [path.name for path in (container / "inputs").iterdir()]
    outputs = sorted(path.name for path in (container / "outputs").glob("[!.]*"))
    assert outputs == sorted(name.replace("_0000.nii.gz", ".nii.gz") for name in inputs)
    words = ["-i", str(container / "inputs"), "-o", str(tmp_path / "out"), "-m", str(Workspace(trained).models)]
    assert predict.main([*words, *NOT_MEASURED]) == 0
    for name in outputs:
        assert (container / "outputs" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_no_input_is_an_error_that_the_container_passes_on(container: Path, tmp_path: Path) -> None:
    shutil.rmtree(container / "inputs")
    (container / "inputs").mkdir()
    done = run(container, tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    lines = (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    kept = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    for name in copied:
        assert f"!{name}" in kept
        assert name == "docker/model" or (DOCKER.parent / name).exists()
