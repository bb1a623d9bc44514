"""What stands for an image on disk."""

from pathlib import Path

import pytest

from flaresemi.image_paths import holds_slices, image_name, image_stem, named_images

MARKED = bytes(128) + b"DICM"


def write(path: Path, content: bytes = b"text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_stems():
    assert image_stem(Path("x/a.b_0000.nii.gz")) == "a.b_0000"
    assert image_stem(Path("x/a.txt")) is None
    assert image_stem(Path("x/a.b.Seg.nrrd")) == "a.b"


@pytest.mark.parametrize(
    ("name", "start", "expected"),
    [
        ("IM0001", MARKED, True),
        ("1.dcm", MARKED, True),
        ("old", b"\x02\x00\x00\x00UL\x04\x00", True),
        ("older", b"\x08\x00\x05\x00CS\x0a\x00", True),
        ("DICOMDIR", MARKED, False),
        (".hidden", MARKED, False),
        ("readme", b"some text", False),
        ("scan.nii", MARKED, False),
        ("deeper/IM0001", MARKED, False),
        ("empty", b"", False),
    ],
)
def test_a_folder_of_slices_is_known_by_what_its_files_hold(tmp_path, name, start, expected):
    write(tmp_path / name, start)
    assert holds_slices(tmp_path) is expected


def test_the_images_of_a_folder_have_names(tmp_path, caplog, monkeypatch):
    write(tmp_path / "b_0000.nii.gz")
    write(tmp_path / "a.1_0000" / "IM1", MARKED)
    write(tmp_path / "export" / "series" / "IM1", MARKED)
    write(tmp_path / "other" / "notes.txt")
    write(tmp_path / "notes.txt")
    assert [name for name, _ in named_images(tmp_path)] == ["a.1_0000", "b_0000"]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [str(tmp_path / "export")]
    assert named_images(tmp_path / "absent") == []
    monkeypatch.chdir(tmp_path / "a.1_0000")
    assert image_name(Path()) == "a.1_0000"
    assert image_name(Path("..")) is None
