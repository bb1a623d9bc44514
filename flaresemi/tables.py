"""CSV files. A text that a spreadsheet would take for a formula has an apostrophe in front, which reading takes away.

Source: OWASP's page on CSV injection (https://owasp.org/www-community/attacks/CSV_Injection).
"""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from flaresemi.files import open_regular, write_text

#: What begins a formula, in the wide forms of East Asian keyboards, too.
_FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")

_MARK = "'"


def write_table(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Writes rows, of which the first names the columns, atomically."""
    write_text(path, "".join(_line("" if cell is None else _marked(str(cell)) for cell in row) for row in rows))


def read_table(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The names of the columns, and each row by them; cells that a row lacks are empty.

    Raises:
        ValueError: it is no text in UTF-8, no CSV, or a row is longer than the first.
        OSError: it cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8", opener=open_regular) as file:
            rows = [[_unmarked(cell) for cell in row] for row in csv.reader(file, strict=True) if row]
    except csv.Error as problem:
        raise ValueError(str(problem)) from None
    columns = tuple(rows[0]) if rows else ()
    if len(set(columns)) != len(columns):
        raise ValueError("two columns have one name")
    if any(len(row) > len(columns) for row in rows):
        raise ValueError("a row has more cells than there are columns")
    return columns, [dict.fromkeys(columns, "") | dict(zip(columns, row, strict=False)) for row in rows[1:]]


def _line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # so that it puts quotes around both within a cell
    return text.getvalue().removesuffix("\r\n") + "\n"


def _marked(text: str) -> str:
    is_formula = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return _MARK + text if is_formula or _is_marked(text) else text


def _unmarked(text: str) -> str:
    return text[1:] if _is_marked(text) else text


def _is_marked(text: str) -> bool:
    """Whether a text looks as if an apostrophe had been put in front of it: then another one is."""
    rest = text.lstrip(_MARK)
    return text.startswith(_MARK) and bool(_FORMULA.match(rest)) and not _NUMBER.fullmatch(rest)
