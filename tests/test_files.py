import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from flaresemi.errors import ConfigError
from flaresemi.files import (
    atomic_path,
    clear_folder,
    content_hash,
    copy_file,
    map_array,
    open_no_link,
    read_box,
    read_text,
    write_text,
)


def test_a_file_appears_whole_and_under_its_name(tmp_path):
    target = tmp_path / "new folder" / "text.json"
    write_text(target, "grün\n")
    assert target.read_bytes() == "grün\n".encode()
    assert os.listdir(target.parent) == ["text.json"]


def test_the_temporary_name_keeps_the_ending_that_writers_go_by(tmp_path):
    with atomic_path(tmp_path / "a.nii.gz") as temporary:
        assert temporary.name.endswith("a.nii.gz")
        assert temporary.parent == tmp_path
        temporary.write_text("x")


@pytest.mark.parametrize("trouble", [ValueError, KeyboardInterrupt])
def test_trouble_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, trouble):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(trouble), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise trouble
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_files_get_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_a_folder_is_cleared_and_a_linked_one_refused(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "inside").mkdir(parents=True)
    (real / "inside" / "a.txt").write_text("a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "c.txt").write_text("c")
    (real / "away").symlink_to(tmp_path / "other")
    link.symlink_to(real)
    with pytest.raises(ConfigError, match=r"is a link[^>]*link -> .*real"):
        clear_folder(link)
    assert (real / "inside" / "a.txt").read_text() == "a"
    clear_folder(real)
    assert not real.exists()
    assert (tmp_path / "other" / "c.txt").read_text() == "c"  # a link inside is removed, and not followed
    clear_folder(real)  # nothing to do


def test_a_copy_takes_the_place_of_a_link(tmp_path):
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "new").write_text("new")
    (tmp_path / "kept").symlink_to(tmp_path / "theirs")
    copy_file(tmp_path / "new", tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "new"
    assert (tmp_path / "theirs").read_text() == "precious"


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("nowhere"), os.mkfifo, os.mkdir])
def test_what_is_no_ordinary_file_is_not_written_to(tmp_path, make):
    make(tmp_path / "name")
    for mode in ("a", "a+b"):
        with pytest.raises(ConfigError, match="no ordinary file"):
            open(tmp_path / "name", mode, opener=open_no_link)  # noqa: SIM115 (it is never open)
    assert os.listdir(tmp_path) == ["name"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_knows_no_modes_and_no_syncing(tmp_path, monkeypatch, number):
    """As network shares and memory sticks are."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    for name in ("fsync", "chmod", "fchmod"):
        monkeypatch.setattr(os, name, fail)
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").read_text() == "x"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_is_told_and_leaves_nothing(tmp_path, monkeypatch, call):
    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "a.txt", "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("read", [read_text, content_hash, map_array], ids=lambda read: read.__name__)
def test_pipes_and_devices_are_not_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(OSError, match="a pipe or a device"):
            read(path)


def test_pipes_and_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/null")):
        with pytest.raises(ConfigError, match="no ordinary file"):
            write_text(path, "x")
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


@pytest.mark.parametrize("shape", [(5, 70, 90), (2, 5, 70, 90)])
def test_all_of_a_box_is_announced_and_little_else(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    np.save(tmp_path / "a.npy", array)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr("flaresemi.files.announce", lambda memory, start, length: told.append((start, length)))
    box = (slice(1, 4), slice(10, 50), slice(5, 61))
    mapped = map_array(tmp_path / "a.npy")
    np.testing.assert_array_equal(read_box(mapped, box), array[..., *box])
    content = (tmp_path / "a.npy").read_bytes()
    numbers = np.arange(array.size).reshape(shape)[..., *box]
    offset = len(content) - array.nbytes
    first, last = numbers[..., 0, 0].ravel(), numbers[..., -1, -1].ravel()  # of each plane
    assert told == [(offset + 2 * low, 2 * (high - low + 1)) for low, high in zip(first, last, strict=True)]
    assert read_box(mapped, (slice(2, 2), slice(0, 5), slice(0, 5))).size == 0
    assert len(told) == len(first)
    np.testing.assert_array_equal(read_box(array, box), array[..., *box])  # which is in memory: nothing to tell
    assert len(told) == len(first)
