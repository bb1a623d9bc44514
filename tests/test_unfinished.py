"""What a killed program left is removed by the next one, and nothing that a living one may be writing."""

import os
import subprocess
import sys
import time

import pytest

from flaresemi import unfinished
from flaresemi.files import atomic_path, write_text
from flaresemi.unfinished import remove_leftovers, unfinished_path

OTHER = """
import sys, time
from pathlib import Path
from flaresemi.unfinished import unfinished_path
file, folder = unfinished_path(Path(sys.argv[1]), "a.nii.gz"), unfinished_path(Path(sys.argv[1]))
file.write_text("half")
folder.mkdir()
(folder / "image.npy").write_text("half")
print(flush=True)
time.sleep(100)
"""


@pytest.fixture
def other(tmp_path):
    """Another process, which has a file and a folder of a folder under way."""
    with subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_what_a_living_process_writes_stays_until_it_is_killed(tmp_path, other):
    assert len(os.listdir(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert len(os.listdir(tmp_path)) == 2
    other.kill()
    other.wait()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_first_file_written_into_a_folder_clears_it(tmp_path, other):
    other.kill()
    other.wait()
    (tmp_path / ".partial-abcdefg_.a.nii.gz").touch()  # of earlier versions
    (tmp_path / (".partial-" + "0a" * 16)).mkdir()
    write_text(tmp_path / "b.txt", "x")
    assert os.listdir(tmp_path) == ["b.txt"]


def test_another_process_of_the_same_number_is_told_apart(tmp_path, monkeypatch):
    mine = unfinished_path(tmp_path, "a")
    host, process, start, rest = mine.name.removeprefix(unfinished.PARTIAL).split("-")
    assert (host, int(process)) == (unfinished._host(), os.getpid())
    assert int(start) > 0
    earlier = tmp_path / f"{unfinished.PARTIAL}{host}-{process}-{int(start) - 1}-{rest}"
    unknown = tmp_path / f"{unfinished.PARTIAL}{host}-{process}-0-{rest}"  # no /proc
    for path in (mine, earlier, unknown):
        path.touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted((mine.name, unknown.name))


def test_of_other_hosts_what_nobody_has_written_to_for_a_day_is_left(tmp_path):
    paths = [tmp_path / f"{unfinished.PARTIAL}01234567-{number}-5-89abcdef.x" for number in (1, 2)]
    for path in paths:
        path.touch()
    os.utime(paths[0], (time.time() - 90_000,) * 2)
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [paths[1].name]


def test_what_flaresemi_did_not_name_stays(tmp_path):
    names = [".gitignore", ".partial-notes.txt", ".partial-", "partial-abcdefgh", ".partial-ABCDEFGH", "a.nii.gz"]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "absent")
    remove_leftovers(tmp_path / "a.nii.gz")
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_names_are_no_longer_than_file_systems_take(tmp_path):
    with atomic_path(tmp_path / ("ü" * 120 + ".nii.gz")) as path:
        assert len(os.fsencode(path.name)) <= 255
        assert path.name.endswith(".nii.gz")
        path.write_text("x", encoding="utf-8")
