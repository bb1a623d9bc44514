"""CSV files: what is written is read, and no cell is a formula."""

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaresemi.tables import read_table, write_table

FORMULAS = [
    "=1+1",
    "+SUM(A1)",
    "-cmd|'/c calc'!A0",
    "@x",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "＋1+1",
    "－1-x",
    "＠a",
    "-1 -2",
]
NUMBERS = ["-1.5", "+2", "-1e-05", "-.5", "0", "-3.", "12"]
TEXTS = ["", "liver", "'", "'a", "''", "a=1", "O'Hara", 'a,b\n"c"']


def _raw(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_begins_as_a_formula(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, [["case", text], [text, "x"]])
    (_, head), (cell, _) = _raw(path)
    assert head == cell == f"'{text}"
    assert read_table(path) == (("case", text), [{"case": text, text: "x"}])


@pytest.mark.parametrize("text", NUMBERS + TEXTS)
def test_numbers_and_other_texts_stay_as_they_are(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, [["case", "value"], ["a", text], [1, -1.5], [None, -2]])
    assert _raw(path) == [["case", "value"], ["a", text], ["1", "-1.5"], ["", "-2"]]


cells = st.text(st.sampled_from("'=+-@\t\r\n1.e,;\" aß肝"), max_size=6) | st.text(st.characters(codec="utf-8"))


@given(columns=st.lists(cells, min_size=2, max_size=4, unique=True), data=st.data())
def test_what_is_written_is_read(
    columns: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    rows = data.draw(st.lists(st.lists(cells, min_size=len(columns), max_size=len(columns)), max_size=3))
    write_table(path, [columns, *rows])
    assert read_table(path) == (tuple(columns), [dict(zip(columns, row, strict=True)) for row in rows])


def test_a_file_of_before_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("case,value\n=a,-1\n\n'b\n", encoding="utf-8")
    assert read_table(path) == (("case", "value"), [{"case": "=a", "value": "-1"}, {"case": "'b", "value": ""}])


@pytest.mark.parametrize("content", [b"a,a\n1,2\n", b"a,b\n1,2,3\n", b"a,b\n\xff,1\n", b'a,b\n"x\n'])
def test_what_is_no_table_is_said(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        read_table(path)
