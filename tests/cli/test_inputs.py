"""Lists of images: every line names a file, or one message says which does not."""

from pathlib import Path

import pytest

from flaresemi.cli.inputs import find_cases, named_by_output, output_paths
from flaresemi.errors import ConfigError, FlaresemiError, ImageError


def listed(folder: Path, content: bytes) -> Path:
    (folder / "list.txt").write_bytes(content)
    return folder / "list.txt"


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    source = listed(tmp_path, b"\xef\xbb\xbfa.nii\n")
    cases = find_cases(source, channels=1)
    assert output_paths(cases, source, tmp_path / "out") == [tmp_path / "out" / "a.nii"]


@pytest.mark.parametrize("line", [b"x" * 5000, b"a\0b.nii", b"../absent.nii", b"x/" * 3000])
def test_a_line_that_names_no_file(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(ImageError, match="of the list are not there") as caught:
        find_cases(listed(tmp_path, line), channels=1)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["..nii", ".hidden.nii", " a.nii", "a\u202eb.nii"])
def test_a_name_that_no_case_may_have(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(FlaresemiError):
        find_cases(listed(tmp_path, f"./{name}".encode()), channels=1)
    with pytest.raises(FlaresemiError):
        find_cases(tmp_path / name, channels=1)


def test_names_that_some_file_systems_take_for_one(tmp_path: Path) -> None:
    for name in ("a.nii", "A.nii"):
        (tmp_path / name).touch()
    with pytest.raises(FlaresemiError, match="differ only in"):
        find_cases(listed(tmp_path, b"a.nii\nA.nii\n"), channels=1)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.nii").touch()
    with pytest.raises(ConfigError, match="two cases are called"):
        find_cases(listed(tmp_path, b"a.nii\nsub/a.nii\n"), channels=1)


@pytest.mark.parametrize(
    ("output", "ending", "name"),
    [
        ("p1.nii.gz", None, "p1"),
        ("P1.SEG.NRRD", None, "P1"),
        ("p1.seg.dcm", ".seg.dcm", "p1"),
        ("p1.dcm", ".rtstruct.dcm", "p1"),
        ("folder", None, "ct"),
        ("p1.nii.gz", ".seg.dcm", "ct"),  # which `output_paths` refuses
    ],
)
def test_a_case_whose_output_is_a_file_is_called_like_it(
    tmp_path: Path, output: str, ending: str | None, name: str
) -> None:
    (tmp_path / "ct.nii.gz").touch()
    cases = find_cases(tmp_path / "ct.nii.gz", channels=1)
    (found,) = named_by_output(cases, tmp_path / output, ending)
    assert (found.id, found.images) == (name, cases[0].images)
    with pytest.raises(FlaresemiError, match="cannot be the name"):
        named_by_output(cases, tmp_path / ".nii.gz")
