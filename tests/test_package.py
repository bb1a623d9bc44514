"""What setup.py packs is what stands in the source tree."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta; build_meta.build_{}({!r})"


def build(kind: str, source: Path, output: Path) -> Path:
    output.mkdir()
    code = BUILD.format(kind, str(output))
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True)
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, so that both have to be complete."""
    place = tmp_path_factory.mktemp("package")
    shutil.copytree(REPOSITORY / "flaresemi", place / "tree/flaresemi", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, place / "tree")
    with tarfile.open(build("sdist", place / "tree", place / "sdist")) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (source,) = (place / "unpacked").iterdir()
    return build("wheel", source, place / "wheel")


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    tree = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "flaresemi").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == tree
    assert any(not name.endswith(".py") for name in tree)


def test_every_command_has_its_script(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    scripts = {line.split(" = ")[1] for line in archive.read(name).decode().splitlines() if " = " in line}
    mains = {
        f"flaresemi.cli.{path.stem}:main"
        for path in (REPOSITORY / "flaresemi/cli").glob("*.py")
        if "\ndef main(" in path.read_text(encoding="utf-8")
    }
    assert scripts == mains
