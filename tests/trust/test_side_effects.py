# ruff: noqa: F811
"""Every command, where nothing but its own folder may be written to and no host is there: it works, and tries nothing.

A hook in the process, and in all that it starts, refuses and notes what Python is asked to do. What libraries do by
themselves is seen where the system lets a process live without a network, and by the home folder.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flaresemi.cli import semi_round
from tests.rounds.conftest import QUICK, trained  # noqa: F401

CPU = ("--device", "cpu", "--precision", "fp32")
COMMANDS = {
    "doctor": ("-d", "DATA", "-w", "WORK"),
    "plan_and_preprocess": ("-d", "DATA", "-w", "WORK/new", "--preset", "small", "--stages", "one", "--workers", "2"),
    "train": ("FINE", "0", "-d", "DATA", "-w", "WORK", *QUICK, "--loader-workers", "1", *CPU, "--restart"),
    "predict": ("-m", "WORK/models", "-i", "DATA/unlabeled_image", "-o", "WORK/predicted", "--device", "cpu"),
    "find_best": ("-d", "DATA", "-m", "WORK", "WORK/other", "-o", "WORK/best", "--device", "cpu"),
    "export": ("-m", "WORK/models", "-o", "WORK/exported"),
    "serve": ("-w", "WORK", "--device", "cpu", "--check"),
    "evaluate": (
        "-p",
        "DATA/labeled_mask",
        "-r",
        "DATA/labeled_mask",
        "-d",
        "DATA",
        "-o",
        "WORK/scores.json",
        "--overlays",
        "1",
        "--workers",
        "2",
    ),
    "semi_round": (
        "-d",
        "DATA",
        "-w",
        "WORK",
        "--fold",
        "0",
        *CPU,
        "--select",
        "case",
        "--best-share",
        "1.0",
        "--rounds",
        "1",
    ),
    "review": ("-d", "DATA", "-w", "WORK", "--list"),
    "demo": (
        "-o",
        "WORK/demo",
        "--only-data",
        "--labeled",
        "2",
        "--unlabeled",
        "0",
        "--test",
        "0",
        "--size",
        "24x24x24",
    ),
}


def test_every_command_is_watched() -> None:
    points = importlib.metadata.distribution("flaresemi").entry_points
    assert {point.name.removeprefix("flaresemi_") for point in points if point.group == "console_scripts"} == set(
        COMMANDS
    )


@pytest.fixture(scope="module")
def without_network() -> tuple[str, ...]:
    """What to put in front of a command so that the kernel knows no network; nothing where that is not allowed."""
    if (
        shutil.which("unshare")
        and subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ("unshare", "-n")
    return ()


def run(words: list[str], tmp_path: Path, work: Path, prefix: tuple[str, ...]) -> tuple[int, str, str, list[str]]:
    """Runs a program of Python under watch: exit code, both outputs together, notes, what is in the home folder."""
    hooks, home, notes = (tmp_path / name for name in ("hooks", "home", "notes"))
    hooks.mkdir()
    home.mkdir()
    notes.touch()
    shutil.copyfile(Path(__file__).with_name("watched.py"), hooks / "sitecustomize.py")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(hooks),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": str(home),
        "WATCHED_NOTES": str(notes),
        "WATCHED_FOLDERS": str(work),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*prefix, sys.executable, *words],
        env=environment,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout, notes.read_text(encoding="utf-8"), os.listdir(home)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_writes_into_its_folder_alone_and_asks_no_host(
    name: str, trained: Path, phantom_dataset: Path, tmp_path: Path, without_network: tuple[str, ...]
) -> None:
    work = tmp_path / "work"
    shutil.copytree(trained, work)
    shutil.copytree(trained, work / "other")

    def words(command: str) -> list[str]:
        return [word.replace("DATA", str(phantom_dataset)).replace("WORK", str(work)) for word in COMMANDS[command]]

    if name == "review":  # of a round
        assert semi_round.main(words("semi_round")) == 0
    start = f"import sys\nfrom flaresemi.cli.{name} import main\nif __name__ == '__main__': sys.exit(main())\n"
    (tmp_path / "start.py").write_text(start, encoding="utf-8")
    code, said, noted, home = run([str(tmp_path / "start.py"), *words(name)], tmp_path, work, without_network)
    assert noted == ""
    assert code == 0, said
    assert home == []
    assert not [path for path in work.rglob("*") if path.name.startswith((".partial-", "tmp", "torchinductor"))]


@pytest.mark.parametrize(
    ("program", "noted"),
    [
        ("import socket; socket.create_connection(('192.0.2.1', 80))", "192.0.2.1"),
        ("import socket; socket.socket().connect(('192.0.2.1', 80))", "socket.connect"),
        ("open('/outside', 'w')", "open '/outside'"),
        ("import os; os.mkdir('/outside')", "os.mkdir"),
        ("import os, sys; os.rename(sys.argv[1], '/outside')", "os.rename"),
        ("import tempfile; tempfile.TemporaryFile(dir='/var')", "open '/var"),
    ],
)
def test_the_watch_sees_what_it_should(tmp_path: Path, program: str, noted: str) -> None:
    inside = tmp_path / "work" / "file"
    inside.parent.mkdir()
    inside.touch()
    code, said, notes, _ = run(["-c", program, str(inside)], tmp_path, inside.parent, ())
    assert code == 1 and "refused" in said
    assert noted in notes
