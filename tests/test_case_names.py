"""Names of cases: what a name may be, and that none leads out of its folder."""

import csv
import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flaresemi.case_names import MOST_BYTES, alike, case_file, check_name, refuse_alike
from flaresemi.dataset import find_images, load_dataset
from flaresemi.errors import ConfigError, DatasetError
from flaresemi.files import write_text
from flaresemi.plans import Stage
from flaresemi.workspace import RoundFolder, Workspace

GOOD = ("case_1", "病例 01", "Ünï-cödé", "a.b.c", "emoji 🫀", "50%", "$HOME", "*", "'; rm", "x" * MOST_BYTES)
BAD = (
    "",
    ".",
    "..",
    ".hidden",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..\\x",
    "a\0b",
    "a\nb",
    "a\u2028b",
    "a\u202egpj",
    "a\u200fb",
    "a\udcff",
    " a",
    "a ",
    "x" * (MOST_BYTES + 1),
    "é" * MOST_BYTES,
    "summary",
    "Made_With",
)

any_name = st.text(st.characters(), max_size=300) | st.sampled_from(GOOD + BAD) | st.text("./\\ aé\n", max_size=6)


@pytest.mark.parametrize("name", GOOD)
def test_names_that_are_fine(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_names_that_are_refused_with_one_readable_message(name: str) -> None:
    with pytest.raises(DatasetError, match="cannot be the name of a case") as caught:
        check_name(name)
    assert len(caught.value.what) < 300
    assert not [char for char in caught.value.what if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@given(any_name, st.sampled_from(["", ".json", ".npy", ".png", ".nii.gz"]))
@example("\ud800", ".json")
def test_no_name_leads_out_of_its_folder(name: str, ending: str) -> None:
    folder = Path("/workspace/cases")
    try:
        path = case_file(folder, name, ending)
    except DatasetError:
        return
    assert path.parent == folder
    assert os.path.normpath(path) == str(path)
    assert path.name == name + ending
    assert len(os.fsencode(path.name)) <= 255
    assert name.splitlines() == [name] == [name.strip()]
    assert next(csv.reader([f'"{name.replace(chr(34), chr(34) * 2)}"'])) == [name]


@pytest.mark.parametrize("letter", ["x", "é", "例", "🫀"])
def test_the_longest_names_can_be_written(tmp_path: Path, letter: str) -> None:
    name = letter * (MOST_BYTES // len(letter.encode()))
    path = case_file(tmp_path, name, ".nii.gz")
    write_text(path, "whole")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_prepared_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    folder = tmp_path / "cases"
    folder.mkdir()
    (folder / "case.json").symlink_to(outside)
    write_text(case_file(folder, "case", ".json"), "{}")
    assert outside.read_text() == "mine"
    assert not (folder / "case.json").is_symlink()


@given(st.text(max_size=20))
def test_names_in_other_encodings_are_alike(name: str) -> None:
    for form in ("NFC", "NFD"):
        assert alike(unicodedata.normalize(form, name)) == alike(name)
        assert alike(unicodedata.normalize(form, name).casefold()) == alike(name)


@pytest.mark.parametrize("names", [("Case", "case"), ("caf\u00e9", "cafe\u0301"), ("Straße", "STRASSE")])
def test_two_names_that_a_file_system_may_take_for_one(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(DatasetError, match="differ only in"):
        refuse_alike(names)
    refuse_alike(names[:1] * 2)
    for name in names:
        (tmp_path / f"{name}.nii.gz").touch()
    with pytest.raises(DatasetError, match="differ only in"):
        find_images(tmp_path)


@pytest.mark.parametrize("name", [b"a\xff", b"a\nb", b"summary", "a\u202eb".encode(), b" a", b"x" * 248])
def test_a_dataset_with_such_a_file_is_refused_by_name(tmp_path: Path, name: bytes) -> None:
    for folder, ending in (("imagesTr", b"_0000.nii"), ("labelsTr", b".nii")):
        (tmp_path / folder).mkdir()
        with open(os.fsencode(tmp_path / folder) + b"/" + (name + ending)[-255:], "wb"):
            pass
    with pytest.raises(DatasetError, match="cannot be the name of a case") as caught:
        load_dataset(tmp_path)
    assert "imagesTr" in str(caught.value.where)


def test_no_path_is_made_of_a_case_name_elsewhere() -> None:
    """`folder / f"{case_id}.json"` would be a way around the check."""
    package = Path(__file__).resolve().parents[1] / "flaresemi"
    pattern = re.compile(r"""/ \(?f?["']?\{?(case_id|\w+\.case_id|case\.id)\b""")
    found = [
        f"{path.name}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line)
    ]
    assert not found
    assert pattern.search('folder / f"{case.id}.json"')
    assert pattern.search("self.folder / case_id")
    assert pattern.search('x / f"{pair.case_id}.png"')


@pytest.mark.parametrize("fold", ["", "..", "0/../../x", "/tmp", "all ", "-1", "٣", "0" * 200])
def test_no_fold_leads_out_of_the_workspace(tmp_path: Path, fold: str) -> None:
    workspace = Workspace(tmp_path)
    for path in (
        lambda: workspace.model(fold, Stage.FINE),
        lambda: workspace.round(fold, 1),
        lambda: workspace.verdict([fold]),
        lambda: workspace.pseudo_labels(fold, Stage.FINE),
        lambda: RoundFolder(tmp_path, fold).model(Stage.FINE),
    ):
        with pytest.raises(ConfigError, match="there is no fold"):
            path()
    assert workspace.model("12", Stage.FINE).root == tmp_path / "models" / "fold_12" / "FINE"
    assert workspace.model("all", Stage.FINE).root == tmp_path / "models" / "fold_all" / "FINE"
