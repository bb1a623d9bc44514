"""Where a system lacks what Linux has, a dataset is planned, trained, predicted and scored to the same results.

Windows is imitated (elsewhere.py); on macOS and Windows the same is done as it is.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flaresemi.case_names import check_name
from flaresemi.files import content_hash

COMMANDS = """
import importlib, json, sys
from pathlib import Path

def run():
    sys.path.insert(0, sys.argv[2])
    from tests.made_workspace import shrink
    from flaresemi.compute import checkup
    for name, *words in json.loads(sys.argv[1]):
        code = importlib.import_module("flaresemi.cli." + name).main(words)
        if code:
            sys.exit(f"{name} ended with {code}")
        if name == "plan_and_preprocess":
            shrink(Path(words[3]))
    print(checkup.open_files(), checkup.processor(), checkup.disk(Path(words[1])))

if __name__ == "__main__":
    run()
"""


def run(system: str, data: Path, folder: Path, repository: Path) -> tuple[str, list[str]]:
    """Runs the commands in one process: what they said, and hashes of the plans and of what was predicted."""
    hooks, workspace = folder / "hooks", folder / "workspace"
    hooks.mkdir()
    if system != sys.platform:
        shutil.copyfile(Path(__file__).with_name("elsewhere.py"), hooks / "sitecustomize.py")
    (folder / "start.py").write_text(COMMANDS, encoding="utf-8")
    here = ["-d", str(data), "-w", str(workspace)]
    train = ["train", "FINE", "0", *here, "--iterations", "2", "--iterations-per-epoch", "1", "--validations", "0"]
    images = ["-i", str(data / "test_image"), "-o", str(folder / "predicted"), "--fold", "0", "--device", "cpu"]
    commands = [
        ["plan_and_preprocess", *here, "--preset", "small", "--stages", "one", "--workers", "2"],
        [*train, "--checkpoint-minutes", "0.0001", "--loader-workers", "1", "--device", "cpu", "--precision", "fp32"],
        ["predict", *here, *images, "--engine", "torch", "--precision", "fp32", "--measure"],
        ["evaluate", "-p", str(folder / "predicted"), "-r", str(data / "test_mask"), "-o", str(folder / "scores.json")],
    ]
    done = subprocess.run(
        [sys.executable, str(folder / "start.py"), json.dumps(commands), str(repository)],
        env={**os.environ, "PYTHONPATH": str(hooks), "ELSEWHERE": system, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout
    predicted = sorted((folder / "predicted").glob("*.nii.gz"))
    assert predicted and (folder / "scores.json").is_file()
    assert not [path for path in folder.rglob("*") if path.name.startswith(".partial-")]
    return done.stdout, [content_hash(path) for path in (workspace / "plans.json", *predicted)]


@pytest.fixture(scope="module")
def here(phantom_dataset: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> list[str]:
    """The hashes on this system, as it is."""
    return run(sys.platform, phantom_dataset, tmp_path_factory.mktemp("here"), repository)[1]


def test_this_system_does_it(here: list[str]) -> None:
    assert len(here) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all that Windows lacks")
def test_without_what_windows_lacks_the_label_maps_are_the_same(
    here: list[str], phantom_dataset: Path, tmp_path: Path, repository: Path
) -> None:
    """It lacks all that macOS lacks, too."""
    said, found = run("win32", phantom_dataset, tmp_path, repository)
    assert found == here
    assert "this filesystem has no locks" in said
    assert "name='open files', value='no limit'" in said
    assert not [path for path in tmp_path.rglob("*") if "lock" in path.name]


@pytest.mark.parametrize("name", ["con", "Nul", "com1.a", "a:b", "a?", "a."])
def test_names_that_windows_lacks_are_refused_there_alone(name: str) -> None:
    program = (
        "import sys; from flaresemi.case_names import check_name; from flaresemi.errors import DatasetError\n"
        "try: check_name(sys.argv[1])\nexcept DatasetError: print('refused')"
    )
    assert check_name(name) == name
    hooks = Path(__file__).parent
    start = f"import sys; sys.path.insert(0, {str(hooks)!r}); import elsewhere; {program}"
    done = subprocess.run(
        [sys.executable, "-c", start, name],
        env={**os.environ, "ELSEWHERE": "win32"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout == "refused\n"
