"""Kept findings spare time and never change anything: what is not surely right is as good as missing."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flaresemi.networks.kept import Kept

ABOUT = ["processor", 2, "version"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model" / ".compiled"


@pytest.fixture
def kept(folder: Path) -> Kept:
    folder.parent.mkdir()
    kept = Kept(folder)
    kept.keep_answer("fastest", ABOUT, "openvino bf16")
    kept.keep_program("FINE", ABOUT, b"program" * 100)
    return kept


def test_what_is_kept_comes_back_for_the_same_question_alone(kept: Kept) -> None:
    assert kept.answer("fastest", ABOUT) == "openvino bf16"
    assert kept.program("FINE", ABOUT) == b"program" * 100
    assert kept.answer("fastest", [*ABOUT, "other"]) is None
    assert kept.program("FINE", [*ABOUT, "other"]) is None
    assert kept.answer("other", ABOUT) is None and kept.program("other", ABOUT) is None
    kept.keep_program("FINE", "new weights", b"another")
    assert kept.program("FINE", "new weights") == b"another"
    assert kept.program("FINE", ABOUT) is None


def test_an_old_answer_is_asked_for_again(kept: Kept, folder: Path) -> None:
    file = folder / "fastest.json"
    long_ago = file.stat().st_mtime - 40 * 86400
    os.utime(file, (long_ago, long_ago))
    assert kept.answer("fastest", ABOUT) is None


def spoilt(folder: Path) -> Iterator[None]:
    """Ways to spoil the kept program, one after the other."""
    program, record = folder / "FINE.bin", folder / "FINE.json"
    content = program.read_bytes()
    program.write_bytes(content[:-1])
    yield
    program.write_bytes(b"another"[:1] + content[1:])
    yield
    program.write_bytes(content)  # the same bytes, but who wrote them?
    yield
    program.unlink()
    yield
    program.mkdir()
    yield
    record.write_text("{", encoding="utf-8")
    yield
    record.unlink()
    yield


def test_what_is_damaged_or_was_written_by_others_is_as_good_as_missing(kept: Kept, folder: Path) -> None:
    tried = 0
    for _ in spoilt(folder):
        assert kept.program("FINE", ABOUT) is None
        tried += 1
    assert tried == 7


def test_a_copy_of_the_folder_is_not_believed(kept: Kept, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")  # with its times
    assert Kept(tmp_path / "copy").program("FINE", ABOUT) is None
    folder.rename(tmp_path / "moved")
    assert Kept(tmp_path / "moved").program("FINE", ABOUT) == b"program" * 100


def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    for place in (tmp_path / "absent" / ".compiled", tmp_path / "file", tmp_path / "link"):
        kept = Kept(place)
        kept.keep_answer("fastest", ABOUT, "torch fp32")
        kept.keep_program("FINE", ABOUT, b"program")
        assert kept.answer("fastest", ABOUT) is None and kept.program("FINE", ABOUT) is None
    assert not list((tmp_path / "theirs").iterdir())


def test_a_full_disk_is_no_trouble(kept: Kept, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flaresemi.files.sync", full)
    kept.keep_program("FINE", "new weights", b"another")
    assert kept.program("FINE", "new weights") is None
    assert not list(folder.glob(".partial-*"))
